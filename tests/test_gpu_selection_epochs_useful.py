"""Counts above `Stages.useful` never pay: dynamic programming over all fleets and over those within the limits cost the same."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from headroom.bounds.gpu_selection_serving import Serving
from headroom.bounds.gpu_selection_stages import Stages, stages_of
from headroom.instances.gpu_selection import GpuSelection

Fleet = tuple[int, ...]


def instance(seed: int) -> GpuSelection:
    rng = np.random.default_rng(seed)
    types, items, steps = int(rng.integers(1, 3)), int(rng.integers(1, 3)), int(rng.integers(2, 10))
    throughput = [[None if rng.random() < 0.15 else float(rng.choice([0.5, 1, 2, 3])) for _ in range(items)] for _ in range(types)]
    gpus = [{"name": f"g{g}", "price_usd_per_h": float(rng.choice([1, 1.4, 2])), "max_count": int(rng.integers(2, 6))} for g in range(types)]
    if rng.random() < 0.2:
        gpus[0]["min_count"] = 1
    epochs = {
        "epoch_s": 3600.0,
        "rate_per_s": rng.choice([0, 0, 0.3, 1, 1.7, 3.1], (steps, items)).tolist(),
        "start_delay_epochs": int(rng.choice([0, 0, 0, 1, 2])),
        "initial_count": None if rng.random() < 0.5 else [int(rng.integers(0, 3)) for _ in range(types)],
        "start_cost_usd": [float(rng.choice([0, 0.5, 1, 2, 2.5, 4])) for _ in range(types)],
    }
    work = [{"name": f"w{i}", "rate_per_s": 1.0} for i in range(items)]
    return GpuSelection(work=work, gpus=gpus, throughput_per_s=throughput, epochs=epochs)


def cheapest(stages: Stages, serving: Serving, most: np.ndarray) -> float:
    """The cheapest path within the limits [T][G]; +inf when there is none."""
    reached: dict[Fleet, float] = {}
    for t in range(stages.epochs):
        ranges = [range(int(stages.least[t, g]), int(most[t, g]) + 1) for g in range(stages.types)]
        here: dict[Fleet, float] = {}
        for m in itertools.product(*ranges):
            if serving.price(stages.rate[t], np.array(m)) is not None:
                continue
            before = reached if t else {m if stages.initial is None else tuple(stages.initial.tolist()): 0.0}
            rises = [(value, np.maximum(np.array(m) - np.array(old), 0)) for old, value in before.items()]
            ways = [value + float(stages.rise @ up) for value, up in rises if stages.may_rise[t] or not up.any()]
            if ways:
                here[m] = min(ways) + float(stages.rent @ np.array(m))
        reached = here
    return min(reached.values(), default=math.inf)


@pytest.mark.parametrize("seed", range(120))
def test_counts_beyond_what_is_useful_never_pay(seed: int) -> None:
    one = instance(seed)
    stages, serving = stages_of(one), Serving(one)
    everything, useful = np.tile(stages.most, (stages.epochs, 1)), stages.useful()
    assert (useful <= everything).all()
    assert cheapest(stages, serving, useful) == pytest.approx(cheapest(stages, serving, everything), rel=1e-12)


def test_the_limits_bite() -> None:
    found = [int((stages.most[None, :] - stages.useful()).sum()) for stages in map(stages_of, map(instance, range(120)))]
    assert sum(reduced > 0 for reduced in found) > 60


def test_an_idle_stretch_must_be_long_enough() -> None:
    # Needs 2, 0, 0, 2 with starts of two rents: kept through two idle epochs at two rents each, no dearer than off and on again; a third would be.
    gpu = {"name": "g", "price_usd_per_h": 1.0, "max_count": 5}
    for idle, kept in ((1, 2), (2, 0), (3, 0)):
        rates = [[2.0], *([[0.0]] * idle), [2.0]]
        epochs = {"epoch_s": 3600.0, "rate_per_s": rates, "start_cost_usd": [2.0]}
        one = GpuSelection(work=[{"name": "w", "rate_per_s": 1.0}], gpus=[gpu], throughput_per_s=[[1.0]], epochs=epochs)
        assert stages_of(one).useful()[1:-1].ravel().tolist() == [kept] * idle
