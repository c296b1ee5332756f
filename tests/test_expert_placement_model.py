"""Expert placement: `evaluate` and the Pyomo model against enumeration, and cases solved by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from headroom.formulations.expert_placement import ExpertPlan, build_model, evaluate, imbalance
from headroom.formulations.progress import Progress
from headroom.formulations.types import SolveParams
from headroom.heuristics.expert_placement import best_share, plan_of
from headroom.instances.errors import InputError
from headroom.instances.expert_placement import ExpertPlacement
from headroom.solvers.highs import MipAnswer, solve_mip
from headroom.solvers.standard_form import standard_form
from tests.expert_placement_cases import tiny
from tests.oracles.expert_placement import Oracle

CLOSE = 1e-6


def solved(instance: ExpertPlacement) -> MipAnswer:
    """The Pyomo model by HiGHS."""
    params = SolveParams()
    answer = solve_mip(standard_form(build_model(instance)), params, Progress(params))
    assert answer.status in ("optimal", "infeasible")
    return answer


def random_slots(instance: ExpertPlacement, rng: np.random.Generator) -> Any:
    """Slots that hold every expert, and otherwise break what rules they like."""
    rows = [rng.permutation(np.concatenate([np.arange(instance.experts), rng.integers(0, instance.experts, instance.slots - instance.experts)]))]
    for _ in range(instance.layers - 1):
        rows.append(rng.permutation(rows[0]))
    return np.array(rows)


def random_share(instance: ExpertPlacement, slots: Any, rng: np.random.Generator) -> Any:
    """A random split of every expert's load."""
    share = rng.random((instance.scenarios, *slots.shape))
    for s in range(instance.scenarios):
        for l in range(instance.layers):
            share[s, l] /= np.bincount(slots[l], share[s, l], instance.experts)[slots[l]]
    return share


# `evaluate` and the oracle, written apart from each other.


@pytest.mark.parametrize("chunk", range(4))
def test_evaluate_says_what_the_definition_says(chunk: int) -> None:
    feasible = broken = 0
    for seed in range(chunk * 60, chunk * 60 + 60):
        data, rng = tiny(seed), np.random.default_rng(seed)
        instance, oracle = ExpertPlacement(**data), Oracle(data)
        for _ in range(6):
            slots = random_slots(instance, rng)
            share = random_share(instance, slots, rng) if instance.split == "optimal" else None
            found = evaluate(instance, ExpertPlan(slot_expert=slots, share=share))
            value = oracle.value(slots.tolist(), None if share is None else share.tolist())
            assert found.feasible == math.isfinite(value), (seed, found.violations)
            if found.feasible:
                feasible += 1
                assert found.objective == pytest.approx(value, rel=1e-12), seed
            else:
                broken += 1
    assert feasible >= 60
    assert broken >= 60


def test_the_oracle_enumerates_what_it_values() -> None:
    # Its dynamic programme over layers against every combination of contents, one by one.
    for seed in range(120):
        data = tiny(seed, most=20)
        oracle = Oracle(data)
        plans: list[list[list[int]]] = [[]]
        for _ in range(oracle.layers):
            plans = [[*plan, [e for experts in content for e in experts]] for plan in plans for content in oracle.contents()]
        assert oracle.best() == pytest.approx(min(map(oracle.value, plans), default=math.inf), rel=1e-12), seed


def test_the_best_split_is_the_largest_ratio_of_load_to_devices() -> None:
    copies = 0
    for seed in range(1, 240, 2):
        data, rng = tiny(seed), np.random.default_rng(seed)
        instance, oracle = ExpertPlacement(**data), Oracle(data)
        slots = random_slots(instance, rng)
        uneven = imbalance(instance, plan_of(instance, slots))
        contents = [tuple(map(tuple, row.reshape(instance.devices, -1).tolist())) for row in slots]
        for l, content in enumerate(contents):
            copies += instance.slots > instance.experts
            wanted = oracle.layer_balance(l, content)
            assert (uneven[:, l].max() if instance.robust == "worst" else uneven[:, l].mean()) == pytest.approx(wanted, rel=1e-11), seed
    assert copies >= 60


