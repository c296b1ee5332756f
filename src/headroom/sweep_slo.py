"""Cost over latency limits: a grid of (TTFT, TPOT), each cell imported anew from one performance table and one counted workload.

A plan for tighter limits is a plan for looser ones wherever no throughput falls when the limits are relaxed. That is checked cell by cell, not
assumed: an importer that takes the largest batch within TPOT may lose throughput by it. Where it holds, bounds of looser cells and plans of tighter
ones are reused (and a cost that contradicts it raises); where it does not, nothing but the shares is carried over, and a notice says so.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headroom.formulations.types import Plan, Stop
from headroom.instances.errors import InputError
from headroom.instances.gpu_selection import GpuSelection
from headroom.sweep_kinds import Sweeper
from headroom.sweep_solver import NO_FLOOR, Floor, Solver
from headroom.sweep_types import Point, Sweep

COUNTING = ("trace_format", "prompt_edges", "output_edges", "total_rate_per_s", "duration_s")
"""Options that say how the trace is counted; the other options are about the table."""
MOST_CELLS = 2500
Cell = tuple[float, float]


class SloSweep(Sweeper):
    """The grid of all pairs of limits, loosest first: a cell equal to a looser one, or without a plan like it, is then answered at once."""

    def __init__(
        self,
        table: str | Path,
        trace: str | Path,
        ttft_s: Sequence[float],
        tpot_s: Sequence[float],
        solver: Solver,
        parameters: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        for name, limits in (("ttft_s", ttft_s), ("tpot_s", tpot_s)):
            if not limits or any(not (0 < value < math.inf) for value in limits):
                raise InputError(f"must be a list of positive numbers of seconds, got {list(limits)}", name)
        self.cells: list[Cell] = [(ttft, tpot) for ttft in sorted(set(ttft_s)) for tpot in sorted(set(tpot_s))]
        if len(self.cells) > MOST_CELLS:
            raise InputError(f"has {len(self.cells)} pairs of limits; expected at most {MOST_CELLS}", "slo")
        self.source = Source(Path(table), Path(trace), options)
        self.notices = list(self.source.notices)
        self.instances: dict[Cell, GpuSelection] = {}
        with self.source.counted() as counted:
            self._import(self.cells[-1], counted)
        super().__init__(self.instances[self.cells[-1]], solver, parameters)
        self.found: dict[Cell, Point] = {}

    def _import(self, cell: Cell, counted: Path) -> None:
        if cell in self.instances:
            return
        self.instances[cell], said = self.source.instance(cell, counted)
        # That no type serves an item is what an infeasible cell says by itself.
        self.notices += [notice for notice in said if not notice.startswith("no type serves ")]

    def work(self) -> None:
        with self.source.counted() as counted:
            for cell in reversed(self.cells):
                if self.solver.stopped:
                    return
                self._import(cell, counted)
                self.found[cell] = self._answer(cell)
        self.notices += list(self._contradictions())

    def _answer(self, cell: Cell) -> Point:
        from headroom.solvers.gpu_selection_sweeps import carried, fleet

        instance = self.instances[cell]
        looser = [self.found[other] for other in self.found if self._relaxes(cell, other)]
        floor = max((Floor(point.bound, point.certified_bound, "monotonicity") for point in looser), key=lambda item: item.bound, default=NO_FLOOR)
        plans: list[Plan] = []
        for other in sorted(self.found, key=lambda other: _steps(cell, other))[:3]:
            if (plan := self.found[other].plan) is not None:
                plans += carried(instance, plan)
        for other in self.found:
            if (plan := self.found[other].plan) is not None and self._relaxes(other, cell):
                plans.append(plan)
        return self.solver.answer(_at(cell), instance, plans, floor, lambda plan: fleet(instance, plan))

    def _relaxes(self, tight: Cell, loose: Cell) -> bool:
        """Whether every plan of `tight` is proved to be one of `loose` at the same cost."""
        from headroom.solvers.gpu_selection_sweeps import dominates

        wider = loose[0] >= tight[0] and loose[1] >= tight[1]
        return wider and dominates(self.instances[loose], self.instances[tight])

    def _contradictions(self) -> Iterator[str]:
        """Neighbouring cells where relaxing a limit takes throughput away, and what that does to the cost."""
        for cell in self.cells:
            for axis in (0, 1):
                wider = [other for other in self.cells if other[1 - axis] == cell[1 - axis] and other[axis] > cell[axis]]
                if not wider or self._relaxes(cell, wider[0]):
                    continue
                dearer = self.found[wider[0]].certified_bound > self.found[cell].objective
                what = "and the cost rises" if dearer else "the cost does not rise"
                yield f"from {_named(cell)} to {_named(wider[0])} {self._lost(cell, wider[0])}: {what}"

    def _lost(self, tight: Cell, loose: Cell) -> str:
        """The largest relative loss of throughput between two cells."""
        before, after = (np.nan_to_num(self.instances[cell].throughput_per_s, nan=0.0) for cell in (tight, loose))
        share = np.where(before > 0, 1 - after / np.where(before > 0, before, 1.0), 0.0)
        g, i = np.unravel_index(int(np.argmax(share)), share.shape)
        instance = self.instances[tight]
        return f"{instance.gpus[g].name} loses up to {share[g, i]:.1%} of its throughput ({instance.work[i].name}) because a larger batch is slower"

    def so_far(self, stop: Stop | None = None) -> Sweep:
        points = tuple(self.found[cell] for cell in self.cells if cell in self.found)
        axes = {"ttft_s": "s", "tpot_s": "s"}
        return self._sweep("slo", "latency limits", axes, stop, points=points, notes=tuple(dict.fromkeys(self.notices)))


class Source:
    """A performance table and a trace that was counted once, at the edges the table was measured at: instances under any limits."""

    def __init__(self, table: Path, trace: Path, options: Mapping[str, Any]) -> None:
        from headroom.instances.catalogue import load_catalogue
        from headroom.instances.gpu_selection_import import DEFAULT_USABLE_MEMORY_SHARE
        from headroom.instances.gpu_selection_replicas import choose_replicas
        from headroom.instances.performance_table import read_performance_table
        from headroom.instances.request_traces import read_trace

        self.table, self.trace = table, trace
        counting = {name: value for name, value in options.items() if name in COUNTING}
        self.options = {name: value for name, value in options.items() if name not in COUNTING}
        replicas = choose_replicas(
            read_performance_table(table), load_catalogue(options.get("catalogue")),
            model=options.get("model"), hardware=options.get("hardware"), tp=options.get("tp"), price=options.get("price") or {},
            stock=options.get("stock") or {}, usable_memory_share=options.get("usable_memory_share", DEFAULT_USABLE_MEMORY_SHARE), source=str(table),
        ).replicas  # fmt: skip
        self.workload, self.notices = read_trace(
            trace,
            **counting,
            split_prompt=sorted({replica.measured.max_prompt_tokens for replica in replicas}),
            split_output=sorted({replica.measured.max_output_tokens for replica in replicas}),
        )

    @contextlib.contextmanager
    def counted(self) -> Iterator[Path]:
        """The counted workload as a file for as long as the context lasts."""
        with tempfile.TemporaryDirectory(prefix="headroom-") as folder:
            path = Path(folder) / f"{self.trace.name}.json"
            self.workload.save(path)
            yield path

    def instance(self, cell: Cell, counted: Path) -> tuple[GpuSelection, list[str]]:
        """The instance under a cell's limits, and the importer's notices."""
        from headroom.instances.gpu_selection_import import import_splitwise_perf

        return import_splitwise_perf(self.table, counted, **self.options, trace_format="workload", ttft_s=cell[0], tpot_s=cell[1])


def _at(cell: Cell) -> dict[str, float]:
    return {"ttft_s": cell[0], "tpot_s": cell[1]}


def _named(cell: Cell) -> str:
    return f"TTFT {cell[0]:g} s, TPOT {cell[1]:g} s"


def _steps(cell: Cell, other: Cell) -> float:
    """How far two cells are apart, by the ratios of their limits."""
    return abs(math.log(cell[0] / other[0])) + abs(math.log(cell[1] / other[1]))
