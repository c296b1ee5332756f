"""Offline heuristics of request packing: feasible on everything, never below the optimum, within their guarantees, and right where solved by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from headroom.formulations.request_packing import BinPlan, StagedPlan, bin_loads, evaluate
from headroom.heuristics import request_packing as heuristics
from headroom.heuristics.request_packing_bins import chunks, in_order
from headroom.heuristics.request_packing_policies import BestFit, FirstFit
from headroom.heuristics.request_packing_slots import list_schedule, longest_first_order, plan_of_slots
from headroom.instances.request_packing import PrefillLevel, RequestPacking, Requests
from headroom.solvers.greedy_packing import Rooms, SortedRooms, best_fit, first_fit, least_slack
from tests.oracles.request_packing import Oracle
from tests.request_packing_cases import bins, staged, tiny_bins, tiny_staged

BINS: list[Any] = [heuristics.ffd, heuristics.bfd, heuristics.ffd_prefix_blind, heuristics.ffd_grouped, heuristics.minimum_bin_slack]
SLOTS: list[Any] = [heuristics.lpt, heuristics.multifit, heuristics.shortest_first, heuristics.longest_first]
RNG = np.random.default_rng(0)


def problem(data: dict[str, Any]) -> RequestPacking:
    """An instance from JSON data."""
    requests = {name: None if row is None else np.array(row, np.int64) for name, row in data["requests"].items()}
    levels = tuple(PrefillLevel(**level) for level in data.get("prefill_levels", []))
    overhead = data.get("group_overhead_tokens", 0)
    changes = {"group_overhead_tokens": np.array(overhead) if isinstance(overhead, list) else overhead, "prefill_levels": levels}
    return RequestPacking(**(data | changes | {"requests": Requests(**requests)}))


def random_bins(seed: int, requests: int = 150) -> RequestPacking:
    """Groups of very unequal sizes, some requests without; overheads up to half a bin, padding up to a tenth; sometimes one group of everything."""
    rng = np.random.default_rng([3, seed])
    n, capacity = int(rng.integers(1, requests)), int(rng.choice([30, 1000, 2**38 - 1]))
    most = max(1, int(capacity * rng.choice([0.1, 0.3, 0.4])))
    data: dict[str, Any] = {"requests": Requests(prompt_tokens=rng.integers(1, most + 1, n), output_tokens=np.zeros(n, np.int64))}
    if seed % 4:
        group = np.zeros(n, np.int64) if seed % 8 == 1 else np.minimum(rng.geometric(0.2, n) - 2, 20)
        requests = data["requests"]
        data["requests"] = Requests(prompt_tokens=requests.prompt_tokens, output_tokens=requests.output_tokens, group=group)
        data["group_overhead_tokens"] = rng.integers(0, capacity // 2, max(1, int(group.max()) + 1))
        data["padding_multiple"] = int(rng.choice([1, max(1, capacity // 10)]))
    elif seed % 8 == 0:
        data["padding_multiple"] = max(1, capacity // 7)
    return RequestPacking(objective="bins", capacity_tokens=capacity, **data)


def random_staged(seed: int, requests: int = 80) -> RequestPacking:
    """One slot, more slots than requests, no levels, prompts of 0, levels that only just take the longest prompt."""
    rng = np.random.default_rng([4, seed])
    n = int(rng.integers(1, requests))
    prompt = np.zeros(n, np.int64) if seed % 7 == 0 else rng.integers(0, 100, n)
    output = np.ones(n, np.int64) if seed % 11 == 0 else np.maximum(1, rng.lognormal(3, 1, n).astype(np.int64))
    tokens = np.unique(rng.integers(1, 300, 4))
    tokens[-1] = max(tokens[-1], prompt.max())
    tokens = np.unique(np.minimum(tokens, tokens[-1]))
    time_s = np.cumsum(rng.random(len(tokens)) + 0.01)
    levels = tuple(PrefillLevel(max_tokens=int(a), time_s=float(b)) for a, b in zip(tokens, time_s, strict=True))
    if seed % 5 == 1:
        levels = ()
    elif seed % 5 == 2:
        levels = (*levels, PrefillLevel(max_tokens=None, time_s=float(time_s[-1]) + 0.5))
    slots = (1, 2, int(rng.integers(1, n + 1)), n + 3)[seed % 4]
    return RequestPacking(
        requests=Requests(prompt_tokens=prompt, output_tokens=output), objective="makespan", slots=slots, prefill_levels=levels, decode_step_s=0.05
    )


def solved(method: Any, instance: RequestPacking) -> float:
    """The objective of a method's plan, which must be feasible, and the same for every generator."""
    plan = method(instance, np.random.default_rng(0))
    assert plan is not None
    found = evaluate(instance, plan)
    assert found.feasible, (method.__name__, found.violations[:2])
    assert plan == method(instance, np.random.default_rng(1))
    return found.objective


