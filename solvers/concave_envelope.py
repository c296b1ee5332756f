"""The minimum of unknown lines on an interval, found by asking an oracle at few points: parametric search by supporting lines.

C(v) = min over plans j of a_j + b_j v is concave and piecewise linear in v. A solve at v yields a plan, hence a line that is an upper bound on C
*everywhere*, and a lower bound on C(v). The envelope keeps, on [least, most]:

    upper(v) = min over the lines known                     >= C(v), because each line belongs to a plan
    lower(v) = the highest chord over v between bounds at two points solved
                                                             <= C(v), because C is concave:
               C((1-t) v1 + t v2) >= (1-t) C(v1) + t C(v2) >= (1-t) L1 + t L2

Between two neighbouring points `upper` is concave and `lower` linear, so upper - lower is largest at a vertex of `upper`: the intersection of two
supporting lines, and there the next question is asked. If the answer lies on the lines, the vertex is a breakpoint of C; if it lies below, its
line is new. On a piece where no vertex is left open, upper and lower are linear between the points solved, so their ratio is monotone there and the
gap is largest at an end: a plan that is optimal at both ends of an interval is optimal inside. With k pieces at most 2k + 1 questions are asked
when the answers are exact (each finds a line or closes a vertex).

Source: Eisner and Severance, Mathematical techniques for efficient record segmentation in large shared databases, J. ACM 23(4), 1976,
doi 10.1145/321978.321982.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from headroom.formulations.tolerances import CONTRADICTION, OPTIMALITY_GAP, relative_gap

SAME_PLACE = 1e-12
"""Points nearer than this, relative to the interval's larger end, are one point."""


@dataclass(frozen=True)
class Line:
    """A plan's objective over the interval: intercept + slope · v. `key` is the plan, in whatever form the caller keeps it."""

    intercept: float
    slope: float
    key: Any = None

    def at(self, v: float) -> float:
        return self.intercept + self.slope * v


@dataclass(frozen=True)
class Piece:
    """A stretch [start, end] on which `line` is the least line known; `gap` is the largest relative distance to the lower bound on it."""

    start: float
    end: float
    line: Line
    gap: float


