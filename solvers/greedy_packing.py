"""Greedy bin packing of whole sizes, compiled: the rules by which one item after the other finds its bin, in logarithmic time.

Sizes and capacity are whole, 1 <= size <= capacity < 2^40; bins are numbered in the order in which they are opened, fewer than 2^22 of them. Two
structures hold the room of the open bins:

- `Rooms`, a tree of maxima over the bins: the first bin with enough room, and the one with most.
- `SortedRooms`, a sorted list of (room, bin) in blocks: the bin with the least room that is enough.

Both can be used one item at a time (an online policy does), or by the compiled loops `first_fit` and `best_fit`, which call the same code.
`least_slack` fills bin after bin by a limited search instead.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headroom.solvers.compiled import compiled

IntArray = npt.NDArray[np.int64]
BLOCK = 256
"""Keys of a block of a sorted list."""
BINS = 1 << 22
"""A key of a sorted list is room x BINS + bin: of equal rooms the bin that was opened first comes first."""


@compiled
def _put(tree: IntArray, at: int, room: int) -> None:
    """Leaf `at` of a tree of maxima has this room. The tree has 2 x leaves entries, its root at 1."""
    i = at + len(tree) // 2
    tree[i] = room
    i //= 2
    while i >= 1:
        best = max(tree[2 * i], tree[2 * i + 1])
        if tree[i] == best:
            break
        tree[i] = best
        i //= 2


@compiled
def _first(tree: IntArray, need: int, start: int) -> int:
    """The first leaf from `start` on with at least this room; -1 if there is none."""
    leaves = len(tree) // 2
    if start >= leaves:
        return -1
    i = start + leaves
    while tree[i] < need:
        while i % 2 == 1:  # a right child: everything under its parent has been seen
            if i & (i + 1) == 0:  # the last of its level
                return -1
            i //= 2
        i += 1
    while i < leaves:
        i = 2 * i if tree[2 * i] >= need else 2 * i + 1
    return i - leaves


@compiled
def _block_of(keys: IntArray, length: IntArray, order: IntArray, blocks: int, key: int) -> int:
    """Position in `order` of the first block with a key that is not below this one; `blocks` if there is none."""
    low, high = 0, blocks
    while low < high:
        middle = (low + high) // 2
        b = order[middle]
        if keys[b, length[b] - 1] < key:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _in_block(keys: IntArray, b: int, length: int, key: int) -> int:
    """Position of the first key of a block that is not below this one."""
    low, high = 0, length
    while low < high:
        middle = (low + high) // 2
        if keys[b, middle] < key:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _successor(keys: IntArray, length: IntArray, order: IntArray, state: IntArray, key: int) -> int:
    """The least key that is not below this one; -1 if there is none."""
    at = _block_of(keys, length, order, state[0], key)
    if at == state[0]:
        return -1
    b = order[at]
    return int(keys[b, _in_block(keys, b, length[b], key)])


@compiled
def _insert(keys: IntArray, length: IntArray, order: IntArray, spare: IntArray, state: IntArray, key: int) -> None:
    """A new key. `state`: blocks in order, blocks ever used, spare blocks. Some block must be left over."""
    if state[0] == 0:
        order[0], state[0] = 0, 1
        state[1] = max(state[1], 1)
        if state[2] > 0:
            state[2] -= 1
            order[0] = spare[state[2]]
        keys[order[0], 0], length[order[0]] = key, 1
        return
    at = min(_block_of(keys, length, order, state[0], key), state[0] - 1)
    b = order[at]
    if length[b] == keys.shape[1]:
        if state[2] > 0:
            state[2] -= 1
            new = spare[state[2]]
        else:
            new = state[1]
            state[1] += 1
        half = length[b] // 2
        for i in range(half, length[b]):
            keys[new, i - half] = keys[b, i]
        length[new], length[b] = length[b] - half, half
        for i in range(state[0], at + 1, -1):
            order[i] = order[i - 1]
        order[at + 1] = new
        state[0] += 1
        if keys[b, half - 1] < key:
            b = new
    place = _in_block(keys, b, length[b], key)
    for i in range(length[b], place, -1):
        keys[b, i] = keys[b, i - 1]
    keys[b, place] = key
    length[b] += 1


@compiled
def _remove(keys: IntArray, length: IntArray, order: IntArray, spare: IntArray, state: IntArray, key: int) -> None:
    """Take out a key that is there."""
    at = _block_of(keys, length, order, state[0], key)
    b = order[at]
    for i in range(_in_block(keys, b, length[b], key), length[b] - 1):
        keys[b, i] = keys[b, i + 1]
    length[b] -= 1
    if length[b] == 0:
        for i in range(at, state[0] - 1):
            order[i] = order[i + 1]
        state[0] -= 1
        spare[state[2]] = b
        state[2] += 1


@compiled
def _first_fit(size: IntArray, capacity: int, most: int, tree: IntArray, found: IntArray) -> int:
    leaves = len(tree) // 2
    for i in range(len(tree)):
        tree[i] = capacity
    for i in range(most, leaves):
        _put(tree, i, -1)
    bins = 0
    for j in range(len(size)):
        b = _first(tree, size[j], 0)
        if b < 0:
            return -1
        found[j] = b
        bins = max(bins, b + 1)
        _put(tree, b, tree[leaves + b] - size[j])
    return bins


@compiled
def _best_fit(  # type: ignore[no-untyped-def]
    size: IntArray, capacity: int, keys: IntArray, length: IntArray, order: IntArray, spare: IntArray, state: IntArray, found: IntArray
):
    bins = 0
    for j in range(len(size)):
        key = _successor(keys, length, order, state, size[j] * BINS)
        if key >= 0:
            _remove(keys, length, order, spare, state, key)
            key -= size[j] * BINS
        else:
            key = (capacity - size[j]) * BINS + bins
            bins += 1
        found[j] = key % BINS
        if key >= BINS:  # no key for a full bin
            _insert(keys, length, order, spare, state, key)
    return bins


@compiled
def _alive(after: IntArray, p: int) -> int:
    """The first class from p on of which items are left (`after` points onwards from those without)."""
    root = p
    while after[root] != root:
        root = after[root]
    while after[p] != root:
        after[p], p = root, after[p]
    return root


@compiled
def _least_slack(value: IntArray, copies: IntArray, first: IntArray, capacity: int, budget: int, found: IntArray) -> int:
    """See `least_slack`. `value` falls; `first`: position of each class among the items, which are sorted like the classes."""
    classes = len(value)
    after = np.arange(classes + 1)
    left, used = copies.copy(), np.zeros(classes, np.int64)
    kind, taken = np.zeros(classes + 1, np.int64), np.zeros(classes + 1, np.int64)
    best_kind, best_taken = np.zeros(classes + 1, np.int64), np.zeros(classes + 1, np.int64)
    bins = 0
    while True:
        top = _alive(after, 0)
        if top == classes:
            return bins
        left[top] -= 1
        room, depth, p, tried = capacity - value[top], 0, top, 0
        best, best_depth = capacity, 0
        while True:
            while True:
                low, high = p, classes
                while low < high:  # the first class that is not too large
                    middle = (low + high) // 2
                    if value[middle] > room:
                        low = middle + 1
                    else:
                        high = middle
                p = _alive(after, low)
                if p == classes:
                    break
                tried += 1
                most = min(left[p], room // value[p])
                if most > 0:
                    kind[depth], taken[depth] = p, most
                    room -= most * value[p]
                    depth += 1
                p += 1
            if room < best:
                best, best_depth = room, depth
                best_kind[:depth], best_taken[:depth] = kind[:depth], taken[:depth]
                if best == 0:
                    break
            if tried > budget:
                break
            # nothing smaller is left to take the place of the smallest class
            while depth > 0 and _alive(after, kind[depth - 1] + 1) == classes:
                depth -= 1
                room += taken[depth] * value[kind[depth]]
            if depth == 0:
                break
            p = kind[depth - 1] + 1
            room += value[kind[depth - 1]]
            taken[depth - 1] -= 1
            if taken[depth - 1] == 0:
                depth -= 1
        found[first[top] + used[top]] = bins
        used[top] += 1
        for d in range(best_depth):
            k = best_kind[d]
            for _ in range(best_taken[d]):
                found[first[k] + used[k]] = bins
                used[k] += 1
            left[k] -= best_taken[d]
            if left[k] == 0:
                after[k] = k + 1
        if left[top] == 0:
            after[top] = top + 1
        bins += 1


def _leaves(count: int) -> int:
    return 1 << max(1, (count - 1).bit_length())


class Rooms:
    """The rooms of bins 0, 1, ...: the first with enough, and the greatest. O(log bins) each."""

    def __init__(self, leaves: int = 64) -> None:
        self.bins = 0
        self._tree = np.full(2 * _leaves(leaves), -1, np.int64)

    def room(self, b: int) -> int:
        return int(self._tree[len(self._tree) // 2 + b])

    def rooms(self) -> IntArray:
        """Of all bins, a view."""
        leaves = len(self._tree) // 2
        return self._tree[leaves : leaves + self.bins]

    def put(self, b: int, room: int) -> None:
        """Bin b, the next one or an open one, has this room."""
        if b == len(self._tree) // 2:
            wide = Rooms(2 * b)
            for i, value in enumerate(self.rooms().tolist()):
                _put(wide._tree, i, value)
            self._tree = wide._tree
        self.bins = max(self.bins, b + 1)
        _put(self._tree, b, room)

    def first(self, need: int, start: int = 0) -> int | None:
        """The first bin from `start` on that has room for `need` >= 0."""
        b = int(_first(self._tree, need, start))
        return None if b < 0 else b

    def most(self) -> int | None:
        """The first of the bins that have most room."""
        return None if self.bins == 0 else self.first(int(self._tree[1]))


class SortedRooms:
    """The rooms of bins in order: the bin with the least room that is enough. O(log bins + BLOCK) each."""

    def __init__(self, blocks: int = 8) -> None:
        self._keys = np.empty((blocks, BLOCK), np.int64)
        self._length, self._order, self._spare = (np.zeros(blocks, np.int64) for _ in range(3))
        self._state = np.zeros(3, np.int64)

    def put(self, b: int, room: int) -> None:
        """Bin b, not in the list, has this room."""
        if self._state[1] == len(self._keys):
            self._keys = np.concatenate([self._keys, np.empty_like(self._keys)])
            self._length, self._order, self._spare = (np.concatenate([x, np.zeros_like(x)]) for x in (self._length, self._order, self._spare))
        _insert(self._keys, self._length, self._order, self._spare, self._state, room * BINS + b)

    def remove(self, b: int, room: int) -> None:
        """Bin b, in the list with this room, leaves it."""
        _remove(self._keys, self._length, self._order, self._spare, self._state, room * BINS + b)

    def tightest(self, need: int, above: int = -1) -> tuple[int, int] | None:
        """(room, bin) of the bin with the least room >= need, the first opened of equals; after bin `above` among those with room `need`."""
        key = int(_successor(self._keys, self._length, self._order, self._state, need * BINS + above + 1))
        return None if key < 0 else divmod(key, BINS)


def first_fit(size: IntArray, capacity: int, most_bins: int | None = None) -> IntArray | None:
    """Each item, in order, into the first bin with room [N]. None when it takes more than `most_bins`. O(N log N)."""
    most = len(size) if most_bins is None else min(most_bins, len(size))
    found = np.empty(len(size), np.int64)
    bins = _first_fit(size, capacity, most, np.empty(2 * _leaves(most), np.int64), found)
    return None if bins < 0 else found


def best_fit(size: IntArray, capacity: int) -> IntArray:
    """Each item, in order, into the fullest bin with room [N], the first opened of equals. O(N (log N + BLOCK))."""
    blocks = 2 * len(size) // BLOCK + 4
    found = np.empty(len(size), np.int64)
    length, order, spare = (np.zeros(blocks, np.int64) for _ in range(3))
    _best_fit(size, capacity, np.empty((blocks, BLOCK), np.int64), length, order, spare, np.zeros(3, np.int64), found)
    return found


def least_slack(size: IntArray, capacity: int, budget: int) -> IntArray:
    """Bin after bin: the largest item left, and of the others the set that leaves least slack [N].

    The set is searched for depth first, larger items and more of them first, until none is better or `budget` choices were tried; the first set
    that is tried is what first fit by falling size puts into the bin. O(N log N + bins x budget x log N).
    """
    order = np.argsort(-size, kind="stable")
    value, first, copies = np.unique(-size[order], return_index=True, return_counts=True)
    found, result = np.empty(len(size), np.int64), np.empty(len(size), np.int64)
    _least_slack(-value, copies.astype(np.int64), first.astype(np.int64), capacity, budget, found)
    result[order] = found
    return result


__all__ = ["Rooms", "SortedRooms", "best_fit", "first_fit", "least_slack"]
