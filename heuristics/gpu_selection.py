"""Baselines for GPU selection, under the names the field uses. All return None when caps or pools leave them without a fleet.

| name               | kind      | what it does                                                                        |
|--------------------|-----------|-------------------------------------------------------------------------------------|
| `single_type`      | heuristic | everything on one type; the cheapest of those that can (Mélange's baselines)         |
| `greedy`           | heuristic | each item on its cheapest type per request, then consolidation                      |
| `OnlineFirstFit`   | policy    | slices arrive in random order; the first type with room takes one, else rent anew    |

Over epochs: autoscalers in `gpu_selection_autoscaler`, their replay and `static_peak` in `gpu_selection_replay`.

With `spare_replicas` each keeps one replica more of every type in use than its shares need, so that the same shares survive a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_boxes import Data, data_of
from headroom.formulations.gpu_selection import GpuSelectionPlan, plan_from_arrays
from headroom.formulations.types import Outcome, Plan
from headroom.heuristics.gpu_selection_consolidate import consolidate, counts_for, fits
from headroom.heuristics.gpu_selection_replay import replay_policy
from headroom.instances.gpu_selection import GpuSelection

FloatArray = npt.NDArray[np.float64]
CONTINUOUS_ARRIVALS_PER_ITEM = 16
"""How finely `replay` cuts an item whose shares are continuous into arrivals."""


def plan_of(data: Data, y: FloatArray, n: FloatArray) -> GpuSelectionPlan:
    """The plan with slice counts y [G][loaded items] and counts n [G]; after a loss the shares stay as they are."""
    instance = data.instance
    share = np.zeros((len(instance.gpus), len(instance.work)))
    share[:, data.items] = y / data.slices
    count = n.astype(np.int64)
    lost = {int(h): share for h in np.flatnonzero(count > 0)} if instance.spare_replicas else None
    return plan_from_arrays(instance, count, share, lost)


def single_type(instance: GpuSelection, rng: np.random.Generator) -> GpuSelectionPlan | None:
    """The cheapest fleet of one type alone. No guarantee: the ratio to the optimum is unbounded. O(G I)."""
    plans = [plan for plan in each_single_type(instance) if plan is not None]
    price = dict(zip((gpu.name for gpu in instance.gpus), instance.price_usd_per_h.tolist(), strict=True))
    return min(plans, key=lambda plan: sum(price[name] * n for name, n in plan.count.items()), default=None)


def each_single_type(instance: GpuSelection) -> list[GpuSelectionPlan | None]:
    """For each type [G] the fleet that serves everything with it alone; None where it cannot serve an item or a cap forbids it."""
    data = data_of(instance)
    plans: list[GpuSelectionPlan | None] = []
    for g in range(len(instance.gpus)):
        if not data.can_serve[g].all():
            plans.append(None)
            continue
        y = np.zeros(data.can_serve.shape)
        y[g] = data.slices
        n = counts_for(data, y)
        plans.append(plan_of(data, y, n) if fits(data, n) else None)
    return plans


def greedy(instance: GpuSelection, rng: np.random.Generator) -> GpuSelectionPlan | None:
    """Items in order of what a second choice would cost, each to the cheapest type per request that caps still allow; then consolidation.

    No guarantee beyond the closed-form bound plus one replica of each type when there are no caps and no consolidation. O(G I log I + moves).
    """
    data = data_of(instance)
    y = cheapest_types(data)
    if y is None:
        return None
    y, n = consolidate(data, y)
    return plan_of(data, y, n) if fits(data, n) else None


def cheapest_types(data: Data) -> FloatArray | None:
    """Slice counts [G][I] with every item on its cheapest type per request; caps and pools push slices to the next best type."""
    cost = np.where(data.can_serve, data.price[:, None] * data.slice_load, np.inf)
    y = np.zeros(cost.shape)
    if not data.can_serve.any(axis=0).all():
        return None
    ranked = np.sort(cost, axis=0)
    regret = ranked[min(1, len(ranked) - 1)] - ranked[0]
    room = _LoadRoom(data)
    for i in np.argsort(-np.where(np.isfinite(regret), regret, np.finfo(float).max), kind="stable"):
        left = data.slices
        for g in np.argsort(cost[:, i], kind="stable"):
            if not data.can_serve[g, i] or left <= 0:
                break
            amount = min(left, room.slices(int(g), data.slice_load[g, i]))
            if data.integral:
                amount = math.floor(amount + 1e-9)
            if amount > 0:
                y[g, i] += amount
                room.take(int(g), amount * data.slice_load[g, i])
                left -= amount
        if left > 1e-12:
            return None
    return y


class _LoadRoom:
    """How much load each type may still get before a cap or pool stops it."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.load = np.zeros(len(data.price))
        self.u = data.instance.max_utilisation

    def slices(self, g: int, slice_load: float) -> float:
        most = self._most_replicas(g) * self.u - self.load[g]
        return math.inf if slice_load <= 0 else max(most, 0.0) / slice_load

    def take(self, g: int, load: float) -> None:
        self.load[g] += load

    def _most_replicas(self, g: int) -> float:
        data, spare = self.data, self.data.instance.spare_replicas
        n = np.maximum(np.ceil(self.load / self.u - 1e-9) + np.where(self.load > 0, spare, 0), data.instance.min_count)
        most = float(data.instance.max_count[g])
        for gpus, limit in zip(data.pool_gpus, data.pool_limit, strict=True):
            if gpus[g] > 0:
                most = min(most, math.floor((limit - float((gpus * n).sum()) + gpus[g] * n[g]) / gpus[g] + 1e-9))
        return most - spare


