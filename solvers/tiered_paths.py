"""Shortest paths of many items through tiers over steps, all under the same prices: the engine behind Lagrangian bounds of tiering problems.

An item lives from step `start` to before step `end` and is in one of K tiers in each; what it pays for a byte is given by step and tier (`Prices`).
It touches the prices of reading only at its events, which are few; between two events every item pays, for each of its bytes, the same cheapest
way from tier to tier. These ways are min-plus products of one K x K matrix a step, kept for a logarithmic number of ranges that begin or end at each
step (a disjoint sparse table), so that any stretch without events costs two small products, however long it is.

Time of one round: O(T log T K^3 + events K^2); memory O(T log T K^2 + events). Items are independent: parts of them (`Items.part`) can be solved
anywhere and their `Answer`s added up. The numbers do not depend on how many threads work: parts are the same and added in the same order.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from headroom.solvers.compiled import compiled

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
PARTS = 8
"""Parts that the items are dealt into, whatever the number of threads."""


@dataclass(frozen=True)
class Items:
    """`size`, `start`, `end` [N]; `first` [N + 1] of an item's events in `step` (rising) and `amount` (bytes read; None: the whole item).

    `inclusive`: coming into the last tier costs nothing but a read of the same step, and a birth also writes to the last tier.
    """

    steps: int
    tiers: int
    size: FloatArray
    start: IntArray
    end: IntArray
    first: IntArray
    step: npt.NDArray[np.int32]
    amount: FloatArray | None
    inclusive: bool

    @property
    def count(self) -> int:
        return len(self.size)

    @cached_property
    def most_events(self) -> int:
        """Events of the busiest item."""
        return int(np.diff(self.first).max(initial=0))

    def part(self, begin: int, end: int) -> Items:
        """Items begin .. end - 1 alone."""
        events = slice(int(self.first[begin]), int(self.first[end]))
        amount = None if self.amount is None else self.amount[events]
        some = slice(begin, end)
        first = self.first[begin : end + 1] - self.first[begin]
        return Items(self.steps, self.tiers, self.size[some], self.start[some], self.end[some], first, self.step[events], amount, self.inclusive)

    def some(self, items: IntArray) -> Items:
        """These items alone. O(their events)."""
        count = np.diff(self.first)[items]
        first = np.concatenate([[0], np.cumsum(count)])
        events = np.arange(first[-1]) + np.repeat(self.first[items] - first[:-1], count)
        amount = None if self.amount is None else self.amount[events]
        life = (self.size[items], self.start[items], self.end[items])
        return Items(self.steps, self.tiers, *life, first, self.step[events], amount, self.inclusive)

    def cuts(self, parts: int) -> list[int]:
        """Where to cut the items into parts of about equal work."""
        work = np.cumsum(np.diff(self.first) + 8)
        inner = np.searchsorted(work, np.linspace(0, work[-1], parts + 1)[1:-1]).tolist() if len(work) else []
        return [0, *inner, self.count]


def by_item(
    count: int, indptr: IntArray, item: npt.NDArray[Any], amount: FloatArray | None
) -> tuple[IntArray, npt.NDArray[np.int32], FloatArray | None]:
    """Compressed rows by step turned into rows by item: first [N + 1], step and amount of each event. O(events), a counting sort."""
    first = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(item, minlength=count), out=first[1:])
    step = np.empty(len(item), np.int32)
    out = np.empty(len(item) if amount is not None else 0)
    _transpose(indptr, item, np.zeros(0) if amount is None else amount, amount is not None, first[:-1].copy(), step, out)
    return first, step, None if amount is None else out


@dataclass(frozen=True)
class Prices:
    """What a byte pays by step and tier [T][K]: read from it, written to it, held in it for the step; `miss` [T]: besides, what a byte of an item
    pays that is read in a step without staying in the first tier."""

    read: FloatArray
    write: FloatArray
    hold: FloatArray
    miss: FloatArray


@dataclass(frozen=True)
class Answer:
    """`value`: what all items pay; `read`, `written`, `held` [T][K] and `missed` [T]: their bytes along cheapest paths."""

    value: float
    read: FloatArray
    written: FloatArray
    held: FloatArray
    missed: FloatArray

    def __add__(self, other: Answer) -> Answer:
        sums = (self.read + other.read, self.written + other.written, self.held + other.held, self.missed + other.missed)
        return Answer(self.value + other.value, *sums)

    def times(self, factor: float) -> Answer:
        """What so many times the items would answer."""
        return Answer(self.value * factor, self.read * factor, self.written * factor, self.held * factor, self.missed * factor)


class PathEngine:
    """Solves the same items again and again under changing prices. Not for use from several threads at once."""

    def __init__(self, items: Items, threads: int = 1) -> None:
        self.items = items
        steps, tiers = items.steps, items.tiers
        self._kind = (0,) * tiers  # its length is a constant to the compiler
        levels = max(1, (steps - 1).bit_length())
        self._table = np.zeros((levels, steps, tiers, tiers))
        self._change = np.zeros((levels, steps, tiers, tiers), np.int32)
        cuts = items.cuts(min(PARTS, max(items.count, 1)))
        self._parts = [(a, b) for a, b in pairwise(cuts) if a < b]
        self._sums = [np.zeros((4, steps + 1, tiers)) for _ in self._parts]
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def solve(self, prices: Prices) -> Answer:
        """Cheapest paths of all items. Prices must be finite, those of holding may be infinite; only that of a miss may be negative."""
        tiers = self.items.tiers
        base = prices.read[:, :, None] + prices.write[:, None, :]
        if self.items.inclusive:
            base[:, :, tiers - 1] = 0.0
        base[:, range(tiers), range(tiers)] = 0.0
        base += prices.hold[:, None, :]
        _range_tables(self._kind, base, self._table, self._change)
        jobs = range(len(self._parts))
        values = list(map(self._part, jobs, [prices] * len(jobs), [base] * len(jobs))) if self._pool is None else self._spread(prices, base)
        steps = self.items.steps
        total: FloatArray = np.sum(self._sums, axis=0) if self._sums else np.zeros((4, steps + 1, tiers))
        held: FloatArray = np.cumsum(total[2], axis=0)[:-1]
        return Answer(float(sum(values)), total[0][:-1], total[1][:-1], held, total[3, :-1, 0])

    def _spread(self, prices: Prices, base: FloatArray) -> list[float]:
        assert self._pool is not None
        return list(self._pool.map(lambda job: self._part(job, prices, base), range(len(self._parts))))

    def _part(self, job: int, prices: Prices, base: FloatArray) -> float:
        items, sums = self.items, self._sums[job]
        sums[:] = 0.0
        amount = np.zeros(0) if items.amount is None else items.amount
        value: float = _paths(
            self._kind, *self._parts[job], items.first, items.step, amount, items.amount is not None, items.size, items.start, items.end,
            items.most_events, items.inclusive, prices.read, prices.write, prices.hold, prices.miss, base, self._table, self._change, sums,
        )  # fmt: skip
        return value

    def close(self) -> None:
        """Let the threads go."""
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@compiled
def _transpose(indptr, item, amount, weigh, place, step, out):  # type: ignore[no-untyped-def]
    for t in range(len(indptr) - 1):
        for r in range(indptr[t], indptr[t + 1]):
            i = item[r]
            step[place[i]] = t
            if weigh:
                out[place[i]] = amount[r]
            place[i] += 1


@compiled
def _range_tables(kind, base, table, change):  # type: ignore[no-untyped-def]
    """On each level windows of 2^(level + 1) steps: from each step of the left half to its middle, from the middle to each step of the right half.

    `change` is the first (left) or last (right) change of tier on the cheapest way, as step * K + the tier on its far side; -1: none.
    """
    tiers = len(kind)
    levels, steps = table.shape[0], base.shape[0]
    for level in range(levels):
        half = 1 << level
        for low in range(0, steps - half, 2 * half):
            middle = low + half
            for a in range(tiers):
                for c in range(tiers):
                    table[level, middle - 1, a, c] = base[middle - 1, a, c]
                    change[level, middle - 1, a, c] = -1 if a == c else (middle - 1) * tiers + c
                    table[level, middle, a, c] = base[middle, a, c]
                    change[level, middle, a, c] = -1 if a == c else middle * tiers + a
            for t in range(middle - 2, low - 1, -1):
                for a in range(tiers):
                    for c in range(tiers):
                        best, at = base[t, a, a] + table[level, t + 1, a, c], change[level, t + 1, a, c]
                        for b in range(tiers):
                            if b != a and base[t, a, b] + table[level, t + 1, b, c] < best:
                                best, at = base[t, a, b] + table[level, t + 1, b, c], t * tiers + b
                        table[level, t, a, c], change[level, t, a, c] = best, at
            for t in range(middle + 1, min(middle + half, steps)):
                for a in range(tiers):
                    for c in range(tiers):
                        best, at = table[level, t - 1, a, c] + base[t, c, c], change[level, t - 1, a, c]
                        for b in range(tiers):
                            if b != c and table[level, t - 1, a, b] + base[t, b, c] < best:
                                best, at = table[level, t - 1, a, b] + base[t, b, c], t * tiers + b
                        table[level, t, a, c], change[level, t, a, c] = best, at


@compiled
def _highest_bit(number):  # type: ignore[no-untyped-def]
    bit = -1
    while number > 0:
        number >>= 1
        bit += 1
    return bit


@compiled
def _move(t, a, b, size, inclusive, last, sums):  # type: ignore[no-untyped-def]
    sums[2, t, a] -= size
    sums[2, t, b] += size
    if not (inclusive and b == last):
        sums[0, t, a] += size
        sums[1, t, b] += size


@compiled
def _moves_between(kind, left, right, a, through, c, change, size, inclusive, sums):  # type: ignore[no-untyped-def]
    """Record the changes of tier on the cheapest way from a to c over the steps left .. right, `through` at the middle of their level."""
    tiers = len(kind)
    if left == right:
        if a != c:
            _move(left, a, c, size, inclusive, tiers - 1, sums)
        return
    level = _highest_bit(left ^ right)
    middle = (right >> level) << level
    t, here = left, a
    while t < middle:
        at = change[level, t, here, through]
        if at < 0:
            break
        _move(at // tiers, here, at % tiers, size, inclusive, tiers - 1, sums)
        t, here = at // tiers + 1, at % tiers
    t, here = right, c
    while t >= middle:
        at = change[level, t, through, here]
        if at < 0:
            break
        _move(at // tiers, at % tiers, here, size, inclusive, tiers - 1, sums)
        t, here = at // tiers - 1, at % tiers


@compiled
def _paths(  # type: ignore[no-untyped-def]
    kind, begin, stop, first, step, amount, weigh, size, start, end, most, inclusive, read, write, hold, miss, base, table, change, sums
):  # fmt: skip
    """What items begin .. stop - 1 pay. Added to `sums` [4][T + 1][K]: bytes read, written, held (as differences over steps), missed."""
    tiers = len(kind)
    last = tiers - 1
    total = 0.0
    value, after, half = np.empty(tiers), np.empty(tiers), np.empty(tiers)
    origin_of = np.empty(tiers, np.int8)
    before, origin, middle = np.empty((most + 1, tiers), np.int8), np.empty((most + 1, tiers), np.int8), np.empty((most + 1, tiers), np.int8)
    for i in range(begin, stop):
        s, born = size[i], start[i]
        e, stop_event = first[i], first[i + 1]
        at_birth = e < stop_event and step[e] == born
        for k in range(tiers):
            cost = hold[born, k]
            if born > 0:
                cost += write[born, k]
                if inclusive and k != last:
                    cost += write[born, last]
            if at_birth:
                cost += read[born, k] * (amount[e] / s if weigh else 1.0) + (miss[born] if k > 0 else 0.0)
            value[k] = cost
        if at_birth:
            e += 1
        n, position = 0, born
        while True:
            t = step[e] if e < stop_event else end[i]
            left, right = position + 1, t - 1
            if left > right:
                for c in range(tiers):
                    after[c], origin[n, c], middle[n, c] = value[c], c, c
            elif left == right:
                for c in range(tiers):
                    best, source = value[c] + base[left, c, c], c
                    for a in range(tiers):
                        if a != c and value[a] + base[left, a, c] < best:
                            best, source = value[a] + base[left, a, c], a
                    after[c], origin[n, c], middle[n, c] = best, source, source
            else:
                level = _highest_bit(left ^ right)
                for m in range(tiers):
                    best, source = value[m] + table[level, left, m, m], m
                    for a in range(tiers):
                        if a != m and value[a] + table[level, left, a, m] < best:
                            best, source = value[a] + table[level, left, a, m], a
                    half[m], origin_of[m] = best, source
                for c in range(tiers):
                    best, source = half[c] + table[level, right, c, c], c
                    for m in range(tiers):
                        if m != c and half[m] + table[level, right, m, c] < best:
                            best, source = half[m] + table[level, right, m, c], m
                    after[c], middle[n, c], origin[n, c] = best, source, origin_of[source]
            if e >= stop_event:
                break
            share = amount[e] / s if weigh else 1.0
            for c in range(tiers):
                best, source = after[c] + base[t, c, c] + share * read[t, c] + (miss[t] if c > 0 else 0.0), c
                extra = miss[t] + (share * read[t, last] if inclusive and c == last else 0.0)
                for a in range(tiers):
                    if a != c and after[a] + base[t, a, c] + extra < best:
                        best, source = after[a] + base[t, a, c] + extra, a
                value[c], before[n, c] = best, source
            n += 1
            position = t
            e += 1
        c = 0
        for k in range(1, tiers):
            if after[k] < after[c]:
                c = k
        total += after[c] * s
        sums[2, end[i], c] -= s
        right = end[i] - 1
        e = stop_event - 1
        for j in range(n, -1, -1):
            t = step[e] if j > 0 else born
            a = origin[j, c]
            if t < right:
                _moves_between(kind, t + 1, right, a, middle[j, c], c, change, s, inclusive, sums)
            c = a
            if j > 0:
                source = before[j - 1, c]
                if source != c or c > 0:
                    sums[3, t, 0] += s
                if source == c:
                    sums[0, t, c] += amount[e] if weigh else s
                else:
                    _move(t, source, c, s, inclusive, last, sums)
                    if inclusive and c == last:
                        sums[0, t, last] += amount[e] if weigh else s
                c = source
                right = t - 1
                e -= 1
        sums[2, born, c] += s
        if born > 0:
            sums[1, born, c] += s
            if inclusive and c != last:
                sums[1, born, last] += s
        if at_birth:
            sums[0, born, c] += amount[first[i]] if weigh else s
            if c > 0:
                sums[3, born, 0] += s
    return total
