r"""Boxes for GPU selection: bounds on counts and slice counts, and what the constraints imply inside them.

`propagate` is shared by the search and the recheck of its tree. It must be *monotone*: a smaller box in, a box at most as large out, for the
recheck knows the final incumbent and so starts from smaller boxes than the search did. Every step is conservative by more than its rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from headroom.formulations.gpu_selection import most_replicas
from headroom.formulations.tolerances import CERTIFICATE_SLACK, FEASIBILITY
from headroom.instances.gpu_selection import GpuSelection

FloatArray = npt.NDArray[np.float64]
PROPAGATION_ROUNDS: Final = 1
"""Measured on the benchmark grid: a second round costs more than the nodes it saves."""


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
    sole_type: npt.NDArray[np.bool_]
    """Whether some item has no other type [G]."""
    pool_gpus: FloatArray
    pool_limit: FloatArray
    loss: FloatArray
    """Replicas missing in each situation [S][G]: situation 0 is the whole fleet, situation 1 + h has lost one replica of h."""

    @property
    def situations(self) -> int:
        return len(self.loss)

    @property
    def rounding(self) -> float:
        """Relative error of a sum of this instance's terms, with a wide margin: a dozen roundings a term, numpy's pairwise sums over items (log N),
        and sums over types, situations and pools that may be sequential."""
        return 2.0**-52 * (400 + self.situations + len(self.price) + len(self.pool_limit))


@dataclass(frozen=True)
class Box:
    """Bounds on counts [G] and on slice counts [S][G][I]. The arrays may be shared between boxes and are never written to."""

    n_lo: FloatArray
    n_hi: FloatArray
    y_lo: FloatArray
    y_hi: FloatArray


def data_of(instance: GpuSelection) -> Data:
    """Collect what the bounds need."""
    items = instance.loaded_items
    can = instance.can_serve[:, items]
    k = float(instance.pooled_slices or 1)
    gpus = len(instance.gpus)
    loss = np.vstack([np.zeros((1, gpus)), np.eye(gpus)]) if instance.spare_replicas else np.zeros((1, gpus))
    slice_load = np.where(can, instance.load_replicas[:, items], 0.0) / k
    return Data(
        instance=instance,
        items=items,
        slice_load=slice_load,
        slices_per_load=(1 + 1e-9) / np.maximum(slice_load, 1e-100),
        can_serve=can,
        sole_type=(can & (can.sum(axis=0) == 1)).any(axis=1),
        price=instance.price_usd_per_h,
        # Slices are rounded by `evaluate` before they are added up: they cover exactly, and only the capacity itself has slack.
        capacity=instance.max_utilisation * (1.0 + (CERTIFICATE_SLACK if instance.pooled_slices is None else CERTIFICATE_SLACK - FEASIBILITY)),
        slices=k,
        integral=instance.pooled_slices is not None,
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


def active(data: Data, n_lo: FloatArray) -> npt.NDArray[np.bool_]:
    """Which situations are sure to be faced [S] when counts are at least n_lo: a replica of h can only be lost where there is one."""
    mask = np.ones(data.situations, dtype=bool)
    if data.situations > 1:
        mask[1:] = n_lo >= 1
    return mask


def propagate(data: Data, box: Box) -> Box | None:
    """Bounds that capacity, cover and pool rows imply; None when they leave nothing. Slice counts are touched only when they are integers.

    A situation that need not be faced yet takes part as if it were: what follows for its slice counts holds once it is. If it turns out to be
    impossible, its type can have no replica.
    """
    n_lo, n_hi, y_lo, y_hi = box.n_lo, box.n_hi, box.y_lo, box.y_hi
    for _ in range(PROPAGATION_ROUNDS):
        n_lo = _needed_replicas(data, n_lo, n_hi, y_lo)
        if (n_lo > n_hi).any():
            return None
        for gpus, limit in zip(data.pool_gpus, data.pool_limit, strict=True):
            drawing = gpus > 0
            left = limit - float((gpus * n_lo).sum())
            n_hi = np.where(drawing, np.minimum(n_hi, np.floor(n_lo + left / np.where(drawing, gpus, 1.0) + 1e-9)), n_hi)
        if data.integral:
            y_lo = np.maximum(y_lo, y_hi + (data.slices - y_hi.sum(axis=1, keepdims=True)))
            y_hi = np.minimum(y_hi, y_lo + (data.slices - y_lo.sum(axis=1, keepdims=True)))
            least = (data.slice_load * y_lo).sum(axis=2)
            spare = data.capacity * np.maximum(n_hi - data.loss, 0.0) * (1 + 1e-12) - least * (1 - 1e-12)
            y_hi = np.minimum(y_hi, y_lo + np.floor(spare[:, :, None] * data.slices_per_load + 1e-9))
            if (y_lo > y_hi).any():
                impossible = (y_lo > y_hi).any(axis=(1, 2))
                if impossible[0]:
                    return None
                n_hi = np.where(impossible[1:], 0.0, n_hi)
                y_lo = np.where(impossible[:, None, None], 0.0, y_lo)
                y_hi = np.where(impossible[:, None, None], np.where(data.can_serve, data.slices, 0.0), y_hi)
        if (n_lo > n_hi).any():
            return None
    return Box(n_lo, n_hi, y_lo, y_hi)


def _needed_replicas(data: Data, n_lo: FloatArray, n_hi: FloatArray, y_lo: FloatArray) -> FloatArray:
    """Lower bounds on counts: what slices placed for good keep busy, and one replica where an item has only one type left to go to.

    An item with load that is left with no type asks for more replicas than n_hi, so that the box is found empty.
    """
    faced = active(data, n_lo)
    need = np.zeros_like(data.loss)
    if data.integral:
        least = (data.slice_load * y_lo).sum(axis=2)
        need = np.where(least > 0, np.ceil(least / data.capacity * (1 - 1e-12) - 1e-9) + data.loss, 0.0)
    standing = n_hi - data.loss >= 1
    if standing.all():  # every type is open: the usual case, settled once for all boxes
        need = np.maximum(need, np.where(data.sole_type, 1.0 + data.loss, 0.0))
        raised: FloatArray = np.maximum(n_lo, np.where(faced[:, None], need, 0.0).max(axis=0))
        return raised
    open_types = data.can_serve & standing[:, :, None]
    choices = np.count_nonzero(open_types, axis=1)
    if choices.size and choices.min() <= 1:
        only = (open_types & (choices == 1)[:, None, :]).any(axis=2)
        need = np.maximum(need, np.where(only, 1.0 + data.loss, 0.0))
        need = np.where((choices == 0).any(axis=1)[:, None], np.inf, need)
    raised = np.maximum(n_lo, np.where(faced[:, None], need, 0.0).max(axis=0))
    return raised
