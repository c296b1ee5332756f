"""The bounded knapsack problem: maximise sum_i v_i z_i subject to sum_i a_i z_i <= c, 0 <= z_i <= b_i, z integer.

Depth-first branch and bound in the manner of Martello and Toth (Knapsack Problems, 1990, ch. 3): items in order of value a unit of size, each
taken as often as fits and then once less at a time, pruned by the bound of the linear relaxation over the items that follow. Sizes and values
are real numbers. A node budget never costs validity: whatever was pruned or left out counts in `upper_bound`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from headroom.solvers.compiled import compiled

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
TOLERANCE: Final = 1e-9
NODES: Final = 400_000
"""About 20 ms."""
ROUNDING: Final = 1e-13


@dataclass(frozen=True)
class KnapsackAnswer:
    """The best selection found, its value, and a bound that no selection exceeds (equal to `value` within the tolerance unless nodes ran out)."""

    copies: IntArray
    value: float
    upper_bound: float
    nodes: int


def bounded_knapsack(
    value: FloatArray, size: FloatArray, copies: IntArray, capacity: float, tolerance: float = TOLERANCE, nodes: int = NODES
) -> KnapsackAnswer:
    """Solve to a relative `tolerance`. Items of no value, or too large, are left out; items of size 0 are taken.

    When `nodes` run out the tolerance is raised, again and again, until the search ends: the answer is then a feasible selection and a valid,
    weaker bound. O(items) a node.
    """
    able = np.flatnonzero((value > 0) & (size <= capacity) & (copies > 0))
    with np.errstate(divide="ignore", over="ignore"):
        order = able[np.argsort(-(value[able] / size[able]), kind="stable")]
    chosen = np.zeros(len(order), dtype=np.int64)
    answer = np.zeros(len(value), dtype=np.int64)
    if not len(order):
        return KnapsackAnswer(answer, 0.0, 0.0, 0)
    v, a, b = value[order].astype(np.float64), size[order].astype(np.float64), copies[order].astype(np.float64)
    found, bound, visited = _search(v, a, b, float(capacity), tolerance, nodes, chosen)
    answer[order] = chosen
    return KnapsackAnswer(answer, float(found), float(bound) * (1 + ROUNDING * (4 + len(order))), int(visited))


@compiled
def _linear_bound(v: FloatArray, a: FloatArray, b: FloatArray, first: int, room: float, value: float) -> float:
    """`value` plus the linear relaxation over the items from `first` on; they come in order of value a unit of size."""
    for i in range(first, len(v)):
        whole = a[i] * b[i]
        if whole <= room:
            room -= whole
            value += v[i] * b[i]
        else:
            return float(value + v[i] * (room / a[i]))
    return value


@compiled
def _search(
    v: FloatArray, a: FloatArray, b: FloatArray, capacity: float, tolerance: float, budget: int, best: IntArray
) -> tuple[float, float, int]:
    """(best value, upper bound, nodes); `best` receives the copies."""
    n = len(v)
    copies = np.zeros(n, dtype=np.int64)
    least = np.empty(n + 1)  # smallest size from here on
    least[n] = np.inf
    for i in range(n - 1, -1, -1):
        least[i] = min(least[i + 1], a[i])
    best_value, cut_off, room, value = 0.0, 0.0, capacity, 0.0
    item, visited = 0, 0
    while True:
        pruned = False
        while item < n and room >= least[item]:
            visited += 1
            if visited > budget:  # give away accuracy rather than time
                budget = 2 * budget
                tolerance = max(30.0 * tolerance, 1e-8)
            bound = _linear_bound(v, a, b, item, room, value)
            if bound <= best_value * (1.0 + tolerance):
                cut_off = max(cut_off, bound)
                pruned = True
                break
            fitting = b[item] if a[item] * b[item] <= room else float(int(room / a[item]))
            copies[item] = int(fitting)
            room -= fitting * a[item]
            value += fitting * v[item]
            item += 1
        if not pruned and value > best_value:
            best_value = value
            best[:] = 0
            best[:item] = copies[:item]
        # Back to the last item with a copy; one copy less, if that leaves hope.
        while True:
            item -= 1
            while item >= 0 and copies[item] == 0:
                item -= 1
            if item < 0:
                return best_value, max(best_value, cut_off), visited
            copies[item] -= 1
            room += a[item]
            value -= v[item]
            bound = _linear_bound(v, a, b, item + 1, room, value)
            if bound > best_value * (1.0 + tolerance):
                item += 1
                break
            cut_off = max(cut_off, bound)
            room += copies[item] * a[item]
            value -= copies[item] * v[item]
            copies[item] = 0


__all__ = ["KnapsackAnswer", "bounded_knapsack"]
