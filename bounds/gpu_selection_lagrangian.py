r"""Lagrangian bounds for GPU selection: any prices of capacity and of pool GPUs give one.

Price the capacity rows by w_sg >= 0 (USD/h a busy replica, situation s, type g) and the pool rows by pi_P >= 0 and relax them. What is
left falls apart into items and counts:

    L(w, pi) = sum_s sum_i  min { sum_g (w_sg a_gi / k) y_g : y in the box, sum_g y_g = k }      a_gi = r_i / q_gi; items go where they are cheapest
             + sum_g        min { e_g n_g : n_g in the box }                                     e_g = p_g + sum_P pi_P m_g - U sum_s w_sg
             + sum_s        U w_sh  (h: the type that lost a replica in s)  -  sum_P pi_P B_P

For every (w, pi) and every box (bounds on counts n and on slice counts y) L is at most the cost of each plan in that box, whether shares are
continuous or sliced (weak duality; Geoffrion 1974, doi 10.1007/BFb0120690). At the root box its maximum over (w, pi) is the LP bound with caps.
Further rows that every plan satisfies (`gpu_selection_cuts`) are relaxed in the same way. With p = 0 ("cost ignored") L > 0 proves that the
box holds no plan at all (Farkas).

Arithmetic: U = u (1 + CERTIFICATE_SLACK), so the bound holds for each plan `evaluate` accepts. `dual_value` rounds against us: each term has at
most a dozen roundings and numpy sums pairwise, so the error is below (12 + log2 N) 2^-53 < 1e-14 of the sum of the terms' absolute values for
any N that fits in memory; ten times that is subtracted. `exact_dual_value` uses rational numbers throughout.
Complexity of one evaluation: O(S G I log G).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from headroom.formulations.gpu_selection import most_replicas
from headroom.formulations.tolerances import CERTIFICATE_SLACK
from headroom.instances.gpu_selection import GpuSelection

FloatArray = npt.NDArray[np.float64]
ROUNDING: Final = 1e-13
PROPAGATION_ROUNDS: Final = 2


@dataclass(frozen=True)
class Data:
    """The instance as the bounds see it: items with load only; shares counted in slices (k = 1 and not integral when continuous)."""

    instance: GpuSelection
    items: npt.NDArray[np.int64]
    slice_load: FloatArray
    """Replicas of g kept busy by one slice of item i [G][I]; 0 where g cannot serve it."""
    can_serve: npt.NDArray[np.bool_]
    price: FloatArray
    capacity: float
    """Load that one replica may carry, CERTIFICATE_SLACK included."""
    slices: float
    integral: bool
    slices_per_load: FloatArray
    """How many slices of an item use up one unit of load [G][I], rounded up; a huge number where an item has next to no load."""
    pool_gpus: FloatArray
    pool_limit: FloatArray
    loss: FloatArray
    """Replicas missing in each situation [S][G]: situation 0 is the whole fleet, situation 1 + h has lost one replica of h."""

    @property
    def situations(self) -> int:
        return len(self.loss)


@dataclass(frozen=True)
class Box:
    """Bounds on counts [G] and on slice counts [S][G][I]. The arrays may be shared between boxes and are never written to."""

    n_lo: FloatArray
    n_hi: FloatArray
    y_lo: FloatArray
    y_hi: FloatArray


@dataclass(frozen=True)
class Priced:
    """L of one box, and what each unit of each variable costs beyond it."""

    value: float
    scale: float
    """Sum of the absolute values of L's terms: the yardstick of its rounding errors."""
    count_cost: FloatArray
    """e_g [G]."""
    slice_cost: FloatArray
    """Reduced cost of a slice [S][G][I]."""


