"""One layer with everything that counts: balance, traffic to its neighbours, moves. Simulated annealing compiled by numba.

While the neighbouring layers stay, an expert e with replicas on the devices of a set costs

    sum over the set of [ out[e][d] / c + new[e][d] ] + sum_d' came[e][d'] min over the set of hop[d'][d]

(out: what sending from d costs; came: what arrives from d'; new: the price of a move), so it changes only with its own set. Balance enters as a
smooth maximum, (1 / kappa) log sum exp(kappa load), whose weight spreads over all devices near the busiest; the best placement is told by the true
maximum. Steps are those of `expert_placement_anneal`: exchange two slots, or give a slot to another expert.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headroom.solvers.compiled import compiled

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
KAPPA, LARGEST = 60.0, 500.0
"""Sharpness of the smooth maximum, loads in units of the mean device; less for loads whose exponentials would overflow."""
REPLICATE = 0.1
SAMPLES = 300


@compiled
def own_cost(e: int, holds: IntArray, count: int, out: FloatArray, came: FloatArray, hop: FloatArray, new: FloatArray, traffic: bool) -> float:
    """What e costs on the devices that hold it (holds [D][E])."""
    devices = len(hop)
    total = 0.0
    for d in range(devices):
        if holds[d, e]:
            total += new[e, d]
            if traffic:
                total += out[e, d] / count
    if not traffic:
        return total
    for source in range(devices):
        if came[e, source] > 0.0 and not holds[source, e]:
            nearest = np.inf
            for d in range(devices):
                if holds[d, e] and hop[source, d] < nearest:
                    nearest = hop[source, d]
            total += came[e, source] * nearest
    return total


@compiled
def true_balance(load: FloatArray, mean: bool) -> float:
    """What the layer counts for balance, from loads [D][S]."""
    devices, scenarios = load.shape
    total, worst = 0.0, 0.0
    for s in range(scenarios):
        most = 0.0
        for d in range(devices):
            most = max(most, load[d, s])
        total += most
        worst = max(worst, most)
    return total / scenarios if mean else worst


@compiled
def anneal_mixed(
    w: FloatArray, balance: float, mean: bool, out: FloatArray, came: FloatArray, hop: FloatArray, new: FloatArray, traffic: bool, slots: IntArray,
    home: IntArray, block: int, most_replicas: int, steps: int, hot: float, cold: float, rng: np.random.Generator, best_slots: IntArray,
    holders: int = 1,
) -> float:  # fmt: skip
    """Improve `slots` [D][k] (distinct, every expert on `holders` devices); how much the layer's cost fell, the best slots in `best_slots`."""
    experts, scenarios = w.shape
    devices, k = slots.shape
    count = np.zeros(experts, np.int64)
    holds = np.zeros((devices, experts), np.int64)
    for d in range(devices):
        for r in range(k):
            count[slots[d, r]] += 1
            holds[d, slots[d, r]] = 1
    load = np.zeros((devices, scenarios))
    cost = np.zeros(experts)
    for e in range(experts):
        cost[e] = own_cost(e, holds, count[e], out, came, hop, new, traffic)
        for d in range(devices):
            if holds[d, e]:
                for s in range(scenarios):
                    load[d, s] += w[e, s] / count[e]
    # One sum for the worst scenario, one for each scenario when their mean counts.
    heaviest = 1.0  # the most that a device could carry
    for s in range(scenarios):
        heaviest = max(heaviest, np.sort(w[:, s])[max(experts - k, 0) :].sum())
    kappa = min(KAPPA, LARGEST / heaviest)
    sums, power = np.zeros(scenarios), np.exp(kappa * (load - 1.0))
    for s in range(scenarios):
        for d in range(devices):
            sums[s] += power[d, s]
    linear = cost.sum()
    start = linear + balance * true_balance(load, mean)
    best = start
    best_slots[:, :] = slots
    fixed = experts * holders == devices * k
    trial, after, after_power = np.zeros(scenarios), np.zeros((devices, scenarios)), np.zeros((devices, scenarios))
    touched = np.zeros(devices, np.int64)
    temperature, sampled, seen = 0.0, 0.0, 0
    ratio = math.log(cold / hot)
    for step in range(steps + SAMPLES):
        if step == SAMPLES or (step > SAMPLES and step % 32 == 0):
            if step == SAMPLES:
                sampled /= max(seen, 1)
            temperature = max(sampled * hot * math.exp(ratio * (step - SAMPLES) / steps), 1e-300)
        give = not fixed and rng.random() < REPLICATE
        a, i = int(rng.random() * devices), int(rng.random() * k)
        e = slots[a, i]
        b, j, f = a, i, 0
        if give:
            f = int(rng.random() * experts)
            if count[e] <= holders or holds[a, f] or count[f] >= most_replicas or (home[f] >= 0 and home[f] != a // block):
                continue
        else:
            b, j = int(rng.random() * devices), int(rng.random() * k)
            f = slots[b, j]
            if a == b or holds[b, e] or holds[a, f] or (a // block != b // block and (home[e] >= 0 or home[f] >= 0)):
                continue
        # Make the step, and take it back if it is refused.
        old_e, old_f = count[e], count[f]
        holds[a, e], holds[a, f] = 0, 1
        if give:
            count[e] -= 1
            count[f] += 1
        else:
            holds[b, f], holds[b, e] = 0, 1
        cost_e = own_cost(e, holds, count[e], out, came, hop, new, traffic)
        cost_f = own_cost(f, holds, count[f], out, came, hop, new, traffic)
        change = cost_e + cost_f - cost[e] - cost[f]
        number = 0
        if balance > 0.0:
            # Summed anew each time: a busy device's power would drown the others' in a running sum.
            for s in range(scenarios):
                trial[s] = 0.0
            for d in range(devices):
                was_e = holds[d, e] if d not in (a, b) else (1 if d == a else (0 if not give else holds[d, e]))
                was_f = holds[d, f] if d not in (a, b) else (0 if d == a else (1 if not give else holds[d, f]))
                if not (was_e or was_f or holds[d, e] or holds[d, f]) or (not give and d not in (a, b)):
                    for s in range(scenarios):
                        trial[s] += power[d, s]
                    continue
                touched[number] = d
                number += 1
                for s in range(scenarios):
                    value = load[d, s] + holds[d, e] * w[e, s] / count[e] + holds[d, f] * w[f, s] / count[f]
                    value -= was_e * w[e, s] / old_e + was_f * w[f, s] / old_f
                    after[d, s] = value
                    after_power[d, s] = math.exp(kappa * (value - 1.0))
                    trial[s] += after_power[d, s]
            if mean:
                for s in range(scenarios):
                    change += balance / scenarios / kappa * math.log(trial[s] / sums[s])
            else:
                change += balance / kappa * math.log(trial.sum() / sums.sum())
        if step < SAMPLES:
            sampled += abs(change)
            seen += 1
        if step < SAMPLES or (change > 0 and rng.random() >= math.exp(-change / temperature)):
            holds[a, e], holds[a, f] = 1, 0
            if not give:
                holds[b, f], holds[b, e] = 1, 0
            count[e], count[f] = old_e, old_f
            continue
        linear += cost_e + cost_f - cost[e] - cost[f]
        cost[e], cost[f] = cost_e, cost_f
        slots[a, i] = f
        if not give:
            slots[b, j] = e
        if balance > 0.0:
            for n in range(number):
                for s in range(scenarios):
                    load[touched[n], s] = after[touched[n], s]
                    power[touched[n], s] = after_power[touched[n], s]
            for s in range(scenarios):
                sums[s] = trial[s]
        if change < 0 and linear < best:
            now = linear + balance * true_balance(load, mean)
            if now < best - 1e-13:
                best = now
                best_slots[:, :] = slots
    return float(start - best)
