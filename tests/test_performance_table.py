"""The performance model against values worked out by hand, the real table, and broken tables."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headroom.instances.errors import InputError
from headroom.instances.performance_table import (
    Limits,
    OperatingPoint,
    Replica,
    RequestSizes,
    Series,
    kv_capacity_tokens,
    model_with_most_measurements,
    operating_point,
    read_performance_table,
)
from tests.import_samples import HEADER, SPLITWISE, TOY_TIMES_MS, real_file, table_text, write_table

SIZES = RequestSizes(mean_prompt=150, mean_output=30, max_prompt=200, max_output=40)


@pytest.fixture
def toy(tmp_path: Path) -> Replica:
    (replica,) = read_performance_table(write_table(tmp_path / "table.csv"))
    return replica


def test_times_are_medians_and_separable(toy: Replica) -> None:
    assert toy.base == (100, 1, 10)
    assert toy.configurations == 8
    assert toy.batches == (1, 2, 4, 8)
    assert (toy.max_prompt_tokens, toy.max_output_tokens) == (200, 40)
    # P(150) lies halfway between 100 and 220 ms: 160; two prompts take 180/100 as long: 288 ms.
    assert toy.prompt_time_s(150, 2) == pytest.approx(0.288)
    # D(3) = 28 ms, halfway between batch 2 and 4; a prompt of 150 takes 21/20 of the base, 30 outputs (21 + 25)/2/20 = 23/20.
    assert toy.token_time_s(150, 3, 30) == pytest.approx(0.028 * 1.05 * 1.15)
    # Below what was measured: the time at the smallest measured size, which is not optimistic.
    assert toy.prompt_time_s(2, 1) == pytest.approx(0.060)
    # Above it: nothing.
    with pytest.raises(ValueError, match="largest measured size 200"):
        toy.prompt_time_s(201, 1)


def test_operating_point_by_hand(toy: Replica) -> None:
    # Limits are checked at (200, 40): token times 27.5, 33, 44 … ms for batch 1, 2, 4: 40 ms allows 2, and 1000 // 240 = 4 fit the KV cache.
    # Prompts of 200: 220, 396, 748 ms for batch 1, 2, 4: 500 ms allows 2, which at the mean takes 288/2 = 144 ms a request, less than 160.
    # Decode at the mean: 29 tokens after the first, 24 · 1.05 · 1.15 = 28.98 ms a step of 2 requests: 420.21 ms.
    point = operating_point(toy, 1000, SIZES, Limits(ttft_s=0.5, tpot_s=0.04))
    assert (point.prefill_batch, point.decode_batch) == (2, 2)
    assert point.prefill_s == pytest.approx(0.144)
    assert point.decode_s == pytest.approx(0.42021)
    assert point.throughput_per_s == pytest.approx(1 / (0.144 + 0.42021))


def test_kv_cache_cuts_the_decode_batch_to_any_whole_number(toy: Replica) -> None:
    # 60 ms would allow batch 8 (55 ms), but 800 // 240 = 3 requests fit: a step of batch 3 takes 28 · 1.05 · 1.15 ms.
    point = operating_point(toy, 800, SIZES, Limits(ttft_s=0.5, tpot_s=0.06))
    assert point.decode_batch == 3
    assert point.decode_s == pytest.approx(29 * 0.028 * 1.05 * 1.15 / 3)
    # 239 tokens hold a prompt of 200 (prefill, batch 1) but not 200 + 40.
    assert operating_point(toy, 239, SIZES, Limits(0.5, 0.06)) == OperatingPoint(1, pytest.approx(0.16), None, None)


@pytest.mark.parametrize(
    ("limits", "sizes", "what"),
    [
        (Limits(ttft_s=0.219, tpot_s=1), SIZES, "prefill"),  # one prompt of 200 takes 220 ms
        (Limits(ttft_s=1, tpot_s=0.0274), SIZES, "decode"),  # a step of one request takes 27.5 ms at the largest sizes
        (Limits(ttft_s=9, tpot_s=9), RequestSizes(150, 30, 201, 40), "both"),  # longer than measured
        (Limits(ttft_s=9, tpot_s=9), RequestSizes(150, 30, 200, 41), "both"),
    ],
)
def test_what_cannot_be_served_is_none(toy: Replica, limits: Limits, sizes: RequestSizes, what: str) -> None:
    point = operating_point(toy, 10**6, sizes, limits)
    assert point.throughput_per_s is None
    assert (point.prefill_s is None) == (what in ("prefill", "both"))
    assert (point.decode_s is None) == (what in ("decode", "both"))


def test_a_request_of_one_token_is_all_prefill(toy: Replica) -> None:
    point = operating_point(toy, 1000, RequestSizes(100, 1, 100, 1), Limits(0.5, 0.04))
    assert point.decode_s == 0
    assert point.throughput_per_s == pytest.approx(1 / 0.085)  # batch 4: 340 ms/4


@pytest.mark.parametrize(
    ("changed", "batches", "reason"),
    [
        ({(100, 4, 10): (176.0, 32.0)}, (1, 2), "batch_size 4 has prompt_time 176 ms, below 180 ms at batch_size 2"),  # 2.2 % less than 180
        ({(100, 4, 10): (340.0, 23.5)}, (1, 2), "batch_size 4 has token_time 23.5 ms, below 24 ms at batch_size 2"),  # 2.1 % less than 24
        ({(100, 8, 10): (150.0, 40.0)}, (1, 2, 4), "batch_size 8 has prompt_time 150 ms, below 340 ms at batch_size 4"),
        ({(100, 4, 10): (177.0, 24.0)}, (1, 2, 4, 8), None),  # 1.7 % less: noise, raised to 180
    ],
)
def test_a_batch_faster_than_a_smaller_one_is_not_trusted(
    tmp_path: Path, changed: dict[tuple[int, int, int], tuple[float, float]], batches: tuple[int, ...], reason: str | None
) -> None:
    (replica,) = read_performance_table(write_table(tmp_path / "table.csv", table_text(TOY_TIMES_MS | changed)))
    assert replica.batches == batches
    if reason is None:
        assert replica.distrusted == ()
        assert replica.prompt_time_s(100, 4) == pytest.approx(0.180)
        assert replica.dips == 1
        assert replica.largest_dip is not None
        assert replica.largest_dip[0] == pytest.approx(3 / 180)
    else:
        assert replica.distrusted[0] == reason
        assert len(replica.distrusted) == 4 - len(batches)  # all larger batches go too


def test_kv_capacity() -> None:
    # Llama2-70B on two A100-80GB: 0.9 · 2 · 80e9 − 140e9 = 4e9 bytes, 327,680 bytes a token: 12,207.03 tokens.
    assert kv_capacity_tokens(80e9, 2, 140e9, 327_680, 0.9) == 12_207
    assert kv_capacity_tokens(80e9, 1, 140e9, 327_680, 0.9) < 1
    # Exact in decimals: 0.7 · 1e9 − 0.5e9 = 0.2e9 = 500 tokens of 400,000 bytes; in binary 0.7e9 may fall short.
    assert kv_capacity_tokens(1e9, 1, 0.5e9, 400_000, 0.7) == 500


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(1e-3, 1e3)), min_size=1, max_size=12, unique_by=lambda pair: pair[0]), st.data())
def test_a_series_is_monotone_between_its_points(points: list[tuple[int, float]], data: st.DataObject) -> None:
    sizes = tuple(sorted(size for size, _ in points))
    series = Series(sizes, tuple(sorted(time for _, time in points)))
    a, b = sorted((data.draw(st.floats(1, sizes[-1])), data.draw(st.floats(1, sizes[-1]))))
    assert series.at(a) <= series.at(b) * (1 + 1e-12)


def test_model_choice(tmp_path: Path) -> None:
    small = {point: times for point, times in TOY_TIMES_MS.items() if point[2] == 10}
    replicas = read_performance_table(write_table(tmp_path / "t.csv", table_text(small, "a"), table_text(TOY_TIMES_MS, "b")))
    assert model_with_most_measurements(replicas) == "b"
    tie = read_performance_table(write_table(tmp_path / "t.csv", table_text(small, "b"), table_text(small, "a")))
    with pytest.raises(InputError, match="a, b, equally many"):
        model_with_most_measurements(tie)


ROW = "toy-model,toy-gpu,100,1,10,1,0.5,100,20,1000,1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a header with the columns model,hardware"),
        (b"\n  \n", "is empty"),
        (HEADER.encode(), "line 2: the file ends after the header"),
        (HEADER.replace("prompt_time", "prompt").encode(), "line 1: columns must include .*prompt_time is not there once, found 'model,hardware"),
        (f"{HEADER}\n{ROW}\ntoy-model,toy-gpu,100".encode(), "line 3 has 3 fields, expected 11"),
        (f"{HEADER}\n{ROW.replace(',100,20,', ',fast,20,')}".encode(), "line 2: prompt_time must be a positive number of milliseconds, got 'fast'"),
        (f"{HEADER}\n{ROW.replace(',100,20,', ',nan,20,')}".encode(), "line 2: prompt_time must be a positive number of milliseconds, got 'nan'"),
        (f"{HEADER}\n{ROW.replace(',100,20,', ',100,-20,')}".encode(), "line 2: token_time must be a positive number of milliseconds, got '-20'"),
        (f"{HEADER}\n{ROW.replace(',1,10,', ',0,10,')}".encode(), "line 2: batch_size must be a whole number of at least 1, got '0'"),
        (f"{HEADER}\n{ROW.replace('gpu,100', 'gpu,100.5')}".encode(), "line 2: prompt_size must be a whole number of at least 1, got '100.5'"),
        (f"{HEADER}\n{ROW.replace('toy-gpu', '')}".encode(), "line 2: hardware must be a name, got ''"),
        (b"\xff\xfe\x00\x01" * 40, "byte 0 is not UTF-8"),
    ],
)
def test_broken_tables(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_performance_table(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_performance_table(tmp_path / "none.csv")


def test_splitwise_table() -> None:
    path = real_file(SPLITWISE)
    replicas = {(r.model, r.hardware, r.tensor_parallel): r for r in read_performance_table(path)}
    assert len(replicas) == 12
    assert model_with_most_measurements(list(replicas.values())) == "llama2-70b"
    # 64 requests of 512 prompt tokens took an eighth of the time of 32: they were preempted, on every kind of GPU at TP 2 and nowhere else.
    distrusted = {key for key, replica in replicas.items() if replica.distrusted}
    assert distrusted == {("llama2-70b", hardware, 2) for hardware in ("a100-80gb", "h100-80gb", "h100-80gb-pcap")}
    for key, replica in replicas.items():
        assert replica.base == (512, 1, 128)
        assert replica.batches[-1] == (32 if key in distrusted else 64)


def test_the_model_is_never_below_what_was_measured() -> None:
    import pandas as pd

    path = real_file(SPLITWISE)
    frame = pd.read_csv(path)
    replicas = {(r.model, r.hardware, r.tensor_parallel): r for r in read_performance_table(path)}
    checked = 0
    for key, rows in frame.groupby(["model", "hardware", "tensor_parallel", "prompt_size", "batch_size", "token_size"]):
        model, hardware, tp, prompt, batch, output = key
        replica = replicas[(model, hardware, tp)]
        if batch in replica.batches:
            assert replica.token_time_s(prompt, batch, output) * 1e3 >= median(rows.token_time) * (1 - 1e-12)
            if output == 128:  # the prompt time over output sizes is repeats of one number
                assert replica.prompt_time_s(prompt, batch) * 1e3 >= median(rows.prompt_time) * (1 - 1e-12)
            checked += 1
    assert checked == 225  # 12 replicas of 19 points, less three that are not trusted
