r"""Lagrangian bounds of KV tiering: what multipliers prove, and the recheck with numpy alone.

Price the capacity of every bounded tier, mu_tk >= 0 a byte and step, and share each step's maximum out among what it is at least: the tiers' times,
with lambda_tk >= 0, and the rounding cut below, with gamma_t >= 0; sum_k lambda_tk + gamma_t <= 1. For any such multipliers and any plan

    sum_t T_t >= sum_t [sum_k lambda_tk (time of tier k in t) + gamma_t cut_t] + sum_t,k mu_tk (bytes in k - C_k)

and the right side falls apart into the blocks, each a shortest path through (step, tier), and a constant. Its least value is the bound:

    L(lambda, gamma, mu) = sum_i shortest path of i + sum_t (lambda_t0 f_t / R_0 + gamma_t a_t) - sum_t,k mu_tk C_k

Without cuts the best L equals the linear relaxation of the path formulation.

**Rounding cut.** In a step that reads n blocks, all whole and of s bytes, let x be the reads that are not served by a block that stays in tier 0.
x is whole; the other n - x (a block born in tier 0 is one of them) take tier 0 (f_t + (n - x) s) / R_0, and each of the x puts s min(1/R_k, 1/W_k)
at least onto some tier k >= 1: a block read or moved up there is read from it, one moved down or born into it is written (with `inclusive`: one that
comes into the last is read from there). So T_t >= h(x), the larger of tier 0's time and of the least makespan of x such jobs. The line through
(j, h(j)) and (j + 1, h(j + 1)) where h turns upward is below h at every whole x if h is convex; that is checked, not supposed:
T_t >= cut_t = a_t + slope_t s x, and slope_t may be negative.

**Capacity.** Where all blocks' sizes are whole multiples of g bytes, what is held is one too: C_k counts as the largest multiple of g that fits, and
as 0 where not even the smallest block fits.

Rounding: no term of a path is rounded more than 3 T + 16 times (a step adds to it at most three times, it is itself a product of at most five,
numpy adds blocks up pairwise), so the error is at most (8 T + 64) / 2^53 of the terms' sizes. Terms are not negative but for cuts that fall with x:
what these can take from the paths counts twice, being in the sum of sizes and not in the sum. Capacities get the slack that `evaluate` grants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.certificates import NOTHING, floats
from headroom.formulations.tolerances import CERTIFICATE_SLACK
from headroom.instances.kv_tiering import KvTiering

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
KIND = "lagrangian"
UNIT_ROUNDOFF = 2.0**-53
CUT_STEPS = 64
"""Cuts are looked for within so many whole numbers of the place where the tiers' times meet."""
NOISE = 1 + 1e-12
"""By so much a cut may touch the times that it must stay below; it is then lowered by more."""


@dataclass(frozen=True)
class Multipliers:
    """`tiers` [T][K] (lambda), `cut` [T] (gamma), `hold` [T][K - 1] (mu, seconds a byte)."""

    tiers: FloatArray
    cut: FloatArray
    hold: FloatArray

    def certificate(self) -> dict[str, Any]:
        """As a bound carries them."""
        return {"kind": KIND, "lambda": self.tiers, "cut": self.cut, "mu": self.hold}


@dataclass(frozen=True)
class Cuts:
    """`constant_s` [T] and `slope_s_per_byte` [T] of missed bytes; 0 where a step has no cut."""

    constant_s: FloatArray
    slope_s_per_byte: FloatArray

    @property
    def useful(self) -> bool:
        return bool(self.slope_s_per_byte.any())


def rounding_cuts(instance: KvTiering) -> Cuts:
    """The cut of every step that has one: reads whole and of one size, at least two tiers. O(T) for a handful of distinct read counts."""
    steps = instance.steps
    constant, slope = np.zeros(steps), np.zeros(steps)
    whole = instance.reads.bytes is None and bool((instance.size == instance.size[0]).all())
    if not whole or len(instance.tiers) < 2:
        return Cuts(constant, slope)
    counts = np.diff(instance.reads.indptr)
    known: dict[tuple[int, float], tuple[float, float]] = {}
    for t in range(steps):
        key = (int(counts[t]), float(instance.fixed[t]))
        if key not in known:
            known[key] = _one_cut(instance, *key)
        constant[t], slope[t] = known[key]
    return Cuts(constant, slope)


