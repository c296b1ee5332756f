"""Traffic by chains of sets: against the recurrence over all partitions, with any prices, closed by enumeration, and forged."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from headroom.bounds.expert_placement import chain_sets, recheck
from headroom.bounds.expert_placement_partitions import best_chain, partitions
from headroom.bounds.expert_placement_sets import sets_apply, sets_of, sets_within
from headroom.bounds.expert_placement_sets_close import can_close, closed_within, partitions_worth, through_sets
from headroom.bounds.expert_placement_sets_search import Prices
from headroom.bounds.expert_placement_traffic import levels
from headroom.formulations.progress import Progress
from headroom.formulations.types import SolveParams
from headroom.instances.expert_placement import ExpertPlacement
from headroom.run import run
from tests.test_expert_placement_bounds import made, proved

CLOSE = 1 + 1e-9


def chain(seed: int, experts: int, devices: int, layers: int, **other: Any) -> ExpertPlacement:
    rng = np.random.default_rng([7, seed])
    table = rng.dirichlet(np.full(experts * experts, 0.3), layers - 1).reshape(layers - 1, experts, experts)
    weights = {"balance": 0.0, "traffic": 1.0}
    data: dict[str, Any] = {"load": np.ones((1, layers, experts)), "transition": table, "weights": weights, "devices": devices}
    return ExpertPlacement(**(data | {"slots_per_device": experts // devices} | other))


def transition(instance: ExpertPlacement) -> Any:
    assert instance.transition is not None
    return instance.transition


CASES = [(0, 6, 2, 4), (1, 6, 3, 3), (2, 8, 4, 3), (3, 8, 2, 5), (4, 4, 4, 3), (5, 9, 3, 4), (6, 2, 2, 2)]


@pytest.mark.parametrize("case", CASES)
def test_any_prices_bound_what_partitions_keep(case: tuple[int, int, int, int]) -> None:
    instance = chain(*case)
    kept, _ = best_chain(instance)
    rng = np.random.default_rng(case[0])
    for size in (0.0, 0.01, 0.1, 1.0, 1e6):
        price = size * rng.normal(size=(instance.layers, instance.experts))
        within = sets_within(transition(instance), instance.devices, price)
        assert within >= kept
        # The compiled recurrence says the same as numpy's, and every chain's best set leads to the same chain.
        prices = Prices(transition(instance), instance.devices, 1)
        assert prices.hard(price) == pytest.approx(within, rel=1e-12, abs=1e-9 * (1 + size))
        np.testing.assert_allclose(prices.through(price, 0.0), through_sets(transition(instance), instance.devices, price), atol=1e-12 * (1 + size))
        # Closing by enumeration: never below the truth whatever flow is claimed, and the truth itself when that is claimed.
        for claim in (0.5 * kept, 0.99 * kept, kept, 1.01 * kept):
            assert closed_within(transition(instance), instance.devices, price, claim) >= kept
        if instance.experts <= 8:
            assert closed_within(transition(instance), instance.devices, price, kept) <= kept + 1e-8 * (1 + size)


def test_smooth_values_have_their_gradient() -> None:
    instance = chain(0, 6, 2, 4)
    prices = Prices(transition(instance), 2, 2)
    rng = np.random.default_rng(0)
    price = 0.1 * rng.normal(size=(4, 6))
    for tau in (0.3, 0.03, 0.003):
        value, gradient = prices.smooth(price, tau)
        assert prices.hard(price) <= value + 1e-6 * tau
        way = rng.normal(size=price.shape)
        step = 1e-3 * tau
        numeric = (prices.smooth(price + step * way, tau)[0] - prices.smooth(price - step * way, tau)[0]) / (2 * step)
        assert (gradient * way).sum() == pytest.approx(numeric, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_the_best_prices_are_nearly_exact(case: tuple[int, int, int, int]) -> None:
    instance = chain(*case)
    kept, _ = best_chain(instance)
    bound = made(instance, "chain_sets")
    exact = (instance.layers - 1 - kept) / (instance.layers - 1)
    assert 0.97 * exact - 1e-9 <= bound.value <= exact * CLOSE
    assert recheck(instance, bound) == pytest.approx(bound.value, rel=1e-12)
    assert bound.value >= made(instance, "b_matching").value * (1 - 1e-2)


def test_sets_by_hand() -> None:
    # Four experts on two devices, two layers: 0 and 1 send to 0 and 1, 2 and 3 to 2 and 3, but a tenth goes astray: 0.1 of the tokens travel.
    table = [[[0.2, 0.25, 0.05, 0], [0, 0, 0, 0], [0.05, 0, 0.2, 0.25], [0, 0, 0, 0]]]
    instance = chain(0, 4, 2, 2, transition=table)
    assert made(instance, "chain_sets").value == pytest.approx(0.1, abs=1e-4)
    # Without prices each device may take {0, 2}, which sends half of all tokens to any two experts.
    assert sets_within(transition(instance), 2, np.zeros((2, 4))) == pytest.approx(1.0)


def test_partitions_worth_a_sum() -> None:
    rng = np.random.default_rng(3)
    for experts, parts in ((6, 2), (6, 3), (8, 4), (8, 2), (9, 3), (5, 5), (4, 1)):
        sets = sets_of(experts, experts // parts)
        value = rng.normal(size=len(sets))
        number = {tuple(each): n for n, each in enumerate(sets.tolist())}
        every = [sorted(number[tuple(block)] for block in split) for split in partitions(experts, parts).tolist()]
        for need in (-np.inf, -1.0, 0.5, 2.0, 50.0):
            wanted = sorted(split for split in every if value[split].sum() >= need)
            found = partitions_worth(value, sets, parts, need, 10_000)
            assert found is not None
            assert sorted(sorted(split) for split in found[0].tolist()) == wanted
            np.testing.assert_allclose(value[found[0]].sum(axis=1), found[1])
            if len(wanted) > 1:
                assert partitions_worth(value, sets, parts, need, len(wanted) - 1) is None


def test_where_sets_do_not_apply() -> None:
    spare = chain(0, 4, 2, 3, slots_per_device=3)
    many = chain(0, 30, 3, 2)
    assert not sets_apply(spare)
    assert not sets_apply(many)
    for instance in (spare, many):
        assert made(instance, "chain_sets").value == -math.inf
        assert proved(instance, "chain_sets", [{"price": np.zeros((instance.layers, instance.experts))}]) == -math.inf
    assert not can_close(70, 35)
    assert closed_within(np.full((1, 24, 24), 1 / 576), 12, np.zeros((2, 24)), 0.5) == math.inf


def test_nodes_and_devices() -> None:
    # A hop in the node costs 1, another 3: a level of devices at 1 and one of nodes at 2; the bound stays below every placement, here all of them.
    instance = chain(1, 4, 4, 3, devices_per_node=2, hop_cost={"same_node": 1.0, "other_node": 3.0})
    assert len(levels(instance)) == 2
    bound = made(instance, "chain_sets")
    hop = instance.hop()
    table = transition(instance)
    places = [np.array(place) for place in itertools.permutations(range(4))]
    best = min(sum((table[b] * hop[way[b][:, None], way[b + 1][None, :]]).sum() for b in range(2)) for way in itertools.product(places, repeat=3)) / 2
    assert 0.9 * best <= bound.value <= best * CLOSE
    assert recheck(instance, bound) == pytest.approx(bound.value)


def test_forged_certificates() -> None:
    instance = chain(1, 6, 3, 3)
    kept, _ = best_chain(instance)
    exact = (2 - kept) / 2
    price = np.zeros((3, 6))
    good = {"price": price, "kept": kept}
    assert proved(instance, "chain_sets", [good]) == pytest.approx(exact)
    for claim in (0.0, 0.9 * kept, -5.0, 1.5):
        assert proved(instance, "chain_sets", [good | {"kept": claim}]) <= exact * CLOSE
    bad_prices: list[Any] = [price[:, :5], price[:2], np.full((3, 6), np.nan), np.full((3, 6), np.inf), None, "x", [[True] * 6] * 3]
    for bad in bad_prices:
        assert proved(instance, "chain_sets", [good | {"price": bad}]) == -math.inf
    bad_claims: list[Any] = [True, "1", math.nan, math.inf, [1.0], {}]
    for bad in bad_claims:
        assert proved(instance, "chain_sets", [good | {"kept": bad}]) == -math.inf
    for levels_given in ([good, good], [{}], [None], "x"):
        assert proved(instance, "chain_sets", levels_given) == -math.inf  # type: ignore[arg-type]


def test_local_search_proves_chains() -> None:
    for seed, experts, devices, layers in ((0, 12, 3, 6), (1, 12, 4, 8), (2, 10, 5, 6)):
        instance = chain(seed, experts, devices, layers)
        result = run(instance, "local_search", SolveParams(time_limit_s=5, threads=2))
        kept, _ = best_chain(instance) if experts < 12 else (None, None)
        assert result.certified_gap < 0.05
        if kept is not None:
            assert result.objective == pytest.approx((layers - 1 - kept) / (layers - 1))
        assert all(recheck(instance, bound) >= bound.value * (1 - 1e-12) for bound in result.bounds)


def test_a_stop_keeps_what_is_proved() -> None:
    instance = chain(3, 12, 3, 8)
    params = SolveParams(time_limit_s=0.0)
    bound = chain_sets(instance, params, Progress(params))
    assert 0.0 < bound.value < 1.0
    assert recheck(instance, bound) == pytest.approx(bound.value)


@pytest.mark.parametrize("near", [0.0, 0.5])
def test_hops_that_cost_nothing_within_nodes(near: float) -> None:
    # With near 0 the only level is that of nodes: prices of nodes' sets say nothing of devices' partitions, and no plan is made of them.
    instance = chain(4, 8, 4, 3, devices_per_node=2, hop_cost={"same_node": near, "other_node": 1.0})
    result = run(instance, "local_search", SolveParams(time_limit_s=2))
    assert 0.0 < result.certified_bound <= result.objective
    assert all(recheck(instance, bound) >= bound.value * (1 - 1e-12) for bound in result.bounds)
