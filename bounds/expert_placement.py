r"""Bounds of the expert-placement family and the recheck of their certificates.

| method    | what                                                                             | proof       |
|-----------|----------------------------------------------------------------------------------|-------------|
| `mean`    | no device is below the mean: every layer's imbalance is at least 1               | closed form |
| `replica` | replicas are whole: least z with sum_e max(min_holders, ceil(w_e / z)) <= R, c_e <= D | closed form |
| `group`   | groups stay whole on nodes: the best assignment of groups to nodes                | closed form |
| `partitions` | traffic, exactly, over all splits of few experts (`_partitions`)              | closed form |
| `b_matching` | traffic: who meets whom, boundary by boundary (`_traffic`)                    | certificate: matching duals |
| `chain_sdp`  | traffic: who shares a device with whom, all layers together (`_traffic`)      | certificate: semidefinite multipliers |
| `chain_sets` | traffic: which sets a device holds, all layers together (`_sets`)             | certificate: prices of experts |

The last four add the best closed form for balance. The others hold for any `split`: with shares the plan may choose, c replicas of e still carry
w_e together, so one carries at least w_e / c. With several scenarios and `robust` "worst" an expert counts with its largest load relative to its
scenario's mean device, since one placement serves all; with "mean" each scenario is bounded alone. Parts of the objective that a bound says nothing
of count 0. `replica` and `group` include `mean`; where `min_holders` take all slots `replica` also gives the hottest expert the k - 1 lightest as
companions. The others leave `min_holders` out, a relaxation, but for the room that it takes: fewer replicas of one expert, fewer groups in a node.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.certificates import CertificateError
from headroom.bounds.expert_placement_partitions import applies as splits_are_few
from headroom.bounds.expert_placement_partitions import partition_traffic, traffic_of_kept
from headroom.bounds.expert_placement_search import chain_prices, matching_prices, worth_asking
from headroom.bounds.expert_placement_sets import sets_apply
from headroom.bounds.expert_placement_sets_close import certified_sets
from headroom.bounds.expert_placement_sets_search import set_prices
from headroom.bounds.expert_placement_traffic import ChainPrices, certified_traffic, chain_applies, levels
from headroom.formulations.progress import Progress
from headroom.formulations.tolerances import FEASIBILITY, OPTIMALITY_GAP
from headroom.formulations.types import Bound, SolveParams
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


def _closed(instance: ExpertPlacement, method: str) -> Bound:
    layers = LAYERS[method](instance)
    if np.isinf(layers).any():
        return Bound(math.inf, method, "closed_form")  # groups cannot fill the nodes: there is no plan
    # Shares may miss 1 by FEASIBILITY.
    tolerated = 1.0 - (2 * FEASIBILITY if instance.split == "optimal" else 0.0)
    value = instance.weights.balance * math.fsum(layers.tolist()) / instance.layers * tolerated * (1 - ROUNDING)
    return Bound(value, method, "closed_form")


def _with_traffic(instance: ExpertPlacement, traffic: float) -> float:
    """The objective's bound from one of traffic and the closed forms of balance."""
    tolerated = 1.0 - (2 * FEASIBILITY if instance.split == "optimal" else 0.0)
    layers = balance_layers(instance)
    if np.isinf(layers).any():
        return math.inf
    balance = math.fsum(layers.tolist()) / instance.layers * tolerated
    return (instance.weights.balance * balance + instance.weights.traffic * traffic) * (1 - ROUNDING)


def partitions_bound(instance: ExpertPlacement, kept: float) -> Bound:
    """The bound from the flow that the best chain keeps."""
    return Bound(_with_traffic(instance, traffic_of_kept(instance, kept)), "partitions", "closed_form")


def partitions(instance: ExpertPlacement, params: SolveParams, progress: Progress) -> Bound:
    """Dynamic programming over all splits of a layer's experts: exact for traffic alone with one hop price. -inf where they are too many."""
    value = _with_traffic(instance, partition_traffic(instance)) if splits_are_few(instance) else -math.inf
    return Bound(value, "partitions", "closed_form")


def b_matching(instance: ExpertPlacement, params: SolveParams, progress: Progress) -> Bound:
    """Each expert meets at most the experts of its part, at each boundary alone. O(B) linear programs."""
    if instance.transition is None or instance.layers < 2:
        return Bound(_with_traffic(instance, 0.0), "b_matching", "certificate", {"kind": "b_matching", "levels": []})
    transition = instance.transition
    found = [matching_prices(transition, level, lambda: progress.should_stop() is not None) for level in levels(instance)]
    certificate = {"kind": "b_matching", "levels": [{"row": row, "column": column} for row, column in found]}
    return Bound(_with_traffic(instance, certified_traffic(instance, certificate)), "b_matching", "certificate", certificate)


def chain_sdp(instance: ExpertPlacement, params: SolveParams, progress: Progress) -> Bound:
    """The semidefinite chain over all layers; without effect (-inf) where there are spare slots or too many experts. O(B E^3) a round."""
    wanted = levels(instance)
    transition = instance.transition
    if transition is None or instance.layers < 2 or not wanted or not all(chain_applies(instance, level) for level in wanted):
        return Bound(-math.inf, "chain_sdp", "certificate", {"kind": "chain_sdp", "levels": []})
    if not worth_asking(transition):
        return Bound(-math.inf, "chain_sdp", "certificate", {"kind": "chain_sdp", "levels": []})
    done: list[dict[str, FloatArray]] = []
    for level in wanted:
        waiting = [_plain_prices(instance) for _ in range(len(wanted) - len(done) - 1)]

        def report(prices: ChainPrices, within: float, waiting: list[dict[str, FloatArray]] = waiting) -> None:
            progress.keep(_chain_bound(instance, [*done, _fields(prices), *waiting]))

        done.append(_fields(chain_prices(transition, level.parts, lambda: progress.should_stop() is not None, report)))
    return _chain_bound(instance, done)


