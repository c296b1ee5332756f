"""What a sweep is made of: instances at hand, files, presets with seeds and grids of settings; from Python, options or a study file (TOML).

    time_limit_s = 10            # of each run; memory_limit_gib too, both optional
    seeds = "0:20"               # or a list; of presets and of methods that draw at random

    [[case]]
    family = "request_packing"   # may be left out where one family alone has the preset
    preset = "triplet-120"
    set = {capacity_tokens = 1000}
    grid = {requests = [60, 120, 249]}   # every combination of these
    methods = ["bins", "ffd"]    # default: the study's, or all
    bounds = []                  # none; default: the study's, or all

    [[case]]
    file = "../x.json"           # relative to the study file

A case of a preset is drawn for each seed, and methods that draw at random get the same seed; files are solved with every seed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from headroom.instances.base import Instance
from headroom.instances.errors import InputError, shown

CASE_FIELDS: Final = ("family", "preset", "file", "set", "grid", "seeds", "methods", "bounds")
STUDY_FIELDS: Final = ("time_limit_s", "memory_limit_gib", "seeds", "methods", "bounds", "case")
MOST_CASES: Final = 10**6


@dataclass(frozen=True)
class Case:
    """One instance of a sweep, by what it is made from; `seeds` are those of its methods. `methods`, `bounds`: None for all that apply."""

    instance: Instance | None = None
    path: Path | None = None
    family: str = ""
    preset: str = ""
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    methods: tuple[str, ...] | None = None
    bounds: tuple[str, ...] | None = None

    def load(self) -> Instance:
        """The instance. Raises `InputError`."""
        if self.instance is not None:
            return self.instance
        if self.path is not None:
            from headroom.api import load

            return load(self.path)
        import numpy as np

        from headroom.registry import FAMILIES
        from headroom.registry import load as load_name

        try:
            made: Instance = load_name(FAMILIES[self.family].preset)(self.preset, np.random.default_rng(self.seed), dict(self.settings))
        except InputError as error:
            raise error.within(f"{self.family}/{self.preset}") from None
        return made

    def labels(self, instance: Instance) -> dict[str, Any]:
        """Where the instance comes from, for a row: `preset`, `instance_seed`, `settings` (JSON); of a generated file what its provenance says."""
        if self.preset:
            return {"preset": self.preset, "instance_seed": self.seed, "settings": _json(self.settings)}
        origin = instance.provenance
        seed = origin.get("seed")
        labels = {"preset": origin.get("preset"), "instance_seed": seed if isinstance(seed, int) and not isinstance(seed, bool) else None}
        return {
            "preset": labels["preset"] if isinstance(labels["preset"], str) else None,
            "instance_seed": labels["instance_seed"],
            "settings": _json(origin.get("overrides") or {}) if isinstance(labels["preset"], str) else None,
        }


@dataclass(frozen=True)
class Study:
    """A study file's content. `time_limit_s`, `memory_limit_bytes`: of each run, None where the file does not say."""

    cases: tuple[Case, ...]
    time_limit_s: float | None = None
    memory_limit_bytes: int | None = None


def _json(settings: Mapping[str, Any]) -> str:
    return json.dumps(dict(settings), sort_keys=True, default=str)


def preset_cases(
    name: str,
    seeds: Sequence[int],
    fixed: Mapping[str, Any] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    methods: Sequence[str] | None = None,
    bounds: Sequence[str] | None = None,
) -> list[Case]:
    """A preset ("triplet-60", or "request_packing/triplet-60" where several families have one of that name) for each setting and seed.

    Raises `InputError` for an unknown preset.
    """
    family, preset = find_preset(name)
    grid = grid or {}
    count = len(seeds)
    for values in grid.values():
        count *= len(values)
    if count > MOST_CASES:
        raise InputError(f"makes {count} instances; expected at most {MOST_CASES}", preset)
    return [
        Case(
            family=family, preset=preset, seed=seed, settings={**(fixed or {}), **dict(zip(grid, values, strict=True))}, seeds=(seed,),
            methods=_names(methods), bounds=_names(bounds),
        )
        for values in itertools.product(*grid.values())
        for seed in seeds
    ]  # fmt: skip


def find_preset(name: str, family: str = "") -> tuple[str, str]:
    """(family, preset). Raises `InputError` for a name that no family has, or several."""
    from headroom.registry import FAMILIES

    if not family and "/" in name:
        family, _, name = name.partition("/")
    if family and family not in FAMILIES:
        raise InputError(f"must be one of {', '.join(FAMILIES)}, got {shown(family)}", "family")
    known = {each: FAMILIES[each].presets for each in ([family] if family else FAMILIES)}
    having = [each for each, presets in known.items() if name in presets]
    if not having:
        names = ", ".join(preset for presets in known.values() for preset in presets)
        raise InputError(f"must be one of {names}, got {shown(name)}", "preset")
    if len(having) > 1:
        raise InputError(f"{shown(name)} is one of several families: write {' or '.join(f'{each}/{name}' for each in having)}", "preset")
    return having[0], name


