"""`headroom solve`."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headroom.cli_common import (
    HoldersOption,
    InstanceArgument,
    JsonOption,
    MovesOption,
    SpareOption,
    ThreadsOption,
    TimeLimitOption,
    at_least,
    bound_text,
    bytes_of,
    check_output,
    note,
    number,
    objective_text,
    one_from_stdin,
    percent,
    positive,
    read_instance,
    rows_of_pairs,
    seconds,
    table,
    with_spare,
    write_json,
    write_out,
)

if TYPE_CHECKING:
    from headroom.formulations.progress import Progress
    from headroom.formulations.types import SolveParams
    from headroom.instances.base import Instance
    from headroom.interrupts import Watch
    from headroom.run import Result

SENSITIVITY_ROWS = 10
"""Records of each kind of constraint that the text shows."""

METHOD = "Method (see headroom families); auto picks one by size; FILE.py:NAME runs your own, that file is executed."
HELP = """Find a plan, and prove how good it is.

Without a limit an exact method runs until it has proved optimality or gains no more; Ctrl-C keeps the best so far. --start improves a given plan.
Exit code: 0 plan found, 1 infeasible or none found, 130/143 interrupted.
"""


def add_solve_command(app: typer.Typer) -> None:
    """Register `headroom solve` on the app."""
    app.command("solve", help=HELP)(solve_command)


def solve_command(
    x: InstanceArgument,
    method: Annotated[str, typer.Option("--method", metavar="M", help=METHOD)] = "auto",
    start: Annotated[str | None, typer.Option("--start", metavar="PLAN", help="Plan to improve on.", show_default=False)] = None,
    time_limit: TimeLimitOption = None,
    memory_limit: Annotated[
        str | None, typer.Option("--memory-limit", metavar="M", help="Stop above this memory (500MB, 4GiB).", show_default=False)
    ] = None,
    gap: Annotated[float | None, typer.Option("--gap", metavar="G", help="Stop at this relative gap (0.01: 1%).", show_default=False)] = None,
    threads: ThreadsOption = 1,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of methods that draw at random.")] = 0,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="One thread, so that the same seed gives the same search.")] = False,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="Report what a little more of each limit is worth.")] = False,
    spare: SpareOption = None,
    min_holders: HoldersOption = None,
    max_moves: MovesOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the plan: .json or .npz.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> int:
    """See HELP."""
    from headroom.api import start_plan
    from headroom.formulations.types import SolveParams
    from headroom.instances.errors import InputError

    if gap is not None and not (gap >= 0 and math.isfinite(gap)):
        raise InputError(f"must be at least 0, got {gap:g}", "--gap")
    one_from_stdin(x, start)
    check_output(output, x, start)
    limits = {"time_limit_s": positive(time_limit, "--time-limit"), "memory_limit_bytes": bytes_of(memory_limit, "--memory-limit")}
    given = read_instance(x)
    instance, options = with_spare(given, spare, min_holders, max_moves)
    params = SolveParams(
        seed=at_least(seed, 0, "--seed"),
        gap_limit=gap,
        threads=at_least(threads, 1, "--threads"),
        deterministic=deterministic,
        start=start_plan(instance, _read_start(start)),
        sensitivity=sensitivity,
        **limits,  # type: ignore[arg-type]
    )
    return _solve(given, instance, options, method, params, output, as_json)


def _read_start(start: str | None) -> Any:
    if start != "-":
        return start
    from headroom.cli_common import read_plan

    return read_plan(start)


def _solve(given: Instance, instance: Instance, options: dict[str, Any], method: str, params: SolveParams, output: Path | None, as_json: bool) -> int:
    from headroom.describe import remarks
    from headroom.documents import result_document, save_document
    from headroom.interrupts import leave, signals

    with contextlib.redirect_stdout(sys.stderr):  # what a user's own method prints is not the result
        result, failure, alive = run_watched(instance, method, params)
    if result is not None:
        result = replace(result, notes=(*result.notes, *remarks(instance)))
        document = result_document(result, given, options)
        try:
            # Without a plan the document of a finished run still holds bounds or a proof; that of an interrupted one must not replace a plan.
            if output is not None and (result.plan is not None or result.stop not in ("interrupted", "error")):
                save_document(document, output)
        finally:
            if as_json:
                write_json(document)
            else:
                write_out(summary(result))
        for text in result.notes if as_json else ():
            note(text)
    if failure is not None:
        saved = " The best plan so far was kept." if result is not None and result.plan is not None else ""
        note(f"the method failed.{saved}")
        raise failure
    code = _exit_code(result, output)
    if alive:
        leave(code)
    signals.release()
    return code


def run_watched(instance: Instance, method: str, params: SolveParams) -> tuple[Result | None, BaseException | None, bool]:
    """Run a method in a thread while the main thread hears signals: the result, what it raised, and whether its thread had to be abandoned.

    A method that fails or does not stop in time leaves its best plan so far as the result; None when it had not begun.
    """
    from headroom.instances.errors import InputError
    from headroom.interrupts import signals
    from headroom.run import abandoned, run

    watch: Watch[Result] = signals.watch(lambda watch: run(instance, method, params, on_start=watch.follow))
    live = LiveLine()
    ended = watch.wait(lambda: live.paint(watch.progress))
    live.clear()
    failure: BaseException | None = None
    if ended:
        try:
            return watch.result(), None, False
        except InputError:
            raise
        except Exception as error:
            failure = error
    result = None
    if watch.progress is not None and (failure is None or watch.progress.plan is not None):
        result = abandoned(instance, method, params, watch.progress, "interrupted" if failure is None else "error")
    return result, failure, not ended


def _exit_code(result: Result | None, output: Path | None) -> int:
    from headroom.interrupts import signals

    if signals.exit_code is not None:
        if result is None or result.plan is None:
            note("interrupted before any plan was found")
        else:
            note(f"interrupted; the best plan so far was written to {output}" if output is not None else "interrupted; this is the best plan so far")
        return signals.exit_code
    return 0 if result is not None and result.plan is not None else 1


class LiveLine:
    """Incumbent, bound, gap and time on one line of stderr, only where that is a terminal."""

    def __init__(self) -> None:
        self._on = sys.stderr is not None and sys.stderr.isatty()
        self._painted_at = 0.0
        self._painted = False

    def paint(self, progress: Progress | None) -> None:
        """Repaint, at most five times a second."""
        if not self._on or progress is None or time.monotonic() - self._painted_at < 0.2:
            return
        self._painted_at, self._painted = time.monotonic(), True
        text = f"incumbent {objective_text(progress.objective)}  bound {bound_text(progress.bound)}  gap {percent(progress.gap)}"
        self._write(f"\r\x1b[K{text}  {progress.elapsed_s:.1f} s")

    def clear(self) -> None:
        if self._painted:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            self._on = False


def summary(result: Result) -> str:
    """A result for people: what was found, what is proved, by whom."""
    from headroom.describe import certified, describe, unit

    instance = result.instance
    solver = f" ({result.solver})" if result.solver else ""
    pairs = [
        ("instance", f"{instance.name} ({instance.family})"),
        ("method", result.method + solver),
        ("status", result.status if result.stop == "completed" else f"{result.status} (stopped: {result.stop.replace('_', ' ')})"),
    ]
    units = unit(instance)
    if result.plan is not None:
        pairs.append(("objective", number(result.objective) + units))
    best = result.best_bound
    if best is not None:
        spoken = bound_text(best.value) + (units if math.isfinite(best.value) else "")
        pairs.append(("bound", f"{spoken}, by {best.method} ({best.proof.replace('_', ' ')})"))
        if best.proof == "solver":
            pairs.append(("certified", bound_text(result.certified_bound)))
    else:
        pairs.append(("bound", "none"))
    if result.plan is not None:
        pairs.append(("gap", percent(result.gap)))
        if best is not None and best.proof == "solver":
            pairs.append(("certified gap", percent(result.certified_gap)))
    pairs.append(("runtime", seconds(result.runtime_s)))
    if result.plan is not None:
        pairs += describe(instance, result.plan) + certified(result.details)
    pairs += [("note", text) for text in result.notes]
    pairs += [("infeasible", text) for text in messages_of(result)]
    return rows_of_pairs(pairs) + _sensitivity(result)


def messages_of(result: Result) -> list[str]:
    """Why there is no plan: which item or limit, and by how much, as the method says it."""
    diagnosis = result.details.get("infeasibility")
    messages = diagnosis.get("messages", []) if isinstance(diagnosis, dict) else []
    return [str(message) for message in messages]


def _sensitivity(result: Result) -> str:
    if not result.params.sensitivity:
        return ""
    records = result.details.get("sensitivity")
    if not records:
        return f"sensitivity: {_no_sensitivity(result)}\n"
    columns = list(dict.fromkeys(name for record in records for name in record))
    numeric = [name for name in columns if all(isinstance(record.get(name), (int, float, type(None))) for record in records)]
    shown: list[dict[str, Any]] = []
    for constraint in dict.fromkeys(record.get("constraint") for record in records):
        shown += [record for record in records if record.get("constraint") == constraint][:SENSITIVITY_ROWS]
    rows = [[_cell(record.get(name)) for name in columns] for record in shown]
    more = f"({len(records) - len(shown)} more with --json)\n" if len(shown) < len(records) else ""
    return "\n" + table(columns, rows, numeric) + more


def _no_sensitivity(result: Result) -> str:
    """Why there is none, and which command answers the question instead."""
    from headroom.registry import load
    from headroom.run import family_of

    family = family_of(result.instance)
    mode = family.mode_of(result.instance)
    if mode in ("", "pooled") or family.limits is None:
        known = mode == "" and family.limits is not None and load(family.limits)(result.instance)
        return f"{result.method} reports none" + ("; headroom sweep X --shadow finds what each limit is worth" if known else " for this instance")
    answers = "--shadow says what one more and one less of every limit is worth"
    if not load(family.limits)(result.instance):  # a sweep has then no limit to change by one
        answers = "--cap NAME says what a limit on a type would cost"
    return f"it exists for pooled instances only; headroom sweep X {answers}"


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else "-" if value is None else str(value)
