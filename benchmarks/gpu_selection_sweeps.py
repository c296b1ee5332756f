"""Sweeps of GPU selection: warm-started re-solves beside the same values solved from scratch.

    python -m benchmarks.gpu_selection_sweeps            prices, caps and rates of two presets
    python -m benchmarks.gpu_selection_sweeps --short    the smaller preset alone, for `make bench`
    python -m benchmarks.gpu_selection_sweeps --slo TABLE TRACE    latency limits over a performance table and a trace, in place of the presets

Warm: each solve starts from the best plan known, and values that answers elsewhere prove are not solved (`headroom sweep`). Cold: every value from
scratch (`--cold`), a price sweep's breakpoints included. Both find the same costs to 2e-6, which is checked. One thread, branching to a gap of
1e-6; times are wall times of the call; imports and making the instance are not counted, the recheck of every certificate is. One sweep comes first
and is not counted.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.protocol import geometric_mean, header
from headroom.instances.gpu_selection_presets import make
from headroom.sweep import Sweep, sweep, sweep_slo

RATE_PER_S = 64.0
SWEEPS: tuple[tuple[str, str, list[float] | None], ...] = (
    ("price", "H100", list(np.linspace(1.0, 8.0, 15))),
    ("price", "A10G", list(np.linspace(0.2, 2.0, 15))),
    ("cap", "A100-80GB", list(range(13))),
    ("rate", "", list(np.geomspace(1, 4096, 13))),
)
TTFT_S, TPOT_S = (0.5, 1.0, 2.0, 4.0), (0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.2)
COLUMNS = ("sweep", "values", "mixes", "warm solves", "warm nodes", "warm s", "cold solves", "cold nodes", "cold s", "cold / warm s")


def row(name: str, run: Callable[..., Sweep]) -> float:
    """Print both ways of one sweep; the ratio of their times."""
    warm, cold = run(cold=False), run(cold=True)
    for one in warm.points:
        for other in cold.points:
            if one.at == other.at and one.objective != other.objective and abs(one.objective - other.objective) > 2e-6 * abs(other.objective):
                raise AssertionError(f"{name} at {dict(one.at)}: warm {one.objective!r}, cold {other.objective!r}")
    worst = max((point.certified_gap for point in warm.points if point.plan is not None), default=math.inf)
    if worst > 1e-6:
        raise AssertionError(f"{name}: a certified gap of {worst:.1e}")
    ratio = cold.runtime_s / warm.runtime_s
    values = sum(point.role == "value" for point in warm.points)
    line = f"| {name} | {values} | {len(warm.pieces) or '-'} | {warm.solves} | {warm.nodes} | {warm.runtime_s:.2f} | {cold.solves} | {cold.nodes}"
    print(f"{line} | {cold.runtime_s:.2f} | {ratio:.2f} |", flush=True)
    return ratio


def presets(names: tuple[str, ...], seed: int) -> list[float]:
    """Every sweep of every preset, with continuous shares and with 4 slices."""
    ratios = []
    for name in names:
        for slices in (None, 4):
            instance = make(name, np.random.default_rng(seed), {"total_rate_per_s": RATE_PER_S, "slices": slices})
            sweep(instance, "rate", values=[1.0])
            for what, index, values in SWEEPS:
                label = f"{name}, slices {slices or 'null'}: {what} {index}".rstrip()
                ratios.append(row(label, partial(sweep, instance, what, index, values)))
    return ratios


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="the smaller preset alone")
    parser.add_argument("--slo", nargs=2, type=Path, metavar=("TABLE", "TRACE"), help="latency limits over these files")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    print(header("GPU selection, sweeps: warm beside cold", [chosen.seed], 1))
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    if chosen.slo:
        table, trace = chosen.slo
        sweep_slo(table, trace, TTFT_S[-1:], TPOT_S[-1:])
        for rate in (5.0, 50.0, 500.0):
            row(f"TTFT x TPOT at {rate:g}/s", partial(sweep_slo, table, trace, TTFT_S, TPOT_S, total_rate_per_s=rate))
        return
    ratios = presets(("melange-4gpu-6x6",) if chosen.short else ("melange-4gpu-6x6", "melange-4gpu-10x6"), chosen.seed)
    print(f"\ncold time over warm time, geometric mean of {len(ratios)} sweeps: {geometric_mean(ratios):.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
