r"""A bound over epochs that is exact inside blocks of epochs, and at last over the whole horizon: certificate `fleet_blocks`.

Borders. Cut the horizon at epoch a. Since 0 <= lambda <= rise gives rise.(m_a - m_a-1)^+ >= lambda.(m_a - m_a-1), the cost is at least the sum
of the blocks' costs when the block before the border is credited lambda for each replica it leaves and the block behind it pays lambda for each it
begins with. Any such lambda is valid; it is taken from the prices' own paths: what one standing replica is worth there.

Blocks. In a block, dynamic programming over lists of whole fleets (`gpu_selection_labels`) keeps every fleet of epoch t whose cost so far plus a
bound of what follows stays within a target. What follows costs at least

    sum over later epochs s of v_s - pi_s.B   +   sum_g togo_g(m_g)      v_s: no fleet that serves epoch s has y_s.m below it

where togo_g is the cheapest path of the type's count alone, paying rent + pool prices - y and rises: the Lagrangian bound of `epoch_prices`, from
t on. If the search ends, the block costs at least min(target, least label). So a target at the block's optimum proves it.

Levels. Blocks are merged; the fleets of a merged block are searched the same way, with v_s.. replaced, beyond the end of the small block that t is
in, by what the former level proved for the blocks that follow. That leaves little slack, so few fleets, and the one block of the last level is the
problem itself: its value is the optimum over all fleets that satisfy the cuts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.certificates import CertificateError, floats, integers
from headroom.bounds.gpu_selection_labels import successors, undominated
from headroom.bounds.gpu_selection_stages import EPSILON, Stages

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MOST_LABELS = 8_000
"""Fleets kept for one epoch; more, and the block is left at what was proved before."""
MOST_FOUND = 400_000
MOST_NODES = 4_000_000
"""Nodes of one epoch's enumeration: about a third of a second."""


@dataclass
class Priced:
    """Prices `price` [T][G], `pool_price` [T][P], and `value` [T], which no fleet that serves undercuts at them.

    `rules(t)`: covering rules (A [K][G], b [K]) that every fleet A m >= b of epoch t keeps.
    """

    stages: Stages
    price: FloatArray
    pool_price: FloatArray
    value: FloatArray
    rules: Callable[[int], tuple[FloatArray, FloatArray]]
    most: IntArray = field(init=False)
    """Counts that some cheapest path never exceeds [T][G]."""
    worth: FloatArray = field(init=False)
    """What a replica that stands before epoch t is worth [T + 1][G]; lambda at a border."""

    def __post_init__(self) -> None:
        s = self.stages
        self.cost = s.rent + (self.pool_price @ s.pool_gpus if len(s.pool_limit) else 0.0) - self.price
        self.most = s.useful()
        self.constant = self.value - (self.pool_price @ s.pool_limit if len(s.pool_limit) else 0.0)
        self.worth = np.zeros((s.epochs + 1, s.types))
        stands, missing = np.zeros(s.types), np.zeros(s.types)
        for t in range(s.epochs - 1, -1, -1):
            serves = self.cost[t] + stands
            start = serves + s.rise if s.may_rise[t] else np.full(s.types, np.inf)
            stands, missing = np.minimum(serves, missing), np.minimum(missing, start)
            self.worth[t] = np.clip(missing - stands, 0.0, s.rise)


@dataclass(frozen=True)
class Tables:
    """A small block's `togo` [n][G][W] after each of its epochs, its Lagrangian `value`, and the largest number met, for rounding."""

    first: int
    togo: FloatArray
    value: float
    largest: float


def tables(priced: Priced, first: int, last: int) -> Tables:
    """Of epochs first .. last - 1. O(n G W)."""
    s, width = priced.stages, int(priced.stages.most.max(initial=0)) + 1
    togo = np.full((last - first, s.types, width), np.inf)
    total, largest = math.fsum(priced.constant[first:last]), float(np.abs(priced.constant[first:last]).sum())
    for g in range(s.types):
        x = np.arange(int(s.most[g]) + 1.0)
        behind = -priced.worth[last, g] * x if last < s.epochs else np.zeros(len(x))
        for t in range(last - 1, first - 1, -1):
            togo[t - first, g, : len(x)] = behind
            here = behind + priced.cost[t, g] * x
            here[: s.least[t, g]] = np.inf
            here[priced.most[t, g] + 1 :] = np.inf
            # Falling to x' <= x is free; rising to x' > x costs.
            behind = np.minimum.accumulate(here)
            if s.may_rise[t]:
                behind = np.minimum(behind, np.minimum.accumulate((here + s.rise[g] * x)[::-1])[::-1] - s.rise[g] * x)
            largest = max(largest, float(np.abs(here[np.isfinite(here)]).max(initial=0.0)) + s.rise[g] * len(x))
        if first > 0:
            total += float((here + priced.worth[first, g] * x).min())
        elif s.initial is None:
            total += float(here.min())
        else:
            total += float(behind[min(int(s.initial[g]), len(x) - 1)])
    return Tables(first, togo, total - 8 * (last - first + 8) * (s.types + 1) * EPSILON * largest, largest)


