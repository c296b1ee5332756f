"""`report`: figures worked out by hand, text that stays text, the same bytes for the same input, and what is refused."""

from __future__ import annotations

import html.parser
import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import headroom as package
from headroom.compare import tabulate
from headroom.report.aggregate import bound_summaries, mean_interval, pareto, quantiles, quartiles, summaries
from headroom.report.axes import GapScale, LogScale, rising
from headroom.report.charts import over_time
from headroom.report.data import cohorts, read
from headroom.report.page import page
from headroom.report.pictures import plan_page, split_pair
from headroom.report.provenance import sitting
from headroom.report.text import escape, percent, seconds, share
from headroom.report.trace import MOST_EVENTS, read_trace, trace_text
from tests.command import TOY_OPTIMUM, headroom, only_error, write_toy

VOID = {"meta", "input", "img", "br", "link"}


def row(method: str, objective: float | None, *, digest: str = "a", kind: str = "heuristic", **extra: Any) -> dict[str, Any]:
    known = {"family": "gpu_selection", "instance": f"name {digest}", "digest": digest * 64, "method": method, "kind": kind, "seed": None}
    known |= {"parameters": "p", "version": "0.1.0", "objective": objective, "runtime_s": 1.0, "status": "feasible", "stop": "completed"}
    return known | extra


def bound(digest: str, value: float, method: str = "lp", proof: str = "certificate", **extra: Any) -> dict[str, Any]:
    known = {"own_bound": value, "own_bound_method": method, "own_bound_proof": proof}
    certified = {} if proof == "solver" else {"own_certified_bound": value, "own_certified_method": method}
    return row(method, None, digest=digest, kind="bound", **known, **certified) | extra


def small() -> pd.DataFrame:
    """Two instances with the bound 80. On `a` greedy costs 100 and 160 (gaps 0.2 and 0.5), on `b` 80 (gap 0); slow always 80, and fails once."""
    return tabulate(
        [
            row("greedy", 100.0, seed=0, runtime_s=1.0),
            row("greedy", 160.0, seed=1, runtime_s=3.0),
            row("greedy", 80.0, digest="b", seed=0, runtime_s=2.0),
            row("slow", 80.0, kind="exact", runtime_s=50.0),
            row("slow", None, kind="exact", digest="b", error="RuntimeError: broke", stop="error", status=None),
            bound("a", 80.0),
            bound("b", 80.0),
            bound("a", 60.0, "simple", "closed_form"),
        ]
    )


# --- figures --------------------------------------------------------------------------------------------------------------------


def test_headline_figures() -> None:
    greedy, slow = sorted(summaries(read([small()]).methods, grouped=False), key=lambda item: item.method)
    assert (greedy.runs, greedy.instances, greedy.planned, greedy.optimal, greedy.failed) == (3, 2, 3, 1, 0)
    assert greedy.median_gap == pytest.approx(0.2)
    # Instance a has the mean 0.35, b has 0: their mean is 0.175, not the mean of the three runs.
    assert greedy.mean_gap is not None
    assert (greedy.mean_gap.mean, greedy.mean_gap.count, greedy.mean_gap.of) == (pytest.approx(0.175), 2, "instances")
    assert greedy.runtime_s == 2.0
    assert (slow.runs, slow.planned, slow.optimal, slow.failed) == (2, 1, 1, 1)
    assert slow.median_gap == 0.0
    assert slow.runtime_s == 50.0


def test_interval_is_students() -> None:
    # 1, 2, 3 %: mean 2 %, deviation 1 %; t(0.975, 2) = 4.302653, so half of the interval is 4.302653 % / sqrt(3) = 2.484138 %.
    one = mean_interval([[0.01, 0.02, 0.03]])
    assert one is not None
    assert (one.mean, one.count, one.of) == (pytest.approx(0.02), 3, "runs")
    assert (one.low, one.high) == (0.0, pytest.approx(0.04484138, rel=1e-6))
    # 50, 52, 54 % have twice the deviation: 52 % -+ 4.968276 %.
    three = mean_interval([[0.5], [0.51, 0.53], [0.54]])
    assert three is not None
    assert (three.low, three.high, three.of) == (pytest.approx(0.47031724, rel=1e-6), pytest.approx(0.56968276, rel=1e-6), "instances")
    two = mean_interval([[0.1, 0.3]])
    assert two is not None
    assert (two.mean, two.low, two.high) == (pytest.approx(0.2), None, None)
    assert mean_interval([[], []]) is None


