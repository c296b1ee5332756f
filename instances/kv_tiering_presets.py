"""Named, seeded KV-tiering instances.

**Toys** are small enough for the plain model and an enumeration. **Models** have the sizes of real ones on real memories, see `MEMORIES`. **drift-…**
are N equal blocks with a drifting read set, the plain class on which methods are compared.

`gh200-llama3.1-8b` is the system of Fang et al. (arXiv 2508.13231), scaled down: `scale` is a share of its tokens and of the weights a step reads, so
that weights weigh as much beside the KV cache at every scale, and the root of it is the share of its layers. `--set scale=1` is the whole of it.
Constants of the paper: layers, tokens, bytes, bandwidths, sparsities. Not found there and chosen here: the room for the KV cache (a quarter of it at
the end), the newest 256 tokens that are always read, and the share of the rest that is replaced each token, 5 % ("low randomness") or 30 % ("high").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from headroom.instances.errors import InputError, shown
from headroom.instances.kv_tiering import KvTiering, Reads, Tier
from headroom.instances.kv_tiering_generators import (
    DriftModel,
    ScoreModel,
    TierShare,
    drifting_reads,
    lognormal_lengths,
    multi_request,
    poisson_arrivals,
    trace_model,
)
from headroom.instances.presets import build, origin, real, whole

Builder = Callable[..., KvTiering]
"""f(rng, **settings) -> an instance. Keyword-only parameters are the preset's settings."""

LAYERS, PROMPT_TOKENS, DECODE_TOKENS = 32, 31_298, 10_240
WEIGHT_BYTES, KV_ENTRY_BYTES = 162_889_728, 16_384
"""LLaMA-3.1-8B in Fang et al., arXiv 2508.13231: weights that a step (one layer of one token) reads, KV bytes of one token and layer."""
RECENT_TOKENS = 256

MEMORIES: Mapping[str, tuple[float, float]] = {
    "gh200-hbm": (4.9e12, 4.9e12),
    "gh200-lpddr": (4.5e11, 4.5e11),
    "h100-hbm": (3.35e12, 3.35e12),
    "pcie5-dram": (6.4e10, 6.4e10),
    "cxl": (2.4e10, 2.4e10),
    "nvme": (1.4e10, 7e9),
}
"""Bytes a second of reading and writing. GH200: Fang et al. (HBM3e; LPDDR5X through NVLink-C2C, a direction). H100: NVIDIA's data sheet, HBM3 (SXM)
and PCIe 5.0 x16 a direction. CXL: an x8 device, which measures 20 to 26 GB/s. NVMe: data sheets of PCIe 5.0 x4 drives, sequential."""
H100_KV_BYTES = 56e9
"""Room for the KV cache on an 80 GB H100: nine tenths of it less 16 GB of weights (Llama-3-8B in bf16)."""
LLAMA3_8B_WEIGHTS, LLAMA3_8B_KV_PER_TOKEN = 16e9, 131_072


def share(memory: str, part: float | None) -> TierShare:
    """A memory with room for this part of the most bytes alive at once (None: unbounded)."""
    return TierShare(memory, part, *MEMORIES[memory])


def natural(name: str, capacity_bytes: float | None, read: float, write: float | None = None) -> Tier:
    """A tier of a toy: bytes are blocks or parts of one, times small numbers."""
    return Tier(name=name, capacity_bytes=capacity_bytes, read_bytes_per_s=read, write_bytes_per_s=read if write is None else write)


def reads_of(rows: list[list[int]], sizes: list[list[float]] | None = None) -> Reads:
    """The reads of each step, and how many bytes of each (None: whole blocks)."""
    indptr = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    part = None if sizes is None else np.array([size for row in sizes for size in row])
    return Reads(indptr=indptr, block=np.array([block for row in rows for block in row], np.int32), bytes=part)


def some(rng: np.random.Generator, alive: list[int], count: int) -> list[int]:
    return sorted(int(block) for block in rng.choice(alive, min(count, len(alive)), replace=False))


def toy(rng: np.random.Generator) -> KvTiering:
    """Four blocks of 4 bytes, all there at first; the fast tier (4 bytes/s) has room for two of them, the slow one reads 1 byte/s. A block thus takes
    1 s from the fast tier and 4 s from the slow one, and so does a write."""
    rows = [[0, 1], [0, 1], [0, 2], [2, 3], [2, 3], [2, 3]]
    return KvTiering(tiers=(natural("fast", 8.0, 4.0), natural("slow", None, 1.0)), block_bytes=np.full(4, 4.0), reads=reads_of(rows))


def toy_inclusive(rng: np.random.Generator) -> KvTiering:
    """Six blocks, two of them born on the way, ten steps; the slow tier keeps a copy of each, so that evictions are free."""
    birth = np.array([0, 0, 0, 0, 3, 6])
    rows = [some(rng, [int(i) for i in np.flatnonzero(birth <= t)], 3) for t in range(10)]
    tiers = (natural("fast", 2.0, 4.0), natural("slow", None, 1.0))
    return KvTiering(tiers=tiers, block_bytes=1.0, birth_step=birth, reads=reads_of(rows), inclusive=True)


