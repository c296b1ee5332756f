"""Scales and axes of the charts: positions across are percentages of the drawing's width, so that it fills a phone and a desktop alike and its
text keeps its size; positions down are pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headroom.report.text import LEAST_GAP, escape, seconds

OPTIMAL_BAND = 0.07
"""Share of a gap axis, at its low end, for what is proved optimal."""
MOST_TICKS = 5
BESIDE = 0.24
"""Left of this a label would touch the one of the optimal band."""


def place(value: float) -> str:
    """A coordinate, short and the same everywhere."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class LogScale:
    """Decades low…high onto 0…1."""

    low: int
    high: int

    @classmethod
    def over(cls, values: Sequence[float], least: float) -> LogScale:
        """Whole decades around the values; none goes below `least`."""
        known = [max(value, least) for value in values] or [1.0]
        low = math.floor(math.log10(min(known)) + 1e-9)
        high = math.ceil(math.log10(max(known)) - 1e-9)
        return cls(low, max(high, low + 1))

    def at(self, value: float) -> float:
        if value <= 0:
            return 0.0
        return min(max((math.log10(value) - self.low) / (self.high - self.low), 0.0), 1.0)

    def ticks(self) -> list[float]:
        step = math.ceil((self.high - self.low) / MOST_TICKS)
        return [10.0**decade for decade in range(self.low, self.high + 1) if (self.high - decade) % step == 0]


@dataclass(frozen=True)
class GapScale:
    """Gaps onto 0…1: a band for those proved optimal, then decades."""

    log: LogScale
    band: float = OPTIMAL_BAND

    @classmethod
    def over(cls, gaps: Sequence[float]) -> GapScale:
        return cls(LogScale.over([gap for gap in gaps if gap > LEAST_GAP], LEAST_GAP))

    def at(self, gap: float) -> float:
        return self.band / 2 if gap <= LEAST_GAP else self.band + (1 - self.band) * self.log.at(gap)

    def ticks(self) -> list[tuple[float, str]]:
        return [(self.band / 2, "optimal"), *((self.band + (1 - self.band) * self.log.at(tick), f"{100 * tick:.6g} %") for tick in self.log.ticks())]


def across(share: float) -> str:
    """An x coordinate."""
    return f"{place(100 * share)}%"


def line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line class="{name}" x1="{across(x1)}" y1="{place(y1)}" x2="{across(x2)}" y2="{place(y2)}"/>'


def words(x: float, y: float, text: str, name: str = "", anchor: str = "start", dx: float = 0.0) -> str:
    """Text; escaped here."""
    shift = f' dx="{place(dx)}"' if dx else ""
    kind = f' class="{name}"' if name else ""
    return f'<text{kind} x="{across(x)}" y="{place(y)}" text-anchor="{anchor}"{shift}>{escape(text)}</text>'


def dot(x: float, y: float, radius: float, name: str, title: str = "") -> str:
    tip = f"<title>{escape(title)}</title>" if title else ""
    return f'<circle class="{name}" cx="{across(x)}" cy="{place(y)}" r="{place(radius)}">{tip}</circle>'


def drawing(height: float, label: str, parts: Sequence[str], kind: str) -> str:
    """An SVG as wide as what holds it; `label` is what it says to those who do not see it."""
    return f'<svg class="chart {kind}" width="100%" height="{place(height)}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def gap_axis(scale: GapScale, top: float, bottom: float) -> list[str]:
    """Vertical grid lines and their labels below; the middle of a label at an edge would leave the drawing."""
    parts = [f'<rect class="band" x="0" y="{place(top)}" width="{across(scale.band)}" height="{place(bottom - top)}"/>']
    for k, (x, label) in enumerate(scale.ticks()):
        if k:
            parts.append(line(x, top, x, bottom, "grid"))
        if k == 0:
            parts.append(words(0.0, bottom + 16, label, "tick"))
        elif x > BESIDE:
            parts.append(words(x, bottom + 16, label, "tick", "end" if x > 0.95 else "middle"))
    return parts


def time_axis(scale: LogScale, top: float, bottom: float) -> list[str]:
    parts = []
    for tick in scale.ticks():
        x = scale.at(tick)
        parts.append(line(x, top, x, bottom, "grid"))
        anchor = "end" if x > 0.98 else "middle"  # left of the drawing there is room
        parts.append(words(x, bottom + 16, seconds(tick), "tick", anchor))
    return parts


def rising(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high, at most `most`, for a linear axis."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]
