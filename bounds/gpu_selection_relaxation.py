"""The linear relaxation of GPU selection over a box, with cuts, and the prices it yields. The prices are all that a bound keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from headroom.bounds.gpu_selection_boxes import Box, Data, active, data_of, root_box
from headroom.bounds.gpu_selection_cuts import Cut
from headroom.bounds.gpu_selection_lagrangian import exact_dual_value
from headroom.formulations.progress import Progress
from headroom.instances.gpu_selection import GpuSelection

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Relaxed:
    """An LP solution in the family's terms: counts [G], slice counts [S][G][I], prices w [S][G] and pi [P]."""

    status: str
    objective: float
    n: FloatArray
    y: FloatArray
    w: FloatArray
    pi: FloatArray
    mu: FloatArray
    """Prices of the cuts added so far."""


class Relaxation:
    """The LP over (n, y), kept warm between boxes. Rows: cover [S][I], capacity [S][G], pool [P]."""

    def __init__(self, data: Data) -> None:
        from headroom.solvers.linear_program import LinearProgram

        self.data = data
        self.cuts: list[Cut] = []
        situations, gpus, items = data.situations, len(data.price), len(data.items)
        s, g, i = np.nonzero(np.broadcast_to(data.can_serve, (situations, gpus, items)))
        self._place = (s, g, i)
        columns = gpus + np.arange(len(s))
        first_capacity, first_pool = situations * items, situations * items + situations * gpus
        pool, drawing = np.nonzero(data.pool_gpus)
        count_rows = (first_capacity + np.arange(situations)[:, None] * gpus + np.arange(gpus)).ravel()
        rows = np.concatenate([s * items + i, first_capacity + s * gpus + g, count_rows, first_pool + pool])
        cols = np.concatenate([columns, columns, np.tile(np.arange(gpus), situations), drawing])
        u = data.instance.max_utilisation
        values = np.concatenate([np.ones(len(s)), data.slice_load[g, i], np.full(situations * gpus, -u), data.pool_gpus[pool, drawing]])
        shape = (first_pool + len(data.pool_limit), gpus + len(s))
        matrix = sp.csc_matrix((values, (rows, cols)), shape=shape)
        self._capacity = slice(first_capacity, first_pool)
        self._pool = slice(first_pool, shape[0])
        self._cuts = slice(shape[0], None)
        self._column_of = np.full((gpus, items), -1, dtype=np.int32)
        whole = s == 0
        self._column_of[g[whole], i[whole]] = columns[whole]
        self._cover = slice(0, first_capacity)
        self._row_lower = np.full(shape[0], -np.inf)
        self._row_upper = np.concatenate([np.full(first_capacity, data.slices), (-u * data.loss).ravel(), data.pool_limit])
        box = root_box(data)
        lower, upper = self._column_bounds(box)
        # HiGHS' tolerances are absolute: it sees prices of at most 1.
        self._dearest = float(data.price.max(initial=0.0)) or 1.0
        cost = np.concatenate([data.price / self._dearest, np.zeros(len(s))])
        self._program = LinearProgram(cost, matrix, *self._rows_for(box), lower, upper)

    def _column_bounds(self, box: Box) -> tuple[FloatArray, FloatArray]:
        return np.concatenate([box.n_lo, box.y_lo[self._place]]), np.concatenate([box.n_hi, box.y_hi[self._place]])

    def _rows_for(self, box: Box) -> tuple[FloatArray, FloatArray]:
        """Row bounds: a situation that the box need not face asks for no cover and misses no replica."""
        faced = active(self.data, box.n_lo)
        row_lower, row_upper = self._row_lower.copy(), self._row_upper.copy()
        row_lower[self._cover] = np.repeat(np.where(faced, self.data.slices, 0.0), len(self.data.items))
        row_upper[self._capacity] = np.where(faced[:, None], -self.data.instance.max_utilisation * self.data.loss, 0.0).ravel()
        return row_lower, row_upper

    def solve(self, box: Box, time_limit_s: float = math.inf) -> Relaxed:
        """Solve over the box. When infeasible, w and pi are a Farkas multiplier (zeros if HiGHS gave none)."""
        data = self.data
        lower, upper = self._column_bounds(box)
        row_lower, row_upper = self._rows_for(box) if data.situations > 1 else (None, None)
        answer = self._program.solve(lower, upper, row_lower, row_upper, time_limit_s)
        shape = (data.situations, len(data.price))
        y = np.zeros((data.situations, *data.can_serve.shape))
        if answer.x is None or answer.row_dual is None:
            return Relaxed(answer.status, math.inf, np.zeros(shape[1]), y, *self._from_ray(answer.ray, shape))
        y[self._place] = answer.x[shape[1] :]
        dual = answer.row_dual * self._dearest
        w = np.maximum(-dual[self._capacity].reshape(shape), 0.0)
        pi = np.maximum(-dual[self._pool], 0.0)
        mu = np.maximum(dual[self._cuts], 0.0)
        paid = data.price.copy()
        for index in np.flatnonzero(mu > 0):
            paid[self.cuts[index].gpu] -= mu[index]
        return Relaxed("optimal", answer.objective * self._dearest, answer.x[: shape[1]], y, *within_prices(data, w, pi, paid), mu)

    def add_cut(self, cut: Cut) -> None:
        """Add a valid row n_g + gamma y_g >= delta."""
        self.cuts.append(cut)
        items = np.flatnonzero((self._column_of[cut.gpu] >= 0) & (cut.slice_coefficient != 0))
        columns = np.concatenate([[cut.gpu], self._column_of[cut.gpu, items]]).astype(np.int32)
        self._program.add_row(columns, np.concatenate([[1.0], cut.slice_coefficient[items]]), cut.right_side, np.inf)

    def _from_ray(self, ray: FloatArray | None, shape: tuple[int, int]) -> tuple[FloatArray, FloatArray, FloatArray]:
        if ray is None or not np.isfinite(ray).all():
            return np.zeros(shape), np.zeros(len(self.data.pool_limit)), np.zeros(len(self.cuts))
        w, pi, mu = -ray[self._capacity].reshape(shape), -ray[self._pool], ray[self._cuts]
        if w.sum() + pi.sum() + mu.sum() < 0:
            w, pi, mu = -w, -pi, -mu
        w, pi, mu = np.maximum(w, 0.0), np.maximum(pi, 0.0), np.maximum(mu, 0.0)
        largest = max(float(w.max(initial=0.0)), float(pi.max(initial=0.0)), float(mu.max(initial=0.0)), 1e-300)
        return w / largest, pi / largest, mu / largest


