"""Plots of expert placements: how evenly a plan loads the devices, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headroom.instances.errors import InputError
from headroom.plots.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_REACH = 0.05
"""The colours reach at least so far from the mean: a placement that is even to 0.1 % must look even."""


def device_load(ax: Axes, instance: Any, plan: Any) -> None:
    """Load of each device in each layer over the layer's mean, in the scenario that loads the layer least evenly: white, the mean; red, above it;
    blue, below it. A ring marks the busiest device of the least even layer.

    Raises `InputError` for an instance of another family and for a plan that does not fit. O(scenarios · layers · slots).
    """
    if instance.family != "expert_placement":
        raise InputError(f"is of family {instance.family}; expected expert_placement", "instance")
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    from headroom.formulations.expert_placement import device_load as carried
    from headroom.formulations.expert_placement import evaluate

    evaluate(instance, plan)  # says what does not fit
    load = carried(instance, plan)  # [S][L][D]
    mean = load.mean(axis=2, keepdims=True)
    relative = np.divide(load, mean, out=np.ones_like(load), where=mean > 0)
    worst = relative.max(axis=2).argmax(axis=0)
    grid = relative[worst, np.arange(instance.layers)]  # [L][D]
    reach = max(float(np.abs(grid - 1).max()), LEAST_REACH)
    drawn = ax.imshow(grid, aspect="auto", cmap="RdBu_r", vmin=1 - reach, vmax=1 + reach, interpolation="nearest")
    top = np.unravel_index(int(grid.argmax()), grid.shape)
    ax.plot(top[1], top[0], "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.4)
    for boundary in range(instance.devices_per_node, instance.devices, instance.devices_per_node):
        ax.axvline(boundary - 0.5, color=INK, linewidth=0.8)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlim(-0.5, instance.devices - 0.5)
    ax.set_ylim(instance.layers - 0.5, -0.5)
    ax.set_xlabel("device" + (", lines between nodes" if instance.devices_per_node < instance.devices else ""))
    ax.set_ylabel("layer")
    bar = ax.figure.colorbar(drawn, ax=ax, pad=0.02)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    bar.set_label("load over the layer's mean")
    bar.outline.set_visible(False)
    ax.set_title(f"busiest over mean device at most {grid.max():.4g}: {instance.name}", loc="left", fontsize=11)
    ax.spines[["top", "right", "left", "bottom"]].set_visible(False)
