"""The command line through the installed command: every verb, its exit codes, its standard streams and its files."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from headroom.instances.gpu_selection import GpuSelection
from headroom.registry import GPU_SELECTION
from tests.command import COMMAND, TOY, TOY_OPTIMUM, environment, headroom, one_document, only_error, start, write_toy

VERBS = ("solve", "bound", "compare", "verify", "export", "export-model", "import", "families", "demo", "generate", "schema")


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_toy(tmp_path)


# --- the command itself ---------------------------------------------------------------------------------------------------------


def test_the_command_is_the_entry_point() -> None:
    (script,) = entry_points(group="console_scripts", name="headroom")
    assert script.value == "headroom.cli:entry_point"
    assert COMMAND.exists()


def test_help_lists_every_verb_fast(tmp_path: Path) -> None:
    runs = []
    for _ in range(5):
        began = time.monotonic()
        done = headroom("--help", cwd=tmp_path)
        runs.append(time.monotonic() - began)
    assert done.returncode == 0
    assert [verb for verb in VERBS if not re.search(rf"^  {verb} ", done.stdout, re.MULTILINE)] == []
    assert min(runs) < 0.5, runs


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(verb: str, tmp_path: Path) -> None:
    done = headroom(verb, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: headroom {verb}")


@pytest.mark.parametrize("verb", ["", "families", "solve --help", "export --list"])
def test_light_verbs_import_nothing_heavy(verb: str, tmp_path: Path) -> None:
    code = f"""
import sys, headroom.cli
sys.argv = ["headroom", *{(verb or '--help').split()!r}]
try:
    headroom.cli.entry_point()
finally:
    heavy = {{"numpy", "pandas", "pyomo", "highspy", "ortools", "numba", "scipy", "matplotlib", "plotly", "pyarrow"}}
    sys.stderr.write(" ".join(sorted(heavy & sys.modules.keys())))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout
    assert done.stderr == ""


def test_version_and_module(tmp_path: Path) -> None:
    version = headroom("--version", cwd=tmp_path).stdout
    assert re.fullmatch(r"headroom \d+\.\d+\.\d+\S*\n", version)
    done = subprocess.run([sys.executable, "-m", "headroom", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == version


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command (see headroom --help)"),
        (["nope"], "No such command 'nope' (see headroom --help)"),
        (["solve"], "Missing argument 'X' (see headroom solve --help)"),
        (["solve", "toy.json", "--bogus"], "No such option: --bogus (see headroom solve --help)"),
        (["solve", "toy.json", "--time-limit", "soon"], "Invalid value for '--time-limit'"),
        (["solve", "toy.json", "--time-limit", "nan"], "--time-limit: must be a positive number, got nan"),
        (["solve", "toy.json", "--time-limit", "0"], "--time-limit: must be a positive number, got 0"),
        (["solve", "toy.json", "--gap", "-1"], "--gap: must be at least 0, got -1"),
        (["solve", "toy.json", "--threads", "0"], "--threads: must be at least 1, got 0"),
        (["solve", "toy.json", "--seed", "-1"], "--seed: must be at least 0, got -1"),
        (["solve", "toy.json", "--memory-limit", "4 elephants"], "--memory-limit: must be a size such as 500MB or 4GiB, got '4 elephants'"),
        (["solve", "toy.json", "--spare", "2"], "--spare: spare_replicas must be 0 or 1, got 2"),
        (["solve", "toy.json", "--method", "magic"], "method 'magic' is unknown for gpu_selection; expected auto or one of branching"),
        (["solve", "-", "--start", "-"], "-: can be given once only"),
        (["solve", "toy.json", "-o", "no/such/plan.json"], "no/such/plan.json: cannot be written: there is no folder 'no/such'"),
        (["solve", "toy.json", "-o", "."], ".: is a folder"),
        (["bound", "toy.json", "--method", "magic"], "bound 'magic' is unknown for gpu_selection; expected all or one of closed_form, lp"),
        (["verify", "toy.json", "nothing.json"], "nothing.json: cannot be read: No such file or directory"),
        (["verify", "toy.json", "toy.json"], "toy.json: schema must be 'headroom/plan/1', got 'headroom/instance/1'"),
        (["generate", "tsp", "--preset", "toy", "--seed", "1"], "FAMILY: must be one of"),
        (["generate", "gpu_selection", "--preset", "x", "--seed", "1"], "--preset: must be one of toy"),
        (["generate", "gpu_selection", "--preset", "toy"], "Missing option '--seed'"),
        (["generate", "gpu_selection", "--preset", "toy", "--seed", "1", "--set", "slices"], "--set: must be FIELD=VALUE, got 'slices'"),
        (["generate", "gpu_selection", "--preset", "toy", "--seed", "1", "--set", "a=1", "--set", "a=2"], "--set: sets 'a' twice"),
        (["generate", "gpu_selection", "--preset", "toy", "--seed", "1", "--set", "colour=red"], "colour"),
        (["export-model", "toy.json", "-o", "model.txt"], "model.txt: must end in .lp or .mps"),
        (["schema", "gpu_selection", "model"], "instance|plan: must be instance or plan, got 'model'"),
    ],
)
def test_bad_usage_is_one_line(arguments: list[str], message: str, toy: Path, tmp_path: Path) -> None:
    assert message in only_error(headroom(*arguments, cwd=tmp_path))


