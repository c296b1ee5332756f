r"""Expert placement: the mathematics, the plan, and its evaluation. The Pyomo model is in `expert_placement_model`.

Sets (index, field)
    s in S   load scenarios                     first axis of `load`
    l in L   MoE layers                         second axis of `load`;  b = l -> l + 1 the boundaries
    e in E   experts                            third axis of `load`
    d in D   devices, in nodes of `devices_per_node`, each with k = `slots_per_device` slots in every layer; R = D k slots a layer

Parameters (field, unit)
    w_sle    load                               `load[s][l][e]`, tokens;  W_sl = sum_e w_sle
    p_bef    transitions                        `transition[b][e][f]`, share of tokens that go from e of layer b to f of the next
    h_dd'    hop                                0 on the same device, `hop_cost.same_node`, `hop_cost.other_node`
    cur_ld   experts that d holds now           `current_slot_expert`
    beta, theta, mu >= 0                        `weights.balance`, `weights.traffic`, `weights.moves`

Variables
    x_led in Z>=0   slots of device d that hold e in layer l       plan `slot_expert[l][r]`, device d owning slots d k .. (d + 1) k - 1
    c_le            replicas of e: sum_d x_led
    a_sled >= 0     share of e's load that d carries: x_led / c_le when `split` is "equal", else the plan's `share[s][l][r]` added up

    minimise  beta balance + theta traffic + mu moves
    balance   mean over l of max_s (or mean over s) of max_d sum_e w_sle a_sled / (W_sl / D);  1 for a layer without load in s
    traffic   mean over b of sum_ef p_bef sum_d (x_bed / c_be) min over d' that hold f in layer b + 1 of h_dd'
    moves     sum_l sum_d |{e: x_led >= 1} \ cur_ld| / (L R)
    held      c_le >= 1                                        for every l, e
    holders   |{d: x_led >= 1}| >= min_holders                 for every l, e; with 2 no device holds an expert that nobody else holds
    slots     sum_e x_led = k                                  for every l, d
    distinct  x_led <= 1                                       when `distinct`
    split     sum_d a_sled = 1,  a_sled = 0 unless x_led >= 1
    group     all x_led of one group's experts in one node     when `group_limited`: equal, consecutive groups, a node of its own for each l
    max_moves sum_l sum_d |{e: x_led >= 1} \ cur_ld| <= max_moves

Sources: DeepSeek, EPLB (github.com/deepseek-ai/EPLB: balance, replicas, groups); Yao et al., ExFlow, arXiv 2401.08383 (traffic by affinity).
Scenarios, the optimal split and moves are ours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import numpy.typing as npt

from headroom.formulations.tolerances import FEASIBILITY
from headroom.formulations.types import Evaluation, Plan, Violation
from headroom.instances.arrays import Numbers
from headroom.instances.errors import InputError
from headroom.instances.expert_placement import ExpertPlacement

if TYPE_CHECKING:
    import pyomo.environ as pyo

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MOST_NAMED = 20
"""Violations of one kind that are named one by one; the rest is added to the last."""


class ExpertPlan(Plan):
    """`slot_expert` [layer][slot]: the expert in each slot; `share` [scenario][layer][slot]: the share of its expert's load that a slot carries, when
    the instance's `split` is "optimal"."""

    optional_arrays: ClassVar[frozenset[str]] = frozenset({"share"})

    slot_expert: Annotated[IntArray, Numbers("slot_expert", "[layer][slot]", whole=True, most=1e6)]
    share: Annotated[FloatArray, Numbers("share", "[scenario][layer][slot]", most=1e9)] | None = None


def replicas(instance: ExpertPlacement, slot_expert: IntArray) -> IntArray:
    """c [L][E]: slots that hold each expert."""
    experts = instance.experts
    flat = (slot_expert + experts * np.arange(len(slot_expert))[:, None]).ravel()
    return np.bincount(flat, minlength=len(slot_expert) * experts).reshape(len(slot_expert), experts)


def device_counts(instance: ExpertPlacement, slot_expert: IntArray) -> IntArray:
    """x [L][E][D]: slots of each device that hold each expert."""
    layers, experts, devices = len(slot_expert), instance.experts, instance.devices
    device = np.arange(instance.slots) // instance.slots_per_device
    flat = (np.arange(layers)[:, None] * experts + slot_expert) * devices + device[None, :]
    return np.bincount(flat.ravel(), minlength=layers * experts * devices).reshape(layers, experts, devices)


