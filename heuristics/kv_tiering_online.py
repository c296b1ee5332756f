"""Online tiering: what a policy may see, what it decides, and its replay over an instance's trace.

Before the first step a policy is given a `Deployment`: the tiers and whether the last one keeps copies. It is not told how many steps there are, how
many blocks, or what will be read. In step t it is shown what has happened up to and including step t + `lookahead_steps`, and nothing later: births
and their sizes, deaths, and reads. The step's own reads are among them: a serving system knows which pages a step reads before it fetches them, and
in the formulation a move that takes place in the step serves the step's read as well (so `lookahead_steps` is 0 for a policy that reacts). Then it
decides the tier of the step's births and the moves of the step. After each step every capacity must hold; a policy that breaks a rule is a bug, and
the replay raises.

Blocks are named 0, 1, 2, … in order of birth, so that neither a name nor a gap between names says anything of blocks that are not born yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from headroom.formulations.kv_tiering import TieringPlan, make_plan
from headroom.formulations.kv_tiering import replay as replay_plan
from headroom.formulations.tolerances import FEASIBILITY
from headroom.formulations.types import Outcome
from headroom.instances.kv_tiering import KvTiering

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
GONE = -1
"""The tier of a block that has died."""


@dataclass(frozen=True)
class Deployment:
    """What a policy knows beforehand: capacities in bytes [K] (the last is infinite), seconds to read and to write a byte [K], and `inclusive`."""

    capacity_bytes: FloatArray
    read_s: FloatArray
    write_s: FloatArray
    inclusive: bool

    @property
    def tiers(self) -> int:
        """K."""
        return len(self.capacity_bytes)


@dataclass(frozen=True)
class Step:
    """What happens in one step. `born_bytes`: sizes of the blocks born, whose names follow on from those before; `died`: names of the blocks that
    are gone; `read`, `read_bytes`: names of the blocks read and how much of each; `fixed_read_bytes`: read from tier 0 anyway."""

    born_bytes: FloatArray
    died: IntArray
    read: IntArray
    read_bytes: FloatArray
    fixed_read_bytes: float


@dataclass(frozen=True)
class Observation:
    """The step that is decided, and the `lookahead_steps` steps after it (fewer where the trace ends)."""

    now: Step
    ahead: tuple[Step, ...]


@dataclass(frozen=True)
class Decision:
    """`birth_tier`: a tier for each block born in this step, in order of names; `block[m]` goes to `to_tier[m]`."""

    birth_tier: IntArray
    block: IntArray
    to_tier: IntArray


class TierPolicy(Protocol):
    """An online policy, shown one step at a time. `settings`: its parameters, JSON-able."""

    lookahead_steps: ClassVar[int]

    @property
    def settings(self) -> dict[str, Any]: ...

    def decide(self, seen: Observation) -> Decision: ...


MakePolicy = Callable[[Deployment], TierPolicy]


def deployment_of(instance: KvTiering) -> Deployment:
    """The part of the instance that is known before any step."""
    return Deployment(instance.capacity.copy(), instance.read_s.copy(), instance.write_s.copy(), instance.inclusive)


def birth_order(instance: KvTiering) -> IntArray:
    """The instance's block of each name [N]: in order of birth, those of one step in the instance's own order."""
    return np.argsort(instance.birth, kind="stable")


def steps_of(instance: KvTiering) -> Iterator[Step]:
    """The trace, step by step, in names. O(N log N + reads + T)."""
    block_of = birth_order(instance)
    name_of = np.empty_like(block_of)
    name_of[block_of] = np.arange(len(block_of))
    size, birth, death = instance.size[block_of], instance.birth[block_of], instance.death[block_of]
    born = np.searchsorted(birth, np.arange(instance.steps + 1))
    by_death = np.argsort(death, kind="stable")
    died = np.searchsorted(death[by_death], np.arange(instance.steps + 1))
    indptr, block = instance.reads.indptr, instance.reads.block
    for t in range(instance.steps):
        yield Step(
            born_bytes=size[born[t] : born[t + 1]].copy(),
            died=np.sort(by_death[died[t] : died[t + 1]]),
            read=name_of[block[indptr[t] : indptr[t + 1]]],
            read_bytes=instance.read_bytes(t).copy(),
            fixed_read_bytes=float(instance.fixed[t]),
        )


def observations(steps: Iterator[Step], lookahead_steps: int) -> Iterator[Observation]:
    """Each step with the `lookahead_steps` after it."""
    window = deque(islice(steps, lookahead_steps + 1))
    while window:
        now = window.popleft()
        yield Observation(now, tuple(window))
        window.extend(islice(steps, 1))


def decisions(instance: KvTiering, decider: TierPolicy) -> Iterator[Decision]:
    """What the policy decides in each step; the rules are checked. Raises `ValueError` for a decision that breaks one."""
    state = _Checked(deployment_of(instance))
    for t, seen in enumerate(observations(steps_of(instance), decider.lookahead_steps)):
        decided = decider.decide(seen)
        state.apply(t, seen.now, decided)
        yield decided


class _Checked:
    """Where the blocks are, kept apart from the policy's own books."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.size, self.tier = np.zeros(0), np.zeros(0, np.int64)
        self.used = np.zeros(deployment.tiers)

    def apply(self, t: int, now: Step, decided: Decision) -> None:
        tiers = self.deployment.tiers
        _need(len(decided.birth_tier) == len(now.born_bytes), t, f"gives {len(decided.birth_tier)} tiers to {len(now.born_bytes)} births")
        _need(len(decided.block) == len(decided.to_tier), t, f"names {len(decided.block)} blocks and {len(decided.to_tier)} tiers to move to")
        for name, into in (("birth_tier", decided.birth_tier), ("to_tier", decided.to_tier)):
            _need(bool(((into >= 0) & (into < tiers)).all()), t, f"uses a {name} that is not a tier from 0 to {tiers - 1}")
        self.used -= np.bincount(self.tier[now.died], self.size[now.died], tiers)
        self.tier[now.died] = GONE
        moving = decided.block
        if len(moving):
            _need(int(moving.min()) >= 0 and int(moving.max()) < len(self.tier), t, "moves a block that was not there before the step")
            _need(len(np.unique(moving)) == len(moving), t, "moves a block twice")
            old, size = self.tier[moving], self.size[moving]
            _need(bool((old != GONE).all()), t, "moves a block that is gone")
            _need(bool((old != decided.to_tier).all()), t, "moves a block to the tier that it is in")
            self.used += np.bincount(decided.to_tier, size, tiers) - np.bincount(old, size, tiers)
            self.tier[moving] = decided.to_tier
        self.used += np.bincount(decided.birth_tier, now.born_bytes, tiers)
        self.size = np.concatenate([self.size, now.born_bytes]) if len(now.born_bytes) else self.size
        self.tier = np.concatenate([self.tier, decided.birth_tier]) if len(now.born_bytes) else self.tier
        limit = self.deployment.capacity_bytes
        over = np.flatnonzero(self.used[:-1] > limit[:-1] * (1 + FEASIBILITY))
        if len(over):
            k = int(over[0])
            raise ValueError(f"the policy breaks a rule in step {t}: it puts {self.used[k]:.6g} bytes into tier {k}, which holds {limit[k]:.6g}")


