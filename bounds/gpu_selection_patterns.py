"""The linear programs over patterns of GPU selection, by column generation, and the price tables they yield. The tables are all a bound keeps.

Two programs over the same patterns z of types g, y_gz replicas with each:

    "cost"   minimise sum p_g y_gz         within a box's counts and pools: its bound is L of `gpu_selection_per_replica`
    "room"   minimise t                    s.t. sum_z y_gz <= n_g + t d_g for fixed counts n: t > 0 proves that n replicas cannot hold the slices,
                                           however they are packed; t <= 0 is the room left, which a packing wants most of

Pricing is a bounded knapsack for each type (`solvers.bounded_knapsack`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_per_replica import (
    Multipliers,
    PatternBox,
    PatternData,
    PriceTable,
    TreeNode,
    leaf_value,
    pattern_data,
    propagate_patterns,
    recheck_pattern_tree,
    root_pattern_box,
    to_pattern_certificate,
)
from headroom.formulations.progress import Progress
from headroom.formulations.tolerances import FEASIBILITY
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.gpu_selection import GpuSelection

if TYPE_CHECKING:
    from headroom.solvers.column_generation import Column, Generated, Options, Priced

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Pattern = tuple[int, IntArray]
"""(type, slices of each loaded item on one replica [I])."""
PATTERN_ROOM = 0.9 * FEASIBILITY
"""How far over `max_utilisation` a pattern may be: full within `evaluate`'s tolerance is full."""
EXACT, QUICK = 1e-9, 1e-3
"""Relative tolerance of the knapsacks."""
WORTH_MARGIN = 2e-10
"""Relative; what a price table adds to the knapsacks' bounds: the recheck, which adds up in another way, must not find more."""


def pattern_fits(data: PatternData, pattern: Pattern) -> bool:
    """Whether one replica can hold the pattern, by the rule of `evaluate`."""
    g, z = pattern
    loads = [float(n) * float(data.size[g, i]) for i, n in enumerate(z.tolist()) if n]
    return math.fsum(loads) <= data.instance.max_utilisation * (1.0 + PATTERN_ROOM)


@dataclass
class BestTable:
    """The price table with the best bound seen, and that bound (in USD/h, or as room t)."""

    value: float = -math.inf
    table: PriceTable | None = None
    pool: FloatArray | None = None
    with_cost: bool = True


