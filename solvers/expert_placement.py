"""Exact methods for expert placement: those with bounds.

| method         | how                                                                         | bound                              |
|----------------|-----------------------------------------------------------------------------|------------------------------------|
| `local_search` | exchanges, then annealing of every layer that is not at its floor           | closed forms                       |
| `highs`        | the Pyomo model by HiGHS: small instances                                   | HiGHS' word; closed forms          |
| `cpsat`        | an integer model for CP-SAT, layer by layer where layers share nothing      | CP-SAT's word; closed forms        |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from headroom.bounds.expert_placement import b_matching, chain_sdp, partitions_bound, search_configurations
from headroom.bounds.expert_placement import group as group_bound
from headroom.bounds.expert_placement import mean as mean_bound
from headroom.bounds.expert_placement import replica as replica_bound
from headroom.bounds.expert_placement_balance import balance_layers
from headroom.bounds.expert_placement_configurations import configurations_apply
from headroom.bounds.expert_placement_partitions import applies as splits_are_few
from headroom.bounds.expert_placement_partitions import best_chain, work
from headroom.bounds.expert_placement_sets import sets_apply
from headroom.formulations.expert_placement import ExpertPlan, build_model
from headroom.formulations.progress import Progress
from headroom.formulations.tolerances import OPTIMALITY_GAP
from headroom.formulations.types import Bound, Outcome, SolveParams
from headroom.heuristics.expert_placement_split import plan_of
from headroom.instances.expert_placement import ExpertPlacement
from headroom.solvers.expert_placement_balance import Layers
from headroom.solvers.expert_placement_front import applies as front_applies
from headroom.solvers.expert_placement_front import front
from headroom.solvers.expert_placement_mixed import mixed_needed, rename_devices, search_mixed
from headroom.solvers.expert_placement_parts import gaps
from headroom.solvers.expert_placement_sets import chain_of_sets, named_partitions
from headroom.solvers.expert_placement_traffic import Chain
from headroom.solvers.expert_placement_traffic import fits as chain_fits

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
SMALL_MODEL, LARGEST_MODEL = 400, 20_000
"""Up to so many binaries CP-SAT is asked to close what local search leaves open; beyond so many HiGHS does not even read the model in useful time."""
SMALL_AFTER = 2
"""Small layers are not annealed further once they have stalled so many times: CP-SAT settles them."""
WITHOUT_PRESOLVE = 2_000
PARTITION_SPEED_PER_S = 1e8
"""Additions of the recurrence over partitions, cautiously: it cannot be stopped halfway."""
CHAIN_SHARE, SETS_SHARE, MIXED_SHARE = 0.45, 0.15, 0.8
"""Part of the time left that annealing may take before the bounds have theirs; less where the bounds' prices bring better plans."""
CONFIGURATIONS_AT, CONFIGURATIONS_AFTER = 0.65, 2
"""The bound by what a device can hold is asked for after this part of the time, or when all layers have stalled so many times."""


def auto(instance: ExpertPlacement) -> str:
    """Local search: it asks CP-SAT itself where the model is tiny."""
    return "local_search"


def model_binaries(instance: ExpertPlacement) -> int:
    """About how many binary variables the Pyomo model has."""
    slots = instance.layers * instance.experts * instance.devices
    flows = 0
    if instance.weights.traffic > 0 and instance.transition is not None:
        flows = int((instance.transition > 0).sum()) * instance.devices**2
    return slots * (1 + instance.most_replicas) + flows


def closed_forms(instance: ExpertPlacement, params: SolveParams, progress: Progress) -> tuple[Bound, ...]:
    """All closed-form bounds, reported."""
    wanted = [mean_bound, replica_bound] + ([group_bound] if instance.group_limited else [])
    bounds = tuple(bound(instance, params, progress) for bound in wanted)
    for bound in bounds:
        progress.keep(bound)
    return bounds


def local_search(instance: ExpertPlacement, params: SolveParams, progress: Progress) -> Outcome:
    """Plans at any size, with a gap for each layer where balance counts. Anytime; deterministic for a seed unless a limit cuts it off."""
    bounds = list(closed_forms(instance, params, progress))
    if any(bound.value == math.inf for bound in bounds):
        return Outcome(bounds=tuple(bounds), notes=("the nodes cannot be filled with whole groups",))
    if chain_fits(instance):
        return _chain(instance, params, progress, bounds)
    layers = Layers(instance, params.rng(), params.threads, lambda: progress.should_stop() is not None)
    layers.pack()
    if isinstance(params.start, ExpertPlan) and progress.plan is params.start:
        layers.start_from(params.start.slot_expert)
    if instance.current_slot_expert is not None:
        progress.offer(plan_of(instance, instance.current_slot_expert))
    if np.isfinite(layers.value).all():
        progress.offer(plan_of(instance, _named(instance, layers.slot_expert())))
    if mixed_needed(instance):
        _mixed(instance, params, progress, layers.slot_expert())
        if progress.gap > OPTIMALITY_GAP and configurations_apply(instance):
            bound, proved = search_configurations(instance, params, progress)
            bounds.append(bound)
            layers.floor = np.maximum(layers.floor, proved)
    else:
        bounds += _balance(instance, params, progress, layers)
    if instance.weights.traffic > 0:
        bounds += _traffic_bounds(instance, params, progress)
    solver = None
    if progress.gap > OPTIMALITY_GAP and model_binaries(instance) <= SMALL_MODEL and progress.should_stop() is None:
        answer = cpsat(instance, params, progress)
        bounds += [bound for bound in answer.bounds if bound.proof == "solver"]
        solver = answer.solver
    stop = progress.should_stop() or "completed"
    details = gaps(instance, progress.plan, bounds, layers.floor)
    return Outcome(plan=progress.plan, bounds=tuple(bounds), stop=stop, solver=solver, details=details)


