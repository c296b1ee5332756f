"""Fewest bins where groups share something: bins filled again, parts of groups annealed, then the program over patterns that pay for groups, dives.

Engines: `grouped_search` and, where requests are small beside a bin, `grouped_pieces` for packings, `grouped_columns` for the bound; bounds:
`request_packing_groups`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from headroom.bounds.request_packing_groups import MOST_ENTRIES, MOST_TYPES, Types, grouped_bound, least_bins, split_volume, types_of
from headroom.formulations.progress import Progress
from headroom.formulations.request_packing import BinPlan, bin_plan
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.request_packing import RequestPacking
from headroom.solvers.grouped_columns import GroupedRelaxation, dive, filled_start, start_of
from headroom.solvers.grouped_patterns import GroupedItems
from headroom.solvers.grouped_pieces import annealed_pieces, placed_requests
from headroom.solvers.grouped_search import least_load, settle, squeeze

IntArray = npt.NDArray[np.int64]
FIRST_STEPS, QUICK_STEPS, MORE_STEPS = 30, 400, 4_000
"""Steps of the search before parts are annealed, before the program over patterns, and after."""
REQUEST_STEPS = 50
"""Steps for each request that the last search takes at most."""
STARTS = 3
"""Searches before the program over patterns."""
DIVES = 12
FIRST_PARTS, NEXT_PARTS, MORE_PARTS = 24, 8, 40
"""Annealings of parts first, after each further search, and after the program over patterns."""
PART_STEPS, PART_WORK, CELL_STEPS = 1_000_000, 200_000_000, 500
"""Of the first annealings: steps, steps times groups, and steps for each bin and group, that they take at most."""
LONGEST = 16
"""Times that of the last ones."""
ROOM_WORTH, MARGIN = (0.6, 0.7, 0.8, 0.5), (0.2, 0.4, 0.0)
"""Of the annealings in turn: what free room costs, and how much of the room to spare each bin leaves free."""
SETTLE_STEPS = 10
"""Steps to place what an annealing could not."""
MOST_PARTS = 20_000_000
"""Bins times groups up to which parts are annealed."""


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
    patterns = squeeze(items, patterns, _wanted(progress), rng, stop, heard, FIRST_STEPS)
    parts = range(FIRST_PARTS)
    patterns = _by_parts(items, patterns, parts, progress, rng, stop, heard)
    for n in range(STARTS):
        if stop():
            return bounds
        # A search that stalls stalls for long: a start of another kind is worth more than further steps.
        begun = patterns if n == 0 else filled_start(items, int(bounds[0].value), rng, stop)
        found = squeeze(items, begun, _wanted(progress), rng, stop, heard, QUICK_STEPS)
        patterns = min(patterns, found, key=len)
        parts = range(parts.stop, parts.stop + NEXT_PARTS)
        patterns = _by_parts(items, patterns, parts, progress, rng, stop, heard)
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
    patterns = _by_parts(items, patterns, range(parts.stop, parts.stop + MORE_PARTS), progress, rng, stop, heard)
    squeeze(items, patterns, _wanted(progress), rng, stop, heard, min(MORE_STEPS, REQUEST_STEPS * instance.count))
    return bounds


def _by_parts(
    items: GroupedItems, patterns: IntArray, attempts: range, progress: Progress, rng: np.random.Generator, stop: Callable[[], bool],
    heard: Callable[[IntArray], None],
) -> IntArray:  # fmt: skip
    """The best packing [n][m] of these attempts to anneal parts of groups, each into as few bins as are not ruled out, or one less than known."""
    groups = len(items.overhead)
    if len(patterns) * groups > MOST_PARTS:
        return patterns
    for n in attempts:
        if stop() or len(patterns) <= _wanted(progress):
            break
        bins = len(patterns) - 1 if n % 4 == 3 else _wanted(progress)
        steps = min(PART_STEPS, PART_WORK // groups, CELL_STEPS * bins * groups) * min(1 + n // FIRST_PARTS, LONGEST)
        spare = max(0, bins * items.capacity - least_load(items, items.demand)) // bins
        pieces = annealed_pieces(items, bins, steps, rng, stop, ROOM_WORTH[n % len(ROOM_WORTH)], int(spare * MARGIN[n % len(MARGIN)]))
        held, wait = placed_requests(items, pieces[:bins], stop)
        if stop():
            break
        if wait.any() and least_load(items, wait) <= bins * items.capacity - sum(items.load(p) for p in held):
            settled = settle(items, held, wait, rng, stop, SETTLE_STEPS)
            held, wait = (held, wait) if settled is None else (settled, np.zeros_like(wait))
        found = np.concatenate([held[held.any(axis=1)], start_of(items, wait)])
        if len(found) < len(patterns):
            patterns = found
            heard(found)
    return patterns


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
