"""`headroom.sweep` and `headroom.sweep_slo`: how the optimum answers to prices, limits, load and latency, by re-solves that start warm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headroom.formulations.progress import Progress
from headroom.formulations.quantities import Quantity
from headroom.formulations.types import SolveParams
from headroom.instances.base import Instance
from headroom.instances.errors import InputError, shown
from headroom.registry import load as load_name
from headroom.run import family_of, resolve_method
from headroom.sweep_front import FrontSweep
from headroom.sweep_kinds import MonotoneSweep, PriceSweep, ShadowSweep, Sweeper
from headroom.sweep_solver import Solver
from headroom.sweep_types import Point, PricePiece, ShadowPrice, Sweep

MOST_VALUES = 10_000
SHADOW = "shadow"


def sweep(
    instance: Instance | str | Path,
    quantity: str,
    index: str = "",
    values: Sequence[float] | None = None,
    *,
    method: str = "auto",
    params: SolveParams | None = None,
    total_time_limit_s: float | None = None,
    cold: bool = False,
) -> Sweep:
    """Re-solve an instance over values of one of its quantities (names: `headroom families`), or for "shadow" with each limit changed by one.

    `index` says whose quantity: `sweep(x, "price", "H100", [1, 4])`, `sweep(x, "cap", "A10G")`, `sweep(x, "rate", values=[1, 16, 256])`. A price
    is swept over the whole interval that its values span: `pieces` says which plan is optimal where, each within its gap. A cap without values
    is swept up to what the optimum would use. `params` holds for each solve, `total_time_limit_s` for all; `cold` reuses nothing. Raises
    `InputError` for unknown names and values that make no sense.
    """
    return sweeper(instance, quantity, index, values, method=method, params=params, total_time_limit_s=total_time_limit_s, cold=cold).run()


def moves_front(
    instance: Instance | str | Path,
    caps: Sequence[int] | None = None,
    *,
    method: str = "auto",
    params: SolveParams | None = None,
    total_time_limit_s: float | None = None,
) -> Sweep:
    """What an expert placement gains from each number of moves: the front of moves against the objective.

    `caps` are numbers of moves at most, by default 13, closer together where they are few; 0 (the current placement) and what the plan without a
    cap moves are always added. A point has its plan (`points[i].plan`), evaluated: `parts["balance"]`, `fleet["moves"]` (moves it takes), and the
    certified bound beside it; `frame()` is the table. The objective never rises with the cap. Where layers share nothing but the cap one search
    answers all caps (method `local_search`); with traffic, or by another method, each cap is solved from its neighbour's plan. Raises `InputError`
    for an instance without `current_slot_expert`.
    """
    return sweep(instance, "moves", values=caps, method=method, params=params, total_time_limit_s=total_time_limit_s)


def sweep_slo(
    table: str | Path,
    trace: str | Path,
    ttft_s: Sequence[float],
    tpot_s: Sequence[float],
    *,
    method: str = "auto",
    params: SolveParams | None = None,
    total_time_limit_s: float | None = None,
    cold: bool = False,
    **options: Any,
) -> Sweep:
    """Cost over limits on time to first token and time per output token [s]: the grid of all pairs.

    `table`, `trace` and `options` are those of `headroom import splitwise-perf`; the trace is counted once. Raises `InputError`.
    """
    from headroom.sweep_slo import SloSweep

    solver = Solver(method, params, total_time_limit_s, cold)
    return SloSweep(table, trace, ttft_s, tpot_s, solver, parameters_of(params, total_time_limit_s, cold), options).run()


def sweeper(
    instance: Instance | str | Path,
    quantity: str,
    index: str = "",
    values: Sequence[float] | None = None,
    *,
    method: str = "auto",
    params: SolveParams | None = None,
    total_time_limit_s: float | None = None,
    cold: bool = False,
    on_start: Callable[[Progress], None] | None = None,
) -> Sweeper:
    """The sweep that `sweep` runs, not yet begun: for callers that run it in a thread. `on_start` gets the `Progress` of each solve."""
    from headroom.api import load

    instance = instance if isinstance(instance, Instance) else load(instance)
    resolve_method(instance, method)
    solver = Solver(method, params, total_time_limit_s, cold, on_start)
    parameters = parameters_of(params, total_time_limit_s, cold)
    if quantity == SHADOW:
        if index or values is not None:
            raise InputError("takes no name and no values", SHADOW)
        return ShadowSweep(instance, limits_of(instance), solver, parameters)
    chosen = quantity_of(instance, quantity, index)
    if values is not None:
        if not 1 <= len(values) <= MOST_VALUES:
            raise InputError(f"needs 1 to {MOST_VALUES} values, got {len(values)}", chosen.label)
        for value in values:
            chosen.checked(value)
    if chosen.effect == "prices":
        if values is None:
            raise InputError("needs values, such as 1,2,4 or 1:4:7", chosen.label)
        return PriceSweep(instance, chosen, values, solver, parameters)
    if chosen.front is not None:
        return FrontSweep(instance, chosen, values, solver, parameters)
    return MonotoneSweep(instance, chosen, values, solver, parameters)


def quantity_of(instance: Instance, name: str, index: str) -> Quantity:
    """The quantity of an instance that its family registered under a name. Raises `InputError`."""
    known = family_of(instance).sweeps_for(instance)
    if name not in known:
        expected = [*known, *([SHADOW] if family_of(instance).limits is not None else [])]
        hint = f"expected one of {', '.join(expected)}" if expected else "nothing can"
        raise InputError(f"{shown(name)} cannot be swept in {instance.family}; {hint}", "sweep")
    quantity: Quantity = known[name].load()(instance, index)
    return quantity


def limits_of(instance: Instance) -> tuple[Quantity, ...]:
    """The limits whose shadow prices `sweep(x, "shadow")` finds. Raises `InputError` where there are none."""
    target = family_of(instance).limits
    if target is None:
        raise InputError(f"{instance.family} has no limits with shadow prices", SHADOW)
    found: tuple[Quantity, ...] = load_name(target)(instance)
    if not found:
        raise InputError("the instance sets no limit that could have a shadow price", SHADOW)
    return found


def parameters_of(params: SolveParams | None, total_time_limit_s: float | None, cold: bool) -> Mapping[str, Any]:
    """What a sweep's document records of how it was run."""
    from headroom.documents import parameters_of as of_params

    params = params or SolveParams()
    total = {} if total_time_limit_s is None else {"total_time_limit_s": total_time_limit_s}
    return of_params(params) | {"seed": params.seed, "cold": cold} | total


__all__ = ["Point", "PricePiece", "ShadowPrice", "Sweep", "moves_front", "sweep", "sweep_slo", "sweeper"]
