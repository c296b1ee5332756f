"""Exact methods for GPU selection with whole replicas, what whole replicas cost, and why there may be no plan.

| method              | how                                                                                   | bound                    |
|---------------------|---------------------------------------------------------------------------------------|--------------------------|
| `column_generation` | patterns by column generation, branching on counts and slices (`_search`)              | certificate: the tree    |
| `highs`             | the compact Pyomo model, replica by replica: small instances only                     | HiGHS' word; certificate |
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection import closed_form
from headroom.bounds.gpu_selection_patterns import column_generation_bound
from headroom.bounds.gpu_selection_per_replica import pattern_data
from headroom.formulations.gpu_selection import build_model, evaluate
from headroom.formulations.gpu_selection_per_replica import most_whole_replicas, slice_sizes, too_large
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, Outcome, SolveParams
from headroom.heuristics.gpu_selection import greedy
from headroom.heuristics.gpu_selection_per_replica import Patterns, best_packing
from headroom.instances.gpu_selection import GpuSelection
from headroom.solvers.gpu_selection_branching import Search as PooledSearch
from headroom.solvers.gpu_selection_per_replica_packing import exact_cover, offer
from headroom.solvers.gpu_selection_per_replica_search import Search
from headroom.solvers.gpu_selection_sensitivity import infeasibility
from headroom.solvers.highs import solve_mip
from headroom.solvers.standard_form import StandardForm, standard_form

FloatArray = npt.NDArray[np.float64]
COMPACT_COLUMNS = 4000
"""Beyond it HiGHS was never seen to finish the compact model in minutes: replicas of a type are alike, and branching does not see that."""
TINY = 1e-4
CAREFUL = {"presolve": "off", "mip_feasibility_tolerance": 1e-9}
"""For slices that take less than TINY of a replica: with sizes of 1e-8 the presolve of HiGHS 1.14 called 3 replicas optimal where 1 is enough."""
CHEAP_CELLS = 2000
"""Types x items up to which the pooled model is solved beside this one unasked."""
POOLED_S, POOLED_SHARE = 1.0, 0.1
POOLED_ASKED_S, POOLED_ASKED_SHARE = 10.0, 0.25


def column_generation(instance: GpuSelection, params: SolveParams, progress: Progress) -> Outcome:
    """Optimal within OPTIMALITY_GAP given time, with a tree of slice prices that proves it. Anytime."""
    simple = closed_form(instance, params, progress)
    progress.keep(simple)
    if simple.value == math.inf:
        return Outcome(bounds=(simple,), details={"infeasibility": why_infeasible(instance, params, progress)})
    search = Search(instance, params, progress)
    search.start()
    pooled = pooled_costs(instance, params, progress)
    proof = search.run()
    bounds = (simple, *(bound for bound in progress.bounds.values() if bound.method == "column_generation"), proof.bound)
    if proof.bound.value == math.inf and progress.plan is None:
        return Outcome(bounds=bounds, details={"infeasibility": why_infeasible(instance, params, progress)})
    penalty = whole_replica_penalty(pooled, progress.objective, max(bound.value for bound in bounds))
    notes = [f"{proof.unresolved} leaves could not be closed"] if proof.unresolved else []
    return Outcome(
        plan=progress.plan,
        bounds=bounds,
        stop=proof.stop,
        notes=(*notes, *_in_words(penalty)),
        details={"nodes": proof.nodes, "cuts": proof.cuts, "whole_replica_penalty": penalty},
    )


def highs_per_replica(instance: GpuSelection, params: SolveParams, progress: Progress) -> Outcome:
    """The compact Pyomo model solved by HiGHS; column generation's bound stands beside HiGHS' own. Larger instances get the baseline's plan."""
    bounds: tuple[Bound, ...] = (closed_form(instance, params, progress),)
    if bounds[0].value < math.inf:
        bounds = (*bounds, column_generation_bound(instance, params, progress))
    for bound in bounds:
        progress.keep(bound)
    if any(bound.value == math.inf for bound in bounds):
        return Outcome(bounds=bounds, details={"infeasibility": why_infeasible(instance, params, progress)})
    data = pattern_data(instance)
    patterns = best_packing(data, stop=progress.should_stop)
    if patterns is not None:
        offer(data, progress, patterns)
    columns = int((most_whole_replicas(instance) * (1 + data.can_hold.sum(axis=1))).sum())
    if columns > COMPACT_COLUMNS:
        note = f"the compact model would have {columns:,} columns, more than {COMPACT_COLUMNS:,}: this is the baseline's plan"
        return Outcome(plan=progress.plan, bounds=bounds, notes=(note,))
    form = standard_form(build_model(instance))
    scale = float(np.abs(form.cost).max(initial=0.0)) or 1.0
    form = replace(form, cost=form.cost / scale)

    def take(x: FloatArray) -> None:
        found = exact_cover(data, _patterns_from_columns(instance, form, x))
        if found is not None:
            offer(data, progress, found)

    tiny = bool((np.abs(form.matrix.data) < TINY).any())
    answer = solve_mip(form, params, progress, take, options=CAREFUL if tiny else None, scale=scale)
    if answer.x is not None:
        take(answer.x)
    if answer.bound > -math.inf:
        bounds = (*bounds, Bound(answer.bound * scale, "highs", "solver"))
    if answer.status == "infeasible" and progress.plan is None:
        return Outcome(bounds=bounds, solver=answer.solver, details={"infeasibility": why_infeasible(instance, params, progress)})
    return Outcome(plan=progress.plan, bounds=bounds, stop=answer.stop, solver=answer.solver, details={"nodes": answer.nodes})


