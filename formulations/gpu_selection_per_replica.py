r"""GPU selection with whole replicas: every slice of work goes onto one replica, as a router with sticky assignment needs it.

Sets and parameters as in `gpu_selection_pooled`, and
    k_i          slices of item i            `slices`: one number, or one for each work item
    a_gi         size of a slice on g        r_i / (k_i q_gi), replicas kept busy by one slice

A pattern for type g says how many slices of each item one replica holds: z in Z^I>=0 with z_i <= k_i, z_i = 0 where g cannot serve i, and
sum_i a_gi z_i <= u. Every replica of the plan has a pattern; Z_g is the set of all patterns of g (the empty one among them).

    minimise  sum_g p_g n_g                                                                  [USD/h]
    cover     sum_g sum_{z in Z_g} z_i y_gz = k_i          for every i with r_i > 0;  y_gz in Z>=0 replicas of g with pattern z
    count     n_g = sum_z y_gz,  lo_g <= n_g <= hi_g
    pool      sum_{g in P} m_g n_g <= B_P

This is bin packing with bins of several types whose cost and whose items' sizes depend on the type; with one type and one item it is cutting
stock. The model over patterns (Gilmore and Gomory, doi 10.1287/opre.9.6.849) is what column generation solves; `build_model` states the same set
of plans compactly, replica by replica:

    b_gj in {0, 1}   replica j = 1..N_g of type g is rented             c_gji in Z>=0   slices of i on it
    cover  sum_gj c_gji = k_i;   capacity  sum_i a_gi c_gji <= u b_gj;   order  b_gj >= b_g,j+1 (replicas of a type are alike)

Relaxation: letting the replicas of a type share their load gives the pooled model with the same slices, and continuous shares give less still;
so a pooled bound is a bound here, and the difference is what whole replicas cost.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from headroom.formulations.gpu_selection_pooled import MOST_REPLICAS
from headroom.formulations.tolerances import FEASIBILITY
from headroom.formulations.types import Evaluation, Plan, Violation
from headroom.instances.base import Record
from headroom.instances.errors import InputError, shown
from headroom.instances.gpu_selection import GpuSelection

if TYPE_CHECKING:
    import pyomo.environ as pyo

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class ReplicaGroup(Record):
    """`replicas` replicas of type `gpu` that hold the same slices each: `slices` {work item: slices on one replica}."""

    gpu: str
    slices: dict[str, Annotated[int, Field(ge=0, le=10**6)]]
    replicas: Annotated[int, Field(ge=1, le=MOST_REPLICAS)]


class ReplicaPlan(Plan):
    """Which replicas are rented and which slices each holds."""

    assignment: Annotated[tuple[ReplicaGroup, ...], Field(strict=False)]


def slice_sizes(instance: GpuSelection) -> FloatArray:
    """Size a_gi of one slice [G][I], in replicas; +inf where a type cannot serve an item."""
    return instance.load_replicas / instance.slice_counts


def evaluate_per_replica(instance: GpuSelection, plan: ReplicaPlan) -> Evaluation:
    """Cost in USD/h, its part for each type in use, and every violated constraint.

    A replica's load is summed exactly (fsum) and may exceed `max_utilisation` by FEASIBILITY, relative. Slices of items without load are
    ignored. Raises `InputError` when a name does not fit the instance. O(total length of the assignment).
    """
    gpu_at = {gpu.name: g for g, gpu in enumerate(instance.gpus)}
    item_at = {item.name: i for i, item in enumerate(instance.work)}
    size, limit = slice_sizes(instance), instance.max_utilisation
    n = [0] * len(instance.gpus)
    held = [0] * len(instance.work)
    violations: list[Violation] = []
    for a, group in enumerate(plan.assignment):
        if group.gpu not in gpu_at:
            raise InputError(f"plan.assignment[{a}].gpu is {group.gpu!r}; expected one of {shown(list(gpu_at), 200)}")
        g, loads = gpu_at[group.gpu], []
        n[g] += group.replicas
        for name, number in group.slices.items():
            if name not in item_at:
                raise InputError(f"plan.assignment[{a}].slices names {name!r}; expected one of the work items {shown(list(item_at), 200)}")
            i = item_at[name]
            if number == 0 or instance.rate_per_s[i] <= 0:
                continue
            held[i] += number * group.replicas
            if not instance.can_serve[g, i]:
                violations.append(Violation("throughput", f"assignment[{a}], {group.gpu}, {name}", float(number), 0.0))
            else:
                loads.append(number * float(size[g, i]))
        busy = math.fsum(loads)
        if busy > limit * (1.0 + FEASIBILITY):
            violations.append(Violation("capacity", f"assignment[{a}], {group.gpu}", busy - limit, limit))
    for i in instance.loaded_items:
        want = int(instance.slice_counts[i])
        if held[i] != want:
            violations.append(Violation("cover", instance.work[i].name, float(abs(held[i] - want)), float(want)))
    for g, gpu in enumerate(instance.gpus):
        if n[g] < gpu.min_count:
            violations.append(Violation("min_count", gpu.name, float(gpu.min_count - n[g]), float(gpu.min_count)))
        if gpu.max_count is not None and n[g] > gpu.max_count:
            violations.append(Violation("max_count", gpu.name, float(n[g] - gpu.max_count), float(gpu.max_count)))
    for pool in instance.pools:
        used = sum(n[g] * gpu.gpus_per_replica for g, gpu in enumerate(instance.gpus) if gpu.pool == pool.name)
        if used > pool.max_gpus:
            violations.append(Violation("pool", pool.name, float(used - pool.max_gpus), float(pool.max_gpus)))
    parts = {gpu.name: gpu.price_usd_per_h * n[g] for g, gpu in enumerate(instance.gpus) if n[g]}
    return Evaluation(objective=math.fsum(parts.values()), parts=parts, violations=tuple(violations))


def too_large(instance: GpuSelection) -> list[int]:
    """Items one slice of which no empty replica can hold: with one of them there is no plan."""
    fits = slice_sizes(instance) <= instance.max_utilisation * (1.0 + FEASIBILITY)
    return [int(i) for i in instance.loaded_items if not fits[:, i].any()]


def most_whole_replicas(instance: GpuSelection) -> IntArray:
    """A number of replicas of each type [G] that no optimal plan needs to exceed: one for each slice, or the floor; within the cap."""
    enough = np.maximum(int(instance.slice_counts[instance.loaded_items].sum()), instance.min_count)
    most: IntArray = np.minimum(enough, instance.max_count).astype(np.int64)
    return most


def build_model_per_replica(instance: GpuSelection) -> pyo.ConcreteModel:
    """The compact Pyomo model. It has a column for each (possible replica, item): for small instances."""
    import pyomo.environ as pyo

    gpus, size = instance.gpus, slice_sizes(instance)
    most, k = most_whole_replicas(instance), instance.slice_counts
    m = pyo.ConcreteModel(name="gpu_selection_per_replica")
    m.G = pyo.RangeSet(0, len(gpus) - 1)
    m.I = pyo.Set(initialize=[int(i) for i in instance.loaded_items])
    m.P = pyo.RangeSet(0, len(instance.pools) - 1) if instance.pools else pyo.Set(initialize=[])
    m.replicas = pyo.Set(dimen=2, initialize=[(g, j) for g in m.G for j in range(int(most[g]))])
    fits = [(g, i) for g in m.G for i in m.I if size[g, i] <= instance.max_utilisation * (1.0 + FEASIBILITY)]
    m.holds = pyo.Set(dimen=3, initialize=[(g, j, i) for g, i in fits for j in range(int(most[g]))])
    m.rented = pyo.Var(m.replicas, domain=pyo.Binary)
    m.slice_count = pyo.Var(m.holds, domain=pyo.NonNegativeIntegers, bounds=lambda m, g, j, i: (0, int(k[i])))
    m.cost_usd_per_h = pyo.Objective(expr=pyo.quicksum(gpus[g].price_usd_per_h * m.rented[g, j] for g, j in m.replicas))
    m.nothing = pyo.Var(bounds=(0, 0))
    on_item: dict[int, list[tuple[int, int]]] = {i: [] for i in m.I}
    on_replica: dict[tuple[int, int], list[int]] = {(g, j): [] for g, j in m.replicas}
    for g, j, i in m.holds:
        on_item[i].append((g, j))
        on_replica[g, j].append(i)

    def cover(m: Any, i: int) -> Any:
        return pyo.quicksum(m.slice_count[g, j, i] for g, j in on_item[i]) == int(k[i]) if on_item[i] else m.nothing == 1

    def capacity(m: Any, g: int, j: int) -> Any:
        if not on_replica[g, j]:
            return pyo.Constraint.Skip
        busy = pyo.quicksum(float(size[g, i]) * m.slice_count[g, j, i] for i in on_replica[g, j])
        return busy <= instance.max_utilisation * m.rented[g, j]

    def order(m: Any, g: int, j: int) -> Any:
        return m.rented[g, j] >= m.rented[g, j + 1] if j + 1 < most[g] else pyo.Constraint.Skip

    def floor(m: Any, g: int) -> Any:
        return pyo.quicksum(m.rented[g, j] for j in range(int(most[g]))) >= gpus[g].min_count if gpus[g].min_count else pyo.Constraint.Skip

    def pool(m: Any, p: int) -> Any:
        drawing = [(g, j) for g, j in m.replicas if gpus[g].pool == instance.pools[p].name]
        if not drawing:
            return pyo.Constraint.Skip
        return pyo.quicksum(gpus[g].gpus_per_replica * m.rented[g, j] for g, j in drawing) <= instance.pools[p].max_gpus

    m.cover = pyo.Constraint(m.I, rule=cover)
    m.capacity = pyo.Constraint(m.replicas, rule=capacity)
    m.order = pyo.Constraint(m.replicas, rule=order)
    m.floor = pyo.Constraint(m.G, rule=floor)
    m.pool = pyo.Constraint(m.P, rule=pool)
    return m


def replica_plan(instance: GpuSelection, patterns: list[tuple[int, IntArray, int]]) -> ReplicaPlan:
    """A plan from (type, slices [I] on one replica, replicas); equal patterns are joined. Items without load are put on nobody."""
    joined: dict[tuple[int, tuple[int, ...]], int] = {}
    for g, z, replicas in patterns:
        if replicas:
            key = (g, tuple(int(value) for value in z))
            joined[key] = joined.get(key, 0) + int(replicas)
    groups = [
        ReplicaGroup(gpu=instance.gpus[g].name, slices={instance.work[i].name: n for i, n in enumerate(z) if n}, replicas=replicas)
        for (g, z), replicas in sorted(joined.items())
    ]
    return ReplicaPlan(assignment=tuple(groups))
