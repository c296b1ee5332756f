"""The one progress class: methods tell it of incumbents and bounds, and ask it whether to stop.

Algorithms never print. A `Progress` keeps the best evaluated plan so that an interrupt, a time limit or a crash later in the method
loses nothing; a listener (the command line's live line) is called on each improvement.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from headroom.formulations.tolerances import CONTRADICTION, relative_gap
from headroom.formulations.types import Bound, Evaluation, Plan, SolveParams, Stop

Listener = Callable[["Progress"], None]
LONGEST_TRAJECTORY = 2000


class Progress:
    """Clock, incumbent, bound, trajectory and stop request of one run. Safe to use from several threads."""

    def __init__(self, params: SolveParams, evaluate: Callable[[Plan], Evaluation] | None = None, listener: Listener | None = None) -> None:
        self.params = params
        self.plan: Plan | None = None
        self.objective = math.inf
        self.bound = -math.inf
        self.bounds: dict[str, Bound] = {}
        """Bounds reported with their proofs, the last of each method."""
        self.trajectory: list[tuple[float, float, float]] = []
        self._evaluate = evaluate
        self._listener = listener
        self._interrupted = threading.Event()
        self._lock = threading.RLock()
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    @property
    def remaining_s(self) -> float:
        """Seconds left before the time limit; +inf without one, never negative."""
        limit = self.params.time_limit_s
        return math.inf if limit is None else max(0.0, limit - self.elapsed_s)

    @property
    def gap(self) -> float:
        return relative_gap(self.objective, self.bound)

    def interrupt(self) -> None:
        """Ask the method to stop at its next check (signal handlers call this)."""
        self._interrupted.set()

    def follow(self, other: Progress) -> None:
        """Stop when `other` is interrupted: for a solver run inside another method, whose incumbents and bounds are its own."""
        self._interrupted = other._interrupted

    @property
    def interrupted(self) -> bool:
        return self._interrupted.is_set()

    def should_stop(self) -> Stop | None:
        """Why the method should stop now, or None."""
        if self._interrupted.is_set():
            return "interrupted"
        if self.remaining_s <= 0:
            return "time_limit"
        if self.params.gap_limit is not None and self.gap <= self.params.gap_limit:
            return "gap_limit"
        if self.params.memory_limit_bytes is not None and memory_in_use_bytes() > self.params.memory_limit_bytes:
            return "memory_limit"
        return None

    def offer(self, plan: Plan) -> bool:
        """Evaluate a plan; keep it if it is feasible and better than the incumbent. Returns whether it was kept."""
        if self._evaluate is None:
            return False
        evaluation = self._evaluate(plan)
        with self._lock:
            if not evaluation.feasible or evaluation.objective >= self.objective:
                return False
            self.plan, self.objective = plan, evaluation.objective
            self._record()
        return True

    def raise_bound(self, value: float) -> None:
        """Report a valid lower bound; only improvements are recorded."""
        with self._lock:
            if value <= self.bound or math.isnan(value):
                return
            # A live bound may touch the incumbent from below; rounding noise above it is not shown.
            if self.objective < value <= self.objective + CONTRADICTION * max(abs(self.objective), 1e-12):
                value = self.objective
            self.bound = max(self.bound, value)
            self._record()

    def keep(self, bound: Bound) -> None:
        """Report a bound with its proof: it survives even if the method never returns."""
        with self._lock:
            self.bounds[bound.method] = bound
        if math.isfinite(bound.value):
            self.raise_bound(bound.value)

    def _record(self) -> None:
        if len(self.trajectory) < LONGEST_TRAJECTORY:
            self.trajectory.append((self.elapsed_s, self.objective, self.bound))
        else:
            self.trajectory[-1] = (self.elapsed_s, self.objective, self.bound)
        if self._listener is not None:
            self._listener(self)


def memory_in_use_bytes() -> int:
    """Resident memory of this process now (Linux), or its peak where the system tells only that."""
    try:
        with open("/proc/self/statm", "rb") as file:
            import resource

            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return _peak_from_rusage()


def _peak_from_rusage() -> int:
    try:
        import resource
    except ImportError:  # Windows has no rusage: memory limits are not enforced there
        return 0
    peak: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)
