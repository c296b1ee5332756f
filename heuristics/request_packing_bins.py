"""Offline heuristics for bins: all requests and their sizes are known, and sorted.

| name                  | what it does                                                                                         |
|-----------------------|------------------------------------------------------------------------------------------------------|
| `ffd`, `bfd`          | first and best fit by falling size; room is true room, groups counted                                  |
| `ffd_prefix_blind`    | first fit by falling size of an engine that does not see that requests share anything                  |
| `ffd_grouped`         | groups kept together: whole groups by falling size, large ones split first                             |
| `minimum_bin_slack`   | bin after bin, the set of requests that leaves least slack                                             |

All return None where a request is larger than a bin. OPT in the guarantees is the fewest bins, and they are about plain instances only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from headroom.formulations.request_packing import BinPlan, bin_plan, evaluate
from headroom.heuristics.request_packing_online import Arrival, bin_deployment, group_names
from headroom.heuristics.request_packing_policies import BestFit, FirstFit, Packing
from headroom.instances.request_packing import RequestPacking

IntArray = npt.NDArray[np.int64]
SEARCH = 2_000
"""Choices that `minimum_bin_slack` tries for a bin, ..."""
SEARCH_IN_ALL = 200_000_000
"""... fewer where there are so many bins that these would not be enough: seconds."""
MOST_SEQUENCES = 200_000
"""Requests up to which `ffd_grouped` also places requests one by one."""


def fits(instance: RequestPacking) -> bool:
    """Whether every request fits into an empty bin: then, and only then, there is a plan."""
    return bool((instance.padded <= (instance.capacity_tokens or 0)).all())


def falling(size: IntArray) -> IntArray:
    """Requests by falling size, equal ones in the instance's order [N]."""
    return np.argsort(-size, kind="stable")


def ffd(instance: RequestPacking, rng: np.random.Generator) -> BinPlan | None:
    """First fit by falling size: each request, with its group's overhead if it is new to the bin, into the first bin with room.

    At most 11/9 OPT + 6/9 bins (Dósa 2007, doi 10.1007/978-3-540-74450-4_1). O(N log N); with groups, times the bins that hold a request's group.
    """
    return _decreasing(instance, FirstFit)


def bfd(instance: RequestPacking, rng: np.random.Generator) -> BinPlan | None:
    """Best fit by falling size: each request into the bin that it leaves with least room.

    At most 11/9 OPT + 4 bins (Johnson et al. 1974, doi 10.1137/0203025). O(N log N); with groups, times the bins that hold a request's group.
    """
    return _decreasing(instance, BestFit)


def _decreasing(instance: RequestPacking, policy: Callable[..., Packing]) -> BinPlan | None:
    if not fits(instance):
        return None
    order = falling(instance.padded)
    if not instance.plain:
        return bin_plan(in_order(instance, policy, order))
    from headroom.solvers import greedy_packing

    size, capacity = instance.padded[order], instance.capacity_tokens or 0
    found = greedy_packing.best_fit(size, capacity) if policy is BestFit else greedy_packing.first_fit(size, capacity)
    assert found is not None
    return bin_plan(_unsorted(found, order))


def _unsorted(found: IntArray, order: IntArray) -> IntArray:
    bins = np.empty_like(found)
    bins[order] = found
    return bins


def in_order(instance: RequestPacking, policy: Callable[..., Packing], order: IntArray) -> IntArray:
    """The bin of each request [N] when the policy is given all requests in this order, with their true sizes."""
    decider = policy(bin_deployment(instance, 0.0))
    prompt, output, size = (x[order].tolist() for x in (instance.requests.prompt_tokens, instance.requests.output_tokens, instance.size))
    names, overhead = group_names(instance), instance.overhead[instance.group_of].tolist()
    bins = np.empty(instance.count, np.int64)
    for at, j in enumerate(order.tolist()):
        arrival = Arrival(prompt[at], output[at], names[j], overhead[j])
        bins[j] = decider.decide(arrival, ())
        decider.placed(arrival, int(bins[j]), size[at])
    return bins


