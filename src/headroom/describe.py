"""How a plan of each family is said in a few words, for terminals. What is not listed here is shown by its parts alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

UNITS = {"gpu_selection": "USD/h"}
"""Unit of each family's objective."""

Pairs = list[tuple[str, str]]


def describe(instance: Any, plan: Any) -> Pairs:
    """A few (name, value) lines about a plan."""
    function = _FAMILIES.get(instance.family)
    return function(instance, plan) if function is not None else []


def unit(family: str) -> str:
    """The objective's unit with a space in front; empty where there is none."""
    return f" {UNITS[family]}" if family in UNITS else ""


def _gpu_selection(instance: Any, plan: Any) -> Pairs:
    """The fleet, and how busy each of its types is."""
    import numpy as np

    n = np.array([plan.count.get(gpu.name, 0) for gpu in instance.gpus], dtype=np.float64)
    load = np.where(instance.can_serve, instance.load_replicas, 0.0)
    busy = np.sum(load * np.maximum(plan.share, 0.0), axis=1)
    used = [g for g in range(len(n)) if n[g] > 0]
    fleet = " + ".join(f"{int(n[g]):,} x {instance.gpus[g].name}" for g in used) or "nothing"
    utilisation = ", ".join(f"{instance.gpus[g].name} {100 * busy[g] / n[g]:.0f}%" for g in used) or "-"
    return [("fleet", fleet), ("busy", utilisation)]


_FAMILIES: dict[str, Callable[[Any, Any], Pairs]] = {"gpu_selection": _gpu_selection}
