"""Presets of GPU selection: calibrated mixes against the published figures, dated prices, rates over time, and settings."""

from __future__ import annotations

import itertools
import json
import math
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headroom.instances.catalogue import load_catalogue
from headroom.instances.errors import InputError
from headroom.instances.gpu_selection import GpuSelection, WorkItem
from headroom.instances.gpu_selection_mixes import MIXES, Lengths, buckets, fitted, gaussian_copula
from headroom.instances.gpu_selection_presets import PRESETS, make
from headroom.instances.gpu_selection_presets_epochs import Profile, daily_rates
from headroom.instances.gpu_selection_roofline import BF16_TFLOPS, MODELS, SETS, ReplicaType, ServedModel, Sizes, phase_seconds
from headroom.registry import FAMILIES

CALIBRATED = {
    "azure-code-2024": "azure-code", "azure-chat-2024": "azure-chat", "mooncake-2024": "mooncake", "servegen-m-large-2024": "servegen-m-large",
    "azure-chat-2026": "azure-chat", "mooncake-2026": "mooncake", "servegen-m-large-2026": "servegen-m-large", "servegen-r1-2026": "servegen-r1",
    "mooncake-split-2026": "mooncake",
}  # fmt: skip
# Published p50, p90, p99 of prompt and of output tokens, written down apart from the code under test.
PUBLISHED = {
    "azure-code": ((1469, 5188, 7436), (13, 55, 252)),
    "azure-chat": ((1020, 2735, 4142), (129, 424, 601)),
    "mooncake": ((6909, 27367, 85400), (350, 597, 1119)),
    "servegen-m-large": ((654, 2357, 5342), (68, 458, 925)),
    "servegen-r1": ((266, 3300, 25772), (808, 4170, 13541)),
}
OVER_TIME = ("day-toy", "day-toy-slow-start", "day-4gpu-6x6", "week-4gpu-6x6", "week-minutes-4gpu-6x6")


def preset(name: str, seed: int = 1, **overrides: Any) -> GpuSelection:
    return make(name, np.random.default_rng(seed), overrides)


def quantile(items: list[WorkItem], field: str, share: float) -> int:
    """The least upper bucket end within which at least this share of requests lies."""
    ends = sorted({getattr(item, field)[1] for item in items})
    total = math.fsum(item.rate_per_s for item in items)
    within = {end: math.fsum(item.rate_per_s for item in items if getattr(item, field)[1] <= end) / total for end in ends}
    return next(end for end in ends if within[end] >= share - 1e-9)


# ---- Mixes --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("name", "mix"), CALIBRATED.items())
def test_mixes_meet_the_published_quantiles(name: str, mix: str, seed: int) -> None:
    # Bucket ends stand exactly at the quantiles, so the resolution of the buckets costs nothing; the seed moves the joint shares only.
    items = [item for item in preset(name, seed).work if item.phase != "decode"]
    for field, published in zip(("prompt_tokens", "output_tokens"), PUBLISHED[mix], strict=True):
        assert [quantile(items, field, share) for share in (0.5, 0.9, 0.99)] == list(published)


@pytest.mark.parametrize("name", CALIBRATED)
def test_buckets_tile_the_sizes_and_each_can_be_served(name: str) -> None:
    instance = preset(name)
    assert instance.can_serve.any(axis=0).all()
    items = [item for item in instance.work if item.phase != "decode"]
    for field in ("prompt_tokens", "output_tokens"):
        ranges = sorted({getattr(item, field) for item in items})
        assert ranges[0][0] == 1
        assert all(least == most + 1 for (_, most), (least, _) in itertools.pairwise(ranges))
    assert len(items) == 36
    assert all(item.rate_per_s > 0 for item in instance.work)


def test_more_buckets_keep_the_quantiles() -> None:
    items = list(preset("mooncake-2026", prompt_buckets=11, output_buckets=9).work)
    assert len(items) == 99
    for field, published in zip(("prompt_tokens", "output_tokens"), PUBLISHED["mooncake"], strict=True):
        assert [quantile(items, field, share) for share in (0.5, 0.9, 0.99)] == list(published)
    # Half of the code requests have at most 13 output tokens, the limit to which that half can be cut.
    ends = sorted({item.output_tokens[1] for item in preset("azure-code-2024", output_buckets=64).work if item.output_tokens})
    assert ends == sorted(set(ends))
    assert {13, 55, 252} <= set(ends)


