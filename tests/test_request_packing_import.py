"""Readers of request_packing: Azure and Mooncake backlogs by hand, broken in many ways, and real files; the command line of all its readers."""

from __future__ import annotations

import gzip
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
from headroom.instances.errors import InputError
from headroom.instances.importers import IMPORTERS
from headroom.instances.request_packing import RequestPacking
from headroom.instances.request_packing_import import import_azure_llm_requests, import_mooncake_requests
from headroom.instances.request_traces import read_trace
from tests.import_samples import AZURE_CHAT, MOONCAKE, real_file, write_trace

ROWS = [
    ("2023-11-16 10:00:08", 128, 32),
    ("2023-11-16 10:00:00", 129, 1),
    ("2023-11-16 10:00:04", 0, 20),
    ("2023-11-16 10:00:01.5", 300, 0),
]
# Blocks of 512: three prompts begin with blocks 1, 2; the fourth shares nothing, the fifth says nothing of its blocks.
LINES: list[dict[str, Any]] = [
    {"timestamp": 0, "input_length": 1100, "output_length": 10, "hash_ids": [1, 2, 3]},
    {"timestamp": 1000, "input_length": 1500, "output_length": 20, "hash_ids": [1, 2, 4]},
    {"timestamp": 2000, "input_length": 1024, "output_length": 30, "hash_ids": [1, 2]},
    {"timestamp": 3000, "input_length": 600, "output_length": 40, "hash_ids": [8, 2]},
    {"timestamp": 4000, "input_length": 700, "output_length": 50},
]


