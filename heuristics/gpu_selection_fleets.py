"""The cheapest fleet for given rates, found again and again: what an autoscaler asks itself at every step.

A fleet n serves rates r if and only if  sum_i r_i min_g w_g / q_gi <= u w.n  for every w >= 0 (see `bounds.gpu_selection_serving`). So the search is
an integer covering program whose rows are those w that were ever violated: solve it over the rows known so far, ask `Serving` whether the fleet
does, add the prices that prove otherwise, repeat. Prices hold for all rates, so after a few dozen questions the rows are nearly complete.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_serving import Serving
from headroom.formulations.gpu_selection_epochs import epochs_of
from headroom.formulations.tolerances import FEASIBILITY
from headroom.instances.gpu_selection import GpuSelection

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Fleet = FloatArray | IntArray
MOST_ROWS = 60
"""Prices kept; beyond that the oldest that were found go."""
MOST_ROUNDS = 200
BISECTIONS = 12
PREMIUM = 2.0
"""Measured on generated days: the reactive policy's cost is flat from 1 to 5, and 1 to 30 % higher at 0."""


@dataclass(frozen=True)
class EpochMarket:
    """What an autoscaler knows before any request arrives: types, prices, limits and what a start costs, but no rate.

    Arrays [G] over types, [G][I] over types and work items, [P] over pools, as in the instance; `initial_count` is None when the first fleet is
    free of starts.
    """

    throughput_per_s: FloatArray
    can_serve: npt.NDArray[np.bool_]
    max_utilisation: float
    pooled_slices: int | None
    price_usd_per_h: FloatArray
    min_count: FloatArray
    max_count: FloatArray
    pool_gpus: FloatArray
    pool_limit: FloatArray
    epoch_s: float
    start_cost_usd: FloatArray
    start_delay_epochs: int
    initial_count: IntArray | None

    @property
    def rent_usd(self) -> FloatArray:
        """Rent of one replica of each type [G] over one epoch, USD."""
        rent: FloatArray = self.price_usd_per_h * (self.epoch_s / 3600.0)
        return rent

    @property
    def break_even_epochs(self) -> FloatArray:
        """How many epochs of idle rent cost as much as a new start and the rent until it serves [G]; +inf for a free type that costs to start."""
        rent = self.rent_usd
        start = self.start_cost_usd + self.start_delay_epochs * rent
        even: FloatArray = np.where(rent > 0, start / np.where(rent > 0, rent, 1.0), np.where(start > 0, math.inf, 0.0))
        return even

    @property
    def premium_usd(self) -> FloatArray:
        """What a replica that does not stand yet counts extra [G] when fleets are compared by one epoch's rent: its start, at most PREMIUM rents.

        Spread over its break-even time a start counts one rent; a mix that changes less pays a little more.
        """
        premium: FloatArray = np.minimum(self.start_cost_usd + self.start_delay_epochs * self.rent_usd, PREMIUM * self.rent_usd)
        return premium

    def allows(self, n: Fleet) -> bool:
        """Whether floors, caps and pools allow the fleet."""
        within = (n >= self.min_count).all() and (n <= self.max_count).all()
        return bool(within and (self.pool_gpus @ n <= self.pool_limit).all())


def epoch_market(instance: GpuSelection) -> EpochMarket:
    """The part of an instance with epochs that is known beforehand. Raises `InputError` when it has no epochs."""
    epochs = epochs_of(instance)
    return EpochMarket(
        throughput_per_s=instance.throughput_per_s,
        can_serve=instance.can_serve,
        max_utilisation=instance.max_utilisation,
        pooled_slices=instance.pooled_slices,
        price_usd_per_h=instance.price_usd_per_h,
        min_count=instance.min_count.astype(np.float64),
        max_count=instance.max_count,
        pool_gpus=instance.pool_gpus,
        pool_limit=instance.pool_limit,
        epoch_s=epochs.epoch_s,
        start_cost_usd=np.array(epochs.start_cost_usd, dtype=np.float64),
        start_delay_epochs=epochs.start_delay_epochs,
        initial_count=None if epochs.initial_count is None else np.array(epochs.initial_count, dtype=np.int64),
    )


