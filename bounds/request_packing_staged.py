r"""Closed-form bounds of staged prefill and decode; sets and parameters as in `headroom.formulations.request_packing`.

A plan takes (its prefill stages' seconds) + delta T, T its decode steps. Both bounds count stages that admit something. ROUNDING is granted
against us, but where `evaluate` does not round.

`stage_cover`: the cheapest cover of all prompts by prefill stages, plus delta D.

    Cover: n_l stages of level l hold U_l tokens at most, U_l = the largest sum of prompts that is at most L_l, and at most the J longest prompts'
    sum. Requests with p_j > L_{l-1} need level l or a higher one: for each l, sum_{i >= l} n_i U_i >= their tokens P_l, and
    J sum_{i >= l} n_i >= their number N_l. For the lowest level that is all prompts and all N. The least sum_l tau_l n_l in whole numbers is found
    by a dynamic program from the highest level down; where it would keep more than MOST_LABELS partial covers, the least bound of those open counts.
    Decode: T >= D = max(ceil(sum o / J), max o, and for k = 1, 2, ... the sum of the k + 1 least of the kJ + 1 longest outputs: one slot has k + 1).

`stage_count`: the minimum over the number of stages K of (prefill of at least K stages) + delta (decode steps with K stages at most).

    Prefill: as above, but with the linear cover of P_0 tokens by at least K stages where that is more: it rises with K.
    Decode: say the stages stand at decode steps t_1 <= ... <= t_K, and t_{K+1} = T. A request admitted in stage k keeps its slot until the stage
    after its end, or to the end of the run: for t_e - t_k steps, some e > k. So there are at most C = K (K + 1) / 2 classes (k, e), and each takes
    for every one of its requests at least the longest one's output. As J T is at least the sum of all these times, J T >= sum o + W(C), W(C) = the
    least sum over the requests of (longest output of its class - its own) for any partition into C classes. Classes that are intervals of the
    outputs are enough, and W(C) >= g(nu) - nu C for every nu >= 0 where g(nu) = the least waste if a class costs nu: a shortest path over the
    distinct outputs. It falls with K.
    Also, a request's e - k adds up to J K at most over all requests, each at least 1: at least R = 2N - J K of them have e = k + 1. These are in K
    classes of at most J, whose steps add up to T: T >= the R-th least output + the (R - J)-th + the (R - 2J)-th + ...

Where stages are cheap (C as large as the number of distinct outputs costs no more prefill than the cover), W vanishes and `stage_count` says no more
than `stage_cover`. No idle slot follows from the numbers of requests and tokens alone then: outputs that are differences of the stages' steps can
be run without one.
"""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headroom.bounds.certificates import CertificateError
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, SolveParams
from headroom.instances.request_packing import RequestPacking

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
ROUNDING = 1e-12
"""Relative: more than the sums here and in `evaluate` can be off."""
MOST_LABELS = 20_000
"""Partial covers that are kept for a level."""
MOST_BITS = 2**17
"""Longest prefill whose largest sum of prompts is looked for token by token."""
MOST_OUTPUTS = 3000
"""Distinct outputs beyond which W is taken as 0: the shortest paths are quadratic."""
PRICES = 16
"""Values of nu."""


def stage_cover(instance: RequestPacking, params: SolveParams, progress: Progress) -> Bound:
    """The cheapest cover of all prompts by prefill stages, and the decode steps of P||Cmax; +inf where a prompt is above the last level."""
    return Bound(stage_cover_value(instance), "stage_cover", "closed_form")


def stage_count(instance: RequestPacking, params: SolveParams, progress: Progress) -> Bound:
    """Few stages make slots wait, many cost prefill: the least over the number of stages. At least `stage_cover`. O(V^2), V distinct outputs."""
    return Bound(stage_count_value(instance), "stage_count", "closed_form")


def unservable(instance: RequestPacking) -> str | None:
    """Names a request whose prompt is above the last prefill level: no plan is feasible. None where there is none."""
    if instance.objective != "makespan" or not instance.prefill_levels:
        return None
    longest, most = instance.requests.prompt_tokens, int(instance.level_tokens[-1])
    j = int(np.argmax(longest))
    if longest[j] <= most:
        return None
    return f"request {j} has {longest[j]} prompt tokens, more than the {most} that the last prefill level takes: there is no feasible plan"


