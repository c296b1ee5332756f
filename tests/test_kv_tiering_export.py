"""Exports, descriptions and plots of KV-tiering plans: a runtime that replays them holds in every step what the plan says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headroom import plots
from headroom.describe import describe, facts, unit
from headroom.describe_kv_tiering import duration, size
from headroom.documents import PlanDocument
from headroom.export.kv_tiering import moves_from, residency, schedule
from headroom.formulations.kv_tiering import TieringPlan, evaluate, make_plan, replay
from headroom.instances.errors import InputError
from headroom.instances.kv_tiering import KvTiering
from headroom.instances.kv_tiering_presets import make
from tests.kv_tiering_cases import reads, tiny, two_tiers

IntArray = npt.NDArray[np.int64]

# Four blocks of 4, 4, 2 and 2 bytes in three steps; block 2 is born in step 1, block 1 dies before step 2. The fast tier holds 8 bytes.
SIZES = [4.0, 4.0, 2.0, 2.0]
DATA = two_tiers(8.0, block_bytes=SIZES, birth_step=[0, 0, 1, 0], death_step=[3, 2, 3, 3], reads=reads([0, 1], [2], [0, 3]))
PLAN = make_plan(np.array([0, 0, 1, 1]), np.array([1, 2, 2]), np.array([0, 0, 3]), np.array([1, 0, 0]))


def document(plan: TieringPlan) -> PlanDocument:
    return PlanDocument(family="kv_tiering", plan=plan, source="plan.json")


def hand() -> KvTiering:
    return KvTiering(name="by hand", **DATA)


def random_plan(instance: KvTiering, seed: int) -> TieringPlan:
    """Any plan that fits: it may exceed capacities."""
    rng = np.random.default_rng([8, seed])
    tiers = len(instance.tiers)
    initial = rng.integers(0, tiers, instance.blocks)
    step, block, to_tier = list[int](), list[int](), list[int]()
    for i in range(instance.blocks):
        now = int(initial[i])
        for t in range(int(instance.birth[i]) + 1, int(instance.death[i])):
            then = int(rng.integers(0, tiers))
            if rng.random() < 0.5 and then != now:
                step, block, to_tier, now = [*step, t], [*block, i], [*to_tier, then], then
    order = rng.permutation(len(step))
    return make_plan(initial, np.array(step, np.int64)[order], np.array(block, np.int64)[order], np.array(to_tier, np.int64)[order])


def where(instance: KvTiering, plan: TieringPlan) -> list[dict[int, int]]:
    """The tier of every living block in every step, straight from the plan."""
    moves = {(t, i): k for t, i, k in zip(*(getattr(plan.moves, name).tolist() for name in ("step", "block", "to_tier")), strict=True)}
    now: dict[int, int] = {}
    found = []
    for t in range(instance.steps):
        now = {i: moves.get((t, i), k) for i, k in now.items() if instance.death[i] > t}
        now |= {i: int(plan.initial_tier[i]) for i in range(instance.blocks) if instance.birth[i] == t}
        found.append(dict(now))
    return found


# ---- Readers that know the documented formats only ------------------------------------------------------------------------------------------


def read_residency(text: str) -> tuple[dict[str, Any], list[dict[int, int]], list[list[float]]]:
    """Header, tier of each block held in each step, occupancies as the lines say them. A block is never twice in, nor out where it is not."""
    assert text.endswith("\n")
    header, *lines = [json.loads(line) for line in text.splitlines()]
    assert header["schema"] == "headroom/kv-residency/1"
    assert len(lines) == header["steps"]
    number = {tier["name"]: k for k, tier in enumerate(header["tiers"])}
    held: list[set[int]] = [set() for _ in number]
    found = []
    for t, line in enumerate(lines):
        assert line["step"] == t
        for name, blocks in line.get("leave", {}).items():
            assert blocks, "a tier that nobody leaves is left out"
            assert held[number[name]] >= set(blocks)
            held[number[name]] -= set(blocks)
        for name, blocks in line.get("enter", {}).items():
            assert blocks == sorted(set(blocks))
            assert not any(set(blocks) & other for other in held)
            held[number[name]] |= set(blocks)
        found.append({i: k for k, blocks in enumerate(held) for i in blocks})
    return header, found, [line["occupancy_bytes"] for line in lines]


def read_schedule(text: str) -> tuple[dict[str, Any], list[dict[int, int]]]:
    """The document, and the tier of each block in each step: deaths, then moves and births."""
    plan = json.loads(text)
    assert plan["schema"] == "headroom/kv-schedule/1"
    number = {tier["name"]: k for k, tier in enumerate(plan["tiers"])}
    now = {i: number[name] for name, blocks in plan["initial"].items() for i in blocks}
    sizes = plan["block_bytes"]
    found = []
    for t in range(plan["steps"]):
        for i in plan["deaths"].get(str(t), []):
            del now[i]
        for move in plan["moves"].get(str(t), []):
            assert all(now[i] == number[move["from"]] for i in move["blocks"])
            each = [sizes[i] if isinstance(sizes, list) else sizes for i in move["blocks"]]
            assert move["bytes"] == pytest.approx(sum(each))
            now |= dict.fromkeys(move["blocks"], number[move["to"]])
        for name, blocks in plan["births"].get(str(t), {}).items():
            assert not now.keys() & set(blocks)
            now |= dict.fromkeys(blocks, number[name])
        found.append(dict(now))
    return plan, found


# ---- Exports --------------------------------------------------------------------------------------------------------------------------------


def test_schedule_by_hand() -> None:
    plan, held = read_schedule(schedule(hand(), document(PLAN)))
    assert plan["initial"] == {"fast": [0, 1], "slow": [3]}
    assert plan["births"] == {"1": {"slow": [2]}}
    assert plan["deaths"] == {"2": [1]}  # blocks 0, 2 and 3 live to the end
    down = {"from": "fast", "to": "slow", "blocks": [0], "bytes": 4}
    assert plan["moves"] == {"1": [down], "2": [{"from": "slow", "to": "fast", "blocks": [0, 3], "bytes": 6}]}
    assert plan["tiers"] == [{"name": "fast", "capacity_bytes": 8}, {"name": "slow", "capacity_bytes": None}]
    assert (plan["block_bytes"], plan["total_s"]) == ([4, 4, 2, 2], evaluate(hand(), PLAN).objective)
    assert held == [{0: 0, 1: 0, 3: 1}, {0: 1, 1: 0, 2: 1, 3: 1}, {0: 0, 2: 1, 3: 0}]


def test_residency_by_hand() -> None:
    lines = [json.loads(line) for line in residency(hand(), document(PLAN)).splitlines()]
    assert lines[1]["enter"] == {"fast": [0, 1], "slow": [3]}
    assert "leave" not in lines[1]
    assert (lines[2]["leave"], lines[2]["enter"]) == ({"fast": [0]}, {"slow": [0, 2]})
    # Block 1 dies in the fast tier.
    assert (lines[3]["leave"], lines[3]["enter"]) == ({"fast": [1], "slow": [0, 3]}, {"fast": [0, 3]})
    assert [line["occupancy_bytes"] for line in lines[1:]] == [[8, 2], [4, 8], [6, 2]]
    # Step 0 reads 8 bytes from the fast tier at 10 bytes a second.
    assert lines[1]["seconds"] == pytest.approx(0.8)


@pytest.mark.parametrize("seed", range(60))
def test_replaying_gives_the_plan(seed: int) -> None:
    instance = KvTiering(name="tiny", **tiny(seed))
    plan = random_plan(instance, seed)
    truth, done = where(instance, plan), replay(instance, plan)
    header, held, occupancy = read_residency(residency(instance, document(plan)))
    assert held == truth
    np.testing.assert_allclose(occupancy, done.occupancy_bytes, rtol=1e-12)
    sizes = np.broadcast_to(header["block_bytes"], (header["blocks"],))
    # The bytes of what was replayed are what the plan's own replay says is held.
    counted = [[sum(sizes[i] for i, k in now.items() if k == tier) for tier in range(len(instance.tiers))] for now in held]
    np.testing.assert_allclose(counted, done.occupancy_bytes, rtol=1e-9, atol=1e-6)
    assert read_schedule(schedule(instance, document(plan)))[1] == truth


def test_large_and_the_same_each_time() -> None:
    instance = make("drift-0.5", np.random.default_rng(0), {})
    assert (instance.blocks, instance.steps) == (4000, 500)
    rng = np.random.default_rng(1)
    # A quarter of the blocks begin above; in each step 40 pairs trade places.
    where_now = np.arange(4000) % 4 > 0
    step, block, to_tier = list[int](), list[int](), list[int]()
    initial = where_now.astype(np.int64)
    for t in range(1, 500):
        for above in (0, 1):
            chosen = rng.permutation(np.flatnonzero(where_now == above))[:40]
            step, block, to_tier = step + [t] * 40, block + chosen.tolist(), to_tier + [1 - above] * 40
        where_now[block[-80:-40]] = True
        where_now[block[-40:]] = False
    # Whoever went down in a step may have come back up in it: keep the last word of each block and step.
    last = {(t, i): k for t, i, k in zip(step, block, to_tier, strict=True)}
    now = initial.copy()
    kept = []
    for (t, i), k in sorted(last.items()):
        if now[i] != k:
            kept.append((t, i, k))
            now[i] = k
    plan = make_plan(initial, *(np.array(column) for column in zip(*kept, strict=True)))
    assert len(plan.moves.step) > 30_000
    text = residency(instance, document(plan))
    assert text == residency(instance, document(plan))
    _, held, occupancy = read_residency(text)
    np.testing.assert_array_equal(occupancy, replay(instance, plan).occupancy_bytes)
    assert [held[t][i] for t, i, _ in kept[:2000]] == [k for _, _, k in kept[:2000]]
    assert read_schedule(schedule(instance, document(plan)))[1][-1] == held[-1]


def test_where_moves_come_from() -> None:
    assert moves_from(PLAN).tolist() == [0, 1, 1]
    assert moves_from(make_plan(np.array([1]), np.zeros(0, int), np.zeros(0, int), np.zeros(0, int))).tolist() == []


@pytest.mark.parametrize("target", [schedule, residency])
def test_a_plan_that_does_not_fit_is_refused(target: Any) -> None:
    wrong = make_plan(np.array([0, 0, 1, 1]), np.array([1]), np.array([9]), np.array([1]))
    with pytest.raises(InputError, match=r"^plan\.json: plan: moves\.block\[0\] must be a block from 0 to 3, got 9$"):
        target(hand(), document(wrong))


# ---- Descriptions ---------------------------------------------------------------------------------------------------------------------------


def test_description_by_hand() -> None:
    known = facts(hand(), PLAN)["tiering"]
    assert known["moves"] == [[0, 1], [2, 0]]
    assert known["moves_bytes"] == [[0, 4], [6, 0]]
    assert known["occupancy_mean_bytes"] == [6, 4]
    assert known["occupancy_peak_bytes"] == [8, 8]
    # Step 0 reads 8 bytes above; step 1 reads 2 below (the move's 4 serve no read); step 2 reads 6, all of them by moves from below.
    assert known["read_bytes"] == [8, 8]
    assert sum(known["waited_for_s"]) == pytest.approx(known["total_s"])
    assert known["total_s"] == pytest.approx(evaluate(hand(), PLAN).objective)
    said = dict(describe(hand(), PLAN))
    assert said["room"] == "fast 75.0% full (most 100%)"
    assert said["reads"] == "fast 50.0%, slow 50.0% of 16 bytes"
    assert said["moves"] == "2 up (6 bytes), 1 down (4 bytes)"
    assert unit(hand()) == " s"


def test_copies_below_are_said_to_cost_nothing() -> None:
    said = dict(describe(KvTiering(name="by hand", **DATA, inclusive=True), PLAN))
    assert said["moves"] == "2 up (6 bytes), 1 down (4 bytes); into slow, which keeps copies, at no cost"


def test_long_traces_are_not_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headroom.describe_kv_tiering.MOST_READS", 2)
    assert facts(hand(), PLAN) == {}
    assert describe(hand(), PLAN) == []


def test_units_for_people() -> None:
    assert [size(value) for value in (0, 1, 1023, 1536, 3 * 2**30)] == ["0 bytes", "1 byte", "1023 bytes", "1.5 KiB", "3 GiB"]
    assert [duration(value) for value in (0, 2.5, 0.0125, 3e-6, 4e-9)] == ["0 s", "2.5 s", "12.5 ms", "3 us", "4 ns"]


# ---- Plots ----------------------------------------------------------------------------------------------------------------------------------


def test_occupancy_is_drawn_as_it_is() -> None:
    _, ax = plots.figure()
    plots.tier_occupancy(ax, hand(), PLAN)
    fast, limit, slow = (patch.get_data() for patch in ax.patches)
    assert fast.values.tolist() == [8, 4, 6]
    assert (slow.values - np.asarray(slow.baseline)).tolist() == [2, 8, 2]
    assert limit.values.tolist() == [8, 8, 8]
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("held [bytes]", "step")


def test_times_are_drawn_as_they_are() -> None:
    _, ax = plots.figure()
    plots.tier_times(ax, hand(), PLAN)
    done = replay(hand(), PLAN)
    (step,) = ax.patches
    np.testing.assert_allclose(step.get_data().values, done.step_s)
    for k, line in enumerate(ax.lines):
        np.testing.assert_allclose(line.get_ydata(), done.tier_s[:, k])
    assert ax.get_ylabel() == "time of a step [s]"


def test_long_plans_are_drawn_as_means() -> None:
    # 1,000 steps, a block that goes up in step 1 and stays: four steps a column.
    data = two_tiers(4.0, block_bytes=[4.0], reads=reads(*([0] for _ in range(1000))))
    instance = KvTiering(name="long", **data)
    plan = make_plan(np.array([1]), np.array([1]), np.array([0]), np.array([0]))
    _, ax = plots.figure()
    plots.tier_occupancy(ax, instance, plan)
    values = ax.patches[0].get_data().values
    assert len(values) == 250
    assert values[:2].tolist() == [3, 4]
    assert ax.get_xlabel() == "step (means over 4 steps)"
    _, ax = plots.figure()
    plots.tier_times(ax, instance, plan)
    total = float(replay(instance, plan).step_s.sum())
    assert ax.patches[0].get_data().values.sum() * 4 == pytest.approx(total)


def test_other_families_are_refused() -> None:
    _, ax = plots.figure()
    with pytest.raises(InputError, match="expected kv_tiering"):
        plots.tier_times(ax, type("Other", (), {"family": "gpu_selection"})(), PLAN)
