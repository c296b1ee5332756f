"""Plots: what stands on the axes is what the sweep or the plan says, with units; files are whole, the same each time, and need no display."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle

from headroom import plots
from headroom.formulations.gpu_selection import EpochPlan
from headroom.instances.errors import InputError
from headroom.instances.gpu_selection import GpuSelection
from headroom.plots.style import HATCHES, MOST_NAMES, PALETTE, fills, fleet_label, spoken
from headroom.plots.sweeps import _readable
from headroom.run import run
from headroom.sweep import Sweep, sweep
from headroom.sweep_types import Change, Point, ShadowPrice

HAND: dict[str, Any] = {
    "work": [{"name": "w", "rate_per_s": 10.0}],
    "gpus": [{"name": "A", "price_usd_per_h": 1.5}, {"name": "B", "price_usd_per_h": 4.0}],
    "throughput_per_s": [[1.0], [4.0]],
}
"""See tests/test_sweep.py: best fleets 10 A up to 1 USD/h, 2 A + 2 B up to 2 USD/h, then 3 B."""


@pytest.fixture(scope="module")
def hand() -> GpuSelection:
    return GpuSelection(name="by hand", **HAND)


@pytest.fixture
def ax() -> Axes:
    return plots.figure()[1]


def legend(ax: Axes) -> list[str]:
    found = ax.get_legend()
    assert found is not None
    return [text.get_text() for text in found.get_texts()]


def texts(ax: Axes) -> list[str]:
    return [text.get_text().strip() for text in ax.texts]


def bare(kind: str, axes: dict[str, str], points: list[Point], shadow: tuple[ShadowPrice, ...] = ()) -> Sweep:
    """A sweep with given answers, for what no small instance shows."""
    return Sweep(kind, kind, axes, "USD/h", "gpu_selection", "made up", "0" * 64, "branching", {}, tuple(points), shadow_prices=shadow)


def point(at: dict[str, float], cost: float = math.inf, bound: float | None = None, plan: Any = "plan") -> Point:
    known = math.isfinite(cost)
    return Point(at, cost, cost if bound is None else bound, -math.inf, "solved", "test", "completed", plan if known else None)


# --- sweeps ---------------------------------------------------------------------------------------------------------------------


def test_price_sweep(hand: GpuSelection, ax: Axes) -> None:
    plots.price_sweep(ax, sweep(hand, "price", "A", [0.5, 3.0]))
    pieces = [line for line in ax.lines if line.get_linewidth() == 3.5]
    assert [list(np.ravel(line.get_xydata())) for line in pieces] == [
        pytest.approx([0.5, 5.0, 1.0, 10.0]),
        pytest.approx([1.0, 10.0, 2.0, 12.0]),
        pytest.approx([2.0, 12.0, 3.0, 12.0]),
    ]
    assert len({to_hex(line.get_color()) for line in pieces}) == 3
    (dots,) = [line for line in ax.lines if line.get_marker() == "o"]
    assert np.asarray(dots.get_xydata()).tolist() == [pytest.approx([1.0, 10.0]), pytest.approx([2.0, 12.0])]
    assert ax.get_xlabel() == "price of A [USD/h per replica]"
    assert ax.get_ylabel() == "least cost [USD/h]"
    assert legend(ax) == ["0.5 to 1:  10 × A", "1 to 2:  2 × A + 2 × B", "2 to 3:  3 × B"]
    assert texts(ax) == ["now"]  # 1.5 USD/h, inside
    assert ax.get_title(loc="left").startswith("3 best mixes")


def test_now_is_drawn_only_where_it_lies(hand: GpuSelection, ax: Axes) -> None:
    plots.price_sweep(ax, sweep(hand, "price", "A", [2.5, 3.0]))
    assert texts(ax) == []
    assert ax.get_title(loc="left").startswith("one best mix")


def test_cost_mix(hand: GpuSelection, ax: Axes) -> None:
    found = sweep(hand, "rate", values=[5.0, 10.0, 20.0])
    plots.cost_mix(ax, found)
    # 5/s: 1 A + 1 B at 5.5 USD/h; 10/s: 2 A + 2 B at 11; 20/s: 5 B at 20. A million requests take 1e6/3600/rate hours.
    by_type = dict(zip(legend(ax), ax.patches, strict=True))
    assert set(by_type) == {"A", "B"}
    data = {name: patch.get_data() for name, patch in by_type.items()}  # type: ignore[attr-defined]
    factor = [1e6 / 3600 / rate for rate in (5, 10, 20)]
    assert data["A"].values - data["A"].baseline == pytest.approx([1.5 * factor[0], 3.0 * factor[1], 0.0])
    assert data["B"].values - data["B"].baseline == pytest.approx([4.0 * factor[0], 8.0 * factor[1], 20.0 * factor[2]])
    top = np.maximum(data["A"].values, data["B"].values)
    assert top == pytest.approx([5.5 * factor[0], 11.0 * factor[1], 20.0 * factor[2]])
    assert list(data["A"].edges) == pytest.approx([5 / 2**0.5, 5 * 2**0.5, 10 * 2**0.5, 20 * 2**0.5])
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "rate [requests/s]"
    assert ax.get_ylabel() == "least cost [USD per million requests]"


def test_limit_sweep(hand: GpuSelection, ax: Axes) -> None:
    capped = hand.replace(gpus=[HAND["gpus"][0] | {"max_count": 6}, HAND["gpus"][1] | {"max_count": 2}])
    plots.limit_sweep(ax, sweep(capped, "cap", "B", [0, 1, 2, 3]))
    cost, lost, now = ax.lines
    assert np.asarray(cost.get_xydata()).tolist() == [pytest.approx(pair) for pair in ([1.0, 13.0], [2.0, 11.0], [3.0, 11.0])]
    assert cost.get_drawstyle() == "steps-post"  # a cap of 1.9 is a cap of 1
    assert list(lost.get_xdata()) == [0.0]
    assert list(now.get_xdata()) == [2, 2]
    assert texts(ax) == ["13", "11", "now"]  # 11 is said once
    assert ax.get_xlabel() == "cap of B [replicas]"
    assert legend(ax) == ["least cost", "no plan"]


def test_no_steps_where_nothing_was_asked(hand: GpuSelection, ax: Axes) -> None:
    plots.limit_sweep(ax, sweep(hand, "cap", "B", [0, 2]))
    assert ax.lines[0].get_drawstyle() == "default"
    assert ax.get_legend() is None


def test_slo_heat_map(ax: Axes) -> None:
    cells = [
        point({"ttft_s": 0.5, "tpot_s": 0.05}),
        point({"ttft_s": 0.5, "tpot_s": 0.1}, 120.0),
        point({"ttft_s": 2.0, "tpot_s": 0.05}, 80.0, 40.0),
        point({"ttft_s": 2.0, "tpot_s": 0.1}, 12.34),
    ]
    plots.slo_heat_map(ax, bare("slo", {"ttft_s": "s", "tpot_s": "s"}, cells))
    squares = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert [(square.get_x(), square.get_y()) for square in squares] == [(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)]
    assert texts(ax) == ["no plan", "120.0", "80.0*", "12.3"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["50", "100"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0.5", "2"]
    assert ax.get_xlabel() == "limit on time per output token [ms]"
    assert ax.get_ylabel() == "limit on time to first token [s]"
    shades = [to_rgb(square.get_facecolor()[:3]) for square in squares]
    assert sum(shades[3]) < sum(shades[2]) < sum(shades[1])  # the dearer the lighter
    assert len(set(shades)) == 4


def test_ink_can_be_read_on_every_shade() -> None:
    def luminance(colour: str) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return float(np.dot(parts, (0.2126, 0.7152, 0.0722)))

    from matplotlib import colormaps

    for shade in np.linspace(0, 1, 50):
        colour = to_hex(colormaps["cividis"](shade))
        light, dark = sorted((luminance(colour), luminance(_readable(colour))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3.9


def test_shadow_price_bars(ax: Axes) -> None:
    prices = (
        ShadowPrice("max_count", "A", "replicas", 6.0, 6.0, 1.25, Change(2.0, 1.9, 2.1), Change(math.inf, math.inf, math.inf)),
        ShadowPrice("pool", "P", "GPUs", 8.0, 3.0, None, Change(0.0, 0.0, 0.0), None),
    )
    plots.shadow_price_bars(ax, bare("shadow", {}, [], prices))
    assert [patch.get_width() for patch in ax.patches if isinstance(patch, Rectangle)] == [2.0, 1.25, 0.0]
    assert texts(ax) == ["2", "no plan left", "1.25", "0"]
    (whisker,) = ax.lines
    assert list(whisker.get_xdata()) == [1.9, 2.1]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["max_count of A\n(now 6)", "pool of P\n(now 8)"]
    assert ax.get_xlabel() == "change of the least cost [USD/h]"
    assert len(legend(ax)) == 3


@pytest.mark.parametrize("draw", [plots.price_sweep, plots.cost_mix, plots.limit_sweep, plots.slo_heat_map, plots.shadow_price_bars])
def test_nothing_to_draw_is_one_clear_line(draw: Any, ax: Axes) -> None:
    with pytest.raises(InputError, match=r"nothing to draw|no pieces|no shadow prices"):
        draw(ax, bare("rate", {"rate": "requests/s"}, [point({"rate": 1.0})]))


# --- plans and comparisons ------------------------------------------------------------------------------------------------------


def test_fleet(hand: GpuSelection, ax: Axes) -> None:
    plots.fleet(ax, hand, run(hand).plan)
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert [bar.get_width() for bar in bars] == pytest.approx([8.0, 3.0])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["B", "A"]
    assert texts(ax) == ["8,  2 replicas", "3,  2 replicas"]
    assert ax.get_xlabel() == "cost [USD/h]"
    assert ax.get_title(loc="left") == "11 USD/h: by hand"


def timed(hand: GpuSelection) -> tuple[GpuSelection, EpochPlan]:
    """Three epochs of half an hour; a type whose name could be mistaken for a part's."""
    gpus = [HAND["gpus"][0], HAND["gpus"][1] | {"name": "rent A"}]
    timing = {"epoch_s": 1800.0, "rate_per_s": [[9.0], [6.0], [9.0]], "start_cost_usd": [0.5, 0.0]}
    instance = hand.replace(gpus=gpus, epochs=timing)
    fleets = [{"A": 5, "rent A": 1}, {"A": 2, "rent A": 1}, {"A": 5, "rent A": 1}]
    shares = [[[5 / 9], [4 / 9]], [[2 / 6], [4 / 6]], [[5 / 9], [4 / 9]]]
    return instance, EpochPlan(count=fleets, share=shares)