def stage_cover_value(instance: RequestPacking) -> float:
    """Seconds, by numpy alone."""
    if unservable(instance):
        return math.inf
    return _rounded(instance, prefill_cover_s(cover_of(instance)) + decode_floor(instance) * (instance.decode_step_s or 0.0))


def stage_count_value(instance: RequestPacking) -> float:
    """Seconds, by numpy alone."""
    if unservable(instance):
        return math.inf
    cover, floor = cover_of(instance), decode_floor(instance)
    delta, slots = instance.decode_step_s or 0.0, instance.slots or 1
    least_s, total = prefill_cover_s(cover), int(instance.requests.output_tokens.sum())
    lines, rising = _waste_lines(instance.requests.output_tokens), np.sort(instance.requests.output_tokens)
    best = math.inf
    for stages in range(cover.stages, instance.count + 1):
        prefill_s = max(least_s, cover.linear_s(cover.tokens[0], stages))
        if prefill_s + delta * floor >= best:
            break
        classes = stages * (stages + 1) // 2
        # Down by more than the sums can be off: they have at most as many terms as there are distinct outputs.
        waste = max(0.0, max(least - price * classes for price, least in lines)) * (1 - 1e-9)
        single = 2 * instance.count - slots * stages
        in_step = int(rising[:single][::-slots].sum()) if single > 0 else 0
        best = min(best, prefill_s + delta * max(floor, in_step, -(-(total + math.floor(waste)) // slots)))
        if waste <= 0 and in_step <= floor:
            break
    return max(_rounded(instance, best), stage_cover_value(instance))


def _rounded(instance: RequestPacking, seconds: float) -> float:
    """Down by ROUNDING; then up to a whole number of units, the greatest power of two of which all times are multiples.

    A plan's time is such a multiple, and `evaluate` adds those without rounding up to 2^53 units: times like 0.25, 1.5 or 3 lose nothing.
    """
    least = seconds * (1 - ROUNDING)
    ratios = (time.as_integer_ratio() for time in (*instance.level_s.tolist(), instance.decode_step_s or 1.0) if time)
    unit = min((over & -over) / under for over, under in ratios)
    units = least / unit
    return math.ceil(units) * unit if units < 2**52 else least


def recheck_staged(instance: RequestPacking, method: str) -> float:
    """The value of a closed form by its name. Raises `CertificateError` for another name or objective."""
    if method not in CLOSED or instance.objective != "makespan":
        raise CertificateError(f"closed form of a makespan must be one of {', '.join(CLOSED)}, got {method!r}")
    return CLOSED[method](instance)


CLOSED = {"stage_cover": stage_cover_value, "stage_count": stage_count_value}
"""The closed forms: their values alone."""


def decode_floor(instance: RequestPacking) -> int:
    """D: decode steps that every plan makes. O(N log N)."""
    output, slots = np.sort(instance.requests.output_tokens)[::-1], instance.slots or 1
    sums = np.concatenate([[0], np.cumsum(output)])
    k = np.arange(1, (len(output) - 1) // slots + 1)
    shared = sums[k * slots + 1] - sums[k * (slots - 1)]
    return max(-(-int(sums[-1]) // slots), int(output[0]), int(shared.max(initial=0)))


@dataclass(frozen=True)
class Cover:
    """A covering problem: levels that are of use [L] with `most` tokens (U) and `time_s`; `tokens` and `count` [L] of what needs at least level l,
    the latter in stages. `vertices` [l]: multipliers (of tokens, of stages) whose prices no level below l exceeds."""

    most: tuple[int, ...]
    time_s: tuple[float, ...]
    tokens: tuple[int, ...]
    count: tuple[int, ...]
    vertices: tuple[tuple[tuple[float, float], ...], ...]

    @property
    def stages(self) -> int:
        """The least number of stages."""
        return self.count[0] if self.count else 1

    def linear_s(self, tokens: int, stages: int, below: int | None = None) -> float:
        """The linear cover of so many tokens by at least so many stages of the levels below one (all)."""
        found = self.vertices[len(self.most) if below is None else below]
        return max((a * max(0, tokens) + b * max(0, stages) for a, b in found), default=0.0)


def cover_of(instance: RequestPacking) -> Cover:
    """The covering problem of an instance whose prompts all fit into the last level; without levels, one that takes no time. O(N log N)."""
    prompt, slots = np.sort(instance.requests.prompt_tokens), instance.slots or 1
    sums = np.concatenate([[0], np.cumsum(prompt)])
    total, together = int(sums[-1]), int(prompt[-slots:].sum())
    levels = [int(tokens) for tokens in instance.level_tokens] or [total]
    times = instance.level_s.tolist() or [0.0]
    reach = _largest_sums(prompt, levels)
    most: list[int] = []
    time_s: list[float] = []
    tokens: list[int] = []
    count: list[int] = []
    below = -1
    for limit, time, filled in zip(levels, times, reach, strict=True):
        used = min(filled, together)
        if not most or used > most[-1]:
            # A level that holds no more than the one before has no request of its own: that would fill it further.
            under = int(np.searchsorted(prompt, below, side="right"))
            most.append(used)
            time_s.append(time)
            tokens.append(total - int(sums[under]))
            count.append(-(-(len(prompt) - under) // slots))
        below = limit
    vertices = tuple(_vertices(most[:below], time_s[:below]) for below in range(len(most) + 1))
    return Cover(tuple(most), tuple(time_s), tuple(tokens), tuple(count), vertices)


def _largest_sums(prompt: IntArray, levels: list[int]) -> list[int]:
    """The largest sum of prompts of each level that is at most its tokens; the tokens themselves where they are too many to try."""
    total = int(prompt.sum())
    found = [min(level, total) for level in levels]
    longest = max((level for level in found if level <= MOST_BITS), default=0)
    if not longest:
        return found
    mask, reached = (1 << (longest + 1)) - 1, 1
    values, counts = np.unique(prompt[(prompt > 0) & (prompt <= longest)], return_counts=True)
    for value, copies in zip(values.tolist(), counts.tolist(), strict=True):
        left, part = min(copies, longest // value), 1
        while left > 0:
            part = min(part, left)
            reached |= (reached << (part * value)) & mask
            left -= part
            part *= 2
    return [(reached & ((1 << (level + 1)) - 1)).bit_length() - 1 if level <= longest else level for level in found]


def _vertices(most: list[int], time_s: list[float]) -> tuple[tuple[float, float], ...]:
    """Multipliers (a, b) >= 0 with a U_l + b <= tau_l for all levels: the edges of their lower hull, and its two ends."""
    if not most:
        return ()
    hull: list[int] = []
    for i in range(len(most)):
        while len(hull) > 1 and (time_s[hull[-1]] - time_s[hull[-2]]) * (most[i] - most[hull[-2]]) >= (time_s[i] - time_s[hull[-2]]) * (
            most[hull[-1]] - most[hull[-2]]
        ):
            hull.pop()
        hull.append(i)
    edges = [((time_s[k] - time_s[i]) / (most[k] - most[i]), i) for i, k in itertools.pairwise(hull)]
    slopes = [0.0, *(slope for slope, _ in edges), *(time_s[i] / most[i] for i in hull if most[i])]
    # With a as given, the largest b; rounded down by recomputing it over all levels.
    pairs = ((slope, min(time - slope * tokens for tokens, time in zip(most, time_s, strict=True))) for slope in slopes)
    # The steepest line through nothing, lowered by what a quotient can be rounded: its b is 0, whatever the dearest level costs.
    steepest = min((time / tokens for tokens, time in zip(most, time_s, strict=True) if tokens), default=0.0) * (1 - 1e-15)
    return (*((slope, b) for slope, b in pairs if b >= 0.0), (steepest, 0.0))


def prefill_cover_s(cover: Cover) -> float:
    """The least seconds of whole prefill stages that cover all prompts (or a bound on it, see MOST_LABELS)."""
    labels: list[tuple[float, int, int]] = [(0.0, 0, 0)]  # seconds, tokens, stages of the levels from l on
    need, stages = cover.tokens[0], cover.count[0]
    known = math.inf
    for level in range(len(cover.most) - 1, -1, -1):
        opened: dict[tuple[int, int], float] = {}
        for spent, tokens, used in labels:
            if len(opened) > MOST_LABELS:
                break
            known = _extend(cover, level, (spent, tokens, used), known, opened)
        if len(opened) > MOST_LABELS:
            # Too many: every cover extends one of the labels that we had.
            return min(known, min(spent + cover.linear_s(need - tokens, stages - used, level + 1) for spent, tokens, used in labels))
        labels = _undominated(cover, level, known, opened)
    return min((spent for spent, _, _ in labels), default=known)


def _extend(cover: Cover, level: int, label: tuple[float, int, int], known: float, opened: dict[tuple[int, int], float]) -> float:
    """All numbers of stages of a level that may be part of a cover cheaper than `known`. Returns what is known then."""
    spent, tokens, used = label
    need, stages, most, time = cover.tokens[0], cover.count[0], cover.most[level], cover.time_s[level]
    fewest = max(-(-(cover.tokens[level] - tokens) // most) if most else 0, cover.count[level] - used, 0)
    enough = max(-(-(need - tokens) // most) if most else 0, stages - used, 0)
    known = min(known, spent + enough * time)

    def least(n: int) -> float:
        return spent + n * time + cover.linear_s(need - tokens - n * most, stages - used - n, level)

    if level == 0:
        numbers = range(fewest, fewest + 1)
    else:
        # `least` is convex in n: the numbers that may do are an interval around its lowest point.
        limit = known * (1 + ROUNDING)
        grid = range(fewest, enough + 1)
        low = fewest + bisect.bisect_left(range(len(grid) - 1), True, key=lambda i: least(grid[i + 1]) >= least(grid[i]))
        if least(low) > limit:
            return known
        first = fewest + bisect.bisect_left(range(low - fewest), True, key=lambda i: least(grid[i]) <= limit)
        end = low + bisect.bisect_left(range(enough - low + 1), True, key=lambda i: least(low + i) > limit)
        numbers = range(first, min(end, first + MOST_LABELS + 1))
    for n in numbers:
        key = (min(need, tokens + n * most), min(stages, used + n))
        opened[key] = min(opened.get(key, math.inf), spent + n * time)
        if len(opened) > MOST_LABELS:
            break
    return known


def _undominated(cover: Cover, level: int, known: float, opened: dict[tuple[int, int], float]) -> list[tuple[float, int, int]]:
    """Labels that no cheaper one with as many tokens and stages replaces, and that may still be part of the cheapest cover."""
    need, stages = cover.tokens[0], cover.count[0]
    best: dict[int, int] = {}
    kept = []
    for spent, tokens, used in sorted(((spent, *key) for key, spent in opened.items()), key=lambda label: (label[0], -label[1], -label[2])):
        if max(best.get(used, -1), best.get(stages, -1)) >= tokens:
            continue
        if spent + cover.linear_s(need - tokens, stages - used, level) > known * (1 + ROUNDING):
            continue
        best[used] = tokens
        kept.append((spent, tokens, used))
    return kept


def _waste_lines(output: IntArray) -> list[tuple[float, float]]:
    """Pairs (nu, g(nu)). One that says nothing where there are too many distinct outputs."""
    value, count = np.unique(output, return_counts=True)
    if len(value) > MOST_OUTPUTS or len(value) == 1:
        return [(0.0, 0.0)]
    many = np.concatenate([[0], np.cumsum(count)]).astype(np.float64)
    sums = np.concatenate([[0], np.cumsum(count * value)]).astype(np.float64)
    top = float(value[-1]) * float(many[-1])
    return [(price, _least_waste(value.astype(np.float64), many, sums, price)) for price in np.geomspace(1e-6 * top, top, PRICES).tolist()]


def _least_waste(value: FloatArray, many: FloatArray, sums: FloatArray, price: float) -> float:
    """g(nu): `many` requests and `sums` of their outputs before each distinct value."""
    least = np.zeros(len(value) + 1)
    for i in range(1, len(value) + 1):
        least[i] = price + float(np.min(least[:i] + value[i - 1] * (many[i] - many[:i]) - (sums[i] - sums[:i])))
    return float(least[-1])


__all__ = [
    "CLOSED", "Cover", "cover_of", "decode_floor", "prefill_cover_s", "recheck_staged", "stage_count", "stage_count_value", "stage_cover",
    "stage_cover_value", "unservable",
]  # fmt: skip
