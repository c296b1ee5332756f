"""Online stages: what a policy for slots may see, what it decides, and its replay.

The backlog is there from the start: a policy knows the slots, the prefill levels, the seconds of a decode step, and of every request its prompt
tokens and its predicted output tokens (`request_packing_online` says what a prediction is; with `sigma` 0 it is the truth). It decides at the start,
whenever a slot becomes free, and after as many decode steps as it asked for. Then it sees a `SlotState`: the free slots, what runs where and how many
tokens each has made, and what has finished. It never sees how long something unfinished will go on.

A `Decision` is a number of prefills, one after the other, each of requests and the free slots that they go to, and then how long to decode: a number
of steps, or until the next request finishes. Prefills above the last level break a rule, and so does a decision that neither admits nor decodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from headroom.formulations.request_packing import StagedPlan, staged_plan
from headroom.formulations.types import Outcome
from headroom.heuristics.request_packing_online import predicted
from headroom.instances.request_packing import RequestPacking

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Admission = tuple[int, int]
"""A request and the slot that it goes to."""


@dataclass(frozen=True)
class SlotDeployment:
    """What a policy knows beforehand. Prefill levels [L] in tokens and seconds, none where prefill takes no time; prompt and predicted output tokens
    of the backlog [N]."""

    slots: int
    level_tokens: IntArray
    level_s: FloatArray
    decode_step_s: float
    sigma: float
    prompt_tokens: IntArray
    predicted_output_tokens: IntArray

    def prefill_s(self, tokens: IntArray) -> FloatArray:
        """Seconds of prefills of so many tokens; infinite above the last level."""
        if not len(self.level_s):
            return np.zeros(np.shape(tokens))
        found: FloatArray = np.append(self.level_s, np.inf)[np.searchsorted(self.level_tokens, tokens)]
        return found


@dataclass(frozen=True)
class SlotState:
    """A decision point. `step`: decode steps so far; `free`: slots, rising; `waiting`: how many requests are not admitted; by running request, in
    order of their slots, `running`, `slot`, `elapsed` (tokens made); `finished`: requests that finished since the last decision."""

    step: int
    free: IntArray
    waiting: int
    running: IntArray
    slot: IntArray
    elapsed: IntArray
    finished: IntArray


@dataclass(frozen=True)
class Decision:
    """`prefills`, then `decode_steps` (fewer where everything has finished before); None: until the next request finishes."""

    prefills: tuple[tuple[Admission, ...], ...] = ()
    decode_steps: int | None = None


class SlotPolicy(Protocol):
    """An online policy for slots. `settings`: its parameters, JSON-able."""

    sigma: ClassVar[float]

    @property
    def settings(self) -> dict[str, Any]: ...

    def decide(self, seen: SlotState) -> Decision: ...


MakeSlotPolicy = Callable[[SlotDeployment], SlotPolicy]


def slot_deployment(instance: RequestPacking, sigma: float, predictions: IntArray) -> SlotDeployment:
    """The part of the instance that is known before anything runs, with these predictions [N]."""
    return SlotDeployment(
        slots=instance.slots or 0,
        level_tokens=instance.level_tokens,
        level_s=instance.level_s,
        decode_step_s=instance.decode_step_s or 0.0,
        sigma=sigma,
        prompt_tokens=instance.requests.prompt_tokens,
        predicted_output_tokens=predictions,
    )


class _Slots:
    """What runs, in truth and apart from the policy's own books."""

    def __init__(self, instance: RequestPacking) -> None:
        self.instance = instance
        self.step = 0
        self.waiting = instance.count
        self.admitted = np.zeros(instance.count, bool)
        self.holds = np.full(instance.slots or 0, -1)
        """The request in each slot, -1: free."""
        self.began, self.end = np.zeros_like(self.holds), np.zeros_like(self.holds)
        self.finished = np.zeros(0, np.int64)

    def seen(self) -> SlotState:
        slot = np.flatnonzero(self.holds >= 0)
        return SlotState(
            self.step, np.flatnonzero(self.holds < 0), self.waiting, self.holds[slot], slot, self.step - self.began[slot], self.finished.copy()
        )

    def admit(self, prefill: Sequence[Admission]) -> None:
        tokens = 0
        for request, slot in prefill:
            _need(0 <= request < self.instance.count and not self.admitted[request], self.step, f"admits request {request}, which does not wait")
            _need(0 <= slot < len(self.holds) and self.holds[slot] < 0, self.step, f"admits into slot {slot}, which is not free")
            self.admitted[request], self.holds[slot] = True, request
            self.began[slot], self.end[slot] = self.step, self.step + self.instance.requests.output_tokens[request]
            tokens += int(self.instance.requests.prompt_tokens[request])
        most = self.instance.level_tokens[-1] if self.instance.prefill_levels else tokens
        _need(tokens <= most, self.step, f"prefills {tokens} tokens at once, and the last level takes {most}")
        self.waiting -= len(prefill)

    def decode(self, steps: int | None) -> int:
        """The steps that are made of those asked for."""
        ends = self.end[self.holds >= 0]
        if steps is None:
            _need(len(ends) > 0, self.step, "decodes until the next request finishes, and none runs")
            made = int(ends.min()) - self.step
        else:
            _need(steps >= 0, self.step, f"decodes {steps} steps")
            made = min(steps, int(ends.max(initial=self.step)) - self.step)
        self.step += made
        done = (self.holds >= 0) & (self.end <= self.step)
        self.finished = self.holds[done]
        self.holds[done] = -1
        return made


