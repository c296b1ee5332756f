"""Request packing: offline backlogs of requests into token-limited bins, or through slots with prefill and decode stages.

Two objectives over the same requests. "bins": the fewest bins (micro-batches, GPUs with a KV budget) of `capacity_tokens`; "makespan": the least
time to run everything through `slots` that decode side by side and stop for each prefill. The mathematics stands in
`headroom.formulations.request_packing`.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from headroom.instances.arrays import NumberOrNumbers, Numbers
from headroom.instances.base import Instance, Record, rule

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MOST_TOKENS = 2**38
"""Of one request, one bin or one prefill: sums over 2^20 of them are exact in 64 bits."""
MOST_REQUESTS = 2**22
Count = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]


class PrefillLevel(Record):
    """A prefill of at most `max_tokens` prompt tokens (null: any number) takes `time_s`."""

    max_tokens: Count | None
    time_s: Seconds


class Requests(Record):
    """The backlog, request by request [N]. `group`: shared prefix or adapter, 0 .. G - 1, -1: none; null: no request has one.

    `prompt_tokens` are a request's own, without the prefix that its group shares (that is in the instance's `group_overhead_tokens`). `record`: its
    number in the file that it comes from, 0 the first; null: the instance's order. Exports name it beside the request's number in the instance.
    """

    optional_arrays: ClassVar[frozenset[str]] = frozenset({"group", "record"})

    prompt_tokens: Annotated[IntArray, Numbers("requests.prompt_tokens", "[request]", whole=True, most=MOST_TOKENS)]
    output_tokens: Annotated[IntArray, Numbers("requests.output_tokens", "[request]", whole=True, most=MOST_TOKENS)]
    group: Annotated[IntArray, Numbers("requests.group", "[request]", whole=True, least=-1, most=MOST_REQUESTS)] | None = None
    record: Annotated[IntArray, Numbers("requests.record", "[request]", whole=True, most=2**53)] | None = None


class RequestPacking(Instance):
    """One packing problem. Raises `InputError` with one line for anything else.

    "bins" needs `capacity_tokens`; `group_overhead_tokens` (one number or [G]) is what a group takes once in each bin that it is in, and a group's
    sizes in a bin add up to the next multiple of `padding_multiple`. "makespan" needs `slots` and `decode_step_s`; `prefill_levels` (none: prefill
    takes no time) have rising tokens and times. What an objective does not use is null (0, 1, none).
    """

    family: ClassVar[str] = "request_packing"
    array_fields: ClassVar[tuple[str, ...]] = (
        "requests.prompt_tokens", "requests.output_tokens", "requests.group", "requests.record",
        "group_overhead_tokens",
    )  # fmt: skip

    requests: Requests
    objective: Literal["bins", "makespan"]
    capacity_tokens: Count | None = None
    group_overhead_tokens: Annotated[int | IntArray, NumberOrNumbers("group_overhead_tokens", "group", whole=True, most=MOST_TOKENS)] = 0
    padding_multiple: Count = 1
    slots: Annotated[int, Field(ge=1, le=2**20)] | None = None
    prefill_levels: Annotated[tuple[PrefillLevel, ...], Field(max_length=1000, strict=False)] = ()
    decode_step_s: Annotated[float, Field(gt=0, le=1e6)] | None = None

    def dump(self, context: Any = None) -> dict[str, Any]:
        """The fields in JSON types; those at their defaults are left out (pydantic cannot compare an array with its default)."""
        context = dict(context or {})
        arrays = {"group_overhead_tokens"} if isinstance(self.group_overhead_tokens, np.ndarray) else set()
        rest = self.model_dump(exclude_defaults=True, exclude=arrays | {"requests"}, context=context)
        return {"requests": self.requests.dump(context)} | rest | self.model_dump(include=arrays, context=context)

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        self._check_requests()
        self._check_objective()
        self._check_levels()
        return self

    def _check_requests(self) -> None:
        count = len(self.requests.prompt_tokens)
        if not 1 <= count <= MOST_REQUESTS:
            raise rule(f"requests.prompt_tokens must have 1 to {MOST_REQUESTS} entries, got {count}")
        for name in ("output_tokens", "group", "record"):
            array = getattr(self.requests, name)
            if array is not None and len(array) != count:
                raise rule(f"requests.{name} must have {count} entries, one for each in requests.prompt_tokens, got {len(array)}")
        overhead = self.group_overhead_tokens
        if isinstance(overhead, np.ndarray):
            if self.requests.group is None:
                raise rule("group_overhead_tokens must be one number because no request has a group, got a list")
            if len(overhead) < self.groups:
                raise rule(f"group_overhead_tokens must have {self.groups} entries, one for each group, got {len(overhead)}")

    def _check_objective(self) -> None:
        needed: tuple[str, ...]
        unused: dict[str, Any]
        if self.objective == "bins":
            needed = ("capacity_tokens",)
            unused = {"slots": None, "decode_step_s": None}
            if self.prefill_levels:
                raise rule("prefill_levels must be empty because the objective is 'bins', got some")
            empty = np.flatnonzero(self.size < 1)
            if len(empty):
                raise rule(f"requests[{empty[0]}] must have at least one token in all because the objective is 'bins', got none")
        else:
            needed = ("slots", "decode_step_s")
            unused = {"capacity_tokens": None, "padding_multiple": 1}
            if self.requests.group is not None:
                raise rule("requests.group must be null because the objective is 'makespan', got a list")
            if isinstance(self.group_overhead_tokens, np.ndarray) or self.group_overhead_tokens:
                raise rule("group_overhead_tokens must be 0 because the objective is 'makespan', got another value")
            without = np.flatnonzero(self.requests.output_tokens < 1)
            if len(without):
                raise rule(f"requests.output_tokens[{without[0]}] must be at least 1 because the objective is 'makespan', got 0")
        for name in needed:
            if getattr(self, name) is None:
                raise rule(f"{name} must be given because the objective is {self.objective!r}, got null")
        for name, value in unused.items():
            if getattr(self, name) != value:
                expected = "null" if value is None else value
                raise rule(f"{name} must be {expected} because the objective is {self.objective!r}, got {getattr(self, name)}")

    def _check_levels(self) -> None:
        for k, (before, level) in enumerate(zip(self.prefill_levels, self.prefill_levels[1:], strict=False), 1):
            if before.max_tokens is None:
                raise rule(f"prefill_levels[{k - 1}].max_tokens must be a number because only the last level may take any, got null")
            if level.max_tokens is not None and level.max_tokens <= before.max_tokens:
                raise rule(f"prefill_levels[{k}].max_tokens must be above {before.max_tokens}, the level before, got {level.max_tokens}")
            if level.time_s <= before.time_s:
                raise rule(f"prefill_levels[{k}].time_s must be above {before.time_s:g}, the level before, got {level.time_s:g}")

    @property
    def count(self) -> int:
        """N."""
        return len(self.requests.prompt_tokens)

    @cached_property
    def size(self) -> IntArray:
        """Tokens of each request in a bin [N]: prompt (without the shared prefix) and output."""
        found: IntArray = self.requests.prompt_tokens + self.requests.output_tokens
        found.flags.writeable = False
        return found

    @cached_property
    def groups(self) -> int:
        """G: the highest group plus one."""
        return 0 if self.requests.group is None else int(self.requests.group.max(initial=-1)) + 1

    @cached_property
    def group_of(self) -> IntArray:
        """Group of each request [N]; those without one are numbered from G on, each its own."""
        group = np.full(self.count, -1, np.int64) if self.requests.group is None else self.requests.group.copy()
        alone = group < 0
        group[alone] = self.groups + np.arange(int(alone.sum()))
        group.flags.writeable = False
        return group

    @cached_property
    def overhead(self) -> IntArray:
        """Tokens that each group, single requests' own included, takes once in a bin: as many as `group_of` has numbers."""
        found = np.zeros(int(self.group_of.max()) + 1, np.int64)
        given = self.group_overhead_tokens
        found[: self.groups] = given[: self.groups] if isinstance(given, np.ndarray) else given
        found.flags.writeable = False
        return found

    @cached_property
    def plain(self) -> bool:
        """Whether "bins" is plain bin packing of `padded` sizes: groups share nothing and padding is each request's own."""
        shared = self.groups > 0 and (self.padding_multiple > 1 or bool(self.overhead.any()))
        return not shared

    @cached_property
    def padded(self) -> IntArray:
        """Tokens of each request alone in a bin [N], its group's overhead included."""
        multiple = self.padding_multiple
        found: IntArray = -(-self.size // multiple) * multiple + self.overhead[self.group_of]
        found.flags.writeable = False
        return found

    @cached_property
    def level_tokens(self) -> IntArray:
        """Prompt tokens that each prefill level takes [L]; the last may be `MOST_TOKENS` times `MOST_REQUESTS`, which is any number."""
        return np.array([MOST_TOKENS * MOST_REQUESTS if level.max_tokens is None else level.max_tokens for level in self.prefill_levels], np.int64)

    @cached_property
    def level_s(self) -> FloatArray:
        """Seconds of each prefill level [L]."""
        return np.array([level.time_s for level in self.prefill_levels], np.float64)

    def prefill_s(self, tokens: IntArray) -> FloatArray:
        """Seconds of prefills of so many prompt tokens, infinite above the last level; of prefills that admit something."""
        if not self.prefill_levels:
            return np.zeros(np.shape(tokens))
        found: FloatArray = np.append(self.level_s, np.inf)[np.searchsorted(self.level_tokens, tokens)]
        return found


__all__ = ["PrefillLevel", "RequestPacking", "Requests"]