class Envelope:
    """What is known of C on [least, most]."""

    def __init__(self, least: float, most: float, tolerance: float = OPTIMALITY_GAP) -> None:
        self.least, self.most, self.tolerance = least, most, tolerance
        self.lines: list[Line] = []
        self._at: list[float] = []
        self._bound: dict[float, float] = {}

    def add(self, v: float, bound: float, line: Line | None) -> None:
        """What a solve at v says: a lower bound on C(v) (-inf: none) and the line of its plan (None: no plan)."""
        if v not in self._bound:
            self._at.insert(bisect_left(self._at, v), v)
        self._bound[v] = max(bound, self._bound.get(v, -math.inf))
        if line is not None and all((line.slope, line.intercept) != (other.slope, other.intercept) for other in self.lines):
            self.lines.append(line)

    def best(self, v: float) -> Line | None:
        """The least line at v; of equal ones the flattest."""
        return min(self.lines, key=lambda line: (line.at(v), line.slope), default=None)

    def upper(self, v: float) -> float:
        """+inf without a plan."""
        line = self.best(v)
        return math.inf if line is None else line.at(v)

    def lower(self, v: float) -> float:
        """The highest chord between bounds at v, or the bound there; -inf outside of what was solved."""
        hull = self._hull()
        place = bisect_left(hull, v, key=lambda point: point[0])
        if place < len(hull) and hull[place][0] == v:
            return hull[place][1]
        if place in (0, len(hull)):
            return -math.inf
        (left, low), (right, high) = hull[place - 1], hull[place]
        part = (v - left) / (right - left)
        return (1 - part) * low + part * high

    def _hull(self) -> list[tuple[float, float]]:
        """The bounds that no chord between two others exceeds, from left to right: the least concave function above all of them."""
        hull: list[tuple[float, float]] = []
        for v in self._at:
            bound = self._bound[v]
            if bound == -math.inf:
                continue
            # A bound of +inf says that no plan exists at any value: chords with it are +inf, or itself.
            while len(hull) > 1 and _under(hull[-2], hull[-1], (v, bound)):
                hull.pop()
            hull.append((v, bound))
        return hull

    def gap(self, v: float) -> float:
        """Relative gap between upper and lower at v."""
        return relative_gap(self.upper(v), self.lower(v))

    def question(self) -> float | None:
        """Where to solve next: an end of the interval, else the vertex with the largest gap; None when every gap is within the tolerance."""
        for end in (self.least, self.most):
            if end not in self._bound:
                return end
        if not self.lines:
            return None
        open_vertices = [(self.gap(v), v) for v in self._vertices() if not self._solved_near(v)]
        gap, v = max(open_vertices, default=(0.0, math.nan))
        return v if gap > self.tolerance else None

    def pieces(self) -> list[Piece]:
        """The least lines from `least` to `most`. Lines that would save less than the tolerance on their stretch are left out."""
        if not self.lines:
            return []
        chain = self._chain(self._worthwhile())
        ends = [*(start for start, _ in chain[1:]), self.most]
        found = []
        for (start, line), end in zip(chain, ends, strict=True):
            inside = [v for v in self._at if start < v < end]
            gap = max(relative_gap(line.at(v), self.lower(v)) for v in (start, *inside, end))
            found.append(Piece(start, end, line, gap))
        return found

    def _worthwhile(self) -> list[Line]:
        """The lines of the envelope, without those that only shave a trace off their neighbours at a vertex (answers are exact to a tolerance)."""
        kept = [line for _, line in self._chain(self.lines)]
        for line in list(kept):
            others = [other for other in kept if other is not line]
            if not others:
                break
            at = [start for start, _ in self._chain(others)] + [self.most]
            if all(min(other.at(v) for other in others) - line.at(v) <= 0.1 * self.tolerance * abs(line.at(v)) for v in at):
                kept = others
        return kept

    def _solved_near(self, v: float) -> bool:
        place = bisect_left(self._at, v)
        margin = SAME_PLACE * max(abs(self.most), 1e-300)
        return any(abs(self._at[k] - v) <= margin for k in (place - 1, place) if 0 <= k < len(self._at))

    def _vertices(self) -> list[float]:
        return [start for start, _ in self._chain(self.lines)[1:]]

    def _chain(self, lines: list[Line]) -> list[tuple[float, Line]]:
        """(start, line) of the lower envelope of `lines` on [least, most], from left to right: slopes fall. O(lines²)."""
        if not lines:
            return []
        v = self.least
        low = min(line.at(v) for line in lines)
        line = min((item for item in lines if item.at(v) <= low + CONTRADICTION * 1e-3 * abs(low)), key=lambda item: (item.slope, item.intercept))
        chain = [(v, line)]
        while True:
            crossing = [((other.intercept - line.intercept) / (line.slope - other.slope), other) for other in lines if other.slope < line.slope]
            ahead = [(max(at, v), other) for at, other in crossing if at < self.most]
            if not ahead:
                return chain
            v, line = min(ahead, key=lambda item: (item[0], item[1].slope))
            if v <= chain[-1][0]:
                chain[-1] = (chain[-1][0], line)
            else:
                chain.append((v, line))


def _under(left: tuple[float, float], point: tuple[float, float], right: tuple[float, float]) -> bool:
    """Whether a point lies on or below the chord between its neighbours."""
    if not all(math.isfinite(bound) for _, bound in (left, point, right)):
        return False
    part = (point[0] - left[0]) / (right[0] - left[0])
    return point[1] <= (1 - part) * left[1] + part * right[1]


__all__ = ["Envelope", "Line", "Piece"]
