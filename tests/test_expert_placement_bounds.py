"""Bounds of expert placement: solved by hand, against enumeration, and what forged certificates prove (never more than is true)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from headroom.bounds import expert_placement as bounds
from headroom.bounds.certificates import CertificateError
from headroom.bounds.expert_placement import recheck
from headroom.bounds.expert_placement_balance import replica_layers
from headroom.bounds.expert_placement_partitions import best_chain, number_of_partitions, partitions
from headroom.bounds.expert_placement_traffic import ChainPrices, Level, chain_within, levels, matching_within
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.expert_placement import ExpertPlacement
from tests.oracles.expert_placement import Oracle
from tests.test_expert_placement import with_traffic

TRAFFIC = {"balance": 0.0, "traffic": 1.0}
CLOSE = 1 + 1e-9


def made(instance: ExpertPlacement, method: str) -> Bound:
    params = SolveParams()
    found: Bound = getattr(bounds, method)(instance, params, Progress(params))
    return found


def value(data: Mapping[str, Any], method: str) -> float:
    return made(ExpertPlacement(**data), method).value


def proved(instance: ExpertPlacement, kind: str, prices: list[Any]) -> float:
    """What a certificate proves; one that is refused proves nothing."""
    try:
        return recheck(instance, Bound(0.0, kind, "certificate", {"kind": kind, "levels": prices}))
    except CertificateError:
        return -math.inf


# Balance, by hand.


def test_mean() -> None:
    assert value({"load": [[[8.0, 2.0], [0.0, 0.0]]], "devices": 2, "slots_per_device": 1, "weights": {"balance": 3.0}}, "mean") == pytest.approx(3.0)


def test_a_copy_more_is_all_that_fits() -> None:
    # Loads 8 2 1 1 on five devices of one slot: the one spare slot halves the 8, so somebody carries 4, and a mean device 12 / 5.
    data: dict[str, Any] = {"load": [[[8.0, 2.0, 1.0, 1.0]]], "devices": 5, "slots_per_device": 1}
    assert value(data, "replica") == pytest.approx(4 / 2.4)
    assert Oracle(data).best() == pytest.approx(4 / 2.4)
    # Shares that the plan chooses do not help: two copies carry 8 together.
    assert value(data | {"split": "optimal"}, "replica") == pytest.approx(4 / 2.4)
    # Four copies would fit beside one other expert, but only two devices can hold one each: 9 / 2 on a device whose mean is 10 / 2.
    two: dict[str, Any] = {"load": [[[9.0, 1.0]]], "devices": 2, "slots_per_device": 2}
    assert replica_layers(ExpertPlacement(**two)).tolist() == [1.0]
    # One load in a layer of one device: nothing to balance.
    assert value({"load": [[[5.0]]], "devices": 1, "slots_per_device": 1}, "replica") == pytest.approx(1.0)


def test_one_placement_serves_all_scenarios() -> None:
    # Each scenario alone halves its one heavy expert, by the one spare slot. Not both can have it: one stays whole, 4 of a mean of 4 / 3.
    data: dict[str, Any] = {"load": [[[4.0, 0.0]], [[0.0, 4.0]]], "devices": 3, "slots_per_device": 1}
    assert value(data, "replica") == pytest.approx(3.0)
    assert Oracle(data).best() == pytest.approx(3.0)
    assert value(data | {"robust": "mean"}, "replica") == pytest.approx(1.5)
    assert Oracle(data | {"robust": "mean"}).best() == pytest.approx((1.5 + 3.0) / 2)


def test_every_scenario_counts_at_least_one() -> None:
    # A scenario without load counts 1, the other is the one above: (1 + 4 / 2.4) / 2.
    data: dict[str, Any] = {"load": [[[0.0] * 4], [[8.0, 2.0, 1.0, 1.0]]], "devices": 5, "slots_per_device": 1, "robust": "mean"}
    assert Oracle(data).best() == pytest.approx(4 / 3)
    assert value(data, "replica") == pytest.approx(4 / 3)


def test_groups_stay_whole() -> None:
    # Groups of loads 5, 4, 3 on two nodes: 5 | 4 + 3 is best, 7 of a mean of 6. The enumeration says more: experts cannot be divided either.
    load = [[[5.0, 0.0, 4.0, 0.0, 3.0, 0.0]]]
    data: dict[str, Any] = {"load": load, "devices": 4, "devices_per_node": 2, "slots_per_device": 2, "n_groups": 3, "group_limited": True}
    assert value(data, "group") == pytest.approx(7 / 6)
    assert Oracle(data).best() == pytest.approx(4 / 3)
    assert value(data | {"group_limited": False}, "group") == pytest.approx(1.0)
    # Copies of an expert stay in its node: two devices of four, not four.
    one: dict[str, Any] = {"load": [[[8.0, 0.0, 0.0, 0.0]]], "devices": 4, "devices_per_node": 2, "slots_per_device": 2}
    assert value(one, "replica") == pytest.approx(1.0)
    assert value(one | {"n_groups": 2, "group_limited": True}, "replica") == pytest.approx(2.0)


# Traffic, by hand.


def test_the_best_matching_of_two() -> None:
    # One expert a device: tokens stay if the devices' next experts are the likelier ones. Kept 0.3 + 0.4, so 0.3 travel.
    data = with_traffic(0, 2, 2, 2, transition=[[[0.3, 0.2], [0.1, 0.4]]], hop_cost={"same_node": 2.0, "other_node": 9.0})
    for method in ("b_matching", "partitions", "chain_sdp"):
        assert value(data, method) == pytest.approx(0.6, rel=1e-4), method
    assert Oracle(data).best() == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("near", "far", "devices_per_node", "optimum", "bound"),
    [
        # All transitions alike, four experts on four devices: a token stays by chance 1 / 4, and within its pair of devices by 1 / 2.
        (1.0, 3.0, 2, 1 * 1 / 4 + 3 * 1 / 2, 1.75),
        (3.0, 1.0, 2, 3 * 1 / 4 + 1 * 1 / 2, 0.75),  # the cheaper hop for all that leave
        (0.3, 2.5, 1, 2.5 * 3 / 4, 1.875),  # nodes of one device: no hop within
        (0.3, 2.5, 4, 0.3 * 3 / 4, 0.225),  # one node: no hop between
        (3.0, 1.0, 1, 1.0 * 3 / 4, 0.75),
        (3.0, 1.0, 4, 3.0 * 3 / 4, 2.25),
        (0.0, 2.0, 2, 2.0 / 2, 1.0),
        (0.0, 0.0, 2, 0.0, 0.0),
    ],
)
def test_two_prices_of_hops(near: float, far: float, devices_per_node: int, optimum: float, bound: float) -> None:
    hops = {"same_node": near, "other_node": far}
    data = with_traffic(0, 2, 4, 4, transition=np.full((1, 4, 4), 1 / 16).tolist(), hop_cost=hops, devices_per_node=devices_per_node)
    assert Oracle(data).best() == pytest.approx(optimum)
    assert value(data, "b_matching") == pytest.approx(bound, rel=1e-9)
    assert value(data, "chain_sdp") == (-math.inf if far == 0.0 else pytest.approx(bound, rel=1e-4))
    assert len(levels(ExpertPlacement(**data))) == (0 if far == 0.0 else 2 if 0 < near < far and devices_per_node == 2 else 1)


def test_columns_count_every_part_that_may_hold_a_copy() -> None:
    # All tokens go to expert 0 of layer 1, and two of three devices can hold it. Capped like the rows, at one, only half of the tokens could stay.
    data = with_traffic(0, 2, 2, 3, transition=[[[0.5, 0.0], [0.5, 0.0]]], slots_per_device=1)
    instance = ExpertPlacement(**data)
    assert [(level.rows, level.columns) for level in levels(instance)] == [(1, 2)]
    assert Oracle(data).best() == pytest.approx(0.25)
    assert value(data, "b_matching") == pytest.approx(0.0, abs=1e-12)
    assert proved(instance, "b_matching", [{"row": [[0.0, 0.0]], "column": [[0.5, 0.0]]}]) == pytest.approx(0.0, abs=1e-12)
    # An expert twice on a device is one part, not two; two slots of one device see no more than two experts.
    doubles = ExpertPlacement(**data | {"slots_per_device": 2, "distinct": False, "devices": 2})
    assert [(level.rows, level.columns) for level in levels(doubles)] == [(2, 2)]


def test_sets_of_experts_are_no_free_meetings() -> None:
    # A ring: expert e goes to e or e + 1 of the next layer, an eighth of all tokens each, two experts a device. Who meets whom freely meets all
    # eight: b-matching says 0. Two experts of a device have three or four successors, of which two stand there: at most 3 of 4 eighths stay a device.
    ring = np.zeros((1, 4, 4))
    for e in range(4):
        ring[0, e, e] = ring[0, e, (e + 1) % 4] = 1 / 8
    data = with_traffic(0, 2, 4, 2, transition=ring.tolist())
    assert Oracle(data).best() == pytest.approx(0.25)
    assert value(data, "partitions") == pytest.approx(0.25)
    assert value(data, "b_matching") == pytest.approx(0.0, abs=1e-9)
    # Semidefinite: half stays by chance; the rest is at most the ring's second singular value sqrt(2) / 8 times tr(X - J / 2) = 2.
    assert value(data, "chain_sdp") == pytest.approx(0.5 - math.sqrt(2) / 4, rel=1e-3)


@pytest.mark.parametrize(("experts", "devices", "number"), [(4, 2, 3), (4, 4, 1), (5, 5, 1), (6, 2, 10), (6, 3, 15), (6, 6, 1)])
def test_partitions_are_exact_for_three_layers(experts: int, devices: int, number: int) -> None:
    assert number_of_partitions(experts, devices) == len(partitions(experts, devices)) == number
    for seed in range(4 if experts == devices else 8):
        data = with_traffic(seed, 3, experts, devices)
        instance, best = ExpertPlacement(**data), Oracle(data).best()
        found = made(instance, "partitions")
        assert found.value == pytest.approx(best, rel=1e-9), seed
        assert found.value <= best
        assert max(value(data, "b_matching"), value(data, "chain_sdp")) <= best * CLOSE, seed
        # The chain it found is one of partitions, and keeps what is left.
        kept, blocks = best_chain(instance)
        assert kept == pytest.approx(2 * (1 - best), rel=1e-9)
        assert (np.sort(blocks.reshape(3, -1), axis=1) == np.arange(experts)).all()
        # With two prices it bounds by the smaller one.
        two = data | {"devices_per_node": devices // 2 if devices % 2 == 0 else 1, "hop_cost": {"same_node": 1.0, "other_node": 1.7}}
        assert value(two, "partitions") <= Oracle(two).best() * CLOSE


def test_what_does_not_apply_says_nothing() -> None:
    spare = with_traffic(0, 2, 4, 2, slots_per_device=3)
    for method in ("partitions", "chain_sdp"):
        assert value(spare, method) == -math.inf
    alone: dict[str, Any] = {"load": [[[1.0, 1.0]]], "devices": 2, "slots_per_device": 1, "transition": [], "weights": {"traffic": 2.0}}
    assert value(alone, "b_matching") == pytest.approx(1.0)  # one layer, no boundary: balance alone
    assert value(alone, "partitions") == value(alone, "chain_sdp") == -math.inf
    assert value(with_traffic(0, 3, 4, 1), "b_matching") == 0.0  # one device: nobody leaves


# Any multipliers are a bound.


def random_place(rng: np.random.Generator, layers: int, experts: int, parts: int) -> Any:
    return np.array([rng.permutation(np.arange(experts) % parts) for _ in range(layers)])


@pytest.mark.parametrize("seed", range(12))
def test_no_multipliers_exclude_a_placement(seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts, parts, layers = ((4, 2), (6, 2), (6, 3), (5, 5))[seed % 4] + (int(rng.integers(2, 5)),)
    p = rng.dirichlet(np.full(experts * experts, 0.3), layers - 1).reshape(layers - 1, experts, experts)
    places = [random_place(rng, layers, experts, parts) for _ in range(40)]
    kept = max(math.fsum(p[b][place[b][:, None] == place[b + 1][None, :]].sum() for b in range(layers - 1)) for place in places)
    level = Level(parts, 1.0, experts // parts, experts // parts)
    for size in (0.0, 1e-3, 0.02, 1.0, 1e3, 1e9):
        row, column = size * rng.random((2, layers - 1, experts))
        assert matching_within(p, level, row, column) >= kept
        factor = rng.standard_normal((layers - 1, 2 * experts, 2 * experts))
        for psd in (factor, factor @ factor.transpose(0, 2, 1), -np.abs(factor)):
            prices = ChainPrices(size * psd, *(size * rng.standard_normal((2, layers - 1, experts))), size * rng.standard_normal((layers, experts)))
            assert chain_within(p, parts, prices) >= kept, size


def shifted(prices: Mapping[str, Any], by: float) -> dict[str, Any]:
    """The same semidefinite certificate with `by` J added to S, and what makes up for it: it proves the same."""
    layer = np.array(prices["layer"])
    layer[:-1] += by / 2
    layer[1:] += by / 2
    return {"psd": np.array(prices["psd"]) + by, "row": prices["row"] + by, "column": prices["column"] + by, "layer": layer}


def test_what_is_not_semidefinite_is_paid_for() -> None:
    # S = -s I is made 0 by the shift: what -s I seems to gain is paid back, and all that is left is that no more than all tokens stay.
    for experts, parts in ((4, 2), (6, 3)):
        p = np.random.default_rng(0).dirichlet(np.ones(experts * experts), 2).reshape(2, experts, experts)
        none = np.zeros((2, experts))
        for s in (1e-3, 1.0, 50.0):
            prices = ChainPrices(np.tile(-s * np.eye(2 * experts), (2, 1, 1)), none, none, np.zeros((3, experts)))
            assert chain_within(p, parts, prices) == pytest.approx(2.0, abs=1e-10 * max(s, 1.0))
    # Half a matrix: what stands only above the diagonal is not overlooked by looking below it.
    instance = ExpertPlacement(**with_traffic(0, 2, 4, 2, transition=np.full((1, 4, 4), 1 / 16).tolist()))
    for share in (-1.0, -0.5, 0.5, 1.0):
        for half in (np.triu, np.tril):
            half_psd = share * half(np.full((1, 8, 8), 1 / 16) - np.eye(8) / 16)
            half_psd[0, :4, :4] = half_psd[0, 4:, 4:] = 0.0
            prices_of = {"psd": half_psd, "row": np.zeros((1, 4)), "column": np.zeros((1, 4)), "layer": np.zeros((2, 4))}
            assert proved(instance, "chain_sdp", [prices_of]) <= 0.5 * CLOSE


def test_adding_nothing_changes_nothing() -> None:
    # J belongs to S >= 0, <J, Y - J / parts> = 0, and row, column and layer multipliers take it off again. An error in any coefficient would show.
    for experts, devices in ((6, 2), (6, 3), (5, 5)):
        instance = ExpertPlacement(**with_traffic(1, 4, experts, devices))
        found = made(instance, "chain_sdp")
        assert found.certificate is not None
        (prices,) = found.certificate["levels"]
        assert found.value > 0
        for by in (1e-3, 0.5, 40.0):
            assert proved(instance, "chain_sdp", [shifted(prices, by)]) == pytest.approx(found.value, abs=1e-10 * max(1.0, by))
        for by in (1e9, 1e15, 1e40, 1e90):  # the transitions drown in rounding, which is granted against the bound
            assert proved(instance, "chain_sdp", [shifted(prices, by)]) <= found.value + 1e-12


def test_a_long_chain_of_roundings_proves_nothing() -> None:
    # Two experts that never change: no traffic. 8,000 layers' diagonals of 1e-16 are lost one by one behind the first.
    layers = 8_000
    tokens = np.tile(np.eye(2) / 2, (layers - 1, 1, 1))
    instance = ExpertPlacement(load=np.ones((1, layers, 2)), devices=2, slots_per_device=1, transition=tokens, weights=TRAFFIC)
    nothing = {
        "psd": np.zeros((layers - 1, 4, 4)),
        "row": np.zeros((layers - 1, 2)),
        "column": np.zeros((layers - 1, 2)),
        "layer": np.zeros((layers, 2)),
    }
    for size in (2.0**40, 2.0**45, 2.0**50):
        for share in (0.24, 0.49, 0.9):
            by = np.full((layers - 1, 1), 2 * size * 2.0**-52 * share)
            by[0] = size
            prices = {
                "psd": nothing["psd"] + by[:, :, None],
                "row": nothing["row"] + by,
                "column": nothing["column"] + by,
                "layer": nothing["layer"].copy(),
            }
            prices["layer"][:-1] += by / 2
            prices["layer"][1:] += by / 2
            assert proved(instance, "chain_sdp", [prices]) <= 0.0


# Forged certificates.


def put(field: str, number: float) -> Callable[[dict[str, Any], Any], None]:
    def change(prices: dict[str, Any], rng: Any) -> None:
        flat = prices[field].reshape(-1)
        flat[rng.integers(flat.size)] = number

    return change


def times(factor: float) -> Callable[[dict[str, Any], Any], None]:
    def change(prices: dict[str, Any], rng: Any) -> None:
        for array in prices.values():
            array *= factor

    return change


def noise(size: float) -> Callable[[dict[str, Any], Any], None]:
    def change(prices: dict[str, Any], rng: Any) -> None:
        for array in prices.values():
            array += size * rng.standard_normal(array.shape)

    return change


FORGERIES = [
    *(put(field, number) for field in ("row", "column") for number in (1e90, -1e90, -1e-9, 1e15, math.nan, math.inf, 1e101)),
    *(times(factor) for factor in (0.0, -1.0, 0.5, 1 - 1e-9, 1 + 1e-9, 2.0, 1e90)),
    *(noise(size) for size in (1e-15, 1e-9, 1e-4, 1e-2, 1.0, 1e20)),
]
CHAIN_FORGERIES = [put(field, number) for field in ("psd", "layer") for number in (1e90, -1e90, 1e15, -1e-3, math.nan, -math.inf)]


@pytest.mark.parametrize("kind", ["b_matching", "chain_sdp"])
@pytest.mark.parametrize("seed", range(6))
def test_forged_certificates_prove_no_more_than_is_true(kind: str, seed: int) -> None:
    experts, devices = ((4, 2), (6, 2), (6, 3), (4, 4), (5, 5), (6, 6))[seed]
    hops = {"same_node": 1.0, "other_node": 2.5 if seed in (3, 5) else 1.0}
    data = with_traffic(seed, 3, experts, devices, hop_cost=hops, devices_per_node=2 if devices in (4, 6) else None)
    instance, best, rng = ExpertPlacement(**data), Oracle(data).best(), np.random.default_rng(seed)
    found = made(instance, kind)
    assert found.certificate is not None
    assert found.value <= best * CLOSE
    refused = 0
    for change in FORGERIES + (CHAIN_FORGERIES if kind == "chain_sdp" else []):
        prices = [{name: np.array(array) for name, array in level.items()} for level in found.certificate["levels"]]
        with np.errstate(invalid="ignore"):
            change(prices[int(rng.integers(len(prices)))], rng)
        forged = proved(instance, kind, prices)
        assert forged <= best * CLOSE
        refused += forged == -math.inf
    assert refused >= 6  # what is no number, or negative where that is not allowed


def test_malformed_certificates_are_refused() -> None:
    instance = ExpertPlacement(**with_traffic(0, 3, 4, 2))
    (good,) = made(instance, "chain_sdp").certificate["levels"]  # type: ignore[index]
    assert proved(instance, "chain_sdp", [good]) > 0
    for name, array in good.items():
        for bad in (array[:-1], array[..., :-1], array[None], array.ravel(), array.astype(str), array.astype(bool), array * 1j, None, "1", {}, []):
            assert proved(instance, "chain_sdp", [good | {name: bad}]) == -math.inf
        assert proved(instance, "chain_sdp", [{other: good[other] for other in good if other != name}]) == -math.inf
    for given in ([], [good, good], [None], ["x"], [[good]]):
        assert proved(instance, "chain_sdp", given) == -math.inf
    for certificate in ({"kind": "x", "levels": [good]}, {"levels": [good]}, {"kind": "b_matching", "levels": []}, {"kind": "b_matching"}):
        with pytest.raises(CertificateError):
            recheck(instance, Bound(0.0, "chain_sdp", "certificate", certificate))
    for name in ("row", "column"):
        assert proved(instance, "b_matching", [good | {"row": np.ones((2, 4)), "column": np.ones((2, 4)), name: np.full((2, 4), -1e-9)}]) == -math.inf
    # A certificate for no spare slots, where there are some; a closed form with a certificate, or one that nobody knows.
    spare = ExpertPlacement(**with_traffic(0, 3, 4, 2, slots_per_device=3))
    assert proved(spare, "chain_sdp", [good]) == -math.inf
    for bound in (Bound(0.0, "mean", "closed_form", {"kind": "x"}), Bound(0.0, "b_matching", "closed_form"), Bound(0.0, "b_matching", "certificate")):
        with pytest.raises(CertificateError):
            recheck(instance, bound)
