"""What every instance is: frozen, validated once, varied by `replace`, the same after a round trip through .json or .npz."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic_core import PydanticCustomError

from headroom.instances.errors import InputError, shown
from headroom.instances.files import read_json, read_npz, to_json, without_infinities, write_npz, write_text

INSTANCE_SCHEMA = "headroom/instance/1"


class Record(BaseModel):
    """A frozen part of an instance: strict types, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True, ser_json_inf_nan="null")
    optional_arrays: ClassVar[frozenset[str]] = frozenset()
    """Fields that hold an array or None: pydantic cannot tell an array from its default."""

    def dump(self, context: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The fields in JSON types; those at their defaults are left out."""
        given = {field for field in self.optional_arrays if getattr(self, field) is not None}
        rest = self.model_dump(exclude_defaults=True, exclude=set(self.optional_arrays), context=dict(context or {}))
        return rest | (self.model_dump(include=given, context=dict(context or {})) if given else {})

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from headroom.instances.html import in_words, table

        shown_fields = [name for name in type(self).model_fields if name not in ("name", "provenance") and getattr(self, name) is not None]
        return table(type(self).__name__, [(name, in_words(getattr(self, name))) for name in shown_fields], self._subtitle())

    def _subtitle(self) -> str:
        return ""


def rule(message: str) -> PydanticCustomError:
    """The error a validator raises; `message` names the field itself, so no location is added to it."""
    return PydanticCustomError("headroom_rule", "{message}", {"message": message})


class Instance(Record):
    """Base of the families' instance types. Raises `InputError` with one line that names the field and the value.

    `name` and `provenance` describe the instance; `digest` and equality look at the family and the data alone.
    """

    family: ClassVar[str]
    array_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that go into the .npz container as arrays of their own; `a.b` is field b of field a."""

    name: str = Field(default="unnamed", max_length=500, exclude=True)
    provenance: dict[str, Any] = Field(default_factory=dict, exclude=True)
    _digest: str | None = PrivateAttr(default=None)

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InputError(first_message(error)) from None

    def _subtitle(self) -> str:
        origin = ", ".join(f"{key} {self.provenance[key]}" for key in ("preset", "importer") if key in self.provenance)
        return f"{self.name}, sha256 {self.digest()[:8]}" + (f" ({origin})" if origin else "")

    def replace(self, **changes: Any) -> Self:
        """A validated copy with the named fields changed."""
        fields = {field: getattr(self, field) for field in type(self).model_fields}
        return type(self)(**(fields | changes))

    def data(self) -> dict[str, Any]:
        """The data alone, in JSON types; optional fields at their defaults are left out."""
        return self.dump()

    def digest(self) -> str:
        """SHA-256 (hex) over the family and the data as typed little-endian bytes; the same for .json and .npz."""
        if self._digest is None:
            digest = hashlib.sha256()
            _feed(digest, [self.family, self.dump({"arrays": True})])
            self._digest = digest.hexdigest()
        return self._digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Instance) and self.digest() == other.digest()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, sha256={self.digest()[:12]})"

    def __hash__(self) -> int:
        return hash(self.digest())

    def document(self) -> dict[str, Any]:
        """The instance as the JSON document `headroom/instance/1`."""
        return {"schema": INSTANCE_SCHEMA, "family": self.family, "name": self.name, "provenance": self.provenance, "data": self.data()}

    @classmethod
    def from_document(cls, document: Any) -> Self:
        """Read the document that `document()` writes."""
        header = check_header(document, cls.family)
        data = header["data"]
        if not isinstance(data, dict):
            raise InputError(f"data must be an object, got {shown(data)}")
        for reserved in ("name", "provenance"):
            if reserved in data:
                raise InputError(f"data.{reserved} is an unknown field")
        try:
            return cls(name=header.get("name", "unnamed"), provenance=header.get("provenance", {}), **data)
        except InputError as error:
            raise InputError(f"data: {error.message}" if not error.message.startswith(("name", "provenance")) else error.message) from None

    def save(self, path: str | Path) -> None:
        """Write .npz if the name says so, else .json; whole or not at all."""
        if Path(path).suffix != ".npz":
            write_text(path, to_json(self.document()))
            return
        # Arrays as they are: a trace of 10^8 reads would not fit in memory as lists.
        header = {"schema": INSTANCE_SCHEMA, "family": self.family, "name": self.name, "provenance": self.provenance}
        document: dict[str, Any] = header | {"data": self.dump({"arrays": True})}
        arrays: dict[str, Any] = {}
        for field in self.array_fields:
            *outer, last = field.split(".")
            holder, value = document["data"], self
            for part in outer:
                holder, value = holder.get(part) or {}, getattr(value, part)
            if last in holder and isinstance(getattr(value, last), np.ndarray):
                arrays[field] = getattr(value, last)
                del holder[last]
        write_npz(path, document, arrays)


