r"""GPU selection over time, rewritten so that a fleet is what serves: the form in which bounds and the decomposition see it.

With a start delay of d epochs, a replica that serves from t on was rented from t - d on. So let m_gt be the replicas that *serve*, let each serving
replica cost its rent rho_g = p_g H / 3600 an epoch, and let each increase of m_g cost f_g + d rho_g: the start and the rent until it serves.

    minimise  sum_t rho.m_t + sum_t (f + d rho).(m_t - m_t-1)^+       m_t in F_t,  least_t <= m_t <= most,  m_t may rise only where may_rise_t

F_t is the set of whole fleets that can serve the rates of epoch t: all m with u w.m >= sum_i r_ti min_g w_g / q_gi for every w >= 0 (Farkas).
Every plan costs at least as much here: number the replicas of a type so that number j is rented while the count is at least j; each stretch of
renting of at least d epochs then serves for all but its first d, costs exactly rent and start here, and shorter stretches serve nothing. In the
other direction, renting level j whenever it serves within the next d epochs costs the same or less, unless a pool (which also counts replicas that
do not serve yet) forbids it. Before the first start can take effect, m may only fall.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headroom.formulations.gpu_selection_epochs import epochs_of, load_per_request, most_replicas_over_time
from headroom.formulations.tolerances import CERTIFICATE_SLACK
from headroom.instances.gpu_selection import GpuSelection

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Stages:
    """The problem above. T epochs, G types, I items, P pools.

    `rent` [G] USD an epoch; `rise` [G] USD for one more serving replica; `rate` [T][I]; `load` [G][I] replicas kept busy by one request/s at full
    utilisation (+inf: cannot serve); `least` [T][G], `most` [G]; `initial` [G] or None (the first fleet is free); `may_rise` [T];
    `pool_gpus` [P][G], `pool_limit` [P].
    """

    rent: FloatArray
    rise: FloatArray
    rate: FloatArray
    load: FloatArray
    least: IntArray
    most: IntArray
    initial: IntArray | None
    may_rise: npt.NDArray[np.bool_]
    pool_gpus: FloatArray
    pool_limit: FloatArray

    @property
    def epochs(self) -> int:
        return len(self.rate)

    @property
    def types(self) -> int:
        return len(self.rent)

    def cost(self, path: IntArray) -> float:
        """What fleets that serve [T][G] cost [USD], pools and `may_rise` unchecked."""
        total = float((path @ self.rent).sum() + (np.maximum(np.diff(path, axis=0), 0) @ self.rise).sum())
        return total + (float(self.rise @ np.maximum(path[0] - self.initial, 0)) if self.initial is not None else 0.0)

    def useful(self) -> IntArray:
        """Counts [T][G] that some cheapest path never exceeds. O(T G (I + w)), w = rise / rent.

        What type g could serve of epoch s alone keeps alone_gs = ceil(sum_i r_si load_gi) replicas busy; one more, beyond the floor, is idle. Let h
        be a level of the path that is idle in w epochs on end, w rent_g >= rise_g. Off during that idle stretch it costs w rents less and at most one
        start more. So epoch t needs no more than min over stretches W of w epochs around t of max_{s in W} alone_gs. A stretch may reach beyond the
        end, where no start follows, but not before epoch 0, where a standing replica may have cost no start, and starts must be allowed after it.
        (`needs` is rounded down by more than 1e-12: what alone_g serves is served for all that bounds can see.)
        """
        found = np.tile(self.most, (self.epochs, 1))
        forbidden = np.flatnonzero(~self.may_rise)
        for g in np.flatnonzero(self.rent > 0):
            length = max(math.ceil(self.rise[g] / self.rent[g]), 1)
            length += length * self.rent[g] < self.rise[g]
            if length > self.epochs:
                continue
            load = np.where(np.isfinite(self.load[g]), self.load[g], 0.0)
            alone = np.maximum(np.ceil((self.rate @ load) * (1 - 1e-12)), self.least[:, g])
            padded = np.concatenate([alone, np.zeros(length - 1)])
            stretch = np.lib.stride_tricks.sliding_window_view(padded, length).max(axis=1)
            before = np.concatenate([np.full(length - 1, np.inf), stretch])
            limit = np.lib.stride_tricks.sliding_window_view(before, length).min(axis=1)
            limit[: int(forbidden.max(initial=-1)) + 1] = np.inf
            found[:, g] = np.minimum(found[:, g], np.where(np.isfinite(limit), limit, self.most[g]).astype(np.int64))
        return found

    def needs(self, prices: FloatArray) -> FloatArray:
        """sum_i r_ti min_g w_kg load_gi [K][T] for prices w [K][G] >= 0, rounded against us: every fleet m that `evaluate` accepts in epoch t has
        w_k.m >= needs[k][t]. O(K I (G + T))."""
        items = self.rate.shape[1]
        found: FloatArray = (self.units(prices) @ self.rate.T) * (1.0 - CERTIFICATE_SLACK + 1e-10) * (1.0 - 8 * (items + 4) * EPSILON)
        return found

    def units(self, prices: FloatArray) -> FloatArray:
        """min_g w_kg load_gi [K][I]: the cheapest way to serve one request/s of an item at prices w [K][G]."""
        unit = np.full((len(prices), self.rate.shape[1]), np.inf)
        for g in range(self.types):
            able = np.isfinite(self.load[g])
            unit[:, able] = np.minimum(unit[:, able], prices[:, g, None] * self.load[g, able])
        return np.where(np.isfinite(unit), unit, 0.0)

    def need_at(self, t: int, units: FloatArray) -> FloatArray:
        """As `needs`, in epoch t alone, from `units` [K][I]: [K]."""
        items = self.rate.shape[1]
        found: FloatArray = (units @ self.rate[t]) * (1.0 - CERTIFICATE_SLACK + 1e-10) * (1.0 - 8 * (items + 4) * EPSILON)
        return found

    def need_of(self, price: FloatArray) -> FloatArray:
        """As `needs`, for one price vector an epoch: [T] from [T][G]. O(T G I) in slabs."""
        found = np.empty(self.epochs)
        items = self.rate.shape[1]
        load = np.where(np.isfinite(self.load), self.load, 0.0)
        for begin in range(0, self.epochs, 512):
            part = slice(begin, begin + 512)
            unit = np.full((len(price[part]), items), np.inf)
            for g in range(self.types):
                able = np.isfinite(self.load[g])
                unit[:, able] = np.minimum(unit[:, able], price[part, g, None] * load[g, able])
            unit = np.where(np.isfinite(unit), unit, 0.0)
            found[part] = np.einsum("ti,ti->t", unit, self.rate[part])
        valid: FloatArray = found * (1.0 - CERTIFICATE_SLACK + 1e-10) * (1.0 - 8 * (items + 4) * EPSILON)
        return valid


def stages_of(instance: GpuSelection) -> Stages:
    """The instance in this form."""
    epochs = epochs_of(instance)
    rent = instance.price_usd_per_h * (epochs.epoch_s / 3600.0)
    delay, steps = epochs.start_delay_epochs, len(epochs.rate_per_s)
    load = load_per_request(instance) / instance.max_utilisation
    most = most_replicas_over_time(instance)
    may_rise = np.arange(steps) >= (delay if epochs.initial_count is not None else delay + 1)
    least = np.tile(np.minimum(instance.min_count, most), (steps, 1))
    initial = None
    if epochs.initial_count is not None:
        initial = np.minimum(np.array(epochs.initial_count, dtype=np.int64), most)
        least[:delay] = np.minimum(least[:delay], initial)
    return Stages(
        rent=rent,
        rise=np.array(epochs.start_cost_usd) + delay * rent,
        rate=epochs.rate_per_s,
        load=np.where(instance.can_serve, load, np.inf),
        least=least,
        most=most,
        initial=initial,
        may_rise=may_rise,
        pool_gpus=instance.pool_gpus,
        pool_limit=instance.pool_limit,
    )


def unserved_items(instance: GpuSelection) -> IntArray:
    """Items with load in some epoch that no type can serve."""
    found: IntArray = np.flatnonzero((epochs_of(instance).rate_per_s > 0).any(axis=0) & ~instance.can_serve.any(axis=0))
    return found


def crowded_pools(instance: GpuSelection) -> list[str]:
    """Pools with fewer GPUs than the floors of their types take."""
    taken = instance.pool_gpus @ instance.min_count
    return [pool.name for pool, used, limit in zip(instance.pools, taken, instance.pool_limit, strict=True) if used > limit]


def closed_form_value(instance: GpuSelection) -> float:
    """Every item on its cheapest type in every epoch, replicas divisible, starts and caps ignored [USD]. O(T G I).

    +inf if an item has no type, or a pool fewer GPUs than its types' floors take.
    """
    if len(unserved_items(instance)) or crowded_pools(instance):
        return float(np.inf)
    stages = stages_of(instance)
    needs = stages.needs(stages.rent[None, :])[0]
    return float(np.sum(needs)) * (1.0 - (stages.epochs + 8) * EPSILON)
