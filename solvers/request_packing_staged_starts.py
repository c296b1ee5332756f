"""Where the search of the staged problem begins: plans of simple rules, of rules at other prices, and designs of stages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from headroom.bounds.request_packing_staged import Cover
from headroom.formulations.types import Plan, SolveParams
from headroom.heuristics import request_packing as rules
from headroom.heuristics.request_packing_stages import SlotDeployment
from headroom.instances.request_packing import RequestPacking

IntArray = npt.NDArray[np.int64]
DESIGNS = 24
"""Designs that are tried at first."""
SPARE = 1.003
"""Tokens that stages have room for by prompt token: a stage is not filled to the last one."""
PRICES = (0.25, 0.5, 0.7, 1.4, 2.0, 3.0, 5.0, 10.0)
"""What stages cost by what they are said to cost, for `priced`."""
CHEAP = (rules.longest_first, rules.shortest_first)
KNOWING = (rules.TokenFill, rules.SortedPreemptive, rules.Waves, rules.FcfsSlots)
PREDICTING = (rules.LagrangianRulePredicted, rules.LptThresholdPredicted, rules.TokenFillPredicted, rules.SortedPreemptivePredicted)
MOST_PREDICTED = 5000
"""Requests up to which policies that err are replayed as well: they are seldom better than those that do not."""


def first_plans(instance: RequestPacking, params: SolveParams) -> Iterator[Plan | None]:
    """Plans of the rules that take least time, the quickest first."""
    for rule in CHEAP:
        yield rule(instance, params.rng())
    for policy in (rules.LptThreshold, rules.LagrangianRule):
        yield rules.replay(instance, policy, params.rng()).plan


def other_plans(instance: RequestPacking, params: SolveParams) -> Iterator[Plan | None]:
    """Plans of all other rules of the family, each with the generator that it has when it is run alone."""
    yield rules.lpt(instance, params.rng())
    yield rules.multifit(instance, params.rng())
    for policy in (*KNOWING, *(PREDICTING if instance.count <= MOST_PREDICTED else ())):
        yield rules.replay(instance, policy, params.rng()).plan


def priced_plans(instance: RequestPacking, params: SolveParams, every: int = 1) -> Iterator[Plan | None]:
    """Plans of `LagrangianRule` as if stages cost PRICES times as much: from many stages and slots that hardly idle to few stages.

    `every`: only each third, say.
    """
    for factor in PRICES[::every]:
        yield rules.replay(instance, priced(factor), params.rng()).plan


def priced(factor: float) -> type[rules.LagrangianRule]:
    """`LagrangianRule` for prefills that take `factor` times as long."""

    class Priced(rules.LagrangianRule):
        def __init__(self, deployment: SlotDeployment) -> None:
            super().__init__(replace(deployment, level_s=factor * deployment.level_s))

    return Priced


def designs(instance: RequestPacking, cover: Cover) -> list[tuple[float, IntArray]]:
    """Prefill seconds and tokens of each stage, for different numbers of stages, the quickest prefill first.

    So many stages hold the prompts with SPARE by two neighbouring levels of the lower hull of (tokens, seconds).
    """
    tokens, count = max(1.0, cover.tokens[0] * SPARE), instance.count
    fewest = max(cover.stages, min(count, math.ceil(tokens / cover.most[-1])))
    numbers = {fewest, count, *(max(fewest, min(count, math.ceil(tokens / most))) for most in cover.most if most)}
    grid = np.geomspace(fewest, count, DESIGNS)
    found = []
    for stages in sorted(numbers | set(np.round(grid).astype(int).tolist())):
        caps = _caps(cover, stages, tokens / stages)
        found.append((float(instance.prefill_s(caps).sum()), caps))
    return sorted(found, key=lambda design: design[0])


def _caps(cover: Cover, stages: int, mean: float) -> IntArray:
    """Tokens of so many stages that hold `mean` on average at the least seconds: two levels, spread evenly."""
    most, time_s = np.array(cover.most), np.array(cover.time_s)
    above = np.flatnonzero(most >= mean)
    if not len(above):
        return np.full(stages, most[-1], np.int64)
    best, pair = math.inf, (0, 0, 0.0)
    for high in above.tolist():
        for low in range(high + 1):
            share = 1.0 if low == high or most[low] >= mean else (mean - most[low]) / (most[high] - most[low])
            seconds = share * time_s[high] + (1 - share) * time_s[low]
            if seconds < best:
                best, pair = seconds, (low, high, share)
    low, high, share = pair
    larger = math.ceil(share * stages - 1e-9)
    turn = np.floor(np.arange(1, stages + 1) * larger / stages) > np.floor(np.arange(stages) * larger / stages)
    caps: IntArray = np.where(turn, most[high], most[low]).astype(np.int64)
    return caps


__all__ = ["designs", "first_plans", "other_plans", "priced", "priced_plans"]
