"""GPU selection with whole replicas by enumeration, in rational arithmetic: every fleet in order of cost, every way to fill its replicas.

The relative tolerance 1e-9 of the project's feasibility check is granted to each replica's capacity.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from itertools import product
from typing import Any

TOLERANCE = Fraction(1, 10**9)


class Oracle:
    """Answers for one instance given as its JSON data (a dict), so that no code of the project is involved."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.gpus = data["gpus"]
        work = data["work"]
        self.items = [i for i, item in enumerate(work) if item["rate_per_s"] > 0]
        slices = data["slices"]
        self.k = tuple(slices if isinstance(slices, int) else slices[i] for i in self.items)
        self.pools = data.get("pools", [])
        self.limit = Fraction(data.get("max_utilisation", 1.0)) * (1 + TOLERANCE)
        table = data["throughput_per_s"]
        self.size = [
            [
                None if table[g][i] is None else Fraction(work[i]["rate_per_s"]) / Fraction(table[g][i]) / k
                for i, k in zip(self.items, self.k, strict=True)
            ]
            for g in range(len(self.gpus))
        ]
        self.patterns = [self._patterns(g) for g in range(len(self.gpus))]
        self.packs = lru_cache(maxsize=None)(self._packs)

    def _patterns(self, g: int) -> list[tuple[int, ...]]:
        """What one replica of g can hold."""
        found = []
        for z in product(*(range(k + 1) for k in self.k)):
            if any(n and size is None for n, size in zip(z, self.size[g], strict=True)):
                continue
            if sum((n * size for n, size in zip(z, self.size[g], strict=True) if n), Fraction(0)) <= self.limit:
                found.append(z)
        return found

    def _packs(self, left: tuple[int, ...], n: tuple[int, ...]) -> bool:
        """Whether n replicas can hold what is left."""
        if not any(left):
            return True
        g = next((g for g, count in enumerate(n) if count), None)
        if g is None:
            return False
        fewer = tuple(count - (h == g) for h, count in enumerate(n))
        for z in self.patterns[g]:
            if all(a <= b for a, b in zip(z, left, strict=True)) and self.packs(tuple(b - a for a, b in zip(z, left, strict=True)), fewer):
                return True
        return False

    def allowed(self, n: tuple[int, ...]) -> bool:
        for count, gpu in zip(n, self.gpus, strict=True):
            if count < gpu.get("min_count", 0) or (gpu.get("max_count") is not None and count > gpu["max_count"]):
                return False
        for pool in self.pools:
            drawing = [(count, gpu) for count, gpu in zip(n, self.gpus, strict=True) if gpu.get("pool") == pool["name"]]
            if sum(count * gpu.get("gpus_per_replica", 1) for count, gpu in drawing) > pool["max_gpus"]:
                return False
        return True

    def cheapest(self) -> float:
        """The least cost in USD/h; +inf when no fleet holds everything."""
        ranges = []
        for gpu in self.gpus:
            most = max(sum(self.k), gpu.get("min_count", 0))
            ranges.append(range(min(most, gpu["max_count"]) + 1 if gpu.get("max_count") is not None else most + 1))
        fleets = [(math.fsum(gpu["price_usd_per_h"] * count for count, gpu in zip(n, self.gpus, strict=True)), n) for n in product(*ranges)]
        for cost, n in sorted(fleets):
            if self.allowed(n) and self.packs(self.k, n):
                return cost
        return math.inf
