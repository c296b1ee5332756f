"""Staged prefill and decode: near-optimal schedules at any size, against closed-form bounds.

A plan is chains of requests, slot by slot, and stages at decode steps of our choice. Time passes in prefill or in decode steps, so the stages'
prompts say what prefill takes, and the longest path through the stages what decoding takes. Fewer, larger stages save prefill, more stages leave
slots idle less. The search begins with plans of simple rules, which weigh one against the other, and with designs that say how many stages there are
and how many prompt tokens each may hold; `slot_annealing` then lets the ends of requests coincide with stages. The best ones get the time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headroom.bounds.request_packing_staged import cover_of, decode_floor, stage_count, stage_cover, unservable
from headroom.formulations.progress import Progress
from headroom.formulations.request_packing import StagedPlan, evaluate
from headroom.formulations.tolerances import OPTIMALITY_GAP, relative_gap
from headroom.formulations.types import Bound, Outcome, Plan, SolveParams, Stop
from headroom.instances.request_packing import RequestPacking
from headroom.solvers.request_packing_makespan import cmax
from headroom.solvers.request_packing_staged_plans import chains_from, level_caps, plan_of
from headroom.solvers.request_packing_staged_starts import DESIGNS, designs, first_plans, other_plans, priced_plans
from headroom.solvers.slot_annealing import anneal
from headroom.solvers.slot_chains import Chains, chains_of, earliest, linked, stretched
from headroom.solvers.slot_lockstep import lockstep

IntArray = npt.NDArray[np.int64]
TINY = 6
"""Requests up to which the whole model is solved by HiGHS."""
MOST_COMPARED = 20_000
"""Requests up to which the plans of all rules are made: a few seconds."""
MOST_PRICED = 5_000
"""Requests up to which they are made, and rules tried at all prices, before the search settles on a few candidates."""
CHUNK = 1_000_000
"""Annealing moves between two looks at the clock: about 0.1 s."""
MOVES = 12_000
"""Annealing moves a request in a long round, up to MOST_MOVES."""
MOST_MOVES = 40_000_000
FEW_MOVES = 8_000_000
"""Annealing moves of the last rounds where requests are few."""
PATIENCE = 3
"""Long rounds without much gain after which the search ends."""
MUCH = 0.01
"""What is much, as a share of the gap that is left."""
RESTARTS = 2
"""Other beginnings of each of the two best designs."""
SAMPLE = 20_000
"""Requests on which batches of different widths are compared."""
MOST_WEIGHT = 1e9
"""Decode steps that a token above a stage's cap counts at most: where steps take next to no time, a sum with them in it stays a number."""
STYLES = ((1.0, 20.0), (0.0, 20.0), (1.0, 5.0), (0.0, 5.0))
"""Of the rounds at the end in turn: 1 where steps are measured by the outputs and 0 where by the stages' distance, and how hot."""


def staged(instance: RequestPacking, params: SolveParams, progress: Progress) -> Outcome:
    """Chains of requests through stages, annealed until ends and stages coincide; tiny instances by HiGHS. Anytime, any size.

    Bounds: `stage_cover` and `stage_count`. A prompt above the last level is named in a note (infeasible). Where prefill takes no time: `cmax`.
    Deterministic for a seed unless a limit cuts it off. O(N log N) a design, O(1) a move. A start
    plan, and whatever else is the incumbent, is one of the beginnings.
    """
    bounds = [bound(instance, params, progress) for bound in (stage_cover, stage_count)]
    for bound in bounds:
        progress.keep(bound)
    refused = unservable(instance)
    if refused:
        return Outcome(bounds=tuple(bounds), notes=(refused,))
    if not instance.level_s.any():
        found = cmax(instance, params, progress)
        return replace(found, bounds=(*bounds, *found.bounds))
    if instance.count <= TINY:
        return _tiny(instance, params, progress, bounds)
    stop = _Search(instance, params, progress).run()
    return Outcome(plan=progress.plan, bounds=tuple(bounds), stop=stop)


def _tiny(instance: RequestPacking, params: SolveParams, progress: Progress, bounds: list[Bound]) -> Outcome:
    from headroom.solvers.request_packing_highs import highs

    stop = _Search(instance, params, progress).run()
    if stop != "completed" or progress.gap <= OPTIMALITY_GAP:
        return Outcome(plan=progress.plan, bounds=tuple(bounds), stop=stop)
    best = max(bound.value for bound in bounds)
    found = highs(instance, params, progress)
    # Its word is only asked for where the closed forms leave a gap.
    solver_bounds = (bound for bound in found.bounds if bound.proof == "solver" and relative_gap(progress.objective, best) > OPTIMALITY_GAP)
    return Outcome(plan=progress.plan, bounds=(*bounds, *solver_bounds), stop=found.stop, solver=found.solver, notes=found.notes)