def test_fleet_over_epochs_adds_rent_and_starts(hand: GpuSelection, ax: Axes) -> None:
    instance, plan = timed(hand)
    plots.fleet(ax, instance, plan)
    # A: 12 half hours at 1.5 USD/h and three starts at 0.5; the other: 3 half hours at 4 USD/h.
    assert [patch.get_width() for patch in ax.patches if isinstance(patch, Rectangle)] == pytest.approx([10.5, 6.0])
    assert texts(ax) == ["10.5,  4 replicas in the mean", "6,  1 replica in the mean"]
    assert ax.get_xlabel() == "cost [USD]"


def test_epochs(hand: GpuSelection, ax: Axes) -> None:
    instance, plan = timed(hand)
    plots.epochs(ax, instance, plan)
    first, second = (patch.get_data() for patch in ax.patches)  # type: ignore[attr-defined]
    assert list(first.values) == [5, 2, 5]
    assert list(second.values - second.baseline) == [1, 1, 1]
    assert list(second.baseline) == [5, 2, 5]
    assert list(first.edges) == [0.0, 0.5, 1.0, 1.5]
    assert ax.figure is not None
    (load,) = [other for other in ax.figure.axes if other is not ax]
    (curve,) = load.patches
    assert list(curve.get_data().values) == [9.0, 6.0, 9.0]  # type: ignore[attr-defined]
    assert (ax.get_xlabel(), ax.get_ylabel(), load.get_ylabel()) == ("time [h]", "fleet [replicas]", "load [requests/s]")
    assert legend(ax) == ["A", "rent A", "load"]
    with pytest.raises(InputError, match="has no epochs"):
        plots.epochs(ax, hand, plan)