def text_file(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def jsonl(path: Path, lines: list[dict[str, Any]]) -> Path:
    return text_file(path, "".join(json.dumps(line) + "\n" for line in lines))


def refused(read: Any, path: Path, **options: Any) -> str:
    """The one line that is said, without the file's name (which must come first unless an option is at fault)."""
    with pytest.raises(InputError) as caught:
        read(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


# ---- Azure ----------------------------------------------------------------------------------------------------------------------------


def test_azure_bins_by_hand(tmp_path: Path) -> None:
    instance, notices = import_azure_llm_requests(write_trace(tmp_path / "t.csv", ROWS), capacity_tokens=300, padding_multiple=8)
    # In the file's order, 0 counted as 1 as in `read_trace`; 300 + 1 pad to 304 and fit no bin.
    assert instance.requests.prompt_tokens.tolist() == [128, 129, 1, 300]
    assert instance.requests.output_tokens.tolist() == [32, 1, 20, 1]
    assert (instance.objective, instance.capacity_tokens, instance.padding_multiple, instance.requests.group) == ("bins", 300, 8, None)
    assert notices == [
        "t.csv: 1 of 4 requests have 0 prompt tokens (ContextTokens); counted as 1",
        "t.csv: 1 of 4 requests have 0 output tokens (GeneratedTokens); counted as 1",
        "t.csv: 1 of 4 requests are larger than a bin of 300 tokens, the largest has 304: no plan packs them (--too-large drop leaves them out)",
    ]
    assert notices[:2] == read_trace(tmp_path / "t.csv")[1]
    assert instance.provenance["options"] == {"capacity_tokens": 300, "padding_multiple": 8}
    assert instance.provenance["importer"] == "azure-llm-requests"
    dropped, notices = import_azure_llm_requests(tmp_path / "t.csv", capacity_tokens=300, padding_multiple=8, too_large="drop")
    assert dropped.size.tolist() == [160, 130, 21]
    assert notices[-1] == "LEFT OUT: 1 of 4 requests are larger than a bin of 300 tokens, the largest has 304"
    assert "304; expected none" in refused(import_azure_llm_requests, tmp_path / "t.csv", capacity_tokens=300, padding_multiple=8, too_large="error")
    assert "expected some that fit" in refused(import_azure_llm_requests, tmp_path / "t.csv", capacity_tokens=20, too_large="drop")


def test_azure_makespan_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(write_trace(tmp_path / "t.csv", ROWS).read_bytes()))
    levels = ["128:0.5", "256:0.75"]
    instance, notices = import_azure_llm_requests(path, slots=3, decode_step_s=0.1, prefill_level=levels)
    assert (instance.objective, instance.slots, instance.decode_step_s, instance.capacity_tokens) == ("makespan", 3, 0.1, None)
    assert [(level.max_tokens, level.time_s) for level in instance.prefill_levels] == [(128, 0.5), (256, 0.75)]
    assert "1 of 4 requests are larger than the last prefill level of 256 tokens, the largest has 300" in notices[-1]
    assert instance.provenance["options"]["prefill_level"] == levels
    json.dumps(instance.document())
    _, notices = import_azure_llm_requests(path, slots=3, decode_step_s=0.1, prefill_level=["128:0.5", "-:0.75"])
    assert len(notices) == 2  # the last level takes any prompt


def test_a_window_of_time_and_the_first_requests(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "t.csv", ROWS)  # arrivals 8, 0, 4 and 1.5 s after the first

    def outputs(**options: Any) -> list[int]:
        found: list[int] = import_azure_llm_requests(path, capacity_tokens=10**6, **options)[0].requests.output_tokens.tolist()
        return found

    assert outputs() == [32, 1, 20, 1]
    assert outputs(first=2) == [32, 1]
    assert outputs(first=9) == [32, 1, 20, 1]
    assert outputs(until_s=8) == [1, 20, 1]
    assert outputs(from_s=1.5, until_s=8.001) == [32, 20, 1]
    assert outputs(from_s=1.5, first=2) == [32, 20]
    # Which rows of the file they are, the first 0; where all are taken their order says it.
    later = import_azure_llm_requests(path, capacity_tokens=10**6, from_s=1.5, until_s=8)[0]
    assert later.requests.record is not None
    assert later.requests.record.tolist() == [2, 3]
    assert import_azure_llm_requests(path, capacity_tokens=10**6)[0].requests.record is None
    message = refused(import_azure_llm_requests, path, capacity_tokens=9, from_s=8.5, until_s=9)
    assert message == "no request arrives from 8.5 s to before 9 s; the last one arrives at 8 s"
    message = refused(import_azure_llm_requests, path, capacity_tokens=9, from_s=8.5)
    assert message == "no request arrives from 8.5 s on; the last one arrives at 8 s"


def test_the_first_arrival_may_stand_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headroom.instances.request_traces.BLOCK_BYTES", 60)  # a row or two at a time
    path = write_trace(tmp_path / "t.csv", [("2023-11-16 10:00:08", 1, 8), *[("2023-11-16 10:00:05", 1, 5)] * 5, ("2023-11-16 10:00:00", 1, 9)])
    instance, _ = import_azure_llm_requests(path, capacity_tokens=100, until_s=5.5)
    assert instance.requests.output_tokens.tolist() == [5] * 5 + [9]
    groups, _ = import_mooncake_requests(jsonl(tmp_path / "m.jsonl", LINES), capacity_tokens=4096)
    assert groups.overhead[0] == 1024


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of --capacity-tokens (fewest bins) or --slots (least makespan) must be given"),
        ({"capacity_tokens": 9, "slots": 2}, "--capacity-tokens (fewest bins) or --slots (least makespan): expected one of them, got both"),
        ({"capacity_tokens": 0}, "--capacity-tokens must be a whole number from 1 to"),
        ({"capacity_tokens": 2**60}, "--capacity-tokens must be a whole number from 1 to"),
        ({"capacity_tokens": 9, "decode_step_s": 1.0}, "--decode-step-s: is for --slots, which is not given"),
        ({"capacity_tokens": 9, "prefill_level": ["1:1"]}, "--prefill-level: is for --slots, which is not given"),
        ({"slots": 2}, "--decode-step-s: is missing; expected the seconds of a decode step"),
        ({"slots": 2, "decode_step_s": float("nan")}, "--decode-step-s must be a number from"),
        ({"slots": 2, "decode_step_s": 1.0, "padding_multiple": 8}, "--padding-multiple: is for --capacity-tokens, which is not given"),
        ({"slots": 2, "decode_step_s": 1.0, "prefill_level": ["5"]}, "--prefill-level: must be TOKENS:SECONDS (TOKENS - for any number), got '5'"),
        ({"slots": 2, "decode_step_s": 1.0, "prefill_level": ["5:nan"]}, "--prefill-level: must be TOKENS:SECONDS"),
        ({"slots": 2, "decode_step_s": 1.0, "prefill_level": ["5:1", "4:2"]}, "prefill_levels[1].max_tokens must be above 5, the level before"),
        ({"capacity_tokens": 9, "first": 0}, "--first must be a whole number from 1 to"),
        ({"capacity_tokens": 9, "from_s": -1.0}, "--from-s: must be a number of seconds of at least 0, got -1.0"),
        ({"capacity_tokens": 9, "from_s": 5.0, "until_s": 5.0}, "--until-s: must be above --from-s 5, got 5.0"),
        ({"capacity_tokens": 9, "until_s": float("nan")}, "--until-s: must be above --from-s 0, got nan"),
        ({"capacity_tokens": 9, "too_large": "split"}, "--too-large: must be one of keep, drop, error, got 'split'"),
    ],
)
def test_bad_backlog_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    assert refused(import_azure_llm_requests, write_trace(tmp_path / "t.csv", ROWS), **options).startswith(message)


