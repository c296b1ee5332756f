"""What a KV-tiering plan does, in a few lines and as numbers: who is waited for, who holds and serves how much, what moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.export.kv_tiering import moves_from
from headroom.formulations.kv_tiering import TieringPlan, replay
from headroom.instances.kv_tiering import KvTiering

MOST_READS = 5_000_000
"""A replay of more takes longer than a moment."""
FloatArray = npt.NDArray[np.float64]


def facts(instance: KvTiering, plan: TieringPlan) -> dict[str, Any]:
    """Numbers for the documents' `details`, each list by tier; empty where they would take more than a moment. O(reads + moves log moves + T K)."""
    if len(instance.reads.block) > MOST_READS:
        return {}
    done = replay(instance, plan)
    tiers = len(instance.tiers)
    step_s, busiest = done.step_s, done.tier_s.argmax(axis=1)
    origin, to = moves_from(plan), plan.moves.to_tier
    moved_bytes = np.bincount(origin * tiers + to, instance.size[plan.moves.block], tiers * tiers).reshape(tiers, tiers)
    return {
        "tiers": [tier.name for tier in instance.tiers],
        "total_s": float(step_s.sum()),
        "mean_step_s": float(step_s.mean()),
        "busy_s": done.tier_s.sum(axis=0).tolist(),
        "waited_for_s": np.bincount(busiest, step_s, tiers).tolist(),
        "occupancy_mean_bytes": done.occupancy_bytes.mean(axis=0).tolist(),
        "occupancy_peak_bytes": done.occupancy_bytes.max(axis=0).tolist(),
        "read_bytes": done.read_bytes.sum(axis=0).tolist(),
        "moves": done.moves.tolist(),
        "moves_bytes": moved_bytes.tolist(),
    }


def describe(instance: KvTiering, plan: TieringPlan) -> list[tuple[str, str]]:
    """Lines for terminals; none where they would take more than a moment."""
    known = facts(instance, plan)
    if not known:
        return []
    names = [tier.name for tier in instance.tiers]
    waited = _shares(names, np.array(known["waited_for_s"]))
    lines = [("time", f"{duration(known['mean_step_s'])} a step in the mean of {instance.steps:,}; waiting for {waited}")]
    mean, peak = np.array(known["occupancy_mean_bytes"]), np.array(known["occupancy_peak_bytes"])
    bounded = [k for k in range(len(names) - 1) if instance.capacity[k] > 0]
    held = [f"{names[k]} {_percent(mean[k] / instance.capacity[k])}% full (most {_percent(peak[k] / instance.capacity[k])}%)" for k in bounded]
    if held:
        lines.append(("room", ", ".join(held)))
    read = np.array(known["read_bytes"])
    if read.sum() > 0:
        lines.append(("reads", f"{_shares(names, read)} of {size(float(read.sum()))}"))
    moves, moved = np.array(known["moves"]), np.array(known["moves_bytes"])
    up, down = int(np.tril(moves).sum()), int(np.triu(moves).sum())
    free = f"; into {names[-1]}, which keeps copies, at no cost" if instance.inclusive and moves[:-1, -1].any() else ""
    lines.append(("moves", f"{up:,} up ({size(float(np.tril(moved).sum()))}), {down:,} down ({size(float(np.triu(moved).sum()))}){free}"))
    return lines


def _shares(names: list[str], value: FloatArray) -> str:
    total = float(value.sum())
    return ", ".join(f"{name} {_percent(part / total)}%" for name, part in zip(names, value, strict=True) if part > 0) if total > 0 else "nothing"


def _percent(share: float) -> str:
    """A share for people: 100 only where it is all (rounding would hide what is missing)."""
    if abs(share - 1) <= 1e-9 or share == 0:
        return f"{100 * share:.0f}"
    return f"{min(100 * share, 99.9) if share < 1 else 100 * share:.1f}"


def size(value: float) -> str:
    """Bytes for people."""
    for power, name in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{value / 1024**power:.4g} {name}"
    return f"{value:.4g} byte{'s' * (value != 1)}"


def duration(value: float) -> str:
    """Seconds for people."""
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= unit:
            return f"{value / unit:.4g} {name}"
    return f"{value / 1e-9:.4g} ns" if value > 0 else "0 s"
