"""The price index: an online policy that weighs every move in seconds of the steps that wait for it.

A block's index is the reads expected of it, later ones discounted. Blocks are put into states by the steps since their last read and by how often
they were read; how states follow one another and how much is read in each is counted on the trace so far, and the values of this Markov chain solve a
linear system of its few states.

Two tiers trade places by index: the highest outside come in, the lowest inside go, as many as lower

    (this step's seconds) + horizon x (seconds of a step to come),

both of them the maximum over tiers, since tiers work in parallel: a tier that finishes early takes reads and moves for nothing, and the price of
space is the index at which the trade stops. A step to come is taken to be as this one, each block's reads going with it, and the moves as of late:
without this upkeep the slower tier would be given reads that its writes leave no time for.

An index policy in the sense of Whittle (doi 10.2307/3214163): each block is valued alone and the highest values take the scarce place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.heuristics.kv_tiering_online import GONE, Deployment, Observation, Step
from headroom.heuristics.kv_tiering_policies import Tracking

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
HORIZON_STEPS = 12.0
"""Chosen on synthetic drift (seed 0; a tenth of the blocks read in each step, 2, 10 or 50 % of them replaced), as was the memory of `Lfu`."""
MEMORY_STEPS = 64.0
"""How long the counts of the chain are remembered."""
UPKEEP_STEPS = 16.0
"""How long the moves are that "of late" means."""
SOLVE_EVERY = 4
WORK_WEIGHT = 0.02
"""Of a second in which a tier is not waited for: it may be in another step, so work is not done there for nothing."""
IDLE_STEPS = np.array([1, 2, 3, 5, 9, 17, 33, 65])
"""First of each class of steps since the last read; before it is the class of what is read now."""
OFTEN = np.array([0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64])
"""Lowest of each class of reads a step; before it is the class of what is hardly read."""


class ReadForecast:
    """Discounted reads expected of each block after this step, in its bytes: the values of a Markov chain on classes of idle time and frequency."""

    def __init__(self, horizon_steps: float, memory_steps: float) -> None:
        self.discount = float(np.exp(-1.0 / horizon_steps))
        self._forget, self._slowly = float(np.exp(-1.0 / memory_steps)), float(np.exp(-0.5 / horizon_steps))
        states = (len(IDLE_STEPS) + 1) * (len(OFTEN) + 1)
        self._follows, self._amount = np.zeros((states, states)), np.zeros(states)
        self._prior = np.tile(np.append(OFTEN, 1.0), len(IDLE_STEPS) + 1)
        """Reads a step in a state that was not seen yet: as its class of frequency says."""
        self._value = self._prior * self.discount / (1.0 - self.discount)
        self._idle, self._age, self._sum = np.zeros(0), np.zeros(0), np.zeros(0)
        self._state = np.zeros(0, np.int64)
        self._steps = 0

    def look(self, alive: BoolArray, births: int, read: IntArray, part: FloatArray) -> None:
        """Take note of a step: `part` of each block in `read` was read; the last `births` names are new. O(names)."""
        fresh = np.zeros(births)
        before, first = self._state, len(self._state)
        self._idle = np.concatenate([self._idle + 1.0, fresh + 1.0])
        self._age = np.concatenate([self._age, fresh]) + 1.0
        self._sum = np.concatenate([self._sum * self._slowly, fresh])
        self._idle[read] = 0.0
        self._sum[read] += part
        often = self._sum * (1.0 - self._slowly) / (1.0 - self._slowly**self._age)
        idle = np.searchsorted(IDLE_STEPS, self._idle, side="right")
        self._state = idle * (len(OFTEN) + 1) + np.searchsorted(OFTEN, often, side="right")
        self._count(before, self._state[:first], alive[:first], read[read < first], part[read < first])
        self._steps += 1
        if self._steps % SOLVE_EVERY == 0 or self._steps < 2 * SOLVE_EVERY:
            self._solve()

    def _count(self, before: IntArray, after: IntArray, alive: BoolArray, read: IntArray, part: FloatArray) -> None:
        states = len(self._amount)
        pairs = (before * states + after)[alive]
        self._follows = self._follows * self._forget + np.bincount(pairs, minlength=states * states).reshape(states, states)
        self._amount = self._amount * self._forget + np.bincount(before[read], part, states)

    def _solve(self) -> None:
        """value = discount (amount + chance value); one pseudo-count a state lets an unseen one stay as it is."""
        states = len(self._amount)
        seen = self._follows.sum(axis=1) + 1.0
        chance = (self._follows + np.eye(states)) / seen[:, None]
        amount = (self._amount + self._prior) / seen
        self._value = np.linalg.solve(np.eye(states) - self.discount * chance, self.discount * amount)

    def values(self) -> FloatArray:
        """By name; of dead blocks too."""
        found: FloatArray = self._value[self._state]
        return found


class PriceIndex(Tracking):
    """Trades places between tiers as long as that lowers this step's seconds and those expected of the steps to come, taken together.

    `horizon_steps`, `memory_steps`: how far it looks ahead and back. No guarantee. O(blocks log blocks) a step for every pair of tiers.
    """

    def __init__(self, deployment: Deployment, horizon_steps: float = HORIZON_STEPS, memory_steps: float = MEMORY_STEPS) -> None:
        super().__init__(deployment)
        for name, value in (("horizon_steps", horizon_steps), ("memory_steps", memory_steps)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self.horizon_steps, self.memory_steps = horizon_steps, memory_steps
        self.upkeep_s = np.zeros(deployment.tiers)
        """Seconds a step that each tier has spent of late on moves and births [K]."""
        self.forecast = ReadForecast(horizon_steps, memory_steps)

    @property
    def settings(self) -> dict[str, Any]:
        return {"horizon_steps": self.horizon_steps, "memory_steps": self.memory_steps}

    def _look(self, now: Step, first: int) -> None:
        self.forecast.look(self.tier != GONE, len(now.born_bytes), now.read, now.read_bytes / self.size[now.read])

    def _targets(self, seen: Observation, first: int) -> IntArray:
        market = _Market(self, seen.now, first)
        left = [(k, j) for k in range(self.deployment.tiers) for j in range(k)]
        while left:
            k, j = max(left, key=lambda pair: abs(market.future_s[pair[0]] - market.future_s[pair[1]]))
            left.remove((k, j))
            market.trade(k, j)
        forget = float(np.exp(-1.0 / UPKEEP_STEPS))
        self.upkeep_s = forget * self.upkeep_s + (1.0 - forget) * (market.time_s - market.reading_s(market.target))
        return market.target


class _Market:
    """One step: where the blocks are, what the tiers have to do now and in the steps to come, and the trades made. Births begin in the last tier."""

    def __init__(self, policy: PriceIndex, now: Step, first: int) -> None:
        deployment, size, forecast = policy.deployment, policy.size, policy.forecast
        self.deployment, self.size, self.now = deployment, size, now
        self.last = deployment.tiers - 1
        self.worth = forecast.values() * size
        """Bytes of reads expected of each block, discounted."""
        self.born = np.arange(len(size)) >= first
        self.free_births = policy.step == 0
        self.settled = policy.tier == GONE
        self.served = np.zeros(len(size))
        self.served[now.read] = now.read_bytes
        self.target = np.where(self.born, self.last, policy.tier)
        alive = np.flatnonzero(~self.settled)
        self.room = deployment.capacity_bytes - np.bincount(self.target[alive], size[alive], deployment.tiers)
        reading_s = self.reading_s(self.target)
        self.time_s = reading_s.copy()
        if not self.free_births:
            self.time_s[self.last] += size[first:].sum() * deployment.write_s[self.last]
        horizon = forecast.discount / (1.0 - forecast.discount)
        self.future_s = horizon * (reading_s + policy.upkeep_s)
        if self.free_births or not len(now.read):  # then this step says nothing of where reads will be
            self.future_s = np.bincount(self.target[alive], self.worth[alive], deployment.tiers) * deployment.read_s
            self.future_s[0] += horizon * now.fixed_read_bytes * deployment.read_s[0]
            self.future_s += horizon * policy.upkeep_s

    def reading_s(self, tier: IntArray) -> FloatArray:
        """Seconds of this step's reads with the blocks in these tiers [K]."""
        found: FloatArray = np.bincount(tier[self.now.read], self.now.read_bytes, self.deployment.tiers) * self.deployment.read_s
        found[0] += self.now.fixed_read_bytes * self.deployment.read_s[0]
        return found

    def trade(self, k: int, j: int) -> None:
        """Blocks of the tier that will be waited for longer go to the other one, for which others come back, as many as pay."""
        of, to = (j, k) if self.future_s[j] > self.future_s[k] else (k, j)
        movable, read_s = ~self.settled, self.deployment.read_s
        coming, going = np.flatnonzero(movable & (self.target == of)), np.flatnonzero(movable & (self.target == to) & ~self.born)
        if not len(coming):
            return
        here, there = self._work(coming, of, to)
        back, away = self._work(going, to, of)
        price = self.worth[coming] * read_s[of] - np.maximum(here, 0.0) - np.maximum(there, 0.0)
        first = np.argsort(-price / self.size[coming], kind="stable")
        coming, here, there = coming[first], here[first], there[first]
        first = np.argsort((self.worth[going] * read_s[of] + back + away) / self.size[going], kind="stable")
        going, back, away = going[first], back[first], away[first]
        come, go = np.cumsum(self.size[coming]), _sums(self.size[going])
        leave = np.searchsorted(go, come - self.room[to])
        possible = leave < len(go)
        leave = np.minimum(leave, len(go) - 1)
        possible &= go[leave] - come <= self.room[of]
        fewer = np.cumsum(self.worth[coming]) - _sums(self.worth[going])[leave]
        now_of = self.time_s[of] + np.cumsum(here) + _sums(away)[leave]
        now_to = self.time_s[to] + np.cumsum(there) + _sums(back)[leave]
        then_of, then_to = self.future_s[of] - fewer * read_s[of], self.future_s[to] + fewer * read_s[to]
        others = np.array([k for k in range(self.deployment.tiers) if k not in (of, to)], np.int64)
        longer_s = _seconds(self.time_s[others], now_of, now_to) - _seconds(self.time_s, *np.zeros((2, 1)))
        saved_s = _seconds(self.future_s, *np.zeros((2, 1))) - _seconds(self.future_s[others], then_of, then_to)
        profit_s = np.where(possible, saved_s - longer_s, -np.inf)
        best = int(np.argmax(profit_s))
        if profit_s[best] <= 0:
            return
        self._settle(coming[: best + 1], of, to)
        self._settle(going[: leave[best]], to, of)
        self.time_s[[of, to]] = now_of[best], now_to[best]
        self.future_s[[of, to]] = then_of[best], then_to[best]

    def _settle(self, blocks: IntArray, old: int, new: int) -> None:
        self.target[blocks], self.settled[blocks] = new, True
        size = self.size[blocks].sum()
        self.room[old] += size
        self.room[new] -= size

    def _work(self, blocks: IntArray, old: int, new: int) -> tuple[FloatArray, FloatArray]:
        """Seconds that moving each block adds to its old tier and to its new one; a birth is not moved but written elsewhere."""
        read_s, write_s = self.deployment.read_s, self.deployment.write_s
        size, served = self.size[blocks], self.served[blocks]
        if self.deployment.inclusive and new == self.last:
            return -served * read_s[old], served * read_s[new]
        leaving, coming = (size - served) * read_s[old], size * write_s[new]
        born = self.born[blocks]
        if born.any():
            copied = self.deployment.inclusive and old == self.last
            written = 0.0 if self.free_births else 1.0
            leaving = np.where(born, -served * read_s[old] - (0.0 if copied else written) * size * write_s[old], leaving)
            coming = np.where(born, served * read_s[new] + written * size * write_s[new], coming)
        return leaving, coming


def _seconds(others: FloatArray, *times: FloatArray) -> FloatArray:
    """Seconds of a step in which two tiers' times depend on how many blocks are traded: the longest, and a little of each."""
    longest = np.maximum.reduce([*times, np.full(len(times[0]), others.max(initial=0.0))])
    found: FloatArray = longest + WORK_WEIGHT * (np.add.reduce(times) + others.sum())
    return found


def _sums(values: FloatArray) -> FloatArray:
    """Sums of the first 0, 1, 2, … values."""
    found = np.zeros(len(values) + 1)
    np.cumsum(values, out=found[1:])
    return found


__all__ = ["PriceIndex", "ReadForecast"]
