"""Named, seeded GPU-selection instances.

Request sizes are lognormal with the published quantiles of the Azure 2023 chat trace (prompt p50 1020, p90 2735; output p50 129, p90 424; Patel et
al., Splitwise, ISCA 2024) cut into buckets, and every bucket's share is jittered. Throughputs come from a roofline of an 8-billion-parameter
model in bf16 (16e9 B of weights, 131,072 B of KV cache a token): prefill at 45 % of the peak of compute, decode at 60 % of memory bandwidth with
as many sequences as memory holds (at most 256). They have the shape of Mélange's profiles (arXiv 2404.14527), not their numbers: small GPUs win on
small requests, large ones on large, and some requests do not fit at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.instances.errors import InputError, shown
from headroom.instances.gpu_selection import GpuSelection

FloatArray = npt.NDArray[np.float64]

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


def make(name: str, rng: np.random.Generator, overrides: Mapping[str, Any]) -> GpuSelection:
    """The preset `name`. `overrides` may hold `total_rate_per_s` (all rates are scaled to it) and any field of the instance's data.

    Raises `InputError` for an unknown preset or field.
    """
    if name not in PRESETS:
        raise InputError(f"preset {shown(name)} is unknown; expected one of {', '.join(PRESETS)}")
    data = PRESETS[name](rng)
    changes = dict(overrides)
    total = changes.pop("total_rate_per_s", None)
    known = set(GpuSelection.model_fields) - {"name", "provenance"}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise InputError(f"field {shown(unknown[0])} is unknown; expected total_rate_per_s or one of {', '.join(sorted(known))}")
    if total is not None:
        if isinstance(total, bool) or not isinstance(total, (int, float)) or not 0 < total < 1e12:
            raise InputError(f"total_rate_per_s must be a positive number, got {shown(total)}")
        now = sum(item["rate_per_s"] for item in data["work"])
        data["work"] = [item | {"rate_per_s": item["rate_per_s"] * float(total) / now} for item in data["work"]]
    return GpuSelection(name=name, provenance={"preset": name, "overrides": dict(overrides)}, **(data | changes))


def toy(rng: np.random.Generator) -> dict[str, Any]:
    """Two types and four buckets whose optimum is known by hand: 6.70 USD/h at slices 1, 4.68 with continuous shares."""
    shares = (0.2, 0.1, 0.5, 0.2)
    return {
        "work": [{"name": f"bucket{i}", "rate_per_s": 30 * share} for i, share in enumerate(shares)],
        "gpus": [{"name": "A10G", "price_usd_per_h": 1.01}, {"name": "A100-80GB", "price_usd_per_h": 3.67}],
        "throughput_per_s": [[2, 1, 5, 2], [20, 20, 40, 20]],
        "slices": 1,
    }


def _melange(prompts: int, outputs: int) -> Callable[[np.random.Generator], dict[str, Any]]:
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


PRESETS: Mapping[str, Callable[[np.random.Generator], dict[str, Any]]] = {
    "toy": toy,
    "melange-4gpu-6x6": _melange(6, 6),
    "melange-4gpu-10x6": _melange(10, 6),
    "capped-20x1000": capped,
}
