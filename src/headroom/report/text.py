"""Text of the page: everything that comes from a table or a file is escaped here, and numbers are said for people."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

LEAST_GAP = 1e-6
"""What counts as no gap; `headroom.formulations.tolerances.OPTIMALITY_GAP`."""
NOTHING = "–"
ACRONYMS = ("gpu", "kv")


def escape(value: object) -> str:
    """Text that stays text, inside elements and quoted attributes; control and direction characters are shown, not obeyed."""
    return html.escape("".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in str(value)), quote=True)


def percent(gap: float | None) -> str:
    """A gap (a fraction) as a percentage, three figures."""
    if gap is None or not math.isfinite(gap):
        return NOTHING
    if abs(gap) <= LEAST_GAP:
        return "0 %"
    return f"{100 * gap:.3g} %"


def share(part: int, whole: int) -> str:
    """How many of how many; 100 % and 0 % only where it is all or nothing."""
    if whole == 0:
        return NOTHING
    if part in (0, whole):
        return "100 %" if part else "0 %"
    return f"{min(max(100 * part / whole, 0.1), 99.9):.3g} %"


def seconds(value: float | None) -> str:
    """A time with the unit that suits it."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for unit, scale in (("µs", 1e-6), ("ms", 1e-3)):
        if value < 1000 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"


def number(value: float | None) -> str:
    """A number, six figures."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "no plan exists" if value > 0 else NOTHING
    return f"{value:,.0f}" if abs(value) >= 1e5 and value == round(value) else f"{value:.6g}"


def several(count: int, one: str, many: str | None = None) -> str:
    """`3 runs`, `1 run`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(items: Iterable[object], most: int = 8) -> str:
    """The items, escaped; of more than `most` so many are named and the rest counted."""
    known = [str(item) for item in items]
    shown = ", ".join(escape(item) for item in known[:most])
    return shown + (f" and {len(known) - most:,} more" if len(known) > most else "")


def spoken(family: str) -> str:
    """`gpu_selection` as words, escaped."""
    return escape(" ".join(word.upper() if word in ACRONYMS else word for word in family.split("_")))


def heading(family: str) -> str:
    """The same with a capital."""
    said = spoken(family)
    return said[:1].upper() + said[1:]
