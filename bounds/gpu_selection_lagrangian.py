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

Arithmetic: U = u (1 + CERTIFICATE_SLACK), so the bound holds for each plan `evaluate` accepts. `dual_value` rounds against us: it subtracts
`Data.rounding` times the sum of the absolute values of its terms, a multiple of what their roundings can add up to; a value that overflows
counts as -inf. `exact_dual_value` uses rational numbers throughout.
Complexity of one evaluation: O(S G I log G).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_boxes import Box, Data, active, propagate, root_box
from headroom.formulations.tolerances import CERTIFICATE_SLACK

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Priced:
    """L of one box, and what each unit of each variable costs beyond it, with the error of that."""

    value: float
    error: float
    """What was subtracted from L for its rounding."""
    count_cost: FloatArray
    """e_g [G]."""
    count_error: FloatArray
    slice_cost: FloatArray
    """Reduced cost of a slice [S][G][I]."""
    slice_error: FloatArray


@dataclass(frozen=True)
class CutTerms:
    """Rows gamma_n n + gamma_y y >= delta (whole fleet) that every plan satisfies, already weighted by multipliers >= 0 and summed.

    The errors are bounds on the rounding of these sums.
    """

    count: FloatArray
    count_error: FloatArray
    slices: FloatArray
    slices_error: FloatArray
    right_side: float
    right_side_error: float


