"""The claims of a plan document against what `verify` recomputed: each field that is present and disagrees makes one line.

A field follows from the plan, which is evaluated again, and from the values that the document itself records for its bounds, each of which
was rechecked (or is a solver's own word). A field that is missing claims nothing. null stands for an infinite number or "none".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from headroom.documents import PlanDocument
from headroom.formulations.tolerances import FEASIBILITY, OPTIMALITY_GAP, relative_gap
from headroom.formulations.types import Bound, Evaluation, Status, Stop, Violation
from headroom.instances.errors import shown


def disagreements(document: PlanDocument, evaluation: Evaluation | None, stated: Sequence[Bound], certified: Sequence[Bound]) -> Iterator[str]:
    """What the document records otherwise than recomputed.

    `evaluation` is that of its plan, None when there is no plan. `stated` are its bounds that were not refused, `certified` those among
    them that were rechecked.
    """
    yield from _evaluation(document, evaluation)
    result = document.result
    reached = evaluation.objective if evaluation is not None and evaluation.feasible else math.inf
    best = max((bound.value for bound in stated), default=-math.inf)
    best_certified = max((bound.value for bound in certified), default=-math.inf)
    numbers = {
        "objective": math.inf if evaluation is None else evaluation.objective,
        "bound": best,
        "certified_bound": best_certified,
    }
    gaps = {"gap": relative_gap(reached, best), "certified_gap": relative_gap(reached, best_certified)}
    for name, value in (numbers | gaps).items():
        # A gap is relative to the objective already, and so is its tolerance.
        if name in result and not agree(result[name], value, scale=1.0 if name in gaps else 0.0):
            yield _line(f"result.{name}", result[name], value)
    yield from _best_bound(document, [bound for bound in stated if bound.value == best or agree(bound.value, best)])
    yield from _status(document, reached, best)
    stop = result.get("stop")
    if stop is not None and stop not in get_args(Stop):
        yield f"result.stop is recorded as {shown(stop)}; expected one of {', '.join(get_args(Stop))}"


def agree(recorded: float | None, recomputed: float, scale: float = 0.0) -> bool:
    """Whether they differ by at most FEASIBILITY, relative to the larger of them and `scale`; None agrees with either infinity."""
    if recorded is None or math.isinf(recorded) or not math.isfinite(recomputed):
        return math.isinf(recomputed) and recorded in (None, recomputed)
    return abs(recorded - recomputed) <= FEASIBILITY * max(abs(recomputed), abs(recorded), scale)


def _evaluation(document: PlanDocument, evaluation: Evaluation | None) -> Iterator[str]:
    recorded = document.evaluation
    objective = math.inf if evaluation is None else evaluation.objective
    if "objective" in recorded and not agree(recorded["objective"], objective):
        yield _line("evaluation.objective", recorded["objective"], objective)
    if "parts" in recorded:
        parts = {} if evaluation is None else evaluation.parts
        for name in sorted({*recorded["parts"], *parts}):
            before, now = recorded["parts"].get(name, 0.0), parts.get(name, 0.0)
            if not agree(before, now):
                missing = name not in recorded["parts"]
                yield _line(f"evaluation.parts.{name}", before, now) if not missing else f"evaluation.parts has no {name}; recomputed: {_spoken(now)}"
    if "violations" in recorded:
        violations = () if evaluation is None else evaluation.violations
        if not _same_violations(recorded["violations"], violations):
            yield f"evaluation.violations is recorded as {_listed(recorded['violations'])}; recomputed: {_listed(violations)}"


def _same_violations(recorded: Sequence[Violation], recomputed: Sequence[Violation]) -> bool:
    """In any order. An amount is a difference of numbers as large as its limit: that sets its tolerance."""

    def ordered(violations: Sequence[Violation]) -> list[Violation]:
        return sorted(violations, key=lambda item: (item.constraint, item.index, item.amount))

    return len(recorded) == len(recomputed) and all(
        (one.constraint, one.index) == (two.constraint, two.index)
        and (one.limit == two.limit or agree(one.limit, two.limit))
        and (one.amount == two.amount or agree(one.amount, two.amount, scale=abs(two.limit) if math.isfinite(two.limit) else 0.0))
        for one, two in zip(ordered(recorded), ordered(recomputed), strict=True)
    )


def _best_bound(document: PlanDocument, best: Sequence[Bound]) -> Iterator[str]:
    """`proof` and `bound_method` are those of one bound of the best value; both null when no bound is listed."""
    for name, attribute in (("proof", "proof"), ("bound_method", "method")):
        if name not in document.result:
            continue
        recorded = document.result[name]
        fitting = [bound for bound in best if getattr(bound, attribute) == recorded]
        if not fitting and (best or recorded is not None):
            yield _line(f"result.{name}", recorded, getattr(best[0], attribute) if best else None)
            return
        best = fitting


def _status(document: PlanDocument, objective: float, bound: float) -> Iterator[str]:
    recorded = document.result.get("status")
    if recorded is None:
        return
    if recorded not in get_args(Status):
        yield f"result.status is recorded as {shown(recorded)}; expected one of {', '.join(get_args(Status))}"
        return
    if document.plan is not None and objective == math.inf:
        return  # the plan is infeasible, which has lines of its own: no status follows from it
    gap = relative_gap(objective, bound)
    without_plan: Status = "infeasible" if bound == math.inf else "unknown"
    with_plan: Status = "optimal" if gap <= OPTIMALITY_GAP else "feasible"
    follows = without_plan if document.plan is None else with_plan
    if recorded == follows or (recorded == "infeasible" and document.plan is None):  # an unproved infeasibility has a line of its own
        return
    reason = ""
    if recorded == "infeasible":
        reason = ", yet there is a plan"
    elif recorded == "optimal" and document.plan is not None:
        reason = f"; the bounds leave a gap of {gap:.3g}"
    yield f"result.status is recorded as {recorded!r}{reason}; recomputed: {follows!r}"


def _line(name: str, recorded: Any, recomputed: Any) -> str:
    return f"{name} is recorded as {_spoken(recorded)}; recomputed: {_spoken(recomputed)}"


def _spoken(value: Any) -> str:
    if isinstance(value, float):
        return "null" if math.isinf(value) else repr(float(f"{value:.10g}"))
    return "null" if value is None else shown(value)


def _listed(violations: Sequence[Violation]) -> str:
    if not violations:
        return "none"
    text = ", ".join(map(str, violations))
    return text if len(text) <= 200 else text[:199] + "…"
