"""Whether slices fit into a number of equal bins, by exhaustion: for few slices, and with numpy alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BUDGET: Final = 20_000
"""Bins tried out; about a quarter of a second."""


class BudgetError(RuntimeError):
    """Too many ways to pack to try them all."""


def pack_bins(size: FloatArray, copies: IntArray, bins: int, capacity: float, budget: int = BUDGET) -> list[IntArray] | None:
    """The slices in each bin when copies[i] slices of size[i] fit into `bins` bins of `capacity`, else None.

    Depth first: the largest slice left goes into the next bin, with every maximal choice of others; states that failed are not tried again.
    Exponential; raises `BudgetError` when `budget` bins have been tried.
    """
    items = np.flatnonzero(copies > 0)
    order = items[np.argsort(-size[items], kind="stable")]
    search = _Search(size[order].tolist(), capacity, budget)
    found = search.packs(tuple(copies[order].tolist()), bins)
    if found is None:
        return None
    packed = []
    for choice in found:
        bin_copies = np.zeros(len(size), dtype=np.int64)
        bin_copies[order] = choice
        packed.append(bin_copies)
    return packed


class _Search:
    def __init__(self, size: list[float], capacity: float, budget: int) -> None:
        self.size, self.capacity, self.left = size, capacity, budget
        self.failed: set[tuple[tuple[int, ...], int]] = set()

    def packs(self, copies: tuple[int, ...], bins: int) -> list[tuple[int, ...]] | None:
        """Choices for the bins, or None."""
        first = next((i for i, count in enumerate(copies) if count), None)
        if first is None:
            return []
        needed = sum(size * count for size, count in zip(self.size, copies, strict=True))
        if bins <= 0 or needed > bins * self.capacity * (1 + 1e-12) or (copies, bins) in self.failed:
            return None
        for choice in self._maximal(copies, first):
            self.left -= 1
            if self.left < 0:
                raise BudgetError
            rest = self.packs(tuple(count - taken for count, taken in zip(copies, choice, strict=True)), bins - 1)
            if rest is not None:
                return [choice, *rest]
        self.failed.add((copies, bins))
        return None

    def _maximal(self, copies: tuple[int, ...], first: int) -> Iterator[tuple[int, ...]]:
        """Choices that hold at least one slice of `first` and to which no further slice can be added, the fullest counts first."""

        def extend(i: int, room: float, taken: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
            if i == len(copies):
                if all(size > room or had == count for size, had, count in zip(self.size, taken, copies, strict=True)):
                    yield taken
                return
            most = min(copies[i], int(room / self.size[i]) if self.size[i] > 0 else copies[i])
            for count in range(most, -1 if i != first else 0, -1):
                yield from extend(i + 1, room - count * self.size[i], (*taken, count))

        # The choice's own rounding must not keep out a slice that fits: the capacity is taken a little larger, which only allows more.
        yield from extend(0, self.capacity * (1 + 1e-12), ())
