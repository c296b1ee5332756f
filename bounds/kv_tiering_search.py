"""Searching multipliers for the Lagrangian bound: the dual function by the path engine, and its ascent.

Every point that is looked at is a valid bound, so the search may stop anywhere; `certified_value` rechecks what it returns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from headroom.bounds.kv_tiering_lagrangian import Cuts, Multipliers, rounding_cuts, usable_capacity
from headroom.instances.kv_tiering import KvTiering

if TYPE_CHECKING:
    from headroom.solvers.price_ascent import Ascent
    from headroom.solvers.tiered_paths import Answer, Items, Prices

FloatArray = npt.NDArray[np.float64]
COARSE_RATE, COARSE_STEPS = 0.3, 40
FIRST_RATE, FALL = 0.1, 0.01
"""Length of the first steps of an ascent, and what of it is left at its end."""
ROUNDS = tuple((FIRST_RATE / 2 ** min(number, 3), 300 * (number + 1)) for number in range(12))
"""Rounds of ascent: length of their first steps, and how many steps."""
WARM_ROUNDS = ((0.02, 300), (0.01, 600))
"""Rounds from a neighbour's multipliers take short steps: long ones lose what it knew."""
SAMPLE_READS, WINDOW_READS = 1_000_000, 200
"""Above some times so many reads the coarse ascents look at a sample of the blocks, in windows of so many of the sample's reads at least."""
SHORTEST_ROUND = 10
"""Steps of a round at least, however little time is left."""
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

    def __init__(self, instance: KvTiering, threads: int = 1, cuts: bool = True, items: Items | None = None) -> None:
        """`items`: some of the instance's blocks, to stand for all of them: an estimate then, no bound."""
        from headroom.solvers.tiered_paths import PathEngine

        self.instance = instance
        self.items = items_of(instance) if items is None else items
        self._threads = threads
        self._stand_for = 1.0 if items is None else instance.blocks / items.count
        self.cuts = rounding_cuts(instance)
        if not cuts:
            self.cuts = Cuts(np.zeros(instance.steps), np.zeros(instance.steps))
        self.engine = PathEngine(self.items, threads)
        self._capacity = usable_capacity(instance)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def sampled(self) -> Dual:
        """The dual function's estimate from a sample of the blocks, about `SAMPLE_READS` of their reads; itself where there are few."""
        share = SAMPLE_READS / max(len(self.items.step), 1)
        if share > 0.5:
            return self
        some = np.sort(np.random.default_rng(0).permutation(self.items.count)[: max(1, int(share * self.items.count))])
        return Dual(self.instance, self._threads, items=self.items.some(some))

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
        answer = self.engine.solve(self.prices(point))
        return self.combine(point, answer if self._stand_for == 1.0 else answer.times(self._stand_for))

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
    rounds: Sequence[tuple[float, int]] = ROUNDS,
    remaining_s: Callable[[], float] = lambda: math.inf,
) -> tuple[float, Multipliers]:
    """Good multipliers: coarse ascents with few numbers, then `rounds` of fine ones until a round is not worth it.

    `start`: multipliers of this problem or of one much like it (another capacity, a shorter trace); the coarse ascents are then left out.
    `remaining_s`: a round that would last longer has fewer steps, which shorten the faster. Deterministic unless `stop` or `remaining_s` cuts it off,
    whatever the number of threads.
    """
    at = _coarse(dual, stop, on_best) if start is None else start
    fine = _Climb(dual, at, stop, on_best, remaining_s)
    # Where capacity turns out dear, its prices have far to go.
    unit = price_unit(dual.instance)
    typical = float(np.where(usable_capacity(dual.instance) > 0, at.hold.mean(axis=0), 0.0).max(initial=0.0))
    stride = float(np.clip(LONGEST_STRIDE * typical, SHORTEST_STRIDE * unit, LONGEST_STRIDE * unit))
    cuts_left, cuts_earned = dual.cuts.useful, False
    for number, (rate, steps) in enumerate(rounds):
        # The cuts' weights are noise until the rest stands, and where moves blur the counts they gain nothing: they must earn their place.
        with_cut = cuts_left and (number > 0 or start is not None)
        worth = fine.climb(steps, rate, stride, with_cut) > WORTH * abs(fine.best)
        cuts_earned |= with_cut and worth
        waiting = cuts_left and not cuts_earned
        if stop() or not (worth or waiting):
            break
        cuts_left = cuts_left and (worth or not with_cut)
    return fine.best, fine.at


