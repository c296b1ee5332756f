"""Importers of GPU-selection instances, the catalogue and `headroom import`, against values worked out by hand and against real files."""

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
from typer.testing import CliRunner, Result

from headroom.cli_import import add_import_command
from headroom.instances.base import load_document
from headroom.instances.catalogue import load_catalogue
from headroom.instances.errors import InputError
from headroom.instances.gpu_selection import GpuSelection
from headroom.instances.gpu_selection_import import import_melange, import_splitwise_perf
from headroom.instances.importers import IMPORTERS
from headroom.instances.request_traces import read_trace
from tests.import_samples import AZURE_CHAT, MOONCAKE, SPLITWISE, TOY_TIMES_MS, real_file, table_text, write_catalogue, write_table, write_trace

# The example the design names: A10G at 1.01 and A100-80GB at 3.67 USD/h, 30 requests/s, slices 4.
MELANGE: dict[str, Any] = {
    "gpu_info": {"A10G": {"cost": 1.01, "tputs": [[2, 1], [5, 2]]}, "A100-80GB": {"cost": 3.67, "tputs": [[20, 20], [40, 20]]}},
    "workload_distribution": [[0.2, 0.1], [0.5, 0.2]],
    "total_request_rate": 30.0,
    "slice_factor": 4,
}

FORMATS = (
    "azure-llm, mooncake, melange, splitwise-perf, expert-routing, expert-load, kv-access, azure-llm-requests, mooncake-requests, bpp, cmax"
)  # fmt: skip


