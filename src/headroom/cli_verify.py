"""`headroom verify`, `headroom export` and `headroom export-model`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headroom.cli_common import (
    HoldersOption,
    InstanceArgument,
    JsonOption,
    MovesOption,
    PlanArgument,
    SpareOption,
    bound_text,
    check_output,
    note,
    number,
    one_from_stdin,
    percent,
    read_instance,
    read_plan,
    rows_of_pairs,
    table,
    with_spare,
    write_json,
    write_out,
)

if TYPE_CHECKING:
    from headroom.verify import Report

VERIFY_HELP = """Recheck a plan and its bounds, without a solver.

Says how far the plan is from the best bound that holds. Exit code 1: something recorded does not hold, or the plan is infeasible.
"""
EXPORT_HELP = "Write a plan in another system's form.\n\nAn infeasible plan is refused unless --force is given."
MODEL_HELP = "Write the Pyomo model as .lp or .mps."


def add_verify_commands(app: typer.Typer) -> None:
    """Register the three commands on the app."""
    app.command("verify", help=VERIFY_HELP)(verify_command)
    app.command("export", help=EXPORT_HELP)(export_command)
    app.command("export-model", help=MODEL_HELP)(export_model_command)


def verify_command(x: InstanceArgument, plan: PlanArgument, as_json: JsonOption = False) -> int:
    """See VERIFY_HELP."""
    from headroom.verify import verify

    one_from_stdin(x, plan)
    report = verify(read_instance(x), read_plan(plan))
    if as_json:
        write_json(report.document())
    else:
        write_out(report_text(report))
    return 0 if report.verified else 1


def report_text(report: Report) -> str:
    """A verification for people."""
    from headroom.describe import describe, unit

    units = unit(report.instance)
    pairs = [("instance", f"{report.instance.name} ({report.instance.family})")]
    if report.evaluation is not None:
        violations = len(report.evaluation.violations)
        pairs.append(("plan", f"infeasible, {violations} violation{'s' * (violations > 1)}" if violations else "feasible"))
        pairs.append(("objective", number(report.evaluation.objective) + units))
    else:
        pairs.append(("plan", "none"))
    best = report.best_certified
    if best is not None:
        spoken = bound_text(report.certified_bound) + (units if math.isfinite(report.certified_bound) else "")
        pairs.append(("bound", f"{spoken}, by {best.method} ({best.proof.replace('_', ' ')}, {best.state})"))
    pairs.append(("gap", percent(report.certified_gap)))
    pairs.append(("status", report.status))
    if report.plan is not None and report.evaluation is not None:
        pairs += describe(report.instance, report.plan)
    pairs += [("note", text) for text in report.notes]
    text = rows_of_pairs(pairs)
    rows = [[item.method, item.proof.replace("_", " "), bound_text(item.recorded), bound_text(item.recomputed), item.state] for item in report.bounds]
    if rows:
        text += "\n" + table(("bound", "proof", "recorded", "recomputed", "state"), rows, ("recorded", "recomputed"))
    verdict = "verified" if report.verified else "NOT verified"
    return f"{text}\n{verdict}\n" + "".join(rows_of_pairs([("  -", problem)]) for problem in report.problems)


def export_command(
    x: Annotated[str | None, typer.Argument(metavar="X", help="Instance, .json or .npz (-: JSON on stdin).", show_default=False)] = None,
    plan: Annotated[str | None, typer.Argument(metavar="PLAN", help="Plan document, .json or .npz.", show_default=False)] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="TARGET", help="What to write (see --list).", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write; default: stdout.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Export an infeasible plan all the same.")] = False,
    list_targets: Annotated[bool, typer.Option("--list", help="List the targets of each family.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as one JSON document.")] = False,
) -> int:
    """See EXPORT_HELP."""
    if list_targets:
        _print_targets(as_json)
        return 0
    from headroom.export import InfeasiblePlanError, export
    from headroom.instances.errors import InputError
    from headroom.instances.files import write_text

    for name, value, expected in (("X", x, "an instance"), ("PLAN", plan, "a plan document"), ("--to", to, "a target, see headroom export --list")):
        if value is None:
            raise InputError(f"is missing; expected {expected}", name)
    assert x is not None
    assert plan is not None
    assert to is not None
    one_from_stdin(x, plan)
    check_output(output)
    try:
        text = export(read_instance(x), read_plan(plan), to, force)
    except InfeasiblePlanError as error:
        note(f"error: {error}; not exported (--force exports it all the same)")
        for violation in error.violations:
            note(f"violated: {violation}")
        return 1
    if output is None:
        write_out(text)
    else:
        write_text(output, text)
    return 0


def _print_targets(as_json: bool) -> None:
    from headroom.registry import FAMILIES

    rows = [(family.name, name, entry.summary) for family in FAMILIES.values() for name, entry in family.exporters.items()]
    if as_json:
        write_json({"schema": "headroom/targets/1", "targets": [{"family": f, "target": t, "summary": s} for f, t, s in rows]})
    else:
        write_out(table(("family", "target", "writes"), rows))


def export_model_command(
    x: InstanceArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write: .lp or .mps.", show_default=False)],
    spare: SpareOption = None,
    min_holders: HoldersOption = None,
    max_moves: MovesOption = None,
) -> int:
    """See MODEL_HELP."""
    import tempfile

    from headroom.instances.errors import InputError
    from headroom.instances.files import write_atomically
    from headroom.registry import load
    from headroom.run import family_of

    if output.suffix not in (".lp", ".mps"):
        raise InputError("must end in .lp or .mps", str(output))
    check_output(output)
    instance, _ = with_spare(read_instance(x), spare, min_holders, max_moves)
    model: Any = load(family_of(instance).build_model)(instance)
    with tempfile.TemporaryDirectory() as folder:
        # Pyomo writes to a name of its own choosing; the bytes then reach their place in one rename.
        written = Path(folder) / f"model{output.suffix}"
        model.write(str(written), io_options={"symbolic_solver_labels": True})

        def copy(file: Any) -> None:
            file.write(written.read_bytes())

        write_atomically(output, copy)
    return 0
