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

HELP = """Run methods on instances, rank them by gap.

A row a run, best first, each with its gap to the best bound that any run found.

With -o a killed or interrupted sweep continues where it stopped, and a finished run is never run again.
Exit code 1: no method found a plan.
"""
COMPARISON_SCHEMA = "headroom/comparison/1"
RUN_LIMIT_S = 60.0
"""A sweep ends: some exact methods would search large instances for days."""


def add_compare_command(app: typer.Typer) -> None:
    """Register `headroom compare` on the app."""
    app.command("compare", help=HELP)(compare_command)


def compare_command(
    x: Annotated[list[Path], typer.Argument(metavar="X...", help="Instances, .json or .npz.", show_default=False)],
    methods: Annotated[str | None, typer.Option("--methods", metavar="A,B", help="Methods; default: all.", show_default=False)] = None,
    bounds: Annotated[str | None, typer.Option("--bounds", metavar="A,B", help="Bounds, or none; default: all.", show_default=False)] = None,
    seeds: Annotated[str, typer.Option("--seeds", metavar="LIST", help="Seeds: 0,1,2 or 0:5 (0 to 4).")] = "0",
    jobs: Annotated[int | None, typer.Option("--jobs", metavar="N", help="Processes; default: one a core.", show_default=False)] = None,
    time_limit: Annotated[float, typer.Option("--time-limit", metavar="S", help="Seconds that a run may search at most.")] = RUN_LIMIT_S,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the table: .parquet.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> int:
    """See HELP."""
    from headroom.api import load
    from headroom.compare import compare
    from headroom.describe import unit
    from headroom.instances.errors import InputError

    if output is not None and output.suffix != ".parquet":
        raise InputError("must end in .parquet", str(output))
    check_output(output)
    progress = _Progress()
    instances = [load(path) for path in x]
    try:
        frame = compare(
            instances,
            _names(methods),
            [] if bounds == "none" else _names(bounds),
            parse_seeds(seeds),
            time_limit_s=positive(time_limit, "--time-limit"),
            jobs=None if jobs is None else at_least(jobs, 1, "--jobs"),
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
    for name in _names(methods) or ():
        if not any(row["method"] == name for row in rows):
            note(f"{name} was not run: it is for another mode than these instances' (see headroom families)")
    if as_json:
        write_json({"schema": COMPARISON_SCHEMA, "rows": rows})
    else:
        write_out(as_text(rows, {instance.digest(): unit(instance) for instance in instances}))
    return 0 if any(row["objective"] is not None for row in rows if row["kind"] != "bound") else 1


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def parse_seeds(text: str) -> list[int]:
    """`0,1,2`, `0:5` (0 to 4), or a mixture. Raises `InputError`."""
    from headroom.instances.errors import InputError, shown

    seeds: list[int] = []
    try:
        for item in text.split(","):
            first, colon, last = item.partition(":")
            begin = int(first)
            end = int(last) if colon else begin + 1
            if begin < 0 or end <= begin or end - begin > 10**6:
                raise ValueError
            seeds += range(begin, end)
    except ValueError:
        raise InputError(f"must be a list such as 0,1,2 or a range such as 0:5, got {shown(text)}", "--seeds") from None
    return seeds


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


class _Progress:
    """Runs done, on one line of stderr where that is a terminal."""

    def __init__(self) -> None:
        self.done = 0
        self._painted = False
        self._started = time.monotonic()
        self._on = sys.stderr is not None and sys.stderr.isatty()

    def show(self, done: int, total: int, row: dict[str, Any]) -> None:
        self.done += 1
        if not self._on:
            return
        what = f"{row['method']} on {row['instance']}: {row.get('error') or number(row.get('objective'))}"
        self._write(f"\r\x1b[K{done}/{total} runs, {time.monotonic() - self._started:.0f} s  {what[:80]}")
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
