"""Augmented IRUP and non-IRUP instances of bin packing, with optima known by construction.

An instance has the integer round-up property (IRUP) when its optimum is the linear relaxation of Gilmore and Gomory rounded up. Delorme, Iori and
Martello (EJOR 2016, doi:10.1016/j.ejor.2016.04.030) augment small cores of either kind by triplets that fill bins exactly; the construction here is
another with the same effect.

All sizes lie strictly between a quarter and a half of the capacity C and there are 3 m of them with the sum m C, so that a bin holds at most three
and m bins are enough only if they all are exact triples (three sizes with the sum C).

*Core.* A cubic graph on 2 t vertices: a Hamiltonian cycle and t chords. Its 3 t edges are the items, with sizes such that the three edges at a vertex
add up to C. Half of each of the 2 t stars covers every edge once, so the linear relaxation is t = Σ / C. A bipartite graph has its even vertices'
stars as a packing into t bins (IRUP). For another one the exact triples of the sizes are listed and searched: a core is kept only if no t of them
cover it, and if first fit decreasing packs it into t + 1 bins. So its optimum is t + 1 (non-IRUP).

*Sizes.* With cycle edges x_i (from vertex i to i + 1) and chords y, x_i = C − y(i) − x_i−1: all follow from the chords and x_0, and close around the
cycle if the chords between even vertices add up to as much as those between odd ones.

*Augmentation.* Core sizes are multiples of 5, as C is; the others come in exact triples of residues 1, 1 and 3 modulo 5. One or two of those never
add up to a multiple of 5 (1, 3; 2, 4, 1), so that an exact triple lies within the core or outside of it, and the optimum of the whole is m with an
IRUP core and m + 1 with another: m + 1 bins are enough because the triples fill one bin each.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headroom.instances.errors import InputError, shown
from headroom.instances.presets import whole
from headroom.instances.request_packing import RequestPacking
from headroom.instances.request_packing_classes import packing

IntArray = npt.NDArray[np.int64]
AUGMENTED = ((201, 2_500), (402, 10_000), (600, 20_000), (801, 40_000), (1_002, 80_000))
"""Requests and capacity of Delorme, Iori and Martello's instances, 50 of each kind."""
MODULUS, RESIDUES = 5, (1, 1, 3)
CHORDS = 7
"""t: a core has 3 t items."""


