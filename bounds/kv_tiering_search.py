"""Searching multipliers for the Lagrangian bound: the dual function by the path engine, and its ascent.

Every point that is looked at is a valid bound, so the search may stop anywhere; `certified_value` rechecks what it returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from headroom.bounds.kv_tiering_lagrangian import Cuts, Multipliers, rounding_cuts, usable_capacity
from headroom.instances.kv_tiering import KvTiering

if TYPE_CHECKING:
    from headroom.solvers.tiered_paths import Answer, Items, Prices

FloatArray = npt.NDArray[np.float64]
FIRST_RATE, LAST_RATE = 0.1, 0.001
COARSE_RATE, COARSE_STEPS = 0.3, 40
ROUNDS, FIRST_ROUND = 12, 300
"""Rounds of ascent at most, each longer than the one before, and steps of the first."""
SHORTEST_STRIDE, LONGEST_STRIDE = 4.0, 16.0
"""What of a price counts as much as a tier's whole share of a step: in typical prices after the coarse ascents, within these many price units."""
LIVE_CAUTION = 1e-8
"""Relative amount that live bounds stay below the search's own value: more than the slack that capacities get."""
WORTH = 2e-5
"""A round that raises the bound by less than this part is the last."""


def items_of(instance: KvTiering) -> Items:
    """The blocks as the path engine's items."""
    from headroom.solvers.tiered_paths import Items, by_item

    first, step, amount = by_item(instance.blocks, instance.reads.indptr, instance.reads.block, instance.reads.bytes)
    life = (instance.size, instance.birth, instance.death)
    return Items(instance.steps, len(instance.tiers), *life, first, step, amount, instance.inclusive)


class Dual:
    """The dual function of one instance: value and a supergradient at any multipliers."""

    def __init__(self, instance: KvTiering, threads: int = 1, cuts: bool = True) -> None:
        from headroom.solvers.tiered_paths import PathEngine

        self.instance = instance
        self.items = items_of(instance)
        self.cuts = rounding_cuts(instance)
        if not cuts:
            self.cuts = Cuts(np.zeros(instance.steps), np.zeros(instance.steps))
        self.engine = PathEngine(self.items, threads)
        self._capacity = usable_capacity(instance)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def start(self) -> Multipliers:
        """Multipliers of the bandwidth bound: tiers share each step by their bandwidth, capacity is free."""
        instance = self.instance
        share = (1.0 / instance.read_s) / (1.0 / instance.read_s).sum()
        tiers = np.tile(share, (instance.steps, 1))
        hold = np.zeros((instance.steps, len(instance.tiers) - 1))
        # Where no block fits a price costs nothing: one above all that a byte could save keeps every block out.
        hold[:, self._capacity == 0] = 4 * float(max(instance.read_s.max(), instance.write_s.max()))
        return Multipliers(tiers, np.zeros(instance.steps), hold)

    def prices(self, at: Multipliers) -> Prices:
        """What a byte pays under these multipliers."""
        from headroom.solvers.tiered_paths import Prices

        hold = np.zeros_like(at.tiers)
        hold[:, :-1] = at.hold
        return Prices(at.tiers * self.instance.read_s, at.tiers * self.instance.write_s, hold, at.cut * self.cuts.slope_s_per_byte)

    def at(self, point: Multipliers) -> tuple[float, Multipliers]:
        """The dual function's value, and a supergradient in the multipliers' own shapes."""
        return self.combine(point, self.engine.solve(self.prices(point)))

    def cautious(self, value: float, at: Multipliers) -> float:
        """A little less than what `certified_value` will make of the value at these multipliers."""
        return value - LIVE_CAUTION * (abs(value) + float((at.hold * self._capacity).sum()))

    def combine(self, point: Multipliers, answer: Answer) -> tuple[float, Multipliers]:
        """The value and the supergradient from all blocks' answer (blocks may have been solved in parts elsewhere)."""
        instance = self.instance
        time_s = answer.read * instance.read_s + answer.written * instance.write_s
        time_s[:, 0] += instance.fixed * instance.read_s[0]
        cut_s = self.cuts.constant_s + self.cuts.slope_s_per_byte * answer.missed
        excess = answer.held[:, :-1] - self._capacity
        fixed = float((point.tiers[:, 0] * instance.fixed).sum() * instance.read_s[0])
        value = answer.value + fixed + float((point.cut * self.cuts.constant_s).sum()) - float((point.hold * self._capacity).sum())
        return value, Multipliers(time_s, cut_s, excess)


