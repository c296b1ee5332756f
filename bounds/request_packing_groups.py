r"""Bounds on bins where requests share something: groups pay their overhead in every bin that they are in. All in whole numbers.

Group g has tokens T_g, overhead h_g, and a room of R_g = C - h_g tokens in a bin, down to a multiple of the padding q.

`split_volume`. Group g is in n_g bins at least: ceil(T_g / R_g), and ceil(a / (k - 1)) for a of its requests larger than R_g / k, of which no bin
holds k. Proof of the bound: the loads of all bins add up to sum_g (h_g times the bins with g, plus q times the multiples that its parts take in
them) >= L = sum_g (h_g n_g + q ceil(T_g / q)). Every load is a sum of overheads and multiples of q, hence a multiple of their greatest common
divisor r, so a bin takes at most C' = r floor(C / r): at least ceil(L / C') bins. It is never below `volume`, which has n_g = 1 and C' = C.

`grouped_patterns` (certificate). Whole weights w of types, a type being a group and a size, and bonuses b of groups, all >= 0. A bin weighs the
weights of its requests and the bonuses of the groups in it, at most V, the most valuable content of a bin. Over all bins that is
W = sum_j w_j + sum_g b_g n_g at least: at least ceil(W / V) bins. The weights are duals of the program over patterns (Gilmore and Gomory, doi
10.1287/opre.9.6.849; the bound at any duals: Farley, doi 10.1287/opre.38.5.922) with one more row a group, "in n_g bins at least"; with w = size and
b = overhead it is `split_volume`, but for padding. The recheck finds V by numpy alone (`heaviest`).

A request that is alone in its group shares nothing: all of those are one group without overhead here, each with the tokens that it takes alone (but
where its overhead is no multiple of q).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.certificates import CertificateError, integers, number
from headroom.bounds.request_packing_bins import too_large
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.request_packing import RequestPacking

IntArray = npt.NDArray[np.int64]
NEVER = -(2**61)
MOST_WEIGHT = 2**58
MOST_SHARE = 12
"""Requests larger than one k-th of the room are counted for k up to this."""
RECHECK_STEPS = 1_500_000_000
"""Of the recheck's table: a few seconds. Beyond, loads are made coarser."""
MOST_CELLS = 2**24
"""Loads of the recheck's table."""
FILLED_AGAIN = 400
"""Steps of a search for packings before patterns are priced."""
MOST_TYPES, MOST_ENTRIES = 20_000, 50_000_000
"""Types, and types times bins, up to which the program over patterns is worth its time and memory."""


@dataclass(frozen=True)
class Types:
    """Requests of one group and size counted, by rising group, then falling size [m]: `size`, `group`, `demand`; `overhead` [groups], padding
    `multiple`, `capacity`; `of` [N]: each request's type."""

    size: IntArray
    group: IntArray
    demand: IntArray
    overhead: IntArray
    multiple: int
    capacity: int
    of: IntArray

    @property
    def tokens(self) -> IntArray:
        """Of each group [groups]."""
        found = np.zeros(len(self.overhead), np.int64)
        np.add.at(found, self.group, self.size * self.demand)
        return found

    @property
    def room(self) -> IntArray:
        """For each group's tokens in a bin [groups]."""
        found: IntArray = (self.capacity - self.overhead) // self.multiple * self.multiple
        return found


def types_of(instance: RequestPacking) -> Types:
    """The types of an instance whose requests all fit into a bin. O(N log N)."""
    multiple = instance.padding_multiple
    group, overhead = instance.group_of, instance.overhead
    alone = (np.bincount(group)[group] == 1) & (overhead[group] % multiple == 0)
    size = np.where(alone, instance.padded, instance.size)
    used, compact = np.unique(np.where(alone, len(overhead), group), return_inverse=True)
    pairs, of, demand = np.unique(np.stack([compact, -size], axis=1), axis=0, return_inverse=True, return_counts=True)
    own = np.append(overhead, 0)[used]
    return Types(-pairs[:, 1], pairs[:, 0], demand.astype(np.int64), own, multiple, instance.capacity_tokens or 0, of.reshape(-1).astype(np.int64))


