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

if TYPE_CHECKING:
    from headroom.compare import Row, Task

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


def run_tasks(instances: Sequence[Instance], tasks: Sequence[Task], params: SolveParams, jobs: int, keep: Callable[[Task, Row], None]) -> None:
    """Run the tasks in `jobs` processes; `keep` is called in this thread as each ends. KeyboardInterrupt ends the processes."""
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    finished: queue.SimpleQueue[tuple[Task, Row] | BaseException] = queue.SimpleQueue()
    started = time.monotonic()
    workers = [_Worker(instances, params, waiting, finished, started) for _ in range(min(jobs, len(tasks)))]
    try:
        for worker in workers:
            worker.thread.start()
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


class _Worker:
    """A thread of this process that keeps one worker process busy and replaces it when it dies."""

    def __init__(self, instances: Sequence[Instance], params: SolveParams, waiting: Any, finished: Any, started: float) -> None:
        self._instances, self._params, self._waiting, self._finished, self._started = instances, params, waiting, finished, started
        self._process: subprocess.Popen[bytes] | None = None
        self._known: int | None = None
        self._stopped = False
        self._lock = threading.Lock()
        self.thread = threading.Thread(target=self._serve, name="headroom-compare", daemon=True)

    def _serve(self) -> None:
        try:
            while not self._stopped:
                try:
                    task = self._waiting.get_nowait()
                except queue.Empty:
                    break
                self._finished.put((task, self._run(task)))
        except BaseException as error:
            self._finished.put(error)

    def _run(self, task: Task) -> Row:
        started_s = time.monotonic() - self._started
        try:
            answer: Row = self._ask(task)
        except (EOFError, OSError, pickle.UnpicklingError):
            answer = {"error": f"the process died ({self._end()})", "runtime_s": time.monotonic() - self._started - started_s, "stop": "error"}
        return task.row | {"started_s": started_s} | answer

    def _ask(self, task: Task) -> Row:
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
        # An instance goes over once; the next tasks on it name it.
        instance = None if self._known == task.instance else self._instances[task.instance].document()
        pickle.dump((instance, task.method, task.kind, replace(self._params, seed=task.seed or 0)), process.stdin)
        process.stdin.flush()
        self._known = task.instance
        answer: Row = pickle.load(process.stdout)
        return answer

    def _end(self) -> str:
        process, self._process = self._process, None
        if process is None:
            return "stopped"
        code = _end_process(process)
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()
        if self.thread.is_alive():
            self.thread.join()  # it hears at once that its process is gone
        if self._process is not None:
            _end_process(self._process)


def _end_process(process: subprocess.Popen[bytes]) -> int:
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
    return process.wait()


# --- in the worker process ----------------------------------------------------------------------------------------------------


def serve(tasks: BinaryIO, answers: BinaryIO) -> None:
    """Run the tasks that come in until the parent closes the pipe."""
    from headroom.registry import FAMILIES, load

    instance: Any = None
    while True:
        try:
            document, method, kind, params = pickle.load(tasks)
        except EOFError:
            return
        if document is not None:
            instance = load(FAMILIES[document["family"]].instance).from_document(document)
        _reset_peak_memory()
        started = time.monotonic()
        try:
            row = bound_row(instance, method, params) if kind == "bound" else method_row(instance, method, params)
        except Exception as error:
            traceback.print_exc(file=sys.stderr) if os.environ.get("HEADROOM_DEBUG") else None
            row = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500], "stop": "error", "runtime_s": time.monotonic() - started}
        pickle.dump(row | {"peak_memory_bytes": _peak_memory_bytes()}, answers)
        answers.flush()


def method_row(instance: Instance, method: str, params: SolveParams) -> Row:
    """What one run of a method adds to its row."""
    from headroom.run import run

    result = run(instance, method, params)
    parts = {} if result.evaluation is None else {f"part_{name}": value for name, value in result.evaluation.parts.items()}
    replay = result.details.get("replay")
    if replay is not None:
        parts |= {"part_replay_cost_usd": replay["cost_usd"], "part_dropped_share": replay["unserved_share"]}
    note = result.notes[0] if result.notes and result.plan is None else None
    known = {"objective": result.objective if result.plan is not None else None, "runtime_s": result.runtime_s, "error": None, "note": note}
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