def device_load(instance: ExpertPlacement, plan: ExpertPlan) -> FloatArray:
    """Tokens that each device carries [S][L][D]."""
    slot_expert = plan.slot_expert
    if instance.split == "equal":
        each = instance.load / np.maximum(replicas(instance, slot_expert), 1)[None]
        carried = np.take_along_axis(each, np.broadcast_to(slot_expert[None], (instance.scenarios, *slot_expert.shape)), axis=2)
    else:
        assert plan.share is not None
        load = np.take_along_axis(instance.load, np.broadcast_to(slot_expert[None], plan.share.shape), axis=2)
        carried = load * plan.share
    found: FloatArray = carried.reshape(instance.scenarios, instance.layers, instance.devices, instance.slots_per_device).sum(axis=3)
    return found


def imbalance(instance: ExpertPlacement, plan: ExpertPlan) -> FloatArray:
    """Busiest device over the mean device [S][L]; 1 for a layer without load."""
    mean = instance.total_load / instance.devices
    most = device_load(instance, plan).max(axis=2)
    return np.where(mean > 0, most / np.where(mean > 0, mean, 1.0), 1.0)


def layer_imbalance(instance: ExpertPlacement, plan: ExpertPlan) -> FloatArray:
    """What each layer counts for balance [L]: its worst scenario, or the mean of them."""
    each = imbalance(instance, plan)
    found: FloatArray = each.max(axis=0) if instance.robust == "worst" else each.mean(axis=0)
    return found


def boundary_traffic(instance: ExpertPlacement, slot_expert: IntArray) -> FloatArray:
    """What a token pays on average at each boundary [L - 1]. O(L E^2 D)."""
    if instance.transition is None or instance.layers < 2:
        return np.zeros(0)
    counts = device_counts(instance, slot_expert)
    found = np.empty(instance.layers - 1)
    for b in range(instance.layers - 1):
        sends = counts[b] / np.maximum(counts[b].sum(axis=1, keepdims=True), 1)
        found[b] = float(((instance.transition[b] @ nearest(instance, counts[b + 1]).T) * sends).sum())
    return found


def nearest(instance: ExpertPlacement, counts: IntArray) -> FloatArray:
    """What it costs device d to reach the nearest replica of f [D][E], from slots x [E][D]; 0 where nobody holds f."""
    here = counts.T > 0
    per_node: npt.NDArray[np.bool_] = here.reshape(instance.nodes, instance.node_devices, -1).max(axis=1)
    in_node = per_node[instance.node_of]
    elsewhere = (per_node.sum(axis=0)[None, :] - in_node) > 0
    cost = np.where(in_node, instance.hop_cost.same_node, np.inf)
    cost = np.minimum(cost, np.where(elsewhere, instance.hop_cost.other_node, np.inf))
    cost[here] = 0.0
    return np.where(np.isfinite(cost), cost, 0.0)


def moves(instance: ExpertPlacement, slot_expert: IntArray) -> int:
    """Experts that devices hold and did not hold in `current_slot_expert`, over all layers; 0 without one."""
    if instance.current_slot_expert is None:
        return 0
    now, before = device_counts(instance, slot_expert) > 0, device_counts(instance, instance.current_slot_expert) > 0
    return int((now & ~before).sum())


def evaluate(instance: ExpertPlacement, plan: Plan) -> Evaluation:
    """The parts balance, traffic and moves (unweighted), the objective (their weighted sum), and every violated constraint.

    Raises `InputError` when the plan does not fit the instance. O(S L R + L E^2 D).
    """
    if not isinstance(plan, ExpertPlan):
        raise InputError(f"plan must have slot_expert, got a {type(plan).__name__}")
    _check_shape(instance, plan)
    moved = moves(instance, plan.slot_expert)
    traffic = boundary_traffic(instance, plan.slot_expert)
    parts = {
        "balance": float(layer_imbalance(instance, plan).mean()),
        "traffic": float(traffic.mean()) if len(traffic) else 0.0,
        "moves": moved / (instance.layers * instance.slots),
    }
    weights = instance.weights.model_dump()
    objective = math.fsum(weights[name] * value for name, value in parts.items())
    return Evaluation(objective, parts, tuple(_violations(instance, plan, moved)), weights)


