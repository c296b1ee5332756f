"""GPU-selection instances from Mélange's JSON and from a performance table with a request trace.

Both importers return the instance and notices: one-line strings about what was chosen, left out or not trusted, which the command line
prints on stderr and `provenance` keeps. What the performance model ignores is stated in `import_splitwise_perf`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headroom.instances.catalogue import load_catalogue
from headroom.instances.errors import InputError, shown
from headroom.instances.files import read_json
from headroom.instances.gpu_selection import GpuSelection
from headroom.instances.gpu_selection_import_epochs import EpochOptions, imported_epochs
from headroom.instances.gpu_selection_replicas import RentedReplica, choose_replicas
from headroom.instances.performance_table import Limits, OperatingPoint, RequestSizes, operating_point, read_performance_table
from headroom.instances.request_traces import read_trace_and_span, sha256_of, sniff_format
from headroom.instances.workload import Workload, WorkloadBucket, bucket_edges

DEFAULT_TTFT_S = 2.0
DEFAULT_TPOT_S = 0.1
DEFAULT_MAX_UTILISATION = 0.8
"""For rates that come from a model without queueing: a replica busy more than this keeps no latency limit."""
DEFAULT_USABLE_MEMORY_SHARE = 0.9

_MELANGE_KEYS = ("gpu_info", "workload_distribution", "total_request_rate", "slice_factor")


def import_melange(
    path: Path | str,
    *,
    total_rate_per_s: float | None = None,
    slices: int | None = None,
    max_utilisation: float | None = None,
    prompt_edges: str | Sequence[int] | None = None,
    output_edges: str | Sequence[int] | None = None,
) -> tuple[GpuSelection, list[str]]:
    """Read the configuration file of Mélange (arXiv 2404.14527): the instance and notices.

    `gpu_info` {name: {cost [USD/h], tputs [input size][output size] in requests/s}}, `workload_distribution` [input][output],
    `total_request_rate` [requests/s], `slice_factor`. Buckets become work items `in0_out0`, …, also those with rate 0, so that an export has
    the shape of the file; a throughput of 0 means the type cannot serve the bucket (null). The options override the file; with edges, which the file
    does not carry, the items get token ranges. Raises `InputError` naming file, field and value.
    """
    try:
        return _melange(Path(path), read_json(path), total_rate_per_s, slices, max_utilisation, prompt_edges, output_edges)
    except InputError as error:
        raise error.within(str(path)) from None


def _melange(
    path: Path,
    document: Any,
    total_rate_per_s: float | None,
    slices: int | None,
    max_utilisation: float | None,
    prompt_edges: str | Sequence[int] | None,
    output_edges: str | Sequence[int] | None,
) -> tuple[GpuSelection, list[str]]:
    _positive(total_rate_per_s=total_rate_per_s)
    _keys("the document", document, _MELANGE_KEYS)
    distribution = _number_matrix("workload_distribution", document["workload_distribution"], None)
    rows, columns = len(distribution), len(distribution[0])
    rate_per_s = total_rate_per_s if total_rate_per_s is not None else _number("total_request_rate", document["total_request_rate"])
    slice_factor = document["slice_factor"]
    if isinstance(slice_factor, bool) or not isinstance(slice_factor, int) or slice_factor < 1:
        raise InputError(f"slice_factor must be a whole number of at least 1, got {shown(slice_factor)}")
    info = document["gpu_info"]
    if not isinstance(info, dict) or not info:
        raise InputError(f"gpu_info must be an object with at least one GPU type, got {shown(info)}")
    gpus, throughput = [], []
    for name, entry in info.items():
        _keys(f"gpu_info.{name}", entry, ("cost", "tputs"))
        gpus.append({"name": name, "price_usd_per_h": _number(f"gpu_info.{name}.cost", entry["cost"])})
        tputs = np.array(_number_matrix(f"gpu_info.{name}.tputs", entry["tputs"], (rows, columns)))
        throughput.append(np.where(tputs > 0, tputs, np.nan).ravel())
    ranges = _ranges(prompt_edges, "prompt", rows), _ranges(output_edges, "output", columns)
    work = [
        {"name": f"in{i}_out{j}", "rate_per_s": distribution[i][j] * rate_per_s, "prompt_tokens": ranges[0][i], "output_tokens": ranges[1][j]}
        for i in range(rows)
        for j in range(columns)
    ]
    notices = []
    total = math.fsum(share for row in distribution for share in row)
    if abs(total - 1) > 1e-6:
        notices.append(f"workload_distribution sums to {total:.6g}, not 1: the instance's total rate is {total * rate_per_s:.6g} requests/s")
    provenance = {
        "importer": "melange",
        "sources": [_source("configuration", path)],
        "options": _given(total_rate_per_s=total_rate_per_s, slices=slices, max_utilisation=max_utilisation),
        "buckets": {"prompt": rows, "output": columns},
        "total_request_rate": rate_per_s,
        "notices": notices,
    }
    fields: dict[str, Any] = {"name": path.stem, "provenance": provenance, "work": work, "gpus": gpus, "throughput_per_s": np.array(throughput)}
    fields |= {"slices": slice_factor if slices is None else slices, **_given(max_utilisation=max_utilisation)}
    return GpuSelection(**fields), notices


def import_splitwise_perf(
    table: Path | str,
    trace: Path | str | None = None,
    *,
    trace_format: str | None = None,
    model: str | None = None,
    hardware: Sequence[str] | None = None,
    tp: Sequence[int] | None = None,
    price: Mapping[str, float] | None = None,
    stock: Mapping[str, int] | None = None,
    split_phases: bool = False,
    ttft_s: float = DEFAULT_TTFT_S,
    tpot_s: float = DEFAULT_TPOT_S,
    max_utilisation: float = DEFAULT_MAX_UTILISATION,
    usable_memory_share: float = DEFAULT_USABLE_MEMORY_SHARE,
    slices: int | None = None,
    total_rate_per_s: float | None = None,
    duration_s: float | None = None,
    prompt_edges: str | Sequence[int] | None = None,
    output_edges: str | Sequence[int] | None = None,
    beyond_range: str = "drop",
    catalogue: Path | str | None = None,
    epoch_s: float | None = None,
    start_delay_epochs: int | None = None,
    start_cost_usd: float | Mapping[str, float] | None = None,
    initial_count: int | Mapping[str, int] | None = None,
) -> tuple[GpuSelection, list[str]]:
    """An instance from a performance table (`read_performance_table`) and a trace or workload document (`read_trace`), with notices.

    Each measured (hardware, TP) that holds the model's weights is a replica type `A100-80GB-TP2` at TP times the GPU's price. `stock` {GPU: number}
    makes the types of a GPU draw on one pool. `split_phases` makes prefill and decode of a bucket two work items, and of each type two that
    serve one phase each (Splitwise, ISCA 2024). Requests longer than anything measured are left out, request by request, with a notice
    (`beyond_range="drop"`), or are an error ("error"). `model` defaults to the one with strictly most measured configurations. TTFT and TPOT
    hold at the largest request of a bucket, rates are those of the mean request (`operating_point`).

    `epoch_s` makes an instance with epochs, the trace's requests counted in each (`trace_epochs`), `work[].rate_per_s` their mean; the options
    about starts are `EpochOptions`. For a horizon longer than the trace see `gpu_selection_presets_epochs.daily_rates`.

    The model ignores queueing (hence max_utilisation 0.8), the slowing of running decodes by prefills on the same replica, the sharing of
    prefixes, the transfer of KV cache between split pools, and batches of mixed sizes.
    """
    if trace is None:
        raise InputError("needs a request trace or a workload document; expected --trace FILE", str(table))
    _positive(ttft_s=ttft_s, tpot_s=tpot_s)
    over_time = EpochOptions(epoch_s, start_delay_epochs, start_cost_usd, initial_count)
    over_time.check()
    if beyond_range not in ("drop", "error"):
        raise InputError(f"beyond_range must be drop or error, got {shown(beyond_range)}")
    table, trace = Path(table), Path(trace)
    known = load_catalogue(catalogue)
    chosen = choose_replicas(
        read_performance_table(table), known,
        model=model, hardware=hardware, tp=tp, price=price or {}, stock=stock or {}, usable_memory_share=usable_memory_share, source=str(table),
    )  # fmt: skip
    replicas, notices = chosen.replicas, list(chosen.notices)
    workload, trace_notices, span = read_trace_and_span(
        trace, trace_format, prompt_edges=prompt_edges, output_edges=output_edges, total_rate_per_s=total_rate_per_s, duration_s=duration_s,
        split_prompt=sorted({replica.measured.max_prompt_tokens for replica in replicas}),
        split_output=sorted({replica.measured.max_output_tokens for replica in replicas}),
    )  # fmt: skip
    is_document = (trace_format or sniff_format(trace)) == "workload"
    buckets, left_out, range_notices = _within_range(workload, replicas, trace, beyond_range, is_document)
    notices += [*trace_notices, *range_notices]
    limits = Limits(ttft_s, tpot_s)
    points = [[operating_point(replica.measured, replica.kv_tokens, _sizes(bucket), limits) for bucket in buckets] for replica in replicas]
    work, gpus, throughput = _phases(buckets, replicas, points) if split_phases else _whole(buckets, replicas, points)
    epochs = None
    if epoch_s is not None:
        phases = ("prefill", "decode") if split_phases else (None,)
        types = [(str(replica.gpu_type(phase)["name"]), replica) for replica in replicas for phase in phases]
        epochs = imported_epochs(
            over_time, trace, span, workload, work, types, known, total_rate_per_s=total_rate_per_s, duration_s=duration_s
        )  # fmt: skip
        work = [item | {"rate_per_s": rate} for item, rate in zip(work, epochs.mean_rate_per_s, strict=True)]
        notices += epochs.notices
    unservable = [item["name"] for i, item in enumerate(work) if all(math.isnan(row[i]) for row in throughput)]
    if unservable:
        limit = f"TTFT {ttft_s:g} s and TPOT {tpot_s:g} s"
        notices.append(f"no type serves {', '.join(unservable)} within {limit}: as it stands the instance is infeasible")
    options = {
        "model": chosen.model, "hardware": list(hardware or []), "tp": list(tp or []), "price": dict(price or {}), "stock": dict(stock or {}),
        "split_phases": split_phases, "ttft_s": ttft_s, "tpot_s": tpot_s, "max_utilisation": max_utilisation,
        "usable_memory_share": usable_memory_share, "slices": slices, "total_rate_per_s": total_rate_per_s, "duration_s": duration_s,
        "prompt_edges": _plain(prompt_edges), "output_edges": _plain(output_edges), "beyond_range": beyond_range,
        **_given(
            epoch_s=epoch_s, start_delay_epochs=start_delay_epochs, start_cost_usd=_unfrozen(start_cost_usd), initial_count=_unfrozen(initial_count)
        ),
    }  # fmt: skip
    provenance = {
        "importer": "splitwise-perf",
        "sources": [
            _source("performance table", table),
            _source("trace", trace),
            *([] if catalogue is None else [_source("catalogue", Path(catalogue))]),
        ],
        "options": options,
        "trace": workload.model_dump(exclude={"buckets"}, exclude_none=True),
        "left_out": left_out,
        "model": chosen.facts,
        "replica_types": {replica.name: replica.facts for replica in replicas},
        "batches": {
            replica.name: {"prefill": [point.prefill_batch for point in row], "decode": [point.decode_batch for point in row]}
            for replica, row in zip(replicas, points, strict=True)
        },
        **({} if epochs is None else {"epochs": epochs.facts}),
        "notices": notices,
    }
    fields: dict[str, Any] = {
        "name": f"{chosen.model} {Path(workload.name).stem} {sum(item['rate_per_s'] for item in work if item.get('phase') != 'decode'):.4g}/s",
        "provenance": provenance,
        "work": work,
        "gpus": gpus,
        "pools": list(chosen.pools),
    }
    fields |= {"throughput_per_s": np.array(throughput), "max_utilisation": max_utilisation, "slices": slices}
    fields |= {} if epochs is None else {"epochs": epochs.fields}
    return GpuSelection(**fields), notices


def _sizes(bucket: WorkloadBucket) -> RequestSizes:
    return RequestSizes(bucket.mean_prompt_tokens, bucket.mean_output_tokens, bucket.max_prompt_tokens, bucket.max_output_tokens)


def _within_range(
    workload: Workload, replicas: Sequence[RentedReplica], trace: Path, beyond_range: str, is_document: bool
) -> tuple[list[WorkloadBucket], dict[str, Any], list[str]]:
    """The buckets that some replica was measured for; figures and notices about the others, which are left out."""

    def measured(bucket: WorkloadBucket) -> bool:
        prompt, output = bucket.max_prompt_tokens, bucket.max_output_tokens
        return any(prompt <= replica.measured.max_prompt_tokens and output <= replica.measured.max_output_tokens for replica in replicas)

    kept = [bucket for bucket in workload.buckets if measured(bucket)]
    dropped = [bucket for bucket in workload.buckets if not measured(bucket)]
    requests = sum(bucket.requests for bucket in dropped)
    tokens, all_tokens = (
        math.fsum(bucket.requests * (bucket.mean_prompt_tokens + bucket.mean_output_tokens) for bucket in buckets)
        for buckets in (dropped, workload.buckets)
    )
    prompt_limit = max(replica.measured.max_prompt_tokens for replica in replicas)
    output_limit = max(replica.measured.max_output_tokens for replica in replicas)
    figures = {
        "requests": requests,
        "of_requests": workload.requests,
        "share_of_requests": requests / workload.requests,
        "share_of_tokens": tokens / all_tokens,
        "rate_per_s": math.fsum(bucket.rate_per_s for bucket in dropped),
        "measured_prompt_tokens": prompt_limit,
        "measured_output_tokens": output_limit,
    }
    if not dropped:
        return kept, figures, []
    longest = f"{max(bucket.max_prompt_tokens for bucket in dropped)} prompt and {max(bucket.max_output_tokens for bucket in dropped)} output tokens"
    measured_sizes = f"{prompt_limit} prompt, {output_limit} output tokens"
    what = f"{requests} of {workload.requests} requests, of up to {longest}, are longer than was measured ({measured_sizes})"
    if beyond_range == "error":
        raise InputError(f"{what}; expected none, as --beyond-range error asks", str(trace))
    if not kept:
        raise InputError(f"{what}; expected some that are not", str(trace))
    shares = f"{figures['share_of_requests']:.4%} of requests, {figures['share_of_tokens']:.4%} of tokens"
    rates = f"{figures['rate_per_s']:.4g} of {workload.rate_per_s:.4g} requests/s"
    notices = [f"LEFT OUT: {what}: {shares}, {rates}. No plan for this instance serves them"]
    if is_document and any(bucket.prompt_tokens[0] <= prompt_limit and bucket.output_tokens[0] <= output_limit for bucket in dropped):
        notices.append("a workload document cannot be split at the measured sizes, so whole buckets were left out; import the trace itself instead")
    return kept, figures, notices


WorkAndTypes = tuple[list[dict[str, Any]], list[dict[str, Any]], list[list[float]]]
"""Work items, replica types and throughputs [type][item] with NaN for null."""


def _whole(buckets: Sequence[WorkloadBucket], replicas: Sequence[RentedReplica], points: Sequence[Sequence[OperatingPoint]]) -> WorkAndTypes:
    """One work item a bucket; a replica does both phases in turn."""
    throughput = [[_or_nan(point.throughput_per_s) for point in row] for row in points]
    return [_item(bucket) for bucket in buckets], [replica.gpu_type() for replica in replicas], throughput


def _phases(buckets: Sequence[WorkloadBucket], replicas: Sequence[RentedReplica], points: Sequence[Sequence[OperatingPoint]]) -> WorkAndTypes:
    """Two work items a bucket and two types a replica, each type serving one phase. A bucket of one-token outputs has nothing to decode."""
    decoded = [i for i, bucket in enumerate(buckets) if bucket.mean_output_tokens > 1]
    work = [_item(bucket, "prefill") for bucket in buckets] + [_item(buckets[i], "decode") for i in decoded]
    gpus, throughput = [], []
    for replica, row in zip(replicas, points, strict=True):
        gpus += [replica.gpu_type("prefill"), replica.gpu_type("decode")]
        throughput.append([_rate(point.prefill_s) for point in row] + [math.nan] * len(decoded))
        throughput.append([math.nan] * len(row) + [_rate(row[i].decode_s) for i in decoded])
    return work, gpus, throughput


def _source(role: str, path: Path) -> dict[str, str]:
    return {"role": role, "file": path.name, "sha256": sha256_of(path)}


def _item(bucket: WorkloadBucket, phase: str | None = None) -> dict[str, Any]:
    item = {"rate_per_s": bucket.rate_per_s, "prompt_tokens": bucket.prompt_tokens, "output_tokens": bucket.output_tokens}
    return item | ({"name": bucket.name} if phase is None else {"name": f"{bucket.name}-{phase}", "phase": phase})


def _rate(seconds: float | None) -> float:
    return math.nan if seconds is None else 1.0 / seconds


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _unfrozen(value: float | Mapping[str, float] | None) -> float | dict[str, float] | None:
    return dict(value) if isinstance(value, Mapping) else value


def _plain(edges: str | Sequence[int] | None) -> str | list[int] | None:
    return edges if edges is None or isinstance(edges, str) else list(edges)


def _positive(**options: float | None) -> None:
    for name, value in options.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be positive, got {value}")


def _keys(where: str, value: Any, expected: Sequence[str]) -> None:
    if not isinstance(value, dict):
        raise InputError(f"{where} must be an object with {', '.join(expected)}, got {shown(value)}")
    prefix = "" if where == "the document" else f"{where}."
    for key in expected:
        if key not in value:
            raise InputError(f"{prefix}{key} is missing; expected {', '.join(expected)}")
    for key in value:
        if key not in expected:
            raise InputError(f"{prefix}{key} is an unknown field; expected {', '.join(expected)}")


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e50:
        raise InputError(f"{where} must be a finite number of at least 0, got {shown(value)}")
    return float(value)


def _number_matrix(where: str, value: Any, shape: tuple[int, int] | None) -> list[list[float]]:
    if not isinstance(value, list) or not value or not all(isinstance(row, list) and row for row in value):
        raise InputError(f"{where} must be a list of rows of numbers, got {shown(value)}")
    rows, columns = shape or (len(value), len(value[0]))
    if len(value) != rows:
        raise InputError(f"{where} must have {rows} rows as workload_distribution has, got {len(value)}")
    for i, row in enumerate(value):
        if len(row) != columns:
            raise InputError(f"{where}[{i}] must have {columns} numbers as {'workload_distribution' if shape else where + '[0]'} has, got {len(row)}")
    return [[_number(f"{where}[{i}][{j}]", item) for j, item in enumerate(row)] for i, row in enumerate(value)]


def _ranges(edges: str | Sequence[int] | None, kind: Literal["prompt", "output"], count: int) -> list[tuple[int, int] | None]:
    """Token ranges for the buckets of a file that does not say them."""
    if edges is None:
        return [None] * count
    upper = bucket_edges(edges, kind)
    if len(upper) != count:
        raise InputError(f"{kind}_edges must have {count} numbers, as many as workload_distribution has {kind} sizes, got {len(upper)}")
    return [(least + 1, most) for least, most in zip((0, *upper), upper, strict=False)]
