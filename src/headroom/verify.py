"""`verify`: evaluate a plan again and recheck every bound, from the instance and the document alone. No solver is imported.

What a document claims is compared with what is recomputed; a claim that does not hold is a problem, and a document with a problem is
not verified (`verify_claims` compares the recorded fields). A solver's own bound cannot be rechecked: it is reported as such and proves
nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headroom.bounds.certificates import CertificateError
from headroom.describe import facts, misfit
from headroom.documents import PLAN_SCHEMA, PlanDocument, load_document, read_document, result_document, strengthen
from headroom.formulations.tolerances import CONTRADICTION, FEASIBILITY, OPTIMALITY_GAP, relative_gap
from headroom.formulations.types import Bound, Evaluation, Plan, Status
from headroom.instances.base import Instance
from headroom.instances.errors import InputError, shown
from headroom.registry import Family, load
from headroom.run import Result, family_of
from headroom.verify_claims import disagreements

VERIFICATION_SCHEMA = "headroom/verification/1"
State = Literal["rechecked", "computed", "not rechecked", "refused"]
BROKEN = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError)
"""What computing with data that anyone may have written can raise; `InputError` is a ValueError."""


@dataclass(frozen=True)
class BoundCheck:
    """One bound: what the document says and what was recomputed. "computed": no document claimed it, it is there to compare with."""

    method: str
    proof: str
    state: State
    recorded: float | None = None
    recomputed: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Report:
    """What `verify` found. `problems` is empty exactly when the document is `verified`.

    `instance` has the `overrides` that the document records applied; `given` is the one that was handed in. `notes` are worth knowing and
    no fault.
    """

    instance: Instance
    plan: Plan | None
    evaluation: Evaluation | None
    bounds: tuple[BoundCheck, ...]
    problems: tuple[str, ...]
    claimed: Mapping[str, Any] = field(default_factory=dict)
    given: Instance | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def verified(self) -> bool:
        return not self.problems

    @property
    def objective(self) -> float:
        """+inf without a feasible plan."""
        return self.evaluation.objective if self.evaluation is not None and self.evaluation.feasible else math.inf

    @property
    def best_bound(self) -> BoundCheck | None:
        """The best bound, a solver's own included."""
        stated = [item for item in self.bounds if item.state != "refused"]
        return max(stated, key=_value, default=None)

    @property
    def best_certified(self) -> BoundCheck | None:
        return max((item for item in self.bounds if item.recomputed is not None and item.state != "refused"), key=_value, default=None)

    @property
    def certified_bound(self) -> float:
        return -math.inf if self.best_certified is None else _value(self.best_certified)

    @property
    def certified_gap(self) -> float:
        return relative_gap(self.objective, self.certified_bound)

    @property
    def status(self) -> Status:
        """What is proved without believing anyone."""
        if math.isfinite(self.objective):
            return "optimal" if self.certified_gap <= OPTIMALITY_GAP else "feasible"
        return "infeasible" if self.certified_bound == math.inf else "unknown"

    def document(self) -> dict[str, Any]:
        best = self.best_bound
        given = self.given or self.instance
        details = {} if self.plan is None or self.evaluation is None else facts(self.instance, self.plan)
        return {
            "schema": VERIFICATION_SCHEMA,
            "family": given.family,
            "instance": {"name": given.name, "sha256": given.digest()},
            "provenance": {"parameters": dict(self.overrides)},
            "verified": self.verified,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "evaluation": None if self.evaluation is None else self.evaluation.document(),
            "result": {
                "status": self.status,
                "objective": self.objective,
                "bound": -math.inf if best is None else _value(best),
                "gap": relative_gap(self.objective, -math.inf if best is None else _value(best)),
                "proof": None if best is None else best.proof,
                "bound_method": None if best is None else best.method,
                "certified_bound": self.certified_bound,
                "certified_gap": self.certified_gap,
            },
            "bounds": [
                {
                    "method": item.method,
                    "value": _value(item),
                    "proof": item.proof,
                    "recorded": item.recorded,
                    "state": item.state,
                    "reason": item.reason,
                    "infeasible": _value(item) == math.inf,
                }
                for item in self.bounds
            ],
            **({"details": details} if details else {}),
        }


def _value(item: BoundCheck) -> float:
    if item.recomputed is not None:
        return item.recomputed
    return -math.inf if item.recorded is None else item.recorded


def verify(instance: Instance | str | Path, plan: PlanDocument | Plan | Result | Mapping[str, Any] | str | Path) -> Report:
    """Recheck a plan (a document, its file, a result, or a bare plan) against an instance.

    Overrides that the document records, such as `spare_replicas`, are applied first if they ask for more than the instance does; one that
    asks for less is a problem. Raises `InputError` for what cannot be read and for a bare plan that does not fit the instance; everything
    else that is wrong is listed in the report's `problems`.
    """
    if not isinstance(instance, Instance):
        from headroom.api import load as load_instance

        instance = load_instance(instance)
    document = _as_document(instance, plan)
    family = family_of(instance)
    if document.family != instance.family:
        return Report(instance, document.plan, None, (), (f"the plan is one of family {document.family}, the instance one of {instance.family}",))
    notes: list[str] = []
    problems: list[str] = []
    if document.instance_sha256 is None:
        notes.append("the document does not say which instance it is for")
    elif document.instance_sha256 != instance.digest():
        name = f" ({shown(document.instance_name)})" if document.instance_name else ""
        problems.append(f"the plan was made for another instance{name}: its sha256 is {shown(document.instance_sha256, 80)}, not {instance.digest()}")
    try:
        asked, overrides, weaker = strengthen(instance, document.parameters)
    except InputError as error:
        raise error.within(document.source) from None
    problems += weaker
    notes += [f"with {name} = {value}" for name, value in overrides.items()]
    evaluation = _evaluate(family, asked, document, problems)
    checks = [_recheck(family, asked, bound) for bound in document.bounds]
    problems += [f"bound {item.method}: {item.reason}" for item in checks if item.state == "refused"]
    stated = [bound for bound, item in zip(document.bounds, checks, strict=True) if item.state != "refused"]
    certified = [bound for bound, item in zip(document.bounds, checks, strict=True) if item.state == "rechecked"]
    if all(bound.value == -math.inf for bound in certified):
        checks += _computed(family, asked)
    details = document.content.get("details")
    if isinstance(details, dict) and details.get("sensitivity"):
        notes.append("details.sensitivity is the method's word: it was not rechecked")
    report = Report(asked, document.plan, evaluation, tuple(checks), (), document.result, instance, overrides, tuple(notes))
    problems += _contradictions(report)
    if document.plan is None or evaluation is not None:
        problems += disagreements(document, evaluation, stated, certified)
    return replace(report, problems=tuple(problems))