def test_bounds_are_measured_against_the_best_plan() -> None:
    lp, simple = bound_summaries(read([small()]).rows)
    assert (lp.method, lp.runs, lp.proved, lp.best, lp.median_gap, lp.proof) == ("lp", 2, 2, 2, 0.0, "certificate")
    # The best plan of `a` costs 80: 60 lies a quarter of that below it.
    assert (simple.method, simple.best, simple.median_gap) == ("simple", 0, pytest.approx(0.25))


def test_front_of_gap_and_runtime() -> None:
    points = {
        point.method: point
        for point in pareto(
            read(
                [
                    tabulate(
                        [
                            row("fast", 160.0, runtime_s=1.0),
                            row("fast", 160.0, digest="b", runtime_s=1.0),
                            row("worse", 200.0, runtime_s=2.0),
                            row("worse", 200.0, digest="b", runtime_s=2.0),
                            row("good", 100.0, runtime_s=3.0),
                            row("good", 100.0, digest="b", runtime_s=3.0),
                            row("partial", 80.0, runtime_s=0.5),
                            row("partial", None, digest="b", runtime_s=0.5),
                            bound("a", 80.0),
                            bound("b", 80.0),
                        ]
                    )
                ]
            ).methods
        )
    }
    # `worse` is slower and further than `fast`; `partial` has no plan for b, so it neither stands on the front nor keeps others off it.
    assert {name for name, point in points.items() if point.front} == {"fast", "good"}
    assert points["fast"].gap == pytest.approx(0.5)
    assert points["partial"].runs == 1


def test_several_tables_share_their_best_bounds(tmp_path: Path) -> None:
    first, second = tabulate([row("greedy", 100.0), bound("a", 50.0)]), tabulate([row("other", 90.0), bound("a", 80.0, "better")])
    first.to_parquet(tmp_path / "one.parquet", index=False)
    runs = read([tmp_path / "one.parquet", second])
    assert {run.method: run.gap for run in runs.methods} == {"greedy": pytest.approx(0.2), "other": pytest.approx(1 / 9)}
    assert [source.rows for source in runs.sources] == [2, 2]
    # The same run in both: the one without an error counts, and counts once.
    broken = tabulate([row("greedy", None, error="RuntimeError: x")])
    assert [run.error for run in read([first, broken]).methods] == [None]
    assert [run.error for run in read([broken, first]).methods] == [None]


def test_groups_are_presets_with_their_settings() -> None:
    frame = tabulate(
        [
            row("m", 1.0, preset="p", settings="{}"),
            row("m", 1.0, digest="b", preset="p", settings='{"slices": 4, "name": "x"}'),
            row("m", 1.0, digest="c"),
            row("m", 1.0, digest="d", preset="p", settings="not JSON"),
        ]
    )
    assert [run.group for run in sorted(read([frame]).rows, key=lambda run: run.digest)] == ["p", "p (name=x, slices=4)", "name c", "p"]


def test_methods_are_compared_on_the_instances_that_they_share() -> None:
    frame = tabulate([row("x", 1.0), row("y", 1.0), row("x", 1.0, digest="b"), row("y", 1.0, digest="b"), row("z", 1.0, digest="c")])
    assert [{run.method for run in members} for members in cohorts(read([frame]).methods)] == [{"x", "y"}, {"z"}]


