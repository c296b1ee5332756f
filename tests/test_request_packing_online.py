"""Online policies for bins: what they see and may not see, feasible plans on everything, hand-solved cases, guarantees."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from headroom.formulations.request_packing import BinPlan, evaluate
from headroom.heuristics import request_packing as heuristics
from headroom.heuristics.request_packing_online import Arrival, Placement, arrivals, bin_deployment, placements, predicted, replay
from headroom.instances.request_packing import RequestPacking, Requests
from tests.oracles.request_packing import Oracle
from tests.request_packing_cases import bins, tiny_bins
from tests.test_request_packing_heuristics import problem, random_bins

KNOWING: list[Any] = [
    heuristics.NextFit,
    heuristics.FirstFit,
    heuristics.BestFit,
    heuristics.WorstFit,
    heuristics.AffinityFit,
    heuristics.Harmonic,
]
BINS: list[Any] = [*KNOWING, heuristics.FirstFitPredicted]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def solved(policy: Any, instance: RequestPacking, seed: int = 0) -> float:
    """The objective of the replay's plan, which must be feasible and the same again."""
    outcome = replay(instance, policy, rng(seed))
    assert outcome.plan is not None
    found = evaluate(instance, outcome.plan)
    assert found.feasible, (policy.__name__, found.violations[:2])
    assert replay(instance, policy, rng(seed)).plan == outcome.plan
    return found.objective


def placed(policy: Any, data: dict[str, Any]) -> list[int]:
    plan = replay(problem(data), policy, rng()).plan
    assert isinstance(plan, BinPlan)
    return plan.bin.tolist()


# Bins.


@pytest.mark.parametrize("policy", BINS)
def test_bin_policies_make_feasible_plans(policy: Any) -> None:
    for seed in range(60):
        x = random_bins(seed)
        assert solved(policy, x, seed) >= int(x.size.sum()) / (x.capacity_tokens or 1)


@pytest.mark.parametrize("policy", BINS)
def test_bins_against_the_oracle(policy: Any) -> None:
    for seed in range(60):
        data = tiny_bins(seed)
        x, best = problem(data), Oracle(data).best()
        found = solved(policy, x, seed)
        assert found >= best
        if x.plain and policy in (heuristics.FirstFit, heuristics.BestFit):
            assert found <= int(1.7 * best + 1e-9)
        if x.plain and policy in (heuristics.NextFit, heuristics.WorstFit):
            assert found <= 2 * best - 1


