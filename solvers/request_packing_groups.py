"""Fewest bins where groups share something: bins filled again and again, then the program over patterns that pay for groups, with dives.

Engines: `grouped_search` for packings, `grouped_columns` for the bound; bounds: `request_packing_groups`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headroom.bounds.request_packing_groups import MOST_ENTRIES, MOST_TYPES, Types, grouped_bound, least_bins, split_volume, types_of
from headroom.formulations.progress import Progress
from headroom.formulations.request_packing import BinPlan, bin_plan
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.request_packing import RequestPacking
from headroom.solvers.grouped_columns import GroupedRelaxation, dive, filled_start
from headroom.solvers.grouped_patterns import GroupedItems
from headroom.solvers.grouped_search import squeeze

IntArray = npt.NDArray[np.int64]
QUICK_STEPS, MORE_STEPS = 400, 4_000
"""Steps of the search before the program over patterns, and after."""
STARTS = 3
"""Searches before the program over patterns."""
DIVES = 12


def grouped(instance: RequestPacking, params: SolveParams, progress: Progress) -> list[Bound]:
    """Bounds; packings are offered on the way, starting from the incumbent if there is one. Every request must fit into a bin.

    Anytime; deterministic for a seed unless a limit cuts it off.
    """
    bounds = [split_volume(instance, params, progress)]
    progress.keep(bounds[0])
    types = types_of(instance)
    items = GroupedItems(types.size, types.group, types.demand, types.overhead, types.multiple, types.capacity)
    if _settled(progress) or len(types.size) > MOST_TYPES or bounds[0].value * len(types.size) > MOST_ENTRIES:
        return bounds

    rng = params.rng()

    def heard(found: IntArray) -> None:
        if len(found) < progress.objective:
            progress.offer(_plan(types, found))

    def stop() -> bool:
        return _settled(progress)

    if isinstance(progress.plan, BinPlan):
        patterns = _of_plan(types, progress.plan)
    else:
        patterns = filled_start(items, int(bounds[0].value), rng, stop)
        heard(patterns)
    for n in range(STARTS):
        # A search that stalls stalls for long: a start of another kind is worth more than further steps.
        begun = patterns if n == 0 else filled_start(items, int(bounds[0].value), rng, stop)
        found = squeeze(items, begun, _wanted(progress), rng, stop, heard, QUICK_STEPS)
        patterns = min(patterns, found, key=len)
        if stop():
            return bounds
    relaxation = GroupedRelaxation(items, least_bins(types), stop)
    relaxation.add(patterns)
    relaxation.generate(_wanted(progress), on_bound=lambda: progress.raise_bound(float(relaxation.bound)))
    bounds.append(grouped_bound(instance, types, relaxation.weights, relaxation.bonus))
    progress.keep(bounds[-1])
    for n in range(DIVES):
        if stop():
            return bounds
        better = dive(relaxation, len(patterns) - 1, rng, draw=n > 0)
        if better is not None:
            patterns = better
            heard(patterns)
    squeeze(items, patterns, _wanted(progress), rng, stop, heard, MORE_STEPS)
    return bounds


def _settled(progress: Progress) -> bool:
    return progress.should_stop() is not None or progress.objective <= progress.bound + 0.5


def _wanted(progress: Progress) -> int:
    return math.ceil(progress.bound - 1e-6) if math.isfinite(progress.bound) else 1


def _of_plan(types: Types, plan: BinPlan) -> IntArray:
    """What each bin of a plan holds [bins][m]."""
    used, row = np.unique(plan.bin, return_inverse=True)
    found = np.zeros((len(used), len(types.size)), np.int64)
    np.add.at(found, (row.reshape(-1), types.of), 1)
    return found


def _plan(types: Types, patterns: IntArray) -> BinPlan:
    """Requests of each type in the bins whose patterns [n][m] have it; copies beyond the demand are left out."""
    order = np.argsort(types.of, kind="stable")
    bins = np.empty(len(order), np.int64)
    at = 0
    for i, demand in enumerate(types.demand.tolist()):
        held = patterns[:, i]
        bins[order[at : at + demand]] = np.repeat(np.flatnonzero(held), held[held > 0])[:demand]
        at += demand
    return bin_plan(bins)


__all__ = ["grouped"]
