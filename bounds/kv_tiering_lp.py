r"""The LP relaxation of KV-cache tiering in its path formulation, and the Lagrangian multipliers that its duals are.

Columns: x_itk for k < z (x_itz is what is missing to 1), one y_itkl for each move k -> l, T_t. A stay is x_itk less the moves into k. It need not be
kept from being negative: a block that moves into k and out of k in one step does better by going directly or by staying, so some optimum has none of
that. Where `inclusive` moves into z are free and this argument fails, so rows say it.

The duals of `time` are weights lambda_tk >= 0 with sum_k lambda_tk = 1, those of `capacity` prices mu_tk >= 0. For any such numbers

    L(lambda, mu) = sum_i (shortest path of block i) - sum_tk mu_tk C_k + sum_t lambda_t0 f_t / R_0

is a bound, which `kv_tiering_lagrangian` recomputes; for the LP's own duals it is the LP's value. So nothing of the solver has to be believed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.kv_tiering import KvTiering

if TYPE_CHECKING:
    import scipy.sparse as sp

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Algorithm = Literal["simplex", "ipm", "pdlp"]
LARGEST_PROGRAM = 600_000
"""Columns beyond which the program is not built: 150,000 take simplex 6 s, and its time grows faster than their number."""


def lp(instance: KvTiering, params: SolveParams, progress: Progress, algorithm: Algorithm = "simplex") -> Bound:
    """The bound that the LP's duals prove, by HiGHS' `algorithm` (simplex: exact duals; the others stop near them, IPM without crossover).

    What HiGHS leaves unsolved (too large, no time, interrupted) falls back to constant weights without prices: the bandwidth bound. One thread.
    """
    from headroom.bounds.kv_tiering_lagrangian import certified_value

    found = lp_prices(instance, params, progress, algorithm)
    return Bound(certified_value(instance, found.certificate), "lp", "certificate", found.certificate)


@dataclass(frozen=True)
class Prices:
    """A certificate, and the LP's value in seconds that HiGHS claims (-inf when it did not finish)."""

    certificate: Mapping[str, Any]
    claimed: float = -math.inf


def lp_prices(instance: KvTiering, params: SolveParams, progress: Progress, algorithm: Algorithm = "simplex") -> Prices:
    """Solve the LP and turn its duals into multipliers [T][K], [T][K - 1]."""
    tiers = len(instance.tiers)
    rate = 1.0 / instance.read_s
    plain = Prices(certificate_of(np.tile(rate / rate.sum(), (instance.steps, 1)), np.zeros((instance.steps, tiers - 1))))
    if columns(instance) > LARGEST_PROGRAM:
        return plain
    from headroom.solvers.linear_duals import row_duals

    program = build(instance)
    found = row_duals(program.cost, program.matrix, program.row_lower, program.row_upper, program.upper, progress, algorithm)
    if found is None:
        return plain
    dual = found.row_dual
    weights = np.maximum(dual[: instance.steps * tiers].reshape(instance.steps, tiers), 0.0)
    total = weights.sum(axis=1, keepdims=True)
    weights = np.where(total > 0, weights / np.where(total > 0, total, 1.0), rate / rate.sum())
    # Where there is no room a price costs nothing: one that is more than being there can ever save.
    price = np.full((instance.steps, tiers - 1), 4 * (instance.read_s.max() + instance.write_s.max()))
    price[:, program.bounded] = -dual[instance.steps * tiers :][: instance.steps * len(program.bounded)].reshape(instance.steps, -1)
    price[:, program.bounded] *= program.unit_s / instance.capacity[program.bounded]
    return Prices(certificate_of(weights, np.maximum(price, 0.0)), found.value * program.unit_s)


def certificate_of(weights: FloatArray, price: FloatArray) -> dict[str, Any]:
    """lambda [T][K], mu [T][K - 1] in seconds a byte."""
    return {"kind": "lagrangian", "lambda": weights, "mu": price}


def columns(instance: KvTiering) -> int:
    """Columns of the program."""
    tiers = len(instance.tiers)
    return instance.block_steps * (tiers - 1) + (instance.block_steps - instance.blocks) * tiers * (tiers - 1) + instance.steps


