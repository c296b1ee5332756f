r"""Small integer covering programs, thousands of times over: a few integer variables, a few rows.

    minimise sum_g c_g n_g + e_g max(0, n_g - base_g)
    subject to  A n >= need,  P n <= limit,  lower <= n <= upper,  n integer,  and n <= m for no banned m        (A, P, c, e >= 0)

Depth-first, dear variables first, values from the least upwards; the last variable follows from the rest. A node is cut off when the dearest
of its single-row relaxations, max_k residual_k / max_g (A_kg / c_g), reaches the incumbent, which starts from a greedy cover. With a row of A
near the optimal multipliers' this bound is as good as the linear relaxation, and a program of four variables takes microseconds. A general MIP
solver needs milliseconds to begin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headroom.solvers.compiled import compiled

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MOST_NODES = 200_000
"""Nodes after which the best cover so far is returned: some 50 ms."""
ROUNDING = 1e-12
"""Relative room granted to every row for the rounding of its sum."""


@dataclass(frozen=True)
class Cover:
    """The cheapest cover found; `proved`: none is cheaper."""

    count: IntArray
    proved: bool


def cheapest_cover(
    cost: FloatArray,
    rows: FloatArray,
    need: FloatArray,
    lower: FloatArray,
    upper: FloatArray,
    premium: FloatArray | None = None,
    base: FloatArray | None = None,
    pools: FloatArray | None = None,
    limit: FloatArray | None = None,
    banned: FloatArray | None = None,
) -> Cover | None:
    """Solve the program above: cost [G], rows [K][G], need [K], bounds [G] (upper may be +inf), pools [P][G], banned [M][G].

    None when there is no cover, or when none was found within MOST_NODES. Exponential in G at worst.
    """
    gpus = len(cost)
    premium = np.zeros(gpus) if premium is None else premium
    base = np.zeros(gpus) if base is None else base
    pools = np.zeros((0, gpus)) if pools is None else pools
    limit = np.zeros(len(pools)) if limit is None else limit
    banned = np.zeros((0, gpus)) if banned is None else banned
    if (lower > upper).any() or not np.isfinite(need).all():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        alone = np.where(rows > 0, need[:, None] / rows, 0.0).max(axis=0, initial=0.0)
    # More than what covers everything alone helps nothing, except to differ from what is banned.
    enough = np.maximum(np.ceil(alone) + 1, banned.max(axis=0, initial=0.0) + 1)
    most = np.minimum(upper, np.maximum(enough, lower))
    order = np.argsort(-(cost + premium), kind="stable")
    n = np.zeros(gpus)
    found, nodes = _search(
        cost[order], premium[order], base[order], lower[order], most[order], np.ascontiguousarray(rows[:, order]), need * 1.0,
        np.ascontiguousarray(pools[:, order]), limit, np.ascontiguousarray(banned[:, order]), n, MOST_NODES,
    )  # fmt: skip
    if not found:
        return None
    count = np.zeros(gpus, dtype=np.int64)
    count[order] = n.astype(np.int64)
    return Cover(count, nodes < MOST_NODES)


@compiled
def _start(rows: FloatArray, need: FloatArray, lower: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What is missing at the lower bounds [K], and how much of it is rounding [K]."""
    missing, slack = need.copy(), np.empty(len(need))
    for k in range(len(need)):
        slack[k] = ROUNDING * abs(need[k])
        for g in range(len(lower)):
            missing[k] -= rows[k, g] * lower[g]
    return missing, slack


@compiled
def _price(n: FloatArray, cost: FloatArray, premium: FloatArray, base: FloatArray) -> float:
    total = 0.0
    for g in range(len(n)):
        total += cost[g] * n[g] + premium[g] * max(0.0, n[g] - base[g])
    return total


@compiled
def _greedy(
    cost: FloatArray, premium: FloatArray, base: FloatArray, lower: FloatArray, most: FloatArray, rows: FloatArray, need: FloatArray,
    pools: FloatArray, limit: FloatArray, banned: FloatArray, n: FloatArray,
) -> bool:  # fmt: skip
    """Adds to n, which comes in at the lower bounds, whatever covers most of what is missing for its cost; whether that makes a cover."""
    gpus, count_rows, count_pools = len(cost), len(need), len(limit)
    left, slack = _start(rows, need, lower)
    room = limit.copy()
    for j in range(count_pools):
        for g in range(gpus):
            room[j] -= pools[j, g] * n[g]
    while True:
        choice, worth, missing = -1, 0.0, False
        for k in range(count_rows):
            missing = missing or left[k] > slack[k]
        if not missing:
            break
        for g in range(gpus):
            allowed = n[g] < most[g]
            for j in range(count_pools):
                allowed = allowed and pools[j, g] <= room[j]
            covered = 0.0
            for k in range(count_rows):
                if left[k] > slack[k]:
                    covered += min(left[k], rows[k, g]) / need[k]
            value = covered / max(cost[g] + (premium[g] if n[g] >= base[g] else 0.0), 1e-300)
            if allowed and value > worth:
                choice, worth = g, value
        if choice < 0:
            return False
        # As many at once as leave the choice what it is: until the scarcest row is covered, the base is reached, or a limit.
        step = most[choice] - n[choice]
        if n[choice] < base[choice]:
            step = min(step, base[choice] - n[choice])
        for k in range(count_rows):
            if left[k] > slack[k] and rows[k, choice] > 0:
                step = min(step, math.floor(left[k] / rows[k, choice]))
        for j in range(count_pools):
            if pools[j, choice] > 0:
                step = min(step, math.floor(room[j] / pools[j, choice]))
        step = max(step, 1.0)
        n[choice] += step
        for k in range(count_rows):
            left[k] -= rows[k, choice] * step
        for j in range(count_pools):
            room[j] -= pools[j, choice] * step
    return bool(_free(n, n[gpus - 1], banned) == n[gpus - 1])


