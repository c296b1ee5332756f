"""Methods that the registry does not hold: a user's own, by file (`./my_policy.py:MyPolicy`) or as the object, and those of installed packages.

What an object is says how it runs. A class is an online policy: the family's `replay` builds it from what is known beforehand and asks its `decide`.
A function f(instance, rng) -> Plan | Outcome | None is a heuristic that sees the whole instance. Attributes of the object say more, all optional:

    kind      "heuristic" or "policy", where that is not what it looks like (a function that builds a policy from its deployment is a "policy")
    family    the family, or families, that it is for; other instances of a comparison are left out
    modes     the modes of the family that it is for ("bins", "makespan", ...)
    seeded    False: it draws nothing, so that one seed is enough
    summary   one line for `headroom families`; else the docstring's first

A policy may leave out what it does not use: `settings`, `sigma`, `lookahead_steps`, `placed`.

Packages register theirs as entry points of the group `headroom.heuristics`, named "family.method". They run by default in `compare`, on instances of
that family. One that cannot be used is left out with a line in the log.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final

from headroom.formulations.types import Outcome
from headroom.instances.base import Instance
from headroom.instances.errors import InputError, shown
from headroom.own_files import OwnCodeError, names_in, read_source, said
from headroom.own_origins import FromFile, FromModule, Here, Origin, name_of, origin_of
from headroom.registry import FAMILIES, PLUGIN_GROUP, Family, Kind, Method, load

DECIDES: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {("request_packing", "bins"): ("arrival", "refused")}
"""What a policy's `decide` is given besides itself; one argument where nothing else stands here."""


@dataclass(frozen=True)
class OwnMethod(Method):
    """A method that is not the registry's, under the `name` that tables show. `families`: those that it is for, empty for any."""

    name: str = field(kw_only=True)
    origin: Origin = field(kw_only=True)
    families: tuple[str, ...] = field(default=(), kw_only=True)
    package: str = field(default="", kw_only=True)
    """Name and version of the package that registers it; empty for a user's own."""

    @property
    def identity(self) -> str:
        return f"{self.package} {self.origin.identity}".strip()

    @property
    def portable(self) -> bool:
        """Whether another process of this machine can run it."""
        return not isinstance(self.origin, Here)

    @property
    def source(self) -> str:
        """Which code it is, for a row: the file and its SHA-256, or that there is none."""
        if isinstance(self.origin, Here):
            return "an object of the process that compared"
        assert isinstance(self.origin, (FromFile, FromModule))
        file = self.origin.source
        beside = f" with {', '.join(name for name, _ in file.beside)}" if file.beside else ""
        return f"{self.package + ' ' if self.package else ''}{Path(file.path).name} sha256 {file.sha256}{beside}"

    def load(self) -> Any:
        """What `run` calls: the function, or the policy class with what it left out."""
        found = self.origin.object()
        return _with_defaults(found) if self.kind == "policy" and isinstance(found, type) else found

    def is_for(self, family: Family, mode: str | None = None) -> bool:
        """Whether it is for instances of the family, in that mode (None: in any)."""
        return (not self.families or family.name in self.families) and (mode is None or not self.modes or mode in self.modes)

    def check_for(self, instance: Instance) -> None:
        """Raise `InputError` where the family's replay could not ask a policy."""
        family = FAMILIES[instance.family]
        if not self.is_for(family, family.mode_of(instance)):
            wanted = " or ".join(self.families or (family.name,)) + (f", {' or '.join(self.modes)}" if self.modes else "")
            raise InputError(f"is for {wanted}; got an instance of {' '.join((family.name, family.mode_of(instance))).strip()}", self.name)
        found = self.origin.object()
        if self.kind == "policy" and isinstance(found, type):
            given = DECIDES.get((family.name, family.mode_of(instance)), ("seen",))
            role = f"a policy for {family.name}" + ("" if self.families else " (an attribute `family` would say which family it is for)")
            _check_call(found.decide, ("self", *given), f"{self.name}.decide", role)  # type: ignore[attr-defined]

    def checked(self, found: Any, instance: Instance) -> Outcome:
        """What it returned, as an outcome: without bounds, which nobody has proved. Raises `OwnCodeError` for anything but a plan of the family."""
        outcome = found if isinstance(found, Outcome) else Outcome(plan=found)
        types = tuple(load(target) for target in FAMILIES[instance.family].plans)
        if outcome.plan is not None and not isinstance(outcome.plan, types):
            names = ", ".join(kind.__name__ for kind in types)
            got = f"{shown(outcome.plan)}, of type {type(outcome.plan).__name__}"
            raise OwnCodeError(f"returned {got}; expected {names}, an Outcome or None", self.name)
        notes = tuple(str(note) for note in outcome.notes)
        if outcome.bounds:
            notes += ("its bounds were left out: only methods of the package may state bounds",)
        details = dict(outcome.details) if _is_json(outcome.details) else {}
        return replace(outcome, bounds=(), notes=notes, details=details | {"own_method": self.source}, solver=None)

    def failure(self, error: BaseException) -> InputError:
        """An exception of its code as one line that names file and line."""
        where = self.origin.where(error)
        return OwnCodeError(said(error), self.name) if where is None else OwnCodeError(f"{said(error)} (in {self.name.rpartition(':')[2]})", where)