def augmented(rng: np.random.Generator, *, requests: int = 201, capacity_tokens: int = 2_500, irup: bool = False) -> RequestPacking:
    """An augmented instance, see the module; `provenance` holds its `optimum` and the value of its linear relaxation, `relaxation` = n / 3.

    Raises `InputError` for figures out of range. Expected time O(n), and some tries for the core (milliseconds).
    """
    whole("requests", requests, 3 * CHORDS, 3 * 10**5)
    whole("capacity_tokens", capacity_tokens, 1_000, 2**30)
    if requests % 3:
        raise InputError(f"requests must be a multiple of 3, got {requests}")
    if capacity_tokens % MODULUS:
        raise InputError(f"capacity_tokens must be a multiple of {MODULUS}, got {capacity_tokens}")
    if not isinstance(irup, bool):
        raise InputError(f"irup must be true or false, got {shown(irup)}")
    inner = MODULUS * core(rng, capacity_tokens // MODULUS, irup)
    outer = _exact_triples(rng, requests // 3 - CHORDS, capacity_tokens)
    sizes = rng.permutation(np.concatenate((inner, outer)))
    return packing(capacity_tokens, sizes, optimum=requests // 3 + (0 if irup else 1), relaxation=requests // 3)


def core(rng: np.random.Generator, capacity_tokens: int, irup: bool) -> IntArray:
    """Sizes [3 t] with the sum t · capacity_tokens that fit into t bins (`irup`) or into t + 1 and no fewer."""
    while True:
        sizes = _star_sizes(rng, capacity_tokens, _chords(rng, 0 if irup else 2))
        if sizes is None:
            continue
        if irup or (not covered_by_triples(sizes, capacity_tokens) and _first_fit_decreasing(sizes, capacity_tokens) == CHORDS + 1):
            return sizes


def _chords(rng: np.random.Generator, same: int) -> list[tuple[int, int]]:
    """t pairs of the 2 t vertices, `same` of them between even vertices and as many between odd ones, the rest between an even and an odd one."""
    while True:
        even, odd = rng.permutation(2 * np.arange(CHORDS)).tolist(), rng.permutation(2 * np.arange(CHORDS) + 1).tolist()
        pairs = [(side[2 * k], side[2 * k + 1]) for side in (even, odd) for k in range(same)]
        pairs += list(zip(even[2 * same :], odd[2 * same :], strict=True))
        if all((a - b) % (2 * CHORDS) not in (1, 2 * CHORDS - 1) for a, b in pairs):  # no chord beside an edge of the cycle
            return pairs


def _star_sizes(rng: np.random.Generator, capacity_tokens: int, chords: list[tuple[int, int]]) -> IntArray | None:
    """Sizes of chords and cycle edges with every star's sum the capacity, strictly between a quarter and a half of it; None if others are drawn."""
    near = capacity_tokens // 24
    drawn = capacity_tokens // 3 + rng.integers(-near, near + 1, len(chords))
    even = [k for k, (a, b) in enumerate(chords) if a % 2 == b % 2 == 0]
    odd = [k for k, (a, b) in enumerate(chords) if a % 2 == b % 2 == 1]
    if even:
        drawn[odd[-1]] += drawn[even].sum() - drawn[odd].sum()
    at = np.empty(2 * CHORDS, np.int64)
    for (a, b), size in zip(chords, drawn.tolist(), strict=True):
        at[a] = at[b] = size
    cycle = [int(capacity_tokens // 3 + rng.integers(-near, near + 1))]
    for vertex in range(1, 2 * CHORDS):
        cycle.append(int(capacity_tokens - at[vertex] - cycle[-1]))
    sizes = np.concatenate((drawn, cycle))
    return sizes if (4 * sizes > capacity_tokens).all() and (2 * sizes < capacity_tokens).all() else None


def covered_by_triples(sizes: IntArray, capacity_tokens: int) -> bool:
    """Whether the sizes split into triples with the sum `capacity_tokens`, by trying all: the largest left goes with every pair that completes it."""
    order = np.sort(sizes)[::-1].tolist()

    def covers(left: tuple[int, ...]) -> bool:
        if not left:
            return True
        first, rest = left[0], left[1:]
        tried = set()
        for k, second in enumerate(rest):
            third = capacity_tokens - first - second
            if third > second or second in tried or third not in rest[k + 1 :]:
                continue
            tried.add(second)
            at = rest.index(third, k + 1)
            if covers(rest[:k] + rest[k + 1 : at] + rest[at + 1 :]):
                return True
        return False

    return covers(tuple(order))


def _first_fit_decreasing(sizes: IntArray, capacity_tokens: int) -> int:
    room: list[int] = []
    for size in np.sort(sizes)[::-1].tolist():
        at = next((b for b, free in enumerate(room) if free >= size), None)
        if at is None:
            room.append(capacity_tokens - size)
        else:
            room[at] -= size
    return len(room)


def _exact_triples(rng: np.random.Generator, count: int, capacity_tokens: int) -> IntArray:
    """`count` triples with the sum `capacity_tokens`, of the residues given, strictly between a quarter and a half of it [3 count]."""
    low, high = capacity_tokens // 4 + 1, -(-capacity_tokens // 2) - 1
    found: list[IntArray] = []
    missing = count
    while missing:
        first, second = (_with_residue(rng.integers(low, high + 1, 4 * missing), residue) for residue in RESIDUES[:2])
        third = capacity_tokens - first - second  # its residue is the last one, because the residues add up to the modulus
        triples = np.stack((first, second, third), axis=1)
        good = triples[(triples >= low).all(axis=1) & (triples <= high).all(axis=1)][:missing]
        found.append(good)
        missing -= len(good)
    return np.concatenate([*found, np.zeros((0, 3), np.int64)]).ravel()


def _with_residue(values: IntArray, residue: int) -> IntArray:
    """The next lower numbers of this residue."""
    return values - (values - residue) % MODULUS
