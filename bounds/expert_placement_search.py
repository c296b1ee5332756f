"""Multipliers for the traffic bounds: what the certificates of `expert_placement_traffic` hold is found here.

b-matching: a linear program for each boundary, or a subgradient search where that would be large. Chain of semidefinite relaxations: the
alternating direction method of multipliers between two sets that are easy to project onto, (1) Y_b - J / parts semidefinite with zero row sums in
each block: centre the blocks, drop the negative eigenvalues; (2) entries in [0, 1], unit diagonals, one X_l for both neighbours: clip and average.
What (1) drops is S_b, what its centring takes off are row, column and layer multipliers, so every iterate has a bound of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.expert_placement_traffic import ChainPrices, Level, chain_within

FloatArray = npt.NDArray[np.float64]
LP_ENTRIES = 300_000
"""Transitions up to which b-matchings are solved as linear programs: about ten seconds."""
SUBGRADIENT_STEPS = 200
CHECK_EVERY, MOST_ROUNDS = 20, 600
LEAST_GAIN = 2e-5
"""The semidefinite search ends when CHECK_EVERY rounds gain less than this share of the transitions."""
PENALTY = 4.0
"""Of the method, in units of the mean transition."""
MOST_WORK = 4e8
"""B (2E)^3 up to which the semidefinite relaxation is asked: a round takes less than about a fifth of a second."""


def matching_prices(transition: FloatArray, level: Level, stop: Callable[[], bool]) -> tuple[FloatArray, FloatArray]:
    """Row and column multipliers [B][E] of the b-matching bound."""
    if transition.size <= LP_ENTRIES:
        pairs = [_matching_lp(p, level) if not stop() else _matching_rows(p, level) for p in transition]
        return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])
    return _matching_subgradient(transition, level, stop)


def _matching_rows(p: FloatArray, level: Level) -> tuple[FloatArray, FloatArray]:
    """Rows alone: each expert keeps its `rows` largest transitions."""
    experts = len(p)
    row = np.sort(p, axis=1)[:, experts - level.rows] if level.rows < experts else np.zeros(experts)
    return row, np.zeros(experts)


def _matching_lp(p: FloatArray, level: Level) -> tuple[FloatArray, FloatArray]:
    import scipy.sparse as sp
    from scipy import optimize

    experts = len(p)
    ones, identity = np.ones((1, experts)), sp.eye_array(experts)
    matrix = sp.vstack([sp.kron(identity, ones), sp.kron(ones, identity)], format="csr")
    limit = np.concatenate([np.full(experts, float(level.rows)), np.full(experts, float(level.columns))])
    scale = float(p.max()) or 1.0
    linprog: Any = optimize.linprog  # its stubs know no sparse matrices
    answer = linprog(-p.ravel() / scale, A_ub=matrix, b_ub=limit, bounds=(0.0, 1.0), method="highs")
    if answer.status != 0:
        return _matching_rows(p, level)
    dual = np.maximum(-answer.ineqlin.marginals, 0.0) * scale
    return dual[:experts], dual[experts:]


def _matching_subgradient(transition: FloatArray, level: Level, stop: Callable[[], bool]) -> tuple[FloatArray, FloatArray]:
    """All boundaries together, steps falling as 1 / number; the best of each boundary."""
    boundaries, experts, _ = transition.shape
    row = np.array([_matching_rows(p, level)[0] for p in transition])
    column = np.zeros_like(row)
    best, best_row, best_column = np.full(boundaries, np.inf), row, column
    unit = transition.mean(axis=(1, 2))[:, None]
    for number in range(SUBGRADIENT_STEPS):
        over = transition - row[:, :, None] - column[:, None, :]
        value = level.rows * row.sum(axis=1) + level.columns * column.sum(axis=1) + np.maximum(over, 0.0).sum(axis=(1, 2))
        better = (value < best)[:, None]
        best, best_row, best_column = np.minimum(value, best), np.where(better, row, best_row), np.where(better, column, best_column)
        if stop():
            break
        used = over > 0
        step = 2.0 * unit / (1.0 + number) / np.sqrt(experts)
        row = np.maximum(row - step * (level.rows - used.sum(axis=2)), 0.0)
        column = np.maximum(column - step * (level.columns - used.sum(axis=1)), 0.0)
    return best_row, best_column


def worth_asking(transition: FloatArray) -> bool:
    """Whether the semidefinite relaxation is small enough."""
    return bool(len(transition) * (2.0 * transition.shape[1]) ** 3 <= MOST_WORK)


def chain_prices(transition: FloatArray, parts: int, stop: Callable[[], bool], report: Callable[[ChainPrices, float], None]) -> ChainPrices:
    """Multipliers of the semidefinite chain; `report` is told of each better set with its W. O(B E^3) a round."""
    boundaries, experts, _ = transition.shape
    total = float(transition.sum())
    penalty = PENALTY * float(transition.mean()) or 1.0
    gain = np.zeros((boundaries, 2 * experts, 2 * experts))
    gain[:, :experts, experts:] = transition / 2
    gain[:, experts:, :experts] = transition.transpose(0, 2, 1) / 2
    inside, dual = np.full_like(gain, 1.0 / parts), np.zeros_like(gain)
    best, best_value, checked = _multipliers(inside - dual, parts, penalty), np.inf, np.inf
    diagonal = np.arange(2 * experts)
    for number in range(1, MOST_ROUNDS + 1):
        centred = _centre(inside - dual)
        eigenvalue, vector = np.linalg.eigh(centred)
        semidefinite = 1.0 / parts + (vector * np.maximum(eigenvalue, 0.0)[:, None, :]) @ vector.transpose(0, 2, 1)
        target = semidefinite + dual + gain / penalty
        inside = target.copy()
        shared = np.zeros((boundaries + 1, experts, experts))
        shared[:-1] += target[:, :experts, :experts]
        shared[1:] += target[:, experts:, experts:]
        shared[1:-1] /= 2
        inside[:, :experts, :experts], inside[:, experts:, experts:] = shared[:-1], shared[1:]
        np.clip(inside, 0.0, 1.0, out=inside)
        inside[:, diagonal, diagonal] = 1.0
        dual += semidefinite - inside
        ended = stop()
        if number % CHECK_EVERY == 0 or ended:
            prices = _multipliers(inside - dual, parts, penalty)
            value = chain_within(transition, parts, prices)
            if value < best_value:
                best, best_value = prices, value
                report(prices, value)
            if ended or checked - best_value < LEAST_GAIN * total:
                break
            checked = best_value
    return best


def _centre(matrix: FloatArray) -> FloatArray:
    """Row and column sums of each of the four blocks taken off [B][2E][2E]."""
    boundaries, double, _ = matrix.shape
    blocks = matrix.reshape(boundaries, 2, double // 2, 2, double // 2)
    blocks = blocks - blocks.mean(axis=2, keepdims=True)
    centred: FloatArray = (blocks - blocks.mean(axis=4, keepdims=True)).reshape(matrix.shape)
    return centred


def _multipliers(point: FloatArray, parts: int, penalty: float) -> ChainPrices:
    """What projecting `point` onto set (1) takes off, as multipliers."""
    boundaries, double, _ = point.shape
    experts = double // 2
    centred = _centre(point)
    eigenvalue, vector = np.linalg.eigh(centred)
    psd = penalty * ((vector * np.maximum(-eigenvalue, 0.0)[:, None, :]) @ vector.transpose(0, 2, 1))
    sums = penalty * (point - 1.0 / parts - centred)
    row, column = _split_sums(2.0 * sums[:, :experts, experts:])
    inside = np.zeros((boundaries + 1, experts, experts))
    inside[:-1] += sums[:, :experts, :experts]
    inside[1:] += sums[:, experts:, experts:]
    return ChainPrices(psd, row, column, _split_sums(inside)[0])


def _split_sums(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Matrices r_e + c_f as r and c."""
    half = matrix.mean(axis=(1, 2))[:, None] / 2
    return matrix.mean(axis=2) - half, matrix.mean(axis=1) - half
