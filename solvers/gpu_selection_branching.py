"""Branch and bound for GPU selection whose tree is the proof.

At each node the linear relaxation over the node's box gives prices; the prices alone give the node's bound and shrink its box
(`bounds.gpu_selection_tree.node_box`, the very function that the recheck runs). Counts are branched on before slices: the cost
depends on counts alone, and once they are fixed the slices are a feasibility question that prices usually settle at once.

Search: best bound first with plunging (the child nearer to the LP solution is looked at next, which also keeps the simplex basis
close), so that the bound rises and incumbents come early. The tree is grown in rounds: a round looks only for plans cheaper than a target
between bound and incumbent, as if a plan of that cost were known, which makes its prices cut far more. A round that finds none has
proved the target; the next one starts anew with a higher target and all the cuts. Anytime: stopped early, the open nodes become leaves and
the better of this round's and the last round's tree is the proof. Exact within OPTIMALITY_GAP given time.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headroom.bounds.gpu_selection_boxes import Box, Data, active, data_of, propagate, root_box
from headroom.bounds.gpu_selection_cuts import rounding_cut
from headroom.bounds.gpu_selection_relaxation import Relaxation, Relaxed
from headroom.bounds.gpu_selection_tree import ON_COUNT, ON_SLICES, REFINE, CutPool, Node, Split, halves, node_box, to_certificate
from headroom.formulations.progress import Progress
from headroom.formulations.tolerances import INTEGRALITY, OPTIMALITY_GAP
from headroom.formulations.types import Bound, SolveParams, Stop
from headroom.heuristics.gpu_selection import plan_of
from headroom.heuristics.gpu_selection_consolidate import consolidate, counts_for, fits
from headroom.instances.gpu_selection import GpuSelection
from headroom.solvers.gpu_selection_shares import plan_with_spares, shares_for

MOST_CUTS = 60
MOST_CUT_ROUNDS = 10
CONSOLIDATED_CELLS = 2000
"""Types x items up to which consolidating an LP solution now and then is cheap beside solving nodes."""
TRACE = 1e-13
LONGEST_DIVE = 200
SPRINT_NODES = 50
"""Nodes of a first round without cuts or target, which settles easy instances before either pays."""
TARGETS = (0.0, 0.55, 1.0)
"""Where a round's target lies between the bound and the incumbent; 0 is the root node with its cuts."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Open:
    """A node not yet looked at: its box, and the bound and prices it inherits."""

    node: Node
    box: Box
    bound: float
    refined: int = 0
    """How often cuts have been added at this node already."""


@dataclass(frozen=True)
class Proof:
    """What the search ends with."""

    bound: Bound
    stop: Stop
    nodes: int
    unresolved: int