def check_header(document: Any, family: str | None = None) -> dict[str, Any]:
    """The outer object of an instance document, with its fields checked."""
    if not isinstance(document, dict):
        raise InputError(f"expected a JSON object with schema {INSTANCE_SCHEMA!r}, got {shown(document)}")
    if document.get("schema") != INSTANCE_SCHEMA:
        raise InputError(f"schema must be {INSTANCE_SCHEMA!r}, got {shown(document.get('schema'))}")
    unknown = sorted(set(document) - {"schema", "family", "name", "provenance", "data"})
    if unknown:
        raise InputError(f"{unknown[0]} is an unknown field; expected schema, family, name, provenance, data")
    if "data" not in document:
        raise InputError("data is missing; expected an object")
    if not isinstance(document.get("family"), str) or (family is not None and document["family"] != family):
        raise InputError(f"family must be {family!r}, got {shown(document.get('family'))}" if family else "family must be a string")
    return document


def load_document(path: str | Path) -> dict[str, Any]:
    """The instance document in a .json or .npz file, its arrays joined back into `data`."""
    try:
        if Path(path).suffix == ".npz":
            document, arrays = read_npz(path)
            header = check_header(document)
            if not isinstance(header["data"], dict):
                raise InputError(f"data must be an object, got {shown(header['data'])}")
            return header | {"data": _with_arrays(header["data"], arrays)}
        return check_header(read_json(path))
    except InputError as error:
        raise error.within(str(path)) from None


def _with_arrays(data: dict[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The data with each array put back; a dotted name is a field of a field."""
    data = dict(data)
    for name, array in arrays.items():
        *outer, last = name.split(".")
        holder = data
        for part in outer:
            if not isinstance(holder.get(part), dict):
                raise InputError(f"data.{part} must be an object because the file holds the array {name!r}")
            holder[part] = dict(holder[part])
            holder = holder[part]
        if last in holder:
            raise InputError(f"data.{name} stands both in the header and as an array; expected it once")
        holder[last] = array
    return data


def first_message(error: ValidationError) -> str:
    """The first problem as `work[2].rate_per_s must …, got …`; how many more there are is said at the end."""
    problems = error.errors(include_url=False)
    first = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "headroom_rule":
        return f"{first['msg']}{more}"
    path = ""
    for part in first["loc"]:
        path += f"[{part}]" if isinstance(part, int) else (f".{part}" if path else str(part))
    kind, got = first["type"], shown(first.get("input"))
    if kind == "missing":
        return f"{path} is missing{more}"
    if kind == "extra_forbidden":
        return f"{path} is an unknown field, got {got}{more}"
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ").replace("a valid tuple", "a list")
    return f"{path} must be {expected}, got {got}{more}"


def _feed(digest: Any, value: Any) -> None:
    """Feed one JSON value to the hash: a type tag, a length where one is needed, little-endian bytes."""
    match value:
        case None:
            digest.update(b"n")
        case bool():
            digest.update(b"t" if value else b"f")
        case int():
            raw = _raw(value)
            digest.update(b"i" + struct.pack("<q", len(raw)) + raw)
        case float():
            digest.update(b"d" + struct.pack("<d", value + 0.0))  # −0.0 + 0.0 is +0.0
        case str():
            raw = value.encode("utf-8", "surrogatepass")
            digest.update(b"s" + struct.pack("<q", len(raw)) + raw)
        case Mapping():
            digest.update(b"m" + struct.pack("<q", len(value)))
            for key in sorted(value):
                _feed(digest, key)
                _feed(digest, value[key])
        case np.ndarray() if value.ndim == 1 and value.dtype == np.float64:
            tagged = np.empty(len(value), dtype=[("tag", "S1"), ("value", "<f8")])
            tagged["tag"], tagged["value"] = b"d", value + 0.0
            digest.update(b"l" + struct.pack("<q", len(value)) + tagged.tobytes())
        case np.ndarray() if value.ndim == 1 and value.dtype.kind == "i":
            digest.update(b"l" + struct.pack("<q", len(value)))
            for first in range(0, len(value), 2**20):
                digest.update(_whole_numbers(value[first : first + 2**20]))
        case np.ndarray():
            _feed(digest, list(value) if value.ndim > 1 else value.tolist())
        case list() | tuple():
            digest.update(b"l" + struct.pack("<q", len(value)))
            for item in value:
                _feed(digest, item)
        case _:
            raise TypeError(f"cannot hash {type(value).__name__}")


def _whole_numbers(values: npt.NDArray[Any]) -> bytes:
    """The bytes that `_feed` gives the hash for each of these integers, one after the other."""
    wide = values.astype("<i8")
    # As many bytes as hold the magnitude's bits and a sign bit; the smallest number's magnitude is 2^63, which takes nine.
    if len(wide) and wide.min() == np.iinfo(np.int64).min:
        return b"".join(b"i" + struct.pack("<q", len(raw)) + raw for raw in map(_raw, wide.tolist()))
    magnitude = np.abs(wide)
    length = np.ones(len(wide), np.int64)
    for count in range(1, 8):
        length += magnitude >= 2 ** (8 * count - 1)
    start = np.cumsum(length + 9) - (length + 9)
    out = np.empty(int((length + 9).sum()), np.uint8)
    out[start] = ord("i")
    lengths, raw = length.astype("<i8").view(np.uint8).reshape(-1, 8), wide.view(np.uint8).reshape(-1, 8)
    for k in range(8):
        out[start + 1 + k] = lengths[:, k]
        has = length > k
        out[start[has] + 9 + k] = raw[has, k]
    return out.tobytes()


def _raw(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)


__all__ = ["INSTANCE_SCHEMA", "Instance", "Record", "check_header", "load_document", "rule", "without_infinities"]
