"""`headroom report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headroom.cli_common import check_output, note

HELP = """Write a comparison as one HTML page.

Gaps by method with confidence intervals, gap against runtime, objective and bound over time, and plans drawn with --plan. One file, no network.
"""


def add_report_command(app: typer.Typer) -> None:
    """Register `headroom report` on the app."""
    app.command("report", help=HELP)(report_command)


def report_command(
    tables: Annotated[list[Path], typer.Argument(metavar="TABLE...", help="Tables that compare wrote, .parquet.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page: .html.", show_default=False)],
    plans: Annotated[
        list[str] | None, typer.Option("--plan", metavar="X:PLAN", help="Draw a plan: instance and document; may be repeated.", show_default=False)
    ] = None,
    title: Annotated[str | None, typer.Option("--title", metavar="TEXT", help="Heading of the page.", show_default=False)] = None,
) -> int:
    """See HELP."""
    from headroom.instances.errors import InputError
    from headroom.report import report
    from headroom.report.pictures import split_pair

    if output.suffix not in (".html", ".htm"):
        raise InputError("must end in .html", str(output))
    pairs = [split_pair(text) for text in plans or ()]
    check_output(output, *tables, *(name for pair in pairs for name in pair))
    report(tables, output, pairs, title=title)
    note(f"wrote {output} ({output.stat().st_size / 1e6:.2f} MB): open it in a browser")
    return 0
