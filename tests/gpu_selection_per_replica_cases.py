"""Seeded tiny instances with whole replicas: caps, pools, floors, slices of each item, null throughputs, ties, extreme scales, infeasible ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.gpu_selection_cases import extreme, tiny


def whole(seed: int) -> dict[str, Any]:
    """Small enough to enumerate; every other seed is of the extreme kind. Loads are cut down so that most slices fit somewhere."""
    rng = np.random.default_rng([13, seed])
    data = dict(tiny(seed) if seed % 2 else extreme(seed, 3, 3))
    data.pop("spare_replicas", None)
    items = len(data["work"])
    ease = float(rng.choice([0.25, 0.5, 1.0]))
    data["work"] = [item | {"rate_per_s": item["rate_per_s"] * ease} for item in data["work"]]
    data["slices"] = [int(k) for k in rng.integers(1, 4, items)] if rng.random() < 0.7 else int(rng.integers(1, 4))
    data["packing"] = "per_replica"
    return data
