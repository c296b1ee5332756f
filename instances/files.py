"""Reading and writing files: strict JSON in, whole files out.

A reader here raises `InputError` and nothing else for a file that is missing, unreadable, truncated or not what it claims to be.
A writer leaves either the complete new file or what was there before: the bytes go to a temporary file in the same folder, are
flushed to disk, and take the name in one rename.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from headroom.instances.errors import InputError, shown

MAX_JSON_BYTES = 2**30
MAX_ARRAY_BYTES = 2**33


def parse_json(text: str | bytes, source: str) -> Any:
    """Parse strict JSON: no NaN or infinity, no duplicate key, no number that overflows. Raises `InputError`."""

    def refuse_constant(token: str) -> Any:
        raise InputError(f"{token} is not JSON; expected a finite number or null", source)

    def finite_float(token: str) -> float:
        value = float(token)
        if math.isinf(value):
            raise InputError(f"number {shown(token)} is too large for a double; expected a finite number", source)
        return value

    def limited_int(token: str) -> int:
        if len(token) > 300:
            raise InputError(f"number {shown(token)} has {len(token)} digits; expected a finite number", source)
        return int(token)

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise InputError(f"key {shown(key)} stands twice in one object; expected it once", source)
                seen.add(key)
        return result

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        return json.loads(text, parse_constant=refuse_constant, parse_float=finite_float, parse_int=limited_int, object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start} is not UTF-8; expected a JSON text in UTF-8", source) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        ended = error.msg.startswith("Unterminated string") or (isinstance(text, str) and error.pos >= len(text.rstrip()))
        reason = "the text ends too early (truncated file?)" if ended else error.msg
        raise InputError(f"not valid JSON at {where}: {reason}", source) from None
    except RecursionError:
        raise InputError("nested too deeply; expected a headroom document", source) from None


def read_json(path: str | Path) -> Any:
    """Read one strict JSON document (see `parse_json`)."""
    return parse_json(read_bytes(path, MAX_JSON_BYTES), str(path))


def read_bytes(path: str | Path, limit_bytes: int) -> bytes:
    """The whole content of a file of at most `limit_bytes` bytes."""
    try:
        with open(path, "rb") as file:
            content = file.read(limit_bytes + 1)
    except OSError as error:
        raise unreadable(path, error) from None
    if len(content) > limit_bytes:
        raise InputError(f"larger than {limit_bytes} bytes; expected a smaller file", str(path))
    return content


def unreadable(path: str | Path, error: OSError) -> InputError:
    """The one-line form of an operating-system error about `path`."""
    return InputError(f"cannot be read: {error.strerror or error}", str(path))


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], None]) -> None:
    """Call `write` on a temporary file beside `path`, then give it the name. Raises `InputError` when the place cannot be written.

    A device or pipe (`/dev/stdout`) is written directly, since a rename would replace it.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file():
            if target.is_dir():
                raise InputError("is a folder; expected a file name to write to", str(path))
            with open(target, "wb") as stream:
                write(stream)
            return
        target = target.resolve()  # a symbolic link keeps pointing at its file
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:80]}.", suffix=".part", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, _mode_of(target))
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror or error}", str(path)) from None


def _mode_of(target: Path) -> int:
    """The permission bits the finished file should have: those it had, else what the umask leaves."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, lambda file: _ignore(file.write(text.encode("utf-8"))))


def _ignore(_: object) -> None:
    return None


def to_json(document: Mapping[str, Any]) -> str:
    """The one JSON spelling headroom writes: sorted keys, no NaN, infinities as null, one line per short list."""
    return json.dumps(without_infinities(document), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def without_infinities(value: Any) -> Any:
    """A copy in plain Python types with every infinite float replaced by None. NaN raises."""
    if isinstance(value, Mapping):
        return {str(key): without_infinities(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return without_infinities(value.tolist())
    if isinstance(value, (list, tuple)):
        return [without_infinities(item) for item in value]
    if isinstance(value, np.generic):
        return without_infinities(value.item())
    if isinstance(value, float):
        if math.isnan(value):
            raise ValueError("NaN has no place in a headroom document")
        return None if math.isinf(value) else value
    return value


def write_npz(path: str | Path, header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a JSON header and named arrays as one .npz file (numpy's own container, no pickles)."""
    content = {"header": np.frombuffer(to_json(header).encode("utf-8"), dtype=np.uint8), **arrays}

    def write(file: IO[bytes]) -> None:
        np.savez_compressed(file, allow_pickle=False, **content)

    write_atomically(path, write)


def read_npz(path: str | Path) -> tuple[Any, dict[str, npt.NDArray[Any]]]:
    """Read what `write_npz` wrote: the header and the arrays. Pickled content and oversized members are refused."""
    source = str(path)
    with _unpacking(source), zipfile.ZipFile(path) as archive:
        total = sum(member.file_size for member in archive.infolist())
    if total > MAX_ARRAY_BYTES:
        raise InputError(f"unpacks to {total} bytes; expected at most {MAX_ARRAY_BYTES}", source)
    with _unpacking(source):
        content = np.load(path, allow_pickle=False)
    if not isinstance(content, np.lib.npyio.NpzFile):
        # zipfile looks at the end of a file, numpy at its beginning.
        raise InputError("not a readable .npz container: begins with something else than a zip archive", source)
    with content:
        if "header" not in content.files:
            raise InputError("has no member 'header'; expected a headroom .npz container", source)
        with _unpacking(source):
            arrays = {name: np.asarray(content[name]) for name in content.files}
    header = arrays.pop("header")
    if header.dtype != np.uint8:
        raise InputError(f"member 'header' has type {header.dtype}; expected uint8 JSON text", source)
    return parse_json(header.tobytes(), source), arrays


@contextmanager
def _unpacking(source: str) -> Iterator[None]:
    """Around calls into zipfile and numpy, and nothing of our own: whatever they raise is the file's fault.

    Damaged content ends in errors of zipfile, zlib, struct, lzma, tokenize and numpy, which share no base class.
    """
    try:
        yield
    except OSError as error:
        raise unreadable(source, error) from None
    except MemoryError as error:
        raise InputError(f"needs more memory than there is: {str(error) or 'none left'}", source) from None
    except Exception as error:
        raise InputError(f"not a readable .npz container: {str(error) or type(error).__name__}", source) from None
