"""Baselines for request packing, under the names the field uses.

| objective | kind      | names                                                                                        | in `request_packing_` |
|-----------|-----------|----------------------------------------------------------------------------------------------|-----------------------|
| bins      | policy    | `NextFit`, `FirstFit`, `BestFit`, `WorstFit`, `AffinityFit`, `Harmonic`, `FirstFitPredicted` | `policies`            |
| bins      | heuristic | `ffd`, `bfd`, `ffd_prefix_blind`, `ffd_grouped`, `minimum_bin_slack`                         | `bins`                |
| makespan  | policy    | `FcfsSlots`, `Waves`, `SortedPreemptive`, `LptThreshold`, `TokenFill`, `LagrangianRule`      | `stage_policies`      |
| makespan  | policy    | the last four with `Predicted`: lengths are predicted, with errors                           | `stage_policies`      |
| makespan  | heuristic | `lpt`, `multifit`, `shortest_first`, `longest_first`                                         | `slots`               |

Online means: what a policy may see is said in `request_packing_online` (bins) and `request_packing_stages` (slots); offline ones see everything.
"""

from __future__ import annotations

from headroom.heuristics.request_packing_bins import bfd, ffd, ffd_grouped, ffd_prefix_blind, minimum_bin_slack
from headroom.heuristics.request_packing_online import replay
from headroom.heuristics.request_packing_policies import AffinityFit, BestFit, FirstFit, FirstFitPredicted, Harmonic, NextFit, WorstFit
from headroom.heuristics.request_packing_slots import longest_first, lpt, multifit, shortest_first
from headroom.heuristics.request_packing_stage_policies import (
    FcfsSlots,
    LagrangianRule,
    LagrangianRulePredicted,
    LptThreshold,
    LptThresholdPredicted,
    SortedPreemptive,
    SortedPreemptivePredicted,
    TokenFill,
    TokenFillPredicted,
    Waves,
)

__all__ = [
    "AffinityFit",
    "BestFit",
    "FcfsSlots",
    "FirstFit",
    "FirstFitPredicted",
    "Harmonic",
    "LagrangianRule",
    "LagrangianRulePredicted",
    "LptThreshold",
    "LptThresholdPredicted",
    "NextFit",
    "SortedPreemptive",
    "SortedPreemptivePredicted",
    "TokenFill",
    "TokenFillPredicted",
    "Waves",
    "WorstFit",
    "bfd",
    "ffd",
    "ffd_grouped",
    "ffd_prefix_blind",
    "longest_first",
    "lpt",
    "minimum_bin_slack",
    "multifit",
    "replay",
    "shortest_first",
]
