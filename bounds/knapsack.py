"""A bound on the bounded knapsack that is proved with numpy alone: lists of undominated partial selections, pruned by the linear relaxation.

Nemhauser and Ullmann (1969, doi 10.1287/mnsc.15.9.494): go through the items, keeping of all partial selections those that no other beats in
both value and size. Here also those are dropped whose linear completion does not exceed a target, so that a true target is confirmed with few
lists, and a false one is found out: the answer is never below the optimum, whatever the target.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
MOST_STATES: Final = 200_000
MARGIN: Final = 1e-12
"""Relative, on the capacity: far more than adding up sizes loses."""


def knapsack_bound(value: FloatArray, size: FloatArray, copies: FloatArray, capacity: float, target: float, most_states: int = MOST_STATES) -> float:
    """A number >= max {sum v z : sum a z <= capacity, 0 <= z <= copies integer}, at most slightly above max(target, that maximum).

    When more than `most_states` partial selections are left, those with the least hope are given up and their linear bound counts: weaker, and
    still valid. O(chunks x states log states), chunks = sum_i log2(copies_i + 1).
    """
    capacity *= 1 + MARGIN
    able = np.flatnonzero((value > 0) & (size <= capacity) & (copies > 0))
    if not len(able):
        return max(target, 0.0)
    v, a = value[able], size[able]
    with np.errstate(divide="ignore", over="ignore"):
        b = np.minimum(copies[able], np.floor(capacity / a * (1 + MARGIN)))
        order = np.argsort(-(v / a), kind="stable")
    chunk_value, chunk_size = _chunks(v[order], a[order], b[order])
    sizes = np.concatenate([[0.0], np.cumsum(chunk_size)])
    with np.errstate(over="ignore"):
        values = np.concatenate([[0.0], np.cumsum(chunk_value)])
    margin = 2.0**-52 * (50 + 2 * len(chunk_value)) * (values[-1] + abs(target))  # what adding up may lose
    if not math.isfinite(margin):
        return math.inf
    state_value, state_size = np.zeros(1), np.zeros(1)
    proved = max(target, 0.0)
    for j in range(len(chunk_value)):
        fits = state_size + chunk_size[j] <= capacity
        joined_value = np.concatenate([state_value, state_value[fits] + chunk_value[j]])
        joined_size = np.concatenate([state_size, state_size[fits] + chunk_size[j]])
        hope = joined_value + np.interp(sizes[j + 1] + capacity - joined_size, sizes, values) - values[j + 1] + margin
        keep = hope > proved
        joined_value, joined_size, hope = joined_value[keep], joined_size[keep], hope[keep]
        if not len(joined_value):
            return float(proved + margin)
        order = np.lexsort((-joined_value, joined_size))
        joined_value, joined_size, hope = joined_value[order], joined_size[order], hope[order]
        best = np.maximum.accumulate(joined_value)
        undominated = np.concatenate([[True], joined_value[1:] > best[:-1]])
        joined_value, joined_size, hope = joined_value[undominated], joined_size[undominated], hope[undominated]
        if len(joined_value) > most_states:
            kept = np.sort(np.argpartition(-hope, most_states // 2)[: most_states // 2])
            given_up = np.ones(len(hope), dtype=bool)
            given_up[kept] = False
            proved = max(proved, float(hope[given_up].max()))
            joined_value, joined_size = joined_value[kept], joined_size[kept]
        state_value, state_size = joined_value, joined_size
    return float(max(proved, float(state_value.max())) + margin)


def _chunks(v: FloatArray, a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Copies in powers of two and a rest: any number of copies from 0 to b is a sum of chunks."""
    values, sizes = [], []
    for one_value, one_size, copies in zip(v, a, b, strict=True):
        left, part = int(copies), 1
        while left > 0:
            part = min(part, left)
            values.append(part * one_value)
            sizes.append(part * one_size)
            left -= part
            part *= 2
    return np.array(values), np.array(sizes)
