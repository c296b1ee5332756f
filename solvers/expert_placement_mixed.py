"""Any weights: layers annealed in turn against their neighbours as they stand, even ones and odd ones side by side.

Each sweep makes the tables that `expert_placement_anneal_mixed` needs, anneals every even layer, then every odd one; a layer takes what is better for
it, and with its neighbours standing still that is better for all. A cap on moves is searched with several prices of a move (`_moves`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from headroom.bounds.expert_placement_balance import normalised_load
from headroom.formulations.expert_placement import device_counts, evaluate, nearest
from headroom.formulations.progress import Progress
from headroom.formulations.types import SolveParams
from headroom.heuristics.expert_placement_repair import repaired
from headroom.heuristics.expert_placement_split import plan_of
from headroom.instances.expert_placement import ExpertPlacement
from headroom.solvers.expert_placement_moves import Options

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
STEPS_A_SLOT = 1_500
HOT, COLD = 0.5, 0.004
"""Temperatures in units of what a random step changes; later sweeps begin cooler."""
COOLER = 0.6
LEAST_HOT = 0.05
STALLED = 4
MOVE_PRICES = (0.1, 1.0, 0.3, 3.0, 0.03)
"""Prices of a move that a cap is searched with, in units of the weights over all slots."""
HOPS, WIDEST, SWEEPS_A_HOP = 30, 4, 6
"""The search ends after HOPS shuffles of up to WIDEST layers that brought nothing."""
LEAST_GAIN = 1e-5
"""A sweep that gains less than this share of the objective has gained nothing."""


class Mixed:
    """`slot_expert` [L][R], improved sweep by sweep. Must start distinct and with every expert on `min_holders` devices."""

    def __init__(self, instance: ExpertPlacement, start: IntArray, rng: np.random.Generator, threads: int, stop: Callable[[], bool]) -> None:
        self.instance, self.threads, self.stop = instance, threads, stop
        self.slot_expert = start.copy()
        self.rngs = rng.spawn(instance.layers)
        self.load = normalised_load(instance)
        self.hop = instance.hop()
        weights = instance.weights
        self.balance = weights.balance / instance.layers
        self.traffic = weights.traffic / max(instance.layers - 1, 1) if instance.transition is not None and instance.layers > 1 else 0.0
        self.move_price = weights.moves / (instance.layers * instance.slots)
        """Of each expert that a device did not hold before; a cap on moves adds to it."""
        self.before = None
        if instance.current_slot_expert is not None:
            self.before = device_counts(instance, instance.current_slot_expert) > 0
        self._hot = HOT
        self._span = (0, instance.layers)
        self._rng = rng

    def sweeps(self) -> Iterator[float]:
        """Yields what each sweep gained, in units of the objective (with the move price)."""
        stalled = 0
        while stalled < STALLED and not self.stop():
            gained = self._sweep(0) + self._sweep(1)
            self._hot = max(COOLER * self._hot, LEAST_HOT)
            stalled = 0 if gained > LEAST_GAIN * (self.balance * self.instance.layers + self.instance.weights.traffic) else stalled + 1
            yield gained

    def once(self, move_price: float, hot: float) -> float:
        """One sweep at a price of moves and a temperature; what it gained at that price."""
        self.move_price, self._hot = move_price, hot
        return self._sweep(0) + self._sweep(1)

    def objective(self) -> float:
        """What the placement costs now."""
        return evaluate(self.instance, plan_of(self.instance, self.slot_expert)).objective

    def hops(self) -> Iterator[float]:
        """Shuffle a few neighbouring layers, anneal them and those beside them, keep what is better; yields each better objective."""
        value, failed = self.objective(), 0
        while failed < HOPS and not self.stop():
            before, layers = self.slot_expert.copy(), self.instance.layers
            width = int(self._rng.integers(1, min(WIDEST, layers) + 1))
            first = int(self._rng.integers(0, layers - width + 1))
            for layer in range(first, first + width):
                self._shuffle(layer)
            self._span, self._hot = (max(first - 1, 0), min(first + width + 1, layers)), HOT
            for number, _ in enumerate(self.sweeps()):
                if number == SWEEPS_A_HOP:
                    break
            now = self.objective()
            if now < value - 1e-12:
                value, failed = now, 0
                yield value
            else:
                self.slot_expert, failed = before, failed + 1
        self._span = (0, self.instance.layers)

    def _shuffle(self, layer: int) -> None:
        """Exchange slots at random, within nodes where groups must stay."""
        instance = self.instance
        slots = self.slot_expert[layer].reshape(instance.devices, -1)
        for a, i, b, j in self._rng.integers(0, (*slots.shape, *slots.shape), size=(instance.slots, 4)).tolist():
            e, f = slots[a, i], slots[b, j]
            apart = instance.group_limited and instance.node_of[a] != instance.node_of[b]
            if a != b and not apart and e not in slots[b] and f not in slots[a]:
                slots[a, i], slots[b, j] = f, e

    def _sweep(self, parity: int) -> float:
        layers = [layer for layer in range(*self._span) if layer % 2 == parity]
        if not layers or self.stop():
            return 0.0
        counts = device_counts(self.instance, self.slot_expert)
        if self.threads > 1 and len(layers) > 1:
            with ThreadPoolExecutor(self.threads) as pool:
                return float(sum(pool.map(lambda layer: self._layer(layer, counts), layers)))
        return float(sum(self._layer(layer, counts) for layer in layers))

    def _tables(self, layer: int, counts: IntArray) -> tuple[FloatArray, FloatArray]:
        """out, came [E][D]."""
        instance = self.instance
        out, came = np.zeros((instance.experts, instance.devices)), np.zeros((instance.experts, instance.devices))
        if self.traffic > 0:
            assert instance.transition is not None
            if layer + 1 < instance.layers:
                out += self.traffic * (instance.transition[layer] @ nearest(instance, counts[layer + 1]).T)
            if layer > 0:
                sends = counts[layer - 1] / counts[layer - 1].sum(axis=1, keepdims=True)
                came += self.traffic * (instance.transition[layer - 1].T @ sends)
        return out, came

    def _layer(self, layer: int, counts: IntArray) -> float:
        from headroom.solvers.expert_placement_anneal_mixed import anneal_mixed

        if self.stop():
            return 0.0
        instance = self.instance
        out, came = self._tables(layer, counts)
        new = np.zeros_like(out) if self.before is None else self.move_price * ~self.before[layer]
        slots = self.slot_expert[layer].reshape(instance.devices, -1)
        home = np.full(instance.experts, -1, dtype=np.int64)
        most = instance.most_replicas
        if instance.group_limited:
            home[self.slot_expert[layer]] = np.repeat(instance.node_of, instance.slots_per_device)
            most = min(most, instance.node_devices)
        best = slots.copy()
        # Scenarios without load count 1 whatever the placement.
        loaded = np.ascontiguousarray(self.load[self.load[:, layer].sum(axis=1) > 0, layer].T)
        share = loaded.shape[1] / instance.scenarios if instance.robust == "mean" else 1.0
        if not loaded.shape[1]:
            loaded, share = np.zeros((instance.experts, 1)), 0.0
        gained = anneal_mixed(
            loaded, self.balance * share, instance.robust == "mean", out, came, self.hop, new, self.traffic > 0,
            slots.copy(), home, instance.node_devices, most, STEPS_A_SLOT * instance.slots, self._hot, COLD, self.rngs[layer], best,
            instance.min_holders,
        )  # fmt: skip
        self.slot_expert[layer] = best.ravel()
        return float(gained)


def rename_devices(instance: ExpertPlacement, slot_expert: IntArray) -> IntArray:
    """The same placement with devices renamed, within nodes, so that as few experts as possible move. O(L D^3).

    Loads do not change; traffic does where layers are renamed differently, so this is for plans whose traffic does not count.
    """
    from scipy.optimize import linear_sum_assignment

    if instance.current_slot_expert is None:
        return slot_expert
    now, before = device_counts(instance, slot_expert) > 0, device_counts(instance, instance.current_slot_expert) > 0
    renamed = slot_expert.copy().reshape(instance.layers, instance.devices, -1)
    width = instance.node_devices if instance.group_limited else instance.devices
    for layer in range(instance.layers):
        same = now[layer].astype(np.int64).T @ before[layer].astype(np.int64)
        for first in range(0, instance.devices, width):
            block = slice(first, first + width)
            old, new = linear_sum_assignment(-same[block, block])
            renamed[layer, first + new] = slot_expert[layer].reshape(instance.devices, -1)[first + old]
    return renamed.reshape(slot_expert.shape)


def mixed_needed(instance: ExpertPlacement) -> bool:
    """Whether more than balance counts."""
    moves = instance.current_slot_expert is not None and (instance.weights.moves > 0 or instance.max_moves is not None)
    return moves or (instance.weights.traffic > 0 and instance.layers > 1)


def search_mixed(instance: ExpertPlacement, params: SolveParams, progress: Progress, balanced: IntArray, stop: Callable[[], bool]) -> None:
    """Offer plans for any weights, from the balanced placement, the current one and a linear one, whichever is best so far."""
    rng = params.rng()
    starts = [balanced, np.tile(np.arange(instance.slots) % instance.experts, (instance.layers, 1))]
    if instance.current_slot_expert is not None:
        starts.append(repaired(instance, instance.current_slot_expert))
    usable = [start for start in starts if _usable(instance, start)]
    if usable and usable[0] is balanced and instance.weights.traffic == 0:
        usable[0] = rename_devices(instance, balanced)
    if not usable:
        return
    if instance.max_moves is not None:
        if any(start is starts[-1] for start in usable):
            _within_moves(instance, params, progress, starts[-1], rng, stop)
        return
    free = [evaluate(instance, plan_of(instance, start)) for start in usable]
    best = min(range(len(usable)), key=lambda number: free[number].objective)
    search = Mixed(instance, usable[best], rng, params.threads, stop)
    for _ in search.sweeps():
        progress.offer(plan_of(instance, search.slot_expert))
    for _ in search.hops():
        progress.offer(plan_of(instance, search.slot_expert))


def _usable(instance: ExpertPlacement, slot_expert: IntArray) -> bool:
    """Distinct, every expert on enough devices, groups in one node: what the annealing keeps but does not bring about."""
    if slot_expert.min() < 0:
        return False
    counts = device_counts(instance, slot_expert)
    if counts.max() > 1 or counts.sum(axis=2).min() < instance.min_holders:
        return False
    if not instance.group_limited:
        return True
    groups = int(instance.group_of[-1]) + 1
    on_node = counts.reshape(instance.layers, groups, -1, instance.nodes, instance.node_devices).sum(axis=(2, 4)) > 0
    return bool((on_node.sum(axis=2) == 1).all())


def _within_moves(
    instance: ExpertPlacement, params: SolveParams, progress: Progress, current: IntArray, rng: np.random.Generator, stop: Callable[[], bool]
) -> None:
    """A cap on moves: searches at several prices of a move, and where layers do not meet the best choice among all their layers.

    `current` [L][R]: the placement that stands, repaired where it breaks a rule that annealing keeps but does not bring about.
    """
    alone = instance.weights.traffic == 0 or instance.layers == 1
    options = Options(instance)
    for layer in range(instance.layers):
        options.add(layer, current[layer])
        if alone:
            options.greedy(layer, current[layer], stop)
    _choose(instance, progress, options, alone)
    unit = (instance.weights.balance + instance.weights.traffic) / (instance.layers * instance.slots)
    for price in MOVE_PRICES:
        if stop():
            break
        search = Mixed(instance, current, rng.spawn(1)[0], params.threads, stop)
        search.move_price += price * unit
        for _ in search.sweeps():
            progress.offer(plan_of(instance, search.slot_expert))
            for layer in range(instance.layers):
                options.add(layer, search.slot_expert[layer])
        _choose(instance, progress, options, alone)


def _choose(instance: ExpertPlacement, progress: Progress, options: Options, alone: bool) -> None:
    """Offer the best combination of the layers' options within the cap; the price of moves is in the objective that `offer` evaluates."""
    assert instance.max_moves is not None
    if not alone:
        return
    most = min(instance.max_moves, instance.layers * instance.slots)
    total, placement = options.front(most)
    price = instance.weights.moves / (instance.layers * instance.slots)
    within = np.flatnonzero(np.isfinite(total))
    if not len(within):
        return  # repairing the current placement took more moves than the cap allows
    best = int(within[np.argmin(instance.weights.balance * total[within] / instance.layers + price * within)])
    progress.offer(plan_of(instance, placement(best)))