@dataclass(frozen=True)
class Found:
    """Of one search: `proved`, what the block costs at least; `value` and `path` [n][G] of the cheapest fleets within the target, if any."""

    proved: float
    value: float
    path: IntArray | None


class Blocks:
    """The horizon in small blocks, and what is proved of them, level by level."""

    def __init__(self, priced: Priced, borders: Sequence[int], stop: Callable[[], bool] = lambda: False) -> None:
        self.priced, self.small, self.stop = priced, list(itertools.pairwise(borders)), stop
        self._cached: Tables | None = None
        self._after = np.zeros(len(self.small))
        """Proved of what follows a small block inside the block that it now belongs to."""
        lagrangian = [self._tables(k).value for k in range(len(self.small))]
        self.members = [[k] for k in range(len(self.small))]
        """The small blocks of each block."""
        self.proved = lagrangian

    @property
    def total(self) -> float:
        """What is proved of the whole horizon [USD]."""
        total = math.fsum(self.proved)
        return total - 4 * EPSILON * math.fsum(abs(value) for value in self.proved)

    def span(self, number: int) -> tuple[int, int]:
        """Epochs first .. last - 1 of a block."""
        return self.small[self.members[number][0]][0], self.small[self.members[number][-1]][1]

    def merge(self, groups: Sequence[Sequence[int]]) -> None:
        """Blocks given by number, in order, become one each; what is proved of them adds up."""
        members, proved = [], []
        for group in groups:
            behind = 0.0
            for number in reversed(group):
                for k in self.members[number]:
                    self._after[k] += behind
                behind += self.proved[number] - 4 * EPSILON * abs(self.proved[number])
            members.append([k for number in group for k in self.members[number]])
            proved.append(behind)
        self.members, self.proved = members, proved

    def cost(self, number: int, path: IntArray) -> float:
        """What fleets [n][G] cost in the block, borders included."""
        s, (first, last) = self.priced.stages, self.span(number)
        total = float((path @ s.rent).sum() + (np.maximum(np.diff(path, axis=0), 0) @ s.rise).sum())
        if first > 0:
            total += float(self.priced.worth[first] @ path[0])
        elif s.initial is not None:
            total += float(s.rise @ np.maximum(path[0] - s.initial, 0))
        return total - (float(self.priced.worth[last] @ path[-1]) if last < s.epochs else 0.0)

    def search(self, number: int, target: float) -> Found | None:
        """All that costs less than the target in a block; None when the search grew too large or was stopped."""
        s, worth = self.priced.stages, self.priced.worth
        first, last = self.span(number)
        fleets, cost = (s.most if s.initial is None or first > 0 else s.initial)[None, :].astype(np.int64), np.zeros(1)
        kept: list[tuple[IntArray, FloatArray]] = []
        largest = abs(target) + float(np.abs(self._after[self.members[number]]).max(initial=0.0))
        pad = 0.0
        for k in self.members[number]:
            table = self._tables(k)
            pad = max(pad, 8 * (last - first + 8) * (s.types + 1) * EPSILON * (largest + table.largest))
            tail = math.fsum(self.priced.constant[self.small[k][0] : self.small[k][1]]) + self._after[k]
            for t in range(*self.small[k]):
                tail -= self.priced.constant[t]
                if self.stop():
                    return None
                enters = t == first and (first > 0 or s.initial is None)
                rent = s.rent + worth[first] if enters and first > 0 else s.rent
                step = self._step(t, fleets, cost, table.togo[t - table.first], rent, enters or bool(s.may_rise[t]), target + pad - tail)
                if step is None:
                    return None
                fleets, cost = step
                if not len(fleets):
                    return Found(target, math.inf, None)
                kept.append((fleets, cost))
        if last < s.epochs:
            cost = cost - fleets @ worth[last]
        best = int(np.argmin(cost))
        value = float(cost[best])
        return Found(min(target, value) - pad, value, self._path(first, kept, best))

    def _tables(self, k: int) -> Tables:
        if self._cached is None or self._cached.first != self.small[k][0]:
            self._cached = tables(self.priced, *self.small[k])
        return self._cached

    def _step(
        self, t: int, fleets: IntArray, cost: FloatArray, togo: FloatArray, rent: FloatArray, may_rise: bool, limit: float
    ) -> tuple[IntArray, FloatArray] | None:
        s = self.priced.stages
        order = np.argsort(-self.priced.price[t], kind="stable")
        rules, need = self.priced.rules(t)
        rules, need = np.vstack([rules, self.priced.price[t]]), np.append(need, self.priced.value[t])
        columns = (s.least[t][order], self.priced.most[t][order], togo[order], rent[order], s.rise[order])
        found, found_cost = np.empty((MOST_FOUND, s.types), np.int64), np.empty(MOST_FOUND)
        number = successors(
            np.ascontiguousarray(fleets[:, order]), cost, self.priced.price[t][order], np.ascontiguousarray(rules[:, order]), need,
            *columns, may_rise, np.ascontiguousarray(s.pool_gpus[:, order]), s.pool_limit, limit, found, found_cost, MOST_NODES,
        )  # fmt: skip
        if number < 0:
            return None
        back = np.argsort(order, kind="stable")
        reached, reached_cost = found[:number][:, back], found_cost[:number]
        # The cheapest way to each fleet, cheapest fleets first.
        sorting = np.lexsort((reached_cost, *reached.T))
        reached, reached_cost = reached[sorting], reached_cost[sorting]
        new = np.append(True, (reached[1:] != reached[:-1]).any(axis=1))[: len(reached)]
        reached, reached_cost = reached[new], reached_cost[new]
        sorting = np.argsort(reached_cost, kind="stable")
        reached, reached_cost = np.ascontiguousarray(reached[sorting]), reached_cost[sorting]
        if len(reached) > 4 * MOST_LABELS:
            return None
        if t + 1 < s.epochs:
            keep = undominated(reached, reached_cost, s.rise, bool(s.may_rise[t + 1]))
            reached, reached_cost = reached[keep], reached_cost[keep]
        return None if len(reached) > MOST_LABELS else (reached, reached_cost)

    def _path(self, first: int, kept: list[tuple[IntArray, FloatArray]], best: int) -> IntArray:
        s = self.priced.stages
        path = [kept[-1][0][best]]
        for offset in range(len(kept) - 2, -1, -1):
            fleets, cost = kept[offset]
            above = np.maximum(path[-1] - fleets, 0)
            step = above @ s.rise if s.may_rise[first + offset + 1] else np.where(above.any(axis=1), np.inf, 0.0)
            path.append(fleets[int(np.argmin(cost + step))])
        return np.array(path[::-1])


