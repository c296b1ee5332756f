r"""KV-cache tiering: the mathematics, the plan, and its evaluation. The Pyomo model is in `kv_tiering_model`.

Sets (index, field)
    i in B   blocks                             0 .. N - 1
    t        steps 0 .. T - 1                   `reads.indptr`
    k in K   tiers, fastest first               `tiers`; the last one is z

Parameters (field, unit)
    s_i      bytes of a block                   `block_bytes`
    b_i, d_i life: steps b_i <= t < d_i         `birth_step`, `death_step` (null: d_i = T)
    r_it     bytes read of i in step t          `reads.bytes`, s_i where that is null; 0 where t does not read i
    q_it     1 where step t reads i             `reads`
    C_k      capacity, bytes                    `tiers[].capacity_bytes`, infinite for z
    R_k, W_k bytes a second read and written    `tiers[].read_bytes_per_s`, `tiers[].write_bytes_per_s`
    f_t      bytes read from tier 0 anyway      `fixed_read_bytes`

Variables
    x_itkl in {0, 1}   i is in tier k in step t - 1 and in l in step t (b_i < t < d_i)    plan `moves` where k != l
    x_itk  in {0, 1}   i is in tier k in step t: x_itl = sum_k x_itkl                      plan `initial_tier` at t = b_i
    T_t >= 0           seconds of step t

    minimise  sum_t T_t
    path      sum_k x_i,b,k = 1;  sum_l x_itkl = x_i,t-1,k;  sum_k x_itkl = x_itl
    capacity  sum_i s_i x_itk <= C_k                       for every t and every bounded tier k: after the step's moves and births
    time      T_t >= (sum of bytes read from k in t) / R_k + (sum of bytes written to k in t) / W_k       for every t and k, with
              - f_t read from tier 0;
              - a block that stays in k: r_it read from k;
              - a move from k to l: s_i read from k, which serves the block's read of that step, and s_i written to l;
              - a birth in k at b_i > 0: s_i written to k, and r_it read from k if it is read at once (a birth at 0 is free);
              - `inclusive`: z keeps a copy of every block. A birth at b_i > 0 writes s_i to z (once), a move into z costs nothing: the block's
                read of that step, if any, is one of r_it bytes from z, where the block then is.

With `inclusive` z's copy does not serve reads of a block that is elsewhere: a block is read where it is.
Every block is a path in its own time-expanded graph over (step, tier); capacity and time couple the paths. For given weights of the tiers' times in
each step the problem with one bounded tier and blocks of one size is a minimum-cost flow, which is integral: only the maximum costs integrality.

Source: Fang et al., arXiv 2508.13231 (two tiers, a step for every token and layer). Any number of tiers, births and deaths, partial reads and the
inclusive rule are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt

from headroom.formulations.tolerances import FEASIBILITY
from headroom.formulations.types import Evaluation, Plan, Violation
from headroom.instances.arrays import Numbers
from headroom.instances.base import Record
from headroom.instances.errors import InputError
from headroom.instances.kv_tiering import KvTiering

if TYPE_CHECKING:
    import pyomo.environ as pyo

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MOST_NAMED = 20
"""Violations that are named one by one; the rest is added to the last."""


class Moves(Record):
    """Moves, sorted by step: in `step[m]`, before its reads, `block[m]` goes to `to_tier[m]`."""

    step: Annotated[IntArray, Numbers("moves.step", "[move]", whole=True, most=2**31 - 1)]
    block: Annotated[IntArray, Numbers("moves.block", "[move]", whole=True, most=2**31 - 1)]
    to_tier: Annotated[IntArray, Numbers("moves.to_tier", "[move]", whole=True, most=7)]


class TieringPlan(Plan):
    """`initial_tier` [N]: the tier that each block is born in; `moves` by step."""

    initial_tier: Annotated[IntArray, Numbers("initial_tier", "[block]", whole=True, most=7)]
    moves: Moves

    def dump(self, context: Any = None) -> dict[str, Any]:
        """The fields in JSON types."""
        return self.model_dump(context=dict(context or {}))


def make_plan(initial_tier: IntArray, step: IntArray, block: IntArray, to_tier: IntArray) -> TieringPlan:
    """A plan from arrays of moves in any order."""
    order = np.lexsort((block, step))
    return TieringPlan(
        initial_tier=np.asarray(initial_tier, np.int64),
        moves=Moves(step=np.asarray(step)[order], block=np.asarray(block)[order], to_tier=np.asarray(to_tier)[order]),
    )


@dataclass(frozen=True)
class Replay:
    """What a plan does, step by step. `tier_s` [T][K]: seconds each tier works; `occupancy_bytes` [T][K]; `moved_bytes` [T]; `read_bytes` [T][K]:
    reads served by each tier, those of moves included, fixed reads not; `moves` [K][K]: blocks moved from tier to tier."""

    tier_s: FloatArray
    occupancy_bytes: FloatArray
    moved_bytes: FloatArray
    read_bytes: FloatArray
    moves: IntArray

    @property
    def step_s(self) -> FloatArray:
        """Seconds of each step [T]."""
        found: FloatArray = self.tier_s.max(axis=1)
        return found


def replay(instance: KvTiering, plan: TieringPlan) -> Replay:
    """Replay a plan exactly, event by event. O(reads + moves + N + T K). Raises `InputError` when the plan does not fit the instance."""
    _check_shape(instance, plan)
    steps, tiers = instance.steps, len(instance.tiers)
    size, read_s, write_s = instance.size, instance.read_s, instance.write_s
    tier_s, occupied, served = np.zeros((steps, tiers)), np.zeros((steps, tiers)), np.zeros((steps, tiers))
    tier_s[:, 0] = instance.fixed * read_s[0]
    moved_bytes, between = np.zeros(steps), np.zeros((tiers, tiers), np.int64)
    last = tiers - 1
    now = np.where(instance.birth == 0, plan.initial_tier, -1)
    occupancy = np.bincount(plan.initial_tier[instance.birth == 0], size[instance.birth == 0], tiers)
    starts = _by_step(instance.birth, steps)
    ends = _by_step(instance.death, steps + 1)
    for t, moving, to in _moves_by_step(plan, steps):
        unserved = instance.reads.block[instance.reads.indptr[t] : instance.reads.indptr[t + 1]]
        amount = instance.read_bytes(t)
        dead, born = ends(t), starts(t) if t else np.zeros(0, np.int64)
        if len(dead):
            occupancy = occupancy - np.bincount(now[dead], size[dead], tiers)
            now[dead] = -1
        if len(moving):
            old = now[moving]
            _check_moves(t, moving, to, old)
            bytes_moved = size[moving]
            occupancy = occupancy - np.bincount(old, bytes_moved, tiers) + np.bincount(to, bytes_moved, tiers)
            np.add.at(between, (old, to), 1)
            now[moving] = to
            if instance.inclusive:
                paid = to != last
                moving, old, to, bytes_moved = moving[paid], old[paid], to[paid], bytes_moved[paid]
            read = np.bincount(old, bytes_moved, tiers)
            tier_s[t] += read * read_s + np.bincount(to, bytes_moved, tiers) * write_s
            moved_bytes[t] = bytes_moved.sum()
            if len(unserved) and len(moving):
                by_move = np.isin(unserved, moving, kind="sort")
                served[t] += np.bincount(old[np.isin(moving, unserved, kind="sort")], bytes_moved[np.isin(moving, unserved, kind="sort")], tiers)
                unserved, amount = unserved[~by_move], amount[~by_move]
        if len(born):
            into = plan.initial_tier[born]
            now[born] = into
            occupancy = occupancy + np.bincount(into, size[born], tiers)
            tier_s[t] += np.bincount(into, size[born], tiers) * write_s
            if instance.inclusive:
                tier_s[t, last] += size[born[into != last]].sum() * write_s[last]
        read = np.bincount(now[unserved], amount, tiers)
        tier_s[t] += read * read_s
        served[t] += read
        occupied[t] = occupancy
    return Replay(tier_s, np.maximum(occupied, 0.0), moved_bytes, served, between)


def _by_step(when: IntArray, steps: int) -> Any:
    """A function from a step to the blocks with that step."""
    order = np.argsort(when, kind="stable")
    first = np.searchsorted(when[order], np.arange(steps + 2))
    return lambda t: order[first[t] : first[t + 1]]


def _moves_by_step(plan: TieringPlan, steps: int) -> Iterator[tuple[int, IntArray, IntArray]]:
    moves = plan.moves
    order = np.lexsort((moves.block, moves.step))
    step, block, to_tier = moves.step[order], moves.block[order], moves.to_tier[order]
    first = np.searchsorted(step, np.arange(steps + 1))
    for t in range(steps):
        yield t, block[first[t] : first[t + 1]], to_tier[first[t] : first[t + 1]]


def _check_shape(instance: KvTiering, plan: TieringPlan) -> None:
    tiers, moves = len(instance.tiers), plan.moves
    if len(plan.initial_tier) != instance.blocks:
        raise InputError(f"plan: initial_tier must have {instance.blocks} entries, one for each block, got {len(plan.initial_tier)}")
    beyond = np.flatnonzero(plan.initial_tier >= tiers)
    if len(beyond):
        raise InputError(f"plan: initial_tier[{beyond[0]}] must be a tier from 0 to {tiers - 1}, got {plan.initial_tier[beyond[0]]}")
    if not len(moves.step) == len(moves.block) == len(moves.to_tier):
        lengths = f"{len(moves.step)}, {len(moves.block)} and {len(moves.to_tier)}"
        raise InputError(f"plan: moves.step, moves.block and moves.to_tier must be of one length, got {lengths}")
    for name, limit in (("step", instance.steps), ("block", instance.blocks), ("to_tier", tiers)):
        beyond = np.flatnonzero(getattr(moves, name) >= limit)
        if len(beyond):
            m = int(beyond[0])
            raise InputError(f"plan: moves.{name}[{m}] must be a {name.replace('to_', '')} from 0 to {limit - 1}, got {getattr(moves, name)[m]}")
    early = np.flatnonzero((moves.step <= instance.birth[moves.block]) | (moves.step >= instance.death[moves.block]))
    if len(early):
        m = int(early[0])
        block = int(moves.block[m])
        life = f"after step {instance.birth[block]} and before step {instance.death[block]}, the life of block {block}"
        raise InputError(f"plan: moves.step[{m}] must be {life}, got {moves.step[m]}")


def _check_moves(t: int, moving: IntArray, to: IntArray, old: IntArray) -> None:
    twice = np.flatnonzero(moving[1:] == moving[:-1])
    if len(twice):
        raise InputError(f"plan: moves must move a block at most once in a step, got block {moving[twice[0]]} twice in step {t}")
    same = np.flatnonzero(to == old)
    if len(same):
        raise InputError(f"plan: moves must change the tier, got block {moving[same[0]]} in step {t}, which is in tier {to[same[0]]} already")


def evaluate(instance: KvTiering, plan: Plan) -> Evaluation:
    """Seconds of all steps; the parts say which tier they wait for. Every exceeded capacity is a violation.

    Raises `InputError` when the plan does not fit the instance. O(reads + moves + N + T K).
    """
    if not isinstance(plan, TieringPlan):
        raise InputError(f"plan must have initial_tier and moves, got a {type(plan).__name__}")
    return evaluation_of(instance, replay(instance, plan))


def evaluation_of(instance: KvTiering, done: Replay) -> Evaluation:
    """The evaluation of a plan that was replayed already."""
    busiest, step_s = done.tier_s.argmax(axis=1), done.step_s
    parts = {f"{tier.name}_s": math.fsum(step_s[busiest == k].tolist()) for k, tier in enumerate(instance.tiers)}
    return Evaluation(math.fsum(parts.values()), parts, tuple(_violations(instance, done)))


def _violations(instance: KvTiering, done: Replay) -> list[Violation]:
    over = done.occupancy_bytes - instance.capacity[None, :]
    exceeded = np.argwhere(over > FEASIBILITY * np.where(np.isfinite(instance.capacity), instance.capacity, 0.0)[None, :])
    named = [
        Violation("capacity", f"tier {instance.tiers[k].name}, step {t}", float(over[t, k]), float(instance.capacity[k]))
        for t, k in exceeded[:MOST_NAMED]
    ]
    rest = exceeded[MOST_NAMED:]
    if len(rest):
        total = math.fsum(float(over[t, k]) for t, k in rest)
        named.append(Violation("capacity", f"{len(rest)} more", total, float(instance.capacity[rest[0][1]])))
    return named


def plan_type(_: object) -> type[Plan]:
    """The plan type that a plan's JSON object is meant for."""
    return TieringPlan


def build_model(instance: KvTiering) -> pyo.ConcreteModel:
    """The Pyomo model: see `kv_tiering_model`."""
    from headroom.formulations.kv_tiering_model import build_model as build

    return build(instance)
