"""Makespan without prefill time (P||Cmax): bounds, search, local search, plans; against enumeration and instances solved by hand."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headroom.bounds.certificates import CertificateError
from headroom.bounds.request_packing_makespan import (
    certified,
    closed_steps,
    dearest,
    dual_bin_packing,
    dual_feasible,
    function_values,
    lifted,
    longest_output,
    mean_load,
    pigeonhole,
    pigeonhole_steps,
    recheck_makespan,
)
from headroom.formulations.progress import Progress
from headroom.formulations.request_packing import StagedPlan, evaluate
from headroom.formulations.types import Bound, Outcome, SolveParams
from headroom.instances.errors import InputError
from headroom.instances.request_packing import PrefillLevel, RequestPacking, Requests
from headroom.instances.request_packing_classes import cmax_uniform
from headroom.solvers import request_packing_makespan
from headroom.solvers.machine_loads import core, longest_first, multifit
from headroom.solvers.machine_loads_search import improve, split
from headroom.solvers.request_packing_makespan import cmax, plan_of
from tests.oracles.request_packing import Oracle

IntArray = npt.NDArray[np.int64]

BOUNDS = (mean_load, longest_output, pigeonhole, dual_feasible, dual_bin_packing)
PARAMS = SolveParams()


def run_of(outputs: Any, slots: int, decode_step_s: float = 1.0, **changes: Any) -> RequestPacking:
    output = np.asarray(outputs, np.int64)
    prompt = np.asarray(changes.pop("prompts", np.zeros(len(output))), np.int64)
    requests = Requests(prompt_tokens=prompt, output_tokens=output)
    return RequestPacking(name="run", requests=requests, objective="makespan", slots=slots, decode_step_s=decode_step_s, **changes)


def solved(instance: RequestPacking, time_limit_s: float | None = None, seed: int = 0) -> tuple[Progress, Outcome]:
    params = replace(PARAMS, time_limit_s=time_limit_s, seed=seed)
    progress = Progress(params, lambda plan: evaluate(instance, plan))
    return progress, cmax(instance, params, progress)


def proven(progress: Progress, outcome: Outcome) -> bool:
    return max(bound.value for bound in outcome.bounds) == progress.objective


def cases(count: int, seed: int, most: int = 9) -> list[tuple[list[int], int]]:
    """Outputs and slots: short and long, spread and nearly equal."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(count):
        low, high = ((1, 6), (1, 40), (30, 60), (95, 100))[k % 4]
        found.append((rng.integers(low, high + 1, rng.integers(1, most + 1)).tolist(), int(rng.integers(1, 6))))
    return found


def least(outputs: list[int], slots: int) -> int:
    data = {
        "requests": {"prompt_tokens": [0] * len(outputs), "output_tokens": outputs},
        "objective": "makespan",
        "slots": slots,
        "decode_step_s": 1.0,
    }
    return round(Oracle(data).cmax())


def test_closed_forms_by_hand() -> None:
    # Seven outputs on three slots: some slot holds three, at least the three shortest, 12; the sum 34 is less than that on each of three. Two slots
    # with 11 = 6 + 5 and one with 4 + 4 + 4 do it.
    assert pigeonhole_steps(np.array([6, 6, 5, 5, 4, 4, 4]), 3) == 12
    # Eight on three slots: two slots hold at least six together, at least 90 + ... + 95 = 555: 278 on one of them. One slot with three proves
    # only 273, the mean 748/3 only 250. No sum of outputs lies between 96 + 97 = 193 and 90 + 91 + 92 = 273, so the mean is lifted to that.
    instance = run_of(range(90, 98), 3)
    assert closed_steps(instance, "mean_load") == 273
    assert closed_steps(instance, "longest_output") == 97
    assert closed_steps(instance, "pigeonhole") == 278
    # 90 + 92 + 95 = 277, 91 + 93 + 94 = 278, 96 + 97 = 193.
    progress, outcome = solved(instance)
    assert progress.objective == 278
    assert proven(progress, outcome)


