"""A run's objective and bound over time as one cell of a table: JSON text `[[seconds, objective, bound], …]`, null where there is none yet."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headroom.run import Result

MOST_EVENTS = 40
"""Kept of a run: the first and the last, and of those between them an even choice."""

Event = tuple[float, float | None, float | None]


def trace_of(result: Result) -> str | None:
    """The cell for a run: its trajectory and what it came to, for a last bound often comes with the outcome alone."""
    last = (result.runtime_s, result.objective, result.bound)
    known = result.trajectory
    if any(map(math.isfinite, last[1:])) and (not known or known[-1][1:] != last[1:]):
        known = (*known, last)
    return trace_text(known)


def trace_text(trajectory: Sequence[tuple[float, float, float]]) -> str | None:
    """The cell for a trajectory of (seconds, objective, bound), infinite where unknown; None for one without events. At most MOST_EVENTS are kept."""
    count = len(trajectory)
    if not count:
        return None
    chosen = range(count) if count <= MOST_EVENTS else [round(k * (count - 1) / (MOST_EVENTS - 1)) for k in range(MOST_EVENTS)]
    events = [[round(trajectory[k][0], 6), _finite(trajectory[k][1]), _finite(trajectory[k][2])] for k in chosen]
    return json.dumps(events, separators=(",", ":"))


def read_trace(text: Any) -> tuple[Event, ...]:
    """The events of a cell, in order of time; none of a cell that is not one (whoever wrote the table)."""
    try:
        events = [(float(at), _number(objective), _number(bound)) for at, objective, bound in json.loads(text)]
    except (ValueError, TypeError, RecursionError):
        return ()
    return tuple(sorted((event for event in events if math.isfinite(event[0]) and event[0] >= 0), key=lambda event: event[0]))


def _number(value: Any) -> float | None:
    return None if value is None else _finite(float(value))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
