"""Request packing: the Pyomo models, solved by HiGHS, against enumeration, and their plans through `evaluate`."""

from __future__ import annotations

import math
from typing import Any

import pyomo.environ as pyo
import pytest

from headroom.formulations.progress import Progress
from headroom.formulations.request_packing import build_model as build
from headroom.formulations.request_packing import evaluate, staged_plan
from headroom.formulations.request_packing_model import _with_slots, build_model, plan_of
from headroom.formulations.types import SolveParams
from headroom.instances.request_packing import RequestPacking
from headroom.solvers.highs import solve_mip
from headroom.solvers.standard_form import standard_form
from tests.oracles.request_packing import Oracle
from tests.request_packing_cases import bins, staged, tiny_bins, tiny_staged

CLOSE = 1e-6


def solved(data: dict[str, Any], **limits: int) -> tuple[float, float]:
    """HiGHS' objective, and that of its plan, which must be feasible; infinite when HiGHS says that there is no plan."""
    instance, params = RequestPacking(**data), SolveParams()
    model = build_model(instance, **limits)
    form = standard_form(model)
    answer = solve_mip(form, params, Progress(params))
    if answer.status == "infeasible":
        return math.inf, math.inf
    assert answer.status == "optimal"
    assert answer.x is not None
    for variable in model.component_objects(pyo.Var):
        for index, value in form.values(variable, answer.x).items():
            variable[index].set_value(value, skip_validation=True)
    found = evaluate(instance, plan_of(instance, model))
    assert found.feasible, found.violations
    return answer.objective, found.objective


def agrees(data: dict[str, Any], **limits: int) -> float:
    """The optimum by HiGHS, by its plan and by enumeration, which must be one."""
    best = Oracle(data).best()
    for value in solved(data, **limits):
        assert value == pytest.approx(best, rel=CLOSE, abs=0)
    return best


# Against enumeration.


@pytest.mark.parametrize("kind", range(6))
def test_bins_are_what_enumeration_finds(kind: int) -> None:
    found = {agrees(tiny_bins(seed)) for seed in range(kind, 90, 6)}
    assert len(found) >= 3


@pytest.mark.parametrize("kind", range(5))
def test_stages_are_what_enumeration_finds(kind: int) -> None:
    waits = 0
    for seed in range(kind, 70, 5):
        data = tiny_staged(seed, most_requests=5 if seed < 5 else 4)
        agrees(data)
        waits += data["slots"] < len(data["requests"]["prompt_tokens"])
    assert waits >= 3


def test_one_stage_is_one_stage() -> None:
    # Three requests at once, 1.7 s of prefill and 4 steps; or the first two (1 s, 2 steps), then the other (1 s, 4 steps): 5.7 s against 8 s. With
    # prefills that are dear when large, 9 s: then the other order in two stages, 1 s and no step, 1 s and 4 steps.
    three = staged([4, 4, 4], [2, 2, 4], 3, [(8, 1.0), (12, 1.7)])
    assert agrees(three) == pytest.approx(5.7)
    assert agrees(three, most_stages=1) == pytest.approx(5.7)
    dear = staged([4, 4, 4], [2, 2, 4], 3, [(8, 1.0), (12, 5.0)])
    assert agrees(dear) == pytest.approx(6.0)
    assert solved(dear, most_stages=1)[1] == pytest.approx(9.0)


def test_bins_may_be_limited_to_those_of_a_known_plan() -> None:
    # 4 + 3 + 3 twice. One bin is not enough.
    data = bins([4, 4, 3, 3, 3, 3], 10)
    assert agrees(data) == 2.0
    assert agrees(data, most_bins=2) == 2.0
    assert solved(data, most_bins=1) == (math.inf, math.inf)


def test_what_fits_nowhere_is_infeasible() -> None:
    assert agrees(bins([4, 11], 10)) == math.inf
    assert agrees(bins([4, 9], 10, group=[-1, 0], group_overhead_tokens=[2])) == math.inf
    assert agrees(bins([4, 9], 10, padding_multiple=4)) == math.inf
    assert agrees(staged([4, 11], [1, 1], 2, [(5, 1.0), (10, 2.0)])) == math.inf


def test_prompts_without_tokens_still_take_a_prefill() -> None:
    # Two slots, three requests without prompts: two prefills of the first level, 2 + 2 s, and 3 steps beside 1 + 2.
    assert agrees(staged([0, 0, 0], [1, 3, 2], 2, [(1, 2.0), (9, 5.0)])) == pytest.approx(7.0)


def test_without_levels_it_is_parallel_machines() -> None:
    # 4 + 2 and 3 + 3 steps of half a second on two slots: 6 steps, the mean.
    assert agrees(staged([5, 0, 7, 1], [3, 4, 2, 3], 2, [], decode_step_s=0.5)) == pytest.approx(3.0)


# The models as they are.


def test_names_are_those_of_the_mathematics() -> None:
    groups = build(RequestPacking(**bins([2, 3], 10, group=[0, 0], padding_multiple=2)))
    for name in ("N", "B", "G", "x", "y", "z", "w", "assigned", "holds", "in_order", "present", "padded", "capacity", "objective"):
        assert hasattr(groups, name), name
    plain = build(RequestPacking(**bins([2, 3], 10)))
    assert not hasattr(plain, "z")
    stages = build(RequestPacking(**staged([1, 2], [1, 1], 1, [(3, 1.0)])))
    for name in ("N", "K", "L", "v", "u", "m", "admitted", "long_enough", "slots", "prefill", "one_level", "paid", "objective"):
        assert hasattr(stages, name), name


def test_steps_that_are_not_whole_are_refused() -> None:
    instance = RequestPacking(**staged([1], [2], 1, [(3, 1.0)]))
    model = build_model(instance)
    model.v[0, 0, 0].set_value(1)
    model.m[0].set_value(1.5, skip_validation=True)
    with pytest.raises(ValueError, match="not whole"):
        plan_of(instance, model)
    model.m[0].set_value(2 + 1e-9, skip_validation=True)
    assert plan_of(instance, model) == staged_plan([([(0, 0)], 2)])


def test_stages_that_admit_nothing_are_joined_to_the_one_before() -> None:
    instance = RequestPacking(**staged([1, 1], [5, 2], 1, [(3, 1.0)]))
    # The first runs through two stages, of which the second admits nothing; steps before anything is admitted serve nobody.
    assert _with_slots({0: (1, 2), 1: (3, 3)}, [4, 2, 3, 2], instance) == [([(0, 0)], 5), ([(1, 0)], 2)]
