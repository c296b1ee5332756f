"""What each layer's imbalance is at least, in closed form: the mean, the replica and the group bound (see `expert_placement` for the table)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headroom.formulations.tolerances import FEASIBILITY
from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
ROUNDING = 1e-12
"""Relative: more than the sums here and in `evaluate` can be off, for up to 10,000 experts."""
MOST_GROUPS = 12
"""Assignments of more groups to nodes are not enumerated."""


def normalised_load(instance: ExpertPlacement) -> FloatArray:
    """Loads in units of the mean device [S][L][E]; 0 in a layer without load."""
    mean = instance.total_load / instance.devices
    found: FloatArray = instance.load / np.where(mean > 0, mean, 1.0)[:, :, None]
    return found


def _views(instance: ExpertPlacement) -> FloatArray:
    """Load vectors that are bounded one by one [V][L][E]: the largest over scenarios, or each scenario."""
    load = normalised_load(instance)
    return load.max(axis=0, keepdims=True) if instance.robust == "worst" else load


def mean_layers(instance: ExpertPlacement) -> FloatArray:
    """1 for every layer [L]."""
    return np.ones(instance.layers)


def replica_layers(instance: ExpertPlacement) -> FloatArray:
    """What each layer's imbalance is at least [L], because a replica cannot be divided. O(S L E) times the bits of a float.

    The bisection keeps its lower end where the replicas do not fit, so rounding cannot raise the bound by more than ROUNDING.
    """
    # A scenario without load counts 1, so each is put at 1 before their mean is taken.
    found = np.maximum(np.stack([_least_replica(view, instance) for view in _views(instance)]), 1.0).mean(axis=0)
    holders = instance.min_holders
    if instance.slots == holders * instance.experts and (holders == 1 or instance.split == "equal"):
        # Every expert stands exactly once on each of its holders and each replica carries w_e / holders (shares that the plan chooses could leave one
        # idle, unless it is the only one). So the hottest has k - 1 different companions, at best the lightest.
        ordered = np.sort(normalised_load(instance), axis=2) / holders
        company = (ordered[:, :, -1] + ordered[:, :, : instance.slots_per_device - 1].sum(axis=2)) * (1 - ROUNDING)
        found = np.maximum(found, company.max(axis=0) if instance.robust == "worst" else np.maximum(company, 1.0).mean(axis=0))
    layers: FloatArray = np.maximum(found, 1.0)
    return layers


def _least_replica(load: FloatArray, instance: ExpertPlacement) -> FloatArray:
    most = instance.most_replicas
    if instance.group_limited and instance.distinct:
        most = min(most, instance.node_devices)
    slots = instance.slots
    low = load.max(axis=1) / most
    high = np.maximum(load.max(axis=1), low)
    fits_low = _replicas_needed(load, low, instance.min_holders) <= slots
    for _ in range(60):
        middle = 0.5 * (low + high)
        fits = _replicas_needed(load, middle, instance.min_holders) <= slots
        high, low = np.where(fits, middle, high), np.where(fits | fits_low, low, middle)
    least: FloatArray = low * (1 - ROUNDING)
    return least


def _replicas_needed(load: FloatArray, at: FloatArray, least: int) -> IntArray:
    """sum_e max(least, ceil(w_e / z)) for each layer [L]: every expert needs a slot on each of `min_holders` devices."""
    ratio = np.divide(load, at[:, None], out=np.zeros_like(load), where=at[:, None] > 0)
    needed: IntArray = np.maximum(np.ceil(ratio * (1 - ROUNDING)), float(least)).sum(axis=1).astype(np.int64)
    return needed


def group_layers(instance: ExpertPlacement) -> FloatArray:
    """What each layer's imbalance is at least [L], because all experts of a group sit in one node."""
    if not instance.group_limited:
        return mean_layers(instance)
    load = normalised_load(instance).reshape(instance.scenarios, instance.layers, int(instance.group_of[-1]) + 1, -1).sum(axis=3)
    views = load[None] if instance.robust == "worst" else load[:, None]
    found = np.stack([assign_groups(view / instance.node_devices, instance)[0] for view in views])
    layers: FloatArray = np.maximum(np.maximum(found * (1 - ROUNDING), 1.0).mean(axis=0), 1.0)
    return layers