def test_quantile_function_by_hand() -> None:
    # Between p50 and p90 the length is lognormal: at normal score 0.64078 (half of that of 90 %) it is the geometric mean, sqrt(100 * 900).
    lengths, normal = Lengths(100, 900, 1800), NormalDist()
    half = normal.cdf(normal.inv_cdf(0.9) / 2)
    assert lengths.quantile(half) == pytest.approx(300)
    assert lengths.quantile(1 - half) == pytest.approx(100 / 3)  # the body below p50 goes on with that slope
    assert [lengths.quantile(u) for u in (0.5, 0.9, 0.99)] == pytest.approx([100, 900, 1800])
    # Above p99 the slope of p90-p99: one more step of the score difference 2.32635 - 1.28155 doubles the length.
    beyond = normal.cdf(2 * normal.inv_cdf(0.99) - normal.inv_cdf(0.9))
    assert lengths.quantile(beyond) == pytest.approx(3600)
    assert Lengths(100, 900, 1800, limit=2000).quantile(beyond) == 2000
    assert Lengths(2, 900, 1800).quantile(0.01) == 1


def test_buckets_by_hand() -> None:
    # Edges 0.5, 0.9, 0.99 and the last; the likeliest bucket is halved first: 0.25 in the first half, then 0.7 in the next, then 0.125.
    axis = buckets(Lengths(100, 900, 1800), 6)
    assert axis.share == pytest.approx([0.25, 0.25, 0.2, 0.2, 0.09, 0.01])
    assert (axis.most[1], axis.most[3], axis.most[4]) == (100, 900, 1800)
    assert all(least <= mean <= most for (least, most), mean in zip(map(axis.range, range(6)), axis.mean, strict=True))
    # With a median of 2 tokens the lower half has two lengths only, 1 and 2.
    narrow = buckets(Lengths(2, 4, 6), 64)
    assert narrow.most[:2] == (1, 2)
    assert len(set(narrow.most)) == len(narrow.most)


def test_gaussian_copula() -> None:
    rows, columns = np.array([0.5, 0.5]), np.array([0.5, 0.5])
    # P(both below their medians) = 1/4 + asin(r) / (2 pi) (Sheppard 1899): 1/3 at r = 0.5.
    assert gaussian_copula(rows, columns, 0.5)[0, 0] == pytest.approx(1 / 3, abs=1e-4)
    assert gaussian_copula(rows, columns, 0.0)[0, 0] == 0.25
    assert gaussian_copula(rows, columns, -0.5)[0, 0] == pytest.approx(1 / 6, abs=1e-4)
    cells = fitted(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0.3, 0.7]), np.array([0.6, 0.4]))
    assert cells.sum(axis=1) == pytest.approx([0.3, 0.7], abs=1e-12)
    assert cells.sum(axis=0) == pytest.approx([0.6, 0.4], abs=1e-12)
    assert cells[0, 0] * cells[1, 1] / (cells[0, 1] * cells[1, 0]) == pytest.approx(4 / 6)  # fitting keeps the odds ratio


def test_rank_correlation_is_a_setting() -> None:
    def long_both(correlation: float) -> float:
        items = preset("azure-chat-2024", rank_correlation=correlation).work
        return sum(item.rate_per_s for item in items if item.prompt_tokens[0] > 1020 and item.output_tokens[0] > 129) / 64

    assert long_both(-0.8) < long_both(0.0) - 0.1 < long_both(0.8) - 0.2
    assert MIXES["azure-chat"].rank_correlation == 0.07


# ---- Types and prices ---------------------------------------------------------------------------------------------------------------


