"""Methods that misbehave on purpose, for the tests of interrupts and sweeps."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from headroom.formulations.gpu_selection import plan_from_arrays
from headroom.formulations.progress import Progress
from headroom.formulations.types import Bound, Outcome, Plan, SolveParams
from headroom.instances.gpu_selection import GpuSelection


def fleet(instance: GpuSelection, gpu: int) -> Plan:
    """Everything on one type."""
    share = np.zeros((len(instance.gpus), len(instance.work)))
    share[gpu] = 1.0
    n = np.zeros(len(instance.gpus), dtype=np.int64)
    n[gpu] = math.ceil(instance.load_replicas[gpu].sum() + instance.spare_replicas)
    return plan_from_arrays(instance, n, share, {gpu: share} if instance.spare_replicas else None)


def _announce() -> None:
    """Tell the test that the method has begun (and, if it does, has its plan)."""
    if "STUB_READY" in os.environ:
        Path(os.environ["STUB_READY"]).touch()


def slow(instance: Any, params: SolveParams, progress: Progress) -> Outcome:
    """A plan at once, then a search without end that listens."""
    progress.offer(fleet(instance, 0))
    progress.raise_bound(1.0)
    _announce()
    while (stop := progress.should_stop()) is None:
        time.sleep(0.02)
    return Outcome(plan=progress.plan, bounds=(Bound(1.0, "slow", "solver"),), stop=stop)


def stubborn(instance: Any, params: SolveParams, progress: Progress) -> Outcome:
    """A plan at once, then a search that hears nothing, as inside a solver's presolve."""
    progress.offer(fleet(instance, 0))
    progress.raise_bound(1.0)
    _announce()
    time.sleep(120)
    return Outcome()


def planless(instance: Any, params: SolveParams, progress: Progress) -> Outcome:
    """Listens, finds nothing."""
    _announce()
    while (stop := progress.should_stop()) is None:
        time.sleep(0.02)
    return Outcome(stop=stop)


def deaf(instance: Any, params: SolveParams, progress: Progress) -> Outcome:
    """Hears nothing, finds nothing."""
    _announce()
    time.sleep(120)
    return Outcome()


def failing(instance: Any, params: SolveParams, progress: Progress) -> Outcome:
    """Has a plan and then a bug."""
    progress.offer(fleet(instance, 0))
    raise RuntimeError("a bug,\non two lines")


def infeasible(instance: Any, params: SolveParams, progress: Progress) -> Outcome:
    details = {"infeasibility": {"messages": ["work item 'a' needs 6 replicas more than max_count 0 allows"]}}
    return Outcome(bounds=(Bound(math.inf, "infeasible", "solver"),), details=details)


def unlucky(instance: Any, params: SolveParams, progress: Progress) -> Outcome:
    """Ends without plan or proof."""
    return Outcome()


def sensitive(instance: Any, params: SolveParams, progress: Progress) -> Outcome:
    record = {"constraint": "count", "index": "A10G", "shadow_price": -0.25, "unit": "USD/h per replica", "meaning": "one more A10G allowed"}
    return Outcome(plan=fleet(instance, 0), details={"sensitivity": [record]} if params.sensitivity else {})


def liar(instance: Any, params: SolveParams, progress: Progress) -> Outcome:
    """Claims an objective that its plan does not have."""
    return Outcome(plan=fleet(instance, 0), solver_objective=0.5)


def logged(instance: Any, rng: np.random.Generator) -> Plan:
    """Leaves a line for each run begun and each run ended."""
    log = Path(os.environ["STUB_LOG"])
    seed = int(rng.integers(10**9))
    with log.open("a") as file:
        file.write(f"begin {seed}\n")
    time.sleep(float(os.environ.get("STUB_SECONDS", "0")))
    with log.open("a") as file:
        file.write(f"end {seed}\n")
    return fleet(instance, 0)


def dying(instance: Any, rng: np.random.Generator) -> Plan:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def raising(instance: Any, rng: np.random.Generator) -> Plan:
    raise RuntimeError("a bug in a method")


def noisy(instance: Any, rng: np.random.Generator) -> Plan:
    """Prints where rows are expected, as native solvers do."""
    os.write(1, b"noise\n")
    sys.stdout.write("more noise\n")
    sys.stdout.flush()
    return fleet(instance, 0)


def hungry(instance: Any, rng: np.random.Generator) -> Plan:
    """Takes a gigabyte more each tenth of a second, up to four."""
    held = []
    for _ in range(4):
        held.append(np.ones(2**27))
        time.sleep(0.5)
    return fleet(instance, 0)
