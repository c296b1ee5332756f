"""Readers of the text formats, bin packing and P||Cmax: by hand, in any white space, and broken in many ways."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headroom.instances.base import load_document
from headroom.instances.errors import InputError
from headroom.instances.request_packing import MOST_REQUESTS, MOST_TOKENS, RequestPacking
from headroom.instances.request_packing_import import import_bpp, import_cmax


def text_file(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(read: Any, path: Path, **options: Any) -> str:
    """The one line that is said, without the file's name (which must come first unless an option is at fault)."""
    with pytest.raises(InputError) as caught:
        read(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


# ---- Bin packing ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "4\n100\n60\n50\n40\n10\n",
        "4 100\n60\n50\n40\n10",
        "4\r\n100\r\n60\r\n50\r\n40\r\n10\r\n",
        "\n  4  \n\n\t100 \n60 50 \n40\t10   \n\n\n",
        "4 100 60 50 40 10",
        "\ufeff4\n100\n60 50\n40 10\n",
        "0004\r100\r60\r50\r40\r10",
    ],
)
def test_bpp_in_any_white_space(tmp_path: Path, text: str) -> None:
    instance, notices = import_bpp(text_file(tmp_path / "u4.bpp.txt", text))
    assert (instance.objective, instance.capacity_tokens, instance.name) == ("bins", 100, "u4.bpp")
    assert instance.size.tolist() == [60, 50, 40, 10]
    assert instance.plain
    assert notices == []
    assert instance.provenance["importer"] == "bpp"
    assert instance.provenance["sources"][0]["file"] == "u4.bpp.txt"


@pytest.mark.parametrize("text", ["3\n100\n60 2\n50 1\n7 3\n", "3 100\n\n60\t2\n50 1 \n7 3"])
def test_cutting_stock_by_hand(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.csp.gz"
    path.write_bytes(gzip.compress(text.encode()))
    instance, notices = import_bpp(path)
    assert instance.size.tolist() == [60, 60, 50, 7, 7, 7]
    assert notices == ["c.csp.gz: 3 lines of weight and demand make 6 requests"]
    assert (instance.name, instance.provenance["variant"]) == ("c", "cutting-stock")


def test_as_many_numbers_as_pairs_but_not_in_pairs_are_no_cutting_stock(tmp_path: Path) -> None:
    # Twice n numbers, one a line: n is wrong, and taking every second number for a demand would be a silent wrong answer.
    assert "n is 2: expected 2 weights, or 2 lines of weight and demand, but 4 numbers" in refused(
        import_bpp, text_file(tmp_path / "x.bpp", "2\n100\n60\n1\n50\n2\n")
    )


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("2\n100\n60\n50\n40\n", "3 numbers follow to line 5 (1 too many)"),
        ("2\n100\n60 1\n50 1\n40 1\n", "6 numbers follow to line 5 (2 too many)"),
        ("2\n100\n60 1 50\n1\n", "4 numbers follow to line 4 (weight and demand must stand on one line)"),
        ("3\n100\n60 1\n50 1\n", "4 numbers follow to line 4 (is the file cut off?)"),
        ("3\n100\n60\n50\n", "2 numbers follow to line 4 (is the file cut off?)"),
    ],
)
def test_too_many_numbers_are_not_a_file_cut_off(tmp_path: Path, text: str, hint: str) -> None:
    assert refused(import_bpp, text_file(tmp_path / "x.bpp", text)).endswith(f"lines of weight and demand, but {hint}")


