"""Pooled GPU-selection presets: the toy, the chat-like mixes on Mélange's GPUs, a large capped one, and the calibrated mixes.

**melange-…**: prompt and output sizes are lognormal with the published median and 90 % quantile of the Azure 2023 chat trace (prompt p50 1020, p90
2735; output p50 129, p90 424; Patel et al., Splitwise, ISCA 2024), cut into buckets, and every bucket's share is jittered. Throughputs come from a
roofline of an 8-billion-parameter model in bf16 (16e9 B of weights, 131,072 B of KV cache a token): prefill at 45 % of the peak of compute, decode
at 60 % of memory bandwidth with as many sequences as memory holds (at most 256). They have the shape of Mélange's profiles (arXiv 2404.14527), not
their numbers: small GPUs win on small requests, large ones on large, and some requests do not fit at all.

**Calibrated** (`calibrated`): the mixes of `gpu_selection_mixes` on the replica types of `gpu_selection_roofline`, at dated prices of the catalogue.
A name ends in the year of its prices: 2024 (Mélange: L4 0.70, A10G 1.01, A100-80GB 3.67, H100 7.516 USD/h) or 2026 (May 2026: H100 2.95, H200 4.75,
the middle of its range 2.50 to 7.00; other GPUs have no sourced price of that date). In every preset each bucket has a type that serves it: long
prompts (Mooncake, ServeGen's reasoning mix) run on replicas of several GPUs that serve a 70B model or DeepSeek-R1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.instances.catalogue import load_catalogue
from headroom.instances.errors import InputError, shown, span
from headroom.instances.gpu_selection_mixes import MIXES, Axis, Mix, buckets, joint_shares, work_items
from headroom.instances.gpu_selection_roofline import MODELS, ReplicaType, Sizes, phase_seconds, replica_types

FloatArray = npt.NDArray[np.float64]
Builder = Callable[..., dict[str, Any]]
"""f(rng, **settings) -> the fields of an instance, and "provenance". Keyword-only parameters are the preset's settings."""

GPUS: tuple[tuple[str, float, float, float, float], ...] = (
    # name, USD/h (Mélange 2024), dense bf16 TFLOP/s, memory TB/s, memory GB
    ("L4", 0.70, 121.0, 0.30, 24.0),
    ("A10G", 1.01, 125.0, 0.60, 24.0),
    ("A100-80GB", 3.67, 312.0, 2.0, 80.0),
    ("H100", 7.516, 989.0, 3.35, 80.0),
)
WEIGHT_BYTES, KV_BYTES_PER_TOKEN, FLOP_PER_TOKEN = 16e9, 131_072.0, 16e9
PROMPT_EDGES, OUTPUT_EDGES = (25, 16_000), (25, 2_000)
Z90 = 1.2815515655446004
"""The 90 % quantile of the standard normal distribution."""
THROUGHPUT_JITTER = 0.05
MOST_BUCKETS = 64


def toy(rng: np.random.Generator) -> dict[str, Any]:
    """Two types and four buckets whose optimum is known by hand: 6.70 USD/h at slices 1, 4.68 with continuous shares."""
    shares = (0.2, 0.1, 0.5, 0.2)
    return {
        "work": [{"name": f"bucket{i}", "rate_per_s": 30 * share} for i, share in enumerate(shares)],
        "gpus": [{"name": "A10G", "price_usd_per_h": 1.01}, {"name": "A100-80GB", "price_usd_per_h": 3.67}],
        "throughput_per_s": [[2, 1, 5, 2], [20, 20, 40, 20]],
        "slices": 1,
    }


def _melange(prompts: int, outputs: int) -> Builder:
    def build(rng: np.random.Generator) -> dict[str, Any]:
        prompt_edges, output_edges = np.geomspace(*PROMPT_EDGES, prompts + 1), np.geomspace(*OUTPUT_EDGES, outputs + 1)
        prompt, output = np.sqrt(prompt_edges[1:] * prompt_edges[:-1]), np.sqrt(output_edges[1:] * output_edges[:-1])
        weight = _lognormal_weights(prompt, 1020, 2735)[:, None] * _lognormal_weights(output, 129, 424)[None, :]
        weight = weight * rng.lognormal(0.0, 0.3, weight.shape)
        rate = 64.0 * weight / weight.sum()
        size = np.array([(p, o) for p in prompt for o in output])
        work = []
        for a in range(prompts):
            for b in range(outputs):
                tokens = {"prompt_tokens": _range(prompt_edges, a), "output_tokens": _range(output_edges, b)}
                work.append({"name": f"p{tokens['prompt_tokens'][1]}_o{tokens['output_tokens'][1]}", "rate_per_s": float(rate[a, b]), **tokens})
        table = [_throughput(gpu, size) * rng.lognormal(0.0, 0.05, len(size)) for gpu in GPUS]
        return {
            "work": work,
            "gpus": [{"name": gpu[0], "price_usd_per_h": gpu[1]} for gpu in GPUS],
            "throughput_per_s": [[None if np.isnan(q) else float(q) for q in row] for row in table],
        }

    return build