def test_broken_traces(tmp_path: Path) -> None:
    # The parsers are those of `read_trace`, whose own tests break files in every way.
    path = text_file(tmp_path / "t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 10:00:00,5,-1\n")
    wanted = "line 2: GeneratedTokens must be a whole number from 0 to 1000000000, got '-1'"
    for options in ({}, {"until_s": 5.0}):
        assert refused(import_azure_llm_requests, path, capacity_tokens=9, **options) == wanted
        assert refused(import_azure_llm_requests, text_file(tmp_path / "e.csv", ""), capacity_tokens=9, **options).startswith("is empty")
    assert refused(import_azure_llm_requests, tmp_path / "no.csv", capacity_tokens=9).startswith("cannot be read")
    assert refused(import_mooncake_requests, text_file(tmp_path / "e.jsonl", ""), capacity_tokens=9).startswith("is empty")


# ---- Mooncake -------------------------------------------------------------------------------------------------------------------------


def test_mooncake_groups_by_hand(tmp_path: Path) -> None:
    instance, notices = import_mooncake_requests(jsonl(tmp_path / "m.jsonl", LINES), capacity_tokens=4096)
    # Blocks 1 and 2 are one group of 1,024 tokens: three requests, so 2 · 1,024 tokens are saved, and the tree can do no better.
    assert instance.requests.group is not None
    assert instance.requests.group.tolist() == [0, 0, 0, -1, -1]
    assert instance.requests.prompt_tokens.tolist() == [76, 476, 0, 600, 700]
    assert instance.overhead[:1].tolist() == [1024]
    assert instance.padded.tolist() == [1110, 1520, 1054, 640, 750]  # alone each takes what it took before
    figures = {"block_tokens": 512, "blocks": 6, "groups": 1, "grouped_requests": 3, "prompt_tokens": 4924}
    assert instance.provenance["prefixes"] == figures | {"saved_tokens": 2048, "tree_saved_tokens": 2048}
    assert notices == [
        "m.jsonl: 1 of 5 requests have no hash_ids: their prompts share nothing",
        "m.jsonl: prefix tree of 6 blocks flattened to 1 groups of 3 requests, which save 2048 of 4924 prompt tokens where each group is in one bin; "
        "no sharing of prefixes saves more than 2048",
    ]
    plain, notices = import_mooncake_requests(tmp_path / "m.jsonl", capacity_tokens=4096, no_prefixes=True)
    assert plain.requests.group is None
    assert plain.size.tolist() == instance.padded.tolist()
    assert notices == ["m.jsonl: shared prefixes are not used, every prompt counts in full"]
    slots, notices = import_mooncake_requests(tmp_path / "m.jsonl", slots=2, decode_step_s=0.1)
    assert slots.requests.prompt_tokens.tolist() == [1100, 1500, 1024, 600, 700]
    assert notices == ["m.jsonl: shared prefixes are not used, every prompt counts in full"]


def test_mooncake_selections_choose_the_hashes_too(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "m.jsonl", LINES)
    later, _ = import_mooncake_requests(path, capacity_tokens=4096, from_s=1, until_s=4)
    assert later.requests.prompt_tokens.tolist() == [476, 0, 600]
    kept, notices = import_mooncake_requests(path, capacity_tokens=1200, too_large="drop", first=4)
    # The second request is left out before groups are made.
    assert notices[0] == "LEFT OUT: 1 of 4 requests are larger than a bin of 1200 tokens, the largest has 1520"
    assert kept.requests.prompt_tokens.tolist() == [76, 0, 600]
    assert kept.requests.record is not None
    assert kept.requests.record.tolist() == [0, 2, 3]
    alone, _ = import_mooncake_requests(path, capacity_tokens=4096, first=1)
    assert (alone.requests.group, alone.group_overhead_tokens) == (None, 0)
    # No prefix longer than a bin becomes a group's overhead.
    small, _ = import_mooncake_requests(path, capacity_tokens=1000)
    assert small.overhead[0] == 512


