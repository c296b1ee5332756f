"""Plots of comparisons: how far each method is from the best bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headroom.instances.errors import InputError
from headroom.plots.style import INK, PALETTE, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LEAST_GAP = 1e-6
"""What is proved optimal stands here: the gap that counts as none."""


def gap_distribution(ax: Axes, comparison: pd.DataFrame, column: str = "gap") -> None:
    """A dot a run for each method of a comparison (`headroom.compare`), a bar at the median, the best method on top; logarithmic."""
    runs = comparison[comparison["kind"] != "bound"]
    gaps = {str(name): [max(float(gap), LEAST_GAP) for gap in group[column] if math.isfinite(gap)] for name, group in runs.groupby("method")}
    gaps = {name: values for name, values in gaps.items() if values}
    if not gaps:
        raise InputError("has no run with a plan and a bound", "comparison")
    names = sorted(gaps, key=lambda name: (_median(gaps[name]), name))
    for row, name in enumerate(names):
        values = sorted(gaps[name])
        spread = [row + 0.22 * (((k * 0.618) % 1.0) - 0.5) for k in range(len(values))]  # dots on the same gap stand beside each other
        ax.plot([100 * gap for gap in values], spread, "o", color=PALETTE[0], alpha=0.6, markersize=6, markeredgewidth=0)
        middle = 100 * _median(values)
        ax.plot([middle, middle], [row - 0.32, row + 0.32], color=INK, linewidth=2)
        ax.annotate(_percent(middle), (middle, row - 0.36), ha="center", va="bottom", fontsize=9, color=INK)
    from matplotlib.ticker import FuncFormatter

    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlim(left=100 * LEAST_GAP / 2)
    ax.set_yticks(range(len(names)), [f"{name} ({len(gaps[name])})" for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlabel("gap to the best bound [%]; 0.0001 is proved optimal")
    ax.set_title("gap by method, its runs in brackets; bar: median", loc="left", fontsize=11)
    tidy(ax)
    ax.grid(False, axis="y")
    ax.grid(True, axis="x", color="#E5E5E5", linewidth=0.7)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


def _percent(value: float) -> str:
    return "≤0.0001" if value <= 100 * LEAST_GAP * 1.001 else f"{value:.2g}"
