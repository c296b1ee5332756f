"""The runs of a report: read from parquet files or frames that `compare` made, merged, typed, grouped."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headroom.instances.errors import InputError, shown
from headroom.report.trace import Event, read_trace

if TYPE_CHECKING:
    import pandas as pd

ATTRIBUTES = "headroom"
"""Key of a table's `attrs` (and so of the parquet file's metadata) for the sittings that made it, see `provenance.sitting`."""
MOST_SETTINGS = 80


@dataclass(frozen=True)
class Run:
    """One row. What is unknown is None; an objective is None without a plan."""

    family: str
    instance: str
    digest: str
    group: str
    """The preset with its settings, or else the instance's name: runs on draws of one preset stand together."""
    method: str
    kind: str
    seed: int | None
    objective: float | None
    bound: float | None
    bound_method: str | None
    gap: float | None
    certified_gap: float | None
    runtime_s: float | None
    status: str | None
    stop: str | None
    error: str | None
    note: str | None
    parameters: str
    version: str
    own_bound: float | None
    own_proof: str | None
    instance_seed: int | None
    trace: tuple[Event, ...] = field(default=(), repr=False)

    @property
    def planned(self) -> bool:
        return self.objective is not None


@dataclass(frozen=True)
class Source:
    """Where runs came from: a file's name and SHA-256, or a frame."""

    name: str
    sha256: str | None
    rows: int


@dataclass(frozen=True)
class Runs:
    """Everything that the page is made of."""

    rows: tuple[Run, ...]
    sources: tuple[Source, ...]
    sittings: tuple[Mapping[str, Any], ...] = ()

    @property
    def methods(self) -> list[Run]:
        return [run for run in self.rows if run.kind != "bound"]

    @property
    def bounds(self) -> list[Run]:
        return [run for run in self.rows if run.kind == "bound"]

    @property
    def families(self) -> list[str]:
        return sorted({run.family for run in self.rows})


def read(sources: Sequence[str | Path | pd.DataFrame]) -> Runs:
    """Read and merge tables. A run that stands in several is taken from the last that has it without an error, and the best bounds are then those
    over all tables. Raises `InputError`."""
    from headroom.compare import key_of, read_rows, tabulate

    tables: list[list[dict[str, Any]]] = []
    known: list[Source] = []
    sittings: list[Mapping[str, Any]] = []
    for item in sources:
        if isinstance(item, (str, Path)):
            rows = read_rows(Path(item))
            known.append(Source(Path(item).name, _sha256(Path(item)), len(rows)))
            sittings += _sittings(_file_attributes(Path(item)))
        else:
            rows = _frame_rows(item)
            known.append(Source("a table in memory", None, len(rows)))
            sittings += _sittings(item.attrs.get(ATTRIBUTES))
        if not rows:
            raise InputError("has no rows; expected at least one run", known[-1].name)
        tables.append(rows)
    if not tables:
        raise InputError("must name at least one table of compare", "report")
    names = [(source.name, row) for source, rows in zip(known, tables, strict=True) for row in range(len(rows))]
    flat = [row for rows in tables for row in rows]
    for (name, index), row in zip(names, flat, strict=True):
        _check(row, name, index)
    if len(tables) > 1:
        merged: dict[str, dict[str, Any]] = {}
        for row in flat:
            key = key_of(row)
            if key not in merged or not row["error"] or merged[key]["error"]:
                merged[key] = row
        flat = _plain(tabulate(list(merged.values())))
    unique: dict[str, Mapping[str, Any]] = {json.dumps(item, sort_keys=True, default=str): item for item in sittings}
    return Runs(tuple(_run(row) for row in flat), tuple(known), tuple(unique.values()))


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    import pandas as pd

    def absent(value: Any) -> bool:
        return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))

    return [{str(name): None if absent(value) else value for name, value in record.items()} for record in frame.to_dict("records")]


def _frame_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    from headroom.compare import COLUMNS, YOUNGER

    missing = [name for name in COLUMNS if name not in frame.columns and name not in YOUNGER]
    if missing:
        raise InputError(f"has no column {missing[0]!r}; expected a table that compare made", "frame")
    return _plain(frame)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_attributes(path: Path) -> Any:
    import pyarrow.parquet as pq

    try:
        text = (pq.read_schema(path).metadata or {}).get(b"PANDAS_ATTRS")
        return None if text is None else json.loads(text).get(ATTRIBUTES)
    except (OSError, ValueError, AttributeError):
        return None


def _sittings(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


NUMBERS = ("objective", "bound", "gap", "certified_gap", "runtime_s", "own_bound")
TEXTS = ("family", "instance", "digest", "method", "kind", "parameters", "version")


def _check(row: Mapping[str, Any], source: str, index: int) -> None:
    """Any parquet file may have these column names. Raises `InputError`."""
    for name in TEXTS:
        if not isinstance(row[name], str):
            raise InputError(f"row {index}: {name} must be text, got {shown(row[name])}", source)
    for name in (*NUMBERS, "seed", "instance_seed"):
        if row.get(name) is not None:
            try:
                float(row[name])
            except (TypeError, ValueError):
                raise InputError(f"row {index}: {name} must be a number, got {shown(row[name])}", source) from None


def _run(row: Mapping[str, Any]) -> Run:
    values = {name: None if row.get(name) is None else float(row[name]) for name in NUMBERS}
    finite = {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}
    finite["own_bound"], finite["bound"] = values["own_bound"], values["bound"]  # +inf says that no plan exists
    return Run(
        family=row["family"], instance=row["instance"], digest=row["digest"], group=_group(row), method=row["method"], kind=row["kind"],
        seed=_whole(row["seed"]), bound_method=_text(row["bound_method"]), status=_text(row["status"]), stop=_text(row["stop"]),
        error=_text(row["error"]), note=_text(row.get("note")), parameters=row["parameters"], version=row["version"],
        own_proof=_text(row["own_bound_proof"]), instance_seed=_whole(row.get("instance_seed")), trace=read_trace(row.get("trace")), **finite,
    )  # fmt: skip


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _group(row: Mapping[str, Any]) -> str:
    preset, settings = _text(row.get("preset")), row.get("settings")
    if preset is None:
        return str(row["instance"])
    try:
        changed = json.loads(settings) if isinstance(settings, str) else {}
    except ValueError:
        changed = {}
    if not isinstance(changed, dict) or not changed:
        return preset
    said = ", ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in sorted(changed.items()))
    if len(said) > MOST_SETTINGS:  # long settings are told apart by a digest of them
        said = f"{said[:MOST_SETTINGS]}… {hashlib.sha256(said.encode('utf-8')).hexdigest()[:6]}"
    return f"{preset} ({said})"


def cohorts(runs: Iterable[Run], most: int = 4) -> list[list[Run]]:
    """Runs of one family in groups of instances that the same methods ran on, in practice the family's modes: only within one can methods be
    compared. One group where there would be more than `most` of them (a sweep with many different choices of methods)."""
    by_digest: dict[str, list[Run]] = {}
    for run in runs:
        by_digest.setdefault(run.digest, []).append(run)
    groups: dict[tuple[str, ...], list[Run]] = {}
    for members in by_digest.values():
        groups.setdefault(tuple(sorted({run.method for run in members})), []).extend(members)
    if len(groups) > most:
        return [[run for members in groups.values() for run in members]]
    return sorted(groups.values(), key=lambda members: min(run.group for run in members))
