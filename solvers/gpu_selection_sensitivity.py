"""What limits cost, and what makes an instance infeasible: shadow prices of the relaxation, and the least change that would help."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_boxes import Data, data_of, root_box
from headroom.bounds.gpu_selection_lagrangian import dual_value
from headroom.bounds.gpu_selection_relaxation import Relaxation
from headroom.formulations.gpu_selection import build_model
from headroom.formulations.progress import Progress
from headroom.formulations.types import SolveParams
from headroom.instances.gpu_selection import GpuSelection
from headroom.solvers.highs import MipAnswer, solve_mip
from headroom.solvers.standard_form import StandardForm, standard_form

FloatArray = npt.NDArray[np.float64]
DIAGNOSIS_S = 10.0


def sensitivity(instance: GpuSelection) -> list[dict[str, Any]]:
    """Shadow prices of the linear relaxation: caps and floors on counts, pools, each item's rate, and the types that the limits shut out of an item.

    Records {constraint, index, shadow_price, unit, meaning}, largest effect first within each constraint; zero prices are left out. They are
    rates of change of the LP bound, not of the integer optimum, which moves in steps.
    """
    data = data_of(instance)
    box = root_box(data)
    relaxed = Relaxation(data).solve(box)
    if relaxed.status != "optimal":
        return []
    priced = dual_value(data, box, relaxed.w, relaxed.pi)
    e = priced.count_cost
    records: list[dict[str, Any]] = []
    for g, gpu in enumerate(instance.gpus):
        floor = max(instance.price_usd_per_h[g], 1e-12) * 1e-6
        if gpu.max_count is not None and e[g] < -floor and relaxed.n[g] >= gpu.max_count - 1e-6:
            records.append(_record("max_count", gpu.name, -e[g], "USD/h per replica", "saved by one more replica of this type being allowed"))
        # With spare replicas a floor also decides which losses must be survived: no single price tells what it costs.
        if gpu.min_count and not instance.spare_replicas and e[g] > floor and relaxed.n[g] <= gpu.min_count + 1e-6:
            records.append(_record("min_count", gpu.name, e[g], "USD/h per replica", "saved by one replica fewer being required"))
    for j, pool in enumerate(instance.pools):
        if relaxed.pi[j] > 1e-9:
            records.append(_record("pool", pool.name, relaxed.pi[j], "USD/h per GPU", "saved by one more GPU in the pool"))
    return records + _item_prices(data, relaxed.w)


def _item_prices(data: Data, w: FloatArray) -> list[dict[str, Any]]:
    """The marginal cost of each item's rate, and for each type shut out of an item the throughput at which it would pay to let it in."""
    instance = data.instance
    unit_cost = np.zeros(len(data.items))
    for prices in w:
        cost = np.where(data.can_serve, prices[:, None] * data.slice_load, np.inf)
        unit_cost += cost.min(axis=0) * data.slices
    records = []
    rate = instance.rate_per_s[data.items]
    for j in np.argsort(-unit_cost / rate, kind="stable"):
        name = instance.work[data.items[j]].name
        records.append(_record("rate", name, unit_cost[j] / rate[j], "USD/h per request/s", "cost of one more request/s of this item"))
    asked = w.sum(axis=0)
    for g, j in np.argwhere(~data.can_serve) if data.situations == 1 else ():
        phase = instance.work[data.items[j]].phase
        of_phase = [k for k, i in enumerate(data.items) if instance.work[i].phase == phase]
        if asked[g] > 0 and unit_cost[j] > 0 and data.can_serve[g, of_phase].any():  # a decode pool is not shut out of prefill, it is not for it
            index = f"{instance.gpus[g].name}, {instance.work[data.items[j]].name}"
            worth = asked[g] * rate[j] / unit_cost[j]
            meaning = "throughput within the limits from which this type would pay for the item"
            records.append(_record("throughput", index, worth, "requests/s per replica", meaning))
    return records


def _record(constraint: str, index: str, price: float, unit: str, meaning: str) -> dict[str, Any]:
    return {"constraint": constraint, "index": index, "shadow_price": float(price), "unit": unit, "meaning": meaning}


def model_seconds(instance: GpuSelection) -> float:
    """About how long building and compiling the Pyomo model takes, which nothing can interrupt: 60 microseconds a column, measured."""
    columns = int(instance.can_serve[:, instance.loaded_items].sum()) * (1 + len(instance.gpus) * instance.spare_replicas)
    return 60e-6 * columns


def infeasibility(instance: GpuSelection, params: SolveParams, progress: Progress) -> dict[str, Any]:
    """Why there is no plan: items without a type, or else the least rate to shed and the least replicas missing.

    {"messages": [...], "unserved": [names], "shed_rate_per_s": {item: rate} | None, "missing_replicas": {type: n} | None}. The two
    amounts are alternatives: either is enough. They are optimal for the whole-fleet problem unless the DIAGNOSIS_S limit cut HiGHS short.
    """
    unserved = [instance.work[i].name for i in instance.loaded_items if not instance.can_serve[:, i].any()]
    if unserved:
        rates = {item.name: item.rate_per_s for item in instance.work}
        messages = [f"work {name!r} ({rates[name]:g} requests/s) has no GPU type that can serve it within the limits" for name in unserved]
        return {"messages": messages, "unserved": unserved, "shed_rate_per_s": {name: rates[name] for name in unserved}, "missing_replicas": None}
    budget_s = min(DIAGNOSIS_S, progress.remaining_s)
    if budget_s < 0.1 + 2.5 * model_seconds(instance):
        messages = ["no plan exists; no time was left to find out what is missing"]
        return {"messages": messages, "unserved": [], "shed_rate_per_s": None, "missing_replicas": None}
    limits = replace(params, time_limit_s=budget_s / 2.5, gap_limit=1e-4, start=None)
    shed, missing = _least_shed(instance, limits), _least_missing(instance, limits)
    messages = []
    if shed:
        total = sum(shed.values())
        parts = ", ".join(f"{rate:.6g} of {name!r}" for name, rate in sorted(shed.items(), key=lambda item: -item[1])[:5])
        messages.append(f"all caps and pools used, {total:.6g} requests/s must be shed: {parts}{', …' if len(shed) > 5 else ''}")
    if missing:
        types = {gpu.name for gpu in instance.gpus}
        wanted = [
            f"{n} more replicas of {name!r} than max_count allows" if name in types else f"{n} more GPUs in {name} than it holds"
            for name, n in missing.items()
        ]
        messages.append(f"or what is missing for all of it: {' and '.join(wanted)}")
    messages += _impossible_floors(instance)
    return {"messages": messages or ["no plan exists"], "unserved": [], "shed_rate_per_s": shed, "missing_replicas": missing}


