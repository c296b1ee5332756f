"""Random traces of KV reads, for KV-cache tiering. Everything is drawn from the Generator it is given.

Two models say what a sequence reads: a **drifting set** (a share of the read set is replaced each token: how we read the token randomness of Fang et
al., arXiv 2508.13231) and **scores** (attention sinks, a recency window, and heavy hitters whose scores wander: StreamingLLM, arXiv 2309.17453; H2O,
arXiv 2306.14048). They are drawn for all layers at once, a token at a time: under 100 ns a read for the drifting set (the instance's own check takes
as long again), about 15 ns a score; a dozen bytes of memory a read.

A block is a page of `page_tokens` tokens. It has its full size from the birth of its first token on: a paged cache reserves a page whole, and over a
page's life as many bytes are written as one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from headroom.instances.errors import InputError, shown
from headroom.instances.kv_tiering import KvTiering, Reads, Tier
from headroom.instances.presets import real, whole

IntArray = npt.NDArray[np.int64]
BlockArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]
MOST_SCORE = np.finfo(np.float32).max


@dataclass(frozen=True)
class TierShare:
    """A tier whose capacity is a share of the most bytes that are alive at once (None: unbounded, for the last tier)."""

    name: str
    share: float | None
    read_bytes_per_s: float
    write_bytes_per_s: float

    def tier(self, most_bytes: float) -> Tier:
        if self.share is not None:
            real("capacity_share", self.share, 0.0, 1.0)
        capacity = None if self.share is None else float(np.floor(self.share * most_bytes))
        rates = {"read_bytes_per_s": float(self.read_bytes_per_s), "write_bytes_per_s": float(self.write_bytes_per_s)}
        return Tier(name=self.name, capacity_bytes=capacity, **rates)


Tiers = Sequence[Tier | TierShare]


def sized(tiers: Tiers, most_bytes: float) -> tuple[Tier, ...]:
    """The tiers, shares taken of `most_bytes`."""
    return tuple(tier.tier(most_bytes) if isinstance(tier, TierShare) else tier for tier in tiers)


@dataclass(frozen=True, kw_only=True)
class DriftModel:
    """The newest `recent_tokens` are read, the rest of the read set lies among older ones; a share `drift` of that rest is replaced each token."""

    drift: float = 0.05
    recent_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class ScoreModel:
    """The blocks of highest score are read: −`zipf` log(rank) (ranks in random order) plus a first-order autoregressive walk of standard deviation
    `sigma` and `correlation` from token to token. The first `sink_tokens` and the newest `recent_tokens` come before all others."""

    zipf: float = 1.0
    sigma: float = 1.0
    correlation: float = 0.95
    sink_tokens: int = 4
    recent_tokens: int = 64


Model = DriftModel | ScoreModel


# ---- What one or several sequences of the same length read -----------------------------------------------------------------------------


class Reader(Protocol):
    """What `rows` sequences (layers) of one length read, token by token."""

    def read(self, units: int) -> BoolArray:
        """Which of the `units` that exist now are read [row][unit]; columns beyond them are False. Overwritten by the next call."""


class DriftingSet:
    """A random subset of 0 … candidates − 1 in each row, of which some members are replaced at each step: the first `chosen` of a permutation."""

    def __init__(self, rng: np.random.Generator, rows: int, most: int) -> None:
        self.rng, self.rows = rng, rows
        self.pool: BlockArray = np.empty((rows, most), np.int32)
        self.candidates = self.chosen = 0
        self._row = np.arange(rows)[:, None]

    def step(self, candidates: int, wanted: int, drift: float) -> BlockArray:
        """The members [row][wanted] after replacing round(drift · members) of them (fewer where no others are) and bringing in what is missing."""
        started, pool, rng = self.candidates > 0, self.pool, self.rng
        pool[:, self.candidates : candidates] = np.arange(self.candidates, candidates, dtype=np.int32)
        self.candidates = candidates
        if not started:
            pool[:, :candidates] = rng.permuted(pool[:, :candidates], axis=1)
            self.chosen = wanted
            return pool[:, :wanted]
        others = candidates - self.chosen
        if replaced := min(round(drift * self.chosen), others):
            leaving = distinct(rng, self.rows, self.chosen, replaced)
            coming = self.chosen + distinct(rng, self.rows, others, replaced)
            swapped = pool[self._row, leaving]
            pool[self._row, leaving] = pool[self._row, coming]
            pool[self._row, coming] = swapped
        while self.chosen < wanted:
            self._swap(self.chosen, rng.integers(self.chosen, candidates, self.rows))
            self.chosen += 1
        while self.chosen > wanted:
            self.chosen -= 1
            self._swap(self.chosen, rng.integers(0, self.chosen + 1, self.rows))
        return pool[:, :wanted]

    def _swap(self, column: int, other: IntArray) -> None:
        row, kept = self._row[:, 0], self.pool[:, column].copy()
        self.pool[:, column] = self.pool[row, other]
        self.pool[row, other] = kept


def distinct(rng: np.random.Generator, rows: int, population: int, count: int) -> IntArray:
    """`count` distinct numbers below `population` in each row, every subset as likely. O(rows · count log count)."""
    if 2 * count > population:
        found: IntArray = np.argpartition(rng.random((rows, population)), min(count, population - 1), axis=1)[:, :count]
        return found
    drawn = np.sort(rng.integers(population, size=(rows, count)), axis=1)
    while (again := drawn[:, 1:] == drawn[:, :-1]).any():  # a number drawn twice is drawn anew: at most half are taken, so this ends soon
        drawn[:, 1:][again] = rng.integers(population, size=int(again.sum()))
        drawn.sort(axis=1)
    return drawn


class DriftReader:
    """`DriftModel` over units of `unit_tokens` tokens."""

    def __init__(self, rng: np.random.Generator, rows: int, most: int, sparsity: float, unit_tokens: int, model: DriftModel) -> None:
        self.sparsity, self.drift, self.recent = sparsity, model.drift, -(-model.recent_tokens // unit_tokens)
        self.set, self.flags, self._row = DriftingSet(rng, rows, most), np.zeros((rows, most), np.bool_), np.arange(rows)[:, None]

    def read(self, units: int) -> BoolArray:
        count = int(read_counts(units, self.sparsity))
        newest = min(self.recent, count)
        self.flags[:] = False
        self.flags[self._row, self.set.step(units - min(self.recent, units), count - newest, self.drift)] = True
        self.flags[:, units - newest : units] = True
        return self.flags


class ScoreReader:
    """`ScoreModel` over units of `unit_tokens` tokens."""

    def __init__(self, rng: np.random.Generator, rows: int, most: int, sparsity: float, unit_tokens: int, model: ScoreModel) -> None:
        self.rng, self.sparsity, self.keep = rng, sparsity, np.float32(model.correlation)
        self.sinks, self.recent = -(-model.sink_tokens // unit_tokens), -(-model.recent_tokens // unit_tokens)
        self.fresh = np.float32(model.sigma * np.sqrt(1.0 - model.correlation**2))
        rank = rng.permuted(np.tile(np.arange(1.0, most + 1.0), (rows, 1)), axis=1)
        self.popularity = (-model.zipf * np.log(rank)).astype(np.float32)
        self.walk = np.float32(model.sigma) * rng.standard_normal((rows, most), dtype=np.float32)
        self.flags, self._row = np.zeros((rows, most), np.bool_), np.arange(rows)[:, None]

    def read(self, units: int) -> BoolArray:
        count = int(read_counts(units, self.sparsity))
        walk = self.walk[:, :units]
        walk *= self.keep
        walk += self.fresh * self.rng.standard_normal(walk.shape, dtype=np.float32)
        score = self.popularity[:, :units] + walk
        score[:, max(units - self.recent, 0) :] = MOST_SCORE
        score[:, : self.sinks] = np.inf
        self.flags[:] = False
        if count:
            best = np.argpartition(score, units - count, axis=1)[:, units - count :]
            self.flags[self._row, best] = True
        return self.flags


def reader(rng: np.random.Generator, rows: int, most: int, sparsity: float, unit_tokens: int, model: Model) -> Reader:
    """The reader of a model. Raises `InputError` for figures out of range."""
    real("sparsity", sparsity, 0.0, 1.0)
    whole("recent_tokens", model.recent_tokens, 0, 10**9)
    if isinstance(model, DriftModel):
        real("drift", model.drift, 0.0, 1.0)
        return DriftReader(rng, rows, most, sparsity, unit_tokens, model)
    whole("sink_tokens", model.sink_tokens, 0, 10**9)
    for name, most_value in (("zipf", 10.0), ("sigma", 100.0), ("correlation", 1.0)):
        real(name, getattr(model, name), 0.0, most_value)
    return ScoreReader(rng, rows, most, sparsity, unit_tokens, model)


def read_counts(units: Any, sparsity: float) -> IntArray:
    """round((1 − sparsity) · units): how many of them a step reads."""
    found: IntArray = np.rint((1.0 - sparsity) * np.asarray(units)).astype(np.int64)
    return found


# ---- One sequence, layer by layer --------------------------------------------------------------------------------------------------------


def trace_model(
    rng: np.random.Generator,
    tiers: Tiers,
    *,
    layers: int,
    prompt_tokens: int,
    decode_tokens: int,
    sparsity: float,
    kv_entry_bytes: float,
    page_tokens: int = 1,
    drawn_by: str = "page",
    partial_reads: bool = False,
    fixed_read_bytes: float = 0.0,
    inclusive: bool = False,
    model: Model | None = None,
) -> KvTiering:
    """One sequence that decodes: step j · layers + l computes layer l of decode token j, when prompt_tokens + j + 1 tokens exist.

    Block l · pages + p is page p of layer l; it is read in steps of its layer only, and born in the step of its layer and first token (0: the
    prompt). A step reads round((1 − sparsity) · pages that exist) pages (`drawn_by` "page"), or every page with one of round((1 − sparsity) · tokens)
    tokens ("token"), whole or, with `partial_reads`, the bytes of those tokens. `kv_entry_bytes` are those of a token and layer. `model` says which
    (default: `DriftModel()`). Raises `InputError` for figures out of range. Time and memory O(reads + layers · tokens drawn from).
    """
    for name, value, most in (("layers", layers, 10**4), ("prompt_tokens", prompt_tokens, 10**8), ("decode_tokens", decode_tokens, 10**8)):
        whole(name, value, 1, most)
    whole("page_tokens", page_tokens, 1, 10**6)
    real("kv_entry_bytes", kv_entry_bytes, 1.0, 1e12)
    if drawn_by not in ("page", "token"):
        raise InputError(f"drawn_by must be page or token, got {shown(drawn_by)}")
    if partial_reads and drawn_by == "page":
        raise InputError("partial_reads must be false because drawn_by is page: a page that is drawn is read whole")
    pages = -(-(prompt_tokens + decode_tokens) // page_tokens)
    whole("layers times pages", layers * pages, 1, 2**31 - 1)
    unit_tokens = page_tokens if drawn_by == "page" else 1
    units = pages * (page_tokens // unit_tokens)  # in the last page there may be tokens that never exist
    source = reader(rng, layers, units, sparsity, unit_tokens, model or DriftModel())
    blocks: list[BlockArray] = []
    tokens_read: list[BlockArray] = []
    counts = np.empty((decode_tokens, layers), np.int64)
    for j in range(decode_tokens):
        flags = source.read(-(-(prompt_tokens + j + 1) // unit_tokens))
        if unit_tokens < page_tokens:
            in_page = flags.reshape(layers, pages, page_tokens).sum(axis=2, dtype=np.int32)
            flags = in_page > 0
            if partial_reads:
                tokens_read.append(in_page[flags])
        counts[j] = flags.sum(axis=1)
        blocks.append(np.flatnonzero(flags).astype(np.int32))
    size = page_tokens * float(kv_entry_bytes)
    first_token = np.arange(pages) * page_tokens
    born = np.where(first_token < prompt_tokens, 0, (first_token - prompt_tokens) * layers + np.arange(layers)[:, None])
    read_bytes = np.concatenate(tokens_read, dtype=np.float64) * float(kv_entry_bytes) if partial_reads else None
    return KvTiering(
        tiers=sized(tiers, layers * pages * size),
        block_bytes=size, birth_step=born.ravel(), fixed_read_bytes=float(fixed_read_bytes), inclusive=inclusive,
        reads=Reads(indptr=np.concatenate(([0], np.cumsum(counts))), block=np.concatenate(blocks), bytes=read_bytes),
    )  # fmt: skip


def trace_bytes(
    *, layers: int, prompt_tokens: int, decode_tokens: int, sparsity: float, kv_entry_bytes: float, page_tokens: int, fixed_read_bytes: float
) -> float:
    """Bytes that all steps of a `trace_model` drawn by pages read, fixed ones included, without drawing it. O(decode_tokens)."""
    pages = -(-(prompt_tokens + 1 + np.arange(decode_tokens)) // page_tokens)
    reads = int(read_counts(pages, sparsity).sum()) * layers
    return reads * float(page_tokens * kv_entry_bytes) + float(fixed_read_bytes) * layers * decode_tokens


# ---- A batch of sequences ------------------------------------------------------------------------------------------------------------------


def multi_request(
    rng: np.random.Generator,
    tiers: Tiers,
    *,
    arrival_step: IntArray,
    prompt_tokens: IntArray,
    output_tokens: IntArray,
    kv_bytes_per_token: float,
    page_tokens: int,
    sparsity: float,
    steps: int | None = None,
    fixed_read_bytes: float = 0.0,
    inclusive: bool = False,
    model: Model | None = None,
) -> KvTiering:
    """A continuous batch: a step computes one token, all layers, of every request that is there; a block is a page over all layers.

    Request r (arrays [request]) is there from `arrival_step` for `output_tokens` steps: its prompt's pages are born with it (free of charge at step
    0), the others with their first tokens, and all die when it ends. A step reads round((1 − sparsity) · pages) of each request's pages, as `model`
    says (default: `ScoreModel()`). `steps` cuts the trace short (default: until the last request ends). Raises `InputError`.
    Time O(pages of the requests, over their steps).
    """
    whole("page_tokens", page_tokens, 1, 10**6)
    real("kv_bytes_per_token", kv_bytes_per_token, 1.0, 1e12)
    if not len(arrival_step) == len(prompt_tokens) == len(output_tokens) > 0:
        lengths = f"{len(arrival_step)}, {len(prompt_tokens)} and {len(output_tokens)}"
        raise InputError(f"arrival_step, prompt_tokens and output_tokens must be of one length, at least 1, got {lengths}")
    end = int((arrival_step + output_tokens).max()) if steps is None else steps
    whole("steps", end, 1, 2**31 - 1)
    births: list[IntArray] = []
    deaths: list[IntArray] = []
    parts: list[BlockArray] = []
    part_step: list[int] = []
    known = 0
    for arrival, prompt, output in zip(arrival_step.tolist(), prompt_tokens.tolist(), output_tokens.tolist(), strict=True):
        whole("arrival_step", arrival, 0, 2**31 - 1)
        whole("prompt_tokens", prompt, 1, 10**8)
        whole("output_tokens", output, 1, 10**8)
        served = min(output, end - arrival)
        if served < 1:
            continue
        pages = -(-(prompt + served) // page_tokens)
        births.append(arrival + np.maximum(np.arange(pages) * page_tokens - prompt, 0))
        deaths.append(np.full(pages, arrival + output))
        source = reader(rng, 1, pages, sparsity, page_tokens, model or ScoreModel())
        for j in range(served):
            parts.append((known + np.flatnonzero(source.read(-(-(prompt + j + 1) // page_tokens))[0])).astype(np.int32))
            part_step.append(arrival + j)
        known += pages
    if not births:
        raise InputError(f"arrival_step must be below the {end} steps for one request at least, got {int(arrival_step.min())} as the least")
    birth, death = np.concatenate(births), np.concatenate(deaths)
    size = page_tokens * float(kv_bytes_per_token)
    alive = np.cumsum(np.bincount(birth, minlength=end) - np.bincount(np.minimum(death, end), minlength=end + 1)[:end])
    order = np.argsort(part_step, kind="stable")
    reads = np.bincount(part_step, [len(part) for part in parts], end).astype(np.int64)
    return KvTiering(
        tiers=sized(tiers, int(alive.max()) * size),
        block_bytes=size, birth_step=birth, death_step=death, fixed_read_bytes=float(fixed_read_bytes), inclusive=inclusive,
        reads=Reads(indptr=np.concatenate(([0], np.cumsum(reads))), block=np.concatenate([parts[k] for k in order.tolist()])),
    )  # fmt: skip


def poisson_arrivals(rng: np.random.Generator, per_step: float, steps: int) -> IntArray:
    """Arrival steps of a Poisson process, `per_step` requests a step on average, none at step 0."""
    real("arrivals_per_step", per_step, 0.0, 1e6)
    found: IntArray = np.repeat(np.arange(1, steps), rng.poisson(per_step, max(steps - 1, 0)))
    return found


def lognormal_lengths(rng: np.random.Generator, count: int, median: float, p90: float, most: int) -> IntArray:
    """Lengths in tokens, lognormal with this median and 90th percentile, at least 1 and at most `most`."""
    sigma = np.log(p90 / median) / 1.2815515655446004
    found: IntArray = np.clip(np.rint(rng.lognormal(np.log(median), sigma, count)), 1, most).astype(np.int64)
    return found


# ---- The plain class -------------------------------------------------------------------------------------------------------------------------


def drifting_reads(
    rng: np.random.Generator,
    blocks: int,
    steps: int,
    *,
    read_share: float,
    drift: float,
    capacity_share: float = 0.25,
    ratio: float = 8.0,
    tiers: Tiers | None = None,
    block_bytes: float = 1.0,
    fixed_read_bytes: float = 0.0,
    inclusive: bool = False,
) -> KvTiering:
    """Equal blocks, all there from step 0 on, of which each step reads round(read_share · blocks); a share `drift` of those is replaced each step by
    blocks that were not read.

    Without `tiers`: a fast one with room for `capacity_share` of the blocks, at `ratio` bytes a second, before one at 1 byte a second, so that times
    count blocks. Raises `InputError` for figures out of range. Time O(reads).
    """
    whole("blocks", blocks, 1, 2**31 - 1)
    whole("steps", steps, 1, 2**31 - 1)
    for name, value in (("read_share", read_share), ("drift", drift), ("capacity_share", capacity_share)):
        real(name, value, 0.0, 1.0)
    real("ratio", ratio, 1.0, 1e12)
    plain = (TierShare("fast", capacity_share, ratio, ratio), TierShare("slow", None, 1.0, 1.0))
    count, source = round(read_share * blocks), DriftingSet(rng, 1, blocks)
    rows = [np.sort(source.step(blocks, count, drift)[0]) for _ in range(steps)]
    return KvTiering(
        tiers=sized(tiers or plain, blocks * block_bytes),
        block_bytes=np.full(blocks, float(block_bytes)), fixed_read_bytes=float(fixed_read_bytes), inclusive=inclusive,
        reads=Reads(indptr=np.arange(steps + 1) * count, block=np.concatenate(rows)),
    )  # fmt: skip
