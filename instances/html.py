"""Instances and plans as a notebook shows them: a small table of the fields, arrays by shape and range."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

import numpy as np

MOST_TEXT = 160


def table(title: str, rows: Iterable[tuple[str, str]], subtitle: str = "") -> str:
    """An HTML table of names and values; everything is escaped."""
    under = f" <span style='opacity:.7'>{html.escape(subtitle)}</span>" if subtitle else ""
    head, cell = "<th style='text-align:left;font-weight:600;vertical-align:top'>", "<td style='text-align:left'>"
    body = "".join(f"<tr>{head}{html.escape(name)}</th>{cell}{html.escape(text)}</td></tr>" for name, text in rows)
    return f"<div><strong>{html.escape(title)}</strong>{under}<table>{body}</table></div>"


def in_words(value: Any) -> str:
    """A field's value on one line: arrays by shape, range and mean, long texts cut."""
    if isinstance(value, np.ndarray):
        return array_in_words(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if hasattr(type(value), "model_fields"):
        parts = (f"{name}: {in_words(getattr(value, name))}" for name in type(value).model_fields if getattr(value, name) is not None)
        return _cut("; ".join(parts), 3 * MOST_TEXT)
    if isinstance(value, (list, tuple)) and len(value) > 6:
        return f"{len(value)} of {_cut(in_words(value[0]), MOST_TEXT // 2)}, …"
    if isinstance(value, (list, tuple)):
        return _cut(" | ".join(in_words(item) for item in value), 2 * MOST_TEXT)
    return _cut(str(value), MOST_TEXT)


def array_in_words(array: np.ndarray[Any, Any]) -> str:
    """Shape, and least, mean and most; the numbers themselves where they are few."""
    shape = " x ".join(map(str, array.shape))
    if not array.size:
        return f"[{shape}] empty"
    if array.dtype == object or array.dtype.kind in "US":
        return _cut(f"[{shape}] {array.ravel()[:4].tolist()}", MOST_TEXT)
    if array.ndim == 1 and array.size <= 8:
        return ", ".join(f"{item:.6g}" for item in array.tolist())
    return f"[{shape}] from {array.min():.6g} to {array.max():.6g}, mean {array.mean():.6g}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


__all__ = ["array_in_words", "in_words", "table"]