def write_json(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


# ---- Mélange ------------------------------------------------------------------------------------------------------------------


def test_melange_by_hand(tmp_path: Path) -> None:
    instance, notices = import_melange(write_json(tmp_path / "m.json", MELANGE))
    assert notices == []
    assert [item.name for item in instance.work] == ["in0_out0", "in0_out1", "in1_out0", "in1_out1"]
    assert instance.rate_per_s.tolist() == pytest.approx([6, 3, 15, 6])
    assert [(gpu.name, gpu.price_usd_per_h) for gpu in instance.gpus] == [("A10G", 1.01), ("A100-80GB", 3.67)]
    assert instance.throughput_per_s.tolist() == [[2, 1, 5, 2], [20, 20, 40, 20]]
    assert (instance.slices, instance.max_utilisation, instance.packing) == (4, 1.0, "pooled")
    # The fractional bound the design states: Σ_i min_g p r/q = 6·3.67/20 + 3·3.67/20 + 15·3.67/40 … per item min of the two types.
    cost = instance.price_usd_per_h[:, None] * instance.rate_per_s / instance.throughput_per_s
    assert cost.min(axis=0).sum() == pytest.approx(4.129, abs=5e-4)


def test_melange_zero_throughput_is_null_and_zero_rate_is_kept(tmp_path: Path) -> None:
    document = copy.deepcopy(MELANGE)
    document["gpu_info"]["A10G"]["tputs"][0][1] = 0
    document["workload_distribution"] = [[0.5, 0], [0.25, 0]]
    instance, notices = import_melange(write_json(tmp_path / "m.json", document))
    assert np.isnan(instance.throughput_per_s[0, 1])
    assert instance.rate_per_s.tolist() == [15, 0, 7.5, 0]
    assert notices == ["workload_distribution sums to 0.75, not 1: the instance's total rate is 22.5 requests/s"]
    assert instance.provenance["buckets"] == {"prompt": 2, "output": 2}


def test_melange_options(tmp_path: Path) -> None:
    path = write_json(tmp_path / "m.json", MELANGE)
    instance, _ = import_melange(path, total_rate_per_s=60, slices=8, max_utilisation=0.5, prompt_edges=[100, 200], output_edges="10,20")
    assert instance.rate_per_s.sum() == pytest.approx(60)
    assert (instance.slices, instance.max_utilisation) == (8, 0.5)
    assert [(item.prompt_tokens, item.output_tokens) for item in instance.work[1:3]] == [((1, 100), (11, 20)), ((101, 200), (1, 10))]
    with pytest.raises(InputError, match="prompt_edges must have 2 numbers, as many as workload_distribution has prompt sizes, got 10"):
        import_melange(path, prompt_edges="melange")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["gpu_info"], {}, "gpu_info must be an object with at least one GPU type, got {}"),
        (["gpu_info"], [1], "gpu_info must be an object with at least one GPU type"),
        (["gpu_info", "A10G"], 3, "gpu_info.A10G must be an object with cost, tputs, got 3"),
        (["gpu_info", "A10G", "max"], 3, "gpu_info.A10G.max is an unknown field; expected cost, tputs"),
        (["gpu_info", "A10G", "cost"], None, "gpu_info.A10G.cost is missing"),
        (["gpu_info", "A10G", "cost"], "1.01", "gpu_info.A10G.cost must be a finite number of at least 0, got '1.01'"),
        (["gpu_info", "A10G", "cost"], -1, "gpu_info.A10G.cost must be a finite number of at least 0, got -1"),
        (["gpu_info", "A10G", "tputs"], [[2, 1], [-5, 2]], "gpu_info.A10G.tputs[1][0] must be a finite number of at least 0, got -5"),
        (["gpu_info", "A10G", "tputs"], [[2, 1], [True, 2]], "gpu_info.A10G.tputs[1][0] must be a finite number of at least 0, got True"),
        (["gpu_info", "A10G", "tputs"], [[2, 1], [5]], "gpu_info.A10G.tputs[1] must have 2 numbers as workload_distribution has, got 1"),
        (["gpu_info", "A10G", "tputs"], [[2, 1]], "gpu_info.A10G.tputs must have 2 rows as workload_distribution has, got 1"),
        (["gpu_info", "A10G", "tputs"], [2, 1], "gpu_info.A10G.tputs must be a list of rows of numbers"),
        (["workload_distribution"], [[0.5], [0.2, 0.3]], "workload_distribution[1] must have 1 numbers as workload_distribution[0] has, got 2"),
        (["workload_distribution"], [], "workload_distribution must be a list of rows of numbers, got []"),
        (["workload_distribution"], None, "workload_distribution is missing"),
        (["total_request_rate"], "fast", "total_request_rate must be a finite number of at least 0, got 'fast'"),
        (["slice_factor"], 0, "slice_factor must be a whole number of at least 1, got 0"),
        (["slice_factor"], 1.5, "slice_factor must be a whole number of at least 1, got 1.5"),
        (["overall_rate"], 3, "overall_rate is an unknown field"),
    ],
)
def test_broken_melange_files(tmp_path: Path, keys: list[str], value: object, message: str) -> None:
    document = copy.deepcopy(MELANGE)
    place = document
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path = write_json(tmp_path / "m.json", document)
    with pytest.raises(InputError) as caught:
        import_melange(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_melange_files_that_are_not_json(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    for text, message in (
        ("", "not valid JSON at line 1"),
        (json.dumps(MELANGE)[:50], "truncated"),
        ('{"gpu_info": NaN}', "NaN is not JSON"),
        ('{"slice_factor": 1, "slice_factor": 2}', "stands twice"),
        ("[1, 2]", "the document must be an object with gpu_info"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            import_melange(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1, max_size=8), st.lists(st.floats(0, 1e6), min_size=6, max_size=6), min_size=1, max_size=4),
    st.lists(st.just(0.0) | st.floats(1e-12, 1), min_size=6, max_size=6),
    st.floats(0.001, 1e4),
)
def test_melange_content_survives(tmp_path: Path, throughputs: dict[str, list[float]], shares: list[float], rate: float) -> None:
    # Any names (unicode too) and numbers: what the instance holds is what the file said, and so after a trip through headroom's own JSON.
    document = {
        "gpu_info": {
            name: {"cost": 1.5, "tputs": [[q if q >= 1e-3 else 0 for q in row[k : k + 3]] for k in (0, 3)]} for name, row in throughputs.items()
        },
        "workload_distribution": [shares[:3], shares[3:]],
        "total_request_rate": rate,
        "slice_factor": 2,
    }
    instance, _ = import_melange(write_json(tmp_path / "m.json", document))
    for row, entry in zip(instance.throughput_per_s, document["gpu_info"].values(), strict=True):
        assert np.nan_to_num(row).reshape(2, 3).tolist() == entry["tputs"]
    assert instance.rate_per_s.tolist() == [share * rate for share in shares]
    instance.save(tmp_path / "x.json")
    assert GpuSelection.from_document(load_document(tmp_path / "x.json")).digest() == instance.digest()


# ---- Performance table and trace -------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(tmp_path: Path) -> dict[str, Path]:
    """The toy table, its catalogue, and a trace of four requests in 8 s: two in bucket p1-128_o1-32, one in p129-200_o33-40, one beyond."""
    rows = [("2023-11-16 10:00:00", 100, 10), ("2023-11-16 10:00:02", 50, 20), ("2023-11-16 10:00:05", 200, 40), ("2023-11-16 10:00:08", 201, 40)]
    files = {"table": write_table(tmp_path / "perf.csv"), "trace": write_trace(tmp_path / "trace.csv", rows)}
    return files | {"catalogue": write_catalogue(tmp_path / "catalogue.json")}


def test_toy_by_hand(toy: dict[str, Path]) -> None:
    instance, notices = import_splitwise_perf(**toy, ttft_s=0.5, tpot_s=0.04)
    # The fourth request's prompt (201) is longer than the 200 tokens that were measured: it alone is left out, its bucket split at 200.
    assert [item.name for item in instance.work] == ["p1-128_o1-32", "p129-200_o33-40"]
    assert instance.rate_per_s.tolist() == [2 / 8, 1 / 8]
    assert instance.work[1].prompt_tokens == (129, 200)
    assert [(gpu.name, gpu.price_usd_per_h, gpu.pool) for gpu in instance.gpus] == [("Toy-GPU-TP1", 2.0, None)]
    # Bucket 1: mean (75, 15), largest (100, 20). Prefill: batch 4 (340 ms) meets 500 ms; at 75 tokens P = 80 ms, so 80·3.4/4 = 68 ms a
    # request (batch 2: 72). Decode at the largest: 21, 25.2, 33.6, 42 ms: 40 ms allows 4; 1000 // 120 = 8 fit. At the mean D(75) = 19.5 and
    # D(15) = 20.5 ms, so a step of 4 takes 32·0.975·1.025 = 31.98 ms.
    prefill, decode = 0.068, 14 * 0.03198 / 4
    assert instance.throughput_per_s[0, 0] == pytest.approx(1 / (prefill + decode))
    # Bucket 2, all at (200, 40): prefill 220 ms or 396/2 = 198 ms; decode batch 2 (33 ms), 39 steps.
    assert instance.throughput_per_s[0, 1] == pytest.approx(1 / (0.198 + 39 * 0.033 / 2))
    assert instance.max_utilisation == 0.8
    assert instance.slices is None
    loud = [notice for notice in notices if notice.startswith("LEFT OUT")]
    assert loud == [
        "LEFT OUT: 1 of 4 requests, of up to 201 prompt and 40 output tokens, are longer than was measured (200 prompt, 40 output tokens): "
        "25.0000% of requests, 36.4599% of tokens, 0.125 of 0.5 requests/s. No plan for this instance serves them"
    ]  # 241 of 110 + 70 + 240 + 241 = 661 tokens
    left_out = instance.provenance["left_out"]
    assert (left_out["requests"], left_out["of_requests"], left_out["rate_per_s"]) == (1, 4, 0.125)
    assert instance.provenance["batches"] == {"Toy-GPU-TP1": {"prefill": [4, 2], "decode": [4, 2]}}
    assert instance.provenance["replica_types"]["Toy-GPU-TP1"]["kv_tokens"] == 1000
    assert [source["role"] for source in instance.provenance["sources"]] == ["performance table", "trace", "catalogue"]
    assert instance.provenance["notices"] == notices


def test_toy_split_phases_and_stock(toy: dict[str, Path]) -> None:
    instance, _ = import_splitwise_perf(**toy, ttft_s=0.5, tpot_s=0.04, split_phases=True, stock={"TOY_gpu": 5})
    buckets = ("p1-128_o1-32", "p129-200_o33-40")
    assert [(item.name, item.phase) for item in instance.work] == [(f"{name}-{phase}", phase) for phase in ("prefill", "decode") for name in buckets]
    assert [gpu.name for gpu in instance.gpus] == ["Toy-GPU-TP1-prefill", "Toy-GPU-TP1-decode"]
    assert [(pool.name, pool.max_gpus) for pool in instance.pools] == [("Toy-GPU", 5)]
    assert {gpu.pool for gpu in instance.gpus} == {"Toy-GPU"}
    expected = [[1 / 0.068, 1 / 0.198, np.nan, np.nan], [np.nan, np.nan, 4 / (14 * 0.03198), 2 / (39 * 0.033)]]
    np.testing.assert_allclose(instance.throughput_per_s, expected)
    # In series the two phases take as long as the undivided item.
    whole, _ = import_splitwise_perf(**toy, ttft_s=0.5, tpot_s=0.04)
    np.testing.assert_allclose(1 / instance.throughput_per_s[0, :2] + 1 / instance.throughput_per_s[1, 2:], 1 / whole.throughput_per_s[0])


def test_one_token_answers_have_nothing_to_decode(toy: dict[str, Path]) -> None:
    write_trace(toy["trace"], [("2023-11-16 10:00:00", 100, 1), ("2023-11-16 10:00:02", 150, 2)])
    instance, _ = import_splitwise_perf(**toy, split_phases=True)
    assert [item.name for item in instance.work] == ["p1-128_o1-32-prefill", "p129-200_o1-32-prefill", "p129-200_o1-32-decode"]


def test_rates_scale_and_nothing_else_changes(toy: dict[str, Path]) -> None:
    plain, _ = import_splitwise_perf(**toy)
    scaled, _ = import_splitwise_perf(**toy, total_rate_per_s=50)
    np.testing.assert_allclose(scaled.rate_per_s, plain.rate_per_s * 100)  # 4 requests in 8 s are 0.5 a second
    np.testing.assert_array_equal(scaled.throughput_per_s, plain.throughput_per_s)
    longer, _ = import_splitwise_perf(**toy, duration_s=80)
    np.testing.assert_allclose(longer.rate_per_s, plain.rate_per_s / 10)


def test_a_workload_document_stands_for_its_trace(toy: dict[str, Path], tmp_path: Path) -> None:
    workload, _ = read_trace(toy["trace"], split_prompt=[200], split_output=[40])
    workload.save(tmp_path / "w.json")
    from_document, _ = import_splitwise_perf(toy["table"], tmp_path / "w.json", catalogue=toy["catalogue"])
    from_trace, _ = import_splitwise_perf(**toy)
    assert from_document.digest() == from_trace.digest()
    # A document counted without that edge has 200 and 201 in one bucket, which can only be left out whole.
    read_trace(toy["trace"])[0].save(tmp_path / "w.json")
    coarse, notices = import_splitwise_perf(toy["table"], tmp_path / "w.json", catalogue=toy["catalogue"])
    assert [item.name for item in coarse.work] == ["p1-128_o1-32"]
    assert "whole buckets were left out" in notices[-1]
    assert "LEFT OUT: 2 of 4 requests" in notices[-2]


def test_beyond_range_error(toy: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"trace.csv: 1 of 4 requests, of up to 201 prompt .* are longer than was measured .*--beyond-range error"):
        import_splitwise_perf(**toy, beyond_range="error")
    with pytest.raises(InputError, match="beyond_range must be drop or error, got 'keep'"):
        import_splitwise_perf(**toy, beyond_range="keep")
    write_trace(toy["trace"], [("2023-11-16 10:00:00", 300, 1), ("2023-11-16 10:00:02", 300, 2)])
    with pytest.raises(InputError, match=r"2 of 2 requests, .* expected some that are not"):
        import_splitwise_perf(**toy)


def test_tighter_limits_make_buckets_unservable(toy: dict[str, Path]) -> None:
    # A prompt of 200 takes 220 ms: with 200 ms to the first token only the first bucket can be served.
    instance, notices = import_splitwise_perf(**toy, ttft_s=0.2)
    assert np.isnan(instance.throughput_per_s).tolist() == [[False, True]]
    assert notices[-1] == "no type serves p129-200_o33-40 within TTFT 0.2 s and TPOT 0.1 s: as it stands the instance is infeasible"


def test_tensor_parallelism(toy: dict[str, Path]) -> None:
    write_table(toy["table"], table_text(TOY_TIMES_MS), table_text({point: (a / 2, b / 2) for point, (a, b) in TOY_TIMES_MS.items()}, tp=2))
    instance, _ = import_splitwise_perf(**toy, stock={"toy-gpu": 3}, price={"Toy-GPU": 3.5})
    assert [(gpu.name, gpu.price_usd_per_h, gpu.gpus_per_replica) for gpu in instance.gpus] == [("Toy-GPU-TP1", 3.5, 1), ("Toy-GPU-TP2", 7.0, 2)]
    kv = {name: facts["kv_tokens"] for name, facts in instance.provenance["replica_types"].items()}
    assert kv == {"Toy-GPU-TP1": 1000, "Toy-GPU-TP2": 3250}  # 0.9 · 2e9 − 0.5e9 = 1.3e9 bytes
    # With half the memory usable, 0.5e9 − 0.5e9 bytes are left on one GPU: that type goes, with a notice, unless it was asked for.
    instance, notices = import_splitwise_perf(**toy, usable_memory_share=0.5)
    assert [gpu.name for gpu in instance.gpus] == ["Toy-GPU-TP2"]
    assert "Toy-GPU-TP1 is left out: its memory does not hold the weights of toy-model" in notices
    with pytest.raises(InputError, match="does not hold the weights"):
        import_splitwise_perf(**toy, usable_memory_share=0.5, tp=[1])
    instance, _ = import_splitwise_perf(**toy, tp=[2])
    assert [gpu.name for gpu in instance.gpus] == ["Toy-GPU-TP2"]


def test_hardware_without_price_or_memory(toy: dict[str, Path]) -> None:
    write_table(toy["table"], table_text(TOY_TIMES_MS), table_text(TOY_TIMES_MS, hardware="h100-80gb-pcap"), table_text(TOY_TIMES_MS, hardware="tpu"))
    instance, notices = import_splitwise_perf(**toy)
    assert [gpu.name for gpu in instance.gpus] == ["Toy-GPU-TP1"]
    assert "H100-80GB-pcap is left out: it has no price (--price h100-80gb-pcap=USD_PER_GPU_HOUR)" in notices
    assert "tpu is left out: not in the catalogue, so its memory is unknown (--catalogue FILE)" in notices
    instance, _ = import_splitwise_perf(**toy, price={"h100-80gb-pcap": 6})
    assert [(gpu.name, gpu.price_usd_per_h) for gpu in instance.gpus] == [("Toy-GPU-TP1", 2.0), ("H100-80GB-pcap-TP1", 6.0)]
    with pytest.raises(InputError, match="it has no price"):
        import_splitwise_perf(**toy, hardware=["h100-80gb-pcap"])
    with pytest.raises(InputError, match="not in the catalogue"):
        import_splitwise_perf(**toy, hardware=["tpu"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "gpt-5"}, "model must be one of toy-model, got 'gpt-5'"),
        ({"hardware": ["b200"]}, "hardware must be among toy-gpu, got 'b200'"),
        ({"tp": [4]}, "tp must be among the measured 1, got 4"),
        ({"price": {"h100": 3.0}}, "price must name one of Toy-GPU, got 'h100'"),
        ({"price": {"toy-gpu": -1.0}}, "price of toy-gpu must be a number of USD an hour of at least 0, got -1.0"),
        ({"price": {"toy-gpu": 1.0, "TOY-GPU": 2.0}}, "price names Toy-GPU twice"),
        ({"stock": {"toy-gpu": -1}}, "stock of toy-gpu must be a whole number of GPUs"),
        ({"stock": {"toy-gpu": 1.5}}, "stock of toy-gpu must be a whole number of GPUs"),
        ({"ttft_s": 0.0}, "ttft_s must be positive, got 0.0"),
        ({"tpot_s": float("nan")}, "tpot_s must be positive, got nan"),
        ({"max_utilisation": 1.5}, "max_utilisation must be less than or equal to 1, got 1.5"),
        ({"usable_memory_share": 0.0}, r"usable_memory_share must be in \(0, 1\], got 0.0"),
        ({"usable_memory_share": 0.4}, "no replica type is left: Toy-GPU-TP1 is left out: its memory does not hold"),
        ({"slices": 0}, "slices must be"),
        ({"total_rate_per_s": -5.0}, "total_rate_per_s must be positive, got -5.0"),
        ({"trace": None}, "needs a request trace or a workload document; expected --trace FILE"),
        ({"catalogue": None}, "model 'toy-model' is not in the catalogue"),
    ],
)
def test_bad_options(toy: dict[str, Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        import_splitwise_perf(**(toy | options))


def test_default_line_on_the_real_files() -> None:
    table, trace = real_file(SPLITWISE), real_file(AZURE_CHAT)
    instance, notices = import_splitwise_perf(table, trace)
    assert [gpu.name for gpu in instance.gpus] == ["A100-80GB-TP2", "H100-TP2", "A100-80GB-TP4", "H100-TP4", "A100-80GB-TP8", "H100-TP8"]
    assert instance.price_usd_per_h.tolist() == pytest.approx([2 * 3.67, 2 * 7.516, 4 * 3.67, 4 * 7.516, 8 * 3.67, 8 * 7.516])
    assert len(instance.work) == 41
    assert instance.can_serve.any(axis=0).all()
    assert instance.rate_per_s.sum() == pytest.approx(19_365 / 3501.721937)
    left_out = instance.provenance["left_out"]
    assert (left_out["requests"], left_out["of_requests"]) == (1, 19_366)
    assert [notice.split(":")[0] for notice in notices] == [
        "model llama2-70b", "H100-80GB-pcap is left out", "not trusted", "not trusted", notices[4].split(":")[0], "LEFT OUT",
    ]  # fmt: skip
    kv = {name: facts["kv_tokens"] for name, facts in instance.provenance["replica_types"].items()}
    assert kv["A100-80GB-TP2"] == kv["H100-TP2"] == 12_207
    # More GPUs, or faster ones, never do less of the same work.
    q = np.nan_to_num(instance.throughput_per_s)
    assert (q[1] >= q[0]).all()  # H100 against A100 at TP 2
    assert (q[3] >= q[2]).all()
    assert (q[5] >= q[4]).all()
    assert (q[2] >= q[0]).all()  # TP 4 against TP 2


def test_other_real_combinations() -> None:
    table, trace = real_file(SPLITWISE), real_file(AZURE_CHAT)
    split, _ = import_splitwise_perf(table, trace, model="bloom-176b", split_phases=True, stock={"a100-80gb": 16, "h100-80gb": 8})
    assert (len(split.work), len(split.gpus)) == (82, 4)
    assert [(pool.name, pool.max_gpus) for pool in split.pools] == [("A100-80GB", 16), ("H100", 8)]
    mooncake, notices = import_splitwise_perf(table, real_file(MOONCAKE))
    assert any(notice.startswith("LEFT OUT: 2") for notice in notices)  # more than half of these prompts are longer than 8,192
    assert mooncake.can_serve.any(axis=0).all()


# ---- Catalogue ---------------------------------------------------------------------------------------------------------------------


def test_catalogue_figures_agree_with_the_models_shapes() -> None:
    catalogue = load_catalogue()
    for model in catalogue.models.values():
        if model.layers and model.kv_heads and model.head_size:  # K and V, two bytes each
            assert model.kv_bytes_per_token == 2 * model.layers * model.kv_heads * model.head_size * 2, model.name
    llama, bloom = catalogue.model("llama2-70b"), catalogue.model("bloom-176b")
    assert llama is not None
    assert bloom is not None
    assert (llama.weights_bytes, llama.kv_bytes_per_token) == (140e9, 327_680)
    assert (bloom.weights_bytes, bloom.kv_bytes_per_token) == (352e9, 4_014_080)
    for alias, name, price in (("a100-80gb", "A100-80GB", 3.67), ("A100_80GB", "A100-80GB", 3.67), ("h100-80gb", "H100", 7.516)):
        gpu = catalogue.gpu(alias)
        assert gpu is not None
        assert gpu.default_price is not None
        assert (gpu.name, gpu.default_price.usd_per_h) == (name, price)
    h200, capped = catalogue.gpu("H200"), catalogue.gpu("h100-80gb-pcap")
    assert h200 is not None
    assert capped is not None
    assert h200.default_price is None  # a range is not a price
    assert capped.default_price is None
    assert catalogue.gpu("abacus") is None


def test_catalogue_is_laid_over_field_by_field(tmp_path: Path) -> None:
    price = {"usd_per_h": 1.5, "date": "2026-11", "source": "our contract"}
    path = write_json(tmp_path / "c.json", {"gpus": [{"name": "a100-80gb", "prices": [price]}, {"name": "New", "memory_gb": 10}]})
    gpu = load_catalogue(path).gpu("A100-80GB")
    assert gpu is not None
    assert gpu.default_price is not None
    assert (gpu.name, gpu.memory_gb, gpu.default_price.usd_per_h) == ("A100-80GB", 80, 1.5)
    assert load_catalogue(path).gpu("new") is not None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], 'expected an object with "gpus" and/or "models", got []'),
        ({"gpu": []}, 'expected an object with "gpus" and/or "models"'),
        ({"gpus": {}}, "gpus must be a list of objects, got {}"),
        ({"gpus": [{"memory_gb": 3}]}, "gpus[0] must be an object with a name"),
        ({"gpus": [{"name": "New"}]}, "gpus 'New': memory_gb is missing"),
        ({"gpus": [{"name": "L4", "memory_gb": -1}]}, "gpus 'L4': memory_gb must be greater than 0, got -1"),
        ({"gpus": [{"name": "L4", "memory_gib": 1}]}, "gpus 'L4': memory_gib is an unknown field"),
        ({"gpus": [{"name": "L4", "prices": [{"date": "2026", "source": "x"}]}]}, "gpus 'L4': prices: an entry must have either usd_per_h or"),
        ({"gpus": [{"name": "New", "memory_gb": 1, "aliases": ["l4"]}]}, "gpus: 'l4' names both 'L4' and 'New'"),
        ({"models": [{"name": "m", "layers": 1.5}]}, "models 'm': layers must be"),
    ],
)
def test_broken_catalogues(tmp_path: Path, document: object, message: str) -> None:
    path = write_json(tmp_path / "c.json", document)
    with pytest.raises(InputError) as caught:
        load_catalogue(path)
    assert str(caught.value).startswith(f"{path}: {message}")


