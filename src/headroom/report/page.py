"""The page: figures, charts, pictures and provenance put into the template. One file, no network, the same input gives the same bytes."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from headroom.report import tables
from headroom.report.aggregate import bound_summaries, is_optimal, summaries
from headroom.report.charts import gap_runtime, gap_strips, over_time
from headroom.report.data import Run, Runs, cohorts
from headroom.report.pictures import PlanPage
from headroom.report.text import NOTHING, escape, heading, listed, percent, seconds, several, share, spoken

OPEN_ROWS = 40
"""The table by presets stands open up to so many rows."""
MOST_TRACES = 4
"""Instances of a family with a chart over time."""


def page(runs: Runs, plans: Sequence[PlanPage] = (), title: str | None = None) -> str:
    """The HTML text."""
    from headroom.run import versions

    families = sorted({*runs.families, *(plan.family for plan in plans)})
    script = _data("page.js")
    grouped = summaries(runs.methods, grouped=True)
    overall = summaries(runs.methods, grouped=False)
    told, silent = tables.idle(overall, runs.methods)
    grouped = [row for row in grouped if row.planned or row.failed or any((row.family, row.method) == (item.family, item.method) for item in told)]
    several_groups = any(row.group is not None for row in grouped) and len(grouped) > len(told)
    values = {
        "title": escape(title or "How far from the best possible?"),
        "version": escape(versions().get("headroom", "unknown")),
        "style": _data("page.css"),
        "script": script,
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
        "lead": _lead(runs),
        "families": _buttons(families),
        "glance": "".join(_tile(family, [run for run in runs.rows if run.family == family]) for family in runs.families),
        "headline": f'<div id="headline">{tables.headline(told)}</div>{silent}',
        "groups": _groups(grouped) if several_groups else "",
        "charts": "".join(_family(family, [run for run in runs.methods if run.family == family], plans) for family in families),
        "bounds": tables.bounds(bound_summaries(runs.rows)) if runs.bounds else "<p>No bound was run alone; exact methods prove their own.</p>",
        "provenance": _provenance(runs) + tables.instances(runs.rows) + tables.failed(runs.rows),
    }
    return Template(_data("page.html")).substitute(values)


def _data(name: str) -> str:
    return files("headroom.report").joinpath(name).read_text("utf-8")


def _lead(runs: Runs) -> str:
    methods, instances = {(run.family, run.method) for run in runs.methods}, {run.digest for run in runs.rows}
    failed = sum(run.error is not None for run in runs.rows)
    bounds = {(run.family, run.method) for run in runs.bounds}
    said = f"{several(len(runs.rows), 'run')}: {several(len(methods), 'method')} and {several(len(bounds), 'bound')} on "
    said += f"{several(len(instances), 'instance')} of {several(len(runs.families), 'family', 'families')}"
    return said + (f'; <a href="#failed">{several(failed, "run")} failed</a>' if failed else "") + "."


def _buttons(families: Sequence[str]) -> str:
    names = [("", "All families"), *((family, spoken(family)) for family in families)]
    return "".join(
        f'<button type="button" data-family="{escape(family)}" aria-pressed="{"true" if k == 0 else "false"}">{name}</button>'
        for k, (family, name) in enumerate(names)
    )


def _tile(family: str, runs: Sequence[Run]) -> str:
    """The one figure of a family: how near the best method without proofs of its own comes on average; and what is proved."""
    methods = [run for run in runs if run.kind != "bound"]
    rivals = [row for row in summaries([run for run in methods if run.kind != "exact"], grouped=False) if row.mean_gap is not None]
    digests = {run.digest for run in runs}
    # A method for one mode alone has an easier life: those that found plans for the most instances come first.
    covered = {row.method: len({run.digest for run in methods if run.method == row.method and run.planned}) for row in rivals}
    best = min(rivals, key=lambda row: (-covered[row.method], row.mean_gap.mean if row.mean_gap else 0.0, row.method), default=None)
    solved = {run.digest for run in methods if is_optimal(run)}
    figure, text = NOTHING, "no heuristic has a gap"
    if best is not None and best.mean_gap is not None:
        interval = best.mean_gap
        figure = percent(interval.mean)
        spread = "" if interval.low is None else f" ({percent(interval.low).removesuffix(' %')} … {percent(interval.high)})"
        where = "" if covered[best.method] == len(digests) else f", on {covered[best.method]:,} of {several(len(digests), 'instance')}"
        text = f"mean gap{spread} of the best heuristic, <strong>{escape(best.method)}</strong>{where}"
    return (
        f'<div class="tile" data-family="{escape(family)}"><h2>{heading(family)}</h2><p class="figure">{figure}</p><p>{text}.</p>'
        f'<p class="soft">{share(len(solved), len(digests))} of {several(len(digests), "instance")} solved to proved optimality.</p></div>\n'
    )


def _groups(rows: Sequence[Any]) -> str:
    state = " open" if len(rows) <= OPEN_ROWS else ""
    return f"<details{state}><summary>By preset: {several(len(rows), 'row')}</summary>{tables.by_group(rows)}</details>\n"


def _family(family: str, runs: Sequence[Run], plans: Sequence[PlanPage]) -> str:
    """A family's section: charts of each cohort, traces, plans."""
    parts = [f'<section data-family="{escape(family)}" aria-label="{spoken(family)}">\n<h2>{heading(family)}</h2>\n']
    groups = cohorts(runs)
    for members in groups:
        parts.append(_cohort(family, members, len(groups) > 1))
    parts += [_traces(runs), *(_plan(plan) for plan in plans if plan.family == family), "</section>\n"]
    return "".join(parts)


