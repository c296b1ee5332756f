"""GPU selection by CP-SAT, which knows integers only.

Sliced instances are stated directly: loads are scaled by a power of two and rounded down, capacities and prices rounded so that every plan of
the instance is a solution of the integer model (a relaxation: its bound is valid). The loss this brings is reported.
If the rounding lets an overload through, the model is solved again with loads rounded up, for a plan that is feasible for certain.

Continuous shares are projected out (Benders 1962, doi 10.1007/BF01386316): CP-SAT chooses counts, one LP finds out whether shares exist for
them, and if not its Farkas prices w give the cut  sum_g u w_g n_g >= sum_i min_g w_g a_gi  (minus the replica lost, when z_h says there is one).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_boxes import Data, data_of
from headroom.bounds.gpu_selection_relaxation import Relaxation
from headroom.formulations.gpu_selection import counts, evaluate, most_replicas, plan_from_arrays
from headroom.formulations.progress import Progress
from headroom.formulations.types import SolveParams, Stop
from headroom.instances.gpu_selection import GpuSelection
from headroom.solvers.cpsat import CpAnswer, scale_down, scale_for, scale_up, solve_cp
from headroom.solvers.gpu_selection_shares import fixed, shares_for

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MOST_CUTS = 5000


@dataclass(frozen=True)
class CpOutcome:
    """What the family's CP-SAT method ends with; plans went to `progress`."""

    bound: float
    stop: Stop
    solver: str
    notes: tuple[str, ...] = ()


def solve(instance: GpuSelection, params: SolveParams, progress: Progress) -> CpOutcome:
    """Solve by the formulation that fits the instance."""
    if instance.pooled_slices is None:
        return _Benders(instance, params, progress).run()
    relaxed = _Direct(instance, params, progress, strict=False)
    outcome = relaxed.run()
    if outcome.stop == "completed" and outcome.bound < math.inf and progress.objective > outcome.bound + 1e-6 * abs(outcome.bound):
        # The relaxed model's optimum did not survive `evaluate`: ask for one that must.
        strict = _Direct(instance, params, progress, strict=True).run()
        return CpOutcome(outcome.bound, strict.stop, outcome.solver, (*outcome.notes, "solved again with loads rounded up"))
    return outcome


class _Counts:
    """What both models share: counts, caps, pools, who has a replica to lose, and the cost."""

    def __init__(self, instance: GpuSelection, params: SolveParams, progress: Progress) -> None:
        from ortools.sat.python import cp_model

        self.instance, self.params, self.progress = instance, params, progress
        self.data: Data = data_of(instance)
        self.most = most_replicas(instance)
        self.model: Any = cp_model.CpModel()
        gpus = range(len(instance.gpus))
        self.n = [self.model.new_int_var(int(min(instance.min_count[g], self.most[g])), int(self.most[g]), f"count_{g}") for g in gpus]
        for pool, limit in zip(instance.pool_gpus, instance.pool_limit, strict=True):
            self.model.add(sum(int(pool[g]) * self.n[g] for g in gpus if pool[g]) <= int(limit))
        self.has: list[Any] = []
        if instance.spare_replicas:
            self.has = [self.model.new_bool_var(f"has_{g}") for g in gpus]
            for g in gpus:
                self.model.add(self.n[g] <= int(max(self.most[g], 1)) * self.has[g])
                self.model.add(self.n[g] >= self.has[g])
        self.cost_scale = scale_for(float(instance.price_usd_per_h @ np.maximum(self.most, 1)))
        price = scale_down(instance.price_usd_per_h, self.cost_scale)
        self.model.minimize(sum(int(price[g]) * self.n[g] for g in gpus))

    def bound(self, answer: CpAnswer) -> float:
        """CP-SAT's integer bound in USD/h. Prices were rounded down, so it is valid; -inf stays -inf, infeasible +inf."""
        return answer.bound / self.cost_scale if math.isfinite(answer.bound) else answer.bound

    def on_bound(self, value: float) -> None:
        self.progress.raise_bound(value / self.cost_scale)


