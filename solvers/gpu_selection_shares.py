"""Shares for a fleet that is given: continuous shares that load its types as evenly as can be, in every situation.

Any shares within capacity cost the same; these leave each type the same room for a burst, and keep a solver's tolerance of 1e-9 from
showing up as an overload. One small LP a situation: minimise t subject to cover and  load_g <= t u n_g.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from headroom.bounds.gpu_selection_boxes import Box, Data, data_of, root_box
from headroom.formulations.gpu_selection import GpuSelectionPlan, plan_from_arrays
from headroom.instances.gpu_selection import GpuSelection

FloatArray = npt.NDArray[np.float64]


def fixed(data: Data, n: FloatArray) -> Box:
    """The root box with counts fixed."""
    box = root_box(data)
    return Box(n.astype(np.float64), n.astype(np.float64), box.y_lo, box.y_hi)


def shares_for(instance: GpuSelection, n: npt.NDArray[np.int64]) -> GpuSelectionPlan | None:
    """A plan with counts n and evenly loaded types; None when no continuous shares exist. Not for slices."""
    data = data_of(instance)
    y = np.zeros((data.situations, *data.can_serve.shape))
    for s in range(data.situations):
        standing = n - data.loss[s]
        if (standing < 0).any():
            continue  # nothing of this type to lose
        even = _even_loads(data, standing.astype(np.float64))
        if even is None:
            return None
        y[s] = even
    return plan_with_spares(data, y, n.astype(np.float64))


def _even_loads(data: Data, n: FloatArray) -> FloatArray | None:
    """Slice counts [G][I] that minimise the highest load relative to capacity; None when it exceeds 1 by more than rounding."""
    from headroom.solvers.linear_program import LinearProgram

    gpus, items = data.can_serve.shape
    g, i = np.nonzero(data.can_serve & (n > 0)[:, None])
    columns = 1 + np.arange(len(g))
    rows = np.concatenate([i, items + g, items + np.arange(gpus)])
    cols = np.concatenate([columns, columns, np.zeros(gpus, dtype=np.int64)])
    values = np.concatenate([np.ones(len(g)), data.slice_load[g, i], -data.instance.max_utilisation * n])
    matrix = sp.csc_matrix((values, (rows, cols)), shape=(items + gpus, 1 + len(g)))
    row_upper = np.concatenate([np.full(items, data.slices), np.zeros(gpus)])
    row_lower = np.concatenate([np.full(items, data.slices), np.full(gpus, -np.inf)])
    cost = np.zeros(1 + len(g))
    cost[0] = 1.0
    upper = np.concatenate([[np.inf], np.full(len(g), data.slices)])
    answer = LinearProgram(cost, matrix, row_lower, row_upper, np.zeros(1 + len(g)), upper).solve()
    if answer.x is None or answer.x[0] > 1 + 1e-9:
        return None
    y = np.zeros((gpus, items))
    y[g, i] = answer.x[1:]
    return y


def plan_with_spares(data: Data, y: FloatArray, n: FloatArray) -> GpuSelectionPlan:
    """The plan whose shares in each situation are y [S][G][I]. With a replica to lose, the whole fleet can carry what it carries after a loss."""
    instance = data.instance
    tables = np.zeros((data.situations, len(instance.gpus), len(instance.work)))
    tables[:, :, data.items] = y / data.slices
    lost = [int(h) for h in np.flatnonzero(n > 0)] if data.situations > 1 else []
    whole = tables[1 + lost[0]] if lost and not y[0].any() else tables[0]
    return plan_from_arrays(instance, n.astype(np.int64), whole, {h: tables[1 + h] for h in lost})