def test_a_weight_above_the_capacity_is_said(tmp_path: Path) -> None:
    instance, notices = import_bpp(text_file(tmp_path / "x.bpp", "2\n10\n11\n10\n"))
    assert instance.size.tolist() == [11, 10]
    assert notices == ["x.bpp: 1 of 2 weights are above the capacity 10: no plan packs them"]
    assert instance.provenance["notices"] == notices


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected the numbers n, capacity, weight (or demand)"),
        (" \n\n", "is empty"),
        ("3\n100\n", "line 2: the file ends too early; expected n, capacity and n weights"),
        ("3\n100\n60\n50\n", "line 1: n is 3: expected 3 weights, or 3 lines of weight and demand, but 2 numbers follow to line 4 (is the"),
        ("0\n100\n60\n", f"line 1: n must be a whole number from 1 to {MOST_REQUESTS}, got 0"),
        ("3\n0\n1\n1\n1\n", f"line 2: capacity must be a whole number from 1 to {MOST_TOKENS}, got 0"),
        ("2\n100\n60\n0\n", f"line 4: weight 2 must be a whole number from 1 to {MOST_TOKENS}, got 0"),
        ("2\n100\n60 1\n50 0\n", f"line 4: demand 2 must be a whole number from 1 to {MOST_REQUESTS}, got 0"),
        ("2\n100\n60 4194304\n50 1\n", f"demands sum to 4194305; expected at most {MOST_REQUESTS} items"),
        ("2\n100\n60\n-5\n", "line 4: weight (or demand) must be a whole number of at most 18 digits, got '-5'"),
        ("2\n100\n60\n5.0\n", "line 4: weight (or demand) must be a whole number of at most 18 digits, got '5.0'"),
        ("2\n1e2\n60\n5\n", "line 2: capacity must be a whole number of at most 18 digits, got '1e2'"),
        ("two 100\n60\n5\n", "line 1: n must be a whole number of at most 18 digits, got 'two'"),
        ("2\n100\nNaN\n5\n", "line 3: weight (or demand) must be a whole number of at most 18 digits, got 'NaN'"),
        ("2\n100\n60, 5\n", "line 3: weight (or demand) must be a whole number of at most 18 digits, got '60,'"),
        (f"2\n100\n60\n{10**18}\n", f"line 4: weight (or demand) must be a whole number of at most 18 digits, got '{10**18}'"),
        (f"2\n100\n60\n{10**17}\n", f"line 4: weight 2 must be a whole number from 1 to {MOST_TOKENS}, got {10**17}"),
        ("2\n100\n" + "9" * 5000 + "\n5\n", "line 3: weight (or demand) must be a whole number of at most 18 digits, got '999"),
        ("2\n100\n६०\n5\n", "line 3: weight (or demand) must be a whole number of at most 18 digits, got '६०'"),
        (b"\x89PNG\r\n\x1a\n\0\0\xff", "line 1: n must be a whole number of at most 18 digits, got '\\\\x89PNG'"),
    ],
)
def test_broken_bpp(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert refused(import_bpp, text_file(tmp_path / "x.bpp", text)).startswith(message)


@pytest.mark.parametrize("read", [import_bpp, import_cmax])
def test_files_that_cannot_be_read(tmp_path: Path, read: Any) -> None:
    assert refused(read, tmp_path / "none.txt").startswith("cannot be read: No such file")
    assert refused(read, tmp_path).startswith("cannot be read: Is a directory")
    whole = gzip.compress(b"2\n100\n60\n50\n" * 100)
    assert refused(read, text_file(tmp_path / "x.gz", whole[:30])).startswith("not a readable gzip file")
    assert refused(read, text_file(tmp_path / "x.gz", b"2\n100\n60\n50\n")).startswith("not a readable gzip file")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(st.integers(1, MOST_TOKENS), min_size=1, max_size=30), st.integers(1, MOST_TOKENS), st.lists(st.sampled_from(" \t\n\r"), min_size=1))
def test_every_bpp_file_survives(tmp_path: Path, weights: list[int], capacity: int, spaces: list[str]) -> None:
    numbers = [len(weights), capacity, *weights]
    text = "".join(f"{number}{spaces[k % len(spaces)]}" for k, number in enumerate(numbers))
    instance, _ = import_bpp(text_file(tmp_path / "h.bpp", text))
    assert (instance.size.tolist(), instance.capacity_tokens) == (weights, capacity)
    instance.save(tmp_path / "h.npz")
    assert RequestPacking.from_document(load_document(tmp_path / "h.npz")) == instance


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@given(st.binary(max_size=60) | st.text("0123456789 \n.-e", max_size=60).map(str.encode), st.sampled_from([import_bpp, import_cmax]))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path: Path, content: bytes, read: Any) -> None:
    path = text_file(tmp_path / "h.txt", content)
    said = f"{path}: one line"
    try:
        assert read(path)[0].count >= 1
    except InputError as error:
        said = str(error)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said


