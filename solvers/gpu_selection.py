"""Exact methods for GPU selection.

| method      | how                                                                             | bound                       |
|-------------|---------------------------------------------------------------------------------|-----------------------------|
| `branching` | own branch and bound on counts, then slices (`gpu_selection_branching`)          | certificate: the tree       |
| `highs`     | the Pyomo model by HiGHS                                                         | HiGHS' word; LP certificate |
| `cpsat`     | slices directly; continuous shares by Benders cuts (`gpu_selection_cpsat`)       | CP-SAT's word; LP certificate |
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection import closed_form, lp
from headroom.formulations.gpu_selection import GpuSelectionPlan, build_model, counts, evaluate, plan_from_arrays
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, Outcome, Plan, SolveParams
from headroom.heuristics.gpu_selection import greedy, single_type
from headroom.instances.gpu_selection import GpuSelection
from headroom.solvers.gpu_selection_branching import Search
from headroom.solvers.gpu_selection_sensitivity import infeasibility, model_seconds, sensitivity
from headroom.solvers.gpu_selection_shares import shares_for
from headroom.solvers.highs import solve_mip
from headroom.solvers.standard_form import StandardForm, standard_form

FloatArray = npt.NDArray[np.float64]
HEURISTIC_NODES = 2000


def auto(instance: GpuSelection) -> str:
    """Own branching: it is the fastest here on every size measured, and its bound is a certificate; whole replicas: column generation."""
    return {"per_replica": "column_generation", "epochs": "decomposition"}.get(instance.mode, "branching")


def branching(instance: GpuSelection, params: SolveParams, progress: Progress) -> Outcome:
    """Optimal within OPTIMALITY_GAP given time, with a tree that proves it. Anytime."""
    bounds = _start(instance, params, progress)
    if any(bound.value == math.inf for bound in bounds):
        return _infeasible(instance, params, progress, bounds, None)
    hard_to_round = instance.pooled_slices is not None and bool(instance.spare_replicas)
    search = Search(instance, params, progress, (lambda: _ask_highs(instance, params, progress)) if hard_to_round else None)
    proof = search.run()
    bounds = (*bounds, proof.bound)
    if proof.bound.value == math.inf and progress.plan is None:
        return _infeasible(instance, params, progress, bounds, None)
    notes = (f"{proof.unresolved} leaves could not be closed in floating point",) if proof.unresolved else ()
    return Outcome(
        plan=_evenly_loaded(instance, progress),
        bounds=bounds,
        stop=proof.stop,
        notes=notes,
        details=_details(instance, params, progress) | {"nodes": proof.nodes},
    )


def _ask_highs(instance: GpuSelection, params: SolveParams, progress: Progress) -> None:
    """A short HiGHS run as a primal heuristic: slices that must fit in every situation are hard to round to.

    Limited by nodes, so that the same instance gives the same plans; what HiGHS says of bounds is not listened to. (Without spare replicas it
    was measured to cost more than it saves.)
    """
    if model_seconds(instance) > min(2.0, progress.remaining_s):
        return
    form = standard_form(build_model(instance))

    def offer(x: FloatArray) -> None:
        plan = _plan_from_columns(instance, form, x)
        if plan is not None:
            progress.offer(plan)

    limit_s = progress.remaining_s if math.isfinite(progress.remaining_s) else None
    aside = Progress(replace(params, time_limit_s=limit_s, gap_limit=None))
    aside.follow(progress)
    start = None if progress.plan is None else _columns_from_plan(instance, form, progress.plan)
    answer = solve_mip(form, aside.params, aside, offer, start, {"mip_max_nodes": HEURISTIC_NODES})
    if answer.x is not None:
        offer(answer.x)


def highs(instance: GpuSelection, params: SolveParams, progress: Progress) -> Outcome:
    """The Pyomo model solved by HiGHS; the LP certificate stands beside HiGHS' own bound.

    Prices are scaled to at most 1 for HiGHS, whose tolerances are absolute.
    """
    if instance.mode == "epochs":
        from headroom.solvers.gpu_selection_epochs_highs import highs_epochs

        return highs_epochs(instance, params, progress)
    if instance.mode == "per_replica":
        from headroom.solvers.gpu_selection_per_replica import highs_per_replica

        return highs_per_replica(instance, params, progress)
    bounds = _start(instance, params, progress)
    if any(bound.value == math.inf for bound in bounds):
        return _infeasible(instance, params, progress, bounds, None)
    if model_seconds(instance) > progress.remaining_s:
        return Outcome(plan=progress.plan, bounds=bounds, stop="time_limit", notes=("no time to build the Pyomo model",))
    form = standard_form(build_model(instance))
    scale = float(np.abs(form.cost).max(initial=0.0)) or 1.0
    form = replace(form, cost=form.cost / scale)
    refused: list[GpuSelectionPlan] = []

    def offer(x: FloatArray) -> None:
        plan = _plan_from_columns(instance, form, x)
        if plan is not None and not progress.offer(plan):
            refused.append(plan)

    start = None if progress.plan is None else _columns_from_plan(instance, form, progress.plan)
    answer = solve_mip(form, params, progress, offer, start, scale=scale)
    if answer.x is not None:
        offer(answer.x)
    bounds = (*bounds, Bound(answer.bound * scale, "highs", "solver")) if answer.bound > -math.inf else bounds
    if answer.status == "infeasible" and progress.plan is None:
        return _infeasible(instance, params, progress, bounds, answer.solver)
    return Outcome(
        plan=progress.plan or (refused[-1] if refused else None),  # `run` refuses aloud what `evaluate` did not accept
        bounds=bounds,
        stop=answer.stop,
        solver=answer.solver,
        details=_details(instance, params, progress) | {"nodes": answer.nodes},
    )


def cpsat(instance: GpuSelection, params: SolveParams, progress: Progress) -> Outcome:
    """CP-SAT on integers; every coefficient is rounded so that the integer model is a relaxation, and the loss is reported."""
    from headroom.solvers.gpu_selection_cpsat import solve

    bounds = _start(instance, params, progress)
    if any(bound.value == math.inf for bound in bounds):
        return _infeasible(instance, params, progress, bounds, None)
    answer = solve(instance, params, progress)
    if answer.bound > -math.inf:
        bounds = (*bounds, Bound(answer.bound, "cpsat", "solver"))
    if answer.bound == math.inf and progress.plan is None:
        return _infeasible(instance, params, progress, bounds, answer.solver)
    return Outcome(
        plan=progress.plan,
        bounds=bounds,
        stop=answer.stop,
        solver=answer.solver,
        notes=answer.notes,
        details=_details(instance, params, progress),
    )


def _evenly_loaded(instance: GpuSelection, progress: Progress) -> Plan | None:
    """The incumbent, its continuous shares evened out over its types when that takes no harm."""
    plan = progress.plan
    if not isinstance(plan, GpuSelectionPlan) or instance.pooled_slices is not None or progress.should_stop() is not None:
        return plan
    even = shares_for(instance, counts(instance, plan))
    return even if even is not None and evaluate(instance, even).feasible else plan


def _start(instance: GpuSelection, params: SolveParams, progress: Progress) -> tuple[Bound, ...]:
    """What every exact method begins with: the baselines' plans, so that a short limit has one and nobody a head start, and root bounds."""
    for heuristic in (greedy, single_type):
        plan = heuristic(instance, np.random.default_rng(0)) if progress.should_stop() is None else None
        if plan is not None:
            progress.offer(plan)
    bounds = (closed_form(instance, params, progress), lp(instance, params, progress))
    for bound in bounds:
        progress.keep(bound)
    return bounds


