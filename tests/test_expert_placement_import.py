"""Readers of expert loads, routed experts and placements: small files with the instance worked out by hand, real files, and broken ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from typer.testing import CliRunner, Result

from headroom.cli_import import add_import_command
from headroom.instances.base import load_document
from headroom.instances.errors import InputError
from headroom.instances.expert_placement import ExpertPlacement
from headroom.instances.expert_placement_import import import_expert_load, import_expert_routing
from headroom.instances.importers import IMPORTERS
from tests.import_samples import real_file

# Two tokens, three layers, two of four experts each.
TOPK = np.array([[[0, 1], [2, 3], [0, 1]], [[0, 2], [2, 1], [3, 1]]], dtype=np.uint8)
# vllm-ascend: two layers, two devices of two slots, three experts.
ASCEND: dict[str, Any] = {
    "moe_layer_count": 2,
    "layer_list": [
        {
            "layer_id": 0,
            "device_count": 2,
            "device_list": [{"device_id": 0, "device_expert": [0, 1]}, {"device_id": 1, "device_expert": [2, 0]}],
        },
        {
            "layer_id": 1,
            "device_count": 2,
            "device_list": [{"device_id": 0, "device_expert": [2, 1]}, {"device_id": 1, "device_expert": [0, 1]}],
        },
    ],
}
TABLE = [[5, 1, 2], [1, 2, 3]]


def write_json(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def error_of(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- Routed experts -------------------------------------------------------------------------------------------------------------------


def test_routing_by_hand(tmp_path: Path) -> None:
    instance, notices = import_expert_routing(write_npz(tmp_path / "r.npz", topk=TOPK), devices=2)
    assert instance.load.tolist() == [[[2, 1, 1, 0], [0, 1, 2, 1], [1, 2, 0, 1]]]
    assert instance.transition is not None
    # Boundary 0: token 0 goes from 0, 1 to 2, 3 and token 1 from 0, 2 to 2, 1; each of the 8 pairs is an eighth.
    eighths = np.zeros((2, 4, 4))
    for boundary, pairs in enumerate(([(0, 2), (0, 3), (1, 2), (1, 3), (0, 2), (0, 1), (2, 2), (2, 1)],
                                      [(2, 0), (2, 1), (3, 0), (3, 1), (2, 3), (2, 1), (1, 3), (1, 1)])):  # fmt: skip
        for pair in pairs:
            eighths[boundary][pair] += 1 / 8
    np.testing.assert_array_equal(instance.transition, eighths)
    assert (instance.devices, instance.slots_per_device, instance.name) == (2, 2, "r")
    assert notices == [
        "experts: 4, one more than the largest id (--experts N where there are more)",
        "slots_per_device: 2, the fewest that hold 4 experts on 2 devices, none for replicas",
    ]
    assert instance.provenance["notices"] == notices
    assert instance.provenance["tokens"] == [2]
    assert (instance.model_layers, instance.moe_layer_ids) == (None, None)


def test_several_files_are_scenarios_of_equal_weight(tmp_path: Path) -> None:
    # The second file has one token only, but counts as much as the first in the transitions.
    one = write_npz(tmp_path / "one.npz", topk=np.array([[[3, 2], [0, 1], [0, 1]]], dtype=np.int64))
    both, notices = import_expert_routing([write_npz(tmp_path / "r.npz", topk=TOPK), one], devices=2, experts=4, slots_per_device=2)
    alone, _ = import_expert_routing(tmp_path / "r.npz", devices=2, experts=4, slots_per_device=2)
    assert both.scenarios == 2
    assert both.load[1].tolist() == [[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert both.transition is not None
    assert alone.transition is not None
    assert both.transition[0, 3, 0] == 1 / 8  # a quarter of the second file's pairs, none of the first's
    assert both.transition[0, 0, 2] == alone.transition[0, 0, 2] / 2
    assert both.name == "r+one"
    assert notices == ["transitions: the mean of the 2 files, each with the same weight"]


def test_routing_options(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "r.npz", topk=TOPK, count=np.zeros((3, 6), dtype=np.int64), seq_len=[2], gate_sum=np.zeros((3, 6)))
    instance, notices = import_expert_routing(
        path, devices=4, devices_per_node=2, slots_per_device=2, n_groups=2, group_limited=True, balance_weight=0.5, traffic_weight=2.0,
        same_node_hop=0.25, split="optimal", robust="mean", allow_repeats=True, first_moe_layer=3, model_layers=7,
    )  # fmt: skip
    assert (instance.experts, instance.nodes, instance.n_groups, instance.group_limited) == (6, 2, 2, True)  # count has six columns
    assert (instance.weights.balance, instance.weights.traffic, instance.weights.moves) == (0.5, 2.0, 0.0)
    assert (instance.hop_cost.same_node, instance.hop_cost.other_node) == (0.25, 1.0)
    assert (instance.split, instance.robust, instance.distinct) == ("optimal", "mean", False)
    assert (instance.moe_layer_ids, instance.model_layers) == ((3, 4, 5), 7)
    assert notices == ["r.npz: its own count is not that of topk, which is used"]
    assert instance.provenance["options"]["split"] == "optimal"
    plain, _ = import_expert_routing(path, devices=2, no_transitions=True)
    assert plain.transition is None
    one, _ = import_expert_routing(path, devices=2, moe_layer_ids=[1])
    assert one.transition is None  # a single layer has no boundary
    assert one.load.tolist() == [[[0, 1, 2, 1, 0, 0]]]


def test_many_tokens_are_counted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = np.argsort(np.random.default_rng(3).random((50, 4, 8)), axis=2)[:, :, :3].astype(np.uint8)
    path = write_npz(tmp_path / "r.npz", topk=drawn)
    whole, _ = import_expert_routing(path, devices=2)
    monkeypatch.setattr("headroom.instances.expert_placement_import.PAIRS_AT_ONCE", 40)
    assert import_expert_routing(path, devices=2)[0] == whole
    assert whole.transition is not None
    # What leaves and enters an expert is its share of the load.
    share = whole.load[0] / 150
    np.testing.assert_allclose(whole.transition.sum(axis=2), share[:-1])
    np.testing.assert_allclose(whole.transition.sum(axis=1), share[1:])


@pytest.mark.parametrize("task", ["intent", "law"])
def test_real_routing_agrees_with_its_own_count(task: str) -> None:
    path = real_file(f"esft_routing/{task}.npz")
    instance, notices = import_expert_routing(path, devices=8, slots_per_device=9, first_moe_layer=1, model_layers=27)
    np.testing.assert_array_equal(instance.load[0], np.load(path)["count"])
    assert notices == []
    assert instance.transition is not None
    share = instance.load[0] / instance.total_load[0][:, None]
    np.testing.assert_allclose(instance.transition.sum(axis=2), share[:-1], atol=1e-12)
    assert instance.moe_layer_ids == tuple(range(1, 27))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(hnp.arrays(np.int16, st.tuples(st.integers(1, 6), st.integers(1, 3), st.just(1)), elements=st.integers(0, 5)))
def test_any_routing_survives(tmp_path: Path, topk: Any) -> None:
    instance, _ = import_expert_routing(write_npz(tmp_path / "r.npz", topk=topk), devices=3, experts=6)
    for layer in range(topk.shape[1]):
        assert instance.load[0, layer].tolist() == [int((topk[:, layer] == e).sum()) for e in range(6)]
    instance.save(tmp_path / "x.npz")
    assert ExpertPlacement.from_document(load_document(tmp_path / "x.npz")) == instance


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"topk": TOPK[0]}, {}, "topk must be whole numbers [token][layer][k], got 2 dimensions of uint8"),
        ({"topk": TOPK.astype(float)}, {}, "topk must be whole numbers [token][layer][k], got 3 dimensions of float64"),
        ({"topk": TOPK > 0}, {}, "topk must be whole numbers [token][layer][k], got 3 dimensions of bool"),
        ({"topk": TOPK[:0]}, {}, "topk must have at least one token, layer and expert, got 0 x 3 x 2"),
        ({"topk": TOPK.astype(np.int8) - 1}, {}, "topk[0][0][0] must be an expert from 0 to 999999, got -1"),
        ({"topk": TOPK}, {"experts": 3}, "topk[0][1][1] must be an expert from 0 to 2, got 3"),
        ({"topk": np.where(TOPK == 3, 2, TOPK)}, {}, "topk[0][1] names expert 2 twice; expected 2 distinct experts"),
        ({"counts": TOPK}, {}, "has no member topk; expected whole numbers [token][layer][k]"),
        ({"topk": np.array([[[{}]]], dtype=object)}, {}, "not a readable .npz file: it holds Python objects (a pickle); expected arrays of numbers"),
        ({"topk": np.full((1, 2, 1), 500_000)}, {}, "500001 experts make more than 1000000000 transitions; expected fewer, or --no-transitions"),
    ],
)
def test_broken_routing(tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any], message: str) -> None:
    path = write_npz(tmp_path / "r.npz", **arrays)
    assert error_of(import_expert_routing, path, devices=2, **options) == f"{path}: {message}"


def test_routing_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    whole = write_npz(tmp_path / "whole.npz", topk=np.zeros((5000, 3, 1), dtype=np.int64)).read_bytes()
    for content, message in (
        (b"", "is empty"),
        (b"topk", "not an .npz file; expected one with the array topk"),
        (whole[: len(whole) // 2], "not a readable .npz file: File is not a zip file"),
        (b"PK" + whole[2:100] + b"\0" + whole[100:], "not a readable .npz file: "),
    ):
        path.write_bytes(content)
        assert error_of(import_expert_routing, path, devices=2).startswith(f"{path}: {message}")
    assert "cannot be read: No such file" in error_of(import_expert_routing, tmp_path / "none.npz", devices=2)
    other = write_npz(tmp_path / "o.npz", topk=TOPK[:, :2])
    both = [tmp_path / "whole.npz", other]
    assert error_of(import_expert_routing, both, devices=2) == f"{other}: topk must have 3 layers as the first file has, got 2"
    assert error_of(import_expert_routing, [], devices=2) == "FILE: no file is given; expected at least one"


# ---- Tables of loads ------------------------------------------------------------------------------------------------------------------


def table_files(folder: Path) -> dict[str, Path]:
    """The same table in every form."""
    texts = {
        "plain.csv": "5,1,2\n1,2,3\n",
        "named.csv": "a,b,c\n5,1,2\n1,2,3\n",
        "counting.csv": "0,1,2\n5,1,2\n1,2,3\n",
        "indexed.csv": ",0,1,2\n1,1,2,3\n0,5,1,2\n",
        "long.csv": "\ufefflayer,expert,count\r\n0,0,5\r\n0,1,1\r\n0,2,2\r\n1,0,1\r\n1,2,3\r\n1,1,2\r\n",
        "list.json": json.dumps(TABLE),
        "sglang.json": json.dumps({"rank": 0, "logical_count": TABLE, "average_utilization_rate_over_window": None}),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    np.save(folder / "array.npy", np.array(TABLE, dtype=np.int32))
    write_npz(folder / "only.npz", whatever=np.array(TABLE))
    write_npz(folder / "named.npz", logical_count=np.array(TABLE), rank=np.array(0))
    return {name: folder / name for name in (*texts, "array.npy", "only.npz", "named.npz")}


def test_every_form_of_a_table_says_the_same(tmp_path: Path) -> None:
    for path in table_files(tmp_path).values():
        instance, _ = import_expert_load(path, devices=3, slots_per_device=1)
        assert instance.load.tolist() == [TABLE], path.name
        assert instance.load_trace is None
        assert instance.moe_layer_ids is None
        assert instance.name == path.stem


def test_tables_over_steps_become_a_trace(tmp_path: Path) -> None:
    # SGLang's recorder fills its buffer with empty steps; a dense layer 0 has no load in any step.
    steps = [[[0, 0, 0], *TABLE], [[0, 0, 0], [0, 0, 0], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 2.5]]]
    path = write_json(tmp_path / "s.json", {"logical_count": steps})
    instance, notices = import_expert_load(path, devices=1, first_moe_layer=1)
    assert instance.load.tolist() == [[[6, 2, 2], [1, 2, 5.5]]]
    assert instance.load_trace is not None
    assert instance.load_trace.tolist() == [TABLE, [[1, 1, 0], [0, 0, 2.5]]]
    assert (instance.moe_layer_ids, instance.model_layers) == ((1, 2), 3)
    assert notices == [
        "2 of the 3 layers in the table are used: 1 to 2",
        "left out: 1 of 3 steps, which have no load at all",
        "load: the sum over 2 steps, which also stand in load_trace",
        "slots_per_device: 3, the fewest that hold 3 experts on 1 devices, none for replicas",
    ]
    assert "without any load: layer 0; --first-moe-layer or --moe-layer-ids leave out what is dense" in import_expert_load(path, devices=1)[1]
    long = tmp_path / "long.csv"
    rows = [f"{t},{l},{e},{steps[t][l][e]}" for t in range(3) for l in (1, 2) for e in range(3) if steps[t][l][e]]
    long.write_text("\n".join(["step,layer,expert,tokens", *rows]) + "\n")
    same, _ = import_expert_load(long, devices=1)
    np.testing.assert_array_equal(same.load_trace, instance.load_trace)
    assert (same.moe_layer_ids, same.model_layers) == ((1, 2), None)


def test_several_tables_are_scenarios(tmp_path: Path) -> None:
    one, two = write_json(tmp_path / "one.json", TABLE), write_json(tmp_path / "two.json", [[[1, 1, 1], [2, 2, 2]], [[1, 0, 0], [0, 0, 0]]])
    instance, notices = import_expert_load([one, two], devices=3, slots_per_device=1)
    assert instance.load.tolist() == [TABLE, [[2, 1, 1], [2, 2, 2]]]
    assert instance.load_trace is None
    assert notices == ["load: the sum over the steps of each file; load_trace is read from a single file only"]
    three = write_json(tmp_path / "three.json", [[1, 2], [3, 4]])
    assert error_of(import_expert_load, [one, three], devices=3) == f"{three}: must have 2 layers x 3 experts as the first file has, got 2 x 2"
    four = tmp_path / "four.csv"
    four.write_text("layer,a,b,c\n3,1,1,1\n4,1,1,1\n")
    assert error_of(import_expert_load, [one, four], devices=3) == f"{four}: must have layers [] as the first file has, got layers [3, 4]"


def test_layers_are_chosen(tmp_path: Path) -> None:
    path = write_json(tmp_path / "t.json", [[1, 1], [2, 2], [3, 3]])

    def chosen(**options: Any) -> tuple[list[float], Any, Any]:
        instance, _ = import_expert_load(path, devices=2, **options)
        return instance.load[0, :, 0].tolist(), instance.moe_layer_ids, instance.model_layers

    assert chosen() == ([1, 2, 3], None, None)
    assert chosen(moe_layer_ids=[4, 6, 7], model_layers=9) == ([1, 2, 3], (4, 6, 7), 9)
    assert chosen(moe_layer_ids=[0, 2]) == ([1, 3], (0, 2), 3)
    assert chosen(first_moe_layer=2) == ([1, 2, 3], (2, 3, 4), None)  # every row has load, so each is a layer with experts
    csv = tmp_path / "t.csv"
    csv.write_text("layer,a,b\n5,1,1\n7,2,2\n9,3,3\n")
    path = csv
    assert chosen() == ([1, 2, 3], (5, 7, 9), None)
    assert chosen(first_moe_layer=6, model_layers=10) == ([2, 3], (7, 9), 10)
    assert chosen(moe_layer_ids=[5, 9]) == ([1, 3], (5, 9), None)
    for options, message in (
        ({"moe_layer_ids": [5, 8]}, "moe_layer_ids must be 3 layers, or layers of the 3 in the table, which has no layer 8; got [5, 8]"),
        ({"moe_layer_ids": [7, 5]}, "moe_layer_ids must be rising numbers of layers, got [7, 5]"),
        ({"moe_layer_ids": []}, "moe_layer_ids must be rising numbers of layers, got []"),
        ({"first_moe_layer": 10}, "moe_layer_ids must be 3 layers, or layers of the 3 in the table, of which none is left; got []"),
        ({"first_moe_layer": -1}, "first_moe_layer must be at least 0, got -1"),
        ({"first_moe_layer": 1, "moe_layer_ids": [5]}, "first_moe_layer and moe_layer_ids cannot both be given"),
        ({"model_layers": 9}, "model_layers must be above 9, the last MoE layer, got 9"),
    ):
        assert error_of(chosen, **options).startswith(message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", "[[1, 2], [3", "not valid JSON at line 1, column 12: the text ends too early (truncated file?)"),
        ("t.json", "[[1, 2], [NaN, 4]]", "NaN is not JSON; expected a finite number or null"),
        ("t.json", "[[1, 2], [null, 4]]", "table[1][0] must be a number, got None"),
        ("t.json", "[[1, 2], [-3, 4]]", "table[1][0] must be a number from 0 to 1e+15, got -3"),
        ("t.json", "[[1, 2], [3]]", "table[1] has 1 entries, expected 2 as in table[0]"),
        ("t.json", "[1, 2]", "table must be [layer][expert] or [step][layer][expert], got 1 dimension"),
        ("t.json", "[[[[1]]]]", "table must be [layer][expert] or [step][layer][expert], got 4 dimensions"),
        ("t.json", "[]", "table must be [layer][expert] or [step][layer][expert], got 1 dimension"),
        ("t.json", "[[]]", "table must have at least one layer and expert, got 1 x 0"),
        ("t.json", "[[0, 0]]", "holds no load at all; expected tokens for at least one expert"),
        ("t.json", '{"counts": [[1]]}', "must be a list or an object with logical_count, got one with counts"),
        ("t.json", '{"records": []}', "must be a list or an object with logical_count, got one with records (records of mode per_pass or per_token"),
        ("t.json", '{"logical_count": [["5"]]}', "logical_count[0][0] must be a number, got '5'"),
        ("t.json", '{"logical_count": {"a": 1}}', "logical_count must be [layer][expert] or [step][layer][expert], got 0 dimensions"),
        ("t.csv", "1,2\n3,-4\n", "line 2: column 2 must be a number from 0 to 1e+15, got '-4'"),
        ("t.csv", "1,2\n3,nan\n", "line 2: column 2 must be a number from 0 to 1e+15, got 'nan'"),
        ("t.csv", "a,b\n3,x\n", "line 2: column 2 must be a number from 0 to 1e+15, got 'x'"),
        ("t.csv", "1,2\n3\n", "line 2 has 1 columns, expected 2 as in the first row"),
        ("t.csv", "layer,a\n3,1\n3,2\n", "line 3: layer 3 stands twice; expected it once"),
        ("t.csv", "layer,a\n-3,1\n", "line 2: layer must be a whole number from 0 to 999999, got '-3'"),
        ("t.csv", "layer,expert\n0,1\n", "the header must name one of count, tokens, load beside layer and expert, got layer, expert"),
        ("t.csv", "layer,expert,count\n", "has a header and nothing below it"),
        ("t.csv", "layer,expert,count\n0,1,2\n0,1,2\n", "line 3: layer 0, expert 1 stands twice; expected it once"),
        ("t.csv", "step,layer,expert,count\n4,0,1,2\n4,0,1,2\n", "line 3: step 4, layer 0, expert 1 stands twice; expected it once"),
        ("t.csv", "layer,expert,count\n0,1.5,2\n", "line 2: expert must be a whole number from 0 to 999999, got '1.5'"),
        ("t.csv", "layer,expert,count\n0,1\n", "line 2 has 2 columns, expected 3 as in the header"),
        ("t.csv", "layer,expert,count\n0,1,inf\n", "line 2: count must be a number from 0 to 1e+15, got 'inf'"),
        ("t.csv", "\n\n", "is empty; expected a table of expert loads"),
        ("t.csv", "", "is empty; expected a table or arrays"),
        ("t.bin", "\x80\x81", "byte 0 is not UTF-8; expected JSON, CSV, .npy or .npz"),
        ("t.pt", "anything", "is a torch file, which can run code when it is read; convert it: numpy.save('counts.npy', "),
    ],
)
def test_broken_tables(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1" if name == "t.bin" else "utf-8"))
    assert error_of(import_expert_load, path, devices=2).startswith(f"{path}: {message}")


def test_broken_arrays(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    for array, message in (
        (np.array([[1.0, np.nan]]), "array[0][1] must be a number from 0 to 1e+15, got nan"),
        (np.array([[1, -2]]), "array[0][1] must be a number from 0 to 1e+15, got -2"),
        (np.ones(3), "array must be [layer][expert] or [step][layer][expert], got 1 dimension"),
        (np.ones((1, 2), dtype=np.complex128), "array must be an array [layer][expert] of numbers, got 2 dimensions of complex128"),
        (np.array([["a"]]), "array must be an array [layer][expert] of numbers, got 2 dimensions of <U1"),
        (np.zeros((0, 3)), "array must have at least one layer and expert, got 0 x 3"),
        (np.array([[{}]], dtype=object), "not a readable numpy file: it holds Python objects (a pickle); expected arrays of numbers"),
    ):
        np.save(path, array)
        assert error_of(import_expert_load, path, devices=2) == f"{path}: {message}"
    np.save(path, np.ones((20, 30)))
    path.write_bytes(path.read_bytes()[:-100])
    assert error_of(import_expert_load, path, devices=2).startswith(f"{path}: not a readable numpy file: ")
    assert error_of(import_expert_load, write_npz(tmp_path / "t.npz", a=[[1]], b=[[1]]), devices=2).endswith(
        "t.npz: must hold logical_count or one array alone, got a, b"
    )
    # torch.save writes a zip with a pickle in it.
    import zipfile

    with zipfile.ZipFile(tmp_path / "torch.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert "torch.bin: is a torch file" in error_of(import_expert_load, tmp_path / "torch.bin", devices=2)


def test_the_number_of_experts_must_agree(tmp_path: Path) -> None:
    path = write_json(tmp_path / "t.json", TABLE)
    assert error_of(import_expert_load, path, devices=2, experts=4) == f"{path}: table must have 4 experts in a layer (--experts), got 3"
    long = tmp_path / "long.csv"
    long.write_text("layer,expert,count\n0,0,5\n")
    assert import_expert_load(long, devices=2, experts=3)[0].load.tolist() == [[[5, 0, 0]]]
    told = "long.csv: experts: 1, one more than the largest that has a row (--experts N where there are more)"
    assert told in import_expert_load(long, devices=1)[1]
    long.write_text("layer,expert,count\n0,0,5\n0,3,1\n")
    assert error_of(import_expert_load, long, devices=2, experts=3) == f"{long}: line 3: expert must be from 0 to 2, got 3"
    long.write_text("layer,expert,count\n" + "".join(f"{layer},{999_999 - layer},1\n" for layer in range(1001)))
    told = "names 1 steps x 1001 layers x 1000000 experts; expected at most 1000000000 numbers"
    assert error_of(import_expert_load, long, devices=2) == f"{long}: {told}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "devices is missing; expected --devices N, the number of devices that share the experts"),
        ({"devices": 0}, "devices must be at least 1, got 0"),
        ({"devices": 2, "slots_per_device": 1}, "devices x slots_per_device must be at least 3, the number of experts, got 2 x 1"),
        ({"devices": 3, "devices_per_node": 2}, "devices_per_node must divide devices 3, got 2"),
        ({"devices": 3, "split": "fair"}, "split must be 'equal' or 'optimal', got 'fair'"),
        ({"devices": 3, "traffic_weight": 1.0}, "transition must be given because weights.traffic is 1, got null"),
        ({"devices": 3, "balance_weight": -1.0}, "weights.balance must be greater than or equal to 0, got -1.0"),
        ({"devices": 3, "max_moves": 2}, "current_slot_expert must be given because max_moves is 2, got null"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = write_json(tmp_path / "t.json", TABLE)
    assert error_of(import_expert_load, path, **options) == message


# ---- Placements that stand now ----------------------------------------------------------------------------------------------------------


def test_current_placement_of_sglang(tmp_path: Path) -> None:
    loads, current = write_json(tmp_path / "t.json", TABLE), tmp_path / "c.json"
    write_json(current, {"physical_to_logical_map": [[0, 1, 2, 0], [2, 1, 0, 2]]})
    instance, notices = import_expert_load(loads, devices=2, current=current, moves_weight=0.5, max_moves=3)
    assert instance.current_slot_expert is not None
    assert instance.current_slot_expert.tolist() == [[0, 1, 2, 0], [2, 1, 0, 2]]
    assert (instance.slots_per_device, instance.max_moves, instance.weights.moves) == (2, 3, 0.5)
    assert notices == []
    assert instance.provenance["sources"][1]["role"] == "current placement (sglang)"
    # The map of the whole model: dense layers 0 and 2 hold anything.
    write_json(current, {"physical_to_logical_map": [[0, 1, 2, 0], [1, 1, 2, 0], [0, 1, 2, 0], [2, 2, 1, 0]]})
    sparse, _ = import_expert_load(loads, devices=2, current=current, moe_layer_ids=[1, 3])
    assert sparse.current_slot_expert is not None
    assert sparse.current_slot_expert.tolist() == [[1, 1, 2, 0], [2, 2, 1, 0]]
    assert (sparse.model_layers, sparse.moe_layer_ids) == (4, (1, 3))
    why = "--moe-layer-ids or --first-moe-layer say which of the model's layers they are"
    assert error_of(import_expert_load, loads, devices=2, current=current) == f"{current}: must have 2 layers as the load has, got 4; {why}"
    assert error_of(import_expert_load, loads, devices=2, current=current, moe_layer_ids=[3, 4]).endswith(f"got 4; {why}")


def test_current_placement_of_vllm_ascend(tmp_path: Path) -> None:
    loads = write_json(tmp_path / "t.json", TABLE)
    current = write_json(tmp_path / "c.json", ASCEND)
    instance, _ = import_expert_load(loads, current=current)  # the map says how many devices there are
    assert instance.current_slot_expert is not None
    assert instance.current_slot_expert.tolist() == [[0, 1, 2, 0], [2, 1, 0, 1]]
    assert (instance.devices, instance.slots_per_device) == (2, 2)
    assert instance == import_expert_load(loads, devices=2, slots_per_device=2, current=current)[0]
    assert error_of(import_expert_load, loads, devices=4, current=current) == f"{current}: devices must be 2, got 4"
    assert error_of(import_expert_load, loads, slots_per_device=3, current=current) == (
        f"{current}: must have 6, devices x slots_per_device as its number of slots (2 devices), got 4"
    )


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([[0, 1, 2, 0], [2, 1, 0, 3]], {"devices": 2}, "MoE layer 1, slot 3 must be an expert from 0 to 2, got 3"),
        ([[0, 1, 2], [2, 1, 0]], {"devices": 2}, "must have a multiple of the devices as its number of slots (2 devices), got 3"),
        ([[0, 1, 2, 0], [2, 1, 0, 2]], {}, "devices is missing; expected --devices N: the slots of an SGLang map are not told apart by device"),
        ([[0, 1, 2, 0]], {"devices": 2}, "must have 2 layers as the load has, got 1"),
        ([[0, 1], [-1, 1]], {"devices": 2}, "physical_to_logical_map[1][0] must be a whole number from 0 to 1000000, got -1"),
        ([[0, 1], [0.0, 1]], {"devices": 2}, "physical_to_logical_map[1][0] must be a whole number, got 0.0"),
        ([[0, 1], [1]], {"devices": 2}, "physical_to_logical_map[1] has 1 entries, expected 2 as in physical_to_logical_map[0]"),
        ([], {"devices": 2}, "physical_to_logical_map must have at least one layer and slot, got 0 x 0"),
        ("trivial", {"devices": 2}, "physical_to_logical_map must be a list (physical_to_logical_map[layer][slot]), got 'trivial'"),
    ],
)
def test_broken_sglang_maps(tmp_path: Path, rows: object, options: dict[str, Any], message: str) -> None:
    loads, current = write_json(tmp_path / "t.json", TABLE), write_json(tmp_path / "c.json", {"physical_to_logical_map": rows})
    assert error_of(import_expert_load, loads, current=current, **options) == f"{current}: {message}"


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["moe_layer_count"], 3, "moe_layer_count must be 2, the length of layer_list, got 3"),
        (["layer_list"], [], "layer_list must be a list that is not empty, got []"),
        (["layer_list", 0], 5, "layer_list[0] must be an object with layer_id, device_count, device_list, got 5"),
        (["layer_list", 1, "layer_id"], 0, "layer_list[1].layer_id must be a whole number above that of the layer before, got 0"),
        (["layer_list", 1, "device_count"], 3, "layer_list[1] must have 2 devices, as device_count and as the first layer, got 3"),
        (["layer_list", 1, "device_list"], None, "layer_list[1].device_list must be a list that is not empty, got None"),
        (["layer_list", 0, "device_list", 1, "device_id"], 5, "layer_list[0].device_list[1] must be an object with device_id 1, got {"),
        (["layer_list", 0, "device_list", 1, "device_expert"], [2, 2], "layer_list[0].device_list[1].device_expert names expert 2 twice"),
        (["layer_list", 0, "device_list", 1, "device_expert"], [2], "layer_list[0].device_list[1].device_expert must have 2 experts as the"),
        (["layer_list", 1, "device_list", 0, "device_expert"], [2, 1, 0], "layer_list[1].device_list[0].device_expert must have 2 experts"),
        (["layer_list", 0, "device_list", 1, "device_expert"], [2, -1], "layer_list[0].device_list[1].device_expert[1] must be a whole number"),
        (["layer_list", 0, "device_list", 1, "device_expert"], [2, 7], "MoE layer 0, slot 3 must be an expert from 0 to 2, got 7"),
    ],
)
def test_broken_vllm_ascend_maps(tmp_path: Path, keys: list[Any], value: object, message: str) -> None:
    document = copy.deepcopy(ASCEND)
    place: Any = document
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    loads, current = write_json(tmp_path / "t.json", TABLE), write_json(tmp_path / "c.json", document)
    assert error_of(import_expert_load, loads, current=current).startswith(f"{current}: {message}")


def test_placements_that_are_none(tmp_path: Path) -> None:
    loads, current = write_json(tmp_path / "t.json", TABLE), tmp_path / "c.json"
    for content, message in (
        ("[[0, 1]]", "must be an object with physical_to_logical_map (SGLang) or layer_list (vllm-ascend), got [[0, 1]]"),
        ('{"map": 1}', "must be an object with physical_to_logical_map (SGLang) or layer_list (vllm-ascend), got an object with map"),
        ('{"physical_to_logical_map": [[0', "not valid JSON at line 1, column 32: the text ends too early (truncated file?)"),
    ):
        current.write_text(content)
        assert error_of(import_expert_load, loads, devices=2, current=current) == f"{current}: {message}"
    torch = tmp_path / "c.pt"
    assert error_of(import_expert_load, loads, devices=2, current=torch).startswith(f"{torch}: is a torch file")


# ---- Command line -----------------------------------------------------------------------------------------------------------------------


def headroom_import(*arguments: str | Path) -> Result:
    app = typer.Typer(rich_markup_mode=None)
    add_import_command(app)
    app.command("other")(lambda: None)  # a single command would lose its name
    return CliRunner().invoke(app, ["import", *map(str, arguments)])


def test_cli_reads_several_files(tmp_path: Path) -> None:
    one, two = write_npz(tmp_path / "one.npz", topk=TOPK), write_npz(tmp_path / "two.npz", topk=TOPK[::-1])
    output = tmp_path / "x.json"
    common = ("--devices", "2", "--traffic-weight", "1", "--moe-layer-ids", "0-1,5", "--model-layers", "6")
    result = headroom_import("expert-routing", one, two, "-o", output, "--json", *common)
    assert result.exit_code == 0, result.output
    instance = ExpertPlacement.from_document(load_document(output))
    assert (instance.scenarios, instance.moe_layer_ids, instance.model_layers) == (2, (0, 1, 5), 6)
    summary = json.loads(result.stdout)
    assert summary["sha256"] == instance.digest()
    assert (summary["scenarios"], summary["layers"], summary["experts"], summary["slots"], summary["has"]) == (2, 3, 4, 4, ["transition"])
    assert "note: transitions: the mean of the 2 files" in result.stderr
    text = headroom_import("expert-routing", one, two, "-o", tmp_path / "x.npz", *common).stdout.strip()
    sizes = "2 scenarios x 3 layers x 4 experts, 4 slots a layer on 2 devices in 1 node; with transition"
    assert text == f"{tmp_path / 'x.npz'}: expert_placement instance, {sizes}"
    assert ExpertPlacement.from_document(load_document(tmp_path / "x.npz")) == instance


def test_cli_takes_every_option(tmp_path: Path) -> None:
    loads, current = write_json(tmp_path / "t.json", [[1, 2, 3, 4], [4, 3, 2, 1]]), tmp_path / "c.json"
    write_json(current, {"physical_to_logical_map": [[0, 1, 2, 3, 0, 1, 2, 3]] * 3})
    result = headroom_import(
        "expert-load", loads, "-o", tmp_path / "x.json", "--devices", "4", "--devices-per-node", "2", "--slots-per-device", "2", "--experts", "4",
        "--current", current, "--max-moves", "5", "--balance-weight", "2", "--moves-weight", "0.5", "--same-node-hop", "0.1",
        "--other-node-hop", "2", "--split", "optimal", "--robust", "mean", "--allow-repeats", "--n-groups", "2", "--group-limited",
        "--first-moe-layer", "1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    data = ExpertPlacement.from_document(load_document(tmp_path / "x.json")).data()
    assert data == {
        "load": [[[1, 2, 3, 4], [4, 3, 2, 1]]], "devices": 4, "devices_per_node": 2, "slots_per_device": 2, "n_groups": 2, "group_limited": True,
        "hop_cost": {"same_node": 0.1, "other_node": 2}, "split": "optimal", "robust": "mean", "distinct": False,
        "weights": {"balance": 2, "moves": 0.5}, "max_moves": 5, "current_slot_expert": [[0, 1, 2, 3, 0, 1, 2, 3]] * 2,
        "model_layers": 3, "moe_layer_ids": (1, 2),
    }  # fmt: skip


def test_cli_options_are_those_of_the_importers() -> None:
    listed = headroom_import("--list").stdout
    assert "expert-routing FILE…  ->  expert_placement" in listed
    for name in ("expert-routing", "expert-load"):
        importer = IMPORTERS[name]
        assert importer.several
        assert callable(importer.load())
        assert ("no_transitions" in importer.options) == (name == "expert-routing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["expert-load"], "FILE: expert-load reads one file or several, got 0"),
        (["expert-load", "t.json", "-o", "x", "--no-transitions"], "--no-transitions: is not an option of expert-load; expected --devices,"),
        (["expert-load", "t.json", "-o", "x", "--price", "a=1"], "--price: is not an option of expert-load; expected --devices,"),
        (["melange", "m.json", "-o", "x", "--devices", "2"], "--devices: is not an option of melange; expected --total-rate-per-s,"),
        (["expert-load", "t.json", "-o", "x", "--performance", "p.csv"], "--performance: is not an option of expert-load"),
        (["expert-load", "t.json", "-o", "x", "--moe-layer-ids", "5-3"], "--moe-layer-ids: must be whole numbers or ranges such as 3-60"),
        (["expert-load", "t.json", "-o", "x", "--moe-layer-ids", "3-"], "--moe-layer-ids: must be whole numbers or ranges such as 3-60"),
        (["expert-load", "t.json", "-o", "x", "--moe-layer-ids", "a"], "--moe-layer-ids: must be whole numbers or ranges such as 3-60"),
        (["expert-load", "nowhere.json", "-o", "x", "--devices", "2"], "nowhere.json: cannot be read: No such file or directory"),
    ],
)
def test_cli_refuses(arguments: list[str], message: str) -> None:
    result = headroom_import(*arguments)
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith(message)
    assert result.stdout == ""


@pytest.mark.parametrize("cell", ["", "x", "4O"])
def test_one_bad_cell_makes_no_header(tmp_path: Path, cell: str) -> None:
    table = tmp_path / "load.csv"
    table.write_text(f"10,20,{cell},40\n1,2,3,4\n", encoding="utf-8")
    assert "column 3" in error_of(import_expert_load, table, devices=2, slots_per_device=2)
    table.write_text("a,b,c,d\n1,2,3,4\n", encoding="utf-8")
    assert import_expert_load(table, devices=2, slots_per_device=2)[0].load.tolist() == [[[1.0, 2.0, 3.0, 4.0]]]
    table.write_text("layer,0,1,2,3\n7,1,2,3,4\n", encoding="utf-8")
    assert import_expert_load(table, devices=2, slots_per_device=2)[0].load.tolist() == [[[1.0, 2.0, 3.0, 4.0]]]


def test_routed_experts_are_no_loads(tmp_path: Path) -> None:
    routed = write_npz(tmp_path / "r.npz", topk=np.zeros((5, 2, 2), dtype=np.int64))
    assert "import expert-routing" in error_of(import_expert_load, routed, devices=2, slots_per_device=1)