def _plain_prices(instance: ExpertPlacement) -> dict[str, FloatArray]:
    boundaries, experts = instance.layers - 1, instance.experts
    nothing = np.zeros((boundaries, experts))
    return _fields(ChainPrices(np.zeros((boundaries, 2 * experts, 2 * experts)), nothing, nothing, np.zeros((instance.layers, experts))))


def _fields(prices: ChainPrices) -> dict[str, FloatArray]:
    return {"psd": prices.psd, "row": prices.row, "column": prices.column, "layer": prices.layer}


def _chain_bound(instance: ExpertPlacement, data: list[dict[str, FloatArray]]) -> Bound:
    certificate = {"kind": "chain_sdp", "levels": data}
    return Bound(_with_traffic(instance, certified_traffic(instance, certificate)), "chain_sdp", "certificate", certificate)


def chain_sets(instance: ExpertPlacement, params: SolveParams, progress: Progress) -> Bound:
    """Chains of the sets that a device can hold; without effect (-inf) where there are spare slots or too many sets. O(B C(E, k)^2) a step."""
    return search_sets(instance, params, progress, lambda price, within: None)


def search_sets(instance: ExpertPlacement, params: SolveParams, progress: Progress, better: Callable[[FloatArray, float], float | None]) -> Bound:
    """`chain_sets`, which tells `better` of better prices [L][E] of the devices and their W while there is one level. It may answer with the
    flow that a plan at hand keeps: then an enumeration of what the prices leave above that is tried for the bound."""
    transition = instance.transition
    if transition is None or not sets_apply(instance):
        return Bound(-math.inf, "chain_sets", "certificate", {"kind": "chain_sets", "levels": []})
    wanted = levels(instance)
    done: list[dict[str, Any]] = []
    best = Bound(-math.inf, "chain_sets", "certificate", {"kind": "chain_sets", "levels": []})

    def keep(data: list[dict[str, Any]]) -> None:
        nonlocal best
        certificate = {"kind": "chain_sets", "levels": data}
        bound = Bound(_with_traffic(instance, certified_sets(instance, certificate)), "chain_sets", "certificate", certificate)
        if bound.value > best.value:
            best = bound
            progress.keep(bound)

    def stop() -> bool:
        return progress.should_stop() is not None or progress.gap <= OPTIMALITY_GAP

    for level in wanted:
        waiting = [{"price": np.zeros((instance.layers, instance.experts))}] * (len(wanted) - len(done) - 1)

        def report(price: FloatArray, within: float, waiting: list[dict[str, FloatArray]] = waiting) -> None:
            keep([*done, {"price": price}, *waiting])
            kept = better(price, within) if len(wanted) == 1 and not stop() else None
            if kept is not None and not stop():
                keep([{"price": price, "kept": kept}])

        done.append({"price": set_prices(transition, level.parts, params.threads, stop, report)})
        keep([*done, *waiting])
    return best


def mean(instance: ExpertPlacement, params: SolveParams, progress: Progress) -> Bound:
    """The busiest device is never below the mean. O(L)."""
    return _closed(instance, "mean")


def replica(instance: ExpertPlacement, params: SolveParams, progress: Progress) -> Bound:
    """No replica carries less than its expert's load over the replicas there is room for. O(S L E)."""
    return _closed(instance, "replica")


def group(instance: ExpertPlacement, params: SolveParams, progress: Progress) -> Bound:
    """The best assignment of whole groups to nodes, replicas divisible. O(3^groups nodes L)."""
    return _closed(instance, "group")


def recheck(instance: ExpertPlacement, bound: Bound) -> float:
    """The value that the bound's closed form or certificate proves. Raises `CertificateError`."""
    if bound.proof == "closed_form":
        if bound.certificate:
            raise CertificateError("a closed form carries no certificate")
        if bound.method in LAYERS:
            return _closed(instance, bound.method).value
        if bound.method == "partitions":
            return _with_traffic(instance, partition_traffic(instance)) if splits_are_few(instance) else -math.inf
        raise CertificateError(f"closed form must be one of {', '.join(LAYERS)}, partitions, got {bound.method!r}")
    certificate: Any = bound.certificate
    if bound.proof != "certificate" or certificate is None:
        raise CertificateError(f"bound {bound.method!r} carries no certificate")
    if certificate.get("kind") in ("chain_sdp", "chain_sets") and not certificate.get("levels"):
        return -math.inf
    if certificate.get("kind") == "chain_sets":
        return _with_traffic(instance, certified_sets(instance, certificate))
    return _with_traffic(instance, certified_traffic(instance, certificate))


__all__ = [
    "assign_groups", "b_matching", "balance_layers", "chain_sdp", "chain_sets", "group", "mean", "normalised_load", "partitions", "recheck",
    "replica", "search_sets",
]  # fmt: skip
