r"""GPU selection over time: rates change from epoch to epoch, replicas take time and money to start.

Sets and parameters as in `gpu_selection_pooled`, and
    t in 0..T-1  epochs                      `epochs.rate_per_s` [epoch][work]
    r_ti         rate                        `epochs.rate_per_s[t][i]`, requests/s (`work[i].rate_per_s` is not used)
    H            length of an epoch          `epochs.epoch_s`, s
    f_g          cost of a start             `epochs.start_cost_usd[g]`, USD
    d            delay of a start            `epochs.start_delay_epochs`, epochs
    n_g,-1       fleet before epoch 0        `epochs.initial_count[g]`; null: n_g,-1 = n_g0, so that the first fleet stands and is free of starts

Variables
    n_gt in Z>=0   replicas of g rented in epoch t                             plan `count[t]`
    s_gt >= 0      replicas of g started at the beginning of t
    x_gti >= 0     share of item i that g serves in t                          plan `share[t]`

    minimise  sum_t sum_g p_g n_gt H / 3600 + sum_t sum_g f_g s_gt                           [USD]
    starts    s_gt >= n_gt - n_g,t-1
    serving   m_gt = n_gt - sum_{t-d < tau <= t} s_g,tau                       replicas that serve in t
    cover     sum_g x_gti = 1                                                  for every t and i with r_ti > 0
    capacity  sum_i (r_ti / q_gi) x_gti <= u m_gt                              for every t, g
    count     lo_g <= n_gt <= hi_g
    pool      sum_{g in P} k_g n_gt <= B_P                                     for every t
    slices    k x_gti integer                                                  when k is given

Rent runs from the start, also while a replica does not serve yet; stopping is free and at once. More starts than needed cost money and
serve less, so `evaluate` takes s_gt = max(0, n_gt - n_g,t-1). For fixed types over time this is a lot-sizing problem without stock: each
replica is an interval of epochs, and only the covering of each epoch couples the types.

Rates within an epoch are taken as constant. An autoscaler sees rates up to now; this model sees them all: it is the clairvoyant optimum that
policies are compared with. Source of the static model: Mélange, arXiv 2404.14527; epochs, starts and delays are ours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from headroom.formulations.gpu_selection_pooled import Count, tidy_shares
from headroom.formulations.tolerances import FEASIBILITY, INTEGRALITY
from headroom.formulations.types import Evaluation, Plan, Violation
from headroom.instances.base import rule
from headroom.instances.errors import InputError, shown
from headroom.instances.gpu_selection import GpuSelection
from headroom.instances.gpu_selection_epochs import Epochs

if TYPE_CHECKING:
    import pyomo.environ as pyo

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MOST_VIOLATIONS = 1000
"""A broken plan of a long horizon is described by this many violations at most."""


def _shares(value: object) -> FloatArray:
    try:
        if not isinstance(value, np.ndarray):
            _only_numbers(value, 3)
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise rule(f"share must be an [epoch][gpu][work] table of numbers, got {shown(value)}") from None
    if array.ndim != 3 or not np.isfinite(array).all():
        raise rule("share must be an [epoch][gpu][work] table of finite numbers")
    array.flags.writeable = False
    return array


def _only_numbers(value: object, depth: int) -> None:
    if depth == 0:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError
        return
    if not isinstance(value, (list, tuple)):
        raise TypeError
    for item in value:
        _only_numbers(item, depth - 1)


class EpochPlan(Plan):
    """Replicas of each type and who serves what, epoch by epoch: `count` [epoch] {gpu: replicas}, `share` [epoch][gpu][work]."""

    count: Annotated[tuple[dict[str, Count], ...], Field(min_length=1, strict=False)]
    share: Annotated[
        np.ndarray,
        BeforeValidator(_shares),
        PlainSerializer(lambda array: array.tolist()),
        WithJsonSchema({"type": "array", "items": {"type": "array", "items": {"type": "array", "items": {"type": "number", "minimum": 0}}}}),
    ]


def epochs_of(instance: GpuSelection) -> Epochs:
    """The instance's epochs. Raises `InputError` when it has none."""
    if instance.epochs is None:
        raise InputError("epochs is null; expected an instance with epochs")
    return instance.epochs


def fleet(instance: GpuSelection, plan: EpochPlan) -> IntArray:
    """The plan's counts [T][G] in the instance's order. Raises `InputError` for another number of epochs or an unknown type."""
    names = [gpu.name for gpu in instance.gpus]
    steps = len(epochs_of(instance).rate_per_s)
    if len(plan.count) != steps:
        raise InputError(f"plan.count must have an entry for each of {steps} epochs, got {len(plan.count)}")
    position = {name: g for g, name in enumerate(names)}
    table = np.zeros((steps, len(names)), dtype=np.int64)
    for t, count in enumerate(plan.count):
        for name, n in count.items():
            if name not in position:
                raise InputError(f"plan.count[{t}] names {name!r}; expected one of {shown(names, 200)}")
            table[t, position[name]] = n
    return table


