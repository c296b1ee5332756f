"""Exact and certified methods for GPU selection over epochs.

`decomposition` works on the problem of serving fleets (`bounds/gpu_selection_stages`), in which types meet only in each epoch's covering:

1. Prices by Dantzig-Wolfe (`gpu_selection_epoch_prices`), long horizons window by window: a Lagrangian bound with certificate.
2. A plan from a corridor around the master's fractional fleets: exact dynamic programming over whole fleets in a moving window.
3. Blocks of epochs solved exactly over the fleets that the prices cannot rule out, then merged, at best until the horizon is one block: a bound that
   sees wholeness over time (`gpu_selection_blocks`), and better plans.
4. Slices, or pools with delays, on a short horizon: HiGHS closes what the bounds above, which ignore that, leave open.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_epoch_prices import Window, WindowPrices, price_bound, search_prices
from headroom.bounds.gpu_selection_fleet_cuts import CutPool
from headroom.bounds.gpu_selection_stages import closed_form_value, crowded_pools, stages_of, unserved_items
from headroom.formulations.gpu_selection import EpochPlan, evaluate
from headroom.formulations.gpu_selection_epochs import epoch_plan, epochs_of, fleet, serving
from headroom.formulations.progress import Progress
from headroom.formulations.tolerances import OPTIMALITY_GAP
from headroom.formulations.types import Bound, Outcome, SolveParams, Stop
from headroom.heuristics.gpu_selection_autoscaler import HoldK
from headroom.heuristics.gpu_selection_fleets import epoch_market
from headroom.heuristics.gpu_selection_replay import fleets
from headroom.instances.gpu_selection import GpuSelection
from headroom.solvers.gpu_selection_epochs_blocks import BlockSearch
from headroom.solvers.gpu_selection_epochs_highs import SMALL_CELLS, cells, highs_epochs
from headroom.solvers.gpu_selection_epochs_plans import Corridor, plan_for, rented

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
CORRIDOR_SHARE = 0.25
LEAST_GAIN = 1e-5
"""Blocks are not merged further when some were left open and the level raised the bound by less than this."""
CLOSE = 2e-3
"""Blocks' fleets are worth a corridor when they cost at most this much more than the best plan: at first they are dear where blocks meet."""
SECONDS_A_DECISION = 4e-3
"""What an online policy takes for an epoch."""