@dataclass(frozen=True)
class Market:
    """What an online policy may know beforehand: types, prices and limits, but no rate and no arrival."""

    price_usd_per_h: FloatArray
    min_count: FloatArray
    max_count: FloatArray
    pool_gpus: FloatArray
    pool_limit: FloatArray
    max_utilisation: float
    spare_replicas: int


@dataclass(frozen=True)
class Slice:
    """An arrival: the replicas of each type [G] that serving it would keep busy; +inf where a type cannot."""

    load_replicas: FloatArray


class SlicePolicy(Protocol):
    """Decides at once and for good which type serves an arriving slice, and how many replicas stand then."""

    count: FloatArray

    def __init__(self, market: Market) -> None: ...

    def decide(self, arrival: Slice) -> int | None: ...


class OnlineFirstFit:
    """First fit: the first type with room, in order of what the slice costs there, takes it; if none has room, the first that may grow rents."""

    def __init__(self, market: Market) -> None:
        self.market = market
        self.count = market.min_count.copy()
        self.load = np.zeros(len(market.price_usd_per_h))

    def decide(self, arrival: Slice) -> int | None:
        """The type that serves the slice (renting what is missing), or None when no type may."""
        able = np.flatnonzero(np.isfinite(arrival.load_replicas))
        order = able[np.argsort(self.market.price_usd_per_h[able] * arrival.load_replicas[able], kind="stable")]
        for admits in (lambda g: self._needed(g, arrival) <= self.count[g], lambda g: self._allowed(g, arrival)):
            for g in order:
                if admits(int(g)):
                    return self._serve(int(g), arrival)
        return None

    def _needed(self, g: int, arrival: Slice) -> float:
        """Replicas of g that must stand once it has the slice."""
        if not np.isfinite(arrival.load_replicas[g]):
            return math.inf
        load = float(self.load[g] + arrival.load_replicas[g])
        return math.ceil(load / self.market.max_utilisation * (1 - 1e-10)) + self.market.spare_replicas

    def _allowed(self, g: int, arrival: Slice) -> bool:
        needed = self._needed(g, arrival)
        if needed > self.market.max_count[g]:
            return False
        extra = needed - self.count[g]
        used = self.market.pool_gpus @ self.count + self.market.pool_gpus[:, g] * extra
        return bool((used <= self.market.pool_limit).all())

    def _serve(self, g: int, arrival: Slice) -> int:
        self.count[g] = max(self.count[g], self._needed(g, arrival))
        self.load[g] += arrival.load_replicas[g]
        return g


def market_of(instance: GpuSelection) -> Market:
    """The part of the instance that is known before any request arrives."""
    return Market(
        price_usd_per_h=instance.price_usd_per_h,
        min_count=instance.min_count.astype(np.float64),
        max_count=instance.max_count,
        pool_gpus=instance.pool_gpus,
        pool_limit=instance.pool_limit,
        max_utilisation=instance.max_utilisation,
        spare_replicas=instance.spare_replicas,
    )


def arrivals(instance: GpuSelection, rng: np.random.Generator) -> Iterator[tuple[int, Slice]]:
    """(loaded item, slice) in random order: `slices` of each item, or CONTINUOUS_ARRIVALS_PER_ITEM when shares are continuous."""
    data = data_of(instance)
    each = instance.pooled_slices or CONTINUOUS_ARRIVALS_PER_ITEM
    load = np.where(data.can_serve, instance.load_replicas[:, data.items] / each, np.inf)
    for i in rng.permutation(np.repeat(np.arange(len(data.items)), each)):
        yield int(i), Slice(load[:, i])


def replay(instance: GpuSelection, policy: Callable[[Any], Any], rng: np.random.Generator) -> Plan | Outcome | None:
    """Feed a policy what it may see: slices one by one, or with epochs the rates of one epoch at a time (then with what it dropped as a note)."""
    if instance.mode == "epochs":
        return replay_policy(instance, policy).outcome()
    if instance.mode == "per_replica":
        from headroom.heuristics.gpu_selection_per_replica import replay_whole

        return replay_whole(instance, policy, rng)
    return replay_slices(instance, policy, rng)


def replay_slices(instance: GpuSelection, policy: Callable[[Market], SlicePolicy], rng: np.random.Generator) -> GpuSelectionPlan | None:
    """Feed a policy its arrivals one by one; None when it had to turn one away or started beyond a pool's limit."""
    data = data_of(instance)
    each = instance.pooled_slices or CONTINUOUS_ARRIVALS_PER_ITEM
    served = np.zeros(data.can_serve.shape)
    decider = policy(market_of(instance))
    for i, arrival in arrivals(instance, rng):
        g = decider.decide(arrival)
        if g is None:
            return None
        served[g, i] += 1
    n = np.asarray(decider.count)
    return plan_of(data, served * (data.slices / each), n) if fits(data, n) else None
