"""A performance model made from a table of measured prompt and token times, such as splitwise-sim's perf_model.csv (Splitwise, ISCA 2024).

The table varies one factor at a time around a base point (512 prompt tokens, batch 1, 128 output tokens): prompt time over prompt size
and over batch size, token time over prompt, batch and output size. Repeats are reduced to their median. With P and D the measured prompt
and token times, p₀, b₀, o₀ the base point, the separable model is

    prompt_time(p, b)    = P(p) · P(b)/P₀
    token_time(p, b, o)  = D(b) · D(p)/D₀ · D(o)/D₀

Each series is made monotone by a running maximum and is linear between measured points, constant below the first and undefined above the
last (nothing is extrapolated). P₀ and D₀ are the raw medians, so that at every trusted measured point the model is at least the median:
never optimistic. Small dips (noise) are flattened by the running maximum and counted; a batch size whose median prompt or token time lies
more than `NOISE_TOLERANCE` below that of a smaller batch did not do the work it claims (preemption, an aborted run), so it and every larger
batch are not trusted at all.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from statistics import median

import numpy as np

from headroom.instances.errors import InputError, shown
from headroom.instances.files import read_bytes

TEXT_COLUMNS = ("model", "hardware")
SIZE_COLUMNS = ("prompt_size", "batch_size", "token_size", "tensor_parallel")
TIME_COLUMNS = ("prompt_time", "token_time")
COLUMNS = (*TEXT_COLUMNS, *SIZE_COLUMNS, *TIME_COLUMNS)
MAX_TABLE_BYTES = 2**27
NOISE_TOLERANCE = 0.02
"""A batch size measured faster than a smaller one by more than this share is not trusted."""

Point = tuple[int, int, int]
"""(prompt tokens, batch, output tokens) of one measured configuration."""


@dataclass(frozen=True)
class Series:
    """Times [s] over one factor, monotone and piecewise linear."""

    sizes: tuple[int, ...]
    times_s: tuple[float, ...]

    def at(self, size: float) -> float:
        """Time at `size`; below the first measured size, the time there. Raises ValueError above the last: nothing is extrapolated."""
        if size > self.sizes[-1]:
            raise ValueError(f"size {size} lies above the largest measured size {self.sizes[-1]}")
        return float(np.interp(size, self.sizes, self.times_s))


@dataclass(frozen=True)
class Replica:
    """The measured behaviour of one model on one kind of GPU at one tensor parallelism (see the module)."""

    model: str
    hardware: str
    tensor_parallel: int
    base: Point
    configurations: int
    base_prompt_s: float
    base_token_s: float
    prompt_by_prompt: Series
    prompt_by_batch: Series
    token_by_prompt: Series
    token_by_batch: Series
    token_by_output: Series
    distrusted: tuple[str, ...]
    largest_dip: tuple[float, str] | None
    dips: int
    off_axis: int

    @property
    def label(self) -> str:
        """For messages: `llama2-70b on a100-80gb TP 2`."""
        return f"{self.model} on {self.hardware} TP {self.tensor_parallel}"

    @property
    def max_prompt_tokens(self) -> int:
        """The longest measured prompt."""
        return min(self.prompt_by_prompt.sizes[-1], self.token_by_prompt.sizes[-1])

    @property
    def max_output_tokens(self) -> int:
        """The longest measured output."""
        return self.token_by_output.sizes[-1]

    @property
    def batches(self) -> tuple[int, ...]:
        """Measured batch sizes that are trusted."""
        return self.token_by_batch.sizes

    def prompt_time_s(self, prompt_tokens: float, batch: float) -> float:
        """Seconds to prefill `batch` prompts of `prompt_tokens` together."""
        return self.prompt_by_prompt.at(prompt_tokens) * self.prompt_by_batch.at(batch) / self.base_prompt_s

    def token_time_s(self, prompt_tokens: float, batch: float, output_tokens: float) -> float:
        """Seconds of one decode step (one token for each of `batch` requests)."""
        shape = self.token_by_prompt.at(prompt_tokens) / self.base_token_s * self.token_by_output.at(output_tokens) / self.base_token_s
        return self.token_by_batch.at(batch) * shape


@dataclass(frozen=True)
class Limits:
    """Latency limits every request must meet: time to first token and time per output token, in seconds."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True)
class RequestSizes:
    """Sizes in one bucket: means (the work) and maxima (what limits are checked at), in tokens."""

    mean_prompt: float
    mean_output: float
    max_prompt: int
    max_output: int


@dataclass(frozen=True)
class OperatingPoint:
    """How one replica serves one bucket: batch sizes, and seconds of the replica's time a request takes in each phase.

    None where the phase cannot be served. `prefill_s` makes the first token, `decode_s` the others.
    """

    prefill_batch: int | None
    prefill_s: float | None
    decode_batch: int | None
    decode_s: float | None

    @property
    def throughput_per_s(self) -> float | None:
        """Requests/s of a replica that does both phases in turn; None if it cannot do one of them."""
        return None if self.prefill_s is None or self.decode_s is None else 1.0 / (self.prefill_s + self.decode_s)


