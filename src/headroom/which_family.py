"""Which family a document's fields are of, for the message about a document whose `family` says another."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from headroom.instances.errors import InputError, shown
from headroom.registry import FAMILIES, load


def check_family(family: str, fields: Collection[str], what: Literal["data", "plan"]) -> None:
    """Raise `InputError` if `fields`, those of an instance's data or of a plan, lack some that `family` needs and have all that another one does."""
    needed = {name: _needed(name, what) for name in FAMILIES}
    if any(names <= set(fields) for names in needed[family]):
        return
    for other, alternatives in needed.items():
        for names in alternatives:
            if names <= set(fields):
                thing = "data" if what == "data" else "a plan"
                raise InputError(f"family must be {other!r} for {thing} with {', '.join(sorted(names))}, got {shown(family)}")


def _needed(family: str, what: Literal["data", "plan"]) -> list[set[str]]:
    """The fields without which there is no instance, or no plan, of the family: of each of its types."""
    targets = (FAMILIES[family].instance,) if what == "data" else FAMILIES[family].plans
    return [{name for name, field in load(target).model_fields.items() if field.is_required()} for target in targets]
