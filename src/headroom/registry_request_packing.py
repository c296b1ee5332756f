"""The table of request packing."""

from __future__ import annotations

from types import MappingProxyType

from headroom.registry_types import BoundMethod, Entry, Family, Method

_HEURISTICS = "headroom.heuristics.request_packing"
_SOLVERS = "headroom.solvers.request_packing"
_BOUNDS = "headroom.bounds.request_packing"
_EXPORT = "headroom.export.request_packing"
_BINS, _MAKESPAN = ("bins",), ("makespan",)


def _policy(name: str, summary: str, modes: tuple[str, ...], seeded: bool = False) -> Method:
    return Method(f"{_HEURISTICS}:{name}", summary, "policy", seeded=seeded, modes=modes)


def _heuristic(name: str, summary: str, modes: tuple[str, ...]) -> Method:
    return Method(f"{_HEURISTICS}:{name}", summary, seeded=False, modes=modes)


REQUEST_PACKING = Family(
    name="request_packing",
    question="which requests share a bin, or follow one another in a slot",
    instance="headroom.instances.request_packing:RequestPacking",
    plans=("headroom.formulations.request_packing:BinPlan", "headroom.formulations.request_packing:StagedPlan"),
    plan_type="headroom.formulations.request_packing:plan_type",
    evaluate="headroom.formulations.request_packing:evaluate",
    build_model="headroom.formulations.request_packing:build_model",
    recheck=f"{_BOUNDS}:recheck",
    auto=f"{_SOLVERS}:auto",
    replay="headroom.heuristics.request_packing:replay",
    preset="headroom.instances.request_packing_presets:make",
    demo_preset="triplet-120",
    mode="headroom.formulations.request_packing:objective_of",
    methods=MappingProxyType(
        {
            "bins": Method(f"{_SOLVERS}:bins", "program over patterns, dives, listed patterns by HiGHS", "exact", modes=_BINS),
            "cmax": Method(f"{_SOLVERS}:cmax", "where prefill takes no time: local search, dive, exhaustive search", "exact", modes=_MAKESPAN),
            "staged": Method(f"{_SOLVERS}:staged", "prefill and decode: requests that fit a grid of stages, local search", "exact", modes=_MAKESPAN),
            "highs": Method(f"{_SOLVERS}:highs", "the Pyomo model solved by HiGHS: small instances", "exact", seeded=False),
            "next_fit": _policy("NextFit", "the last bin opened, else a new one", _BINS),
            "first_fit": _policy("FirstFit", "the first bin with true room", _BINS),
            "best_fit": _policy("BestFit", "the bin left with least room", _BINS),
            "worst_fit": _policy("WorstFit", "the bin left with most room", _BINS),
            "affinity_fit": _policy("AffinityFit", "bins that hold the request's prefix first", _BINS),
            "harmonic": _policy("Harmonic", "next fit in each of 12 size classes", _BINS),
            "first_fit_predicted": _policy("FirstFitPredicted", "first fit by a quantile of predicted lengths; full bins refuse", _BINS, True),
            "ffd": _heuristic("ffd", "first fit by falling size", _BINS),
            "bfd": _heuristic("bfd", "best fit by falling size", _BINS),
            "ffd_prefix_blind": _heuristic("ffd_prefix_blind", "first fit by falling size, blind to what groups share", _BINS),
            "ffd_grouped": _heuristic("ffd_grouped", "groups kept together, then split", _BINS),
            "minimum_bin_slack": _heuristic("minimum_bin_slack", "bin after bin, the set that leaves least slack", _BINS),
            "fcfs_slots": _policy("FcfsSlots", "in order, prefill as soon as a slot is free", _MAKESPAN),
            "waves": _policy("Waves", "static batches in order", _MAKESPAN),
            "sorted_preemptive": _policy("SortedPreemptive", "longest first, prefill as soon as a slot is free; lengths known", _MAKESPAN),
            "sorted_preemptive_predicted": _policy("SortedPreemptivePredicted", "the same with predicted lengths", _MAKESPAN, True),
            "lpt_threshold": _policy("LptThreshold", "longest first, prefill when 4 % of the slots are free; lengths known", _MAKESPAN),
            "lpt_threshold_predicted": _policy("LptThresholdPredicted", "the same with predicted lengths", _MAKESPAN, True),
            "token_fill": _policy("TokenFill", "longest first, prefill when prompts fill a good level; lengths known", _MAKESPAN),
            "token_fill_predicted": _policy("TokenFillPredicted", "the same with predicted lengths", _MAKESPAN, True),
            "lagrangian_rule": _policy("LagrangianRule", "prefill or decode by the price of idle slots; lengths known", _MAKESPAN),
            "lagrangian_rule_predicted": _policy("LagrangianRulePredicted", "the same with predicted lengths", _MAKESPAN, True),
            "lpt": _heuristic("lpt", "longest request first to the slot free first", _MAKESPAN),
            "multifit": _heuristic("multifit", "bisection on the slots' length with first fit by falling length", _MAKESPAN),
            "shortest_first": _heuristic("shortest_first", "static batches, shortest first", _MAKESPAN),
            "longest_first": _heuristic("longest_first", "static batches, longest first", _MAKESPAN),
        }
    ),
    bounds=MappingProxyType(
        {
            "volume": BoundMethod(f"{_BOUNDS}:volume", "all tokens, each group's overhead once, over the capacity", "closed_form", modes=_BINS),
            "l2": BoundMethod(f"{_BOUNDS}:l2", "large items do not share bins; small ones fill what room they leave", "closed_form", modes=_BINS),
            "dff": BoundMethod(f"{_BOUNDS}:dff", "dual feasible functions", "closed_form", modes=_BINS),
            "split_volume": BoundMethod(f"{_BOUNDS}:split_volume", "each group's overhead in as many bins as it needs", "closed_form", modes=_BINS),
            "grouped_patterns": BoundMethod(f"{_BOUNDS}:grouped_patterns", "patterns that pay for groups and padding", modes=_BINS),
            "patterns": BoundMethod(f"{_BOUNDS}:patterns", "the program over patterns: weights of sizes", modes=_BINS),
            "mean_load": BoundMethod(f"{_BOUNDS}:mean_load", "all output tokens over all slots", "closed_form", modes=_MAKESPAN),
            "longest_output": BoundMethod(f"{_BOUNDS}:longest_output", "the longest output", "closed_form", modes=_MAKESPAN),
            "pigeonhole": BoundMethod(f"{_BOUNDS}:pigeonhole", "some slots hold more than the mean of the longest", "closed_form", modes=_MAKESPAN),
            "dual_feasible": BoundMethod(f"{_BOUNDS}:dual_feasible", "the least load no dual feasible function refutes", modes=_MAKESPAN),
            "dual_bin_packing": BoundMethod(f"{_BOUNDS}:dual_bin_packing", "the least load whose relaxation fits", modes=_MAKESPAN),
            "stage_cover": BoundMethod(f"{_BOUNDS}:stage_cover", "cheapest prefills of all prompts; decode steps", "closed_form", modes=_MAKESPAN),
            "stage_count": BoundMethod(f"{_BOUNDS}:stage_count", "stages against slots that wait for each other", "closed_form", modes=_MAKESPAN),
        }
    ),
    presets=MappingProxyType(
        {
            "toy": "6 requests into bins of 1,000 tokens: small enough to solve by hand",
            "toy-makespan": "3 requests through 2 slots, two prefill levels: by hand",
            "toy-groups": "6 requests, two shared prefixes, padding to hundreds: by hand",
            "uniform-120": "bin packing, 120 sizes from 20 to 100, capacity 150",
            "uniform-250": "bin packing, 250 sizes from 20 to 100, capacity 150",
            "uniform-500": "bin packing, 500 sizes from 20 to 100, capacity 150",
            "uniform-1000": "bin packing, 1,000 sizes from 20 to 100, capacity 150",
            "triplet-60": "triplets that fill 20 bins of 1,000 exactly",
            "triplet-120": "triplets that fill 40 bins of 1,000 exactly",
            "triplet-249": "triplets that fill 83 bins of 1,000 exactly",
            "triplet-501": "triplets that fill 167 bins of 1,000 exactly",
            "hard28-like": "180 sizes from 1 to 800 around a packing with a tenth of a bin to spare",
            "scholl-3": "200 sizes from 20,000 to 35,000, capacity 100,000",
            "cmax-uniform": "P||Cmax: 200 jobs of 1 to 1,000 steps on 10 slots",
            "gsm8k-staged": "1,319 questions through 200 slots, seven prefill levels",
            "gsm8k-cmax": "the same without prefill time: P||Cmax over the outputs",
            "shared-prefix": "2,000 requests behind 50 shared prefixes, bins of 65,536 tokens",
            "adapters": "1,000 samples of 8 adapters, padded to 64 tokens, micro-batches of 8,192",
            "chat-65536": "19,366 requests of Azure's chat lengths into bins of 65,536 tokens",
            "backlog-million": "10^6 requests of Azure's chat lengths into bins of 65,536 tokens",
        }
    ),
    exporters=MappingProxyType(
        {
            "batches": Entry(f"{_EXPORT}:batches", "JSON lines: a bin a line, its request ids in order", modes=_BINS),
            "queues": Entry(f"{_EXPORT}:queues", "JSON lines: a slot a line, its requests in order", modes=_MAKESPAN),
            "stages": Entry(f"{_EXPORT}:stages", "JSON lines: a stage a line, whom it admits where", modes=_MAKESPAN),
        }
    ),
)
