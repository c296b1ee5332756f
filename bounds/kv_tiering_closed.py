r"""Closed-form bounds of KV-cache tiering; sets and parameters as in `headroom.formulations.kv_tiering`. ROUNDING is granted against us.

`bandwidth`. In a step that takes T_t seconds tier k reads at most R_k T_t bytes. A block that stays is read r_it, one that moves is read whole, a
free move into the last tier reads r_it there: at least f_t + sum_i r_it bytes are read in all, hence T_t >= (f_t + sum_i r_it) / sum_k R_k. Births
are not charged and the fixed bytes count as if any tier could read them.

`hit_volume`. The maximum of these values.

(a) As `bandwidth`, and births too. A byte written to k keeps it busy as R_k / W_k bytes read do, so a birth after step 0 counts as rho s_i bytes,
    rho the least R_k / W_k of all tiers (that of the last one where `inclusive`, which is written in any case); and T_t >= f_t / R_0 in each step.

(b) For each cut of the tiers into fast ones F = {0 .. c} and slow ones S = the rest: sum_t T_t >= (bytes that S must read) / sum_{k in S} R_k, as
    every byte written to k in S counts as R_k / W_k bytes read, at least as rho_S. Consider a read of block i in step t2 and the step t1 < t2 of
    its read before that, or of its birth. If i is in F in every step t1 .. t2 - 1, call the interval kept. If not, S reads at least r_it2 bytes of i
    in the steps t1 + 1 .. t2: i is in S in step t2 - 1, and then S serves the read whether i stays, moves on or comes up; or i came up in a step
    after t1 and before t2, for which s_i >= r_it2 bytes were read from S. These steps belong to this interval alone, so what intervals that are not
    kept cost adds up. A block born in S in step b costs S its read in b, if any, and rho_S s_i if b > 0 (that is charged in any case where
    `inclusive`, to the last tier). A kept interval takes s_i of the fast tiers' capacity in each of t1 .. t2 - 1, a birth in F in step b, and an
    interval kept from b is also a birth in F. Over all steps no more is taken than V = sum_t min(sum_{k in F} C_k, bytes of the blocks that have
    something to take it for), and blocks larger than each tier of F take none. Which intervals and births to keep is a knapsack of volume V; in
    fractions (with the birth before the interval from it, by joining the two where the later one is worth more a byte) the best are kept first. What
    is left S must read.

So hits are bounded over all steps together, as if capacity could be lent from step to step; the price of that is what LP bounds gain.
O(reads log reads + K T) time, O(reads) memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headroom.bounds.certificates import CertificateError
from headroom.formulations.progress import Progress
from headroom.formulations.tolerances import CERTIFICATE_SLACK
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.kv_tiering import KvTiering

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
ROUNDING = 1e-12
"""Relative: more than the sums here and in `evaluate` can be off (they are exact or pairwise; running ones are granted more)."""


def bandwidth(instance: KvTiering, params: SolveParams, progress: Progress) -> Bound:
    """No step is shorter than all tiers together need to read its bytes. O(reads)."""
    return Bound(bandwidth_value(instance), "bandwidth", "closed_form")


def hit_volume(instance: KvTiering, params: SolveParams, progress: Progress) -> Bound:
    """Fast memory has room for so many hits only; the slower tiers read the rest. O(K reads log reads)."""
    return Bound(hit_volume_value(instance), "hit_volume", "closed_form")


def bandwidth_value(instance: KvTiering) -> float:
    """Seconds, by numpy alone."""
    total = math.fsum(instance.fixed.tolist()) + math.fsum(_read_by_step(instance).tolist())
    return total / math.fsum((1.0 / instance.read_s).tolist()) * (1 - ROUNDING)


def hit_volume_value(instance: KvTiering) -> float:
    """Seconds, by numpy alone."""
    reads = _reads_by_block(instance)
    cuts = [_cut_value(instance, reads, cut) for cut in range(len(instance.tiers) - 1)]
    return max([_all_tiers(instance), *cuts]) * (1 - ROUNDING)


def recheck_closed(instance: KvTiering, method: str) -> float:
    """The value of a closed form by its name. Raises `CertificateError` for another name."""
    if method not in CLOSED:
        raise CertificateError(f"closed form must be one of {', '.join(CLOSED)}, got {method!r}")
    return CLOSED[method](instance)


CLOSED = {"bandwidth": bandwidth_value, "hit_volume": hit_volume_value}
"""The closed forms: their values alone."""


def _read_by_step(instance: KvTiering) -> FloatArray:
    """Bytes of the blocks' reads of each step [T]."""
    return np.array([instance.read_bytes(t).sum() for t in range(instance.steps)])


def _all_tiers(instance: KvTiering) -> float:
    """(a): all tiers as one, fixed bytes from tier 0 alone."""
    rate, late = 1.0 / instance.read_s, instance.birth > 0
    weight = instance.write_s / instance.read_s
    rho = weight[-1] if instance.inclusive else weight.min()
    written = np.bincount(instance.birth[late], instance.size[late], instance.steps)
    together = (instance.fixed + _read_by_step(instance) + rho * written) / rate.sum()
    return math.fsum(np.maximum(together, instance.fixed * instance.read_s[0]).tolist())


