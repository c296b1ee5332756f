"""Plan documents: what is written is read back, what is broken is refused in one line, and `verify` believes nothing."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headroom
from headroom.documents import load_document, read_document, result_document, save_document
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.errors import InputError
from headroom.instances.files import read_json
from headroom.instances.gpu_selection import GpuSelection
from headroom.registry import GPU_SELECTION
from headroom.run import Result, run
from headroom.verify import Report, verify
from tests.command import TOY, TOY_OPTIMUM

Document = dict[str, Any]


@pytest.fixture(scope="module")
def toy() -> GpuSelection:
    return GpuSelection.from_document(TOY)


@pytest.fixture(scope="module")
def result(toy: GpuSelection) -> Result:
    """The optimal plan with every registered bound beside it."""
    found = run(toy, "greedy")
    assert found.objective == pytest.approx(TOY_OPTIMUM)
    bounds = tuple(entry.load()(toy, SolveParams(), Progress(SolveParams())) for entry in GPU_SELECTION.bounds_for(toy).values())
    return dataclasses.replace(found, bounds=(*bounds, Bound(6.7, "some solver", "solver")), status="optimal")


@pytest.fixture
def document(result: Result, tmp_path: Path) -> Document:
    """The result as a reader of the .json file sees it."""
    save_document(result_document(result), tmp_path / "plan.json")
    content: Document = read_json(tmp_path / "plan.json")
    return content


# --- writing and reading ------------------------------------------------------------------------------------------------------


def test_fields_are_the_contract(document: Document) -> None:
    assert set(document) == {"schema", "family", "instance", "plan", "evaluation", "result", "bounds", "provenance"}
    assert document["schema"] == "headroom/plan/1"
    assert set(document["instance"]) == {"name", "sha256"}
    assert set(document["evaluation"]) == {"objective", "parts", "violations"}
    fields = {"status", "stop", "objective", "bound", "gap", "proof", "bound_method", "certified_bound", "certified_gap", "runtime_s"}
    assert set(document["result"]) == fields
    assert set(document["provenance"]) == {"headroom", "method", "parameters", "seed", "solver"}
    assert list(document) == sorted(document)


@pytest.mark.parametrize("name", ["plan.json", "plan.npz"])
def test_round_trip(name: str, result: Result, toy: GpuSelection, tmp_path: Path) -> None:
    save_document(result_document(result), tmp_path / name)
    read = load_document(tmp_path / name)
    assert result.plan is not None
    assert read.plan is not None
    assert read.plan.document() == result.plan.document()
    assert read.instance_sha256 == toy.digest()
    assert read.objective == result.objective
    assert [(bound.method, bound.value, bound.proof) for bound in read.bounds] == [(b.method, b.value, b.proof) for b in result.bounds]
    assert verify(toy, read).verified


def test_npz_keeps_arrays_as_arrays(result: Result, tmp_path: Path) -> None:
    save_document(result_document(result), tmp_path / "plan.npz")
    with np.load(tmp_path / "plan.npz", allow_pickle=False) as content:
        assert any(name.endswith(":share") for name in content.files)
        assert any(name.endswith(":capacity_price") for name in content.files)


def test_infinities_are_null_and_come_back(toy: GpuSelection, result: Result, tmp_path: Path) -> None:
    proof = Bound(math.inf, "some solver", "solver")
    nothing = dataclasses.replace(result, plan=None, evaluation=None, bounds=(proof,), status="infeasible")
    save_document(result_document(nothing), tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text("utf-8")
    assert "Infinity" not in text
    assert json.loads(text)["result"]["objective"] is None
    assert load_document(tmp_path / "plan.json").bounds[0].value == math.inf


def test_minimal_document(toy: GpuSelection) -> None:
    share = [[0, 0, 1, 0], [1, 1, 0, 1]]
    plan = {"count": {"A10G": 3, "A100-80GB": 1}, "share": share}
    report = verify(toy, {"schema": "headroom/plan/1", "family": "gpu_selection", "plan": plan})
    assert report.verified
    assert report.objective == pytest.approx(TOY_OPTIMUM)
    # No bound came with it: the closed form says how far it is from the best conceivable.
    assert report.certified_bound == pytest.approx(4.12875)
    assert report.certified_gap == pytest.approx(1 - 4.12875 / 6.70)


def test_overridden_fields_are_recorded_and_applied(toy: GpuSelection) -> None:
    spared = run(toy.replace(spare_replicas=1), "greedy")
    content = result_document(spared, toy, {"spare_replicas": 1})
    assert content["instance"]["sha256"] == toy.digest()
    report = verify(toy, read_document(content))
    assert report.verified
    assert report.instance.document()["data"]["spare_replicas"] == 1
    # A plan that cannot lose a replica does not pass for one that can.
    plain = result_document(run(toy, "greedy")) | {"provenance": {"parameters": {"spare_replicas": 1}}}
    assert any("share_after_loss" in problem for problem in verify(toy, read_document(plain)).problems)


BROKEN: list[tuple[str, Callable[[Document], Any], str]] = [
    ("not an object", lambda d: [d], "expected a JSON object"),
    ("schema", lambda d: d | {"schema": "headroom/instance/1"}, "schema must be 'headroom/plan/1', got 'headroom/instance/1'"),
    ("no schema", lambda d: {k: v for k, v in d.items() if k != "schema"}, "schema must be"),
    ("unknown field", lambda d: d | {"instanse": {}}, "'instanse' is an unknown field"),
    ("family", lambda d: d | {"family": "tsp"}, "family must be one of"),
    ("family list", lambda d: d | {"family": ["gpu_selection"]}, "family must be one of"),
    ("no plan", lambda d: {k: v for k, v in d.items() if k != "plan"}, "plan is missing"),
    ("plan type", lambda d: d | {"plan": 3}, "plan must be an object or null, got 3"),
    ("plan field", lambda d: d | {"plan": d["plan"] | {"cuont": {}}}, "plan: cuont is an unknown field"),
    ("count", lambda d: d | {"plan": d["plan"] | {"count": {"A10G": -1}}}, "plan: count.A10G must be"),
    ("count fraction", lambda d: d | {"plan": d["plan"] | {"count": {"A10G": 1.5}}}, "plan: count.A10G must be"),
    ("share text", lambda d: d | {"plan": d["plan"] | {"share": [["1"]]}}, "share must be"),
    ("instance", lambda d: d | {"instance": "toy"}, "instance must be an object"),
    ("digest", lambda d: d | {"instance": {"sha256": 7}}, "instance.sha256 must be a string"),
    ("objective", lambda d: d | {"evaluation": {"objective": "6.7"}}, "evaluation.objective must be a number or null, got '6.7'"),
    ("part", lambda d: d | {"evaluation": {"parts": {"x": True}}}, "evaluation.parts.x must be a number or null"),
    ("bounds", lambda d: d | {"bounds": {}}, "bounds must be a list"),
    ("proof", lambda d: d | {"bounds": [{"value": 1, "proof": "trust me"}]}, "bounds[0].proof must be one of certificate, closed_form, solver"),
    ("bound value", lambda d: d | {"bounds": [{"value": "1", "proof": "solver"}]}, "bounds[0].value must be a number or null"),
    ("certificate", lambda d: d | {"bounds": [{"value": 1, "proof": "certificate", "certificate": [1]}]}, "bounds[0].certificate must be an object"),
    ("parameters", lambda d: d | {"provenance": {"parameters": 1}}, "provenance.parameters must be an object"),
    ("status", lambda d: d | {"result": {"status": 1}}, "result.status must be a string"),
    ("huge", lambda d: d | {"result": {"objective": 10**400}}, "result.objective must be a finite number or null"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_broken_documents_are_refused(change: Callable[[Document], Any], message: str, document: Document, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_document(change(document), "p.json")
    assert str(caught.value).startswith("p.json: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_npz_with_a_missing_array(result: Result, tmp_path: Path) -> None:
    save_document(result_document(result), tmp_path / "plan.npz")
    with np.load(tmp_path / "plan.npz") as content:
        kept = {name: content[name] for name in content.files if not name.endswith(":share")}
    with (tmp_path / "less.npz").open("wb") as file:
        np.savez(file, **kept)
    with pytest.raises(InputError, match="is missing; expected a member"):
        load_document(tmp_path / "less.npz")


# --- verify -------------------------------------------------------------------------------------------------------------------


def tampered(toy: GpuSelection, document: Document, change: Callable[[Document], object]) -> Report:
    content = copy.deepcopy(document)
    change(content)
    return verify(toy, read_document(content))


def set_in(*path: Any) -> Callable[[Document], object]:
    *inner, last, value = path

    def change(document: Document) -> None:
        target: Any = document
        for key in inner:
            target = target[key]
        target[last] = value

    return change


TAMPERED: list[tuple[str, Callable[[Document], object], str]] = [
    ("objective", set_in("evaluation", "objective", 5.0), "evaluation.objective is recorded as 5.0"),
    ("result objective", set_in("result", "objective", 6.6999), "result.objective is recorded as 6.6999"),
    ("part", set_in("evaluation", "parts", "A10G", 2.0), "evaluation.parts.A10G is recorded as 2.0"),
    ("invented part", set_in("evaluation", "parts", "H100", 2.0), "evaluation.parts.H100 is recorded as 2.0"),
    ("fleet too small", set_in("plan", "count", "A10G", 2), "violated: capacity[A10G] exceeded by 1"),
    ("nobody serves", set_in("plan", "share", [[0, 0, 0, 0], [1, 1, 0, 1]]), "violated: cover[c]"),
    ("closed form raised", set_in("bounds", 0, "value", 4.2), "bound closed_form: recorded as 4.2, its closed form proves only 4.12"),
    ("closed form slightly raised", set_in("bounds", 0, "value", 4.12875003), "bound closed_form: recorded as 4.12875003"),
    ("certificate raised", set_in("bounds", 1, "value", 6.7), "bound lp: recorded as 6.7"),
    ("certificate gone", set_in("bounds", 1, "certificate", None), "bound lp: "),
    ("certificate of another shape", set_in("bounds", 1, "certificate", "capacity_price", [1.0]), "bound lp: certificate.capacity_price must"),
    ("certified bound", set_in("result", "certified_bound", 6.7), "result.certified_bound is recorded as 6.7"),
    ("bound", set_in("result", "bound", 6.9), "result.bound is recorded as 6.9"),
    ("solver above the plan", set_in("bounds", 2, "value", 7.0), "bound some solver is 7.0, above the objective 6.7"),
    ("infeasible", set_in("result", "status", "infeasible"), "result.status is recorded as 'infeasible', yet there is a plan"),
    ("other instance", set_in("instance", "sha256", "0" * 64), "the plan was made for another instance"),
]


@pytest.mark.parametrize(("change", "problem"), [case[1:] for case in TAMPERED], ids=[case[0] for case in TAMPERED])
def test_false_claims_are_found(change: Callable[[Document], object], problem: str, toy: GpuSelection, document: Document) -> None:
    assert verify(toy, read_document(document)).problems == ()
    report = tampered(toy, document, change)
    assert not report.verified
    assert any(problem in found for found in report.problems), report.problems


def test_a_weaker_claim_is_no_false_claim(toy: GpuSelection, document: Document) -> None:
    assert tampered(toy, document, set_in("bounds", 0, "value", 4.0)).verified


def test_optimal_needs_a_bound_that_says_so(toy: GpuSelection, document: Document) -> None:
    assert verify(toy, document).verified  # by the solver's word, shown as not rechecked
    del document["bounds"][2]
    assert any("the bounds leave a gap" in found for found in verify(toy, document).problems)


def test_solver_bounds_prove_nothing_here(toy: GpuSelection, document: Document) -> None:
    report = verify(toy, read_document(document))
    assert [item.state for item in report.bounds] == ["rechecked", "rechecked", "not rechecked"]
    assert report.document()["result"]["bound"] == pytest.approx(6.7)
    assert report.certified_bound == pytest.approx(4.12875)
    assert report.status == "feasible"


def test_infeasibility_is_rechecked(toy: GpuSelection, result: Result) -> None:
    unserved = toy.replace(throughput_per_s=[[2, 1, None, 2], [20, 20, None, 20]])
    bound = GPU_SELECTION.bounds["closed_form"].load()(unserved, SolveParams(), Progress(SolveParams()))
    proved = dataclasses.replace(result, instance=unserved, plan=None, evaluation=None, bounds=(bound,), status="infeasible")
    report = verify(unserved, proved)
    assert (report.verified, report.status) == (True, "infeasible")
    # The same document against an instance that has plans: the closed form is finite there.
    assert any("proves only 4.1" in problem for problem in verify(toy, result_document(proved)).problems)
    # A solver's word alone is not a proof, and the closed form that verify computes itself may well be one.
    worded = dataclasses.replace(proved, instance=toy, bounds=(Bound(math.inf, "some solver", "solver"),))
    assert verify(toy, worded).problems == ("infeasibility is not proved by anything that can be rechecked",)


def test_a_bare_plan_that_does_not_fit_is_bad_input(toy: GpuSelection) -> None:
    with pytest.raises(InputError, match="expected one of"):
        verify(toy, {"schema": "headroom/plan/1", "family": "gpu_selection", "plan": {"count": {"H100": 1}, "share": [[1]]}})


def test_verify_loads_no_solver(result: Result, tmp_path: Path) -> None:
    save_document(result_document(result), tmp_path / "plan.json")
    result.instance.save(tmp_path / "toy.json")
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("highspy", "ortools", "pyomo", "scipy", "numba", "pandas"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import headroom
report = headroom.verify("toy.json", "plan.json")
assert report.verified, report.problems
assert [item.state for item in report.bounds] == ["rechecked", "rechecked", "not rechecked"]
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- the public names -----------------------------------------------------------------------------------------------------------


def test_public_functions(toy: GpuSelection, tmp_path: Path) -> None:
    toy.save(tmp_path / "toy.json")
    assert headroom.load(tmp_path / "toy.json") == toy
    solved = headroom.solve(tmp_path / "toy.json", "single_type", seed=3)
    assert isinstance(solved, headroom.Result)
    assert headroom.verify(toy, solved).verified
    assert headroom.bound(toy)[0].value == pytest.approx(4.12875)
    with pytest.raises(headroom.InputError, match="method 'nope' is unknown"):
        headroom.solve(toy, "nope")
    with pytest.raises(headroom.InputError, match="family"):
        headroom.load(tmp_path / "toy.json").from_document({"schema": "headroom/instance/1", "family": "x", "data": {}})


def test_functions_are_not_shadowed_by_their_modules() -> None:
    code = "import headroom.run, headroom.compare, headroom.verify, headroom as h; print(callable(h.run), callable(h.compare), callable(h.verify))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 3
