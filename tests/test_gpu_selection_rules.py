"""Evaluate, metamorphic rules and online policies of GPU selection."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headroom.formulations.gpu_selection import GpuSelectionPlan, evaluate
from headroom.heuristics.gpu_selection import OnlineFirstFit, arrivals, market_of
from headroom.instances.errors import InputError
from headroom.instances.gpu_selection import GpuSelection
from headroom.run import run
from tests.gpu_selection_cases import TOY, tiny


def cost(data: dict[str, Any]) -> float:
    return run(GpuSelection(**data)).objective


def plan(count: dict[str, int], share: list[list[float]]) -> GpuSelectionPlan:
    return GpuSelectionPlan(count=count, share=share)


ALL_ON_A100 = [[0.0] * 4, [1.0] * 4]


def test_evaluate_adds_up_prices() -> None:
    found = evaluate(GpuSelection(**TOY), plan({"A10G": 1, "A100-80GB": 2}, ALL_ON_A100))
    assert found.feasible
    assert found.parts == {"A10G": 1.01, "A100-80GB": 7.34}
    assert found.objective == pytest.approx(8.35)


def test_evaluate_names_each_violation_with_its_amount() -> None:
    gpus = [{"name": "A10G", "price_usd_per_h": 1.01, "min_count": 1}, {"name": "A100-80GB", "price_usd_per_h": 3.67, "max_count": 0, "pool": "p"}]
    instance = GpuSelection(**(TOY | {"gpus": gpus, "pools": [{"name": "p", "max_gpus": 0}], "slices": 2}))
    share = [[0.25, 0.0, 0.0, -0.5], [0.5, 1.0, 1.0, 1.0]]
    found = {(item.constraint, item.index): item.amount for item in evaluate(instance, plan({"A100-80GB": 1}, share)).violations}
    assert found[("min_count", "A10G")] == 1
    assert found[("max_count", "A100-80GB")] == 1
    assert found[("pool", "p")] == 1
    assert found[("share_sign", "A10G, b3")] == 0.5
    assert found[("slices", "A10G, b0")] == 0.5
    assert found[("cover", "b0")] == pytest.approx(0.5)
    # b0 half, b1, b2, b3 whole: 0.15 + 0.15 + 0.375 + 0.3 = 0.975 <= 1: the A100 is not overloaded.
    assert ("capacity", "A100-80GB") not in found


def test_a_violated_floor_falls_short() -> None:
    gpus = [{"name": "A10G", "price_usd_per_h": 1.01, "min_count": 3}, {"name": "A100-80GB", "price_usd_per_h": 3.67, "max_count": 1}]
    instance = GpuSelection(**(TOY | {"gpus": gpus}))
    assert [str(item) for item in evaluate(instance, plan({"A10G": 1, "A100-80GB": 2}, ALL_ON_A100)).violations] == [
        "min_count[A10G] falls short by 2 (limit 3)",
        "max_count[A100-80GB] exceeded by 1 (limit 1)",
    ]


def test_evaluate_tolerance_is_relative() -> None:
    instance = GpuSelection(work=[{"name": "w", "rate_per_s": 1.0}], gpus=[{"name": "g", "price_usd_per_h": 1.0}], throughput_per_s=[[1.0]])
    assert evaluate(instance, plan({"g": 1}, [[1.0]])).feasible
    for rate, feasible in ((1 + 5e-10, True), (1 + 2e-9, False)):
        heavier = instance.replace(work=[{"name": "w", "rate_per_s": rate}])
        assert evaluate(heavier, plan({"g": 1}, [[1.0]])).feasible is feasible
    tiny_load = instance.replace(work=[{"name": "w", "rate_per_s": 1e-12}])
    assert not evaluate(tiny_load, plan({"g": 0}, [[1.0]])).feasible


def test_exact_methods_respect_the_same_tolerance() -> None:
    instance = GpuSelection(work=[{"name": "w", "rate_per_s": 1 + 5e-10}], gpus=[{"name": "g", "price_usd_per_h": 1.0}], throughput_per_s=[[1.0]])
    result = run(instance)
    # Either answer is defensible; claiming a bound above a plan that evaluate accepts is not.
    assert result.certified_bound <= 1 + 1e-8
    assert result.objective in (1.0, 2.0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"count": {"B200": 1}, "share": ALL_ON_A100}, "B200"),
        ({"count": {"A10G": -1}, "share": ALL_ON_A100}, "A10G"),
        ({"count": {"A10G": 1.5}, "share": ALL_ON_A100}, "A10G"),
        ({"count": {"A10G": "1"}, "share": ALL_ON_A100}, "A10G"),
        ({"count": {}, "share": [[1.0]]}, "share"),
        ({"count": {}, "share": [[1.0, 2.0], [1.0]]}, "share"),
        ({"count": {}, "share": [["1"] * 4] * 2}, "share"),
        ({"count": {}, "share": [[float("nan")] * 4] * 2}, "share"),
        ({"count": {}, "share": ALL_ON_A100, "more": 1}, "more"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(GpuSelection(**TOY), GpuSelectionPlan(**bad))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_metamorphic_rules(seed: int) -> None:
    data = tiny(seed)
    base = cost(data)
    # A higher cap never costs more.
    looser = data | {"gpus": [gpu | ({"max_count": gpu["max_count"] + 1} if "max_count" in gpu else {}) for gpu in data["gpus"]]}
    assert cost(looser) <= base * (1 + 1e-6)
    # Scaling prices scales the cost.
    dearer = data | {"gpus": [gpu | {"price_usd_per_h": gpu["price_usd_per_h"] * 4} for gpu in data["gpus"]]}
    assert cost(dearer) == pytest.approx(4 * base, rel=1e-5)
    # Order of types and items does not matter.
    table = [row[::-1] for row in data["throughput_per_s"][::-1]]
    turned = data | {"gpus": data["gpus"][::-1], "work": data["work"][::-1], "throughput_per_s": table}
    assert cost(turned) == pytest.approx(base, rel=1e-5)
    # Continuous shares are never dearer than slices, and a spare replica is never cheaper than none.
    assert cost(data | {"slices": None}) <= base * (1 + 1e-6)
    assert cost(data | {"spare_replicas": 0}) <= base * (1 + 1e-6)
    # Half as fine a cut can be copied by one twice as fine.
    if data["slices"]:
        assert cost(data | {"slices": 2 * data["slices"]}) <= base * (1 + 1e-6)
    # Doubling all rates at most doubles the cost when nothing is capped.
    if math.isfinite(base) and not any("max_count" in gpu or "pool" in gpu for gpu in data["gpus"]):
        double = data | {"work": [item | {"rate_per_s": 2 * item["rate_per_s"]} for item in data["work"]]}
        assert base * (1 - 1e-6) <= cost(double) <= 2 * base * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_policy_never_looks_ahead(seed: int) -> None:
    instance = GpuSelection(**(tiny(seed) | {"slices": 3}))
    stream = [arrival for _, arrival in arrivals(instance, np.random.default_rng(seed))]
    whole = OnlineFirstFit(market_of(instance))
    decisions = [whole.decide(arrival) for arrival in stream]
    for length in range(len(stream)):
        prefix = OnlineFirstFit(market_of(instance))
        assert [prefix.decide(arrival) for arrival in stream[:length]] == decisions[:length]


def test_policy_is_not_told_of_the_load() -> None:
    known = vars(market_of(GpuSelection(**TOY)))
    assert set(known) == {"price_usd_per_h", "min_count", "max_count", "pool_gpus", "pool_limit", "max_utilisation", "spare_replicas"}
    assert not any(np.allclose(np.ravel(value)[:4], [6, 3, 15, 6]) for value in known.values() if np.size(value) >= 4)
