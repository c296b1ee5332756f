"""How far each part of a plan is from what is proved of that part alone: balance, traffic, the layers one by one, the boundaries one by one.

The objective's gap hides which part is open. Only bounds that `verify` can recheck count here, never a solver's word. A part's bound holds for that
part whatever the others cost, so the weighted parts may lie further from their bounds than the objective does from its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.expert_placement import balance_of, boundary_bounds, traffic_of
from headroom.bounds.expert_placement_balance import balance_layers, granted
from headroom.formulations.expert_placement import ExpertPlan, boundary_traffic, layer_imbalance
from headroom.formulations.tolerances import relative_gap
from headroom.formulations.types import Bound, Plan
from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]


def gaps(instance: ExpertPlacement, plan: Plan | None, bounds: Sequence[Bound], floor: FloatArray | None = None) -> dict[str, Any]:
    """`details` of an outcome: `parts` (those with a weight), `layers` and, where a b-matching is among the bounds, `boundaries`. {} without a plan.

    `floor` [L]: what is proved of each layer's imbalance, where a method knows more than closed forms. Gaps as everywhere, (value - bound) / value.
    """
    if not isinstance(plan, ExpertPlan):
        return {}
    certified = [bound for bound in bounds if bound.proof != "solver" and math.isfinite(bound.value)]
    value = layer_imbalance(instance, plan)
    floor = (balance_layers(instance) if floor is None else floor) * granted(instance)
    each = np.maximum(1.0 - floor / value, 0.0)
    worst = int(np.argmax(each))
    proved = max([balance_of(instance, bound) for bound in certified], default=0.0)
    found: dict[str, Any] = {
        "layers": {"imbalance": value.tolist(), "bound": floor.tolist(), "worst_gap": float(each[worst]), "worst": worst},
        "parts": {},
    }
    if instance.weights.balance > 0:
        found["parts"]["balance"] = _part(float(value.mean()), max(proved, float(floor.mean())))
    if instance.weights.traffic > 0 and instance.layers > 1:
        traffic = boundary_traffic(instance, plan.slot_expert)
        found["parts"]["traffic"] = _part(float(traffic.mean()), max([traffic_of(instance, bound) for bound in certified], default=0.0))
        single = [bound.certificate for bound in certified if bound.method == "b_matching" and bound.certificate is not None]
        if single:
            found["boundaries"] = {"traffic": traffic.tolist(), "bound": boundary_bounds(instance, single[0]).tolist()}
    return found


def _part(value: float, bound: float) -> Mapping[str, float]:
    return {"value": value, "bound": bound, "gap": relative_gap(value, bound)}
