"""Colours that colour-blind readers can tell apart, and the few habits that all plots share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito, Color Universal Design, 2008; without black, and yellow last because it is faint on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
HATCHES = ("", "///", "...", "xxx")
"""When the colours are used up they come again, hatched."""
INK, FAINT, NOTHING = "#222222", "#BBBBBB", "#EEEEEE"
MOST_NAMES = 12
"""Entries of a legend; the rest is said to be there."""


def fills(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Fill properties for each name, in order: a colour, then the colours hatched."""
    found = {}
    for k, name in enumerate(names):
        hatch = HATCHES[(k // len(PALETTE)) % len(HATCHES)]
        found[name] = {"facecolor": PALETTE[k % len(PALETTE)], "hatch": hatch, "edgecolor": "white", "linewidth": 0.6}
    return found


def tidy(ax: Axes) -> None:
    """No box, a faint grid behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, axis="y", color="#E5E5E5", linewidth=0.7)
    ax.set_axisbelow(True)


def spoken(value: float) -> str:
    """A number for a label: four figures, thousands separated."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def fleet_label(fleet: Mapping[str, float]) -> str:
    """`3 × H100 + 1 × A10G`."""
    return " + ".join(f"{spoken(n)} × {name}" for name, n in fleet.items()) or "nothing"


def legend_below(ax: Axes, handles: Sequence[Any], labels: Sequence[str], columns: int = 1, **options: Any) -> None:
    """A legend under the axes, where it hides nothing; what is beyond MOST_NAMES is counted."""
    shown_handles, shown_labels = list(handles[:MOST_NAMES]), list(labels[:MOST_NAMES])
    if len(labels) > MOST_NAMES:
        shown_labels[-1] += f"  (and {len(labels) - MOST_NAMES} more)"
    ax.legend(
        shown_handles, shown_labels, loc="upper left", bbox_to_anchor=(0.0, -0.17), ncols=columns, frameon=False, fontsize=9,
        borderaxespad=0.0, handlelength=1.4, **options,
    )  # fmt: skip
