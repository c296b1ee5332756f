"""A trace over time: requests counted by epoch and bucket, and `headroom import … --epoch-s`, against counts done by hand and real files."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headroom.instances.base import load_document
from headroom.instances.errors import InputError
from headroom.instances.gpu_selection import GpuSelection
from headroom.instances.gpu_selection_epochs import Epochs
from headroom.instances.gpu_selection_import import import_splitwise_perf
from headroom.instances.request_traces import read_trace_and_span
from headroom.instances.trace_epochs import EpochCounts, count_epochs
from tests.command import headroom, only_error
from tests.import_samples import AZURE_CHAT, MOONCAKE, SPLITWISE, TOY_TIMES_MS, real_file, table_text, write_catalogue, write_table, write_trace

START = datetime(2023, 11, 16, 10)
# Seconds after the first arrival, prompt tokens, output tokens; not in order, as in some traces. Bucket a is p1-128_o1-32, b is p129-256_o33-64.
ROWS = [(0, 100, 10), (150, 100, 10), (70, 200, 40), (59.5, 50, 20), (60, 100, 10), (125, 200, 40), (170, 130, 33)]


def trace_of(path: Path, rows: list[tuple[float, int, int]]) -> Path:
    return write_trace(path, [((START + timedelta(seconds=second)).isoformat(sep=" "), prompt, output) for second, prompt, output in rows])


def counted(path: Path, epoch_s: float, duration_s: float | None = None, **options: Any) -> EpochCounts:
    workload, _, span = read_trace_and_span(path, **options)
    assert span is not None
    return count_epochs(path, span, workload, epoch_s, duration_s)


# ---- Counting -----------------------------------------------------------------------------------------------------------------------


def test_counts_by_hand(tmp_path: Path) -> None:
    # 170 s in epochs of 60 s: [0, 60) holds 0 and 59.5, both in a; [60, 120) holds 60 in a and 70 in b; then 50 of 60 s are covered, more than
    # half, and hold 150 in a, 125 and 170 in b.
    counts = counted(trace_of(tmp_path / "t.csv", ROWS), 60)
    assert counts.requests.tolist() == [[2, 0], [1, 1], [1, 2]]
    assert counts.covered_s.tolist() == [60, 60, 50]
    assert counts.rate_per_s.tolist() == [[2 / 60, 0], [1 / 60, 1 / 60], [1 / 50, 2 / 50]]
    assert (counts.left_out_s, counts.left_out_requests.tolist()) == (0, [0, 0])
    assert counts.notices() == ["3 epochs of 60 s; the last is covered for 50 s, and its rates are those of that part"]


def test_less_than_half_an_epoch_is_left_out(tmp_path: Path) -> None:
    # 170 s in epochs of 75 s: after 150 s, 20 s are left, with the arrivals at 150 (which is not before the end of the second epoch) and 170.
    counts = counted(trace_of(tmp_path / "t.csv", ROWS), 75)
    assert counts.requests.tolist() == [[3, 1], [0, 1]]
    assert (counts.left_out_s, counts.left_out_requests.tolist()) == (20, [1, 1])
    assert counts.notices() == ["2 epochs of 75 s; the last 20 s with 2 requests, less than half an epoch, are left out"]


def test_the_very_end_belongs_to_the_last_epoch(tmp_path: Path) -> None:
    # 170 = 2 * 85 s: nothing remains, and the last arrival is in the second epoch.
    counts = counted(trace_of(tmp_path / "t.csv", ROWS), 85)
    assert counts.requests.tolist() == [[3, 1], [1, 2]]
    assert counts.notices() == []
    assert counted(tmp_path / "t.csv", 170).requests.tolist() == [[4, 3]]
    assert counted(tmp_path / "t.csv", 340).rate_per_s.tolist() == [[4 / 170, 3 / 170]]  # half an epoch is covered


def test_a_given_duration_ends_in_silence(tmp_path: Path) -> None:
    counts = counted(trace_of(tmp_path / "t.csv", ROWS), 60, 300)
    assert counts.requests.tolist() == [[2, 0], [1, 1], [1, 2], [0, 0], [0, 0]]
    assert counts.covered_s.tolist() == [60] * 5
    with pytest.raises(InputError, match=r"t.csv: duration_s must be at least the 170 s from first to last arrival when epochs are counted, got 169"):
        counted(tmp_path / "t.csv", 60, 169)


def test_edges_of_epochs_are_exact(tmp_path: Path) -> None:
    # 0.3 / 0.1 is 2.9999999999999996 in floating point; an arrival at 0.3 s is nevertheless in the fourth epoch of 0.1 s.
    rows = [(0.1 * k, 10, 10) for k in range(11)]
    assert counted(trace_of(tmp_path / "t.csv", rows), 0.1).requests.tolist() == [[1]] * 9 + [[2]]
    lines = [json.dumps({"timestamp": 100 * k + 5, "input_length": 10, "output_length": 10}) for k in range(11)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    assert counted(tmp_path / "t.jsonl", 0.1).requests.tolist() == [[1]] * 9 + [[2]]


def test_blocks_packing_and_zero_tokens_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = counted(trace_of(tmp_path / "t.csv", ROWS), 60)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    monkeypatch.setattr("headroom.instances.request_traces.BLOCK_BYTES", 64)
    for name in ("t.csv", "t.csv.gz"):
        assert counted(tmp_path / name, 60).requests.tolist() == plain.requests.tolist()
    # Zero tokens count as one, as in the workload.
    assert counted(trace_of(tmp_path / "z.csv", [(0, 0, 5), (100, 7, 0)]), 50).requests.tolist() == [[1], [1]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 300), st.integers(0, 70)), min_size=2, max_size=40),
    st.integers(1, 5000),
)
def test_counts_agree_with_counting_one_by_one(tmp_path: Path, rows: list[tuple[int, int, int]], epoch_s: int) -> None:
    first, last = min(row[0] for row in rows), max(row[0] for row in rows)
    path = trace_of(tmp_path / "t.csv", [(float(a), b, c) for a, b, c in rows])
    options = {"prompt_edges": [10, 100], "output_edges": [20], "total_rate_per_s": 1.0}
    whole, rest = divmod(last - first, epoch_s)
    if whole == 0 and 2 * rest < epoch_s:
        with pytest.raises(InputError, match="epoch_s must be at most twice the"):
            counted(path, epoch_s, **options)
        return
    counts = counted(path, epoch_s, **options)
    epochs = whole + (2 * rest >= epoch_s)
    assert len(counts.requests) == epochs
    by_hand = Counter(min((second - first) // epoch_s, epochs - 1 if rest == 0 else epochs) for second, _, _ in rows)
    assert counts.requests.sum(axis=1).tolist() == [by_hand[t] for t in range(epochs)]
    assert counts.left_out_requests.sum() == sum(n for t, n in by_hand.items() if t >= epochs)
    by_bucket = Counter((sum(max(p, 1) > edge for edge in (10, 100)), int(max(o, 1) > 20)) for _, p, o in rows)
    assert (counts.requests.sum(axis=0) + counts.left_out_requests).tolist() == [by_bucket[key] for key in sorted(by_bucket)]


@pytest.mark.parametrize(
    ("epoch_s", "message"),
    [
        (0.0, "epoch_s must be a positive number of seconds of at most 1e9, got 0"),
        (-60.0, "epoch_s must be a positive number"),
        (float("nan"), "epoch_s must be a positive number"),
        (float("inf"), "epoch_s must be a positive number"),
        (341.0, "t.csv: epoch_s must be at most twice the 170 s that the trace lasts, got 341"),
        (1e-6, "t.csv: epoch_s must be at least 6.8e-06 so that epochs x buckets are at most 50000000, got 1e-06"),
    ],
)
def test_impossible_epochs(tmp_path: Path, epoch_s: float, message: str) -> None:
    path = trace_of(tmp_path / "t.csv", ROWS)
    with pytest.raises(InputError) as caught:
        counted(path, epoch_s)
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(message)


@pytest.mark.parametrize(
    "later",
    [
        [*ROWS, (80, 100, 10)],  # one more in a bucket that is there
        [*ROWS[:-1], (170, 5000, 33)],  # a size that was not there
        [*ROWS[:-1], (171, 130, 33)],  # another end
        [(-1, 100, 10), *ROWS[1:]],  # another beginning
    ],
)
def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, later: list[tuple[float, int, int]]) -> None:
    path = trace_of(tmp_path / "t.csv", ROWS)
    workload, _, span = read_trace_and_span(path)
    assert span is not None
    trace_of(path, later)
    with pytest.raises(InputError, match="has changed while it was read"):
        count_epochs(path, span, workload, 60)


def test_memory_does_not_grow_with_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headroom.instances.request_traces.BLOCK_BYTES", 2**16)
    peaks = []
    for requests in (20_000, 80_000):
        lines = [f'{{"timestamp": {k * 600_000 // requests}, "input_length": {k % 999 + 1}, "output_length": {k % 99 + 1}}}' for k in range(requests)]
        path = tmp_path / f"{requests}.jsonl"
        path.write_text("\n".join(lines) + "\n")
        del lines
        workload, _, span = read_trace_and_span(path)
        assert span is not None
        tracemalloc.start()
        counts = count_epochs(path, span, workload, 6.0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert counts.requests.sum() == requests
    assert peaks[1] < 1.3 * peaks[0]


# ---- Instances ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(tmp_path: Path) -> dict[str, Path]:
    """The toy table, its catalogue and the rows above with one request of 201 prompt tokens, which nothing was measured for, at 90 s."""
    files = {"table": write_table(tmp_path / "perf.csv"), "trace": trace_of(tmp_path / "trace.csv", [*ROWS, (90, 201, 40)])}
    return files | {"catalogue": write_catalogue(tmp_path / "catalogue.json")}


def epochs_of(instance: GpuSelection) -> Epochs:
    assert instance.epochs is not None
    return instance.epochs


def test_instance_by_hand(toy: dict[str, Path]) -> None:
    instance, notices = import_splitwise_perf(**toy, epoch_s=60, start_delay_epochs=1, start_cost_usd=0.25)
    epochs = epochs_of(instance)
    assert [item.name for item in instance.work] == ["p1-128_o1-32", "p129-200_o33-40"]
    np.testing.assert_allclose(epochs.rate_per_s, [[2 / 60, 0], [1 / 60, 1 / 60], [1 / 50, 2 / 50]])
    np.testing.assert_allclose(instance.rate_per_s, epochs.rate_per_s.mean(axis=0))
    assert (epochs.epoch_s, epochs.start_delay_epochs, epochs.start_cost_usd, epochs.initial_count) == (60.0, 1, (0.25,), None)
    assert instance.mode == "epochs"
    # Throughputs do not know about time.
    pooled, _ = import_splitwise_perf(**toy)
    np.testing.assert_array_equal(instance.throughput_per_s, pooled.throughput_per_s)
    facts = instance.provenance["epochs"]
    assert (facts["epochs"], facts["requests_counted"], facts["last_epoch_covered_s"], facts["left_out_requests"]) == (3, 8, 50.0, 0)
    assert "3 epochs of 60 s; the last is covered for 50 s, and its rates are those of that part" in notices
    assert any(notice.startswith("LEFT OUT: 1 of 8 requests") for notice in notices)
    assert instance.provenance["options"]["start_cost_usd"] == 0.25
    assert not any("starts are" in notice for notice in notices)


def test_total_rate_is_the_mean_over_the_epochs(toy: dict[str, Path]) -> None:
    # The request that is left out counts into the total, as it does without epochs: rates 2/60, 3/60 and 3/50 have the mean 43/900.
    plain, _ = import_splitwise_perf(**toy, epoch_s=60)
    scaled, notices = import_splitwise_perf(**toy, epoch_s=60, total_rate_per_s=43)
    assert plain.provenance["epochs"]["mean_rate_per_s_of_trace"] == pytest.approx(43 / 900)
    np.testing.assert_allclose(epochs_of(scaled).rate_per_s, 900 * epochs_of(plain).rate_per_s)
    np.testing.assert_allclose(scaled.rate_per_s, 900 * plain.rate_per_s)
    assert notices[-1] == "starts are free and at once: start_cost_usd and start_delay_epochs say otherwise"


def test_duration(toy: dict[str, Path]) -> None:
    instance, _ = import_splitwise_perf(**toy, epoch_s=60, duration_s=240)
    np.testing.assert_allclose(epochs_of(instance).rate_per_s, [[2 / 60, 0], [1 / 60, 1 / 60], [1 / 60, 2 / 60], [0, 0]])


def test_starts_by_type_and_gpu(toy: dict[str, Path]) -> None:
    write_table(toy["table"], table_text(TOY_TIMES_MS), table_text({point: (a / 2, b / 2) for point, (a, b) in TOY_TIMES_MS.items()}, tp=2))
    by_type = {"TOY-gpu": 0.5, "toy-gpu-tp2": 2.0}
    instance, _ = import_splitwise_perf(**toy, epoch_s=60, start_cost_usd=by_type, initial_count={"Toy-GPU-TP2": 3})
    assert [gpu.name for gpu in instance.gpus] == ["Toy-GPU-TP1", "Toy-GPU-TP2"]
    assert epochs_of(instance).start_cost_usd == (0.5, 2.0)  # a type's own name counts before its GPU's
    assert epochs_of(instance).initial_count == (0, 3)
    split, _ = import_splitwise_perf(
        **toy, epoch_s=60, split_phases=True, start_cost_usd={"toy-gpu-tp1": 1.0, "toy-gpu": 3.0, "toy-gpu-tp2-decode": 4.0}, initial_count=2
    )
    assert [gpu.name for gpu in split.gpus][::2] == ["Toy-GPU-TP1-prefill", "Toy-GPU-TP2-prefill"]
    assert epochs_of(split).start_cost_usd == (1.0, 1.0, 3.0, 4.0)
    assert epochs_of(split).initial_count == (2, 2, 2, 2)
    np.testing.assert_array_equal(epochs_of(split).rate_per_s[:, :2], epochs_of(split).rate_per_s[:, 2:])  # both phases of a bucket


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_cost_usd": 1.0}, "start_cost_usd needs epoch_s"),
        ({"start_delay_epochs": 1}, "start_delay_epochs needs epoch_s"),
        ({"initial_count": 0}, "initial_count needs epoch_s"),
        ({"epoch_s": 0.0}, "epoch_s must be a positive number of seconds"),
        ({"epoch_s": float("nan")}, "epoch_s must be a positive number of seconds"),
        ({"epoch_s": 60, "start_cost_usd": -1.0}, r"start_cost_usd must be a number of USD from 0 to 1e\+50, got -1.0"),
        ({"epoch_s": 60, "start_cost_usd": float("nan")}, "start_cost_usd must be a number of USD"),
        ({"epoch_s": 60, "start_cost_usd": {"toy-gpu": -1.0}}, "start_cost_usd of toy-gpu must be a number of USD"),
        ({"epoch_s": 60, "start_cost_usd": {"h100": 1.0}}, r"start_cost_usd must name replica types \(Toy-GPU-TP1\) or their GPUs, got 'h100'"),
        ({"epoch_s": 60, "start_cost_usd": {}}, "start_cost_usd must name every replica type or its GPU, Toy-GPU-TP1 is missing"),
        ({"epoch_s": 60, "start_delay_epochs": -1}, "start_delay_epochs must be a whole number of epochs"),
        ({"epoch_s": 60, "start_delay_epochs": 1.5}, "start_delay_epochs must be a whole number of epochs"),
        ({"epoch_s": 60, "initial_count": 1.5}, "initial_count must be a whole number of replicas"),
        ({"epoch_s": 60, "initial_count": {"toy-gpu": 1}}, r"initial_count must name replica types \(Toy-GPU-TP1\), got 'toy-gpu'"),
        ({"epoch_s": 60, "duration_s": 100}, "duration_s must be at least the 170 s"),
        ({"epoch_s": 3600}, "epoch_s must be at most twice the 170 s that the trace lasts, got 3600"),
        ({"epoch_s": 1e-6}, "epoch_s must be at least"),
    ],
)
def test_bad_options(toy: dict[str, Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        import_splitwise_perf(**(toy | options))


def test_a_workload_document_has_no_times(toy: dict[str, Path], tmp_path: Path) -> None:
    read_trace_and_span(toy["trace"])[0].save(tmp_path / "w.json")
    with pytest.raises(InputError, match=r"w\.json: a workload document does not say when its requests arrived; expected the trace itself"):
        import_splitwise_perf(toy["table"], tmp_path / "w.json", catalogue=toy["catalogue"], epoch_s=60)


# ---- Command line -------------------------------------------------------------------------------------------------------------------


def test_the_command_makes_a_file_that_is_read_back(toy: dict[str, Path], tmp_path: Path) -> None:
    common = ["azure-llm", toy["trace"], "--performance", toy["table"], "--catalogue", toy["catalogue"], "--epoch-s", "60"]
    starts = ["--start-cost-usd", "toy-gpu=0.5", "--start-delay-epochs", "2", "--initial-count", "1", "--total-rate-per-s", "3"]
    found = []
    for name in ("x.json", "x.npz"):
        done = headroom("import", *common, *starts, "-o", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{name}: gpu_selection instance, 2 work items, 2.")
        assert "requests/s on average over 3 epochs of 60 s, 1 replica types (Toy-GPU-TP1)" in done.stdout
        assert "note: 3 epochs of 60 s; the last is covered for 50 s" in done.stderr
        found.append(GpuSelection.from_document(load_document(tmp_path / name)))
    assert found[0].digest() == found[1].digest()
    epochs = epochs_of(found[0])
    assert (epochs.start_cost_usd, epochs.start_delay_epochs, epochs.initial_count) == ((0.5,), 2, (1,))
    summary = json.loads(headroom("import", *common, "-o", "y.json", "--json", cwd=tmp_path).stdout)
    assert (summary["epochs"], summary["epoch_s"]) == (3, 60.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch-s", "60", "--start-cost-usd", "much"], "--start-cost-usd: must be a number, or NAME=a number for each name, got 'much'"),
        (["--epoch-s", "60", "--start-cost-usd", "1", "--start-cost-usd", "a=1"], "--start-cost-usd: must be NAME=a number, each name once, got '1'"),
        (["--epoch-s", "60", "--initial-count", "2.5"], "--initial-count: must be a whole number, or NAME=a whole number for each name, got '2.5'"),
        (["--epoch-s", "60", "--initial-count", "a=2.5"], "--initial-count: must be NAME=a whole number, each name once, got 'a=2.5'"),
        (["--epoch-s", "60", "--start-cost-usd", "nan"], "start_cost_usd must be a number of USD from 0 to 1e+50, got nan"),
        (["--epoch-s", "0"], "epoch_s must be a positive number of seconds of at most 1e9, got 0"),
        (["--start-delay-epochs", "2"], "start_delay_epochs needs epoch_s, the length of an epoch in s"),
    ],
)
def test_the_command_refuses_in_one_line(toy: dict[str, Path], tmp_path: Path, arguments: list[str], message: str) -> None:
    common = ["azure-llm", toy["trace"], "--performance", toy["table"], "--catalogue", toy["catalogue"], "-o", "x.json"]
    assert only_error(headroom("import", *common, *arguments, cwd=tmp_path)) == message
    assert not (tmp_path / "x.json").exists()


def test_epochs_need_a_performance_table(toy: dict[str, Path], tmp_path: Path) -> None:
    error = only_error(headroom("import", "azure-llm", toy["trace"], "--epoch-s", "60", "-o", "x.json", cwd=tmp_path))
    assert error.startswith("--epoch-s: is not an option of azure-llm without --performance; expected --prompt-edges,")


# ---- Real files ---------------------------------------------------------------------------------------------------------------------


def test_the_azure_trace_by_the_minute() -> None:
    path = real_file(AZURE_CHAT)
    counts = counted(path, 60)
    # 3,501.72 s: 58 whole minutes; the 21.72 s after them are less than half of one.
    assert len(counts.requests) == 58
    assert counts.left_out_s == pytest.approx(21.721937)
    assert counts.requests.sum() + counts.left_out_requests.sum() == 19_366
    # The same minutes counted from the text of the file.
    stamps = [line.split(",")[0] for line in path.read_text().splitlines()[1:]]
    seconds = np.array([np.datetime64(stamp, "ns") for stamp in stamps]).astype(np.int64)
    minutes = np.bincount((seconds - seconds.min()) // (60 * 10**9))
    assert counts.requests.sum(axis=1).tolist() == minutes[:58].tolist()
    assert counts.left_out_requests.sum() == minutes[58:].sum()
    instance, _ = import_splitwise_perf(real_file(SPLITWISE), path, epoch_s=60, start_cost_usd={"a100": 0.5, "h100": 1.0})
    epochs = epochs_of(instance)
    assert epochs.rate_per_s.shape == (58, 41)
    # One request of 14,050 prompt tokens is longer than measured, and lies in one of the minutes.
    assert 60 * epochs.rate_per_s.sum() == pytest.approx(counts.requests.sum() - 1)
    assert epochs.start_cost_usd == (0.5, 1.0, 0.5, 1.0, 0.5, 1.0)


def test_the_mooncake_trace() -> None:
    path = real_file(MOONCAKE)
    lines = [json.loads(line)["timestamp"] for line in path.read_text().splitlines()]
    counts = counted(path, 100)
    tens = Counter((stamp - min(lines)) // 100_000 for stamp in lines)
    assert counts.requests.sum(axis=1).tolist() == [tens[t] for t in range(len(counts.requests))]
    assert counts.requests.sum() + counts.left_out_requests.sum() == len(lines)
