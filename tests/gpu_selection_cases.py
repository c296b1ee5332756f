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


def extreme(seed: int, gpus_most: int, items_most: int) -> dict[str, Any]:
    """Instance data meant to break things: scales from 1e-9 to 1e12, loads that exactly fill replicas, equal types, zero prices, traces of load.

    Small ones (3 types, 3 items) can be enumerated; larger ones are for checking methods against each other.
    """
    rng = np.random.default_rng([7, seed])
    gpus, items = int(rng.integers(1, gpus_most + 1)), int(rng.integers(1, items_most + 1))
    scale, dear = (float(rng.choice([1.0, 1.0, 1e-9, 1e-3, 1e6, 1e12])) for _ in range(2))
    kind = int(rng.integers(4))
    rate = rng.choice([0.5, 1.0, 2.0, 3.0], items) if kind == 0 else rng.lognormal(0, 1, items)
    table = rng.choice([1.0, 2.0, 4.0], (gpus, items)) if kind == 0 else rng.lognormal(0.5, 0.8, (gpus, items))
    if kind == 1:
        table = np.repeat(table[:1], gpus, axis=0)
    if kind == 2:
        table = rate / rng.choice([0.25, 0.5, 1 / 3, 2 / 3, 1.0, 1 / 7], (gpus, items))
    price = rng.choice([1.0, 1.0, 2.0, 3.67], gpus) if rng.random() < 0.5 else rng.lognormal(0.5, 0.7, gpus)
    if rng.random() < 0.15:
        price[rng.integers(gpus)] = 0.0
    if rng.random() < 0.2:
        rate[rng.integers(items)] *= float(rng.choice([0.0, 1e-100, 1e-12, 1e-9, 1e-6]))
    data: dict[str, Any] = {
        "work": [{"name": f"w{i}", "rate_per_s": float(r) * scale} for i, r in enumerate(rate)],
        "gpus": [{"name": f"g{g}", "price_usd_per_h": float(p) * dear} for g, p in enumerate(price)],
        "throughput_per_s": [[None if rng.random() < 0.12 else float(q) * scale for q in row] for row in table],
        "max_utilisation": float(rng.choice([1.0, 1.0, 0.8, 1 / 3])),
        "slices": [None, 1, 2, 3, None][int(rng.integers(5))],
        "spare_replicas": int(rng.random() < 0.35),
    }
    for gpu in data["gpus"]:
        if rng.random() < 0.3:
            gpu["max_count"] = int(rng.integers(0, 5))
        if rng.random() < 0.15:
            gpu["min_count"] = min(int(rng.integers(0, 3)), gpu.get("max_count", 9))
    if rng.random() < 0.35:
        data["pools"] = [{"name": f"p{j}", "max_gpus": int(rng.integers(1, 12))} for j in range(2)]
        for gpu in data["gpus"]:
            if rng.random() < 0.7:
                gpu |= {"pool": f"p{int(rng.integers(2))}", "gpus_per_replica": int(rng.choice([1, 2, 4]))}
    return data
