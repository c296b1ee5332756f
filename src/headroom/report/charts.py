"""The charts of the report as SVG text: gaps by method, gap against runtime, objective and bound over time. The same runs give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from headroom.report.aggregate import Point, middle, pareto, quantiles, quartiles
from headroom.report.axes import GapScale, LogScale, across, dot, drawing, gap_axis, line, place, rising, time_axis, words
from headroom.report.data import Run
from headroom.report.text import LEAST_GAP, escape, number, percent, seconds, several

MOST_DOTS = 120
"""Dots of a method; of more runs evenly spread ranks, with both ends, are drawn."""
STRIP_PX = 46
PARETO_PX = 340
PLANE_BAND = 0.12
TRACE_PX = 260
LEAST_S = 1e-6
MOST_LINES = 5
HIDING = (0.065, 15.0)
"""Marks nearer than this (share of the width, pixels) have one label."""
ABOVE = 0.6
"""A trace is drawn up to so much, relative, above and below the best objective."""


def gap_strips(runs: Sequence[Run], name: str) -> str:
    """A line for each method: a dot a run, a box over the middle half, a bar at the median; the method with the least median on top."""
    gaps: dict[str, list[float]] = {}
    for run in runs:
        if run.planned and run.gap is not None:
            gaps.setdefault(run.method, []).append(max(run.gap, 0.0))
    if not gaps:
        return ""
    ranked = sorted(gaps, key=lambda method: (middle(gaps[method]), sum(gaps[method]), method))
    scale = GapScale.over([gap for values in gaps.values() for gap in values])
    bottom = STRIP_PX * len(ranked) + 4
    parts = gap_axis(scale, 0, bottom)
    for row, method in enumerate(ranked):
        parts += _strip(method, gaps[method], scale, STRIP_PX * row)
    best = ranked[0]
    label = f"Gaps by method, {name}: least median {percent(middle(gaps[best]))} by {best}, most {percent(middle(gaps[ranked[-1]]))} by {ranked[-1]}"
    return drawing(bottom + 22, label, parts, "strips")


def _strip(method: str, values: Sequence[float], scale: GapScale, top: float) -> list[str]:
    low, mid, high = quartiles(values)
    y = top + 31
    left, right = scale.at(low), scale.at(high)
    parts = [words(0, top + 15, method, "name"), words(1, top + 15, f"{percent(mid)}  ({several(len(values), 'run')})", "value", "end")]
    tip = f"{method}: quartiles {percent(low)}, {percent(mid)}, {percent(high)}"
    if len(values) == 1:
        return [*parts, dot(scale.at(mid), y, 4, "dot only", percent(mid))]
    parts.append(
        f'<rect class="box" x="{across(left)}" y="{place(y - 8)}" width="{across(max(right - left, 0.004))}" height="16" rx="3">'
        f"<title>{escape(tip)}</title></rect>"
    )
    for k, gap in enumerate(quantiles(values, MOST_DOTS)):
        spread = 12 * (((k * 0.618034) % 1.0) - 0.5)  # runs with one gap stand above each other
        parts.append(dot(scale.at(gap), y + spread, 2.6, "dot", percent(gap)))
    middle_x = scale.at(mid)
    parts.append(f'<line class="median" x1="{across(middle_x)}" y1="{place(y - 10)}" x2="{across(middle_x)}" y2="{place(y + 10)}"/>')
    return parts


@dataclass(frozen=True)
class Plane:
    """The plane of gap and runtime: the drawing, and the methods in the order of their numbers in it."""

    svg: str
    points: tuple[Point, ...]


def gap_runtime(runs: Sequence[Run], name: str) -> Plane | None:
    """Median gap (up) against median runtime (across), a number a method, and the front that no method is below and left of."""
    points = pareto(runs)
    if not points:
        return None
    times = LogScale.over([point.runtime_s for point in points], LEAST_S)
    gaps = replace(GapScale.over([point.gap for point in points]), band=PLANE_BAND)
    x = [0.02 + 0.96 * times.at(max(point.runtime_s, LEAST_S)) for point in points]
    y = [_down(gaps.at(point.gap)) for point in points]
    parts = _plane_axes(times, gaps)
    parts += _front([(x[k], y[k]) for k, point in enumerate(points) if point.front])
    for k, point in enumerate(points):
        tip = f"{point.method}: median gap {percent(point.gap)}, {seconds(point.runtime_s)}, {several(point.runs, 'run')}"
        parts.append(dot(x[k], y[k], 5, "mark front" if point.front else "mark", tip))
    for members in _clusters(x, y):
        middle_x = sum(x[k] for k in members) / len(members)
        anchor = "start" if middle_x < 0.05 else "end" if middle_x > 0.95 else "middle"
        parts.append(words(middle_x, min(y[k] for k in members) - 9, ", ".join(str(k + 1) for k in members), "number", anchor))
    fronts = ", ".join(f"{point.method} ({percent(point.gap)} in {seconds(point.runtime_s)})" for point in points if point.front)
    return Plane(drawing(PARETO_PX + 24, f"Gap against runtime, {name}. On the front: {fronts or 'none'}", parts, "plane"), tuple(points))


def _down(share: float) -> float:
    return PARETO_PX - 6 - (PARETO_PX - 20) * share


def _plane_axes(times: LogScale, gaps: GapScale) -> list[str]:
    parts = [f'<rect class="band" x="0" y="{place(_down(gaps.band))}" width="100%" height="{place(PARETO_PX - _down(gaps.band))}"/>']
    for tick, label in gaps.ticks():
        if tick > gaps.band:
            parts.append(line(0, _down(tick), 1, _down(tick), "grid"))
        parts.append(words(0, _down(tick) + 4, label, "tick", "end", dx=-8))
    for at in times.ticks():
        x = 0.02 + 0.96 * times.at(at)
        parts += [line(x, 0, x, PARETO_PX, "grid"), words(x, PARETO_PX + 17, seconds(at), "tick", "end" if x > 0.95 else "middle")]
    return parts


def _front(corners: Sequence[tuple[float, float]]) -> list[str]:
    parts = []
    for k, (x, y) in enumerate(corners):
        last = k + 1 == len(corners)
        next_x = 1.0 if last else corners[k + 1][0]
        parts.append(line(x, y, next_x, y, "edge"))
        if not last:
            parts.append(line(next_x, y, next_x, corners[k + 1][1], "edge"))
    return parts


def _clusters(x: Sequence[float], y: Sequence[float]) -> list[list[int]]:
    """Marks that would hide each other's labels, together."""
    groups: list[list[int]] = []
    for k in range(len(x)):
        near = [group for group in groups if any(abs(x[k] - x[j]) < HIDING[0] and abs(y[k] - y[j]) < HIDING[1] for j in group)]
        merged = sorted([k, *(j for group in near for j in group)])
        groups = [group for group in groups if group not in near] + [merged]
    return groups


