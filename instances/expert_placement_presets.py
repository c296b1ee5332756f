"""Named, seeded expert-placement instances.

**Toys** are small enough for the plain model and an enumeration. **Models** have the layers, experts and groups of real ones (`MODELS`) with loads
of `expert_placement_generators`: `sigma` 0.3 to 0.5 stands for mixed text, 0.8 for single tasks as measured there, 1 for a hard case. One slot in
eight is redundant where nothing else is said (DeepSeek-V3's own 32 of 256, arXiv 2412.19437). Every setting of `model_preset` works with
every model: `clusters` adds transitions, `steps` a load trace, `scenarios` more tasks, `layers` cuts the model short.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headroom.instances.errors import InputError, shown
from headroom.instances.expert_placement import ExpertPlacement
from headroom.instances.expert_placement_generators import (
    correlated_loads,
    drifted_loads,
    load_trace,
    lognormal_loads,
    placement_of,
    planted_transitions,
    whole,
)
from headroom.instances.presets import build, origin

Builder = Callable[..., dict[str, Any]]
"""f(rng, **settings) -> the fields of an instance, and "provenance". Keyword-only parameters are the preset's settings."""

EPLB_LOAD = [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]
"""The example of EPLB's README (github.com/deepseek-ai/EPLB): two layers of twelve experts."""
NODE_HOP = 0.11
"""What a hop inside a node costs when one to another node costs 1: 50 GB/s of a 400G NIC over 450 GB/s of NVLink a direction (H100)."""


@dataclass(frozen=True)
class Model:
    """A mixture-of-experts model: `moe_layers` of `model_layers` layers, from `first_moe_layer` on, with `experts` each, `top_k` to a token."""

    name: str
    model_layers: int
    first_moe_layer: int
    experts: int
    top_k: int
    n_groups: int | None = None

    @property
    def moe_layers(self) -> int:
        return self.model_layers - self.first_moe_layer


DEEPSEEK_V3 = Model("DeepSeek-V3", 61, 3, 256, 8, n_groups=8)
DEEPSEEK_V2_LITE = Model("DeepSeek-V2-Lite", 27, 1, 64, 6)
MIXTRAL_8X7B = Model("Mixtral-8x7B", 32, 0, 8, 2)
QWEN3_30B = Model("Qwen3-30B-A3B", 48, 0, 128, 8)
GPT_OSS_120B = Model("gpt-oss-120b", 36, 0, 128, 4)


def toy(rng: np.random.Generator) -> dict[str, Any]:
    """EPLB's own example: 16 slots on 8 devices in 2 nodes, 4 groups of 3 experts (which need not stay within a node unless `group_limited`)."""
    return {"load": [EPLB_LOAD], "devices": 8, "devices_per_node": 4, "slots_per_device": 2, "n_groups": 4}


def toy_traffic(rng: np.random.Generator) -> dict[str, Any]:
    """Three layers of four experts on two devices: balance against traffic."""
    load = lognormal_loads(rng, 3, 4, 0.5, 1000)
    transition = planted_transitions(rng, load, 2, 0.6, 0.3)
    return {"load": load[None], "transition": transition, "devices": 2, "slots_per_device": 2, "weights": {"traffic": 1.0}}


def toy_moves(rng: np.random.Generator) -> dict[str, Any]:
    """Two layers of six experts on three devices of three slots, where a random placement stands: each changed expert counts."""
    load = lognormal_loads(rng, 2, 6, 0.8, 1000)
    current = []
    for _ in range(2):
        pairs = rng.permutation(6).reshape(3, 2)  # every expert once, then one more on each device
        current.append([int(e) for own in pairs for e in (*own, rng.choice(np.setdiff1d(np.arange(6), own)))])
    return {"load": load[None], "devices": 3, "slots_per_device": 3, "current_slot_expert": current, "weights": {"moves": 0.5}}


def toy_robust(rng: np.random.Generator) -> dict[str, Any]:
    """Two layers of six experts on three devices of three slots, for the worst of three tasks."""
    return {"load": correlated_loads(rng, 3, 2, 6, 0.8, 0.15, 1000), "devices": 3, "slots_per_device": 3}