def _one_cut(instance: KvTiering, reads: int, fixed_bytes: float) -> tuple[float, float]:
    """Constant and slope a byte of the cut of a step with so many reads; zeros where there is none worth having. O(K log K) whatever `reads` is."""
    size = float(instance.size[0])
    miss_s = size * np.minimum(instance.read_s, instance.write_s)[1:]
    hit_s = size * float(instance.read_s[0])
    if reads < 1:
        return 0.0, 0.0
    base = fixed_bytes * float(instance.read_s[0])
    mean = 1.0 / float((1.0 / miss_s).sum())
    meet = (base + reads * hit_s) / (hit_s + mean)
    low, high = max(0, min(int(meet) - CUT_STEPS, reads)), min(int(meet) + CUT_STEPS, reads)
    x = np.arange(low, high + 1)
    if len(x) < 2:
        return 0.0, 0.0
    hits = base + (reads - x) * hit_s
    h = np.maximum(hits, _makespans(low, high, miss_s))
    at = max(int(h.argmin()), 1)
    best, gain = (0.0, 0.0), 0.0
    # The steepest line that stays below all points left of the lowest one, or the flattest right of it: whichever the tiers' own lines miss more.
    for j in sorted({at - 1, min(at, len(x) - 2)}):
        rise = max(float(h[j + 1] - h[j]), -hit_s)
        line = h[j] + rise * (x - x[j])
        # Outside the window h is above the lines of tier 0's time (left) and of the others' mean (right): these must stay above the line there.
        left = low == 0 or line[0] <= hits[0] * NOISE
        right = high == reads or (rise <= mean and line[-1] <= high * mean * NOISE)
        above = float(h[j] + rise * (meet - x[j])) - (base + (reads - meet) * hit_s)
        if above > gain and left and right and bool((line <= h * NOISE).all()):
            gain = above
            # Lowered, so that no rounding here can lift the line above h: neither where it was compared nor on the way to no misses and to all.
            constant = float(h[j]) - rise * float(x[j])
            best = (constant - 8e-12 * float(h.max()) - 64 * UNIT_ROUNDOFF * (abs(constant) + abs(rise) * reads), rise / size)
    return best


def _makespans(low: int, high: int, job_s: FloatArray) -> FloatArray:
    """Least makespans of low .. high equal jobs on machines that need `job_s` each: the ends of jobs on all machines, merged."""
    mean = 1.0 / float((1.0 / job_s).sum())
    # Ends surely before any of `low` jobs' makespan, which is no less than the mean's, are only counted.
    before = np.maximum(np.floor(low * mean / job_s) - 1.0, 0.0)
    counted = int(before.sum())
    ends = np.sort(((before + np.arange(1, high - counted + 1)[:, None]) * job_s).ravel())
    return np.concatenate([[0.0], ends])[np.arange(low, high + 1) - counted] if not counted else ends[np.arange(low, high + 1) - counted - 1]


def usable_capacity(instance: KvTiering) -> FloatArray:
    """What of each bounded tier's capacity blocks can fill [K - 1], the slack that `evaluate` grants included."""
    granted = instance.capacity[:-1] * (1 + CERTIFICATE_SLACK)
    size = instance.size
    smallest = float(size.min())
    grain = smallest
    if not (size == smallest).all():
        whole = bool((size == np.floor(size)).all()) and float(size.max()) < 2.0**52
        grain = float(np.gcd.reduce(size.astype(np.int64))) if whole else 0.0
    full = np.floor(granted / grain) * grain if grain > 0 else granted
    return np.where(granted < smallest, 0.0, full)


def multipliers_of(instance: KvTiering, certificate: Mapping[str, Any]) -> Multipliers:
    """The multipliers in a certificate: negative ones count as zero, shares that add up to more than one are scaled. Raises `CertificateError`."""
    steps, tiers = instance.steps, len(instance.tiers)
    share = np.maximum(floats(certificate, "lambda", (steps, tiers)), 0.0)
    cut = np.maximum(floats(certificate, "cut", (steps,)), 0.0) if "cut" in certificate else np.zeros(steps)
    hold = np.maximum(floats(certificate, "mu", (steps, tiers - 1)), 0.0)
    total = (share.sum(axis=1) + cut) * (1 + 16 * UNIT_ROUNDOFF)
    scale = np.where(total > 1.0, 1.0 / np.maximum(total, 1.0) * (1 - 4 * UNIT_ROUNDOFF), 1.0)
    return Multipliers(share * scale[:, None], cut * scale, hold)


