"""A user's own policies and heuristics: by file, as objects, from installed packages; and what is said when they are none."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import headroom as package
from headroom import own_methods
from headroom.cli_template import TEMPLATES, template_text
from headroom.compare import compare
from headroom.formulations.request_packing import BinPlan, bin_plan
from headroom.instances.errors import InputError
from headroom.instances.request_packing import RequestPacking
from headroom.own_files import OwnCodeError
from headroom.registry import FAMILIES, load
from tests.command import headroom, only_error

SMALLEST = {
    ("request_packing", "bins"): "toy-groups",
    ("request_packing", "makespan"): "toy-makespan",
    ("kv_tiering", ""): "toy",
    ("expert_placement", ""): "toy-trace",
    ("gpu_selection", "pooled"): "toy",
    ("gpu_selection", "per_replica"): "replicas-toy",
    ("gpu_selection", "epochs"): "day-toy",
}
RULES = """
import numpy as np
from headroom.formulations.request_packing import bin_plan
from headroom.formulations.types import Bound, Outcome

print("printed by the file")

def apart(instance, rng):
    "A bin a request."
    print("printed by the rule")
    return bin_plan(np.arange(instance.count))

def together(instance, rng):
    return bin_plan(np.zeros(instance.count, int))

def failing(instance, rng):
    return 1 / 0

def listing(instance, rng):
    return [1, 2]

def short(instance, rng):
    return bin_plan([0])

def boasting(instance, rng):
    return Outcome(plan=bin_plan(np.arange(instance.count)), bounds=(Bound(6.0, "mine", "closed_form"),))

def leaving(instance, rng):
    raise SystemExit("bye")

def narrow(instance):
    return None

def foreign(instance, rng):
    return None
foreign.family = "kv_tiering"

def nowhere(instance, rng):
    return None
nowhere.family = "routing"

value = 3

class Passive:
    pass

class OneSided:
    def __init__(self, deployment): ...
    def decide(self, arrival): return 0

class Overfull:
    def __init__(self, deployment): ...
    def decide(self, arrival, refused): return 0

class Crashing:
    def __init__(self, deployment): ...
    def decide(self, arrival, refused):
        raise KeyError("no such bin")
