"""P||Cmax: the makespan where prefill takes no time. The requests of a slot run one after the other; the least greatest sum of outputs is sought.

A target T, the best bound, is attacked from both sides until one gives way: local search and depth-first search look for loads of at most T; column
prices and the same depth-first search, when it has seen everything, show that there are none, and T rises.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from headroom.bounds.request_packing_makespan import SAFE, dual_feasible, lifted, pigeonhole, price_proof, priceable, seconds, slots_of
from headroom.formulations.progress import Progress
from headroom.formulations.request_packing import StagedPlan, staged_plan
from headroom.formulations.types import Bound, Outcome, SolveParams
from headroom.instances.request_packing import RequestPacking
from headroom.solvers.bin_columns import items_of
from headroom.solvers.bin_packing import Found, assign, pack
from headroom.solvers.machine_loads import core, longest_first, multifit
from headroom.solvers.machine_loads_columns import LAST_MACHINES, refuting_prices, rounded
from headroom.solvers.machine_loads_search import improve, split
from headroom.solvers.worker import Worker

IntArray = npt.NDArray[np.int64]
T = TypeVar("T")
FIRST_NODES: Final = 2**17
MOST_NODES: Final = 2**30
"""Of the last depth-first search: a minute or two."""
MOST_OFFERED: Final = 20_000
"""Requests up to which every better plan is made at once; a plan of 10^5 takes a second, so of larger ones only the first and the last are."""
MOST_SEARCHED: Final = 400
"""Jobs up to which a depth-first search of the whole is tried."""
AS_BINS_S: Final = 10.0
"""Seconds that bin packing gets where a first search has not settled a target."""
FIRST_ROUNDS: Final = 2000
BLUR: Final = (0.0, None, 0.03, 0.3)
"""Starts of the local search, one after the other: LPT with lengths blurred by so much, None: the best assignment. LPT and MULTIFIT may leave all
short jobs in one place, where exchanges reach nothing."""
MOST_EACH: Final = 10
"""Jobs a machine up to which the linear relaxation is asked; with more it is hardly above the mean."""


def cmax(instance: RequestPacking, params: SolveParams, progress: Progress) -> Outcome:
    """The least makespan without prefill time, with bounds. Anytime; deterministic for a seed unless a limit cuts it off.

    Where prefill takes time the plan is one that ignores it, and the bounds hold. Exponential in the worst case; local search is O(N) a round.
    """
    return _Search(instance, params, progress).run()


class _Search:
    def __init__(self, instance: RequestPacking, params: SolveParams, progress: Progress) -> None:
        self.instance, self.params, self.progress = instance, params, progress
        self.length = instance.requests.output_tokens
        self.machines = min(slots_of(instance), instance.count)
        self.bounds: dict[str, Bound] = {}
        self.low = 0
        self.high = int(self.length.sum()) + 1
        self.best = np.zeros(instance.count, np.int64)
        self.withheld = False
        self.flag = np.zeros(1, np.int64)

    def run(self) -> Outcome:
        progress = self.progress
        first = pigeonhole(self.instance, self.params, progress)
        if first.value == math.inf:
            return Outcome(None, (first,))
        self.raise_to(first)
        self.take(longest_first(self.length, self.machines))
        if not self.closed and self.instance.count <= MOST_EACH * self.machines:
            found = multifit(self.length, self.machines, self.low, self.high - 1)
            if found is not None:
                self.take(found)
        for seed in range(len(BLUR)):
            if not self.closed and not progress.should_stop():
                self.local_search(self.low, FIRST_ROUNDS // 2, seed)
        if not self.closed and not progress.should_stop():
            self.raise_to(dual_feasible(self.instance, self.params, progress))
        while not self.closed and not progress.should_stop():
            if not self.settle(self.low):
                break
        if self.withheld:
            progress.offer(plan_of(self.instance, self.best))
        return Outcome(progress.plan, tuple(self.bounds.values()), "completed" if self.closed else progress.should_stop() or "completed")

    @property
    def closed(self) -> bool:
        return self.high <= self.low

    def raise_to(self, bound: Bound) -> None:
        """Keep a bound; `low` is the least number of steps that take so long."""
        self.bounds[bound.method] = bound
        self.progress.keep(bound)
        steps = round(bound.value / (self.instance.decode_step_s or 1.0))
        while seconds(self.instance, steps) < bound.value:
            steps += 1
        while steps and seconds(self.instance, steps - 1) >= bound.value:
            steps -= 1
        self.low = max(self.low, steps)

    def take(self, machine: IntArray) -> None:
        """Offer an assignment when it is better than all before."""
        loads = np.zeros(self.machines, np.int64)
        np.add.at(loads, machine, self.length)
        greatest = int(loads.max())
        if greatest >= self.high:
            return
        first = self.progress.plan is None
        self.high, self.best = greatest, machine
        self.withheld = len(machine) > MOST_OFFERED and not (first or self.closed)
        if not self.withheld:
            self.progress.offer(plan_of(self.instance, machine))

    def obedient(self, call: Callable[[], T]) -> T | None:
        """Run compiled code that reads the flag, and raise it when it is time to stop."""

        def ask() -> None:
            self.flag[0] = 1

        return Worker(call, ask, lambda: None).run(self.progress)[0]

    def local_search(self, target: int, rounds: int, seed: int = 0) -> bool:
        """Towards loads of at most `target`, from LPT of what is left to decide, with blurred lengths, or from the best assignment at hand."""
        part = core(self.length, self.machines, self.low, self.high)
        length = self.length[part.jobs]
        blur = BLUR[seed % len(BLUR)]
        if blur is None and not (self.best[part.jobs] >= part.machines).any():
            start = self.best[part.jobs]
        else:
            noise = np.random.default_rng([self.params.seed, seed]).random(len(length))
            # Finer than a step, as far as the sum of all stays a whole number of 64 bits.
            finer = min(1024, max(1, SAFE // (2 * int(self.length.sum()))))
            start = longest_first(np.rint(length * (1 + (blur or 0.0) * noise) * finer).astype(np.int64), part.machines)
        found = self.obedient(lambda: improve(length, start, part.machines, target, self.params.seed + seed, rounds, self.flag))
        if found is not None:
            self.take(part.whole(found[0]))
        return self.high <= target

    def settle(self, target: int) -> bool:
        """Decide whether loads of at most `target`, the bound, are enough; False when it could not be decided."""
        length, copies = np.unique(self.length, return_counts=True)
        small = self.instance.count <= MOST_EACH * self.machines and priceable(length, copies, target)
        prices = refuting_prices(length, copies, self.machines, target, self.progress) if small else None
        proof = None if prices is None else price_proof(length, copies, self.machines, target, prices)
        if proof is not None:
            value = seconds(self.instance, lifted(self.length, target + 1))
            self.raise_to(Bound(value, "dual_bin_packing", "certificate", proof))
            return True
        nodes, rounds, seed = FIRST_NODES, FIRST_ROUNDS, len(BLUR)
        while nodes <= MOST_NODES and not self.progress.should_stop():
            part = core(self.length, self.machines, target, self.high)
            if len(part.jobs) <= MOST_SEARCHED:
                length = self.length[part.jobs]
                answer = self.obedient(lambda: split(length, part.machines, target, nodes, stop=self.flag))  # noqa: B023
                if answer is not None and answer[0] is not None:
                    if answer[0]:
                        self.take(part.whole(answer[1]))
                    else:
                        self.raise_to(Bound(seconds(self.instance, lifted(self.length, target + 1)), "search", "solver"))
                    return True
            if small and part.machines > LAST_MACHINES:
                length = self.length[part.jobs]
                rng = np.random.default_rng([self.params.seed, seed])
                dived = rounded(length, part.machines, target, self.progress, rng, self.flag)
                if dived is not None:
                    self.take(part.whole(dived))
                    return True
            for _ in range(4):
                if self.progress.should_stop() or self.local_search(target, rounds, seed):
                    return True
                seed += 1
            if small and nodes == FIRST_NODES and len(part.jobs) <= MOST_SEARCHED and self.as_bins(part.jobs, part.machines, part.whole, target):
                return True
            nodes, rounds = 2 * nodes, min(2 * rounds, 64 * FIRST_ROUNDS)
        return False

    def as_bins(self, jobs: IntArray, machines: int, whole: Callable[[IntArray], IntArray], target: int) -> bool:
        """The same question to bin packing, with its lists of patterns: do these jobs fit into so many bins of `target`?"""
        length = self.length[jobs]
        items = items_of(length, target)
        last_s = self.progress.elapsed_s + AS_BINS_S
        settled = False

        def heard(found: Found) -> None:
            nonlocal settled
            settled = found.bins <= machines or found.lowest > machines

        def left_s() -> float:
            return min(self.progress.remaining_s, last_s - self.progress.elapsed_s)

        found = pack(items, self.params.rng(), lambda: settled or left_s() <= 0 or bool(self.progress.should_stop()), heard, left_s)
        if found.bins <= machines:
            order = np.argsort(-length, kind="stable")
            machine = np.empty(len(length), np.int64)
            machine[order] = assign(items, found.patterns)
            self.take(whole(machine))
            return True
        if found.lowest > machines:
            self.raise_to(Bound(seconds(self.instance, lifted(self.length, target + 1)), "search", "solver"))
        return found.lowest > machines


def plan_of(instance: RequestPacking, machine: IntArray) -> StagedPlan:
    """The plan in which each slot runs its requests one after the other, the first named first: a stage wherever one begins. O(N log N).

    Prompts admitted together are split over stages of no decode steps where they exceed the level that takes no time, or else the last.
    """
    length, count = instance.requests.output_tokens, instance.count
    order = np.lexsort((np.arange(count), machine))
    ended = np.cumsum(length[order])
    first = np.flatnonzero(np.diff(machine[order], prepend=-1))
    base = np.repeat(ended[first] - length[order[first]], np.diff(np.append(first, count)))
    begins = np.empty(count, np.int64)
    begins[order] = ended - length[order] - base
    greatest = int((begins + length).max())
    by_time = np.lexsort((machine, begins))
    times, starts = np.unique(begins[by_time], return_index=True)
    pairs = np.column_stack([by_time, machine[by_time]])
    steps = np.diff(np.append(times, greatest)).tolist()
    levels = instance.level_tokens
    limit = None if not len(levels) else int(levels[0] if instance.level_s[0] == 0 else levels[-1])
    stages: list[tuple[IntArray, int]] = []
    for rows, lasts in zip(np.split(pairs, starts[1:]), steps, strict=True):
        parts = [rows] if limit is None else _admissible(rows, instance.requests.prompt_tokens, limit)
        stages += [(part, 0) for part in parts[:-1]]
        stages.append((parts[-1], lasts))
    return staged_plan(stages)


def _admissible(rows: IntArray, prompt: IntArray, limit: int) -> list[IntArray]:
    """Admissions cut where their prompts would exceed the limit."""
    cuts, total = [], 0
    for k, tokens in enumerate(prompt[rows[:, 0]].tolist()):
        if k and total + tokens > limit:
            cuts.append(k)
            total = 0
        total += tokens
    return np.split(rows, cuts)


__all__ = ["cmax", "plan_of"]