def _infeasible(instance: GpuSelection, params: SolveParams, progress: Progress, bounds: tuple[Bound, ...], solver: str | None) -> Outcome:
    return Outcome(bounds=bounds, solver=solver, details={"infeasibility": infeasibility(instance, params, progress)})


def _details(instance: GpuSelection, params: SolveParams, progress: Progress) -> dict[str, object]:
    return {"sensitivity": sensitivity(instance)} if params.sensitivity else {}


def _plan_from_columns(instance: GpuSelection, form: StandardForm, x: FloatArray) -> GpuSelectionPlan | None:
    """HiGHS' counts, with its slices when they are integers, else with shares solved anew for these counts to full precision."""
    model = form.model
    n = np.array([round(form.values(model.count, x)[g]) for g in model.G], dtype=np.int64)
    if instance.pooled_slices is None:
        return shares_for(instance, n)
    tables = np.zeros((len(model.S), len(instance.gpus), len(instance.work)))
    for (g, i, s), value in form.values(model.slice_count, x).items():
        tables[s, g, i] = round(value) / instance.pooled_slices
    lost = {int(h): tables[1 + h] for h in np.flatnonzero(n > 0)} if instance.spare_replicas else None
    return plan_from_arrays(instance, n, tables[0], lost)


def _columns_from_plan(instance: GpuSelection, form: StandardForm, plan: object) -> FloatArray:
    """The known part of a start solution: counts (and slices of the whole fleet); NaN where HiGHS must complete it."""
    assert isinstance(plan, GpuSelectionPlan)
    position = form.column_of()
    x = np.full(len(form.columns), np.nan)
    n = counts(instance, plan)
    for g in form.model.G:
        j = position.get(id(form.model.count[g]))
        if j is not None:
            x[j] = n[g]
    if instance.pooled_slices is not None and not instance.spare_replicas:
        for g, i, s in form.model.slice_count:
            j = position.get(id(form.model.slice_count[g, i, s]))
            if j is not None:
                x[j] = round(plan.share[g, i] * instance.pooled_slices)
    return x


__all__ = ["auto", "branching", "cpsat", "highs"]
