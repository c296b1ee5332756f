"""Named, seeded GPU-selection instances: the table of contents.

`gpu_selection_presets_pooled` holds the instances at one rate, `gpu_selection_presets_epochs` those whose rates change over time.
A preset is a function f(rng, **settings) that returns an instance's fields; its keyword-only parameters are settings that `--set` changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from headroom.instances import gpu_selection_presets_epochs, gpu_selection_presets_pooled, gpu_selection_presets_replicas
from headroom.instances.errors import InputError, shown
from headroom.instances.gpu_selection import GpuSelection
from headroom.instances.gpu_selection_presets_pooled import Builder
from headroom.instances.presets import build, origin

PRESETS: Mapping[str, Builder] = {
    **gpu_selection_presets_pooled.PRESETS,
    **gpu_selection_presets_epochs.PRESETS,
    **gpu_selection_presets_replicas.PRESETS,
}


def make(name: str, rng: np.random.Generator, overrides: Mapping[str, Any]) -> GpuSelection:
    """The preset `name`. `overrides` may hold `total_rate_per_s`, settings of the preset and any field of the instance's data.

    All rates are scaled to `total_rate_per_s` requests/s: the sum over the work items (prefill and decode of a bucket count once), over epochs
    the mean of it. Raises `InputError` for an unknown preset or field.
    """
    data, changes = build(PRESETS, GpuSelection, name, rng, overrides, common=("total_rate_per_s",))
    facts = data.pop("provenance", None)
    total = changes.pop("total_rate_per_s", None)
    if total is not None:
        data |= _scaled(data, total)
    return GpuSelection(**origin(name, overrides, facts), **(data | changes))


def _scaled(data: Mapping[str, Any], total: Any) -> dict[str, Any]:
    """The fields with rates, scaled so that all requests arrive at `total` a second."""
    if isinstance(total, bool) or not isinstance(total, (int, float)) or not 0 < total < 1e12:
        raise InputError(f"total_rate_per_s must be a positive number, got {shown(total)}")
    now = sum(item["rate_per_s"] for item in data["work"] if item.get("phase") != "decode")
    scaled: dict[str, Any] = {"work": [item | {"rate_per_s": item["rate_per_s"] * float(total) / now} for item in data["work"]]}
    if data.get("epochs") is not None:
        scaled["epochs"] = data["epochs"] | {"rate_per_s": np.asarray(data["epochs"]["rate_per_s"]) * (float(total) / now)}
    return scaled