class Search:
    """One branch-and-bound run. Reports incumbents and the bound to `progress`, which also tells it when to stop."""

    def __init__(self, instance: GpuSelection, params: SolveParams, progress: Progress, ask: Callable[[], None] | None = None) -> None:
        """`ask`, called once if the first round does not settle the matter, may offer `progress` a better plan from elsewhere."""
        self.instance, self.progress, self.ask = instance, progress, ask
        self.data: Data = data_of(instance)
        self.margin = 0.5 * max(OPTIMALITY_GAP, params.gap_limit or 0.0)
        self.target = math.inf
        self.cutting = False
        self.root: Node
        self.relaxation: Relaxation | None = None
        self.cuts = CutPool(self.data)
        self.heap: list[tuple[float, int, Open]] = []
        self.closed_at = math.inf
        """Least bound of the leaves that could not be closed: numerical ties."""
        self.unresolved = 0
        self.nodes = 0

    @property
    def prune_at_incumbent(self) -> float:
        """Cost at and above which plans are no better than the incumbent by more than the tolerance."""
        objective = self.progress.objective
        return objective - self.margin * abs(objective) if math.isfinite(objective) else math.inf

    @property
    def prune_at(self) -> float:
        """Cost at and above which plans do not interest this round."""
        return min(self.target, self.prune_at_incumbent)

    def run(self) -> Proof:
        """Search, in rounds, until a tree is closed at the incumbent or `progress` says stop."""
        proof = self._round(1.0, SPRINT_NODES)
        self.cutting = True
        for part in TARGETS:
            settled = proof.bound.value >= self.prune_at_incumbent or proof.bound.value == math.inf
            if proof.stop != "completed" or settled:
                break
            if part > 0:
                self._dive()
            if self.ask is not None:
                self.ask()
                self.ask = None
            following = self._round(part)
            better = following if following.bound.value >= proof.bound.value else proof
            proof = Proof(better.bound, following.stop, self.nodes, self.unresolved)
            self.progress.keep(proof.bound)
        return proof

    def _round(self, part: float, most_nodes: float = math.inf) -> Proof:
        """One tree, for plans cheaper than a target `part` of the way from the best bound to the incumbent (1: the incumbent itself)."""
        most_nodes += self.nodes
        floor, objective = self.progress.bound, self.progress.objective
        self.target = floor + part * (objective - floor) if part < 1 and math.isfinite(objective) and math.isfinite(floor) else math.inf
        self.root = Node(np.zeros((self.data.situations, len(self.data.price))), np.zeros(len(self.data.pool_limit)))
        self.heap, self.closed_at = [], math.inf
        following: Open | None = Open(self.root, root_box(self.data), -math.inf)
        stop: Stop = "completed"
        while following is not None or self.heap:
            reason = self.progress.should_stop()
            if reason is not None:
                stop = reason
                break
            if following is None:
                _, _, following = heapq.heappop(self.heap)
                if following.bound >= self.prune_at:
                    following = None
                    continue
            following = self._look_at(following)
            self._report(following)
            if (part == 0 and self.heap) or self.nodes >= most_nodes:
                break  # target 0 is the root and its cuts
        value = min([self.prune_at, self.closed_at, *self._open_bounds(following)])
        bound = Bound(value, "branch_tree", "certificate", to_certificate(self.root, self.cuts, self.prune_at))
        return Proof(bound, stop, self.nodes, self.unresolved)

    def _open_bounds(self, following: Open | None) -> list[float]:
        return [item[2].bound for item in self.heap] + ([following.bound] if following is not None else [])

    def _report(self, following: Open | None) -> None:
        best_open = self.heap[0][0] if self.heap else math.inf
        floor = min(best_open, following.bound if following else math.inf, self.closed_at, self.prune_at)
        if math.isfinite(floor):
            self.progress.raise_bound(floor)

    def _dive(self) -> None:
        """One dive for a plan: fix the count (then the slice count) nearest to an integer, re-solve, until nothing is fractional or left to gain."""
        if self.relaxation is None:
            return  # the root needed no LP
        box: Box | None = propagate(self.data, root_box(self.data))
        for _ in range(LONGEST_DIVE):
            if box is None or self.progress.should_stop() is not None:
                return
            relaxed = self.relaxation.solve(box, self.progress.remaining_s)
            if relaxed.status != "optimal" or relaxed.objective >= self.progress.objective:
                return
            self._try_rounding(relaxed, closely=False)
            split = self._nearest(box, relaxed)
            if split is None:
                return
            kind, s, g, i, at = split
            point = relaxed.n[g] if kind == ON_COUNT else relaxed.y[s, g, i]
            sides = [propagate(self.data, side) for side in halves(box, split)]
            near, far = (sides[1], sides[0]) if point - at > 0.5 else (sides[0], sides[1])
            box = near or far

    def _nearest(self, box: Box, relaxed: Relaxed) -> Split | None:
        """The split that the LP solution nearly obeys already: the count, or else the slice count, nearest to an integer."""
        n = np.clip(relaxed.n, box.n_lo, box.n_hi)
        off = np.abs(n - np.round(n))
        free = (box.n_hi > box.n_lo) & (off > INTEGRALITY)
        if free.any():
            g = int(np.argmin(np.where(free, off, np.inf)))
            return ON_COUNT, 0, g, 0, math.floor(n[g])
        if not self.data.integral:
            return None
        y = np.clip(relaxed.y, box.y_lo, box.y_hi)
        off = np.abs(y - np.round(y))
        free = (box.y_hi > box.y_lo) & (off > INTEGRALITY)
        if not free.any():
            return None
        s, g, i = (int(x) for x in np.unravel_index(int(np.argmin(np.where(free, off, np.inf))), off.shape))
        return ON_SLICES, s, g, i, math.floor(y[s, g, i])

    def _look_at(self, item: Open) -> Open | None:
        """Solve one node; return the child to plunge into, or None when the node is closed."""
        self.nodes += 1
        node, box = item.node, propagate(self.data, item.box)
        if box is None:
            return None
        if self.relaxation is None:
            self.relaxation = Relaxation(self.data)
        relaxed = self.relaxation.solve(box, self.progress.remaining_s)
        inherited = node.w, node.pi, node.mu, node.cost
        if relaxed.status in ("optimal", "infeasible"):
            node.w, node.pi, node.mu, node.cost = relaxed.w, relaxed.pi, relaxed.mu, relaxed.status == "optimal"
        if relaxed.status == "optimal":
            small = self.data.slice_load.size <= CONSOLIDATED_CELLS
            closely = self.nodes == 1 or (small and (self.nodes < 4 or self.nodes & (self.nodes - 1) == 0))
            self._try_rounding(relaxed, closely)
        tight, value = node_box(self.data, box, node, self.cuts, self.prune_at)
        if tight is not None and not node.cost:
            # The ray proves nothing in floating point: a tie at the edge of infeasibility. The inherited prices still bound the node.
            node.w, node.pi, node.mu, node.cost = inherited
            tight, value = node_box(self.data, box, node, self.cuts, self.prune_at)
        value = max(value, item.bound)
        if tight is None:
            return None
        if relaxed.status == "optimal":
            cut_off = self._cut_off(box, tight, relaxed)
            # Cuts tail off: another round only while the last one moved the bound by a part of what is missing.
            worthwhile = item.refined == 0 or (item.refined < MOST_CUT_ROUNDS and value - item.bound > 0.02 * (self.prune_at - value))
            cut = not cut_off and worthwhile and self._add_cuts(tight, relaxed)
            if cut_off or cut:
                child = Node(node.w, node.pi, mu=node.mu)
                node.split, node.children = (REFINE, 0, 0, 0, 0), [child]
                return Open(child, tight, value, item.refined + cut)
        split = self._choose_split(tight, relaxed)
        if split is None:
            if relaxed.status == "time_limit":
                heapq.heappush(self.heap, (value, -self.nodes, Open(node, tight, value)))
                return None
            # Nothing left to branch on, yet not closed: a tie within the solver's tolerance. The leaf keeps the bound it has.
            self.unresolved += 1
            self.closed_at = min(self.closed_at, value)
            return None
        return self._branch(node, tight, split, value, relaxed)

    def _cut_off(self, before: Box, box: Box, relaxed: Relaxed) -> bool:
        """Whether tightening cut off the LP solution, or made sure of a loss to survive: then the relaxation has more to say before branching."""
        faced = active(self.data, box.n_lo)
        if (faced != active(self.data, before.n_lo)).any():
            return True
        n, y = relaxed.n, relaxed.y[faced]
        n_off = np.abs(n - np.clip(n, box.n_lo, box.n_hi)).max()
        y_off = np.abs(y - np.clip(y, box.y_lo[faced], box.y_hi[faced])).max(initial=0.0)
        return bool(max(n_off, y_off) > INTEGRALITY)

    def _add_cuts(self, box: Box, relaxed: Relaxed) -> bool:
        """Add the rounding cuts that the LP solution violates, one for each fractional count; whether there were any."""
        assert self.relaxation is not None
        data, added = self.data, False
        if not self.cutting or not data.integral or data.situations > 1 or len(self.cuts.cuts) >= MOST_CUTS:
            return False
        for g in np.flatnonzero(np.abs(relaxed.n - np.round(relaxed.n)) > 1e-4):
            cut = rounding_cut(data, int(g), relaxed.y[0, g] > data.slices / 2)
            if cut is not None and cut.right_side - float(cut.slice_coefficient @ relaxed.y[0, g]) - relaxed.n[g] > 1e-3:
                self.cuts.cuts.append(cut)
                self.relaxation.add_cut(cut)
                added = True
        return added

    def _branch(self, node: Node, box: Box, split: Split, value: float, relaxed: Relaxed) -> Open:
        lower_box, upper_box = halves(box, split)
        # Children inherit the prices: a child never looked at is then a valid leaf.
        lower, upper = Node(node.w, node.pi, node.cost, node.mu), Node(node.w, node.pi, node.cost, node.mu)
        node.split, node.children = split, [lower, upper]
        kind, s, g, i, at = split
        point = relaxed.n[g] if kind == ON_COUNT else relaxed.y[s, g, i]
        first, second = Open(lower, lower_box, value), Open(upper, upper_box, value)
        if point - at > 0.5:
            first, second = second, first
        heapq.heappush(self.heap, (value, -self.nodes, second))
        return first

    def _choose_split(self, box: Box, relaxed: Relaxed) -> Split | None:
        """Counts first (those that decide whether a situation is faced, then the most fractional by price), then slices by load and price."""
        data = self.data
        free = box.n_hi > box.n_lo
        if relaxed.status != "optimal":
            return self._halve_widest(box)
        n = np.clip(relaxed.n, box.n_lo, box.n_hi)
        if data.situations > 1:
            undecided = free & (box.n_lo < 1)
            if undecided.any():
                return ON_COUNT, 0, int(np.argmax(np.where(undecided, n * data.price + 1e-12 * (n > 0), -1.0))), 0, 0
        fraction = np.abs(n - np.round(n))
        # A trace of a replica is not noise: it may be all that a small item needs.
        undecided = (fraction > count_noise(n)) | ((n > TRACE) & (box.n_lo < 1) & (n < 0.5))
        score = np.where(free & undecided, np.maximum(fraction, INTEGRALITY) * (data.price + 1e-9), 0.0)
        if score.max(initial=0.0) > 0:
            g = int(np.argmax(score))
            return ON_COUNT, 0, g, 0, math.floor(n[g])
        if data.integral:
            y = np.clip(relaxed.y, box.y_lo, box.y_hi)
            fraction = np.abs(y - np.round(y))
            free_y = (box.y_hi > box.y_lo) & (fraction > INTEGRALITY)
            weight = np.where(free_y, fraction * (data.slice_load * data.price[:, None] + 1e-12), 0.0)
            if weight.max(initial=0.0) > 0:
                s, g, i = (int(x) for x in np.unravel_index(int(np.argmax(weight)), weight.shape))
                return ON_SLICES, s, g, i, math.floor(y[s, g, i])
        return self._split_on_missing(box, relaxed)

    def _split_on_missing(self, box: Box, relaxed: Relaxed) -> Split | None:
        """A type that serves something although the LP, within its tolerance, rents none of it: one replica or no share."""
        for s in np.flatnonzero(active(self.data, box.n_lo)):
            loss = self.data.loss[s]
            serving = (relaxed.y[s] > INTEGRALITY).any(axis=1)
            missing = serving & (relaxed.n - loss < 0.5) & (box.n_lo - loss < 1) & (box.n_hi - loss >= 1)
            if missing.any():
                g = int(np.argmax(missing))
                return ON_COUNT, 0, g, 0, int(loss[g])
        # Integral, and still neither closed nor accepted by `evaluate`: a load within the LP's tolerance of a limit. Smaller boxes settle it.
        return self._halve_widest(box)

    def _halve_widest(self, box: Box) -> Split | None:
        """A split for a node whose LP gave no solution (infeasible without a usable ray, or failed)."""
        width = box.n_hi - box.n_lo
        if width.max(initial=0.0) >= 1:
            g = int(np.argmax(width))
            return ON_COUNT, 0, g, 0, math.floor((box.n_lo[g] + box.n_hi[g]) / 2)
        wide = (box.y_hi - box.y_lo) * active(self.data, box.n_lo)[:, None, None]
        if self.data.integral and wide.max(initial=0.0) >= 1:
            s, g, i = (int(x) for x in np.unravel_index(int(np.argmax(wide * self.data.slice_load)), wide.shape))
            return ON_SLICES, s, g, i, math.floor((box.y_lo[s, g, i] + box.y_hi[s, g, i]) / 2)
        return None

    def _try_rounding(self, relaxed: Relaxed, closely: bool) -> None:
        """A plan from the LP solution: counts up (continuous), or slices to integers. `closely`: consolidate it too, which costs many nodes."""
        data = self.data
        if data.situations > 1:
            self._try_rounding_with_spares(relaxed)
            return
        if data.integral:
            y = round_slices(data, relaxed.y[0])
            candidates = [(y, counts_for(data, y))]
        else:
            y = relaxed.y[0]
            candidates = [(y, round_up(relaxed.n))]
        if closely:
            candidates.append(consolidate(data, y))
        for slices, n in candidates:
            if fits(data, n) and float(data.price @ n) < self.progress.objective and not self.progress.offer(plan_of(data, slices, n)):
                self._offer_even_shares(n)

    def _offer_even_shares(self, n: FloatArray) -> None:
        """The counts may do although the LP's continuous shares overload a type by its tolerance."""
        plan = None if self.data.integral else shares_for(self.instance, n.astype(np.int64))
        if plan is not None:
            self.progress.offer(plan)

    def _try_rounding_with_spares(self, relaxed: Relaxed) -> None:
        data = self.data
        n = round_up(relaxed.n)
        if not fits(data, n) or float(data.price @ n) >= self.progress.objective:
            return
        y = np.array([round_slices(data, table) for table in relaxed.y]) if data.integral else relaxed.y
        lost = np.flatnonzero(n > 0)
        if len(lost) and (y[1 + lost].sum(axis=1) < data.slices - 1e-6).any():
            return  # a situation that the LP did not face yet
        if not self.progress.offer(plan_with_spares(data, y, n)):
            self._offer_even_shares(n)


def round_up(n: FloatArray) -> FloatArray:
    """Counts rounded up, an LP's noise forgiven, but a trace of a replica never rounded away."""
    up: FloatArray = np.ceil(n - np.where(n < 0.5, TRACE, count_noise(n)))
    return up


def count_noise(n: FloatArray) -> FloatArray:
    """How far from an integer an LP's count may be by its tolerance alone. `evaluate` forgives a relative 1e-9, so not much more may pass."""
    noise: FloatArray = 2e-9 * np.maximum(n, 1.0)
    return noise


def round_slices(data: Data, y: FloatArray) -> FloatArray:
    """Slice counts [G][I] to integers that still add up to k: largest remainders first (Hamilton)."""
    floor = np.floor(y + INTEGRALITY)
    rest = y - floor
    missing = np.round(data.slices - floor.sum(axis=0)).astype(int)
    order = np.argsort(-np.where(data.can_serve, rest, -1.0), axis=0, kind="stable")
    for i in np.flatnonzero(missing > 0):
        for g in order[: missing[i], i]:
            floor[g, i] += 1
    return floor