# ---- P||Cmax --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "header"), [("2 3\n5\n7\n9\n", "machines-jobs"), ("3\n2\n5 7 9", "jobs-machines")])
def test_cmax_by_hand(tmp_path: Path, text: str, header: str) -> None:
    path = text_file(tmp_path / "m.txt", text)
    instance, notices = import_cmax(path)
    assert (instance.objective, instance.slots, instance.decode_step_s, instance.prefill_levels) == ("makespan", 2, 1.0, ())
    assert instance.requests.output_tokens.tolist() == [5, 7, 9]
    assert instance.requests.prompt_tokens.tolist() == [0, 0, 0]
    assert len(notices) == 1
    assert notices[0].startswith("m.txt: read as 2 machines and 3 jobs")
    said, quiet = import_cmax(path, header=header, decode_step_s=0.5)
    assert quiet == []
    assert (said.slots, said.decode_step_s) == (2, 0.5)
    assert said.provenance["options"] == {"header": header, "decode_step_s": 0.5}


def test_as_many_jobs_as_times_follow(tmp_path: Path) -> None:
    # The other reading, ten jobs, would be a file that was cut off: the notice says which one was taken.
    for text, other in (("10 5\n1 2 3 4 5", "jobs-machines"), ("5 10\n1 2 3 4 5", "machines-jobs")):
        instance, notices = import_cmax(text_file(tmp_path / "m.txt", text))
        assert (instance.slots, instance.count) == (10, 5)
        assert notices == [f"m.txt: read as 10 machines and 5 jobs because 5 times follow (--header {other} expects 10)"]
        message = refused(import_cmax, tmp_path / "m.txt", header=other)
        assert message == "line 1: jobs is 10: expected 10 times, but 5 follow to line 2 (is the file cut off?)"
    # The other way round this file would have too many times: nothing to say of it.
    assert import_cmax(text_file(tmp_path / "m.txt", "2 3\n5 7 9"))[1] == ["m.txt: read as 2 machines and 3 jobs"]
    instance, notices = import_cmax(text_file(tmp_path / "m.txt", "2 2\n3 4"))
    assert (instance.slots, instance.count, notices) == (2, 2, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected the numbers machines (or jobs), jobs (or machines), time"),
        ("2 3", "line 1: the file ends too early; expected machines, jobs and the jobs' times"),
        ("2 3\n5\n", "line 1: jobs is 3: expected 3 times, but 1 follow to line 2 (is the file cut off?)"),
        ("9 9\n1", "line 1: jobs is 9: expected 9 times, but 1 follow to line 2 (is"),
        ("2\n4\n5\n7\n6\n", "line 2: jobs is 4: expected 4 times, but 3 follow to line 5 (is the file cut off?)"),
        ("0 3\n5 7 9", "line 1: machines must be a whole number from 1 to 1048576, got 0"),
        ("2 3\n5 0 9", f"line 2: time 2 must be a whole number from 1 to {MOST_TOKENS}, got 0"),
        ("2 3\n5 7 9.5", "line 2: time must be a whole number of at most 18 digits, got '9.5'"),
        ("2 -3\n5 7 9", "line 1: jobs (or machines) must be a whole number of at most 18 digits, got '-3'"),
    ],
)
def test_broken_cmax(tmp_path: Path, text: str, message: str) -> None:
    assert refused(import_cmax, text_file(tmp_path / "m.txt", text)).startswith(message)


def test_too_many_times_are_not_a_file_cut_off(tmp_path: Path) -> None:
    assert refused(import_cmax, text_file(tmp_path / "m.txt", "2 3\n5 7 9 1")) == "line 1: jobs is 3: expected 3 times, but 4 follow to line 2"


def test_bad_cmax_options(tmp_path: Path) -> None:
    path = text_file(tmp_path / "m.txt", "2 3\n5 7 9")
    assert refused(import_cmax, path, header="both") == "--header: must be one of machines-jobs, jobs-machines, got 'both'"
    assert refused(import_cmax, path, header="jobs-machines").startswith("line 1: jobs is 2: expected 2 times, but 3 follow")
    for value in (0.0, -1.0, float("nan"), float("inf")):
        assert refused(import_cmax, path, decode_step_s=value).startswith("--decode-step-s must be a number from")
