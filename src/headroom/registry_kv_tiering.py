"""The table of KV-cache tiering."""

from __future__ import annotations

from types import MappingProxyType

from headroom.registry_types import BoundMethod, Entry, Family, Method

_HEURISTICS = "headroom.heuristics.kv_tiering"
_EXPORT = "headroom.export.kv_tiering"
KV_TIERING = Family(
    name="kv_tiering",
    question="which KV blocks sit in which memory tier, step by step",
    instance="headroom.instances.kv_tiering:KvTiering",
    plans=("headroom.formulations.kv_tiering:TieringPlan",),
    plan_type="headroom.formulations.kv_tiering:plan_type",
    evaluate="headroom.formulations.kv_tiering:evaluate",
    build_model="headroom.formulations.kv_tiering:build_model",
    recheck="headroom.bounds.kv_tiering:recheck",
    auto="headroom.solvers.kv_tiering:auto",
    replay="headroom.heuristics.kv_tiering_online:replay",
    preset="headroom.instances.kv_tiering_presets:make",
    demo_preset="small-drift",
    methods=MappingProxyType(
        {
            "lagrangian": Method(
                "headroom.solvers.kv_tiering:lagrangian",
                "Lagrangian prices, then each block's exact path under them and the others' load; tiny instances by HiGHS",
                "exact",
            ),
            "highs": Method("headroom.solvers.kv_tiering_highs:highs", "the Pyomo model solved by HiGHS: small instances", "exact", seeded=False),
            "static": Method(f"{_HEURISTICS}:Static", "the fastest tier with room at birth, never moved", "policy", seeded=False),
            "lru": Method(f"{_HEURISTICS}:Lru", "what is read moves to the fastest tier, the least recently read out", "policy", seeded=False),
            "page_lookahead": Method(f"{_HEURISTICS}:PageLookahead", "fetches what the next step reads: sees one step ahead", "policy", seeded=False),
            "lfu": Method(f"{_HEURISTICS}:Lfu", "decayed frequency, moved where it pays", "policy", seeded=False),
            "price_index": Method(f"{_HEURISTICS}:PriceIndex", "trades places by expected reads and the tiers' times", "policy", seeded=False),
            "balanced_static": Method(f"{_HEURISTICS}:balanced_static", "hindsight: tiers balanced by reads, no moves", seeded=False),
            "belady": Method(f"{_HEURISTICS}:belady", "hindsight: evicts what is read again last, where it pays", seeded=False),
            "sa_lookahead": Method(f"{_HEURISTICS}:sa_lookahead", "hindsight: a look-ahead rule tuned by simulated annealing"),
        }
    ),
    bounds=MappingProxyType(
        {
            "bandwidth": BoundMethod("headroom.bounds.kv_tiering:bandwidth", "all bytes read over all bandwidths", "closed_form"),
            "hit_volume": BoundMethod("headroom.bounds.kv_tiering:hit_volume", "capacity x steps as one volume over read intervals", "closed_form"),
            "lagrangian": BoundMethod("headroom.bounds.kv_tiering:lagrangian", "prices of capacity and of tiers' times; every block a shortest path"),
            "lp": BoundMethod("headroom.bounds.kv_tiering:lp", "the linear relaxation by HiGHS, its duals rechecked: small instances"),
        }
    ),
    presets=MappingProxyType(
        {
            "toy": "4 blocks, 6 steps, two tiers: small enough to solve by hand",
            "toy-inclusive": "6 blocks, 10 steps; the slow tier keeps a copy, so evictions are free",
            "toy-three-tier": "7 blocks, 10 steps, three tiers, births and deaths",
            "toy-bytes": "6 blocks of different sizes, 10 steps that read parts of blocks",
            "small-drift": "150 equal blocks x 40 steps, a tenth of the read set replaced each step",
            "gh200-llama3.1-8b": "Fang et al.'s GH200 and LLaMA-3.1-8B at 1/16 of its tokens; --set scale=1 for the whole",
            "gh200-llama3.1-8b-scaled": "the same at 1/64 in pages of 4 tokens, low randomness",
            "gh200-llama3.1-8b-scaled-random": "the same at 1/64 in pages of 4 tokens, high randomness",
            "h100-pcie": "Llama-3-8B on an H100, host memory over PCIe: a batch of long conversations that come and go",
            "three-tier-ssd": "HBM, DRAM, SSD that keeps a copy; 2,000 blocks x 300 steps",
            "four-tier-cxl": "HBM, DRAM, CXL, SSD; four layers of a sequence with heavy hitters",
            "drift-0.02": "4,000 equal blocks x 500 steps, 2 % of the read set replaced each step",
            "drift-0.1": "4,000 equal blocks x 500 steps, 10 % of the read set replaced each step",
            "drift-0.5": "4,000 equal blocks x 500 steps, half of the read set replaced each step",
            "drift-lp": "500 equal blocks x 100 steps: the whole LP can still be solved",
        }
    ),
    sweeps=MappingProxyType({"capacity": Entry("headroom.solvers.kv_tiering_sweeps:capacity", "bytes of a tier")}),
    limits="headroom.solvers.kv_tiering_sweeps:limits",
    exporters=MappingProxyType(
        {
            "schedule": Entry(f"{_EXPORT}:schedule", "JSON: initial placement, then moves step by step"),
            "residency": Entry(f"{_EXPORT}:residency", "JSON lines: a step a line, what enters and leaves each tier, for a runtime to stream"),
        }
    ),
)
