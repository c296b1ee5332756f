"""One linear program, solved once for its row duals by HiGHS: for bounds whose certificate is the duals, which need not be exact.

minimise c x  subject to  row_lower <= A x <= row_upper,  0 <= x <= upper.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from headroom.formulations.progress import Progress
from headroom.solvers.worker import Worker

FloatArray = npt.NDArray[np.float64]
Algorithm = Literal["simplex", "ipm", "pdlp"]
PDLP_SHARE = 0.7
"""Part of the time left that PDLP is told it has: it overruns, and hears no interrupt."""
PDLP_ITERATIONS = 100_000
INEXACT: dict[Algorithm, float] = {"ipm": 1e-6, "pdlp": 1e-4}
"""Relative tolerances of the algorithms that only come near the optimum."""


@dataclass(frozen=True)
class Duals:
    """`value`: the objective that HiGHS claims, -inf when it did not finish; `row_dual` [rows]: of a minimisation, >= 0 on active lower sides."""

    value: float
    row_dual: FloatArray


def row_duals(
    cost: FloatArray,
    matrix: sp.csc_matrix | sp.csc_array,
    row_lower: FloatArray,
    row_upper: FloatArray,
    upper: FloatArray,
    progress: Progress,
    algorithm: Algorithm = "simplex",
) -> Duals | None:
    """Row duals by simplex (exact), IPM without crossover or PDLP (near); None when HiGHS refuses the numbers, fails, or was left behind. One thread.

    Obeys the time limit and interrupts of `progress`; an algorithm that is stopped leaves the duals where it was, if it has any.
    """
    import highspy

    solver = _load(cost, matrix, row_lower, row_upper, upper, _options(progress, algorithm))
    if solver is None:
        return None
    stopping = threading.Event()

    def callback(kind: Any, message: str, out: Any, into: Any, user: Any) -> None:
        if stopping.is_set():
            into.user_interrupt = True

    solver.setCallback(callback, None)
    for kind in (highspy.cb.HighsCallbackType.kCallbackSimplexInterrupt, highspy.cb.HighsCallbackType.kCallbackIpmInterrupt):
        solver.startCallback(kind)
    done, _ = Worker(solver.run, stopping.set, lambda: None).run(progress)
    if done is None or done == highspy.HighsStatus.kError:
        return None
    dual = np.array(solver.getSolution().row_dual, dtype=np.float64)
    if len(dual) != len(row_lower) or not np.isfinite(dual).all():
        return None
    finished = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return Duals(float(solver.getInfo().objective_function_value) if finished else -math.inf, dual)


def _options(progress: Progress, algorithm: Algorithm) -> dict[str, Any]:
    options: dict[str, Any] = {"output_flag": False, "threads": 1, "presolve": "on", "solver": algorithm, "run_crossover": "off"}
    if math.isfinite(progress.remaining_s):
        options["time_limit"] = progress.remaining_s * (PDLP_SHARE if algorithm == "pdlp" else 1.0)
    if algorithm == "pdlp":
        options |= {"pdlp_optimality_tolerance": INEXACT["pdlp"], "pdlp_iteration_limit": PDLP_ITERATIONS}
    tolerance = INEXACT.get(algorithm, 1e-9)
    return options | {"primal_feasibility_tolerance": tolerance, "dual_feasibility_tolerance": tolerance}


def _load(
    cost: FloatArray,
    matrix: sp.csc_matrix | sp.csc_array,
    row_lower: FloatArray,
    row_upper: FloatArray,
    upper: FloatArray,
    options: dict[str, Any],
) -> Any:
    """HiGHS with the program, or None where numbers are beyond what it takes (coefficients from 1e15, NaN)."""
    import highspy

    matrix = sp.csc_matrix(matrix)
    program: Any = highspy.HighsLp()
    program.num_row_, program.num_col_ = matrix.shape
    program.col_cost_, program.col_lower_, program.col_upper_ = cost, np.zeros(len(cost)), upper
    program.row_lower_, program.row_upper_ = row_lower, row_upper
    program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    program.a_matrix_.start_, program.a_matrix_.index_, program.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
    solver: Any = highspy.Highs()
    for option, value in options.items():
        if solver.setOptionValue(option, value) != highspy.HighsStatus.kOk:
            raise RuntimeError(f"HiGHS refused option {option} = {value!r}")
    return None if solver.passModel(program) == highspy.HighsStatus.kError else solver


__all__ = ["Algorithm", "Duals", "row_duals"]
