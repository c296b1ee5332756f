"""The tables of the page. Cells carry their sort value in `data-v`; empty means unknown, and sorts last either way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headroom.report.aggregate import BoundSummary, Interval, Summary
from headroom.report.data import Run
from headroom.report.text import NOTHING, escape, number, percent, seconds, several, share, spoken

MOST_FAILED = 500
MOST_INSTANCES = 500


@dataclass(frozen=True)
class Cell:
    """What a cell shows (HTML) and what it sorts by."""

    html: str
    sort: float | str | None = None
    name: str = ""
    header: bool = False

    def __str__(self) -> str:
        tag = 'th scope="row"' if self.header else "td"
        value = "" if self.sort is None else f"{self.sort:.9g}" if isinstance(self.sort, float) else escape(self.sort)
        kind = f' class="{self.name}"' if self.name else ""
        return f'<{tag}{kind} data-v="{value}">{self.html}</{tag.split()[0]}>'


def table(columns: Sequence[tuple[str, str]], rows: Iterable[tuple[str, Sequence[Cell]]], caption: str) -> str:
    """A table that the page's script sorts; `columns` are (heading, "number" or "text"), rows (family, cells). Headings and caption are HTML."""
    head = "".join(f'<th scope="col" class="{kind}" aria-sort="none"><button type="button">{name}</button></th>' for name, kind in columns)
    body = "".join(f'<tr data-family="{escape(family)}">{"".join(map(str, cells))}</tr>\n' for family, cells in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table class="sortable"><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>"
    )


def _numeric(text: str, value: float | None, title: str = "") -> Cell:
    shown = f'<span title="{escape(title)}">{text}</span>' if title else text
    return Cell(shown, None if value is None else float(value), "number")


def _interval(interval: Interval | None) -> tuple[Cell, Cell]:
    if interval is None:
        return _numeric(NOTHING, None), _numeric(NOTHING, None)
    mean = _numeric(percent(interval.mean), interval.mean)
    if interval.low is None or interval.high is None:
        return mean, _numeric(NOTHING, None, "less than three values have no interval")
    said = f"{percent(interval.low).removesuffix(' %')} … {percent(interval.high)}"
    return mean, _numeric(said, interval.high - interval.low, f"over {several(interval.count, interval.of.removesuffix('s'))}")


def _method(row: Summary) -> Cell:
    return Cell(f'{escape(row.method)} <small class="kind {escape(row.kind)}">{escape(row.kind)}</small>', row.method, "method", header=True)


GAP_COLUMNS = (
    ("median gap", "number"), ("mean gap", "number"), ("95 % interval", "number"), ("certified gap", "number"), ("runs", "number"),
    ("with plan", "number"), ("proved optimal", "number"), ("runtime", "number"),
)  # fmt: skip


def _gap_cells(row: Summary) -> list[Cell]:
    mean, interval = _interval(row.mean_gap)
    failed = f", {row.failed:,} failed" if row.failed else ""
    return [
        _numeric(percent(row.median_gap), row.median_gap),
        mean,
        interval,
        _numeric(percent(row.certified_gap), row.certified_gap),
        _numeric(f"{row.runs:,}", row.runs, f"on {several(row.instances, 'instance')}{failed}"),
        _numeric(share(row.planned, row.runs), row.planned / row.runs, f"{row.planned:,} of {row.runs:,}{failed}"),
        _numeric(share(row.optimal, row.runs), row.optimal / row.runs, f"{row.optimal:,} of {row.runs:,}"),
        _numeric(seconds(row.runtime_s), row.runtime_s),
    ]


def headline(rows: Sequence[Summary]) -> str:
    """A row for each family and method."""
    columns = (("method", "text"), ("family", "text"), *GAP_COLUMNS)
    body = [(row.family, [_method(row), Cell(spoken(row.family), row.family, "text"), *_gap_cells(row)]) for row in rows]
    return table(columns, body, "Gap to the best bound, by method")


def idle(rows: Sequence[Summary], runs: Sequence[Run]) -> tuple[list[Summary], str]:
    """The rows without those of methods that had nothing to do on any instance, and these with their reasons as a folded list."""
    reasons = {(run.family, run.method): run.note for run in runs if run.note}
    silent = [row for row in rows if row.planned == 0 and row.failed == 0 and (row.family, row.method) in reasons]
    if not silent:
        return list(rows), ""
    items = "".join(
        f'<li data-family="{escape(row.family)}"><b>{escape(row.method)}</b> ({spoken(row.family)}): {escape(reasons[row.family, row.method])}</li>'
        for row in silent
    )
    said = f"<details><summary>{several(len(silent), 'method')} found no plan, with reason</summary><ul>{items}</ul></details>\n"
    return [row for row in rows if row not in silent], said


