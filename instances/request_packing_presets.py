"""Named, seeded request-packing instances.

**Toys** are small enough to be solved by hand. **Classes** are those of the literature (`request_packing_classes`); where the construction proves the
optimum, the provenance holds it. **Backlogs** have the published lengths of served traffic (`request_packing_generators`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from headroom.instances.presets import build, origin
from headroom.instances.request_packing import PrefillLevel, RequestPacking, Requests
from headroom.instances.request_packing_classes import cmax_uniform, hard28_like, triplets, uniform
from headroom.instances.request_packing_generators import adapter_batches, backlog, gsm8k_like, shared_prefixes

Builder = Callable[..., RequestPacking]
"""f(rng, **settings) -> an instance. Keyword-only parameters are the preset's settings."""


def toy(rng: np.random.Generator) -> RequestPacking:
    """Six requests of 400, 400 and four times 300 tokens into bins of 1,000. Best: 400 + 300 + 300 twice, 2 full bins. First fit decreasing puts the
    two of 400 together, then three of 300, and needs a third bin for the last."""
    prompt, output = np.array([250, 300, 100, 280, 200, 150]), np.array([150, 100, 200, 20, 100, 150])
    return RequestPacking(requests=Requests(prompt_tokens=prompt, output_tokens=output), objective="bins", capacity_tokens=1000)


def toy_makespan(rng: np.random.Generator) -> RequestPacking:
    """Three requests of 4 prompt tokens and 2, 2 and 4 of output through two slots; a prefill of 4 tokens takes 1 s, of 8 tokens 1.5 s; a decode step
    takes 1 s. Best 6.5 s: the long one and a short one first (1.5 s), 2 steps, the other short one (1 s), 2 steps. In order of arrival 8.5 s."""
    return RequestPacking(
        requests=Requests(prompt_tokens=np.array([4, 4, 4]), output_tokens=np.array([2, 2, 4])),
        objective="makespan",
        slots=2,
        decode_step_s=1.0,
        prefill_levels=(PrefillLevel(max_tokens=4, time_s=1.0), PrefillLevel(max_tokens=8, time_s=1.5)),
    )


def toy_groups(rng: np.random.Generator) -> RequestPacking:
    """Two prefixes of 400 and 200 tokens with two requests each, two requests alone, padded to hundreds, bins of 1,000. Best 3 full bins: 400 + 600
    (250 + 310 padded), 200 + 800 (390 + 380 padded), 500 + 500 (450 and 480, each padded alone). Prefix-blind sizes (700, 800, 600, 600, 500, 500)
    fill 5."""
    prompt, output = np.array([150, 300, 400, 210, 300, 280]), np.array([100, 90, 50, 100, 80, 200])
    return RequestPacking(
        requests=Requests(prompt_tokens=prompt, output_tokens=output, group=np.array([0, 1, -1, 0, 1, -1])),
        objective="bins",
        capacity_tokens=1000,
        group_overhead_tokens=np.array([400, 200]),
        padding_multiple=100,
    )


def uniform_preset(default_requests: int, default_capacity: int = 150, default_least: int = 20, default_most: int = 100) -> Builder:
    """A builder of bin packing with uniform sizes."""

    def build(
        rng: np.random.Generator,
        *,
        requests: int = default_requests,
        capacity_tokens: int = default_capacity,
        least: int = default_least,
        most: int = default_most,
    ) -> RequestPacking:
        """`uniform`."""
        return uniform(rng, requests=requests, capacity_tokens=capacity_tokens, least=least, most=most)

    return build


def triplet_preset(default_requests: int) -> Builder:
    """A builder of triplets."""

    def build(rng: np.random.Generator, *, requests: int = default_requests, capacity_tokens: int = 1000) -> RequestPacking:
        """`triplets`."""
        return triplets(rng, requests=requests, capacity_tokens=capacity_tokens)

    return build


def cmax_uniform_preset(rng: np.random.Generator, *, requests: int = 200, slots: int = 10, least: int = 1, most: int = 1000) -> RequestPacking:
    """`cmax_uniform`."""
    return cmax_uniform(rng, requests=requests, slots=slots, least=least, most=most)


