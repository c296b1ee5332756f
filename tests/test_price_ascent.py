"""The ascent of concave functions: the projection against its optimality conditions, maxima that are known, windows, stops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headroom.solvers.price_ascent import Ascent, Function, Point, ascend, on_simplex

FINE = Ascent(600, 0.1, 1e-4, 1.0)


def start(rows: int, shares: int, prices: int = 0) -> Point:
    return Point(np.full((rows, shares), 1.0 / shares), np.zeros((rows, prices)))


# The projection.


def test_projection_satisfies_the_optimality_conditions() -> None:
    rng = np.random.default_rng(1)
    for n in range(200):
        rows = rng.normal(size=(5, int(rng.integers(1, 7)))) * 10.0 ** rng.integers(-3, 4)
        if n % 3 == 0:
            rows = np.round(rows)  # ties
        found = on_simplex(rows)
        scale = np.abs(rows).max() + 1.0
        assert (found >= 0).all()
        assert found.sum(axis=1) == pytest.approx(np.ones(5), abs=1e-14 * scale)
        # Nearest: rows - found is one number where found is positive and no more than it elsewhere.
        for row, near in zip(rows, found, strict=True):
            gap = row - near
            level = gap[near > 0].mean()
            assert gap[near > 0] == pytest.approx(level, abs=1e-13 * scale)
            assert (gap[near <= 0] <= level + 1e-13 * scale).all()


def test_projection_by_bisection() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        row = rng.normal(size=int(rng.integers(1, 9))) * 3
        low, high = row.min() - 1.0, row.max()
        for _ in range(100):  # the level at which what stands above it adds up to one
            level = (low + high) / 2
            low, high = (level, high) if np.maximum(row - level, 0).sum() > 1 else (low, level)
        assert on_simplex(row[None, :])[0] == pytest.approx(np.maximum(row - low, 0), abs=1e-12)


def test_projection_by_hand() -> None:
    # (0.9, 0.9): 0.4 from each. (3, 0): the corner. (0.2, 0.3, 0.5) is there. (-5, -5): the middle.
    assert on_simplex(np.array([[0.9, 0.9], [3.0, 0.0], [-5.0, -5.0]])) == pytest.approx(np.array([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]]))
    assert on_simplex(np.array([[0.2, 0.3, 0.5]])) == pytest.approx(np.array([[0.2, 0.3, 0.5]]))
    assert on_simplex(np.array([[7.0], [-7.0]])).tolist() == [[1.0], [1.0]]
    assert on_simplex(np.zeros((0, 3))).shape == (0, 3)


# Maxima that are known.


def games(payoff: np.ndarray) -> Function:
    """The row player's mixed strategy, one game a row of shares: sum over rows of min_j (share payoff)_j."""

    def function(point: Point) -> tuple[float, Point]:
        outcome = np.einsum("rm,rmj->rj", point.share, payoff)
        worst = outcome.argmin(axis=1)
        rows = np.arange(len(outcome))
        return float(outcome[rows, worst].sum()), Point(payoff[rows, :, worst], np.zeros_like(point.price))

    return function


def test_matrix_games() -> None:
    # Rock, paper, scissors: uniform, value 0. [[3, -1], [-1, 1]]: 3p - (1 - p) = -p + (1 - p), so p = 1/3, value 1/3. A first row that dominates: 2.
    rock = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    value, point = ascend(games(rock[None]), Point(np.array([[0.8, 0.2, 0.0]]), np.zeros((1, 0))), FINE)
    assert value == pytest.approx(0.0, abs=2e-3)
    assert point.share == pytest.approx(np.full((1, 3), 1 / 3), abs=5e-3)
    mixed = np.array([[[3.0, -1.0], [-1.0, 1.0]], [[2.0, 2.0], [1.0, 0.0]]])
    value, point = ascend(games(mixed), start(2, 2), FINE)
    assert value == pytest.approx(1 / 3 + 2.0, abs=2e-3)
    assert point.share == pytest.approx(np.array([[1 / 3, 2 / 3], [1.0, 0.0]]), abs=5e-3)


def test_price_of_a_knapsack() -> None:
    # Values 6, 5, 4 for sizes 1, 2, 4 and room for 3: the first two fit, 11. The dual 3p + (6 - p)+ + (5 - 2p)+ + (4 - 4p)+ is 11 for p from 1 to
    # 2.5, higher elsewhere.
    values, sizes = np.array([6.0, 5.0, 4.0]), np.array([1.0, 2.0, 4.0])

    def function(point: Point) -> tuple[float, Point]:
        price = float(point.price[0, 0])
        taken = values - sizes * price > 0
        dual = 3 * price + float((values - sizes * price)[taken].sum())
        return -dual, Point(np.zeros((1, 1)), np.array([[float(sizes[taken].sum()) - 3.0]]))

    value, point = ascend(function, start(1, 1, 1), FINE)
    assert value == pytest.approx(-11.0, abs=1e-3)
    assert 1.0 - 1e-3 <= point.price[0, 0] <= 2.5 + 1e-3


def quadratic(share: np.ndarray, price: np.ndarray) -> Function:
    def function(point: Point) -> tuple[float, Point]:
        off = Point(point.share - share, point.price - price)
        return -float((off.share**2).sum() + (off.price**2).sum()), Point(-2 * off.share, -2 * off.price)

    return function