def data_of(instance: GpuSelection) -> Data:
    """Collect what the bounds need."""
    items = instance.loaded_items
    can = instance.can_serve[:, items]
    k = float(instance.slices or 1)
    gpus = len(instance.gpus)
    loss = np.vstack([np.zeros((1, gpus)), np.eye(gpus)]) if instance.spare_replicas else np.zeros((1, gpus))
    slice_load = np.where(can, instance.load_replicas[:, items], 0.0) / k
    return Data(
        instance=instance,
        items=items,
        slice_load=slice_load,
        slices_per_load=(1 + 1e-9) / np.maximum(slice_load, 1e-100),
        can_serve=can,
        price=instance.price_usd_per_h,
        capacity=instance.max_utilisation * (1.0 + CERTIFICATE_SLACK),
        slices=k,
        integral=instance.slices is not None,
        pool_gpus=instance.pool_gpus,
        pool_limit=instance.pool_limit,
        loss=loss,
    )


def root_box(data: Data) -> Box:
    """All that any plan worth having can be. Counts are capped by `most_replicas`: more of a type than serves all alone is never cheaper."""
    shape = (data.situations, *data.can_serve.shape)
    return Box(
        n_lo=data.instance.min_count.astype(np.float64),
        n_hi=most_replicas(data.instance).astype(np.float64),
        y_lo=np.zeros(shape),
        y_hi=np.broadcast_to(np.where(data.can_serve, data.slices, 0.0), shape).copy(),
    )


def active(data: Data, box: Box) -> npt.NDArray[np.bool_]:
    """Which situations the box is sure to face [S]: a replica of h can only be lost where there is one."""
    mask = np.ones(data.situations, dtype=bool)
    if data.situations > 1:
        mask[1:] = box.n_lo >= 1
    return mask


@dataclass(frozen=True)
class CutTerms:
    """Rows gamma_n n + gamma_y y >= delta (whole fleet) that every plan satisfies, already weighted by multipliers >= 0 and summed.

    `scale` is the sum of the absolute values that went into delta, for the rounding error.
    """

    count: FloatArray
    slices: FloatArray
    right_side: float
    scale: float


def dual_value(data: Data, box: Box, w: FloatArray, pi: FloatArray, cost: bool = True, cuts: CutTerms | None = None) -> Priced:
    """L(w, pi) over the box, rounded down; +inf when the box is empty. Prices of situations the box need not face are ignored.

    `cuts` enters as further relaxed rows: its right side is gained, its coefficients are credited to counts and slices.
    """
    faced = active(data, box)
    if data.situations > 1:
        w = np.where(faced[:, None], w, 0.0)
    w, pi = np.maximum(w, 0.0), np.maximum(pi, 0.0)
    if (box.n_lo > box.n_hi).any():
        return _empty(data)
    c = w[:, :, None] * data.slice_load
    if cuts is not None:
        c[0] -= cuts.slices
    filled = _fill_items(data, box, c, faced) if data.integral else _cheapest_types(data, c, faced)
    if filled is None:
        return _empty(data)
    item_total, item_scale, slice_cost = filled
    # Counts.
    capacity_price = data.capacity * w.sum(axis=0)
    pool_price = pi @ data.pool_gpus
    price = data.price if cost else np.zeros_like(data.price)
    e = price + pool_price - capacity_price
    right_side, cut_scale = 0.0, 0.0
    if cuts is not None:
        e = e - cuts.count
        right_side, cut_scale = cuts.right_side, cuts.scale + float((np.abs(cuts.count) * np.maximum(box.n_hi, 1.0)).sum())
    n_at = np.where(e >= 0, box.n_lo, box.n_hi)
    lost = data.capacity * float((w * data.loss).sum())
    limits = float(pi @ data.pool_limit)
    scale = item_scale + cut_scale + float(((price + pool_price + capacity_price) * np.maximum(box.n_hi, 1.0)).sum()) + lost + limits
    value = item_total + right_side + float((e * n_at).sum()) + lost - limits - ROUNDING * scale
    return Priced(value, scale, e, slice_cost)