def by_group(rows: Sequence[Summary]) -> str:
    """A row for each family, preset (or instance) and method."""
    columns = (("method", "text"), ("preset or instance", "text"), ("family", "text"), *GAP_COLUMNS)
    body = []
    for row in rows:
        labels = [Cell(escape(row.group or ""), row.group or "", "text"), Cell(spoken(row.family), row.family, "text")]
        body.append((row.family, [_method(row), *labels, *_gap_cells(row)]))
    return table(columns, body, "Gap to the best bound, by preset and method")


def bounds(rows: Sequence[BoundSummary]) -> str:
    """A row for each family and bound."""
    columns = (
        ("bound", "text"), ("family", "text"), ("proof", "text"), ("below the best plan", "number"), ("is the best", "number"),
        ("says something", "number"), ("runs", "number"), ("runtime", "number"),
    )  # fmt: skip
    body = []
    for row in rows:
        cells = [Cell(escape(row.method), row.method, "method", header=True), Cell(spoken(row.family), row.family, "text")]
        cells += [Cell(escape((row.proof or NOTHING).replace("_", " ")), row.proof, "text"), _numeric(percent(row.median_gap), row.median_gap)]
        cells += [_numeric(share(part, row.runs), part / row.runs, f"{part:,} of {row.runs:,}") for part in (row.best, row.proved)]
        cells += [_numeric(f"{row.runs:,}", row.runs), _numeric(seconds(row.runtime_s), row.runtime_s)]
        body.append((row.family, cells))
    return table(columns, body, "Bounds: how far below the best plan, median over instances")


def failed(runs: Sequence[Run]) -> str:
    """The runs that ended in an error, folded; nothing without any."""
    broken = [run for run in runs if run.error is not None]
    if not broken:
        return ""
    kinds = Counter(run.error or "" for run in broken).most_common(8)
    most = "".join(f"<li>{several(count, 'run')}: <code>{escape(message)}</code></li>" for message, count in kinds)
    columns = (("method", "text"), ("instance", "text"), ("seed", "number"), ("error", "text"))
    body = []
    for run in broken[:MOST_FAILED]:
        cells = [Cell(escape(run.method), run.method, "method", header=True), Cell(escape(run.instance), run.instance, "text"), _seed(run.seed)]
        body.append((run.family, [*cells, Cell(f"<code>{escape(run.error)}</code>", run.error, "wrap")]))
    rest = f"<p>{len(broken) - MOST_FAILED:,} more are in the table.</p>" if len(broken) > MOST_FAILED else ""
    summary = f"<summary>{several(len(broken), 'run')} failed</summary>"
    return f'<details id="failed">{summary}<ul>{most}</ul>{table(columns, body, "Runs that failed")}{rest}</details>'


def _seed(seed: int | None) -> Cell:
    return _numeric(NOTHING if seed is None else str(seed), seed)


def instances(runs: Sequence[Run]) -> str:
    """The instances with what is needed to make them again and to tell that they are the same."""
    columns = (
        ("instance", "text"), ("family", "text"), ("seed", "number"), ("best objective", "number"), ("best bound", "number"), ("by", "text"),
        ("sha256", "text"),
    )  # fmt: skip
    first: dict[str, Run] = {}
    best: dict[str, float] = {}
    for run in runs:
        first.setdefault(run.digest, run)
        if run.objective is not None:
            best[run.digest] = min(run.objective, best.get(run.digest, run.objective))
    body = []
    for digest, run in list(first.items())[:MOST_INSTANCES]:
        cells = [Cell(escape(run.instance), run.instance, "method", header=True), Cell(spoken(run.family), run.family, "text")]
        cells.append(_seed(run.instance_seed))
        cells += [_numeric(number(best.get(digest)), best.get(digest)), _numeric(number(run.bound), run.bound)]
        cells += [Cell(escape(run.bound_method or NOTHING), run.bound_method, "text")]
        cells += [Cell(f'<code title="{escape(digest)}">{escape(digest[:12])}</code>', digest, "text")]
        body.append((run.family, cells))
    rest = f"<p>{len(first) - MOST_INSTANCES:,} more are in the table.</p>" if len(first) > MOST_INSTANCES else ""
    return f"<details><summary>{several(len(first), 'instance')}</summary>{table(columns, body, 'Instances')}{rest}</details>"
