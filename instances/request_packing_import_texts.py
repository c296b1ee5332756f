"""Request packing from the two text formats of the literature: bin packing (`bpp`) and identical parallel machines (`cmax`).

- **bpp**: the number of items n, the capacity, n weights. Or, as cutting-stock files have it: the number m of different weights, the capacity, then m
  lines of a weight and its demand, which become as many equal requests. A weight is a request's prompt, and no request makes output.
- **cmax**: machines and jobs, or jobs and machines, then the jobs' times, which become the requests' outputs on as many slots as there are machines.

Numbers are whole and stand apart by any white space; where lines end matters only for pairs of weight and demand. Files whose name ends in .gz are
unpacked on the way.
"""

from __future__ import annotations

import gzip
import re
import zlib
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.instances.errors import InputError, shown
from headroom.instances.files import unreadable
from headroom.instances.presets import real
from headroom.instances.request_packing import MOST_REQUESTS, MOST_TOKENS, RequestPacking, Requests
from headroom.instances.request_traces import open_trace, sha256_of

IntArray = npt.NDArray[np.int64]
MOST_BYTES = 2**27
MOST_SLOTS = 2**20
HEADERS = ("machines-jobs", "jobs-machines")
_ONLY_DIGITS = re.compile(rb"[\d\s]*")
_WHOLE_NUMBER = re.compile(rb"\d{1,18}")


@dataclass(frozen=True)
class FileNumbers:
    """All numbers of a file in order, how many stand in the lines up to each, and the file's lines."""

    value: list[int]
    up_to_line: list[int]

    def line(self, k: int) -> int:
        """The line, from 1 on, of number k."""
        return bisect_right(self.up_to_line, k) + 1

    @property
    def last_line(self) -> int:
        return self.line(len(self.value) - 1)

    def check(self, k: int, name: str, most: int) -> int:
        """Number k, from 1 to `most`. Raises `InputError` with its line and name."""
        if not 1 <= self.value[k] <= most:
            raise InputError(f"line {self.line(k)}: {name} must be a whole number from 1 to {most}, got {self.value[k]}")
        return self.value[k]

    def checked(self, start: int, step: int, name: str, most: int) -> IntArray:
        """Every `step`-th number from `start` on, each from 1 to `most`; `name` is followed by its number from 1 on."""
        found = np.array(self.value[start::step], np.int64)
        bad = np.flatnonzero((found < 1) | (found > most))
        if len(bad):
            self.check(start + int(bad[0]) * step, f"{name} {bad[0] + 1}", most)
        return found


def import_bpp(path: Path | str) -> tuple[RequestPacking, list[str]]:
    """Read a bin packing file (n, capacity, n weights) or a cutting-stock file (m, capacity, m lines of weight and demand): objective "bins".

    Requests stand in the file's order. Raises `InputError` naming file, line and value. Time and memory linear in the file and the requests.
    """
    path = Path(path)
    notices: list[str] = []
    try:
        numbers = read_numbers(path, ("n", "capacity", "weight (or demand)"))
        if len(numbers.value) < 3:
            raise InputError(f"line {numbers.last_line}: the file ends too early; expected n, capacity and n weights")
        count, capacity = numbers.check(0, "n", MOST_REQUESTS), numbers.check(1, "capacity", MOST_TOKENS)
        found = len(numbers.value) - 2
        variant = "bpp"
        if found == count:
            weight = numbers.checked(2, 1, "weight", MOST_TOKENS)
        elif found == 2 * count and _pairs(numbers):
            variant = "cutting-stock"
            weight, demand = numbers.checked(2, 2, "weight", MOST_TOKENS), numbers.checked(3, 2, "demand", MOST_REQUESTS)
            if demand.sum() > MOST_REQUESTS:
                raise InputError(f"demands sum to {demand.sum()}; expected at most {MOST_REQUESTS} items")
            weight = np.repeat(weight, demand)
            notices.append(f"{path.name}: {count} lines of weight and demand make {len(weight)} requests")
        else:
            last = f"{found} numbers follow to line {numbers.last_line}{_hint(numbers, count)}"
            raise InputError(f"line 1: n is {count}: expected {count} weights, or {count} lines of weight and demand, but {last}")
    except InputError as error:
        raise error.within(str(path)) from None
    larger = int((weight > capacity).sum())
    if larger:
        notices.append(f"{path.name}: {larger} of {len(weight)} weights are above the capacity {capacity}: no plan packs them")
    instance = RequestPacking(
        name=stem_of(path),
        provenance=_provenance("bpp", path, notices) | {"variant": variant},
        requests=Requests(prompt_tokens=weight, output_tokens=np.zeros(len(weight), np.int64)),
        objective="bins",
        capacity_tokens=capacity,
    )
    return instance, notices


