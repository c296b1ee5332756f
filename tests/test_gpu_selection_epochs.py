"""GPU selection over epochs: the decomposition, HiGHS and the bounds against an enumerating oracle; certificates; rules that any optimum keeps."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest

from headroom.bounds.certificates import CertificateError
from headroom.bounds.gpu_selection import recheck
from headroom.bounds.gpu_selection_epoch_prices import epoch_prices
from headroom.bounds.gpu_selection_fleet_cuts import CutPool
from headroom.bounds.gpu_selection_fleets import cheapest_fleet
from headroom.bounds.gpu_selection_labels import successors, undominated
from headroom.bounds.gpu_selection_stages import stages_of
from headroom.formulations.gpu_selection import EpochPlan, evaluate
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.errors import InputError
from headroom.instances.gpu_selection import GpuSelection
from headroom.instances.gpu_selection_presets import make
from headroom.run import Result, run
from headroom.solvers.gpu_selection_epochs_grid import Grid
from headroom.verify import verify
from tests.oracles.gpu_selection_epochs import optimum

MOST = 3


def tiny(seed: int) -> dict[str, Any]:
    """Two types at most, up to three items, four epochs, at most MOST replicas a type: caps, floors, pools, gaps, ties, delays, initial fleets."""
    rng = np.random.default_rng(seed)
    types, items, steps = int(rng.integers(1, 3)), int(rng.integers(1, 4)), int(rng.integers(1, 5))
    throughput = [[float(np.round(rng.uniform(0.5, 4), 1)) for _ in range(items)] for _ in range(types)]
    for row in throughput:
        for i in range(items):
            if rng.random() < 0.1:
                row[i] = None  # type: ignore[call-overload]
    rate = np.round(rng.uniform(0, 1.6, (steps, items)) * rng.choice([0.2, 1.0, 1.5], (steps, 1)), 1)
    gpus: list[dict[str, Any]] = []
    for g in range(types):
        gpu: dict[str, Any] = {"name": f"g{g}", "price_usd_per_h": float(rng.choice([0.0, 1.0, 1.5, 2.3])), "max_count": MOST}
        if rng.random() < 0.2:
            gpu["min_count"] = 1
        if rng.random() < 0.2:
            gpu["max_count"] = int(rng.integers(1, MOST + 1))
        gpus.append(gpu)
    data: dict[str, Any] = {
        "work": [{"name": f"w{i}", "rate_per_s": 1.0} for i in range(items)],
        "gpus": gpus,
        "throughput_per_s": throughput,
        "max_utilisation": float(rng.choice([1.0, 0.8])),
        "epochs": {
            "epoch_s": 1800.0,
            "rate_per_s": rate.tolist(),
            "start_cost_usd": [float(rng.choice([0.0, 0.3, 2.0])) for _ in range(types)],
            "start_delay_epochs": int(rng.integers(0, 3)),
            "initial_count": None if rng.random() < 0.5 else [int(rng.integers(0, MOST + 1)) for _ in range(types)],
        },
    }
    if data["epochs"]["start_delay_epochs"] == 0 and rng.random() < 0.2:
        data["pools"] = [{"name": "p", "max_gpus": int(rng.integers(2, 6))}]
        for gpu in gpus:
            gpu["pool"] = "p"
    return data


def solved(instance: GpuSelection, method: str = "decomposition", **params: Any) -> Result:
    return run(instance, method, SolveParams(time_limit_s=60, **params))


@pytest.mark.parametrize("seed", range(150))
def test_against_the_oracle(seed: int) -> None:
    data = tiny(seed)
    instance, best = GpuSelection(**data), optimum(data, MOST)
    result = solved(instance)
    if best is None:
        assert result.plan is None
        assert math.isinf(result.bound), "that there is no plan is proved"
        assert math.isinf(result.certified_bound)
        return
    assert result.status == "optimal", result
    assert result.objective == pytest.approx(float(best), rel=1e-8, abs=1e-12)
    for bound in (*result.bounds, epoch_prices(instance, SolveParams(), Progress(SolveParams()))):
        assert bound.value <= float(best) * (1 + 1e-8) + 1e-12
        assert recheck(instance, bound) == pytest.approx(bound.value, rel=1e-9, abs=1e-12)
    assert verify(instance, result).verified


@pytest.mark.parametrize("seed", range(0, 150, 5))
def test_highs_agrees(seed: int) -> None:
    data = tiny(seed)
    instance, best = GpuSelection(**data), optimum(data, MOST)
    result = solved(instance, "highs")
    assert result.objective == (math.inf if best is None else pytest.approx(float(best), rel=1e-6, abs=1e-9))


def day(seed: int, **changes: Any) -> GpuSelection:
    """The toy's two types over twelve hours, one item more or less busy than another."""
    rng = np.random.default_rng(seed)
    base = make("toy", rng, {"slices": None})
    rate = base.rate_per_s * (1 + 0.8 * np.sin(np.arange(12) / 2))[:, None] * rng.lognormal(0, 0.2, (12, 4))
    epochs = {"epoch_s": 3600.0, "rate_per_s": rate, "start_cost_usd": [0.5, 1.5], "start_delay_epochs": 1}
    return base.replace(epochs=epochs | changes)


