"""The report in a real browser: no complaints, no network, charts drawn, tables that sort and filter, quick, on a phone and in the dark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headroom as package
from headroom.compare import tabulate
from headroom.registry import FAMILIES, load
from tests.browser import Browser, find_browser

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on the path (or named by HEADROOM_BROWSER)")
FAMILY_METHODS = {
    "gpu_selection": ("highs", "greedy", "single_type", "online_first_fit"),
    "expert_placement": ("cpsat", "eplb", "lpt", "random", "exflow"),
    "kv_tiering": ("lagrangian", "lru", "lfu", "belady"),
    "request_packing": ("bins", "ffd", "bfd", "next_fit"),
}
MOST_OPEN_S = 3.0
FIND = 'document.getElementById("find")'


def study(rows: int) -> list[dict[str, Any]]:
    """Runs of a made-up study with presets, seeds, traces, failures and runs without a plan."""
    rng = np.random.default_rng(0)
    found: list[dict[str, Any]] = []
    case = 0
    while len(found) < rows:
        family = list(FAMILY_METHODS)[case % 4]
        base, preset = float(rng.uniform(10, 100)), f"preset-{case // 4 % 5}"
        for k, method in enumerate(FAMILY_METHODS[family]):
            for seed in range(5):
                proves = k == 0
                objective = base * (1 + (0.0 if proves and rng.random() < 0.7 else float(rng.lognormal(k / 2 - 4, 1))))
                runtime_s = float(rng.lognormal(3 * proves - 4, 1))
                trace = [[runtime_s * j / 9, objective * (1 + 1 / j), base * (1 - 1 / (j + 1))] for j in range(1, 10)]
                error = "RuntimeError: <script>window.broken = true</script>" if rng.random() < 0.01 else None
                row = {"family": family, "instance": preset, "digest": f"{case:064x}", "method": method, "kind": "exact" if proves else "heuristic"}
                row |= {"seed": seed, "parameters": "p", "version": "0.1.0", "preset": preset, "instance_seed": case // 20, "settings": "{}"}
                row |= {"objective": None if error or rng.random() < 0.02 else objective, "runtime_s": runtime_s, "error": error}
                if proves:
                    row |= {"own_bound": base, "own_bound_method": method, "own_bound_proof": "certificate", "trace": json.dumps(trace)}
                    row |= {"own_certified_bound": base, "own_certified_method": method}
                found.append(row)
        case += 1
    return found[:rows]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with plans of every family."""
    drawn = []
    for family, method in (("gpu_selection", "greedy"), ("expert_placement", "lpt"), ("kv_tiering", "lru"), ("request_packing", "ffd")):
        drawn.append(package.solve(load(FAMILIES[family].preset)("toy", np.random.default_rng(0), {}), method))
    output = tmp_path_factory.mktemp("report") / "report.html"
    return package.report(tabulate(study(600)), output, drawn, title="<script>window.broken = true</script>").as_uri()


def methods(browser: Browser) -> list[str]:
    """The headline table's shown rows, top down."""
    rows = 'document.querySelectorAll("#headline tbody tr:not([hidden])")'
    found: list[str] = browser.evaluate(f"Array.from({rows}, (row) => row.dataset.family + ' ' + row.cells[0].dataset.v)")
    return found


def column(browser: Browser, number: int) -> list[str]:
    found: list[str] = browser.evaluate(f'Array.from(document.querySelectorAll("#headline tbody tr"), (row) => row.cells[{number}].dataset.v)')
    return found


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_opens_without_complaints_and_draws(width: int, dark: bool, browser: Browser, page: str) -> None:
    browser.open(page, width=width, dark=dark, touch=width < 500)
    assert browser.errors == []
    assert [address for address in browser.requests if not address.startswith(("file:", "data:"))] == []
    assert browser.evaluate("document.documentElement.dataset.ready") == "true"
    assert browser.evaluate("window.broken === undefined")
    # Nothing stands out of the page at the side, on a phone either.
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    sizes = browser.evaluate(
        'Array.from(document.querySelectorAll("svg.chart"), (chart) => { const box = chart.getBoundingClientRect(); '
        'return [box.width, box.height, chart.querySelectorAll("circle, path").length]; })'
    )
    assert len(sizes) >= 12  # distribution, plane and a trace for each of four families
    assert all(across > 0.6 * min(width, 500) and down > 60 and marks >= 1 for across, down, marks in sizes)
    loaded = browser.evaluate("Array.from(document.images, (image) => image.complete && image.naturalWidth > 100)")
    assert loaded == [True] * 5
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == ("rgb(18, 22, 28)" if dark else "rgb(246, 247, 249)")


def test_tables_sort_by_click_and_by_key(browser: Browser, page: str) -> None:
    browser.open(page)
    heading = 'document.querySelectorAll("#headline thead th")[2]'
    for direction in ("ascending", "descending"):
        browser.evaluate(f'{heading}.querySelector("button").click()')
        assert browser.evaluate(f'{heading}.getAttribute("aria-sort")') == direction
        values = [float(text) for text in column(browser, 2) if text]
        assert len(values) > 10
        assert values == sorted(values, reverse=direction == "descending")
    # By keys alone: Enter on the heading of the first column.
    browser.evaluate('document.querySelector("#headline thead th button").focus()')
    browser.press("Enter", 13, "\r")
    assert browser.evaluate('document.querySelector("#headline thead th").getAttribute("aria-sort")') == "ascending"
    assert browser.evaluate(f'{heading}.getAttribute("aria-sort")') == "none"
    assert column(browser, 0) == sorted(column(browser, 0))
    assert browser.errors == []


def test_filters(browser: Browser, page: str) -> None:
    browser.open(page)
    everything = methods(browser)
    browser.evaluate("document.querySelector('.families button[data-family=\"kv_tiering\"]').click()")
    assert sorted(methods(browser)) == sorted(item for item in everything if item.startswith("kv_tiering "))
    sections = 'Array.from(document.querySelectorAll("section[data-family]"), (block) => [block.dataset.family, block.offsetHeight > 0])'
    assert dict(browser.evaluate(sections)) == {family: family == "kv_tiering" for family in FAMILY_METHODS}
    browser.evaluate(f'{FIND}.value = "LR"; {FIND}.dispatchEvent(new Event("input"))')
    assert methods(browser) == ["kv_tiering lru"]
    browser.evaluate('document.querySelector(".families button").click()')
    browser.evaluate(f'{FIND}.value = ""; {FIND}.dispatchEvent(new Event("input"))')
    assert sorted(methods(browser)) == sorted(everything)


def test_ten_thousand_rows_open_in_three_seconds(browser: Browser, tmp_path: Path) -> None:
    made = package.report(tabulate(study(10_000)), tmp_path / "big.html")
    assert made.stat().st_size < 2_000_000
    browser.open(made.as_uri())
    # Two frames later what was laid out has been painted; the clock starts with the navigation.
    painted = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"
    assert browser.evaluate(painted) / 1000 <= MOST_OPEN_S
    assert browser.errors == []
    assert browser.evaluate('document.querySelectorAll("svg.chart circle").length') > 500
