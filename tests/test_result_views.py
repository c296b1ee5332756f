"""What notebooks show: instances, plans and results as tables, plans as pictures."""

from __future__ import annotations

import numpy as np
import pytest

import headroom
from headroom.instances.errors import InputError
from headroom.instances.html import in_words, table
from headroom.registry import FAMILIES, load
from headroom.run import Result


def small(family: str, preset: str = "toy") -> Result:
    instance = load(FAMILIES[family].preset)(preset, np.random.default_rng(0), {})
    return headroom.solve(instance, time_limit_s=5)


@pytest.mark.parametrize(
    ("family", "preset", "labels"),
    [
        ("gpu_selection", "toy", {"fleet"}), ("expert_placement", "toy", {"device"}), ("kv_tiering", "toy", {"occupied"}),
        ("request_packing", "toy", {"bins"}), ("request_packing", "toy-makespan", {"slot"}),
    ],
)  # fmt: skip
def test_every_family_is_shown_and_drawn(family: str, preset: str, labels: set[str]) -> None:
    result = small(family, preset)
    shown = result._repr_html_()
    assert f"<strong>{preset} ({family})</strong>" in shown
    assert "proved optimal" in shown or result.status == "feasible"
    assert "certificate" in shown or "closed form" in shown or "solver" in shown
    assert result.plan is not None
    for field in type(result.plan).model_fields:
        if getattr(result.plan, field) is not None:
            assert f">{field}</th>" in result.plan._repr_html_()
    assert result.instance.digest()[:8] in result.instance._repr_html_()
    ax = result.plot()
    assert ax.has_data()
    assert labels & {word for text in (ax.get_xlabel(), ax.get_ylabel(), ax.get_title(loc="left")) for word in text.lower().split()} or ax.patches


def test_axes_of_ones_own_are_drawn_on() -> None:
    from headroom import plots

    _, ax = plots.figure()
    assert small("request_packing").plot(ax) is ax


def test_text_is_escaped_and_arrays_are_in_words() -> None:
    assert "<script>" not in table("<script>", [("<b>", "a & b")])
    assert "&lt;b&gt;" in table("x", [("<b>", "a & b")])
    assert in_words(np.arange(12).reshape(3, 4)) == "[3 x 4] from 0 to 11, mean 5.5"
    assert in_words(np.array([1, 2])) == "1, 2"
    assert in_words(np.zeros((0, 2))) == "[0 x 2] empty"
    assert in_words((1.5, "x")) == "1.5 | x"
    assert len(in_words("y" * 1000)) == 160


def test_without_a_plan_there_is_nothing_to_draw() -> None:
    instance = load(FAMILIES["request_packing"].preset)("toy", np.random.default_rng(0), {}).replace(capacity_tokens=1)
    result = headroom.solve(instance)
    assert result.plan is None
    assert "no plan exists" in result._repr_html_()
    with pytest.raises(InputError, match="result: holds no plan"):
        result.plot()
