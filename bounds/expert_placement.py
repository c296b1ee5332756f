r"""Bounds of the expert-placement family and the recheck of their certificates.

| method    | what                                                                             | proof       |
|-----------|----------------------------------------------------------------------------------|-------------|
| `mean`    | no device is below the mean: every layer's imbalance is at least 1               | closed form |
| `replica` | replicas are whole: least z with sum_e max(min_holders, ceil(w_e / z)) <= R, c_e <= D | closed form |
| `group`   | groups stay whole on nodes: the best assignment of groups to nodes                | closed form |
| `configurations` | what one device can hold, for one placement of several tasks (`_configurations`) | certificate: weights of experts |
| `partitions` | traffic, exactly, over all splits of few experts (`_partitions`)              | closed form |
| `b_matching` | traffic: who meets whom, boundary by boundary (`_traffic`)                    | certificate: matching duals |
| `chain_sdp`  | traffic: who shares a device with whom, all layers together (`_traffic`)      | certificate: semidefinite multipliers |
| `chain_sets` | traffic: which sets a device holds, all layers together (`_sets`)             | certificate: prices of experts |

The last four add the best closed form for balance. The closed forms hold for any `split`: with shares the plan may choose, c replicas of e still
carry w_e together, so one carries at least w_e / c. With several scenarios and `robust` "worst" an expert counts with its largest load relative to
its scenario's mean device, since one placement serves all; with "mean" each scenario is bounded alone. Parts of the objective that a bound says
nothing of count 0. `replica` and `group` include `mean`; where `min_holders` take all slots `replica` also gives the hottest expert the k - 1
lightest as companions. The others leave `min_holders` out, a relaxation, but for the room that it takes: fewer replicas of one expert, fewer groups
in a node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.certificates import CertificateError
from headroom.bounds.expert_placement_balance import LAYERS, ROUNDING, balance_layers, granted, normalised_load
from headroom.bounds.expert_placement_configurations import certified_layers, configurations_apply, content_bound
from headroom.bounds.expert_placement_configurations_search import layer_weights
from headroom.bounds.expert_placement_partitions import applies as splits_are_few
from headroom.bounds.expert_placement_partitions import partition_traffic, traffic_of_kept
from headroom.bounds.expert_placement_search import chain_prices, matching_prices, worth_asking
from headroom.bounds.expert_placement_sets import sets_apply
from headroom.bounds.expert_placement_sets_close import certified_sets
from headroom.bounds.expert_placement_sets_search import set_prices
from headroom.bounds.expert_placement_traffic import ChainPrices, certified_traffic, chain_applies, levels
from headroom.formulations.expert_placement import ExpertPlan, layer_imbalance
from headroom.formulations.progress import Progress
from headroom.formulations.tolerances import OPTIMALITY_GAP
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
UNKNOWN = 2.0
"""Without a plan at hand a layer is thought to reach so many times its closed form."""
OF_BALANCE = frozenset({"mean", "replica", "group", "configurations"})
OF_TRAFFIC = frozenset({"partitions", "b_matching", "chain_sdp", "chain_sets"})
REPORT_EVERY = 8
"""Layers between two reports."""


def _closed(instance: ExpertPlacement, method: str) -> Bound:
    layers = LAYERS[method](instance)
    if np.isinf(layers).any():
        return Bound(math.inf, method, "closed_form")  # groups cannot fill the nodes: there is no plan
    return Bound(_balance_value(instance, layers), method, "closed_form")


def _balance_value(instance: ExpertPlacement, layers: FloatArray) -> float:
    """The objective's bound from what each layer's imbalance is at least."""
    return instance.weights.balance * math.fsum(layers.tolist()) / instance.layers * granted(instance)


def _with_traffic(instance: ExpertPlacement, traffic: float) -> float:
    """The objective's bound from one of traffic and the closed forms of balance."""
    layers = balance_layers(instance)
    if np.isinf(layers).any():
        return math.inf
    return _balance_value(instance, layers) + instance.weights.traffic * traffic * (1 - ROUNDING)


def traffic_of(instance: ExpertPlacement, bound: Bound) -> float:
    """What a bound says of a token's traffic whatever balance costs: `_with_traffic` the other way round, rounded down; 0 for bounds of balance."""
    weight = instance.weights.traffic
    if bound.method not in OF_TRAFFIC or not math.isfinite(bound.value) or weight <= 0:
        return 0.0
    traffic = (bound.value - _with_traffic(instance, 0.0)) / weight
    return max(traffic - 4 * ROUNDING * (abs(bound.value) / weight + abs(traffic)), 0.0)


