"""What can be swept in an expert-placement instance.

| quantity | index | effect  | note                                                                                        |
|----------|-------|---------|---------------------------------------------------------------------------------------------|
| `moves`  |       | relaxes | `max_moves`: experts that may come to devices that did not hold them in `current_slot_expert` |

A larger cap only widens the set of plans, so the optimum is monotone. As many moves as there are slots are no cap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from headroom.formulations.expert_placement import ExpertPlan, evaluate
from headroom.formulations.expert_placement import moves as moves_of
from headroom.formulations.progress import Progress
from headroom.formulations.quantities import Front, Quantity
from headroom.formulations.types import Plan, SolveParams
from headroom.heuristics.expert_placement_split import plan_of
from headroom.instances.errors import InputError, shown
from headroom.instances.expert_placement import ExpertPlacement
from headroom.solvers.expert_placement_front import applies, front


def moves(instance: ExpertPlacement, index: str) -> Quantity:
    """`max_moves`, from 0 (the current placement) on. Raises `InputError` without a current placement."""
    if index:
        raise InputError(f"takes no name, got {shown(index)}", "moves")
    current = instance.current_slot_expert
    if current is None:
        raise InputError("cannot be swept: the instance has no current_slot_expert to move from", "moves")
    everything = instance.layers * instance.slots

    def vary(value: float) -> ExpertPlacement:
        return instance.replace(max_moves=int(value) if value < everything else None)

    def taken(plan: Plan) -> Mapping[str, float]:
        assert isinstance(plan, ExpertPlan)
        return {"moves": float(moves_of(instance, plan.slot_expert))}

    def plans(caps: Sequence[float], known: Iterable[Plan], params: SolveParams, progress: Progress) -> Mapping[float, Plan]:
        found = dict(front(instance, caps, known, params, progress))
        found.setdefault(0.0, plan_of(instance, current))
        return found

    def bound(value: float) -> tuple[float, str] | None:
        """Without a move, and no expert twice on a device, every device keeps its experts: with equal shares there is one plan only."""
        if value > 0 or not instance.distinct or instance.split != "equal":
            return None
        only = evaluate(vary(0.0), plan_of(instance, current))
        return (only.objective, "no choice") if only.feasible else None

    return Quantity(
        name="moves",
        index="",
        unit="experts",
        effect="relaxes",
        current=None if instance.max_moves is None else float(instance.max_moves),
        vary=vary,
        carry=_nothing,
        fleet=taken,
        whole=True,
        used=lambda plan: taken(plan)["moves"],
        constraint="max_moves",
        front=Front(plans, applies(instance), "local_search"),
        bound=bound,
    )


def _nothing(variant: ExpertPlacement, plan: Plan) -> Iterator[Plan]:
    """No repair: a plan either keeps the cap or does not."""
    yield from ()
