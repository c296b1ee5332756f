"""The search for a `fleet_blocks` bound and for the plans that come with it: targets raised until each block is solved, then blocks merged."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_blocks import Blocks, Found, Priced
from headroom.bounds.gpu_selection_epoch_prices import WindowPrices
from headroom.bounds.gpu_selection_epochs import Rules, fleet_values
from headroom.bounds.gpu_selection_fleet_cuts import CutPool
from headroom.bounds.gpu_selection_stages import Stages

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
FIRST_STEP, GROWTH, SHRINK, LEAST_STEP = 0.25, 1.6, 0.4, 0.02
"""Targets: the first one is this share of what lies between proof and plan, each next one goes so much further, or back when that was too far."""
FEW_OPEN, LITTLE = 10, 2e-4
"""A level is left when half of its first blocks, and more than a few, stayed open and raised the bound by less than a little."""
SHORTEST, BASE = 4, 3.0
"""Small blocks have at least so many epochs, and about BASE times as many as a start takes to pay."""
MERGED = 2
MOST_TARGETS = 60


class BlockSearch:
    """Levels of blocks over one horizon; `value`, `certificate` and `path` are the best so far at any time."""

    def __init__(self, stages: Stages, pool: CutPool, prices: WindowPrices, path: IntArray, stop: Callable[[], bool]) -> None:
        self.stages, self.pool, self.prices, self.stop = stages, pool, prices, stop
        rules = Rules(stages, pool.cuts, [np.array(chosen, dtype=np.int64) for chosen in pool.active])
        value = fleet_values(stages, prices.price, prices.value, rules)
        self.priced = Priced(stages, prices.price, prices.pool_price, value, self._rules)
        self.borders = first_borders(stages, prices.value)
        self.blocks = Blocks(self.priced, self.borders, stop)
        self.path = path.copy()
        """Fleets that serve: the best of each block, the given ones elsewhere. What blocks cannot see is where they meet."""
        self.levels: list[dict[str, object]] = []

    def _rules(self, t: int) -> tuple[FloatArray, FloatArray]:
        chosen = self.pool.active[t]
        return self.pool.cuts[chosen], self.pool.need[chosen, t]

    @property
    def certificate(self) -> dict[str, object]:
        """What `verify` reads."""
        ends = np.cumsum([len(chosen) for chosen in self.pool.active])
        return {
            "kind": "fleet_blocks",
            "price": self.prices.price,
            "pool_price": self.prices.pool_price,
            "cuts": self.pool.cuts.copy(),
            "fleet_value": self.prices.value,
            "active": np.array([k for chosen in self.pool.active for k in chosen], dtype=np.int64),
            "active_ends": ends,
            "borders": np.array(self.borders),
            "levels": [dict(level) for level in self.levels],
        }

    def level(self) -> int:
        """Solve every block of this level as far as limits allow; the number that were left open. Call `merge` between levels."""
        self._open = 0
        floor, members = list(self.blocks.proved), len(self.blocks.members)
        self._claims = list(floor)
        """The targets whose searches proved what is proved: searched again, they prove it again."""
        for number in range(members):
            self._solve(number)
            gained = math.fsum(self.blocks.proved[: number + 1]) - math.fsum(floor[: number + 1])
            if self._open > max(FEW_OPEN, number / 2) and gained < LITTLE * abs(math.fsum(floor[: number + 1])):
                self._open += members - number - 1
                break  # too many fleets in nearly every block, and nothing to show for it
        ends = [self.blocks.span(number)[1] for number in range(len(self.blocks.members))]
        self.levels.append({"borders": np.array([0, *ends]), "value": np.array(self._claims)})
        return self._open

    def merge(self) -> bool:
        """Neighbours become one block each; False when there is only one left."""
        number = len(self.blocks.members)
        if number == 1:
            return False
        self.blocks.merge([list(range(k, min(k + MERGED, number))) for k in range(0, number, MERGED)])
        return True

    def _solve(self, number: int) -> None:
        """Raise the target until the block's optimum is within it and its fleets serve."""
        first, last = self.blocks.span(number)
        known = self.blocks.cost(number, self.path[first:last])
        floor = self.blocks.proved[number]
        tiny = 1e-9 * abs(known)
        if known <= floor + tiny:
            return
        step, too_far = max(FIRST_STEP * (known - floor), tiny), math.inf
        for _ in range(MOST_TARGETS):
            if self.stop() or step >= too_far:
                break
            target = min(floor + step, known + tiny)
            found = self.blocks.search(number, target)
            if found is None:
                # Too many fleets: a nearer target proves less, but something.
                step, too_far = SHRINK * step, step
                if step < LEAST_STEP * (known - floor):
                    break
                continue
            if found.proved > self.blocks.proved[number]:
                self.blocks.proved[number], self._claims[number] = found.proved, target
            if found.path is not None and found.value <= target:
                if self._serves(first, found):
                    self.path[first:last] = found.path
                    return
                continue  # cuts were added: the same target again
            if target >= known:
                return
            step *= GROWTH
        self._open += 1

    def _serves(self, first: int, found: Found) -> bool:
        assert found.path is not None
        failed = [t for t, fleet in enumerate(found.path, first) if not self.pool.fits(t, np.ascontiguousarray(fleet))]
        return not failed


def first_borders(stages: Stages, value: FloatArray) -> list[int]:
    """Small blocks' borders, each before the epoch thereabouts whose fleet the prices `value` [T] most.

    There the first fleets are few. In an epoch without prices nearly any fleet could stand and wait for what the next ones need.
    """
    rented = stages.rent > 0
    ratio = float(np.median(stages.rise[rented] / stages.rent[rented])) if rented.any() else 1.0
    length = max(SHORTEST, min(round(BASE * (1 + ratio)), 200))
    borders = [0]
    while stages.epochs - borders[-1] > 1.5 * length:
        begin, end = borders[-1] + math.ceil(length / 2), borders[-1] + length
        borders.append(begin + int(np.argmax(value[begin:end])))
    return [*borders, stages.epochs]