def _impossible_floors(instance: GpuSelection) -> list[str]:
    """Pools that the required minimum counts alone overdraw."""
    used = instance.pool_gpus @ instance.min_count.astype(np.float64)
    return [
        f"min_count asks for {used[j]:g} GPUs of pool {pool.name!r}, which holds {pool.max_gpus}"
        for j, pool in enumerate(instance.pools)
        if used[j] > pool.max_gpus
    ]


def _least_shed(instance: GpuSelection, limits: SolveParams) -> dict[str, float] | None:
    """The least rate to turn away: a type without limit or price stands for that, and what it gets is all the objective counts."""
    model = build_model(_with_shedding(instance))
    import pyomo.environ as pyo

    last = len(instance.gpus)
    model.cost_usd_per_h.deactivate()
    rate = model.rate_per_s
    model.shed = pyo.Objective(expr=pyo.quicksum(rate[i] * model.share[g, i, s] for g, i, s in model.serves * model.S if g == last))
    form, answer = _solve(model, limits)
    if answer.x is None:
        return None
    component = model.share if instance.pooled_slices is None else model.slice_count
    values = form.values(component, answer.x)
    scale = 1.0 if instance.pooled_slices is None else 1.0 / instance.pooled_slices
    shed = {instance.work[i].name: 0.0 for _, i, _ in values}
    for (g, i, _), value in values.items():
        if g == last:
            shed[instance.work[i].name] = max(shed[instance.work[i].name], float(rate[i]) * value * scale)
    return {name: amount for name, amount in shed.items() if amount > 1e-9 * max(float(instance.rate_per_s.max()), 1e-300)}


def _with_shedding(instance: GpuSelection) -> GpuSelection:
    """The instance with one more type, free and unlimited, that stands for turning requests away."""
    shedder: dict[str, Any] = {"name": f"shed {max((gpu.name for gpu in instance.gpus), key=len)}", "price_usd_per_h": 0.0}
    table = np.vstack([instance.throughput_per_s, np.maximum(instance.rate_per_s, 1e-9)])
    gpus = [*(gpu.model_dump() for gpu in instance.gpus), shedder]
    return instance.replace(gpus=gpus, throughput_per_s=table)


def _least_missing(instance: GpuSelection, limits: SolveParams) -> dict[str, int] | None:
    """Replicas beyond caps, and GPUs beyond pools, that make the instance feasible: fewest GPUs in sum; None when nothing is capped."""
    import pyomo.environ as pyo

    free = instance.replace(
        gpus=[gpu.model_dump() | {"max_count": None} for gpu in instance.gpus],
        pools=[pool.model_dump() | {"max_gpus": 10**9} for pool in instance.pools],
    )
    model = build_model(free)
    capped = [g for g, gpu in enumerate(instance.gpus) if gpu.max_count is not None]
    if not capped and not instance.pools:
        return None
    model.over_cap = pyo.Var(capped, domain=pyo.NonNegativeIntegers)
    model.over_pool = pyo.Var(range(len(instance.pools)), domain=pyo.NonNegativeIntegers)
    model.capped = pyo.Constraint(capped, rule=lambda m, g: m.count[g] - m.over_cap[g] <= instance.gpus[g].max_count)
    drawn = {j: [(g, int(m)) for g, m in enumerate(row) if m] for j, row in enumerate(instance.pool_gpus)}
    pools = [j for j in drawn if drawn[j]]
    model.drawn = pyo.Constraint(pools, rule=lambda m, j: sum(k * m.count[g] for g, k in drawn[j]) - m.over_pool[j] <= instance.pools[j].max_gpus)
    model.cost_usd_per_h.deactivate()
    over = sum(instance.gpus[g].gpus_per_replica * model.over_cap[g] for g in capped) + sum(model.over_pool[j] for j in pools)
    model.missing = pyo.Objective(expr=over)
    form, answer = _solve(model, limits)
    if answer.x is None:
        return None
    by_cap = {instance.gpus[g].name: round(value) for g, value in form.values(model.over_cap, answer.x).items()} if capped else {}
    by_pool = {f"pool {instance.pools[j].name!r}": round(value) for j, value in form.values(model.over_pool, answer.x).items()} if pools else {}
    return {name: n for name, n in {**by_cap, **by_pool}.items() if n}


def _solve(model: Any, limits: SolveParams) -> tuple[StandardForm, MipAnswer]:
    form = standard_form(model)
    answer = solve_mip(form, limits, Progress(limits))
    return form, answer if math.isfinite(answer.objective) else replace(answer, x=None)