@pytest.mark.parametrize("policy", BINS)
def test_placements_do_not_depend_on_requests_that_have_not_come(policy: Any) -> None:
    for seed in range(30):
        x = random_bins(seed)
        whole = list(placements(x, policy(bin_deployment(x, policy.sigma)), rng(seed)))
        for end in {1, x.count // 2, x.count - 1} - {0}:
            requests = x.requests
            cut = Requests(
                prompt_tokens=requests.prompt_tokens[:end],
                output_tokens=requests.output_tokens[:end],
                group=None if requests.group is None else requests.group[:end],
            )
            part = x.replace(requests=cut)
            assert list(placements(part, policy(bin_deployment(part, policy.sigma)), rng(seed))) == whole[:end]


@pytest.mark.parametrize("policy", KNOWING)
def test_names_of_groups_say_nothing(policy: Any) -> None:
    for seed in range(1, 30, 2):
        x = random_bins(seed)
        if x.requests.group is None:
            continue
        order = rng(seed).permutation(x.groups)
        group = np.where(x.requests.group < 0, -1, order[x.requests.group])
        overhead = np.empty(x.groups, np.int64)
        overhead[order] = x.overhead[: x.groups]
        requests = Requests(prompt_tokens=x.requests.prompt_tokens, output_tokens=x.requests.output_tokens, group=group)
        renamed = x.replace(requests=requests, group_overhead_tokens=overhead)
        assert replay(renamed, policy, rng()).plan == replay(x, policy, rng()).plan


@pytest.mark.parametrize("policy", BINS)
def test_a_request_larger_than_a_bin_is_named(policy: Any) -> None:
    outcome = replay(problem(bins([3, 11, 2], 10)), policy, rng())
    assert outcome.plan is None
    assert outcome.notes == ("request 1 takes 11 tokens and a bin holds 10: infeasible",)


def test_bin_policies_by_hand() -> None:
    # 4, 7, 3, 5, 3 into 10. Next fit: 4 | 7 3 | 5 3. First fit: the 3 goes to the 4 (7), then 5 opens a bin and 3 goes to the 4 (10).
    # Best fit: the 3 fills the 7, the 5 goes to the 4 (9), and the last 3 needs a bin. Worst fit: 3 to the 4 (7); 5 opens; 3 to the 5 (8).
    data = bins([4, 7, 3, 5, 3], 10)
    assert placed(heuristics.NextFit, data) == [0, 1, 1, 2, 2]
    assert placed(heuristics.FirstFit, data) == [0, 1, 0, 2, 0]
    assert placed(heuristics.BestFit, data) == [0, 1, 1, 0, 2]
    assert placed(heuristics.WorstFit, data) == [0, 1, 0, 2, 2]
    # Harmonic, classes by what a bin holds of a size: 4 and 5: two; 7: one; 3: three
    assert placed(heuristics.Harmonic, data) == [0, 1, 2, 0, 2]


def test_groups_by_hand() -> None:
    # Bins of 10, prefix 4. Requests of 3 in groups 0, 1, 0, 1: alone 7, beside their group 3. Each group fills its bin, but not with next fit, which
    # leaves a bin at each change of group.
    data = bins([3, 3, 3, 3], 10, group=[0, 1, 0, 1], group_overhead_tokens=4)
    for policy in (heuristics.FirstFit, heuristics.BestFit, heuristics.WorstFit, heuristics.AffinityFit):
        assert placed(policy, data) == [0, 1, 0, 1]
    assert placed(heuristics.NextFit, data) == [0, 1, 2, 3]
    # First fit puts the last request (1 token, prefix 2) into bin 0, where it takes 3 tokens; affinity sends it to bin 1, where it takes 1.
    data = bins([5, 6, 1], 10, group=[-1, 0, 0], group_overhead_tokens=2)
    assert placed(heuristics.FirstFit, data) == [0, 1, 0]
    assert placed(heuristics.AffinityFit, data) == [0, 1, 1]
    # Best fit counts what is left: bin 0 holds 5 + 3 = 8, bin 1 holds 8 + 1 = 9.
    assert placed(heuristics.BestFit, data) == [0, 1, 1]
    # Padded to 4: 3 and 1 of a group take 4 together, so the 1 costs bin 0 nothing although it is full.
    assert placed(heuristics.FirstFit, bins([3, 4, 1], 8, group=[0, -1, 0], padding_multiple=4)) == [0, 0, 0]


def by_true_loads(x: RequestPacking, rank: Any) -> list[int]:
    """Each request into the bin with room that `rank`(load afterwards, bin) puts first; loads from the definition, by loops over everything."""
    group, overhead, size, multiple = x.group_of.tolist(), x.overhead.tolist(), x.size.tolist(), x.padding_multiple
    held: list[dict[int, int]] = []
    found = []
    for j in range(x.count):
        able = []
        for b, groups in enumerate(held):
            after = groups | {group[j]: groups.get(group[j], 0) + size[j]}
            load = sum(overhead[g] + -(-tokens // multiple) * multiple for g, tokens in after.items())
            if load <= (x.capacity_tokens or 0):
                able.append((rank(load, b), b))
        b = min(able)[1] if able else len(held)
        if not able:
            held.append({})
        held[b][group[j]] = held[b].get(group[j], 0) + size[j]
        found.append(b)
    return found


def test_first_best_and_worst_fit_go_by_true_loads() -> None:
    ranks = {
        heuristics.FirstFit: lambda load, b: b,
        heuristics.BestFit: lambda load, b: (-load, b),
        heuristics.WorstFit: lambda load, b: (load, b),
    }
    for seed in range(80):
        x = random_bins(seed, requests=60)
        for policy, rank in ranks.items():
            plan = replay(x, policy, rng()).plan
            assert isinstance(plan, BinPlan)
            assert plan.bin.tolist() == by_true_loads(x, rank), (policy.__name__, seed)


def test_predictions_are_seeded_unbiased_and_drawn_in_order() -> None:
    output = np.full(20_000, 1000)
    drawn = predicted(output, 0.5, rng(1))
    assert abs(drawn.mean() / 1000 - 1) < 0.02  # the standard error is 0.4 %
    assert np.log(drawn / 1000).std() == pytest.approx(0.5, rel=0.03)
    assert np.array_equal(predicted(output[:100], 0.5, rng(1)), drawn[:100])
    assert np.array_equal(predicted(output, 0.0, rng(1)), output)
    assert predicted(np.array([0, 1, 1, 1, 1]), 3.0, rng(2)).min(initial=5, where=[False, True, True, True, True]) == 1
    assert predicted(np.array([0]), 1.0, rng())[0] == 0


def test_first_fit_predicted_is_refused_and_pays_for_it() -> None:
    class Sure(heuristics.FirstFitPredicted):
        quantile: ClassVar[float] = 0.9999

    class Bold(heuristics.FirstFitPredicted):
        quantile: ClassVar[float] = 0.0001

    refusals = dict.fromkeys((Sure, Bold), 0)
    used = dict.fromkeys((Sure, Bold), 0.0)
    for seed in range(20):
        draw = rng(seed)
        x = problem(bins([1] * 200, 1000))
        x = x.replace(requests=Requests(prompt_tokens=draw.integers(1, 100, 200), output_tokens=draw.integers(1, 200, 200)))
        for policy in refusals:
            outcome = replay(x, policy, rng(seed))
            refusals[policy] += outcome.details["trace"]["refusals"]
            used[policy] += solved(policy, x, seed)
        # a policy that always tries the first bins that could hold the request at all places it as first fit does
        assert solved(Bold, x, seed) <= solved(Sure, x, seed)
    assert refusals[Sure] < 10 < 1000 < refusals[Bold]
    assert used[Bold] < used[Sure]


class Stubborn(heuristics.FirstFit):
    """Puts everything into bin 0."""

    def decide(self, arrival: Arrival, refused: tuple[int, ...]) -> int:
        return 0


class StubbornPredicted(Stubborn):
    sigma: ClassVar[float] = 0.5


class Eager(heuristics.FirstFit):
    """Opens bins that are not the next."""

    def decide(self, arrival: Arrival, refused: tuple[int, ...]) -> int:
        return 5


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Stubborn, "at request 2: it puts more into bin 0 than it holds"),
        (StubbornPredicted, "at request 2: it names bin 0 again, which has refused the request"),
        (Eager, "at request 0: it names bin 5, and 0 are open"),
    ],
)
def test_a_bin_policy_that_breaks_a_rule_raises(policy: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replay(problem(bins([4, 4, 4], 10)), policy, rng())


def test_arrivals_name_groups_as_they_appear() -> None:
    x = problem(bins([1, 2, 3, 4], 10, group=[7, -1, 2, 7], group_overhead_tokens=[0, 0, 5, 0, 0, 0, 0, 1]))
    assert list(arrivals(x, 0.0, rng())) == [Arrival(1, 0, 0, 1), Arrival(2, 0, None, 0), Arrival(3, 0, 1, 5), Arrival(4, 0, 0, 1)]
    assert next(placements(x, heuristics.FirstFit(bin_deployment(x, 0.0)), rng())) == Placement(0, ())
