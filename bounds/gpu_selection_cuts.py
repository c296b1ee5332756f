r"""Mixed-integer rounding cuts for sliced GPU selection, derived so that anyone can derive them again.

Take the capacity row of type g over the whole fleet with y counted from whichever end of its range 0...k is named by a mask (`at_upper`):

    n_g + sum_{i at upper} b_i (k - y_gi) - sum_{i at lower} b_i y_gi >= beta,      b_i = slice load / U,  beta = k sum_{i at upper} b_i

All variables (n_g, k - y, y) are nonnegative integers, so with f = beta - floor(beta) > 0 and F(a) = floor(a) + min((a - floor(a)) / f, 1)

    n_g + sum_{i at upper} F(b_i) (k - y_gi) + sum_{i at lower} F(-b_i) y_gi >= ceil(beta)

holds for every plan (Nemhauser and Wolsey 1990, doi 10.1007/BF01585752). The cut says what a continuous relaxation forgets: a replica begun is a
replica paid. A certificate stores only g and the mask; coefficients are recomputed and rounded so that the cut can only get weaker: F is
nondecreasing, so the b_i are rounded up and beta down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_boxes import Data

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
ROUND = 1e-12
LEAST_FRACTION = 1e-6


@dataclass(frozen=True)
class Cut:
    """n[gpu] + slice_coefficient . y[gpu] >= right_side, valid for every plan of the instance (whole fleet)."""

    gpu: int
    at_upper: BoolArray
    slice_coefficient: FloatArray
    right_side: float


def rounding_cut(data: Data, gpu: int, at_upper: BoolArray) -> Cut | None:
    """The cut for one type and mask [I]; None when beta is too close to an integer to round safely or there is nothing to round.

    Only for integral shares and a single situation.
    """
    if not data.integral or data.situations > 1:
        return None
    at_upper = at_upper & data.can_serve[gpu]
    b = data.slice_load[gpu] / data.capacity
    beta = data.slices * math.fsum(b[at_upper]) * (1 - ROUND)
    f = beta - math.floor(beta)
    if f < LEAST_FRACTION or 1 - f < LEAST_FRACTION or beta > 2**40:
        return None
    signed = np.where(at_upper, b * (1 + ROUND), -b * (1 - ROUND))
    rounded = np.floor(signed) + np.minimum((signed - np.floor(signed)) / f, 1.0)
    rounded = rounded + ROUND * (1 + np.abs(rounded))
    rounded = np.where(data.can_serve[gpu], rounded, 0.0)
    # n + sum_U F (k - y) + sum_L F y >= ceil(beta)   <=>   n - sum_U F y + sum_L F y >= ceil(beta) - k sum_U F
    coefficient = np.where(at_upper, -rounded, rounded)
    total = data.slices * math.fsum(rounded[at_upper])
    return Cut(gpu, at_upper, coefficient, math.ceil(beta) - total - ROUND * (1 + abs(total)))