def test_prices_are_those_of_the_year() -> None:
    code, chat = preset("azure-code-2024"), preset("azure-chat-2026")
    assert {gpu.name: gpu.price_usd_per_h for gpu in code.gpus} == {"L4": 0.70, "A10G": 1.01, "A100-80GB": 3.67, "H100": 7.516}
    assert [gpu.name for gpu in chat.gpus] == [f"{gpu}-TP{tp}" for gpu in ("H100", "H200") for tp in (2, 4, 8)]
    # H200: the middle of 2.50 to 7.00 is 4.75 USD/h.
    assert chat.price_usd_per_h.tolist() == pytest.approx([2 * 2.95, 4 * 2.95, 8 * 2.95, 2 * 4.75, 4 * 4.75, 8 * 4.75])
    assert "middle of 2.5 to 7" in chat.provenance["prices_usd_per_gpu_h"]["H200"]
    cheaper = preset("azure-chat-2026", price={"H200": 3.0})
    assert cheaper.price_usd_per_h[3] == 6.0
    np.testing.assert_array_equal(cheaper.throughput_per_s, chat.throughput_per_s)


def test_served_models_agree_with_the_catalogue() -> None:
    catalogue = load_catalogue()
    for name in ("Llama-3-8B", "Llama-3-70B"):
        known = catalogue.models[name]
        assert (MODELS[name].weights_bytes, MODELS[name].kv_bytes_per_token) == (known.weights_bytes, known.kv_bytes_per_token)
        assert MODELS[name].active_parameters == known.parameters
    deepseek = catalogue.models["DeepSeek-V3"]
    assert MODELS["DeepSeek-R1"].kv_bytes_per_token == deepseek.kv_bytes_per_token
    assert deepseek.moe is not None
    assert (MODELS["DeepSeek-R1"].experts, MODELS["DeepSeek-R1"].top_k) == (deepseek.moe.experts, deepseek.moe.top_k)
    # What a token uses: everything but the experts, and 8 of 256 experts in each layer; about 37e9 of 671e9 parameters of one byte.
    assert MODELS["DeepSeek-R1"].bytes_read(np.array([1.0]))[0] == pytest.approx(37e9, rel=0.03)
    assert MODELS["DeepSeek-R1"].bytes_read(np.array([1e6]))[0] == pytest.approx(671e9)
    for (_, model), types in SETS.items():
        for gpu, gpus in types:
            assert gpu in BF16_TFLOPS
            assert 0.9 * catalogue.gpus[gpu].memory_bytes * gpus > MODELS[model].weights_bytes


def test_roofline_by_hand() -> None:
    # 1e9 parameters in 2e9 B, no attention FLOP, 1e5 B of KV a token; 10e9 B of memory, 1e12 B/s, 1e13 FLOP/s.
    model = ServedModel(2e9, 1e5, 1e9, 0.0)
    replica = ReplicaType("x", "x", 1, 1.0, 10e9, 1e12, 1e13, "test")

    def one(*sizes: float, ttft_s: float = 10.0, tpot_s: float = 1.0) -> tuple[float, float]:
        prefill, decode = phase_seconds(replica, model, Sizes(*(np.array([size]) for size in sizes)), ttft_s, tpot_s)
        return float(prefill[0]), float(decode[0])

    # Prefill of 900 tokens: 2 * 1e9 * 900 / (0.45 * 1e13) = 0.4 s. Memory holds (9e9 - 2e9) / 1e5 = 70,000 tokens: 35 requests of 2,000.
    # A step of 35 at contexts of 900 + 200/2: (2e9 + 1e5 * 35,000) / 0.6e12 = 9.167 ms against 2 * 35e9 / 4.5e12 = 15.56 ms of arithmetic; + 4 ms.
    assert one(900, 200, 1500, 500) == pytest.approx((0.4, 200 * (70 / 4500 + 0.004) / 35))
    # A limit of 8 ms a step: at contexts of 2,000, (2e9 + 2e8 b) / 0.6e12 <= 4 ms for b = 2, 4.33 for 3.
    assert one(900, 200, 1500, 500, tpot_s=0.008)[1] == pytest.approx(200 * ((2e9 + 1e5 * 2000) / 0.6e12 + 0.004) / 2)
    assert math.isnan(one(900, 200, 1500, 500, tpot_s=0.007)[1])  # even one alone takes 7.67 ms
    assert math.isnan(one(900, 200, 1500, 500, ttft_s=0.6)[0])  # the longest prompt takes 0.667 s
    prefill, decode = one(900, 200, 69_900, 500, ttft_s=100)
    assert prefill == pytest.approx(0.4)  # fits while it is prefilled
    assert math.isnan(decode)
    assert math.isnan(one(900, 200, 70_001, 500, ttft_s=100)[0])