def data_without(name: str) -> dict[str, Any]:
    return TOY | {"data": {key: value for key, value in TOY["data"].items() if key != name}}


def data_with(**changes: Any) -> dict[str, Any]:
    return TOY | {"data": TOY["data"] | changes}


BROKEN: list[tuple[str, bytes, str]] = [
    ("empty", b"", "the text ends too early"),
    ("truncated", json.dumps(TOY).encode()[:-3], "the text ends too early"),
    ("binary", bytes(range(256)), "is not UTF-8"),
    ("a list", b"[]", "expected a JSON object with schema 'headroom/instance/1'"),
    ("NaN", json.dumps(data_with(max_utilisation=math.nan)).encode(), "NaN is not JSON"),
    ("wrong schema", json.dumps(TOY | {"schema": "headroom/plan/1"}).encode(), "schema must be 'headroom/instance/1', got 'headroom/plan/1'"),
    ("wrong family", json.dumps(TOY | {"family": "tsp"}).encode(), "family must be one of gpu_selection"),
    ("duplicate key", b'{"schema": 1, "schema": 2}', "key 'schema' stands twice"),
    ("missing", json.dumps(data_without("gpus")).encode(), "data: gpus is missing"),
    ("unknown", json.dumps(data_with(gpu=1)).encode(), "data: gpu is an unknown field"),
    ("text", json.dumps(data_with(slices="1")).encode(), "data: slices must be a whole number, a list with one for each work item, or null, got '1'"),
    ("negative", json.dumps(data_with(throughput_per_s=[[2, 1, -5, 2], [20, 20, 40, 20]])).encode(), "throughput_per_s[0][2] must be positive"),
    ("line breaks in a name", json.dumps(data_with(gpus=[{"name": "a\nb\x1b[31m"}])).encode(), "gpus[0].price_usd_per_h is missing"),
    ("deep", b"[" * 100_000, "nested too deeply"),
    ("lone surrogate", json.dumps(data_with(colour="\ud800")).encode(), "colour is an unknown field"),
]


