"""Online policies for slots and stages: what they see and may not see, feasible plans on everything, hand-solved cases."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from headroom.formulations.request_packing import StagedPlan, evaluate
from headroom.formulations.types import Outcome
from headroom.heuristics import request_packing as heuristics
from headroom.heuristics.request_packing_online import predicted, replay
from headroom.heuristics.request_packing_stage_policies import cheapest_batches, in_batches
from headroom.heuristics.request_packing_stages import Decided, Decision, SlotState, slot_decisions, slot_deployment
from headroom.instances.request_packing import RequestPacking, Requests
from tests.oracles.request_packing import Oracle
from tests.request_packing_cases import staged, tiny_staged
from tests.test_request_packing_heuristics import problem, random_staged

SLOTS: list[Any] = [
    heuristics.FcfsSlots,
    heuristics.Waves,
    heuristics.SortedPreemptive,
    heuristics.SortedPreemptivePredicted,
    heuristics.LptThreshold,
    heuristics.LptThresholdPredicted,
    heuristics.TokenFill,
    heuristics.TokenFillPredicted,
    heuristics.LagrangianRule,
    heuristics.LagrangianRulePredicted,
]


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


@pytest.mark.parametrize("policy", SLOTS)
def test_slot_policies_make_feasible_plans(policy: Any) -> None:
    for seed in range(60):
        solved(policy, random_staged(seed), seed)


@pytest.mark.parametrize("policy", SLOTS)
def test_stages_against_the_oracle(policy: Any) -> None:
    for seed in range(40):
        data = tiny_staged(seed)
        x, best = problem(data), Oracle(data).best()
        found = solved(policy, x, seed)
        assert found >= best * (1 - 1e-9)
        if policy is heuristics.SortedPreemptive and not x.prefill_levels:
            assert found <= best * (4 / 3 - 1 / (3 * (x.slots or 1))) * (1 + 1e-9)


def same(a: Decided, b: Decided) -> bool:
    names = ("step", "waiting")
    arrays = ("free", "running", "slot", "elapsed", "finished")
    seen = all(getattr(a.seen, name) == getattr(b.seen, name) for name in names)
    return seen and all(np.array_equal(getattr(a.seen, name), getattr(b.seen, name)) for name in arrays) and a.decision == b.decision


def decided(x: RequestPacking, policy: Any, predictions: Any, sigma: float) -> list[Decided]:
    return list(slot_decisions(x, policy(slot_deployment(x, sigma, predictions))))


@pytest.mark.parametrize("policy", SLOTS)
def test_decisions_do_not_depend_on_lengths_that_are_not_known(policy: Any) -> None:
    """With the predictions held fixed, other true lengths of what has not finished change no decision up to then."""
    changed = 0
    for seed in range(24):
        x = random_staged(seed)
        output = x.requests.output_tokens
        predictions = predicted(output, 0.5, rng(seed))
        whole = decided(x, policy, predictions, 0.5)
        for at in {0, len(whole) // 2, len(whole) - 1}:
            seen = whole[at].seen
            finished = np.zeros(x.count, bool)
            for item in whole[: at + 1]:
                finished[item.seen.finished] = True
            other = np.where(finished, output, rng([seed, at]).integers(1, 200, x.count))
            # what runs goes on for a step at least
            other[seen.running] = seen.elapsed + rng([seed, at, 1]).integers(1, 200, len(seen.running))
            y = x.replace(requests=Requests(prompt_tokens=x.requests.prompt_tokens, output_tokens=other))
            again = decided(y, policy, predictions, 0.5)
            assert all(same(a, b) for a, b in zip(whole[: at + 1], again[: at + 1], strict=True))
            changed += len(again) != len(whole) or not all(same(a, b) for a, b in zip(whole, again, strict=True))
    assert changed > 10  # later ones differ: the lengths matter once they are seen


class Seer(heuristics.SortedPreemptive):
    """Sorts by true lengths, which it got from somewhere."""

    truth: ClassVar[Any] = None

    def _order(self) -> Any:
        return np.argsort(-self.truth, kind="stable")


def test_the_test_of_unknown_lengths_can_fail() -> None:
    x = random_staged(6)
    Seer.truth = x.requests.output_tokens
    whole = decided(x, Seer, np.ones(x.count, np.int64), 0.5)
    Seer.truth = rng(1).permutation(x.requests.output_tokens)
    again = decided(x, Seer, np.ones(x.count, np.int64), 0.5)
    assert not same(whole[0], again[0])


def stages(policy: Any, x: RequestPacking) -> list[tuple[list[list[int]], int]]:
    plan = replay(x, policy, rng()).plan
    assert isinstance(plan, StagedPlan)
    return [(stage.admit.tolist(), stage.decode_steps) for stage in plan.stages]


def test_slot_policies_by_hand() -> None:
    # Two slots; outputs 1, 3, 2, 2; a prefill of up to 4 tokens takes 1 s, of up to 8 1.5 s; every prompt has 4 tokens.
    x = problem(staged([4] * 4, [1, 3, 2, 2], 2, [(4, 1.0), (8, 1.5)]))
    # in order: 0 and 1; after 1 step request 2 beside request 1; they finish together after 2 more, then request 3
    assert stages(heuristics.FcfsSlots, x) == [([[0, 0], [1, 1]], 1), ([[2, 0]], 2), ([[3, 0]], 2)]
    assert stages(heuristics.Waves, x) == [([[0, 0], [1, 1]], 3), ([[2, 0], [3, 1]], 2)]
    # longest first: 1 (3) and 2 (2); after 2 steps 3 (2); after 1 more 0 (1)
    assert stages(heuristics.SortedPreemptive, x) == [([[1, 0], [2, 1]], 2), ([[3, 1]], 1), ([[0, 0]], 1)]
    # all slots must be free for a share of 1, or enough for what waits
    assert stages(type("Whole", (heuristics.LptThreshold,), {"free_share": 1.0}), x) == [([[1, 0], [2, 1]], 3), ([[3, 0], [0, 1]], 2)]
    # 8 tokens for 1.5 s are 1.5 s / 8 a token, 4 for 1 s a third more: with 1.25 the good level is 8, so prompts of 4 wait for a second one
    assert stages(heuristics.TokenFill, x) == [([[1, 0], [2, 1]], 3), ([[3, 0], [0, 1]], 2)]
    # with 1.5 prompts of 4 fill the smaller level
    assert stages(type("Small", (heuristics.TokenFill,), {"near_best": 1.5}), x) == stages(heuristics.SortedPreemptive, x)


def test_the_lagrangian_rule_by_hand() -> None:
    # Two slots, longest first: 3 and 2 steps, then 2 and 1. After 2 steps slot 1 is free and request 1 has 1 step to go. A step takes d seconds.
    # Prefill now: 1 s less 4 tokens at the best rate 1.5/8: 0.25 s for one request. Wait 1 step: one slot idles d / 2, then the better level has no
    # excess: d / 2 for two requests, d / 4 each. So it waits if d < 1, and prefills at once if d > 1.
    for d, waits in ((0.9, True), (1.1, False)):
        x = problem(staged([4] * 4, [1, 3, 2, 2], 2, [(4, 1.0), (8, 1.5)], decode_step_s=d))
        assert stages(heuristics.LagrangianRule, x) == stages(heuristics.TokenFill if waits else heuristics.SortedPreemptive, x)


def test_the_lagrangian_rule_counts_what_idles_since_the_last_prefill() -> None:
    counted = 0
    for seed in range(20):
        x = random_staged(seed)
        decider = heuristics.LagrangianRule(slot_deployment(x, 0.0, x.requests.output_tokens))
        idle = 0
        for item in slot_decisions(x, decider):
            admitted = sum(map(len, item.decision.prefills))
            idle = 0 if admitted else idle
            assert decider.idle_steps == idle
            counted += idle > 0
            idle += (len(item.seen.free) - admitted) * item.steps
    assert counted


def test_waiting_for_a_full_prefill_pays_where_small_ones_are_dear() -> None:
    # 40 slots, 300 requests; a prefill of a few prompts costs as much as eight of them
    draw = rng(3)
    x = problem(staged([1] * 300, [1] * 300, 40, [(512, 0.5), (4096, 4.0)], decode_step_s=0.05))
    x = x.replace(requests=Requests(prompt_tokens=draw.integers(32, 96, 300), output_tokens=draw.integers(50, 300, 300)))
    best = {policy.__name__: solved(policy, x) for policy in SLOTS}
    assert best["LagrangianRule"] < best["SortedPreemptive"] < best["FcfsSlots"]
    assert max(best["TokenFill"], best["LptThreshold"], best["LagrangianRulePredicted"]) < best["FcfsSlots"]


@pytest.mark.parametrize("policy", SLOTS)
def test_a_prompt_above_the_last_level_is_named(policy: Any) -> None:
    outcome = replay(problem(staged([5, 9], [1, 1], 2, [(4, 0.5), (8, 1.0)])), policy, rng())
    assert isinstance(outcome, Outcome)
    assert outcome.plan is None
    assert outcome.notes == ("request 1 has 9 prompt tokens and the last prefill level takes 8: infeasible",)


def test_prefills_above_the_last_level_are_split() -> None:
    x = problem(staged([5, 5, 3, 8], [1] * 4, 4, [(4, 0.5), (8, 1.0)]))
    assert stages(heuristics.FcfsSlots, x) == [([[0, 0]], 0), ([[1, 1], [2, 2]], 0), ([[3, 3]], 1)]


def test_batches_are_as_large_as_can_be_or_as_cheap() -> None:
    for seed in range(40):
        x = random_staged(seed)
        seen = slot_deployment(x, 0.0, x.requests.output_tokens)
        admissions = [(j, j) for j in range(x.count)]
        for batches in (in_batches(seen, admissions), cheapest_batches(seen, admissions)):
            assert [pair for batch in batches for pair in batch] == admissions
        # the cheapest split of the first few, by trying all
        n = min(x.count, 8)
        prompt = seen.prompt_tokens[:n]
        ways = [np.add.reduceat(prompt, [0, *(i for i in range(1, n) if cut >> (i - 1) & 1)]) for cut in range(1 << (n - 1))]
        found = [sum(int(prompt[j]) for j, _ in batch) for batch in cheapest_batches(seen, admissions[:n])]
        assert float(seen.prefill_s(np.array(found)).sum()) == pytest.approx(min(float(seen.prefill_s(way).sum()) for way in ways))


class Fixed(heuristics.FcfsSlots):
    """Decides what it is told, once."""

    told: ClassVar[Decision] = Decision()

    def decide(self, seen: SlotState) -> Decision:
        return self.told


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (Decision(), "at step 0: it decodes until the next request finishes, and none runs"),
        (Decision((), 0), "neither admits nor decodes"),
        (Decision(((),), 0), "prefills nothing"),
        (Decision((((0, 0), (0, 1)),)), "admits request 0, which does not wait"),
        (Decision((((0, 0), (1, 0)),)), "admits into slot 0, which is not free"),
        (Decision((((0, 2),),)), "admits into slot 2, which is not free"),
        (Decision((((3, 0),),)), "admits request 3, which does not wait"),
        (Decision((((0, 0), (1, 1)),)), "prefills 10 tokens at once, and the last level takes 8"),
        (Decision((((0, 0),),), -1), "decodes -1 steps"),
    ],
)
def test_a_slot_policy_that_breaks_a_rule_raises(told: Decision, message: str) -> None:
    policy = type("Told", (Fixed,), {"told": told})
    with pytest.raises(ValueError, match=message):
        replay(problem(staged([5, 5, 3], [2] * 3, 2, [(4, 0.5), (8, 1.0)])), policy, rng())


class Patient(heuristics.FcfsSlots):
    """Decodes three steps at a time, whatever finishes meanwhile."""

    def decide(self, seen: SlotState) -> Decision:
        admitted = super().decide(seen).prefills
        return Decision(admitted, 3)


def test_decoding_may_go_on_after_a_slot_is_free() -> None:
    # outputs 2, 7, 4 in two slots: after 3 steps the slot of the 2 is free for the 4, which ends with the 7
    x = problem(staged([1] * 3, [2, 7, 4], 2, [(None, 1.0)]))
    assert stages(Patient, x) == [([[0, 0], [1, 1]], 3), ([[2, 0]], 4)]
    # three steps are asked for, and everything has finished after two
    assert stages(Patient, problem(staged([1] * 2, [2, 4], 1, []))) == [([[0, 0]], 2), ([[1, 0]], 4)]
