"""The Pyomo models of request packing; sets, parameters and names as in `request_packing`. For small instances.

Bins: as many as requests at first, fewer where a plan with fewer is known (`most_bins`); bin b holds no request below b, and the bins that are used
come first, which leaves one numbering of each packing of sorted requests.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from headroom.formulations.request_packing import BinPlan, StagedPlan, bin_plan, staged_plan
from headroom.formulations.tolerances import INTEGRALITY
from headroom.instances.request_packing import RequestPacking

if TYPE_CHECKING:
    import pyomo.environ as pyo


def build_model(instance: RequestPacking, most_bins: int | None = None, most_stages: int | None = None) -> pyo.ConcreteModel:
    """The model of the instance's objective. `most_bins`, `most_stages`: only so many, by default as many as there are requests."""
    return _bins(instance, most_bins or instance.count) if instance.objective == "bins" else _stages(instance, most_stages or instance.count)


def _bins(instance: RequestPacking, most: int) -> pyo.ConcreteModel:
    """Variables `x` [j, b], `y` [b], and with groups `z` [g, b], `w` [g, b]; constraints `assigned`, `capacity`, `present`, `padded`, `in_order`."""
    import pyomo.environ as pyo

    m = pyo.ConcreteModel(name=instance.name)
    count, capacity = instance.count, instance.capacity_tokens
    m.N, m.B = pyo.RangeSet(0, count - 1), pyo.RangeSet(0, most - 1)
    m.x, m.y = pyo.Var(m.N, m.B, domain=pyo.Binary), pyo.Var(m.B, domain=pyo.Binary)
    for j in m.N:
        for b in m.B:
            if b > j:
                m.x[j, b].fix(0)
    m.assigned = pyo.Constraint(m.N, rule=lambda m, j: sum(m.x[j, b] for b in m.B) == 1)
    m.in_order = pyo.Constraint(m.B, rule=lambda m, b: m.y[b] <= m.y[b - 1] if b else pyo.Constraint.Skip)
    m.holds = pyo.Constraint(m.N, m.B, rule=lambda m, j, b: m.x[j, b] <= m.y[b])
    if instance.plain:
        size = instance.padded.tolist()
        m.capacity = pyo.Constraint(m.B, rule=lambda m, b: sum(size[j] * m.x[j, b] for j in m.N) <= capacity * m.y[b])
    else:
        size, group, multiple = instance.size.tolist(), instance.group_of.tolist(), instance.padding_multiple
        overhead = instance.overhead.tolist()
        m.G = pyo.Set(initialize=sorted(set(group)))
        of = {g: [j for j in m.N if group[j] == g] for g in m.G}
        m.z, m.w = pyo.Var(m.G, m.B, domain=pyo.Binary), pyo.Var(m.G, m.B, domain=pyo.NonNegativeIntegers)
        m.present = pyo.Constraint(m.N, m.B, rule=lambda m, j, b: m.x[j, b] <= m.z[group[j], b])
        m.padded = pyo.Constraint(m.G, m.B, rule=lambda m, g, b: sum(size[j] * m.x[j, b] for j in of[g]) <= multiple * m.w[g, b])
        m.capacity = pyo.Constraint(m.B, rule=lambda m, b: sum(overhead[g] * m.z[g, b] + multiple * m.w[g, b] for g in m.G) <= capacity * m.y[b])
    m.objective = pyo.Objective(expr=sum(m.y[b] for b in m.B))
    return m