def search(
    dual: Dual,
    stop: Callable[[], bool] = lambda: False,
    on_best: Callable[[float, Multipliers], None] = lambda value, at: None,
    start: Multipliers | None = None,
    rounds: int = ROUNDS,
    first: int = 0,
) -> tuple[float, Multipliers]:
    """Good multipliers: coarse ascents with few numbers, then rounds of fine ones until a round is not worth it.

    `first`: number of the first round, when a search goes on; rounds become longer and their steps shorter.
    `start`: multipliers of a problem much like this one (another capacity, a shorter trace); the coarse ascents are then left out. Deterministic
    unless `stop` cuts it off, whatever the number of threads.
    """
    from headroom.solvers.price_ascent import Ascent, Point, ascend

    width = len(dual.instance.tiers)
    with_cut = False

    def multipliers(point: Point) -> Multipliers:
        cut = point.share[:, width] if with_cut else np.zeros(len(point.share))
        return Multipliers(point.share[:, :width], cut, point.price)

    def point_of(at: Multipliers) -> Point:
        return Point(np.column_stack([at.tiers, at.cut]) if with_cut else at.tiers, at.hold)

    def function(point: Point) -> tuple[float, Point]:
        value, slope = dual.at(multipliers(point))
        return value, point_of(slope)

    best, at = -math.inf, start or dual.start()

    def climb(ascent: Ascent) -> float:
        """What an ascent from the best point gains."""
        nonlocal best, at

        def report(value: float, point: Point) -> None:
            if value > best:
                on_best(value, multipliers(point))

        before = best
        value, point = ascend(function, point_of(at), ascent, stop, report)
        if value > best:
            best, at = value, multipliers(point)
        return best - before

    unit = price_unit(dual.instance)
    if start is None:
        windows, rate = 1, COARSE_RATE
        while windows < dual.instance.steps // 4 and not stop():
            climb(Ascent(COARSE_STEPS, rate, 0.01, unit, windows))
            windows, rate = windows * 16, FIRST_RATE
    # Where capacity turns out dear, its prices have far to go.
    typical = float(np.where(usable_capacity(dual.instance) > 0, at.hold.mean(axis=0), 0.0).max(initial=0.0))
    stride = float(np.clip(LONGEST_STRIDE * typical, SHORTEST_STRIDE * unit, LONGEST_STRIDE * unit))
    cuts_left, cuts_earned = dual.cuts.useful, False
    for number in range(first, first + rounds):
        rate, steps = FIRST_RATE / 2 ** min(number, 3), FIRST_ROUND * (number + 1)
        # The cuts' weights are noise until the rest stands, and where moves blur the counts they gain nothing: they must earn their place.
        with_cut = cuts_left and (number > 0 or start is not None)
        worth = climb(Ascent(steps, rate, LAST_RATE * rate / FIRST_RATE, stride)) > WORTH * abs(best)
        cuts_earned |= with_cut and worth
        waiting = cuts_left and not cuts_earned
        if stop() or not (worth or waiting):
            break
        cuts_left = cuts_left and (worth or not with_cut)
    return best, at


def price_unit(instance: KvTiering) -> float:
    """A typical price of holding a byte for a step: what reading it from the slowest tier costs, as often as blocks are read on average."""
    often = len(instance.reads.block) / max(instance.block_steps, 1)
    return float(instance.read_s.max()) * max(often, 1e-9)
