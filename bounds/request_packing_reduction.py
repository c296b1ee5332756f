"""Requests that can be put into bins beforehand without losing the optimum: what is left is smaller, and bounds on it count the bins put aside.

Plain bin packing only. While something changes, the largest size s of capacity C is looked at:

- no size that is left fits beside it: it is alone in its bin;
- at most one item fits beside it: the largest that fits goes with it. Any packing has s with one item or none; exchanging that item for the largest
  one that fits keeps every bin within C;
- two items that fill a bin exactly go together: whatever else was with either of them takes no more room than the other one's place gave.

The rules are followed in one fixed order, so that who rechecks a bound finds the same rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headroom.instances.request_packing import RequestPacking

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Counted:
    """Equal sizes counted: `size` [m] falling and distinct, `demand` [m] >= 1, `capacity`."""

    size: IntArray
    demand: IntArray
    capacity: int

    @property
    def tokens(self) -> int:
        """Of all items."""
        return sum(int(s) * int(d) for s, d in zip(self.size, self.demand, strict=True))


@dataclass(frozen=True)
class Reduced:
    """`pairs` [n][3]: two sizes (the second 0 where the first is alone) that go into a bin, and how many such bins; `rest`: what is left."""

    pairs: IntArray
    rest: Counted

    @property
    def bins(self) -> int:
        """Bins put aside."""
        return int(self.pairs[:, 2].sum())


def counted(instance: RequestPacking) -> Counted:
    """The sizes of plain bin packing: padded, counted. For groups that share something: the requests' own tokens alone, a relaxation."""
    size, demand = np.unique(instance.padded if instance.plain else instance.size, return_counts=True)
    return Counted(size[::-1].astype(np.int64), demand[::-1].astype(np.int64), instance.capacity_tokens or 0)


def reduced(items: Counted) -> Reduced:
    """Bins that some optimal packing has, and the rest. O(n + m) steps of O(log m) for m distinct sizes."""
    capacity = items.capacity
    size, left = items.size.tolist(), items.demand.tolist()
    found: list[tuple[int, int, int]] = []
    low, high = 0, len(size) - 1  # sizes that are not used up lie between; partners only in the upper part move `low`
    where = {s: i for i, s in enumerate(size)}
    for i, s in enumerate(size):
        j = where.get(capacity - s)
        if j is None or j < i:
            continue
        count = min(left[i], left[j]) if i != j else left[i] // 2
        if count:
            found.append((s, size[j], count))
            left[i] -= count
            left[j] -= count
    while True:
        while low <= high and left[low] == 0:
            low += 1
        while low <= high and left[high] == 0:
            high -= 1
        if low > high:
            break
        s = size[low]
        room = capacity - s
        smallest = size[high]
        more_copies = left[high] >= 2 if high != low else left[high] >= 3
        second = smallest if more_copies else _next_smaller(size, left, high, low)
        if smallest > room or (high == low and left[low] == 1):
            found.append((s, 0, left[low]))
            left[low] = 0
            continue
        if second is not None and smallest + second <= room:
            break
        # One item at most fits beside s: the largest that does.
        k = _first_fitting(size, left, room, low)
        if k is None:
            found.append((s, 0, 1))
            left[low] -= 1
            continue
        count = min(left[low], left[k]) if k != low else left[low] // 2
        # Each pair uses up partners: the rule holds for one after the other as long as both last.
        found.append((s, size[k], count))
        left[low] -= count
        left[k] -= count
    rest = np.array(left, np.int64)
    kept = rest > 0
    return Reduced(np.array(found, np.int64).reshape(-1, 3), Counted(items.size[kept], rest[kept], capacity))


def _next_smaller(size: list[int], left: list[int], high: int, low: int) -> int | None:
    """The second smallest item beside one of size[low], when only one of the smallest is there."""
    for i in range(high - 1, low - 1, -1):
        if left[i] - (i == low) > 0:
            return size[i]
    return None


def _first_fitting(size: list[int], left: list[int], room: int, low: int) -> int | None:
    """The largest item that fits beside one of size[low]."""
    first, end = low, len(size)
    while first < end:
        middle = (first + end) // 2
        if size[middle] <= room:
            end = middle
        else:
            first = middle + 1
    for i in range(first, len(size)):
        if left[i] - (i == low) > 0:
            return i
    return None