@pytest.mark.parametrize("method", BINS)
def test_bin_plans_are_feasible_and_never_below_the_mean(method: Any) -> None:
    for seed in range(80):
        x = random_bins(seed)
        needed = max(1, math.ceil(int(x.size.sum()) / (x.capacity_tokens or 1)))
        assert solved(method, x) >= needed


@pytest.mark.parametrize("method", SLOTS)
def test_staged_plans_are_feasible_and_never_below_the_mean(method: Any) -> None:
    for seed in range(80):
        x = random_staged(seed)
        output = x.requests.output_tokens
        assert solved(method, x) >= 0.05 * max(int(output.max()), int(output.sum()) / (x.slots or 1)) - 1e-9


@pytest.mark.parametrize("method", BINS)
def test_bins_against_the_oracle(method: Any) -> None:
    for seed in range(90):
        data = tiny_bins(seed)
        best, x = Oracle(data).best(), problem(data)
        found = solved(method, x)
        assert found >= best
        if x.plain and method in (heuristics.ffd, heuristics.bfd, heuristics.ffd_prefix_blind, heuristics.ffd_grouped):
            assert 9 * found <= 11 * best + (6 if method is not heuristics.bfd else 36)


@pytest.mark.parametrize("method", SLOTS)
def test_stages_against_the_oracle(method: Any) -> None:
    for seed in range(60):
        data = tiny_staged(seed)
        x = problem(data)
        found, best = solved(method, x), Oracle(data).best()
        assert found >= best * (1 - 1e-9)
        if x.prefill_levels:
            continue
        slots, delta = x.slots or 1, x.decode_step_s or 1.0
        if method is heuristics.lpt:
            assert found <= best * (4 / 3 - 1 / (3 * slots)) * (1 + 1e-9)
        if method is heuristics.multifit:
            assert found < (best * 13 / 11 + delta) * (1 + 1e-9)


@pytest.mark.parametrize("method", BINS)
def test_a_request_larger_than_a_bin_has_no_plan(method: Any) -> None:
    assert method(problem(bins([3, 11, 2], 10)), RNG) is None
    # 6 tokens fit, but not with the 5 that the group takes; and 7 fit, but not padded to 12
    assert method(problem(bins([6, 2], 10, group=[0, -1], group_overhead_tokens=5)), RNG) is None
    assert method(problem(bins([7, 2], 10, padding_multiple=6)), RNG) is None


@pytest.mark.parametrize("method", SLOTS)
def test_a_prompt_above_the_last_level_has_no_plan(method: Any) -> None:
    assert method(problem(staged([5, 9], [1, 1], 2, [(4, 0.5), (8, 1.0)])), RNG) is None


def plan_bins(method: Any, data: dict[str, Any]) -> list[int]:
    plan = method(problem(data), RNG)
    assert isinstance(plan, BinPlan)
    return plan.bin.tolist()


def test_first_fit_is_not_best_fit() -> None:
    # 6 and 7 open a bin each of 10. First fit puts 3 beside the 6 and then 4 finds no room; best fit fills the 7 with the 3 and the 6 with the 4.
    x = problem(bins([6, 7, 3, 4], 10))
    arrival = np.arange(4)
    assert in_order(x, FirstFit, arrival).tolist() == [0, 1, 0, 2]
    assert in_order(x, BestFit, arrival).tolist() == [0, 1, 1, 0]


def test_first_fit_by_falling_size_by_hand() -> None:
    # 6 5 4 3 into 10: 6 and 5 open bins, 4 goes to the 6 (10), 3 to the 5 (8)
    assert plan_bins(heuristics.ffd, bins([3, 4, 5, 6], 10)) == [0, 1, 0, 1]
    # In the manner of Johnson et al.'s worst case, capacity 60. Optimum 9, all full: six times 31 + 16 + 13, three times 17 + 17 + 13 + 13.
    sizes = [31] * 6 + [17] * 6 + [16] * 6 + [13] * 12
    # FFD: 6 bins 31 + 17 (12 left, 13 does not fit), 2 bins of 16 + 16 + 16, 3 bins of four 13: 11 = 11/9 x 9
    assert solved(heuristics.ffd, problem(bins(sizes, 60))) == 11
    # 31 + 16 + 13 fills a bin, and the search for the fullest set finds it: 6 bins, then 17 + 17 + 13 + 13
    assert solved(heuristics.minimum_bin_slack, problem(bins(sizes, 60))) == 9


