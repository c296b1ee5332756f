"""`compare` on a Dask cluster: the same runs, in worker processes of the cluster's machines.

Every thread of a Dask worker keeps one `Runner`: a run that dies or is over its limits takes a process of ours along, not the Dask worker. When a
Dask worker itself is lost, Dask runs its tasks again elsewhere; a row is kept once. Rows are the same as those of local processes but for times.
"""

from __future__ import annotations

import importlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from headroom.compare_pool import Runner
from headroom.formulations.types import SolveParams
from headroom.instances.base import Instance
from headroom.instances.errors import InputError, shown
from headroom.study import Case

if TYPE_CHECKING:
    from headroom.compare import Row, Task
    from headroom.own_methods import OwnMethod

CONNECT_S: Final = 10.0
AHEAD: Final = 3
"""Tasks for each thread of the cluster that wait there; the others wait here, so that an interrupt has little to take back."""
RETRIES: Final = 5
"""How often a run may lose its Dask worker before it is a row with that error."""
_here = threading.local()


def run_tasks(
    scheduler: str, cases: Sequence[Case], tasks: Sequence[Task], params: SolveParams, keep: Callable[[Task, Row], None]
) -> None:
    """Run the tasks on the cluster behind `scheduler` ("tcp://host:port"); `keep` is called in this thread as each ends.

    Files are read here and sent over: the workers need the same version of headroom, not the same folders. Raises `InputError` without Dask, without
    an answer from the scheduler, and for a cluster with another version of headroom.
    """
    try:
        dask: Any = importlib.import_module("distributed")
    except ImportError:
        raise InputError("needs Dask; expected pip install 'headroom[cluster]'", "--scheduler") from None
    _reachable(scheduler)
    try:
        client = dask.Client(scheduler, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"no scheduler answers at {shown(scheduler)} within {CONNECT_S:g} s: {reason}", "--scheduler") from None
    try:
        _check_versions(client)
        begun = time.monotonic()
        threads = sum(client.nthreads().values())
        sent = _Sent(client, cases)
        waiting = iter(tasks)
        pending: dict[str, Task] = {}

        def submit(count: int) -> Iterator[Any]:
            for _, task in zip(range(count), waiting, strict=False):
                pending[task.key] = task
                asked = (task.row["digest"], task.asked, task.kind, replace(params, seed=task.seed or 0))
                yield client.submit(run_one, sent.case(task.instance), *asked, key=f"headroom-{task.key}", retries=RETRIES, pure=False)

        running = dask.as_completed(list(submit(AHEAD * max(threads, 1))), loop=client.loop)
        for future in running:
            task = pending.pop(future.key.removeprefix("headroom-"))
            if future.status == "finished":
                answer = future.result()
            else:
                answer = {"error": f"lost on the cluster: {' '.join(str(future.exception()).split())[:300]}", "stop": "error"}
            future.release()
            keep(task, task.row | {"started_s": time.monotonic() - begun - (answer.get("runtime_s") or 0.0)} | answer)
            for more in submit(1):
                running.add(more)
    finally:
        client.close()


def _reachable(scheduler: str) -> None:
    """Whether anybody listens there: Dask itself says so late and in many lines."""
    match = re.fullmatch(r"(tcp|tls)://(\[[^\]]+\]|[^:/\[\]]+):(\d{1,5})", scheduler)
    if match is None or not 0 < int(match[3]) < 2**16:
        raise InputError(f"must be the address of a Dask scheduler such as tcp://host:8786, got {shown(scheduler)}", "--scheduler")
    try:
        socket.create_connection((match[2].strip("[]"), int(match[3])), timeout=CONNECT_S).close()
    except OSError as error:
        raise InputError(f"no scheduler answers at {shown(scheduler)}: {error.strerror or error}", "--scheduler") from None


class _Sent:
    """Cases as they are sent, each file read once."""

    def __init__(self, client: Any, cases: Sequence[Case]) -> None:
        self._client, self._cases = client, cases
        self._futures: dict[int, Any] = {}

    def case(self, index: int) -> Any:
        """A case of a preset as it is, to be made there; any other instance as data that the cluster keeps."""
        case = self._cases[index]
        if case.preset:
            return case
        if index not in self._futures:
            self._futures = {index: self._client.scatter(case.load().document(), hash=False)}  # tasks come instance by instance
        return self._futures[index]


def _check_versions(client: Any) -> None:
    ours = headroom_version()
    for worker, theirs in client.run(headroom_version).items():
        if theirs != ours:
            raise InputError(f"worker {worker} has headroom {theirs}; expected {ours} as here", "--scheduler")


def headroom_version() -> str:
    """Of this process."""
    from headroom.run import versions

    return str(versions().get("headroom", "unknown"))


def run_one(case: Case | dict[str, Any], digest: str, method: str | OwnMethod, kind: str, params: SolveParams) -> Row:
    """One run, in this thread's own process of a Dask worker's machine."""
    if not hasattr(_here, "runner"):
        _here.runner = Runner()
    runner: Runner = _here.runner
    return runner.run(case if isinstance(case, Case) else Case(instance=_instance(case)), digest, method, kind, params)


def _instance(document: dict[str, Any]) -> Instance:
    from headroom.registry import FAMILIES, load

    found: Instance = load(FAMILIES[document["family"]].instance).from_document(document)
    return found


__all__ = ["headroom_version", "run_one", "run_tasks"]
