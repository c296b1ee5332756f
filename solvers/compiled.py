"""Functions compiled by numba, with their machine code kept between runs where a folder for it can be written.

numba refuses `cache=True` at import when neither the source's folder nor the user's cache folder is writable; then the function is compiled
anew in each process. A compiled function and all compiled functions it calls belong in one file: numba does not see edits elsewhere. Compiled
code holds no Python lock: several threads run it side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function, compiled on its first call for the types it is given."""
    import numba

    jit: Any = numba.njit
    try:
        return cast("Callable[P, R]", jit(cache=True, nogil=True)(function))
    except RuntimeError:  # "cannot cache function: no locator available": nothing is writable
        return cast("Callable[P, R]", jit(nogil=True)(function))


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """The function for use by compiled ones in its file, copied into each: a call that passes many arrays takes longer than a few additions."""
    import numba

    jit: Any = numba.njit
    return cast("Callable[P, R]", jit(inline="always")(function))
