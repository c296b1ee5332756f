"""What every benchmark prints about itself, and how it times."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

T = TypeVar("T")


def header(what: str, seeds: Sequence[int] | None, threads: int) -> str:
    """Versions, machine, seeds and threads in one line each; without seeds where every table names its own."""
    packages = []
    for name in ("headroom", "numpy", "scipy", "highspy", "ortools", "pyomo", "pulp"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    seed_text = "" if seeds is None else f" seeds {', '.join(map(str, seeds))};"
    machine = f"{platform.machine()}, {os.cpu_count()} cores;{seed_text} threads {threads}"
    return f"{what}\nPython {platform.python_version()}, {', '.join(packages)}\n{machine}"


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """The answer and the wall time in seconds."""
    start = time.perf_counter()
    answer = call()
    return answer, time.perf_counter() - start


def geometric_mean(values: Sequence[float]) -> float:
    """NaN for none."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def median(values: Sequence[float]) -> float:
    """NaN for none."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
