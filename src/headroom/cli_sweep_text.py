"""A sweep for people: tables of pieces, points and shadow prices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from headroom.cli_common import number, percent, seconds, table
from headroom.formulations.tolerances import OPTIMALITY_GAP
from headroom.sweep_types import Change, Point, PricePiece, ShadowPrice, Sweep


def as_text(sweep: Sweep) -> str:
    """Heading, tables, and what it took."""
    unit = f" {sweep.objective_unit}" if sweep.objective_unit else ""
    text = f"{sweep.label} in {sweep.instance_name} ({sweep.family}), objective in{unit or ' its own unit'}\n"
    if sweep.shadow_prices or sweep.kind == "shadow":
        text += _base(sweep, unit) + _shadow(sweep.shadow_prices, sweep.points[0].objective if sweep.points else 0.0)
    elif sweep.kind == "slo":
        text += _points(sweep, sweep.points)
    elif sweep.kind == "moves":
        text += _front(sweep.points)
    elif sweep.kind == "capacity":
        text += _capacities(sweep)
    else:
        if sweep.pieces:
            text += _pieces(sweep, sweep.pieces) + "\n"
        text += _points(sweep, sweep.points)
    took = f"{sweep.solves} solves, {sweep.nodes:,} nodes, {seconds(sweep.runtime_s)}, method {sweep.method}"
    stopped = "" if sweep.stop == "completed" else f"; stopped: {sweep.stop.replace('_', ' ')}"
    return f"{text}\n{took}{stopped}\n"


def fleet_text(fleet: Mapping[str, float]) -> str:
    """`3 x H100 + 1 x A10G`."""
    return " + ".join(f"{number(n)} x {name}" for name, n in fleet.items()) or "nothing"


def _fleets(sweep: Sweep) -> str:
    """The heading of fleets."""
    return "fleet (mean over epochs)" if sweep.mean_fleets else "fleet"


def _pieces(sweep: Sweep, pieces: Sequence[PricePiece]) -> str:
    unit = next(iter(sweep.axes.values()))
    rows = []
    for piece in pieces:
        ends = [number(value) for value in (piece.start, piece.end, piece.cost(piece.start), piece.cost(piece.end))]
        status = "optimal" if piece.status == "optimal" else "unproved"
        rows.append([*ends, percent(piece.gap), percent(piece.certified_gap), status, fleet_text(piece.fleet)])
    columns = ("from", "to", "cost from", "cost to", "gap", "certified gap", "status", f"best {_fleets(sweep)}")
    head = f"{sweep.label} [{unit}]: {len(pieces)} mix{'es' if len(pieces) != 1 else ''}"
    now = "" if sweep.current is None else f", now {number(sweep.current)}"
    return f"{head}{now}\n" + table(columns, rows, columns[:-2])


def _points(sweep: Sweep, points: Sequence[Point]) -> str:
    axes = list(sweep.axes)
    with_dual = any(point.lp_dual is not None for point in points)
    columns = [f"{name} [{unit}]" for name, unit in sweep.axes.items()]
    numbers = [*columns, "cost", "bound", "gap", "certified gap", "saves a unit", "LP dual", "nodes", "runtime"]
    rows = []
    for k, point in enumerate(points):
        cells = [number(point.at.get(axis)) for axis in axes]
        cells += ["-" if point.plan is None else number(point.objective), _bound(point.bound), percent(point.gap), percent(point.certified_gap)]
        if with_dual:
            cells += [_per_unit(sweep, point, points[k + 1]) if k + 1 < len(points) else "-", number(point.lp_dual)]
        what = fleet_text(point.fleet) if point.plan is not None else point.status
        cells += [point.by if point.how == "solved" else f"by {point.by}", str(point.nodes), seconds(point.runtime_s), what]
        rows.append(cells)
    middle = ["saves a unit", "LP dual"] if with_dual else []
    return table([*columns, "cost", "bound", "gap", "certified gap", *middle, "proof", "nodes", "runtime", _fleets(sweep)], rows, numbers)


def _front(points: Sequence[Point]) -> str:
    """Moves against the objective and its parts, with what is certified of each."""
    parts = [name for name in dict.fromkeys(name for point in points for name in point.parts) if name != "moves"]
    parts = [name for name in parts if name == "balance" or any(point.parts.get(name) for point in points)]
    columns = ("at most", "moves", *parts, "objective", "bound", "gap", "certified gap", "proof")
    rows = []
    for point in points:
        found = point.plan is not None
        cells = [number(point.at["moves"]), number(point.fleet.get("moves")) if found else "-"]
        cells += [number(point.parts.get(name)) if found else "-" for name in parts]
        cells += [number(point.objective) if found else point.status, _bound(point.bound), percent(point.gap), percent(point.certified_gap), point.by]
        rows.append(cells)
    return table(columns, rows, columns[:-1])


def _capacities(sweep: Sweep) -> str:
    """A tier's capacity against time: what it uses, what more would save, which tiers the steps wait for."""
    (axis,) = sweep.axes
    scale, unit = sweep.shown[0], sweep.shown[1] or sweep.axes[axis]
    with_dual = any(point.lp_dual is not None for point in sweep.points)
    each = unit.removesuffix("s")
    saves = [f"saves [s/{each}]", *([f"by multipliers [s/{each}]"] if with_dual else [])]
    columns = (f"{axis} [{unit}]", f"used [{unit}]", "time [s]", "bound", "gap", "certified gap", *saves, "moves", "proof", "runtime", "waiting for")
    rows = []
    for k, point in enumerate(sweep.points):
        found, following = point.plan is not None, sweep.points[k + 1] if k + 1 < len(sweep.points) else None
        saved = [_per_unit(sweep, point, following, scale) if following is not None else "-"]
        saved += [number(None if point.lp_dual is None else point.lp_dual * scale)] * with_dual
        time_s = math.fsum(point.parts.values())
        waits = [f"{name.removesuffix('_s')} {100 * value / time_s:.0f}%" for name, value in point.parts.items() if value > 0 and time_s > 0]
        rows.append(
            [
                number(point.at[axis] / scale),
                number(point.fleet["used_bytes"] / scale) if found else "-",
                number(point.objective) if found else point.status,
                _bound(point.bound),
                percent(point.gap),
                percent(point.certified_gap),
                *saved,
                number(point.fleet["moves"]) if found else "-",
                point.by if point.how == "solved" else f"by {point.by}",
                seconds(point.runtime_s),
                ", ".join(waits) or "-",
            ]
        )
    now = "" if sweep.current is None else f"now {number(sweep.current / scale)} {unit}\n"
    return now + table(columns, rows, columns[:-3])


