"""An online policy that moves MoE experts as loads drift. Replace `decide` with your own rule, then

    headroom compare x.json --methods ./my_policy.py:MyPolicy,static,periodic,threshold

It is replayed over the instance's `load_trace` (preset toy-trace has one). What a policy may see is said in
headroom.heuristics.expert_placement_online; what it did over the trace stands in the notes of `headroom solve`, and the plan, which is ranked, is
the placement of the last step.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.heuristics.expert_placement_online import Deployment

MEMORY = 0.8
WORTH = 0.02


class MyPolicy:
    """EPLB on loads that fade with time, taken only where it improves the mean imbalance by more than WORTH."""

    family = "expert_placement"
    seeded = False  # it draws nothing: one seed is enough

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment  # the machine, its rules, where the experts stand; no load
        self.placement = deployment.start  # the expert in each slot [L][R]
        self.load = np.zeros((len(deployment.start), deployment.experts))

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters, for the record."""
        return {"memory": MEMORY, "worth": WORTH}

    def decide(self, last_load: npt.NDArray[np.float64] | None) -> npt.NDArray[np.int64]:
        """The placement [L][R] of the next step, given the loads [L][E] of the last one (None before the first)."""
        if last_load is None:
            return self.placement
        self.load = MEMORY * self.load + (1 - MEMORY) * last_load
        new = self.deployment.balanced(self.load)  # EPLB; None where it does not apply
        if new is not None and self.gain(new) > WORTH and self.allowed(new):
            self.placement = new
        return self.placement

    def gain(self, new: npt.NDArray[np.int64]) -> float:
        """By how much the busiest device over the mean device, averaged over layers, would fall."""
        return float((self.deployment.imbalance(self.placement, self.load) - self.deployment.imbalance(new, self.load)).mean())

    def allowed(self, new: npt.NDArray[np.int64]) -> bool:
        """Moves count from the start's placement."""
        most = self.deployment.max_moves
        return most is None or int(self.deployment.moved(self.deployment.start, new).sum()) <= most
