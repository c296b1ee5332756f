"""Tables of expert loads as files: JSON, CSV, .npy and .npz, with or without steps; and the arrays of an .npz file, never a pickle.

What a file is, is told from its content. Every function raises `InputError` naming the file, the element or line, its value and what was expected.
"""

from __future__ import annotations

import csv
import io
import itertools
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic_core import PydanticCustomError

from headroom.instances.arrays import Numbers
from headroom.instances.errors import InputError, shown
from headroom.instances.files import MAX_ARRAY_BYTES, MAX_JSON_BYTES, parse_json, read_bytes, unreadable

FloatArray = npt.NDArray[np.float64]
TORCH = "is a torch file, which can run code when it is read; convert it: numpy.save('counts.npy', torch.load(FILE)['logical_count'].numpy())"
COUNT_COLUMNS = ("count", "tokens", "load")
MOST_TOKENS = 1e15
MOST_NUMBERS = 10**9
"""A table of more numbers (8 GB) is refused: two stray ids in a long CSV file would ask for it."""


@dataclass(frozen=True)
class LoadTable:
    """Tokens [step][row][expert]. `stepped`: the file has steps (else there is one); `layers`: the model layer of each row, if the file says so."""

    tokens: FloatArray
    stepped: bool
    layers: tuple[int, ...] | None = None
    notices: tuple[str, ...] = ()


def read_load_table(path: Path, experts: int | None = None) -> LoadTable:
    """Read a table of expert loads, [layer][expert] or [step][layer][expert].

    - JSON: the nested list, or SGLang's object with `logical_count` (expert distribution recorder, mode stat; other keys are ignored).
    - .npy: the array. .npz: its member `logical_count`, or its only member.
    - CSV: a row for each layer and a column for each expert, with or without a header and a first column of layers; or a row for each number,
      under a header with layer, expert, count (or tokens, load) and perhaps step, where what is missing is 0 and `experts` says how many there are.
    """
    try:
        return _read(path, experts)
    except InputError as error:
        raise error.within(str(path)) from None


def _read(path: Path, experts: int | None) -> LoadTable:
    head = read_head(path)
    if path.suffix in (".pt", ".pth"):
        raise InputError(TORCH)
    if head.startswith(b"PK"):
        members = read_npz_members(path)
        if "logical_count" not in members and len(members) != 1:
            raise InputError(f"must hold logical_count or one array alone, got {', '.join(sorted(members)) or 'none'}")
        name = "logical_count" if "logical_count" in members else next(iter(members))
        if name == "topk":
            raise InputError("holds topk, the experts of tokens, not their loads; expected a table of loads (topk is for import expert-routing)")
        return _table(name, members[name], experts)
    if head.startswith(b"\x93NUMPY"):
        return _table("array", _load(path), experts)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return _from_json(parse_json(read_bytes(path, MAX_JSON_BYTES), str(path)), experts)
    return _from_csv(path, experts)


