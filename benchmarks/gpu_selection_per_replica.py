"""GPU selection with whole replicas: column generation, its certificates, and the baselines.

    python -m benchmarks.gpu_selection_per_replica              both sets
    python -m benchmarks.gpu_selection_per_replica --large      60 buckets x 4 types at about 200 replicas, 5 seeds
    python -m benchmarks.gpu_selection_per_replica --small      36 buckets x 4 types, 4 slices each, about 20 replicas, 20 seeds
    python -m benchmarks.gpu_selection_per_replica --short      a corner of both, for `make bench`

Large: preset replicas-10x6 (slices chosen so that each fits a replica of every type that serves its bucket) at 1500 requests/s; the time until the
certified gap was at most 0.3 % is taken from the trajectory. Small: preset melange-4gpu-6x6 with 4 slices of each bucket at 180 requests/s.
Times are wall times of the call in this process, one thread, limit 60 s; generating the instance is not counted, nor is a first call on another
instance, which loads compiled code. Every certificate is rechecked outside the clock, and the gaps shown are those of the rechecked bounds. Beside
them: first fit decreasing, and what whole replicas cost over the pooled model with continuous shares.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np

from benchmarks.protocol import header, median, timed
from headroom.bounds.gpu_selection import recheck
from headroom.formulations.gpu_selection import ReplicaPlan
from headroom.formulations.tolerances import relative_gap
from headroom.formulations.types import SolveParams
from headroom.instances.gpu_selection import GpuSelection
from headroom.instances.gpu_selection_presets import make
from headroom.run import run

LIMIT_S = 60.0
LARGE_GAP, SMALL_GAP = 3e-3, 1e-6


@dataclass(frozen=True)
class Run:
    """One instance: wall time, time until the gap was at most LARGE_GAP, gap of the rechecked bound, time of the recheck, and what was found."""

    seconds: float
    seconds_to_gap: float
    gap: float
    recheck_seconds: float
    objective: float
    baseline: float
    replicas: int
    slices: int
    penalty: str


def large(seed: int) -> GpuSelection:
    return make("replicas-10x6", np.random.default_rng(seed), {"total_rate_per_s": 1500})


def small(seed: int) -> GpuSelection:
    return make("melange-4gpu-6x6", np.random.default_rng(seed), {"total_rate_per_s": 180, "slices": 4, "packing": "per_replica"})


def measure(instance: GpuSelection) -> Run:
    result, seconds = timed(lambda: run(instance, "column_generation", SolveParams(time_limit_s=LIMIT_S)))
    assert isinstance(result.plan, ReplicaPlan)
    best = max((bound for bound in result.bounds if bound.proof != "solver"), key=lambda bound: bound.value)
    proved, recheck_seconds = timed(lambda: recheck(instance, best))
    if proved < best.value - 1e-9 * abs(best.value):
        raise AssertionError(f"certificate of {best.method} does not recheck: {proved} < {best.value}")
    reached = next((t for t, objective, bound in result.trajectory if relative_gap(objective, bound) <= LARGE_GAP), float("nan"))
    share = result.details["whole_replica_penalty"].get("continuous", {}).get("share", [None, None])
    return Run(
        seconds=seconds,
        seconds_to_gap=reached,
        gap=relative_gap(result.objective, proved),
        recheck_seconds=recheck_seconds,
        objective=result.objective,
        baseline=run(instance, "first_fit_decreasing").objective,
        replicas=sum(group.replicas for group in result.plan.assignment),
        slices=int(instance.slice_counts.sum()),
        penalty="-" if None in share else f"{100 * share[0]:.2f}-{100 * share[1]:.2f} %",
    )


def table(name: str, runs: list[tuple[int, Run]]) -> None:
    print(f"\n{name}")
    columns = ["seed", "slices", "replicas", "USD/h", "certified gap", "s", "s to 0.3 %", "recheck s", "first fit decreasing", "over pooled"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for seed, one in runs:
        over = f"+{100 * (one.baseline / one.objective - 1):.2f} %"
        cells = [seed, one.slices, one.replicas, f"{one.objective:.3f}", f"{one.gap:.1e}", f"{one.seconds:.2f}", f"{one.seconds_to_gap:.2f}"]
        print(f"| {' | '.join(map(str, [*cells, f'{one.recheck_seconds:.2f}', over, one.penalty]))} |", flush=True)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--short", action="store_true")
    chosen = parser.parse_args(arguments)
    both = chosen.large == chosen.small
    large_seeds, small_seeds = (range(1), range(3)) if chosen.short else (range(5), range(20))
    print(header("GPU selection, whole replicas", small_seeds, 1))
    run(make("replicas-6x6", np.random.default_rng(99), {"total_rate_per_s": 16}), "column_generation", SolveParams(time_limit_s=LIMIT_S))
    if both or chosen.large:
        runs = [(seed, measure(large(seed))) for seed in large_seeds]
        table("60 buckets x 4 types, slices that fit every type, 1500 requests/s", runs)
        gaps = [one.gap for _, one in runs]
        within = sum(one.gap <= LARGE_GAP and one.seconds <= LIMIT_S + 1 for _, one in runs)
        times = median([one.seconds_to_gap for _, one in runs])
        print(f"\ncertified gap <= 0.3 % within {LIMIT_S:.0f} s: {within} of {len(runs)}")
        print(f"median certified gap {median(gaps):.1e}; median {times:.1f} s until it was 0.3 %")
    if both or chosen.small:
        runs = [(seed, measure(small(seed))) for seed in small_seeds]
        table("36 buckets x 4 types, 4 slices each, 180 requests/s", runs)
        proved = [one for _, one in runs if one.gap <= SMALL_GAP and one.seconds <= LIMIT_S + 1]
        seconds = [one.seconds for _, one in runs]
        print(f"\nproven optimal within {LIMIT_S:.0f} s: {len(proved)} of {len(runs)}; median {median(seconds):.2f} s, slowest {max(seconds):.2f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
