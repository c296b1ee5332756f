"""The Lagrangian method of KV tiering: never below enumeration, its bound never above, and what it promises about limits, seeds and start plans."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import pytest

import headroom.solvers.kv_tiering as methods
from headroom.bounds.kv_tiering_search import Dual
from headroom.documents import result_document
from headroom.formulations.kv_tiering import TieringPlan, evaluate, make_plan, replay
from headroom.formulations.progress import Progress
from headroom.formulations.types import SolveParams
from headroom.heuristics.kv_tiering import belady
from headroom.instances.files import to_json
from headroom.instances.kv_tiering import KvTiering
from headroom.instances.kv_tiering_presets import make
from headroom.run import Result, run
from headroom.solvers.kv_tiering_primal import Schedules
from headroom.verify import verify
from tests.kv_tiering_cases import drifting, reads, tiny, two_tiers
from tests.oracles.kv_tiering import Oracle

EXACT = 1 + 1e-8
"""`evaluate` lets capacities be exceeded by 1e-9, the oracle too."""


def solve(data: dict[str, Any] | KvTiering, **params: Any) -> Result:
    instance = data if isinstance(data, KvTiering) else KvTiering.model_validate(data)
    return run(instance, "lagrangian", SolveParams(**params))


def assert_sound(result: Result, best: float) -> None:
    assert result.plan is not None
    assert result.evaluation is not None
    assert result.evaluation.feasible
    assert result.certified_bound <= result.bound <= best * EXACT
    assert result.objective >= best / EXACT
    if result.status == "optimal":
        assert result.objective == pytest.approx(best, rel=1e-6, abs=1e-15)


@pytest.fixture
def unaided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without HiGHS' help on tiny instances."""
    monkeypatch.setattr(methods, "TINY_ARCS", -1)


@pytest.mark.parametrize("part", range(4))
def test_sandwich(part: int) -> None:
    """With HiGHS at the end, everything this small is solved: the plan is the oracle's."""
    for seed in range(part, 60, 4):
        data = tiny(seed, most_states=100)
        best = Oracle(data).best()
        result = solve(data, seed=seed)
        assert_sound(result, best)
        assert result.objective == pytest.approx(best, rel=1e-6, abs=1e-15), seed


@pytest.mark.usefixtures("unaided")
def test_sandwich_without_highs() -> None:
    """The prices' schedules alone: sound everywhere, and best nearly everywhere."""
    missed = 0
    for seed in range(100, 145):
        data = tiny(seed, most_states=100)
        best = Oracle(data).best()
        result = solve(data, seed=seed)
        assert_sound(result, best)
        missed += result.objective > best * EXACT
    assert missed <= 4


@pytest.mark.usefixtures("unaided")
def test_where_sizes_leave_no_room_for_rounding() -> None:
    """Capacities met exactly by many blocks of 1.1 bytes (whose sum is rounded), or missed by a little more than `evaluate` grants."""
    for count in (3, 7, 10, 49):
        data = two_tiers(1.1 * count, block_bytes=[1.1] * count, reads=reads(list(range(count)), []), fixed_read_bytes=0.0)
        data["tiers"][1] |= {"read_bytes_per_s": 1.0, "write_bytes_per_s": 1.0}
        data["tiers"][0] |= {"read_bytes_per_s": 1e6, "write_bytes_per_s": 1e6}
        # All in fast: anything in slow costs a second or more.
        assert solve(data).objective == pytest.approx(1.1 * count / 1e6)
    for over, fits in ((0.9, True), (1.5, False), (3.0, False)):
        # A block that is larger than fast by 1.5e-9 of it: bounds grant it room, `evaluate` does not.
        data = two_tiers(1e9, block_bytes=[1e9 + over], reads=reads([0]))
        result = solve(data)
        assert result.evaluation is not None
        assert result.evaluation.feasible
        if not fits:
            assert result.objective == pytest.approx((1e9 + over) / 2)
    # The same beside a block that fits: the search must not take the forbidden schedule for its best and miss the other.
    data = two_tiers(1e9, block_bytes=[1e9 + 1.5, 9e8], reads=reads([0, 1], [1], [1]))
    result = solve(data)
    assert result.objective == pytest.approx(Oracle(data).best())


