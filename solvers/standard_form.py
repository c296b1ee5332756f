"""A Pyomo model as arrays: minimise c x + constant subject to row_lower <= A x <= row_upper, lower <= x <= upper, some x integer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StandardForm:
    """The arrays, and the model they came from (kept alive: the columns refer to its variables)."""

    model: Any
    columns: tuple[Any, ...]
    """The Pyomo variable of each column."""
    cost: FloatArray
    constant: float
    matrix: sp.csc_matrix
    row_lower: FloatArray
    row_upper: FloatArray
    row_names: tuple[str, ...]
    lower: FloatArray
    upper: FloatArray
    integer: npt.NDArray[np.bool_]

    def column_of(self) -> dict[int, int]:
        """Column index by the id() of a Pyomo variable. Variables that the model does not use have none."""
        return {id(variable): j for j, variable in enumerate(self.columns)}

    def values(self, component: Any, x: FloatArray) -> dict[Any, float]:
        """The values of an indexed Pyomo variable by its index; a variable that no row or cost mentions takes its lower bound or 0."""
        position = self.column_of()
        found: dict[Any, float] = {}
        for index in component:
            variable = component[index]
            j = position.get(id(variable))
            found[index] = float(x[j]) if j is not None else float(variable.lb or 0.0)
        return found


def standard_form(model: Any) -> StandardForm:
    """Compile a linear Pyomo model with one objective. Maximisation is turned into minimisation of the negative."""
    import pyomo.environ as pyo
    from pyomo.repn.plugins.standard_form import LinearStandardFormCompiler

    form = LinearStandardFormCompiler().write(model, mixed_form=True, set_sense=pyo.minimize)
    matrix = sp.csc_matrix(form.A)
    rhs = np.asarray(form.rhs, dtype=np.float64)
    kind = np.array([row.bound_type for row in form.rows], dtype=np.int64)  # -1: >=, 0: ==, 1: <=
    bounds = [variable.bounds for variable in form.columns]
    return StandardForm(
        model=model,
        columns=tuple(form.columns),
        cost=np.asarray(form.c.todense(), dtype=np.float64).ravel(),
        constant=float(np.asarray(form.c_offset).ravel()[0]),
        matrix=matrix,
        row_lower=np.where(kind <= 0, rhs, -np.inf),
        row_upper=np.where(kind >= 0, rhs, np.inf),
        row_names=tuple(row.constraint.name for row in form.rows),
        lower=np.array([-np.inf if low is None else low for low, _ in bounds], dtype=np.float64),
        upper=np.array([np.inf if high is None else high for _, high in bounds], dtype=np.float64),
        integer=np.array([not variable.is_continuous() for variable in form.columns], dtype=bool),
    )
