r"""Closing the gap of `expert_placement_sets`: which partitions of a layer can still be part of a better plan, and the best chain of them.

With prices, let through_l(S) be the most that a chain with set S in layer l is worth (its transitions less its prices). A plan whose layer l is the
partition P = {S_1, .. S_parts} has a chain through each of these sets, so it keeps at most

    sum_le price_le + sum over S in P of through_l(S).

Partitions for which that is below `kept` cannot be part of a plan that keeps more than `kept`. If the others are few enough in every layer, the
recurrence over partitions (`expert_placement_partitions`) finds the best chain of them, W': then W <= max(kept, W'), for any `kept` that is
claimed, and exactly so for the flow that a plan at hand keeps. The same enumeration with a higher `kept` gives the likeliest partitions, and
their best chain is a plan.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.certificates import CertificateError, floats
from headroom.bounds.expert_placement_partitions import MOST_DEVICES, best_chain_among
from headroom.bounds.expert_placement_sets import CHUNK_ENTRIES, best_before, members, rounding, sets_apply, sets_of, sets_within
from headroom.bounds.expert_placement_traffic import each_level, traffic_value
from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MOST_EXPERTS = 62
"""Sets are bits of an integer."""
MOST_LEFT = 800
"""Partitions of a layer that a certificate may leave."""
MOST_WORK = 1e9
"""Additions of the recurrence over the partitions left: a few seconds."""
MOST_BEGUN = 50
"""Times as many unfinished ones are looked at."""


def can_close(experts: int, parts: int) -> bool:
    """Whether partitions can be enumerated at all."""
    return 1 < parts <= MOST_DEVICES and experts <= MOST_EXPERTS


def chain_work(numbers: list[int], parts: int) -> float:
    """Additions of the recurrence over so many partitions of each layer."""
    return sum(a * b for a, b in itertools.pairwise(numbers)) * 2.0**parts * parts


def through_sets(transition: FloatArray, parts: int, price: FloatArray) -> FloatArray:
    """through_l(S) [L][N], from either end. O(B C(E, k)^2 k)."""
    inside = members(sets_of(transition.shape[1], transition.shape[1] // parts), transition.shape[1])
    own = -(price @ inside.T)
    left, right = np.zeros_like(own), np.zeros_like(own)
    for b, p in enumerate(transition):
        left[b + 1] = best_before(inside, p, left[b] + own[b])
    for b in range(len(transition) - 1, -1, -1):
        right[b] = best_before(inside, transition[b].T, right[b + 1] + own[b + 1])
    return left + own + right


def partitions_worth(value: FloatArray, sets: IntArray, parts: int, need: float, most: int) -> tuple[IntArray, FloatArray] | None:
    """The partitions into `parts` of the sets [N][k] whose values [N] add up to at least `need`: (sets of each [n][parts], their sums).

    None when there are more than `most` of them, or far more on the way. Blocks are chosen in the order of their least expert.
    """
    experts = sets.shape[1] * parts
    bits, least, top = (1 << sets).sum(axis=1), sets[:, 0], float(value.max())
    useful = np.flatnonzero(value + (parts - 1) * top >= need)
    begun, used, total = np.zeros((1, 0), dtype=np.int64), np.zeros(1, dtype=np.int64), np.zeros(1)
    for left in range(parts - 1, -1, -1):
        pieces: list[tuple[IntArray, IntArray, FloatArray]] = []
        found = 0
        first_free = ~used & -~used
        for e in range(experts):
            rows, candidates = np.flatnonzero(first_free == 1 << e), useful[least[useful] == e]
            width = max(CHUNK_ENTRIES // max(len(candidates), 1), 1)
            for start in range(0, len(rows), width):
                some = rows[start : start + width]
                fits = (used[some][:, None] & bits[candidates][None, :]) == 0
                fits &= total[some][:, None] + value[candidates][None, :] + left * top >= need
                i, j = np.nonzero(fits)
                found += len(i)
                if found > most * (MOST_BEGUN if left else 1):
                    return None
                chosen = candidates[j]
                pieces.append((np.column_stack([begun[some[i]], chosen]), used[some[i]] | bits[chosen], total[some[i]] + value[chosen]))
        if not found:
            return np.zeros((0, parts), dtype=np.int64), np.zeros(0)
        begun = np.concatenate([piece[0] for piece in pieces])
        used, total = np.concatenate([piece[1] for piece in pieces]), np.concatenate([piece[2] for piece in pieces])
    return begun, total


def likeliest(value: FloatArray, sets: IntArray, parts: int, bound: float, kept: float, wanted: int) -> IntArray:
    """Up to `wanted` partitions [n][parts][k] of a layer of highest value, at least `kept`, where no chain keeps more than `bound`."""
    best, share = np.zeros((0, parts), dtype=np.int64), 1.0 / 64
    while share <= 1.0 and len(best) < wanted:
        found = partitions_worth(value, sets, parts, bound - share * (bound - kept), 4 * wanted)
        if found is None:
            break
        choice, total = found
        best = choice[np.argsort(-total, kind="stable")[:wanted]]
        share *= 1.5
    found_sets: IntArray = sets[best]
    return found_sets


def closed_within(transition: FloatArray, parts: int, price: FloatArray, kept: float) -> float:
    """W by prices [L][E] and by enumeration of what they leave above `kept`, rounded up; +inf where they leave too much."""
    experts = transition.shape[1]
    if not can_close(experts, parts):
        return math.inf
    sets = sets_of(experts, experts // parts)
    through = through_sets(transition, parts, price)
    need = kept - math.fsum(price.ravel().tolist()) - rounding(transition, parts, price)
    choices = []
    for value in through:
        found = partitions_worth(value, sets, parts, need, MOST_LEFT)
        if found is None:
            return math.inf
        if not len(found[0]):
            return kept
        choices.append(sets[found[0]])
    if chain_work([len(choice) for choice in choices], parts) > MOST_WORK:
        return math.inf
    best = best_chain_among(transition, choices)[0]
    return max(kept, best + rounding(transition, parts, np.zeros_like(price)))


def certified_sets(instance: ExpertPlacement, certificate: Mapping[str, Any]) -> float:
    """What a `chain_sets` certificate proves of a token's traffic. Raises `CertificateError`."""
    if certificate.get("kind") != "chain_sets" or instance.transition is None or not sets_apply(instance):
        raise CertificateError("certificate.kind 'chain_sets' needs as many slots as experts, and few sets of experts that a device can hold")
    within = []
    for level, data in each_level(instance, certificate):
        price = floats(data, "price", (instance.layers, instance.experts))
        least = sets_within(instance.transition, level.parts, price)
        kept = data.get("kept")
        if kept is not None:
            if isinstance(kept, bool) or not isinstance(kept, (int, float)) or not math.isfinite(kept):
                raise CertificateError(f"certificate.levels: kept must be a finite number, got {kept!r}")
            if kept < least:
                least = min(least, closed_within(instance.transition, level.parts, price, float(kept)))
        within.append(least)
    return traffic_value(instance, np.array(within))
