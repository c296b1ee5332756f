"""EPLB step by step, as the public PyTorch code goes about it: Python loops over layers, items and copies, numpy for rows.

The speed baseline for `headroom.heuristics.expert_placement_eplb`, which must give the same answer. Written from the algorithm's description
(github.com/deepseek-ai/EPLB) in double precision; without `distinct`, as the original.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def packed(weight: FloatArray, packs: int) -> tuple[IntArray, IntArray]:
    """The pack of each item and its place there, both [N][items]: by falling weight into the lightest pack with room."""
    rows, items = weight.shape
    room = items // packs
    if room == 1:
        return np.tile(np.arange(items), (rows, 1)), np.zeros((rows, items), np.int64)
    pack, place = np.empty((rows, items), np.int64), np.empty((rows, items), np.int64)
    order = np.argsort(-weight, axis=1, kind="stable")
    for n in range(rows):
        carried, filled = [0.0] * packs, [0] * packs
        for i in order[n].tolist():
            lightest = min((p for p in range(packs) if filled[p] < room), key=carried.__getitem__)
            pack[n, i], place[n, i] = lightest, filled[lightest]
            carried[lightest] += float(weight[n, i])
            filled[lightest] += 1
    return pack, place


def replicated(weight: FloatArray, slots: int) -> tuple[IntArray, IntArray]:
    """The expert of each copy [N][slots] and the copies of each expert [N][E]: one more at a time for the highest load a copy."""
    rows, experts = weight.shape
    copy_of = np.tile(np.arange(slots), (rows, 1))
    count = np.ones((rows, experts), np.int64)
    every = np.arange(rows)
    for copy in range(experts, slots):
        heaviest = np.argmax(weight / count, axis=1)
        copy_of[:, copy] = heaviest
        count[every, heaviest] += 1
    return copy_of, count


def rebalanced(weight: FloatArray, slots: int, groups: int, nodes: int, devices: int) -> IntArray:
    """The expert in each slot [L][slots]; groups = nodes = 1 is the global balance."""
    layers, experts = weight.shape
    size, groups_here, experts_here = experts // groups, groups // nodes, experts // nodes
    node, place = packed(weight.reshape(layers, groups, size).sum(axis=2), nodes)
    new_place = np.empty((layers, experts), np.int64)
    for l in range(layers):
        for g in range(groups):
            first = (int(node[l, g]) * groups_here + int(place[l, g])) * size
            new_place[l, g * size : (g + 1) * size] = np.arange(first, first + size)
    order = np.argsort(new_place, axis=1)
    local = np.take_along_axis(weight, order, axis=1).reshape(layers * nodes, experts_here)
    copy_of, count = replicated(local, slots // nodes)
    device, rank = packed(np.take_along_axis(local / count, copy_of, axis=1), devices // nodes)
    found = np.empty((layers, slots), np.int64)
    for row in range(layers * nodes):
        l, n = divmod(row, nodes)
        at = n * (slots // nodes) + device[row] * (slots // devices) + rank[row]
        found[l, at] = order[l, n * experts_here + copy_of[row]]
    return found
