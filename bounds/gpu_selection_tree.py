r"""The branch tree as a certificate: optimality of a GPU selection that anyone can recheck without a solver.

A tree is a list of nodes in preorder. Each node carries multipliers (w, pi) and either a split or nothing. The recheck walks it: at a node
it tightens the box by the node's multipliers (`tighten`: reduced-cost fixing and propagation, both repeated from scratch), then

    leaf     the box is empty, or L(w, pi; box) is taken as the leaf's bound (a leaf marked "cost ignored" must have L > 0 without costs: no plan)
    split    on a count   n_g <= v  |  n_g >= v + 1,      or on a slice count   y_sgi <= v  |  y_sgi >= v + 1
    refine   one child with the same box, whose own multipliers tighten it further

Every plan cheaper than `prune_at` lies in some leaf's box, so min(prune_at, least leaf bound) bounds the cost of every plan; +inf when all
leaves are empty and prune_at is +inf. Nothing recorded is believed except the multipliers and the splits, and any values of those are valid
(a foolish split or price gives a weak bound, never a wrong one). Time: nodes x O(S G I log G).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.certificates import CertificateError, floats, integers
from headroom.bounds.gpu_selection_boxes import Box, Data, data_of, propagate, root_box
from headroom.bounds.gpu_selection_cuts import Cut, rounding_cut
from headroom.bounds.gpu_selection_lagrangian import CutTerms, dual_value, tighten
from headroom.instances.gpu_selection import GpuSelection

FloatArray = npt.NDArray[np.float64]
LEAF, ON_COUNT, ON_SLICES, REFINE = 0, 1, 2, 3
Split = tuple[int, int, int, int, int]
"""(kind, situation, gpu, item, value); items are counted among those with load."""


@dataclass
class Node:
    """One node: its multipliers, its split and its two children (first the lower half)."""

    w: FloatArray
    pi: FloatArray
    cost: bool = True
    mu: FloatArray = field(default_factory=lambda: np.zeros(0))
    """Multipliers of the cuts known when the node was solved, in their order."""
    split: Split = (LEAF, 0, 0, 0, 0)
    children: list[Node] = field(default_factory=list)


def halves(box: Box, split: Split) -> tuple[Box, Box]:
    """The two boxes a split makes."""
    kind, s, g, i, value = split
    if kind == ON_COUNT:
        n_hi, n_lo = box.n_hi.copy(), box.n_lo.copy()
        n_hi[g], n_lo[g] = min(n_hi[g], value), max(n_lo[g], value + 1)
        return Box(box.n_lo, n_hi, box.y_lo, box.y_hi), Box(n_lo, box.n_hi, box.y_lo, box.y_hi)
    y_hi, y_lo = box.y_hi.copy(), box.y_lo.copy()
    y_hi[s, g, i], y_lo[s, g, i] = min(y_hi[s, g, i], value), max(y_lo[s, g, i], value + 1)
    return Box(box.n_lo, box.n_hi, box.y_lo, y_hi), Box(box.n_lo, box.n_hi, y_lo, box.y_hi)


class CutPool:
    """Cuts in the order they were made, as arrays that multipliers can be applied to."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.cuts: list[Cut] = []
        self._gpu = np.zeros(0, dtype=np.int64)
        self._coefficient = np.zeros((0, 0))
        self._right_side = np.zeros(0)

    def terms(self, mu: FloatArray) -> CutTerms | None:
        """The weighted sum of the cuts; None when no multiplier is positive."""
        used = np.flatnonzero(mu > 0)
        if not len(used):
            return None
        if len(self._gpu) != len(self.cuts):
            self._gpu = np.array([cut.gpu for cut in self.cuts])
            self._coefficient = np.array([cut.slice_coefficient for cut in self.cuts])
            self._right_side = np.array([cut.right_side for cut in self.cuts])
        shape = self.data.can_serve.shape
        count, slices, size = np.zeros(shape[0]), np.zeros(shape), np.zeros(shape)
        weight, gpu = mu[used], self._gpu[used]
        weighted = weight[:, None] * self._coefficient[used]
        np.add.at(count, gpu, weight)
        np.add.at(slices, gpu, weighted)
        np.add.at(size, gpu, np.abs(weighted))
        right_side = float((weight * self._right_side[used]).sum())
        right_size = float((weight * np.abs(self._right_side[used])).sum())
        # Sequential sums: each addition may lose one rounding of the sum of absolute values so far.
        unit = 2.0**-51 * (4 + len(used))
        return CutTerms(count, unit * count, slices, unit * size, right_side, unit * right_size)


def node_box(data: Data, box: Box | None, node: Node, pool: CutPool, prune_at: float) -> tuple[Box | None, float]:
    """What a node does with its propagated box: (what is left of it or None, the bound its multipliers give).

    The solver and the recheck both call this, so what one concludes the other can conclude again.
    """
    if box is None:
        return None, math.inf
    priced = dual_value(data, box, node.w, node.pi, node.cost, pool.terms(node.mu))
    if not node.cost:
        return (None, math.inf) if priced.value > 0 else (box, -math.inf)
    return tighten(data, box, priced, prune_at), priced.value


