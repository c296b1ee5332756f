"""`headroom demo`: the main job on the bundled instance of each family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headroom.cli_common import bound_text, note, objective_text, percent, seconds, table, without_plan, write_out

if TYPE_CHECKING:
    from headroom.formulations.types import SolveParams
    from headroom.instances.base import Instance
    from headroom.run import Result

DEMO_HELP = """Solve a bundled instance of every family.

Compares with heuristics and bounds, and verifies the plan; takes under a minute.
"""
SEED = 0
TIME_LIMIT_S = 20.0
"""For one exact method on one family; the bundled instances need far less on an ordinary machine."""


def demo_command() -> int:
    """See DEMO_HELP."""
    from headroom.interrupts import leave, signals
    from headroom.registry import FAMILIES

    verified = True
    for family in FAMILIES.values():
        import numpy as np

        from headroom.registry import load

        instance: Instance = load(family.preset)(family.demo_preset, np.random.default_rng(SEED), {})
        write_out(f"{family.name}: {family.question}?\ninstance {instance.name} (preset {family.demo_preset}, seed {SEED})\n\n")
        ok, alive = _demo(instance)
        verified = verified and ok
        if signals.exit_code is not None:
            note("interrupted")
            if alive:
                leave(signals.exit_code)
            return signals.exit_code
        signals.release()
    return 0 if verified else 1


def _demo(instance: Instance) -> tuple[bool, bool]:
    """Print one family's part: whether its plan was verified, and whether a thread had to be abandoned."""
    from headroom.cli_solve import run_watched
    from headroom.describe import describe, unit
    from headroom.formulations.types import SolveParams
    from headroom.interrupts import signals
    from headroom.run import family_of, resolve_method
    from headroom.verify import verify

    params = SolveParams(seed=SEED, time_limit_s=TIME_LIMIT_S)
    names = [resolve_method(instance, "auto")[0]]
    names += [name for name, entry in family_of(instance).methods_for(instance).items() if entry.kind != "exact" and name not in names]
    results: list[Result] = []
    for name in names:
        result, failure, alive = run_watched(instance, name, params)
        if failure is not None:
            raise failure
        if result is not None:
            results.append(result)
        if signals.exit_code is not None:
            return False, alive
    best = results[0]
    bounds = _bounds(instance, params)
    certified = max([best.certified_bound, *(value for _, value, _ in bounds)])
    write_out(_methods_table(instance, results, certified) + "\n" + _bounds_table(instance, best, bounds) + "\n")
    report = verify(instance, best)
    for name, value in describe(instance, best.plan) if best.plan is not None else ():
        write_out(f"{name:5}  {value}\n")
    verdict = "verified without a solver" if report.verified else f"NOT verified: {'; '.join(report.problems)}"
    write_out(f"plan   {objective_text(report.objective)}{unit(instance)}, gap {percent(report.certified_gap)}, {verdict}\n\n")
    return report.verified, False


def _bounds(instance: Instance, params: SolveParams) -> list[tuple[str, float, str]]:
    from headroom.api import bound

    return [(item.method, item.value, item.proof) for item in bound(instance, params=params)]


def _methods_table(instance: Instance, results: list[Result], certified: float) -> str:
    from headroom.describe import unit
    from headroom.formulations.tolerances import relative_gap

    heading = f"objective{unit(instance)}"
    silent = [item for item in results[1:] if item.plan is None and item.notes]
    ranked = sorted((item for item in results if item not in silent), key=lambda result: (result.objective, result.runtime_s))
    rows = [
        [item.method, objective_text(item.objective), percent(relative_gap(item.objective, certified)), item.status, seconds(item.runtime_s)]
        for item in ranked
    ]
    text = table(("method", heading, "gap to bound", "status", "runtime"), rows, (heading, "gap to bound", "runtime"))
    return text + without_plan([(item.method, item.notes[0]) for item in silent])


def _bounds_table(instance: Instance, best: Result, bounds: list[tuple[str, float, str]]) -> str:
    from headroom.describe import unit
    from headroom.formulations.tolerances import relative_gap

    heading = f"value{unit(instance)}"
    known = {item.method: (item.method, item.value, item.proof) for item in best.bounds} | {item[0]: item for item in bounds}
    rows = [
        [name, bound_text(value), percent(relative_gap(best.objective, value)), proof.replace("_", " ")]
        for name, value, proof in sorted(known.values(), key=lambda item: -item[1])
    ]
    return table(("bound", heading, "below best plan", "proof"), rows, (heading, "below best plan"))