@pytest.mark.parametrize(("content", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_file_is_one_line_everywhere(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_bytes(content)
    error = only_error(headroom("solve", "broken.json", "-o", "plan.json", cwd=tmp_path))
    assert error.startswith("broken.json: ")
    assert message in error
    assert error.isprintable()
    assert not (tmp_path / "plan.json").exists()
    assert only_error(headroom("bound", "-", cwd=tmp_path, stdin=content)).startswith("standard input: ")


def test_a_broken_npz_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 not really")
    assert "x.npz: not a readable .npz container" in only_error(headroom("solve", "x.npz", cwd=tmp_path))


# --- solve ----------------------------------------------------------------------------------------------------------------------


def test_solve_prints_a_table_or_one_document(toy: Path, tmp_path: Path) -> None:
    text = headroom("solve", toy, "-o", "plan.json", cwd=tmp_path)
    assert (text.returncode, text.stderr) == (0, "")
    assert re.search(r"^status +optimal$", text.stdout, re.MULTILINE)
    assert re.search(r"^objective +6.7 USD/h$", text.stdout, re.MULTILINE)
    assert "3 x A10G + 1 x A100-80GB" in text.stdout
    done = headroom("solve", toy, "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    document, written = one_document(done.stdout), json.loads((tmp_path / "plan.json").read_text("utf-8"))
    assert document["result"]["objective"] == pytest.approx(TOY_OPTIMUM)
    assert document["result"]["status"] == "optimal"
    for content in (document, written):
        del content["result"]["runtime_s"]
    assert document == written


@pytest.mark.parametrize("method", [*GPU_SELECTION.methods_for(GpuSelection.from_document(TOY)), "auto"])
def test_every_method_from_the_command_line(method: str, toy: Path, tmp_path: Path) -> None:
    options = ("--seed", "3", "--threads", "1", "--deterministic", "--time-limit", "30", "--json")
    done = headroom("solve", toy, "--method", method, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = one_document(done.stdout)
    assert document["result"]["objective"] >= TOY_OPTIMUM - 1e-6
    assert document["provenance"]["seed"] == 3
    assert document["provenance"]["parameters"] == {"deterministic": True, "sensitivity": False, "threads": 1, "time_limit_s": 30.0}


@pytest.mark.parametrize(("preset", "auto", "unit"), [("day-toy", "decomposition", "USD"), ("replicas-toy", "column_generation", "USD/h")])
def test_every_mode_from_generate_to_verify(preset: str, auto: str, unit: str, tmp_path: Path) -> None:
    made = headroom("generate", "gpu_selection", "--preset", preset, "--seed", "1", "-o", "x.npz", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    done = headroom("solve", "x.npz", "--time-limit", "30", "-o", "plan.npz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^method +{auto}( \(HiGHS [0-9.]+\))?$", done.stdout, re.MULTILINE)
    assert re.search(rf"^objective +[0-9.,]+ {unit}$", done.stdout, re.MULTILINE)
    assert "optimal" in done.stdout
    assert headroom("verify", "x.npz", "plan.npz", cwd=tmp_path).returncode == 0
    refused = headroom("solve", "x.npz", "--method", "branching", cwd=tmp_path)
    assert refused.returncode == 2
    assert only_error(refused).startswith("method 'branching' does not handle mode")


def test_infeasible_says_why_and_its_document_verifies(tmp_path: Path) -> None:
    toy = write_toy(tmp_path, throughput_per_s=[[2, 1, None, 2], [20, 20, None, 20]])
    done = headroom("solve", toy, "-o", "plan.json", cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(r"^status +infeasible$", done.stdout, re.MULTILINE)
    assert re.search(r"^infeasible +.*\bc\b", done.stdout, re.MULTILINE)
    document = json.loads((tmp_path / "plan.json").read_text("utf-8"))
    assert document["plan"] is None
    assert document["details"]["infeasibility"]["messages"]
    verified = headroom("verify", toy, "plan.json", cwd=tmp_path)
    assert verified.returncode == 0, verified.stdout
    assert "no plan exists" in verified.stdout


def test_infeasible_by_the_methods_word_does_not_verify(toy: Path, tmp_path: Path) -> None:
    done = headroom("solve", toy, "--method", "infeasible", "-o", "plan.json", cwd=tmp_path, stubs=True)
    assert done.returncode == 1
    assert "work item 'a' needs 6 replicas more than max_count 0 allows" in done.stdout
    assert headroom("verify", toy, "plan.json", cwd=tmp_path).returncode == 1


def test_no_plan_found(toy: Path, tmp_path: Path) -> None:
    done = headroom("solve", toy, "--method", "unlucky", "--json", cwd=tmp_path, stubs=True)
    assert done.returncode == 1
    assert one_document(done.stdout)["result"] | {"runtime_s": 0} == {
        "status": "unknown", "stop": "completed", "objective": None, "bound": None, "gap": None, "proof": None, "bound_method": None,
        "certified_bound": None, "certified_gap": None, "runtime_s": 0,
    }  # fmt: skip


def test_sensitivity_is_printed_when_asked(toy: Path, tmp_path: Path) -> None:
    asked = headroom("solve", toy, "--method", "sensitive", "--sensitivity", cwd=tmp_path, stubs=True)
    assert re.search(r"count +A10G +-0.25 +USD/h per replica +one more A10G allowed", asked.stdout)
    assert "-0.25" not in headroom("solve", toy, "--method", "sensitive", cwd=tmp_path, stubs=True).stdout
    assert "reports none" in headroom("solve", toy, "--method", "greedy", "--sensitivity", cwd=tmp_path).stdout


@pytest.mark.parametrize("name", ["start.json", "start.npz"])
def test_start_improves_a_plan(name: str, toy: Path, tmp_path: Path) -> None:
    assert headroom("solve", toy, "--method", "single_type", "-o", name, cwd=tmp_path).returncode == 0
    # A method that finds nothing itself still returns the plan it was given; an exact one improves it.
    kept = one_document(headroom("solve", toy, "--method", "unlucky", "--start", name, "--json", cwd=tmp_path, stubs=True).stdout)
    better = one_document(headroom("solve", toy, "--start", name, "--json", cwd=tmp_path).stdout)
    assert kept["result"]["objective"] > better["result"]["objective"] + 0.1
    assert kept["provenance"]["parameters"]["start_sha256"] == better["provenance"]["parameters"]["start_sha256"]
    # A plan of another instance may start this one if it fits.
    other = write_toy(tmp_path, "other.json", max_utilisation=0.95)
    assert headroom("solve", other, "--start", name, cwd=tmp_path).returncode == 0
    misfit = write_toy(tmp_path, "misfit.json", work=TOY["data"]["work"][:1], throughput_per_s=[[2], [20]])
    assert "must be a 2 x 1 table" in only_error(headroom("solve", misfit, "--start", name, cwd=tmp_path))


def test_start_that_is_infeasible_is_said(toy: Path, tmp_path: Path) -> None:
    plan = {"count": {"A10G": 1}, "share": [[1, 1, 1, 1], [0, 0, 0, 0]]}
    text = json.dumps({"schema": "headroom/plan/1", "family": "gpu_selection", "plan": plan})
    done = headroom("solve", toy, "--method", "greedy", "--start", "-", cwd=tmp_path, stdin=text)
    assert done.returncode == 0
    assert "start plan is not feasible" in done.stdout


def test_spare_is_recorded_and_verified(toy: Path, tmp_path: Path) -> None:
    done = headroom("solve", toy, "--spare", "1", "-o", "plan.json", "--json", cwd=tmp_path)
    assert done.returncode == 0
    document = one_document(done.stdout)
    assert document["provenance"]["parameters"]["spare_replicas"] == 1
    plain = one_document(headroom("solve", toy, "--json", cwd=tmp_path).stdout)
    assert document["instance"] == plain["instance"]
    assert document["result"]["objective"] > plain["result"]["objective"]
    assert headroom("verify", toy, "plan.json", cwd=tmp_path).returncode == 0
    bound = one_document(headroom("bound", toy, "--spare", "1", "--json", cwd=tmp_path).stdout)
    assert bound["result"]["certified_bound"] <= document["result"]["objective"]
    assert bound["provenance"]["parameters"]["spare_replicas"] == 1


def test_standard_input_and_npz(toy: Path, tmp_path: Path) -> None:
    from_file = one_document(headroom("solve", toy, "--json", cwd=tmp_path).stdout)
    piped = one_document(headroom("solve", "-", "--json", cwd=tmp_path, stdin=toy.read_bytes()).stdout)
    assert piped["instance"] == from_file["instance"]
    generated = ("generate", "gpu_selection", "--preset", "toy", "--seed", "1", "-o")
    for name in ("a.json", "a.npz"):
        assert headroom(*generated, name, cwd=tmp_path).returncode == 0
    first, second = (one_document(headroom("solve", name, "--json", cwd=tmp_path).stdout)["instance"] for name in ("a.json", "a.npz"))
    assert first == second


def test_an_internal_error_asks_for_a_report(toy: Path, tmp_path: Path) -> None:
    done = headroom("solve", toy, "--method", "liar", cwd=tmp_path, stubs=True)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert re.search(r"^headroom: error: internal error, a bug in headroom: ContradictionError: .*report it", done.stderr, re.MULTILINE)
    for arguments in (("--debug", "solve"), ("solve", "--debug")):
        assert "Traceback" in headroom(*arguments, toy, "--method", "liar", cwd=tmp_path, stubs=True).stderr


# --- files and streams ----------------------------------------------------------------------------------------------------------


def test_an_error_leaves_the_old_file_alone(toy: Path, tmp_path: Path) -> None:
    old = tmp_path / "plan.json"
    old.write_text("the plan of yesterday", "utf-8")
    only_error(headroom("solve", toy, "--method", "magic", "-o", "plan.json", cwd=tmp_path))
    assert headroom("solve", toy, "--method", "liar", "-o", "plan.json", cwd=tmp_path, stubs=True).returncode == 3
    only_error(headroom("export", toy, "toy.json", "--to", "csv", "-o", "plan.json", cwd=tmp_path))
    assert old.read_text("utf-8") == "the plan of yesterday"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "toy.json"]


def test_paths_are_relative_to_the_caller(toy: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "some where"
    elsewhere.mkdir()
    assert headroom("solve", "../toy.json", "-o", "plan.json", cwd=elsewhere).returncode == 0
    assert headroom("verify", "../toy.json", "plan.json", cwd=elsewhere).returncode == 0


@pytest.mark.parametrize(
    "arguments", [("families",), ("solve", "toy.json", "--json"), ("generate", "gpu_selection", "--preset", "toy", "--seed", "1")]
)
def test_a_reader_that_goes_away_is_no_error(arguments: tuple[str, ...], toy: Path, tmp_path: Path) -> None:
    process = start(*arguments, cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def test_a_full_disk_is_one_line(toy: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run([str(COMMAND), "families"], stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "standard output: cannot be written: No space left on device" in done.stderr


def test_closed_streams(toy: Path, tmp_path: Path) -> None:
    shell = f"{COMMAND} solve {toy} -o plan.json >&- 2>&-; echo $?"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, env=environment(), check=False)
    assert done.stdout == "0\n"
    assert (tmp_path / "plan.json").exists()


def test_unicode_names_survive(tmp_path: Path) -> None:
    gpus = [{"name": "A10G 🚀", "price_usd_per_h": 1.01}, {"name": "Ä\u200b", "price_usd_per_h": 3.67}]
    toy = write_toy(tmp_path, "ünï.json", gpus=gpus)
    done = headroom("solve", toy, "-o", "plän.json", cwd=tmp_path, LC_ALL="C", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert headroom("verify", toy, "plän.json", cwd=tmp_path).returncode == 0
    assert "A10G 🚀" in (tmp_path / "plän.json").read_text("utf-8")


def test_plans_are_the_same_whatever_the_hash_seed(toy: Path, tmp_path: Path) -> None:
    def plan(seed: str) -> Any:
        return one_document(headroom("solve", toy, "--json", cwd=tmp_path, PYTHONHASHSEED=seed).stdout)["plan"]

    assert plan("1") == plan("2")


def test_bytes_of() -> None:
    from headroom.cli_common import bytes_of
    from headroom.instances.errors import InputError

    read: Callable[[str], int | None] = lambda text: bytes_of(text, "--memory-limit")  # noqa: E731
    assert [read(text) for text in ("1000", "500MB", "4GiB", "1.5 kB", "2g")] == [1000, 500 * 10**6, 2**32, 1500, 2 * 10**9]
    for text in ("", "MB", "-1", "nan", "inf", "1e999", "4 GiBB", "0"):
        with pytest.raises(InputError):
            read(text)
