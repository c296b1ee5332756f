"""Which whole fleets can serve an epoch: a pool of price cuts, shared by all epochs, that grows when a fleet turns out not to suffice."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_fleets import cheapest_fleet
from headroom.bounds.gpu_selection_serving import Serving
from headroom.bounds.gpu_selection_stages import Stages
from headroom.instances.gpu_selection import GpuSelection

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
NODES = 100_000
"""Nodes of one search for a cheapest fleet: a few milliseconds."""


class CutPool:
    """Prices w [K][G] and what every epoch needs at them. A cut that one epoch taught holds in all: throughputs do not change with time."""

    def __init__(self, instance: GpuSelection, stages: Stages) -> None:
        self.stages = stages
        self.serving = Serving(instance)
        self.cuts = stages.rent[None, :] / max(float(stages.rent.max()), 1e-300) if stages.rent.max() > 0 else np.ones((1, stages.types))
        self.need = stages.needs(self.cuts)
        self._fits: set[tuple[int, bytes]] = set()

    def fits(self, t: int, fleet: IntArray) -> bool:
        """Whether the fleet [G] can serve epoch t (continuous shares); a cut is added when it cannot."""
        key = (t, fleet.tobytes())
        if key in self._fits:
            return True
        price = self.serving.price(self.stages.rate[t], fleet)
        if price is None:
            self._fits.add(key)
            return True
        self._add(np.maximum(price, 0.0))
        return False

    def _add(self, price: FloatArray) -> None:
        self.cuts = np.vstack([self.cuts, price])
        self.need = np.vstack([self.need, self.stages.needs(price[None, :])])

    def cheapest(self, t: int, price: FloatArray, divisible: float, known: FloatArray | None) -> tuple[float, IntArray | None]:
        """(a value that no fleet of epoch t undercuts at these prices, a fleet that fits or None).

        `divisible`: the divisible fleet's cost; `known` [N][G]: fleets known to fit. The fleet is None when the search was cut short and found nothing.
        """
        target, fleet = np.inf, None
        if known is not None and len(known):
            costs = known @ price
            best = int(np.argmin(costs))
            target, fleet = float(costs[best]), known[best]
        cheapest_rules = np.vstack([price, self.cuts])
        while True:
            need = np.append(divisible, self.need[:, t])
            if target <= divisible * (1 + 1e-9):
                return min(target, divisible), fleet
            value, found, proved = cheapest_fleet(price, cheapest_rules, need, self.stages.most, target, NODES)
            if found is None:
                return (value, fleet) if proved else (self._middle(t, price, cheapest_rules, need, divisible, target), fleet)
            if self.fits(t, found):
                if proved:
                    return value, found
                return self._middle(t, price, cheapest_rules, need, divisible, value), found
            cheapest_rules = np.vstack([price, self.cuts])

    def _middle(self, t: int, price: FloatArray, rules: FloatArray, need: FloatArray, divisible: float, target: float) -> float:
        """A value between the divisible cost and the target that a short search can prove."""
        for share in (0.5, 0.2):
            value = divisible + share * (target - divisible) if np.isfinite(target) else divisible
            _, found, proved = cheapest_fleet(price, rules, need, self.stages.most, value, NODES)
            if found is None and proved:
                return value
        return divisible
