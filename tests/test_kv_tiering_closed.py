"""KV-cache tiering: closed-form bounds and the linear program against enumeration, multipliers against a plain reading of what they prove."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from headroom.bounds.certificates import CertificateError
from headroom.bounds.kv_tiering_closed import bandwidth, bandwidth_value, hit_volume, hit_volume_value, recheck_closed
from headroom.bounds.kv_tiering_lagrangian import certified_value, usable_capacity
from headroom.bounds.kv_tiering_lp import Algorithm, lp, lp_prices
from headroom.formulations.progress import Progress
from headroom.formulations.types import SolveParams
from headroom.instances.kv_tiering import KvTiering
from tests.kv_tiering_cases import drifting, reads, tiny, two_tiers
from tests.oracles.kv_tiering import Oracle

ABOVE = 1 + 1e-9
PARAMS = SolveParams()


def lagrangian_by_hand(instance: KvTiering, certificate: Mapping[str, Any], usable: bool = False) -> float:
    """L(lambda, mu) block by block, step by step, straight from its definition; with capacities as they stand, or what of them is `usable`."""
    share, price = np.asarray(certificate["lambda"]), np.asarray(certificate["mu"])
    tiers, last = instance.tiers, len(instance.tiers) - 1
    rate = [tier.read_bytes_per_s for tier in tiers]
    write = [tier.write_bytes_per_s for tier in tiers]
    wanted: list[dict[int, float]] = []
    for t in range(instance.steps):
        here = slice(int(instance.reads.indptr[t]), int(instance.reads.indptr[t + 1]))
        wanted.append(dict(zip(instance.reads.block[here].tolist(), instance.read_bytes(t).tolist(), strict=True)))
    total = 0.0
    for i in range(instance.blocks):
        size, birth = float(instance.size[i]), int(instance.birth[i])

        def here_costs(t: int, k: int, size: float = size) -> float:
            return float(price[t, k]) * size if k < last else 0.0

        costs = []
        for k in range(last + 1):
            cost = wanted[birth].get(i, 0.0) * share[birth, k] / rate[k] + here_costs(birth, k)
            if birth > 0:
                cost += sum(size * share[birth, n] / write[n] for n in ({k, last} if instance.inclusive else {k}))
            costs.append(cost)
        for t in range(birth + 1, int(instance.death[i])):
            new = []
            for l in range(last + 1):
                ways = []
                for k in range(last + 1):
                    if k == l or (instance.inclusive and l == last):
                        ways.append(costs[k] + wanted[t].get(i, 0.0) * share[t, l] / rate[l])
                    else:
                        ways.append(costs[k] + size * (share[t, k] / rate[k] + share[t, l] / write[l]))
                new.append(min(ways) + here_costs(t, l))
            costs = new
        total += min(costs)
    room = usable_capacity(instance) if usable else instance.capacity
    rented = sum(float(price[t, k]) * float(room[k]) for t in range(instance.steps) for k in range(last))
    return total - rented + sum(float(share[t, 0] * instance.fixed[t]) / rate[0] for t in range(instance.steps))


# The sandwich.


def test_closed_forms_are_never_above_the_optimum() -> None:
    tight = beyond = 0
    for seed in range(600):
        data = tiny(seed)
        instance, best = KvTiering(**data), Oracle(data).best()
        low, high = bandwidth_value(instance), hit_volume_value(instance)
        assert 0 <= low <= best * ABOVE, seed
        assert 0 <= high <= best * ABOVE, seed
        assert high >= low * (1 - 1e-12), seed
        tight += high >= best * (1 - 1e-9)
        beyond += high > low * ABOVE
    assert tight >= 100  # not merely valid: often exact on tiny instances
    assert beyond >= 300


def test_linear_program_lies_between() -> None:
    between = 0
    for seed in range(130):
        data = tiny(seed)
        instance, best = KvTiering(**data), Oracle(data).best()
        found = lp_prices(instance, PARAMS, Progress(PARAMS))
        plain, certified = lagrangian_by_hand(instance, found.certificate), certified_value(instance, found.certificate)
        assert found.claimed <= best * (1 + 1e-7), seed
        # The duals prove the LP's value, by the plain reading to rounding and by the recheck to the slack of capacities.
        assert plain == pytest.approx(found.claimed, rel=1e-9, abs=1e-9 * best), seed
        usable = lagrangian_by_hand(instance, found.certificate, usable=True)
        assert found.claimed * (1 - 1e-6) - 1e-6 * best <= certified <= usable * ABOVE, seed
        assert bandwidth_value(instance) <= found.claimed * (1 + 1e-9) + 1e-300, seed
        # Blocks larger than a tier: the closed form knows that they do not fit, a fraction of them does.
        if all((instance.size <= room).all() or room == 0 for room in instance.capacity):
            assert hit_volume_value(instance) <= found.claimed * (1 + 1e-9) + 1e-300, seed
            between += 1
    assert between >= 50


@pytest.mark.parametrize("algorithm", ["ipm", "pdlp"])
def test_inexact_algorithms_prove_what_they_find(algorithm: Algorithm) -> None:
    close = 0
    for seed in (8, 11, 20, 25, 26, 44):
        data, params = tiny(seed), SolveParams(time_limit_s=3.0)
        instance, best = KvTiering(**data), Oracle(data).best()
        exact = lp(instance, PARAMS, Progress(PARAMS)).value
        found = lp(instance, params, Progress(params), algorithm)
        assert found.method == "lp"
        assert found.proof == "certificate"
        assert found.value <= exact * (1 + 1e-9) <= best * (1 + 2e-9)
        close += found.value >= exact * (1 - 1e-3)
    assert close >= 4


def test_larger_instances_keep_the_order_of_the_bounds() -> None:
    strict = 0
    for seed in range(6):
        changes: dict[str, Any] = {"inclusive": True} if seed % 2 else {}
        instance = KvTiering(**drifting(40, 30, 0.3, 0.2, 0.25, [4, 16][seed // 3], seed, **changes))
        found = lp_prices(instance, PARAMS, Progress(PARAMS))
        assert certified_value(instance, found.certificate) == pytest.approx(found.claimed, rel=1e-6)
        assert bandwidth_value(instance) <= hit_volume_value(instance) * ABOVE <= found.claimed * ABOVE**2
        strict += hit_volume_value(instance) > bandwidth_value(instance) * 1.01
    assert strict >= 2


def test_any_multipliers_are_a_bound() -> None:
    for seed in range(60):
        data, rng = tiny(seed), np.random.default_rng(seed)
        instance, best = KvTiering(**data), Oracle(data).best()
        tiers = len(instance.tiers)
        share = rng.dirichlet(np.full(tiers, 0.5), instance.steps)
        price = rng.random((instance.steps, tiers - 1)) * instance.read_s.max() * rng.choice([0.0, 0.1, 1.0])
        certificate = {"kind": "lagrangian", "lambda": share, "mu": price}
        plain, certified = lagrangian_by_hand(instance, certificate, usable=True), certified_value(instance, certificate)
        assert plain <= best * ABOVE, seed
        assert certified == pytest.approx(max(plain, 0.0), rel=1e-6, abs=1e-6 * best), seed


def test_a_stop_leaves_the_bandwidth_bound() -> None:
    params = SolveParams(time_limit_s=0.0)
    instance = KvTiering(**drifting(40, 30, 0.3, 0.2, 0.25, 8, 0))
    found = lp(instance, params, Progress(params))
    assert bandwidth_value(instance) * (1 - 1e-6) <= found.value <= lp(instance, PARAMS, Progress(PARAMS)).value * ABOVE


# By name.


def test_rechecks_recompute_the_same_value() -> None:
    instance = KvTiering(**tiny(7))
    for method in (bandwidth, hit_volume):
        bound = method(instance, PARAMS, Progress(PARAMS))
        assert (bound.method, bound.proof, bound.certificate) == (method.__name__, "closed_form", None)
        assert recheck_closed(instance, bound.method) == bound.value
    with pytest.raises(CertificateError, match="closed form must be one of bandwidth, hit_volume, got 'mean'"):
        recheck_closed(instance, "mean")


@pytest.mark.parametrize(("sparsity", "seconds"), [(0.40, 31.904), (0.60, 24.595), (0.85, 15.459), (0.90, 13.631)])
def test_bandwidth_of_the_papers_constants(sparsity: float, seconds: float) -> None:
    # LLaMA-3.1-8B in Fang et al.: 10,240 tokens at contexts n = 31299 … 41538, in each of 32 layers 162,889,728 B of weights and round((1 - s) n)
    # entries of 16,384 B, 4900 and 450 GB/s. All layers read alike, so one layer's sum counts 32 times; one block,
    # the longest context, read in part.
    context = np.arange(31_299, 41_539)
    amount = 16_384.0 * np.round((1 - sparsity) * context)
    tiers = [
        {"name": "hbm", "capacity_bytes": 1e9, "read_bytes_per_s": 4.9e12, "write_bytes_per_s": 4.9e12},
        {"name": "dram", "capacity_bytes": None, "read_bytes_per_s": 4.5e11, "write_bytes_per_s": 4.5e11},
    ]
    rows = {"indptr": np.arange(10_241), "block": np.zeros(10_240, np.int32), "bytes": amount}
    instance = KvTiering(tiers=tiers, block_bytes=16_384.0 * 41_538, reads=rows, fixed_read_bytes=162_889_728.0)
    assert instance.blocks == 1
    assert round(32 * bandwidth_value(instance), 3) == seconds


# By hand: `fast` reads 10 and writes 5 bytes a second, `slow` reads 2 and writes 1.


def values(data: dict[str, Any]) -> tuple[float, float]:
    instance = KvTiering(**data)
    return bandwidth_value(instance), hit_volume_value(instance)


def test_hits_need_room_for_as_long_as_they_wait() -> None:
    # Blocks of 4 bytes, both read in steps 1 and 3, room for one. Bandwidth: 16 / 12 s. Volume: steps 0 (from birth to the first read), 1 and 2 (to
    # the second): 4 bytes x 3 steps = 12. First reads wait one step (4 byte-steps each), second ones two (8 each): the two first fit, then 4 of 8:
    # half a second read. Slow memory reads 1.5 blocks: 6 / 2 = 3 s.
    data = two_tiers(4.0, block_bytes=[4.0, 4.0], reads=reads([], [0, 1], [], [0, 1]))
    assert values(data) == pytest.approx((16 / 12, 3.0), rel=1e-6)


def test_nothing_fits_a_tier_that_is_too_small() -> None:
    # Room of 3 bytes for blocks of 4: all 8 bytes are read slowly, 4 s.
    assert values(two_tiers(3.0, block_bytes=[4.0, 4.0], reads=reads([0, 1]))) == pytest.approx((8 / 12, 4.0))


def test_births_take_room_too() -> None:
    # Both blocks are born in step 1 and read there; room for one. The other is written (4 bytes count as 4 x 2 / 1 = 8 read) and read below:
    # (8 + 4) / 2 = 6 s. Together: (8 bytes read, and 8 written that count as at least 8 x 2 each) / 12 = 2 s.
    data = two_tiers(4.0, block_bytes=[4.0, 4.0], birth_step=1, reads=reads([], [0, 1]))
    assert values(data) == pytest.approx((8 / 12, 6.0), rel=1e-6)
    # With copies below both are written there in any case, 8 / 1 = 8 s, and one is read there, 2 s.
    assert values(data | {"inclusive": True}) == pytest.approx((8 / 12, 10.0), rel=1e-6)


def test_fixed_reads_come_from_the_first_tier() -> None:
    # 60 bytes from `fast` alone: 6 s; the bandwidth bound lets both tiers read them: (60 + 4) / 12 s.
    assert values(two_tiers(4.0, block_bytes=[4.0], reads=reads([0]), fixed_read_bytes=60.0)) == pytest.approx((64 / 12, 6.0))


def test_one_tier_is_exact() -> None:
    # 4 bytes written in step 1 at 1 byte a second and read twice at 2: 4 + 2 + 2 s. Bandwidth leaves the birth out.
    data = {"tiers": two_tiers(0.0)["tiers"][1:], "block_bytes": [4.0], "birth_step": [1], "reads": reads([], [0], [0])}
    assert values(data) == pytest.approx((4.0, 8.0))
    assert Oracle(data).best() == pytest.approx(8.0)


def test_no_reads_no_bound() -> None:
    assert values(two_tiers(4.0, block_bytes=[4.0], reads=reads([], []))) == (0.0, 0.0)
    found = lp(KvTiering(**two_tiers(4.0, block_bytes=[4.0], reads=reads([], []))), PARAMS, Progress(PARAMS))
    assert found.value == 0.0
    assert math.isfinite(found.value)