@dataclass(frozen=True)
class Trace:
    """Objective and bound of some methods on one instance over time, with what each line came to."""

    svg: str
    lines: tuple[tuple[str, str, str, str], ...]
    """(method, seed, last objective, last bound) in the order of the colours."""
    clipped: bool


def over_time(runs: Sequence[Run]) -> Trace | None:
    """Runs of one instance: objective (drawn through) and bound (dashed) over time, the methods with the most to tell first; at most MOST_LINES."""
    best_run: dict[str, Run] = {}
    for run in runs:
        if len(run.trace) > 1 and (run.method not in best_run or len(run.trace) > len(best_run[run.method].trace)):
            best_run[run.method] = run
    chosen = sorted(best_run.values(), key=lambda run: (run.kind != "exact", -len(run.trace), run.method))[:MOST_LINES]
    chosen.sort(key=lambda run: run.method)
    values = [value for run in chosen for event in run.trace for value in event[1:] if value is not None]
    if not values:
        return None
    objectives = [event[1] for run in chosen for event in run.trace if event[1] is not None]
    centre = min(objectives) if objectives else max(values)
    reach = ABOVE * max(abs(centre), 1e-12)
    low, high = max(min(values), centre - reach), min(max(values), centre + reach)
    if not high > low:
        low, high = low - 0.01 * max(abs(low), 1e-9), high + 0.01 * max(abs(high), 1e-9)
    margin = 0.06 * (high - low)
    low, high = low - margin, high + margin
    times = LogScale.over([max(event[0], 1e-4) for run in chosen for event in run.trace] + [max(run.runtime_s or 0.0, 1e-4) for run in chosen], 1e-4)
    parts = time_axis(times, 0, TRACE_PX)
    for tick in rising(low, high):
        y = TRACE_PX * (high - tick) / (high - low)
        parts += [line(0, y, 1, y, "grid"), words(0, y + 4, number(tick), "tick", "end", dx=-8)]
    parts.append(f'<svg x="0" y="0" width="100%" height="{TRACE_PX}" viewBox="0 0 1000 {TRACE_PX}" preserveAspectRatio="none">')
    for k, run in enumerate(chosen):
        end = times.at(max(run.runtime_s or 0.0, run.trace[-1][0], 1e-4))
        for column, kind in ((1, "objective"), (2, "lower")):
            path = _steps(run, column, times, end, low, high)
            parts.append(f'<path class="{kind} c{k}" d="{path}"/>' if path else "")
    parts.append("</svg>")
    lines = tuple((run.method, "" if run.seed is None else str(run.seed), *(number(_last(run, column)) for column in (1, 2))) for run in chosen)
    said = "; ".join(f"{method}: objective {objective}, bound {bound}" for method, _, objective, bound in lines)
    label = f"Objective and bound over time on {chosen[0].instance}. At the end {said}"
    clipped = min(values) < low or max(values) > high
    return Trace(drawing(TRACE_PX + 22, label, parts, "trace"), lines, clipped)  # type: ignore[arg-type]


def _last(run: Run, column: int) -> float | None:
    known = [event[column] for event in run.trace if event[column] is not None]
    return known[-1] if known else None


def _steps(run: Run, column: int, times: LogScale, end: float, low: float, high: float) -> str:
    path = ""
    for event in run.trace:
        value = event[column]
        if value is None:
            continue
        x = place(1000 * times.at(max(event[0], 1e-4)))
        y = place(TRACE_PX * (high - min(max(value, low), high)) / (high - low))
        path += f"H{x}V{y}" if path else f"M{x},{y}"
    return f"{path}H{place(1000 * end)}" if path else ""


__all__ = ["LEAST_GAP", "Plane", "Trace", "gap_runtime", "gap_strips", "over_time"]
