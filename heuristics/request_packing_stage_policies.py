"""Online policies for slots with prefill and decode stages. `request_packing_stages` says what they see.

| name               | who is next            | when to prefill                                                                             |
|--------------------|------------------------|---------------------------------------------------------------------------------------------|
| `FcfsSlots`        | in order               | as soon as a slot is free                                                                   |
| `SortedPreemptive` | longest first          | as soon as a slot is free                                                                   |
| `Waves`            | in order               | when all slots are free: no request's decoding is interrupted                               |
| `LptThreshold`     | longest first          | when a share of the slots is free                                                           |
| `TokenFill`        | longest first          | when the prompts that could go in fill a prefill level well                                 |
| `LagrangianRule`   | longest first          | when the price of slots that idle outweighs what a fuller prefill would save                |

"Longest" is by predicted output. Each class that uses predictions has exact ones (`sigma` 0: lengths are known, as in Pang et al., arXiv 2502.15763);
`...Predicted` is the same rule with errors. None has a guarantee for the staged problem.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from headroom.heuristics.request_packing_stages import Admission, Decision, SlotDeployment, SlotState

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Prefills = tuple[tuple[Admission, ...], ...]
SIGMA = 0.5
"""Of the predictions that are not exact: about two in three are right within a factor of 1.7."""
MOST_WAITED_FOR = 64
"""Completions that `LagrangianRule` looks forward to."""


def in_batches(deployment: SlotDeployment, admissions: list[Admission]) -> Prefills:
    """In this order, each prefill as large as the last level allows: what an engine does that prefills all it can."""
    if not len(deployment.level_tokens):
        return (tuple(admissions),) if admissions else ()
    batches: list[list[Admission]] = []
    room = -1
    for request, slot in admissions:
        tokens = int(deployment.prompt_tokens[request])
        if tokens > room:
            batches.append([])
            room = int(deployment.level_tokens[-1])
        batches[-1].append((request, slot))
        room -= tokens
    return tuple(tuple(batch) for batch in batches)


def cheapest_batches(deployment: SlotDeployment, admissions: list[Admission]) -> Prefills:
    """In this order, the split into consecutive prefills that takes least time. O(n L), a shortest path over the ends of prefills."""
    n, levels = len(admissions), len(deployment.level_s)
    if not levels or n < 2:
        return in_batches(deployment, admissions)
    tokens = np.cumsum(np.append(0, deployment.prompt_tokens[[request for request, _ in admissions]]))
    # with level l from i on, everything up to reach[l][i]
    reach = [np.searchsorted(tokens, tokens[:-1] + most, side="right") - 1 for most in deployment.level_tokens]
    seconds, choice = np.zeros(n + 1), np.zeros(n, np.int64)
    for i in range(n - 1, -1, -1):
        cost = [deployment.level_s[level] + seconds[reach[level][i]] if reach[level][i] > i else math.inf for level in range(levels)]
        choice[i] = int(np.argmin(cost))
        seconds[i] = cost[choice[i]]
    batches, i = [], 0
    while i < n:
        end = int(reach[choice[i]][i])
        batches.append(tuple(admissions[i:end]))
        i = end
    return tuple(batches)


def seconds_per_token(deployment: SlotDeployment) -> FloatArray:
    """Of each prefill level when it is full, or holds all prompts of the backlog if that is less [L]."""
    rate: FloatArray = deployment.level_s / np.minimum(deployment.level_tokens, max(1, int(deployment.prompt_tokens.sum())))
    return rate


class Queued(ABC):
    """Requests in a fixed order; the free slots, lowest first, take the next ones."""

    sigma: ClassVar[float] = 0.0

    def __init__(self, deployment: SlotDeployment) -> None:
        self.deployment = deployment
        self.order = self._order()
        self.head = 0

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def _order(self) -> IntArray:
        return np.arange(len(self.deployment.prompt_tokens))

    def decide(self, seen: SlotState) -> Decision:
        """Prefills now, if the rule says so or nothing runs; then decodes to the next decision point."""
        able = min(len(seen.free), seen.waiting)
        if not able or not (len(seen.running) == 0 or self._now(seen, able)):
            return Decision()
        return Decision(self._prefills(seen, able))

    @abstractmethod
    def _now(self, seen: SlotState, able: int) -> bool:
        """Whether to interrupt what runs to prefill; `able`: how many requests there are slots for, at least one."""

    def _prefills(self, seen: SlotState, able: int) -> Prefills:
        return in_batches(self.deployment, self._next(seen, able))

    def _next(self, seen: SlotState, count: int) -> list[Admission]:
        """The next requests of the order, which move on."""
        requests = self.order[self.head : self.head + count].tolist()
        self.head += count
        return list(zip(requests, seen.free[:count].tolist(), strict=True))


class FcfsSlots(Queued):
    """First come, first served: as soon as a slot is free the next request is prefilled, together with what else there are free slots for.

    The prefill-first rule of serving engines and the baseline of Pang et al. (arXiv 2502.15763). Uses no predictions. O(slots) a decision.
    """

    def _now(self, seen: SlotState, able: int) -> bool:
        return True


class Waves(Queued):
    """Static batching: as many requests as there are slots, in order; the next ones when the last of them has finished. O(slots) a decision."""

    def _now(self, seen: SlotState, able: int) -> bool:
        return False


class LongestFirst(Queued):
    """By falling predicted output."""

    def _order(self) -> IntArray:
        return np.argsort(-self.deployment.predicted_output_tokens, kind="stable")


class SortedPreemptive(LongestFirst):
    """Longest predicted output first, decoding interrupted by a prefill as soon as a slot is free (after Pang et al., arXiv 2502.15763).

    With exact predictions this is the LPT rule in decode steps, at most (4/3 - 1/(3J)) times their optimum. O(slots) a decision.
    """

    def _now(self, seen: SlotState, able: int) -> bool:
        return True


class SortedPreemptivePredicted(SortedPreemptive):
    """`SortedPreemptive` with predictions that err."""

    sigma: ClassVar[float] = SIGMA


class LptThreshold(LongestFirst):
    """Longest predicted output first; prefills when `free_share` of the slots are free, or enough for all that wait. O(slots) a decision."""

    free_share: ClassVar[float] = 0.04

    @property
    def settings(self) -> dict[str, Any]:
        return {"free_share": self.free_share}

    def _now(self, seen: SlotState, able: int) -> bool:
        return able >= min(seen.waiting, max(1, math.ceil(self.free_share * self.deployment.slots)))


class LptThresholdPredicted(LptThreshold):
    """`LptThreshold` with predictions that err."""

    sigma: ClassVar[float] = SIGMA


class TokenFill(LongestFirst):
    """Longest predicted output first; prefills when the prompts that there are slots for fill a good level to at least `fill`.

    A good level is the smallest whose seconds a token, when full, are at most `near_best` times the best level's. Prefills are then made as full as
    can be: each takes the largest level that the prompts fill, and what does not fill the good level waits; when nothing runs, or everything that
    waits has a slot, nothing is left waiting. O(slots) a decision.
    """

    fill: ClassVar[float] = 0.95
    near_best: ClassVar[float] = 1.25

    def __init__(self, deployment: SlotDeployment) -> None:
        super().__init__(deployment)
        self.good_tokens = 0.0
        """Prompts to wait for."""
        if len(deployment.level_s):
            rate = seconds_per_token(deployment)
            good = np.flatnonzero(rate <= self.near_best * rate.min())[0]
            self.good_tokens = self.fill * float(min(deployment.level_tokens[good], deployment.prompt_tokens.sum()))

    @property
    def settings(self) -> dict[str, Any]:
        return {"fill": self.fill, "near_best": self.near_best}

    def _prompts(self, able: int) -> IntArray:
        """Tokens of the next requests, added up."""
        return np.cumsum(self.deployment.prompt_tokens[self.order[self.head : self.head + able]])

    def _now(self, seen: SlotState, able: int) -> bool:
        return able == seen.waiting or self._prompts(able)[-1] >= self.good_tokens

    def _prefills(self, seen: SlotState, able: int) -> Prefills:
        everything = able == seen.waiting or len(seen.running) == 0
        if not len(self.deployment.level_s):
            return super()._prefills(seen, able)
        prefills: list[tuple[Admission, ...]] = []
        free = seen.free
        while able:
            tokens = self._prompts(able)
            if not everything and tokens[-1] < self.good_tokens:
                break
            level = int(np.searchsorted(self.deployment.level_tokens, tokens[-1], side="right")) - 1
            most = self.deployment.level_tokens[max(level, int(np.searchsorted(self.deployment.level_tokens, tokens[0])))]
            count = int(np.searchsorted(tokens, most, side="right"))
            requests = self.order[self.head : self.head + count].tolist()
            prefills.append(tuple(zip(requests, free[:count].tolist(), strict=True)))
            self.head, free, able = self.head + count, free[count:], able - count
        return tuple(prefills)


class TokenFillPredicted(TokenFill):
    """`TokenFill` with predictions that err."""

    sigma: ClassVar[float] = SIGMA


class LagrangianRule(LongestFirst):
    """Balanced assignment of what waits; each time that a slot is free, prefill or decode is chosen by their prices.

    A reading of Pang et al. (arXiv 2502.15763), who weigh a prefill stage against decoding on by Lagrangian costs, not their code:

    - Assignment: balanced by LPT on predicted outputs, and redone for what waits at every decision: prefills that wait for each other shift slots
      against each other, which an assignment once and for all cannot make up for. The free slots, being the least loaded, take the longest requests.
    - Prices: the slots' capacity in each second has the multiplier 1/J, so that idle slots cost 1/J of the seconds that they idle. A prefill stage
      costs its seconds less what its tokens take at the best level's rate, which some stage has to pay anyway.
    - Rule: for k = 0, 1, ... predicted completions, the price of waiting for them and prefilling then: idle seconds since the last prefill and until
      then, and the prefill, over the requests that it admits. Prefill now if no k > 0 is cheaper; else decode to the next completion, and ask again.

    Prefills are split where that takes less time. O(slots log slots) a decision.
    """

    def __init__(self, deployment: SlotDeployment) -> None:
        super().__init__(deployment)
        self.best_rate = float(seconds_per_token(deployment).min()) if len(deployment.level_s) else 0.0
        self.idle_steps, self.free_before, self.step_before = 0, 0, 0
        """Steps that slots have idled since the last prefill, while requests waited."""

    def decide(self, seen: SlotState) -> Decision:
        self.idle_steps += self.free_before * (seen.step - self.step_before)
        decided = super().decide(seen)
        admitted = sum(len(prefill) for prefill in decided.prefills)
        if admitted:
            self.idle_steps = 0
        self.free_before, self.step_before = len(seen.free) - admitted, seen.step
        return decided

    def _now(self, seen: SlotState, able: int) -> bool:
        deployment = self.deployment
        if not len(deployment.level_s):
            return True
        ahead = min(len(seen.running), MOST_WAITED_FOR, seen.waiting - able)
        left = self._completions(seen, ahead)
        prompts = np.cumsum(deployment.prompt_tokens[self.order[self.head : self.head + able + ahead]])[able - 1 :]
        admits = able + np.arange(ahead + 1)
        idle_steps = self.idle_steps + np.cumsum(np.append(0, admits[:-1] * np.diff(left, prepend=0)))
        stage_s = deployment.prefill_s(prompts) - self.best_rate * prompts
        price_s = (idle_steps * deployment.decode_step_s / deployment.slots + stage_s) / admits
        return int(np.argmin(price_s)) == 0

    def _completions(self, seen: SlotState, count: int) -> FloatArray:
        """In how many steps so many of the running requests are expected to finish [count].

        With exact predictions they say so. With lognormal errors a request's length is lognormal around its prediction, and the completions are those
        of a Poisson process whose rate is the sum of the requests' hazard rates now: a single prediction says little of the first of many to finish.
        """
        length, s = self.deployment.predicted_output_tokens[seen.running], self.deployment.sigma
        if s == 0:
            return np.sort(length - seen.elapsed)[:count].astype(np.float64)
        from scipy.special import log_ndtr

        made = np.maximum(seen.elapsed, 1)
        z = (np.log(made / length) - s**2 / 2) / s
        hazard = np.exp(-(z**2) / 2 - log_ndtr(-z)) / (math.sqrt(2 * math.pi) * s * made)
        steps: FloatArray = np.arange(1, count + 1) / max(float(hazard.sum()), 1e-9)
        return steps

    def _prefills(self, seen: SlotState, able: int) -> Prefills:
        return cheapest_batches(self.deployment, self._next(seen, able))


class LagrangianRulePredicted(LagrangianRule):
    """`LagrangianRule` with predictions that err."""

    sigma: ClassVar[float] = SIGMA


__all__ = [
    "FcfsSlots",
    "LagrangianRule",
    "LagrangianRulePredicted",
    "LongestFirst",
    "LptThreshold",
    "LptThresholdPredicted",
    "SortedPreemptive",
    "SortedPreemptivePredicted",
    "TokenFill",
    "TokenFillPredicted",
    "Waves",
    "cheapest_batches",
    "in_batches",
]
