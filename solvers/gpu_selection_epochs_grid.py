r"""Dynamic programming over whole fleets, on a grid of counts: exact on the full grid, a strong plan in a corridor.

    V_t(m) = rho.m + min over m' of [ V_t-1(m') + rise.(m - m')^+ ]     for m in F_t, else +inf

The minimum over m' separates by type: one pass along each axis (falling is free: a suffix minimum; rising costs rise_g a replica: a prefix
minimum of V - rise m). So an epoch costs O(cells x types), whatever the fleets are. F_t is given by price cuts w.m >= need; if these are only some of
all, the grid's value is still a lower bound.

Each epoch may have its own window of counts (origin [T][G], one width [G] for all): the full grid is the window [0, most].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_stages import Stages

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
ROUND = 1e-12


def _one_type(value: FloatArray, out: FloatArray, outer: int, width: int, inner: int, shift: int, rise: float, may_rise: bool, rent: float) -> None:
    """One axis of the recursion on a flat table [outer][width][inner]: out[j] = rent j + the least over old counts; count j was i = j + shift."""
    infinite = np.inf
    line = np.empty(width)
    for a in range(outer):
        for b in range(inner):
            begin = a * width * inner + b
            least = infinite
            for i in range(width - 1, -1, -1):
                least = min(least, value[begin + i * inner])
                line[i] = least
            for j in range(width):
                i = j + shift
                out[begin + j * inner] = line[0] if i < 0 else (line[i] if i < width else infinite)
            if may_rise:
                least = infinite
                for i in range(width):
                    least = min(least, value[begin + i * inner] - rise * i)
                    line[i] = least
                for j in range(width):
                    i = j + shift
                    if i >= 0:
                        out[begin + j * inner] = min(out[begin + j * inner], line[min(i, width - 1)] + rise * i)
            for j in range(width):
                out[begin + j * inner] += rent * j


@cache
def _compiled() -> Any:
    from headroom.solvers.compiled import compiled

    return compiled(_one_type)


@dataclass
class Grid:
    """`cuts` [K][G] prices w, `need` [K][T]; `origin` [T][G], `width` [G] cells an axis. Memory: a few times the cells of a window.

    `plain`: numpy in place of the compiled pass, which does the same additions in the same order.
    """

    stages: Stages
    cuts: FloatArray
    need: FloatArray
    origin: IntArray
    width: IntArray
    plain: bool = False
    active: list[IntArray] | None = None
    """Which cuts count in each epoch; None: all in all. Fewer make a lower value and less work."""

    def __post_init__(self) -> None:
        types = self.stages.types
        self._along = [np.arange(self.width[g], dtype=np.float64).reshape([-1 if k == g else 1 for k in range(types)]) for g in range(types)]
        # The longest axis is told its least count by the cuts; the others are enumerated.
        self._free = int(np.argmax(self.width))
        self._others = [g for g in range(types) if g != self._free]
        axes = np.meshgrid(*[np.arange(self.width[g], dtype=np.float64) for g in self._others], indexing="ij")
        self._rest = np.stack([axis.ravel() for axis in axes]) if self._others else np.zeros((0, 1))
        self._shape = tuple(int(w) for w in self.width)

    @property
    def cells(self) -> int:
        return math.prod(self._shape)

    def forward(self, t: int, before: FloatArray | None) -> FloatArray:
        """V_t from V_t-1 (None at t = 0)."""
        stages = self.stages
        if t == 0:
            value = self._first()
        else:
            assert before is not None
            value = before
            shift = self.origin[t] - self.origin[t - 1]
            for g in range(stages.types):
                value = self._pass(value, g, int(shift[g]), bool(stages.may_rise[t]))
        here = self.origin[t]
        value = value + float(stages.rent @ here)
        return np.where(self._allowed(t), value, np.inf)

    def _first(self) -> FloatArray:
        stages, here = self.stages, self.origin[0]
        value = np.zeros(self._shape)
        if stages.initial is not None:
            for g in range(stages.types):
                above = here[g] + self._along[g] - stages.initial[g]
                rise = stages.rise[g] * np.maximum(above, 0.0) if stages.may_rise[0] else np.where(above > 0, np.inf, 0.0)
                value = value + rise
        for g in range(stages.types):
            value = value + stages.rent[g] * self._along[g]
        return value

    def _pass(self, value: FloatArray, g: int, shift: int, may_rise: bool) -> FloatArray:
        """Rent, and the min over the old counts of one type: out[j] stands for count origin' + j, value[i] for origin + i, i = j + shift."""
        width = int(self.width[g])
        if not self.plain:
            outer, inner = math.prod(self._shape[:g]), math.prod(self._shape[g + 1 :])
            flat = np.empty(self.cells)
            arguments = (outer, width, inner, shift, float(self.stages.rise[g]), may_rise, float(self.stages.rent[g]))
            _compiled()(np.ascontiguousarray(value).reshape(-1), flat, *arguments)
            return flat.reshape(self._shape)
        falling = np.flip(np.minimum.accumulate(np.flip(value, g), axis=g), g)
        index = np.arange(width) + shift
        out = _shifted(falling, index, g, below=0, above=None)
        if may_rise:
            price = self.stages.rise[g]
            line = price * self._along[g]
            rising = np.minimum.accumulate(value - line, axis=g)
            level = (price * index).reshape(line.shape)
            out = np.minimum(out, _shifted(rising, index, g, below=None, above=width - 1) + level)
        moved: FloatArray = out + self.stages.rent[g] * self._along[g]
        return moved

    def _allowed(self, t: int) -> npt.NDArray[np.bool_]:
        stages, here, free = self.stages, self.origin[t], self._free
        chosen = slice(None) if self.active is None else self.active[t]
        cuts = self.cuts[chosen]
        lacking = (self.need[chosen, t] * (1 - ROUND))[:, None] - cuts[:, self._others] @ (self._rest + here[self._others, None])
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = np.where(cuts[:, free, None] <= 0, np.where(lacking > 0, np.inf, -np.inf), lacking / cuts[:, free, None])
        least = np.maximum(wanted.max(axis=0, initial=-np.inf) - 1e-9 - here[free], stages.least[t, free] - here[free])
        table = least.reshape([self._shape[g] for g in self._others])
        allowed: npt.NDArray[np.bool_] = self._along[free] >= np.expand_dims(table, free)
        for g in range(stages.types):
            count = here[g] + self._along[g]
            allowed = allowed & (count <= stages.most[g]) & (count >= stages.least[t, g])
        for gpus, limit in zip(stages.pool_gpus, stages.pool_limit, strict=True):
            used = float(gpus @ here) + sum(gpus[g] * self._along[g] for g in range(stages.types))
            allowed = allowed & (used <= limit)
        return allowed

    def best(self, stop: object = None) -> tuple[float, IntArray | None]:
        """(least cost, fleets [T][G]); (inf, None) when the windows hold no plan. Recomputes from every sqrt(T)-th table. `stop()`: give up (nan)."""
        steps = self.stages.epochs
        stride = max(1, math.isqrt(steps))
        kept: dict[int, FloatArray] = {}
        value: FloatArray | None = None
        for t in range(steps):
            if callable(stop) and stop():
                return math.nan, None
            value = self.forward(t, value)
            if t % stride == 0:
                kept[t] = value
        assert value is not None
        least = float(value.min())
        if not math.isfinite(least):
            return math.inf, None
        path = np.empty((steps, self.stages.types), dtype=np.int64)
        path[-1] = self.origin[-1] + np.array(np.unravel_index(int(np.argmin(value)), self._shape))
        end = steps - 1
        for begin in sorted(kept, reverse=True):
            tables = [kept[begin]]
            for t in range(begin + 1, end):
                if callable(stop) and stop():
                    return math.nan, None
                tables.append(self.forward(t, tables[-1]))
            for t in range(end - 1, begin - 1, -1):
                path[t] = self._predecessor(tables[t - begin], t, path[t + 1])
            end = begin
        return least, path

    def _predecessor(self, value: FloatArray, t: int, after: IntArray) -> IntArray:
        stages, total = self.stages, value
        for g in range(stages.types):
            above = after[g] - (self.origin[t, g] + self._along[g])
            step = stages.rise[g] * np.maximum(above, 0.0) if stages.may_rise[t + 1] else np.where(above > 0, np.inf, 0.0)
            total = total + step
        found: IntArray = self.origin[t] + np.array(np.unravel_index(int(np.argmin(total)), self._shape))
        return found


def _shifted(value: FloatArray, index: IntArray, axis: int, below: int | None, above: int | None) -> FloatArray:
    """value at `index` along the axis; outside it the entry `below` or `above`, or +inf where that is None."""
    width = value.shape[axis]
    if index[0] == 0:
        return value
    out = np.take(value, np.clip(index, 0, width - 1), axis=axis)
    selector: list[slice | npt.NDArray[np.bool_]] = [slice(None)] * value.ndim
    for outside, entry in ((index < 0, below), (index >= width, above)):
        if entry is None and outside.any():
            selector[axis] = outside
            out[tuple(selector)] = np.inf
    return out
