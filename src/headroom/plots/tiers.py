"""Plots of KV-tiering plans: what each tier holds over the steps, and how long each works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headroom.instances.errors import InputError
from headroom.plots.style import INK, PALETTE, fills, legend_below, spoken, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from headroom.formulations.kv_tiering import Replay

FloatArray = npt.NDArray[np.float64]
MOST_COLUMNS = 300
"""Steps drawn one by one; of more, means over equal numbers of consecutive steps are."""


def tier_occupancy(ax: Axes, instance: Any, plan: Any) -> None:
    """Bytes in each tier over the steps, stacked, the fastest at the bottom; dashed, how far a bounded tier could reach.

    More than MOST_COLUMNS steps are drawn as means. Raises `InputError` for an instance of another family or a plan that does not fit.
    """
    done = _replayed(instance, plan)
    edges, mean = _bins(instance.steps)
    names = [tier.name for tier in instance.tiers]
    largest = max(float(done.occupancy_bytes.sum(axis=1).max()), float(instance.capacity[:-1].max(initial=0.0)), 1.0)
    unit, scale = _scale(largest, (("bytes", 1.0), ("KiB", 2.0**10), ("MiB", 2.0**20), ("GiB", 2.0**30), ("TiB", 2.0**40)))
    look = fills(names)
    base = np.zeros(len(edges) - 1)
    handles, labels, highest = [], [], 0.0
    for k, name in enumerate(names):
        top = base + mean(done.occupancy_bytes[:, k]) / scale
        handles.append(ax.stairs(top, edges, baseline=base, fill=True, **(look[name] | {"linewidth": 0.0})))
        room = float(instance.capacity[k]) / scale
        labels.append(f"{name} ({spoken(room)} {unit})" if np.isfinite(room) else name)
        if np.isfinite(room):
            limit = ax.stairs(base + room, edges, baseline=None, color=INK, linewidth=1.1, linestyle=(0, (4, 2)), zorder=3)
            highest = max(highest, float((base + room).max()))
        base = top
    if len(names) > 1:
        handles.append(limit)
        labels.append("capacity")
    # A tier with more room than there are blocks must not press the rest flat.
    held = max(float(base.max()), largest / scale * 1e-9)
    ax.set_ylim(0, 1.05 * (highest if held < highest < 1.6 * held else held))
    ax.set_ylabel(f"held [{unit}]")
    ax.set_title(f"what each tier holds: {instance.name}", loc="left", fontsize=11)
    _steps(ax, instance.steps, len(edges) - 1)
    legend_below(ax, handles, labels, columns=min(4, len(labels)))


def tier_times(ax: Axes, instance: Any, plan: Any) -> None:
    """Seconds that each tier works in each step, a line each; grey up to the step's own time, which is that of the slowest.

    More than MOST_COLUMNS steps are drawn as means: the step's mean may then lie above every tier's. Raises `InputError` as `tier_occupancy` does.
    """
    done = _replayed(instance, plan)
    edges, mean = _bins(instance.steps)
    names = [tier.name for tier in instance.tiers]
    unit, scale = _scale(float(done.step_s.max()), (("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)))
    longest = mean(done.step_s) / scale
    handles: list[Any] = [ax.stairs(longest, edges, fill=True, color="#DDDDDD", linewidth=0.0)]
    middle = (edges[1:] + edges[:-1]) / 2
    waited = np.bincount(done.tier_s.argmax(axis=1), done.step_s, len(names)) / max(float(done.step_s.sum()), 1e-300)
    for k in range(len(names)):
        handles += ax.plot(middle, mean(done.tier_s[:, k]) / scale, color=PALETTE[k % len(PALETTE)], linewidth=1.1)
    labels = ["step", *(f"{name}: waited for {100 * part:.0f}% of the time" for name, part in zip(names, waited, strict=True))]
    ax.set_ylim(0, 1.08 * (float(longest.max()) or 1.0))
    ax.set_ylabel(f"time of a step [{unit}]")
    ax.set_title(f"{spoken(float(done.step_s.sum()))} s in {instance.steps:,} steps: {instance.name}", loc="left", fontsize=11)
    _steps(ax, instance.steps, len(edges) - 1)
    legend_below(ax, handles, labels, columns=min(2, len(labels)))


def _replayed(instance: Any, plan: Any) -> Replay:
    if instance.family != "kv_tiering":
        raise InputError(f"is of family {instance.family}; expected kv_tiering", "instance")
    from headroom.formulations.kv_tiering import TieringPlan, replay

    if not isinstance(plan, TieringPlan):
        raise InputError(f"must have initial_tier and moves, got a {type(plan).__name__}", "plan")
    return replay(instance, plan)


def _bins(steps: int) -> tuple[FloatArray, Any]:
    """Edges of the columns, and the function that makes a value a column from one a step."""
    wide = -(-steps // MOST_COLUMNS)
    first = np.arange(0, steps, wide)
    length = np.diff(np.append(first, steps))
    return np.append(first, steps).astype(np.float64), lambda values: np.add.reduceat(values, first) / length


def _scale(largest: float, units: tuple[tuple[str, float], ...]) -> tuple[str, float]:
    """The largest unit of which there is at least one."""
    return next(((name, size) for name, size in reversed(units) if largest >= size), units[0])


def _steps(ax: Axes, steps: int, columns: int) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_xlim(0, steps)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("step" if columns == steps else f"step (means over {-(-steps // columns)} steps)")
    tidy(ax)
