"""`headroom families`, `headroom generate` and `headroom schema`; `demo` and `template` stand in files of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headroom.cli_common import JsonOption, at_least, check_output, note, table, write_json, write_out
from headroom.cli_demo import DEMO_HELP, demo_command
from headroom.cli_template import TEMPLATE_HELP, template_command

if TYPE_CHECKING:
    from headroom.own_methods import OwnMethod
    from headroom.registry import BoundMethod, Entry, Family, Method

FAMILIES_HELP = "List families, methods, bounds and presets."
GENERATE_HELP = """Make an instance from a preset and a seed.

--set changes a setting of the preset or a field of the instance; VALUE is a JSON literal, or else a string.
"""
SCHEMA_HELP = "Print the JSON Schema of a family's instance or plan document."

FamilyArgument = Annotated[str, typer.Argument(metavar="FAMILY", help="Family (see headroom families).", show_default=False)]


def add_tool_commands(app: typer.Typer) -> None:
    """Register the commands on the app."""
    app.command("families", help=FAMILIES_HELP)(families_command)
    app.command("demo", help=DEMO_HELP)(demo_command)
    app.command("generate", help=GENERATE_HELP)(generate_command)
    app.command("schema", help=SCHEMA_HELP)(schema_command)
    app.command("template", help=TEMPLATE_HELP)(template_command)


def families_command(as_json: JsonOption = False) -> int:
    """See FAMILIES_HELP."""
    from headroom.registry import FAMILIES

    if as_json:
        write_json({"schema": "headroom/families/1", "families": [_family_record(family) for family in FAMILIES.values()]})
        return 0
    for family in FAMILIES.values():
        rows = [["method", name, entry.kind, _modes(entry), entry.summary] for name, entry in family.methods.items()]
        rows += [["method", name, entry.kind, _modes(entry), f"{entry.summary} ({entry.package})"] for name, entry in _plugins(family).items()]
        rows += [["bound", name, entry.proof.replace("_", " "), _modes(entry), entry.summary] for name, entry in family.bounds.items()]
        rows += [["preset", name, "", "", summary] for name, summary in family.presets.items()]
        rows += [["export", name, "", _modes(entry), entry.summary] for name, entry in family.exporters.items()]
        rows += [["sweep", name, "", _modes(entry), entry.summary] for name, entry in family.sweeps.items()]
        write_out(f"{family.name}: {family.question}\n" + table(("", "name", "kind", "for", "what"), rows) + "\n")
    return 0


def _plugins(family: Family) -> Mapping[str, OwnMethod]:
    """The methods of installed packages; where there are none, which is usual, nothing heavy is imported."""
    from importlib.metadata import entry_points

    from headroom.registry import PLUGIN_GROUP

    if not entry_points(group=PLUGIN_GROUP):
        return {}
    from headroom.own_methods import plugins

    return plugins(family.name)


def _modes(entry: Entry | Method | BoundMethod) -> str:
    return ", ".join(entry.modes)


def _family_record(family: Family) -> dict[str, Any]:
    installed = [_entry_record(name, entry) | {"kind": entry.kind, "package": entry.package} for name, entry in _plugins(family).items()]
    return {
        "name": family.name,
        "question": family.question,
        "demo_preset": family.demo_preset,
        "methods": [_entry_record(name, entry) | {"kind": entry.kind} for name, entry in family.methods.items()] + installed,
        "bounds": [_entry_record(name, entry) | {"proof": entry.proof} for name, entry in family.bounds.items()],
        "presets": [{"name": name, "summary": summary} for name, summary in family.presets.items()],
        "exporters": [_entry_record(name, entry) for name, entry in family.exporters.items()],
        "sweeps": [_entry_record(name, entry) for name, entry in family.sweeps.items()],
        "options": dict(family.options),
    }


def _entry_record(name: str, entry: Entry | Method | BoundMethod) -> dict[str, Any]:
    return {"name": name, "modes": list(entry.modes), "summary": entry.summary}


def family_named(name: str) -> Family:
    """The family. Raises `InputError`."""
    from headroom.instances.errors import InputError, shown
    from headroom.registry import FAMILIES

    if name not in FAMILIES:
        raise InputError(f"must be one of {', '.join(FAMILIES)}, got {shown(name)}", "FAMILY")
    return FAMILIES[name]


def generate_command(
    family_name: FamilyArgument,
    preset: Annotated[str, typer.Option("--preset", metavar="P", help="Preset (see headroom families).", show_default=False)],
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of everything drawn at random.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change one setting; may be repeated.", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help=".json or .npz; default: stdout.", show_default=False)] = None,
) -> int:
    """See GENERATE_HELP."""
    import numpy as np

    from headroom.describe import hopeless
    from headroom.instances.errors import InputError, shown
    from headroom.registry import load

    family = family_named(family_name)
    if preset not in family.presets:
        raise InputError(f"must be one of {', '.join(family.presets)}, got {shown(preset)}", "--preset")
    check_output(output)
    changes = parse_overrides(overrides or [])
    rng = np.random.default_rng(at_least(seed, 0, "--seed"))
    instance = load(family.preset)(preset, rng, changes)
    if (reason := hopeless(instance)) is not None:
        note(reason)
    if output is None:
        write_json(instance.document())
    else:
        instance.save(output)
    return 0


def parse_overrides(items: list[str]) -> dict[str, Any]:
    """`field=value` pairs; a value that is not a JSON literal is a string. Raises `InputError`."""
    from headroom.instances.errors import InputError, shown
    from headroom.instances.files import parse_json

    changes: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not (name and equals):
            raise InputError(f"must be FIELD=VALUE, got {shown(item)}", "--set")
        if name in changes:
            raise InputError(f"sets {name!r} twice; expected it once", "--set")
        try:
            changes[name] = parse_json(text, "--set")
        except InputError:
            changes[name] = text
    return changes


def schema_command(
    family_name: FamilyArgument,
    what: Annotated[str, typer.Argument(metavar="instance|plan", help="Which document.", show_default=False)],
) -> int:
    """See SCHEMA_HELP."""
    from headroom.instances.errors import InputError, shown
    from headroom.schemas import instance_schema, plan_schema

    family = family_named(family_name)
    if what not in ("instance", "plan"):
        raise InputError(f"must be instance or plan, got {shown(what)}", "instance|plan")
    write_json(instance_schema(family) if what == "instance" else plan_schema(family))
    return 0
