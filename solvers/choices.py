"""Choosing k items with different owners under load limits: the best paid ones, and the least loaded ones among the well paid. Compiled by numba.

Items come by falling price, so that a choice whose remaining items are the next in line says when to give up. O(C(N, k) S) at worst.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headroom.solvers.compiled import compiled

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@compiled
def clashes(owner: IntArray, chosen: IntArray, depth: int, item: int) -> bool:
    """Whether the item's owner has one of the first `depth` chosen items."""
    taken = False
    for d in range(depth):
        taken = taken or owner[chosen[d]] == owner[item]
    return taken


@compiled
def running_sum(price: FloatArray) -> FloatArray:
    """Sums of the first 0, 1, .. N prices [N + 1]."""
    found = np.zeros(len(price) + 1)
    found[1:] = np.cumsum(price)
    return found


@compiled
def best_paid(owner: IntArray, load: FloatArray, price: FloatArray, k: int, limit: float, need: float, found: IntArray) -> int:
    """For each item the best paid choice in which it is the best paid, if it brings more than `need`, no load [S] above `limit`.

    `found` [most][k] is filled; how many are there is returned.
    """
    items, scenarios = load.shape
    carried = np.zeros((k + 1, scenarios))
    paid = np.zeros(k + 1)
    ahead = running_sum(price)
    chosen, best = np.zeros(k, np.int64), np.zeros(k, np.int64)
    number = 0
    for first in range(items - k + 1):
        if ahead[first + k] - ahead[first] <= need:
            break
        most, depth, chosen[0] = need, 0, first
        while depth >= 0:
            item, left = chosen[depth], k - depth
            if item + left > items or (depth == 0 and item != first) or paid[depth] + ahead[item + left] - ahead[item] <= most:
                depth -= 1
                if depth >= 0:
                    chosen[depth] += 1
                continue
            fits = not clashes(owner, chosen, depth, item)
            if fits:
                for s in range(scenarios):
                    carried[depth + 1, s] = carried[depth, s] + load[item, s]
                    if carried[depth + 1, s] > limit:
                        fits = False
            if not fits:
                chosen[depth] += 1
                continue
            paid[depth + 1] = paid[depth] + price[item]
            if depth + 1 == k:
                most = paid[k]
                best[:] = chosen
                depth -= 1  # what follows in this place is paid less
                if depth >= 0:
                    chosen[depth] += 1
                continue
            depth += 1
            chosen[depth] = item + 1
        if most > need and number < len(found):
            found[number] = best
            number += 1
    return number


@compiled
def least_loaded(owner: IntArray, load: FloatArray, price: FloatArray, k: int, need: float, limit: float) -> float:
    """The least of the largest loads over S, among choices that bring at least `need`; `limit` where none is below that."""
    items, scenarios = load.shape
    carried = np.zeros((k + 1, scenarios))
    paid = np.zeros(k + 1)
    ahead = running_sum(price)
    chosen = np.zeros(k, np.int64)
    least, depth = limit, 0
    while depth >= 0:
        item, left = chosen[depth], k - depth
        if item + left > items or paid[depth] + ahead[item + left] - ahead[item] < need:
            depth -= 1
            if depth >= 0:
                chosen[depth] += 1
            continue
        fits, most = not clashes(owner, chosen, depth, item), 0.0
        if fits:
            for s in range(scenarios):
                carried[depth + 1, s] = carried[depth, s] + load[item, s]
                most = max(most, carried[depth + 1, s])
        if not fits or most >= least:
            chosen[depth] += 1
            continue
        paid[depth + 1] = paid[depth] + price[item]
        if depth + 1 == k:
            least = most
            chosen[depth] += 1
            continue
        depth += 1
        chosen[depth] = item + 1
    return least


__all__ = ["best_paid", "least_loaded"]