class PatternProgram:
    """One of the two programs, kept warm over many boxes."""

    def __init__(self, data: PatternData, room_for: FloatArray | None = None) -> None:
        """`room_for`: d [G] of the "room" program; None: the "cost" program."""
        from headroom.solvers.column_generation import Master

        self.data, self.room_for = data, room_for
        gpus, items, pools = len(data.price), len(data.items), len(data.pool_limit)
        self._cover, self._count = slice(0, items), slice(items, items + gpus)
        self._pool = slice(items + gpus, items + gpus + pools)
        self._slice_row: dict[tuple[int, int], int] = {}
        # HiGHS' tolerances are absolute: it sees prices of at most 1.
        self.unit = float(data.price.max(initial=0.0)) or 1.0
        free = np.full(gpus + pools, np.inf)
        self.master = Master(np.concatenate([data.slices, -free]), np.concatenate([np.full(items, np.inf), free]))
        if room_for is not None:
            self.master.add([self._room_column(room_for)])
        self.box = root_pattern_box(data)
        self.pairs: tuple[tuple[int, int], ...] = ()
        self.open_types = np.ones(gpus, dtype=bool)
        self._center: FloatArray | None = None
        self.best = BestTable()
        self.residual: FloatArray | None = None
        """In a fork: the slices [I] that are left to place; prices then bound nothing."""

    def _room_column(self, room_for: FloatArray) -> Column:
        from headroom.solvers.column_generation import Column

        rows = np.arange(len(self.data.items), len(self.data.items) + len(room_for))
        return Column("room", 1.0, rows, -room_for, lower=-math.inf, integer=False)

    def column(self, pattern: Pattern) -> Column:
        """The pattern as a column of the master."""
        from headroom.solvers.column_generation import Column

        g, z = pattern
        held = np.flatnonzero(z)
        rows, values = [*held.tolist(), len(self.data.items) + g], [*z[held].tolist(), 1]
        if self.room_for is None:
            drawn = np.flatnonzero(self.data.pool_gpus[:, g])
            rows += (self._pool.start + drawn).tolist()
            values += self.data.pool_gpus[drawn, g].tolist()
        for i in held.tolist():
            if (g, i) in self._slice_row:
                rows.append(self._slice_row[g, i])
                values.append(int(z[i]))
        cost = float(self.data.price[g]) / self.unit if self.room_for is None else 0.0
        return Column((g, z.tobytes()), cost, np.array(rows, dtype=np.int64), np.array(values, dtype=np.float64))

    def pattern(self, column: Column) -> Pattern | None:
        """The pattern of a column; None for the column that is none."""
        if not isinstance(column.key, tuple):
            return None
        return int(column.key[0]), np.frombuffer(column.key[1], dtype=np.int64)

    def add(self, patterns: Sequence[Pattern]) -> int:
        """Add patterns that fit."""
        return self.master.add(self.column(pattern) for pattern in patterns if pattern_fits(self.data, pattern))

    def patterns(self) -> list[Pattern]:
        """All patterns at hand."""
        found = (self.pattern(column) for column in self.master.columns)
        return [pattern for pattern in found if pattern is not None]

    def solve(
        self,
        box: PatternBox,
        progress: Progress,
        options: Options | None = None,
        pairs: Sequence[tuple[int, int]] = (),
        center: FloatArray | None = None,
    ) -> Generated:
        """Generate over a propagated box; `pairs` are the (g, i) whose slices it bounds by a row. `best` then holds the best table."""
        from headroom.solvers.column_generation import generate

        self.set_box(box, pairs)
        return generate(self.master, self.price, progress, options, center)

    def pooled_duals(self, progress: Progress) -> FloatArray | None:
        """Duals to begin with: a slice costs what its load costs on its cheapest type in the pooled relaxation, whose bound they prove at least."""
        from headroom.bounds.gpu_selection_relaxation import best_prices

        data = self.data
        w, pi, infeasible = best_prices(data.instance.replace(packing="pooled", slices=None), progress)
        if infeasible:
            return None
        duals = np.zeros(self.master.rows)
        duals[self._cover] = np.where(data.can_hold, w[0][:, None] * data.size, np.inf).min(axis=0) / self.unit
        duals[self._pool] = -pi / self.unit
        return duals

    def separate(self, n: FloatArray, progress: Progress, options: Options) -> Generated:
        """The "room" program for counts n [G], all types priced, so that its best table holds for other counts too."""
        from headroom.solvers.column_generation import generate

        root = root_pattern_box(self.data)
        self.set_box(PatternBox(n, n, root.y_lo, root.y_hi))
        self.open_types = root.n_hi > 0
        self._use(self.data.copies)
        found = generate(self.master, self.price, progress, options, self._center)
        self._center = found.duals if found.ended != "stalled" else None
        return found

    def set_box(self, box: PatternBox, pairs: Sequence[tuple[int, int]] = ()) -> None:
        """Row bounds and usable columns for a box."""
        for pair in pairs:
            if pair not in self._slice_row:
                self._add_slice_row(*pair)
        self.box, self.pairs, self.best, self.open_types = box, tuple(pairs), BestTable(), box.n_hi > 0
        lower, upper = np.full(self.master.rows, -np.inf), np.full(self.master.rows, np.inf)
        lower[self._cover] = self.data.slices
        upper[self._count] = box.n_hi
        if self.room_for is None:
            lower[self._count], upper[self._pool] = box.n_lo, self.data.pool_limit
        for g, i in pairs:
            row = self._slice_row[g, i]
            lower[row] = box.y_lo[g, i] if box.y_lo[g, i] > 0 else -np.inf
            upper[row] = box.y_hi[g, i] if box.y_hi[g, i] < self.data.slices[i] else np.inf
        self.master.set_rows(lower, upper)
        self._use(np.minimum(self.data.copies, box.y_hi))

    def _use(self, most: FloatArray) -> None:
        """Close the columns of types that are closed, and those that have more slices of an item than `most` [G][I]."""
        upper = np.full(len(self.master.columns), np.inf)
        lower = np.zeros(len(upper))
        for j, column in enumerate(self.master.columns):
            pattern = self.pattern(column)
            if pattern is None:
                lower[j] = column.lower
            elif not self.open_types[pattern[0]] or (pattern[1] > most[pattern[0]]).any():
                upper[j] = 0.0
        self.master.set_bounds(lower, upper)

    def _add_slice_row(self, g: int, i: int) -> None:
        entries = np.zeros(len(self.master.columns))
        for j, column in enumerate(self.master.columns):
            pattern = self.pattern(column)
            if pattern is not None and pattern[0] == g:
                entries[j] = pattern[1][i]
        self._slice_row[g, i] = self.master.rows
        self.master.add_row(entries, -np.inf, np.inf)

    def price(self, duals: FloatArray, with_cost: bool, exact: bool) -> Priced:
        """The best pattern of each type at these duals, and the bound they give."""
        from headroom.solvers.bounded_knapsack import bounded_knapsack
        from headroom.solvers.column_generation import Priced

        data, box = self.data, self.box
        base = np.maximum(duals[self._cover], 0.0)
        changes = {pair: float(base[pair[1]] + duals[row]) for pair, row in self._slice_row.items() if duals[row] != 0}
        prices = np.tile(base, (len(data.price), 1))
        for pair, value in changes.items():
            prices[pair] = value
        most = np.minimum(data.copies, box.y_hi)
        if self.residual is not None:
            most = np.minimum(most, np.floor(self.residual))
        worth = np.zeros(len(data.price))
        found: list[Pattern] = []
        for g in np.flatnonzero(self.open_types).tolist():
            answer = bounded_knapsack(prices[g], data.size[g], most[g].astype(np.int64), data.capacity, EXACT if exact else QUICK)
            worth[g] = answer.upper_bound * (1 + WORTH_MARGIN)
            if pattern_fits(data, (g, answer.copies)):
                found.append((g, answer.copies))
        columns = [self.column(pattern) for pattern in found]
        if self.residual is not None:
            return Priced(columns, -math.inf)
        pool = np.maximum(-duals[self._pool], 0.0)
        bound = self._cost_bound if self.room_for is None else self._room_bound
        return Priced(columns, bound(base, prices, changes, worth, pool, with_cost))

    def _cost_bound(
        self, base: FloatArray, prices: FloatArray, changes: dict[tuple[int, int], float], worth: FloatArray, pool: FloatArray, with_cost: bool
    ) -> float:
        """L at these prices, and at Farley's scaling of them; the better one is kept. In the master's unit of cost."""
        data, box, unit = self.data, self.box, self.unit
        pool = pool * unit
        paid = (data.price if with_cost else np.zeros_like(data.price)) + pool @ data.pool_gpus
        rented = (worth > 0) & (box.n_hi > 0)
        farley = float((paid[rented] / (worth[rented] * unit)).min()) if rented.any() else 1.0
        best = -math.inf
        for scale in (unit, unit * farley * (1 - 1e-15)):
            if not (scale > 0 and math.isfinite(scale)):
                continue
            value = leaf_value(data, box, prices * scale, worth * scale, pool, with_cost)
            best = max(best, value)
            if value > self.best.value or with_cost != self.best.with_cost:
                changed = {pair: price * scale for pair, price in changes.items()}
                self.best = BestTable(value, PriceTable(base * scale, worth * scale, changed), pool, with_cost)
        return best / unit

    def _room_bound(
        self, base: FloatArray, prices: FloatArray, changes: dict[tuple[int, int], float], worth: FloatArray, pool: FloatArray, with_cost: bool
    ) -> float:
        """How much the counts must grow along d, at least: (value of the slices - worth of the replicas) / worth of d."""
        assert self.room_for is not None
        value = leaf_value(self.data, self.box, prices, worth, np.zeros(len(self.data.pool_limit)), with_cost=False)
        growth = float(worth @ self.room_for)
        if growth <= 0:
            bound = math.inf if value > 0 else -math.inf
        elif with_cost:
            bound = value / growth
        else:
            return -math.inf  # room is free in the phase without costs
        if bound > self.best.value:
            self.best = BestTable(bound, PriceTable(base, worth, changes), np.zeros(len(self.data.pool_limit)), False)
        return bound

    def fork(self) -> PatternProgram:
        """A program of its own for the present box, to dive in: it is used up by that."""
        fork = PatternProgram(self.data, self.room_for)
        for pair in self._slice_row:
            fork._add_slice_row(*pair)
        fork.set_box(self.box, self.pairs)
        most = np.minimum(self.data.copies, self.box.y_hi)
        fork.add([(g, z) for g, z in self.patterns() if self.open_types[g] and (z <= most[g]).all()])
        fork.residual = self.data.slices.copy()
        return fork

    def settle(self, chosen: Sequence[tuple[Column, int]]) -> bool:
        """For `dive`: take patterns for good. Rows keep what is left, patterns are trimmed to it. Whether anything is left."""
        assert self.residual is not None
        lower, upper = self.master.row_lower, self.master.row_upper
        for column, count in chosen:
            lower[column.rows] -= count * column.values
            upper[column.rows] -= count * column.values
            pattern = self.pattern(column)
            if pattern is not None:
                self.residual = np.maximum(self.residual - count * pattern[1], 0.0)
        lower[self._cover] = self.residual
        floors = slice(len(self.data.items), None)
        lower[floors] = np.where(lower[floors] > 0, lower[floors], -np.inf)
        upper[floors] = np.maximum(upper[floors], 0.0)
        self.open_types = self.open_types & (upper[self._count] >= 1)
        upper[self._count] = np.where(self.open_types, upper[self._count], np.inf)  # room counts only where there is some
        self.master.set_rows(lower, upper)
        patterns = [self.pattern(column) for column in self.master.columns]
        usable = [pattern is None or (self.open_types[pattern[0]] and bool((pattern[1] <= self.residual).all())) for pattern in patterns]
        wide = [pattern for pattern, fits in zip(patterns, usable, strict=True) if pattern is not None and not fits]
        self.master.keep_only(np.array(usable))
        trimmed = [(g, np.minimum(z, self.residual).astype(np.int64)) for g, z in wide if self.open_types[g]]
        self.add([pattern for pattern in trimmed if pattern[1].any()])
        return bool((self.residual > 0).any())


