"""Chains of jobs on parallel slots that may only begin at the times of stages.

There are K stages, numbered 1 .. K, node 0 before and node K + 1 after them. A *place* runs from a node to a later one; places of a slot follow each
other, from its idle head (which begins at node 0 and holds no job) to node K + 1. Each other place holds one job. Stage k stands at `time[k]` (in
whole steps, never falling), so a place lasts time[end] - time[start] steps, and the sum over all places is slots x time[K + 1] whatever they hold. A
job that is longer than its place lacks steps; a stage whose jobs have more tokens than its `cap` is over it. `slot_annealing` moves jobs, their ends
and the stages' times until they fit; `earliest` turns any chains into times at which every job fits: the longest paths of the stages.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headroom.solvers.compiled import compiled

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Chains:
    """Jobs [N] with `length` steps and `tokens`; places [N + J] (those from N on are the slots' idle heads): `start`, `end` node, `after`, `before`
    (place, -1: none), `job` (-1: none); nodes [K + 2]: `time`, `cap`, `load` in tokens. `rank`: jobs by rising length."""

    length: IntArray
    tokens: IntArray
    start: IntArray
    end: IntArray
    after: IntArray
    before: IntArray
    job: IntArray
    time: IntArray
    cap: IntArray
    load: IntArray
    rank: IntArray

    @property
    def stages(self) -> int:
        """K."""
        return len(self.time) - 2

    def copy(self) -> Chains:
        """With arrays of its own where moves write."""
        changed = {name: getattr(self, name).copy() for name in ("start", "end", "after", "before", "job", "time", "load")}
        return replace(self, **changed)

    def start_of(self) -> IntArray:
        """The stage of each job [N], 1 .. K."""
        found = np.zeros(len(self.length), np.int64)
        jobs = len(self.length)
        found[self.job[:jobs]] = self.start[:jobs]
        return found

    def slot_of(self) -> IntArray:
        """The slot of each job [N]. O(N)."""
        jobs, slots = len(self.length), len(self.start) - len(self.length)
        found = np.zeros(jobs, np.int64)
        at, slot = self.after[jobs:], np.arange(slots)
        while len(at):
            slot, at = slot[at >= 0], at[at >= 0]
            found[self.job[at]] = slot
            at = self.after[at]
        return found


def listed(length: IntArray, slots: int, order: IntArray, until: float = math.inf) -> tuple[IntArray, IntArray, IntArray]:
    """Jobs one by one to the slot that is free first: start step [N], the job before it in its slot (-1: none) and the slot [N]. O(N log slots).

    A slot whose first job takes more than `until` steps gets no other, as long as there are other slots.
    """
    start, before, slot = (np.full(len(length), -1, np.int64) for _ in range(3))
    last = [-1] * slots
    free = [(0, s) for s in range(slots)]
    steps = length.tolist()
    for j in order.tolist():
        at, s = free[0]
        if at == 0 and steps[j] > until and len(free) > 1:
            heapq.heappop(free)
        else:
            heapq.heapreplace(free, (at + steps[j], s))
        start[j], before[j], slot[j], last[s] = at, last[s], s, j
    return start, before, slot


def chains_of(length: IntArray, tokens: IntArray, slots: int, order: IntArray, caps: IntArray, until: float = math.inf) -> Chains:
    """Chains of a list schedule: jobs by their starts go to stages with their share of the tokens by `caps` [stages]. O(N log N).

    More stages are appended where a chain needs them; a stage that holds a job above its cap gets that job's tokens as its cap.
    """
    jobs = len(length)
    start, before, slot = listed(length, slots, order, until)
    by_start = np.argsort(start, kind="stable")
    # A job without tokens counts a little, so that jobs without any are shared out as well.
    weight = tokens + max(1e-9, 1e-3 * float(tokens.mean()))
    middle = np.cumsum(weight[by_start]) - weight[by_start] / 2
    bounds = np.cumsum(np.maximum(caps, 1e-9)) * (float(weight.sum()) / float(np.maximum(caps, 1e-9).sum()))
    wanted = np.minimum(np.searchsorted(bounds, middle), len(caps) - 1) + 1
    node = np.zeros(jobs, np.int64)
    for j, k in zip(by_start.tolist(), wanted.tolist(), strict=True):
        node[j] = max(k, node[before[j]] + 1) if before[j] >= 0 else k
    stages = max(len(caps), int(node.max()))
    cap = np.concatenate([caps, np.full(stages - len(caps), caps.max())])
    return linked(length, tokens, slots, start, before, slot, node, cap)


def linked(
    length: IntArray, tokens: IntArray, slots: int, start: IntArray, before: IntArray, slot: IntArray, node: IntArray, caps: IntArray
) -> Chains:
    """Chains of jobs [N] that begin at step `start` and stage `node` (1 .. K) after the job `before` (-1: none) of their slot. O(N log N)."""
    jobs, stages = len(length), len(caps)
    cap = np.concatenate([[0], caps, [0]]).astype(np.int64)
    np.maximum.at(cap, node, tokens)
    place = np.empty(jobs, np.int64)
    by_node = np.lexsort((start, node))
    place[by_node] = np.arange(jobs)
    after, previous = np.full(jobs + slots, -1), np.full(jobs + slots, -1)
    previous[place] = np.where(before >= 0, place[before], jobs + slot)
    after[previous[:jobs]] = np.arange(jobs)
    begin = np.zeros(jobs + slots, np.int64)
    begin[place] = node
    finish = np.where(after >= 0, begin[after], stages + 1)
    held = np.concatenate([by_node, np.full(slots, -1)])
    time = np.zeros(stages + 2, np.int64)
    np.maximum.at(time, node, start)
    time[-1] = int((start + length).max())
    time = np.maximum.accumulate(time)
    load = np.bincount(node, tokens, stages + 2).astype(np.int64)
    return Chains(length, tokens, begin, finish, after, previous, held, time, cap, load, np.argsort(length, kind="stable"))


def earliest(chains: Chains) -> IntArray:
    """The earliest time of each node [K + 2] at which every job fits into its place: longest paths. O(N log N)."""
    order = np.argsort(chains.end, kind="stable")
    steps = np.where(chains.job >= 0, chains.length[chains.job], 0)
    return _earliest(chains.start[order], chains.end[order], steps[order], np.zeros(len(chains.time), np.int64))


def stretched(chains: Chains, time: IntArray, total: int) -> Chains:
    """The same chains with times that end at `total` steps, in proportion."""
    scaled = np.round(time * (total / max(1, int(time[-1])))).astype(np.int64)
    scaled[-1] = total
    return replace(chains.copy(), time=np.maximum.accumulate(scaled))


@compiled
def _earliest(start: IntArray, end: IntArray, steps: IntArray, time: IntArray) -> IntArray:
    at = 0
    for k in range(1, len(time)):
        time[k] = time[k - 1]
        while at < len(end) and end[at] == k:
            time[k] = max(time[k], time[start[at]] + steps[at])
            at += 1
    return time


__all__ = ["Chains", "chains_of", "earliest", "linked", "listed", "stretched"]
