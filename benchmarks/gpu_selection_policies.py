"""GPU selection over epochs: what online policies cost over the clairvoyant optimum.

    python -m benchmarks.gpu_selection_policies              every group, 10 seeds (half an hour)
    python -m benchmarks.gpu_selection_policies --short      one group, 3 seeds
    python -m benchmarks.gpu_selection_policies --group NAME --seeds N --limit SECONDS

Each group is a kind of day with starts that take no epoch and with starts that take some. Generated groups come with seeds, and the mean of
cost / bound over them with a 95 % percentile bootstrap interval (2,000 resamples of the seeds); the Azure groups are one published trace (58 minutes
of production, times of llama2-70b from splitwise-sim) and have no interval. They need HEADROOM_DATA.

Bound: the certified lower bound on the clairvoyant optimum by `--method` within `--limit` seconds an instance ("auto" unless said); the row
"clairvoyant" is that method's plan over the same bound, so that what is left open there is not laid at a policy's door. A policy that drops
requests is cheaper than one that serves them: the dropped part of all requests stands beside every ratio, and "served" counts the instances that a
policy served without dropping any. "tuned" rows are the best of a stated grid in hindsight among settings that serve everything.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.protocol import header, timed
from headroom.formulations.types import SolveParams
from headroom.heuristics.gpu_selection_autoscaler import Follow, HoldK, Reactive, SeasonalNaive
from headroom.heuristics.gpu_selection_fleets import EpochMarket
from headroom.heuristics.gpu_selection_replay import EpochPolicy, replay_policy
from headroom.instances.gpu_selection import GpuSelection
from headroom.instances.gpu_selection_import import import_splitwise_perf
from headroom.instances.gpu_selection_presets import make
from headroom.run import run

RESAMPLES = 2000
START_COST_H = 0.05
"""Hours of its rent that a start costs on top, as in the presets: an assumption."""
POLICIES: Mapping[str, Callable[[EpochMarket], EpochPolicy]] = {
    "follow": Follow,
    "reactive": Reactive,
    "reactive, each type on its own load": partial(Reactive, mix="split"),
    "reactive, one type": partial(Reactive, mix="one"),
    "hold_k": HoldK,
    "hold_k, released at once": partial(HoldK, hold_epochs=0),
    "seasonal_naive": SeasonalNaive,
}
OFFLINE = {"static_peak": "static_peak", "reactive_tuned": "reactive, tuned"}


@dataclass(frozen=True)
class Group:
    """Instances of one kind, by seed; `seeds` None: one instance only."""

    title: str
    instance: Callable[[int], GpuSelection]
    seeded: bool = True


@dataclass(frozen=True)
class Record:
    """One policy on one instance: cost over the bound, dropped part of all requests (NaN: no plan at all), seconds."""

    ratio: float
    dropped: float
    seconds: float


def generated(preset: str, seed: int, **settings: Any) -> GpuSelection:
    """A preset over time."""
    return make(preset, np.random.default_rng(seed), settings)


def azure(epoch_s: float, delay: int, total_rate_per_s: float, seed: int) -> GpuSelection:
    """The Azure 2023 chat trace counted in epochs, scaled to a total rate, on measured times of llama2-70b."""
    data = Path(os.environ["HEADROOM_DATA"])
    table, trace = data / "splitwise_perf_model" / "perf_model.csv", data / "azure_llm_2023" / "AzureLLMInferenceTrace_conv.csv"
    chosen: dict[str, Any] = {"model": "llama2-70b", "hardware": ["a100-80gb", "h100-80gb"], "epoch_s": epoch_s, "start_delay_epochs": delay}
    instance, _ = import_splitwise_perf(table, trace, total_rate_per_s=total_rate_per_s, **chosen)
    assert instance.epochs is not None
    epochs = instance.epochs.model_dump() | {"start_cost_usd": tuple(START_COST_H * float(price) for price in instance.price_usd_per_h)}
    return instance.replace(epochs=epochs)


def groups() -> dict[str, Group]:
    """Every kind of day, by name."""
    five = {"epoch_s": 300.0, "total_rate_per_s": 560}
    table = {
        "day-5min": Group("day, epochs of 5 minutes, 560 requests/s, starts at once", lambda s: generated("day-4gpu-6x6", s, **five)),
        "day-5min-delay": Group("the same, starts take 5 minutes", lambda s: generated("day-4gpu-6x6", s, start_delay_epochs=1, **five)),
        "day-small": Group(
            "day, epochs of 5 minutes, 64 requests/s: few replicas", lambda s: generated("day-4gpu-6x6", s, epoch_s=300.0, total_rate_per_s=64)
        ),
        "week": Group("week by the hour, 560 requests/s, starts at once", lambda s: generated("week-4gpu-6x6", s, total_rate_per_s=560)),
        "week-delay": Group("the same, starts take an hour", lambda s: generated("week-4gpu-6x6", s, total_rate_per_s=560, start_delay_epochs=1)),
    }
    if "HEADROOM_DATA" in os.environ:
        table |= {
            "azure-1min": Group("Azure 2023 chat, by the minute, 50 requests/s, starts at once", partial(azure, 60.0, 0, 50.0), seeded=False),
            "azure-1min-delay": Group("the same, starts take 3 minutes", partial(azure, 60.0, 3, 50.0), seeded=False),
            "azure-10min": Group("Azure 2023 chat, epochs of 10 minutes, 50 requests/s", partial(azure, 600.0, 0, 50.0), seeded=False),
        }
    return table


def measured(instance: GpuSelection, method: str, limit_s: float) -> dict[str, Record]:
    """Every policy on one instance, and the clairvoyant method's own plan."""
    best, seconds = timed(lambda: run(instance, method, SolveParams(time_limit_s=limit_s)))
    bound = best.certified_bound
    if not (math.isfinite(bound) and bound > 0):
        raise SystemExit(f"{method} gave no certified bound for {instance.name} within {limit_s:g} s; try a longer --limit or another --method")
    records = {"clairvoyant": Record(best.objective / bound, 0.0 if best.plan is not None else math.nan, seconds)}
    for name, title in OFFLINE.items():
        found, seconds = timed(partial(run, instance, name))
        none = found.plan is None
        records[title] = Record(math.nan if none else found.objective / bound, math.nan if none else 0.0, seconds)
    for name, policy in POLICIES.items():
        replay, seconds = timed(partial(replay_policy, instance, policy))
        records[name] = Record(replay.cost_usd / bound, replay.unserved_share, seconds)
    return records


def interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean."""
    means = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def report(group: Group, seeds: range, method: str, limit_s: float) -> None:
    """One group's table."""
    chosen = seeds if group.seeded else range(1)
    every = [measured(group.instance(seed), method, limit_s) for seed in chosen]
    rng = np.random.default_rng(0)
    print(f"\n{group.title}; {len(chosen)} instance{'s' if len(chosen) > 1 else ''}\n")
    print("| policy | cost / bound, mean | 95 % interval | worst | dropped requests | served | s |\n|---|---|---|---|---|---|---|")
    for name in every[0]:
        rows = [records[name] for records in every]
        ratios = np.array([row.ratio for row in rows if not math.isnan(row.ratio)])
        served = sum(row.dropped == 0 for row in rows)
        if len(ratios):
            low, high = interval(ratios, rng) if len(ratios) > 1 else (math.nan, math.nan)
            cells = f"{ratios.mean():.4f} | {f'{low:.4f}–{high:.4f}' if len(ratios) > 1 else ''} | {ratios.max():.4f}"
        else:
            cells = "none | | "
        lost = np.array([row.dropped for row in rows if not math.isnan(row.dropped)])
        dropped = f"{100 * lost.mean():.3g}%" if len(lost) else ""
        print(f"| {name} | {cells} | {dropped} | {served} of {len(rows)} | {np.mean([row.seconds for row in rows]):.1f} |", flush=True)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    table = groups()
    parser.add_argument("--short", action="store_true", help="one group, three seeds")
    parser.add_argument("--group", choices=list(table), action="append", help="only this group; may be repeated")
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0")
    parser.add_argument("--method", default="auto", help="the clairvoyant method whose certified bound is the yardstick")
    parser.add_argument("--limit", type=float, default=60.0, help="its seconds an instance")
    chosen = parser.parse_args(arguments)
    seeds = range(3 if chosen.short else chosen.seeds)
    names = chosen.group or (["week"] if chosen.short else list(table))
    print(header("GPU selection over epochs, online policies over the clairvoyant bound", list(seeds), 1))
    print(f"bound: certified, method {chosen.method}, {chosen.limit:g} s an instance; starts cost {START_COST_H:g} h of rent")
    if "HEADROOM_DATA" not in os.environ:
        print("HEADROOM_DATA is not set: the Azure groups are left out")
    for name in names:
        report(table[name], seeds, chosen.method, chosen.limit)


if __name__ == "__main__":
    main(sys.argv[1:])
