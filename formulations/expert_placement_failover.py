r"""What a placement of experts is worth once one device, or one whole node, is lost. A property of plans: nothing here is part of the objective.

Without the devices F the experts that they held are served by their other replicas. With c'_le the slots outside F that hold e,

    lost         experts with c'_le = 0 that F holds: nobody else can serve them, their load is left out
    a'_slr       share of e's load that a slot r outside F carries: 1 / c'_le when `split` is "equal"; else the plan's shares of those slots, scaled
                 to add up to 1 (equal shares where they add up to 0). Experts that F does not hold keep their shares
    imbalance    max over the D - |F| devices left of sum_r w_sle a'_slr / (V_sl / (D - |F|));  1 for a layer of which nothing is left

V_sl is the load of the layer without the lost experts', so 1 is what the devices left would carry if they shared evenly what can still be served.
Scenarios and layers are put together as for balance: worst or mean over scenarios (`robust`), then mean over layers.

`min_holders: 2` in an instance forbids losing an expert with any one device; the imbalance afterwards is measured, not minimised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headroom.formulations.expert_placement import ExpertPlan, device_counts, device_load, replicas
from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
What = Literal["device", "node"]
AT_ONCE = 4_000_000
"""Losses are taken in portions of about so many numbers: bounds the memory."""
CHEAP = 1e8
"""Numbers to compute that take about a second."""
NOTHING_LEFT = 1e-12
"""A layer that loses all but this share of its load has lost it all: what remains is rounding."""
MOST_LISTED = 64
"""Losses that a document lists one by one."""


@dataclass(frozen=True)
class Failover:
    """What each of the U losses of one `what` leaves. Arrays [U] by device or node."""

    what: What
    lost_experts: IntArray
    """(layer, expert) pairs that only the lost devices hold."""
    lost_share: FloatArray
    """Share of the load, 0 to 1, that nobody can serve."""
    imbalance: FloatArray
    """Busiest over mean device among those left; +inf where none is left."""
    worst_layer: FloatArray
    """The imbalance of the worst layer."""

    @property
    def worst(self) -> int:
        """The loss that loses most experts, of several the one with the largest imbalance, of several the first."""
        return int(np.lexsort((-np.arange(len(self.imbalance)), self.imbalance, self.lost_experts))[-1])

    @property
    def survives(self) -> bool:
        """Whether every expert is still held, whichever is lost."""
        return not self.lost_experts.any()

    def document(self) -> dict[str, Any]:
        """JSON-able: the worst loss and, for up to MOST_LISTED, each of them. An imbalance without any device left is infinite."""
        at = self.worst
        found: dict[str, Any] = {
            f"worst_{self.what}": at,
            "lost_experts": int(self.lost_experts[at]),
            "lost_share": float(self.lost_share[at]),
            "imbalance": float(self.imbalance[at]),
            "worst_layer_imbalance": float(self.worst_layer[at]),
            "largest_imbalance": float(self.imbalance.max()),
            f"{self.what}s_with_lost_experts": int((self.lost_experts > 0).sum()),
        }
        if len(self.lost_experts) <= MOST_LISTED:
            each = {"lost_experts": self.lost_experts, "lost_share": self.lost_share, "imbalance": self.imbalance}
            found[f"by_{self.what}"] = {name: values.tolist() for name, values in each.items()}
        return found


def cheap(instance: ExpertPlacement, plan: ExpertPlan) -> bool:
    """Whether `failover` takes about a second at most."""
    if float(instance.layers) * instance.scenarios * instance.devices**2 > CHEAP:
        return False
    counts = device_counts(instance, plan.slot_expert)
    return float((counts.sum(axis=2) * (counts > 0).sum(axis=2)).sum()) * instance.scenarios <= CHEAP


def failover(instance: ExpertPlacement, plan: ExpertPlan, what: What = "device") -> Failover:
    """What is left without each device, or each node, in turn; `plan` must fit the instance but may break its constraints.

    O(S L (R + U D + sum_e c_e h_e)) for U losses, h_e being the devices (or nodes) that hold e: only replicas of experts that a loss touches are
    looked at again. Ten milliseconds for 58 layers of 320 slots on 64 devices.
    """
    unit = np.arange(instance.devices) if what == "device" else instance.node_of
    losses = int(unit[-1]) + 1
    left = instance.devices - np.bincount(unit)
    most, lost = np.zeros((losses, instance.scenarios, instance.layers)), np.zeros((losses, instance.scenarios, instance.layers))
    lost_experts = np.zeros(losses, np.int64)
    carried = device_load(instance, plan)
    copies = replicas(instance, plan.slot_expert)
    step = max(AT_ONCE // instance.slots, 1)
    for layer in range(instance.layers):
        one = _Layer(instance, plan, layer, unit, copies[layer], carried[:, layer])
        for begin in range(0, losses, step):
            portion = slice(begin, min(begin + step, losses))
            lost_experts[portion] += one.without(portion, most[portion, :, layer], lost[portion, :, layer])
    total = instance.total_load[None]
    share = lost / np.where(total > 0, total, 1.0)
    served = np.where(share < 1 - NOTHING_LEFT, total - lost, 0.0)
    each = np.where(served > 0, np.where(left > 0, most.T * left, np.inf).T / np.where(served > 0, served, 1.0), 1.0)
    each[left == 0] = np.inf
    over = np.max if instance.robust == "worst" else np.mean
    by_layer: FloatArray = over(each, axis=1)
    return Failover(what, lost_experts, np.asarray(over(share, axis=1).mean(axis=1)), np.asarray(by_layer.mean(axis=1)), by_layer.max(axis=1))


class _Layer:
    """One layer: which losses touch which slots."""

    def __init__(self, instance: ExpertPlacement, plan: ExpertPlan, layer: int, unit: IntArray, copies: IntArray, carried: FloatArray) -> None:
        self.carried, self.copies, self.unit = carried, copies, unit
        """carried [S][D], copies [E], unit [D]: what a device is lost with."""
        self.load = instance.load[:, layer]
        self.slots = plan.slot_expert[layer]
        self.share = None if plan.share is None else plan.share[:, layer]
        self.device = np.arange(instance.slots) // instance.slots_per_device
        # Slots by expert: those of e are order[first[e] : first[e] + copies[e]].
        self.order = np.argsort(self.slots, kind="stable")
        self.first = np.cumsum(copies) - copies
        losses = int(unit[-1]) + 1
        held, self.here = np.unique(self.slots * losses + unit[self.device], return_counts=True)
        self.expert, self.of = held // losses, held % losses
        """Expert, loss and slots `here` of each pair of a loss and an expert that it touches."""

    def without(self, losses: slice, most: FloatArray, lost: FloatArray) -> IntArray:
        """Fills most [U][S], load of the busiest device left, and lost [U][S], load that nobody serves, for a portion of losses; lost experts [U]."""
        devices, number = len(self.unit), losses.stop - losses.start
        chosen = np.flatnonzero((self.of >= losses.start) & (self.of < losses.stop))
        expert, of = self.expert[chosen], self.of[chosen] - losses.start
        copies = self.copies[expert]
        left = copies - self.here[chosen]
        gone = left == 0
        # All slots of each touched expert, then those that are left.
        pair = np.repeat(np.arange(len(chosen)), copies)
        slot = self.order[np.arange(len(pair)) - np.repeat(np.cumsum(copies) - copies, copies) + self.first[expert][pair]]
        stays = self.unit[self.device[slot]] != of[pair] + losses.start
        pair, slot = pair[stays], slot[stays]
        away = self.unit[None] == np.arange(losses.start, losses.stop)[:, None]
        for s, load in enumerate(self.load):
            w = load[expert]
            before, after = self._shares(s, pair, slot, copies, left)
            change = np.bincount(of[pair] * devices + self.device[slot], w[pair] * (after - before), number * devices)
            now = self.carried[s] + change.reshape(number, devices)
            now[away] = 0.0
            most[:, s] = now.max(axis=1)
            lost[:, s] = np.bincount(of[gone], w[gone], number)
        found: IntArray = np.bincount(of[gone], minlength=number)
        return found

    def _shares(self, s: int, pair: IntArray, slot: IntArray, copies: IntArray, left: IntArray) -> tuple[FloatArray, FloatArray]:
        """Shares of the slots before and after the loss, both [slot]."""
        if self.share is None:
            return 1.0 / copies[pair], 1.0 / left[pair]
        before = self.share[s, slot]
        total = np.bincount(pair, before, len(left))[pair]
        after = np.where(total > 0, before / np.where(total > 0, total, 1.0), 1.0 / left[pair])
        return before, after
