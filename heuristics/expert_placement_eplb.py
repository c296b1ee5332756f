"""EPLB, DeepSeek's expert-parallelism load balancer (github.com/deepseek-ai/EPLB), over all layers at once.

| name                | what it does                                                                                              |
|---------------------|-----------------------------------------------------------------------------------------------------------|
| `eplb`              | global: copies for the heaviest experts, packed to devices                                                |
| `eplb_hierarchical` | groups packed to nodes, then copies within each node, packed to its devices                                |

Written from the published description, in double precision (the original sorts in single precision, which matters for near-ties alone). It knows one
load an expert, equal shares and no moves: `load_weight` says what several scenarios become. EPLB's own rule is to take the hierarchy where groups
divide evenly by nodes, and the global balance elsewhere.

EPLB may put an expert on a device twice, which serves nothing. Without `distinct` its answer is given as it is; with `distinct` no expert gets
more copies than devices can hold, and doubles are exchanged away (`make_distinct`). EPLB knows no `min_holders` either: above 1, every expert starts
with that many copies in place of one, and the rest is as with `distinct` (where a device has more slots than there are experts: repaired).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headroom.formulations.expert_placement import ExpertPlan
from headroom.formulations.types import Outcome
from headroom.heuristics.expert_placement_packing import kept_apart, load_weight, make_distinct, pack, replicate
from headroom.heuristics.expert_placement_repair import repaired
from headroom.heuristics.expert_placement_split import settled
from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def eplb(instance: ExpertPlacement, rng: np.random.Generator) -> ExpertPlan | Outcome:
    """EPLB's global balance: redundant copies to the highest load a copy, then packing by falling load, equally many on each device.

    No guarantee for the whole; the copies by themselves minimise the heaviest copy. O(L (R - E) E + L R log R). Source: github.com/deepseek-ai/EPLB.
    """
    apart = kept_apart(instance.distinct, instance.min_holders, instance.slots_per_device, instance.experts)
    found = rebalance(load_weight(instance), instance.slots, 1, 1, instance.devices, apart, instance.min_holders)
    if not apart and instance.min_holders > 1:
        found = repaired(instance, found)
    return settled(instance, found, "eplb knows no groups and no moves")


def eplb_hierarchical(instance: ExpertPlacement, rng: np.random.Generator) -> ExpertPlan | Outcome:
    """EPLB's hierarchical balance: groups to nodes with equally many on each, copies within each node, packing to the node's devices.

    Without `n_groups` every expert is a group of its own. No guarantee; O(L (R - E) E / nodes + L R log R). Source: github.com/deepseek-ai/EPLB.
    """
    groups = int(instance.group_of[-1]) + 1
    holders = instance.min_holders
    problem = no_hierarchy(instance.experts, groups, instance.nodes, instance.devices, instance.slots_per_device, instance.distinct, holders)
    if problem is not None:
        return Outcome(notes=(f"eplb_hierarchical: {problem}",))
    apart = kept_apart(instance.distinct, holders, instance.slots_per_device, instance.experts // instance.nodes)
    found = rebalance(load_weight(instance), instance.slots, groups, instance.nodes, instance.devices, apart, holders)
    return settled(instance, found, "eplb_hierarchical knows no moves")


def no_hierarchy(experts: int, groups: int, nodes: int, devices: int, slots_per_device: int, distinct: bool, holders: int) -> str | None:
    """Why the hierarchical balance does not apply; None when it does."""
    if groups % nodes:
        return f"{groups} groups do not divide evenly by {nodes} nodes"
    if distinct and slots_per_device > experts // nodes:
        return f"{slots_per_device} slots a device cannot hold different experts where a node has {experts // nodes}"
    if holders > devices // nodes:
        return f"it keeps an expert within a node of {devices // nodes} devices, fewer than min_holders {holders}"
    return None


def rebalance(weight: FloatArray, slots: int, groups: int, nodes: int, devices: int, distinct: bool, holders: int = 1) -> IntArray:
    """The expert in each slot [L][slots] for weight [L][E], by EPLB; groups = nodes = 1 is the global balance.

    With `distinct` it differs from the original only where that would hold an expert twice on a device; with `holders` above 1 in the copies that
    every expert starts with.
    """
    layers, experts = weight.shape
    size, here = experts // groups, experts // nodes
    # 1. Groups to nodes. `order`: experts by node, then by the group's place in it.
    node, place = pack(weight.reshape(layers, groups, size).sum(axis=2), nodes)
    start = (node * (groups // nodes) + place) * size
    order = np.empty((layers, experts), np.int64)
    np.put_along_axis(order, (start[:, :, None] + np.arange(size)).reshape(layers, experts), np.broadcast_to(np.arange(experts), order.shape), axis=1)
    # 2. Copies within each node: every node of every layer is a row.
    local = np.take_along_axis(weight, order, axis=1).reshape(layers * nodes, here)
    copy_of, count = replicate(local, slots // nodes, devices // nodes if distinct else slots, holders)
    # 3. Copies to the node's devices.
    each = local / count
    device, rank = pack(np.take_along_axis(each, copy_of, axis=1), devices // nodes)
    found = np.empty_like(copy_of)
    np.put_along_axis(found, device * (slots // devices) + rank, copy_of, axis=1)
    first = np.arange(nodes)[None, :, None] * here
    found = np.take_along_axis(order, (found.reshape(layers, nodes, -1) + first).reshape(layers, slots), axis=1)
    if distinct:
        copy_load = np.empty((layers, experts))
        np.put_along_axis(copy_load, order, each.reshape(layers, experts), axis=1)
        make_distinct(found, copy_load, slots // devices, devices // nodes)
    return found
