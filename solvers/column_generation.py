"""Column generation: a linear program with too many columns to write down, solved by asking for those that matter.

minimise sum_j c_j x_j  subject to  row_lower <= sum_j a_j x_j <= row_upper,  lower_j <= x_j <= upper_j

The caller prices: given a dual value for each row, it returns columns and a lower bound on the whole program that these duals prove (a
Lagrangian bound; what it is built of is the caller's business). Here is what every such method needs besides:

- smoothing of the duals (Wentges 1997, doi 10.1016/S0969-6016(97)00001-4): priced is a point between the duals of the best bound and those of
  the current master; when that finds no column the master misses, the master's own duals are priced (Pessoa et al. 2018,
  doi 10.1287/ijoc.2017.0784, call it a mis-pricing);
- a first phase without costs while the columns at hand cannot satisfy the rows; its bound above 0 proves that no columns can;
- early ends: at a cut-off, at a target, when bound and master meet; it is anytime: the best bound and its duals are always there;
- `dive` (round the solution up step by step, pricing again after each) and `integer_master` (the columns at hand as a mixed-integer program).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from headroom.formulations.progress import Progress
from headroom.formulations.types import SolveParams, Stop
from headroom.solvers.linear_program import TOLERANCE, LinearAnswer, LinearProgram

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
SLICE_S = 0.15
INTEGRAL = 1e-6
"""How near to an integer a column of the master counts as one: `dive` rounds it, and what it rounds is checked by the caller."""


@dataclass(frozen=True)
class Column:
    """A column: its cost, its entries, and a key that tells it from all others. `integer`: whether diving and the integer master round it."""

    key: Hashable
    cost: float
    rows: IntArray
    values: FloatArray
    lower: float = 0.0
    upper: float = math.inf
    integer: bool = True


@dataclass(frozen=True)
class Priced:
    """What pricing returns: columns that may help, and a lower bound on the program's value that the duals prove (-inf: none)."""

    columns: Sequence[Column]
    bound: float


Price = Callable[[FloatArray, bool, bool], Priced]
"""f(duals [rows], with_cost, exact) -> Priced. Without cost every column counts as free and the bound is on how far the rows are from being
satisfied, measured by the sum of the violations: above 0 it proves that nothing satisfies them. Not exact: a quick answer will do (its bound
must hold all the same); it is asked for until quick answers bring nothing more."""


@dataclass(frozen=True)
class Options:
    """When to end, and how to go about it."""

    cut_off: float = math.inf
    """End once the bound reaches this."""
    target: float = -math.inf
    """End once the master costs no more than this."""
    tolerance: float = 1e-9
    """Reduced cost that counts as none."""
    gap: float = 1e-9
    """Relative distance of bound and master at which they have met."""
    good_enough: float = -math.inf
    """A master that costs no more than this is left as soon as quick pricing brings nothing more."""
    smoothing: float = 0.5
    most_columns: int = 20_000
    on_bound: Callable[[float, FloatArray], None] | None = None
    """Told of each better bound and its duals (not in the phase without costs)."""


Ended = Literal["optimal", "cut_off", "target", "infeasible", "stalled", "stopped"]


@dataclass(frozen=True)
class Generated:
    """`bound` and the `duals` that prove it; `objective` and `x` [columns] of the last master, +inf and None when it was infeasible.

    ended: "optimal" (bound and master met, or no column is missing), "cut_off", "target", "infeasible" (the duals are a Farkas proof and
    `bound` is its value), "stalled" (the solver gave no answer), "stopped" (`progress` said so, see `stop`).
    """

    ended: Ended
    objective: float
    bound: float
    duals: FloatArray | None
    x: FloatArray | None
    rounds: int
    stop: Stop | None = None