def _cheapest_types(data: Data, c: FloatArray, faced: npt.NDArray[np.bool_]) -> tuple[float, float, FloatArray] | None:
    """Cost of all items when shares are continuous, so that nothing but the counts is bounded: each goes where it is cheapest. O(S G I)."""
    cheapest = np.where(data.can_serve, c, np.inf)[faced].min(axis=1)
    total = float(cheapest.sum()) * data.slices
    return (total, total, c) if math.isfinite(total) else None


def _fill_items(data: Data, box: Box, c: FloatArray, faced: npt.NDArray[np.bool_]) -> tuple[float, float, FloatArray] | None:
    """Cost of all items within the box, the sum of its absolute terms, and each slice's reduced cost: the cheapest types are filled first.

    None when the box leaves an item no place. Situations not faced have no prices and cost nothing.
    """
    room = box.y_hi - box.y_lo
    rest = data.slices - box.y_lo.sum(axis=1)
    short = (rest < 0) | (room.sum(axis=1) < rest)
    if (short.any() and short[faced].any()) or (room.min(initial=0.0) < 0 and (room[faced] < 0).any()):
        return None
    # Sorting with what has no room last keeps "the last type filled" the marginal one.
    order = np.argsort(np.where(room > 0, c, np.inf), axis=1, kind="stable")
    room_sorted = np.take_along_axis(room, order, axis=1)
    before = np.cumsum(room_sorted, axis=1) - room_sorted
    fill = np.minimum(np.maximum(rest[:, None, :] - before, 0.0), room_sorted)
    c_sorted = np.take_along_axis(c, order, axis=1)
    placed = fill * c_sorted
    fixed = box.y_lo * c
    if data.situations > 1:
        placed, fixed = placed[faced], fixed[faced]
    item_total = float(placed.sum()) + float(fixed.sum())
    item_scale = float(np.abs(placed).sum()) + float(np.abs(fixed).sum())
    # The marginal type's price is the best multiplier of the cover row; where nothing is left to place, the cheapest type with room is.
    last = np.maximum(np.count_nonzero(fill > 0, axis=1) - 1, 0)
    slice_cost = c - np.take_along_axis(c_sorted, last[:, None, :], axis=1)
    return item_total, item_scale, slice_cost


def _empty(data: Data) -> Priced:
    return Priced(math.inf, 0.0, np.zeros(len(data.price)), np.zeros((data.situations, *data.can_serve.shape)))


def tighten(data: Data, box: Box, priced: Priced, prune_at: float) -> Box | None:
    """Shrink the box to what can still hold a plan cheaper than `prune_at`; None when nothing is left.

    Reduced-cost fixing (a unit more of a variable costs at least its reduced cost above L), then `propagate`. Every step is conservative by
    more than its rounding error.
    """
    if priced.value >= prune_at:
        return None
    n_lo, n_hi, y_lo, y_hi = box.n_lo, box.n_hi, box.y_lo, box.y_hi
    if math.isfinite(prune_at):
        slack = prune_at - priced.value + ROUNDING * (priced.scale + abs(prune_at))
        n_lo, n_hi = _fix(n_lo, n_hi, priced.count_cost, slack)
        if data.integral:
            y_lo, y_hi = _fix(y_lo, y_hi, priced.slice_cost, slack)
    return propagate(data, Box(n_lo, n_hi, y_lo, y_hi))


