"""The optimum over epochs of tiny instances with at most two types, by enumeration straight from the definition: states are rented replicas and
recent starts, shares are decided by hand (one type: no choice; two types: a continuous knapsack by rising ratio). Exact rationals throughout."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

State = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]
"""(rented a type, starts of the last `delay` epochs a type, newest last)."""


def optimum(data: dict[str, Any], most: int) -> Fraction | None:
    """Least cost in USD with at most `most` replicas of a type; None when there is no plan."""
    epochs, gpus = data["epochs"], data["gpus"]
    types, delay = len(gpus), epochs.get("start_delay_epochs", 0)
    hours = Fraction(epochs["epoch_s"]) / 3600
    rent = [Fraction(gpu["price_usd_per_h"]) * hours for gpu in gpus]
    start = [Fraction(cost) for cost in epochs["start_cost_usd"]]
    fleets = [n for n in itertools.product(range(most + 1), repeat=types) if _allowed(data, n)]
    best: dict[State, Fraction] = {}
    for t, rates in enumerate(epochs["rate_per_s"]):
        serves = {m: _serves(data, rates, m) for m in itertools.product(range(most + 1), repeat=types)}
        then: dict[State, Fraction] = {}
        before: dict[State, Fraction] = best
        if t == 0:
            initial = epochs.get("initial_count")
            nothing = tuple((0,) * delay for _ in range(types))
            before = {(tuple(initial), nothing): Fraction(0)} if initial is not None else {(n, nothing): Fraction(0) for n in fleets}
        for (was, recent), cost in before.items():
            for n in fleets:
                if t == 0 and epochs.get("initial_count") is None and n != was:
                    continue
                started = [max(0, n[g] - was[g]) for g in range(types)]
                newest = tuple((recent[g] + (started[g],))[1:] if delay else () for g in range(types))
                ready = tuple(n[g] - sum(newest[g]) for g in range(types))
                if min(ready) < 0 or not serves[ready]:
                    continue
                total = cost + sum(rent[g] * n[g] + start[g] * started[g] for g in range(types))
                if total < then.get((n, newest), total + 1):
                    then[n, newest] = total
        best = then
    return min(best.values(), default=None)


def _allowed(data: dict[str, Any], n: tuple[int, ...]) -> bool:
    for count, gpu in zip(n, data["gpus"], strict=True):
        if count < gpu.get("min_count", 0) or (gpu.get("max_count") is not None and count > gpu["max_count"]):
            return False
    for pool in data.get("pools", ()):
        used = sum(k * gpu.get("gpus_per_replica", 1) for k, gpu in zip(n, data["gpus"], strict=True) if gpu.get("pool") == pool["name"])
        if used > pool["max_gpus"]:
            return False
    return True


def _serves(data: dict[str, Any], rates: list[float], m: tuple[int, ...]) -> bool:
    """Whether m replicas can serve the rates with continuous shares."""
    use = Fraction(data.get("max_utilisation", 1.0))
    table = data["throughput_per_s"]
    room = [use * count for count in m]
    if len(m) == 1:
        table, room = [*table, [None] * len(rates)], [*room, Fraction(0)]
    either: list[tuple[Fraction, Fraction]] = []
    for i, rate in enumerate(rates):
        if rate <= 0:
            continue
        load = [None if table[g][i] is None else Fraction(rate) / Fraction(table[g][i]) for g in (0, 1)]
        if load[0] is None and load[1] is None:
            return False
        if load[0] is None or load[1] is None:
            g = 0 if load[1] is None else 1
            room[g] -= load[g] or 0
        else:
            either.append((load[0], load[1]))
    if min(room) < 0:
        return False
    # Type 0 takes first what saves most of type 1 for each unit of itself.
    for a, b in sorted(either, key=lambda pair: pair[0] / pair[1]):
        part = min(Fraction(1), room[0] / a)
        room[0] -= part * a
        room[1] -= (1 - part) * b
    return room[1] >= 0
