"""GPU selection: which GPU types, and how many, serve a load at least cost. Three problems, told apart by the instance's `mode`:

| mode          | file                         | plan              | objective |
|---------------|------------------------------|-------------------|-----------|
| `pooled`      | `gpu_selection_pooled`       | `GpuSelectionPlan` | USD/h    |
| `per_replica` | `gpu_selection_per_replica`  | `ReplicaPlan`     | USD/h     |
| `epochs`      | `gpu_selection_epochs`       | `EpochPlan`       | USD       |

The mathematics of each stands in its file. Here: the plan type that a document holds, `evaluate` and `build_model` for any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headroom.formulations.gpu_selection_epochs import EpochPlan, build_model_epochs, evaluate_epochs
from headroom.formulations.gpu_selection_per_replica import ReplicaPlan, build_model_per_replica, evaluate_per_replica
from headroom.formulations.gpu_selection_pooled import (
    MOST_REPLICAS,
    GpuSelectionPlan,
    build_model_pooled,
    counts,
    evaluate_pooled,
    most_replicas,
    plan_from_arrays,
    tidy_shares,
)
from headroom.formulations.types import Evaluation, Plan
from headroom.instances.errors import InputError
from headroom.instances.gpu_selection import GpuSelection

if TYPE_CHECKING:
    import pyomo.environ as pyo

PLANS: Mapping[str, type[Plan]] = {"pooled": GpuSelectionPlan, "per_replica": ReplicaPlan, "epochs": EpochPlan}
"""The plan type of each mode."""


def mode(instance: GpuSelection) -> str:
    """Which of the problems above the instance states."""
    return instance.mode


def plan_type(data: Mapping[str, Any]) -> type[Plan]:
    """The plan type that a plan's JSON object is meant for."""
    if "assignment" in data:
        return ReplicaPlan
    return EpochPlan if isinstance(data.get("count"), (list, tuple)) else GpuSelectionPlan


def evaluate(instance: GpuSelection, plan: Plan) -> Evaluation:
    """The plan's objective, its parts, and every violated constraint. Raises `InputError` when the plan does not fit the instance."""
    match instance.mode, plan:
        case "pooled", GpuSelectionPlan():
            return evaluate_pooled(instance, plan)
        case "per_replica", ReplicaPlan():
            return evaluate_per_replica(instance, plan)
        case "epochs", EpochPlan():
            return evaluate_epochs(instance, plan)
    wanted = {"pooled": "count and share", "per_replica": "assignment", "epochs": "count and share for each epoch"}[instance.mode]
    raise InputError(f"plan must have {wanted} because the instance is {instance.mode}, got a {type(plan).__name__}")


def build_model(instance: GpuSelection) -> pyo.ConcreteModel:
    """The Pyomo model of the instance's mode."""
    if instance.mode == "per_replica":
        return build_model_per_replica(instance)
    return build_model_epochs(instance) if instance.mode == "epochs" else build_model_pooled(instance)


__all__ = [
    "MOST_REPLICAS",
    "PLANS",
    "EpochPlan",
    "GpuSelectionPlan",
    "ReplicaPlan",
    "build_model",
    "counts",
    "evaluate",
    "mode",
    "most_replicas",
    "plan_from_arrays",
    "plan_type",
    "tidy_shares",
]