def test_cycles_end_in_schedules_that_count() -> None:
    """Soft sweeps let huge blocks into fast for a while; what these leave behind by rounding is much beside the small blocks that fit. Schedules are
    judged by their load measured afresh: after each cycle it fits exactly, and the best is as long as it is said to be."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        size = np.concatenate([rng.uniform(1e12, 1e13, 6), rng.uniform(1, 10, 10)])
        room = float(size[6:].sum()) * rng.uniform(0.3, 0.9)
        rows = [np.flatnonzero(rng.random(16) < 0.6).tolist() for _ in range(8)]
        instance = KvTiering.model_validate(two_tiers(room, block_bytes=size.tolist(), reads=reads(*rows)))
        offered: list[TieringPlan] = []
        with Dual(instance) as dual:
            at = dual.start()
            schedules = Schedules(instance, dual.items, np.random.default_rng(seed), 1, offered.append, lambda: False, lambda: math.inf)
            schedules.begin()
            for _ in range(3):
                schedules.cycle(at, 0.5 * schedules.best_s)
                load = schedules._replanner.load
                assert (load.held_bytes[:, 0] <= room).all(), seed
                found = replay(instance, make_plan(*schedules._replanner.moves())).tier_s
                np.testing.assert_allclose(load.time_s, found, rtol=1e-12, err_msg=str(seed))
            schedules.close()
        judged = [evaluate(instance, plan) for plan in offered]
        assert all(one.feasible for one in judged)
        assert schedules.best_s == pytest.approx(min(one.objective for one in judged), rel=1e-12, abs=1e-300)


@pytest.mark.usefixtures("unaided")
def test_same_seed_same_answer_whatever_the_threads() -> None:
    data = drifting(80, 30, 0.3, 0.2, 0.25, 8.0, 1)
    first, again, two = (solve(data, seed=3, threads=threads) for threads in (1, 1, 2))
    assert first.plan is not None
    for other in (again, two):
        assert other.plan is not None
        assert other.plan.dump() == first.plan.dump()
        assert (other.objective, other.bound) == (first.objective, first.bound)
    for seed in range(4):
        result = solve(data, seed=seed)
        assert first.bound <= result.objective
        assert result.objective <= 1.01 * first.objective


@pytest.fixture(scope="module")
def drift() -> KvTiering:
    """4,000 blocks x 500 steps; the kernels are compiled before any clock runs."""
    solve(drifting(60, 20, 0.3, 0.2, 0.25, 8.0, 1), time_limit_s=60.0, gap_limit=0.1)
    return KvTiering.model_validate(drifting(4000, 500, 0.1, 0.1, 0.05, 10.0, 1))


def test_a_time_limit_holds(drift: KvTiering) -> None:
    started = time.monotonic()
    result = solve(drift, time_limit_s=3.0)
    assert time.monotonic() - started <= 3.0 * 1.05 + 1.0
    assert result.stop == "time_limit"
    assert result.plan is not None
    assert 0 < result.certified_bound <= result.objective
    assert result.gap < 0.1


def test_a_start_plan_is_used_and_never_worsened(drift: KvTiering) -> None:
    plan = belady(drift, np.random.default_rng(0))
    before = evaluate(drift, plan).objective
    result = solve(drift, start=plan, time_limit_s=1.0)
    assert result.objective <= before
    at_once = run(drift, "lagrangian", SolveParams(start=plan, time_limit_s=1e-3))
    assert at_once.objective <= before
    assert at_once.stop == "time_limit"


def test_an_optimal_start_plan_stays() -> None:
    for seed in range(12):
        data = tiny(seed, most_states=60)
        best = solve(data)
        again = solve(data, start=best.plan)
        assert again.objective <= best.objective


def test_a_start_plan_that_does_not_fit_is_said_and_left() -> None:
    data = two_tiers(4.0, block_bytes=[4.0, 4.0], reads=reads([0, 1], [0, 1]))
    nothing = np.zeros(0, np.int64)
    result = solve(data, start=make_plan(np.array([0, 0]), nothing, nothing, nothing))
    assert result.objective == pytest.approx(Oracle(data).best())
    assert "not feasible" in result.notes[0]


def test_a_gap_limit_stops_early() -> None:
    data = drifting(150, 40, 0.3, 0.2, 0.25, 8.0, 1)
    result = solve(data, gap_limit=0.2)
    assert result.stop == "gap_limit"
    assert 0 < result.gap <= 0.2


def test_an_interrupt_keeps_the_best_plan() -> None:
    instance = KvTiering.model_validate(drifting(150, 40, 0.3, 0.2, 0.25, 8.0, 1))
    seen: list[float] = []

    def listen(progress: Progress) -> None:
        if progress.plan is not None:
            seen.append(progress.objective)
            if len(set(seen)) > 2:
                progress.interrupt()

    result = run(instance, "lagrangian", SolveParams(), listener=listen)
    assert result.stop == "interrupted"
    assert result.plan is not None
    assert result.objective == min(seen)


def test_interrupted_before_it_began() -> None:
    result = run(KvTiering.model_validate(tiny(3)), "lagrangian", SolveParams(), on_start=lambda progress: progress.interrupt())
    assert result.stop == "interrupted"
    assert result.plan is not None


def test_nothing_fits() -> None:
    """Fast holds 3 bytes, blocks have 4 and 5: each step reads from slow, at 2 bytes a second: (4 + 5) / 2 + 4 / 2 = 6.5 s."""
    result = solve(two_tiers(3.0, block_bytes=[4.0, 5.0], reads=reads([0, 1], [0])))
    assert (result.status, result.objective) == ("optimal", pytest.approx(6.5))
    assert result.certified_bound == pytest.approx(6.5, rel=1e-6)


def test_one_tier_only() -> None:
    """All is read at 2 bytes a second; block 1 is born in step 1, its 4 bytes written at 1 byte a second: 2 + 4 + 2 + 2 = 10 s."""
    tier = {"name": "only", "capacity_bytes": None, "read_bytes_per_s": 2.0, "write_bytes_per_s": 1.0}
    result = solve({"tiers": [tier], "block_bytes": 4.0, "birth_step": [0, 1], "reads": reads([0], [0, 1])})
    assert (result.status, result.objective) == ("optimal", pytest.approx(10.0))


def test_one_step() -> None:
    """Fast reads 10 bytes a second, slow 2: five of the six blocks of a byte in fast take 0.5 s, as the last one in slow does."""
    result = solve(two_tiers(100.0, block_bytes=[1.0] * 6, reads=reads(list(range(6)))))
    assert (result.status, result.objective) == ("optimal", pytest.approx(0.5))


def test_blocks_never_read_and_steps_without_reads() -> None:
    """Blocks 1 and 2 are never read: they stay in slow. Block 0 (2 bytes) is read in steps 1 and 4 from fast: 0.2 s each."""
    result = solve(two_tiers(2.0, block_bytes=[2.0, 2.0, 2.0], reads=reads([], [0], [], [], [0], [])))
    assert (result.status, result.objective) == ("optimal", pytest.approx(0.4))


def test_no_reads_at_all() -> None:
    """Nothing is read and everything is there from the start: no time passes. With fixed reads of 10 bytes: 1 s a step."""
    data = two_tiers(2.0, block_bytes=[2.0, 2.0], reads=reads([], [], []))
    result = solve(data)
    assert (result.status, result.objective) == ("optimal", 0.0)
    result = solve(data | {"fixed_read_bytes": 10.0})
    assert (result.status, result.objective) == ("optimal", pytest.approx(3.0))


def test_room_for_everything() -> None:
    """Fast is a million times faster and holds all: everything is read from it. N x T reads of a byte at 1e6 bytes a second."""
    data = drifting(100, 30, 0.5, 0.2, 1.0, 1e6, 2)
    result = solve(data)
    assert result.objective == pytest.approx(50 * 30 / 1e6, rel=1e-6)
    assert result.status == "optimal"


@pytest.mark.parametrize("preset", ["toy", "toy-inclusive", "toy-three-tier", "toy-bytes", "small-drift"])
def test_presets_verify(preset: str) -> None:
    instance = make(preset, np.random.default_rng(1), {})
    result = solve(instance, time_limit_s=3.0)
    assert verify(instance, json.loads(to_json(result_document(result)))).verified
    assert result.certified_bound <= result.objective
