"""Column generation and its knapsacks on cutting stock, where the answers are known, and against brute force."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from headroom.bounds.knapsack import knapsack_bound
from headroom.formulations.progress import Progress
from headroom.formulations.types import SolveParams
from headroom.solvers.bounded_knapsack import bounded_knapsack
from headroom.solvers.column_generation import Column, Master, Options, Priced, dive, generate, integer_master

# Chvátal, Linear Programming (1983), ch. 13: rolls of 100, finals of 45, 36, 31 and 14 inches.
SIZE, DEMAND = np.array([0.45, 0.36, 0.31, 0.14]), np.array([97, 610, 395, 211])


class Cutting:
    """Cutting stock with one roll: rows are demands, columns are patterns; `left` is what a dive has not cut yet."""

    def __init__(self, size: np.ndarray, demand: np.ndarray) -> None:
        self.size, self.demand, self.left = size, demand, demand.copy()
        self.master = Master(demand.astype(float), np.full(len(demand), np.inf))
        self.exact_calls = self.quick_calls = 0

    def price(self, duals: np.ndarray, with_cost: bool, exact: bool) -> Priced:
        self.exact_calls, self.quick_calls = self.exact_calls + exact, self.quick_calls + (not exact)
        values = np.maximum(duals[: len(self.size)], 0.0)
        answer = bounded_knapsack(values, self.size, self.left, 1.0, 1e-9 if exact else 1e-2)
        held = np.flatnonzero(answer.copies)
        column = Column(tuple(answer.copies.tolist()), 1.0, held, answer.copies[held].astype(float))
        worth = float(self.demand @ values)
        bound = worth / max(answer.upper_bound, 1e-300) if with_cost else (worth if answer.upper_bound <= 1e-12 else -math.inf)
        return Priced([column], bound)

    def settle(self, chosen: list[tuple[Column, int]]) -> bool:
        for column, count in chosen:
            self.left = np.maximum(self.left - count * np.array(column.key), 0)
        self.master.set_rows(self.left.astype(float), np.full(len(self.left), np.inf))
        return bool(self.left.any())


def progress(limit_s: float | None = None) -> Progress:
    return Progress(SolveParams(time_limit_s=limit_s))


def enumerated(size: np.ndarray, demand: np.ndarray) -> float:
    """The linear program over all patterns at once."""
    ranges = [range(min(int(d), int(1 / s)) + 1) for s, d in zip(size, demand, strict=True)]
    patterns = np.array([z for z in product(*ranges) if np.array(z) @ size <= 1 and any(z)], dtype=float)
    return float(linprog(np.ones(len(patterns)), A_ub=-patterns.T, b_ub=-demand).fun)


def test_chvatal_cutting_stock() -> None:
    # The textbook's optimum of the relaxation is 452.25 rolls, so 453 at least; 453 are enough.
    problem = Cutting(SIZE, DEMAND)
    found = generate(problem.master, problem.price, progress())
    assert found.ended == "optimal"
    assert found.objective == pytest.approx(452.25, abs=1e-6)
    assert found.bound == pytest.approx(452.25, abs=1e-6)
    assert found.bound <= 452.25 + 1e-9
    assert problem.quick_calls > 0
    assert problem.exact_calls > 0
    best, solver = integer_master(problem.master, SolveParams(), progress())
    assert best is not None
    assert solver.startswith("HiGHS")
    assert sum(count for _, count in best) >= 453
    cut = sum(count * np.array(column.key) for column, count in best)
    assert (cut >= DEMAND).all()


def test_a_dive_cuts_everything() -> None:
    problem = Cutting(SIZE, DEMAND)
    taken = dive(problem.master, problem.price, progress(), problem.settle)
    assert taken is not None
    assert 453 <= sum(count for _, count in taken) <= 456
    assert (sum(count * np.array(column.key) for column, count in taken) >= DEMAND).all()
    again = Cutting(SIZE, DEMAND)
    blurred = dive(again.master, again.price, progress(), again.settle, noise=(np.random.default_rng(1), 0.5))
    assert blurred is not None
    hopeless = Cutting(SIZE, DEMAND)
    assert dive(hopeless.master, hopeless.price, progress(), hopeless.settle, give_up_above=452.0) is None


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("smoothing", [0.0, 0.5, 0.9])
def test_generation_equals_the_program_over_all_patterns(seed: int, smoothing: float) -> None:
    rng = np.random.default_rng(seed)
    size, demand = rng.uniform(0.12, 0.7, 5), rng.integers(1, 6, 5)
    problem = Cutting(size, demand)
    bounds: list[float] = []
    options = Options(smoothing=smoothing, on_bound=lambda value, duals: bounds.append(value))
    found = generate(problem.master, problem.price, progress(), options)
    optimum = enumerated(size, demand)
    assert found.ended == "optimal"
    assert found.objective == pytest.approx(optimum, rel=1e-7)
    assert optimum * (1 - 1e-7) <= found.bound <= optimum * (1 + 1e-9)
    assert bounds == sorted(bounds)
    assert bounds[-1] == found.bound
    # Duals of this program are a good centre for the same one: nothing is left to find.
    other = Cutting(size, demand)
    repeat = generate(other.master, other.price, progress(), options, center=found.duals)
    assert repeat.objective == pytest.approx(optimum, rel=1e-7)


def test_early_ends() -> None:
    cut_off = Cutting(SIZE, DEMAND)
    found = generate(cut_off.master, cut_off.price, progress(), Options(cut_off=400.0))
    assert found.ended == "cut_off"
    assert 400 <= found.bound <= 452.25 + 1e-6
    target = Cutting(SIZE, DEMAND)
    found = generate(target.master, target.price, progress(), Options(target=500.0))
    assert found.ended == "target"
    assert found.objective <= 500
    stopped = Cutting(SIZE, DEMAND)
    found = generate(stopped.master, stopped.price, progress(1e-9))
    assert (found.ended, found.stop) == ("stopped", "time_limit")
    loose = Cutting(SIZE, DEMAND)
    found = generate(loose.master, loose.price, progress(), Options(good_enough=math.inf))
    assert found.ended == "optimal"
    assert loose.exact_calls == 0  # quick answers were enough for the caller


def test_what_no_column_can_satisfy_is_proved() -> None:
    # An item larger than the roll: the phase without costs ends with a bound above 0.
    problem = Cutting(np.array([0.4, 1.2]), np.array([3, 1]))
    found = generate(problem.master, problem.price, progress())
    assert found.ended == "infeasible"
    assert found.bound > 0
    assert found.duals is not None
    assert found.x is None
    assert found.duals[1] > 0


def test_rows_bounds_and_columns_can_change_under_a_warm_master() -> None:
    master = Master(np.array([4.0]), np.array([np.inf]), [Column("a", 1.0, np.array([0]), np.array([1.0]))])
    assert master.solve().objective == pytest.approx(4)
    assert master.add([Column("b", 1.5, np.array([0]), np.array([2.0])), Column("a", 9.0, np.array([0]), np.array([1.0]))]) == 1
    assert "b" in master
    assert master.solve().objective == pytest.approx(3)
    master.add_row(np.array([0.0, 1.0]), -np.inf, 1.0)  # at most one b
    answer = master.solve()
    assert answer.x is not None
    assert answer.objective == pytest.approx(3.5)
    assert answer.x.tolist() == pytest.approx([2, 1])
    assert master.columns[1].rows.tolist() == [0, 1]
    master.set_bounds(np.array([3.0, 0.0]), np.full(2, np.inf))
    assert master.solve().objective == pytest.approx(3 + 0.75)
    master.set_rows(np.array([4.0, -np.inf]), np.array([np.inf, 0.0]))
    assert master.solve().objective == pytest.approx(4)
    master.keep_only(np.array([False, True]))
    assert master.solve().status == "infeasible"
    assert master.solve(with_cost=False).objective == pytest.approx(2)  # two b too many: the violation, not the cost
    assert "a" not in master
    assert master.add([Column("a", 1.0, np.array([0]), np.array([1.0]))]) == 1


def test_a_full_pool_is_cleaned() -> None:
    rng = np.random.default_rng(3)
    problem = Cutting(rng.uniform(0.05, 0.5, 12), rng.integers(1, 9, 12))
    found = generate(problem.master, problem.price, progress(), Options(most_columns=30))
    other = Cutting(problem.size, problem.demand)
    assert found.objective == pytest.approx(generate(other.master, other.price, progress()).objective, rel=1e-6)
    assert len(problem.master.columns) <= 31 < len(other.master.columns)


def brute(value: np.ndarray, size: np.ndarray, copies: np.ndarray, capacity: float) -> float:
    best = 0.0
    for z in product(*(range(int(c) + 1) for c in copies)):
        if np.array(z) @ size <= capacity:
            best = max(best, float(np.array(z) @ value))
    return best


knapsacks = st.integers(1, 5).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(-1, 10) | st.sampled_from([0.0, 1e-12, 1.0]), min_size=n, max_size=n),
        st.lists(st.floats(0.01, 1.2) | st.sampled_from([0.25, 0.5, 1 / 3, 1e-9]), min_size=n, max_size=n),
        st.lists(st.integers(0, 3), min_size=n, max_size=n),
    )
)


@settings(max_examples=150, deadline=None)
@given(knapsacks, st.sampled_from([0.0, 1e-9, 1e-2]), st.sampled_from([3, 10**6]))
def test_bounded_knapsack_against_brute_force(data: tuple[list[float], list[float], list[int]], tolerance: float, nodes: int) -> None:
    value, size, copies = np.array(data[0]), np.array(data[1]), np.array(data[2])
    best = brute(value, size, copies, 1.0 + 1e-12)
    answer = bounded_knapsack(value, size, copies, 1.0 + 1e-12, tolerance, nodes)
    assert (answer.copies >= 0).all()
    assert (answer.copies <= copies).all()
    assert answer.copies @ size <= 1.0 + 1e-9
    assert answer.value == pytest.approx(float(answer.copies @ value), abs=1e-9)
    assert answer.value <= best + 1e-9
    assert answer.upper_bound >= best * (1 - 1e-9)
    if nodes > 3:
        assert answer.value >= best * (1 - tolerance) - 1e-9


@settings(max_examples=150, deadline=None)
@given(knapsacks, st.sampled_from([0.0, 0.5, 1.0, 1.5]), st.sampled_from([2, 10**5]))
def test_the_proved_knapsack_bound_never_lies(data: tuple[list[float], list[float], list[int]], share: float, states: int) -> None:
    value, size, copies = np.array(data[0]), np.array(data[1]), np.array(data[2], dtype=float)
    best = brute(value, size, copies, 1.0)
    bound = knapsack_bound(value, size, copies, 1.0, share * best, states)
    assert bound >= best
    if states > 2:
        # A true target is confirmed, a false one is found out, a lazy one is all that is proved.
        assert bound <= max(share, 1.0) * brute(value, size, copies, 1.0 + 1e-9) * (1 + 1e-9) + 1e-9


def test_knapsacks_at_the_edges() -> None:
    nothing = bounded_knapsack(np.zeros(2), np.ones(2), np.ones(2, dtype=np.int64), 1.0)
    assert (nothing.value, nothing.upper_bound) == (0.0, 0.0)
    many = bounded_knapsack(np.array([1.0]), np.array([1e-6]), np.array([10**6]), 1.0 + 1e-9)
    assert many.copies.tolist() == [10**6]
    assert knapsack_bound(np.array([1.0]), np.array([1e-6]), np.array([1e6]), 1.0, 0.0) == pytest.approx(1e6)
    assert knapsack_bound(np.array([1e308, 1e308]), np.array([0.1, 0.1]), np.array([2.0, 2.0]), 1.0, 0.0) == math.inf  # never a wrong number
    # Subset sums that are hard to tell apart: the budget ends the search, the bound holds.
    rng = np.random.default_rng(0)
    size = rng.uniform(0.01, 0.02, 60)
    hard = bounded_knapsack(size, size, np.ones(60, dtype=np.int64), 0.5, tolerance=0.0, nodes=1000)
    assert hard.value <= 0.5 <= hard.upper_bound * (1 + 1e-12)
    assert hard.upper_bound <= 0.5 * (1 + 1e-3)