class Decomposition:
    """One run of the method."""

    def __init__(self, instance: GpuSelection, params: SolveParams, progress: Progress) -> None:
        self.instance, self.params, self.progress = instance, params, progress
        self.stages = stages_of(instance)
        self.pool = CutPool(instance, self.stages, self.stopped)
        self.deadline_s = math.inf
        self.safe = np.tile(self.stages.most, (self.stages.epochs, 1))
        self.corridor = Corridor(instance, self.stages, self.pool, self._leave_corridor)
        self.stop: Stop = "completed"
        self.solver: str | None = None
        self.bounds: list[Bound] = [Bound(closed_form_value(instance), "closed_form", "closed_form")]
        progress.keep(self.bounds[0])

    def stopped(self) -> bool:
        reason = self.progress.should_stop()
        if reason is not None:
            self.stop = reason
        return reason is not None

    def keep(self, bound: Bound) -> None:
        """A bound that the caller learns of even if the method is cut off."""
        self.bounds = [old for old in self.bounds if old.method != bound.method or old.value > bound.value] + [bound]
        self.progress.keep(bound)

    def run(self) -> None:
        """Bounds and plans, best effort within the limits."""
        self.offer_divisible()
        for path in self.first_paths():
            self.offer(path)
        prices = search_prices(self.stages, self.pool, self.progress)
        self.stopped()
        self.keep(price_bound(self.instance, self.stages, self.pool, prices))
        if prices.missing > 1e-6 and self.infeasible():
            return
        # What the prices' master holds serves as it is, so rounded up it does; pools and caps may forbid that.
        self.safe = np.minimum(np.ceil(prices.hold - 1e-6).astype(np.int64), self.stages.most)
        self.offer(self.safe)
        self.improve(np.round(prices.hold).astype(np.int64))
        if self._open():
            self.blocks(prices)
        if self._open() and self._beyond_fleets() and cells(self.instance) <= SMALL_CELLS:
            self.ask_highs()

    def _beyond_fleets(self) -> bool:
        """Whether the bounds see less than the problem: they let shares be continuous, and pools hold what serves, not what starts."""
        return self.instance.pooled_slices is not None or (len(self.stages.pool_limit) > 0 and epochs_of(self.instance).start_delay_epochs > 0)

    def _open(self) -> bool:
        return self.progress.gap > OPTIMALITY_GAP and not self.stopped()

    def blocks(self, prices: WindowPrices) -> None:
        """Exact blocks, merged as long as they are solved; plans from their fleets."""
        if not isinstance(self.progress.plan, EpochPlan):
            return
        path = serving(self.instance, fleet(self.instance, self.progress.plan))
        search = BlockSearch(self.stages, self.pool, prices, path, self.stopped)
        while True:
            proved = search.blocks.total
            left_open = search.level()
            if search.blocks.total > max(bound.value for bound in self.bounds):
                self.keep(Bound(search.blocks.total, "fleet_blocks", "certificate", search.certificate))
            if not (search.path == path).all():
                path = search.path.copy()
                best = self._better(path)
                if self.stages.cost(path) <= (1 + CLOSE) * self.stages.cost(best):
                    self.improve(path)
                search.path = self._better(path)
            gained = search.blocks.total - proved
            if not self._open() or (left_open and gained < LEAST_GAIN * abs(proved)) or not search.merge():
                return

    def _better(self, path: IntArray) -> IntArray:
        """The best plan's fleets if they cost less than these, which may be dear where blocks meet."""
        plan = self.progress.plan
        assert isinstance(plan, EpochPlan)
        best = serving(self.instance, fleet(self.instance, plan))
        return best if self.stages.cost(best) < self.stages.cost(path) else path

    def ask_highs(self) -> None:
        """On a short horizon HiGHS closes what the bounds above leave open, on its word alone."""
        answer = highs_epochs(self.instance, self.params, self.progress)
        for bound in answer.bounds:
            if bound.proof == "solver":
                self.keep(bound)
        self.stop, self.solver = answer.stop, answer.solver

    def first_paths(self) -> Iterator[IntArray]:
        """Where plans start from: the given plan, the cheapest fleet of each epoch, and an online policy's fleets when there is time for it."""
        if isinstance(self.progress.plan, EpochPlan):
            yield serving(self.instance, fleet(self.instance, self.progress.plan))
        path = np.zeros((self.stages.epochs, self.stages.types), dtype=np.int64)
        divisible = self.stages.need_of(np.tile(self.stages.rent, (self.stages.epochs, 1)))
        for t in range(self.stages.epochs):
            found = None if self.stopped() else self.pool.cheapest(t, self.stages.rent, float(divisible[t]), None)[1]
            path[t] = self.stages.most if found is None else found
        if not self.stopped():
            yield path
        if epochs_of(self.instance).start_delay_epochs == 0 and self.stages.epochs * SECONDS_A_DECISION < 0.1 * self.progress.remaining_s:
            yield serving(self.instance, fleets(self.instance, HoldK(epoch_market(self.instance))))

    def infeasible(self) -> bool:
        """Whether prices without rent or starts prove that there is no plan."""
        free = replace(self.stages, rent=np.zeros(self.stages.types), rise=np.zeros(self.stages.types))
        window = Window(free, self.pool, 0)
        prices = window.run(self.stopped, remaining_s=lambda: self.progress.remaining_s)
        bound = price_bound(self.instance, self.stages, self.pool, prices, with_cost=False)
        if bound.value == math.inf:
            self.keep(bound)
        return bound.value == math.inf

    def why_infeasible(self) -> tuple[dict[str, Any], str] | None:
        """The first epoch that all replicas that could serve then cannot serve, and by how much; None when it takes several epochs to tell."""
        s = self.stages
        for t in range(s.epochs):
            could = s.most if s.initial is None or s.may_rise[: t + 1].any() else s.initial
            shed = self.pool.serving.shortfall(s.rate[t], could)
            if shed > 0:
                late = " before any start takes effect" if could is not s.most else ""
                record = {"epoch": t, "replicas": {gpu.name: int(k) for gpu, k in zip(self.instance.gpus, could, strict=True)}, "shed_share": shed}
                words = f"epoch {t} cannot be served: the {int(could.sum())} replicas that can serve{late} leave {100 * shed:.3g}% of its requests"
                return record, words
        return None

    def offer_divisible(self) -> None:
        """Every item on its cheapest type, counts rounded up: a plan in no time, where caps and pools allow it and slices are not asked for."""
        s = self.stages
        cost = np.where(np.isfinite(s.load), s.rent[:, None] * np.where(np.isfinite(s.load), s.load, 0.0), np.inf)
        chosen = np.argmin(cost, axis=0)
        one_hot = (np.arange(s.types)[:, None] == chosen) & np.isfinite(s.load)
        busy = s.rate @ np.where(one_hot, s.load, 0.0).T
        n = rented(self.instance, np.maximum(np.ceil(busy * (1 - 1e-12)).astype(np.int64), s.least))
        if self.instance.pooled_slices is None and (n <= s.most).all():
            share = np.broadcast_to(one_hot.astype(np.float64), (s.epochs, *one_hot.shape))
            self.progress.offer(epoch_plan(self.instance, n, share))

    def offer(self, path: IntArray) -> None:
        """The plan of these fleets, if they serve."""
        plan = None if self.stopped() else plan_for(self.instance, self.pool, path)[0]
        if plan is not None:
            self.progress.offer(plan)

    def improve(self, centre: IntArray) -> None:
        """The plan of these fleets, and one from the corridor around them, in a part of the time left."""
        centre = np.clip(centre, 0, self.stages.most)
        self.offer(centre)
        self.deadline_s = self.progress.elapsed_s + CORRIDOR_SHARE * self.progress.remaining_s
        plan, path = (None, None) if self.stopped() else self.corridor.plan(centre)
        if plan is not None:
            self.progress.offer(plan)
        elif path is not None:
            lacking = [t for t in range(len(path)) if not self.pool.fits(t, path[t])]
            path[lacking] = np.maximum(path[lacking], self.safe[lacking])
            self.offer(path)

    def _leave_corridor(self) -> bool:
        return self.stopped() or self.progress.elapsed_s > self.deadline_s

    def evened(self) -> EpochPlan | None:
        """The best plan with its loads evened out over each epoch's replicas, when there is time for that."""
        plan = self.progress.plan
        if isinstance(plan, EpochPlan) and self.instance.pooled_slices is None and self.progress.should_stop() is None:
            even, _ = plan_for(self.instance, self.pool, serving(self.instance, fleet(self.instance, plan)), even=True)
            if even is not None and evaluate(self.instance, even).feasible:
                return even
        return plan if isinstance(plan, EpochPlan) else None


