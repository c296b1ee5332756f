"""Sweeps over presets, seeds and settings: study files, grids, limits of each run, and the summary of many instances."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headroom.cli_compare import clock
from headroom.compare import compare
from headroom.compare_pool import _made
from headroom.compare_summary import student, summarise
from headroom.instances.errors import InputError
from headroom.study import Case, find_preset, parse_seeds, preset_cases, read_study, settings_of
from tests.command import TOY_OPTIMUM, headroom, only_error, start, write_toy

STUDY = """
time_limit_s = 5
memory_limit_gib = 2
seeds = "0:2"
bounds = []
[[case]]
preset = "triplet-60"
grid = {requests = [30, 60], capacity_tokens = [1000, 2000]}
methods = ["ffd", "first_fit_predicted"]
[[case]]
family = "request_packing"
preset = "toy"
seeds = [7]
methods = ["ffd"]
[[case]]
file = "sub/x.json"
methods = ["greedy", "online_first_fit"]
"""


def study_in(folder: Path, text: str = STUDY) -> Path:
    (folder / "sub").mkdir(exist_ok=True)
    write_toy(folder / "sub", "x.json")
    path = folder / "s.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_study_file_says_what_is_run(tmp_path: Path) -> None:
    study = read_study(study_in(tmp_path))
    assert (study.time_limit_s, study.memory_limit_bytes) == (5.0, 2**31)
    # Two settings of two fields each, with two seeds; one seed of the toy; the file, from the study's folder.
    assert len(study.cases) == 4 * 2 + 1 + 1
    first = study.cases[0]
    assert (first.family, first.preset, first.seed, first.settings) == ("request_packing", "triplet-60", 0, {"requests": 30, "capacity_tokens": 1000})
    assert (study.cases[-2].preset, study.cases[-2].seeds) == ("toy", (7,))
    assert (study.cases[-1].path, study.cases[-1].seeds) == (tmp_path / "sub" / "x.json", (0, 1))
    frame = compare(study, jobs=1, output=tmp_path / "r.parquet")
    assert not frame["error"].notna().any()
    counts = frame.groupby(["instance", "method"]).size().to_dict()
    assert counts == {
        ("triplet-60", "ffd"): 8, ("triplet-60", "first_fit_predicted"): 8, ("toy", "ffd"): 1, ("toy", "greedy"): 1, ("toy", "online_first_fit"): 2
    }  # fmt: skip
    triplets = frame[frame["preset"] == "triplet-60"]
    assert set(triplets["settings"]) == {json.dumps({"capacity_tokens": c, "requests": n}, sort_keys=True) for c in (1000, 2000) for n in (30, 60)}
    assert triplets.groupby("instance_seed").size().to_dict() == {0: 8, 1: 8}
    assert triplets["digest"].nunique() == 8
    # A policy draws its predictions with the instance's own seed.
    drawn = triplets[triplets["method"] == "first_fit_predicted"]
    assert (drawn["seed"] == drawn["instance_seed"]).all()
    assert frame[frame["method"] == "greedy"]["objective"].iloc[0] == pytest.approx(TOY_OPTIMUM)
    again = compare(study, jobs=1, output=tmp_path / "r.parquet", on_row=lambda *_: pytest.fail("a finished run was run again"))
    pd.testing.assert_frame_equal(again, frame)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[case]]\npreset = ", "is not TOML: "),
        ("", "case must be one or more tables [[case]], got none"),
        ("case = 3", "case must be one or more tables [[case]], got 3"),
        ("cases = []", "cases is an unknown field; expected time_limit_s, memory_limit_gib, seeds, methods, bounds, case"),
        ("[[case]]\nseeds = 3", "case 0: expected preset or file, got neither"),
        ("[[case]]\npreset = 'toy'\nfile = 'x'", "case 0: expected preset or file, got both"),
        ("[[case]]\nfile = 'x'\nset = {a = 1}", "case 0: set is for a preset; expected none beside file"),
        ("[[case]]\npreset = 'triplet-60'\ncolour = 1", "case 0: colour is an unknown field; expected family, preset, file, set, grid, seeds,"),
        ("[[case]]\npreset = 'triplet-60'\ngrid = {requests = 60}", "case 0: grid.requests must be a list of values, got 60"),
        ("[[case]]\npreset = 'triplet-60'\ngrid = {a = [1]}\nset = {a = 1}", "case 0: grid.a is in set too"),
        ("[[case]]\npreset = 'triplet-60'\nset = 3", "case 0: set must be a table of settings, got 3"),
        ("[[case]]\npreset = 'triplet-60'\nseeds = '5:2'", "case 0: seeds: must be a list such as 0,1,2 or a range such as 0:5, got '5:2'"),
        ("[[case]]\npreset = 'triplet-60'\nseeds = [1.5]", "case 0: seeds: must be whole numbers from 0 on"),
        ("[[case]]\npreset = 'triplet-60'\nmethods = 'ffd'", "case 0: methods must be a list of names, got 'ffd'"),
        ("[[case]]\npreset = 'toy'", "case 0: preset: 'toy' is one of several families: write gpu_selection/toy or expert_placement/toy or"),
        ("[[case]]\nfamily = 'x'\npreset = 'toy'", "case 0: family: must be one of gpu_selection, expert_placement, kv_tiering,"),
        ("[[case]]\npreset = 'nix'", "case 0: preset: must be one of toy, "),
        ("time_limit_s = -1\n[[case]]\npreset = 'triplet-60'", "time_limit_s must be a number above 0, got -1"),
    ],
)
def test_faults_of_study_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_study(study_in(tmp_path, text))
    assert str(caught.value).startswith(f"{tmp_path / 's.toml'}: {message}")


def test_settings_on_the_command_line() -> None:
    assert settings_of(["a=1", "b=1,2.5,x", 'c=[1,2]', 'd="u,v"']) == ({"a": 1, "c": [1, 2], "d": "u,v"}, {"b": [1, 2.5, "x"]})
    for wrong in ("a", "a=", "=1"):
        with pytest.raises(InputError, match="--set: must be FIELD=VALUE or FIELD=A,B,C"):
            settings_of([wrong])
    with pytest.raises(InputError, match="--set: names a twice"):
        settings_of(["a=1", "a=2"])
    assert parse_seeds("3,0:2") == [3, 0, 1]
    assert find_preset("kv_tiering/toy") == ("kv_tiering", "toy")
    with pytest.raises(InputError, match="makes 2000000 instances"):
        preset_cases("triplet-60", range(10**6), grid={"requests": [30, 60]})


def test_the_command_sweeps_presets(tmp_path: Path) -> None:
    asked = ("compare", "--preset", "triplet-60", "--set", "requests=30,60", "--seeds", "0:4", "--methods", "ffd,next_fit", "--bounds", "volume")
    done = headroom(*asked, "--jobs", "1", cwd=tmp_path)
    assert done.returncode == 0
    # Eight instances are too many for a table each: one for each of the settings, best method first.
    assert [line for line in done.stdout.splitlines() if line.endswith("(request_packing)")] == [
        'triplet-60 {"requests": 30} (request_packing)', 'triplet-60 {"requests": 60} (request_packing)'
    ]  # fmt: skip
    assert [line.split()[:3] for line in done.stdout.splitlines() if line.startswith(("ffd", "next_fit"))] == [
        ["ffd", "4", "4"], ["next_fit", "4", "4"]
    ] * 2  # fmt: skip
    for wrong in (["compare"], ["compare", "--preset", "nix"], ["compare", "x.json", "--set", "a=1"], ["compare", "no.toml"]):
        only_error(headroom(*wrong, cwd=tmp_path))


def test_a_run_over_its_limits_is_stopped_and_recorded(tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    asked = ("compare", toy, "--methods", "deaf,hungry,greedy", "--bounds", "none", "--jobs", "1", "--time-limit", "0.4", "--memory-limit", "1GiB")
    begun = time.monotonic()
    done = headroom(*asked, "--json", "-o", "r.parquet", cwd=tmp_path, stubs=True)
    assert time.monotonic() - begun < 30  # deaf sleeps for two minutes
    rows = {row["method"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["greedy"]["objective"] == pytest.approx(TOY_OPTIMUM)
    assert (rows["deaf"]["stop"], rows["deaf"]["status"], rows["deaf"]["error"]) == ("time_limit", "unknown", None)
    assert "it does not keep the time limit of 0.4 s" in rows["deaf"]["note"]
    assert 5.5 <= rows["deaf"]["runtime_s"] < 8
    assert rows["hungry"]["stop"] == "memory_limit"
    assert "over the memory limit of 1.00 GiB" in rows["hungry"]["note"]
    # Both are done: a sweep that goes on does not stop at them again.
    begun = time.monotonic()
    headroom(*asked, "-o", "r.parquet", cwd=tmp_path, stubs=True)
    assert time.monotonic() - begun < 5


def test_killed_again_and_again_the_table_is_the_same(tmp_path: Path) -> None:
    methods = ("--methods", "ffd,best_fit,first_fit_predicted", "--bounds", "volume,l2", "--jobs", "2")
    asked = ("compare", "--preset", "triplet-60", "--seeds", "0:60", *methods)
    assert headroom(*asked, "-o", "whole.parquet", cwd=tmp_path).returncode == 0
    rng = random.Random(0)
    parts = tmp_path / "r.parquet.parts"
    killed = 0
    for _ in range(5):
        process = start(*asked, "-o", "r.parquet", cwd=tmp_path)
        wanted = len(list(parts.glob("*.json"))) + rng.randint(1, 25)
        while process.poll() is None and len(list(parts.glob("*.json"))) < wanted:
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
    assert headroom(*asked, "-o", "r.parquet", cwd=tmp_path).returncode == 0
    assert killed >= 2
    whole, pieces = (pd.read_parquet(tmp_path / name) for name in ("whole.parquet", "r.parquet"))
    same = [name for name in whole.columns if name not in ("runtime_s", "started_s", "peak_memory_bytes", "trace")]
    order = ["digest", "method", "kind", "seed"]
    pd.testing.assert_frame_equal(*(frame[same].sort_values(order).reset_index(drop=True) for frame in (whole, pieces)))


def test_an_instance_that_changed_under_the_sweep_is_an_error(tmp_path: Path) -> None:
    path = write_toy(tmp_path)

    first = Case(path=path, seeds=(0,), methods=("greedy",), bounds=())
    second = Case(path=path, seeds=(0,), methods=("greedy",), bounds=())
    digest = first.load().digest()
    assert _made(second, digest).digest() == digest
    write_toy(tmp_path, slices=2)
    with pytest.raises(InputError, match="has changed since the sweep began"):
        _made(second, digest)


def test_summary_by_hand() -> None:
    def row(digest: str, method: str, objective: float, **more: Any) -> dict[str, Any]:
        start = {"family": "f", "instance": "i", "preset": "p", "settings": "{}", "digest": digest, "method": method, "kind": "heuristic"}
        gap = 1 - 1 / objective if objective < math.inf else math.inf
        return {**start, "objective": objective, "gap": gap, "certified_gap": gap, "error": None, "runtime_s": objective} | more

    frame = pd.DataFrame(
        [
            row("a", "x", 2.0), row("a", "x", 1.0), row("b", "x", 4.0),
            row("a", "y", 1.0), row("b", "y", math.inf), row("b", "y", math.inf, error="boom"),
            row("a", "lp", 1.0, kind="bound"),
        ]
    )  # fmt: skip
    found = summarise(frame).set_index("method")
    assert list(found.index) == ["y", "x"]  # best first
    # Gaps of a: 1/2 and 0, of b: 3/4. The mean over the instances is that of 1/4 and 3/4; its interval has one degree of freedom.
    x = found.loc["x"]
    assert (x["instances"], x["runs"], x["gap_mean"], x["gap_median"], x["gap_worst"]) == (2, 3, 0.5, 0.5, 0.75)
    assert x["gap_confidence"] == pytest.approx(12.706 * np.std([0.25, 0.75], ddof=1) / math.sqrt(2))
    assert (x["optimal_share"], x["runtime_median_s"]) == (pytest.approx(1 / 3), 2.0)
    y = found.loc["y"]
    assert (y["without_plan"], y["errors"], y["gap_mean"], y["optimal_share"]) == (1, 1, 0.0, pytest.approx(1 / 3))
    assert math.isnan(y["gap_confidence"])


@pytest.mark.parametrize(("degrees", "expected"), [(1, 12.706), (2, 4.303), (11, 2.201), (13, 2.160), (20, 2.086), (30, 2.042), (120, 1.980)])
def test_quantiles_of_students_t(degrees: int, expected: float) -> None:
    assert student(degrees) == pytest.approx(expected, rel=1e-3)


def test_clock() -> None:
    assert [clock(each) for each in (0.4, 99, 100, 5999, 7260)] == ["0 s", "99 s", "1 min", "99 min", "2 h 01 min"]
