"""Online rebalancing: no look-ahead, what a replay measures, cases followed by hand."""

from __future__ import annotations

import itertools
import json
from functools import partial
from typing import Any

import numpy as np
import pytest

from headroom.formulations.expert_placement import ExpertPlan, evaluate
from headroom.formulations.types import Outcome
from headroom.heuristics.expert_placement import best_share, linear_slots
from headroom.heuristics.expert_placement_online import MakePolicy, Periodic, Static, Threshold, decisions, deployment_of, replay, replay_trace
from headroom.instances.expert_placement import ExpertPlacement
from tests.expert_placement_cases import tiny

VARIANTS: dict[str, MakePolicy] = {
    "static": Static,
    "periodic": Periodic,
    "periodic 2": partial(Periodic, every_steps=2),
    "periodic 3 of 1": partial(Periodic, every_steps=3, window_steps=1),
    "threshold": Threshold,
    "threshold 1": partial(Threshold, threshold=1.0, window_steps=2),
}


def over_time(seed: int, steps: int = 12) -> ExpertPlacement:
    """A tiny instance of any kind with loads that drift over some steps."""
    data, rng = tiny(seed), np.random.default_rng([8, seed])
    shape = np.shape(data["load"])[1:]
    drift = np.cumsum(rng.normal(0, 0.6, (steps, *shape)), axis=0)
    return ExpertPlacement(**data, load_trace=np.exp(drift))


def two_by_two(trace: list[list[float]], **options: Any) -> ExpertPlacement:
    """Four experts of one layer on two devices of two slots, loads [step][expert]; device 0 begins with experts 0 and 1."""
    data: dict[str, Any] = {"load": [[trace[-1]]], "devices": 2, "slots_per_device": 2, "load_trace": [[row] for row in trace]}
    return ExpertPlacement(**(data | options))


def outcome(instance: ExpertPlacement, policy: MakePolicy) -> Outcome:
    found = replay(instance, policy, np.random.default_rng(0))
    assert isinstance(found, Outcome)
    assert found.notes
    json.dumps(found.details)
    return found


# No policy sees the future.


@pytest.mark.parametrize("name", VARIANTS)
def test_no_policy_looks_ahead(name: str) -> None:
    moved = 0
    for seed in range(40):
        instance = over_time(seed)
        deployment = deployment_of(instance)
        if deployment is None:
            continue
        assert instance.load_trace is not None
        whole = [slots.tolist() for slots in decisions(instance, VARIANTS[name](deployment))]
        assert len(whole) == 12
        moved += len({str(slots) for slots in whole}) > 1
        for steps in (1, 2, 3, 5, 8, 11):
            cut = instance.replace(load_trace=instance.load_trace[:steps])
            assert [slots.tolist() for slots in decisions(cut, VARIANTS[name](deployment))] == whole[:steps], (seed, steps)
            # Nor do the loads of the present step matter: they arrive when it is over.
            other = np.array(instance.load_trace[:steps])
            other[-1] = other[-1] * 3 + 1
            cut = instance.replace(load_trace=other)
            assert [slots.tolist() for slots in decisions(cut, VARIANTS[name](deployment))] == whole[:steps], (seed, steps)
        assert VARIANTS[name](deployment).lookahead_steps == 0
    assert (moved >= 10) == (name != "static")


def test_a_deployment_holds_no_load() -> None:
    # The same deployment for other loads and another trace.
    instance = over_time(7)
    other = instance.replace(load=np.ones(instance.load.shape), load_trace=None)
    first, second = deployment_of(instance), deployment_of(other)
    assert first is not None
    assert second is not None
    assert all(np.array_equal(a, b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))


# By hand.


def test_periodic_by_hand() -> None:
    # Experts 0 and 1 are busy all the time. Every 2 steps, so at step 2: EPLB pairs a busy expert with an idle one, which moves one to each device.
    instance = two_by_two([[3.0, 3.0, 1.0, 1.0]] * 4, weights={"moves": 1.0}, current_slot_expert=[[0, 1, 2, 3]])
    found = replay_trace(instance, partial(Periodic, every_steps=2))
    assert [slots.tolist() for slots in found.placements[:2]] == [[[0, 1, 2, 3]]] * 2
    assert found.imbalance.tolist() == pytest.approx([1.5, 1.5, 1.0, 1.0])
    # EPLB sorts 0 1 2 3 and gives device 0 experts 0 and 2, device 1 experts 1 and 3: each fetches one.
    assert [slots.tolist() for slots in found.placements[2:]] == [[[0, 2, 1, 3]]] * 2
    assert found.moves.tolist() == [0, 0, 2, 0]
    assert found.rebalances == 1
    # Balance 1.25 on average; 2 moves over 4 steps of 4 slots.
    assert found.objective == pytest.approx(1.25 + 0.5 / 4)


