"""GPU selection against enumeration: every bound <= oracle <= every heuristic, exact methods equal it, certificates recheck."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from headroom.bounds.certificates import CertificateError
from headroom.bounds.gpu_selection import recheck
from headroom.formulations.gpu_selection import GpuSelectionPlan, build_model, evaluate
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.files import without_infinities
from headroom.instances.gpu_selection import GpuSelection
from headroom.instances.gpu_selection_presets import make
from headroom.run import Result, run
from tests.gpu_selection_cases import TOY, tiny
from tests.oracles.gpu_selection import Oracle

EXACT = ("branching", "highs", "cpsat")
SEEDS = 160
CLOSE = 1e-6


def through_json(bound: Bound) -> Bound:
    """The bound as a reader of a plan document gets it."""
    text = json.dumps(without_infinities(bound.document()["certificate"]))
    certificate = json.loads(text)
    return Bound(bound.value, bound.method, bound.proof, certificate)


def assert_rechecks(instance: GpuSelection, result: Result) -> None:
    for bound in result.bounds:
        if bound.proof != "solver":
            again = recheck(instance, through_json(bound))
            assert again == bound.value or again >= bound.value - 1e-9 * abs(bound.value), bound.method


@pytest.mark.parametrize("chunk", range(8))
def test_sandwich(chunk: int) -> None:
    kinds = set()
    for seed in range(chunk * SEEDS // 8, (chunk + 1) * SEEDS // 8):
        data = tiny(seed)
        instance = GpuSelection(**data)
        optimum = Oracle(data).cheapest()
        kinds.add("infeasible" if math.isinf(optimum) else "feasible")
        for method in EXACT:
            result = run(instance, method)
            assert result.objective == pytest.approx(optimum, rel=CLOSE), (seed, method)
            assert result.status == ("infeasible" if math.isinf(optimum) else "optimal"), (seed, method, result.notes)
            assert result.bound <= optimum * (1 + 1e-9), (seed, method)
            assert_rechecks(instance, result)
        own = run(instance, "branching")
        if math.isfinite(optimum):
            assert own.certified_gap <= CLOSE, seed
        else:
            assert own.certified_bound == math.inf, seed
            assert own.details["infeasibility"]["messages"], seed
        for method in ("single_type", "greedy", "online_first_fit"):
            found = run(instance, method, SolveParams(seed=seed))
            assert not found.notes, (seed, method, found.notes)
            assert found.objective >= optimum * (1 - 1e-9), (seed, method)
    assert "feasible" in kinds


def test_the_seeds_cover_every_kind() -> None:
    data = [tiny(seed) for seed in range(SEEDS)]
    optima = [Oracle(item).cheapest() for item in data]
    assert sum(math.isinf(value) for value in optima) >= 10
    assert sum(math.isfinite(value) and any("max_count" in gpu for gpu in item["gpus"]) for item, value in zip(data, optima, strict=True)) >= 20
    assert sum(math.isfinite(value) and bool(item.get("pools")) for item, value in zip(data, optima, strict=True)) >= 10
    assert sum(math.isfinite(value) and bool(item.get("spare_replicas")) for item, value in zip(data, optima, strict=True)) >= 15
    assert sum(any(q is None for row in item["throughput_per_s"] for q in row) for item in data) >= 40


@pytest.mark.parametrize(
    ("slices", "optimum"), [(1, 6.70), (2, 5.69), (3, 4.68), (4, 5.69), (5, 5.69), (6, 4.68), (8, 5.69), (9, 4.68), (16, 5.69), (None, 4.68)]
)
@pytest.mark.parametrize("method", EXACT)
def test_toy(slices: int | None, optimum: float, method: str) -> None:
    # Each bucket keeps 3 A10Gs busy, or 0.3, 0.15, 0.375, 0.3 of an A100. With thirds, a third of b2 fills one A10G and the rest exactly one A100.
    result = run(GpuSelection(**TOY, slices=slices), method)
    assert result.objective == pytest.approx(optimum, abs=1e-9)
    assert result.status == "optimal"


def test_toy_bounds() -> None:
    # 0.3 + 0.15 + 0.375 + 0.3 = 1.125 A100s at 3.67 USD/h: every bucket is cheaper there (A10G: 3 replicas, 3.03 USD/h, for each).
    result = run(GpuSelection(**TOY, slices=1))
    values = {bound.method: bound.value for bound in result.bounds}
    assert values["closed_form"] == pytest.approx(1.125 * 3.67, rel=1e-8)
    assert values["lp"] == pytest.approx(4.129, abs=5e-4)
    assert values["branch_tree"] == pytest.approx(6.70, rel=1e-6)


def test_a_bucket_that_nothing_can_serve_is_named() -> None:
    data = TOY | {"throughput_per_s": [[2, None, 5, 2], [20, None, 40, 20]]}
    for method in EXACT:
        result = run(GpuSelection(**data), method)
        assert result.status == "infeasible"
        assert result.details["infeasibility"]["unserved"] == ["b1"]
        assert "'b1' (3 requests/s)" in result.details["infeasibility"]["messages"][0]


def test_infeasible_by_caps_says_how_much_is_missing() -> None:
    # Two A10Gs carry 2 of the 12 replicas' worth of load. Cheapest to shed in requests: 2 of 3 requests/s of b1 (1 request/s a replica) and so on.
    gpus = [{"name": "A10G", "price_usd_per_h": 1.01, "max_count": 2}, {"name": "A100-80GB", "price_usd_per_h": 3.67, "max_count": 0}]
    result = run(GpuSelection(**(TOY | {"gpus": gpus})))
    found = result.details["infeasibility"]
    # 2 replicas at 5 requests/s on b2 serve 10 of 30 requests/s, and nothing serves more.
    assert sum(found["shed_rate_per_s"].values()) == pytest.approx(20, rel=1e-6)
    # One A100 more carries 1 of 1.125; the two A10Gs carry the rest.
    assert found["missing_replicas"] == {"A100-80GB": 1}
    assert result.certified_bound == math.inf


def test_spare_replica_survives_each_loss() -> None:
    instance = GpuSelection(**TOY, slices=4, spare_replicas=1)
    result = run(instance)
    assert isinstance(result.plan, GpuSelectionPlan)
    assert result.objective == pytest.approx(9.36, abs=1e-9)  # 2 A10G + 2 A100: by enumeration
    assert set(result.plan.share_after_loss) == {"A10G", "A100-80GB"}
    for lost, table in result.plan.share_after_loss.items():
        left = {name: n - (name == lost) for name, n in result.plan.count.items()}
        alone = GpuSelectionPlan(count=left, share=table)
        assert evaluate(instance.replace(spare_replicas=0), alone).feasible


def test_start_plan_is_improved_never_worsened() -> None:
    instance = GpuSelection(**TOY, slices=1)
    alone = run(instance, "single_type")
    result = run(instance, "branching", SolveParams(start=alone.plan))
    assert result.objective <= alone.objective
    assert result.trajectory[0][1] == pytest.approx(alone.objective)


def test_sensitivity_prices_a_cap() -> None:
    gpus = [{"name": "A10G", "price_usd_per_h": 1.01}, {"name": "A100-80GB", "price_usd_per_h": 3.67, "max_count": 1}]
    result = run(GpuSelection(**(TOY | {"gpus": gpus})), "branching", SolveParams(sensitivity=True))
    cap = next(item for item in result.details["sensitivity"] if item["constraint"] == "max_count")
    # The A10Gs take 0.125 A100s' worth of b2 at 3 / 0.375 = 8 A10Gs an A100: one A100 more saves 8 * 1.01 - 3.67.
    assert cap["index"] == "A100-80GB"
    assert cap["shadow_price"] == pytest.approx(8 * 1.01 - 3.67, rel=1e-6)


def tampered(certificate: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The certificate with one thing changed, in several ways. None of them may prove more than the true optimum."""
    changed = []
    for key in ("capacity_price", "pool_price", "cut_price", "prune_at"):
        if key in certificate and np.size(certificate[key]):
            for factor in (1.5, 0.5, -1.0):
                value = certificate[key]
                changed.append((key, certificate | {key: (np.asarray(value, dtype=float) * factor).tolist()}))
    if "split" in certificate:
        split = np.array(certificate["split"])
        for shift in (-1, 1):
            moved = split.copy()
            moved[:, 4] = np.maximum(moved[:, 4] + shift * (moved[:, 0] > 0) * (moved[:, 0] < 3), 0)
            changed.append(("split", certificate | {"split": moved.tolist()}))
        changed.append(("cut_at_upper", certificate | {"cut_at_upper": (1 - np.array(certificate["cut_at_upper"], dtype=int)).tolist()}))
        changed.append(("with_cost", certificate | {"with_cost": (1 - np.array(certificate["with_cost"])).tolist()}))
    return changed


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_a_tampered_certificate_proves_nothing_false(seed: int) -> None:
    data = tiny(seed)
    instance, optimum = GpuSelection(**data), Oracle(data).cheapest()
    for bound in run(instance, "branching").bounds:
        if bound.proof != "certificate" or bound.certificate is None:
            continue
        for what, certificate in tampered(through_json(bound).certificate):  # type: ignore[arg-type]
            try:
                value = recheck(instance, Bound(bound.value, bound.method, "certificate", certificate))
            except CertificateError:
                continue
            assert value <= optimum * (1 + 1e-8) or value == optimum, (bound.method, what)


