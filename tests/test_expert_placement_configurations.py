"""The bound by what one device can hold: by hand, kernels against enumeration, any weights against the oracle, forged certificates."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from headroom.bounds.expert_placement import configurations, recheck
from headroom.bounds.expert_placement_balance import normalised_load
from headroom.bounds.expert_placement_configurations import configurations_apply, content_bound, items_of, least_content, needed
from headroom.bounds.expert_placement_configurations_search import layer_weights
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.expert_placement import ExpertPlacement
from headroom.run import run
from headroom.solvers.choices import best_paid, least_loaded
from tests.expert_placement_cases import tiny
from tests.oracles.expert_placement import Oracle
from tests.test_expert_placement_bounds import made

THREE_TASKS: dict[str, Any] = {
    "load": [[[1.0, 1.0, 0.0, 0.0]], [[1.0, 0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0, 1.0]]],
    "devices": 2,
    "slots_per_device": 2,
}
"""Expert 0 works together with another expert in each of three tasks. Whoever is beside it, that task stands on one device: 2 of a mean of 1."""


def test_by_hand() -> None:
    instance = ExpertPlacement(**THREE_TASKS)
    assert Oracle(THREE_TASKS).best() == pytest.approx(2.0)
    assert made(instance, "replica").value == pytest.approx(1.0)
    bound = made(instance, "configurations")
    assert bound.value == pytest.approx(2.0)
    assert recheck(instance, bound) == bound.value
    # The proof: weight 1 on expert 0. Some device has a weight of 1 / 2 or more, so it holds 0 (there is one replica), and somebody beside it.
    w = normalised_load(instance)[:, 0].T
    assert content_bound(w, instance, np.array([1.0, 0, 0, 0]), 9.0) == pytest.approx(2.0)
    assert content_bound(w, instance, np.array([1.0, 0, 0, 0]), 1.7) == pytest.approx(1.7)  # no more than the limit
    assert content_bound(w, instance, np.zeros(4), 9.0) == pytest.approx(1.0)  # weights of nothing: any two experts, here 1 and 2
    result = run(instance, "local_search", SolveParams(time_limit_s=5))
    assert result.status == "optimal"


def test_replicas_share_the_weight() -> None:
    # Two spare slots on three devices of two: expert 0 twice is 1 / 2 on a device; the best plan puts it beside nobody of its own tasks' full load.
    data = THREE_TASKS | {"devices": 3}
    assert Oracle(data).best() >= made(ExpertPlacement(**data), "configurations").value * (1 - 1e-9)


def enumerate_contents(items: Any, k: int) -> list[tuple[float, float, tuple[int, ...]]]:
    """(weight, largest load, items) of all contents."""
    found = []
    for content in itertools.combinations(range(len(items.owner)), k):
        if len({int(items.owner[i]) for i in content}) == k:
            chosen = list(content)
            found.append((float(items.weight[chosen].sum()), float(items.load[chosen].sum(axis=0).max(initial=0.0)), content))
    return found


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_kernels_against_enumeration(k: int) -> None:
    for seed in range(25):
        rng = np.random.default_rng([k, seed])
        experts, scenarios = int(rng.integers(k, 7)), int(rng.integers(1, 4))
        w, sigma = rng.lognormal(0, 1, (experts, scenarios)), rng.normal(size=experts)
        if seed % 3 == 0:
            w, sigma = np.round(w), np.round(sigma)
        limit = float(rng.uniform(0.5, 2.5) * k)
        items = items_of(w, sigma, 1, int(rng.integers(1, 4)), limit)
        assert (np.diff(items.weight) <= 0).all()
        contents = enumerate_contents(items, k)
        weights = sorted(weight for weight, _, _ in contents)
        for need in (-9.0, 0.0, *(weights[len(weights) // 2 :][:1]), 99.0):
            least = min([load for weight, load, _ in contents if weight >= need - 1e-9 and load < limit], default=limit)
            assert least_content(items, k, need, limit) == pytest.approx(least)
            assert least_loaded(items.owner, items.load, items.weight, k, need - 1e-9, limit) == pytest.approx(least)
            found = np.zeros((500, k), dtype=np.int64)
            z = 0.7 * limit
            number = best_paid(items.owner, items.load, items.weight, k, z, need, found)
            allowed = [(weight, content) for weight, load, content in contents if load <= z and weight > need]
            by_first: dict[int, float] = {}
            for weight, content in allowed:
                by_first[content[0]] = max(weight, by_first.get(content[0], -math.inf))
            told = {int(content[0]): float(items.weight[content].sum()) for content in found[:number]}
            assert told.keys() == {first for first, weight in by_first.items() if weight > need + 1e-12} | (told.keys() & by_first.keys())
            for first, weight in told.items():
                assert weight == pytest.approx(by_first[first])


def test_any_weights_stay_below_the_oracle() -> None:
    applied = 0
    for seed in range(260):
        data = tiny(seed, most=300)
        data["weights"] = {"balance": 1.0}
        instance = ExpertPlacement(**data)
        if not configurations_apply(instance) or instance.group_limited or instance.max_moves is not None:
            continue
        applied += 1
        best = Oracle(data).best()
        rng = np.random.default_rng(seed)
        floor = 1.0
        for scale in (0.0, 1.0, 1e6):
            weight = scale * rng.normal(size=(instance.layers, instance.experts))
            limit = rng.uniform(0.5, 4.0, instance.layers)
            bound = Bound(0.0, "configurations", "certificate", {"kind": "configurations", "weight": weight, "limit": limit})
            assert floor * (1 - 1e-9) <= recheck(instance, bound) <= best * (1 + 1e-9), seed
        found = made(instance, "configurations")
        assert made(instance, "replica").value * (1 - 1e-9) <= found.value <= best * (1 + 1e-9), seed
        assert recheck(instance, found) == pytest.approx(found.value, rel=1e-12)
    assert applied >= 20


def test_holders_and_many_replicas() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        experts, devices, k = 3, 4, 2
        data: dict[str, Any] = {"load": rng.lognormal(0, 1.5, (2, 1, experts)).tolist(), "devices": devices, "slots_per_device": k}
        data["min_holders"] = 1 + seed % 2
        instance = ExpertPlacement(**data)
        assert made(instance, "configurations").value <= Oracle(data).best() * (1 + 1e-9), seed


def test_numbers_above_the_last_one_told_apart_are_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    # With only two numbers told apart, the last stands for all above: weaker, never wrong.
    from headroom.bounds import expert_placement_configurations as module

    for seed in range(30):
        rng = np.random.default_rng(seed)
        data: dict[str, Any] = {"load": rng.lognormal(0, 1.5, (2, 1, 3)).tolist(), "devices": 4, "slots_per_device": 2}
        instance = ExpertPlacement(**data)
        best = Oracle(data).best()
        for counts in (1, 2):
            monkeypatch.setattr(module, "COUNTS", counts)
            assert made(instance, "configurations").value <= best * (1 + 1e-9)
            sigma = rng.normal(size=3)
            assert content_bound(normalised_load(instance)[:, 0].T, instance, sigma, 9.0) <= best * (1 + 1e-9)


def test_several_tasks_raise_the_bound() -> None:
    rng = np.random.default_rng(0)
    instance = ExpertPlacement(load=rng.lognormal(0, 1.0, (4, 1, 24)), devices=12, slots_per_device=3)
    w = np.ascontiguousarray(normalised_load(instance)[:, 0].T)
    weight = layer_weights(w, instance, 1.0, 2.0, lambda: False)
    proved = content_bound(w, instance, weight, 2.0)
    assert proved > 1.02
    result = run(instance, "local_search", SolveParams(time_limit_s=3))
    assert proved <= result.objective
    assert result.certified_bound > 1.02
    items = items_of(w, weight, 1, instance.most_replicas, 2.0)
    assert least_content(items, 3, needed(weight, 12), 2.0) * (1 - 1e-12) == proved


def test_where_it_does_not_apply() -> None:
    many = {"load": np.ones((1, 1, 64)), "devices": 8, "slots_per_device": 9}
    for other in (many, THREE_TASKS | {"distinct": False}, THREE_TASKS | {"split": "optimal"}, THREE_TASKS | {"robust": "mean"}):
        instance = ExpertPlacement(**other)  # type: ignore[arg-type]
        assert not configurations_apply(instance)
        assert made(instance, "configurations").value == -math.inf
    params = SolveParams(time_limit_s=0.0)
    stopped = configurations(ExpertPlacement(**THREE_TASKS), params, Progress(params))
    assert stopped.value == pytest.approx(1.0)
    assert recheck(ExpertPlacement(**THREE_TASKS), stopped) >= stopped.value


def test_forged_certificates() -> None:
    instance = ExpertPlacement(**THREE_TASKS)
    good = made(instance, "configurations").certificate
    assert good is not None

    def proved(**change: Any) -> float:
        from headroom.bounds.certificates import CertificateError

        try:
            return recheck(instance, Bound(9.0, "configurations", "certificate", {**good, **change}))
        except CertificateError:
            return -math.inf

    assert proved() == pytest.approx(2.0)
    for limit in ([1e9], [2.0], [0.0]):
        assert proved(limit=limit) <= 2.0
    refused: list[dict[str, Any]] = [
        {"limit": [-1.0]}, {"limit": [math.nan]}, {"limit": [1.0, 1.0]}, {"limit": "x"}, {"weight": [[1.0, 2.0]]}, {"weight": [[math.inf] * 4]},
        {"weight": None}, {"kind": "chain_sets"}, {"weight": 3.0},
    ]  # fmt: skip
    for change in refused:
        assert proved(**change) == -math.inf, change
