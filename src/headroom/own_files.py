"""A user's own Python file: read, hashed, and run as a module of a private package, in which it can import the files beside it.

This runs code. It is called with a path that the user has named on a command line or in a program, never with one that stands in an instance or a
plan document.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headroom.instances.errors import InputError
from headroom.instances.files import read_bytes

MOST_BYTES = 2**24
MOST_SHOWN = 300
"""Characters of an exception's text that an error message repeats."""


class OwnCodeError(InputError):
    """The user's own code failed, or returned what is no answer: bad input, with the line it happened in. Its cause is the exception itself."""


@dataclass(frozen=True)
class SourceFile:
    """A Python file as it was when it was named. `beside`: (path in its folder, SHA-256) of the files there that it imports, or they import.

    What is in `text` is what runs, so that an edit in the middle of a sweep changes nothing; a file beside it that has changed is refused.
    """

    shown: str
    path: str
    text: bytes
    beside: tuple[tuple[str, str], ...] = ()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text).hexdigest()

    @property
    def identity(self) -> str:
        """Of all the code that was read: changes with the file and with those that it imports from its folder."""
        return hashlib.sha256(repr((self.sha256, self.beside)).encode("utf-8")).hexdigest()

    @property
    def folder(self) -> Path:
        return Path(self.path).parent

    def module(self) -> types.ModuleType:
        """The file as a module; it runs once in a process. Raises `OwnCodeError` for whatever it raises."""
        package = f"_headroom_own_{hashlib.sha256((self.path + self.identity).encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
        name = f"{package}.{Path(self.path).stem}"
        if name in sys.modules:
            return sys.modules[name]
        for beside, known in self.beside:
            if _digest(self.folder / beside) != known:
                raise OwnCodeError("has changed since it was first read; expected the same file", str(Path(self.shown).parent / beside))
        parent = types.ModuleType(package)
        parent.__path__ = [str(self.folder)]
        module = types.ModuleType(name)
        module.__file__, module.__package__ = self.path, package
        sys.modules[package], sys.modules[name] = parent, module
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what it prints is nobody's result
                exec(compile(self.text, self.path, "exec", dont_inherit=True), module.__dict__)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, (KeyboardInterrupt, MemoryError)):
                raise
            raise OwnCodeError(self._hinted(error), self.where(error) or self.shown) from error
        return module

    def where(self, error: BaseException) -> str | None:
        """`file:line` of the last line of the user's folder that the exception came through; None where it came through none."""
        found = None
        trace = error.__traceback__
        while trace is not None:
            file = Path(trace.tb_frame.f_code.co_filename)
            if file == Path(self.path):
                found = f"{self.shown}:{trace.tb_lineno}"
            elif file.parent == self.folder:
                found = f"{Path(self.shown).parent / file.name}:{trace.tb_lineno}"
            trace = trace.tb_next
        if isinstance(error, SyntaxError) and error.filename is not None and Path(error.filename).parent == self.folder:
            return f"{Path(self.shown).parent / Path(error.filename).name}:{error.lineno or 1}"
        return found

    def _hinted(self, error: BaseException) -> str:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name and (self.folder / f"{error.name.partition('.')[0]}.py").is_file():
            hint = f"; the file beside it is imported by `from . import {error.name}`"
        return said(error) + hint


def read_source(text: str) -> SourceFile:
    """The file at a path that a user has named. Raises `InputError` when there is none, or it is not Python (with the line); runs nothing."""
    content = read_bytes(text, MOST_BYTES)
    path = Path(text).resolve()
    tree = _parsed(content, text)
    found: dict[str, str] = {}
    _follow(tree, path.parent, found)
    found.pop(path.name, None)
    return SourceFile(text, str(path), content, tuple(sorted(found.items())))


def _parsed(content: bytes, shown: str) -> ast.Module:
    try:
        return ast.parse(content)
    except SyntaxError as error:
        raise InputError(f"is not Python: {error.msg}", f"{shown}:{error.lineno or 1}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"is not Python: {error}", shown) from None


def _follow(tree: ast.Module, folder: Path, found: dict[str, str]) -> None:
    """The files of the folder that are imported, whether at once or later, and what they import in turn."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.level != 1:
            continue
        names = [node.module] if node.module else [alias.name for alias in node.names]
        for parts in (name.split(".") for name in names):
            # `from .a.b import c` runs a/__init__.py, then a/b.py or a/b/__init__.py; c may be one more
            places = [folder.joinpath(*parts[:k], "__init__.py") for k in range(1, len(parts) + 1)]
            places += [folder.joinpath(*parts[:-1], f"{parts[-1]}.py")]
            places += [folder.joinpath(*parts, f"{alias.name}.py") for alias in node.names] if node.module else []
            for place in places:
                at = place.relative_to(folder).as_posix()
                if at in found or (digest := _digest(place)) is None:
                    continue
                found[at] = digest
                try:
                    below = ast.parse(place.read_bytes())
                except (OSError, SyntaxError, ValueError, RecursionError):
                    continue  # it will be said when it runs
                if place.parent == folder:
                    _follow(below, folder, found)


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    except OSError:
        return None


def names_in(module: types.ModuleType) -> list[str]:
    """Functions and classes that the module defines itself."""
    own = (name for name, value in vars(module).items() if callable(value) and getattr(value, "__module__", None) == module.__name__)
    return [name for name in own if not name.startswith("_")]


def said(error: BaseException) -> str:
    """Type and text of an exception, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:MOST_SHOWN]}" if text else type(error).__name__


def attribute(module: types.ModuleType, dotted: str) -> Any:
    """`name` or `name.name` in a module. Raises `AttributeError`."""
    found: Any = module
    for part in dotted.split("."):
        found = getattr(found, part)
    return found


__all__ = ["OwnCodeError", "SourceFile", "attribute", "names_in", "read_source", "said"]