def read_head(path: Path) -> bytes:
    """The first bytes of a file; `InputError` for one that is empty or cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise unreadable(path, error) from None
    if not head:
        raise InputError("is empty; expected a table or arrays", str(path))
    return head


def read_npz_members(path: Path, wanted: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz file by name, of those wanted that are there; all of them by default."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith("data.pkl") for name in names):
                raise InputError(TORCH, str(path))
            total = sum(member.file_size for member in archive.infolist())
            if total > MAX_ARRAY_BYTES:
                raise InputError(f"unpacks to {total} bytes; expected at most {MAX_ARRAY_BYTES}", str(path))
        content = _load(path)
        with content:
            return {name: np.asarray(content[name]) for name in content.files if wanted is None or name in wanted}
    except InputError as error:
        raise error.within(str(path)) from None
    except Exception as error:
        # Truncated zips, pickles, bad array headers: zipfile, zlib, struct and numpy share no base class; each is the file's fault.
        raise InputError(f"not a readable .npz file: {_one_line(error)}", str(path)) from None


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except OSError as error:
        raise unreadable(path, error) from None
    except Exception as error:
        raise InputError(f"not a readable numpy file: {_one_line(error)}", str(path)) from None


def _one_line(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return "it holds Python objects (a pickle); expected arrays of numbers" if "allow_pickle" in text else text


def checked(name: str, axes: str, value: Any, *, whole: bool = False, most: float = MOST_TOKENS) -> npt.NDArray[Any]:
    """`value` (nested lists or an array) as a read-only array; an element that is no number from 0 to `most` is named in the error."""
    try:
        return Numbers(name, axes, whole=whole, most=most).convert(value)
    except PydanticCustomError as error:
        raise InputError(error.message()) from None


def _table(name: str, value: Any, experts: int | None, layers: tuple[int, ...] | None = None, notices: tuple[str, ...] = ()) -> LoadTable:
    """The table in nested lists or an array of two or three dimensions."""
    depth = value.ndim if isinstance(value, np.ndarray) else _depth(value)
    if depth not in (2, 3):
        raise InputError(f"{name} must be [layer][expert] or [step][layer][expert], got {depth} dimension{'s' * (depth != 1)}")
    tokens = checked(name, "[layer][expert]" if depth == 2 else "[step][layer][expert]", value)
    if not tokens.size:
        raise InputError(f"{name} must have at least one layer and expert, got {' x '.join(map(str, tokens.shape))}")
    if experts is not None and experts != tokens.shape[-1]:
        raise InputError(f"{name} must have {experts} experts in a layer (--experts), got {tokens.shape[-1]}")
    return LoadTable(tokens[None] if depth == 2 else tokens, depth == 3, layers, notices)


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, list):
        depth += 1
        value = value[0] if value else None
    return depth


def _from_json(document: Any, experts: int | None) -> LoadTable:
    if isinstance(document, list):
        return _table("table", document, experts)
    if "logical_count" not in document:
        more = " (records of mode per_pass or per_token: record with mode stat)" if "records" in document else ""
        raise InputError(f"must be a list or an object with logical_count, got one with {', '.join(sorted(document)) or 'nothing'}{more}")
    return _table("logical_count", document["logical_count"], experts)


# ---- CSV ---------------------------------------------------------------------------------------------------------------------------


def _from_csv(path: Path, experts: int | None) -> LoadTable:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = ((line, row) for line, row in _rows(file) if any(cell.strip() for cell in row))
            first = next(rows, None)
            if first is None:
                raise InputError("is empty; expected a table of expert loads")
            header = [cell.strip().lower() for cell in first[1]]
            if "layer" in header and "expert" in header:
                return _long(header, rows, experts)
            return _matrix(header, first, rows, experts)
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start} is not UTF-8; expected JSON, CSV, .npy or .npz") from None
    except OSError as error:
        raise unreadable(path, error) from None


def _rows(file: io.TextIOBase) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"line {reader.line_num}: {error}; expected numbers with commas between them") from None


def _matrix(header: list[str], first: tuple[int, list[str]], rows: Iterator[tuple[int, list[str]]], experts: int | None) -> LoadTable:
    """A row for each layer. The first row is a header if no cell is a number, or if it counts 0, 1, 2, … as table writers do without names."""
    named_cells = header[1:] if header[0] in ("", "layer") else header
    counting = len(named_cells) > 1 and named_cells == [str(k) for k in range(len(named_cells))]
    named = counting or not any(_is_number(cell) for cell in named_cells)
    indexed = named and header[0] in ("", "layer")
    notices = ("the first row counts 0, 1, 2, …: it was taken for a header",) if counting else ()
    values: list[list[float]] = []
    layers: list[int] = []
    for line, row in rows if named else itertools.chain([first], rows):
        if len(row) != len(header):
            raise InputError(f"line {line} has {len(row)} columns, expected {len(header)} as in the first row")
        if indexed:
            layers.append(_whole(line, "layer", row[0]))
            if layers[-1] in layers[:-1]:
                raise InputError(f"line {line}: layer {layers[-1]} stands twice; expected it once")
        values.append([_number(line, f"column {k + 1}", cell) for k, cell in enumerate(row) if k or not indexed])
    order = sorted(range(len(values)), key=lambda k: layers[k]) if indexed else list(range(len(values)))
    ids = tuple(layers[k] for k in order) if indexed else None
    return _table("table", [values[k] for k in order], experts, ids, notices)


def _long(header: list[str], rows: Iterator[tuple[int, list[str]]], experts: int | None) -> LoadTable:
    """A row for each number."""
    count = next((name for name in COUNT_COLUMNS if name in header), None)
    if count is None:
        raise InputError(f"the header must name one of {', '.join(COUNT_COLUMNS)} beside layer and expert, got {', '.join(header)}")
    at = {name: header.index(name) for name in ("step", "layer", "expert", count) if name in header}
    found: dict[tuple[int, int, int], float] = {}
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(f"line {line} has {len(row)} columns, expected {len(header)} as in the header")
        step, layer, expert = (_whole(line, name, row[at[name]]) if name in at else 0 for name in ("step", "layer", "expert"))
        if experts is not None and expert >= experts:
            raise InputError(f"line {line}: expert must be from 0 to {experts - 1}, got {expert}")
        if (step, layer, expert) in found:
            raise InputError(f"line {line}: {f'step {step}, ' * ('step' in at)}layer {layer}, expert {expert} stands twice; expected it once")
        found[step, layer, expert] = _number(line, count, row[at[count]])
    if not found:
        raise InputError("has a header and nothing below it; expected a row for each layer and expert")
    keys = np.array(list(found))
    steps, layers = np.unique(keys[:, 0]), np.unique(keys[:, 1])
    width = int(keys[:, 2].max()) + 1 if experts is None else experts
    if len(steps) * len(layers) * width > MOST_NUMBERS:
        raise InputError(f"names {len(steps)} steps x {len(layers)} layers x {width} experts; expected at most {MOST_NUMBERS} numbers")
    tokens = np.zeros((len(steps), len(layers), width))
    tokens[np.searchsorted(steps, keys[:, 0]), np.searchsorted(layers, keys[:, 1]), keys[:, 2]] = list(found.values())
    notices = (f"experts: {width}, one more than the largest that has a row (--experts N where there are more)",) if experts is None else ()
    return LoadTable(tokens, "step" in at, tuple(int(layer) for layer in layers), notices)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(line: int, column: str, cell: str) -> float:
    value = float(cell) if _is_number(cell) else np.nan
    if not 0 <= value <= MOST_TOKENS:
        raise InputError(f"line {line}: {column} must be a number from 0 to {MOST_TOKENS:g}, got {shown(cell)}")
    return value


def _whole(line: int, column: str, cell: str) -> int:
    if not cell.strip().isascii() or not cell.strip().isdigit() or len(cell.strip()) > 6:
        raise InputError(f"line {line}: {column} must be a whole number from 0 to 999999, got {shown(cell)}")
    return int(cell)
