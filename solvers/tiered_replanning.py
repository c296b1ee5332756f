"""Replanning items through tiers one at a time, each along its exact best path against what all others do: coordinate descent on schedules.

All items together load tiers: seconds of work by step and tier (a step lasts as long as its busiest tier), bytes held by step and tier (limited).
An item's path is taken out, the cheapest path against the others' load is found by dynamic programming over its events and the steps between, and
put in.

- Soft sweeps charge the augmented Lagrangian of both couplings. A second of tier k's work in step t costs the weight that the proximal maximum
  gives it: that of max sum_k w_k y_k - (w - share)^2 / (2 stiffness) over the simplex, with the curvature of two tiers that both count (of more it is
  a model); a byte held costs (price + stiffness (held - limit))+. Many small items then settle near the linear relaxation's optimum, up to what
  whole items can do, and capacities are exceeded by little.
- Hard sweeps charge the true maximum and forbid what does not fit. After one sweep over all items the schedule is feasible; another one item after
  item, with `weight` 0, never makes it longer. A larger `weight` lets the guide's prices speak where the maximum is indifferent.

Sweeps in lanes replan several items side by side, which see each other's load after each batch only; room that is free is shared out among the lanes
beforehand, so that what fits one lane fits. The number of lanes is fixed, so that threads don't change the answer.

A path changes tier at events, and at most once between two of them. Time of a sweep: O(item-steps K^2); memory O(events + T K). Items' moves are
kept by event: 6 bytes each.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headroom.solvers.tiered_paths import Items
from headroom.solvers.tiered_replanning_kernels import along_kernel, load_kernel, moves_kernel, sweep_kernel

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Stop = Callable[[], bool]
LANES, BATCHES = 2, 16
"""Items replanned side by side, and how often in a sweep the lanes hear of each other."""


def never() -> bool:
    """Nothing stops it."""
    return False


@dataclass(frozen=True)
class Tiers:
    """Seconds a byte read from and written to each tier [K]; `limit` bytes that it holds [K], infinite for the last."""

    read_s: FloatArray
    write_s: FloatArray
    limit: FloatArray


@dataclass
class Paths:
    """Every item's path. Item i's stretches before its events e = first[i] .. first[i + 1] - 1, and the one after the last, are entries e + i:
    `before`: tier at the stretch's end, `when`: step of the move in it (-1: none), `after`: tier after the event that ends it; `born` [N]."""

    born: npt.NDArray[np.int8]
    before: npt.NDArray[np.int8]
    after: npt.NDArray[np.int8]
    when: npt.NDArray[np.int32]

    @classmethod
    def all_in(cls, items: Items, tier: int) -> Paths:
        """Everything in one tier for ever."""
        entries = len(items.step) + items.count
        tiers = (np.full(items.count, tier, np.int8), np.full(entries, tier, np.int8), np.full(entries, tier, np.int8))
        return cls(*tiers, np.full(entries, -1, np.int32))

    @classmethod
    def along(cls, items: Items, born: IntArray, step: IntArray, item: IntArray, to: IntArray) -> Paths:
        """The paths of moves that are sorted by item, then step. Of several in one stretch the first is made, and it goes where the last one goes."""
        paths = cls.all_in(items, items.tiers - 1)
        paths.born[:] = born
        first = np.searchsorted(item, np.arange(items.count + 1)).astype(np.int64)
        along_kernel(items.first, items.step, items.end, paths.born, first, step, to, paths.before, paths.after, paths.when)
        return paths

    def copy(self) -> Paths:
        return Paths(self.born.copy(), self.before.copy(), self.after.copy(), self.when.copy())


@dataclass
class Load:
    """`time_s` [T][K], `held_bytes` [T][K]."""

    time_s: FloatArray
    held_bytes: FloatArray

    def copy(self) -> Load:
        return Load(self.time_s.copy(), self.held_bytes.copy())

    @property
    def objective_s(self) -> float:
        """Seconds of all steps."""
        return float(self.time_s.max(axis=1).sum())


@dataclass(frozen=True)
class Guide:
    """`share` [T][K] of the tiers in each step's second (rows add up to at most 1), `price` [T][K] of a byte held (the last tier's 0)."""

    share: FloatArray
    price: FloatArray


