"""Each family's own picture of a plan, drawn by `headroom.plots` and embedded, with what can be rechecked of the plan as its caption."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headroom.instances.base import Instance
from headroom.instances.errors import InputError, shown
from headroom.report.text import NOTHING, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from headroom.verify import Report

MOST_SVG_BYTES = 150_000
"""A drawing with more in it is embedded as PNG: a chart of ten thousand bars is smaller as dots."""
SIZE_IN = (7.0, 4.2)


@dataclass(frozen=True)
class Picture:
    """One drawing: its data URL and what it shows in words."""

    title: str
    url: str
    alternative: str


@dataclass(frozen=True)
class PlanPage:
    """A plan's pictures and its caption as (name, value) lines, not yet escaped."""

    family: str
    name: str
    pictures: tuple[Picture, ...]
    caption: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]


Drawer = Callable[["Axes", Any, Any], None]


def split_pair(text: str) -> tuple[str, str]:
    """`x.json:plan.json` into its two files; where names have colons themselves the split at which both exist. Raises `InputError`."""
    places = [k for k, char in enumerate(text) if char == ":" and 0 < k < len(text) - 1]
    if not places:
        raise InputError(f"must be INSTANCE:PLAN, two files, got {shown(text)}", "--plan")
    for k in places:
        if Path(text[:k]).exists() and Path(text[k + 1 :]).exists():
            return text[:k], text[k + 1 :]
    return text[: places[0]], text[places[0] + 1 :]


def plan_page(instance: Instance | str | Path, plan: Any) -> PlanPage:
    """Recheck a plan and draw it. Raises `InputError` for what cannot be read, does not belong together or holds no plan."""
    from headroom.describe import describe
    from headroom.verify import verify

    source = str(plan) if isinstance(plan, (str, Path)) else "plan"
    found = verify(instance, plan)
    if found.plan is None or found.evaluation is None:
        reason = found.problems[0] if found.problems else "it holds no plan"
        raise InputError(f"cannot be drawn: {reason}", source)
    used, problems = found.instance, list(found.problems)
    if not isinstance(plan, (str, Path)):
        # A plan straight from Python has no document that could claim anything.
        problems = [item for item in problems if not item.startswith("there is no plan")]
    pictures = []
    for title, words, draw in drawers(used, found.plan):
        pictures.append(Picture(title, _drawn(draw, used, found.plan), f"{words} of {used.name}"))
    caption = [*_facts(found), *describe(used, found.plan)]
    return PlanPage(used.family, used.name, tuple(pictures), tuple(caption), tuple(problems))


def _facts(found: Report) -> Iterator[tuple[str, str]]:
    from headroom.describe import unit

    assert found.evaluation is not None
    said_unit = unit(found.instance)
    feasible = "" if found.evaluation.feasible else " (infeasible)"
    yield "objective", f"{number(found.evaluation.objective)}{said_unit}{feasible}"
    best = found.best_certified
    if best is None or not math.isfinite(found.certified_bound):
        yield "bound", NOTHING
    else:
        yield "bound", f"{number(found.certified_bound)}{said_unit} by {best.method}"
        yield "proof", f"{best.proof.replace('_', ' ')}, rechecked when this page was made"
    yield "gap", f"{percent(found.certified_gap)} ({'proved optimal' if found.status == 'optimal' else found.status})"
    solver = [item for item in found.bounds if item.state == "not rechecked" and item.recorded is not None and math.isfinite(item.recorded)]
    if solver:
        highest = max(solver, key=lambda item: item.recorded or -math.inf)
        yield "not rechecked", f"{highest.method} says that nothing is below {number(highest.recorded)}{said_unit}"


def drawers(instance: Any, plan: Any) -> Iterator[tuple[str, str, Drawer]]:
    """(title, what it shows, function) for each picture of the family; none for a family that has no picture."""
    from headroom import plots
    from headroom.run import family_of

    match instance.family, family_of(instance).mode_of(instance):
        case "gpu_selection", "epochs":
            yield "Fleet over time", "Replicas rented over time, stacked by GPU type, with the load", plots.epochs
            yield "Cost by GPU type", "What each GPU type costs and how many replicas are rented", plots.fleet
        case "gpu_selection", _:
            yield "Cost by GPU type", "What each GPU type costs and how many replicas are rented", plots.fleet
        case "expert_placement", _:
            yield "Load of the devices", "Load of each device in each layer, relative to the layer's mean", plots.device_load
        case "kv_tiering", _:
            yield "What the tiers hold", "Bytes in each memory tier over the steps, stacked, with capacities", plots.tier_occupancy
            yield "How long the tiers work", "Seconds that each memory tier works in each step", plots.tier_times
        case "request_packing", "makespan":
            yield "Slots over time", "Which slot decodes whose request when, idle slots, prefills", plots.slot_gantt
        case "request_packing", _:
            yield "How full the bins are", "Tokens in each bin, the fullest first, below the capacity", plots.bin_fill


def _drawn(draw: Drawer, instance: Any, plan: Any) -> str:
    """A data URL: SVG, or PNG where that is smaller by far. The same plan gives the same text."""
    from headroom.plots.files import _drawn as rendered
    from headroom.plots.files import figure

    made, ax = figure(*SIZE_IN)
    draw(ax, instance, plan)
    content, kind = rendered(made, "svg"), "image/svg+xml"
    if len(content) > MOST_SVG_BYTES:
        content, kind = rendered(made, "png"), "image/png"
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
