"""A heuristic for GPU selection: it sees the whole load. Replace its body with your own, then

    headroom compare x.json --methods ./my_policy.py:my_rule,greedy,single_type

`data_of` gives the instance as arrays over types [G] and work items that have load [I]: `price`, `can_serve`, `slice_load` (replicas that one slice
keeps busy) and `slices` of each item. A solution is y [G][I], how many slices of an item each type serves.
"""

import numpy as np

from headroom.bounds.gpu_selection_boxes import data_of
from headroom.formulations.gpu_selection import GpuSelectionPlan, evaluate
from headroom.heuristics.gpu_selection import consolidate, fits, plan_of
from headroom.instances.gpu_selection import GpuSelection

TRIES = 10


def my_rule(instance: GpuSelection, rng: np.random.Generator) -> GpuSelectionPlan | None:
    """Every item on a type that is nearly the cheapest for it, drawn anew a few times and consolidated; the cheapest fleet."""
    data = data_of(instance)
    if not data.can_serve.any(axis=0).all():
        return None  # nothing serves some item: there is no plan
    cost = np.where(data.can_serve, data.price[:, None] * data.slice_load, np.inf)
    best: GpuSelectionPlan | None = None
    for tried in range(TRIES):
        y = np.zeros(cost.shape)
        blurred = cost * (1.0 + min(tried, 1) * rng.random(cost.shape))
        y[blurred.argmin(axis=0), np.arange(cost.shape[1])] = data.slices
        y, count = consolidate(data, y)  # moves slices between types as long as the fleet gets cheaper
        if not fits(data, count):
            continue  # caps or pools forbid it
        plan = plan_of(data, y, count)
        if best is None or evaluate(instance, plan).objective < evaluate(instance, best).objective:
            best = plan
    return best


# What compare may know of it, all optional; without `seeded = False` it runs once for each seed.
my_rule.family = "gpu_selection"
my_rule.modes = ("pooled",)
