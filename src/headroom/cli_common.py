"""What the verbs share: output, tables, number formats, option values. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import io
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headroom.interrupts import signals

if TYPE_CHECKING:
    from headroom.documents import PlanDocument
    from headroom.instances.base import Instance

InstanceArgument = Annotated[str, typer.Argument(metavar="X", help="Instance, .json or .npz (-: JSON on stdin).", show_default=False)]
PlanArgument = Annotated[str, typer.Argument(metavar="PLAN", help="Plan document, .json or .npz (-: JSON on stdin).", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
TimeLimitOption = Annotated[float | None, typer.Option("--time-limit", metavar="S", help="Seconds to search at most.", show_default=False)]
ThreadsOption = Annotated[int, typer.Option("--threads", metavar="N", help="Threads of the solver.")]
SpareOption = Annotated[int | None, typer.Option("--spare", metavar="N", help="Replicas the plan must be able to lose (0 or 1).", show_default=False)]
HoldersOption = Annotated[
    int | None, typer.Option("--min-holders", metavar="N", help="Devices that must hold each expert (2: any one may fail).", show_default=False)
]
MovesOption = Annotated[
    int | None, typer.Option("--max-moves", metavar="N", help="Experts that may come to devices that do not hold them now.", show_default=False)
]
WIDE, NARROW = 200, 60


def _print_version(wanted: bool) -> None:
    if wanted:
        import headroom

        write_out(f"headroom {headroom.__version__}\n")
        raise typer.Exit


def main_options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an internal error (anywhere on the line).")] = False,
) -> None:
    """What stands before the verb; `entry_point` reads --debug itself, wherever it stands."""


def write_out(text: str) -> None:
    """Write to stdout. A closed pipe is no error: the reader has what it wanted, and the exit code stays that of the work."""
    from headroom.instances.errors import InputError

    if sys.stdout is None:
        return
    try:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError) as error:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)  # what is still buffered must not fail a second time
        raise InputError(f"cannot be written: {getattr(error, 'strerror', None) or error}", "standard output") from None


def write_json(document: Mapping[str, Any]) -> None:
    from headroom.instances.files import to_json

    write_out(to_json(document))


def note(message: str) -> None:
    """One line for people, on stderr."""
    signals.answered = signals.answered or signals.exit_code is not None
    try:
        print(f"headroom: {' '.join(message.split())}", file=sys.stderr, flush=True)  # noqa: T201
    except (OSError, ValueError):
        return


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> str:
    """A table as text; the columns named in `numbers` are aligned right and never cut."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        right = column in numbers
        drawn.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(clean(cell)) for cell in row))
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    width = max(shutil.get_terminal_size().columns, NARROW) if on_terminal else WIDE
    text = io.StringIO()
    Console(file=text, width=width, no_color=True, highlight=False, markup=False).print(drawn)
    return "".join(line.rstrip() + "\n" for line in text.getvalue().split("\n")[:-1])


