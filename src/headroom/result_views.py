"""A result as a notebook shows it: its figures, and its plan drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from headroom.instances.errors import InputError
from headroom.instances.html import table

if TYPE_CHECKING:
    from headroom.run import Result


def as_html(result: Result) -> str:
    """What `headroom solve` prints, as a table."""
    from headroom.describe import describe, unit
    from headroom.formulations.tolerances import OPTIMALITY_GAP

    units = unit(result.instance)
    stopped = "" if result.stop == "completed" else f" (stopped: {result.stop.replace('_', ' ')})"
    rows = [("method", result.method), ("status", result.status + stopped)]
    if result.plan is not None:
        rows.append(("objective", f"{result.objective:.6g}{units}"))
    best = result.best_bound
    if best is not None:
        value = "no plan exists" if best.value == math.inf else f"{best.value:.6g}{units}"
        rows.append(("bound", f"{value}, by {best.method} ({best.proof.replace('_', ' ')})"))
    if math.isfinite(result.gap):
        rows.append(("gap", "proved optimal" if result.gap <= OPTIMALITY_GAP else f"{100 * result.gap:.3g} %"))
        if result.certified_gap - result.gap > OPTIMALITY_GAP:
            rows.append(("certified gap", f"{100 * result.certified_gap:.3g} %" if math.isfinite(result.certified_gap) else "none"))
    rows.append(("runtime", f"{result.runtime_s:.3g} s"))
    if result.plan is not None:
        rows += describe(result.instance, result.plan)
    rows += [("note", note) for note in result.notes]
    return table(f"{result.instance.name} ({result.instance.family})", rows)


def plot(result: Result, ax: Any = None) -> Any:
    """Draw the plan as its family is drawn; returns the axes. Raises `InputError` without a plan."""
    if result.plan is None:
        raise InputError("holds no plan; expected one to draw", "result")
    from headroom import plots
    from headroom.report.pictures import drawers

    if ax is None:
        _, ax = plots.figure()
    _, _, draw = next(drawers(result.instance, result.plan))
    draw(ax, result.instance, result.plan)
    return ax


__all__ = ["as_html", "plot"]
