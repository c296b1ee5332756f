"""Plots of GPU-selection plans: the fleet of any mode, and a fleet over epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headroom.instances.errors import InputError
from headroom.plots.style import INK, fills, legend_below, spoken, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def fleet(ax: Axes, instance: Any, plan: Any) -> None:
    """A bar for each type in use: its share of the cost, with the number of replicas; over epochs their mean."""
    from headroom.describe import unit
    from headroom.registry import load
    from headroom.run import family_of

    if instance.family != "gpu_selection":
        raise InputError(f"is of family {instance.family}; expected gpu_selection", "instance")
    from headroom.solvers.gpu_selection_sweeps import fleet as replicas_of

    evaluation = load(family_of(instance).evaluate)(instance, plan)
    held = replicas_of(instance, plan)
    kinds = ("rent ", "starts ") if instance.mode == "epochs" else ("",)
    cost = {name: sum(evaluation.parts.get(kind + name, 0.0) for kind in kinds) for name in held}
    names = sorted(held, key=lambda name: -cost[name])
    look = fills([gpu.name for gpu in instance.gpus])
    for row, name in enumerate(names):
        ax.barh(row, cost[name], 0.7, **look[name])
        count = f"{spoken(held[name])} replica{'s' if held[name] != 1 else ''}" + (" in the mean" if instance.mode == "epochs" else "")
        ax.text(cost[name], row, f"  {spoken(cost[name])},  {count}", va="center", fontsize=9, color=INK)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.5 * max(cost.values(), default=1.0) or 1.0)
    ax.set_xlabel(f"cost [{unit(instance).strip()}]")
    ax.set_title(f"{spoken(evaluation.objective)}{unit(instance)}: {instance.name}", loc="left", fontsize=11)
    tidy(ax)
    ax.grid(False, axis="y")


def epochs(ax: Axes, instance: Any, plan: Any) -> None:
    """Replicas rented over time, stacked by type, with the total rate on an axis of its own (right)."""
    if getattr(instance, "epochs", None) is None:
        raise InputError("has no epochs to draw; expected an instance whose rates change over time", "instance")
    import numpy as np

    steps = len(instance.epochs.rate_per_s)
    hours = np.arange(steps + 1) * instance.epochs.epoch_s / 3600
    names = [gpu.name for gpu in instance.gpus if any(count.get(gpu.name, 0) for count in plan.count)]
    look = fills([gpu.name for gpu in instance.gpus])
    base, handles = np.zeros(steps), []
    for name in names:
        top = base + np.array([count.get(name, 0) for count in plan.count], dtype=np.float64)
        handles.append(ax.stairs(top, hours, baseline=base, fill=True, **(look[name] | {"linewidth": 0.0})))
        base = top
    counted = np.array([item.phase != "decode" for item in instance.work])
    rate = instance.epochs.rate_per_s[:, counted].sum(axis=1)
    load = ax.twinx()
    handles.append(load.stairs(rate, hours, color=INK, linewidth=1.4, baseline=None))
    load.set_ylim(bottom=0)
    load.set_ylabel("load [requests/s]")
    load.spines[["top"]].set_visible(False)
    ax.set_xlim(hours[0], hours[-1])
    ax.set_ylim(0, 1.05 * max(float(base.max(initial=0.0)), 1.0))
    ax.set_xlabel("time [h]")
    ax.set_ylabel("fleet [replicas]")
    ax.set_title(f"fleet over time: {instance.name}", loc="left", fontsize=11)
    tidy(ax)
    ax.spines["right"].set_visible(True)
    legend_below(ax, handles, [*names, "load"], columns=min(5, len(names) + 1))

