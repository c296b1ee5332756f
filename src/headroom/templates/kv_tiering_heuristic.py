"""A heuristic for KV tiering: it sees every read beforehand. Replace its body with your own, then

    headroom compare x.json --methods ./my_policy.py:my_rule,belady,balanced_static

The instance is headroom.instances.kv_tiering.KvTiering: `size` and `birth` [N] over blocks, `reads` by step, `capacity` [K] over tiers.
A plan of your own is `headroom.formulations.kv_tiering.make_plan(initial_tier [N], step, block, to_tier)`, the last three over moves.
"""

import numpy as np

from headroom.formulations.kv_tiering import TieringPlan, evaluate
from headroom.heuristics.kv_tiering_online import replay_policy
from headroom.heuristics.kv_tiering_policies import Lfu
from headroom.instances.kv_tiering import KvTiering

MEMORIES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def my_rule(instance: KvTiering, rng: np.random.Generator) -> TieringPlan | None:
    """The online policy `Lfu` with the memory that would have been best for this trace: what tuning in hindsight is worth."""

    def with_memory(memory_steps: float) -> TieringPlan:
        return replay_policy(instance, lambda deployment: Lfu(deployment, memory_steps))

    return min(map(with_memory, MEMORIES), key=lambda plan: evaluate(instance, plan).objective)


# What compare may know of it, all optional.
my_rule.family = "kv_tiering"
my_rule.seeded = False  # it draws nothing: one seed is enough
