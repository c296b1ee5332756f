"""Forged documents: `verify` believes no field that it can recompute, and no certificate that it cannot."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headroom.bounds import gpu_selection as rechecks
from headroom.bounds.certificates import CertificateError
from headroom.cli_verify import report_text
from headroom.documents import result_document, save_document
from headroom.formulations.types import Bound
from headroom.instances.errors import InputError
from headroom.instances.files import to_json
from headroom.instances.gpu_selection import GpuSelection
from headroom.run import Result, run
from headroom.verify import Report, verify
from tests.gpu_selection_cases import TOY

Document = dict[str, Any]
SPARE = "provenance.parameters.spare_replicas"


@pytest.fixture(scope="module")
def toy() -> GpuSelection:
    return GpuSelection(**TOY, slices=1)


@pytest.fixture(scope="module")
def solved(toy: GpuSelection) -> Result:
    """Optimal, by a branch tree that is a certificate."""
    found = run(toy, "branching")
    assert (found.status, found.objective, found.certified_bound) == ("optimal", pytest.approx(6.7), pytest.approx(6.7, rel=1e-6))
    return found


@pytest.fixture
def document(solved: Result) -> Document:
    return copy.deepcopy(result_document(solved))


@pytest.fixture(scope="module")
def unserved(toy: GpuSelection) -> GpuSelection:
    return toy.replace(throughput_per_s=[[2, 1, None, 2], [20, 20, None, 20]])


def refused(report: Report) -> bool:
    return not report.verified and all(item.state == "refused" for item in report.bounds if item.recorded is not None)


def best_of(document: Document) -> int:
    return max(range(len(document["bounds"])), key=lambda i: document["bounds"][i]["value"])


# --- overrides ----------------------------------------------------------------------------------------------------------------


def test_an_honest_document_verifies_as_dict_and_as_file(toy: GpuSelection, document: Document, tmp_path: Path) -> None:
    assert verify(toy, document).problems == ()
    save_document(document, tmp_path / "plan.json")
    assert verify(toy, tmp_path / "plan.json").problems == ()
    assert verify(toy, json.loads(to_json(document))).notes == ()


def test_an_override_may_not_weaken_the_instance(toy: GpuSelection, document: Document) -> None:
    harder = toy.replace(spare_replicas=1)
    document["instance"]["sha256"] = harder.digest()
    assert not verify(harder, document).verified
    document["provenance"]["parameters"]["spare_replicas"] = 0
    report = verify(harder, document)
    assert any(f"{SPARE} is recorded as 0, which asks for less than the instance's own 1" in found for found in report.problems)
    assert any("share_after_loss" in found for found in report.problems)
    assert report.instance == harder
    assert report.status == "unknown"


def test_an_override_that_strengthens_is_said(toy: GpuSelection) -> None:
    spared = run(toy.replace(spare_replicas=1), "branching")
    report = verify(toy, result_document(spared, toy, {"spare_replicas": 1}))
    assert report.problems == ()
    assert report.notes == ("with spare_replicas = 1",)
    assert "with spare_replicas = 1" in report_text(report)
    written = json.loads(to_json(report.document()))
    assert written["notes"] == ["with spare_replicas = 1"]
    assert written["provenance"] == {"parameters": {"spare_replicas": 1}}
    assert written["instance"]["sha256"] == toy.digest()
    same = verify(spared.instance, result_document(spared, spared.instance, {"spare_replicas": 1}))
    assert (same.problems, same.notes) == ((), ())


@pytest.mark.parametrize("value", [True, "1", 7, 0.5, [1]])
def test_an_override_that_the_instance_cannot_take_is_bad_input(value: Any, toy: GpuSelection, document: Document) -> None:
    document["provenance"]["parameters"]["spare_replicas"] = value
    with pytest.raises(InputError, match=r"provenance\.parameters.*spare_replicas"):
        verify(toy, document)


# --- recorded fields ------------------------------------------------------------------------------------------------------------


def change(*path: Any) -> Callable[[Document], None]:
    *inner, last, value = path

    def apply(document: Document) -> None:
        target: Any = document
        for key in inner:
            target = target[key]
        target[last] = value

    return apply


FALSE: list[tuple[Callable[[Document], None], str]] = [
    (change("result", "objective", 6.7000001), "result.objective is recorded as 6.7000001; recomputed: 6.7"),
    (change("result", "objective", None), "result.objective is recorded as null; recomputed: 6.7"),
    (change("result", "bound", 6.6), "result.bound is recorded as 6.6; recomputed: 6.69"),
    (change("result", "bound", 6.8), "result.bound is recorded as 6.8; recomputed: 6.69"),
    (change("result", "bound", None), "result.bound is recorded as null; recomputed: 6.69"),
    (change("result", "gap", 0.1), "result.gap is recorded as 0.1; recomputed: "),
    (change("result", "gap", -0.1), "result.gap is recorded as -0.1; recomputed: "),
    (change("result", "gap", None), "result.gap is recorded as null; recomputed: "),
    (change("result", "certified_bound", 6.0), "result.certified_bound is recorded as 6.0; recomputed: 6.69"),
    (change("result", "certified_gap", 0.5), "result.certified_gap is recorded as 0.5; recomputed: "),
    (change("result", "status", "feasible"), "result.status is recorded as 'feasible'; recomputed: 'optimal'"),
    (change("result", "status", "unknown"), "result.status is recorded as 'unknown'; recomputed: 'optimal'"),
    (change("result", "status", "infeasible"), "result.status is recorded as 'infeasible', yet there is a plan"),
    (change("result", "status", "OPTIMAL"), "result.status is recorded as 'OPTIMAL'; expected one of optimal, feasible, infeasible, unknown"),
    (change("result", "stop", "bored"), "result.stop is recorded as 'bored'; expected one of completed,"),
    (change("result", "proof", "solver"), "result.proof is recorded as 'solver'; recomputed: 'certificate'"),
    (change("result", "proof", None), "result.proof is recorded as null; recomputed: 'certificate'"),
    (change("result", "bound_method", "magic"), "result.bound_method is recorded as 'magic'; recomputed: "),
    (change("evaluation", "objective", None), "evaluation.objective is recorded as null; recomputed: 6.7"),
    (change("evaluation", "parts", "A10G", None), "evaluation.parts.A10G is recorded as null; recomputed: 3.03"),
    (change("evaluation", "parts", {"A10G": 3.03}), "evaluation.parts has no A100-80GB; recomputed: 3.67"),
    (
        change("evaluation", "violations", [{"constraint": "cover", "index": "b0", "amount": 1.0, "limit": 1.0}]),
        "evaluation.violations is recorded as cover[b0] exceeded by 1 (limit 1); recomputed: none",
    ),
]


@pytest.mark.parametrize(("forge", "problem"), FALSE, ids=[case[1][:60] for case in FALSE])
def test_recorded_fields_must_agree(forge: Callable[[Document], None], problem: str, toy: GpuSelection, document: Document) -> None:
    forge(document)
    report = verify(toy, document)
    assert any(found.startswith(problem) for found in report.problems), report.problems
    assert len(report.problems) == 1


def test_missing_fields_claim_nothing(toy: GpuSelection, document: Document) -> None:
    for section in ("result", "evaluation"):
        for name in list(document[section]):
            less = copy.deepcopy(document)
            del less[section][name]
            assert verify(toy, less).problems == (), name
    del document["result"], document["evaluation"], document["provenance"]
    assert verify(toy, document).problems == ()


def test_results_without_their_bounds_are_not_believed(toy: GpuSelection, document: Document) -> None:
    document["bounds"] = []
    named = {found.split()[0] for found in verify(toy, document).problems}
    assert named == {f"result.{name}" for name in ("bound", "gap", "certified_bound", "certified_gap", "status", "proof")}


def test_violations_of_an_infeasible_plan_are_compared_too(toy: GpuSelection, document: Document) -> None:
    document["plan"]["count"]["A10G"] = 2
    for section in ("result", "bounds"):
        del document[section]
    document["evaluation"] = {"violations": []}
    found = verify(toy, document).problems
    assert [text.split()[0] for text in found] == ["violated:", "evaluation.violations"]
    document["evaluation"] = {"violations": [{"constraint": "capacity", "index": "A10G", "amount": 1.0, "limit": 2.0}]}
    assert [text.split()[0] for text in verify(toy, document).problems] == ["violated:"]


def test_no_plan_has_no_objective_and_no_status_but_two(toy: GpuSelection, unserved: GpuSelection, document: Document) -> None:
    nothing = copy.deepcopy(result_document(run(unserved, "branching")))
    assert nothing["result"]["bound"] is None
    assert nothing["bounds"][0] | {"certificate": None} == nothing["bounds"][0] | {"value": None, "infeasible": True, "certificate": None}
    assert verify(unserved, nothing).problems == ()
    assert verify(unserved, nothing).status == "infeasible"
    false = copy.deepcopy(nothing)
    false["result"] |= {"objective": 3.0, "gap": 0.0, "status": "optimal"}
    assert {found.split()[0] for found in verify(unserved, false).problems} == {"result.objective", "result.gap", "result.status"}
    # The same proof says nothing of an instance that can be served.
    nothing["instance"]["sha256"] = toy.digest()
    report = verify(toy, nothing)
    assert refused(report)
    assert report.status == "unknown"
    # A plan and the proof that there is none.
    document["bounds"].append({"method": "rumour", "proof": "solver", "value": None, "infeasible": True})
    assert any("bound rumour is no plan exists, above the objective" in found for found in verify(toy, document).problems)


# --- numbers that are none ------------------------------------------------------------------------------------------------------


NUMBERS: list[tuple[Any, ...]] = [
    ("result", "objective"),
    ("result", "gap"),
    ("result", "runtime_s"),
    ("evaluation", "objective"),
    ("evaluation", "parts", "A10G"),
    ("bounds", 0, "value"),
    ("plan", "count", "A10G"),
]
ANYWHERE: list[tuple[Any, ...]] = [("provenance", "seed"), ("provenance", "parameters", "x"), ("bounds", 2, "certificate", "prune_at")]


NO_NUMBERS = [math.nan, math.inf, -math.inf, 10**400, -(10**5000), np.float64("nan"), np.float32("inf")]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("path", NUMBERS + ANYWHERE, ids=str)
def test_a_number_that_is_none_is_bad_input(path: tuple[Any, ...], value: Any, toy: GpuSelection, document: Document) -> None:
    change(*path, value)(document)
    with pytest.raises(InputError, match="must be a finite number or null") as caught:
        verify(toy, document)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [True, False, np.True_, "1", [1.0], 1j, {1}], ids=str)
@pytest.mark.parametrize("path", NUMBERS, ids=str)
def test_only_numbers_are_numbers(path: tuple[Any, ...], value: Any, toy: GpuSelection, document: Document) -> None:
    change(*path, value)(document)
    with pytest.raises(InputError, match="must be"):
        verify(toy, document)


OTHERS: list[tuple[Callable[[Document], None], str]] = [
    (change("plan", "share", [[math.nan] * 4] * 2), r"plan.share\[0\]\[0\] must be a finite"),
    (change("plan", "share", np.full((2, 4), np.inf)), "plan.share must be an array of finite numbers"),
    (change("plan", "share", np.array([[None]])), "plan.share must be of a JSON type"),
    (change("plan", "self", 1), "plan: self is an unknown field"),
    (change("bounds", 2, "certificate", "pool_price", [1.0, True]), r"bounds\[2\].certificate.pool_price must hold numbers or booleans"),
    (change("bounds", 0, "infeasible", 1), r"bounds\[0\].infeasible must be true or false, got 1"),
    (change("bounds", 0, "infeasible", True), r"bounds\[0\].value must be null where infeasible is true"),
    (change("evaluation", "violations", {}), "evaluation.violations must be a list"),
    (change("evaluation", "violations", [3]), r"evaluation.violations\[0\] must be an object"),
    (change("evaluation", "violations", [{"amount": "1"}]), r"evaluation.violations\[0\].amount must be a number"),
    (change("provenance", 3, 4), "provenance must have strings as keys, got one of type int"),
]


@pytest.mark.parametrize(("forge", "message"), OTHERS, ids=[case[1] for case in OTHERS])
def test_what_is_no_document_is_bad_input(forge: Callable[[Document], None], message: str, toy: GpuSelection, document: Document) -> None:
    forge(document)
    with pytest.raises(InputError, match=message) as caught:
        verify(toy, document)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("plan", [None, 3, [], math.nan])
def test_what_is_no_object_is_bad_input(plan: Any, toy: GpuSelection) -> None:
    with pytest.raises(InputError, match=r"must be a finite number|expected a JSON object"):
        verify(toy, plan)


def test_a_document_inside_itself_is_bad_input(toy: GpuSelection, document: Document) -> None:
    document["details"] = document
    with pytest.raises(InputError, match="nested too deeply"):
        verify(toy, document)


def test_a_plan_too_large_to_evaluate_is_a_problem(toy: GpuSelection) -> None:
    plan = {"count": {"A10G": 1}, "share": [[1e308] * 4] * 2}
    report = verify(toy, {"schema": "headroom/plan/1", "family": "gpu_selection", "plan": plan})
    assert not report.verified
    to_json(report.document())


# --- rechecks -------------------------------------------------------------------------------------------------------------------


def test_a_value_may_not_exceed_what_its_certificate_proves(toy: GpuSelection, document: Document) -> None:
    best = document["bounds"][best_of(document)]
    honest = best["value"]
    for factor, passes in ((1 + 1e-10, True), (1 + 3e-9, False), (1 + 1e-6, False), (2.0, False)):
        best["value"] = honest * factor
        del document["result"]
        report = verify(toy, document)
        assert any("recorded as" in found and "proves only" in found for found in report.problems) is not passes
        document["result"] = {}


ANSWERS: list[tuple[Any, str]] = [
    (math.nan, "comes out as no number"),
    (-math.inf, "proves only nothing"),
    (CertificateError("certificate has no 'x'"), "certificate has no 'x'"),
    (OverflowError("too large"), "too large"),
    (ZeroDivisionError("by zero"), "by zero"),
    (FloatingPointError("floating"), "floating"),
    (ValueError("shape\nmismatch"), "shape mismatch"),
    (IndexError("no such node"), "no such node"),
    (TypeError(), "TypeError"),
]


@pytest.mark.parametrize(("answer", "reason"), ANSWERS, ids=[case[1] for case in ANSWERS])
def test_a_recheck_that_fails_refuses_the_bound(
    answer: Any, reason: str, toy: GpuSelection, document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recheck(instance: GpuSelection, bound: Bound) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.array([1e308]) * 10 / np.array([0.0])  # numpy's complaints are off
        if bound.method == "closed_form" and bound.value == -math.inf:
            return 4.0  # what verify computes by itself
        if isinstance(answer, Exception):
            raise answer
        return float(answer)

    monkeypatch.setattr(rechecks, "recheck", recheck)
    report = verify(toy, document)
    assert refused(report)
    assert any(reason in found for found in report.problems), report.problems
    assert (report.status, report.certified_bound) == ("feasible", 4.0)
    to_json(report.document())
    assert "NOT verified" in report_text(report)


def test_a_bound_that_claims_nothing_need_not_prove_anything(toy: GpuSelection, document: Document) -> None:
    worthless = {"kind": "prices", "capacity_price": [[1e90, 1e90]], "pool_price": [], "with_cost": False}
    document["bounds"].append({"method": "lp", "proof": "certificate", "value": None, "certificate": worthless})
    assert verify(toy, document).problems == ()
    document["bounds"][-1]["infeasible"] = True
    assert any("bound lp: recorded as no plan exists, its certificate proves only nothing" in found for found in verify(toy, document).problems)


@pytest.mark.parametrize("prices", [1e150, 1e300, 1.7e308, -1.7e308])
@pytest.mark.parametrize("with_cost", [0, 1])
@pytest.mark.parametrize("prune_at", [6.7, None])
def test_prices_that_overflow_prove_nothing(prices: float, with_cost: int, prune_at: float | None, toy: GpuSelection, document: Document) -> None:
    tree = {"kind": "branch_tree", "prune_at": prune_at, "capacity_price": [[[prices, abs(prices)]]], "pool_price": [[]]}
    document["bounds"] = [document["bounds"][best_of(document)] | {"certificate": tree | {"with_cost": [with_cost], "split": [[0] * 5]}}]
    assert refused(verify(toy, document))
    forged = {"plan": None, "bounds": [document["bounds"][0] | {"value": None, "infeasible": True}]}
    report = verify(toy, {"schema": "headroom/plan/1", "family": "gpu_selection"} | forged)
    assert refused(report)
    assert report.status == "unknown"


# --- who says so ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("certificate", [None, {}, {"kind": "solver"}, {"kind": "prices"}], ids=str)
@pytest.mark.parametrize("proof", ["certificate", "closed_form"])
def test_a_solvers_word_is_no_proof_by_another_name(proof: str, certificate: Any, toy: GpuSelection, solved: Result) -> None:
    worded = dataclasses.replace(solved, bounds=(Bound(solved.objective, "HiGHS", "solver"),))
    document = result_document(worded)
    assert verify(toy, document).problems == ()
    assert verify(toy, document).status == "feasible"
    document["bounds"][0] |= {"proof": proof, "certificate": certificate}
    document["result"] |= {"proof": proof, "certified_bound": solved.objective, "certified_gap": 0.0}
    report = verify(toy, document)
    assert refused(report)
    assert any(found.startswith("bound HiGHS: ") for found in report.problems)
    assert any(found.startswith("result.certified_bound") for found in report.problems)


def test_infeasibility_by_an_empty_certificate_is_refused(unserved: GpuSelection) -> None:
    bound = {"method": "x", "proof": "certificate", "value": None, "infeasible": True, "certificate": {}}
    assert refused(verify(unserved, {"schema": "headroom/plan/1", "family": "gpu_selection", "plan": None, "bounds": [bound]}))


def test_a_certified_bound_called_a_solvers_is_not_rechecked(toy: GpuSelection, solved: Result) -> None:
    relabelled = tuple(dataclasses.replace(bound, proof="solver") for bound in solved.bounds)
    report = verify(toy, result_document(dataclasses.replace(solved, bounds=relabelled)))
    assert report.problems == ()
    assert {item.state for item in report.bounds} == {"not rechecked", "computed"}
    assert report.status == "feasible"


# --- which instance -------------------------------------------------------------------------------------------------------------


def test_a_document_that_names_no_instance_is_noted(toy: GpuSelection, solved: Result, document: Document) -> None:
    del document["instance"]["sha256"]
    report = verify(toy, document)
    assert report.verified
    assert report.notes == ("the document does not say which instance it is for",)
    assert "the document does not say which instance it is for" in report_text(report)
    assert report.document()["notes"] == list(report.notes)
    # A plan that is no document says nothing either way.
    assert solved.plan is not None
    assert verify(toy, solved.plan).notes == ()
