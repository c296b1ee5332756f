"""Autoscalers: online policies for rates that change from epoch to epoch.

| name             | what it does                                                                                                     |
|------------------|------------------------------------------------------------------------------------------------------------------|
| `Reactive`       | desired fleet for the present load over a target utilisation; shrinks to the largest of the last k desired fleets |
| `HoldK`          | starts what is missing; releases a replica once it was idle for k epochs, k its break-even time (ski rental)        |
| `SeasonalNaive`  | plans for the rates of one season earlier, scaled; keeps what they will need within the break-even time             |
| `Follow`         | the cheapest fleet for the present rates, whatever starts cost                                                     |

At the beginning of epoch t a policy sees rates up to and including t and decides n_t. It is built from an `EpochMarket`, which holds no rate. Which
types to rent is always the exact cheapest choice (`FleetFinder`), given what the policy's rule fixes. With a start delay of d epochs a policy plans
the fleet that will serve at t + d; what serves at t was decided before, and may fall short.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headroom.heuristics.gpu_selection_fleets import EpochMarket, Fleet, FleetFinder, IntArray

FloatArray = npt.NDArray[np.float64]
Mix = Literal["fleet", "split", "one"]
STABILISATION_S = 300.0
"""Default of the Kubernetes horizontal pod autoscaler (and KEDA's cooldown): a scale-down waits until five minutes have asked for it."""
TARGET_WITH_DELAY, MARGIN_WITH_DELAY = 0.7, 1.2
"""Defaults where starts take time: target utilisation, and what forecasts are multiplied by; the headroom serves a rise until starts are done."""
SEASON_S = 86_400.0


class Autoscaler(ABC):
    """Keeps count of what is rented and what still starts; a policy says which fleet it wants."""

    def __init__(self, market: EpochMarket) -> None:
        self.market = market
        self.finder = FleetFinder(market)
        self.epoch = 0
        self.count: IntArray | None = market.initial_count
        """The fleet of the epoch before; None when there is none and the first one is free of starts."""
        self._starts: deque[IntArray] = deque(maxlen=max(market.start_delay_epochs - 1, 0))

    def decide(self, rate_per_s: FloatArray) -> IntArray:
        """The fleet n_t [G], given the rates of epoch t [I]; called once an epoch, in order."""
        if self.count is None:
            n = self._opening(rate_per_s)
        else:
            n = self._settled(self._wanted(rate_per_s, self._standing(rate_per_s)), rate_per_s)
            self._starts.append(np.maximum(n - self.count, 0))
        self.count, self.epoch = n, self.epoch + 1
        return n

    @property
    def settings(self) -> dict[str, Any]:
        """The policy's parameters, JSON-able."""
        return {}

    @abstractmethod
    def _wanted(self, rate: FloatArray, standing: IntArray) -> IntArray:
        """The fleet that the policy wants; `standing` [G] is the fleet of the epoch before, within the limits."""

    def _opening(self, rate: FloatArray) -> IntArray:
        """The first fleet where it is free of starts and serves at once."""
        return self._covering(rate[None], self.market.min_count)

    def _covering(self, rates: FloatArray, lower: Fleet) -> IntArray:
        """The cheapest fleet above `lower` for all rows of rates [N][I], row 0 the present; else what comes closest within the limits.

        In this order: every row, the present from `lower` upwards, the present whatever stands now, as much of the present as can be served.
        """
        for wanted, least in ((rates, lower), (rates[:1], lower), (rates[:1], None)):
            found = self.finder.cheapest(wanted, least)
            if found is not None:
                return found
        return self.finder.most(rates[:1], self.market.min_count)

    def _pending(self) -> IntArray:
        """Replicas [G] started before this epoch that do not serve in it."""
        total: IntArray = np.sum(self._starts, axis=0, dtype=np.int64) if self._starts else np.zeros(len(self.market.min_count), dtype=np.int64)
        return total

    def _standing(self, rate: FloatArray) -> IntArray:
        """The fleet of the epoch before, brought within floors, caps and pools (an initial fleet may lie outside)."""
        assert self.count is not None
        if self.market.allows(self.count):
            return self.count
        most = np.maximum(np.minimum(self.count, self.market.max_count), self.market.min_count)
        found = most.astype(np.int64)
        if not self.market.allows(found):
            cheapest = self.finder.cheapest(rate[None], upper=most)
            found = self.finder.most(rate[None], self.market.min_count, most) if cheapest is None else cheapest
        return found

    def _settled(self, n: IntArray, rate: FloatArray) -> IntArray:
        """The wanted fleet, with what the present still needs: a policy may plan as it likes but never drops requests that it could serve."""
        assert self.count is not None
        if self.market.start_delay_epochs == 0:
            return n if self.finder.fits(rate, n) else self._covering(rate[None], n)
        pending = self._pending()
        ready = np.minimum(self.count, self.market.max_count).astype(np.int64) - pending
        if not self.finder.fits(rate, np.minimum(n, self.count) - pending):
            needed = self.finder.cheapest(rate[None], np.zeros(len(n)), np.maximum(ready, 0))
            kept = pending + (ready if needed is None else needed)
            n = self._within_pools(np.maximum(n, kept), kept)
        return np.maximum(n, pending)

    def _within_pools(self, n: IntArray, kept: IntArray) -> IntArray:
        """Where keeping and starting do not both fit, starts wait."""
        if self.market.allows(n):
            return n
        kept = np.maximum(kept, self.market.min_count.astype(np.int64))
        for g in np.argsort(-self.market.rent_usd, kind="stable"):
            while n[g] > kept[g] and not self.market.allows(n):
                n[g] -= 1
        return n


class Follow(Autoscaler):
    """The cheapest fleet for the rates of each epoch alone, ignoring what starts cost and how long they take.

    Optimal when starts are free and at once; otherwise it churns without limit, and with a delay it falls short at every rise.
    """

    def _wanted(self, rate: FloatArray, standing: IntArray) -> IntArray:
        return self._covering(rate[None], self.market.min_count)


class Desire:
    """The fleet that present rates ask for at a target utilisation: ceil(load / target), for every type, under a rule for the mix (see `Reactive`).

    It depends on the rates so far alone, not on what stands, so that one sequence of desires serves many settings of the cooldowns.
    """

    def __init__(self, finder: FleetFinder, target: float, mix: Mix) -> None:
        self.finder, self.target, self.mix = finder, target, mix
        self._before: IntArray | None = None
        self._type: int | None = None

    def __call__(self, rate_per_s: FloatArray) -> IntArray:
        self._before = self._next(rate_per_s)
        return self._before

    def _next(self, rate: FloatArray) -> IntArray:
        finder, market = self.finder, self.finder.market
        if self.mix != "fleet":
            n = self._by_type(rate)
            if n is not None and market.allows(n) and finder.fits(rate, n):
                return n
        premium = None if self._before is None else market.premium_usd
        for rates in (rate / self.target, rate):
            found = finder.cheapest(rates[None], None, None, premium, self._before)
            if found is not None:
                return found
        return finder.most(rate[None], market.min_count)

    def _by_type(self, rate: FloatArray) -> IntArray | None:
        """Each type sized for its own load alone; None where a type cannot serve what it should."""
        market, load = self.finder.market, self.finder.serving.load
        if self.mix == "one":
            if self._type is None:
                cost = np.where((market.can_serve | (rate <= 0)).all(axis=1), market.rent_usd * (load @ rate), math.inf)
                self._type = int(np.argmin(cost))
            chosen = np.full(len(rate), self._type)
        else:
            chosen = np.argmin(np.where(market.can_serve, market.rent_usd[:, None] * load, math.inf), axis=0)
        items = np.arange(len(rate))
        if not market.can_serve[chosen, items][rate > 0].all():
            return None
        busy = np.zeros(len(market.min_count))
        np.add.at(busy, chosen, rate / self.target * load[chosen, items])
        n: IntArray = np.maximum(np.ceil(busy / market.max_utilisation * (1 - 1e-10)), market.min_count).astype(np.int64)
        return n


class Reactive(Autoscaler):
    """The rule of Kubernetes' horizontal pod autoscaler and of KEDA: desired = ceil(load / target), per type.

    `target`: utilisation (of what one replica may carry) that the fleet is sized for; default 1 without a start delay, else TARGET_WITH_DELAY.
    `mix`, which types are desired: "fleet" the cheapest fleet for load / target, replicas desired before counting less than new ones; "split" every
    item on its cheapest type per request, each type scaled on its own load (one deployment a type behind a static router); "one" everything on the
    type that is cheapest at first. Where caps, pools or ability forbid "split" or "one", "fleet" steps in.
    `cooldown_down` epochs: a type shrinks only to the most that was desired within them (default: STABILISATION_S, rounded).
    `cooldown_up` epochs after a growth, only what the present needs is added. `desire`: desires worked out before, for tuning. No guarantee.
    O(one FleetFinder question) an epoch.
    """

    def __init__(
        self,
        market: EpochMarket,
        target: float | None = None,
        cooldown_up: int = 0,
        cooldown_down: int | None = None,
        mix: Mix = "fleet",
        desire: Callable[[FloatArray], IntArray] | None = None,
    ) -> None:
        super().__init__(market)
        self.target = (TARGET_WITH_DELAY if market.start_delay_epochs else 1.0) if target is None else target
        self.cooldown_up, self.mix = cooldown_up, mix
        down = round(STABILISATION_S / market.epoch_s) if cooldown_down is None else cooldown_down
        self._desire = Desire(self.finder, self.target, mix) if desire is None else desire
        self._desired: deque[IntArray] = deque(maxlen=down + 1)
        self._grown_at = -math.inf

    @property
    def settings(self) -> dict[str, Any]:
        return {"target": self.target, "cooldown_up": self.cooldown_up, "cooldown_down": (self._desired.maxlen or 1) - 1, "mix": self.mix}

    def _opening(self, rate: FloatArray) -> IntArray:
        n = self._desire(rate)
        self._desired.append(n)
        return n

    def _wanted(self, rate: FloatArray, standing: IntArray) -> IntArray:
        desired = self._desire(rate)
        self._desired.append(desired)
        high = np.maximum.reduce(list(self._desired))
        grown = np.maximum(standing, desired)
        if (desired > standing).any():
            if self.epoch - self._grown_at <= self.cooldown_up:
                grown = standing
            else:
                self._grown_at = self.epoch
        n: IntArray = np.minimum(grown, high)
        return n if self.market.allows(n) else desired


class HoldK(Autoscaler):
    """Ski rental for every replica: start it when it is needed, release it when it was not for k epochs.

    k = the epochs of idle rent that cost as much as a new start (`break_even_epochs`, rounded down) unless `hold_epochs` says otherwise. For one type
    without delay every replica number is a ski-rental problem of its own, so idle rent and starts together are at most twice the clairvoyant
    optimum's: the classic 2-competitive rule (Karlin, Manasse, Rudolph, Sleator, doi 10.1007/BF01762111). With several types the needed part of
    the fleet is the cheapest part that serves the present. `swap`: the rent that a better mix would have saved is added up, and once it has
    paid for that mix's starts, the fleet changes to it (the same rule for the mix). `target` as in `Reactive`.
    """

    def __init__(self, market: EpochMarket, hold_epochs: int | None = None, swap: bool = True, target: float | None = None) -> None:
        super().__init__(market)
        self.target = (TARGET_WITH_DELAY if market.start_delay_epochs else 1.0) if target is None else target
        even = np.floor(market.break_even_epochs + 1e-9)
        self.hold = even if hold_epochs is None else np.full(len(even), float(hold_epochs))
        """Epochs [G] that an idle replica is kept; +inf: for ever."""
        self.swap = swap
        self._regret = 0.0
        standing = [0] * len(market.min_count) if market.initial_count is None else market.initial_count.tolist()
        self._last_needed: list[list[int]] = [[-1] * count for count in standing]
        """For each type and replica number the last epoch that needed it; what stands at first was needed until then."""

    @property
    def settings(self) -> dict[str, Any]:
        hold = [None if math.isinf(k) else int(k) for k in self.hold]
        return {"hold_epochs": hold, "swap": self.swap, "target": self.target}

    def _planned(self, rate: FloatArray) -> FloatArray:
        """The rates [N][I] that the fleet is planned for; row 0 the present."""
        return np.stack([rate, rate / self.target]) if self.target < 1 else rate[None]

    def _opening(self, rate: FloatArray) -> IntArray:
        n = self._covering(self._planned(rate), self.market.min_count)
        self._needs(n)
        return n

    def _wanted(self, rate: FloatArray, standing: IntArray) -> IntArray:
        n, needed = self._mixed(self._planned(rate), standing)
        self._needs(needed)
        return self._released(n)

    def _grown(self, planned: FloatArray, standing: IntArray) -> IntArray:
        """Everything that stands, and the cheapest additions; where limits leave no room beside it, the cheapest exchange."""
        found = self.finder.cheapest(planned, standing, checked=1)
        if found is None:
            found = self.finder.cheapest(planned, None, None, self.market.premium_usd, standing, checked=1)
        return self._covering(planned[:1], standing) if found is None else found

    def _mixed(self, planned: FloatArray, standing: IntArray) -> tuple[IntArray, IntArray]:
        """The fleet grown to what is planned, changed to a better mix where that has paid for itself; and the cheapest part of it that does."""
        n = self._grown(planned, standing)
        best = self.finder.cheapest(planned, checked=1)
        if best is None:
            return n, n  # limits forbid what is planned: all of it is needed
        if (best <= n).all():
            return n, best
        used = self.finder.cheapest(planned, None, n, checked=1)
        used = n if used is None else used
        rent, missing = self.market.rent_usd, np.maximum(best - n, 0)
        self._regret += float(rent @ (used - best))
        starting = self.market.start_cost_usd + self.market.start_delay_epochs * rent
        both = np.maximum(n, best)
        if not self.swap or self._regret < float(starting @ missing) or not self.market.allows(both):
            return n, used
        self._regret = 0.0
        self._last_needed = [[] for _ in n]  # what the new mix does not need is given up on purpose
        return both, best

    def _needs(self, needed: IntArray) -> None:
        for last, count in zip(self._last_needed, needed.tolist(), strict=True):
            last[:count] = [self.epoch] * count

    def _released(self, n: IntArray) -> IntArray:
        """n without the replicas that have been idle for longer than they may be."""
        kept = n.copy()
        for g, last in enumerate(self._last_needed):
            while kept[g] > self.market.min_count[g] and (kept[g] > len(last) or self.epoch - last[kept[g] - 1] > self.hold[g]):
                kept[g] -= 1
            del last[kept[g] :]
        return kept


class SeasonalNaive(HoldK):
    """Plans for what was asked one season earlier, scaled to the present level (the seasonal naive forecast; Hyndman & Athanasopoulos,
    Forecasting: Principles and Practice, 3rd ed., 5.2).

    The forecast for epoch t + j is the rate of t + j - season times (requests of the last `level_epochs`) / (requests of the same epochs one season
    earlier), times `margin`. The fleet serves the present and the forecasts of the next d epochs; of what stands, it keeps what the forecasts of the
    next break-even time still need, and releases the rest at once. In the first season it is `HoldK`. `season_epochs`: a day unless said;
    `margin`: MARGIN_WITH_DELAY where starts take time, else 1. No guarantee. O(4 FleetFinder questions) an epoch.
    """

    def __init__(
        self,
        market: EpochMarket,
        season_epochs: int | None = None,
        margin: float | None = None,
        level_epochs: int | None = None,
        hold_epochs: int | None = None,
        swap: bool = True,
        target: float | None = None,
    ) -> None:
        super().__init__(market, hold_epochs, swap, target)
        delay = market.start_delay_epochs
        self.season = max(round(SEASON_S / market.epoch_s), 1) if season_epochs is None else season_epochs
        self.margin = (MARGIN_WITH_DELAY if delay else 1.0) if margin is None else margin
        self.level_epochs = max(self.season // 24, 1) if level_epochs is None else level_epochs
        finite = self.hold[np.isfinite(self.hold)]
        self.ahead = int(min(finite.max(initial=0.0), self.season)) + delay
        self._seen: list[FloatArray] = []

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"season_epochs": self.season, "margin": self.margin, "level_epochs": self.level_epochs}

    def decide(self, rate_per_s: FloatArray) -> IntArray:
        self._seen.append(np.array(rate_per_s, dtype=np.float64))
        return super().decide(rate_per_s)

    def _planned(self, rate: FloatArray) -> FloatArray:
        delay = self.market.start_delay_epochs
        forecast = self._forecast(delay)
        return super()._planned(rate) if forecast is None else np.vstack([rate[None], forecast])

    def _wanted(self, rate: FloatArray, standing: IntArray) -> IntArray:
        forecast = self._forecast(self.ahead)
        if forecast is None:
            return super()._wanted(rate, standing)
        planned = self._planned(rate)
        n, _ = self._mixed(planned, standing)
        needed = self.finder.cheapest(np.vstack([planned, forecast]), None, n, checked=1)
        if needed is None:  # the forecast asks for more than there is: all of it stays
            return n
        self._last_needed = [[self.epoch] * int(count) for count in needed]
        return np.minimum(n, needed)

    def _forecast(self, epochs: int) -> FloatArray | None:
        """Rates expected in the next epochs [epochs][I]; None in the first season."""
        seen, season = self._seen, self.season
        t = len(seen) - 1
        if t < season:
            return None
        window = min(self.level_epochs, t - season + 1)
        now = float(np.sum(seen[t - window + 1 : t + 1]))
        then = float(np.sum(seen[t - season - window + 1 : t - season + 1]))
        level = now / then if then > 0 else 1.0
        rows = [seen[t + j - season * math.ceil(j / season)] for j in range(1, epochs + 1)]
        return np.array(rows).reshape(epochs, len(seen[0])) * (level * self.margin)
