"""An online policy for KV tiering. Replace `_targets` with your own rule, then

    headroom compare x.json --methods ./my_policy.py:MyPolicy,lru,lfu,belady

What a policy may see is said in headroom.heuristics.kv_tiering_online; `Tracking` keeps the books and turns wished tiers into moves.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.heuristics.kv_tiering_online import Deployment, Observation, Step
from headroom.heuristics.kv_tiering_policies import Tracking

MEMORY_STEPS = 6.0
PROMOTE_ABOVE = 1.5


class MyPolicy(Tracking):
    """Blocks that were read more than once of late come to the fastest tier when they are read again; those with the fewest reads make room."""

    family = "kv_tiering"
    seeded = False  # it draws nothing: one seed is enough
    lookahead_steps = 0  # steps after the present one that it is shown

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment)  # capacity_bytes, read_s, write_s by tier; no number of blocks or steps
        self.score = np.zeros(0)  # reads of each block, forgotten within MEMORY_STEPS; blocks are named 0, 1, 2, ... as they are born

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters, for the record."""
        return {"memory_steps": MEMORY_STEPS, "promote_above": PROMOTE_ABOVE}

    def _look(self, now: Step, first: int) -> None:
        """What this step reads; blocks from `first` on are born in it."""
        self.score = np.concatenate([self.score * np.exp(-1.0 / MEMORY_STEPS), np.zeros(len(self.tier) - first)])
        self.score[now.read] += 1.0

    def _targets(self, seen: Observation, first: int) -> npt.NDArray[np.int64]:
        """The tier of each block after this step; `_cascade` sends what does not fit to the next tier, lowest score first."""
        target = self.tier.copy()
        target[first:] = 0
        read = seen.now.read
        target[read[self.score[read] > PROMOTE_ABOVE]] = 0
        return self._cascade(target, self.score)