def _as_document(instance: Instance, plan: PlanDocument | Plan | Result | Mapping[str, Any] | str | Path) -> PlanDocument:
    match plan:
        case PlanDocument():
            return plan
        case Plan():
            # No document, so nobody who could have named another instance.
            this = {"name": instance.name, "sha256": instance.digest()}
            return read_document({"schema": PLAN_SCHEMA, "family": instance.family, "instance": this, "plan": plan.document()})
        case Result():
            return read_document(result_document(plan))
        case str() | Path():
            return load_document(plan)
        case _:
            return read_document(plan)


def _evaluate(family: Family, instance: Instance, document: PlanDocument, problems: list[str]) -> Evaluation | None:
    """Evaluate the plan and list what it violates; None, with a problem, where that cannot be done."""
    if document.plan is None:
        return None
    try:
        if (reason := misfit(instance, document.plan)) is not None:
            raise InputError(reason)
        with np.errstate(all="ignore"):
            evaluation: Evaluation = load(family.evaluate)(instance, document.plan)
    except InputError as error:
        if not problems:
            raise error.within(document.source) from None
        problems.append(error.message)
        return None
    except ArithmeticError as error:
        problems.append(f"the plan cannot be evaluated: {error}")
        return None
    numbers = [evaluation.objective, *evaluation.parts.values(), *(item.amount for item in evaluation.violations)]
    if not math.isfinite(evaluation.objective) or any(map(math.isnan, numbers)):
        problems.append(f"the plan cannot be evaluated: its objective comes out as {evaluation.objective}")
        return None
    problems += [f"violated: {item}" for item in evaluation.violations]
    return evaluation


def _recheck(family: Family, instance: Instance, bound: Bound) -> BoundCheck:
    """Recompute one bound; it is refused when that fails or proves less than is recorded.

    A bound of -inf that proves nothing has claimed nothing and passes.
    """
    if bound.proof == "solver":
        return BoundCheck(bound.method, bound.proof, "not rechecked", bound.value, reason="a solver's own word")
    if bound.proof == "certificate" and not bound.certificate:
        return BoundCheck(bound.method, bound.proof, "refused", bound.value, reason="it carries no certificate")
    spoken = bound.proof.replace("_", " ")
    try:
        value = _recomputed(family, instance, bound)
    except CertificateError as error:
        return BoundCheck(bound.method, bound.proof, "refused", bound.value, reason=str(error))
    except BROKEN as error:
        reason = f"its {spoken} cannot be rechecked: {' '.join(str(error).split()) or type(error).__name__}"
        return BoundCheck(bound.method, bound.proof, "refused", bound.value, reason=reason)
    if math.isnan(value):
        return BoundCheck(bound.method, bound.proof, "refused", bound.value, reason=f"its {spoken} comes out as no number")
    if _exceeds(bound.value, value, FEASIBILITY):
        reason = f"recorded as {_spoken(bound.value)}, its {spoken} proves only {_spoken(value)}"
        return BoundCheck(bound.method, bound.proof, "refused", bound.value, value, reason)
    return BoundCheck(bound.method, bound.proof, "rechecked", bound.value, value)


def _recomputed(family: Family, instance: Instance, bound: Bound) -> float:
    with np.errstate(all="ignore"):
        return float(load(family.recheck)(instance, bound))


def _exceeds(value: float, limit: float, tolerance: float) -> bool:
    if math.isinf(value) or math.isinf(limit):
        return value > limit
    return value - limit > tolerance * max(abs(limit), abs(value))


def _spoken(value: float) -> str:
    return "no plan exists" if value == math.inf else "nothing" if value == -math.inf else repr(value)


def _computed(family: Family, instance: Instance) -> Iterator[BoundCheck]:
    """The closed-form bounds of the family: cheap, and enough to say how far any plan is from a bound."""
    for name, entry in family.bounds_for(instance).items():
        if entry.proof == "closed_form":
            value = _recomputed(family, instance, Bound(-math.inf, name, "closed_form"))
            yield BoundCheck(name, "closed_form", "computed", None, value)


def _contradictions(report: Report) -> Iterator[str]:
    """Statements that cannot all be true, and a missing plan that nothing excuses."""
    for item in report.bounds:
        if item.state != "refused" and _exceeds(_value(item), report.objective, CONTRADICTION):
            yield f"bound {item.method} is {_spoken(_value(item))}, above the objective {report.objective!r} of a feasible plan"
    if report.plan is None and report.status != "infeasible":
        yield "infeasibility is not proved by anything that can be rechecked" if report.claimed.get("status") == "infeasible" else "there is no plan"
