"""`compare`: methods x instances x seeds, one tidy table with a row for each run.

Runs are spread over local processes. Each finished run is a small file in `<output>.parts` until all are done and become one parquet
file; a sweep that was killed continues where it stopped, and a finished run (same digest, method, parameters, seed and version) is never
run again. A run that failed is a row with its error; it is tried again when the sweep is.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from headroom.formulations.tolerances import OPTIMALITY_GAP, relative_gap
from headroom.formulations.types import SolveParams
from headroom.instances.base import Instance
from headroom.instances.errors import InputError, shown
from headroom.instances.files import read_json, to_json, write_atomically, write_text
from headroom.own_methods import OwnMethod, OwnMethods
from headroom.registry import Method
from headroom.run import family_of
from headroom.study import Case, Study

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
T = TypeVar("T")
KEY = ("digest", "method", "kind", "seed", "parameters", "version")
COLUMNS: dict[str, str] = {
    "family": "string", "instance": "string", "digest": "string", "method": "string", "kind": "string", "seed": "Int64",
    "parameters": "string", "version": "string", "objective": "float64", "bound": "float64", "bound_method": "string",
    "bound_proof": "string", "gap": "float64", "certified_bound": "float64", "certified_method": "string", "certified_gap": "float64",
    "runtime_s": "float64", "status": "string", "stop": "string", "error": "string", "started_s": "float64", "peak_memory_bytes": "Int64",
    "own_bound": "float64", "own_bound_method": "string", "own_bound_proof": "string", "own_certified_bound": "float64",
    "own_certified_method": "string", "note": "string", "preset": "string", "instance_seed": "Int64", "settings": "string",
    "trace": "string", "source": "string",
}  # fmt: skip
YOUNGER = ("note", "preset", "instance_seed", "settings", "trace", "source")
"""Columns and their types; `part_<name>` columns follow. `bound` and `certified_bound` are the best over all rows of the instance, `own_…`
what the row's own run found. `kind` is exact, heuristic, policy or bound; `seed` is null where the method draws nothing; `note` says why a run has
no plan. `preset`, `instance_seed`, `settings`: what the instance was made from, where that is known.
`trace` is the run's objective and bound over time (`headroom.report.trace`). `source`: which code a method of
the user's own was, a file's SHA-256; it is part of `parameters`, so that an edited file is run again."""


@dataclass(frozen=True)
class Task:
    """One run to do; `instance` is the number of its case."""

    instance: int
    method: str
    kind: str
    seed: int | None
    key: str
    row: Row
    """What is known before the run."""
    own: OwnMethod | None = None
    """A method that is not the registry's."""

    @property
    def asked(self) -> str | OwnMethod:
        """What `run` is asked for."""
        return self.method if self.own is None else self.own

    @property
    def bound_here(self) -> bool:
        """Whether no other process can run it."""
        return self.own is not None and not self.own.portable


