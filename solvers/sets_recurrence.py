"""One step of a recurrence over sets: after[T] = max over S of value[S] + sum of p[e][f], e in S, f in T. Compiled by numba.

Sets come in lexicographic order, so that neighbours share their first members and what those send is added up once: about one addition and one
comparison for each pair of sets.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headroom.solvers.compiled import compiled

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
LEAST_EXPONENT = -40.0


@compiled
def rows_of(p: FloatArray, sets: IntArray) -> FloatArray:
    """What e sends into each set [E][N]."""
    number, size = sets.shape
    found = np.zeros((len(p), number))
    for e in range(len(p)):
        for t in range(number):
            for j in range(size):
                found[e, t] += p[e, sets[t, j]]
    return found


@compiled
def add_prefix(rows: FloatArray, sets: IntArray, s: int, prefix: FloatArray) -> None:
    """`prefix` [k][N]: what the first members of set s send; those it shares with set s - 1 stand there already."""
    size = sets.shape[1]
    shared = 0
    if s > 0:
        while shared < size and sets[s, shared] == sets[s - 1, shared]:
            shared += 1
    for j in range(shared, size):
        row, now = rows[sets[s, j]], prefix[j]
        if j == 0:
            for t in range(len(row)):
                now[t] = row[t]
        else:
            before = prefix[j - 1]
            for t in range(len(row)):
                now[t] = before[t] + row[t]


@compiled
def exponential(x: float) -> float:
    """exp(max(x, LEAST_EXPONENT)) for x <= 0, to a relative 1e-7: without branches, so that loops over it are vectorised."""
    y = max(x, LEAST_EXPONENT) / 256.0
    y = 1.0 + y * (1.0 + y / 2.0 * (1.0 + y / 3.0 * (1.0 + y / 4.0 * (1.0 + y / 5.0 * (1.0 + y / 6.0)))))
    for _ in range(8):
        y = y * y
    return y


@compiled
def step(p: FloatArray, sets: IntArray, value: FloatArray, tau: float, after: FloatArray) -> None:
    """`after` [T]: the maximum over S of value[S] + p(S, T), smooth when tau > 0."""
    number, size = sets.shape
    rows, prefix = rows_of(p, sets), np.zeros((size, number))
    sent = prefix[size - 1]
    after[:] = -np.inf
    for s in range(number):
        add_prefix(rows, sets, s, prefix)
        at = value[s]
        for t in range(number):
            after[t] = max(after[t], at + sent[t])
    if tau <= 0.0:
        return
    total, sharp = np.zeros(number), 1.0 / tau
    for s in range(number):
        add_prefix(rows, sets, s, prefix)
        at = value[s]
        for t in range(number):
            total[t] += exponential((at + sent[t] - after[t]) * sharp)
    for t in range(number):
        after[t] += tau * math.log(total[t])


__all__ = ["step"]