"""


def line_of(text: str) -> int:
    """The number of the line of RULES that holds the text."""
    return next(number for number, line in enumerate(RULES.splitlines(), start=1) if text in line)


def made(family: str, preset: str) -> Any:
    return load(FAMILIES[family].preset)(preset, np.random.default_rng(0), {})


@pytest.fixture(scope="module")
def bins() -> RequestPacking:
    found: RequestPacking = made("request_packing", "toy")
    return found


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.py"
    path.write_text(RULES, "utf-8")
    return path


# --- templates ------------------------------------------------------------------------------------------------------------------


def test_every_template_is_compared(tmp_path: Path) -> None:
    """Each runs as it is written, in the worker processes, and gets a plan that no closed-form bound contradicts."""
    instances = {key: made(key[0], preset) for key, preset in SMALLEST.items()}
    assert {(family, mode) for family, mode, _ in TEMPLATES} == set(SMALLEST)
    methods = []
    for number, (family, mode, kind) in enumerate(TEMPLATES):
        path = tmp_path / f"own_{number}.py"
        path.write_text(template_text(family, mode, kind), "utf-8")
        methods.append(f"{path}:{'MyPolicy' if kind == 'policy' else 'my_rule'}")
        entry = own_methods.own_method(methods[-1])
        assert entry.families == (family,)
        assert entry.modes == ((mode,) if mode else ())
        assert entry.kind == kind
        assert entry.summary
    frame = compare(list(instances.values()), methods, bounds=[], jobs=2)
    assert sorted(frame["method"]) == sorted(methods)  # each on the instance of its own family and mode, and on no other
    assert not frame["error"].notna().any(), frame["error"].to_list()
    for (family, mode, _), method in zip(TEMPLATES, methods, strict=True):
        row = frame[frame["method"] == method].iloc[0]
        assert row["family"] == family
        instance = instances[family, mode]
        known = FAMILIES[family].bounds_for(instance).items()
        least = max(package.bound(instance, bound)[0].value for bound, entry in known if entry.proof == "closed_form")
        assert least * (1 - 1e-9) <= row["objective"] < np.inf
        assert "sha256" in row["source"]


def test_template_verb_writes_once(tmp_path: Path) -> None:
    done = headroom("template", "kv_tiering", "--kind", "heuristic", "-o", "my_policy.py", cwd=tmp_path)
    assert done.returncode == 0
    assert "--methods ./my_policy.py:my_rule" in done.stderr
    written = (tmp_path / "my_policy.py").read_text("utf-8")
    assert written == template_text("kv_tiering", "", "heuristic")
    assert "exists already" in only_error(headroom("template", "kv_tiering", "-o", "my_policy.py", cwd=tmp_path))
    assert (tmp_path / "my_policy.py").read_text("utf-8") == written
    said = only_error(headroom("template", "request_packing", "--mode", "pooled", cwd=tmp_path))
    assert said == "--mode: must be one of bins, makespan, got 'pooled'"


# --- what is no method ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch", "rules.py: has no 'nosuch'; expected one of apart, together,"),
        ("value", "rules.py:value: is 3; expected a function or a class"),
        ("Passive", "rules.py:Passive: is a class without a method `decide`"),
        ("narrow", "rules.py:narrow: takes (instance); expected (instance, rng) of a heuristic"),
        ("OneSided", "rules.py:OneSided.decide: takes (arrival); expected (arrival, refused) of a policy for request_packing"),
        ("foreign", "rules.py:foreign: is for kv_tiering; got an instance of request_packing bins"),
        ("nowhere", "rules.py:nowhere: family must be one of gpu_selection, "),
        ("failing", f"rules.py:{line_of('1 / 0')}: ZeroDivisionError: division by zero (in failing)"),
        ("Crashing", f"rules.py:{line_of('no such bin')}: KeyError: 'no such bin' (in Crashing)"),
        ("leaving", f"rules.py:{line_of('bye')}: SystemExit: bye (in leaving)"),
        ("listing", "rules.py:listing: returned [1, 2], of type list; expected BinPlan, StagedPlan, an Outcome or None"),
        ("short", "rules.py:short: InputError: plan: bin must have 6 entries"),
        ("Overfull", "rules.py:Overfull: ValueError: the policy breaks a rule at request "),
        ("", "rules.py: must say which of its functions or classes is meant, as "),
    ],
)
def test_one_line_says_what_is_wrong(name: str, message: str, rules: Path, bins: RequestPacking) -> None:
    with pytest.raises(InputError) as caught:
        package.solve(bins, f"{rules}:{name}" if name else str(rules))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path, bins: RequestPacking) -> None:
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n", "utf-8")
    (tmp_path / "stopping.py").write_text("x = 1\nraise RuntimeError('at import')\n", "utf-8")
    (tmp_path / "asking.py").write_text("import rules_beside\n", "utf-8")
    (tmp_path / "rules_beside.py").write_text("", "utf-8")
    for name, message in (
        ("missing.py", "missing.py: cannot be read: No such file or directory"),
        ("broken.py", "broken.py:2: is not Python: invalid syntax"),
        ("stopping.py", "stopping.py:2: RuntimeError: at import"),
        ("asking.py", "asking.py:1: ModuleNotFoundError: No module named 'rules_beside'; the file beside it is imported by "),
    ):
        with pytest.raises(InputError) as caught:
            package.solve(bins, f"{tmp_path / name}:f")
        assert str(caught.value).startswith(f"{tmp_path}{os.sep}{message}")


def test_solve_on_the_command_line(rules: Path, bins: RequestPacking) -> None:
    bins.save(rules.parent / "x.json")
    done = headroom("solve", "x.json", "--method", "./rules.py:apart", "-o", "plan.json", "--json", cwd=rules.parent)
    assert done.returncode == 0
    document = json.loads(done.stdout)  # what the user's code prints is on stderr
    assert "printed by the rule" in done.stderr
    assert document["result"]["objective"] == bins.count
    assert "sha256" in document["details"]["own_method"]
    assert headroom("verify", "x.json", "plan.json", cwd=rules.parent).returncode == 0
    failed = headroom("solve", "x.json", "--method", "./rules.py:failing", "--debug", cwd=rules.parent)
    assert failed.returncode == 2
    assert "return 1 / 0" in failed.stderr
    assert failed.stderr.splitlines()[-1] == f"headroom: error: ./rules.py:{line_of('1 / 0')}: ZeroDivisionError: division by zero (in failing)"


def test_an_infeasible_plan_is_no_plan(rules: Path, bins: RequestPacking) -> None:
    result = package.solve(bins, f"{rules}:together")
    assert result.plan is None
    assert result.objective == np.inf
    assert "infeasible plan, refused: capacity_tokens[bin 0] exceeded by" in result.notes[0]


def test_bounds_of_a_user_count_for_nothing(rules: Path, bins: RequestPacking) -> None:
    """6 bins are not the least for the toy; a claim that they are must not make the plan optimal."""
    result = package.solve(bins, f"{rules}:boasting")
    assert result.bounds == ()
    assert result.status == "feasible"
    assert "its bounds were left out" in result.notes[0]


# --- comparing --------------------------------------------------------------------------------------------------------------------


def test_failures_are_rows_and_an_edited_file_runs_again(tmp_path: Path, bins: RequestPacking) -> None:
    (tmp_path / "width.py").write_text("WIDTH = 1\n", "utf-8")
    text = "import numpy as np\nfrom . import width\nfrom headroom.formulations.request_packing import bin_plan\n"
    text += "def rule(instance, rng):\n    return bin_plan(np.arange(instance.count) // width.WIDTH)\nrule.seeded = False\n"
    text += "def failing(instance, rng):\n    return 1 / 0\ndef together(instance, rng):\n    return bin_plan(np.zeros(instance.count, int))\n"
    path = tmp_path / "mine.py"
    path.write_text(text, "utf-8")
    names = [f"{path}:{name}" for name in ("rule", "failing", "together")]
    ran: list[str] = []

    def table() -> pd.DataFrame:
        ran.clear()
        output = tmp_path / "r.parquet"
        return compare([bins], names, bounds=["volume"], output=output, jobs=1, on_row=lambda done, total, row: ran.append(row["method"]))

    rows = {row["method"]: row for row in table().to_dict("records")}
    rule, failing, together = (rows[name] for name in names)
    assert rule["objective"] == bins.count
    assert rule["source"].endswith("with width.py")
    assert failing["error"] == f"{path}:8: ZeroDivisionError: division by zero (in failing)"
    assert together["objective"] == np.inf
    assert "refused: capacity_tokens" in together["note"]
    assert sorted(ran) == sorted([*names, "volume"])
    table()
    assert ran == [names[1]]  # what failed is tried again, what is done is not
    (tmp_path / "width.py").write_text("WIDTH = 100\n", "utf-8")  # the file beside it is part of what it is
    again = {row["method"]: row for row in table().to_dict("records")}
    assert sorted(ran) == sorted(names)
    assert again[names[0]]["objective"] == np.inf  # all requests in one bin: refused
    assert again[names[0]]["parameters"] != rule["parameters"]


def in_pairs(instance: RequestPacking, rng: np.random.Generator, width: int = 1) -> BinPlan:
    return bin_plan(np.arange(instance.count) // width)


def test_objects_of_this_process(bins: RequestPacking) -> None:
    """A lambda cannot go to another process: it runs in this one, beside methods that do not, and its failure is a row."""

    def inner(instance: RequestPacking, rng: np.random.Generator) -> BinPlan:
        raise RuntimeError("not today")

    frame = compare([bins], [functools.partial(in_pairs, width=1), inner, "ffd"], bounds=[], jobs=1)
    rows = {row["method"]: row for row in frame.to_dict("records")}
    assert set(rows) == {"in_pairs", "inner", "ffd"}
    assert rows["in_pairs"]["objective"] == bins.count
    assert rows["inner"]["error"].endswith("RuntimeError: not today (in inner)")
    assert f"{Path(__file__).name}:" in rows["inner"]["error"]
    assert package.solve(bins, in_pairs).objective == bins.count
    with pytest.raises(InputError, match="is the name of two methods"):
        compare([bins], [in_pairs, functools.partial(in_pairs, width=2)])
    with pytest.raises(InputError, match="method: must be a name, a function or a class, got 3"):
        package.solve(bins, 3)  # type: ignore[arg-type]


def test_a_method_for_no_instance_at_all(rules: Path, bins: RequestPacking) -> None:
    with pytest.raises(InputError, match="foreign: is for kv_tiering, and no instance is"):
        compare([bins], [f"{rules}:foreign"])
    with pytest.raises(OwnCodeError):
        package.solve(bins, f"{rules}:failing")


# --- installed packages -------------------------------------------------------------------------------------------------------------


def test_plug_ins_run_by_default_and_broken_ones_harm_nobody(tmp_path: Path, bins: RequestPacking) -> None:
    information = tmp_path / "site" / "plugged-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n", "utf-8")
    points = ["request_packing.plug_rule = plugged:apart", "request_packing.gone = plugged:nosuch", "request_packing.ffd = plugged:apart"]
    (information / "entry_points.txt").write_text("\n".join(["[headroom.heuristics]", *points, "apart = plugged:apart", ""]), "utf-8")
    (tmp_path / "site" / "plugged.py").write_text(RULES + "apart.modes = ('bins',)\napart.seeded = False\n", "utf-8")
    bins.save(tmp_path / "x.json")
    path = os.pathsep.join(filter(None, (str(tmp_path / "site"), os.environ.get("PYTHONPATH"))))
    known = headroom("families", "--json", cwd=tmp_path, PYTHONPATH=path)
    assert known.returncode == 0
    (family,) = (family for family in json.loads(known.stdout)["families"] if family["name"] == "request_packing")
    methods = {method["name"]: method for method in family["methods"]}
    assert methods["plug_rule"]["package"] == "plugged 1.0"
    assert methods["plug_rule"]["modes"] == ["bins"]
    assert "gone" not in methods
    notes = [line for line in known.stderr.splitlines() if line.startswith("headroom: plug-in")]
    assert len(notes) == 3  # gone, ffd twice, and one whose name says no family
    assert any("request_packing.gone of plugged 1.0 is left out: AttributeError" in line for line in notes)
    compared = headroom("compare", "x.json", "--methods", "plug_rule,ffd", "--bounds", "none", "--json", cwd=tmp_path, PYTHONPATH=path)
    assert compared.returncode == 0
    rows = {row["method"]: row for row in json.loads(compared.stdout)["rows"]}
    assert rows["plug_rule"]["objective"] == bins.count
    assert rows["plug_rule"]["source"].startswith("plugged 1.0 plugged.py sha256 ")
    assert rows["ffd"]["source"] is None
