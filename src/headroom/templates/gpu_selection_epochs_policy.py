"""An autoscaler: an online policy that is told the rates of one epoch after the other. Replace `_wanted` with your own rule, then

    headroom compare x.json --methods ./my_policy.py:MyPolicy,reactive,hold_k,static_peak

What a policy may see is said in headroom.heuristics.gpu_selection_autoscaler; `Autoscaler` keeps what the present load needs, whatever is wanted.
"""

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.heuristics.gpu_selection_autoscaler import Autoscaler
from headroom.heuristics.gpu_selection_fleets import EpochMarket

WINDOW = 3
MARGIN = 1.05


class MyPolicy(Autoscaler):
    """The cheapest fleet for the highest rates of the last few epochs, with a margin: it grows at once and shrinks late."""

    family, modes = "gpu_selection", ("epochs",)
    seeded = False  # it draws nothing: one seed is enough

    def __init__(self, market: EpochMarket) -> None:
        super().__init__(market)  # types, prices, limits, what a start costs and takes; no rate
        self.recent: deque[npt.NDArray[np.float64]] = deque(maxlen=WINDOW)

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters, for the record."""
        return {"window": WINDOW, "margin": MARGIN}

    def _wanted(self, rate: npt.NDArray[np.float64], standing: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The replicas to rent [G] for rates [I], requests/s of each work item; `standing`: the fleet of the epoch before."""
        self.recent.append(rate)
        peak = np.max(self.recent, axis=0) * MARGIN
        return self._covering(np.stack([rate, peak]), self.market.min_count)  # the cheapest fleet that serves both rows
