"""Request packing: `evaluate` against the definition and by hand, plans that break rules or do not fit, replays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headroom.formulations.request_packing import (
    BinPlan,
    StagedPlan,
    bin_loads,
    bin_plan,
    evaluate,
    objective_of,
    plan_type,
    replay,
    staged_plan,
)
from headroom.formulations.types import Plan
from headroom.instances.errors import InputError
from headroom.instances.request_packing import MOST_REQUESTS, MOST_TOKENS, RequestPacking
from tests.oracles.request_packing import Oracle
from tests.request_packing_cases import bins, staged, tiny, tiny_bins, tiny_staged

Stages = list[tuple[list[tuple[int, int]], int]]


def error_of(*args: Any, **fields: Any) -> str:
    function, *rest = args
    with pytest.raises(InputError) as caught:
        function(*rest, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# `evaluate` and the oracle, written apart from each other.


def test_evaluate_says_what_the_definition_says_of_bins() -> None:
    feasible = broken = 0
    for seed in range(240):
        data, rng = tiny_bins(seed), np.random.default_rng(seed)
        instance, oracle = RequestPacking(**data), Oracle(data)
        best = oracle.best()
        for used in range(1, 5):
            of = rng.integers(0, used, instance.count)
            found = evaluate(instance, BinPlan(bin=of))
            loads = {b: oracle.load(np.flatnonzero(of == b).tolist()) for b in set(of.tolist())}
            known, load = bin_loads(instance, BinPlan(bin=of))
            assert dict(zip(known.tolist(), load.tolist(), strict=True)) == loads, seed
            assert {violation.index: violation.amount for violation in found.violations} == {
                f"bin {b}": load - instance.capacity_tokens for b, load in loads.items() if load > (instance.capacity_tokens or 0)
            }, seed
            assert found.objective == len(loads)
            assert found.parts == {"bins": found.objective}
            assert not found.feasible or found.objective >= best, seed
            feasible, broken = feasible + found.feasible, broken + (not found.feasible)
    assert min(feasible, broken) >= 100


def free_for_all(data: dict[str, Any], rng: np.random.Generator) -> tuple[Stages, float]:
    """Stages at random that keep all rules, and their seconds by adding up."""
    oracle = Oracle(data)
    waiting, running, stages, seconds = list(rng.permutation(oracle.count)), dict[int, int](), Stages(), 0.0
    while waiting:
        free = [slot for slot in range(data["slots"]) if slot not in running]
        chosen: list[int] = []
        for j in waiting[: int(rng.integers(0, len(free) + 1))]:
            if oracle.prefill_s((*chosen, int(j))) < math.inf:
                chosen.append(int(j))
        admit = list(zip(chosen, rng.permutation(free).tolist(), strict=False))
        waiting = [j for j in waiting if j not in chosen]
        running |= {slot: oracle.output[j] for j, slot in admit}
        steps = int(rng.integers(0, max(running.values(), default=0) + 2)) if waiting else max(running.values())
        running = {slot: left - steps for slot, left in running.items() if left > steps}
        stages.append((admit, steps))
        seconds += (oracle.prefill_s(tuple(chosen)) if chosen else 0.0) + steps * oracle.delta
    return stages, seconds


def test_evaluate_says_what_the_definition_says_of_stages() -> None:
    for seed in range(200):
        data = tiny_staged(seed)
        stages, seconds = free_for_all(data, np.random.default_rng(seed))
        found = evaluate(RequestPacking(**data), staged_plan(stages))
        assert found.feasible, (seed, found.violations)
        assert found.objective == pytest.approx(seconds, rel=1e-12)
        assert math.fsum(found.parts.values()) == pytest.approx(found.objective, rel=1e-12)
        assert found.objective >= Oracle(data).best() * (1 - 1e-12), seed


def test_stopping_at_completions_is_enough() -> None:
    # The oracle's argument, by enumeration: decoding may stop at any step.
    for seed in range(200):
        oracle = Oracle(tiny_staged(seed, most_requests=5, most_steps=5))
        assert oracle.stages() == pytest.approx(oracle.stages(every_step=True), rel=1e-12)


def test_without_prefill_stages_are_parallel_machines() -> None:
    for seed in range(0, 300, 5):
        oracle = Oracle(tiny_staged(seed))
        assert not oracle.levels
        assert oracle.stages() == pytest.approx(oracle.cmax(), rel=1e-12)


# Bins by hand.


def test_a_bin_takes_the_sizes_of_its_requests() -> None:
    # 3 + 4 tokens and 2 + 1 in bin 0: 10 of 10; 6 in bin 7.
    data = bins([3, 2, 6], 10)
    data["requests"]["output_tokens"] = [4, 1, 0]
    instance = RequestPacking(**data)
    found = evaluate(instance, BinPlan(bin=np.array([0, 0, 7])))
    assert (found.objective, found.parts, found.feasible) == (2.0, {"bins": 2.0}, True)
    # All in one: 16.
    found = evaluate(instance, BinPlan(bin=np.array([7, 7, 7])))
    assert [str(violation) for violation in found.violations] == ["capacity_tokens[bin 7] exceeded by 6 (limit 10)"]
    assert found.objective == 1.0


def test_a_group_takes_its_overhead_once_in_each_bin() -> None:
    # Group 0 takes 4, group 1 takes 1, the last request has none. Bin 0: 4 + 2 + 3 = 9. Bin 1: 4 + 1 (group 0), 1 + 2 (group 1), 2 alone: 10.
    instance = RequestPacking(**bins([2, 3, 1, 2, 2], 10, group=[0, 0, 0, 1, -1], group_overhead_tokens=[4, 1]))
    used, load = bin_loads(instance, BinPlan(bin=np.array([0, 0, 1, 1, 1])))
    assert (used.tolist(), load.tolist()) == ([0, 1], [9, 10])
    # One number for both groups, none for the one alone: 4 + 5, and 4 + 1 + 4 + 2 + 2.
    same = instance.replace(group_overhead_tokens=4)
    assert bin_loads(same, BinPlan(bin=np.array([0, 0, 1, 1, 1])))[1].tolist() == [9, 13]
    assert evaluate(same, BinPlan(bin=np.array([0, 0, 1, 1, 1]))).violations[0].amount == 3.0


def test_padding_rounds_up_the_sum_of_a_group_and_each_request_alone() -> None:
    # Multiples of 4. Group 0: 3 + 3 = 6, 8 padded; the two alone: 3 to 4 each. In all 16.
    instance = RequestPacking(**bins([3, 3, 3, 3], 16, group=[0, 0, -1, -1], padding_multiple=4))
    assert bin_loads(instance, BinPlan(bin=np.zeros(4, np.int64)))[1].tolist() == [16]
    # Without groups each is padded: 4 · 4. In one group: 12, a multiple already.
    assert bin_loads(instance.replace(requests={**bins([3] * 4, 16)["requests"]}), BinPlan(bin=np.zeros(4, np.int64)))[1].tolist() == [16]
    whole = RequestPacking(**bins([3, 3, 3, 3], 16, group=[0] * 4, padding_multiple=4))
    assert bin_loads(whole, BinPlan(bin=np.zeros(4, np.int64)))[1].tolist() == [12]
    # Overheads are not padded: 8 + 5.
    with_overhead = RequestPacking(**bins([3, 3], 16, group=[0, 0], padding_multiple=4, group_overhead_tokens=5))
    assert bin_loads(with_overhead, BinPlan(bin=np.zeros(2, np.int64)))[1].tolist() == [13]


def test_overheads_of_groups_that_nobody_is_in_do_not_matter() -> None:
    short = RequestPacking(**bins([2, 3], 10, group=[0, -1], group_overhead_tokens=[4]))
    long = RequestPacking(**bins([2, 3], 10, group=[0, -1], group_overhead_tokens=[4, 9, 9]))
    assert short.overhead.tolist() == long.overhead.tolist() == [4, 0]
    assert short.group_of.tolist() == [0, 1]
    assert short != long


def test_the_plain_case_is_recognised() -> None:
    assert RequestPacking(**bins([2, 3], 10)).plain
    assert RequestPacking(**bins([2, 3], 10, padding_multiple=4)).plain
    assert RequestPacking(**bins([2, 3], 10, padding_multiple=4)).padded.tolist() == [4, 4]
    assert RequestPacking(**bins([2, 3], 10, group=[0, 0])).plain  # a group that shares nothing
    assert RequestPacking(**bins([2, 3], 10, group=[-1, -1], group_overhead_tokens=5)).plain
    assert not RequestPacking(**bins([2, 3], 10, group=[0, 0], group_overhead_tokens=5)).plain
    assert not RequestPacking(**bins([2, 3], 10, group=[0, 0], padding_multiple=2)).plain
    assert RequestPacking(**bins([2, 3], 10, group=[0, -1], group_overhead_tokens=5, padding_multiple=2)).padded.tolist() == [7, 4]


# Stages by hand: prefills of up to 10 tokens take 1 s, of up to 30 tokens 2 s; a decode step takes 0.5 s.

LEVELS: list[tuple[int | None, float]] = [(10, 1.0), (30, 2.0)]


def three(**changes: Any) -> RequestPacking:
    """Prompts of 10, 12 and 0 tokens, outputs of 4, 2 and 3, two slots."""
    return RequestPacking(**staged([10, 12, 0], [4, 2, 3], 2, LEVELS, decode_step_s=0.5, **changes))


def test_seconds_of_a_run() -> None:
    # Requests 0 and 1: 22 tokens, 2 s; two steps, 1 s: request 1 is done. Request 2 in its slot: 0 tokens, but a prefill: 1 s; three steps, 1.5 s.
    instance, plan = three(), staged_plan([([(0, 0), (1, 1)], 2), ([(2, 1)], 3)])
    found = evaluate(instance, plan)
    assert found.feasible
    assert found.objective == pytest.approx(5.5)
    assert found.parts == pytest.approx({"prefill_s": 3.0, "decode_s": 2.5})
    run = replay(instance, plan)
    assert run.start_s.tolist() == [0.0, 3.0]
    assert run.prefill_s.tolist() == [2.0, 1.0]
    assert run.prompt_tokens.tolist() == [22, 0]
    assert (run.decode_steps.tolist(), run.before.tolist(), run.total_steps) == ([2, 3], [0, 2], 5)
    assert (run.stage.tolist(), run.slot.tolist(), run.finish_step.tolist()) == ([0, 0, 1], [0, 1, 1], [4, 2, 5])
    # The best: the long one and the one without a prompt first, 1 s; three steps; the other one, 2 s; two steps: 5.5 s as well.
    assert evaluate(instance, staged_plan([([(0, 0), (2, 1)], 3), ([(1, 1)], 2)])).objective == pytest.approx(5.5)


def test_stages_without_admissions_or_steps() -> None:
    # A stage that admits nothing takes no prefill; one without steps admits more at the same moment: 1 s + 2 s, two steps, 1 s, three steps.
    found = evaluate(three(), staged_plan([([], 0), ([(0, 0)], 0), ([(1, 1)], 1), ([], 1), ([(2, 1)], 3)]))
    assert found.feasible
    assert found.objective == pytest.approx(1 + 2 + 0.5 + 0.5 + 1 + 1.5)


def test_without_levels_prefill_takes_no_time() -> None:
    instance = RequestPacking(**staged([10**6, 5], [2, 3], 1, [], decode_step_s=0.5))
    assert evaluate(instance, staged_plan([([(0, 0)], 2), ([(1, 0)], 3)])).objective == pytest.approx(2.5)


def test_the_last_level_may_take_any_prompt() -> None:
    instance = RequestPacking(**staged([10**9, 5], [2, 3], 2, [(10, 1.0), (None, 7.0)]))
    assert evaluate(instance, staged_plan([([(0, 0), (1, 1)], 3)])).objective == pytest.approx(10.0)
    assert instance.prefill_s(np.array([0, 10, 11, MOST_TOKENS * MOST_REQUESTS])).tolist() == [1.0, 1.0, 7.0, 7.0]


def test_levels_take_up_to_their_tokens() -> None:
    assert three().prefill_s(np.array([0, 9, 10, 11, 30, 31])).tolist() == [1.0, 1.0, 1.0, 2.0, 2.0, math.inf]


BROKEN: list[tuple[Stages, list[str]]] = [
    # Request 0 still decodes for two steps when request 2 wants its slot.
    ([([(0, 0), (1, 1)], 2), ([(2, 0)], 3)], ["slot[slot 0, stage 1, request 2] exceeded by 2 (limit 0)"]),
    # Both in one slot at once.
    ([([(0, 0), (1, 0), (2, 1)], 4)], ["slot[slot 0, stage 0, request 1] exceeded by 4 (limit 0)"]),
    # Request 0 needs 4 steps and gets 3; request 2 is never admitted, and misses all three.
    ([([(0, 0), (1, 1)], 3)], ["min_output_tokens[request 0] falls short by 1 (limit 4)", "min_output_tokens[request 2] falls short by 3 (limit 3)"]),
    # Nothing is done at all.
    ([], [f"min_output_tokens[request {j}] falls short by {o} (limit {o})" for j, o in enumerate((4, 2, 3))]),
]


@pytest.mark.parametrize(("stages", "messages"), BROKEN)
def test_broken_rules_are_named(stages: Stages, messages: list[str]) -> None:
    assert [str(violation) for violation in evaluate(three(), staged_plan(stages)).violations] == messages


def test_prompts_above_the_last_level_are_named_and_take_no_time() -> None:
    # 22 tokens where at most 20 can be prefilled; the objective counts the other prefill and the steps only.
    instance = three(prefill_levels=[{"max_tokens": 10, "time_s": 1.0}, {"max_tokens": 20, "time_s": 2.0}])
    found = evaluate(instance, staged_plan([([(0, 0), (1, 1)], 2), ([(2, 1)], 3)]))
    assert [str(violation) for violation in found.violations] == ["prefill_tokens[stage 0] exceeded by 2 (limit 20)"]
    assert found.parts == pytest.approx({"prefill_s": 1.0, "decode_s": 2.5})
    run = replay(instance, staged_plan([([(0, 0), (1, 1)], 2), ([(2, 1)], 3)]))
    assert (run.start_s.tolist(), run.prefill_s.tolist()) == ([0.0, math.inf], [math.inf, 1.0])


def test_a_slot_is_taken_until_the_last_token() -> None:
    # A slot free for the next stage only: request 0 (4 steps) ends with stage 1, so request 2 may have its slot in stage 2, not in stage 1.
    instance = RequestPacking(**staged([1, 1], [4, 1], 1, LEVELS))
    assert evaluate(instance, staged_plan([([(0, 0)], 3), ([], 1), ([(1, 0)], 1)])).feasible
    late = evaluate(instance, staged_plan([([(0, 0)], 3), ([(1, 0)], 1)]))
    assert [str(violation) for violation in late.violations] == ["slot[slot 0, stage 1, request 1] exceeded by 1 (limit 0)"]


def test_violations_beyond_twenty_are_added_up() -> None:
    found = evaluate(RequestPacking(**bins([7] * 50, 10)), BinPlan(bin=np.repeat(np.arange(25), 2))).violations
    assert len(found) == 21
    assert (found[0].constraint, found[0].index, found[0].amount, found[0].limit) == ("capacity_tokens", "bin 0", 4.0, 10.0)
    assert (found[-1].index, found[-1].amount) == ("5 more", 20.0)


# Plans.


def test_plans_are_numbered_by_first_request() -> None:
    assert bin_plan([5, 2, 5, 9, 2]).bin.tolist() == [0, 1, 0, 2, 1]
    assert bin_plan(np.array([7])).bin.tolist() == [0]


def test_a_plans_type_follows_from_its_fields() -> None:
    assert plan_type({"bin": [0]}) is BinPlan
    assert plan_type({"stages": []}) is StagedPlan
    assert plan_type(None) is BinPlan
    assert (objective_of(RequestPacking(**bins([1], 1))), objective_of(three())) == ("bins", "makespan")


PLANS: list[tuple[RequestPacking, Plan, str]] = [
    (RequestPacking(**bins([1, 2], 3)), BinPlan(bin=np.array([0])), "plan: bin must have 2 entries, one for each request, got 1"),
    (RequestPacking(**bins([1, 2], 3)), staged_plan([]), "plan must have bin because the objective is 'bins', got a StagedPlan"),
    (three(), bin_plan([0, 1, 2]), "plan must have stages because the objective is 'makespan', got a BinPlan"),
    (three(), staged_plan([([(0, 0)], 1), ([(3, 0)], 1)]), "plan: stages[1].admit must name a request from 0 to 2, got 3"),
    (three(), staged_plan([([], 1), ([(0, 2)], 1)]), "plan: stages[1].admit must name a slot from 0 to 1, got 2"),
    (three(), staged_plan([([(1, 0)], 9), ([(1, 0)], 9)]), "plan: stages must admit a request once, got request 1 twice, first in stage 0"),
    (three(), staged_plan([([(1, 0)], 2**60), ([(1, 0)], 2**60)]), "plan: stages must have at most 1152921504606846976 decode steps in all, got 2.3"),
]


@pytest.mark.parametrize(("instance", "plan", "message"), PLANS, ids=[message[:45] for _, _, message in PLANS])
def test_plans_that_do_not_fit_the_instance(instance: RequestPacking, plan: Plan, message: str) -> None:
    assert error_of(evaluate, instance, plan).startswith(message)


@pytest.mark.parametrize(
    ("build", "fields", "message"),
    [
        (BinPlan, {"bin": [0, -1]}, "plan: bin[1] must be a whole number from 0 to"),
        (BinPlan, {"bin": [0.5]}, "plan: bin[0] must be a whole number, got 0.5"),
        (BinPlan, {"bin": [0], "bins": 1}, "plan: bins is an unknown field"),
        (BinPlan, {}, "plan: bin is missing"),
        (StagedPlan, {"stages": [{"admit": [[0, 0]], "decode_steps": -1}]}, "plan: stages[0].decode_steps must be"),
        (StagedPlan, {"stages": [{"admit": [[0, -1]], "decode_steps": 1}]}, "plan: stages[].admit[0][1] must be a whole number from 0 to"),
        (StagedPlan, {"stages": [{"admit": [0, 0], "decode_steps": 1}]}, "plan: stages[].admit[0] must be a list"),
        (StagedPlan, {"stages": [{"decode_steps": 1}]}, "plan: stages[0].admit is missing"),
        (StagedPlan, {"stages": 3}, "plan: stages must be a list"),
    ],
)
def test_plans_refuse_what_is_none(build: type[Plan], fields: dict[str, Any], message: str) -> None:
    assert error_of(build, **fields).startswith(message)


@pytest.mark.parametrize("rows", [[[[0, 0, 0]]], [[[0, 0]], [[1, 1, 1]]], [[], [[1]]]])
def test_admissions_are_pairs(rows: list[Any]) -> None:
    plan = StagedPlan(stages=[{"admit": admit, "decode_steps": 9} for admit in rows])
    message = error_of(evaluate, three(), plan)
    assert message.startswith("plan: stages[")
    assert message.endswith(f".admit must hold pairs of a request and a slot, got rows of {len(rows[-1][0])}")


def test_stages_that_admit_nothing_may_come_first_in_json() -> None:
    stages = [{"admit": [], "decode_steps": 0}, {"admit": [[0, 0], [1, 1]], "decode_steps": 2}, {"admit": [[2, 1]], "decode_steps": 3}]
    assert evaluate(three(), StagedPlan(stages=stages)).objective == pytest.approx(5.5)
    assert not evaluate(three(), StagedPlan(stages=[{"admit": [], "decode_steps": 5}])).feasible


# Rules that hold for any instance.


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 100_000))
def test_plans_survive_json(seed: int) -> None:
    data, rng = tiny(seed), np.random.default_rng(seed)
    instance = RequestPacking(**data)
    made: Plan = staged_plan(free_for_all(data, rng)[0]) if data["objective"] == "makespan" else bin_plan(rng.integers(0, 3, instance.count))
    again = plan_type(made.document())(**made.document())
    assert again == made
    assert evaluate(instance, again) == evaluate(instance, made)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 100_000), order=st.randoms(use_true_random=False))
def test_the_order_of_requests_does_not_matter(seed: int, order: Any) -> None:
    data = tiny_bins(seed)
    rank = list(range(len(data["requests"]["prompt_tokens"])))
    order.shuffle(rank)
    changed = data | {"requests": {name: [values[j] for j in rank] for name, values in data["requests"].items()}}
    of = np.random.default_rng(seed).integers(0, 3, len(rank))
    one, other = evaluate(RequestPacking(**data), BinPlan(bin=of)), evaluate(RequestPacking(**changed), BinPlan(bin=of[rank]))
    assert one == other
    assert Oracle(changed).best() == Oracle(data).best()
