"""The Pyomo model of KV-cache tiering by HiGHS: exact on small instances, and what the faster methods are checked against."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from headroom.bounds.kv_tiering_closed import bandwidth, hit_volume
from headroom.formulations.kv_tiering import TieringPlan, build_model
from headroom.formulations.kv_tiering_model import plan_of_values, tiers_of_plan
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, Outcome, SolveParams
from headroom.heuristics.kv_tiering import belady
from headroom.instances.kv_tiering import KvTiering
from headroom.solvers.highs import solve_mip
from headroom.solvers.standard_form import StandardForm, standard_form

FloatArray = npt.NDArray[np.float64]
LARGEST_MODEL = 400_000
"""Arcs beyond which the model is not even built: HiGHS' root relaxation alone would take minutes."""
SECONDS_AN_ARC = 4e-5
"""Building and compiling the model takes about this long for each arc."""
SMALL_MODEL = 2_000
"""Up to so many arcs HiGHS does without presolve: it loses no time, and its tolerances then hold for the model as it was written."""
BELIEVED = 1e-6
"""A bound of HiGHS further above a plan's time than this is wrong (data near its absolute tolerances). It is left out."""


def model_arcs(instance: KvTiering) -> int:
    """Arcs of the Pyomo model: its size."""
    return instance.block_steps * len(instance.tiers) ** 2


def highs(instance: KvTiering, params: SolveParams, progress: Progress) -> Outcome:
    """The Pyomo model by HiGHS, from the best plan so far. Its bound is its own word; the closed forms stand beside it.

    Instances with more than LARGEST_MODEL arcs are refused with a note. Anytime: incumbents are offered as they come.
    """
    bounds = [bound(instance, params, progress) for bound in (bandwidth, hit_volume)]
    for bound in bounds:
        progress.keep(bound)
    arcs = model_arcs(instance)
    if arcs > LARGEST_MODEL:
        note = f"the model has {arcs} arcs; HiGHS takes up to {LARGEST_MODEL}"
        return Outcome(plan=progress.plan, bounds=tuple(bounds), notes=(note,))
    given = progress.plan
    if given is None:
        progress.offer(belady(instance, params.rng()))  # a plan there is, whatever HiGHS finds in its time
    if arcs * SECONDS_AN_ARC > progress.remaining_s:
        return Outcome(plan=progress.plan, bounds=tuple(bounds), stop="time_limit", notes=("no time to build the Pyomo model",))
    model = build_model(instance)
    form = standard_form(model)
    unit_s = float(model.unit_s.value)
    # In units of `unit_s`: HiGHS' tolerances are absolute.
    form = replace(form, cost=form.cost / unit_s, constant=form.constant / unit_s)

    def offer(x: FloatArray) -> None:
        progress.offer(plan_of_values(instance, form.values(model.x, x)))

    start = _start(instance, form, given) if isinstance(given, TieringPlan) else None
    options = {"presolve": "off"} if arcs <= SMALL_MODEL else None
    answer = solve_mip(form, params, progress, offer, start, options, unit_s)
    if answer.x is not None:
        offer(answer.x)
    if -math.inf < answer.bound * unit_s <= progress.objective * (1 + BELIEVED):
        bounds.append(Bound(answer.bound * unit_s, "highs", "solver"))
    return Outcome(plan=progress.plan, bounds=tuple(bounds), stop=answer.stop, solver=answer.solver, details={"nodes": answer.nodes})


def _start(instance: KvTiering, form: StandardForm, plan: TieringPlan) -> FloatArray:
    """The columns of a plan: where blocks are. HiGHS finds the arcs and times."""
    tier_of = tiers_of_plan(instance, plan)
    start, column = np.full(len(form.columns), np.nan), form.column_of()
    for (i, t, k), variable in form.model.x.items():
        j = column.get(id(variable))
        if j is not None:
            start[j] = float(tier_of[i, t] == k)
    return start


__all__ = ["highs", "model_arcs"]
