"""The Pyomo models of request packing by HiGHS: exact on small instances, and what the faster methods are checked against."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.request_packing_bins import volume
from headroom.bounds.request_packing_staged import cover_of, decode_floor, stage_count, unservable
from headroom.formulations.progress import Progress
from headroom.formulations.request_packing import BinPlan, StagedPlan, replay
from headroom.formulations.request_packing_model import build_model, plan_of
from headroom.formulations.types import Bound, Outcome, Plan, SolveParams
from headroom.heuristics.request_packing import ffd, lpt
from headroom.instances.request_packing import RequestPacking
from headroom.solvers.highs import solve_mip
from headroom.solvers.standard_form import StandardForm, standard_form

FloatArray = npt.NDArray[np.float64]
LARGEST_MODEL = 200_000
"""Assignment variables beyond which the model is not even built."""
SECONDS_A_VARIABLE = 1e-4
"""Building and compiling the model takes about this long for each."""
BELIEVED = 1e-6
"""A bound of HiGHS further above a plan than this is wrong. It is left out."""
LARGEST_STEPS, LARGEST_TOKENS = 2**21, 2**28
"""Of a whole run; of a bin, or of all prompts. With more HiGHS, whose tolerances are absolute, has called plans of twice the optimum optimal, and
feasible instances infeasible."""


def model_variables(instance: RequestPacking) -> int:
    """Assignment variables of the Pyomo model: its size."""
    count = instance.count
    return count * count if instance.objective == "bins" else count * count * (count + 1) // 2


def highs(instance: RequestPacking, params: SolveParams, progress: Progress) -> Outcome:
    """The Pyomo model of either objective by HiGHS, from the best plan so far. Its bound is its own word; a closed form stands beside it.

    Instances with more than LARGEST_MODEL assignment variables are refused with a note, and so are numbers above LARGEST_STEPS and LARGEST_TOKENS,
    and requests that no plan can serve. Anytime: incumbents are offered as they come.
    """
    bounds = [(volume if instance.objective == "bins" else stage_count)(instance, params, progress)]
    progress.keep(bounds[0])
    refused = _refused(instance)
    if refused:
        return Outcome(bounds=tuple(bounds), notes=(refused,))
    size = model_variables(instance)
    if size > LARGEST_MODEL:
        note = f"the model has {size} assignment variables; HiGHS takes up to {LARGEST_MODEL}"
        return Outcome(plan=progress.plan, bounds=tuple(bounds), notes=(note,))
    if progress.plan is None:
        plan = (ffd if instance.objective == "bins" else lpt)(instance, params.rng())
        if plan is not None:
            progress.offer(plan)  # a plan there is, whatever HiGHS finds in its time
    too_large = _too_large(instance)
    if too_large:
        return Outcome(plan=progress.plan, bounds=tuple(bounds), notes=(too_large,))
    if size * SECONDS_A_VARIABLE > progress.remaining_s:
        return Outcome(plan=progress.plan, bounds=tuple(bounds), stop="time_limit", notes=("no time to build the Pyomo model",))
    stages = _most_stages(instance, progress.objective) if instance.objective == "makespan" else None
    model = build_model(instance, most_stages=stages)
    form = standard_form(model)
    # A makespan in hundredths of a known one: HiGHS' tolerances are absolute.
    unit = 1.0 if instance.objective == "bins" else progress.objective / 100
    form = replace(form, cost=form.cost / unit, constant=form.constant / unit)

    def offer(x: FloatArray) -> None:
        plan = _plan(instance, form, x)
        if plan is not None:
            progress.offer(plan)

    start = _start(instance, form, progress.plan)
    answer = solve_mip(form, params, progress, offer, start, None, unit)
    notes: tuple[str, ...] = ()
    if answer.x is not None:
        offer(answer.x)
        if answer.status == "optimal" and progress.objective > answer.objective * unit * (1 + BELIEVED):
            notes = ("the plan that HiGHS calls optimal holds within its tolerances only, not in whole tokens and steps",)
    if -math.inf < answer.bound * unit <= progress.objective * (1 + BELIEVED):
        # Above the plan by no more than HiGHS' tolerances: it says that the plan is the best.
        bounds.append(Bound(min(answer.bound * unit, progress.objective), "highs", "solver"))
    return Outcome(plan=progress.plan, bounds=tuple(bounds), stop=answer.stop, solver=answer.solver, notes=notes, details={"nodes": answer.nodes})


def _refused(instance: RequestPacking) -> str | None:
    """Names a request that no plan can serve."""
    if instance.objective == "makespan":
        return unservable(instance)
    j, capacity = int(np.argmax(instance.padded)), instance.capacity_tokens or 0
    if instance.padded[j] <= capacity:
        return None
    return f"request {j} takes {instance.padded[j]} tokens of a bin, more than capacity_tokens {capacity}: there is no feasible plan"


def _too_large(instance: RequestPacking) -> str | None:
    """Says which number of an instance is too large for HiGHS."""
    if instance.objective == "bins":
        numbers = [("tokens in a bin", instance.capacity_tokens or 0, LARGEST_TOKENS)]
    else:
        prompt = int(instance.requests.prompt_tokens.sum()) if instance.prefill_levels else 0
        numbers = [
            ("decode steps", int(instance.requests.output_tokens.sum()), LARGEST_STEPS),
            ("prompt tokens in all", prompt, LARGEST_TOKENS),
        ]
    for what, found, most in numbers:
        if found > most:
            return f"the model has {found} {what}; HiGHS is exact up to {most}"
    return None


def _most_stages(instance: RequestPacking, known: float) -> int:
    """Stages of any plan that takes no longer than `known` seconds: those of more would take longer to prefill."""
    cover, floor_s = cover_of(instance), decode_floor(instance) * (instance.decode_step_s or 0.0)
    most = instance.count
    while most > cover.stages and cover.linear_s(cover.tokens[0], most) + floor_s > known * (1 + BELIEVED):
        most -= 1
    return most


def _plan(instance: RequestPacking, form: StandardForm, x: FloatArray) -> Plan | None:
    """The plan of a column vector; None where a number is not whole enough."""
    for component in ("x", "v", "m"):
        variable = getattr(form.model, component, None)
        if variable is not None:
            for index, value in form.values(variable, x).items():
                if not variable[index].fixed:
                    variable[index].set_value(value, skip_validation=True)
    try:
        return plan_of(instance, form.model)
    except ValueError:
        return None


def _start(instance: RequestPacking, form: StandardForm, plan: Plan | None) -> FloatArray | None:
    """The columns of a plan that decide it; HiGHS finds the others. None where the plan has no columns of its own."""
    model: Any = form.model
    wanted: dict[int, float] = {}
    if isinstance(plan, BinPlan) and instance.objective == "bins":
        # Bin b holds no request below b: bins by their first request, which are numbered 0, 1, ... as they come.
        _, first, inverse = np.unique(plan.bin, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))
        wanted = {id(model.x[j, b]): float(rank[inverse[j]] == b) for j, b in model.x}
    elif isinstance(plan, StagedPlan) and instance.objective == "makespan":
        spans = _spans(instance, plan)
        if spans is None:
            return None
        stages, steps = spans
        if len(steps) > len(model.K):
            return None
        wanted = {id(model.v[j, k, e]): float(stages[j] == (k, e)) for j, k, e in model.v}
        wanted |= {id(model.m[k]): float(steps[k] if k < len(steps) else 0) for k in model.K}
    if not wanted:
        return None
    return np.array([wanted.get(id(variable), np.nan) for variable in form.columns])


def _spans(instance: RequestPacking, plan: StagedPlan) -> tuple[list[tuple[int, int]], list[int]] | None:
    """First and last stage of each request, and the decode steps of the stages; stages that admit nothing are joined to the one before."""
    run = replay(instance, plan)
    admits = np.bincount(run.stage, minlength=len(plan.stages)) > 0
    if not len(admits) or not admits[0]:
        return None
    number = np.cumsum(admits) - 1
    steps = np.bincount(number, run.decode_steps.astype(np.float64)).astype(np.int64)
    done = np.cumsum(steps)
    last = np.searchsorted(done, run.finish_step)
    return [(int(number[k]), max(int(number[k]), int(e))) for k, e in zip(run.stage, last, strict=True)], steps.tolist()


__all__ = ["highs", "model_variables"]
