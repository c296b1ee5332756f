"""Jobs in batches that begin and end together: groups of slots, each taking jobs of about the same length at a time, longest first.

With many jobs by slot the jobs of a batch are almost equally long, so that hardly a step is lost, and a batch that fills one stage wastes no prefill.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def lockstep(length: IntArray, tokens: IntArray, slots: int, cap: int, width: int) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Batches of at most `width` jobs and `cap` tokens (or one job): start step, job before in the slot (-1: none), slot and batch (1, 2, ...) [N].

    Batches are numbered by their starts. Groups have slots / (number of groups) slots, whole and as equal as can be. O(N log N).
    """
    jobs, groups = len(length), -(-slots // max(1, min(width, slots)))
    edges = [slots * g // groups for g in range(groups + 1)]
    last = [-1] * slots
    free = [(0, g) for g in range(groups)]
    order = np.argsort(-length, kind="stable").tolist()
    steps, weight = length.tolist(), tokens.tolist()
    start, before, slot, batch = (np.full(jobs, -1, np.int64) for _ in range(4))
    waiting: list[int] = []
    at = number = 0
    while waiting or at < jobs:
        now, g = free[0]
        first, end = edges[g], edges[g + 1]
        take = max(0, min(end - first - len(waiting), jobs - at))
        chosen, waiting = waiting[: end - first] + order[at : at + take], waiting[end - first :]
        at += take
        over = sum(weight[j] for j in chosen) - cap
        while over > 0 and len(chosen) > 1:
            # The lightest job that makes the rest fit waits for the next batch, or else the heaviest.
            fits = [j for j in chosen if weight[j] >= over]
            out = min(fits, key=weight.__getitem__) if fits else max(chosen, key=weight.__getitem__)
            chosen.remove(out)
            waiting.append(out)
            over -= weight[out]
        number += 1
        heapq.heapreplace(free, (now + max(steps[j] for j in chosen), g))
        for s, j in enumerate(chosen, first):
            start[j], before[j], slot[j], batch[j], last[s] = now, last[s], s, number, j
    return start, before, slot, batch


__all__ = ["lockstep"]