def compare(
    instances: Sequence[Instance | Case | str | Path] | Study,
    methods: Sequence[str | Callable[..., Any]] | None = None,
    bounds: Sequence[str] | None = None,
    seeds: Iterable[int] = (0,),
    *,
    time_limit_s: float | None = None,
    memory_limit_bytes: int | None = None,
    jobs: int | None = None,
    scheduler: str | None = None,
    output: str | Path | None = None,
    on_row: Callable[[int, int, Row], None] | None = None,
) -> pd.DataFrame:
    """Run every method (None: all registered) and bound (None: all) on every instance, with every seed where the method draws at random.

    `instances` are instances, files, `headroom.study.Case`s (presets with seeds and settings), or a study, whose own methods, bounds, seeds and
    limits come first. A method may be your own: a function or class, or "my_policy.py:MyPolicy", which runs that file (docs/compare-your-policy.md);
    one that only this process knows, such as a notebook's function, runs in it and cannot be stopped.

    `jobs` processes run at a time (None: one a core), each method on one thread. A run over its limits is stopped and recorded: a
    quarter and five seconds over the time limit, for methods that keep no time themselves. With `output` (.parquet) the table is written there and
    an earlier, even interrupted, sweep into it is continued. `on_row(done, total, row)` is called as rows come in. Returns the table, best
    objective first within each instance. Raises `InputError`.
    """
    from headroom.compare_cluster import run_tasks as run_on_cluster
    from headroom.compare_pool import run_tasks

    if isinstance(instances, Study):
        time_limit_s = instances.time_limit_s if time_limit_s is None else time_limit_s
        memory_limit_bytes = instances.memory_limit_bytes if memory_limit_bytes is None else memory_limit_bytes
    params = SolveParams(time_limit_s=time_limit_s, memory_limit_bytes=memory_limit_bytes)
    cases = _cases(instances.cases if isinstance(instances, Study) else instances, sorted(set(seeds)))
    tasks = plan_tasks(cases, methods, bounds, params)
    store = Store(Path(output) if output is not None else None)
    done = store.finished()
    waiting = [task for task in tasks if task.key not in done]
    count = len(tasks) - len(waiting)

    def keep(task: Task, row: Row) -> None:
        nonlocal count
        count += 1
        store.add(task.key, row)
        if on_row is not None:
            on_row(count, len(tasks), row)

    try:
        if scheduler is not None and waiting:
            run_on_cluster(scheduler, cases, [task for task in waiting if not task.bound_here], params, keep)
            waiting = [task for task in waiting if task.bound_here]
        run_tasks(cases, waiting, params, jobs or os.cpu_count() or 1, keep)
    except KeyboardInterrupt:
        store.close()
        raise
    frame = store.close()
    wanted = {task.key for task in tasks}
    return frame[[key_of(row) in wanted for row in frame.to_dict("records")]].reset_index(drop=True)  # type: ignore[arg-type]


def _cases(instances: Sequence[Instance | Case | str | Path], seeds: Sequence[int]) -> list[Case]:
    own = tuple(seeds)

    def case(item: Instance | Case | str | Path) -> Case:
        if isinstance(item, Case):
            return item
        return Case(instance=item, seeds=own) if isinstance(item, Instance) else Case(path=Path(item), seeds=own)

    return [case(item) for item in instances]


def plan_tasks(
    cases: Sequence[Case], methods: Sequence[str | Callable[..., Any]] | None, bounds: Sequence[str] | None, params: SolveParams
) -> list[Task]:
    """Every run of the sweep, in the order in which they are started. Raises `InputError` for names that no instance's family knows.

    A name for another mode of a family is known and makes no runs; so is a run that an earlier case makes already (two files may hold the same
    data). Every instance is made once here, for its digest, and not kept.
    """
    from headroom.run import versions

    parameters = parameters_hash(params)
    version = versions().get("headroom", "unknown")
    for_methods: list[tuple[Collection[str], Collection[str]]] = []
    for_bounds: list[tuple[Collection[str], Collection[str]]] = []
    tasks: dict[str, Task] = {}
    own = OwnMethods(_all_names(methods, [case.methods for case in cases]))
    for index, case in enumerate(cases):
        instance = case.load()
        family = family_of(instance)
        chosen = methods if case.methods is None else case.methods
        table = own.methods_for(instance)
        wanted = [name for name in table if name not in own.methods] if chosen is None else own.names(chosen)
        proving = bounds if case.bounds is None else case.bounds
        for_methods.append((own.known(family), table.keys()))
        for_bounds.append((family.bounds.keys(), family.bounds_for(instance).keys()))
        start: Row = {"family": instance.family, "instance": instance.name, "digest": instance.digest()}
        for method, kind, seed in _runs(instance, table, wanted, proving, case.seeds):
            row = start | {"method": method, "kind": kind, "seed": seed, "parameters": parameters, "version": version} | case.labels(instance)
            entry = table.get(method) if kind != "bound" else None
            if isinstance(entry, OwnMethod):
                row |= {"parameters": hashlib.sha256(f"{parameters} {entry.identity}".encode()).hexdigest()[:16], "source": entry.source}
            key = key_of(row)
            tasks.setdefault(key, Task(index, method, kind, seed, key, row, entry if isinstance(entry, OwnMethod) else None))
    own.check()
    _check_names("--methods", own.names(_all_names(methods, [case.methods for case in cases])), for_methods)
    _check_names("--bounds", _all_names(bounds, [case.bounds for case in cases]), for_bounds)
    return list(tasks.values())


