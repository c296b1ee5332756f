"""How a plan of each family is said in a few words, for terminals. What is not listed here is shown by its parts alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headroom.formulations.expert_placement_failover import Failover

UNITS = {
    "gpu_selection": {"epochs": "USD", "": "USD/h"},
    "kv_tiering": {"": "s"},
    "request_packing": {"bins": "bins", "makespan": "s"},
}
"""Unit of each family's objective by the instance's mode; "" stands for every other mode."""

PLANS = {
    "gpu_selection": {
        "pooled": ("GpuSelectionPlan", "count and share because the instance is pooled", "a pooled plan"),
        "per_replica": ("ReplicaPlan", "assignment because the instance is per_replica", "a plan of whole replicas"),
        "epochs": ("EpochPlan", "count and share for each epoch because the instance has epochs", "a plan over epochs"),
    },
    "request_packing": {
        "bins": ("BinPlan", "bin because the objective is 'bins'", "a plan of bins"),
        "makespan": ("StagedPlan", "stages because the objective is 'makespan'", "a plan of stages"),
    },
}
"""By the instance's mode: the type of its plans, what such a plan must have and why, what one is called."""

Pairs = list[tuple[str, str]]


def describe(instance: Any, plan: Any) -> Pairs:
    """A few (name, value) lines about a plan."""
    function = _FAMILIES.get(instance.family)
    return function(instance, plan) if function is not None else []


def facts(instance: Any, plan: Any) -> dict[str, Any]:
    """What else of a plan is worth knowing, for `details` of documents; computed from the plan alone, whoever made it."""
    if instance.family == "kv_tiering":
        from headroom.describe_kv_tiering import facts as of_tiers

        return {"tiering": found} if (found := of_tiers(instance, plan)) else {}
    if instance.family == "request_packing":
        from headroom.describe_request_packing import facts as of_packing

        return {"packing": of_packing(instance, plan)}
    if instance.family != "expert_placement":
        return {}
    found = {f"{loss.what}_lost": loss.document() for loss in _failovers(instance, plan)}
    return {"failover": found} if found else {}


def certified(details: Mapping[str, Any]) -> Pairs:
    """What is proved of each part of a plan alone, and of its worst layer, from an outcome's details."""
    from headroom.cli_common import percent

    parts, layers = details.get("parts"), details.get("layers")
    if not parts:
        return []
    said = [f"{name} at least {part['bound']:.6f}, gap {percent(part['gap'])}" for name, part in parts.items()]
    lines = [("certified parts", "; ".join(said))]
    if "balance" in parts and layers and len(layers["imbalance"]) > 1:
        at = layers["worst"]
        value = f"layer {at}, {layers['imbalance'][at]:.6f} against at least {layers['bound'][at]:.6f}"
        lines.append(("largest gap", f"{value}, gap {percent(layers['worst_gap'])}"))
    return lines


def unit(instance: Any) -> str:
    """The objective's unit with a space in front; empty where there is none."""
    units = UNITS.get(instance.family, {})
    found = units.get(_mode(instance), units.get("", ""))
    return f" {found}" if found else ""


def misfit(instance: Any, plan: Any) -> str | None:
    """What a plan made for another mode lacks, in terms of modes and fields; None for a plan of the instance's own mode."""
    known = PLANS.get(instance.family, {})
    names = {name: called for name, _, called in known.values()}
    wanted, must_have, _ = known.get(_mode(instance), ("", "", ""))
    got = type(plan).__name__
    return f"plan must have {must_have}, got {names[got]}" if wanted and got in names and got != wanted else None


def _mode(instance: Any) -> str:
    from headroom.registry import FAMILIES

    return FAMILIES[instance.family].mode_of(instance) if instance.family in FAMILIES else ""


def fleets_are_means(instance: Any) -> bool:
    """Whether the fleets that a sweep shows are means over the instance's epochs."""
    return getattr(instance, "epochs", None) is not None


def remarks(instance: Any) -> tuple[str, ...]:
    """What of an instance is easily taken for something that it is not."""
    if not fleets_are_means(instance):
        return ()
    import numpy as np

    stated, mean = instance.rate_per_s, instance.epochs.rate_per_s.mean(axis=0)
    # The presets and importers state the mean, to rounding; who states something else may think that it is served.
    differs = bool((np.abs(stated - mean) > 1e-6 * np.maximum(stated, mean)).any())
    return ("work[].rate_per_s only describes: the epochs' rates count",) if differs else ()


