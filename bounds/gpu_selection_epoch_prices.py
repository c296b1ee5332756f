r"""Prices for the Lagrangian bound over epochs, by Dantzig-Wolfe decomposition of one window of epochs.

    minimise  sum_t rent.h_t + rise.s_t + penalty.z_t
    serve     h_t + z_t - sum_j point_j lambda_tj >= 0             dual y_t >= 0: the prices
    rise      s_t - h_t + h_t-1 >= 0                               (s_t = 0 where nothing may rise)
    one       sum_j lambda_tj = 1      pool  k.h_t <= B            least_t <= h_t <= most

Points are fleets that can serve epoch t. Pricing asks, for each epoch alone, for the cheapest fleet at prices y_t: whole if the search is quick, else
divisible (a point of the linear relaxation). Every round's y is a valid bound; the last master's h is what plans are rounded from.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from headroom.bounds.gpu_selection_epochs import path_value, prices_value
from headroom.bounds.gpu_selection_fleet_cuts import CutPool
from headroom.bounds.gpu_selection_stages import Stages, stages_of, unserved_items
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.gpu_selection import GpuSelection

if TYPE_CHECKING:
    from headroom.solvers.linear_program import LinearProgram

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
ENOUGH = 2e-4
"""A window is left when its bound is this close, relative, to its master's objective (unless the caller is content with less)."""
SMOOTH = 0.6
"""Prices are taken this far back towards the best ones so far (Wentges' smoothing): the master's own jump about, and few of their bounds are good."""
PENALTY = 100.0
TIME_SHARE = 0.6
"""Part of the time left that prices may take: a plan wants the rest."""
WINDOW = 400
"""Epochs whose prices are found together."""


@dataclass
class WindowPrices:
    """Best prices of a window: `price` [T][G], `value` [T] what no fleet undercuts, `pool_price` [T][P], `bound` USD, `hold` [T][G] from the master,
    `missing` replicas that even the master lacked."""

    price: FloatArray
    value: FloatArray
    pool_price: FloatArray
    bound: float
    hold: FloatArray
    missing: float


