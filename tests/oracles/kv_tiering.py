"""KV-cache tiering by enumeration, from the definition alone.

`best` is a dynamic program over the joint states of all blocks (a tier for each block that lives, K^N of them): from one step to the next every
pair of states is tried, so nothing is left out but what a capacity forbids. The time of a step comes from what each block alone makes each tier do.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np

TOLERANCE = 1e-9
"""Relative: by so much a capacity may be exceeded."""
State = tuple[int, ...]


class Oracle:
    """Answers for one instance given as its JSON data (a dict), so that no code of the project is involved. Tier K stands for "not alive"."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.tiers = data["tiers"]
        self.last = len(self.tiers) - 1
        self.none = len(self.tiers)
        reads = data["reads"]
        self.steps = len(reads["indptr"]) - 1
        lists = [data.get(name) for name in ("block_bytes", "birth_step", "death_step")]
        lengths = [len(value) for value in lists if isinstance(value, list)]
        self.blocks = lengths[0] if lengths else max(reads["block"]) + 1
        self.size = self._each(data["block_bytes"], self.blocks)
        self.birth = self._each(data.get("birth_step", 0), self.blocks)
        death = data.get("death_step")
        self.death = self._each(self.steps if death is None else death, self.blocks)
        self.fixed = self._each(data.get("fixed_read_bytes", 0.0), self.steps)
        self.inclusive = data.get("inclusive", False)
        self.read: list[dict[int, float]] = []
        for t in range(self.steps):
            here = range(reads["indptr"][t], reads["indptr"][t + 1])
            amounts = reads.get("bytes")
            self.read.append({reads["block"][r]: self.size[reads["block"][r]] if amounts is None else amounts[r] for r in here})

    @staticmethod
    def _each(value: Any, length: int) -> list[Any]:
        return list(value) if isinstance(value, list) else [value] * length

    def alive(self, i: int, t: int) -> bool:
        return bool(self.birth[i] <= t < self.death[i])

    def fits(self, state: State) -> bool:
        """Does every bounded tier hold what is in it?"""
        for k, tier in enumerate(self.tiers[:-1]):
            if math.fsum(self.size[i] for i, at in enumerate(state) if at == k) > tier["capacity_bytes"] * (1 + TOLERANCE):
                return False
        return True

    def work(self, i: int, t: int, before: int, now: int) -> list[float]:
        """Seconds that block i makes each tier work in step t, when it was in tier `before` and is in `now`."""
        seconds = [0.0] * len(self.tiers)

        def read(k: int, amount: float) -> None:
            seconds[k] += amount / self.tiers[k]["read_bytes_per_s"]

        def write(k: int) -> None:
            seconds[k] += self.size[i] / self.tiers[k]["write_bytes_per_s"]

        wanted = self.read[t].get(i, 0.0)
        if now == self.none:
            return seconds
        if before == self.none:
            if t > 0:
                for k in {now, self.last} if self.inclusive else {now}:
                    write(k)
            read(now, wanted)
        elif before == now:
            read(now, wanted)
        elif self.inclusive and now == self.last:
            read(self.last, wanted)  # the copy is there: nothing moves
        else:
            read(before, self.size[i])
            write(now)
        return seconds

    def value(self, tier_of: list[list[int]]) -> float:
        """Seconds of a plan `tier_of[i][t]` (entries outside lives are not read); +inf when a capacity is exceeded."""
        total = []
        for t in range(self.steps):
            state = tuple(tier_of[i][t] if self.alive(i, t) else self.none for i in range(self.blocks))
            if not self.fits(state):
                return math.inf
            busy = [self.fixed[t] / self.tiers[0]["read_bytes_per_s"]] + [0.0] * self.last
            for i, now in enumerate(state):
                before = tier_of[i][t - 1] if t and self.alive(i, t - 1) else self.none
                busy = [a + b for a, b in zip(busy, self.work(i, t, before, now), strict=True)]
            total.append(max(busy))
        return math.fsum(total)

    def states(self, t: int) -> np.ndarray:
        """All states of step t that fit, [state][block]."""
        choices = [range(len(self.tiers)) if self.alive(i, t) else (self.none,) for i in range(self.blocks)]
        return np.array([state for state in product(*choices) if self.fits(state)], dtype=np.int64)

    def best(self) -> float:
        """Seconds of the best plan. There always is one: the last tier holds everything."""
        before, value = np.full((1, self.blocks), self.none), np.zeros(1)
        for t in range(self.steps):
            now = self.states(t)
            busy = np.zeros((len(before), len(now), len(self.tiers)))
            busy[:, :, 0] = self.fixed[t] / self.tiers[0]["read_bytes_per_s"]
            for i in range(self.blocks):
                table = np.array([[self.work(i, t, a, b) for b in range(self.none + 1)] for a in range(self.none + 1)])
                busy += table[before[:, i][:, None], now[:, i][None, :]]
            value = (value[:, None] + busy.max(axis=2)).min(axis=0)
            before = now
        return float(value.min())
