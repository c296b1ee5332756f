"""The linear relaxation of packing jobs into machines of a given load, over all sets of jobs that a machine can hold (Gilmore and Gomory).

minimise sum_s x_s  subject to  sum_s a_is x_s >= copies_i  for every length i.  More than the machines there are: the load is not enough, and the
duals prove it. Otherwise the sets of the relaxation are a start for a search.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from headroom.formulations.progress import Progress
from headroom.solvers.bounded_knapsack import bounded_knapsack
from headroom.solvers.column_generation import Column, Generated, Master, Options, Priced, generate
from headroom.solvers.machine_loads_search import split

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
CLEAR: Final = 1e-7
"""By how much the relaxation must exceed the number of machines: its duals, rounded to whole numbers, then still do."""

LAST_MACHINES: Final = 9
"""So few machines are split by search: about as many as a search settles at once, and enough for it to find what diving left."""
LAST_NODES: Final = 300_000


def refuting_prices(length: IntArray, copies: IntArray, machines: int, most: int, progress: Progress) -> FloatArray | None:
    """Prices [lengths] under which more than `machines` loads of `most` are needed, or None when the relaxation has none (or was stopped).

    The prices still have to be checked in whole numbers.
    """
    found, _ = relaxation(length, copies, most, machines, progress)
    return found.duals if found.ended in ("cut_off", "optimal") and found.bound > machines * (1 + CLEAR) else None


def relaxation(
    length: IntArray, copies: IntArray, most: int, machines: int, progress: Progress, patterns: Iterable[IntArray] = ()
) -> tuple[Generated, list[IntArray]]:
    """Column generation until it is known whether the relaxation needs more than `machines`; and its sets [lengths], those of `x` first.

    `patterns`: sets to begin with, of which those are used that the copies allow.
    """
    kinds = len(length)
    rows = np.arange(kinds)

    def column(pattern: IntArray) -> Column:
        used = np.flatnonzero(pattern)
        return Column(pattern.tobytes(), 1.0, rows[used], pattern[used].astype(np.float64))

    def price(duals: FloatArray, with_cost: bool, exact: bool) -> Priced:
        value = np.clip(duals, 0.0, None)
        answer = bounded_knapsack(value, length.astype(np.float64), copies, float(most))
        # Farley's bound: the duals over the dearest set are feasible.
        return Priced([column(answer.copies)], float(value @ copies) / max(answer.upper_bound, 1.0) if with_cost else -np.inf)

    start = [*_first_fit(length, copies, most), *(pattern for pattern in patterns if (pattern <= copies).all())]
    master = Master(copies.astype(np.float64), np.full(kinds, np.inf), (column(pattern) for pattern in start))
    options = Options(cut_off=machines * (1 + 2 * CLEAR), target=float(machines), smoothing=0.5)
    found = generate(master, price, progress, options)
    return found, [np.frombuffer(cast("bytes", one.key), np.int64) for one in master.columns]


def rounded(
    length: IntArray, machines: int, most: int, progress: Progress, rng: np.random.Generator, stop: IntArray, blur: float = 0.3
) -> IntArray | None:
    """Machines of jobs [n] with loads of at most `most`, or None: dive in the relaxation, then split what is left among the last machines.

    Each step takes the sets that the relaxation uses a whole number of times, or else the one it uses most, blurred at random; the relaxation of
    the rest must need no more machines than are left. No guarantee. A step is a column generation.
    """
    kinds, kind = np.unique(length, return_inverse=True)
    jobs = [np.flatnonzero(kind == i).tolist() for i in range(len(kinds))]
    out = np.full(len(length), -1, np.int64)
    patterns: list[IntArray] = []
    full = 0
    while machines - full > LAST_MACHINES:
        left = np.array([len(one) for one in jobs])
        there = np.flatnonzero(left)
        if not len(there):
            return out
        known = [pattern[there] for pattern in patterns if not pattern[left == 0].any()]
        found, sets = relaxation(kinds[there], left[there], most, machines - full, progress, known)
        if found.x is None or found.ended not in ("target", "optimal") or found.objective > (machines - full) * (1 + CLEAR):
            return None
        for pattern in sets:
            whole = np.zeros(len(kinds), np.int64)
            whole[there] = pattern
            patterns.append(whole)
        patterns = list({pattern.tobytes(): pattern for pattern in patterns}.values())
        x = found.x[: len(sets)]
        times = np.floor(x + 1e-6).astype(np.int64)
        if not times.any():
            times[np.argmax(x + blur * rng.random(len(x)) * (x > 1e-6))] = 1
        for s in np.flatnonzero(times):
            for _ in range(min(int(times[s]), machines - full)):
                for i, number in zip(there, sets[s], strict=True):
                    for _copy in range(min(int(number), len(jobs[i]))):
                        out[jobs[i].pop()] = full
                full += 1
    rest = np.flatnonzero(out < 0)
    fits, last = split(length[rest], machines - full, most, LAST_NODES, stop)
    if not fits:
        return None
    out[rest] = full + last
    return out


def _first_fit(length: IntArray, copies: IntArray, most: int) -> list[IntArray]:
    """Sets to begin with: the longest jobs first, each set as often as there are jobs for it; and every length alone."""
    left, patterns = copies.copy(), []
    while left.any():
        pattern, room = np.zeros(len(length), np.int64), most
        for i in np.flatnonzero(left)[::-1]:
            pattern[i] = min(left[i], room // length[i])
            room -= int(pattern[i] * length[i])
        if not pattern.any():
            raise ValueError("a job is longer than the load")
        used = pattern > 0
        left -= pattern * (left[used] // pattern[used]).min()
        patterns.append(pattern)
    alone = [np.where(np.arange(len(length)) == i, min(int(copies[i]), int(most // length[i])), 0) for i in range(len(length))]
    return [*patterns, *alone]


__all__ = ["refuting_prices", "relaxation", "rounded"]