def test_split_phases_draw_on_pools() -> None:
    split, whole = preset("mooncake-split-2026"), preset("mooncake-2026")
    assert [(pool.name, pool.max_gpus) for pool in split.pools] == [("H100", 48), ("H200", 48)]
    assert all(gpu.pool == gpu.name.split("-")[0] for gpu in split.gpus)
    both = 1 / split.throughput_per_s[0::2, :36] + 1 / split.throughput_per_s[1::2, 36:]
    np.testing.assert_allclose(both, 1 / whole.throughput_per_s)
    scaled = preset("mooncake-split-2026", total_rate_per_s=3.0)
    assert scaled.rate_per_s[:36].sum() == pytest.approx(3.0)  # a request has two phases and is one request
    assert scaled.rate_per_s[36:].tolist() == scaled.rate_per_s[:36].tolist()


# ---- Over time ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "epochs", "items"), [("day-toy", 24, 4), ("day-4gpu-6x6", 24, 36), ("week-4gpu-6x6", 168, 36)])
def test_epochs_have_the_mean_rate(name: str, epochs: int, items: int) -> None:
    for seed, total in ((1, None), (2, 640.0)):
        instance = preset(name, seed, **({} if total is None else {"total_rate_per_s": total}))
        assert instance.epochs is not None
        rates = instance.epochs.rate_per_s
        assert rates.shape == (epochs, items)
        assert rates.sum(axis=1).mean() == pytest.approx(total or (30 if name == "day-toy" else 64))
        np.testing.assert_allclose(instance.rate_per_s, rates.mean(axis=0))


def test_a_week_of_minutes() -> None:
    instance = preset("week-minutes-4gpu-6x6", total_rate_per_s=100.0)
    assert instance.epochs is not None
    assert instance.epochs.rate_per_s.shape == (10_080, 36)
    assert (instance.epochs.epoch_s, instance.epochs.start_delay_epochs, instance.epochs.initial_count) == (60.0, 3, None)
    assert instance.epochs.start_cost_usd == pytest.approx([0.05 * price for price in (0.70, 1.01, 3.67, 7.516)])
    total = instance.epochs.rate_per_s.sum(axis=1)
    days = total.reshape(7, 24, 60).mean(axis=2)
    assert days[:5].mean() > 1.2 * days[5:].mean()  # weekend 0.7
    assert (days[:5, 15] > 2 * days[:5, 3]).all()  # peak at 15 h, trough at 3 h
    assert total.max() / total.mean() == pytest.approx(instance.provenance["peak_to_mean_with_noise"])


@pytest.mark.parametrize("peak_to_mean", [1.4, 2.2, 3.2])
@pytest.mark.parametrize("days", [1, 7])
def test_profile_has_exactly_the_peak_asked_for(days: int, peak_to_mean: float) -> None:
    quiet = Profile(days, 3600.0, peak_to_mean, noise_cv=0.0, bucket_noise_cv=0.0, mix_drift=0.0)
    rates = daily_rates(np.array([3.0, 1.0]), quiet, np.random.default_rng(1))
    total = rates.sum(axis=1)
    assert total.max() / total.mean() == pytest.approx(peak_to_mean, rel=1e-9)
    assert total.mean() == pytest.approx(4.0)
    np.testing.assert_allclose(rates[:, 0], 3 * rates[:, 1])
    assert int(total[:24].argmax()) in (14, 15)  # the hours around 15:00


