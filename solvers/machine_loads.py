"""Jobs on identical machines: list rules, and what of an instance is left once parts of it are settled (P||Cmax)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headroom.solvers.compiled import compiled

IntArray = npt.NDArray[np.int64]
MULTIFIT_HALVINGS = 12
MOST_FITS = 10**8
"""Multifit is left out where jobs x machines are more."""


def longest_first(length: IntArray, machines: int) -> IntArray:
    """LPT: the machine of each job [n], longest job first, each to the machine that is free first. At most 4/3 - 1/(3m) of the optimum.

    O(n log n). Source: Graham (1969), doi 10.1137/0117039.
    """
    order = np.argsort(-length, kind="stable")
    out = np.empty(len(length), np.int64)
    out[order] = _lpt(length[order].astype(np.int64), machines)
    return out


@compiled
def _lpt(p: IntArray, machines: int) -> IntArray:
    """A heap of (load, machine), the lowest number first among equals."""
    load, name = np.zeros(machines, np.int64), np.arange(machines)
    out = np.empty(len(p), np.int64)
    for j in range(len(p)):
        out[j] = name[0]
        new, who = load[0] + p[j], name[0]
        at = 0
        while True:
            child = 2 * at + 1
            if child >= machines:
                break
            if child + 1 < machines and (load[child + 1] < load[child] or (load[child + 1] == load[child] and name[child + 1] < name[child])):
                child += 1
            if load[child] < new or (load[child] == new and name[child] < who):
                load[at], name[at] = load[child], name[child]
                at = child
            else:
                break
        load[at], name[at] = new, who
    return out


def multifit(length: IntArray, machines: int, low: int, high: int) -> IntArray | None:
    """MULTIFIT: first fit decreasing at loads halved between `low` and `high`; the machine of each job at the least that went, or None.

    At most 13/11 of the optimum when run to the end. O(n m) a halving. Source: Coffman, Garey, Johnson (1978), doi 10.1137/0207001.
    """
    if len(length) * machines > MOST_FITS:
        return None
    order = np.argsort(-length, kind="stable")
    falling, best = length[order].astype(np.int64), None
    for _ in range(MULTIFIT_HALVINGS):
        if low > high:
            break
        middle = (low + high) // 2
        found = _first_fit(falling, machines, middle)
        if found[0] >= 0:
            best, high = found, middle - 1
        else:
            low = middle + 1
    if best is None:
        return None
    out = np.empty(len(length), np.int64)
    out[order] = best
    return out


@compiled
def _first_fit(p: IntArray, machines: int, most: int) -> IntArray:
    """Machines of the jobs, or -1 for the first of them when they do not fit."""
    load = np.zeros(machines, np.int64)
    out = np.empty(len(p), np.int64)
    for j in range(len(p)):
        b = 0
        while b < machines and load[b] + p[j] > most:
            b += 1
        if b == machines:
            out[0] = -1
            break
        load[b] += p[j]
        out[j] = b
    return out


@dataclass(frozen=True)
class Core:
    """What is left: `jobs` on the first `machines` of all; `settled` [n] is the machine of every other job, -1 for `jobs`.

    Any assignment of the core with loads of at most T, T from `low` to `high` - 1, makes one of the whole, and there is one of the whole only if
    there is one of the core.
    """

    jobs: IntArray
    machines: int
    settled: IntArray

    def whole(self, machine: IntArray) -> IntArray:
        """Machines of all jobs from those of the core's."""
        out = self.settled.copy()
        out[self.jobs] = machine
        return out


def core(length: IntArray, machines: int, low: int, high: int) -> Core:
    """Settle what can be, for loads from `low` (a bound, at least the longest job) to `high` - 1. O(n log n).

    - A job that goes with no other, not even the shortest, is alone.
    - With n = a m + r, 0 < r < m: where any a jobs fit into one machine and no a + 2 do, r machines hold a + 1 jobs and the others a, and it is
      best to put the r (a + 1) shortest on those: an exchange with longer jobs only shortens the machines of a + 1, and the others fit anyhow.
    """
    settled = np.full(len(length), -1, np.int64)
    left = np.argsort(-length, kind="stable")
    while len(left) > machines > 1 and length[left[0]] + length[left[-1]] > high - 1:
        machines -= 1
        settled[left[0]] = machines
        left = left[1:]
    each, rest = divmod(len(left), machines)
    if each and rest and length[left[:each]].sum() <= low and (len(left) < each + 2 or length[left[-(each + 2) :]].sum() > high - 1):
        count = each * (machines - rest)
        settled[left[:count]] = rest + np.arange(count) // each
        left, machines = left[count:], rest
    return Core(left, machines, settled)


__all__ = ["Core", "core", "longest_first", "multifit"]