def clean(text: str) -> str:
    """Names come from files: control characters are shown, not obeyed."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def number(value: float | None) -> str:
    """A number for people; "-" where there is none."""
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "-" if value < 0 else "inf"
    return f"{value:,.0f}" if abs(value) >= 1e5 and value == round(value) else f"{value:.6g}"


def objective_text(value: float | None) -> str:
    """An objective; infinite means that there is none."""
    return "-" if value is None or math.isinf(value) else number(value)


def bound_text(value: float | None) -> str:
    """A bound; +inf proves that no plan exists."""
    return "no plan exists" if value == math.inf else number(value)


def percent(gap: float | None) -> str:
    """A gap as a percentage; "-" where it is unknown."""
    if gap is None or not math.isfinite(gap):
        return "-"
    if 0 < gap < 1e-6:
        return "<0.0001%"
    return f"{100 * gap:.3g}%"


def seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"


def rows_of_pairs(pairs: Sequence[tuple[str, str]]) -> str:
    """Aligned "name  value" lines."""
    width = max((len(name) for name, _ in pairs), default=0)
    return "".join(f"{name.ljust(width)}  {clean(value)}".rstrip() + "\n" for name, value in pairs)


def without_plan(notes: Sequence[tuple[str, str]]) -> str:
    """One line about methods that have no plan for an instance: (method, why); the same reason is said once."""
    by_reason: dict[str, list[str]] = {}
    for method, text in notes:
        by_reason.setdefault(text.removeprefix(f"{method}: "), []).append(method)
    said = "; ".join(f"{', '.join(dict.fromkeys(methods))} ({reason})" for reason, methods in by_reason.items())
    return f"no plan: {said}\n" if said else ""


def read_instance(path: str) -> Instance:
    from headroom.api import load

    return load(path)


def with_spare(
    instance: Instance, spare: int | None, holders: int | None = None, max_moves: int | None = None
) -> tuple[Instance, dict[str, Any]]:
    """The instance to solve, and what was overridden in it by --spare, --min-holders or --max-moves."""
    from headroom.documents import apply_options
    from headroom.instances.errors import InputError
    from headroom.registry import FAMILIES

    asked: dict[str, Any] = {}
    given = (("--spare", "spare_replicas", spare), ("--min-holders", "min_holders", holders), ("--max-moves", "max_moves", max_moves))
    for option, name, value in given:
        if value is None:
            continue
        if name not in FAMILIES[instance.family].options:
            raise InputError(f"does not apply to family {instance.family}", option)
        try:
            instance = apply_options(instance, {name: value})
        except InputError as error:
            raise InputError(error.message, option) from None
        asked[name] = value
    return instance, asked


def positive(value: float | None, option: str) -> float | None:
    """Checks an option that must be a positive, finite number."""
    from headroom.instances.errors import InputError

    if value is not None and not (value > 0 and math.isfinite(value)):
        raise InputError(f"must be a positive number, got {value:g}", option)
    return value


def at_least(value: int, least: int, option: str) -> int:
    from headroom.instances.errors import InputError

    if value < least:
        raise InputError(f"must be at least {least}, got {value}", option)
    return value


def bytes_of(text: str | None, option: str) -> int | None:
    """A size such as 2000000, 500MB (10^6) or 4GiB (2^30)."""
    from headroom.instances.errors import InputError, shown

    if text is None:
        return None
    units = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
    units |= {f"{unit}b": size for unit, size in units.items() if len(unit) == 1 and unit != "b"}
    units |= {f"{unit}ib": 2 ** (10 * power) for power, unit in enumerate("kmgt", start=1)}
    digits = text.strip().rstrip("bBiIkKmMgGtT ")
    try:
        size = float(digits) * units[text.strip()[len(digits) :].strip().lower()]
        if not (math.isfinite(size) and size >= 1):
            raise ValueError
    except (ValueError, KeyError):
        raise InputError(f"must be a size such as 500MB or 4GiB, got {shown(text)}", option) from None
    return int(size)


def check_output(path: Path | None, *inputs: str | Path | None) -> None:
    """Refuse a place that cannot be written, or one of the inputs, before hours of work, not after them."""
    from headroom.instances.errors import InputError

    if path is None:
        return
    if path.is_dir():
        raise InputError("is a folder; expected a file name to write to", str(path))
    if any(item is not None and Path(item).exists() and path.exists() and path.samefile(item) for item in inputs):
        raise InputError("is an input of this command; expected another file to write to", str(path))
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"cannot be written: there is no folder {str(folder)!r}", str(path))
    if not os.access(folder if not path.exists() or path.is_file() else path, os.W_OK):
        raise InputError("cannot be written: permission denied", str(path))


def one_from_stdin(*paths: str | None) -> None:
    from headroom.instances.errors import InputError

    if sum(path == "-" for path in paths) > 1:
        raise InputError("can be given once only", "-")


def read_plan(path: str) -> PlanDocument:
    from headroom.api import standard_input
    from headroom.documents import load_document, read_document
    from headroom.instances.files import parse_json

    if path != "-":
        return load_document(path)
    return read_document(parse_json(standard_input(), "standard input"), "standard input")
