"""Baselines of expert placement: never below the optimum, rules kept or named, EPLB as published, cases solved by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.expert_placement_eplb_numpy import rebalanced
from headroom.formulations.expert_placement import ExpertPlan, boundary_traffic, evaluate, moves, replicas
from headroom.formulations.types import Outcome
from headroom.heuristics.expert_placement import eplb, eplb_hierarchical, grouped_linear_slots, keep, linear, lpt, random_placement, round_robin
from headroom.heuristics.expert_placement_affinity import exflow
from headroom.heuristics.expert_placement_eplb import rebalance
from headroom.heuristics.expert_placement_packing import load_weight, make_distinct
from headroom.instances.expert_placement import ExpertPlacement
from tests.expert_placement_cases import tiny
from tests.oracles.expert_placement import Oracle

Baseline = Callable[[ExpertPlacement, np.random.Generator], ExpertPlan | Outcome]
BASELINES: tuple[Baseline, ...] = (linear, round_robin, random_placement, lpt, eplb, eplb_hierarchical, keep, exflow)
GROUP_AWARE: tuple[Baseline, ...] = (random_placement, lpt)
README_LOADS = [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]
SEEDS = 160


def asked(baseline: Baseline, instance: ExpertPlacement, seed: int = 0) -> tuple[ExpertPlan | None, str]:
    """The plan, or None and the note."""
    found = baseline(instance, np.random.default_rng(seed))
    if isinstance(found, ExpertPlan):
        return found, ""
    assert found.plan is None
    (note,) = found.notes
    return None, note


def slots_of(baseline: Baseline, instance: ExpertPlacement, seed: int = 0) -> list[list[int]]:
    plan, note = asked(baseline, instance, seed)
    assert plan is not None, note
    slots: list[list[int]] = plan.slot_expert.tolist()
    return slots


def skewed(seed: int, **options: Any) -> ExpertPlacement:
    """Four layers of 32 experts with a few very heavy ones, 8 devices in nodes of 4, 6 slots each."""
    rng = np.random.default_rng([5, seed])
    data: dict[str, Any] = {"load": rng.lognormal(0, 2.5, (2, 4, 32)), "devices": 8, "devices_per_node": 4, "slots_per_device": 6, "n_groups": 8}
    return ExpertPlacement(**(data | options))


# Against the optimum.


@pytest.mark.parametrize("chunk", range(4))
def test_no_baseline_is_below_the_optimum(chunk: int) -> None:
    planned = dict.fromkeys((baseline.__name__ for baseline in BASELINES), 0)
    for seed in range(chunk * SEEDS // 4, (chunk + 1) * SEEDS // 4):
        data = tiny(seed)
        instance, best = ExpertPlacement(**data), Oracle(data).best()
        for baseline in BASELINES:
            plan, note = asked(baseline, instance, seed)
            if plan is None:
                assert _may_fail(baseline, instance, best), (seed, note)
                continue
            planned[baseline.__name__] += 1
            found = evaluate(instance, plan)
            assert found.feasible, (seed, baseline.__name__, found.violations)
            assert found.objective >= best * (1 - 1e-9), (seed, baseline.__name__)
            again, _ = asked(baseline, instance, seed)
            assert again is not None
            assert again.slot_expert.tolist() == plan.slot_expert.tolist(), "same seed, same plan"
    assert all(number >= 3 for number in planned.values()), planned


def _may_fail(baseline: Baseline, instance: ExpertPlacement, best: float) -> bool:
    """Whether a baseline has a reason to return no plan: a rule it does not know, or the lack of what it works on."""
    if instance.max_moves is not None or math.isinf(best):
        return True
    if baseline in (keep, exflow):
        missing = instance.current_slot_expert if baseline is keep else instance.transition
        return missing is None or baseline is keep
    if baseline is eplb_hierarchical:
        return instance.nodes > 1
    return instance.group_limited and instance.nodes > 1 and baseline not in GROUP_AWARE


def test_exflow_starts_wherever_there_is_a_plan() -> None:
    # Without `max_moves` it always has a start; with it, at least where the present placement keeps the rules.
    for seed in range(SEEDS):
        instance = ExpertPlacement(**tiny(seed))
        if instance.transition is not None and (asked(lpt, instance)[0] is not None or asked(keep, instance)[0] is not None):
            assert asked(exflow, instance)[0] is not None, seed


# Placements by rule.


def test_linear_and_round_robin_by_hand() -> None:
    instance = ExpertPlacement(load=np.ones((1, 1, 6)), devices=4, slots_per_device=2)
    # Linear: slot r holds r mod 6. Round robin: device 0 is dealt experts 0 and 4, device 1 experts 1 and 5, then 0 and 1 again on devices 2 and 3.
    assert slots_of(linear, instance) == [[0, 1, 2, 3, 4, 5, 0, 1]]
    assert slots_of(round_robin, instance) == [[0, 4, 1, 5, 2, 0, 3, 1]]
    # Four experts on four devices: the second deal would give each device its expert again, so it starts one device further.
    square = ExpertPlacement(load=np.ones((1, 1, 4)), devices=4, slots_per_device=2)
    assert slots_of(round_robin, square) == [[0, 3, 1, 0, 2, 1, 3, 2]]


def test_round_robin_never_doubles() -> None:
    for experts in range(1, 13):
        for devices in range(1, 9):
            for k in range(-(-experts // devices), experts + 1):
                instance = ExpertPlacement(load=np.ones((1, 1, experts)), devices=devices, slots_per_device=k)
                plan, note = asked(round_robin, instance)
                assert plan is not None, (experts, devices, k, note)
                assert asked(linear, instance)[0] is not None


def test_lpt_by_hand() -> None:
    # Loads 9 6 5 4 3 3, two devices of four slots: 9 gets a second copy (4.5 each), then 6 (3 each). By falling load a copy: 5, 4.5 twice, 4, 3 four
    # times. Device 0 takes the 5, device 1 a 4.5, device 0 the other (no doubles), device 1 the 4; each gets a copy of expert 1; then 4 goes to
    # device 1 and 5 to device 0.
    instance = ExpertPlacement(load=[[[9.0, 6.0, 5.0, 4.0, 3.0, 3.0]]], devices=2, slots_per_device=4)
    (slots,) = slots_of(lpt, instance)
    assert [sorted(slots[:4]), sorted(slots[4:])] == [[0, 1, 2, 5], [0, 1, 3, 4]]
    plan, _ = asked(lpt, instance)
    assert plan is not None
    assert evaluate(instance, plan).objective == pytest.approx(15.5 / 15)


def test_lpt_sees_scenarios_that_a_mean_hides() -> None:
    # Four experts on two devices: each carries the same on average, but 0 and 1 are busy together, and so are 2 and 3. The mean cannot tell; packing
    # by the worst scenario puts 0 and 1 apart.
    instance = ExpertPlacement(load=[[[4.0, 4.0, 0.0, 0.0]], [[0.0, 0.0, 4.0, 4.0]]], devices=2, slots_per_device=2)
    plan, _ = asked(lpt, instance)
    assert plan is not None
    assert evaluate(instance, plan).objective == pytest.approx(1.0)


def test_lpt_puts_groups_on_nodes_in_unequal_numbers() -> None:
    # Groups of two experts with loads 12, 2, 2, 2 on two nodes of six slots: node 0 takes the heavy group alone, node 1 the three light ones.
    load = [[[6.0, 6.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]]
    data: dict[str, Any] = {"devices": 4, "devices_per_node": 2, "slots_per_device": 3, "n_groups": 4, "group_limited": True, "distinct": False}
    instance = ExpertPlacement(load=load, **data)
    (slots,) = slots_of(lpt, instance)
    assert set(slots[:6]) == {0, 1}
    assert set(slots[6:]) == {2, 3, 4, 5, 6, 7}
    # When all slots of a device must differ, the heavy group alone cannot fill devices of three slots: it gets company.
    (slots,) = slots_of(lpt, instance.replace(distinct=True))
    assert len(set(slots[:6])) == 4


def test_keep_returns_what_stands() -> None:
    instance = ExpertPlacement(load=np.ones((1, 1, 4)), devices=2, slots_per_device=2, current_slot_expert=[[3, 1, 2, 0]], max_moves=0)
    assert slots_of(keep, instance) == [[3, 1, 2, 0]]
    assert asked(keep, ExpertPlacement(load=np.ones((1, 1, 4)), devices=2, slots_per_device=2)) == (
        None,
        "keep: the instance has no current_slot_expert",
    )
    doubled = ExpertPlacement(load=np.ones((1, 1, 3)), devices=2, slots_per_device=2, current_slot_expert=[[0, 0, 1, 2]])
    assert "device 0 holds an expert of layer 0 twice" in asked(keep, doubled)[1]
    missing = ExpertPlacement(load=np.ones((1, 1, 3)), devices=2, slots_per_device=2, current_slot_expert=[[0, 1, 1, 0]])
    assert "an expert of layer 0 has no slot" in asked(keep, missing)[1]


def test_rules_that_a_baseline_does_not_know_are_named() -> None:
    limited = skewed(0, group_limited=True)
    for baseline in (linear, round_robin, eplb):
        plan, note = asked(baseline, limited)
        assert plan is None
        assert "group" in note, note
        assert "group_limited forbids" in note, note
    stays = skewed(0, current_slot_expert=np.tile(np.arange(48) % 32, (4, 1)), max_moves=3)
    for baseline in (round_robin, random_placement, lpt, eplb, eplb_hierarchical):
        assert "more than max_moves 3" in asked(baseline, stays)[1]
    assert asked(linear, stays)[0] is not None
    nodes = ExpertPlacement(load=np.ones((1, 1, 6)), devices=4, devices_per_node=1, slots_per_device=3, n_groups=2, group_limited=True)
    for baseline in GROUP_AWARE:
        assert "cannot be filled with whole groups of 3 experts" in asked(baseline, nodes)[1]


# EPLB.


def test_eplb_of_the_readme() -> None:
    expected = [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1], [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]]
    load = np.array(README_LOADS, dtype=float)
    assert rebalance(load, 16, 4, 2, 8, distinct=False).tolist() == expected
    assert rebalanced(load, 16, 4, 2, 8).tolist() == expected
    instance = ExpertPlacement(load=load[None], devices=8, devices_per_node=4, slots_per_device=2, n_groups=4, group_limited=True)
    assert slots_of(eplb_hierarchical, instance) == expected  # no device has doubles, so that `distinct` changes nothing


@pytest.mark.parametrize(
    ("layers", "experts", "slots", "groups", "nodes", "devices"),
    [
        (3, 16, 24, 4, 2, 8),
        (5, 64, 80, 8, 4, 8),
        (2, 8, 8, 8, 8, 8),
        (4, 32, 48, 1, 1, 6),
        (2, 12, 24, 12, 2, 24),
        (3, 256, 288, 8, 4, 32),
        (1, 1, 4, 1, 1, 2),
    ],
)
def test_eplb_is_the_plain_one_made_fast(layers: int, experts: int, slots: int, groups: int, nodes: int, devices: int) -> None:
    rng = np.random.default_rng(layers * slots)
    for load in (rng.lognormal(0, 1.5, (layers, experts)), rng.integers(0, 6, (layers, experts)).astype(float), np.zeros((layers, experts))):
        found = rebalance(load, slots, groups, nodes, devices, distinct=False)
        assert found.tolist() == rebalanced(load, slots, groups, nodes, devices).tolist()


def test_eplb_raw_and_repaired() -> None:
    # One expert of 9, two of 1, two devices of three slots: the heavy one has four copies, raw twice on each device; with `distinct` it has as many
    # as there are devices, and the surplus goes to the others.
    raw = ExpertPlacement(load=[[[9.0, 1.0, 1.0]]], devices=2, slots_per_device=3, distinct=False)
    (slots,) = slots_of(eplb, raw)
    assert sorted(slots) == [0, 0, 0, 0, 1, 2]
    (slots,) = slots_of(eplb, raw.replace(distinct=True))
    assert [sorted(slots[:3]), sorted(slots[3:])] == [[0, 1, 2], [0, 1, 2]]


def test_repaired_placements_are_distinct_and_raw_ones_are_not() -> None:
    doubled = 0
    for seed in range(40):
        raw = skewed(seed, distinct=False)
        for baseline in (eplb, eplb_hierarchical):
            plan, _ = asked(baseline, raw)
            repaired, note = asked(baseline, raw.replace(distinct=True))
            assert plan is not None
            assert repaired is not None, note
            on_device = np.sort(plan.slot_expert.reshape(4, 8, 6), axis=2)
            doubled += bool((np.diff(on_device, axis=2) == 0).any())
            assert (np.diff(np.sort(repaired.slot_expert.reshape(4, 8, 6), axis=2), axis=2) > 0).all()
            assert evaluate(raw.replace(distinct=True), repaired).feasible
    assert doubled >= 40


def test_a_placement_without_doubles_is_not_repaired() -> None:
    same = 0
    for seed in range(40):
        load = np.random.default_rng(seed).lognormal(0, 0.4, (1, 2, 16))
        instance = ExpertPlacement(load=load, devices=8, slots_per_device=3)
        raw, _ = asked(eplb, instance.replace(distinct=False))
        assert raw is not None
        if evaluate(instance, raw).feasible:
            same += 1
            assert slots_of(eplb, instance) == raw.slot_expert.tolist()
    assert same >= 5


def test_doubles_are_exchanged_within_their_node_and_copies_kept() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        devices, scope, k = 6, 3, 4
        # Within each block of three devices, experts with up to three copies, thrown together.
        blocks = []
        for block in range(2):
            copies = np.repeat(np.arange(block * 8, block * 8 + 8), 3)
            blocks.append(rng.permutation(np.concatenate([np.arange(block * 8, block * 8 + 8), rng.permutation(copies)[:4]])))
            while np.bincount(blocks[-1]).max() > scope:
                blocks[-1] = rng.permutation(np.concatenate([np.arange(block * 8, block * 8 + 8), rng.permutation(copies)[:4]]))
        before = np.concatenate(blocks)[None]
        after = before.copy()
        make_distinct(after, rng.random((1, 16)), k, scope)
        assert (np.diff(np.sort(after.reshape(devices, k), axis=1), axis=1) > 0).all()
        for block in range(2):
            part = slice(block * scope * k, (block + 1) * scope * k)
            assert sorted(before[0, part]) == sorted(after[0, part])


def test_the_repair_takes_the_least_harm() -> None:
    # Device 0 holds expert 0 twice (10 each), devices 1 and 2 hold 1 2 and 3 4 with loads 7 6 and 3 2. Exchanging a copy for expert 1 leaves 17 and
    # 16 on the devices touched, for 2 16 and 17, for 3 13 and 12, for 4 12 and 13: the heavier carries 13 either way; the first found stays.
    slots = np.array([[0, 0, 1, 2, 3, 4]])
    make_distinct(slots, np.array([[10.0, 7.0, 6.0, 3.0, 2.0]]), 2, 3)
    assert slots.tolist() == [[3, 0, 1, 2, 0, 4]]


def test_hierarchy_says_why_it_does_not_apply() -> None:
    uneven = ExpertPlacement(load=np.ones((1, 1, 12)), devices=4, devices_per_node=2, slots_per_device=4, n_groups=3)
    assert "3 groups do not divide evenly by 2 nodes" in asked(eplb_hierarchical, uneven)[1]
    full = ExpertPlacement(load=np.ones((1, 1, 4)), devices=4, devices_per_node=2, slots_per_device=3)
    assert "3 slots a device cannot hold different experts where a node has 2" in asked(eplb_hierarchical, full)[1]


def test_several_scenarios_count_by_their_shares() -> None:
    # Scenario 1 has a hundred times the tokens of scenario 0, yet both count alike: expert 0 has 0.75 and 0.25, expert 1 the rest.
    instance = ExpertPlacement(load=[[[3.0, 1.0]], [[100.0, 300.0]]], devices=2, slots_per_device=1)
    assert load_weight(instance).tolist() == [[0.5, 0.5]]
    assert load_weight(ExpertPlacement(load=[[[3.0, 1.0]]], devices=2, slots_per_device=1)).tolist() == [[3.0, 1.0]]


# Affinity.


def chain(seed: int, **options: Any) -> ExpertPlacement:
    """Three layers of 12 experts on 4 devices; a token of expert e goes on to one expert that a hidden permutation names, or anywhere."""
    rng = np.random.default_rng([6, seed])
    table = np.full((2, 12, 12), 0.2 / 144)
    for b in range(2):
        table[b, np.arange(12), rng.permutation(12)] += 0.8 / 12
    data: dict[str, Any] = {"load": rng.lognormal(0, 1, (1, 3, 12)), "transition": table, "devices": 4, "slots_per_device": 3}
    return ExpertPlacement(**(data | options))


def test_exflow_follows_the_permutation() -> None:
    # Blocks of three experts that the permutations map onto each other exist, so that only the even part of the traffic remains: 0.2 of the tokens go
    # anywhere, three quarters of them to another device.
    for seed in range(5):
        instance = chain(seed)
        plan, _ = asked(exflow, instance, seed)
        assert plan is not None
        parts = evaluate(instance, plan).parts
        assert parts["traffic"] == pytest.approx(0.15)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"slots_per_device": 4},
        {"slots_per_device": 5, "distinct": False, "devices_per_node": 2, "hop_cost": {"same_node": 1.0, "other_node": 3.0}},
        {"slots_per_device": 4, "devices_per_node": 2, "hop_cost": {"same_node": 2.0, "other_node": 1.0}},
        {"slots_per_device": 4, "devices_per_node": 2, "n_groups": 4, "group_limited": True, "hop_cost": {"same_node": 1.0, "other_node": 3.0}},
    ],
)
def test_exflow_ends_where_no_exchange_helps(options: dict[str, Any]) -> None:
    # Every exchange of two slots of a layer, measured by `evaluate`: none keeps the rules and lowers the traffic. The copies are those of the start.
    for seed in range(3):
        instance = chain(seed, **options)
        plan, _ = asked(exflow, instance, seed)
        assert plan is not None
        start = grouped_linear_slots(instance)
        assert start is not None
        assert (replicas(instance, plan.slot_expert) == replicas(instance, start)).all()
        least = boundary_traffic(instance, plan.slot_expert).mean()
        assert least <= boundary_traffic(instance, start).mean() + 1e-12
        for l in range(instance.layers):
            for r in range(instance.slots):
                for q in range(r):
                    slots = plan.slot_expert.copy()
                    slots[l, [r, q]] = slots[l, [q, r]]
                    if boundary_traffic(instance, slots).mean() < least - 1e-11:
                        assert not evaluate(instance, ExpertPlan(slot_expert=slots)).feasible, (seed, l, r, q)


def test_exflow_decides_between_equals_by_balance() -> None:
    # Tokens go from everywhere to everywhere, so that the traffic is the same for all placements; 9 and 8 must not share a device.
    instance = ExpertPlacement(load=[[[9.0, 8.0, 1.0, 1.0]] * 2], transition=[np.full((4, 4), 1 / 16).tolist()], devices=2, slots_per_device=2)
    plan, _ = asked(exflow, instance)
    assert plan is not None
    assert evaluate(instance, plan).parts["balance"] == pytest.approx(10 / 9.5)


def test_exflow_keeps_within_max_moves() -> None:
    used = set()
    for most in (0, 1, 2, 4, 9, 36):
        instance = chain(1, current_slot_expert=np.tile(np.random.default_rng(0).permutation(12), (3, 1)), max_moves=most)
        plan, note = asked(exflow, instance)
        assert plan is not None, note
        assert evaluate(instance, plan).feasible
        used.add(moves(instance, plan.slot_expert))
    assert len(used) >= 4


def test_exflow_says_what_it_lacks() -> None:
    assert "no transitions" in asked(exflow, skewed(0))[1]
    one_layer = ExpertPlacement(load=np.ones((1, 1, 2)), transition=np.zeros((0, 2, 2)), devices=2, slots_per_device=1)
    assert "no transitions" in asked(exflow, one_layer)[1]


def test_split_optimal_gives_every_plan_its_shares() -> None:
    instance = skewed(1, split="optimal")
    for baseline in (linear, round_robin, random_placement, lpt, eplb, eplb_hierarchical):
        plan, note = asked(baseline, instance)
        assert plan is not None, note
        equal = ExpertPlan(slot_expert=plan.slot_expert)
        assert evaluate(instance, plan).feasible
        assert evaluate(instance, plan).objective <= evaluate(instance.replace(split="equal"), equal).objective * (1 + 1e-12)
