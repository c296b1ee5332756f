"""What the packing baselines share: replicas, packing, making a placement distinct, and groups on nodes.

The functions that begin with an underscore are compiled; each works in loops over layers so that the cost of a call is paid once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def load_weight(instance: ExpertPlacement) -> FloatArray:
    """One load [L][E] for methods that know no scenarios: of a single one as it is, of several the mean of each expert's share of its layer."""
    if instance.scenarios == 1:
        alone: FloatArray = instance.load[0]
        return alone
    total = instance.total_load[:, :, None]
    mean: FloatArray = (instance.load / np.where(total > 0, total, 1.0)).mean(axis=0)
    return mean


def kept_apart(distinct: bool, holders: int, slots_per_device: int, experts: int) -> bool:
    """Whether a baseline puts an expert's copies on different devices, `experts` sharing the devices: where `distinct` asks for it, and, as the plain
    way to keep `min_holders` above 1, where there are enough experts to fill a device."""
    return distinct or (holders > 1 and slots_per_device <= experts)


def most_copies(instance: ExpertPlacement, apart: bool) -> int:
    """Copies of an expert that there may be. `apart`: that devices can hold without holding it twice, all devices or those of its group's node."""
    if not apart:
        return instance.slots
    return instance.node_devices if instance.group_limited else instance.devices


@cache
def _compiled() -> dict[str, Any]:
    from headroom.solvers.compiled import compiled

    return {function.__name__: compiled(function) for function in (_replicate, _pack, _longest_first, _make_distinct)}


def replicate(weight: FloatArray, slots: int, most: int, holders: int = 1) -> tuple[IntArray, IntArray]:
    """Slots for experts, row by row of weight [N][E]: `holders` each, then one at a time for the largest weight a copy, at most `most` copies each.

    Returns the expert of each copy [N][slots] (first copies in order, then the others as they were made) and the copies [N][E]. This minimises
    the largest weight a copy. O(N (slots - E) E).
    """
    copy_of, count = np.empty((len(weight), slots), np.int64), np.full(weight.shape, holders, np.int64)
    _compiled()["_replicate"](np.ascontiguousarray(weight), most, holders, copy_of, count)
    return copy_of, count


def _replicate(weight: FloatArray, most: int, holders: int, copy_of: IntArray, count: IntArray) -> None:
    rows, experts = weight.shape
    each = np.empty(experts)
    for n in range(rows):
        for e in range(experts):
            for copy in range(holders):
                copy_of[n, copy * experts + e] = e
            each[e] = weight[n, e] / holders if most > holders else -1.0
        for copy in range(experts * holders, copy_of.shape[1]):
            best = 0
            for e in range(experts):
                if each[e] > each[best]:
                    best = e
            copy_of[n, copy] = best
            count[n, best] += 1
            each[best] = weight[n, best] / count[n, best] if count[n, best] < most else -1.0


def pack(weight: FloatArray, packs: int) -> tuple[IntArray, IntArray]:
    """Items into packs with equally many in each, row by row of weight [N][items]: by falling weight, each into the lightest pack with room.

    Returns the pack of each item and its place in the pack, both [N][items]. Where each pack takes one item, item i goes to pack i, as EPLB has it.
    Ties go to the earlier item and the earlier pack. O(N items (log items + log packs)).
    """
    rows, items = weight.shape
    place = np.zeros((rows, items), np.int64)
    if items == packs:
        return np.tile(np.arange(items), (rows, 1)), place
    into = np.empty((rows, items), np.int64)
    order = np.argsort(-weight, axis=1, kind="stable")
    _compiled()["_pack"](np.ascontiguousarray(weight), order, packs, into, place)
    return into, place


def _pack(weight: FloatArray, order: IntArray, packs: int, into: IntArray, place: IntArray) -> None:
    rows, items = weight.shape
    room = items // packs
    carried, filled, heap = np.empty(packs), np.empty(packs, np.int64), np.empty(packs, np.int64)
    for n in range(rows):
        carried[:] = 0.0
        filled[:] = 0
        heap[:] = np.arange(packs)  # packs with room, the lightest (of equals the first) on top
        size = packs
        for position in range(items):
            i, p = order[n, position], heap[0]
            into[n, i], place[n, i] = p, filled[p]
            carried[p] += weight[n, i]
            filled[p] += 1
            if filled[p] == room:
                size -= 1
                p = heap[size]
            hole = 0
            while True:
                child = 2 * hole + 1
                if child >= size:
                    break
                q = heap[child]
                if child + 1 < size:
                    other = heap[child + 1]
                    if carried[other] < carried[q] or (carried[other] == carried[q] and other < q):
                        child, q = child + 1, other
                if carried[p] < carried[q] or (carried[p] == carried[q] and p < q):
                    break
                heap[hole] = q
                hole = child
            heap[hole] = p


def longest_first(each: FloatArray, count: IntArray, devices: int, slots_per_device: int, distinct: bool, holders: int = 1) -> IntArray:
    """Slots [devices x slots_per_device] of one layer: copies by falling load, each where the busiest scenario of the device stays lowest.

    each [S][E]: load of one copy by scenario; count [E]: copies. Longest processing time first (Graham, doi 10.1137/0117039) on devices with room;
    when `distinct`, and for the first `holders` copies, on one that does not hold the expert, as long as there is one. O(S E log E + S R D).
    """
    slots = np.full(devices * slots_per_device, -1, np.int64)
    order = np.argsort(-each.max(axis=0), kind="stable")
    _compiled()["_longest_first"](np.ascontiguousarray(each), count, order, slots_per_device, distinct, holders, slots)
    if distinct:
        make_distinct(slots[None], each.max(axis=0)[None], slots_per_device, devices)
    return slots


