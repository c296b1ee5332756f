"""Staged prefill and decode: near-optimal schedules at any size, against closed-form bounds.

A plan is chains of requests, slot by slot, and stages at decode steps of our choice. Time passes in prefill or in decode steps, so the stages'
prompts say what prefill takes, and the longest path through the stages what decoding takes. A design says how many stages there are and how many
prompt tokens each may hold; `slot_annealing` then lets the ends of requests coincide with stages. Designs with fewer, larger stages save prefill,
designs with more stages leave slots idle less: several are tried, and the best ones get the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headroom.bounds.request_packing_staged import Cover, cover_of, decode_floor, stage_count, stage_cover, unservable
from headroom.formulations.progress import Progress
from headroom.formulations.request_packing import StagedPlan, evaluate, staged_plan
from headroom.formulations.tolerances import OPTIMALITY_GAP
from headroom.formulations.types import Bound, Outcome, SolveParams, Stop
from headroom.instances.request_packing import RequestPacking
from headroom.solvers.slot_annealing import Chains, anneal, chains_of, earliest, linked, listed, stretched
from headroom.solvers.slot_lockstep import lockstep

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
TINY = 6
"""Requests up to which the whole model is solved by HiGHS."""
DESIGNS = 24
"""Designs that are tried at first."""
CHUNK = 1_000_000
"""Annealing moves between two looks at the clock: about 0.1 s."""
MOVES = 12_000
"""Annealing moves a request in a round of the last phase, up to MOST_MOVES."""
MOST_MOVES = 40_000_000
ROUNDS = 4
"""Rounds of the last phase."""
RESTARTS = 2
"""Other beginnings of each of the two best designs."""
SAMPLE = 20_000
"""Requests on which batches of different widths are compared."""
SPARE = 1.003
"""Tokens that stages have room for by prompt token: a stage is not filled to the last one."""


def staged(instance: RequestPacking, params: SolveParams, progress: Progress) -> Outcome:
    """Chains of requests through stages, annealed until ends and stages coincide; tiny instances by HiGHS. Anytime, any size.

    Bounds: `stage_cover` and `stage_count`. A prompt above the last level is named in a note (infeasible). Without prefill levels: the longest
    request first to the slot that is free first (P||Cmax). Deterministic for a seed unless a limit cuts it off. O(N log N) a design, O(1) a move.
    """
    bounds = [bound(instance, params, progress) for bound in (stage_cover, stage_count)]
    for bound in bounds:
        progress.keep(bound)
    refused = unservable(instance)
    if refused:
        return Outcome(bounds=tuple(bounds), notes=(refused,))
    if not instance.prefill_levels:
        progress.offer(_longest_first(instance))
        return Outcome(plan=progress.plan, bounds=tuple(bounds), stop=progress.should_stop() or "completed")
    if instance.count <= TINY:
        return _tiny(instance, params, progress, bounds)
    stop = _Search(instance, params, progress).run()
    return Outcome(plan=progress.plan, bounds=tuple(bounds), stop=stop)


def _tiny(instance: RequestPacking, params: SolveParams, progress: Progress, bounds: list[Bound]) -> Outcome:
    from headroom.solvers.request_packing_highs import highs

    stop = _Search(instance, params, progress).run()
    if stop != "completed" or progress.gap <= OPTIMALITY_GAP:
        return Outcome(plan=progress.plan, bounds=tuple(bounds), stop=stop)
    found = highs(instance, params, progress)
    solver_bounds = (bound for bound in found.bounds if bound.proof == "solver")
    return Outcome(plan=progress.plan, bounds=(*bounds, *solver_bounds), stop=found.stop, solver=found.solver)


def _longest_first(instance: RequestPacking) -> StagedPlan:
    output = instance.requests.output_tokens
    start, _, slot = listed(output, instance.slots or 1, np.argsort(-output, kind="stable"))
    return _plan_at(instance, start, slot, start, int((start + output).max()), instance.level_tokens)


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
    if not instance.prefill_levels:
        return [requests]
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


def designs(instance: RequestPacking, cover: Cover) -> list[tuple[float, IntArray]]:
    """Prefill seconds and tokens of each stage, for different numbers of stages, the quickest prefill first.

    So many stages hold the prompts with SPARE by two neighbouring levels of the lower hull of (tokens, seconds).
    """
    tokens, count = max(1.0, cover.tokens[0] * SPARE), instance.count
    numbers = {cover.stages, count, *(max(cover.stages, min(count, math.ceil(tokens / most))) for most in cover.most if most)}
    grid = np.geomspace(cover.stages, count, DESIGNS)
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


@dataclass
class _Candidate:
    """Chains, their earliest times, and the plan's seconds."""

    chains: Chains
    time: IntArray
    seconds: float
    decode_s: float
    shrink: float = 0.1

    def promises(self, floor_s: float, left: float) -> float:
        """Seconds if so much of the idle steps were left after more annealing."""
        return self.seconds - (1 - left) * (self.decode_s - floor_s)