# ---- Command line -----------------------------------------------------------------------------------------------------------------


def headroom_import(*arguments: str | Path) -> Result:
    app = typer.Typer(rich_markup_mode=None)
    add_import_command(app)
    app.command("other")(lambda: None)  # a single command would lose its name
    return CliRunner().invoke(app, ["import", *map(str, arguments)])


def test_cli_makes_an_instance(toy: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "x.json"
    common = ["--catalogue", toy["catalogue"], "--ttft-s", "0.5", "--tpot-s", "0.04", "--stock", "toy-gpu=4", "--price", "toy-gpu=2.5", "--tp", "1"]
    result = headroom_import("splitwise-perf", toy["table"], "--trace", toy["trace"], "-o", output, "--json", *common)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    instance = GpuSelection.from_document(load_document(output))
    assert (summary["work_items"], summary["replica_types"], summary["unservable"]) == (2, ["Toy-GPU-TP1"], [])
    assert summary["sha256"] == instance.digest()
    assert summary["total_rate_per_s"] == 0.375
    assert (instance.price_usd_per_h[0], instance.pools[0].max_gpus) == (2.5, 4)
    assert "note: LEFT OUT: 1 of 4 requests" in result.stderr
    # The same from the trace's side, as text, into the other container.
    other = headroom_import("azure-llm", toy["trace"], "--performance", toy["table"], "-o", tmp_path / "x.npz", *common)
    assert other.exit_code == 0, other.output
    assert other.stdout.strip() == f"{tmp_path / 'x.npz'}: gpu_selection instance, 2 work items, 0.375 requests/s, 1 replica types (Toy-GPU-TP1)"
    assert GpuSelection.from_document(load_document(tmp_path / "x.npz")).digest() == instance.digest()


def test_cli_makes_a_workload_and_takes_it_back(toy: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "w.json"
    result = headroom_import("azure-llm", toy["trace"], "-o", output, "--prompt-edges", "128,200", "--output-edges", "melange")
    assert result.stdout.strip() == f"{output}: workload of 4 requests in 8 s, 0.5 requests/s, 3 buckets"
    result = headroom_import("splitwise-perf", toy["table"], "--trace", output, "--catalogue", toy["catalogue"], "-o", tmp_path / "x.json")
    assert result.exit_code == 0
    assert len(GpuSelection.from_document(load_document(tmp_path / "x.json")).work) == 2
    split = ("--split-phases", "--json", "--catalogue", toy["catalogue"], "-o", tmp_path / "x.json")
    summary = json.loads(headroom_import("splitwise-perf", toy["table"], "--trace", output, *split).stdout)
    assert (summary["work_items"], summary["total_rate_per_s"], summary["name"]) == (4, 0.375, "toy-model trace 0.375/s")  # a request counts once
    assert isinstance(headroom_import("azure-llm", toy["trace"], "-o", tmp_path / "w.npz").exception, InputError)


def test_cli_melange(tmp_path: Path) -> None:
    path = write_json(tmp_path / "m.json", MELANGE)
    result = headroom_import("melange", path, "-o", tmp_path / "x.json", "--slices", "2")
    assert result.exit_code == 0
    assert GpuSelection.from_document(load_document(tmp_path / "x.json")).slices == 2


def test_cli_lists_formats() -> None:
    text = headroom_import("--list").stdout
    assert all(name in text for name in IMPORTERS)
    listed = json.loads(headroom_import("--list", "--json").stdout)["formats"]
    assert [entry["format"] for entry in listed] == list(IMPORTERS)
    for importer in IMPORTERS.values():
        assert callable(importer.load())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], f"FORMAT: is missing; expected one of {FORMATS} and a file"),
        (["csv", "trace.csv"], f"FORMAT: must be one of {FORMATS}, got 'csv'"),
        (["bpp", "a.bpp", "-o", "x", "--slots", "3"], "--slots: is not an option of bpp; expected none"),
        (["azure-llm"], "FILE: azure-llm reads one file, got 0"),
        (["azure-llm", "a", "b"], "FILE: azure-llm reads one file, got 2"),
        (["azure-llm", "trace.csv"], "--output: is missing; expected a file to write"),
        (
            ["azure-llm", "trace.csv", "-o", "x", "--ttft-s", "1"],
            "--ttft-s: is not an option of azure-llm without --performance; expected --prompt-edges,",
        ),
        (["melange", "m.json", "-o", "x", "--split-phases"], "--split-phases: is not an option of melange; expected --total-rate-per-s,"),
        (["melange", "m.json", "-o", "x", "--performance", "t.csv"], "--performance: is not an option of melange"),
        (["mooncake", "t", "-o", "x", "--performance", "t.csv", "--trace", "u"], "--trace: is not an option of mooncake: FILE is the trace"),
        (["splitwise-perf", "t", "-o", "x", "--price", "h100"], "--price: must be NAME=a number, each name once, got 'h100'"),
        (["splitwise-perf", "t", "-o", "x", "--price", "a=1", "--price", "a=2"], "--price: must be NAME=a number, each name once, got 'a=2'"),
        (["splitwise-perf", "t", "-o", "x", "--stock", "h100=2.5"], "--stock: must be NAME=a whole number, each name once, got 'h100=2.5'"),
        (["splitwise-perf", "t", "-o", "x", "--tp", "two"], "--tp: must be whole numbers with commas between them, got 'two'"),
        (["splitwise-perf", "t", "-o", "x"], "t: needs a request trace or a workload document; expected --trace FILE"),
    ],
)
def test_cli_refuses(arguments: list[str], message: str) -> None:
    result = headroom_import(*arguments)
    assert isinstance(result.exception, InputError)
    assert str(result.exception).startswith(message)
    assert result.stdout == ""


def test_a_failed_import_leaves_no_file(toy: dict[str, Path], tmp_path: Path) -> None:
    toy["trace"].write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    output = tmp_path / "x.json"
    result = headroom_import("splitwise-perf", toy["table"], "--trace", toy["trace"], "-o", output)
    assert isinstance(result.exception, InputError)
    assert not output.exists()
