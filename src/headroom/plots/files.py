"""Figures without a display, and files that appear whole or not at all."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headroom.instances.errors import InputError
from headroom.instances.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from headroom.sweep_types import Sweep

SUFFIXES = (".png", ".svg", ".html")
SIZE_IN = (8.0, 4.5)
DPI = 150


def figure(width_in: float = SIZE_IN[0], height_in: float = SIZE_IN[1]) -> tuple[Figure, Axes]:
    """A figure with one axes, made without pyplot: nothing to close, no display needed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width_in, height_in))
    FigureCanvasAgg(made)
    return made, made.add_subplot()


def save(made: Figure, path: str | Path) -> None:
    """Write a figure as .png, .svg or .html (one page with the drawing in it). The same figure gives the same bytes. Raises `InputError`."""
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise InputError(f"must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}", str(path))
    content = _drawn(made, "png" if suffix == ".png" else "svg")
    if suffix == ".html":
        title = html.escape(made.axes[0].get_title(loc="left") or "headroom")
        drawing = content.decode("utf-8")
        drawing = drawing[drawing.index("<svg") :]
        page = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n<body style="margin:2em">\n{drawing}</body></html>\n'
        content = page.encode("utf-8")
    write_atomically(path, lambda file: _ignore(file.write(content)))


def save_sweep(sweep: Sweep, path: str | Path) -> None:
    """The plot that fits a sweep's kind. Raises `InputError` when it has nothing to draw."""
    from headroom.plots import sweeps

    draw: dict[str, Any] = {
        "price": sweeps.price_sweep,
        "rate": sweeps.cost_mix,
        "slo": sweeps.slo_heat_map,
        "shadow": sweeps.shadow_price_bars,
        "moves": sweeps.moves_front,
        "capacity": sweeps.capacity_sweep,
    }
    made, ax = figure()
    draw.get(sweep.kind, sweeps.limit_sweep)(ax, sweep)
    save(made, path)


def _drawn(made: Figure, kind: str) -> bytes:
    import matplotlib

    stream = io.BytesIO()
    # Dates and random ids would make two drawings of the same thing differ.
    metadata = {"Date": None} if kind == "svg" else {"Software": "headroom"}
    with matplotlib.rc_context({"svg.hashsalt": "headroom"}):
        made.savefig(stream, format=kind, dpi=DPI, bbox_inches="tight", facecolor="white", metadata=metadata)
    return stream.getvalue()


def _ignore(_: object) -> None:
    return None
