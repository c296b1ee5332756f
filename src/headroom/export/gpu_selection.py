"""GPU-selection plans for other systems: Mélange's result, a CSV table, a deployment document for routers and autoscalers."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headroom.formulations.gpu_selection import GpuSelectionPlan, counts, evaluate, tidy_shares
from headroom.instances.errors import InputError
from headroom.instances.files import to_json
from headroom.instances.gpu_selection import GpuSelection

if TYPE_CHECKING:
    from headroom.documents import PlanDocument

DEPLOYMENT_SCHEMA = "headroom/deployment/1"
FloatArray = npt.NDArray[np.float64]
COLUMNS = (
    "gpu", "replicas", "work", "phase", "prompt_tokens_min", "prompt_tokens_max", "output_tokens_min", "output_tokens_max", "rate_per_s",
    "share", "rate_served_per_s", "throughput_per_s", "load_replicas",
)  # fmt: skip


def melange(instance: GpuSelection, document: PlanDocument) -> str:
    """Mélange's result: {gpu: count, …, "cost": USD/h}, types without a replica included as in Mélange's own."""
    plan = _plan(document)
    names = [gpu.name for gpu in instance.gpus]
    if "cost" in names:
        raise InputError("a GPU type named 'cost' has no place beside Mélange's cost", f"gpus[{names.index('cost')}].name")
    result: dict[str, Any] = {name: int(n) for name, n in zip(names, counts(instance, plan), strict=True)}
    result["cost"] = evaluate(instance, plan).objective
    return json.dumps(result, indent=4, ensure_ascii=False) + "\n"


def csv_table(instance: GpuSelection, document: PlanDocument) -> str:
    """A row for each type and work item with a positive share. `load_replicas`: replicas that this share keeps fully busy."""
    plan = _plan(document)
    n, share = counts(instance, plan), _routing(instance, plan)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for g, gpu in enumerate(instance.gpus):
        for i, item in enumerate(instance.work):
            if share[g, i] <= 0:
                continue
            served = item.rate_per_s * share[g, i]
            throughput = float(instance.throughput_per_s[g, i])
            writer.writerow(
                [
                    gpu.name,
                    int(n[g]),
                    item.name,
                    item.phase or "",
                    *(item.prompt_tokens or ("", "")),
                    *(item.output_tokens or ("", "")),
                    item.rate_per_s,
                    float(share[g, i]),
                    float(served),
                    throughput,
                    float(served / throughput),
                ]
            )
    return text.getvalue()


def deployment(instance: GpuSelection, document: PlanDocument) -> str:
    """What to start and where to send: replicas by type, and for each bucket the share of its requests that each type gets."""
    plan = _plan(document)
    n, share = counts(instance, plan), _routing(instance, plan)
    load = np.where(instance.can_serve, instance.load_replicas, 0.0)
    content: dict[str, Any] = {
        "schema": DEPLOYMENT_SCHEMA,
        "instance": {"name": instance.name, "sha256": document.instance_sha256 or instance.digest()},
        "plan_objective_usd_per_h": evaluate(instance, plan).objective,
        "max_utilisation": instance.max_utilisation,
        "spare_replicas": instance.spare_replicas,
        "replicas": [
            {
                "gpu": gpu.name,
                "replicas": int(n[g]),
                "gpus_per_replica": gpu.gpus_per_replica,
                "price_usd_per_h": gpu.price_usd_per_h,
                "pool": gpu.pool,
                "utilisation": float(np.sum(load[g] * share[g]) / n[g]),
            }
            for g, gpu in enumerate(instance.gpus)
            if n[g]
        ],
        "buckets": [
            {
                "name": item.name,
                "phase": item.phase,
                "prompt_tokens": item.prompt_tokens,
                "output_tokens": item.output_tokens,
                "rate_per_s": item.rate_per_s,
                "routing": {gpu.name: float(share[g, i]) for g, gpu in enumerate(instance.gpus) if share[g, i] > 0},
            }
            for i, item in enumerate(instance.work)
        ],
    }
    if instance.spare_replicas:
        content["routing_after_loss"] = {lost: _tables(instance, plan.share_after_loss[lost]) for lost in sorted(plan.share_after_loss)}
    return to_json(content)


def _tables(instance: GpuSelection, table: FloatArray) -> dict[str, dict[str, float]]:
    share = _normalised(instance, table)
    return {
        item.name: {gpu.name: float(share[g, i]) for g, gpu in enumerate(instance.gpus) if share[g, i] > 0} for i, item in enumerate(instance.work)
    }


def _plan(document: PlanDocument) -> GpuSelectionPlan:
    assert isinstance(document.plan, GpuSelectionPlan)
    return document.plan


def _routing(instance: GpuSelection, plan: GpuSelectionPlan) -> FloatArray:
    return _normalised(instance, plan.share)


def _normalised(instance: GpuSelection, share: FloatArray) -> FloatArray:
    """Shares [gpu][work] for a router: noise below zero gone, slices exact, each item's shares adding up to 1 (none where nobody serves it)."""
    return tidy_shares(instance, np.array(share, dtype=np.float64))
