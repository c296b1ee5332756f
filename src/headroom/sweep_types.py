"""What a sweep is: points with cost, bound and fleet, the pieces of a price curve, shadow prices; as a document and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headroom.formulations.tolerances import OPTIMALITY_GAP, relative_gap
from headroom.formulations.types import Plan, Status, Stop
from headroom.instances.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

SWEEP_SCHEMA = "headroom/sweep/1"
SUFFIXES = (".parquet", ".csv", ".json")
Role = Literal["value", "breakpoint"]


@dataclass(frozen=True)
class Point:
    """The optimum at one value of what is swept.

    `how`: "solved", or "reused" when answers at other values prove this one; `by` names where the bound comes from: a method, or the argument that
    carries it over ("concavity", "monotonicity"). `objective` is +inf without a plan, `bound` +inf when there is none.
    """

    at: Mapping[str, float]
    objective: float
    bound: float
    certified_bound: float
    how: Literal["solved", "reused"]
    by: str
    stop: Stop
    plan: Plan | None = None
    fleet: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    nodes: int = 0
    runtime_s: float = 0.0
    role: Role = "value"
    lp_dual: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def gap(self) -> float:
        return relative_gap(self.objective, self.bound)

    @property
    def certified_gap(self) -> float:
        return relative_gap(self.objective, self.certified_bound)

    @property
    def status(self) -> Status:
        if self.plan is not None:
            return "optimal" if self.gap <= OPTIMALITY_GAP else "feasible"
        return "infeasible" if self.bound == math.inf else "unknown"

    def record(self) -> dict[str, Any]:
        """The point in JSON types, without its plan."""
        return {
            "at": dict(self.at), "role": self.role, "status": self.status, "stop": self.stop, "how": self.how, "by": self.by,
            "objective": self.objective, "bound": self.bound, "gap": self.gap, "certified_bound": self.certified_bound,
            "certified_gap": self.certified_gap, "fleet": dict(self.fleet), "parts": dict(self.parts), "nodes": self.nodes,
            "runtime_s": self.runtime_s, "lp_dual": self.lp_dual, "notes": list(self.notes),
        }  # fmt: skip


@dataclass(frozen=True)
class PricePiece:
    """On [start, end] one plan is optimal within `gap` (and `certified_gap`, by bounds that were rechecked): it costs intercept + slope · price."""

    start: float
    end: float
    intercept: float
    slope: float
    gap: float
    certified_gap: float
    fleet: Mapping[str, float]
    plan: Plan | None = None

    @property
    def status(self) -> Status:
        return "optimal" if self.gap <= OPTIMALITY_GAP else "feasible"

    def cost(self, value: float) -> float:
        return self.intercept + self.slope * value

    def record(self) -> dict[str, Any]:
        return {
            "start": self.start, "end": self.end, "intercept": self.intercept, "slope": self.slope, "gap": self.gap,
            "certified_gap": self.certified_gap, "fleet": dict(self.fleet),
        }  # fmt: skip


@dataclass(frozen=True)
class Change:
    """By how much the optimum changes: `value` by the plans found, which lies in the certified interval [least, most]; +inf: no plan is left."""

    value: float
    least: float
    most: float

    def record(self) -> dict[str, Any]:
        return {"value": self.value, "least": self.least, "most": self.most, "infeasible": self.least == math.inf}


@dataclass(frozen=True)
class ShadowPrice:
    """What one unit of a limit is worth in the objective's unit; None where the limit cannot be set to that.

    `relaxed`: what `step` more (of a floor: less) saves; `tightened`: what `step` less (more) costs. `lp_dual`: what the linear relaxation's
    multiplier says of relaxing, by the unit and of the relaxation's own bound; None where the mode has none.
    """

    constraint: str
    index: str
    unit: str
    limit: float
    used: float | None
    lp_dual: float | None
    relaxed: Change | None
    tightened: Change | None
    step: float = 1.0
    """What is one more or less here, where a single unit would be too little to see."""
    shown: tuple[float, str] = (1.0, "")
    """The larger unit that texts and plots give the limit in, and its name; empty: the unit itself."""

    def record(self) -> dict[str, Any]:
        return {
            "constraint": self.constraint, "index": self.index, "unit": self.unit, "limit": self.limit, "used": self.used, "lp_dual": self.lp_dual,
            "step": self.step, "relaxed": None if self.relaxed is None else self.relaxed.record(),
            "tightened": None if self.tightened is None else self.tightened.record(),
        }  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """The answers of one sweep. `axes` are the quantities swept with their units, in the order of `Point.at`; `stop` says why it ended."""

    kind: str
    label: str
    axes: Mapping[str, str]
    objective_unit: str
    family: str
    instance_name: str
    instance_sha256: str
    method: str
    parameters: Mapping[str, Any]
    points: tuple[Point, ...]
    pieces: tuple[PricePiece, ...] = ()
    shadow_prices: tuple[ShadowPrice, ...] = ()
    current: float | None = None
    """What the quantity is in the instance itself."""
    solves: int = 0
    nodes: int = 0
    runtime_s: float = 0.0
    stop: Stop = "completed"
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    shown: tuple[float, str] = (1.0, "")
    """The larger unit that texts and plots give the swept quantity in, and its name; empty: the unit itself."""
    mean_fleets: bool = False
    """Whether every `fleet` is the mean over the instance's epochs."""

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """Prices inside the interval at which the optimal plan changes."""
        return tuple(piece.start for piece in self.pieces[1:])

    def document(self) -> dict[str, Any]:
        """The JSON document `headroom/sweep/1`; infinities become null when it is written, their status says which."""
        return {
            "schema": SWEEP_SCHEMA,
            "family": self.family,
            "instance": {"name": self.instance_name, "sha256": self.instance_sha256},
            "sweep": {
                "kind": self.kind, "label": self.label, "axes": dict(self.axes), "objective_unit": self.objective_unit, "current": self.current,
            },
            "points": [point.record() for point in self.points],
            "pieces": [piece.record() for piece in self.pieces],
            "shadow_prices": [price.record() for price in self.shadow_prices],
            "result": {"stop": self.stop, "solves": self.solves, "nodes": self.nodes, "runtime_s": self.runtime_s},
            "notes": list(self.notes),
            "provenance": {"headroom": self.versions.get("headroom"), "method": self.method, "parameters": dict(self.parameters)},
        }  # fmt: skip

    def frame(self) -> pd.DataFrame:
        """One tidy row a point (or a shadow price): columns for the axes, cost, bounds, `count_<type>` and `part_<name>`."""
        import pandas as pd

        if self.shadow_prices:
            rows = [_flat_shadow(price) for price in self.shadow_prices]
        else:
            names = list(dict.fromkeys(name for point in self.points for name in point.fleet))
            parts = list(dict.fromkeys(name for point in self.points for name in point.parts))
            rows = [_flat_point(point, names, parts) for point in self.points]
        head = {"family": self.family, "instance": self.instance_name, "digest": self.instance_sha256, "sweep": self.label}
        return pd.DataFrame([head | row for row in rows])

    def save(self, path: str | Path) -> None:
        """Write .parquet or .csv (the table) or .json (the document), whole or not at all. Raises `InputError`."""
        from headroom.instances.files import to_json, write_atomically, write_text

        check_sweep_file(path)
        suffix = Path(path).suffix
        if suffix == ".json":
            write_text(path, to_json(self.document()))
        elif suffix == ".csv":
            write_text(path, self.frame().to_csv(index=False, lineterminator="\n"))
        else:
            frame = self.frame()
            write_atomically(path, lambda file: frame.to_parquet(file, index=False))

    def plot(self, path: str | Path) -> None:
        """Draw the sweep as .png, .svg or .html (see `headroom.plots`). Raises `InputError`."""
        from headroom.plots import save_sweep

        save_sweep(self, path)


def check_sweep_file(path: str | Path) -> None:
    """Raises `InputError` for a name that says no known format."""
    if Path(path).suffix not in SUFFIXES:
        raise InputError(f"must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}", str(path))


def _flat_point(point: Point, names: list[str], parts: list[str]) -> dict[str, Any]:
    record = point.record()
    row = {**record.pop("at"), **{key: value for key, value in record.items() if key not in ("fleet", "parts", "notes")}}
    row |= {f"count_{name}": float(point.fleet.get(name, 0.0)) if point.plan is not None else math.nan for name in names}
    return row | {f"part_{name}": float(point.parts.get(name, 0.0)) if point.plan is not None else math.nan for name in parts}


def _flat_shadow(price: ShadowPrice) -> dict[str, Any]:
    row = {key: value for key, value in price.record().items() if key not in ("relaxed", "tightened")}
    for name, change in (("relaxed", price.relaxed), ("tightened", price.tightened)):
        for part in ("value", "least", "most"):
            row[f"{name}_{part}"] = math.nan if change is None else getattr(change, part)
    return row
