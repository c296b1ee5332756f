"""Checks for fields that hold numeric arrays: element by element, read-only, in the digest as the nested lists that JSON would hold.

They stand in a field's annotation beside the type that they leave there: `load: Annotated[FloatArray, Numbers("load", "[layer][expert]")]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SerializationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from headroom.instances.base import rule
from headroom.instances.errors import exact, shown, span

ARRAYS = "arrays"
"""With this key in the serialisation context arrays are left as they are: for the digest, which reads them as quickly as bytes."""


@dataclass(frozen=True)
class Numbers:
    """An array of numbers with the named axes, e.g. "[scenario][layer][expert]", from `least` (null: any finite number) to `most`.

    Stored as read-only float64, or int64 when `whole` (int32 when `narrow` as well: for arrays that may be huge). Anything else is one line naming
    the element: `load[0][2][5] must be …, got …`.
    """

    name: str
    axes: str
    whole: bool = False
    narrow: bool = False
    least: float | None = 0.0
    most: float = 1e300

    def convert(self, value: object) -> npt.NDArray[Any]:
        """The array of nested lists, or a copy of one. Raises pydantic's custom error, a `ValueError`."""
        dimensions = self.axes.count("[")
        if isinstance(value, np.ndarray):
            allowed = "iu" if self.whole else "fiu"
            if value.dtype.kind not in allowed or value.ndim != dimensions:
                raise rule(f"{self.name} must be an array {self.axes} of {self._kind}, got {value.ndim} dimensions of {value.dtype}")
            array = value
        else:
            shape = _shape(self.name, self.axes, value)
            items: list[Any] = []
            _flatten(self.name, value, shape, items)
            array = _checked_elements(self.name, items, shape, self.whole, self._kind)
        least = -self.most if self.least is None else self.least
        bad = ~np.isfinite(array) | (array > self.most) | (array < least)
        if bad.any():
            index = tuple(int(k) for k in np.argwhere(bad)[0])
            wanted = "a finite number" if self.least is None else _wanted(self.least, self.most, self.whole)
            raise rule(f"{_at(self.name, index)} must be {wanted}, got {exact(array[index].item())}")
        dtype: Any = (np.int32 if self.narrow else np.int64) if self.whole else np.float64
        array = np.array(array, dtype=dtype)  # a copy that nobody else can change
        array.flags.writeable = False
        return array

    @property
    def _kind(self) -> str:
        return "whole numbers" if self.whole else "numbers"

    def _described(self) -> dict[str, Any]:
        item: dict[str, Any] = {"type": "integer" if self.whole else "number"} | ({} if self.least is None else {"minimum": self.least})
        for _ in range(self.axes.count("[")):
            item = {"type": "array", "items": item}
        return item

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _checked(self.convert, _plain)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return self._described()


@dataclass(frozen=True)
class NumberOrNumbers:
    """One number that holds for all, or an array with one for each `axis`: a Python number or a read-only array, otherwise as `Numbers`."""

    name: str
    axis: str
    whole: bool = False
    least: float = 0.0
    most: float = 1e300

    def convert(self, value: object) -> int | float | npt.NDArray[Any]:
        """The number or the array. Raises as `Numbers.convert`."""
        name, kind = self.name, f"{'whole ' if self.whole else ''}number"
        if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in ("iu" if self.whole else "fiu"):
            value = value.item()
        if isinstance(value, (list, tuple, np.ndarray)):
            return self._each.convert(value)
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            raise rule(f"{name} must be a {kind}, or a list of them with one for each {self.axis}, got {shown(value)}")
        if not self.least <= value <= self.most:
            raise rule(f"{name} must be {_wanted(self.least, self.most, self.whole)}, got {shown(value)}")
        return int(value) if self.whole else float(value)

    @property
    def _each(self) -> Numbers:
        return Numbers(self.name, f"[{self.axis}]", whole=self.whole, least=self.least, most=self.most)

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _checked(self.convert, _plain)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        each = self._each._described()
        return {"anyOf": [each["items"], each]}


@dataclass(frozen=True)
class NumbersOrNulls:
    """A two-dimensional table of positive numbers in which null marks an impossible entry.

    Stored as a read-only float64 array [row][column] with NaN for null; checked element by element so that a message can name
    `name[i][j]`.
    """

    name: str

    def convert(self, value: object) -> npt.NDArray[np.float64]:
        """The array of a list of lists, or a copy of one. Raises as `Numbers.convert`."""
        name = self.name
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "fiu" or value.ndim != 2:
                raise rule(f"{name} must be a two-dimensional array of numbers, got {value.ndim} dimensions of {value.dtype}")
            array = np.array(value, dtype=np.float64)
        else:
            array = _nested_lists_to_array(name, value)
        bad = ~np.isnan(array) & ~((array > 0) & np.isfinite(array))
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise rule(f"{name}[{row}][{column}] must be positive (null where impossible), got {array[row, column]:g}")
        array.flags.writeable = False
        return array

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _checked(self.convert, _plain_with_nulls)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        number = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]}
        return {"type": "array", "items": {"type": "array", "items": number}}


