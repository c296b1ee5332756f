"""The cheapest whole fleet that satisfies linear covering rules: min c.m, A m >= b, 0 <= m <= most, m integer, in a few dimensions.

Depth-first over the counts, cheapest-looking ends cut off by the rules one at a time: a rule that still lacks r costs at least r times the least
c_g / A_kg of the types not decided yet. Counts have few types (four here, rarely more than eight), so this beats a general MIP solver by far; a limit
on nodes keeps it anytime.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
ROUND = 1e-12
"""Rules may be missed by this much, relative, and costs compared with this tolerance: always towards a lower minimum."""


def _search(cost: FloatArray, rules: FloatArray, need: FloatArray, most: IntArray, target: float, node_limit: int) -> tuple[float, IntArray, int]:
    """(least cost below `target`, or `target`; its fleet, or -1s; nodes, negative when the limit cut the search short)."""
    count_rules, types = rules.shape
    ratio = np.empty((types + 1, count_rules))
    for k in range(count_rules):
        least = np.inf
        ratio[types, k] = np.inf
        for g in range(types - 1, -1, -1):
            if rules[k, g] > 0:
                least = min(least, cost[g] / rules[k, g])
            ratio[g, k] = least
    fleet = np.zeros(types, np.int64)
    found = np.full(types, -1, np.int64)
    best = target
    left = np.empty((types + 1, count_rules))
    left[0, :] = need
    paid = np.zeros(types + 1)
    nodes, depth = 0, 0
    fleet[0] = -1
    while depth >= 0:
        fleet[depth] += 1
        nodes += 1
        if nodes > node_limit:
            return best, found, -nodes
        if depth == types - 1:
            # The last count follows from the rules.
            wanted = 0.0
            for k in range(count_rules):
                r = left[depth, k]
                if r > ROUND * need[k]:
                    wanted = max(wanted, r / rules[k, depth] if rules[k, depth] > 0 else np.inf)
            if wanted <= most[depth] * (1 + ROUND):
                last = min(max(np.int64(np.ceil(wanted * (1 - ROUND))), 0), most[depth])
                total = paid[depth] + cost[depth] * last
                if total < best:
                    best = total
                    found[:] = fleet
                    found[depth] = last
            depth -= 1
            continue
        spent = paid[depth] + cost[depth] * fleet[depth]
        if fleet[depth] > most[depth] or spent * (1 - ROUND) >= best:
            depth -= 1
            continue
        bound, covered = spent, True
        for k in range(count_rules):
            r = left[depth, k] - rules[k, depth] * fleet[depth]
            left[depth + 1, k] = r
            if r > ROUND * need[k]:
                covered = False
                bound = max(bound, spent + r * ratio[depth + 1, k])
        if covered:
            if spent < best:
                best = spent
                found[: depth + 1] = fleet[: depth + 1]
                found[depth + 1 :] = 0
            depth -= 1  # one more of this type only costs more
            continue
        if bound * (1 - ROUND) >= best:
            continue
        depth += 1
        paid[depth] = spent
        fleet[depth] = -1
    return best, found, nodes


@cache
def _compiled() -> Any:
    from headroom.solvers.compiled import compiled

    return compiled(_search)


def cheapest_fleet(
    cost: FloatArray, rules: FloatArray, need: FloatArray, most: IntArray, target: float, node_limit: int
) -> tuple[float, IntArray | None, bool]:
    """Search for a fleet cheaper than `target`.

    cost [G] >= 0, rules [K][G] >= 0, need [K], most [G]. Returns (v, fleet or None, proved): the fleet costs v < target (None: v is `target`), and
    `proved` says that no whole fleet that satisfies the rules costs less than v (1 - 1e-11). Exponential in G, linear in K.
    """
    order = np.argsort(-cost, kind="stable")
    kept = need > 0
    arguments = (cost[order], np.ascontiguousarray(rules[kept][:, order]), need[kept], most[order], float(target), int(node_limit))
    value, found, nodes = _compiled()(*arguments)
    if found[0] < 0:
        return float(value), None, nodes > 0
    fleet = np.empty(len(cost), np.int64)
    fleet[order] = found
    return float(value), fleet, nodes > 0