def ffd_prefix_blind(instance: RequestPacking, rng: np.random.Generator) -> BinPlan | None:
    """First fit by falling size, each request with its own overhead and padding: what an engine does that is blind to shared prefixes.

    Its bins hold less than it believes, since overhead and padding count once for a group, so the plan is feasible; what they have left stays empty.
    On plain instances it is `ffd`. O(N log N).
    """
    if not fits(instance):
        return None
    from headroom.solvers.greedy_packing import first_fit

    order = falling(instance.padded)
    found = first_fit(instance.padded[order], instance.capacity_tokens or 0)
    assert found is not None
    return bin_plan(_unsorted(found, order))


def chunks(instance: RequestPacking) -> tuple[IntArray, IntArray]:
    """Groups kept together as far as a bin can hold them: the chunk of each request [N], and each chunk's load in tokens.

    A group that fits into a bin is one chunk; another one is split by first fit by falling size, and each part needs the overhead.
    Every request must fit into a bin. O(N log N).
    """
    from headroom.solvers.greedy_packing import first_fit

    group, multiple, capacity = instance.group_of, instance.padding_multiple, instance.capacity_tokens or 0
    order = np.lexsort((-instance.size, group))
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    ends = np.append(starts[1:], instance.count)
    tokens = np.add.reduceat(instance.size[order], starts)
    load = -(-tokens // multiple) * multiple + instance.overhead[group[order[starts]]]
    chunk = np.empty(instance.count, np.int64)
    whole = load <= capacity
    number = np.cumsum(whole) - 1
    chunk[order] = np.repeat(number, ends - starts)
    pieces, made = [load[whole]], int(whole.sum())
    for g in np.flatnonzero(~whole):
        members = order[starts[g] : ends[g]]
        overhead = instance.overhead[group[members[0]]]
        part = first_fit(instance.size[members], int((capacity - overhead) // multiple * multiple))
        assert part is not None
        filled = np.bincount(part, instance.size[members]).astype(np.int64)
        pieces.append(-(-filled // multiple) * multiple + overhead)
        chunk[members] = made + part
        made += len(filled)
    return chunk, np.concatenate(pieces)


def ffd_grouped(instance: RequestPacking, rng: np.random.Generator) -> BinPlan | None:
    """Groups kept together, then split: the best of four packings.

    First fit and best fit by falling load of whole `chunks`, which pay a group's overhead as rarely as can be; and, up to `MOST_SEQUENCES` requests,
    both over the requests one by one, groups by falling tokens and each group's requests by falling size, which split a group where that fills a bin.
    On plain instances the better of FFD and BFD. O(N log N), for the last two times the bins that hold a request's group.
    """
    if not fits(instance):
        return None
    from headroom.solvers.greedy_packing import best_fit, first_fit

    capacity = instance.capacity_tokens or 0
    chunk, load = chunks(instance)
    order = falling(load)
    whole = first_fit(load[order], capacity)
    assert whole is not None
    found = [_unsorted(whole, order)[chunk], _unsorted(best_fit(load[order], capacity), order)[chunk]]
    if not instance.plain and instance.count <= MOST_SEQUENCES:
        group = instance.group_of
        total = np.bincount(group, instance.size)[group]
        one_by_one = np.lexsort((-instance.size, group, -total))
        found += [in_order(instance, policy, one_by_one) for policy in (FirstFit, BestFit)]
    return min((bin_plan(bins) for bins in found), key=lambda plan: evaluate(instance, plan).objective)


def minimum_bin_slack(instance: RequestPacking, rng: np.random.Generator) -> BinPlan | None:
    """Bin after bin: the largest request left, and with it the set of others that leaves the least slack, by a limited search.

    With groups the things packed are `chunks`. O(N log N) and `SEARCH` choices a bin, fewer where bins are more than `SEARCH_IN_ALL` / `SEARCH`.
    No guarantee. Source: Gupta and Ho (1999), the largest item fixed as in Fleszar and Hindi (2002,
    doi 10.1016/S0305-0548(00)00082-4).
    """
    if not fits(instance):
        return None
    from headroom.solvers.greedy_packing import least_slack

    capacity = instance.capacity_tokens or 0
    if instance.plain:
        chunk, load = np.arange(instance.count), instance.padded
    else:
        chunk, load = chunks(instance)
    expected = int(load.sum()) // capacity + 1
    return bin_plan(least_slack(load, capacity, min(SEARCH, SEARCH_IN_ALL // expected))[chunk])


__all__ = ["bfd", "chunks", "falling", "ffd", "ffd_grouped", "ffd_prefix_blind", "fits", "in_order", "minimum_bin_slack"]
