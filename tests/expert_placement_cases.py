"""Seeded tiny instances of expert placement: copies, groups, doubles, both splits, scenarios, transitions, moves, ties, layers without load."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def tiny(seed: int, most: int = 1200) -> dict[str, Any]:
    """Instance data small enough to enumerate: at most `most` contents of a layer. The seed's residues choose the options, so that a range of seeds
    mixes all of them."""
    rng = np.random.default_rng([4, seed])
    distinct = seed % 5 < 3
    while True:
        experts, devices, k = (int(rng.integers(low, high)) for low, high in ((2, 6), (1, 5), (1, 4)))
        if devices * k < experts or (distinct and k > experts):
            continue
        one = math.comb(experts, k) if distinct else math.comb(experts + k - 1, k)
        if one**devices <= most:
            break
    scenarios, layers = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    shape = (scenarios, layers, experts)
    load = rng.integers(0, 5, shape).astype(float) if rng.random() < 0.4 else rng.lognormal(0, 1.2, shape)
    load *= float(rng.choice([1.0, 1.0, 1e-9, 1e9]))
    if rng.random() < 0.1:
        load[0, 0] = 0.0
    data: dict[str, Any] = {
        "load": load.tolist(),
        "devices": devices,
        "slots_per_device": k,
        "split": "optimal" if seed % 2 else "equal",
        "robust": "mean" if seed % 3 == 1 else "worst",
        "distinct": distinct,
        "hop_cost": {"same_node": float(rng.choice([1.0, 0.3])), "other_node": float(rng.choice([1.0, 2.5]))},
        "weights": {"balance": float(rng.choice([1.0, 1.0, 0.2, 0.0]))},
    }
    nodes = [n for n in range(1, devices + 1) if devices % n == 0]
    data["devices_per_node"] = devices // int(rng.choice(nodes))
    if seed % 4 == 0:
        _add_groups(data, rng, experts)
    if seed % 7 in (0, 2, 4, 5) and layers > 1:
        table = rng.dirichlet(np.full(experts * experts, 0.3), layers - 1)
        data["transition"] = table.reshape(layers - 1, experts, experts).tolist()
        data["weights"]["traffic"] = float(rng.choice([1.0, 0.5, 3.0]))
    if seed % 6 in (1, 2, 3):
        slots = devices * k
        data["current_slot_expert"] = np.array([rng.permutation(np.resize(rng.permutation(experts), slots)) for _ in range(layers)]).tolist()
        data["weights"]["moves"] = float(rng.choice([0.0, 0.3, 2.0]))
        if seed % 12 in (1, 2, 8):
            data["max_moves"] = int(rng.integers(0, slots * layers))
    return data


def _add_groups(data: dict[str, Any], rng: np.random.Generator, experts: int) -> None:
    """Groups that the instance type admits; they may still be impossible to place."""
    nodes = data["devices"] // data["devices_per_node"]
    room = data["devices_per_node"] * data["slots_per_device"]
    fitting = [g for g in range(1, experts + 1) if experts % g == 0 and room // (experts // g) * nodes >= g]
    if fitting:
        data["n_groups"], data["group_limited"] = int(rng.choice(fitting)), True
