r"""Bounds for GPU selection with whole replicas: any prices of slices give one, over any box of counts.

Let v_gi be the price (USD/h) of one slice of item i on type g, K_g(v) = max { sum_i v_gi z_i : sum_i a_gi z_i <= U, 0 <= z_i <= min(k_i, y-hi_gi) }
what the best pattern of type g is worth, y_gi the slices of i on all replicas of g, and pi_P >= 0 the price of a pool's GPU. For every box

    n_g in [n-lo_g, n-hi_g],   y_gi in [y-lo_gi, y-hi_gi]

    L(v, pi) = sum_i min { sum_g v_gi y_gi : y in the box, sum_g y_gi = k_i }  +  sum_g min { n_g (p_g + sum_P pi_P m_g - K_g(v)) : n in the box }
             - sum_P pi_P B_P

is at most the cost of each plan in the box: n_g replicas hold at most n_g K_g(v) worth of slices. Its maximum at the root is the bound of
column generation (Gilmore and Gomory, doi 10.1287/opre.9.6.849); Farley's bound (doi 10.1287/opre.38.5.922) is the scaling of v at which
no K_g exceeds p_g. With p = 0 ("cost ignored") L > 0 proves that the box holds no plan (Farkas). A sum of price tables with multipliers
lambda >= 0 may take the place of v: sum_c lambda_c K_g(v_c) is at least K_g(sum_c lambda_c v_c).

A certificate (`pattern_prices_tree`) is a list of price tables and a tree of boxes, split on counts (n_g <= b | n_g >= b + 1) or on slices of an
item on a type (y_gi <= b | >= b + 1), whose leaves name tables and multipliers; the least leaf value bounds every plan. The recheck proves
an upper bound on each K_g by `knapsack_bound` (the recorded value is only the target of that proof), adds up with the error taken off, and
grants capacities the slack that `evaluate` does. Nothing recorded is believed: a foolish certificate proves little, never too much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.certificates import NOTHING, CertificateError, floats, integers
from headroom.bounds.knapsack import knapsack_bound
from headroom.formulations.gpu_selection_per_replica import most_whole_replicas, slice_sizes
from headroom.formulations.tolerances import CERTIFICATE_SLACK, FEASIBILITY
from headroom.instances.gpu_selection import GpuSelection

FloatArray = npt.NDArray[np.float64]
KIND = "pattern_prices_tree"
LEAF, ON_COUNT, ON_SLICES = 0, 1, 2
TARGET = 1 - 1e-10
"""A recorded worth is this part of what was counted on, so that its proof, which adds a margin, does not end above that."""
Split = tuple[int, int, int, int]
"""(kind, gpu, item, value); items are counted among those with load."""


@dataclass(frozen=True)
class PatternData:
    """The instance as these bounds see it: items with load only. An item that no replica can hold has no type here."""

    instance: GpuSelection
    items: npt.NDArray[np.int64]
    size: FloatArray
    """Size of a slice [G][I], replicas; 0 where the type cannot hold one."""
    can_hold: npt.NDArray[np.bool_]
    copies: FloatArray
    """Most slices of an item on one replica [G][I]."""
    slices: FloatArray
    """k_i [I]."""
    price: FloatArray
    capacity: float
    """What one replica may carry, with the slack that certificates grant."""
    pool_gpus: FloatArray
    pool_limit: FloatArray


@dataclass(frozen=True)
class PatternBox:
    """Bounds on counts [G] and on slices of each item on each type [G][I]. Arrays may be shared and are never written to."""

    n_lo: FloatArray
    n_hi: FloatArray
    y_lo: FloatArray
    y_hi: FloatArray


@dataclass(frozen=True)
class PriceTable:
    """Prices of slices: `base` [I], changed on single types by `changes` {(g, i): price}; `worth` [G] is at least K_g where it was made."""

    base: FloatArray
    worth: FloatArray
    changes: Mapping[tuple[int, int], float] = field(default_factory=dict)

    def on_types(self) -> FloatArray:
        """The table in full [G][I]."""
        table = np.tile(self.base, (len(self.worth), 1))
        for (g, i), price in self.changes.items():
            table[g, i] = price
        return table


@dataclass(frozen=True)
class Multipliers:
    """What a leaf is bounded with: weights of price tables, prices of pools, and whether replicas cost anything."""

    weights: tuple[tuple[int, float], ...] = ()
    pool: FloatArray = field(default_factory=lambda: np.zeros(0))
    with_cost: bool = True


@dataclass
class TreeNode:
    """A box of the tree: split into two children (the lower half first), or a leaf."""

    multipliers: Multipliers = field(default_factory=Multipliers)
    split: Split = (LEAF, 0, 0, 0)
    children: list[TreeNode] = field(default_factory=list)
    value: float = -math.inf
    """What its multipliers prove of its box, or its parent's; the recheck finds out by itself."""