def is_own(name: str) -> bool:
    """Whether the name of a method is that of a file and something in it: `my_policy.py:MyPolicy`."""
    return name.endswith(".py") or ".py:" in name


def own_method(what: str | Callable[..., Any] | Method) -> OwnMethod:
    """The method that a `file.py:name`, a function or a class is. A file is read and run. Raises `InputError`, one line, for what is no method."""
    if isinstance(what, OwnMethod):
        return what
    if isinstance(what, str):
        path, colon, name = what.rpartition(":")
        if not colon or not path.endswith(".py"):
            path, name = (what, "") if not colon else (path, name)
        source = read_source(path)
        if not name:
            known = ", ".join(names_in(source.module())) or "a function or class"
            raise InputError(f"must say which of its functions or classes is meant, as {path}:NAME; it has {known}", what)
        return _made(what, FromFile(source, name))
    if not callable(what):
        raise InputError(f"must be a name, a function or a class, got {shown(what)}", "method")
    return _made(name_of(what), origin_of(what))


def _made(name: str, origin: Origin, package: str = "") -> OwnMethod:
    found = origin.object()
    if not callable(found):
        raise InputError(f"is {shown(found)}; expected a function or a class", name)
    kind: Kind = getattr(found, "kind", "policy" if isinstance(found, type) else "heuristic")
    if kind not in ("heuristic", "policy"):
        raise InputError(f"kind must be 'heuristic' or 'policy', got {shown(kind)}", name)
    if isinstance(found, type) and (kind != "policy" or not callable(getattr(found, "decide", None))):
        raise InputError("is a class without a method `decide`; expected an online policy, or a function f(instance, rng)", name)
    if kind == "policy":
        _check_call(found, ("deployment",), name, "a policy")
    else:
        _check_call(found, ("instance", "rng"), name, "a heuristic")
    seeded = getattr(found, "seeded", True)
    if not isinstance(seeded, bool):
        raise InputError(f"seeded must be True or False, got {shown(seeded)}", name)
    families, modes = (_strings(getattr(found, word, ()), name, word) for word in ("family", "modes"))
    for family in families:
        if family not in FAMILIES:
            raise InputError(f"family must be one of {', '.join(FAMILIES)}, got {shown(family)}", name)
    summary = getattr(found, "summary", None) or (inspect.getdoc(found) or "").partition("\n")[0]
    return OwnMethod(name, str(summary), kind, seeded, modes=modes, name=name, origin=origin, families=families, package=package)


def _strings(value: Any, name: str, word: str) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else value
    if not isinstance(found, (tuple, list)) or not all(isinstance(item, str) for item in found):
        raise InputError(f"{word} must be a name or several, got {shown(value)}", name)
    return tuple(found)


def _check_call(what: Any, given: tuple[str, ...], name: str, role: str) -> None:
    """Raise `InputError` where it cannot be called with these arguments, by position."""
    try:
        signature = inspect.signature(what)
    except (TypeError, ValueError):
        return  # compiled code does not say
    try:
        signature.bind(*given)
    except TypeError:
        takes = ", ".join(parameter for parameter in signature.parameters if parameter != "self")
        wanted = ", ".join(parameter for parameter in given if parameter != "self")
        raise InputError(f"takes ({takes}); expected ({wanted}) of {role}", name) from None


class _Unsaid:
    """What a policy need not say."""

    settings: Mapping[str, Any] = {}
    sigma = 0.0
    lookahead_steps = 0

    def placed(self, *_: Any) -> None:
        return None


def _with_defaults(policy: type) -> type:
    if all(hasattr(policy, name) for name in ("settings", "sigma", "lookahead_steps", "placed")):
        return policy
    namespace = {"__module__": policy.__module__, "__qualname__": policy.__qualname__, "__doc__": policy.__doc__}
    return type(policy)(policy.__name__, (policy, _Unsaid), namespace)


def _is_json(details: Any) -> bool:
    from headroom.instances.files import to_json

    try:
        to_json(dict(details))
    except (TypeError, ValueError):
        return False
    return True


