"""Request packing: what is proved, how fast, and the gaps of heuristics. JIT warm, generating not counted, one thread.

    python -m benchmarks.request_packing --known     uniform n = 120 .. 1000 and triplets n = 60 .. 501, 20 instances each: proved, seconds
    python -m benchmarks.request_packing --classes   look-alikes of Scholl 1 - 3, Schwerin, Waescher and the random class: proved within 20 s
    python -m benchmarks.request_packing --hard      look-alikes of Hard28, augmented IRUP and non-IRUP, capacities up to 1.5 million: within 60 s
    python -m benchmarks.request_packing --cmax      P||Cmax: 1,319 requests on 200 slots; n = 10 .. 1000 on 5 .. 25 machines within 20 s
    python -m benchmarks.request_packing --staged    1,319 requests through 200 slots with prefill: FCFS, sorted and ours against the bound
    python -m benchmarks.request_packing --chat      19,366 chat requests (HEADROOM_DATA: the real ones) into three KV budgets; 10^6 made up
    python -m benchmarks.request_packing --groups    2,000 requests with 50 prefixes, and adapters: certified gap; prefix-blind first fit beside it
    python -m benchmarks.request_packing --heuristics  gap of every heuristic and policy over the certified bound

Files of the standard formats instead of generated ones: --file bpp:PATH or cmax:PATH (several). Without an option, all. --seeds N: so many
instances of each kind (20 by default, as in the libraries, 100 for --staged).
"""

from __future__ import annotations

import argparse
import math
import os
import resource
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.protocol import header, median
from headroom.formulations.types import SolveParams
from headroom.instances.importers import IMPORTERS
from headroom.instances.request_packing import RequestPacking
from headroom.instances.request_packing_augmented import AUGMENTED, augmented
from headroom.instances.request_packing_classes import (
    SCHOLL_3,
    SCHWERIN_1,
    SCHWERIN_2,
    cmax_uniform,
    delorme_random,
    hard28_like,
    many_sizes,
    scholl_1,
    scholl_2,
    triplets,
    uniform,
    waescher,
)
from headroom.instances.request_packing_presets import make
from headroom.registry import FAMILIES
from headroom.run import Result, run
from headroom.verify import verify

FAMILY = FAMILIES["request_packing"]


def solve(instance: RequestPacking, limit_s: float, seed: int = 0, method: str = "auto") -> Result:
    """One run, rechecked by `verify`."""
    result = run(instance, method, SolveParams(seed=seed, time_limit_s=limit_s))
    report = verify(instance, result)
    assert report.verified, report.problems
    return result


def warm() -> None:
    """Compile what is timed."""
    for preset, overrides in (
        ("triplet-60", {}),
        ("hard28-like", {}),
        ("cmax-uniform", {}),
        ("gsm8k-staged", {"requests": 60}),
        ("adapters", {"requests": 40}),
    ):
        solve(make(preset, np.random.default_rng(0), overrides), 20.0)
    solve(augmented(np.random.default_rng(0)), 20.0)
    solve(cmax_uniform(np.random.default_rng(2), requests=25, slots=10, most=1000), 20.0)


def table(name: str, instances: Iterable[RequestPacking], limit_s: float) -> tuple[int, int]:
    """A row: instances, proved, proved without believing a solver, seconds. Returns proved and all."""
    results = [solve(instance, limit_s, seed) for seed, instance in enumerate(instances)]
    proved = sum(result.status == "optimal" for result in results)
    certified = sum(result.certified_gap <= 1e-6 for result in results)
    known = [(result, result.instance.provenance["optimum"]) for result in results if "optimum" in result.instance.provenance]
    assert all(result.bound <= optimum <= result.objective for result, optimum in known), name
    times = [max(result.runtime_s, 1e-4) for result in results]
    mean = math.exp(sum(map(math.log, times)) / len(times))
    print(f"| {name} | {len(results)} | {proved} | {certified} | {mean:.3f} | {median(times):.3f} | {max(times):.2f} |", flush=True)
    return proved, len(results)


def heading() -> None:
    print("| class | instances | proved | by certificates alone | geometric mean, s | median, s | slowest, s |")
    print("|---|---|---|---|---|---|---|")


