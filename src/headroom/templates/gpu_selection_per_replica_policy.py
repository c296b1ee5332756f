"""An online policy for GPU selection with whole replicas: every slice goes onto one replica. Replace `decide` with your own rule, then

    headroom compare x.json --methods ./my_policy.py:MyPolicy,online_whole_first_fit,best_fit_decreasing

Slices arrive in an order that the seed draws; `Market` and `Slice` in headroom.heuristics.gpu_selection say what a policy may see.
"""

import numpy as np

from headroom.heuristics.gpu_selection import Market, Slice


class MyPolicy:
    """Best fit: the replica that the slice leaves fullest; else a new one of the type on which the slice costs least."""

    family, modes = "gpu_selection", ("per_replica",)

    def __init__(self, market: Market) -> None:
        self.market = market  # prices, limits; no rate
        # The replay reads these three at the end.
        self.count = market.min_count.copy()  # replicas rented [G]
        self.untouched = market.min_count.copy()  # those of them that min_count asks for and that hold nothing [G]
        self.gpu: list[int] = []  # the type of each replica that holds something
        self.load: list[float] = []  # how busy it is

    def decide(self, arrival: Slice) -> tuple[int, int] | None:
        """(type, number of the replica) that takes the slice; None turns it away, and then there is no plan."""
        need, limit = arrival.load_replicas, self.market.max_utilisation
        fitting = [(self.load[at] + need[g], at) for at, g in enumerate(self.gpu) if self.load[at] + need[g] <= limit]
        at = max(fitting)[1] if fitting else self.opened(need)
        if at is None:
            return None
        self.load[at] += float(need[self.gpu[at]])
        return self.gpu[at], at

    def opened(self, need: np.ndarray) -> int | None:
        """The number of a new replica that can hold the slice; None where limits allow none."""
        able = np.flatnonzero(need <= self.market.max_utilisation)
        for g in sorted(able.tolist(), key=lambda g: self.market.price_usd_per_h[g] * need[g]):
            used = self.market.pool_gpus @ self.count + self.market.pool_gpus[:, g]
            if self.untouched[g] > 0:
                self.untouched[g] -= 1
            elif self.count[g] + 1 <= self.market.max_count[g] and (used <= self.market.pool_limit).all():
                self.count[g] += 1
            else:
                continue
            self.gpu.append(g)
            self.load.append(0.0)
            return len(self.gpu) - 1
        return None
