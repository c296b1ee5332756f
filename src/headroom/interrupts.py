"""SIGINT and SIGTERM: work runs in a thread, the main thread waits, hears the signal and decides.

Python runs signal handlers in the main thread, between two bytecodes. A solver's C++ code called from there would keep Ctrl-C waiting
until it returns, which may be hours; so the method runs in a daemon thread and the main thread sleeps in short steps. At the first signal
the method is asked to stop (`Progress.interrupt`); if it has not returned after a grace period, or at a second signal, the caller takes
the best plan that `Progress` holds and leaves the process with `os._exit`, for a thread inside a solver cannot be ended otherwise.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Generic, NoReturn, TypeVar

if TYPE_CHECKING:
    from headroom.formulations.progress import Progress

GRACE_S = 2.0
POLL_S = 0.05
SIGNALS = (signal.SIGINT, signal.SIGTERM)
T = TypeVar("T")


class Signals:
    """The signals this process received. Until `watch` is called a signal raises KeyboardInterrupt, which `entry_point` turns into an exit code."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.count = 0
        self.answered = False
        """Whether something was said on stderr after a signal came."""
        self._watching: Watch[object] | None = None

    def install(self) -> None:
        """Take over SIGINT and SIGTERM. Only the main thread can."""
        for number in SIGNALS:
            signal.signal(number, self._handle)
        sys.unraisablehook = self._unraisable

    def _unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Obey a KeyboardInterrupt raised inside a weakref callback or a finaliser (imports run both): Python would report and drop it."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt) and self.received is not None:
            self.answer()
            leave(128 + self.received)
        sys.__unraisablehook__(unraisable)

    def answer(self) -> None:
        """Say that a signal ended the process before a verb could say what it keeps; nothing if one did."""
        if not self.answered:
            self.answered = True
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write("headroom: interrupted before there was anything to keep\n")

    def ignore(self) -> None:
        """The work is done and only the interpreter's own end is left: it must not print a traceback."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @property
    def exit_code(self) -> int | None:
        """130 or 143; None when there was no signal."""
        return None if self.received is None else 128 + self.received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.received = self.received or number
        if self._watching is not None:
            self._watching.heard()
        elif self.count == 1:
            raise KeyboardInterrupt
        else:
            os._exit(128 + self.received)  # something swallowed the first one

    def watch(self, work: Callable[[Watch[T]], T]) -> Watch[T]:
        """Start `work` in a thread; from now on a signal asks it to stop instead of raising."""
        if self.received is not None:
            raise KeyboardInterrupt
        watch = Watch(work)
        self._watching = watch  # type: ignore[assignment]
        watch.start()
        return watch

    def release(self) -> None:
        """Signals raise KeyboardInterrupt again."""
        self._watching = None


class Watch(Generic[T]):
    """One piece of work in a daemon thread."""

    def __init__(self, work: Callable[[Watch[T]], T]) -> None:
        self.progress: Progress | None = None
        self.error: BaseException | None = None
        self._result: list[T] = []
        self._work = work
        self._ended = threading.Event()
        self._heard_at: float | None = None
        self._insisted = False
        self._over = False
        self._heard_after = 0
        self._thread = threading.Thread(target=self._run, name="headroom-work", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result.append(self._work(self))
        except BaseException as error:  # handed to the main thread, which raises it
            self.error = error
        finally:
            self._ended.set()

    def follow(self, progress: Progress) -> None:
        """The work's progress, known as soon as the work made it: `run` calls this as its `on_start`."""
        self.progress = progress
        if self._heard_at is not None:
            progress.interrupt()

    def heard(self) -> None:
        """Called by the signal handler."""
        if self._over:
            self._heard_after += 1
            if self._heard_after > 1:
                os._exit(signals.exit_code or 130)  # such as a write to a pipe that nobody reads
        if self._heard_at is None:
            self._heard_at = time.monotonic()
        else:
            self._insisted = True
        if self.progress is not None:
            self.progress.interrupt()

    def wait(self, while_waiting: Callable[[], None] | None = None) -> bool:
        """Wait for the end of the work. False: it was asked to stop and did not in time, so it must be abandoned."""
        while not self._ended.wait(POLL_S):
            if while_waiting is not None:
                while_waiting()
            if self._insisted or (self._heard_at is not None and time.monotonic() - self._heard_at > GRACE_S):
                break
        self._over = True
        return self._ended.is_set()

    def result(self) -> T:
        """What the work returned; raises what it raised."""
        if self.error is not None:
            raise self.error
        return self._result[0]


signals = Signals()


def leave(code: int) -> NoReturn:
    """End the process at once, output flushed: a thread may still be inside a solver."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue  # nobody reads it any more
    os._exit(code)
