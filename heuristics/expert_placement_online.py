"""Online rebalancing: policies that see past loads only, and their replay over an instance's `load_trace`.

| name        | what it does                                                                                      |
|-------------|---------------------------------------------------------------------------------------------------|
| `Static`    | leaves the experts where they are                                                                  |
| `Periodic`  | EPLB on the loads of a past window, every so many steps                                            |
| `Threshold` | EPLB on the loads of a past window, when the imbalance just measured exceeds a threshold            |

At the beginning of step t a policy is given the loads of step t - 1 (None for the first step) and decides the placement of step t. It is built from
a `Deployment`, which holds no load. The deployment starts from `current_slot_expert`, else from `linear` (by node where groups are limited to one).

What a replay measures is not the instance's objective, which is about `load`: the plan that it returns is the placement of the last step, judged on
`load` like any other plan; what the policy did over the trace stands in the outcome's details and its note.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from headroom.formulations.expert_placement import ExpertPlan, boundary_traffic, imbalance
from headroom.formulations.types import Outcome
from headroom.heuristics.expert_placement import grouped_linear_slots
from headroom.heuristics.expert_placement_eplb import no_hierarchy, rebalance
from headroom.heuristics.expert_placement_packing import kept_apart
from headroom.heuristics.expert_placement_split import even_out, plan_of, settled
from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
EVERY_STEPS = 10
"""SGLang and vLLM rebalance every 1,000 to 3,000 forward passes; a step of a trace is some hundred of them."""
THRESHOLD = 1.25
"""Busiest device over mean device: a utilisation of 0.8."""


@dataclass(frozen=True)
class Deployment:
    """What a policy knows beforehand: the machine, its rules and where the experts stand; no load."""

    start: IntArray
    """[L][R]"""
    experts: int
    devices: int
    nodes: int
    groups: int
    group_limited: bool
    distinct: bool
    best_split: bool
    max_moves: int | None
    min_holders: int = 1

    @property
    def slots_per_device(self) -> int:
        return int(self.start.shape[1]) // self.devices

    def balanced(self, weight: FloatArray) -> IntArray | None:
        """EPLB's placement [L][R] for weight [L][E]: hierarchical where groups are limited to a node, else global; None where it does not apply."""
        grouped = self.group_limited and self.nodes > 1
        groups, nodes = (self.groups, self.nodes) if grouped else (1, 1)
        if no_hierarchy(self.experts, groups, nodes, self.devices, self.slots_per_device, self.distinct, self.min_holders) is not None:
            return None
        apart = kept_apart(self.distinct, self.min_holders, self.slots_per_device, self.experts // nodes)
        return rebalance(weight, self.start.shape[1], groups, nodes, self.devices, apart, self.min_holders)

    def imbalance(self, slot_expert: IntArray, load: FloatArray) -> FloatArray:
        """Busiest device over mean device [L] for load [L][E]; 1 for a layer without load."""
        if self.best_split:
            share = even_out(load[None] / max(float(load.max()), 1e-300), slot_expert, self.devices)[0]
        else:
            flat = slot_expert + self.experts * np.arange(len(slot_expert))[:, None]
            count = np.bincount(flat.ravel(), minlength=load.size).reshape(load.shape)
            share = 1.0 / np.take_along_axis(count, slot_expert, axis=1)
        carried = np.take_along_axis(load, slot_expert, axis=1) * share
        most = carried.reshape(len(load), self.devices, -1).sum(axis=2).max(axis=1)
        mean = load.sum(axis=1) / self.devices
        return np.where(mean > 0, most / np.where(mean > 0, mean, 1.0), 1.0)

    def moved(self, before: IntArray, after: IntArray) -> IntArray:
        """Experts that devices hold after and did not before [L]."""
        found: IntArray = (self._held(after) & ~self._held(before)).sum(axis=(1, 2))
        return found

    def _held(self, slot_expert: IntArray) -> npt.NDArray[np.bool_]:
        held = np.zeros((len(slot_expert), self.devices, self.experts), bool)
        held[np.arange(len(slot_expert))[:, None], np.arange(slot_expert.shape[1]) // self.slots_per_device, slot_expert] = True
        return held


def deployment_of(instance: ExpertPlacement) -> Deployment | None:
    """The part of the instance that is known before any load; None when the nodes cannot be filled with whole groups."""
    start = grouped_linear_slots(instance) if instance.current_slot_expert is None else instance.current_slot_expert
    if start is None:
        return None
    return Deployment(
        start=start,
        experts=instance.experts,
        devices=instance.devices,
        nodes=instance.nodes,
        groups=int(instance.group_of[-1]) + 1,
        group_limited=instance.group_limited,
        distinct=instance.distinct,
        best_split=instance.split == "optimal",
        max_moves=instance.max_moves,
        min_holders=instance.min_holders,
    )


class PlacementPolicy(Protocol):
    """An online policy, fed the loads of one step at a time. `settings`: its parameters, JSON-able."""

    lookahead_steps: ClassVar[int]

    @property
    def settings(self) -> dict[str, Any]: ...

    def decide(self, last_load: FloatArray | None) -> IntArray: ...


MakePolicy = Callable[[Deployment], PlacementPolicy]


class Static:
    """Leaves the experts where they stand: what rebalancing must beat."""

    lookahead_steps: ClassVar[int] = 0

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def decide(self, last_load: FloatArray | None) -> IntArray:
        """The start's placement [L][R]."""
        return self.deployment.start


class Rebalancer(ABC):
    """Keeps a window of past loads; a policy says when to run EPLB on their sum.

    Under `max_moves`, which counts from the start's placement, layers take the new placement in order of what it gains on the window, as far as moves
    allow; without it all of them do, as in the systems that run EPLB.
    """

    lookahead_steps: ClassVar[int] = 0

    def __init__(self, deployment: Deployment, window_steps: int) -> None:
        if window_steps < 1:
            raise ValueError(f"window_steps must be at least 1, got {window_steps}")
        self.deployment = deployment
        self.placement = deployment.start
        self.step = 0
        """The step that is decided next."""
        self._window: deque[FloatArray] = deque(maxlen=window_steps)

    def decide(self, last_load: FloatArray | None) -> IntArray:
        """The placement [L][R] of the next step, given the loads [L][E] of the last one; called once a step, in order."""
        if last_load is not None:
            self._window.append(last_load)
            if self._due(last_load):
                self._rebalance()
        self.step += 1
        return self.placement

    @abstractmethod
    def _due(self, last_load: FloatArray) -> bool:
        """Whether to rebalance now, the last step's loads being known."""

    def _rebalance(self) -> None:
        weight = np.sum(self._window, axis=0)
        new = self.deployment.balanced(weight)
        if new is None:
            return
        if self.deployment.max_moves is not None:
            new = self._affordable(new, weight, self.deployment.max_moves)
        self.placement = new

    def _affordable(self, new: IntArray, weight: FloatArray, most: int) -> IntArray:
        deployment = self.deployment
        gain = deployment.imbalance(self.placement, weight) - deployment.imbalance(new, weight)
        kept, wanted = deployment.moved(deployment.start, self.placement), deployment.moved(deployment.start, new)
        left = most - int(kept.sum())
        found = self.placement.copy()
        for l in np.argsort(-gain, kind="stable"):
            if gain[l] > 0 and wanted[l] - kept[l] <= left:
                found[l] = new[l]
                left -= int(wanted[l] - kept[l])
        return found


class Periodic(Rebalancer):
    """EPLB every `every_steps` steps, on the loads since (or of `window_steps`): how SGLang and vLLM rebalance. No guarantee.

    O(one EPLB) each time. Source: github.com/sgl-project/sglang (--eplb-rebalance-num-iterations), github.com/vllm-project/vllm (step_interval).
    """

    def __init__(self, deployment: Deployment, every_steps: int = EVERY_STEPS, window_steps: int | None = None) -> None:
        super().__init__(deployment, every_steps if window_steps is None else window_steps)
        if every_steps < 1:
            raise ValueError(f"every_steps must be at least 1, got {every_steps}")
        self.every_steps = every_steps

    @property
    def settings(self) -> dict[str, Any]:
        return {"every_steps": self.every_steps, "window_steps": self._window.maxlen}

    def _due(self, last_load: FloatArray) -> bool:
        return self.step % self.every_steps == 0


class Threshold(Rebalancer):
    """EPLB when the imbalance of the last step, the mean over its layers, exceeds `threshold`, on the loads of the last `window_steps`.

    SGLang's --eplb-min-rebalancing-utilization-threshold, asked at every step. No guarantee: where EPLB cannot reach the threshold it
    rebalances at every step. O(one EPLB) each time.
    """

    def __init__(self, deployment: Deployment, threshold: float = THRESHOLD, window_steps: int = EVERY_STEPS) -> None:
        super().__init__(deployment, window_steps)
        self.threshold = threshold

    @property
    def settings(self) -> dict[str, Any]:
        return {"threshold": self.threshold, "window_steps": self._window.maxlen}

    def _due(self, last_load: FloatArray) -> bool:
        return float(self.deployment.imbalance(self.placement, last_load).mean()) > self.threshold


@dataclass(frozen=True)
class TraceReplay:
    """What a policy did over a trace. `imbalance` [T]: mean over layers; `moves` [T]: experts that devices had to fetch; `traffic` [T]."""

    placements: tuple[IntArray, ...]
    imbalance: FloatArray
    traffic: FloatArray
    moves: IntArray
    objective: float
    """The weighted sum of mean imbalance, mean traffic and the mean over steps of moves over all slots: the objective's parts, along the trace."""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rebalances(self) -> int:
        """Steps at which experts moved."""
        return int((self.moves > 0).sum())

    def document(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "steps": len(self.moves),
            "mean_imbalance": float(self.imbalance.mean()),
            "worst_imbalance": float(self.imbalance.max()),
            "moves": int(self.moves.sum()),
            "rebalances": self.rebalances,
            "objective": self.objective,
            "parameters": dict(self.parameters),
        }

    def note(self) -> str:
        found = self.document()
        return (
            f"over {found['steps']} steps of load_trace: mean imbalance {found['mean_imbalance']:.4g} (worst step {found['worst_imbalance']:.4g}), "
            f"{found['moves']} moves in {self.rebalances} rebalances; the plan is the last step's placement"
        )


def decisions(instance: ExpertPlacement, decider: PlacementPolicy) -> Iterator[IntArray]:
    """The placement of each step; the policy gets a copy of the step before's loads, and nothing else."""
    assert instance.load_trace is not None
    yield decider.decide(None)
    for load in instance.load_trace[:-1]:
        yield decider.decide(load.copy())


def replay_trace(instance: ExpertPlacement, policy: MakePolicy) -> TraceReplay:
    """Feed a policy the trace step by step and measure each of its placements on the step's own loads.

    Where the split is "optimal", shares are the best for the loads of the step: a router that splits after routing is known (as DeepSeek's LPLB
    does) sees them. Raises ValueError without a trace or a start.
    """
    deployment = deployment_of(instance)
    if instance.load_trace is None or not len(instance.load_trace) or deployment is None:
        raise ValueError("a replay needs load_trace and a placement to start from")
    decider = policy(deployment)
    placements = tuple(decisions(instance, decider))
    uneven, traffic = np.empty(len(placements)), np.zeros(len(placements))
    moved = np.zeros(len(placements), np.int64)
    before = deployment.start
    for _, run in groupby(range(len(placements)), key=lambda t: placements[t].tobytes()):
        steps = list(run)
        slots = placements[steps[0]]
        then = instance.replace(load=instance.load_trace[steps[0] : steps[-1] + 1])
        uneven[steps] = imbalance(then, plan_of(then, slots)).mean(axis=1)
        if instance.transition is not None and instance.layers > 1:
            traffic[steps] = boundary_traffic(instance, slots).mean()
        moved[steps[0]] = deployment.moved(before, slots).sum()
        before = slots
    parts = (
        instance.weights.balance * uneven.mean(),
        instance.weights.traffic * traffic.mean(),
        instance.weights.moves * moved.mean() / (instance.layers * instance.slots),
    )
    return TraceReplay(placements, uneven, traffic, moved, math.fsum(parts), decider.settings)


def replay(instance: ExpertPlacement, policy: MakePolicy, rng: np.random.Generator) -> ExpertPlan | Outcome:
    """The placement of the last step as the plan, with what the policy did over the trace; without a trace, no plan and a note."""
    if instance.load_trace is None or not len(instance.load_trace):
        return Outcome(notes=("online policies need load_trace, which the instance lacks",), details={"trace": None})
    if deployment_of(instance) is None:
        return Outcome(notes=("the nodes cannot be filled with whole groups",), details={"trace": None})
    found = replay_trace(instance, policy)
    plan = settled(instance, found.placements[-1], "the last step's placement")
    reasons = plan.notes if isinstance(plan, Outcome) else ()
    return Outcome(
        plan=None if isinstance(plan, Outcome) else plan,
        notes=(found.note(), *reasons),
        details={"trace": found.document()},
    )
