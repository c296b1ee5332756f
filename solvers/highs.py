"""HiGHS on a mixed-integer program: live incumbents and bounds, warm start, limits that hold, Ctrl-C that keeps the incumbent."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headroom.formulations.progress import Progress
from headroom.formulations.tolerances import OPTIMALITY_GAP
from headroom.formulations.types import SolveParams, Stop
from headroom.solvers.standard_form import StandardForm
from headroom.solvers.worker import Worker

FloatArray = npt.NDArray[np.float64]
MipStatus = Literal["optimal", "infeasible", "stopped", "failed"]
_scheduler_lock = threading.Lock()
_scheduler_threads: int | None = None


@dataclass(frozen=True)
class MipAnswer:
    """What HiGHS ended with. `bound` is -inf when it proved none, +inf when infeasible; `x` is None without a solution."""

    status: MipStatus
    stop: Stop
    objective: float
    bound: float
    x: FloatArray | None
    nodes: int
    solver: str


def solve_mip(
    form: StandardForm,
    params: SolveParams,
    progress: Progress,
    on_incumbent: Callable[[FloatArray], None] | None = None,
    start: FloatArray | None = None,
    options: dict[str, Any] | None = None,
    scale: float = 1.0,
) -> MipAnswer:
    """Solve to OPTIMALITY_GAP (or the caller's gap limit).

    `on_incumbent` gets the column values of each improving solution in the caller's thread; `start` is a full or partial (NaN: unknown)
    solution to begin with; `scale` turns the form's objective into that of `progress`. Every status HiGHS returns is mapped; one that is not
    known counts as failed.
    """
    import highspy

    solver = _load(form, params, progress, options or {})
    if start is not None:
        _set_start(solver, start)
    found: deque[FloatArray] = deque()
    live = {"bound": -math.inf}
    stopping = threading.Event()
    kinds = highspy.cb.HighsCallbackType

    def callback(kind: Any, message: str, out: Any, into: Any, user: Any) -> None:
        # Runs in the solver's thread: an exception here would lose the incumbent, so only copies are made.
        if kind == kinds.kCallbackMipImprovingSolution:
            found.append(np.array(out.mip_solution, dtype=np.float64))
        else:
            if kind == kinds.kCallbackMipInterrupt and math.isfinite(out.mip_dual_bound):
                live["bound"] = max(live["bound"], float(out.mip_dual_bound))
            if stopping.is_set():
                into.user_interrupt = True

    solver.setCallback(callback, None)
    for kind in (kinds.kCallbackMipImprovingSolution, kinds.kCallbackMipInterrupt, kinds.kCallbackSimplexInterrupt, kinds.kCallbackIpmInterrupt):
        solver.startCallback(kind)

    def drain() -> None:
        while found:
            x = found.popleft()
            if on_incumbent is not None:
                on_incumbent(x)
        if math.isfinite(live["bound"]):
            progress.raise_bound(live["bound"] * scale)

    done, stop = Worker(solver.run, stopping.set, drain).run(progress)
    if done is None:
        return MipAnswer("stopped", stop, math.inf, live["bound"], None, 0, _name())
    answer = _answer(solver, form, stop, live["bound"])
    gap = abs(answer.objective - answer.bound) / max(abs(answer.objective), 1e-12) if math.isfinite(answer.objective) else 0.0
    return replace(answer, stop="gap_limit") if answer.status == "optimal" and gap > OPTIMALITY_GAP else answer


def _load(form: StandardForm, params: SolveParams, progress: Progress, options: dict[str, Any]) -> Any:
    import highspy

    program: Any = highspy.HighsLp()
    program.num_row_, program.num_col_ = form.matrix.shape
    program.col_cost_, program.offset_ = form.cost, form.constant
    program.col_lower_, program.col_upper_ = form.lower, form.upper
    program.row_lower_, program.row_upper_ = form.row_lower, form.row_upper
    program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    program.a_matrix_.start_, program.a_matrix_.index_, program.a_matrix_.value_ = form.matrix.indptr, form.matrix.indices, form.matrix.data
    program.integrality_ = [highspy.HighsVarType.kInteger if flag else highspy.HighsVarType.kContinuous for flag in form.integer]
    solver: Any = highspy.Highs()
    _set_threads(solver, params.threads)
    limit = progress.remaining_s
    wanted = {
        "output_flag": False,
        "threads": params.threads,
        "random_seed": params.seed % 2**31,
        "mip_rel_gap": max(0.5 * OPTIMALITY_GAP, params.gap_limit or 0.0),  # its default of 1e-4 would be called optimal
        "mip_abs_gap": 0.0,
        "primal_feasibility_tolerance": 1e-9,
        "dual_feasibility_tolerance": 1e-9,
        # Not mip_feasibility_tolerance: at 1e-9 HiGHS 1.14's presolve called 1.40 optimal on an instance of ours whose optimum is 1.01.
        **({"time_limit": limit} if math.isfinite(limit) else {}),
        **options,
    }
    for option, value in wanted.items():
        if solver.setOptionValue(option, value) != highspy.HighsStatus.kOk:
            raise RuntimeError(f"HiGHS refused option {option} = {value!r}")
    if solver.passModel(program) == highspy.HighsStatus.kError:
        raise RuntimeError("HiGHS refused the model")
    return solver


def _set_threads(solver: Any, threads: int) -> None:
    """HiGHS keeps one scheduler a process: it must be reset before another number of threads."""
    global _scheduler_threads
    with _scheduler_lock:
        if _scheduler_threads not in (None, threads):
            solver.resetGlobalScheduler(True)
        _scheduler_threads = threads


def _set_start(solver: Any, start: FloatArray) -> None:
    import highspy

    known = np.flatnonzero(~np.isnan(start)).astype(np.int32)
    if len(known) == len(start):
        solution: Any = highspy.HighsSolution()
        solution.col_value = start.tolist()
        solver.setSolution(solution)
    elif len(known):
        solver.setSolution(len(known), known, start[known])


def _answer(solver: Any, form: StandardForm, stop: Stop, live_bound: float) -> MipAnswer:
    import highspy

    kinds = highspy.HighsModelStatus
    status = solver.getModelStatus()
    info = solver.getInfo()
    table: dict[Any, tuple[MipStatus, Stop]] = {
        kinds.kOptimal: ("optimal", "completed"),
        kinds.kInfeasible: ("infeasible", "completed"),
        kinds.kUnboundedOrInfeasible: ("failed", "completed"),
        kinds.kTimeLimit: ("stopped", "time_limit"),
        kinds.kInterrupt: ("stopped", stop if stop != "completed" else "interrupted"),
        kinds.kSolutionLimit: ("stopped", "gap_limit"),
        kinds.kObjectiveTarget: ("stopped", "gap_limit"),
        kinds.kMemoryLimit: ("stopped", "memory_limit"),
    }
    mapped, ended = table.get(status, ("failed", "error"))
    if mapped == "infeasible":
        return MipAnswer("infeasible", "completed", math.inf, math.inf, None, int(info.mip_node_count), _name())
    x = None
    if info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
        x = np.array(solver.getSolution().col_value, dtype=np.float64)
    has_integers = bool(form.integer.any())
    bound = float(info.mip_dual_bound) if has_integers else (float(info.objective_function_value) if mapped == "optimal" else -math.inf)
    if not math.isfinite(bound) or mapped == "failed":
        bound = live_bound
    objective = float(info.objective_function_value) if x is not None else math.inf
    return MipAnswer(mapped, ended, objective, max(bound, live_bound), x, int(info.mip_node_count), _name())


def _name() -> str:
    from importlib.metadata import version

    return f"HiGHS {version('highspy')}"