class Master:
    """The restricted master: the columns at hand, two artificial ones for each row, and a simplex that stays warm."""

    def __init__(self, row_lower: FloatArray, row_upper: FloatArray, columns: Iterable[Column] = ()) -> None:
        rows = len(row_lower)
        self.row_lower, self.row_upper = np.array(row_lower, dtype=np.float64), np.array(row_upper, dtype=np.float64)
        self.columns: list[Column] = []
        self.lower, self.upper = np.zeros(0), np.zeros(0)
        self._known: set[Hashable] = set()
        unit = sp.identity(rows, format="csc")
        nothing = np.zeros(2 * rows)
        self._program = LinearProgram(nothing, sp.hstack([unit, -unit], format="csc"), self.row_lower, self.row_upper, nothing, nothing)
        self._artificial = np.ones(2 * rows, dtype=bool)
        self._cost = np.zeros(0)
        self._with_cost = False
        self.add(columns)

    @property
    def rows(self) -> int:
        return len(self.row_lower)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._known

    def add(self, columns: Iterable[Column]) -> int:
        """Add those columns whose keys are new; returns how many."""
        new = []
        for column in columns:
            if column.key not in self._known:
                self._known.add(column.key)
                new.append(column)
        if not new:
            return 0
        starts = np.concatenate([[0], np.cumsum([len(column.rows) for column in new])])
        entries = np.concatenate([column.values for column in new]), np.concatenate([column.rows for column in new]), starts
        cost = np.array([column.cost for column in new], dtype=np.float64)
        lower, upper = np.array([column.lower for column in new]), np.array([column.upper for column in new])
        matrix = sp.csc_matrix(entries, shape=(self.rows, len(new)))
        self._program.add_columns(cost if self._with_cost else np.zeros(len(new)), matrix, lower, upper)
        self._artificial = np.append(self._artificial, np.zeros(len(new), dtype=bool))
        self._cost = np.append(self._cost, cost)
        self.lower, self.upper = np.append(self.lower, lower), np.append(self.upper, upper)
        self.columns += new
        return len(new)

    def add_row(self, entries: FloatArray, lower: float, upper: float) -> None:
        """Append a row with `entries` [columns] for the columns at hand, and its artificial columns."""
        places = np.flatnonzero(~self._artificial)
        used = np.flatnonzero(entries)
        self._program.add_row(places[used].astype(np.int32), entries[used], lower, upper)
        self.row_lower, self.row_upper = np.append(self.row_lower, lower), np.append(self.row_upper, upper)
        pair = sp.csc_matrix((np.array([1.0, -1.0]), (np.array([self.rows - 1] * 2), np.array([0, 1]))), shape=(self.rows, 2))
        free = 0.0 if self._with_cost else math.inf
        self._program.add_columns(np.full(2, 0.0 if self._with_cost else 1.0), pair, np.zeros(2), np.full(2, free))
        self._artificial = np.append(self._artificial, [True, True])
        self.columns = [
            replace(column, rows=np.append(column.rows, self.rows - 1), values=np.append(column.values, entry)) if entry else column
            for column, entry in zip(self.columns, entries, strict=True)
        ]

    def set_rows(self, lower: FloatArray, upper: FloatArray) -> None:
        """Other row bounds from the next `solve` on."""
        self.row_lower, self.row_upper = np.array(lower, dtype=np.float64), np.array(upper, dtype=np.float64)

    def set_bounds(self, lower: FloatArray, upper: FloatArray) -> None:
        """Other column bounds [columns] from the next `solve` on."""
        self.lower, self.upper = np.array(lower, dtype=np.float64), np.array(upper, dtype=np.float64)

    def keep_only(self, wanted: npt.NDArray[np.bool_]) -> None:
        """Drop the columns [columns] that are not wanted; they may be added again."""
        gone = np.zeros(len(self._artificial), dtype=bool)
        gone[np.flatnonzero(~self._artificial)[~wanted]] = True
        self._program.delete_columns(gone)
        self._artificial, self._cost = self._artificial[~gone], self._cost[wanted]
        self.lower, self.upper = self.lower[wanted], self.upper[wanted]
        self.columns = [column for column, stays in zip(self.columns, wanted, strict=True) if stays]
        self._known = {column.key for column in self.columns}

    def reduced_costs(self, columns: Sequence[Column], duals: FloatArray, with_cost: bool = True) -> FloatArray:
        """c_j - duals a_j of any columns."""
        return np.array([(column.cost if with_cost else 0.0) - float(duals[column.rows] @ column.values) for column in columns])

    def solve(self, with_cost: bool = True, time_limit_s: float = math.inf) -> LinearAnswer:
        """Solve over the columns at hand; `x` and `column_dual` of the answer are theirs alone. Without cost: the least sum of violations."""
        artificial = self._artificial
        if with_cost != self._with_cost:
            cost = np.where(artificial, 0.0 if with_cost else 1.0, 0.0)
            cost[~artificial] = self._cost if with_cost else 0.0
            self._program.set_cost(cost)
            self._with_cost = with_cost
        lower, upper = np.zeros(len(artificial)), np.where(artificial, 0.0 if with_cost else math.inf, 0.0)
        lower[~artificial], upper[~artificial] = self.lower, self.upper
        answer = self._program.solve(lower, upper, self.row_lower, self.row_upper, time_limit_s)
        if answer.x is None or answer.column_dual is None:
            return answer
        return replace(answer, x=answer.x[~artificial], column_dual=answer.column_dual[~artificial])