def import_cmax(path: Path | str, *, header: str | None = None, decode_step_s: float = 1.0) -> tuple[RequestPacking, list[str]]:
    """Read a file of P||Cmax: machines, jobs and the jobs' times, in decode steps of `decode_step_s`: objective "makespan" without prefill times.

    `header` is "machines-jobs" or "jobs-machines"; None: as many jobs as times follow. Raises `InputError` naming file, line and value.
    """
    path = Path(path)
    notices: list[str] = []
    real("--decode-step-s", decode_step_s, 1e-12, 1e6)
    if header is not None and header not in HEADERS:
        raise InputError(f"must be one of {', '.join(HEADERS)}, got {shown(header)}", "--header")
    try:
        numbers = read_numbers(path, ("machines (or jobs)", "jobs (or machines)", "time"))
        if len(numbers.value) < 3:
            raise InputError(f"line {numbers.last_line}: the file ends too early; expected machines, jobs and the jobs' times")
        found = len(numbers.value) - 2
        first, second = numbers.value[:2]
        # Where neither number is that of the times, the larger one are the jobs: idle machines are rarer than files cut off.
        swapped = header == HEADERS[1] or (header is None and (first == found if found in (first, second) else first > second))
        at_machines, at_jobs = (1, 0) if swapped else (0, 1)
        jobs, machines = numbers.check(at_jobs, "jobs", MOST_REQUESTS), numbers.check(at_machines, "machines", MOST_SLOTS)
        if found != jobs:
            last = f"{found} follow to line {numbers.last_line}{' (is the file cut off?)' if found < jobs else ''}"
            raise InputError(f"line {numbers.line(at_jobs)}: jobs is {jobs}: expected {jobs} times, but {last}")
        steps = numbers.checked(2, 1, "time", MOST_TOKENS)
    except InputError as error:
        raise error.within(str(path)) from None
    if header is None and machines != jobs:
        # The other way round the file would be one with too few or too many times; too few are what a file that was cut off has.
        doubt = f" because {found} times follow (--header {HEADERS[not swapped]} expects {machines})" if machines > jobs else ""
        notices.append(f"{path.name}: read as {machines} machines and {jobs} jobs{doubt}")
    instance = RequestPacking(
        name=stem_of(path),
        provenance=_provenance("cmax", path, notices) | {"options": {"header": HEADERS[swapped], "decode_step_s": decode_step_s}},
        requests=Requests(prompt_tokens=np.zeros(len(steps), np.int64), output_tokens=steps),
        objective="makespan",
        slots=machines,
        decode_step_s=float(decode_step_s),
    )
    return instance, notices


def read_numbers(path: Path, fields: tuple[str, str, str]) -> FileNumbers:
    """All numbers of a text file; `fields` name the first, the second and every other. Raises `InputError` with line, field and value for anything
    that is not a whole number of at most 18 digits, and for a file without one."""
    content = _content(path).removeprefix(b"\xef\xbb\xbf")
    words, lines = content.split(), content.splitlines()
    if not words:
        raise InputError(f"is empty; expected the numbers {', '.join(fields)}")
    if not _ONLY_DIGITS.fullmatch(content) or max(map(len, words)) > 18:
        _refuse_first_bad(lines, fields)
    return FileNumbers(list(map(int, words)), list(accumulate(len(line.split()) for line in lines)))


def _refuse_first_bad(lines: list[bytes], fields: tuple[str, str, str]) -> None:
    read = 0
    for number, line in enumerate(lines, 1):
        for word in line.split():
            if not _WHOLE_NUMBER.fullmatch(word):
                got = shown(word[:100].decode("utf-8", "backslashreplace"))
                raise InputError(f"line {number}: {fields[min(read, 2)]} must be a whole number of at most 18 digits, got {got}")
            read += 1


def _content(path: Path) -> bytes:
    try:
        with open_trace(path) as file:
            content = file.read(MOST_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"not a readable gzip file: {error}") from None
    except OSError as error:
        raise unreadable(path, error) from None
    if len(content) > MOST_BYTES:
        raise InputError(f"is larger than {MOST_BYTES} bytes; expected at most {MOST_REQUESTS} numbers")
    return content


def _hint(numbers: FileNumbers, count: int) -> str:
    """What may be wrong with a bin packing file of another length than `count` weights, or that many pairs, would have."""
    found, pairs = len(numbers.value) - 2, _pairs(numbers)
    if found == 2 * count:
        return " (weight and demand must stand on one line)"
    if found > (2 * count if pairs else count):
        return f" ({found - (2 * count if pairs else count)} too many)"
    return " (is the file cut off?)"


def _pairs(numbers: FileNumbers) -> bool:
    """Whether the numbers after the first two, an even count, stand in pairs, a pair a line."""
    ends = [0, *numbers.up_to_line]
    return all(end <= 2 or end - before in (0, 2) for before, end in pairwise(ends))


def stem_of(path: Path) -> str:
    """The file's name without its ending (and without .gz before that), for an instance's name."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).stem[:200] or "unnamed"


def _provenance(importer: str, path: Path, notices: list[str]) -> dict[str, Any]:
    return {"importer": importer, "sources": [{"role": "instance", "file": path.name, "sha256": sha256_of(path)}], "notices": notices}


__all__ = ["HEADERS", "import_bpp", "import_cmax", "read_numbers", "stem_of"]
