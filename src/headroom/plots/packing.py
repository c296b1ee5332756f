"""Plots of packings: the slots of a run over time, how full bins are, how far methods are from the bound, what more slots bring."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headroom.instances.errors import InputError
from headroom.plots.style import FAINT, INK, PALETTE, legend_below, spoken, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from headroom.run import Result

FloatArray = npt.NDArray[np.float64]
MOST_SLOTS = 400
"""Rows of a Gantt chart: of more slots so many are drawn, evenly chosen."""
FEW_SLOTS = 40
"""Up to so many rows have a gap between them; of more it would hide the bars."""
MOST_HAIRLINES = 150
DECODE = ("#A9CFE8", "#D3E6F3")
"""Light, so that prefills thinner than a pixel show for what they are; two, so that a slot's requests can be told apart."""
IDLE = PALETTE[1]
LEAST_GAP = 1e-6
MARKERS, LINES = "osD^vPX", ("-", "--", "-.", ":")


def slot_gantt(ax: Axes, instance: Any, plan: Any) -> None:
    """Who is in which slot when: a light bar a request from its first decode step to its last, in two shades by turns; dark, prefills; orange, idle.

    A prefill is as wide as it takes, where there are few at least a hairline. Of more than MOST_SLOTS slots so many are drawn. No colour is a scale:
    runs side by side can be compared.
    Raises `InputError` for an instance of another family or mode, and for a plan that does not fit or whose prefills take infinite time.
    """
    from matplotlib.collections import PatchCollection, PolyCollection
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    _of_mode(instance, "makespan")
    from headroom.export.request_packing import finish_s
    from headroom.formulations.request_packing import StagedPlan, evaluate, replay

    if not isinstance(plan, StagedPlan):
        raise InputError(f"must have stages, got a {type(plan).__name__}", "plan")
    run = replay(instance, plan)
    if not np.isfinite(run.prefill_s).all():
        raise InputError("has a stage above the last prefill level; expected a plan that can be run", "plan")
    total_s = evaluate(instance, plan).objective
    rows = np.unique(np.linspace(0, instance.slots - 1, min(instance.slots, MOST_SLOTS)).round().astype(np.int64))
    row_of = np.full(instance.slots, -1)
    row_of[rows] = np.arange(len(rows))
    drawn = np.flatnonzero((run.stage >= 0) & (row_of[run.slot] >= 0))
    begin = run.start_s[run.stage[drawn]] + run.prefill_s[run.stage[drawn]]
    end = np.minimum(finish_s(instance, run)[drawn], total_s)
    few = len(rows) <= FEW_SLOTS
    half = 0.42 if few else 0.5
    y = row_of[run.slot[drawn]]
    # Without edges and smoothing where rows are thin: both would shine through between neighbours.
    thin: dict[str, Any] = {"linewidths": 0.0, "antialiaseds": False}
    edge: dict[str, Any] = {"edgecolors": "white", "linewidths": 0.6} if few else thin
    idle = [Rectangle((0, k - half), total_s, 2 * half) for k in range(len(rows))]
    ax.add_collection(PatchCollection(idle, facecolor=IDLE, zorder=0, label="idle", **thin), autolim=False)
    bars = np.stack([np.stack([begin, y - half], 1), np.stack([end, y - half], 1), np.stack([end, y + half], 1), np.stack([begin, y + half], 1)], 1)
    shade = [DECODE[turn % 2] for turn in _turns(y, begin)]
    ax.add_collection(PolyCollection(list(bars), facecolors=shade, zorder=1, label="decode", **edge), autolim=False)
    # Over the bars: who is in a slot during a later stage's prefill waits. A hairline keeps short ones visible; of many it would blacken the picture.
    stops = [Rectangle((s, -0.5), w, len(rows)) for s, w in zip(run.start_s.tolist(), run.prefill_s.tolist(), strict=True) if w > 0]
    if stops:
        line = 0.3 if len(stops) <= MOST_HAIRLINES else 0.0
        ax.add_collection(PatchCollection(stops, facecolor=INK, edgecolor=INK, linewidth=line, snap=False, zorder=2, label="prefill"), autolim=False)
    ax.set_xlim(0, total_s or 1.0)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ticks = [int(tick) for tick in MaxNLocator(8, integer=True).tick_values(0, len(rows) - 1) if 0 <= tick < len(rows)]
    ax.set_yticks(ticks, [f"{rows[tick]:,}" for tick in ticks])
    ax.set_ylabel("slot" if len(rows) == instance.slots else f"slot ({len(rows):,} of {instance.slots:,})")
    ax.set_xlabel("time [s]")
    ax.set_title(f"{spoken(total_s)} s, {len(plan.stages):,} stages: {instance.name}", loc="left", fontsize=11)
    tidy(ax)
    ax.grid(False)
    shown = [("decode, a bar a request", DECODE[0]), ("idle slot", IDLE)] + ([("prefill: nothing decodes", INK)] if stops else [])
    legend_below(ax, [Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor=FAINT) for _, colour in shown], [said for said, _ in shown], columns=3)


