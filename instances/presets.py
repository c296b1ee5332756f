"""What the families' tables of presets share: a preset is a function f(rng, **settings), and `--set` changes settings or fields of the instance.

`whole` and `real` check such settings, in generators and readers too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from headroom.instances.base import Instance
from headroom.instances.errors import InputError, shown, span

Built = TypeVar("Built")


def build(
    presets: Mapping[str, Callable[..., Built]],
    instance: type[Instance],
    name: str,
    rng: np.random.Generator,
    overrides: Mapping[str, Any],
    common: Sequence[str] = (),
) -> tuple[Built, dict[str, Any]]:
    """What the builder of the preset `name` makes under those overrides that are its settings, and the other overrides: fields of the instance.

    Settings are a builder's keyword-only parameters; `common` are overrides that every preset takes, left among the others where a builder has no
    such setting. Raises `InputError` for an unknown preset or field, and what the builder raises.
    """
    if name not in presets:
        raise InputError(f"preset {shown(name)} is unknown; expected one of {', '.join(presets)}")
    builder = presets[name]
    settings = [parameter.name for parameter in inspect.signature(builder).parameters.values() if parameter.kind is parameter.KEYWORD_ONLY]
    fields = sorted(set(instance.model_fields) - {"name", "provenance"})
    unknown = sorted(set(overrides) - {*fields, *settings, *common})
    if unknown:
        first = f"{', '.join(dict.fromkeys([*common, *settings]))} or one of " if common else "one of "
        raise InputError(f"field {shown(unknown[0])} is unknown; expected {first}{', '.join(fields if common else [*settings, *fields])}")
    others = dict(overrides)
    return builder(rng, **{setting: others.pop(setting) for setting in settings if setting in others}), others


def origin(name: str, overrides: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of an instance that say which preset it is, and further facts about it."""
    return {"name": name, "provenance": {"preset": name, "overrides": dict(overrides), **(facts or {})}}


def whole(name: str, value: object, least: int, most: int) -> None:
    """Raise `InputError` unless `value` is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{name} must be a whole number from {least} to {most}, got {shown(value)}")


def real(name: str, value: object, least: float, most: float) -> None:
    """Raise `InputError` unless `value` is a number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise InputError(f"{name} must be a number {span(least, most)}, got {shown(value)}")