def least_bins(types: Types) -> IntArray:
    """Bins that each group is in at least [groups]. O(m)."""
    room = types.room
    found = -(-types.tokens // room)
    for k in range(2, MOST_SHARE + 1):
        large = np.zeros(len(room), np.int64)
        np.add.at(large, types.group, np.where(k * types.size > room[types.group], types.demand, 0))
        found = np.maximum(found, -(-large // (k - 1)))
    return found


def split_volume(instance: RequestPacking, params: SolveParams, progress: Progress) -> Bound:
    """All tokens, and each group's overhead in as many bins as the group needs, over the capacity. O(N log N)."""
    return Bound(split_volume_value(instance), "split_volume", "closed_form")


def split_volume_value(instance: RequestPacking) -> float:
    """Bins; infinite where a request is larger than a bin."""
    if too_large(instance) is not None:
        return math.inf
    types = types_of(instance)
    multiple, overhead = types.multiple, types.overhead.tolist()
    tokens, bins = types.tokens.tolist(), least_bins(types).tolist()
    total = sum(h * n + -(-t // multiple) * multiple for h, n, t in zip(overhead, bins, tokens, strict=True))
    divisor = math.gcd(multiple, *overhead)
    return float(-(-total // (types.capacity // divisor * divisor)))


def grouped_patterns(instance: RequestPacking, params: SolveParams, progress: Progress) -> Bound:
    """The program over patterns whose bins pay for groups and padding, by column generation, rounded up. Anytime.

    Never below `split_volume`; that alone where there are more types than MOST_TYPES.
    """
    if too_large(instance) is not None:
        return Bound(math.inf, "grouped_patterns", "certificate", {"kind": "grouped_weights", "weight": [], "bonus": [], "grain": 1})
    types = types_of(instance)
    from headroom.solvers.grouped_columns import GroupedRelaxation, filled_start
    from headroom.solvers.grouped_patterns import GroupedItems
    from headroom.solvers.grouped_search import squeeze

    items = GroupedItems(types.size, types.group, types.demand, types.overhead, types.multiple, types.capacity)
    known = int(split_volume_value(instance))
    if len(types.size) > MOST_TYPES or known * len(types.size) > MOST_ENTRIES:
        return Bound(float(known), "split_volume", "closed_form")

    def stop() -> bool:
        return progress.should_stop() is not None

    relaxation = GroupedRelaxation(items, least_bins(types), stop)

    # Good packings are good patterns; and where they meet the closed form there is nothing to be found.
    rng = params.rng()
    start = filled_start(items, known, rng, stop)
    relaxation.add(squeeze(items, start, known, rng, stop, lambda found: None, FILLED_AGAIN))
    relaxation.generate(known, lambda: progress.raise_bound(float(relaxation.bound)))
    return grouped_bound(instance, types, relaxation.weights, relaxation.bonus)


def grouped_bound(instance: RequestPacking, types: Types, weight: IntArray, bonus: IntArray) -> Bound:
    """The bound that weights [m] and bonuses [groups] prove, with its certificate."""
    certificate = {"kind": "grouped_weights", "weight": weight, "bonus": bonus, "grain": grain_for(types)}
    return Bound(grouped_value(instance, certificate), "grouped_patterns", "certificate", certificate)


def grouped_value(instance: RequestPacking, certificate: Mapping[str, Any]) -> float:
    """What a certificate's weights and bonuses prove, `split_volume` at least. Raises `CertificateError`. Complexity: `heaviest`."""
    if too_large(instance) is not None:
        return math.inf
    types = types_of(instance)
    weight = np.maximum(integers(certificate, "weight", (len(types.size),)), 0)
    bonus = np.maximum(integers(certificate, "bonus", (len(types.overhead),)), 0)
    grain = number(certificate, "grain")
    if not 1 <= grain <= types.capacity or grain != round(grain):
        raise CertificateError(f"certificate.grain must be a whole number from 1 to {types.capacity}, got {grain:g}")
    demand, bins = types.demand.tolist(), least_bins(types).tolist()
    total = sum(w * d for w, d in zip(weight.tolist(), demand, strict=True)) + sum(b * n for b, n in zip(bonus.tolist(), bins, strict=True))
    if total >= MOST_WEIGHT:
        raise CertificateError("certificate.weight and certificate.bonus must add up to less than 2^58 over all requests and bins")
    most = heaviest(types, weight, bonus, int(grain))
    return max(split_volume_value(instance), float(-(-total // most)) if most > 0 else 0.0)


def grain_for(types: Types) -> int:
    """The finest grain, a power of two, with which `heaviest` takes at most RECHECK_STEPS and MOST_CELLS."""
    grain = 1
    while _steps(types, grain) > RECHECK_STEPS or types.capacity // grain > MOST_CELLS:
        grain *= 2
    return grain


def _steps(types: Types, grain: int) -> int:
    most = np.minimum(types.demand, types.room[types.group] // types.size)
    rows = sum(int(k).bit_length() for k in most.tolist())
    joins = 0
    if types.multiple > 1 and grain == 1:
        joins = len(types.overhead) * (types.capacity // types.multiple) * (types.capacity // _divisor(types)) // 2
    return rows * (types.capacity // grain + 1) + joins


def _divisor(types: Types) -> int:
    return math.gcd(types.multiple, *types.overhead.tolist())


def heaviest(types: Types, weight: IntArray, bonus: IntArray, grain: int) -> int:
    """The most that a bin can weigh (or more, where `grain` > 1), by numpy alone, over all loads. Raises `CertificateError` where that takes too
    long.

    Grain 1 is exact. Larger: sizes, overheads and the capacity are divided by it and rounded down, and padding is left out; what fits into a bin
    still does, so that no bin is missed. O(C / grain) a copy of a type, copies in powers of two; with padding q also O(C / q) joins of O(C / r)
    a group, r the greatest common divisor of q and the overheads.
    """
    if _steps(types, grain) > 2 * RECHECK_STEPS or types.capacity // grain > 2 * MOST_CELLS:
        raise CertificateError(f"certificate.grain must be larger: with {grain} the recheck takes too many steps")
    unit = _divisor(types) if grain == 1 and types.multiple > 1 else grain
    best = np.zeros(types.capacity // unit + 1, np.int64)
    ends = np.searchsorted(types.group, np.arange(len(types.overhead) + 1))
    for g in range(len(types.overhead)):
        rows = list(_copies(types, weight, int(bonus[g]), range(int(ends[g]), int(ends[g + 1])), int(types.room[g])))
        if not rows:
            continue
        shift = int(types.overhead[g]) // unit
        if grain == 1 and types.multiple > 1:
            alone = np.full(int(types.room[g]) + 1, NEVER, np.int64)
            alone[0] = bonus[g]
            own = _with_rows(alone, rows, 1)[1:].reshape(-1, types.multiple).max(axis=1)
            joined = best.copy()
            step = types.multiple // unit
            for u in np.flatnonzero(own > np.maximum.accumulate(np.append(0, own[:-1]))).tolist():
                at = shift + (u + 1) * step
                np.maximum(joined[at:], best[: len(best) - at] + own[u], out=joined[at:])
            best = joined
        elif shift < len(best):
            taken = _with_rows(best[: len(best) - shift] + bonus[g], rows, grain)
            np.maximum(best[shift:], taken, out=best[shift:])
    return int(best[-1])


def _copies(types: Types, weight: IntArray, bonus: int, kinds: range, room: int) -> Iterator[tuple[int, int]]:
    """(size, weight) of copies in powers of two, of types that matter: without weight only where being there earns a bonus."""
    for i in kinds:
        s, w, left, chunk = int(types.size[i]), int(weight[i]), min(int(types.demand[i]), room // int(types.size[i])), 1
        while left > 0 and (w > 0 or bonus > 0):
            count = min(chunk, left)
            yield count * s, count * w
            left, chunk = left - count, 2 * chunk


def _with_rows(base: IntArray, rows: list[tuple[int, int]], grain: int) -> IntArray:
    """Best value in each room with at least one of the rows, each at most once, upon what `base` has without them."""
    now = np.full(len(base), NEVER, np.int64)
    for size, weight in rows:
        s = size // grain
        if s < len(base):
            reach = len(base) - s
            np.maximum(now[s:], np.maximum(now[:reach], base[:reach]) + weight, out=now[s:])
    return now


CLOSED = {"split_volume": split_volume_value}
"""The closed forms of this file: their values alone."""

__all__ = [
    "CLOSED", "MOST_ENTRIES", "MOST_TYPES", "Types", "grouped_bound", "grouped_patterns", "grouped_value", "heaviest", "least_bins", "split_volume",
    "split_volume_value", "types_of",
]  # fmt: skip
