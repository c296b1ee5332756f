"""What the command says when an option does not reach, does not apply, or a file is of another mode: the words, and that they are true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headroom.describe import remarks
from headroom.formulations.types import SolveParams
from headroom.instances.gpu_selection import GpuSelection
from headroom.instances.gpu_selection_presets import make
from headroom.instances.importers import IMPORTERS
from headroom.registry import GPU_SELECTION
from headroom.run import run
from tests.command import TOY, headroom, one_document, only_error, write_toy

EPOCHS: dict[str, Any] = {"epoch_s": 3600.0, "rate_per_s": [[6.0, 3.0, 15.0, 6.0], [3.0, 3.0, 6.0, 6.0]], "start_cost_usd": [0.5, 1.0]}
MODES: dict[str, dict[str, Any]] = {"pooled": {}, "per_replica": {"packing": "per_replica"}, "epochs": {"slices": None, "epochs": EPOCHS}}


@pytest.fixture
def plans(tmp_path: Path) -> dict[str, Path]:
    """An instance x.json and a plan plan.json of each mode, in a folder named after it."""
    for mode, changes in MODES.items():
        (tmp_path / mode).mkdir()
        instance = write_toy(tmp_path / mode, "x.json", **changes)
        assert headroom("solve", instance, "-o", tmp_path / mode / "plan.json", cwd=tmp_path).returncode == 0
    return {mode: tmp_path / mode for mode in MODES}


# --- a time limit that reaches no heuristic -------------------------------------------------------------------------------------


def test_a_time_limit_that_a_heuristic_passes_is_said(tmp_path: Path) -> None:
    toy, slow = write_toy(tmp_path), {"STUB_LOG": str(tmp_path / "log"), "STUB_SECONDS": "0.5"}
    arguments = ("solve", toy, "--method", "logged", "--time-limit")
    said = "the time limit of 0.1 s does not reach heuristics: it took "
    assert said in headroom(*arguments, "0.1", cwd=tmp_path, stubs=True, **slow).stdout
    done = headroom(*arguments, "0.1", "--json", cwd=tmp_path, stubs=True, **slow)
    (recorded,) = one_document(done.stdout)["details"]["notes"]
    assert recorded.startswith(said)
    assert done.stderr == f"headroom: {recorded}\n"
    assert "time limit" not in headroom(*arguments, "60", cwd=tmp_path, stubs=True, **slow).stdout


def test_a_time_limit_that_a_replay_passes_is_said() -> None:
    instance = GpuSelection(**(TOY["data"] | MODES["epochs"]))
    (said,) = run(instance, "reactive", SolveParams(time_limit_s=1e-6)).notes
    assert said.startswith("the time limit of 1e-06 s does not reach policies: it took ")
    assert run(instance, "reactive", SolveParams(time_limit_s=60)).notes == ()
    assert not any("does not reach" in text for text in run(instance, "decomposition", SolveParams(time_limit_s=1e-6)).notes)


# --- plans of another mode ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instance", "plan", "message"),
    [
        ("pooled", "epochs", "plan must have count and share because the instance is pooled, got a plan over epochs"),
        ("pooled", "per_replica", "plan must have count and share because the instance is pooled, got a plan of whole replicas"),
        ("per_replica", "pooled", "plan must have assignment because the instance is per_replica, got a pooled plan"),
        ("epochs", "pooled", "plan must have count and share for each epoch because the instance has epochs, got a pooled plan"),
    ],
)
def test_a_plan_of_another_mode(instance: str, plan: str, message: str, plans: dict[str, Path], tmp_path: Path) -> None:
    x, other = plans[instance] / "x.json", plans[plan] / "plan.json"
    assert only_error(headroom("solve", x, "--start", other, cwd=tmp_path)) == f"{other}: {message}"
    # With its own digest in it the document is a false claim; without, it is no input for this instance.
    done = headroom("verify", x, other, cwd=tmp_path)
    assert done.returncode == 1
    assert f"  -  {message}\n" in done.stdout
    bare = json.dumps({key: value for key, value in json.loads(other.read_text("utf-8")).items() if key in ("schema", "family", "plan")})
    assert only_error(headroom("verify", x, "-", cwd=tmp_path, stdin=bare)) == f"standard input: {message}"


# --- sensitivity ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["per_replica", "epochs"])
def test_sensitivity_of_other_modes_names_a_command_that_works(mode: str, tmp_path: Path) -> None:
    free = write_toy(tmp_path, "free.json", **MODES[mode])
    assert "sensitivity: it exists for pooled instances only; headroom sweep X --cap NAME says" in sensitivity(free)
    assert headroom("sweep", free, "--cap", "A10G", cwd=tmp_path).returncode == 0
    capped = write_toy(tmp_path, "capped.json", **MODES[mode], gpus=[gpu | {"max_count": 6} for gpu in TOY["data"]["gpus"]])
    assert "sensitivity: it exists for pooled instances only; headroom sweep X --shadow says" in sensitivity(capped)
    done = headroom("sweep", capped, "--shadow", cwd=tmp_path)
    assert done.returncode == 0
    assert "relaxed by one saves" in done.stdout


def sensitivity(path: Path) -> str:
    return headroom("solve", path, "--sensitivity", cwd=path.parent).stdout


# --- rates that nothing serves --------------------------------------------------------------------------------------------------


def test_rates_of_work_beside_epochs_are_said_to_count_for_nothing(tmp_path: Path) -> None:
    said = "work[].rate_per_s only describes: the epochs' rates count"
    odd = write_toy(tmp_path, **MODES["epochs"])
    assert f"note        {said}\n" in headroom("solve", odd, cwd=tmp_path).stdout
    done = headroom("solve", odd, "--json", cwd=tmp_path)
    assert one_document(done.stdout)["details"]["notes"] == [said]
    assert done.stderr == f"headroom: {said}\n"
    means = [item | {"rate_per_s": rate} for item, rate in zip(TOY["data"]["work"], (4.5, 3.0, 10.5 * (1 + 1e-7), 6.0), strict=True)]
    assert said not in headroom("solve", write_toy(tmp_path, **MODES["epochs"], work=means), cwd=tmp_path).stdout


def test_presets_state_the_rates_that_count() -> None:
    over_time = [instance for name in GPU_SELECTION.presets if (instance := make(name, np.random.default_rng(3), {})).epochs is not None]
    assert len(over_time) >= 5
    assert [remarks(instance) for instance in over_time] == [()] * len(over_time)


# --- formats --------------------------------------------------------------------------------------------------------------------


def test_import_list_shows_what_a_trace_takes_with_a_performance_table(tmp_path: Path) -> None:
    blocks = dict(zip(IMPORTERS, headroom("import", "--list", cwd=tmp_path).stdout.split("\n    options: ")[1:], strict=True))
    listed = {entry["format"]: entry for entry in one_document(headroom("import", "--list", "--json", cwd=tmp_path).stdout)["formats"]}
    for name in ("azure-llm", "mooncake"):
        more = listed[name]["options_with_performance"]
        assert {"--performance", "--epoch-s", "--initial-count", "--price"} <= set(more)
        assert f"for an instance also: {' '.join(more)}\n" in blocks[name]
        # Together they are what the importer of the table takes, less the trace that FILE is.
        taken = {f"--{option.replace('_', '-')}" for option in IMPORTERS["splitwise-perf"].options} - {"--trace", "--trace-format"}
        assert {*listed[name]["options"], *more} == taken | {"--performance"}
    for name in ("melange", "splitwise-perf"):
        assert listed[name]["options_with_performance"] == []
        assert "also:" not in blocks[name]


# --- request packing ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def packings(tmp_path: Path) -> Path:
    """A folder with bins.json and slots.json."""
    for preset, name in (("toy", "bins.json"), ("toy-makespan", "slots.json")):
        assert headroom("generate", "request_packing", "--preset", preset, "--seed", "0", "-o", name, cwd=tmp_path).returncode == 0
    return tmp_path


def test_compare_lists_the_methods_of_the_instances_mode(packings: Path) -> None:
    said = only_error(headroom("compare", "bins.json", "--methods", "nosuch", cwd=packings))
    assert said.startswith("--methods: must name some of bins, highs, next_fit, ")
    assert said.endswith(", got 'nosuch'")
    assert not {"cmax", "lpt", "fcfs_slots"} & set(said.replace(",", "").split())
    both = only_error(headroom("compare", "bins.json", "slots.json", "--bounds", "nosuch", cwd=packings))
    assert {"volume", "mean_load"} <= set(both.replace(",", "").split())
    # A method of the other mode is no mistake where instances of both modes may be compared by one command.
    other = headroom("compare", "bins.json", "--methods", "ffd,lpt", "--bounds", "none", cwd=packings)
    assert other.returncode == 0
    assert other.stderr.startswith("headroom: lpt was not run: it is for another mode")


def test_compare_has_units_and_no_status_of_bounds(packings: Path) -> None:
    arguments = ("compare", "bins.json", "slots.json", "--methods", "ffd,lpt", "--bounds", "volume,mean_load")
    lines = headroom(*arguments, cwd=packings).stdout.splitlines()
    # First fit decreasing packs the toy into 3 bins; its volume fills 2. Eight output tokens take two slots 4 s.
    assert next(line for line in lines if line.startswith("toy (")).endswith("best bound 2 bins, by volume (closed form)")
    assert next(line for line in lines if line.startswith("toy-makespan (")).endswith("best bound 4 s, by mean_load (closed form)")
    assert [line.split()[2:4] for line in lines if line.startswith("method")] == [["objective", "bins"], ["objective", "s"]]
    assert [line.split()[-2:] for line in lines if "(bound)" in line] == [["-", "completed"]] * 2
    assert [line.split()[-2:] for line in lines if line.startswith("ffd")] == [["feasible", "completed"]]


def test_generate_says_that_nothing_can_be_packed(packings: Path) -> None:
    made = headroom("generate", "request_packing", "--preset", "toy", "--seed", "0", "--set", "capacity_tokens=399", cwd=packings)
    # Two of the six take 400 tokens.
    assert (made.returncode, made.stderr) == (0, "headroom: 2 of 6 requests take more than the 399 tokens of a bin: no plan packs them\n")
    slots = ("generate", "request_packing", "--preset", "toy-makespan", "--seed", "0", "--set", 'prefill_levels=[{"max_tokens": 3, "time_s": 1.0}]')
    said = headroom(*slots, cwd=packings).stderr
    assert said == "headroom: 3 of 3 prompts are above the 3 tokens of the last prefill level: no plan admits them\n"
    assert headroom("generate", "request_packing", "--preset", "toy", "--seed", "0", cwd=packings).stderr == ""