class FleetFinder:
    """Answers "which is the cheapest fleet between these bounds that serves each of these rates?". Remembers prices, never rates."""

    def __init__(self, market: EpochMarket) -> None:
        self.market = market
        self.serving = Serving(market)
        gpus = len(market.price_usd_per_h)
        self._prices = np.zeros((0, gpus))
        self._units = np.zeros((0, market.can_serve.shape[1]))
        # Prices proportional to rents are the multipliers of the relaxation without caps: the bound that the search needs most.
        for price in (market.rent_usd, market.rent_usd + market.premium_usd, np.ones(gpus)):
            self._add(price)
        self._first = len(self._prices)

    def fits(self, rate_per_s: FloatArray, n: Fleet) -> bool:
        """Whether n serving replicas [G] carry the rates [I]."""
        n = np.maximum(n, 0)
        if (self._need(rate_per_s[None]) * (1 - FEASIBILITY) > self._capacity(n)).any():
            return False
        found = self.serving.serve(rate_per_s, n)
        if found.price is not None:
            self._add(found.price)
        return found.complete

    def cheapest(
        self,
        rates_per_s: FloatArray,
        lower: Fleet | None = None,
        upper: Fleet | None = None,
        premium: FloatArray | None = None,
        base: Fleet | None = None,
        checked: int | None = None,
    ) -> IntArray | None:
        """The least rent of an epoch (plus `premium` for each replica above `base`) that serves every row of rates [N][I]; None if no fleet does.

        `lower` [G] takes the place of the floors, `upper` [G] tightens the caps. `checked`: only the first so many rows, and the row of most
        load, are checked by a linear program, the others by the prices known so far (for forecasts). Exact but for `cheapest_cover`'s node limit.
        """
        from headroom.solvers.integer_covering import cheapest_cover

        market = self.market
        if not self._able(rates_per_s):
            return None
        low = market.min_count if lower is None else np.asarray(lower, dtype=np.float64)
        high = market.max_count if upper is None else np.minimum(upper, market.max_count)
        stands = None if base is None else np.asarray(base, dtype=np.float64)
        banned: list[FloatArray] = []
        for _ in range(MOST_ROUNDS):
            need = self._need(rates_per_s) * (1 - 0.5 * FEASIBILITY)
            rows = market.max_utilisation * self._prices
            ban = np.array(banned).reshape(-1, len(low))
            cover = cheapest_cover(market.rent_usd, rows, need, low, high, premium, stands, market.pool_gpus, market.pool_limit, ban)
            if cover is None:
                return None
            n = cover.count
            price, fits = self._refute(rates_per_s, n, checked)
            if fits:
                return n
            if price is None or not self._add(price, rates_per_s, n):
                banned.append(n.astype(np.float64))  # slices that do not fit, or a violation too small for a row
        return None

    def most(self, rates_per_s: FloatArray, lower: Fleet, upper: Fleet | None = None) -> IntArray:
        """A fleet from `lower` [G] upwards that serves the largest part of the rates [N][I] that limits allow (by bisection)."""
        able = np.where(self.market.can_serve.any(axis=0), rates_per_s, 0.0)
        best = lower.astype(np.int64)
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            part = (low + high) / 2
            found = self.cheapest(part * able, lower, upper)
            if found is None:
                high = part
            else:
                low, best = part, found
        return best

    def _able(self, rates: FloatArray) -> bool:
        return bool((self.market.can_serve.any(axis=0) | ~(rates > 0).any(axis=0)).all())

    def _refute(self, rates: FloatArray, n: IntArray, checked: int | None) -> tuple[FloatArray | None, bool]:
        """(prices that prove that n does not serve some row, whether it serves all). Rows of most load come first."""
        order = np.argsort(-(rates @ self._units[0]), kind="stable")
        if checked is not None:
            order = np.concatenate([order[:1], np.arange(min(checked, len(rates)))])
        for j in order:
            found = self.serving.serve(rates[j], n)
            if not found.complete:
                return found.price, False
        return None, True

    def _need(self, rates: FloatArray) -> FloatArray:
        """The largest need of each price over the rows of rates [K]."""
        need: FloatArray = (rates @ self._units.T).max(axis=0, initial=0.0)
        return need

    def _capacity(self, n: Fleet) -> FloatArray:
        capacity: FloatArray = self.market.max_utilisation * (self._prices @ n)
        return capacity

    def _add(self, price: FloatArray, rates: FloatArray | None = None, n: IntArray | None = None) -> bool:
        """Keep a price vector; False when it does not cut n off by more than rounding."""
        unit = np.where(self.market.can_serve, price[:, None] * self.serving.load, math.inf).min(axis=0)
        unit = np.where(np.isfinite(unit), unit, 0.0)  # items that nothing serves are refused elsewhere
        if rates is not None and n is not None and (rates @ unit).max() * (1 - FEASIBILITY) <= self.market.max_utilisation * float(price @ n):
            return False
        self._prices, self._units = np.vstack([self._prices, price]), np.vstack([self._units, unit])
        if len(self._prices) > MOST_ROWS:
            self._prices, self._units = np.delete(self._prices, self._first, axis=0), np.delete(self._units, self._first, axis=0)
        return True
