"""GPU selection: own branching beside plain HiGHS and the published binary formulation with CBC, all in one run.

    python -m benchmarks.gpu_selection                 own branching and HiGHS on the whole grid (minutes)
    python -m benchmarks.gpu_selection --cbc           the same, and CBC on the sliced cells (its 60 s a cell: an hour or more)
    python -m benchmarks.gpu_selection --capped        1,000 buckets x 20 types with caps
    python -m benchmarks.gpu_selection --short         a corner of the grid, for `make bench`

Grid: presets melange-4gpu-6x6 and melange-4gpu-10x6, slices null and 1...16, rates 1...4096 requests/s, one thread. Times are wall times of the
call in this process; imports, generating the instance and building CBC's and HiGHS' models are not counted, writing CBC's file and starting it
are (PuLP does that on every call). All stop at a relative gap of 1e-6 or their time limit: 60 s for CBC, 10 s for the others. One call of each
comes first and is not counted. CBC's formulation is Mélange's (arXiv 2404.14527): a binary for each slice and type.
"""

from __future__ import annotations

import argparse
import resource
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.protocol import geometric_mean, header, median, timed
from headroom.bounds.gpu_selection import recheck
from headroom.formulations.gpu_selection import build_model
from headroom.formulations.progress import Progress
from headroom.formulations.types import SolveParams
from headroom.instances.gpu_selection import GpuSelection
from headroom.instances.gpu_selection_presets import make
from headroom.run import run
from headroom.solvers.highs import solve_mip
from headroom.solvers.standard_form import standard_form

LIMIT_S, CBC_LIMIT_S = 10.0, 60.0
SLICES = (None, *range(1, 17))
RATES = (1, 4, 16, 64, 256, 1024, 4096)
PRESETS = ("melange-4gpu-6x6", "melange-4gpu-10x6")


@dataclass(frozen=True)
class Cell:
    """One instance of the grid."""

    preset: str
    slices: int | None
    rate_per_s: int
    seed: int

    def instance(self) -> GpuSelection:
        overrides = {"slices": self.slices, "total_rate_per_s": self.rate_per_s}
        return make(self.preset, np.random.default_rng(self.seed), overrides)


@dataclass(frozen=True)
class Timing:
    """Wall time, what was found and what was proved (gap by the solver's own bound; own branching: certified)."""

    seconds: float
    objective: float
    gap: float


def own(instance: GpuSelection, limit_s: float = LIMIT_S) -> Timing:
    """headroom's branching; its certificate is rechecked outside the clock."""
    result, seconds = timed(lambda: run(instance, "branching", SolveParams(time_limit_s=limit_s)))
    for bound in result.bounds:
        if bound.proof != "solver" and recheck(instance, bound) < bound.value - 1e-9 * abs(bound.value):
            raise AssertionError(f"certificate of {bound.method} does not recheck")
    return Timing(seconds, result.objective, result.certified_gap)


def plain_highs(instance: GpuSelection, limit_s: float = LIMIT_S) -> Timing:
    """HiGHS on the same mixed-integer program with its own defaults (gap 1e-6), one thread."""
    form = standard_form(build_model(instance))
    params = SolveParams(time_limit_s=limit_s)
    progress = Progress(params)
    answer, seconds = timed(lambda: solve_mip(form, params, progress))
    return Timing(seconds, answer.objective, abs(answer.objective - answer.bound) / max(abs(answer.objective), 1e-12))


def cbc(instance: GpuSelection) -> Timing:
    """The published formulation: each slice of each item is one binary choice among types; counts are integers."""
    import pulp

    problem = pulp.LpProblem("gpus", pulp.LpMinimize)
    k = instance.slices or 1
    count = [pulp.LpVariable(f"n{g}", lowBound=0, cat="Integer") for g in range(len(instance.gpus))]
    problem += pulp.lpSum(float(p) * n for p, n in zip(instance.price_usd_per_h, count, strict=True))
    load: list[list[object]] = [[] for _ in count]
    for i in instance.loaded_items:
        for s in range(k):
            chosen = {g: pulp.LpVariable(f"x{g}_{i}_{s}", cat="Binary") for g in np.flatnonzero(instance.can_serve[:, i])}
            problem += pulp.lpSum(chosen.values()) == 1
            for g, x in chosen.items():
                load[g].append(float(instance.load_replicas[g, i]) / k * x)
    for g, terms in enumerate(load):
        problem += pulp.lpSum(terms) <= instance.max_utilisation * count[g]
    solver = pulp.PULP_CBC_CMD(msg=False, timeLimit=CBC_LIMIT_S, gapRel=1e-6, threads=1)
    _, seconds = timed(lambda: problem.solve(solver))
    objective = float(pulp.value(problem.objective) or float("inf"))
    return Timing(seconds, objective, 0.0 if seconds < CBC_LIMIT_S and problem.status == 1 else float("nan"))


