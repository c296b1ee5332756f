"""The table of expert placement."""

from __future__ import annotations

from types import MappingProxyType

from headroom.registry_types import BoundMethod, Entry, Family, Method

_HEURISTICS = "headroom.heuristics.expert_placement"
EXPERT_PLACEMENT = Family(
    name="expert_placement",
    question="which device holds which MoE experts and replicas",
    instance="headroom.instances.expert_placement:ExpertPlacement",
    plans=("headroom.formulations.expert_placement:ExpertPlan",),
    plan_type="headroom.formulations.expert_placement:plan_type",
    evaluate="headroom.formulations.expert_placement:evaluate",
    build_model="headroom.formulations.expert_placement:build_model",
    recheck="headroom.bounds.expert_placement:recheck",
    auto="headroom.solvers.expert_placement:auto",
    replay="headroom.heuristics.expert_placement_online:replay",
    preset="headroom.instances.expert_placement_presets:make",
    demo_preset="mixtral-8x7b-4gpu",
    methods=MappingProxyType(
        {
            "local_search": Method(
                "headroom.solvers.expert_placement:local_search",
                "exchanges and annealing layer by layer; traffic by annealing the chain, exactly where splits are few",
                "exact",
            ),
            "highs": Method("headroom.solvers.expert_placement:highs", "the Pyomo model solved by HiGHS: small instances", "exact", seeded=False),
            "cpsat": Method("headroom.solvers.expert_placement:cpsat", "an integer model solved by CP-SAT: small instances", "exact"),
            "linear": Method(f"{_HEURISTICS}:linear", "slot r holds expert r mod E", seeded=False),
            "round_robin": Method(f"{_HEURISTICS}:round_robin", "experts dealt to devices in turn", seeded=False),
            "random": Method(f"{_HEURISTICS}:random_placement", "random replicas on random slots"),
            "lpt": Method(f"{_HEURISTICS}:lpt", "replicas to the heaviest experts, then longest processing time first", seeded=False),
            "keep": Method(f"{_HEURISTICS}:keep", "the current placement as it stands", seeded=False),
            "eplb": Method(f"{_HEURISTICS}_eplb:eplb", "DeepSeek's EPLB, all devices alike; doubles swapped away where distinct", seeded=False),
            "eplb_hierarchical": Method(
                f"{_HEURISTICS}_eplb:eplb_hierarchical", "DeepSeek's EPLB: groups to nodes, then replicas within each node", seeded=False
            ),
            "exflow": Method(f"{_HEURISTICS}_affinity:exflow", "ExFlow's search: experts that follow each other onto one device"),
            "static": Method(f"{_HEURISTICS}_online:Static", "never rebalances", "policy", seeded=False),
            "periodic": Method(f"{_HEURISTICS}_online:Periodic", "EPLB on a past window, every so many steps", "policy", seeded=False),
            "threshold": Method(f"{_HEURISTICS}_online:Threshold", "EPLB when the last step's imbalance was too high", "policy", seeded=False),
        }
    ),
    bounds=MappingProxyType(
        {
            "mean": BoundMethod("headroom.bounds.expert_placement:mean", "no device below the mean", "closed_form"),
            "replica": BoundMethod("headroom.bounds.expert_placement:replica", "replicas cannot be divided", "closed_form"),
            "group": BoundMethod("headroom.bounds.expert_placement:group", "groups stay whole on nodes", "closed_form"),
            "partitions": BoundMethod(
                "headroom.bounds.expert_placement:partitions", "traffic over all splits of few experts: exact without spare slots", "closed_form"
            ),
            "configurations": BoundMethod(
                "headroom.bounds.expert_placement:configurations", "what one device can hold: few slots, one placement for several tasks"
            ),
            "b_matching": BoundMethod("headroom.bounds.expert_placement:b_matching", "traffic: who can meet whom, boundary by boundary"),
            "chain_sdp": BoundMethod("headroom.bounds.expert_placement:chain_sdp", "traffic: semidefinite relaxation over the chain of layers"),
            "chain_sets": BoundMethod("headroom.bounds.expert_placement:chain_sets", "traffic: prices of experts over chains of a device's sets"),
        }
    ),
    presets=MappingProxyType(
        {
            "toy": "EPLB's example: 2 layers, 12 experts, 16 slots on 8 devices in 2 nodes",
            "toy-traffic": "3 layers of 4 experts on 2 devices: balance and traffic",
            "toy-moves": "6 experts on 3 devices, a random placement to improve, moves cost",
            "toy-robust": "6 experts on 3 devices, the worst of 3 tasks",
            "toy-optimal-split": "5 experts on 3 devices, 2 tasks, the plan splits loads",
            "toy-failover": "6 experts on 3 devices, each on at least two: any one device may fail",
            "toy-trace": "8 experts on 4 devices, a dozen steps of drifting loads",
            "deepseek-v3-ep8": "DeepSeek-V3 (58 x 256) on 8 devices, 288 slots",
            "deepseek-v3-ep16": "DeepSeek-V3 (58 x 256) on 16 devices in 2 nodes, 288 slots",
            "deepseek-v3-ep32": "DeepSeek-V3 (58 x 256) on 32 devices in 4 nodes, 288 slots",
            "deepseek-v3-ep64": "DeepSeek-V3 (58 x 256) on 64 devices in 8 nodes, 320 slots",
            "deepseek-v3-ep32-grouped": "DeepSeek-V3 on 32 devices, each of 8 groups of experts within a node",
            "deepseek-v3-full-ep32": "DeepSeek-V3 on 32 devices in 4 nodes, balance and traffic",
            "mixtral-8x7b-4gpu": "Mixtral (32 x 8) on 4 devices, no replicas, traffic alone",
            "qwen3-30b-ep8": "Qwen3-30B-A3B (48 x 128) on 8 devices, 144 slots",
            "gpt-oss-120b-ep8": "gpt-oss-120b (36 x 128) on 8 devices, 144 slots",
            "dsv2-lite-ep8": "DeepSeek-V2-Lite (26 x 64) on 8 devices, 72 slots",
            "dsv2-lite-robust-ep8": "DeepSeek-V2-Lite on 8 devices, the worst of 4 tasks",
            "dsv2-lite-robust-ep32": "DeepSeek-V2-Lite on 32 devices, 96 slots, the worst of 4 tasks",
            "dsv2-lite-failover-ep8": "DeepSeek-V2-Lite on 8 devices, 144 slots, each expert on at least two devices",
            "dsv2-lite-affinity-ep4": "DeepSeek-V2-Lite on 4 devices, no replicas, planted affinity, traffic alone",
            "dsv2-lite-replan-ep8": "DeepSeek-V2-Lite on 8 devices, 72 slots as EPLB filled them for last week's loads",
            "deepseek-v3-replan-ep32": "DeepSeek-V3 on 32 devices in 4 nodes, 288 slots as EPLB filled them for last week's loads",
            "dsv2-lite-trace-ep8": "DeepSeek-V2-Lite on 8 devices, 200 steps of drifting loads with task switches",
        }
    ),
    sweeps=MappingProxyType(
        {"moves": Entry("headroom.solvers.expert_placement_sweeps:moves", "most experts that may come to devices that do not hold them now")}
    ),
    exporters=MappingProxyType(
        {
            "sglang": Entry("headroom.export.expert_placement:sglang", "JSON for SGLang's --init-expert-location"),
            "vllm-ascend": Entry("headroom.export.expert_placement:vllm_ascend", "expert map JSON for vllm-ascend"),
            "tensorrt-llm": Entry("headroom.export.expert_placement:tensorrt_llm", "load balancer YAML for TensorRT-LLM"),
        }
    ),
    options=MappingProxyType({"min_holders": "--min-holders", "max_moves": "--max-moves"}),
    caps=frozenset({"max_moves"}),
)
