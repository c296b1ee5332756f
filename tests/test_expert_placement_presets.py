"""Generators and presets of expert placement: what is drawn has the figures asked for, and presets are the models they name."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headroom.formulations.expert_placement import build_model
from headroom.formulations.progress import Progress
from headroom.formulations.types import SolveParams
from headroom.instances.errors import InputError
from headroom.instances.expert_placement import ExpertPlacement
from headroom.instances.expert_placement_generators import (
    correlated_loads,
    load_trace,
    lognormal_loads,
    planted_transitions,
    whole_tokens,
    zipf_loads,
)
from headroom.instances.expert_placement_presets import PRESETS, make
from headroom.registry import FAMILIES
from headroom.solvers.highs import solve_mip
from headroom.solvers.standard_form import standard_form
from tests.import_samples import real_file

FloatArray = npt.NDArray[np.float64]
# Model's layers, its first layer with experts, experts, devices, devices of a node, slots a layer; written down apart from the code under test.
SIZES = {
    "deepseek-v3-ep8": (61, 3, 256, 8, 8, 288),
    "deepseek-v3-ep16": (61, 3, 256, 16, 8, 288),
    "deepseek-v3-ep32": (61, 3, 256, 32, 8, 288),
    "deepseek-v3-ep64": (61, 3, 256, 64, 8, 320),
    "deepseek-v3-ep32-grouped": (61, 3, 256, 32, 8, 288),
    "deepseek-v3-full-ep32": (61, 3, 256, 32, 8, 288),
    "mixtral-8x7b-4gpu": (32, 0, 8, 4, 4, 8),
    "qwen3-30b-ep8": (48, 0, 128, 8, 8, 144),
    "gpt-oss-120b-ep8": (36, 0, 128, 8, 8, 144),
    "dsv2-lite-ep8": (27, 1, 64, 8, 8, 72),
    "dsv2-lite-robust-ep8": (27, 1, 64, 8, 8, 72),
    "dsv2-lite-robust-ep32": (27, 1, 64, 32, 8, 96),
    "dsv2-lite-failover-ep8": (27, 1, 64, 8, 8, 144),
    "dsv2-lite-affinity-ep4": (27, 1, 64, 4, 4, 64),
    "dsv2-lite-replan-ep8": (27, 1, 64, 8, 8, 72),
    "deepseek-v3-replan-ep32": (61, 3, 256, 32, 8, 288),
    "dsv2-lite-trace-ep8": (27, 1, 64, 8, 8, 72),
}
TOYS = ("toy", "toy-traffic", "toy-moves", "toy-robust", "toy-optimal-split", "toy-failover", "toy-trace")


def preset(name: str, seed: int = 1, **overrides: Any) -> ExpertPlacement:
    return make(name, np.random.default_rng(seed), overrides)


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def bits(table: FloatArray) -> float:
    """Mutual information of the two experts of one boundary [expert][expert]."""
    independent = np.outer(table.sum(axis=1), table.sum(axis=0))
    seen = table > 0
    return float((table[seen] * np.log2(table[seen] / independent[seen])).sum())


# ---- Generators ---------------------------------------------------------------------------------------------------------------------


def test_whole_tokens_by_hand() -> None:
    # 6 tokens at 1 : 1 : 3 are 1.2, 1.2, 3.6: one is missing after rounding down to 1, 1, 3, and goes to the largest remainder.
    assert whole_tokens(np.array([[1.0, 1.0, 3.0]]), 6).tolist() == [[1, 1, 4]]
    assert whole_tokens(np.array([1.0, 0.0]), 3).tolist() == [3, 0]


def test_lognormal_loads_have_the_spread_asked_for() -> None:
    load = lognormal_loads(rng(), 40, 256, 0.5, 10**8)
    assert (load.sum(axis=1) == 10**8).all()
    assert np.log(load).std(axis=1).mean() == pytest.approx(0.5, rel=0.02)
    assert (lognormal_loads(rng(), 2, 4, 0.0, 400) == 100).all()


def test_zipf_loads_by_hand() -> None:
    # 1/1 : 1/2 : 1/4 is not Zipf; 1 : 1/2 : 1/3 of 1100 tokens is 600, 300, 200, in an order that differs between layers.
    load = zipf_loads(rng(), 50, 3, 1.0, 1100)
    assert (np.sort(load, axis=1) == [200, 300, 600]).all()
    assert len({tuple(row) for row in load.tolist()}) == 6
    assert (zipf_loads(rng(), 2, 4, 0.0, 400) == 100).all()


@pytest.mark.parametrize("correlation", [0.0, 0.15, 0.9, 1.0])
def test_scenarios_are_as_alike_as_asked(correlation: float) -> None:
    load = np.log(correlated_loads(rng(), 3, 40, 256, 0.8, correlation, 10**9))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        found = [np.corrcoef(load[a, l], load[b, l])[0, 1] for l in range(40)]
        assert np.mean(found) == pytest.approx(correlation, abs=0.03)


def test_transitions_fit_the_loads_and_keep_their_clusters() -> None:
    load = lognormal_loads(rng(), 6, 24, 0.8, 10**6)
    share = load / 10**6
    for affinity in (0.0, 0.35, 0.999):
        table = planted_transitions(rng(), load, 6, affinity)
        assert table.sum(axis=(1, 2)) == pytest.approx(np.ones(5), abs=1e-12)
        np.testing.assert_allclose(table.sum(axis=2), share[:-1], atol=1e-9)
        np.testing.assert_allclose(table.sum(axis=1), share[1:], atol=1e-9)
    plain = planted_transitions(rng(), load, 6, 0.0, 0.0)
    np.testing.assert_allclose(plain, share[:-1, :, None] * share[1:, None, :], atol=1e-12)  # no preference: independent
    information = [np.mean([bits(part) for part in planted_transitions(rng(), load, 6, affinity)]) for affinity in (0.0, 0.35, 0.7, 0.95)]
    assert information == sorted(information)
    assert information[-1] > information[0] + 1
    # Without noise and with equal loads each boundary is 6 blocks of 4 x 4 experts: (1 - a) + 6 a in them, 1 - a outside, over 576 pairs.
    table = planted_transitions(rng(), np.ones((2, 24)), 6, 0.5, 0.0)
    inside = table[0] > 1 / 576
    assert (inside.sum(axis=0) == 4).all()
    assert (inside.sum(axis=1) == 4).all()
    assert table[0][inside] == pytest.approx(3.5 / 576)
    assert table[0][~inside] == pytest.approx(0.5 / 576)


def test_transitions_of_experts_without_load_and_of_scenarios() -> None:
    load = np.array([[[4.0, 0.0, 4.0], [1.0, 1.0, 2.0]], [[0.0, 2.0, 2.0], [2.0, 1.0, 1.0]]])
    table = planted_transitions(rng(), load, 3)
    # The mean share of the two scenarios: (1/2, 0, 1/2) and (0, 1/2, 1/2) before, (1/4, 1/4, 1/2) and (1/2, 1/4, 1/4) after.
    np.testing.assert_allclose(table[0].sum(axis=1), [0.25, 0.25, 0.5], atol=1e-9)
    np.testing.assert_allclose(table[0].sum(axis=0), [0.375, 0.25, 0.375], atol=1e-9)
    silent = planted_transitions(rng(), np.array([[5.0, 0.0], [3.0, 2.0]]), 2)
    assert (silent[0, 1] == 0).all()
    assert planted_transitions(rng(), np.ones((1, 3)), 1).shape == (0, 3, 3)


def test_traces_drift_and_switch() -> None:
    still = load_trace(rng(), 8, 3, 16, 0.8, 0.2, 10**6, drift=0.0, switch_probability=0.0)
    assert (still == still[0]).all()
    back_and_forth = load_trace(rng(), 8, 3, 16, 0.8, 0.2, 10**6, tasks=2, drift=0.0, switch_probability=1.0)
    assert (back_and_forth[::2] == back_and_forth[0]).all()
    assert (back_and_forth[1::2] == back_and_forth[1]).all()
    assert (back_and_forth[0] != back_and_forth[1]).any()
    walking = np.log(load_trace(rng(), 50, 3, 256, 0.8, 0.2, 10**9, drift=0.1, switch_probability=0.0))
    assert (walking[1:] - walking[:-1]).std() == pytest.approx(0.1, rel=0.05)
    assert (load_trace(rng(), 4, 2, 5, 0.5, 0.0, 77).sum(axis=2) == 77).all()
    assert load_trace(rng(), 3, 2, 5, 5.0, 0.0, 10**6, drift=5.0).min() >= 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lognormal_loads(rng(), 0, 4, 0.5, 10), "layers must be a whole number from 1 to 100000, got 0"),
        (lambda: lognormal_loads(rng(), 2, 4, -0.5, 10), "sigma must be a number from 0 to 5, got -0.5"),
        (lambda: lognormal_loads(rng(), 2, 4, float("nan"), 10), "sigma must be a number from 0 to 5, got nan"),
        (lambda: zipf_loads(rng(), 2, 4, 11.0, 10), "exponent must be a number from 0 to 10, got 11.0"),
        (lambda: correlated_loads(rng(), 2, 2, 4, 0.5, 1.5, 10), "correlation must be a number from 0 to 1, got 1.5"),
        (lambda: load_trace(rng(), 0, 2, 4, 0.5, 0.5, 10), "steps must be a whole number from 1 to 1000000, got 0"),
        (lambda: load_trace(rng(), 2, 2, 4, 0.5, 0.5, 10, switch_probability=2.0), "switch_probability must be a number from 0 to 1, got 2.0"),
        (lambda: planted_transitions(rng(), np.ones((2, 4)), 5), "clusters must be a whole number from 1 to 4, got 5"),
        (lambda: planted_transitions(rng(), np.ones((2, 4)), 2, 1.0), "affinity must be a number from 0 to 0.999, got 1.0"),
    ],
)
def test_generators_refuse(call: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value) == message


def test_the_figures_measured_on_real_routing() -> None:
    # The table in the generators' docstring, from the files' own counts.
    counts = [np.load(real_file(f"esft_routing/{task}.npz"))["count"] for task in ("intent", "law")]
    wanted = [((2.93, 3.96, 4.68), (0.66, 0.90, 1.26)), ((1.95, 3.28, 6.87), (0.30, 0.62, 0.77))]
    for count, (most, spread) in zip(counts, wanted, strict=True):
        for values, figures in ((count.max(axis=1) / count.mean(axis=1), most), (np.log(count).std(axis=1), spread)):
            assert [values.min(), np.median(values), values.max()] == pytest.approx(figures, abs=0.006)
    alike = [np.corrcoef(np.log(counts[0][l]), np.log(counts[1][l]))[0, 1] for l in range(26)]
    assert [min(alike), np.median(alike), max(alike), np.mean(alike)] == pytest.approx([-0.06, 0.15, 0.41, 0.14], abs=0.006)


# ---- Presets -------------------------------------------------------------------------------------------------------------------------


def test_every_preset_is_tested_here_and_listed_by_the_registry() -> None:
    assert set(PRESETS) == {*TOYS, *SIZES}
    assert list(FAMILIES["expert_placement"].presets) == list(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_seeded(name: str) -> None:
    settings = {} if name in TOYS else {"layers": 3}
    first, same, other = (preset(name, seed, **settings) for seed in (1, 1, 2))
    assert first == same
    assert (first == other) == (name == "toy")
    assert first.name == name
    assert first.provenance["preset"] == name


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_sizes_are_those_of_the_models(name: str, size: tuple[int, ...]) -> None:
    model_layers, first, experts, devices, per_node, slots = size
    # Three layers of the full one are enough: its transitions alone are 57 x 256 x 256 numbers.
    layers = 3 if name == "deepseek-v3-full-ep32" else model_layers - first
    instance = preset(name, **({"layers": 3} if layers == 3 else {}))
    assert (instance.layers, instance.experts) == (layers, experts)
    assert (instance.devices, instance.node_devices, instance.slots) == (devices, per_node, slots)
    assert instance.moe_layer_ids == tuple(range(first, first + layers))
    assert instance.model_layers == first + layers
    assert instance.total_load == pytest.approx(np.full((instance.scenarios, layers), instance.total_load[0, 0]))  # every token, every layer


def test_what_the_presets_are_for() -> None:
    grouped, full = preset("deepseek-v3-ep32-grouped", layers=2), preset("deepseek-v3-full-ep32", layers=2)
    assert (grouped.n_groups, grouped.group_limited, grouped.nodes) == (8, True, 4)
    assert full.transition is not None
    assert (full.weights.balance, full.weights.traffic, full.nodes) == (1, 1, 4)
    assert full.hop_cost.other_node == pytest.approx(full.hop_cost.same_node * 450 / 50, rel=0.02)  # NVLink and a 400G NIC
    assert preset("dsv2-lite-robust-ep8").scenarios == preset("dsv2-lite-robust-ep32").scenarios == 4
    for name in ("mixtral-8x7b-4gpu", "dsv2-lite-affinity-ep4"):
        chain = preset(name)
        assert chain.transition is not None
        assert (chain.slots, chain.weights.balance, chain.weights.traffic) == (chain.experts, 0, 1)
    trace = preset("dsv2-lite-trace-ep8")
    assert trace.load_trace is not None
    assert trace.load_trace.shape == (200, 26, 64)
    np.testing.assert_array_equal(trace.load[0], trace.load_trace.sum(axis=0))
    moves, split = preset("toy-moves"), preset("toy-optimal-split")
    assert moves.weights.moves > 0
    assert moves.current_slot_expert is not None
    for layer in moves.current_slot_expert.reshape(2, 3, 3):
        assert all(len(set(own)) == 3 for own in layer.tolist())
        assert set(layer.ravel().tolist()) == set(range(6))
    assert (split.split, split.scenarios) == ("optimal", 2)
    assert preset("toy-robust").scenarios == 3


def test_the_toy_is_the_example_of_eplb() -> None:
    toy = preset("toy")
    assert toy.load.tolist() == [
        [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]],
    ]
    assert (toy.slots, toy.devices, toy.nodes, toy.n_groups) == (16, 8, 2, 4)


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_small(name: str) -> None:
    assert len(json.dumps(preset(name).data())) < 2000


@pytest.mark.parametrize("name", [name for name in TOYS if name not in ("toy", "toy-trace")])
def test_toys_are_solved_by_the_plain_model(name: str) -> None:
    # Left out are those that keep HiGHS busy for longer than 30 s.
    params = SolveParams(time_limit_s=30)
    answer = solve_mip(standard_form(build_model(preset(name))), params, Progress(params))
    assert answer.status == "optimal"
    assert answer.objective > 1.01  # the mean bound alone does not prove it


def test_settings_and_fields_are_overridden() -> None:
    small = preset("deepseek-v3-ep8", layers=2, sigma=0, tokens=256, slots_per_device=33, robust="mean")
    assert (small.load == 8).all()  # 256 tokens, eight experts each, over 256 experts
    assert (small.layers, small.slots_per_device, small.robust, small.moe_layer_ids) == (2, 33, "mean", (3, 4))
    assert small.provenance["settings"] == {"layers": 2, "sigma": 0, "tokens": 256, "scenarios": 1}
    more = preset("dsv2-lite-ep8", layers=4, clusters=8, weights={"traffic": 1.0}, steps=5)
    assert more.transition is not None
    assert more.load_trace is not None
    assert more.load_trace.shape == (5, 4, 64)
    # Other settings leave the loads as they are.
    assert (preset("dsv2-lite-ep8", layers=4, clusters=8).load == preset("dsv2-lite-ep8", layers=4).load).all()
    assert preset("toy", group_limited=True).group_limited


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("toy", {"sigma": 1.0}, "field 'sigma' is unknown; expected one of current_slot_expert, devices,"),
        ("dsv2-lite-ep8", {"colour": 1}, "field 'colour' is unknown; expected one of layers, sigma, tokens,"),
        ("dsv2-lite-ep8", {"layers": 27}, "layers must be a whole number from 1 to 26, got 27"),
        ("dsv2-lite-ep8", {"tokens": 1.5}, "tokens must be a whole number from 1 to 1000000000, got 1.5"),
        ("dsv2-lite-ep8", {"sigma": "wide"}, "sigma must be a number from 0 to 5, got 'wide'"),
        ("dsv2-lite-trace-ep8", {"scenarios": 2}, "scenarios must be 1 because steps are given, got 2"),
        ("dsv2-lite-ep8", {"slots_per_device": 7}, "devices x slots_per_device must be at least 64, the number of experts, got 8 x 7"),
        ("dsv2-lite-ep8", {"weights": {"traffic": 1.0}}, "transition must be given because weights.traffic is 1, got null"),
        ("nothing", {}, "preset 'nothing' is unknown; expected one of toy, toy-traffic,"),
    ],
)
def test_bad_settings(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        preset(name, **overrides)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
