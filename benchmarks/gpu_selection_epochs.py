"""GPU selection over epochs: the decomposition's certified gap after a minute, beside HiGHS on the plain model.

    python -m benchmarks.gpu_selection_epochs                168 hourly epochs x 36 buckets x 4 types, 5 to 50 replicas, with and without delay
    python -m benchmarks.gpu_selection_epochs --mip          the same beside HiGHS on the Pyomo model, 60 s each
    python -m benchmarks.gpu_selection_epochs --minutes      10,080 one-minute epochs, starts take three of them, ten minutes each

Every bound is rechecked from its certificate. Building the instance and importing are not counted; compiling by numba is warmed up first.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.protocol import header, median
from headroom.bounds.gpu_selection import recheck
from headroom.formulations.gpu_selection import EpochPlan
from headroom.formulations.types import SolveParams
from headroom.instances.gpu_selection import GpuSelection
from headroom.instances.gpu_selection_presets import make
from headroom.run import Result, run

RATES = {"about 5": 28.0, "about 10": 75.0, "about 20": 190.0, "about 50": 500.0}
LIMIT_S = 60.0
LONG_LIMIT_S = 600.0


def week(seed: int, rate_per_s: float, delay: int, preset: str = "week-4gpu-6x6") -> GpuSelection:
    """A week of the Azure chat mix on the GPUs of 2024."""
    settings: dict[str, Any] = {"total_rate_per_s": rate_per_s}
    if preset == "week-4gpu-6x6":
        settings["start_delay_epochs"] = delay
    return make(preset, np.random.default_rng(seed), settings)


def checked(instance: GpuSelection, result: Result) -> float:
    """The certified gap, after recomputing every certificate."""
    for bound in result.bounds:
        if bound.proof != "solver":
            again = recheck(instance, bound)
            assert abs(again - bound.value) <= 1e-9 * abs(bound.value), (bound.method, bound.value, again)
    return result.certified_gap


def row(label: str, seed: int, instance: GpuSelection, limit_s: float, mip: bool) -> tuple[float, float]:
    """One line; the gap and the seconds."""
    result = run(instance, "decomposition", SolveParams(time_limit_s=limit_s))
    gap = checked(instance, result)
    replicas = float(np.mean([sum(count.values()) for count in result.plan.count])) if isinstance(result.plan, EpochPlan) else 0.0
    best = max(result.bounds, key=lambda bound: bound.value)
    line = f"| {label} | {seed} | {replicas:.1f} | {result.objective:.2f} | {best.method} | {100 * gap:.4f} % | {result.runtime_s:.1f} |"
    if mip:
        other = run(instance, "highs", SolveParams(time_limit_s=limit_s))
        line += f" {100 * other.gap:.2f} % | {100 * (other.objective / result.objective - 1):+.2f} % |"
    print(line, flush=True)
    return gap, result.runtime_s


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mip", action="store_true")
    parser.add_argument("--minutes", action="store_true")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    seeds = range(1 if options.short or options.minutes else options.seeds)
    print(header("gpu_selection over epochs", list(seeds), 1))
    run(week(0, 64.0, 0).replace(epochs=_first_epochs(week(0, 64.0, 0), 3)), "decomposition")
    print("| replicas | seed | mean | USD | best bound | certified gap | s |" + (" HiGHS gap | its cost |" if options.mip else ""))
    print("|---|---|---|---|---|---|---|" + ("---|---|" if options.mip else ""))
    gaps, seconds = [], []
    for label, rate in RATES.items():
        if options.minutes and label not in ("about 5", "about 50"):
            continue
        for delay in (0,) if options.minutes or options.short else (0, 1):
            for seed in seeds:
                preset = "week-minutes-4gpu-6x6" if options.minutes else "week-4gpu-6x6"
                instance = week(seed, rate, delay, preset)
                name = f"{label}, by the minute" if options.minutes else f"{label}, delay {delay}"
                gap, took = row(name, seed, instance, LONG_LIMIT_S if options.minutes else LIMIT_S, options.mip)
                gaps.append(gap)
                seconds.append(took)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"worst certified gap {100 * max(gaps):.4f} %, median {100 * median(gaps):.4f} %; median {median(seconds):.1f} s; peak {peak:.0f} MiB")


def _first_epochs(instance: GpuSelection, number: int) -> dict[str, Any]:
    assert instance.epochs is not None
    return instance.epochs.model_dump() | {"rate_per_s": instance.epochs.rate_per_s[:number]}


if __name__ == "__main__":
    main()
