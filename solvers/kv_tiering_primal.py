"""Schedules from prices: soft sweeps that follow them, hard sweeps that make the schedule feasible, over and over.

A cycle takes the multipliers as its guide, lets the stiffness of both couplings grow over soft sweeps while the guide follows what is missed (the
augmented Lagrangian's own update), then repairs and polishes with hard sweeps, for which the multipliers are the better guide. Cycles differ in
their stiffness and in the order of blocks; the next one sets out from the best schedule so far. Every schedule that is offered is replayed by
`evaluate`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headroom.bounds.kv_tiering_lagrangian import Multipliers, usable_capacity
from headroom.bounds.kv_tiering_search import price_unit
from headroom.formulations.kv_tiering import TieringPlan, make_plan
from headroom.formulations.tolerances import FEASIBILITY
from headroom.instances.kv_tiering import KvTiering
from headroom.solvers.price_ascent import on_simplex
from headroom.solvers.tiered_paths import Items
from headroom.solvers.tiered_replanning import LANES, Guide, Paths, Replanner, Tiers

FloatArray = npt.NDArray[np.float64]
STIFFNESSES = (0.5, 2.0, 0.25, 1.0)
"""Of the steps' maximum, cycle by cycle: a tier that is a mean step's seconds over turns this many units of share."""
HOLD_BAND = 0.02
"""Part of a capacity by which it may be missed before the mean price of holding is added."""
LEAST_PRICE = 0.1
"""Of the dearest tier's price: what the others count as at least when stiffness is chosen."""
SMALLEST_PART = 0.01
"""A bound below this part of the best schedule says little of how long a step is."""
FOLLOW, FOLLOW_AFTER = 0.3, 3
"""How far the guide follows what is missed after each soft sweep, and after how many."""
HARD_WEIGHTS = (0.9, 0.7, 0.5, 0.3, 0.1, 0.02, 0.0, 0.0)
BLOCK_STEP_S, READ_S = 5e-9, 2e-7
"""What a sweep takes for a block-step and for a read on one core, until it has been measured."""
BEGIN_SHARE = 0.03
SOFT_SHARE = 0.6
"""Of the time left, for the soft sweeps of a cycle."""
LANES_FROM = 20_000_000
"""Block-steps from which all but the last hard sweeps run in lanes."""