def _longest_first(each: FloatArray, count: IntArray, order: IntArray, k: int, distinct: bool, holders: int, slots: IntArray) -> None:
    scenarios, devices = len(each), len(slots) // k
    carried, filled, holds = np.zeros((scenarios, devices)), np.zeros(devices, np.int64), np.empty(devices, np.bool_)
    for position in range(len(order)):
        e = order[position]
        holds[:] = False
        for copy in range(count[e]):
            best, least, free = -1, np.inf, False
            for d in range(devices):
                if filled[d] == k:
                    continue
                peak = 0.0
                for s in range(scenarios):
                    peak = max(peak, carried[s, d] + each[s, e])
                new = not ((distinct or copy < holders) and holds[d])
                if best < 0 or (new and not free) or (new == free and peak < least):
                    best, least, free = d, peak, new
            slots[best * k + filled[best]] = e
            filled[best] += 1
            holds[best] = True
            for s in range(scenarios):
                carried[s, best] += each[s, e]


def make_distinct(slots: IntArray, each: FloatArray, slots_per_device: int, scope: int) -> None:
    """Exchange slots [L][R], in place, until no device holds an expert twice; each [L][E]: load of one copy.

    Exchanges stay within blocks of `scope` devices, in which no expert may have more than `scope` copies. The device with most doubles comes first;
    of the exchanges that make no new double, the one whose busier device stays lowest. There always is one: let d have the fewest different experts,
    e twice. Some device d' of the block lacks e. Were all its experts on d, it would have fewer different ones than d; so it has one that d lacks,
    and exchanging the two makes one double less. O(doubles k^2 D) after O(L R).
    """
    on_device = np.sort(slots.reshape(len(slots), -1, slots_per_device), axis=2)
    rows = np.flatnonzero((np.diff(on_device, axis=2) == 0).any(axis=(1, 2)))
    if len(rows):
        _compiled()["_make_distinct"](slots, np.ascontiguousarray(each), slots_per_device, scope, rows)


def _make_distinct(slots: IntArray, each: FloatArray, k: int, scope: int, rows: IntArray) -> None:
    devices, experts = slots.shape[1] // k, each.shape[1]
    for l in rows:
        held, carried, doubles = np.zeros((devices, experts), np.int64), np.zeros(devices), np.zeros(devices, np.int64)
        for r in range(slots.shape[1]):
            d, e = r // k, slots[l, r]
            held[d, e] += 1
            carried[d] += each[l, e]
            doubles[d] += held[d, e] > 1
        while True:
            d = int(np.argmax(doubles))
            if doubles[d] == 0:
                break
            best, out, back = np.inf, -1, -1
            block = d // scope * scope
            for r in range(d * k, (d + 1) * k):
                e = slots[l, r]
                if held[d, e] < 2:
                    continue
                for other in range(block, block + scope):
                    if held[other, e] > 0:
                        continue
                    for q in range(other * k, (other + 1) * k):
                        f = slots[l, q]
                        change = each[l, f] - each[l, e]
                        peak = max(carried[d] + change, carried[other] - change)
                        if held[d, f] == 0 and peak < best:
                            best, out, back = peak, r, q
            if out < 0:  # more copies than devices: the caller's mistake; its check of the result will say so
                break
            other, e, f = back // k, slots[l, out], slots[l, back]
            slots[l, out], slots[l, back] = f, e
            carried[d] += each[l, f] - each[l, e]
            carried[other] += each[l, e] - each[l, f]
            doubles[d] -= 1
            doubles[other] -= held[other, f] > 1
            held[d, e] -= 1
            held[d, f] += 1
            held[other, f] -= 1
            held[other, e] += 1


def node_group_limits(instance: ExpertPlacement) -> tuple[int, int]:
    """The least and the most whole groups that a node can hold, so that its slots are filled and suffice."""
    groups = int(instance.group_of[-1]) + 1
    size = instance.experts // groups
    least = -(-instance.slots_per_device // size) if instance.distinct else 1
    return least, instance.groups_in_node


def groups_on_nodes(instance: ExpertPlacement, weight: FloatArray) -> IntArray | None:
    """The node of each group [G]: by falling weight [G], each to the lightest node with room; None when no numbers of groups fill the nodes.

    Nodes may hold different numbers of groups; as many are kept back as other nodes need to fill their slots.
    """
    least, most = node_group_limits(instance)
    held, carried = np.zeros(instance.nodes, np.int64), np.zeros(instance.nodes)
    node = np.full(len(weight), -1)
    if not least * instance.nodes <= len(weight) <= most * instance.nodes:
        return None
    for left, g in zip(range(len(weight), 0, -1), np.argsort(-weight, kind="stable"), strict=True):
        room = held < most if left > np.maximum(least - held, 0).sum() else held < least
        n = int(np.argmin(np.where(room, carried, np.inf)))
        node[g] = n
        held[n] += 1
        carried[n] += weight[g]
    return node


def groups_in_order(instance: ExpertPlacement) -> IntArray | None:
    """The node of each group [G], consecutive groups together and as evenly as can be; None as in `groups_on_nodes`."""
    least, most = node_group_limits(instance)
    groups = int(instance.group_of[-1]) + 1
    if not least * instance.nodes <= groups <= most * instance.nodes:
        return None
    return np.arange(groups) * instance.nodes // groups