def settings_of(texts: Iterable[str]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """`field=value` and `field=a,b,c` of the command line: what is fixed, and the grid. Values are JSON literals, or else strings.

    A value that begins with [ or { is one literal. Raises `InputError`.
    """
    fixed: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name or not value:
            raise InputError(f"must be FIELD=VALUE or FIELD=A,B,C, got {shown(text)}", "--set")
        if name in fixed or name in grid:
            raise InputError(f"names {name} twice; expected FIELD=A,B,C for several values", "--set")
        values = [value] if value[0] in "[{\"" else [part.strip() for part in value.split(",")]
        literals = [_literal(part) for part in values]
        if len(literals) > 1:
            grid[name] = literals
        else:
            fixed[name] = literals[0]
    return fixed, grid


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_study(path: Path | str) -> Study:
    """Read a study file, see the module. Raises `InputError` with file and field."""
    import tomllib

    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is not TOML: {error}", str(path)) from None
    try:
        return _study(content, path.parent)
    except InputError as error:
        raise error.within(str(path)) from None


def _study(content: Mapping[str, Any], folder: Path) -> Study:
    _known(content, STUDY_FIELDS, "")
    cases = content.get("case")
    if not isinstance(cases, list) or not cases or not all(isinstance(case, dict) for case in cases):
        raise InputError("case must be one or more tables [[case]], got " + ("none" if not cases else shown(cases)))
    made: list[Case] = []
    for k, case in enumerate(cases):
        try:
            made += _cases(case, content, folder)
        except InputError as error:
            raise InputError(f"case {k}: {error}") from None
    limits = {name: _positive(content[name], name) for name in ("time_limit_s", "memory_limit_gib") if name in content}
    memory = limits.get("memory_limit_gib")
    return Study(tuple(made), limits.get("time_limit_s"), None if memory is None else int(memory * 2**30))


def _cases(case: Mapping[str, Any], study: Mapping[str, Any], folder: Path) -> list[Case]:
    _known(case, CASE_FIELDS, "")
    both = {**{name: study[name] for name in ("seeds", "methods", "bounds") if name in study}, **case}
    seeds = seeds_of(both.get("seeds", [0]))
    methods, bounds = (_strings(both[name], name) if name in both else None for name in ("methods", "bounds"))
    if ("preset" in case) == ("file" in case):
        raise InputError("expected preset or file, got " + ("both" if "preset" in case else "neither"))
    if "file" in case:
        wrong = [name for name in ("family", "set", "grid") if name in case]
        if wrong:
            raise InputError(f"{wrong[0]} is for a preset; expected none beside file")
        path = folder / _string(case["file"], "file")
        return [Case(path=path, seeds=tuple(seeds), methods=_names(methods), bounds=_names(bounds))]
    fixed, grid = (case.get(name, {}) for name in ("set", "grid"))
    for name, table in (("set", fixed), ("grid", grid)):
        if not isinstance(table, dict):
            raise InputError(f"{name} must be a table of settings, got {shown(table)}")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"grid.{name} must be a list of values, got {shown(values)}")
        if name in fixed:
            raise InputError(f"grid.{name} is in set too; expected it once")
    family, preset = find_preset(_string(case["preset"], "preset"), _string(case["family"], "family") if "family" in case else "")
    return preset_cases(f"{family}/{preset}", seeds, fixed, grid, methods, bounds)


def seeds_of(value: Any) -> list[int]:
    """Seeds of a study file: a whole number, a list of them, or a text such as "0:20". Raises `InputError`."""
    if isinstance(value, str):
        return parse_seeds(value, "seeds")
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63 for seed in listed):
        raise InputError(f'must be whole numbers from 0 on, or a text such as "0:20", got {shown(value)}', "seeds")
    return list(dict.fromkeys(listed))


def parse_seeds(text: str, name: str = "--seeds") -> list[int]:
    """`0,1,2`, `0:5` (0 to 4), or a mixture. Raises `InputError`."""
    seeds: list[int] = []
    try:
        for item in text.split(","):
            first, colon, last = item.partition(":")
            begin = int(first)
            end = int(last) if colon else begin + 1
            if begin < 0 or end <= begin or end - begin > MOST_CASES:
                raise ValueError
            seeds += range(begin, end)
    except ValueError:
        raise InputError(f"must be a list such as 0,1,2 or a range such as 0:5, got {shown(text)}", name) from None
    return seeds


def _known(table: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for name in table:
        if name not in names:
            raise InputError(f"{where}{name} is an unknown field; expected {', '.join(names)}")


def _positive(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise InputError(f"{name} must be a number above 0, got {shown(value)}")
    return float(value)


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{name} must be a text, got {shown(value)}")
    return value


def _strings(value: Any, name: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{name} must be a list of names, got {shown(value)}")
    return list(value)


def _names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(names)


__all__ = ["Case", "Study", "find_preset", "parse_seeds", "preset_cases", "read_study", "seeds_of", "settings_of"]
