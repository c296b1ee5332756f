"""Consolidation: give back replicas by moving their load into the room that other types have anyway.

Two moves, repeated while they help: give back r replicas of type g; give back r of g and rent m of a cheaper-in-sum type h instead. The load to be
moved goes, cheapest exchange rate first, into the free capacity of the types that stay.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_boxes import Data
from headroom.formulations.gpu_selection import MOST_REPLICAS
from headroom.formulations.tolerances import FEASIBILITY

FloatArray = npt.NDArray[np.float64]
MOST_ROUNDS = 200
EXCHANGES = ((1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (4, 1), (1, 4))


def counts_for(data: Data, y: FloatArray) -> FloatArray:
    """Least counts [G] that carry slice counts y [G][I], `min_count` and spare replicas included."""
    load = (data.slice_load * y).sum(axis=1)
    # A fleet that is full within `evaluate`'s tolerance is not rounded up.
    n = np.ceil(load / data.instance.max_utilisation * (1 - 0.9 * FEASIBILITY)) + np.where(load > 0, data.instance.spare_replicas, 0)
    least = data.instance.min_count.astype(np.float64)
    if data.instance.spare_replicas:
        # A replica kept only because min_count says so must not be missed by its own share (there is none): nothing to add.
        n = np.where(load > 0, n, 0.0)
    count: FloatArray = np.maximum(n, least)
    return count


def fits(data: Data, n: FloatArray) -> bool:
    """Whether counts respect caps and pools."""
    return bool((n <= np.minimum(data.instance.max_count, MOST_REPLICAS)).all() and (data.pool_gpus @ n <= data.pool_limit).all())


def consolidate(data: Data, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Improve slice counts y [G][I]; returns (y, counts). Never worse than the start; caps are respected if the start respects them."""
    n = counts_for(data, y)
    worth = np.where(data.can_serve, data.price[:, None] * data.slice_load, np.inf).min(axis=0).sum() * data.slices / data.instance.max_utilisation
    for _ in range(MOST_ROUNDS):
        better = _best_move(data, y, n, float(worth))
        if better is None:
            return y, n
        y, n = better
    return y, n


def _best_move(data: Data, y: FloatArray, n: FloatArray, worth: float) -> tuple[FloatArray, FloatArray] | None:
    """The first improving move in order of what it promises to save. No fleet costs less than `worth`, so bigger savings are not tried."""
    most = float(data.price @ n) - worth * (1 - 1e-9)
    gpus = range(len(n))
    moves: list[tuple[float, int, int, int, int]] = []
    for g in gpus:
        if n[g] <= data.instance.min_count[g]:
            continue
        if data.price[g] <= most:
            moves.append((data.price[g], g, 1, g, 0))
        for h, (given, taken) in product(gpus, EXCHANGES):
            saving = data.price[g] * given - data.price[h] * taken
            if h != g and 1e-9 * data.price[g] < saving <= most and n[g] - given >= data.instance.min_count[g]:
                moves.append((saving, g, given, h, taken))
    for _, g, given, h, taken in sorted(moves, key=lambda move: -move[0]):
        target = n.copy()
        target[g] -= given
        target[h] += taken
        if not fits(data, target):
            continue
        moved = _unload(data, y, g, target)
        if moved is not None:
            settled = counts_for(data, moved)
            if fits(data, settled) and float(data.price @ settled) < float(data.price @ n) - 1e-9 * float(data.price[g]):
                return moved, settled
    return None


def _unload(data: Data, y: FloatArray, g: int, target: FloatArray) -> FloatArray | None:
    """Move load off type g until `target` counts carry everything; None when the others have no room for it."""
    capacity = data.instance.max_utilisation * np.maximum(target - data.instance.spare_replicas * (target > 0), 0.0)
    load = (data.slice_load * y).sum(axis=1)
    room = capacity - load
    need = -room[g]
    if need <= 0:
        return y
    room[g] = 0.0
    # Exchange rate: load that appears on h for each unit of load that leaves g.
    on_g = (y[g] > 0) & (data.slice_load[g] > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(data.can_serve & on_g & (room > 0)[:, None], data.slice_load / data.slice_load[g], np.inf)
    moved = y.copy()
    slack = 1e-12 * max(1.0, float(capacity[g]))
    h_of, i_of = np.unravel_index(np.argsort(rate, axis=None, kind="stable")[: int(np.isfinite(rate).sum())], rate.shape)
    left, free = moved[g].tolist(), room.tolist()
    loads = data.slice_load[h_of, i_of].tolist(), data.slice_load[g, i_of].tolist()
    for h, i, on_h, on_g_one in zip(h_of.tolist(), i_of.tolist(), *loads, strict=True):
        if need <= slack:
            break
        if free[h] <= 0 or left[i] <= 0:
            continue
        amount = min(left[i], free[h] / on_h if on_h > 0 else left[i])
        wanted = need / on_g_one
        amount = min(math.floor(amount + 1e-9), math.ceil(wanted - 1e-9)) if data.integral else min(amount, wanted)
        if amount > 0:
            left[i] -= amount
            moved[h, i] += amount
            free[h] -= amount * on_h
            need -= amount * on_g_one
    moved[g] = left
    return moved if need <= slack else None
