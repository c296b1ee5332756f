"""Traffic alone, without spare slots: the whole chain of layers annealed, then windows of it again and again, with exact steps in between.

Exact steps: given its neighbours a layer is an assignment problem (`settle`); and where all devices are alike, what one layer calls device a the
rest of the chain may call device b, which for each boundary is an assignment problem too (`relabel`). Annealing a window of layers with the rest
standing still melts one part of the chain without losing the others; windows that do not touch are annealed side by side, and their gains add up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from headroom.instances.expert_placement import ExpertPlacement
from headroom.solvers.expert_placement_chain import anneal_chain, costs, settle, total

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
QUICK, SLOW = 6_000, 200_000
"""The whole chain is annealed quickly, then slowly: steps for each expert and layer."""
SLOW_SHARE, SLOW_SHARE_MANY, MANY, LEAST_SLOW = 0.25, 0.9, 12, 10_000
"""With a time limit the slow stage has as many steps as fit into this share of what is left, more with MANY devices, whose windows bring less;
fewer than LEAST_SLOW are not worth it."""
WINDOW_STEPS = 3_000
PATIENCE, SLOWER = 10, 3
"""After so many rounds without a gain windows are annealed so many times as slowly."""
WIDTH = 8
"""Layers of a window."""
HOT, COLD = 4.0, 0.32
"""Temperatures that melt a chain, times the largest hop over E D^(5/4): an expert gains about the share of its tokens that a device keeps."""
MILD_HOT, MILD_COLD = 0.25, 0.02
"""Temperatures that keep the larger structure of few devices, times the largest hop over E D^(1/4). The whole chain is annealed either way side by
side, windows mildly."""
STALLED = 60
"""Rounds without a gain after which the search ends."""
LEAST_GAIN = 1e-12
AT_ONCE = 1_000_000
"""Steps between two looks at the clock: about a tenth of a second."""


def fits(instance: ExpertPlacement) -> bool:
    """Whether every expert has exactly one slot and traffic is all that counts."""
    only_traffic = instance.weights.traffic > 0 and instance.weights.balance == 0 and instance.weights.moves == 0 and instance.max_moves is None
    return only_traffic and instance.slots == instance.experts and instance.layers > 1 and not instance.group_limited


def relabel(transition: FloatArray, hop: FloatArray, place: IntArray) -> IntArray:
    """Rename the devices of all later layers, boundary by boundary, as is best for each boundary. Only right where all hops cost the same."""
    from scipy.optimize import linear_sum_assignment

    place = place.copy()
    devices = np.eye(len(hop))
    for b in range(len(transition)):
        flow = devices[place[b]].T @ transition[b] @ devices[place[b + 1]]
        place[b + 1 :] = linear_sum_assignment(flow.T @ hop)[1][place[b + 1 :]]
    return place


class Chain:
    """`place` [L][E] is the best so far, `value` its traffic."""

    def __init__(
        self,
        instance: ExpertPlacement,
        rng: np.random.Generator,
        threads: int,
        stop: Callable[[], bool],
        remaining_s: Callable[[], float] = lambda: math.inf,
    ) -> None:
        assert instance.transition is not None
        self.instance, self.rng, self.threads, self.stop = instance, rng, threads, stop
        self.remaining_s = remaining_s
        self.transition, self.hop = np.ascontiguousarray(instance.transition), instance.hop()
        off = self.hop[~np.eye(len(self.hop), dtype=bool)]
        self._alike = len(off) == 0 or bool((off == off[0]).all())
        unit = (float(off.max(initial=0.0)) or 1.0) / (instance.experts * instance.devices**0.25)
        self.heat = (HOT * unit / instance.devices, COLD * unit / instance.devices)
        self.mild = (MILD_HOT * unit, MILD_COLD * unit)
        self.place = np.tile(np.arange(instance.experts) // instance.slots_per_device, (instance.layers, 1))
        self.value = self._value(self.place)

    def _value(self, place: IntArray) -> float:
        return total(self.transition, self.hop, place) / (self.instance.layers - 1)

    def slot_expert(self) -> IntArray:
        """[L][R]."""
        return np.argsort(self.place, axis=1, kind="stable")

    def start_from(self, slot_expert: IntArray) -> None:
        """Take another placement [L][R] where it is better."""
        place = np.argsort(slot_expert, axis=1) // self.instance.slots_per_device
        self._keep(place)

    def _keep(self, place: IntArray) -> bool:
        value = self._value(place)
        better = value < self.value - LEAST_GAIN
        if better:
            self.place, self.value = place, value
        return better

    def _exact_steps(self, place: IntArray) -> IntArray:
        place = settle(self.transition, self.hop, place)
        return settle(self.transition, self.hop, relabel(self.transition, self.hop, place)) if self._alike else place

    def rounds(self) -> Iterator[float]:
        """Yields the value whenever it has fallen."""
        if self._keep(self._exact_steps(self.place)):
            yield self.value
        if self.instance.devices == 1:
            return
        steps = QUICK
        while steps:
            started = time.monotonic()
            for place, _ in self._anneal_all([(0, self.instance.layers)] * 2, steps, (self.mild, self.heat)):
                if self._keep(self._exact_steps(place)):
                    yield self.value
            steps = self._slow_steps((time.monotonic() - started) / steps) if steps == QUICK else 0
        stalled = 0
        while stalled < STALLED and not self.stop():
            if self._windows(WINDOW_STEPS * SLOWER ** min(stalled // PATIENCE, 2)):
                stalled = 0
                yield self.value
            else:
                stalled += 1

    def _slow_steps(self, seconds_a_step: float) -> int:
        """Steps of the slow stage; 0: none."""
        remaining_s, share = self.remaining_s(), SLOW_SHARE if self.instance.devices < MANY else SLOW_SHARE_MANY
        fit = SLOW if math.isinf(remaining_s) else min(int(share * remaining_s / seconds_a_step), SLOW)
        return fit if fit >= LEAST_SLOW else 0

    def _windows(self, steps: int) -> bool:
        """Anneal two windows that do not touch, or one where there is no room for two."""
        layers = self.instance.layers
        width = min(WIDTH, layers)
        first = int(self.rng.integers(0, layers - width + 1))
        spans = [(first, first + width)]
        others = [k for k in range(layers - width + 1) if k + width < first or k > first + width]
        if others:
            second = int(self.rng.choice(others))
            spans.append((second, second + width))
        found = self._anneal_all(spans, steps, [self.mild] * len(spans))
        place = self.place.copy()
        for (begin, end), (better, gain) in zip(spans, found, strict=True):
            if gain < 0:
                place[begin:end] = better[begin:end]
        if not self._keep(place):
            return False
        self._keep(self._exact_steps(self.place))
        return True

    def _anneal_all(self, spans: list[tuple[int, int]], steps: int, heats: Sequence[tuple[float, float]]) -> list[tuple[IntArray, float]]:
        """Each span of layers annealed by itself from where the chain is now, on several threads: (places, what was gained)."""
        table = costs(self.transition, self.hop, self.place)

        def anneal(job: tuple[tuple[int, int], np.random.Generator, tuple[float, float]]) -> tuple[IntArray, float]:
            (first, last), rng, heat = job
            place, best, own, gained = self.place.copy(), self.place.copy(), table.copy(), np.zeros(2)
            number = steps * (last - first) * self.instance.experts
            for begin in range(0, number, AT_ONCE):
                if self.stop():
                    break
                end = min(begin + AT_ONCE, number)
                anneal_chain(self.transition, self.hop, place, own, first, last, begin, end, number, *heat, rng, best, gained)
            return best, float(gained[1])

        jobs = list(zip(spans, self.rng.spawn(len(spans)), heats, strict=True))
        if self.threads < 2 or len(jobs) < 2:
            return [anneal(job) for job in jobs]
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(anneal, jobs))
