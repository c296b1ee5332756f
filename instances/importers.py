"""The table of importers: which file formats headroom reads, what each makes, and which options it takes. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Importer:
    """One format. `makes` is a family, or "workload"; `options` are the keyword options the function takes.

    The function takes the file's path (`several`: a list of paths, at least one) and those options, and returns what it made (something with
    `save(path)`) with a list of notices.
    """

    format: str
    makes: str
    summary: str
    function: str
    options: tuple[str, ...]
    several: bool = False

    @property
    def with_performance(self) -> tuple[str, ...]:
        """What a trace format takes besides when --performance makes an instance of it."""
        return ("performance", *_PERFORMANCE_OPTIONS) if self.makes == "workload" else ()

    def load(self) -> Callable[..., tuple[Any, list[str]]]:
        """Import the function named `module:name`."""
        module, name = self.function.split(":")
        function: Callable[..., tuple[Any, list[str]]] = getattr(import_module(module), name)
        return function


_TRACE_OPTIONS = ("prompt_edges", "output_edges", "total_rate_per_s", "duration_s")
_PERFORMANCE_OPTIONS = (
    "model", "hardware", "tp", "price", "stock", "split_phases", "ttft_s", "tpot_s", "max_utilisation", "usable_memory_share", "slices",
    "beyond_range", "catalogue", "epoch_s", "start_delay_epochs", "start_cost_usd", "initial_count",
)  # fmt: skip

_PLACEMENT_OPTIONS = (
    "devices", "devices_per_node", "slots_per_device", "experts", "current", "max_moves", "balance_weight", "traffic_weight", "moves_weight",
    "same_node_hop", "other_node_hop", "split", "robust", "allow_repeats", "min_holders", "n_groups", "group_limited", "model_layers",
    "moe_layer_ids", "first_moe_layer",
)  # fmt: skip
_ACCESS_OPTIONS = (
    "tier", "hardware", "kv_capacity_gb", "kv_entry_bytes", "page_tokens", "prompt_tokens", "top_k", "sparsity", "fixed_read_bytes", "partial_reads",
    "inclusive",
)  # fmt: skip
_BACKLOG_OPTIONS = (
    "capacity_tokens", "padding_multiple", "slots", "decode_step_s", "prefill_level", "first", "from_s", "until_s", "too_large",
)  # fmt: skip

IMPORTERS: dict[str, Importer] = {
    importer.format: importer
    for importer in (
        Importer(
            "azure-llm",
            "workload",
            "Azure LLM inference trace (CSV: TIMESTAMP,ContextTokens,GeneratedTokens); with --performance TABLE a gpu_selection instance",
            "headroom.instances.request_traces:read_azure_llm",
            _TRACE_OPTIONS,
        ),
        Importer(
            "mooncake",
            "workload",
            "Mooncake trace (JSON lines: timestamp, input_length, output_length); with --performance TABLE a gpu_selection instance",
            "headroom.instances.request_traces:read_mooncake",
            _TRACE_OPTIONS,
        ),
        Importer(
            "melange",
            "gpu_selection",
            "Mélange configuration (JSON: gpu_info, workload_distribution, total_request_rate, slice_factor)",
            "headroom.instances.gpu_selection_import:import_melange",
            ("total_rate_per_s", "slices", "max_utilisation", "prompt_edges", "output_edges"),
        ),
        Importer(
            "splitwise-perf",
            "gpu_selection",
            "measured prompt and token times (splitwise-sim perf_model.csv) with --trace FILE (azure-llm, mooncake or a workload document)",
            "headroom.instances.gpu_selection_import:import_splitwise_perf",
            ("trace", "trace_format", *_TRACE_OPTIONS, *_PERFORMANCE_OPTIONS),
        ),
        Importer(
            "expert-routing",
            "expert_placement",
            "experts of every token (.npz: topk [token][layer][k], as ESFT records them); a scenario for each FILE",
            "headroom.instances.expert_placement_import:import_expert_routing",
            (*_PLACEMENT_OPTIONS, "no_transitions"),
            several=True,
        ),
        Importer(
            "expert-load",
            "expert_placement",
            "expert loads [layer][expert] or [step][layer][expert] (JSON, SGLang's logical_count too, CSV, .npy, .npz); a scenario for each FILE",
            "headroom.instances.expert_placement_import:import_expert_load",
            _PLACEMENT_OPTIONS,
            several=True,
        ),
        Importer(
            "kv-access",
            "kv_tiering",
            "tokens read by every decode step and layer (.npz: topk [step][layer][k]), or their attention scores (scores [step][layer][token])",
            "headroom.instances.kv_tiering_import:import_kv_access",
            _ACCESS_OPTIONS,
        ),
        Importer(
            "azure-llm-requests",
            "request_packing",
            "the requests of an Azure LLM inference trace as a backlog for bins (--capacity-tokens) or slots (--slots)",
            "headroom.instances.request_packing_import:import_azure_llm_requests",
            _BACKLOG_OPTIONS,
        ),
        Importer(
            "mooncake-requests",
            "request_packing",
            "the requests of a Mooncake trace as a backlog for bins, with prefix groups from hash_ids (--capacity-tokens), or for slots (--slots)",
            "headroom.instances.request_packing_import:import_mooncake_requests",
            (*_BACKLOG_OPTIONS, "block_tokens", "no_prefixes"),
        ),
        Importer(
            "bpp",
            "request_packing",
            "bin packing (text: n, capacity, n weights) or cutting stock (m, capacity, m lines of weight and demand)",
            "headroom.instances.request_packing_import:import_bpp",
            (),
        ),
        Importer(
            "cmax",
            "request_packing",
            "P||Cmax, identical parallel machines (text: machines and jobs in either order, the jobs' times)",
            "headroom.instances.request_packing_import:import_cmax",
            ("header", "decode_step_s"),
        ),
    )
}
PERFORMANCE_IMPORTER = "splitwise-perf"
"""The importer that a trace format hands over to when a performance table is given with it."""
