"""What can be swept in a GPU-selection instance: prices, caps and floors, pools, the rate. All three modes.

| quantity | index                        | effect   | note                                                                             |
|----------|------------------------------|----------|----------------------------------------------------------------------------------|
| `price`  | type, pool or GPU            | prices   | of a pool or GPU: USD/h for one GPU, and each type costs `gpus_per_replica` of it |
| `cap`    | type or pool                 | relaxes  | `max_count` of a type, `max_gpus` of a pool                                      |
| `floor`  | type                         | tightens | `min_count`                                                                      |
| `rate`   |                              | tightens | all rates in proportion; over epochs their mean                                  |

Why the effects hold: prices stand in the objective alone and linearly; a larger cap or pool or a smaller floor only widens the set of plans;
at smaller rates the same shares load every replica less. `price` of a GPU means the types named `GPU-TP…`, as the importer names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_boxes import data_of
from headroom.formulations.gpu_selection import EpochPlan, GpuSelectionPlan, ReplicaPlan, evaluate
from headroom.formulations.quantities import Quantity
from headroom.formulations.types import Plan
from headroom.heuristics.gpu_selection import plan_of
from headroom.heuristics.gpu_selection_consolidate import consolidate, counts_for
from headroom.instances.errors import InputError, shown
from headroom.instances.gpu_selection import GpuSelection
from headroom.solvers.gpu_selection_sensitivity import sensitivity

FloatArray = npt.NDArray[np.float64]
CONSOLIDATED_CELLS = 2000
"""Types x items up to which a carried plan is consolidated."""


def price(instance: GpuSelection, index: str) -> Quantity:
    """The price of a replica type, or of one GPU of a pool or kind that several types are made of."""
    chosen, each = _priced(instance, index)
    now = {instance.price_usd_per_h[g] / m for g, m in chosen.items()}

    def vary(value: float) -> GpuSelection:
        gpus = [gpu.model_dump() | ({"price_usd_per_h": value * chosen[g]} if g in chosen else {}) for g, gpu in enumerate(instance.gpus)]
        return instance.replace(gpus=gpus)

    free, hours = vary(0.0), _hours(instance)

    def line(plan: Plan) -> tuple[float, float]:
        n = replica_totals(instance, plan)
        return evaluate(free, plan).objective, hours * math.fsum(m * float(n[g]) for g, m in chosen.items())

    return Quantity(
        name="price",
        index=index,
        unit=f"USD/h per {each}",
        effect="prices",
        current=now.pop() if len(now) == 1 else None,
        vary=vary,
        carry=_as_it_is,
        fleet=lambda plan: fleet(instance, plan),
        line=line,
    )


def cap(instance: GpuSelection, index: str) -> Quantity:
    """`max_count` of a type, or `max_gpus` of a pool."""
    names = [gpu.name for gpu in instance.gpus]
    pools = [pool.name for pool in instance.pools]
    if index in names:
        g = names.index(index)
        gpu = instance.gpus[g]
        return _limit(instance, "cap", index, "max_count", lambda v: _with_gpu(instance, g, max_count=int(v)), gpu.max_count, _one(g, len(names)))
    if index in pools:
        p = pools.index(index)

        def vary(value: float) -> GpuSelection:
            changed = [pool.model_dump() | ({"max_gpus": int(value)} if j == p else {}) for j, pool in enumerate(instance.pools)]
            return instance.replace(pools=changed)

        return _limit(instance, "cap", index, "pool", vary, instance.pools[p].max_gpus, instance.pool_gpus[p])
    raise InputError(f"must name a replica type or a pool, one of {shown([*names, *pools], 200)}, got {shown(index)}", "cap")


def floor(instance: GpuSelection, index: str) -> Quantity:
    """`min_count` of a type."""
    g = _type(instance, index, "floor")
    gpu, weight = instance.gpus[g], _one(g, len(instance.gpus))
    return _limit(instance, "floor", index, "min_count", lambda v: _with_gpu(instance, g, min_count=int(v)), gpu.min_count, weight)


def rate(instance: GpuSelection, index: str) -> Quantity:
    """The total rate: every item's rate is scaled by the same factor. A bucket's decode item is not counted beside its prefill item."""
    if index:
        raise InputError(f"takes no name, got {shown(index)}", "rate")
    counted = np.array([item.phase != "decode" for item in instance.work])
    rates = instance.rate_per_s if instance.epochs is None else instance.epochs.rate_per_s.mean(axis=0)
    total = float(rates[counted].sum()) or float(rates.sum())
    if total <= 0:
        raise InputError("cannot be scaled: the instance's rates are all 0", "rate")

    def vary(value: float) -> GpuSelection:
        factor = value / total
        changes: dict[str, Any] = {"work": [item.model_dump() | {"rate_per_s": item.rate_per_s * factor} for item in instance.work]}
        if instance.epochs is not None:
            changes["epochs"] = instance.epochs.model_dump() | {"rate_per_s": instance.epochs.rate_per_s * factor}
        return instance.replace(**changes)

    return Quantity(
        name="rate",
        index="",
        unit="requests/s",
        effect="tightens",
        current=total,
        vary=vary,
        carry=_recounted,
        fleet=lambda plan: fleet(instance, plan),
        spacing="log",
    )


def limits(instance: GpuSelection) -> tuple[Quantity, ...]:
    """Every limit on counts that the instance sets: caps, pools, floors."""
    caps = [cap(instance, gpu.name) for gpu in instance.gpus if gpu.max_count is not None]
    pools = [cap(instance, pool.name) for pool in instance.pools if all(pool.name != gpu.name for gpu in instance.gpus)]
    return (*caps, *pools, *(floor(instance, gpu.name) for gpu in instance.gpus if gpu.min_count))


def fleet(instance: GpuSelection, plan: Plan) -> dict[str, float]:
    """Replicas of each type that is rented; over epochs their mean."""
    n = replica_totals(instance, plan) / (1 if instance.epochs is None else len(instance.epochs.rate_per_s))
    return {gpu.name: float(n[g]) for g, gpu in enumerate(instance.gpus) if n[g]}


def replica_totals(instance: GpuSelection, plan: Plan) -> FloatArray:
    """Replicas of each type [G]; over epochs their sum over the epochs."""
    if isinstance(plan, GpuSelectionPlan):
        held = [plan.count]
    elif isinstance(plan, EpochPlan):
        held = list(plan.count)
    else:
        assert isinstance(plan, ReplicaPlan)
        held = [{group.gpu: group.replicas} for group in plan.assignment]
    return np.array([sum(count.get(gpu.name, 0) for count in held) for gpu in instance.gpus], dtype=np.float64)


def dominates(better: GpuSelection, worse: GpuSelection) -> bool:
    """Whether every plan of `worse` is a plan of `better` at the same cost: throughputs at least as high, all else equal, in the same order."""
    above = np.nan_to_num(better.throughput_per_s, nan=0.0) >= np.nan_to_num(worse.throughput_per_s, nan=0.0)
    if not above.all():
        return False
    if better.epochs is not None or worse.epochs is not None:
        return better.replace(throughput_per_s=worse.throughput_per_s) == worse
    others = set(GpuSelection.model_fields) - {"name", "provenance", "throughput_per_s", "epochs"}
    return all(getattr(better, name) == getattr(worse, name) for name in others)


def carried(variant: GpuSelection, plan: Plan) -> Iterator[Plan]:
    """Plans for an instance of other rates or throughputs, from a plan of the same types and items."""
    return _recounted(variant, plan)


def _as_it_is(variant: GpuSelection, plan: Plan) -> Iterator[Plan]:
    yield plan


def _recounted(variant: GpuSelection, plan: Plan) -> Iterator[Plan]:
    """The plan, and its shares with as many replicas as they need now, consolidated where that is cheap (pooled, without spares)."""
    yield plan
    if not isinstance(plan, GpuSelectionPlan) or variant.mode != "pooled" or variant.spare_replicas:
        return
    data = data_of(variant)
    y = np.where(data.can_serve, plan.share[:, data.items], 0.0) * data.slices
    if (y.sum(axis=0) < data.slices * (1 - 1e-9)).any():
        return  # an item lost the type that served it
    if data.integral:
        y = np.round(y)
    n = counts_for(data, y)
    yield plan_of(data, y, n)
    if y.size <= CONSOLIDATED_CELLS:
        yield plan_of(data, *consolidate(data, y))


def _priced(instance: GpuSelection, index: str) -> tuple[dict[int, float], str]:
    """The types that an index means, with the multiple of the price that each costs, and of what the price is."""
    gpus = list(enumerate(instance.gpus))
    by_name = {g: 1.0 for g, gpu in gpus if gpu.name == index}
    if by_name:
        return by_name, "replica"
    of_kind = {g: float(gpu.gpus_per_replica) for g, gpu in gpus if gpu.pool == index or gpu.name.startswith(f"{index}-TP")}
    if not of_kind or not index:
        kinds = {gpu.name.split("-TP")[0] for _, gpu in gpus if "-TP" in gpu.name} | {pool.name for pool in instance.pools}
        known = [*(gpu.name for _, gpu in gpus), *sorted(kinds)]
        raise InputError(f"must name a replica type, a pool or a GPU, one of {shown(known, 200)}, got {shown(index)}", "price")
    return of_kind, "GPU"


def _hours(instance: GpuSelection) -> float:
    """Hours for which a replica counted by `replica_totals` is paid; an objective by the hour counts one."""
    return 1.0 if instance.epochs is None else instance.epochs.epoch_s / 3600.0


def _limit(
    instance: GpuSelection,
    name: str,
    index: str,
    constraint: str,
    vary: Callable[[float], GpuSelection],
    current: int | None,
    weight: FloatArray,
) -> Quantity:
    def dual(variant: GpuSelection) -> float | None:
        if variant.mode != "pooled":
            return None
        found = [item["shadow_price"] for item in sensitivity(variant) if (item["constraint"], item["index"]) == (constraint, index)]
        return found[0] if found else 0.0

    def used(plan: Plan) -> float:
        """Of a fleet that changes over time, what it uses at its peak."""
        if isinstance(plan, EpochPlan):
            return max(math.fsum(w * count.get(gpu.name, 0) for w, gpu in zip(weight, instance.gpus, strict=True)) for count in plan.count)
        return float(weight @ replica_totals(instance, plan))

    least = instance.gpus[[gpu.name for gpu in instance.gpus].index(index)].min_count if constraint == "max_count" else 0
    return Quantity(
        name=name,
        index=index,
        unit="GPUs" if constraint == "pool" else "replicas",
        effect="tightens" if constraint == "min_count" else "relaxes",
        current=None if current is None else float(current),
        vary=vary,
        carry=_as_it_is,
        fleet=lambda plan: fleet(instance, plan),
        least=float(least),
        whole=True,
        used=used,
        constraint=constraint,
        dual=dual,
    )


def _with_gpu(instance: GpuSelection, g: int, **changes: Any) -> GpuSelection:
    return instance.replace(gpus=[gpu.model_dump() | (changes if k == g else {}) for k, gpu in enumerate(instance.gpus)])


def _one(g: int, size: int) -> FloatArray:
    weight = np.zeros(size)
    weight[g] = 1.0
    return weight


def _type(instance: GpuSelection, index: str, option: str) -> int:
    names = [gpu.name for gpu in instance.gpus]
    if index not in names:
        raise InputError(f"must name a replica type, one of {shown(names, 200)}, got {shown(index)}", option)
    return names.index(index)
