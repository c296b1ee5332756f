"""The bin packing engine: patterns against enumeration, packings and bounds against brute force, instances whose relaxation rounds up to less."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest

from headroom.bounds.request_packing_bins import heaviest, weighed
from headroom.bounds.request_packing_reduction import Counted
from headroom.instances.request_packing_augmented import core
from headroom.solvers import bin_patterns
from headroom.solvers.bin_columns import Items, Relaxation, greedy, items_of
from headroom.solvers.bin_packing import Found, _cover, assign, pack, useful_patterns
from headroom.solvers.bin_patterns import best_pattern, good_pattern, patterns_worth
from tests.oracles.request_packing import Oracle
from tests.request_packing_cases import bins

IntArray = npt.NDArray[np.int64]


def drawn(seed: int) -> tuple[Items, IntArray]:
    """A handful of items, and values for them."""
    rng = np.random.default_rng([3, seed])
    capacity = int(rng.choice([7, 20, 61, 100]))
    sizes = rng.integers(1, max(capacity * 2 // 3, 1) + 1, int(rng.integers(1, 8)))
    items = items_of(sizes, capacity)
    return items, rng.integers(0, 12, len(items.size))


def all_patterns(items: Items) -> IntArray:
    """Every content of a bin, the empty one too."""
    ranges = [range(int(d) + 1) for d in items.demand]
    found = np.array([copies for copies in itertools.product(*ranges) if np.dot(copies, items.size) <= items.capacity], np.int64)
    return found.reshape(-1, len(items.size))


def packed(items: Items, seed: int = 0) -> tuple[Found, list[tuple[int, int]]]:
    heard: list[tuple[int, int]] = []
    never = pack(items, np.random.default_rng(seed), lambda: False, lambda found: heard.append((found.bins, found.lowest)), lambda: math.inf)
    return never, heard


@pytest.mark.parametrize("branching", [False, True])
def test_best_pattern_is_the_best_of_all(branching: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if branching:
        monkeypatch.setattr(bin_patterns, "QUICK_FROM", 0)
    for seed in range(300):
        items, value = drawn(seed)
        best = int((all_patterns(items) @ value).max())
        found = best_pattern(items.size, value, items.demand, items.capacity)
        assert found.value == found.bound == best == int(found.copies @ value), seed
        assert (found.copies <= items.demand).all()
        assert found.copies @ items.size <= items.capacity
        quick = good_pattern(items.size, value, items.demand, items.capacity)
        assert int(quick.copies @ value) == quick.value <= best <= quick.bound, seed
        assert heaviest(Counted(items.size, items.demand, items.capacity), value) == best, seed


@pytest.mark.parametrize("cells", [1, 30, 300])
def test_branch_and_bound_that_gives_up_leaves_it_to_coarse_tables(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Units of many tokens down to one: what is found is a pattern, and what is said holds for all.
    monkeypatch.setattr(bin_patterns, "QUICK_FROM", 0)
    monkeypatch.setattr(bin_patterns, "TABLE_CELLS", cells)
    monkeypatch.setattr(bin_patterns, "NODES", 1)
    short = loose = 0
    for seed in range(300):
        items, value = drawn(seed)
        best = int((all_patterns(items) @ value).max())
        found = best_pattern(items.size, value, items.demand, items.capacity)
        assert found.value == int(found.copies @ value) <= best <= found.bound, seed
        assert (found.copies <= items.demand).all()
        assert found.copies @ items.size <= items.capacity
        short, loose = short + (found.value < best), loose + (found.bound > best)
    assert loose > 20 or cells > 30
    assert short + loose < 250


def test_the_last_three_items_are_looked_up() -> None:
    # Three items fill a bin at most, and sizes hardly differ: no more than a table of single items tells patterns apart.
    for seed in range(40):
        rng = np.random.default_rng([8, seed])
        items = items_of(rng.integers(251, 400, 12), 1000)
        value = items.size + rng.integers(0, 40, len(items.size))
        best = int((all_patterns(items) @ value).max())
        quick = good_pattern(items.size, value, items.demand, items.capacity)
        assert quick.value == quick.bound == best == int(quick.copies @ value), seed


@pytest.mark.parametrize("with_table", [True, False])
def test_listed_patterns_are_all_there_are(with_table: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_table:
        monkeypatch.setattr(bin_patterns, "TABLE_CELLS", 0)
    dropped = 0
    for seed in range(150):
        items, value = drawn(seed)
        value = np.sort(value)[::-1].copy()
        least = int(np.random.default_rng(seed).integers(1, 25))
        patterns = all_patterns(items)
        worth = {tuple(pattern) for pattern in patterns[patterns @ value >= least].tolist()}
        listed = patterns_worth(items.size, value, items.demand, items.capacity, least, False, 10**6, 10**9)
        assert listed is not None
        assert sorted(map(tuple, listed.tolist())) == sorted(worth), seed
        short = patterns_worth(items.size, value, items.demand, items.capacity, least, True, 10**6, 10**9)
        assert short is not None
        kept = {tuple(pattern) for pattern in short.tolist()}
        assert kept <= worth
        dropped += len(worth) - len(kept)
        # Whatever was left out has its places in one that was kept: as many of at least each size.
        for pattern in worth:
            assert any((np.cumsum(other) >= np.cumsum(pattern)).all() for other in kept), (seed, pattern)
    assert dropped > 500


def test_listing_gives_up_beyond_its_limits() -> None:
    items = items_of(np.arange(10, 40), 100)
    value = np.ones(len(items.size), np.int64)
    assert patterns_worth(items.size, value, items.demand, items.capacity, 1, False, 100, 10**9) is None
    assert patterns_worth(items.size, value, items.demand, items.capacity, 1, False, 10**6, 50) is None


def test_packings_and_bounds_against_brute_force() -> None:
    for seed in range(120):
        rng = np.random.default_rng([5, seed])
        capacity = int(rng.choice([20, 100, 1000]))
        sizes = rng.integers(max(1, capacity // int(rng.integers(3, 9))), capacity * 2 // 3, int(rng.integers(2, 10)))
        best = Oracle(bins(sizes.tolist(), capacity)).best()
        items = items_of(sizes, capacity)
        found, heard = packed(items, seed)
        assert found.bins == best == found.lowest, (seed, sizes, capacity)
        assert found.bound <= best
        proved = weighed(items.demand, found.weights, heaviest(Counted(items.size, items.demand, capacity), found.weights))
        assert found.bound <= proved <= best
        assert all(count >= best >= bound for count, bound in heard)
        where = assign(items, found.patterns)
        load = np.bincount(where, np.repeat(items.size, items.demand))
        assert len(load) == best
        assert load.max() <= capacity


def test_proper_patterns_prove_what_volume_and_free_copies_do_not() -> None:
    # With any number of copies 2/3 + 3/4 + 6/11 = 259/132 bins are enough in fractions; with two of 44 and three of 33 there are only 23/11 or more.
    items = items_of(np.repeat([44, 33, 12], [2, 3, 6]), 132)
    assert items.bins_by_volume == 2
    relaxation = Relaxation(items)
    relaxation.add(greedy(items, items.demand))
    relaxation.generate(exact=True)
    assert relaxation.exact
    assert relaxation.value == pytest.approx(23 / 11, abs=1e-6)
    assert relaxation.bound == 3


def test_an_integer_program_says_that_the_bound_is_not_enough() -> None:
    # The relaxation is t bins exactly, proved by halves of three items each; that no t bins do is proved by the generator's exhaustive search.
    for seed in range(3):
        sizes = core(np.random.default_rng(seed), 2_500, False)
        t = int(sizes.sum()) // 2_500
        found, heard = packed(items_of(sizes, 2_500), seed)
        assert (found.bins, found.bound, found.claimed) == (t + 1, t, t + 1)
        assert found.listed > 0
        assert heard[-1] == (t + 1, t + 1)


def test_patterns_of_a_packing_are_among_the_useful_ones() -> None:
    for seed in range(60):
        rng = np.random.default_rng([6, seed])
        sizes = rng.integers(20, 60, 9)
        items = items_of(sizes, 100)
        best = int(Oracle(bins(sizes.tolist(), 100)).best())
        relaxation = Relaxation(items)
        relaxation.add(greedy(items, items.demand))
        relaxation.generate(exact=True)
        found, _ = packed(items, seed)
        useful = useful_patterns(items, relaxation.sharpest, best, False)
        assert useful is not None
        listed = {tuple(pattern) for pattern in useful.tolist()}
        exact = np.zeros((best, len(items.size)), np.int64)
        which = np.repeat(np.arange(len(items.size)), items.demand)
        np.add.at(exact, (assign(items, found.patterns), which), 1)
        assert all(tuple(pattern) in listed for pattern in exact.tolist()), seed


def test_assign_refuses_patterns_that_are_too_small() -> None:
    items = items_of(np.array([5, 5, 3]), 10)
    with pytest.raises(ValueError, match="do not hold"):
        assign(items, np.array([[1, 1]]))
    with pytest.raises(ValueError, match="do not hold"):
        assign(items, np.array([[0, 3]]))


def test_stopping_at_once_leaves_a_packing_and_a_bound() -> None:
    items = items_of(np.random.default_rng(0).integers(20, 100, 120), 150)
    found = pack(items, np.random.default_rng(0), lambda: True, lambda found: None, lambda: 0.0)
    assert found.bins >= found.bound >= items.bins_by_volume
    assert (found.patterns.sum(axis=0) >= items.demand).all()


def test_branch_and_bound_with_huge_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bin_patterns, "TABLE_CELLS", 0)
    size = np.array([15873323869, 15288494658, 13536278214, 8598417537])
    found = best_pattern(size, size, np.array([1, 1, 1, 2]), 2**35)
    assert found.value == found.bound == 33070158943  # 15873323869 and twice 8598417537


def test_more_copies_than_sixteen_bits_hold() -> None:
    sizes = np.array([40000, 34000, 25000, 39001, 31000, 28999] + [3] * 33000)
    found, _ = packed(items_of(sizes, 99000))
    assert found.claimed <= 3
    assert found.lowest <= 3 <= found.bins


def test_the_program_over_patterns_is_never_dense_in_floats() -> None:
    rng = np.random.default_rng(0)
    patterns = np.zeros((20_000, 150), np.int64)
    for i in range(3):
        patterns[np.arange(20_000), rng.integers(0, 149, 20_000)] = i + 1
    # Nothing holds the last size: infeasible before HiGHS begins.
    items = Items(np.arange(200, 50, -1), np.ones(150, np.int64), 1_000)
    tracemalloc.start()
    try:
        assert _cover(items, patterns, 60, True, 5.0) == (None, True)
        assert tracemalloc.get_traced_memory()[1] < patterns.nbytes / 2
    finally:
        tracemalloc.stop()
