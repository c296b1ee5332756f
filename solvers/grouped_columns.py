"""The linear relaxation of packing groups over patterns, by column generation, and packings found by rounding it down a dive.

minimise sum_p x_p  subject to  sum_p a_ip x_p >= d_i for every type i,  sum_{p has g} x_p >= n_g for groups that n_g >= 2 bins must have.

The second rows matter: without them a group's overhead is paid a fraction of a time. For whole weights u of types and v of groups, and V at least
what a pattern is worth, every packing has at least ceil((sum_i d_i u_i + sum_g n_g v_g) / V) bins (Farley, doi 10.1287/opre.38.5.922): whole numbers,
so exact whatever the linear program's rounding. Duals are smoothed (Wentges, doi 10.1016/S0969-6016(97)00001-4) from those of the volume on, and kept
from falling with size in a group by columns that give a place to a smaller item (dual inequalities, Valério de Carvalho 2005).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from headroom.solvers.grouped_patterns import GroupedItems, best_grouped_pattern
from headroom.solvers.grouped_search import fill
from headroom.solvers.linear_program import LinearProgram

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
SCALE: Final = 1 << 30
"""A dual of 1, as a whole number."""
SMOOTHING: Final = 0.5
MOST_A_ROUND: Final = 6
LARGE_TABLE: Final = 20_000_000
"""Types times capacity from which a round takes fewer patterns."""
WORTH: Final = 1e-7
INTEGRAL: Final = 1e-6
LAST_BINS: Final = 6
"""A dive fills the last bins without the linear program."""
LAST_TRIES: Final = 4


def filled_start(items: GroupedItems, bins: int, rng: np.random.Generator, stop: Callable[[], bool]) -> IntArray:
    """Patterns of a packing [n][m]: so many bins filled one after the other with what is worth most, the rest by next fit."""
    filled, rest = fill(items, items.demand, bins, rng, 0.0, stop)
    return np.concatenate([filled[filled.any(axis=1)], start_of(items, rest)])


def start_of(items: GroupedItems, demand: IntArray | None = None) -> IntArray:
    """Patterns of a packing [n][m]: next fit, group after group by falling overhead; of `demand` [m] if given. O(m + n)."""
    demand = items.demand if demand is None else demand
    found: list[IntArray] = []
    order = np.lexsort((-items.size, items.group, -items.overhead[items.group]))
    pattern, base, tokens, last = np.zeros(len(items.size), np.int64), 0, 0, -1
    for i in order.tolist():
        s, g, left = int(items.size[i]), int(items.group[i]), int(demand[i])
        if left == 0:
            continue
        if g != last:
            base, tokens, last = base + -(-tokens // items.multiple) * items.multiple, 0, g
            base += int(items.overhead[g])
        while left:
            room = max(items.capacity - base, 0) // items.multiple * items.multiple - tokens
            k = min(left, max(room, 0) // s)
            if k == 0:
                found.append(pattern)
                pattern, base, tokens = np.zeros(len(items.size), np.int64), int(items.overhead[g]), 0
                continue
            pattern[i] += k
            tokens += k * s
            left -= k
    found.append(pattern)
    return np.array([p for p in found if p.any()], np.int64).reshape(-1, len(items.size))


class _Master(LinearProgram):
    """Columns come, rows stay: the basis remains primal feasible, so the primal simplex goes on from it."""

    def __init__(self, cost: FloatArray, matrix: sp.csc_matrix, row_lower: FloatArray, row_upper: FloatArray, upper: FloatArray) -> None:
        super().__init__(cost, matrix, row_lower, row_upper, np.zeros(len(cost)), upper)
        self._solver.setOptionValue("simplex_strategy", 4)


@dataclass
class GroupedRelaxation:
    """The master program, with all patterns found so far. `least` [groups]: bins that each group must be in. `bound`: bins that `weights` [m] and
    `bonus` [groups] prove."""

    items: GroupedItems
    least: IntArray
    stop: Callable[[], bool] = lambda: False
    patterns: IntArray = field(init=False)
    bound: int = field(default=0, init=False)
    share: float = field(default=0.0, init=False)
    weights: IntArray = field(init=False)
    bonus: IntArray = field(init=False)
    value: float = field(default=math.inf, init=False)
    x: FloatArray = field(init=False)
    dual: FloatArray = field(init=False)
    """Of types, then of groups [m + groups]; 0 for groups without a row."""

    def __post_init__(self) -> None:
        items = self.items
        m = len(items.size)
        self.rows_of = np.flatnonzero(self.least >= 2)
        larger = np.flatnonzero(items.group[:-1] == items.group[1:])
        self._places = len(larger)
        entries = np.concatenate([np.full(len(larger), -1.0), np.ones(len(larger))])
        at = (np.concatenate([larger, larger + 1]), np.tile(np.arange(len(larger)), 2))
        self._exchange = sp.csc_matrix((entries, at), shape=(m + len(self.rows_of), len(larger)))
        self._known: set[bytes] = set()
        self._program: LinearProgram | None = None
        self.patterns = np.zeros((0, m), np.int64)
        # The volume's duals: a token is worth a token, a group its overhead. No bin holds more than its capacity.
        self.weights, self.bonus = items.size.copy(), np.where(self.least >= 1, items.overhead, 0)
        total = int((items.size * items.demand).sum() + (self.bonus * self.least).sum())
        self.bound, self.share = -(-total // items.capacity), total / items.capacity
        self._at = np.concatenate([items.size, items.overhead * (self.least >= 2)]) / items.capacity
        self._improved = False
        self.add(np.eye(m, dtype=np.int64))

    def _columns(self, patterns: IntArray) -> sp.csc_matrix:
        """Rows of types and of groups for patterns [n][m]."""
        present = np.zeros((len(patterns), len(self.rows_of)), np.float64)
        for k, g in enumerate(self.rows_of.tolist()):
            present[:, k] = patterns[:, self.items.first[g] : self.items.first[g + 1]].any(axis=1)
        return sp.csc_matrix(np.concatenate([patterns.astype(np.float64), present], axis=1).T)

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
            self.patterns = np.concatenate([self.patterns, rows])
            if self._program is not None:
                count = len(rows)
                self._program.add_columns(np.ones(count), self._columns(rows), np.zeros(count), np.full(count, math.inf))
        return len(fresh)

    def solve(self, demand: IntArray | None = None, least: IntArray | None = None, upper: FloatArray | None = None) -> None:
        """Solve the master over the patterns so far; `demand`, `least`, `upper` [patterns] in place of the items' own."""
        demand, least = self.items.demand if demand is None else demand, self.least if least is None else least
        lower = np.concatenate([demand, least[self.rows_of]]).astype(np.float64)
        infinite = np.full(len(lower), math.inf)
        upper = np.concatenate([np.full(self._places, math.inf), np.full(len(self.patterns), math.inf) if upper is None else upper])
        if self._program is None:
            cost = np.concatenate([np.zeros(self._places), np.ones(len(self.patterns))])
            self._program = _Master(cost, sp.hstack([self._exchange, self._columns(self.patterns)]), lower, infinite, upper)
        answer = self._program.solve(lower=np.zeros(len(upper)), upper=upper, row_lower=lower, row_upper=infinite)
        if answer.status != "optimal" or answer.x is None or answer.row_dual is None:
            raise RuntimeError(f"the linear program of grouped patterns ended as {answer.status}")
        m = len(demand)
        dual = np.maximum(answer.row_dual, 0.0)
        self.value, self.x, self.dual = answer.objective, answer.x[self._places :], np.zeros(m + len(least))
        self.dual[:m], self.dual[m + self.rows_of] = dual[:m], dual[m:]

    def worth(self, patterns: IntArray, dual: FloatArray) -> FloatArray:
        """What patterns [n][m] are worth under these duals."""
        m = len(self.items.size)
        present = np.stack([patterns[:, a:b].any(axis=1) for a, b in zip(self.items.first, self.items.first[1:], strict=False)], axis=1)
        found: FloatArray = patterns @ dual[:m] + present @ dual[m:]
        return found

    def price(self, dual: FloatArray, demand: IntArray) -> tuple[IntArray, int]:
        """Patterns [n][m] that are worth much under these duals, the best first, and what none is worth more than (in SCALE)."""
        items, m = self.items, len(demand)
        whole = np.floor(dual * SCALE).astype(np.int64)
        most_patterns = MOST_A_ROUND if m * items.capacity < LARGE_TABLE else 2
        left, found, most = demand.copy(), list[IntArray](), 0
        for n in range(most_patterns):
            best = best_grouped_pattern(items, whole[:m], whole[m:], left)
            if n == 0:
                most = best.bound
            if best.value <= SCALE * (1 + WORTH) and n:
                break
            found.append(best.copies)
            left = left - best.copies
            if not left.any() or self.stop():
                break
        return np.array(found, np.int64).reshape(-1, m), most

    def generate(self, known: int = 0, on_bound: Callable[[], object] = lambda: None) -> None:
        """Rounds of pricing until the bound, or `known` bins, meets the master's value, both rounded up, or nothing prices out."""
        while not self.stop():
            self.solve()
            if max(self.bound, known) >= math.ceil(self.value - INTEGRAL):
                return
            smooth = SMOOTHING * self._at + (1 - SMOOTHING) * self.dual
            added = self._priced(smooth)
            if self._improved:
                self._at = smooth
            on_bound()
            if self.bound >= math.ceil(self.value - INTEGRAL) or self.stop():
                return
            if not added:
                added = self._priced(self.dual)
                if self._improved:
                    self._at = self.dual
                on_bound()
                if not added or self.bound >= math.ceil(self.value - INTEGRAL):
                    return

    def _priced(self, dual: FloatArray) -> int:
        items, m = self.items, len(self.items.size)
        patterns, most = self.price(dual, items.demand)
        whole = np.floor(dual * SCALE).astype(np.int64)
        total = int((whole[:m] * items.demand).sum() + (whole[m:] * self.least).sum())
        self._improved = bool(most) and total / most > self.share
        if self._improved:
            self.share = total / most
        if most and -(-total // most) > self.bound:
            self.bound, self.weights, self.bonus = -(-total // most), whole[:m], whole[m:]
        return self.add(patterns[self.worth(patterns, self.dual) > 1 + WORTH]) if len(patterns) else 0


def placed(items: GroupedItems, pattern: IntArray, left: IntArray) -> IntArray:
    """What of `left` [m] goes into a pattern's places, large ones first: a place whose item is gone is for the next smaller one of its group."""
    found, spare, group = np.zeros_like(pattern), 0, -1
    for i in np.flatnonzero((pattern > 0) | (left > 0)).tolist():
        if items.group[i] != group:
            spare, group = 0, int(items.group[i])
        spare += int(pattern[i])
        found[i] = min(spare, int(left[i]))
        spare -= int(found[i])
    return found


def dive(relaxation: GroupedRelaxation, most: int, rng: np.random.Generator, draw: bool, rounds: int = 10) -> IntArray | None:
    """Patterns of a packing with at most `most` bins, found by fixing patterns of the relaxation and pricing again; None where that fails.

    `draw`: which pattern is rounded up is drawn among the fullest fractions, else it is the fullest.
    """
    items = relaxation.items
    left, fixed = items.demand.copy(), list[IntArray]()
    while True:
        room = most - len(fixed)
        tokens = items.tokens(left)
        least = -(-tokens // np.maximum(items.room, 1))
        volume = int((tokens + least * items.overhead).sum())
        if relaxation.stop() or volume > room * items.capacity:
            return None
        if room <= LAST_BINS:
            return _last(items, fixed, left, room, rng, relaxation.stop)
        for _ in range(rounds):
            proper = (relaxation.patterns <= left).all(axis=1)
            relaxation.solve(left, least, np.where(proper, math.inf, 0.0))
            patterns, heaviest = relaxation.price(relaxation.dual, left)
            whole, m = np.floor(relaxation.dual * SCALE).astype(np.int64), len(left)
            total = int((whole[:m] * left).sum() + (whole[m:] * least).sum())
            if heaviest and -(-total // heaviest) > room:
                return None
            worthy = patterns[relaxation.worth(patterns, relaxation.dual) > 1 + WORTH]
            if relaxation.stop() or not relaxation.add(worthy):
                break
        x = relaxation.x[: len(relaxation.patterns)]
        whole_part = np.floor(x + INTEGRAL).astype(np.int64)
        chosen = np.repeat(np.flatnonzero(whole_part), whole_part[whole_part > 0])
        if not len(chosen):
            order = np.argsort(-x, kind="stable")
            pick = min(int(rng.geometric(0.5)) - 1, int((x > INTEGRAL).sum()) - 1) if draw else 0
            chosen = order[pick : pick + 1]
        for p in chosen:
            pattern = placed(items, relaxation.patterns[p], left)
            if pattern.any():
                fixed.append(pattern)
                left = left - pattern


def _last(
    items: GroupedItems, fixed: list[IntArray], left: IntArray, room: int, rng: np.random.Generator, stop: Callable[[], bool]
) -> IntArray | None:
    if room <= 0:
        return np.array(fixed, np.int64) if not left.any() else None
    for n in range(LAST_TRIES):
        filled, rest = fill(items, left, room, rng, 0.02 * n, stop)
        if not rest.any():
            return np.array([*fixed, *filled[filled.any(axis=1)]], np.int64)
    return None


__all__ = ["GroupedRelaxation", "dive", "filled_start", "placed", "start_of"]
