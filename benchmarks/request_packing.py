"""Request packing: what is proved, how fast, and the gaps of heuristics. JIT warm, generating not counted, one thread.

    python -m benchmarks.request_packing --known     uniform n = 120 .. 1000 and triplets n = 60 .. 501, 20 instances each: proved, seconds
    python -m benchmarks.request_packing --classes   look-alikes of Scholl 1 - 3, Schwerin, Waescher and the random class: proved within 20 s
    python -m benchmarks.request_packing --hard      look-alikes of Hard28, augmented IRUP and non-IRUP, capacities up to 1.5 million: within 60 s
    python -m benchmarks.request_packing --cmax      P||Cmax: 1,319 requests on 200 slots; n = 10 .. 1000 on 5 .. 25 machines within 20 s
    python -m benchmarks.request_packing --staged    1,319 requests through 200 slots with prefill: FCFS, sorted and ours against the bound
    python -m benchmarks.request_packing --chat      19,366 chat requests (HEADROOM_DATA: the real ones) into three KV budgets; 10^6 made up
    python -m benchmarks.request_packing --groups    2,000 requests with 50 prefixes, and adapters: certified gap; prefix-blind first fit beside it
    python -m benchmarks.request_packing --heuristics  gap of every heuristic and policy over the certified bound

Files of the standard formats instead of generated ones: --file bpp:PATH or cmax:PATH (several). Without an option, all.

--seeds N: N instances of each kind, of seeds 0 to N - 1. By default as many as each table says: 20 as in the libraries, of the slow kinds fewer, 100
for --staged. Scholl 1 and 2 have many settings, and each of them N // 10 instances (at least one); the random class has 384 with an instance each,
of which every (20 // N)-th is taken for N below 20. --search-seed S: seed of every search; by default an instance's own number in its row.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Asked:
    """What the command line says of seeds."""

    count: int | None = None
    search: int | None = None

    def seeds(self, usual: int, what: str = "") -> range:
        """The seeds of instances of a kind, printed."""
        found = range(usual if self.count is None else self.count)
        searched = "the instance's number in its row" if self.search is None else str(self.search)
        seeds = "seed 0" if len(found) == 1 else f"seeds 0 to {found[-1]}"
        print(f"{what}{': ' if what else ''}instances of {seeds}; seed of the search: {searched}", flush=True)
        return found

    def search_of(self, number: int) -> int:
        return number if self.search is None else self.search


def solve(instance: RequestPacking, limit_s: float, seed: int = 0, method: str = "auto") -> Result:
    """One run, rechecked by `verify`."""
    result = run(instance, method, SolveParams(seed=seed, time_limit_s=limit_s))
    report = verify(instance, result)
    assert report.verified, report.problems
    return result


def warm() -> None:
    """Compile what is timed. Instances of the tables' own sizes: small ones are solved before they reach all of it."""
    for preset, overrides in (
        ("triplet-60", {}),
        ("hard28-like", {}),
        ("cmax-uniform", {}),
        ("gsm8k-cmax", {}),
        ("gsm8k-staged", {}),
        ("adapters", {}),
        ("shared-prefix", {}),
        ("chat-65536", {"requests": 2_000}),
    ):
        solve(make(preset, np.random.default_rng(0), overrides), 5.0)
    solve(augmented(np.random.default_rng(0)), 5.0)
    solve(cmax_uniform(np.random.default_rng(2), requests=25, slots=10, most=1000), 5.0)


def table(name: str, instances: Iterable[RequestPacking], limit_s: float, asked: Asked) -> tuple[int, int]:
    """A row: instances, proved, proved without believing a solver, seconds. Returns proved and all."""
    results = [solve(instance, limit_s, asked.search_of(number)) for number, instance in enumerate(instances)]
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


def known(asked: Asked) -> None:
    """Classes with optima known by construction, or nearly."""
    seeds = asked.seeds(20)
    heading()
    for n in (120, 250, 500, 1000):
        table(f"uniform {n}", (uniform(np.random.default_rng([n, s]), requests=n) for s in seeds), 60.0, asked)
    for n in (60, 120, 249, 501):
        table(f"triplets {n}", (triplets(np.random.default_rng([n, s]), requests=n) for s in seeds), 60.0, asked)


