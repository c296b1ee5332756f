"""From slots to a plan: the best split of loads over replicas, and which rule a placement breaks.

For a fixed placement, one scenario and one layer, the best split solves

    min z  subject to  sum_r a_r = 1 over the slots r of every expert e,   sum_{r on d} w_e(r) a_r <= z for every device d,   a >= 0

a flow problem: z is feasible exactly when no set of experts carries more than z for each device that holds one of them, so the optimum is
max over sets A of w(A) / |devices of A|. `best_share` finds it by Dinkelbach's method on that ratio: try z, push load along shortest residual
paths from devices above z to devices below; where none is left, the devices reached are such a set, and its ratio is the next z (Gallo, Grigoriadis,
Tarjan, doi 10.1137/0218003, on parametric flows). The flow found for one z is where the next begins, and almost always two or three z are enough.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.formulations.expert_placement import ExpertPlan, device_counts, moves
from headroom.formulations.types import Outcome
from headroom.instances.expert_placement import ExpertPlacement

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
ROUNDING = 1e-13
"""Relative; a device is above z when it exceeds it by more than rounding explains."""


def plan_of(instance: ExpertPlacement, slot_expert: IntArray) -> ExpertPlan:
    """The plan with these slots, its shares the best ones where the instance leaves the split to the plan."""
    return ExpertPlan(slot_expert=slot_expert, share=best_share(instance, slot_expert) if instance.split == "optimal" else None)


def settled(instance: ExpertPlacement, slot_expert: IntArray, name: str) -> ExpertPlan | Outcome:
    """The plan, or an outcome without one whose note says which rule of the instance the method `name` does not keep."""
    problem = broken(instance, slot_expert)
    return plan_of(instance, slot_expert) if problem is None else Outcome(notes=(f"{name}: {problem}",))


def broken(instance: ExpertPlacement, slot_expert: IntArray) -> str | None:
    """The first rule that a placement breaks, None when it keeps all. O(L R log k), with groups, `min_holders` or `max_moves` O(L E D)."""
    missing = np.argwhere(np.diff(np.sort(slot_expert, axis=1), prepend=-1, append=instance.experts, axis=1) > 1)
    if len(missing):
        return f"an expert of layer {missing[0][0]} has no slot"
    if instance.min_holders > 1:
        held = (device_counts(instance, slot_expert) > 0).sum(axis=2)
        few = np.argwhere(held < instance.min_holders)
        if len(few):
            l, e = few[0]
            return f"{held[l, e]} of the {instance.min_holders} devices that min_holders asks for hold expert {e} of layer {l}"
    if instance.distinct:
        on_device = np.sort(slot_expert.reshape(instance.layers, instance.devices, -1), axis=2)
        twice = np.argwhere(np.diff(on_device, axis=2) == 0)
        if len(twice):
            return f"device {twice[0][1]} holds an expert of layer {twice[0][0]} twice, which distinct forbids"
    if instance.group_limited and instance.nodes > 1:
        counts = device_counts(instance, slot_expert)
        on_node = counts.reshape(instance.layers, instance.group_of[-1] + 1, -1, instance.nodes, instance.node_devices).sum(axis=(2, 4)) > 0
        split = np.argwhere(on_node.sum(axis=2) > 1)
        if len(split):
            return f"group {split[0][1]} of layer {split[0][0]} lies on several nodes, which group_limited forbids"
    if instance.max_moves is not None and (moved := moves(instance, slot_expert)) > instance.max_moves:
        return f"it moves {moved} experts, more than max_moves {instance.max_moves}"
    return None


def best_share(instance: ExpertPlacement, slot_expert: IntArray) -> FloatArray:
    """The shares [S][L][R] that minimise the busiest device of every scenario and layer, to rounding.

    O(R D) pushes of O(R) each for one z in the worst case; a few milliseconds for 58 layers of 256 experts on 32 devices.
    """
    total = instance.total_load
    load = instance.load * (instance.devices / np.where(total > 0, total, 1.0))[:, :, None]
    return even_out(load, slot_expert, instance.devices)


def even_out(load: FloatArray, slot_expert: IntArray, devices: int) -> FloatArray:
    """`best_share` for loads [S][L][E]; best scaled so that a mean device carries about 1."""
    share = np.empty((*load.shape[:2], slot_expert.shape[1]))
    _compiled()(np.ascontiguousarray(load), np.ascontiguousarray(slot_expert), devices, share)
    return share


@cache
def _compiled() -> Any:
    from headroom.solvers.compiled import compiled

    return compiled(_even_out)


def _even_out(load: FloatArray, slot_expert: IntArray, devices: int, share: FloatArray) -> None:
    """Fills `share` [S][L][R]. Whenever it stops, the shares are a valid split."""
    scenarios, layers, experts = load.shape
    slots = slot_expert.shape[1]
    k = slots // devices
    flow, carried = np.empty(slots), np.empty(devices)
    from_slot, to_slot = np.empty(devices, np.int64), np.empty(devices, np.int64)  # how the search came to a device; -1: not yet, -2: a source
    queue, tried = np.empty(devices, np.int64), np.empty(experts, np.bool_)
    first, of_expert, fill = np.empty(experts + 1, np.int64), np.empty(slots, np.int64), np.empty(experts, np.int64)
    for l in range(layers):
        # Slots by expert: those of e are of_expert[first[e] : first[e + 1]].
        first[:] = 0
        for r in range(slots):
            first[slot_expert[l, r] + 1] += 1
        for e in range(experts):
            first[e + 1] += first[e]
            fill[e] = first[e]
        for r in range(slots):
            of_expert[fill[slot_expert[l, r]]] = r
            fill[slot_expert[l, r]] += 1
        for s in range(scenarios):
            total = 0.0
            for e in range(experts):
                total += load[s, l, e]
                for position in range(first[e], first[e + 1]):
                    flow[of_expert[position]] = load[s, l, e] / (first[e + 1] - first[e])
            z, pushes = total / devices, 0
            while pushes <= 10 * slots * devices + 1000:
                for d in range(devices):
                    carried[d] = 0.0
                for r in range(slots):
                    carried[r // k] += flow[r]
                # Augment at this z until no device is above it (done), or none below can be reached (z too small).
                enough, reached = False, 0
                while pushes <= 10 * slots * devices + 1000:
                    reached = 0
                    for d in range(devices):
                        from_slot[d] = -1
                        if carried[d] > z * (1 + 10 * ROUNDING):
                            from_slot[d] = -2
                            queue[reached] = d
                            reached += 1
                    if reached == 0:
                        enough = True
                        break
                    tried[:] = False
                    head, target = 0, -1
                    while head < reached and target < 0:
                        d = queue[head]
                        head += 1
                        for r in range(d * k, (d + 1) * k):
                            e = slot_expert[l, r]
                            if flow[r] <= 0.0 or tried[e] or target >= 0:
                                continue
                            tried[e] = True
                            for position in range(first[e], first[e + 1]):
                                other = of_expert[position] // k
                                if from_slot[other] == -1:
                                    from_slot[other], to_slot[other] = r, of_expert[position]
                                    queue[reached] = other
                                    reached += 1
                                    if carried[other] < z * (1 - 0.1 * ROUNDING):
                                        target = other
                                        break
                    if target < 0:
                        break
                    amount, d = z - carried[target], target
                    while from_slot[d] >= 0:
                        amount = min(amount, flow[from_slot[d]])
                        d = from_slot[d] // k
                    amount = min(amount, carried[d] - z)
                    carried[d] -= amount
                    carried[target] += amount
                    d = target
                    while from_slot[d] >= 0:
                        flow[from_slot[d]] -= amount
                        flow[to_slot[d]] += amount
                        d = from_slot[d] // k
                    pushes += 1
                if enough:
                    break
                # The devices reached keep what they carry among themselves: their mean is a lower bound on z.
                mean = 0.0
                for position in range(reached):
                    mean += carried[queue[position]] / reached
                if mean <= z * (1 + ROUNDING):
                    break
                z = mean
            for e in range(experts):
                for position in range(first[e], first[e + 1]):
                    r = of_expert[position]
                    share[s, l, r] = flow[r] / load[s, l, e] if load[s, l, e] > 0.0 else 1.0 / (first[e + 1] - first[e])
