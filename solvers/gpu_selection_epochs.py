"""Exact and certified methods for GPU selection over epochs.

`decomposition` works on the problem of serving fleets (`bounds/gpu_selection_stages`), in which types meet only in each epoch's covering:

1. Prices by Dantzig-Wolfe (`gpu_selection_epoch_prices`), long horizons window by window: a Lagrangian bound with certificate.
2. A plan from a corridor around the master's fractional fleets: exact dynamic programming over whole fleets in a moving window.
3. Where the whole grid of fleets is small enough, dynamic programming on all of it: the optimum, and a certificate of it.
4. Slices on a short horizon: HiGHS closes what the bounds above, which let shares be continuous, leave open.

Small fleets have a wide Lagrangian gap (wholeness over time) and a small grid; large fleets the opposite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_epoch_prices import Window, price_bound, search_prices
from headroom.bounds.gpu_selection_epochs import MOST_CELLS
from headroom.bounds.gpu_selection_fleet_cuts import CutPool
from headroom.bounds.gpu_selection_grid import full_cells, full_grid
from headroom.bounds.gpu_selection_stages import closed_form_value, stages_of, unserved_items
from headroom.formulations.gpu_selection import EpochPlan, evaluate
from headroom.formulations.gpu_selection_epochs import fleet, serving
from headroom.formulations.progress import Progress
from headroom.formulations.tolerances import OPTIMALITY_GAP
from headroom.formulations.types import Bound, Outcome, SolveParams, Stop
from headroom.heuristics.gpu_selection_autoscaler import HoldK
from headroom.heuristics.gpu_selection_fleets import epoch_market
from headroom.heuristics.gpu_selection_replay import fleets
from headroom.instances.gpu_selection import GpuSelection
from headroom.solvers.gpu_selection_epochs_highs import SMALL_CELLS, cells, highs_epochs
from headroom.solvers.gpu_selection_epochs_plans import Corridor, plan_for

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
GRID_CELLS_PER_S = 6e7
"""Cells x epochs that dynamic programming gets through in a second on its way forth, which gives the bound. The way back, which gives the plan, takes
twice as long; it is left out when time is up, for the corridor's plan is seldom far from it."""
LONGEST_GRID_S = 600.0
SECONDS_A_DECISION = 4e-3
"""What an online policy takes for an epoch."""


class Decomposition:
    """One run of the method."""

    def __init__(self, instance: GpuSelection, params: SolveParams, progress: Progress) -> None:
        self.instance, self.params, self.progress = instance, params, progress
        self.stages = stages_of(instance)
        self.pool = CutPool(instance, self.stages)
        self.corridor = Corridor(instance, self.stages, self.pool, self.stopped)
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
        self.bounds.append(bound)
        self.progress.keep(bound)

    def run(self) -> None:
        """Bounds and plans, best effort within the limits."""
        for path in self.first_paths():
            self.improve(path)
        prices = search_prices(self.stages, self.pool, self.progress)
        self.stopped()
        self.keep(price_bound(self.instance, self.stages, self.pool, prices))
        if prices.missing > 1e-6 and self.infeasible():
            return
        self.improve(np.round(prices.hold).astype(np.int64))
        if self.progress.gap > OPTIMALITY_GAP and not self.stopped() and self._grid_pays():
            self.grid()
        if self.progress.gap > OPTIMALITY_GAP and not self.stopped() and self.instance.pooled_slices and cells(self.instance) <= SMALL_CELLS:
            self.ask_highs()

    def ask_highs(self) -> None:
        """Slices: the bounds above let shares be continuous. On a short horizon HiGHS closes what that leaves open, on its word alone."""
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
        if self.stages.epochs * SECONDS_A_DECISION < 0.1 * self.progress.remaining_s:
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

    def improve(self, centre: IntArray) -> None:
        """The plan of these fleets, if they serve, and one from the corridor around them."""
        centre = np.clip(centre, 0, self.stages.most)
        for make in (lambda: plan_for(self.instance, self.pool, centre), lambda: self.corridor.plan(centre)):
            plan = None if self.stopped() else make()[0]
            if plan is not None:
                self.progress.offer(plan)

    def _grid_pays(self) -> bool:
        cells = full_cells(self.stages)
        seconds = cells * self.stages.epochs / GRID_CELLS_PER_S
        return cells <= MOST_CELLS and seconds <= min(LONGEST_GRID_S, self.progress.remaining_s)

    def grid(self) -> None:
        """The whole grid: the optimum over fleets that satisfy the cuts; cuts are added until its fleets can serve."""
        for _ in range(20):
            cuts, grid = self.pool.cuts.copy(), full_grid(self.stages, self.pool.cuts)
            _, path = grid.best(self.stopped)
            if grid.proved > -math.inf:
                self.keep(Bound(grid.proved, "fleet_grid", "certificate", {"kind": "fleet_grid", "cuts": cuts}))
            if path is None:
                return
            if self.pool.all_fit(path):
                self.improve(path)
                return

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
        details = {"infeasibility": {"unserved": names}}
        return Outcome(bounds=(Bound(math.inf, "closed_form", "closed_form"),), details=details, notes=(f"no type can serve {', '.join(names[:5])}",))
    work = Decomposition(instance, params, progress)
    work.run()
    return Outcome(plan=work.evened(), bounds=tuple(work.bounds), stop=work.stop, solver=work.solver, details={"cuts": len(work.pool.cuts)})
