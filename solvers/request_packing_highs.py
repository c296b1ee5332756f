"""The Pyomo models of request packing by HiGHS: exact on small instances, and what the faster methods are checked against."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.request_packing_staged import cover_of, decode_floor, stage_count, unservable
from headroom.formulations.progress import Progress
from headroom.formulations.request_packing import BinPlan, StagedPlan, replay
from headroom.formulations.request_packing_model import build_model, plan_of
from headroom.formulations.types import Bound, Outcome, Plan, SolveParams
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


def model_variables(instance: RequestPacking) -> int:
    """Assignment variables of the Pyomo model: its size."""
    count = instance.count
    return count * count if instance.objective == "bins" else count * count * (count + 1) // 2


def highs(instance: RequestPacking, params: SolveParams, progress: Progress) -> Outcome:
    """The Pyomo model of either objective by HiGHS, from the best plan so far. Its bound is its own word.

    Instances with more than LARGEST_MODEL assignment variables are refused with a note, and so are requests that no plan can serve.
    Anytime: incumbents are offered as they come.
    """
    refused = _refused(instance)
    if refused:
        return Outcome(bounds=(Bound(math.inf, "stage_count", "closed_form"),) if instance.objective == "makespan" else (), notes=(refused,))
    bounds: list[Bound] = []
    if instance.objective == "makespan":
        bounds.append(stage_count(instance, params, progress))
        progress.keep(bounds[0])
    size = model_variables(instance)
    if size > LARGEST_MODEL:
        note = f"the model has {size} assignment variables; HiGHS takes up to {LARGEST_MODEL}"
        return Outcome(plan=progress.plan, bounds=tuple(bounds), notes=(note,))
    if size * SECONDS_A_VARIABLE > progress.remaining_s:
        return Outcome(plan=progress.plan, bounds=tuple(bounds), stop="time_limit", notes=("no time to build the Pyomo model",))
    stages = _most_stages(instance, progress.objective) if instance.objective == "makespan" else None
    model = build_model(instance, most_stages=stages)
    form = standard_form(model)
    # In units of about the whole makespan's size a request: HiGHS' tolerances are absolute.
    unit = _unit(instance)
    form = replace(form, cost=form.cost / unit, constant=form.constant / unit)

    def offer(x: FloatArray) -> None:
        plan = _plan(instance, form, x)
        if plan is not None:
            progress.offer(plan)

    start = _start(instance, form, progress.plan)
    answer = solve_mip(form, params, progress, offer, start, None, unit)
    if answer.x is not None:
        offer(answer.x)
    if -math.inf < answer.bound * unit <= progress.objective * (1 + BELIEVED):
        bounds.append(Bound(answer.bound * unit, "highs", "solver"))
    return Outcome(plan=progress.plan, bounds=tuple(bounds), stop=answer.stop, solver=answer.solver, details={"nodes": answer.nodes})


def _refused(instance: RequestPacking) -> str | None:
    """Names a request that no plan can serve."""
    if instance.objective == "makespan":
        return unservable(instance)
    j, capacity = int(np.argmax(instance.padded)), instance.capacity_tokens or 0
    if instance.padded[j] <= capacity:
        return None
    return f"request {j} takes {instance.padded[j]} tokens of a bin, more than capacity_tokens {capacity}: there is no feasible plan"


def _most_stages(instance: RequestPacking, known: float) -> int:
    """Stages of any plan that takes no longer than `known` seconds: those of more would take longer to prefill."""
    cover, floor_s = cover_of(instance), decode_floor(instance) * (instance.decode_step_s or 0.0)
    most = instance.count
    while most > cover.stages and cover.linear_s(cover.tokens[0], most) + floor_s > known * (1 + BELIEVED):
        most -= 1
    return most


def _unit(instance: RequestPacking) -> float:
    if instance.objective == "bins":
        return 1.0
    return (instance.decode_step_s or 1.0) * max(1.0, float(instance.requests.output_tokens.max()) / 100)


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