def test_threshold_by_hand() -> None:
    # Imbalance 1 for two steps, then experts 0 and 1 become busy (1.5 > 1.25), seen after step 2: step 3 is rebalanced, on the last step alone.
    trace = [[1.0, 1.0, 1.0, 1.0]] * 2 + [[3.0, 3.0, 1.0, 1.0]] * 3
    found = replay_trace(two_by_two(trace), partial(Threshold, window_steps=1))
    assert found.imbalance.tolist() == pytest.approx([1.0, 1.0, 1.5, 1.0, 1.0])
    assert found.moves.tolist() == [0, 0, 0, 2, 0]
    # A threshold of 1.6 is never exceeded.
    assert replay_trace(two_by_two(trace), partial(Threshold, threshold=1.6)).rebalances == 0


def test_the_window_is_the_past_steps_only() -> None:
    # At step 4 a window of 4 steps still sees experts 0 and 1 busy; one of 1 step sees 0 and 2 busy.
    trace = [[9.0, 9.0, 1.0, 1.0]] * 3 + [[9.0, 1.0, 9.0, 1.0]] * 2
    four = replay_trace(two_by_two(trace), partial(Periodic, every_steps=4))
    one = replay_trace(two_by_two(trace), partial(Periodic, every_steps=4, window_steps=1))
    # Sums over four steps are 36 28 12 4: 0 with 3, 1 with 2. Over one step 9 1 9 1: 0 with 1.
    assert four.placements[4].tolist() == [[0, 3, 1, 2]]
    assert one.placements[4].tolist() == [[0, 1, 2, 3]]


def test_static_never_moves_and_starts_from_linear_or_what_stands() -> None:
    trace = [[3.0, 1.0, 3.0, 1.0]] * 3
    found = replay_trace(two_by_two(trace), Static)
    assert found.moves.tolist() == [0, 0, 0]
    assert found.placements[-1].tolist() == linear_slots(two_by_two(trace)).tolist()
    stands = replay_trace(two_by_two(trace, current_slot_expert=[[0, 2, 1, 3]]), Static)
    assert stands.imbalance.tolist() == pytest.approx([1.5] * 3)


def test_max_moves_goes_to_the_layers_that_gain_most() -> None:
    # Two layers begin with busy pairs; a layer's repair moves two experts, and two moves are allowed: layer 1, the more uneven, gets them.
    load = [[3.0, 3.0, 1.0, 1.0], [5.0, 5.0, 1.0, 1.0]]
    data: dict[str, Any] = {"devices": 2, "slots_per_device": 2, "current_slot_expert": [[0, 1, 2, 3]] * 2, "load_trace": [load] * 4}
    instance = ExpertPlacement(load=[load], **data, max_moves=2)
    found = replay_trace(instance, partial(Periodic, every_steps=1))
    assert found.placements[-1].tolist() == [[0, 1, 2, 3], [0, 2, 1, 3]]
    assert found.moves.tolist() == [0, 2, 0, 0]
    assert outcome(instance, Periodic).plan is not None
    assert replay_trace(instance.replace(max_moves=1), partial(Periodic, every_steps=1)).moves.sum() == 0
    assert replay_trace(instance.replace(max_moves=4), partial(Periodic, every_steps=1)).moves.sum() == 4


def test_groups_stay_on_a_node() -> None:
    rng = np.random.default_rng(0)
    instance = ExpertPlacement(
        load=rng.lognormal(0, 1, (1, 2, 16)),
        devices=4,
        devices_per_node=2,
        slots_per_device=5,
        n_groups=4,
        group_limited=True,
        load_trace=rng.lognormal(0, 1, (9, 2, 16)),
    )
    found = outcome(instance, partial(Periodic, every_steps=2))
    assert found.plan is not None
    assert evaluate(instance, found.plan).feasible
    assert replay_trace(instance, partial(Periodic, every_steps=2)).rebalances == 4


# What a replay says.


