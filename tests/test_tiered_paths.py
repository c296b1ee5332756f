"""Shortest paths through tiers over steps against a plain reading of what an item does: step by step, and all paths of one item."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from headroom.solvers.tiered_paths import Answer, Items, PathEngine, Prices, by_item

STEPS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33)
Sums = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def random_items(rng: np.random.Generator, count: int, steps: int, tiers: int, inclusive: bool, often: float = 0.4) -> Items:
    """Births and deaths, sizes in quarters (sums are exact), partial amounts in half of the cases, items without events."""
    start = np.where(rng.random(count) < 0.5, 0, rng.integers(0, steps, count))
    end = np.where(rng.random(count) < 0.5, steps, np.minimum(start + rng.integers(1, steps + 1, count), steps))
    size = rng.integers(4, 40, count) / 4.0
    quiet = rng.random(count) < 0.2
    rows = [np.flatnonzero((start <= t) & (t < end) & ~quiet & (rng.random(count) < often)) for t in range(steps)]
    item = np.concatenate(rows)
    amount = np.floor(rng.random(len(item)) * (size[item] + 1) * 4).clip(0, size[item] * 4) / 4 if rng.random() < 0.5 else None
    first, step, amount = by_item(count, np.cumsum([0, *map(len, rows)]), item, amount)
    for array in (size, start, end):
        array.flags.writeable = False  # as an instance's arrays are: one compiled version serves both
    return Items(steps, tiers, size, start, end, first, step, amount, inclusive)


def random_prices(rng: np.random.Generator, steps: int, tiers: int) -> Prices:
    """Prices in eighths, so that ties are frequent; zeros, and prices of holding that are very large or infinite."""
    finest = int(rng.choice([3, 9]))
    hold = rng.integers(0, finest, (steps, tiers)) / 8.0 * rng.choice([0.0, 1.0, 1.0, 1e6], (steps, tiers))
    hold[:, :-1][rng.random((steps, tiers - 1)) < 0.1] = rng.choice([1e12, np.inf])
    hold[:, -1] = hold[:, -1].clip(0, 1.0)
    read, write = (rng.integers(0, finest, (steps, tiers)) / 8.0 * rng.choice([0.0, 1.0], (steps, tiers), p=[0.2, 0.8]) for _ in range(2))
    return Prices(read, write, hold, rng.integers(0, 5, steps) / 8.0 * rng.integers(0, 2))


def doings(items: Items, i: int, t: int, before: int | None, now: int) -> Iterator[tuple[str, int, float]]:
    """What item i does in step t, coming from tier `before` (None: born) to `now`: (kind, tier, bytes)."""
    size, last = float(items.size[i]), items.tiers - 1
    events = range(int(items.first[i]), int(items.first[i + 1]))
    wanted = {int(items.step[e]): size if items.amount is None else float(items.amount[e]) for e in events}
    free = items.inclusive and now == last
    yield "hold", now, size
    if before is None and t > 0:
        yield "write", now, size
        if items.inclusive and now != last:
            yield "write", last, size
    moved = before is not None and before != now
    if moved and not free:
        yield "read", int(before or 0), size
        yield "write", now, size
    if t in wanted:
        if not moved or free:
            yield "read", now, wanted[t]
        if moved or now > 0:
            yield "miss", 0, size


def cost(prices: Prices, t: int, done: Iterator[tuple[str, int, float]]) -> float:
    table = {"read": prices.read, "write": prices.write, "hold": prices.hold}
    return sum((prices.miss[t] if kind == "miss" else table[kind][t, k]) * amount for kind, k, amount in done if amount)


def slow_value(items: Items, prices: Prices) -> float:
    """All cheapest paths by going through every step of every life."""
    total = 0.0
    for i in range(items.count):
        value: list[float] = []
        for t in range(int(items.start[i]), int(items.end[i])):
            came: Sequence[int | None] = range(items.tiers) if value else [None]
            value = [min((value[a] if a is not None else 0.0) + cost(prices, t, doings(items, i, t, a, b)) for a in came) for b in range(items.tiers)]
        total += min(value)
    return total


def sums_of(items: Items, i: int, path: Sequence[int]) -> Sums:
    """Bytes read, written and held [T][K] and missed [T] of one item that takes this path."""
    found = {kind: np.zeros((items.steps, items.tiers)) for kind in ("read", "write", "hold", "miss")}
    before: int | None = None
    for t, now in enumerate(path, start=int(items.start[i])):
        for kind, k, amount in doings(items, i, t, before, now):
            found[kind][t, k] += amount
        before = now
    return found["read"], found["write"], found["hold"], found["miss"][:, 0]


def priced(prices: Prices, sums: Sums) -> float:
    pairs = zip((prices.read, prices.write, prices.hold, prices.miss), sums, strict=True)
    return float(sum(np.where(amount > 0, price, 0.0).ravel() @ amount.ravel() for price, amount in pairs))


def sums(answer: Answer) -> Sums:
    return answer.read, answer.written, answer.held, answer.missed


@pytest.mark.parametrize("tiers", [1, 2, 3, 4])
def test_value_is_that_of_the_cheapest_paths_and_its_bytes_cost_it(tiers: int) -> None:
    rng = np.random.default_rng([1, tiers])
    for n, steps in enumerate(STEPS * 2):
        items = random_items(rng, int(rng.integers(1, 8)), steps, tiers, inclusive=n % 3 == 0, often=[0.0, 0.1, 0.5, 1.0][n % 4])
        with PathEngine(items) as engine:
            for _ in range(2):  # prices of the first round must leave nothing behind
                prices = random_prices(rng, steps, tiers)
                answer = engine.solve(prices)
                assert answer.value == pytest.approx(slow_value(items, prices), rel=1e-12, abs=1e-12), (n, steps)
                assert priced(prices, sums(answer)) == pytest.approx(answer.value, rel=1e-12, abs=1e-9), (n, steps)
                living = [items.size[(items.start <= t) & (t < items.end)].sum() for t in range(steps)]
                assert answer.held.sum(axis=1).tolist() == living
                assert (np.concatenate([part.ravel() for part in sums(answer)]) >= 0).all()


@pytest.mark.parametrize("tiers", [1, 2, 3])
def test_bytes_of_one_item_are_those_of_a_cheapest_path(tiers: int) -> None:
    rng = np.random.default_rng([2, tiers])
    several = 0
    for n in range(90):
        items = random_items(rng, 1, int(rng.integers(1, 7)), tiers, inclusive=n % 2 == 0, often=[0.2, 0.8][n % 3 % 2])
        prices = random_prices(rng, items.steps, tiers)
        with PathEngine(items) as engine:
            answer = engine.solve(prices)
        life = int(items.end[0] - items.start[0])
        options = [sums_of(items, 0, path) for path in itertools.product(range(tiers), repeat=life)]
        costs = [priced(prices, option) for option in options]
        best = min(costs)
        cheapest = [option for option, each in zip(options, costs, strict=True) if each <= best * (1 + 1e-12) + 1e-12]
        assert answer.value == pytest.approx(best, rel=1e-12, abs=1e-12)
        assert any(all(map(np.array_equal, option, sums(answer))) for option in cheapest), n
        several += len(cheapest) > 1
    assert several >= 10 or tiers == 1  # ties were among them


@pytest.mark.parametrize("inclusive", [False, True])
def test_many_moves_between_events(inclusive: bool) -> None:
    """Rents that change from step to step and cheap moves: paths of many changes inside one stretch without events."""
    rng, changes = np.random.default_rng([5, inclusive]), 0
    for n in range(24):
        steps, tiers = int(rng.integers(20, 70)), 3 + n % 2
        items = random_items(rng, 6, steps, tiers, inclusive, often=0.02)
        rent, cheap = rng.random((steps, tiers)), rng.random((2, steps, tiers)) * 0.2
        prices = Prices(cheap[0], cheap[1], rent, np.zeros(steps))
        with PathEngine(items) as engine:
            answer = engine.solve(prices)
        assert answer.value == pytest.approx(slow_value(items, prices), rel=1e-12)
        assert priced(prices, sums(answer)) == pytest.approx(answer.value, rel=1e-12)
        changes += int((answer.written > 0).sum())
    assert changes >= 24 * 12


@pytest.mark.parametrize("inclusive", [False, True])
def test_parts_add_up_to_the_whole(inclusive: bool) -> None:
    rng = np.random.default_rng([3, inclusive])
    items = random_items(rng, 90, 21, 3, inclusive)
    prices = random_prices(rng, 21, 3)
    whole = PathEngine(items).solve(prices)
    for ends in ([0, 90], [0, 1, 2, 90], [0, 30, 31, 77, 90], items.cuts(5)):
        answers = [PathEngine(items.part(a, b)).solve(prices) for a, b in itertools.pairwise(ends)]
        total = answers[0]
        for answer in answers[1:]:
            total = total + answer
        assert total.value == pytest.approx(whole.value, rel=1e-12)
        assert all(map(np.array_equal, sums(total), sums(whole)))  # sizes are dyadic: exact in any order


def test_any_number_of_threads_gives_the_same_bits() -> None:
    rng = np.random.default_rng(4)
    items = random_items(rng, 400, 50, 2, False)
    items = Items(**{**vars(items), "size": items.size * rng.random(400)}) if items.amount is None else items
    prices = Prices(*(rng.random((50, 2)) for _ in range(3)), rng.random(50))
    with PathEngine(items) as one, PathEngine(items, threads=2) as two, PathEngine(items, threads=5) as five:
        answers = [engine.solve(prices) for engine in (one, two, five, two)]
    for answer in answers[1:]:
        assert answer.value == answers[0].value
        assert all(map(np.array_equal, sums(answer), sums(answers[0])))


def test_by_item_turns_rows_around() -> None:
    first, step, amount = by_item(4, np.array([0, 2, 2, 5]), np.array([3, 0, 0, 1, 3]), np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert first.tolist() == [0, 2, 3, 3, 5]
    assert step.tolist() == [0, 2, 2, 0, 2]
    assert amount is not None
    assert amount.tolist() == [2.0, 3.0, 4.0, 1.0, 5.0]
    first, step, amount = by_item(3, np.array([0, 0]), np.zeros(0, np.int64), None)
    assert (first.tolist(), step.tolist(), amount) == ([0, 0, 0, 0], [], None)


# By hand: one item of 2 bytes, two tiers.


def alone(steps: int, reads: list[int], start: int = 0, inclusive: bool = False, amount: float | None = None) -> Items:
    size, begin, end = np.array([2.0]), np.array([start]), np.array([steps])
    for array in (size, begin, end):
        array.flags.writeable = False
    amounts = None if amount is None else np.full(len(reads), amount)
    return Items(steps, 2, size, begin, end, np.array([0, len(reads)]), np.array(reads, np.int32), amounts, inclusive)


def flat(steps: int, read: tuple[float, float], write: tuple[float, float], hold: float, miss: float = 0.0) -> Prices:
    return Prices(np.tile(read, (steps, 1)), np.tile(write, (steps, 1)), np.tile([hold, 0.0], (steps, 1)), np.full(steps, miss))


def test_waiting_below_until_reads_begin() -> None:
    # Read in steps 3, 4, 5. Below each costs 2 x 5 = 10. Above: 2 x 1, and 2 x 1 of rent a step. Moving up in step 3 reads 2 x 5 below and writes
    # 2 x 1 above; that read serves step 3. Up at 3: 10 + 2 + 2 (rent), then 2 + 2 twice: 22. Up from the beginning: 6 steps x 2 + 3 x 2 = 18, less.
    # (Going down in step 5 would read 2 x 1 above and write 2 x 4 below: dearer than rent and read, 4 or 6.)
    items = alone(6, [3, 4, 5])
    answer = PathEngine(items).solve(flat(6, (1.0, 5.0), (1.0, 4.0), 1.0))
    assert answer.value == 18.0
    assert answer.held.tolist() == [[2.0, 0.0]] * 6
    # At a rent of 2 a byte from the beginning: 6 x 4 + 6 = 30; up at 3: 10 + 2 + 4 + 6 + 6 = 28; below: 30.
    answer = PathEngine(items).solve(flat(6, (1.0, 5.0), (1.0, 4.0), 2.0))
    assert answer.value == 28.0
    assert answer.held.tolist() == [[0.0, 2.0]] * 3 + [[2.0, 0.0]] * 3
    assert (answer.read.tolist()[3], answer.written.tolist()[3]) == ([0.0, 2.0], [2.0, 0.0])
    assert answer.missed.tolist() == [0.0, 0.0, 0.0, 2.0, 0.0, 0.0]


def test_births_pay_for_writing_and_copies_below() -> None:
    # Born in step 1 and read there. Above: 2 x 3 written, 2 x 1 read. Below: 2 x 1 written, 2 x 5 read, 2 x 4 for the miss.
    prices = flat(2, (1.0, 5.0), (3.0, 1.0), 0.0, miss=4.0)
    assert PathEngine(alone(2, [1], start=1)).solve(prices).value == 8.0
    # With a copy below, 2 x 1 more above; of 1 byte read, 1 less.
    answer = PathEngine(alone(2, [1], start=1, inclusive=True, amount=1.0)).solve(prices)
    assert answer.value == 9.0
    assert answer.written.tolist() == [[0.0, 0.0], [2.0, 2.0]]


def test_coming_into_an_inclusive_last_tier_costs_the_read_alone() -> None:
    # Free of rent in step 0 above, not to be paid for in step 1: down in step 1 where 1 of 2 bytes is read below, 5, and the miss of 2 x 0.25.
    items, prices = alone(2, [0, 1], inclusive=True, amount=1.0), flat(2, (1.0, 5.0), (9.0, 9.0), 0.0, miss=0.25)
    prices.hold[1, 0] = np.inf
    answer = PathEngine(items).solve(prices)
    assert answer.value == 1.0 + 5.0 + 0.5
    assert answer.read.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert answer.written.sum() == 0.0
    # Without copies the whole block is read above and written below: 2 x 1 + 2 x 9, and the miss. Better below from the beginning: 5.5 twice.
    assert PathEngine(alone(2, [0, 1], amount=1.0)).solve(prices).value == 11.0