def _mixed(instance: ExpertPlacement, params: SolveParams, progress: Progress, balanced: IntArray) -> None:
    """More than balance counts: the front of moves where a cap is all that layers share, else layers against their neighbours."""
    if instance.max_moves is not None and front_applies(instance):
        for plan in front(instance, [instance.max_moves], [plan_of(instance, balanced)], params, progress).values():
            progress.offer(plan)
        return
    until = progress.elapsed_s + (MIXED_SHARE if instance.weights.traffic > 0 else 1.0) * progress.remaining_s
    search_mixed(instance, params, progress, balanced, lambda: progress.should_stop() is not None or progress.elapsed_s > until)


def _balance(instance: ExpertPlacement, params: SolveParams, progress: Progress, layers: Layers) -> list[Bound]:
    """Layers annealed round by round; in between, once, the bound by what one device can hold."""

    def anneal(until: Callable[[], bool]) -> None:
        layers.stop = lambda: progress.should_stop() is not None or until()
        for _ in layers.rounds():
            progress.offer(plan_of(instance, _named(instance, layers.slot_expert())))

    bounds: list[Bound] = []
    if configurations_apply(instance):
        ask_at_s = progress.elapsed_s + CONFIGURATIONS_AT * progress.remaining_s
        anneal(lambda: progress.elapsed_s > ask_at_s or bool((layers.level[layers.open_layers()] >= CONFIGURATIONS_AFTER).all()))
        if progress.gap > OPTIMALITY_GAP:
            bound, proved = search_configurations(instance, params, progress)
            layers.floor = np.maximum(layers.floor, proved)
            bounds.append(bound)
    small = model_binaries(instance) <= SMALL_MODEL
    anneal(lambda: small and bool((layers.level[layers.open_layers()] >= SMALL_AFTER).all()))
    return bounds


def _named(instance: ExpertPlacement, slot_expert: IntArray) -> IntArray:
    """Devices renamed so that as little as possible moves, where names do not matter otherwise."""
    return slot_expert if instance.weights.traffic > 0 or slot_expert.min() < 0 else rename_devices(instance, slot_expert)


def _chain(instance: ExpertPlacement, params: SolveParams, progress: Progress, bounds: list[Bound]) -> Outcome:
    """Traffic alone, every expert once: exact by dynamic programming over partitions where they are few, else annealing and the bounds."""
    if splits_are_few(instance) and work(instance) / PARTITION_SPEED_PER_S < progress.remaining_s:
        kept, blocks = best_chain(instance)
        bounds.append(partitions_bound(instance, kept))
        progress.keep(bounds[-1])
        progress.offer(plan_of(instance, named_partitions(instance, blocks)))
    if progress.gap > OPTIMALITY_GAP:
        until = progress.elapsed_s + (SETS_SHARE if sets_apply(instance) else CHAIN_SHARE) * progress.remaining_s
        chain = Chain(
            instance, params.rng(), params.threads, lambda: progress.should_stop() is not None or progress.elapsed_s > until,
            lambda: until - progress.elapsed_s,
        )  # fmt: skip
        progress.offer(plan_of(instance, chain.slot_expert()))
        if isinstance(progress.plan, ExpertPlan):
            chain.start_from(progress.plan.slot_expert)
        for _ in chain.rounds():
            progress.offer(plan_of(instance, chain.slot_expert()))
        bounds += _traffic_bounds(instance, params, progress)
    details = gaps(instance, progress.plan, bounds)
    return Outcome(plan=progress.plan, bounds=tuple(bounds), stop=progress.should_stop() or "completed", details=details)


def _traffic_bounds(instance: ExpertPlacement, params: SolveParams, progress: Progress) -> list[Bound]:
    """b-matching, then chains of sets where they are few, else the semidefinite chain where it applies."""
    found = []
    for method in (b_matching, chain_of_sets if sets_apply(instance) else chain_sdp):
        bound = method(instance, params, progress)
        progress.keep(bound)
        found.append(bound)
        if progress.gap <= OPTIMALITY_GAP:
            break
    return [bound for bound in found if bound.value > -math.inf]


