"""Every tolerance headroom uses, with what it means. Nothing else in the project compares with a literal epsilon of its own."""

from __future__ import annotations

import math

FEASIBILITY = 1e-9
"""Relative amount by which `evaluate` lets a constraint be exceeded (floating-point noise, not slack to plan with)."""

CERTIFICATE_SLACK = 2.1e-9
"""Relative slack that certificates grant to every capacity, so that a bound also holds for each plan that `evaluate` accepts: FEASIBILITY
once for the capacity itself, once for shares that add up to a little less than one, and a tenth for the rounding inside `evaluate`."""

INTEGRALITY = 1e-6
"""How far a solver's integer may be from an integer before it is not rounded but refused."""

OPTIMALITY_GAP = 1e-6
"""A plan is called optimal when its gap is at most this."""

OBJECTIVE_MISMATCH = 1e-6
"""Relative difference between a solver's objective and `evaluate`'s at which `run` raises."""

CONTRADICTION = 1e-8
"""Relative amount by which a bound may exceed a feasible objective before `run` raises: above what FEASIBILITY can explain."""


def relative_gap(objective: float, bound: float) -> float:
    """(objective − bound) / max(|objective|, 1e-12); +inf when either is not finite. Tiny negative gaps, which FEASIBILITY explains, are 0."""
    if not (math.isfinite(objective) and math.isfinite(bound)):
        return math.inf
    gap = (objective - bound) / max(abs(objective), 1e-12)
    return 0.0 if -CONTRADICTION <= gap < 0 else gap
