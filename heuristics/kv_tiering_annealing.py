"""SA-guided look-ahead: a placement rule that knows the future, its parameters tuned by simulated annealing on the true objective.

After Fang et al. (arXiv 2508.13231), who use simulated annealing with perfect knowledge of coming reads to see how good a schedule can be. Theirs is
not public to the last parameter; the rule here, in `solvers/lookahead_annealing`, has what such a rule can have: a horizon, a window, thresholds to
promote and to evict, how far the fast tier may be loaded beside the slow one, prefetching, and how births are spread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headroom.formulations.kv_tiering import make_plan
from headroom.formulations.types import Outcome
from headroom.instances.kv_tiering import KvTiering

if TYPE_CHECKING:
    from headroom.solvers.lookahead_annealing import Trace

FloatArray = npt.NDArray[np.float64]
STEPS = 300
RANDOM_STARTS = 24
MOST_WORK = 4e8
"""Reads and block-steps in all replays together; larger instances get fewer replays, but never fewer than `LEAST_REPLAYS`."""
LEAST_REPLAYS = 40
NAMES = ("horizon_steps", "window_steps", "promote_score", "margin_score", "balance", "prefetch", "fill", "hot_share", "shed", "payment")


def trace_of(instance: KvTiering) -> Trace:
    """The instance as the engine's arrays."""
    from headroom.solvers.lookahead_annealing import trace_of as arrays

    reads = instance.reads
    amount = instance.size[reads.block] if reads.bytes is None else np.array(reads.bytes, np.float64)
    return arrays(
        instance.size, instance.birth, instance.death, reads.indptr, reads.block, amount, instance.fixed,
        instance.capacity, instance.read_s, instance.write_s, instance.inclusive,
    )  # fmt: skip


def sa_lookahead(instance: KvTiering, rng: np.random.Generator) -> Outcome:
    """The best plan of the look-ahead rule over parameters found by simulated annealing, from the best of a stated start and random ones.

    No guarantee; sees the whole trace. A replay is O(reads + T sorts of the bounded tiers). Source: Fang et al., arXiv 2508.13231.
    """
    from headroom.solvers.lookahead_annealing import PARAMETERS, STARTS, anneal, decoded, replay

    trace = trace_of(instance)
    work = len(instance.reads.block) + 0.25 * instance.block_steps
    share = min(1.0, max(LEAST_REPLAYS, MOST_WORK / max(work, 1.0)) / (STEPS + RANDOM_STARTS))
    starts = np.vstack([STARTS, rng.random((round(RANDOM_STARTS * share), PARAMETERS))])
    best = np.empty(PARAMETERS)
    seconds = anneal(trace, starts, round(STEPS * share), rng, best)
    initial, none = np.empty(instance.blocks, np.int64), np.empty(0, np.int64)
    _, moves = replay(trace, best, np.inf, initial, none, none, none)
    step, block, to_tier = (np.empty(moves, np.int64) for _ in range(3))
    replay(trace, best, np.inf, initial, step, block, to_tier)
    found: dict[str, Any] = dict(zip(NAMES, decoded(best, instance.steps).tolist(), strict=True))
    replays = len(starts) + round(STEPS * share)
    plan = make_plan(initial, step, block, to_tier)
    return Outcome(plan=plan, solver_objective=seconds, details={"parameters": found, "replays": replays, "moves": moves})


__all__ = ["sa_lookahead", "trace_of"]