def _stages(instance: RequestPacking, most: int) -> pyo.ConcreteModel:
    """Variables `v` [j, k, e], `u` [k, l], `m` [k]; constraints `admitted`, `long_enough`, `slots`, `prefill`, `one_level`, `paid`.

    Without prefill levels one level that takes no time and any tokens stands for all of them.
    """
    import pyomo.environ as pyo

    m = pyo.ConcreteModel(name=instance.name)
    prompt, output = instance.requests.prompt_tokens.tolist(), instance.requests.output_tokens.tolist()
    slots, total = instance.slots or 0, sum(prompt)
    levels = [(min(int(tokens), total), float(time)) for tokens, time in zip(instance.level_tokens, instance.level_s, strict=True)] or [(total, 0.0)]
    m.N, m.K, m.L = pyo.RangeSet(0, instance.count - 1), pyo.RangeSet(0, most - 1), pyo.RangeSet(0, len(levels) - 1)
    m.spans = pyo.Set(initialize=[(k, e) for k in m.K for e in m.K if k <= e], dimen=2)
    m.v = pyo.Var(m.N, m.spans, domain=pyo.Binary)
    m.u = pyo.Var(m.K, m.L, domain=pyo.Binary)
    m.m = pyo.Var(m.K, domain=pyo.NonNegativeIntegers, bounds=(0, sum(output)))
    m.admitted = pyo.Constraint(m.N, rule=lambda m, j: sum(m.v[j, k, e] for k, e in m.spans) == 1)
    m.long_enough = pyo.Constraint(m.N, m.spans, rule=lambda m, j, k, e: sum(m.m[i] for i in range(k, e + 1)) >= output[j] * m.v[j, k, e])
    m.slots = pyo.Constraint(m.K, rule=lambda m, i: sum(m.v[j, k, e] for j in m.N for k, e in m.spans if k <= i <= e) <= slots)
    m.one_level = pyo.Constraint(m.K, rule=lambda m, k: sum(m.u[k, level] for level in m.L) <= 1)

    def admitted(m: Any, k: int, weight: list[int]) -> Any:
        return sum(weight[j] * m.v[j, k, e] for j in m.N for e in m.K if e >= k)

    m.prefill = pyo.Constraint(m.K, rule=lambda m, k: admitted(m, k, prompt) <= sum(levels[level][0] * m.u[k, level] for level in m.L))
    m.paid = pyo.Constraint(m.K, rule=lambda m, k: admitted(m, k, [1] * instance.count) <= slots * sum(m.u[k, level] for level in m.L))
    delta = instance.decode_step_s or 0.0
    m.objective = pyo.Objective(expr=sum(sum(levels[level][1] * m.u[k, level] for level in m.L) + delta * m.m[k] for k in m.K))
    return m


def plan_of(instance: RequestPacking, m: pyo.ConcreteModel) -> BinPlan | StagedPlan:
    """The plan of a solved model. Raises `ValueError` when a number of decode steps is not whole within INTEGRALITY."""
    import pyomo.environ as pyo

    if instance.objective == "bins":
        return bin_plan([max(m.B, key=lambda b: pyo.value(m.x[j, b])) for j in m.N])
    steps = [_whole(pyo.value(m.m[k])) for k in m.K]
    spans = {j: max(m.spans, key=lambda span: pyo.value(m.v[j, span])) for j in m.N}
    return staged_plan(_with_slots(spans, steps, instance))


def _with_slots(spans: dict[int, tuple[int, int]], steps: list[int], instance: RequestPacking) -> list[tuple[list[tuple[int, int]], int]]:
    """Admissions with slots: spans of stages that never overlap more than J times get any slot that is free. Stages that admit nothing are joined to
    the one before, and left out before the first that does."""
    free_from = np.zeros(instance.slots or 0, np.int64)
    stages: list[tuple[list[tuple[int, int]], int]] = []
    for k, count in enumerate(steps):
        admit: list[tuple[int, int]] = []
        for j, (first, end) in spans.items():
            if first == k:
                slot = int(np.argmin(free_from))
                free_from[slot] = end + 1
                admit.append((j, slot))
        if admit:
            stages.append((admit, count))
        elif stages:
            stages[-1] = (stages[-1][0], stages[-1][1] + count)
    return stages


def _whole(value: float) -> int:
    if math.fabs(value - round(value)) > INTEGRALITY:
        raise ValueError(f"the solver's {value!r} is not whole")
    return round(value)