def test_mooncake_hashes_of_full_blocks_only_and_of_other_lengths(tmp_path: Path) -> None:
    lines = [{"timestamp": k, "input_length": 40, "output_length": 1, "hash_ids": [-5, 2**63]} for k in range(3)]
    path = jsonl(tmp_path / "m.jsonl", lines)
    assert refused(import_mooncake_requests, path, capacity_tokens=99).startswith(
        "line 1: hash_ids must have 0 or 1 blocks of 512 tokens (--block-tokens) for input_length 40, got 2"
    )
    instance, _ = import_mooncake_requests(path, capacity_tokens=99, block_tokens=16)  # 32 of 40 tokens are hashed
    assert (instance.requests.prompt_tokens.tolist(), instance.overhead.tolist()) == ([8] * 3, [32])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hash_ids": 3}, "line 2: hash_ids must be a list of whole numbers, got 3"),
        ({"hash_ids": None}, "line 2: hash_ids must be a list of whole numbers, got None"),
        ({"hash_ids": [1, 2.0, 3]}, "line 2: hash_ids[1] must be a whole number, got 2.0"),
        ({"hash_ids": [True, 2, 3]}, "line 2: hash_ids[0] must be a whole number, got True"),
        ({"hash_ids": ["a", 2, 3]}, "line 2: hash_ids[0] must be a whole number, got 'a'"),
        ({"hash_ids": [1]}, "line 2: hash_ids must have 2 or 3 blocks of 512 tokens (--block-tokens) for input_length 1500, got 1"),
        ({"hash_ids": [1, 2, 3, 4]}, "line 2: hash_ids must have 2 or 3 blocks"),
        ({"input_length": 1024}, "line 2: hash_ids must have 2 blocks of 512 tokens (--block-tokens) for input_length 1024, got 3"),
        ({"input_length": 0}, "line 2: hash_ids must have 0 blocks"),
        ({"input_length": -4}, "line 2: input_length must be a whole number from 0 to 1000000000, got -4"),
        ({"output_length": 1.5}, "line 2: output_length must be a whole number from 0 to 1000000000, got 1.5"),
    ],
)
def test_broken_hashes(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = jsonl(tmp_path / "m.jsonl", [LINES[0], LINES[1] | changes, LINES[2]])
    assert refused(import_mooncake_requests, path, capacity_tokens=4096).startswith(message)


def test_lines_that_are_not_objects(tmp_path: Path) -> None:
    good = json.dumps(LINES[0])
    for line in ("null", "[1]", good[:-5], "\x00", '{"timestamp": NaN}'):
        assert refused(import_mooncake_requests, text_file(tmp_path / "m.jsonl", f"{good}\n\n{line}\n"), capacity_tokens=9).startswith("line 3")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 1), max_size=3), st.integers(0, 7), st.integers(0, 9)), min_size=1, max_size=8), st.integers(1, 5))
