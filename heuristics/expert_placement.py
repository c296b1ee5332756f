"""Baselines for expert placement, under the names the field uses.

| name                | kind      | what it does                                                                                |
|---------------------|-----------|---------------------------------------------------------------------------------------------|
| `linear`            | heuristic | experts in order, over and over: slot r holds r mod E                                        |
| `round_robin`       | heuristic | experts in order, dealt to the devices like cards                                            |
| `random_placement`  | heuristic | random copies on random slots                                                                |
| `lpt`               | heuristic | copies for the heaviest experts, then longest processing time first                          |
| `keep`              | heuristic | `current_slot_expert` as it is                                                               |
| `eplb`, `eplb_hierarchical` | heuristic | DeepSeek's balancer, in `expert_placement_eplb`                                      |
| `exflow`            | heuristic | swaps for affinity between layers, in `expert_placement_affinity`                            |
| `Static`, `Periodic`, `Threshold` | policy | when to rebalance, in `expert_placement_online`                                   |

Each fills every slot. A method that does not know a rule of the instance (groups, moves) and breaks it returns an outcome without a plan, whose
note names the rule. Helpers: `plan_of`, `settled`, `best_share` in `expert_placement_split`; `replicate`, `pack`, `make_distinct`,
`groups_on_nodes` in `expert_placement_packing`; `repaired` in `expert_placement_repair`. Where the split is "optimal" every plan carries the best
shares for its slots. Where `min_holders` is above 1, methods that count copies start every expert with that many, on different devices; `linear` and
`round_robin` need no change: going through the experts over and over they come to each often enough, and to another device each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from headroom.formulations.expert_placement import ExpertPlan
from headroom.formulations.types import Outcome
from headroom.heuristics.expert_placement_eplb import eplb, eplb_hierarchical
from headroom.heuristics.expert_placement_packing import (
    groups_in_order,
    groups_on_nodes,
    kept_apart,
    load_weight,
    longest_first,
    make_distinct,
    most_copies,
    replicate,
)
from headroom.heuristics.expert_placement_repair import repaired
from headroom.heuristics.expert_placement_split import best_share, broken, plan_of, settled
from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def linear(instance: ExpertPlacement, rng: np.random.Generator) -> ExpertPlan | Outcome:
    """Contiguous blocks: slot r of every layer holds expert r mod E, so that surplus slots hold the first experts again.

    What serving systems start with ("linear" in vLLM; SGLang's "trivial" location, which extends it to redundant slots this way). No guarantee.
    O(L R). Source: github.com/sgl-project/sglang, github.com/vllm-project/vllm.
    """
    return settled(instance, linear_slots(instance), "linear knows no groups and no moves")


def linear_slots(instance: ExpertPlacement) -> IntArray:
    """Slot r holds expert r mod E [L][R]."""
    return np.tile(np.arange(instance.slots) % instance.experts, (instance.layers, 1))


def round_robin(instance: ExpertPlacement, rng: np.random.Generator) -> ExpertPlan | Outcome:
    """Experts 0, 1, 2, … dealt to the devices in turn ("round_robin" in vLLM), over and over until the slots are full.

    Whenever the deal would repeat itself, it goes on one device further: an expert comes to every device before it comes to one twice, so no
    device holds an expert twice where slots allow. No guarantee. O(L R). Source: github.com/vllm-project/vllm.
    """
    turn = np.arange(instance.slots)
    device = (turn + turn // math.lcm(instance.experts, instance.devices)) % instance.devices
    dealt = turn[np.argsort(device, kind="stable")] % instance.experts
    return settled(instance, np.tile(dealt, (instance.layers, 1)), "round_robin knows no groups and no moves")


def random_placement(instance: ExpertPlacement, rng: np.random.Generator) -> ExpertPlan | Outcome:
    """Random copies on random slots, in every layer anew; groups on random nodes where they are limited to one. No guarantee. O(L R).

    Doubles that `distinct` forbids are exchanged away, so placements are not equally likely then.
    """
    found = np.empty((instance.layers, instance.slots), np.int64)
    holders, apart = instance.min_holders, np.zeros(instance.layers, bool)
    for l in range(instance.layers):
        parts = _parts(instance, rng.random(instance.experts))
        if parts is None:
            return _no_parts(instance, "random_placement")
        apart[l] = kept_apart(instance.distinct, holders, instance.slots_per_device, min(len(experts) for experts, _ in parts))
        most = most_copies(instance, bool(apart[l]))
        for experts, part in parts:
            spare = (part.stop - part.start) - holders * len(experts)
            more = rng.permutation(np.repeat(experts, most - holders))[:spare] if apart[l] else rng.choice(experts, spare)
            found[l, part] = rng.permutation(np.concatenate([np.repeat(experts, holders), more]))
    if apart.any():
        each, rows = rng.random((instance.layers, instance.experts)), found[apart]
        make_distinct(rows, each[apart], instance.slots_per_device, most_copies(instance, True))
        found[apart] = rows
    if holders > 1:
        found = repaired(instance, found)  # what is left where devices have more slots than there are experts
    return settled(instance, found, "random_placement knows no moves")


def lpt(instance: ExpertPlacement, rng: np.random.Generator) -> ExpertPlan | Outcome:
    """Copies one by one to the expert with the highest load a copy, then longest processing time first onto devices with room.

    Unlike EPLB it packs with all scenarios in sight (by an expert's worst share of a layer; by its mean when `robust` is "mean"), avoids doubles
    while packing, and puts groups onto nodes in unequal numbers if that is lighter. No guarantee: Graham's 4/3 does not hold for devices with a
    fixed number of slots. O(L (R - E) E + S L R D). Source: Graham, doi 10.1137/0117039.
    """
    total = instance.total_load[:, :, None]
    share = instance.load / np.where(total > 0, total, 1.0)
    if instance.robust == "mean":
        share = share.mean(axis=0, keepdims=True)
    found = np.empty((instance.layers, instance.slots), np.int64)
    k, holders = instance.slots_per_device, instance.min_holders
    for l in range(instance.layers):
        weight = share[:, l].max(axis=0)
        parts = _parts(instance, weight)
        if parts is None:
            return _no_parts(instance, "lpt")
        for experts, part in parts:
            slots = part.stop - part.start
            apart = kept_apart(instance.distinct, holders, k, len(experts))
            count = replicate(weight[None, experts], slots, most_copies(instance, apart), holders)[1][0]
            each = share[:, l, experts] / count
            found[l, part] = experts[longest_first(each, count, slots // k, k, apart, holders)]
    if holders > 1:
        found = repaired(instance, found)
    return settled(instance, found, "lpt knows no moves")


def keep(instance: ExpertPlacement, rng: np.random.Generator) -> ExpertPlan | Outcome:
    """The placement that stands, `current_slot_expert`, as it is: what rebalancing must beat. O(1)."""
    if instance.current_slot_expert is None:
        return Outcome(notes=("keep: the instance has no current_slot_expert",))
    return settled(instance, instance.current_slot_expert, "keep")


def _parts(instance: ExpertPlacement, weight: FloatArray) -> list[tuple[IntArray, slice]] | None:
    """The experts that share slots, and which: everything in one part, or a part for each node where groups are limited to one; weight [E].

    None when the nodes cannot be filled with whole groups.
    """
    if not instance.group_limited or instance.nodes == 1:
        return [(np.arange(instance.experts), slice(0, instance.slots))]
    node = groups_on_nodes(instance, np.bincount(instance.group_of, weight).astype(np.float64))
    return None if node is None else list(_of_nodes(instance, node))


def _of_nodes(instance: ExpertPlacement, node: IntArray) -> Iterator[tuple[IntArray, slice]]:
    on_node = instance.slots // instance.nodes
    for n in range(instance.nodes):
        yield np.flatnonzero(node[instance.group_of] == n), slice(n * on_node, (n + 1) * on_node)


def grouped_linear_slots(instance: ExpertPlacement) -> IntArray | None:
    """`linear_slots`, with consecutive groups on each node and their experts over and over where groups are limited to a node."""
    if not instance.group_limited or instance.nodes == 1:
        return linear_slots(instance)
    node = groups_in_order(instance)
    if node is None:
        return None
    row = np.empty(instance.slots, np.int64)
    for experts, part in _of_nodes(instance, node):
        row[part] = np.resize(experts, part.stop - part.start)
    return np.tile(row, (instance.layers, 1))


def _no_parts(instance: ExpertPlacement, name: str) -> Outcome:
    size = instance.experts // (int(instance.group_of[-1]) + 1)
    what = f"{instance.nodes} nodes cannot be filled with whole groups of {size} experts"
    return Outcome(notes=(f"{name}: {what}",))


__all__ = [
    "best_share",
    "broken",
    "eplb",
    "eplb_hierarchical",
    "grouped_linear_slots",
    "keep",
    "linear",
    "linear_slots",
    "load_weight",
    "lpt",
    "plan_of",
    "random_placement",
    "round_robin",
    "settled",
]