def _turns(row: npt.NDArray[np.int64], begin: FloatArray) -> npt.NDArray[np.int64]:
    """How many bars begin before each in its row [bars]."""
    order = np.lexsort((begin, row))
    first = np.searchsorted(row[order], row[order])
    turn = np.empty(len(row), np.int64)
    turn[order] = np.arange(len(row)) - first
    return turn


def bin_fill(ax: Axes, instance: Any, plan: Any) -> None:
    """Tokens in each bin, the fullest first, below the capacity; what groups and padding take stands on top.

    Raises `InputError` for an instance of another family or mode, and for a plan that does not fit.
    """
    _of_mode(instance, "bins")
    from headroom.export.request_packing import group_parts
    from headroom.formulations.request_packing import BinPlan, bin_loads

    if not isinstance(plan, BinPlan):
        raise InputError(f"must have bin, got a {type(plan).__name__}", "plan")
    used, load = bin_loads(instance, plan)
    row = np.searchsorted(used, plan.bin)
    sizes, overhead = np.zeros(len(used), np.int64), np.zeros(len(used), np.int64)
    np.add.at(sizes, row, instance.size)
    bins, group, _, _ = group_parts(instance, plan)
    np.add.at(overhead, np.searchsorted(used, bins), instance.overhead[group])
    order = np.argsort(-load, kind="stable")
    parts = [("requests", sizes, PALETTE[0])]
    parts += [(said, part, colour) for said, part, colour in (
        ("shared prefixes, adapters", overhead, PALETTE[1]), ("padding", load - sizes - overhead, PALETTE[3]),
    ) if part.any()]  # fmt: skip
    edges = np.arange(len(used) + 1) + 0.5
    base = np.zeros(len(used))
    handles, labels = [], []
    for said, part, colour in parts:
        top = base + part[order]
        handles.append(ax.stairs(top, edges, baseline=base, fill=True, color=colour, linewidth=0.0))
        labels.append(f"{said} ({spoken(float(part.sum()))} tokens)")
        base = top
    limit = ax.axhline(instance.capacity_tokens, color=INK, linewidth=1.1, linestyle=(0, (4, 2)))
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.set_xlim(0.5, len(used) + 0.5)
    ax.set_ylim(0, 1.08 * max(float(load.max()), instance.capacity_tokens))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: spoken(value)))
    ax.set_xlabel("bin, the fullest first")
    ax.set_ylabel("load [tokens]")
    mean = 100 * float(load.sum()) / (len(load) * instance.capacity_tokens)
    ax.set_title(f"{len(used):,} bins, {_percent(mean)} full: {instance.name}", loc="left", fontsize=11)
    tidy(ax)
    legend_below(ax, [*handles, limit], [*labels, f"capacity ({spoken(instance.capacity_tokens)})"], columns=2)