@dataclass
class Schedules:
    """The search for schedules of one instance. `offer(plan)` hears of every better one."""

    instance: KvTiering
    items: Items
    rng: np.random.Generator
    threads: int
    offer: Callable[[TieringPlan], object]
    stop: Callable[[], bool]
    remaining_s: Callable[[], float]
    best_s: float = field(default=np.inf, init=False)

    def __post_init__(self) -> None:
        instance = self.instance
        # Bounds count with more than `evaluate` accepts, and sums of sizes may miss a whole multiple by their rounding.
        room = np.minimum(usable_capacity(instance) * (1 + FEASIBILITY / 10), instance.capacity[:-1] * (1 + FEASIBILITY / 2))
        tiers = Tiers(instance.read_s, instance.write_s, np.append(room, np.inf))
        self._replanner = Replanner(self.items, tiers, instance.fixed * instance.read_s[0], self.threads)
        self._best = self._replanner.paths.copy()
        self._cycle = 0
        alone_s = BLOCK_STEP_S * instance.block_steps + READ_S * len(instance.reads.block)
        side_by_side_s = alone_s / min(self.threads, LANES)
        self._seconds = {"soft": side_by_side_s, "lanes": side_by_side_s, "alone": alone_s}

    def close(self) -> None:
        """Let the threads go."""
        self._replanner.close()

    def begin(self, plan: TieringPlan | None = None) -> None:
        """Everything in the last tier, which always fits, or a known plan; then one sweep without a guide, where it takes little of the time left."""
        self._keep()
        if plan is not None:
            self._replanner.take(paths_of(self.items, plan))
            self._keep()
        if self._seconds["alone"] < BEGIN_SHARE * self.remaining_s():
            self._hard(self._nothing(), 0.0, "alone")

    def cycle(self, at: Multipliers, bound_s: float, sweeps: int = 20) -> bool:
        """Soft sweeps under these multipliers, which prove `bound_s`, then hard ones. Returns whether the best schedule became better."""
        before = self.best_s
        replanner, instance = self._replanner, self.instance
        replanner.take(self._best)
        guide = guide_of(at)
        step_s = max(bound_s, SMALLEST_PART * self.best_s) / instance.steps
        limit = replanner.tiers.limit
        hold = np.append(self._typical_price(at) / (HOLD_BAND * np.maximum(limit[:-1], float(instance.size.mean()))), 0.0)
        stiffness = STIFFNESSES[self._cycle % len(STIFFNESSES)] / step_s
        self._cycle += 1
        n, grown = 0, 0.0
        # How many fit is judged anew after each: what a sweep takes is known only then, and a machine may have other work.
        while n < (planned := n + self._sweeps_in_time(sweeps - n)) and not self.stop():
            grown = max(grown, min(1.0, (n + 1) / (0.7 * planned)))
            started = time.perf_counter()
            if not replanner.soft(self._order(), guide, grown * stiffness, grown * hold, self.stop):
                break
            self._seconds["soft"] = time.perf_counter() - started
            if n >= FOLLOW_AFTER:
                guide = self._followed(guide, FOLLOW * grown * stiffness, FOLLOW * grown * hold)
            n += 1
        replanner.refresh()
        for weight in HARD_WEIGHTS:
            how = "lanes" if instance.block_steps >= LANES_FROM and weight > 0 else "alone"
            if self.stop() or not self._affordable(how):
                break
            self._hard(guide_of(at), weight, how)
        return self.best_s < before

    def _typical_price(self, at: Multipliers) -> FloatArray:
        """A typical price of a byte in each bounded tier [K - 1]; where it is free now the guide may still have to keep blocks out."""
        if at.hold.shape[1] == 0:
            return np.zeros(0)
        mean = np.where(self._replanner.tiers.limit[:-1] > 0, at.hold.mean(axis=0), 0.0)
        return np.maximum(mean, LEAST_PRICE * max(float(mean.max()), price_unit(self.instance)))

    def _followed(self, guide: Guide, share_step: float, hold_step: FloatArray) -> Guide:
        load, limit = self._replanner.load, self._replanner.tiers.limit
        price = guide.price.copy()
        price[:, :-1] = np.maximum(price[:, :-1] + hold_step[:-1] * (load.held_bytes[:, :-1] - limit[:-1]), 0.0)
        return Guide(on_simplex(guide.share + share_step * load.time_s), price)

    def _hard(self, guide: Guide, weight: float, how: str) -> None:
        """One hard sweep, "alone" or in "lanes", and what stands then is kept if it is the best."""
        started = time.perf_counter()
        self._replanner.hard(self._order(), guide, weight, lanes=how == "lanes")
        self._keep()
        self._seconds[how] = time.perf_counter() - started

    def _affordable(self, how: str) -> bool:
        """Whether one more sweep fits the time left: it cannot be stopped halfway."""
        return self._seconds[how] < self.remaining_s()

    def _sweeps_in_time(self, wanted: int) -> int:
        """Soft sweeps that fit into their share of the time left, when hard ones must follow."""
        hard = self._seconds["lanes"] if self.instance.block_steps >= LANES_FROM else self._seconds["alone"]
        left = self.remaining_s() - 2 * max(hard, self._seconds["soft"])
        return max(0, min(wanted, int(min(SOFT_SHARE * left / max(self._seconds["soft"], 1e-9), wanted))))

    def _order(self) -> npt.NDArray[np.int64]:
        return self.rng.permutation(self.instance.blocks)

    def _nothing(self) -> Guide:
        shape = (self.instance.steps, len(self.instance.tiers))
        return Guide(np.zeros(shape), np.zeros(shape))

    def _keep(self) -> None:
        """Keep what stands if it is feasible and better. Its load is measured afresh: what sweeps added and took away leaves rounding behind."""
        self._replanner.refresh()
        load, limit = self._replanner.load, self._replanner.tiers.limit
        if bool((load.held_bytes <= limit[None, :] * (1 + FEASIBILITY / 10)).all()) and load.objective_s < self.best_s:
            self.best_s = load.objective_s
            self._best = self._replanner.paths.copy()
            self.offer(make_plan(*self._replanner.moves()))


def guide_of(at: Multipliers) -> Guide:
    """The multipliers as the replanner reads them: the cut's share is dealt out evenly."""
    price = np.zeros_like(at.tiers)
    price[:, :-1] = at.hold
    return Guide(at.tiers + (at.cut / at.tiers.shape[1])[:, None], price)


def paths_of(items: Items, plan: TieringPlan) -> Paths:
    """A plan as the replanner keeps it; of several moves between two reads the first is made, and it goes where the last one goes."""
    order = np.lexsort((plan.moves.step, plan.moves.block))
    return Paths.along(items, plan.initial_tier, plan.moves.step[order], plan.moves.block[order], plan.moves.to_tier[order])
