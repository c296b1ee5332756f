"""GPU selection with whole replicas against enumeration: every bound <= oracle <= every heuristic, exact methods equal it, certificates recheck."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headroom.bounds.certificates import CertificateError
from headroom.bounds.gpu_selection import closed_form, recheck
from headroom.bounds.gpu_selection_patterns import column_generation_bound
from headroom.bounds.gpu_selection_per_replica import ON_COUNT, ON_SLICES, pattern_data
from headroom.formulations.gpu_selection import ReplicaPlan, evaluate
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, SolveParams
from headroom.heuristics.gpu_selection import Slice, market_of, replay
from headroom.heuristics.gpu_selection_per_replica import OnlineWholeFirstFit, best_packing, counts_of, whole_arrivals
from headroom.instances.errors import InputError
from headroom.instances.files import without_infinities
from headroom.instances.gpu_selection import GpuSelection
from headroom.instances.gpu_selection_presets import make
from headroom.run import Result, run
from headroom.solvers.gpu_selection_per_replica_packing import exact_cover
from tests.gpu_selection_cases import TOY
from tests.gpu_selection_per_replica_cases import whole
from tests.oracles.gpu_selection_per_replica import Oracle

EXACT = ("column_generation", "highs")
BASELINES = ("first_fit_decreasing", "best_fit_decreasing", "online_whole_first_fit")
SEEDS = 160
CLOSE = 1e-6


def through_json(bound: Bound) -> Bound:
    """The bound as a reader of a plan document gets it."""
    certificate = json.loads(json.dumps(without_infinities(bound.document()["certificate"])))
    return Bound(bound.value, bound.method, bound.proof, certificate)


def assert_rechecks(instance: GpuSelection, result: Result) -> None:
    for bound in result.bounds:
        if bound.proof != "solver":
            again = recheck(instance, through_json(bound))
            assert again == bound.value or again >= bound.value - 1e-9 * abs(bound.value), bound.method


@pytest.mark.parametrize("chunk", range(8))
def test_sandwich(chunk: int) -> None:
    for seed in range(chunk * SEEDS // 8, (chunk + 1) * SEEDS // 8):
        data = whole(seed)
        instance = GpuSelection(**data)
        optimum = Oracle(data).cheapest()
        for method in EXACT:
            result = run(instance, method)
            assert result.objective == pytest.approx(optimum, rel=CLOSE), (seed, method)
            assert result.status == ("infeasible" if math.isinf(optimum) else "optimal"), (seed, method, result.notes)
            assert result.bound <= optimum * (1 + 1e-9), (seed, method)
            assert_rechecks(instance, result)
        own = run(instance, "column_generation")
        if math.isfinite(optimum):
            assert own.certified_gap <= CLOSE, seed
        else:
            assert own.certified_bound == math.inf, seed
            assert own.details["infeasibility"]["messages"], seed
        for bound in (closed_form, column_generation_bound):
            assert bound(instance, SolveParams(), Progress(SolveParams())).value <= optimum * (1 + 1e-9), (seed, bound)
        for method in BASELINES:
            found = run(instance, method, SolveParams(seed=seed))
            assert not found.notes, (seed, method, found.notes)
            assert found.objective >= optimum * (1 - 1e-9), (seed, method)


def test_the_seeds_cover_every_kind() -> None:
    data = [whole(seed) for seed in range(SEEDS)]
    optima = [Oracle(item).cheapest() for item in data]
    finite = [item for item, value in zip(data, optima, strict=True) if math.isfinite(value)]
    assert 20 <= sum(math.isinf(value) for value in optima) <= 70
    assert sum(any("max_count" in gpu for gpu in item["gpus"]) for item in finite) >= 15
    assert sum(any(gpu.get("min_count") for gpu in item["gpus"]) for item in finite) >= 5
    assert sum(bool(item.get("pools")) for item in finite) >= 10
    assert sum(not isinstance(item["slices"], int) and len(set(item["slices"])) > 1 for item in finite) >= 30
    assert sum(any(q is None for row in item["throughput_per_s"] for q in row) for item in finite) >= 20
    assert sum(0.0 in [gpu["price_usd_per_h"] for gpu in item["gpus"]] for item in finite) >= 3


@pytest.mark.parametrize("method", EXACT)
def test_a_case_by_hand(method: str) -> None:
    # Each bucket keeps 3 A10Gs busy, or 0.3, 0.15, 0.375, 0.3 of an A100. Thirds: one A100 is filled to the brim by all but a third of bucket2, which
    # fills one A10G, as with pooled replicas. Halves: 1.5 A10Gs each, so none fits an A10G, and 1.125 A100s' worth needs two A100s.
    thirds = GpuSelection(**TOY, slices=3, packing="per_replica")
    assert run(thirds, method).objective == pytest.approx(4.68, abs=1e-9)
    halves = GpuSelection(**TOY, slices=2, packing="per_replica")
    assert run(halves, method).objective == pytest.approx(7.34, abs=1e-9)  # pooled: 5.69, with two halves of bucket2 on two A10Gs


def packing_of(sizes: list[float], copies: list[int], **more: Any) -> dict[str, Any]:
    """Bin packing with one type at 1 USD/h: item i has copies[i] slices of sizes[i] replicas."""
    return {
        "work": [{"name": f"w{i}", "rate_per_s": float(n)} for i, n in enumerate(copies)],
        "gpus": [{"name": "g", "price_usd_per_h": 1.0, **more}],
        "throughput_per_s": [[1.0 / size for size in sizes]],
        "slices": copies,
        "packing": "per_replica",
    }


@pytest.mark.parametrize("method", EXACT)
def test_rounding_up_the_divisible_bound_is_not_enough(method: str) -> None:
    # Five slices of 0.4 fill 2.0 replicas if they could be cut; whole, two go on one, so three are needed. Five of 0.51 need five.
    assert run(GpuSelection(**packing_of([0.4], [5])), method).objective == pytest.approx(3)
    assert run(GpuSelection(**packing_of([0.51], [5])), method).objective == pytest.approx(5)


def test_slices_are_branched_on_where_counts_do_not_settle_it() -> None:
    # 6, 2, 2 and 12 replicas could hold the slices if patterns could be taken in part; whole they cannot, which only splits on slices prove.
    overrides = {"total_rate_per_s": 180, "slices": 4, "packing": "per_replica"}
    instance = make("melange-4gpu-6x6", np.random.default_rng(8), overrides)
    result = run(instance, "column_generation", SolveParams(time_limit_s=120))
    tree = next(bound for bound in result.bounds if bound.method == "pattern_tree")
    assert tree.certificate is not None
    kinds = set(np.array(tree.certificate["split"])[:, 0].tolist())
    assert {ON_COUNT, ON_SLICES} <= kinds
    assert result.status == "optimal"
    assert result.certified_gap <= CLOSE
    assert recheck(instance, through_json(tree)) == pytest.approx(tree.value, rel=1e-9)


def certificates() -> list[tuple[GpuSelection, Bound, float]]:
    found = []
    for seed in range(40):
        data = whole(seed)
        result = run(GpuSelection(**data), "column_generation")
        found += [(result.instance, through_json(bound), Oracle(data).cheapest()) for bound in result.bounds if bound.proof == "certificate"]
    return found  # type: ignore[return-value]


def tampered(certificate: dict[str, Any], rng: np.random.Generator) -> list[tuple[str, dict[str, Any]]]:
    """The certificate with one thing changed, in many ways. None of them may prove more than the true optimum."""
    changed = []
    for key, value in certificate.items():
        if not isinstance(value, list) or not value:
            continue
        array = np.array(value, dtype=float)
        for name, other in (
            ("doubled", array * 2),
            ("negative", -array),
            ("zero", array * 0),
            ("one more", array + 1),
            ("noise", array + rng.normal(size=array.shape) * np.abs(array).max(initial=1.0)),
            ("huge", array * 1e200),
        ):
            integral = key in ("split", "with_cost", "change", "weight_node", "weight_table")
            changed.append((f"{key} {name}", certificate | {key: (np.round(other) if integral else other).tolist()}))
        changed.append((f"{key} shorter", certificate | {key: value[:-1]}))
        changed.append((f"{key} longer", certificate | {key: value + value[-1:]}))
    return changed


def test_a_tampered_certificate_never_proves_more_than_is_true() -> None:
    rng = np.random.default_rng(0)
    refused = weaker = 0
    for instance, bound, optimum in certificates():
        assert isinstance(bound.certificate, dict)
        for what, certificate in tampered(bound.certificate, rng):
            try:
                value = recheck(instance, Bound(bound.value, bound.method, "certificate", certificate))
            except CertificateError:
                refused += 1
                continue
            assert value <= optimum * (1 + 1e-9), (instance.name, what)
            weaker += value < bound.value
    assert refused >= 100
    assert weaker >= 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "branch_tree"}, "kind"),
        ({"slice_price": None}, "slice_price"),
        ({"slice_price": [[math.nan] * 4]}, "finite"),
        ({"slice_price": [["1"] * 4]}, "numbers"),
        ({"pattern_worth": [[1.0]]}, "shape"),
        ({"split": []}, "no nodes"),
        ({"split": [[1, 0, 0, 2]]}, "lacks"),
        ({"split": [[0, 0, 0, 0], [0, 0, 0, 0]], "with_cost": [1, 1], "pool_price": [[], []]}, "too many"),
        ({"split": [[3, 0, 0, 0]]}, "split"),
        ({"split": [[1, 9, 0, 0]]}, "split"),
        ({"split": [[1.5, 0, 0, 0]]}, "whole numbers"),
        ({"weight_table": [7]}, "weight_table"),
        ({"weight_node": [-1]}, "weight_node"),
    ],
)
def test_a_malformed_certificate_is_refused(change: dict[str, Any], message: str) -> None:
    instance = GpuSelection(**TOY, slices=3, packing="per_replica")
    good = through_json(column_generation_bound(instance, SolveParams(), Progress(SolveParams())))
    assert good.certificate is not None
    certificate = {key: value for key, value in {**good.certificate, **change}.items() if value is not None}
    with pytest.raises(CertificateError, match=message):
        recheck(instance, Bound(good.value, "column_generation", "certificate", certificate))


def test_any_prices_bound() -> None:
    # Farley by hand: one type at 1 USD/h, two slices of 0.6: a replica holds one, so prices 1 each prove 2; the divisible bound is 1.2.
    instance = GpuSelection(**packing_of([0.6], [2]))
    certificate = {
        "kind": "pattern_prices_tree",
        "slice_price": [[1.0]],
        "pattern_worth": [[1.0]],
        "change": [],
        "change_price": [],
        "split": [[0, 0, 0, 0]],
        "with_cost": [1],
        "pool_price": [[]],
        "weight_node": [0],
        "weight_table": [0],
        "weight": [1.0],
    }
    assert recheck(instance, Bound(2.0, "x", "certificate", certificate)) == pytest.approx(2, rel=1e-9)
    # Twice the prices: a replica is worth 2, and up to 2 replicas lose 1 each: 4 - 2. That the record calls it worth 1 changes nothing.
    assert recheck(instance, Bound(4.0, "x", "certificate", certificate | {"slice_price": [[2.0]]})) == pytest.approx(2, rel=1e-9)


def test_a_slice_that_fits_no_replica_is_named() -> None:
    data = packing_of([0.4, 1.25], [2, 1])
    for method in EXACT:
        result = run(GpuSelection(**data), method)
        assert result.status == "infeasible"
        assert result.certified_bound == math.inf
        diagnosis = result.details["infeasibility"]
        assert diagnosis["too_large"] == {"w1": 2}
        assert "'w1'" in diagnosis["messages"][0]
        assert "2 slices or more would fit, not 1" in diagnosis["messages"][0]
    for method in BASELINES:
        assert run(GpuSelection(**data), method).plan is None
    enough = packing_of([0.3, 0.625], [2, 2])
    assert run(GpuSelection(**enough)).objective == pytest.approx(2)


def test_an_item_without_a_type_is_named() -> None:
    data = TOY | {"throughput_per_s": [[2, None, 5, 2], [20, None, 40, 20]], "slices": 3, "packing": "per_replica"}
    for method in EXACT:
        result = run(GpuSelection(**data), method)
        assert result.status == "infeasible"
        assert result.details["infeasibility"]["unserved"] == ["b1"]


def test_caps_that_only_whole_replicas_break_are_proved() -> None:
    # Three slices of 0.6 keep 1.8 replicas busy: two would do if they shared, three are needed.
    data = packing_of([0.6], [3], max_count=2)
    result = run(GpuSelection(**data))
    assert result.status == "infeasible"
    assert result.certified_bound == math.inf
    assert "whole replicas" in result.details["infeasibility"]["messages"][0]
    assert_rechecks(GpuSelection(**data), result)
    short = run(GpuSelection(**packing_of([0.6], [3], max_count=1)))
    assert short.details["infeasibility"]["missing_replicas"] == {"g": 1}


def test_the_price_of_whole_replicas() -> None:
    # Three slices of 0.6: pooled 2 USD/h, whole 3.
    result = run(GpuSelection(**(packing_of([0.6], [3]) | {"slices": 3})), "column_generation")
    for name in ("same_slices", "continuous"):
        record = result.details["whole_replica_penalty"][name]
        assert record["pooled_bound"] == pytest.approx(2, rel=1e-5)
        assert record["pooled_objective"] == pytest.approx(2)
        assert record["usd_per_h"] == pytest.approx([1, 1], rel=1e-5)
        assert record["share"] == pytest.approx([0.5, 0.5], rel=1e-5)
    assert any("more than pooled ones with the same slices" in note for note in result.notes)
    lists = run(GpuSelection(**packing_of([0.6], [3])), "column_generation")
    assert set(lists.details["whole_replica_penalty"]) == {"continuous"}


def test_nothing_to_serve_costs_the_floor() -> None:
    data = packing_of([0.4], [2], min_count=3)
    data["work"][0]["rate_per_s"] = 0.0
    for method in (*EXACT, *BASELINES):
        result = run(GpuSelection(**data), method)
        assert result.objective == pytest.approx(3), method
    assert run(GpuSelection(**data)).status == "optimal"


def test_a_huge_floor_and_many_slices_take_no_time() -> None:
    data = packing_of([1e-6, 0.3], [10**6, 3], min_count=10**9)
    assert run(GpuSelection(**data), "first_fit_decreasing").objective == pytest.approx(1e9)
    small = packing_of([0.4, 0.3], [2, 3], min_count=10**9)
    for method in ("column_generation", *BASELINES):
        assert run(GpuSelection(**small), method).objective == pytest.approx(1e9)
    free = packing_of([1e-6, 0.3], [10**6, 3])
    assert run(GpuSelection(**free)).objective == pytest.approx(2)
    assert run(GpuSelection(**free), "best_fit_decreasing").objective == pytest.approx(2)


def test_start_plan_is_improved_never_worsened() -> None:
    instance = make("replicas-6x6", np.random.default_rng(2), {})
    start = run(instance, "online_whole_first_fit")
    result = run(instance, "column_generation", SolveParams(start=start.plan, time_limit_s=30))
    assert result.objective < start.objective
    assert result.trajectory[0][1] == pytest.approx(start.objective)
    best = run(instance, "column_generation", SolveParams(start=result.plan, time_limit_s=30))
    assert best.objective == result.objective


def test_limits_are_kept_and_what_was_proved_by_then_rechecks() -> None:
    instance = make("replicas-10x6", np.random.default_rng(3), {"total_rate_per_s": 1500})
    for limit_s in (1e-6, 0.3, 2.0):
        result = run(instance, "column_generation", SolveParams(time_limit_s=limit_s))
        assert result.stop == "time_limit"
        assert result.runtime_s < limit_s + 1.0
        assert_rechecks(instance, result)
    assert result.certified_gap < 0.2
    loose = run(instance, "column_generation", SolveParams(gap_limit=0.05, time_limit_s=60))
    assert loose.stop == "gap_limit"
    assert loose.gap <= 0.05
    assert loose.certified_gap <= 0.05 * (1 + 1e-6)


def cost(data: dict[str, Any]) -> float:
    return run(GpuSelection(**data), "column_generation").objective


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_metamorphic_rules(seed: int) -> None:
    data = whole(seed)
    base = cost(data)
    # A higher cap never costs more.
    looser = data | {"gpus": [gpu | ({"max_count": gpu["max_count"] + 1} if "max_count" in gpu else {}) for gpu in data["gpus"]]}
    assert cost(looser) <= base * (1 + CLOSE)
    # Scaling prices scales the cost.
    dearer = data | {"gpus": [gpu | {"price_usd_per_h": gpu["price_usd_per_h"] * 4} for gpu in data["gpus"]]}
    assert cost(dearer) == pytest.approx(4 * base, rel=1e-5)
    # Order of types and items does not matter.
    slices = data["slices"] if isinstance(data["slices"], int) else data["slices"][::-1]
    table = [row[::-1] for row in data["throughput_per_s"][::-1]]
    turned = data | {"gpus": data["gpus"][::-1], "work": data["work"][::-1], "throughput_per_s": table, "slices": slices}
    assert cost(turned) == pytest.approx(base, rel=1e-5)
    # Replicas that share cost no more, with the same slices or without.
    if isinstance(data["slices"], int):
        assert run(GpuSelection(**(data | {"packing": "pooled"}))).objective <= base * (1 + CLOSE)
    assert run(GpuSelection(**(data | {"packing": "pooled", "slices": None}))).objective <= base * (1 + CLOSE)
    # Slices half as large can be put where the whole ones were.
    finer = 2 * data["slices"] if isinstance(data["slices"], int) else [2 * k for k in data["slices"]]
    assert cost(data | {"slices": finer}) <= base * (1 + CLOSE)
    # Twice as many slices of the same size at most double the cost where nothing is capped, and never lower it.
    if math.isfinite(base) and not any("max_count" in gpu or "pool" in gpu for gpu in data["gpus"]):
        double = data | {"work": [item | {"rate_per_s": 2 * item["rate_per_s"]} for item in data["work"]], "slices": finer}
        assert base * (1 - CLOSE) <= cost(double) <= 2 * base * (1 + CLOSE)


@pytest.mark.parametrize("seed", range(12))
def test_policy_never_looks_ahead(seed: int) -> None:
    instance = GpuSelection(**whole(2 * seed + 1))
    stream = [arrival for _, arrival in whole_arrivals(instance, np.random.default_rng(seed))]
    decider = OnlineWholeFirstFit(market_of(instance))
    decisions = [decider.decide(arrival) for arrival in stream]
    for length in range(len(stream)):
        prefix = OnlineWholeFirstFit(market_of(instance))
        assert [prefix.decide(arrival) for arrival in stream[:length]] == decisions[:length]


def test_the_policy_fits_first() -> None:
    # 0.6 rents a replica; 0.5 does not fit and rents another; 0.4 goes on the first, 0.4 on the second.
    decider = OnlineWholeFirstFit(market_of(GpuSelection(**packing_of([0.5], [1]))))
    assert [decider.decide(Slice(np.array([size]))) for size in (0.6, 0.5, 0.4, 0.4)] == [(0, 0), (0, 1), (0, 0), (0, 1)]
    assert decider.decide(Slice(np.array([1.2]))) is None
    assert decider.decide(Slice(np.array([np.inf]))) is None


@pytest.mark.parametrize("seed", range(10))
def test_baselines_keep_every_limit(seed: int) -> None:
    instance = make("replicas-6x6", np.random.default_rng(seed), {"total_rate_per_s": 40 + 30 * seed, "largest_slice": 0.5})
    patterns = best_packing(pattern_data(instance))
    assert patterns is not None
    n = counts_of(pattern_data(instance), patterns)
    gpus = [gpu.model_dump() | {"max_count": max(int(n[g]) - 1, 0) if g == int(np.argmax(n)) else None} for g, gpu in enumerate(instance.gpus)]
    for capped in (instance, instance.replace(gpus=gpus)):
        for method in BASELINES:
            plan = run(capped, method, SolveParams(seed=seed)).plan
            assert plan is None or evaluate(capped, plan).feasible
    online = replay(instance, OnlineWholeFirstFit, np.random.default_rng(seed))
    assert isinstance(online, ReplicaPlan)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6))
def test_exact_cover_takes_off_what_is_too_much(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = pattern_data(GpuSelection(**packing_of([0.1, 0.1, 0.1], rng.integers(1, 20, 3).tolist())))
    patterns = [(0, rng.integers(0, 4, 3), int(rng.integers(1, 6))) for _ in range(6)]
    held = sum(z * n for _, z, n in patterns)
    found = exact_cover(data, patterns)
    if (held < data.slices).any():
        assert found is None
    else:
        assert found is not None
        assert (sum(z * n for _, z, n in found) == data.slices).all()
        assert all((z >= 0).all() for _, z, _ in found)
        assert sum(n for _, _, n in found) == sum(n for _, _, n in patterns)


def test_presets_choose_slices_for_the_rate() -> None:
    for name in ("replicas-6x6", "replicas-10x6"):
        few = make(name, np.random.default_rng(1), {})
        many = make(name, np.random.default_rng(1), {"total_rate_per_s": 640})
        assert many.slice_counts.sum() > few.slice_counts.sum()
        for instance in (few, many):
            size = np.where(instance.can_serve, instance.load_replicas / instance.slice_counts, 0.0)
            assert 0.9 < size.max() <= 1.0
        fine = make(name, np.random.default_rng(1), {"largest_slice": 0.25})
        assert np.where(fine.can_serve, fine.load_replicas / fine.slice_counts, 0.0).max() <= 0.25
        assert make(name, np.random.default_rng(1), {"slices": 4}).slices == 4
    for bad, message in (({"largest_slice": 2}, "largest_slice"), ({"total_rate_per_s": -1}, "total_rate_per_s"), ({"rate": 1}, "rate")):
        with pytest.raises(InputError, match=message):
            make("replicas-6x6", np.random.default_rng(1), bad)