def toy_failover(rng: np.random.Generator) -> dict[str, Any]:
    """Two layers of six experts on three devices of five slots, each expert on at least two devices: any one device may fail."""
    return {"load": lognormal_loads(rng, 2, 6, 0.8, 1000)[None], "devices": 3, "slots_per_device": 5, "min_holders": 2}


def toy_trace(rng: np.random.Generator) -> dict[str, Any]:
    """Two layers of eight experts on four devices of three slots, a dozen steps of drifting loads."""
    trace = load_trace(rng, 12, 2, 8, 0.8, 0.15, 1000)
    return {"load": trace.sum(axis=0)[None], "load_trace": trace, "devices": 4, "slots_per_device": 3}


def toy_optimal_split(rng: np.random.Generator) -> dict[str, Any]:
    """Two layers of five experts on three devices of two slots, two tasks; the plan says how replicas share their expert's load."""
    return {"load": correlated_loads(rng, 2, 2, 5, 0.8, 0.15, 1000), "devices": 3, "slots_per_device": 2, "split": "optimal"}


def model_preset(
    model: Model,
    devices: int,
    slots: int,
    default_sigma: float,
    *,
    per_node: int | None = None,
    default_scenarios: int = 1,
    default_clusters: int | None = None,
    default_steps: int | None = None,
    default_tokens: int = 65_536,
    **fields: Any,
) -> Builder:
    """A builder of `model` on `devices` (nodes of `per_node`) with `slots` a layer. `fields` are further fields of the instance."""

    def build(
        rng: np.random.Generator,
        *,
        layers: int = model.moe_layers,
        sigma: float = default_sigma,
        tokens: int = default_tokens,
        scenarios: int = default_scenarios,
        correlation: float = 0.15,
        clusters: int | None = default_clusters,
        affinity: float = 0.35,
        noise: float = 0.5,
        steps: int | None = default_steps,
        tasks: int = 3,
        drift: float = 0.03,
        switch_probability: float = 0.05,
    ) -> dict[str, Any]:
        """`tokens` go through each layer of a scenario or step, `top_k` times each; otherwise as in `expert_placement_generators`."""
        whole("layers", layers, 1, model.moe_layers)
        whole("tokens", tokens, 1, 10**9)
        size = (layers, model.experts)
        data: dict[str, Any] = {
            "devices": devices,
            "devices_per_node": per_node,
            "slots_per_device": slots // devices,
            "n_groups": model.n_groups,
            "model_layers": model.first_moe_layer + layers,
            "moe_layer_ids": tuple(range(model.first_moe_layer, model.first_moe_layer + layers)),
        }
        settings: dict[str, Any] = {"layers": layers, "sigma": sigma, "tokens": tokens, "scenarios": scenarios}
        if steps is None:
            data["load"] = correlated_loads(rng, scenarios, *size, sigma, correlation, tokens * model.top_k)
            settings |= {"correlation": correlation} if scenarios > 1 else {}
        else:
            if scenarios != 1:
                raise InputError(f"scenarios must be 1 because steps are given, got {shown(scenarios)}")
            each = tokens * model.top_k
            trace = load_trace(
                rng, steps, *size, sigma, correlation, each, tasks=tasks, drift=drift, switch_probability=switch_probability
            )  # fmt: skip
            data |= {"load_trace": trace, "load": trace.sum(axis=0)[None]}
            settings |= {
                "steps": steps, "correlation": correlation, "tasks": tasks, "drift": drift, "switch_probability": switch_probability
            }  # fmt: skip
        if clusters is not None and layers > 1:
            data["transition"] = planted_transitions(rng, data["load"], clusters, affinity, noise)
            settings |= {"clusters": clusters, "affinity": affinity, "noise": noise}
        return data | fields | {"provenance": {"model": model.name, "top_k": model.top_k, "settings": settings}}

    return build


