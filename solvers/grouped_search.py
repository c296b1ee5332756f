"""Packings where groups share something, by filling bins again: a few bins and what has no bin yet are poured out and filled one after the other.

The search holds one bin less than it has a packing for; what is left over waits. Each step empties some bins, fills them with the content that is
worth most, by `grouped_patterns`' table, and keeps the result where what waits takes no more room than before. A token of a group is worth more the
more overhead its group needs at least for what is there: so whole groups and full shares of groups go together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from headroom.solvers.grouped_patterns import GroupedItems, best_grouped_pattern

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
UNIT: Final = 1 << 12
"""What a token is worth."""
SHAKE: Final = (0.0, 0.003, 0.01, 0.03, 0.1)
"""How far values are changed at random."""
FILL_STEPS: Final = 100_000_000
MOST_BINS: Final = 5
"""Bins emptied in a step."""
PATIENCE: Final = 400
"""Steps without an improvement before bins are emptied that hurt."""


def least_load(items: GroupedItems, copies: IntArray) -> int:
    """Tokens that these copies [m] take at least over all bins: padding once, the overhead in as many bins as their tokens fill."""
    tokens = items.tokens(copies)
    used = tokens > 0
    tokens, room = tokens[used], np.maximum(items.room[used], 1)
    return int((-(-tokens // items.multiple) * items.multiple + -(-tokens // room) * items.overhead[used]).sum())


def values(items: GroupedItems, copies: IntArray, rng: np.random.Generator, shake: float) -> IntArray:
    """What a copy of each type is worth [m]: its tokens and its share of its group's overheads, more for what is large."""
    tokens, room = items.tokens(copies), np.maximum(items.room, 1)
    share = -(-tokens // room) * items.overhead / np.maximum(tokens, 1)
    worth = items.size * (1.0 + share[items.group])
    worth *= 1.0 + 0.3 * shake * rng.random(len(items.size)) + shake * rng.random(len(share))[items.group]
    worth *= 1.0 + shake * rng.random() * np.log2(1.0 + items.size) / 16.0
    return np.maximum(1, np.round(worth * UNIT)).astype(np.int64)


def fill(
    items: GroupedItems, copies: IntArray, bins: int, rng: np.random.Generator, shake: float, stop: Callable[[], bool]
) -> tuple[IntArray, IntArray]:
    """Patterns of up to `bins` bins filled one after the other from these copies [m], and the copies left over."""
    there = np.flatnonzero(copies)
    some = GroupedItems(items.size[there], items.group[there], copies[there], items.overhead, items.multiple, items.capacity)
    left = copies[there]
    found = np.zeros((bins, len(copies)), np.int64)
    nothing = np.zeros(len(items.overhead), np.int64)
    for b in range(bins):
        if not left.any() or stop():
            break
        filled = best_grouped_pattern(some, values(some, left, rng, shake), nothing, left, FILL_STEPS).copies
        found[b, there] = filled
        left = left - filled
    rest = np.zeros_like(copies)
    rest[there] = left
    return found, rest


def squeeze(
    items: GroupedItems, start: IntArray, wanted: int, rng: np.random.Generator, stop: Callable[[], bool], report: Callable[[IntArray], object],
    most_steps: int,
) -> IntArray:  # fmt: skip
    """Patterns [n][m] of a packing with fewer bins than `start`, down to `wanted` if it gets there; `report` hears of each. Anytime."""
    best = start
    while len(best) > wanted and not stop():
        fewer = _one_less(items, best, rng, stop, most_steps)
        if fewer is None:
            return best
        best = fewer
        report(best)
    return best


def _one_less(items: GroupedItems, patterns: IntArray, rng: np.random.Generator, stop: Callable[[], bool], most_steps: int) -> IntArray | None:
    gone = int(np.argmin([least_load(items, p) for p in patterns]))
    return settle(items, np.delete(patterns, gone, axis=0), patterns[gone], rng, stop, most_steps)


def settle(
    items: GroupedItems, held: IntArray, wait: IntArray, rng: np.random.Generator, stop: Callable[[], bool], most_steps: int
) -> IntArray | None:
    """Patterns [n][m] of as many bins as `held` with what waits [m] in them too; None where that is not found in so many steps."""
    held, wait = held.copy(), wait.copy()
    waste = _waste(items, held)
    now, idle = least_load(items, wait), 0
    for _ in range(most_steps):
        if not wait.any():
            return held
        if stop():
            return None
        count = min(len(held), int(rng.integers(1, MOST_BINS + 1)))
        chance = waste + 0.2 * waste.mean() + 1.0
        chosen = rng.choice(len(held), count, replace=False, p=chance / chance.sum())
        total = held[chosen].sum(axis=0) + wait
        filled, rest = fill(items, total, count, rng, float(rng.choice(SHAKE)), stop)
        if stop():
            return None
        after = least_load(items, rest)
        idle += 1
        if after <= now or (idle > PATIENCE and after <= 1.2 * now):
            if after < now or idle > PATIENCE:
                idle = 0
            held[chosen], wait, now = filled, rest, after
            waste[chosen] = _waste(items, filled)
    return held if not wait.any() else None


def _waste(items: GroupedItems, patterns: IntArray) -> FloatArray:
    """Room of each bin that holds no tokens, overhead included [n]."""
    return items.capacity - (patterns @ items.size).astype(np.float64)


__all__ = ["fill", "least_load", "settle", "squeeze", "values"]