def gap_bars(ax: Axes, results: Iterable[Result]) -> None:
    """How far each result's objective is above the best certified bound of them all [%], the nearest on top; results of one instance.

    Raises `InputError` for results of several instances, and when none has a plan or none a bound.
    """
    from headroom.describe import unit

    results = list(results)
    if len({result.instance.digest() for result in results}) > 1:
        raise InputError("must be of one instance, got several", "results")
    bound = max((result.certified_bound for result in results), default=-math.inf)
    planned = sorted((result for result in results if math.isfinite(result.objective)), key=lambda result: (result.objective, result.method))
    if not planned or not math.isfinite(bound) or bound <= 0:
        raise InputError("must hold a plan and a certified bound above 0, got none", "results")
    over = [100 * (result.objective / bound - 1) for result in planned]
    ax.barh(range(len(over)), over, color=PALETTE[0], height=0.7)
    widest = max([*over, 1e-3])
    for row, (gap, result) in enumerate(zip(over, planned, strict=True)):
        said = "optimal" if gap <= 100 * LEAST_GAP else f"{gap:.2g} %" if gap < 10 else f"{gap:.3g} %"
        said += f"  ({spoken(result.objective)}{unit(result.instance)})"
        ax.annotate(said, (max(gap, 0.0), row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
    ax.set_yticks(range(len(over)), [result.method for result in planned])
    ax.set_ylim(len(over) - 0.4, -0.6)
    ax.set_xlim(0, 1.42 * widest)  # room for the last label
    ax.set_xlabel("over the certified bound [%]")
    instance = planned[0].instance
    ax.set_title(f"over the bound of {spoken(bound)}{unit(instance)}: {instance.name}", loc="left", fontsize=11)
    tidy(ax)
    ax.grid(False, axis="y")
    ax.grid(True, axis="x", color="#E5E5E5", linewidth=0.7)


def slot_utilisation(ax: Axes, results: Iterable[Result]) -> None:
    """The share of slot-steps that make a token [%] against the number of slots, a line a method; results of instances that differ in `slots`.

    Raises `InputError` for an instance of another family or mode, and when no result has a plan.
    """
    from headroom.describe_request_packing import facts

    found: dict[str, dict[int, float]] = {}
    for result in results:
        instance: Any = result.instance
        _of_mode(instance, "makespan")
        plan: Any = result.plan
        if plan is not None and (share := facts(instance, plan)["slot_utilisation"]) is not None:
            found.setdefault(result.method, {})[instance.slots] = 100 * share
    if not found:
        raise InputError("must hold a plan, got none", "results")
    # The same points drawn twice must both be seen: each method has a marker and a line of its own, hollow, and what is drawn later is smaller.
    for k, (method, points) in enumerate(found.items()):
        slots = sorted(points)
        colour, small = PALETTE[k % (len(PALETTE) - 1)], k / max(len(found) - 1, 1)
        style: dict[str, Any] = {"marker": MARKERS[k % len(MARKERS)], "linestyle": LINES[k % len(LINES)]}
        style |= {"color": colour, "linewidth": 3 - 1.4 * small, "markersize": 11 - 6 * small, "markerfacecolor": "white", "markeredgewidth": 1.6}
        ax.plot(slots, [points[n] for n in slots], label=method, **style)
    every = sorted({n for points in found.values() for n in points})
    ax.set_xscale("log", base=2)
    ax.set_xticks(every, [f"{n:,}" for n in every])
    ax.set_xticks([], minor=True)
    ax.set_ylim(0, 104)
    ax.set_xlabel("slots")
    ax.set_ylabel("slot-steps that make a token [%]")
    ax.set_title("how busy the slots are while decoding", loc="left", fontsize=11)
    tidy(ax)
    handles, labels = ax.get_legend_handles_labels()
    legend_below(ax, handles, labels, columns=min(3, len(labels)))


def _of_mode(instance: Any, objective: str) -> None:
    if instance.family != "request_packing":
        raise InputError(f"is of family {instance.family}; expected request_packing", "instance")
    if instance.objective != objective:
        raise InputError(f"has the objective {instance.objective!r}; expected {objective!r}", "instance")


def _percent(value: float) -> str:
    """100 only where it is all."""
    return f"{value:.0f} %" if value in (0, 100) else f"{min(value, 99.9) if value < 100 else value:.1f} %"
