"""Expert placement by CP-SAT, which knows integers only: small instances, all options. The model is in `expert_placement_cpsat_model`.

Layers that share nothing (no traffic, no cap on moves) are models of their own, whose bounds add up; otherwise there is one model of all layers.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from headroom.formulations.expert_placement import ExpertPlan
from headroom.formulations.progress import Progress
from headroom.formulations.tolerances import FEASIBILITY
from headroom.formulations.types import SolveParams, Stop
from headroom.heuristics.expert_placement_split import plan_of
from headroom.instances.expert_placement import ExpertPlacement
from headroom.solvers.cpsat import CpAnswer, solve_cp
from headroom.solvers.expert_placement_cpsat_model import Block, by_subsets, copies, free_split, hop_steps, joined

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
LARGEST_MODEL = 60_000
"""Beyond so many variables in one model CP-SAT does not even leave presolve in useful time."""
WORTH_A_FLOOR = 100
"""Models with more variables get the bound by what a device can hold as their floor."""
ROUNDING = 1e-12


def blocks(instance: ExpertPlacement) -> list[range]:
    """Layers that must be placed together: each alone unless traffic or a cap on moves joins them."""
    traffic = instance.weights.traffic > 0 and instance.layers > 1
    capped = instance.max_moves is not None and instance.max_moves < instance.layers * instance.slots
    together = traffic or capped
    return [range(instance.layers)] if together else [range(layer, layer + 1) for layer in range(instance.layers)]


def model_size(instance: ExpertPlacement) -> int:
    """About how many variables the largest model has."""
    held, numbers, layers = instance.experts * instance.devices, len(copies(instance)), len(blocks(instance)[0])
    size = layers * held * (1 if numbers == 1 else 1 + numbers)
    if free_split(instance):
        size += layers * (instance.experts << instance.devices if by_subsets(instance) else held * instance.scenarios)
    if joined(instance):
        assert instance.transition is not None
        size += int((instance.transition > 0).sum()) * instance.devices * numbers * len(hop_steps(instance))
    return size


class Search:
    """Every block in turn, each within its share of the time left, and again while time is left. `bound` is +inf where there is no plan."""

    def __init__(self, instance: ExpertPlacement, params: SolveParams, progress: Progress, floor: FloatArray) -> None:
        """`floor` [L]: what is proved of each layer's imbalance."""
        self.instance, self.params, self.progress = instance, params, progress
        granted = 2 * FEASIBILITY if instance.split == "optimal" else 0.0  # shares may miss 1 by so much
        self.floor = floor * (1 - granted - ROUNDING)
        self.slots = np.full((instance.layers, instance.slots), -1, dtype=np.int64)
        if isinstance(progress.plan, ExpertPlan):
            self.slots[:] = progress.plan.slot_expert
        self.parts = [Block(instance, layers, self.floor) for layers in blocks(instance)]
        self.bounds = [part.least for part in self.parts]
        self.solver: str | None = None

    @property
    def bound(self) -> float:
        return math.fsum(self.bounds) * (1 - ROUNDING)

    @property
    def loss(self) -> float:
        """What rounding may take from the bound."""
        return math.fsum(part.loss for part in self.parts)

    def run(self) -> Stop:
        waiting = list(range(len(self.parts)))
        stop: Stop = "completed"
        while waiting:
            answer = self._solve(waiting[0], len(waiting))
            self.solver = answer.solver
            if answer.status == "infeasible":
                self.bounds = [math.inf]
                return "completed"
            if answer.status == "failed":
                return "error"
            reason = self.progress.should_stop()
            if reason is not None and (len(waiting) > 1 or answer.status != "optimal"):
                return reason
            number = waiting.pop(0)
            if answer.status != "optimal":
                if len(self.parts) == 1:
                    return answer.stop
                waiting.append(number)
            elif answer.stop == "gap_limit":
                stop = "gap_limit"
        return stop

    def _solve(self, number: int, waiting: int) -> CpAnswer:
        part = self.parts[number]
        others = math.fsum(self.bounds[:number] + self.bounds[number + 1 :])

        def offer(values: IntArray) -> None:
            trial = self.slots.copy()
            trial[part.layers.start : part.layers.stop] = part.slots_of(values)
            # While other layers have no placement yet, nothing can be offered: CP-SAT's incumbents only get better.
            if trial.min() < 0 or self.progress.offer(plan_of(self.instance, trial)) or self.slots.min() < 0:
                self.slots = trial

        def on_bound(value: float) -> None:
            self.progress.raise_bound((others + part.bound(value)) * (1 - ROUNDING))

        part.hint(self.slots)
        progress = self.progress
        if len(self.parts) > 1:
            limit = None if math.isinf(progress.remaining_s) else progress.remaining_s / waiting
            progress = Progress(replace(self.params, time_limit_s=limit))
            progress.follow(self.progress)
        # Clauses in the linear relaxation: with equal shares or traffic ten times as fast, with free splits alone a tenth.
        level = 1 if free_split(self.instance) and not joined(self.instance) else 2
        answer = solve_cp(part.model, part.variables, self.params, progress, offer, on_bound, level)
        if answer.values is not None:
            offer(answer.values)
        self.bounds[number] = max(self.bounds[number], part.bound(answer.bound))
        if math.isfinite(self.bound):
            self.progress.raise_bound(self.bound)
        return answer
