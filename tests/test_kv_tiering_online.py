"""What online policies see, decide and may not do; hand-solved cases of every policy and of the baselines that see everything."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest

from headroom.formulations.kv_tiering import TieringPlan, evaluate
from headroom.formulations.types import Outcome
from headroom.heuristics import kv_tiering as heuristics
from headroom.heuristics.kv_tiering import Lfu, Lru, PageLookahead, PriceIndex, Static
from headroom.heuristics.kv_tiering_online import (
    Decision,
    Deployment,
    Observation,
    birth_order,
    decisions,
    deployment_of,
    observations,
    replay,
    replay_policy,
    steps_of,
)
from headroom.heuristics.kv_tiering_policies import fitting
from headroom.heuristics.kv_tiering_price_index import ReadForecast
from headroom.instances.kv_tiering import KvTiering, Reads, Tier

POLICIES: list[Any] = [Static, Lru, PageLookahead, Lfu, PriceIndex]
OFFLINE: list[Any] = [heuristics.balanced_static, heuristics.belady]


def tiers(capacity: list[float], ratio: float = 4.0) -> tuple[Tier, ...]:
    """The last one reads and writes 1 byte a second, each one before it `ratio` times as many as the next."""
    names = [f"tier{k}" for k in range(len(capacity) + 1)]
    speed = [ratio ** (len(capacity) - k) for k in range(len(names))]
    return tuple(
        Tier(name=name, capacity_bytes=c, read_bytes_per_s=s, write_bytes_per_s=s) for name, c, s in zip(names, [*capacity, None], speed, strict=True)
    )


def instance(capacity: list[float], rows: list[list[int]], ratio: float = 4.0, **fields: Any) -> KvTiering:
    given = {"block_bytes": np.ones(1 + max((max(row) for row in rows if row), default=0))} | fields
    reads = Reads(indptr=np.cumsum([0, *map(len, rows)]), block=np.array([i for row in rows for i in row], np.int64))
    return KvTiering(tiers=tiers(capacity, ratio), reads=reads, **given)


def random_instance(seed: int, kind: str) -> KvTiering:
    """12 to 40 blocks with reads that drift, in the kinds that the policies must cope with."""
    rng = np.random.default_rng(seed)
    n, steps = int(rng.integers(12, 40)), int(rng.integers(12, 30))
    size = rng.integers(1, 6, n).astype(np.float64) if kind in ("sizes", "all") else np.ones(n)
    birth, death = np.zeros(n, np.int64), np.full(n, steps)
    if kind in ("lives", "all"):
        birth = np.where(rng.random(n) < 0.4, 0, rng.integers(0, steps, n))
        death = np.minimum(birth + rng.integers(1, steps + 1, n), steps)
    share = {"none": [0.0], "three": [0.2, 0.3], "all": [0.15, 0.0, 0.3]}.get(kind, [0.3])
    hot, rows = rng.random(n) < 0.3, []
    for t in range(steps):
        hot = np.where(rng.random(n) < 0.15, rng.random(n) < 0.3, hot)
        rows.append(np.flatnonzero(hot & (birth <= t) & (t < death)))
    block = np.concatenate(rows)
    part = size[block] * rng.random(len(block)) if kind == "all" else None
    return KvTiering(
        tiers=tiers([float(int(s * size.sum())) for s in share]),
        block_bytes=size,
        birth_step=birth,
        death_step=death,
        reads=Reads(indptr=np.cumsum([0, *map(len, rows)]), block=block, bytes=part),
        fixed_read_bytes=rng.random(steps) if kind == "all" else 0.0,
        inclusive=kind in ("inclusive", "all"),
    )


KINDS = ("plain", "inclusive", "three", "lives", "sizes", "none", "all")


@cache
def cases(kind: str) -> tuple[KvTiering, ...]:
    return tuple(random_instance(seed, kind) for seed in range(6))


def cut(full: KvTiering, steps: int) -> KvTiering:
    """The first steps; blocks that are born later are not there."""
    there = np.flatnonzero(full.birth < steps)
    number = np.full(full.blocks, -1)
    number[there] = np.arange(len(there))
    end = int(full.reads.indptr[steps])
    return full.replace(
        block_bytes=full.size[there],
        birth_step=full.birth[there],
        death_step=None if full.death_step is None else np.asarray(full.death_step)[there],
        reads=Reads(
            indptr=full.reads.indptr[: steps + 1],
            block=number[full.reads.block[:end]],
            bytes=None if full.reads.bytes is None else full.reads.bytes[:end],
        ),
        fixed_read_bytes=full.fixed[:steps],
    )


def same(a: Decision, b: Decision) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("birth_tier", "block", "to_tier"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_decisions_do_not_depend_on_what_was_not_shown(policy: Any, kind: str) -> None:
    for x in cases(kind):
        whole = list(decisions(x, policy(deployment_of(x))))
        for end in {1, x.steps // 3, x.steps - 2}:
            known = min(end + policy.lookahead_steps, x.steps)
            part = list(decisions(cut(x, known), policy(deployment_of(x))))
            assert all(same(a, b) for a, b in zip(whole[:end], part[:end], strict=True))


def test_the_truncation_test_can_fail() -> None:
    """A policy that looks a step ahead decides otherwise when that step is cut off."""
    found = []
    for x in cases("plain"):
        whole = list(decisions(x, PageLookahead(deployment_of(x))))
        part = list(decisions(cut(x, x.steps // 2), PageLookahead(deployment_of(x))))
        found.append(all(same(a, b) for a, b in zip(whole, part, strict=False)))
    assert not all(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_policies_make_feasible_plans_and_the_same_ones_again(policy: Any, kind: str) -> None:
    for x in cases(kind):
        plan = replay_policy(x, policy)
        assert evaluate(x, plan).feasible
        again = replay(x, policy, np.random.default_rng(1)).plan
        assert again is not None
        assert again.document() == plan.document()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", OFFLINE)
def test_offline_baselines_make_feasible_plans(method: Any, kind: str) -> None:
    for x in cases(kind):
        plan = method(x, np.random.default_rng(0))
        assert evaluate(x, plan).feasible
        assert plan.document() == method(x, np.random.default_rng(1)).document()


def moves(plan: TieringPlan) -> list[tuple[int, int, int]]:
    m = plan.moves
    return list(zip(m.step.tolist(), m.block.tolist(), m.to_tier.tolist(), strict=True))


def test_names_follow_births_and_steps_show_what_happens() -> None:
    x = instance([1.0], [[1], [1, 2], [0, 2]], birth_step=np.array([2, 0, 1]), death_step=np.array([3, 2, 3]), block_bytes=np.array([5.0, 6.0, 7.0]))
    assert birth_order(x).tolist() == [1, 2, 0]  # block 1 is name 0, block 2 name 1, block 0 name 2
    first, second, third = steps_of(x)
    assert (first.born_bytes.tolist(), first.read.tolist(), first.read_bytes.tolist()) == ([6.0], [0], [6.0])
    assert (second.born_bytes.tolist(), second.read.tolist()) == ([7.0], [0, 1])
    assert (third.born_bytes.tolist(), third.died.tolist(), third.read.tolist()) == ([5.0], [0], [2, 1])
    assert [len(seen.ahead) for seen in observations(steps_of(x), 1)] == [1, 1, 0]


def test_fitting_passes_over_what_is_too_big() -> None:
    # 3 fits into 5, 4 does not into the 2 left, 2 does, 1 no longer
    assert fitting(np.array([3.0, 4.0, 2.0, 1.0]), 5.0).tolist() == [True, False, True, False]
    assert not fitting(np.array([1.0, 2.0]), 0.0).any()


def test_static_fills_the_tiers_in_order_of_birth_and_never_moves() -> None:
    # blocks 0 and 1 fill tier 0; 2 goes to tier 1; 3, born when block 0 has died, finds room in tier 0 again
    x = instance([2.0, 1.0], [[0, 1, 2], [2], [3]], birth_step=np.array([0, 0, 0, 2]), death_step=np.array([2, 3, 3, 3]))
    plan = replay_policy(x, Static)
    assert plan.initial_tier.tolist() == [0, 0, 1, 0]
    assert moves(plan) == []


def test_lru_promotes_what_is_read_and_evicts_the_least_recently_read() -> None:
    # Tier 0 holds 2. Births: 0 and 1 are read at once, 2 is not. Step 1 reads 0, so 1 is the older one when step 2 reads 2.
    x = instance([2.0], [[0, 1], [0], [2]])
    plan = replay_policy(x, Lru)
    assert plan.initial_tier.tolist() == [0, 0, 1]
    assert moves(plan) == [(2, 1, 1), (2, 2, 0)]
    # Step 0: 2/4. Step 1: 1/4. Step 2: tier 1 reads block 2 and writes block 1: 2 s; tier 0 (1 + 1)/4.
    assert evaluate(x, plan).objective == 0.5 + 0.25 + 2.0


def test_lru_is_a_chain_of_tiers() -> None:
    # One block a tier; reading 2, at the bottom, sends 0 (older than 1? both read at step 0; names decide: 0 stays on top) one tier down each.
    x = instance([1.0, 1.0], [[0], [1], [2]])
    plan = replay_policy(x, Lru)
    assert plan.initial_tier.tolist() == [0, 1, 2]
    assert moves(plan) == [(1, 0, 1), (1, 1, 0), (2, 0, 2), (2, 1, 1), (2, 2, 0)]


def test_page_lookahead_fetches_a_step_before_the_read() -> None:
    # One place. Step 0 is read from tier 0; step 1's block is fetched in step 1 for step 2, never in the step of its own first read.
    x = instance([1.0], [[0], [0], [1], [1]])
    plan = replay_policy(x, PageLookahead)
    assert plan.initial_tier.tolist() == [0, 1]
    assert moves(plan) == [(1, 0, 1), (1, 1, 0)]
    # Steps 0, 2 and 3: 1/4 each. Step 1: tier 1 reads 1 and writes 0 (2 s).
    assert evaluate(x, plan).objective == 0.25 + 2.0 + 0.25 + 0.25


def test_lfu_moves_a_block_only_once_its_count_pays() -> None:
    # Nothing is forgotten (memory 1e9). A swap costs 1/4 (write 1) + 1/4 + 1 (read and write 0) = 1.5 s, a read saves 0.75 s: the count must be 2
    # ahead. Block 0 has 1 read; block 1 is read at steps 1, 2 and 3 and comes with the third (3 - 2 >= 1, and on a tie who is there stays: so the
    # fourth, at step 4, is the first that is ahead).
    x = instance([1.0], [[0], [1], [1], [1], [1], [1]])
    plan = replay_policy(x, lambda deployment: Lfu(deployment, 1e9))
    assert [(t, i, k) for t, i, k in moves(plan) if i == 1] == [(4, 1, 0)]
    assert moves(replay_policy(x, Lru))[0][0] == 1


def test_price_index_reads_from_both_tiers() -> None:
    # 10 blocks read in every step, tiers 4 : 1, room for all in the fast one: 8 + 2 take 2 s a step, all in the fast one 2.5 s.
    x = instance([10.0], [list(range(10))] * 40)
    assert evaluate(x, replay_policy(x, PriceIndex)).objective == pytest.approx(2.0 * 40)
    assert evaluate(x, replay_policy(x, Lru)).objective == pytest.approx(2.5 * 40)


def test_price_index_promotes_what_is_read_again_and_leaves_what_is_not() -> None:
    # Two hot blocks that change once, amid others that are each read once: LRU moves each of those in and out.
    rows = [[0, 1] if t < 40 else [2, 3] for t in range(80)]
    rows = [[*row, 4 + t] for t, row in enumerate(rows)]
    x = instance([3.0], rows, ratio=8.0)
    price, lru = replay_policy(x, PriceIndex), replay_policy(x, Lru)
    assert evaluate(x, price).objective < 0.7 * evaluate(x, lru).objective
    # after the change blocks 2 and 3 come in
    assert {2, 3} <= {i for t, i, k in moves(price) if k == 0 and t >= 40}


def test_forecast_learns_how_long_reads_go_on() -> None:
    # Two blocks in turn are read for ever, two never: with discount e^(-1/4) the first are worth d / (1 - d), d = 0.7788, that is 3.52 reads.
    forecast = ReadForecast(4.0, 100.0)
    alive = np.ones(4, bool)
    for t in range(300):
        forecast.look(alive, 4 if t == 0 else 0, np.array([0, 1]), np.ones(2))
    values = forecast.values()
    assert values[:2] == pytest.approx(3.52, rel=0.02)
    assert values[2:].max() < 0.05


def test_belady_keeps_what_is_needed_first() -> None:
    # Tier 0 holds 1. Block 0's next reads are at steps 4 and on; block 1 is read at 1, 2 and 3. Coming in at step 1 it saves 2 x 0.75 s, and the swap
    # costs 1/4 + 1/4 + 1 = 1.5 s: not more, so it stays out. With one more read before block 0's it comes.
    few = instance([1.0], [[0], [1], [1], [1], [0]])
    more = instance([1.0], [[0], [1], [1], [1], [1], [0]])
    assert moves(heuristics.belady(few, np.random.default_rng(0))) == []
    plan = heuristics.belady(more, np.random.default_rng(0))
    # born in tier 0 is block 1, whose next read (step 1) is nearer than block 0's (step 5)
    assert plan.initial_tier.tolist() == [1, 0]


def test_balanced_static_splits_so_that_tiers_balance() -> None:
    # As for the price index: 8 + 2 blocks are 2 s a step. With room for 5 only, 5 in the slow tier take 5 s.
    for capacity, step_s in ((10.0, 2.0), (5.0, 5.0)):
        x = instance([capacity], [list(range(10))] * 5)
        assert evaluate(x, heuristics.balanced_static(x, np.random.default_rng(0))).objective == pytest.approx(5 * step_s)
    # the block read twice takes the only place
    x = instance([1.0], [[0], [1], [1]])
    assert heuristics.balanced_static(x, np.random.default_rng(0)).initial_tier.tolist() == [1, 0]


class Scripted:
    """Decides what it was told to."""

    lookahead_steps: ClassVar[int] = 0

    def __init__(self, script: list[tuple[list[int], list[int], list[int]]]) -> None:
        self.script = iter(script)

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def decide(self, seen: Observation) -> Decision:
        birth, block, to_tier = (np.array(values, np.int64) for values in next(self.script))
        return Decision(birth, block, to_tier)


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ([([0], [], [])], "gives 1 tiers to 2 births"),
        ([([0, 2], [], [])], "birth_tier that is not a tier from 0 to 1"),
        ([([0, 0], [], [])], "puts 2 bytes into tier 0, which holds 1"),
        ([([0, 1], [1], [0])], "was not there before the step"),
        ([([0, 1], [], []), ([], [1], [0])], "puts 2 bytes into tier 0"),
        ([([0, 1], [], []), ([], [1], [1])], "to the tier that it is in"),
        ([([0, 1], [], []), ([], [0, 0], [1, 1])], "moves a block twice"),
        ([([0, 1], [], []), ([], [0], [])], "names 1 blocks and 0 tiers"),
        ([([0, 1], [], []), ([], [], []), ([], [1], [0])], "moves a block that is gone"),
    ],
)
def test_a_policy_that_breaks_a_rule_is_caught(script: list[Any], what: str) -> None:
    x = instance([1.0], [[0], [1], [0]], death_step=np.array([3, 2]))
    with pytest.raises(ValueError, match=what):
        replay_policy(x, lambda deployment: Scripted(script))


def test_policies_refuse_bad_parameters() -> None:
    deployment = Deployment(np.array([1.0, np.inf]), np.ones(2), np.ones(2), False)
    for make in (lambda: Lfu(deployment, 0.0), lambda: PriceIndex(deployment, horizon_steps=0.0), lambda: PriceIndex(deployment, memory_steps=-1.0)):
        with pytest.raises(ValueError, match=r"_steps must be positive"):
            make()


def test_replay_says_what_was_done() -> None:
    x = instance([2.0], [[0, 1], [0], [2]])
    found = replay(x, Lru, np.random.default_rng(0))
    assert isinstance(found, Outcome)
    assert found.details["trace"] == {"moves": 2, "moved_bytes": 2.0, "lookahead_steps": 0, "parameters": {}}


def test_the_price_index_is_the_best_policy_where_reads_drift_slowly() -> None:
    x = drifting(400, 200, 0.02)
    seconds = {policy.__name__: evaluate(x, replay_policy(x, policy)).objective for policy in POLICIES}
    assert min(seconds, key=lambda name: seconds[name]) == "PriceIndex"


def drifting(blocks: int, steps: int, drift: float) -> KvTiering:
    """A tenth of the blocks is read in each step, of which a share changes from step to step; a quarter fits into the fast tier."""
    rng = np.random.default_rng(0)
    m = blocks // 10
    now, rows = rng.permutation(blocks)[:m], []
    for _ in range(steps):
        rows.append(np.sort(now).tolist())
        kept = rng.permutation(now)[round(drift * m) :]
        now = np.concatenate([kept, rng.permutation(np.setdiff1d(np.arange(blocks), kept))[: m - len(kept)]])
    return instance([blocks / 4], rows, ratio=8.0, block_bytes=np.ones(blocks))