def within_prices(data: Data, w: FloatArray, pi: FloatArray, paid: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Scale down capacity prices that exceed what a replica costs by rounding alone: e_g just below 0 would be paid at the far end of the box."""
    paid = np.maximum(paid + pi @ data.pool_gpus, 0.0)
    asked = data.capacity * w.sum(axis=0)
    barely = (asked > paid) & (asked <= paid * (1 + 1e-6))
    return np.where(barely, w * (paid / np.where(asked > 0, asked, 1.0) * (1 - 1e-15)), w), pi


def best_prices(instance: GpuSelection, progress: Progress) -> tuple[FloatArray, FloatArray, bool]:
    """Prices (w [S][G], pi [P]) of the root relaxation, and whether they prove that it is infeasible.

    Every item must have a type that can serve it. Without an answer from HiGHS in time: w = p / u, the closed form's prices.
    """
    data = data_of(instance)
    plain = np.zeros((data.situations, len(data.price)))
    plain[0] = data.price / data.capacity * (1 - 1e-15)
    fallback = plain, np.zeros(len(data.pool_limit)), False
    answer = Relaxation(data).solve(root_box(data), progress.remaining_s)
    if answer.status == "infeasible":
        proves = exact_dual_value(data, answer.w, answer.pi, cost=False) > 0
        return (answer.w, answer.pi, True) if proves else fallback
    return (answer.w, answer.pi, False) if answer.status == "optimal" else fallback


__all__ = ["Relaxation", "Relaxed", "best_prices", "within_prices"]