def test_worked_by_hand() -> None:
    # One type, 1 USD/h, one request/s a replica; demand 2, 1, 2 by the hour. Keeping two costs 6. Dropping one for the middle hour saves 1 and
    # costs a start: worth it below 1 USD. With a start that takes an hour the dropped replica is paid again in the hour it was dropped in.
    data: dict[str, Any] = {
        "work": [{"name": "w", "rate_per_s": 2.0}],
        "gpus": [{"name": "g", "price_usd_per_h": 1.0}],
        "throughput_per_s": [[1.0]],
        "epochs": {"epoch_s": 3600.0, "rate_per_s": [[2.0], [1.0], [2.0]], "start_cost_usd": [0.25]},
    }
    for start, delay, cost in ((0.25, 0, 5.25), (2.0, 0, 6.0), (0.25, 1, 6.0)):
        epochs = data["epochs"] | {"start_cost_usd": [start], "start_delay_epochs": delay}
        assert solved(GpuSelection(**data | {"epochs": epochs})).objective == pytest.approx(cost)
    # From nothing, both must be started; with a delay they cannot serve the first hour at all.
    cold = data["epochs"] | {"initial_count": [0]}
    assert solved(GpuSelection(**data | {"epochs": cold})).objective == pytest.approx(5.75)
    late = solved(GpuSelection(**data | {"epochs": cold | {"start_delay_epochs": 1}}))
    assert (late.status, late.certified_bound) == ("infeasible", math.inf)


@pytest.mark.parametrize("seed", range(3))
def test_rules_that_any_optimum_keeps(seed: int) -> None:
    instance = day(seed)
    data = instance.data()
    best = solved(instance).objective
    dearer = instance.replace(gpus=tuple(gpu.model_copy(update={"price_usd_per_h": 3 * gpu.price_usd_per_h}) for gpu in instance.gpus))
    dearer = dearer.replace(epochs=data["epochs"] | {"start_cost_usd": [1.5, 4.5]})
    assert solved(dearer).objective == pytest.approx(3 * best)
    capped = [gpu.model_copy(update={"max_count": cap}) for gpu, cap in zip(instance.gpus, (2, 3), strict=True)]
    looser = [gpu.model_copy(update={"max_count": cap}) for gpu, cap in zip(instance.gpus, (4, 3), strict=True)]
    assert best <= solved(instance.replace(gpus=tuple(looser))).objective * (1 + 1e-9)
    assert solved(instance.replace(gpus=tuple(looser))).objective <= solved(instance.replace(gpus=tuple(capped))).objective * (1 + 1e-9)
    twice = solved(instance.replace(epochs=data["epochs"] | {"rate_per_s": 2 * instance.epochs.rate_per_s}))  # type: ignore[union-attr]
    assert best <= twice.objective <= 2 * best * (1 + 1e-9)
    free = solved(instance.replace(epochs=data["epochs"] | {"start_cost_usd": [0.0, 0.0], "start_delay_epochs": 0}))
    assert free.objective <= best * (1 + 1e-9)
    assert solved(instance.replace(epochs=data["epochs"] | {"start_delay_epochs": 2})).objective >= best * (1 - 1e-9)


