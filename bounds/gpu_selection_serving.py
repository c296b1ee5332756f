r"""Can these replicas serve these rates, by which shares, and if not, how much is left over and which prices prove it?

One linear program, always feasible, whose matrix never changes, so that only row bounds move from epoch to epoch and the simplex stays warm:

    minimise sum_i z_i   subject to   sum_g y_gi + z_i = r_i,   sum_i y_gi / q_gi <= u m_g,   y, z >= 0       (y, z in requests/s)

z is what cannot be served. Dual prices w_g >= 0 of the capacities with value > 0 prove that the replicas m do not suffice:
sum_i r_i min_g w_g / q_gi > u w.m (Farkas); shares exist if and only if no w does that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from headroom.formulations.tolerances import FEASIBILITY, INTEGRALITY

FloatArray = npt.NDArray[np.float64]
Replicas = npt.NDArray[np.int64] | FloatArray
MOST_NODES = 400
"""Linear programs solved at most to find whole slices for one fleet."""
MOST_ROUNDS = 25
"""Steps of Newton's method for even loads; three or four are usual."""


class Types(Protocol):
    """What can serve what, and how fast: an instance, or what an online policy knows of it."""

    @property
    def can_serve(self) -> npt.NDArray[np.bool_]: ...
    @property
    def throughput_per_s(self) -> FloatArray: ...
    @property
    def max_utilisation(self) -> float: ...
    @property
    def pooled_slices(self) -> int | None: ...


@dataclass(frozen=True)
class Service:
    """What a fleet can do. `share` [G][I]: part of each item's rate served by each type (columns add up to 1 exactly where all is served);
    `unserved_per_s` [I]; `shortfall`: part of all requests left unserved, 0 when everything is; `price` [G]: a Farkas vector w, None when it fits."""

    share: FloatArray
    unserved_per_s: FloatArray
    shortfall: float
    price: FloatArray | None

    @property
    def complete(self) -> bool:
        return self.shortfall == 0.0


