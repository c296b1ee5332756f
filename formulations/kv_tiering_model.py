"""The Pyomo model of KV-cache tiering; sets, parameters and names as in `kv_tiering`. For small instances: K^2 variables for each block and step.

Only x_itk are declared binary: between two steps in which a block is whole somewhere one arc x_itkl is forced to 1 and the others to 0.

Units. A step may last 1e-5 s while solvers work with absolute tolerances of 1e-9 to 1e-6. So the times `T` are in units of `unit_s` seconds (what a
step lasts at least on average when all bandwidths are used) and capacities in units of the tier's capacity; the objective is in seconds again, which
a back-end divides by `unit_s`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from headroom.formulations.kv_tiering import TieringPlan, make_plan
from headroom.formulations.tolerances import FEASIBILITY
from headroom.instances.kv_tiering import KvTiering

if TYPE_CHECKING:
    import pyomo.environ as pyo

IntArray = npt.NDArray[np.int64]


def build_model(instance: KvTiering) -> pyo.ConcreteModel:
    """The model with variables `x` [i, t, k], `x_arc` [i, t, k, l] and `T` [t] (in `unit_s` seconds).

    Constraints `path_birth`, `path_out`, `path_in`, `capacity`, `time`. Blocks larger than a tier are fixed out of it.
    """
    import pyomo.environ as pyo

    m = pyo.ConcreteModel(name=instance.name)
    m.B, m.K, m.steps = (pyo.RangeSet(0, count - 1) for count in (instance.blocks, len(instance.tiers), instance.steps))
    m.unit_s = pyo.Param(initialize=time_unit_s(instance))
    birth, death = instance.birth.tolist(), instance.death.tolist()
    m.alive = pyo.Set(initialize=[(i, t) for i in m.B for t in range(birth[i], death[i])], dimen=2)
    m.continued = pyo.Set(initialize=[(i, t) for i in m.B for t in range(birth[i] + 1, death[i])], dimen=2)
    m.x = pyo.Var(m.alive, m.K, domain=pyo.Binary)
    m.x_arc = pyo.Var(m.continued, m.K, m.K, bounds=(0, 1))
    m.T = pyo.Var(m.steps, domain=pyo.NonNegativeReals)
    _path(m, instance)
    _capacity(m, instance)
    _time(m, instance)
    m.objective = pyo.Objective(expr=m.unit_s * sum(m.T[t] for t in m.steps))
    return m


def time_unit_s(instance: KvTiering) -> float:
    """Seconds of the model's unit of time: all bytes over all bandwidths, a step; the time of the largest block where nothing is read."""
    total = instance.fixed.sum() + sum(float(instance.read_bytes(t).sum()) for t in range(instance.steps))
    mean = float(total / (1.0 / instance.read_s).sum() / instance.steps)
    return mean if mean > 0 else float(instance.size.max() * instance.read_s[0])


def _path(m: pyo.ConcreteModel, instance: KvTiering) -> None:
    """Every block is in one tier at its birth and goes along one arc to the next step."""
    import pyomo.environ as pyo

    birth = instance.birth.tolist()
    m.path_birth = pyo.Constraint(m.B, rule=lambda m, i: sum(m.x[i, birth[i], k] for k in m.K) == 1)
    m.path_out = pyo.Constraint(m.continued, m.K, rule=lambda m, i, t, k: sum(m.x_arc[i, t, k, l] for l in m.K) == m.x[i, t - 1, k])
    m.path_in = pyo.Constraint(m.continued, m.K, rule=lambda m, i, t, l: sum(m.x_arc[i, t, k, l] for k in m.K) == m.x[i, t, l])


def _capacity(m: pyo.ConcreteModel, instance: KvTiering) -> None:
    """What is in a bounded tier after the step's moves and births fits."""
    import pyomo.environ as pyo

    capacity, size = instance.capacity.tolist(), instance.size.tolist()
    largest = (instance.capacity * (1 + FEASIBILITY)).tolist()  # what `evaluate` lets pass
    here: list[list[int]] = [[] for _ in m.steps]
    for i, t in m.alive:
        here[t].append(i)
        for k in m.K:
            if size[i] > largest[k]:
                m.x[i, t, k].fix(0)

    def fits(m: pyo.ConcreteModel, t: int, k: int) -> object:
        inside = [i for i in here[t] if size[i] <= largest[k]]
        if not inside or not math.isfinite(capacity[k]):
            return pyo.Constraint.Skip
        return sum(size[i] / capacity[k] * m.x[i, t, k] for i in inside) <= 1

    m.capacity = pyo.Constraint(m.steps, m.K, rule=fits)