def test_slices() -> None:
    instance = day(1).replace(slices=2)
    result = solved(instance)
    continuous = solved(day(1))
    assert result.plan is not None
    assert result.evaluation is not None
    assert result.evaluation.feasible
    assert result.objective >= continuous.objective * (1 - 1e-9)
    share = result.plan.share  # type: ignore[attr-defined]
    assert (np.abs(2 * share - np.round(2 * share)) < 1e-9).all()
    exact = solved(instance, "highs")
    assert result.bound <= exact.objective * (1 + 1e-9)
    assert result.objective <= exact.objective * 1.1


def test_without_starts_every_epoch_is_a_problem_of_its_own() -> None:
    instance = day(3, start_cost_usd=[0.0, 0.0], start_delay_epochs=0)
    assert instance.epochs is not None
    alone = 0.0
    for rates in instance.epochs.rate_per_s:
        work = tuple(item.model_copy(update={"rate_per_s": float(rate)}) for item, rate in zip(instance.work, rates, strict=True))
        alone += run(instance.replace(work=work, epochs=None), "branching").objective
    assert solved(instance).objective == pytest.approx(alone)


def test_start_plan_is_used(tmp_path: Any) -> None:
    instance = day(2)
    first = solved(instance)
    again = solved(instance, start=first.plan)
    assert again.objective <= first.objective


@pytest.mark.parametrize("seed", range(4))
def test_grid_in_numpy_and_compiled_is_the_same(seed: int) -> None:
    stages = stages_of(day(seed))
    pool = CutPool(day(seed), stages)
    for t in range(stages.epochs):
        pool.fits(t, np.ones(2, dtype=np.int64))
    origin = np.zeros((stages.epochs, stages.types), dtype=np.int64)
    (a, path), (b, other) = (Grid(stages, pool.cuts, pool.need, origin, stages.most + 1, plain=plain).best() for plain in (False, True))
    assert a == b
    assert (path == other).all()  # type: ignore[union-attr]
    assert a == pytest.approx(stages.cost(path))  # type: ignore[arg-type]


def week(seed: int) -> GpuSelection:
    """Two days of the small preset: few replicas, starts that take an epoch."""
    settings = {"total_rate_per_s": 24.0, "start_delay_epochs": 1, "days": 2}
    return make("day-4gpu-6x6", np.random.default_rng(seed), settings)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_prove_what_prices_cannot(seed: int) -> None:
    instance = week(seed)
    result = solved(instance)
    prices, blocks = (next(bound for bound in result.bounds if bound.method == method) for method in ("epoch_prices", "fleet_blocks"))
    assert prices.value < result.objective * (1 - 1e-3)
    assert blocks.value <= result.objective
    assert result.certified_gap < 1e-6
    assert recheck(instance, blocks) == pytest.approx(blocks.value, rel=1e-9)
    assert verify(instance, result).verified
    # A claim above the optimum is cut down to what the search finds, a level that does not follow from the one before is refused.
    raised = copy.deepcopy(dict(blocks.certificate or {}))
    for level in raised["levels"]:
        level["value"] = level["value"] * 1.01
    assert recheck(instance, Bound(0.0, "fleet_blocks", "certificate", raised)) <= result.objective * (1 + 1e-9)
    raised["levels"][0]["borders"] = raised["levels"][0]["borders"][:-1]
    raised["levels"][-1]["borders"] = np.array([0, 1, 48])
    with pytest.raises(CertificateError, match="borders"):
        recheck(instance, Bound(0.0, "fleet_blocks", "certificate", raised))


