"""Methods for KV tiering: those with bounds.

| method       | how                                                                               | bound                     |
|--------------|-----------------------------------------------------------------------------------|---------------------------|
| `lagrangian` | multipliers; plans guided by their prices, block by block; HiGHS where it is tiny | certificate: multipliers  |
| `highs`      | the Pyomo model by HiGHS: small instances                                         | HiGHS' word; closed forms |
"""

from __future__ import annotations

import math
from dataclasses import replace

from headroom.bounds.kv_tiering import bandwidth, hit_volume, lagrangian_bound
from headroom.bounds.kv_tiering_lagrangian import Multipliers
from headroom.bounds.kv_tiering_search import ROUNDS, Dual, search
from headroom.formulations.kv_tiering import TieringPlan, evaluate
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, Outcome, SolveParams
from headroom.heuristics.kv_tiering import balanced_static, belady
from headroom.instances.kv_tiering import KvTiering
from headroom.solvers.kv_tiering_highs import highs, model_arcs
from headroom.solvers.kv_tiering_primal import Schedules
from headroom.solvers.kv_tiering_sweeps import sensitivity

Rounds = tuple[tuple[float, int], ...]
FIRST_ROUNDS = 2
"""Rounds of ascent before the first schedules; the others follow when schedules no longer gain."""
IDLE_CYCLES, SMALL_IDLE_CYCLES, SMALL_BLOCK_STEPS = 3, 12, 100_000
"""Cycles without a better schedule after which the search ends; small instances, where a cycle takes a moment, have more."""
WORTH = 1e-4
"""A cycle that gains a smaller part is idle."""
DUAL_SHARE = 0.3
"""Part of a time limit that the first ascent may take."""
CLOSE_S = 10.0
"""Seconds that HiGHS has for it."""
MOST_SORTED_READS = 20_000_000
"""Above, the hit-volume bound is left out: it sorts all reads, some 150 bytes each, and is not needed where there are multipliers."""
MOST_BASELINE_READS = 1_000_000
"""Up to so many reads two baselines in hindsight come first: about a second."""
TINY_ARCS = 1_500
"""Up to so many arcs HiGHS closes what is left of the gap."""


def auto(instance: KvTiering) -> str:
    """The Lagrangian method at every size: it asks HiGHS itself where the model is tiny."""
    return "lagrangian"


def lagrangian(instance: KvTiering, params: SolveParams, progress: Progress) -> Outcome:
    """Plans and certified bounds at any size. Anytime; deterministic for a seed unless a limit cuts it off, whatever the number of threads.

    A round of the bound takes O(reads K^2 + T log T K^3), a sweep for schedules O(block-steps K^2); memory O(reads + T log T K^2).
    """
    given = progress.plan if isinstance(progress.plan, TieringPlan) else None
    if len(instance.reads.block) <= MOST_BASELINE_READS:
        # Whatever cuts the search short, it leaves no worse a plan than these, which take no compiled code and a moment.
        for baseline in (balanced_static, belady):
            if not progress.should_stop():
                progress.offer(baseline(instance, params.rng()))
    closed = (bandwidth, hit_volume) if len(instance.reads.block) <= MOST_SORTED_READS else (bandwidth,)
    bounds = {bound.method: bound for bound in (form(instance, params, progress) for form in closed)}
    for bound in bounds.values():
        progress.keep(bound)

    def stopped() -> bool:
        return progress.should_stop() is not None

    def ascend(dual: Dual, start: Multipliers | None, rounds: Rounds, until_s: float = math.inf) -> Multipliers:
        """Multipliers after some rounds of ascent, which ends in time; the live bound follows."""

        def left_s() -> float:
            return min(progress.remaining_s, until_s - progress.elapsed_s)

        def report(value: float, at: Multipliers) -> None:
            progress.raise_bound(dual.cautious(value, at))

        return search(dual, lambda: stopped() or left_s() <= 0, report, start, rounds, left_s)[1]

    with Dual(instance, params.threads) as dual:
        schedules = Schedules(instance, dual.items, params.rng(), params.threads, progress.offer, stopped, lambda: progress.remaining_s)
        try:
            schedules.begin(given)
            until = progress.elapsed_s + DUAL_SHARE * progress.remaining_s
            at = ascend(dual, None, ROUNDS[:FIRST_ROUNDS], until)
            bounds["lagrangian"] = _kept(instance, at, progress)
            idle, rounds = 0, ROUNDS[FIRST_ROUNDS:]
            patience = SMALL_IDLE_CYCLES if instance.block_steps <= SMALL_BLOCK_STEPS else IDLE_CYCLES
            while idle < patience and not stopped() and not _closed(progress):
                before = schedules.best_s
                schedules.cycle(at, bounds["lagrangian"].value)
                idle = 0 if before - schedules.best_s > WORTH * schedules.best_s else idle + 1
                if idle and rounds and not stopped():
                    at = ascend(dual, at, rounds[:1])
                    better = _kept(instance, at, progress)
                    rounds = rounds[1:] if better.value > bounds["lagrangian"].value * (1 + WORTH / 10) else ()
                    bounds["lagrangian"] = max(bounds["lagrangian"], better, key=lambda bound: bound.value)
        finally:
            schedules.close()
    found = tuple(bounds.values())
    details = {"sensitivity": sensitivity(instance, at)} if params.sensitivity else {}
    if not _closed(progress) and not stopped() and model_arcs(instance) <= TINY_ARCS:
        exact = _closed_by_highs(instance, params, progress)
        others = tuple(bound for bound in exact.bounds if bound.method not in bounds)
        return replace(exact, plan=progress.plan if exact.plan is None else exact.plan, bounds=found + others, details=details)
    return Outcome(progress.plan, found, progress.should_stop() or "completed", details=details)


def _closed_by_highs(instance: KvTiering, params: SolveParams, progress: Progress) -> Outcome:
    """What HiGHS makes of a tiny model in CLOSE_S seconds; where it gives up that is no reason to lose what stands."""
    limit_s = min(CLOSE_S, progress.remaining_s)
    within = Progress(replace(params, start=None, time_limit_s=limit_s), lambda plan: evaluate(instance, plan))
    within.follow(progress)
    if progress.plan is not None:
        within.offer(progress.plan)
    try:
        exact = highs(instance, within.params, within)
    except RuntimeError as error:  # numbers of very different sizes: HiGHS refuses the model, or says nothing that can be used
        return Outcome(stop=progress.should_stop() or "completed", notes=(f"HiGHS was asked to close the gap and did not: {error}",))
    if within.plan is not None:
        progress.offer(within.plan)
    return replace(exact, stop=progress.should_stop() or "completed")


def _kept(instance: KvTiering, at: Multipliers, progress: Progress) -> Bound:
    bound = lagrangian_bound(instance, at)
    progress.keep(bound)
    return bound


def _closed(progress: Progress) -> bool:
    return progress.gap <= 1e-7
