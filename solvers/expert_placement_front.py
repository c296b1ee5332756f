"""The front of moves against the objective: for every cap on moves at once, the best placement found by one search.

Where layers share nothing but the cap, `expert_placement_moves.Options` collects placements of each layer, cheap in moves or good in balance, and
dynamic programming chooses among them for all caps. The placements come from greedy exchanges, and from annealing while the price of a move falls
from where nothing moves to where moves are as good as free and rises again, each price going on from the last one's placement. On DeepSeek-V2-Lite
that takes a fifth of the time of a search from the current placement at each of ten prices, and ends lower. Layers that traffic joins have no such
front.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from headroom.formulations.expert_placement import ExpertPlan
from headroom.formulations.progress import Progress
from headroom.formulations.types import Plan, SolveParams
from headroom.heuristics.expert_placement_split import broken, plan_of
from headroom.instances.expert_placement import ExpertPlacement
from headroom.solvers.expert_placement_mixed import Mixed, rename_devices
from headroom.solvers.expert_placement_moves import Options

IntArray = npt.NDArray[np.int64]
DEAREST, CHEAPEST = 8.0, 0.08
"""Prices of a move between which annealing goes down and up again, in units of the weight of balance over all slots."""
STEPS = (0.5, 0.65, 0.8)
"""Ratios of one price to the next: a coarse cycle first, for those who cannot wait."""


def applies(instance: ExpertPlacement) -> bool:
    """Whether layers share nothing but the cap, and the current placement keeps the rules, distinct ones included, that annealing keeps."""
    current = instance.current_slot_expert
    if current is None or (instance.weights.traffic > 0 and instance.layers > 1):
        return False
    free = instance.replace(max_moves=None, distinct=instance.slots_per_device <= instance.experts)
    return free.distinct and broken(free, current) is None


def front(instance: ExpertPlacement, caps: Sequence[float], plans: Iterable[Plan], params: SolveParams, progress: Progress) -> Mapping[float, Plan]:
    """A plan for each cap, from one search that also chooses among the layers of `plans`. Where it applies; {} elsewhere.

    Anytime: `progress` ends the search, and the best choice among what it has found is returned. Deterministic for a seed unless that happens.
    O(searches) + O(L caps options) for the choice.
    """
    if not applies(instance):
        return {}
    current = instance.current_slot_expert
    assert current is not None

    def stop() -> bool:
        return progress.should_stop() is not None

    options = Options(instance)
    for layer in range(instance.layers):
        options.add(layer, current[layer])
    for plan in plans:
        if isinstance(plan, ExpertPlan):
            _add(options, rename_devices(instance, plan.slot_expert))
            _add(options, plan.slot_expert)
    for layer in range(instance.layers):
        options.greedy(layer, current[layer], stop)
    unit = (instance.weights.balance or 1.0) / (instance.layers * instance.slots)
    rng = params.rng()
    search = Mixed(instance, current, rng, params.threads, stop)
    for price in _prices():
        if stop():
            break
        search.once(price * unit, 0.05 if price > 1 else 0.02 if price > 0.4 else 0.01)
        _add(options, search.slot_expert)
    most = min(int(max(caps)), instance.layers * instance.slots)
    total, placement = options.front(most)
    cost = instance.weights.balance * total / instance.layers + instance.weights.moves / (instance.layers * instance.slots) * np.arange(most + 1)
    return {cap: plan_of(instance, placement(int(np.argmin(cost[: min(int(cap), most) + 1])))) for cap in caps}


def _prices() -> Iterator[float]:
    for ratio in STEPS:
        down = [DEAREST * ratio**n for n in range(int(math.log(CHEAPEST / DEAREST, ratio)) + 1)]
        yield from down
        yield from reversed(down)


def _add(options: Options, slot_expert: IntArray) -> None:
    for layer, slots in enumerate(slot_expert):
        options.add(layer, slots)