def _time(m: pyo.ConcreteModel, instance: KvTiering) -> None:
    """A step lasts as long as its busiest tier; each tier's terms are collected block by block."""
    import pyomo.environ as pyo

    unit, last = float(pyo.value(m.unit_s)), len(instance.tiers) - 1
    read, write, size = (instance.read_s / unit).tolist(), (instance.write_s / unit).tolist(), instance.size.tolist()
    wanted = [dict(zip(*_reads(instance, t), strict=True)) for t in m.steps]
    birth = instance.birth.tolist()
    terms: dict[tuple[int, int], list[object]] = {(t, k): [] for t in m.steps for k in m.K}
    for i, t in m.alive:
        bytes_read = wanted[t].get(i, 0.0)
        if t == birth[i]:
            for k in m.K:
                written = write[k] * size[i] if t > 0 else 0.0
                terms[t, k].append((written + read[k] * bytes_read) * m.x[i, t, k])
                if instance.inclusive and t > 0 and k != last:
                    terms[t, last].append(write[last] * size[i] * m.x[i, t, k])
            continue
        for k in m.K:
            terms[t, k].append(read[k] * bytes_read * m.x_arc[i, t, k, k])
            for l in m.K:
                if l != k and instance.inclusive and l == last:
                    terms[t, last].append(read[last] * bytes_read * m.x_arc[i, t, k, l])
                elif l != k:
                    terms[t, k].append(read[k] * size[i] * m.x_arc[i, t, k, l])
                    terms[t, l].append(write[l] * size[i] * m.x_arc[i, t, k, l])
    fixed = (instance.fixed * read[0]).tolist()

    def busy(m: pyo.ConcreteModel, t: int, k: int) -> object:
        return m.T[t] >= (fixed[t] if k == 0 else 0.0) + (pyo.quicksum(terms[t, k]) if terms[t, k] else 0.0)

    m.time = pyo.Constraint(m.steps, m.K, rule=busy)


def _reads(instance: KvTiering, t: int) -> tuple[list[int], list[float]]:
    here = slice(int(instance.reads.indptr[t]), int(instance.reads.indptr[t + 1]))
    return instance.reads.block[here].tolist(), instance.read_bytes(t).tolist()


def plan_of_values(instance: KvTiering, values: Mapping[tuple[int, int, int], float]) -> TieringPlan:
    """The plan in the values of `x` by (block, step, tier): each block is where the most of it is."""
    share = np.full((instance.blocks, instance.steps, len(instance.tiers)), -1.0)
    for index, value in values.items():
        share[index] = value
    return plan_of_tiers(instance, share.argmax(axis=2))


def plan_of_tiers(instance: KvTiering, tier_of: npt.ArrayLike) -> TieringPlan:
    """The plan that has block i in `tier_of[i, t]` in every step of its life; entries outside lives are not read."""
    tiers = np.asarray(tier_of, dtype=np.int64)
    step = np.arange(instance.steps)
    lives = (step > instance.birth[:, None]) & (step < instance.death[:, None])
    changes = np.zeros_like(lives)
    changes[:, 1:] = lives[:, 1:] & (tiers[:, 1:] != tiers[:, :-1])
    block, when = np.nonzero(changes)
    return make_plan(tiers[np.arange(instance.blocks), instance.birth], when, block, tiers[block, when])


def tiers_of_plan(instance: KvTiering, plan: TieringPlan) -> IntArray:
    """Where each block is in each step [N][T], the other way round; outside lives what was before, or comes after. The plan is not checked."""
    tiers = np.full((instance.blocks, instance.steps), -1)
    tiers[:, 0] = plan.initial_tier
    tiers[plan.moves.block, plan.moves.step] = plan.moves.to_tier
    for t in range(1, instance.steps):
        tiers[:, t] = np.where(tiers[:, t] < 0, tiers[:, t - 1], tiers[:, t])
    return tiers