@pytest.mark.parametrize("seed", range(40))
def test_successors_and_dominance_against_enumeration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    types, labels = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    least, most = rng.integers(0, 2, types), rng.integers(1, 6, types)
    fleets = rng.integers(0, 5, (labels, types))
    cost = np.sort(rng.uniform(0, 3, labels))
    price, rent, rise = (np.round(rng.uniform(0, 2, types), 1) for _ in range(3))
    rules = np.vstack([np.round(rng.uniform(0, 2, (2, types)), 1), price])
    grid = np.stack(np.meshgrid(*[np.arange(a, b + 1) for a, b in zip(least, most, strict=True)], indexing="ij")).reshape(types, -1).T
    need = np.append(np.round(rng.uniform(0, 5, 2), 1), 0.0)
    serves = (grid @ rules.T >= need - 1e-9).all(axis=1)
    need[2] = (grid[serves] @ price).min(initial=9.0)
    togo = rng.uniform(-1, 1, (types, int(most.max()) + 1))
    may_rise, limit = bool(rng.random() < 0.7), float(rng.uniform(3, 9))
    pool_gpus, pool_limit = rng.integers(1, 3, (1, types)).astype(float), np.array([float(rng.integers(3, 12))])
    expected: dict[tuple[int, ...], float] = {}
    for fleet in grid[serves & (grid @ pool_gpus[0] <= pool_limit[0])]:
        for i in range(labels):
            above = np.maximum(fleet - fleets[i], 0)
            paid = cost[i] + rent @ fleet + rise @ above
            if (may_rise or not above.any()) and paid + sum(togo[g, fleet[g]] for g in range(types)) <= limit:
                key = tuple(fleet.tolist())
                expected[key] = min(expected.get(key, math.inf), paid)
    found, found_cost = np.empty((4000, types), np.int64), np.empty(4000)
    arguments = (fleets, cost, price, rules, need, least, most, togo, rent, rise, may_rise, pool_gpus, pool_limit, limit, found, found_cost, 10**6)
    number = successors(*arguments)
    reached: dict[tuple[int, ...], float] = {}
    for fleet, paid in zip(found[:number].tolist(), found_cost[:number].tolist(), strict=True):
        reached[tuple(fleet)] = min(reached.get(tuple(fleet), math.inf), paid)
    assert reached == pytest.approx(expected)
    assert successors(*arguments[:-1], 1) in (-1, 0), "a limit on nodes is obeyed"
    if not reached:
        return
    ordered = sorted(reached.items(), key=lambda entry: entry[1])
    lists, costs = np.array([fleet for fleet, _ in ordered]), np.array([paid for _, paid in ordered])
    keep = undominated(lists, costs, rise, True)
    behind = np.maximum(lists[:, None] - lists[keep][None], 0) @ rise + costs[keep]
    assert (behind.min(axis=1) <= costs + 1e-12).all(), "what was dropped can be bought from what was kept"
    assert keep[0]


@pytest.mark.parametrize("seed", range(60))
def test_cheapest_fleet_against_enumeration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    types, rules = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    cost, most = np.round(rng.uniform(0, 3, types), 1), rng.integers(0, 6, types)
    table = np.round(rng.uniform(0, 2, (rules, types)), 1) * (rng.random((rules, types)) < 0.8)
    need = np.round(rng.uniform(0, 6, rules), 1)
    grid = np.stack(np.meshgrid(*[np.arange(m + 1) for m in most], indexing="ij")).reshape(types, -1)
    feasible = (table @ grid >= need[:, None] - 1e-9).all(axis=0)
    value, fleet, proved = cheapest_fleet(cost, table, need, most.astype(np.int64), math.inf, 10**6)
    assert proved
    if not feasible.any():
        assert fleet is None
        return
    assert fleet is not None
    assert value == pytest.approx((cost @ grid)[feasible].min())
    assert (table @ fleet >= need - 1e-9).all()
    assert cheapest_fleet(cost, table, need, most.astype(np.int64), value, 10**6)[1] is None