def _need(kept: bool, t: int, what: str) -> None:
    if not kept:
        raise ValueError(f"the policy breaks a rule in step {t}: it {what}")


def plan_of(instance: KvTiering, made: list[Decision]) -> TieringPlan:
    """The plan that a policy's decisions make, in the instance's own block numbers."""
    block_of = birth_order(instance)
    initial = np.empty(instance.blocks, np.int64)
    initial[block_of] = np.concatenate([item.birth_tier for item in made])
    step = np.repeat(np.arange(len(made)), [len(item.block) for item in made])
    block, to_tier = (np.concatenate([getattr(item, name) for item in made]) for name in ("block", "to_tier"))
    return make_plan(initial, step, block_of[block], to_tier)


def replay_policy(instance: KvTiering, policy: MakePolicy) -> TieringPlan:
    """Show a policy the trace step by step; the plan that its decisions make.

    Raises `ValueError` when the policy breaks a rule. The cost of the policy, and O(N log N + reads + moves + T K).
    """
    return plan_of(instance, list(decisions(instance, policy(deployment_of(instance)))))


def replay(instance: KvTiering, policy: MakePolicy, rng: np.random.Generator) -> Outcome:
    """The plan of a policy's decisions, with its settings and what it moved."""
    decider = policy(deployment_of(instance))
    plan = plan_of(instance, list(decisions(instance, decider)))
    done = replay_plan(instance, plan)
    moved = {"moves": len(plan.moves.step), "moved_bytes": float(done.moved_bytes.sum()), "lookahead_steps": decider.lookahead_steps}
    return Outcome(plan=plan, details={"trace": moved | {"parameters": decider.settings}})


__all__ = [
    "Decision",
    "Deployment",
    "MakePolicy",
    "Observation",
    "Step",
    "TierPolicy",
    "birth_order",
    "decisions",
    "deployment_of",
    "observations",
    "plan_of",
    "replay",
    "replay_policy",
    "steps_of",
]
