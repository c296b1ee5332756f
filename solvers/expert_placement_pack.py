"""One layer's replicas onto devices for one load vector: replicate greedily, pack by falling load, then exchange slots until the devices are even.

A layer (or one node's part of it) has n experts with loads w, each to be held by at least `holders` devices, and D devices with k slots each,
D k >= n holders. The functions here are compiled by numba; they change `slots` [D][k] (expert in each slot) in place and know nothing of
scenarios: see `expert_placement_anneal` for those.

1. Replicas: `holders` each, then one more for the expert with the highest load a replica (EPLB's rule; it minimises the heaviest replica).
2. Longest processing time first, onto the least loaded device that has room and, if `distinct` or fewer than `holders` hold it, lacks the expert.
3. Exchanges between the busiest device and another one, of one slot for one, then of two for two, each chosen to leave the smaller maximum. With
   k^2 D, then k^4 D / 4, pairs to choose from, the devices come within 1e-4 of each other in a few hundred exchanges.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headroom.solvers.compiled import compiled

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@compiled
def replicate(load: FloatArray, slots: int, most: int, count: IntArray, holders: int = 1) -> None:
    """`count` [n]: replicas of each expert, `slots` in all, from `holders` to `most` each."""
    n = len(load)
    count[:] = holders
    for _ in range(slots - n * holders):
        best = -1
        for e in range(n):
            if count[e] < most:
                ahead = load[e] * count[best] - load[best] * count[e] if best >= 0 else 1.0
                if ahead > 0.0 or (ahead == 0.0 and count[e] < count[best]):
                    best = e
        count[best] += 1


@compiled
def holds(slots: IntArray, d: int, e: int, filled: int) -> bool:
    for r in range(filled):  # noqa: SIM110 (numba)
        if slots[d, r] == e:
            return True
    return False


@compiled
def pack(load: FloatArray, count: IntArray, slots: IntArray, distinct: bool, holders: int = 1) -> bool:
    """Longest processing time first; False when some replica found no place."""
    devices, k = slots.shape
    n = len(load)
    filled = np.zeros(devices, np.int64)
    carried = np.zeros(devices)
    each = load / count
    order = np.argsort(-each, kind="mergesort")
    for position in range(n):
        e = order[position]
        for copy in range(count[e]):
            best = -1
            elsewhere = distinct or copy < holders
            for d in range(devices):
                if filled[d] < k and not (elsewhere and holds(slots, d, e, filled[d])) and (best < 0 or carried[d] < carried[best]):
                    best = d
            if best < 0 and not make_room(slots, filled, carried, each, e):
                return False
            if best < 0:
                continue
            slots[best, filled[best]] = e
            filled[best] += 1
            carried[best] += each[e]
    return True


@compiled
def make_room(slots: IntArray, filled: IntArray, carried: FloatArray, each: FloatArray, e: int) -> bool:
    """Every device with room holds e: put it in place of some f elsewhere that may go to one of them."""
    devices, k = slots.shape
    for d in range(devices):
        if filled[d] == k:
            continue
        for other in range(devices):
            if filled[other] < k or holds(slots, other, e, k):
                continue
            for r in range(k):
                f = slots[other, r]
                if not holds(slots, d, f, filled[d]):
                    slots[d, filled[d]] = f
                    filled[d] += 1
                    slots[other, r] = e
                    carried[d] += each[f]
                    carried[other] += each[e] - each[f]
                    return True
    return False


@compiled
def exchange_one(slots: IntArray, each: FloatArray, carried: FloatArray, a: int, distinct: bool, best: IntArray) -> float:
    """The exchange of one slot of a with one of another device that leaves the smaller maximum of both; what it leaves, and in `best` (b, i, j)."""
    devices, k = slots.shape
    least: float = carried[a]
    for b in range(devices):
        gap = carried[a] - carried[b]
        if b == a or carried[a] - gap / 2 >= least:
            continue
        for i in range(k):
            e = slots[a, i]
            for j in range(k):
                f = slots[b, j]
                step = each[e] - each[f]
                if step <= 0 or step >= gap:
                    continue
                after = max(carried[a] - step, carried[b] + step)
                if after < least and not (distinct and (holds(slots, b, e, k) or holds(slots, a, f, k))):
                    least = after
                    best[0], best[1], best[2] = b, i, j
    return least


@compiled
def exchange_two(slots: IntArray, each: FloatArray, carried: FloatArray, a: int, distinct: bool, enough: float, best: IntArray) -> float:
    """As `exchange_one` for two slots each, stopping at the first that leaves no more than `enough`; `best` is (b, i, i', j, j')."""
    devices, k = slots.shape
    least: float = carried[a]
    order = np.argsort(carried)
    for position in range(devices):
        b = order[position]
        gap = carried[a] - carried[b]
        if b == a or carried[a] - gap / 2 >= least:
            break
        for i in range(k):
            for i2 in range(i + 1, k):
                out = each[slots[a, i]] + each[slots[a, i2]]
                for j in range(k):
                    part = out - each[slots[b, j]]
                    for j2 in range(j + 1, k):
                        step = part - each[slots[b, j2]]
                        if step <= 0 or step >= gap:
                            continue
                        after = max(carried[a] - step, carried[b] + step)
                        if after >= least:
                            continue
                        if distinct and clash(slots, a, b, i, i2, j, j2):
                            continue
                        least = after
                        best[0], best[1], best[2], best[3], best[4] = b, i, i2, j, j2
                        if least <= enough:
                            return least
    return least


@compiled
def clash(slots: IntArray, a: int, b: int, i: int, i2: int, j: int, j2: int) -> bool:
    """Whether exchanging slots i, i2 of a with j, j2 of b would put an expert on a device twice."""
    k = slots.shape[1]
    for r in range(k):
        if r not in (j, j2) and (slots[b, r] == slots[a, i] or slots[b, r] == slots[a, i2]):
            return True
        if r not in (i, i2) and (slots[a, r] == slots[b, j] or slots[a, r] == slots[b, j2]):
            return True
    return bool(slots[a, i] == slots[a, i2] or slots[b, j] == slots[b, j2])


@compiled
def swap(slots: IntArray, each: FloatArray, carried: FloatArray, a: int, i: int, b: int, j: int) -> None:
    e, f = slots[a, i], slots[b, j]
    slots[a, i], slots[b, j] = f, e
    carried[a] += each[f] - each[e]
    carried[b] += each[e] - each[f]


@compiled
def even_out(load: FloatArray, count: IntArray, slots: IntArray, distinct: bool, enough: float, rounds: int) -> float:
    """Exchanges from the busiest device until it carries at most `enough`, nothing helps, or `rounds`; what the busiest carries.

    With `distinct` an expert goes only to devices that lack it, so no expert loses a holder.
    """
    devices, k = slots.shape
    each = load / count
    carried = np.zeros(devices)
    for d in range(devices):
        for r in range(k):
            carried[d] += each[slots[d, r]]
    best = np.zeros(5, np.int64)
    for _ in range(rounds):
        a = 0
        for d in range(devices):
            if carried[d] > carried[a]:
                a = d
        if carried[a] <= enough:
            break
        smallest = 1e-12 * carried[a]
        # A coarse step is taken whole; two for two are for the last digits, and cost k^2 / 4 times as much.
        after = exchange_one(slots, each, carried, a, distinct, best)
        if after < carried[a] - smallest and (after <= enough or after < carried[a] - 0.3 * (carried[a] - enough)):
            swap(slots, each, carried, a, best[1], best[0], best[2])
            continue
        one = (best[0], best[1], best[2])
        after_two = exchange_two(slots, each, carried, a, distinct, enough, best)
        if after_two < min(after, carried[a] - smallest):
            swap(slots, each, carried, a, best[1], best[0], best[3])
            swap(slots, each, carried, a, best[2], best[0], best[4])
        elif after < carried[a] - smallest:
            swap(slots, each, carried, a, one[1], one[0], one[2])
        else:
            break
    return float(carried.max())
