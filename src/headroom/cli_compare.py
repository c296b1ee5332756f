"""`headroom compare`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headroom.cli_common import (
    JsonOption,
    at_least,
    bound_text,
    bytes_of,
    check_output,
    note,
    number,
    objective_text,
    percent,
    positive,
    seconds,
    table,
    without_plan,
    write_json,
    write_out,
)

if TYPE_CHECKING:
    import pandas as pd

    from headroom.study import Study

HELP = """Run methods on instances, rank them by gap.

X are instances (.json, .npz) or study files (.toml); --preset adds a preset's instance for each seed, --set FIELD=A,B,C for each value.

A row a run, best first, each with its gap to the best bound that any run found; more than a few instances: a row a preset and method.

With -o a killed or interrupted sweep continues where it stopped, and a finished run is never run again.
Exit code 1: no method found a plan.
"""
METHODS = "Methods; default: all. FILE.py:NAME is your own policy or heuristic: that file is executed (see headroom template)."
COMPARISON_SCHEMA = "headroom/comparison/1"
RUN_LIMIT_S = 60.0
"""A sweep ends: some exact methods would search large instances for days."""


def add_compare_command(app: typer.Typer) -> None:
    """Register `headroom compare` on the app."""
    app.command("compare", help=HELP)(compare_command)


def compare_command(
    x: Annotated[list[Path] | None, typer.Argument(metavar="X...", help="Instances or study files.", show_default=False)] = None,
    preset: Annotated[
        list[str] | None, typer.Option("--preset", metavar="P", help="Preset, or FAMILY/PRESET; may be repeated.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=A,B", help="Settings of the presets; may be repeated.", show_default=False)
    ] = None,
    methods: Annotated[str | None, typer.Option("--methods", metavar="A,B", help=METHODS, show_default=False)] = None,
    bounds: Annotated[str | None, typer.Option("--bounds", metavar="A,B", help="Bounds, or none; default: all.", show_default=False)] = None,
    seeds: Annotated[str, typer.Option("--seeds", metavar="LIST", help="Seeds: 0,1,2 or 0:5 (0 to 4).")] = "0",
    jobs: Annotated[int | None, typer.Option("--jobs", metavar="N", help="Processes; default: one a core.", show_default=False)] = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", metavar="URL", help="Run on the Dask cluster behind tcp://HOST:PORT.", show_default=False)
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option("--time-limit", metavar="S", help="Seconds that a run may search at most; default: 60.", show_default=False)
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option("--memory-limit", metavar="M", help="Stop a run above this memory (500MB, 4GiB).", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the table: .parquet.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> int:
    """See HELP."""
    from headroom.compare import compare
    from headroom.compare_summary import FEW_INSTANCES, summarise
    from headroom.instances.errors import InputError
    from headroom.study import Study, parse_seeds

    if output is not None and output.suffix != ".parquet":
        raise InputError("must end in .parquet", str(output))
    check_output(output)
    asked = parse_seeds(seeds)
    study = _study(x or [], preset or [], settings or [], asked)
    limit = time_limit if time_limit is not None else study.time_limit_s if study.time_limit_s is not None else RUN_LIMIT_S
    memory = bytes_of(memory_limit, "--memory-limit")
    chosen = _names(methods)
    progress = _Progress()
    try:
        frame = compare(
            Study(study.cases, positive(limit, "--time-limit"), study.memory_limit_bytes if memory is None else memory),
            chosen,
            [] if bounds == "none" else _names(bounds),
            jobs=None if jobs is None else at_least(jobs, 1, "--jobs"),
            scheduler=scheduler,
            output=output,
            on_row=progress.show,
        )
    except KeyboardInterrupt:
        progress.clear()
        kept = f"; what is done is in {output}, and the same command continues" if output is not None else ""
        note(f"interrupted after {progress.done} runs{kept}")
        raise
    progress.clear()
    rows = records(frame)
    for name in chosen or ():
        if not any(row["method"] == name for row in rows):
            note(f"{name} was not run: it is for another mode than these instances' (see headroom families)")
    if as_json:
        write_json({"schema": COMPARISON_SCHEMA, "rows": rows})
    elif len({row["digest"] for row in rows}) > FEW_INSTANCES:
        write_out(summary_text(records(summarise(frame))))
    else:
        write_out(as_text(rows, _units(study, rows)))
    return 0 if any(row["objective"] is not None for row in rows if row["kind"] != "bound") else 1


def _study(x: list[Path], presets: list[str], settings: list[str], seeds: list[int]) -> Study:
    """What the arguments name: files, study files with their limits, presets with every seed and setting. Raises `InputError`."""
    from headroom.instances.errors import InputError
    from headroom.study import Case, Study, preset_cases, read_study, settings_of

    if not x and not presets:
        raise InputError("is missing; expected instances, a study file, or --preset", "X...")
    if settings and not presets:
        raise InputError("is for --preset, which is not given", "--set")
    cases: list[Case] = []
    time_limit_s: float | None = None
    memory_limit_bytes: int | None = None
    for path in x:
        if path.suffix.lower() == ".toml":
            study = read_study(path)
            cases += study.cases
            time_limit_s = study.time_limit_s if study.time_limit_s is not None else time_limit_s
            memory_limit_bytes = study.memory_limit_bytes if study.memory_limit_bytes is not None else memory_limit_bytes
        elif str(path) == "-":
            from headroom.api import load

            cases.append(Case(instance=load(path), seeds=tuple(seeds)))  # standard input is read once
        else:
            cases.append(Case(path=path, seeds=tuple(seeds)))
    fixed, grid = settings_of(settings)
    for name in presets:
        cases += preset_cases(name, seeds, fixed, grid)
    return Study(tuple(cases), time_limit_s, memory_limit_bytes)


def _units(study: Study, rows: list[dict[str, Any]]) -> dict[str, str]:
    """Units of the objectives, by the instances' digests; of the few instances that are printed one by one."""
    from headroom.describe import unit

    wanted = {row["digest"] for row in rows}
    found: dict[str, str] = {}
    for case in study.cases:
        if len(found) == len(wanted):
            break
        instance = case.load()
        if instance.digest() in wanted:
            found[instance.digest()] = unit(instance)
    return found


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows in JSON types; absent values are None, infinite bounds too (their status says infeasible)."""
    import math

    import pandas as pd

    def plain(value: Any) -> Any:
        if value is pd.NA or value is None or (isinstance(value, float) and not math.isfinite(value)):
            return None
        return value.item() if hasattr(value, "item") else value

    return [{str(name): plain(value) for name, value in record.items()} for record in frame.to_dict("records")]


def as_text(rows: list[dict[str, Any]], units: Mapping[str, str]) -> str:
    """One table an instance, best first; bounds at the end. `units` by the instances' digests, each with a space in front."""
    text = ""
    for digest in dict.fromkeys(row["digest"] for row in rows):
        group = [row for row in rows if row["digest"] == digest]
        head = group[0]
        proved = any(row["status"] == "infeasible" for row in group)
        units_of = units.get(digest, "")
        bound = "no plan exists" if proved else bound_text(head["bound"]) + ("" if head["bound"] is None else units_of)
        by = f", by {head['bound_method']} ({str(head['bound_proof']).replace('_', ' ')})" if head["bound_method"] else ""
        text += f"{head['instance']} ({head['family']}, sha256 {digest[:8]}): best bound {bound}{by}\n"
        silent = [row for row in group if _silent(row)]
        shown = [row for row in group if row not in silent] or group
        headings = [f"{name}{units_of}" if name == "objective" else name for name in HEADINGS]
        text += table(headings, [_cells(row) for row in shown], headings[1:6])
        if len(shown) < len(group):
            text += without_plan([(row["method"], row["note"]) for row in silent if row["kind"] != "bound"])
            bounds = [row["method"] for row in silent if row["kind"] == "bound"]
            text += f"no bound: {', '.join(dict.fromkeys(bounds))}\n" if bounds else ""
        text += "\n"
    return text