def toy_three_tier(rng: np.random.Generator) -> KvTiering:
    """Seven blocks on three tiers, ten steps, with births and deaths, and weights read in every step."""
    birth, death = np.array([0, 0, 0, 1, 3, 4, 6]), np.array([10, 5, 10, 7, 10, 10, 10])
    rows = [some(rng, [int(i) for i in np.flatnonzero((birth <= t) & (t < death))], 2) for t in range(10)]
    tiers = (natural("hbm", 2.0, 16.0), natural("dram", 2.0, 4.0), natural("ssd", None, 2.0, 1.0))
    return KvTiering(tiers=tiers, block_bytes=1.0, birth_step=birth, death_step=death, reads=reads_of(rows), fixed_read_bytes=2.0)


def toy_bytes(rng: np.random.Generator) -> KvTiering:
    """Six blocks of 1 to 4 bytes, ten steps that read only parts of some blocks: a move moves the whole block."""
    size = np.concatenate(([4.0, 1.0], rng.integers(1, 5, 4).astype(np.float64)))
    rows = [some(rng, list(range(6)), 3) for _ in range(10)]
    parts = [[float(rng.integers(1, int(size[i]) + 1)) for i in row] for row in rows]
    return KvTiering(tiers=(natural("fast", 6.0, 4.0), natural("slow", None, 1.0)), block_bytes=size, reads=reads_of(rows, parts))


def drift_preset(default_drift: float, default_blocks: int = 4_000, default_steps: int = 500) -> Builder:
    """A builder of the plain class: equal blocks of one byte, a fast tier of 8 bytes/s before a slow one of 1 byte/s."""

    def build(
        rng: np.random.Generator,
        *,
        blocks: int = default_blocks,
        steps: int = default_steps,
        read_share: float = 0.1,
        drift: float = default_drift,
        capacity_share: float = 0.25,
        ratio: float = 8.0,
    ) -> KvTiering:
        """`drifting_reads`."""
        whole("blocks", blocks, 1, 10**8)
        whole("steps", steps, 1, 10**8)
        return drifting_reads(rng, blocks, steps, read_share=read_share, drift=drift, capacity_share=capacity_share, ratio=ratio)

    return build


def gh200_preset(default_scale: float, default_page_tokens: int, default_drift: float) -> Builder:
    """A builder of the paper's system at some scale; settings that are null follow from `scale`."""

    def build(
        rng: np.random.Generator,
        *,
        scale: float = default_scale,
        layers: int | None = None,
        prompt_tokens: int | None = None,
        decode_tokens: int | None = None,
        recent_tokens: int | None = None,
        page_tokens: int = default_page_tokens,
        sparsity: float = 0.85,
        drift: float = default_drift,
        capacity_share: float = 0.25,
        drawn_by: str = "page",
        partial_reads: bool = False,
    ) -> KvTiering:
        """`trace_model` with a `DriftModel`; `capacity_share`: HBM's room for KV over the KV bytes at the end."""
        real("scale", scale, 1e-4, 1.0)
        return trace_model(
            rng,
            [share("gh200-hbm", capacity_share), share("gh200-lpddr", None)],
            layers=max(round(LAYERS * scale**0.5), 1) if layers is None else layers,
            prompt_tokens=round(PROMPT_TOKENS * scale) if prompt_tokens is None else prompt_tokens,
            decode_tokens=round(DECODE_TOKENS * scale) if decode_tokens is None else decode_tokens,
            sparsity=sparsity,
            kv_entry_bytes=KV_ENTRY_BYTES,
            page_tokens=page_tokens,
            drawn_by=drawn_by,
            partial_reads=partial_reads,
            fixed_read_bytes=round(WEIGHT_BYTES * scale),
            model=DriftModel(drift=drift, recent_tokens=round(RECENT_TOKENS * scale) if recent_tokens is None else recent_tokens),
        )

    return build


