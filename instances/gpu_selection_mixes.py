"""Bucket mixes: which request sizes arrive, calibrated to the quantiles that were published for production traces.

Of each trace three quantiles of prompt and of output length are known (p50, p90, p99; numbers in `MIXES`, with their sources). Between and
around them a length is taken as piecewise lognormal: log Q(u) is linear in the normal score of u between p50 and p90 and between p90 and
p99. **What is not published is filled in so**: below p50 the slope of p50-p90 goes on (at least one token), above p99 that of p90-p99, up to
the length that one request in 10,000 exceeds or the context limit if that is less; those requests count as that long.

Buckets end exactly at the published quantiles, so the mix meets them exactly, whatever the seed; further edges halve the likeliest bucket.
How prompt and output length hang together is published for none of them. The joint distribution is a Gaussian copula with Spearman's rank
correlation: 0.07 for the Azure chat trace (our measurement on the published trace), 0 (independent) for the others: an assumption. A seed
moves the joint shares by a lognormal factor (sigma 0.3) and then restores both marginals by iterative proportional fitting.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
PUBLISHED = (0.5, 0.9, 0.99)
LAST = 0.9999
"""A length that fewer requests exceed is not modelled."""
JITTER = 0.3
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Lengths:
    """Published p50, p90, p99 of a length in tokens, and the most tokens there can be (None: no limit)."""

    p50: int
    p90: int
    p99: int
    limit: int | None = None

    def quantile(self, u: float) -> float:
        """The length in tokens that a share u in (0, 1) of requests stays within; at least 1, at most `limit`."""
        score = _NORMAL.inv_cdf(u)
        scores = [_NORMAL.inv_cdf(p) for p in PUBLISHED]
        logs = [math.log(size) for size in (self.p50, self.p90, self.p99)]
        k = 0 if score <= scores[1] else 1
        slope = (logs[k + 1] - logs[k]) / (scores[k + 1] - scores[k])
        # Clamped before exp: a tail may be steep.
        tokens = math.exp(min(logs[k] + slope * (score - scores[k]), 40.0))
        return min(max(tokens, 1.0), math.inf if self.limit is None else float(self.limit))


@dataclass(frozen=True)
class Mix:
    """Sizes of the requests of one service. `rank_correlation` is Spearman's between prompt and output tokens."""

    prompt: Lengths
    output: Lengths
    rank_correlation: float
    source: str


MIXES: dict[str, Mix] = {
    "azure-code": Mix(Lengths(1469, 5188, 7436), Lengths(13, 55, 252), 0.0, "Azure LLM trace 2023, code (Splitwise, ISCA 2024, arXiv 2311.18677)"),
    "azure-chat": Mix(
        Lengths(1020, 2735, 4142), Lengths(129, 424, 601), 0.07, "Azure LLM trace 2023, conversation (Splitwise, ISCA 2024, arXiv 2311.18677)"
    ),
    "mooncake": Mix(
        Lengths(6909, 27367, 85400, 131_072), Lengths(350, 597, 1119), 0.0, "Mooncake conversation trace (FAST 2025, arXiv 2407.00079); 128k context"
    ),
    "servegen-m-large": Mix(Lengths(654, 2357, 5342), Lengths(68, 458, 925), 0.0, "ServeGen, m-large (arXiv 2505.09999)"),
    "servegen-r1": Mix(
        Lengths(266, 3300, 25772, 131_072),
        Lengths(808, 4170, 13541, 32_768),
        0.0,
        "ServeGen, deepseek-r1 (arXiv 2505.09999); 128k context, 32k output",
    ),
}


@dataclass(frozen=True)
class Axis:
    """Buckets of one length: `most` [K] inclusive upper ends in tokens, `share` [K] of requests, `mean` [K] tokens."""

    most: tuple[int, ...]
    share: FloatArray
    mean: FloatArray

    def range(self, k: int) -> list[int]:
        """[least, most] of bucket k in tokens, both inclusive."""
        return [self.most[k - 1] + 1 if k else 1, self.most[k]]


