"""Contracts that everything in the registry must keep: a new family, method, bound, preset or exporter is tested by being registered."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest

from headroom.documents import load_document as load_plan
from headroom.documents import read_document, result_document, save_document
from headroom.formulations.progress import Progress
from headroom.formulations.tolerances import relative_gap
from headroom.formulations.types import SolveParams
from headroom.instances.base import Instance, load_document
from headroom.registry import FAMILIES, Entry, Family, load
from headroom.run import Result, run
from headroom.verify import verify

SEED = 11


SMALL_BYTES = {"request_packing": 600}
"""Presets whose data are smaller as JSON are solved with every method; 13,000 where a family is not named. A request is a few bytes, and the plain
model has a variable for each pair of them."""
LIMIT_S = 4.0
"""For HiGHS on plain models; everything else here takes a moment."""


@cache
def preset_if_small(family: str, name: str) -> Instance | None:
    instance: Instance = load(FAMILIES[family].preset)(name, np.random.default_rng(SEED), {})
    return instance if len(json.dumps(instance.data())) < SMALL_BYTES.get(family, 13_000) else None


def instances(family: Family) -> Iterator[Instance]:
    """The small presets of a family."""
    yield from (instance for name in family.presets if (instance := preset_if_small(family.name, name)) is not None)


def handled(family: Family, table: Mapping[str, Entry], name: str) -> list[Instance]:
    """The small presets in a mode that this entry handles; there must be one."""
    entry = table[name]
    found = [instance for instance in instances(family) if not entry.modes or family.mode_of(instance) in entry.modes]
    assert found, f"no small preset for {name}"
    return found


METHODS = [pytest.param(family, name, id=f"{family.name}-{name}") for family in FAMILIES.values() for name in family.methods]
BOUNDS = [pytest.param(family, name, id=f"{family.name}-{name}") for family in FAMILIES.values() for name in family.bounds]
EXPORTS = [pytest.param(family, name, id=f"{family.name}-{name}") for family in FAMILIES.values() for name in family.exporters]
PRESETS = [pytest.param(family, name, id=f"{family.name}-{name}") for family in FAMILIES.values() for name in family.presets]


def dropped(family: Family, name: str, result: Result) -> bool:
    """Whether a method that needs no plan has none, and said why: an online policy that could not know better, a baseline that is not made for
    this instance. An exact method must have a plan."""
    if result.plan is not None or family.methods[name].kind == "exact":
        return False
    assert result.notes
    return True


def solved(instance: Instance, method: str, seed: int = SEED) -> Result:
    return run(instance, method, SolveParams(seed=seed, time_limit_s=LIMIT_S))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_names_resolve_and_say_what_they_are(family: Family) -> None:
    entries: list[Entry] = [*family.methods.values(), *family.bounds.values(), *family.exporters.values()]
    for entry in entries:
        assert callable(entry.load())
        assert entry.summary
        assert entry.load().__doc__, entry.target
    assert family.demo_preset in family.presets
    assert load(family.auto)(next(instances(family))) in family.methods


@pytest.mark.parametrize(("family", "name"), METHODS)
def test_method(family: Family, name: str) -> None:
    entry = family.methods[name]
    evaluate = load(family.evaluate)
    planned = 0
    for instance in handled(family, family.methods, name):
        result = solved(instance, name)
        if dropped(family, name, result):
            continue
        planned += 1
        assert result.plan is not None
        assert result.evaluation == evaluate(instance, result.plan)
        assert result.evaluation.feasible
        weights = result.evaluation.weights or {}
        assert result.objective == pytest.approx(math.fsum(weights.get(part, 1.0) * value for part, value in result.evaluation.parts.items()))
        assert result.gap == relative_gap(result.objective, result.bound)
        assert result.certified_bound <= result.bound <= result.objective * (1 + 1e-8)
        assert (result.status == "optimal") == (result.gap <= 1e-6)
        assert bool(result.bounds) == (entry.kind == "exact")
        again = solved(instance, name)
        assert again.objective == result.objective or "time_limit" in (result.stop, again.stop), "same seed, same answer"
        times, objectives, bounds = zip(*result.trajectory, strict=True)
        assert list(times) == sorted(times)
        assert list(objectives) == sorted(objectives, reverse=True)
        assert list(bounds) == sorted(bounds)
    assert planned


@pytest.mark.parametrize(("family", "name"), METHODS)
def test_document_round_trip_and_verify(family: Family, name: str, tmp_path: Any) -> None:
    for number, instance in enumerate(handled(family, family.methods, name)):
        result = solved(instance, name)
        if dropped(family, name, result):
            continue
        document = result_document(result)
        for suffix in (".json", ".npz"):
            path = tmp_path / f"{number}{suffix}"
            save_document(document, path)
            loaded = load_plan(path)
            assert loaded.plan is not None
            report = verify(instance, loaded)
            assert report.verified, report.problems
            again = run(instance, name, SolveParams(seed=SEED, time_limit_s=LIMIT_S, start=loaded.plan))
            assert again.objective <= document["result"]["objective"] * (1 + 1e-12)


@pytest.mark.parametrize(("family", "name"), BOUNDS)
def test_bound(family: Family, name: str) -> None:
    entry = family.bounds[name]
    recheck = load(family.recheck)
    for instance in handled(family, family.bounds, name):
        params = SolveParams(time_limit_s=30)
        bound = entry.load()(instance, params, Progress(params))
        assert bound.method == name
        assert bound.proof in ("certificate", "closed_form", "solver")
        best = solved(instance, "auto").objective
        assert bound.value <= best * (1 + 1e-8)
        if bound.proof != "solver":
            assert recheck(instance, bound) == pytest.approx(bound.value, rel=1e-9)


@pytest.mark.parametrize(("family", "name"), EXPORTS)
def test_exporter(family: Family, name: str) -> None:
    for instance in handled(family, family.exporters, name):
        document = read_document(result_document(solved(instance, "auto")))
        text = family.exporters[name].load()(instance, document)
        assert isinstance(text, str)
        assert text.endswith("\n")


@pytest.mark.parametrize(("family", "name"), PRESETS)
def test_preset_is_seeded_and_survives_files(family: Family, name: str, tmp_path: Any) -> None:
    make = load(family.preset)
    first, same, other = (make(name, np.random.default_rng(seed), {}) for seed in (1, 1, 2))
    assert first == same
    assert name in ("toy", "replicas-toy", "toy-makespan", "toy-groups") or first != other
    for suffix in (".json", ".npz"):
        path = tmp_path / f"x{suffix}"
        first.save(path)
        assert type(first).from_document(load_document(path)).digest() == first.digest()


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_model_builds_for_every_small_preset(family: Family) -> None:
    for instance in instances(family):
        model = load(family.build_model)(instance)
        assert any(True for _ in model.component_objects())
