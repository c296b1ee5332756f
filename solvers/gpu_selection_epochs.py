"""Exact and certified methods for GPU selection over epochs.

`decomposition` works on the problem of serving fleets (`bounds/gpu_selection_stages`), in which types meet only in each epoch's covering:

1. Prices by Dantzig-Wolfe (`gpu_selection_epoch_prices`), long horizons window by window, cut where demand falls: a Lagrangian bound with certificate.
2. A plan from a corridor around the master's fractional fleets: exact dynamic programming over whole fleets in a moving window.
3. Where the whole grid of fleets is small enough, dynamic programming on all of it: the optimum, and a certificate of it.

Small fleets have a wide Lagrangian gap (wholeness over time) and a small grid; large fleets the opposite.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_epochs import MOST_CELLS, prices_value
from headroom.bounds.gpu_selection_grid import full_cells, full_grid
from headroom.bounds.gpu_selection_stages import Stages, closed_form_value, stages_of, unserved_items
from headroom.formulations.gpu_selection import EpochPlan, evaluate
from headroom.formulations.gpu_selection_epochs import fleet, serving
from headroom.formulations.progress import Progress
from headroom.formulations.tolerances import OPTIMALITY_GAP
from headroom.formulations.types import Bound, Outcome, SolveParams, Stop
from headroom.instances.gpu_selection import GpuSelection
from headroom.solvers.gpu_selection_cuts import CutPool
from headroom.solvers.gpu_selection_epoch_prices import Window, WindowPrices
from headroom.solvers.gpu_selection_epochs_plans import Corridor, plan_for

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
WINDOW = 400
GRID_CELLS_PER_S = 2.5e7
"""Cells x epochs that dynamic programming gets through in a second, forth and back."""
LONGEST_GRID_S = 600.0


class Decomposition:
    """One run of the method."""

    def __init__(self, instance: GpuSelection, params: SolveParams, progress: Progress) -> None:
        self.instance, self.params, self.progress = instance, params, progress
        self.stages = stages_of(instance)
        self.pool = CutPool(instance, self.stages)
        self.corridor = Corridor(instance, self.stages, self.pool, self.stopped)
        self.stop: Stop = "completed"
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
        prices = self.prices()
        self.keep(self.price_bound(prices))
        if prices.missing > 1e-6 and self.infeasible():
            return
        self.improve(np.round(prices.hold).astype(np.int64))
        if isinstance(self.progress.plan, EpochPlan) and self.params.start is not None:
            self.improve(serving(self.instance, fleet(self.instance, self.progress.plan)))
        if self.progress.gap > OPTIMALITY_GAP and not self.stopped() and self._grid_pays():
            self.grid()

    def prices(self) -> WindowPrices:
        """The windows' prices, side by side."""
        found = []
        for first, last in self._windows():
            window = Window(_part(self.stages, first, last), self.pool, first)
            found.append(window.run(self.stopped, remaining_s=lambda: self.progress.remaining_s))
        return WindowPrices(
            price=np.vstack([part.price for part in found]),
            value=np.concatenate([part.value for part in found]),
            pool_price=np.vstack([part.pool_price for part in found]),
            bound=math.nan,
            hold=np.vstack([part.hold for part in found]),
            missing=sum(part.missing for part in found),
        )

    def _windows(self) -> list[tuple[int, int]]:
        """Borders about every WINDOW epochs, where the need of the next day's part is lowest: few replicas start there."""
        steps, need = self.stages.epochs, self.pool.need[0]
        borders = [0]
        while steps - borders[-1] > 1.5 * WINDOW:
            begin, end = borders[-1] + WINDOW // 2, borders[-1] + WINDOW
            borders.append(begin + int(np.argmin(need[begin:end])))
        return list(zip(borders, [*borders[1:], steps], strict=True))

    def price_bound(self, prices: WindowPrices, with_cost: bool = True) -> Bound:
        """The bound that `verify` will recompute from these prices."""
        certificate = {"kind": "epoch_prices", "price": prices.price, "cuts": self.pool.cuts, "fleet_value": prices.value, "with_cost": with_cost}
        if len(self.stages.pool_limit):
            certificate["pool_price"] = prices.pool_price
        return Bound(prices_value(self.instance, certificate), "decomposition", "certificate", certificate)

    def infeasible(self) -> bool:
        """Whether prices without rent or starts prove that there is no plan."""
        free = replace(self.stages, rent=np.zeros(self.stages.types), rise=np.zeros(self.stages.types))
        window = Window(free, self.pool, 0)
        bound = self.price_bound(window.run(self.stopped, remaining_s=lambda: self.progress.remaining_s), with_cost=False)
        if bound.value == math.inf:
            self.keep(bound)
        return bound.value == math.inf

    def improve(self, centre: IntArray) -> None:
        """A plan from the corridor around these fleets."""
        plan, _ = self.corridor.plan(np.clip(centre, 0, self.stages.most))
        if plan is not None:
            self.progress.offer(plan)

    def _grid_pays(self) -> bool:
        cells = full_cells(self.stages)
        seconds = cells * self.stages.epochs / GRID_CELLS_PER_S
        return cells <= MOST_CELLS and seconds <= min(LONGEST_GRID_S, self.progress.remaining_s)

    def grid(self) -> None:
        """The whole grid: the optimum over fleets that satisfy the cuts; cuts are added until its fleets can serve."""
        for _ in range(20):
            cuts, grid = self.pool.cuts, full_grid(self.stages, self.pool.cuts)
            _, path = grid.best(self.stopped)
            if grid.proved > -math.inf:
                self.keep(Bound(grid.proved, "fleet_grid", "certificate", {"kind": "fleet_grid", "cuts": cuts}))
            if path is None:
                return
            if all([self.pool.fits(t, path[t]) for t in range(len(path))]):
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


def _part(stages: Stages, first: int, last: int) -> Stages:
    """Epochs first..last-1 alone. What stands before them is free after the first part."""
    return replace(
        stages,
        rate=stages.rate[first:last],
        least=stages.least[first:last],
        may_rise=stages.may_rise[first:last],
        initial=stages.initial if first == 0 else None,
    )


def decomposition(instance: GpuSelection, params: SolveParams, progress: Progress) -> Outcome:
    """Plans and certified bounds for any horizon; optimal on small grids. Anytime."""
    missing = unserved_items(instance)
    if len(missing):
        names = [instance.work[i].name for i in missing]
        details = {"infeasibility": {"unserved": names}}
        return Outcome(bounds=(Bound(math.inf, "closed_form", "closed_form"),), details=details, notes=(f"no type can serve {', '.join(names[:5])}",))
    work = Decomposition(instance, params, progress)
    work.run()
    return Outcome(plan=work.evened(), bounds=tuple(work.bounds), stop=work.stop, details={"cuts": len(work.pool.cuts)})
