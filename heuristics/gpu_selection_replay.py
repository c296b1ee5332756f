"""Autoscalers replayed over an instance's epochs, and the two baselines that look at the whole of it.

| name             | kind      | what it does                                                                     |
|------------------|-----------|----------------------------------------------------------------------------------|
| `static_peak`    | heuristic | the cheapest fleet that never changes and serves every epoch                     |
| `reactive_tuned` | heuristic | `Reactive` with the parameters of a stated grid that cost least, found in hindsight |

A replay never hides that a policy fell short: what it could not serve is reported epoch by epoch, and a plan that drops requests is no plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_serving import Serving
from headroom.formulations.gpu_selection_epochs import EpochPlan, epoch_plan, epochs_of, evaluate_epochs, serving, starts
from headroom.formulations.types import Evaluation, Outcome
from headroom.heuristics.gpu_selection_autoscaler import Desire, Mix, Reactive
from headroom.heuristics.gpu_selection_fleets import EpochMarket, FleetFinder, IntArray, epoch_market
from headroom.instances.gpu_selection import GpuSelection

FloatArray = npt.NDArray[np.float64]
TARGETS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
COOLDOWNS_S = (0.0, 300.0, 900.0, 1800.0, 3600.0)
MIXES: tuple[Mix, ...] = ("fleet", "split", "one")


class EpochPolicy(Protocol):
    """An online policy: fed the rates of one epoch at a time, it decides that epoch's fleet [G]. `settings`: its parameters, JSON-able."""

    @property
    def settings(self) -> dict[str, Any]: ...

    def decide(self, rate_per_s: FloatArray) -> IntArray: ...


MakePolicy = Callable[[EpochMarket], EpochPolicy]


@dataclass(frozen=True)
class PolicyReplay:
    """What a policy did. `unserved` [T]: the part of each epoch's requests that it dropped; `unserved_share`: of all requests.

    `plan` holds the fleets and the shares of what was served; `evaluation` its cost, with a violation of `cover` wherever requests were dropped.
    """

    plan: EpochPlan
    evaluation: Evaluation
    unserved: FloatArray
    unserved_share: float
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cost_usd(self) -> float:
        return self.evaluation.objective

    @property
    def epochs_short(self) -> int:
        """Epochs in which requests were dropped."""
        return int((self.unserved > 0).sum())

    @property
    def complete(self) -> bool:
        return self.evaluation.feasible

    def outcome(self) -> Outcome:
        """The plan if it serves everything within the limits; otherwise none, and a note that says what is missing."""
        details = {
            "replay": {
                "cost_usd": self.cost_usd,
                "unserved_share": self.unserved_share,
                "epochs_short": self.epochs_short,
                "parameters": dict(self.parameters),
            }
        }
        if self.complete:
            return Outcome(plan=self.plan, details=details)
        if self.epochs_short:
            worst = int(np.argmax(self.unserved))
            note = (
                f"the policy dropped {100 * self.unserved_share:.3g}% of all requests, in {self.epochs_short} of {len(self.unserved)} epochs "
                f"(most in epoch {worst}: {100 * self.unserved[worst]:.3g}%), at {self.cost_usd:.6g} USD"
            )
        else:
            note = f"the policy broke a limit: {self.evaluation.violations[0]}"
        return Outcome(notes=(note,), details=details)


def replay_policy(instance: GpuSelection, policy: MakePolicy, parameters: Mapping[str, Any] | None = None) -> PolicyReplay:
    """Feed a policy the rates epoch by epoch, then find the shares by which its fleets serve them. O(T) decisions and linear programs."""
    decider = policy(epoch_market(instance))
    n = fleets(instance, decider)
    return judged(instance, n, decider.settings if parameters is None else parameters)


def fleets(instance: GpuSelection, decider: EpochPolicy) -> IntArray:
    """The fleets [T][G] that a policy decides; it is given a copy of each epoch's rates, in order, and nothing else."""
    return np.array([decider.decide(rate.copy()) for rate in epochs_of(instance).rate_per_s], dtype=np.int64)


def judged(instance: GpuSelection, n: IntArray, parameters: Mapping[str, Any] | None = None) -> PolicyReplay:
    """Fleets [T][G] as a replay: as much served as can be, evenly loaded, and what is dropped."""
    engine, rates = Serving(instance), epochs_of(instance).rate_per_s
    ready = serving(instance, n)
    share = np.zeros((len(n), *instance.can_serve.shape))
    unserved = np.zeros(len(n))
    for t, rate in enumerate(rates):
        found = engine.shares(rate, ready[t], even=True)
        if found is None:
            answer = engine.serve(rate, ready[t])
            found, unserved[t] = answer.share, answer.shortfall
        share[t] = found
    plan = partial_plan(instance, n, share, unserved)
    total = rates.sum(axis=1)
    dropped = float(unserved @ total / total.sum()) if total.sum() > 0 else 0.0
    return PolicyReplay(plan, evaluate_epochs(instance, plan), unserved, dropped, parameters or {})


