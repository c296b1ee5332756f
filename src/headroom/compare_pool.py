"""Processes for `compare`: each serves one run after another, and may die without taking the sweep along.

A worker is `python -m headroom.compare_pool PARENT`, not a fork and not multiprocessing's spawn: it needs no `__main__` guard in the caller's
script and works from notebooks. Tasks and rows go over its standard input and output as pickles, within one machine and one user.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO

from headroom.formulations.types import Bound, SolveParams, best_bound
from headroom.instances.base import Instance
from headroom.instances.errors import InputError
from headroom.own_files import OwnCodeError
from headroom.study import Case

if TYPE_CHECKING:
    from headroom.compare import Row, Task
    from headroom.own_methods import OwnMethod

OVER, OVER_S = 1.25, 5.0
"""A run is stopped after OVER times its time limit and OVER_S seconds: methods that keep time themselves end well before."""
OVER_MEMORY = 1.1
"""The same of memory: methods that look at it end with what they have."""
WATCH_S = 0.1
BEGUN = "begun"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


def run_tasks(cases: Sequence[Case], tasks: Sequence[Task], params: SolveParams, jobs: int, keep: Callable[[Task, Row], None]) -> None:
    """Run the tasks in `jobs` processes; `keep` is called in this thread as each ends. KeyboardInterrupt ends the processes."""
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    here, away = ([task for task in tasks if task.bound_here is bound] for bound in (True, False))
    for task in away:
        waiting.put(task)
    finished: queue.SimpleQueue[tuple[Task, Row] | BaseException] = queue.SimpleQueue()
    started = time.monotonic()
    workers = [_Worker(cases, params, waiting, finished, started) for _ in range(min(jobs, len(away)))]
    try:
        for worker in workers:
            worker.thread.start()
        if here:
            threading.Thread(target=_run_here, args=(cases, here, params, finished, started), name="headroom-here", daemon=True).start()
        for _ in tasks:
            item = _next(finished)
            if isinstance(item, BaseException):
                raise item
            keep(*item)
    finally:
        for worker in workers:
            worker.stop()


def _next(finished: queue.SimpleQueue[tuple[Task, Row] | BaseException]) -> tuple[Task, Row] | BaseException:
    while True:
        try:
            return finished.get(timeout=0.5)  # a wait without end would not hear signals on every platform
        except queue.Empty:
            continue


def _run_here(cases: Sequence[Case], tasks: Sequence[Task], params: SolveParams, finished: Any, started: float) -> None:
    """Run what no other process can import, one after the other, in this process: nothing can stop such a run."""
    instance, known = None, -1
    try:
        for task in tasks:
            begun = time.monotonic()
            try:
                if instance is None or known != task.instance:
                    instance, known = cases[task.instance].load(), task.instance
                row = method_row(instance, task.asked, replace(params, seed=task.seed or 0))
            except Exception as error:
                row = _failed(error) | {"runtime_s": time.monotonic() - begun}
            finished.put((task, task.row | {"started_s": begun - started} | row))
    except BaseException as error:
        finished.put(error)


class Runner:
    """One worker process, started when it is needed and replaced when it dies or is killed for a run over its limits."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._known: str | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, case: Case, digest: str, method: str | OwnMethod, kind: str, params: SolveParams) -> Row:
        """What a run adds to its row, whatever becomes of it."""
        watch, begun = _Watch(params), time.monotonic()
        try:
            return self._ask(case, (digest, method, kind, params), watch)
        except (EOFError, OSError, pickle.UnpicklingError):
            ended = self._end()
            runtime_s = time.monotonic() - (begun if watch.since is None else watch.since)
            if watch.stop is None:
                return {"error": f"the process died ({ended})", "runtime_s": runtime_s, "stop": "error"}
            return {"error": None, "runtime_s": runtime_s, "stop": watch.stop, "status": "unknown", "note": watch.reason}
        finally:
            watch.ended.set()

    def _ask(self, case: Case, asked: tuple[str, str | OwnMethod, str, SolveParams], watch: _Watch) -> Row:
        with self._lock:
            if self._stopped:
                raise EOFError
            if self._process is None:
                self._known = None
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "headroom.compare_pool", str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=os.environ | ONE_THREAD,
                    start_new_session=True,  # Ctrl-C reaches the parent alone, which ends its workers
                )
            process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        # A case goes over once; the next tasks on it name it.
        pickle.dump((None if self._known == asked[0] else _portable(case), *asked), process.stdin)
        process.stdin.flush()
        self._known = asked[0]
        if pickle.load(process.stdout) == BEGUN:
            watch.begin(process)
        else:
            self._known = None
        answer: Row = pickle.load(process.stdout)
        return answer

    def _end(self) -> str:
        process, self._process = self._process, None
        if process is None:
            return "stopped"
        code = _end_process(process)
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """End the process now, whatever it is doing; `run` hears of it. None is started any more."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """Wait for the end of a killed process."""
        if self._process is not None:
            _end_process(self._process)


class _Worker:
    """A thread of this process that keeps one runner busy."""

    def __init__(self, cases: Sequence[Case], params: SolveParams, waiting: Any, finished: Any, started: float) -> None:
        self._cases, self._params, self._waiting, self._finished, self._started = cases, params, waiting, finished, started
        self._runner = Runner()
        self._stopped = False
        self.thread = threading.Thread(target=self._serve, name="headroom-compare", daemon=True)

    def _serve(self) -> None:
        try:
            while not self._stopped:
                try:
                    task = self._waiting.get_nowait()
                except queue.Empty:
                    break
                started_s = time.monotonic() - self._started
                params = replace(self._params, seed=task.seed or 0)
                answer = self._runner.run(self._cases[task.instance], task.row["digest"], task.asked, task.kind, params)
                self._finished.put((task, task.row | {"started_s": started_s} | answer))
        except BaseException as error:
            self._finished.put(error)

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._stopped = True
        self._runner.kill()
        if self.thread.is_alive():
            self.thread.join()  # it hears at once that its process is gone
        self._runner.close()


class _Watch:
    """Kills a process whose run is over its limits, and says why."""

    def __init__(self, params: SolveParams) -> None:
        limit_s = params.time_limit_s
        self._most_s = None if limit_s is None else OVER * limit_s + OVER_S
        self._limit_s, self._most_bytes = limit_s, params.memory_limit_bytes
        self.since: float | None = None
        self.stop: str | None = None
        self.reason: str | None = None
        self.ended = threading.Event()

    def begin(self, process: subprocess.Popen[bytes]) -> None:
        """The run has begun."""
        self.since = time.monotonic()
        if self._most_s is not None or self._most_bytes is not None:
            threading.Thread(target=self._look, args=(process,), name="headroom-watch", daemon=True).start()

    def _look(self, process: subprocess.Popen[bytes]) -> None:
        assert self.since is not None
        while not self.ended.wait(WATCH_S):
            passed_s = time.monotonic() - self.since
            memory = None if self._most_bytes is None else _resident_bytes(process.pid)
            if self._most_s is not None and passed_s > self._most_s:
                self.stop, self.reason = "time_limit", f"stopped after {passed_s:.1f} s: it does not keep the time limit of {self._limit_s:g} s"
            elif memory is not None and self._most_bytes is not None and memory > OVER_MEMORY * self._most_bytes:
                limit = f"over the memory limit of {self._most_bytes / 2**30:.2f} GiB"
                self.stop, self.reason = "memory_limit", f"stopped at {memory / 2**30:.2f} GiB after {passed_s:.1f} s: {limit}"
            if self.stop is not None:
                process.kill()
                return


def _resident_bytes(pid: int) -> int | None:
    """Memory that a process holds; None where the system does not say (not Linux)."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return None


