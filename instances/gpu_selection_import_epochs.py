"""The `epochs` of an imported instance: rates counted from the trace, and what the user says about starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headroom.instances.catalogue import Catalogue, folded
from headroom.instances.errors import InputError, exact, shown
from headroom.instances.gpu_selection_replicas import RentedReplica
from headroom.instances.request_traces import Span
from headroom.instances.trace_epochs import count_epochs
from headroom.instances.workload import Workload


@dataclass(frozen=True)
class EpochOptions:
    """What the user asks for. `start_cost_usd` is one number for every type or {type or GPU: USD of a start of one replica};
    `initial_count` one number for every type or {type: replicas}, types not named having none; None: the first fleet is there.
    """

    epoch_s: float | None = None
    start_delay_epochs: int | None = None
    start_cost_usd: float | Mapping[str, float] | None = None
    initial_count: int | Mapping[str, int] | None = None

    def check(self) -> None:
        """Raises `InputError` for an option that needs `epoch_s`, or a value that cannot be."""
        if self.epoch_s is None:
            for name in ("start_delay_epochs", "start_cost_usd", "initial_count"):
                if getattr(self, name) is not None:
                    raise InputError(f"{name} needs epoch_s, the length of an epoch in s")
            return
        if not (math.isfinite(self.epoch_s) and 0 < self.epoch_s <= 1e9):
            raise InputError(f"epoch_s must be a positive number of seconds of at most 1e9, got {self.epoch_s:g}")
        _refuse("start_delay_epochs", self.start_delay_epochs, 10**6, "a whole number of epochs")
        _refuse("start_cost_usd", self.start_cost_usd, 1e50, "a number of USD")
        _refuse("initial_count", self.initial_count, 10**9, "a whole number of replicas")


def _refuse(name: str, value: Any, most: float, what: str) -> None:
    """Raise about a value, or one of a mapping's, that is not a number from 0 to `most`; whole where `most` is."""
    kinds = int if isinstance(most, int) else (int, float)
    for key, item in value.items() if isinstance(value, Mapping) else [(None, value)]:
        if item is not None and (isinstance(item, bool) or not isinstance(item, kinds) or not 0 <= item <= most):
            where = name if key is None else f"{name} of {key}"
            raise InputError(f"{where} must be {what} from 0 to {exact(most)}, got {shown(item)}")


@dataclass(frozen=True)
class ImportedEpochs:
    """The instance's `epochs`, the mean rate of each work item, what provenance keeps, and notices."""

    fields: dict[str, Any]
    mean_rate_per_s: list[float]
    facts: dict[str, Any]
    notices: list[str]


def imported_epochs(
    options: EpochOptions,
    trace: Path,
    span: Span | None,
    workload: Workload,
    work: Sequence[Mapping[str, Any]],
    types: Sequence[tuple[str, RentedReplica]],
    catalogue: Catalogue,
    *,
    total_rate_per_s: float | None,
    duration_s: float | None,
) -> ImportedEpochs:
    """Count the trace into epochs for work items made of the workload's buckets; `types` names each type of the instance with its replica.

    `total_rate_per_s` is the mean over the epochs of all requests' rate, those that the instance leaves out included. Raises `InputError`.
    """
    if span is None or options.epoch_s is None:
        raise InputError("a workload document does not say when its requests arrived; expected the trace itself with epoch_s", str(trace))
    cost = _start_costs(options.start_cost_usd, types, catalogue)
    initial = _initial_count(options.initial_count, types)
    counts = count_epochs(trace, span, workload, options.epoch_s, duration_s)
    rates = counts.rate_per_s
    mean = float(rates.sum(axis=1).mean())
    if not mean > 0:
        raise InputError(f"epoch_s leaves epochs without a single request: all lie after the last epoch; got {options.epoch_s:g}", str(trace))
    column = {(bucket.prompt_tokens, bucket.output_tokens): b for b, bucket in enumerate(workload.buckets)}
    columns = [column[item["prompt_tokens"], item["output_tokens"]] for item in work]
    rates = rates[:, columns] * (1.0 if total_rate_per_s is None else total_rate_per_s / mean)
    fields = {
        "epoch_s": float(options.epoch_s),
        "rate_per_s": rates,
        "initial_count": initial,
        "start_cost_usd": cost,
        "start_delay_epochs": options.start_delay_epochs or 0,
    }
    notices = counts.notices()
    free = [flag for flag, value in (("free", options.start_cost_usd), ("at once", options.start_delay_epochs)) if value is None]
    if free:
        notices.append(f"starts are {' and '.join(free)}: start_cost_usd and start_delay_epochs say otherwise")
    facts = {
        "epochs": len(rates),
        "epoch_s": float(options.epoch_s),
        "requests_counted": int(counts.requests.sum()),
        "last_epoch_covered_s": float(counts.covered_s[-1]),
        "left_out_s": counts.left_out_s,
        "left_out_requests": int(counts.left_out_requests.sum()),
        "mean_rate_per_s_of_trace": mean,
    }
    return ImportedEpochs(fields, rates.mean(axis=0).tolist(), facts, notices)


def _start_costs(given: float | Mapping[str, float] | None, types: Sequence[tuple[str, RentedReplica]], catalogue: Catalogue) -> list[float]:
    """USD of a start of one replica of each type. A type's own name counts before that of its GPU."""
    if not isinstance(given, Mapping):
        return [float(given or 0.0)] * len(types)
    costs = {folded(name): float(value) for name, value in given.items()}
    known = {folded(alias) for name, replica in types for alias in _names(name, replica, catalogue)}
    for name in given:
        if folded(name) not in known:
            raise InputError(f"start_cost_usd must name replica types ({', '.join(name for name, _ in types)}) or their GPUs, got {shown(name)}")
    found = []
    for name, replica in types:
        own = [costs[alias] for alias in map(folded, _names(name, replica, catalogue)) if alias in costs]
        if not own:
            raise InputError(f"start_cost_usd must name every replica type or its GPU, {name} is missing")
        found.append(own[0])
    return found


def _names(name: str, replica: RentedReplica, catalogue: Catalogue) -> list[str]:
    """What a type goes by, the most particular first."""
    gpu = catalogue.gpu(replica.measured.hardware)
    return [name, replica.name, replica.measured.hardware, *([gpu.name, *gpu.aliases] if gpu else [])]


def _initial_count(given: int | Mapping[str, int] | None, types: Sequence[tuple[str, RentedReplica]]) -> list[int] | None:
    if given is None:
        return None
    if not isinstance(given, Mapping):
        return [given] * len(types)
    names = {folded(name): g for g, (name, _) in enumerate(types)}
    counts = [0] * len(types)
    for name, value in given.items():
        if folded(name) not in names:
            raise InputError(f"initial_count must name replica types ({', '.join(name for name, _ in types)}), got {shown(name)}")
        counts[names[folded(name)]] = value
    return counts
