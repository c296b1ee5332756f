"""Online packing: what a policy may see, what it decides, and its replay. Bins stand here, slots in `request_packing_stages`; `replay` does both.

Predictions. How long an answer gets is known when it is finished; before, there is a prediction. A policy class says by `sigma` how good it is:
output tokens times exp(sigma Z - sigma^2 / 2) with Z standard normal, independent, at least 1 where there is output at all; 0: exact.

Bins. Requests come one after the other in the instance's order. Beforehand a policy is given a `BinDeployment`: capacity, padding, the prediction
error. It is told neither how many requests come nor anything of them. Of each request it sees an `Arrival`, and names the bin: an open one, or the
next number for a new one. What is in a bin must fit in truth: a bin that the request would overfill refuses it, which the policy is told, and asked
again; a bin that accepts it reveals how many tokens it took. Refusals stand for requests that outgrow their memory and are moved, and are counted.
With `sigma` 0 nothing may be refused.

Groups are named 0, 1, 2, ... as they appear, so that no name says anything of groups that have not come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from headroom.formulations.request_packing import bin_plan
from headroom.formulations.types import Outcome
from headroom.instances.request_packing import MOST_TOKENS, RequestPacking

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BinDeployment:
    """What a policy knows beforehand: tokens of a bin, what a group's tokens are padded to, and the error of predictions."""

    capacity_tokens: int
    padding_multiple: int
    sigma: float


class Arrival(NamedTuple):
    """A request: prompt and predicted output tokens, its group (None: none) and what the group takes once in each bin that it is in."""

    prompt_tokens: int
    predicted_output_tokens: int
    group: int | None
    overhead_tokens: int

    @property
    def tokens(self) -> int:
        """What the request is expected to take in a bin, without overhead and padding."""
        return self.prompt_tokens + self.predicted_output_tokens


class BinPolicy(Protocol):
    """An online policy for bins. `settings`: its parameters, JSON-able."""

    sigma: ClassVar[float]

    @property
    def settings(self) -> dict[str, Any]: ...

    def decide(self, arrival: Arrival, refused: tuple[int, ...]) -> int:
        """The bin to try; `refused`: the bins that have refused this request, in the order of trial."""
        ...

    def placed(self, arrival: Arrival, b: int, tokens: int) -> None:
        """Bin b has accepted the request, which takes so many tokens in truth."""
        ...


MakeBinPolicy = Callable[[BinDeployment], BinPolicy]


def predicted(output_tokens: IntArray, sigma: float, rng: np.random.Generator) -> IntArray:
    """Predictions [N] as the module says; the first n draws are those of the first n requests."""
    if sigma == 0:
        return output_tokens.copy()
    factor = np.exp(sigma * rng.standard_normal(len(output_tokens)) - sigma**2 / 2)
    found: IntArray = np.clip(np.rint(output_tokens * factor), np.minimum(output_tokens, 1), MOST_TOKENS).astype(np.int64)
    return found


def group_names(instance: RequestPacking) -> list[int | None]:
    """The name of each request's group [N], in order of appearance."""
    group = instance.requests.group
    if group is None:
        return [None] * instance.count
    names: dict[int, int] = {}
    return [None if g < 0 else names.setdefault(g, len(names)) for g in group.tolist()]


def arrivals(instance: RequestPacking, sigma: float, rng: np.random.Generator) -> Iterator[Arrival]:
    """The requests as a policy sees them, in order."""
    prompt, output = instance.requests.prompt_tokens.tolist(), predicted(instance.requests.output_tokens, sigma, rng).tolist()
    overhead = instance.overhead[instance.group_of].tolist()
    for row in zip(prompt, output, group_names(instance), overhead, strict=True):
        yield Arrival(*row)


