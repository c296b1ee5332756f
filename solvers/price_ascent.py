"""Maximising a concave function of prices by supergradients: rows of shares that add up to one, and prices that are not negative.

Steps are those of Adam (Kingma and Ba, arXiv 1412.6980): supergradients averaged over the last steps and scaled by their own recent size, with a
rate that falls geometrically, then projected (shares onto the simplex, prices onto the orthant). Only the best point seen is kept: the caller's
function says what it proves, so no step can spoil a bound. Steps may be common to windows of rows: a coarse ascent of few numbers finds the place
from which the fine one sets out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MEAN_DECAY, SIZE_DECAY = 0.9, 0.99
COARSE_MEAN_DECAY, COARSE_SIZE_DECAY = 0.8, 0.95


@dataclass(frozen=True)
class Point:
    """`share` [rows][m], each row on the simplex; `price` [rows][n] >= 0."""

    share: FloatArray
    price: FloatArray


Function = Callable[[Point], tuple[float, Point]]
"""Value and supergradient at a point."""


@dataclass(frozen=True)
class Ascent:
    """`rate`, `last_rate`: length of a step at the beginning and the end, in shares; `unit`: what counts as much of a price as 1 of a share;
    `windows`: rows that share their steps, None: each for itself."""

    iterations: int
    rate: float
    last_rate: float
    unit: float
    windows: int | None = None


def ascend(
    function: Function,
    start: Point,
    ascent: Ascent,
    stop: Callable[[], bool] = lambda: False,
    on_best: Callable[[float, Point], None] = lambda value, point: None,
) -> tuple[float, Point]:
    """The best value seen and its point. The start is looked at first, or its windows' means. No guarantee of how near the maximum it comes."""
    window = _Windows(len(start.share), ascent.windows)
    means, sizes = (COARSE_MEAN_DECAY, COARSE_SIZE_DECAY) if ascent.windows else (MEAN_DECAY, SIZE_DECAY)
    at = [window.mean(start.share), window.mean(start.price)]
    mean = [np.zeros_like(part) for part in at]
    size = [np.zeros_like(part) for part in at]
    best, best_point = -np.inf, start
    for n in range(ascent.iterations):
        point = Point(window.spread(at[0]), window.spread(at[1])) if n or ascent.windows else start
        value, slope = function(point)
        if value > best:
            best, best_point = value, point
            on_best(value, point)
        if stop():
            break
        rate = ascent.rate * (ascent.last_rate / ascent.rate) ** (n / ascent.iterations)
        slopes = [window.mean(slope.share), window.mean(slope.price)]
        slopes[0] = slopes[0] - slopes[0].mean(axis=1, keepdims=True)
        for j, unit in enumerate((1.0, ascent.unit)):
            mean[j] += (1 - means) * (slopes[j] - mean[j])
            size[j] += (1 - sizes) * (slopes[j] ** 2 - size[j])
            step = mean[j] / (1 - means ** (n + 1)) / np.sqrt(size[j] / (1 - sizes ** (n + 1)) + 1e-300)
            at[j] = at[j] + rate * unit * step
        at = [on_simplex(at[0]), np.maximum(at[1], 0.0)]
    return best, best_point


def on_simplex(rows: FloatArray) -> FloatArray:
    """Each row's nearest point whose entries are not negative and add up to 1. O(m log m) a row."""
    width = rows.shape[1]
    falling = -np.sort(-rows, axis=1)
    above = np.cumsum(falling, axis=1) - 1.0
    kept = (falling - above / np.arange(1, width + 1) > 0).sum(axis=1)
    found: FloatArray = np.maximum(rows - (above[np.arange(len(rows)), kept - 1] / kept)[:, None], 0.0)
    return found


class _Windows:
    """Rows dealt into consecutive windows of about equal length."""

    def __init__(self, rows: int, windows: int | None) -> None:
        self._of: IntArray | None = None
        if windows is not None:
            count = min(windows, rows)
            self._of = np.arange(rows) * count // rows
            self._first = np.searchsorted(self._of, np.arange(count))
            self._length = np.diff(np.append(self._first, rows))[:, None]

    def mean(self, rows: FloatArray) -> FloatArray:
        """One row for each window."""
        if self._of is None:
            return rows
        found: FloatArray = np.add.reduceat(rows, self._first, axis=0) / self._length
        return found

    def spread(self, rows: FloatArray) -> FloatArray:
        return rows if self._of is None else rows[self._of]
