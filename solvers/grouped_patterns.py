"""The most valuable content of one bin where groups share something: by a table over loads, exact, or nearly so where the table would be too large.

Items of one size and group are one type with copies. In a bin a group takes its overhead once, and its sizes together count as the next multiple of
`multiple`. A group may also be worth a bonus once in a bin that it is in. Sizes, values and bonuses are whole, so nothing is rounded; where the loads
are made coarser they are rounded down, so that `bound` still is one.

Without padding the table needs no join of two tables a group: a group starts from the loads of the groups before it, its overhead added, then takes
its items one by one. With padding each group's own table is joined to that of the groups before, in steps of the padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from headroom.solvers.bin_patterns import BestPattern
from headroom.solvers.compiled import compiled

IntArray = npt.NDArray[np.int64]
TABLE_STEPS: Final = 600_000_000
"""Steps of a table up to which it is exact: about half a second."""
TABLE_CELLS: Final = 40_000_000
"""Cells of a table that are kept, of eight bytes."""
NEVER: Final = -(2**61)


@dataclass(frozen=True)
class GroupedItems:
    """Types of items [m] by rising group, then falling size: `size` >= 1, `group`, `demand` >= 1; `overhead` [groups], `multiple`, `capacity`: whole.

    Every item fits into a bin of its own.
    """

    size: IntArray
    group: IntArray
    demand: IntArray
    overhead: IntArray
    multiple: int
    capacity: int

    @cached_property
    def first(self) -> IntArray:
        """First type of each group, and m at the end [groups + 1]."""
        found: IntArray = np.searchsorted(self.group, np.arange(len(self.overhead) + 1)).astype(np.int64)
        return found

    def tokens(self, copies: IntArray) -> IntArray:
        """Sum of each group's sizes [groups]; `copies` [m] of each type."""
        found = np.zeros(len(self.overhead), np.int64)
        np.add.at(found, self.group, self.size * copies)
        return found

    def load(self, copies: IntArray) -> int:
        """Tokens that a bin with these copies [m] takes."""
        tokens = self.tokens(copies)
        used = tokens > 0
        return int((-(-tokens[used] // self.multiple) * self.multiple + self.overhead[used]).sum())

    def worth(self, copies: IntArray, value: IntArray, bonus: IntArray) -> int:
        """Value of a bin with these copies [m]."""
        present = np.unique(self.group[copies > 0])
        return int((value * copies).sum() + bonus[present].sum())

    @cached_property
    def room(self) -> IntArray:
        """The most that a group's sizes can be in one bin [groups]."""
        found: IntArray = np.maximum(self.capacity - self.overhead, 0) // self.multiple * self.multiple
        return found


def best_grouped_pattern(
    items: GroupedItems, value: IntArray, bonus: IntArray, copies: IntArray | None = None, steps: int = TABLE_STEPS
) -> BestPattern:
    """The most valuable content of a bin: `value` [m] a copy and `bonus` [groups] a group, all >= 0; of at most `copies` [m] of each type.

    Exact within `steps`: O(C sum of copies) without padding; with padding q, O(C sum of copies + C^2 groups / (q r)), r the greatest common divisor
    of q and the overheads. Beyond, loads are rounded down to coarser steps (and padding left out): `bound` is then above what is found.
    """
    copies = items.demand if copies is None else copies
    most = np.minimum(copies, items.room[items.group] // items.size)
    found = np.zeros(len(items.size), np.int64)
    rows = _rows(items, value, bonus, most)
    if not len(rows.type):
        return BestPattern(found, 0, 0)
    groups = len(rows.group)
    divisor = math.gcd(items.multiple, *items.overhead[rows.group].tolist())
    grid = items.capacity // divisor
    padded = items.multiple > 1
    joins = groups * grid * (items.capacity // items.multiple) // 2 if padded else 0
    # With padding a group's own table is over tokens and over multiples, whatever the grid of the join is.
    cells = max((groups + 1) * (grid + 1), (items.capacity + 1 + groups * (items.capacity // items.multiple + 1)) if padded else 0)
    if len(rows.type) * items.capacity + joins <= steps and cells <= TABLE_CELLS:
        grain = 1
    else:
        padded, divisor = False, 1
        grain = max(1, -(-len(rows.type) * items.capacity // steps), -(-(groups + 1) * (items.capacity + 1) // TABLE_CELLS))
    first, overhead, extra = rows.first, items.overhead[rows.group], bonus[rows.group]
    chosen = np.zeros(len(rows.type), np.bool_)
    if padded:
        best = _joined(rows.size, rows.value, first, overhead // divisor, extra, items.capacity, items.multiple, divisor, chosen)
    else:
        best = _in_turn(rows.size // grain, rows.value, first, overhead // grain, extra, items.capacity // grain, chosen)
    np.add.at(found, rows.type[chosen], rows.count[chosen])
    if grain > 1 or padded != (items.multiple > 1):
        _repair(items, value, found, copies)
    return BestPattern(found, items.worth(found, value, bonus), int(best))


@dataclass(frozen=True)
class _Rows:
    """Copies of types in powers of two: `type`, `count`, `size`, `value` [rows], by group; `group`, `first` [groups + 1]: rows of each."""

    type: IntArray
    count: IntArray
    size: IntArray
    value: IntArray
    group: IntArray
    first: IntArray


def _rows(items: GroupedItems, value: IntArray, bonus: IntArray, most: IntArray) -> _Rows:
    """What is worth taking: with a bonus but no value the smallest of the group would do."""
    use = (most > 0) & (value > 0)
    for g in np.flatnonzero(bonus > 0):
        idle = np.arange(items.first[g], items.first[g + 1])
        idle = idle[(most[idle] > 0) & (value[idle] == 0)]
        if len(idle):
            use[idle[-1]] = True  # by falling size
    kind, count = np.flatnonzero(use), most[use]
    pieces: list[tuple[IntArray, IntArray]] = []
    chunk = 1
    while len(kind):
        taken = np.minimum(count, chunk)
        pieces.append((kind, taken))
        count = count - taken
        kind, count = kind[count > 0], count[count > 0]
        chunk *= 2
    if not pieces:
        none = np.zeros(0, np.int64)
        return _Rows(none, none, none, none, none, np.zeros(1, np.int64))
    kind, count = (np.concatenate(part) for part in zip(*pieces, strict=True))
    order = np.argsort(kind, kind="stable")
    kind, count = kind[order], count[order]
    group, first = np.unique(items.group[kind], return_index=True)
    ends = np.append(first, len(kind)).astype(np.int64)
    return _Rows(kind, count, items.size[kind] * count, value[kind] * count, group, ends)


def _repair(items: GroupedItems, value: IntArray, found: IntArray, copies: IntArray) -> None:
    """Take out what is worth least a token until the bin holds the rest."""
    for i in np.argsort(value / items.size, kind="stable"):
        while found[i] > 0 and items.load(found) > items.capacity:
            found[i] -= 1


@compiled
def _in_turn(
    size: IntArray, value: IntArray, first: IntArray, overhead: IntArray, bonus: IntArray, capacity: int, chosen: npt.NDArray[np.bool_]
) -> int:
    """One group after the other, from the best value of the groups before in each room. Marks the rows `chosen`; returns their value."""
    groups = len(overhead)
    best = np.zeros((groups + 1, capacity + 1), np.int64)
    now, after = np.empty(capacity + 1, np.int64), np.empty(capacity + 1, np.int64)
    for g in range(groups):
        before, done, h, b = best[g], best[g + 1], overhead[g], bonus[g]
        room = capacity + 1 - h
        if room <= 0:
            done[:] = before
            continue
        # now[c]: the group's items so far, in a bin whose room is c + h. With a bonus at least one of them, else it might be had for nothing.
        if b > 0:
            now[:room] = -(2**61)
            for row in range(first[g], first[g + 1]):
                s, v = size[row], value[row]
                if s >= room:
                    continue
                after[:s] = now[:s]
                for c in range(s, room):
                    after[c] = max(now[c], max(now[c - s], before[c - s] + b) + v)
                now, after = after, now
        else:
            now[:room] = before[:room]
            for row in range(first[g], first[g + 1]):
                s, v = size[row], value[row]
                if s >= room:
                    continue
                after[:s] = now[:s]
                for c in range(s, room):
                    after[c] = max(now[c], now[c - s] + v)
                now, after = after, now
        done[: min(h, capacity + 1)] = before[: min(h, capacity + 1)]
        for c in range(h, capacity + 1):
            done[c] = max(before[c], now[c - h])
    # Back: the groups that made a difference are filled again, and noted how.
    c = capacity
    for g in range(groups - 1, -1, -1):
        if best[g + 1, c] == best[g, c]:
            continue
        c -= overhead[g]
        start, end = first[g], first[g + 1]
        mark = np.zeros((end - start, c + 1), np.int8)
        now[: c + 1] = -(2**61)
        for row in range(start, end):
            s, v = size[row], value[row]
            for x in range(c, s - 1, -1):
                fresh, more = best[g, x - s] + bonus[g] + v, now[x - s] + v
                if fresh > now[x] and fresh >= more:
                    now[x], mark[row - start, x] = fresh, 1
                elif more > now[x]:
                    now[x], mark[row - start, x] = more, 2
        for row in range(end - 1, start - 1, -1):
            how = mark[row - start, c]
            if how > 0:
                chosen[row] = True
                c -= size[row]
                if how == 1:
                    break
    return int(best[groups, capacity])


@compiled
def _joined(
    size: IntArray, value: IntArray, first: IntArray, overhead: IntArray, bonus: IntArray, capacity: int, multiple: int, divisor: int,
    chosen: npt.NDArray[np.bool_],
) -> int:  # fmt: skip
    """Each group's best value for each number of multiples, joined to those of the groups before. Loads and `overhead` in units of `divisor`."""
    groups, grid, step = len(overhead), capacity // divisor, multiple // divisor
    best = np.zeros((groups + 1, grid + 1), np.int64)
    units = capacity // multiple
    own = np.full((groups, units + 1), -(2**61), np.int64)
    now = np.empty(units * multiple + 1, np.int64)
    for g in range(groups):
        room = (grid - overhead[g]) // step
        if room >= 1:
            now[: room * multiple + 1] = -(2**61)
            now[0] = bonus[g]
            for row in range(first[g], first[g + 1]):
                s, v = size[row], value[row]
                for c in range(room * multiple, s - 1, -1):
                    now[c] = max(now[c], now[c - s] + v)
            for u in range(1, room + 1):
                most = own[g, u - 1]
                for c in range((u - 1) * multiple + 1, u * multiple + 1):
                    most = max(most, now[c])
                own[g, u] = most
        before, done = best[g], best[g + 1]
        done[:] = before
        for u in range(1, room + 1):
            worth = own[g, u]
            if worth <= 0 or worth == own[g, u - 1]:
                continue
            shift = overhead[g] + u * step
            for c in range(shift, grid + 1):
                done[c] = max(done[c], before[c - shift] + worth)
    c = grid
    for g in range(groups - 1, -1, -1):
        if best[g + 1, c] == best[g, c]:
            continue
        u = 1
        while best[g, c - overhead[g] - u * step] + own[g, u] != best[g + 1, c]:
            u += 1
        start, end, most = first[g], first[g + 1], u * multiple
        mark = np.zeros((end - start, most + 1), np.bool_)
        now[: most + 1] = -(2**61)
        now[0] = bonus[g]
        for row in range(start, end):
            s, v = size[row], value[row]
            for x in range(most, s - 1, -1):
                if now[x - s] + v > now[x]:
                    now[x], mark[row - start, x] = now[x - s] + v, True
        load = most
        while now[load] != own[g, u]:
            load -= 1
        for row in range(end - 1, start - 1, -1):
            if mark[row - start, load]:
                chosen[row] = True
                load -= size[row]
        c -= overhead[g] + u * step
    return int(best[groups, grid])


__all__ = ["GroupedItems", "best_grouped_pattern"]
