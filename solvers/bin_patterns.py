"""Patterns of one bin: which copies of items fit together, the most valuable of them, and all that are valuable enough.

Items have whole sizes and values and a number of copies; a pattern takes at most so many of each, within a whole capacity. All figures are whole,
so nothing here is rounded. Items come in order of falling size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from headroom.solvers.compiled import compiled

IntArray = npt.NDArray[np.int64]
TABLE_CELLS: Final = 40_000_000
"""Up to so many (copy of an item, load) pairs a table of all loads is filled; beyond, branch and bound."""
NODES: Final = 200_000
"""Of branch and bound, before it says what it knows."""
MOST_PLACES: Final = 2_000
"""Items up to which the best single item for each room is tabled."""
WHOLE_PRODUCT: Final = 2**62
QUICK_NODES: Final = 2_000
QUICK_FROM: Final = 200_000
"""Table cells from which a search comes first."""


@dataclass(frozen=True)
class BestPattern:
    """`copies` of each item in the best pattern found, its `value`, and `bound`, which no pattern's value exceeds."""

    copies: IntArray
    value: int
    bound: int


def good_pattern(size: IntArray, value: IntArray, copies: IntArray, capacity: int) -> BestPattern:
    """A valuable pattern in a moment: branch and bound of QUICK_NODES nodes."""
    return _branched(size, value, np.where(value > 0, np.minimum(copies, capacity // size), 0), capacity, QUICK_NODES)


def best_pattern(size: IntArray, value: IntArray, copies: IntArray, capacity: int) -> BestPattern:
    """The most valuable pattern. By a table of all loads where that is small, else by branch and bound of NODES nodes, then a table after all.

    Beyond TABLE_CELLS the table is of sizes in a coarser unit: rounded down they give a bound, rounded up a pattern, and `value` may be less than
    `bound` by what one unit an item is worth. O(min(TABLE_CELLS, capacity sum of copies)).
    """
    most = np.minimum(copies, capacity // size)
    most = np.where(value > 0, most, 0)
    rows = int(most.sum())
    if rows == 0:
        return BestPattern(np.zeros(len(size), np.int64), 0, 0)
    cells = rows * (capacity + 1)
    if cells > QUICK_FROM:
        searched = _branched(size, value, most, capacity, NODES)
        if searched.bound == searched.value:
            return searched
        if cells > TABLE_CELLS:
            return _coarse(size, value, most, capacity, -(-cells // TABLE_CELLS), searched)
    return _tabled(size, value, most, capacity)


def _tabled(size: IntArray, value: IntArray, most: IntArray, capacity: int) -> BestPattern:
    found = np.zeros(len(size), np.int64)
    best = int(_by_table(size, value, most, capacity, found))
    return BestPattern(found, best, best)


def _coarse(size: IntArray, value: IntArray, most: IntArray, capacity: int, unit: int, searched: BestPattern) -> BestPattern:
    """The better of `searched` and what tables in units find."""
    below = _tabled(size // unit, value, most, capacity // unit)
    copies = below.copies
    if int((copies * size).sum()) > capacity:
        copies = _tabled(-(-size // unit), value, most, capacity // unit).copies
    worth, bound = int((copies * value).sum()), min(below.bound, searched.bound)
    return BestPattern(copies, worth, bound) if worth > searched.value else BestPattern(searched.copies, searched.value, bound)


def _branched(size: IntArray, value: IntArray, most: IntArray, capacity: int, nodes: int) -> BestPattern:
    density = np.argsort(-(value / size), kind="stable")
    density = density[most[density] > 0]
    chosen, found = np.zeros(len(density), np.int64), np.zeros(len(size), np.int64)
    best, bound = _by_branching(size[density], value[density], most[density], capacity, nodes, chosen)
    found[density] = chosen
    return BestPattern(found, int(best), int(bound))


@compiled
def _by_table(size: IntArray, value: IntArray, most: IntArray, capacity: int, found: IntArray) -> int:
    rows = most.sum()
    best = np.zeros(capacity + 1, np.int64)
    taken = np.zeros((rows, capacity + 1), np.bool_)
    row = 0
    for i in range(len(size)):
        s, v = size[i], value[i]
        for _ in range(most[i]):
            mark = taken[row]
            for c in range(capacity, s - 1, -1):
                other = best[c - s] + v
                if other > best[c]:
                    best[c] = other
                    mark[c] = True
            row += 1
    left = capacity
    for i in range(len(size) - 1, -1, -1):
        for _ in range(most[i]):
            row -= 1
            if taken[row, left]:
                left -= size[i]
                found[i] += 1
    return int(best[capacity])


@compiled
def _fitting(ascending: IntArray, room: int) -> int:
    """How many of the sizes are at most `room`."""
    low, high = 0, len(ascending)
    while low < high:
        middle = (low + high) >> 1
        if ascending[middle] <= room:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _by_branching(size: IntArray, value: IntArray, most: IntArray, capacity: int, nodes: int, found: IntArray) -> tuple[int, int]:
    """Depth first over items in order of value a unit of size, the most copies first. Returns the best value and a bound.

    Every item has copies. Where one item more fits at most, the best is looked up; where two or three fit, the k-th largest of q takes no more than
    (room - (q - k) smallest) / k, and the best items of these sizes bound what follows.
    """
    n = len(size)
    smallest = np.empty(n + 1, np.int64)
    smallest[n] = capacity + 1
    for i in range(n - 1, -1, -1):
        smallest[i] = min(smallest[i + 1], size[i])
    with_top = n <= MOST_PLACES
    ascending = np.sort(size) if with_top else np.zeros(0, np.int64)
    top = np.zeros((n + 1, n + 1) if with_top else (1, 1), np.int64)  # value of the best of items i, i + 1, ... among the r smallest
    if with_top:
        for i in range(n - 1, -1, -1):
            top[i] = top[i + 1]
            for r in range(_fitting(ascending, size[i]), n + 1):
                if top[i, r] >= value[i]:
                    break
                top[i, r] = value[i]
    now = np.zeros(n, np.int64)
    best, room, worth, visited, first = 0, capacity, 0, 0, 0
    root = 0
    while True:
        # Down: as many of each item as fit, as long as the linear relaxation of the rest may beat the best.
        i = first
        pruned = False
        while i < n:
            bound, left = worth, room
            for j in range(i, n):
                k = min(most[j], left // size[j])
                bound += k * value[j]
                left -= k * size[j]
                if k < most[j] and left > 0:
                    if left <= WHOLE_PRODUCT // max(value[j], 1):
                        bound += left * value[j] // size[j]
                    else:  # the product would not fit into 64 bits: rounded up
                        bound += int(left * (value[j] / size[j]) * (1 + 1e-12)) + 1
                    break
            if visited == 0 and i == 0:
                root = bound
            visited += 1
            if bound <= best:
                pruned = True
                break
            s = smallest[i]
            if with_top and room // 4 < s:
                here = top[i]
                last = here[_fitting(ascending, room)]
                if room < 2 * s:
                    if worth + last > best:
                        best = worth + last
                        found[:i], found[i:] = now[:i], 0
                        for j in range(i, n):
                            if value[j] == last and size[j] <= room:
                                found[j] = 1
                                break
                    pruned = True
                    break
                more = max(last, here[_fitting(ascending, room - s)] + here[_fitting(ascending, room // 2)])
                if room >= 3 * s:
                    three = here[_fitting(ascending, room - 2 * s)] + here[_fitting(ascending, (room - s) // 2)]
                    more = max(more, three + here[_fitting(ascending, room // 3)])
                if worth + more <= best:
                    pruned = True
                    break
            k = min(most[i], room // size[i])
            now[i] = k
            room -= k * size[i]
            worth += k * value[i]
            i += 1
            if room < smallest[i]:
                break
        if not pruned and worth > best:
            best = worth
            found[:] = now
        if visited > nodes:
            return best, root
        # Back: one copy less of the last item that has any.
        for j in range(i, n):
            now[j] = 0
        i = min(i, n) - 1
        while i >= 0 and now[i] == 0:
            i -= 1
        if i < 0:
            return best, best
        now[i] -= 1
        room += size[i]
        worth -= value[i]
        first = i + 1


def patterns_worth(
    size: IntArray, value: IntArray, copies: IntArray, capacity: int, least: int, undominated: bool, most_patterns: int, nodes: int
) -> IntArray | None:
    """All patterns [n][items] worth `least` at least; `undominated`: but those that another replaces, for one item more fits, or a larger one.

    A pattern with a larger item, or one more, can hold whatever the smaller one holds. None where there are more than `most_patterns`, or the search
    takes more than `nodes` nodes. Depth first with the best value of what follows as bound.
    """
    most = np.minimum(copies, capacity // size)
    table = _best_after(size, value, most, capacity) if (len(size) + 1) * (capacity + 1) <= TABLE_CELLS else np.zeros((0, 0), np.int64)
    flat, count = _enumerate(size, value, most, copies, capacity, least, undominated, most_patterns, nodes, table)
    return None if count < 0 else flat[: count * len(size)].reshape(count, len(size)).astype(np.int64)


@compiled
def _best_after(size: IntArray, value: IntArray, most: IntArray, capacity: int) -> IntArray:
    """Most value of items i, i + 1, ... in each room [items + 1][capacity + 1]."""
    n = len(size)
    table = np.zeros((n + 1, capacity + 1), np.int64)
    for i in range(n - 1, -1, -1):
        now = table[i]
        now[:] = table[i + 1]
        s, v = size[i], value[i]
        if v > 0:
            for _ in range(most[i]):
                for c in range(capacity, s - 1, -1):
                    if now[c - s] + v > now[c]:
                        now[c] = now[c - s] + v
    return table


@compiled
def _enumerate(
    size: IntArray, value: IntArray, most: IntArray, copies: IntArray, capacity: int, least: int, undominated: bool, most_patterns: int, nodes: int,
    table: IntArray,
) -> tuple[npt.NDArray[np.int32], int]:
    """The patterns one after the other, and how many; -1 where a limit was met. Items in order of falling size."""
    n = len(size)
    with_table = table.shape[0] > 0
    density = np.zeros(n + 1)
    smallest = capacity + 1
    for i in range(n - 1, -1, -1):
        density[i] = max(density[i + 1], value[i] / size[i]) if most[i] > 0 else density[i + 1]
    for i in range(n):
        if copies[i] > 0:
            smallest = min(smallest, size[i])
    flat = np.zeros(n * 64, np.int32)
    count, visited = 0, 0
    now = np.zeros(n, np.int64)
    room, worth, i = capacity, 0, 0
    while True:
        # Down to a leaf or until what follows cannot be worth enough.
        enough = True
        while i < n:
            visited += 1
            after = table[i, room] if with_table else int(density[i] * room * (1 + 1e-12)) + 1
            if worth + after < least:
                enough = False
                break
            k = min(most[i], room // size[i])
            now[i] = k
            room -= k * size[i]
            worth += k * value[i]
            i += 1
        if visited > nodes:
            return flat, -1
        if enough and worth >= least:
            kept = True
            # One item more, or a larger one in place of one that is there.
            if undominated:
                for j in range(n - 1, -1, -1):
                    if now[j] < copies[j] and size[j] <= room:
                        kept = False
                        break
            if undominated and kept and room > 0:
                larger = -1  # the next larger size with a copy to spare
                for j in range(n):
                    if now[j] > 0 and larger >= 0 and size[larger] - size[j] <= room:
                        kept = False
                        break
                    if now[j] < copies[j]:
                        larger = j
            if kept:
                if count == most_patterns:
                    return flat, -1
                if (count + 1) * n > len(flat):
                    grown = np.zeros(2 * len(flat), np.int32)
                    grown[: len(flat)] = flat
                    flat = grown
                flat[count * n : (count + 1) * n] = now
                count += 1
        for j in range(i, n):
            now[j] = 0
        i -= 1
        while i >= 0 and now[i] == 0:
            i -= 1
        if i < 0:
            return flat, count
        now[i] -= 1
        room += size[i]
        worth -= value[i]
        i += 1