@dataclass
class _Entries:
    """Coefficients as they come: row, column, value."""

    row: list[IntArray] = field(default_factory=list)
    column: list[IntArray] = field(default_factory=list)
    value: list[FloatArray] = field(default_factory=list)

    def add(self, row: IntArray, column: IntArray, value: Any) -> None:
        row, column, value = np.broadcast_arrays(row, column, np.asarray(value, np.float64))
        self.row.append(row.ravel())
        self.column.append(column.ravel())
        self.value.append(value.ravel())

    def matrix(self, rows: int, columns: int) -> sp.csc_matrix:
        import scipy.sparse as sp

        value, row, column = (np.concatenate(part) for part in (self.value, self.row, self.column))
        kept = value != 0
        return sp.csc_matrix((value[kept], (row[kept], column[kept])), shape=(rows, columns))


@dataclass(frozen=True)
class Program:
    """minimise cost x, row_lower <= A x <= row_upper, 0 <= x <= upper. Rows: `time` [T][K], `capacity` [T][bounded], then the paths."""

    cost: FloatArray
    matrix: sp.csc_matrix
    row_lower: FloatArray
    row_upper: FloatArray
    upper: FloatArray
    bounded: IntArray
    """The tiers that have a row of capacity: bounded ones with room."""
    unit_s: float
    """Seconds of the unit of time."""


def build(instance: KvTiering) -> Program:
    """The program's arrays. O(N T K^2) entries."""
    return _Builder(instance).program()