class _Search:
    """Designs, then ever fewer of them with ever more annealing."""

    def __init__(self, instance: RequestPacking, params: SolveParams, progress: Progress) -> None:
        self.instance, self.progress = instance, progress
        self.rng = params.rng()
        self.cover, self.floor = cover_of(instance), decode_floor(instance)
        self.delta = instance.decode_step_s or 0.0
        output, prompt = instance.requests.output_tokens, instance.requests.prompt_tokens
        self.scale = max(0.05, float(output.mean()) / 345)
        rate_s = self.cover.linear_s(self.cover.tokens[0], self.cover.stages) / max(1, self.cover.tokens[0])
        # What a token costs in steps of a slot; more where prefill is so cheap that stages would overflow to the next level.
        weight = (instance.slots or 1) * rate_s / self.delta
        self.token_weight = max(weight, 0.06 * float(output.mean()) / max(1.0, float(prompt.mean())))
        self.least_s = self.progress.bound * (1 + OPTIMALITY_GAP)
        self.reach = max(2, min(60, instance.count // 8))

    def run(self) -> Stop:
        """To the end, or until a limit says stop. A plan is offered before the first look at the clock."""
        alive = [self._in_step()]
        rounds = min(MOST_MOVES, MOVES * self.instance.count)
        most = max(1, min(DESIGNS, 20_000_000 // self.instance.count))
        best = alive[0].seconds
        for prefill_s, caps in designs(self.instance, self.cover)[: 2 * most]:
            if len(alive) > most or prefill_s + self.delta * self.floor >= best:
                break
            stop = self.progress.should_stop()
            if stop:
                return stop
            made = self._start(caps)
            alive.append(self._round(made, rounds // 60, 20.0))
            best = min(best, alive[-1].seconds)
        floor_s = self.floor * self.delta
        alive = sorted(alive, key=lambda candidate: candidate.promises(floor_s, 0.3))[:5]
        alive = [self._round(candidate, rounds // 20, 10.0) for candidate in alive]
        alive = sorted(alive, key=lambda candidate: candidate.promises(floor_s, 0.6))[:2]
        # Where the very long requests came to stand matters and is hard to change later: other beginnings too.
        alive += [self._start(candidate.chains.cap[1:-1], True) for candidate in alive for _ in range(RESTARTS) if not self.progress.should_stop()]
        for moves in (rounds // 20, rounds // 5):
            alive = [self._round(candidate, moves, 20.0) for candidate in alive]
        last = min(alive, key=lambda candidate: candidate.seconds)
        for k in range(ROUNDS):
            stop = self.progress.should_stop()
            if stop:
                return stop
            last = self._round(last, rounds, 20.0 if k % 2 == 0 else 5.0)
        return self.progress.should_stop() or "completed"

    def _start(self, caps: IntArray, again: bool = False) -> _Candidate:
        """A list schedule, long requests mostly first: the short ones at the end let the slots end together."""
        output = self.instance.requests.output_tokens
        # What is left of a slot after a very long request is no time for a stage of its own: too few requests are that short. Where many are so
        # long, slots cannot be left.
        until = self.floor - 0.5 * float(output.mean())
        if int((output > until).sum()) > 0.02 * (self.instance.slots or 1):
            until = math.inf
        # Few requests: the first beginning of a design without chance, as few stages can be met by few orders only.
        noise = 0.3 if len(output) >= 200 or again else 0.0
        order = np.argsort(noise * self.rng.normal(size=len(output)) - np.log(output), kind="stable")
        chains = chains_of(output, self.instance.requests.prompt_tokens, self.instance.slots or 1, order, caps, until)
        return self._measured(chains)

    def _in_step(self) -> _Candidate:
        """Batches of about equally long requests; level and width as they do best on a sample."""
        output, prompt, slots = self.instance.requests.output_tokens, self.instance.requests.prompt_tokens, self.instance.slots or 1
        some = np.sort(self.rng.choice(len(output), min(len(output), SAMPLE), replace=False))
        mean = max(1.0, float(prompt.mean()))
        widths = {(most, max(1, min(slots, int(share * most / mean)))) for most in self.cover.most for share in (0.8, 0.87, 0.92, 0.96, 1.0)}

        def seconds(choice: tuple[int, int]) -> float:
            start, _, _, batch = lockstep(output[some], prompt[some], slots, *choice)
            filled = np.bincount(batch, prompt[some])[1:].astype(np.int64)
            return float(self.instance.prefill_s(filled).sum()) + self.delta * float((start + output[some]).max())

        cap, width = min(sorted(widths), key=seconds)
        start, before, slot, batch = lockstep(output, prompt, slots, cap, width)
        filled = np.bincount(batch, prompt)[1:].astype(np.int64)
        levels = self.instance.level_tokens
        caps = levels[np.searchsorted(levels, filled)]
        return self._measured(linked(output, prompt, slots, start, before, slot, batch, caps))

    def _measured(self, chains: Chains) -> _Candidate:
        plan = plan_of(self.instance, chains)
        self.progress.offer(plan)
        found = evaluate(self.instance, plan)
        return _Candidate(chains, earliest(chains), found.objective, found.parts["decode_s"])

    def _round(self, candidate: _Candidate, moves: int, hot: float) -> _Candidate:
        """Anneal towards fewer steps; what is worse is dropped."""
        if self.progress.should_stop() or candidate.seconds <= self.least_s:
            return candidate
        steps = int(candidate.time[-1])
        chains = stretched(candidate.chains, candidate.time, self.floor + math.floor(candidate.shrink * (steps - self.floor)))
        cold = 0.1
        pieces = max(1, math.ceil(moves / CHUNK))
        for k in range(pieces):
            ratio = (cold / hot) ** (1 / pieces)
            self._anneal(chains, moves // pieces, hot * ratio**k, hot * ratio ** (k + 1), 1.0 if k + 1 < pieces else 4.0)
            if self.progress.should_stop():
                break
        if np.any(chains.load > chains.cap):
            self._anneal(chains, min(CHUNK, moves), 0.3, 0.1, 20.0)
        made = self._measured(chains)
        if made.seconds < candidate.seconds:
            # What was reached at the target can be had in fewer steps.
            made.shrink = 0.3 if int(made.time[-1]) <= int(chains.time[-1]) else 0.6
            return made
        candidate.shrink = 0.5 + 0.5 * candidate.shrink
        return candidate

    def _anneal(self, chains: Chains, moves: int, hot: float, cold: float, stress: float) -> None:
        seed = int(self.rng.integers(2**31))
        anneal(chains, moves, hot * self.scale, cold * self.scale, self.token_weight * stress, self.reach, seed, self.scale)


__all__ = ["designs", "plan_of", "staged"]
