"""One layer under several load scenarios at once: simulated annealing on slots. Compiled by numba; deterministic for a generator's state.

With loads w [E][S] in units of the mean device, minimise max over devices and scenarios of the load carried (`mean` false), or the mean over
scenarios of the busiest device's. Annealed is the smooth sum over devices and scenarios of max(0, load - tau_s)^2, where tau lies a fifth
below the best found, so that all devices near the maximum count and not one of them alone; each new best moves tau. Two kinds of steps:

- exchange the experts of two slots on different devices: O(S);
- give a slot to another expert, so that one expert has a replica less and one a replica more and all their replicas change: O(D S).

No expert comes twice onto a device, and none below `holders` replicas. `home` [E] is the block of devices that an expert must stay in (its node, for
group-limited routing), blocks being `block` devices wide.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headroom.solvers.compiled import compiled

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
TARGET = 0.8
"""tau stands at 1 + TARGET (best - 1)."""
REPLICATE = 0.1
"""Share of the second kind of steps."""


@compiled
def excess(load: float, tau: float) -> float:
    return (load - tau) * (load - tau) if load > tau else 0.0


@compiled
def busiest(load: FloatArray, most: FloatArray, mean: bool) -> float:
    """The objective of loads [D][S]; `most` [S] is filled with the busiest device's load."""
    devices, scenarios = load.shape
    for s in range(scenarios):
        most[s] = load[0, s]
        for d in range(1, devices):
            most[s] = max(most[s], load[d, s])
    return float(most.sum()) / scenarios if mean else float(most.max())


@compiled
def aim(most: FloatArray, best: float, floor: float, mean: bool, tau: FloatArray) -> None:
    """Where the loads should get [S]."""
    for s in range(len(tau)):
        at = most[s] if mean else best
        tau[s] = floor + TARGET * (at - floor)


@compiled
def total_excess(load: FloatArray, tau: FloatArray) -> float:
    total = 0.0
    for d in range(load.shape[0]):
        for s in range(load.shape[1]):
            total += excess(load[d, s], tau[s])
    return total


@compiled
def carry(w: FloatArray, slots: IntArray, each: FloatArray, load: FloatArray) -> None:
    """Loads of one replica of each expert [E][S], and of each device [D][S]."""
    count = np.zeros(len(w), np.int64)
    load[:] = 0.0
    for d in range(len(slots)):
        for e in slots[d]:
            count[e] += 1
    for e in range(len(w)):
        each[e] = w[e] / count[e]
    for d in range(len(slots)):
        for e in slots[d]:
            load[d] += each[e]


@compiled
def anneal(
    w: FloatArray, slots: IntArray, home: IntArray, block: int, most_replicas: int, mean: bool, enough: float, begin: int, end: int, steps: int,
    hot: float, cold: float, rng: np.random.Generator, best_slots: IntArray, holders: int = 1,
) -> float:  # fmt: skip
    """Anneal `slots` [D][k] (distinct, every expert on `holders` devices) in place, steps begin .. end - 1 of `steps`, from `hot` to `cold`.

    Returns the best objective; `best_slots`, at first a placement to be better than, becomes its. Stops at `enough`.
    """
    experts, scenarios = w.shape
    devices, k = slots.shape
    count = np.zeros(experts, np.int64)
    holds = np.zeros((devices, experts), np.int64)
    for d in range(devices):
        for r in range(k):
            count[slots[d, r]] += 1
            holds[d, slots[d, r]] = 1
    each, load = np.zeros((experts, scenarios)), np.zeros((devices, scenarios))
    most, tau, trial = np.zeros(scenarios), np.zeros(scenarios), np.zeros(scenarios)
    carry(w, best_slots, each, load)
    best = busiest(load, most, mean)
    carry(w, slots, each, load)
    aim(most, best, 1.0, mean, tau)
    scale = max((best - 1.0) * (best - 1.0), 1e-18)
    fixed = experts * holders == devices * k
    cooling, temperature = math.log(cold / hot), 0.0
    for step in range(begin, end):
        if step % 64 == 0 or step == begin:
            temperature = scale * hot * math.exp(cooling * step / steps)
        if not fixed and rng.random() < REPLICATE:
            d = int(rng.random() * devices)
            r = int(rng.random() * k)
            e, f = slots[d, r], int(rng.random() * experts)
            if count[e] <= holders or holds[d, f] or count[f] >= most_replicas or (home[f] >= 0 and home[f] != d // block):
                continue
            change = 0.0
            for other in range(devices):
                if holds[other, e] or holds[other, f] or other == d:
                    with_e, with_f = holds[other, e], holds[other, f]
                    now_e, now_f = (0, 1) if other == d else (with_e, with_f)
                    for s in range(scenarios):
                        after = load[other, s] - with_e * each[e, s] - with_f * each[f, s]
                        after += now_e * w[e, s] / (count[e] - 1) + now_f * w[f, s] / (count[f] + 1)
                        change += excess(after, tau[s]) - excess(load[other, s], tau[s])
            if change > 0 and rng.random() >= math.exp(-change / temperature):
                continue
            for other in range(devices):
                with_e, with_f = holds[other, e], holds[other, f]
                now_e, now_f = (0, 1) if other == d else (with_e, with_f)
                if with_e or with_f or other == d:
                    for s in range(scenarios):
                        load[other, s] += now_e * w[e, s] / (count[e] - 1) + now_f * w[f, s] / (count[f] + 1)
                        load[other, s] -= with_e * each[e, s] + with_f * each[f, s]
            count[e] -= 1
            count[f] += 1
            each[e], each[f] = w[e] / count[e], w[f] / count[f]
            holds[d, e], holds[d, f] = 0, 1
            slots[d, r] = f
        else:
            a, b = int(rng.random() * devices), int(rng.random() * devices)
            i, j = int(rng.random() * k), int(rng.random() * k)
            e, f = slots[a, i], slots[b, j]
            if a == b or holds[b, e] or holds[a, f] or (a // block != b // block and (home[e] >= 0 or home[f] >= 0)):
                continue
            change = 0.0
            for s in range(scenarios):
                moved = each[e, s] - each[f, s]
                change += excess(load[a, s] - moved, tau[s]) - excess(load[a, s], tau[s])
                change += excess(load[b, s] + moved, tau[s]) - excess(load[b, s], tau[s])
            if change > 0 and rng.random() >= math.exp(-change / temperature):
                continue
            for s in range(scenarios):
                moved = each[e, s] - each[f, s]
                load[a, s] -= moved
                load[b, s] += moved
            slots[a, i], slots[b, j] = f, e
            holds[a, e], holds[a, f], holds[b, f], holds[b, e] = 0, 1, 0, 1
        if change < 0:
            now = busiest(load, trial, mean)
            if now < best - 1e-12:
                best = now
                most[:] = trial
                best_slots[:, :] = slots
                if best <= enough:
                    break
                aim(most, best, 1.0, mean, tau)
                scale = max((best - 1.0) * (best - 1.0), 1e-18)
    return best
