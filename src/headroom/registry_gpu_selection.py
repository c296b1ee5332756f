"""The table of GPU selection."""

from __future__ import annotations

from types import MappingProxyType

from headroom.registry_types import BoundMethod, Entry, Family, Method

POOLED = ("pooled",)
PER_REPLICA = ("per_replica",)
EPOCHS = ("epochs",)
GPU_SELECTION = Family(
    name="gpu_selection",
    question="which GPU types, and how many, serve this load at least cost",
    instance="headroom.instances.gpu_selection:GpuSelection",
    plans=(
        "headroom.formulations.gpu_selection:GpuSelectionPlan",
        "headroom.formulations.gpu_selection:ReplicaPlan",
        "headroom.formulations.gpu_selection:EpochPlan",
    ),
    plan_type="headroom.formulations.gpu_selection:plan_type",
    mode="headroom.formulations.gpu_selection:mode",
    evaluate="headroom.formulations.gpu_selection:evaluate",
    build_model="headroom.formulations.gpu_selection:build_model",
    recheck="headroom.bounds.gpu_selection:recheck",
    auto="headroom.solvers.gpu_selection:auto",
    replay="headroom.heuristics.gpu_selection:replay",
    preset="headroom.instances.gpu_selection_presets:make",
    demo_preset="melange-4gpu-6x6",
    methods=MappingProxyType(
        {
            "branching": Method(
                "headroom.solvers.gpu_selection:branching",
                "branch and bound whose tree is a certificate of optimality",
                "exact",
                seeded=False,
                modes=POOLED,
            ),
            "highs": Method("headroom.solvers.gpu_selection:highs", "the Pyomo model solved by HiGHS", "exact", seeded=False),
            "cpsat": Method(
                "headroom.solvers.gpu_selection:cpsat",
                "CP-SAT: slices directly, continuous shares by Benders cuts",
                "exact",
                seeded=False,
                modes=POOLED,
            ),
            "single_type": Method(
                "headroom.heuristics.gpu_selection:single_type", "the cheapest fleet of one type alone", seeded=False, modes=POOLED
            ),
            "greedy": Method(
                "headroom.heuristics.gpu_selection:greedy",
                "each item to its cheapest type per request, then consolidation",
                seeded=False,
                modes=POOLED,
            ),
            "online_first_fit": Method(
                "headroom.heuristics.gpu_selection:OnlineFirstFit",
                "slices arrive in random order, rent only when nothing fits",
                "policy",
                modes=POOLED,
            ),
            "decomposition": Method(
                "headroom.solvers.gpu_selection_epochs:decomposition",
                "prices by column generation, plans and proofs by dynamic programming over fleets",
                "exact",
                seeded=False,
                modes=EPOCHS,
            ),
            "column_generation": Method(
                "headroom.solvers.gpu_selection_per_replica:column_generation",
                "patterns of whole replicas by column generation and branching; its tree is a certificate of optimality",
                "exact",
                modes=PER_REPLICA,
            ),
            "first_fit_decreasing": Method(
                "headroom.heuristics.gpu_selection_per_replica:first_fit_decreasing",
                "slices by falling size, each on the first replica with room; the best of several orders",
                seeded=False,
                modes=PER_REPLICA,
            ),
            "best_fit_decreasing": Method(
                "headroom.heuristics.gpu_selection_per_replica:best_fit_decreasing",
                "slices by falling size, each on the fullest replica with room; the best of several orders",
                seeded=False,
                modes=PER_REPLICA,
            ),
            "online_whole_first_fit": Method(
                "headroom.heuristics.gpu_selection_per_replica:OnlineWholeFirstFit",
                "slices arrive in random order, each whole onto the first replica with room",
                "policy",
                modes=PER_REPLICA,
            ),
            "static_peak": Method(
                "headroom.heuristics.gpu_selection_replay:static_peak",
                "the cheapest fleet that never changes and serves every epoch",
                seeded=False,
                modes=EPOCHS,
            ),
            "follow": Method(
                "headroom.heuristics.gpu_selection_autoscaler:Follow",
                "the cheapest fleet of each epoch alone, whatever starts cost",
                "policy",
                seeded=False,
                modes=EPOCHS,
            ),
            "reactive": Method(
                "headroom.heuristics.gpu_selection_autoscaler:Reactive",
                "autoscaler by target utilisation; a scale-down waits five minutes",
                "policy",
                seeded=False,
                modes=EPOCHS,
            ),
            "reactive_tuned": Method(
                "headroom.heuristics.gpu_selection_replay:reactive_tuned",
                "that autoscaler with the best of a stated grid of settings in hindsight",
                seeded=False,
                modes=EPOCHS,
            ),
            "hold_k": Method(
                "headroom.heuristics.gpu_selection_autoscaler:HoldK",
                "ski rental: an idle replica is kept for its break-even time",
                "policy",
                seeded=False,
                modes=EPOCHS,
            ),
            "seasonal_naive": Method(
                "headroom.heuristics.gpu_selection_autoscaler:SeasonalNaive",
                "plans for the rates of a day before, scaled to the present level",
                "policy",
                seeded=False,
                modes=EPOCHS,
            ),
        }
    ),
    bounds=MappingProxyType(
        {
            "closed_form": BoundMethod(
                "headroom.bounds.gpu_selection:closed_form",
                "every item on its cheapest type, replicas divisible",
                "closed_form",
            ),
            "epoch_prices": BoundMethod(
                "headroom.bounds.gpu_selection_epoch_prices:epoch_prices",
                "Lagrangian over epochs: fleets priced by column generation, replicas by their cheapest paths",
                modes=EPOCHS,
            ),
            "lp": BoundMethod("headroom.bounds.gpu_selection:lp", "linear relaxation with caps and pools, by its multipliers", modes=POOLED),
            "column_generation": BoundMethod(
                "headroom.bounds.gpu_selection_patterns:column_generation_bound",
                "column generation over what a replica can hold, by its slice prices",
                modes=PER_REPLICA,
            ),
        }
    ),
    presets=MappingProxyType(
        {
            "toy": "two types, four buckets, 30 requests/s: optimum 6.70 USD/h at slices 1, 4.68 with continuous shares",
            "melange-4gpu-6x6": "36 buckets of a chat-like mix on L4, A10G, A100-80GB, H100",
            "melange-4gpu-10x6": "60 buckets of a chat-like mix on L4, A10G, A100-80GB, H100",
            "capped-20x1000": "1,000 buckets, 20 types, most of them capped",
            "replicas-toy": "the toy, every slice whole onto one replica",
            "replicas-6x6": "36 buckets of a chat-like mix on 4 types, every slice whole onto one replica",
            "replicas-10x6": "60 buckets of a chat-like mix on 4 types, every slice whole onto one replica",
            "azure-code-2024": "Azure 2023 code mix, 8B model on L4, A10G, A100-80GB, H100 at prices of 2024",
            "azure-chat-2024": "Azure 2023 chat mix, 8B model on L4, A10G, A100-80GB, H100 at prices of 2024",
            "mooncake-2024": "Mooncake's long prompts, 70B model on A100-80GB and H100 at TP 2, 4, 8, prices of 2024",
            "servegen-m-large-2024": "ServeGen m-large mix, 70B model on A100-80GB and H100 at TP 2, 4, 8, prices of 2024",
            "azure-chat-2026": "Azure 2023 chat mix, 70B model on H100 and H200 at TP 2, 4, 8, prices of May 2026",
            "mooncake-2026": "Mooncake's long prompts, 70B model on H100 and H200 at TP 2, 4, 8, prices of May 2026",
            "servegen-m-large-2026": "ServeGen m-large mix, 70B model on H100 and H200 at TP 2, 4, 8, prices of May 2026",
            "servegen-r1-2026": "ServeGen deepseek-r1 mix, DeepSeek-R1 on 16 H100, 8 or 16 H200, prices of May 2026",
            "mooncake-split-2026": "mooncake-2026 with prefill and decode apart, on pools of 48 H100 and 48 H200",
            "day-toy": "the toy over a day by the hour",
            "day-toy-slow-start": "the toy over a day by the hour, starts take an hour",
            "day-4gpu-6x6": "azure-chat-2024 over a day by the hour, peak 2.2 times the mean",
            "week-4gpu-6x6": "azure-chat-2024 over a week by the hour; about 9 replicas on average, with total_rate_per_s=28 about 5",
            "week-minutes-4gpu-6x6": "azure-chat-2024 over a week by the minute, starts take 3 minutes",
        }
    ),
    exporters=MappingProxyType(
        {
            "melange": Entry("headroom.export.gpu_selection:melange", "Mélange's result JSON {gpu: count, cost}", modes=POOLED),
            "csv": Entry("headroom.export.gpu_selection:csv_table", "a row for each GPU type and work item with a share", modes=POOLED),
            "deployment": Entry(
                "headroom.export.gpu_selection:deployment", "JSON for a router: replicas by type, routing shares by token range", modes=POOLED
            ),
            "schedule": Entry(
                "headroom.export.gpu_selection_modes:schedule", "JSON for a scaler and a router: replicas and routing, epoch by epoch", modes=EPOCHS
            ),
            "schedule-csv": Entry("headroom.export.gpu_selection_modes:schedule_csv", "a row for each epoch and GPU type rented in it", modes=EPOCHS),
            "assignment": Entry(
                "headroom.export.gpu_selection_modes:assignment",
                "JSON: every replica with the rates of each bucket that it serves",
                modes=PER_REPLICA,
            ),
        }
    ),
    sweeps=MappingProxyType(
        {
            "price": Entry("headroom.solvers.gpu_selection_sweeps:price", "price of a replica type, or of a GPU that several types are made of"),
            "cap": Entry("headroom.solvers.gpu_selection_sweeps:cap", "most replicas of a type, or most GPUs of a pool"),
            "floor": Entry("headroom.solvers.gpu_selection_sweeps:floor", "least replicas of a type"),
            "rate": Entry("headroom.solvers.gpu_selection_sweeps:rate", "total rate, the mix of requests staying as it is"),
        }
    ),
    limits="headroom.solvers.gpu_selection_sweeps:limits",
    options=MappingProxyType({"spare_replicas": "--spare"}),
)