def test_recorded_value_above_the_proof_is_seen() -> None:
    instance = GpuSelection(**TOY, slices=1)
    bound = next(item for item in run(instance).bounds if item.method == "branch_tree")
    raised = through_json(bound).certificate
    assert raised is not None
    # Claiming to have pruned only above 7 USD/h proves nothing there: the plan of 6.70 lies in some leaf.
    assert recheck(instance, Bound(7.0, "branch_tree", "certificate", {**raised, "prune_at": 7.0})) <= 6.70 * (1 + 1e-9)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "magic"},
        {"capacity_price": [[1.0]]},
        {"capacity_price": "many"},
        {"capacity_price": [[[float("nan"), 1.0]]]},
        {"split": [[9, 0, 0, 0, 0]]},
        {"split": [[1, 0, 99, 0, 0]]},
        {"split": []},
        {"pool_price": [[1.0]]},
        {"cut_gpu": [7]},
        {"cut_price_node": [10**6]},
    ],
)
def test_a_malformed_certificate_is_refused(change: dict[str, Any]) -> None:
    instance = GpuSelection(**TOY, slices=1)
    bound = next(item for item in run(instance).bounds if item.method == "branch_tree")
    certificate = through_json(bound).certificate
    assert certificate is not None
    with pytest.raises(CertificateError):
        recheck(instance, Bound(bound.value, "branch_tree", "certificate", {**certificate, **change}))