def _check_shape(instance: ExpertPlacement, plan: ExpertPlan) -> None:
    wanted = (instance.layers, instance.slots)
    if plan.slot_expert.shape != wanted:
        found = " x ".join(map(str, plan.slot_expert.shape))
        raise InputError(f"plan: slot_expert must have {wanted[0]} layers x {wanted[1]} slots, got {found}")
    beyond = np.argwhere(plan.slot_expert >= instance.experts)
    if len(beyond):
        layer, slot = beyond[0]
        got = int(plan.slot_expert[layer, slot])
        raise InputError(f"plan: slot_expert[{layer}][{slot}] must be an expert from 0 to {instance.experts - 1}, got {got}")
    if instance.split == "equal" and plan.share is not None:
        raise InputError("plan: share must be left out because the instance's split is equal")
    if instance.split == "optimal":
        if plan.share is None:
            raise InputError("plan: share is missing; expected it because the instance's split is optimal")
        if plan.share.shape != (instance.scenarios, *wanted):
            found = " x ".join(map(str, plan.share.shape))
            raise InputError(f"plan: share must have {instance.scenarios} scenarios x {wanted[0]} layers x {wanted[1]} slots, got {found}")


def _violations(instance: ExpertPlacement, plan: ExpertPlan, moved: int) -> list[Violation]:
    counts = device_counts(instance, plan.slot_expert)
    c = counts.sum(axis=2)
    found = _named("held", [(f"layer {layer}, expert {e}", 1.0, 1.0) for layer, e in np.argwhere(c == 0)])
    if instance.min_holders > 1:
        few = instance.min_holders - (counts > 0).sum(axis=2)
        named = [(f"layer {layer}, expert {e}", float(few[layer, e]), float(instance.min_holders)) for layer, e in np.argwhere(few > 0)]
        found += _named("holders", named)
    if instance.distinct:
        twice = np.argwhere(counts > 1)
        found += _named("distinct", [(f"layer {layer}, expert {e}, device {d}", float(counts[layer, e, d] - 1), 1.0) for layer, e, d in twice])
    if instance.group_limited:
        found += _named("group_limited", _split_groups(instance, counts))
    if plan.share is not None:
        found += _named("split", _bad_splits(instance, plan, c))
    if instance.max_moves is not None and moved > instance.max_moves:
        found.append(Violation("max_moves", "all layers", float(moved - instance.max_moves), float(instance.max_moves)))
    return found


def _named(constraint: str, cases: list[tuple[str, float, float]]) -> list[Violation]:
    """A violation for each case; beyond MOST_NAMED they are added up."""
    named = [Violation(constraint, *case) for case in cases[:MOST_NAMED]]
    rest = cases[MOST_NAMED:]
    if rest:
        named.append(Violation(constraint, f"{len(rest)} more", math.fsum(case[1] for case in rest), rest[0][2]))
    return named


def _split_groups(instance: ExpertPlacement, counts: IntArray) -> list[tuple[str, float, float]]:
    groups = int(instance.group_of[-1]) + 1
    on_node = counts.reshape(instance.layers, groups, -1, instance.nodes, instance.node_devices).sum(axis=(2, 4)) > 0
    nodes = on_node.sum(axis=2)
    return [(f"layer {layer}, group {g}", float(nodes[layer, g] - 1), 1.0) for layer, g in np.argwhere(nodes > 1)]


def _bad_splits(instance: ExpertPlacement, plan: ExpertPlan, c: IntArray) -> list[tuple[str, float, float]]:
    assert plan.share is not None
    bad = []
    for s in range(instance.scenarios):
        total = np.zeros((instance.layers, instance.experts))
        np.add.at(total, (np.arange(instance.layers)[:, None], plan.slot_expert), plan.share[s])
        missed = np.abs(total - 1.0)
        for layer, e in np.argwhere((missed > FEASIBILITY) & (c > 0) & (instance.load[s] > 0)):
            bad.append((f"scenario {s}, layer {layer}, expert {e}", float(missed[layer, e]), 1.0))
    return bad


def plan_type(_: object) -> type[Plan]:
    """The plan type that a plan's JSON object is meant for."""
    return ExpertPlan


def build_model(instance: ExpertPlacement) -> pyo.ConcreteModel:
    """The Pyomo model: see `expert_placement_model`."""
    from headroom.formulations.expert_placement_model import build_model as build

    return build(instance)
