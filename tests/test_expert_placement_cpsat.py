"""Expert placement by CP-SAT: against enumeration and against HiGHS with every option, layers alone and together, what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from headroom.formulations.types import SolveParams
from headroom.instances.errors import InputError
from headroom.instances.expert_placement import ExpertPlacement
from headroom.instances.expert_placement_generators import correlated_loads
from headroom.instances.expert_placement_presets import make
from headroom.run import ContradictionError, Result, run
from headroom.solvers.expert_placement_cpsat import blocks
from headroom.solvers.expert_placement_cpsat_model import hop_steps
from tests.expert_placement_cases import tiny
from tests.oracles.expert_placement import Oracle


def solved(instance: ExpertPlacement, method: str = "cpsat", limit_s: float = 30.0, **params: Any) -> Result:
    return run(instance, method, SolveParams(time_limit_s=limit_s, **params))


@pytest.mark.parametrize("chunk", range(4))
def test_enumeration_and_both_solvers_agree(chunk: int) -> None:
    for seed in range(chunk * 45, chunk * 45 + 45):
        data = tiny(seed, 150)
        instance, best = ExpertPlacement(**data), Oracle(data).best()
        result = solved(instance)
        assert result.bound <= best * (1 + 1e-9), (seed, result.bound, best)
        if math.isinf(best):
            assert result.status == "infeasible", seed
            continue
        assert result.status == "optimal", (seed, result.gap)
        assert result.objective == pytest.approx(best, rel=1e-6, abs=1e-9), seed
        assert result.bound >= best * (1 - 2e-6) - 1e-9, seed
        if seed % 3 == 0:
            try:
                other = solved(instance, "highs")
            except ContradictionError:
                continue  # HiGHS' own false bound, caught
            assert other.objective == pytest.approx(result.objective, rel=1e-6, abs=1e-9), seed


@pytest.mark.parametrize("seed", range(40))
def test_bounds_survive_what_presolve_of_9_15_gets_wrong(seed: int) -> None:
    # google/or-tools issue 5293: with large coefficients presolve cut off the optimum of every fourteenth instance of this kind.
    rng = np.random.default_rng([77, seed])
    experts, devices, k = [(5, 3, 2), (4, 3, 2), (4, 2, 3)][seed % 3]
    data: dict[str, Any] = {
        "load": correlated_loads(rng, 1 + seed % 3, 1, experts, 0.8, 0.15, 1000).tolist(),
        "devices": devices,
        "slots_per_device": k,
        "split": "equal" if seed % 4 == 3 else "optimal",
        "distinct": seed % 5 > 0,
    }
    best = Oracle(data).best()
    result = solved(ExpertPlacement(**data))
    assert result.objective == pytest.approx(best, rel=1e-6)
    assert best * (1 - 1e-6) <= result.bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("chunk", range(2))
def test_every_expert_on_two_devices(chunk: int) -> None:
    seen = 0
    for seed in range(chunk * 150, chunk * 150 + 150):
        data = tiny(seed, 150) | {"min_holders": 2}
        try:
            instance = ExpertPlacement(**data)
        except InputError:
            continue  # too few slots
        best, result = Oracle(data).best(), solved(instance)
        seen += 1
        assert result.bound <= best * (1 + 1e-9), seed
        assert (result.status == "infeasible") == math.isinf(best), seed
        if math.isfinite(best):
            assert result.objective == pytest.approx(best, rel=1e-6, abs=1e-9), seed
    assert seen >= 10


def test_layers_that_share_nothing_are_solved_alone() -> None:
    instance = make("toy-robust", np.random.default_rng(1), {})
    assert blocks(instance) == [range(1), range(1, 2)]
    one_by_one = [solved(instance.replace(load=instance.load[:, layer : layer + 1])).objective for layer in range(2)]
    result = solved(instance)
    assert result.status == "optimal"
    assert result.objective == pytest.approx(sum(one_by_one) / 2, rel=1e-9)
    current = np.tile(np.arange(9) % 6, (2, 1))
    assert blocks(instance.replace(current_slot_expert=current, weights={"moves": 0.1})) == [range(1), range(1, 2)]
    assert blocks(instance.replace(current_slot_expert=current, max_moves=3)) == [range(2)]
    assert blocks(instance.replace(current_slot_expert=current, max_moves=18)) == [range(1), range(1, 2)]  # no cap: there are 18 slots
    assert blocks(make("toy-traffic", np.random.default_rng(1), {})) == [range(3)]


def test_a_time_limit_leaves_every_layer_its_turn() -> None:
    # Layers that CP-SAT cannot close in two seconds: the plan is the packing or better, the bound no worse than the closed forms.
    instance = make("gpt-oss-120b-ep8", np.random.default_rng(1), {"layers": 3})
    result = solved(instance, limit_s=2.0)
    assert result.plan is not None
    assert result.stop == "time_limit"
    assert 1.0 - 1e-9 <= result.bound <= result.objective


def test_free_splits_on_more_devices_than_sets_are_stated_for() -> None:
    rng = np.random.default_rng(3)
    instance = ExpertPlacement(load=correlated_loads(rng, 2, 1, 6, 1.2, 0.15, 1000), devices=5, slots_per_device=2, split="optimal")
    flows, other = solved(instance), solved(instance, "highs")
    assert flows.status == "optimal"
    assert flows.objective == pytest.approx(other.objective, rel=1e-6)
    assert flows.bound <= flows.objective


def test_hops_as_prices_that_add_up() -> None:
    data: dict[str, Any] = {"load": [[[1.0, 1.0]] * 2], "devices": 4, "slots_per_device": 1, "devices_per_node": 2}
    assert hop_steps(ExpertPlacement(**data, hop_cost={"same_node": 1.0, "other_node": 3.0})) == [("device", 1.0), ("node", 2.0)]
    assert hop_steps(ExpertPlacement(**data, hop_cost={"same_node": 3.0, "other_node": 1.0})) == [("device", 1.0), ("inside", 2.0)]
    assert hop_steps(ExpertPlacement(**data)) == [("device", 1.0)]
    assert hop_steps(ExpertPlacement(**data | {"devices_per_node": 1}, hop_cost={"same_node": 3.0, "other_node": 1.0})) == [("device", 1.0)]
    assert hop_steps(ExpertPlacement(**data, hop_cost={"same_node": 0.0, "other_node": 1.0})) == [("node", 1.0)]


@pytest.mark.parametrize("seed", range(12))
def test_nearest_copies_over_two_nodes(seed: int) -> None:
    # Copies, two prices of hops in both orders, doubles allowed or not.
    rng = np.random.default_rng([6, seed])
    data: dict[str, Any] = {
        "load": rng.integers(0, 9, (1, 2, 3)).tolist(),
        "transition": rng.dirichlet(np.full(9, 0.5), 1).reshape(1, 3, 3).tolist(),
        "devices": 4 if seed % 2 else 2,
        "devices_per_node": 2 if seed % 2 else 1,
        "slots_per_device": 1 if seed % 2 else 2,
        "distinct": seed % 3 > 0,
        "hop_cost": {"same_node": 1.0, "other_node": 2.5} if seed % 4 < 2 else {"same_node": 2.5, "other_node": 1.0},
        "weights": {"balance": 0.3, "traffic": 1.0},
    }
    data["load"] = np.asarray(data["load"], dtype=float).tolist()
    best = Oracle(data).best()
    result = solved(ExpertPlacement(**data))
    assert result.status == "optimal"
    assert result.objective == pytest.approx(best, rel=1e-6, abs=1e-9)


def test_a_start_plan_is_never_left_for_a_worse_one() -> None:
    instance = make("toy-moves", np.random.default_rng(2), {})
    best = solved(instance)
    again = solved(instance, start=best.plan, limit_s=0.05)
    assert again.objective <= best.objective


def test_large_models_are_refused_with_a_reason() -> None:
    result = solved(make("deepseek-v3-ep32", np.random.default_rng(1), {}))
    assert result.plan is None
    assert any("more than CP-SAT can use" in text for text in result.notes)
    assert result.certified_bound >= 1.0 - 1e-9


def test_groups_that_cannot_fill_the_nodes() -> None:
    data: dict[str, Any] = {"load": [[[1.0, 1.0]]], "devices": 2, "devices_per_node": 1, "slots_per_device": 2, "n_groups": 1, "group_limited": True}
    assert solved(ExpertPlacement(**data)).status == "infeasible"