def test_groups_by_hand() -> None:
    # Bins of 10, two groups with 4 tokens of prefix and four requests of 3 each. Whole bins of one group hold two requests (4 + 3 + 3 = 10): 4 bins.
    # Blind, each counts 7: 8 bins.
    data = bins([3] * 8, 10, group=[0, 1] * 4, group_overhead_tokens=4)
    assert solved(heuristics.ffd_prefix_blind, problem(data)) == 8
    assert solved(heuristics.ffd_grouped, problem(data)) == 4
    assert solved(heuristics.ffd, problem(data)) == 4
    # Bins of 10, prefix 1, three groups of sizes 3 3, 3 3 and 2 2: whole, 7, 7 and 5, they need 3 bins; the last one split (2 + 1 each) fills 2.
    data = bins([3, 3, 3, 3, 2, 2], 10, group=[0, 0, 1, 1, 2, 2], group_overhead_tokens=1)
    assert solved(heuristics.ffd_grouped, problem(data)) == 2
    assert solved(heuristics.minimum_bin_slack, problem(data)) == 3
    # A group too large for a bin of 10, prefix 4, sizes 6 5 3 1: parts 6 and 5 + 1 and 3 (loads 10, 10, 7); the group 2 + 0 stays whole.
    chunk, load = chunks(problem(bins([6, 5, 3, 1, 1, 1], 10, group=[0, 0, 0, 0, 1, 1], group_overhead_tokens=[4, 0])))
    assert chunk.tolist() == [1, 2, 3, 2, 0, 0]
    assert load.tolist() == [2, 10, 10, 7]


def test_chunks_keep_what_fits_together_and_count_their_loads() -> None:
    for seed in range(60):
        x = random_bins(seed)
        chunk, load = chunks(x)
        numbers, true = bin_loads(x, BinPlan(bin=chunk))
        assert numbers.tolist() == list(range(len(load)))
        assert true.tolist() == load.tolist()
        assert load.max() <= (x.capacity_tokens or 0)
        group = x.group_of
        assert all(len(set(group[chunk == c].tolist())) == 1 for c in numbers)


def test_blind_plans_waste_what_groups_share() -> None:
    blind = grouped = 0.0
    for seed in range(20):
        x = random_bins(8 * seed + 3)
        blind += solved(heuristics.ffd_prefix_blind, x)
        grouped += solved(heuristics.ffd_grouped, x)
    assert grouped < 0.8 * blind


def test_lpt_meets_its_worst_case() -> None:
    # Graham: J = 3, outputs 5 5 4 4 3 3 3. LPT: 5+3+3 = 11 on a slot; optimum 9 = 5+4, 5+4, 3+3+3; 11/9 = 4/3 - 1/9.
    x = problem(staged([0] * 7, [5, 5, 4, 4, 3, 3, 3], 3, []))
    assert solved(heuristics.lpt, x) == 11
    assert Oracle(staged([0] * 7, [5, 5, 4, 4, 3, 3, 3], 3, [])).best() == 9
    # MULTIFIT finds 9: first fit by falling size into 9s: 5+4, 5+4, 3+3+3
    assert solved(heuristics.multifit, x) == 9


def test_multifit_is_never_above_lpt_without_prefills() -> None:
    for seed in range(60):
        x = random_staged(seed).replace(prefill_levels=())
        assert solved(heuristics.multifit, x) <= solved(heuristics.lpt, x)