class Replanner:
    """The paths of all items and their load, changed in place by sweeps."""

    def __init__(self, items: Items, tiers: Tiers, fixed_s: FloatArray, threads: int = 1) -> None:
        self.items = items
        self.tiers = tiers
        self._fixed_s = fixed_s
        self._kind = (0,) * items.tiers
        self._amount = np.zeros(0) if items.amount is None else items.amount
        self._pool = ThreadPoolExecutor(min(threads, LANES)) if threads > 1 else None
        self.paths = Paths.all_in(items, items.tiers - 1)
        self.load = self.measure(self.paths)

    def close(self) -> None:
        """Let the threads go."""
        if self._pool is not None:
            self._pool.shutdown()

    def measure(self, paths: Paths) -> Load:
        """The load of paths, afresh."""
        items = self.items
        load = Load(np.zeros((items.steps, items.tiers)), np.zeros((items.steps, items.tiers)))
        load.time_s[:, 0] = self._fixed_s
        load_kernel(
            self._kind, items.first, items.step, self._amount, items.amount is not None, items.size, items.start, items.end, items.inclusive,
            paths.born, paths.before, paths.after, paths.when, load.time_s, load.held_bytes, self.tiers.read_s, self.tiers.write_s,
        )  # fmt: skip
        return load

    def take(self, paths: Paths) -> None:
        """Go on from these paths (a copy of them)."""
        self.paths = paths.copy()
        self.refresh()

    def refresh(self) -> None:
        """Measure the load afresh. Sweeps add to it and take from it: what was large and went away leaves its rounding behind."""
        self.load = self.measure(self.paths)

    def soft(self, order: IntArray, guide: Guide, stiffness: float, hold_stiffness: FloatArray, stop: Stop = never) -> bool:
        """One soft sweep over the items in `order`; `stiffness` in shares a second, `hold_stiffness` [K] in price a byte. Whether it was finished."""
        return self._in_lanes(order, True, guide, stiffness, hold_stiffness, 1.0, stop)

    def hard(self, order: IntArray, guide: Guide, weight: float, lanes: bool = False) -> None:
        """One hard sweep; `weight` of the guide's prices beside the true maximum, 0 to 1; in lanes it may make the schedule a little longer."""
        nothing = np.zeros(self.items.tiers)
        if lanes:
            self._in_lanes(order, False, guide, 0.0, nothing, weight, never)
        else:
            limit = np.broadcast_to(self.tiers.limit, self.load.held_bytes.shape)
            self._sweep(order, False, self.load, limit, guide, 0.0, nothing, weight)

    def _in_lanes(self, order: IntArray, soft: bool, guide: Guide, stiffness: float, hold_stiffness: FloatArray, weight: float, stop: Stop) -> bool:
        lanes = [order[lane::LANES] for lane in range(LANES)]
        for batch in range(BATCHES):
            if stop():
                return False
            parts = [lane[len(lane) * batch // BATCHES : len(lane) * (batch + 1) // BATCHES] for lane in lanes]
            loads = [self.load.copy() for _ in parts]
            limit = np.broadcast_to(self.tiers.limit, self.load.held_bytes.shape)
            if not soft:
                free = limit - self.load.held_bytes
                limit = np.where(free > 0, self.load.held_bytes + free / LANES, limit)

            def job(lane: int, parts: list[IntArray] = parts, loads: list[Load] = loads, limit: FloatArray = limit) -> None:
                self._sweep(parts[lane], soft, loads[lane], limit, guide, stiffness, hold_stiffness, weight)

            list(map(job, range(LANES)) if self._pool is None else self._pool.map(job, range(LANES)))
            for name in ("time_s", "held_bytes"):
                old = getattr(self.load, name)
                setattr(self.load, name, sum((getattr(load, name) - old for load in loads), old))
        return True

    def _sweep(
        self, order: IntArray, soft: bool, load: Load, limit: FloatArray, guide: Guide, stiffness: float, hold_stiffness: FloatArray, weight: float
    ) -> None:
        items, paths = self.items, self.paths
        sweep_kernel(
            self._kind, order, soft, items.first, items.step, self._amount, items.amount is not None, items.size, items.start, items.end,
            items.most_events, items.inclusive, paths.born, paths.before, paths.after, paths.when, load.time_s, load.held_bytes,
            self.tiers.read_s, self.tiers.write_s, np.ascontiguousarray(limit), guide.share, guide.price, stiffness, hold_stiffness, weight,
        )  # fmt: skip

    def moves(self) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """The first tier of each item, and step, item and new tier of every move."""
        count = moves_kernel(self.items.first, self.items.step, self.paths.born, self.paths.before, self.paths.after, self.paths.when, *_nowhere())
        out = (np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.int64))
        moves_kernel(self.items.first, self.items.step, self.paths.born, self.paths.before, self.paths.after, self.paths.when, *out)
        return self.paths.born.astype(np.int64), *out


def _nowhere() -> tuple[IntArray, IntArray, IntArray]:
    return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)
