"""Groups and padding: the table of one bin, the bounds and their certificates, the search and the dives, against enumeration."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headroom.bounds.certificates import CertificateError
from headroom.bounds.request_packing_bins import volume_value
from headroom.bounds.request_packing_groups import (
    Types,
    grouped_bound,
    grouped_patterns,
    grouped_value,
    heaviest,
    least_bins,
    split_volume,
    split_volume_value,
    types_of,
)
from headroom.formulations.progress import Progress
from headroom.formulations.request_packing import BinPlan, evaluate
from headroom.formulations.types import SolveParams
from headroom.heuristics.request_packing_bins import ffd_grouped, ffd_prefix_blind
from headroom.instances.request_packing import RequestPacking
from headroom.instances.request_packing_presets import make
from headroom.solvers import grouped_patterns as grouped_patterns_engine
from headroom.solvers.grouped_columns import GroupedRelaxation, dive, filled_start, placed, start_of
from headroom.solvers.grouped_patterns import GroupedItems, best_grouped_pattern
from headroom.solvers.grouped_pieces import annealed_pieces, placed_requests
from headroom.solvers.grouped_search import fill, settle, squeeze
from headroom.solvers.request_packing_groups import grouped
from tests.oracles.request_packing import Oracle
from tests.request_packing_cases import bins, tiny_bins
from tests.test_request_packing_heuristics import problem

IntArray = npt.NDArray[np.int64]
RNG = np.random.default_rng(0)


def going() -> bool:
    return False


def items_of(instance: RequestPacking) -> GroupedItems:
    types = types_of(instance)
    return GroupedItems(types.size, types.group, types.demand, types.overhead, types.multiple, types.capacity)


def some_items(seed: int) -> tuple[GroupedItems, IntArray, IntArray]:
    """Up to six types, some copies, overheads that are or are not multiples of the padding; values and bonuses, some of them 0."""
    rng = np.random.default_rng([14, seed])
    types, groups, capacity, multiple = int(rng.integers(1, 7)), int(rng.integers(1, 4)), int(rng.integers(8, 40)), (1, 1, 2, 3, 5)[seed % 5]
    group, size = np.sort(rng.integers(0, groups, types)), rng.integers(1, capacity // 3 + 1, types)
    overhead = rng.integers(0, capacity // 5 + 1, groups) * (multiple if seed % 2 else 1)
    order = np.lexsort((-size, group))
    items = GroupedItems(size[order], group[order], rng.integers(1, 4, types), overhead, multiple, capacity)
    return items, rng.integers(0, 20, types) * (rng.random(types) < 0.8), rng.integers(0, 15, groups) * (rng.random(groups) < 0.5)


def by_enumeration(items: GroupedItems, value: IntArray, bonus: IntArray) -> int:
    """The most valuable content, from the definition."""
    best = 0
    for copies in itertools.product(*(range(d + 1) for d in items.demand.tolist())):
        load = worth = 0
        for g in range(len(items.overhead)):
            mine = [i for i in range(len(copies)) if items.group[i] == g and copies[i]]
            if mine:
                tokens = sum(int(items.size[i]) * copies[i] for i in mine)
                load += math.ceil(tokens / items.multiple) * items.multiple + int(items.overhead[g])
                worth += sum(int(value[i]) * copies[i] for i in mine) + int(bonus[g])
        if load <= items.capacity:
            best = max(best, worth)
    return best


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_the_most_valuable_bin_is_found_and_rechecked(first: int) -> None:
    coarse = 0
    for seed in range(first, first + 100):
        items, value, bonus = some_items(seed)
        # A type that does not fit alone is taken by nobody: neither table may rely on it.
        best = by_enumeration(items, value, bonus)
        found = best_grouped_pattern(items, value, bonus)
        assert found.value == found.bound == best, seed
        assert items.load(found.copies) <= items.capacity
        assert (found.copies <= items.demand).all()
        assert (found.copies >= 0).all()
        assert items.worth(found.copies, value, bonus) == best
        rough = best_grouped_pattern(items, value, bonus, steps=20)
        assert rough.value <= best <= rough.bound, seed
        assert items.load(rough.copies) <= items.capacity
        coarse += rough.bound > best
    assert coarse > 0  # the rough table is another one


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_the_recheck_finds_the_same_bin_or_a_heavier_one(first: int) -> None:
    for seed in range(first, first + 100):
        items, value, bonus = some_items(seed)
        data = bins([1], items.capacity)  # only for its type: the table's data are replaced
        types = types_of(problem(data))
        types = Types(items.size, items.group, items.demand, items.overhead, items.multiple, items.capacity, types.of)
        best = by_enumeration(items, value, bonus)
        assert heaviest(types, value, bonus, 1) == best, seed
        for grain in (2, 3, 7):
            assert heaviest(types, value, bonus, grain) >= best, seed


def test_bounds_stand_below_the_optimum_and_plans_above() -> None:
    tight = stronger = 0
    for seed in range(100):
        data = tiny_bins(seed)
        instance, best = problem(data), Oracle(data).best()
        params = SolveParams(seed=seed)
        progress = Progress(params, lambda plan, instance=instance: evaluate(instance, plan))
        split = split_volume_value(instance)
        priced = grouped_patterns(instance, params, Progress(params))
        assert volume_value(instance) <= split <= best, seed
        assert priced.value <= best, seed
        if priced.proof == "certificate" and priced.certificate is not None:
            assert grouped_value(instance, priced.certificate) == priced.value
        for bound in grouped(instance, params, progress):
            assert bound.value <= best, (seed, bound.method)
        assert progress.objective >= best
        assert isinstance(progress.plan, BinPlan)
        assert evaluate(instance, progress.plan).feasible
        tight += progress.objective == best
        stronger += split > volume_value(instance)
    assert tight == 100  # so small that the search finds all of them
    assert stronger > 2


def test_split_volume_by_hand() -> None:
    # Six requests of 3 behind a prefix of 4, bins of 10: two a bin beside the prefix, so three bins, all full. With a lone request of 1 beside them
    # the prefix is still needed three times: 18 + 12 + 1 = 31, four bins; the volume says 18 + 4 + 1 = 23, three bins.
    data = bins([3] * 6 + [1], 10, group=[0] * 6 + [-1], group_overhead_tokens=[4])
    instance = problem(data)
    assert least_bins(types_of(instance)).tolist() == [3, 1]
    assert (volume_value(instance), split_volume_value(instance), Oracle(data).best()) == (3, 4, 4)
    # Three requests of 4 behind 2: tokens fill 12 / 8 -> 2 bins, and so do pairs; of size 5 no two fit: 3 bins, 15 + 6 = 21 tokens in bins of 10.
    data = bins([5, 5, 5], 10, group=[0, 0, 0], group_overhead_tokens=2)
    assert least_bins(types_of(problem(data))).tolist() == [3]
    assert split_volume_value(problem(data)) == 3
    # Padding to 4 with bins of 10: loads are multiples of 4, a bin takes 8. Tokens 5 and 6 pad to 8 each: 16 tokens are two bins (1.6 would be too).
    # Three such lone requests: 24 tokens, three bins where the volume says 24 / 10 -> 3; four: 32 / 8 = 4, not 32 / 10 -> 4; nine: 9, not 8.
    data = bins([5] * 9, 10, group=[0, 0] + [-1] * 7, padding_multiple=4)
    assert (volume_value(problem(data)), split_volume_value(problem(data))) == (7, 9)  # two of one group pad to 12 together: 12 + 56 = 68
    # A request larger than a bin: no plan.
    assert split_volume_value(problem(bins([5, 9], 10, group=[0, 0], group_overhead_tokens=2))) == math.inf


def medium(seed: int) -> RequestPacking:
    """Few requests a bin, dear overheads: the program over patterns proves more than the volume."""
    rng = np.random.default_rng([77, seed])
    size, group, overhead = rng.integers(100, 351, 60), rng.integers(-1, 15, 60), rng.integers(100, 401, 15)
    data = bins(size.tolist(), 1000, group=group.tolist(), group_overhead_tokens=overhead.tolist(), padding_multiple=50 if seed % 2 else 1)
    return problem(data)


@pytest.mark.parametrize("seed", range(4))
def test_certificates_prove_what_they_say_and_no_more(seed: int) -> None:
    instance, params = medium(seed), SolveParams()
    bound = grouped_patterns(instance, params, Progress(params))
    assert bound.proof == "certificate"
    assert bound.certificate is not None
    assert bound.value == grouped_value(instance, bound.certificate) > split_volume_value(instance) >= volume_value(instance)
    weight, bonus = np.array(bound.certificate["weight"]), np.array(bound.certificate["bonus"])
    progress = Progress(params, lambda plan: evaluate(instance, plan))
    grouped(instance, params, progress)
    rng = np.random.default_rng(seed)
    # Whatever the numbers are, they prove no more than a plan shows to be possible.
    for _ in range(20):
        other = dict(bound.certificate)
        other["weight"] = np.where(rng.random(len(weight)) < 0.2, weight * rng.integers(0, 5, len(weight)), weight)
        other["bonus"] = np.where(rng.random(len(bonus)) < 0.2, 3 * bonus + 10**8, bonus)
        other["grain"] = int(rng.integers(1, 5))
        assert grouped_value(instance, other) <= progress.objective
    # Without weights the closed form is left.
    assert grouped_value(instance, {**bound.certificate, "weight": 0 * weight, "bonus": 0 * bonus}) == split_volume_value(instance)
    assert grouped_value(instance, {**bound.certificate, "weight": -weight}) < bound.value
    assert grouped_value(instance, {**bound.certificate, "grain": 1000}) < bound.value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": [1, 2]}, "certificate.weight must have shape"),
        ({"bonus": [[1]]}, "certificate.bonus must have shape"),
        ({"weight": None}, "certificate.weight must"),
        ({"grain": 0}, "certificate.grain must be a whole number"),
        ({"grain": 1.5}, "certificate.grain must be a whole number"),
        ({"grain": 10**9}, "certificate.grain must be a whole number"),
        ({"bonus": "huge"}, "less than 2\\^58"),
        ({"bonus": "half"}, "certificate.bonus must be whole"),
    ],
)
def test_broken_certificates_are_refused(change: dict[str, Any], message: str) -> None:
    instance = medium(0)
    types = types_of(instance)
    good = grouped_bound(instance, types, types.size, types.overhead).certificate
    assert good is not None
    groups = len(types.overhead)
    named = {"huge": np.full(groups, 2**53), "half": np.full(groups, 0.5)}
    change = {key: named.get(value, value) if isinstance(value, str) else value for key, value in change.items()}
    if "bonus" in change and change["bonus"] is named["huge"]:
        change["weight"] = np.full(len(types.size), 2**53)
    with pytest.raises(CertificateError, match=message):
        grouped_value(instance, {**good, **change})


def test_the_volume_is_one_choice_of_weights() -> None:
    for seed in range(0, 8, 2):  # without padding
        types = types_of(medium(seed))
        total = int((types.size * types.demand).sum() + (types.overhead * least_bins(types)).sum())
        assert heaviest(types, types.size, types.overhead, 1) <= types.capacity
        assert -(-total // types.capacity) == split_volume_value(medium(seed))


@pytest.mark.parametrize("seed", range(4))
def test_packings_hold_everything_within_capacity(seed: int) -> None:
    instance = medium(seed)
    items = items_of(instance)

    def check(patterns: IntArray) -> None:
        assert (patterns.sum(axis=0) == items.demand).all()
        assert all(items.load(p) <= items.capacity for p in patterns)

    start = start_of(items)
    check(start)
    check(filled_start(items, 5, np.random.default_rng(seed), going))
    heard = [start]
    better = squeeze(items, start, 1, np.random.default_rng(seed), going, heard.append, 60)
    check(better)
    assert len(better) < len(start)
    assert len(heard[-1]) == len(better)
    filled, rest = fill(items, items.demand, 5, np.random.default_rng(seed), 0.01, going)
    assert (filled.sum(axis=0) + rest == items.demand).all()
    assert all(items.load(p) <= items.capacity for p in filled)
    relaxation = GroupedRelaxation(items, least_bins(types_of(instance)))
    relaxation.add(better)
    relaxation.generate()
    assert relaxation.bound <= len(better)
    assert relaxation.value >= relaxation.share - 1e-6
    dived = dive(relaxation, len(better) + 2, np.random.default_rng(seed), draw=False)
    assert dived is not None
    assert (dived.sum(axis=0) >= items.demand).all()
    assert all(items.load(p) <= items.capacity for p in dived)


def test_places_go_to_smaller_items_of_the_same_group() -> None:
    items = GroupedItems(np.array([9, 5, 2, 7, 1]), np.array([0, 0, 0, 1, 1]), np.full(5, 9), np.array([0, 0]), 1, 100)
    # No 9 is left: one of its two places takes the only 5, the other a 2. The place of the 7 is for a 1 of its own group.
    assert placed(items, np.array([2, 0, 1, 1, 0]), np.array([0, 1, 5, 0, 3])).tolist() == [0, 1, 2, 0, 1]


def test_parts_by_hand() -> None:
    # Bins of 10. Group 0 (overhead 4, 6 tokens) fills one, group 1 (1, 18) two others, each with 9 tokens, group 2 (0, 5) half of a fourth. There is
    # no other way: cutting 0 costs 4 tokens more, and 1 cut into three costs one more, which three bins have not. (The margin of 1 forbids it all.)
    items = GroupedItems(np.array([2, 1, 1]), np.array([0, 1, 2]), np.array([3, 18, 5]), np.array([4, 1, 0]), 1, 10)
    pieces = annealed_pieces(items, 4, 20_000, np.random.default_rng(0), going)
    assert not pieces[4].any()
    assert sorted(pieces[:4, :2].tolist()) == [[0, 0], [0, 9], [0, 9], [6, 0]]
    found, rest = placed_requests(items, pieces[:4], going)
    assert not rest.any()
    assert sorted(found.tolist()) == [[0, 0, 5], [0, 9, 0], [0, 9, 0], [3, 0, 0]]
    assert annealed_pieces(items, 3, 20_000, np.random.default_rng(0), going)[3].tolist() == [0, 0, 5]
    assert annealed_pieces(items, 3, 20_000, np.random.default_rng(0), going, margin=1)[3].sum() > 5
    # Of 4 and 2 + 2 the single one is taken first, so that 2s are left for the bin with less room.
    items = GroupedItems(np.array([4, 2, 4]), np.array([0, 0, 1]), np.array([1, 2, 2]), np.array([0, 0]), 1, 8)
    found, rest = placed_requests(items, np.array([[4, 4], [4, 4]]), going)
    assert not rest.any()
    assert sorted(found[:, :2].tolist()) == [[0, 2], [1, 0]]


@pytest.mark.parametrize("first", range(0, 200, 100))
def test_parts_and_requests_for_them_stay_within_capacity(first: int) -> None:
    settled = 0
    for seed in range(first, first + 100):
        items = some_items(seed)[0]
        if (items.size > items.room[items.group]).any():
            continue
        rng = np.random.default_rng(seed)
        pieces = annealed_pieces(items, 3, 600, rng, going, 0.3 + 0.2 * (seed % 4))
        assert (pieces >= 0).all()
        assert (pieces.sum(axis=0) == items.tokens(items.demand)).all(), seed
        padded = -(-pieces[:3] // items.multiple) * items.multiple + (pieces[:3] > 0) * items.overhead
        assert (padded.sum(axis=1) <= items.capacity).all(), seed
        found, rest = placed_requests(items, pieces[:3], going)
        assert (found.sum(axis=0) + rest == items.demand).all(), seed
        assert (rest >= 0).all()
        assert all(items.load(p) <= items.capacity for p in found), seed
        done = settle(items, found, rest, rng, going, 5)
        if done is not None:
            settled += 1
            assert (done.sum(axis=0) == items.demand).all()
            assert all(items.load(p) <= items.capacity for p in done)
        else:
            assert rest.any()
    assert settled > 10


def test_parts_fill_bins_that_filling_again_does_not() -> None:
    # All 40 bins together have 3,864 tokens to spare over what the closed form counts. Refilling bins alone was left with 41 after a minute.
    instance = make("shared-prefix", np.random.default_rng(6), {})
    items = items_of(instance)
    assert split_volume_value(instance) == 40
    left = []
    for seed in range(8):
        pieces = annealed_pieces(items, 40, 600_000, np.random.default_rng(seed), going)
        assert not pieces[40].any()
        found, rest = placed_requests(items, pieces[:40], going)
        assert all(items.load(p) <= items.capacity for p in found)
        left.append(int((rest * items.size).sum()))
        if not left[-1]:
            break
    assert min(left) == 0


def test_presets_are_solved_better_than_blind_to_prefixes() -> None:
    instance = make("adapters", np.random.default_rng(0), {})
    params = SolveParams(seed=1, time_limit_s=20.0)
    progress = Progress(params, lambda plan: evaluate(instance, plan))
    together, blind = ffd_grouped(instance, RNG), ffd_prefix_blind(instance, RNG)
    assert together is not None
    assert blind is not None
    progress.offer(together)
    grouped(instance, params, progress)
    # Whole groups: 138 bins, requests padded one by one: 141. The volume needs 137, and 137 are enough.
    assert progress.objective == progress.bound == split_volume(instance, params, Progress(params)).value == 137
    assert (evaluate(instance, together).objective, evaluate(instance, blind).objective) == (138, 141)


def test_a_stop_is_heard_at_once() -> None:
    instance = make("shared-prefix", np.random.default_rng(0), {})
    params = SolveParams(time_limit_s=0.0)
    progress = Progress(params, lambda plan: evaluate(instance, plan))
    found = grouped(instance, params, progress)
    assert [bound.method for bound in found] == ["split_volume"]
    assert found[0].value == 40
    assert progress.elapsed_s < 2.0


def test_padding_of_millions_of_tokens_needs_no_table_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    # One multiple is half a bin: the join has three loads, but a group's own table would have 5 * 10^8 cells of eight bytes.
    def never(*_: object) -> int:
        raise AssertionError

    monkeypatch.setattr(grouped_patterns_engine, "_joined", never)
    items = GroupedItems(np.array([100]), np.array([0]), np.array([3]), np.array([0]), 250_000_000, 500_000_000)
    best = best_grouped_pattern(items, np.array([7]), np.array([2]))
    assert (best.value, best.bound) == (23, 23)