def _silent(row: dict[str, Any]) -> bool:
    """A run with nothing to show but a reason: a baseline that is not made for the instance, a bound that says nothing of it."""
    if row["error"] or row["status"] == "infeasible":
        return False
    if row["kind"] == "bound":
        return row["own_bound"] is None
    return row["kind"] != "exact" and row["objective"] is None and bool(row.get("note")) and not _dropped(row)


HEADINGS = ("method", "seed", "objective", "gap", "certified gap", "runtime", "status", "stop")


def _cells(row: dict[str, Any]) -> list[str]:
    is_bound = row["kind"] == "bound"
    value = bound_text(float("inf") if row["status"] == "infeasible" else row["own_bound"]) if is_bound else objective_text(row["objective"])
    return [
        f"{row['method']} (bound)" if is_bound else row["method"],
        "-" if row["seed"] is None else str(row["seed"]),
        value,
        "-" if is_bound else percent(row["gap"]),
        "-" if is_bound else percent(row["certified_gap"]),
        "-" if row["runtime_s"] is None else seconds(row["runtime_s"]),
        # A bound's run has no plan to have a status; what it proves of one that nobody can have is the exception.
        row["status"] if row["status"] and (not is_bound or row["status"] == "infeasible") else "-",
        row["error"] or _dropped(row) or row["stop"] or "-",
    ]