def test_order_statistics() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0]) == (1.75, 2.5, 3.25)
    assert quantiles([3.0, 1.0, 2.0], 5) == [1.0, 2.0, 3.0]
    assert quantiles([float(k) for k in range(101)], 5) == [0.0, 25.0, 50.0, 75.0, 100.0]


def test_scales() -> None:
    scale = LogScale.over([0.002, 30.0], 1e-6)
    assert (scale.low, scale.high) == (-3, 2)
    assert [scale.at(value) for value in (1e-9, 0.001, 0.1, 100.0, 1e9)] == pytest.approx([0.0, 0.0, 0.4, 1.0, 1.0])
    gaps = GapScale.over([0.0, 0.01, 0.1])
    assert gaps.at(1e-6) == gaps.at(0.0) < gaps.band <= gaps.at(0.01) < gaps.at(0.1) == 1.0
    assert rising(0.0, 10.0) == [0, 2, 4, 6, 8, 10]
    assert rising(37.6, 38.3) == [37.6, 37.8, 38.0, 38.2]


def test_numbers_for_people() -> None:
    assert [percent(value) for value in (None, math.inf, 0.0, 1e-6, 0.01234, 1.5)] == ["–", "–", "0 %", "0 %", "1.23 %", "150 %"]
    assert [seconds(value) for value in (None, 2e-6, 0.0123, 1.0, 4321.0)] == ["–", "2 µs", "12.3 ms", "1 s", "4,321 s"]
    assert [share(*pair) for pair in ((0, 0), (0, 9), (9, 9), (9999, 10000), (1, 3))] == ["–", "0 %", "100 %", "99.9 %", "33.3 %"]


# --- objective and bound over time ------------------------------------------------------------------------------------------------


def test_traces_are_bounded_and_come_back() -> None:
    assert trace_text([]) is None
    assert read_trace(trace_text([(0.5, 9.0, -math.inf), (1.0, 8.0, 7.5)])) == ((0.5, 9.0, None), (1.0, 8.0, 7.5))
    long = read_trace(trace_text([(float(k), 1000.0 - k, 0.0) for k in range(1000)]))
    assert len(long) == MOST_EVENTS
    assert (long[0], long[-1]) == ((0.0, 1000.0, 0.0), (999.0, 1.0, 0.0))
    for nonsense in (None, 3, "", "{", "[1]", "[[1, 2]]", '[["x", 1, 2]]', "[[-1, 2, 3]]", "[" * 100_000):
        assert read_trace(nonsense) == ()


def test_compare_fills_traces_that_are_drawn(tmp_path: Path) -> None:
    frame = package.compare([write_toy(tmp_path)], ["highs", "greedy"], [], jobs=1)
    traces = {name: read_trace(text) for name, text in zip(frame["method"], frame["trace"], strict=True)}
    assert traces["highs"][-1][1] == pytest.approx(TOY_OPTIMUM)
    assert traces["highs"][-1][2] == pytest.approx(TOY_OPTIMUM)
    events = [[0.01, 12.0, None], [0.1, 12.0, 5.0], [1.0, 10.0, 9.0]]
    drawn = over_time(read([tabulate([row("exact", 10.0, kind="exact", trace=json.dumps(events), own_bound=9.0, own_bound_method="exact")])]).rows)
    assert drawn is not None
    assert drawn.lines == (("exact", "", "10", "9"),)
    assert drawn.svg.count("<path") == 2


# --- the page -------------------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Elements with their attributes, what stands in tables, and whether every element that opens also closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open) and self.rows:
            self.rows[-1][-1] += data