def buckets(lengths: Lengths, count: int) -> Axis:
    """`count` buckets (at least 4) of one length; fewer where two edges would be the same number of tokens. O(count²)."""
    edges = [0.0, *PUBLISHED, 1.0]
    tokens = {u: round(lengths.quantile(u if u < 1 else LAST)) for u in edges[1:]} | {0.0: 0}
    blocked: set[float] = set()
    while len(edges) <= count:
        widths = [(hi - lo, -k) for k, (lo, hi) in enumerate(itertools.pairwise(edges)) if lo not in blocked]
        if not widths:
            break
        k = -max(widths)[1]
        middle = (edges[k] + edges[k + 1]) / 2
        edge = round(lengths.quantile(middle))
        if tokens[edges[k]] < edge < tokens[edges[k + 1]]:
            tokens[middle] = edge
            edges.insert(k + 1, middle)
        else:
            blocked.add(edges[k])
    means = []
    for lo, hi in itertools.pairwise(edges):
        inside = [lengths.quantile(lo + (hi - lo) * (step + 0.5) / 256) for step in range(256)]
        means.append(min(max(math.fsum(inside) / len(inside), tokens[lo] + 1.0), float(tokens[hi])))
    return Axis(tuple(tokens[u] for u in edges[1:]), np.diff(edges), np.array(means))


def joint_shares(prompt: Axis, output: Axis, rank_correlation: float, rng: np.random.Generator) -> FloatArray:
    """Share of requests [prompt bucket][output bucket]: Gaussian copula, jittered by the seed, with the marginals of the axes. Sums to 1."""
    shares = gaussian_copula(prompt.share, output.share, 2 * math.sin(math.pi * rank_correlation / 6))
    return fitted(shares * rng.lognormal(0.0, JITTER, shares.shape), prompt.share, output.share)


def gaussian_copula(rows: FloatArray, columns: FloatArray, correlation: float) -> FloatArray:
    """Probability of each cell when normal scores of the two lengths have this correlation in (-1, 1). Marginals [R], [C] -> [R][C]."""
    if correlation == 0:
        return np.outer(rows, columns)
    upper = [_NORMAL.inv_cdf(u) for u in np.cumsum(columns)[:-1].tolist()]
    spread = math.sqrt(1 - correlation**2)
    cells = np.empty((len(rows), len(columns)))
    start = 0.0
    for r, share in enumerate(rows.tolist()):
        # The midpoint rule in u; given the row's score z, the column's is normal with mean correlation * z.
        scores = [_NORMAL.inv_cdf(start + share * (step + 0.5) / 256) for step in range(256)]
        below = [math.fsum(_NORMAL.cdf((edge - correlation * z) / spread) for z in scores) / len(scores) for edge in upper]
        cells[r] = share * np.diff([0.0, *below, 1.0])
        start += share
    return fitted(np.maximum(cells, 1e-12), rows, columns)


def fitted(cells: FloatArray, rows: FloatArray, columns: FloatArray) -> FloatArray:
    """Iterative proportional fitting of positive cells to both marginals (Sinkhorn 1967, doi 10.2307/2314570), to 1e-13."""
    for _ in range(1000):
        cells = cells * (rows / cells.sum(axis=1))[:, None]
        cells = cells * (columns / cells.sum(axis=0))
        if np.abs(cells.sum(axis=1) - rows).max() < 1e-13:
            break
    return cells


def work_items(prompt: Axis, output: Axis, rate_per_s: FloatArray, phases: Sequence[str | None] = (None,)) -> list[dict[str, Any]]:
    """The work items of all buckets, prompt by prompt, once for each phase; rates [prompt][output] in requests/s."""
    items = []
    for phase in phases:
        for p in range(len(prompt.most)):
            for o in range(len(output.most)):
                name = f"p{prompt.most[p]}_o{output.most[o]}"
                item = {"name": name, "rate_per_s": float(rate_per_s[p, o]), "prompt_tokens": prompt.range(p), "output_tokens": output.range(o)}
                items.append(item if phase is None else item | {"name": f"{name}-{phase}", "phase": phase})
    return items
