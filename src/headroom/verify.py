"""`verify`: evaluate a plan again and recheck every bound, from the instance and the document alone. No solver is imported.

What a document claims is compared with what is recomputed; a claim that does not hold is a problem, and a document with a problem is
not verified. A solver's own bound cannot be rechecked: it is reported as such and proves nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from headroom.bounds.certificates import CertificateError
from headroom.documents import PLAN_SCHEMA, PlanDocument, apply_options, load_document, read_document, result_document
from headroom.formulations.tolerances import CONTRADICTION, FEASIBILITY, OPTIMALITY_GAP, relative_gap
from headroom.formulations.types import Bound, Evaluation, Plan, Status
from headroom.instances.base import Instance
from headroom.instances.errors import InputError, shown
from headroom.registry import Family, load
from headroom.run import Result, family_of

VERIFICATION_SCHEMA = "headroom/verification/1"
State = Literal["rechecked", "computed", "not rechecked", "refused"]


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
    """What `verify` found. `problems` is empty exactly when the document is `verified`; its bounds are rechecked ones only."""

    instance: Instance
    plan: Plan | None
    evaluation: Evaluation | None
    bounds: tuple[BoundCheck, ...]
    problems: tuple[str, ...]
    claimed: Mapping[str, Any] = field(default_factory=dict)

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
        return {
            "schema": VERIFICATION_SCHEMA,
            "family": self.instance.family,
            "instance": {"name": self.instance.name, "sha256": self.instance.digest()},
            "verified": self.verified,
            "problems": list(self.problems),
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
        }


def _value(item: BoundCheck) -> float:
    if item.recomputed is not None:
        return item.recomputed
    return -math.inf if item.recorded is None else item.recorded


def verify(instance: Instance | str | Path, plan: PlanDocument | Plan | Result | Mapping[str, Any] | str | Path) -> Report:
    """Recheck a plan (a document, its file, a result, or a bare plan) against an instance.

    Overrides that the document records, such as `spare_replicas`, are applied first. Raises `InputError` for files that cannot be read and
    for a bare plan that does not fit the instance; everything else that is wrong is listed in the report's `problems`.
    """
    if not isinstance(instance, Instance):
        from headroom.api import load as load_instance

        instance = load_instance(instance)
    document = _as_document(instance, plan)
    family = family_of(instance)
    if document.family != instance.family:
        return Report(instance, document.plan, None, (), (f"the plan is one of family {document.family}, the instance one of {instance.family}",))
    problems: list[str] = []
    if document.instance_sha256 is not None and document.instance_sha256 != instance.digest():
        name = f" ({shown(document.instance_name)})" if document.instance_name else ""
        problems.append(f"the plan was made for another instance{name}: its sha256 is {shown(document.instance_sha256, 80)}, not {instance.digest()}")
    asked = apply_options(instance, document.parameters)
    evaluation = _evaluate(family, asked, document, problems)
    checks = [_recheck(family, asked, bound) for bound in document.bounds]
    problems += [f"bound {item.method}: {item.reason}" for item in checks if item.state == "refused"]
    if not any(item.state == "rechecked" for item in checks):
        checks += _computed(family, asked)
    report = Report(asked, document.plan, evaluation, tuple(checks), (), document.result)
    problems += _contradictions(report, document)
    return Report(asked, document.plan, evaluation, tuple(checks), tuple(problems), document.result)


def _as_document(instance: Instance, plan: PlanDocument | Plan | Result | Mapping[str, Any] | str | Path) -> PlanDocument:
    match plan:
        case PlanDocument():
            return plan
        case Plan():
            return read_document({"schema": PLAN_SCHEMA, "family": instance.family, "plan": plan.document()})
        case Result():
            return read_document(result_document(plan))
        case str() | Path():
            return load_document(plan)
        case _:
            return read_document(dict(plan))


def _evaluate(family: Family, instance: Instance, document: PlanDocument, problems: list[str]) -> Evaluation | None:
    """Evaluate the plan; what the document recorded must agree."""
    if document.plan is None:
        return None
    try:
        evaluation: Evaluation = load(family.evaluate)(instance, document.plan)
    except InputError as error:
        if not problems:
            raise error.within(document.source) from None
        problems.append(error.message)
        return None
    problems += [f"violated: {item}" for item in evaluation.violations]
    objectives = {"evaluation.objective": document.objective, "result.objective": document.result.get("objective")}
    for name, recorded in objectives.items():
        if recorded is not None and not _agree(recorded, evaluation.objective):
            problems.append(f"{name} is recorded as {recorded!r}; evaluating the plan gives {evaluation.objective!r}")
    for name in sorted({*document.parts, *evaluation.parts} if document.parts else ()):
        recorded, recomputed = document.parts.get(name, 0.0), evaluation.parts.get(name, 0.0)
        if not _agree(recorded, recomputed):
            problems.append(f"evaluation.parts.{name} is recorded as {recorded!r}; evaluating the plan gives {recomputed!r}")
    return evaluation


def _agree(recorded: float, recomputed: float) -> bool:
    return abs(recorded - recomputed) <= FEASIBILITY * max(abs(recomputed), abs(recorded))


def _recheck(family: Family, instance: Instance, bound: Bound) -> BoundCheck:
    """Recompute one bound; it is refused when its certificate proves less than is recorded."""
    if bound.proof == "solver":
        return BoundCheck(bound.method, bound.proof, "not rechecked", bound.value, reason="a solver's own word")
    try:
        value = float(load(family.recheck)(instance, bound))
    except CertificateError as error:
        return BoundCheck(bound.method, bound.proof, "refused", bound.value, reason=str(error))
    if _exceeds(bound.value, value, FEASIBILITY):
        reason = f"recorded as {_spoken(bound.value)}, its {bound.proof.replace('_', ' ')} proves only {_spoken(value)}"
        return BoundCheck(bound.method, bound.proof, "refused", bound.value, value, reason)
    return BoundCheck(bound.method, bound.proof, "rechecked", bound.value, value)


def _exceeds(value: float, limit: float, tolerance: float) -> bool:
    if math.isinf(value) or math.isinf(limit):
        return value > limit
    return value - limit > tolerance * max(abs(limit), abs(value))


def _spoken(value: float) -> str:
    return "no plan exists" if value == math.inf else "nothing" if value == -math.inf else repr(value)


def _computed(family: Family, instance: Instance) -> Iterator[BoundCheck]:
    """The closed-form bounds of the family: cheap, and enough to say how far any plan is from a bound."""
    for name, entry in family.bounds.items():
        if entry.proof == "closed_form":
            value = float(load(family.recheck)(instance, Bound(-math.inf, name, "closed_form")))
            yield BoundCheck(name, "closed_form", "computed", None, value)


def _contradictions(report: Report, document: PlanDocument) -> Iterator[str]:
    """Claims of the document that what was recomputed does not support."""
    for item in report.bounds:
        if item.state != "refused" and _exceeds(_value(item), report.objective, CONTRADICTION):
            yield f"bound {item.method} is {_spoken(_value(item))}, above the objective {report.objective!r} of a feasible plan"
    claimed = document.result.get("certified_bound")
    # Only what the document itself carries may support its claim.
    carried = max((_value(item) for item in report.bounds if item.state == "rechecked"), default=-math.inf)
    if claimed is not None and _exceeds(claimed, carried, FEASIBILITY):
        yield f"result.certified_bound is recorded as {claimed!r}; the bounds rechecked give {_spoken(carried)}"
    stated = max((_value(item) for item in report.bounds if item.state != "refused"), default=-math.inf)
    if (bound := document.result.get("bound")) is not None and _exceeds(bound, stated, FEASIBILITY):
        yield f"result.bound is recorded as {bound!r}; no bound listed says so"
    if document.plan is None and report.status != "infeasible":
        yield "infeasibility is not proved by anything that can be rechecked" if document.result.get("status") == "infeasible" else "there is no plan"
    if document.plan is not None and document.result.get("status") == "infeasible":
        yield "result.status is recorded as 'infeasible', yet there is a plan"
    if document.result.get("status") == "optimal" and math.isfinite(report.objective) and relative_gap(report.objective, stated) > OPTIMALITY_GAP:
        yield f"result.status is recorded as 'optimal'; the bounds leave a gap of {relative_gap(report.objective, stated):.3g}"