def blocks_value(priced: Priced, certificate: Mapping[str, Any]) -> float:
    """What the levels of a `fleet_blocks` certificate prove [USD]: the search of every block, with its claim as the target, again."""
    borders = _borders(certificate, "borders", priced.stages.epochs)
    blocks = Blocks(priced, borders)
    levels = certificate.get("levels")
    if not isinstance(levels, Sequence) or isinstance(levels, str) or not all(isinstance(level, Mapping) for level in levels):
        raise CertificateError("certificate.levels must be a list of levels")
    for number, level in enumerate(levels):
        if number:
            _merge(blocks, _borders(level, "borders", priced.stages.epochs))
        claims = floats(level, "value", (len(blocks.members),))
        for k, claim in enumerate(claims.tolist()):
            if claim > blocks.proved[k]:
                found = blocks.search(k, claim)
                blocks.proved[k] = max(blocks.proved[k], found.proved if found is not None else -math.inf)
    return blocks.total


def _borders(certificate: Mapping[str, Any], key: str, epochs: int) -> list[int]:
    borders: list[int] = integers(certificate, key, (None,)).tolist()
    if len(borders) < 2 or borders[0] != 0 or borders[-1] != epochs or any(a >= b for a, b in itertools.pairwise(borders)):
        raise CertificateError(f"certificate.{key} must rise from 0 to {epochs}, the number of epochs")
    return borders


def _merge(blocks: Blocks, borders: list[int]) -> None:
    """Merge so that the blocks have these borders."""
    ends = [blocks.span(number)[1] for number in range(len(blocks.members))]
    if not set(borders[1:]) <= set(ends):
        raise CertificateError("certificate.levels: a level's borders must be borders of the level before")
    groups: list[list[int]] = [[]]
    for number, end in enumerate(ends):
        groups[-1].append(number)
        if end in borders and number < len(ends) - 1:
            groups.append([])
    blocks.merge(groups)
