"""Figures of the report's tables: what many runs of a method come to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from headroom.formulations.tolerances import OPTIMALITY_GAP, relative_gap
from headroom.report.data import Run

CONFIDENCE = 0.95
LEAST_VALUES = 3
"""Of fewer values there is no interval: Student's of two is thirteen times as wide as their spread and says nothing."""


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided confidence interval; low and high are None for less than LEAST_VALUES values. `of`: what the values are of."""

    mean: float
    low: float | None
    high: float | None
    count: int
    of: str


@dataclass(frozen=True)
class Summary:
    """A method over a set of runs. Gaps and times are None where no run has one."""

    family: str
    group: str | None
    """None: over all groups."""
    method: str
    kind: str
    runs: int
    instances: int
    planned: int
    optimal: int
    failed: int
    median_gap: float | None
    mean_gap: Interval | None
    certified_gap: float | None
    runtime_s: float | None


@dataclass(frozen=True)
class BoundSummary:
    """A bound method over its runs: how far it lies below the best plan known, and how often no other bound is better."""

    family: str
    method: str
    proof: str | None
    runs: int
    proved: int
    best: int
    median_gap: float | None
    runtime_s: float | None


def mean_interval(by_instance: Sequence[Sequence[float]]) -> Interval | None:
    """Mean and 95 % interval of Student's t. Runs on one instance are not independent of each other: with several instances the values are the
    instances' means, with one alone its runs. A gap is never below zero, nor above one where no bound is below zero, so no interval is."""
    held = [list(values) for values in by_instance if values]
    if not held:
        return None
    several = len(held) > 1
    values = [math.fsum(own) / len(own) for own in held] if several else held[0]
    count = len(values)
    mean = math.fsum(values) / count
    of = "instances" if several else "runs"
    if count < LEAST_VALUES:
        return Interval(mean, None, None, count, of)
    from scipy.special import stdtrit

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2)) * deviation / math.sqrt(count)
    high = mean + half
    return Interval(mean, max(0.0, mean - half), high if max(values) > 1 else min(high, 1.0), count, of)


def summaries(runs: Iterable[Run], grouped: bool) -> list[Summary]:
    """A row for each family and method, and with `grouped` each group; best mean gap first within family (and group)."""
    found: dict[tuple[str, str, str, str], list[Run]] = {}
    for run in runs:
        found.setdefault((run.family, run.group if grouped else "", run.method, run.kind), []).append(run)
    rows = [_summary(family, group if grouped else None, method, kind, members) for (family, group, method, kind), members in found.items()]
    return sorted(rows, key=_rank)


def _rank(row: Summary) -> tuple[Any, ...]:
    mean = math.inf if row.mean_gap is None else row.mean_gap.mean
    return row.family, row.group or "", mean, math.inf if row.runtime_s is None else row.runtime_s, row.method


def _summary(family: str, group: str | None, method: str, kind: str, runs: Sequence[Run]) -> Summary:
    by_digest: dict[str, list[float]] = {}
    for run in runs:
        own = by_digest.setdefault(run.digest, [])
        if run.planned and run.gap is not None:
            own.append(max(run.gap, 0.0))
    return Summary(
        family=family,
        group=group,
        method=method,
        kind=kind,
        runs=len(runs),
        instances=len(by_digest),
        planned=sum(run.planned for run in runs),
        optimal=sum(is_optimal(run) for run in runs),
        failed=sum(run.error is not None for run in runs),
        median_gap=middle(gap for own in by_digest.values() for gap in own),
        mean_gap=mean_interval(list(by_digest.values())),
        certified_gap=middle(max(run.certified_gap, 0.0) for run in runs if run.planned and run.certified_gap is not None),
        runtime_s=middle(run.runtime_s for run in runs if run.runtime_s is not None and run.error is None),
    )


def is_optimal(run: Run) -> bool:
    """Whether the best bound in the table, whoever found it, proves the run's plan optimal."""
    return run.planned and run.gap is not None and run.gap <= OPTIMALITY_GAP


def middle(values: Iterable[float]) -> float | None:
    known = list(values)
    return median(known) if known else None


def best_objectives(runs: Iterable[Run]) -> dict[str, float]:
    """The best objective of each instance, by digest."""
    best: dict[str, float] = {}
    for run in runs:
        if run.objective is not None:
            best[run.digest] = min(run.objective, best.get(run.digest, math.inf))
    return best


def bound_summaries(runs: Sequence[Run]) -> list[BoundSummary]:
    """A row for each family and bound method, the nearest to the best plans first. `runs` are all of the table."""
    objective = best_objectives(runs)
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.kind == "bound":
            found.setdefault((run.family, run.method), []).append(run)
    rows = []
    for (family, method), members in found.items():
        proved = [run for run in members if run.own_bound is not None and run.own_bound > -math.inf]
        gaps = [max(relative_gap(objective[run.digest], run.own_bound or 0.0), 0.0) for run in proved if run.digest in objective]
        best = sum(run.bound is not None and run.own_bound is not None and _at_least(run.own_bound, run.bound) for run in proved)
        proofs = sorted({run.own_proof for run in proved if run.own_proof})
        rows.append(
            BoundSummary(
                family=family,
                method=method,
                proof=", ".join(proofs) or None,
                runs=len(members),
                proved=len(proved),
                best=best,
                median_gap=middle(gap for gap in gaps if math.isfinite(gap)),
                runtime_s=middle(run.runtime_s for run in members if run.runtime_s is not None and run.error is None),
            )
        )
    return sorted(rows, key=lambda row: (row.family, math.inf if row.median_gap is None else row.median_gap, row.method))


def _at_least(value: float, best: float) -> bool:
    return value >= best or (math.isfinite(best) and value >= best - OPTIMALITY_GAP * abs(best))


def quantiles(values: Sequence[float], most: int) -> list[float]:
    """At most `most` of the values, in order: all of them, or evenly spread ranks with both ends."""
    ordered = sorted(values)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(k * (len(ordered) - 1) / (most - 1))] for k in range(most)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile, linear between order statistics."""
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return at(0.25), at(0.5), at(0.75)


@dataclass(frozen=True)
class Point:
    """A method in the plane of gap and runtime; `front`: no other is both faster and nearer."""

    method: str
    kind: str
    runtime_s: float
    gap: float
    runs: int
    front: bool


def pareto(runs: Iterable[Run]) -> list[Point]:
    """Median gap and median runtime of each method, fastest first. A method with plans for less than all of the instances is no rival on the front:
    what it was spared is not known."""
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run.method, []).append(run)
    everything = len({run.digest for members in by_method.values() for run in members})
    values = []
    for method, members in by_method.items():
        solved = [run for run in members if run.planned and run.gap is not None and run.runtime_s is not None]
        if solved:
            gap, runtime_s = middle(max(run.gap or 0.0, 0.0) for run in solved), middle(run.runtime_s or 0.0 for run in solved)
            whole = len({run.digest for run in solved}) == everything
            values.append((runtime_s or 0.0, gap or 0.0, method, members[0].kind, len(solved), whole))
    points, least = [], math.inf
    for runtime_s, gap, method, kind, count, whole in sorted(values):
        shown_gap = 0.0 if gap <= OPTIMALITY_GAP else gap
        points.append(Point(method, kind, runtime_s, gap, count, whole and shown_gap < least))
        least = min(least, shown_gap) if whole else least
    return points
