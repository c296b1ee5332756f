"""Expert placement beside EPLB and certified bounds. JIT warm, reading and imports not counted, two threads unless said.

    python -m benchmarks.expert_placement --balance       58 x 256, lognormal sigma 1, 8 to 64 devices, five seeds, beside EPLB in numpy
    python -m benchmarks.expert_placement --groups        the same with 8 groups, each within a node
    python -m benchmarks.expert_placement --robust        one placement for two real tasks (HEADROOM_DATA) and for four generated ones
    python -m benchmarks.expert_placement --traffic       26 x 64 by a real trace (HEADROOM_DATA): cross-device share and certified bounds
    python -m benchmarks.expert_placement --small         8 x 32 and 16 x 24 chains, proved
    python -m benchmarks.expert_placement --full          DeepSeek-V3 with balance, traffic and nodes in 60 s

Without an option, all of them.
"""

from __future__ import annotations

import argparse
import os
import resource
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.expert_placement_eplb_numpy import rebalanced
from benchmarks.protocol import header, timed
from headroom.api import failover
from headroom.bounds.expert_placement import recheck
from headroom.bounds.expert_placement_balance import balance_layers
from headroom.formulations.expert_placement import ExpertPlan, boundary_traffic, evaluate, imbalance, layer_imbalance
from headroom.formulations.types import SolveParams
from headroom.heuristics.expert_placement import linear
from headroom.heuristics.expert_placement_affinity import exflow
from headroom.heuristics.expert_placement_eplb import eplb, eplb_hierarchical
from headroom.instances.expert_placement import ExpertPlacement
from headroom.instances.expert_placement_generators import correlated_loads, planted_transitions
from headroom.instances.expert_placement_import import import_expert_routing
from headroom.instances.expert_placement_presets import make
from headroom.run import Result, run

THREADS = 2


def solve(instance: ExpertPlacement, limit_s: float, seed: int = 0) -> Result:
    """Local search; every certificate rechecked."""
    result = run(instance, "local_search", SolveParams(seed=seed, time_limit_s=limit_s, threads=THREADS))
    for bound in result.bounds:
        assert recheck(instance, bound) >= bound.value * (1 - 1e-9) or bound.value == -np.inf, bound.method
    return result


def plan_of_baseline(found: Any) -> ExpertPlan | None:
    """A baseline's plan, whatever it says beside it."""
    return found if isinstance(found, ExpertPlan) else found.plan if found is not None else None


