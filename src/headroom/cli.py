"""The `headroom` command: its verbs, and what every way to end means.

Exit codes: 0 done; 1 infeasible, no plan found, or verification failed; 2 bad usage or bad input (one line on stderr); 3 a bug in
headroom; 130 and 143 interrupted. Modules of the command line import nothing heavy before a verb runs.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

# Methods run their own threads; those of a linear algebra library beside them wait for each other, up to thirty times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from headroom.interrupts import leave, signals

if TYPE_CHECKING:
    import typer

HELP = "How far is a placement or schedule for LLM inference from the best possible one, and what is the best one?"
DONE, NOTHING_FOUND, BAD_INPUT, INTERNAL_ERROR = 0, 1, 2, 3


def build_app() -> typer.Typer:
    """The typer application with every verb."""
    import typer

    from headroom.cli_bound import add_bound_commands
    from headroom.cli_common import main_options
    from headroom.cli_compare import add_compare_command
    from headroom.cli_import import add_import_command
    from headroom.cli_report import add_report_command
    from headroom.cli_solve import add_solve_command
    from headroom.cli_sweep import add_sweep_command
    from headroom.cli_tools import add_tool_commands
    from headroom.cli_verify import add_verify_commands

    app = typer.Typer(
        help=HELP,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    app.callback()(main_options)
    add_solve_command(app)
    add_bound_commands(app)
    add_compare_command(app)
    add_report_command(app)
    add_sweep_command(app)
    add_verify_commands(app)
    add_import_command(app)
    add_tool_commands(app)
    return app


def entry_point() -> None:
    """Run the command line and exit with its code."""
    signals.install()
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    code = run_command([argument for argument in arguments if argument != "--debug"], debug)
    signals.ignore()
    code = _flush(code)
    sys.exit(code)


def run_command(arguments: list[str], debug: bool) -> int:
    """Run one command line; every exception becomes an exit code and at most one line on stderr."""
    try:
        # A handler that raised may have been swallowed by a library: the signal still counts.
        code = build_app()(arguments, prog_name="headroom", standalone_mode=False)
        return _left_early() or int(code or DONE)
    except KeyboardInterrupt:
        return _left_early() or 130
    except SystemExit as error:  # typer's answer to a closed pipe
        return _left_early() or (error.code if isinstance(error.code, int) else DONE)
    except BaseException as error:
        if signals.exit_code is not None and not _is_input_error(error):
            return _left_early()
        return report(error, debug)


def _left_early() -> int:
    """The exit code that a signal asked for, 0 without one. A verb that a signal found at work has said what it kept; else it is said here."""
    if signals.exit_code is None:
        return 0
    signals.answer()
    return signals.exit_code


def report(error: BaseException, debug: bool) -> int:
    """Say on stderr what went wrong, and which exit code that is."""
    from typer.exceptions import TyperException

    if isinstance(error, TyperException):
        from typer._click.exceptions import UsageError

        message = error.format_message()
        path = error.ctx.command_path if isinstance(error, UsageError) and error.ctx is not None else "headroom"
        complain(f"{message.rstrip('.')} (see {path} --help)")
        return BAD_INPUT
    if _is_input_error(error):
        if debug and error.__cause__ is not None:
            import traceback

            traceback.print_exception(error.__cause__)  # what a user's own method raised
        complain(str(error))
        return BAD_INPUT
    if isinstance(error, UnicodeEncodeError):
        complain(f"the text {error.object[error.start : error.end]!r} is not Unicode; expected text that can be written as UTF-8")
        return BAD_INPUT
    if isinstance(error, MemoryError):
        complain("out of memory (see --memory-limit)")
        return NOTHING_FOUND
    if debug:
        import traceback

        traceback.print_exception(error)
    detail = " ".join(f"{type(error).__name__}: {error}".split())
    hint = "" if debug else "; --debug shows where"
    complain(f"internal error, a bug in headroom: {detail[:500]}. Please report it with the command and its files{hint}")
    return INTERNAL_ERROR


def _is_input_error(error: BaseException) -> bool:
    from headroom.instances.errors import InputError

    return isinstance(error, InputError)


def complain(message: str) -> None:
    """One line on stderr; control characters are shown, not obeyed."""
    text = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in " ".join(message.split()))
    try:
        print(f"headroom: error: {text}", file=sys.stderr, flush=True)  # noqa: T201
    except (OSError, ValueError):
        return  # stderr is closed: the exit code still tells


def _flush(code: int) -> int:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        leave(code)  # the reader has what it wanted; a normal exit would flush, and complain, once more
    except (OSError, ValueError) as error:
        complain(f"standard output: cannot be written: {error}")
        leave(BAD_INPUT)
    return code
