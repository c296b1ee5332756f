"""An online policy for request packing through slots (least makespan). Replace `decide` with your own rule, then

    headroom compare x.json --methods ./my_policy.py:MyPolicy,fcfs_slots,sorted_preemptive,lpt

What a policy may see, and when it is asked, is said in headroom.heuristics.request_packing_stages.
"""

import numpy as np

from headroom.heuristics.request_packing_stage_policies import in_batches
from headroom.heuristics.request_packing_stages import Decision, SlotDeployment, SlotState

FREE_SHARE = 0.1


class MyPolicy:
    """Longest predicted output first; decoding is interrupted for a prefill when a tenth of the slots is free."""

    family, modes = "request_packing", ("makespan",)
    seeded = False  # lengths are known exactly (sigma 0), so nothing is drawn
    sigma = 0.0  # error of the predicted lengths; 0.5: right within a factor of 1.7 for two in three

    def __init__(self, deployment: SlotDeployment) -> None:
        self.deployment = deployment  # slots, prefill levels, decode_step_s, prompts and predicted outputs of the backlog
        self.queue = np.argsort(-deployment.predicted_output_tokens, kind="stable").tolist()

    @property
    def settings(self) -> dict[str, float]:
        """Parameters, for the record."""
        return {"free_share": FREE_SHARE}

    def decide(self, seen: SlotState) -> Decision:
        """Which waiting requests go into which free slots now, and how long to decode then (None: until a request finishes)."""
        able = min(len(seen.free), len(self.queue))
        idle = len(seen.running) == 0
        if not able or not (idle or able == len(self.queue) or len(seen.free) >= FREE_SHARE * self.deployment.slots):
            return Decision()
        admissions = list(zip(self.queue[:able], seen.free[:able].tolist(), strict=True))
        del self.queue[:able]
        return Decision(in_batches(self.deployment, admissions))  # prefills no larger than the last prefill level
