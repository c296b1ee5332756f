"""Baselines for KV tiering, under the names the field uses.

| name              | kind      | what it does                                                                                        |
|-------------------|-----------|-----------------------------------------------------------------------------------------------------|
| `balanced_static` | heuristic | hindsight: the most read bytes in the fastest tier until the tiers' times balance; no moves          |
| `belady`          | heuristic | hindsight: a block that is read takes the place of the one read again last, where that pays          |
| `sa_lookahead`    | heuristic | hindsight: a look-ahead rule tuned by simulated annealing, in `kv_tiering_annealing`                 |
| `Static`, `Lru`, `PageLookahead`, `Lfu` | policy | in `kv_tiering_policies`                                                        |
| `PriceIndex`      | policy    | in `kv_tiering_price_index`                                                                          |

What a policy may see is said in `kv_tiering_online`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headroom.formulations.kv_tiering import TieringPlan, evaluate, make_plan
from headroom.heuristics.kv_tiering_annealing import sa_lookahead
from headroom.heuristics.kv_tiering_online import Deployment, Observation, Step, birth_order, deployment_of, observations, plan_of, steps_of
from headroom.heuristics.kv_tiering_policies import Lfu, Lru, PageLookahead, Static, Tracking
from headroom.heuristics.kv_tiering_price_index import PriceIndex
from headroom.instances.kv_tiering import KvTiering

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
SHARES = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, np.inf)
"""Of the balanced time up to which a tier is filled: steps differ, so the balance of totals need not be the best."""


def read_volume(instance: KvTiering) -> FloatArray:
    """Bytes read of each block over all steps [N]."""
    reads = instance.reads
    amount = instance.size[reads.block] if reads.bytes is None else reads.bytes
    found: FloatArray = np.bincount(reads.block, amount, instance.blocks).astype(np.float64)
    return found


def balanced_static(instance: KvTiering, rng: np.random.Generator) -> TieringPlan:
    """The best of `SHARES` placements without moves: blocks by bytes read per byte and step of life, faster tiers first, each until it is full or its
    time reaches its share of what balances it with the slower ones.

    Capacity is kept for every block over its whole life. Hindsight; no guarantee. O(len(SHARES) (block-steps + K reads)).
    """
    volume = read_volume(instance)
    order = np.argsort(-volume / (instance.size * (instance.death - instance.birth)), kind="stable")
    plans = (_filled(instance, volume, order, share) for share in SHARES)
    return min(plans, key=lambda plan: evaluate(instance, plan).objective)


def _filled(instance: KvTiering, volume: FloatArray, order: IntArray, share: float) -> TieringPlan:
    """Tier after tier, what is left of the blocks in this order."""
    nothing = np.zeros(0, np.int64)
    tier = np.full(instance.blocks, len(instance.tiers) - 1)
    size, birth, death = instance.size, instance.birth, instance.death
    written = np.where(birth > 0, size, 0.0)
    whole = bool((birth == 0).all() and (death == instance.steps).all())
    left = order
    for k in range(len(instance.tiers) - 1):
        seconds = np.cumsum(volume[left] * instance.read_s[k] + written[left] * instance.write_s[k])
        total = float(volume[left].sum())
        fixed_s = float(instance.fixed.sum()) * float(instance.read_s[0]) if k == 0 else 0.0
        # fixed reads and the blocks' reads, split so that this tier and the slower ones take equally long
        pace = 1.0 / float((1.0 / instance.read_s[k:]).sum())
        target = share * max(0.0, (total + fixed_s / float(instance.read_s[k])) * pace - fixed_s)
        wanted = left[: int(np.searchsorted(seconds, target, side="right"))]
        taken = np.zeros(len(wanted), bool)
        capacity = float(instance.capacity[k])
        if whole:
            room = capacity
            for b, i in enumerate(wanted):
                if size[i] <= room:
                    room -= float(size[i])
                    taken[b] = True
        else:
            free = np.full(instance.steps, capacity)
            for b, i in enumerate(wanted):
                life = free[birth[i] : death[i]]
                if life.min() >= size[i]:
                    life -= size[i]
                    taken[b] = True
        tier[wanted[taken]] = k
        left = left[tier[left] != k]
    return make_plan(tier, nothing, nothing, nothing)


def belady(instance: KvTiering, rng: np.random.Generator) -> TieringPlan:
    """A block that is read from a slower tier takes, in the fastest one, the place of the blocks whose next read is farthest away.

    Only if its own next read is nearer than theirs, and only if the seconds that its reads until then save pay for the moves (tier for tier, as if
    tiers did not work in parallel); the order of eviction is Belady's. Hindsight; optimal for misses of one tier with free evictions, which is not
    this problem: no guarantee. O(T N log N). Source: Belady, doi 10.1147/sj.52.0078.
    """
    name_of = np.empty(instance.blocks, np.int64)
    name_of[birth_order(instance)] = np.arange(instance.blocks)
    decider = _Belady(deployment_of(instance), instance.steps, instance.blocks, _read_times(instance, name_of))
    return plan_of(instance, [decider.decide(seen) for seen in observations(steps_of(instance), 0)])


def _read_times(instance: KvTiering, name_of: IntArray) -> IntArray:
    """name x (T + 1) + step of every read, ascending."""
    steps = np.repeat(np.arange(instance.steps), np.diff(instance.reads.indptr))
    return np.sort(name_of[instance.reads.block] * (instance.steps + 1) + steps)


class _Belady(Tracking):
    """Told beforehand when each block is read: `times`, as in `_read_times`."""

    def __init__(self, deployment: Deployment, steps: int, blocks: int, times: IntArray) -> None:
        super().__init__(deployment)
        self.steps, self._times = steps, times
        self._first = np.searchsorted(times, np.arange(blocks + 1) * (steps + 1))
        self._at = self._first[:-1].copy()
        """The next read of each block among `times`."""

    def _look(self, now: Step, first: int) -> None:
        self._at[now.read] += 1

    def _next(self) -> IntArray:
        """The step of each block's next read; `steps` where there is none."""
        n = len(self.tier)
        found = np.full(n, self.steps)
        more = np.flatnonzero(self._at[:n] < self._first[1 : n + 1])
        found[more] = self._times[self._at[more]] % (self.steps + 1)
        return found

    def _targets(self, seen: Observation, first: int) -> IntArray:
        deployment, size, soon = self.deployment, self.size, self._next()
        soonest = -soon.astype(np.float64)
        target = self.tier.copy()
        target[first:] = 0
        target = self._cascade(target, soonest)
        old = seen.now.read[seen.now.read < first]
        coming = old[(self.tier[old] > 0) & (target[old] > 0) & (soon[old] < self.steps)]
        if deployment.tiers == 1 or not len(coming):
            return target
        coming = coming[np.argsort(soon[coming], kind="stable")]
        going = np.flatnonzero(target == 0)
        going = going[np.argsort(-soon[going], kind="stable")]
        room = float(deployment.capacity_bytes[0] - size[going].sum())
        # who must leave if everybody before in the queue comes
        go = np.append(0.0, np.cumsum(size[going]))
        leave = np.searchsorted(go, np.cumsum(size[coming]) - room)
        until = np.append(np.append(self.steps, soon[going]), -1)[leave]
        reads = np.searchsorted(self._times, coming * (self.steps + 1) + np.maximum(until, 0)) - self._at[coming]
        gain_s = deployment.read_s[self.tier[coming]] - deployment.read_s[0]
        free = deployment.inclusive and deployment.tiers == 2
        demotion_s = np.where((leave == 0) | free, 0.0, deployment.read_s[0] + deployment.write_s[1])
        pays = (soon[coming] < until) & (reads * gain_s > deployment.write_s[0] + demotion_s)
        target[coming[pays]] = 0
        return self._cascade(target, soonest)


__all__ = ["Lfu", "Lru", "PageLookahead", "PriceIndex", "Static", "balanced_static", "belady", "read_volume", "sa_lookahead"]
