"""KV-cache tiering: which memory tier holds each block of the KV cache, step by step.

Blocks (a token's entry of one layer, a page of tokens, a request's prefix: whatever is moved as a whole) are read at some steps of a trace; tiers
differ in capacity and bandwidth and work in parallel. Names follow Fang et al. (arXiv 2508.13231) and the paged caches of serving systems. The
mathematics stands in `headroom.formulations.kv_tiering`.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from headroom.instances.arrays import NumberOrNumbers, Numbers
from headroom.instances.base import Instance, Record, rule

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
MOST_BYTES = 1e18
Bandwidth = Annotated[float, Field(ge=1.0, le=1e18)]


class Tier(Record):
    """One memory: `capacity_bytes` (null: unbounded), bandwidths of reading and writing in bytes a second."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    capacity_bytes: Annotated[float, Field(ge=0, le=MOST_BYTES)] | None
    read_bytes_per_s: Bandwidth
    write_bytes_per_s: Bandwidth


class Reads(Record):
    """The trace, as compressed sparse rows: step t reads `block[indptr[t]:indptr[t + 1]]`, each whole or `bytes` of it."""

    optional_arrays: ClassVar[frozenset[str]] = frozenset({"bytes"})

    indptr: Annotated[IntArray, Numbers("reads.indptr", "[step + 1]", whole=True, most=2**62)]
    block: Annotated[npt.NDArray[np.int32], Numbers("reads.block", "[read]", whole=True, most=2**31 - 1, narrow=True)]
    bytes: Annotated[FloatArray, Numbers("reads.bytes", "[read]", most=MOST_BYTES)] | None = None


