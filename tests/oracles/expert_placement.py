"""Expert placement by enumeration, from the definition alone.

`best` lists every way to fill the devices of a layer (as multisets of experts: the order inside a device is free). What a layer costs by itself is
added up from loops; traffic couples neighbouring layers and `max_moves` all of them, so layers are joined by dynamic programming over (placement,
moves so far), which leaves none of the combinations out. The best split needs no solver: a layer's busiest device carries at least w(A) / |N(A)| for
every set A of experts, N(A) the devices that hold one of them, and by max-flow = min-cut the largest of these ratios can be had.
"""

from __future__ import annotations

import math
from itertools import combinations, combinations_with_replacement, product
from typing import Any

import numpy as np

Content = tuple[tuple[int, ...], ...]
"""The experts on each device of one layer, sorted."""


class Oracle:
    """Answers for one instance given as its JSON data (a dict), so that no code of the project is involved."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.load = data["load"]
        self.layers, self.experts = len(self.load[0]), len(self.load[0][0])
        self.devices, self.k = data["devices"], data["slots_per_device"]
        self.node = [d // (data.get("devices_per_node") or self.devices) for d in range(self.devices)]
        self.transition = data.get("transition")
        hop = {"same_node": 1.0, "other_node": 1.0} | data.get("hop_cost", {})
        self.hop = [
            [0.0 if a == b else hop["same_node"] if self.node[a] == self.node[b] else hop["other_node"] for b in range(self.devices)]
            for a in range(self.devices)
        ]
        groups = data.get("n_groups") if data.get("group_limited", False) else None
        self.group = None if groups is None else [e // (self.experts // groups) for e in range(self.experts)]
        self.best_split = data.get("split", "equal") == "optimal"
        self.worst = data.get("robust", "worst") == "worst"
        self.distinct = data.get("distinct", True)
        self.min_holders = data.get("min_holders", 1)
        self.weight = {"balance": 1.0, "traffic": 0.0, "moves": 0.0} | data.get("weights", {})
        self.max_moves = data.get("max_moves")
        current = data.get("current_slot_expert")
        self.current = None if current is None else [[set(row[d * self.k : (d + 1) * self.k]) for d in range(self.devices)] for row in current]

    def contents(self) -> list[Content]:
        """Every content of one layer that the rules within a layer allow."""
        one = combinations if self.distinct else combinations_with_replacement
        found = product(list(one(range(self.experts), self.k)), repeat=self.devices)
        return [content for content in found if self.allowed(content)]

    def allowed(self, content: Content) -> bool:
        if any(sum(e in experts for experts in content) < self.min_holders for e in range(self.experts)):
            return False
        if self.distinct and any(len(set(experts)) < len(experts) for experts in content):
            return False
        if self.group is None:
            return True
        where: dict[int, set[int]] = {}
        for d, experts in enumerate(content):
            for e in experts:
                where.setdefault(self.group[e], set()).add(self.node[d])
        return all(len(nodes) == 1 for nodes in where.values())

    def layer_balance(self, l: int, content: Content, share: list[list[list[float]]] | None = None) -> float:
        """The balance of one layer. `share` [scenario][device][place]: a given split instead of the best one."""
        each = []
        for s in range(len(self.load)):
            w = self.load[s][l]
            total = math.fsum(w)
            if total == 0:
                each.append(1.0)
                continue
            if not self.best_split:
                copies = [sum(experts.count(e) for experts in content) for e in range(self.experts)]
                most = max(math.fsum(w[e] / copies[e] for e in experts) for experts in content)
            elif share is not None:
                most = max(math.fsum(w[e] * a for e, a in zip(experts, share[s][d], strict=True)) for d, experts in enumerate(content))
            else:
                most = 0.0
                for size in range(1, self.experts + 1):
                    for chosen in combinations(range(self.experts), size):
                        neighbours = sum(1 for experts in content if set(experts) & set(chosen))
                        most = max(most, math.fsum(w[e] for e in chosen) / neighbours)
            each.append(most / (total / self.devices))
        return max(each) if self.worst else math.fsum(each) / len(each)

    def layer_moves(self, l: int, content: Content) -> int:
        if self.current is None:
            return 0
        return sum(len(set(experts) - self.current[l][d]) for d, experts in enumerate(content))

    def boundary(self, b: int, before: Content, after: Content) -> float:
        """What a token pays on average from layer b to b + 1."""
        assert self.transition is not None
        total = []
        for e in range(self.experts):
            homes = [d for d, experts in enumerate(before) for other in experts if other == e]
            for f in range(self.experts):
                targets = [d for d, experts in enumerate(after) if f in experts]
                for d in homes:
                    total.append(self.transition[b][e][f] / len(homes) * min(self.hop[d][to] for to in targets))
        return math.fsum(total)

    def value(self, slot_expert: list[list[int]], share: list[list[list[float]]] | None = None) -> float:
        """The objective of one plan; +inf when it breaks a rule. `share` [scenario][layer][slot]; without it the best split."""
        contents = [tuple(tuple(row[d * self.k : (d + 1) * self.k]) for d in range(self.devices)) for row in slot_expert]
        moved = sum(self.layer_moves(l, content) for l, content in enumerate(contents))
        if not all(map(self.allowed, contents)) or (self.max_moves is not None and moved > self.max_moves):
            return math.inf
        balance = 0.0
        for l, content in enumerate(contents):
            split = None
            if share is not None:
                split = [[rows[l][d * self.k : (d + 1) * self.k] for d in range(self.devices)] for rows in share]
            balance += self.layer_balance(l, content, split) / self.layers
        traffic = 0.0
        if self.transition is not None and self.layers > 1:
            traffic = math.fsum(self.boundary(b, contents[b], contents[b + 1]) for b in range(self.layers - 1)) / (self.layers - 1)
        return self.weight["balance"] * balance + self.weight["traffic"] * traffic + self.weight["moves"] * moved / self._all_slots()

    def best(self) -> float:
        """The least objective; +inf when no plan keeps all rules."""
        contents = self.contents()
        if not contents:
            return math.inf
        # cost[m][p]: the least cost so far that ends with placement p after m moves; moves are counted only where they are limited.
        limit = 0 if self.max_moves is None else self.max_moves
        cost = np.full((limit + 1, len(contents)), math.inf)
        for l in range(self.layers):
            moved = [self.layer_moves(l, content) for content in contents]
            own = [self.weight["balance"] * self.layer_balance(l, content) / self.layers for content in contents]
            joined = np.zeros((1, len(contents))) if l == 0 else self._joined(cost, l - 1, contents)
            following = np.full_like(cost, math.inf)
            for p in range(len(contents)):
                paid = own[p] + self.weight["moves"] * moved[p] / self._all_slots()
                for m in range(len(joined)):
                    at = m + moved[p] if self.max_moves is not None else 0
                    if at <= limit:
                        following[at, p] = min(following[at, p], joined[m, p] + paid)
            cost = following
        return float(cost.min())

    def _joined(self, cost: Any, b: int, contents: list[Content]) -> Any:
        """The least cost [m][q] before a layer with placement q, over the placements of the layer before."""
        if self.transition is None or self.weight["traffic"] == 0:
            return np.repeat(cost.min(axis=1, keepdims=True), len(contents), axis=1)
        # boundary() for all pairs at once: tokens on d that go to f, times what f's nearest holder costs from d.
        sends = np.array([[[experts.count(e) for experts in content] for e in range(self.experts)] for content in contents], dtype=float)
        sends /= sends.sum(axis=2, keepdims=True)
        nearest = np.array(
            [
                [
                    [min(self.hop[d][to] for to, experts in enumerate(content) if f in experts) for f in range(self.experts)]
                    for d in range(self.devices)
                ]
                for content in contents
            ]
        )
        tokens = np.einsum("ef,ped->pdf", np.array(self.transition[b]), sends)
        pays = tokens.reshape(len(contents), -1) @ nearest.reshape(len(contents), -1).T
        pays *= self.weight["traffic"] / (self.layers - 1)
        return np.array([(row[:, None] + pays).min(axis=0) for row in cost])

    def _all_slots(self) -> int:
        return self.layers * self.devices * self.k
