"""Between plans of the staged problem and chains of requests: each stage that admits something is a stage of the chains."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headroom.formulations.request_packing import StagedPlan, replay, staged_plan
from headroom.instances.request_packing import RequestPacking
from headroom.solvers.slot_chains import Chains, earliest, linked

IntArray = npt.NDArray[np.int64]


def chains_from(instance: RequestPacking, plan: StagedPlan) -> Chains:
    """The chains of a feasible plan; each stage's cap is the level that its prompts take. At their earliest times they end no later. O(N log N)."""
    run = replay(instance, plan)
    output, prompt = instance.requests.output_tokens, instance.requests.prompt_tokens
    node = np.unique(run.stage, return_inverse=True)[1] + 1
    order = np.lexsort((node, run.slot))
    follows = np.flatnonzero(run.slot[order[1:]] == run.slot[order[:-1]])
    before = np.full(instance.count, -1, np.int64)
    before[order[1:][follows]] = order[:-1][follows]
    return linked(output, prompt, instance.slots or 1, run.before[run.stage], before, run.slot, node, level_caps(instance, node))


def level_caps(instance: RequestPacking, node: IntArray) -> IntArray:
    """The tokens of the level that each stage takes, from the stage 1 .. K of each request [N]."""
    filled = np.zeros(int(node.max()) + 1, np.int64)
    np.add.at(filled, node, instance.requests.prompt_tokens)
    caps: IntArray = instance.level_tokens[np.searchsorted(instance.level_tokens, filled[1:])]
    return caps


def plan_of(instance: RequestPacking, chains: Chains) -> StagedPlan:
    """The plan of chains at their earliest times; a stage above its cap is split or prefilled at a higher level, whichever is quicker. O(N log N)."""
    time, node = earliest(chains), chains.start_of()
    return _plan_at(instance, time[node], chains.slot_of(), node, int(time[-1]), chains.cap)


def _plan_at(instance: RequestPacking, start: IntArray, slot: IntArray, node: IntArray, total: int, cap: IntArray) -> StagedPlan:
    """A plan from the decode step [N] at which each request starts; requests of one `node` are prefilled together where they fit."""
    order = np.lexsort((node, start))
    begins = np.flatnonzero(np.diff(start[order], prepend=-1))
    ends = np.append(start[order][begins[1:]], total)
    stages: list[tuple[IntArray, int]] = []
    for requests, now, then in zip(np.split(order, begins[1:]), start[order][begins].tolist(), ends.tolist(), strict=True):
        parts = _prefills(instance, requests, node[requests], cap)
        stages += [(np.stack([part, slot[part]], axis=1), 0) for part in parts[:-1]]
        stages.append((np.stack([parts[-1], slot[parts[-1]]], axis=1), then - now))
    return staged_plan(stages)


def _prefills(instance: RequestPacking, requests: IntArray, node: IntArray, cap: IntArray) -> list[IntArray]:
    """Requests that start at one decode step, shared out to prefills: as the nodes say, or packed anew where that is quicker."""
    of_node = np.split(requests, np.flatnonzero(np.diff(node)) + 1)
    caps = cap[node[np.append(0, np.flatnonzero(np.diff(node)) + 1)]].tolist()
    split = [part for group, most in zip(of_node, caps, strict=True) for part in _split(instance, group, most)]
    if len(of_node) == 1 or all(int(instance.requests.prompt_tokens[group].sum()) <= most for group, most in zip(of_node, caps, strict=True)):
        return split
    return min(split, _split(instance, requests, max(caps)), key=lambda parts: _seconds(instance, parts))


def _split(instance: RequestPacking, group: IntArray, cap: int) -> list[IntArray]:
    """One prefill, or several of at most `cap` tokens (first fit, longest prompts first), whichever is quicker."""
    prompt = instance.requests.prompt_tokens
    if int(prompt[group].sum()) <= cap:
        return [group]
    limit = max(min(cap, int(instance.level_tokens[-1])), int(prompt[group].max()))
    bins: list[list[int]] = []
    room: list[int] = []
    for j in group[np.argsort(-prompt[group], kind="stable")].tolist():
        size = int(prompt[j])
        b = next((b for b, left in enumerate(room) if left >= size), len(bins))
        if b == len(bins):
            bins.append([])
            room.append(limit)
        bins[b].append(j)
        room[b] -= size
    return min([group], [np.array(part) for part in bins], key=lambda parts: _seconds(instance, parts))


def _seconds(instance: RequestPacking, parts: list[IntArray]) -> float:
    return math.fsum(instance.prefill_s(np.array([instance.requests.prompt_tokens[part].sum() for part in parts])).tolist())


__all__ = ["chains_from", "level_caps", "plan_of"]
