"""Expert placement: which device holds which experts of a mixture-of-experts model, and how often.

L MoE layers with E experts each; D devices in nodes of `devices_per_node`; every device has `slots_per_device` slots in each layer, and the slots
of a layer hold the E experts, the loaded ones several times. Loads are tokens (or any other unit: only ratios count) by scenario, layer and expert.
Names follow EPLB (DeepSeek), SGLang and ExFlow (arXiv 2401.08383). The mathematics stands in `headroom.formulations.expert_placement`.
"""

from __future__ import annotations

import itertools
from functools import cached_property
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from headroom.instances.arrays import Numbers
from headroom.instances.base import Instance, Record, rule

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BOUNDARY_TOLERANCE = 1e-6
"""A boundary's transitions may miss 1 by this much."""
Size = Annotated[int, Field(ge=1, le=10**6)]
Weight = Annotated[float, Field(ge=0, le=1e9)]


class HopCost(Record):
    """What a token pays to go to another device: `same_node` to one in its node, `other_node` to one elsewhere; 0 on the same device."""

    same_node: Annotated[float, Field(ge=0, le=1e9)] = 1.0
    other_node: Annotated[float, Field(ge=0, le=1e9)] = 1.0


class Weights(Record):
    """Weights of the objective's parts."""

    balance: Weight = 1.0
    traffic: Weight = 0.0
    moves: Weight = 0.0