@compiled
def _free(n: FloatArray, value: float, banned: FloatArray) -> float:
    """The least value of the last variable, from `value` upwards, at which n lies within no banned vector."""
    last, again = len(n) - 1, True
    while again:
        again = False
        for m in range(len(banned)):
            within = value <= banned[m, last]
            for g in range(last):
                within = within and n[g] <= banned[m, g]
            if within:
                value, again = banned[m, last] + 1.0, True
    return value


@compiled
def _search(
    cost: FloatArray, premium: FloatArray, base: FloatArray, lower: FloatArray, most: FloatArray, rows: FloatArray, need: FloatArray,
    pools: FloatArray, limit: FloatArray, banned: FloatArray, best: FloatArray, most_nodes: int,
) -> tuple[bool, int]:  # fmt: skip
    """(found, nodes); writes the best cover into `best`. Variables come sorted, dearest first."""
    gpus, count_rows, count_pools = len(cost), len(need), len(limit)
    last = gpus - 1
    # What a row gains at most for its cost, and at most at all, over this and all later variables.
    gain, reach = np.zeros((gpus + 1, count_rows)), np.zeros((gpus + 1, count_rows))
    for g in range(last, -1, -1):
        least = cost[g] + (premium[g] if base[g] <= lower[g] else 0.0)
        for k in range(count_rows):
            each = 0.0 if rows[k, g] <= 0 else (rows[k, g] / least if least > 0 else np.inf)
            gain[g, k] = max(gain[g + 1, k], each)
            reach[g, k] = reach[g + 1, k] + rows[k, g] * (most[g] - lower[g])
    residual, used, spent = np.empty((gpus + 1, count_rows)), np.zeros((gpus + 1, count_pools)), np.zeros(gpus + 1)
    residual[0], slack = _start(rows, need, lower)
    spent[0] = _price(lower, cost, premium, base)
    for j in range(count_pools):
        for g in range(gpus):
            used[0, j] += pools[j, g] * lower[g]
        if used[0, j] > limit[j]:
            return False, 0
    n, value = lower.copy(), lower.copy()
    found, enough = _greedy(cost, premium, base, lower, most, rows, need, pools, limit, banned, n), np.inf
    if found:
        best[:] = n
        enough = _price(n, cost, premium, base) * (1 - ROUNDING)
    nodes, g = 0, 0
    while g >= 0 and nodes < most_nodes:
        nodes += 1
        if g == last:
            v, possible = lower[g], True
            for k in range(count_rows):
                if residual[g, k] > slack[k]:
                    possible = possible and rows[k, g] > 0
                    if possible:
                        v = max(v, lower[g] + math.ceil((residual[g, k] - slack[k]) / rows[k, g]))
            v = _free(n, v, banned)
            for j in range(count_pools):
                possible = possible and used[g, j] + pools[j, g] * (v - lower[g]) <= limit[j]
            if possible and v <= most[g]:
                n[g] = v
                total = _price(n, cost, premium, base)
                if total < enough:
                    found, enough = True, total * (1 - ROUNDING)
                    best[:] = n
            g -= 1
            continue
        v = value[g]
        more = v - lower[g]
        over = v > most[g]
        spent[g + 1] = spent[g] + cost[g] * more + premium[g] * (max(0.0, v - base[g]) - max(0.0, lower[g] - base[g]))
        over = over or spent[g + 1] >= enough
        for j in range(count_pools):
            used[g + 1, j] = used[g, j] + pools[j, g] * more
            over = over or used[g + 1, j] > limit[j]
        if over:  # larger values cost and use more still
            g -= 1
            continue
        n[g], value[g] = v, v + 1.0
        bound, reachable, satisfied = 0.0, True, True
        for k in range(count_rows):
            residual[g + 1, k] = residual[g, k] - rows[k, g] * more
            if residual[g + 1, k] > slack[k]:
                satisfied = False
                reachable = reachable and residual[g + 1, k] <= reach[g + 1, k] + slack[k] and gain[g + 1, k] > 0
                if reachable:
                    bound = max(bound, residual[g + 1, k] / gain[g + 1, k])
        if satisfied and len(banned) == 0:
            value[g] = most[g] + 1.0  # more of it would be waste
        if reachable and spent[g + 1] + bound < enough:
            g += 1
            value[g] = lower[g]
    return found, nodes
