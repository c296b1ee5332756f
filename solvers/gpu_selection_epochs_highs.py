"""The Pyomo model over epochs by HiGHS: exact on short horizons, and what the decomposition is checked against."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_fleet_cuts import CutPool
from headroom.bounds.gpu_selection_stages import closed_form_value, stages_of, unserved_items
from headroom.formulations.gpu_selection import EpochPlan, build_model
from headroom.formulations.gpu_selection_epochs import epoch_plan, serving
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, Outcome, SolveParams
from headroom.instances.gpu_selection import GpuSelection
from headroom.solvers.highs import solve_mip
from headroom.solvers.standard_form import StandardForm, standard_form

FloatArray = npt.NDArray[np.float64]
SECONDS_A_CELL = 5e-5
"""Building and compiling the model takes about this long for each (epoch, type, item)."""
BELIEVED = 1e-6
"""A bound of HiGHS further above a plan's cost than this is wrong: loads near its absolute tolerance. It is left out."""
SMALL_CELLS = 5_000
"""Up to so many (epoch, type, item) HiGHS does without presolve: it loses no time, and presolve of 1.14 called 15.63 optimal on an instance of ours
with data of very different scales whose optimum is 14.31."""


def cells(instance: GpuSelection) -> int:
    """(epoch, type, item) triples of the model."""
    return int(np.prod(instance.can_serve.shape)) * stages_of(instance).epochs


def highs_epochs(instance: GpuSelection, params: SolveParams, progress: Progress) -> Outcome:
    """HiGHS on the model; its bound is its own word. Costs are scaled to at most 1, for its tolerances are absolute."""
    bounds: tuple[Bound, ...] = (Bound(closed_form_value(instance), "closed_form", "closed_form"),)
    if len(unserved_items(instance)):
        return Outcome(bounds=bounds, notes=(f"no type can serve {instance.work[unserved_items(instance)[0]].name}",))
    stages = stages_of(instance)
    if cells(instance) * SECONDS_A_CELL > progress.remaining_s:
        return Outcome(plan=progress.plan, bounds=bounds, stop="time_limit", notes=("no time to build the Pyomo model",))
    form = standard_form(build_model(instance))
    scale = float(np.abs(form.cost).max(initial=0.0)) or 1.0
    form = replace(form, cost=form.cost / scale)
    pool = CutPool(instance, stages)

    def offer(x: FloatArray) -> None:
        plan = _plan(instance, form, pool, x)
        if plan is not None:
            progress.offer(plan)

    options = {"presolve": "off"} if cells(instance) <= SMALL_CELLS else None
    answer = solve_mip(form, params, progress, offer, None, options, scale)
    if answer.x is not None:
        offer(answer.x)
    if answer.status == "infeasible" and progress.plan is None:
        bounds = (*bounds, Bound(math.inf, "highs", "solver"))
    elif -math.inf < answer.bound * scale <= progress.objective * (1 + BELIEVED):
        bounds = (*bounds, Bound(answer.bound * scale, "highs", "solver"))
    return Outcome(plan=progress.plan, bounds=bounds, stop=answer.stop, solver=answer.solver, details={"nodes": answer.nodes})


def _plan(instance: GpuSelection, form: StandardForm, pool: CutPool, x: FloatArray) -> EpochPlan | None:
    """HiGHS' counts, with its slices when they are integers, else with shares solved anew for these counts to full precision."""
    model, stages = form.model, pool.stages
    n = np.zeros((stages.epochs, stages.types), dtype=np.int64)
    for (g, t), value in form.values(model.count, x).items():
        n[t, g] = round(value)
    share = np.zeros((stages.epochs, *instance.can_serve.shape))
    if instance.pooled_slices is not None:
        for (g, t, i), value in form.values(model.slice_count, x).items():
            share[t, g, i] = round(value) / instance.pooled_slices
        return epoch_plan(instance, n, share)
    ready = serving(instance, n)
    for t in range(stages.epochs):
        found = pool.serving.shares(stages.rate[t], ready[t])
        if found is None:
            return None
        share[t] = found
    return epoch_plan(instance, n, share)
