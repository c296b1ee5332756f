"""The linear relaxation of bin packing over patterns, by column generation, and packings found by rounding it down a dive.

Cutting-stock form: items of size s_i are asked for d_i times. minimise sum_p x_p subject to sum_p a_ip x_p >= d_i over all patterns p (Gilmore
and Gomory, doi 10.1287/opre.9.6.849). For whole weights u_i and V = the most that a pattern weighs, every packing has at least
ceil(sum_i d_i u_i / V) bins (Farley, doi 10.1287/opre.38.5.922): all whole numbers, so the bound is exact whatever the linear program's rounding.
Duals are smoothed (Wentges, doi 10.1016/S0969-6016(97)00001-4); a round of pricing takes a pattern, then patterns of what the first ones left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from headroom.solvers.bin_patterns import QUICK_FROM, best_pattern, good_pattern
from headroom.solvers.compiled import compiled
from headroom.solvers.linear_program import LinearProgram

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
SCALE: Final = 1_000_000_000
"""A dual of 1, as a whole number."""
SMOOTHING: Final = 0.5
MOST_A_ROUND: Final = 8
"""Patterns that a round of pricing adds at most."""
WORTH: Final = 1e-7
"""Reduced cost that counts."""
QUICK_WORTH: Final = 1e-3
"""Reduced cost of a quick search's pattern that makes a full search needless for now."""
INTEGRAL: Final = 1e-6