def test_the_best_split_agrees_with_a_linear_programme() -> None:
    from scipy.optimize import linprog

    for seed in range(8):
        rng = np.random.default_rng(seed)
        experts, devices, k = 24, 8, 5
        instance = ExpertPlacement(load=rng.lognormal(0, 1.5, (2, 2, experts)), devices=devices, slots_per_device=k, split="optimal", distinct=False)
        slots = random_slots(instance, rng)
        uneven = imbalance(instance, ExpertPlan(slot_expert=slots, share=best_share(instance, slots)))
        for s in range(2):
            for l in range(2):
                # Variables: a share for each slot, then the level z.
                upper = np.zeros((devices, instance.slots + 1))
                upper[np.arange(instance.slots) // k, np.arange(instance.slots)] = instance.load[s, l, slots[l]]
                upper[:, -1] = -1.0
                whole = np.zeros((experts, instance.slots + 1))
                whole[slots[l], np.arange(instance.slots)] = 1.0
                cost = np.eye(instance.slots + 1)[-1]
                best = linprog(cost, upper, np.zeros(devices), whole, np.ones(experts)).fun
                assert uneven[s, l] == pytest.approx(best / instance.total_load[s, l] * devices, rel=1e-8)


# The model.


@pytest.mark.parametrize("chunk", range(6))
def test_the_model_has_the_optimum_of_the_definition(chunk: int) -> None:
    kinds = set()
    for seed in range(chunk * 15, chunk * 15 + 15):
        data = tiny(seed, most=150)
        instance, best = ExpertPlacement(**data), Oracle(data).best()
        answer = solved(instance)
        if math.isinf(best):
            assert answer.status == "infeasible", seed
        else:
            assert answer.objective == pytest.approx(best, rel=CLOSE, abs=CLOSE), seed
        kinds.add(answer.status)
    assert "optimal" in kinds


def test_the_seeds_cover_every_option() -> None:
    seen: dict[str, int] = {}
    for seed in range(90):
        data = tiny(seed, most=150)
        instance = ExpertPlacement(**data)
        options = {
            "infeasible": math.isinf(Oracle(data).best()),
            "copies": instance.slots > instance.experts,
            "split": instance.split == "optimal" and instance.slots > instance.experts,
            "doubles": not instance.distinct and instance.slots > instance.experts,
            "groups": instance.group_limited and instance.nodes > 1,
            "traffic": instance.weights.traffic > 0,
            "traffic and copies": instance.weights.traffic > 0 and instance.slots > instance.experts,
            "moves": instance.weights.moves > 0,
            "max_moves": instance.max_moves is not None,
            "robust": instance.robust == "worst" and instance.scenarios > 1,
            "mean": instance.robust == "mean" and instance.scenarios > 1,
        }
        for name, present in options.items():
            seen[name] = seen.get(name, 0) + present
    assert all(number >= 5 for number in seen.values()), seen


# Solved by hand.


def test_a_copy_halves_the_heaviest_expert() -> None:
    # Loads 8, 2, 2 on two devices of two slots. Mean device: 6. With expert 0 on both, each carries 4 + 2: balance 1. Alone it would carry 8 of 6.
    data: dict[str, Any] = {"load": [[[8.0, 2.0, 2.0]]], "devices": 2, "slots_per_device": 2}
    instance = ExpertPlacement(**data)
    assert evaluate(instance, ExpertPlan(slot_expert=[[0, 1, 0, 2]])).objective == pytest.approx(1.0)
    assert evaluate(instance, ExpertPlan(slot_expert=[[0, 1, 1, 2]])).objective == pytest.approx(9 / 6)  # 8 + 1 and 1 + 2
    assert solved(instance).objective == pytest.approx(1.0)
    assert Oracle(data).best() == pytest.approx(1.0)


def test_the_split_does_what_equal_shares_cannot() -> None:
    # Loads 6, 4, 2, mean device 6: expert 0 on both devices beside 1 and 2. Equal shares give 3 + 4 and 3 + 2; a third and two thirds give 6 and 6.
    data: dict[str, Any] = {"load": [[[6.0, 4.0, 2.0]]], "devices": 2, "slots_per_device": 2}
    slots = [[0, 1, 0, 2]]
    assert evaluate(ExpertPlacement(**data), ExpertPlan(slot_expert=slots)).objective == pytest.approx(7 / 6)
    free = ExpertPlacement(**data, split="optimal")
    share = [[[1 / 3, 1.0, 2 / 3, 1.0]]]
    assert evaluate(free, ExpertPlan(slot_expert=slots, share=share)).objective == pytest.approx(1.0)
    assert best_share(free, np.array(slots)) == pytest.approx(np.array(share))
    with pytest.raises(InputError, match="share is missing"):
        evaluate(free, ExpertPlan(slot_expert=slots))


def test_the_worst_scenario_counts() -> None:
    # Experts 0 and 1 are heavy together in one scenario, 0 and 2 in the other; four experts, two a device. Apart from 1 and 2, expert 0 must share
    # with 3: scenario 0 then loads the devices 6 + 0 and 6 + 0, scenario 1 likewise.
    data: dict[str, Any] = {"load": [[[6.0, 6.0, 0.0, 0.0]], [[6.0, 0.0, 6.0, 0.0]]], "devices": 2, "slots_per_device": 2}
    instance = ExpertPlacement(**data)
    assert solved(instance).objective == pytest.approx(1.0)
    together = ExpertPlan(slot_expert=[[0, 1, 2, 3]])
    assert evaluate(instance, together).objective == pytest.approx(2.0)  # all of scenario 0 on device 0
    assert evaluate(instance.replace(robust="mean"), together).objective == pytest.approx((2.0 + 1.0) / 2)


def test_traffic_goes_to_the_nearest_copy() -> None:
    # One slot a device, two nodes of two devices. Layer 0 holds 0 1 | 0 1, layer 1 holds 0 0 | 1 1; all tokens go from expert 0 to expert 1. Half of
    # them start on device 0, whose node lacks expert 1: 2.5. The other half start on device 2, which holds it: 0.
    instance = ExpertPlacement(
        load=np.ones((1, 2, 2)),
        transition=[[[0.0, 1.0], [0.0, 0.0]]],
        devices=4,
        devices_per_node=2,
        slots_per_device=1,
        hop_cost={"same_node": 1.0, "other_node": 2.5},
        weights={"balance": 0.0, "traffic": 1.0},
    )
    assert evaluate(instance, ExpertPlan(slot_expert=[[0, 1, 0, 1], [0, 0, 1, 1]])).objective == pytest.approx(1.25)
    # From layer 0 held 1 0 | 0 1 tokens start on devices 1 and 2: the same 2.5 from one of them, 0 from the other.
    assert evaluate(instance, ExpertPlan(slot_expert=[[1, 0, 0, 1], [0, 0, 1, 1]])).objective == pytest.approx(1.25)
    # With a copy of expert 1 on device 1 a token on device 0 pays for the same node only.
    assert evaluate(instance, ExpertPlan(slot_expert=[[0, 1, 0, 1], [0, 1, 1, 1]])).objective == pytest.approx(0.5)
    assert solved(instance).objective == pytest.approx(0.0, abs=1e-9)  # 0 0 | 1 1 and 1 1 | 0 0


def test_moves_count_what_a_device_did_not_hold() -> None:
    # Device 0 changes 1 for 2, device 1 changes 2 for 1; the order inside a device is free.
    instance = ExpertPlacement(
        load=np.ones((1, 1, 4)), devices=2, slots_per_device=2, current_slot_expert=[[0, 1, 2, 3]], weights={"moves": 1.0}, max_moves=1
    )
    assert evaluate(instance, ExpertPlan(slot_expert=[[1, 0, 3, 2]])).parts["moves"] == 0
    found = evaluate(instance, ExpertPlan(slot_expert=[[0, 2, 1, 3]]))
    assert found.parts["moves"] == pytest.approx(2 / 4)
    assert [(item.constraint, item.amount) for item in found.violations] == [("max_moves", 1.0)]


def test_a_node_without_a_group_cannot_be_filled() -> None:
    # One group on two nodes: whatever holds it, the other node's slots stay empty, and every slot must hold an expert.
    data: dict[str, Any] = {
        "load": [[[1.0, 1.0]]],
        "devices": 2,
        "devices_per_node": 1,
        "slots_per_device": 2,
        "n_groups": 1,
        "group_limited": True,
    }
    assert math.isinf(Oracle(data).best())
    assert solved(ExpertPlacement(**data)).status == "infeasible"


def test_a_layer_without_load_counts_one() -> None:
    instance = ExpertPlacement(load=[[[0.0, 0.0], [1.0, 1.0]]], devices=2, slots_per_device=1, split="optimal")
    plan = plan_of(instance, np.array([[0, 1], [1, 0]]))
    assert evaluate(instance, plan).objective == 1.0
    assert evaluate(instance, plan).feasible
