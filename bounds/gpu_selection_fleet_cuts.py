"""Which whole fleets can serve an epoch: a pool of price cuts, shared by all epochs, that grows when a fleet turns out not to suffice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_fleets import cheapest_fleet
from headroom.bounds.gpu_selection_serving import Serving
from headroom.bounds.gpu_selection_stages import Stages
from headroom.instances.gpu_selection import GpuSelection

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MOST_NEW = 3
NODES = 100_000
"""Nodes of one search for a cheapest fleet: a few milliseconds."""


class CutPool:
    """Prices w [K][G] and what every epoch needs at them. A cut that one epoch taught holds in all: throughputs do not change with time."""

    def __init__(self, instance: GpuSelection, stages: Stages, stop: Callable[[], bool] = lambda: False) -> None:
        self.stages, self.stop = stages, stop
        self.serving = Serving(instance)
        first = stages.rent[None, :] / stages.rent.max() if stages.rent.max() > 0 else np.ones((1, stages.types))
        self._number = 0
        self._cuts, self._need = np.empty((16, stages.types)), np.empty((16, stages.epochs))
        self._add(first)
        self.active: list[list[int]] = [[0] for _ in range(stages.epochs)]
        """The cuts that have mattered in each epoch: searches look at these alone, and at the others when a fleet turns out to violate one."""
        self._fits: set[tuple[int, bytes]] = set()

    @property
    def cuts(self) -> FloatArray:
        """Prices w [K][G]."""
        return self._cuts[: self._number]

    @property
    def need(self) -> FloatArray:
        """What each epoch needs at each price [K][T]."""
        return self._need[: self._number]

    def violated(self, t: int, fleet: IntArray) -> bool:
        """Whether the fleet misses a cut; the worst few become active in this epoch."""
        lacking = self.need[:, t] * (1 - 1e-12) - self.cuts @ fleet
        worst = [int(k) for k in np.argsort(-lacking)[:MOST_NEW] if lacking[k] > 0]
        self.active[t] += [k for k in worst if k not in self.active[t]]
        return bool(worst)

    def fits(self, t: int, fleet: IntArray) -> bool:
        """Whether the fleet [G] can serve epoch t (continuous shares); a cut is added when it cannot."""
        key = (t, fleet.tobytes())
        if key in self._fits:
            return True
        if self.violated(t, fleet):
            return False
        price = self.serving.price(self.stages.rate[t], fleet)
        if price is None:
            self._fits.add(key)
            return True
        self._add(np.maximum(price, 0.0)[None, :])
        self.active[t].append(len(self.cuts) - 1)
        return False

    def _add(self, price: FloatArray) -> None:
        if self._number == len(self._cuts):
            self._cuts, self._need = (np.concatenate([table, np.empty_like(table)]) for table in (self._cuts, self._need))
        self._cuts[self._number], self._need[self._number] = price[0], self.stages.needs(price)[0]
        self._number += 1

    def all_fit(self, path: IntArray) -> bool:
        """Whether every epoch's fleet [T][G] can serve it; every one that cannot adds its cut."""
        failed = [t for t in range(len(path)) if not self.fits(t, path[t])]
        return not failed

    def cheapest(self, t: int, price: FloatArray, divisible: float, known: FloatArray | None) -> tuple[float, IntArray | None]:
        """(a value that no fleet of epoch t undercuts at these prices, a fleet that fits or None).

        `divisible`: the divisible fleet's cost; `known` [N][G]: fleets known to fit. No fleet when there is none, or none was found in time.
        """
        target, fleet = np.inf, None
        if known is not None and len(known):
            costs = known @ price
            best = int(np.argmin(costs))
            target, fleet = float(costs[best]), known[best]
        previous: IntArray | None = None
        while True:
            if self.stop():
                return divisible, fleet
            chosen = self.active[t]
            rules, need = np.vstack([price, self.cuts[chosen]]), np.append(divisible, self.need[chosen, t])
            if target <= divisible * (1 + 1e-9):
                return min(target, divisible), fleet
            value, found, proved = cheapest_fleet(price, rules, need, self.stages.most, target, NODES)
            if found is None and proved and target == np.inf:
                # No fleet within the caps serves this epoch: any value is true, and one above what all replicas earn proves it.
                return float(price @ self.stages.most) * (1 + 1e-9) + max(float(price.max()), 1.0), None
            if found is None:
                return (value, fleet) if proved else (self._middle(price, rules, need, divisible, target), fleet)
            if self.fits(t, found):
                return (value if proved else self._middle(price, rules, need, divisible, value)), found
            if previous is not None and (found == previous).all():
                # Its load is at the edge of what can be told apart: it does not serve, and no cut says so.
                return (value if proved else divisible), fleet
            previous = found

    def _middle(self, price: FloatArray, rules: FloatArray, need: FloatArray, divisible: float, target: float) -> float:
        """A value between the divisible cost and the target that a short search can prove."""
        for share in (0.5, 0.2):
            value = divisible + share * (target - divisible) if np.isfinite(target) else divisible
            _, found, proved = cheapest_fleet(price, rules, need, self.stages.most, value, NODES)
            if found is None and proved:
                return value
        return divisible
