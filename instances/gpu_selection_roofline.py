"""Throughputs of replica types from a roofline: what a preset uses where no measurement is at hand.

One replica is `gpus` GPUs under tensor parallelism. With p prompt and o output tokens, b requests in the batch and c = b (p + o/2) tokens of
context (averaged over a request's life),

    prefill   seconds a request   (2 N p + A p²) / (e k F)                     N active parameters, A attention FLOP for each p², F peak FLOP/s
    step      seconds             max((W(b) + K c) / (f k B), 2 N b / (e k F)) + 4 ms     W bytes of weights read, K bytes of KV a token, B bytes/s
    decode    seconds a request   o step / b

with e = 0.45 and f = 0.6 of the peak, k = gpus · 0.9^log2(gpus). b is the largest of at most 256 whose context of the bucket's longest requests
fits beside the weights in 90 % of the memory and whose step takes at most `tpot_s` there; a type whose prefill of the longest prompt takes more
than `ttft_s`, or that holds not even one such request, cannot serve the bucket. Times are those of the bucket's mean request. For a mixture of
experts W(b) counts the experts that b tokens touch when each picks its k uniformly.

These numbers have the shape of measurements, not their values. Prefill efficiency is near Splitwise's measurements of a 70B model on H100 (0.47,
0.36, 0.27 of the peak at TP 2, 4, 8; here 0.41, 0.36, 0.33) and below those on A100 (0.67, 0.57, 0.42); steps are faster than the 2023 software
of that table. Ignored: queueing, interference of prefill with decode, shared prefixes, transfers between phases, network between nodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headroom.instances.catalogue import Catalogue
from headroom.instances.errors import InputError, shown

FloatArray = npt.NDArray[np.float64]
PREFILL_SHARE, BANDWIDTH_SHARE, MEMORY_SHARE = 0.45, 0.6, 0.9
DOUBLING_SHARE = 0.9
STEP_OVERHEAD_S = 0.004
MOST_BATCH = 256

# Dense bf16 tensor TFLOP/s by NVIDIA's data sheets (the figures there with sparsity are twice that).
BF16_TFLOPS = {"L4": 121.0, "A10G": 70.0, "A100-80GB": 312.0, "H100": 989.0, "H200": 989.0}


@dataclass(frozen=True)
class ServedModel:
    """A model as the roofline sees it. `attention_flop` is for each squared prompt token (causal); `expert_bytes` of the weights are experts."""

    weights_bytes: float
    kv_bytes_per_token: float
    active_parameters: float
    attention_flop: float
    expert_bytes: float = 0.0
    experts: int = 1
    top_k: int = 1

    def bytes_read(self, batch: FloatArray) -> FloatArray:
        """Bytes of weights that a decode step of `batch` requests reads."""
        untouched = (1 - self.top_k / self.experts) ** batch
        read: FloatArray = self.weights_bytes - self.expert_bytes * untouched
        return read


MODELS: dict[str, ServedModel] = {
    # 2 layers · hidden FLOP for each pair of tokens: 2 · 32 · 4096 and 2 · 80 · 8192 (model cards).
    "Llama-3-8B": ServedModel(16e9, 131_072, 8e9, 2 * 32 * 4096),
    "Llama-3-70B": ServedModel(140e9, 327_680, 70e9, 2 * 80 * 8192),
    # arXiv 2412.19437: 671e9 parameters in FP8, 37e9 active, 58 MoE layers of 256 experts of 3 · 7168 · 2048, top 8; attention of 128 heads,
    # 192 dimensions for scores and 128 for values. Arithmetic is counted at the bf16 peak, not at FP8's: conservative.
    "DeepSeek-R1": ServedModel(671e9, 70_272, 37e9, 61 * 128 * (192 + 128), 58 * 256 * 3 * 7168 * 2048.0, 256, 8),
}

SETS: dict[tuple[str, str], tuple[tuple[str, int], ...]] = {
    # (year of the prices, model): (GPU, GPUs a replica). Types that hold the weights, of GPUs that have a dated price in the catalogue.
    ("2024", "Llama-3-8B"): (("L4", 1), ("A10G", 1), ("A100-80GB", 1), ("H100", 1)),
    ("2024", "Llama-3-70B"): (("A100-80GB", 2), ("A100-80GB", 4), ("A100-80GB", 8), ("H100", 2), ("H100", 4), ("H100", 8)),
    ("2026", "Llama-3-8B"): (("H100", 1), ("H200", 1)),
    ("2026", "Llama-3-70B"): (("H100", 2), ("H100", 4), ("H100", 8), ("H200", 2), ("H200", 4), ("H200", 8)),
    ("2026", "DeepSeek-R1"): (("H100", 16), ("H200", 8), ("H200", 16)),
}


@dataclass(frozen=True)
class ReplicaType:
    """`gpus` GPUs that serve one copy of the model; memory in bytes, bandwidth in bytes/s and FLOP/s of all of them."""

    name: str
    gpu: str
    gpus: int
    price_usd_per_h: float
    memory_bytes: float
    bytes_per_s: float
    flop_per_s: float
    price_source: str


def replica_types(year: str, model: str, catalogue: Catalogue, price: Mapping[str, float] | None = None) -> tuple[ReplicaType, ...]:
    """The replica types on offer in a year. `price` {GPU: USD/h of one} replaces the catalogue's.

    A price is the catalogue's entry of that year; where that is a range, its middle. Raises `InputError` for a model or a GPU that is not in the set.
    """
    if not isinstance(model, str) or (year, model) not in SETS:
        raise InputError(f"model must be one of {', '.join(name for when, name in SETS if when == year)}, got {shown(model)}")
    known = {gpu for gpu, _ in SETS[year, model]}
    if price is not None and not isinstance(price, Mapping):
        raise InputError(f"price must be an object {{GPU: USD an hour}}, got {shown(price)}")
    for name, value in (price or {}).items():
        if name not in known:
            raise InputError(f"price must name one of {', '.join(sorted(known))}, got {shown(name)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e6:
            raise InputError(f"price of {name} must be a number of USD an hour of at least 0, got {shown(value)}")
    return tuple(_replica(gpu, gpus, year, catalogue, price or {}) for gpu, gpus in SETS[year, model])


def _replica(gpu: str, gpus: int, year: str, catalogue: Catalogue, price: Mapping[str, float]) -> ReplicaType:
    spec = catalogue.gpus[gpu]
    usd, source = (float(price[gpu]), "given") if gpu in price else _dated_price(gpu, year, catalogue)
    assert spec.memory_tb_per_s is not None
    scale = gpus * DOUBLING_SHARE ** math.log2(gpus)
    return ReplicaType(
        name=gpu if gpus == 1 else f"{gpu}-TP{gpus}",
        gpu=gpu,
        gpus=gpus,
        price_usd_per_h=round(usd * gpus, 9),
        memory_bytes=spec.memory_bytes * gpus,
        bytes_per_s=spec.memory_tb_per_s * 1e12 * scale,
        flop_per_s=BF16_TFLOPS[gpu] * 1e12 * scale,
        price_source=source,
    )


def _dated_price(gpu: str, year: str, catalogue: Catalogue) -> tuple[float, str]:
    for entry in catalogue.gpus[gpu].prices:
        if entry.date.startswith(year):
            if entry.usd_per_h is not None:
                return entry.usd_per_h, f"{entry.source}, {entry.date}"
            assert entry.usd_per_h_range is not None
            low, high = entry.usd_per_h_range
            return (low + high) / 2, f"middle of {low:g} to {high:g}: {entry.source}, {entry.date}"
    raise InputError(f"{gpu} has no price of {year} in the catalogue")


@dataclass(frozen=True)
class Sizes:
    """Request sizes of N buckets in tokens: means [N], and the longest [N] that the limits hold for."""

    mean_prompt: FloatArray
    mean_output: FloatArray
    most_prompt: FloatArray
    most_output: FloatArray


def phase_seconds(replica: ReplicaType, model: ServedModel, sizes: Sizes, ttft_s: float, tpot_s: float) -> tuple[FloatArray, FloatArray]:
    """Seconds of the replica's time that a request of each bucket takes to prefill and to decode [N]; NaN where it cannot (see the module)."""
    compute = PREFILL_SHARE * replica.flop_per_s

    def prefill(tokens: FloatArray) -> FloatArray:
        return (2 * model.active_parameters * tokens + model.attention_flop * tokens**2) / compute

    def step(batch: FloatArray, context: FloatArray) -> FloatArray:
        memory = (model.bytes_read(batch) + model.kv_bytes_per_token * batch * context) / (BANDWIDTH_SHARE * replica.bytes_per_s)
        return np.maximum(memory, 2 * model.active_parameters * batch / compute) + STEP_OVERHEAD_S

    kv_tokens = (MEMORY_SHARE * replica.memory_bytes - model.weights_bytes) / model.kv_bytes_per_token
    fits = np.minimum(np.floor(kv_tokens / (sizes.most_prompt + sizes.most_output)), MOST_BATCH)
    tried = np.arange(1.0, MOST_BATCH + 1)[:, None]
    longest = sizes.most_prompt + sizes.most_output
    # A step takes longer the larger the batch, so the batches within the limit are the first few.
    batch = np.minimum((step(tried, longest) <= tpot_s).sum(axis=0), fits)
    decode = sizes.mean_output * step(np.maximum(batch, 1.0), sizes.mean_prompt + sizes.mean_output / 2) / np.maximum(batch, 1.0)
    able = prefill(sizes.most_prompt) <= ttft_s
    held = kv_tokens >= sizes.most_prompt
    return np.where(able & held, prefill(sizes.mean_prompt), np.nan), np.where(batch >= 1, decode, np.nan)