def h100_pcie(
    rng: np.random.Generator,
    *,
    steps: int = 300,
    initial_requests: int = 80,
    arrivals_per_step: float = 0.25,
    prompt_median_tokens: int = 6_909,
    prompt_p90_tokens: int = 27_367,
    output_median_tokens: int = 350,
    output_p90_tokens: int = 597,
    page_tokens: int = 256,
    sparsity: float = 0.85,
    reads_by: str = "score",
    drift: float = 0.05,
) -> KvTiering:
    """A batch of long conversations with Llama-3-8B on an H100 with host memory behind PCIe. Lengths: medians and 90th percentiles of Mooncake's
    conversations (arXiv 2407.00079); those that are under way at first have a part of their answer behind them."""
    if reads_by not in ("score", "drift"):
        raise InputError(f"reads_by must be score or drift, got {shown(reads_by)}")
    whole("initial_requests", initial_requests, 1, 10**6)
    whole("steps", steps, 1, 10**7)
    for name, median, p90 in (("prompt", prompt_median_tokens, prompt_p90_tokens), ("output", output_median_tokens, output_p90_tokens)):
        whole(f"{name}_median_tokens", median, 1, 10**7)
        whole(f"{name}_p90_tokens", p90, median, 10**7)
    arrival = np.concatenate((np.zeros(initial_requests, np.int64), poisson_arrivals(rng, arrivals_per_step, steps)))
    prompt = lognormal_lengths(rng, len(arrival), prompt_median_tokens, prompt_p90_tokens, 131_072)
    output = lognormal_lengths(rng, len(arrival), output_median_tokens, output_p90_tokens, 8_192)
    done = (output[:initial_requests] * rng.random(initial_requests)).astype(np.int64)
    prompt[:initial_requests] += done
    output[:initial_requests] -= done
    hbm = MEMORIES["h100-hbm"]
    return multi_request(
        rng,
        [Tier(name="h100-hbm", capacity_bytes=H100_KV_BYTES, read_bytes_per_s=hbm[0], write_bytes_per_s=hbm[1]), share("pcie5-dram", None)],
        arrival_step=arrival,
        prompt_tokens=prompt,
        output_tokens=output,
        kv_bytes_per_token=LLAMA3_8B_KV_PER_TOKEN,
        page_tokens=page_tokens,
        sparsity=sparsity,
        steps=steps,
        fixed_read_bytes=LLAMA3_8B_WEIGHTS,
        model=ScoreModel(recent_tokens=page_tokens) if reads_by == "score" else DriftModel(drift=drift, recent_tokens=page_tokens),
    )


def three_tier_ssd(
    rng: np.random.Generator,
    *,
    blocks: int = 2_000,
    steps: int = 300,
    read_share: float = 0.1,
    drift: float = 0.05,
    hbm_share: float = 0.2,
    dram_share: float = 0.4,
) -> KvTiering:
    """128-token blocks of Llama-3-8B on an H100, its host and an SSD that keeps a copy of everything."""
    whole("blocks", blocks, 1, 10**8)
    tiers = [share("h100-hbm", hbm_share), share("pcie5-dram", dram_share), share("nvme", None)]
    return drifting_reads(
        rng, blocks, steps, read_share=read_share, drift=drift, tiers=tiers, block_bytes=128 * LLAMA3_8B_KV_PER_TOKEN,
        fixed_read_bytes=LLAMA3_8B_WEIGHTS, inclusive=True,
    )  # fmt: skip


def four_tier_cxl(
    rng: np.random.Generator,
    *,
    layers: int = 4,
    prompt_tokens: int = 2_048,
    decode_tokens: int = 64,
    page_tokens: int = 32,
    sparsity: float = 0.8,
    hbm_share: float = 0.15,
    dram_share: float = 0.25,
    cxl_share: float = 0.3,
) -> KvTiering:
    """A sequence with sinks, a recency window and heavy hitters, on HBM, DRAM, CXL memory and an SSD."""
    tiers = [share("h100-hbm", hbm_share), share("pcie5-dram", dram_share), share("cxl", cxl_share), share("nvme", None)]
    return trace_model(
        rng, tiers, layers=layers, prompt_tokens=prompt_tokens, decode_tokens=decode_tokens, sparsity=sparsity, kv_entry_bytes=4_096,
        page_tokens=page_tokens, model=ScoreModel(recent_tokens=2 * page_tokens),
    )  # fmt: skip


PRESETS: Mapping[str, Builder] = {
    "toy": toy,
    "toy-inclusive": toy_inclusive,
    "toy-three-tier": toy_three_tier,
    "toy-bytes": toy_bytes,
    "small-drift": drift_preset(0.1, 150, 40),
    "gh200-llama3.1-8b": gh200_preset(1 / 16, 16, 0.05),
    "gh200-llama3.1-8b-scaled": gh200_preset(1 / 64, 4, 0.05),
    "gh200-llama3.1-8b-scaled-random": gh200_preset(1 / 64, 4, 0.3),
    "h100-pcie": h100_pcie,
    "three-tier-ssd": three_tier_ssd,
    "four-tier-cxl": four_tier_cxl,
    "drift-0.02": drift_preset(0.02),
    "drift-0.1": drift_preset(0.1),
    "drift-0.5": drift_preset(0.5),
    "drift-lp": drift_preset(0.1, 500, 100),
}


def make(name: str, rng: np.random.Generator, overrides: Mapping[str, Any]) -> KvTiering:
    """The preset `name`. `overrides` may hold settings of the preset and any field of the instance's data.

    Raises `InputError` for an unknown preset or field, and for what the instance does not admit.
    """
    made, changes = build(PRESETS, KvTiering, name, rng, overrides)
    # A trace may be huge: the name and origin are ours and need no second check of it.
    return made.replace(**origin(name, overrides), **changes) if changes else made.model_copy(update=origin(name, overrides))
