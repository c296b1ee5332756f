"""KV-cache tiering: `evaluate` against the definition, plans and instances that break rules, files, and replays by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headroom.bounds.kv_tiering_closed import hit_volume_value
from headroom.formulations.kv_tiering import TieringPlan, evaluate, make_plan, replay
from headroom.formulations.kv_tiering_model import plan_of_tiers
from headroom.formulations.types import Plan
from headroom.instances.base import load_document
from headroom.instances.errors import InputError
from headroom.instances.kv_tiering import KvTiering
from tests.kv_tiering_cases import reads, tiny, two_tiers
from tests.oracles.kv_tiering import Oracle


def plan(initial: list[int], *moves: tuple[int, int, int]) -> TieringPlan:
    """`moves` as (step, block, to_tier)."""
    step, block, to = (np.array([move[n] for move in moves], dtype=np.int64) for n in range(3))
    return make_plan(np.array(initial), step, block, to)


def seconds(data: dict[str, Any], initial: list[int], *moves: tuple[int, int, int]) -> float:
    """Of a plan that keeps all capacities; the oracle must agree."""
    instance, made = KvTiering(**data), plan(initial, *moves)
    found = evaluate(instance, made)
    assert found.feasible, found.violations
    tier_of = [[at] * instance.steps for at in initial]
    for step, block, to in sorted(moves):
        tier_of[block][step:] = [to] * (instance.steps - step)
    assert found.objective == pytest.approx(Oracle(data).value(tier_of), rel=1e-12)
    return found.objective


# `evaluate` and the oracle, written apart from each other.


@pytest.mark.parametrize("chunk", range(3))
def test_evaluate_says_what_the_definition_says(chunk: int) -> None:
    feasible = broken = 0
    for seed in range(chunk * 80, chunk * 80 + 80):
        data, rng = tiny(seed), np.random.default_rng(seed)
        instance, oracle = KvTiering(**data), Oracle(data)
        best = oracle.best()
        for n in range(6):
            tier_of = rng.integers(0, len(instance.tiers), (instance.blocks, instance.steps))
            if n % 2:  # mostly below: more of these fit
                tier_of = np.maximum(tier_of, rng.integers(0, len(instance.tiers), tier_of.shape))
            found, value = evaluate(instance, plan_of_tiers(instance, tier_of)), oracle.value(tier_of.tolist())
            assert found.feasible == math.isfinite(value), (seed, found.violations)
            if found.feasible:
                feasible += 1
                assert found.objective == pytest.approx(value, rel=1e-12, abs=0), seed
                assert found.objective >= best * (1 - 1e-12), seed
                assert math.fsum(found.parts.values()) == pytest.approx(found.objective, rel=1e-12)
            else:
                broken += 1
    assert min(feasible, broken) >= 80


# Replays by hand: `fast` reads 10 and writes 5 bytes a second, `slow` reads 2 and writes 1. Blocks of 10 bytes.

TEN = {"block_bytes": [10.0]}


def test_birth_at_step_0_is_free_and_later_ones_are_written() -> None:
    # Read where it lies, 10 / 10 = 1 s. Born in step 1: written first, 10 / 5 = 2 s, and read at once, 1 s more. Below: 10 / 1 + 10 / 2 = 15 s.
    assert seconds(two_tiers(10.0, **TEN, reads=reads([0], [])), [0]) == pytest.approx(1.0)
    assert seconds(two_tiers(10.0, **TEN, birth_step=[1], reads=reads([], [0])), [0]) == pytest.approx(3.0)
    assert seconds(two_tiers(10.0, **TEN, birth_step=[1], reads=reads([], [])), [0]) == pytest.approx(2.0)
    assert seconds(two_tiers(10.0, **TEN, birth_step=[1], reads=reads([], [0])), [1]) == pytest.approx(15.0)


def test_a_move_serves_the_read_of_its_step() -> None:
    # Up in step 1: slow reads 10 / 2 = 5 s, fast writes 10 / 5 = 2 s, at the same time; the read of step 1 is done by that. Step 2: 1 s.
    data = two_tiers(10.0, **TEN, reads=reads([], [0], [0]))
    assert seconds(data, [1], (1, 0, 0)) == pytest.approx(6.0)
    done = replay(KvTiering(**data), plan([1], (1, 0, 0)))
    assert done.tier_s.tolist() == [[0, 0], [2, 5], [1, 0]]
    assert done.occupancy_bytes.tolist() == [[0, 10], [10, 0], [10, 0]]
    assert done.moved_bytes.tolist() == [0, 10, 0]
    assert done.read_bytes.tolist() == [[0, 0], [0, 10], [10, 0]]
    assert done.moves.tolist() == [[0, 0], [1, 0]]
    # Down in step 1: fast reads 1 s, slow writes 10 s.
    assert seconds(two_tiers(10.0, **TEN, reads=reads([], [0])), [0], (1, 0, 1)) == pytest.approx(10.0)


def test_a_read_takes_its_bytes_and_a_move_the_whole_block() -> None:
    # 4 of 10 bytes: 4 / 2 = 2 s below; moving up reads all 10, 5 s, whatever was wanted, and so without any read.
    data = two_tiers(10.0, **TEN, reads=reads([], [0], bytes=[4.0]))
    assert seconds(data, [1]) == pytest.approx(2.0)
    assert seconds(data, [1], (1, 0, 0)) == pytest.approx(5.0)
    assert seconds(two_tiers(10.0, **TEN, reads=reads([], [])), [1], (1, 0, 0)) == pytest.approx(5.0)


def test_fixed_bytes_are_read_from_the_first_tier() -> None:
    # 20 and 30 bytes at 10 a second, beside 10 bytes from below that take 5 s in step 1.
    assert seconds(two_tiers(10.0, **TEN, reads=reads([], [0]), fixed_read_bytes=[20.0, 30.0]), [1]) == pytest.approx(2.0 + 5.0)
    assert seconds(two_tiers(10.0, **TEN, reads=reads([], [0]), fixed_read_bytes=20.0), [0]) == pytest.approx(2.0 + 3.0)


def test_parts_say_which_tier_a_step_waits_for() -> None:
    # Step 0 waits for fast (60 bytes, 6 s, against 5 s below), step 1 for slow (5 s).
    instance = KvTiering(**two_tiers(10.0, **TEN, reads=reads([0], [0]), fixed_read_bytes=[60.0, 0.0]))
    assert evaluate(instance, plan([1])).parts == pytest.approx({"fast_s": 6.0, "slow_s": 5.0})


def test_inclusive_moves_down_are_free_and_read_below() -> None:
    # The copy is below already: no byte is written, and 4 of its bytes are read there, 4 / 2 = 2 s; without a read nothing at all is done.
    data = two_tiers(10.0, **TEN, inclusive=True, reads=reads([], [0], bytes=[4.0]))
    assert seconds(data, [0], (1, 0, 1)) == pytest.approx(2.0)
    done = replay(KvTiering(**data), plan([0], (1, 0, 1)))
    assert done.moved_bytes.tolist() == [0, 0]
    assert done.read_bytes.tolist() == [[0, 0], [0, 4]]
    assert seconds(data | {"reads": reads([], [])}, [0], (1, 0, 1)) == 0.0
    # Up costs as ever: 10 / 2 = 5 s.
    assert seconds(data, [1], (1, 0, 0)) == pytest.approx(5.0)


def test_inclusive_births_are_written_below_once() -> None:
    # Above: 10 / 5 = 2 s there and 10 / 1 = 10 s below at the same time. Below: 10 s, not 20. In step 0: free.
    data = two_tiers(10.0, **TEN, birth_step=[1], inclusive=True, reads=reads([], []))
    assert seconds(data, [0]) == pytest.approx(10.0)
    assert replay(KvTiering(**data), plan([0])).tier_s.tolist() == [[0, 0], [2, 10]]
    assert replay(KvTiering(**data), plan([1])).tier_s.tolist() == [[0, 0], [0, 10]]
    assert seconds(data | {"birth_step": [0]}, [0]) == 0.0


def test_only_the_last_tier_has_copies() -> None:
    # Three tiers, `inclusive`: from the first to the second is a move like any other: 10 / 10 = 1 s read, 10 / 4 = 2.5 s written.
    middle = {"name": "middle", "capacity_bytes": 10.0, "read_bytes_per_s": 5.0, "write_bytes_per_s": 4.0}
    data = two_tiers(10.0, **TEN, inclusive=True, reads=reads([], [0]))
    data["tiers"].insert(1, middle)
    assert seconds(data, [0], (1, 0, 1)) == pytest.approx(2.5)


def test_capacity_counts_after_moves_births_and_deaths() -> None:
    # Block 0 goes down in step 1, where block 1 is born above: no more than 10 bytes at any time, no transient copy counts. Block 1 dies before step
    # 2, where block 0 comes up again: slow writes 10 s; fast writes 2 s in step 1. Step 2: 5 s.
    data = two_tiers(10.0, block_bytes=[10.0, 10.0], birth_step=[0, 1], death_step=[3, 2], reads=reads([], [], []))
    assert seconds(data, [0, 0], (1, 0, 1), (2, 0, 0)) == pytest.approx(15.0)
    # Two blocks that change places in one step fit too.
    swap = two_tiers(10.0, block_bytes=[10.0, 10.0], reads=reads([], []))
    assert seconds(swap, [0, 1], (1, 0, 1), (1, 1, 0)) == pytest.approx(15.0)  # slow reads 5 s and writes 10 s
    # Without the move both are above in step 1.
    found = evaluate(KvTiering(**data), plan([0, 0]))
    assert [str(violation) for violation in found.violations] == ["capacity[tier fast, step 1] exceeded by 10 (limit 10)"]


def test_noise_in_a_capacity_is_let_pass_and_granted_by_bounds() -> None:
    # Half of what is tolerated, 1e-9 of the capacity, and twice as much.
    within, beyond = (two_tiers(10.0 * (1 - share), **TEN, reads=reads([0])) for share in (0.5e-9, 2e-9))
    assert seconds(within, [0]) == pytest.approx(1.0)
    assert hit_volume_value(KvTiering(**within)) <= 1.0
    assert not evaluate(KvTiering(**beyond), plan([0])).feasible
    assert Oracle(within).best() == pytest.approx(1.0)
    assert Oracle(beyond).best() == pytest.approx(5.0)


def test_violations_beyond_twenty_are_added_up() -> None:
    data = two_tiers(4.0, **TEN, reads=reads(*[[] for _ in range(25)]))
    found = evaluate(KvTiering(**data), plan([0])).violations
    assert len(found) == 21
    assert (found[0].constraint, found[0].index, found[0].amount, found[0].limit) == ("capacity", "tier fast, step 0", 6.0, 4.0)
    assert (found[-1].index, found[-1].amount) == ("5 more", 30.0)


# Plans that do not fit.

PLANS = [
    (plan([0]), "plan: initial_tier must have 2 entries, one for each block, got 1"),
    (plan([0, 2]), "plan: initial_tier[1] must be a tier from 0 to 1, got 2"),
    (plan([0, 1], (4, 0, 1)), "plan: moves.step[0] must be a step from 0 to 3, got 4"),
    (plan([0, 1], (1, 2, 1)), "plan: moves.block[0] must be a block from 0 to 1, got 2"),
    (plan([0, 1], (1, 0, 5)), "plan: moves.to_tier[0] must be a tier from 0 to 1, got 5"),
    (plan([0, 1], (0, 0, 1)), "plan: moves.step[0] must be after step 0 and before step 4, the life of block 0, got 0"),
    (plan([0, 1], (3, 1, 0)), "plan: moves.step[0] must be after step 1 and before step 3, the life of block 1, got 3"),
    (plan([0, 1], (2, 0, 1), (2, 0, 1)), "plan: moves must move a block at most once in a step, got block 0 twice in step 2"),
    (plan([0, 1], (1, 0, 0)), "plan: moves must change the tier, got block 0 in step 1, which is in tier 0 already"),
]


@pytest.mark.parametrize(("broken", "message"), PLANS, ids=[message[6:30] for _, message in PLANS])
def test_plans_that_do_not_fit_are_refused(broken: TieringPlan, message: str) -> None:
    data = two_tiers(20.0, block_bytes=[10.0, 10.0], birth_step=[0, 1], death_step=[4, 3], reads=reads([], [], [], []))
    with pytest.raises(InputError) as caught:
        evaluate(KvTiering(**data), broken)
    assert str(caught.value) == message


def test_plans_of_uneven_lists_or_another_family_are_refused() -> None:
    instance = KvTiering(**two_tiers(20.0, **TEN, reads=reads([], [])))
    uneven = TieringPlan(initial_tier=[0], moves={"step": [1], "block": [0], "to_tier": []})
    with pytest.raises(InputError, match=r"^plan: moves.step, moves.block and moves.to_tier must be of one length, got 1, 1 and 0$"):
        evaluate(instance, uneven)
    with pytest.raises(InputError, match=r"^plan must have initial_tier and moves, got a Plan$"):
        evaluate(instance, Plan())
    with pytest.raises(InputError, match=r"^plan: initial_tier\[0\] must be a whole number from 0 to 7, got -1"):
        TieringPlan(initial_tier=[-1], moves={"step": [], "block": [], "to_tier": []})


# Instances: one test a rule.

FAST, SLOW = two_tiers(10.0)["tiers"]
TWO = {"block_bytes": [10.0, 10.0], "reads": reads([0], [1])}
RULES = [
    ({"tiers": []}, "tiers must be"),
    ({"tiers": [FAST, SLOW | {"name": "fast"}]}, "tiers[1].name must differ from the others, got 'fast' again"),
    ({"tiers": [SLOW | {"name": "a"}, SLOW]}, "tiers[0].capacity_bytes must be a number because only the last tier is unbounded, got null"),
    ({"tiers": [FAST]}, "tiers[0].capacity_bytes must be null because the last tier is unbounded, got 10"),
    ({"tiers": [FAST | {"capacity_bytes": -3.0}, SLOW]}, "tiers[0].capacity_bytes must be greater than or equal to 0, got -3"),
    ({"tiers": [FAST | {"read_bytes_per_s": 0.0}, SLOW]}, "tiers[0].read_bytes_per_s must be greater than or equal to 1, got 0"),
    ({"tiers": [FAST, {"name": "x", "capacity_bytes": None, "read_bytes_per_s": 1.0}]}, "tiers[1].write_bytes_per_s is missing"),
    ({"tiers": [FAST | {"speed": 1.0}, SLOW]}, "tiers[0].speed is an unknown field"),
    ({"block_bytes": [10.0, 0.5]}, "block_bytes[1] must be a number from 1 to 1e+18, got 0.5"),
    ({"block_bytes": "10"}, "block_bytes must be a number, or a list of them with one for each block, got '10'"),
    ({"block_bytes": math.nan}, "block_bytes must be a number from 1 to 1e+18, got nan"),
    ({"birth_step": [0]}, "birth_step must have 2 entries, one for each block as in block_bytes, got 1"),
    ({"birth_step": [0, 2]}, "birth_step[1] must be below 2, the number of steps, got 2"),
    ({"birth_step": 1.0}, "birth_step must be a whole number, or a list of them with one for each block, got 1.0"),
    ({"birth_step": [0, 1], "death_step": [1, 1]}, "death_step[1] must be above its birth_step 1, got 1"),
    ({"death_step": 0}, "death_step must be above its birth_step 0, got 0"),
    ({"fixed_read_bytes": [1.0]}, "fixed_read_bytes must have 2 entries, one for each step, got 1"),
    ({"fixed_read_bytes": -1.0}, "fixed_read_bytes must be a number from 0 to 1e+18, got -1.0"),
    ({"inclusive": 1}, "inclusive must be"),
    (
        {"reads": {"indptr": [0], "block": []}},
        "reads.indptr must begin with 0 and have an entry more than there are steps, at least 2, got 1 entries",
    ),
    (
        {"reads": {"indptr": [1, 2], "block": [0, 1]}},
        "reads.indptr must begin with 0 and have an entry more than there are steps, at least 2, got 1 first",
    ),
    ({"reads": {"indptr": [0, 2, 1], "block": [0]}}, "reads.indptr[2] must be at least 2, as reads.indptr[1] is, got 1"),
    ({"reads": {"indptr": [0, 1, 3], "block": [0, 1]}}, "reads.indptr must end with 2, the length of reads.block, got 3"),
    ({"reads": reads([0], [1], bytes=[1.0])}, "reads.bytes must have 2 entries, one for each in reads.block, got 1"),
    ({"reads": reads([0], [2])}, "reads.block[1] must be a block from 0 to 1, got 2"),
    ({"reads": reads([0], [1, 0, 1])}, "reads.block[1] must be read once in step 1, got block 1 twice"),
    ({"reads": reads([0], [1], bytes=[10.0, 10.5])}, "reads.bytes[1] must be at most 10, the block's size, got 10.5"),
    ({"birth_step": [1, 0]}, "reads.block[0] must be alive in step 0, got block 0, which lives from step 1 to before step 2"),
    ({"death_step": [1, 1]}, "reads.block[1] must be alive in step 1, got block 1, which lives from step 0 to before step 1"),
    ({"block_bytes": 4.0, "reads": reads([], [])}, "reads.block must name at least one block, or block_bytes have an entry for each, got none"),
]


@pytest.mark.parametrize(("changes", "message"), RULES, ids=[message[:40] for _, message in RULES])
def test_each_rule_is_one_line_that_names_the_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        KvTiering(**(two_tiers(10.0, **TWO) | changes))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_numbers_for_all_blocks_are_the_same_problem_as_arrays() -> None:
    short = KvTiering(**two_tiers(10.0, block_bytes=10.0, birth_step=0, death_step=2, reads=reads([0], [2]), fixed_read_bytes=3.0))
    long = KvTiering(
        **two_tiers(10.0, block_bytes=[10.0] * 3, birth_step=[0] * 3, death_step=[2] * 3, reads=reads([0], [2]), fixed_read_bytes=[3.0, 3.0])
    )
    assert short.blocks == long.blocks == 3
    assert evaluate(short, plan([0, 1, 1])) == evaluate(long, plan([0, 1, 1]))
    assert short != long  # the data differ, even if the problem does not


# Files.


def test_files_keep_every_instance(tmp_path: Path) -> None:
    scalars = two_tiers(10.0, block_bytes=10.0, reads=reads([0, 1], [1]), fixed_read_bytes=2.5, birth_step=0, death_step=7)
    for number, data in enumerate([scalars, *(tiny(seed) for seed in range(24))]):
        instance = KvTiering(name=f"n°{number} ключ", provenance={"seed": number}, **data)
        for suffix in (".json", ".npz"):
            path = tmp_path / f"{number}{suffix}"
            instance.save(path)
            again = KvTiering.from_document(load_document(path))
            assert again.digest() == instance.digest(), (number, suffix)
            assert (again.name, again.provenance) == (instance.name, instance.provenance)
            assert again.data() == instance.data()
            assert isinstance(again.block_bytes, np.ndarray) == isinstance(instance.block_bytes, np.ndarray)


def test_any_change_changes_the_digest() -> None:
    base = KvTiering(**two_tiers(10.0, **TWO))
    changes: list[dict[str, Any]] = [
        {"inclusive": True}, {"fixed_read_bytes": 1.0}, {"fixed_read_bytes": [0.0, 1.0]}, {"birth_step": [0, 1]}, {"death_step": [1, 2]},
        {"block_bytes": [10.0, 11.0]}, {"reads": reads([0], [1], bytes=[10.0, 10.0])}, {"reads": reads([1], [0])},
    ]  # fmt: skip
    digests = {base.digest(), *(KvTiering(**(two_tiers(10.0, **TWO) | change)).digest() for change in changes)}
    assert len(digests) == len(changes) + 1


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 100_000))
def test_plans_survive_json(seed: int) -> None:
    instance, rng = KvTiering(**tiny(seed)), np.random.default_rng(seed)
    made = plan_of_tiers(instance, rng.integers(0, len(instance.tiers), (instance.blocks, instance.steps)))
    again = TieringPlan(**made.document())
    assert again.document() == made.document()
    assert evaluate(instance, again) == evaluate(instance, made)