def test_prefixes_and_rests_are_the_prompts(tmp_path: Path, requests: list[tuple[list[int], int, int]], multiple: int) -> None:
    lines = [
        {"timestamp": k, "input_length": max(8 * len(blocks) - (less if blocks else 0), 0), "output_length": output, "hash_ids": blocks}
        for k, (blocks, less, output) in enumerate(requests)
    ]
    instance, _ = import_mooncake_requests(jsonl(tmp_path / "h.jsonl", lines), capacity_tokens=30, block_tokens=8, padding_multiple=multiple)
    whole = np.array([max(line["input_length"], 1) + max(line["output_length"], 1) for line in lines])
    assert (instance.size + instance.overhead[instance.group_of]).tolist() == whole.tolist()
    # Whatever fits a bin without groups fits one with them, padded as it is.
    alone = -(-whole // multiple) * multiple
    assert (instance.padded[alone <= 30] <= 30).all()


# ---- Real files -----------------------------------------------------------------------------------------------------------------------


def test_real_azure_backlog() -> None:
    path = real_file(AZURE_CHAT)
    instance, _ = import_azure_llm_requests(path, capacity_tokens=16384)
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    assert instance.requests.prompt_tokens.tolist() == [max(int(row[1]), 1) for row in rows]
    assert instance.requests.output_tokens.tolist() == [max(int(row[2]), 1) for row in rows]
    assert instance.count == 19_366
    minute, _ = import_azure_llm_requests(path, slots=200, decode_step_s=0.075, until_s=60.0)
    assert 0 < minute.count < 1000
    assert minute.requests.output_tokens.tolist() == instance.requests.output_tokens[: minute.count].tolist()


def test_real_mooncake_groups() -> None:
    path = real_file(MOONCAKE)
    instance, notices = import_mooncake_requests(path, capacity_tokens=262_144)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    whole = [max(line["input_length"], 1) + max(line["output_length"], 1) for line in lines]
    assert instance.padded.tolist() == whole
    assert instance.requests.group is not None
    for g in range(instance.groups):  # the members' prompts do begin with as many equal blocks as the group's prefix has
        members = np.flatnonzero(instance.requests.group == g).tolist()
        overhead = int(instance.overhead[g])
        beginnings = {tuple(lines[j]["hash_ids"][: -(-overhead // 512)]) for j in members}
        assert len(beginnings) == 1
        assert len(members) > 1
        assert all(lines[j]["input_length"] >= overhead for j in members)
    figures = instance.provenance["prefixes"]
    saved = sum(line["input_length"] for line in lines) - int(instance.requests.prompt_tokens.sum()) - int(instance.overhead[: instance.groups].sum())
    assert figures["saved_tokens"] == saved <= figures["tree_saved_tokens"]
    assert f"which save {saved} of" in notices[-1]


# ---- Command line ---------------------------------------------------------------------------------------------------------------------


def command(*arguments: str | Path) -> Result:
    app = typer.Typer(rich_markup_mode=None)
    add_import_command(app)
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_command_line(tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    done = command("bpp", text_file(tmp_path / "a.bpp", "3\n100\n60\n50\n40\n"), "-o", out)
    assert done.exit_code == 0, done.output
    said = "request_packing instance, 3 requests, 150 prompt and 0 output tokens, bins of 100 tokens, 0 groups"
    assert done.stdout.strip() == f"{out}: {said}"
    assert RequestPacking.from_document(load_document(out)).size.tolist() == [60, 50, 40]
    cmax = command("cmax", text_file(tmp_path / "a.txt", "3 2\n60\n50\n40\n"), "-o", out, "--header", "jobs-machines", "--decode-step-s", "0.5")
    assert cmax.stdout.strip() == f"{out}: request_packing instance, 3 requests, 0 prompt and 150 output tokens, 2 slots"
    assert RequestPacking.from_document(load_document(out)).decode_step_s == 0.5
    trace = write_trace(tmp_path / "t.csv", ROWS)
    levels = ["--prefill-level", "512:0.5", "--prefill-level", "-:1"]
    slots = command("azure-llm-requests", trace, "-o", out, "--slots", "2", "--decode-step-s", "0.1", *levels, "--until-s", "5", "--first", "2")
    assert slots.exit_code == 0, slots.output
    assert "note: t.csv: 1 of 2 requests have 0 prompt tokens" in slots.stderr
    expected, _ = import_azure_llm_requests(trace, slots=2, decode_step_s=0.1, prefill_level=levels[1::2], until_s=5.0, first=2)
    assert RequestPacking.from_document(load_document(out)) == expected
    mooncake = jsonl(tmp_path / "m.jsonl", LINES)
    options = ["--capacity-tokens", "4096", "--padding-multiple", "16", "--too-large", "drop", "--from-s", "0", "--block-tokens", "512", "--json"]
    summary = json.loads(command("mooncake-requests", mooncake, "-o", tmp_path / "x.npz", *options).stdout)
    assert (summary["requests"], summary["groups"], summary["capacity_tokens"]) == (5, 1, 4096)
    assert summary["sha256"] == RequestPacking.from_document(load_document(tmp_path / "x.npz")).digest()
    assert json.loads(command("mooncake-requests", mooncake, "-o", out, *options, "--no-prefixes").stdout)["groups"] == 0


def test_command_line_refuses(tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    wrong = command("bpp", text_file(tmp_path / "a.bpp", "3\n100\n60\n"), "-o", out)
    assert isinstance(wrong.exception, InputError)
    assert not out.exists()
    trace = write_trace(tmp_path / "t.csv", ROWS)
    for name in ("block_tokens", "no_prefixes"):
        assert name in IMPORTERS["mooncake-requests"].options
        assert name not in IMPORTERS["azure-llm-requests"].options
    other = command("azure-llm-requests", trace, "-o", out, "--capacity-tokens", "9", "--no-prefixes")
    assert str(other.exception).startswith("--no-prefixes: is not an option of azure-llm-requests; expected --capacity-tokens,")
    assert str(command("azure-llm-requests", trace, "-o", out, "--performance", trace).exception).startswith("--performance: is not an option of")
    assert all(IMPORTERS[name].makes == "request_packing" for name in ("azure-llm-requests", "mooncake-requests", "bpp", "cmax"))
