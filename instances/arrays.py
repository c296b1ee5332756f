"""Annotations for numeric array fields: checked element by element, read-only, in the digest as the nested lists that JSON would hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, PlainSerializer, SerializationInfo, WithJsonSchema

from headroom.instances.base import rule
from headroom.instances.errors import shown

ARRAYS = "arrays"
"""With this key in the serialisation context arrays are left as they are: for the digest, which reads them as quickly as bytes."""


def numbers(name: str, axes: str, *, whole: bool = False, narrow: bool = False, least: float | None = 0.0, most: float = 1e300) -> Any:
    """The annotation for an array of numbers with the named axes, e.g. "[scenario][layer][expert]", from `least` to `most`.

    Stored as read-only float64, or int64 when `whole` (int32 when `narrow` as well: for arrays that may be huge). Anything else is one line naming
    the element: `load[0][2][5] must be …, got …`.
    """
    convert, plain, item = _array(name, axes, whole, narrow, least, most)
    return Annotated[np.ndarray, BeforeValidator(convert), PlainSerializer(plain), WithJsonSchema(item)]


def number_or_array(name: str, axis: str, *, whole: bool = False, least: float = 0.0, most: float = 1e300) -> Any:
    """The annotation for one number that holds for all, or an array with one for each `axis`: a Python number or a read-only array.

    Errors name the element as `numbers` does.
    """
    convert, plain, item = _array(name, f"[{axis}]", whole, False, least, most)

    def either(value: object) -> Any:
        if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in ("iu" if whole else "fiu"):
            value = value.item()
        if isinstance(value, (list, tuple, np.ndarray)):
            return convert(value)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise rule(f"{name} must be a {'whole ' if whole else ''}number, or a list of them with one for each {axis}, got {shown(value)}")
        if not least <= value <= most:
            raise rule(f"{name} must be a {'whole ' if whole else ''}number from {least:g} to {most:g}, got {shown(value)}")
        return int(value) if whole else float(value)

    def said(value: Any, info: SerializationInfo) -> Any:
        return plain(value, info) if isinstance(value, np.ndarray) else value

    return Annotated[Any, BeforeValidator(either), PlainSerializer(said), WithJsonSchema({"anyOf": [item["items"], item]})]


def _array(name: str, axes: str, whole: bool, narrow: bool, least: float | None, most: float) -> tuple[Any, Any, dict[str, Any]]:
    """How to check, to write and to describe an array."""
    dimensions = axes.count("[")
    dtype: Any = (np.int32 if narrow else np.int64) if whole else np.float64
    kind = "whole numbers" if whole else "numbers"

    def convert(value: object) -> npt.NDArray[Any]:
        if isinstance(value, np.ndarray):
            allowed = "iu" if whole else "fiu"
            if value.dtype.kind not in allowed or value.ndim != dimensions:
                raise rule(f"{name} must be an array {axes} of {kind}, got {value.ndim} dimensions of {value.dtype}")
            array = value
        else:
            shape = _shape(name, axes, value)
            items: list[Any] = []
            _flatten(name, value, shape, items)
            array = _checked_elements(name, items, shape, whole, kind)
        bad = ~np.isfinite(array) | (array > most) | (array < (-most if least is None else least))
        if bad.any():
            index = tuple(int(k) for k in np.argwhere(bad)[0])
            wanted = "a finite number" if least is None else f"a {'whole ' if whole else ''}number from {least:g} to {most:g}"
            raise rule(f"{_at(name, index)} must be {wanted}, got {array[index]:g}")
        array = np.array(array, dtype=dtype)  # a copy that nobody else can change
        array.flags.writeable = False
        return array

    def plain(array: npt.NDArray[Any], info: SerializationInfo) -> Any:
        return array if info.context and info.context.get(ARRAYS) else array.tolist()

    item: dict[str, Any] = {"type": "integer" if whole else "number"} | ({} if least is None else {"minimum": least})
    for _ in range(dimensions):
        item = {"type": "array", "items": item}
    return convert, plain, item


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
