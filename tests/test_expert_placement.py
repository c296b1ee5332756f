"""Expert placement as a whole: every bound below the optimum, every plan above it, rules that any optimum keeps, documents and threads."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import numpy as np
import pytest

from headroom.bounds.expert_placement import chain_sdp, recheck
from headroom.documents import load_document, result_document, save_document
from headroom.formulations.expert_placement import ExpertPlan, evaluate
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, SolveParams
from headroom.heuristics.expert_placement import plan_of
from headroom.instances.expert_placement import ExpertPlacement
from headroom.instances.files import to_json
from headroom.registry import FAMILIES
from headroom.run import ContradictionError, Result, run
from headroom.verify import verify
from tests.expert_placement_cases import tiny
from tests.oracles.expert_placement import Oracle

FAMILY = FAMILIES["expert_placement"]
CLOSE = 1 + 1e-9
BALANCE_ONLY = {"balance": 1.0}


@cache
def optimum(seed: int, most: int) -> float:
    return Oracle(tiny(seed, most)).best()


def bound(instance: ExpertPlacement, method: str) -> Bound:
    params = SolveParams(time_limit_s=20)
    found: Bound = FAMILY.bounds[method].load()(instance, params, Progress(params))
    return found


def solved(instance: ExpertPlacement, method: str = "local_search", **params: Any) -> Result:
    return run(instance, method, SolveParams(**params))


def with_traffic(seed: int, layers: int, experts: int, devices: int, **changes: Any) -> dict[str, Any]:
    """No spare slots, traffic alone."""
    table = np.random.default_rng([9, seed]).dirichlet(np.full(experts * experts, 0.3), layers - 1).reshape(layers - 1, experts, experts)
    data = {"load": np.ones((1, layers, experts)).tolist(), "transition": table.tolist(), "weights": {"balance": 0.0, "traffic": 1.0}}
    return data | {"devices": devices, "slots_per_device": experts // devices} | changes


# The sandwich.


@pytest.mark.parametrize("chunk", range(5))
def test_no_bound_is_above_the_optimum(chunk: int) -> None:
    reached = dict.fromkeys(FAMILY.bounds, 0)
    for seed in range(chunk * 60, chunk * 60 + 60):
        instance, best = ExpertPlacement(**tiny(seed, 400)), optimum(seed, 400)
        for method in FAMILY.bounds:
            found = bound(instance, method)
            assert found.value <= best * CLOSE, (seed, method, found.value, best)
            # What `verify` demands: the recheck proves what is recorded, no less.
            assert found.proof in ("closed_form", "certificate")
            again = recheck(instance, found)
            assert again == found.value or again >= found.value - 1e-12 * abs(found.value), (seed, method)
            reached[method] += found.value >= best * (1 - 1e-6)
    assert min(reached[name] for name in ("mean", "replica", "group", "b_matching")) >= 10, reached


@pytest.mark.parametrize("chunk", range(4))
def test_no_plan_is_below_the_optimum(chunk: int) -> None:
    proved = 0
    for seed in range(chunk * 40, chunk * 40 + 40):
        data = tiny(seed, 150)
        instance, best = ExpertPlacement(**data), optimum(seed, 150)
        for method, entry in FAMILY.methods.items():
            if entry.kind == "policy":
                continue
            try:
                result = solved(instance, method, seed=seed, time_limit_s=0.5 if method == "local_search" else 10.0)
            except ContradictionError:
                assert method == "highs"  # a solver's false bound, caught
                continue
            assert result.objective >= best / CLOSE, (seed, method)
            assert result.certified_bound <= best * CLOSE, (seed, method)
            assert (result.plan is None) == math.isinf(result.objective)
            if result.status == "optimal":
                assert result.objective <= best * (1 + 2e-6) + 1e-12, (seed, method)
                proved += method == "local_search"
            if result.status == "infeasible":
                assert math.isinf(best), (seed, method)
            if math.isinf(best):
                assert result.plan is None, (seed, method)
            if method == "highs" and result.stop == "completed":
                assert result.objective == pytest.approx(best, rel=1e-6, abs=1e-9), seed
                assert (result.status == "infeasible") == math.isinf(best), seed
            if isinstance(result.plan, ExpertPlan):
                share = None if result.plan.share is None else result.plan.share.tolist()
                assert Oracle(data).value(result.plan.slot_expert.tolist(), share) == pytest.approx(result.objective, rel=1e-9), (seed, method)
    assert proved >= 8


def test_documents_verify() -> None:
    verified = 0
    for seed in range(40):
        instance = ExpertPlacement(**tiny(seed, 150))
        result = solved(instance, "local_search", time_limit_s=0.5)
        report = verify(instance, json.loads(to_json(result_document(result))))
        assert report.verified or result.plan is None, (seed, report.problems)
        assert result.plan is not None or report.verified == (result.certified_bound == math.inf), seed
        verified += report.verified
    assert verified >= 25


@pytest.mark.parametrize("method", ["chain_sets", "chain_sdp"])
@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_traffic_certificates_survive_files(suffix: str, method: str, tmp_path: Any) -> None:
    # Two prices of hops: a b-matching and a certificate of the chain, for devices and for nodes.
    data = with_traffic(1, 3, 8, 4, devices_per_node=2, hop_cost={"same_node": 1.0, "other_node": 2.5})
    instance = ExpertPlacement(**data)
    document = result_document(solved(instance))
    methods = {item["method"]: item for item in document["bounds"]}
    assert {"b_matching", "chain_sets"} <= set(methods)
    if method == "chain_sdp":
        params = SolveParams()
        found = chain_sdp(instance, params, Progress(params))
        document["bounds"].append({**methods["chain_sets"], "method": method, "value": found.value, "certificate": found.certificate})
    path = tmp_path / f"plan{suffix}"
    save_document(document, path)
    report = verify(instance, load_document(path))
    assert report.verified, report.problems
    assert report.certified_bound == pytest.approx(document["result"]["certified_bound"], rel=1e-12)
    # Another instance's certificate, or a value that it does not prove, is refused.
    better = json.loads(to_json(document))
    for item in better["bounds"]:
        if item["method"] == method:
            item["value"] *= 1.001
    assert any(method in problem for problem in verify(instance, better).problems)
    swapped = json.loads(to_json(document))
    for item in swapped["bounds"]:
        if item["method"] == method:
            item["certificate"]["levels"] = item["certificate"]["levels"][::-1]
    assert any(method in problem for problem in verify(instance, swapped).problems)


# Plans that cannot be.


@pytest.mark.parametrize(
    "data",
    [
        # One group, two nodes: the node without it has slots that nothing may fill.
        {"load": [[[1.0, 1.0]]], "devices": 2, "devices_per_node": 1, "slots_per_device": 2, "n_groups": 1, "group_limited": True},
        # Three nodes of one slot, two groups of one expert: some node holds a group's second copy, which splits the group.
        {"load": [[[1.0, 3.0]]], "devices": 3, "devices_per_node": 1, "slots_per_device": 1, "n_groups": 2, "group_limited": True},
        # Nothing may move, and what stands there misses expert 1.
        {"load": [[[1.0, 1.0]]], "devices": 2, "slots_per_device": 1, "current_slot_expert": [[0, 0]], "max_moves": 0},
        # The same by groups and a cap: two rules that a plan cannot keep.
        {
            "load": [[[1.0, 3.0]]], "devices": 3, "devices_per_node": 1, "slots_per_device": 1, "n_groups": 2, "group_limited": True,
            "current_slot_expert": [[1, 1, 0]], "max_moves": 2,
        },
    ],
)  # fmt: skip
def test_infeasible(data: dict[str, Any]) -> None:
    assert math.isinf(Oracle(data).best())
    instance = ExpertPlacement(**data)
    highs = solved(instance, "highs")
    assert (highs.status, highs.plan, highs.objective) == ("infeasible", None, math.inf)
    searched = solved(instance)
    assert searched.plan is None
    assert searched.status in ("unknown", "infeasible")
    # Groups that cannot fill the nodes are seen in closed form; of the rest nobody has proved anything to `verify`, whatever the solver says.
    unfilled = any(bound.value == math.inf and bound.proof == "closed_form" for bound in highs.bounds)
    assert verify(instance, json.loads(to_json(result_document(highs)))).verified == unfilled
    assert unfilled == instance.group_limited


# HiGHS at the edge of its tolerances.


def test_a_solver_that_rounds_is_no_contradiction() -> None:
    assert solved(ExpertPlacement(**tiny(72, 150)), "highs").objective == pytest.approx(optimum(72, 150), rel=1e-6)


def test_small_weights_are_weights() -> None:
    data: dict[str, Any] = {"load": [[[0.0, 0.0, 1.0, 0.0, 0.0]]], "devices": 3, "slots_per_device": 4, "weights": {"balance": 0.0, "moves": 1e-6}}
    data["current_slot_expert"] = [[1, 3, 3, 4, 3, 1, 4, 4, 0, 0, 2, 2]]
    result = solved(ExpertPlacement(**data), "highs")
    assert result.status == "optimal"
    assert result.objective == pytest.approx(Oracle(data).best(), rel=1e-6)


def test_infeasible_by_presolve_alone_is_not_believed() -> None:
    # Each node of one device holds one of two groups: every token of a layer may be on one device, twice the mean.
    data: dict[str, Any] = {"load": [[[40.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [1e-6, 1.0]]], "transition": [[[0.48, 0.26], [0.24, 0.02]]]}
    data |= {"devices": 2, "devices_per_node": 1, "slots_per_device": 3, "split": "optimal", "distinct": False, "n_groups": 2, "group_limited": True}
    data |= {"hop_cost": {"same_node": 0.0, "other_node": 0.0}, "weights": {"balance": 1.0, "traffic": 1.0}}
    assert Oracle(data).best() == pytest.approx(2.0)
    assert solved(ExpertPlacement(**data), "highs").status == "optimal"


# Rules that any optimum keeps.


def permuted(data: dict[str, Any], order: Any) -> dict[str, Any]:
    """The same instance with expert order[i] named i."""
    back = np.argsort(order)
    changed = dict(data, load=np.array(data["load"])[:, :, order].tolist())
    if data.get("transition"):
        changed["transition"] = np.array(data["transition"])[:, order][:, :, order].tolist()
    if data.get("current_slot_expert"):
        changed["current_slot_expert"] = back[np.array(data["current_slot_expert"])].tolist()
    return changed


def test_experts_have_no_names() -> None:
    for seed in range(60):
        data, rng = tiny(seed, 100), np.random.default_rng(seed)
        experts = len(data["load"][0][0])
        groups = data.get("n_groups") or 1
        blocks = np.arange(experts).reshape(groups, -1)
        order = np.concatenate([rng.permutation(block) for block in blocks[rng.permutation(groups)]])
        other = permuted(data, order)
        assert Oracle(other).best() == pytest.approx(optimum(seed, 100), rel=1e-9), seed
        one, two = ExpertPlacement(**data), ExpertPlacement(**other)
        for method in ("mean", "replica", "group", "partitions", "b_matching"):
            # Multipliers come from a linear programme's solver, which stops within a tolerance of its own.
            rel = 1e-6 if method == "b_matching" else 1e-9
            assert bound(one, method).value == pytest.approx(bound(two, method).value, rel=rel, abs=1e-12), (seed, method)


def test_devices_have_no_names() -> None:
    # Whole nodes change places, and devices within them; moves are the exception, they are counted by device.
    for seed in range(120):
        data, rng = tiny(seed), np.random.default_rng(seed)
        instance = ExpertPlacement(**data)
        if instance.current_slot_expert is not None:
            continue
        slots = np.array([rng.permutation(np.resize(np.arange(instance.experts), instance.slots)) for _ in range(instance.layers)])
        devices = np.arange(instance.devices).reshape(instance.nodes, -1)
        order = np.concatenate([rng.permutation(node) for node in devices[rng.permutation(instance.nodes)]])
        renamed = slots.reshape(instance.layers, instance.devices, -1)[:, order].reshape(slots.shape)
        one, two = (evaluate(instance, plan_of(instance, each)) for each in (slots, renamed))
        assert one.objective == pytest.approx(two.objective, rel=1e-12), seed
        assert sorted({item.constraint for item in one.violations}) == sorted({item.constraint for item in two.violations}), seed


def test_only_ratios_of_loads_count() -> None:
    for seed in range(60):
        data, rng = tiny(seed, 100), np.random.default_rng(seed)
        load = np.array(data["load"])
        # Each scenario and layer by a power of two of its own: not even a rounding error may change.
        scale = 2.0 ** rng.integers(-9, 9, load.shape[:2])
        one, two = ExpertPlacement(**data), ExpertPlacement(**dict(data, load=(load * scale[:, :, None]).tolist()))
        for method in ("mean", "replica", "group"):
            assert bound(one, method).value == bound(two, method).value, (seed, method)
        slots = np.resize(np.arange(one.experts), (one.layers, one.slots))
        assert evaluate(one, plan_of(one, slots)).objective == evaluate(two, plan_of(two, slots)).objective, seed


def test_one_more_slot_never_hurts_when_the_plan_splits_loads() -> None:
    # The copy that fills it may carry nothing. (Not so with groups: a node may have nothing that fills it.)
    grown = 0
    for seed in range(1, 161, 2):
        data = {name: tiny(seed, 60)[name] for name in ("load", "devices", "slots_per_device", "split", "robust", "distinct")}
        more = dict(data, slots_per_device=data["slots_per_device"] + 1)
        if data["distinct"] and more["slots_per_device"] > len(data["load"][0][0]):
            continue
        grown += 1
        assert data["split"] == "optimal"
        assert Oracle(more).best() <= Oracle(data).best() * (1 + 1e-12), seed
    assert grown >= 20


def test_one_more_slot_may_hurt_when_copies_share_equally() -> None:
    # Experts of loads 10 4 1 3 2 on two devices. Three slots each: the 10 on both, beside 4 + 1 and 3 + 2, is even. Four slots each must hold three
    # experts twice, so two stand alone, and no two of them weigh the same: at best they differ by one, half a token above the mean of ten.
    data: dict[str, Any] = {"load": [[[10.0, 4.0, 1.0, 3.0, 2.0]]], "devices": 2, "slots_per_device": 3}
    assert Oracle(data).best() == pytest.approx(1.0)
    assert Oracle(data | {"slots_per_device": 4}).best() == pytest.approx(10.5 / 10)
    assert solved(ExpertPlacement(**data | {"slots_per_device": 4})).objective == pytest.approx(1.05)


def test_merging_scenarios() -> None:
    # A placement carries the average scenario no worse than the scenarios on average, and those no worse than the worst one; a scenario told twice
    # changes neither the worst nor (all told twice) the mean.
    for seed in range(80):
        data = tiny(seed, 60) | {"weights": BALANCE_ONLY, "transition": None, "robust": "mean"}
        load = np.array(data["load"])
        total = load.sum(axis=2, keepdims=True)
        if total.min() == 0:
            continue
        mean = Oracle(data).best()
        worst = Oracle(data | {"robust": "worst"}).best()
        merged = Oracle(data | {"load": (load / total).mean(axis=0, keepdims=True).tolist()}).best()
        assert merged <= mean * CLOSE, seed
        assert mean <= worst * CLOSE, seed
        assert Oracle(data | {"load": np.concatenate([load, load]).tolist()}).best() == pytest.approx(mean, rel=1e-9), seed
        again = np.concatenate([load, load[:1]]).tolist()
        assert Oracle(data | {"load": again, "robust": "worst"}).best() == pytest.approx(worst, rel=1e-9), seed
        for robust, value in (("mean", mean), ("worst", worst)):
            instance = ExpertPlacement(**data | {"robust": robust})
            assert max(bound(instance, method).value for method in ("replica", "group")) <= value * CLOSE, (seed, robust)


# Seeds and threads.


DETERMINED = [
    pytest.param({"load": np.random.default_rng(3).lognormal(0, 1, (3, 5, 24)).tolist(), "devices": 4, "slots_per_device": 7}, id="robust"),
    pytest.param({"load": np.random.default_rng(4).lognormal(0, 1, (1, 6, 32)).tolist(), "devices": 4, "slots_per_device": 9}, id="one load"),
    pytest.param(with_traffic(5, 3, 12, 4), id="chain"),
    pytest.param(
        with_traffic(6, 3, 6, 3, slots_per_device=3, current_slot_expert=[[0, 1, 2, 3, 4, 5, 0, 1, 2]] * 3,
                     weights={"balance": 1.0, "traffic": 0.5, "moves": 0.1}),
        id="mixed",
    ),
]  # fmt: skip


@pytest.mark.parametrize("data", DETERMINED)
def test_the_seed_decides_and_threads_do_not(data: dict[str, Any]) -> None:
    instance = ExpertPlacement(**data)
    plans = []
    for threads in (1, 1, 2):
        result = solved(instance, seed=7, threads=threads)
        assert result.stop == "completed"
        assert isinstance(result.plan, ExpertPlan)
        plans.append((result.objective, result.plan.slot_expert.tolist(), result.bound))
    assert plans[0] == plans[1]
    assert plans[0][:2] == plans[2][:2]


def test_a_start_is_never_made_worse() -> None:
    for seed in range(24):
        data = tiny(seed, 60)
        instance = ExpertPlacement(**data)
        start = solved(instance, "random", seed=seed).plan
        if start is None:
            continue
        result = solved(instance, start=start, seed=seed, time_limit_s=0.2)
        assert result.objective <= evaluate(instance, start).objective, seed


def test_no_time_at_all() -> None:
    for data in (*(tiny(seed, 60) for seed in range(6)), with_traffic(0, 3, 12, 4)):
        result = solved(ExpertPlacement(**data), time_limit_s=1e-6)
        assert result.stop == "time_limit"
        assert result.certified_bound >= 0.0
