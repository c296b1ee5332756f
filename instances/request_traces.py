"""Readers of request traces: the Azure LLM inference CSV and Mooncake's JSON lines. Both stream, so a trace may be larger than memory.

- **azure-llm** (Azure Public Dataset, 2023 and 2024): columns TIMESTAMP, ContextTokens, GeneratedTokens in any order, others are ignored.
  TIMESTAMP is ISO 8601 with up to nine digits of a second, with a time zone in every row or in none.
- **mooncake** (FAST'25 traces): one JSON object a line with `timestamp` [ms], `input_length`, `output_length`; `hash_ids` and others are
  ignored, so prompts count in full even where a prefix cache would hold part of them.

The rules of counting: the duration is last minus first arrival, whatever the order of the rows, and the rate is requests/duration (n
requests span n − 1 gaps, so this overstates the rate by 1/n and never understates it). A request with 0 prompt or 0 output tokens (Azure
writes such rows) counts as having 1, since it was prefilled all the same, and the notices say how many there were. Negative tokens are
errors. Files whose name ends in .gz are unpacked on the way.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headroom.instances.errors import InputError, shown
from headroom.instances.files import unreadable
from headroom.instances.trace_formats import PARSERS, Batch, TraceParser
from headroom.instances.workload import BucketCounter, TraceSource, Workload, bucket_edges

BLOCK_BYTES = 2**23
"""Bytes parsed at a time."""
MAX_LINE_BYTES = 2**26


def read_azure_llm(path: Path | str, **options: Any) -> tuple[Workload, list[str]]:
    """Count an Azure LLM inference trace (CSV) into a workload; options, result and errors as `read_trace`."""
    return read_trace(path, "azure-llm", **options)


def read_mooncake(path: Path | str, **options: Any) -> tuple[Workload, list[str]]:
    """Count a Mooncake trace (JSON lines) into a workload; options, result and errors as `read_trace`."""
    return read_trace(path, "mooncake", **options)


def read_trace(
    path: Path | str,
    trace_format: str | None = None,
    *,
    prompt_edges: str | Sequence[int] | None = None,
    output_edges: str | Sequence[int] | None = None,
    split_prompt: Sequence[int] = (),
    split_output: Sequence[int] = (),
    total_rate_per_s: float | None = None,
    duration_s: float | None = None,
) -> tuple[Workload, list[str]]:
    """Count the requests of a trace, or take a workload document as it is: the workload and notices.

    `trace_format` is "azure-llm", "mooncake" or "workload"; None looks at the content. Edges as `bucket_edges`; what lies above the last one
    goes into one more bucket. `split_prompt` and `split_output` are further edges (limits that no bucket may straddle). `total_rate_per_s`
    scales the whole workload; `duration_s` replaces last − first arrival. Edges mean nothing for a workload document and are refused there.
    One pass, memory independent of the number of requests. Raises `InputError` with file, line, field, value and what was expected.
    """
    workload, notices, _ = read_trace_and_span(
        Path(path), trace_format, prompt_edges=prompt_edges, output_edges=output_edges, split_prompt=split_prompt, split_output=split_output,
        total_rate_per_s=total_rate_per_s, duration_s=duration_s,
    )  # fmt: skip
    return workload, notices


@dataclass(frozen=True)
class Span:
    """First and last arrival of a trace in the ticks of its format."""

    format: str
    first: float
    last: float


def read_trace_and_span(
    path: Path,
    trace_format: str | None = None,
    *,
    prompt_edges: str | Sequence[int] | None = None,
    output_edges: str | Sequence[int] | None = None,
    split_prompt: Sequence[int] = (),
    split_output: Sequence[int] = (),
    total_rate_per_s: float | None = None,
    duration_s: float | None = None,
) -> tuple[Workload, list[str], Span | None]:
    """As `read_trace`, with the time the arrivals span; None for a workload document, which has no times."""
    if total_rate_per_s is not None and duration_s is not None:
        raise InputError("total_rate_per_s and duration_s cannot both be given: each of them sets the rate")
    for option, value in (("total_rate_per_s", total_rate_per_s), ("duration_s", duration_s)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{option} must be positive, got {value}")
    kind = trace_format or sniff_format(path)
    if kind == "workload":
        if prompt_edges is not None or output_edges is not None:
            raise InputError("prompt_edges and output_edges cannot be applied to a workload document: its buckets are counted already", str(path))
        workload = Workload.load(path)
        if duration_s is not None:
            total_rate_per_s = workload.requests / duration_s
        return (workload.with_rate(total_rate_per_s) if total_rate_per_s is not None else workload), [], None
    if kind not in PARSERS:
        raise InputError(f"trace_format must be one of {', '.join([*PARSERS, 'workload'])}, got {shown(kind)}")
    prompt = sorted({*bucket_edges(prompt_edges, "prompt"), *split_prompt})
    output = sorted({*bucket_edges(output_edges, "output"), *split_output})
    return _count(path, PARSERS[kind](), BucketCounter(prompt, output), total_rate_per_s, duration_s)


def _count(
    path: Path, parser: TraceParser, counter: BucketCounter, total_rate_per_s: float | None, duration_s: float | None
) -> tuple[Workload, list[str], Span]:
    """Feed the whole file to the counter and set the rates."""
    first, last = math.inf, -math.inf
    zeros = [0, 0]
    try:
        for batch in batches(path, parser):
            first, last = min(first, batch.ticks.min().item()), max(last, batch.ticks.max().item())
            tokens = (batch.prompt_tokens, batch.output_tokens)
            zeros = [zeros[axis] + int(np.count_nonzero(tokens[axis] == 0)) for axis in (0, 1)]
            counter.add(np.maximum(tokens[0], 1), np.maximum(tokens[1], 1))
        if not counter.requests:
            raise parser.nothing_found()
        span_s = (last - first) / parser.ticks_per_s
        if duration_s is None and span_s > 0:
            duration_s = span_s
        if total_rate_per_s is None:
            if duration_s is None:
                what = "one request has" if counter.requests == 1 else f"{counter.requests} requests at one moment have"
                raise InputError(f"{parser.fields[0]}: {what} no duration, so no rate; expected --total-rate-per-s or --duration-s")
            total_rate_per_s = counter.requests / duration_s
        workload = Workload(
            name=path.name,
            source=TraceSource(format=parser.name, file=path.name, sha256=sha256_of(path)),
            duration_s=duration_s,
            requests=counter.requests,
            rate_per_s=total_rate_per_s,
            zero_prompt_requests=zeros[0],
            zero_output_requests=zeros[1],
            buckets=counter.buckets(total_rate_per_s),
        )
    except InputError as error:
        raise error.within(str(path)) from None
    return workload, _notices(path, parser, counter, zeros), Span(parser.name, first, last)


def batches(path: Path, parser: TraceParser) -> Iterator[Batch]:
    """The requests of a trace, block after block. Raises `InputError`."""
    for first_line, block in _blocks_of_lines(path):
        batch = parser.parse(block, first_line)
        if batch is not None:
            yield batch


def _notices(path: Path, parser: TraceParser, counter: BucketCounter, zeros: Sequence[int]) -> list[str]:
    notices = []
    for axis, kind in enumerate(("prompt", "output")):
        if zeros[axis]:
            notices.append(
                f"{path.name}: {zeros[axis]} of {counter.requests} requests have 0 {kind} tokens ({parser.fields[1 + axis]}); counted as 1"
            )
        largest, edge = counter.largest()[axis], int(counter.edges[axis][-1])
        if largest > edge:
            notices.append(f"{path.name}: requests of up to {largest} {kind} tokens lie above the last edge {edge}; one more bucket holds them")
    return notices


def _blocks_of_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines of about `BLOCK_BYTES`, each with the number of its first line."""
    number, rest = 1, b""
    try:
        with open_trace(path) as file:
            while chunk := file.read(BLOCK_BYTES):
                end = chunk.rfind(b"\n") + 1
                if end:
                    block, rest = rest + chunk[:end], chunk[end:]
                    yield number, block
                    number += block.count(b"\n")
                else:
                    rest += chunk
                if len(rest) > MAX_LINE_BYTES:
                    raise InputError(f"line {number} is longer than {MAX_LINE_BYTES} bytes; expected one request a line", str(path))
            if rest:
                yield number, rest
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"not a readable gzip file: {error}", str(path)) from None
    except OSError as error:
        raise unreadable(path, error) from None


def open_trace(path: Path) -> io.BufferedIOBase:
    """The bytes of a trace, unpacked if the name ends in .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of the file as it lies on disk. Raises `InputError` if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None


def sniff_format(path: Path) -> str:
    """Which format a trace file has: JSON with one object a line is mooncake, other JSON a workload document, all else azure-llm."""
    try:
        with open_trace(path) as file:
            head = file.read(2**16).removeprefix(b"\xef\xbb\xbf").lstrip()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot be read: {getattr(error, 'strerror', None) or error}", str(path)) from None
    if not head.startswith(b"{"):
        return "azure-llm"
    return "workload" if b'"schema"' in head or b'"buckets"' in head or head.split(b"\n", 1)[0].strip() == b"{" else "mooncake"
