"""Exports of expert placements, read back by the rules of the systems they are for, written here without headroom's help."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headroom.documents import PlanDocument
from headroom.export.expert_placement import sglang, tensorrt_llm, vllm_ascend
from headroom.formulations.expert_placement import ExpertPlan, evaluate
from headroom.instances.errors import InputError
from headroom.instances.expert_placement import ExpertPlacement
from headroom.instances.expert_placement_import import import_expert_load
from headroom.instances.expert_placement_presets import make

# Two MoE layers (1 and 3 of a model of five), three experts, two devices of two slots.
DATA: dict[str, Any] = {"load": [[[5, 1, 2], [1, 2, 3]]], "devices": 2, "slots_per_device": 2, "model_layers": 5, "moe_layer_ids": (1, 3)}
SLOTS = [[0, 1, 2, 0], [2, 1, 0, 2]]
EXPORTS = {"SGLang": sglang, "vllm-ascend": vllm_ascend, "TensorRT-LLM": tensorrt_llm}


def instance(**changes: Any) -> ExpertPlacement:
    return ExpertPlacement(**(DATA | changes))


def plan(slots: Any = None, share: Any = None) -> PlanDocument:
    return PlanDocument(family="expert_placement", plan=ExpertPlan(slot_expert=SLOTS if slots is None else slots, share=share), source="plan.json")


# ---- Readers with the targets' own rules ---------------------------------------------------------------------------------------------------


def read_sglang(text: str, hidden_layers: int, experts: int, devices: int) -> list[list[list[int]]]:
    """Experts [layer][device][slot]. SGLang hands the file's keys to a function with this one parameter, so another key stops its start; every
    layer of the model has a row; each expert needs a slot in every row, since it pads the list of an expert's slots."""
    document = json.loads(text)
    assert list(document) == ["physical_to_logical_map"]
    rows = document["physical_to_logical_map"]
    assert len(rows) == hidden_layers
    assert len({len(row) for row in rows}) == 1
    physical = len(rows[0])
    assert physical % devices == 0
    for row in rows:
        assert all(type(expert) is int for expert in row)
        assert set(row) == set(range(experts))
    local = physical // devices
    return [[row[d * local : (d + 1) * local] for d in range(devices)] for row in rows]


def read_vllm_ascend(text: str, experts: int) -> list[list[list[int]]]:
    """Experts [MoE layer][device][slot]. vllm-ascend makes one tensor of the nested lists (equal lengths) and, for each device, a map from an
    expert to its one slot (distinct experts); an expert that no device has would be looked up in slot 0 of device 0."""
    document = json.loads(text)
    assert set(document) == {"moe_layer_count", "layer_list"}
    assert document["moe_layer_count"] == len(document["layer_list"])
    found = []
    for number, layer in enumerate(document["layer_list"]):
        assert set(layer) == {"layer_id", "device_count", "device_list"}
        assert layer["layer_id"] == number
        assert layer["device_count"] == len(layer["device_list"]) == document["layer_list"][0]["device_count"]
        for device_id, device in enumerate(layer["device_list"]):
            assert set(device) == {"device_id", "device_expert"}
            assert device["device_id"] == device_id
            assert len(set(device["device_expert"])) == len(device["device_expert"])
        held = [device["device_expert"] for device in layer["device_list"]]
        assert {expert for own in held for expert in own} == set(range(experts))
        found.append(held)
    assert np.array(found).ndim == 3
    return found


def read_tensorrt_llm(text: str) -> dict[int, list[int]]:
    """Experts by slot of each layer. Its configuration knows these three keys and no other; lists have num_slots entries."""
    lines = text.split("\n")
    assert lines.pop() == ""
    (slots,) = (re.fullmatch(r"num_slots: (\d+)", lines[0]) or pytest.fail(lines[0])).groups()
    assert lines[1] == "initial_global_assignments:"
    assert lines[-1] == "layer_updates_per_iter: 0"
    found: dict[int, list[int]] = {}
    for line in lines[2:-1]:
        match = re.fullmatch(r"  (\d+): \[(\d+(?:, \d+)*)\]", line)
        assert match, line
        assert int(match[1]) not in found
        found[int(match[1])] = [int(expert) for expert in match[2].split(", ")]
    assert all(len(row) == int(slots) for row in found.values())
    return found


# ---- By hand -------------------------------------------------------------------------------------------------------------------------------


def test_sglang_by_hand() -> None:
    rows = read_sglang(sglang(instance(), plan()), hidden_layers=5, experts=3, devices=2)
    dense = [[0, 1], [2, 0]]  # slot r holds r mod 3
    assert rows == [dense, [[0, 1], [2, 0]], dense, [[2, 1], [0, 2]], dense]
    # Without the model's layers, those up to the last MoE layer; without their numbers, the MoE layers alone.
    assert len(read_sglang(sglang(instance(model_layers=None), plan()), 4, 3, 2)) == 4
    assert read_sglang(sglang(instance(model_layers=None, moe_layer_ids=None), plan()), 2, 3, 2) == [[[0, 1], [2, 0]], [[2, 1], [0, 2]]]