def _per_unit(sweep: Sweep, point: Point, following: Point, scale: float = 1.0) -> str:
    """What one more unit (so many of them) saves, on the way to the next value."""
    (axis,) = sweep.axes
    if point.plan is None or following.plan is None:
        return "-"
    return number(max(0.0, (point.objective - following.objective) / (following.at[axis] - point.at[axis]) * scale) + 0.0)


def _bound(value: float) -> str:
    return "none exists" if value == math.inf else number(value)


def _base(sweep: Sweep, unit: str) -> str:
    if not sweep.points:
        return ""
    point = sweep.points[0]
    if point.plan is None:
        return f"as it is: {point.status}\n\n"
    mean = "mean fleet " if sweep.mean_fleets else ""
    fleet = f"{number(point.fleet['moves'])} moves" if "moves" in point.fleet else mean + fleet_text(point.fleet)
    return f"as it is: {number(point.objective)}{unit}, gap {percent(point.gap)}, {fleet}\n\n"


def _shadow(prices: Sequence[ShadowPrice], cost: float) -> str:
    one = all(price.step == 1 for price in prices)
    dual = "LP dual" if not any(price.shown[1] for price in prices) else "by multipliers"
    columns = (
        "limit",
        "of",
        "now",
        "used",
        dual,
        *(("relaxed by one saves", "tightened by one costs") if one else ("by", "more saves", "less costs")),
    )
    rows = []
    for price in prices:
        scale, unit = price.shown[0], price.shown[1] or price.unit
        worth = number(None if price.lp_dual is None else price.lp_dual * scale)
        rows.append(
            [
                price.constraint,
                price.index,
                f"{number(price.limit / scale)} {unit}",
                number(None if price.used is None else price.used / scale),
                f"{worth} a {unit.removesuffix('s')}" if price.shown[1] and worth != "-" else worth,
                *([] if one else [f"{number(price.step / scale)} {unit}"]),
                _change(price.relaxed, cost),
                _change(price.tightened, cost),
            ]
        )
    return table(columns, rows, columns[2:])


def _change(change: Change | None, cost: float) -> str:
    """One number where the interval is no wider than two optimality gaps of the cost, as it is between two optima; else the interval too."""
    if change is None:
        return "-"
    if change.least == math.inf:
        return "no plan left"
    if change.most - change.least <= 2.1 * OPTIMALITY_GAP * abs(cost):
        return number(change.value)
    return f"{number(change.value)} ({number(change.least)} to {number(change.most)})"