class Window:
    """Epochs `first` .. `first + steps - 1`. After the first window the fleet before is free, which is a relaxation."""

    def __init__(self, stages: Stages, pool: CutPool, first: int, whole: bool = True) -> None:
        self.stages, self.pool, self.first, self.whole = stages, pool, first, whole
        self._points: list[list[IntArray]] = [[] for _ in range(stages.epochs)]
        self._seen: set[tuple[int, bytes]] = set()
        self._short = 0
        self._scale = float(stages.rent.max()) or float(stages.rise.max()) or 1.0
        self._program = self._master()

    def _master(self) -> LinearProgram:
        s, steps, types = self.stages, self.stages.epochs, self.stages.types
        n = steps * types
        identity = sp.eye_array(n, format="csc")
        back = sp.eye_array(n, k=-types, format="csc")
        pools = len(s.pool_limit)
        blocks = [
            [identity, None, identity],
            [back - identity, identity, None],
            [sp.csc_array((steps, n)), None, None],
        ]
        if pools:
            blocks.append([sp.kron(sp.eye_array(steps), sp.csc_array(s.pool_gpus), format="csc"), None, None])
        matrix = sp.csc_array(sp.block_array(blocks, format="csc"))
        rise_lower = np.zeros(n)
        rise_upper = np.where(np.repeat(s.may_rise, types), np.inf, 0.0)
        if s.initial is None:
            rise_lower[:types] = -np.inf  # the first fleet is free
        else:
            rise_lower[:types] = -s.initial.astype(np.float64)
        penalty = PENALTY * (s.rent + s.rise + 0.01 * self._scale)
        cost = np.concatenate([np.tile(s.rent, steps), np.tile(s.rise, steps), np.tile(penalty, steps)]) / self._scale
        row_lower = np.concatenate([np.zeros(n), rise_lower, np.ones(steps), np.full(steps * pools, -np.inf)])
        row_upper = np.concatenate([np.full(2 * n, np.inf), np.ones(steps), np.tile(s.pool_limit, steps)])
        lower = np.concatenate([s.least.ravel().astype(np.float64), np.zeros(2 * n)])
        upper = np.concatenate([np.tile(s.most.astype(np.float64), steps), rise_upper, np.full(n, np.inf)])
        self._rows = len(row_lower)
        from headroom.solvers.linear_program import LinearProgram

        return LinearProgram(cost, matrix, row_lower, row_upper, lower, upper)

    def _push(self, points: list[tuple[int, FloatArray]]) -> None:
        n, types = self.stages.epochs * self.stages.types, self.stages.types
        rows, columns, values = [], [], []
        for j, (t, point) in enumerate(points):
            used = np.flatnonzero(point > 0)
            rows += [*(t * types + used), 2 * n + t]
            columns += [j] * (len(used) + 1)
            values += [*(-point[used]), 1.0]
        new = len(points)
        matrix = sp.csc_matrix((values, (rows, columns)), shape=(self._rows, new))
        self._program.add_columns(np.zeros(new), matrix, np.zeros(new), np.full(new, np.inf))

    def _price(self, price: FloatArray) -> tuple[FloatArray, list[tuple[int, FloatArray]]]:
        """What no fleet undercuts [T], and new points."""
        divisible = self.stages.need_of(price) * (1 - 1e-12)
        value, new = divisible.copy(), []
        for t in range(self.stages.epochs):
            point: FloatArray | None = None
            if self.whole:
                known = np.array(self._points[t], dtype=np.float64) if self._points[t] else None
                value[t], fleet = self.pool.cheapest(self.first + t, price[t], float(divisible[t]), known)
                if fleet is not None:
                    point = fleet.astype(np.float64)
                    if value[t] < float(fleet @ price[t]) * (1 - 1e-6):
                        self._short += 1
            if point is None:
                point = self._divisible_point(t, price[t])
            key = (t, np.round(point, 9).tobytes())
            if key not in self._seen:
                self._seen.add(key)
                new.append((t, point))
                if self.whole and (point == np.round(point)).all():
                    self._points[t].append(point.astype(np.int64))
        if self._short > self.stages.epochs:
            # Whole fleets are too many here to search; the linear relaxation is close when they are large.
            self.whole = False
        return value, new

    def _divisible_point(self, t: int, price: FloatArray) -> FloatArray:
        """Every item on its cheapest type: the busy replicas [G]."""
        s = self.stages
        cost = np.where(np.isfinite(s.load), price[:, None] * np.where(np.isfinite(s.load), s.load, 0.0), np.inf)
        chosen = np.argmin(cost, axis=0)
        busy = s.rate[t] * np.where(s.rate[t] > 0, s.load[chosen, np.arange(len(chosen))], 0.0)
        point = np.bincount(chosen, weights=np.where(s.rate[t] > 0, busy, 0.0), minlength=s.types)
        return point.astype(np.float64)

    def run(
        self, stop: Callable[[], bool], enough: float = ENOUGH, rounds: int = 100, remaining_s: Callable[[], float] = lambda: math.inf
    ) -> WindowPrices:
        """Column generation until the bound meets the master, nothing new turns up, or `stop`. Anytime."""
        s, steps, types = self.stages, self.stages.epochs, self.stages.types
        n, pools = steps * types, len(s.pool_limit)
        start = np.tile(s.rent, (steps, 1))
        none = np.zeros((steps, pools))
        value, new = self._price(start)
        best = WindowPrices(start, value, none, float(value.sum()) + path_value(s, start, none), self._unheld(new), 0.0)
        stalled, last, smooth = 0, math.inf, SMOOTH
        for _ in range(rounds):
            if stop() or (not new and smooth == 0.0):
                break
            smooth = SMOOTH if new else 0.0  # nothing new near the best prices: next at the master's own
            self._push(new)
            answer = self._program.solve(time_limit_s=remaining_s())
            if answer.row_dual is None or answer.x is None:
                break
            objective = answer.objective * self._scale
            price = np.maximum(answer.row_dual[:n].reshape(steps, types), 0.0) * self._scale
            pool_price = np.maximum(-answer.row_dual[2 * n + steps :].reshape(steps, pools), 0.0) * self._scale if pools else none
            best.hold, best.missing = answer.x[:n].reshape(steps, types), float(answer.x[2 * n : 3 * n].sum())
            whole = self.whole
            price = smooth * best.price + (1 - smooth) * price
            pool_price = smooth * best.pool_price + (1 - smooth) * pool_price
            value, new = self._price(price)
            bound = float(value.sum()) + path_value(s, price, pool_price) - float((pool_price * s.pool_limit).sum())
            moving = bound > best.bound + 1e-5 * abs(best.bound) or objective < last - 1e-5 * abs(objective)
            stalled, last = 0 if moving else stalled + 1, min(last, objective)
            if bound > best.bound:
                best.price, best.value, best.pool_price, best.bound = price, value, pool_price, bound
            if whole and not self.whole:
                stalled = 0
            if objective - best.bound <= enough * abs(objective) or stalled > 8:
                break
        return best

    def _unheld(self, points: list[tuple[int, FloatArray]]) -> FloatArray:
        hold = np.zeros((self.stages.epochs, self.stages.types))
        for t, point in points:
            hold[t] = point
        return hold


