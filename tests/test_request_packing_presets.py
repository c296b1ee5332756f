"""Presets of request packing: toys with the answers by hand, and presets that are what they are called."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from headroom.formulations.request_packing import bin_plan, evaluate, staged_plan
from headroom.instances.errors import InputError
from headroom.instances.request_packing import RequestPacking
from headroom.instances.request_packing_presets import PRESETS, make
from headroom.registry import FAMILIES
from tests.oracles.request_packing import Oracle

TOYS = ("toy", "toy-makespan", "toy-groups")


def preset(name: str, seed: int = 1, **overrides: Any) -> RequestPacking:
    return make(name, np.random.default_rng(seed), overrides)


def error_of(name: str, **overrides: Any) -> str:
    with pytest.raises(InputError) as caught:
        preset(name, **overrides)
    return str(caught.value)


def best(instance: RequestPacking) -> float:
    return Oracle(json.loads(json.dumps(instance.data()))).best()


def test_the_registry_names_the_presets_that_there_are() -> None:
    assert list(FAMILIES["request_packing"].presets) == list(PRESETS)


def test_toy_by_hand() -> None:
    # 2,000 tokens in all: two full bins, 400 + 300 + 300 each, and no fewer.
    instance = preset("toy")
    assert sorted(instance.size.tolist()) == [300] * 4 + [400] * 2
    long, short = np.flatnonzero(instance.size == 400), np.flatnonzero(instance.size == 300)
    of = np.empty(6, np.int64)
    of[long], of[short] = [0, 1], [0, 0, 1, 1]
    found = evaluate(instance, bin_plan(of))
    assert (found.objective, found.feasible, best(instance)) == (2.0, True, 2.0)
    # First fit decreasing: 400 + 400, 300 + 300 + 300, 300.
    of[long], of[short] = [0, 0], [1, 1, 1, 2]
    assert evaluate(instance, bin_plan(of)).objective == 3.0
    of[short] = [1, 1, 1, 1]
    assert [str(violation) for violation in evaluate(instance, bin_plan(of)).violations] == ["capacity_tokens[bin 1] exceeded by 200 (limit 1000)"]


def test_toy_makespan_by_hand() -> None:
    # Two prefills at least (three requests, two slots), the cheapest for 12 tokens 1.5 + 1 s; four steps at least: 6.5 s.
    instance = preset("toy-makespan")
    good = evaluate(instance, staged_plan([([(2, 0), (0, 1)], 2), ([(1, 1)], 2)]))
    assert (good.objective, good.feasible, best(instance)) == (6.5, True, 6.5)
    in_order = evaluate(instance, staged_plan([([(0, 0), (1, 1)], 2), ([(2, 0)], 4)]))
    assert (in_order.objective, in_order.feasible) == (8.5, True)


def test_toy_groups_by_hand() -> None:
    # Group 0: 400 + padded (250 + 310) = 1,000. Group 1: 200 + padded (390 + 380) = 1,000. Alone: 500 + 500. Nothing is left over.
    instance = preset("toy-groups")
    found = evaluate(instance, bin_plan([0, 1, 2, 0, 1, 2]))
    assert (found.objective, found.feasible, best(instance)) == (3.0, True, 3.0)
    assert sorted(instance.padded.tolist()) == [500, 500, 600, 600, 700, 800]
    # With sizes like those no three fit into 1,000 and only the two of 500 do: a packing blind to prefixes takes 5.
    blind = {"requests": {"prompt_tokens": instance.padded.tolist(), "output_tokens": [0] * 6}, "objective": "bins", "capacity_tokens": 1000}
    assert Oracle(blind).best() == 5.0


def test_toys_do_not_depend_on_the_seed() -> None:
    for name in TOYS:
        assert preset(name) == preset(name, seed=2)
        assert len(json.dumps(preset(name).data())) < 600


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in TOYS])
def test_each_preset_is_seeded_and_says_where_it_comes_from(name: str) -> None:
    few: dict[str, Any] = {} if name == "hard28-like" else {"requests": 60}
    instance = preset(name, **few)
    assert instance == preset(name, **few)
    assert instance != preset(name, seed=2, **few)
    assert instance.name == name
    assert {key: instance.provenance[key] for key in ("preset", "overrides")} == {"preset": name, "overrides": few}
    assert instance.count == (180 if name == "hard28-like" else 60)


SIZES = {
    "uniform-120": (120, 150, None), "uniform-250": (250, 150, None), "uniform-500": (500, 150, None), "uniform-1000": (1000, 150, None),
    "triplet-60": (60, 1000, 20), "triplet-120": (120, 1000, 40), "triplet-249": (249, 1000, 83), "triplet-501": (501, 1000, 167),
    "scholl-3": (200, 100_000, None), "shared-prefix": (2_000, 65_536, None), "adapters": (1_000, 8_192, None),
    "chat-65536": (19_366, 65_536, None), "backlog-million": (1_000_000, 65_536, None),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_bins_have_the_sizes_of_their_names(name: str) -> None:
    instance = preset(name)
    assert (instance.count, instance.capacity_tokens, instance.provenance.get("optimum")) == SIZES[name]
    assert instance.padded.max() <= (instance.capacity_tokens or 0)  # so that there is a plan


def test_hard28_like_is_known() -> None:
    instance = preset("hard28-like")
    assert -(-int(instance.size.sum()) // 1000) == instance.provenance["optimum"]


def test_prefixes_and_adapters() -> None:
    shared, padded = preset("shared-prefix"), preset("adapters")
    assert (shared.groups, shared.plain, padded.groups, padded.padding_multiple, padded.plain) == (50, False, 8, 64, False)
    # Worth grouping: one copy of each prefix is a tenth of what the requests bring, one copy a request several times as much.
    assert shared.overhead.sum() < 0.2 * shared.size.sum()
    assert shared.overhead[shared.group_of].sum() > 2 * shared.size.sum()


def test_slots() -> None:
    staged, without, uniform = preset("gsm8k-staged"), preset("gsm8k-cmax"), preset("cmax-uniform")
    assert (staged.count, staged.slots, len(staged.prefill_levels)) == (1_319, 200, 7)
    assert (without.count, without.slots, without.prefill_levels) == (1_319, 200, ())
    assert without.requests.output_tokens.tolist() == staged.requests.output_tokens.tolist()
    assert (uniform.count, uniform.slots, uniform.decode_step_s) == (200, 10, 1.0)


def test_overrides() -> None:
    assert preset("gsm8k-staged", requests=200).count == 200
    assert preset("uniform-120", capacity_tokens=200, most=200).size.max() > 100
    assert preset("backlog-million", requests=100, lengths="mooncake").size.max() > 13_000
    assert preset("toy", capacity_tokens=2_000).capacity_tokens == 2_000  # a field of the instance
    # A preset that draws for a capacity has one name for it: a triplet fills the bin asked for, and the proof holds.
    assert preset("triplet-60", requests=30).provenance["optimum"] == 10
    wide = preset("triplet-60", capacity_tokens=2_000)
    assert (wide.size.sum(), wide.provenance["optimum"]) == (40_000, 20)
    assert error_of("triplet-60", capacity_tokens=10).startswith("capacity_tokens must be a whole number from 100 to")
    assert error_of("triplet-60", capacity=1_000).startswith("field 'capacity' is unknown; expected one of requests, capacity_tokens,")
    assert preset("adapters", requests=50, padding_multiple=100, capacity_tokens=1_000).size.max() <= 1_000
    # What a construction proves is not said of an instance that was changed afterwards.
    changed = preset("triplet-60", padding_multiple=2)
    assert changed.provenance == {"preset": "triplet-60", "overrides": {"padding_multiple": 2}}
    assert best(preset("toy", capacity_tokens=2_000)) == 1.0
    assert error_of("nothing").startswith("preset 'nothing' is unknown; expected one of toy, toy-makespan, toy-groups, uniform-120")
    assert error_of("toy", speed=1).startswith("field 'speed' is unknown; expected one of capacity_tokens, decode_step_s")
    assert error_of("triplet-60", speed=1).startswith("field 'speed' is unknown; expected one of requests, capacity_tokens,")
    assert error_of("triplet-60", requests=61) == "requests must be a multiple of 3, got 61"
    assert error_of("toy", slots=2) == "slots must be null because the objective is 'bins', got 2"
