"""Look-alikes of the literature's classes of bin packing and of parallel machines, as request packing. All drawn from the Generator given.

An item is a request of so many prompt tokens and no output; a job is one of so many output tokens and no prompt, with decode steps of a second.
Where the construction proves the optimum, `provenance` holds it as `optimum`. Every function raises `InputError` for figures out of range and takes
O(n) unless said.

Classes and sizes as collected by Delorme, Iori and Martello (EJOR 2016, doi:10.1016/j.ejor.2016.04.030): uniform and triplets (Falkenauer, J.
Heuristics 1996, doi:10.1007/BF00226291), Scholl 1 to 3 (Scholl, Klein and Jürgens, Computers & OR 1997, doi:10.1016/S0305-0548(96)00082-2), Schwerin
1 and 2, Wäscher, Hard28, their own random ones, and augmented (non-)IRUP (`request_packing_augmented`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.instances.errors import InputError, shown
from headroom.instances.presets import real, whole
from headroom.instances.request_packing import MOST_REQUESTS, RequestPacking, Requests

IntArray = npt.NDArray[np.int64]
MOST_CAPACITY = 2**38
SCHOLL_REQUESTS = (50, 100, 200, 500)
SCHOLL_1_CAPACITY, SCHOLL_1_LEAST = (100, 120, 150), (1, 20, 30)
SCHOLL_2_MEAN, SCHOLL_2_DEVIATION = (3, 5, 7, 9), (20, 50, 90)
DELORME_REQUESTS = (50, 100, 200, 300, 400, 500, 750, 1000)
DELORME_CAPACITY = (50, 75, 100, 120, 125, 150, 200, 300, 400, 500, 750, 1000)
DELORME_LEAST, DELORME_MOST = (10, 20), (70, 80)
"""Per cent of the capacity."""


def packing(capacity_tokens: int, sizes: npt.ArrayLike, **facts: Any) -> RequestPacking:
    """Plain bin packing of these sizes; `facts` go into its provenance."""
    sizes = np.asarray(sizes, np.int64)
    requests = Requests(prompt_tokens=sizes, output_tokens=np.zeros(len(sizes), np.int64))
    return RequestPacking(requests=requests, objective="bins", capacity_tokens=capacity_tokens, provenance=facts)


def machines(slots: int, times: npt.ArrayLike, **facts: Any) -> RequestPacking:
    """P||Cmax: jobs of these times [s] on `slots` machines; `facts` go into its provenance."""
    times = np.asarray(times, np.int64)
    requests = Requests(prompt_tokens=np.zeros(len(times), np.int64), output_tokens=times)
    return RequestPacking(requests=requests, objective="makespan", slots=slots, decode_step_s=1.0, provenance=facts)


# ---- Bins: drawn ---------------------------------------------------------------------------------------------------------------------------


def uniform(rng: np.random.Generator, *, requests: int, capacity_tokens: int = 150, least: int = 20, most: int = 100) -> RequestPacking:
    """Sizes uniform from `least` to `most`: Falkenauer's class as it stands; Scholl, Schwerin and the random class are others of this form."""
    whole("requests", requests, 1, MOST_REQUESTS)
    whole("capacity_tokens", capacity_tokens, 1, MOST_CAPACITY)
    whole("most", most, 1, capacity_tokens)
    whole("least", least, 1, most)
    return packing(capacity_tokens, rng.integers(least, most + 1, requests))


def scholl_1() -> Iterator[dict[str, int]]:
    """The 36 settings of Scholl 1 for `uniform`; 20 instances of each in the library."""
    for requests, capacity_tokens, least in itertools.product(SCHOLL_REQUESTS, SCHOLL_1_CAPACITY, SCHOLL_1_LEAST):
        yield {"requests": requests, "capacity_tokens": capacity_tokens, "least": least, "most": 100}