@dataclass
class _Best:
    bound: float = -math.inf
    duals: FloatArray | None = field(default=None)


def generate(master: Master, price: Price, progress: Progress, options: Options | None = None, center: FloatArray | None = None) -> Generated:
    """Solve the program over all columns that `price` can name. `center`: duals to price first and to smooth towards (those of a like program).

    `master` keeps the columns. Exact up to `tolerance` when it ends "optimal"; the bound is valid whenever it ends.
    """
    options = options or Options()
    best, with_cost, rounds, exact = _Best(duals=center), True, 0, False
    if center is not None:
        priced = price(center, True, False)
        master.add(priced.columns)
        best.bound = priced.bound
        if options.on_bound is not None:
            options.on_bound(priced.bound, center)
    while True:
        answer, stop = _solved(master, with_cost, progress)
        if answer is None:
            return Generated("stopped", math.inf, best.bound if with_cost else -math.inf, best.duals, None, rounds, stop)
        if answer.status == "infeasible" and with_cost:
            with_cost, best = False, _Best()
            continue
        if answer.x is None or answer.row_dual is None:
            return Generated("stalled", math.inf, best.bound if with_cost else -math.inf, best.duals, None, rounds)
        rounds += 1
        if not with_cost:
            if answer.objective <= TOLERANCE * (1 + _largest(master.row_lower) + _largest(master.row_upper)):
                with_cost, best = True, _Best(duals=center)
                continue
        elif answer.objective <= options.target:
            return Generated("target", answer.objective, best.bound, best.duals, answer.x, rounds)
        added = _price_once(master, price, answer, with_cost, exact, best, options)
        if not (added or exact or (with_cost and answer.objective <= options.good_enough)):
            exact = True
            added = _price_once(master, price, answer, with_cost, exact, best, options)
        if not with_cost and best.bound > 0:
            return Generated("infeasible", math.inf, best.bound, best.duals, None, rounds)
        if not with_cost and not added:
            return Generated("stalled", math.inf, -math.inf, best.duals, None, rounds)
        if with_cost:
            if best.bound >= options.cut_off:
                return Generated("cut_off", answer.objective, best.bound, best.duals, answer.x, rounds)
            if not added or best.bound >= answer.objective - options.gap * abs(answer.objective):
                return Generated("optimal", answer.objective, best.bound, best.duals, _padded(answer.x, master), rounds)
        if len(master.columns) > options.most_columns:
            _clean(master, best.duals if best.duals is not None else answer.row_dual, options.most_columns // 2)


def _solved(master: Master, with_cost: bool, progress: Progress) -> tuple[LinearAnswer | None, Stop | None]:
    """The master's answer, or None and why there is none: a long solve is taken up again and again, so that an interrupt is heard."""
    slice_s = SLICE_S
    while True:
        stop = progress.should_stop()
        if stop is not None:
            return None, stop
        answer = master.solve(with_cost, min(slice_s, progress.remaining_s))
        if answer.status != "time_limit":
            return answer, None
        slice_s *= 2


def _price_once(master: Master, price: Price, answer: LinearAnswer, with_cost: bool, exact: bool, best: _Best, options: Options) -> int:
    """Price the smoothed point and, if that brings nothing, the master's own duals; returns how many columns were added."""
    assert answer.row_dual is not None
    own = answer.row_dual
    points = [own] if best.duals is None else [options.smoothing * best.duals + (1 - options.smoothing) * own, own]
    added = 0
    for point in points:
        priced = price(point, with_cost, exact)
        if priced.bound > best.bound:
            best.bound, best.duals = priced.bound, point
            if with_cost and options.on_bound is not None:
                options.on_bound(priced.bound, point)
        reduced = master.reduced_costs(priced.columns, own, with_cost)
        added = master.add(column for column, value in zip(priced.columns, reduced, strict=True) if value < -options.tolerance)
        if added or (with_cost and best.bound >= options.cut_off):
            break
    return added


def _largest(bounds: FloatArray) -> float:
    return float(np.abs(bounds[np.isfinite(bounds)]).max(initial=0.0))


def _padded(x: FloatArray, master: Master) -> FloatArray:
    """Columns added after the master was solved stand at 0."""
    return np.concatenate([x, np.zeros(len(master.columns) - len(x))])


def _clean(master: Master, duals: FloatArray, keep: int) -> None:
    """Keep the columns of least reduced cost, and those that may not be dropped because they are bounded away from 0 or not integer."""
    reduced = master.reduced_costs(master.columns, duals)
    wanted = np.zeros(len(reduced), dtype=bool)
    wanted[np.argsort(reduced, kind="stable")[:keep]] = True
    wanted |= (master.lower != 0) | np.array([not column.integer for column in master.columns])
    master.keep_only(wanted)


Settle = Callable[[list[tuple[Column, int]]], bool]
"""f(columns and how often each is taken for good) -> whether anything is left to do. It makes the master (rows, columns, and the pricing that
goes with it) what is left; the master's columns then start from 0."""


def dive(
    master: Master,
    price: Price,
    progress: Progress,
    settle: Settle,
    options: Options | None = None,
    give_up_above: float = math.inf,
    noise: tuple[np.random.Generator, float] | None = None,
) -> list[tuple[Column, int]] | None:
    """Round to an integer solution: take every column at its whole part, or else once the one nearest to it, and generate again for the rest.

    None when the master's cost gets above `give_up_above` (what is taken for good no longer counts in it), when it becomes infeasible, or when
    `progress` says stop. `noise` (generator, size) blurs which fraction is the largest. No guarantee; at most as many rounds as columns are taken.
    """
    taken: list[tuple[Column, int]] = []
    while True:
        found = generate(master, price, progress, options)
        if found.ended not in ("optimal", "target") or found.x is None or found.objective > give_up_above:
            return None
        x = np.where([column.integer for column in master.columns], _padded(found.x, master), 0.0)
        whole = np.floor(x + INTEGRAL)
        if not whole.any():
            blur = 0.0 if noise is None else noise[1] * noise[0].random(len(x)) * (x > INTEGRAL)
            nearest = int(np.argmax(x + blur))
            if x[nearest] <= INTEGRAL:
                return taken
            whole[nearest] = 1.0
        chosen = [(master.columns[j], int(whole[j])) for j in np.flatnonzero(whole)]
        taken += chosen
        if not settle(chosen):
            return taken


def integer_master(
    master: Master, params: SolveParams, progress: Progress, options: dict[str, Any] | None = None
) -> tuple[list[tuple[Column, int]] | None, str]:
    """The best integer solution over the columns at hand, by HiGHS (its name is returned too); None when it found none in time.

    Says nothing about columns that are not at hand, so its bound is no bound.
    """
    from headroom.solvers.highs import solve_mip
    from headroom.solvers.standard_form import StandardForm

    columns = master.columns
    starts = np.concatenate([[0], np.cumsum([len(column.rows) for column in columns])]).astype(np.int64)
    entries = np.concatenate([column.values for column in columns]), np.concatenate([column.rows for column in columns]), starts
    form = StandardForm(
        model=None,
        columns=(),
        cost=np.array([column.cost for column in columns]),
        constant=0.0,
        matrix=sp.csc_matrix(entries, shape=(master.rows, len(columns))),
        row_lower=master.row_lower,
        row_upper=master.row_upper,
        row_names=(),
        lower=master.lower,
        upper=master.upper,
        integer=np.array([column.integer for column in columns]),
    )
    answer = solve_mip(form, params, progress, options=options)
    if answer.x is None or not math.isfinite(answer.objective):
        return None, answer.solver
    return [(column, round(n)) for column, n in zip(columns, answer.x, strict=True) if column.integer and round(n) >= 1], answer.solver


__all__ = ["Column", "Generated", "Master", "Options", "Price", "Priced", "dive", "generate", "integer_master"]
