"""Expert placement: the kernels keep every rule and count right, layers are assigned and packed as enumeration would, and balance is reached."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from headroom.bounds.expert_placement_balance import assign_groups, balance_layers, normalised_load
from headroom.formulations.expert_placement import ExpertPlan, boundary_traffic, evaluate, layer_imbalance
from headroom.formulations.types import SolveParams
from headroom.heuristics.expert_placement import plan_of
from headroom.instances.expert_placement import ExpertPlacement
from headroom.instances.expert_placement_presets import make
from headroom.run import Result, run
from headroom.solvers.expert_placement_anneal import anneal
from headroom.solvers.expert_placement_chain import anneal_chain, costs, settle, total
from headroom.solvers.expert_placement_pack import even_out, pack, replicate
from headroom.solvers.expert_placement_traffic import relabel
from tests.expert_placement_cases import tiny
from tests.oracles.expert_placement import Oracle
from tests.test_expert_placement import bound as made
from tests.test_expert_placement import with_traffic


def solved(instance: ExpertPlacement, **params: Any) -> Result:
    return run(instance, "local_search", SolveParams(**params))


def complete(slots: Any, experts: int) -> bool:
    return set(slots.ravel().tolist()) == set(range(experts))


def distinct(slots: Any) -> bool:
    return all(len(set(row)) == len(row) for row in slots.tolist())


def sizes(rng: np.random.Generator) -> tuple[int, int, int]:
    """Experts, devices, slots a device: with spare slots or none, distinct."""
    while True:
        devices, k = int(rng.integers(1, 9)), int(rng.integers(1, 7))
        experts = int(rng.integers(k, devices * k + 1))
        if experts * devices >= devices * k:
            return experts, devices, k


# Packing.


def heaviest(load: Any, slots: int, most: int) -> tuple[float, float]:
    """The heaviest replica by `replicate`, and by enumeration."""
    count = np.zeros(len(load), dtype=np.int64)
    replicate(load, slots, most, count)
    assert count.sum() == slots
    assert count.min() >= 1
    assert count.max() <= most
    ways = [way for way in itertools.product(range(1, most + 1), repeat=len(load)) if sum(way) == slots]
    return (load / count).max(), min((load / np.array(way)).max() for way in ways)


def test_replicas_are_as_even_as_can_be() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        experts, most = int(rng.integers(1, 5)), int(rng.integers(1, 5))
        slots = int(rng.integers(experts, experts * most + 1))
        found, least = heaviest(rng.integers(1, 5, experts).astype(float), slots, most)
        assert found == pytest.approx(least, rel=1e-12), seed


def test_no_copies_for_nothing() -> None:
    # Two spare slots: both for the expert that has a load.
    assert heaviest(np.array([6.0, 0.0]), 4, 3) == (2.0, 2.0)


def packed(rng: np.random.Generator, doubles: bool) -> tuple[Any, Any, Any, int]:
    experts, devices, k = sizes(rng)
    load = rng.lognormal(0, 1.5, experts) * (rng.random(experts) < 0.9)
    count, slots = np.zeros(experts, dtype=np.int64), np.full((devices, k), -1, dtype=np.int64)
    most = devices * k - experts + 1
    replicate(load, devices * k, most if doubles else min(most, devices), count)
    assert pack(load, count, slots, not doubles)
    return load, count, slots, experts


@pytest.mark.parametrize("doubles", [False, True])
def test_packing_keeps_the_rules_and_the_counts(doubles: bool) -> None:
    for seed in range(300):
        load, count, slots, experts = packed(np.random.default_rng(seed), doubles)
        before = (load / count)[slots].sum(axis=1).max()
        after = even_out(load, count, slots, not doubles, 0.0, 200)
        assert complete(slots, experts), seed
        assert doubles or distinct(slots), seed
        assert (np.bincount(slots.ravel(), minlength=experts) == count).all(), seed
        assert after == pytest.approx((load / count)[slots].sum(axis=1).max(), rel=1e-9, abs=1e-12), seed
        assert after <= before * (1 + 1e-12), seed
        assert after >= load.sum() / len(slots) * (1 - 1e-9), seed


# Annealing of one layer.


@pytest.mark.parametrize("mean", [False, True])
def test_annealing_keeps_the_rules_and_tells_the_truth(mean: bool) -> None:
    for seed in range(80):
        rng = np.random.default_rng(seed)
        experts, devices, k = sizes(rng)
        scenarios = int(rng.integers(1, 4))
        w = rng.lognormal(0, 1, (scenarios, experts))
        w *= devices / w.sum(axis=1, keepdims=True)
        slots = start(rng, experts, devices, k)
        most = min(devices, devices * k - experts + 1)
        best = slots.copy()
        args = (np.full(experts, -1, dtype=np.int64), devices, most, mean, 1.0, 0, 4000, 4000, 0.1, 0.001)
        value = anneal(np.ascontiguousarray(w.T), slots.copy(), *args, np.random.default_rng(seed), best)
        assert complete(best, experts), seed
        assert distinct(best), seed
        count = np.bincount(best.ravel(), minlength=experts)
        assert count.max() <= most
        busiest = (w / count)[:, best].sum(axis=2).max(axis=1)
        assert value == pytest.approx(busiest.mean() if mean else busiest.max(), rel=1e-9), seed
        first = (w / np.bincount(slots.ravel(), minlength=experts))[:, slots].sum(axis=2).max(axis=1)
        assert value <= (first.mean() if mean else first.max()) * (1 + 1e-12)


def start(rng: np.random.Generator, experts: int, devices: int, k: int) -> Any:
    """Distinct slots that hold everything."""
    load, slots, count = rng.random(experts) + 1.0, np.full((devices, k), -1, dtype=np.int64), np.zeros(experts, dtype=np.int64)
    replicate(load, devices * k, min(devices, devices * k - experts + 1), count)
    assert pack(load, count, slots, True)
    return slots


def test_annealing_leaves_experts_at_home() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        k, width, nodes = int(rng.integers(2, 4)), int(rng.integers(1, 4)), int(rng.integers(1, 4))
        each = int(rng.integers(k, width * k + 1))
        slots = np.concatenate([start(rng, each, width, k) + n * each for n in range(nodes)])
        home = np.repeat(np.arange(nodes), each)
        w = rng.lognormal(0, 1, (nodes * each, 2))
        best = slots.copy()
        anneal(w, slots.copy(), home, width, min(width, width * k - each + 1), False, 0.0, 0, 5000, 5000, 0.1, 0.001, rng, best)
        assert complete(best, nodes * each)
        assert distinct(best)
        assert (home[best] == np.repeat(np.arange(nodes), width)[:, None]).all(), seed


# Groups to nodes.


def test_groups_are_assigned_as_enumeration_would() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        groups, nodes, scenarios, layers = int(rng.integers(1, 6)), int(rng.integers(1, 4)), int(rng.integers(1, 3)), 2
        room = -(-groups // nodes) + int(rng.integers(0, 2))
        data = {"devices": nodes, "devices_per_node": 1, "slots_per_device": room, "n_groups": groups, "group_limited": True, "distinct": False}
        instance = ExpertPlacement(load=np.ones((scenarios, layers, groups)), **data)
        load = rng.lognormal(0, 1, (scenarios, layers, groups)) * (rng.random((scenarios, layers, groups)) < 0.8)
        found, node = assign_groups(load, instance)
        for layer in range(layers):
            # Every node has slots, so it must have a group.
            kept = [at for at in itertools.product(range(nodes), repeat=groups) if max(map(at.count, at)) <= room and len(set(at)) == nodes]
            if not kept:
                assert found[layer] == np.inf, seed
                continue
            worst = [max(load[s, layer, np.array(at) == n].sum() for s in range(scenarios) for n in range(nodes)) for at in kept]
            assert found[layer] == pytest.approx(min(worst), rel=1e-12, abs=1e-15), seed
            assert found[layer] == pytest.approx(worst[kept.index(tuple(node[layer].tolist()))], rel=1e-12, abs=1e-15), seed


def test_many_groups_are_bounded_and_find_room() -> None:
    # More groups than are enumerated: no less than the mean node and the heaviest group, and every group has a place.
    rng = np.random.default_rng(0)
    data = {"devices": 4, "devices_per_node": 1, "slots_per_device": 10, "n_groups": 40, "group_limited": True}
    instance = ExpertPlacement(load=np.ones((2, 3, 40)), **data)
    load = rng.lognormal(0, 1, (2, 3, 40))
    found, node = assign_groups(load, instance)
    assert (found >= load.sum(axis=2).max(axis=0) / 4 * (1 - 1e-12)).all()
    assert all(sorted(np.bincount(row, minlength=4).tolist()) == [10] * 4 for row in node)
    each = [max(load[s, layer, node[layer] == n].sum() for s in range(2) for n in range(4)) for layer in range(3)]
    assert (found <= np.array(each) * (1 + 1e-9)).all()


# Chains of layers without spare slots.


def chained(seed: int) -> tuple[ExpertPlacement, Any]:
    rng = np.random.default_rng(seed)
    devices, k, layers = int(rng.integers(2, 5)), int(rng.integers(1, 4)), int(rng.integers(2, 6))
    hops = {"same_node": float(rng.choice([1.0, 0.3])), "other_node": float(rng.choice([1.0, 2.5]))}
    instance = ExpertPlacement(
        **with_traffic(seed, layers, devices * k, devices, hop_cost=hops, devices_per_node=1 if devices == 3 else devices // 2)
    )
    return instance, np.array([rng.permutation(np.arange(devices * k) % devices) for _ in range(layers)])


def paid(instance: ExpertPlacement, place: Any) -> float:
    """What `evaluate` says all boundaries pay."""
    return float(boundary_traffic(instance, np.argsort(place, axis=1, kind="stable")).sum())


def test_chains_are_counted_right_and_stay_even() -> None:
    for seed in range(60):
        instance, place = chained(seed)
        assert instance.transition is not None
        p, hop, rng = np.ascontiguousarray(instance.transition), instance.hop(), np.random.default_rng(seed)
        now = paid(instance, place)
        assert total(p, hop, place) == pytest.approx(now, rel=1e-12)
        settled = settle(p, hop, place)
        best, gained = place.copy(), np.zeros(2)
        first, last = sorted(rng.choice(instance.layers + 1, 2, replace=False).tolist())
        moved, tables = place.copy(), costs(p, hop, place)
        for begin in (0, 1500):  # in two runs, one going on where the other ended
            anneal_chain(p, hop, moved, tables, first, last, begin, begin + 1500, 3000, 0.1, 0.001, rng, best, gained)
        gain = float(gained[1])
        assert paid(instance, moved) - now == pytest.approx(gained[0], abs=1e-9), seed
        assert paid(instance, best) - now == pytest.approx(gain, abs=1e-9), seed
        assert gain <= 0
        assert (best[:first] == place[:first]).all()
        assert (best[last:] == place[last:]).all()
        assert paid(instance, settled) <= now + 1e-12
        for each in (best, settled, relabel(p, hop, place)):
            counts = [np.bincount(row, minlength=instance.devices).tolist() for row in each]
            assert counts == [[instance.slots_per_device] * instance.devices] * instance.layers, seed


def test_relabelling_two_layers_is_exact() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        devices = int(rng.integers(2, 5))
        instance = ExpertPlacement(**with_traffic(seed, 2, devices * 2, devices))
        assert instance.transition is not None
        place = np.array([rng.permutation(np.arange(devices * 2) % devices) for _ in range(2)])
        best = min(paid(instance, np.array([place[0], np.array(names)[place[1]]])) for names in itertools.permutations(range(devices)))
        assert paid(instance, relabel(np.ascontiguousarray(instance.transition), instance.hop(), place)) == pytest.approx(best, rel=1e-12), seed


def test_traffic_alone_is_solved() -> None:
    optimal = 0
    for seed in range(12):
        experts, devices = ((4, 2), (6, 2), (6, 3), (4, 4))[seed % 4]
        data = with_traffic(seed, 3, experts, devices)
        result = solved(ExpertPlacement(**data), seed=seed, time_limit_s=10)
        assert result.objective == pytest.approx(Oracle(data).best(), rel=1e-9), seed
        optimal += result.certified_gap <= 1e-6
    assert optimal == 12


def test_bounds_are_below_random_chains_too_large_to_enumerate() -> None:
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.full(16 * 16, 0.05), 3).reshape(3, 16, 16).tolist()
    data = with_traffic(0, 4, 16, 4, transition=table, devices_per_node=2, hop_cost={"same_node": 0.5, "other_node": 2.0})
    instance = ExpertPlacement(**data)
    lower = max(made(instance, method).value for method in ("b_matching", "chain_sdp"))
    assert lower > 0
    for _ in range(100):
        assert paid(instance, np.array([rng.permutation(np.arange(16) % 4) for _ in range(4)])) / 3 >= lower


# Balance.


def test_one_load_vector_reaches_its_floor() -> None:
    for distinct_only in (True, False):
        load = np.random.default_rng(1).lognormal(0, 1, (1, 4, 64))
        instance = ExpertPlacement(load=load, devices=8, slots_per_device=9, distinct=distinct_only)
        result = solved(instance, seed=1)
        assert isinstance(result.plan, ExpertPlan)
        floor = balance_layers(instance)
        reached = layer_imbalance(instance, result.plan)
        assert (reached >= floor * (1 - 1e-12)).all()
        assert (reached <= floor * 1.002).all()
        assert not result.evaluation.violations  # type: ignore[union-attr]
        assert result.details["layers"]["imbalance"] == pytest.approx(reached.tolist(), rel=1e-12)


def test_scenarios_and_groups_keep_the_rules() -> None:
    rng = np.random.default_rng(2)
    for robust, grouped in itertools.product(("worst", "mean"), (False, True)):
        data: dict[str, Any] = {"load": rng.lognormal(0, 1, (3, 3, 24)), "devices": 4, "devices_per_node": 2, "slots_per_device": 8, "robust": robust}
        instance = ExpertPlacement(**data, n_groups=4, group_limited=grouped)
        result = solved(instance, seed=2, time_limit_s=5)
        assert isinstance(result.plan, ExpertPlan)
        evaluation = evaluate(instance, result.plan)
        assert evaluation.feasible
        assert result.certified_bound <= evaluation.objective <= result.certified_bound * 1.4
        # No worse than what the packing alone finds for the merged load.
        merged = normalised_load(instance).max(axis=0) if robust == "worst" else normalised_load(instance).mean(axis=0)
        for layer in range(3 if not grouped else 0):
            count, slots = np.zeros(24, dtype=np.int64), np.full((4, 8), -1, dtype=np.int64)
            replicate(merged[layer], 32, 4, count)
            assert pack(merged[layer], count, slots, True)
            even_out(merged[layer], count, slots, True, 1.0, 1000)
            alone = instance.replace(load=instance.load[:, layer : layer + 1])
            found = plan_of(alone, result.plan.slot_expert[layer : layer + 1])
            assert layer_imbalance(alone, found)[0] <= layer_imbalance(alone, plan_of(alone, slots.reshape(1, -1)))[0] * (1 + 1e-9)


def test_balance_alone_is_solved_when_tiny() -> None:
    missed = 0
    for seed in range(60):
        data = tiny(seed, 150) | {"weights": {"balance": 1.0}, "max_moves": None, "transition": None, "split": "equal"}
        best = Oracle(data).best()
        result = solved(ExpertPlacement(**data), seed=seed, time_limit_s=5)
        assert (result.plan is None) == math.isinf(best), seed
        missed += result.objective > best * (1 + 1e-6)
    assert missed <= 3


@pytest.mark.parametrize(
    ("load", "devices", "optimum"),
    [
        # Groups of 0 and of the same load cost a node nothing more: they must not leave another node empty.
        ([2.0] * 24 + [0.0] * 24, 4, 2.0),
        ([5.0] * 24 + [0.5] * 48, 6, 2.5),
    ],
)
def test_every_node_gets_a_group(load: list[float], devices: int, optimum: float) -> None:
    # Groups of 24 experts; two fit a node of two devices of 24 slots. The heaviest group lies on two devices, so each carries half of it.
    data: dict[str, Any] = {"load": [[load]], "devices": devices, "devices_per_node": 2, "slots_per_device": 24}
    result = solved(ExpertPlacement(**data, n_groups=len(load) // 24, group_limited=True), time_limit_s=5)
    assert result.objective == pytest.approx(optimum)


def test_a_scenario_without_load_does_not_stop_the_search() -> None:
    # The empty scenario adds 1 to the mean over scenarios whatever the placement, so the best placement is the one without it.
    load = np.random.default_rng(0).lognormal(0, 1, (1, 1, 24))
    load = np.concatenate([load, np.roll(load, 3, axis=2)])
    data: dict[str, Any] = {"devices": 4, "slots_per_device": 7, "robust": "mean"}
    two = ExpertPlacement(load=load, **data)
    three = ExpertPlacement(load=np.concatenate([load, np.zeros((1, 1, 24))]), **data)
    alone = solved(two, seed=1).objective
    assert solved(three, seed=1).objective == pytest.approx((2 * alone + 1) / 3, abs=1e-3)


@pytest.mark.parametrize("preset", ["toy-moves", "toy-traffic", "toy-optimal-split", "toy-robust"])
def test_layers_are_reported_as_the_plan_has_them(preset: str) -> None:
    result = solved(make(preset, np.random.default_rng(0), {}), time_limit_s=5)
    assert result.evaluation is not None
    layers = result.details["layers"]
    value, floor = np.array(layers["imbalance"]), np.array(layers["bound"])
    assert value.mean() == pytest.approx(result.evaluation.parts["balance"])
    assert (floor <= value * (1 + 1e-9)).all()
    assert layers["worst_gap"] == pytest.approx(((value - floor) / value).max(), abs=1e-12)
