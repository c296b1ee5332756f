r"""One step of dynamic programming over lists of whole fleets: from the fleets kept for one epoch to all that may follow within a cost limit.

A label is a fleet with the least cost of getting there. Its successors m' are the fleets that satisfy the covering rules of the next epoch and

    cost + rent.m' + rise.(m' - m)^+ + togo(m')  <=  limit        togo(m') = sum_g togo_g(m'_g): a lower bound of what follows

They are enumerated depth-first; prices y with y.m' >= v for every fleet that serves tell early what the types not yet decided cost at least.
Label j makes label i superfluous when cost_j + rise.(m_i - m_j)^+ <= cost_i: whatever follows i can follow j, after buying what i has more.

The functions are plain Python that numba compiles; a call is limited in nodes, so that it ends within a fraction of a second.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
ROUND = 1e-12
"""Rules may be missed by this much, relative: always towards more fleets."""


def _successors(
    fleets: IntArray,
    cost: FloatArray,
    price: FloatArray,
    rules: FloatArray,
    need: FloatArray,
    least: IntArray,
    most: IntArray,
    togo: FloatArray,
    rent: FloatArray,
    rise: FloatArray,
    may_rise: bool,
    pool_gpus: FloatArray,
    pool_limit: FloatArray,
    limit: float,
    found: IntArray,
    found_cost: FloatArray,
    node_limit: int,
) -> int:
    """Write successors of `fleets` [N][G] at `cost` [N] (ascending) into `found` [cap][G], `found_cost` [cap]; their number, or -1: limits were met.

    The last rule is the price itself. togo [G][W] by count.
    """
    types, count_rules, cap = len(price), len(rules), len(found)
    ratio = np.empty((types + 1, count_rules))
    for k in range(count_rules):
        lowest = np.inf
        ratio[types, k] = np.inf
        for g in range(types - 1, -1, -1):
            if rules[k, g] > 0:
                lowest = min(lowest, price[g] / rules[k, g])
            ratio[g, k] = lowest
    value = need[count_rules - 1]
    # Counts that fit the cheapest label if it stood for all replicas it likes: a range for every label.
    over = np.empty((types, togo.shape[1]))
    low, high = np.empty(types, np.int64), np.empty(types, np.int64)
    smallest = np.empty(types)
    for g in range(types):
        smallest[g] = np.inf
        for x in range(least[g], most[g] + 1):
            over[g, x] = togo[g, x] + (rent[g] - price[g]) * x
            smallest[g] = min(smallest[g], over[g, x])
    every = smallest.sum()
    for g in range(types):
        low[g], high[g] = most[g] + 1, -1
        for x in range(least[g], most[g] + 1):
            if cost[0] + every - smallest[g] + over[g, x] + max(value, price[g] * x) <= limit:
                low[g] = min(low[g], x)
                high[g] = x
        if high[g] < 0:
            return 0
    fleet = np.zeros(types, np.int64)
    extra, rest = np.empty((types, togo.shape[1])), np.zeros(types + 1)
    first, last = np.empty(types, np.int64), np.empty(types, np.int64)
    paid, left = np.zeros(types + 1), np.empty((types + 1, count_rules))
    left[0, :] = need
    number, nodes = 0, 0
    for i in range(len(fleets)):
        room = limit - cost[i]
        for g in range(types - 1, -1, -1):
            lowest = np.inf
            for x in range(low[g], high[g] + 1):
                above = x - fleets[i, g]
                extra[g, x] = over[g, x]
                if above > 0:
                    extra[g, x] += rise[g] * above if may_rise else np.inf
                lowest = min(lowest, extra[g, x])
            rest[g] = rest[g + 1] + lowest
        if not rest[0] + value <= room:
            continue
        empty = False
        for g in range(types):
            others = rest[0] - (rest[g] - rest[g + 1])
            first[g], last[g] = high[g] + 1, -1
            for x in range(low[g], high[g] + 1):
                if others + extra[g, x] + max(value, price[g] * x) <= room:
                    first[g] = min(first[g], x)
                    last[g] = x
            empty = empty or last[g] < 0
        if empty:
            continue
        depth = 0
        fleet[0] = first[0] - 1
        while depth >= 0:
            fleet[depth] += 1
            nodes += 1
            if nodes > node_limit:
                return -1
            if fleet[depth] > last[depth]:
                depth -= 1
                continue
            spent = paid[depth] + price[depth] * fleet[depth] + extra[depth, fleet[depth]]
            if spent + rest[depth + 1] > room:
                continue
            bound, covered = 0.0, True
            for k in range(count_rules):
                lacking = left[depth, k] - rules[k, depth] * fleet[depth]
                left[depth + 1, k] = lacking
                if lacking > ROUND * need[k]:
                    covered = False
                    bound = max(bound, lacking * ratio[depth + 1, k])
            if spent + bound * (1 - ROUND) + rest[depth + 1] > room:
                continue
            if depth < types - 1:
                depth += 1
                paid[depth] = spent
                fleet[depth] = first[depth] - 1
                continue
            if not covered:
                continue
            fits = True
            for p in range(len(pool_limit)):
                used = 0.0
                for g in range(types):
                    used += pool_gpus[p, g] * fleet[g]
                fits = fits and used <= pool_limit[p] * (1 + ROUND)
            if not fits:
                continue
            if number == cap:
                return -1
            total = cost[i]
            for g in range(types):
                found[number, g] = fleet[g]
                above = fleet[g] - fleets[i, g]
                total += rent[g] * fleet[g] + (rise[g] * above if above > 0 else 0.0)
            found_cost[number] = total
            number += 1
    return number


def _undominated(fleets: IntArray, cost: FloatArray, rise: FloatArray, may_rise: bool) -> npt.NDArray[np.bool_]:
    """Which labels [N], by ascending cost, no earlier one makes superfluous. O(N^2 G)."""
    keep = np.ones(len(fleets), np.bool_)
    for i in range(len(fleets)):
        for j in range(i):
            if keep[j]:
                total = cost[j]
                for g in range(fleets.shape[1]):
                    above = fleets[i, g] - fleets[j, g]
                    if above > 0:
                        total += rise[g] * above if may_rise else np.inf
                if total <= cost[i]:
                    keep[i] = False
                    break
    return keep


@cache
def _compiled() -> tuple[Any, Any]:
    from headroom.solvers.compiled import compiled

    return compiled(_successors), compiled(_undominated)


def successors(*arguments: Any) -> int:
    """`_successors`, compiled."""
    number: int = _compiled()[0](*arguments)
    return number


def undominated(fleets: IntArray, cost: FloatArray, rise: FloatArray, may_rise: bool) -> npt.NDArray[np.bool_]:
    """`_undominated`, compiled."""
    keep: npt.NDArray[np.bool_] = _compiled()[1](fleets, cost, rise, may_rise)
    return keep
