"""Requests of a trace counted by epoch and size bucket.

Epochs of `epoch_s` seconds begin at the first arrival; an arrival at the very end of the last whole epoch belongs to it. What remains after the
last whole epoch is **kept if at least half of an epoch is covered**, at the rate of the part that is covered, and left out otherwise:
its few requests would be a noisy epoch. Both cases are stated. The duration is last − first arrival, or what the user said if that is longer
(the trace then ends in silence).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headroom.instances.errors import InputError
from headroom.instances.gpu_selection_epochs import MOST_NUMBERS
from headroom.instances.request_traces import Span, batches
from headroom.instances.trace_formats import PARSERS
from headroom.instances.workload import Workload

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
LEAST_COVERED = 0.5


@dataclass(frozen=True)
class EpochCounts:
    """`requests` [T][B] in each epoch and bucket of the workload; `covered_s` [T] seconds of each that the trace covers.

    `left_out_s` and `left_out_requests` [B] are what lies after the last epoch.
    """

    epoch_s: float
    requests: IntArray
    covered_s: FloatArray
    left_out_s: float
    left_out_requests: IntArray

    @property
    def rate_per_s(self) -> FloatArray:
        """Rates [T][B] in requests/s."""
        rates: FloatArray = self.requests / self.covered_s[:, None]
        return rates

    def notices(self) -> list[str]:
        """What was done about a last epoch that the trace does not cover."""
        epochs, covered = len(self.covered_s), float(self.covered_s[-1])
        if self.left_out_s > 0:
            requests = int(self.left_out_requests.sum())
            what = f"the last {self.left_out_s:.6g} s with {requests} requests, less than half an epoch, are left out"
            return [f"{epochs} epochs of {self.epoch_s:g} s; {what}"]
        if covered < self.epoch_s:
            return [f"{epochs} epochs of {self.epoch_s:g} s; the last is covered for {covered:.6g} s, and its rates are those of that part"]
        return []


def count_epochs(path: Path, span: Span, workload: Workload, epoch_s: float, duration_s: float | None = None) -> EpochCounts:
    """Count the requests of a trace, in one more pass, into the buckets of the workload that was counted from it with that span.

    Memory grows with epochs x buckets (at most MOST_NUMBERS), not with requests. Raises `InputError`: for a trace shorter than half an epoch,
    a `duration_s` shorter than the trace, too many epochs, or a file that has changed since.
    """
    if not (math.isfinite(epoch_s) and 0 < epoch_s <= 1e9):
        raise InputError(f"epoch_s must be a positive number of seconds of at most 1e9, got {epoch_s:g}")
    try:
        parser = PARSERS[span.format]()
        span_s = (span.last - span.first) / parser.ticks_per_s
        if duration_s is not None and duration_s < span_s:
            raise InputError(f"duration_s must be at least the {span_s:.9g} s from first to last arrival when epochs are counted, got {duration_s:g}")
        covered_s, rest_s = _epochs(span_s if duration_s is None else duration_s, epoch_s, len(workload.buckets))
        # Whole ticks are divided exactly, so that an arrival on the edge of an epoch is never put before it.
        epoch_ticks = epoch_s * parser.ticks_per_s
        epoch_ticks = round(epoch_ticks) if abs(epoch_ticks - round(epoch_ticks)) < 1e-9 * epoch_ticks else epoch_ticks
        # One more row for what is left out.
        counts = np.zeros((len(covered_s) + 1, len(workload.buckets)), dtype=np.int64)
        buckets = _Buckets(workload)
        for batch in batches(path, parser):
            since = batch.ticks - span.first
            if bool((since < 0).any()) or bool((since > span.last - span.first).any()):
                raise InputError("has changed while it was read")
            epoch = since // epoch_ticks
            if rest_s == 0:  # the very end belongs to the last epoch
                epoch = np.minimum(epoch, len(covered_s) - 1)
            row = np.minimum(epoch, len(covered_s)).astype(np.int64)
            column = buckets.of(np.maximum(batch.prompt_tokens, 1), np.maximum(batch.output_tokens, 1))
            cells, found = np.unique(row * len(workload.buckets) + column, return_counts=True)
            counts.reshape(-1)[cells] += found
        if counts.sum(axis=0).tolist() != [bucket.requests for bucket in workload.buckets]:
            raise InputError("has changed while it was read")
    except InputError as error:
        raise error.within(str(path)) from None
    return EpochCounts(epoch_s, counts[:-1], covered_s, rest_s, counts[-1])


def _epochs(duration_s: float, epoch_s: float, buckets: int) -> tuple[FloatArray, float]:
    """Seconds that the trace covers of each epoch [T], and the seconds after the last epoch."""
    if duration_s / epoch_s * buckets > MOST_NUMBERS:
        least = duration_s * buckets / MOST_NUMBERS
        raise InputError(f"epoch_s must be at least {least:.3g} so that epochs x buckets are at most {MOST_NUMBERS}, got {epoch_s:g}")
    # What division and product round away is no epoch.
    whole = math.floor(duration_s / epoch_s + 1e-9)
    rest_s = duration_s - whole * epoch_s
    rest_s = 0.0 if rest_s < 1e-9 * epoch_s else rest_s
    if rest_s >= LEAST_COVERED * epoch_s:
        return np.append(np.full(whole, epoch_s), rest_s), 0.0
    if whole == 0:
        raise InputError(f"epoch_s must be at most twice the {duration_s:.6g} s that the trace lasts, got {epoch_s:g}")
    return np.full(whole, epoch_s), rest_s


class _Buckets:
    """Which bucket of a workload a request lies in."""

    def __init__(self, workload: Workload) -> None:
        # The buckets are cells of one grid, of which those without requests are absent: the lower ends tell rows and columns apart.
        self._least = [np.array(sorted({least for least, _ in ranges})) for ranges in zip(*self._ranges(workload), strict=True)]
        self._most = np.array([[prompt[1], output[1]] for prompt, output in self._ranges(workload)])
        self._cell = np.full([len(least) for least in self._least], -1, dtype=np.int64)
        for b, (prompt, output) in enumerate(self._ranges(workload)):
            self._cell[np.searchsorted(self._least[0], prompt[0]), np.searchsorted(self._least[1], output[0])] = b

    @staticmethod
    def _ranges(workload: Workload) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        return [(bucket.prompt_tokens, bucket.output_tokens) for bucket in workload.buckets]

    def of(self, prompt_tokens: IntArray, output_tokens: IntArray) -> IntArray:
        """Buckets [N] of requests [N]. Raises `InputError` for one that lies in none."""
        sizes = (prompt_tokens, output_tokens)
        rows, columns = (np.searchsorted(least, tokens, side="right") - 1 for least, tokens in zip(self._least, sizes, strict=True))
        found: IntArray = self._cell[rows, columns]
        outside = (np.minimum(rows, columns) < 0) | (found < 0) | (np.stack(sizes, axis=1) > self._most[found]).any(axis=1)
        if outside.any():
            raise InputError("has changed while it was read")
        return found