class _Builder:
    """Pairs p are (block, step) of lives, block by block; q those after the birth step."""

    def __init__(self, instance: KvTiering) -> None:
        from headroom.formulations.kv_tiering_model import time_unit_s

        self.instance, self.last = instance, len(instance.tiers) - 1
        self.steps, tiers = instance.steps, len(instance.tiers)
        life = instance.death - instance.birth
        self.first = np.cumsum(life) - life
        self.pairs = int(life.sum())
        self.block = np.repeat(np.arange(instance.blocks), life)
        self.step = np.arange(self.pairs) - self.first[self.block] + instance.birth[self.block]
        self.later = np.flatnonzero(self.step > instance.birth[self.block])
        self.moves = [(k, l) for k in range(tiers) for l in range(tiers) if k != l]
        self.unit_s = time_unit_s(instance)
        self.read, self.write = instance.read_s / self.unit_s, instance.write_s / self.unit_s
        self.size = instance.size[self.block]
        self.wanted = self._wanted()
        self.bounded = np.flatnonzero(np.isfinite(instance.capacity) & (instance.capacity > 0))
        self.width = self.pairs * self.last + len(self.later) * len(self.moves) + self.steps
        self.entries = _Entries()
        self.constant = np.zeros((self.steps, tiers))

    def _wanted(self) -> FloatArray:
        """Bytes read of each pair."""
        reads = self.instance.reads
        step = np.repeat(np.arange(self.steps), np.diff(reads.indptr))
        found = np.zeros(self.pairs)
        amount = self.instance.size[reads.block] if reads.bytes is None else reads.bytes
        found[self.first[reads.block] + step - self.instance.birth[reads.block]] = amount
        return found

    def x(self, pair: IntArray, k: int) -> IntArray:
        return pair * self.last + k

    def y(self, which: IntArray, move: int) -> IntArray:
        """Column of a move of the pairs `later[which]`."""
        return self.pairs * self.last + which * len(self.moves) + move

    def program(self) -> Program:
        tiers, later = self.last + 1, self.later
        rows = self.steps * tiers
        self._time()
        capacity_rows = self.steps * len(self.bounded)
        for n, k in enumerate(self.bounded.tolist()):
            row = rows + self.step * len(self.bounded) + n
            self.entries.add(row, self.x(np.arange(self.pairs), k), self.size / self.instance.capacity[k])
        lower = [self.constant.ravel(), np.full(capacity_rows, -np.inf)]
        upper = [np.full(rows, np.inf), np.ones(capacity_rows)]
        rows += capacity_rows
        for low, high, count in (self._flow(rows), self._whole(rows + len(later) * self.last)):
            rows += count
            lower.append(np.full(count, low))
            upper.append(np.full(count, high))
        stays = self._stays(rows)
        lower.append(stays)
        upper.append(np.full(len(stays), np.inf))
        rows += len(stays)
        cost, most = np.zeros(self.width), np.ones(self.width)
        cost[-self.steps :], most[-self.steps :] = 1.0, np.inf
        for k in range(self.last):
            if self.instance.capacity[k] == 0:
                most[self.x(np.arange(self.pairs), k)] = 0.0
        matrix = self.entries.matrix(rows, self.width)
        return Program(cost, matrix, np.concatenate(lower), np.concatenate(upper), most, self.bounded, self.unit_s)

    def _time(self) -> None:
        """T_t - (what the variables make tier k work) >= what it works anyway."""
        tiers, z, inclusive = self.last + 1, self.last, self.instance.inclusive
        add, later, number = self.entries.add, self.later, np.arange(len(self.later))
        at = self.step * tiers
        add(np.arange(self.steps)[:, None] * tiers + np.arange(tiers), self.width - self.steps + np.arange(self.steps)[:, None], 1.0)
        self.constant[:, 0] += self.instance.fixed * self.read[0]
        born = (self.step == self.instance.birth[self.block]) & (self.step > 0)
        written = np.where(born, self.size, 0.0)
        every = np.arange(self.pairs)
        # Being in k after the step: read there (moves take that back), and written there at birth.
        in_last = self.wanted * self.read[z] + (0.0 if inclusive else 1.0) * written * self.write[z]
        np.add.at(self.constant[:, z], self.step, in_last + (written * self.write[z] if inclusive else 0.0))
        for k in range(z):
            add(at + k, self.x(every, k), -(self.wanted * self.read[k] + written * self.write[k]))
            add(at + z, self.x(every, k), in_last)
        at, size, wanted = at[later], self.size[later], self.wanted[later]
        for n, (k, l) in enumerate(self.moves):
            if inclusive and l == z:
                continue  # free, and the read is where the block then is
            add(at + k, self.y(number, n), -size * self.read[k])
            add(at + l, self.y(number, n), wanted * self.read[l] - size * self.write[l])

    def _flow(self, row: int) -> tuple[float, float, int]:
        """x_itk = x_i,t-1,k + moves into k - moves out of k, for k < z."""
        number = np.arange(len(self.later))
        for k in range(self.last):
            here = row + number * self.last + k
            self.entries.add(here, self.x(self.later, k), 1.0)
            self.entries.add(here, self.x(self.later - 1, k), -1.0)
            for n, (a, b) in enumerate(self.moves):
                if k in (a, b):
                    self.entries.add(here, self.y(number, n), 1.0 if k == a else -1.0)
        return 0.0, 0.0, len(self.later) * self.last

    def _whole(self, row: int) -> tuple[float, float, int]:
        """x_itz >= 0. With one bounded tier the column's own limit says so."""
        if self.last < 2:
            return 0.0, 1.0, 0
        every = np.arange(self.pairs)
        for k in range(self.last):
            self.entries.add(row + every, self.x(every, k), 1.0)
        return -np.inf, 1.0, self.pairs

    def _stays(self, row: int) -> FloatArray:
        """Lower sides of the rows "no stay is negative", where they are needed."""
        if not self.instance.inclusive:
            return np.zeros(0)
        number, tiers = np.arange(len(self.later)), self.last + 1
        for k in range(tiers):
            here = row + number * tiers + k
            for j in range(self.last) if k == self.last else (k,):
                self.entries.add(here, self.x(self.later, j), -1.0 if k == self.last else 1.0)
            for n, (_, b) in enumerate(self.moves):
                if b == k:
                    self.entries.add(here, self.y(number, n), -1.0)
        return np.tile(np.where(np.arange(tiers) == self.last, -1.0, 0.0), len(number))


__all__ = ["Algorithm", "Prices", "Program", "build", "certificate_of", "columns", "lp", "lp_prices"]
