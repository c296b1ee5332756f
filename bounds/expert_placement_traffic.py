r"""Lower bounds of traffic, and the recheck of their certificates.

Let y_bef be the share of e's tokens whose next expert f stands in the same part: the same device (D parts), or the same node (N parts). With
hops h1 <= h2 (another device of the node, another node), and W(parts) an upper bound of sum_b sum_ef p_bef y_bef,

    traffic >= [ h1 (P - W(devices)) + (h2 - h1) (P - W(nodes)) ] / boundaries            P = sum of all p

(if h2 < h1, min(h1, h2) (P - W(devices))). W comes from a relaxation of "who shares a part with whom" and its dual multipliers; any are valid.

**b-matching.** 0 <= y_ef <= 1, sum_f y_ef <= rows, sum_e y_ef <= columns: e meets at most the experts of its part; f is met by the slots of the parts
that hold it, `columns` = rows times the most parts that can. For any row_e, column_f >= 0

    W_b <= rows sum_e row_e + columns sum_f column_f + sum_ef max(0, p_ef - row_e - column_f)

**Chain of semidefinite relaxations** (no spare slots). Let Y_b be the 0/1 matrix over the experts of layers b and b + 1 with 1 where two share
a part: blocks X_b, Z_b, X_b+1. As a sum over parts of x x', Y_b - J / parts is positive semidefinite; rows of each block add up to k = E / parts,
diagonals are 1, and X_l is one matrix for both boundaries that layer l borders on. For any S_b >= 0 (semidefinite; blocks A_b, C_b, B_b) and any row,
column, layer multipliers, with H_l = B_l-1 + A_l,

    sum_b W_b <= - sum_b <S_b, J> / parts + k sum (row + column) + sum_bef max(0, p_bef + 2 C_bef - row_be - column_bf)
                 + sum_l [ tr H_l + 2 (k - 1) sum_e layer_le + sum_(e != f) max(0, H_lef - layer_le - layer_lf) ]

because <S_b, Y_b - J / parts> >= 0 may be added. An S_b whose least eigenvalue comes out as -s is used as S_b + s I, which costs
2 E s (1 - 1 / parts). The eigenvalues' rounding is added to s, that of sums is granted against us. Recheck: O(B E^3).

Sources: ExFlow (arXiv 2401.08383) states the placement problem; the relaxation of equipartition by Y - J / D is Karisch and Rendl's, "Semidefinite
programming and graph equipartition" (1998); chaining it over layers and the dual above are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.certificates import CertificateError, floats
from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]
EPSILON = float(np.finfo(np.float64).eps)
ROUNDING = 64 * EPSILON
"""Pairwise sums of up to 2^40 numbers are off by less than this times the sum of their sizes."""


@dataclass(frozen=True)
class Level:
    """Devices or nodes: `parts` of them, `price` of leaving one; an expert's part has `rows` slots, and `columns` slots hold one expert's parts."""

    parts: int
    price: float
    rows: int
    columns: int


def levels(instance: ExpertPlacement) -> list[Level]:
    """What leaving a device and, on top, leaving a node costs; only levels that cost something."""
    near, far = instance.hop_cost.same_node, instance.hop_cost.other_node
    if instance.node_devices == 1:
        near = far
    if instance.nodes == 1:
        far = near
    k, experts, most = instance.slots_per_device, instance.experts, instance.most_replicas
    found = [_level(instance.devices, min(near, far), k, experts, most)]
    if far > near:
        found.append(_level(instance.nodes, far - near, k * instance.node_devices, experts, most))
    return [level for level in found if level.price > 0 and level.parts > 1]


def _level(parts: int, price: float, slots: int, experts: int, most: int) -> Level:
    return Level(parts, price, min(slots, experts), min(slots * min(parts, most), experts))


def traffic_value(instance: ExpertPlacement, within: FloatArray) -> float:
    """The lower bound of a token's traffic from W of each level."""
    assert instance.transition is not None
    total = float(instance.transition.sum()) * (1 - ROUNDING)
    value = math.fsum(level.price * max(total - w, 0.0) for level, w in zip(levels(instance), within.tolist(), strict=True))
    return max(value * (1 - ROUNDING), 0.0) / (instance.layers - 1)


