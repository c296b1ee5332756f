"""Random expert loads, transitions between layers, and load traces, for expert placement. Everything is drawn from the Generator it is given.

Measured on the two single-task routings of DeepSeek-V2-Lite (26 MoE layers, 64 experts, top-6) that ESFT publishes (github.com/deepseek-ai/ESFT,
arXiv 2407.01906; "intent" 8,222 tokens, "law" 8,327 tokens), the least / median / largest of the layers or boundaries:

    figure                                                       | intent             | law
    busiest expert over the mean                                 | 2.93 / 3.96 / 4.68 | 1.95 / 3.28 / 6.87
    standard deviation of the log loads (`sigma`)                | 0.66 / 0.90 / 1.26 | 0.30 / 0.62 / 0.77
    Gini coefficient of the loads                                | 0.34 / 0.41 / 0.47 | 0.16 / 0.31 / 0.41
    share of the 8 busiest experts                               | 0.28 / 0.33 / 0.39 | 0.18 / 0.27 / 0.37
    share that goes on to an expert's 8 likeliest successors     | 0.48 / 0.55 / 0.63 | 0.39 / 0.46 / 0.55
    mutual information of a token's experts in two layers, bits  | 0.69 / 0.81 / 1.11 | 0.47 / 0.61 / 0.97
    correlation of the two tasks' log loads (`correlation`)      | −0.06 / 0.15 / 0.41, mean 0.14

So two tasks are nearly unrelated (0.15), and a single task is far more skewed than mixed text, whose published per-expert Gini coefficients of 0.105
to 0.24 are those of lognormal loads with sigma 0.2 to 0.45. `planted_transitions` with 16 clusters and its defaults, on loads of sigma 0.8, has 0.69
bits and a share of 0.54 on average.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headroom.instances.errors import InputError, shown, span

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
FIT_ROUNDS = 1000
FIT_ERROR = 1e-10
"""Transitions are fitted to the loads until they miss them by less than this share of all tokens, or for FIT_ROUNDS rounds."""
STEEPEST = 30.0
"""No log load goes further from its layer's mean than this, so that no load vanishes below 1e-15 of the others."""


def lognormal_loads(rng: np.random.Generator, layers: int, experts: int, sigma: float, tokens: int) -> FloatArray:
    """Loads [layer][expert]: lognormal with standard deviation `sigma` of the logarithm, `tokens` in every layer, in whole tokens.

    sigma 0.2 to 0.5 is mixed text, 0.6 to 1 a single task. Raises `InputError` for settings out of range.
    """
    load: FloatArray = correlated_loads(rng, 1, layers, experts, sigma, 0.0, tokens)[0]
    return load


def zipf_loads(rng: np.random.Generator, layers: int, experts: int, exponent: float, tokens: int) -> FloatArray:
    """Loads [layer][expert] proportional to rank^-exponent, the ranks of each layer in random order; `tokens` in every layer, in whole tokens."""
    number("exponent", exponent, 0.0, 10.0)
    _sizes(layers, experts, tokens)
    rank = np.argsort(rng.random((layers, experts)), axis=1).astype(np.float64) + 1.0
    return whole_tokens(np.power(rank, -float(exponent)), tokens)


def correlated_loads(
    rng: np.random.Generator, scenarios: int, layers: int, experts: int, sigma: float, correlation: float, tokens: int
) -> FloatArray:
    """Loads [scenario][layer][expert]: lognormal as `lognormal_loads`, the log loads of any two scenarios with this correlation (0 to 1).

    A log load is sigma (√c common + √(1 − c) own). Scenarios of correlation 0.15 are as different as the two tasks that the module's table measures.
    """
    whole("scenarios", scenarios, 1, 10_000)
    number("sigma", sigma, 0.0, 5.0)
    number("correlation", correlation, 0.0, 1.0)
    _sizes(layers, experts, tokens)
    common = rng.standard_normal((layers, experts))
    own = rng.standard_normal((scenarios, layers, experts))
    return whole_tokens(np.exp(sigma * (np.sqrt(correlation) * common + np.sqrt(1.0 - correlation) * own)), tokens)


def load_trace(
    rng: np.random.Generator,
    steps: int,
    layers: int,
    experts: int,
    sigma: float,
    correlation: float,
    tokens: int,
    *,
    tasks: int = 3,
    drift: float = 0.03,
    switch_probability: float = 0.05,
) -> FloatArray:
    """Loads over time [step][layer][expert], `tokens` in every layer of a step, in whole tokens.

    The service works on one of `tasks` tasks, whose log loads are those of `correlated_loads`; at each step it goes over to another one with
    `switch_probability` (a sudden switch), and all the while every log load walks at random by `drift` a step.
    """
    whole("steps", steps, 1, 1_000_000)
    whole("tasks", tasks, 1, 10_000)
    number("sigma", sigma, 0.0, 5.0)
    number("correlation", correlation, 0.0, 1.0)
    number("drift", drift, 0.0, 5.0)
    number("switch_probability", switch_probability, 0.0, 1.0)
    _sizes(layers, experts, tokens)
    common = rng.standard_normal((layers, experts))
    own = rng.standard_normal((tasks, layers, experts))
    profile = sigma * (np.sqrt(correlation) * common + np.sqrt(1.0 - correlation) * own)
    trace = np.empty((steps, layers, experts))
    task, walk = 0, np.zeros((layers, experts))
    for step in range(steps):
        if step and tasks > 1 and rng.random() < switch_probability:
            task = (task + 1 + int(rng.integers(tasks - 1))) % tasks
        if step:
            walk += drift * rng.standard_normal((layers, experts))
        trace[step] = whole_tokens(np.exp(np.clip(profile[task] + walk, -STEEPEST, STEEPEST)), tokens)
    return trace


