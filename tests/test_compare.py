"""`compare`: tidy rows, failures as rows, and a sweep that survives being killed."""

from __future__ import annotations

import collections
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import headroom as package
from headroom.compare import COLUMNS, compare
from headroom.instances.gpu_selection import GpuSelection
from tests.command import TOY, TOY_OPTIMUM, headroom, only_error, start, write_toy


@pytest.fixture(scope="module")
def toy() -> GpuSelection:
    return GpuSelection.from_document(TOY)


def test_one_tidy_row_a_run(toy: GpuSelection, tmp_path: Path) -> None:
    output = tmp_path / "results.parquet"
    seen: list[tuple[int, int]] = []
    methods = ["greedy", "online_first_fit"]
    frame = compare([toy, toy], methods, seeds=(0, 1, 0), jobs=2, output=output, on_row=lambda done, total, row: seen.append((done, total)))
    assert list(frame.columns[: len(COLUMNS)]) == list(COLUMNS)
    assert {str(name) for name in frame.columns[len(COLUMNS) :]} == {"part_A10G", "part_A100-80GB"}
    # The policy draws its arrivals, for two distinct seeds; greedy and the bounds draw nothing; the second toy is the first.
    assert sorted(zip(frame["method"], frame["kind"], frame["seed"].fillna(-1).astype(int), strict=True)) == [
        ("closed_form", "bound", -1),
        ("greedy", "heuristic", -1),
        ("lp", "bound", -1),
        ("online_first_fit", "policy", 0),
        ("online_first_fit", "policy", 1),
    ]
    assert seen == [(i, 5) for i in range(1, 6)]
    assert frame["objective"].iloc[0] == pytest.approx(TOY_OPTIMUM)
    plans = frame[frame["kind"] != "bound"]
    assert plans["objective"].is_monotonic_increasing
    assert set(frame["digest"]) == {toy.digest()}
    # Every row is measured against the best bound that any row found.
    assert frame["bound"].to_list() == pytest.approx([4.12875] * len(frame))
    assert set(frame["bound_proof"]) <= {"closed_form", "certificate"}
    assert plans["gap"].to_list() == pytest.approx([(objective - 4.12875) / objective for objective in plans["objective"]])
    parts = plans[["part_A10G", "part_A100-80GB"]].sum(axis=1)
    assert parts.to_list() == pytest.approx(plans["objective"].to_list())
    assert not frame["error"].notna().any()
    assert (frame["runtime_s"] >= 0).all()
    pd.testing.assert_frame_equal(pd.read_parquet(output), frame)
    assert not (tmp_path / "results.parquet.parts").exists()