@dataclass
class _Candidate:
    """Chains, their earliest times, and the plan's seconds."""

    chains: Chains
    time: IntArray
    seconds: float
    decode_s: float
    shrink: float = 0.1
    by_outputs: float = 1.0
    """Whether steps are measured by the outputs (1) or by the stages' distance (0)."""

    def promises(self, floor_s: float, left: float) -> float:
        """Seconds if so much of the idle steps were left after more annealing."""
        return self.seconds - (1 - left) * (self.decode_s - floor_s)


class _Search:
    """Designs, then ever fewer of them with ever more annealing."""

    def __init__(self, instance: RequestPacking, params: SolveParams, progress: Progress) -> None:
        self.instance, self.params, self.progress = instance, params, progress
        self.rounds = min(MOST_MOVES, MOVES * instance.count)
        self.rng = params.rng()
        self.cover, self.floor = cover_of(instance), decode_floor(instance)
        self.delta = instance.decode_step_s or 0.0
        output, prompt = instance.requests.output_tokens, instance.requests.prompt_tokens
        self.scale = max(0.05, float(output.mean()) / 345)
        rate_s = self.cover.linear_s(self.cover.tokens[0], self.cover.stages) / max(1, self.cover.tokens[0])
        # What a token costs in steps of a slot; more where prefill is so cheap that stages would overflow to the next level.
        weight = (instance.slots or 1) * rate_s / self.delta
        self.token_weight = min(MOST_WEIGHT, max(weight, 0.06 * float(output.mean()) / max(1.0, float(prompt.mean()))))
        self.least_s = self.progress.bound * (1 + OPTIMALITY_GAP)
        self.reach = max(2, min(60, instance.count // 8))

    def run(self) -> Stop:
        """To the end, or until a limit says stop. A plan is offered before the first look at the clock."""
        given = [self.progress.plan] if isinstance(self.progress.plan, StagedPlan) else []
        stop = self._offer(first_plans(self.instance, self.params))
        if stop or self.done:
            return stop or "completed"
        alive: list[_Candidate] = []
        for plan in {id(plan): plan for plan in (self.progress.plan, *given) if isinstance(plan, StagedPlan)}.values():
            alive.append(self._round(self._from(plan), self.rounds // 60, 5.0))
        designed = self._designed(min((candidate.seconds for candidate in alive), default=math.inf))
        if not self.progress.should_stop():
            alive.append(self._round(self._in_step(), self.rounds // 60, 20.0))
        if self.instance.count > MOST_PRICED:
            # Something better soon: comparing takes long.
            best = min([*alive, *designed], key=lambda candidate: candidate.seconds)
            for hot in (5.0, 10.0, 10.0):
                best = self._round(best, self.rounds // 20, hot)
            alive.append(best)
        alive += self._priced()
        if self.instance.count <= MOST_PRICED:
            self._offer(other_plans(self.instance, self.params))
            best_s = min((candidate.seconds for candidate in alive), default=math.inf)
            if self.progress.objective < best_s and isinstance(self.progress.plan, StagedPlan):
                alive.append(self._from(self.progress.plan))
        stop = self.progress.should_stop() or self._settle(alive, designed)
        if stop == "completed" and MOST_PRICED < self.instance.count <= MOST_COMPARED:
            self._offer(other_plans(self.instance, self.params))
        return stop

    @property
    def done(self) -> bool:
        return self.progress.objective <= self.least_s

    def _offer(self, plans: Iterable[Plan | None], kept: list[tuple[float, StagedPlan]] | None = None) -> Stop | None:
        """Offer plans one by one, and look at the clock after each; all that are feasible are `kept`."""
        for plan in plans:
            if isinstance(plan, StagedPlan):
                self.progress.offer(plan)
                if kept is not None:
                    kept.append((evaluate(self.instance, plan).objective, plan))
            stop = self.progress.should_stop()
            if stop or self.done:
                return stop
        return None

    def _priced(self) -> list[_Candidate]:
        """The rule at other prices, improved a little."""
        found: list[tuple[float, StagedPlan]] = []
        if self.instance.count <= MOST_COMPARED:
            few = self.instance.count > MOST_PRICED
            self._offer(priced_plans(self.instance, self.params, 3 if few else 1), found)
        return [self._round(self._from(plan), self.rounds // 60, 5.0) for _, plan in found if not self.progress.should_stop()]

    def _designed(self, best: float) -> list[_Candidate]:
        """Designs, those with the quickest prefill first, improved a little."""
        alive: list[_Candidate] = []
        most = max(2, min(DESIGNS, 100_000 // self.instance.count))
        for prefill_s, caps in designs(self.instance, self.cover)[: 2 * most]:
            if len(alive) >= most or prefill_s + self.delta * self.floor >= best or self.progress.should_stop():
                break
            alive.append(self._round(self._start(caps), self.rounds // 60, 20.0))
            best = min(best, alive[-1].seconds)
        return alive

    def _settle(self, ruled: list[_Candidate], alive: list[_Candidate]) -> Stop:
        """Ever fewer candidates with ever more annealing, and rounds on the best until they are worth little."""
        many = self.instance.count > MOST_PRICED
        # Of many requests none has its time before there is a limit: the best one goes on, in shorter rounds.
        alive = [*ruled, *alive] if many else self._compared(ruled, alive)
        moves, stale = self.rounds // 10 if many else self.rounds, 0
        last = min(alive, key=lambda candidate: candidate.seconds)
        most = max(self.rounds, min(FEW_MOVES, 5 * self.rounds))
        for by_outputs, hot in itertools.cycle(STYLES):
            stop = self.progress.should_stop()
            if stop or self.done or stale == PATIENCE:
                return stop or "completed"
            before = last.seconds
            last.by_outputs = by_outputs
            last = self._round(last, moves, hot)
            if before - last.seconds < MUCH * (before - self.progress.bound):
                stale += moves >= most
                moves = min(most, 2 * moves)
            else:
                stale = 0
        raise AssertionError

    def _compared(self, ruled: list[_Candidate], alive: list[_Candidate]) -> list[_Candidate]:
        """The best of the candidates that began as plans, and the best design."""
        floor_s = self.floor * self.delta
        # Plans of rules are better at first, and designs often later: they do not compete before both have had their time.
        ruled = sorted(ruled, key=lambda candidate: candidate.promises(floor_s, 0.6))[:3]
        ruled = [self._round(candidate, self.rounds // 20, 5.0) for candidate in ruled]
        ruled = sorted(ruled, key=lambda candidate: candidate.seconds)[:1]
        alive = sorted(alive, key=lambda candidate: candidate.promises(floor_s, 0.3))[:5]
        alive = [self._round(candidate, self.rounds // 20, 10.0) for candidate in alive]
        alive = sorted(alive, key=lambda candidate: candidate.promises(floor_s, 0.6))[:2]
        # Where the very long requests came to stand matters and is hard to change later: other beginnings too.
        alive += [self._start(candidate.chains.cap[1:-1], True) for candidate in alive for _ in range(RESTARTS) if not self.progress.should_stop()]
        for moves in (self.rounds // 20, self.rounds // 5):
            alive = [self._round(candidate, moves, 20.0) for candidate in alive]
        ruled = [self._round(candidate, self.rounds // 5, 10.0) for candidate in ruled]
        alive = [*sorted(alive, key=lambda candidate: candidate.seconds)[:1], *ruled]
        for hot in (20.0, 5.0):
            alive = [self._round(candidate, self.rounds, hot) for candidate in alive]
        return alive

    def _from(self, plan: StagedPlan) -> _Candidate:
        return replace(self._measured(chains_from(self.instance, plan)), shrink=0.6, by_outputs=0.0)

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
        return self._measured(linked(output, prompt, slots, start, before, slot, batch, level_caps(self.instance, batch)))

    def _measured(self, chains: Chains) -> _Candidate:
        plan = plan_of(self.instance, chains)
        self.progress.offer(plan)
        found = evaluate(self.instance, plan)
        return _Candidate(chains, earliest(chains), found.objective, found.parts["decode_s"])

    def _round(self, candidate: _Candidate, moves: int, hot: float) -> _Candidate:
        """Anneal towards fewer steps; what is worse is dropped."""
        if self.progress.should_stop() or candidate.seconds <= self.least_s:
            return candidate
        steps, outputs = int(candidate.time[-1]), candidate.by_outputs
        scale = self.scale if outputs else max(0.05, steps / candidate.chains.stages / 60)
        chains = stretched(candidate.chains, candidate.time, self.floor + math.floor(candidate.shrink * (steps - self.floor)))
        cold = 0.1
        pieces = max(1, math.ceil(moves / CHUNK))
        for k in range(pieces):
            ratio = (cold / hot) ** (1 / pieces)
            self._anneal(chains, moves // pieces, scale * hot * ratio**k, scale * hot * ratio ** (k + 1), 1.0 if k + 1 < pieces else 4.0, scale)
            if self.progress.should_stop():
                if 2 * k < pieces:
                    return candidate  # too hot to be of use
                break
        if np.any(chains.load > chains.cap):
            self._anneal(chains, min(CHUNK, moves), scale * 0.3, scale * 0.1, 20.0, scale)
        made = self._measured(chains)
        made.by_outputs = outputs
        if made.seconds < candidate.seconds:
            # What was reached at the target can be had in fewer steps.
            made.shrink = 0.3 if int(made.time[-1]) <= int(chains.time[-1]) else 0.6
            return made
        # Near the steps that there are, nothing is asked for: begin again.
        candidate.shrink = 0.5 + 0.5 * candidate.shrink if candidate.shrink < 0.95 else 0.3
        return candidate

    def _anneal(self, chains: Chains, moves: int, hot: float, cold: float, stress: float, scale: float) -> None:
        anneal(chains, moves, hot, cold, self.token_weight * stress, self.reach, int(self.rng.integers(2**31)), scale)


__all__ = ["staged"]