def test_pigeonhole_is_the_best_over_all_numbers_of_slots() -> None:
    for outputs, slots in cases(300, 1, 14):
        falling = sorted(outputs, reverse=True)
        best = 0
        for number in range(1, len(falling) + 1):
            each, rest = divmod(number, slots)
            for k in range(1, slots + 1):
                held = k * each + min(k, rest)
                best = max(best, -(-sum(falling[number - held : number]) // k))
        assert pigeonhole_steps(np.array(outputs), slots) == best


def test_lifting_is_to_the_next_sum() -> None:
    for outputs, _ in cases(60, 2):
        sums = {sum(chosen) for size in range(len(outputs) + 1) for chosen in itertools.combinations(outputs, size)}
        for steps in range(1, sum(outputs) + 1, 1 + sum(outputs) // 40):
            assert lifted(np.array(outputs), steps) == min(total for total in sums if total >= steps)


@pytest.mark.parametrize("name", ["threshold", "rounded", "complement"])
def test_functions_are_dual_feasible(name: str) -> None:
    # No multiset of lengths that fits has more than f(C): checked for every multiset, by the unbounded knapsack's recurrence.
    for capacity in (7, 12, 30, 31, 60):
        length = np.arange(1, capacity + 1)
        last = 40 if name == "rounded" else capacity // 2
        for parameter in range(1, last + 1):
            value, whole = function_values(name, parameter, length, capacity)
            most = np.zeros(capacity + 1, np.int64)
            for room in range(1, capacity + 1):
                most[room] = max(most[room - used] + value[used - 1] for used in range(1, room + 1))
            assert most[capacity] <= whole


def test_dearest_load_against_enumeration() -> None:
    rng = np.random.default_rng(3)
    for _ in range(150):
        length = np.unique(rng.integers(1, 15, 4))
        copies, price = rng.integers(1, 6, len(length)), rng.integers(0, 9, len(length))
        capacity = int(rng.integers(1, 50))
        counts = itertools.product(*(range(number + 1) for number in copies))
        best = max(int(np.dot(count, price)) for count in counts if np.dot(count, length) <= capacity)
        assert dearest(length, copies, price, capacity) == best


def test_bounds_and_method_against_enumeration() -> None:
    met = dict.fromkeys((bound.__name__ for bound in BOUNDS), 0)
    for outputs, slots in cases(240, 4):
        best = least(outputs, slots)
        instance = run_of(outputs, slots)
        for method in BOUNDS:
            bound = method(instance, PARAMS, Progress(PARAMS))
            assert bound.value <= best
            assert recheck_makespan(instance, bound) == bound.value
            met[method.__name__] += bound.value == best
        progress, outcome = solved(instance)
        assert progress.objective == best
        assert proven(progress, outcome)
        assert all(recheck_makespan(instance, bound) == bound.value for bound in outcome.bounds if bound.proof != "solver")
    # Each stronger bound is worth having; the last shows it on more requests.
    assert met["mean_load"] < met["pigeonhole"] < met["dual_feasible"] <= met["dual_bin_packing"]
    instance = hard("alike", 25, 10, 1)
    assert dual_feasible(instance, PARAMS, Progress(PARAMS)).value < dual_bin_packing(instance, PARAMS, Progress(PARAMS)).value


def test_what_bin_packing_says_of_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {True: 0, False: 0}
    for outputs, slots in cases(120, 7):
        instance = run_of(outputs, slots)
        best = least(outputs, slots)
        search = request_packing_makespan._Search(instance, PARAMS, Progress(PARAMS, lambda plan, instance=instance: evaluate(instance, plan)))
        for target in range(max(max(outputs), best - 2), best + 2):
            search.low, search.high = target, int(sum(outputs)) + 1
            assert search.as_bins(np.arange(len(outputs)), slots, lambda machine: machine, target)
            said[target >= best] += 1
            if target >= best:
                assert best <= search.high <= target
            else:
                assert target < search.low <= best
    assert min(said.values()) > 20


def test_lists_of_patterns_settle_what_search_does_not() -> None:
    # A mean of 1592.5; search alone goes on for minutes at 1593, a second closes it: no 15 lists of jobs of that length exist.
    instance = cmax_uniform(np.random.default_rng([50, 15, 2]), requests=50, slots=15, least=1, most=1000)
    progress, outcome = solved(instance, time_limit_s=30.0)
    assert proven(progress, outcome)
    assert progress.objective == 1594
    assert [(bound.value, bound.proof) for bound in outcome.bounds if bound.method == "search"] == [(1594, "solver")]


def test_fitting_against_enumeration() -> None:
    for outputs, slots in cases(1000, 5):
        best = least(outputs, slots)
        for most in (best - 1, best):
            fits, machine = split(np.array(outputs), slots, most)
            assert fits is (most == best)
            if fits:
                assert np.bincount(machine, outputs).max() <= most
                assert machine.max() < slots


def test_what_is_settled_changes_nothing() -> None:
    settled = 0
    for outputs, slots in cases(400, 6):
        best, length = least(outputs, slots), np.array(outputs)
        slots = min(slots, len(outputs))
        low = max(max(outputs), -(-sum(outputs) // slots))
        for high in (best + 1, best + 3):
            part = core(length, slots, low, high)
            settled += len(part.jobs) < len(outputs)
            fits, machine = split(length[part.jobs], part.machines, best)
            assert fits
            whole = np.bincount(part.whole(machine), outputs)
            assert whole.max() == best
            assert len(whole) <= slots
            if best > low:
                assert split(length[part.jobs], part.machines, best - 1)[0] is False
    assert settled > 50


def test_list_rules_keep_their_guarantees() -> None:
    for outputs, slots in cases(200, 7):
        best, length = least(outputs, slots), np.array(outputs)
        lpt = np.bincount(longest_first(length, slots), outputs).max()
        assert best <= lpt <= best * (4 / 3 - 1 / (3 * slots)) + 1e-9
        low = max(max(outputs), -(-sum(outputs) // slots))
        found = multifit(length, slots, low, 2 * low)  # first fit decreasing always does with twice the bound
        assert found is not None
        assert best <= np.bincount(found, outputs).max() <= best * 13 / 11 + 1e-9
    # Graham's worst case for three machines: 5 5 4 4 3 3 3 is 9 at best and 11 by LPT.
    assert np.bincount(longest_first(np.array([5, 5, 4, 4, 3, 3, 3]), 3), [5, 5, 4, 4, 3, 3, 3]).max() == 11


def test_local_search_keeps_count_and_is_repeatable() -> None:
    length = np.random.default_rng(8).integers(1, 1000, 60)
    start, target = np.arange(60) % 20, -(-int(length.sum()) // 20)
    first = improve(length, start, 20, target, 5, 3000, np.zeros(1, np.int64))
    again = improve(length, start, 20, target, 5, 3000, np.zeros(1, np.int64))
    assert (first[0] == again[0]).all()
    loads = np.bincount(first[0], length, 20)
    assert first[1] == np.maximum(loads - target, 0).sum() < np.maximum(np.bincount(start, length, 20) - target, 0).sum() / 10
    raised = np.ones(1, np.int64)
    assert (improve(length, start, 20, target, 5, 3000, raised)[0] == start).all()


def hard(kind: str, count: int, slots: int, seed: int) -> RequestPacking:
    rng = np.random.default_rng([seed, count, slots])
    low, high = {"short": (1, 100), "long": (1, 1000), "alike": (9800, 9999)}[kind]
    return run_of(rng.integers(low, high + 1, count), slots)


@pytest.mark.parametrize("kind", ["short", "long", "alike"])
@pytest.mark.parametrize(("count", "slots"), [(10, 5), (25, 10), (50, 15), (50, 20), (50, 25), (100, 15), (250, 20), (1000, 15)])
def test_literature_classes_are_proven_with_a_certificate(kind: str, count: int, slots: int) -> None:
    instance = hard(kind, count, slots, 1)
    progress, outcome = solved(instance, 20.0)
    assert proven(progress, outcome)
    best = max((bound for bound in outcome.bounds if bound.proof != "solver"), key=lambda bound: bound.value)
    assert best.value == progress.objective
    assert recheck_makespan(instance, best) == best.value


def test_a_batch_of_chat_outputs_is_proven_within_a_step() -> None:
    rng = np.random.default_rng(9)
    spread = math.log(1 + (188 / 345) ** 2)
    outputs = np.maximum(1, np.rint(rng.lognormal(math.log(345) - spread / 2, math.sqrt(spread), 1319)))
    progress, outcome = solved(run_of(outputs, 200, 0.075), 5.0)
    assert progress.gap <= 0.0005
    assert outcome.stop == "completed"


@pytest.mark.parametrize("decode_step_s", [0.1, 0.075, 1 / 3, 1e-9, 7.3e5])
def test_seconds_are_those_of_evaluate(decode_step_s: float) -> None:
    for outputs, slots in cases(20, 10):
        instance = run_of(outputs, slots, decode_step_s)
        progress, outcome = solved(instance)
        assert isinstance(progress.plan, StagedPlan)
        assert max(bound.value for bound in outcome.bounds) == evaluate(instance, progress.plan).objective


def test_tampered_certificates_are_refused() -> None:
    instance = hard("alike", 25, 10, 1)
    bound = dual_bin_packing(instance, PARAMS, Progress(PARAMS))
    assert bound.certificate is not None
    certificate = dict(bound.certificate)
    assert certificate["kind"] == "prices"
    assert certified(instance, certificate) == bound.value
    steps, price = int(certificate["steps"]), list(certificate["price"])
    for change in (
        {"steps": steps + 500},
        {"price": [0] * len(price)},
        {"price": price[:-1]},
        {"price": [-1, *price[1:]]},
        {"price": [2**40, *price[1:]]},
        {"price": ["a", *price[1:]]},
        {"length": [1, *certificate["length"][1:]]},
        {"kind": "faith"},
    ):
        with pytest.raises(CertificateError):
            certified(instance, certificate | change)
    bound = dual_feasible(hard("alike", 50, 25, 1), PARAMS, Progress(PARAMS))
    assert bound.certificate is not None
    certificate = dict(bound.certificate)
    assert certificate["function"] != "none"
    for change in ({"steps": int(certificate["steps"]) + 5000}, {"parameter": 0}, {"parameter": 10**12}, {"function": "magic"}):
        with pytest.raises(CertificateError):
            certified(hard("alike", 50, 25, 1), certificate | change)
    with pytest.raises(CertificateError):
        recheck_makespan(instance, Bound(1.0, "guess", "closed_form"))


def test_the_other_objective_is_refused() -> None:
    requests = Requests(prompt_tokens=np.array([1]), output_tokens=np.array([1]))
    instance = RequestPacking(name="bins", requests=requests, objective="bins", capacity_tokens=5)
    with pytest.raises(InputError, match="objective must be 'makespan'"):
        mean_load(instance, PARAMS, Progress(PARAMS))


def test_prompts_above_a_free_level_are_admitted_one_after_the_other() -> None:
    # Prefill takes no time but at most 10 prompt tokens at once: the run is as short as without that.
    instance = run_of([4, 3, 3, 2], 2, prompts=[6, 7, 10, 3], prefill_levels=(PrefillLevel(max_tokens=10, time_s=0.0),))
    progress, outcome = solved(instance)
    assert progress.objective == 6  # 4 + 2 and 3 + 3
    assert proven(progress, outcome)
    tight = run_of([4, 3], 2, prompts=[6, 11], prefill_levels=(PrefillLevel(max_tokens=10, time_s=0.0),))
    progress, outcome = solved(tight)
    assert progress.plan is None
    assert [bound.value for bound in outcome.bounds] == [math.inf]
    assert recheck_makespan(tight, outcome.bounds[0]) == math.inf


def test_prefill_that_takes_time_only_adds() -> None:
    instance = run_of([4, 3, 3, 2], 2, prompts=[6, 7, 10, 3], prefill_levels=(PrefillLevel(max_tokens=None, time_s=0.5),))
    progress, outcome = solved(instance)
    assert max(bound.value for bound in outcome.bounds) == 6 <= Oracle(instance.dump()).best() <= progress.objective < math.inf


def test_plans_of_many_requests_are_feasible() -> None:
    rng = np.random.default_rng(11)
    instance = run_of(rng.integers(1, 2000, 20_000), 300)
    machine = rng.integers(0, 300, 20_000)
    plan = plan_of(instance, machine)
    evaluation = evaluate(instance, plan)
    assert evaluation.feasible
    assert evaluation.objective == np.bincount(machine, instance.requests.output_tokens).max()


def test_stops_in_time_with_what_it_has() -> None:
    instance = run_of(np.random.default_rng(12).integers(1, 10**7, 300), 110)
    solved(hard("short", 25, 10, 0))  # compiled code is not part of the limit
    begun = time.monotonic()
    progress, outcome = solved(instance, 0.5)
    assert time.monotonic() - begun < 2.5
    assert progress.plan is not None
    assert outcome.stop in ("time_limit", "completed")
    assert max(bound.value for bound in outcome.bounds) <= progress.objective


def test_same_seed_same_plan() -> None:
    instance = hard("long", 50, 15, 3)
    assert solved(instance, seed=4)[0].plan == solved(instance, seed=4)[0].plan


def test_rechecking_loads_neither_solver_nor_compiler() -> None:
    code = "import sys, headroom.bounds.request_packing_makespan; print(*sorted({'numba', 'scipy', 'highspy', 'pyomo'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_blurred_lengths_stay_whole_numbers_of_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    # 2^15 requests of 2^38 steps and a few: 1,024 times their sum is 2^63.
    output = 2**38 - np.arange(2**15)
    instance = RequestPacking(
        requests=Requests(prompt_tokens=np.zeros(2**15, np.int64), output_tokens=output), objective="makespan", slots=2, decode_step_s=1.0
    )
    seen: list[IntArray] = []

    def list_rule(length: IntArray, machines: int) -> IntArray:
        seen.append(length)
        return np.zeros(len(length), np.int64)

    monkeypatch.setattr(request_packing_makespan, "longest_first", list_rule)
    monkeypatch.setattr(request_packing_makespan, "improve", lambda length, start, *rest: (start,))
    params = SolveParams()
    search = request_packing_makespan._Search(instance, params, Progress(params))
    search.high = int(output.sum()) + 1
    search.local_search(0, 1, seed=3)
    assert len(seen) == 1
    assert seen[0].min() > 0
    assert sum(seen[0].tolist()) < 2**63
