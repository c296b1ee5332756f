"""`headroom template`: a policy or heuristic of one's own to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headroom.cli_common import check_output, note, write_out

TEMPLATE_HELP = """Write a policy or heuristic of your own to begin with.

It runs as it stands: headroom compare x.json --methods ./my_policy.py:MyPolicy,... names what to compare it with.
"""
TEMPLATES = {
    ("request_packing", "bins", "policy"): "request_packing_bins_policy",
    ("request_packing", "bins", "heuristic"): "request_packing_bins_heuristic",
    ("request_packing", "makespan", "policy"): "request_packing_makespan_policy",
    ("request_packing", "makespan", "heuristic"): "request_packing_makespan_heuristic",
    ("kv_tiering", "", "policy"): "kv_tiering_policy",
    ("kv_tiering", "", "heuristic"): "kv_tiering_heuristic",
    ("expert_placement", "", "policy"): "expert_placement_policy",
    ("expert_placement", "", "heuristic"): "expert_placement_heuristic",
    ("gpu_selection", "pooled", "policy"): "gpu_selection_pooled_policy",
    ("gpu_selection", "pooled", "heuristic"): "gpu_selection_pooled_heuristic",
    ("gpu_selection", "per_replica", "policy"): "gpu_selection_per_replica_policy",
    ("gpu_selection", "per_replica", "heuristic"): "gpu_selection_per_replica_heuristic",
    ("gpu_selection", "epochs", "policy"): "gpu_selection_epochs_policy",
    ("gpu_selection", "epochs", "heuristic"): "gpu_selection_epochs_heuristic",
}
"""(family, mode, kind) -> the file in `templates/`; the first of a family is what it means without --mode."""
KINDS = ("policy", "heuristic")


def template_text(family: str, mode: str, kind: str) -> str:
    """The template's source."""
    from importlib.resources import files

    return files("headroom.templates").joinpath(f"{TEMPLATES[family, mode, kind]}.py").read_text(encoding="utf-8")


def template_command(
    family_name: Annotated[str, typer.Argument(metavar="FAMILY", help="Family (see headroom families).", show_default=False)],
    kind: Annotated[str, typer.Option("--kind", metavar="K", help="policy (online) or heuristic (sees the whole instance).")] = "policy",
    mode: Annotated[
        str | None, typer.Option("--mode", metavar="M", help="Mode of the family, such as makespan; default: its first.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A new .py file; default: stdout.", show_default=False)
    ] = None,
) -> int:
    """See TEMPLATE_HELP."""
    from headroom.cli_tools import family_named
    from headroom.instances.errors import InputError, shown
    from headroom.instances.files import write_text

    family = family_named(family_name).name
    if kind not in KINDS:
        raise InputError(f"must be {' or '.join(KINDS)}, got {shown(kind)}", "--kind")
    modes = list(dict.fromkeys(known for owner, known, _ in TEMPLATES if owner == family))
    if mode is not None and mode not in modes:
        expected = f"must be one of {', '.join(modes)}" if modes != [""] else f"is not for {family}, which has no modes; expected none"
        raise InputError(f"{expected}, got {shown(mode)}", "--mode")
    text = template_text(family, modes[0] if mode is None else mode, kind)
    if output is None:
        write_out(text)
        return 0
    check_output(output)
    if output.suffix != ".py":
        raise InputError("must end in .py", str(output))
    if output.exists():
        raise InputError("exists already; expected a new file", str(output))
    write_text(output, text)
    name = "MyPolicy" if kind == "policy" else "my_rule"
    note(f"wrote {output}; compare it: headroom compare x.json --methods {_named(output)}:{name},...")
    return 0


def _named(output: Path) -> str:
    text = str(output)
    return text if output.is_absolute() or text.startswith(".") else f"./{text}"