def scholl_2() -> Iterator[dict[str, int]]:
    """The 48 settings of Scholl 2 for `uniform`: sizes around a third to a ninth of 1,000, up to 20, 50 or 90 % away; 10 instances of each."""
    for requests, part, deviation in itertools.product(SCHOLL_REQUESTS, SCHOLL_2_MEAN, SCHOLL_2_DEVIATION):
        low, high = -(-1000 * (100 - deviation) // (100 * part)), 1000 * (100 + deviation) // (100 * part)
        yield {"requests": requests, "capacity_tokens": 1000, "least": low, "most": high}


SCHOLL_3 = {"requests": 200, "capacity_tokens": 100_000, "least": 20_000, "most": 35_000}
"""For `uniform`; 10 instances in the library."""
SCHWERIN_1 = {"requests": 100, "capacity_tokens": 1000, "least": 150, "most": 200}
SCHWERIN_2 = {"requests": 120, "capacity_tokens": 1000, "least": 150, "most": 200}
"""For `uniform`; 100 instances of each in the library."""


def delorme_random() -> Iterator[dict[str, int]]:
    """The 384 settings of Delorme, Iori and Martello's random class for `uniform`; 10 instances of each in the library."""
    for requests, capacity_tokens, low, high in itertools.product(DELORME_REQUESTS, DELORME_CAPACITY, DELORME_LEAST, DELORME_MOST):
        least, most = -(-capacity_tokens * low // 100), capacity_tokens * high // 100
        yield {"requests": requests, "capacity_tokens": capacity_tokens, "least": least, "most": most}


def waescher(
    rng: np.random.Generator, *, distinct: int = 40, requests: int = 150, capacity_tokens: int = 10_000, most_share: float = 0.5
) -> RequestPacking:
    """Few distinct sizes, from 1 token to a share of the bin, with demands that split `requests` at random: the form of Wäscher and Gau's instances
    (n = 57 to 239, capacity 10,000), of which the library holds 17 that stayed open."""
    whole("requests", requests, 1, MOST_REQUESTS)
    whole("distinct", distinct, 1, requests)
    whole("capacity_tokens", capacity_tokens, 1, MOST_CAPACITY)
    real("most_share", most_share, 0, 1)
    size = rng.integers(1, max(int(most_share * capacity_tokens), 1) + 1, distinct)
    cut = np.sort(rng.choice(requests - 1, distinct - 1, replace=False)) + 1 if distinct > 1 else np.zeros(0, np.int64)
    demand = np.diff(np.concatenate(([0], cut, [requests])))
    return packing(capacity_tokens, rng.permutation(np.repeat(size, demand)))


def many_sizes(
    rng: np.random.Generator,
    *,
    distinct: int = 250,
    requests: int = 500,
    capacity_tokens: int = 1_500_000,
    least_share: float = 0.02,
    most_share: float = 0.6,
) -> RequestPacking:
    """Hundreds of distinct sizes, uniform between two shares of a huge bin, and demands that add up to `requests`: arc-flow graphs and tables over
    tokens are out of reach there (as in the instances of Gschwind and Irnich, INFORMS J. on Computing 2016, doi:10.1287/ijoc.2015.0670)."""
    whole("requests", requests, 1, MOST_REQUESTS)
    whole("distinct", distinct, 1, requests)
    whole("capacity_tokens", capacity_tokens, 1, MOST_CAPACITY)
    real("most_share", most_share, 0, 1)
    real("least_share", least_share, 0, most_share)
    low, high = max(int(np.ceil(least_share * capacity_tokens)), 1), int(most_share * capacity_tokens)
    if high - low + 1 < distinct:
        raise InputError(f"distinct must be at most {max(high - low + 1, 0)}, the sizes from {low} to {high}, got {shown(distinct)}")
    size = low + rng.choice(high - low + 1, distinct, replace=False)
    return packing(capacity_tokens, rng.permutation(np.concatenate((size, rng.choice(size, requests - distinct)))))


# ---- Bins: built around a known packing ----------------------------------------------------------------------------------------------------


def triplets(rng: np.random.Generator, *, requests: int, capacity_tokens: int = 1000) -> RequestPacking:
    """Falkenauer's triplets: bins filled exactly by three items, one of 0.38 to 0.49 of the bin, the other two at least a quarter; all sizes from a
    quarter to a half. optimum = n / 3, since the bins are full."""
    whole("requests", requests, 3, MOST_REQUESTS)
    whole("capacity_tokens", capacity_tokens, 100, MOST_CAPACITY)
    if requests % 3:
        raise InputError(f"requests must be a multiple of 3, got {requests}")
    first = rng.integers(38 * capacity_tokens // 100, 49 * capacity_tokens // 100 + 1, requests // 3)
    rest = capacity_tokens - first
    second = rng.integers(-(-capacity_tokens // 4), rest // 2 + 1)
    return packing(capacity_tokens, rng.permutation(np.concatenate((first, second, rest - second))), optimum=requests // 3)


def full_bins(rng: np.random.Generator, *, bins: int, capacity_tokens: int = 1_500_000, most_parts: int = 5) -> RequestPacking:
    """Bins cut at random places into 2 to `most_parts` items. optimum = bins, since the bins are full."""
    whole("bins", bins, 1, MOST_REQUESTS // 2)
    whole("most_parts", most_parts, 2, 1000)
    whole("capacity_tokens", capacity_tokens, most_parts, MOST_CAPACITY)
    sizes = []
    for parts in rng.integers(2, most_parts + 1, bins).tolist():
        cut = np.sort(rng.choice(capacity_tokens - 1, parts - 1, replace=False)) + 1
        sizes.append(np.diff(np.concatenate(([0], cut, [capacity_tokens]))))
    return packing(capacity_tokens, rng.permutation(np.concatenate(sizes)), optimum=bins)


def hard28_like(rng: np.random.Generator, *, requests: int = 180, capacity_tokens: int = 1000, slack: int = 100) -> RequestPacking:
    """Sizes as in Hard28 (n = 160 to 200, 0.001 to 0.8 of 1,000) around a packing without room to spare.

    Random items go into planned bins, best fit. Then each bin is filled up: its last item grows, or one more item takes the rest if that is wanted
    to reach n. At last single tokens are taken from random items, `slack` of them, fewer than a bin: what remains needs ⌈Σ / C⌉ = the planned bins,
    so that is the optimum and the linear relaxation less than one below it, while simple rules waste more than `slack` and need a bin more.
    Planning is repeated until n comes out. O(n log n) a try.
    """
    whole("requests", requests, 10, 10**5)
    whole("capacity_tokens", capacity_tokens, 20, MOST_CAPACITY)
    whole("slack", slack, 0, capacity_tokens - 1)
    most = 4 * capacity_tokens // 5
    while True:
        bins = _planned_bins(rng, requests, capacity_tokens, most)
        if bins is None:
            continue
        sizes = np.array([size for content in bins for size in content], np.int64)
        for _ in range(slack):
            sizes[rng.choice(np.flatnonzero(sizes > 1))] -= 1
        return packing(capacity_tokens, rng.permutation(sizes), optimum=len(bins))


def _planned_bins(rng: np.random.Generator, requests: int, capacity_tokens: int, most: int) -> list[list[int]] | None:
    """Full bins of `requests` items of at most `most`; None when the draw cannot be completed."""
    drawn = round(0.8 * requests)
    bins: list[list[int]] = []
    room: list[int] = []
    for size in rng.integers(1, most + 1, drawn).tolist():
        fitting = [b for b, free in enumerate(room) if free >= size]
        best = min(fitting, key=room.__getitem__, default=None)
        if best is None:
            bins.append([])
            room.append(capacity_tokens)
            best = len(bins) - 1
        bins[best].append(size)
        room[best] -= size
    wanted = requests - drawn
    for b in sorted(range(len(bins)), key=lambda b: -room[b]):
        if wanted and 0 < room[b] <= most:
            bins[b].append(room[b])
            wanted -= 1
        elif room[b] and bins[b][-1] + room[b] <= most:
            bins[b][-1] += room[b]
        elif room[b]:
            return None
    return None if wanted else bins


# ---- Parallel machines -----------------------------------------------------------------------------------------------------------------------


def cmax_uniform(rng: np.random.Generator, *, requests: int, slots: int, least: int = 1, most: int = 100) -> RequestPacking:
    """P||Cmax with times uniform from `least` to `most`; usual ranges are 1 to 100, 1 to 1,000 and 9,800 to 9,999."""
    whole("requests", requests, 1, MOST_REQUESTS)
    whole("slots", slots, 1, 2**20)
    whole("most", most, 1, 10**9)
    whole("least", least, 1, most)
    return machines(slots, rng.integers(least, most + 1, requests))


def cmax_exponential(rng: np.random.Generator, *, requests: int, slots: int, mean: float = 100.0) -> RequestPacking:
    """P||Cmax with exponential times, rounded up."""
    whole("requests", requests, 1, MOST_REQUESTS)
    whole("slots", slots, 1, 2**20)
    real("mean", mean, 1e-3, 1e9)
    return machines(slots, np.maximum(np.ceil(rng.exponential(mean, requests)), 1).astype(np.int64))


def cmax_full(rng: np.random.Generator, *, slots: int, time_s: int = 1000, most_parts: int = 5) -> RequestPacking:
    """P||Cmax whose machines end together: `time_s` on each is cut at random places into 2 to `most_parts` jobs. optimum = `time_s`, the mean."""
    cut = full_bins(rng, bins=slots, capacity_tokens=time_s, most_parts=most_parts)
    whole("slots", slots, 1, 2**20)
    return machines(slots, cut.size, optimum=time_s)