def kv_capacity_tokens(gpu_memory_bytes: float, gpus: int, weights_bytes: float, kv_bytes_per_token: float, usable_share: float) -> int:
    """Tokens of KV cache that fit beside the weights: ⌊(usable_share · memory · gpus − weights)/KV bytes a token⌋; ≤ 0: the weights do not fit.

    Activations and fragmentation are what `usable_share` leaves out. Exact in the decimal figures given.
    """
    memory = Fraction(str(usable_share)) * Fraction(str(gpu_memory_bytes)) * gpus
    return math.floor((memory - Fraction(str(weights_bytes))) / Fraction(str(kv_bytes_per_token)))


def operating_point(replica: Replica, kv_tokens: int, sizes: RequestSizes, limits: Limits) -> OperatingPoint:
    """The batches a replica runs for a bucket, and the time a request then takes.

    Limits hold at the largest sizes, so every request of the bucket meets them; times are taken at the mean sizes, so the work is conserved.
    Decode: the largest trusted measured batch whose token time is within TPOT, cut to what the KV cache holds (any whole number ≥ 1, times
    between measured batches interpolated). Prefill: of the trusted measured batches whose prompt time is within TTFT and whose prompts fit
    the KV cache, the one with the highest rate (the smallest such on a tie).
    """
    if sizes.max_prompt > replica.max_prompt_tokens or sizes.max_output > replica.max_output_tokens:
        return OperatingPoint(None, None, None, None)
    prefill = [
        (replica.prompt_time_s(sizes.mean_prompt, batch) / batch, batch)
        for batch in replica.batches
        if batch * sizes.max_prompt <= kv_tokens and replica.prompt_time_s(sizes.max_prompt, batch) <= limits.ttft_s
    ]
    prefill_s, prefill_batch = min(prefill, default=(None, None))
    within_tpot = [batch for batch in replica.batches if replica.token_time_s(sizes.max_prompt, batch, sizes.max_output) <= limits.tpot_s]
    batch = min(max(within_tpot, default=0), kv_tokens // (sizes.max_prompt + sizes.max_output))
    if batch < 1:
        return OperatingPoint(prefill_batch, prefill_s, None, None)
    token_s = replica.token_time_s(sizes.mean_prompt, batch, sizes.mean_output)
    return OperatingPoint(prefill_batch, prefill_s, batch, (sizes.mean_output - 1.0) * token_s / batch)


def read_performance_table(path: Path | str) -> tuple[Replica, ...]:
    """Read a table with the columns model, hardware, prompt_size, batch_size, token_size, prompt_time [ms], token_time [ms], tensor_parallel.

    One `Replica` for every (model, hardware, tensor_parallel), in the table's order; other columns are ignored. Raises `InputError` with
    file, line, column, value and what was expected.
    """
    repeats: dict[tuple[str, str, int], dict[Point, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for key, point, times in _rows(Path(path)):
        repeats[key][point].append(times)
    if not repeats:
        raise InputError("line 2: the file ends after the header; expected measured rows", str(path))
    replicas = []
    for (model, hardware, tensor_parallel), points in repeats.items():
        medians = {point: (median(t[0] for t in times), median(t[1] for t in times)) for point, times in points.items()}
        try:
            replicas.append(_fit(model, hardware, tensor_parallel, medians))
        except InputError as error:
            raise error.within(str(path)) from None
    return tuple(replicas)


def _rows(path: Path) -> Iterable[tuple[tuple[str, str, int], Point, tuple[float, float]]]:
    raw = read_bytes(path, MAX_TABLE_BYTES)
    if not raw.strip():
        raise InputError(f"is empty; expected a header with the columns {','.join(COLUMNS)}", str(path))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start} is not UTF-8; expected a CSV table", str(path)) from None
    reader = csv.reader(io.StringIO(text, newline=""))
    header: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                missing = [name for name in COLUMNS if header.count(name) != 1]
                if missing:
                    found = shown(",".join(header), 100)
                    expected = f"columns must include {','.join(COLUMNS)}"
                    raise InputError(f"line {reader.line_num}: {expected}; {missing[0]} is not there once, found {found}", str(path))
                continue
            if len(cells) != len(header):
                raise InputError(f"line {reader.line_num} has {len(cells)} fields, expected {len(header)}: {shown(','.join(cells))}", str(path))
            try:
                yield _row(dict(zip(header, cells, strict=True)))
            except InputError as error:
                raise InputError(f"line {reader.line_num}: {error.message}", str(path)) from None
    except csv.Error as error:
        raise InputError(f"line {reader.line_num} is not CSV: {error}", str(path)) from None


def _row(cells: dict[str, str]) -> tuple[tuple[str, str, int], Point, tuple[float, float]]:
    names = [cells[column].strip() for column in TEXT_COLUMNS]
    for column, name in zip(TEXT_COLUMNS, names, strict=True):
        if not name:
            raise InputError(f"{column} must be a name, got ''")
    sizes = []
    for column in SIZE_COLUMNS:
        if not re.fullmatch(r"\s*\d{1,9}\s*", cells[column], re.ASCII) or int(cells[column]) < 1:
            raise InputError(f"{column} must be a whole number of at least 1, got {shown(cells[column])}")
        sizes.append(int(cells[column]))
    times = []
    for column in TIME_COLUMNS:
        try:
            time_ms = float(cells[column])
        except ValueError:
            time_ms = math.nan
        if not (math.isfinite(time_ms) and 1e-6 <= time_ms <= 1e12):
            raise InputError(f"{column} must be a positive number of milliseconds, got {shown(cells[column])}")
        times.append(time_ms / 1e3)
    prompt, batch, output, tensor_parallel = sizes
    return (names[0], names[1], tensor_parallel), (prompt, batch, output), (times[0], times[1])


def _base_point(points: Iterable[Point]) -> Point:
    """The point from which most others differ in one factor at most; the smallest batch, prompt, output on a tie."""
    points = list(points)
    # Points on the three axes through (p, b, o) share two coordinates with it.
    pairs = Counter(pair for p, b, o in points for pair in ((0, b, o), (1, p, o), (2, p, b)))

    def rank(point: Point) -> tuple[int, int, int, int]:
        p, b, o = point
        return (-(pairs[(0, b, o)] + pairs[(1, p, o)] + pairs[(2, p, b)]), b, p, o)

    return min(points, key=rank)


def _fit(model: str, hardware: str, tensor_parallel: int, medians: dict[Point, tuple[float, float]]) -> Replica:
    base = p0, b0, o0 = _base_point(medians)
    base_prompt_s, base_token_s = medians[base]
    by_prompt = sorted((p, times) for (p, b, o), times in medians.items() if (b, o) == (b0, o0))
    by_batch = sorted((b, times) for (p, b, o), times in medians.items() if (p, o) == (p0, o0))
    by_output = sorted((o, times) for (p, b, o), times in medians.items() if (p, b) == (p0, b0))
    trusted, distrusted = _trusted(by_batch)
    if b0 not in [batch for batch, _ in trusted]:
        raise InputError(f"{model} on {hardware} TP {tensor_parallel}: the base point {base} of the table is not trusted: {distrusted[0]}")
    dips: list[tuple[float, str]] = []

    def series(axis: Sequence[tuple[int, tuple[float, float]]], kind: int, factor: str) -> Series:
        times = [row[1][kind] for row in axis]
        monotone = list(accumulate(times, max))
        for (size, _), raw, raised in zip(axis, times, monotone, strict=True):
            if raw < raised:
                dips.append((1 - raw / raised, f"{TIME_COLUMNS[kind]} at {factor} {size} of {model} on {hardware} TP {tensor_parallel}"))
        return Series(tuple(row[0] for row in axis), tuple(monotone))

    prompt_by_prompt = series(by_prompt, 0, "prompt_size")
    prompt_by_batch = series(trusted, 0, "batch_size")
    token_by_prompt = series(by_prompt, 1, "prompt_size")
    token_by_batch = series(trusted, 1, "batch_size")
    token_by_output = series(by_output, 1, "token_size")
    return Replica(
        model=model,
        hardware=hardware,
        tensor_parallel=tensor_parallel,
        base=base,
        configurations=len(medians),
        base_prompt_s=base_prompt_s,
        base_token_s=base_token_s,
        prompt_by_prompt=prompt_by_prompt,
        prompt_by_batch=prompt_by_batch,
        token_by_prompt=token_by_prompt,
        token_by_batch=token_by_batch,
        token_by_output=token_by_output,
        distrusted=distrusted,
        largest_dip=max(dips, default=None),
        dips=len(dips),
        # The base point stands on all three axes.
        off_axis=len(medians) - (len(by_prompt) + len(by_batch) + len(by_output) - 2),
    )


def _trusted(by_batch: list[tuple[int, tuple[float, float]]]) -> tuple[list[tuple[int, tuple[float, float]]], tuple[str, ...]]:
    """The batch series up to the first batch that is faster than a smaller one beyond noise, and what is wrong from there on."""
    for position, (batch, times) in enumerate(by_batch):
        for kind, name in enumerate(TIME_COLUMNS):
            slowest_s, at_batch = max(((row[1][kind], row[0]) for row in by_batch[:position]), default=(0.0, 0))
            if times[kind] < slowest_s * (1 - NOISE_TOLERANCE):
                reason = f"batch_size {batch} has {name} {times[kind] * 1e3:.4g} ms, below {slowest_s * 1e3:.4g} ms at batch_size {at_batch}"
                also = [f"batch_size {row[0]} is larger than a batch that is not trusted" for row in by_batch[position + 1 :]]
                return by_batch[:position], (reason, *also)
    return by_batch, ()


def model_with_most_measurements(replicas: Sequence[Replica]) -> str:
    """The model that strictly most configurations were measured for. Raises `InputError` on a tie, listing the models."""
    counts: Counter[str] = Counter()
    for replica in replicas:
        counts[replica.model] += replica.configurations
    (first, most), *others = counts.most_common()
    if others and others[0][1] == most:
        raise InputError(f"the table has measurements of {', '.join(sorted(counts))}, equally many of the first; expected --model to name one")
    return first