def pattern_data(instance: GpuSelection) -> PatternData:
    """Collect what the bounds need."""
    items = instance.loaded_items
    # A replica's load is held to FEASIBILITY by `evaluate`, slices are whole: the rest of CERTIFICATE_SLACK is for rounding.
    capacity = instance.max_utilisation * (1.0 + CERTIFICATE_SLACK - FEASIBILITY)
    size = slice_sizes(instance)[:, items]
    can = size <= capacity
    slices = instance.slice_counts[items].astype(np.float64)
    size = np.where(can, size, 0.0)
    most = np.floor(capacity / np.where(can, size, 1.0) * (1 + 1e-12))
    copies = np.where(can, np.minimum(most, slices), 0.0)
    return PatternData(instance, items, size, can, copies, slices, instance.price_usd_per_h, capacity, instance.pool_gpus, instance.pool_limit)


def root_pattern_box(data: PatternData) -> PatternBox:
    """All that a plan worth having can be: no type has more replicas than slices it can hold, unless `min_count` says so."""
    least = data.instance.min_count.astype(np.float64)
    most = np.minimum(most_whole_replicas(data.instance), np.maximum((data.can_hold * data.slices).sum(axis=1), least))
    y_hi = np.where(data.can_hold, data.slices, 0.0)
    return PatternBox(least, most, np.zeros_like(y_hi), y_hi)


