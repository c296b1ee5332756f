"""Offline heuristics for slots: all lengths are known.

| name                              | what it does                                                                             |
|-----------------------------------|------------------------------------------------------------------------------------------|
| `lpt`                             | longest request first, each into the slot that is free first                              |
| `multifit`                        | first fit by falling length into slots of the least length for which that works           |
| `shortest_first`, `longest_first` | static batches of requests sorted by length: a prefill never interrupts decoding           |

`lpt` and `multifit` balance decode steps and then prefill each request as soon as its slot is free, together with all that begin at the same step,
split where that takes less time. Nothing decodes during a prefill, so prefills cost time and do not change the order of anything. All return None
where a prompt is above the last prefill level. OPT in the guarantees is the least makespan where prefill takes no time (P||Cmax).
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from headroom.formulations.request_packing import StagedPlan, staged_plan
from headroom.heuristics.request_packing_stage_policies import Waves, cheapest_batches
from headroom.heuristics.request_packing_stages import plan_of, slot_decisions, slot_deployment, too_long
from headroom.instances.request_packing import RequestPacking

IntArray = npt.NDArray[np.int64]


def lpt(instance: RequestPacking, rng: np.random.Generator) -> StagedPlan | None:
    """Longest processing time first: at most 4/3 - 1/(3J) OPT (Graham 1969, doi 10.1137/0117039). O(N log N)."""
    if too_long(instance) is not None:
        return None
    return plan_of_slots(instance, list_schedule(instance, longest_first_order(instance)))


def longest_first_order(instance: RequestPacking) -> IntArray:
    """Requests by falling output tokens, equal ones in the instance's order [N]."""
    return np.argsort(-instance.requests.output_tokens, kind="stable")


def list_schedule(instance: RequestPacking, order: IntArray) -> IntArray:
    """The slot of each request [N]: in this order, each to the slot that is free first, of equals the first slot. O(N log J)."""
    output, found = instance.requests.output_tokens.tolist(), np.empty(instance.count, np.int64)
    heap = [(0, slot) for slot in range(min(instance.slots or 0, instance.count))]
    for j in order.tolist():
        end, slot = heap[0]
        heapq.heapreplace(heap, (end + output[j], slot))
        found[j] = slot
    return found


def multifit(instance: RequestPacking, rng: np.random.Generator) -> StagedPlan | None:
    """MULTIFIT: the least length at which bisection finds that first fit by falling length needs no more than the slots.

    Bisection from the mean and the longest request up to LPT's makespan, to the last step: below 13/11 OPT + 1 step, and never above LPT (Coffman,
    Garey and Johnson 1978, doi 10.1137/0207001; 13/11: Yue 1990). O(N log N log(sum of lengths)).
    """
    if too_long(instance) is not None:
        return None
    from headroom.solvers.greedy_packing import first_fit

    output, slots = instance.requests.output_tokens, instance.slots or 1
    order = longest_first_order(instance)
    best = list_schedule(instance, order)
    load = np.zeros(slots, np.int64)
    np.add.at(load, best, output)
    low, high = max(int(output.max()), -(-int(output.sum()) // slots)), int(load.max())
    while low < high:
        middle = (low + high) // 2
        found = first_fit(output[order], middle, slots)
        if found is None:
            low = middle + 1
        else:
            high = middle
            best[order] = found
    return plan_of_slots(instance, best)


def plan_of_slots(instance: RequestPacking, slot: IntArray) -> StagedPlan:
    """The slots [N] run their requests longest first; a stage wherever requests begin. O(N log N + N prefill levels)."""
    output = instance.requests.output_tokens
    order = np.lexsort((-output, slot))
    ends = np.cumsum(output[order])
    starts = np.flatnonzero(np.diff(slot[order], prepend=-1))
    before = np.append(0, ends)[starts]
    begin = ends - output[order] - np.repeat(before, np.diff(np.append(starts, len(order))))
    total = int((begin + output[order]).max())
    by_begin = np.argsort(begin, kind="stable")
    requests, begin = order[by_begin], begin[by_begin]
    first = np.flatnonzero(np.diff(begin, prepend=-1))
    lasts = np.append(first[1:], len(begin))
    steps = np.diff(np.append(begin[first], total))
    admissions = np.column_stack([requests, slot[requests]])
    if not instance.prefill_levels:
        return staged_plan((admissions[a:b], int(m)) for a, b, m in zip(first, lasts, steps, strict=True))
    deployment = slot_deployment(instance, 0.0, output)
    stages: list[tuple[IntArray, int]] = []
    for a, b, m in zip(first, lasts, steps, strict=True):
        batches = cheapest_batches(deployment, [(int(j), int(s)) for j, s in admissions[a:b]])
        stages += [(np.array(batch, np.int64), 0) for batch in batches]
        stages[-1] = (stages[-1][0], int(m))
    return staged_plan(stages)


class _Sorted(Waves):
    """Static batches, by falling or rising length."""

    sign = -1

    def _order(self) -> IntArray:
        return np.argsort(self.sign * self.deployment.predicted_output_tokens, kind="stable")


class _Rising(_Sorted):
    sign = 1


def longest_first(instance: RequestPacking, rng: np.random.Generator) -> StagedPlan | None:
    """Static batches of as many requests as slots, longest first; each is prefilled when the last request of the one before has finished.

    Sorting makes the lengths within a batch alike, so that slots idle little; the sum of the batches' longest requests is least among all static
    batches. O(N log N).
    """
    return _static(instance, _Sorted)


def shortest_first(instance: RequestPacking, rng: np.random.Generator) -> StagedPlan | None:
    """`longest_first` in the opposite order: the same idea, with most requests finished early. O(N log N)."""
    return _static(instance, _Rising)


def _static(instance: RequestPacking, policy: type[_Sorted]) -> StagedPlan | None:
    if too_long(instance) is not None:
        return None
    decider = policy(slot_deployment(instance, 0.0, instance.requests.output_tokens))
    return plan_of(instance, list(slot_decisions(instance, decider)))


__all__ = ["list_schedule", "longest_first", "longest_first_order", "lpt", "multifit", "plan_of_slots", "shortest_first"]
