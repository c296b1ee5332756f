"""What a packing does, in a few lines and as numbers: how full the bins are and what is shared, or what the slots do with the time."""

from __future__ import annotations

from typing import Any

import numpy as np

from headroom.export.request_packing import group_parts
from headroom.formulations.request_packing import BinPlan, StagedPlan, bin_loads, replay
from headroom.instances.request_packing import RequestPacking


def facts(instance: RequestPacking, plan: BinPlan | StagedPlan) -> dict[str, Any]:
    """Numbers for the documents' `details`. O(N log N + stages). Raises `InputError` for a plan that does not fit."""
    return _of_bins(instance, plan) if isinstance(plan, BinPlan) else _of_stages(instance, plan)


def _of_bins(instance: RequestPacking, plan: BinPlan) -> dict[str, Any]:
    """`fill`: load over capacity. `groups_split`: in more than one bin. `overhead_tokens`, `padding_tokens`: what bins hold beside requests."""
    _, load = bin_loads(instance, plan)
    capacity = instance.capacity_tokens or 0
    fill = load / capacity
    known: dict[str, Any] = {
        "bins": len(load),
        "tokens": int(load.sum()),
        "fill_mean": float(fill.mean()),
        "fill_least": float(fill.min()),
        "fill_most": float(fill.max()),
        "unused_tokens": int(np.maximum(capacity - load, 0).sum()),
    }
    if instance.groups or instance.padding_multiple > 1:
        _, group, _, _ = group_parts(instance, plan)
        parts = np.bincount(group, minlength=len(instance.overhead))
        overhead = int(parts @ instance.overhead)
        known["overhead_tokens"] = overhead
        known["padding_tokens"] = int(load.sum() - instance.size.sum()) - overhead
        if instance.groups:
            held = parts[: instance.groups]
            known |= {"groups": int((held > 0).sum()), "groups_split": int((held > 1).sum()), "group_parts": int(held.sum())}
    return known


def _of_stages(instance: RequestPacking, plan: StagedPlan) -> dict[str, Any]:
    """`slot_utilisation`: the share of slot-steps that make a token, of all slots in all decode steps; null without steps."""
    run = replay(instance, plan)
    whole = run.total_steps * (instance.slots or 0)
    admitted = np.flatnonzero(run.stage >= 0)
    # A request that the run cuts short makes only the tokens for which there are steps.
    useful = int(np.minimum(instance.requests.output_tokens[admitted], run.total_steps - run.before[run.stage[admitted]]).sum())
    paid = np.isfinite(run.prefill_s)
    return {
        "stages": len(plan.stages),
        "prefills": int((np.bincount(run.stage[admitted]) > 0).sum()),
        "prefill_s": float(run.prefill_s[paid].sum()),
        "decode_s": run.total_steps * (instance.decode_step_s or 0.0),
        "decode_steps": run.total_steps,
        "slot_utilisation": useful / whole if whole else None,
        "idle_slot_steps": whole - useful,
    }


def unpackable(instance: RequestPacking) -> str | None:
    """That no plan is feasible because of single requests; None where each has a place of its own."""
    if instance.objective == "bins":
        over, limit = int((instance.padded > (instance.capacity_tokens or 0)).sum()), instance.capacity_tokens
        return f"{over:,} of {instance.count:,} requests take more than the {limit} tokens of a bin: no plan packs them" if over else None
    if not instance.prefill_levels:
        return None
    longest = int(instance.level_tokens[-1])
    over = int((instance.requests.prompt_tokens > longest).sum())
    return f"{over:,} of {instance.count:,} prompts are above the {longest} tokens of the last prefill level: no plan admits them" if over else None


def describe(instance: RequestPacking, plan: BinPlan | StagedPlan) -> list[tuple[str, str]]:
    """Lines for terminals."""
    known = facts(instance, plan)
    if isinstance(plan, StagedPlan):
        return _stage_lines(known)
    fullest, emptiest, mean = (_percent(known[name]) for name in ("fill_most", "fill_least", "fill_mean"))
    lines = [("fill", f"{mean}% in the mean of {_counted(known['bins'], 'bin')} (fullest {fullest}%, emptiest {emptiest}%)")]
    if "groups" in known:
        split, groups = known["groups_split"], known["groups"]
        lines.append(("groups", f"{split:,} of {groups:,} split over bins, {known['group_parts']:,} parts in all"))
    beside = [f"{known[name]:,} of {said}" for name, said in (("overhead_tokens", "overhead"), ("padding_tokens", "padding")) if known.get(name)]
    if beside:
        lines.append(("tokens", f"{known['tokens']:,} in bins, with {', '.join(beside)}"))
    return lines


def _stage_lines(known: dict[str, Any]) -> list[tuple[str, str]]:
    steps = _counted(known["decode_steps"], "decode step")
    lines = [("time", f"decode {known['decode_s']:.6g} s ({steps}), prefill {known['prefill_s']:.6g} s ({_counted(known['prefills'], 'prefill')})")]
    if known["slot_utilisation"] is not None:
        busy, idle = _percent(known["slot_utilisation"]), _counted(known["idle_slot_steps"], "slot-step")
        lines.append(("slots", f"{busy}% busy while decoding, {idle} idle"))
    return [*lines, ("stages", f"{known['stages']:,}")]


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _percent(share: float) -> str:
    """A share for people: 100 only where it is all (rounding would hide what is missing)."""
    if share in (0, 1):
        return f"{100 * share:.0f}"
    return f"{min(100 * share, 99.9) if share < 1 else max(100 * share, 100.1):.1f}"
