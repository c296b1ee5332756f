"""One HTML file that shows a comparison: gaps, charts, plans, where it all comes from. It needs no network, and is the same for the same input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from headroom.formulations.types import Plan
    from headroom.instances.base import Instance
    from headroom.run import Result

    Table = pd.DataFrame | str | Path
    Drawn = str | Result | tuple[Instance | str | Path, Plan | Result | str | Path | Any]

__all__ = ["report"]


def report(tables: Table | Sequence[Table], output: str | Path, plans: Sequence[Drawn] = (), *, title: str | None = None) -> Path:
    """Write the report of one or several tables of `headroom.compare` (frames or .parquet files) to `output` (.html).

    `plans` are drawn in it, each a result, a pair (instance, plan) of objects or files, or "x.json:plan.json"; they are rechecked first. Several
    tables are merged: gaps are then against the best bounds of all. The same input gives the same bytes. Returns the path. Raises `InputError` for
    input that cannot be used.
    """
    from headroom.instances.errors import InputError
    from headroom.instances.files import write_text
    from headroom.report.data import read
    from headroom.report.page import page
    from headroom.report.pictures import plan_page, split_pair
    from headroom.run import Result

    path = Path(output)
    if path.suffix not in (".html", ".htm"):
        raise InputError("must end in .html", str(output))
    runs = read(list(tables) if isinstance(tables, (list, tuple)) else [tables])  # type: ignore[list-item]
    pages = []
    for item in plans:
        instance, plan = (item.instance, item) if isinstance(item, Result) else split_pair(item) if isinstance(item, str) else item
        pages.append(plan_page(instance, plan))
    write_text(path, page(runs, pages, title))
    return path