def propagate_patterns(data: PatternData, box: PatternBox) -> PatternBox | None:
    """Bounds that cover, capacity and pools imply; None when they leave nothing. Conservative by more than its rounding, and monotone."""
    n_lo, n_hi, y_lo, y_hi = box.n_lo, box.n_hi, box.y_lo, box.y_hi
    for gpus, limit in zip(data.pool_gpus, data.pool_limit, strict=True):
        left = limit - float((gpus * n_lo).sum())
        with np.errstate(divide="ignore", invalid="ignore"):
            n_hi = np.where(gpus > 0, np.minimum(n_hi, np.floor(n_lo + left / gpus + 1e-9)), n_hi)
    if (n_lo > n_hi).any():
        return None
    y_hi = np.minimum(y_hi, n_hi[:, None] * data.copies)
    y_lo = np.maximum(y_lo, y_hi + (data.slices - y_hi.sum(axis=0)))
    y_hi = np.minimum(y_hi, y_lo + (data.slices - y_lo.sum(axis=0)))
    least = (data.size * y_lo).sum(axis=1)
    spare = np.maximum(data.capacity * n_hi * (1 + 1e-12) - least * (1 - 1e-12), 0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        more = np.floor(spare[:, None] / data.size * (1 + 1e-9) + 1e-9)
    y_hi = np.where(data.size > 0, np.minimum(y_hi, y_lo + more), y_hi)
    if (y_lo > y_hi).any() or (least * (1 - 1e-12) > data.capacity * n_hi * (1 + 1e-12)).any():
        return None
    needed = np.ceil(least / data.capacity * (1 - 1e-12) - 1e-9)
    needed = np.maximum(needed, np.ceil(y_lo / np.maximum(data.copies, 1.0) - 1e-9).max(axis=1, initial=0.0))
    n_lo = np.maximum(n_lo, needed)
    return None if (n_lo > n_hi).any() else PatternBox(n_lo, n_hi, y_lo, y_hi)


def box_halves(box: PatternBox, split: Split) -> tuple[PatternBox, PatternBox]:
    """The two boxes a split makes."""
    kind, g, i, value = split
    if kind == ON_COUNT:
        n_hi, n_lo = box.n_hi.copy(), box.n_lo.copy()
        n_hi[g], n_lo[g] = min(n_hi[g], value), max(n_lo[g], value + 1)
        return PatternBox(box.n_lo, n_hi, box.y_lo, box.y_hi), PatternBox(n_lo, box.n_hi, box.y_lo, box.y_hi)
    y_hi, y_lo = box.y_hi.copy(), box.y_lo.copy()
    y_hi[g, i], y_lo[g, i] = min(y_hi[g, i], value), max(y_lo[g, i], value + 1)
    return PatternBox(box.n_lo, box.n_hi, box.y_lo, y_hi), PatternBox(box.n_lo, box.n_hi, y_lo, box.y_hi)


def leaf_value(
    data: PatternData,
    box: PatternBox,
    price: FloatArray,
    worth: FloatArray,
    pool: FloatArray,
    with_cost: bool = True,
    terms: int = 1,
    price_size: FloatArray | None = None,
) -> float:
    """L over a propagated box, rounded down: `price` [G][I], `worth` [G] >= K_g(price), `pool` [P] >= 0.

    `price` and `worth` may be sums of `terms` products, `price_size` [G][I] then the sum of their absolute values. -inf on overflow. O(G I log G).
    """
    unit = 2.0**-52 * (400 + len(data.price) + len(data.pool_limit) + 4 * terms)
    size = np.abs(price) if price_size is None else price_size
    with np.errstate(over="ignore", invalid="ignore"):
        room = box.y_hi - box.y_lo
        order = np.argsort(np.where(room > 0, price, np.inf), axis=0, kind="stable")
        room_sorted = np.take_along_axis(room, order, axis=0)
        before = np.cumsum(room_sorted, axis=0) - room_sorted
        fill = np.minimum(np.maximum(data.slices - box.y_lo.sum(axis=0) - before, 0.0), room_sorted)
        y = box.y_lo.copy()
        np.put_along_axis(y, order, np.take_along_axis(y, order, axis=0) + fill, axis=0)
        paid = np.where(with_cost, data.price, 0.0) + pool @ data.pool_gpus
        e = paid - worth
        e_error = unit * (paid + np.abs(worth))
        n = np.where(e >= 0, box.n_lo, box.n_hi)
        limits = float(pool @ data.pool_limit)
        # Where prices are uncertain another type may be the cheapest one: the error counts for the dearest choice. A cost whose sign is in
        # doubt is charged at the far end.
        doubt = unit * float((size.max(axis=0, initial=0.0, where=box.y_hi > 0) * data.slices).sum()) * (3.0 if terms > 1 else 1.0)
        error = doubt + unit * limits + float((e_error * np.where(np.abs(e) <= e_error, box.n_hi, n)).sum()) + unit * float((np.abs(e) * n).sum())
        value = float((price * y).sum()) + float((e * n).sum()) - limits - error
    return value if math.isfinite(value) else -math.inf


def combined(tables: Sequence[FloatArray], worths: Sequence[FloatArray], weights: Sequence[float]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(price, worth, sum of absolute values) of price tables with multipliers."""
    price, size, worth = np.zeros_like(tables[0]), np.zeros_like(tables[0]), np.zeros_like(worths[0])
    with np.errstate(over="ignore", invalid="ignore"):
        for table, value, weight in zip(tables, worths, weights, strict=True):
            price, size, worth = price + weight * table, size + weight * np.abs(table), worth + weight * value
    return price, worth, size


def to_pattern_certificate(root: TreeNode, tables: Sequence[PriceTable]) -> dict[str, Any]:
    """The tree as plain arrays in preorder, with the price tables that it uses."""
    nodes: list[TreeNode] = []
    stack = [root]
    while stack:
        node = stack.pop()
        nodes.append(node)
        stack.extend(reversed(node.children))
    leaf_weights = [(k, c, w) for k, node in enumerate(nodes) if not node.children for c, w in node.multipliers.weights if w > 0]
    used = sorted({c for _, c, _ in leaf_weights})
    place = {c: j for j, c in enumerate(used)}
    changes = [(place[c], g, i, price) for c in used for (g, i), price in sorted(tables[c].changes.items())]
    pools = max((len(node.multipliers.pool) for node in nodes), default=0)
    return {
        "kind": KIND,
        "slice_price": np.array([tables[c].base for c in used]),
        "pattern_worth": np.array([tables[c].worth * TARGET for c in used]),
        "change": np.array([change[:3] for change in changes], dtype=np.int64),
        "change_price": np.array([change[3] for change in changes]),
        "split": np.array([node.split for node in nodes]),
        "with_cost": np.array([int(node.multipliers.with_cost) for node in nodes]),
        "pool_price": np.array([node.multipliers.pool if len(node.multipliers.pool) else np.zeros(pools) for node in nodes]),
        "weight_node": np.array([k for k, _, _ in leaf_weights], dtype=np.int64),
        "weight_table": np.array([place[c] for _, c, _ in leaf_weights], dtype=np.int64),
        "weight": np.array([w for _, _, w in leaf_weights]),
    }


def recheck_pattern_tree(instance: GpuSelection, certificate: Mapping[str, Any]) -> float:
    """The bound that a `pattern_prices_tree` proves; +inf: no plan. Raises `CertificateError` when it is not a tree over this instance.

    O(tables x types) knapsack proofs and O(leaves x (G I log G)).
    """
    data = pattern_data(instance)
    if not data.can_hold.any(axis=0).all():
        return math.inf
    tree = _Recheck(data, certificate)
    bound = math.inf
    waiting: list[PatternBox | None] = [root_pattern_box(data)]
    for node, split in enumerate(tree.split.tolist()):
        if not waiting:
            raise CertificateError(f"certificate has {len(tree.split) - node} nodes too many")
        box = waiting.pop()
        box = None if box is None else propagate_patterns(data, box)
        if split[0] == LEAF:
            bound = min(bound, math.inf if box is None else tree.value(node, box))
        else:
            lower, upper = (None, None) if box is None else box_halves(box, (split[0], split[1], split[2], split[3]))
            waiting += [upper, lower]
    if waiting:
        raise CertificateError(f"certificate lacks {len(waiting)} nodes")
    return bound


class _Recheck:
    """A certificate read, and the worth of its tables proved as far as leaves ask for it."""

    def __init__(self, data: PatternData, certificate: Mapping[str, Any]) -> None:
        self.data = data
        gpus, items, pools = len(data.price), len(data.items), len(data.pool_limit)
        base = floats(certificate, "slice_price", (None, items))
        count = len(base)
        self.worth = floats(certificate, "pattern_worth", (count, gpus))
        self.tables = np.repeat(base[:, None, :], gpus, axis=1)
        change = integers(certificate, "change", (None, 3))
        _within(change, (count, gpus, items), "change")
        self.tables[tuple(change.T)] = floats(certificate, "change_price", (len(change),))
        self.split = integers(certificate, "split", (None, 4))
        nodes = len(self.split)
        if not nodes:
            raise CertificateError("certificate has no nodes")
        _within(self.split, (3, gpus, max(items, 1), 2**52), "split")
        self.with_cost = integers(certificate, "with_cost", (nodes,)) != 0
        self.pool = np.maximum(floats(certificate, "pool_price", (nodes, pools)), 0.0)
        weight = np.maximum(floats(certificate, "weight", (None,)), 0.0)
        node, table = integers(certificate, "weight_node", (len(weight),)), integers(certificate, "weight_table", (len(weight),))
        _within(node[:, None], (nodes,), "weight_node")
        _within(table[:, None], (count,), "weight_table")
        self.weights: dict[int, dict[int, float]] = {}
        for at, which, value in zip(node.tolist(), table.tolist(), weight.tolist(), strict=True):
            self.weights.setdefault(at, {})[which] = value
        self._proved: dict[tuple[int, int, bytes], float] = {}

    def value(self, node: int, box: PatternBox) -> float:
        """The leaf's L; +inf when it proves that the box holds no plan."""
        data, weights = self.data, self.weights.get(node, {})
        tables = [self.tables[c] for c in weights] or [np.zeros(data.size.shape)]
        worths = [self._worth(c, box) for c in weights] or [np.zeros(len(data.price))]
        price, worth, size = combined(tables, worths, list(weights.values()) or [0.0])
        with_cost = bool(self.with_cost[node])
        value = leaf_value(data, box, price, worth, self.pool[node], with_cost, len(tables), size)
        if with_cost:
            return value
        return math.inf if value > NOTHING else -math.inf

    def _worth(self, table: int, box: PatternBox) -> FloatArray:
        """Proved upper bounds on K_g of one table in the box [G]; types of which it has no replica do not matter."""
        found = np.zeros(len(self.data.price))
        for g in np.flatnonzero(box.n_hi > 0):
            copies = np.minimum(self.data.copies[g], box.y_hi[g])
            key = (table, int(g), copies.tobytes())
            if key not in self._proved:
                target = float(self.worth[table, g])
                self._proved[key] = knapsack_bound(self.tables[table, g], self.data.size[g], copies, self.data.capacity, target)
            found[g] = self._proved[key]
        return found


def _within(array: npt.NDArray[np.int64], sizes: tuple[int, ...], name: str) -> None:
    if array.size and ((array < 0).any() or (array >= np.array(sizes)).any()):
        raise CertificateError(f"certificate.{name} names something that the instance or the certificate does not have")


__all__ = [
    "KIND",
    "Multipliers",
    "PatternBox",
    "PatternData",
    "PriceTable",
    "TreeNode",
    "box_halves",
    "combined",
    "leaf_value",
    "pattern_data",
    "propagate_patterns",
    "recheck_pattern_tree",
    "root_pattern_box",
    "to_pattern_certificate",
]
