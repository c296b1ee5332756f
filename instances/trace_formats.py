"""The two trace formats, parsed a block of whole lines at a time.

Each parser first gives a block to pyarrow. Whatever pyarrow does not take, or what is out of range, is parsed again line by line in plain
Python, so that the message can name line, field and value. A parser has state (the header, the time zone) and reads one file.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from headroom.instances.errors import InputError, shown
from headroom.instances.workload import MAX_TOKENS, IntArray


@dataclass(frozen=True)
class Batch:
    """Some requests of a trace: arrival times [N] in ticks, prompt and output tokens [N] as they stand in the file."""

    ticks: npt.NDArray[Any]
    prompt_tokens: IntArray
    output_tokens: IntArray

    def in_range(self) -> bool:
        """Whether all times are finite and all sizes from 0 to `MAX_TOKENS`."""
        sizes = (self.prompt_tokens, self.output_tokens)
        return bool(np.isfinite(self.ticks).all()) and all(bool(((tokens >= 0) & (tokens <= MAX_TOKENS)).all()) for tokens in sizes)


class TraceParser(Protocol):
    """Reads one file of a format, block after block. `fields` are the names of time, prompt tokens and output tokens."""

    name: ClassVar[str]
    fields: ClassVar[tuple[str, str, str]]
    ticks_per_s: ClassVar[float]

    def parse(self, block: bytes, first_line: int) -> Batch | None:
        """The requests in whole lines that start at line number `first_line`; None for no request. Raises `InputError`."""

    def nothing_found(self) -> InputError:
        """What to say about a file without a single request."""


# What np.datetime64 and pyarrow both read: a date, and perhaps a time of day and a zone (group 1).
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d(?:[ T]\d\d(?::\d\d(?::\d\d(?:\.\d{1,9})?)?)?(Z|[+-]\d\d(?::?\d\d)?)?)?$", re.ASCII)
_WHOLE_NUMBER = re.compile(r"\s*\d{1,18}\s*", re.ASCII)


class AzureParser:
    """CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens in any order; others are ignored."""

    name: ClassVar[str] = "azure-llm"
    fields: ClassVar[tuple[str, str, str]] = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    ticks_per_s: ClassVar[float] = 1e9

    def __init__(self) -> None:
        self._columns: list[str] | None = None
        self._zoned: bool | None = None

    def parse(self, block: bytes, first_line: int) -> Batch | None:
        """See `TraceParser`. The first line is the header."""
        if self._columns is None:
            header, _, block = block.partition(b"\n")
            self._columns, first_line = self._header(header), first_line + 1
        rows = block.strip()
        if not rows:
            return None
        if self._zoned is None:  # pyarrow must be told, and refuses a mixture
            self._zoned = self._has_zone(rows.split(b"\n", 1)[0], self._columns)
        import pyarrow as pa

        try:
            batch = self._parse_fast(block, self._columns)
            if batch.in_range():
                return batch
            reason = "a value is out of range"
        except pa.ArrowInvalid as error:
            reason = str(error).splitlines()[0]
        self._refuse_bad_row(block, first_line, self._columns)
        raise InputError(f"from line {first_line}: {reason}")

    def nothing_found(self) -> InputError:
        """See `TraceParser`."""
        if self._columns is None:
            return InputError(f"is empty; expected a header with the columns {','.join(self.fields)}")
        return InputError(f"line 2: the file ends after the header; expected rows of {','.join(self.fields)}")

    def _header(self, line: bytes) -> list[str]:
        expected = ",".join(self.fields)
        try:
            if b"\0" in line:
                raise ValueError
            columns = [name.strip().strip('"') for name in line.decode("utf-8-sig").split(",")]
        except ValueError:
            raise InputError(f"line 1 is not text; expected a header with the columns {expected}") from None
        if any(columns.count(name) != 1 for name in self.fields):
            raise InputError(f"line 1: columns must be {expected}, found {shown(','.join(columns), 100)}")
        return columns

    def _has_zone(self, row: bytes, columns: list[str]) -> bool:
        cells = row.decode("utf-8", "replace").strip().split(",")
        position = columns.index(self.fields[0])
        match = _TIMESTAMP.match(cells[position].strip('" ')) if position < len(cells) else None
        return bool(match and match.group(1))

    def _parse_fast(self, block: bytes, columns: list[str]) -> Batch:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        time, prompt, output = self.fields
        # Columns that are not wanted may share a name or have none: pyarrow gets names of our own for them.
        names = [name if name in self.fields else f"column {k}" for k, name in enumerate(columns)]
        table = arrow_csv.read_csv(
            io.BytesIO(block),
            read_options=arrow_csv.ReadOptions(column_names=names, block_size=len(block) + 1, use_threads=False),
            convert_options=arrow_csv.ConvertOptions(
                column_types={time: pa.timestamp("ns", "UTC" if self._zoned else None), prompt: pa.int64(), output: pa.int64()},
                include_columns=list(self.fields),
                timestamp_parsers=[arrow_csv.ISO8601],
                null_values=[],
                strings_can_be_null=False,
            ),
        )
        return Batch(table.column(time).cast(pa.int64()).to_numpy(), table.column(prompt).to_numpy(), table.column(output).to_numpy())

    def _refuse_bad_row(self, block: bytes, first_line: int, columns: list[str]) -> None:
        """Raise about the first bad row; return if every row looks right."""
        time = self.fields[0]
        positions = [columns.index(name) for name in self.fields]
        for number, line in enumerate(block.splitlines(keepends=True), start=first_line):
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8").strip("\r\n")
                cells = next(csv.reader([text]), [])
            except (ValueError, csv.Error):
                raise InputError(f"line {number} is not text: {shown(line)}") from None
            if len(cells) != len(columns):
                expected = f"{len(columns)} ({','.join(columns)})"
                raise InputError(f"line {number} has {len(cells)} fields, expected {expected}: {shown(text)}{_cut_off(line)}")
            moment, *tokens = (cells[position] for position in positions)
            match = _TIMESTAMP.match(moment)
            if match is None or not _is_moment(moment):
                raise InputError(f"line {number}: {time} must be a time like 2023-11-16 18:15:46.6805900, got {shown(moment)}")
            if self._zoned != bool(match.group(1)):
                raise InputError(f"line {number}: {time} must have a time zone in every row or in none, got {shown(moment)}")
            for name, cell in zip(self.fields[1:], tokens, strict=True):
                if not _WHOLE_NUMBER.fullmatch(cell) or int(cell) > MAX_TOKENS:
                    raise InputError(f"line {number}: {name} must be a whole number from 0 to {MAX_TOKENS}, got {shown(cell)}")


def _is_moment(text: str) -> bool:
    """Whether a text that `_TIMESTAMP` matches is a time that exists and that 64-bit nanoseconds can hold."""
    without_zone = re.sub(r"(Z|[+-]\d\d(:?\d\d)?)$", "", text) if len(text) > 10 else text
    try:
        np.datetime64(without_zone, "ns")
    except ValueError:
        return False
    return 1678 <= int(text[:4]) <= 2261


def _cut_off(line: bytes) -> str:
    return "" if line.endswith(b"\n") else " (is the file cut off?)"


class MooncakeParser:
    """JSON lines with timestamp [ms], input_length and output_length; other fields are ignored."""

    name: ClassVar[str] = "mooncake"
    fields: ClassVar[tuple[str, str, str]] = ("timestamp", "input_length", "output_length")
    ticks_per_s: ClassVar[float] = 1e3

    def parse(self, block: bytes, first_line: int) -> Batch | None:
        """See `TraceParser`."""
        if not block.strip():
            return None
        if _has_one_flat_object_a_line(block):
            batch = self._parse_fast(block)
            if batch is not None and batch.in_range():
                return batch
        rows = [
            self._parse_line(line, number)
            for number, line in enumerate(block.split(b"\n"), start=first_line)
            if line.strip()
        ]  # fmt: skip
        times, prompts, outputs = zip(*rows, strict=True)
        return Batch(np.array(times, dtype=np.float64), np.array(prompts, dtype=np.int64), np.array(outputs, dtype=np.int64))

    def nothing_found(self) -> InputError:
        """See `TraceParser`."""
        return InputError(f"is empty; expected one JSON object a line with {', '.join(self.fields)}")

    def _parse_fast(self, block: bytes) -> Batch | None:
        """What pyarrow makes of the block; None where it finds fault."""
        import pyarrow as pa
        from pyarrow import json as arrow_json

        schema = pa.schema(list(zip(self.fields, (pa.float64(), pa.int64(), pa.int64()), strict=True)))
        try:
            table = arrow_json.read_json(
                io.BytesIO(block),
                read_options=arrow_json.ReadOptions(block_size=len(block) + 1, use_threads=False),
                parse_options=arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return None
        if any(table.column(name).null_count for name in self.fields):
            return None
        return Batch(*(table.column(name).to_numpy() for name in self.fields))

    def _parse_line(self, line: bytes, number: int) -> tuple[float, int, int]:
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            raise InputError(f"line {number} is not a JSON object (is the file cut off?): {shown(line.decode('utf-8', 'replace').strip())}") from None
        if not isinstance(record, dict):
            raise InputError(f"line {number} must be a JSON object with {', '.join(self.fields)}, got {shown(record)}")
        for name in self.fields:
            if name not in record:
                raise InputError(f"line {number}: {name} is missing; found {shown(', '.join(map(str, record)), 100)}")
        time, *tokens = (record[name] for name in self.fields)
        if isinstance(time, bool) or not isinstance(time, (int, float)) or not abs(time) < 1e300:
            raise InputError(f"line {number}: {self.fields[0]} must be a time in ms, got {shown(time)}")
        for name, value in zip(self.fields[1:], tokens, strict=True):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKENS:
                raise InputError(f"line {number}: {name} must be a whole number from 0 to {MAX_TOKENS}, got {shown(value)}")
        return time, tokens[0], tokens[1]


def _has_one_flat_object_a_line(block: bytes) -> bool:
    """Whether each line is a pair of braces with no brace between them: what pyarrow's JSON reader may see.

    On a line that is `null` that reader crashes the process (pyarrow 26), so nothing else is let through to it.
    """
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    opened = block.startswith(b"{") + block.count(b"\n{")
    closed = block.count(b"}\n") + block.count(b"}\r\n") + block.endswith(b"}")
    return lines == opened == closed == block.count(b"{") == block.count(b"}")


PARSERS: dict[str, Callable[[], TraceParser]] = {AzureParser.name: AzureParser, MooncakeParser.name: MooncakeParser}
