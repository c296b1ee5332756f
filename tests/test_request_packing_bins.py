"""Bounds on bins and the method `bins`: never above brute force, reductions without loss, certificates that can only lose by being changed."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest

from headroom.bounds import request_packing_bins
from headroom.bounds.certificates import CertificateError
from headroom.bounds.request_packing import patterns, recheck
from headroom.bounds.request_packing_bins import dff_value, heaviest, l2_value, volume_value, weights_value
from headroom.bounds.request_packing_reduction import Counted, counted, reduced
from headroom.formulations.progress import Progress
from headroom.formulations.request_packing import evaluate
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.request_packing import RequestPacking
from headroom.instances.request_packing_classes import hard28_like, triplets, uniform
from headroom.instances.request_packing_presets import make
from headroom.registry import REQUEST_PACKING
from headroom.run import run
from headroom.verify import verify
from tests.oracles.request_packing import Oracle
from tests.request_packing_cases import bins, tiny_bins

PARAMS = SolveParams()


def plain(seed: int) -> dict[str, Any]:
    """Up to nine sizes of one of several shapes; some do not fit."""
    rng = np.random.default_rng([4, seed])
    capacity = int(rng.choice([5, 12, 40, 1_000, 10**6, 2**37]))
    low, high = [(1, capacity), (capacity // 4, capacity // 2), (capacity // 5, 2 * capacity // 3), (capacity // 3 - 2, capacity // 3 + 2)][seed % 4]
    sizes = np.clip(rng.integers(max(low, 1), max(high, low, 1) + 1, int(rng.integers(1, 10))), 1, capacity)
    return bins(sizes.tolist(), capacity)


def test_bounds_never_exceed_brute_force_and_the_method_meets_it() -> None:
    tight = {"volume": 0, "l2": 0, "dff": 0, "patterns": 0}
    for seed in range(200):
        data = plain(seed)
        best, instance = Oracle(data).best(), RequestPacking(**data)
        values = {"volume": volume_value(instance), "l2": l2_value(instance), "dff": dff_value(instance)}
        values["patterns"] = patterns(instance, PARAMS, Progress(PARAMS)).value
        for name, value in values.items():
            assert value <= best, (seed, name)
            tight[name] += value == best
        assert values["volume"] <= values["l2"] <= values["dff"] <= values["patterns"], seed
        result = run(instance, "bins", PARAMS)
        assert result.objective == best, seed
        assert result.status == "optimal"
        for bound in result.bounds:
            assert bound.proof == "solver" or recheck(instance, bound) == bound.value
    assert tight["volume"] < tight["l2"] < tight["dff"] <= tight["patterns"]
    assert tight["patterns"] >= 195


def test_with_groups_and_padding_bounds_hold_and_plans_are_feasible() -> None:
    met = 0
    for seed in range(120):
        data = tiny_bins(seed)
        best, instance = Oracle(data).best(), RequestPacking(**data)
        for value in (volume_value(instance), l2_value(instance), dff_value(instance), patterns(instance, PARAMS, Progress(PARAMS)).value):
            assert value <= best, seed
        result = run(instance, "bins", PARAMS)
        assert result.plan is not None
        assert evaluate(instance, result.plan).feasible
        assert result.bound <= best <= result.objective
        met += result.objective == best
    assert met >= 100


def test_reduction_keeps_the_optimum_and_all_items() -> None:
    aside = 0
    for seed in range(300):
        data = plain(seed)
        instance = RequestPacking(**data)
        items = counted(instance)
        small = reduced(items)
        aside += small.bins
        assert (small.pairs[:, :2].sum(axis=1) <= items.capacity).all()
        held = dict.fromkeys(items.size.tolist(), 0)
        for first, second, count in small.pairs.tolist():
            held[first] += count
            if second:
                held[second] += count
        for s, d in zip(small.rest.size.tolist(), small.rest.demand.tolist(), strict=True):
            held[s] += d
        assert held == dict(zip(items.size.tolist(), items.demand.tolist(), strict=True)), seed
        rest = np.repeat(small.rest.size, small.rest.demand).tolist()
        left = Oracle(bins(rest, items.capacity)).best() if rest else 0
        assert small.bins + left == Oracle(data).best(), seed
    assert aside > 300


def test_l2_by_hand() -> None:
    # Capacity 10: 6, 6, 6 are in three bins with room 4 each; three 5s do not fit beside them: two bins more. Volume: 33 tokens, 4 bins.
    assert volume_value(RequestPacking(**bins([6, 6, 6, 5, 5, 5], 10))) == 4
    assert l2_value(RequestPacking(**bins([6, 6, 6, 5, 5, 5], 10))) == 5


def test_dual_feasible_functions_by_hand() -> None:
    # Fours come two to a bin of 11 (u_2: each weighs a half): nine need five bins, where volume says four. Threes fill what is left.
    assert volume_value(RequestPacking(**bins([4] * 9, 11))) == 4
    assert dff_value(RequestPacking(**bins([4] * 9, 11))) == 5
    assert dff_value(RequestPacking(**bins([4] * 9 + [3] * 5, 11))) == 5


def test_a_request_larger_than_a_bin_leaves_no_plan() -> None:
    instance = RequestPacking(**bins([3, 12, 4], 10))
    result = run(instance, "bins", PARAMS)
    assert (result.status, result.bound, result.plan) == ("infeasible", math.inf, None)
    assert "request 1 takes 12 tokens alone, a bin has 10" in result.notes[0]
    assert verify(instance, result).status == "infeasible"


def certificate_of(instance: RequestPacking) -> Bound:
    bound = patterns(instance, PARAMS, Progress(PARAMS))
    assert bound.certificate is not None
    return bound


def test_a_changed_certificate_proves_no_more_than_is_true() -> None:
    instance = triplets(np.random.default_rng(0), requests=30)
    best = 10.0
    bound = certificate_of(instance)
    assert bound.value == best
    rng = np.random.default_rng(1)
    weaker = 0
    for _ in range(200):
        weight = np.array(bound.certificate["weight"], np.int64)  # type: ignore[index]
        at = rng.integers(len(weight))
        weight[at] = [0, -5, int(weight[at]) * 2, 2**45, int(weight[at]) + 1][int(rng.integers(5))]
        value = weights_value(instance, {"kind": "weights", "size": bound.certificate["size"], "weight": weight})  # type: ignore[index]
        assert value <= best
        weaker += value < best
    assert weaker > 50


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "prices"}, "kind must be 'weights'"),
        ({"weight": [1, 2]}, "as many entries"),
        ({"weight": "much"}, "must be numbers"),
        ({"weight": [float("nan")]}, "must be finite"),
        ({"size": [0.5]}, "whole numbers"),
    ],
)
def test_a_malformed_certificate_is_refused(changes: dict[str, Any], said: str) -> None:
    instance = uniform(np.random.default_rng(0), requests=40)
    certificate = dict(certificate_of(instance).certificate or {}) | changes
    with pytest.raises(CertificateError, match=said):
        recheck(instance, Bound(20.0, "patterns", "certificate", certificate))


def test_weights_that_overflow_are_refused() -> None:
    instance = RequestPacking(**bins([2**30] * 2**9 + [2**29] * 2**9, 2**31 + 5))
    assert len(reduced(counted(instance)).rest.size) == 2
    with pytest.raises(CertificateError, match=r"2\^62"):
        weights_value(instance, {"kind": "weights", "size": [2**30, 2**29], "weight": [2**53, 2**53]})


def test_loads_that_matter_equal_a_table_of_all_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(80):
        rng = np.random.default_rng(seed)
        size = np.unique(rng.integers(1, 60, 8))[::-1].copy()
        items = Counted(size, rng.integers(1, 5, len(size)), 100)
        weight = rng.integers(0, 50, len(size))
        dense = heaviest(items, weight)
        with monkeypatch.context() as patch:
            patch.setattr(request_packing_bins, "DENSE_CAPACITY", 0)
            assert heaviest(items, weight) == dense, seed


@pytest.mark.parametrize("make", [lambda rng: uniform(rng, requests=500), lambda rng: triplets(rng, requests=120), hard28_like])
def test_library_classes_are_proved(make: Any) -> None:
    for seed in range(2):
        instance = make(np.random.default_rng(seed))
        result = run(instance, "bins", SolveParams(seed=seed, time_limit_s=60.0))
        assert result.status == "optimal", (instance.provenance, result.objective, result.bound)
        assert result.objective == instance.provenance.get("optimum", result.objective)
        report = verify(instance, result)
        assert report.verified
        assert report.status == "optimal"


def test_the_same_seed_gives_the_same_plan() -> None:
    instance = hard28_like(np.random.default_rng(3))
    first, second = (run(instance, "bins", SolveParams(seed=1)) for _ in range(2))
    assert first.plan == second.plan


def test_a_time_limit_holds() -> None:
    instance = uniform(np.random.default_rng(0), requests=3_000, capacity_tokens=100_000, least=100, most=50_000)
    run(uniform(np.random.default_rng(0), requests=60), "bins", PARAMS)
    started = time.perf_counter()
    result = run(instance, "bins", SolveParams(time_limit_s=1.0))
    assert time.perf_counter() - started < 8.0
    assert result.plan is not None
    assert result.certified_bound >= 1


def test_huge_tokens_do_not_overflow() -> None:
    # A product of room and value beyond 64 bits once pruned what was best: five bins were called optimal where four do.
    sizes = [115900173568, 73550706164, 85227752819, 71596769890, 104281317424, 98603081583, 130826893171, 97065869443, 46592228515, 86757399255]
    data = bins([*sizes, 58280307019, 129668047347], 2**38)
    result = run(RequestPacking(**data), "bins", PARAMS)
    assert result.objective == 4
    assert result.bound <= 4


@pytest.mark.parametrize(
    ("preset", "wrong", "known"),
    [
        ("toy-groups", "magic", "volume, l2, dff, split_volume because the objective is 'bins'"),
        ("toy", "mean_load", "volume, l2, dff, split_volume because the objective is 'bins'"),
        ("toy-makespan", "volume", "mean_load, longest_output, pigeonhole, stage_cover, stage_count because the objective is 'makespan'"),
    ],
)
def test_a_closed_form_of_another_name_is_told_those_that_apply(preset: str, wrong: str, known: str) -> None:
    instance = make(preset, np.random.default_rng(0), {})
    with pytest.raises(CertificateError) as caught:
        recheck(instance, Bound(1.0, wrong, "closed_form"))
    assert str(caught.value) == f"closed form must be one of {known}, got {wrong!r}"
    # The list is of those that are rechecked, all of them.
    listed = known.split(" because")[0].split(", ")
    assert set(listed) == {name for name, entry in REQUEST_PACKING.bounds_for(instance).items() if entry.proof == "closed_form"}
    assert all(recheck(instance, Bound(1.0, name, "closed_form")) >= 0 for name in listed)
