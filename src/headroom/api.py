"""The functions behind `headroom.solve`, `headroom.bound` and `headroom.load`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headroom.describe import misfit
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, Plan, SolveParams
from headroom.instances.base import Instance, check_header, load_document
from headroom.instances.errors import InputError
from headroom.instances.files import MAX_JSON_BYTES, parse_json
from headroom.registry import FAMILIES
from headroom.registry import load as load_name
from headroom.run import Result, family_of, run
from headroom.which_family import check_family

if TYPE_CHECKING:
    from headroom.documents import PlanDocument
    from headroom.formulations.expert_placement_failover import Failover
    from headroom.instances.expert_placement import ExpertPlacement


def load(path: str | Path) -> Instance:
    """Read an instance of any family from .json or .npz ("-": JSON on standard input). Raises `InputError`."""
    source = "standard input" if str(path) == "-" else str(path)
    try:
        document = check_header(parse_json(standard_input(), source)) if str(path) == "-" else load_document(path)
        family = document["family"]
        if family not in FAMILIES:
            raise InputError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
        try:
            instance: Instance = load_name(FAMILIES[family].instance).from_document(document)
        except InputError:
            if isinstance(document["data"], dict):
                check_family(family, document["data"], "data")
            raise
    except InputError as error:
        raise error.within(source) from None
    return instance


def standard_input() -> bytes:
    if sys.stdin is None or sys.stdin.closed:
        raise InputError("is closed; expected a JSON document", "standard input")
    content = sys.stdin.buffer.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise InputError(f"larger than {MAX_JSON_BYTES} bytes; expected a smaller document", "standard input")
    return content


def solve(
    instance: Instance | str | Path,
    method: str | Callable[..., Any] = "auto",
    *,
    seed: int = 0,
    time_limit_s: float | None = None,
    memory_limit_bytes: int | None = None,
    gap_limit: float | None = None,
    threads: int = 1,
    deterministic: bool = False,
    start: Plan | Result | PlanDocument | str | Path | None = None,
    sensitivity: bool = False,
) -> Result:
    """Find a plan and prove how good it is.

    `instance` is an instance or the file it stands in; `method` a name from `headroom families`, "auto" picks one by size, or a heuristic
    or policy of your own (the function or class, or "my_policy.py:MyPolicy", which runs that file; see docs/compare-your-policy.md). Without a
    limit an exact method runs until optimality is proved or it gains no more. `start` is a plan to improve on (or a result, or a plan document).
    The result carries objective, bounds, gap and status; an infeasible instance is a result with status "infeasible", not an exception. Raises
    `InputError` for input that cannot be used.
    """
    instance = instance if isinstance(instance, Instance) else load(instance)
    params = SolveParams(
        seed=seed,
        time_limit_s=time_limit_s,
        memory_limit_bytes=memory_limit_bytes,
        gap_limit=gap_limit,
        threads=threads,
        deterministic=deterministic,
        start=start_plan(instance, start),
        sensitivity=sensitivity,
    )
    return run(instance, method, params)


def start_plan(instance: Instance, start: Plan | Result | PlanDocument | str | Path | None) -> Plan | None:
    """The plan to start from. Raises `InputError` when there is none in it or it is one of another family or mode."""
    if start is None:
        return None
    if isinstance(start, (str, Path)):
        from headroom.documents import load_document as load_plan_document

        start = load_plan_document(start)
    plan = start if isinstance(start, Plan) else start.plan
    source = getattr(start, "source", None)
    if plan is None:
        raise InputError("holds no plan; expected one to improve on", source or "start")
    if not any(isinstance(plan, load_name(target)) for target in family_of(instance).plans):
        other = next(name for name, known in FAMILIES.items() if any(isinstance(plan, load_name(target)) for target in known.plans))
        raise InputError(f"holds a plan of family {other}; expected one of family {instance.family}", source or "start")
    if (reason := misfit(instance, plan)) is not None:
        raise InputError(reason, source or "start")
    return plan


def failover(
    instance: ExpertPlacement | str | Path, plan: Plan | Result | PlanDocument | str | Path, what: Literal["device", "node"] = "device"
) -> Failover:
    """What a placement of experts is worth once each device, or each node, is lost: experts that nobody else holds, imbalance of what is left.

    Any plan that fits the instance, feasible or not, whoever made it. Raises `InputError` for an instance of another family or a plan that does not
    fit.
    """
    from headroom.formulations.expert_placement import ExpertPlan, evaluate
    from headroom.formulations.expert_placement_failover import failover as evaluated

    given = instance if isinstance(instance, Instance) else load(instance)
    if given.family != "expert_placement":
        raise InputError(f"is known for instances of family expert_placement, got one of {given.family}", "failover")
    placement: Any = given
    found = start_plan(placement, plan)
    assert isinstance(found, ExpertPlan)
    evaluate(placement, found)  # says what does not fit
    return evaluated(placement, found, what)


def bound(
    instance: Instance | str | Path, method: str = "all", *, params: SolveParams | None = None, progress: Progress | None = None
) -> tuple[Bound, ...]:
    """Valid lower bounds on every plan's objective, best first; +inf: no plan exists. `method` is a name from `headroom families`, or "all"."""
    instance = instance if isinstance(instance, Instance) else load(instance)
    params = params or SolveParams()
    names = bound_names(instance, method)
    progress = progress or Progress(params)
    found = [family_of(instance).bounds[name].load()(instance, params, progress) for name in names]
    return tuple(sorted(found, key=lambda item: -item.value))


def bound_names(instance: Instance, method: str) -> list[str]:
    """The bounds that `method` means. Raises `InputError` for an unknown one."""
    known = family_of(instance).bounds_for(instance)
    if method != "all" and method not in known:
        raise InputError(f"bound {method!r} is unknown for {instance.family}; expected all or one of {', '.join(known)}")
    return list(known) if method == "all" else [method]
