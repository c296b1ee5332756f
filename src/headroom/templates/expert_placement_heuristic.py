"""A heuristic that places MoE experts: it sees all loads. Replace its body with your own, then

    headroom compare x.json --methods ./my_policy.py:my_rule,eplb,lpt

The instance is headroom.instances.expert_placement.ExpertPlacement: `load` [S][L][E] over scenarios, layers and experts. A placement is the expert in
each slot [L][R]; device d owns slots d k ... (d + 1) k - 1. `settled` makes it a plan, or says which rule of the instance it breaks.
"""

import numpy as np

from headroom.formulations.expert_placement import ExpertPlan, evaluate
from headroom.formulations.types import Outcome
from headroom.heuristics.expert_placement_online import deployment_of
from headroom.heuristics.expert_placement_split import settled
from headroom.instances.expert_placement import ExpertPlacement

TRIES = 10


def my_rule(instance: ExpertPlacement, rng: np.random.Generator) -> ExpertPlan | Outcome | None:
    """DeepSeek's EPLB on loads that are slightly blurred, several times; the best placement by the instance's own objective."""
    deployment = deployment_of(instance)
    if deployment is None:
        return Outcome(notes=("the nodes cannot be filled with whole groups",))
    found: ExpertPlan | Outcome | None = None
    best = np.inf
    for tried in range(TRIES):
        blur = 1.0 + 0.1 * min(tried, 1) * rng.random(instance.load.shape[1:])
        slots = deployment.balanced(instance.load.mean(axis=0) * blur)
        if slots is None:
            return Outcome(notes=("EPLB does not apply to this instance",))
        plan = settled(instance, slots, "my_rule")
        if isinstance(plan, Outcome):
            found = found or plan  # it breaks a rule: the outcome says which
        elif (objective := evaluate(instance, plan).objective) < best:
            found, best = plan, objective
    return found


# What compare may know of it, all optional; without `seeded = False` it runs once for each seed.
my_rule.family = "expert_placement"