def partial_plan(instance: GpuSelection, n: IntArray, share: FloatArray, unserved: FloatArray) -> EpochPlan:
    """The plan; epochs that drop requests keep shares that add up to less than one (tidying would make them whole)."""
    plan = epoch_plan(instance, n, share)
    if not unserved.any():
        return plan
    table = np.array(plan.share)
    table[unserved > 0] = share[unserved > 0]
    return EpochPlan(count=plan.count, share=table)


def static_peak(instance: GpuSelection, rng: np.random.Generator) -> Outcome:
    """The cheapest fleet that never changes and serves every epoch, rent and first starts together. None when limits or the delay forbid one.

    Exact among constant fleets (but for the search's node limit, and for what an initial fleet must serve before the first starts are done).
    """
    epochs, market = epochs_of(instance), epoch_market(instance)
    finder, rates = FleetFinder(market), epochs.rate_per_s
    steps, early = len(rates), min(epochs.start_delay_epochs, len(rates))
    lower, premium, base = market.min_count, None, None
    if market.initial_count is not None:
        base, premium = market.initial_count, market.start_cost_usd / steps
        if early:
            first = finder.cheapest(rates[:early], np.zeros(len(lower)), base)
            if first is None:
                return Outcome(notes=(f"the initial fleet cannot serve the first {early} epochs, before any start is done",))
            lower = np.maximum(lower, first)
    n = finder.cheapest(rates, lower, None, premium, base)
    if n is None:
        return Outcome(notes=("no constant fleet within the limits serves every epoch",))
    return judged(instance, np.tile(n, (steps, 1))).outcome()


def reactive_grid(epoch_s: float) -> Iterator[dict[str, Any]]:
    """The stated grid: TARGETS x COOLDOWNS_S (in whole epochs, doubles left out) x MIXES, no cooldown up."""
    downs = sorted({math.ceil(seconds / epoch_s) for seconds in COOLDOWNS_S})
    for mix, target, down in product(MIXES, TARGETS, downs):
        yield {"mix": mix, "target": target, "cooldown_down": down}


def reactive_tuned(instance: GpuSelection, rng: np.random.Generator) -> Outcome:
    """`Reactive` with the cheapest settings of `reactive_grid` whose replay serves everything: the best a tuner could do in hindsight.

    O(TARGETS x MIXES) sequences of desired fleets, which the cooldowns share.
    """
    market = epoch_market(instance)
    desires: dict[tuple[str, float], IntArray] = {}

    def tuned(mix: Mix, target: float, cooldown_down: int) -> EpochPolicy:
        if (mix, target) not in desires:
            wished = Desire(FleetFinder(market), target, mix)
            desires[mix, target] = np.array([wished(rate) for rate in epochs_of(instance).rate_per_s])
        rows = iter(desires[mix, target])
        return Reactive(market, target, 0, cooldown_down, mix, desire=lambda rate: next(rows))

    return best_in_hindsight(instance, tuned, list(reactive_grid(market.epoch_s)))


def best_in_hindsight(instance: GpuSelection, policy: Callable[..., EpochPolicy], grid: list[dict[str, Any]]) -> Outcome:
    """The cheapest replay over a grid of settings (`policy(**settings)`) that serves everything; no plan and a note when none does.

    Fleets are found first for all of the grid; then shares in order of what the fleets cost, until one serves everything.
    """
    found: dict[bytes, tuple[float, int, IntArray]] = {}
    for k, chosen in enumerate(grid):
        n = fleets(instance, policy(**chosen))
        found.setdefault(n.tobytes(), (_cost(instance, n), k, n))
    ranked = sorted(found.values(), key=lambda item: item[:2])
    for _, k, n in ranked:
        if serves_everything(instance, n):
            replay = judged(instance, n, grid[k])
            if replay.complete:
                note = f"best of {len(grid)} settings in hindsight: {', '.join(f'{name} {value}' for name, value in grid[k].items())}"
                return replace(replay.outcome(), notes=(note,))
    _, k, n = ranked[-1]
    dearest = judged(instance, n, grid[k]).outcome()
    return replace(dearest, notes=(f"none of {len(grid)} settings serves everything; with the dearest of them {dearest.notes[0]}",))


def serves_everything(instance: GpuSelection, n: IntArray) -> bool:
    """Whether fleets [T][G] serve every epoch; stops at the first that does not."""
    finder, ready = FleetFinder(epoch_market(instance)), serving(instance, n)
    return bool((ready >= 0).all()) and all(finder.fits(rate, row) for rate, row in zip(epochs_of(instance).rate_per_s, ready, strict=True))


def _cost(instance: GpuSelection, n: IntArray) -> float:
    """Rent and starts of fleets, to rank them by; what is reported comes from `evaluate`."""
    market = epoch_market(instance)
    return float((n @ market.rent_usd).sum() + (starts(instance, n) @ market.start_cost_usd).sum())
