"""A heuristic for GPU selection with whole replicas: it sees the whole load. Replace its rule with your own, then

    headroom compare x.json --methods ./my_policy.py:my_rule,first_fit_decreasing,best_fit_decreasing

`pattern_data` gives the instance as arrays over types [G] and work items that have load [I]: `price`, `size` (of a replica that one slice takes),
`slices` of each item. `best_packing` goes through the items in several orders and asks a rule where each slice goes.
"""

import numpy as np

from headroom.bounds.gpu_selection_per_replica import PatternData, pattern_data
from headroom.formulations.gpu_selection_per_replica import ReplicaPlan
from headroom.heuristics.gpu_selection_per_replica import Group, best_packing, plan_of_patterns
from headroom.instances.gpu_selection import GpuSelection


def cheapest_waste(data: PatternData, groups: list[Group], item: int, start: int) -> int | None:
    """The index of the group of like replicas that takes the next slice of the item: the one whose room left is worth least; None: a new replica."""
    best, worth = None, np.inf
    for at, group in enumerate(groups):
        size = float(data.size[group.gpu, item])
        left = data.instance.max_utilisation - group.load - size
        if size > 0 and left >= 0 and (left + 1e-3) * float(data.price[group.gpu]) < worth:
            best, worth = at, (left + 1e-3) * float(data.price[group.gpu])
    return best


def my_rule(instance: GpuSelection, rng: np.random.Generator) -> ReplicaPlan | None:
    """Slices by falling size, each where the room that it leaves is worth least in USD/h; the cheapest of several orders."""
    patterns = best_packing(pattern_data(instance), cheapest_waste)
    return None if patterns is None else plan_of_patterns(instance, patterns)


# What compare may know of it, all optional.
my_rule.family = "gpu_selection"
my_rule.modes = ("per_replica",)
my_rule.seeded = False  # it draws nothing: one seed is enough
