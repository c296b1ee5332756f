"""GPU-selection presets with whole replicas: the chat-like mixes of `melange-4gpu-…`, every slice of a bucket onto one replica.

Slices are chosen for the rates: as few of each bucket as it takes for one slice to keep at most `largest_slice` of a replica busy, on every type
that can serve the bucket. Another `total_rate_per_s` therefore gives other slices; `slices` overrides them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from headroom.instances.errors import InputError, shown
from headroom.instances.gpu_selection_presets_pooled import PRESETS as POOLED
from headroom.instances.gpu_selection_presets_pooled import Builder

ROUNDING = 1 - 1e-9
"""A slice is kept this much below the limit, so that rounding cannot put it above."""


def _replicas(pooled: str, rate_per_s: float) -> Builder:
    def build(rng: np.random.Generator, *, total_rate_per_s: float = rate_per_s, largest_slice: float = 1.0) -> dict[str, Any]:
        _check("total_rate_per_s", total_rate_per_s, 1e12)
        _check("largest_slice", largest_slice, 1.0)
        data = POOLED[pooled](rng)
        now = math.fsum(item["rate_per_s"] for item in data["work"])
        data["work"] = [item | {"rate_per_s": item["rate_per_s"] * float(total_rate_per_s) / now} for item in data["work"]]
        table = np.array([[np.nan if q is None else q for q in row] for row in data["throughput_per_s"]])
        load = np.array([item["rate_per_s"] for item in data["work"]]) / table
        busiest = np.nanmax(load, axis=0) / (largest_slice * ROUNDING)
        slices = np.maximum(np.ceil(busiest), 1.0)
        if slices.max() > 1e6:
            raise InputError(f"total_rate_per_s must leave every bucket at most 1000000 slices, got {shown(total_rate_per_s)}")
        return data | {"packing": "per_replica", "slices": [int(k) for k in slices]}

    return build


def toy(rng: np.random.Generator) -> dict[str, Any]:
    """The toy, cut so finely that every slice fits either type."""
    return POOLED["toy"](rng) | {"packing": "per_replica", "slices": [6, 6, 6, 6]}


def _check(field: str, value: Any, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
        raise InputError(f"{field} must be a number in (0, {most:g}], got {shown(value)}")


PRESETS: Mapping[str, Builder] = {
    "replicas-toy": toy,
    "replicas-6x6": _replicas("melange-4gpu-6x6", 64.0),
    "replicas-10x6": _replicas("melange-4gpu-10x6", 64.0),
}