def test_a_run_that_fails_or_dies_is_a_row(tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    arguments = ("compare", toy, "--methods", "dying,raising,noisy,greedy,liar", "--bounds", "none", "--jobs", "1", "--json")
    done = headroom(*arguments, cwd=tmp_path, stubs=True)
    assert done.returncode == 0
    rows = {row["method"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["dying"]["error"] == "the process died (signal 9)"
    assert rows["raising"]["error"] == "RuntimeError: a bug in a method"
    assert rows["liar"]["error"].startswith("ContradictionError: liar claims objective 0.5")
    assert rows["noisy"]["error"] is None
    assert rows["greedy"]["objective"] == pytest.approx(TOY_OPTIMUM)
    assert rows["dying"]["stop"] == "error"


def test_no_plan_at_all_exits_1(tmp_path: Path) -> None:
    done = headroom("compare", write_toy(tmp_path), "--methods", "raising", "--bounds", "none", cwd=tmp_path, stubs=True)
    assert done.returncode == 1
    assert "a bug in a method" in done.stdout


def test_infeasibility_survives_parquet(tmp_path: Path) -> None:
    toy = write_toy(tmp_path, throughput_per_s=[[2, 1, None, 2], [20, 20, None, 20]])
    arguments = ("compare", toy, "--methods", "greedy", "--bounds", "closed_form", "-o", "r.parquet")
    for _ in range(2):  # the second run reads what the first one wrote
        done = headroom(*arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert "no plan exists" in done.stdout
    assert pd.read_parquet(tmp_path / "r.parquet")["bound"].to_list() == [math.inf, math.inf]


# --- resuming -------------------------------------------------------------------------------------------------------------------


def sweep(folder: Path, seeds: str, *, seconds: float = 0.0) -> dict[str, Any]:
    """Arguments of a sweep of the stub method that logs its runs."""
    extra = {"STUB_LOG": str(folder / "log"), "STUB_SECONDS": str(seconds)}
    arguments = ("compare", "toy.json", "--methods", "logged", "--bounds", "none", "--seeds", seeds, "--jobs", "2", "-o", "r.parquet")
    return {"arguments": arguments, "extra": extra}


def begun(folder: Path) -> collections.Counter[str]:
    """How often each run was begun, by what its seed drew first."""
    lines = (folder / "log").read_text("utf-8").splitlines()
    return collections.Counter(line.split()[1] for line in lines if line.startswith("begin"))


def test_finished_runs_are_never_run_again(tmp_path: Path) -> None:
    write_toy(tmp_path)
    first = sweep(tmp_path, "0:3")
    assert headroom(*first["arguments"], cwd=tmp_path, stubs=True, **first["extra"]).returncode == 0
    more = sweep(tmp_path, "0:5")
    assert headroom(*more["arguments"], cwd=tmp_path, stubs=True, **more["extra"]).returncode == 0
    assert sorted(begun(tmp_path).values()) == [1] * 5
    assert len(pd.read_parquet(tmp_path / "r.parquet")) == 5
    # Another time limit is another parameter: those are other runs, and the table keeps both.
    assert headroom(*first["arguments"], "--time-limit", "9", cwd=tmp_path, stubs=True, **first["extra"]).returncode == 0
    assert len(pd.read_parquet(tmp_path / "r.parquet")) == 8


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_sweep_cut_off_in_the_middle_continues(number: int, tmp_path: Path) -> None:
    write_toy(tmp_path)
    plan = sweep(tmp_path, "0:10", seconds=0.3)
    process = start(*plan["arguments"], cwd=tmp_path, stubs=True, **plan["extra"])
    parts = tmp_path / "r.parquet.parts"
    deadline = time.monotonic() + 60
    while not (parts.is_dir() and len(list(parts.glob("*.json"))) >= 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[signal.Signals(number)]
    assert "Traceback" not in err
    time.sleep(1.5)  # workers of a killed sweep notice that they are orphans
    finished = len(list(parts.glob("*.json"))) if number == signal.SIGKILL else len(pd.read_parquet(tmp_path / "r.parquet"))
    assert 3 <= finished < 10
    if number == signal.SIGKILL:  # as if it had been killed in the middle of writing a row
        (parts / ".0123.json.abcd.part").write_text("{")
    before = begun(tmp_path)
    quick = sweep(tmp_path, "0:10")
    assert headroom(*quick["arguments"], cwd=tmp_path, stubs=True, **quick["extra"]).returncode == 0
    assert sum((begun(tmp_path) - before).values()) == 10 - finished
    frame = pd.read_parquet(tmp_path / "r.parquet")
    assert sorted(frame["seed"]) == list(range(10))
    assert not parts.exists()


def test_failed_runs_are_tried_again(tmp_path: Path) -> None:
    write_toy(tmp_path)
    arguments = ("compare", "toy.json", "--methods", "raising,greedy", "--bounds", "none", "-o", "r.parquet")
    for _ in range(2):
        assert headroom(*arguments, cwd=tmp_path, stubs=True).returncode == 0
    frame = pd.read_parquet(tmp_path / "r.parquet")
    assert sorted(frame["method"]) == ["greedy", "raising"]


def test_a_damaged_part_is_run_again(tmp_path: Path) -> None:
    write_toy(tmp_path)
    (tmp_path / "r.parquet.parts").mkdir()
    (tmp_path / "r.parquet.parts" / "x.json").write_text('{"digest": ', "utf-8")
    assert headroom("compare", "toy.json", "--methods", "greedy", "-o", "r.parquet", cwd=tmp_path).returncode == 0


# --- use ------------------------------------------------------------------------------------------------------------------------


def test_wrong_use(tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    assert "--methods: must name some of" in only_error(headroom("compare", toy, "--methods", "gready", cwd=tmp_path))
    assert "--bounds: must name some of" in only_error(headroom("compare", toy, "--bounds", "lpp", cwd=tmp_path))
    for seeds in ("", "a", "3:1", "-1", "1:2:3"):
        assert "--seeds: must be a list" in only_error(headroom("compare", toy, f"--seeds={seeds}", cwd=tmp_path))
    assert "must end in .parquet" in only_error(headroom("compare", toy, "-o", "r.csv", cwd=tmp_path))
    (tmp_path / "other.parquet").write_bytes(b"not parquet")
    assert "other.parquet: is not a parquet file" in only_error(headroom("compare", toy, "-o", "other.parquet", cwd=tmp_path))
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "alien.parquet")
    assert "alien.parquet: has no column '" in only_error(headroom("compare", toy, "-o", "alien.parquet", cwd=tmp_path))
    assert (tmp_path / "other.parquet").read_bytes() == b"not parquet"
    assert "missing.json: cannot be read" in only_error(headroom("compare", toy, "missing.json", cwd=tmp_path))


def test_from_a_script_without_main_guard(tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    frame = package.compare([toy], ["greedy"], [], jobs=2)
    assert frame["objective"].to_list() == pytest.approx([TOY_OPTIMUM])


def test_workers_end_with_the_sweep(tmp_path: Path) -> None:
    write_toy(tmp_path)
    plan = sweep(tmp_path, "0:2", seconds=30)
    process = start(*plan["arguments"], cwd=tmp_path, stubs=True, **plan["extra"])
    while not (tmp_path / "log").exists():
        time.sleep(0.05)
    threads = Path(f"/proc/{process.pid}/task").glob("*/children")
    workers = [int(pid) for children in threads for pid in children.read_text("utf-8").split()]
    assert workers
    process.kill()
    process.communicate()
    time.sleep(2.5)
    assert not [pid for pid in workers if _alive(pid)]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text("utf-8").split()[2] != "Z"
    except OSError:
        return False