def _checked(convert: Callable[[Any], Any], plain: Callable[[Any, SerializationInfo], Any]) -> CoreSchema:
    """How pydantic reads a field (by `convert` alone) and writes it."""
    writing = core_schema.plain_serializer_function_ser_schema(plain, info_arg=True)
    return core_schema.no_info_plain_validator_function(convert, serialization=writing)


def _plain(value: object, info: SerializationInfo) -> object:
    """Nested lists, unless the context asks for the arrays themselves; a number as it is."""
    if not isinstance(value, np.ndarray) or (info.context and info.context.get(ARRAYS)):
        return value
    return value.tolist()


def _plain_with_nulls(array: npt.NDArray[np.float64], info: SerializationInfo) -> list[list[float | None]]:
    return [[None if item != item else item for item in row] for row in array.tolist()]


def _wanted(least: float, most: float, whole: bool) -> str:
    """Limits of whole numbers are written without an exponent, whatever type they were given in, as far as an array of them reaches."""
    if not whole:
        return f"a number {span(least, most)}"
    return f"a whole number {span(*(int(limit) if abs(limit) < 2**63 else limit for limit in (least, most)))}"


def _at(name: str, index: Sequence[int]) -> str:
    return name + "".join(f"[{k}]" for k in index)


def _shape(name: str, axes: str, value: object) -> tuple[int, ...]:
    """The lengths along the first elements; the rest is checked while flattening."""
    shape: list[int] = []
    here = value
    for depth in range(axes.count("[")):
        if not isinstance(here, (list, tuple)):
            raise rule(f"{_at(name, [0] * depth)} must be a list ({name}{axes}), got {shown(here)}")
        shape.append(len(here))
        if not here:
            return tuple(shape) + (0,) * (axes.count("[") - depth - 1)
        here = here[0]
    return tuple(shape)


def _flatten(name: str, value: Any, shape: tuple[int, ...], items: list[Any], index: tuple[int, ...] = ()) -> None:
    if not isinstance(value, (list, tuple)):
        raise rule(f"{_at(name, index)} must be a list, got {shown(value)}")
    if len(value) != shape[len(index)]:
        raise rule(f"{_at(name, index)} has {len(value)} entries, expected {shape[len(index)]} as in {_at(name, [0] * len(index))}")
    if len(index) == len(shape) - 1:
        items.extend(value)
        return
    for k, part in enumerate(value):
        _flatten(name, part, shape, items, (*index, k))


def _checked_elements(name: str, items: list[Any], shape: tuple[int, ...], whole: bool, kind: str) -> npt.NDArray[Any]:
    allowed = (int,) if whole else (int, float)
    types = set(map(type, items))
    if not types <= set(allowed):
        k = next(k for k, item in enumerate(items) if type(item) not in allowed)
        index = tuple(int(i) for i in np.unravel_index(k, shape))
        raise rule(f"{_at(name, index)} must be a {'whole ' if whole else ''}number, got {shown(items[k])}")
    try:
        return np.array(items, dtype=np.int64 if whole else np.float64).reshape(shape)
    except OverflowError:
        k = next(k for k, item in enumerate(items) if abs(item) > 2**62)
        index = tuple(int(i) for i in np.unravel_index(k, shape))
        raise rule(f"{_at(name, index)} is too large for {kind} here, got {shown(items[k])}") from None


def _nested_lists_to_array(name: str, value: object) -> npt.NDArray[np.float64]:
    if not isinstance(value, (list, tuple)):
        raise rule(f"{name} must be a list of lists of numbers, got {shown(value)}")
    rows: list[list[float]] = []
    for i, row in enumerate(value):
        if not isinstance(row, (list, tuple)):
            raise rule(f"{name}[{i}] must be a list of numbers, got {shown(row)}")
        if i and len(row) != len(rows[0]):
            raise rule(f"{name}[{i}] has {len(row)} entries, expected {len(rows[0])} as in {name}[0]")
        out: list[float] = []
        for j, item in enumerate(row):
            if item is None:
                out.append(np.nan)
            elif isinstance(item, bool) or not isinstance(item, (int, float)):
                raise rule(f"{name}[{i}][{j}] must be a number or null, got {shown(item)}")
            else:
                try:
                    number = float(item)
                except OverflowError:
                    number = np.inf
                if not np.isfinite(number):
                    raise rule(f"{name}[{i}][{j}] must be finite or null, got {shown(item)}")
                out.append(number)
        rows.append(out)
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(rows[0]) if rows else 0)
