"""`headroom bound`: lower bounds that need no plan."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headroom.cli_common import (
    HoldersOption,
    InstanceArgument,
    JsonOption,
    MovesOption,
    SpareOption,
    ThreadsOption,
    TimeLimitOption,
    at_least,
    bound_text,
    note,
    positive,
    read_instance,
    seconds,
    table,
    with_spare,
    write_json,
    write_out,
)

if TYPE_CHECKING:
    from headroom.formulations.types import Bound, SolveParams
    from headroom.instances.base import Instance
    from headroom.interrupts import Watch

HELP = """Prove lower bounds, without any plan.

A bound is a closed form, or carries a certificate that needs no solver to check. Exit code 1: a bound proves that no plan exists.
"""
BOUNDS_SCHEMA = "headroom/bounds/1"
Timed = list[tuple["Bound", float]]


def add_bound_commands(app: typer.Typer) -> None:
    """Register `headroom bound` on the app."""
    app.command("bound", help=HELP)(bound_command)


def bound_command(
    x: InstanceArgument,
    method: Annotated[str, typer.Option("--method", metavar="M", help="Bound (see headroom families), or all.")] = "all",
    time_limit: TimeLimitOption = None,
    threads: ThreadsOption = 1,
    spare: SpareOption = None,
    min_holders: HoldersOption = None,
    max_moves: MovesOption = None,
    as_json: JsonOption = False,
) -> int:
    """See HELP."""
    from headroom.api import bound_names
    from headroom.formulations.types import SolveParams
    from headroom.interrupts import leave, signals

    params = SolveParams(time_limit_s=positive(time_limit, "--time-limit"), threads=at_least(threads, 1, "--threads"))
    given = read_instance(x)
    instance, options = with_spare(given, spare, min_holders, max_moves)
    names = bound_names(instance, method)
    found: Timed = []
    watch: Watch[None] = signals.watch(lambda watch: _compute(watch, instance, names, params, found))
    ended = watch.wait()
    if ended:
        watch.result()
    if found or signals.exit_code is None:
        _print(given, options, params, list(found), as_json)
    if signals.exit_code is not None:
        note("interrupted; bounds that were not finished are missing or weaker")
        if not ended:
            leave(signals.exit_code)
    signals.release()
    return signals.exit_code or int(any(bound.value == math.inf for bound, _ in found))


def _compute(watch: Watch[None], instance: Instance, names: list[str], params: SolveParams, found: Timed) -> None:
    from headroom.formulations.progress import Progress
    from headroom.run import family_of

    for name in names:
        progress = Progress(params)
        watch.follow(progress)
        if progress.interrupted:
            return
        found.append((family_of(instance).bounds[name].load()(instance, params, progress), progress.elapsed_s))


def _print(given: Instance, options: dict[str, Any], params: SolveParams, found: Timed, as_json: bool) -> None:
    from headroom.describe import unit
    from headroom.documents import parameters_of
    from headroom.formulations.types import best_bound

    found = sorted(found, key=lambda item: -item[0].value)
    if not as_json:
        rows = [[bound.method, bound_text(bound.value), bound.proof.replace("_", " "), seconds(runtime)] for bound, runtime in found]
        write_out(table(("bound", f"value{unit(given)}", "proof", "runtime"), rows, (f"value{unit(given)}", "runtime")))
        return
    import headroom

    bounds = tuple(bound for bound, _ in found)
    best, certified = best_bound(bounds, False), best_bound(bounds, True)
    write_json(
        {
            "schema": BOUNDS_SCHEMA,
            "family": given.family,
            "instance": {"name": given.name, "sha256": given.digest()},
            "result": {
                "status": "infeasible" if best is not None and best.value == math.inf else "unknown",
                "bound": -math.inf if best is None else best.value,
                "bound_method": None if best is None else best.method,
                "proof": None if best is None else best.proof,
                "certified_bound": -math.inf if certified is None else certified.value,
            },
            "bounds": [bound.document() | {"runtime_s": runtime} for bound, runtime in found],
            "provenance": {"headroom": headroom.__version__, "parameters": parameters_of(params) | options},
        }
    )