class Serving:
    """Serves given rates with given replicas, again and again; types, throughputs, `max_utilisation` and `slices` are the instance's.

    About 0.3 ms a question at 36 items x 4 types when rates move little from one to the next. Answers to the same questions in the same order
    are the same; they do not depend on the instance's rates.
    """

    def __init__(self, instance: Types) -> None:
        from headroom.solvers.linear_program import LinearProgram

        can = instance.can_serve
        throughput = np.where(can, instance.throughput_per_s, 0.0)
        best = throughput.max(axis=0)
        self.utilisation = instance.max_utilisation
        self.slices = instance.pooled_slices
        self.can_serve = can
        self.load = np.where(can, 1.0 / np.where(can, throughput, 1.0), 0.0)
        self._best = np.where(best > 0, best, 1.0)
        """Columns and rows count in replicas of each item's fastest type: numbers near one whatever the rates' units are."""
        gpus, items = can.shape
        self._g, self._i = np.nonzero(can)
        pairs = len(self._g)
        rows = np.concatenate([self._i, items + self._g, np.arange(items)])
        columns = np.concatenate([np.arange(pairs), np.arange(pairs), pairs + np.arange(items)])
        slowness = self._best[self._i] * self.load[self._g, self._i]
        values = np.concatenate([np.ones(pairs), slowness, np.ones(items)])
        cost = np.concatenate([np.zeros(pairs), self._best / self._best.max()])
        self._lower, self._upper = np.zeros(pairs + items), np.full(pairs + items, math.inf)
        self._program = LinearProgram(
            cost,
            sp.csc_matrix((values, (rows, columns)), shape=(items + gpus, pairs + items)),
            np.concatenate([np.zeros(items), np.full(gpus, -math.inf)]),
            np.zeros(items + gpus),
            self._lower,
            self._upper,
        )
        self._memory: FloatArray | None = None

    def shares(self, rate_per_s: FloatArray, serving: Replicas, even: bool = False) -> FloatArray | None:
        """Shares [G][I] by which `serving` [G] replicas carry rates [I]; None when they cannot (or, with slices, when none were found).

        `even`: the highest load relative to capacity is the least possible; otherwise a vertex. Items without load have zero shares.
        """
        if (np.asarray(serving) < 0).any():
            return None  # stopped while others of the type still start: `evaluate` refuses that even without load
        found = self.serve(rate_per_s, serving)
        if not found.complete:
            return None
        if even and self.slices is None:
            return self._even(rate_per_s, np.asarray(serving, dtype=np.float64), found.share)
        return found.share

    def shortfall(self, rate_per_s: FloatArray, serving: Replicas) -> float:
        """The least part of all requests, 0 to 1, that `serving` replicas must leave unserved (with slices: that the found slices leave)."""
        return self.serve(rate_per_s, serving).shortfall

    def price(self, rate_per_s: FloatArray, serving: Replicas) -> FloatArray | None:
        """w [G] >= 0 with sum_i r_i min_g w_g / q_gi > u w.serving, largest entry 1; None when (continuous) shares exist."""
        return self.serve(rate_per_s, serving).price

    def need(self, rate_per_s: FloatArray, price: FloatArray) -> float:
        """sum_i r_i min_g w_g / q_gi: what serving everything costs at least when a replica of g costs w_g; +inf where nothing can serve."""
        unit = np.where(self.can_serve, price[:, None] * self.load, math.inf).min(axis=0)
        loaded = rate_per_s > 0
        return float(rate_per_s[loaded] @ unit[loaded])

    def serve(self, rate_per_s: FloatArray, serving: Replicas) -> Service:
        """As much as can be served, and how. Negative counts serve nothing. Raises RuntimeError when HiGHS fails twice on a feasible program."""
        limit = self.utilisation * np.maximum(np.asarray(serving, dtype=np.float64), 0.0)
        found = self._continuous(rate_per_s, limit)
        if self.slices is None:
            return found
        if found.complete:
            return self._sliced(self.slices, rate_per_s, limit)
        return replace(self._filled(self.slices, rate_per_s, limit, found.share * rate_per_s), price=found.price)

    def _continuous(self, rate: FloatArray, limit: FloatArray) -> Service:
        answer = self._solve(rate, limit)
        if answer is None:
            raise RuntimeError("HiGHS calls a program infeasible that has a solution")
        x, dual = answer
        y = self._requests(x)
        share = self._whole_shares(y, rate, limit)
        if share is not None:
            return Service(share, np.zeros(len(rate)), 0.0, None)
        part = np.where(rate > 0, y / np.where(rate > 0, rate, 1.0), 0.0)
        return self._partial(part, rate, limit, self._separating(rate, limit, dual))

    def _separating(self, rate: FloatArray, limit: FloatArray, dual: FloatArray) -> FloatArray:
        """The duals, largest 1, if they tell that the limits do not suffice; tiny loads are lost in HiGHS' tolerance: then an item that no type left
        can serve tells it, if there is one."""
        most = float(dual.max(initial=0.0))
        price = dual / most if most > 0 else np.ones_like(dual)
        if self.need(rate, price) > float(price @ limit):
            return price
        stranded = np.flatnonzero((rate > 0) & ~(self.can_serve & (limit > 0)[:, None]).any(axis=0))
        return self.can_serve[:, stranded[0]].astype(np.float64) if len(stranded) else price

    def _solve(
        self, rate: FloatArray, limit: FloatArray, lower: FloatArray | None = None, upper: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray] | None:
        """Columns, in replicas of the fastest type, and capacity duals [G]; None when the bounds on columns leave no solution.

        The program is homogeneous: extreme sizes are scaled back.
        """
        most = float(limit.max(initial=0.0))
        scale = most if most > 1e4 or 0 < most < 1e-2 else 1.0
        cover, room = rate / self._best / scale, limit / scale
        lower = self._lower if lower is None else lower / scale
        upper = self._upper if upper is None else upper / scale
        answer = self._program.solve(lower, upper, np.concatenate([cover, np.full(len(limit), -math.inf)]), np.concatenate([cover, room]))
        if answer.status == "infeasible":
            return None
        if answer.x is None or answer.row_dual is None:
            raise RuntimeError(f"HiGHS says {answer.status} of a program that is bounded")
        return answer.x * scale, np.maximum(-answer.row_dual[len(rate) :], 0.0)

    def _requests(self, x: FloatArray) -> FloatArray:
        """Requests/s [G][I] in a solution."""
        y = np.zeros(self.can_serve.shape)
        y[self._g, self._i] = np.maximum(x[: len(self._g)], 0.0) * self._best[self._i]
        return y

    def _whole_shares(self, y: FloatArray, rate: FloatArray, limit: FloatArray) -> FloatArray | None:
        """Shares that add up to one and overload nothing; None when y leaves too much unserved.

        The solver's tolerance is absolute, `evaluate`'s relative: what little is missing or too much goes where room is left.
        """
        y = np.where((limit > 0)[:, None], y, 0.0)
        busy = y * self.load
        total = busy.sum(axis=1)
        y = y * np.where(total > limit, limit / np.where(total > 0, total, 1.0), 1.0)[:, None]
        served, loaded = y.sum(axis=0), rate > 0
        y = y * np.where(served > rate, rate / np.where(served > 0, served, 1.0), 1.0)
        missing = np.where(loaded, rate - y.sum(axis=0), 0.0)
        if float((missing / self._best).sum()) > 1e-6 * max(float(limit.max(initial=0.0)), 1e-300):
            return None  # far more than rounding
        for i in np.flatnonzero(missing > 0):
            left = limit - (y * self.load).sum(axis=1)
            room = np.where(self.can_serve[:, i] & (limit > 0), left / np.where(self.can_serve[:, i], self.load[:, i], 1.0), -math.inf)
            if not math.isfinite(room.max(initial=-math.inf)):
                return None  # nothing that stands can serve it
            y[np.argmax(room), i] += missing[i]
        share: FloatArray = np.where(loaded, y / np.where(loaded, y.sum(axis=0), 1.0), 0.0)
        return share if bool(((share * rate * self.load).sum(axis=1) <= limit * (1 + 0.9 * FEASIBILITY)).all()) else None

    def _partial(self, share: FloatArray, rate: FloatArray, limit: FloatArray, price: FloatArray | None) -> Service:
        """What these shares, cut back to what the types can carry, serve; never reported as everything."""
        busy = (share * rate * self.load).sum(axis=1)
        share = share * np.where(busy > limit, limit / np.where(busy > 0, busy, 1.0), 1.0)[:, None]
        share = share / np.maximum(share.sum(axis=0), 1.0)
        unserved = np.maximum(rate * (1.0 - share.sum(axis=0)), 0.0)
        return Service(share, unserved, max(float(unserved.sum() / rate.sum()), np.finfo(float).tiny), price)

    def _even(self, rate: FloatArray, serving: FloatArray, share: FloatArray) -> FloatArray:
        """Newton's method on the load level t: the prices that prove a level too low tell the least level they allow."""
        limit = self.utilisation * serving
        price = self._memory if self._memory is not None else np.ones(len(limit))
        for _ in range(MOST_ROUNDS):
            room = float(price @ limit)
            level = self.need(rate, price) / room if room > 0 else 1.0
            if level > 1 - 10 * FEASIBILITY:
                break  # as full as can be: the vertex is as even as any
            found = self._continuous(rate, level * (1 + 0.5 * FEASIBILITY) * limit)
            if found.price is None:
                return found.share
            price = self._memory = found.price
        return share

    def _sliced(self, k: int, rate: FloatArray, limit: FloatArray) -> Service:
        """Whole slices for a fleet that continuous shares fit: depth-first over the relaxation, MOST_NODES at most, nearest integer first."""
        cover = rate / self._best
        slack = np.full(len(rate), math.inf)
        unit = np.concatenate([cover[self._i] / k, slack])
        lower, upper = np.zeros(len(unit)), np.concatenate([cover[self._i], slack])
        nodes, first = [(lower, upper)], None
        for _ in range(MOST_NODES):
            if not nodes:
                break
            lower, upper = nodes.pop()
            answer = self._solve(rate, limit, lower, upper)
            if answer is None:
                continue
            y = self._requests(answer[0])
            share = self._whole_shares(y, rate, limit)
            first = y if first is None else first
            if share is None:
                continue
            counts = share * k
            whole = np.round(counts)
            off = np.abs(counts - whole)[self._g, self._i]
            if off.max(initial=0.0) <= 0.1 * INTEGRALITY and self._whole_shares(whole * rate, rate, limit) is not None:
                return Service(whole / k, np.zeros(len(rate)), 0.0, None)
            j = int(np.argmax(off))
            down, value = math.floor(counts[self._g[j], self._i[j]]), counts[self._g[j], self._i[j]]
            below, above = upper.copy(), lower.copy()
            below[j], above[j] = down * unit[j], (down + 1) * unit[j]
            children = [(lower, below), (above, upper)]
            nodes += children if value - down > 0.5 else children[::-1]
        return self._filled(k, rate, limit, np.zeros_like(self.load) if first is None else first)

    def _filled(self, k: int, rate: FloatArray, limit: FloatArray, y: FloatArray) -> Service:
        """The whole slices within y, then slice by slice, the heaviest items first, to the type with room where a slice is lightest."""
        slices = np.where(rate > 0, np.floor(k * y / np.where(rate > 0, rate, 1.0) + INTEGRALITY), 0.0)
        slice_load = np.where(self.can_serve, rate * self.load / k, math.inf)
        room = limit * (1 + 0.9 * FEASIBILITY) - (slices * rate * self.load / k).sum(axis=1)
        for i in np.argsort(-slice_load.min(axis=0), kind="stable"):
            left = k - slices[:, i].sum() if rate[i] > 0 else 0.0
            for g in np.argsort(slice_load[:, i], kind="stable"):
                if left <= 0 or not math.isfinite(slice_load[g, i]):
                    break
                taken = min(left, max(math.floor(room[g] / slice_load[g, i]), 0))
                slices[g, i] += taken
                room[g] -= taken * slice_load[g, i]
                left -= taken
        unserved = np.where(rate > 0, rate * (1.0 - slices.sum(axis=0) / k), 0.0)
        return Service(slices / k, unserved, float(unserved.sum() / rate.sum()) if unserved.any() else 0.0, None)
