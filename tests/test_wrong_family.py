"""Documents whose `family` is not that of their contents, and plans of another family: the message names both families."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headroom
from headroom.documents import read_document, result_document
from headroom.instances.base import Instance
from headroom.instances.errors import InputError
from headroom.registry import FAMILIES, load
from headroom.run import run

TOYS = {"gpu_selection": "toy", "expert_placement": "toy", "kv_tiering": "toy", "request_packing": "toy"}
METHODS = {"gpu_selection": "greedy", "expert_placement": "eplb", "kv_tiering": "static", "request_packing": "ffd"}
PAIRS = list(itertools.permutations(FAMILIES, 2))


def toy(family: str) -> Instance:
    made: Instance = load(FAMILIES[family].preset)(TOYS[family], np.random.default_rng(0), {})
    return made


def plan_of(family: str) -> dict[str, Any]:
    return result_document(run(toy(family), METHODS[family]))


@pytest.mark.parametrize(("family", "said"), PAIRS)
def test_an_instance_that_says_another_family(family: str, said: str, tmp_path: Path) -> None:
    document = toy(family).document() | {"family": said}
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(InputError) as caught:
        headroom.load(tmp_path / "x.json")
    assert f": family must be {family!r} for data with " in str(caught.value)
    assert str(caught.value).endswith(f", got {said!r}")


@pytest.mark.parametrize(("family", "said"), PAIRS)
def test_a_plan_that_says_another_family(family: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_document(plan_of(family) | {"family": said})
    assert str(caught.value).startswith(f"plan: family must be {family!r} for a plan with ")
    assert str(caught.value).endswith(f", got {said!r}")


def test_a_broken_plan_of_its_own_family_is_told_what_is_broken() -> None:
    with pytest.raises(InputError, match=r"bin\[0\] must be a whole number, got 'x'"):
        read_document({"schema": "headroom/plan/1", "family": "request_packing", "plan": {"bin": ["x"]}})
    with pytest.raises(InputError, match="plan: bin is missing"):
        read_document({"schema": "headroom/plan/1", "family": "request_packing", "plan": {"bins": [0]}})
    document = toy("request_packing").document()
    document["data"]["slots"] = 3
    with pytest.raises(InputError, match="data: slots must be null because the objective is 'bins', got 3"):
        type(toy("request_packing")).from_document(document)


@pytest.mark.parametrize(("family", "said"), PAIRS)
def test_a_plan_of_another_family_names_both(family: str, said: str) -> None:
    report = headroom.verify(toy(said), plan_of(family))
    assert report.problems == (f"the plan is one of family {family}, the instance one of {said}",)
    with pytest.raises(InputError, match=f"holds a plan of family {family}; expected one of family {said}"):
        headroom.solve(toy(said), start=run(toy(family), METHODS[family]))
