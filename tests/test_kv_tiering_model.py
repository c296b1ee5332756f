"""KV-cache tiering: the Pyomo model and HiGHS against enumeration, answers by hand, and rules that any optimum keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headroom.formulations.kv_tiering import TieringPlan, build_model, evaluate
from headroom.formulations.kv_tiering_model import plan_of_tiers, plan_of_values, tiers_of_plan
from headroom.formulations.progress import Progress
from headroom.formulations.types import Outcome, SolveParams
from headroom.instances.kv_tiering import KvTiering
from headroom.solvers import kv_tiering_highs
from headroom.solvers.highs import solve_mip
from headroom.solvers.kv_tiering_highs import highs
from headroom.solvers.standard_form import standard_form
from tests.kv_tiering_cases import drifting, reads, tiny, two_tiers
from tests.oracles.kv_tiering import Oracle

CLOSE = 1e-6


def solved(instance: KvTiering, start: TieringPlan | None = None, **params: Any) -> tuple[Outcome, Progress]:
    given_params = SolveParams(start=start, **params)
    progress = Progress(given_params, lambda plan: evaluate(instance, plan))
    if start is not None:
        progress.offer(start)
    return highs(instance, given_params, progress), progress


def optimum(data: dict[str, Any]) -> float:
    """By HiGHS, which must agree with enumeration."""
    instance = KvTiering(**data)
    outcome, progress = solved(instance)
    best = Oracle(data).best()
    assert outcome.stop == "completed"
    assert progress.objective == pytest.approx(best, rel=CLOSE, abs=0)
    return best


# Against enumeration.


@pytest.mark.parametrize("chunk", range(3))
def test_highs_finds_what_enumeration_finds(chunk: int) -> None:
    moved = 0
    for seed in range(chunk * 50, chunk * 50 + 50):
        data = tiny(seed)
        instance, best = KvTiering(**data), Oracle(data).best()
        outcome, progress = solved(instance)
        assert isinstance(outcome.plan, TieringPlan)
        found = evaluate(instance, outcome.plan)
        assert found.feasible, seed
        assert found.objective == progress.objective == pytest.approx(best, rel=CLOSE, abs=0), seed
        own = next(bound for bound in outcome.bounds if bound.method == "highs")
        assert own.proof == "solver"
        assert best * (1 - 2 * CLOSE) <= own.value <= best * (1 + CLOSE), seed
        assert {bound.method for bound in outcome.bounds if bound.proof == "closed_form"} == {"bandwidth", "hit_volume"}
        moved += len(outcome.plan.moves.step) > 0
    assert moved >= 5  # tiny instances seldom repay a move


@pytest.mark.parametrize("presolve", ["on", "off"])
def test_objective_is_in_seconds_whatever_the_unit(presolve: str) -> None:
    for seed in range(150, 190):
        data, params = tiny(seed), SolveParams()
        instance, best = KvTiering(**data), Oracle(data).best()
        model = build_model(instance)
        form = standard_form(model)
        # Costs of 1e-12 seconds are below HiGHS' tolerances: that is what `unit_s` is for. The value is right for the x that comes out.
        answer = solve_mip(form, params, Progress(params), options={"presolve": presolve})
        assert answer.x is not None
        plan = plan_of_values(instance, form.values(model.x, answer.x))
        assert answer.objective == pytest.approx(evaluate(instance, plan).objective, rel=1e-5, abs=1e-6 * float(model.unit_s.value)), seed
        assert evaluate(instance, plan).objective >= best * (1 - CLOSE)


def test_names_are_those_of_the_mathematics() -> None:
    model = build_model(KvTiering(**tiny(2)))
    for name in ("B", "K", "steps", "alive", "continued", "x", "x_arc", "T", "path_birth", "path_out", "path_in", "capacity", "time", "objective"):
        assert hasattr(model, name), name


def test_a_step_of_microseconds_is_solved_as_well_as_one_of_seconds() -> None:
    # Twelve instances, their bandwidths such that a step of the best plan lasts one second, or a millionth of it, in the mean. Only the unit of time
    # differs, and a relative tolerance is the same for both. In seconds HiGHS' absolute tolerances would be as large as a step.
    for seed in (1, 2, 3, 7, 8, 14, 16, 19, 20, 23, 26, 38):
        best = Oracle(tiny(seed)).best()
        for step_s in (1.0, 1e-6):
            data = tiny(seed)
            total_s = step_s * KvTiering(**data).steps
            for tier in data["tiers"]:
                tier["read_bytes_per_s"] *= best / total_s
                tier["write_bytes_per_s"] *= best / total_s
            outcome, progress = solved(KvTiering(**data))
            assert progress.objective == pytest.approx(total_s, rel=CLOSE, abs=0), (seed, step_s)
            own = next(bound for bound in outcome.bounds if bound.method == "highs")
            assert own.value == pytest.approx(total_s, rel=CLOSE, abs=0), (seed, step_s)


def test_plan_and_tiers_are_the_same_thing() -> None:
    for seed in range(60):
        instance, rng = KvTiering(**tiny(seed)), np.random.default_rng(seed)
        tier_of = rng.integers(0, len(instance.tiers), (instance.blocks, instance.steps))
        plan = plan_of_tiers(instance, tier_of)
        again = plan_of_tiers(instance, tiers_of_plan(instance, plan))
        assert again.document() == plan.document()
        alive = (np.arange(instance.steps) >= instance.birth[:, None]) & (np.arange(instance.steps) < instance.death[:, None])
        assert (tiers_of_plan(instance, plan) == tier_of)[alive].all()


# Limits.


def test_too_large_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_tiering_highs, "LARGEST_MODEL", 100)
    outcome, _ = solved(KvTiering(**drifting(20, 5, 0.3, 0.3, 0.4, 8, 0)))
    assert outcome.plan is None
    assert outcome.notes == ("the model has 400 arcs; HiGHS takes up to 100",)
    assert {bound.method for bound in outcome.bounds} == {"bandwidth", "hit_volume"}


def test_no_time_to_build_is_said() -> None:
    outcome, _ = solved(KvTiering(**drifting(200, 50, 0.3, 0.3, 0.4, 8, 0)), time_limit_s=0.1)
    assert outcome.stop == "time_limit"
    assert outcome.notes == ("no time to build the Pyomo model",)


def test_start_is_an_incumbent_and_is_improved() -> None:
    instance = KvTiering(**drifting(12, 6, 0.4, 0.3, 0.5, 8, 0))
    everything_below = plan_of_tiers(instance, np.ones((12, 6), dtype=np.int64))
    outcome, progress = solved(instance, start=everything_below)
    assert progress.trajectory[0][1] == pytest.approx(evaluate(instance, everything_below).objective)
    assert progress.objective < 0.7 * evaluate(instance, everything_below).objective
    assert isinstance(outcome.plan, TieringPlan)
    _, again = solved(instance, start=outcome.plan)
    assert again.objective == pytest.approx(progress.objective, rel=CLOSE)


# By hand: `fast` reads 10 and writes 5 bytes a second, `slow` reads 2 and writes 1.


def test_free_placement_before_the_first_step() -> None:
    # 20 bytes read in step 0 from where they are put free of charge: 20 / 10 = 2 s. With room for nothing: 20 / 2 = 10 s.
    assert optimum(two_tiers(20.0, block_bytes=[20.0], reads=reads([0]))) == pytest.approx(2.0)
    assert optimum(two_tiers(0.0, block_bytes=[20.0], reads=reads([0]))) == pytest.approx(10.0)


def test_two_tiers_share_the_reads_of_a_step() -> None:
    # 12 blocks of 1 byte, room for 10: 10 / 10 = 1 s above and 2 / 2 = 1 s below, at the same time. All above would take 1.2 s.
    assert optimum(two_tiers(10.0, block_bytes=[1.0] * 5 + [5.0, 2.0], reads=reads(list(range(7))))) == pytest.approx(1.0)
    assert optimum(two_tiers(12.0, block_bytes=[1.0] * 5 + [5.0, 2.0], reads=reads(list(range(7))))) == pytest.approx(1.0)


def test_moving_up_pays_when_reads_follow() -> None:
    # Block 0 (10 bytes) is alone above until block 1 is born; it dies at step 1. Block 1 (10 bytes) is born below or above in step 1, read in 2 .. 5.
    # Above: written in 10 / 5 = 2 s, then four reads of 1 s: 6 s, and block 0's read in step 0, 1 s: 7 s.
    data = two_tiers(10.0, block_bytes=[10.0, 10.0], birth_step=[0, 1], death_step=[1, 6], reads=reads([0], [], [1], [1], [1], [1]))
    assert optimum(data) == pytest.approx(7.0)
    # Block 0 lives for ever and is not worth moving down (10 s to write): block 1 is written below (10 s) and read there, 5 s each: 1 + 10 + 20 = 31;
    # or block 0 starts below, is read there in 5 s, and block 1 is born above: 5 + 2 + 4 = 11 s.
    data = two_tiers(10.0, block_bytes=[10.0, 10.0], birth_step=[0, 1], reads=reads([0], [], [1], [1], [1], [1]))
    assert optimum(data) == pytest.approx(11.0)


def test_copies_below_make_eviction_free() -> None:
    # As above, `inclusive`: block 0 starts above (1 s), goes down free in step 1, where block 1 is born above (2 s) with a copy below, 10 / 1 = 10
    # s, at the same time; then four reads of 1 s: 1 + 10 + 4 = 15 s.
    data = two_tiers(10.0, block_bytes=[10.0, 10.0], birth_step=[0, 1], reads=reads([0], [], [1], [1], [1], [1]), inclusive=True)
    assert optimum(data) == pytest.approx(15.0)


# Rules that any optimum keeps.


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), order=st.randoms(use_true_random=False))
def test_the_order_of_blocks_does_not_matter(seed: int, order: Any) -> None:
    data = tiny(seed, 100)
    blocks = len(data["block_bytes"])
    new_name = list(range(blocks))
    order.shuffle(new_name)
    changed = data | {"reads": data["reads"] | {"block": [new_name[i] for i in data["reads"]["block"]]}}
    for name in ("block_bytes", "birth_step", "death_step"):
        if name in data:
            changed[name] = [data[name][new_name.index(n)] for n in range(blocks)]
    assert optimum(changed) == pytest.approx(optimum(data), rel=CLOSE)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), factor=st.floats(1.0, 4.0))
def test_more_capacity_never_costs_more(seed: int, factor: float) -> None:
    data = tiny(seed, 100)
    smallest = min(data["block_bytes"])
    more = [tier | {"capacity_bytes": tier["capacity_bytes"] * factor + smallest} for tier in data["tiers"][:-1]]
    assert optimum(data | {"tiers": [*more, data["tiers"][-1]]}) <= optimum(data) * (1 + CLOSE)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), factor=st.sampled_from([2.0, 1e3, 1e6]))
def test_faster_memory_is_so_much_faster(seed: int, factor: float) -> None:
    data = tiny(seed, 100)
    faster = [tier | {name: tier[name] * factor for name in ("read_bytes_per_s", "write_bytes_per_s")} for tier in data["tiers"]]
    assert optimum(data | {"tiers": faster}) * factor == pytest.approx(optimum(data), rel=CLOSE)
