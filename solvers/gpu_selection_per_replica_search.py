"""Branch and bound for whole replicas on counts, then on slices by type, whose tree is the certificate.

The cost depends on the counts n_g alone, so the search lives in the few dimensions of n. What it knows of packing there are cuts: a price table v
says that counts with sum_g n_g K_g(v) < sum_i k_i min_g v_gi cannot hold the slices. A node minimises the cost over its box and the cuts known
so far (a linear program with a column for each type). Where that is integral, column generation for those counts (`Packer`) either finds a new
cut, or says that the patterns' linear program can be satisfied: then the slices are packed, and that they can be is the rule (Scheithauer
and Terno, doi 10.1016/0167-6377(95)00066-6, for cutting stock). Where they cannot, the node's box is split until it holds these counts alone,
and then on the slices y_gi of an item on a type; each of its boxes is again closed by a price table or split.

Nodes with the least bound come first; nodes of the second kind and the others take turns, so that better plans are found while a stubborn count
vector is being settled. Exact within OPTIMALITY_GAP given time, except where all y_gi are settled and yet no packing is found: such leaves
stay open and are counted (`unresolved`).
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from headroom.bounds.gpu_selection_patterns import PatternProgram, root_proof
from headroom.bounds.gpu_selection_per_replica import (
    ON_COUNT,
    ON_SLICES,
    Multipliers,
    PatternBox,
    PriceTable,
    Split,
    TreeNode,
    box_halves,
    combined,
    leaf_value,
    pattern_data,
    propagate_patterns,
    root_pattern_box,
    to_pattern_certificate,
)
from headroom.formulations.progress import Progress
from headroom.formulations.tolerances import INTEGRALITY, OPTIMALITY_GAP
from headroom.formulations.types import Bound, SolveParams, Stop
from headroom.heuristics.gpu_selection_per_replica import best_packing, may_grow
from headroom.instances.gpu_selection import GpuSelection
from headroom.solvers.column_generation import Generated, Options
from headroom.solvers.gpu_selection_per_replica_packing import Packer, dive_for_cost, fixed_counts, offer
from headroom.solvers.linear_program import LinearProgram

FloatArray = npt.NDArray[np.float64]
Pairs = tuple[tuple[int, int], ...]
ROOT_DIVES = 1
FIRST_TRIES = 8
LATER_TRIES = 1
TURNS = 8
"""Boxes of settled counts looked at for each of the others, once both kinds are waiting with like bounds."""


@dataclass(frozen=True)
class Open:
    """A node not yet looked at. `pairs`: the (g, i) on which its box was split."""

    node: TreeNode
    box: PatternBox
    bound: float
    pairs: Pairs = ()


@dataclass(frozen=True)
class Proof:
    """What the search ends with."""

    bound: Bound
    stop: Stop
    nodes: int
    cuts: int
    unresolved: int


class CountProgram:
    """minimise p n over a box of counts, the cuts and the pools: a linear program with a column for each type."""

    def __init__(self, price: FloatArray, pool_gpus: FloatArray, pool_limit: FloatArray) -> None:
        self.unit = float(price.max(initial=0.0)) or 1.0
        gpus, pools = len(price), len(pool_limit)
        nothing = np.zeros(gpus)
        self._pools = pools
        self._program = LinearProgram(price / self.unit, sp.csc_matrix(pool_gpus), np.full(pools, -np.inf), pool_limit, nothing, nothing)
        self._scale: list[float] = []
        self.tables: list[int] = []

    def add(self, index: int, worth: FloatArray, value: float) -> None:
        """The cut sum_g worth_g n_g >= value of price table `index`."""
        scale = float(worth.max(initial=0.0)) or 1.0
        self._scale.append(scale)
        self.tables.append(index)
        self._program.add_row(np.arange(len(worth), dtype=np.int32), worth / scale, value / scale, np.inf)

    def solve(self, box: PatternBox) -> tuple[FloatArray | None, Multipliers] | None:
        """(n, multipliers of its bound); n is None when the multipliers are to prove that the box is empty; None without any answer."""
        answer = self._program.solve(box.n_lo, box.n_hi)
        if answer.status == "infeasible" and answer.ray is not None:
            ray = answer.ray
            signed = np.concatenate([-ray[: self._pools], ray[self._pools :]])
            ray = ray if signed.sum() >= 0 else -ray
            return None, self._multipliers(ray, 1.0, False)
        if answer.x is None or answer.row_dual is None:
            return None
        return answer.x, self._multipliers(answer.row_dual, self.unit, True)

    def _multipliers(self, dual: FloatArray, unit: float, with_cost: bool) -> Multipliers:
        weight = np.maximum(dual[self._pools :], 0.0) * unit
        pairs = [(self.tables[c], float(weight[c]) / self._scale[c]) for c in np.flatnonzero(weight > 0)]
        return Multipliers(tuple(pairs), np.maximum(-dual[: self._pools], 0.0) * unit, with_cost)


class Search:
    """One run. Reports incumbents and the bound to `progress`, which also tells it when to stop."""

    def __init__(self, instance: GpuSelection, params: SolveParams, progress: Progress) -> None:
        self.progress = progress
        self.data = pattern_data(instance)
        self.margin = 0.5 * max(OPTIMALITY_GAP, params.gap_limit or 0.0)
        self.rng = params.rng()
        self.packer = Packer(self.data, progress, self.rng)
        self.counts = CountProgram(self.data.price, self.data.pool_gpus, self.data.pool_limit)
        self.tables: list[PriceTable] = []
        self._full: list[FloatArray] = []
        self.root = TreeNode(Multipliers(pool=np.zeros(len(self.data.pool_limit))))
        self.count_heap: list[tuple[float, int, Open]] = []
        self.pack_heap: list[tuple[float, int, Open]] = []
        self._number = 0
        self._tried: dict[bytes, bool] = {}
        self.closed_at = math.inf
        self.nodes = self.unresolved = 0

    @property
    def prune_at(self) -> float:
        """Cost at and above which plans are no better than the incumbent by more than the tolerance."""
        objective = self.progress.objective
        return objective - self.margin * abs(objective) if math.isfinite(objective) else math.inf

    def start(self) -> None:
        """A plan to begin with."""
        patterns = best_packing(self.data, stop=self.progress.should_stop)
        if patterns is not None:
            offer(self.data, self.progress, patterns)
            self.packer.know([(g, z) for g, z, _ in patterns])

    def run(self) -> Proof:
        """Root, dives, then the tree until it is closed or `progress` says stop."""
        box = propagate_patterns(self.data, root_pattern_box(self.data))
        if box is None:
            self.root.value = math.inf
            return self._proof("completed")
        if len(self.data.items):
            self._at_root(box)
        self._push(Open(self.root, box, self.root.value))
        return self._proof(self._search())

    def _at_root(self, box: PatternBox) -> None:
        program = PatternProgram(self.data)
        program.add(self.packer.known())
        found = program.solve(box, self.progress, center=program.pooled_duals(self.progress))
        self.packer.know(program.patterns())
        tables, tree = root_proof(program)
        self._add_table(tables[0], everywhere=True)
        self.root.multipliers = tree.multipliers
        self.root.value = self._value(box, tree.multipliers)
        bound = Bound(self.root.value, "column_generation", "certificate", to_pattern_certificate(self.root, self.tables))
        if math.isfinite(bound.value):
            self.progress.keep(bound)
        for attempt in range(ROOT_DIVES if found.ended == "optimal" else 0):
            if self.root.value >= self.prune_at or self.progress.should_stop() is not None:
                return
            program.set_box(box)
            patterns = dive_for_cost(program, self.progress, self.rng if attempt else None)
            if patterns is not None:
                offer(self.data, self.progress, patterns)
        self.packer.know(program.patterns())

    def _search(self) -> Stop:
        turn = 0
        while self.count_heap or self.pack_heap:
            reason = self.progress.should_stop()
            if reason is not None:
                return reason
            turn += 1
            heap = self._next_heap(turn)
            _, _, item = heapq.heappop(heap)
            if item.bound < self.prune_at:
                self.nodes += 1
                (self._look_at_counts if heap is self.count_heap else self._look_at_slices)(item)
                if self.progress.should_stop() is not None and not item.node.children and item.node.value < self.prune_at:
                    heapq.heappush(heap, (item.bound, self._number, item))  # cut short: it stays open
            self._report()
        return "completed"

    def _next_heap(self, turn: int) -> list[tuple[float, int, Open]]:
        if not self.count_heap or not self.pack_heap:
            return self.count_heap or self.pack_heap
        if self.count_heap[0][0] < self.pack_heap[0][0] or turn % TURNS == 0:
            return self.count_heap
        return self.pack_heap

    def _push(self, item: Open) -> None:
        box, self._number = item.box, self._number - 1
        heap = self.pack_heap if item.pairs or self._settled(box) else self.count_heap
        heapq.heappush(heap, (item.bound, self._number, item))  # of equal bounds the latest first

    @staticmethod
    def _settled(box: PatternBox) -> bool:
        return bool((box.n_lo == box.n_hi).all())

    def _report(self) -> None:
        floor = min(self.prune_at, self.closed_at, *(heap[0][0] for heap in (self.count_heap, self.pack_heap) if heap))
        if math.isfinite(floor):
            self.progress.raise_bound(floor)

    def _add_table(self, table: PriceTable, everywhere: bool) -> int:
        """Keep a price table; one that holds for all counts also becomes a cut."""
        index = len(self.tables)
        self.tables.append(table)
        self._full.append(table.on_types())
        if everywhere:
            self.counts.add(index, table.worth, float(self.data.slices @ table.base))
        return index

    def _value(self, box: PatternBox, multipliers: Multipliers) -> float:
        """What the recheck will find, the tables' worth taken as recorded."""
        weights = multipliers.weights or ()
        tables = [self._full[c] for c, _ in weights] or [np.zeros(self.data.size.shape)]
        worths = [self.tables[c].worth for c, _ in weights] or [np.zeros(len(self.data.price))]
        price, worth, size = combined(tables, worths, [w for _, w in weights] or [0.0])
        value = leaf_value(self.data, box, price, worth, multipliers.pool, multipliers.with_cost, len(tables), size)
        return value if multipliers.with_cost else (math.inf if value > 0 else -math.inf)

    def _improve(self, node: TreeNode, box: PatternBox, multipliers: Multipliers) -> None:
        value = self._value(box, multipliers)
        if value > node.value:
            node.multipliers, node.value = multipliers, value

    def _split(self, item: Open, box: PatternBox, split: Split) -> None:
        node = item.node
        node.split = split
        pairs = item.pairs
        if split[0] == ON_SLICES and (split[1], split[2]) not in pairs:
            pairs = (*pairs, (split[1], split[2]))
        for half in box_halves(box, split):
            child = TreeNode(node.multipliers, value=node.value)
            node.children.append(child)
            inside = propagate_patterns(self.data, half)
            if inside is None:
                child.value = math.inf
            else:
                self._push(Open(child, inside, max(item.bound, node.value), pairs))

    def _look_at_counts(self, item: Open) -> None:
        """Minimise over the cuts; separate where that is integral; branch."""
        node, box = item.node, item.box
        seen: FloatArray | None = None
        while self.progress.should_stop() is None:
            answer = self.counts.solve(box)
            if answer is None:
                self._leave_open(node)
                return
            point, multipliers = answer
            self._improve(node, box, multipliers)
            if node.value >= self.prune_at:
                return
            if point is None:
                self._leave_open(node)  # a tie at the edge of infeasibility
                return
            n = np.clip(np.round(point), box.n_lo, box.n_hi)
            off = np.abs(point - n)
            if off.max(initial=0.0) > INTEGRALITY:
                g = int(np.argmax(off * np.maximum(self.data.price, 1e-9 * self.counts.unit)))
                self._split(item, box, (ON_COUNT, g, 0, math.floor(point[g])))
                return
            if (seen is None or (seen != n).any()) and self._cut_off(n):
                seen = n
                continue
            if self._try_counts(n):
                continue
            free = np.flatnonzero(box.n_lo < box.n_hi)
            if len(free):
                g = int(free[np.argmax(self.data.price[free])])
                self._split(item, box, (ON_COUNT, g, 0, int(n[g]) if n[g] < box.n_hi[g] else int(n[g]) - 1))
            else:
                self._push(item)
            return

    def _leave_open(self, node: TreeNode) -> None:
        self.unresolved += 1
        self.closed_at = min(self.closed_at, node.value)

    def _cut_off(self, n: FloatArray) -> bool:
        """Whether a new cut excludes counts n."""
        if not len(self.data.items):
            return False
        table, _ = self.packer.separate(n)
        if table is None:
            return False
        self._add_table(table, everywhere=True)
        return True

    def _try_counts(self, n: FloatArray) -> bool:
        """Pack into n replicas, or into one more when that is still an improvement; whether the incumbent got better."""
        key = n.tobytes()
        if key in self._tried:
            return False
        self._tried[key] = True
        box = propagate_patterns(self.data, fixed_counts(self.data, n))
        if box is None or self.progress.should_stop() is not None:
            return False
        if not len(self.data.items):
            return offer(self.data, self.progress, [])
        before = self.progress.objective
        patterns = self.packer.pack(box, (), FIRST_TRIES, with_master=True)
        if patterns is not None:
            offer(self.data, self.progress, patterns)
        else:
            self._try_more(n)
        return self.progress.objective < before

    def _try_more(self, n: FloatArray) -> None:
        """One replica more of some type, cheapest first."""
        for g in np.argsort(self.data.price, kind="stable").tolist():
            if may_grow(self.data, n, g) < 1 or float(self.data.price @ n + self.data.price[g]) >= self.prune_at:
                continue
            more = n.copy()
            more[g] += 1
            box = propagate_patterns(self.data, fixed_counts(self.data, more))
            patterns = None if box is None else self.packer.pack(box, (), 2)
            if patterns is not None:
                offer(self.data, self.progress, patterns)
                return

    def _look_at_slices(self, item: Open) -> None:
        """A box of settled counts: close it by a price table, pack it, or split it on slices."""
        node, box = item.node, item.box
        self._improve(node, box, Multipliers(pool=np.zeros(len(self.data.pool_limit))))
        if node.value >= self.prune_at:
            return
        program = self.packer.program_for(box.n_hi)
        found = program.solve(box, self.progress, Options(cut_off=1e-12), item.pairs)
        if program.best.table is not None and program.best.value > 0:
            index = self._add_table(program.best.table, everywhere=False)
            self._improve(node, box, Multipliers(((index, 1.0),), np.zeros(len(self.data.pool_limit)), False))
            if node.value >= self.prune_at:
                return
        split = self._slice_split(program, box, found)
        if split is None or self.nodes & (self.nodes - 1) == 0:
            patterns = self.packer.pack(box, item.pairs, FIRST_TRIES if split is None else LATER_TRIES, with_master=split is None)
            if patterns is not None:
                offer(self.data, self.progress, patterns)
        if node.value >= self.prune_at or float(self.data.price @ box.n_lo) >= self.prune_at or self.progress.should_stop() is not None:
            return
        split = split or self._any_split(box)
        if split is None:
            self._leave_open(node)
        else:
            self._split(item, box, split)

    def _slice_split(self, program: PatternProgram, box: PatternBox, found: Generated) -> Split | None:
        """Split on the fractional number of slices that takes most of a replica; None when all are integral (or there is no solution)."""
        if found.x is None:
            return None
        y = np.zeros(self.data.size.shape)
        for column, count in zip(program.master.columns, found.x, strict=False):
            pattern = program.pattern(column)
            if pattern is not None and count > 0:
                y[pattern[0]] += count * pattern[1]
        off = np.where(box.y_lo < box.y_hi, np.abs(y - np.round(y)), 0.0)
        if off.max(initial=0.0) <= INTEGRALITY:
            return None
        weight = np.where(off > INTEGRALITY, off * self.data.size, -1.0)
        g, i = (int(at) for at in np.unravel_index(int(np.argmax(weight)), off.shape))
        return ON_SLICES, g, i, int(np.clip(math.floor(y[g, i]), box.y_lo[g, i], box.y_hi[g, i] - 1))

    def _any_split(self, box: PatternBox) -> Split | None:
        """The widest open number of slices, halved."""
        width = (box.y_hi - box.y_lo) * (self.data.size > 0)
        if width.max(initial=0.0) < 1:
            return None
        g, i = (int(at) for at in np.unravel_index(int(np.argmax(width * self.data.size)), width.shape))
        return ON_SLICES, g, i, int((box.y_lo[g, i] + box.y_hi[g, i]) // 2)

    def _proof(self, stop: Stop) -> Proof:
        """The tree as the certificate, its value the least of its leaves'."""
        value, stack = math.inf, [self.root]
        while stack:
            node = stack.pop()
            stack.extend(node.children)
            if not node.children:
                value = min(value, node.value)
        bound = Bound(value, "pattern_tree", "certificate", to_pattern_certificate(self.root, self.tables))
        return Proof(bound, stop, self.nodes, len(self.counts.tables), self.unresolved)