@pytest.mark.parametrize("seed", range(6))
def test_a_tampered_certificate_never_proves_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    instance = day(seed)
    result = solved(instance)
    best = result.objective * (1 + 1e-8)
    for bound in result.bounds:
        if bound.certificate is None:
            continue
        for _ in range(20):
            content = dict(bound.certificate)
            scale = rng.choice([0.01, 1.0, 200.0])
            for key in ("price", "cuts", "fleet_value", "levels"):
                if key == "levels" and key in content:
                    content[key] = [level | {"value": level["value"] * rng.lognormal(0, 0.1, np.shape(level["value"]))} for level in content[key]]
                elif key in content:
                    noise = np.clip(rng.lognormal(0, scale, np.shape(content[key])), 0.0, 1e300)
                    content[key] = np.asarray(content[key]) * np.where(rng.random(noise.shape) < 0.3, noise, 1.0)
            try:
                value = recheck(instance, Bound(0.0, bound.method, "certificate", content))
            except CertificateError:
                continue  # too large a number
            assert value <= best


TINY = 5e-324


@pytest.mark.parametrize(
    "certificate",
    [
        {"price": [[TINY], [TINY]], "cuts": [[1.0]], "fleet_value": [0, 0], "with_cost": False},
        {"price": [[1.0], [1.0]], "cuts": [[TINY]], "fleet_value": [100.0, 100.0]},
        {"price": [[1.0], [1.0]], "cuts": [[1e308]], "fleet_value": [100.0, 100.0]},
        {"price": [[1.0], [1.0]], "cuts": [[1.0]], "fleet_value": [1e308, 1e308]},
        {"price": [[1e300], [1e300]], "cuts": [[1.0]], "fleet_value": [0.0, 0.0]},
    ],
)
def test_numbers_beyond_relative_rounding_prove_nothing(certificate: dict[str, Any]) -> None:
    gpus = [{"name": "g", "price_usd_per_h": 1.0}]
    epochs = {"epoch_s": 3600.0, "rate_per_s": [[10.0], [8.0]], "start_cost_usd": [0.0]}
    instance = GpuSelection(work=[{"name": "a", "rate_per_s": 1.0}], gpus=gpus, throughput_per_s=[[1 / 0.6]], epochs=epochs)
    try:
        value = recheck(instance, Bound(0.0, "epoch_prices", "certificate", {"kind": "epoch_prices", **certificate}))
    except CertificateError:
        return
    assert value <= 11.0


@pytest.mark.parametrize(
    ("types", "rates"),
    [
        ([[2.0]], [[1.0], [1e-13], [1.0]]),
        ([[1.56, 2.33], [3.07, None]], [[1.765, 1.82e-9], [0.28, 0.22]]),
    ],
)
def test_loads_at_the_edge_of_nothing_end(types: list[list[float | None]], rates: list[list[float]]) -> None:
    # Loads that no cut tells from zero once made the search for the cheapest fleet go round for ever.
    work = [{"name": f"w{i}", "rate_per_s": 1.0} for i in range(len(rates[0]))]
    gpus = [{"name": f"g{g}", "price_usd_per_h": 1.5 + g / 2} for g in range(len(types))]
    epochs = {"epoch_s": 3600.0, "rate_per_s": rates, "start_cost_usd": [1.0] * len(types)}
    result = solved(GpuSelection(work=work, gpus=gpus, throughput_per_s=types, epochs=epochs))
    assert result.plan is not None
    assert result.runtime_s < 20


