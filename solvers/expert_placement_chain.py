"""Traffic without replicas: all layers annealed together. Compiled by numba; deterministic for a generator's state.

Every expert of a layer is on one device, `place` [L][E], each device with equally many. cost[l][e][d] is what e pays on d while the neighbouring
layers stay as they are:

    cost[l][e][d] = sum_e' p_(l-1)[e'][e] hop(place[l-1][e'], d) + sum_f p_l[e][f] hop(d, place[l+1][f])

so exchanging two experts of a layer is judged in O(1), and an exchange that is made costs O(E D') in the neighbours' tables, D' being the devices
whose hops differ. Given its neighbours a layer is an assignment problem: `settle` solves those exactly, layer by layer, until nothing changes.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headroom.solvers.compiled import compiled

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def costs(transition: FloatArray, hop: FloatArray, place: IntArray) -> FloatArray:
    """The tables above [L][E][D]."""
    layers, experts = place.shape
    found = np.zeros((layers, experts, len(hop)))
    for b in range(layers - 1):
        found[b] += transition[b] @ hop.T[place[b + 1]]
        found[b + 1] += transition[b].T @ hop[place[b]]
    return found


def total(transition: FloatArray, hop: FloatArray, place: IntArray) -> float:
    """Sum over boundaries of what tokens pay."""
    return math.fsum(float((transition[b] * hop[place[b][:, None], place[b + 1][None, :]]).sum()) for b in range(len(transition)))


@compiled
def anneal_chain(
    transition: FloatArray, hop: FloatArray, place: IntArray, cost: FloatArray, first: int, last: int, begin: int, end: int, steps: int,
    hot: float, cold: float, rng: np.random.Generator, best_place: IntArray, gained: FloatArray,
) -> None:  # fmt: skip
    """Exchange experts within layers first .. last - 1, from temperature `hot` to `cold`: steps begin .. end - 1 of `steps`.

    `gained` [2]: the total and the best total, relative to the start; `best_place` is the best's.
    """
    layers, experts = place.shape
    devices = len(hop)
    now, best = gained[0], gained[1]
    improved = False
    differ = np.zeros(devices, np.int64)
    change_by = np.zeros(devices)
    ratio = math.log(cold / hot)
    temperature = hot
    for step in range(begin, end):
        if step % 64 == 0 or step == begin:
            temperature = hot * math.exp(ratio * step / steps)
        layer = first + int(rng.random() * (last - first))
        e, f = int(rng.random() * experts), int(rng.random() * experts)
        a, b = place[layer, e], place[layer, f]
        if a == b:
            continue
        change = cost[layer, e, b] + cost[layer, f, a] - cost[layer, e, a] - cost[layer, f, b]
        if change > 0 and rng.random() >= math.exp(-change / temperature):
            continue
        if improved and change > 0:
            best_place[:, :] = place
            improved = False
        place[layer, e], place[layer, f] = b, a
        now += change
        if now < best - 1e-12:
            best = now
            improved = True
        number = 0
        for d in range(devices):
            by = hop[b, d] - hop[a, d]
            if by != 0.0:
                differ[number], change_by[number] = d, by
                number += 1
        if layer + 1 < layers:
            for g in range(experts):
                weight = transition[layer, e, g] - transition[layer, f, g]
                if weight != 0.0:
                    for n in range(number):
                        cost[layer + 1, g, differ[n]] += weight * change_by[n]
        if layer > 0:
            for g in range(experts):
                weight = transition[layer - 1, g, e] - transition[layer - 1, g, f]
                if weight != 0.0:
                    for n in range(number):
                        cost[layer - 1, g, differ[n]] += weight * change_by[n]
    if improved:
        best_place[:, :] = place
    gained[0], gained[1] = now, best


def settle(transition: FloatArray, hop: FloatArray, place: IntArray, sweeps: int = 20) -> IntArray:
    """Each layer's best places given its neighbours', by exact assignment, until a sweep changes nothing."""
    from scipy.optimize import linear_sum_assignment

    place = place.copy()
    layers, experts = place.shape
    devices = len(hop)
    slot_device = np.repeat(np.arange(devices), experts // devices)
    for _ in range(sweeps):
        changed = False
        for layer in range(layers):
            cost = np.zeros((experts, devices))
            if layer > 0:
                cost += transition[layer - 1].T @ hop[place[layer - 1]]
            if layer + 1 < layers:
                cost += transition[layer] @ hop.T[place[layer + 1]]
            rows, columns = linear_sum_assignment(cost[:, slot_device])
            after = slot_device[columns]
            everyone = np.arange(experts)
            if cost[everyone, after].sum() < cost[everyone, place[layer]].sum() - 1e-12:
                place[layer, rows] = after
                changed = True
        if not changed:
            break
    return place
