"""A heuristic for request packing through slots (least makespan): it sees all lengths. Replace its body with your own, then

    headroom compare x.json --methods ./my_policy.py:my_rule,lpt,multifit

The instance is headroom.instances.request_packing.RequestPacking; arrays [N] are over requests.
"""

import numpy as np

from headroom.formulations.request_packing import StagedPlan, evaluate
from headroom.heuristics.request_packing_slots import list_schedule, plan_of_slots
from headroom.heuristics.request_packing_stages import too_long
from headroom.instances.request_packing import RequestPacking

TRIES = 10


def my_rule(instance: RequestPacking, rng: np.random.Generator) -> StagedPlan | None:
    """Longest request first to the slot that is free first, in orders that are nearly the falling one; the plan with the least makespan."""
    if too_long(instance) is not None:
        return None  # a prompt is above the last prefill level: there is no plan
    output = instance.requests.output_tokens
    best: StagedPlan | None = None
    for tried in range(TRIES):
        blurred = output * (1.0 + 0.1 * min(tried, 1) * rng.random(instance.count))
        slot = list_schedule(instance, np.argsort(-blurred, kind="stable"))  # the slot of each request [N]
        plan = plan_of_slots(instance, slot)
        if best is None or evaluate(instance, plan).objective < evaluate(instance, best).objective:
            best = plan
    return best


# What compare may know of it, all optional; without `seeded = False` it runs once for each seed.
my_rule.family = "request_packing"
my_rule.modes = ("makespan",)
