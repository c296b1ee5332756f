"""A heuristic for GPU selection over epochs: it sees all rates beforehand. Replace its body with your own, then

    headroom compare x.json --methods ./my_policy.py:my_rule,static_peak,reactive_tuned

`epochs_of(instance).rate_per_s` [T][I] are the rates. `judged(instance, fleets [T][G]).outcome()` makes fleets a plan, with the shares of the load
that each type serves, or says what they leave unserved.
"""

import numpy as np

from headroom.formulations.types import Outcome
from headroom.heuristics.gpu_selection_autoscaler import HoldK
from headroom.heuristics.gpu_selection_fleets import epoch_market
from headroom.heuristics.gpu_selection_replay import best_in_hindsight
from headroom.instances.gpu_selection import GpuSelection

HOLDS = (0, 1, 2, 3, 6, 12, 24)


def my_rule(instance: GpuSelection, rng: np.random.Generator) -> Outcome:
    """The autoscaler `HoldK` that keeps idle replicas for as many epochs as would have been best for these rates."""

    def policy(hold_epochs: int) -> HoldK:
        return HoldK(epoch_market(instance), hold_epochs)

    return best_in_hindsight(instance, policy, [{"hold_epochs": hold} for hold in HOLDS])


# What compare may know of it, all optional.
my_rule.family = "gpu_selection"
my_rule.modes = ("epochs",)
my_rule.seeded = False  # it draws nothing: one seed is enough
