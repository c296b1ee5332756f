"""A linear program that is solved again and again with other bounds, rows and columns: HiGHS' simplex, kept warm.

minimise c x  subject to  row_lower <= A x <= row_upper,  lower <= x <= upper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

FloatArray = npt.NDArray[np.float64]
LinearStatus = Literal["optimal", "infeasible", "unbounded", "time_limit", "failed"]
TOLERANCE = 1e-9


@dataclass(frozen=True)
class LinearAnswer:
    """Status, and what goes with it: `x`, `row_dual` (signs of a minimisation: >= 0 on active lower sides) and `column_dual` when optimal;
    `ray` [rows], a Farkas multiplier of either sign, when infeasible and HiGHS gives one."""

    status: LinearStatus
    objective: float = math.inf
    x: FloatArray | None = None
    row_dual: FloatArray | None = None
    column_dual: FloatArray | None = None
    ray: FloatArray | None = None
    iterations: int = 0


class LinearProgram:
    """One HiGHS instance; `solve` changes bounds in place and warm-starts from the last basis. `primal`: by primal simplex, where columns come."""

    def __init__(
        self,
        cost: FloatArray,
        matrix: sp.csc_matrix | sp.csc_array,
        row_lower: FloatArray,
        row_upper: FloatArray,
        lower: FloatArray,
        upper: FloatArray,
        primal: bool = False,
    ) -> None:
        import highspy

        matrix = sp.csc_matrix(matrix)
        self._highspy: Any = highspy
        program: Any = highspy.HighsLp()
        program.num_row_, program.num_col_ = matrix.shape
        program.col_cost_, program.col_lower_, program.col_upper_ = cost, lower, upper
        program.row_lower_, program.row_upper_ = row_lower, row_upper
        program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        program.a_matrix_.start_, program.a_matrix_.index_, program.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
        self._solver: Any = highspy.Highs()
        for option, value in {
            "output_flag": False,
            "threads": 1,
            "presolve": "off",  # a warm basis is worth more, and rays exist only without it
            "primal_feasibility_tolerance": TOLERANCE,
            "dual_feasibility_tolerance": TOLERANCE,
            # Where columns come and rows stay, the old basis remains primal feasible.
            "simplex_strategy": 4 if primal else 1,
        }.items():
            if self._solver.setOptionValue(option, value) != highspy.HighsStatus.kOk:
                raise RuntimeError(f"HiGHS refused option {option}")
        if self._solver.passModel(program) == highspy.HighsStatus.kError:
            raise RuntimeError("HiGHS refused the linear program")
        self._columns = np.arange(program.num_col_, dtype=np.int32)
        self._rows = np.arange(program.num_row_, dtype=np.int32)
        self._lower, self._upper = np.array(lower, dtype=np.float64), np.array(upper, dtype=np.float64)
        self._row_lower, self._row_upper = np.array(row_lower, dtype=np.float64), np.array(row_upper, dtype=np.float64)

    def set_cost(self, cost: FloatArray) -> None:
        """Replace the objective."""
        self._solver.changeColsCost(len(self._columns), self._columns, np.asarray(cost, dtype=np.float64))

    def add_row(self, columns: npt.NDArray[np.int32], values: FloatArray, lower: float, upper: float) -> None:
        """Append a row; the basis stays warm."""
        self._solver.addRow(lower, upper, len(columns), columns, values)
        self._row_lower, self._row_upper = np.append(self._row_lower, lower), np.append(self._row_upper, upper)

    def add_columns(self, cost: FloatArray, matrix: sp.csc_matrix | sp.csc_array, lower: FloatArray, upper: FloatArray) -> None:
        """Append columns [rows x new]; they start at their lower bound, so the basis stays warm."""
        matrix = sp.csc_matrix(matrix)
        new = matrix.shape[1]
        starts, entries = matrix.indptr[:-1].astype(np.int32), matrix.indices.astype(np.int32)
        status = self._solver.addCols(new, np.asarray(cost, dtype=np.float64), lower, upper, matrix.nnz, starts, entries, matrix.data)
        if status == self._highspy.HighsStatus.kError:
            raise RuntimeError("HiGHS refused new columns")
        self._columns = np.arange(len(self._columns) + new, dtype=np.int32)
        self._lower, self._upper = np.append(self._lower, lower), np.append(self._upper, upper)

    def delete_columns(self, chosen: npt.NDArray[np.bool_]) -> None:
        """Remove the chosen columns [columns]; the others keep their order."""
        gone = np.flatnonzero(chosen).astype(np.int32)
        if len(gone):
            self._solver.deleteCols(len(gone), gone)
            self._columns = np.arange(len(self._columns) - len(gone), dtype=np.int32)
            self._lower, self._upper = self._lower[~chosen], self._upper[~chosen]

    def solve(
        self,
        lower: FloatArray | None = None,
        upper: FloatArray | None = None,
        row_lower: FloatArray | None = None,
        row_upper: FloatArray | None = None,
        time_limit_s: float = math.inf,
    ) -> LinearAnswer:
        """Solve with the given bounds (those left out stay as they are). Bounds that cross make the program infeasible without a ray."""
        if lower is not None or upper is not None:
            new_lower = self._lower if lower is None else lower
            new_upper = self._upper if upper is None else upper
            if (new_lower > new_upper).any():
                return LinearAnswer("infeasible")
            changed = np.flatnonzero((new_lower != self._lower) | (new_upper != self._upper)).astype(np.int32)
            if len(changed):
                self._solver.changeColsBounds(len(changed), changed, new_lower[changed], new_upper[changed])
                self._lower, self._upper = new_lower.copy(), new_upper.copy()
        if row_lower is not None or row_upper is not None:
            new_lower = self._row_lower if row_lower is None else row_lower
            new_upper = self._row_upper if row_upper is None else row_upper
            for row in np.flatnonzero((new_lower != self._row_lower) | (new_upper != self._row_upper)):
                self._solver.changeRowBounds(int(row), float(new_lower[row]), float(new_upper[row]))
            self._row_lower, self._row_upper = new_lower.copy(), new_upper.copy()
        self._solver.setOptionValue("time_limit", math.inf if math.isinf(time_limit_s) else self._solver.getRunTime() + max(time_limit_s, 0.0))
        self._solver.run()
        status = self._status()
        if status == "failed":
            # A stale factorisation is the usual reason; a cold start settles it.
            self._solver.clearSolver()
            self._solver.run()
            status = self._status()
        return self._answer(status)

    def _status(self) -> LinearStatus:
        model_status = self._highspy.HighsModelStatus
        table: dict[Any, LinearStatus] = {
            model_status.kOptimal: "optimal",
            model_status.kInfeasible: "infeasible",
            model_status.kUnbounded: "unbounded",
            model_status.kUnboundedOrInfeasible: "unbounded",
            model_status.kTimeLimit: "time_limit",
        }
        return table.get(self._solver.getModelStatus(), "failed")

    def _answer(self, status: LinearStatus) -> LinearAnswer:
        info = self._solver.getInfo()
        iterations = int(info.simplex_iteration_count)
        if status == "infeasible":
            found, has_ray, ray = self._solver.getDualRay()
            usable = found == self._highspy.HighsStatus.kOk and has_ray
            return LinearAnswer(status, ray=np.array(ray, dtype=np.float64) if usable else None, iterations=iterations)
        if status != "optimal":
            return LinearAnswer(status, iterations=iterations)
        solution = self._solver.getSolution()
        return LinearAnswer(
            status,
            objective=float(info.objective_function_value),
            x=np.array(solution.col_value),
            row_dual=np.array(solution.row_dual),
            column_dual=np.array(solution.col_dual),
            iterations=iterations,
        )
