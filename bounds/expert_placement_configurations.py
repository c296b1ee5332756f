r"""Balance by what one device can hold: a bound above 1 where devices have few slots and one placement serves several tasks.

With equal shares, c replicas of expert e carry w_es / c each. Give every expert a weight sigma_e of any sign, shared by its replicas in the same
way. All devices together carry sum_e sigma_e whatever the placement, so some device carries at least the mean, sum_e sigma_e / D. Hence

    imbalance >= min { max_s sum_(e in K) w_es / c_e  :  sum_(e in K) sigma_e / c_e >= sum_e sigma_e / D }

over every content K of a device: k different experts with any numbers c_e of replicas. With sigma_e = sum_s w_es this is at least the mean,
1; the best sigma are multipliers of the linear program over contents of devices (Gilmore and Gomory, doi 10.1287/opre.9.6.849), whose optimum it is
but for what follows.

An expert with so few replicas that one carries `limit` is left out, and so is any content that carries as much: the bound is then at most `limit`.
From `low`, the fewest replicas left, COUNTS numbers are told apart; the last stands for all above too, with the least load and the highest weight
that one of them gives. Recheck by enumeration: O(C(E COUNTS, k) S) a layer, less what cannot reach the mean weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.certificates import CertificateError, floats
from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
COUNTS = 8
MOST_CHOICES, MOST_IN_ALL = 3e7, 1e9
"""Contents of a device up to which they are enumerated, in one layer and in all: some ten seconds if nothing can be left out."""
MOST_BEGUN, MOST_BEGUN_IN_ALL = 1e4, 3e5
"""The same for contents of all but two slots, which are gone through one by one."""
PAIRS_AT_ONCE = 4_000_000
ROUNDING = 1e-12


def configurations_apply(instance: ExpertPlacement) -> bool:
    """Whether a layer counts its worst scenario, shares are equal, no expert stands twice on a device, and devices have few slots."""
    if not instance.distinct or instance.split != "equal" or (instance.robust == "mean" and instance.scenarios > 1):
        return False
    items = instance.experts * min(COUNTS, instance.most_replicas - instance.min_holders + 1)
    k = instance.slots_per_device
    if k > 12:
        return False
    choices, begun = float(math.comb(items, k)), float(math.comb(items, max(k - 2, 0)))
    few = choices <= MOST_CHOICES and choices * instance.layers <= MOST_IN_ALL
    return few and begun <= MOST_BEGUN and begun * instance.layers <= MOST_BEGUN_IN_ALL


@dataclass(frozen=True)
class Items:
    """An expert with a number of replicas, by falling weight: `owner` [N], `share` [N] of the expert's weight that counts for one replica, `load`
    [N][S] and `weight` [N] of one replica."""

    owner: IntArray
    share: FloatArray
    load: FloatArray
    weight: FloatArray


def items_of(w: FloatArray, sigma: FloatArray, fewest: int, most: int, limit: float) -> Items:
    """Items of loads w [E][S] that carry less than `limit`, with `fewest` to `most` replicas."""
    heaviest = w.max(axis=1)
    low = np.maximum(np.floor(heaviest / limit).astype(np.int64), fewest) if limit > 0 else np.full(len(w), fewest)
    # Floor, and never above the smallest number that is below the limit: rounding may only leave more in.
    count = low[:, None] + np.arange(COUNTS)
    last = (np.arange(COUNTS) == COUNTS - 1)[None, :] & (count < most)
    ends = np.where(last, most, count)
    load = w[:, None, :] / ends[:, :, None]
    share = 1.0 / np.where(sigma[:, None] >= 0, count, ends)
    weight = sigma[:, None] * share
    kept = (count <= most) & (load.max(axis=2) < limit)
    owner = np.broadcast_to(np.arange(len(w))[:, None], count.shape)[kept]
    order = np.argsort(-weight[kept], kind="stable")
    return Items(owner[order], share[kept][order], load[kept][order], weight[kept][order])


def needed(sigma: FloatArray, devices: int) -> float:
    """The mean device's weight, rounded down."""
    return float(sigma.sum()) / devices - ROUNDING * float(np.abs(sigma).sum())