@dataclass(frozen=True)
class _Reads:
    """All reads, block by block in the order of their steps [read]. `at_birth` [N]: bytes read in the birth step, `end` [N]: the last read's step."""

    block: IntArray
    bytes: FloatArray
    steps: IntArray
    """Steps since the read before, or since the birth."""
    first: BoolArray
    """The first of its block after the birth step."""
    at_birth: FloatArray
    end: IntArray


def _reads_by_block(instance: KvTiering) -> _Reads:
    """Reads in birth steps are set apart: they end no interval."""
    order = np.argsort(instance.reads.block, kind="stable")
    block = instance.reads.block[order].astype(np.int64)
    step = np.repeat(np.arange(instance.steps), np.diff(instance.reads.indptr))[order]
    amount = instance.size[block] if instance.reads.bytes is None else instance.reads.bytes[order]
    born = step == instance.birth[block]
    at_birth = np.bincount(block[born], amount[born], instance.blocks).astype(np.float64)
    block, step, amount = block[~born], step[~born], amount[~born]
    first = np.diff(block, prepend=-1) != 0
    before = np.where(first, instance.birth[block], np.roll(step, 1))
    end = instance.birth.copy()
    end[block] = step  # the last one written is the last read
    return _Reads(block, amount, step - before, first, at_birth, end)


def _cut_value(instance: KvTiering, reads: _Reads, cut: int) -> float:
    """(b): seconds in which the tiers after `cut` read what the volume of the others cannot keep."""
    rate, weight, size = 1.0 / instance.read_s[cut + 1 :], (instance.write_s / instance.read_s)[cut + 1 :], instance.size
    late = instance.birth > 0
    whole_births = weight[-1] * math.fsum(size[late].tolist()) if instance.inclusive else 0.0
    birth_value = reads.at_birth + (0.0 if instance.inclusive else weight.min()) * np.where(late, size, 0.0)
    fits = size <= instance.capacity[: cut + 1].max() * (1 + CERTIFICATE_SLACK)
    paid = birth_value > 0
    # What each item saves S, and its volume. The first interval of a block whose birth is worth something has paid for the birth step already.
    value, volume = reads.bytes, size[reads.block] * reads.steps
    follows = reads.first & paid[reads.block]
    own = volume - np.where(follows, size[reads.block], 0.0)
    birth = birth_value[reads.block]
    joined = follows & (value * size[reads.block] > birth * own)
    value, volume = np.where(joined, value + birth, value), np.where(joined, volume, own)
    alone = paid.copy()
    alone[reads.block[joined]] = False
    kept = fits[reads.block]
    value, volume, never = value[kept], volume[kept], value[~kept]
    value = np.concatenate([value, birth_value[alone & fits]])
    volume = np.concatenate([volume, size[alone & fits]])
    missed = math.fsum(never.tolist()) + math.fsum(birth_value[alone & ~fits].tolist())
    room = _volume(instance, reads, cut, paid, fits)
    return (_not_kept(value, volume, room) + missed + whole_births) / float(rate.sum())


def _volume(instance: KvTiering, reads: _Reads, cut: int, paid: BoolArray, fits: BoolArray) -> float:
    """V: byte-steps of the fast tiers that kept intervals and births can take."""
    start, end = instance.birth[fits], np.maximum(reads.end, instance.birth + paid)[fits]
    size = instance.size[fits]
    wanted = np.cumsum(np.bincount(start, size, instance.steps + 1) - np.bincount(end, size, instance.steps + 1))[: instance.steps]
    slack = CERTIFICATE_SLACK + _running(len(start))
    # What is wanted is a difference of sums: its error is relative to the largest of them, not to itself.
    wanted = wanted + _running(2 * len(start) + instance.steps) * size.sum()
    return float(np.minimum(instance.capacity[: cut + 1].sum() * (1 + slack), wanted).sum())


def _not_kept(value: FloatArray, volume: FloatArray, room: float) -> float:
    """The value that is left when the best fractions of the items fill the room."""
    free = volume <= 0
    value, volume = value[~free], volume[~free]
    order = np.argsort(-(value / volume), kind="stable")
    value, volume = value[order], volume[order]
    filled = np.cumsum(volume)
    room *= 1 + _running(len(volume))
    whole = int(np.searchsorted(filled, room, side="right"))
    if whole == len(value):
        return 0.0
    before = float(filled[whole - 1]) if whole else 0.0
    part = max(0.0, 1.0 - (room - before) / float(volume[whole]))
    return math.fsum(value[whole + 1 :].tolist()) + part * float(value[whole])


def _running(terms: int) -> float:
    """Relative error of a running sum of so many positive terms."""
    return (terms + 4) * float(np.finfo(np.float64).eps)


__all__ = ["CLOSED", "bandwidth", "bandwidth_value", "hit_volume", "hit_volume_value", "recheck_closed"]
