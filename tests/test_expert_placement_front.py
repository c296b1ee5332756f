"""The front of moves against imbalance: by hand, against enumeration at every cap, with traffic, the verb, and the preset that it is for."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import headroom as package
from headroom.cli_sweep_text import as_text
from headroom.formulations.expert_placement import ExpertPlan, evaluate, moves
from headroom.formulations.types import SolveParams
from headroom.heuristics.expert_placement_eplb import rebalance
from headroom.instances.errors import InputError
from headroom.instances.expert_placement import ExpertPlacement
from headroom.instances.expert_placement_generators import drifted_loads, lognormal_loads, placement_of
from headroom.instances.expert_placement_presets import make
from headroom.sweep import Sweep, moves_front, sweep
from tests.command import headroom, one_document
from tests.expert_placement_cases import tiny
from tests.oracles.expert_placement import Oracle

HAND: dict[str, Any] = {
    "load": [[[4.0, 3.0, 2.0, 1.0], [4.0, 4.0, 1.0, 1.0]]],
    "devices": 2,
    "slots_per_device": 2,
    "current_slot_expert": [[0, 1, 2, 3], [0, 1, 2, 3]],
}
"""Two layers of four experts on two devices, no spare slots, mean device 5. As it is the first layer has 7 and 3 on its devices, 1.4, the second
8 and 2, 1.6: balance 1.5. An exchange of two experts is two moves and makes both layers even: {0, 3} {1, 2} has 5 and 5, so has {0, 2} {1, 3} in the
second. Two moves mend the second layer (1.4 + 1) / 2 = 1.2, four both; one or three moves are no better than none or two."""


def check(found: Sweep, instance: ExpertPlacement) -> None:
    """What every front must be: both ends, falling, each plan evaluated and within its cap, bounds below."""
    caps = [point.at["moves"] for point in found.points]
    assert caps[0] == 0
    costs = [point.objective for point in found.points]
    assert costs == sorted(costs, reverse=True)
    for point in found.points:
        assert point.certified_bound <= point.objective * (1 + 1e-9)
        assert point.bound <= point.objective * (1 + 1e-9)
        if point.plan is None:
            continue
        assert isinstance(point.plan, ExpertPlan)
        judged = evaluate(instance.replace(max_moves=int(point.at["moves"])), point.plan)
        assert judged.feasible
        assert judged.objective == point.objective
        assert dict(judged.parts) == dict(point.parts)
        assert moves(instance, point.plan.slot_expert) == point.fleet["moves"] <= point.at["moves"]


def test_a_front_by_hand() -> None:
    instance = ExpertPlacement(**HAND)
    found = package.moves_front(instance, range(9))
    check(found, instance)
    assert [point.at["moves"] for point in found.points] == list(range(9))
    assert [point.objective for point in found.points] == pytest.approx([1.5, 1.5, 1.2, 1.2, 1, 1, 1, 1, 1])
    assert found.points[0].gap == 0
    assert found.points[0].by == "no choice"
    assert [point.fleet["moves"] for point in found.points] == [0, 0, 2, 2, 4, 4, 4, 4, 4]
    exact = moves_front(instance, range(9), method="cpsat")
    assert [point.objective for point in exact.points] == pytest.approx([1.5, 1.5, 1.2, 1.2, 1, 1, 1, 1, 1])
    assert all(point.status == "optimal" for point in exact.points)


def test_the_table_and_the_text() -> None:
    found = moves_front(ExpertPlacement(**HAND), [2])
    frame = found.frame()
    assert list(frame["moves"]) == [0, 2, 4]  # both ends are added
    assert {"objective", "bound", "gap", "certified_bound", "part_balance", "count_moves"} <= set(frame.columns)
    text = as_text(found)
    assert "at most" in text
    assert "certified gap" in text
    assert "fleet" not in text
    assert len(moves_front(ExpertPlacement(**HAND)).points) == 5  # every whole number of moves that helps, where those are few


def cases(most: int, traffic: bool) -> list[tuple[int, dict[str, Any]]]:
    found = []
    for seed in range(400):
        data = tiny(seed, 100)
        if data.get("current_slot_expert") is not None and bool(data["weights"].get("traffic")) == traffic:
            data.pop("max_moves", None)
            found.append((seed, data))
    return found[:most]


@pytest.mark.parametrize("traffic", [False, True])
def test_every_cap_against_enumeration(traffic: bool) -> None:
    close = asked = 0
    for seed, data in cases(14, traffic):
        instance = ExpertPlacement(**data)
        caps = range(min(instance.layers * instance.slots, 6) + 1)
        found = moves_front(instance, caps, params=SolveParams(seed=seed, time_limit_s=1.0))
        check(found, instance)
        for point in found.points:
            best = Oracle(data | {"max_moves": int(point.at["moves"])}).best()
            assert point.bound <= best * (1 + 1e-8), (seed, point.at)
            assert point.objective >= best * (1 - 1e-9), (seed, point.at)
            close += point.objective <= best * (1 + 1e-6) + 1e-12
            asked += 1
    assert close >= 0.8 * asked, (close, asked)


def test_every_cap_exactly_by_cp_sat() -> None:
    for seed, data in cases(10, False) + cases(6, True):
        instance = ExpertPlacement(**data)
        caps = range(min(instance.layers * instance.slots, 5) + 1)
        found = moves_front(instance, caps, method="cpsat", params=SolveParams(time_limit_s=20))
        check(found, instance)
        for point in found.points:
            best = Oracle(data | {"max_moves": int(point.at["moves"])}).best()
            assert point.objective == pytest.approx(best, rel=2e-6, abs=1e-9), (seed, point.at)
            assert point.status == ("infeasible" if math.isinf(best) else "optimal"), (seed, point.at)


def test_the_preset_is_eplb_on_loads_that_drifted() -> None:
    instance = make("dsv2-lite-replan-ep8", np.random.default_rng(1), {"layers": 4})
    assert instance.current_slot_expert is not None
    keep = evaluate(instance.replace(max_moves=0), ExpertPlan(slot_expert=instance.current_slot_expert))
    assert keep.feasible
    assert 1.05 < keep.objective < 1.5
    found = moves_front(instance, [5, 10, 20], params=SolveParams(time_limit_s=4.0))
    check(found, instance)
    assert found.solves == 2
    costs = {int(point.at["moves"]): point.objective for point in found.points}
    assert costs[0] == keep.objective
    assert costs[20] < 1 + 0.5 * (costs[0] - 1)


def test_the_placement_that_stands_is_eplbs() -> None:
    rng = np.random.default_rng(5)
    load = lognormal_loads(rng, 3, 16, 0.8, 10_000)
    ours, theirs = placement_of(load, 4, 5), rebalance(load, 20, 1, 1, 4, False, 1)
    for row, ours_layer, theirs_layer in zip(load, ours, theirs, strict=True):
        assert (np.bincount(ours_layer) == np.bincount(theirs_layer)).all()
        each = row / np.bincount(ours_layer)
        busiest = [each[layer].reshape(4, 5).sum(axis=1).max() for layer in (ours_layer, theirs_layer)]
        assert busiest[0] <= busiest[1] * 1.05
        assert all(len(set(own)) == 5 for own in ours_layer.reshape(4, 5).tolist())
    # One expert holds nearly everything: its copies stand on every device, and what is left finds its place by exchanges.
    full = placement_of(np.array([[100.0, 1.0, 1.0]]), 3, 2)
    assert sorted(full[0].tolist()) == [0, 0, 0, 1, 1, 2] or sorted(full[0].tolist()) == [0, 0, 0, 1, 2, 2]
    assert all(len(set(own)) == 2 for own in full[0].reshape(3, 2).tolist())
    later = drifted_loads(rng, load, 0.3)
    assert (later.sum(axis=1) == load.sum(axis=1)).all()
    assert (drifted_loads(rng, load, 0.0) == load).all()


def test_what_cannot_be_asked() -> None:
    with pytest.raises(InputError, match="has no current_slot_expert"):
        moves_front(ExpertPlacement(load=np.ones((1, 1, 4)), devices=2, slots_per_device=2))
    with pytest.raises(InputError, match="takes no name"):
        sweep(ExpertPlacement(**HAND), "moves", "device 3", [1])
    with pytest.raises(InputError, match="whole number"):
        moves_front(ExpertPlacement(**HAND), [1.5])  # type: ignore[list-item]


def test_a_front_that_is_out_of_time_still_has_its_ends() -> None:
    instance = make("dsv2-lite-replan-ep8", np.random.default_rng(1), {})
    found = moves_front(instance, [10, 100], total_time_limit_s=0.2)
    check(found, instance)
    assert found.stop == "time_limit"
    assert all(point.plan is not None for point in found.points)


def test_the_verb(tmp_path: Path) -> None:
    path = tmp_path / "replan.json"
    ExpertPlacement(name="by hand", **HAND).save(path)
    done = headroom("sweep", str(path), "--moves", "0:4", "-o", "front.parquet", "--plot", "front.png", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = one_document(done.stdout)
    assert document["sweep"]["kind"] == "moves"
    assert [round(point["objective"], 9) for point in document["points"]] == [1.5, 1.5, 1.2, 1.2, 1.0]
    frame = pd.read_parquet(tmp_path / "front.parquet")
    assert list(frame["count_moves"]) == [0, 0, 2, 2, 4]
    assert (tmp_path / "front.png").stat().st_size > 5000
    text = headroom("sweep", str(path), "--moves", "0:4:3", cwd=tmp_path)
    assert text.returncode == 0
    assert "no choice" in text.stdout
    for bad, words in (("-1:3", "at least 0"), ("1.5", "whole number"), ("three", "must be a list")):
        refused = headroom("sweep", str(path), f"--moves={bad}", cwd=tmp_path)
        assert refused.returncode == 2
        assert words in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_neighbours_never_beat_each_other() -> None:
    # With traffic the caps are searched one by one; what a tighter one found a looser one takes over.
    rng = np.random.default_rng(2)
    data = make("toy-traffic", rng, {}).model_dump()
    current = np.tile(np.arange(4), (3, 1))
    instance = ExpertPlacement(**{k: v for k, v in data.items() if v is not None} | {"current_slot_expert": current})
    found = moves_front(instance, range(0, 13, 3), params=SolveParams(time_limit_s=0.5))
    check(found, instance)
    assert all(a.objective >= b.objective for a, b in itertools.pairwise(found.points))
    assert json.loads(json.dumps(found.points[-1].record()["parts"]))["traffic"] > 0


def test_a_cap_for_one_solve(tmp_path: Path) -> None:
    # --max-moves is recorded and holds for verify; the instance's own cap can only be tightened.
    ExpertPlacement(**HAND).save(tmp_path / "x.json")
    solved = headroom("solve", "x.json", "--max-moves", "2", "-o", "p.json", cwd=tmp_path)
    assert solved.returncode == 0, solved.stderr
    document = json.loads((tmp_path / "p.json").read_text("utf-8"))
    assert document["result"]["objective"] == pytest.approx(1.2)  # see HAND
    assert document["provenance"]["parameters"]["max_moves"] == 2
    assert headroom("verify", "x.json", "p.json", cwd=tmp_path).returncode == 0
    document["provenance"]["parameters"]["max_moves"] = 1
    (tmp_path / "q.json").write_text(json.dumps(document), encoding="utf-8")
    less = headroom("verify", "x.json", "q.json", cwd=tmp_path)
    assert less.returncode == 1
    assert "max_moves" in less.stdout + less.stderr
    ExpertPlacement(**HAND, max_moves=1).save(tmp_path / "y.json")
    document["provenance"]["parameters"]["max_moves"] = 2
    (tmp_path / "r.json").write_text(json.dumps(document), encoding="utf-8")
    looser = headroom("verify", "y.json", "r.json", cwd=tmp_path)
    assert looser.returncode == 1
    assert "asks for less than the instance's own 1" in looser.stdout + looser.stderr