def to_certificate(root: Node, pool: CutPool, prune_at: float) -> dict[str, Any]:
    """The tree as plain arrays in preorder."""
    w: list[FloatArray] = []
    pi: list[FloatArray] = []
    split: list[Split] = []
    cost: list[int] = []
    mu_node: list[int] = []
    mu_cut: list[int] = []
    mu_value: list[float] = []
    stack = [root]
    while stack:
        node = stack.pop()
        for index in np.flatnonzero(node.mu > 0):
            mu_node.append(len(w))
            mu_cut.append(int(index))
            mu_value.append(float(node.mu[index]))
        w.append(node.w)
        pi.append(node.pi)
        cost.append(int(node.cost))
        split.append(node.split)
        stack.extend(reversed(node.children))
    return {
        "kind": "branch_tree",
        "prune_at": prune_at if math.isfinite(prune_at) else None,
        "capacity_price": np.array(w),
        "pool_price": np.array(pi),
        "with_cost": np.array(cost),
        "split": np.array(split),
        "cut_gpu": np.array([cut.gpu for cut in pool.cuts], dtype=np.int64),
        "cut_at_upper": np.array([cut.at_upper for cut in pool.cuts], dtype=np.int64).reshape(len(pool.cuts), len(pool.data.items)),
        "cut_price_node": np.array(mu_node, dtype=np.int64),
        "cut_price_cut": np.array(mu_cut, dtype=np.int64),
        "cut_price": np.array(mu_value),
    }


def recheck_tree(instance: GpuSelection, certificate: Mapping[str, Any]) -> float:
    """The bound that a branch tree proves. Raises `CertificateError` when it is not a tree over this instance."""
    data = data_of(instance)
    gpus, items, situations = len(data.price), len(data.items), data.situations
    w = floats(certificate, "capacity_price", (None, situations, gpus))
    nodes = len(w)
    pi = floats(certificate, "pool_price", (nodes, len(data.pool_limit)))
    cost = integers(certificate, "with_cost", (nodes,)) != 0
    split = integers(certificate, "split", (nodes, 5))
    recorded = certificate.get("prune_at")
    prune_at = math.inf if recorded is None else float(floats(certificate, "prune_at", ()))
    if not nodes:
        raise CertificateError("certificate has no nodes")
    highest = np.array([3, situations - 1, gpus - 1, max(items - 1, 0), 2**52])
    if (split < 0).any() or (split > highest).any() or ((split[:, 0] == ON_SLICES).any() and not data.integral):
        raise CertificateError("certificate.split names a variable that the instance does not have")
    pool = _read_cuts(data, certificate)
    mu = _read_cut_prices(certificate, nodes, len(pool.cuts))
    bound = prune_at
    waiting: list[tuple[Box | None, float]] = [(root_box(data), -math.inf)]
    for node in range(nodes):
        if not waiting:
            raise CertificateError(f"certificate has {nodes - node} nodes too many")
        box, inherited = waiting.pop()
        box = None if box is None else propagate(data, box)
        box, value = node_box(data, box, Node(w[node], pi[node], bool(cost[node]), mu.get(node, np.zeros(0))), pool, prune_at)
        value = max(value, inherited)  # a child's box lies in its parent's
        kind, s, g, i, v = (int(x) for x in split[node])
        if kind == LEAF:
            bound = min(bound, math.inf if box is None else value)
        elif kind == REFINE:
            waiting.append((box, value))
        else:
            lower, upper = (None, None) if box is None else halves(box, (kind, s, g, i, v))
            waiting += [(upper, value), (lower, value)]
    if waiting:
        raise CertificateError(f"certificate lacks {len(waiting)} nodes")
    return bound


def _read_cuts(data: Data, certificate: Mapping[str, Any]) -> CutPool:
    """Derive the certificate's cuts again. Raises `CertificateError` for one that cannot be derived."""
    pool = CutPool(data)
    if "cut_gpu" not in certificate:
        return pool
    gpu = integers(certificate, "cut_gpu", (None,))
    masks = integers(certificate, "cut_at_upper", (len(gpu), len(data.items)))
    if (gpu < 0).any() or (gpu >= len(data.price)).any():
        raise CertificateError("certificate.cut_gpu names a type that the instance does not have")
    for g, mask in zip(gpu, masks, strict=True):
        cut = rounding_cut(data, int(g), mask != 0)
        if cut is None:
            raise CertificateError("certificate.cut_at_upper names a cut that cannot be derived")
        pool.cuts.append(cut)
    return pool


def _read_cut_prices(certificate: Mapping[str, Any], nodes: int, cuts: int) -> dict[int, FloatArray]:
    """Cut multipliers by node; negative ones count as 0."""
    if "cut_price" not in certificate:
        return {}
    price = floats(certificate, "cut_price", (None,))
    node = integers(certificate, "cut_price_node", (len(price),))
    cut = integers(certificate, "cut_price_cut", (len(price),))
    if len(price) and ((node < 0).any() or (node >= nodes).any() or (cut < 0).any() or (cut >= cuts).any()):
        raise CertificateError("certificate.cut_price_node or cut_price_cut is out of range")
    found: dict[int, FloatArray] = {}
    for n, c, value in zip(node, cut, price, strict=True):
        found.setdefault(int(n), np.zeros(cuts))[int(c)] = max(float(value), 0.0)
    return found
