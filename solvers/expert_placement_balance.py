"""Balanced placements, layer by layer and on several threads: exchanges for one load vector, annealing for several scenarios.

A layer is finished when it is within `enough` of its floor: what its closed-form bound says. Layers are independent, so each has a random
generator of its own and the answer does not depend on the number of threads. With group-limited routing the groups are first assigned to nodes,
exactly, and experts then stay in their node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from headroom.bounds.expert_placement_balance import assign_groups, balance_layers, normalised_load
from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
ENOUGH = 9e-7
"""A layer this close to its floor, relative, is finished."""
EXCHANGES = 4000
CLOSE = 1e-3
"""One load vector: a layer this close to its floor is not annealed. It would cost a hundred times the exchanges and bring nothing."""
STEPS_A_SLOT, SLOWER, LEVELS = 5_000, 3, 5
"""Annealing steps of a round, for each slot of the layer: so many times more after each round without a gain, and so many times in all."""
HOT, COLD = 0.1, 0.01
AT_ONCE = 500_000
"""Steps between two looks at the clock."""
GAIN = 0.01
"""What counts as a gain: so much of the gap."""


def layer_balance(load: FloatArray, slots: IntArray, mean: bool) -> float:
    """What slots [D][k] count for balance under loads [S][E] in units of the mean device, replicas sharing equally."""
    count = np.maximum(np.bincount(slots.ravel(), minlength=load.shape[1]), 1)
    carried = (load / count)[:, slots].sum(axis=2)
    most = np.where(load.sum(axis=1) > 0, carried.max(axis=1), 1.0)
    return float(most.mean() if mean else most.max())


class Layers:
    """All layers' placements, the best of each so far: `slots` [L][D][k], `value` [L] what each layer counts for balance, `floor` [L]."""

    def __init__(self, instance: ExpertPlacement, rng: np.random.Generator, threads: int, stop: Callable[[], bool]) -> None:
        self.instance, self.threads, self.stop = instance, threads, stop
        self.load = normalised_load(instance)
        self.floor = balance_layers(instance)
        self.slots = np.full((instance.layers, instance.devices, instance.slots_per_device), -1, dtype=np.int64)
        self.value = np.full(instance.layers, np.inf)
        self.rngs = rng.spawn(instance.layers)
        self.home = self._homes()
        self.level = np.zeros(instance.layers, dtype=np.int64)
        """Rounds without a gain [L]; each makes the next ones slower."""

    def _homes(self) -> IntArray:
        """The node of each expert [L][E]; -1: any."""
        instance = self.instance
        if not instance.group_limited:
            return np.full((instance.layers, instance.experts), -1, dtype=np.int64)
        groups = int(instance.group_of[-1]) + 1
        load = self.load.reshape(instance.scenarios, instance.layers, groups, -1).sum(axis=3) / instance.node_devices
        return assign_groups(load, instance)[1][:, instance.group_of]

    def slot_expert(self) -> IntArray:
        """[L][R]."""
        return self.slots.reshape(self.instance.layers, -1)

    def each(self, work: Callable[[int], None], layers: IntArray) -> None:
        """Do some work for each of the layers, on several threads; the kernels hold no Python lock."""
        if self.threads < 2 or len(layers) < 2:
            for layer in layers:
                work(int(layer))
            return
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(work, layers.tolist()))

    def pack(self) -> None:
        """A placement of every layer by exchanges, on the largest load over scenarios (their mean, when that is what counts)."""
        self.each(self._pack, np.arange(self.instance.layers))

    def _pack(self, layer: int) -> None:
        from headroom.solvers.expert_placement_pack import even_out, pack, replicate

        instance = self.instance
        some = self.load[:, layer].sum(axis=1) > 0
        some = some if some.any() else ~some
        load = self.load[:, layer].max(axis=0) if instance.robust == "worst" else self.load[some, layer].mean(axis=0)
        home = self.home[layer]
        blocks = [np.arange(instance.experts)] if home[0] < 0 else [np.flatnonzero(home == n) for n in range(instance.nodes)]
        width = instance.devices // len(blocks)
        slots = self.slots[layer]
        for number, experts in enumerate(blocks):
            part = np.full((width, instance.slots_per_device), -1, dtype=np.int64)
            least = instance.min_holders
            room = part.size - (len(experts) - 1) * least
            most = min(room, width) if instance.distinct else room
            count = np.empty(len(experts), dtype=np.int64)
            each = np.ascontiguousarray(load[experts])
            if most * len(experts) < part.size or most < least or len(experts) == 0:
                return  # so few experts that a device would hold one twice, or so many that they do not fit
            replicate(each, part.size, most, count, least)
            if not pack(each, count, part, instance.distinct, least):
                return
            # Exchanges that keep experts distinct where they are also keep how many devices hold each.
            even_out(each, count, part, instance.distinct or least > 1, float(self.floor[layer]) * (1 + ENOUGH), EXCHANGES)
            slots[number * width : (number + 1) * width] = experts[part]
        self.value[layer] = self._value(layer, slots)

    def _value(self, layer: int, slots: IntArray) -> float:
        return layer_balance(self.load[:, layer], slots, self.instance.robust == "mean")

    def start_from(self, slot_expert: IntArray) -> None:
        """Take another placement [L][R] where it is better; it must keep the rules."""
        for layer in range(self.instance.layers):
            slots = slot_expert[layer].reshape(self.slots.shape[1:])
            value = self._value(layer, slots)
            if value < self.value[layer]:
                self.slots[layer], self.value[layer] = slots, value
                if self.instance.group_limited:
                    node = np.repeat(self.instance.node_of, self.instance.slots_per_device)
                    self.home[layer, slot_expert[layer]] = node

    def open_layers(self) -> IntArray:
        """Layers worth annealing."""
        instance = self.instance
        distinct = np.array([_distinct(slots) for slots in self.slots])
        close = CLOSE if instance.scenarios == 1 else ENOUGH
        return np.flatnonzero((self.value > self.floor * (1 + close)) & np.isfinite(self.value) & distinct & (self.level < LEVELS))

    def rounds(self) -> Iterator[float]:
        """Anneal round by round; yields the balance part after each."""
        while not self.stop():
            layers = self.open_layers()
            if not len(layers):
                return
            before = self.value.copy()
            self.each(self._anneal, layers)
            gained = before - self.value > GAIN * (before - self.floor)
            if not self.stop():  # a round that was cut short says nothing
                self.level[layers] += ~gained[layers]
            yield float(self.value.mean())

    def _anneal(self, layer: int) -> None:
        from headroom.solvers.expert_placement_anneal import anneal

        if self.stop():
            return
        instance = self.instance
        best = self.slots[layer].copy()
        # Scenarios without load count 1 whatever the placement, which their mean has to allow for.
        some = self.load[:, layer].sum(axis=1) > 0
        enough = float(self.floor[layer]) * (1 + ENOUGH)
        if not some.any():
            return
        if instance.robust == "mean":
            enough = (enough * instance.scenarios - float((~some).sum())) / float(some.sum())
        most = instance.devices if not instance.group_limited else instance.node_devices
        steps = STEPS_A_SLOT * instance.slots * SLOWER ** int(self.level[layer])
        w, slots = np.ascontiguousarray(self.load[some, layer].T), self.slots[layer].copy()
        for begin in range(0, steps, AT_ONCE):
            reached = anneal(
                w, slots, self.home[layer], instance.node_devices, min(most, instance.most_replicas), instance.robust == "mean", enough,
                begin, min(begin + AT_ONCE, steps), steps, HOT, COLD, self.rngs[layer], best, instance.min_holders,
            )  # fmt: skip
            if reached <= enough or self.stop():
                break
        value = self._value(layer, best)
        if value < self.value[layer]:
            self.slots[layer], self.value[layer] = best, value


def _distinct(slots: IntArray) -> bool:
    ordered = np.sort(slots, axis=1)
    return bool((ordered[:, 1:] != ordered[:, :-1]).all())