class _Direct(_Counts):
    """Slice counts as integer variables, one set a situation."""

    def __init__(self, instance: GpuSelection, params: SolveParams, progress: Progress, strict: bool) -> None:
        super().__init__(instance, params, progress)
        data, k = self.data, int(self.data.slices)
        gpus, items = data.can_serve.shape
        self.y: dict[tuple[int, int, int], Any] = {}
        for s in range(data.situations):
            for i in range(items):
                able = [g for g in range(gpus) if data.can_serve[g, i]]
                for g in able:
                    self.y[s, g, i] = self.model.new_int_var(0, k, f"slices_{s}_{g}_{i}")
                self.model.add(sum(self.y[s, g, i] for g in able) == k)
        for s in range(data.situations):
            for g in range(gpus):
                self._capacity(s, g, strict)
        self.loss = max((2 * items / (self._row_scale(g) * max(float(self.most[g]), 1.0)) for g in range(gpus)), default=0.0)

    def _row_scale(self, g: int) -> float:
        u = self.instance.max_utilisation
        return scale_for(2 * float(self.data.slice_load[g].sum() * self.data.slices + u * max(self.most[g], 1)))

    def _capacity(self, s: int, g: int, strict: bool) -> None:
        data, scale = self.data, self._row_scale(g)
        load = (scale_up if strict else scale_down)(data.slice_load[g], scale)
        u = np.array([data.instance.max_utilisation if strict else data.capacity])
        replica = int((scale_down if strict else scale_up)(u, scale)[0])
        busy = sum(int(load[i]) * self.y[s, g, i] for i in range(data.can_serve.shape[1]) if (s, g, i) in self.y)
        standing = self.n[g] - self.has[g] if s == g + 1 else self.n[g]
        # No enforcement literals, though a situation with nothing to lose needs no rows: with them CP-SAT 9.15's presolve cut off the optimum (5.01
        # claimed optimal, 4.00 feasible) on an instance of ours.
        self.model.add(busy <= replica * standing)

    def run(self) -> CpOutcome:
        instance, data = self.instance, self.data
        if self.progress.plan is not None:
            for g, n in enumerate(counts(instance, self.progress.plan)):  # type: ignore[arg-type]
                self.model.add_hint(self.n[g], int(n))
        keys = list(self.y)

        def offer(values: IntArray) -> None:
            n = values[: len(self.n)]
            tables = np.zeros((data.situations, len(instance.gpus), len(instance.work)))
            for (s, g, i), value in zip(keys, values[len(self.n) :], strict=True):
                tables[s, g, data.items[i]] = value / data.slices
            lost = {int(h): tables[1 + h] for h in np.flatnonzero(n > 0)} if data.situations > 1 else None
            self.progress.offer(plan_from_arrays(instance, n, tables[0], lost))

        answer = solve_cp(self.model, [*self.n, *self.y.values()], self.params, self.progress, offer, self.on_bound)
        if answer.values is not None:
            offer(answer.values)
        note = f"coefficients scaled to integers: at most {self.loss:.1e} of a capacity lost"
        return CpOutcome(self.bound(answer), answer.stop, answer.solver, (note,))


class _Benders(_Counts):
    """Counts by CP-SAT, shares by LP, Farkas cuts in between."""

    def run(self) -> CpOutcome:
        data, progress = self.data, self.progress
        relaxation = Relaxation(data)
        bound, solver = -math.inf, "CP-SAT"
        for iteration in range(MOST_CUTS):
            answer = solve_cp(self.model, self.n, self.params, progress)
            solver = answer.solver
            bound = max(bound, self.bound(answer))
            if math.isfinite(bound):
                progress.raise_bound(bound)
            if answer.values is None or answer.stop != "completed":
                return CpOutcome(bound, answer.stop, solver, (f"{iteration} Benders cuts",))
            n = answer.values.astype(np.float64)
            relaxed = relaxation.solve(fixed(data, n), progress.remaining_s)
            plan = shares_for(self.instance, answer.values) if relaxed.status == "optimal" else None
            if plan is not None and evaluate(self.instance, plan).feasible:
                progress.offer(plan)
                return CpOutcome(bound, "completed", solver, (f"{iteration} Benders cuts",))
            reason = progress.should_stop()
            if reason is not None:
                return CpOutcome(bound, reason, solver, (f"{iteration} Benders cuts",))
            if not self._add_cuts(relaxed.w, n):
                self._exclude(answer.values)
        return CpOutcome(bound, "error", solver, (f"gave up after {MOST_CUTS} Benders cuts",))

    def _exclude(self, n: IntArray) -> None:
        """At least one count must rise: what n cannot serve (even after a loss), no smaller fleet can."""
        rises = []
        for g, variable in enumerate(self.n):
            if n[g] < self.most[g]:
                literal = self.model.new_bool_var("")
                self.model.add(variable >= int(n[g]) + 1).only_enforce_if(literal)
                rises.append(literal)
        self.model.add_bool_or(rises)

    def _add_cuts(self, w: FloatArray, n: FloatArray) -> bool:
        """The cut of each situation's prices, for that situation and every other; whether one of them excludes n."""
        data = self.data
        excluded = False
        for prices in w:
            if not (prices > 0).any():
                continue
            need = np.where(data.can_serve, prices[:, None] * data.slice_load, np.inf).min(axis=0).sum() * data.slices
            scale = scale_for(4 * float(data.capacity * prices @ np.maximum(self.most, 1)) + 4 * float(need))
            capacity = scale_up(data.capacity * prices, scale)
            right = int(scale_down(np.array([need]), scale)[0])
            left = sum(int(c) * v for c, v in zip(capacity, self.n, strict=True))
            self.model.add(left >= right)
            excluded |= int(capacity @ n.astype(np.int64)) < right
            for h in range(len(self.has)):
                self.model.add(left - int(capacity[h]) >= right).only_enforce_if(self.has[h])
                excluded |= bool(n[h] >= 1) and int(capacity @ n.astype(np.int64)) - int(capacity[h]) < right
        return excluded
