"""Seeded tiny instances of request packing, as JSON data: plain, padded and grouped bins, and runs through slots with any prefill levels."""

from __future__ import annotations

from typing import Any

import numpy as np

BIN_KINDS = ("plain", "padded", "one overhead", "overheads", "overheads and padding", "padded groups")
STAGE_KINDS = ("no levels", "one level", "any last level", "finite last level", "dear large prefills")


def bins(sizes: list[int], capacity: int, **changes: Any) -> dict[str, Any]:
    """Plain bin packing; `changes` of the data, or `group`."""
    requests = {"prompt_tokens": sizes, "output_tokens": [0] * len(sizes)}
    if "group" in changes:
        requests["group"] = changes.pop("group")
    return {"requests": requests, "objective": "bins", "capacity_tokens": capacity} | changes


def staged(prompts: list[int], outputs: list[int], slots: int, levels: list[tuple[int | None, float]], **changes: Any) -> dict[str, Any]:
    """A run through slots, with a decode step of a second unless said."""
    requests = {"prompt_tokens": prompts, "output_tokens": outputs}
    data: dict[str, Any] = {"requests": requests, "objective": "makespan", "slots": slots, "decode_step_s": 1.0}
    if levels:
        data["prefill_levels"] = [{"max_tokens": tokens, "time_s": time_s} for tokens, time_s in levels]
    return data | changes


def tiny_bins(seed: int, most_requests: int = 8) -> dict[str, Any]:
    """Every request fits alone. The seed's residue chooses the kind (`BIN_KINDS`), so that a range of seeds mixes all."""
    rng = np.random.default_rng([8, seed])
    kind = BIN_KINDS[seed % len(BIN_KINDS)]
    count, capacity = int(rng.integers(1, most_requests + 1)), int(rng.choice([7, 12, 20, 100, 1_000]))
    least = max(int(capacity * rng.choice([0.05, 0.2, 0.3])), 1)
    most = max(int(capacity * rng.choice([0.35, 0.5, 0.8])), least)
    size = rng.integers(least, most + 1, count)
    prompt = (size * rng.random(count)).astype(np.int64)
    requests: dict[str, Any] = {"prompt_tokens": prompt.tolist(), "output_tokens": (size - prompt).tolist()}
    data = {"requests": requests, "objective": "bins", "capacity_tokens": capacity}
    if "padd" in kind:
        # Padded alone, and with an overhead, a request must still fit: a multiple of at most a tenth.
        data["padding_multiple"] = int(rng.integers(2, max(capacity // 10, 2) + 1))
        data["capacity_tokens"] = capacity + 2 * data["padding_multiple"]
    if kind not in ("plain", "padded"):
        groups = int(rng.integers(1, 4))
        requests["group"] = rng.integers(-1, groups, count).tolist()
        room = data["capacity_tokens"] - most - data.get("padding_multiple", 0)
        overheads = rng.integers(0, max(room, 0) + 1, groups)
        if kind == "one overhead":
            data["group_overhead_tokens"] = int(overheads[0])
        elif kind.startswith("overheads"):
            given = max(groups, max(requests["group"]) + 1)
            data["group_overhead_tokens"] = overheads[:given].tolist()
    return data


def tiny_staged(seed: int, most_requests: int = 6, most_steps: int = 7) -> dict[str, Any]:
    """Every request can be prefilled alone. The seed's residue chooses the levels (`STAGE_KINDS`); some prompts have no tokens, few runs no wait."""
    rng = np.random.default_rng([9, seed])
    kind = STAGE_KINDS[seed % len(STAGE_KINDS)]
    count = int(rng.integers(1, most_requests + 1))
    slots = int(rng.integers(1, max(count, 2) if seed % 6 else 6))
    prompt = rng.integers(0, 10, count) if seed % 7 else np.zeros(count, np.int64)
    prompt[rng.random(count) < 0.2] = 0
    output = rng.integers(1, most_steps + 1, count)
    levels: list[tuple[int | None, float]] = []
    if kind == "one level":
        levels = [(None, float(rng.choice([0.5, 2.0])))]
    elif kind != "no levels":
        tokens = np.cumsum(rng.integers(1, 7, int(rng.integers(2, 5))))
        # Seconds like tokens, like their root, or like their square: then two small prefills may take less time than one large one.
        power = 2.0 if kind == "dear large prefills" else float(rng.choice([0.5, 1.0]))
        seconds = float(rng.choice([0.1, 0.4])) * (tokens + rng.random(len(tokens))) ** power
        tokens[-1] = max(tokens[-1], prompt.max(initial=0))
        levels = list(zip(tokens.tolist(), seconds.tolist(), strict=True))
        if kind == "any last level":
            levels[-1] = (None, levels[-1][1])
    return staged(prompt.tolist(), output.tolist(), slots, levels, decode_step_s=float(rng.choice([0.25, 1.0, 3.0])))


def tiny(seed: int) -> dict[str, Any]:
    """Either objective in turn."""
    return tiny_staged(seed // 2) if seed % 2 else tiny_bins(seed // 2)
