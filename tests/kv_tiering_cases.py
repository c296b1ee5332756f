"""Seeded tiny instances of KV-cache tiering: births, deaths, partial reads, copies below, unequal sizes, fixed reads, capacities of zero or met
exactly, bandwidths a million apart, one tier."""

from __future__ import annotations

from typing import Any

import numpy as np


def tiny(seed: int, most_states: int = 250) -> dict[str, Any]:
    """Instance data with at most `most_states` joint states in a step. The seed's residues choose the options, so that a range of seeds mixes all."""
    rng = np.random.default_rng([6, seed])
    while True:
        tiers, blocks, steps = (
            int(rng.integers(low, high)) for low, high in ((1 if seed % 9 == 0 else 2, 4), (1, 6), (2, 7) if seed % 10 else (1, 3))
        )
        if tiers**blocks <= most_states:
            break
    size = _sizes(rng, seed, blocks)
    data: dict[str, Any] = {"tiers": _tiers(rng, seed, tiers, size), "block_bytes": size.tolist()}
    birth, death = np.zeros(blocks, np.int64), np.full(blocks, steps)
    if seed % 2:
        birth = np.where(rng.random(blocks) < 0.5, rng.integers(0, steps, blocks), 0)
        data["birth_step"] = birth.tolist()
    if seed % 4 in (1, 2):
        death = np.where(rng.random(blocks) < 0.4, rng.integers(birth + 1, steps + 3), steps)
        data["death_step"] = death.tolist()
    indptr, block = [0], list[int]()
    often = np.full((steps, blocks), rng.choice([0.3, 0.6, 0.9]))
    if seed % 8 >= 3:  # some blocks are read early and some late: reasons to move
        often = np.where((np.arange(steps)[:, None] < steps / 2) == (rng.random(blocks) < 0.5), 0.95, 0.1)
    for t in range(steps):
        alive = np.flatnonzero((birth <= t) & (death > t) & (rng.random(blocks) < often[t]))
        block += rng.permutation(alive).tolist()
        indptr.append(len(block))
    data["reads"] = {"indptr": indptr, "block": block}
    if seed % 3 == 1:
        part = np.where(rng.random(len(block)) < 0.4, 1.0, rng.random(len(block)) * rng.choice([1.0, 0.1, 0.0], len(block)))
        data["reads"]["bytes"] = (size[block] * part).tolist() if block else []
    if seed % 5 in (1, 2):
        fixed = size.mean() * rng.random(steps) * rng.choice([0.5, 5.0])
        data["fixed_read_bytes"] = fixed.tolist() if seed % 5 == 1 else float(fixed[0])
    if seed % 3 == 0:
        data["inclusive"] = True
    return data


def _sizes(rng: np.random.Generator, seed: int, blocks: int) -> Any:
    size = np.full(blocks, 4.0) if seed % 4 == 0 else rng.integers(1, 9, blocks).astype(float)
    if seed % 7 == 3:
        size = np.maximum(rng.lognormal(3, 2, blocks), 1.0)
    return size * float(rng.choice([1.0, 1.0, 4096.0, 1e6]))


def _tiers(rng: np.random.Generator, seed: int, tiers: int, size: Any) -> list[dict[str, Any]]:
    ratio = 1e6 if seed % 13 == 5 else float(rng.choice([1.5, 4.0, 10.0, 100.0]))
    base = float(rng.choice([1.0, 1e3, 1e9])) * max(1.0, ratio)
    found: list[dict[str, Any]] = []
    for k in range(tiers):
        speed = np.maximum(base * ratio ** (-k / max(tiers - 1, 1)) * rng.uniform(0.6, 1.6, 2) * [1.0, rng.choice([0.5, 1.0, 5.0])], 1.0)
        chosen = float(size[rng.random(len(size)) < 0.5].sum())  # met exactly by a set of blocks, or by none
        room = float(rng.choice([0.0, chosen, chosen, float(size.sum()) * rng.random()]))
        found.append({"name": f"tier{k}", "capacity_bytes": None if k == tiers - 1 else room})
        found[-1] |= {"read_bytes_per_s": float(speed[0]), "write_bytes_per_s": float(speed[1] if seed % 2 else speed[0])}
    return found


def two_tiers(capacity: float, **data: Any) -> dict[str, Any]:
    """Data for cases solved by hand: tier `fast` reads 10 and writes 5 bytes a second, `slow` reads 2 and writes 1."""
    fast = {"name": "fast", "capacity_bytes": capacity, "read_bytes_per_s": 10.0, "write_bytes_per_s": 5.0}
    slow = {"name": "slow", "capacity_bytes": None, "read_bytes_per_s": 2.0, "write_bytes_per_s": 1.0}
    return {"tiers": [fast, slow]} | data


def reads(*steps: list[int], bytes: list[float] | None = None) -> dict[str, Any]:
    """`reads` from the blocks of each step."""
    indptr = np.cumsum([0, *map(len, steps)]).tolist()
    return {"indptr": indptr, "block": [i for step in steps for i in step]} | ({} if bytes is None else {"bytes": bytes})


def drifting(blocks: int, steps: int, hot: float, drift: float, capacity: float, ratio: float, seed: int, **changes: Any) -> dict[str, Any]:
    """`hot` of all blocks are read in every step, of which `drift` are exchanged from step to step; blocks of one byte, `ratio` between two tiers."""
    rng = np.random.default_rng([7, seed])
    count = round(hot * blocks)
    now = rng.permutation(blocks)[:count]
    rows = [np.sort(now)]
    for _ in range(steps - 1):
        kept = rng.permutation(now)[round(drift * count) :]
        others = np.setdiff1d(np.arange(blocks), kept)
        now = np.concatenate([kept, rng.permutation(others)[: count - len(kept)]])
        rows.append(np.sort(now))
    fast = {"name": "hbm", "capacity_bytes": capacity * blocks, "read_bytes_per_s": float(ratio), "write_bytes_per_s": float(ratio)}
    slow = {"name": "dram", "capacity_bytes": None, "read_bytes_per_s": 1.0, "write_bytes_per_s": 1.0}
    data = {"tiers": [fast, slow], "block_bytes": [1.0] * blocks, "reads": reads(*(row.tolist() for row in rows))}
    return data | changes