def starts(instance: GpuSelection, n: IntArray) -> IntArray:
    """Starts [T][G] that a fleet [T][G] needs."""
    epochs = epochs_of(instance)
    before = n[:1] if epochs.initial_count is None else np.array([epochs.initial_count], dtype=np.int64)
    found: IntArray = np.maximum(np.diff(n, axis=0, prepend=before), 0)
    return found


def serving(instance: GpuSelection, n: IntArray) -> IntArray:
    """Replicas that serve [T][G]: rented and not started within the delay. Negative when replicas were stopped while others still started."""
    delay = epochs_of(instance).start_delay_epochs
    total = np.cumsum(starts(instance, n), axis=0)
    past = np.zeros_like(total)
    if delay < len(total):
        past[delay:] = total[: len(total) - delay]
    ready: IntArray = n - (total - past)
    return ready


def load_per_request(instance: GpuSelection) -> FloatArray:
    """Seconds of one replica that one request of item i takes on type g [G][I]: 1 / q_gi; 0 where it cannot serve."""
    able: FloatArray = np.where(instance.can_serve, 1.0 / np.where(instance.can_serve, instance.throughput_per_s, 1.0), 0.0)
    return able


def evaluate_epochs(instance: GpuSelection, plan: EpochPlan) -> Evaluation:
    """Cost in USD over all epochs, rent and starts of each type, and every violated constraint (at most MOST_VIOLATIONS of them).

    Tolerances as in `evaluate_pooled`. Raises `InputError` when the plan's shape or names do not fit the instance. O(T G I).
    """
    epochs, n = epochs_of(instance), fleet(instance, plan)
    names = [gpu.name for gpu in instance.gpus]
    shape = (len(n), len(names), len(instance.work))
    if plan.share.shape != shape:
        got = " x ".join(map(str, plan.share.shape))
        raise InputError(f"plan.share must be a {shape[0]} x {shape[1]} x {shape[2]} table [epoch][gpu][work], got {got}")
    started = starts(instance, n)
    violations: list[Violation] = []

    def report(constraint: str, where: npt.NDArray[np.bool_], amount: FloatArray, limit: FloatArray, labels: list[str]) -> None:
        for index in np.argwhere(where)[: MOST_VIOLATIONS - len(violations)]:
            at = tuple(index)
            label = f"epoch {at[0]}" + (f", {labels[at[1]]}" if labels else "")
            violations.append(Violation(constraint, label, float(amount[at]), float(np.broadcast_to(limit, where.shape)[at])))

    least, most = instance.min_count.astype(np.float64), instance.max_count
    report("min_count", n < least, least - n, least, names)
    report("max_count", n > most, n - most, most, names)
    if len(instance.pools):
        used = n @ instance.pool_gpus.T
        report("pool", used > instance.pool_limit, used - instance.pool_limit, instance.pool_limit, [pool.name for pool in instance.pools])
    _check_shares(instance, epochs.rate_per_s, plan.share, serving(instance, n), report)
    hours = epochs.epoch_s / 3600.0
    parts: dict[str, float] = {}
    for g, name in enumerate(names):
        if n[:, g].any():
            parts[f"rent {name}"] = float(instance.price_usd_per_h[g]) * hours * float(n[:, g].sum())
        if started[:, g].any():
            parts[f"starts {name}"] = epochs.start_cost_usd[g] * float(started[:, g].sum())
    return Evaluation(objective=math.fsum(parts.values()), parts=parts, violations=tuple(violations))


def _check_shares(instance: GpuSelection, rate: FloatArray, share: FloatArray, ready: IntArray, report: Any) -> None:
    """Signs, slices, ability, cover and capacity in every epoch. Shares of items without load are ignored."""
    gpus, work = [gpu.name for gpu in instance.gpus], [item.name for item in instance.work]
    pairs = [f"{gpu}, {item}" for gpu in gpus for item in work]
    loaded, zero = rate > 0, np.zeros(1)
    x = np.where(loaded[:, None, :], share, 0.0)
    flat = (len(x), -1)
    report("share_sign", (x < -FEASIBILITY).reshape(flat), -x.reshape(flat), zero, pairs)
    x = np.maximum(x, 0.0)
    if instance.pooled_slices is not None:
        multiple = np.round(x * instance.pooled_slices)
        off = np.abs(x * instance.pooled_slices - multiple)
        report("slices", (off > INTEGRALITY).reshape(flat), off.reshape(flat), zero, pairs)
        x = multiple / instance.pooled_slices
    report("throughput", ((x > 0) & ~instance.can_serve).reshape(flat), x.reshape(flat), zero, pairs)
    x = np.where(instance.can_serve, x, 0.0)
    missing = np.where(loaded, np.abs(x.sum(axis=1) - 1.0), 0.0)
    report("cover", missing > FEASIBILITY, missing, np.ones(1), work)
    # One contiguous row for each (epoch, type), so that numpy adds pairwise and the error stays near 1e-15.
    busy = np.ascontiguousarray(x * rate[:, None, :] * load_per_request(instance)).sum(axis=2)
    limit = instance.max_utilisation * ready
    report("capacity", busy > limit + FEASIBILITY * np.abs(limit), busy - limit, limit, gpus)


