"""The rounding cut of KV tiering against every number of misses and every joint state; usable capacity against every plan that fits."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest

from headroom.bounds.kv_tiering_lagrangian import Multipliers, certified_value, rounding_cuts, usable_capacity
from headroom.formulations.kv_tiering import evaluate, make_plan
from headroom.instances.kv_tiering import KvTiering
from tests.kv_tiering_cases import reads, two_tiers
from tests.oracles.kv_tiering import Oracle
from tests.test_kv_tiering_lagrangian import EXACT, whole

NOTHING = np.zeros(0, np.int64)


# The rounding cut.


def one_step(reads_of_step: int, fixed: float, speeds: list[tuple[float, float]], size: float) -> KvTiering:
    last = len(speeds) - 1
    tiers = [
        {"name": f"{k}", "capacity_bytes": None if k == last else 0.0, "read_bytes_per_s": read, "write_bytes_per_s": write}
        for k, (read, write) in enumerate(speeds)
    ]
    rows = {"indptr": np.array([0, reads_of_step]), "block": np.arange(reads_of_step)}
    return KvTiering(tiers=tiers, block_bytes=size, reads=rows, fixed_read_bytes=fixed)


def least_times(instance: KvTiering) -> np.ndarray:
    """h(x) for x = 0 .. n: misses are given out one by one, each to the tier that ends first."""
    size, count = float(instance.size[0]), len(instance.reads.block)
    each = [size / max(tier.read_bytes_per_s, tier.write_bytes_per_s) for tier in instance.tiers[1:]]
    jobs, found = [0] * len(each), []
    for x in range(count + 1):
        if x:
            k = min(range(len(each)), key=lambda k: (jobs[k] + 1) * each[k])
            jobs[k] += 1
        first = (float(instance.fixed[0]) + (count - x) * size) / instance.tiers[0].read_bytes_per_s
        found.append(max(first, *(n * job for n, job in zip(jobs, each, strict=True))))
    return np.array(found)


def test_the_cut_is_below_every_whole_number_of_misses() -> None:
    rng, useful, rising, falling = np.random.default_rng(5), 0, 0, 0
    for n in range(2000):
        tiers, count = int(rng.integers(2, 6)), int(rng.integers(1, [6, 30, 200][n % 3]))
        ratio = float(rng.choice([0.1, 1.2, 3.0, 10.0, 1000.0]))
        speeds = [(1e13 * ratio**-k * rng.uniform(0.5, 2), 1e13 * ratio**-k * rng.uniform(0.2, 5)) for k in range(tiers)]
        if n % 4 == 0:  # speeds that divide each other: ties
            speeds = [(float(2 ** (6 - k)), float(2 ** (6 - k + rng.integers(-1, 2)))) for k in range(tiers)]
        size = float(rng.choice([1.0, 1 / 3 + 1, 4096.0]))
        instance = one_step(count, float(rng.choice([0.0, size * rng.random() * count, 5 * size])), speeds, size)
        cuts, times, x = rounding_cuts(instance), least_times(instance), np.arange(count + 1)
        line = cuts.constant_s[0] + cuts.slope_s_per_byte[0] * size * x
        assert (line <= times).all(), n
        if cuts.useful:
            useful += 1
            assert (times - line).min() <= 1e-10 * times.max()  # it touches
            falling += cuts.slope_s_per_byte[0] < 0
            rising += cuts.slope_s_per_byte[0] > 0
    assert useful >= 1000
    assert falling >= 100
    assert rising >= 100


@pytest.mark.parametrize("speeds", [[(3.0, 3.0), (2e9, 2e9)], [(9.0, 9.0), (3.0, 3.0), (1.0, 1.0)], [(15.0, 10.0), (10.0, 1.0), (70.0, 3.0)]])
def test_the_cut_beyond_the_numbers_that_are_tried(speeds: list[tuple[float, float]]) -> None:
    for count in (500, 20_000):
        instance = one_step(count, 0.0, speeds, 1 / 3 + 1)
        cuts, x = rounding_cuts(instance), np.arange(count + 1)
        line = cuts.constant_s[0] + cuts.slope_s_per_byte[0] * instance.size[0] * x
        assert cuts.useful
        assert (line <= least_times(instance)).all()


def test_a_cut_by_hand() -> None:
    # Tier 0 reads 4 bytes a second, tier 1 one; blocks of 4 bytes: 1 s each above, 4 s below. Seven reads: h(x) = max(7 - x, 4 x) = 7, 6, 8, 12: the
    # fractional least 5.6 at x = 1.4. Through (1, 6) and (2, 8): 4 + 2 x, at 1.4 it is 6.8. Through (0, 7) and (1, 6) it is tier 0's own time.
    cuts = rounding_cuts(one_step(7, 0.0, [(4.0, 4.0), (1.0, 1.0)], 4.0))
    assert cuts.constant_s[0] == pytest.approx(4.0, rel=1e-9)
    assert 4 * cuts.slope_s_per_byte[0] == pytest.approx(2.0, rel=1e-12)
    # Five reads: max(5 - x, 4 x) = 5, 4, 8: exact at x = 1. There is nothing to gain.
    assert not rounding_cuts(one_step(5, 0.0, [(4.0, 4.0), (1.0, 1.0)], 4.0)).useful
    # A fixed read of 8 bytes is 2 s: as seven reads.
    assert rounding_cuts(one_step(5, 8.0, [(4.0, 4.0), (1.0, 1.0)], 4.0)).constant_s[0] == pytest.approx(4.0, rel=1e-9)
    # Writes at 2 bytes a second: a miss may be a move down, 2 s: max(7 - x, 2 x) = 7, 6, 5, 6: through (2, 5) and (3, 6): 3 + x.
    written = rounding_cuts(one_step(7, 0.0, [(4.0, 4.0), (1.0, 2.0)], 4.0))
    assert (written.constant_s[0], 4 * written.slope_s_per_byte[0]) == pytest.approx((3.0, 1.0), rel=1e-9)
    # Two tiers below, 2 s and 4 s each: makespans 0, 2, 4, 4, 6. max(7 - x, those) = 7, 6, 5, 4, 6: least at 3, where 2 x 1 and 4 meet; fractionally
    # 7 - x = x / (3 / 4) at x = 3. Exact again. With eight reads: 8, 7, 6, 5, 6, 8: through (3, 5) and (4, 6): 2 + x.
    assert not rounding_cuts(one_step(7, 0.0, [(4.0, 4.0), (2.0, 2.0), (1.0, 1.0)], 4.0)).useful
    three = rounding_cuts(one_step(8, 0.0, [(4.0, 4.0), (2.0, 2.0), (1.0, 1.0)], 4.0))
    assert (three.constant_s[0], 4 * three.slope_s_per_byte[0]) == pytest.approx((2.0, 1.0), rel=1e-9)


def test_steps_without_a_cut() -> None:
    plain = two_tiers(4.0, block_bytes=[4.0, 4.0], reads=reads([0, 1], [], [1]))
    assert rounding_cuts(KvTiering(**plain)).slope_s_per_byte.tolist()[1] == 0.0
    for change in ({"block_bytes": [4.0, 5.0]}, {"reads": reads([0, 1], [], [1], bytes=[4.0] * 3)}, {"tiers": plain["tiers"][1:]}):
        assert not rounding_cuts(KvTiering(**(plain | change))).useful


def test_the_cut_holds_for_whatever_blocks_do_in_a_step() -> None:
    """Every pair of joint states, before and in a step: births read at once, moves of read blocks in every direction, copies below."""
    useful = touched = 0
    for seed in range(260):
        data = whole(seed)
        instance, oracle = KvTiering(**data), Oracle(data)
        cuts = rounding_cuts(instance)
        if not cuts.useful or instance.blocks * math.log(len(instance.tiers)) > math.log(90):
            continue
        oracle.fits = lambda state: True  # type: ignore[method-assign]  # a step's time knows no capacity
        before = np.full((1, oracle.blocks), oracle.none)
        for t in range(oracle.steps):
            now = oracle.states(t)
            busy, missed = np.zeros((len(before), len(now), len(oracle.tiers))), np.zeros((len(before), len(now)))
            busy[:, :, 0] = oracle.fixed[t] / oracle.tiers[0]["read_bytes_per_s"]
            options = range(oracle.none + 1)
            for i in range(oracle.blocks):
                pairs = before[:, i][:, None], now[:, i][None, :]
                busy += np.array([[oracle.work(i, t, a, b) for b in options] for a in options])[pairs]
                if i in oracle.read[t]:
                    missed += np.array([[not (b == 0 and a in (0, oracle.none)) for b in options] for a in options])[pairs]
            gap = busy.max(axis=2) * EXACT - (cuts.constant_s[t] + cuts.slope_s_per_byte[t] * oracle.size[0] * missed)
            assert gap.min() >= 0, (seed, t)
            if cuts.slope_s_per_byte[t]:
                useful += 1
                touched += gap.min() <= 1e-9 * busy.max()
            before = now
    assert useful >= 200
    assert touched >= 100


def test_a_cut_takes_no_time_by_the_number_of_reads() -> None:
    instance = one_step(1_000_000, 0.0, [(3.0, 3.0), (2.0, 2.0), (1.0, 1.0)], 1.0)
    began = time.process_time()
    for _ in range(20):
        assert rounding_cuts(instance).constant_s[0] >= 0.0
    assert time.process_time() - began < 1.0  # 0.02 s; merging the ends of a million jobs would take 2 s


# Capacity.


@pytest.mark.parametrize("size", [[4.0] * 5, [1 / 3 + 1] * 5, [4.0, 6.0, 10.0, 2.0, 2.0], [1.0, 2.5, 3.75, 1.5, 9.0], [1e15, 3e15, 1e15, 7e15, 2e15]])
def test_usable_capacity_is_what_accepted_plans_fill(size: list[float]) -> None:
    for most in [0.0, *np.unique([sum(some) for r in range(1, 6) for some in itertools.combinations(size, r)])]:
        for factor in (1.0, 1 - 1e-10, 1 - 9e-10, 1 - 1.1e-9, 1 + 1e-10, 1.0001, 0.9999):
            instance = KvTiering(**two_tiers(float(most * factor), block_bytes=size, reads=reads([0])))
            held = 0.0
            for state in itertools.product((0, 1), repeat=5):
                if evaluate(instance, make_plan(np.array(state), NOTHING, NOTHING, NOTHING)).feasible:
                    held = max(held, math.fsum(s for s, k in zip(size, state, strict=True) if k == 0))
            usable = float(usable_capacity(instance)[0])
            assert held <= usable * (1 + 2.1e-9), (most, factor)
            assert usable <= most * factor * (1 + 2.2e-9)
            if size == [size[0]] * 5:
                if factor != 1 - 1.1e-9:  # between what `evaluate` accepts and the slack that is granted
                    assert usable == pytest.approx(held, rel=1e-12)
                assert usable / size[0] == pytest.approx(round(usable / size[0]), rel=1e-14)


def test_capacity_by_hand() -> None:
    # Sizes 4, 6 and 10 fill even numbers only: 9 counts as 8; 3.9 holds none. Thirds have no common measure: what fits counts.
    def usable(capacity: float, size: list[float]) -> float:
        return float(usable_capacity(KvTiering(**two_tiers(capacity, block_bytes=size, reads=reads([0]))))[0])

    assert [usable(capacity, [4.0, 6.0, 10.0]) for capacity in (9.0, 8.0, 3.9, 0.0)] == [8.0, 8.0, 0.0, 0.0]
    assert usable(9.0, [4.0, 16 / 3]) == pytest.approx(9.0)
    assert usable(5.0, [4.0, 16 / 3]) == pytest.approx(5.0)
    assert usable_capacity(KvTiering(**(two_tiers(0.0, block_bytes=[4.0], reads=reads([0]), tiers=two_tiers(0.0)["tiers"][1:])))).shape == (0,)


def test_rounded_capacity_raises_the_bound() -> None:
    # Room for 7 bytes, blocks of 4: one fits. Both are read: 4 bytes from below, 2 s. Fractionally 7 would fit, 0.5 s.
    instance = KvTiering(**two_tiers(7.0, block_bytes=[4.0, 4.0], reads=reads([0, 1])))
    at = Multipliers(np.array([[0.0, 1.0]]), np.zeros(1), np.array([[0.5]]))
    # Blocks pay the least of 4 x 0.5 above and 4 / 2 below: 2 each, less rent 0.5 x 4.
    assert certified_value(instance, at.certificate()) == pytest.approx(2.0)
    assert Oracle(instance.dump()).best() == 2.0