def _all_names(names: Sequence[T] | None, own: Iterable[Sequence[T] | None]) -> list[T]:
    """Every name that is asked for, once."""
    return list(dict.fromkeys(itertools.chain(names or (), *(some for some in own if some is not None))))


def _runs(
    instance: Instance, table: Mapping[str, Method], methods: Sequence[str], bounds: Sequence[str] | None, seeds: Sequence[int]
) -> Iterable[tuple[str, str, int | None]]:
    """(method, kind, seed) for one instance and the methods that handle it; bounds and methods that are not seeded draw nothing and run once."""
    family = family_of(instance)
    for name in family.bounds_for(instance):
        if bounds is None or name in bounds:
            yield name, "bound", None
    for name, entry in table.items():
        if name in methods:
            yield from ((name, entry.kind, seed) for seed in (seeds if entry.seeded else [None]))


def _check_names(option: str, names: Sequence[str] | None, tables: Sequence[tuple[Collection[str], Collection[str]]]) -> None:
    """`tables` hold for each instance the names that its family knows and those among them that are for it."""
    for name in names or ():
        if not any(name in known for known, _ in tables):
            fitting = dict.fromkeys(name for _, names in tables for name in names)
            raise InputError(f"must name some of {', '.join(fitting)}, got {shown(name)}", option)


def parameters_hash(params: SolveParams) -> str:
    """What of the parameters changes a run's outcome, as a short hash; the seed has a column of its own."""
    values = {name: value for name, value in asdict(params).items() if name not in ("seed", "start")}
    return hashlib.sha256(to_json(values).encode("utf-8")).hexdigest()[:16]


def key_of(row: Row) -> str:
    """The identity of a run."""
    seed = None if _absent(row["seed"]) else int(row["seed"])
    plain = [seed if name == "seed" else row[name] for name in KEY]
    return hashlib.sha256(repr(plain).encode("utf-8")).hexdigest()[:32]


class Store:
    """The rows of a sweep: in memory, and on disk when there is an output."""

    def __init__(self, output: Path | None) -> None:
        self.output = output
        self.parts = None if output is None else output.with_name(output.name + ".parts")
        self.rows: dict[str, Row] = {}
        self.sittings: list[Any] = []
        """What made the table so far, command by command (`headroom.report.provenance.sitting`)."""
        self.added = False
        if output is None:
            return
        if output.suffix != ".parquet":
            raise InputError("must end in .parquet", str(output))
        if output.exists():
            self.rows = {key_of(row): row for row in read_rows(output)}
            self.sittings = _sittings(output)
        if self.parts is not None and self.parts.is_dir():
            for part in sorted(self.parts.glob("*.json")):
                row = _read_part(part)
                if row is not None:
                    self.rows[key_of(row)] = row

    def finished(self) -> set[str]:
        """The runs that need not be run again."""
        return {key for key, row in self.rows.items() if not row.get("error")}

    def add(self, key: str, row: Row) -> None:
        """Keep a finished row; from here on no kill can lose it."""
        self.rows[key] = row
        self.added = True
        if self.parts is not None:
            try:
                self.parts.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"cannot be written: {error.strerror}", str(self.parts)) from None
            write_text(self.parts / f"{key}.json", to_json(row))

    def close(self) -> pd.DataFrame:
        """The table; it replaces the parts on disk."""
        from headroom.report.provenance import sitting

        frame = tabulate(list(self.rows.values()))
        if self.added or not self.sittings:
            self.sittings.append(sitting([Path(sys.argv[0]).name, *sys.argv[1:]]))
        frame.attrs["headroom"] = self.sittings
        if self.output is not None and self.parts is not None and self.rows:
            write_atomically(self.output, lambda file: frame.to_parquet(file, index=False))
            # A sweep killed while it wrote a row left that row's temporary file.
            leftovers = [*self.parts.glob("*.json"), *self.parts.glob(".*.json.*.part")] if self.parts.is_dir() else []
            for part in leftovers:
                part.unlink(missing_ok=True)
            if self.parts.is_dir() and not any(self.parts.iterdir()):
                self.parts.rmdir()
        return frame


