"""Replanning: its load is what `replay` finds, one item's path is the best there is, and sweeps keep what they promise."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from headroom.bounds.kv_tiering_lagrangian import usable_capacity
from headroom.bounds.kv_tiering_search import items_of
from headroom.formulations.kv_tiering import evaluate, make_plan, replay
from headroom.formulations.kv_tiering_model import tiers_of_plan
from headroom.instances.kv_tiering import KvTiering
from headroom.solvers.kv_tiering_primal import paths_of
from headroom.solvers.tiered_replanning import BATCHES, Guide, Load, Paths, Replanner, Tiers
from tests.kv_tiering_cases import drifting, reads, two_tiers
from tests.oracles.kv_tiering import Oracle

NEAR = 1e-9


def random_case(seed: int, most_blocks: int = 6, most_steps: int = 12) -> dict[str, Any]:
    """Larger than `tiny`, without a thought for enumeration: K 1 .. 4, births with reads at once, deaths, parts, gaps between reads."""
    rng = np.random.default_rng([8, seed])
    tiers, blocks, steps = int(rng.integers(1, 5)), int(rng.integers(1, most_blocks + 1)), int(rng.integers(1, most_steps + 1))
    size = rng.integers(1, 9, blocks).astype(float) if seed % 2 else np.maximum(rng.lognormal(2, 1, blocks), 1.0)
    birth = np.where(rng.random(blocks) < 0.5, rng.integers(0, steps, blocks), 0)
    death = np.where(rng.random(blocks) < 0.5, rng.integers(birth + 1, steps + 2), steps)
    speed = 10.0 ** rng.uniform(1, 2, (tiers, 2)) * 2.0 ** -np.arange(tiers)[:, None]
    capacity = [float(rng.choice([0.0, size.sum() * rng.random()])) for _ in range(tiers - 1)] + [None]
    rows = []
    often = np.full((steps, blocks), rng.choice([0.1, 0.4, 0.9]))
    if seed % 4 > 1:  # some are read early and some late: reasons to move
        often = np.where((np.arange(steps)[:, None] < steps / 2) == (rng.random(blocks) < 0.5), 0.9, 0.1)
    for t in range(steps):
        wanted = (birth <= t) & (death > t) & ((rng.random(blocks) < often[t]) | ((birth == t) & (seed % 3 == 0)))
        rows.append(np.flatnonzero(wanted).tolist())
    data: dict[str, Any] = {
        "tiers": [
            {"name": f"t{k}", "capacity_bytes": capacity[k], "read_bytes_per_s": float(speed[k, 0]), "write_bytes_per_s": float(speed[k, 1])}
            for k in range(tiers)
        ],
        "block_bytes": size.tolist(),
        "birth_step": birth.tolist(),
        "death_step": death.tolist(),
        "reads": reads(*rows),
        "inclusive": bool(seed % 4 == 0),
    }
    if seed % 5 == 1:
        data["reads"]["bytes"] = (size[data["reads"]["block"]] * rng.random(len(data["reads"]["block"]))).tolist()
    if seed % 5 == 2:
        data["fixed_read_bytes"] = (rng.random(steps) * 20).tolist()
    return data


def replanner(instance: KvTiering, threads: int = 1) -> Replanner:
    tiers = Tiers(instance.read_s, instance.write_s, np.append(usable_capacity(instance), np.inf))
    return Replanner(items_of(instance), tiers, instance.fixed * instance.read_s[0], threads)


def no_guide(instance: KvTiering) -> Guide:
    shape = (instance.steps, len(instance.tiers))
    return Guide(np.zeros(shape), np.zeros(shape))


def random_guide(instance: KvTiering, rng: np.random.Generator) -> Guide:
    shape = (instance.steps, len(instance.tiers))
    price = rng.random(shape) * float(instance.read_s.max()) * rng.choice([0.0, 0.3, 3.0])
    price[:, -1] = 0.0
    return Guide(rng.dirichlet(np.ones(shape[1]), shape[0]), price)


def random_soft(engine: Replanner, instance: KvTiering, rng: np.random.Generator, guide: Guide) -> None:
    hold = np.append(rng.random(len(instance.tiers) - 1) * float(instance.read_s.max() / instance.size.mean()), 0.0)
    stiffness = rng.random() * 10 / max(float(engine.load.time_s.mean()), 1e-30)
    assert engine.soft(rng.permutation(instance.blocks), guide, stiffness, hold)


def shake(engine: Replanner, instance: KvTiering, rng: np.random.Generator) -> None:
    """Sweeps of all kinds."""
    guide = random_guide(instance, rng)
    for _ in range(2):
        random_soft(engine, instance, rng, guide)
    engine.hard(rng.permutation(instance.blocks), guide, float(rng.random()), lanes=bool(rng.random() < 0.5))
    if rng.random() < 0.5:
        random_soft(engine, instance, rng, guide)


def assert_same_load(found: Load, wanted: Load) -> None:
    for one, other in ((found.time_s, wanted.time_s), (found.held_bytes, wanted.held_bytes)):
        np.testing.assert_allclose(one, other, rtol=NEAR, atol=NEAR * max(float(other.max()), 1e-300))


@pytest.mark.parametrize("part", range(4))
def test_load_is_what_replay_finds_after_any_sweeps(part: int) -> None:
    moved = 0
    for seed in range(part, 320, 4):
        instance = KvTiering.model_validate(random_case(seed))
        rng = np.random.default_rng(seed)
        engine = replanner(instance)
        shake(engine, instance, rng)
        plan = make_plan(*engine.moves())
        done = replay(instance, plan)
        moved += len(plan.moves.step)
        measured = engine.measure(engine.paths)
        assert_same_load(measured, Load(done.tier_s, done.occupancy_bytes))
        assert_same_load(engine.load, measured)
        assert measured.objective_s == pytest.approx(evaluate(instance, plan).objective, rel=NEAR)
        engine.refresh()
        assert np.array_equal(engine.load.time_s, measured.time_s)
    assert moved > 25


def test_paths_of_a_plan_are_the_paths_it_came_from() -> None:
    for seed in range(200):
        instance = KvTiering.model_validate(random_case(seed))
        engine = replanner(instance)
        shake(engine, instance, np.random.default_rng(seed))
        plan = make_plan(*engine.moves())
        again = paths_of(engine.items, plan)
        for name in ("born", "before", "after", "when"):
            assert np.array_equal(getattr(again, name), getattr(engine.paths, name)), (seed, name)
        other = replanner(instance)
        other.take(again)
        assert [column.tolist() for column in other.moves()] == [column.tolist() for column in engine.moves()]


def test_paths_of_a_plan_with_several_moves_between_two_reads() -> None:
    """Block 0 goes 1 -> 0 in step 1 and 0 -> 1 in step 2: nothing is left of it. Block 1 goes 2 -> 1 -> 0: it goes to 0 at once, in step 1."""
    data = two_tiers(9.0, block_bytes=[2.0, 3.0], reads=reads([0, 1], [], [], [0, 1]))
    data["tiers"].insert(1, {"name": "middle", "capacity_bytes": 9.0, "read_bytes_per_s": 4.0, "write_bytes_per_s": 4.0})
    instance = KvTiering.model_validate(data)
    plan = make_plan(np.array([1, 2]), np.array([1, 1, 2, 2]), np.array([0, 1, 0, 1]), np.array([0, 1, 1, 0]))
    engine = replanner(instance)
    engine.take(paths_of(engine.items, plan))
    born, step, block, to = engine.moves()
    assert (born.tolist(), step.tolist(), block.tolist(), to.tolist()) == ([1, 2], [1], [1], [0])


@pytest.mark.parametrize("lanes", [False, True])
def test_every_capacity_holds_after_one_hard_sweep(lanes: bool) -> None:
    crowded = 0
    for seed in range(250):
        instance = KvTiering.model_validate(random_case(seed, most_blocks=40, most_steps=8))
        rng = np.random.default_rng(seed)
        engine = replanner(instance)
        # From the worst: everything in the fastest tier.
        engine.take(Paths.all_in(engine.items, 0))
        room = instance.capacity[:-1] * (1 + NEAR)
        crowded += bool((engine.load.held_bytes[:, :-1] > room).any())
        engine.hard(rng.permutation(instance.blocks), random_guide(instance, rng), float(rng.random()), lanes)
        assert (engine.measure(engine.paths).held_bytes[:, :-1] <= room).all(), seed
        assert evaluate(instance, make_plan(*engine.moves())).feasible
    assert crowded > 100


def test_another_hard_sweep_without_a_guide_never_makes_it_longer() -> None:
    shorter = 0
    for seed in range(300):
        instance = KvTiering.model_validate(random_case(seed, most_blocks=10))
        rng = np.random.default_rng(seed)
        engine = replanner(instance)
        engine.hard(rng.permutation(instance.blocks), random_guide(instance, rng), float(rng.random()))
        engine.refresh()
        for _ in range(3):
            before = engine.load.objective_s
            engine.hard(rng.permutation(instance.blocks), no_guide(instance), 0.0)
            engine.refresh()
            assert engine.load.objective_s <= before * (1 + 1e-12), seed
            shorter += engine.load.objective_s < before * (1 - 1e-9)
    assert shorter > 50


def test_writing_a_birth_and_reading_it_at_once_are_charged_together() -> None:
    """Block 0 is born in step 1 and read there. Slow does 2 s of other work meanwhile (4 bytes of block 1, which never fits).

    Fast: 6 bytes written (1.2 s) and read (0.6 s), 1.8 s beside the 2 s: free. Slow: 6 + 3 + 2 = 11 s. With fast's write at 4 bytes a second
    (1.5 s + 0.6 s = 2.1 s) each alone is still free, but together they cost 0.1 s. Slow's bandwidths raised to 60: 0.1 s + 0.1 s more in slow
    (with block 1's 4 / 60 s: 0.267 s in all) against 2.1 s in fast, so slow is right though both tiers charge each part alone.
    """
    data = two_tiers(6.0, block_bytes=[6.0, 7.0], birth_step=[1, 0], reads=reads([1], [0, 1], bytes=[4.0, 6.0, 4.0]))
    instance = KvTiering.model_validate(data)
    engine = replanner(instance)
    engine.hard(np.arange(2), no_guide(instance), 0.0)
    assert engine.paths.born.tolist() == [0, 1]
    assert engine.load.objective_s == pytest.approx(2.0 + 2.0)
    data["tiers"][0] |= {"write_bytes_per_s": 4.0}
    engine = replanner(KvTiering.model_validate(data))
    engine.hard(np.arange(2), no_guide(instance), 0.0)
    assert engine.load.objective_s == pytest.approx(2.0 + 2.1)
    # A tier between, written and read at 10 bytes a second: 0.6 s + 0.6 s are free, so it takes the block.
    data["tiers"].insert(1, {"name": "middle", "capacity_bytes": 6.0, "read_bytes_per_s": 10.0, "write_bytes_per_s": 10.0})
    instance = KvTiering.model_validate(data)
    engine = replanner(instance)
    engine.hard(np.arange(2), no_guide(instance), 0.0)
    assert engine.paths.born.tolist() == [1, 2]
    assert engine.load.objective_s == pytest.approx(2.0 + 2.0)


def best_paths(instance: KvTiering, oracle: Oracle, tier_of: list[list[int]], i: int) -> tuple[float, float]:
    """Best seconds over all paths of block i while the others stay: of those that move at most once between two reads, and of all."""
    birth, death = int(instance.birth[i]), int(instance.death[i])
    ends = [birth, *(t for t in range(birth, death) if i in oracle.read[t]), death]
    once = every = math.inf
    for path in itertools.product(range(len(instance.tiers)), repeat=death - birth):
        tier_of[i] = [-1] * birth + list(path) + [-1] * (instance.steps - death)
        value = oracle.value(tier_of)
        moves = [t for t in range(birth + 1, death) if path[t - birth] != path[t - 1 - birth]]
        every = min(every, value)
        if all(sum(begin < t < end for t in moves) <= 1 for begin, end in itertools.pairwise(ends)):
            once = min(once, value)
    return once, every


def test_a_block_goes_along_the_best_of_all_its_paths_against_the_others() -> None:
    """Births, deaths, parts, copies, capacities that the others leave: of all paths with at most one move between two reads it takes the best.

    A second move between two reads is left out on purpose: in none of these would it be better.
    """
    tried = moving = born_late = lost = 0
    for seed in range(1500):
        data = random_case(seed, most_blocks=5, most_steps=6)
        instance, oracle = KvTiering.model_validate(data), Oracle(data)
        rng = np.random.default_rng(seed)
        i = int(rng.integers(instance.blocks))
        if not 2 <= len(instance.tiers) ** int(instance.death[i] - instance.birth[i]) <= 300:
            continue
        engine, guide = replanner(instance), random_guide(instance, rng)
        random_soft(engine, instance, rng, guide)
        engine.hard(rng.permutation(instance.blocks), guide, 0.8)
        engine.refresh()
        engine.hard(np.array([i]), no_guide(instance), 0.0)
        plan = make_plan(*engine.moves())
        once, every = best_paths(instance, oracle, tiers_of_plan(instance, plan).tolist(), i)
        assert evaluate(instance, plan).objective == pytest.approx(once, rel=NEAR, abs=1e-300), seed
        tried += 1
        lost += every < once * (1 - NEAR)
        moving += bool((plan.moves.block == i).any())
        born_late += int(instance.birth[i]) > 0
    assert tried > 600
    assert moving > 20
    assert born_late > 50
    assert lost == 0


@pytest.mark.parametrize("tiers", [2, 3])
def test_threads_do_not_change_the_paths(tiers: int) -> None:
    data = drifting(300, 40, 0.3, 0.2, 0.25, 8.0, 1)
    if tiers == 3:
        data["tiers"].insert(1, {"name": "cxl", "capacity_bytes": 60.0, "read_bytes_per_s": 3.0, "write_bytes_per_s": 2.0})
    instance = KvTiering.model_validate(data)
    found = []
    for threads in (1, 2):
        engine, rng = replanner(instance, threads), np.random.default_rng(3)
        for _ in range(2):
            random_soft(engine, instance, rng, random_guide(instance, rng))
        engine.hard(rng.permutation(instance.blocks), random_guide(instance, rng), 0.5, lanes=True)
        engine.close()
        found.append(engine)
    for name in ("born", "before", "after", "when"):
        assert np.array_equal(getattr(found[0].paths, name), getattr(found[1].paths, name))
    assert np.array_equal(found[0].load.time_s, found[1].load.time_s)
    assert np.array_equal(found[0].load.held_bytes, found[1].load.held_bytes)


def test_a_soft_sweep_stops_between_batches_with_its_load_in_order() -> None:
    instance = KvTiering.model_validate(drifting(200, 20, 0.3, 0.2, 0.25, 8.0, 1))
    engine, asked = replanner(instance), []

    def stop() -> bool:
        asked.append(True)
        return len(asked) > 3

    rng = np.random.default_rng(0)
    assert not engine.soft(rng.permutation(200), random_guide(instance, rng), 1.0, np.array([1.0, 0.0]), stop)
    assert len(asked) == 4 < BATCHES
    assert_same_load(engine.load, engine.measure(engine.paths))


def nearest_share(point: np.ndarray) -> np.ndarray:
    """The nearest point of the simplex, by trying every set of entries that may be positive."""
    best, found = math.inf, point
    for kept in itertools.chain.from_iterable(itertools.combinations(range(len(point)), r) for r in range(1, len(point) + 1)):
        candidate = np.zeros(len(point))
        candidate[list(kept)] = point[list(kept)] - (point[list(kept)].sum() - 1.0) / len(kept)
        if (candidate >= 0).all() and ((candidate - point) ** 2).sum() < best:
            best, found = float(((candidate - point) ** 2).sum()), candidate
    return found


def proximal_maximum(time_s: np.ndarray, share: np.ndarray, stiffness: float) -> tuple[float, np.ndarray]:
    """max of sum w y - (w - share)^2 / (2 stiffness) over the simplex, and where."""
    w = nearest_share(share + stiffness * time_s)
    return float(w @ time_s - ((w - share) ** 2).sum() / (2 * stiffness)), w


@pytest.mark.parametrize("tiers", [1, 2, 3, 4])
def test_proximal_weights_are_the_projection(tiers: int) -> None:
    from headroom.solvers.tiered_replanning_kernels import _weigh_tiers

    rng, cut_off = np.random.default_rng(tiers), 0
    for _ in range(200):
        share = rng.dirichlet(np.ones(tiers), 1) * rng.choice([1.0, 0.7])
        time_s, stiffness = rng.random((1, tiers)) * 3, float(rng.choice([0.0, 0.1, 1.0, 30.0]))
        weights = np.zeros((1, tiers))
        _weigh_tiers((0,) * tiers, 0, time_s, share, stiffness, weights)
        wanted = nearest_share(share[0] + stiffness * time_s[0])
        np.testing.assert_allclose(weights[0], wanted, atol=1e-12)
        cut_off += bool((wanted == 0).any())
    assert tiers == 1 or cut_off > 10


def test_soft_costs_are_the_change_of_the_augmented_lagrangian() -> None:
    """One block read once, two tiers: where it goes must be where the augmented Lagrangian is least, term by term from its definition.

    Weights stay inside (0, 1) and bytes held above the limit minus price / stiffness, where the charges are exact and not only its model.
    """
    chosen = [0, 0]
    for seed in range(300):
        rng = np.random.default_rng(seed)
        wanted = float(rng.uniform(0.2, 1.0))
        part = reads([0], bytes=[wanted])
        data = two_tiers(0.3, block_bytes=[1.0], reads=part, fixed_read_bytes=float(rng.uniform(0, 20)))
        data["tiers"][0]["capacity_bytes"] = 1.0  # held - limit is never below -1 and price above stiffness: no kink
        instance = KvTiering.model_validate(data)
        share = rng.uniform(0.3, 0.7)
        stiffness, hold = float(rng.uniform(0.01, 0.1)), float(rng.uniform(0.01, 0.1))
        guide = Guide(np.array([[share, 1 - share]]), np.array([[hold + rng.uniform(0.0, 0.3), 0.0]]))
        engine = replanner(instance)
        engine.soft(np.arange(1), guide, stiffness, np.array([hold, 0.0]))
        limit, values = float(usable_capacity(instance)[0]), []
        for tier in (0, 1):
            time_s = np.array([instance.fixed[0] * instance.read_s[0], 0.0])
            time_s[tier] += wanted * instance.read_s[tier]
            value, w = proximal_maximum(time_s, guide.share[0], stiffness)
            assert 0 < w[0] < 1
            missed = max(guide.price[0, 0] + hold * ((1.0 if tier == 0 else 0.0) - limit), 0.0)
            values.append(value + missed**2 / (2 * hold))
        if abs(values[0] - values[1]) > 1e-9:
            assert int(engine.paths.born[0]) == int(np.argmin(values)), seed
        chosen[int(engine.paths.born[0])] += 1
    assert min(chosen) > 30


def test_soft_costs_by_value() -> None:
    """The charge itself, in steps with any load: two tiers, weights inside (0, 1), work on one tier, on two, twice on one."""
    from headroom.solvers.tiered_replanning_kernels import _cost, _weigh_tiers

    rng, inside = np.random.default_rng(5), 0
    for _ in range(500):
        share = rng.dirichlet(np.ones(2), 1)
        time_s, stiffness = rng.random((1, 2)), float(rng.uniform(0.01, 0.8))
        before, w = proximal_maximum(time_s[0], share[0], stiffness)
        a, b = (int(tier) for tier in rng.integers(0, 2, 2))
        on_a, on_b = (float(work) for work in rng.random(2))
        after = time_s.copy()
        after[0, a] += on_a
        after[0, b] += on_b
        now, moved = proximal_maximum(after[0], share[0], stiffness)
        if not (0 < w[0] < 1 and 0 < moved[0] < 1):
            continue
        weights = np.zeros((1, 2))
        _weigh_tiers((0, 0), 0, time_s, share, stiffness, weights)
        cost = _cost(0.0, 0, a, on_a, b, on_b, True, time_s, weights, stiffness, share, 0.0)
        assert cost == pytest.approx(now - before, rel=1e-9, abs=1e-12)
        inside += 1
    assert inside > 200


def test_plans_of_moves_stay_on_their_tiers() -> None:
    """`tiers_of_plan` (the model's reading of a plan) and the engine's occupancy agree block by block."""
    for seed in range(60):
        instance = KvTiering.model_validate(random_case(seed))
        engine = replanner(instance)
        shake(engine, instance, np.random.default_rng(seed))
        tier_of = tiers_of_plan(instance, make_plan(*engine.moves()))
        held = np.zeros((instance.steps, len(instance.tiers)))
        for i in range(instance.blocks):
            for t in range(int(instance.birth[i]), int(instance.death[i])):
                held[t, tier_of[i, t]] += instance.size[i]
        np.testing.assert_allclose(engine.measure(engine.paths).held_bytes, held, rtol=NEAR)
