"""`run`: one method on one instance. It alone evaluates the plan and says what is proved."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from headroom.formulations.progress import Progress
from headroom.formulations.tolerances import CONTRADICTION, OBJECTIVE_MISMATCH, OPTIMALITY_GAP, relative_gap
from headroom.formulations.types import Bound, Evaluation, Outcome, Plan, SolveParams, Status, Stop, best_bound
from headroom.instances.base import Instance
from headroom.instances.errors import InputError
from headroom.own_methods import OwnMethod, failures_of, is_own, own_method, plugins_for
from headroom.registry import FAMILIES, Family, Method


class ContradictionError(RuntimeError):
    """Two statements that cannot both be true, such as a bound above a feasible objective. Always a bug, never swallowed."""


@dataclass(frozen=True)
class Result:
    """What one run found and proved. `status` is what is proved, `stop` why the method ended."""

    instance: Instance
    method: str
    params: SolveParams
    status: Status
    stop: Stop
    plan: Plan | None
    evaluation: Evaluation | None
    bounds: tuple[Bound, ...]
    runtime_s: float
    trajectory: tuple[tuple[float, float, float], ...] = ()
    solver: str | None = None
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def objective(self) -> float:
        """+inf without a plan."""
        return math.inf if self.evaluation is None else self.evaluation.objective

    @property
    def best_bound(self) -> Bound | None:
        return best_bound(self.bounds, rechecked_only=False)

    @property
    def bound(self) -> float:
        """-inf when there is none, never 0 for "unknown"."""
        found = self.best_bound
        return -math.inf if found is None else found.value

    @property
    def certified_bound(self) -> float:
        """The best bound that `verify` can recheck; -inf when there is none."""
        found = best_bound(self.bounds, rechecked_only=True)
        return -math.inf if found is None else found.value

    @property
    def gap(self) -> float:
        return relative_gap(self.objective, self.bound)

    @property
    def certified_gap(self) -> float:
        return relative_gap(self.objective, self.certified_bound)

    def plot(self, ax: Any = None) -> Any:
        """Draw the plan as its family is drawn (a new figure without `ax`); returns the axes. Raises `InputError` without a plan."""
        from headroom.result_views import plot

        return plot(self, ax)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from headroom.result_views import as_html

        return as_html(self)


def family_of(instance: Instance) -> Family:
    return FAMILIES[instance.family]


def resolve_method(instance: Instance, method: str | Callable[..., Any] | Method) -> tuple[str, Method]:
    """The method meant for this instance ("auto" picks by size); `file.py:name`, functions and classes are own ones, see `own_methods`.

    Raises `InputError` for an unknown one.
    """
    from headroom.registry import load

    if not isinstance(method, str) or is_own(method):
        own = own_method(method)
        own.check_for(instance)
        return own.name, own
    family, name = family_of(instance), method
    if name == "auto":
        name = str(load(family.auto)(instance))
    fitting = family.methods_for(instance)
    if name not in fitting:
        fitting |= plugins_for(instance)
    if name not in fitting:
        reason = f"does not handle mode {family.mode_of(instance)!r} of" if name in family.methods else "is unknown for"
        raise InputError(f"method {name!r} {reason} {family.name}; expected auto or one of {', '.join(fitting)}")
    return name, fitting[name]


def run(
    instance: Instance,
    method: str | Callable[..., Any] | Method = "auto",
    params: SolveParams | None = None,
    listener: Callable[[Progress], None] | None = None,
    on_start: Callable[[Progress], None] | None = None,
) -> Result:
    """Run one method and judge its answer.

    `listener` is called at each improvement; `on_start` gets the `Progress` before the method runs, so that a signal handler can
    interrupt it. Raises `InputError` for a start plan that does not fit or an own method that fails, `ContradictionError` when the method's claims
    contradict `evaluate` or each other.
    """
    from headroom.registry import load

    params = params or SolveParams()
    if params.deterministic:
        params = replace(params, threads=1)  # parallel searches are the one thing here that a seed does not settle
    name, entry = resolve_method(instance, method)
    family = family_of(instance)
    evaluate: Callable[[Instance, Plan], Evaluation] = load(family.evaluate)
    progress = Progress(params, lambda plan: evaluate(instance, plan), listener)
    notes: list[str] = []
    if params.start is not None and not progress.offer(params.start):
        violated = evaluate(instance, params.start).violations
        notes.append(f"the start plan is not feasible and was not used as an incumbent: {violated[0]}" if violated else "the start plan was not used")
    if on_start is not None:
        on_start(progress)
    with failures_of(entry):
        outcome = _call(entry, family, instance, params, progress)
    if entry.kind != "exact" and progress.remaining_s <= 0:
        # They get the instance and a generator alone, so nothing can stop them; a limit that did not hold is at least said.
        kinds = "policies" if entry.kind == "policy" else "heuristics"
        notes.append(f"the time limit of {params.time_limit_s:g} s does not reach {kinds}: it took {progress.elapsed_s:.3g} s")
    with failures_of(entry):
        return _judge(instance, name, params, entry, outcome, progress, evaluate, notes)


def abandoned(instance: Instance, method: str | Method, params: SolveParams, progress: Progress, stop: Stop) -> Result:
    """The result of a method that failed, or did not return when it was told to: the best plan it reported, evaluated.

    Bounds that it reported with their proofs are kept; a better live bound is its own word ("solver"), for its certificate is lost.
    """
    from headroom.registry import load

    name, entry = resolve_method(instance, method)
    bounds = tuple(progress.bounds.values())
    if math.isfinite(progress.bound) and all(bound.value < progress.bound for bound in bounds):
        bounds = (*bounds, Bound(progress.bound, f"{name} (unfinished)", "solver"))
    return _judge(instance, name, params, entry, Outcome(progress.plan, bounds, stop), progress, load(family_of(instance).evaluate), [])


def _call(entry: Method, family: Family, instance: Instance, params: SolveParams, progress: Progress) -> Outcome:
    from headroom.registry import load

    function = entry.load()
    if entry.kind == "exact":
        outcome: Outcome = function(instance, params, progress)
        return outcome
    found: Outcome | Plan | None
    found = load(family.replay)(instance, function, params.rng()) if entry.kind == "policy" else function(instance, params.rng())
    if isinstance(entry, OwnMethod):
        return entry.checked(found, instance)
    return found if isinstance(found, Outcome) else Outcome(plan=found)


def _judge(
    instance: Instance,
    name: str,
    params: SolveParams,
    entry: Method,
    outcome: Outcome,
    progress: Progress,
    evaluate: Callable[[Instance, Plan], Evaluation],
    notes: list[str],
) -> Result:
    runtime_s = progress.elapsed_s
    plan, evaluation = outcome.plan, None
    if plan is not None:
        evaluation = evaluate(instance, plan)
        claimed = outcome.solver_objective
        if claimed is not None and abs(claimed - evaluation.objective) > OBJECTIVE_MISMATCH * max(abs(evaluation.objective), 1e-12):
            raise ContradictionError(f"{name} claims objective {claimed!r}, evaluate says {evaluation.objective!r}")
        if not evaluation.feasible:
            # A solver works to tolerances of its own: its plan is refused aloud, not repaired in silence.
            more = f" (and {len(evaluation.violations) - 1} more)" if len(evaluation.violations) > 1 else ""
            notes.append(f"{name} returned an infeasible plan, refused: {evaluation.violations[0]}{more}")
            plan, evaluation = None, None
        else:
            progress.offer(plan)
    if progress.plan is not None and (evaluation is None or progress.objective < evaluation.objective):
        plan, evaluation = progress.plan, evaluate(instance, progress.plan)
    bounds = _within_reach(outcome.bounds, evaluation, name)
    result = Result(
        instance=instance,
        method=name,
        params=params,
        status="unknown",
        stop=outcome.stop,
        plan=plan,
        evaluation=evaluation,
        bounds=bounds,
        runtime_s=runtime_s,
        trajectory=tuple(progress.trajectory),
        solver=outcome.solver,
        notes=(*notes, *outcome.notes),
        details=outcome.details,
        versions=versions() | ({name: entry.source} if isinstance(entry, OwnMethod) else {}),
    )
    return replace(result, status=_status(result))


def _within_reach(bounds: tuple[Bound, ...], evaluation: Evaluation | None, name: str) -> tuple[Bound, ...]:
    """The bounds, after refusing any that a feasible plan contradicts."""
    if evaluation is None:
        return bounds
    for bound in bounds:
        if bound.value > evaluation.objective + CONTRADICTION * max(abs(evaluation.objective), 1e-12):
            raise ContradictionError(f"bound {bound.method} of {name} is {bound.value!r}, above the feasible objective {evaluation.objective!r}")
    return bounds


def _status(result: Result) -> Status:
    if result.plan is not None:
        return "optimal" if result.gap <= OPTIMALITY_GAP else "feasible"
    return "infeasible" if result.bound == math.inf else "unknown"


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("headroom", "numpy", "highspy", "ortools", "pyomo"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