def dual_value(data: Data, box: Box, w: FloatArray, pi: FloatArray, cost: bool = True, cuts: CutTerms | None = None) -> Priced:
    """L(w, pi) over the box, rounded down; +inf when the box is empty. Prices of situations the box need not face are ignored.

    `cuts` enters as further relaxed rows: its right side is gained, its coefficients are credited to counts and slices.
    """
    if (box.n_lo > box.n_hi).any() or not data.can_serve.any(axis=0).all():
        return _nothing(data, math.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        priced = _dual_value(data, box, w, pi, cost, cuts)
    if priced is None:
        return _nothing(data, math.inf)
    # Prices so large that something overflowed prove nothing.
    return priced if math.isfinite(priced.value) and math.isfinite(priced.error) else _nothing(data, -math.inf)


def _dual_value(data: Data, box: Box, w: FloatArray, pi: FloatArray, cost: bool, cuts: CutTerms | None) -> Priced | None:
    faced = active(data, box.n_lo)
    if data.situations > 1:
        w = np.where(faced[:, None], w, 0.0)
    w, pi = np.maximum(w, 0.0), np.maximum(pi, 0.0)
    unit = data.rounding
    c = w[:, :, None] * data.slice_load
    c_error = unit * c
    if cuts is not None:
        c[0] -= cuts.slices
        c_error = unit * np.abs(c)
        c_error[0] += cuts.slices_error + unit * np.abs(cuts.slices)
    filled = _fill_items(data, box, c, c_error, faced) if data.integral else _cheapest_types(data, c, faced)
    if filled is None:
        return None
    item_total, item_scale, marginal, marginal_error = filled
    # Counts.
    capacity_price = data.capacity * w.sum(axis=0)
    pool_price = pi @ data.pool_gpus
    price = data.price if cost else np.zeros_like(data.price)
    e = price + pool_price - capacity_price
    e_error = unit * (price + pool_price + capacity_price)
    right_side = 0.0
    lost = data.capacity * float((w * data.loss).sum())
    limits = float(pi @ data.pool_limit)
    error = unit * (item_scale + lost + limits)
    if cuts is not None:
        e = e - cuts.count
        e_error = e_error + cuts.count_error + unit * np.abs(cuts.count)
        right_side = cuts.right_side
        # Where cuts are subtracted a price may lose digits: at most this much an item, whichever type it goes to.
        error += cuts.right_side_error + data.slices * float(c_error[0].max(axis=0, initial=0.0, where=np.abs(cuts.slices) > 0).sum())
    n_at = np.where(e >= 0, box.n_lo, box.n_hi)
    # A cost whose sign is in doubt is charged at the far end.
    error += float((e_error * np.where(np.abs(e) <= e_error, box.n_hi, n_at)).sum()) + unit * float((np.abs(e) * n_at).sum())
    value = item_total + right_side + float((e * n_at).sum()) + lost - limits - error
    return Priced(value, error, e, e_error, c - marginal, c_error + marginal_error)


def _cheapest_types(data: Data, c: FloatArray, faced: npt.NDArray[np.bool_]) -> tuple[float, float, FloatArray, FloatArray]:
    """Cost of all items when shares are continuous, so that nothing but the counts is bounded: each goes where it is cheapest. O(S G I)."""
    total = float(np.where(data.can_serve, c, np.inf)[faced].min(axis=1).sum()) * data.slices
    return total, abs(total), np.zeros(1), np.zeros(1)


def _fill_items(
    data: Data, box: Box, c: FloatArray, c_error: FloatArray, faced: npt.NDArray[np.bool_]
) -> tuple[float, float, FloatArray, FloatArray] | None:
    """Cost of all items within the box, the sum of its absolute terms, and each item's marginal price with its error: cheapest types first.

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
    placed, fixed = fill * c_sorted, box.y_lo * c
    if data.situations > 1:
        placed, fixed = placed[faced], fixed[faced]
    total = float(placed.sum()) + float(fixed.sum())
    scale = float(np.abs(placed).sum()) + float(np.abs(fixed).sum())
    # The marginal type's price is the best multiplier of the cover row; where nothing is left to place, the cheapest type with room is.
    last = np.maximum(np.count_nonzero(fill > 0, axis=1) - 1, 0)[:, None, :]
    marginal_error = c_error.max(axis=1, initial=0.0, where=room > 0)[:, None, :]
    return total, scale, np.take_along_axis(c_sorted, last, axis=1), marginal_error


def _nothing(data: Data, value: float) -> Priced:
    counts, slices = np.zeros(len(data.price)), np.zeros((data.situations, *data.can_serve.shape))
    return Priced(value, 0.0, counts, counts, slices, slices)


def tighten(data: Data, box: Box, priced: Priced, prune_at: float) -> Box | None:
    """Shrink the box to what can still hold a plan cheaper than `prune_at`; None when nothing is left.

    Reduced-cost fixing (a unit more of a variable costs at least its reduced cost above L), then `propagate`. Every step is conservative by
    more than its rounding error.
    """
    if priced.value >= prune_at:
        return None
    n_lo, n_hi, y_lo, y_hi = box.n_lo, box.n_hi, box.y_lo, box.y_hi
    if math.isfinite(prune_at) and math.isfinite(priced.value):
        slack = (prune_at - priced.value) * (1 + 1e-12)
        n_lo, n_hi = _fix(n_lo, n_hi, priced.count_cost, priced.count_error, slack)
        if data.integral:
            y_lo, y_hi = _fix(y_lo, y_hi, priced.slice_cost, priced.slice_error, slack)
    return propagate(data, Box(n_lo, n_hi, y_lo, y_hi))


def _fix(lo: FloatArray, hi: FloatArray, cost: FloatArray, error: FloatArray, slack: float) -> tuple[FloatArray, FloatArray]:
    """Bounds outside which the reduced cost alone, its error taken off, uses up the slack."""
    sure = np.maximum(np.abs(cost) - error, 0.0)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        steps = np.floor(slack / sure * (1 + 1e-9) + 1e-9)
    steps = np.where(sure > 0, steps, np.inf)
    return np.where(cost < 0, np.maximum(lo, hi - steps), lo), np.where(cost > 0, np.minimum(hi, lo + steps), hi)


def exact_dual_value(data: Data, w: FloatArray, pi: FloatArray, cost: bool = True) -> Fraction:
    """L(w, pi) at the root box in rational arithmetic, the multipliers taken as the exact values of their doubles. O(G I) rational operations."""
    instance = data.instance
    k_gpus = range(len(instance.gpus))
    box = root_box(data)
    faced = active(data, box.n_lo)
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
    try:
        nearest = float(value)
    except OverflowError:
        return math.nextafter(math.inf, 0.0) if value > 0 else -math.inf
    return nearest if Fraction(nearest) <= value else math.nextafter(nearest, -math.inf)