def assign_groups(load: FloatArray, instance: ExpertPlacement) -> tuple[FloatArray, IntArray]:
    """Groups with loads [S][L][groups] (relative to a node) to nodes, minimising the busiest node over all S.

    Returns (value [L], node of each group [L][groups]). The value is +inf where whole groups cannot
    fill the nodes. Exact for up to MOST_GROUPS groups, by dynamic programming over sets of groups,
    O(3^groups nodes L). For more, the value is the heaviest group alone or the mean, whichever is larger, and the nodes are filled by falling load
    (-1 where a group found no room).
    """
    layers, groups = load.shape[1], load.shape[2]
    nodes = instance.nodes
    room = instance.node_devices * instance.slots_per_device // (instance.experts // groups * instance.min_holders)
    if groups > MOST_GROUPS:
        return np.maximum(load.max(axis=(0, 2)), (load.sum(axis=2) / nodes).max(axis=0)), _fill_nodes(load.max(axis=0), nodes, room)
    sets = 1 << groups
    member = (np.arange(sets)[:, None] >> np.arange(groups)) & 1
    cost = np.einsum("slg,cg->scl", load, member.astype(np.float64)).max(axis=0)
    # Every slot of a node holds an expert of its groups, a different one on each slot of a device where they must be distinct.
    fill = -(-instance.slots_per_device // (instance.experts // groups)) if instance.distinct else 1
    cost[(member.sum(axis=1) > room) | (member.sum(axis=1) < fill)] = np.inf
    value, choice = cost, np.zeros((nodes, sets, layers), dtype=np.int64)
    choice[0] = np.arange(sets)[:, None]
    for n in range(1, nodes):
        after = np.empty_like(cost)
        for whole in range(sets):
            parts = _subsets(whole)
            trial = np.maximum(value[whole ^ parts], cost[parts])
            best = np.argmin(trial, axis=0)
            after[whole], choice[n, whole] = trial[best, np.arange(layers)], parts[best]
        value = after
    node = np.zeros((layers, groups), dtype=np.int64)
    for layer in range(layers):
        left = sets - 1
        for n in range(nodes - 1, -1, -1):
            part = int(choice[n, left, layer])
            node[layer, member[part] == 1] = n
            left ^= part
    return value[sets - 1], node


def _subsets(whole: int) -> IntArray:
    """All subsets of a set of bits, the empty one included."""
    found, part = [], whole
    while True:
        found.append(part)
        if part == 0:
            return np.array(found)
        part = (part - 1) & whole


def _fill_nodes(load: FloatArray, nodes: int, room: int) -> IntArray:
    layers, groups = load.shape
    node = np.full((layers, groups), -1, dtype=np.int64)
    for layer in range(layers):
        carried, held = np.zeros(nodes), np.zeros(nodes, dtype=np.int64)
        for g in np.argsort(-load[layer], kind="stable"):
            n = int(np.argmin(np.where(held < room, carried, np.inf)))
            if held[n] < room:
                node[layer, g] = n
                carried[n] += load[layer, g]
                held[n] += 1
    return node


LAYERS = {"mean": mean_layers, "replica": replica_layers, "group": group_layers}
"""The closed forms: what each layer's imbalance is at least."""


def balance_layers(instance: ExpertPlacement) -> FloatArray:
    """The best closed form of each layer [L]."""
    return np.maximum(replica_layers(instance), group_layers(instance))


def granted(instance: ExpertPlacement) -> float:
    """The share of a bound that is left when `evaluate`'s tolerance (shares may miss 1) and rounding are granted."""
    return (1.0 - (2 * FEASIBILITY if instance.split == "optimal" else 0.0)) * (1 - ROUNDING)
