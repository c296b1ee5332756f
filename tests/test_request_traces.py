"""Readers of request traces: counts and rates worked out by hand, real files, and files broken in every way we could think of."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headroom.instances.errors import InputError
from headroom.instances.request_traces import read_azure_llm, read_mooncake, read_trace, sniff_format
from headroom.instances.workload import Workload, bucket_edges
from tests.import_samples import AZURE_CHAT, MOONCAKE, real_file, write_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
GOOD = "2023-11-16 18:15:46.6805900,374,44"


def test_azure_by_hand(tmp_path: Path) -> None:
    # Rows need not be in order: first arrival 10:00:00, last 10:00:08, so 4 requests in 8 s.
    rows = [
        ("2023-11-16 10:00:08.0000000", 128, 32),
        ("2023-11-16 10:00:00.0000000", 129, 1),
        ("2023-11-16 10:00:04", 100, 20),
        ("2023-11-16 10:00:01.5", 300, 33),
    ]
    workload, notices = read_azure_llm(write_trace(tmp_path / "t.csv", rows))
    assert (workload.requests, workload.duration_s, workload.rate_per_s) == (4, 8.0, 0.5)
    assert notices == []
    buckets = {bucket.name: bucket for bucket in workload.buckets}
    assert list(buckets) == ["p1-128_o1-32", "p129-256_o1-32", "p257-512_o33-64"]  # edges belong to the bucket below: 128 and 32 to the first
    first = buckets["p1-128_o1-32"]
    assert (first.requests, first.rate_per_s) == (2, 0.25)
    assert (first.mean_prompt_tokens, first.mean_output_tokens) == (114.0, 26.0)
    assert (first.max_prompt_tokens, first.max_output_tokens) == (128, 32)


def test_zero_tokens_count_as_one_and_are_reported(tmp_path: Path) -> None:
    rows = [("2023-11-16 10:00:00", 0, 5), ("2023-11-16 10:00:01", 7, 0), ("2023-11-16 10:00:02", 7, 0)]
    workload, notices = read_azure_llm(write_trace(tmp_path / "t.csv", rows))
    assert (workload.zero_prompt_requests, workload.zero_output_requests) == (1, 2)
    assert workload.buckets[0].mean_output_tokens == pytest.approx((5 + 1 + 1) / 3)
    assert notices == [
        "t.csv: 1 of 3 requests have 0 prompt tokens (ContextTokens); counted as 1",
        "t.csv: 2 of 3 requests have 0 output tokens (GeneratedTokens); counted as 1",
    ]


@pytest.mark.parametrize(
    "times",
    [
        ("2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:02.009930+00:00"),  # as in the 2024 files
        ("2024-05-10 00:00:00+00:00", "2024-05-10 00:00:01.999999+00:00"),  # pandas writes no fraction where it is zero
        ("2024-05-10T00:00:00Z", "2024-05-10T00:00:02Z"),
        ("2024-05-10 00:00:00.1234567", "2024-05-10 00:00:02.1234567"),
    ],
)
def test_forms_of_time(tmp_path: Path, times: tuple[str, str]) -> None:
    workload, _ = read_azure_llm(write_trace(tmp_path / "t.csv", [(t, 1, 1) for t in times]))
    assert workload.duration_s == pytest.approx(2.0, abs=2e-6)


def test_columns_in_another_order_among_others_with_a_byte_order_mark_and_packed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    text = "\ufeffGeneratedTokens,user,TIMESTAMP,ContextTokens\n5,Zoë,2023-11-16 10:00:00,200\n\n6,b,2023-11-16 10:00:04,300\n"
    path.write_bytes(gzip.compress(text.encode()))
    workload, _ = read_azure_llm(path)
    assert (workload.requests, workload.duration_s) == (2, 4.0)
    assert [(b.max_prompt_tokens, b.max_output_tokens) for b in workload.buckets] == [(200, 5), (300, 6)]


def test_edges(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.csv", [("2023-11-16 10:00:00", 25, 25), ("2023-11-16 10:00:01", 40_000, 26)])
    workload, notices = read_azure_llm(path, prompt_edges="melange", output_edges="melange")
    assert [bucket.name for bucket in workload.buckets] == ["p1-25_o1-25", "p32001-40000_o26-100"]
    assert notices == ["t.csv: requests of up to 40000 prompt tokens lie above the last edge 32000; one more bucket holds them"]
    workload, _ = read_azure_llm(path, prompt_edges="30, 50000", output_edges=[100])
    assert [bucket.name for bucket in workload.buckets] == ["p1-30_o1-100", "p31-50000_o1-100"]
    assert bucket_edges(None, "prompt")[:3] == (128, 256, 512)
    assert bucket_edges(None, "output")[:2] == (32, 64)
    assert [len(bucket_edges("melange", kind)) for kind in ("prompt", "output")] == [10, 6]


@pytest.mark.parametrize("edges", ["", "1,two", "5,5", "5,4", "0,4", [1.5], [True], [], "10000000001"])
def test_bad_edges(tmp_path: Path, edges: str | list[int]) -> None:
    path = write_trace(tmp_path / "t.csv", [("2023-11-16 10:00:00", 1, 1)])
    with pytest.raises(InputError, match="prompt_edges must be"):
        read_azure_llm(path, prompt_edges=edges, duration_s=1)


def test_a_trace_without_duration_needs_a_rate(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.csv", [("2023-11-16 10:00:00", 1, 1)])
    with pytest.raises(InputError, match="TIMESTAMP: one request has no duration, so no rate; expected --total-rate-per-s or --duration-s"):
        read_azure_llm(path)
    assert read_azure_llm(path, total_rate_per_s=3)[0].rate_per_s == 3
    assert read_azure_llm(path, duration_s=4)[0].rate_per_s == 0.25
    with pytest.raises(InputError, match="cannot both be given"):
        read_azure_llm(path, duration_s=4, total_rate_per_s=3)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="duration_s must be positive"):
            read_azure_llm(path, duration_s=bad)
    path = write_trace(path, [("2023-11-16 10:00:00", 1, 1)] * 2)
    with pytest.raises(InputError, match="2 requests at one moment have no duration"):
        read_azure_llm(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a header with the columns TIMESTAMP,ContextTokens,GeneratedTokens"),
        (f"{HEADER}\r\n", "line 2: the file ends after the header"),
        (f"TIMESTAMP,Context,Generated\n{GOOD}", f"line 1: columns must be {HEADER}, found 'TIMESTAMP,Context,Generated'"),
        (GOOD, "line 1: columns must be .*, found '2023-11-16 18:15:46.6805900,374,44'"),
        (f"{HEADER},TIMESTAMP\n{GOOD},1", "line 1: columns must be"),
        (f"{HEADER}\n{GOOD}\n2023-11-16 18:15:46,many,44\n", "line 3: ContextTokens must be a whole number from 0 to 1000000000, got 'many'"),
        (f"{HEADER}\n\n{GOOD}\n2023-11-16 18:15:46,374,4.5\n", "line 4: GeneratedTokens must be a whole number from 0 to 1000000000, got '4.5'"),
        (f"{HEADER}\n{GOOD}\n2023-11-16 18:15:46,-374,44\n", "line 3: ContextTokens must be a whole number from 0 to 1000000000, got '-374'"),
        (f"{HEADER}\n2023-11-16 18:15:46,374,2000000000\n", "line 2: GeneratedTokens must be .*, got '2000000000'"),
        (f"{HEADER}\n2023-11-16 18:15:46,374,99999999999999999999\n", "line 2: GeneratedTokens must be .*, got '99999999999999999999'"),
        (f"{HEADER}\n{GOOD}\n2023-11-16 18:15:46,,44\n", "line 3: ContextTokens must be .*, got ''"),
        (f"{HEADER}\n{GOOD}\nyesterday,374,44\n", "line 3: TIMESTAMP must be a time like 2023-11-16 18:15:46.6805900, got 'yesterday'"),
        (f"{HEADER}\n2023-13-16 18:15:46,374,44\n", "line 2: TIMESTAMP must be a time"),
        (f"{HEADER}\n{GOOD}\n2023-11-16 18:15:46+00:00,374,44\n", "line 3: TIMESTAMP must have a time zone in every row or in none"),
        (f"{HEADER}\n{GOOD}\n2023-11-16 18:1", r"line 3 has 1 fields, expected 3 .*: '2023-11-16 18:1' \(is the file cut off\?\)"),
        (f"{HEADER}\n{GOOD}\n2023-11-16 18:15:46,374,", "line 3: GeneratedTokens must be .*, got ''"),
        (f"{HEADER}\n{GOOD}\n{GOOD},9\n{GOOD}\n", "line 3 has 4 fields, expected 3"),
        (b"\x00\x01\x02\xff" * 500, "line 1 is not text"),
        (HEADER.encode() + b"\n\xff\xfe\x00\x80,\xff\n", "line 2 is not text"),
    ],
)  # fmt: skip
def test_broken_azure_files(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        read_azure_llm(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_bad_row_far_into_the_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + "\n" + (GOOD + "\n") * 600_000 + "2023-11-16 18:15:47,1,-1\n")  # several blocks of 8 MiB
    with pytest.raises(InputError, match="line 600002: GeneratedTokens"):
        read_azure_llm(path)


def test_mooncake_lines_with_nested_fields_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 1, "output_length": 1, "user": {"id": "{"}}\n' + mooncake_line(1000.5))
    assert read_mooncake(path)[0].duration_s == pytest.approx(1.0005)


def test_unreadable_paths(tmp_path: Path) -> None:
    for read in (read_azure_llm, read_mooncake, read_trace):
        with pytest.raises(InputError, match="cannot be read: No such file"):
            read(tmp_path / "none.csv")
        with pytest.raises(InputError, match="cannot be read: Is a directory"):
            read(tmp_path)
    packed = tmp_path / "t.csv.gz"
    packed.write_bytes(gzip.compress((HEADER + "\n" + (GOOD + "\n") * 1000).encode())[:-20])
    with pytest.raises(InputError, match="not a readable gzip file"):
        read_azure_llm(packed)
    packed.write_text(HEADER)
    with pytest.raises(InputError, match="not a readable gzip file"):
        read_azure_llm(packed)


def mooncake_line(timestamp: object = 0, prompt: object = 10, output: object = 5) -> str:
    return json.dumps({"timestamp": timestamp, "input_length": prompt, "output_length": output, "hash_ids": [1, 2]})


def test_mooncake_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join([mooncake_line(500, 200, 40), "", mooncake_line(2500, 200, 60), mooncake_line(0, 10, 0)]))
    workload, notices = read_mooncake(path)
    assert (workload.requests, workload.duration_s) == (3, 2.5)  # milliseconds
    assert [(b.name, b.requests) for b in workload.buckets] == [("p1-128_o1-32", 1), ("p129-256_o33-64", 2)]
    assert notices == ["t.jsonl: 1 of 3 requests have 0 output tokens (output_length); counted as 1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; expected one JSON object a line with timestamp, input_length, output_length"),
        ("\n\n", "is empty"),
        (mooncake_line() + '\n{"timestamp": 5, "inp', r"line 2 is not a JSON object \(is the file cut off\?\): "),
        (mooncake_line() + "\n[1, 2]\n", r"line 2 must be a JSON object with timestamp, input_length, output_length, got \[1, 2\]"),
        ('{"timestamp": 0, "input": 5, "output_length": 3}', "line 1: input_length is missing; found 'timestamp, input, output_length'"),
        (mooncake_line(prompt="12"), "line 1: input_length must be a whole number from 0 to 1000000000, got '12'"),
        (mooncake_line(prompt=True), "line 1: input_length must be a whole number"),
        (mooncake_line() + "\n" + mooncake_line(output=-1), "line 2: output_length must be a whole number from 0 to 1000000000, got -1"),
        (mooncake_line(prompt=1.5), "line 1: input_length must be a whole number from 0 to 1000000000, got 1.5"),
        (mooncake_line(prompt=None), "line 1: input_length must be a whole number from 0 to 1000000000, got None"),
        (mooncake_line(timestamp="noon"), "line 1: timestamp must be a time in ms, got 'noon'"),
        (mooncake_line(timestamp=float("nan")), "line 1: timestamp must be a time in ms, got nan"),
        ("\x00\x01\x02", "line 1 is not a JSON object"),
        ("null\n", "line 1 must be a JSON object .*, got None"),  # on which pyarrow's own reader crashes the process
        (mooncake_line() + "null\n", "line 1 is not a JSON object"),
        ("timestamp,input_length\n1,2\n", "line 1 is not a JSON object"),
    ],
)
def test_broken_mooncake_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_mooncake(path)
    assert str(caught.value).startswith(f"{path}: ")


SIZE = st.integers(0, 5_000)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 86_399), SIZE, SIZE), min_size=1, max_size=40), st.sampled_from([None, "melange", "7,100,3000"]))
def test_counts_agree_with_counting_one_by_one(tmp_path: Path, rows: list[tuple[int, int, int]], edges: str | None) -> None:
    clock = [f"2023-11-16 {second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}" for second, _, _ in rows]
    path = write_trace(tmp_path / "t.csv", [(time, p, o) for time, (_, p, o) in zip(clock, rows, strict=True)])
    workload, _ = read_trace(path, prompt_edges=edges, output_edges=edges, duration_s=10)
    sizes = [(max(p, 1), max(o, 1)) for _, p, o in rows]
    seen: Counter[str] = Counter()
    for bucket in workload.buckets:
        inside = [
            (p, o) for p, o in sizes
            if bucket.prompt_tokens[0] <= p <= bucket.prompt_tokens[1] and bucket.output_tokens[0] <= o <= bucket.output_tokens[1]
        ]  # fmt: skip
        assert bucket.requests == len(inside)
        assert bucket.rate_per_s == pytest.approx(len(inside) / 10)
        assert bucket.mean_prompt_tokens == pytest.approx(sum(p for p, _ in inside) / len(inside))
        assert (bucket.max_prompt_tokens, bucket.max_output_tokens) == (max(p for p, _ in inside), max(o for _, o in inside))
        seen[bucket.name] += len(inside)
    assert seen.total() == len(rows)
    # The document says the same when it is read again, also as a trace.
    document = tmp_path / "w.json"
    workload.save(document)
    assert Workload.load(document) == workload
    assert read_trace(document)[0] == workload
    assert read_trace(document, total_rate_per_s=7)[0].rate_per_s == 7


def test_formats_are_told_apart(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t", [("2023-11-16 10:00:00", 1, 1), ("2023-11-16 10:00:01", 1, 1)])
    assert sniff_format(path) == "azure-llm"
    workload, _ = read_trace(path)
    workload.save(path)
    assert sniff_format(path) == "workload"
    path.write_text(json.dumps(workload.document()))  # on one line
    assert sniff_format(path) == "workload"
    path.write_text(mooncake_line() + "\n")
    assert sniff_format(path) == "mooncake"
    with pytest.raises(InputError, match="trace_format must be one of azure-llm, mooncake, workload, got 'csv'"):
        read_trace(path, "csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "headroom/instance/1"}, "schema must be 'headroom/workload/1', got 'headroom/instance/1'"),
        ({"requests": 5}, "requests must be the sum over the buckets, 2, got 5"),
        ({"rate_per_s": 5.0}, "rate_per_s must be the sum over the buckets, 2, got 5"),
        ({"duration_s": -1.0}, "duration_s must be greater than 0, got -1.0"),
        ({"buckets": []}, "buckets must"),
        ({"colour": "red"}, "colour is an unknown field"),
    ],
)
def test_broken_workload_documents(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write_trace(tmp_path / "t", [("2023-11-16 10:00:00", 1, 1), ("2023-11-16 10:00:01", 1, 1)])
    document = read_trace(path)[0].document()
    path.write_text(json.dumps(document | change))
    with pytest.raises(InputError, match=message):
        read_trace(path, "workload")


def test_broken_workload_buckets(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t", [("2023-11-16 10:00:00", 10, 10), ("2023-11-16 10:00:01", 200, 10)])
    document = read_trace(path)[0].document()
    for change, message in (
        ({"max_prompt_tokens": 129}, r"prompt_tokens must have least ≤ mean ≤ maximum ≤ most, got range \[1, 128\], mean 10, maximum 129"),
        ({"mean_output_tokens": 40.0}, "output_tokens must have least ≤ mean"),
        ({"prompt_tokens": [1, 200]}, "buckets.1. p129-256_o1-32 must not overlap buckets.0. p1-200_o1-32"),
        ({"requests": 1.5}, r"buckets\[0\].requests must be"),
    ):
        broken = json.loads(json.dumps(document))
        broken["buckets"][0] |= change
        path.write_text(json.dumps(broken))
        with pytest.raises(InputError, match=message):
            read_trace(path, "workload")
    path.write_text(json.dumps(document)[:-30])
    with pytest.raises(InputError, match="truncated"):
        read_trace(path, "workload")
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="cannot be applied to a workload document"):
        read_trace(path, prompt_edges="melange")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.sampled_from(["azure", "mooncake", "workload"]), st.integers(0, 400), st.binary(max_size=12), st.integers(0, 12))
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path: Path, kind: str, position: int, inserted: bytes, removed: int) -> None:
    path = write_trace(tmp_path / "t", [("2023-11-16 10:00:00", 10, 10), ("2023-11-16 10:00:01", 200, 10), ("2023-11-16 10:00:02", 3, 4)])
    content = path.read_bytes()
    if kind == "workload":
        content = json.dumps(read_trace(path)[0].document()).encode()
    if kind == "mooncake":
        content = "\n".join(mooncake_line(t, 10 * t, 5) for t in range(3)).encode()
    path.write_bytes(content[:position] + inserted + content[position + removed :])
    message, rate_per_s = "", 1.0
    try:
        rate_per_s = read_trace(path)[0].rate_per_s
    except InputError as error:  # and nothing else
        message = str(error)
    assert rate_per_s > 0
    assert "\n" not in message


def test_azure_chat_2023() -> None:
    # The published figures of the file: 19,366 requests in 3,502 s, 5.53 requests/s.
    workload, notices = read_trace(real_file(AZURE_CHAT))
    assert (workload.requests, notices) == (19_366, [])
    assert workload.duration_s == pytest.approx(3501.721937)
    assert workload.rate_per_s == pytest.approx(5.53042, abs=1e-5)
    assert len(workload.buckets) == 42
    assert max(bucket.max_prompt_tokens for bucket in workload.buckets) == 14_050


def test_mooncake_synthetic() -> None:
    workload, notices = read_trace(real_file(MOONCAKE))
    assert (workload.requests, notices) == (3_993, [])
    assert workload.duration_s == pytest.approx(1022.025)
