r"""Traffic over a chain of layers by prices of experts, where the sets that one device can hold are few.

Without spare slots a device holds a set of k = E / parts experts in each layer, so it sees a chain of sets S_0, .. S_(L-1) and keeps
sum_b p_b(S_b, S_b+1), the transitions inside. The parts' chains together use every expert of every layer exactly once. Pricing that rule with any
price_le gives, since all parts choose from the same chains,

    W <= sum_le price_le + parts max over chains of [ sum_b p_b(S_b, S_b+1) - sum_l price_l(S_l) ]

with the maximum found by max F_(L-1) from

    F_0(S) = - price_0(S),   F_b+1(T) = max over S of [ F_b(S) + p_b(S, T) ] - price_b+1(T).

The best prices give the bound of column generation over chains of sets, which for sixteen experts is tight to a fraction of a per cent where the
semidefinite chain is 10 % off. Recheck: the recurrence in numpy, O(B C(E, k)^2 k), sums rounded against us.

Sources: the master over chains of one device's sets is Dantzig and Wolfe's decomposition (doi 10.1287/opre.8.1.101); equipartition by columns:
Mehrotra and Trick, "Cliques and clustering" (doi 10.1016/S0167-6377(98)00006-6). Chains over layers are ours.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt

from headroom.bounds.expert_placement_traffic import EPSILON, Level, chain_applies, levels
from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MOST_WORK = 3e8
"""B C(E, k)^2 up to which sets are enumerated: a recheck takes a few seconds."""
CHUNK_ENTRIES = 4_000_000


def sets_apply(instance: ExpertPlacement) -> bool:
    """Whether there are no spare slots and the sets of each level are few enough."""
    if instance.transition is None or instance.layers < 2:
        return False
    wanted = levels(instance)
    return bool(wanted) and all(chain_applies(instance, level) and level_work(instance, level) <= MOST_WORK for level in wanted)


def level_work(instance: ExpertPlacement, level: Level) -> float:
    """B C(E, k)^2."""
    return float(math.comb(instance.experts, instance.experts // level.parts)) ** 2 * (instance.layers - 1)


def sets_of(experts: int, size: int) -> IntArray:
    """All sets of `size` experts [N][size], in lexicographic order."""
    return np.array(list(itertools.combinations(range(experts), size)), dtype=np.int64).reshape(-1, size)


def members(sets: IntArray, experts: int) -> FloatArray:
    """Sets as rows of 0 and 1 [N][E]."""
    found = np.zeros((len(sets), experts))
    np.put_along_axis(found, sets, 1.0, axis=1)
    return found


def best_before(inside: FloatArray, p: FloatArray, value: FloatArray) -> FloatArray:
    """The maximum over sets S of value[S] + p(S, T) for each T [N]; sets as rows of 0 and 1 [N][E]."""
    sends, after = inside @ p, np.empty_like(value)
    width = max(CHUNK_ENTRIES // len(inside), 1)
    for first in range(0, len(inside), width):
        after[first : first + width] = (sends @ inside[first : first + width].T + value[:, None]).max(axis=0)
    return after


def sets_within(transition: FloatArray, parts: int, price: FloatArray) -> float:
    """W by prices [L][E] of any sign, rounded up. O(B C(E, k)^2 k)."""
    experts = transition.shape[1]
    inside = members(sets_of(experts, experts // parts), experts)
    cost = price @ inside.T
    value = -cost[0]
    for b, p in enumerate(transition):
        value = best_before(inside, p, value) - cost[b + 1]
    return math.fsum([*price.ravel().tolist(), parts * float(value.max())]) + rounding(transition, parts, price)


def rounding(transition: FloatArray, parts: int, price: FloatArray) -> float:
    """More than the value of `parts` chains can be off: B k^2 transitions and L k prices are added up, k^2 or k at a time."""
    sizes = float(transition.sum()) + float(np.abs(price).sum())
    error: float = 4.0 * (len(price) + transition.shape[1]) * EPSILON * sizes * (parts + 1.0)
    return error
