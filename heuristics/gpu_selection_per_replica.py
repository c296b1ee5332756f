"""Baselines for GPU selection with whole replicas: bin packing with bins of several types, under the names the field uses.

| name                    | kind      | what it does                                                                            |
|-------------------------|-----------|-----------------------------------------------------------------------------------------|
| `first_fit_decreasing`  | heuristic | slices by falling size, each on the first replica with room, else on a new one           |
| `best_fit_decreasing`   | heuristic | the same, each on the replica that it leaves with the least room                         |
| `OnlineWholeFirstFit`   | policy    | slices arrive in random order; the first replica rented that has room takes each         |

All return None when caps or pools leave them without a fleet. Offline they work on groups of replicas that hold the same slices, so a million
slices of an item cost no more than a few; a plan is `Patterns`: (type, slices of each loaded item on one replica [I], replicas).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_patterns import pattern_fits
from headroom.bounds.gpu_selection_per_replica import PatternData, pattern_data
from headroom.formulations.gpu_selection_per_replica import ReplicaPlan, replica_plan
from headroom.formulations.tolerances import FEASIBILITY
from headroom.heuristics.gpu_selection import Market, Slice, market_of
from headroom.instances.gpu_selection import GpuSelection

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Patterns = list[tuple[int, IntArray, int]]
ROOM = 0.5 * FEASIBILITY
"""How far over `max_utilisation` a replica may be filled: full within `evaluate`'s tolerance is full."""


@dataclass(frozen=True)
class Group:
    """Replicas of one type that hold the same: `held` slices of each item [I] on each, `load` of one, how many there are."""

    gpu: int
    held: IntArray
    load: float
    replicas: int


Choose = Callable[[PatternData, list[Group], int, int], int | None]
"""f(data, groups, item, start) -> index of the group whose next replica takes a slice of the item, or None for a new replica. The groups before
`start` have been found to have no room for the item."""


def first_fit_decreasing(instance: GpuSelection, rng: np.random.Generator) -> ReplicaPlan | None:
    """First fit decreasing, once for each of several orders of size and rules for a new replica; the cheapest outcome.

    With one type and one price it is the classic rule, within 11/9 of the optimum plus 2/3 of a replica (Dosa 2007, doi
    10.1007/978-3-540-74450-4_1); with several types no ratio is proved. O(items^2 log items) groups at most.
    """
    return _best_of_orders(instance, _first_fit)


def best_fit_decreasing(instance: GpuSelection, rng: np.random.Generator) -> ReplicaPlan | None:
    """Best fit decreasing: as `first_fit_decreasing`, on the replica whose room left is smallest. Identical replicas are filled alike."""
    return _best_of_orders(instance, _best_fit)


def _best_of_orders(instance: GpuSelection, choose: Choose) -> ReplicaPlan | None:
    patterns = best_packing(pattern_data(instance), choose)
    return None if patterns is None else plan_of_patterns(instance, patterns)


def best_packing(data: PatternData, choose: Choose | None = None, stop: Callable[[], object] = lambda: None) -> Patterns | None:
    """The cheapest packing over all orders and rules; None when none of them ends within the limits (or `stop` says so before the first does)."""
    if not data.can_hold.any(axis=0).all():
        return None
    best: Patterns | None = None
    for order in orders(data):
        for rule in NEW_REPLICA:
            patterns = pack(data, order, choose or _first_fit, rule, stop)
            if patterns is not None and (best is None or cost_of(data, patterns) < cost_of(data, best)):
                best = patterns
    return best


def orders(data: PatternData) -> list[IntArray]:
    """Orders of the items, largest first by: size where it is largest, where it is smallest, where it is cheapest; and fewest types first."""
    big = data.size.max(axis=0, initial=0.0)
    small = np.where(data.can_hold, data.size, np.inf).min(axis=0, initial=np.inf)
    value = np.where(data.can_hold, data.price[:, None] * data.size, np.inf)
    cheap = np.take_along_axis(data.size, value.argmin(axis=0)[None, :], axis=0)[0] if len(data.items) else big
    few = data.can_hold.sum(axis=0)
    found = [np.argsort(-big, kind="stable"), np.argsort(-small, kind="stable"), np.argsort(-cheap, kind="stable"), np.lexsort((-cheap, few))]
    return [np.asarray(order, dtype=np.int64) for order in found]


def _by_slice(data: PatternData, item: int) -> FloatArray:
    """Cost of the part of a replica that a slice takes."""
    return data.price * data.size[:, item]


def _by_filling(data: PatternData, item: int) -> FloatArray:
    """Cost of a replica for each slice of the item it can hold: what cannot be filled with the item is paid for as well."""
    return data.price / np.maximum(data.copies[:, item], 1.0)


def _by_price(data: PatternData, item: int) -> FloatArray:
    """Price of a replica."""
    return data.price


NEW_REPLICA: tuple[Callable[[PatternData, int], FloatArray], ...] = (_by_slice, _by_filling, _by_price)


