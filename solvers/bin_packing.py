"""Bin packing to proven optimality, in cutting-stock form: sizes s_i asked for d_i times, bins of one capacity.

The program over patterns gives a bound (`bin_columns`); dives round it to packings. Where bound and packing stay a bin apart, the patterns that
a packing with as many bins as the bound may use are listed: each weighs at least W - (K - 1) V, for weights of the items, W their sum, V what a
bin weighs at most and K bins. Often they are few, and an integer program over them finds the packing or says that there is none. Anytime:
`report` hears of packings and bounds as they come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from headroom.solvers.bin_columns import Items, Relaxation, dive, greedy
from headroom.solvers.bin_patterns import best_pattern, patterns_worth

IntArray = npt.NDArray[np.int64]
SURE_DIVES, MORE_DIVES = 4, 200
"""Dives before patterns are listed, and after, where they are too many."""
MOST_EXACT: Final = 15_000
MOST_LISTED: Final = 15_000
"""Patterns in an integer program: of all, and of those that no other replaces."""
MOST_FEW, FEW_AN_ITEM = 9_000, 15
"""The same where they are listed first."""
CERTIFIABLE: Final = 150
"""Distinct sizes up to which a certificate is sought for what an integer program has said."""
FEW_NODES: Final = 3_000_000
LISTING_NODES: Final = 400_000_000
WHOLE: Final = 1e-6


@dataclass
class Found:
    """`patterns` [n][m] of the best packing; `bound` bins that `weights` [m] prove; `claimed`: bins that an integer program's word proves."""

    patterns: IntArray
    bound: int
    weights: IntArray
    claimed: int = 0
    dives: int = 0
    listed: int = field(default=-1)

    @property
    def bins(self) -> int:
        return len(self.patterns)

    @property
    def lowest(self) -> int:
        """The best bound, whoever says so."""
        return max(self.bound, self.claimed)

    @property
    def closed(self) -> bool:
        return self.bins <= self.lowest


Report = Callable[[Found], object]


def pack(
    items: Items, rng: np.random.Generator, stop: Callable[[], bool], report: Report, remaining_s: Callable[[], float], known: int = 0
) -> Found:
    """The best packing and bounds, until they meet or `stop`. Deterministic for a generator's state unless stopped.

    `known`: bins that somebody has proved already.
    """
    start = greedy(items, items.demand)
    found = Found(start, items.bins_by_volume, items.size, known)
    report(found)
    if found.closed or stop():
        return found
    # Where bins must be about full, few patterns are: the sizes themselves are the weights, and no program over patterns is needed to list them.
    listed = _settle(found, items, items.size, report, FEW_NODES, remaining_s)
    relaxation = Relaxation(items, stop)
    relaxation.add(start)
    if listed is not None:
        relaxation.add(listed)
    if not found.closed and not stop():
        _search(found, relaxation, rng, stop, report, remaining_s)
    if found.claimed > max(found.bound, known) and len(items.size) <= CERTIFIABLE and not stop():
        # What a program said may have a certificate: the relaxation goes on until it has, or falls too low for one.
        relaxation.generate(on_bound=lambda: _raise(found, relaxation, report), known=found.claimed - 1)
    return found


def _search(
    found: Found, relaxation: Relaxation, rng: np.random.Generator, stop: Callable[[], bool], report: Report, remaining_s: Callable[[], float]
) -> None:
    """The program over patterns, dives, and lists of patterns, in turn."""
    relaxation.generate(on_bound=lambda: _raise(found, relaxation, report), known=found.lowest)
    _raise(found, relaxation, report)
    _dives(found, relaxation, rng, SURE_DIVES, report)
    settled = 0
    while not found.closed and not stop():
        if found.lowest == settled:
            _dives(found, relaxation, rng, MORE_DIVES, report)
            return
        settled = found.lowest
        _list(found, relaxation, report, stop, remaining_s)
        _dives(found, relaxation, rng, SURE_DIVES, report)


def _raise(found: Found, relaxation: Relaxation, report: Report) -> None:
    if relaxation.bound > found.bound:
        found.bound, found.weights = relaxation.bound, relaxation.weights
        report(found)


def _dives(found: Found, relaxation: Relaxation, rng: np.random.Generator, most: int, report: Report) -> None:
    """Dives that may save a bin, the first along the largest fractions, others with a choice at random."""
    for _ in range(most):
        if found.closed or relaxation.stop():
            return
        better = dive(relaxation, found.lowest, found.bins - 1, None if found.dives == 0 else rng)
        found.dives += 1
        if better is not None:
            found.patterns = better
            report(found)


def _list(found: Found, relaxation: Relaxation, report: Report, stop: Callable[[], bool], remaining_s: Callable[[], float]) -> None:
    """The same with the weights that prove most, once they are known."""
    if not relaxation.exact:
        relaxation.generate(exact=True)
        _raise(found, relaxation, report)
    if not found.closed and not stop():
        _settle(found, relaxation.items, relaxation.sharpest, report, LISTING_NODES, remaining_s)


