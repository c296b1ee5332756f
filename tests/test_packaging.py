"""What is built is what stands in the tree, under the one name `headroom`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import headroom

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("instances", "formulations", "solvers", "bounds", "heuristics")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
VERSION = PROJECT["project"]["version"]
PACKAGE_FOLDERS = {"headroom": ROOT / "src" / "headroom"} | {f"headroom.{room}": ROOT / room for room in ROOMS}


def python(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)


def packaged_files() -> set[str]:
    """Every file of the tree that belongs in the wheel, by its path there."""
    return {
        "/".join([*name.split("."), *path.relative_to(folder).parts])
        for name, folder in PACKAGE_FOLDERS.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the source distribution of a copy of the tree, without a network and without a stale build/."""
    folder = tmp_path_factory.mktemp("package")
    copy = folder / "copy"
    for name in ("src", *ROOMS):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    built = python("-m", "build", "--no-isolation", "--outdir", folder / "dist", copy, cwd=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    assert (folder / "dist" / f"headroom-{VERSION}.tar.gz").is_file()
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def test_packages_listed_are_packages_in_the_tree() -> None:
    in_tree = {
        ".".join([name, *path.parent.relative_to(folder).parts]) for name, folder in PACKAGE_FOLDERS.items() for path in folder.rglob("*.py")
    }
    assert set(SETUPTOOLS["packages"]) == in_tree
    assert {name: ROOT / folder for name, folder in SETUPTOOLS["package-dir"].items()} == PACKAGE_FOLDERS


def test_package_data_patterns_match_files() -> None:
    empty = [f"{name}: {p}" for name, patterns in SETUPTOOLS["package-data"].items() for p in patterns if not any(PACKAGE_FOLDERS[name].glob(p))]
    assert empty == []


def test_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = f"headroom-{VERSION}.dist-info"
    assert {name.split("/")[0] for name in names} == {"headroom", metadata}
    assert {name for name in names if not name.startswith(metadata)} == packaged_files()
    assert f"{metadata}/licenses/LICENSE" in names


def test_installed_wheel_imports_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    installed = python("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", target, wheel, cwd=elsewhere)
    assert installed.returncode == 0, installed.stderr
    rooms = ", ".join(f"headroom.{room}" for room in ROOMS)
    code = f"import headroom, {rooms}; print(headroom.__version__, *(room.__file__ for room in ({rooms})), sep='\\n')"
    imported = python("-c", code, cwd=elsewhere, PYTHONPATH=str(target))
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.splitlines() == [VERSION, *(str(target / "headroom" / room / "__init__.py") for room in ROOMS)]


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_refuse_their_bare_names(room: str) -> None:
    refused = python("-c", f"import {room}", cwd=ROOT)
    assert refused.returncode == 1
    assert re.search(rf"^ImportError: this folder is the package headroom\.{room}\b.*import headroom\.{room}$", refused.stderr, re.MULTILINE)


def test_no_folder_shadows_the_package() -> None:
    assert not (ROOT / "headroom").exists()
    spec = find_spec("headroom")
    assert spec is not None
    assert spec.origin == str(ROOT / "src" / "headroom" / "__init__.py")


def test_version_is_the_same_everywhere() -> None:
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == VERSION == headroom.__version__


def test_lock_satisfies_every_requirement() -> None:
    locked = [Requirement(line) for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line and not line.startswith("#")]
    version = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in locked}
    project = PROJECT["project"]
    wanted = [Requirement(line) for lines in (project["dependencies"], *project["optional-dependencies"].values()) for line in lines]
    unmet = [str(need) for need in wanted if not need.specifier.contains(version.get(canonicalize_name(need.name), "0"))]
    assert unmet == []


def test_code_files_stay_short() -> None:
    folders = [*PACKAGE_FOLDERS.values(), ROOT / "benchmarks", ROOT / "tools"]
    lines = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for folder in folders for path in folder.rglob("*.py")}
    assert {name: count for name, count in lines.items() if count >= 450} == {}