def test_text_from_files_stays_text() -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;\u202e\x07"
    trace = "[[0.1, 9, 1], [0.2, 8, 2]]"
    hostile = [row(f"{evil}{k}", 8.0, family=evil, instance=evil, seed=k, kind=evil, trace=trace, note=evil) for k in range(3)]
    hostile += [row("broken", None, family=evil, error=evil, preset=evil, settings=json.dumps({evil: evil}))]
    hostile += [bound("a", 4.0, evil, family=evil), row("no plan", None, family=evil, note=evil)]
    frame = tabulate(hostile)
    frame.attrs["headroom"] = [{"command": evil, "date": evil, "machine": {"cpu": evil}, "versions": {evil: evil}}, 7]
    text = page(read([frame]), title=evil)
    found = Page(text)
    assert [tag for tag, _ in found.elements].count("script") == 1
    assert not any(tag == "img" or "onerror" in attributes for tag, attributes in found.elements)
    assert "\u202e" not in text
    assert "\x07" not in text
    assert any(evil.replace("\u202e", "\\x202e").replace("\x07", "\\x07") + "0" in cell for cells in found.rows for cell in cells)
    assert escape("<&\"'>") == "&lt;&amp;&quot;&#x27;&gt;"


def test_page_needs_nothing_from_outside_and_is_accessible() -> None:
    text = page(read([small()]))
    found = Page(text)
    assert not any(attributes.get(name) for _, attributes in found.elements for name in ("src", "srcset", "action"))
    assert {attributes["href"] for tag, attributes in found.elements if tag == "a"} == {"#gaps", "#failed"}
    assert "@import" not in text
    assert "url(" not in text
    assert all(attributes.get("aria-label") for tag, attributes in found.elements if tag == "svg" and attributes.get("role") == "img")
    headings = [attributes for tag, attributes in found.elements if tag == "th" and attributes.get("scope") == "col"]
    assert headings
    assert all(attributes.get("aria-sort") == "none" for attributes in headings)
    (policy,) = [attributes["content"] or "" for _, attributes in found.elements if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    identifiers = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_headline_row_as_it_is_read() -> None:
    rows = [" ".join(" | ".join(cells).split()) for cells in Page(page(read([small()]))).rows]
    assert "greedy heuristic | GPU selection | 20 % | 17.5 % | – | 20 % | 3 | 100 % | 33.3 % | 2 s" in rows
    assert "slow exact | GPU selection | 0 % | 0 % | – | 0 % | 2 | 50 % | 50 % | 50 s" in rows
    assert "slow | name b | – | RuntimeError: broke" in rows


def test_a_table_without_plans_or_bounds_has_a_page() -> None:
    for rows in ([bound("a", math.inf)], [row("m", None, error="x")], [row("m", 5.0)], [row("m", None, note="not for this instance")]):
        text = page(read([tabulate(rows)]))
        Page(text)
        assert not re.search(r"\bnan\b", text, re.IGNORECASE)
        assert ">inf" not in text


def test_same_input_same_bytes_and_small(tmp_path: Path) -> None:
    small().to_parquet(tmp_path / "r.parquet", index=False)
    write_toy(tmp_path)
    assert headroom("solve", "toy.json", "-o", "plan.json", cwd=tmp_path).returncode == 0
    pages = []
    for name in ("one.html", "two.html"):
        done = headroom("report", "r.parquet", "-o", name, "--plan", "toy.json:plan.json", "--title", "A study", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]
    assert len(pages[0]) < 150_000
    text = pages[0].decode("utf-8")
    assert "<h1>A study</h1>" in text
    assert "6.7 USD/h" in text
    assert '<img src="data:image/svg+xml;base64,' in text


def test_where_it_comes_from() -> None:
    frame = small()
    frame.attrs["headroom"] = [sitting(["headroom", "compare", "my file.json"])]
    text = page(read([frame]))
    assert "headroom compare &#x27;my file.json&#x27;" in text
    assert f"{frame.attrs['headroom'][0]['machine']['cores']} cores" in text
    assert "not recorded in the table" in page(read([small()])).split("Where this comes from")[1]


def test_sittings_survive_parquet(tmp_path: Path) -> None:
    frame = small()
    frame.attrs["headroom"] = [sitting(["headroom", "compare", "x.json"])]
    frame.to_parquet(tmp_path / "r.parquet", index=False)
    assert read([tmp_path / "r.parquet"]).sittings == tuple(frame.attrs["headroom"])


# --- plans ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "preset", "method", "titles"),
    [
        ("gpu_selection", "toy", "greedy", ["Cost by GPU type"]),
        ("expert_placement", "toy", "lpt", ["Load of the devices"]),
        ("kv_tiering", "toy", "static", ["What the tiers hold", "How long the tiers work"]),
        ("request_packing", "toy", "ffd", ["How full the bins are"]),
        ("request_packing", "toy-makespan", "fcfs_slots", ["Slots over time"]),
    ],
)
def test_every_family_has_its_picture(family: str, preset: str, method: str, titles: list[str]) -> None:
    import numpy as np

    from headroom.registry import FAMILIES, load

    instance = load(FAMILIES[family].preset)(preset, np.random.default_rng(0), {})
    result = package.solve(instance, method)
    drawn = plan_page(instance, result)
    assert [picture.title for picture in drawn.pictures] == titles
    assert all(picture.url.startswith("data:image/") and picture.alternative for picture in drawn.pictures)
    assert drawn.problems == ()
    caption = dict(drawn.caption)
    assert caption["objective"].startswith(f"{result.objective:.6g}")
    assert {"bound", "proof", "gap"} <= caption.keys()
    assert plan_page(instance, result) == drawn


