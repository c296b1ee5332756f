"""Traffic over a chain of layers, exactly, while the ways to split a layer's experts over the devices are few.

Without spare slots and with one price for every hop, what counts of a layer is only which experts stand together: a partition of E experts into D
blocks of k = E / D. Between two partitions the best naming of devices keeps the most flow, an assignment of blocks to blocks. So

    W_0(q) = 0,   W_b+1(q) = max over partitions p of W_b(p) + kept_b(p, q)

is exact: traffic = hop (P - max W) / boundaries. E = 8 has 35 partitions on 2 devices, 105 on 4; E = 16 has 6,435 on 2. The recheck is the same
recurrence again. Where hops within and between nodes differ, the smaller one still gives a bound.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt

from headroom.bounds.expert_placement_traffic import ROUNDING
from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MOST_PARTITIONS = 7_000
MOST_WORK = 2.5e9
"""Additions: a few seconds."""
MOST_DEVICES = 10
"""Blocks are assigned by way of all their sets."""
CHUNK_ENTRIES = 2e7
"""Flows between blocks, or sums over sets of blocks, held at a time."""


def number_of_partitions(experts: int, devices: int) -> int:
    """E! / (k!^D D!)."""
    found: int = math.factorial(experts) // (math.factorial(experts // devices) ** devices * math.factorial(devices))
    return found


def applies(instance: ExpertPlacement) -> bool:
    """Whether there are no spare slots and few enough partitions."""
    experts, devices = instance.experts, instance.devices
    if instance.transition is None or instance.layers < 2 or instance.slots != experts or not 1 < devices <= MOST_DEVICES or experts > 64:
        return False
    if number_of_partitions(experts, devices) > MOST_PARTITIONS:
        return False
    return work(instance) <= MOST_WORK


def work(instance: ExpertPlacement) -> float:
    """Additions that the recurrence takes."""
    devices = instance.devices
    sets = 2.0 if devices == 2 else 2.0 ** (devices - 1) * devices
    return float(number_of_partitions(instance.experts, devices)) ** 2 * sets * instance.layers


def partitions(experts: int, devices: int) -> IntArray:
    """All of them [N][D][k], blocks by their least expert."""
    k = experts // devices

    def split(left: tuple[int, ...]) -> list[list[tuple[int, ...]]]:
        if not left:
            return [[]]
        found = []
        for others in itertools.combinations(left[1:], k - 1):
            block = (left[0], *others)
            rest = tuple(e for e in left if e not in block)
            found += [[block, *tail] for tail in split(rest)]
        return found

    return np.array(split(tuple(range(experts))), dtype=np.int64)


def smallest_hop(instance: ExpertPlacement) -> float:
    """The least that leaving a device costs."""
    off = instance.hop()[~np.eye(instance.devices, dtype=bool)]
    return float(off.min(initial=np.inf)) if len(off) else 0.0


def alike(instance: ExpertPlacement) -> bool:
    """Whether all hops cost the same, so that the recurrence is exact."""
    off = instance.hop()[~np.eye(instance.devices, dtype=bool)]
    return len(off) == 0 or bool((off == off[0]).all())


def partition_traffic(instance: ExpertPlacement) -> float:
    """The exact traffic of the best chain, or less where hops differ."""
    return traffic_of_kept(instance, best_chain(instance)[0])


def traffic_of_kept(instance: ExpertPlacement, kept: float) -> float:
    """The traffic of a chain that keeps this flow on its devices, rounded down."""
    assert instance.transition is not None
    kept = kept * (1 + ROUNDING) + ROUNDING
    total = float(instance.transition.sum()) * (1 - ROUNDING)
    return max(smallest_hop(instance) * (total - kept), 0.0) / (instance.layers - 1) * (1 - ROUNDING)


def best_chain(instance: ExpertPlacement) -> tuple[float, IntArray]:
    """(flow kept on devices, the partition of each layer [L][D][k])."""
    assert instance.transition is not None
    every = partitions(instance.experts, instance.devices)
    return best_chain_among(instance.transition, [every] * instance.layers)


def best_chain_among(transition: FloatArray, choices: list[IntArray]) -> tuple[float, IntArray]:
    """As `best_chain` where layer l chooses from the partitions choices[l] [N_l][D][k]. O(B N^2 2^D D)."""
    value = np.zeros(len(choices[0]))
    came_from = []
    for b, p in enumerate(transition):
        value, source = _step(p, choices[b], choices[b + 1], value)
        came_from.append(source)
    at = [int(np.argmax(value))]
    for source in reversed(came_from):
        at.append(int(source[at[-1]]))
    return float(value.max()), np.array([choice[a] for choice, a in zip(choices, reversed(at), strict=True)])


def _step(p: FloatArray, now: IntArray, following: IntArray, value: FloatArray) -> tuple[FloatArray, IntArray]:
    """The recurrence at one boundary: (W of each next partition, where it came from)."""
    number = len(following)
    after, source = np.empty(number), np.empty(number, dtype=np.int64)
    devices = now.shape[1]
    chunk = max(int(CHUNK_ENTRIES / (len(now) * (1 if devices == 2 else max(devices**2, 2**devices)))), 1)
    for begin in range(0, number, chunk):
        part = following[begin : begin + chunk]
        trial = value[:, None] + (_kept_two(p, now, part) if devices == 2 else _kept(p, now, part))
        best = np.argmax(trial, axis=0)
        after[begin : begin + chunk], source[begin : begin + chunk] = trial[best, np.arange(len(part))], best
    return after, source


def _indicator(blocks: IntArray, experts: int) -> FloatArray:
    """[...][k] as rows of 0 and 1 [...][E]."""
    found = np.zeros((*blocks.shape[:-1], experts))
    np.put_along_axis(found, blocks, 1.0, axis=-1)
    return found


def _kept_two(p: FloatArray, first: IntArray, second: IntArray) -> FloatArray:
    """Two devices: blocks face their like or the other one [N][M]."""
    x, y = _indicator(first[:, 0], len(p)), _indicator(second[:, 0], len(p))
    total = float(p.sum())
    straight = 2.0 * (x @ p @ y.T) + total - (x @ p.sum(axis=1))[:, None] - (y @ p.sum(axis=0))[None, :]
    kept: FloatArray = np.maximum(straight, total - straight)
    return kept


def _kept(p: FloatArray, first: IntArray, second: IntArray) -> FloatArray:
    """The best assignment of blocks to blocks [N][M], by dynamic programming over sets of blocks."""
    x, y = _indicator(first, len(p)), _indicator(second, len(p))
    flow = np.einsum("nie,ef,mjf->nmij", x, p, y, optimize=True)
    # best[set]: the blocks of `first` so far, as many as the set has members, face exactly the set's blocks of `second`.
    devices = first.shape[1]
    best = [np.zeros(flow.shape[:2])]
    for faced in range(1, 1 << devices):
        block = faced.bit_count() - 1
        ways = [best[faced ^ (1 << j)] + flow[:, :, block, j] for j in range(devices) if faced >> j & 1]
        best.append(np.maximum.reduce(ways))
    return best[-1]