def decomposition(instance: GpuSelection, params: SolveParams, progress: Progress) -> Outcome:
    """Plans and certified bounds for any horizon; optimal on small grids. Anytime."""
    missing = unserved_items(instance)
    if len(missing):
        names = [instance.work[i].name for i in missing]
        why = {"infeasibility": {"unserved": names}}
        return Outcome(bounds=(Bound(math.inf, "closed_form", "closed_form"),), details=why, notes=(f"no type can serve {', '.join(names[:5])}",))
    crowded = crowded_pools(instance)
    if crowded:
        note = f"the floors of its types take more GPUs than pool {crowded[0]} has"
        return Outcome(bounds=(Bound(math.inf, "closed_form", "closed_form"),), details={"infeasibility": {"pools": crowded}}, notes=(note,))
    work = Decomposition(instance, params, progress)
    work.run()
    details: dict[str, Any] = {"cuts": len(work.pool.cuts)}
    notes: tuple[str, ...] = ()
    if any(bound.value == math.inf for bound in work.bounds):
        reason = work.why_infeasible()
        if reason is not None:
            details["infeasibility"], notes = reason[0], (reason[1],)
    elif work.stop == "completed" and progress.gap > OPTIMALITY_GAP and progress.plan is not None:
        notes = ("the search ended before the limits: what is open between plan and bound takes lists of fleets too long to search",)
    return Outcome(plan=work.evened(), bounds=tuple(work.bounds), stop=work.stop, solver=work.solver, notes=notes, details=details)