def search_prices(stages: Stages, pool: CutPool, progress: Progress) -> WindowPrices:
    """Prices for the whole horizon, found window by window and set side by side: a replica that crosses a border starts free in the second window,
    so no path of the whole horizon earns more than its parts."""
    budget_s, begun = TIME_SHARE * progress.remaining_s, progress.elapsed_s
    found = []
    for first, last in _windows(stages, pool.need[0]):
        deadline = begun + budget_s * last / stages.epochs

        def stop(deadline: float = deadline) -> bool:
            return progress.should_stop() is not None or progress.elapsed_s > deadline

        window = Window(_part(stages, first, last), pool, first)
        found.append(window.run(stop, remaining_s=lambda: progress.remaining_s))
    return WindowPrices(
        price=np.vstack([part.price for part in found]),
        value=np.concatenate([part.value for part in found]),
        pool_price=np.vstack([part.pool_price for part in found]),
        bound=math.nan,
        hold=np.vstack([part.hold for part in found]),
        missing=sum(part.missing for part in found),
    )


def _windows(stages: Stages, need: FloatArray) -> list[tuple[int, int]]:
    """Borders about every WINDOW epochs, where the need is lowest: few replicas start there."""
    borders = [0]
    while stages.epochs - borders[-1] > 1.5 * WINDOW:
        begin, end = borders[-1] + WINDOW // 2, borders[-1] + WINDOW
        borders.append(begin + int(np.argmin(need[begin:end])))
    return list(itertools.pairwise([*borders, stages.epochs]))


def _part(stages: Stages, first: int, last: int) -> Stages:
    """Epochs first..last-1 alone. What stands before them is free after the first part."""
    return replace(
        stages,
        rate=stages.rate[first:last],
        least=stages.least[first:last],
        may_rise=stages.may_rise[first:last],
        initial=stages.initial if first == 0 else None,
    )


def epoch_prices(instance: GpuSelection, params: SolveParams, progress: Progress) -> Bound:
    """The Lagrangian bound over epochs by prices that column generation finds; +inf when some item has no type at all."""
    if len(unserved_items(instance)):
        return Bound(math.inf, "epoch_prices", "closed_form")
    stages = stages_of(instance)
    pool = CutPool(instance, stages)
    return price_bound(instance, stages, pool, search_prices(stages, pool, progress))


def price_bound(instance: GpuSelection, stages: Stages, pool: CutPool, prices: WindowPrices, with_cost: bool = True) -> Bound:
    """The bound that `verify` will recompute from these prices."""
    certificate: dict[str, object] = {"kind": "epoch_prices", "price": prices.price, "cuts": pool.cuts.copy(), "fleet_value": prices.value}
    certificate["with_cost"] = with_cost
    if len(stages.pool_limit):
        certificate["pool_price"] = prices.pool_price
    return Bound(prices_value(instance, certificate), "epoch_prices", "certificate", certificate)
