"""Packing slices into given numbers of whole replicas, and what a packing is turned into: plans."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_patterns import Pattern, PatternProgram
from headroom.bounds.gpu_selection_per_replica import PatternBox, PatternData, PriceTable, root_pattern_box
from headroom.formulations.progress import Progress
from headroom.heuristics.gpu_selection_per_replica import Patterns, cheaper_types, plan_of_patterns
from headroom.solvers.column_generation import Column, Generated, Options, dive, integer_master

FloatArray = npt.NDArray[np.float64]
ROOM = 1e-9
"""Counts that miss room for the slices by no more than this, in replicas of every type, may still hold them."""
NOISE = 0.3
CUT_GAP = 0.1
"""How far from the deepest a cut may be, relative to its depth."""
MASTER_NODES, MASTER_S = 300, 10.0
"""The integer master is limited by nodes, so that the same instance gives the same plans; by time only in extremity."""
MASTER_COLUMNS = 4000


class Packer:
    """Column generation for fixed counts: proves that counts cannot hold the slices, or packs them. Patterns found serve all counts."""

    def __init__(self, data: PatternData, progress: Progress, rng: np.random.Generator) -> None:
        self.data, self.progress, self.rng = data, progress, rng
        self._separator: PatternProgram | None = None
        self._programs: dict[bytes, PatternProgram] = {}
        self._patterns: dict[tuple[int, bytes], Pattern] = {}

    def know(self, patterns: list[Pattern]) -> None:
        """Patterns to begin with."""
        for g, z in patterns:
            self._patterns.setdefault((g, z.tobytes()), (g, z))

    def known(self) -> list[Pattern]:
        """All patterns met so far."""
        return list(self._patterns.values())

    def separate(self, n: FloatArray) -> tuple[PriceTable | None, Generated]:
        """A price table at which the slices are worth more than what n replicas [G] can hold, for any counts; None when there is none."""
        if self._separator is None:
            self._separator = PatternProgram(self.data, np.ones(len(self.data.price)))
        program = self._separator
        program.add(list(self._patterns.values()))
        found = program.separate(n, self.progress, Options(target=ROOM, gap=CUT_GAP))
        self.know(program.patterns())
        # Stopped early or not: a table that proves something proves it.
        return (program.best.table if program.best.value > 0 else None), found

    def program_for(self, n: FloatArray) -> PatternProgram:
        """The program that seeks room in the types of which there are replicas."""
        support = (n > 0).astype(np.float64)
        key = support.tobytes()
        if key not in self._programs:
            self._programs[key] = PatternProgram(self.data, support)
            self._programs[key].add([pattern for pattern in self._patterns.values() if support[pattern[0]]])
        return self._programs[key]

    def pack(self, box: PatternBox, pairs: tuple[tuple[int, int], ...], tries: int, with_master: bool = False) -> Patterns | None:
        """A packing into a box of fixed counts, by dives and, if asked for, the integer master over the patterns at hand; None when not found."""
        program = self.program_for(box.n_hi)
        program.set_box(box, pairs)
        for attempt in range(tries):
            if self.progress.should_stop() is not None:
                return None
            fork = program.fork()
            noise = (self.rng, NOISE) if attempt else None
            found = dive(fork.master, fork.price, self.progress, fork.settle, Options(tolerance=1e-7, good_enough=ROOM), ROOM, noise)
            packed = None if found is None else self._patterns_of(program, found, box)
            if packed is not None:
                return packed
        return self._by_master(program, box, pairs) if with_master else None

    def _by_master(self, program: PatternProgram, box: PatternBox, pairs: tuple[tuple[int, int], ...]) -> Patterns | None:
        if len(program.master.columns) > MASTER_COLUMNS:
            return None
        program.set_box(box, pairs)
        aside = Progress(replace(self.progress.params, time_limit_s=min(MASTER_S, self.progress.remaining_s), gap_limit=None, threads=1))
        aside.follow(self.progress)
        found, _ = integer_master(program.master, aside.params, aside, {"objective_target": 0.0, "mip_max_nodes": MASTER_NODES})
        packed = None if found is None else self._patterns_of(program, found, box)
        return packed

    def _patterns_of(self, program: PatternProgram, found: list[tuple[Column, int]], box: PatternBox) -> Patterns | None:
        """The patterns of an integer solution, trimmed to what is asked for; None when it takes more replicas than there are."""
        named = [(program.pattern(column), count) for column, count in found]
        patterns = exact_cover(self.data, [(pattern[0], pattern[1].copy(), count) for pattern, count in named if pattern is not None])
        if patterns is None:
            return None
        n = np.zeros(len(self.data.price))
        for g, _, replicas in patterns:
            n[g] += replicas
        return patterns if (n <= box.n_hi).all() else None


def exact_cover(data: PatternData, patterns: Patterns) -> Patterns | None:
    """Take off the slices that patterns hold beyond k_i; None when some are missing."""
    excess = sum((n * z for _, z, n in patterns), np.zeros(len(data.items), dtype=np.int64)) - data.slices.astype(np.int64)
    if (excess < 0).any():
        return None
    for i in np.flatnonzero(excess).tolist():
        trimmed: Patterns = []
        left = int(excess[i])
        for g, z, n in patterns:
            each, more = divmod(min(left, int(z[i]) * n), n)
            left -= each * n + more
            for less, replicas in ((each + 1, more), (each, n - more)):
                if replicas:
                    fewer = z.copy()
                    fewer[i] -= less
                    trimmed.append((g, fewer, replicas))
        patterns = trimmed
    return patterns


def offer(data: PatternData, progress: Progress, patterns: Patterns) -> bool:
    """Fill up to `min_count`, move replicas' loads to cheaper types that hold them, and offer the plan; whether it was kept."""
    n = np.zeros(len(data.price))
    for g, _, replicas in patterns:
        n[g] += replicas
    nothing = np.zeros(len(data.items), dtype=np.int64)
    missing = np.maximum(data.instance.min_count - n, 0)
    padded = patterns + [(g, nothing, int(missing[g])) for g in np.flatnonzero(missing).tolist()]
    better = cheaper_types(data, padded)
    return better is not None and progress.offer(plan_of_patterns(data.instance, better))


def dive_for_cost(program: PatternProgram, progress: Progress, rng: np.random.Generator | None) -> Patterns | None:
    """One dive from the present box of the "cost" program; None when it leads nowhere."""
    data = program.data
    noise = None if rng is None else (rng, NOISE)
    fork = program.fork()
    found = dive(fork.master, fork.price, progress, fork.settle, Options(tolerance=1e-6, good_enough=math.inf), noise=noise)
    if found is None:
        return None
    named = [(program.pattern(column), count) for column, count in found]
    return exact_cover(data, [(pattern[0], pattern[1].copy(), count) for pattern, count in named if pattern is not None])


def fixed_counts(data: PatternData, n: FloatArray) -> PatternBox:
    """The box of plans with exactly these counts."""
    root = root_pattern_box(data)
    return PatternBox(n, n, root.y_lo, root.y_hi)