def test_gap_distribution(ax: Axes) -> None:
    rows = [("exact", "exact", 0.0), ("greedy", "heuristic", 0.02), ("greedy", "heuristic", 0.1), ("greedy", "heuristic", math.inf)]
    frame = pd.DataFrame([*rows, ("lp", "bound", 0.5)], columns=["method", "kind", "gap"])
    plots.gap_distribution(ax, frame)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["exact (1)", "greedy (2)"]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == [pytest.approx([1e-4]), pytest.approx([2.0, 10.0])]
    medians = [line.get_xdata()[0] for line in ax.lines if line.get_marker() != "o"]  # type: ignore[index]
    assert medians == pytest.approx([1e-4, 6.0])
    assert ax.get_xscale() == "log"
    assert "[%]" in ax.get_xlabel()
    low, high = ax.get_ylim()
    assert low > high, "the best on top"
    with pytest.raises(InputError, match="no run with a plan"):
        plots.gap_distribution(ax, frame[frame["kind"] == "bound"])


# --- style and files ------------------------------------------------------------------------------------------------------------


def test_colours_stay_apart_for_colour_blind_readers() -> None:
    # Viénot, Brettel and Mollon (1999): what a dichromat sees, on linear RGB. Colours must stay well apart, also as greys do not have to.
    protan = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
    deutan = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    linear = np.array([[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)] for colour in PALETTE])
    for seen in (linear, linear @ protan.T, linear @ deutan.T):
        shown = np.clip(seen, 0, 1) ** (1 / 2.4)
        apart = np.linalg.norm(shown[:, None, :] - shown[None, :, :], axis=2)[np.triu_indices(len(PALETTE), 1)]
        assert apart.min() > 0.12


