"""Packings for offline inference scripts: batch manifests, a queue for each slot, or the stages of a run; JSON lines that can be streamed.

All name requests by their number in the instance, 0 the first; where the instance has `requests.record` (an importer that took only some of a
trace, or a file of your own), every list of requests has one of "records" beside it: their numbers in that file. The header's "provenance" says
which. Lines stand in the order in which they are to be run. Seconds are given to a nanosecond.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headroom.formulations.request_packing import BinPlan, Run, StagedPlan, bin_loads, evaluate, replay
from headroom.instances.errors import InputError
from headroom.instances.request_packing import RequestPacking

if TYPE_CHECKING:
    from headroom.documents import PlanDocument

BATCHES_SCHEMA = "headroom/batches/1"
QUEUES_SCHEMA = "headroom/slot-queues/1"
STAGES_SCHEMA = "headroom/stages/1"
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def batches(instance: RequestPacking, document: PlanDocument) -> str:
    """JSON lines: a header, then a line for each bin.

    Header: {"schema": "headroom/batches/1", "instance": {"name", "sha256"}, "requests": N, "provenance", "capacity_tokens": tokens of a bin,
    "padding_multiple", "bins": how many follow}. Line: {"bin": the plan's number, "requests": [request, …], "tokens": the bin's load, overheads and
    padding included, "groups": [{"group": number, "requests": how many, "tokens": what they take, overhead and padding included}, …]}.

    "groups" is left out where nothing is shared. Requests rise; where there are groups, those of one group stand side by side, in the order of
    "groups", so that a prefix or an adapter is loaded once, and requests without a group follow. Raises `InputError` for a plan that does not fit.
    O(N log N).
    """
    plan = document.plan
    assert isinstance(plan, BinPlan)
    try:
        used, load = bin_loads(instance, plan)
    except InputError as error:
        raise error.within(document.source) from None
    head = _head(BATCHES_SCHEMA, instance) | {
        "capacity_tokens": instance.capacity_tokens,
        "padding_multiple": instance.padding_multiple,
        "bins": len(used),
    }
    order = np.lexsort((np.arange(instance.count), instance.group_of, plan.bin)) if instance.groups else np.argsort(plan.bin, kind="stable")
    ends = np.searchsorted(plan.bin[order], used, side="right").tolist()
    requests, record = order.tolist(), instance.requests.record
    shared = _groups_of_bins(instance, plan)
    lines: list[dict[str, Any]] = []
    begin = 0
    for b, tokens, end in zip(used.tolist(), load.tolist(), ends, strict=True):
        line = {"bin": b, "requests": requests[begin:end]} | _records(record, order[begin:end]) | {"tokens": tokens}
        lines.append(line | {"groups": shared[b]} if b in shared else line)
        begin = end
    return _lines(head, lines)


def queues(instance: RequestPacking, document: PlanDocument) -> str:
    """JSON lines: a header, then a line for each slot, idle ones too.

    Header: {"schema": "headroom/slot-queues/1", "instance", "requests", "provenance", "slots": J, "decode_step_s", "total_s": seconds of the run}.
    Line: {"slot": number, "requests": [request, …] in the order in which the slot takes them, and as many numbers each of "stage": the stage that
    admits it, "start_s": when that stage's prefill begins, "finish_s": when its last token is made (null: not within the run)}.

    Raises `InputError` for a plan that does not fit. O(N log N + stages).
    """
    plan, run = _replayed(instance, document)
    head = _head(QUEUES_SCHEMA, instance) | {
        "slots": instance.slots,
        "decode_step_s": instance.decode_step_s,
        "total_s": evaluate(instance, plan).objective,
    }
    admitted = np.flatnonzero(run.stage >= 0)
    order = admitted[np.lexsort((admitted, run.stage[admitted], run.slot[admitted]))]
    start, finish = run.start_s[run.stage[order]], finish_s(instance, run)[order]
    bounds = np.searchsorted(run.slot[order], np.arange((instance.slots or 0) + 1)).tolist()

    def line(slot: int) -> dict[str, Any]:
        own = slice(bounds[slot], bounds[slot + 1])
        named = {"slot": slot, "requests": order[own].tolist()} | _records(instance.requests.record, order[own])
        return named | {"stage": run.stage[order[own]].tolist(), "start_s": _plain(start[own]), "finish_s": _plain(finish[own])}

    return _lines(head, (line(slot) for slot in range(instance.slots or 0)))


def stages(instance: RequestPacking, document: PlanDocument) -> str:
    """JSON lines: a header, then a line for each stage.

    Header: as of `queues`, with "schema": "headroom/stages/1" and "stages": how many follow. Line: {"stage": number, "start_s": when it begins,
    "admissions": [[request, slot], …] prefilled together, "prompt_tokens": of them all, "prefill_s" (null: above the last prefill level),
    "decode_steps": steps before the next stage}. A slot that is named again has finished its request before.

    Raises `InputError` for a plan that does not fit. O(N + stages).
    """
    plan, run = _replayed(instance, document)
    head = _head(STAGES_SCHEMA, instance) | {
        "slots": instance.slots,
        "decode_step_s": instance.decode_step_s,
        "total_s": evaluate(instance, plan).objective,
        "stages": len(plan.stages),
    }
    columns = zip(_plain(run.start_s), run.prompt_tokens.tolist(), _plain(run.prefill_s), run.decode_steps.tolist(), strict=True)
    lines = (
        {
            "stage": k,
            "start_s": start,
            "admissions": stage.admit.tolist(),
        }
        | _records(instance.requests.record, stage.admit[:, 0])
        | {"prompt_tokens": tokens, "prefill_s": prefill, "decode_steps": steps}
        for k, (stage, (start, tokens, prefill, steps)) in enumerate(zip(plan.stages, columns, strict=True))
    )
    return _lines(head, lines)


def finish_s(instance: RequestPacking, run: Run) -> FloatArray:
    """Seconds from the start of the run until each request's last token is made [N]; infinite where that is not within the run. O(N log S)."""
    found = np.full(instance.count, np.inf)
    done = np.flatnonzero((run.stage >= 0) & (run.finish_step <= run.total_steps))
    # The stage in whose decode steps the last token falls: the first with as many steps behind it.
    last = np.searchsorted(run.before + run.decode_steps, run.finish_step[done])
    steps = run.finish_step[done] - run.before[last]
    found[done] = run.start_s[last] + run.prefill_s[last] + steps * (instance.decode_step_s or 0.0)
    return found


def group_parts(instance: RequestPacking, plan: BinPlan) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """(bin, group, requests, tokens) of every part of a group in a bin, by bin, then group; tokens with overhead and padding. O(N log N)."""
    kinds, multiple = len(instance.overhead), instance.padding_multiple
    pairs, inverse = np.unique(plan.bin * kinds + instance.group_of, return_inverse=True)
    tokens = np.zeros(len(pairs), np.int64)
    np.add.at(tokens, inverse, instance.size)
    group = pairs % kinds
    return pairs // kinds, group, np.bincount(inverse, minlength=len(pairs)), -(-tokens // multiple) * multiple + instance.overhead[group]


def _groups_of_bins(instance: RequestPacking, plan: BinPlan) -> dict[int, list[dict[str, int]]]:
    """The groups in each bin; none for an instance without groups."""
    found: dict[int, list[dict[str, int]]] = {}
    if instance.groups:
        for b, group, requests, tokens in zip(*(column.tolist() for column in group_parts(instance, plan)), strict=True):
            rows = found.setdefault(b, [])
            if group < instance.groups:  # a request without a group is one of its own, with a number that no instance states
                rows.append({"group": group, "requests": requests, "tokens": tokens})
    return found


def _replayed(instance: RequestPacking, document: PlanDocument) -> tuple[StagedPlan, Run]:
    assert isinstance(document.plan, StagedPlan)
    try:
        return document.plan, replay(instance, document.plan)
    except InputError as error:
        raise error.within(document.source) from None


def _head(schema: str, instance: RequestPacking) -> dict[str, Any]:
    return {
        "schema": schema,
        "instance": {"name": instance.name, "sha256": instance.digest()},
        "requests": instance.count,
        "provenance": {key: value for key, value in instance.provenance.items() if key != "notices"},
    }


def _records(record: IntArray | None, requests: IntArray) -> dict[str, list[int]]:
    return {} if record is None else {"records": record[requests].tolist()}


def _plain(values: FloatArray) -> list[float | None]:
    """To a nanosecond, without the last digits of sums; JSON has no infinity."""
    return [value if np.isfinite(value) else None for value in np.round(values, 9).tolist()]


def _lines(head: dict[str, Any], lines: Iterable[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in (head, *lines))


__all__ = ["batches", "finish_s", "group_parts", "queues", "stages"]
