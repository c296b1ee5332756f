"""Caps on moves where only balance counts: many placements of each layer, cheap in moves or good in balance, and the best choice among them.

Options of a layer: the current placement (repaired where it breaks a rule), what a greedy sequence of exchanges from the busiest device makes of it
step by step, and what annealing at several prices of a move leaves. Layers then only share the cap, a multiple-choice knapsack that dynamic
programming solves exactly over the options, for all caps at once: that is the front of moves against balance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from headroom.bounds.expert_placement_balance import normalised_load
from headroom.formulations.expert_placement import device_counts
from headroom.instances.expert_placement import ExpertPlacement
from headroom.solvers.expert_placement_balance import layer_balance

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
GREEDY_STEPS = 60


class Options:
    """For each layer the best placement found for each number of moves."""

    def __init__(self, instance: ExpertPlacement) -> None:
        assert instance.current_slot_expert is not None
        self.instance = instance
        self.load = normalised_load(instance)
        self.before = device_counts(instance, instance.current_slot_expert) > 0
        self._found: list[dict[int, tuple[float, IntArray]]] = [{} for _ in range(instance.layers)]

    def value(self, layer: int, slots: IntArray) -> float:
        """What a layer's slots [R] count for balance."""
        return layer_balance(self.load[:, layer], slots.reshape(self.instance.devices, -1), self.instance.robust == "mean")

    def moves(self, layer: int, slots: IntArray) -> int:
        """Experts that devices hold and did not hold before."""
        instance = self.instance
        holds = np.zeros((instance.experts, instance.devices), dtype=bool)
        holds[slots, np.arange(instance.slots) // instance.slots_per_device] = True
        return int((holds & ~self.before[layer]).sum())

    def add(self, layer: int, slots: IntArray) -> None:
        """Keep the placement if it is the best of its number of moves."""
        moved, value = self.moves(layer, slots), self.value(layer, slots)
        if moved not in self._found[layer] or value < self._found[layer][moved][0]:
            self._found[layer][moved] = (value, slots.copy())

    def greedy(self, layer: int, start: IntArray, stop: Callable[[], bool]) -> None:
        """Exchanges from the busiest device, each the best for balance, from a placement [R]: no expert gains or loses a holder."""
        instance = self.instance
        slots = start.reshape(instance.devices, -1).copy()
        count = np.maximum(np.bincount(slots.ravel(), minlength=instance.experts), 1)
        each = self.load[:, layer] / count
        for _ in range(GREEDY_STEPS):
            if stop():
                return
            carried = each[:, slots].sum(axis=2)
            a = int(np.argmax(carried)) % instance.devices
            best = self._best_exchange(slots, each, carried, a)
            if best is None:
                return
            b, i, j = best
            slots[a, i], slots[b, j] = slots[b, j], slots[a, i]
            self.add(layer, slots.ravel())

    def _best_exchange(self, slots: IntArray, each: FloatArray, carried: FloatArray, a: int) -> tuple[int, int, int] | None:
        instance = self.instance
        step = each[:, slots[a]][:, None, :, None] - each[:, slots][:, :, None, :]  # [S][D][i][j]
        after = np.maximum(carried[:, a, None, None, None] - step, carried[:, :, None, None] + step).max(axis=0)
        twice_b = (slots[:, None, :] == slots[a][None, :, None]).any(axis=2)[:, :, None]
        twice_a = (slots[:, :, None] == slots[a][None, None, :]).any(axis=2)[:, None, :]
        after[np.broadcast_to(twice_a | twice_b, after.shape)] = np.inf
        after[a] = np.inf
        if instance.group_limited:
            after[instance.node_of != instance.node_of[a]] = np.inf
        at = int(np.argmin(after))
        if not after.flat[at] < carried[:, a].max() * (1 - 1e-9):
            return None
        b, i, j = np.unravel_index(at, after.shape)
        return int(b), int(i), int(j)

    def front(self, most: int) -> tuple[FloatArray, Callable[[int], IntArray]]:
        """(least sum of the layers' balance with at most m moves, m = 0 .. most; the placement [L][R] for such an m). O(L most options)."""
        total = np.zeros(most + 1)
        chosen: list[IntArray] = []
        keys = []
        for found in self._found:
            options = sorted(key for key in found if key <= most)
            best, pick = np.full(most + 1, np.inf), np.zeros(most + 1, dtype=np.int64)
            for number, key in enumerate(options):
                trial = np.full(most + 1, np.inf)
                trial[key:] = total[: most + 1 - key] + found[key][0]
                better = trial < best
                best[better], pick[better] = trial[better], number
            total = best
            chosen.append(pick)
            keys.append(options)

        def placement(cap: int) -> IntArray:
            rows, left = [], cap
            for layer in range(self.instance.layers - 1, -1, -1):
                key = keys[layer][int(chosen[layer][left])]
                rows.append(self._found[layer][key][1])
                left -= key
            return np.array(rows[::-1])

        return total, placement