class ExpertPlacement(Instance):
    """One expert-placement problem. Raises `InputError` with one line for anything else.

    `load` [scenario][layer][expert]; `transition` [boundary][expert][expert] (share of tokens from expert e of layer l to f of layer l + 1; each
    boundary adds up to 1) or None; `devices`, `devices_per_node` (None: one node), `slots_per_device`; `n_groups` equal, consecutive groups of
    experts, each within one node when `group_limited`; `hop_cost`; `split` of an expert's load over its replicas ("equal", or "optimal": the plan
    says); `robust` ("worst" scenario of each layer, or their "mean"); `distinct`: no expert twice on a device; `min_holders`: devices that must hold
    each expert of every layer (2 survives the loss of any one device); `weights`;
    `current_slot_expert` [layer][slot] and `max_moves`; `load_trace` [step][layer][expert] for online policies; `model_layers` and
    `moe_layer_ids` [layer] for exports.
    """

    family: ClassVar[str] = "expert_placement"
    array_fields: ClassVar[tuple[str, ...]] = ("load", "transition", "current_slot_expert", "load_trace")
    optional_arrays: ClassVar[frozenset[str]] = frozenset({"transition", "current_slot_expert", "load_trace"})

    load: Annotated[FloatArray, Numbers("load", "[scenario][layer][expert]", most=1e15)]
    transition: Annotated[FloatArray, Numbers("transition", "[boundary][expert][expert]", most=1.0 + BOUNDARY_TOLERANCE)] | None = None
    devices: Size
    devices_per_node: Size | None = None
    slots_per_device: Size
    n_groups: Size | None = None
    group_limited: bool = False
    hop_cost: HopCost = HopCost()
    split: Literal["equal", "optimal"] = "equal"
    robust: Literal["worst", "mean"] = "worst"
    distinct: bool = True
    min_holders: Size = 1
    weights: Weights = Weights()
    current_slot_expert: Annotated[IntArray, Numbers("current_slot_expert", "[layer][slot]", whole=True, most=1e6)] | None = None
    max_moves: Annotated[int, Field(ge=0, le=10**12)] | None = None
    load_trace: Annotated[FloatArray, Numbers("load_trace", "[step][layer][expert]", most=1e15)] | None = None
    model_layers: Size | None = None
    moe_layer_ids: Annotated[tuple[Annotated[int, Field(ge=0, le=10**6)], ...], Field(strict=False)] | None = None

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        scenarios, layers, experts = self.load.shape
        if not (scenarios and layers and experts):
            raise rule(f"load must have at least one scenario, layer and expert, got {scenarios} x {layers} x {experts}")
        positive = self.load[self.load > 0]
        if len(positive) and positive.min() < 1e-15:
            raise rule(f"load must be 0 or at least 1e-15, got {positive.min():g}")
        if self.slots < experts:
            raise rule(f"devices x slots_per_device must be at least {experts}, the number of experts, got {self.devices} x {self.slots_per_device}")
        self._check_holders(experts)
        if self.slots > 10**7:
            raise rule(f"devices x slots_per_device must be at most 10000000, got {self.devices} x {self.slots_per_device}")
        if self.distinct and self.slots_per_device > experts:
            raise rule(f"slots_per_device must be at most {experts}, the number of experts, because distinct is true, got {self.slots_per_device}")
        if self.devices % self.node_devices:
            raise rule(f"devices_per_node must divide devices {self.devices}, got {self.devices_per_node}")
        self._check_groups(experts)
        self._check_transitions(layers, experts)
        self._check_moves(layers, experts)
        self._check_export_fields(layers)
        if self.load_trace is not None and self.load_trace.shape[1:] != (layers, experts):
            found = " x ".join(map(str, self.load_trace.shape))
            raise rule(f"load_trace must be [step][{layers} layers][{experts} experts] as load is, got {found}")
        return self

    def _check_holders(self, experts: int) -> None:
        """With at least as many devices and slots the experts can be dealt to the devices in turn, so the rule alone can always be kept."""
        most = self.node_devices if self.group_limited else self.devices
        if self.min_holders > most:
            why = "the devices of a node, because group_limited is true" if self.group_limited else "the number of devices"
            raise rule(f"min_holders must be at most {most}, {why}, got {self.min_holders}")
        if self.slots < self.min_holders * experts:
            needs = f"{self.min_holders * experts} because min_holders is {self.min_holders} and there are {experts} experts"
            raise rule(f"devices x slots_per_device must be at least {needs}, got {self.devices} x {self.slots_per_device}")

    def _check_groups(self, experts: int) -> None:
        if self.group_limited and self.n_groups is None:
            raise rule("n_groups must be given because group_limited is true, got null")
        if self.n_groups is not None and experts % self.n_groups:
            raise rule(f"n_groups must divide the number of experts {experts}, got {self.n_groups}")
        if self.group_limited:
            assert self.n_groups is not None
            held = self.groups_in_node
            if held * self.nodes < self.n_groups:
                times = f", each on {self.min_holders} devices," if self.min_holders > 1 else ""
                size = f"{experts // self.n_groups} experts{times}"
                fit = f"{held} whole groups of {size} fit a node of {self.node_devices * self.slots_per_device} slots"
                raise rule(f"n_groups must fit the nodes because group_limited is true: {fit}, {self.nodes} nodes, got {self.n_groups} groups")

    def _check_transitions(self, layers: int, experts: int) -> None:
        if self.transition is None:
            if self.weights.traffic > 0:
                raise rule(f"transition must be given because weights.traffic is {self.weights.traffic:g}, got null")
            return
        wanted = (layers - 1, experts, experts)
        if layers == 1 and self.transition.size == 0:
            return  # JSON cannot tell [] from [[]]
        if self.transition.shape != wanted:
            raise rule(f"transition must have {' x '.join(map(str, wanted))} entries, got {' x '.join(map(str, self.transition.shape))}")
        for boundary, total in enumerate(self.transition.sum(axis=(1, 2)).tolist()):
            if abs(total - 1.0) > BOUNDARY_TOLERANCE:
                raise rule(f"transition[{boundary}] must add up to 1, got {total:.9g}")

    def _check_moves(self, layers: int, experts: int) -> None:
        if self.current_slot_expert is None:
            if self.max_moves is not None or self.weights.moves > 0:
                what = f"weights.moves is {self.weights.moves:g}" if self.weights.moves > 0 else f"max_moves is {self.max_moves}"
                raise rule(f"current_slot_expert must be given because {what}, got null")
            return
        if self.current_slot_expert.shape != (layers, self.slots):
            found = " x ".join(map(str, self.current_slot_expert.shape))
            raise rule(f"current_slot_expert must have {layers} layers x {self.slots} slots, got {found}")
        if self.current_slot_expert.size and int(self.current_slot_expert.max()) >= experts:
            layer, slot = np.argwhere(self.current_slot_expert >= experts)[0]
            got = int(self.current_slot_expert[layer, slot])
            raise rule(f"current_slot_expert[{layer}][{slot}] must be an expert from 0 to {experts - 1}, got {got}")

    def _check_export_fields(self, layers: int) -> None:
        if self.moe_layer_ids is not None:
            ids = self.moe_layer_ids
            if len(ids) != layers or any(a >= b for a, b in itertools.pairwise(ids)):
                raise rule(f"moe_layer_ids must be {layers} rising numbers, one for each layer of load, got {list(ids)}")
        if self.model_layers is not None:
            last = layers - 1 if self.moe_layer_ids is None else self.moe_layer_ids[-1]
            if self.model_layers <= last:
                raise rule(f"model_layers must be above {last}, the last MoE layer, got {self.model_layers}")

    @property
    def scenarios(self) -> int:
        return int(self.load.shape[0])

    @property
    def layers(self) -> int:
        return int(self.load.shape[1])

    @property
    def experts(self) -> int:
        return int(self.load.shape[2])

    @property
    def slots(self) -> int:
        """R: slots of a layer."""
        return self.devices * self.slots_per_device

    @property
    def node_devices(self) -> int:
        """Devices of a node."""
        return self.devices if self.devices_per_node is None else self.devices_per_node

    @property
    def nodes(self) -> int:
        return self.devices // self.node_devices

    @property
    def groups_in_node(self) -> int:
        """Whole groups that the slots of a node can hold, each expert on `min_holders` devices; every expert its own group where there are none."""
        size = self.experts // (self.experts if self.n_groups is None else self.n_groups)
        return self.node_devices * self.slots_per_device // (size * self.min_holders)

    @property
    def most_replicas(self) -> int:
        """Slots that one expert can have: each other expert needs `min_holders`; `distinct` allows one on a device."""
        spare = self.slots - (self.experts - 1) * self.min_holders
        return min(spare, self.devices) if self.distinct else spare

    @cached_property
    def group_of(self) -> IntArray:
        """The group of each expert [E]; every expert its own where there are no groups."""
        groups = self.experts if self.n_groups is None else self.n_groups
        return np.arange(self.experts) // (self.experts // groups)

    @cached_property
    def node_of(self) -> IntArray:
        """The node of each device [D]."""
        return np.arange(self.devices) // self.node_devices

    @cached_property
    def total_load(self) -> FloatArray:
        """Tokens of each scenario and layer [S][L]."""
        total: FloatArray = self.load.sum(axis=2)
        return total

    def hop(self) -> FloatArray:
        """What a token pays from device d to d' [D][D]."""
        same_node = self.node_of[:, None] == self.node_of[None, :]
        cost = np.where(same_node, self.hop_cost.same_node, self.hop_cost.other_node)
        np.fill_diagonal(cost, 0.0)
        return cost


__all__ = ["ExpertPlacement", "HopCost", "Weights"]
