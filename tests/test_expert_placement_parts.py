"""What is certified of each part of a placement alone: below that part's own optimum, by every exact method, and said to people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headroom.bounds.expert_placement import traffic_of
from headroom.formulations.expert_placement import ExpertPlan, evaluate
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.expert_placement import ExpertPlacement
from headroom.instances.expert_placement_presets import make
from headroom.run import ContradictionError, run
from headroom.solvers.expert_placement_parts import gaps
from tests.command import headroom, one_document
from tests.expert_placement_cases import tiny
from tests.oracles.expert_placement import Oracle


@pytest.mark.parametrize("method", ["local_search", "highs", "cpsat"])
def test_no_part_is_certified_above_its_own_optimum(method: str) -> None:
    traffic = balance = 0
    for seed in range(60):
        data = tiny(seed, 100)
        instance = ExpertPlacement(**data)
        try:
            result = run(instance, method, SolveParams(time_limit_s=2.0))
        except ContradictionError:
            continue  # a solver's false bound, caught
        if result.plan is None:
            continue
        assert result.evaluation is not None
        parts = result.details["parts"]
        free = {key: value for key, value in data.items() if key != "max_moves"}
        for name, part in parts.items():
            assert part["value"] == pytest.approx(result.evaluation.parts[name], rel=1e-12), seed
            alone = Oracle(free | {"weights": {"balance": 0.0, "traffic": 0.0, "moves": 0.0, name: 1.0}}).best()
            assert part["bound"] <= alone * (1 + 1e-8) + 1e-12, (seed, name)
            assert part["gap"] >= 0
        assert ("balance" in parts) == (instance.weights.balance > 0)
        assert ("traffic" in parts) == (instance.weights.traffic > 0 and instance.layers > 1)
        balance += "balance" in parts
        traffic += "traffic" in parts
        layers = result.details["layers"]
        assert 1 - layers["bound"][layers["worst"]] / layers["imbalance"][layers["worst"]] == pytest.approx(layers["worst_gap"], abs=1e-12)
    assert balance >= 30
    assert traffic >= 10


def test_boundaries_one_by_one() -> None:
    rng = np.random.default_rng(3)
    table = rng.dirichlet(np.full(16, 0.3), 3).reshape(3, 4, 4)
    data: dict[str, Any] = {"load": np.ones((1, 4, 4)).tolist(), "transition": table.tolist(), "devices": 2, "slots_per_device": 2}
    instance = ExpertPlacement(**data, weights={"balance": 0.1, "traffic": 1.0})
    result = run(instance, "local_search", SolveParams(time_limit_s=5))
    found = result.details["boundaries"]
    assert len(found["bound"]) == 3
    for b in range(3):
        pair = {"load": np.ones((1, 2, 4)).tolist(), "transition": table[b : b + 1].tolist(), "devices": 2, "slots_per_device": 2}
        best = Oracle(pair | {"weights": {"balance": 0.0, "traffic": 1.0}}).best()
        assert found["bound"][b] <= best * (1 + 1e-9)
        assert found["bound"][b] <= found["traffic"][b] * (1 + 1e-9)
    assert np.mean(found["bound"]) <= result.details["parts"]["traffic"]["bound"] * (1 + 1e-9)


def test_traffic_alone_is_proved_where_the_objective_is() -> None:
    # Mixtral's splits are few: what is proved of the objective, traffic alone, is proved of traffic.
    result = run(make("mixtral-8x7b-4gpu", np.random.default_rng(0), {}), "local_search", SolveParams())
    part = result.details["parts"]["traffic"]
    assert result.status == "optimal"
    assert part["gap"] <= 1e-6
    assert "balance" not in result.details["parts"]


def test_a_bound_of_balance_says_nothing_of_traffic() -> None:
    instance = make("toy-traffic", np.random.default_rng(0), {})
    assert traffic_of(instance, Bound(1.5, "replica", "closed_form")) == 0.0
    assert traffic_of(instance, Bound(1.5, "b_matching", "certificate")) > 0.0


def test_people_and_documents_are_told(tmp_path: Path) -> None:
    make("toy-traffic", np.random.default_rng(1), {}).save(tmp_path / "x.json")
    text = headroom("solve", "x.json", "--method", "cpsat", cwd=tmp_path)
    assert text.returncode == 0, text.stderr
    assert "certified parts" in text.stdout
    assert "largest gap" in text.stdout
    document = one_document(headroom("solve", "x.json", "--method", "cpsat", "--json", cwd=tmp_path).stdout)
    parts = document["details"]["parts"]
    assert set(parts) == {"balance", "traffic"}
    assert all(set(part) == {"value", "bound", "gap"} for part in parts.values())
    assert document["details"]["boundaries"]["bound"]


def test_what_does_not_apply_is_one_line(tmp_path: Path) -> None:
    make("toy-moves", np.random.default_rng(1), {}).save(tmp_path / "x.json")
    done = headroom("compare", "x.json", "--methods", "lpt,exflow,static,periodic", "--bounds", "mean,chain_sdp,partitions", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "no plan: exflow (the instance has no transitions between layers); periodic, static (online policies need load_trace" in done.stdout
    assert "no bound: chain_sdp, partitions" in lines
    assert not any(line.startswith(("exflow ", "static ", "chain_sdp ")) for line in lines)
    rows = one_document(headroom("compare", "x.json", "--methods", "lpt,exflow", "--bounds", "mean", "--json", cwd=tmp_path).stdout)["rows"]
    assert {row["method"]: row["note"] for row in rows}["exflow"] == "exflow: the instance has no transitions between layers"
    assert {row["method"]: row["note"] for row in rows}["lpt"] is None


def test_no_bound_of_a_part_above_its_value() -> None:
    # Shares may miss 1 by the tolerance, sums by rounding: what a layer is said to be at least grants both.
    split = ExpertPlacement(load=[[[1.0, 1.0]]], devices=2, slots_per_device=1, split="optimal")
    plan = ExpertPlan(slot_expert=[[0, 1]], share=[[[1 - 9e-10, 1 - 9e-10]]])
    assert evaluate(split, plan).feasible
    even = ExpertPlacement(load=np.full((1, 1, 6), 0.9085358092182463), devices=6, slots_per_device=1)
    for instance, judged in ((split, plan), (even, ExpertPlan(slot_expert=[list(range(6))]))):
        found = gaps(instance, judged, ())
        assert found["layers"]["bound"][0] <= found["layers"]["imbalance"][0]
        assert found["layers"]["worst_gap"] >= 0
        assert found["parts"]["balance"]["bound"] <= found["parts"]["balance"]["value"]