def build_model_epochs(instance: GpuSelection) -> pyo.ConcreteModel:
    """The Pyomo model of the definition above. Items without load in an epoch are left out of it."""
    import pyomo.environ as pyo

    epochs, gpus = epochs_of(instance), instance.gpus
    rate, cost = epochs.rate_per_s, load_per_request(instance)
    delay, steps = epochs.start_delay_epochs, len(epochs.rate_per_s)
    most = most_replicas_over_time(instance)
    m = pyo.ConcreteModel(name="gpu_selection_epochs")
    m.T, m.G = pyo.RangeSet(0, steps - 1), pyo.RangeSet(0, len(gpus) - 1)
    m.P = pyo.RangeSet(0, len(instance.pools) - 1) if instance.pools else pyo.Set(initialize=[])
    faced = [(int(t), int(i)) for t, i in np.argwhere(rate > 0)]
    m.faced = pyo.Set(dimen=2, initialize=faced)
    m.serves = pyo.Set(dimen=3, initialize=[(g, t, i) for t, i in faced for g in range(len(gpus)) if instance.can_serve[g, i]])
    m.count = pyo.Var(m.G, m.T, domain=pyo.NonNegativeIntegers, bounds=lambda m, g, t: (gpus[g].min_count, int(most[g])))
    m.started = pyo.Var(m.G, m.T, domain=pyo.NonNegativeReals)
    k = instance.pooled_slices
    if k is None:
        m.share = pyo.Var(m.serves, domain=pyo.NonNegativeReals, bounds=(0, 1))
    else:
        m.slice_count = pyo.Var(m.serves, domain=pyo.NonNegativeIntegers, bounds=(0, k))
        m.share = pyo.Expression(m.serves, rule=lambda m, g, t, i: m.slice_count[g, t, i] / k)
    hours = epochs.epoch_s / 3600.0
    rent = pyo.quicksum(gpus[g].price_usd_per_h * hours * m.count[g, t] for g in m.G for t in m.T)
    m.cost_usd = pyo.Objective(expr=rent + pyo.quicksum(epochs.start_cost_usd[g] * m.started[g, t] for g in m.G for t in m.T))
    m.nothing = pyo.Var(bounds=(0, 0))

    def starting(m: Any, g: int, t: int) -> Any:
        if t > 0:
            return m.started[g, t] >= m.count[g, t] - m.count[g, t - 1]
        return m.started[g, 0] >= (0 if epochs.initial_count is None else m.count[g, 0] - epochs.initial_count[g])

    able: dict[tuple[int, int], list[int]] = {}
    for g, t, i in m.serves:
        able.setdefault((g, t), []).append(i)

    def cover(m: Any, t: int, i: int) -> Any:
        who = [g for g in m.G if instance.can_serve[g, i]]
        return pyo.quicksum(m.share[g, t, i] for g in who) == 1 if who else m.nothing == 1

    def capacity(m: Any, g: int, t: int) -> Any:
        ready = m.count[g, t] - pyo.quicksum(m.started[g, tau] for tau in range(max(0, t - delay + 1), t + 1))
        busy = pyo.quicksum(float(rate[t, i] * cost[g, i]) * m.share[g, t, i] for i in able.get((g, t), []))
        return busy <= instance.max_utilisation * ready

    def pool(m: Any, j: int, t: int) -> Any:
        drawing = [g for g in m.G if gpus[g].pool == instance.pools[j].name]
        if not drawing:
            return pyo.Constraint.Skip
        return pyo.quicksum(gpus[g].gpus_per_replica * m.count[g, t] for g in drawing) <= instance.pools[j].max_gpus

    m.starts = pyo.Constraint(m.G, m.T, rule=starting)
    m.cover = pyo.Constraint(m.faced, rule=cover)
    m.capacity = pyo.Constraint(m.G, m.T, rule=capacity)
    m.pool = pyo.Constraint(m.P, m.T, rule=pool)
    return m


def most_replicas_over_time(instance: GpuSelection) -> IntArray:
    """A number of replicas of each type [G] that some optimal plan never exceeds: enough to serve the worst epoch alone, or the floor.

    Proof: replicas of a type can be numbered so that number j is rented exactly while the count is at least j; dropping the numbers above this one
    leaves every epoch either as it was or with enough of this type to serve everything alone, and costs no more.
    """
    rate = epochs_of(instance).rate_per_s
    load = (rate @ load_per_request(instance).T).max(axis=0) / instance.max_utilisation
    enough = np.maximum(np.ceil(load * (1 + 1e-9) + 1e-6), instance.min_count)
    most: IntArray = np.minimum(enough, instance.max_count).clip(max=1e12).astype(np.int64)
    return most


def epoch_plan(instance: GpuSelection, n: IntArray, share: FloatArray) -> EpochPlan:
    """A plan from fleets [T][G] and shares [T][G][I], tidied epoch by epoch."""
    names = [gpu.name for gpu in instance.gpus]
    tables = np.stack([tidy_shares(instance, table, rate) for table, rate in zip(share, epochs_of(instance).rate_per_s, strict=True)])
    return EpochPlan(count=tuple({name: int(row[g]) for g, name in enumerate(names)} for row in n), share=tables)
