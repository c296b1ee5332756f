"""A heuristic for request packing into bins (fewest bins): it sees all requests at once. Replace its body with your own, then

    headroom compare x.json --methods ./my_policy.py:my_rule,ffd,bfd

The instance is headroom.instances.request_packing.RequestPacking; arrays [N] are over requests.
"""

import numpy as np

from headroom.formulations.request_packing import BinPlan, bin_plan, evaluate
from headroom.heuristics.request_packing_bins import falling, fits, in_order
from headroom.heuristics.request_packing_policies import FirstFit
from headroom.instances.request_packing import RequestPacking

TRIES = 20


def my_rule(instance: RequestPacking, rng: np.random.Generator) -> BinPlan | None:
    """First fit by falling size, in many orders that are nearly the falling one; the plan with the fewest bins."""
    if not fits(instance):
        return None  # a request is larger than a bin: there is no plan
    best: BinPlan | None = None
    for tried in range(TRIES):
        # instance.size: prompt and output tokens [N]; the first try is the falling order itself
        blurred = instance.size * (1.0 + 0.1 * min(tried, 1) * rng.random(instance.count))
        plan = bin_plan(in_order(instance, FirstFit, falling(blurred.astype(np.int64))))  # from the bin of each request [N]
        if best is None or evaluate(instance, plan).objective < evaluate(instance, best).objective:
            best = plan
    return best


# What compare may know of it, all optional; without `seeded = False` it runs once for each seed.
my_rule.family = "request_packing"
my_rule.modes = ("bins",)