def _fix(lo: FloatArray, hi: FloatArray, cost: FloatArray, slack: float) -> tuple[FloatArray, FloatArray]:
    """Bounds outside which the reduced cost alone uses up the slack."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        steps = np.floor(slack / np.abs(cost) * (1 + 1e-9) + 1e-9)
    steps = np.where(np.isnan(steps), np.inf, steps)
    return np.where(cost < 0, np.maximum(lo, hi - steps), lo), np.where(cost > 0, np.minimum(hi, lo + steps), hi)


def propagate(data: Data, box: Box) -> Box | None:
    """Bounds that capacity, cover and pool rows imply; None when they leave nothing. Slice counts are touched only when they are integers."""
    n_lo, n_hi, y_lo, y_hi = box.n_lo, box.n_hi, box.y_lo, box.y_hi
    for _ in range(PROPAGATION_ROUNDS):
        if data.integral:
            # Unfaced situations take part too: what cover and capacity imply for them would hold if they were faced.
            y_lo = np.maximum(y_lo, y_hi + (data.slices - y_hi.sum(axis=1, keepdims=True)))
            y_hi = np.minimum(y_hi, y_lo + (data.slices - y_lo.sum(axis=1, keepdims=True)))
            least = (data.slice_load * y_lo).sum(axis=2)
            need = np.where(least > 0, least / data.capacity * (1 - 1e-12) + data.loss, 0.0)
            if data.situations > 1:
                need = need * active(data, Box(n_lo, n_hi, y_lo, y_hi))[:, None]
            n_lo = np.maximum(n_lo, np.ceil(need.max(axis=0) - 1e-9))
            spare = data.capacity * np.maximum(n_hi - data.loss, 0.0) * (1 + 1e-12) - least * (1 - 1e-12)
            y_hi = np.minimum(y_hi, y_lo + np.floor(spare[:, :, None] * data.slices_per_load + 1e-9))
        for gpus, limit in zip(data.pool_gpus, data.pool_limit, strict=True):
            drawing = gpus > 0
            left = limit - float((gpus * n_lo).sum())
            n_hi = np.where(drawing, np.minimum(n_hi, np.floor(n_lo + left / np.where(drawing, gpus, 1.0) + 1e-9)), n_hi)
        if (n_lo > n_hi).any():
            return None
        if data.integral and (y_lo > y_hi).any():
            if data.situations == 1 or (y_lo > y_hi)[active(data, Box(n_lo, n_hi, y_lo, y_hi))].any():
                return None
            return box  # only a situation that need not be faced is impossible: nothing to conclude in bounds on y
    return replace(box, n_lo=n_lo, n_hi=n_hi, y_lo=y_lo, y_hi=y_hi)


def exact_dual_value(data: Data, w: FloatArray, pi: FloatArray, cost: bool = True) -> Fraction:
    """L(w, pi) at the root box in rational arithmetic, the multipliers taken as the exact values of their doubles. O(G I) rational operations."""
    instance = data.instance
    k_gpus = range(len(instance.gpus))
    box = root_box(data)
    faced = active(data, box)
    prices = [[Fraction(float(max(w[s, g], 0.0))) if faced[s] else Fraction(0) for g in k_gpus] for s in range(data.situations)]
    pool = [Fraction(float(max(item, 0.0))) for item in pi]
    slack = 1 + Fraction(CERTIFICATE_SLACK)
    capacity = Fraction(instance.max_utilisation) * slack
    total = Fraction(0)
    for s in range(data.situations):
        if not faced[s]:
            continue
        for i in data.items:
            able = [g for g in k_gpus if instance.can_serve[g, i]]
            rate = Fraction(float(instance.rate_per_s[i]))
            # min_g w_g r / q_g: the rate is common, so compare w_g / q_g.
            total += rate * min(prices[s][g] / Fraction(float(instance.throughput_per_s[g, i])) for g in able)
        total += capacity * sum(prices[s][g] * int(data.loss[s, g]) for g in k_gpus)
    for g in k_gpus:
        e = -capacity * sum(prices[s][g] for s in range(data.situations))
        e += sum(pool[j] * int(data.pool_gpus[j, g]) for j in range(len(pool)))
        if cost:
            e += Fraction(float(instance.price_usd_per_h[g]))
        total += e * int(box.n_lo[g] if e >= 0 else box.n_hi[g])
    return total - sum((pool[j] * int(data.pool_limit[j]) for j in range(len(pool))), Fraction(0))


def round_down(value: Fraction) -> float:
    """The largest double that is at most `value`."""
    nearest = float(value)
    return nearest if Fraction(nearest) <= value else math.nextafter(nearest, -math.inf)