def test_more_names_than_colours() -> None:
    names = [f"type{k}" for k in range(20)]
    look = fills(names)
    assert len({(item["facecolor"], item["hatch"]) for item in look.values()}) == 20
    assert look["type7"]["facecolor"] == look["type0"]["facecolor"]
    assert look["type7"]["hatch"] == HATCHES[1]


def test_a_long_legend_is_cut_and_says_so(ax: Axes) -> None:
    from headroom.plots.style import legend_below

    lines = [ax.plot([0], [0])[0] for _ in range(MOST_NAMES + 3)]
    legend_below(ax, lines, [f"n{k}" for k in range(MOST_NAMES + 3)])
    assert len(legend(ax)) == MOST_NAMES
    assert legend(ax)[-1] == f"n{MOST_NAMES - 1}  (and 3 more)"


def test_numbers_in_labels() -> None:
    assert [spoken(value) for value in (0.0, 2.31, 1234.5, 524.0, math.inf)] == ["0", "2.31", "1,234", "524", "–"]
    assert fleet_label({"H100": 3.0, "A10G": 1.0}) == "3 × H100 + 1 × A10G"
    assert fleet_label({}) == "nothing"


@pytest.mark.parametrize("what", [("price", "A", [0.5, 3.0]), ("rate", "", [5.0, 10.0]), ("cap", "B", [0, 1, 2])])
@pytest.mark.parametrize("suffix", [".png", ".svg", ".html"])
def test_files_are_whole_and_the_same_each_time(suffix: str, what: tuple[str, str, list[float]], hand: GpuSelection, tmp_path: Path) -> None:
    name, index, values = what
    found = sweep(hand.replace(name="<b>&"), name, index, values)
    for copy in ("one", "two"):
        found.plot(tmp_path / f"{copy}{suffix}")
    content = (tmp_path / f"one{suffix}").read_bytes()
    assert content == (tmp_path / f"two{suffix}").read_bytes()
    head = {".png": b"\x89PNG", ".svg": b"<?xml", ".html": b"<!doctype html>"}[suffix]
    assert content.startswith(head)
    if suffix == ".html":
        page = content.decode("utf-8")
        assert "<svg" in page
        assert "<b>&" not in page
        assert "<?xml" not in page
        assert "<script" not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"one{suffix}", f"two{suffix}"]


def test_an_unknown_format_is_refused(hand: GpuSelection, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.png, \.svg or \.html"):
        sweep(hand, "price", "A", [0.5, 3.0]).plot(tmp_path / "s.gif")
    assert list(tmp_path.iterdir()) == []


def test_no_display_and_no_pyplot(tmp_path: Path) -> None:
    code = f"""
import sys
from headroom import plots
assert "matplotlib" not in sys.modules
figure, ax = plots.figure()
ax.plot([0, 1], [0, 1])
plots.save(figure, {str(tmp_path / "x.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    without_display = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=without_display, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
