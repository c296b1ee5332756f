"""Where a method that is not the registry's comes from: a file that the user named, an importable module, or this process alone."""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from headroom.instances.errors import InputError, shown
from headroom.own_files import OwnCodeError, SourceFile, attribute, names_in, read_source, said

_serial = itertools.count()
_numbers: dict[int, tuple[object, int]] = {}
"""Objects without a file that were given as methods in this process, by id, each with its number (and kept, so that no id comes twice)."""


class Origin(Protocol):
    """Where an own method comes from."""

    @property
    def identity(self) -> str:
        """Changes when the code does."""
        ...

    def object(self) -> Any:
        """The function or class. Raises `InputError`."""
        ...

    def where(self, error: BaseException) -> str | None:
        """`file:line` of the user's code that an exception came through."""
        ...


@dataclass(frozen=True)
class FromFile:
    """`attribute` of a file that the user has named."""

    source: SourceFile
    attribute: str

    @property
    def identity(self) -> str:
        return self.source.identity

    def object(self) -> Any:
        module = self.source.module()
        try:
            return attribute(module, self.attribute)
        except AttributeError:
            known = names_in(module)
            expected = f"expected one of {', '.join(known)}" if known else "it defines no function and no class"
            raise InputError(f"has no {shown(self.attribute)}; {expected}", self.source.shown) from None

    def where(self, error: BaseException) -> str | None:
        return self.source.where(error)


@dataclass(frozen=True)
class FromModule:
    """`attribute` of an importable module; `path` is where this process finds modules, for another one that must import it too."""

    module: str
    attribute: str
    source: SourceFile
    path: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        return self.source.identity

    def object(self) -> Any:
        sys.path += [folder for folder in self.path if folder not in sys.path]
        try:
            return attribute(importlib.import_module(self.module), self.attribute)
        except Exception as error:
            raise OwnCodeError(said(error), self.source.where(error) or self.module) from error

    def where(self, error: BaseException) -> str | None:
        return self.source.where(error)


@dataclass(frozen=True)
class Here:
    """An object of this process alone, such as a notebook's function: no other process can import it, and no later one knows whether it changed."""

    value: Any
    identity: str

    def object(self) -> Any:
        return self.value

    def where(self, error: BaseException) -> str | None:
        value = inspect.unwrap(_bare(self.value))
        code = getattr(value, "__code__", None)
        file = code.co_filename if code is not None else _file_of(value)
        found, trace = None, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == file:
                found = f"{file}:{trace.tb_lineno}"
            trace = trace.tb_next
        return found


def name_of(what: Any) -> str:
    """What tables call it."""
    return str(getattr(_bare(what), "__name__", type(what).__name__))


def _bare(what: Any) -> Any:
    while isinstance(what, functools.partial):
        what = what.func
    return what


def origin_of(what: Callable[..., Any]) -> Origin:
    """How other processes get at it, if they can."""
    module, qualified = getattr(what, "__module__", None), getattr(what, "__qualname__", "")
    found = sys.modules.get(module or "")
    file = getattr(found, "__file__", None)
    if found is not None and file and module and module != "__main__" and not module.startswith("_headroom_own_"):
        try:
            if attribute(found, qualified) is what:
                return FromModule(module, qualified, read_source(file), tuple(os.path.abspath(folder) for folder in sys.path))
        except (AttributeError, InputError):
            pass
    number = _numbers.setdefault(id(what), (what, next(_serial)))[1]
    return Here(what, f"object {number} of process {os.getpid()} begun {_begun()}")


@functools.cache
def _begun() -> str:
    return os.urandom(8).hex()


def _file_of(what: Any) -> str | None:
    try:
        return inspect.getsourcefile(what if isinstance(what, type) else type(what))
    except (OSError, TypeError):
        return None


__all__ = ["FromFile", "FromModule", "Here", "Origin", "name_of", "origin_of"]