def test_shares_and_prices_together_and_their_units() -> None:
    # Nearest points of the sets: (0.9, 0.9) -> (0.5, 0.5), (2, 0) -> (1, 0); prices -3 -> 0 and 40, which a unit of 1 would not reach.
    function = quadratic(np.array([[0.9, 0.9], [2.0, 0.0]]), np.array([[-3.0], [40.0]]))
    best = -(2 * 0.4**2 + 1.0 + 9.0)
    value, point = ascend(function, start(2, 2, 1), Ascent(1500, 0.1, 1e-4, 10.0))
    assert value == pytest.approx(best, abs=1e-2)
    assert point.share == pytest.approx(np.array([[0.5, 0.5], [1.0, 0.0]]), abs=1e-3)
    assert point.price == pytest.approx(np.array([[0.0], [40.0]]), abs=0.1)
    short, _ = ascend(function, start(2, 2, 1), Ascent(100, 0.1, 1e-4, 1e-3))
    assert short < value - 100


def test_every_point_is_feasible_and_the_best_is_kept() -> None:
    seen: list[float] = []
    rng = np.random.default_rng(3)

    def noisy(point: Point) -> tuple[float, Point]:
        assert (point.share >= 0).all()
        assert (point.price >= 0).all()
        assert point.share.sum(axis=1) == pytest.approx(np.ones(4), abs=1e-12)
        seen.append(float(rng.normal()))
        return seen[-1], Point(rng.normal(size=(4, 3)), rng.normal(size=(4, 2)))

    reported: list[tuple[float, Point]] = []
    value, point = ascend(noisy, start(4, 3, 2), Ascent(50, 0.5, 0.1, 2.0), on_best=lambda value, point: reported.append((value, point)))
    assert len(seen) == 50
    assert value == max(seen)
    assert [each for each, _ in reported] == sorted({each for n, each in enumerate(seen) if each == max(seen[: n + 1])})
    assert reported[-1][0] == value
    assert reported[-1][1] is point


def test_slopes_of_zero_move_nothing() -> None:
    value, point = ascend(lambda point: (1.0, Point(np.zeros((2, 2)), np.zeros((2, 1)))), start(2, 2, 1), Ascent(20, 0.1, 0.01, 1.0))
    assert value == 1.0
    assert (point.share.tolist(), point.price.tolist()) == ([[0.5, 0.5]] * 2, [[0.0]] * 2)


# Windows and stops.


def test_windows_share_their_steps() -> None:
    # Targets 0, 0, 6 and 2, 4, 9 for prices, in windows of three rows: their means, 2 and 5. Each for itself: the targets.
    target = np.array([[0.0], [0.0], [6.0], [2.0], [4.0], [9.0]])
    function = quadratic(np.ones((6, 1)), target)
    value, point = ascend(function, start(6, 1, 1), Ascent(500, 0.1, 1e-4, 3.0, windows=2))
    assert point.price.ravel() == pytest.approx([2.0] * 3 + [5.0] * 3, abs=1e-2)
    assert value == pytest.approx(-(4 + 4 + 16 + 9 + 1 + 16), abs=1e-2)
    fine, point = ascend(function, point, Ascent(500, 0.1, 1e-4, 3.0))
    assert point.price == pytest.approx(target, abs=2e-2)
    assert fine > value


@pytest.mark.parametrize(("rows", "windows"), [(7, 3), (5, 5), (3, 8), (1, 1), (100, 7)])
def test_windows_are_consecutive_and_about_equal(rows: int, windows: int) -> None:
    target = np.arange(rows, dtype=np.float64)[:, None]
    _, point = ascend(quadratic(np.ones((rows, 1)), target), start(rows, 1, 1), Ascent(30, 0.1, 0.01, 1.0, windows))
    price = point.price.ravel()
    lengths = np.diff(np.flatnonzero(np.concatenate([[True], np.diff(price) != 0, [True]])))
    assert len(lengths) == min(rows, windows)
    assert lengths.max() - lengths.min() <= 1
    assert (np.diff(price) >= 0).all()


@pytest.mark.parametrize("after", [1, 2, 7])
def test_a_stop_ends_it_with_the_best_point(after: int) -> None:
    looked = 0
    function = quadratic(np.ones((1, 1)), np.array([[9.0]]))

    def counting(point: Point) -> tuple[float, Point]:
        nonlocal looked
        looked += 1
        return function(point)

    value, point = ascend(counting, start(1, 1, 1), FINE, stop=lambda: looked >= after)
    assert looked == after
    assert value == -((9.0 - point.price[0, 0]) ** 2)
    assert value > -81.0 or after == 1


def test_no_iterations_look_at_nothing() -> None:
    begin = start(1, 2)
    value, point = ascend(games(np.eye(2)[None]), begin, Ascent(0, 0.1, 0.01, 1.0))
    assert value == -math.inf
    assert point is begin


def test_the_start_is_looked_at_as_it_is() -> None:
    begin = Point(np.array([[0.25, 0.75]]), np.array([[3.0]]))
    seen: list[Point] = []

    def function(point: Point) -> tuple[float, Point]:
        seen.append(point)
        return 0.0, point

    ascend(function, begin, Ascent(2, 0.1, 0.01, 1.0))
    assert seen[0] is begin