def replan_preset(model: Model, devices: int, slots: int, default_sigma: float, **fields: Any) -> Builder:
    """A builder of `model` with the placement that stands: EPLB's for last week's loads, which have drifted since."""

    def build(
        rng: np.random.Generator, *, layers: int = model.moe_layers, sigma: float = default_sigma, tokens: int = 65_536, drift: float = 0.3
    ) -> dict[str, Any]:
        """As in `model_preset`; log loads have gone `drift` standard deviations further since the placement was made."""
        data = model_preset(model, devices, slots, sigma, **fields)(rng, layers=layers, tokens=tokens)
        placed = placement_of(data["load"][0], devices, slots // devices)
        data["provenance"]["settings"]["drift"] = drift
        return data | {"load": drifted_loads(rng, data["load"][0], drift)[None], "current_slot_expert": placed}

    return build


PRESETS: Mapping[str, Builder] = {
    "toy": toy,
    "toy-traffic": toy_traffic,
    "toy-moves": toy_moves,
    "toy-robust": toy_robust,
    "toy-optimal-split": toy_optimal_split,
    "toy-failover": toy_failover,
    "toy-trace": toy_trace,
    "deepseek-v3-ep8": model_preset(DEEPSEEK_V3, 8, 288, 1.0, per_node=8),
    "deepseek-v3-ep16": model_preset(DEEPSEEK_V3, 16, 288, 1.0, per_node=8),
    "deepseek-v3-ep32": model_preset(DEEPSEEK_V3, 32, 288, 1.0, per_node=8),
    "deepseek-v3-ep64": model_preset(DEEPSEEK_V3, 64, 320, 1.0, per_node=8),
    "deepseek-v3-ep32-grouped": model_preset(DEEPSEEK_V3, 32, 288, 1.0, per_node=8, group_limited=True),
    "deepseek-v3-full-ep32": model_preset(
        DEEPSEEK_V3, 32, 288, 1.0, per_node=8, default_clusters=32,
        hop_cost={"same_node": NODE_HOP, "other_node": 1.0}, weights={"balance": 1.0, "traffic": 1.0},
    ),
    "mixtral-8x7b-4gpu": model_preset(MIXTRAL_8X7B, 4, 8, 0.3, default_clusters=4, weights={"balance": 0.0, "traffic": 1.0}),
    "qwen3-30b-ep8": model_preset(QWEN3_30B, 8, 144, 0.5, per_node=8),
    "gpt-oss-120b-ep8": model_preset(GPT_OSS_120B, 8, 144, 0.5, per_node=8),
    "dsv2-lite-ep8": model_preset(DEEPSEEK_V2_LITE, 8, 72, 0.8),
    "dsv2-lite-robust-ep8": model_preset(DEEPSEEK_V2_LITE, 8, 72, 0.8, default_scenarios=4),
    "dsv2-lite-robust-ep32": model_preset(DEEPSEEK_V2_LITE, 32, 96, 0.8, per_node=8, default_scenarios=4),
    "dsv2-lite-failover-ep8": model_preset(DEEPSEEK_V2_LITE, 8, 144, 0.8, min_holders=2),
    "dsv2-lite-affinity-ep4": model_preset(DEEPSEEK_V2_LITE, 4, 64, 0.8, default_clusters=16, weights={"balance": 0.0, "traffic": 1.0}),
    "dsv2-lite-replan-ep8": replan_preset(DEEPSEEK_V2_LITE, 8, 72, 0.8),
    "deepseek-v3-replan-ep32": replan_preset(DEEPSEEK_V3, 32, 288, 1.0, per_node=8),
    "dsv2-lite-trace-ep8": model_preset(DEEPSEEK_V2_LITE, 8, 72, 0.8, default_steps=200, default_tokens=4096),
}  # fmt: skip


def make(name: str, rng: np.random.Generator, overrides: Mapping[str, Any]) -> ExpertPlacement:
    """The preset `name`. `overrides` may hold settings of the preset and any field of the instance's data.

    Raises `InputError` for an unknown preset or field, and for what the instance does not admit.
    """
    data, changes = build(PRESETS, ExpertPlacement, name, rng, overrides)
    return ExpertPlacement(**origin(name, overrides, data.pop("provenance", None)), **(data | changes))