def matching_within(transition: FloatArray, level: Level, row: FloatArray, column: FloatArray) -> float:
    """W by b-matching multipliers row, column [B][E] >= 0, rounded up. O(B E^2)."""
    left = np.maximum(transition - row[:, :, None] - column[:, None, :], 0.0)
    parts = (level.rows * float(row.sum()), level.columns * float(column.sum()), float(left.sum()))
    return math.fsum(parts) * (1 + ROUNDING) + ROUNDING * float(transition.sum())


@dataclass(frozen=True)
class ChainPrices:
    """Multipliers of the chain: `psd` [B][2E][2E], `row`, `column` [B][E], `layer` [L][E]."""

    psd: FloatArray
    row: FloatArray
    column: FloatArray
    layer: FloatArray


def chain_within(transition: FloatArray, parts: int, prices: ChainPrices) -> float:
    """W by the multipliers of the semidefinite chain, rounded up. O(B E^3)."""
    boundaries, experts, _ = transition.shape
    k = experts / parts
    s = 0.5 * (prices.psd + prices.psd.transpose(0, 2, 1))
    size = np.sqrt((s * s).sum(axis=(1, 2)))
    shift = np.maximum(-np.linalg.eigvalsh(s)[:, 0], 0.0) + 16 * experts * EPSILON * size
    terms = [-s.sum() / parts, 2 * experts * (1 - 1 / parts) * shift.sum(), k * (prices.row.sum() + prices.column.sum())]
    cross = transition + 2 * s[:, :experts, experts:] - prices.row[:, :, None] - prices.column[:, None, :]
    terms.append(np.maximum(cross, 0.0).sum())
    inside = np.zeros((boundaries + 1, experts, experts))
    inside[:-1] += s[:, :experts, :experts]
    inside[1:] += s[:, experts:, experts:]
    terms += [np.ascontiguousarray(np.einsum("lee->le", inside)).sum(), 2 * (k - 1) * prices.layer.sum()]
    sizes = np.abs(s).sum() * 4 + 4 * k * (np.abs(prices.row).sum() + np.abs(prices.column).sum() + np.abs(prices.layer).sum())
    sizes += 2 * experts * (np.abs(prices.row).sum() + np.abs(prices.column).sum() + 2 * np.abs(prices.layer).sum()) + transition.sum()
    inside -= prices.layer[:, :, None] + prices.layer[:, None, :]
    np.einsum("lee->le", inside)[:] = 0.0
    terms.append(np.maximum(inside, 0.0).sum())
    return math.fsum(float(term) for term in terms) + ROUNDING * float(sizes)


def each_level(instance: ExpertPlacement, certificate: Mapping[str, Any]) -> Iterator[tuple[Level, Mapping[str, Any]]]:
    wanted = levels(instance)
    given = certificate.get("levels")
    if not isinstance(given, (list, tuple)) or len(given) != len(wanted) or not all(isinstance(item, Mapping) for item in given):
        raise CertificateError(f"certificate.levels must be a list of {len(wanted)} objects, one for devices and one for nodes where those cost more")
    yield from zip(wanted, given, strict=True)


def certified_traffic(instance: ExpertPlacement, certificate: Mapping[str, Any]) -> float:
    """What a `b_matching` or `chain_sdp` certificate proves of a token's traffic. Raises `CertificateError`."""
    if instance.transition is None or instance.layers < 2:
        return 0.0
    kind = certificate.get("kind")
    if kind not in ("b_matching", "chain_sdp"):
        raise CertificateError(f"certificate.kind must be 'b_matching' or 'chain_sdp', got {kind!r}")
    boundaries, experts = instance.layers - 1, instance.experts
    within = []
    for level, data in each_level(instance, certificate):
        row, column = floats(data, "row", (boundaries, experts)), floats(data, "column", (boundaries, experts))
        if kind == "b_matching":
            if (row < 0).any() or (column < 0).any():
                raise CertificateError("certificate.levels: row and column must not be negative")
            within.append(matching_within(instance.transition, level, row, column))
            continue
        if not chain_applies(instance, level):
            raise CertificateError("certificate.kind 'chain_sdp' needs as many slots as experts, as many in each part")
        psd = floats(data, "psd", (boundaries, 2 * experts, 2 * experts))
        prices = ChainPrices(psd, row, column, floats(data, "layer", (instance.layers, experts)))
        within.append(chain_within(instance.transition, level.parts, prices))
    return traffic_value(instance, np.array(within))


def chain_applies(instance: ExpertPlacement, level: Level) -> bool:
    """Whether each part holds exactly E / parts experts of every layer, each expert once."""
    return instance.slots == instance.experts and instance.experts % level.parts == 0