def grid(cells: list[Cell], with_cbc: bool) -> None:
    """Print a row a cell and the summary."""
    own(cells[0].instance())
    plain_highs(cells[0].instance())
    columns = ["preset", "slices", "req/s", "optimum USD/h", "own s", "certified gap", "HiGHS s", "HiGHS gap", "HiGHS / own"]
    columns += ["CBC s", "CBC / own"] if with_cbc else []
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    rows: list[tuple[Cell, Timing, Timing, Timing | None]] = []
    for cell in cells:
        instance = cell.instance()
        a, b = own(instance), plain_highs(instance)
        c = cbc(instance) if with_cbc and cell.slices else None
        rows.append((cell, a, b, c))
        line = f"| {cell.preset} | {cell.slices or 'null'} | {cell.rate_per_s} | {a.objective:.3f} | {a.seconds:.3f} | {a.gap:.1e}"
        line += f" | {b.seconds:.3f} | {b.gap:.1e} | {b.seconds / a.seconds:.2f} |"
        if with_cbc:
            line += f" {c.seconds:.2f}{'' if c.gap == 0 else ' (limit)'} | {c.seconds / a.seconds:.0f} |" if c else " | |"
        print(line, flush=True)
    summary(rows)


def summary(rows: list[tuple[Cell, Timing, Timing, Timing | None]]) -> None:
    """Medians, geometric means of ratios, and how many cells were proved."""
    times = [a.seconds for _, a, _, _ in rows]
    proved = sum(a.gap <= 1e-6 for _, a, _, _ in rows)
    print(f"\nown branching: {proved} of {len(rows)} cells certified to 1e-6; median {median(times):.3f} s, worst {max(times):.3f} s", end="")
    print(f", within 1 s: {sum(t <= 1 for t in times)}")
    highs_proved = sum(b.gap <= 1.1e-6 for _, _, b, _ in rows)
    ratio = geometric_mean([b.seconds / a.seconds for _, a, b, _ in rows])
    print(f"plain HiGHS: {highs_proved} of {len(rows)} to 1e-6 in {LIMIT_S:g} s (by its own word); its time over ours, geometric mean {ratio:.2f}")
    both = [(a, c) for _, a, _, c in rows if c is not None]
    if both:
        slow = [(a, c) for a, c in both if c.seconds > 0.1]
        ratio = geometric_mean([c.seconds / a.seconds for a, c in slow])
        limited = sum(c.gap != 0 for _, c in both)
        print(f"CBC: {limited} of {len(both)} cells hit {CBC_LIMIT_S:g} s; ", end="")
        print(f"its time over ours, geometric mean on the {len(slow)} cells above 0.1 s: {ratio:.0f}")


def capped(seeds: range) -> None:
    """The large instance: when the certified gap reaches 1e-4 and 1e-6, and peak memory, beside plain HiGHS."""
    columns = ["seed", "own s to 1e-4", "own s to 1e-6", "certified gap", "own USD/h", "HiGHS s", "HiGHS gap", "HiGHS USD/h"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for seed in seeds:
        instance = make("capped-20x1000", np.random.default_rng(seed), {})
        result, seconds = timed(partial(run, instance, "branching", SolveParams(time_limit_s=60)))
        near = next((t for t, objective, bound in result.trajectory if objective - bound <= 1e-4 * objective), float("nan"))
        other = plain_highs(instance, 60.0)
        mine = f"{near:.1f} | {seconds:.1f} | {result.certified_gap:.1e} | {result.objective:.3f}"
        print(f"| {seed} | {mine} | {other.seconds:.1f} | {other.gap:.1e} | {other.objective:.3f} |", flush=True)
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cbc", action="store_true", help="run CBC beside them")
    parser.add_argument("--capped", action="store_true", help="the 1,000 x 20 instances instead of the grid")
    parser.add_argument("--short", action="store_true", help="a corner of the grid")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    slices, rates = ((None, 1, 4), (1, 64)) if chosen.short else (SLICES, RATES)
    if chosen.cbc and not chosen.short:
        slices, rates = (1, 4, 16), (1, 16, 256, 4096)
    cells = [Cell(preset, k, rate, chosen.seed) for preset in PRESETS for k in slices for rate in rates]
    if chosen.capped:
        print(header("GPU selection, 1,000 buckets x 20 types with caps", range(chosen.seed, chosen.seed + 3), 1))
        capped(range(chosen.seed, chosen.seed + 3))
    else:
        print(header("GPU selection, grid", [chosen.seed], 1))
        grid(cells, chosen.cbc)


if __name__ == "__main__":
    main(sys.argv[1:])