def _range(edges: FloatArray, index: int) -> list[int]:
    """Whole tokens in the bucket, both ends included."""
    return [int(edges[index]) + 1 if index else 1, int(edges[index + 1])]


def _lognormal_weights(size: FloatArray, p50: float, p90: float) -> FloatArray:
    """Mass of equally wide (in log) buckets under the lognormal with these quantiles; never quite 0."""
    sigma = np.log(p90 / p50) / Z90
    weights: FloatArray = np.exp(-0.5 * (np.log(size / p50) / sigma) ** 2) + 1e-4
    return weights


def _throughput(gpu: tuple[str, float, float, float, float], size: FloatArray) -> FloatArray:
    """Requests/s of one replica for requests of (prompt, output) tokens [N][2]; NaN where not even one fits."""
    _, _, tflops, tb_per_s, gb = gpu
    prompt, output = size[:, 0], size[:, 1]
    kv_per_request = KV_BYTES_PER_TOKEN * (prompt + output)
    batch = np.minimum(np.floor((0.9 * gb * 1e9 - WEIGHT_BYTES) / kv_per_request), 256)
    step_s = (WEIGHT_BYTES + np.maximum(batch, 1) * KV_BYTES_PER_TOKEN * (prompt + output / 2)) / (0.6 * tb_per_s * 1e12) + 0.004
    seconds = prompt * FLOP_PER_TOKEN / (0.45 * tflops * 1e12) + output * step_s / np.maximum(batch, 1)
    return np.where(batch >= 1, 1 / seconds, np.nan)


def capped(rng: np.random.Generator) -> dict[str, Any]:
    """1,000 buckets on 20 types, seven in ten types capped near what they would serve in an even split: a large, hard instance."""
    items, gpus = 1000, 20
    rate = rng.lognormal(0.0, 1.0, items)
    rate *= 500 / rate.sum()
    power = np.sort(rng.lognormal(1.0, 0.8, gpus))
    price = np.round(power**0.9 * rng.lognormal(0.0, 0.15, gpus), 3)
    size = rng.lognormal(0.0, 0.8, items)
    throughput = power[:, None] / size[None, :] * rng.lognormal(0.0, 0.35, (gpus, items))
    throughput[rng.random((gpus, items)) < 0.15] = np.nan
    throughput[-1] = power[-1] / size  # the largest type serves everything and is never capped: always feasible
    even = float(np.nanmin(price[:, None] * rate / throughput, axis=0).sum()) / gpus
    caps = [max(1, int(rng.uniform(0.3, 1.5) * even / price[g])) if g < gpus - 1 and rng.random() < 0.7 else None for g in range(gpus)]
    return {
        "work": [{"name": f"bucket{i}", "rate_per_s": float(value)} for i, value in enumerate(rate)],
        "gpus": [{"name": f"type{g}", "price_usd_per_h": float(price[g]), "max_count": caps[g]} for g in range(gpus)],
        "throughput_per_s": [[None if np.isnan(q) else float(q) for q in row] for row in throughput],
    }


