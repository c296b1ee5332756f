"""Shares for a fleet that is given: continuous shares that its replicas can carry, in every situation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_lagrangian import Box, Data, data_of, root_box
from headroom.bounds.gpu_selection_relaxation import Relaxation
from headroom.formulations.gpu_selection import GpuSelectionPlan, plan_from_arrays
from headroom.instances.gpu_selection import GpuSelection

FloatArray = npt.NDArray[np.float64]


def fixed(data: Data, n: FloatArray) -> Box:
    """The root box with counts fixed."""
    box = root_box(data)
    return Box(n.astype(np.float64), n.astype(np.float64), box.y_lo, box.y_hi)


def shares_for(instance: GpuSelection, n: npt.NDArray[np.int64]) -> GpuSelectionPlan | None:
    """A plan with counts n, its shares from one LP to full precision; None when no continuous shares exist. Not for slices."""
    data = data_of(instance)
    relaxed = Relaxation(data).solve(fixed(data, n.astype(np.float64)))
    return plan_with_spares(data, relaxed.y, n.astype(np.float64)) if relaxed.status == "optimal" else None


def plan_with_spares(data: Data, y: FloatArray, n: FloatArray) -> GpuSelectionPlan:
    """The plan whose shares in each situation are y [S][G][I]. With a replica to lose, the whole fleet can carry what it carries after a loss."""
    instance = data.instance
    tables = np.zeros((data.situations, len(instance.gpus), len(instance.work)))
    tables[:, :, data.items] = y / data.slices
    lost = [int(h) for h in np.flatnonzero(n > 0)] if data.situations > 1 else []
    whole = tables[1 + lost[0]] if lost else tables[0]
    return plan_from_arrays(instance, n.astype(np.int64), whole, {h: tables[1 + h] for h in lost})