def test_certificate_bound_of_a_stopped_search_is_valid() -> None:
    instance = make("melange-4gpu-10x6", np.random.default_rng(3), {"total_rate_per_s": 4096, "slices": 2})
    optimum = run(instance, "branching", SolveParams(time_limit_s=60))
    short = run(instance, "branching", SolveParams(time_limit_s=0.15))
    assert short.runtime_s < 0.15 * 1.05 + 1
    for bound in short.bounds:
        value = recheck(instance, through_json(bound))
        assert bound.value - 1e-9 * abs(bound.value) <= value <= optimum.objective * (1 + 1e-9)


@pytest.mark.parametrize("slices", [None, 1, 2, 7, 16])
@pytest.mark.parametrize("rate", [1, 37, 512])
def test_backends_agree_on_larger_instances(slices: int | None, rate: float) -> None:
    instance = make("melange-4gpu-6x6", np.random.default_rng(int(rate)), {"total_rate_per_s": rate, "slices": slices})
    own = run(instance, "branching", SolveParams(time_limit_s=60))
    other = run(instance, "highs", SolveParams(time_limit_s=60))
    assert own.status == "optimal"
    assert own.certified_gap <= CLOSE
    assert other.bound <= own.objective * (1 + 1e-8)
    assert own.bound <= other.objective * (1 + 1e-8)
    assert_rechecks(instance, own)


def test_model_names_follow_the_formulation() -> None:
    model = build_model(GpuSelection(**TOY, slices=2, spare_replicas=1))
    names = {component.local_name for component in model.component_objects()}
    assert {"count", "slice_count", "cover", "capacity", "pool", "loss_upper", "loss_lower", "cost_usd_per_h"} <= names