def test_noise_has_the_coefficients_of_variation_asked_for() -> None:
    def spread(ratio: npt.NDArray[np.float64]) -> float:
        return float(ratio.std() / ratio.mean())

    # A flat profile of 100 days by the minute; with 1,800 s of correlation there are some 2,400 independent moments.
    flat = {"days": 100, "epoch_s": 60.0, "peak_to_mean": 1.0, "weekend": 1.0, "mix_drift": 0.0}
    common = daily_rates(np.array([3.0, 1.0]), Profile(**flat, noise_cv=0.3, bucket_noise_cv=0.0), np.random.default_rng(1))
    assert spread(common.sum(axis=1)) == pytest.approx(0.3, rel=0.1)
    np.testing.assert_allclose(common[:, 0], 3 * common[:, 1])
    lag = np.log(common[:, 0])
    assert np.corrcoef(lag[:-30], lag[30:])[0, 1] == pytest.approx(math.exp(-1), abs=0.08)  # 30 minutes are one correlation time
    own = daily_rates(np.array([3.0, 1.0, 1.0]), Profile(**flat, noise_cv=0.0, bucket_noise_cv=0.2), np.random.default_rng(1), bucket=[0, 1, 1])
    assert spread(own[:, 0]) == pytest.approx(0.2, rel=0.02)
    assert abs(np.corrcoef(own[:, 0], own[:, 1])[0, 1]) < 0.02
    np.testing.assert_allclose(own[:, 1], own[:, 2])  # phases of one bucket share their noise


def test_the_mix_drifts_and_totals_do_not() -> None:
    still = {"noise_cv": 0.0, "bucket_noise_cv": 0.0}
    tokens = np.array([10.0, 1000.0])
    plain = daily_rates(np.array([3.0, 1.0]), Profile(1, 3600.0, mix_drift=0.0, **still), np.random.default_rng(1), tokens)
    drift = daily_rates(np.array([3.0, 1.0]), Profile(1, 3600.0, mix_drift=0.4, **still), np.random.default_rng(1), tokens)
    np.testing.assert_allclose(drift.sum(axis=1), plain.sum(axis=1))
    share = drift[:, 1] / drift.sum(axis=1)
    assert share[0] > 0.25 > share[12]  # long answers at night
    with pytest.raises(InputError, match="mix_drift must be 0 for work items without token ranges"):
        preset("day-toy", mix_drift=0.2)


def test_settings_reach_the_instance() -> None:
    instance = preset(
        "day-4gpu-6x6", base="mooncake-split-2026", days=2, epoch_s=1800, peak_to_mean=3.0, start_cost_h=0.5, start_delay_epochs=2, noise_cv=0,
        bucket_noise_cv=0, initial_count=[1] * 12, max_utilisation=0.8,
    )  # fmt: skip
    epochs = instance.epochs
    assert epochs is not None
    assert (epochs.rate_per_s.shape, epochs.epoch_s, epochs.start_delay_epochs, epochs.initial_count) == ((96, 72), 1800.0, 2, (1,) * 12)
    assert epochs.start_cost_usd == pytest.approx([0.5 * price for price in instance.price_usd_per_h])
    total = epochs.rate_per_s[:, :36].sum(axis=1)
    assert total.max() / total.mean() == pytest.approx(3.0)
    np.testing.assert_allclose(epochs.rate_per_s[:, :36], epochs.rate_per_s[:, 36:])  # a request has both its phases
    assert instance.max_utilisation == 0.8
    assert instance.provenance["base"] == "mooncake-split-2026"


# ---- All presets --------------------------------------------------------------------------------------------------------------------


def test_the_registry_lists_the_presets() -> None:
    assert set(FAMILIES["gpu_selection"].presets) == set(PRESETS)


@pytest.mark.parametrize(
    ("name", "seed", "digest"),
    [
        ("toy", 1, "d11164e0084db0a2b9a16142c90dc2624214dbbacd2c13ef508821087ebe96e6"),
        ("melange-4gpu-6x6", 1, "24a2b0b765c90adffc2885c5c10055f29830a70d4ecc83d839024d73b8930b0f"),
        ("melange-4gpu-6x6", 7, "e588a7b8d47e4bf4aebd53710bf85388797dbfafc5e702d80d8fb8ba9e48e6e5"),
        ("melange-4gpu-10x6", 7, "73476b79927e7b54a86cc26d1b0bab856ade2d4c2bb2cdc64d775de4fad2116d"),
        ("capped-20x1000", 1, "82655ee37d98999d95d552995e820907e48b68cd5273f6519cf4b8a518538f98"),
    ],
)
def test_published_results_stay_reproducible(name: str, seed: int, digest: str) -> None:
    # The README's measurements name these presets and seeds.
    assert preset(name, seed).digest() == digest