def calibrated(mix: str, year: str, served: str, rate_per_s: float, pools: Mapping[str, int] | None = None) -> Builder:
    """A builder of the mix on the year's replica types of a model, at a total rate.

    With `pools` {GPU: number of GPUs} prefill and decode of a bucket are two work items, of each type two variants serve one phase each
    (Splitwise, ISCA 2024), and the types of a GPU draw on its pool.
    """

    def build(
        rng: np.random.Generator,
        *,
        model: str = served,
        prompt_buckets: int = 6,
        output_buckets: int = 6,
        rank_correlation: float = MIXES[mix].rank_correlation,
        ttft_s: float = 30.0,
        tpot_s: float = 0.12,
        price: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Limits: TTFT 30 s as in Mooncake's evaluation (arXiv 2407.00079), TPOT 0.12 s, the looser one of Mélange (arXiv 2404.14527)."""
        number("rank_correlation", rank_correlation, -0.95, 0.95)
        number("ttft_s", ttft_s, 1e-6, 1e9)
        number("tpot_s", tpot_s, 1e-6, 1e9)
        prompt = buckets(MIXES[mix].prompt, whole("prompt_buckets", prompt_buckets, 4, MOST_BUCKETS))
        output = buckets(MIXES[mix].output, whole("output_buckets", output_buckets, 4, MOST_BUCKETS))
        types = replica_types(year, model, load_catalogue(), price)
        share = joint_shares(prompt, output, float(rank_correlation), rng)
        seconds = [phase_seconds(replica, MODELS[model], _sizes(prompt, output), float(ttft_s), float(tpot_s)) for replica in types]
        seconds = [(a * noise, b * noise) for (a, b), noise in zip(seconds, _jitter(rng, len(types), share.size), strict=True)]
        facts = {
            "mix": _mix_facts(MIXES[mix], float(rank_correlation)),
            "model": model,
            "prices_usd_per_gpu_h": {replica.gpu: f"{replica.price_usd_per_h / replica.gpus:g} ({replica.price_source})" for replica in types},
            "limits_s": {"ttft": float(ttft_s), "tpot": float(tpot_s)},
            "throughput": "roofline, see headroom.instances.gpu_selection_roofline; jittered by a lognormal factor of sigma 0.05",
        }
        rates = rate_per_s * share
        if pools is None:
            work, gpus, table = work_items(prompt, output, rates), [_type(replica) for replica in types], [1 / (a + b) for a, b in seconds]
        else:
            work, gpus, table = _split(work_items(prompt, output, rates, ("prefill", "decode")), types, seconds)
        data = {"work": work, "gpus": gpus, "throughput_per_s": [[None if np.isnan(q) else float(q) for q in row] for row in table]}
        if pools is not None:
            data["pools"] = [{"name": gpu, "max_gpus": stock} for gpu, stock in pools.items()]
        return data | {"provenance": facts}

    return build


def number(name: str, value: Any, least: float, most: float) -> float:
    """The value as a float. Raises `InputError` unless it is a number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise InputError(f"{name} must be a number {span(least, most)}, got {shown(value)}")
    return float(value)


def whole(name: str, value: Any, least: int, most: int) -> int:
    """The value. Raises `InputError` unless it is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{name} must be a whole number from {least} to {most}, got {shown(value)}")
    return value


def _sizes(prompt: Axis, output: Axis) -> Sizes:
    """Sizes of all buckets, prompt by prompt."""
    grid = [np.meshgrid(p, o, indexing="ij") for p, o in ((prompt.mean, output.mean), (prompt.most, output.most))]
    return Sizes(*(np.asarray(axis, dtype=np.float64).ravel() for pair in grid for axis in pair))


def _jitter(rng: np.random.Generator, types: int, items: int) -> FloatArray:
    noise: FloatArray = rng.lognormal(0.0, THROUGHPUT_JITTER, (types, items))
    return noise


def _type(replica: ReplicaType, phase: str | None = None) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": replica.name, "price_usd_per_h": replica.price_usd_per_h, "gpus_per_replica": replica.gpus}
    return fields if phase is None else fields | {"name": f"{replica.name}-{phase}", "pool": replica.gpu}


def _split(
    work: list[dict[str, Any]], types: tuple[ReplicaType, ...], seconds: list[tuple[FloatArray, FloatArray]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[FloatArray]]:
    """Two variants of each type, one for the prefill items and one for the decode items."""
    gpus, table = [], []
    for replica, (prefill, decode) in zip(types, seconds, strict=True):
        nothing = np.full(len(prefill), np.nan)
        gpus += [_type(replica, "prefill"), _type(replica, "decode")]
        table += [np.concatenate([1 / prefill, nothing]), np.concatenate([nothing, 1 / decode])]
    return work, gpus, table


def _mix_facts(mix: Mix, rank_correlation: float) -> dict[str, Any]:
    lengths = {"prompt_p50_p90_p99": mix.prompt, "output_p50_p90_p99": mix.output}
    return {name: [item.p50, item.p90, item.p99] for name, item in lengths.items()} | {"rank_correlation": rank_correlation, "source": mix.source}


PRESETS: Mapping[str, Builder] = {
    "toy": toy,
    "melange-4gpu-6x6": _melange(6, 6),
    "melange-4gpu-10x6": _melange(10, 6),
    "capped-20x1000": capped,
    "azure-code-2024": calibrated("azure-code", "2024", "Llama-3-8B", 64.0),
    "azure-chat-2024": calibrated("azure-chat", "2024", "Llama-3-8B", 64.0),
    "mooncake-2024": calibrated("mooncake", "2024", "Llama-3-70B", 8.0),
    "servegen-m-large-2024": calibrated("servegen-m-large", "2024", "Llama-3-70B", 32.0),
    "azure-chat-2026": calibrated("azure-chat", "2026", "Llama-3-70B", 32.0),
    "mooncake-2026": calibrated("mooncake", "2026", "Llama-3-70B", 8.0),
    "servegen-m-large-2026": calibrated("servegen-m-large", "2026", "Llama-3-70B", 32.0),
    "servegen-r1-2026": calibrated("servegen-r1", "2026", "DeepSeek-R1", 8.0),
    "mooncake-split-2026": calibrated("mooncake", "2026", "Llama-3-70B", 8.0, pools={"H100": 48, "H200": 48}),
}