def classes(asked: Asked) -> None:
    """All settings of the library's classes; of those of many settings a part."""
    seeds = asked.seeds(20)
    several, skip = range(max(1, len(seeds) // 10)), max(1, 20 // len(seeds))
    taken = "every setting" if skip == 1 else f"one setting of every {skip}"
    print(f"Scholl 1 and 2: {len(several)} of each setting, from seed 0; random: {taken}, seed 0")
    heading()

    def of(settings: Sequence[dict[str, int]], each: range) -> Iterable[RequestPacking]:
        return (uniform(np.random.default_rng([k, s]), **setting) for k, setting in enumerate(settings) for s in each)

    rows: list[tuple[str, Iterable[RequestPacking]]] = [
        ("Scholl 1", of(list(scholl_1()), several)),
        ("Scholl 2", of(list(scholl_2()), several)),
        ("Scholl 3", of([SCHOLL_3], seeds)),
        ("Schwerin 1", of([SCHWERIN_1], seeds)),
        ("Schwerin 2", of([SCHWERIN_2], seeds)),
        ("Waescher", (waescher(np.random.default_rng(s)) for s in seeds)),
        ("random", of(list(delorme_random())[::skip], range(1))),
    ]
    counts = [table(name, instances, 20.0, asked) for name, instances in rows]
    print(f"proved {sum(proved for proved, _ in counts)} of {sum(all_ for _, all_ in counts)}")


def hard(asked: Asked) -> None:
    """The classes that are open for simple methods."""
    alike, built = asked.seeds(20, "Hard28-like"), asked.seeds(10, "augmented")
    many = asked.seeds(5, "hundreds of sizes")
    heading()
    table("Hard28-like", (hard28_like(np.random.default_rng(s)) for s in alike), 60.0, asked)
    for requests, capacity in AUGMENTED[:3]:
        for irup in (True, False):
            name = f"augmented {'IRUP' if irup else 'non-IRUP'} {requests}, {capacity:,}"
            some = (augmented(np.random.default_rng(s), requests=requests, capacity_tokens=capacity, irup=irup) for s in built)
            table(name, some, 60.0, asked)
    table("hundreds of sizes, 1.5 million", (many_sizes(np.random.default_rng(s)) for s in many), 60.0, asked)


def cmax(asked: Asked) -> None:
    """P||Cmax."""
    backlogs, drawn = asked.seeds(20, "GSM8K-like"), asked.seeds(5, "uniform times, each number of machines")
    heading()
    table("GSM8K-like, 200 slots", (make("gsm8k-cmax", np.random.default_rng(s), {}) for s in backlogs), 20.0, asked)
    for least, most in ((1, 100), (1, 1000), (9800, 9999)):
        for n in (10, 25, 50, 100, 250, 500, 1000):
            machines = [m for m in (5, 10, 15, 20, 25) if m < n]
            some = (
                cmax_uniform(np.random.default_rng([n, m, s]), requests=n, slots=m, least=least, most=most)
                for m in machines
                for s in drawn
            )  # fmt: skip
            table(f"{least}-{most}, n = {n}", some, 20.0, asked)


def staged(asked: Asked) -> None:
    """Gaps over the certified bound, each plan verified."""
    seeds = asked.seeds(100)
    names = ("fcfs_slots", "sorted_preemptive", "lpt_threshold", "token_fill", "lagrangian_rule", "staged")
    gaps: dict[str, list[float]] = {name: [] for name in names}
    times, bounds = [], []
    for seed in seeds:
        instance = make("gsm8k-staged", np.random.default_rng(seed), {})
        ours = solve(instance, 60.0, asked.search_of(seed))
        times.append(ours.runtime_s)
        bounds.append(ours.certified_bound)
        for name in names:
            value = ours.objective if name == "staged" else solve(instance, 60.0, asked.search_of(seed), name).objective
            gaps[name].append(100 * (value / ours.certified_bound - 1))
    print("| method | mean gap | median | worst |")
    print("|---|---|---|---|")
    for name in names:
        print(f"| {name} | {np.mean(gaps[name]):.2f} % | {median(gaps[name]):.2f} % | {max(gaps[name]):.2f} % |")
    print(f"bound {np.mean(bounds):.2f} s on average; ours takes {median(times):.1f} s (slowest {max(times):.1f} s)")


def chat(asked: Asked) -> None:
    """Real or generated chat requests into KV budgets, and a million requests."""
    folder = os.environ.get("HEADROOM_DATA")
    trace = next(iter(sorted(Path(folder, "azure_llm_2023").glob("*.csv*"))), None) if folder else None
    seeds = asked.seeds(1, "generated requests")
    print("| requests | seed | capacity | bins | certified bound | s |")
    print("|---|---|---|---|---|---|")
    for capacity in (16_384, 65_536, 262_144):
        for seed in seeds if trace is None else seeds[:1]:
            if trace is None:
                instance = make("chat-65536", np.random.default_rng(seed), {"capacity_tokens": capacity})
            else:
                instance = IMPORTERS["azure-llm-requests"].load()(trace, capacity_tokens=capacity)[0]
            result = solve(instance, 60.0, asked.search_of(seed))
            what = f"{instance.count:,} generated | {seed}" if trace is None else f"{instance.count:,} real | -"
            print(f"| {what} | {capacity:,} | {result.objective:.0f} | {result.certified_bound:.0f} | {result.runtime_s:.2f} |", flush=True)
    for seed in seeds:
        million = make("backlog-million", np.random.default_rng(seed), {})
        result = run(million, "bins", SolveParams(seed=asked.search_of(seed), time_limit_s=60.0))
        print(f"| 10^6 generated | {seed} | 65,536 | {result.objective:.0f} | {result.certified_bound:.0f} | {result.runtime_s:.2f} |", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.2f} GiB")


def groups(asked: Asked) -> None:
    """What sharing is worth, and how near the bound plans are."""
    seeds = asked.seeds(5)
    print("| preset | seed | bins | certified bound | gap | s | ffd_grouped | ffd_prefix_blind |")
    print("|---|---|---|---|---|---|---|---|")
    for preset in ("shared-prefix", "adapters"):
        for seed in seeds:
            instance = make(preset, np.random.default_rng(seed), {})
            ours = solve(instance, 60.0, asked.search_of(seed))
            others = [f"{solve(instance, 60.0, asked.search_of(seed), name).objective:.0f}" for name in ("ffd_grouped", "ffd_prefix_blind")]
            cells = f"{ours.objective:.0f} | {ours.certified_bound:.0f} | {100 * ours.certified_gap:.2f} % | {ours.runtime_s:.1f}"
            print(f"| {preset} | {seed} | {cells} | " + " | ".join(others) + " |", flush=True)


def heuristics(asked: Asked) -> None:
    """Mean gaps of all that prove nothing."""
    seeds = asked.seeds(3)
    for preset in ("uniform-500", "triplet-120", "chat-65536", "shared-prefix", "gsm8k-staged"):
        gaps: dict[str, list[float]] = {}
        for seed in seeds:
            instance = make(preset, np.random.default_rng(seed), {})
            bound = solve(instance, 20.0, asked.search_of(seed)).certified_bound
            for name, entry in FAMILY.methods_for(instance).items():
                if entry.kind != "exact":
                    value = run(instance, name, SolveParams(seed=asked.search_of(seed))).objective
                    gaps.setdefault(name, []).append(100 * (value / bound - 1))
        ranked = sorted(gaps, key=lambda name: float(np.mean(gaps[name])))
        print(f"{preset}: " + ", ".join(f"{name} {np.mean(gaps[name]):.1f} %" for name in ranked), flush=True)


def files(names: Sequence[str], limit_s: float, asked: Asked) -> None:
    """Instances from files in the standard formats."""
    heading()
    for name in names:
        kind, _, path = name.partition(":")
        table(Path(path).name, [IMPORTERS[kind].load()(path)[0]], limit_s, asked)


def _at_least(least: int) -> Callable[[str], int]:
    """A reader of whole numbers for argparse, which says of others that they are no such number."""

    def whole_number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return int(text)

    return whole_number


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the chosen tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.request_packing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tables: dict[str, Callable[[Asked], None]] = {
        "known": known, "classes": classes, "hard": hard, "cmax": cmax, "staged": staged, "chat": chat, "groups": groups, "heuristics": heuristics
    }  # fmt: skip
    for name in tables:
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--file", action="append", default=[], help="bpp:PATH or cmax:PATH")
    parser.add_argument("--limit-s", type=float, default=60.0, help="time limit of --file")
    parser.add_argument("--seeds", type=_at_least(1), default=None, metavar="N", help="instances of each kind; default: as each table says")
    parser.add_argument("--search-seed", type=_at_least(0), default=None, metavar="S", help="seed of every search")
    parser.add_argument("--short", action="store_true", help="a few instances, in a moment")
    chosen = parser.parse_args(arguments)
    asked = Asked(chosen.seeds, chosen.search_seed)
    print(header("request_packing", None, 1), flush=True)
    if chosen.short:
        seeds = asked.seeds(1)
        heading()
        table("triplets 60", (triplets(np.random.default_rng(s), requests=60) for s in seeds), 10.0, asked)
        return
    warm()
    if chosen.file:
        files(chosen.file, chosen.limit_s, asked)
        return
    wanted = [name for name in tables if getattr(chosen, name)] or list(tables)
    for name in wanted:
        print(f"\n{name}", flush=True)
        tables[name](asked)


if __name__ == "__main__":
    main()
