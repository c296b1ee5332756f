"""An online policy for GPU selection: it rents as slices of the load arrive. Replace `decide` with your own rule, then

    headroom compare x.json --methods ./my_policy.py:MyPolicy,online_first_fit,greedy

Slices arrive in an order that the seed draws; `Market` and `Slice` in headroom.heuristics.gpu_selection say what a policy may see.
"""

import math

import numpy as np

from headroom.heuristics.gpu_selection import Market, Slice


class MyPolicy:
    """The type on which the slice raises the rent least; among equals the one on which it costs least of a replica."""

    family, modes = "gpu_selection", ("pooled",)

    def __init__(self, market: Market) -> None:
        self.market = market  # prices, limits; no rate
        self.count = market.min_count.copy()  # replicas rented [G]; the replay reads it at the end
        self.load = np.zeros(len(self.count))  # replicas kept busy [G]

    def needed(self, g: int, load_replicas: float) -> float:
        """Replicas of type g that must stand when it carries so much more."""
        busy = (self.load[g] + load_replicas) / self.market.max_utilisation
        return float(math.ceil(busy * (1 - 1e-10)) + self.market.spare_replicas)

    def allowed(self, g: int, replicas: float) -> bool:
        """Whether caps and pools let type g grow to so many."""
        count = self.count.copy()
        count[g] = max(count[g], replicas)
        return bool(count[g] <= self.market.max_count[g] and (self.market.pool_gpus @ count <= self.market.pool_limit).all())

    def decide(self, arrival: Slice) -> int | None:
        """The type that serves the slice, at once and for good; None turns it away, and then there is no plan."""
        price, choices = self.market.price_usd_per_h, []
        for g in np.flatnonzero(np.isfinite(arrival.load_replicas)).tolist():
            needed = self.needed(g, arrival.load_replicas[g])
            if self.allowed(g, needed):
                rent = price[g] * max(needed - self.count[g], 0.0)
                choices.append((rent, price[g] * arrival.load_replicas[g], g, needed))
        if not choices:
            return None
        _, _, g, needed = min(choices)
        self.count[g] = max(self.count[g], needed)
        self.load[g] += arrival.load_replicas[g]
        return int(g)
