"""The `epochs` of a GPU-selection instance: rates that change over time, and what it costs to follow them."""

from __future__ import annotations

from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from headroom.instances.base import Record, rule
from headroom.instances.errors import shown

FloatArray = npt.NDArray[np.float64]
MOST_NUMBERS = 50_000_000
"""More rates than this (epochs x work items) are refused: 400 MB."""


def _rates(value: object) -> FloatArray:
    name = "epochs.rate_per_s"
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiu" or value.ndim != 2:
            raise rule(f"{name} must be a two-dimensional array of numbers [epoch][work], got {value.ndim} dimensions of {value.dtype}")
        array = np.array(value, dtype=np.float64)
    elif isinstance(value, (list, tuple)):
        array = _table(name, value)
    else:
        raise rule(f"{name} must be a list of lists of numbers [epoch][work], got {shown(value)}")
    if array.size > MOST_NUMBERS:
        raise rule(f"{name} must hold at most {MOST_NUMBERS} numbers, got {array.size}")
    bad = np.argwhere(~(np.isfinite(array) & (array >= 0)))
    if len(bad):
        t, i = bad[0]
        raise rule(f"{name}[{t}][{i}] must be a finite number of at least 0, got {array[t, i]:g}")
    array += 0.0  # no negative zeros
    array.flags.writeable = False
    return array


def _table(name: str, rows: list[Any] | tuple[Any, ...]) -> FloatArray:
    for t, row in enumerate(rows):
        if not isinstance(row, (list, tuple)):
            raise rule(f"{name}[{t}] must be a list of numbers, got {shown(row)}")
        if len(row) != len(rows[0]):
            raise rule(f"{name}[{t}] has {len(row)} entries, expected {len(rows[0])} as in {name}[0]")
        for i, item in enumerate(row):
            if isinstance(item, bool) or not isinstance(item, (int, float)):
                raise rule(f"{name}[{t}][{i}] must be a number, got {shown(item)}")
    try:
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(rows[0]) if rows else 0)
    except OverflowError:
        raise rule(f"{name} must hold finite numbers") from None


RateTable = Annotated[
    np.ndarray,
    BeforeValidator(_rates),
    PlainSerializer(lambda array: array.tolist()),
    WithJsonSchema({"type": "array", "items": {"type": "array", "items": {"type": "number", "minimum": 0}}}),
]
Cost = Annotated[float, Field(ge=0, le=1e50)]
Count = Annotated[int, Field(ge=0, le=10**9)]


class Epochs(Record):
    """Equal stretches of time, each with rates of its own; a fleet may change from one to the next.

    Fields: `epoch_s` length of an epoch, s; `rate_per_s` [epoch][work]; `initial_count` [gpu] replicas that stand and serve before epoch 0
    (null: the fleet of epoch 0 is there and free of starts; more than `max_count` or a pool allows may stand: what is too much stops in epoch 0,
    free of charge, so that a cap can be swept below what stands); `start_cost_usd` [gpu], paid once for each replica started;
    `start_delay_epochs`: a replica is rented but serves nothing in that many epochs from its start. Stopping is free and at once.
    """

    epoch_s: Annotated[float, Field(gt=0, le=1e9)]
    rate_per_s: RateTable
    initial_count: Annotated[tuple[Count, ...], Field(strict=False)] | None = None
    start_cost_usd: Annotated[tuple[Cost, ...], Field(strict=False)]
    start_delay_epochs: Annotated[int, Field(ge=0, le=10**6)] = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rate_per_s.shape[0] < 1:
            raise rule("epochs.rate_per_s must have at least one epoch, got none")
        return self

    def check_shapes(self, gpus: int, work: int) -> None:
        """Raises the rule that names the field whose length does not fit the instance."""
        if self.rate_per_s.shape[1] != work:
            raise rule(f"epochs.rate_per_s must have a column for each of {work} work items, got {self.rate_per_s.shape[1]}")
        if len(self.start_cost_usd) != gpus:
            raise rule(f"epochs.start_cost_usd must have an entry for each of {gpus} gpus, got {len(self.start_cost_usd)}")
        if self.initial_count is not None and len(self.initial_count) != gpus:
            raise rule(f"epochs.initial_count must be null or have an entry for each of {gpus} gpus, got {len(self.initial_count)}")
