"""Imports flow one way, file by file, and what is slow to import waits until it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("instances", "formulations", "solvers", "bounds", "heuristics")
FAMILIES = ("gpu_selection", "expert_placement", "kv_tiering", "request_packing")
# A module may import what stands at or before its own place. `solvers/` stands twice: engines, and the families' own methods.
ORDER = ("instances", "formulations", "engines", "bounds", "heuristics", "family solvers", "headroom")
SOLVER_PACKAGES = {"highspy", "ortools", "pyomo"}
HEAVY_PACKAGES = {"numba", "pandas", "matplotlib", "plotly", "pyarrow"}


@dataclass(frozen=True)
class Import:
    target: str  # absolute dotted name, with the imported name itself at its end
    line: int
    on_load: bool  # executed when the module is imported: not in a function, not for type checkers only


def imports_in(source: str, module: str, is_package: bool = False) -> Iterator[Import]:
    package = module.split(".") if is_package else module.split(".")[:-1]

    def walk(node: ast.AST, on_load: bool) -> Iterator[Import]:
        match node:
            case ast.Import(names=names):
                yield from (Import(alias.name, node.lineno, on_load) for alias in names)
            case ast.ImportFrom(module=name, names=names, level=level):
                parts = package[: len(package) - level + 1] if level else []
                base = ".".join([*parts, *([name] if name else [])])
                yield from (Import(base if alias.name == "*" else f"{base}.{alias.name}", node.lineno, on_load) for alias in names)
            case ast.Call(func=ast.Name(id=call) | ast.Attribute(attr=call), args=[ast.Constant(value=str(name)), *_]):
                if call in ("import_module", "__import__"):
                    yield Import(name, node.lineno, on_load)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                on_load = False
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                for child in node.body:
                    yield from walk(child, on_load=False)
                for child in node.orelse:
                    yield from walk(child, on_load)
                return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, on_load)

    yield from walk(ast.parse(source), on_load=True)


def place(module: str) -> str | None:
    """Where in ORDER a dotted name stands; None for what is not part of the package."""
    top, *rest = module.split(".")
    if top != "headroom":
        return None
    if not rest or rest[0] not in ROOMS:
        return "headroom"
    if rest[0] != "solvers":
        return rest[0]
    return "family solvers" if len(rest) > 1 and rest[1].startswith(FAMILIES) else "engines"


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    here = place(module)
    found = []
    for imported in imports_in(source, module, is_package):
        top = imported.target.split(".")[0]
        there = place(imported.target)
        complaint = None
        if top == "tests":
            complaint = "only tests import tests"
        elif top in ROOMS:
            complaint = f"import it as headroom.{top}"
        elif here is None:
            continue
        elif there is not None and ORDER.index(there) > ORDER.index(here):
            complaint = f"{here} may not import {there}"
        elif here == "bounds" and top in SOLVER_PACKAGES:
            complaint = "a bound never calls a solver package"
        elif here == "bounds" and there == "engines" and imported.on_load:
            complaint = "a bound imports an engine only inside a function, so that verify loads none"
        elif imported.on_load and (top in SOLVER_PACKAGES or (here == "headroom" and top in HEAVY_PACKAGES)):
            complaint = "slow to import: only inside a function"
        if complaint:
            found.append(f"{module}:{imported.line} imports {imported.target}: {complaint}")
    return found


def modules() -> dict[str, Path]:
    """Every Python file outside the tests, under the name it is imported by."""
    folders = {"headroom": ROOT / "src" / "headroom", "benchmarks": ROOT / "benchmarks", "tools": ROOT / "tools"}
    folders |= {f"headroom.{room}": ROOT / room for room in ROOMS}
    return {
        ".".join([name, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): path
        for name, folder in folders.items()
        for path in sorted(folder.rglob("*.py"))
    }


def test_imports_flow_one_way() -> None:
    files = modules()
    assert {"headroom", *(f"headroom.{room}" for room in ROOMS)} <= files.keys()
    found = [text for module, path in files.items() for text in violations(path.read_text("utf-8"), module, path.name == "__init__.py")]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("headroom.instances.base", "import headroom.formulations", "instances may not import formulations"),
        ("headroom.instances.base", "from headroom import formulations", "instances may not import formulations"),
        ("headroom.instances.base", "from ..bounds.kv_tiering import hit_volume", "instances may not import bounds"),
        ("headroom.formulations.result", "def f():\n    from headroom.registry import FAMILIES", "formulations may not import headroom"),
        ("headroom.formulations.result", "if TYPE_CHECKING:\n    from headroom.solvers.highs import Run", "formulations may not import engines"),
        ("headroom.solvers.highs", "from headroom.solvers import gpu_selection", "engines may not import family solvers"),
        ("headroom.solvers.highs", "from .kv_tiering_path import step", "engines may not import family solvers"),
        ("headroom.bounds.kv_tiering", "from headroom.heuristics.kv_tiering import lru", "bounds may not import heuristics"),
        ("headroom.heuristics.kv_tiering", "importlib.import_module('headroom.solvers.kv_tiering')", "heuristics may not import family solvers"),
        ("headroom.bounds.kv_tiering", "def f():\n    import highspy", "a bound never calls a solver package"),
        ("headroom.bounds.kv_tiering", "from headroom.solvers import highs", "only inside a function, so that verify"),
        ("headroom.solvers.highs", "import highspy", "slow to import"),
        ("headroom.formulations.kv_tiering", "class Model:\n    import pyomo.environ as pyo", "slow to import"),
        ("headroom.formulations.kv_tiering", "if not TYPE_CHECKING:\n    import pyomo.environ", "slow to import"),
        ("headroom.cli", "try:\n    from matplotlib import pyplot\nexcept ImportError:\n    pass", "slow to import"),
        ("headroom.run", "from tests.oracles.kv_tiering import best", "only tests import tests"),
        ("benchmarks.speed", "def f():\n    import tests.oracles", "only tests import tests"),
        ("benchmarks.speed", "import instances", "import it as headroom.instances"),
    ],
)
def test_the_checker_catches(module: str, source: str, complaint: str) -> None:
    (found,) = violations(source, module)
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("headroom.formulations.kv_tiering", "from headroom.instances.kv_tiering import Instance\nfrom .result import Bound"),
        ("headroom.formulations.kv_tiering", "def build_model():\n    import pyomo.environ as pyo"),
        ("headroom.formulations.kv_tiering", "if TYPE_CHECKING:\n    import pyomo.environ as pyo"),
        ("headroom.bounds.kv_tiering", "def f():\n    from headroom.solvers.highs import solve"),
        ("headroom.solvers.kv_tiering_path", "from headroom.heuristics import kv_tiering\nfrom headroom.solvers.highs import solve"),
        ("headroom.solvers.local_search", "import numba"),
        ("headroom.report", "def f():\n    import pandas"),
        ("benchmarks.speed", "import pandas, pulp\nfrom headroom import run"),
    ],
)
def test_the_checker_allows(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_relative_imports_of_a_package_count_from_the_package() -> None:
    assert [i.target for i in imports_in("from . import a\nfrom .b import c", "headroom.export", is_package=True)] == [
        "headroom.export.a",
        "headroom.export.b.c",
    ]


def test_the_command_line_loads_nothing_slow() -> None:
    # What the walk above cannot see: a light module that imports a heavy one of another room.
    slow = SOLVER_PACKAGES | HEAVY_PACKAGES
    code = f"import sys, headroom.cli; print(*sorted({slow!r} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