def highs(instance: ExpertPlacement, params: SolveParams, progress: Progress) -> Outcome:
    """The Pyomo model solved by HiGHS; its bound is its own word."""
    from headroom.solvers.highs import solve_mip
    from headroom.solvers.standard_form import standard_form

    bounds = closed_forms(instance, params, progress)
    size = model_binaries(instance)
    if size > LARGEST_MODEL:
        note = f"the model has about {size:,} variables, more than HiGHS can use ({LARGEST_MODEL:,})"
        return Outcome(plan=progress.plan, bounds=bounds, notes=(note,))
    form = standard_form(build_model(instance))
    scale = float(np.abs(form.cost).max(initial=0.0)) or 1.0  # HiGHS' tolerances are absolute
    form = replace(form, cost=form.cost / scale)

    def offer(x: FloatArray) -> None:
        slot_expert = np.zeros((instance.layers, instance.slots), dtype=np.int64)
        filled = np.zeros((instance.layers, instance.devices), dtype=np.int64)
        for (layer, e, d), value in form.values(form.model.x, x).items():
            for _ in range(round(value)):
                if filled[layer, d] < instance.slots_per_device:
                    slot_expert[layer, d * instance.slots_per_device + filled[layer, d]] = e
                    filled[layer, d] += 1
        if (filled == instance.slots_per_device).all():
            progress.offer(plan_of(instance, slot_expert))

    # Presolve of HiGHS 1.14 called feasible models of ours infeasible; small ones lose no time without it.
    options = {"presolve": "off"} if size <= WITHOUT_PRESOLVE else None
    answer = solve_mip(form, params, progress, offer, None, options, scale)
    if answer.x is not None:
        offer(answer.x)
    if answer.status == "infeasible" and progress.plan is None:
        bounds = (*bounds, Bound(math.inf, "highs", "solver"))
    elif -math.inf < answer.bound * scale <= progress.objective * (1 + OPTIMALITY_GAP):
        bounds = (*bounds, Bound(min(answer.bound * scale, progress.objective), "highs", "solver"))
    details = {"nodes": answer.nodes} | gaps(instance, progress.plan, bounds)
    return Outcome(plan=progress.plan, bounds=bounds, stop=answer.stop, solver=answer.solver, details=details)


def cpsat(instance: ExpertPlacement, params: SolveParams, progress: Progress) -> Outcome:
    """Scaled to integers and solved by CP-SAT (see `expert_placement_cpsat`), from a placement by exchanges; its bound is its own word."""
    from headroom.solvers.expert_placement_cpsat import LARGEST_MODEL, WORTH_A_FLOOR, Search, model_size

    bounds = closed_forms(instance, params, progress)
    if any(bound.value == math.inf for bound in bounds):
        return Outcome(bounds=bounds, notes=("the nodes cannot be filled with whole groups",))
    size = model_size(instance)
    if size > LARGEST_MODEL:
        note = f"the model has about {size:,} variables, more than CP-SAT can use ({LARGEST_MODEL:,})"
        return Outcome(plan=progress.plan, bounds=bounds, notes=(note,))
    if instance.current_slot_expert is not None:
        progress.offer(plan_of(instance, instance.current_slot_expert))
    layers = Layers(instance, params.rng(), params.threads, lambda: progress.should_stop() is not None)
    layers.pack()
    if np.isfinite(layers.value).all():
        progress.offer(plan_of(instance, _named(instance, layers.slot_expert())))
    if instance.weights.traffic > 0:  # a bound that verify can recheck
        bounds = (*bounds, b_matching(instance, params, progress))
        progress.keep(bounds[-1])
    floor = balance_layers(instance)
    if size > WORTH_A_FLOOR and progress.gap > OPTIMALITY_GAP and instance.weights.balance > 0 and configurations_apply(instance):
        bound, floor = search_configurations(instance, params, progress)
        bounds = (*bounds, bound)
    search = Search(instance, params, progress, floor)
    stop = search.run()
    if search.bound == math.inf and progress.plan is None:
        bounds = (*bounds, Bound(math.inf, "cpsat", "solver"))
    elif -math.inf < search.bound <= progress.objective * (1 + OPTIMALITY_GAP):
        bounds = (*bounds, Bound(min(search.bound, progress.objective), "cpsat", "solver"))
    note = f"coefficients scaled to integers: at most {search.loss:.1e} of the bound lost"
    details = gaps(instance, progress.plan, bounds, floor)
    return Outcome(plan=progress.plan, bounds=bounds, stop=stop, solver=search.solver, notes=(note,), details=details)


__all__ = ["auto", "cpsat", "highs", "local_search"]