def least_content(items: Items, k: int, need: float, limit: float) -> float:
    """The least that a content of weight `need` carries in its worst scenario, at most `limit`."""
    ahead = np.concatenate([[0.0], np.cumsum(items.weight)])
    slack = ROUNDING * float(np.abs(items.weight).sum())
    number, scenarios = items.load.shape
    least = limit

    def search(depth: int, first: int, carried: FloatArray, weight: float, owners: list[int]) -> None:
        """Choose items from `first` on for the places from `depth` on."""
        nonlocal least
        left = k - depth
        if left == 0:
            # Only a content without slots is empty.
            least = min(least, float(carried.max())) if weight >= need else least
            return
        starts = np.arange(first, number - left + 1)
        # The best that can follow is the next in line.
        starts = starts[weight + ahead[starts + left] - ahead[starts] >= need - slack]
        free = ~np.isin(items.owner[starts], owners)
        after = carried[None, :] + items.load[starts]
        starts = starts[free & (after.max(axis=1) < least)]
        if left == 1:
            good = starts[weight + items.weight[starts] >= need - slack]
            if len(good):
                least = min(least, float((carried[None, :] + items.load[good]).max(axis=1).min()))
            return
        if left == 2:
            pairs(starts, carried, weight, owners)
            return
        for i in starts.tolist():
            search(depth + 1, i + 1, carried + items.load[i], weight + float(items.weight[i]), [*owners, int(items.owner[i])])

    def pairs(starts: IntArray, carried: FloatArray, weight: float, owners: list[int]) -> None:
        width = max(PAIRS_AT_ONCE // max(number, 1), 1)
        for some in range(0, len(starts), width):
            table(starts[some : some + width], carried, weight, owners)

    def table(starts: IntArray, carried: FloatArray, weight: float, owners: list[int]) -> None:
        nonlocal least
        first = int(starts[0])
        seconds = np.arange(first + 1, number)
        seconds = seconds[~np.isin(items.owner[seconds], owners)]
        good = weight + items.weight[starts][:, None] + items.weight[seconds][None, :] >= need - slack
        good &= (seconds[None, :] > starts[:, None]) & (items.owner[starts][:, None] != items.owner[seconds][None, :])
        i, j = np.nonzero(good)
        if not len(i):
            return
        most = np.zeros(len(i))
        for s in range(scenarios):
            np.maximum(most, carried[s] + items.load[starts[i], s] + items.load[seconds[j], s], out=most)
        least = min(least, float(most.min()))

    search(0, 0, np.zeros(scenarios), 0.0, [])
    return least


def content_bound(w: FloatArray, instance: ExpertPlacement, sigma: FloatArray, limit: float) -> float:
    """What weights sigma [E] prove of a layer with loads w [E][S], rounded down; at most `limit`."""
    items = items_of(w, sigma, instance.min_holders, instance.most_replicas, limit)
    return least_content(items, instance.slots_per_device, needed(sigma, instance.devices), limit) * (1 - ROUNDING)


def certified_layers(instance: ExpertPlacement, load: FloatArray, certificate: Mapping[str, Any]) -> FloatArray:
    """What a `configurations` certificate proves of each layer [L], from normalised loads [S][L][E]. Raises `CertificateError`."""
    if certificate.get("kind") != "configurations" or not configurations_apply(instance):
        raise CertificateError("certificate.kind 'configurations' needs equal shares, distinct experts, worst scenarios and few slots on a device")
    sigma = floats(certificate, "weight", (instance.layers, instance.experts))
    limit = floats(certificate, "limit", (instance.layers,))
    if (limit < 0).any():
        raise CertificateError("certificate.limit must not be negative")
    found = [content_bound(np.ascontiguousarray(load[:, layer].T), instance, sigma[layer], float(limit[layer])) for layer in range(instance.layers)]
    return np.array(found)