def test_the_plan_is_the_last_placement_and_the_figures_are_those_of_evaluate() -> None:
    planned = 0
    for seed in range(60):
        instance = over_time(seed)
        deployment = deployment_of(instance)
        if deployment is None:
            continue
        for policy in VARIANTS.values():
            found, measured = outcome(instance, policy), replay_trace(instance, policy)
            trace = instance.load_trace
            assert trace is not None
            if found.plan is not None:
                planned += 1
                assert isinstance(found.plan, ExpertPlan)
                assert found.plan.slot_expert.tolist() == measured.placements[-1].tolist()
                assert evaluate(instance, found.plan).feasible
            parts = []
            for t, slots in enumerate(measured.placements):
                # Each step judged by `evaluate` as an instance of its own, moving from the placement before.
                before = measured.placements[t - 1] if t else deployment.start
                step = instance.replace(load=trace[t : t + 1], load_trace=None, current_slot_expert=before, max_moves=None)
                share = best_share(step, slots) if instance.split == "optimal" else None
                parts.append(evaluate(step, ExpertPlan(slot_expert=slots, share=share)))
            assert measured.imbalance.tolist() == pytest.approx([part.parts["balance"] for part in parts])
            assert measured.moves.tolist() == pytest.approx([part.parts["moves"] * instance.layers * instance.slots for part in parts])
            assert measured.objective == pytest.approx(np.mean([part.objective for part in parts]))
            assert found.details["trace"]["objective"] == measured.objective
    assert planned >= 150


def test_a_policy_measures_what_the_replay_measures() -> None:
    for seed in range(40):
        instance = over_time(seed)
        deployment = deployment_of(instance)
        if deployment is None or instance.load_trace is None:
            continue
        measured = replay_trace(instance, Threshold)
        for slots, load, found in zip(measured.placements, instance.load_trace, measured.imbalance, strict=True):
            assert deployment.imbalance(slots, load).mean() == pytest.approx(found)


def test_a_drifting_load_makes_rebalancing_pay() -> None:
    rng = np.random.default_rng(3)
    drift = np.cumsum(rng.normal(0, 0.1, (60, 4, 64)), axis=0) + rng.normal(0, 1, (1, 4, 64))
    trace = np.exp(drift)
    instance = ExpertPlacement(load=trace[-1:], devices=8, slots_per_device=10, load_trace=trace)
    static, periodic, eager = (replay_trace(instance, policy) for policy in (Static, Periodic, partial(Periodic, every_steps=1)))
    assert eager.imbalance.mean() < periodic.imbalance.mean() < static.imbalance.mean()
    assert eager.moves.sum() > periodic.moves.sum() > 0
    assert periodic.rebalances == 5


def test_what_is_missing_is_said() -> None:
    plain = ExpertPlacement(load=np.ones((1, 1, 4)), devices=2, slots_per_device=2)
    for policy in (Static, Periodic, Threshold):
        found = outcome(plain, policy)
        assert found.plan is None
        assert "load_trace" in found.notes[0]
        assert found.details
    with pytest.raises(ValueError, match="load_trace"):
        replay_trace(plain, Static)
    unfillable = ExpertPlacement(
        load=np.ones((1, 1, 2)), devices=2, devices_per_node=1, slots_per_device=2, n_groups=1, group_limited=True, load_trace=np.ones((2, 1, 2))
    )
    assert "whole groups" in outcome(unfillable, Static).notes[0]
    # A start that breaks a rule stays the deployment's problem: the last placement is no plan, and the note says why.
    doubled = two_by_two([[1.0, 1.0, 1.0, 1.0]] * 2, slots_per_device=3, current_slot_expert=[[0, 0, 1, 2, 3, 1]])
    found = outcome(doubled, Static)
    assert found.plan is None
    assert any("holds an expert of layer 0 twice" in note for note in found.notes)


@pytest.mark.parametrize("make", [partial(Periodic, every_steps=0), partial(Periodic, window_steps=0), partial(Threshold, window_steps=0)])
def test_senseless_settings_are_refused(make: MakePolicy) -> None:
    deployment = deployment_of(two_by_two([[1.0, 1.0, 1.0, 1.0]]))
    assert deployment is not None
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        make(deployment)


def test_settings_are_in_the_details() -> None:
    instance = two_by_two([[1.0, 1.0, 1.0, 1.0]] * 2)
    settings = [outcome(instance, policy).details["trace"]["parameters"] for policy in VARIANTS.values()]
    assert settings[:3] == [{}, {"every_steps": 10, "window_steps": 10}, {"every_steps": 2, "window_steps": 2}]
    assert settings[5] == {"threshold": 1.0, "window_steps": 2}
    assert len({json.dumps(item) for item in itertools.chain(settings)}) == len(VARIANTS)
