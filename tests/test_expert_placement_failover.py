"""Losing a device: what a plan is worth afterwards, against hand counts and a twin in loops; `min_holders` in every model, bound and method."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import headroom
from headroom.bounds.expert_placement import recheck
from headroom.documents import result_document
from headroom.formulations.expert_placement import ExpertPlan, device_counts, evaluate
from headroom.formulations.expert_placement_failover import cheap, failover
from headroom.formulations.progress import Progress
from headroom.formulations.types import SolveParams
from headroom.heuristics.expert_placement import plan_of
from headroom.heuristics.expert_placement_repair import repaired
from headroom.instances.errors import InputError
from headroom.instances.expert_placement import ExpertPlacement
from headroom.instances.expert_placement_import import import_expert_load
from headroom.instances.expert_placement_presets import make
from headroom.instances.files import to_json
from headroom.registry import FAMILIES
from headroom.run import ContradictionError, run
from headroom.verify import verify
from tests.command import headroom as command
from tests.command import one_document, only_error
from tests.expert_placement_cases import tiny
from tests.oracles.expert_placement import Oracle

FAMILY = FAMILIES["expert_placement"]
CLOSE = 1 + 1e-9


def preset(name: str, **changes: Any) -> ExpertPlacement:
    return make(name, np.random.default_rng(1), changes)


def safe(seed: int, most: int = 200) -> dict[str, Any] | None:
    """The tiny instance of a seed with two holders for each expert, where it admits that."""
    data = tiny(seed, most) | {"min_holders": 2}
    try:
        ExpertPlacement(**data)
    except InputError:
        return None
    return data


SAFE = [seed for seed in range(1000) if safe(seed) is not None][:90]


# What is left, by hand.


def test_shares_go_to_the_replicas_left() -> None:
    # Devices (0 1) (0 2) (1 2), loads 8 4 4, mean 16/3. Equal shares: 4+2, 4+2, 2+2.
    # Without device 0: expert 0 has one replica left on device 1, expert 1 one on device 2: loads 8+2 and 4+2; the mean of two is 8: 10/8.
    # Without device 1: 8+2 on device 0, 2+4 on device 2, 10/8. Without device 2: 4+4 on device 0, 4+4 on device 1: even.
    instance = ExpertPlacement(load=[[[8.0, 4.0, 4.0]]], devices=3, slots_per_device=2)
    found = failover(instance, ExpertPlan(slot_expert=[[0, 1, 0, 2, 1, 2]]))
    assert found.imbalance.tolist() == pytest.approx([1.25, 1.25, 1.0])
    assert found.lost_experts.tolist() == [0, 0, 0]
    assert (found.worst, found.survives) == (0, True)


def test_an_expert_that_nobody_else_holds_is_lost() -> None:
    # Devices (0 1) (0 2), loads 8 4 4. Without device 0 expert 1, a quarter of the load, is nowhere; device 1 carries 8+4 = 12, all that
    # is left to serve: 1. Without device 1 the same with expert 2. A second layer without load counts 1 and nothing of it weighs anything, though
    # its expert 1 or 2 is lost as well: (1 + 1) / 2, and a share of (1/4 + 0) / 2.
    instance = ExpertPlacement(load=[[[8.0, 4.0, 4.0], [0.0, 0.0, 0.0]]], devices=2, slots_per_device=2)
    found = failover(instance, ExpertPlan(slot_expert=[[0, 1, 0, 2]] * 2))
    assert found.lost_experts.tolist() == [2, 2]
    assert found.lost_share.tolist() == [0.125, 0.125]
    assert found.imbalance.tolist() == [1.0, 1.0]
    assert found.worst_layer.tolist() == [1.0, 1.0]
    assert not found.survives


def test_shares_of_the_plan_are_scaled_or_equal() -> None:
    # One expert of load 12 on all of three devices with shares 0.5 0.5 0. Without device 0: (0.5, 0) scaled to (1, 0), 12 over a mean of 6. Without
    # device 2: (0.5, 0.5) stays. With shares 1 0 0, without device 0 none is left to scale: equal shares, 6 and 6.
    instance = ExpertPlacement(load=[[[12.0]]], devices=3, slots_per_device=1, split="optimal")
    half = failover(instance, ExpertPlan(slot_expert=[[0, 0, 0]], share=[[[0.5, 0.5, 0.0]]]))
    assert half.imbalance.tolist() == [2.0, 2.0, 1.0]
    all_on_one = failover(instance, ExpertPlan(slot_expert=[[0, 0, 0]], share=[[[1.0, 0.0, 0.0]]]))
    assert all_on_one.imbalance.tolist() == [1.0, 2.0, 2.0]


def test_two_copies_on_one_device_are_one_holder() -> None:
    # Expert 0 twice on device 0, expert 1 on device 1 and 2 (twice): losing device 0 loses expert 0, and of the 6 left
    # devices 1 and 2 carry 3 each; without device 1, device 2 carries all 6 of expert 1, and device 0 the 3 of expert 0: 6 over (9 / 2).
    data: dict[str, Any] = {"load": [[[3.0, 6.0]]], "devices": 3, "slots_per_device": 2, "distinct": False}
    plan = ExpertPlan(slot_expert=[[0, 0, 1, 1, 1, 1]])
    found = failover(ExpertPlacement(**data), plan)
    assert found.lost_experts.tolist() == [1, 0, 0]
    assert found.imbalance.tolist() == pytest.approx([1.0, 6 / 4.5, 6 / 4.5])
    violations = evaluate(ExpertPlacement(**data, min_holders=2), plan).violations
    assert [(item.constraint, item.index, item.amount, item.limit) for item in violations] == [("holders", "layer 0, expert 0", 1.0, 2.0)]


def test_scenarios_and_nodes() -> None:
    # Nodes {0, 1} and {2, 3}; experts 0 and 1 in the first node twice, 2 and 3 in the second. Losing a node loses two of four experts; the rest
    # carries what it did. Scenario 0: 6 2 | 1 1 -> without node 1: devices carry 4 and 4, the mean of what is left; lost 2/10. Without node 0: 1
    # and 1; lost 8/10. Scenario 1 the other way round.
    data: dict[str, Any] = {"load": [[[6.0, 2.0, 1.0, 1.0]], [[1.0, 1.0, 2.0, 6.0]]], "devices": 4, "devices_per_node": 2, "slots_per_device": 2}
    plan = ExpertPlan(slot_expert=[[0, 1, 0, 1, 2, 3, 2, 3]])
    worst = failover(ExpertPlacement(**data), plan, "node")
    assert worst.lost_experts.tolist() == [2, 2]
    assert worst.imbalance.tolist() == pytest.approx([1.0, 1.0])
    assert worst.lost_share.tolist() == pytest.approx([0.8, 0.8])
    mean = failover(ExpertPlacement(**data, robust="mean"), plan, "node")
    assert mean.imbalance.tolist() == pytest.approx([1.0, 1.0])
    assert mean.lost_share.tolist() == pytest.approx([0.5, 0.5])
    # One device of four: its neighbour carries 6+2, the mean of three is 10/3; in scenario 1 the others carry 4 at most: the worst is the first's.
    assert failover(ExpertPlacement(**data), plan).imbalance.tolist() == pytest.approx([2.4, 2.4, 2.4, 2.4])


def test_the_only_device() -> None:
    instance = ExpertPlacement(load=[[[1.0, 2.0]]], devices=1, slots_per_device=2)
    found = failover(instance, ExpertPlan(slot_expert=[[0, 1]]))
    assert (found.lost_experts.tolist(), found.lost_share.tolist(), found.imbalance.tolist()) == ([2], [1.0], [math.inf])
    json.loads(to_json(result_document(run(instance, "local_search"))))  # infinite is null


# Against a twin in loops.


def twin(instance: ExpertPlacement, plan: ExpertPlan, gone: set[int]) -> tuple[int, float, float]:
    """(lost experts, lost share, imbalance) without the devices `gone`, from loops over slots."""
    k, left = instance.slots_per_device, instance.devices - len(gone)
    experts, over = 0, max if instance.robust == "worst" else lambda values: sum(values) / len(values)
    shares, uneven = [], []
    for l in range(instance.layers):
        slots = [(r // k, int(e)) for r, e in enumerate(plan.slot_expert[l])]
        lost = {e for d, e in slots if d in gone} - {e for d, e in slots if d not in gone}
        experts += len(lost)
        in_scenario = []
        for s in range(instance.scenarios):
            w = instance.load[s, l]
            carried = dict.fromkeys(range(instance.devices), 0.0)
            for e in range(instance.experts):
                mine = [(r, d) for r, (d, other) in enumerate(slots) if other == e]
                alive = [(r, d) for r, d in mine if d not in gone]
                share = {r: 1 / len(alive) for r, _ in alive}
                if plan.share is not None:
                    now = {r: float(plan.share[s, l, r]) for r, _ in alive}
                    touched = len(alive) < len(mine)
                    total = sum(now.values())
                    share = now if not touched else {r: a / total for r, a in now.items()} if total > 0 else share
                for r, d in alive:
                    carried[d] += w[e] * share[r]
            total, left_load = w.sum(), sum(w[e] for e in range(instance.experts) if e not in lost)
            most = max((v for d, v in carried.items() if d not in gone), default=math.inf)
            in_scenario.append(
                (
                    sum(w[e] for e in lost) / total if total > 0 else 0.0,
                    math.inf if not left else most / (left_load / left) if left_load > 0 else 1.0,
                )
            )
        shares.append(over([one[0] for one in in_scenario]))
        uneven.append(over([one[1] for one in in_scenario]))
    return experts, float(np.mean(shares)), float(np.mean(uneven))


@pytest.mark.parametrize("what", ["device", "node"])
def test_against_loops(what: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = 0
    for seed in range(80):
        instance, rng = ExpertPlacement(**tiny(seed)), np.random.default_rng(seed)
        # Any slots at all: experts held nowhere, several times on a device; shares with zeros that add up to anything.
        slots = rng.integers(0, instance.experts, (instance.layers, instance.slots))
        share = None
        if instance.split == "optimal":
            share = rng.random((instance.scenarios, *slots.shape)) * (rng.random((instance.scenarios, *slots.shape)) < 0.5)
        plan = ExpertPlan(slot_expert=slots, share=share)
        if seed % 2:
            monkeypatch.setattr("headroom.formulations.expert_placement_failover.AT_ONCE", 3)  # portions of one loss
        found = failover(instance, plan, what)
        unit = range(instance.devices) if what == "device" else instance.node_of.tolist()
        for u in range(len(found.imbalance)):
            expected = twin(instance, plan, {d for d in range(instance.devices) if unit[d] == u})
            assert found.lost_experts[u] == expected[0], (seed, u)
            assert (found.lost_share[u], found.imbalance[u]) == pytest.approx(expected[1:], rel=1e-9, abs=1e-12), (seed, u)
        lost += found.lost_experts.any()
    assert lost >= 10


# Two holders are what it takes.


def test_feasible_with_two_holders_survives_any_device() -> None:
    survived = 0
    for seed in SAFE[:60]:
        data = safe(seed)
        assert data is not None
        instance, rng = ExpertPlacement(**data), np.random.default_rng(seed)
        for _ in range(20):
            slots = np.array([rng.permutation(np.resize(rng.permutation(instance.experts), instance.slots)) for _ in range(instance.layers)])
            plan = plan_of(instance, slots)
            broken = {item.constraint for item in evaluate(instance, plan).violations}
            assert ("holders" in broken) == (not failover(instance, plan).survives)  # np.resize holds every expert at least twice
            survived += "holders" not in broken
    assert survived >= 30


def test_rules_of_the_instance() -> None:
    toy = preset("toy")
    assert "min_holders" not in toy.data()
    assert toy.digest() == "36005fbbb0ac60bf27fd4de3a819a5097ea7f1cef15dfef83045c303ff2fbf9d"  # as before there was such a field
    assert toy.replace(min_holders=1) == toy
    assert toy.replace(min_holders=2, slots_per_device=3).digest() != toy.replace(slots_per_device=3).digest()
    # 8 devices in 2 nodes, 12 experts in 4 groups of 3.
    for changes, message in (
        ({"min_holders": 0}, "min_holders must be greater than or equal to 1, got 0"),
        ({"min_holders": 9}, "min_holders must be at most 8, the number of devices, got 9"),
        ({"min_holders": 2}, "devices x slots_per_device must be at least 24 because min_holders is 2 and there are 12 experts, got 8 x 2"),
        (
            {"min_holders": 5, "slots_per_device": 8, "group_limited": True},
            "min_holders must be at most 4, the devices of a node, because group_limited is true, got 5",
        ),
        # 2 nodes of 4 x 4 slots hold 32 replicas, but of a group of 12 x 2 = 24 neither holds a whole one.
        (
            {"min_holders": 2, "slots_per_device": 4, "group_limited": True, "n_groups": 1},
            "n_groups must fit the nodes because group_limited is true: 0 whole groups of 12 experts, each on 2 devices, fit a node of 16 slots, "
            "2 nodes, got 1 groups",
        ),
    ):
        with pytest.raises(InputError) as caught:
            toy.replace(**changes)
        assert str(caught.value) == message
    # 12 experts in 24 of 32 slots: 8 spare slots and one of two holders' slots given up by nobody: 32 - 11 x 2 = 10, but 8 devices.
    roomy = toy.replace(min_holders=2, slots_per_device=4)
    assert roomy.most_replicas == 8
    assert roomy.replace(distinct=False).most_replicas == 10


def test_company_by_hand() -> None:
    # Four experts on two of four devices each, two slots a device, loads 4 3 2 1: two holders take all slots. The 4 stands twice, each copy of 2
    # beside a copy of at least 0.5: 2.5 over a mean of 2.5 is only 1; with loads 10 2 2 2 (mean 4) it is 5 + 1 = 6: 1.5.
    data: dict[str, Any] = {"devices": 4, "slots_per_device": 2, "min_holders": 2}
    for load, expected in (([4.0, 3.0, 2.0, 1.0], 1.0), ([10.0, 2.0, 2.0, 2.0], 1.5)):
        instance = ExpertPlacement(load=[[load]], **data)
        params = SolveParams()
        found = FAMILY.bounds["replica"].load()(instance, params, Progress(params))
        assert found.value == pytest.approx(expected)
        assert Oracle(instance.data()).best() == pytest.approx(expected)
        # Where the plan splits loads one copy may be idle beside others: company proves nothing there, and nothing is what it must say.
        free = instance.replace(split="optimal")
        assert FAMILY.bounds["replica"].load()(free, params, Progress(params)).value <= Oracle(free.data()).best() * CLOSE


def test_more_holders_take_replicas_from_the_hottest() -> None:
    # Loads 9 1 1 1 on three devices of three slots. One holder each: the 9 on all devices, and 1 + 0.5 + ... at best; with two holders each the nine
    # slots hold 4 x 2 = 8 and one more: the 9 on all three, the others twice: 3 + 0.5 + 0.5 everywhere, mean 4.
    data: dict[str, Any] = {"load": [[[9.0, 1.0, 1.0, 1.0]]], "devices": 3, "slots_per_device": 3, "min_holders": 2}
    assert Oracle(data).best() == pytest.approx(1.0)
    found = run(ExpertPlacement(**data), "local_search")
    assert (found.status, found.objective) == ("optimal", pytest.approx(1.0))


# The sandwich.


@pytest.mark.parametrize("chunk", range(3))
def test_bounds_oracle_model_and_methods(chunk: int) -> None:
    compared = 0
    for seed in SAFE[chunk::3]:
        data = safe(seed)
        assert data is not None
        instance, best = ExpertPlacement(**data), Oracle(data).best()
        for name, entry in FAMILY.bounds.items():
            params = SolveParams(time_limit_s=20)
            bound = entry.load()(instance, params, Progress(params))
            assert bound.value <= best * CLOSE, (seed, name, bound.value, best)
            again = recheck(instance, bound)
            assert again == bound.value or again >= bound.value - 1e-12 * abs(bound.value), (seed, name)
        for name, method in FAMILY.methods.items():
            if method.kind == "policy" or (name == "highs" and compared >= 12):
                continue
            try:
                result = run(instance, name, SolveParams(seed=seed, time_limit_s=0.5 if name == "local_search" else 10.0))
            except ContradictionError:
                assert name == "highs"
                continue
            assert result.objective >= best / CLOSE, (seed, name)
            assert result.certified_bound <= best * CLOSE, (seed, name)
            if method.kind != "exact" and result.plan is None:
                assert result.notes, (seed, name)
            if result.status == "optimal":
                assert result.objective <= best * (1 + 2e-6) + 1e-12, (seed, name)
            if name == "highs" and result.stop == "completed":
                assert result.objective == pytest.approx(best, rel=1e-6, abs=1e-9), seed
                compared += 1
            if isinstance(result.plan, ExpertPlan):
                share = None if result.plan.share is None else result.plan.share.tolist()
                assert Oracle(data).value(result.plan.slot_expert.tolist(), share) == pytest.approx(result.objective, rel=1e-9), (seed, name)
                assert failover(instance, result.plan).survives
    assert compared >= 8


def test_more_holders_never_cost_less() -> None:
    risen = 0
    for seed in SAFE:
        data = safe(seed)
        assert data is not None
        one, two = Oracle(data | {"min_holders": 1}).best(), Oracle(data).best()
        assert two >= one * (1 - 1e-12), seed
        risen += two > one * (1 + 1e-9)
    assert risen >= 10


def test_search_finds_what_enumeration_does() -> None:
    reached = 0
    feasible = 0
    for seed in SAFE[:45]:
        data = safe(seed)
        assert data is not None
        best = Oracle(data).best()
        result = run(ExpertPlacement(**data), "local_search", SolveParams(time_limit_s=5, seed=1))
        feasible += math.isfinite(best)
        reached += math.isfinite(best) and result.objective <= best * (1 + 1e-6)
    assert reached >= 0.9 * feasible, (reached, feasible)


@pytest.mark.parametrize("name", ["linear", "round_robin", "random", "lpt", "eplb", "eplb_hierarchical", "exflow", "local_search"])
@pytest.mark.parametrize("changes", [{}, {"split": "optimal"}, {"distinct": False}, {"grouped": True}])
def test_every_baseline_keeps_two_holders(name: str, changes: dict[str, Any]) -> None:
    grouped = changes == {"grouped": True}
    if grouped and name in ("linear", "round_robin", "eplb"):
        return  # they know no groups
    fields: dict[str, Any] = {"devices_per_node": 4, "n_groups": 8, "group_limited": True} if grouped else changes
    instance = preset("dsv2-lite-failover-ep8", layers=3, clusters=16, scenarios=2, **fields)
    result = run(instance, name, SolveParams(time_limit_s=5))
    assert isinstance(result.plan, ExpertPlan), result.notes
    assert (device_counts(instance, result.plan.slot_expert) > 0).sum(axis=2).min() >= 2
    assert failover(instance, result.plan).survives


@pytest.mark.parametrize("name", ["static", "periodic", "threshold"])
def test_policies_keep_two_holders(name: str) -> None:
    result = run(preset("toy-trace", slots_per_device=5, min_holders=2), name)
    assert isinstance(result.plan, ExpertPlan)
    assert failover(result.instance, result.plan).survives  # type: ignore[arg-type]


def test_a_cap_on_moves_from_an_unsafe_placement() -> None:
    # Expert 0 three times, 1 once, 2 and 3 twice: one slot of expert 0 for expert 1 is the only move needed, and all that one move allows.
    data: dict[str, Any] = {"load": [[[3.0, 1.0, 2.0, 2.0]]], "devices": 4, "slots_per_device": 2, "current_slot_expert": [[0, 1, 0, 2, 0, 3, 2, 3]]}
    data |= {"max_moves": 1, "min_holders": 2}
    instance = ExpertPlacement(**data)
    assert run(instance, "keep").plan is None
    found = run(instance, "local_search")
    assert found.objective == pytest.approx(Oracle(data).best())
    assert run(instance.replace(max_moves=0), "local_search").plan is None
    assert math.isinf(Oracle(data | {"max_moves": 0}).best())


def test_a_cap_on_moves_from_doubles() -> None:
    # What EPLB leaves behind where it puts an expert twice on a device: one move parts them.
    data: dict[str, Any] = {"load": [[[9.0, 2.0, 1.0]]], "devices": 2, "slots_per_device": 2, "current_slot_expert": [[0, 0, 1, 2]], "max_moves": 1}
    found = run(ExpertPlacement(**data), "local_search")
    assert found.objective == pytest.approx(Oracle(data).best())


def test_what_stands_is_repaired() -> None:
    completed = 0
    for seed in SAFE[:60]:
        data = safe(seed)
        assert data is not None
        instance, rng = ExpertPlacement(**data), np.random.default_rng(seed)
        slots = rng.integers(0, instance.experts, (instance.layers, instance.slots))
        after = repaired(instance, slots)
        before_held, held = ((device_counts(instance, each) > 0).sum(axis=2) for each in (slots, after))
        assert (np.minimum(held, 2) >= np.minimum(before_held, 2)).all()  # nobody who had enough falls below it
        completed += held.min() >= 2
        distinct = [device_counts(instance, each).max() < 2 for each in (slots, after)]
        assert distinct[1] or not instance.distinct or instance.group_limited
        if before_held.min() >= 2 and (distinct[0] or not instance.distinct):
            assert after is slots
    assert completed >= 30
    # Both of expert 0's spare copies are with expert 1 already: 2 hands over its slot to 1, and takes one of 0's.
    instance = ExpertPlacement(load=[[[1.0, 1.0, 1.0]]], devices=4, slots_per_device=2, min_holders=2)
    spare_apart: npt.NDArray[np.int64] = np.array([[0, 1, 0, 2, 0, 2, 0, 1]])
    assert repaired(instance, spare_apart) is spare_apart
    found = repaired(ExpertPlacement(load=[[[1.0, 1.0, 1.0]]], devices=3, slots_per_device=2, min_holders=2), np.array([[0, 1, 0, 2, 0, 2]]))
    assert (device_counts(ExpertPlacement(load=[[[1.0, 1.0, 1.0]]], devices=3, slots_per_device=2), found) > 0).sum(axis=2).tolist() == [[2, 2, 2]]


# Where people see it.


def test_documents_and_texts(tmp_path: Any) -> None:
    instance = preset("dsv2-lite-ep8", layers=2)
    result = run(instance, "eplb")
    assert isinstance(result.plan, ExpertPlan)
    found = failover(instance, result.plan)
    document = json.loads(to_json(result_document(result)))
    told = document["details"]["failover"]["device_lost"]
    assert told["worst_device"] == found.worst
    assert told["lost_experts"] == found.lost_experts.max() > 0
    assert told["by_device"]["imbalance"] == found.imbalance.tolist()
    assert "node_lost" not in document["details"]["failover"]  # one node
    report = verify(instance, document)
    assert report.verified
    assert json.loads(to_json(report.document()))["details"] == document["details"]
    nodes = result_document(run(preset("toy"), "lpt"))["details"]["failover"]["node_lost"]
    assert nodes["lost_experts"] > 0
    assert headroom.failover(instance, result).imbalance.tolist() == found.imbalance.tolist()
    with pytest.raises(InputError, match="expert_placement"):
        headroom.failover(_other_family(), result)
    assert not cheap(ExpertPlacement(load=[[[1.0, 1.0]]], devices=20_000, slots_per_device=1), ExpertPlan(slot_expert=[[0, 1] * 10_000]))


def _other_family() -> Any:
    from headroom.registry import load

    return load(FAMILIES["gpu_selection"].preset)("toy", np.random.default_rng(0), {})


def test_an_imported_placement(tmp_path: Any) -> None:
    (tmp_path / "load.json").write_text(json.dumps([[4, 3, 2, 1]]))
    (tmp_path / "map.json").write_text(json.dumps({"physical_to_logical_map": [[0, 1, 0, 2, 1, 3, 2, 3]]}))
    options: dict[str, Any] = {"devices": 4, "current": tmp_path / "map.json"}
    instance, _ = import_expert_load(tmp_path / "load.json", min_holders=2, **options)
    assert instance.min_holders == 2
    kept = run(instance, "keep")
    assert result_document(kept)["details"]["failover"]["device_lost"]["lost_experts"] == 0
    # The fewest slots that hold four experts twice on four devices.
    small, notices = import_expert_load(tmp_path / "load.json", min_holders=2, devices=4)
    assert small.slots_per_device == 2
    assert any("4 experts 2 times on 4 devices" in notice for notice in notices)


def test_the_command(tmp_path: Any) -> None:
    preset("toy", slots_per_device=4).save(tmp_path / "toy.json")
    done = command("solve", "toy.json", "--method", "lpt", "--min-holders", "2", "-o", "plan.json", cwd=tmp_path)
    assert done.returncode == 0
    assert "device lost  every expert is still held; at worst (device" in done.stdout
    assert "node lost    " in done.stdout
    document = json.loads((tmp_path / "plan.json").read_text())
    assert document["provenance"]["parameters"]["min_holders"] == 2
    checked = command("verify", "toy.json", "plan.json", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    assert "with min_holders = 2" in checked.stdout
    bounds = one_document(command("bound", "toy.json", "--min-holders", "2", "--json", cwd=tmp_path).stdout)
    assert bounds["provenance"]["parameters"]["min_holders"] == 2
    assert command("export-model", "toy.json", "--min-holders", "2", "-o", "m.lp", cwd=tmp_path).returncode == 0
    assert "holders(0_11)" in (tmp_path / "m.lp").read_text()
    problem = only_error(command("solve", "toy.json", "--min-holders", "3", cwd=tmp_path))
    assert "--min-holders: devices x slots_per_device must be at least 36" in problem
