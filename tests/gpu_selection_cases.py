"""Seeded tiny instances of every kind: caps, pools, floors, slices, null throughputs, spare replicas, ties, extreme scales, infeasible ones."""

from __future__ import annotations

from typing import Any

import numpy as np

TOY: dict[str, Any] = {
    "work": [{"name": f"b{i}", "rate_per_s": 30 * share} for i, share in enumerate((0.2, 0.1, 0.5, 0.2))],
    "gpus": [{"name": "A10G", "price_usd_per_h": 1.01}, {"name": "A100-80GB", "price_usd_per_h": 3.67}],
    "throughput_per_s": [[2, 1, 5, 2], [20, 20, 40, 20]],
}


def tiny(seed: int) -> dict[str, Any]:
    """Instance data small enough to enumerate. The seed's residues choose the kind, so that a range of seeds covers all of them."""
    rng = np.random.default_rng(seed)
    gpus, items = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    scale = float(rng.choice([1.0, 1.0, 1.0, 1e-6, 1e6]))
    rate = rng.choice([1.0, 2.0, 3.0], items) if rng.random() < 0.3 else rng.lognormal(0, 1, items)
    table = rng.choice([1.0, 2.0, 4.0], (gpus, items)) if rng.random() < 0.3 else rng.lognormal(0.5, 0.8, (gpus, items))
    price = rng.choice([1.0, 1.01, 2.0, 3.67], gpus) if rng.random() < 0.5 else np.round(rng.lognormal(0.5, 0.7, gpus), 3)
    throughput: list[list[float | None]] = [[float(q) * scale for q in row] for row in table]
    for g in range(gpus):
        for i in range(items):
            if rng.random() < 0.15:
                throughput[g][i] = None
    data: dict[str, Any] = {
        "work": [{"name": f"w{i}", "rate_per_s": float(rate[i]) * scale} for i in range(items)],
        "gpus": [{"name": f"g{g}", "price_usd_per_h": float(price[g])} for g in range(gpus)],
        "throughput_per_s": throughput,
        "max_utilisation": float(rng.choice([1.0, 1.0, 0.8, 0.7])),
        "slices": [None, 1, 2, 3][seed % 4],
    }
    if rng.random() < 0.1:
        data["work"][0]["rate_per_s"] = 0.0
    if seed % 3 == 0:
        for gpu in data["gpus"]:
            if rng.random() < 0.6:
                gpu["max_count"] = int(rng.integers(0, 4))
    if seed % 5 == 0:
        data["pools"] = [{"name": "stock", "max_gpus": int(rng.integers(1, 9))}]
        for gpu in data["gpus"]:
            if rng.random() < 0.7:
                gpu |= {"pool": "stock", "gpus_per_replica": int(rng.choice([1, 2, 4]))}
    if seed % 7 == 0:
        data["gpus"][0]["min_count"] = min(int(rng.integers(0, 3)), data["gpus"][0].get("max_count", 9))
    if seed % 4 in (0, 1) and seed % 6 < 2:
        data["spare_replicas"] = 1
    return data