def _cohort(family: str, runs: Sequence[Run], alone: bool) -> str:
    names = sorted({run.group for run in runs})
    title = f"<h3>{listed(names, 6)}</h3>\n" if alone else ""
    said = f"{family.replace('_', ' ')}" + (f", {', '.join(names[:3])}" if alone else "")
    strips, plane = gap_strips(runs, said), gap_runtime(runs, said)
    if not strips or plane is None:
        return f"{title}<p>No run has both a plan and a bound: there is no gap to draw.</p>\n"
    legend = []
    for k, point in enumerate(plane.points):
        name = f"<b>{escape(point.method)}</b>" if point.front else escape(point.method)
        legend.append(f'<li><span class="no">{k + 1}</span>{name} <span class="soft">{percent(point.gap)}, {seconds(point.runtime_s)}</span></li>')
    return (
        f'{title}<div class="pair">\n<figure><h3>Gaps, method by method</h3>{strips}\n'
        "<figcaption>A dot is a run, the box the middle half of them, the bar their median. Logarithmic; the tinted band on the left holds what is "
        "proved optimal.</figcaption></figure>\n"
        f'<figure><h3>Gap against runtime</h3><div class="plot">{plane.svg}</div>\n<ol class="key">{"".join(legend)}</ol>\n'
        "<figcaption>Medians over the runs with a plan, both axes logarithmic; fastest first. Filled and bold: on the front, where no other method "
        "that has plans for every instance is both faster and nearer.</figcaption></figure>\n</div>\n"
    )


def _traces(runs: Sequence[Run]) -> str:
    """Charts over time of the instances with the most to tell, two of a group at most."""
    by_digest: dict[str, list[Run]] = {}
    for run in runs:
        if len(run.trace) > 1:
            by_digest.setdefault(run.digest, []).append(run)
    ranked = sorted(by_digest.values(), key=lambda members: (-max(len(run.trace) for run in members), members[0].group, members[0].digest))
    taken: dict[str, int] = {}
    chosen: list[list[Run]] = []
    for members in ranked:
        taken[members[0].group] = taken.get(members[0].group, 0) + 1
        if taken[members[0].group] <= 2 and len(chosen) < MOST_TRACES:
            chosen.append(members)
    parts = []
    for members in chosen:
        drawn = over_time(members)
        if drawn is None:
            continue
        legend = "".join(
            f'<li><i class="c{k}"></i>{escape(method)}{f", seed {escape(seed)}" if seed else ""}: '
            f'<span class="soft">{objective}, bound {bound}</span></li>'
            for k, (method, seed, objective, bound) in enumerate(drawn.lines)
        )
        cut = " What lies beyond the frame is drawn at its edge." if drawn.clipped else ""
        head = members[0]
        said = f"{escape(head.instance)} <small>{escape(head.digest[:8])}</small>"
        parts.append(
            f'<figure><h3>{said}</h3><div class="plot">{drawn.svg}</div>\n<ul class="key">{legend}</ul>\n'
            f"<figcaption>Objective (drawn through) and bound (dashed) over time.{cut}</figcaption></figure>\n"
        )
    if not parts:
        return ""
    more = f" <small>{len(chosen)} of {several(len(by_digest), 'instance')}</small>" if len(by_digest) > len(chosen) else ""
    return f'<h3>Objective and bound over time{more}</h3>\n<div class="pair">\n{"".join(parts)}</div>\n'


