"""The families and what belongs to each, as dotted names: listing them imports nothing heavy.

To add a method, a bound, a preset or an exporter, write the function and add one line here; the command line, `compare`, the contract
tests and the report pick it up from these tables.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
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

    "exact": f(instance, params, progress) -> Outcome, carries bounds; "heuristic": f(instance, rng) -> Plan | None, sees the whole
    instance; "policy": an online policy class, replayed by the family's `replay`.
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
    """f(instance, policy class, rng) -> Plan | None: feed an online policy its arrivals."""
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


def _for_mode(table: Mapping[str, E], mode: str) -> dict[str, E]:
    return {name: entry for name, entry in table.items() if not entry.modes or mode in entry.modes}


def load(target: str) -> Any:
    """Import what "module:name" names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


POOLED = ("pooled",)
GPU_SELECTION = Family(
    name="gpu_selection",
    question="which GPU types, and how many, serve this load at least cost",
    instance="headroom.instances.gpu_selection:GpuSelection",
    plans=(
        "headroom.formulations.gpu_selection:GpuSelectionPlan",
        "headroom.formulations.gpu_selection:ReplicaPlan",
        "headroom.formulations.gpu_selection:EpochPlan",
    ),
    plan_type="headroom.formulations.gpu_selection:plan_type",
    mode="headroom.formulations.gpu_selection:mode",
    evaluate="headroom.formulations.gpu_selection:evaluate",
    build_model="headroom.formulations.gpu_selection:build_model",
    recheck="headroom.bounds.gpu_selection:recheck",
    auto="headroom.solvers.gpu_selection:auto",
    replay="headroom.heuristics.gpu_selection:replay",
    preset="headroom.instances.gpu_selection_presets:make",
    demo_preset="melange-4gpu-6x6",
    methods=MappingProxyType(
        {
            "branching": Method(
                "headroom.solvers.gpu_selection:branching",
                "branch and bound whose tree is a certificate of optimality",
                "exact",
                seeded=False,
                modes=POOLED,
            ),
            "highs": Method("headroom.solvers.gpu_selection:highs", "the Pyomo model solved by HiGHS", "exact", seeded=False),
            "cpsat": Method(
                "headroom.solvers.gpu_selection:cpsat",
                "CP-SAT: slices directly, continuous shares by Benders cuts",
                "exact",
                seeded=False,
                modes=POOLED,
            ),
            "single_type": Method(
                "headroom.heuristics.gpu_selection:single_type", "the cheapest fleet of one type alone", seeded=False, modes=POOLED
            ),
            "greedy": Method(
                "headroom.heuristics.gpu_selection:greedy",
                "each item to its cheapest type per request, then consolidation",
                seeded=False,
                modes=POOLED,
            ),
            "online_first_fit": Method(
                "headroom.heuristics.gpu_selection:OnlineFirstFit",
                "slices arrive in random order, rent only when nothing fits",
                "policy",
                modes=POOLED,
            ),
        }
    ),
    bounds=MappingProxyType(
        {
            "closed_form": BoundMethod(
                "headroom.bounds.gpu_selection:closed_form", "every item on its cheapest type, replicas divisible", "closed_form", modes=POOLED
            ),
            "lp": BoundMethod("headroom.bounds.gpu_selection:lp", "linear relaxation with caps and pools, by its multipliers", modes=POOLED),
        }
    ),
    presets=MappingProxyType(
        {
            "toy": "two types, four buckets, 30 requests/s: optimum 6.70 USD/h at slices 1, 4.68 with continuous shares",
            "melange-4gpu-6x6": "36 buckets of a chat-like mix on L4, A10G, A100-80GB, H100",
            "melange-4gpu-10x6": "60 buckets of a chat-like mix on L4, A10G, A100-80GB, H100",
            "capped-20x1000": "1,000 buckets, 20 types, most of them capped",
        }
    ),
    exporters=MappingProxyType(
        {
            "melange": Entry("headroom.export.gpu_selection:melange", "Mélange's result JSON {gpu: count, cost}", modes=POOLED),
            "csv": Entry("headroom.export.gpu_selection:csv_table", "a row for each GPU type and work item with a share", modes=POOLED),
            "deployment": Entry(
                "headroom.export.gpu_selection:deployment", "JSON for a router: replicas by type, routing shares by token range", modes=POOLED
            ),
        }
    ),
    options=MappingProxyType({"spare_replicas": "--spare"}),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in (GPU_SELECTION,)})