@contextmanager
def failures_of(entry: Method) -> Iterator[None]:
    """What a user's own method raises becomes one line that names its file and line; other methods' exceptions pass."""
    try:
        yield
    except (MemoryError, OwnCodeError):
        raise
    except (Exception, SystemExit) as error:
        if not isinstance(entry, OwnMethod):
            raise
        raise entry.failure(error) from error


# --- those of installed packages ----------------------------------------------------------------------------------------------------


@functools.cache
def _registered() -> dict[str, tuple[EntryPoint, ...]]:
    """Entry points by the family that their name begins with; imports none of them."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in sorted(entry_points(group=PLUGIN_GROUP), key=lambda point: (point.name, point.value)):
        family, dot, name = point.name.partition(".")
        if not (dot and name and family in FAMILIES):
            _log(point, f"must be named FAMILY.NAME with a family of {', '.join(FAMILIES)}")
            continue
        found[family] = (*found.get(family, ()), point)
    return found


@functools.cache
def plugins(family: str) -> Mapping[str, OwnMethod]:
    """The methods that installed packages register for a family. What cannot be used is left out, with a line in the log."""
    found: dict[str, OwnMethod] = {}
    for point in _registered().get(family, ()):
        name = point.name.partition(".")[2]
        package = "" if point.dist is None else f"{point.dist.name} {point.dist.version}"
        try:
            if name in found or name in FAMILIES[family].methods:
                raise InputError("has the name of another method")
            with contextlib.redirect_stdout(sys.stderr):
                value = point.load()
            file = getattr(sys.modules[point.module], "__file__", None)
            if file is None:
                raise InputError("is in a module without a file")
            origin = FromModule(point.module, point.attr, read_source(file), tuple(os.path.abspath(folder) for folder in sys.path))
            method = _made(name, origin, package)
            if method.families and family not in method.families:
                raise InputError(f"is named for {family} and says that it is for {', '.join(method.families)}")
            found[name] = replace(method, families=(family,))
        except (Exception, SystemExit) as error:
            _log(point, str(error) if isinstance(error, InputError) else said(error))
            continue
        del value
    return found


def _log(point: EntryPoint, why: str) -> None:
    package = "" if point.dist is None else f" of {point.dist.name} {point.dist.version}"
    logging.getLogger("headroom").warning("headroom: plug-in %s%s is left out: %s", point.name, package, " ".join(why.split()))


# --- for run and compare --------------------------------------------------------------------------------------------------------------


def plugins_for(instance: Instance) -> dict[str, Method]:
    """The methods of installed packages that handle this instance."""
    family = FAMILIES[instance.family]
    return {name: method for name, method in plugins(family.name).items() if method.is_for(family, family.mode_of(instance))}


class OwnMethods:
    """The own methods that a comparison names, each resolved once."""

    def __init__(self, named: Sequence[str | Callable[..., Any] | Method]) -> None:
        self.methods: dict[str, OwnMethod] = {}
        self._names: dict[int, str] = {}
        self._fit: set[str] = set()
        for what in named:
            if isinstance(what, str) and not is_own(what):
                continue
            method = own_method(what)
            self._names[id(what)] = method.name
            before = self.methods.setdefault(method.name, method)
            if before.identity != method.identity:
                raise InputError("is the name of two methods; expected another __name__ for one of them", method.name)

    def names(self, named: Sequence[str | Callable[..., Any] | Method]) -> list[str]:
        """The names that tables show, of names and objects that this was made with."""
        return [what if isinstance(what, str) else self._names[id(what)] for what in named]

    def known(self, family: Family) -> list[str]:
        """Names that a comparison with instances of the family may use: those of the registry, of packages, and own ones."""
        return [*family.methods, *plugins(family.name), *self.methods]

    def methods_for(self, instance: Instance) -> dict[str, Method]:
        """The registry's, packages' and own methods that handle this instance. Raises `InputError` for an own one whose policy could not be asked."""
        family = FAMILIES[instance.family]
        found = {**family.methods_for(instance), **plugins_for(instance)}
        for name, method in self.methods.items():
            if name in family.methods or name in plugins(family.name):
                raise InputError(f"is the name of a method of {family.name}; expected another __name__", name)
            if method.is_for(family):
                self._fit.add(name)
            if method.is_for(family, family.mode_of(instance)):
                method.check_for(instance)
                found[name] = method
        return found

    def check(self) -> None:
        """Raise `InputError` for an own method whose family no instance is of, once `methods_for` has seen them all."""
        for name, method in self.methods.items():
            if name not in self._fit:
                raise InputError(f"is for {' or '.join(method.families)}, and no instance is", name)


__all__ = ["OwnMethod", "OwnMethods", "failures_of", "is_own", "own_method", "plugins", "plugins_for"]