def _patterns_from_columns(instance: GpuSelection, form: StandardForm, x: FloatArray) -> Patterns:
    model, place = form.model, {int(i): j for j, i in enumerate(instance.loaded_items)}
    held: dict[tuple[int, int], npt.NDArray[np.int64]] = {}
    for (g, j), rented in form.values(model.rented, x).items():
        if round(rented):
            held[g, j] = np.zeros(len(place), dtype=np.int64)
    for (g, j, i), number in form.values(model.slice_count, x).items():
        if round(number):
            held.setdefault((g, j), np.zeros(len(place), dtype=np.int64))[place[i]] = round(number)
    return [(g, z, 1) for (g, _), z in held.items()]


def pooled_costs(instance: GpuSelection, params: SolveParams, progress: Progress) -> dict[str, tuple[float, float]]:
    """{"same_slices": (bound, objective), "continuous": ...} of the pooled model, certified; what was not cheap enough to solve is left out.

    The same slices only where they are one number: the pooled model knows no others.
    """
    cells = len(instance.gpus) * len(instance.loaded_items)
    if not params.sensitivity and cells > CHEAP_CELLS:
        return {}
    most, share = (POOLED_ASKED_S, POOLED_ASKED_SHARE) if params.sensitivity else (POOLED_S, POOLED_SHARE)
    uniform = instance.slices if isinstance(instance.slices, int) else None
    wanted = {"continuous": None} | ({"same_slices": uniform} if uniform is not None else {})
    found: dict[str, tuple[float, float]] = {}
    for name, slices in wanted.items():
        if progress.should_stop() is not None:
            break
        pooled = instance.replace(packing="pooled", slices=slices)
        limits = replace(params, time_limit_s=min(most, share * progress.remaining_s), gap_limit=None, start=None)
        aside = Progress(limits, lambda plan, pooled=pooled: evaluate(pooled, plan))  # type: ignore[misc]
        aside.follow(progress)
        first = greedy(pooled, np.random.default_rng(0))
        if first is not None:
            aside.offer(first)
        bound = PooledSearch(pooled, limits, aside).run().bound.value
        found[name] = (bound, aside.objective)
    return found


def whole_replica_penalty(pooled: dict[str, tuple[float, float]], objective: float, bound: float) -> dict[str, Any]:
    """What whole replicas cost over the pooled model, as intervals that the bounds of both certify.

    {"same_slices" | "continuous": {"pooled_bound", "pooled_objective", "usd_per_h": [least, most], "share": [least, most]}}; a share is of the
    pooled cost. None where an end is not known.
    """
    records: dict[str, Any] = {}
    for name, (low, high) in pooled.items():
        least = max(bound - high, 0.0) if math.isfinite(bound - high) else 0.0
        most = objective - low if math.isfinite(objective) and math.isfinite(low) else None
        most = None if most is None else max(most, least)
        records[name] = {
            "pooled_bound": low if math.isfinite(low) else None,
            "pooled_objective": high if math.isfinite(high) else None,
            "usd_per_h": [least, most],
            "share": [least / high if 0 < high < math.inf else 0.0, most / low if most is not None and low > 0 else None],
        }
    return records


def _in_words(penalty: dict[str, Any]) -> list[str]:
    """The penalty in a line each."""
    names = {"same_slices": "with the same slices", "continuous": "with continuous shares"}
    lines = []
    for name, record in penalty.items():
        least, most = record["usd_per_h"]
        if most is not None and record["share"][1] is not None:
            shares = _from_to(100 * record["share"][0], 100 * record["share"][1], "%")
            lines.append(f"whole replicas cost {_from_to(least, most)} USD/h ({shares}) more than pooled ones {names[name]}")
    return lines


def _from_to(least: float, most: float, unit: str = "") -> str:
    low, high = f"{least:.3g}{unit}", f"{most:.3g}{unit}"
    return low if low == high else f"{low} to {high}"


def why_infeasible(instance: GpuSelection, params: SolveParams, progress: Progress) -> dict[str, Any]:
    """As `infeasibility` of the pooled model, and before that the items of which one slice fits no empty replica, with the slices they need.

    Where even shared replicas do not suffice, what the pooled model lacks is lacking here too (and is a lower bound on it).
    """
    served = [i for i in too_large(instance) if instance.can_serve[:, i].any()]
    if served:
        size, needed, messages = slice_sizes(instance), {}, []
        for i in served:
            item, g = instance.work[i], int(np.argmin(size[:, i]))
            whole = instance.load_replicas[g, i] / instance.max_utilisation
            needed[item.name] = math.ceil(whole * (1 - 1e-9))
            messages.append(
                f"a slice of work {item.name!r} fits no empty replica: on {instance.gpus[g].name!r} it takes {size[g, i]:.6g} of the "
                f"{instance.max_utilisation:g} that a replica may carry; {needed[item.name]} slices or more would fit, not {instance.slice_counts[i]}"
            )
        diagnosis: dict[str, Any] = {"unserved": [], "shed_rate_per_s": None, "missing_replicas": None}
        return diagnosis | {"messages": messages, "too_large": needed}
    pooled = instance.replace(packing="pooled", slices=None)
    found = infeasibility(pooled, params, progress)
    if found["shed_rate_per_s"] or found["missing_replicas"] or found["unserved"]:
        return found
    return found | {"messages": ["caps and pools would do if replicas of a type could share slices; whole replicas cannot hold them all"]}
