"""GPU selection by enumeration, in rational arithmetic.

`cheapest` tries every count vector up to what serving everything alone needs and asks of each whether shares exist:

- sliced: every way to hand out the slices of every item is tried;
- continuous: shares exist unless some prices w >= 0 make the cheapest way to serve all items dearer than the fleet's capacity. The worst w
  lies on a ray where (types - 1) of the conditions w_g a_gi = w_h a_hi, w_g = 0 hold, so all such rays are tried.

The relative tolerance 1e-9 of the project's feasibility check is granted to capacities.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, product
from typing import Any

TOLERANCE = Fraction(1, 10**9)


class Oracle:
    """Answers for one instance given as its JSON data (a dict), so that no code of the project is involved."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.gpus = data["gpus"]
        work = data["work"]
        self.items = [i for i, item in enumerate(work) if item["rate_per_s"] > 0]
        self.u = Fraction(data.get("max_utilisation", 1.0))
        self.k = data.get("slices")
        self.spare = data.get("spare_replicas", 0)
        self.pools = data.get("pools", [])
        table = data["throughput_per_s"]
        # Load of all of item i on type g; None where it cannot be served.
        self.load = [
            [None if table[g][i] is None else Fraction(work[i]["rate_per_s"]) / Fraction(table[g][i]) for i in self.items]
            for g in range(len(self.gpus))
        ]
        self.vectors = self._sliced_loads() if self.k else None
        self.rays = None if self.k else self._rays()

    def _sliced_loads(self) -> set[tuple[Fraction, ...]]:
        """Loads by type of every way to hand out the slices."""
        loads = {tuple(Fraction(0) for _ in self.gpus)}
        for j in range(len(self.items)):
            ways = []
            for split in product(range(self.k + 1), repeat=len(self.gpus)):
                if sum(split) == self.k and all(not part or self.load[g][j] is not None for g, part in enumerate(split)):
                    ways.append([Fraction(0) if not part else self.load[g][j] * part / self.k for g, part in enumerate(split)])
            loads = {tuple(a + b for a, b in zip(load, way, strict=True)) for load in loads for way in ways}
        return loads

    def _rays(self) -> list[list[Fraction]]:
        gpus = range(len(self.gpus))
        normals: list[list[Fraction]] = [[Fraction(int(g == h)) for h in gpus] for g in gpus]
        for j in range(len(self.items)):
            for g, h in combinations(gpus, 2):
                if self.load[g][j] is not None and self.load[h][j] is not None:
                    row = [Fraction(0) for _ in gpus]
                    row[g], row[h] = self.load[g][j], -self.load[h][j]
                    normals.append(row)
        rays = []
        for chosen in combinations(normals, len(self.gpus) - 1):
            ray = _null_vector([list(row) for row in chosen], len(self.gpus))
            if ray is not None and (all(x >= 0 for x in ray) or all(x <= 0 for x in ray)):
                rays.append([abs(x) for x in ray])
        return rays

    def serves(self, n: tuple[int, ...]) -> bool:
        """Whether n replicas can serve everything."""
        capacity = [self.u * count * (1 + TOLERANCE) for count in n]
        if self.vectors is not None:
            return any(all(load <= room for load, room in zip(vector, capacity, strict=True)) for vector in self.vectors)
        for j in range(len(self.items)):
            if not any(row[j] is not None for row in self.load):
                return False
        for ray in self.rays or []:
            need = Fraction(0)
            for j in range(len(self.items)):
                need += min(w * row[j] for w, row in zip(ray, self.load, strict=True) if row[j] is not None)
            if need > sum(w * room for w, room in zip(ray, capacity, strict=True)):
                return False
        return True

    def allowed(self, n: tuple[int, ...]) -> bool:
        for count, gpu in zip(n, self.gpus, strict=True):
            if count < gpu.get("min_count", 0) or (gpu.get("max_count") is not None and count > gpu["max_count"]):
                return False
        for pool in self.pools:
            drawing = [(count, gpu) for count, gpu in zip(n, self.gpus, strict=True) if gpu.get("pool") == pool["name"]]
            if sum(count * gpu.get("gpus_per_replica", 1) for count, gpu in drawing) > pool["max_gpus"]:
                return False
        if not self.serves(n):
            return False
        if not self.spare:
            return True
        return all(self.serves(tuple(count - (g == h) for g, count in enumerate(n))) for h in range(len(n)) if n[h])

    def cheapest(self) -> float:
        """The least cost in USD/h; +inf when no fleet serves everything."""
        ranges = []
        for g, gpu in enumerate(self.gpus):
            alone = sum((load for load in self.load[g] if load is not None), Fraction(0)) / self.u
            most = max(math.ceil(alone) + self.spare, gpu.get("min_count", 0))
            ranges.append(range(min(most, gpu["max_count"]) + 1 if gpu.get("max_count") is not None else most + 1))
        fleets = [(math.fsum(gpu["price_usd_per_h"] * count for count, gpu in zip(n, self.gpus, strict=True)), n) for n in product(*ranges)]
        for cost, n in sorted(fleets):
            if self.allowed(n):
                return cost
        return math.inf


def _null_vector(rows: list[list[Fraction]], columns: int) -> list[Fraction] | None:
    """The direction orthogonal to `columns` - 1 independent rows; None when they are dependent."""
    pivots: list[int] = []
    for column in range(columns):
        rank = len(pivots)
        pivot = next((r for r in range(rank, len(rows)) if rows[r][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        rows[rank] = [x / rows[rank][column] for x in rows[rank]]
        for r in range(len(rows)):
            if r != rank and rows[r][column]:
                rows[r] = [x - rows[r][column] * y for x, y in zip(rows[r], rows[rank], strict=True)]
        pivots.append(column)
    if len(pivots) != columns - 1:
        return None
    free = next(column for column in range(columns) if column not in pivots)
    ray = [Fraction(0)] * columns
    ray[free] = Fraction(1)
    for row, column in zip(rows, pivots, strict=False):
        ray[column] = -row[free]
    return ray
