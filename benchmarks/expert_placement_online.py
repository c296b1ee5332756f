"""Online rebalancing over a load trace: imbalance and moves of policies that know the past, beside plans that know the future and the bound.

    python -m benchmarks.expert_placement_online            dsv2-lite-trace-ep8: 200 steps of drifting loads with task switches, five seeds

The bound is the mean over steps of what each step's imbalance is at least, whatever is moved (closed forms). `hindsight` is one placement for the
trace's total load, `every step` is re-optimised for each step's own loads: neither is possible online. Moves are experts fetched by devices, in
per cent of all slots a step. Medians over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from benchmarks.protocol import header, median
from headroom.bounds.expert_placement_balance import balance_layers
from headroom.formulations.expert_placement import ExpertPlan
from headroom.formulations.types import SolveParams
from headroom.heuristics.expert_placement_online import Deployment, MakePolicy, Periodic, Static, Threshold, replay_trace
from headroom.instances.expert_placement import ExpertPlacement
from headroom.instances.expert_placement_presets import make
from headroom.run import run

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
STEP_LIMIT_S = 0.5


class Known:
    """A plan made of what is to come: placements [L][R] by step."""

    lookahead_steps = 10**9

    def __init__(self, deployment: Deployment, placements: list[IntArray]) -> None:
        self.placements, self.step = placements, 0

    @property
    def settings(self) -> dict[str, object]:
        return {}

    def decide(self, last_load: FloatArray | None) -> IntArray:
        """The step's placement."""
        self.step += 1
        return self.placements[self.step - 1]


def optimised(instance: ExpertPlacement, load: FloatArray) -> IntArray:
    """The best placement found for loads [S][L][E]."""
    plan = run(instance.replace(load=load, load_trace=None), "local_search", SolveParams(time_limit_s=STEP_LIMIT_S, threads=2)).plan
    assert isinstance(plan, ExpertPlan)
    return plan.slot_expert


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one seed, 40 steps")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(arguments)
    seeds = list(range(1 if options.short else options.seeds))
    print(header("expert_placement_online", seeds, 2))
    found: dict[str, list[tuple[float, float, float, int]]] = {}
    bounds = []
    for seed in seeds:
        instance = make("dsv2-lite-trace-ep8", np.random.default_rng(seed), {})
        assert instance.load_trace is not None
        if options.short:
            instance = instance.replace(load_trace=instance.load_trace[:40])
        trace = instance.load_trace
        assert trace is not None
        bounds.append(float(np.mean([balance_layers(instance.replace(load=load[None], load_trace=None)).mean() for load in trace])))
        once = optimised(instance, trace.sum(axis=0, keepdims=True))
        each = [optimised(instance, load[None]) for load in trace]
        policies: dict[str, MakePolicy] = {"static (linear)": Static}
        policies |= {f"periodic, every {steps}": partial(Periodic, every_steps=steps) for steps in (1, 5, 10, 20, 50)}
        policies |= {f"threshold {at}": partial(Threshold, threshold=at) for at in (1.1, 1.25, 1.5)}
        policies |= {"hindsight: one placement": partial(Known, placements=[once] * len(trace)), "every step, known": partial(Known, placements=each)}
        for name, policy in policies.items():
            replay = replay_trace(instance, policy)
            share = 100 * float(replay.moves[1:].mean()) / (instance.layers * instance.slots)
            found.setdefault(name, []).append((float(replay.imbalance.mean()), float(np.quantile(replay.imbalance, 0.95)), share, replay.rebalances))
    print("| policy | mean imbalance | over the bound | 95 % of steps below | slots moved a step | rebalances |")
    print("|---|---|---|---|---|---|")
    lower = median(bounds)
    for name, rows in found.items():
        mean, high, share, times = (median([row[n] for row in rows]) for n in range(4))
        print(f"| {name} | {mean:.4f} | {100 * (mean / lower - 1):.1f} % | {high:.3f} | {share:.2f} % | {times:.0f} |")
    print(f"| bound | {lower:.4f} | | | | |")


if __name__ == "__main__":
    main()