def test_floors_above_what_stands_and_above_a_pool() -> None:
    # Two epochs, a start takes three: the floor of two is rented and paid from the first on, though nothing started serves in time.
    gpu = {"name": "g", "price_usd_per_h": 1.0, "min_count": 2}
    epochs = {"epoch_s": 3600.0, "rate_per_s": [[1.0], [1.0]], "start_cost_usd": [1.0], "start_delay_epochs": 3, "initial_count": [1]}
    instance = GpuSelection(work=[{"name": "a", "rate_per_s": 1.0}], gpus=[gpu], throughput_per_s=[[1.0]], epochs=epochs)
    assert solved(instance).objective == solved(instance, "highs").objective == 5.0
    crowded = instance.replace(gpus=[gpu | {"pool": "p"}], pools=[{"name": "p", "max_gpus": 1}])
    result = solved(crowded)
    assert result.status == "infeasible"
    assert "pool p" in result.notes[0]


def test_what_stands_above_a_cap_stops_at_once() -> None:
    # Five stand, two may: both are kept for 2 + 2 USD, less than stopping one and starting it again (1 + 2 + 1.5).
    gpu = {"name": "g", "price_usd_per_h": 1.0, "max_count": 2}
    epochs = {"epoch_s": 3600.0, "rate_per_s": [[1.0], [2.0]], "start_cost_usd": [1.5], "initial_count": [5]}
    instance = GpuSelection(work=[{"name": "a", "rate_per_s": 1.5}], gpus=[gpu], throughput_per_s=[[1.0]], epochs=epochs)
    assert solved(instance).objective == solved(instance, "highs").objective == 4.0
    assert solved(instance, "hold_k").objective == 4.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch_s": 0.0}, "epochs.epoch_s must be greater than 0, got 0.0"),
        ({"rate_per_s": [[1.0, 1.0, 1.0]]}, "epochs.rate_per_s must have a column for each of 4 work items, got 3"),
        ({"rate_per_s": []}, "epochs.rate_per_s must have at least one epoch, got none"),
        ({"rate_per_s": [[1.0, -1.0, 1.0, 1.0]]}, "epochs.rate_per_s[0][1] must be a finite number of at least 0, got -1"),
        ({"rate_per_s": [[1.0, "1", 1.0, 1.0]]}, "epochs.rate_per_s[0][1] must be a number, got '1'"),
        ({"rate_per_s": [[1.0, float("nan"), 1.0, 1.0]]}, "epochs.rate_per_s[0][1] must be a finite number of at least 0, got nan"),
        ({"start_cost_usd": [1.0]}, "epochs.start_cost_usd must have an entry for each of 2 gpus, got 1"),
        ({"initial_count": [1, 2, 3]}, "epochs.initial_count must be null or have an entry for each of 2 gpus, got 3"),
        ({"start_delay_epochs": -1}, "epochs.start_delay_epochs must be greater than or equal to 0, got -1"),
    ],
)
def test_bad_epochs_are_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        day(0, **change)
    assert str(caught.value) == message


def test_plans_that_do_not_fit() -> None:
    instance = day(0)
    plan = solved(instance).plan
    assert isinstance(plan, EpochPlan)
    with pytest.raises(InputError, match="an entry for each of 12 epochs, got 11"):
        evaluate(instance, EpochPlan(count=plan.count[:-1], share=plan.share))
    with pytest.raises(InputError, match="must have count and share for each epoch"):
        evaluate(instance, run(instance.replace(epochs=None), "greedy").plan)  # type: ignore[arg-type]
    empty = EpochPlan(count=[{} for _ in range(12)], share=plan.share)
    violated = evaluate(instance, empty).violations
    assert {item.constraint for item in violated} == {"capacity"}
    early = evaluate(instance.replace(epochs=instance.data()["epochs"] | {"initial_count": [0, 0]}), plan)
    assert any(item.constraint == "capacity" and item.index.startswith("epoch 0, ") for item in early.violations)


def test_a_time_limit_keeps_plan_and_bound() -> None:
    instance = make("week-4gpu-6x6", np.random.default_rng(1), {})
    result = run(instance, "decomposition", SolveParams(time_limit_s=3.0))
    assert result.plan is not None
    assert result.certified_gap < 0.2
    assert result.runtime_s < 3.0 * 1.05 + 1.0
    assert verify(instance, result).verified