def balance_of(instance: ExpertPlacement, bound: Bound) -> float:
    """What a bound says of the mean imbalance whatever traffic and moves cost: bounds of balance alone do, and count neither; 0 for the others."""
    weight = instance.weights.balance
    return bound.value / weight * (1 - ROUNDING) if bound.method in OF_BALANCE and math.isfinite(bound.value) and weight > 0 else 0.0


def boundary_bounds(instance: ExpertPlacement, certificate: Mapping[str, Any]) -> FloatArray:
    """What a `b_matching` certificate proves of a token's traffic at each boundary alone [B]. O(B E^2). Raises `CertificateError`."""
    boundaries = instance.layers - 1
    if instance.transition is None or boundaries < 1:
        return np.zeros(boundaries)
    return np.array([certified_traffic(*_one_boundary(instance, certificate, b)) for b in range(boundaries)])


def _one_boundary(instance: ExpertPlacement, certificate: Mapping[str, Any], b: int) -> tuple[ExpertPlacement, Mapping[str, Any]]:
    """The instance of the layers b and b + 1, and what the certificate says of them."""
    assert instance.transition is not None
    changes: dict[str, Any] = {"load": instance.load[:, b : b + 2], "transition": instance.transition[b : b + 1], "max_moves": None}
    changes |= {"current_slot_expert": None, "load_trace": None, "model_layers": None, "moe_layer_ids": None}
    weights = instance.weights.model_dump() | {"moves": 0.0}
    part = {"kind": "b_matching", "levels": [{name: level[name][b : b + 1] for name in ("row", "column")} for level in certificate["levels"]]}
    return instance.replace(**changes, weights=weights), part


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
    """`chain_sets`, which tells `better` of better prices [L][E] and their W where devices are the only level. It may answer with the
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
        alone = len(wanted) == 1 and level.parts == instance.devices

        def report(price: FloatArray, within: float, waiting: list[dict[str, FloatArray]] = waiting, alone: bool = alone) -> None:
            keep([*done, {"price": price}, *waiting])
            kept = better(price, within) if alone and not stop() else None
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


def configurations(instance: ExpertPlacement, params: SolveParams, progress: Progress) -> Bound:
    """What one device can hold, layer by layer; without effect (-inf) where shares are not equal or devices have many slots."""
    return search_configurations(instance, params, progress)[0]


def search_configurations(instance: ExpertPlacement, params: SolveParams, progress: Progress) -> tuple[Bound, FloatArray]:
    """(`configurations`, what it proves of each layer [L]). Anytime: layers that a stop leaves out have their closed form."""
    floor = balance_layers(instance)
    if not configurations_apply(instance) or np.isinf(floor).any():
        return Bound(-math.inf, "configurations", "certificate", {"kind": "configurations", "levels": []}), floor
    load = normalised_load(instance)
    plan = progress.plan
    limit = layer_imbalance(instance, plan) if isinstance(plan, ExpertPlan) else UNKNOWN * floor
    weight, proved = load.sum(axis=0), floor.copy()
    asked = np.zeros(instance.layers)  # the limit of each layer that was looked at; 0 says nothing

    def layer_bound(layer: int) -> None:
        if progress.should_stop() is None and limit[layer] > floor[layer] * (1 + OPTIMALITY_GAP):
            w = np.ascontiguousarray(load[:, layer].T)
            weight[layer] = layer_weights(w, instance, float(floor[layer]), float(limit[layer]), lambda: progress.should_stop() is not None)
            proved[layer] = max(content_bound(w, instance, weight[layer], float(limit[layer])), float(floor[layer]))
            asked[layer] = limit[layer]

    def bound() -> Bound:
        certificate = {"kind": "configurations", "weight": weight.copy(), "limit": asked.copy()}
        return Bound(_balance_value(instance, proved), "configurations", "certificate", certificate)

    with ThreadPoolExecutor(max(params.threads, 1)) as pool:
        for number, _ in enumerate(pool.map(layer_bound, range(instance.layers))):
            if number % REPORT_EVERY == 0:
                progress.keep(bound())
    found = bound()
    progress.keep(found)
    return found, proved


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
    if certificate.get("kind") == "configurations":
        if certificate.get("levels") == []:
            return -math.inf
        layers = certified_layers(instance, normalised_load(instance), certificate)
        return _balance_value(instance, np.maximum(layers, balance_layers(instance)))
    if certificate.get("kind") == "chain_sets":
        return _with_traffic(instance, certified_sets(instance, certificate))
    return _with_traffic(instance, certified_traffic(instance, certificate))


__all__ = [
    "b_matching", "balance_of", "boundary_bounds", "chain_sdp", "chain_sets", "configurations", "group", "mean", "partitions", "recheck", "replica",
    "search_configurations", "search_sets", "traffic_of",
]  # fmt: skip
