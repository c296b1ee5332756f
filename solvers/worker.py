"""Run a solver that does not listen in a thread of its own, and keep listening.

HiGHS and CP-SAT hold the calling thread until they return, and then it is too late for Ctrl-C or a time limit that presolve overran. Here the
solver runs in a daemon thread; the caller's thread polls it, hands what it reports to `progress`, asks it to stop when `progress` says so, and
after a grace period goes on without it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from headroom.formulations.progress import Progress
from headroom.formulations.types import Stop

POLL_S = 0.02
GRACE_S = 0.8
"""How long a solver may take to obey before it is left behind: together with POLL_S below the second that time limits may overrun."""

T = TypeVar("T")


class Worker(Generic[T]):
    """One solver call. `call` runs in the thread; `drain` is called often in the caller's thread to pass on what came in."""

    def __init__(self, call: Callable[[], T], ask_to_stop: Callable[[], None], drain: Callable[[], None]) -> None:
        self._call, self._ask, self._drain = call, ask_to_stop, drain
        self._answer: T | None = None
        self._error: BaseException | None = None
        self._done = threading.Event()

    def _target(self) -> None:
        try:
            self._answer = self._call()
        except BaseException as error:  # handed to the caller's thread, which raises it
            self._error = error
        finally:
            self._done.set()

    def run(self, progress: Progress) -> tuple[T | None, Stop]:
        """The solver's answer (None if it was left behind) and why the wait ended. Raises what the solver raised."""
        thread = threading.Thread(target=self._target, daemon=True, name="headroom-solver")
        thread.start()
        stop: Stop = "completed"
        while not self._done.wait(POLL_S):
            self._drain()
            reason = progress.should_stop()
            if reason is not None:
                stop = reason
                self._ask()
                self._done.wait(GRACE_S)
                break
        self._drain()
        if self._error is not None:
            raise self._error
        return (self._answer if self._done.is_set() else None), stop
