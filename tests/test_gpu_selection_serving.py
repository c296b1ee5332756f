"""What autoscalers stand on: shares for a given fleet, proofs that there are none, small covering programs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from headroom.bounds.gpu_selection_serving import Serving
from headroom.instances.gpu_selection import GpuSelection
from headroom.solvers.integer_covering import cheapest_cover


@pytest.mark.parametrize("seed", range(60))
def test_serving_says_whether_and_proves_when_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gpus, items = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    scale = float(rng.choice([1.0, 1e-6, 1e6]))
    table = rng.lognormal(0, 1, (gpus, items)) * scale
    throughput = [[float(q) if rng.random() < 0.85 else None for q in row] for row in table]
    instance = GpuSelection(
        work=[{"name": f"w{i}", "rate_per_s": 1.0} for i in range(items)],
        gpus=[{"name": f"g{g}", "price_usd_per_h": 1.0} for g in range(gpus)],
        throughput_per_s=throughput,
        max_utilisation=0.9,
    )
    engine = Serving(instance)
    for _ in range(20):
        rate, n = rng.lognormal(0, 1, items) * scale * rng.integers(0, 2, items), rng.integers(0, 4, gpus)
        found = engine.serve(rate, n)
        busy = (found.share * rate * engine.load).sum(axis=1)
        assert (busy <= 0.9 * n * (1 + 1e-9)).all()
        assert (found.share[~instance.can_serve] == 0).all()
        if found.complete:
            assert found.price is None
            assert found.share.sum(axis=0)[rate > 0] == pytest.approx(1, abs=1e-12)
            even = engine.shares(rate, n, even=True)
            assert even is not None
            level = ((even * rate * engine.load).sum(axis=1)[n > 0] / n[n > 0]).max(initial=0)
            assert level <= (busy[n > 0] / n[n > 0]).max(initial=0) * (1 + 1e-8)
        else:
            assert found.price is not None
            # Farkas: at these prices everything that serves the rates costs more than the fleet is worth.
            assert engine.need(rate, found.price) > 0.9 * float(found.price @ n)
            assert found.shortfall == pytest.approx(float((rate * (1 - found.share.sum(axis=0)))[rate > 0].sum() / rate.sum()))
            assert engine.shares(rate, n) is None


def test_least_shortfall_by_hand() -> None:
    # One replica: 2/s of a or 1/s of b. Rates 2 and 1: dropping b serves 2 of 3 requests; dropping a only 1 of 3.
    instance = GpuSelection(
        work=[{"name": "a", "rate_per_s": 2.0}, {"name": "b", "rate_per_s": 1.0}],
        gpus=[{"name": "g", "price_usd_per_h": 1.0}],
        throughput_per_s=[[2.0, 1.0]],
    )
    engine = Serving(instance)
    assert engine.shortfall(np.array([2.0, 1.0]), np.array([1])) == pytest.approx(1 / 3)
    assert engine.shortfall(np.array([2.0, 1.0]), np.array([2])) == 0
    assert engine.shares(np.zeros(2), np.array([-1])) is None


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_serving_whole_slices_agrees_with_enumeration(slices: int) -> None:
    rng = np.random.default_rng(slices)
    for _ in range(25):
        throughput = rng.choice([1.0, 2.0, 3.0], (2, 3))
        instance = GpuSelection(
            work=[{"name": f"w{i}", "rate_per_s": 1.0} for i in range(3)],
            gpus=[{"name": f"g{g}", "price_usd_per_h": 1.0} for g in range(2)],
            throughput_per_s=throughput.tolist(),
            slices=slices,
        )
        rate, n = rng.choice([0.5, 1.0, 2.0], 3), rng.integers(0, 3, 2)
        possible = False
        for first in itertools.product(range(slices + 1), repeat=3):
            part = np.array(first) / slices
            busy = np.array([(part * rate / throughput[0]).sum(), ((1 - part) * rate / throughput[1]).sum()])
            possible = possible or bool((busy <= n * (1 + 1e-9)).all())
        share = Serving(instance).shares(rate, n)
        assert (share is not None) == possible
        if share is not None:
            assert np.abs(share * slices - np.round(share * slices)).max() == 0


def test_small_covering_programs_against_enumeration() -> None:
    rng = np.random.default_rng(1)
    solved = 0
    for _ in range(250):
        gpus, rows, pools, bans = int(rng.integers(1, 4)), int(rng.integers(0, 4)), int(rng.integers(0, 2)), int(rng.integers(0, 3))
        cost, premium = rng.choice([0, 1, 2.0, 3.3], gpus), rng.choice([0, 0.5, 2], gpus)
        base, lower = rng.integers(0, 4, gpus) * 1.0, rng.integers(0, 3, gpus) * 1.0
        upper = np.where(rng.random(gpus) < 0.5, np.inf, lower + rng.integers(0, 5, gpus))
        matrix, need = rng.integers(0, 4, (rows, gpus)) * 1.0, rng.integers(0, 13, rows) * 1.0
        draws, limit, banned = rng.integers(0, 3, (pools, gpus)) * 1.0, rng.integers(3, 25, pools) * 1.0, rng.integers(0, 4, (bans, gpus)) * 1.0
        best = math.inf
        for n in itertools.product(*(np.arange(low, min(high, low + 12) + 1) for low, high in zip(lower, upper, strict=True))):
            count = np.array(n)
            if (matrix @ count >= need).all() and (draws @ count <= limit).all() and not any((count <= ban).all() for ban in banned):
                best = min(best, float(cost @ count + premium @ np.maximum(0, count - base)))
        found = cheapest_cover(cost, matrix, need, lower, upper, premium, base, draws, limit, banned)
        if found is None:
            assert best == math.inf
            continue
        solved += 1
        n = found.count
        assert found.proved
        assert (matrix @ n >= need).all()
        assert (draws @ n <= limit).all()
        assert ((lower <= n) & (n <= upper)).all()
        assert not any((n <= ban).all() for ban in banned)
        assert float(cost @ n + premium @ np.maximum(0, n - base)) == pytest.approx(best)
    assert solved > 120
