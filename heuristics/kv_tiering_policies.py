"""Online policies for KV tiering, under the names the field uses. `kv_tiering_online` says what they see.

| name            | look-ahead | what it does                                                                                        |
|-----------------|------------|-----------------------------------------------------------------------------------------------------|
| `Static`        | 0          | fills the tiers in order of birth, fastest first, and never moves a block                            |
| `Lru`           | 0          | moves every block that is read to the fastest tier; the least recently read make room               |
| `PageLookahead` | 1          | fetches what the next step reads into the fastest tier; what it does not read makes room            |
| `Lfu`           | 0          | the same by decayed frequency, where the frequency gained pays for the moves                        |

`PriceIndex`, which weighs the tiers' times and moves in seconds, is in `kv_tiering_price_index`. A block that must leave a tier goes to the next one,
where it competes by the same key: a chain of caches without double copies. Every step costs O(blocks alive + sorting what does not fit).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from headroom.heuristics.kv_tiering_online import GONE, Decision, Deployment, Observation, Step

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def fitting(size: FloatArray, room: float) -> BoolArray:
    """Which of a queue of blocks fit into `room` bytes: one after the other, passing over those that do not."""
    found = np.zeros(len(size), bool)
    left = np.arange(len(size))
    while len(left):
        left = left[size[left] <= room]
        end = int(np.searchsorted(np.cumsum(size[left]), room, side="right"))
        found[left[:end]] = True
        room -= float(size[left[:end]].sum())
        left = left[end + 1 :]  # the next in the queue does not fit
    return found


class Tracking(ABC):
    """Keeps the policy's books, sizes and tiers by name, and turns the tiers it wants into a decision."""

    lookahead_steps: ClassVar[int] = 0

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.size = np.zeros(0)
        self.tier = np.zeros(0, np.int64)
        """By name; `GONE` for the dead. Blocks born in the step that is being decided are in tier K, which there is not."""
        self.step = -1
        """The step that is being decided."""

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def decide(self, seen: Observation) -> Decision:
        """The decision of the next step; called once a step, in order."""
        self.step += 1
        self.tier[seen.now.died] = GONE
        first, births = len(self.tier), len(seen.now.born_bytes)
        if births:
            self.size = np.concatenate([self.size, seen.now.born_bytes])
            self.tier = np.concatenate([self.tier, np.full(births, self.deployment.tiers)])
        self._look(seen.now, first)
        target = self._targets(seen, first)
        moving = np.flatnonzero(target[:first] != self.tier[:first])
        self.tier = target
        return Decision(target[first:].copy(), moving, target[moving])

    def _look(self, now: Step, first: int) -> None:
        """Take note of a step; blocks from name `first` on are born in it."""
        return None

    @abstractmethod
    def _targets(self, seen: Observation, first: int) -> IntArray:
        """The tier that each block is in after the step [names]."""

    def _cascade(self, target: IntArray, key: FloatArray) -> IntArray:
        """Wishes made to fit: in each tier the blocks with the highest keys stay, of equals those that are there; the rest goes to the next."""
        capacity = self.deployment.capacity_bytes
        for k in range(self.deployment.tiers - 1):
            inside = np.flatnonzero(target == k)
            if self.size[inside].sum() <= capacity[k]:
                continue
            order = np.lexsort((inside, self.tier[inside] != k, -key[inside]))
            inside = inside[order]
            target[inside[~fitting(self.size[inside], capacity[k])]] = k + 1
        return target


class Static(Tracking):
    """Each block goes to the fastest tier with room when it is born, and stays. No guarantee.

    What systems do that put the cache's overflow into slower memory and leave it there (the static placement of arXiv 2508.13231).
    """

    def _targets(self, seen: Observation, first: int) -> IntArray:
        target = self.tier.copy()
        target[first:] = 0
        return self._cascade(target, -np.maximum(np.arange(len(target), dtype=np.float64), first - 1))


class Lru(Tracking):
    """Every block that is read goes to the fastest tier, the least recently read blocks make room. No guarantee.

    Reactive migration. Where one step reads more than the tier holds, blocks that are there already keep their place.
    """

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment)
        self._last = np.zeros(0)

    def _look(self, now: Step, first: int) -> None:
        self._last = np.concatenate([self._last, np.full(len(self.tier) - first, float(self.step))])
        self._last[now.read] = self.step

    def _targets(self, seen: Observation, first: int) -> IntArray:
        target = self.tier.copy()
        target[seen.now.read] = 0
        target[first:] = 0
        return self._cascade(target, self._last)


class PageLookahead(Lru):
    """What the next step reads is fetched into the fastest tier now; what it does not read makes room, least recently read first. No guarantee.

    Reads of whole pages that are known a step ahead (arXiv 2508.13231's look-ahead of one step; the page is the instance's block). A page that this
    step reads from a slower tier is moved on that read; any other one is read once more, a step before its use.
    """

    lookahead_steps: ClassVar[int] = 1

    def _targets(self, seen: Observation, first: int) -> IntArray:
        target, key = self.tier.copy(), self._last.copy()
        target[first:] = 0
        for step in seen.ahead:
            known = step.read[step.read < len(target)]  # the others are born with the step
            target[known] = 0
            key[known] = self.step + 1
            key[step.died[step.died < len(target)]] = -1.0  # gone before it could be of use again
        return self._cascade(target, key)


class Lfu(Tracking):
    """Reads counted with a memory of `memory_steps`: a block that is read from a slower tier takes the place of one that is read so much less often
    that the difference, for as long as the memory lasts, pays for the two moves. No guarantee.
    """

    def __init__(self, deployment: Deployment, memory_steps: float = 8.0) -> None:
        super().__init__(deployment)
        if not memory_steps > 0:
            raise ValueError(f"memory_steps must be positive, got {memory_steps}")
        self.memory_steps = memory_steps
        self._score = np.zeros(0)

    @property
    def settings(self) -> dict[str, Any]:
        return {"memory_steps": self.memory_steps}

    def _look(self, now: Step, first: int) -> None:
        self._score = np.concatenate([self._score * np.exp(-1.0 / self.memory_steps), np.zeros(len(self.tier) - first)])
        self._score[now.read] += now.read_bytes / self.size[now.read]

    def _targets(self, seen: Observation, first: int) -> IntArray:
        """A promotion writes to the fast tier; a full one must read the victim and write it to the slower one."""
        deployment, target, key = self.deployment, self.tier.copy(), self._score.copy()
        target[first:] = 0
        old = seen.now.read[seen.now.read < first]
        last = deployment.tiers - 1
        for j in range(1, deployment.tiers):
            gain_s = deployment.read_s[j] - deployment.read_s[0]
            slower = old[self.tier[old] == j]
            if gain_s <= 0 or not len(slower):
                continue
            demotion_s = 0.0 if deployment.inclusive and last == 1 else deployment.read_s[0] + deployment.write_s[1]
            extra_s = 1.0 - seen.now.read_bytes[np.isin(seen.now.read, slower)] / self.size[slower]
            move_s = deployment.write_s[0] + extra_s * deployment.read_s[j]
            pays = self._score[slower] * gain_s > move_s
            key[slower] -= (move_s + demotion_s) / gain_s
            target[slower[pays]] = 0
        return self._cascade(target, key)


__all__ = ["Lfu", "Lru", "PageLookahead", "Static", "Tracking", "fitting"]