def _coarse(dual: Dual, stop: Callable[[], bool], on_best: Callable[[float, Multipliers], None]) -> Multipliers:
    """Where to set out from: ascents whose steps are common to windows of steps, ever more of them."""
    from headroom.solvers.price_ascent import Ascent

    steps, unit = dual.instance.steps, price_unit(dual.instance)
    at = dual.start()
    sample = dual.sampled()
    most = steps // 4 if sample is dual else min(steps // 4, len(sample.items.step) // WINDOW_READS)
    try:
        climb = _Climb(dual, at, stop, on_best) if sample is dual else _Climb(sample, at, stop)
        windows, rate = 1, COARSE_RATE
        while windows < most and not stop():
            climb.along(Ascent(COARSE_STEPS, rate, 0.01, unit, windows), False)
            windows, rate = windows * 16, FIRST_RATE
    finally:
        if sample is not dual:
            sample.engine.close()
    return climb.at


class _Climb:
    """Ascents from the best multipliers so far."""

    def __init__(
        self,
        dual: Dual,
        at: Multipliers,
        stop: Callable[[], bool],
        on_best: Callable[[float, Multipliers], None] = lambda value, at: None,
        remaining_s: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self.best, self.at = -math.inf, at
        self._dual, self._stop, self._on_best, self._remaining_s = dual, stop, on_best, remaining_s
        self._evaluation_s = 0.0

    def climb(self, steps: int, rate: float, stride: float, with_cut: bool) -> float:
        """What a round of fine ascent gains, in as many steps as there is time for."""
        from headroom.solvers.price_ascent import Ascent

        if not self._evaluation_s and math.isfinite(self._remaining_s()):
            self._evaluate(self.at)
        left = self._remaining_s()
        if math.isfinite(left):
            steps = min(steps, max(SHORTEST_ROUND, int(left / max(self._evaluation_s, 1e-9))))
        return self.along(Ascent(steps, rate, FALL * rate, stride), with_cut)

    def along(self, ascent: Ascent, with_cut: bool) -> float:
        """What an ascent gains."""
        from headroom.solvers.price_ascent import Point, ascend

        width = len(self._dual.instance.tiers)

        def multipliers(point: Point) -> Multipliers:
            cut = point.share[:, width] if with_cut else np.zeros(len(point.share))
            return Multipliers(point.share[:, :width], cut, point.price)

        def point_of(at: Multipliers) -> Point:
            return Point(np.column_stack([at.tiers, at.cut]) if with_cut else at.tiers, at.hold)

        def function(point: Point) -> tuple[float, Point]:
            value, slope = self._evaluate(multipliers(point))
            return value, point_of(slope)

        def report(value: float, point: Point) -> None:
            if value > self.best:
                self._on_best(value, multipliers(point))

        before = self.best
        value, point = ascend(function, point_of(self.at), ascent, self._stop, report)
        if value > self.best:
            self.best, self.at = value, multipliers(point)
        return self.best - before

    def _evaluate(self, at: Multipliers) -> tuple[float, Multipliers]:
        started = time.perf_counter()
        found = self._dual.at(at)
        self._evaluation_s = time.perf_counter() - started
        return found


def price_unit(instance: KvTiering) -> float:
    """A typical price of holding a byte for a step: what reading it from the slowest tier costs, as often as blocks are read on average."""
    often = len(instance.reads.block) / max(instance.block_steps, 1)
    return float(instance.read_s.max()) * max(often, 1e-9)
