"""Bring notebooks into the form in which they are kept in git: no outputs, no execution counts, no trace of who ran them.

    python tools/strip_notebooks.py notebooks/*.ipynb            rewrite them
    python tools/strip_notebooks.py --check notebooks/*.ipynb    exit 1 and name those that are not in that form
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def stripped(text: str) -> str:
    """The notebook (nbformat 4.5, as JSON text) with every cell's type, id and source, code without results, and nothing else."""
    notebook = json.loads(text)
    cells = []
    for cell in notebook["cells"]:
        kept = {"cell_type": cell["cell_type"], "id": cell["id"], "metadata": {}}
        if cell["cell_type"] == "code":
            kept |= {"execution_count": None, "outputs": []}
        source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        cells.append(kept | {"source": source.splitlines(keepends=True)})
    kept_notebook = {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(kept_notebook, indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    unclean = []
    for path in map(Path, (name for name in arguments if name != "--check")):
        text = path.read_text("utf-8")
        if stripped(text) != text:
            unclean.append(path)
            if not check:
                path.write_text(stripped(text), "utf-8")
    for path in unclean:
        print(f"{path}: {'holds outputs or is not in canonical form' if check else 'stripped'}")
    return 1 if check and unclean else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
