"""Fewest bins: reduction, closed-form bounds, greedy packings, then the program over patterns with dives and listed patterns (`bin_packing`)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headroom.bounds.certificates import CertificateError
from headroom.bounds.request_packing_bins import dff, l2, too_large, volume, weights_certificate, weights_value
from headroom.bounds.request_packing_groups import split_volume
from headroom.bounds.request_packing_reduction import Reduced, counted, reduced
from headroom.formulations.progress import Progress
from headroom.formulations.request_packing import BinPlan, bin_plan
from headroom.formulations.types import Bound, Outcome, SolveParams
from headroom.heuristics.request_packing import bfd, ffd, ffd_grouped, minimum_bin_slack
from headroom.instances.request_packing import RequestPacking
from headroom.solvers.bin_columns import Items
from headroom.solvers.bin_packing import Found, assign, pack
from headroom.solvers.request_packing_groups import grouped

IntArray = npt.NDArray[np.int64]
MOST_SIZES, MOST_ITEMS = 3_000, 50_000
"""Distinct sizes and items up to which the program over patterns is worth its time; with more, volume and greedy packings are a bin apart at most."""


def bins(instance: RequestPacking, params: SolveParams, progress: Progress) -> Outcome:
    """The fewest bins, with bounds. Anytime; deterministic for a seed unless a limit cuts it off. Exponential in the worst case.

    Guarantee before the program over patterns: first fit decreasing, 11/9 of the optimum and 6/9 of a bin (Dósa, doi 10.1007/978-3-540-74450-4_1).
    Where groups share something the program is over patterns that pay for them (`request_packing_groups`), without lists.
    """
    large = too_large(instance)
    closed = (volume, l2) if instance.plain else (volume, split_volume, l2)
    bounds = {bound.method: bound for bound in (form(instance, params, progress) for form in closed)}
    if large is not None:
        for bound in bounds.values():
            progress.keep(bound)
        tokens, capacity = int(instance.padded[large]), instance.capacity_tokens
        note = f"request {large} takes {tokens} tokens alone, a bin has {capacity}: no plan is feasible"
        return Outcome(None, tuple(bounds.values()), notes=(note,))
    for bound in bounds.values():
        progress.keep(bound)
    for heuristic in (ffd, bfd, minimum_bin_slack) if instance.plain else (ffd_grouped, ffd):
        if not _closed(progress) and progress.should_stop() is None:
            plan = heuristic(instance, params.rng())
            if isinstance(plan, BinPlan):
                progress.offer(plan)
    if not _closed(progress) and progress.should_stop() is None:
        bounds["dff"] = dff(instance, params, progress)
        progress.keep(bounds["dff"])
    if instance.plain and not _closed(progress) and progress.should_stop() is None:
        for bound in _by_patterns(instance, params, progress):
            bounds[bound.method] = bound
    if not instance.plain and not _closed(progress) and progress.should_stop() is None:
        for bound in grouped(instance, params, progress):
            bounds[bound.method] = bound
    solver = "HiGHS" if {"patterns", "grouped_patterns"} & bounds.keys() else None
    return Outcome(progress.plan, tuple(bounds.values()), progress.should_stop() or "completed", solver=solver)


def _by_patterns(instance: RequestPacking, params: SolveParams, progress: Progress) -> list[Bound]:
    """Bounds of the program over patterns; packings are offered on the way."""
    small = reduced(counted(instance))
    rest = small.rest
    if not len(rest.size) or len(rest.size) > MOST_SIZES or int(rest.demand.sum()) > MOST_ITEMS:
        return []
    items = Items(rest.size, rest.demand, rest.capacity)

    def heard(found: Found) -> None:
        progress.raise_bound(float(small.bins + found.bound))
        if small.bins + found.bins < progress.objective:
            progress.offer(_plan(instance, small, items, found.patterns))

    known = progress.bound
    known_rest = int(known) - small.bins if math.isfinite(known) else 0

    def stop() -> bool:
        return progress.should_stop() is not None or _closed(progress)

    found = pack(items, params.rng(), stop, heard, lambda: progress.remaining_s, known_rest)
    certificate = weights_certificate(rest, found.weights)
    proved = []
    try:
        proved.append(Bound(weights_value(instance, certificate), "patterns", "certificate", certificate))
    except CertificateError:  # bins of many tokens and many loads: nobody could recheck it
        proved.append(Bound(float(small.bins + found.bound), "patterns", "solver"))
    if found.claimed > max(found.bound, known_rest):
        proved.append(Bound(float(small.bins + found.claimed), "listed_patterns", "solver"))
    for bound in proved:
        progress.keep(bound)
    return proved


def _plan(instance: RequestPacking, small: Reduced, items: Items, patterns: IntArray) -> BinPlan:
    """Requests in the bins put aside, then in those of the patterns."""
    where = np.full(instance.count, -1, np.int64)
    order = np.argsort(-instance.padded, kind="stable")
    size = instance.padded[order]
    next_of = {int(s): int(np.searchsorted(-size, -s, side="left")) for s in np.unique(size)}

    def take(s: int, b: int) -> None:
        where[order[next_of[s]]] = b
        next_of[s] += 1

    b = 0
    for first, second, count in small.pairs.tolist():
        for _ in range(count):
            take(first, b)
            if second:
                take(second, b)
            b += 1
    places = np.repeat(items.size, items.demand)
    for s, place in zip(places.tolist(), assign(items, patterns).tolist(), strict=True):
        take(s, b + place)
    return bin_plan(where)


def _closed(progress: Progress) -> bool:
    return progress.objective <= progress.bound + 0.5


__all__ = ["bins"]
