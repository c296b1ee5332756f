"""Packings of groups whose requests are small beside a bin: how much of each group goes into which bin, first as if tokens could be split anywhere.

What is then left to decide is which groups share bins, and every part of a group in another bin costs its overhead once more. The search anneals the
overheads of so many bins and of a place where waits what has none: it pours two of them together and fills the first again, whole groups first, then
a part of one. A part costs little where its group's overhead is small: so groups with large overheads stay whole, and some with small ones fill gaps.

`placed_requests` then finds requests for the parts: bins that share fewest groups with bins that are not done come first, and a group that is
shared gives what fills the bin best.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from headroom.solvers.compiled import compiled
from headroom.solvers.grouped_patterns import GroupedItems, best_grouped_pattern

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
SLICES: Final = 60
"""Temperatures of an annealing; a stop is heard between them."""
PART_STEPS: Final = 100_000_000
"""Of the table of a bin."""
MANY_COPIES, LAST_SHARE = 60, 8
"""Copies of a group from which a part of it is filled by the table only in its last one of so many shares of room."""
WAITING, ANY_PART, LEADS = 0.15, 0.3, 0.2
"""How often a bin is filled from what waits, and how often the group that may be cut is not the one with the least overhead."""
HOT, COLD = 2.0, 0.01
"""First and last temperature, in medians of overheads."""


def annealed_pieces(
    items: GroupedItems, bins: int, steps: int, rng: np.random.Generator, stop: Callable[[], bool], room_worth: float = 0.7, margin: int = 0
) -> IntArray:
    """Tokens of each group in each of `bins` bins, and last what waits [bins + 1][groups]: within capacity, overheads and padding counted.

    The best of an annealing of `steps` steps, each O(groups). Tokens count as if requests could be cut anywhere; `margin` is what each bin leaves
    free for that they cannot. `room_worth`: what free room costs beside overheads, between 0 and 1.
    """
    capacity = items.capacity - margin
    room = np.maximum(capacity - items.overhead, items.multiple) // items.multiple * items.multiple
    state = np.array([int(rng.integers(1, 2**62))], np.uint64)
    tokens = items.tokens(items.demand)
    copies = np.bincount(items.group, items.demand, len(tokens))
    # A part of few requests is seldom of the size that is wanted: so cuts of groups with few, large ones cost more.
    price = items.overhead + np.round(tokens / np.maximum(copies, 1) ** 2).astype(np.int64)
    held = np.zeros((bins + 1, len(tokens)), np.int64)
    held[bins] = tokens
    best, cost, least = held.copy(), 0.0, 0.0  # beside the cost of the first state
    typical = float(np.median(items.overhead[tokens > 0])) + items.multiple
    for n in range(SLICES):
        if stop():
            break
        temperature = typical * HOT * (COLD / HOT) ** (n / max(1, SLICES - 1))
        cost += _anneal(held, items.overhead, price, room, items.multiple, capacity, steps // SLICES, temperature, room_worth, state)
        if cost < least:
            best, least = held.copy(), cost
    return best


def placed_requests(items: GroupedItems, pieces: IntArray, stop: Callable[[], bool]) -> tuple[IntArray, IntArray]:
    """Patterns [bins][m] for the parts [bins][groups], and the copies [m] that found no place. The table of a bin for each part that is shared.

    A group has all that is left of it in the last bin that it is in. In the others all of its parts but one are filled up to their size; one, of the
    group with most copies left, fills what room there is.
    """
    bins, m = len(pieces), len(items.size)
    left = items.demand.copy()
    found = np.zeros((bins, m), np.int64)
    to_come = (pieces > 0).sum(axis=0)
    waiting = list(range(bins))
    while waiting and not stop():
        shared = [int(((pieces[b] > 0) & (to_come > 1)).sum()) for b in waiting]
        b = waiting.pop(int(np.argmin(shared)))
        groups = np.flatnonzero(pieces[b])
        last = np.isin(items.group, groups[to_come[groups] == 1])
        pattern = np.where(last, left, 0)
        if items.load(pattern) > items.capacity:
            pattern = _part(items, pattern, items.capacity)
        several = groups[to_come[groups] > 1]
        copies = np.bincount(items.group, left, len(items.overhead))[several]
        several = several[np.argsort(copies, kind="stable")]
        for g in several.tolist():
            free = items.capacity - items.load(pattern)
            if g != several[-1]:
                free = min(free, int(items.overhead[g] + -(-pieces[b, g] // items.multiple) * items.multiple))
            pattern = pattern + _part(items, np.where(items.group == g, left, 0), free)
        found[b] = pattern
        left = left - pattern
        to_come[groups] -= 1
    return found, left


def _part(items: GroupedItems, copies: IntArray, capacity: int) -> IntArray:
    """The most tokens of these copies [m] within a capacity [m]; of as few copies as that takes, so that small ones are left for other bins.

    Of one group with many copies, large ones first until a small part of the room is left: the small ones that remain fill that as well as any.
    """
    there = np.flatnonzero((copies > 0) & (items.size + items.overhead[items.group] <= capacity))
    found = np.zeros(len(copies), np.int64)
    overhead, multiple = items.overhead, items.multiple
    if len(there) and items.group[there[0]] == items.group[there[-1]]:
        # One group: its overhead is certain, and its tokens have all of a whole number of multiples.
        room = (capacity - int(overhead[items.group[there[0]]])) // multiple * multiple
        capacity, overhead, multiple = room, np.zeros_like(overhead), 1
        if int(copies[there].sum()) > MANY_COPIES:
            for i in there.tolist():  # by falling size
                found[i] = min(int(copies[i]), (capacity - room // LAST_SHARE) // int(items.size[i]))
                capacity -= int(found[i] * items.size[i])
            there = there[(copies[there] > found[there]) & (items.size[there] <= capacity)]
    if len(there):
        some = GroupedItems(items.size[there], items.group[there], copies[there] - found[there], overhead, multiple, capacity)
        value = some.size * int(some.demand.sum() + 1) - 1
        found[there] += best_grouped_pattern(some, value, np.zeros_like(overhead), None, PART_STEPS).copies
    return found


@compiled
def _draw(state: npt.NDArray[np.uint64]) -> float:
    """Uniform in [0, 1): xorshift (doi 10.18637/jss.v008.i14)."""
    x = state[0]
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    state[0] = x
    return float(x >> np.uint64(11)) / 9007199254740992.0


@compiled
def _anneal(
    held: IntArray, overhead: IntArray, price: IntArray, room: IntArray, multiple: int, capacity: int, steps: int, temperature: float,
    room_worth: float, state: npt.NDArray[np.uint64],
) -> float:  # fmt: skip
    """Steps at one temperature; returns the change of the cost: overheads, those of what waits as few as can be, and `room_worth` of free tokens."""
    bins, groups = held.shape
    wait = bins - 1
    load, paid = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
    for b in range(bins):
        for g in range(groups):
            if held[b, g] > 0:
                load[b] += -(-held[b, g] // multiple) * multiple + overhead[g]
                paid[b] += -(-held[b, g] // room[g]) * price[g]
    gained = 0.0
    union, into = np.empty(groups, np.int64), np.zeros(groups, np.int64)
    for _ in range(steps):
        a = int(_draw(state) * wait)
        b = wait if load[wait] > 0 and _draw(state) < WAITING else int(_draw(state) * wait)
        if a == b:
            continue
        count, part = 0, -1
        for g in range(groups):
            if held[a, g] + held[b, g] > 0:
                union[count] = g
                count += 1
                if part < 0 or price[g] < price[part]:
                    part = g
        if count == 0:
            continue
        if _draw(state) < ANY_PART:
            part = union[int(_draw(state) * count)]
        # Sometimes one leads, all of it that a bin can hold; whole groups follow in any order, then the one that may be cut.
        free, others, paid_a, paid_b, lead = capacity, 0, 0, 0, -1
        if count > 1 and _draw(state) < LEADS:
            lead = union[int(_draw(state) * count)]
            if lead == part:
                lead = -1
        if lead >= 0:
            tokens = held[a, lead] + held[b, lead]
            into[lead] = min(tokens, room[lead])
            free -= -(-into[lead] // multiple) * multiple + overhead[lead]
            paid_a += price[lead]
            if tokens > into[lead]:
                others += -(-(tokens - into[lead]) // multiple) * multiple + overhead[lead]
                paid_b += price[lead] * (-(-(tokens - into[lead]) // room[lead]) if b == wait else 1)
        for k in range(count):
            swap = k + int(_draw(state) * (count - k))
            union[k], union[swap] = union[swap], union[k]
            g = union[k]
            if g in (part, lead):
                continue
            tokens = held[a, g] + held[b, g]
            whole = -(-tokens // multiple) * multiple + overhead[g]
            if whole <= free:
                into[g] = tokens
                free -= whole
                paid_a += price[g]
            else:
                into[g] = 0
                others += whole
                paid_b += price[g] * (-(-tokens // room[g]) if b == wait else 1)
        tokens, h = held[a, part] + held[b, part], overhead[part]
        whole = -(-tokens // multiple) * multiple + h
        if whole <= free:
            into[part] = tokens
            free -= whole
            paid_a += price[part]
        else:
            some = (free - h) // multiple * multiple
            if b == wait:
                more = price[part] * (1 + -(-(tokens - some) // room[part]) - -(-tokens // room[part]))
                if room_worth * (some + h) <= more:
                    some = 0
            elif others + whole <= capacity:
                some = 0
            some = max(some, 0)
            into[part] = some
            others += whole - some
            paid_b += price[part] * (-(-(tokens - some) // room[part]) if b == wait else 1)
            if some > 0:
                free -= some + h
                paid_a += price[part]
        if b != wait and others > capacity:
            continue
        change = float(paid_a + paid_b - paid[a] - paid[b])
        change += room_worth * (free - (capacity - load[a]))
        if b != wait:
            change += room_worth * (load[b] - others)
        if change > 0 and _draw(state) >= math.exp(-change / temperature):
            continue
        for k in range(count):
            g = union[k]
            tokens = held[a, g] + held[b, g]
            held[a, g] = into[g]
            held[b, g] = tokens - into[g]
        load[a], load[b], paid[a], paid[b] = capacity - free, others, paid_a, paid_b
        gained += change
    return gained


__all__ = ["annealed_pieces", "placed_requests"]
