r"""Bounds for GPU selection over time, and the recheck of their certificates. `Stages` (in `gpu_selection_stages`) is the problem they see.

| certificate     | data                                            | value                                                                |
|-----------------|-------------------------------------------------|----------------------------------------------------------------------|
| `epoch_prices`  | y [T][G], cuts w [K][G], v [T], pool prices [T][P] | Lagrangian: sum_t v_t + the cheapest path of every replica         |
| `fleet_blocks`  | the same, blocks of epochs, level by level      | dynamic programming over the fleets that the prices cannot rule out  |

`active` and `active_ends` [T] name the cuts that matter in each epoch, to save time; every cut holds in every epoch.

Prices. Write every fleet twice, once as the fleet that must serve (m_t in F_t) and once as the paths of its replicas, and price the difference
with y_tg >= 0. The bound falls apart into (a) for every epoch the cheapest whole fleet in F_t at prices y_t, and (b) for every replica number j of
a type a path of its own, off or serving in each epoch, that pays rent, pool prices and rises and earns y. Any y is valid. v_t claims (a): the
recheck searches F_t (as far as the cuts know it) for a fleet cheaper than v_t, and takes the divisible fleet's cost, sum_i r_i min_g y_g load_gi,
where the claim fails or the search would take too long. With `with_cost` false rent and rises count nothing, and a value above 0 proves that
there is no plan. The best y gives the Dantzig-Wolfe bound over epochs; divisible values alone give the linear relaxation.

Blocks see the wholeness over time that prices cannot see, and are what few replicas need.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.certificates import NOTHING, CertificateError, floats, integers
from headroom.bounds.gpu_selection_blocks import Priced, blocks_value
from headroom.bounds.gpu_selection_fleets import cheapest_fleet
from headroom.bounds.gpu_selection_stages import EPSILON, Stages, stages_of, unserved_items
from headroom.instances.gpu_selection import GpuSelection

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
RECHECK_NODES = 2_000_000
"""Nodes of a search that confirms a claim."""


def path_value(stages: Stages, price: FloatArray, pool_price: FloatArray) -> float:
    """(b) above: the sum over all replicas of their cheapest paths, rounded down. O(T G)."""
    cost = stages.rent + (pool_price @ stages.pool_gpus if len(stages.pool_limit) else 0.0) - price
    total, error = 0.0, 0.0
    for number, replicas, stands, floor in _classes(stages):
        value, slack = _cheapest_path(stages, cost[:, number], number, stands, floor)
        total += replicas * value
        error += replicas * slack + EPSILON * abs(total)
    return total - 2 * error


def _classes(stages: Stages) -> list[tuple[int, int, bool, npt.NDArray[np.bool_]]]:
    """(type, how many replicas, whether they stand before epoch 0, [T] whether they must serve) of the replicas numbered 1..most, by kind."""
    found = []
    for g in range(stages.types):
        stand = int(stages.most[g]) if stages.initial is None else int(stages.initial[g])
        floors = np.unique(stages.least[:, g])
        borders = sorted({0, int(stages.most[g]), min(stand, int(stages.most[g])), *(int(f) for f in floors)})
        for below, upto in itertools.pairwise(borders):
            found.append((g, upto - below, upto <= stand, stages.least[:, g] >= upto))
    return found


def _cheapest_path(stages: Stages, cost: FloatArray, g: int, stands: bool, floor: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """One replica, off or serving in each epoch: least total of `cost` [T] over serving epochs and rises, and what rounding may have done to it."""
    rise = float(stages.rise[g])
    # Before epoch 0: standing replicas serve, others do not; a free first fleet stands.
    on, off = (0.0, math.inf) if stands else (math.inf, 0.0)
    error = 0.0
    for here, may_rise, must in zip(cost.tolist(), stages.may_rise.tolist(), floor.tolist(), strict=True):
        start = off + rise if may_rise else math.inf
        off = math.inf if must else min(on, off)
        on = min(on, start) + here
        error += EPSILON * max(abs(on) if on < math.inf else 0.0, abs(off) if off < math.inf else 0.0, rise)
    return min(on, off), 4 * error


@dataclass(frozen=True)
class _Prices:
    """What `epoch_prices` and `fleet_blocks` certificates share: prices, cuts, and the values that the recheck confirmed."""

    stages: Stages
    price: FloatArray
    pool_price: FloatArray
    value: FloatArray
    rules: Rules


def _prices(stages: Stages, certificate: Mapping[str, Any]) -> _Prices:
    steps, types = stages.epochs, stages.types
    price = floats(certificate, "price", (steps, types))
    cuts = floats(certificate, "cuts", (None, types))
    claimed = floats(certificate, "fleet_value", (steps,))
    pools = len(stages.pool_limit)
    pool_price = floats(certificate, "pool_price", (steps, pools)) if pools else np.zeros((steps, 0))
    for name, array in (("price", price), ("cuts", cuts), ("pool_price", pool_price)):
        if (array < 0).any():
            raise CertificateError(f"certificate.{name} must not be negative")
    rules = Rules(stages, cuts, _active(certificate, steps, len(cuts)))
    return _Prices(stages, price, pool_price, fleet_values(stages, price, claimed, rules), rules)


def _active(certificate: Mapping[str, Any], steps: int, cuts: int) -> list[IntArray] | None:
    """Which cuts to look at in each epoch; all where the certificate does not say."""
    if "active" not in certificate:
        return None
    ends, chosen = integers(certificate, "active_ends", (steps,)), integers(certificate, "active", (None,))
    if (np.diff(ends, prepend=0) < 0).any() or ends[-1] != len(chosen):
        raise CertificateError("certificate.active_ends must rise to the length of certificate.active")
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= cuts):
        raise CertificateError(f"certificate.active must name cuts from 0 to {cuts - 1}")
    return np.split(chosen, ends[:-1])


class Rules:
    """The covering rules of each epoch: cuts w [K][G], all of them or those that `active[t]` names, and what the epoch needs at them."""

    def __init__(self, stages: Stages, cuts: FloatArray, active: Sequence[IntArray | list[int]] | None) -> None:
        self.stages, self.cuts, self.active = stages, cuts, active
        self._units = stages.units(cuts)

    def __call__(self, t: int) -> tuple[FloatArray, FloatArray]:
        """(A [K][G], b [K])."""
        if self.active is None:
            return self.cuts, self.stages.need_at(t, self._units)
        chosen = self.active[t]
        return self.cuts[chosen], self.stages.need_at(t, self._units[chosen])


def fleet_values(stages: Stages, price: FloatArray, claimed: FloatArray, rules: Rules) -> FloatArray:
    """(a) above: what no fleet of an epoch undercuts [T]; the claim where a search confirms it, else the divisible fleet's cost."""
    divisible = stages.need_of(price) * (1 - 1e-12)
    value = divisible.copy()
    for t in np.flatnonzero(claimed > divisible):
        cuts, needs = rules(int(t))
        rows, need = np.vstack([price[t], cuts]), np.append(divisible[t], needs)
        _, cheaper, proved = cheapest_fleet(price[t], rows, need, stages.most, float(claimed[t]), RECHECK_NODES)
        if proved and cheaper is None:
            value[t] = claimed[t] * (1 - 1e-11)
    return value