def gsm8k_cmax(
    rng: np.random.Generator,
    *,
    requests: int = 1_319,
    slots: int = 200,
    output_mean_tokens: float = 345.0,
    output_sd_tokens: float = 188.0,
    decode_step_s: float = 0.075,
) -> RequestPacking:
    """`gsm8k_like` without prefill: P||Cmax over the outputs."""
    return gsm8k_like(
        rng, requests=requests, slots=slots, output_mean_tokens=output_mean_tokens, output_sd_tokens=output_sd_tokens, decode_step_s=decode_step_s,
        prefill=False,
    )  # fmt: skip


def shared_prefix(
    rng: np.random.Generator,
    *,
    requests: int = 2_000,
    prefixes: int = 50,
    zipf: float = 1.0,
    alone_share: float = 0.0,
    prefix_median_tokens: int = 2_000,
    prefix_p90_tokens: int = 8_000,
    lengths: str = "servegen-m-large",
    capacity_tokens: int = 65_536,
) -> RequestPacking:
    """`shared_prefixes`."""
    return shared_prefixes(
        rng, requests=requests, prefixes=prefixes, zipf=zipf, alone_share=alone_share, prefix_median_tokens=prefix_median_tokens,
        prefix_p90_tokens=prefix_p90_tokens, lengths=lengths, capacity_tokens=capacity_tokens,
    )  # fmt: skip


def adapters(
    rng: np.random.Generator,
    *,
    requests: int = 1_000,
    adapters: int = 8,
    zipf: float = 1.0,
    padding_multiple: int = 64,
    lengths: str = "servegen-m-large",
    capacity_tokens: int = 8_192,
) -> RequestPacking:
    """`adapter_batches`."""
    return adapter_batches(
        rng, requests=requests, adapters=adapters, zipf=zipf, padding_multiple=padding_multiple, lengths=lengths,
        capacity_tokens=capacity_tokens,
    )  # fmt: skip


def backlog_preset(default_requests: int) -> Builder:
    """A builder of chat backlogs in bins of 65,536 tokens."""

    def build(
        rng: np.random.Generator, *, requests: int = default_requests, lengths: str = "azure-chat", capacity_tokens: int = 65_536
    ) -> RequestPacking:
        """`backlog`."""
        return backlog(rng, requests=requests, lengths=lengths, capacity_tokens=capacity_tokens)

    return build


PRESETS: Mapping[str, Builder] = {
    "toy": toy,
    "toy-makespan": toy_makespan,
    "toy-groups": toy_groups,
    "uniform-120": uniform_preset(120),
    "uniform-250": uniform_preset(250),
    "uniform-500": uniform_preset(500),
    "uniform-1000": uniform_preset(1000),
    "triplet-60": triplet_preset(60),
    "triplet-120": triplet_preset(120),
    "triplet-249": triplet_preset(249),
    "triplet-501": triplet_preset(501),
    "hard28-like": hard28_like,
    "scholl-3": uniform_preset(200, 100_000, 20_000, 35_000),
    "cmax-uniform": cmax_uniform_preset,
    "gsm8k-staged": gsm8k_like,
    "gsm8k-cmax": gsm8k_cmax,
    "shared-prefix": shared_prefix,
    "adapters": adapters,
    "chat-65536": backlog_preset(19_366),
    "backlog-million": backlog_preset(1_000_000),
}


def make(name: str, rng: np.random.Generator, overrides: Mapping[str, Any]) -> RequestPacking:
    """The preset `name`. `overrides` may hold settings of the preset, for which it draws, and other fields of the instance's data, put in afterwards.

    Raises `InputError` for an unknown preset or field, and for what the instance does not admit.
    """
    made, changes = build(PRESETS, RequestPacking, name, rng, overrides)
    if changes:  # what the construction proved holds for what it made alone
        return made.replace(**changes, **origin(name, overrides))
    return made.model_copy(update=origin(name, overrides, made.provenance))