def _portable(case: Case) -> Case | dict[str, Any]:
    """What goes over to a worker: the case, to be made there, or the document of an instance at hand."""
    return case if case.instance is None else case.instance.document()


def _end_process(process: subprocess.Popen[bytes]) -> int:
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
    return process.wait()


# --- in the worker process ----------------------------------------------------------------------------------------------------


def serve(tasks: BinaryIO, answers: BinaryIO) -> None:
    """Run the tasks that come in until the parent closes the pipe."""
    instance: Any = None
    while True:
        try:
            case, digest, method, kind, params = pickle.load(tasks)
        except EOFError:
            return
        row: Row
        try:
            if case is not None:
                instance = None
                instance = _made(case, digest)
            if instance is None:
                raise InputError("could not be made", "instance")
            _reset_peak_memory()
            pickle.dump(BEGUN, answers)
            answers.flush()
            started = time.monotonic()
            try:
                row = bound_row(instance, method, params) if kind == "bound" else method_row(instance, method, params)
            except Exception as error:
                row = _failed(error) | {"runtime_s": time.monotonic() - started}
        except Exception as error:
            pickle.dump(None, answers)
            row = _failed(error)
        pickle.dump(row | {"peak_memory_bytes": _peak_memory_bytes()}, answers)
        answers.flush()