def _settle(
    found: Found, items: Items, weights: IntArray, report: Report, nodes: int, remaining_s: Callable[[], float]
) -> IntArray | None:
    """Settle whether as many bins as the bound are enough, by an integer program over all patterns that such a packing may use; these."""
    bins, quick = found.lowest, nodes == FEW_NODES
    # Every pattern that may be used, each item in exactly one of them, is the stronger program; without those that others replace it is smaller.
    for undominated in (False,) if quick else (False, True):
        patterns = useful_patterns(items, weights, bins, undominated, nodes)
        if patterns is None:
            continue
        found.listed = len(patterns)
        chosen, proved = _cover(items, patterns, bins, not undominated, remaining_s(), quick)
        if chosen is not None:
            found.patterns = np.repeat(patterns, chosen, axis=0)
            report(found)
        elif proved:
            found.claimed = bins + 1
            report(found)
        return patterns
    return None


def useful_patterns(items: Items, weights: IntArray, bins: int, undominated: bool, nodes: int = LISTING_NODES) -> IntArray | None:
    """All patterns that a packing into `bins` may use; `undominated`: up to exchange for larger items. None where they are too many to list."""
    if undominated:
        # Larger items must not weigh less, or exchanging an item for a larger one could make a pattern lighter.
        weights = np.maximum.accumulate(weights[::-1])[::-1]
    most = best_pattern(items.size, weights, items.demand, items.capacity).bound
    least = int((weights * items.demand).sum()) - (bins - 1) * most
    limit = MOST_LISTED if undominated else MOST_EXACT if nodes > FEW_NODES else min(MOST_FEW, FEW_AN_ITEM * int(items.demand.sum()))
    return patterns_worth(items.size, weights, items.demand, items.capacity, least, undominated, limit, nodes)


def _cover(
    items: Items, patterns: IntArray, bins: int, exact: bool, limit_s: float, quick: bool = False
) -> tuple[IntArray | None, bool]:
    """How often each pattern is used so that `bins` of them hold all items, or None; and whether that is proved impossible.

    `exact`: the patterns hold every item as often as it is asked for; otherwise each item may be in the place of one no smaller. `quick`: only what
    presolving and the first node say.
    """
    import highspy

    if not len(patterns):
        return None, True
    count, m = patterns.shape
    columns = [sp.hstack([sp.csr_matrix(patterns), sp.csr_matrix(np.ones((count, 1)))])]
    if not exact:
        # A place that no item of its size takes goes to the next smaller size: one column for each size.
        down = sp.csr_matrix(np.eye(m, k=1) - np.eye(m))
        columns.append(sp.hstack([down, sp.csr_matrix((m, 1))]))
    matrix = sp.vstack(columns).tocsr().T  # by columns, and never dense in floats
    more = matrix.shape[1] - count
    solver: Any = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    if quick:
        solver.setOptionValue("mip_max_nodes", 1)
    if np.isfinite(limit_s):
        solver.setOptionValue("time_limit", max(limit_s, 0.0))
    program: Any = highspy.HighsLp()
    program.num_row_, program.num_col_ = matrix.shape
    program.col_cost_ = np.zeros(count + more)
    program.col_lower_, program.col_upper_ = np.zeros(count + more), np.repeat([float(bins), np.inf], [count, more])
    program.row_lower_ = program.row_upper_ = np.append(items.demand, bins).astype(np.float64)
    program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    program.a_matrix_.start_, program.a_matrix_.index_, program.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
    program.integrality_ = [highspy.HighsVarType.kInteger] * count + [highspy.HighsVarType.kContinuous] * more
    if solver.passModel(program) == highspy.HighsStatus.kError:
        raise RuntimeError("HiGHS refused the program over patterns")
    solver.run()
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kOptimal:
        value = np.asarray(solver.getSolution().col_value)[:count]
        chosen = np.round(value).astype(np.int64)
        if chosen.sum() == bins and (np.cumsum(chosen @ patterns) >= np.cumsum(items.demand)).all():
            return chosen, False
    return None, status == highspy.HighsModelStatus.kInfeasible


def assign(items: Items, patterns: IntArray) -> IntArray:
    """Which bin each item goes to [items in order of falling size, copies side by side]: the largest items take the largest places that are free.

    The patterns' places must be as many and as large as the items need, one by one in this order.
    """
    place = [(-int(items.size[i]), b) for b, pattern in enumerate(patterns) for i in np.flatnonzero(pattern) for _ in range(int(pattern[i]))]
    place.sort()
    sizes = np.repeat(items.size, items.demand)
    if len(place) < len(sizes) or any(-place[n][0] < s for n, s in enumerate(sizes.tolist())):
        raise ValueError("the patterns do not hold the items")
    return np.array([b for _, b in place[: len(sizes)]], np.int64)