def pack(
    data: PatternData,
    order: IntArray,
    choose: Choose,
    rank: Callable[[PatternData, int], FloatArray],
    stop: Callable[[], object] = lambda: None,
) -> Patterns | None:
    """Place the items in order, each slice where `choose` says, else on a new replica of the type that `rank` puts first and limits allow."""
    groups = [Group(g, np.zeros(len(data.items), dtype=np.int64), 0.0, int(n)) for g, n in enumerate(data.instance.min_count) if n]
    for item in order.tolist():
        left, start = int(data.slices[item]), 0
        if stop():
            return None
        while left > 0:
            at = choose(data, groups, item, start)
            if at is None:
                at = _rent(data, groups, item, left, rank)
                if at is None:
                    return None
            left, start = left - _fill(data, groups, at, item, left), at
    return cheaper_types(data, [(group.gpu, group.held, group.replicas) for group in groups])


def _room_for(data: PatternData, group: Group, item: int) -> int:
    """Slices of the item that one replica of the group can still take."""
    if not data.can_hold[group.gpu, item]:
        return 0
    room = data.instance.max_utilisation * (1 + ROOM) - group.load
    return int(max(room, 0.0) / data.size[group.gpu, item])


def _first_fit(data: PatternData, groups: list[Group], item: int, start: int) -> int | None:
    need, limit = data.size[:, item].tolist(), data.instance.max_utilisation * (1 + ROOM)
    for at in range(start, len(groups)):
        group = groups[at]
        if 0 < need[group.gpu] <= limit - group.load:
            return at
    return None


def _best_fit(data: PatternData, groups: list[Group], item: int, start: int) -> int | None:
    need, limit = data.size[:, item].tolist(), data.instance.max_utilisation * (1 + ROOM)
    best, load = None, -1.0
    for at, group in enumerate(groups):
        if group.load > load and 0 < need[group.gpu] <= limit - group.load:
            best, load = at, group.load
    return best


def _fill(data: PatternData, groups: list[Group], at: int, item: int, left: int) -> int:
    """Put as many slices as fit on the replicas of a group, one replica after the other; returns how many. The group may fall into three."""
    group = groups[at]
    each = _room_for(data, group, item)
    full, rest = min(divmod(left, each), (group.replicas, 0))
    pieces = [(each, full)] + ([(rest, 1)] if rest and full < group.replicas else [])
    fresh = []
    for slices, replicas in pieces:
        if replicas:
            held = group.held.copy()
            held[item] += slices
            fresh.append(Group(group.gpu, held, group.load + slices * float(data.size[group.gpu, item]), replicas))
    untouched = group.replicas - sum(piece.replicas for piece in fresh)
    groups[at : at + 1] = fresh + ([replace(group, replicas=untouched)] if untouched else [])
    return sum(slices * replicas for slices, replicas in pieces)