def known(seeds: int) -> None:
    """Classes with optima known by construction, or nearly."""
    heading()
    for n in (120, 250, 500, 1000):
        table(f"uniform {n}", (uniform(np.random.default_rng([n, s]), requests=n) for s in range(seeds)), 60.0)
    for n in (60, 120, 249, 501):
        table(f"triplets {n}", (triplets(np.random.default_rng([n, s]), requests=n) for s in range(seeds)), 60.0)


def classes(seeds: int) -> None:
    """All settings of the library's classes; `seeds` instances in all for each class of many settings."""
    heading()

    def of(settings: Sequence[dict[str, int]], each: int) -> Iterable[RequestPacking]:
        return (uniform(np.random.default_rng([k, s]), **setting) for k, setting in enumerate(settings) for s in range(each))

    rows: list[tuple[str, Iterable[RequestPacking]]] = [
        ("Scholl 1", of(list(scholl_1()), max(1, seeds // 10))),
        ("Scholl 2", of(list(scholl_2()), max(1, seeds // 10))),
        ("Scholl 3", of([SCHOLL_3], seeds)),
        ("Schwerin 1", of([SCHWERIN_1], seeds)),
        ("Schwerin 2", of([SCHWERIN_2], seeds)),
        ("Waescher", (waescher(np.random.default_rng(s)) for s in range(seeds))),
        ("random", of(list(delorme_random())[:: max(1, 20 // seeds)], 1)),
    ]
    counts = [table(name, instances, 20.0) for name, instances in rows]
    print(f"proved {sum(proved for proved, _ in counts)} of {sum(all_ for _, all_ in counts)}")


def hard(seeds: int) -> None:
    """The classes that are open for simple methods."""
    heading()
    table("Hard28-like", (hard28_like(np.random.default_rng(s)) for s in range(seeds)), 60.0)
    for requests, capacity in AUGMENTED[:3]:
        for irup in (True, False):
            name = f"augmented {'IRUP' if irup else 'non-IRUP'} {requests}, {capacity:,}"
            some = (augmented(np.random.default_rng(s), requests=requests, capacity=capacity, irup=irup) for s in range(max(1, seeds // 2)))
            table(name, some, 60.0)
    table("hundreds of sizes, 1.5 million", (many_sizes(np.random.default_rng(s)) for s in range(max(1, seeds // 4))), 60.0)


def cmax(seeds: int) -> None:
    """P||Cmax."""
    heading()
    table("GSM8K-like, 200 slots", (make("gsm8k-cmax", np.random.default_rng(s), {}) for s in range(seeds)), 20.0)
    for least, most in ((1, 100), (1, 1000), (9800, 9999)):
        for n in (10, 25, 50, 100, 250, 500, 1000):
            machines = [m for m in (5, 10, 15, 20, 25) if m < n]
            some = (
                cmax_uniform(np.random.default_rng([n, m, s]), requests=n, slots=m, least=least, most=most)
                for m in machines
                for s in range(max(1, seeds // 4))
            )
            table(f"{least}-{most}, n = {n}", some, 20.0)


def staged(seeds: int) -> None:
    """Gaps over the certified bound, each plan verified."""
    names = ("fcfs_slots", "sorted_preemptive", "lpt_threshold", "token_fill", "lagrangian_rule", "staged")
    gaps: dict[str, list[float]] = {name: [] for name in names}
    times, bounds = [], []
    for seed in range(seeds):
        instance = make("gsm8k-staged", np.random.default_rng(seed), {})
        ours = solve(instance, 60.0, seed)
        times.append(ours.runtime_s)
        bounds.append(ours.certified_bound)
        for name in names:
            value = ours.objective if name == "staged" else solve(instance, 60.0, seed, name).objective
            gaps[name].append(100 * (value / ours.certified_bound - 1))
    print("| method | mean gap | median | worst |")
    print("|---|---|---|---|")
    for name in names:
        print(f"| {name} | {np.mean(gaps[name]):.2f} % | {median(gaps[name]):.2f} % | {max(gaps[name]):.2f} % |")
    print(f"{seeds} seeds; bound {np.mean(bounds):.2f} s on average; ours takes {median(times):.1f} s (slowest {max(times):.1f} s)")


def chat(seeds: int) -> None:
    """Real or generated chat requests into KV budgets, and a million requests."""
    folder = os.environ.get("HEADROOM_DATA")
    trace = next(iter(sorted(Path(folder, "azure_llm_2023").glob("*.csv*"))), None) if folder else None
    print("| requests | capacity | bins | certified bound | s |")
    print("|---|---|---|---|---|")
    for capacity in (16_384, 65_536, 262_144):
        if trace is None:
            instance = make("chat-65536", np.random.default_rng(0), {"capacity": capacity})
        else:
            instance = IMPORTERS["azure-llm-requests"].load()(trace, capacity_tokens=capacity)[0]
        result = solve(instance, 60.0)
        kind = "generated" if trace is None else "real"
        print(
            f"| {instance.count:,} {kind} | {capacity:,} | {result.objective:.0f} | {result.certified_bound:.0f} | {result.runtime_s:.2f} |",
            flush=True,
        )
    million = make("backlog-million", np.random.default_rng(0), {})
    result = run(million, "bins", SolveParams(time_limit_s=60.0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| 10^6 | 65,536 | {result.objective:.0f} | {result.certified_bound:.0f} | {result.runtime_s:.2f} |")
    print(f"peak memory {peak:.2f} GiB")


def groups(seeds: int) -> None:
    """What sharing is worth, and how near the bound plans are."""
    print("| preset | seed | bins | certified bound | gap | s | ffd_grouped | ffd_prefix_blind |")
    print("|---|---|---|---|---|---|---|---|")
    for preset in ("shared-prefix", "adapters"):
        for seed in range(max(1, seeds // 4)):
            instance = make(preset, np.random.default_rng(seed), {})
            ours = solve(instance, 60.0, seed)
            others = [f"{solve(instance, 60.0, seed, name).objective:.0f}" for name in ("ffd_grouped", "ffd_prefix_blind")]
            cells = f"{ours.objective:.0f} | {ours.certified_bound:.0f} | {100 * ours.certified_gap:.2f} % | {ours.runtime_s:.1f}"
            print(f"| {preset} | {seed} | {cells} | " + " | ".join(others) + " |", flush=True)


def heuristics(seeds: int) -> None:
    """Mean gaps of all that prove nothing."""
    for preset in ("uniform-500", "triplet-120", "chat-65536", "shared-prefix", "gsm8k-staged"):
        gaps: dict[str, list[float]] = {}
        for seed in range(max(1, seeds // 7)):
            instance = make(preset, np.random.default_rng(seed), {})
            bound = solve(instance, 20.0, seed).certified_bound
            for name, entry in FAMILY.methods_for(instance).items():
                if entry.kind != "exact":
                    gaps.setdefault(name, []).append(100 * (run(instance, name, SolveParams(seed=seed)).objective / bound - 1))
        ranked = sorted(gaps, key=lambda name: float(np.mean(gaps[name])))
        print(f"{preset}: " + ", ".join(f"{name} {np.mean(gaps[name]):.1f} %" for name in ranked), flush=True)


def files(names: Sequence[str], limit_s: float) -> None:
    """Instances from files in the standard formats."""
    heading()
    for name in names:
        kind, _, path = name.partition(":")
        table(Path(path).name, [IMPORTERS[kind].load()(path)[0]], limit_s)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the chosen tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.request_packing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables: dict[str, Callable[[int], None]] = {
        "known": known, "classes": classes, "hard": hard, "cmax": cmax, "staged": staged, "chat": chat, "groups": groups, "heuristics": heuristics
    }  # fmt: skip
    for name in tables:
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--file", action="append", default=[], help="bpp:PATH or cmax:PATH")
    parser.add_argument("--limit-s", type=float, default=60.0, help="time limit of --file")
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--short", action="store_true", help="a few instances, in a moment")
    chosen = parser.parse_args(arguments)
    print(header("request_packing", [0], 1), flush=True)
    if chosen.short:
        heading()
        table("triplets 60", [triplets(np.random.default_rng(0), requests=60)], 10.0)
        return
    warm()
    if chosen.file:
        files(chosen.file, chosen.limit_s)
        return
    wanted = [name for name in tables if getattr(chosen, name)] or list(tables)
    for name in wanted:
        print(f"\n{name}", flush=True)
        tables[name](chosen.seeds or (100 if name == "staged" else 20))


if __name__ == "__main__":
    main()
