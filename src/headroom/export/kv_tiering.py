"""KV tiering plans for runtimes that place blocks: one schedule document, or a stream of what changes in each step.

Both name blocks by their number in the instance and tiers by name. Within a step deaths come first, then moves and births, then the step's reads;
a move's read from the old tier serves the block's own read of that step. With `inclusive` the last tier keeps a copy of every block; both formats
say where a block is read, so a move there is listed although nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headroom.formulations.kv_tiering import Replay, TieringPlan, evaluation_of, replay
from headroom.instances.errors import InputError
from headroom.instances.kv_tiering import KvTiering

if TYPE_CHECKING:
    from headroom.documents import PlanDocument

SCHEDULE_SCHEMA = "headroom/kv-schedule/1"
RESIDENCY_SCHEMA = "headroom/kv-residency/1"
IntArray = npt.NDArray[np.int64]


def schedule(instance: KvTiering, document: PlanDocument) -> str:
    """One JSON document: who is where at first, then who goes where.

    {"schema": "headroom/kv-schedule/1", "instance": {"name", "sha256"}, "tiers": [{"name", "capacity_bytes" (null: unbounded)}, …], "steps": T,
    "blocks": N, "block_bytes": bytes (one number, or one a block), "inclusive": whether the last tier keeps copies, "provenance": where the instance
    comes from, for an imported trace with its numbering, "total_s": seconds of all steps,
    "initial": {tier: [block, …]} before step 0,
    "births": {step: {tier: [block, …]}}, "deaths": {step: [block, …]}, "moves": {step: [{"from": tier, "to": tier, "blocks": [block, …],
    "bytes": their bytes}, …]}}.

    Steps stand in the keys, rising, those without a change left out; blocks rise within a list; whoever dies at the end of the trace is not
    listed. Raises `InputError` for a plan that does not fit. O(N log N + moves log moves + reads).
    """
    plan, done = _replayed(instance, document)
    names, size = [tier.name for tier in instance.tiers], instance.size
    born, gone = _births(instance, plan), _deaths(instance, plan)
    moves = plan.moves
    moved: dict[int, list[dict[str, Any]]] = {}
    for t, k, found in _grouped(moves.step, moves_from(plan) * len(names) + moves.to_tier, moves.block):
        pair = {"from": names[k // len(names)], "to": names[k % len(names)], "blocks": found.tolist(), "bytes": _plain(size[found].sum())}
        moved.setdefault(t, []).append(pair)
    births: dict[int, dict[str, list[int]]] = {}
    for t, k, found in _grouped(*born):
        births.setdefault(t, {})[names[k]] = found.tolist()
    deaths = {t: found.tolist() for t, _, found in _grouped(gone[0], np.zeros_like(gone[1]), gone[2])}
    head = _head(SCHEDULE_SCHEMA, instance) | {"total_s": evaluation_of(instance, done).objective, "initial": births.pop(0, {})}
    tables = (("births", births), ("deaths", deaths), ("moves", moved))
    return "{\n" + ",\n".join([*(_pair(name, value) for name, value in head.items()), *(_table(*each) for each in tables)]) + "\n}\n"


def residency(instance: KvTiering, document: PlanDocument) -> str:
    """JSON lines to stream: a header, then a line for each step with what changes in it.

    Header: the schedule's fields up to "provenance", with "schema": "headroom/kv-residency/1". Line of step t: {"step": t, "leave": {tier:
    [block, …]}, "enter": {tier: [block, …]}, "occupancy_bytes": [bytes in each tier, in the header's order], "seconds": the step's time}; "leave"
    and "enter" are left out where nobody does. Start from empty tiers, and in each step take out "leave", then put in "enter": the tiers then hold
    what the plan says. Step 0 lets in who is there at first; a birth only enters, a death only leaves (in the step in which the block is first
    gone), a move does both.

    Raises `InputError` for a plan that does not fit. O(N log N + moves log moves + reads).
    """
    plan, done = _replayed(instance, document)
    names = [tier.name for tier in instance.tiers]
    born, gone = _births(instance, plan), _deaths(instance, plan)
    step, block = plan.moves.step, plan.moves.block
    enter = _by_step(names, *_joined(born, (step, plan.moves.to_tier, block)))
    leave = _by_step(names, *_joined(gone, (step, moves_from(plan), block)))
    held, seconds = done.occupancy_bytes.tolist(), done.step_s.tolist()
    lines = [json.dumps(_head(RESIDENCY_SCHEMA, instance), ensure_ascii=False)]
    for t in range(instance.steps):
        changes = {name: each[t] for name, each in (("leave", leave), ("enter", enter)) if t in each}
        line = {"step": t, **changes, "occupancy_bytes": [_plain(value) for value in held[t]], "seconds": seconds[t]}
        lines.append(json.dumps(line, ensure_ascii=False))
    return "\n".join(lines) + "\n"


def moves_from(plan: TieringPlan) -> IntArray:
    """The tier that each move of a plan leaves, in the order of `plan.moves`. O(moves log moves)."""
    moves = plan.moves
    order = np.lexsort((moves.step, moves.block))
    block, to_tier = moves.block[order], moves.to_tier[order]
    before = np.empty(len(order), np.int64)
    before[1:] = to_tier[:-1]
    first = np.ones(len(order), bool)
    first[1:] = block[1:] != block[:-1]
    before[first] = plan.initial_tier[block[first]]
    found = np.empty(len(order), np.int64)
    found[order] = before
    return found


def _replayed(instance: KvTiering, document: PlanDocument) -> tuple[TieringPlan, Replay]:
    assert isinstance(document.plan, TieringPlan)
    try:
        return document.plan, replay(instance, document.plan)
    except InputError as error:
        raise error.within(document.source) from None


def _births(instance: KvTiering, plan: TieringPlan) -> tuple[IntArray, IntArray, IntArray]:
    """(step, tier, block) of every birth, those at step 0 too."""
    return instance.birth, plan.initial_tier, np.arange(instance.blocks)


def _deaths(instance: KvTiering, plan: TieringPlan) -> tuple[IntArray, IntArray, IntArray]:
    """(step, tier, block) of every death within the trace."""
    last, moves = plan.initial_tier.copy(), plan.moves
    order = np.argsort(moves.step, kind="stable")
    last[moves.block[order]] = moves.to_tier[order]  # of several moves of a block the latest is written last
    within = np.flatnonzero(instance.death < instance.steps)
    return instance.death[within], last[within], within


def _joined(*events: tuple[IntArray, IntArray, IntArray]) -> tuple[IntArray, IntArray, IntArray]:
    step, tier, block = (np.concatenate(column) for column in zip(*events, strict=True))
    return step, tier, block


def _grouped(step: IntArray, kind: IntArray, block: IntArray) -> Iterator[tuple[int, int, IntArray]]:
    """The events by step and kind, blocks rising."""
    order = np.lexsort((block, kind, step))
    step, kind, block = step[order], kind[order], block[order]
    if not len(step):
        return
    first = np.flatnonzero(np.concatenate(([True], (step[1:] != step[:-1]) | (kind[1:] != kind[:-1]))))
    for begin, end in zip(first.tolist(), [*first[1:].tolist(), len(step)], strict=True):
        yield int(step[begin]), int(kind[begin]), block[begin:end]


def _by_step(names: Sequence[str], step: IntArray, tier: IntArray, block: IntArray) -> dict[int, dict[str, list[int]]]:
    found: dict[int, dict[str, list[int]]] = {}
    for t, k, blocks in _grouped(step, tier, block):
        found.setdefault(t, {})[names[k]] = blocks.tolist()
    return found


def _head(schema: str, instance: KvTiering) -> dict[str, Any]:
    sizes = instance.block_bytes
    return {
        "schema": schema,
        "instance": {"name": instance.name, "sha256": instance.digest()},
        "tiers": [
            {"name": tier.name, "capacity_bytes": None if tier.capacity_bytes is None else _plain(tier.capacity_bytes)} for tier in instance.tiers
        ],
        "steps": instance.steps,
        "blocks": instance.blocks,
        "block_bytes": [_plain(value) for value in sizes] if isinstance(sizes, np.ndarray) else _plain(sizes),
        "inclusive": instance.inclusive,
        "provenance": {key: value for key, value in instance.provenance.items() if key != "notices"},
    }


def _plain(value: Any) -> int | float:
    """Whole numbers of bytes as such, exact in any reader."""
    value = float(value)
    return int(value) if value.is_integer() and abs(value) < 2.0**53 else value


def _pair(name: str, value: Any) -> str:
    return f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"


def _table(name: str, rows: Mapping[int, Any]) -> str:
    """A field whose steps have a line each: short enough to read and to compare."""
    lines = ",\n".join(_pair(str(t), rows[t]) for t in sorted(rows))
    return f"{json.dumps(name)}: {{\n{lines}\n}}" if lines else f"{json.dumps(name)}: {{}}"


__all__ = ["moves_from", "residency", "schedule"]