@pytest.mark.parametrize("name", [*CALIBRATED, *OVER_TIME])
def test_total_rate_scales_and_changes_nothing_else(name: str) -> None:
    plain, scaled = preset(name), preset(name, total_rate_per_s=2 * sum(item.rate_per_s for item in preset(name).work if item.phase != "decode"))
    np.testing.assert_allclose(scaled.rate_per_s, 2 * plain.rate_per_s)
    np.testing.assert_array_equal(scaled.throughput_per_s, plain.throughput_per_s)
    if plain.epochs is not None:
        assert scaled.epochs is not None
        np.testing.assert_allclose(scaled.epochs.rate_per_s, 2 * plain.epochs.rate_per_s)
        assert scaled.epochs.start_cost_usd == plain.epochs.start_cost_usd
    json.dumps(scaled.provenance)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("nothing", {}, "preset 'nothing' is unknown"),
        ("toy", {"peak_to_mean": 2.0}, "field 'peak_to_mean' is unknown; expected total_rate_per_s or one of"),
        ("azure-chat-2024", {"prompt_bucket": 6}, "field 'prompt_bucket' is unknown; expected total_rate_per_s, model, prompt_buckets"),
        ("azure-chat-2024", {"model": "DeepSeek-R1"}, "model must be one of Llama-3-8B, Llama-3-70B, got 'DeepSeek-R1'"),
        ("azure-chat-2024", {"model": 8}, "model must be one of"),
        ("azure-chat-2024", {"model": ["x"]}, "model must be one of"),
        ("azure-chat-2024", {"prompt_buckets": 3}, "prompt_buckets must be a whole number from 4 to 64, got 3"),
        ("azure-chat-2024", {"output_buckets": 6.0}, "output_buckets must be a whole number from 4 to 64, got 6.0"),
        ("azure-chat-2024", {"rank_correlation": 1}, "rank_correlation must be a number from -0.95 to 0.95, got 1"),
        ("azure-chat-2024", {"tpot_s": math.nan}, "tpot_s must be a number from"),
        ("azure-chat-2024", {"price": {"H200": 3}}, "price must name one of A100-80GB, A10G, H100, L4, got 'H200'"),
        ("azure-chat-2024", {"price": {"H100": "cheap"}}, "price of H100 must be a number of USD an hour of at least 0, got 'cheap'"),
        ("azure-chat-2024", {"price": 3}, "price must be an object {GPU: USD an hour}, got 3"),
        ("day-4gpu-6x6", {"total_rate_per_s": -1}, "total_rate_per_s must be a positive number, got -1"),
        ("day-4gpu-6x6", {"base": "week-4gpu-6x6"}, "base must be one of toy, melange-4gpu-6x6"),
        ("day-4gpu-6x6", {"base": ["toy"]}, "base must be one of toy, melange-4gpu-6x6"),
        ("day-4gpu-6x6", {"days": 0}, "days must be a whole number from 1 to 3660, got 0"),
        ("day-4gpu-6x6", {"epoch_s": 7000}, "epoch_s must divide the 86400 s of 1 days, got 7000"),
        ("day-4gpu-6x6", {"days": 3660, "epoch_s": 1}, "days and epoch_s give 316224000 epochs of 36 work items; expected at most 50000000 rates"),
        ("week-4gpu-6x6", {"peak_to_mean": 1.05}, "peak_to_mean must be from 1.094 to"),  # weekend 0.7: 7/6.4 without any wave
        ("day-4gpu-6x6", {"peak_to_mean": 30}, "peak_to_mean must be from 1 to"),
        ("day-4gpu-6x6", {"peak_to_mean": "high"}, "peak_to_mean must be a number from 1 to"),
        ("day-4gpu-6x6", {"noise_cv": -0.1}, "noise_cv must be a number from 0 to 10, got -0.1"),
        ("day-4gpu-6x6", {"start_cost_h": math.inf}, "start_cost_h must be a number from 0 to 1e+06, got inf"),
        ("day-4gpu-6x6", {"start_delay_epochs": 1.5}, "epochs.start_delay_epochs must be"),
        ("day-4gpu-6x6", {"initial_count": [1, 2]}, "epochs.initial_count must be null or have an entry for each of 4 gpus, got 2"),
    ],
)
def test_bad_settings(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make(name, np.random.default_rng(1), overrides)
    assert str(caught.value).startswith(message)
