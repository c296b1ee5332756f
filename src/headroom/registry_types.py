"""What the registry says of a family: methods, bounds, presets and exporters, as dotted names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Kind = Literal["exact", "heuristic", "policy"]
Proof = Literal["certificate", "closed_form", "solver"]


@dataclass(frozen=True)
class Entry:
    """One function: `target` is "module:name", `summary` one line for a table, `modes` the modes of the family that it is for (empty: all)."""

    target: str
    summary: str
    modes: tuple[str, ...] = field(default=(), kw_only=True)

    def load(self) -> Any:
        return load(self.target)


E = TypeVar("E", bound=Entry)


@dataclass(frozen=True)
class Method(Entry):
    """A way to find a plan.

    "exact": f(instance, params, progress) -> Outcome, carries bounds; "heuristic": f(instance, rng) -> Plan | Outcome | None, sees the whole
    instance; "policy": an online policy class, replayed by the family's `replay`. An Outcome says more than a plan: notes and details.
    """

    kind: Kind = "heuristic"
    seeded: bool = True
    """Whether the seed can change the answer; `compare` runs a method that ignores it once."""


@dataclass(frozen=True)
class BoundMethod(Entry):
    """A way to bound: f(instance, params, progress) -> Bound. "closed_form": `recheck` computes it from the instance alone."""

    proof: Proof = "certificate"


@dataclass(frozen=True)
class Family:
    """Everything the package knows about one family. All functions are dotted names."""

    name: str
    question: str
    instance: str
    plans: tuple[str, ...]
    """The plan types, the usual one first."""
    plan_type: str
    """f(plan's JSON object) -> the plan type it is meant for."""
    evaluate: str
    build_model: str
    recheck: str
    """f(instance, bound) -> float: recompute a certificate or closed form without any solver; raises `CertificateError`."""
    auto: str
    """f(instance) -> name of the method that `--method auto` means."""
    replay: str
    """f(instance, policy class, rng) -> Plan | Outcome | None: feed an online policy its arrivals."""
    preset: str
    """f(name, rng, overrides) -> instance."""
    demo_preset: str
    methods: Mapping[str, Method] = field(default_factory=dict)
    bounds: Mapping[str, BoundMethod] = field(default_factory=dict)
    presets: Mapping[str, str] = field(default_factory=dict)
    exporters: Mapping[str, Entry] = field(default_factory=dict)
    """f(instance, plan document) -> text of the file."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Instance fields that a command may override for one run, each with its option; a plan document records what was overridden."""
    caps: frozenset[str] = frozenset()
    """Those of the options of which less asks for more; for the others more does."""
    sweeps: Mapping[str, Entry] = field(default_factory=dict)
    """f(instance, index) -> Quantity: what of an instance can be swept."""
    limits: str | None = None
    """f(instance) -> the quantities that are limits, for shadow prices."""
    mode: str | None = None
    """f(instance) -> which of the family's problems it states; None when there is one only."""

    def mode_of(self, instance: Any) -> str:
        """The instance's mode; "" for a family without modes."""
        return "" if self.mode is None else str(load(self.mode)(instance))

    def methods_for(self, instance: Any) -> dict[str, Method]:
        """The methods that handle this instance."""
        return _for_mode(self.methods, self.mode_of(instance))

    def bounds_for(self, instance: Any) -> dict[str, BoundMethod]:
        """The bounds that handle this instance."""
        return _for_mode(self.bounds, self.mode_of(instance))

    def exporters_for(self, instance: Any) -> dict[str, Entry]:
        """The exporters that handle this instance's plans."""
        return _for_mode(self.exporters, self.mode_of(instance))

    def sweeps_for(self, instance: Any) -> dict[str, Entry]:
        """What can be swept in this instance."""
        return _for_mode(self.sweeps, self.mode_of(instance))


def _for_mode(table: Mapping[str, E], mode: str) -> dict[str, E]:
    return {name: entry for name, entry in table.items() if not entry.modes or mode in entry.modes}


def load(target: str) -> Any:
    """Import what "module:name" names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
