"""Traffic without spare slots where a device can hold few sets of experts: plans from the prices of the bound `chain_sets`.

Good prices leave few partitions of a layer that can still be part of the best plan (`bounds.expert_placement_sets_close`). The best chain of the
likeliest ones, by dynamic programming, is a plan, and once nothing else is left above it the gap is closed.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headroom.bounds.expert_placement import search_sets
from headroom.bounds.expert_placement_partitions import best_chain_among, smallest_hop
from headroom.bounds.expert_placement_sets import sets_of
from headroom.bounds.expert_placement_sets_close import can_close, chain_work, likeliest, through_sets
from headroom.formulations.expert_placement import ExpertPlan, boundary_traffic
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, SolveParams
from headroom.heuristics.expert_placement_split import plan_of
from headroom.instances.expert_placement import ExpertPlacement
from headroom.solvers.expert_placement_traffic import relabel

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
LIKELY, LIKELY_WORK = 400, 2.5e8
"""Partitions of a layer that a plan is made of, and additions that choosing among them may take: about a second."""
LEAST_S = 3.0
"""With less time left nothing is enumerated."""
CLOSER = 0.75
"""Plans are made again when the gap has come down to this share of what it was."""


def named_partitions(instance: ExpertPlacement, blocks: IntArray) -> IntArray:
    """A chain of partitions [L][D][k], devices named as is best for each boundary [L][R]."""
    assert instance.transition is not None
    place = np.empty((instance.layers, instance.experts), dtype=np.int64)
    for layer, split in enumerate(blocks):
        for d, block in enumerate(split):
            place[layer, block] = d
    place = relabel(instance.transition, instance.hop(), place)
    return np.argsort(place, axis=1, kind="stable")


def chain_of_sets(instance: ExpertPlacement, params: SolveParams, progress: Progress) -> Bound:
    """The bound `chain_sets`; plans that its prices suggest are offered on the way. Hops must cost the same everywhere for these to be good."""
    transition = instance.transition
    assert transition is not None
    total, looked = float(transition.sum()), np.inf
    likely = min(LIKELY, int(math.sqrt(LIKELY_WORK / chain_work([1] * instance.layers, instance.devices))))

    def kept() -> float:
        """The flow that the best plan keeps on its devices."""
        if not isinstance(progress.plan, ExpertPlan):
            return 0.0
        return total - float(boundary_traffic(instance, progress.plan.slot_expert).sum()) / smallest_hop(instance)

    def better(price: FloatArray, within: float) -> float | None:
        nonlocal looked
        if not can_close(instance.experts, instance.devices) or within - kept() > CLOSER * looked or progress.remaining_s < LEAST_S:
            return None
        looked = within - kept()
        sets = sets_of(instance.experts, instance.slots_per_device)
        through = through_sets(transition, instance.devices, price)
        paid = float(price.sum())
        choices = [likeliest(value, sets, instance.devices, within - paid, kept() - paid, likely) for value in through]
        if all(len(choice) for choice in choices):
            blocks = best_chain_among(transition, choices)[1]
            progress.offer(plan_of(instance, named_partitions(instance, blocks)))
        return kept()

    return search_sets(instance, params, progress, better)
