"""`exflow`: experts placed by affinity between layers, in the manner of ExFlow (Yao et al., arXiv 2401.08383).

ExFlow places the experts that tokens visit in neighbouring layers on one device, equally many on each, so that fewer tokens change devices. It
finds the placement by integer programming; this is a local search for the same aim, with copies, nodes and the instance's rules.

In layer l, between fixed neighbours, an expert e on device d costs

    out   (1 / c_e) sum_f p_ef nearest_f(d)                     to layer l + 1, for each slot of e by itself
    in    sum_d' U_d'e min over d that hold e of h_d'd           from layer l - 1, where U_d'e = sum_e' p_e'e x_e'd' / c_e'

so an exchange of two slots with different experts changes the traffic by the sum of two independent changes, kept in a table [slot][device].
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.formulations.expert_placement import ExpertPlan, boundary_traffic, device_counts, moves, nearest, replicas
from headroom.formulations.types import Outcome
from headroom.heuristics.expert_placement import grouped_linear_slots
from headroom.heuristics.expert_placement_packing import kept_apart, load_weight, make_distinct, most_copies
from headroom.heuristics.expert_placement_split import broken, settled
from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
STARTS = 12
"""Placements that the search starts from: `linear` and random ones."""
SWEEPS = 60
"""Passes over all layers from one start; they end before, when a pass improves nothing."""
WORK = 2e9
"""Elementary steps after which the search ends: some seconds."""
ROUNDING = 1e-12
"""Changes of traffic below this times the dearest hop are rounding."""
ANY = 2**62


def exflow(instance: ExpertPlacement, rng: np.random.Generator) -> ExpertPlan | Outcome:
    """The least traffic over several starts of a search that exchanges slots, layer by layer, while that lowers the traffic with both neighbours.

    Exchanges that leave the traffic as it is are made when they lower the busier of the two devices: balance decides between equals, no more. The
    copies of each expert stay those of the first start: `linear` (by node where groups are limited to one), or the placement that stands where
    `max_moves` rules `linear` out. Later starts shuffle the slots; under `max_moves` only the order of exchanges changes. Groups stay on the node
    where they start. A local optimum for exchanges of two slots when the search was not cut short, no more. O(L (R^2 + R D + E^2 D)) a pass.
    """
    if instance.transition is None or instance.layers < 2:
        return Outcome(notes=("exflow: the instance has no transitions between layers",))
    first = grouped_linear_slots(instance)
    if first is None:
        return Outcome(notes=("exflow: the nodes cannot be filled with whole groups",))
    if (problem := broken(instance, first)) is not None:
        if instance.current_slot_expert is None or (problem := broken(instance, instance.current_slot_expert)) is not None:
            return Outcome(notes=(f"exflow finds no start: {problem}",))
        first = instance.current_slot_expert
    search = _Search(instance, rng)
    best: tuple[float, float] | None = None
    found = first
    for start in range(STARTS):
        if start and search.passes_left <= 0:
            break
        slots = first.copy() if start == 0 or instance.max_moves is not None else search.shuffled(first)
        search.descend(slots)
        value = float(boundary_traffic(instance, slots).mean()), search.peaks(slots)
        if best is None or value < best:
            best, found = value, slots
    return settled(instance, found, "exflow")


class _Search:
    """Descents of one instance; slots [L][R] are changed in place."""

    def __init__(self, instance: ExpertPlacement, rng: np.random.Generator) -> None:
        self.instance, self.rng = instance, rng
        self.weight = load_weight(instance)
        self.apart = kept_apart(instance.distinct, instance.min_holders, instance.slots_per_device, instance.experts)
        self.scope = instance.node_devices if instance.group_limited else instance.devices
        # Products of matrices are a tenth as costly as the steps of the search.
        one_pass = instance.layers * (instance.slots**2 + instance.slots * instance.devices + instance.experts**2 * instance.devices / 10)
        self.passes_left = max(int(WORK / one_pass), 2)
        self.held_now = np.zeros((instance.layers, instance.experts, instance.devices), bool)
        if instance.current_slot_expert is not None:
            self.held_now = device_counts(instance, instance.current_slot_expert) > 0

    def shuffled(self, slots: IntArray) -> IntArray:
        """The experts of each layer in random order, within their node where groups are limited to one."""
        blocks = slots.reshape(self.instance.layers, -1, self.scope * self.instance.slots_per_device)
        found = self.rng.permuted(blocks, axis=2).reshape(slots.shape)
        if self.apart:
            make_distinct(found, self.weight, self.instance.slots_per_device, most_copies(self.instance, True))
        return found if self.apart or self.instance.min_holders == 1 else slots.copy()

    def descend(self, slots: IntArray) -> None:
        """Sweep over the layers, forth and back, until nothing improves or passes run out."""
        moved = moves(self.instance, slots) if self.instance.max_moves is not None else 0
        for sweep in range(min(SWEEPS, self.passes_left)):
            self.passes_left -= 1
            exchanged = 0
            for l in range(self.instance.layers) if sweep % 2 == 0 else reversed(range(self.instance.layers)):
                done, moved = self._layer(slots, l, moved)
                exchanged += done
            if not exchanged:
                break

    def _layer(self, slots: IntArray, l: int, moved: int) -> tuple[int, int]:
        instance = self.instance
        assert instance.transition is not None
        count = device_counts(instance, slots[max(l - 1, 0) : l + 2])
        here = count[min(l, 1)]
        coming, leaving = np.zeros((2, instance.devices, instance.experts))
        if l > 0:
            sends = count[0] / np.maximum(count[0].sum(axis=1, keepdims=True), 1)
            coming = sends.T @ instance.transition[l - 1]
        if l < instance.layers - 1:
            leaving = nearest(instance, count[-1]) @ instance.transition[l].T
        hop = max(instance.hop_cost.same_node, instance.hop_cost.other_node)
        done, moved = _compiled()(
            slots[l],
            np.ascontiguousarray(here.T),
            coming,
            leaving / np.maximum(here.sum(axis=1), 1),
            np.ascontiguousarray(self.held_now[l].T),
            self.weight[l] / np.maximum(here.sum(axis=1), 1),
            self.rng.permutation(instance.slots),
            instance.slots_per_device,
            instance.node_devices,
            self.scope,
            instance.distinct or instance.min_holders > 1,  # exchanges that make no double take no holder away
            instance.hop_cost.same_node,
            instance.hop_cost.other_node,
            ROUNDING * hop,
            moved,
            ANY if instance.max_moves is None else instance.max_moves,
        )
        return int(done), int(moved)

    def peaks(self, slots: IntArray) -> float:
        """Load of the busiest device, added up over the layers as shares of their loads."""
        instance = self.instance
        copy_load = np.take_along_axis(self.weight / np.maximum(replicas(instance, slots), 1), slots, axis=1)
        most = copy_load.reshape(instance.layers, instance.devices, -1).sum(axis=2).max(axis=1)
        total = self.weight.sum(axis=1)
        return float((most / np.where(total > 0, total, 1.0)).sum())


@cache
def _compiled() -> Any:
    from headroom.solvers.compiled import compiled

    return compiled(_exchange)


def _exchange(
    slots: IntArray,
    count: IntArray,
    coming: FloatArray,
    leaving: FloatArray,
    held_now: npt.NDArray[np.bool_],
    copy_load: FloatArray,
    order: IntArray,
    k: int,
    node_devices: int,
    scope: int,
    distinct: bool,
    same: float,
    other: float,
    least: float,
    moved: int,
    most_moved: int,
) -> tuple[int, int]:
    """Exchange each slot [R] of one layer with the slot that lowers the traffic most; returns the exchanges made and the moves there are now.

    count [D][E]: slots; coming [D][E]; leaving [D][E]: cost of a slot of e on d towards the next layer; held_now [D][E]; copy_load [E]; `order`: of
    the slots [R]. Exchanges stay within blocks of `scope` devices, and `moved` within `most_moved`.
    """
    devices, experts, slot_count = count.shape[0], count.shape[1], len(slots)
    nodes = devices // node_devices
    nearer = min(same, other)
    on_node = np.zeros((nodes, experts), np.int64)
    copies, carried = np.zeros(experts, np.int64), np.zeros(devices)
    for d in range(devices):
        for e in range(experts):
            on_node[d // node_devices, e] += count[d, e]
            copies[e] += count[d, e]
            carried[d] += count[d, e] * copy_load[e]
    gain = np.zeros((slot_count, devices))  # what it adds to the traffic to have slot r's expert on d instead
    paying = np.empty(nodes)
    stale = np.ones(experts, np.bool_)
    done, changed = 0, True
    for position in range(slot_count):
        for r in range(slot_count if changed else 0):
            e, home = slots[r], r // k
            if not stale[e]:
                continue
            # What comes in, with this slot taken away and put on each device in turn: a node pays `nearer` where it and another one have e, `same`
            # where it alone has it, `other` where it lacks it.
            count[home, e] -= 1
            on_node[home // node_devices, e] -= 1
            outside = 0.0
            for n in range(nodes):
                paying[n] = 0.0
                for d in range(n * node_devices, (n + 1) * node_devices):
                    if count[d, e] == 0:
                        paying[n] += coming[d, e]
                outside += paying[n] * (nearer if on_node[n, e] > 0 else other)
            for to in range(devices):
                n = to // node_devices
                price = nearer if copies[e] - 1 > on_node[n, e] else same
                rest = paying[n] - (coming[to, e] if count[to, e] == 0 else 0.0)
                gain[r, to] = outside - paying[n] * (nearer if on_node[n, e] > 0 else other) + rest * price + leaving[to, e]
            count[home, e] += 1
            on_node[home // node_devices, e] += 1
            now = gain[r, home]
            for to in range(devices):
                gain[r, to] -= now
        if changed:
            stale[:] = False
        changed = False
        r = order[position]
        e, d = slots[r], r // k
        best, change, peak, more = -1, least, 0.0, 0
        block = d // scope * scope
        for q in range(block * k, (block + scope) * k):
            f, to = slots[q], q // k
            if to == d or f == e or (distinct and (count[to, e] > 0 or count[d, f] > 0)):
                continue
            delta = gain[r, to] + gain[q, d]
            if delta > change:
                continue
            shift = copy_load[f] - copy_load[e]
            busier = max(carried[d] + shift, carried[to] - shift)
            if delta >= -least:  # the traffic stays: only for a lower peak
                if busier >= max(carried[d], carried[to]) * (1 - 1e-9):
                    continue
                delta = 0.0
            if best >= 0 and delta >= change - least and busier >= peak:
                continue
            new = int(count[to, e] == 0 and not held_now[to, e]) + int(count[d, f] == 0 and not held_now[d, f])
            new -= int(count[d, e] == 1 and not held_now[d, e]) + int(count[to, f] == 1 and not held_now[to, f])
            if new > 0 and moved + new > most_moved:
                continue
            best, change, peak, more = q, delta, busier, new
        if best < 0:
            continue
        f, to = slots[best], best // k
        slots[r], slots[best] = f, e
        count[d, e] -= 1
        count[d, f] += 1
        count[to, f] -= 1
        count[to, e] += 1
        on_node[d // node_devices, e] -= 1
        on_node[to // node_devices, e] += 1
        on_node[to // node_devices, f] -= 1
        on_node[d // node_devices, f] += 1
        carried[d] += copy_load[f] - copy_load[e]
        carried[to] += copy_load[e] - copy_load[f]
        moved += more
        done += 1
        stale[e] = stale[f] = changed = True
    return done, moved
