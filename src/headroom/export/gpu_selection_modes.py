"""GPU-selection plans over epochs and with whole replicas, for schedulers and routers: a scaling schedule, and which replica holds which slices."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from headroom.formulations.gpu_selection import EpochPlan, ReplicaPlan, evaluate
from headroom.formulations.gpu_selection_epochs import epochs_of, fleet, serving, starts
from headroom.instances.files import to_json
from headroom.instances.gpu_selection import GpuSelection

if TYPE_CHECKING:
    from headroom.documents import PlanDocument

SCHEDULE_SCHEMA = "headroom/schedule/1"
ASSIGNMENT_SCHEMA = "headroom/assignment/1"
SCHEDULE_COLUMNS = ("epoch", "start_s", "gpu", "replicas", "starts", "serving")


def schedule_csv(instance: GpuSelection, document: PlanDocument) -> str:
    """A row for each epoch and type that is rented in it: replicas, how many start, how many serve; `start_s` from the beginning of epoch 0."""
    n, started, ready = _fleets(instance, document)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SCHEDULE_COLUMNS)
    for t in range(len(n)):
        for g, gpu in enumerate(instance.gpus):
            if n[t, g]:
                begin_s = t * epochs_of(instance).epoch_s
                writer.writerow([t, begin_s, gpu.name, int(n[t, g]), int(started[t, g]), int(ready[t, g])])
    return text.getvalue()


def schedule(instance: GpuSelection, document: PlanDocument) -> str:
    """A scaling schedule: for each epoch the replicas of each type and, for each work item with requests, the share that each type gets."""
    n, started, ready = _fleets(instance, document)
    assert isinstance(document.plan, EpochPlan)
    epochs, share = epochs_of(instance), document.plan.share
    names = [gpu.name for gpu in instance.gpus]
    content: dict[str, Any] = {
        "schema": SCHEDULE_SCHEMA,
        "instance": {"name": instance.name, "sha256": document.instance_sha256 or instance.digest()},
        "plan_objective_usd": evaluate(instance, document.plan).objective,
        "epoch_s": epochs.epoch_s,
        "start_delay_epochs": epochs.start_delay_epochs,
        "epochs": [
            {
                "start_s": t * epochs.epoch_s,
                "replicas": {name: int(n[t, g]) for g, name in enumerate(names) if n[t, g]},
                "starts": {name: int(started[t, g]) for g, name in enumerate(names) if started[t, g]},
                "serving": {name: int(ready[t, g]) for g, name in enumerate(names) if ready[t, g]},
                "routing": {
                    item.name: {name: float(share[t, g, i]) for g, name in enumerate(names) if share[t, g, i] > 0}
                    for i, item in enumerate(instance.work)
                    if epochs.rate_per_s[t, i] > 0
                },
            }
            for t in range(len(n))
        ],
    }
    return to_json(content)


def assignment(instance: GpuSelection, document: PlanDocument) -> str:
    """Every replica by itself: its type, the requests/s of each work item it serves, and how busy it is."""
    assert isinstance(document.plan, ReplicaPlan)
    index = {item.name: i for i, item in enumerate(instance.work)}
    gpu_at = {gpu.name: g for g, gpu in enumerate(instance.gpus)}
    replicas: list[dict[str, Any]] = []
    for group in document.plan.assignment:
        rates = {
            name: number * instance.work[index[name]].rate_per_s / int(instance.slice_counts[index[name]])
            for name, number in group.slices.items()
            if number and instance.work[index[name]].rate_per_s > 0
        }
        busy = sum(rate / float(instance.throughput_per_s[gpu_at[group.gpu], index[name]]) for name, rate in rates.items())
        for _ in range(group.replicas):
            replicas.append({"replica": len(replicas), "gpu": group.gpu, "rate_per_s": rates, "utilisation": busy})
    content = {
        "schema": ASSIGNMENT_SCHEMA,
        "instance": {"name": instance.name, "sha256": document.instance_sha256 or instance.digest()},
        "plan_objective_usd_per_h": evaluate(instance, document.plan).objective,
        "replicas": replicas,
    }
    return to_json(content)


def _fleets(instance: GpuSelection, document: PlanDocument) -> tuple[Any, Any, Any]:
    """Rented, started and serving replicas [T][G]."""
    assert isinstance(document.plan, EpochPlan)
    n = fleet(instance, document.plan)
    return n, starts(instance, n), serving(instance, n)