def test_a_plan_with_false_claims_is_called_so(tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    assert headroom("solve", toy, "-o", "plan.json", cwd=tmp_path).returncode == 0
    document = json.loads((tmp_path / "plan.json").read_text("utf-8"))
    document["result"]["objective"] = 1.0
    (tmp_path / "plan.json").write_text(json.dumps(document), "utf-8")
    assert any("objective" in problem for problem in plan_page(toy, tmp_path / "plan.json").problems)


def test_pairs_of_files(tmp_path: Path) -> None:
    assert split_pair("x.json:plan.json") == ("x.json", "plan.json")
    odd = tmp_path / "a:b.json"
    odd.write_text("{}")
    assert split_pair(f"{odd}:{odd}") == (str(odd), str(odd))


# --- use ------------------------------------------------------------------------------------------------------------------------


def test_from_python(tmp_path: Path) -> None:
    result = package.solve(write_toy(tmp_path), "greedy")
    made = package.report(small(), tmp_path / "r.html", [result, (tmp_path / "toy.json", result)])
    assert made.read_text("utf-8").count("<img ") == 2


def test_wrong_use(tmp_path: Path) -> None:
    small().to_parquet(tmp_path / "r.parquet", index=False)
    small().head(0).to_parquet(tmp_path / "empty.parquet", index=False)
    small().assign(gap="x").to_parquet(tmp_path / "odd.parquet", index=False)
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "alien.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    toy = write_toy(tmp_path)
    cases = [
        (("text.parquet", "-o", "r.html"), "text.parquet: is not a parquet file"),
        (("missing.parquet", "-o", "r.html"), "missing.parquet: cannot be read"),
        (("alien.parquet", "-o", "r.html"), "alien.parquet: has no column '"),
        (("empty.parquet", "-o", "r.html"), "empty.parquet: has no rows"),
        (("odd.parquet", "-o", "r.html"), "odd.parquet: row 0: gap must be a number, got 'x'"),
        (("r.parquet", "-o", "r.txt"), "r.txt: must end in .html"),
        (("r.parquet", "-o", "no/r.html"), "there is no folder"),
        (("r.parquet", "-o", "r.html", "--plan", "toy.json"), "--plan: must be INSTANCE:PLAN"),
        (("r.parquet", "-o", "r.html", "--plan", "toy.json:nothing.json"), "nothing.json: cannot be read"),
        (("r.parquet", "-o", "r.html", "--plan", f"{toy}:{toy}"), "schema must be"),
        (("r.parquet",), "Missing option"),
    ]
    for arguments, message in cases:
        assert message in only_error(headroom("report", *arguments, cwd=tmp_path))
    assert not (tmp_path / "r.html").exists()