def test_vllm_ascend_by_hand() -> None:
    assert read_vllm_ascend(vllm_ascend(instance(), plan()), experts=3) == [[[0, 1], [2, 0]], [[2, 1], [0, 2]]]


def test_tensorrt_llm_by_hand() -> None:
    text = tensorrt_llm(instance(), plan())
    assert text == "num_slots: 4\ninitial_global_assignments:\n  1: [0, 1, 2, 0]\n  3: [2, 1, 0, 2]\nlayer_updates_per_iter: 0\n"
    assert read_tensorrt_llm(text) == {1: SLOTS[0], 3: SLOTS[1]}
    assert list(read_tensorrt_llm(tensorrt_llm(instance(moe_layer_ids=None), plan()))) == [0, 1]


def test_tensorrt_llm_is_yaml() -> None:
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(tensorrt_llm(instance(), plan())) == {
        "num_slots": 4,
        "initial_global_assignments": {1: SLOTS[0], 3: SLOTS[1]},
        "layer_updates_per_iter": 0,
    }


# ---- Real sizes ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deepseek() -> tuple[ExpertPlacement, PlanDocument]:
    """DeepSeek-V3 on 32 devices; experts in random order, then 32 more so that no device has one twice."""
    model = make("deepseek-v3-ep32", np.random.default_rng(1), {})
    rng = np.random.default_rng(2)
    rows = []
    for _ in range(model.layers):
        own = rng.permutation(256).reshape(32, 8)
        rows.append(np.concatenate([own, np.roll(own[:, :1], 1, axis=0)], axis=1).ravel().tolist())
    document = plan(rows)
    assert document.plan is not None
    assert evaluate(model, document.plan).feasible
    return model, document


def test_real_sizes(deepseek: tuple[ExpertPlacement, PlanDocument]) -> None:
    model, document = deepseek
    assert isinstance(document.plan, ExpertPlan)
    slots = document.plan.slot_expert
    rows = read_sglang(sglang(model, document), hidden_layers=61, experts=256, devices=32)
    assert np.array(rows[3:]).reshape(58, 288).tolist() == slots.tolist()
    assert [np.array(row).ravel().tolist() for row in rows[:3]] == [[r % 256 for r in range(288)]] * 3
    assert np.array(read_vllm_ascend(vllm_ascend(model, document), experts=256)).reshape(58, 288).tolist() == slots.tolist()
    assert read_tensorrt_llm(tensorrt_llm(model, document)) == {3 + l: slots[l].tolist() for l in range(58)}


def test_exports_come_back_as_the_current_placement(deepseek: tuple[ExpertPlacement, PlanDocument], tmp_path: Path) -> None:
    model, document = deepseek
    assert isinstance(document.plan, ExpertPlan)
    np.save(tmp_path / "load.npy", model.load[0])
    for name, export in (("sglang.json", sglang), ("ascend.json", vllm_ascend)):
        (tmp_path / name).write_text(export(model, document))
        back, _ = import_expert_load(tmp_path / "load.npy", devices=32, current=tmp_path / name, first_moe_layer=3, model_layers=61)
        np.testing.assert_array_equal(back.current_slot_expert, document.plan.slot_expert)
        assert (back.moe_layer_ids, back.slots_per_device) == (model.moe_layer_ids, 9)


# ---- Refused -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", EXPORTS)
@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ([[0, 1, 2, 0]], "plan: slot_expert must have 2 layers x 4 slots, got 1 x 4"),
        ([[0, 1, 2], [2, 1, 0]], "plan: slot_expert must have 2 layers x 4 slots, got 2 x 3"),
        ([[0, 1, 2, 0], [2, 1, 0, 3]], "plan: slot_expert[1][3] must be an expert from 0 to 2, got 3"),
        ([[0, 1, 2, 0], [2, 1, 1, 2]], "layer 1 holds expert 0 nowhere; {target} needs every expert in every layer"),
    ],
)
def test_plans_that_do_not_fit_are_refused(target: str, slots: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        EXPORTS[target](instance(), plan(slots))
    assert str(caught.value) == f"plan.json: {message.format(target=target)}"


def test_vllm_ascend_refuses_an_expert_twice_on_a_device() -> None:
    twice = plan([[0, 1, 2, 0], [2, 1, 0, 0]])
    repeats = instance(distinct=False)
    assert twice.plan is not None
    assert evaluate(repeats, twice.plan).feasible
    with pytest.raises(InputError) as caught:
        vllm_ascend(repeats, twice)
    assert str(caught.value) == (
        "plan.json: layer 1 holds expert 0 twice on device 1; vllm-ascend needs distinct experts on every device (distinct: true asks for it)"
    )
    # The others take it.
    assert read_sglang(sglang(repeats, twice), 5, 3, 2)[3] == [[2, 1], [0, 0]]
    assert read_tensorrt_llm(tensorrt_llm(repeats, twice))[3] == [2, 1, 0, 0]


def test_shares_are_left_to_the_target() -> None:
    share = [[[0.7, 1, 1, 0.3], [0.5, 1, 1, 0.5]]]
    optimal = instance(split="optimal")
    for export in EXPORTS.values():
        assert export(optimal, plan(share=share)) == export(instance(), plan())
