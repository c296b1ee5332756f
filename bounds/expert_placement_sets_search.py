"""Prices for the bound of `expert_placement_sets`.

The bound is convex in the prices but has a corner wherever two chains are equally good. With the maximum over chains replaced by
tau log sum exp(. / tau) it is smooth; its gradient is 1 - parts P(e is in the set of layer l), by one recurrence from either end, and a quasi-Newton
method (L-BFGS) brings it down in a few dozen steps for each of some falling tau. Prices of any step prove a bound, by the true maximum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.expert_placement_sets import members, sets_of

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
SHARPNESS = (0.03, 0.01, 0.003, 0.001)
"""tau of each stage, in units of the transitions over parts L ln N, what the smoothing may cost a chain."""
STEPS = 60
"""Steps of a stage."""
REMEMBERED = 30
LOOK_EVERY = 5
"""Steps between two looks at the true bound."""
LEAST_GAIN = 3e-5
"""A stage ends when LOOK_EVERY steps gain less than this share of the bound's distance from all transitions."""


class Prices:
    """The bound as a function of prices [L][E]."""

    def __init__(self, transition: FloatArray, parts: int, threads: int) -> None:
        self.transition, self.parts, self.threads = np.ascontiguousarray(transition), parts, threads
        self.backward = np.ascontiguousarray(transition.transpose(0, 2, 1))
        self.layers, self.experts = len(transition) + 1, transition.shape[1]
        self.sets = sets_of(self.experts, self.experts // parts)
        self.inside = members(self.sets, self.experts)
        from headroom.solvers.sets_recurrence import step

        self._step = step

    def through(self, price: FloatArray, tau: float) -> FloatArray:
        """The best chain's value by the set it has in each layer [L][N]; smooth when tau > 0."""
        own = -(price @ self.inside.T)
        left, right = np.zeros_like(own), np.zeros_like(own)

        def forward() -> None:
            for b, p in enumerate(self.transition):
                self._step(p, self.sets, left[b] + own[b], tau, left[b + 1])

        def backward() -> None:
            for b in range(len(self.backward) - 1, -1, -1):
                self._step(self.backward[b], self.sets, right[b + 1] + own[b + 1], tau, right[b])

        if self.threads > 1:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda half: half(), (forward, backward)))
        else:
            forward()
            backward()
        return left + own + right

    def hard(self, price: FloatArray) -> float:
        """W that the prices prove, but for rounding."""
        own = -(price @ self.inside.T)
        value, after = own[0], np.empty(len(self.sets))
        for b, p in enumerate(self.transition):
            self._step(p, self.sets, value, 0.0, after)
            value = after + own[b + 1]
        return float(price.sum()) + self.parts * float(value.max())

    def smooth(self, price: FloatArray, tau: float) -> tuple[float, FloatArray]:
        """(smooth W, its gradient [L][E])."""
        value = self.through(price, tau)
        top = value.max(axis=1, keepdims=True)
        weight = np.exp((value - top) / tau)
        total = weight.sum(axis=1, keepdims=True)
        most = float(top[0, 0] + tau * math.log(total[0, 0]))
        return float(price.sum()) + self.parts * most, 1.0 - self.parts * ((weight / total) @ self.inside)


class _Ended(Exception):
    """Leaves the quasi-Newton method early."""


def set_prices(transition: FloatArray, parts: int, threads: int, stop: Callable[[], bool], report: Callable[[FloatArray, float], None]) -> FloatArray:
    """Prices [L][E] of the bound; `report` is told of each better ones with their W. O(B C(E, k)^2) for each of some hundred steps."""
    from scipy import optimize

    minimize: Any = optimize.minimize  # its stubs know no function that returns value and gradient
    prices = Prices(transition, parts, threads)
    layers, experts = prices.layers, prices.experts
    size, total = experts // parts, float(transition.sum())
    start = np.zeros((layers, experts))
    start[:-1] += transition.sum(axis=2) / 4
    start[1:] += transition.sum(axis=1) / 4
    best, best_value = start, prices.hard(start)
    report(best, best_value)
    unit = total / (parts * layers * max(math.log(math.comb(experts, size)), 1.0))

    def look(price: FloatArray) -> float:
        nonlocal best, best_value
        value = prices.hard(price)
        if value < best_value:
            best, best_value = price.copy(), value
            report(best, best_value)
        return value

    for sharpness in SHARPNESS:
        tau, seen, checked = sharpness * unit, 0, best_value

        def smooth(x: FloatArray, tau: float = tau) -> tuple[float, FloatArray]:
            if stop():
                raise _Ended
            value, gradient = prices.smooth(x.reshape(layers, experts), tau)
            return value, gradient.ravel()

        def after_step(x: FloatArray) -> None:
            nonlocal seen, checked
            seen += 1
            if seen % LOOK_EVERY:
                return
            look(x.reshape(layers, experts))
            if seen > LOOK_EVERY and checked - best_value < LEAST_GAIN * (total - best_value):
                raise _Ended
            checked = best_value

        try:
            limits = {"maxiter": STEPS, "maxcor": REMEMBERED}
            answer = minimize(smooth, best.ravel(), jac=True, method="L-BFGS-B", callback=after_step, options=limits)
            look(answer.x.reshape(layers, experts))
        except _Ended:
            if stop():
                break
    return best