def _sittings(path: Path) -> list[Any]:
    import pandas as pd

    found = pd.read_parquet(path, columns=["digest"]).attrs.get("headroom", [])
    return list(found) if isinstance(found, list) else []


def _read_part(path: Path) -> Row | None:
    """One finished row; None for a file that is not one (it is run again)."""
    try:
        row = read_json(path)
    except InputError:
        return None
    if not isinstance(row, dict) or not set(KEY) <= set(row):
        return None
    return row | dict.fromkeys(row.get("infinite", ()), math.inf)


def read_rows(path: Path) -> list[Row]:
    """The rows of a parquet file that `compare` wrote. Raises `InputError` for any other file."""
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", str(path)) from None
    except Exception as error:
        raise InputError(f"is not a parquet file that compare wrote: {error}", str(path)) from None
    missing = sorted(set(COLUMNS) - set(frame.columns) - set(YOUNGER))
    if missing:
        raise InputError(f"has no column {missing[0]!r}; expected a parquet file that compare wrote", str(path))
    return [{str(name): None if _absent(value) else value for name, value in record.items()} for record in frame.to_dict("records")]


def _absent(value: Any) -> bool:
    import pandas as pd

    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def tabulate(rows: list[Row]) -> pd.DataFrame:
    """Rows as one table: the best bounds of each instance filled in, best objective first."""
    import pandas as pd

    by_digest: dict[str, list[Row]] = {}
    for row in rows:
        by_digest.setdefault(row["digest"], []).append(row)
    parts = sorted({name for row in rows for name in row if name.startswith("part_")})
    full: list[Row] = []
    for group in by_digest.values():
        bound, bound_method, proof = _best(group, "own_bound", "own_bound_method", "own_bound_proof")
        certified, certified_method, _ = _best(group, "own_certified_bound", "own_certified_method", "own_certified_method")
        for row in sorted(group, key=_rank):
            objective = _number(row.get("objective"), math.inf)
            extra = {"objective": objective, "bound": bound, "bound_method": bound_method, "bound_proof": proof}
            extra |= {"gap": relative_gap(objective, bound), "certified_bound": certified, "certified_method": certified_method}
            full.append(row | extra | {"certified_gap": relative_gap(objective, certified)})
    types = COLUMNS | dict.fromkeys(parts, "float64")
    data = {name: pd.array([_typed(row.get(name), kind) for row in full], dtype=kind) for name, kind in types.items()}  # type: ignore[call-overload]
    return pd.DataFrame(data)


def _typed(value: Any, kind: str) -> Any:
    if _absent(value):
        return math.nan if kind == "float64" else None
    return float(value) if kind == "float64" else int(value) if kind == "Int64" else str(value)


def _best(rows: list[Row], value: str, method: str, proof: str) -> tuple[float, str | None, str | None]:
    # On a tie (both are within the tolerance of the optimum) the bound that can be rechecked is named.
    highest = max(_number(row.get(value), -math.inf) for row in rows)
    level = highest - OPTIMALITY_GAP * abs(highest) if math.isfinite(highest) else highest
    tied = [row for row in rows if _number(row.get(value), -math.inf) >= level]
    # Rows come in any order: the names settle what is still even.
    names = sorted(tied, key=lambda row: str(row.get(method)))
    best = max(names, key=lambda row: (row.get(proof) != "solver", _number(row.get(value), -math.inf)))
    found = _number(best.get(value), -math.inf)
    return (found, best.get(method), best.get(proof)) if found > -math.inf else (-math.inf, None, None)


def _number(value: Any, absent: float) -> float:
    return absent if _absent(value) else float(value)


def _rank(row: Row) -> tuple[bool, float, str, int]:
    return (
        row["kind"] == "bound",
        _number(row.get("objective"), math.inf),
        row["method"],
        int(_number(row.get("seed"), -1)),
    )