def balance(seeds: range, groups: bool) -> None:
    """Mean over layers and worst layer of max/mean, over its bound where groups make that more than 1."""
    print("| devices | slots | seed | ours: mean, worst layer | over the bound | s | EPLB | EPLB in numpy, one thread: s | times as fast |")
    print("|---|---|---|---|---|---|---|---|---|")
    cases = ((32, 288, 8), (64, 320, 8)) if groups else ((8, 288, None), (16, 288, None), (32, 288, None), (64, 320, None))
    for devices, slots, per_node in cases:
        for seed in seeds:
            load = np.random.default_rng(seed).lognormal(sigma=1.0, size=(1, 58, 256))
            grouped: dict[str, Any] = {"n_groups": 8, "group_limited": True} if groups else {}
            instance = ExpertPlacement(load=load, devices=devices, devices_per_node=per_node, slots_per_device=slots // devices, **grouped)
            if seed == seeds[0]:
                solve(instance, 2.0)
                eplb(instance, np.random.default_rng(0))
            result, seconds = timed(partial(solve, instance, 10.0))
            assert isinstance(result.plan, ExpertPlan)
            ours = layer_imbalance(instance, result.plan)
            over = ours.mean() / balance_layers(instance).mean() - 1
            baseline = plan_of_baseline((eplb_hierarchical if groups else eplb)(instance, np.random.default_rng(0)))
            theirs = "none" if baseline is None else f"{layer_imbalance(instance, baseline).mean():.4f}"
            nodes = instance.nodes if groups else 1
            _, numpy_s = timed(partial(rebalanced, load[0], slots, 8 if groups else 1, nodes, devices))
            line = f"| {devices} | {slots} | {seed} | {ours.mean():.6f}, {ours.max():.5f} | {100 * over:.4f} % | {seconds:.3f} |"
            print(f"{line} {theirs} | {numpy_s:.2f} | {numpy_s / seconds:.0f} |", flush=True)


def data_folder() -> Path | None:
    """The real traces, if HEADROOM_DATA names them."""
    name = os.environ.get("HEADROOM_DATA")
    return Path(name) / "esft_routing" if name else None


def robust(seeds: range) -> None:
    """One placement for all tasks, equal split."""
    columns = "mean over layers of the worst task | bound | gap, worst layer | s | EPLB on the tasks' mean | EPLB fitted to one task, on another"
    print(f"| tasks | devices x slots | seed | limit s | {columns} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    folder = data_folder()
    for devices, k in ((8, 9), (32, 3)):
        if folder is not None:
            files = [folder / "law.npz", folder / "intent.npz"]
            instance, _ = import_expert_routing(files, devices=devices, slots_per_device=k, no_transitions=True)
            _robust_row("law, intent", instance, 0, 10.0)
        for tasks in (4, 8):
            for seed in seeds:
                load = correlated_loads(np.random.default_rng(seed), tasks, 26, 64, 0.8, 0.15, 50_000)
                generated = ExpertPlacement(load=load, devices=devices, slots_per_device=k)
                _robust_row(f"{tasks} generated", generated, seed, 10.0)
            if devices == 32 and tasks == 4:
                _robust_row("4 generated", generated, seeds[-1], 120.0)


def _robust_row(label: str, instance: ExpertPlacement, seed: int, limit_s: float) -> None:
    result = solve(instance, limit_s, seed)
    other = []
    for task in range(2):
        fitted = plan_of_baseline(eplb(instance.replace(load=instance.load[task : task + 1]), np.random.default_rng(0)))
        assert fitted is not None
        other.append(float(imbalance(instance, fitted)[1 - task].mean()))
    line = f"| {label} | {instance.devices} x {instance.slots_per_device} | {seed} | {limit_s:.0f} | {result.objective:.4f} |"
    worst = result.details["layers"]["worst_gap"]
    line += f" {result.certified_bound:.4f} | {100 * result.certified_gap:.2f} %, {100 * worst:.2f} % | {result.runtime_s:.1f} |"
    alike = plan_of_baseline(eplb(instance, np.random.default_rng(0)))
    assert alike is not None
    print(f"{line} {layer_imbalance(instance, alike).mean():.2f} | {other[0]:.2f}, {other[1]:.2f} |", flush=True)


def traffic() -> None:
    """Cross-device share of the law task and its certified bounds; held out: the same placement on intent."""
    folder = data_folder()
    if folder is None:
        print("HEADROOM_DATA is not set: the affinity of real traces is left out")
        return
    print("| devices | linear | ExFlow | ours | b-matching | semidefinite chain | certified gap | s to the plan, in all | ours on intent |")
    print("|---|---|---|---|---|---|---|---|---|")
    for devices in (2, 4, 8, 16):
        options = {"devices": devices, "slots_per_device": 64 // devices, "balance_weight": 0.0, "traffic_weight": 1.0}
        law, _ = import_expert_routing([folder / "law.npz"], **options)
        intent, _ = import_expert_routing([folder / "intent.npz"], **options)
        result = solve(law, 32.0)
        assert isinstance(result.plan, ExpertPlan)
        shares = []
        for baseline in (linear, exflow):
            plan = plan_of_baseline(baseline(law, np.random.default_rng(0)))
            assert plan is not None
            shares.append(evaluate(law, plan).parts["traffic"])
        proved = {bound.method: bound.value for bound in result.bounds}
        elsewhere = float(boundary_traffic(intent, result.plan.slot_expert).mean())
        line = f"| {devices} | {shares[0]:.4f} | {shares[1]:.4f} | {result.objective:.4f} | {proved['b_matching']:.4f} |"
        found_s = next(at for at, objective, _ in result.trajectory if objective <= result.objective * (1 + 1e-9))
        line += f" {proved['chain_sdp']:.4f} | {100 * result.certified_gap:.2f} % | {found_s:.1f}, {result.runtime_s:.1f} | {elsewhere:.4f} |"
        print(line, flush=True)


def small(seeds: range) -> None:
    """Chains with few partitions, and one with too many."""
    print("| experts x layers, devices | seed | cross-device share | status | certified gap | s |")
    print("|---|---|---|---|---|---|")
    shapes = ((8, 32, 2, True), (8, 32, 4, True), (8, 32, 8, True), (16, 24, 2, True), (16, 24, 4, True), (16, 24, 4, False))
    for experts, layers, devices, planted in shapes:
        for seed in seeds:
            rng = np.random.default_rng(seed)
            load = rng.lognormal(sigma=0.4, size=(layers, experts))
            transition = rng.gamma(0.5, size=(layers - 1, experts, experts))
            transition /= transition.sum(axis=(1, 2), keepdims=True)
            if planted:
                transition = planted_transitions(rng, load, clusters=max(experts // 4, 2))
            weights = {"balance": 0.0, "traffic": 1.0}
            instance = ExpertPlacement(load=load[None], transition=transition, devices=devices, slots_per_device=experts // devices, weights=weights)
            result = solve(instance, 60.0)
            name = f"{experts} x {layers}, {devices}{'' if planted else ', without structure'}"
            print(
                f"| {name} | {seed} | {result.objective:.4f} | {result.status} | {100 * result.certified_gap:.3f} % | {result.runtime_s:.2f} |",
                flush=True,
            )


def full() -> None:
    """Balance, traffic and topology of DeepSeek-V3 together."""
    instance = make("deepseek-v3-full-ep32", np.random.default_rng(0), {})
    result = solve(instance, 58.0)
    assert result.evaluation is not None
    parts = result.evaluation.parts
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"balance {parts['balance']:.4f}, traffic {parts['traffic']:.4f}, objective {result.objective:.4f}")
    bounds = ", ".join(f"{bound.method} {bound.value:.4f}" for bound in result.bounds)
    print(f"certified gap {result.certified_gap:.3f}, {result.runtime_s:.1f} s, peak {peak:.0f} MiB; bounds {bounds}")
    for part, found in result.details["parts"].items():
        print(f"{part}: {found['value']:.4f}, certified bound {found['bound']:.4f}, gap {100 * found['gap']:.1f} %")
    lost = failover(instance, result.plan)
    print(f"worst device lost: {lost.lost_experts.max()} experts nobody else holds, imbalance after failover {lost.imbalance.max():.3f}")
    held = make("dsv2-lite-failover-ep8", np.random.default_rng(0), {})
    twice = solve(held, 10.0)
    lost = failover(held, twice.plan)
    print(f"{held.name}, every expert on two devices: balance {twice.objective:.6f}, {twice.runtime_s:.1f} s")
    print(f"certified gap {100 * twice.certified_gap:.4f} %", end=", ")
    print(f"worst device lost: {lost.lost_experts.max()} experts, imbalance after failover {lost.imbalance.max():.3f}")
    for name, baseline in (("EPLB", eplb), ("ExFlow", exflow)):
        plan = plan_of_baseline(baseline(instance, np.random.default_rng(0)))
        if plan is not None:
            print(f"{name}: objective {evaluate(instance, plan).objective:.4f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("balance", "groups", "robust", "traffic", "small", "full")
    for part in parts:
        parser.add_argument(f"--{part}", action="store_true")
    parser.add_argument("--short", action="store_true", help="one seed; no robust, traffic or full part")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(arguments)
    chosen = {part for part in parts if getattr(options, part)} or ({"balance", "groups", "small"} if options.short else set(parts))
    seeds = range(1 if options.short else options.seeds)
    print(header("expert_placement", list(seeds), THREADS))
    if "balance" in chosen:
        balance(seeds, groups=False)
    if "groups" in chosen:
        balance(seeds, groups=True)
    if "robust" in chosen:
        robust(range(min(len(seeds), 2)))
    if "traffic" in chosen:
        traffic()
    if "small" in chosen:
        small(range(min(len(seeds), 3)))
    if "full" in chosen:
        full()


if __name__ == "__main__":
    main()
