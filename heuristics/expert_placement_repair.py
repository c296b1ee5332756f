"""Making a placement that stands keep `min_holders` and `distinct` with few moves, expert by expert."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headroom.formulations.expert_placement import device_counts
from headroom.heuristics.expert_placement_packing import load_weight
from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def repaired(instance: ExpertPlacement, slot_expert: IntArray) -> IntArray:
    """The placement [L][R] with every expert on at least `min_holders` devices and, where `distinct`, none twice on one, as far as changing one or
    two slots at a time gets there.

    An expert that too few devices hold takes a slot of one that can spare it (held by more devices than needed, or twice on that device), of these
    the one whose remaining copies stay lightest: one move. Where all such slots are on devices that hold it already, it takes the slot of a third
    expert, and that one the spare slot: two moves. Doubles that are left then go to the expert with the largest load a copy that the device lacks.
    Experts stay in the node of their group where groups are limited to one. No guarantee: the fewest changes are a flow problem of their own, and
    what cannot be repaired is given back as it is. The argument itself where nothing is amiss. O(L E R) for one step an expert, O(R^2) more for
    each double step.
    """
    counts = device_counts(instance, slot_expert)
    amiss = ((counts > 0).sum(axis=2) < instance.min_holders).any(axis=1)
    if instance.distinct:
        amiss |= counts.max(axis=(1, 2)) > 1
    if not amiss.any():
        return slot_expert
    found, weight = slot_expert.copy(), load_weight(instance)
    for layer in np.flatnonzero(amiss):
        one = _Layer(instance, found[layer], counts[layer], weight[layer])
        one.complete()
        if instance.distinct:
            one.part_doubles()
    return found


class _Layer:
    """One layer: slots [R] and counts [E][D], both changed in place; weight [E]."""

    def __init__(self, instance: ExpertPlacement, slots: IntArray, counts: IntArray, weight: FloatArray) -> None:
        self.instance, self.slots, self.counts, self.weight = instance, slots, counts, weight
        self.device = np.arange(instance.slots) // instance.slots_per_device
        self.held = (counts > 0).sum(axis=1)
        self.node = np.full(instance.experts, -1)
        """The node that an expert must stay in; -1: any."""
        if instance.group_limited:
            of_group = np.full(int(instance.group_of[-1]) + 1, -1)
            of_group[instance.group_of[slots]] = instance.node_of[self.device]
            self.node = of_group[instance.group_of]

    def complete(self) -> None:
        """Steps until every expert has its holders, or none is left that helps."""
        least = self.instance.min_holders
        while True:
            e = int(np.argmin(self.held))
            if self.held[e] >= least or not (self._one_step(e) or self._two_steps(e)):
                return

    def part_doubles(self) -> None:
        """Give away second slots of an expert on a device; nobody loses a holder."""
        for r in range(len(self.slots)):
            d = self.device[r]
            lacks = self.counts[:, d] == 0
            lacks &= (self.node < 0) | (self.node == self.instance.node_of[d])
            if self.counts[self.slots[r], d] > 1 and lacks.any():
                self._give(r, int(np.argmax(np.where(lacks, self.weight / np.maximum(self.counts.sum(axis=1), 1), -1.0))))

    def _spare(self) -> npt.NDArray[np.bool_]:
        """Slots whose expert keeps enough holders without them [R]."""
        found: npt.NDArray[np.bool_] = (self.held[self.slots] > self.instance.min_holders) | (self.counts[self.slots, self.device] > 1)
        return found

    def _open(self, e: int) -> npt.NDArray[np.bool_]:
        """Slots that e may take: on devices without it, in its node [R]."""
        found: npt.NDArray[np.bool_] = self.counts[e, self.device] == 0
        return found if self.node[e] < 0 else found & (self.instance.node_of[self.device] == self.node[e])

    def _give(self, r: int, e: int) -> None:
        f, d = self.slots[r], self.device[r]
        self.counts[f, d] -= 1
        self.counts[e, d] += 1
        self.held[f] -= self.counts[f, d] == 0
        self.held[e] += self.counts[e, d] == 1
        self.slots[r] = e

    def _lightest(self, slots: IntArray) -> int:
        """The slot whose expert's other copies carry least without it."""
        copies = self.counts.sum(axis=1)[self.slots[slots]]
        return int(slots[np.argmin(self.weight[self.slots[slots]] / np.maximum(copies - 1, 1))])

    def _one_step(self, e: int) -> bool:
        slots = np.flatnonzero(self._spare() & self._open(e))
        if len(slots):
            self._give(self._lightest(slots), e)
        return bool(len(slots))

    def _two_steps(self, e: int) -> bool:
        spare = self._spare()
        for r in np.flatnonzero(self._open(e)):
            g = int(self.slots[r])
            slots = np.flatnonzero(spare & self._open(g))
            if len(slots):
                self._give(self._lightest(slots), g)
                self._give(int(r), e)
                return True
        return False
