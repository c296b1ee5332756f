r"""Request packing: the mathematics, the plans, and their evaluation. The Pyomo models are in `request_packing_model`.

Sets (index, field)
    j in N       requests                        `requests`
    g in G       groups (shared prefix, adapter) `requests.group`; a request without one is a group of its own, without overhead

Parameters (field, unit)
    p_j, o_j     prompt and output tokens        `requests.prompt_tokens`, `requests.output_tokens`
    s_j          p_j + o_j, what j takes in a bin; p_j is without the shared prefix
    C            tokens of a bin                 `capacity_tokens`
    h_g          tokens a group takes once in each bin that it is in    `group_overhead_tokens`, 0 for a request without group
    q            padding: a group's sizes in a bin count as the next multiple of q    `padding_multiple`
    J            slots                           `slots`
    L_l, tau_l   prefill levels: most prompt tokens and seconds, both rising          `prefill_levels`
    delta        seconds of a decode step        `decode_step_s`

Objective "bins" (plan `bin` [N]): the fewest bins

    minimise  sum_b y_b
    x_jb in {0, 1}: j is in b;  sum_b x_jb = 1;  z_gb >= x_jb for j in g: g is in b;  w_gb whole: multiples of q that g takes in b
    q w_gb >= sum_{j in g} s_j x_jb;   sum_g (h_g z_gb + q w_gb) <= C y_b

    Without groups this is bin packing of the sizes q ceil(s_j / q).

Objective "makespan" (plan `stages`): the least seconds of a run of stages k = 0, 1, ... Stage k admits requests into free slots and prefills them
together, in tau_l seconds for the first level l with L_l >= their prompt tokens (0 s if it admits none; no level is enough: infeasible), while
nothing decodes. Then come m_k decode steps of delta seconds; in each of them every admitted request that is not finished makes one token. Request j
needs o_j steps, frees its slot for the stage after that in which it finishes, and never leaves early.

    minimise  sum_k (sum_l tau_l u_kl + delta m_k)
    v_jke in {0, 1}: j is admitted in stage k and in its slot to the end of stage e >= k;  sum_ke v_jke = 1
    sum_{i = k..e} m_i >= o_j v_jke for every j, k, e
    sum_{k <= l <= e} v_jke <= J for every stage l
    sum_je p_j v_jke <= sum_l L_l u_kl;  sum_l u_kl <= 1;  u_kl in {0, 1};  sum_je v_jke <= J sum_l u_kl

    A stage that admits nothing can be joined to the one before, so N stages are enough. Without prefill time the problem is P||Cmax with the outputs
    as processing times: the requests of a slot one after the other, a stage wherever one of them ends.

Source: bins are those of classical bin packing, with overheads as in arXiv 2412.03594 (shared prefixes) and padding as in arXiv 2510.00206; stages
are Pang et al.'s (arXiv 2502.15763), with any prefill levels and preemption of decoding at any step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from headroom.formulations.types import Evaluation, Plan, Violation
from headroom.instances.arrays import Numbers
from headroom.instances.base import Record
from headroom.instances.errors import InputError
from headroom.instances.request_packing import MOST_REQUESTS, MOST_TOKENS, RequestPacking

if TYPE_CHECKING:
    import pyomo.environ as pyo

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MOST_NAMED = 20
"""Violations that are named one by one; the rest is added to the last."""


class BinPlan(Plan):
    """`bin` [N]: the bin of each request; numbers that no request has are no bins."""

    bin: Annotated[IntArray, Numbers("bin", "[request]", whole=True, most=MOST_REQUESTS)]

    def dump(self, context: Any = None) -> dict[str, Any]:
        """The fields in JSON types."""
        return self.model_dump(context=dict(context or {}))


class Stage(Record):
    """One stage: `admit` [n][2], pairs of a request and the free slot that it goes to, prefilled together; then `decode_steps`."""

    admit: Annotated[IntArray, Numbers("stages[].admit", "[admission][request, slot]", whole=True, most=MOST_REQUESTS)]
    decode_steps: Annotated[int, Field(ge=0, le=MOST_TOKENS * MOST_REQUESTS)]


class StagedPlan(Plan):
    """`stages` in their order."""

    stages: Annotated[tuple[Stage, ...], Field(strict=False)]

    def dump(self, context: Any = None) -> dict[str, Any]:
        """The fields in JSON types."""
        return self.model_dump(context=dict(context or {}))


def bin_plan(bins: npt.ArrayLike) -> BinPlan:
    """A plan from each request's bin, renumbered 0, 1, ... by first request."""
    _, first, inverse = np.unique(np.asarray(bins, np.int64), return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return BinPlan(bin=rank[inverse])


def staged_plan(stages: Iterable[tuple[Sequence[tuple[int, int]] | IntArray, int]]) -> StagedPlan:
    """A plan from (admissions, decode steps) of each stage."""
    return StagedPlan(stages=tuple(Stage(admit=np.asarray(admit, np.int64).reshape(-1, 2), decode_steps=int(steps)) for admit, steps in stages))


@dataclass(frozen=True)
class Run:
    """What a staged plan does. By stage [S]: `start_s`, `prefill_s`, `prompt_tokens`, `decode_steps`. By request [N], -1 where it is never admitted:
    `stage`, `slot`, `finish_step` (decode steps of the whole run until it is done); `before` [S]: decode steps before each stage."""

    start_s: FloatArray
    prefill_s: FloatArray
    prompt_tokens: IntArray
    decode_steps: IntArray
    before: IntArray
    stage: IntArray
    slot: IntArray
    finish_step: IntArray

    @property
    def total_steps(self) -> int:
        """Decode steps of the whole run."""
        return int(self.decode_steps.sum())


def replay(instance: RequestPacking, plan: StagedPlan) -> Run:
    """Replay a staged plan. O(N + stages). Raises `InputError` for a request or slot that there is not, and for a request admitted twice."""
    count, stages = instance.count, plan.stages
    steps = np.array([stage.decode_steps for stage in stages], np.int64)
    lengths = np.array([len(stage.admit) for stage in stages], np.int64)
    if steps.sum(dtype=np.float64) > MOST_TOKENS * MOST_REQUESTS:
        raise InputError(f"plan: stages must have at most {MOST_TOKENS * MOST_REQUESTS} decode steps in all, got {steps.sum(dtype=np.float64):g}")
    for k, stage in enumerate(stages):
        if len(stage.admit) and stage.admit.shape[1] != 2:
            raise InputError(f"plan: stages[{k}].admit must hold pairs of a request and a slot, got rows of {stage.admit.shape[1]}")
    admit = np.concatenate([np.zeros((0, 2), np.int64), *(stage.admit for stage in stages if len(stage.admit))])
    of_stage = np.repeat(np.arange(len(stages)), lengths)
    request, slot = admit[:, 0], admit[:, 1]
    for name, values, limit in (("request", request, count), ("slot", slot, instance.slots or 0)):
        beyond = np.flatnonzero(values >= limit)
        if len(beyond):
            raise InputError(f"plan: stages[{of_stage[beyond[0]]}].admit must name a {name} from 0 to {limit - 1}, got {values[beyond[0]]}")
    at = np.full(count, -1, np.int64)
    at[request[::-1]] = of_stage[::-1]
    twice = np.flatnonzero(np.bincount(request, minlength=count) > 1)
    if len(twice):
        raise InputError(f"plan: stages must admit a request once, got request {twice[0]} twice, first in stage {at[twice[0]]}")
    before = np.cumsum(steps) - steps
    slots, finish = np.full(count, -1, np.int64), np.full(count, -1, np.int64)
    slots[request] = slot
    finish[request] = before[of_stage] + instance.requests.output_tokens[request]
    prompt = np.zeros(len(stages), np.int64)
    np.add.at(prompt, of_stage, instance.requests.prompt_tokens[request])
    prefill = np.where(lengths > 0, instance.prefill_s(prompt), 0.0)
    length_s = prefill + steps * (instance.decode_step_s or 0.0)
    start_s = np.concatenate(([0.0], np.cumsum(length_s)))[:-1]  # not by a difference: a prefill above the last level takes infinite time
    return Run(start_s, prefill, prompt, steps, before, at, slots, finish)


def evaluate(instance: RequestPacking, plan: Plan) -> Evaluation:
    """Bins, or seconds of the whole run. Violations: bins too full; slots not free, prompts above the last prefill level, requests not finished.

    Raises `InputError` when the plan does not fit the instance. O(N log N) bins, O(N log N + stages) stages.
    """
    if instance.objective == "bins":
        if not isinstance(plan, BinPlan):
            raise InputError(f"plan must have bin because the objective is 'bins', got a {type(plan).__name__}")
        return _evaluate_bins(instance, plan)
    if not isinstance(plan, StagedPlan):
        raise InputError(f"plan must have stages because the objective is 'makespan', got a {type(plan).__name__}")
    return _evaluate_stages(instance, plan)


def bin_loads(instance: RequestPacking, plan: BinPlan) -> tuple[IntArray, IntArray]:
    """The bins that are used, rising, and their loads in tokens, overheads and padding included. O(N log N). Raises `InputError`."""
    if len(plan.bin) != instance.count:
        raise InputError(f"plan: bin must have {instance.count} entries, one for each request, got {len(plan.bin)}")
    used, row = np.unique(plan.bin, return_inverse=True)
    if instance.plain:
        load = np.zeros(len(used), np.int64)
        np.add.at(load, row, instance.padded)
        return used, load
    group, multiple = instance.group_of, instance.padding_multiple
    pair = row * len(instance.overhead) + group
    pairs, inverse = np.unique(pair, return_inverse=True)
    tokens = np.zeros(len(pairs), np.int64)
    np.add.at(tokens, inverse, instance.size)
    load = np.zeros(len(used), np.int64)
    np.add.at(load, pairs // len(instance.overhead), -(-tokens // multiple) * multiple + instance.overhead[pairs % len(instance.overhead)])
    return used, load


def _evaluate_bins(instance: RequestPacking, plan: BinPlan) -> Evaluation:
    used, load = bin_loads(instance, plan)
    capacity = instance.capacity_tokens or 0
    over = np.flatnonzero(load > capacity)
    named = [Violation("capacity_tokens", f"bin {used[b]}", float(load[b] - capacity), float(capacity)) for b in over]
    return Evaluation(float(len(used)), {"bins": float(len(used))}, _shortened(named))


def _evaluate_stages(instance: RequestPacking, plan: StagedPlan) -> Evaluation:
    run = replay(instance, plan)
    delta = instance.decode_step_s or 0.0
    decode_s = run.total_steps * delta
    fits = np.isfinite(run.prefill_s)
    prefill_s = float(run.prefill_s[fits].sum())
    violations = [
        Violation("prefill_tokens", f"stage {k}", float(run.prompt_tokens[k] - instance.level_tokens[-1]), float(instance.level_tokens[-1]))
        for k in np.flatnonzero(~fits)
    ]
    admitted = np.flatnonzero(run.stage >= 0)
    order = admitted[np.lexsort((run.stage[admitted], run.slot[admitted]))]
    first, second = order[:-1], order[1:]
    wait = run.finish_step[first] - run.before[run.stage[second]]
    clash = np.flatnonzero((run.slot[first] == run.slot[second]) & (wait > 0))
    violations += [
        Violation("slot", f"slot {run.slot[first[c]]}, stage {run.stage[second[c]]}, request {second[c]}", float(wait[c]), 0.0) for c in clash
    ]
    missing = np.where(run.stage < 0, instance.requests.output_tokens, run.finish_step - run.total_steps)
    violations += [
        Violation("min_output_tokens", f"request {j}", float(missing[j]), float(instance.requests.output_tokens[j]))
        for j in np.flatnonzero(missing > 0)
    ]
    return Evaluation(prefill_s + decode_s, {"prefill_s": prefill_s, "decode_s": decode_s}, _shortened(violations))


def _shortened(violations: list[Violation]) -> tuple[Violation, ...]:
    """The first ones, and the sum of the rest."""
    rest = violations[MOST_NAMED:]
    if not rest:
        return tuple(violations)
    more = Violation(rest[0].constraint, f"{len(rest)} more", sum(item.amount for item in rest), rest[0].limit)
    return (*violations[:MOST_NAMED], more)


def objective_of(instance: RequestPacking) -> str:
    """The instance's mode: its objective."""
    return instance.objective


def plan_type(document: object) -> type[Plan]:
    """The plan type that a plan's JSON object is meant for."""
    return StagedPlan if isinstance(document, dict) and "stages" in document else BinPlan


def build_model(instance: RequestPacking) -> pyo.ConcreteModel:
    """The Pyomo model: see `request_packing_model`."""
    from headroom.formulations.request_packing_model import build_model as build

    return build(instance)