def prices_value(instance: GpuSelection, certificate: Mapping[str, Any]) -> float:
    """What an `epoch_prices` certificate proves [USD]. O(T K) when claims are divisible fleets', else a search in F_t for each other epoch."""
    stages = stages_of(instance)
    with_cost = bool(certificate.get("with_cost", True))
    if not with_cost:
        stages = replace(stages, rent=np.zeros(stages.types), rise=np.zeros(stages.types))
    prices = _prices(stages, certificate)
    pool_price = prices.pool_price
    pool_cost = math.fsum((pool_price * stages.pool_limit).ravel()) * (1 + 1e-14) if len(stages.pool_limit) else 0.0
    whole = math.fsum(prices.value)
    paths = path_value(stages, prices.price, pool_price)
    total = whole + paths - pool_cost
    total -= 8 * EPSILON * (abs(whole) + abs(paths) + abs(pool_cost))
    if not with_cost:
        return math.inf if total > NOTHING else -math.inf
    return total


def fleet_blocks_value(instance: GpuSelection, certificate: Mapping[str, Any]) -> float:
    """What a `fleet_blocks` certificate proves [USD]: see `gpu_selection_blocks`."""
    prices = _prices(stages_of(instance), certificate)
    return blocks_value(Priced(prices.stages, prices.price, prices.pool_price, prices.value, prices.rules), certificate)


def recheck_epochs(instance: GpuSelection, certificate: Mapping[str, Any]) -> float:
    """The value an epochs certificate proves; +inf: no plan. Raises `CertificateError`."""
    if len(unserved_items(instance)):
        return math.inf
    kind = certificate.get("kind")
    if kind == "epoch_prices":
        return prices_value(instance, certificate)
    if kind == "fleet_blocks":
        return fleet_blocks_value(instance, certificate)
    raise CertificateError(f"certificate.kind must be 'epoch_prices' or 'fleet_blocks', got {kind!r}")