def column_generation_bound(instance: GpuSelection, params: SolveParams, progress: Progress) -> Bound:
    """The bound of column generation over patterns, with its slice prices as the certificate; +inf when they prove that there is no plan.

    Stopped early it is weaker and as valid; never below the divisible bound's prices by more than rounding. The value is what the recheck proves.
    """
    data = pattern_data(instance)
    if not data.can_hold.any(axis=0).all():
        return Bound(math.inf, "column_generation", "closed_form")
    root = TreeNode(Multipliers(pool=np.zeros(len(data.pool_limit))))
    box = propagate_patterns(data, root_pattern_box(data))
    tables: list[PriceTable] = []
    if box is not None and len(data.items):
        program = PatternProgram(data)
        program.solve(box, progress, center=program.pooled_duals(progress))
        tables, root = root_proof(program)
    certificate = to_pattern_certificate(root, tables)
    return Bound(recheck_pattern_tree(instance, certificate), "column_generation", "certificate", certificate)


def root_proof(program: PatternProgram) -> tuple[list[PriceTable], TreeNode]:
    """The program's best table as a tree of one leaf; the divisible bound's prices when it found none."""
    best, data = program.best, program.data
    if best.table is None or best.pool is None:
        none = np.zeros(len(data.pool_limit))
        with np.errstate(divide="ignore", invalid="ignore"):
            cheapest = np.where(data.can_hold, data.price[:, None] * data.size, np.inf).min(axis=0) / data.capacity
        table = PriceTable(cheapest * (1 - 1e-9), data.price.copy())
        return [table], TreeNode(Multipliers(((0, 1.0),), none))
    return [best.table], TreeNode(Multipliers(((0, 1.0),), best.pool, best.with_cost))


__all__ = ["PatternProgram", "column_generation_bound", "pattern_fits", "root_proof"]