class KvTiering(Instance):
    """One tiering problem. Raises `InputError` with one line for anything else.

    `tiers` fastest first, the last one, and only it, unbounded; `block_bytes` and `birth_step` one number for all blocks or [N]; `death_step` [N]
    (or one number): the first step in which a block is gone, null: all stay to the end; `reads` by step; `fixed_read_bytes` (one number or [T]):
    read from tier 0 in every step, as weights are, taking no capacity; `inclusive`: the last tier keeps a copy of every block.
    N is the length of the arrays given by block, or the highest block read plus one where all are single numbers.
    """

    family: ClassVar[str] = "kv_tiering"
    array_fields: ClassVar[tuple[str, ...]] = (
        "reads.indptr",
        "reads.block",
        "reads.bytes",
        "block_bytes",
        "birth_step",
        "death_step",
        "fixed_read_bytes",
    )

    tiers: Annotated[tuple[Tier, ...], Field(min_length=1, max_length=8, strict=False)]
    block_bytes: Annotated[float | FloatArray, NumberOrNumbers("block_bytes", "block", least=1.0, most=MOST_BYTES)]
    birth_step: Annotated[int | IntArray, NumberOrNumbers("birth_step", "block", whole=True, most=2**31 - 1)] = 0
    death_step: Annotated[int | IntArray, NumberOrNumbers("death_step", "block", whole=True, most=2**31 - 1)] | None = None
    reads: Reads
    fixed_read_bytes: Annotated[float | FloatArray, NumberOrNumbers("fixed_read_bytes", "step", most=MOST_BYTES)] = 0.0
    inclusive: bool = False

    def dump(self, context: Any = None) -> dict[str, Any]:
        """The fields in JSON types; those at their defaults are left out (pydantic cannot compare an array with its default)."""
        arrays = {name for name in ("birth_step", "death_step", "fixed_read_bytes") if isinstance(getattr(self, name), np.ndarray)}
        context = dict(context or {})
        rest = self.model_dump(exclude_defaults=True, exclude=arrays | {"block_bytes", "reads"}, context=context)
        given = self.model_dump(include=arrays | {"block_bytes"}, context=context)
        return rest | given | {"reads": self.reads.dump(context)}

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        self._check_tiers()
        self._check_lengths()
        self._check_reads()
        return self

    def _check_tiers(self) -> None:
        seen: set[str] = set()
        for k, tier in enumerate(self.tiers):
            if tier.name in seen:
                raise rule(f"tiers[{k}].name must differ from the others, got {tier.name!r} again")
            seen.add(tier.name)
            if tier.capacity_bytes is None and k < len(self.tiers) - 1:
                raise rule(f"tiers[{k}].capacity_bytes must be a number because only the last tier is unbounded, got null")
        if self.tiers[-1].capacity_bytes is not None:
            last = len(self.tiers) - 1
            raise rule(f"tiers[{last}].capacity_bytes must be null because the last tier is unbounded, got {self.tiers[last].capacity_bytes:g}")

    def _check_lengths(self) -> None:
        lengths = {name: len(value) for name in ("block_bytes", "birth_step", "death_step") if isinstance(value := getattr(self, name), np.ndarray)}
        if len(set(lengths.values())) > 1:
            (first, n), *others = lengths.items()
            other, m = next((name, length) for name, length in others if length != n)
            raise rule(f"{other} must have {n} entries, one for each block as in {first}, got {m}")
        indptr, block = self.reads.indptr, self.reads.block
        if len(indptr) < 2 or indptr[0] != 0:
            got = f"{len(indptr)} entries" if len(indptr) < 2 else f"{indptr[0]} first"
            raise rule(f"reads.indptr must begin with 0 and have an entry more than there are steps, at least 2, got {got}")
        falling = np.flatnonzero(np.diff(indptr) < 0)
        if len(falling):
            t = int(falling[0])
            raise rule(f"reads.indptr[{t + 1}] must be at least {indptr[t]}, as reads.indptr[{t}] is, got {indptr[t + 1]}")
        if indptr[-1] != len(block):
            raise rule(f"reads.indptr must end with {len(block)}, the length of reads.block, got {indptr[-1]}")
        if self.reads.bytes is not None and len(self.reads.bytes) != len(block):
            raise rule(f"reads.bytes must have {len(block)} entries, one for each in reads.block, got {len(self.reads.bytes)}")
        if isinstance(self.fixed_read_bytes, np.ndarray) and len(self.fixed_read_bytes) != self.steps:
            raise rule(f"fixed_read_bytes must have {self.steps} entries, one for each step, got {len(self.fixed_read_bytes)}")
        if self.blocks == 0:
            raise rule("reads.block must name at least one block, or block_bytes have an entry for each, got none")
        birth, death = self.birth, self.death
        late = np.flatnonzero(birth >= self.steps)
        if len(late):
            raise rule(f"{self._of('birth_step', late[0])} must be below {self.steps}, the number of steps, got {birth[late[0]]}")
        early = np.flatnonzero(death <= birth)
        if len(early):
            raise rule(f"{self._of('death_step', early[0])} must be above its birth_step {birth[early[0]]}, got {death[early[0]]}")

    def _of(self, field: str, index: Any) -> str:
        return f"{field}[{int(index)}]" if isinstance(getattr(self, field), np.ndarray) else field

    def _check_reads(self) -> None:
        """Reads within the blocks' lives, none twice in a step. Chunked: a trace may have hundreds of millions of reads."""
        indptr, block, birth, death, size = self.reads.indptr, self.reads.block, self.birth, self.death, self.size
        last_read = np.full(self.blocks, -1, np.int64)
        beyond = np.flatnonzero(block >= self.blocks)
        if len(beyond):
            r = int(beyond[0])
            raise rule(f"reads.block[{r}] must be a block from 0 to {self.blocks - 1}, got {block[r]}")
        for t in range(self.steps):
            first, end = int(indptr[t]), int(indptr[t + 1])
            now = block[first:end]
            outside = np.flatnonzero((birth[now] > t) | (death[now] <= t))
            if len(outside):
                r = first + int(outside[0])
                i = int(block[r])
                life = f"lives from step {birth[i]} to before step {death[i]}"
                raise rule(f"reads.block[{r}] must be alive in step {t}, got block {i}, which {life}")
            last_read[now] = np.arange(first, end)
            twice = np.flatnonzero(last_read[now] != np.arange(first, end))
            if len(twice):
                r = first + int(twice[0])
                raise rule(f"reads.block[{r}] must be read once in step {t}, got block {int(block[r])} twice")
        if self.reads.bytes is not None:
            over = np.flatnonzero(self.reads.bytes > size[block])
            if len(over):
                r = int(over[0])
                raise rule(f"reads.bytes[{r}] must be at most {size[block[r]]:g}, the block's size, got {self.reads.bytes[r]:g}")

    @property
    def steps(self) -> int:
        """T."""
        return len(self.reads.indptr) - 1

    @cached_property
    def blocks(self) -> int:
        """N."""
        for value in (self.block_bytes, self.birth_step, self.death_step):
            if isinstance(value, np.ndarray):
                return len(value)
        return int(self.reads.block.max()) + 1 if len(self.reads.block) else 0

    @cached_property
    def size(self) -> FloatArray:
        """Bytes of each block [N]."""
        return _floats(self.block_bytes, self.blocks)

    @cached_property
    def birth(self) -> IntArray:
        """First step of each block's life [N]."""
        return _integers(self.birth_step, self.blocks)

    @cached_property
    def death(self) -> IntArray:
        """Step before which each block's life ends [N], at most T."""
        if self.death_step is None:
            return np.full(self.blocks, self.steps, np.int64)
        return np.minimum(_integers(self.death_step, self.blocks), self.steps)

    @cached_property
    def fixed(self) -> FloatArray:
        """Bytes read from tier 0 in each step whatever the plan [T]."""
        return _floats(self.fixed_read_bytes, self.steps)

    @cached_property
    def capacity(self) -> FloatArray:
        """Bytes of each tier [K]; the last is infinite."""
        return np.array([np.inf if tier.capacity_bytes is None else tier.capacity_bytes for tier in self.tiers])

    @cached_property
    def read_s(self) -> FloatArray:
        """Seconds to read a byte from each tier [K]."""
        return np.array([1.0 / tier.read_bytes_per_s for tier in self.tiers])

    @cached_property
    def write_s(self) -> FloatArray:
        """Seconds to write a byte to each tier [K]."""
        return np.array([1.0 / tier.write_bytes_per_s for tier in self.tiers])

    def read_bytes(self, step: int) -> FloatArray:
        """Bytes of each read of one step."""
        here = slice(int(self.reads.indptr[step]), int(self.reads.indptr[step + 1]))
        found: FloatArray = self.size[self.reads.block[here]] if self.reads.bytes is None else self.reads.bytes[here]
        return found

    @property
    def block_steps(self) -> int:
        """Steps of life, over all blocks: the size of the problem."""
        return int((self.death - self.birth).sum())


def _floats(value: float | FloatArray, length: int) -> FloatArray:
    """One number for all, or the array as it is; read-only."""
    found: FloatArray = np.array(np.broadcast_to(np.asarray(value, dtype=np.float64), (length,)))
    found.flags.writeable = False
    return found


def _integers(value: int | IntArray, length: int) -> IntArray:
    found: IntArray = np.array(np.broadcast_to(np.asarray(value, dtype=np.int64), (length,)))
    found.flags.writeable = False
    return found


__all__ = ["KvTiering", "Reads", "Tier"]
