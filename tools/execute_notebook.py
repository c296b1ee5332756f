"""Execute a notebook with this interpreter and write what it shows to another file.

    python tools/execute_notebook.py notebooks/gpu_selection.ipynb executed.ipynb
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat

MOST_S = 300


def execute(source: Path, target: Path) -> None:
    """In a kernel whose folder is the target's; the first error of a cell is raised."""
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    manager = AsyncKernelManager()
    assert manager.kernel_spec is not None
    manager.kernel_spec.argv[0] = sys.executable  # whatever kernels the user has installed elsewhere
    notebook = nbformat.read(source, as_version=4)
    NotebookClient(notebook, timeout=MOST_S, km=manager, resources={"metadata": {"path": str(target.parent)}}).execute()
    nbformat.write(notebook, target)


if __name__ == "__main__":
    match sys.argv[1:]:
        case [source, target]:
            execute(Path(source), Path(target).absolute())
        case _:
            sys.exit(__doc__)
