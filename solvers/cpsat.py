"""CP-SAT behind the same promises as the HiGHS engine, and the scaling of real coefficients to integers with its loss reported."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headroom.formulations.progress import Progress
from headroom.formulations.tolerances import OPTIMALITY_GAP
from headroom.formulations.types import SolveParams, Stop
from headroom.solvers.worker import Worker

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
LARGEST = 2**36
"""Largest sum of a row's terms. int64 would hold 2^62, but with rows of 2^40 the presolve of CP-SAT 9.15 cut off the optimum of an instance of ours
(16.24 claimed optimal, 8.16 feasible, and found when stated with smaller coefficients or without probing). Its detection of rows that include one
another is wrong for large coefficients (google/or-tools issue 5293): with rows of 2^36 it falsified 22 of 300 small expert placements of ours, so
that `solve_cp` switches it off; with it off, or with rows of 2^34, none was wrong."""


@dataclass(frozen=True)
class CpAnswer:
    """`values` of the variables that were asked for, None without a solution; `bound` in the model's integer objective, -inf when none."""

    status: Literal["optimal", "infeasible", "stopped", "failed"]
    stop: Stop
    values: IntArray | None
    bound: float
    solver: str


def scale_down(coefficients: FloatArray, scale: float) -> IntArray:
    """Integers at most `coefficients * scale`."""
    return np.floor(coefficients * scale * (1 - 1e-15)).astype(np.int64)


def scale_up(coefficients: FloatArray, scale: float) -> IntArray:
    """Integers at least `coefficients * scale`."""
    return np.ceil(coefficients * scale * (1 + 1e-15)).astype(np.int64)


def scale_for(largest_sum: float) -> float:
    """The largest power of two by which a row whose terms add up to `largest_sum` may be multiplied."""
    return 2.0 ** math.floor(math.log2(LARGEST / largest_sum)) if largest_sum > 0 else 1.0


def solve_cp(
    model: Any,
    variables: Sequence[Any],
    params: SolveParams,
    progress: Progress,
    on_incumbent: Callable[[IntArray], None] | None = None,
    on_bound: Callable[[float], None] | None = None,
    linearization_level: int = 1,
) -> CpAnswer:
    """Solve a `CpModel`; `on_incumbent` gets the values of `variables`, `on_bound` the integer objective's bound, both in the caller's thread.

    `linearization_level`: how much of the model stands in the linear relaxation, clauses included at 2.
    """
    from ortools.sat.python import cp_model

    solver: Any = cp_model.CpSolver()
    solver.parameters.num_workers = params.threads
    solver.parameters.random_seed = params.seed % 2**31
    solver.parameters.relative_gap_limit = max(0.5 * OPTIMALITY_GAP, params.gap_limit or 0.0)
    solver.parameters.catch_sigint_signal = False
    solver.parameters.linearization_level = linearization_level
    solver.parameters.cp_model_probing_level = 0  # see LARGEST
    solver.parameters.presolve_inclusion_work_limit = 0
    if math.isfinite(progress.remaining_s):
        solver.parameters.max_time_in_seconds = max(progress.remaining_s, 1e-3)
    found: deque[IntArray] = deque()
    bounds: deque[float] = deque()

    class Watcher(cp_model.CpSolverSolutionCallback):
        def on_solution_callback(self) -> None:
            found.append(np.array([self.value(variable) for variable in variables], dtype=np.int64))

    solver.best_bound_callback = bounds.append

    def drain() -> None:
        while found:
            values = found.popleft()
            if on_incumbent is not None:
                on_incumbent(values)
        while bounds:
            value = bounds.popleft()
            if on_bound is not None:
                on_bound(value)

    status, stop = Worker(lambda: solver.solve(model, Watcher()), solver.stop_search, drain).run(progress)
    from importlib.metadata import version

    name = f"CP-SAT {version('ortools')}"
    if status is None:
        return CpAnswer("stopped", stop, None, -math.inf, name)
    if status == cp_model.INFEASIBLE:
        return CpAnswer("infeasible", "completed", None, math.inf, name)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE, cp_model.UNKNOWN):
        return CpAnswer("failed", "error", None, -math.inf, name)
    values = None
    if status != cp_model.UNKNOWN:
        values = np.array([solver.value(variable) for variable in variables], dtype=np.int64)
    if stop == "completed" and status != cp_model.OPTIMAL:
        stop = "time_limit"
    gap = (solver.objective_value - solver.best_objective_bound) / max(abs(solver.objective_value), 1e-12) if values is not None else 0.0
    if status == cp_model.OPTIMAL and gap > OPTIMALITY_GAP:
        stop = "gap_limit"
    return CpAnswer("optimal" if status == cp_model.OPTIMAL else "stopped", stop, values, float(solver.best_objective_bound), name)
