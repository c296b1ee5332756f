"""The notebooks run from top to bottom, say nothing on stderr, and are kept without outputs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTE, STRIP = (ROOT / "tools" / f"{name}.py" for name in ("execute_notebook", "strip_notebooks"))
MOST_S = 400


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def test_every_family_has_one() -> None:
    from headroom.registry import FAMILIES

    assert {path.stem for path in NOTEBOOKS} >= set(FAMILIES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_without_outputs(path: Path) -> None:
    nbformat.validate(read(path))
    done = subprocess.run([sys.executable, STRIP, "--check", path], capture_output=True, text=True, timeout=MOST_S)
    assert done.returncode == 0, done.stdout + "before a commit: python tools/strip_notebooks.py notebooks/*.ipynb"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    """In a process and folder of its own; any error, and anything that a cell says on stderr, fails."""
    shown = tmp_path / path.name
    folders = {"IPYTHONDIR": "ipython", "JUPYTER_RUNTIME_DIR": "jupyter"}
    # The debugger, which nobody needs here, would greet on stderr.
    env = os.environ | {name: str(tmp_path / folder) for name, folder in folders.items()} | {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    done = subprocess.run([sys.executable, EXECUTE, path, shown], env=env, capture_output=True, text=True, timeout=MOST_S)
    assert done.returncode == 0, done.stderr[-3000:]
    for number, cell in enumerate(read(shown).cells):
        for output in cell.get("outputs", []):
            assert not (output.output_type == "stream" and output.name == "stderr"), f"cell {number} says on stderr: {output.text}"
    if keep := os.environ.get("HEADROOM_KEEP_NOTEBOOKS"):  # to look at what it shows
        shutil.copy(shown, keep)


def test_stripping_takes_away_what_was_shown_and_nothing_else(tmp_path: Path) -> None:
    copy = tmp_path / NOTEBOOKS[0].name
    notebook = read(NOTEBOOKS[0])
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    code.outputs, code.execution_count = [nbformat.v4.new_output("stream", text="seen")], 7
    nbformat.write(notebook, copy)
    assert subprocess.run([sys.executable, STRIP, "--check", copy], capture_output=True, timeout=MOST_S).returncode == 1
    subprocess.run([sys.executable, STRIP, copy], check=True, capture_output=True, timeout=MOST_S)
    assert copy.read_bytes() == NOTEBOOKS[0].read_bytes()
