"""KV-cache tiering: certified gaps, beside the LP, the policies and the annealed schedule. JIT warm, generating not counted, two threads unless said.

    python -m benchmarks.kv_tiering --bandwidth   the bandwidth bound for Fang et al.'s constants (arXiv 2508.13231)
    python -m benchmarks.kv_tiering --lp          500 x 100: share of the LP's value and seconds beside HiGHS (simplex, IPM)
    python -m benchmarks.kv_tiering --small       150 x 40: what the rounding cut adds to the LP, and HiGHS on the whole model for two minutes
    python -m benchmarks.kv_tiering --drift       4,000 x 500 with drift 0.02, 0.1, 0.5: certified gap after 30 s; policies and annealing beside it
    python -m benchmarks.kv_tiering --tiers       three tiers with an SSD, 2,000 x 300
    python -m benchmarks.kv_tiering --paper       the paper's model scaled down, low and high randomness: what of the annealing's gap is real
    python -m benchmarks.kv_tiering --scale 8     10^6 .. 10^8 block-steps: ns a block-step and round, gap, seconds, peak memory (9: 10^9 too)
    python -m benchmarks.kv_tiering --whole       the paper's whole instance in pages of 16 tokens (an hour and some 10 GiB)

Without an option, all but the last.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import resource
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from benchmarks.protocol import header, median, timed
from headroom.bounds.kv_tiering import recheck
from headroom.bounds.kv_tiering_closed import bandwidth_value
from headroom.bounds.kv_tiering_lagrangian import Multipliers
from headroom.bounds.kv_tiering_lp import lp_prices
from headroom.bounds.kv_tiering_search import ROUNDS, Dual, search
from headroom.formulations.progress import Progress
from headroom.formulations.types import SolveParams
from headroom.instances.kv_tiering import KvTiering
from headroom.instances.kv_tiering_generators import drifting_reads, trace_bytes
from headroom.instances.kv_tiering_presets import DECODE_TOKENS, KV_ENTRY_BYTES, LAYERS, PROMPT_TOKENS, WEIGHT_BYTES, make
from headroom.run import Result, run

THREADS = 2
BASELINES = ("static", "lru", "lfu", "price_index", "page_lookahead", "belady", "sa_lookahead")
GH200_BYTES_PER_S = 4.9e12 + 4.5e11


def drifting(blocks: int, steps: int, drift: float, seed: int) -> KvTiering:
    """Two tiers 8:1, room for a quarter, a tenth of the blocks read in each step."""
    return drifting_reads(np.random.default_rng(seed), blocks, steps, read_share=0.1, drift=drift, capacity_share=0.25, ratio=8.0)


def solve(instance: KvTiering, limit_s: float | None, method: str = "lagrangian", seed: int = 0) -> Result:
    """One run; every certificate rechecked."""
    result = run(instance, method, SolveParams(seed=seed, time_limit_s=limit_s, threads=THREADS))
    for bound in result.bounds:
        assert bound.proof == "solver" or recheck(instance, bound) >= bound.value * (1 - 1e-9), bound.method
    return result


def warm() -> None:
    """Compile what two and three tiers need."""
    for preset in ("toy", "three-tier-ssd"):
        overrides = {} if preset == "toy" else {"blocks": 50, "steps": 20}
        instance = make(preset, np.random.default_rng(0), overrides)
        for method in ("lagrangian", *BASELINES):
            run(instance, method, SolveParams(time_limit_s=5.0, threads=THREADS))


def bandwidth() -> None:
    """Published figures, from the closed form over all steps."""
    print("| sparsity | bandwidth bound, s | published, s |")
    print("|---|---|---|")
    for sparsity, published in ((0.4, 31.904), (0.6, 24.595), (0.85, 15.459), (0.9, 13.631)):
        total = trace_bytes(
            layers=LAYERS,
            prompt_tokens=PROMPT_TOKENS,
            decode_tokens=DECODE_TOKENS,
            sparsity=sparsity,
            kv_entry_bytes=KV_ENTRY_BYTES,
            page_tokens=1,
            fixed_read_bytes=WEIGHT_BYTES,
        )
        print(f"| {sparsity} | {total / GH200_BYTES_PER_S:.3f} | {published} |")


def linear_program(seeds: range) -> None:
    """How much of the LP's value the search has when, without the rounding cut, which the LP does not know."""
    print("| drift | seed | LP, s: simplex | IPM | rounds | share of the LP | s | with the cut | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    params = SolveParams()
    for drift in (0.1, 0.5):
        for seed in seeds:
            instance = drifting(500, 100, drift, seed)
            prices = partial(lp_prices, instance, params, Progress(params))
            exact, simplex_s = timed(partial(prices, "simplex"))
            _, ipm_s = timed(partial(prices, "ipm"))
            for rounds in (1, 2, 4):
                plain, plain_s = timed(partial(_searched, instance, rounds, False))
                cut, cut_s = timed(partial(_searched, instance, rounds, True))
                cells = f"{rounds} | {plain / exact.claimed:.6f} | {plain_s:.2f} | {cut / exact.claimed:.6f} | {cut_s:.2f}"
                print(f"| {drift} | {seed} | {simplex_s:.1f} | {ipm_s:.1f} | {cells} |")


def _searched(instance: KvTiering, rounds: int, cuts: bool) -> float:
    with Dual(instance, THREADS, cuts) as dual:
        return search(dual, rounds=ROUNDS[:rounds])[0]


def small(seeds: range) -> None:
    """Integrality costs here: the LP, the LP with rounding cuts, HiGHS' own bound, the best plans."""
    print("| seed | LP | with rounding cuts (certified) | HiGHS in 120 s: bound | plan | plan without HiGHS | s | certified gap |")
    print("|---|---|---|---|---|---|---|---|")
    for seed in seeds:
        instance = drifting(150, 40, 0.1, seed)
        linear = _searched(instance, 12, False)
        ours = solve(instance, 60.0, seed=seed)
        exact = solve(instance, 120.0, "highs", seed)
        said = f"{linear:.3f} | {ours.certified_bound:.3f} | {exact.bound:.3f} | {exact.objective:.3f} | {ours.objective:.3f}"
        print(f"| {seed} | {said} | {ours.runtime_s:.1f} | {100 * ours.certified_gap:.2f} % |")


def drift(seeds: range, limit_s: float) -> None:
    """Certified gaps at a time limit; each method's excess over the certified bound."""
    print(f"| drift | seed | plan, s | certified bound, s | gap | after {limit_s:g} s | over the bandwidth bound | " + " | ".join(BASELINES) + " |")
    print("|---|---|---|---|---|---|---|" + "---|" * len(BASELINES))
    for share in (0.02, 0.1, 0.5):
        gaps = []
        for seed in seeds:
            instance = make(f"drift-{share}", np.random.default_rng(seed), {})
            result = solve(instance, limit_s, seed=seed)
            bound = result.certified_bound
            gaps.append(result.certified_gap)
            over = [f"+{100 * (run(instance, name, SolveParams(seed=seed)).objective / bound - 1):.1f} %" for name in BASELINES]
            loose = 100 * (1 - bandwidth_value(instance) / result.objective)
            cells = f"{result.objective:.1f} | {bound:.1f} | {100 * result.certified_gap:.3f} % | {result.runtime_s:.1f} | {loose:.1f} % | "
            print(f"| {share} | {seed} | {cells}" + " | ".join(over) + " |")
        print(f"| {share} | median | | | {100 * median(gaps):.3f} % | | | " + " | " * len(BASELINES))


def tiers(seeds: range, limit_s: float) -> None:
    """HBM, DRAM and an SSD that keeps a copy."""
    print("| preset | seed | plan, s | certified bound, s | gap | after, s |")
    print("|---|---|---|---|---|---|")
    for seed in seeds:
        instance = make("three-tier-ssd", np.random.default_rng(seed), {})
        result = solve(instance, limit_s, seed=seed)
        gap = f"{100 * result.certified_gap:.3f} %"
        print(f"| three-tier-ssd | {seed} | {result.objective:.5f} | {result.certified_bound:.5f} | {gap} | {result.runtime_s:.1f} |")


def paper(seeds: range, limit_s: float) -> None:
    """Of the annealed schedule's distance to the bandwidth bound: how much a better schedule saves, and how much is not even possible."""
    print("| randomness | seed | bandwidth | certified bound | best plan | gap | " + " | ".join(BASELINES) + " | real share of annealing's gap |")
    print("|---|---|---|---|---|---|" + "---|" * (len(BASELINES) + 1))
    for preset, label in (("gh200-llama3.1-8b", "low"), ("gh200-llama3.1-8b-scaled", "low, 1/64"), ("gh200-llama3.1-8b-scaled-random", "high, 1/64")):
        for seed in seeds:
            instance = make(preset, np.random.default_rng(seed), {})
            result = solve(instance, limit_s, seed=seed)
            loose = bandwidth_value(instance)
            times = [run(instance, name, SolveParams(seed=seed)).objective for name in BASELINES]
            annealed = times[BASELINES.index("sa_lookahead")]
            least, most = (annealed - result.objective) / (annealed - loose), (annealed - result.certified_bound) / (annealed - loose)
            cells = [f"{1e3 * value:.4f}" for value in (loose, result.certified_bound, result.objective)] + [f"{100 * result.certified_gap:.2f} %"]
            print(
                f"| {label} | {seed} | "
                + " | ".join(cells + [f"{1e3 * value:.4f}" for value in times])
                + f" | {100 * least:.0f}-{100 * most:.0f} % |"
            )
    print("Times in ms.")


SIZES = {6: (2_000, 500, 60.0), 7: (10_000, 1_000, 120.0), 8: (50_000, 2_000, 600.0), 9: (200_000, 5_000, 1_500.0)}
"""Blocks, steps, time limit in s by the logarithm of block-steps."""


def scale(largest: int) -> None:
    """Each size in a process of its own, whose peak memory it is."""
    print("| block-steps | reads | ns a block-step and round | ns a read and round | plan, s | gap | after, s | peak memory, GiB |")
    print("|---|---|---|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for size in range(6, largest + 1):
        worker = context.Process(target=_one_size, args=(size,))
        worker.start()
        worker.join()


def _one_size(size: int) -> None:
    blocks, steps, limit_s = SIZES[size]
    warm()
    instance = drifting(blocks, steps, 0.1, 0)
    reads = len(instance.reads.block)
    with Dual(instance, THREADS) as dual:
        at = dual.start()
        dual.at(at)
        rounds = 10 if size < 9 else 3
        _, taken = timed(partial(_rounds, dual, at, rounds))
    del dual
    gc.collect()
    result = solve(instance, limit_s)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    each = taken / rounds * 1e9
    speed = f"{each / instance.block_steps:.2f} | {each / reads:.1f}"
    gap = f"{100 * result.certified_gap:.3f} %"
    print(f"| {instance.block_steps:.0e} | {reads:,} | {speed} | {result.objective:.1f} | {gap} | {result.runtime_s:.0f} | {peak:.2f} |", flush=True)


def _rounds(dual: Dual, at: Multipliers, rounds: int) -> None:
    for _ in range(rounds):
        dual.at(at)


def whole(limit_s: float) -> None:
    """The paper's 32 layers, 31,298 + 10,240 tokens, 60 % sparsity, in pages of 16 tokens."""
    instance, made_s = timed(lambda: make("gh200-llama3.1-8b", np.random.default_rng(0), {"scale": 1.0, "sparsity": 0.6}))
    print(f"{instance.blocks:,} blocks, {instance.steps:,} steps, {len(instance.reads.block):,} reads, made in {made_s:.0f} s", flush=True)
    result = solve(instance, limit_s)
    for bound in result.bounds:
        print(f"{bound.method}: {bound.value:.5f} s", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"plan {result.objective:.5f} s, certified gap {100 * result.certified_gap:.3f} %, {result.runtime_s:.0f} s, {peak:.1f} GiB")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the chosen tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kv_tiering", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("bandwidth", "lp", "small", "drift", "tiers", "paper", "whole"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--scale", type=int, choices=sorted(SIZES), default=None)
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 .. SEEDS - 1 where a table has a column for them")
    parser.add_argument("--limit-s", type=float, default=30.0, help="time limit of --drift, --tiers and --paper")
    parser.add_argument("--whole-limit-s", type=float, default=3_000.0)
    parser.add_argument("--short", action="store_true", help="the bandwidth table and one drift, in a moment")
    chosen = parser.parse_args(arguments)
    seeds = range(chosen.seeds)
    print(header("kv_tiering", list(seeds), THREADS), flush=True)
    warm()
    tables: dict[str, Callable[[], None]] = {
        "bandwidth": bandwidth,
        "lp": lambda: linear_program(seeds),
        "small": lambda: small(seeds),
        "drift": lambda: drift(seeds, chosen.limit_s),
        "tiers": lambda: tiers(seeds, chosen.limit_s),
        "paper": lambda: paper(seeds, chosen.limit_s),
        "scale": lambda: scale(chosen.scale or 8),
        "whole": lambda: whole(chosen.whole_limit_s),
    }
    if chosen.short:
        bandwidth()
        tiers(range(1), 10.0)
        return
    wanted = [name for name in tables if getattr(chosen, name)]
    for name in wanted or [name for name in tables if name != "whole"]:
        print(f"\n{name}", flush=True)
        tables[name]()


if __name__ == "__main__":
    main()
