r"""GPU selection with pooled replicas: the mathematics, the plan, its evaluation, and the Pyomo model.

Sets (index, field)
    i in I   work items                     `work`
    g in G   replica types                  `gpus`
    P        pools of physical GPUs         `pools`
    s in S   situations the fleet must serve: "whole", and with `spare_replicas` = 1 also "one replica of h lost" for each h with n_h >= 1

Parameters (field, unit)
    r_i      rate                           `work[i].rate_per_s`, requests/s
    q_gi     throughput of one replica      `throughput_per_s[g][i]`, requests/s; null: g cannot serve i
    p_g      price of one replica           `gpus[g].price_usd_per_h`, USD/h
    lo_g, hi_g                              `min_count`, `max_count` (null: none), replicas
    m_g      GPUs a replica takes           `gpus_per_replica`;  B_P `pools[P].max_gpus`
    u        highest utilisation            `max_utilisation`
    k        slices                         `slices` (null: shares are continuous)

Variables
    n_g in Z>=0     replicas of g                                       plan `count`
    x_gis >= 0      share of item i that g serves in situation s        plan `share` ("whole"), `share_after_loss[h]`
    z_h in {0, 1}   1 when there is a replica of h to lose (spare only)

    minimise  sum_g p_g n_g                                                             [USD/h]
    cover     sum_g x_gis = 1                                for every i with r_i > 0, every s
    capacity  sum_i (r_i / q_gi) x_gis <= u (n_g - [s = h lost and g = h] z_h)          for every g, s
    count     lo_g <= n_g <= hi_g
    pool      sum_{g in P} m_g n_g <= B_P
    slices    k x_gis integer                                when k is given
    loss      n_h <= N_h z_h, z_h <= n_h                     (N_h: more replicas of h than any optimum needs)

With continuous shares this is a fixed-charge covering problem; k-slices are Mélange's rule. An item of rate 0 asks for nothing and its
shares are ignored. After a loss the router may send every request elsewhere: shares are decided anew in each situation, the fleet is not.

Sources: Griggs et al., Mélange, arXiv 2404.14527 (buckets, slices, the assignment model); Patel et al., Splitwise, ISCA 2024,
doi 10.1109/ISCA59077.2024.00019 (phases on types of their own, here as pools). Caps, pools and the N+1 rule are ours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from headroom.formulations.tolerances import FEASIBILITY, INTEGRALITY
from headroom.formulations.types import Evaluation, Plan, Violation
from headroom.instances.base import rule
from headroom.instances.errors import InputError, shown
from headroom.instances.gpu_selection import GpuSelection

if TYPE_CHECKING:
    import pyomo.environ as pyo

FloatArray = npt.NDArray[np.float64]
MOST_REPLICAS = 10**12
"""No plan may hold more replicas of a type."""
Count = Annotated[int, Field(ge=0, le=MOST_REPLICAS)]


def _share_array(value: object) -> FloatArray:
    try:
        array = np.array(value, dtype=np.float64) if isinstance(value, np.ndarray) else _from_lists(value)
    except (TypeError, ValueError, OverflowError):
        raise rule(f"share must be a [gpu][work] table of numbers, got {shown(value)}") from None
    if array.ndim != 2 or not np.isfinite(array).all():
        raise rule("share must be a [gpu][work] table of finite numbers")
    array.flags.writeable = False
    return array


def _from_lists(value: object) -> FloatArray:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    for row in value:
        for item in row:
            if isinstance(item, bool) or not isinstance(item, (int, float)):
                raise TypeError
    return np.array(value, dtype=np.float64)


ShareTable = Annotated[
    np.ndarray,
    BeforeValidator(_share_array),
    PlainSerializer(lambda array: array.tolist()),
    WithJsonSchema({"type": "array", "items": {"type": "array", "items": {"type": "number", "minimum": 0}}}),
]


class GpuSelectionPlan(Plan):
    """Replicas of each type and who serves what.

    `count` {gpu: replicas}, types left out have none; `share` [gpu][work] in the instance's order; `share_after_loss` {gpu lost:
    [gpu][work]}, required for each type with a replica when the instance asks for `spare_replicas`.
    """

    count: dict[str, Count]
    share: ShareTable
    share_after_loss: dict[str, ShareTable] = {}


def counts(instance: GpuSelection, plan: GpuSelectionPlan) -> npt.NDArray[np.int64]:
    """The plan's counts in the instance's order [G]. Raises `InputError` for a type the instance does not have."""
    names = [gpu.name for gpu in instance.gpus]
    for name in plan.count:
        if name not in names:
            raise InputError(f"plan.count names {name!r}; expected one of {shown(names, 200)}")
    return np.array([plan.count.get(name, 0) for name in names], dtype=np.int64)


def evaluate_pooled(instance: GpuSelection, plan: GpuSelectionPlan) -> Evaluation:
    """Cost in USD/h, its part for each type in use, and every violated constraint.

    Tolerances: FEASIBILITY, relative to each constraint's own limit (a capacity of 0 replicas serves nothing); shares within INTEGRALITY
    of a multiple of 1/slices are rounded to it first. Raises `InputError` when the plan's shape or names do not fit the instance.
    """
    n = counts(instance, plan)
    price = instance.price_usd_per_h
    violations: list[Violation] = []
    for g, gpu in enumerate(instance.gpus):
        if n[g] < gpu.min_count:
            violations.append(Violation("min_count", gpu.name, float(gpu.min_count - n[g]), float(gpu.min_count)))
        if gpu.max_count is not None and n[g] > gpu.max_count:
            violations.append(Violation("max_count", gpu.name, float(n[g] - gpu.max_count), float(gpu.max_count)))
    for pool in instance.pools:
        used = sum(int(n[g]) * gpu.gpus_per_replica for g, gpu in enumerate(instance.gpus) if gpu.pool == pool.name)
        if used > pool.max_gpus:
            violations.append(Violation("pool", pool.name, float(used - pool.max_gpus), float(pool.max_gpus)))
    violations += _check_shares(instance, n, plan.share, "share", "")
    if instance.spare_replicas:
        for h in np.flatnonzero(n > 0):
            lost = instance.gpus[h].name
            if lost not in plan.share_after_loss:
                violations.append(Violation("share_after_loss", lost, 1.0, 0.0))
                continue
            left = n.copy()
            left[h] -= 1
            violations += _check_shares(instance, left, plan.share_after_loss[lost], f"share_after_loss.{lost}", f" after loss of {lost}")
    parts = {gpu.name: float(price[g] * n[g]) for g, gpu in enumerate(instance.gpus) if n[g]}
    return Evaluation(objective=math.fsum(parts.values()), parts=parts, violations=tuple(violations))


def _check_shares(instance: GpuSelection, n: npt.NDArray[np.int64], share: FloatArray, field: str, situation: str) -> list[Violation]:
    """Violations of cover, capacity and slices in one situation with `n` replicas standing."""
    shape = (len(instance.gpus), len(instance.work))
    if share.shape != shape:
        raise InputError(f"plan.{field} must be a {shape[0]} x {shape[1]} table [gpu][work], got {' x '.join(map(str, share.shape))}")
    items = instance.loaded_items
    x, can = share[:, items], instance.can_serve[:, items]
    violations: list[Violation] = []
    names = [instance.work[i].name + situation for i in items]
    for g, j in np.argwhere(x < -FEASIBILITY):
        violations.append(Violation("share_sign", f"{instance.gpus[g].name}, {names[j]}", float(-x[g, j]), 0.0))
    x = np.maximum(x, 0.0)
    if instance.pooled_slices is not None:
        multiple = np.round(x * instance.pooled_slices)
        off = np.abs(x * instance.pooled_slices - multiple)
        for g, j in np.argwhere(off > INTEGRALITY):
            violations.append(Violation("slices", f"{instance.gpus[g].name}, {names[j]}", float(off[g, j]), 0.0))
        x = multiple / instance.pooled_slices
    for g, j in np.argwhere((x > 0) & ~can):
        violations.append(Violation("throughput", f"{instance.gpus[g].name}, {names[j]}", float(x[g, j]), 0.0))
    x = np.where(can, x, 0.0)
    served = x.sum(axis=0)
    for j in np.flatnonzero(np.abs(served - 1.0) > FEASIBILITY):
        violations.append(Violation("cover", names[j], float(abs(served[j] - 1.0)), 1.0))
    load = np.where(can, instance.load_replicas[:, items], 0.0)
    for g, gpu in enumerate(instance.gpus):
        busy, limit = math.fsum(load[g] * x[g]), instance.max_utilisation * float(n[g])
        if busy > limit * (1.0 + FEASIBILITY):
            violations.append(Violation("capacity", gpu.name + situation, busy - limit, limit))
    return violations


def most_replicas(instance: GpuSelection) -> npt.NDArray[np.int64]:
    """A number of replicas of each type [G] that no optimal plan needs to exceed: enough to serve everything alone, and one to lose.

    At most MOST_REPLICAS: more cannot be written down in a plan.
    """
    load = np.where(instance.can_serve, instance.load_replicas, 0.0).sum(axis=1) / instance.max_utilisation
    # A slack of 1e-6 replicas keeps a load that rounding put just under an integer on the safe side.
    enough = np.ceil(load * (1 + 1e-9) + 1e-6) + instance.spare_replicas
    enough = np.minimum(np.maximum(enough, instance.min_count), instance.max_count)
    most: npt.NDArray[np.int64] = np.minimum(enough, MOST_REPLICAS).astype(np.int64)
    return most


def build_model_pooled(instance: GpuSelection) -> pyo.ConcreteModel:
    """The Pyomo model: the definition above, name by name. Zero-rate items are left out."""
    import pyomo.environ as pyo

    m = pyo.ConcreteModel(name="gpu_selection")
    gpus, work = instance.gpus, instance.work
    most = most_replicas(instance)
    situations = ["whole"] + [f"lost:{gpu.name}" for gpu in gpus if instance.spare_replicas]
    m.G = pyo.Set(initialize=range(len(gpus)))
    m.I = pyo.Set(initialize=[int(i) for i in instance.loaded_items])
    m.P = pyo.Set(initialize=range(len(instance.pools)))
    m.S = pyo.Set(initialize=range(len(situations)))
    m.rate_per_s = pyo.Param(m.I, initialize={i: work[i].rate_per_s for i in m.I})
    m.price_usd_per_h = pyo.Param(m.G, initialize={g: gpus[g].price_usd_per_h for g in m.G})
    serves = [(g, i) for g in m.G for i in m.I if instance.can_serve[g, i]]
    m.serves = pyo.Set(dimen=2, initialize=serves)
    m.throughput_per_s = pyo.Param(m.serves, initialize={(g, i): float(instance.throughput_per_s[g, i]) for g, i in serves})

    m.count = pyo.Var(m.G, domain=pyo.NonNegativeIntegers, bounds=lambda m, g: (gpus[g].min_count, int(most[g])))
    k = instance.pooled_slices
    if k is None:
        m.share = pyo.Var(m.serves, m.S, domain=pyo.NonNegativeReals, bounds=(0, 1))
    else:
        m.slice_count = pyo.Var(m.serves, m.S, domain=pyo.NonNegativeIntegers, bounds=(0, k))
        m.share = pyo.Expression(m.serves, m.S, rule=lambda m, g, i, s: m.slice_count[g, i, s] / k)
    if instance.spare_replicas:
        m.has_replica = pyo.Var(m.G, domain=pyo.Binary)
        m.loss_upper = pyo.Constraint(m.G, rule=lambda m, g: m.count[g] <= max(int(most[g]), 1) * m.has_replica[g])
        m.loss_lower = pyo.Constraint(m.G, rule=lambda m, g: m.has_replica[g] <= m.count[g])

    m.cost_usd_per_h = pyo.Objective(expr=pyo.quicksum(m.price_usd_per_h[g] * m.count[g] for g in m.G), sense=pyo.minimize)

    m.nothing = pyo.Var(bounds=(0, 0))  # an item that no type can serve makes the model infeasible, not impossible to build

    def cover(m: Any, i: int, s: int) -> Any:
        able = [g for g in m.G if (g, i) in m.serves]
        return pyo.quicksum(m.share[g, i, s] for g in able) == 1 if able else m.nothing == 1

    def capacity(m: Any, g: int, s: int) -> Any:
        able = [i for i in m.I if (g, i) in m.serves]
        if not able:
            return pyo.Constraint.Skip
        busy = pyo.quicksum(m.rate_per_s[i] / m.throughput_per_s[g, i] * m.share[g, i, s] for i in able)
        standing = m.count[g] - m.has_replica[g] if s == g + 1 else m.count[g]
        return busy <= instance.max_utilisation * standing

    def pool(m: Any, j: int) -> Any:
        drawing = [g for g in m.G if gpus[g].pool == instance.pools[j].name]
        if not drawing:
            return pyo.Constraint.Skip
        return pyo.quicksum(gpus[g].gpus_per_replica * m.count[g] for g in drawing) <= instance.pools[j].max_gpus

    m.cover = pyo.Constraint(m.I, m.S, rule=cover)
    m.capacity = pyo.Constraint(m.G, m.S, rule=capacity)
    m.pool = pyo.Constraint(m.P, rule=pool)
    return m


def plan_from_arrays(
    instance: GpuSelection, n: npt.NDArray[np.int64], share: FloatArray, after_loss: dict[int, FloatArray] | None = None
) -> GpuSelectionPlan:
    """A plan from arrays: noise below 1e-12 is dropped, shares are made to add up to one, items without load go where someone can serve them."""
    return GpuSelectionPlan(
        count={gpu.name: int(n[g]) for g, gpu in enumerate(instance.gpus)},
        share=tidy_shares(instance, share),
        share_after_loss={instance.gpus[h].name: tidy_shares(instance, table) for h, table in (after_loss or {}).items()},
    )


def tidy_shares(instance: GpuSelection, share: FloatArray, rate_per_s: FloatArray | None = None) -> FloatArray:
    """Clip, round to slices, normalise; a table [G][I] that `evaluate` reads without noise. `rate_per_s` [I]: the instance's own if None."""
    rate_per_s = instance.rate_per_s if rate_per_s is None else rate_per_s
    x = np.where(instance.can_serve & (share > 1e-12), share, 0.0)
    if instance.pooled_slices is not None:
        return _fill_idle(instance, rate_per_s, np.round(x * instance.pooled_slices) / instance.pooled_slices)
    total = x.sum(axis=0)
    return _fill_idle(instance, rate_per_s, np.where(total > 0, x / np.where(total > 0, total, 1.0), 0.0))


def _fill_idle(instance: GpuSelection, rate_per_s: FloatArray, x: FloatArray) -> FloatArray:
    idle = rate_per_s <= 0
    first = np.argmax(instance.can_serve, axis=0)
    for i in np.flatnonzero(idle):
        x[:, i] = 0.0
        x[first[i], i] = 1.0 if instance.can_serve[first[i], i] else 0.0
    return x