def _plan(plan: PlanPage) -> str:
    figures = "".join(
        f'<figure><h3>{escape(picture.title)}</h3><div class="paper" tabindex="0" role="region" aria-label="{escape(picture.title)}">'
        f'<img src="{picture.url}" alt="{escape(picture.alternative)}"></div></figure>\n'
        for picture in plan.pictures
    )
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in plan.caption)
    problems = "".join(f'<p class="problem">Not verified: {escape(problem)}</p>' for problem in plan.problems)
    return f'<div class="plan"><h3>Plan for {escape(plan.name)}</h3>\n{problems}<div class="pair">{figures}</div>\n<dl>{lines}</dl></div>\n'


def _provenance(runs: Runs) -> str:
    lines: list[tuple[str, str]] = []
    for source in runs.sources:
        digest = "" if source.sha256 is None else f", sha256 <code>{source.sha256}</code>"
        lines.append(("table", f"{escape(source.name)}: {several(source.rows, 'row')}{digest}"))
    for sitting in runs.sittings:
        lines += _sitting(sitting)
    if not runs.sittings:
        lines.append(("command, date, machine", "not recorded in the table"))
    seeds = sorted({run.seed for run in runs.methods if run.seed is not None})
    lines.append(("version of headroom", listed(sorted({run.version for run in runs.rows}))))
    lines.append(("seeds of methods", _ranges(seeds) or "none drew at random"))
    drawn = sorted({run.instance_seed for run in runs.rows if run.instance_seed is not None})
    lines.append(("seeds of instances", _ranges(drawn) or "not recorded in the table"))
    parameters = sorted({run.parameters for run in runs.rows})
    lines.append(("parameters (digest)", listed(parameters) + (": runs under different limits stand side by side" if len(parameters) > 1 else "")))
    spent = sum(run.runtime_s or 0.0 for run in runs.rows)
    lines.append(("time in methods", seconds(spent)))
    return f"<dl>{''.join(f'<dt>{name}</dt><dd>{value}</dd>' for name, value in lines)}</dl>\n"


def _sitting(sitting: Mapping[str, Any]) -> list[tuple[str, str]]:
    machine = sitting.get("machine")
    machine = machine if isinstance(machine, Mapping) else {}
    versions = sitting.get("versions")
    memory = machine.get("memory_bytes")
    said = [str(machine["cpu"])] if machine.get("cpu") else []
    said += [f"{machine['cores']} cores"] if machine.get("cores") else []
    said += [f"{memory / 2**30:.0f} GiB"] if isinstance(memory, (int, float)) else []
    said += [str(machine["system"])] if machine.get("system") else []
    lines = [("command", f"<code>{escape(sitting['command'])}</code>")] if sitting.get("command") else []
    lines += [("date", escape(sitting["date"]))] if sitting.get("date") else []
    lines += [("machine", escape(", ".join(said)))] if said else []
    lines += [("versions", escape(", ".join(f"{k} {v}" for k, v in versions.items())))] if isinstance(versions, Mapping) else []
    return lines


def _ranges(numbers: Sequence[int]) -> str:
    """`0 to 4, 7`."""
    spans: list[list[int]] = []
    for value in numbers:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return listed((str(a) if a == b else f"{a}, {b}" if b == a + 1 else f"{a} to {b}" for a, b in spans), 12)
