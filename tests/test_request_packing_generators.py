"""Generators of request packing: classes have the sizes and the optima they claim, backlogs the published lengths."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headroom.instances.errors import InputError
from headroom.instances.request_packing import RequestPacking
from headroom.instances.request_packing_augmented import AUGMENTED, CHORDS, augmented, core, covered_by_triples
from headroom.instances.request_packing_classes import (
    SCHOLL_3,
    SCHWERIN_1,
    SCHWERIN_2,
    cmax_exponential,
    cmax_full,
    cmax_uniform,
    delorme_random,
    full_bins,
    hard28_like,
    many_sizes,
    scholl_1,
    scholl_2,
    triplets,
    uniform,
    waescher,
)
from headroom.instances.request_packing_generators import (
    LENGTHS,
    adapter_batches,
    backlog,
    drawn_lengths,
    gsm8k_like,
    moment_lengths,
    popular,
    quantile_lengths,
    shared_prefixes,
)
from tests.oracles.request_packing import Oracle

IntArray = npt.NDArray[np.int64]


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def error_of(function: Any, *args: Any, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        function(rng(), *args, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def capacity_of(instance: RequestPacking) -> int:
    assert instance.capacity_tokens is not None
    return instance.capacity_tokens


def first_fit_decreasing(instance: RequestPacking) -> int:
    room: list[int] = []
    for size in sorted(instance.size.tolist(), reverse=True):
        at = next((b for b, free in enumerate(room) if free >= size), None)
        if at is None:
            room.append(capacity_of(instance) - size)
        else:
            room[at] -= size
    return len(room)


# ---- Lengths ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LENGTHS)
def test_traffic_has_its_published_quantiles(name: str) -> None:
    # The standard error of a quantile of 10^5 draws is below 2 % even in the long tails; whole tokens matter where the median is 13.
    known = LENGTHS[name]
    for drawn, quantiles in zip(drawn_lengths(rng(), 100_000, name, 2**30), (known.prompt_tokens, known.output_tokens), strict=True):
        assert np.quantile(drawn, (0.5, 0.9, 0.99)) == pytest.approx(np.array(quantiles), rel=0.04, abs=1)
        assert drawn.min() >= 1


def test_quantiles_on_a_line_are_a_lognormal() -> None:
    # exp(z) · 100: median 100, and the 10th percentile is as far below as the 90th above.
    drawn = quantile_lengths(rng(), 200_000, (1000.0, 1000 * np.exp(1.2815515655), 1000 * np.exp(2.3263478740)))
    assert np.log(drawn / 1000).mean() == pytest.approx(0, abs=0.01)
    assert np.log(drawn / 1000).std() == pytest.approx(1, rel=0.01)
    assert quantile_lengths(rng(), 1000, (1.0, 1.0, 900.0), most=20).max() == 20


def test_moments() -> None:
    drawn = moment_lengths(rng(), 200_000, 345.0, 188.0)
    assert (drawn.mean(), drawn.std()) == (pytest.approx(345, rel=0.01), pytest.approx(188, rel=0.02))
    assert set(moment_lengths(rng(), 10, 7, 0).tolist()) == {7}


def test_long_requests_are_cut_to_the_window() -> None:
    prompt, output = drawn_lengths(rng(), 20_000, "servegen-deepseek-r1", 4_000)
    whole_prompt, whole_output = drawn_lengths(rng(), 20_000, "servegen-deepseek-r1", 2**30)
    long = whole_prompt + whole_output > 4_000
    assert 0.2 < long.mean() < 0.8
    assert (prompt + output).max() == 4_000
    assert min(prompt.min(), output.min()) >= 1
    assert (prompt[~long] == whole_prompt[~long]).all()
    assert (output[~long] == whole_output[~long]).all()
    assert (output <= whole_output).all()
    assert (prompt <= whole_prompt).all()


# ---- Backlogs --------------------------------------------------------------------------------------------------------------------------


def test_backlogs_fit_their_bins() -> None:
    instance = backlog(rng(), requests=5_000, lengths="mooncake", capacity_tokens=16_384)
    assert (instance.count, instance.capacity_tokens, instance.size.max()) == (5_000, 16_384, 16_384)
    assert instance.plain


def test_popularity_falls_like_zipf() -> None:
    share = np.bincount(popular(rng(), 100_000, 20, 1.0)) / 100_000
    weight = 1 / np.arange(1, 21)
    assert share == pytest.approx(weight / weight.sum(), abs=0.005)
    assert np.bincount(popular(rng(), 100_000, 20, 0.0)).std() < 150
    assert sorted(set(popular(rng(), 30, 20, 5.0).tolist())) == list(range(20))
    assert sorted(popular(rng(), 3, 20, 5.0).tolist()) == [0, 1, 2]


def test_shared_prefixes_are_long_and_shared() -> None:
    instance = shared_prefixes(rng(), requests=5_000, prefixes=400, alone_share=0.2, capacity_tokens=20_000)
    assert instance.requests.group is not None
    assert not instance.plain
    assert instance.padded.max() <= 20_000
    alone = instance.requests.group < 0
    assert alone.mean() == pytest.approx(0.2, abs=0.02)
    assert isinstance(instance.group_overhead_tokens, np.ndarray)
    assert np.quantile(instance.group_overhead_tokens, (0.5, 0.9)) == pytest.approx(np.array([2_000, 8_000]), rel=0.2)
    assert instance.group_overhead_tokens.max() <= 10_000
    assert instance.groups == 400 or len(instance.group_overhead_tokens) == 400


def test_adapters_are_padded() -> None:
    instance = adapter_batches(rng(), requests=2_000, adapters=5, padding_multiple=100, capacity_tokens=2_050)
    assert (instance.groups, instance.padding_multiple, instance.plain) == (5, 100, False)
    assert instance.padded.max() <= 2_050
    assert not instance.overhead.any()


def test_gsm8k() -> None:
    drawn = [gsm8k_like(rng(seed)) for seed in range(20)]
    prompt = np.concatenate([instance.requests.prompt_tokens for instance in drawn])
    output = np.concatenate([instance.requests.output_tokens for instance in drawn])
    assert (prompt.mean(), prompt.std()) == (pytest.approx(68, rel=0.02), pytest.approx(25, rel=0.05))
    assert (output.mean(), output.std()) == (pytest.approx(345, rel=0.02), pytest.approx(188, rel=0.05))
    first = drawn[0]
    assert (first.count, first.slots, first.decode_step_s, len(first.prefill_levels)) == (1_319, 200, 0.075, 7)
    assert first.level_s.tolist() == [0.060, 0.065, 0.107, 0.213, 0.427, 0.853, 1.707]
    assert first.level_tokens.tolist() == [256 * 2**k for k in range(7)]
    # The paper's run takes about 180 s: the decoding of a mean slot and the prompts at the last level's rate.
    seconds = [i.requests.output_tokens.sum() / 200 * 0.075 + i.requests.prompt_tokens.sum() / 16_384 * 1.707 for i in drawn]
    assert np.mean(seconds) == pytest.approx(180, rel=0.02)
    without = gsm8k_like(rng(0), prefill=False)
    assert without.prefill_levels == ()
    assert without.requests.output_tokens.tolist() == first.requests.output_tokens.tolist()


# ---- Classes -----------------------------------------------------------------------------------------------------------------------------


def test_uniform_sizes() -> None:
    instance = uniform(rng(), requests=20_000)
    assert (instance.capacity_tokens, set(instance.size.tolist())) == (150, set(range(20, 101)))
    assert instance.requests.output_tokens.max() == 0


def test_the_librarys_settings_are_all_there() -> None:
    settings = {"scholl 1": list(scholl_1()), "scholl 2": list(scholl_2()), "random": list(delorme_random())}
    assert {name: len(found) for name, found in settings.items()} == {"scholl 1": 36, "scholl 2": 48, "random": 384}
    for found in itertools.chain(*settings.values(), (SCHOLL_3, SCHWERIN_1, SCHWERIN_2)):
        instance = uniform(rng(), **found)
        assert (instance.count, instance.capacity_tokens) == (found["requests"], found["capacity_tokens"])
        assert found["least"] <= instance.size.min() <= instance.size.max() <= found["most"] <= found["capacity_tokens"]
    # A third of 1,000 and 20 % around it; a ninth and 90 %; 10 % and 80 % of 125.
    assert settings["scholl 2"][0] == {"requests": 50, "capacity_tokens": 1000, "least": 267, "most": 400}
    assert settings["scholl 2"][-1] == {"requests": 500, "capacity_tokens": 1000, "least": 12, "most": 211}
    assert {"requests": 50, "capacity_tokens": 125, "least": 13, "most": 100} in settings["random"]


@pytest.mark.parametrize(("requests", "capacity_tokens"), [(60, 1000), (501, 1000), (30, 101), (300, 1_500_000)])
def test_triplets_fill_their_bins(requests: int, capacity_tokens: int) -> None:
    instance = triplets(rng(), requests=requests, capacity_tokens=capacity_tokens)
    assert instance.size.sum() == requests // 3 * capacity_tokens
    assert instance.provenance == {"optimum": requests // 3}
    assert 4 * instance.size.min() >= capacity_tokens
    assert 2 * instance.size.max() <= capacity_tokens


def test_small_built_instances_have_the_optima_they_claim() -> None:
    for seed in range(20):
        for instance in (
            triplets(rng(seed), requests=9),
            full_bins(rng(seed), bins=3, capacity_tokens=50, most_parts=3),
            cmax_full(rng(seed), slots=3, time_s=20, most_parts=3),
        ):
            oracle = Oracle(instance.data())
            best = oracle.best() if instance.objective == "bins" else oracle.cmax()
            assert best == instance.provenance["optimum"]


def test_hard28_like_sizes_and_optimum() -> None:
    beaten = 0
    for seed, requests in enumerate((160, 170, 180, 190, 200, 160, 170, 180, 190, 200)):
        instance = hard28_like(rng(seed), requests=requests)
        optimum = instance.provenance["optimum"]
        assert instance.count == requests
        assert instance.size.max() <= 800
        assert instance.size.sum() == optimum * 1000 - 100  # so it takes `optimum` bins at least; those it was cut from are as many
        assert 0.3 * requests < optimum < 0.45 * requests
        assert 0.25 < (instance.size > 500).mean() < 0.42  # 3 of 8 of sizes that are uniform up to 800
        assert len(set(instance.size.tolist())) > 100
        beaten += first_fit_decreasing(instance) > optimum
    assert beaten >= 8
    assert hard28_like(rng(), slack=0).size.sum() % 1000 == 0


def test_waescher_has_few_sizes_and_many_sizes_many() -> None:
    few = waescher(rng(), distinct=30, requests=200)
    assert (few.count, few.capacity_tokens, few.size.max() <= 5_000) == (200, 10_000, True)
    assert 25 <= len(set(few.size.tolist())) <= 30
    assert waescher(rng(), distinct=1, requests=5).count == 5
    assert len(set(waescher(rng(), distinct=5, requests=5).size.tolist())) >= 4
    many = many_sizes(rng(), distinct=400, requests=1_000, capacity_tokens=1_500_000)
    assert (many.count, many.capacity_tokens, len(set(many.size.tolist()))) == (1_000, 1_500_000, 400)
    assert (many.size.min() >= 30_000, many.size.max() <= 900_000) == (True, True)


# ---- Augmented ---------------------------------------------------------------------------------------------------------------------------


def exact_triples(sizes: IntArray, capacity_tokens: int) -> list[tuple[int, int, int]]:
    """Indices of three items that fill a bin, by trying all pairs."""
    at = {size: np.flatnonzero(sizes == size).tolist() for size in set(sizes.tolist())}
    pairs = itertools.combinations(range(len(sizes)), 2)
    return [(i, j, k) for i, j in pairs for k in at.get(capacity_tokens - int(sizes[i]) - int(sizes[j]), []) if k > j]


def disjoint_triples_cover(count: int, triples: list[tuple[int, int, int]]) -> bool:
    """Whether disjoint triples cover 0 .. count - 1: the item with the fewest triples first."""
    if not count:
        return True

    def cover(left: frozenset[int], usable: list[tuple[int, int, int]]) -> bool:
        if not left:
            return True
        usable = [triple for triple in usable if left.issuperset(triple)]
        item = min(left, key=lambda i: sum(i in triple for triple in usable))
        return any(cover(left.difference(triple), usable) for triple in usable if item in triple)

    return cover(frozenset(range(count)), triples)


@pytest.mark.parametrize("irup", [True, False])
def test_cores_are_what_they_claim(irup: bool) -> None:
    for seed in range(4):
        sizes = core(rng(seed), 2_000, irup)
        assert (len(sizes), sizes.sum()) == (3 * CHORDS, CHORDS * 2_000)
        assert (4 * sizes > 2_000).all()
        assert (2 * sizes < 2_000).all()
        triples = exact_triples(sizes, 2_000)
        assert disjoint_triples_cover(len(sizes), triples) is covered_by_triples(sizes, 2_000) is irup
        # Half of each star covers each item once: there are 2 t triples in which every item stands twice.
        assert len(triples) >= 2 * CHORDS
        degree = np.bincount(np.ravel(triples), minlength=len(sizes))
        assert degree.min() >= 2
        if not irup:
            packed = RequestPacking(requests={"prompt_tokens": sizes, "output_tokens": 0 * sizes}, objective="bins", capacity_tokens=2_000)
            assert first_fit_decreasing(packed) == CHORDS + 1


@pytest.mark.parametrize(("requests", "capacity_tokens"), [(21, 1_000), (60, 2_500), *AUGMENTED[:2]])
@pytest.mark.parametrize("irup", [True, False])
def test_no_exact_triple_mixes_core_and_augmentation(requests: int, capacity_tokens: int, irup: bool) -> None:
    instance = augmented(rng(), requests=requests, capacity_tokens=capacity_tokens, irup=irup)
    sizes = instance.size
    assert (len(sizes), sizes.sum()) == (requests, requests // 3 * capacity_tokens)
    assert (4 * sizes > capacity_tokens).all()
    assert (2 * sizes < capacity_tokens).all()
    assert instance.provenance == {"optimum": requests // 3 + (not irup), "relaxation": requests // 3}
    inner = sizes % 5 == 0
    assert inner.sum() == 3 * CHORDS
    triples = np.array(exact_triples(sizes, capacity_tokens))
    inside = inner[triples].sum(axis=1)
    assert set(inside.tolist()) == ({0, 3} if requests > 21 else {3})
    assert covered_by_triples(sizes[inner], capacity_tokens) is irup
    assert requests == 21 or len(triples) > requests  # many more than the ones it was made of, so that finding them is hard


def test_small_sets_covered_or_not() -> None:
    assert covered_by_triples(np.array([4, 3, 3, 5, 3, 2]), 10)
    assert covered_by_triples(np.array([3, 3, 3, 5, 4, 2]), 10)  # 5 + 3 + 2 must go first
    assert covered_by_triples(np.array([], np.int64), 10)
    assert not covered_by_triples(np.array([7, 4, 4, 3, 1, 1]), 10)  # nothing completes 7
    both = set()
    for seed in range(200):
        drawn = rng(seed).integers(1, 6, 8)
        sizes = np.concatenate((drawn, [30 - drawn.sum()]))  # three triples' worth in all
        found = covered_by_triples(sizes, 10)
        assert found is disjoint_triples_cover(9, exact_triples(sizes, 10)), sizes
        both.add(found)
    assert both == {True, False}


# ---- Parallel machines -------------------------------------------------------------------------------------------------------------------


def test_parallel_machines() -> None:
    instance = cmax_uniform(rng(), requests=5_000, slots=7, least=9_800, most=9_999)
    assert (instance.objective, instance.slots, instance.decode_step_s, instance.prefill_levels) == ("makespan", 7, 1.0, ())
    assert set(instance.requests.output_tokens.tolist()) == set(range(9_800, 10_000))
    times = cmax_exponential(rng(), requests=20_000, slots=7, mean=100).requests.output_tokens
    # The ceiling of an exponential is geometric with success 1 - exp(-1/100): mean 100.5.
    assert (times.min(), times.mean()) == (1, pytest.approx(100.5, rel=0.03))
    full = cmax_full(rng(), slots=6, time_s=500)
    assert full.requests.output_tokens.sum() == 3_000
    assert full.provenance == {"optimum": 500}


def test_the_same_seed_gives_the_same_instance() -> None:
    makers: list[Any] = [
        lambda r: uniform(r, requests=50), lambda r: triplets(r, requests=60), hard28_like, waescher, many_sizes, augmented,
        lambda r: full_bins(r, bins=9), lambda r: cmax_uniform(r, requests=50, slots=4), lambda r: cmax_exponential(r, requests=50, slots=4),
        lambda r: shared_prefixes(r, requests=50, prefixes=4), lambda r: adapter_batches(r, requests=50, adapters=4),
        lambda r: backlog(r, requests=50, lengths="azure-code", capacity_tokens=9_000), gsm8k_like,
    ]  # fmt: skip
    for make in makers:
        assert make(rng(3)) == make(rng(3))
        assert make(rng(3)) != make(rng(4))


# ---- Settings out of range ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        (uniform, {"requests": 0}, "requests must be a whole number from 1 to 4194304, got 0"),
        (uniform, {"requests": 5, "most": 151}, "most must be a whole number from 1 to 150, got 151"),
        (uniform, {"requests": 5, "least": 101}, "least must be a whole number from 1 to 100, got 101"),
        (triplets, {"requests": 61}, "requests must be a multiple of 3, got 61"),
        (triplets, {"requests": 60, "capacity_tokens": 99}, "capacity_tokens must be a whole number from 100 to"),
        (full_bins, {"bins": 2, "most_parts": 1}, "most_parts must be a whole number from 2 to 1000, got 1"),
        (hard28_like, {"slack": 1000}, "slack must be a whole number from 0 to 999, got 1000"),
        (waescher, {"distinct": 200}, "distinct must be a whole number from 1 to 150, got 200"),
        (many_sizes, {"capacity_tokens": 100}, "distinct must be at most 59, the sizes from 2 to 60, got 250"),
        (many_sizes, {"least_share": 0.7}, "least_share must be a number from 0 to 0.6, got 0.7"),
        (augmented, {"requests": 200}, "requests must be a multiple of 3, got 200"),
        (augmented, {"requests": 18}, "requests must be a whole number from 21 to"),
        (augmented, {"capacity_tokens": 2_501}, "capacity_tokens must be a multiple of 5, got 2501"),
        (augmented, {"irup": 1}, "irup must be true or false, got 1"),
        (cmax_uniform, {"requests": 5, "slots": 0}, "slots must be a whole number from 1 to"),
        (cmax_exponential, {"requests": 5, "slots": 1, "mean": 0}, "mean must be a number from 0.001 to"),
        (backlog, {"requests": 5, "lengths": "azure", "capacity_tokens": 9}, "lengths must be one of azure-code, azure-chat, mooncake, servegen-m-"),
        (backlog, {"requests": 5, "lengths": "azure-chat", "capacity_tokens": 1}, "most_tokens must be a whole number from 2 to"),
        (shared_prefixes, {"requests": 5, "prefixes": 0}, "groups must be a whole number from 1 to"),
        (shared_prefixes, {"requests": 5, "prefixes": 2, "alone_share": 2}, "alone_share must be a number from 0 to 1, got 2"),
        (shared_prefixes, {"requests": 5, "prefixes": 2, "prefix_p90_tokens": 9}, "prefix_p90_tokens must be a whole number from 2000 to"),
        (adapter_batches, {"requests": 5, "adapters": 2, "zipf": -1}, "zipf must be a number from 0 to 10, got -1"),
        (adapter_batches, {"requests": 5, "adapters": 2, "capacity_tokens": 100}, "capacity_tokens must be a whole number from 128 to"),
        (gsm8k_like, {"output_mean_tokens": 0}, "mean must be a number from 1 to"),
        (gsm8k_like, {"prefill": "no"}, "prefill must be true or false, got 'no'"),
        (gsm8k_like, {"slots": 0}, "slots must be greater than or equal to 1, got 0"),
    ],
)
def test_settings_out_of_range_are_named(function: Any, settings: dict[str, Any], message: str) -> None:
    assert error_of(function, **settings).startswith(message)