def _rent(data: PatternData, groups: list[Group], item: int, left: int, rank: Callable[[PatternData, int], FloatArray]) -> int | None:
    """Rent what the item's remaining slices fill (one replica at least) of the first type that may grow; the index of the new group."""
    n = np.zeros(len(data.price))
    for group in groups:
        n[group.gpu] += group.replicas
    nothing = np.zeros(len(data.items), dtype=np.int64)
    for g in np.argsort(np.where(data.can_hold[:, item], rank(data, item), np.inf), kind="stable").tolist():
        each = _room_for(data, Group(g, nothing, 0.0, 1), item)
        most = may_grow(data, n, g)
        if each > 0 and most >= 1:
            groups.append(Group(g, nothing, 0.0, int(min(most, max(left // each, 1)))))
            return len(groups) - 1
    return None


def may_grow(data: PatternData, n: FloatArray, g: int) -> float:
    """How many more replicas of g caps and pools allow beside counts n [G]."""
    most = float(data.instance.max_count[g] - n[g])
    for gpus, limit in zip(data.pool_gpus, data.pool_limit, strict=True):
        if gpus[g] > 0:
            most = min(most, math.floor((limit - float(gpus @ n)) / gpus[g]))
    return most


def cost_of(data: PatternData, patterns: Patterns) -> float:
    """USD/h."""
    return math.fsum(float(data.price[g]) * n for g, _, n in patterns)


def counts_of(data: PatternData, patterns: Patterns) -> FloatArray:
    """Replicas of each type [G]."""
    n = np.zeros(len(data.price))
    for g, _, replicas in patterns:
        n[g] += replicas
    return n


def cheaper_types(data: PatternData, patterns: Patterns) -> Patterns | None:
    """Move what a replica holds to the cheapest type that can hold it, drop empty replicas above `min_count`; None if a limit is broken."""
    n = counts_of(data, patterns)
    floor = data.instance.min_count
    better: Patterns = []
    for g, z, replicas in sorted(patterns, key=lambda pattern: -float(data.price[pattern[0]])):
        left = replicas
        for h in np.argsort(data.price, kind="stable").tolist() if z.any() else []:
            if left and data.price[h] < data.price[g] and n[g] > floor[g] and (z[~data.can_hold[h]] == 0).all() and pattern_fits(data, (h, z)):
                moved = int(min(left, n[g] - floor[g], may_grow(data, n, h)))
                if moved > 0:
                    better.append((h, z, moved))
                    n[g], n[h], left = n[g] - moved, n[h] + moved, left - moved
        if not z.any() and left:
            dropped = int(min(left, n[g] - floor[g]))
            n[g], left = n[g] - dropped, left - dropped
        if left:
            better.append((g, z, left))
    limits_kept = (n >= floor).all() and (n <= data.instance.max_count).all() and (data.pool_gpus @ n <= data.pool_limit).all()
    return better if limits_kept else None


def plan_of_patterns(instance: GpuSelection, patterns: Patterns) -> ReplicaPlan:
    """The plan; slices of items without load are on nobody."""
    items = instance.loaded_items
    wide = []
    for g, z, replicas in patterns:
        held = np.zeros(len(instance.work), dtype=np.int64)
        held[items] = z
        wide.append((g, held, replicas))
    return replica_plan(instance, wide)


class OnlineWholeFirstFit:
    """First fit: the first replica rented that has room takes the slice; else a new one, of the type on which the slice costs least.

    With one type it is within 1.7 times the optimum (Dosa and Sgall 2013, doi 10.4230/LIPIcs.STACS.2013.538). O(replicas) a slice.
    """

    def __init__(self, market: Market) -> None:
        self.market = market
        self.count = market.min_count.copy()
        self.untouched = market.min_count.copy()
        """Replicas [G] that `min_count` asks for and that hold nothing yet."""
        self.gpu: list[int] = []
        """Type of each replica that holds something, in order of its first slice."""
        self._load = np.zeros(16)
        self._type = np.zeros(16, dtype=np.int64)

    def decide(self, arrival: Slice) -> tuple[int, int] | None:
        """(type, number of the replica) that takes the slice, or None when none has room and none may be rented."""
        need, limit = arrival.load_replicas, self.market.max_utilisation * (1 + ROOM)
        fits = self._load[: len(self.gpu)] + need[self._type[: len(self.gpu)]] <= limit
        at = int(np.argmax(fits)) if fits.any() else -1
        if at < 0:
            able = np.flatnonzero(need <= limit)
            order = able[np.argsort(self.market.price_usd_per_h[able] * need[able], kind="stable")].tolist()
            g = next((g for g in order if self.untouched[g] > 0), None)
            g = next((g for g in order if self._may_rent(g)), None) if g is None else g
            if g is None:
                return None
            at = self._open(g)
        self._load[at] += need[self.gpu[at]]
        return self.gpu[at], at

    def _may_rent(self, g: int) -> bool:
        used = self.market.pool_gpus @ self.count + self.market.pool_gpus[:, g]
        return bool(self.count[g] + 1 <= self.market.max_count[g] and (used <= self.market.pool_limit).all())

    def _open(self, g: int) -> int:
        """Put an empty replica of g to use, a required one if there is one left."""
        at = len(self.gpu)
        if at == len(self._load):
            self._load = np.concatenate([self._load, np.zeros(at)])
            self._type = np.concatenate([self._type, np.zeros(at, dtype=np.int64)])
        self.gpu.append(g)
        self._type[at] = g
        if self.untouched[g] > 0:
            self.untouched[g] -= 1
        else:
            self.count[g] += 1
        return at


def whole_arrivals(instance: GpuSelection, rng: np.random.Generator) -> Iterator[tuple[int, Slice]]:
    """(loaded item, slice) in random order: k_i slices of each item."""
    data = pattern_data(instance)
    load = np.where(data.can_hold, data.size, np.inf)
    for i in rng.permutation(np.repeat(np.arange(len(data.items)), data.slices.astype(np.int64))):
        yield int(i), Slice(load[:, i])


def replay_whole(instance: GpuSelection, policy: Callable[[Market], OnlineWholeFirstFit], rng: np.random.Generator) -> ReplicaPlan | None:
    """Feed a policy its arrivals one by one; None when it had to turn one away or started beyond a pool's limit."""
    data, decider = pattern_data(instance), policy(market_of(instance))
    held: dict[int, dict[int, int]] = {}
    for i, arrival in whole_arrivals(instance, rng):
        answer = decider.decide(arrival)
        if answer is None:
            return None
        on_replica = held.setdefault(answer[1], {})
        on_replica[i] = on_replica.get(i, 0) + 1
    if (data.pool_gpus @ decider.count > data.pool_limit).any():
        return None
    patterns: Patterns = []
    for at, g in enumerate(decider.gpu):
        z = np.zeros(len(data.items), dtype=np.int64)
        for i, slices in held.get(at, {}).items():
            z[i] = slices
        patterns.append((g, z, 1))
    nothing = np.zeros(len(data.items), dtype=np.int64)
    patterns += [(g, nothing, int(decider.untouched[g])) for g in np.flatnonzero(decider.untouched).tolist()]
    return plan_of_patterns(instance, patterns)
