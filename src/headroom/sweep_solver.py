"""One re-solve of a sweep: from the best plan known, with the bound that answers elsewhere imply, and not at all when those two meet."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from headroom.formulations.progress import Progress
from headroom.formulations.tolerances import CONTRADICTION, OPTIMALITY_GAP, relative_gap
from headroom.formulations.types import Evaluation, Plan, SolveParams, Stop
from headroom.instances.base import Instance
from headroom.registry import load
from headroom.run import ContradictionError, Result, family_of, run
from headroom.sweep_types import Point

T = TypeVar("T")


@dataclass(frozen=True)
class Floor:
    """A lower bound that another answer implies, its certified part, and the argument."""

    bound: float = -math.inf
    certified: float = -math.inf
    by: str = ""


NO_FLOOR = Floor()


class Solver:
    """Answers one value after another; counts what that took and knows when the sweep must stop."""

    def __init__(
        self,
        method: str = "auto",
        params: SolveParams | None = None,
        total_time_limit_s: float | None = None,
        cold: bool = False,
        on_start: Callable[[Progress], None] | None = None,
    ) -> None:
        """`params` holds for each solve; `cold`: every value from scratch; `on_start` gets each solve's `Progress`, for interrupts."""
        self.method, self.params, self.cold = method, params or SolveParams(), cold
        self.tolerance = max(OPTIMALITY_GAP, self.params.gap_limit or 0.0)
        self.solves, self.nodes = 0, 0
        self.stop: Stop = "completed"
        self.used_method = method
        self._total, self.on_start = total_time_limit_s, on_start
        self._began = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def stopped(self) -> bool:
        """Whether the sweep as a whole must end now."""
        if self.stop == "completed" and self._total is not None and self.elapsed_s >= self._total:
            self.stop = "time_limit"
        return self.stop != "completed"

    def answer(
        self,
        at: Mapping[str, float],
        instance: Instance,
        plans: Iterable[Plan] = (),
        floor: Floor = NO_FLOOR,
        fleet: Callable[[Plan], Mapping[str, float]] = lambda plan: {},
    ) -> Point:
        """The point at one value: `plans` may start it, `floor` may end it. Raises `ContradictionError` when a plan beats a proven bound."""
        if self.cold:
            plans, floor = (), NO_FLOOR
        evaluate = load(family_of(instance).evaluate)
        start, known = _best(instance, plans, evaluate)
        objective = math.inf if known is None else known.objective
        if floor.bound > objective + CONTRADICTION * max(abs(objective), 1e-12):
            raise ContradictionError(f"at {dict(at)} a plan costs {objective!r}, below the bound {floor.bound!r} that {floor.by} implies")
        if floor.bound == math.inf or relative_gap(objective, floor.bound) <= self.tolerance:
            parts = {} if known is None else known.parts
            rented = {} if start is None else fleet(start)
            return Point(at, objective, floor.bound, floor.certified, "reused", floor.by, "completed", start, rented, parts)
        return self._solved(at, instance, start, floor, fleet)

    def search(self, work: Callable[[SolveParams, Progress], T]) -> T:
        """Anything else that takes time: within the limits of a solve, counted as one, ended by an interrupt."""
        params = self._limits(None, NO_FLOOR)
        progress = Progress(params)
        if self.on_start is not None:
            self.on_start(progress)
        found = work(params, progress)
        self.solves += 1
        if progress.interrupted:
            self.stop = "interrupted"
        return found

    def _solved(
        self, at: Mapping[str, float], instance: Instance, start: Plan | None, floor: Floor, fleet: Callable[[Plan], Mapping[str, float]]
    ) -> Point:
        seen: list[Progress] = []

        def begun(progress: Progress) -> None:
            seen.append(progress)
            if floor.bound > -math.inf:
                progress.raise_bound(floor.bound)
            if self.on_start is not None:
                self.on_start(progress)

        result = run(instance, self.method, self._limits(start, floor), on_start=begun)
        self.used_method = result.method
        self.solves += 1
        nodes = int(result.details.get("nodes", 0))
        self.nodes += nodes
        if any(progress.interrupted for progress in seen):
            self.stop = "interrupted"
        certified, notes = _rechecked(result)
        return Point(
            at=at,
            objective=result.objective,
            bound=max(result.bound, floor.bound),
            certified_bound=max(certified, floor.certified),
            how="solved",
            by=_named(result) if result.bound >= floor.bound else floor.by,
            # A gap limit that was set only so that the floor may end the search is no limit of the caller's.
            stop="completed" if result.stop == "gap_limit" and self.params.gap_limit is None else result.stop,
            plan=result.plan,
            fleet={} if result.plan is None else fleet(result.plan),
            parts={} if result.evaluation is None else result.evaluation.parts,
            nodes=nodes,
            runtime_s=result.runtime_s,
            notes=(*notes, *result.notes),
        )

    def _limits(self, start: Plan | None, floor: Floor) -> SolveParams:
        limit = self.params.time_limit_s
        if self._total is not None:
            left = max(self._total - self.elapsed_s, 0.0)
            limit = left if limit is None else min(limit, left)
        # A bound from elsewhere is not the method's own: only a gap limit lets the method stop at it.
        gap = self.params.gap_limit if floor.bound == -math.inf else self.tolerance
        return replace(self.params, start=start, time_limit_s=limit, gap_limit=gap)


def _best(instance: Instance, plans: Iterable[Plan], evaluate: Callable[[Any, Plan], Evaluation]) -> tuple[Plan | None, Evaluation | None]:
    """The cheapest feasible one of the plans."""
    best: tuple[Plan | None, Evaluation | None] = (None, None)
    for plan in plans:
        evaluation = evaluate(instance, plan)
        if evaluation.feasible and (best[1] is None or evaluation.objective < best[1].objective):
            best = (plan, evaluation)
    return best


def _rechecked(result: Result) -> tuple[float, tuple[str, ...]]:
    """The best bound that a recheck without any solver confirms now (a sweep keeps no certificates), and notes about any that it refuses."""
    from headroom.bounds.certificates import CertificateError

    recheck = load(family_of(result.instance).recheck)
    best, notes = -math.inf, []
    for bound in result.bounds:
        if bound.proof == "solver":
            continue
        try:
            best = max(best, min(bound.value, float(recheck(result.instance, bound))))
        except CertificateError as error:
            notes.append(f"the certificate of bound {bound.method} was refused: {error}")
    return best, tuple(notes)


def _named(result: Result) -> str:
    return "none" if result.best_bound is None else result.best_bound.method
