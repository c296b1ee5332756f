"""How far is a placement or schedule for LLM inference from the best possible one, and what is the best one?

>>> import headroom
>>> result = headroom.solve("load.json", time_limit_s=60)
>>> result.status, result.objective, result.certified_gap
('optimal', 6.7, 0.0)
>>> headroom.verify("load.json", result).verified
True

Names are loaded when they are first used: `import headroom` alone costs nothing.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headroom.api import bound, failover, load, solve
    from headroom.compare import compare
    from headroom.formulations.types import SolveParams
    from headroom.instances.errors import InputError
    from headroom.report import report
    from headroom.run import Result, run
    from headroom.sweep import Sweep, moves_front, sweep, sweep_slo
    from headroom.verify import verify

    __version__: str

_HOME = {
    "InputError": "headroom.instances.errors",
    "Result": "headroom.run",
    "SolveParams": "headroom.formulations.types",
    "Sweep": "headroom.sweep",
    "bound": "headroom.api",
    "failover": "headroom.api",
    "compare": "headroom.compare",
    "load": "headroom.api",
    "moves_front": "headroom.sweep",
    "report": "headroom.report",
    "run": "headroom.run",
    "solve": "headroom.api",
    "sweep": "headroom.sweep",
    "sweep_slo": "headroom.sweep",
    "verify": "headroom.verify",
}

__all__ = [
    "InputError", "Result", "SolveParams", "Sweep", "__version__", "bound", "compare", "failover", "load", "moves_front", "report", "run", "solve",
    "sweep", "sweep_slo", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Reading package metadata takes longer than the rest of `headroom --help` needs: only on request.
    if name == "__version__":
        from importlib.metadata import version

        return version("headroom")
    if name in _HOME:
        from importlib import import_module

        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `headroom.run` the function: importing the submodule of that name would otherwise put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == value.__name__:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
