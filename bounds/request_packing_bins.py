r"""Bounds on bins: the volume, Martello and Toth's L2, dual feasible functions, and weights of sizes. All in whole numbers.

`volume`. Whatever is shared, group g takes h_g + q ceil(sum of its sizes / q) at least over all bins: at least their sum over C bins.

The others are about plain bin packing of the sizes. Where groups share something they are computed for the requests' own tokens, which a packing of
groups packs as well. Bins that `request_packing_reduction` puts aside count one each.

`l2` (Martello and Toth, Knapsack Problems, 1990, ch. 8). For each a <= C/2: items above C/2 are in different bins; those up to C - a can be joined
by items of a .. C/2 only as far as their bins have room.

`dff`. f is dual feasible if sum f(s) <= f(C) for all sizes with sum s <= C: then sum_j f(s_j) / f(C) bins are needed. Used, for whole s and each
parameter: U_a (0 below a, C above C - a), u_k (Fekete and Schepers, doi 10.1007/s101070100243), f_a (Carlier, Clautiaux and Moukrim, doi
10.1016/j.cor.2005.08.012), and u_k after U_a.

`weights` (certificate). Whole weights w(s): no bin weighs more than V, the most valuable pattern, which the recheck computes exactly: at least
ceil(sum_j w(s_j) / V) bins. With the duals of the pattern program this is its value, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.certificates import CertificateError, integers
from headroom.bounds.request_packing_reduction import Counted, counted, reduced
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.request_packing import RequestPacking

IntArray = npt.NDArray[np.int64]
MOST_PARAMETERS, MOST_FACTORS = 400, 60
"""Of dual feasible functions: that many a, spread over the sizes, and k."""
PAIRS_OF = 60
"""Of the a, that many with every k."""
DENSE_CAPACITY = 2**21
"""Up to it the recheck's table has an entry for every load; beyond, for every load that matters."""
MOST_LOADS = 2**24
"""Loads that matter, at most."""
MOST_STEPS, SORTING = 3 * 10**10, 200
"""Of the recheck's table, some 20 s; a load that is sorted in takes about as long as so many."""


def volume(instance: RequestPacking, params: SolveParams, progress: Progress) -> Bound:
    """All tokens, each group's overhead once, over the capacity. O(N)."""
    return Bound(volume_value(instance), "volume", "closed_form")


def l2(instance: RequestPacking, params: SolveParams, progress: Progress) -> Bound:
    """Large items do not share bins, and small ones fill what room they leave. O(N log N)."""
    return Bound(l2_value(instance), "l2", "closed_form")


def dff(instance: RequestPacking, params: SolveParams, progress: Progress) -> Bound:
    """The best of the dual feasible functions. O(MOST_PARAMETERS m + PAIRS_OF MOST_FACTORS m) for m distinct sizes."""
    return Bound(dff_value(instance), "dff", "closed_form")


def too_large(instance: RequestPacking) -> int | None:
    """A request that is larger than a bin, if there is one: then no plan is feasible."""
    over = np.flatnonzero(instance.padded > (instance.capacity_tokens or 0))
    return int(over[0]) if len(over) else None


