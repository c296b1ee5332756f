"""A workload: how many requests of which sizes arrive, as counts over (prompt, output) buckets.

A bucket holds the requests with prompt and output tokens inside two inclusive ranges. What is kept of them is their number, the mean sizes
(the work they ask for) and the largest sizes seen (what latency and memory limits must hold for); the largest prompt and the largest
output of a bucket need not belong to the same request. A trace of any length thus becomes a document of a few kilobytes,
`headroom/workload/1`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, model_validator

from headroom.instances.base import Record, first_message, rule
from headroom.instances.errors import InputError, shown
from headroom.instances.files import read_json, to_json, write_text

WORKLOAD_SCHEMA = "headroom/workload/1"
MAX_TOKENS = 10**9
"""More tokens than this in one request is a broken file, not a long prompt."""

# The size buckets of Mélange's workloads (arXiv 2404.14527): 10 input by 6 output ranges.
NAMED_EDGES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "melange": ((25, 100, 250, 500, 1000, 2000, 4000, 8000, 16000, 32000), (25, 100, 250, 500, 1000, 2000)),
}
FIRST_PROMPT_EDGE = 128
FIRST_OUTPUT_EDGE = 32

Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
TokenSpan = Annotated[tuple[Tokens, Tokens], Field(strict=False)]
IntArray = npt.NDArray[np.int64]


class WorkloadBucket(Record):
    """Requests of similar size. The ranges are inclusive, in tokens; means and maxima are over the requests inside."""

    prompt_tokens: TokenSpan
    output_tokens: TokenSpan
    requests: Annotated[int, Field(ge=1)]
    rate_per_s: Annotated[float, Field(gt=0)]
    mean_prompt_tokens: Annotated[float, Field(ge=1)]
    mean_output_tokens: Annotated[float, Field(ge=1)]
    max_prompt_tokens: Tokens
    max_output_tokens: Tokens

    @model_validator(mode="after")
    def _sizes_lie_in_the_ranges(self) -> Self:
        for kind in ("prompt", "output"):
            least, most = getattr(self, f"{kind}_tokens")
            mean, largest = getattr(self, f"mean_{kind}_tokens"), getattr(self, f"max_{kind}_tokens")
            if not least <= mean <= largest * (1 + 1e-12) or not largest <= most:
                got = f"range [{least}, {most}], mean {mean:g}, maximum {largest}"
                raise rule(f"{kind}_tokens must have least ≤ mean ≤ maximum ≤ most, got {got}")
        return self

    @property
    def name(self) -> str:
        """`p1025-2048_o33-64`: the ranges of prompt and output tokens."""
        return "p{}-{}_o{}-{}".format(*self.prompt_tokens, *self.output_tokens)


class TraceSource(Record):
    """The file a workload was counted from."""

    format: Annotated[str, Field(min_length=1, max_length=100)]
    file: Annotated[str, Field(max_length=500)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Workload(Record):
    """Counts of requests over size buckets (see the module).

    `duration_s` is last minus first arrival, or what the user said; None when only a total rate was given. `rate_per_s` is the total over
    the buckets. `zero_prompt_requests` and `zero_output_requests` were counted as having one token.
    """

    name: Annotated[str, Field(max_length=500)]
    source: TraceSource | None = None
    duration_s: Annotated[float, Field(gt=0)] | None = None
    requests: Annotated[int, Field(ge=1)]
    rate_per_s: Annotated[float, Field(gt=0)]
    zero_prompt_requests: Annotated[int, Field(ge=0)] = 0
    zero_output_requests: Annotated[int, Field(ge=0)] = 0
    buckets: Annotated[tuple[WorkloadBucket, ...], Field(min_length=1, max_length=20_000, strict=False)]

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InputError(first_message(error)) from None

    @model_validator(mode="after")
    def _totals_agree(self) -> Self:
        counted = sum(bucket.requests for bucket in self.buckets)
        if counted != self.requests:
            raise rule(f"requests must be the sum over the buckets, {counted}, got {self.requests}")
        rate = math.fsum(bucket.rate_per_s for bucket in self.buckets)
        if abs(rate - self.rate_per_s) > 1e-6 * rate:
            raise rule(f"rate_per_s must be the sum over the buckets, {rate:.9g}, got {self.rate_per_s:.9g}")
        spans = np.array([[*bucket.prompt_tokens, *bucket.output_tokens] for bucket in self.buckets], dtype=np.int64)
        for k, (p_least, p_most, o_least, o_most) in enumerate(spans):
            earlier = spans[:k]
            meets = (earlier[:, 0] <= p_most) & (p_least <= earlier[:, 1]) & (earlier[:, 2] <= o_most) & (o_least <= earlier[:, 3])
            if meets.any():
                i = int(np.argmax(meets))
                raise rule(f"buckets[{k}] {self.buckets[k].name} must not overlap buckets[{i}] {self.buckets[i].name}")
        return self

    def with_rate(self, total_rate_per_s: float) -> Workload:
        """The same mix of sizes at another total rate [requests/s]."""
        factor = total_rate_per_s / self.rate_per_s
        buckets = tuple(bucket.model_copy(update={"rate_per_s": bucket.rate_per_s * factor}) for bucket in self.buckets)
        return Workload(**{field: getattr(self, field) for field in type(self).model_fields} | {"rate_per_s": total_rate_per_s, "buckets": buckets})

    def document(self) -> dict[str, Any]:
        """The workload as the JSON document `headroom/workload/1`."""
        return {"schema": WORKLOAD_SCHEMA, **self.model_dump(exclude_defaults=True)}

    def save(self, path: str | Path) -> None:
        """Write the document as JSON, whole or not at all. Raises `InputError`."""
        if Path(path).suffix == ".npz":
            raise InputError("a workload document is JSON; expected a name that ends in .json", str(path))
        write_text(path, to_json(self.document()))

    @classmethod
    def from_document(cls, document: Any) -> Workload:
        """Read what `document()` writes. Raises `InputError`."""
        if not isinstance(document, dict) or document.get("schema") != WORKLOAD_SCHEMA:
            got = document.get("schema") if isinstance(document, dict) else document
            raise InputError(f"schema must be {WORKLOAD_SCHEMA!r}, got {shown(got)}")
        return cls(**{key: value for key, value in document.items() if key != "schema"})

    @classmethod
    def load(cls, path: str | Path) -> Workload:
        """Read a workload document from a file. Raises `InputError` naming the file."""
        try:
            return cls.from_document(read_json(path))
        except InputError as error:
            raise error.within(str(path)) from None


def bucket_edges(edges: str | Sequence[int] | None, kind: Literal["prompt", "output"]) -> tuple[int, ...]:
    """Upper bucket edges in tokens: (0, e₁], (e₁, e₂], …

    None gives powers of two from 128 (prompt) or 32 (output); a name (`melange`) gives a published set; otherwise the numbers themselves, as
    a sequence or as text with commas. Raises `InputError` unless they are increasing whole numbers from 1 to 10⁹.
    """
    option = f"{kind}_edges"
    if edges is None:
        first = FIRST_PROMPT_EDGE if kind == "prompt" else FIRST_OUTPUT_EDGE
        powers = itertools.takewhile(lambda edge: edge < MAX_TOKENS, (first * 2**k for k in itertools.count()))
        return (*powers, MAX_TOKENS)
    if isinstance(edges, str):
        if edges.strip() in NAMED_EDGES:
            return NAMED_EDGES[edges.strip()][0 if kind == "prompt" else 1]
        try:
            edges = [int(part) for part in edges.split(",")]
        except ValueError:
            names = ", ".join(NAMED_EDGES)
            raise InputError(f"{option} must be whole numbers with commas between them, or one of the names {names}; got {shown(edges)}") from None
    numbers = tuple(edges)
    whole = all(isinstance(edge, int) and not isinstance(edge, bool) and 1 <= edge <= MAX_TOKENS for edge in numbers)
    if not numbers or not whole or any(a >= b for a, b in itertools.pairwise(numbers)):
        raise InputError(f"{option} must be increasing whole numbers from 1 to {MAX_TOKENS}, got {shown(list(numbers))}")
    return numbers


class BucketCounter:
    """Counts requests into buckets, a batch at a time, in memory that does not grow with their number."""

    def __init__(self, prompt_edges: Sequence[int], output_edges: Sequence[int]) -> None:
        self.edges = (np.array(prompt_edges, dtype=np.int64), np.array(output_edges, dtype=np.int64))
        # One more bucket on each side for what lies above the last edge.
        self._shape = (len(prompt_edges) + 1, len(output_edges) + 1)
        self._count = np.zeros(self._shape, dtype=np.int64)
        self._total = np.zeros((2, *self._shape), dtype=np.float64)
        self._largest = np.zeros((2, *self._shape), dtype=np.int64)

    def add(self, prompt_tokens: IntArray, output_tokens: IntArray) -> None:
        """Count requests; both arrays [N] hold tokens ≥ 1."""
        sizes = (prompt_tokens, output_tokens)
        rows, columns = (np.searchsorted(edges, tokens, side="left") for edges, tokens in zip(self.edges, sizes, strict=True))
        flat = rows * self._shape[1] + columns
        cells = self._count.size
        self._count += np.bincount(flat, minlength=cells).reshape(self._shape)
        for axis, tokens in enumerate(sizes):
            self._total[axis] += np.bincount(flat, weights=tokens, minlength=cells).reshape(self._shape)
            np.maximum.at(self._largest[axis].reshape(-1), flat, tokens)

    @property
    def requests(self) -> int:
        """Requests counted so far."""
        return int(self._count.sum())

    def largest(self) -> tuple[int, int]:
        """The longest prompt and the longest output counted so far, in tokens."""
        return int(self._largest[0].max()), int(self._largest[1].max())

    def buckets(self, total_rate_per_s: float) -> tuple[WorkloadBucket, ...]:
        """The buckets that hold requests, their rates in proportion to their counts."""
        requests = self.requests
        return tuple(self._bucket(int(row), int(column), total_rate_per_s / requests) for row, column in np.argwhere(self._count))

    def _bucket(self, row: int, column: int, rate_of_one_per_s: float) -> WorkloadBucket:
        count = int(self._count[row, column])
        return WorkloadBucket(
            prompt_tokens=self._range(0, row),
            output_tokens=self._range(1, column),
            requests=count,
            rate_per_s=count * rate_of_one_per_s,
            mean_prompt_tokens=float(self._total[0, row, column] / count),
            mean_output_tokens=float(self._total[1, row, column] / count),
            max_prompt_tokens=int(self._largest[0, row, column]),
            max_output_tokens=int(self._largest[1, row, column]),
        )

    def _range(self, axis: int, position: int) -> tuple[int, int]:
        edges = self.edges[axis]
        least = int(edges[position - 1]) + 1 if position else 1
        return least, int(edges[position]) if position < len(edges) else self.largest()[axis]