class _Bins:
    """What is in the bins, in truth and apart from the policy's own books."""

    def __init__(self, deployment: BinDeployment) -> None:
        self.deployment = deployment
        self.load: list[int] = []
        self._of_group: dict[tuple[int, int], int] = {}

    def takes(self, arrival: Arrival, b: int, tokens: int) -> bool:
        """Puts the request into bin b if it fits; a new bin is opened by that alone."""
        multiple = self.deployment.padding_multiple
        load = self.load[b] if b < len(self.load) else 0
        before = None if arrival.group is None else self._of_group.get((b, arrival.group))
        if before is None:
            load += arrival.overhead_tokens - (-tokens // multiple) * multiple
        else:
            load += (-before // multiple) * multiple - (-(before + tokens) // multiple) * multiple
        if load > self.deployment.capacity_tokens:
            return False
        if b == len(self.load):
            self.load.append(load)
        else:
            self.load[b] = load
        if arrival.group is not None:
            self._of_group[b, arrival.group] = tokens + (before or 0)
        return True


class Placement(NamedTuple):
    """The bin of a request, and the bins that refused it before."""

    b: int
    refused: tuple[int, ...]


def placements(instance: RequestPacking, decider: BinPolicy, rng: np.random.Generator) -> Iterator[Placement]:
    """Where the policy puts each request, in order. Raises `ValueError` when it breaks a rule, or when a request is larger than a bin."""
    sigma = decider.sigma
    bins = _Bins(bin_deployment(instance, sigma))
    for j, (arrival, tokens) in enumerate(zip(arrivals(instance, sigma, rng), instance.size.tolist(), strict=True)):
        refused: tuple[int, ...] = ()
        while True:
            b = decider.decide(arrival, refused)
            _need(0 <= b <= len(bins.load), j, f"names bin {b}, and {len(bins.load)} are open")
            _need(b not in refused, j, f"names bin {b} again, which has refused the request")
            if bins.takes(arrival, b, tokens):
                break
            _need(sigma > 0 and b < len(bins.load), j, f"puts more into bin {b} than it holds")
            refused = (*refused, b)
        decider.placed(arrival, b, tokens)
        yield Placement(b, refused)


def _need(kept: bool, j: int, what: str) -> None:
    if not kept:
        raise ValueError(f"the policy breaks a rule at request {j}: it {what}")


def bin_deployment(instance: RequestPacking, sigma: float) -> BinDeployment:
    """The part of the instance that is known before any request."""
    return BinDeployment(instance.capacity_tokens or 0, instance.padding_multiple, sigma)


def replay_bins(instance: RequestPacking, policy: MakeBinPolicy, rng: np.random.Generator) -> Outcome:
    """The plan of a bin policy's decisions, with its settings and how often a bin refused; none, and a note, where a request is larger than a bin.

    The cost of the policy, and O(N + refusals). Raises `ValueError` when the policy breaks a rule.
    """
    large = np.flatnonzero(instance.padded > (instance.capacity_tokens or 0))
    if len(large):
        j = large[0]
        return Outcome(notes=(f"request {j} takes {instance.padded[j]} tokens and a bin holds {instance.capacity_tokens}: infeasible",))
    decider = policy(bin_deployment(instance, getattr(policy, "sigma", 0.0)))
    where, refusals = np.empty(instance.count, np.int64), 0
    for j, found in enumerate(placements(instance, decider, rng)):
        where[j] = found.b
        refusals += len(found.refused)
    trace = {"refusals": refusals, "sigma": decider.sigma, "parameters": decider.settings}
    return Outcome(plan=bin_plan(where), details={"trace": trace})


def replay(instance: RequestPacking, policy: Any, rng: np.random.Generator) -> Outcome:
    """Replay a policy class on an instance of its objective: a `BinPolicy`, or a `SlotPolicy` of `request_packing_stages`.

    The plan of its decisions, or none and a note where the instance has none. Raises `ValueError` when the policy breaks a rule.
    """
    if instance.objective == "bins":
        return replay_bins(instance, policy, rng)
    from headroom.heuristics.request_packing_stages import replay_slots

    return replay_slots(instance, policy, rng)


__all__ = [
    "Arrival",
    "BinDeployment",
    "BinPolicy",
    "MakeBinPolicy",
    "Placement",
    "arrivals",
    "bin_deployment",
    "group_names",
    "placements",
    "predicted",
    "replay",
    "replay_bins",
]
