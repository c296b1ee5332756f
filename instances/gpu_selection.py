"""GPU selection: which GPU types, and how many replicas of each, serve a load at least cost.

The question and the field names follow Mélange (Griggs et al., arXiv 2404.14527) with caps, shared GPU pools and continuous
shares added. Rates are requests a second, prices US dollars an hour **for one replica**, throughputs requests a second that one
replica sustains within the latency limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from headroom.instances.arrays import NumbersOrNulls
from headroom.instances.base import Instance, Record, rule
from headroom.instances.errors import shown
from headroom.instances.gpu_selection_epochs import Epochs

FloatArray = npt.NDArray[np.float64]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=0, le=10**9)]
TokenRange = Annotated[tuple[Annotated[int, Field(ge=0, le=10**9)], Annotated[int, Field(ge=0, le=10**9)]], Field(strict=False)]


def _slices(value: object) -> object:
    """None, one number, or a tuple with one for each work item."""
    single = value is None or (isinstance(value, int) and not isinstance(value, bool))
    numbers = [value] if single else list(value) if isinstance(value, (list, tuple)) else None
    if numbers is None:
        raise rule(f"slices must be a whole number, a list with one for each work item, or null, got {shown(value)}")
    for i, number in enumerate(numbers):
        if number is None and single:
            return None
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MOST_SLICES:
            raise rule(f"slices{'' if single else f'[{i}]'} must be a whole number from 1 to {MOST_SLICES}, got {shown(number)}")
    return value if single else tuple(numbers)


MOST_SLICES = 10**6
Slices = Annotated[
    int | tuple[int, ...] | None,
    PlainValidator(_slices),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MOST_SLICES},
                {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": MOST_SLICES}},
                {"type": "null"},
            ]
        }
    ),
]


class WorkItem(Record):
    """A bucket of requests of similar size, or one phase of it.

    `prompt_tokens` and `output_tokens` are inclusive ranges [least, most]; they describe the bucket for routers and plots and enter no
    constraint.
    """

    name: Name
    rate_per_s: Annotated[float, Field(ge=0)]
    prompt_tokens: TokenRange | None = None
    output_tokens: TokenRange | None = None
    phase: Literal["prefill", "decode"] | None = None


class GpuType(Record):
    """A replica type: the hardware that serves one copy of the model, rented as a whole."""

    name: Name
    price_usd_per_h: Annotated[float, Field(ge=0)]
    max_count: Count | None = None
    min_count: Count = 0
    pool: Name | None = None
    gpus_per_replica: Annotated[int, Field(ge=1, le=10**6)] = 1


class Pool(Record):
    """A stock of physical GPUs that several replica types draw on."""

    name: Name
    max_gpus: Count


class GpuSelection(Instance):
    """One GPU-selection problem (see `headroom.formulations.gpu_selection` for its mathematics).

    Fields: `work` [I], `gpus` [G], `pools` [P], `throughput_per_s` [gpu][work] in requests/s with null where a type cannot serve an item
    within the limits, `max_utilisation` in (0, 1], `slices` (shares are multiples of 1/slices; null: any share),
    `packing` ("pooled": a type's replicas share its load; "per_replica": every slice goes whole onto one replica, and `slices` is then
    one number or one for each work item), `spare_replicas` (1: the plan must survive the loss of any one replica; pooled, without epochs),
    `epochs` (rates that change over time; pooled; `work[].rate_per_s` then only describes). Raises `InputError` for anything else.
    """

    family: ClassVar[str] = "gpu_selection"
    array_fields: ClassVar[tuple[str, ...]] = ("throughput_per_s", "epochs.rate_per_s")

    work: Annotated[tuple[WorkItem, ...], Field(min_length=1, strict=False)]
    gpus: Annotated[tuple[GpuType, ...], Field(min_length=1, strict=False)]
    pools: Annotated[tuple[Pool, ...], Field(strict=False)] = ()
    throughput_per_s: Annotated[FloatArray, NumbersOrNulls("throughput_per_s")]
    max_utilisation: Annotated[float, Field(gt=0, le=1)] = 1.0
    slices: Slices = None
    packing: Literal["pooled", "per_replica"] = "pooled"
    spare_replicas: Literal[0, 1] = 0
    epochs: Epochs | None = None

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for field, records in (("work", self.work), ("gpus", self.gpus), ("pools", self.pools)):
            _unique_names(field, records)
        expected = (len(self.gpus), len(self.work))
        if self.throughput_per_s.shape != expected:
            rows, columns = self.throughput_per_s.shape
            wanted = f"a row for each of {expected[0]} gpus and a column for each of {expected[1]} work items"
            raise rule(f"throughput_per_s must have {wanted}, got {rows} x {columns}")
        pools = {pool.name for pool in self.pools}
        for g, gpu in enumerate(self.gpus):
            if gpu.pool is not None and gpu.pool not in pools:
                raise rule(f"gpus[{g}].pool must name one of the pools {sorted(pools)}, got {gpu.pool!r}")
            if gpu.max_count is not None and gpu.max_count < gpu.min_count:
                raise rule(f"gpus[{g}].max_count must be at least min_count {gpu.min_count}, got {gpu.max_count}")
        for i, item in enumerate(self.work):
            for field in ("prompt_tokens", "output_tokens"):
                tokens = getattr(item, field)
                if tokens is not None and tokens[0] > tokens[1]:
                    raise rule(f"work[{i}].{field} must be [least, most], got {list(tokens)}")
        self._check_mode()
        with np.errstate(over="ignore"):
            load = self.rate_per_s / self.throughput_per_s
            # The sums that evaluate and the bounds form must stay finite too.
            odd = np.argwhere((load > 1e14) | ((load < 1e-250) & (self.rate_per_s > 0)))
        if len(odd):
            g, i = odd[0]
            raise rule(f"work[{i}].rate_per_s / throughput_per_s[{g}][{i}] must be between 1e-250 and 1e14 replicas (else null), got {load[g, i]:g}")
        if max(gpu.price_usd_per_h for gpu in self.gpus) > 1e50:
            raise rule("gpus: price_usd_per_h above 1e50 cannot be summed")
        return self

    def _check_mode(self) -> None:
        if isinstance(self.slices, tuple):
            if self.packing != "per_replica":
                raise rule("slices must be one number or null unless packing is 'per_replica', got a list")
            if len(self.slices) != len(self.work):
                raise rule(f"slices must be one number or one for each of {len(self.work)} work items, got {len(self.slices)}")
        if self.packing == "per_replica":
            if self.slices is None:
                raise rule("slices must be given when packing is 'per_replica', got null")
            if self.epochs is not None:
                raise rule("packing must be 'pooled' when epochs are given, got 'per_replica'")
        if self.spare_replicas and self.mode != "pooled":
            raise rule(f"spare_replicas must be 0 when {'epochs are given' if self.epochs is not None else 'packing is per_replica'}, got 1")
        if self.epochs is not None:
            self.epochs.check_shapes(len(self.gpus), len(self.work))
            with np.errstate(over="ignore"):
                peak = self.epochs.rate_per_s.max(axis=0) / self.throughput_per_s
                positive = np.where(self.epochs.rate_per_s > 0, self.epochs.rate_per_s, np.inf).min(axis=0) / self.throughput_per_s
            odd = np.argwhere((peak > 1e14) | (positive < 1e-250))
            if len(odd):
                g, i = odd[0]
                raise rule(f"epochs.rate_per_s[..][{i}] / throughput_per_s[{g}][{i}] must be between 1e-250 and 1e14 replicas (else null)")

    @property
    def mode(self) -> str:
        """Which problem this is: "pooled", "per_replica" or "epochs"."""
        return "epochs" if self.epochs is not None else self.packing

    @property
    def pooled_slices(self) -> int | None:
        """`slices` where they are one number or null: everywhere but in per_replica packing."""
        assert not isinstance(self.slices, tuple)
        return self.slices

    @cached_property
    def slice_counts(self) -> npt.NDArray[np.int64]:
        """Slices of each work item [I] under per_replica packing."""
        assert self.slices is not None
        return np.array(self.slices if isinstance(self.slices, tuple) else [self.slices] * len(self.work), dtype=np.int64)

    @cached_property
    def rate_per_s(self) -> FloatArray:
        """Rate of each work item [I], requests/s."""
        return _frozen([item.rate_per_s for item in self.work])

    @cached_property
    def price_usd_per_h(self) -> FloatArray:
        """Price of one replica of each type [G], USD/h."""
        return _frozen([gpu.price_usd_per_h for gpu in self.gpus])

    @cached_property
    def can_serve(self) -> npt.NDArray[np.bool_]:
        """Whether a type can serve an item at all [G][I]."""
        mask: npt.NDArray[np.bool_] = ~np.isnan(self.throughput_per_s)
        mask.flags.writeable = False
        return mask

    @cached_property
    def load_replicas(self) -> FloatArray:
        """Replicas of each type kept fully busy by all of an item [G][I]: rate / throughput; +inf where it cannot serve."""
        load = np.where(self.can_serve, self.rate_per_s / np.where(self.can_serve, self.throughput_per_s, 1.0), np.inf)
        load.flags.writeable = False
        return load

    @cached_property
    def min_count(self) -> npt.NDArray[np.int64]:
        """Least replicas of each type [G]."""
        return np.array([gpu.min_count for gpu in self.gpus], dtype=np.int64)

    @cached_property
    def max_count(self) -> FloatArray:
        """Most replicas of each type [G]; +inf where there is no cap. A pool's limit is not folded in."""
        return _frozen([math.inf if gpu.max_count is None else gpu.max_count for gpu in self.gpus])

    @cached_property
    def pool_gpus(self) -> FloatArray:
        """GPUs that one replica of a type draws from a pool [P][G]."""
        rows = [[float(gpu.gpus_per_replica) if gpu.pool == pool.name else 0.0 for gpu in self.gpus] for pool in self.pools]
        return np.array(rows, dtype=np.float64).reshape(len(self.pools), len(self.gpus))

    @cached_property
    def pool_limit(self) -> FloatArray:
        """GPUs in each pool [P]."""
        return _frozen([float(pool.max_gpus) for pool in self.pools])

    @cached_property
    def loaded_items(self) -> npt.NDArray[np.int64]:
        """Indices of the items with a positive rate; the others ask for nothing."""
        return np.flatnonzero(self.rate_per_s > 0)


def _frozen(values: Sequence[float]) -> FloatArray:
    array = np.array(values, dtype=np.float64)
    array.flags.writeable = False
    return array


def _unique_names(field: str, records: Sequence[Any]) -> None:
    seen: dict[str, int] = {}
    for index, record in enumerate(records):
        if record.name in seen:
            raise rule(f"{field}[{index}].name must be unique, got {record.name!r} as in {field}[{seen[record.name]}]")
        seen[record.name] = index