def _made(case: Case | dict[str, Any], digest: str) -> Instance:
    from headroom.registry import FAMILIES, load

    if isinstance(case, dict):
        found: Instance = load(FAMILIES[case["family"]].instance).from_document(case)
        return found
    found = case.load()
    if found.digest() != digest:
        raise InputError("has changed since the sweep began; expected the same data", str(case.path or case.preset))
    return found


def _failed(error: Exception) -> Row:
    traceback.print_exc(file=sys.stderr) if os.environ.get("HEADROOM_DEBUG") else None
    # What an own method raised has its type, file and line in its text.
    text = str(error) if isinstance(error, OwnCodeError) else f"{type(error).__name__}: {error}"
    return {"error": " ".join(text.split())[:500], "stop": "error"}


def method_row(instance: Instance, method: str | OwnMethod, params: SolveParams) -> Row:
    """What one run of a method adds to its row."""
    from headroom.report.trace import trace_of
    from headroom.run import run

    result = run(instance, method, params)
    parts = {} if result.evaluation is None else {f"part_{name}": value for name, value in result.evaluation.parts.items()}
    replay = result.details.get("replay")
    if replay is not None:
        parts |= {"part_replay_cost_usd": replay["cost_usd"], "part_dropped_share": replay["unserved_share"]}
    note = result.notes[0] if result.notes and result.plan is None else None
    known = {"objective": result.objective if result.plan is not None else None, "runtime_s": result.runtime_s, "error": None, "note": note}
    known["trace"] = trace_of(result)
    return known | {"status": result.status, "stop": result.stop} | parts | _own_bounds(result.bounds)


def bound_row(instance: Instance, method: str, params: SolveParams) -> Row:
    """What one run of a bound adds to its row."""
    from headroom.formulations.progress import Progress
    from headroom.run import family_of

    progress = Progress(params)
    found: Bound = family_of(instance).bounds[method].load()(instance, params, progress)
    status = "infeasible" if found.value == math.inf else "unknown"
    row: Row = {"objective": None, "runtime_s": progress.elapsed_s, "error": None, "status": status, "stop": "completed"}
    return row | _own_bounds((found,))


def _own_bounds(bounds: tuple[Bound, ...]) -> Row:
    best, certified = best_bound(bounds, rechecked_only=False), best_bound(bounds, rechecked_only=True)
    row: Row = {}
    if best is not None:
        row |= {"own_bound": best.value, "own_bound_method": best.method, "own_bound_proof": best.proof}
    if certified is not None:
        row |= {"own_certified_bound": certified.value, "own_certified_method": certified.method}
    # JSON has no infinity: the part file names the fields that are.
    return row | {"infinite": [name for name, value in row.items() if value == math.inf]}


def _reset_peak_memory() -> None:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return  # not Linux: the peak is that of the process so far


def _peak_memory_bytes() -> int | None:
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    """The worker process. What solvers print on stdout goes to stderr, not between the rows."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, args=(int(sys.argv[1]),), daemon=True).start()
    try:
        serve(sys.stdin.buffer, answers)
    except BrokenPipeError:
        os._exit(1)  # the parent is gone


if __name__ == "__main__":
    main()
