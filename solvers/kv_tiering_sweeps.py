"""What can be swept in a KV-tiering instance, and what its memory is worth.

| quantity   | index          | effect  | note                                                            |
|------------|----------------|---------|-----------------------------------------------------------------|
| `capacity` | a bounded tier | relaxes | `tiers[].capacity_bytes`; the name may be left out where there is one |

More room only widens the set of plans, and a plan costs the same in it: the optimum falls with the capacity. In bounds by multipliers the capacity
C_k stands as -sum_t mu_tk C_k, so sum_t mu_tk is what one more byte takes off the bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.kv_tiering import lagrangian_bound
from headroom.bounds.kv_tiering_lagrangian import Multipliers, usable_capacity
from headroom.bounds.kv_tiering_search import ROUNDS, WARM_ROUNDS, Dual, search
from headroom.formulations.kv_tiering import Replay, TieringPlan, replay
from headroom.formulations.quantities import Quantity
from headroom.formulations.types import Plan
from headroom.instances.errors import InputError, shown
from headroom.instances.kv_tiering import KvTiering

FloatArray = npt.NDArray[np.float64]
GIB = 2.0**30
UNITS = (("GiB", GIB), ("MiB", 2.0**20), ("KiB", 2.0**10), ("bytes", 1.0))
MOST_WORK = 1_000_000
"""Reads and steps up to which a sweep looks for multipliers of its own beside each plan: some seconds."""
STEP_WORK = 20
"""A step takes the search about as long as so many reads."""
BOUND_ROUNDS = 2


def capacity(instance: KvTiering, index: str) -> Quantity:
    """`capacity_bytes` of a bounded tier. Raises `InputError` for a name that is not one."""
    names = [tier.name for tier in instance.tiers[:-1]]
    if not index and len(names) == 1:
        index = names[0]
    if index not in names:
        expected = f"one of {shown(names, 200)}" if names else "but the instance has none"
        raise InputError(f"must name a tier with a capacity, {expected}, got {shown(index)}", "capacity")
    k = names.index(index)
    current = float(instance.capacity[k])
    everything, smallest = most_alive_bytes(instance), float(instance.size.min())
    unit, scale = next((unit, scale) for unit, scale in UNITS if max(current, everything if current == 0 else 0.0) >= scale or scale == 1.0)
    replays: list[tuple[Plan, Replay]] = []

    def vary(value: float) -> KvTiering:
        return with_capacity(instance, k, value)

    def replayed(plan: Plan) -> Replay:
        """What the plan does; the last one is kept, since a sweep asks for several things about it. Capacities play no part in it."""
        assert isinstance(plan, TieringPlan)
        if not replays or replays[0][0] is not plan:
            replays[:] = [(plan, replay(instance, plan))]
        return replays[0][1]

    def used(plan: Plan) -> float:
        return float(replayed(plan).occupancy_bytes[:, k].max())

    def fleet(plan: Plan) -> Mapping[str, float]:
        return {"moves": float(replayed(plan).moves.sum()), "used_bytes": used(plan)}

    def dual(variant: KvTiering) -> float | None:
        if len(variant.reads.block) + STEP_WORK * variant.steps > MOST_WORK or usable_capacity(variant)[k] == 0:
            return None
        with Dual(variant) as function:
            _, found = climb_from(function, search(function, rounds=ROUNDS[:1])[1], rounds=1)
        return float(found.hold[:, k].sum())

    return Quantity(
        name="capacity",
        index=index,
        unit="bytes",
        effect="relaxes",
        current=current,
        vary=vary,
        carry=_nothing,
        fleet=fleet,
        used=used,
        constraint="capacity",
        dual=dual,
        unlimited=max(everything, 1.0),
        grain=smallest if (instance.size == smallest).all() else 1.0,
        step=max(scale, float(instance.size.max())),
        shown=(scale, unit),
    )


def limits(instance: KvTiering) -> tuple[Quantity, ...]:
    """The capacity of every bounded tier."""
    return tuple(capacity(instance, tier.name) for tier in instance.tiers[:-1])


def with_capacity(instance: KvTiering, tier: int, capacity_bytes: float) -> KvTiering:
    """The instance with another capacity of a bounded tier. Raises `InputError`."""
    return instance.replace(
        tiers=[item.model_dump() | ({"capacity_bytes": capacity_bytes} if j == tier else {}) for j, item in enumerate(instance.tiers)]
    )


def most_alive_bytes(instance: KvTiering) -> float:
    """Bytes of the blocks that are alive at once, at most: a tier of that size can hold everything. O(N + T)."""
    change = np.bincount(instance.birth, instance.size, instance.steps + 1) - np.bincount(instance.death, instance.size, instance.steps + 1)
    return float(np.cumsum(change)[:-1].max())


def memory_value(instance: KvTiering, multipliers: Multipliers) -> tuple[FloatArray, FloatArray]:
    """What memory is worth by multipliers, such as `bounds_over` or a Lagrangian certificate has them, in seconds saved by one more GiB.

    By step and bounded tier [T][K - 1], and in all steps [K - 1]: rates of change of the bound, not of the optimum, which moves in steps. NaN for a
    tier that cannot hold any block: its multipliers only keep blocks out.
    """
    usable = usable_capacity(instance) > 0
    each = np.where(usable[None, :], multipliers.hold * GIB, np.nan)
    total: FloatArray = each.sum(axis=0)
    return each, total


def sensitivity(instance: KvTiering, multipliers: Multipliers) -> list[dict[str, Any]]:
    """Shadow prices of capacities for a result's details: {constraint, index, shadow_price, unit, per_byte_s, meaning}, the largest first.

    The unit fits the tier: s/GiB, or by a smaller unit where the tier is smaller than a GiB. Tiers of which more would not lower the bound are left
    out. Where the bound has a kink any slope between its sides is one, and another search may find another.
    """
    _, total = memory_value(instance, multipliers)
    records = []
    for k in np.argsort(-total, kind="stable"):
        if total[k] > 0:
            unit, scale = next((unit, scale) for unit, scale in UNITS if instance.capacity[k] >= scale or scale == 1.0)
            record = {"constraint": "capacity", "index": instance.tiers[k].name, "shadow_price": float(total[k] * (scale / GIB))}
            one = unit.removesuffix("s")
            records.append(record | {"unit": f"s/{one}", "per_byte_s": float(total[k] / GIB), "meaning": f"saved by one more {one} of this tier"})
    return records


def bounds_over(instance: KvTiering, tier: str, capacities: Sequence[float], threads: int = 1) -> list[tuple[float, float, Multipliers]]:
    """Lagrangian bounds over capacities of a tier [bytes]: (capacity, certified bound [s], multipliers), in the order asked.

    From the largest capacity down: each climbs by short steps from a short search's multipliers, or from its neighbour's where those prove more here.
    Raises `InputError` for an unknown tier and for capacities that make no sense.
    """
    quantity = capacity(instance, tier)
    k = [item.name for item in instance.tiers].index(quantity.index)
    found: dict[float, tuple[float, Multipliers]] = {}
    start: Multipliers | None = None
    for value in sorted({float(value) for value in capacities}, reverse=True):
        variant = quantity.checked(value)
        assert isinstance(variant, KvTiering)
        with Dual(variant, threads) as dual:
            begun = search(dual, rounds=ROUNDS[:BOUND_ROUNDS])
            if start is not None:
                if usable_capacity(variant)[k] == 0:
                    hold = start.hold.copy()
                    hold[:, k] = dual.start().hold[:, k]
                    start = Multipliers(start.tiers, start.cut, hold)
                begun = max(begun, (dual.at(start)[0], start), key=lambda item: item[0])
            _, start = climb_from(dual, begun[1], BOUND_ROUNDS)
        found[value] = (lagrangian_bound(variant, start).value, start)
    return [(float(value), *found[float(value)]) for value in capacities]


def climb_from(dual: Dual, start: Multipliers, rounds: int) -> tuple[float, Multipliers]:
    """The bound's value and multipliers after an ascent by short steps from those of a problem much like this one; never below what they prove here.

    The rounding cuts' weights begin at nothing: what is right for them hangs on counts of blocks that another capacity changes.
    """
    share = start.tiers / np.maximum(start.tiers.sum(axis=1, keepdims=True), 1e-12)
    without_cuts = Multipliers(share, np.zeros(len(share)), start.hold)
    return max((dual.at(start)[0], start), search(dual, start=without_cuts, rounds=WARM_ROUNDS[:rounds]), key=lambda found: found[0])


def _nothing(variant: KvTiering, plan: Plan) -> Iterator[Plan]:
    """No repair: a plan either fits the capacity or does not."""
    yield from ()


__all__ = ["bounds_over", "capacity", "climb_from", "limits", "memory_value", "most_alive_bytes", "sensitivity", "with_capacity"]
