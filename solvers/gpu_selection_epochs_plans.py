"""Plans over epochs: fleets that serve -> fleets to rent -> shares; and the corridor, dynamic programming around a given path of fleets."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_fleet_cuts import CutPool
from headroom.bounds.gpu_selection_stages import Stages
from headroom.formulations.gpu_selection import EpochPlan
from headroom.formulations.gpu_selection_epochs import epoch_plan, epochs_of, serving
from headroom.instances.gpu_selection import GpuSelection
from headroom.solvers.gpu_selection_epochs_grid import Grid

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
CORRIDOR_CELLS = 3000
WIDEST = 7
MOST_MOVES = 15


def rented(instance: GpuSelection, serving_fleet: IntArray) -> IntArray:
    """Replicas to rent [T][G] so that `serving_fleet` [T][G] serves: whatever serves within the next `start_delay_epochs` epochs is rented now."""
    found = serving_fleet.copy()
    for ahead in range(1, min(epochs_of(instance).start_delay_epochs, len(found) - 1) + 1):
        found[:-ahead] = np.maximum(found[:-ahead], serving_fleet[ahead:])
    return np.maximum(found, instance.min_count)


def plan_for(instance: GpuSelection, pool: CutPool, serving_fleet: IntArray, even: bool = False) -> tuple[EpochPlan | None, list[int]]:
    """The plan for fleets that serve, and the epochs whose fleet found no shares (the plan is then None)."""
    n = rented(instance, serving_fleet)
    ready = serving(instance, n)
    rates = epochs_of(instance).rate_per_s
    share = np.zeros((len(n), *instance.can_serve.shape))
    failed = []
    for t, rate in enumerate(rates):
        found = pool.serving.shares(rate, ready[t], even)
        if found is None:
            failed.append(t)
        else:
            share[t] = found
    return (None, failed) if failed else (epoch_plan(instance, n, share), [])


class Corridor:
    """Improves a path of fleets by exact dynamic programming in a window around it, until the path stays inside its window."""

    def __init__(self, instance: GpuSelection, stages: Stages, pool: CutPool, stop: Callable[[], bool]) -> None:
        self.instance, self.stages, self.pool, self.stop = instance, stages, pool, stop
        self.inflation = np.ones(stages.epochs)
        """Needs are multiplied by this where shares in whole slices were not found for a fleet that continuous shares fit."""

    def improve(self, centre: IntArray) -> IntArray | None:
        """The best path found from `centre` [T][G]; None when no window around it holds a plan."""
        width = self._width(centre)
        best, found = math.inf, None
        for _ in range(MOST_MOVES):
            origin = np.clip(centre - (width - 1) // 2, 0, np.maximum(self.stages.most - width + 1, 0))
            active = [np.array(chosen) for chosen in self.pool.active]
            grid = Grid(self.stages, self.pool.cuts, self.pool.need * self.inflation, origin, width, active=active)
            value, path = grid.best(self.stop)
            if path is None:
                if math.isnan(value):
                    break
                # Nothing fits here: look higher.
                higher = np.minimum(centre + np.maximum(width // 2, 1), self.stages.most)
                if (higher == centre).all():
                    break
                centre = higher
                continue
            if value >= best - 1e-9 * abs(value):
                break
            best, found, centre = value, path, path
        return found

    def _width(self, centre: IntArray) -> IntArray:
        """Cells an axis: as wide as CORRIDOR_CELLS allows, the types that cost most first."""
        spent = self.stages.rent * centre.mean(axis=0)
        width = np.ones(self.stages.types, dtype=np.int64)
        for size in range(3, WIDEST + 1, 2):
            for g in np.argsort(-spent, kind="stable"):
                wider = width.copy()
                wider[g] = size
                if np.prod(wider.astype(np.float64)) <= CORRIDOR_CELLS:
                    width = wider
        return np.minimum(width, self.stages.most + 1)

    def plan(self, centre: IntArray, even: bool = False) -> tuple[EpochPlan | None, IntArray | None]:
        """A plan from the corridor, cuts added and needs raised until every epoch has its shares.

        When stopped: (None, fleets that may still lack something).
        """
        path = centre
        for _ in range(40):
            better = self.improve(path)
            if better is None:
                return None, path if self.stop() else None
            path = better
            if not self.pool.all_fit(path):
                if self.stop():
                    return None, path
                continue
            found, failed = plan_for(self.instance, self.pool, path, even)
            if found is not None or self.stop():
                return found, path
            self.inflation[failed] *= 1.02
        return None, None