def drifted_loads(rng: np.random.Generator, load: FloatArray, drift: float) -> FloatArray:
    """Loads of a later time, of the same shape: every log load goes `drift` standard normal steps further; totals stay, in whole tokens."""
    number("drift", drift, 0.0, 5.0)
    later = np.where(load > 0, load, 0.0) * np.exp(drift * rng.standard_normal(load.shape))
    return np.stack([whole_tokens(row, int(tokens)) for row, tokens in zip(later, load.sum(axis=-1), strict=True)])


def placement_of(load: FloatArray, devices: int, slots_per_device: int) -> IntArray:
    """Slots [layer][slot] that serve loads [layer][expert] well, as what stands when loads have changed: DeepSeek's EPLB without groups.

    Spare slots go one by one to the expert with the highest load a copy; copies are then placed by falling load, each on the lightest device that
    has room and does not hold the expert. Where none is left, a copy changes places with one of another device. Needs a slot for each expert, and
    no more slots on a device than there are experts. O(L R (E + D)).
    """
    found = np.empty((len(load), devices * slots_per_device), dtype=np.int64)
    for layer, row in enumerate(load):
        copies = np.ones(len(row), dtype=np.int64)
        for _ in range(devices * slots_per_device - len(row)):
            copies[int(np.argmax(np.where(copies < devices, row / copies, -1.0)))] += 1
        each = np.repeat(row / copies, copies)
        holds: list[list[int]] = [[] for _ in range(devices)]
        carried = np.zeros(devices)
        for at in np.argsort(-each, kind="stable"):
            e = int(np.repeat(np.arange(len(row)), copies)[at])
            room = [d for d in range(devices) if len(holds[d]) < slots_per_device]
            free = [d for d in room if e not in holds[d]]
            if not free:  # the devices with room hold e already: another one takes it and gives them an expert that they lack
                full, given = next((d, f) for d in range(devices) if e not in holds[d] for f in holds[d] if f not in holds[room[0]])
                holds[full][holds[full].index(given)] = e
                holds[room[0]].append(given)
                continue
            d = min(free, key=lambda d: (carried[d], d))
            holds[d].append(e)
            carried[d] += each[at]
        found[layer] = [e for own in holds for e in own]
    return found


def planted_transitions(rng: np.random.Generator, load: FloatArray, clusters: int, affinity: float = 0.35, noise: float = 0.5) -> FloatArray:
    """Shares of tokens [boundary][expert][expert] for loads [layer][expert] or [scenario][layer][expert]; each boundary adds up to 1.

    In every layer the experts fall at random into `clusters` clusters of equal size (sizes differ by one at most); a token stays in its cluster
    with a preference of `affinity` (0: no preference; below 1, since clusters of different load cannot all keep their tokens), times lognormal
    `noise` on each pair. The table is then scaled so that what leaves and enters every expert is its share of the load (iterative proportional
    fitting; the mean share over scenarios), which keeps all odds ratios. Raises `InputError`. O(rounds · L E²).
    """
    load = load[None] if load.ndim == 2 else load
    _, layers, experts = load.shape
    whole("clusters", clusters, 1, experts)
    number("noise", noise, 0.0, 5.0)
    number("affinity", affinity, 0.0, 0.999)
    total = load.sum(axis=2, keepdims=True)
    share = np.where(total > 0, load / np.where(total > 0, total, 1.0), 1.0 / experts).mean(axis=0)
    member = np.arange(experts) * clusters // experts
    cluster = np.array([rng.permutation(member) for _ in range(layers)])
    found = np.empty((layers - 1, experts, experts))
    for b in range(layers - 1):
        together = cluster[b][:, None] == cluster[b + 1][None, :]
        kernel = (1.0 - affinity + affinity * clusters * together) * np.exp(noise * rng.standard_normal((experts, experts)))
        found[b] = _fitted(kernel, share[b], share[b + 1])
    return found


def _fitted(kernel: FloatArray, leaves: FloatArray, enters: FloatArray) -> FloatArray:
    """u_e kernel_ef v_f with row sums `leaves` and column sums `enters`; a kernel without zeros has exactly one such table."""
    v = np.ones(len(enters))
    u = v
    for _ in range(FIT_ROUNDS):
        u = leaves / (kernel @ v)
        v = enters / (u @ kernel)
        if np.abs(u * (kernel @ v) - leaves).max() < FIT_ERROR:
            break
    table = u[:, None] * kernel * v[None, :]
    found: FloatArray = table / table.sum()
    return found


def whole_tokens(weight: FloatArray, tokens: int) -> FloatArray:
    """Whole numbers [...][expert] in proportion to the weights that add up to `tokens` along the last axis (largest remainders)."""
    exact = weight / weight.sum(axis=-1, keepdims=True) * tokens
    down = np.floor(exact)
    missing = np.rint(tokens - down.sum(axis=-1, keepdims=True))
    rank = np.argsort(np.argsort(-(exact - down), axis=-1, kind="stable"), axis=-1, kind="stable")
    found: FloatArray = down + (rank < missing)
    return found


def number(name: str, value: object, least: float, most: float) -> float:
    """The value as a float. Raises `InputError` unless it is a number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise InputError(f"{name} must be a number {span(least, most)}, got {shown(value)}")
    return float(value)


def whole(name: str, value: object, least: int, most: int) -> int:
    """The value. Raises `InputError` unless it is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{name} must be a whole number from {least} to {most}, got {shown(value)}")
    return value


def _sizes(layers: int, experts: int, tokens: int) -> None:
    whole("layers", layers, 1, 100_000)
    whole("experts", experts, 1, 1_000_000)
    whole("tokens", tokens, 1, 10**12)