def _need(kept: bool, step: int, what: str) -> None:
    if not kept:
        raise ValueError(f"the policy breaks a rule at step {step}: it {what}")


@dataclass(frozen=True)
class Decided:
    """A decision, the state that it was taken in, and the decode steps that followed."""

    seen: SlotState
    decision: Decision
    steps: int


def slot_decisions(instance: RequestPacking, decider: SlotPolicy) -> Iterator[Decided]:
    """What the policy decides, as long as requests wait; the rules are checked. Raises `ValueError` for a decision that breaks one."""
    state = _Slots(instance)
    while state.waiting:
        seen = state.seen()
        decided = decider.decide(seen)
        for prefill in decided.prefills:
            _need(len(prefill) > 0, state.step, "prefills nothing")
            state.admit(prefill)
        made = state.decode(decided.decode_steps)
        _need(made > 0 or len(decided.prefills) > 0, state.step, "neither admits nor decodes")
        yield Decided(seen, decided, made)


def plan_of(instance: RequestPacking, made: list[Decided]) -> StagedPlan:
    """The plan that a policy's decisions make: prefills without steps between them are stages of their own; the last stage runs to the end."""
    stages: list[tuple[IntArray, int]] = []
    step, end = 0, 0
    for item in made:
        for prefill in item.decision.prefills:
            admit = np.array(prefill, np.int64)
            stages.append((admit, 0))
            end = max(end, step + int(instance.requests.output_tokens[admit[:, 0]].max()))
        if item.steps:
            stages[-1] = (stages[-1][0], stages[-1][1] + item.steps)
        step += item.steps
    if end > step:
        stages[-1] = (stages[-1][0], stages[-1][1] + end - step)
    return staged_plan(stages)


def too_long(instance: RequestPacking) -> int | None:
    """A request whose prompt no prefill level takes; None, if there is a plan."""
    long = np.flatnonzero(~np.isfinite(instance.prefill_s(instance.requests.prompt_tokens)))
    return int(long[0]) if len(long) else None


def replay_slots(instance: RequestPacking, policy: MakeSlotPolicy, rng: np.random.Generator) -> Outcome:
    """The plan of a slot policy's decisions, with its settings; none, and a note, where a prompt is above the last prefill level.

    The cost of the policy, and O(slots) a decision. Raises `ValueError` when the policy breaks a rule.
    """
    j = too_long(instance)
    if j is not None:
        most, tokens = instance.level_tokens[-1], instance.requests.prompt_tokens[j]
        return Outcome(notes=(f"request {j} has {tokens} prompt tokens and the last prefill level takes {most}: infeasible",))
    sigma = getattr(policy, "sigma", 0.0)
    decider = policy(slot_deployment(instance, sigma, predicted(instance.requests.output_tokens, sigma, rng)))
    made = list(slot_decisions(instance, decider))
    trace = {"decisions": len(made), "prefills": sum(len(item.decision.prefills) for item in made), "sigma": sigma, "parameters": decider.settings}
    return Outcome(plan=plan_of(instance, made), details={"trace": trace})


__all__ = [
    "Admission",
    "Decided",
    "Decision",
    "MakeSlotPolicy",
    "SlotDeployment",
    "SlotPolicy",
    "SlotState",
    "plan_of",
    "replay_slots",
    "slot_decisions",
    "slot_deployment",
    "too_long",
]