@dataclass(frozen=True)
class Items:
    """`size` [m] falling and distinct, `demand` [m] >= 1, `capacity`: whole."""

    size: IntArray
    demand: IntArray
    capacity: int

    @property
    def bins_by_volume(self) -> int:
        return -(-int((self.size * self.demand).sum()) // self.capacity)

    def rest(self, demand: IntArray) -> Items:
        """The items that are still asked for."""
        left = demand > 0
        return Items(self.size[left], demand[left], self.capacity)


def items_of(sizes: IntArray, capacity: int) -> Items:
    """Equal sizes counted."""
    size, demand = np.unique(sizes, return_counts=True)
    return Items(size[::-1].astype(np.int64).copy(), demand[::-1].astype(np.int64).copy(), int(capacity))


@dataclass
class Relaxation:
    """The master program of one set of items, with all patterns found so far. `bound`: bins that `weights` prove."""

    items: Items
    stop: Callable[[], bool] = lambda: False
    bound: int = field(default=0, init=False)
    share: float = field(default=0.0, init=False)
    """The bound before rounding up, of the weights `sharpest`: a little less than the program's value."""
    weights: IntArray = field(init=False)
    sharpest: IntArray = field(init=False)
    exact: bool = field(init=False)
    """Whether nothing prices out any more."""
    value: float = field(default=math.inf, init=False)
    x: FloatArray = field(init=False)
    dual: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        items = self.items
        self._store, self._count = np.zeros((256, len(items.size)), np.int64), 0
        self._known: set[bytes] = set()
        self.weights = self.sharpest = items.size.copy()
        self.exact = False
        self._improved = False
        self.bound = items.bins_by_volume
        self.share = float((items.size * items.demand).sum() / items.capacity)
        self._program: LinearProgram | None = None
        self._lower = self.items.demand.astype(np.float64)

    def add(self, patterns: IntArray) -> int:
        """Add patterns [n][m]; those that are there already are left out. Returns how many were new."""
        fresh = []
        for pattern in patterns:
            key = pattern.astype(np.int32).tobytes()
            if key not in self._known:
                self._known.add(key)
                fresh.append(pattern)
        if fresh:
            rows = np.array(fresh, np.int64)
            first, self._count = self._count, self._count + len(rows)
            if self._count > len(self._store):
                grown = np.zeros((2 * self._count, rows.shape[1]), np.int64)
                grown[:first] = self._store[:first]
                self._store = grown
            self._store[first : self._count] = rows
            if self._program is not None:
                count = len(rows)
                matrix = sp.csc_matrix(rows.T.astype(np.float64))
                self._program.add_columns(np.ones(count), matrix, np.zeros(count), np.full(count, math.inf))
        return len(fresh)

    @property
    def patterns(self) -> IntArray:
        """All patterns so far, in the order in which they came [n][m]."""
        return self._store[: self._count]

    def solve(self, demand: IntArray | None = None, upper: FloatArray | None = None) -> None:
        """Solve the master over the patterns so far; `demand`, `upper` [patterns] in place of the items' own."""
        if self._program is None:
            matrix = sp.csc_matrix(self.patterns.T.astype(np.float64))
            rows, columns = matrix.shape
            infinite = np.full(columns, math.inf)
            self._program = LinearProgram(np.ones(columns), matrix, self._lower, np.full(rows, math.inf), np.zeros(columns), infinite, primal=True)
        row_lower = self._lower if demand is None else demand.astype(np.float64)
        upper = np.full(len(self.patterns), math.inf) if upper is None else upper
        infinite = np.full(len(row_lower), math.inf)
        answer = self._program.solve(lower=np.zeros(len(self.patterns)), upper=upper, row_lower=row_lower, row_upper=infinite)
        if answer.status != "optimal" or answer.x is None or answer.row_dual is None:
            raise RuntimeError(f"the linear program of bin patterns ended as {answer.status}")
        self.value, self.x, self.dual = answer.objective, answer.x, np.maximum(answer.row_dual, 0.0)

    def price(self, dual: FloatArray, demand: IntArray, exact: bool) -> tuple[IntArray, int | None]:
        """Patterns [n][m] that weigh much under these duals, and the most that any can weigh (in SCALE).

        Not exact: where a table of all loads is large, quick searches come first; if these find something the second is None.
        """
        value = np.floor(dual * SCALE).astype(np.int64)
        items = self.items
        cells = int(np.minimum(demand, items.capacity // items.size).sum()) * (items.capacity + 1)
        searches = (good_pattern, best_pattern) if cells >= QUICK_FROM and not exact else (best_pattern,)
        for search in searches:
            left, found, most = demand.copy(), list[IntArray](), 0
            for n in range(MOST_A_ROUND):
                # Only the first need be the best of all; what the others leave may come from a quick search where a table is large.
                best = (good_pattern if n and cells >= QUICK_FROM else search)(items.size, value, left, items.capacity)
                if n == 0:
                    most = best.bound
                if best.value <= SCALE * (1 + QUICK_WORTH if search is good_pattern else 1 + WORTH) and (n or search is good_pattern):
                    break
                found.append(best.copies)
                left = left - best.copies
            if found and search is good_pattern:
                return np.array(found, np.int64), None
            if search is best_pattern:
                break
        return np.array(found, np.int64), most

    def generate(self, exact: bool = False, on_bound: Callable[[], object] = lambda: None, known: int = 0) -> None:
        """Rounds of pricing until the bound, or `known` bins that somebody proved, meets the master's value rounded up; `exact`: until nothing
        prices out."""
        items = self.items
        at = np.zeros(len(items.size))
        first = True
        while True:
            if self.stop():
                break
            self.solve()
            smooth = self.dual if first else SMOOTHING * at + (1 - SMOOTHING) * self.dual
            added = self._priced(smooth)
            if first or self._improved:
                at = smooth.copy()
            first = False
            on_bound()
            if self._done(exact, known):
                break
            if not added and (smooth is self.dual or not self._priced(self.dual)):
                self.exact = True
                break
        self.exact |= exact and not self.stop()

    def _done(self, exact: bool, known: int) -> bool:
        """Whether bound and value have met, as far as bins go."""
        return max(self.bound, known) >= math.ceil(self.value - INTEGRAL) and (not exact or self.share >= self.value * (1 - 1e-9))

    def _priced(self, dual: FloatArray) -> int:
        patterns, most = self.price(dual, self.items.demand, exact=False)
        weights = np.floor(dual * SCALE).astype(np.int64)
        self._improved = False
        total = int((weights * self.items.demand).sum())
        if most:
            share = total / most
            if share > self.share:
                self.share, self._improved = share, True
                self.sharpest = weights
            if -(-total // most) > self.bound:
                self.bound, self.weights = -(-total // most), weights
        useful = patterns[(patterns @ self.dual) > 1 + WORTH]
        return self.add(useful)


def greedy(items: Items, demand: IntArray) -> IntArray:
    """Patterns of a packing: bins filled one after the other with the largest items that fit, over and over. O(bins m)."""
    flat, count = _greedy(items.size, demand.copy(), items.capacity)
    return flat[: count * len(demand)].reshape(count, len(demand))


@compiled
def _greedy(size: IntArray, left: IntArray, capacity: int) -> tuple[IntArray, int]:
    m, count, first = len(size), 0, 0
    flat = np.zeros(64 * m, np.int64)
    while True:
        while first < m and left[first] == 0:
            first += 1
        if first == m:
            return flat, count
        if (count + 1) * m > len(flat):
            grown = np.zeros(2 * len(flat), np.int64)
            grown[: len(flat)] = flat
            flat = grown
        room = capacity
        for i in range(first, m):
            k = min(left[i], room // size[i])
            if k > 0:
                flat[count * m + i] = k
                left[i] -= k
                room -= k * size[i]
        count += 1


def dive(relaxation: Relaxation, wanted: int, most: int, rng: np.random.Generator | None = None, rounds: int = 30) -> IntArray | None:
    """Patterns of a packing with at most `most` bins, found by fixing patterns of the relaxation and pricing again; None where that fails.

    It ends as soon as it has `wanted` bins. With `rng` which pattern is rounded up is drawn among the fullest fractions.
    """
    items = relaxation.items
    left = items.demand.copy()
    fixed: list[IntArray] = []
    best: IntArray | None = None
    proper = np.ones(0, np.bool_)  # patterns of what is left; fewer and fewer of the old ones
    changed = np.zeros(0, np.int64)
    while True:
        if relaxation.stop():
            return best
        rest = greedy(items, left)
        if len(fixed) + len(rest) <= most:
            best, most = np.array([*fixed, *rest], np.int64), len(fixed) + len(rest) - 1
        room = most - len(fixed)
        if most < wanted or not left.any() or -(-int((items.size * left).sum()) // items.capacity) > room:
            return best
        relaxation.add(rest)
        for _ in range(rounds):
            proper &= (relaxation.patterns[: len(proper), changed] <= left[changed]).all(axis=1)
            proper = np.append(proper, (relaxation.patterns[len(proper) :] <= left).all(axis=1))
            changed = changed[:0]
            relaxation.solve(left, np.where(proper, math.inf, 0.0))
            if math.ceil(relaxation.value - INTEGRAL) <= wanted - len(fixed):
                break  # good enough: better fractions would not be rounded any better
            patterns, heaviest = relaxation.price(relaxation.dual, left, exact=False)
            total = int((np.floor(relaxation.dual * SCALE).astype(np.int64) * left).sum())
            bound = -(-total // heaviest) if heaviest else 0
            if bound > room:
                return best
            if not relaxation.add(patterns[(patterns @ relaxation.dual) > 1 + WORTH]) or math.ceil(relaxation.value - INTEGRAL) <= bound:
                break
        x = relaxation.x[: len(relaxation.patterns)]
        whole = np.floor(x + INTEGRAL).astype(np.int64)
        chosen = np.repeat(np.flatnonzero(whole), whole[whole > 0])
        if not len(chosen):
            order = np.argsort(-x, kind="stable")
            pick = 0 if rng is None else min(int(rng.geometric(0.5)) - 1, int((x > INTEGRAL).sum()) - 1)
            chosen = order[pick : pick + 1]
        before = left
        for p in chosen:
            pattern = np.minimum(relaxation.patterns[p], left)
            if pattern.any():
                fixed.append(pattern)
                left = left - pattern
        changed = np.flatnonzero(left != before)