def certified_value(instance: KvTiering, certificate: Mapping[str, Any]) -> float:
    """What the multipliers prove, rounded down. O(reads + T log T K^3). Raises `CertificateError`."""
    multipliers = multipliers_of(instance, certificate)
    cuts = rounding_cuts(instance)
    paths = _paths_value(instance, multipliers, cuts)
    constant = multipliers.tiers[:, 0] * instance.fixed * instance.read_s[0] + multipliers.cut * cuts.constant_s
    kept = multipliers.hold * usable_capacity(instance)[None, :]
    error = (8 * instance.steps + 64) * UNIT_ROUNDOFF
    # A cut that falls with x takes from the paths: rounding is relative to what is added and what is taken, not to the difference.
    taken = multipliers.cut * np.maximum(-cuts.slope_s_per_byte, 0.0) * np.diff(instance.reads.indptr) * instance.size[0]
    size = paths + 2 * float(taken.sum()) + float(np.abs(constant).sum())
    rounded = float(kept.sum()) * (1 + CERTIFICATE_SLACK + 16 * instance.steps * UNIT_ROUNDOFF)
    value = paths + float(constant.sum()) - size * error - rounded
    return value if value > NOTHING else 0.0


def _paths_value(instance: KvTiering, multipliers: Multipliers, cuts: Cuts) -> float:
    """Sum of all blocks' shortest paths: step by step over the blocks that are read, stretches without reads by products of matrices."""
    tiers, last = len(instance.tiers), len(instance.tiers) - 1
    read, write = multipliers.tiers * instance.read_s, multipliers.tiers * instance.write_s
    hold = np.zeros((instance.steps, tiers))
    hold[:, :last] = multipliers.hold
    miss = multipliers.cut * cuts.slope_s_per_byte
    base = read[:, :, None] + write[:, None, :]
    if instance.inclusive:
        base[:, :, last] = 0.0
    base[:, range(tiers), range(tiers)] = 0.0
    base += hold[:, None, :]
    ranges = _Ranges(base)
    birth, death, size = instance.birth, instance.death, instance.size
    value = hold[birth] + np.where(birth > 0, 1.0, 0.0)[:, None] * write[birth]
    if instance.inclusive:
        value[:, :last] += np.where(birth > 0, write[birth, last], 0.0)[:, None]
    position = birth.copy()
    indptr, block = instance.reads.indptr, instance.reads.block
    # A block that stays pays its read; one that moves has the read served, unless it comes into the inclusive last tier for nothing.
    missed = np.arange(tiers) > 0
    for t in range(instance.steps):
        here = block[indptr[t] : indptr[t + 1]]
        if not len(here):
            continue
        share = np.ones(len(here)) if instance.reads.bytes is None else instance.read_bytes(t) / size[here]
        served = share[:, None] * read[t][None, :] + np.where(missed, miss[t], 0.0)[None, :]
        born = birth[here] == t
        if born.any():
            value[here[born]] += served[born]
            here, share, served = here[~born], share[~born], served[~born]
        now = ranges.through(value[here], position[here] + 1, np.full(len(here), t - 1))
        step = np.broadcast_to(base[t] + miss[t], (len(here), tiers, tiers)).copy()
        step[:, range(tiers), range(tiers)] = base[t].diagonal()[None, :] + served
        if instance.inclusive:
            step[:, :last, last] += share[:, None] * read[t, last]
        value[here] = (now[:, :, None] + step).min(axis=1)
        position[here] = t
    done = ranges.through(value, position + 1, death - 1)
    return float((done.min(axis=1) * size).sum())


class _Ranges:
    """Cheapest ways through ranges of steps, for many items at once: a disjoint sparse table of min-plus products [level][T][K][K]."""

    def __init__(self, base: FloatArray) -> None:
        steps = len(base)
        self._base = base
        self._table = np.empty((max(1, (steps - 1).bit_length()), *base.shape))
        for level in range(len(self._table)):
            half = 1 << level
            table = self._table[level]
            middle = np.arange(half, steps, 2 * half)
            table[middle - 1], table[middle] = base[middle - 1], base[middle]
            for j in range(1, half):
                left = middle - 1 - j
                table[left] = (base[left][:, :, :, None] + table[left + 1][:, None, :, :]).min(axis=2)
                right = middle[middle + j < steps] + j
                table[right] = (table[right - 1][:, :, :, None] + base[right][:, None, :, :]).min(axis=2)

    def through(self, value: FloatArray, left: IntArray, right: IntArray) -> FloatArray:
        """Values [n][K] after the steps left .. right of each item; as they were where that range is empty."""
        value = value.copy()
        one = np.flatnonzero(left == right)
        if len(one):
            value[one] = (value[one][:, :, None] + self._base[left[one]]).min(axis=1)
        more = np.flatnonzero(left < right)
        if len(more):
            first, end = left[more], right[more]
            level = np.frexp((first ^ end).astype(np.float64))[1] - 1
            half = (value[more][:, :, None] + self._table[level, first]).min(axis=1)
            value[more] = (half[:, :, None] + self._table[level, end]).min(axis=1)
        return value