def _dropped(row: dict[str, Any]) -> str:
    """What a policy that has no plan did: it dropped requests, and paid so much."""
    share = row.get("part_dropped_share")
    return f"dropped {100 * share:.3g}% at {number(row.get('part_replay_cost_usd'))}" if share and row["objective"] is None else ""


SUMMARY_HEADINGS = ("method", "instances", "runs", "no plan", "mean gap", "95 %", "median gap", "worst gap", "optimal", "median time")


def summary_text(rows: list[dict[str, Any]]) -> str:
    """One table a group of instances: what each method makes of them, best first."""
    text = ""
    for group in dict.fromkeys((row["family"], row["group"]) for row in rows):
        own = [row for row in rows if (row["family"], row["group"]) == group]
        text += f"{group[1]} ({group[0]})\n"
        text += table(SUMMARY_HEADINGS, [_summary_cells(row) for row in own], SUMMARY_HEADINGS[1:]) + "\n"
    return text


def _summary_cells(row: dict[str, Any]) -> list[str]:
    half = row["gap_confidence"]
    return [
        row["method"],
        str(row["instances"]),
        str(row["runs"]),
        str(row["without_plan"] + row["errors"]) if row["without_plan"] + row["errors"] else "-",
        percent(row["gap_mean"]),
        "-" if half is None else f"+- {percent(half)}",
        percent(row["gap_median"]),
        percent(row["gap_worst"]),
        f"{100 * row['optimal_share']:.0f}%",
        "-" if row["runtime_median_s"] is None else seconds(row["runtime_median_s"]),
    ]


class _Progress:
    """Runs done, their rate and the time left, on one line of stderr where that is a terminal."""

    def __init__(self) -> None:
        self.done = 0
        self._painted = False
        self._started = time.monotonic()
        self._on = sys.stderr is not None and sys.stderr.isatty()

    def show(self, done: int, total: int, row: dict[str, Any]) -> None:
        self.done += 1
        if not self._on:
            return
        passed_s = time.monotonic() - self._started
        left = f", {clock((total - done) * passed_s / self.done)} left" if done < total else ""
        what = f"{row['method']} on {row['instance']}: {row.get('error') or number(row.get('objective'))}"
        self._write(f"\r\x1b[K{done}/{total} runs in {clock(passed_s)}, {self.done / max(passed_s, 1e-9):.2g}/s{left}  {what[:60]}")
        self._painted = True

    def clear(self) -> None:
        if self._painted:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            self._on = False


def clock(passed_s: float) -> str:
    """Seconds, minutes or hours and minutes."""
    whole = round(passed_s)
    if whole < 100:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 6000 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