def test_multifit_bisects_to_the_last_step() -> None:
    for seed in range(60):
        n = int(np.random.default_rng(seed).integers(4, 40))
        lengths = np.random.default_rng([1, seed]).integers(20, 60, n)
        x = problem(staged([0] * n, lengths.tolist(), n // 3 + 1, []))  # two or three to a slot: the mean is out of reach
        output, slots = sorted(lengths.tolist(), reverse=True), n // 3 + 1
        high = round(solved(heuristics.lpt, x))
        low = max(output[0], math.ceil(sum(output) / slots))
        best = high
        while low < high:
            middle = (low + high) // 2
            found = slow(output, middle, lambda _, b: b)
            if max(found) < slots:
                high, best = middle, max(np.bincount(found, output))
            else:
                low = middle + 1
        assert solved(heuristics.multifit, x) == best


def test_stages_of_slots_by_hand() -> None:
    # Two slots, prefill of at most 4 tokens 1 s, of 8 1.5 s, a step 1 s. LPT: 4 | 2, then 2 beside the 4: 1.5 + 2 + 1 + 2 = 6.5, the optimum
    x = problem(staged([4, 4, 4], [2, 2, 4], 2, [(4, 1.0), (8, 1.5)]))
    plan = heuristics.lpt(x, RNG)
    assert isinstance(plan, StagedPlan)
    assert [(stage.admit.tolist(), stage.decode_steps) for stage in plan.stages] == [([[2, 0], [0, 1]], 2), ([[1, 1]], 2)]
    assert evaluate(x, plan).objective == 6.5
    # static batches: (4, 2), then 2: 1.5 + 4 + 1 + 2 = 8.5; shortest first: (2, 2), then 4: 1.5 + 2 + 1 + 4 = 8.5
    assert solved(heuristics.longest_first, x) == solved(heuristics.shortest_first, x) == 8.5


def test_prefills_are_split_where_that_takes_less_time() -> None:
    # 3 x 4 tokens: a prefill of up to 12 takes 5 s, one of up to 4 takes 1 s: three of those
    x = problem(staged([4, 4, 4], [1, 1, 1], 3, [(4, 1.0), (12, 5.0)]))
    assert solved(heuristics.lpt, x) == 4.0
    # and not where it takes more: 2.5 s together
    assert solved(heuristics.lpt, x.replace(prefill_levels=(PrefillLevel(max_tokens=4, time_s=1.0), PrefillLevel(max_tokens=12, time_s=2.5)))) == 3.5


def test_any_assignment_becomes_a_feasible_plan() -> None:
    for seed in range(60):
        x = random_staged(seed)
        slot = np.random.default_rng(seed).integers(0, x.slots or 1, x.count)
        found = evaluate(x, plan_of_slots(x, slot))
        assert found.feasible
        longest = np.bincount(slot, x.requests.output_tokens).max()
        assert found.parts["decode_s"] == pytest.approx(0.05 * longest)


def test_a_list_schedule_takes_the_slot_that_is_free_first() -> None:
    x = problem(staged([0] * 4, [3, 1, 1, 2], 2, []))
    assert list_schedule(x, np.arange(4)).tolist() == [0, 1, 1, 1]
    assert list_schedule(x, longest_first_order(x)).tolist() == [0, 1, 0, 1]


# The engine, against loops over all bins.


def slow(size: list[int], capacity: int, key: Any) -> list[int]:
    """Each item into the open bin with room that `key`(room, bin) puts first."""
    room: list[int] = []
    found = []
    for item in size:
        able = [(key(left, b), b) for b, left in enumerate(room) if left >= item]
        b = min(able)[1] if able else len(room)
        if not able:
            room.append(capacity)
        room[b] -= item
        found.append(b)
    return found


def test_compiled_greedy_rules_do_what_the_loops_do() -> None:
    rng = np.random.default_rng(5)
    for n in [*rng.integers(1, 150, 60).tolist(), 2500]:
        capacity = int(rng.choice([5, 1000, 2**38]))
        size = rng.integers(1, max(2, int(capacity * rng.random())), n).clip(1, capacity)
        by_first, by_best = slow(size.tolist(), capacity, lambda _, b: b), slow(size.tolist(), capacity, lambda room, b: (room, b))
        first = first_fit(size, capacity)
        assert first is not None
        assert first.tolist() == by_first
        assert best_fit(size, capacity).tolist() == by_best
        used = max(by_first) + 1
        assert first_fit(size, capacity, used) is not None
        assert first_fit(size, capacity, used - 1) is None
        rooms, sorted_rooms, one_by_one = Rooms(1), SortedRooms(1), []
        for item in size.tolist():
            b = rooms.first(item)
            rooms.put(rooms.bins if b is None else b, (capacity if b is None else rooms.room(b)) - item)
            one_by_one.append(rooms.bins - 1 if b is None else b)
        assert one_by_one == by_first
        bins_open, one_by_one = 0, []
        for item in size.tolist():
            at = sorted_rooms.tightest(item)
            room, b = (capacity, bins_open) if at is None else at
            bins_open += at is None
            if at is not None:
                sorted_rooms.remove(b, room)
            sorted_rooms.put(b, room - item)
            one_by_one.append(b)
        assert one_by_one == by_best


def test_rooms_are_found_from_a_bin_on() -> None:
    rng = np.random.default_rng(6)
    for count in (1, 2, 3, 7, 64, 65, 130):
        rooms, values = Rooms(1), rng.integers(0, 20, count).tolist()
        for b, value in enumerate(values):
            rooms.put(b, value)
        for _ in range(60):
            need, start = int(rng.integers(0, 22)), int(rng.integers(0, count + 2))
            assert rooms.first(need, start) == next((b for b in range(start, count) if values[b] >= need), None)
        assert rooms.most() == values.index(max(values))


def test_least_slack_leaves_the_least_where_it_searches_everything() -> None:
    rng = np.random.default_rng(7)
    for _ in range(40):
        capacity, n = 60, int(rng.integers(2, 10))
        size = rng.integers(5, 40, n)
        found = least_slack(size, capacity, 10_000)
        load = np.bincount(found, size)
        assert load.max() <= capacity
        largest = int(np.argmax(size))
        others = np.delete(size, largest)
        subsets = np.arange(1 << (n - 1))[:, None] >> np.arange(n - 1) & 1
        sums = subsets @ others + size[largest]
        assert load[0] == sums[sums <= capacity].max()