def hopeless(instance: Any) -> str | None:
    """Why an instance that was just made has no feasible plan, where a glance shows it."""
    if instance.family != "request_packing":
        return None
    from headroom.describe_request_packing import unpackable

    return unpackable(instance)


def _gpu_selection(instance: Any, plan: Any) -> Pairs:
    """The fleet, and how busy each of its types is; over epochs its mean and its peak."""
    import numpy as np

    if instance.mode == "per_replica":
        held: dict[str, int] = {}
        for group in plan.assignment:
            held[group.gpu] = held.get(group.gpu, 0) + group.replicas
        fleet = " + ".join(f"{held[gpu.name]:,} x {gpu.name}" for gpu in instance.gpus if gpu.name in held) or "nothing"
        return [("fleet", fleet), ("patterns", f"{len(plan.assignment):,}")]
    if instance.mode == "epochs":
        used_by = {gpu.name: [count.get(gpu.name, 0) for count in plan.count] for gpu in instance.gpus}
        lines = [f"{name} {np.mean(n):.1f} (most {max(n):,})" for name, n in used_by.items() if any(n)]
        return [("mean fleet", ", ".join(lines) or "nothing"), ("epochs", f"{len(plan.count):,}")]

    n = np.array([plan.count.get(gpu.name, 0) for gpu in instance.gpus], dtype=np.float64)
    load = np.where(instance.can_serve, instance.load_replicas, 0.0)
    busy = np.sum(load * np.maximum(plan.share, 0.0), axis=1)
    used = [g for g in range(len(n)) if n[g] > 0]
    fleet = " + ".join(f"{int(n[g]):,} x {instance.gpus[g].name}" for g in used) or "nothing"
    utilisation = ", ".join(f"{instance.gpus[g].name} {100 * busy[g] / n[g]:.0f}%" for g in used) or "-"
    return [("fleet", fleet), ("busy", utilisation)]


def _expert_placement(instance: Any, plan: Any) -> Pairs:
    """How even the devices are, what crosses them, what moves."""
    from headroom.formulations.expert_placement import boundary_traffic, layer_imbalance, moves

    each = layer_imbalance(instance, plan)
    lines = [("balance", f"busiest over mean device {each.mean():.6f} on average, {each.max():.6f} in layer {int(each.argmax())}")]
    traffic = boundary_traffic(instance, plan.slot_expert)
    if len(traffic):
        lines.append(("traffic", f"{traffic.mean():.6f} for each token and boundary"))
    if instance.current_slot_expert is not None:
        lines.append(("moves", f"{moves(instance, plan.slot_expert):,} of {instance.layers * instance.slots:,} slots"))
    return lines + [(f"{loss.what} lost", _after(instance, loss)) for loss in _failovers(instance, plan)]


def _failovers(instance: Any, plan: Any) -> list[Failover]:
    """What the loss of each device, and of each node where there are several, leaves; nothing where that takes more than a moment."""
    from headroom.formulations.expert_placement_failover import cheap, failover

    if not cheap(instance, plan):
        return []
    return [failover(instance, plan, "device")] + ([failover(instance, plan, "node")] if 1 < instance.nodes < instance.devices else [])


def _after(instance: Any, loss: Failover) -> str:
    import math

    at = loss.worst
    uneven = f"busiest over mean device left {loss.imbalance[at]:.6f} on average" if math.isfinite(loss.imbalance[at]) else "no device is left"
    if loss.survives:
        return f"every expert is still held; at worst ({loss.what} {at}) {uneven}"
    top = int(loss.imbalance.argmax())
    if top != at and math.isfinite(loss.imbalance[top]):
        uneven += f" (at most {loss.imbalance[top]:.6f}, {loss.what} {top})"
    lost = f"{loss.lost_experts[at]:,} of {instance.layers * instance.experts:,} experts ({100 * loss.lost_share[at]:.3g}% of the load)"
    return f"at worst ({loss.what} {at}) {lost} are held nowhere else; then {uneven}"


def _kv_tiering(instance: Any, plan: Any) -> Pairs:
    """Which tier the steps wait for, how full each is, what each serves, what moves."""
    from headroom.describe_kv_tiering import describe as of_tiers

    return of_tiers(instance, plan)


def _request_packing(instance: Any, plan: Any) -> Pairs:
    """How full the bins are, or what the slots do with the time."""
    from headroom.describe_request_packing import describe as of_packing

    return of_packing(instance, plan)


_FAMILIES: dict[str, Callable[[Any, Any], Pairs]] = {
    "gpu_selection": _gpu_selection,
    "expert_placement": _expert_placement,
    "kv_tiering": _kv_tiering,
    "request_packing": _request_packing,
}