def volume_value(instance: RequestPacking) -> float:
    """Bins; infinite where a request is larger than a bin."""
    if too_large(instance) is not None:
        return math.inf
    tokens = np.zeros(len(instance.overhead), np.int64)
    np.add.at(tokens, instance.group_of, instance.size)
    used = tokens > 0
    multiple = instance.padding_multiple
    total = sum((-(-tokens[used] // multiple) * multiple + instance.overhead[used]).tolist())
    return float(-(-total // (instance.capacity_tokens or 1)))


def l2_value(instance: RequestPacking) -> float:
    """Bins; infinite where a request is larger than a bin."""
    if too_large(instance) is not None:
        return math.inf
    found = reduced(counted(instance))
    return float(found.bins + _l2(found.rest))


def dff_value(instance: RequestPacking) -> float:
    """Bins; infinite where a request is larger than a bin."""
    if too_large(instance) is not None:
        return math.inf
    found = reduced(counted(instance))
    return float(found.bins + max([0, *(weighed(found.rest.demand, weight, most) for weight, most in _functions(found.rest))]))


CLOSED = {"volume": volume_value, "l2": l2_value, "dff": dff_value}
"""The closed forms: their values alone."""


def weighed(demand: IntArray, weight: IntArray, most: int) -> int:
    """Bins that weights prove of which no bin holds more than `most`. Exact."""
    total = _total(weight, demand)
    return -(-total // most) if total > 0 else 0


def _total(weight: IntArray, demand: IntArray) -> int:
    if int(weight.max(initial=0)) * int(demand.sum()) < 2**62:
        return int(weight @ demand)
    return sum(w * d for w, d in zip(weight.tolist(), demand.tolist(), strict=True))


def _l2(items: Counted) -> int:
    size, demand, capacity = items.size, items.demand, items.capacity
    if not len(size):
        return 0
    tokens = np.concatenate([[0], np.cumsum(size * demand)])
    count = np.concatenate([[0], np.cumsum(demand)])
    half = int(np.searchsorted(-size, -(capacity // 2), side="left"))  # sizes before it are above C/2
    least = np.concatenate([[0], size[half:]])
    alone = np.searchsorted(-size, -(capacity - least), side="left")  # sizes before it are above C - a
    alone = np.minimum(alone, half)
    end = np.where(least > 0, np.searchsorted(-size, -least, side="right"), len(size))
    small = tokens[end] - tokens[half]
    room = (count[half] - count[alone]) * capacity - (tokens[half] - tokens[alone])
    found = count[half] + np.maximum(0, -(-(small - room) // capacity))
    return int(found.max())


def _functions(items: Counted) -> Iterator[tuple[IntArray, int]]:
    """Weights [m] of dual feasible functions, and what no bin weighs more than."""
    size, capacity = items.size, items.capacity
    small = np.unique(np.concatenate([size[2 * size <= capacity], capacity - size[2 * size > capacity]]))
    small = small[small > 0]
    some = small[np.unique(np.linspace(0, len(small) - 1, min(len(small), MOST_PARAMETERS)).astype(np.int64))] if len(small) else small
    yield size, capacity
    for k in range(1, MOST_FACTORS):
        yield _u(size, capacity, k), k * capacity
    pairs = set(some[np.unique(np.linspace(0, len(some) - 1, min(len(some), PAIRS_OF)).astype(np.int64))].tolist()) if len(some) else set()
    for a in some.tolist():
        lifted = np.where(size > capacity - a, capacity, np.where(size < a, 0, size))
        yield lifted, capacity
        yield _f(size, capacity, a), 2 * (capacity // a)
        if a in pairs:
            for k in range(1, MOST_FACTORS):
                yield _u(lifted, capacity, k), k * capacity


def _u(size: IntArray, capacity: int, k: int) -> IntArray:
    product = (k + 1) * size
    return np.where(product % capacity == 0, k * size, product // capacity * capacity)


def _f(size: IntArray, capacity: int, a: int) -> IntArray:
    most = capacity // a
    return np.where(2 * size > capacity, 2 * (most - (capacity - size) // a), np.where(2 * size == capacity, most, 2 * (size // a)))


# --- weights ----------------------------------------------------------------------------------------------------------------


def weights_certificate(rest: Counted, weight: IntArray) -> dict[str, Any]:
    """Weights [m] of the reduced instance's sizes, as a bound carries them."""
    return {"kind": "weights", "size": rest.size, "weight": weight}


def weights_value(instance: RequestPacking, certificate: Mapping[str, Any]) -> float:
    """What a certificate's weights prove; sizes that it does not name weigh nothing. Raises `CertificateError`.

    O(capacity n) for n copies that a bin can hold, in powers of two; with fewer loads that matter less.
    """
    if too_large(instance) is not None:
        return math.inf
    size, weight = integers(certificate, "size", (None,)), integers(certificate, "weight", (None,))
    if len(size) != len(weight):
        raise CertificateError("certificate.weight must have as many entries as certificate.size")
    found = reduced(counted(instance))
    rest = found.rest
    known = dict(zip(size.tolist(), np.maximum(weight, 0).tolist(), strict=True))
    mine = np.array([known.get(s, 0) for s in rest.size.tolist()], np.int64)
    if _total(mine, rest.demand) >= 2**62:
        raise CertificateError("certificate.weight must add up to less than 2^62 over all requests")
    most = heaviest(rest, mine)
    return float(found.bins + (weighed(rest.demand, mine, most) if most > 0 else 0))


def heaviest(items: Counted, weight: IntArray) -> int:
    """The most that a bin can weigh, exactly, by numpy alone: the bounded knapsack over loads. Raises `CertificateError` where it is too large."""
    capacity = items.capacity
    copies: list[tuple[int, int]] = []
    for s, d, w in zip(items.size.tolist(), items.demand.tolist(), weight.tolist(), strict=True):
        left, chunk = min(d, capacity // s), 1
        while left > 0 and w > 0:
            count = min(chunk, left)
            if count * s <= capacity:
                copies.append((count * s, count * w))
            left, chunk = left - count, 2 * chunk
    if capacity <= DENSE_CAPACITY:
        if len(copies) * capacity > MOST_STEPS:
            raise CertificateError(f"certificate.weight makes {len(copies)} passes over {capacity} loads: too many to recheck")
        best = np.zeros(capacity + 1, np.int64)
        for s, w in copies:
            np.maximum(best[s:], best[: capacity + 1 - s] + w, out=best[s:])
        return int(best[-1])
    load, value, steps = np.zeros(1, np.int64), np.zeros(1, np.int64), 0
    for s, w in copies:
        steps += len(load)
        fits = load + s <= capacity
        both, worth = np.concatenate([load, load[fits] + s]), np.concatenate([value, value[fits] + w])
        order = np.lexsort((-worth, both))
        both, worth = both[order], worth[order]
        better = np.concatenate([[True], worth[1:] > np.maximum.accumulate(worth)[:-1]])
        load, value = both[better], worth[better]
        if len(load) > MOST_LOADS or steps > MOST_STEPS // SORTING:
            raise CertificateError(f"certificate.weight makes more than {min(steps, MOST_LOADS)} loads matter: too many to recheck")
    return int(value[-1])


def recheck_bins(instance: RequestPacking, bound: Bound) -> float:
    """Recompute a bound on bins; of a closed form `CLOSED` has the name. Raises `CertificateError`."""
    if bound.proof == "closed_form":
        return CLOSED[bound.method](instance)
    certificate = bound.certificate
    if certificate is None or certificate.get("kind") != "weights":
        raise CertificateError("certificate.kind must be 'weights' or 'grouped_weights'")
    return weights_value(instance, certificate)
