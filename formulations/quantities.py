"""Quantities of an instance that can be swept: what it means to change one, and what a change does to plans and their objectives.

What a change does decides which answers may be reused at the next value, and which proof stands behind that:

- **relaxes** / **tightens**: every plan that is feasible at a value is feasible at each larger (smaller) one and costs the same there. So the
  optimum is monotone, a bound at the looser value bounds the tighter one, and a plan of the tighter value is a plan of the looser one.
- **prices**: the set of plans stays, and a plan costs `intercept + slope · value`. The optimum over all plans is then a minimum of lines:
  concave and piecewise linear. So a plan's line bounds it from above everywhere, and between two values a chord of bounds bounds it from below.

A family lists its quantities in the registry: `f(instance, index) -> Quantity`, where `index` names a type, a pool, … or is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from headroom.formulations.progress import Progress
from headroom.formulations.types import Plan, SolveParams
from headroom.instances.base import Instance
from headroom.instances.errors import InputError

Effect = Literal["relaxes", "tightens", "prices"]


@dataclass(frozen=True)
class Front:
    """One search that finds plans for many values of a limit.

    `plans(values, known plans, params, progress)` maps values to plans, the tightest value that makes sense always among them; `alone` says whether
    that search is all that `method` could do, so that nothing needs to be solved value by value.
    """

    plans: Callable[[Sequence[float], Iterable[Plan], SolveParams, Progress], Mapping[float, Plan]]
    alone: bool
    method: str


@dataclass(frozen=True)
class Quantity:
    """One number of one instance that can be varied.

    `vary(value)` is the instance with the number set; `current` what it is now (None: unlimited); `carry(variant, plan)` yields plans for a
    variant made from a plan of another one (they need not be feasible: `evaluate` decides); `fleet(plan)` says what a plan rents, by name.
    """

    name: str
    index: str
    unit: str
    effect: Effect
    current: float | None
    vary: Callable[[float], Any]
    carry: Callable[[Any, Plan], Iterable[Plan]]
    fleet: Callable[[Plan], Mapping[str, float]]
    least: float = 0.0
    """No smaller value makes sense."""
    whole: bool = False
    """Whether only whole numbers make sense."""
    spacing: Literal["linear", "log"] = "linear"
    line: Callable[[Plan], tuple[float, float]] | None = None
    """Effect "prices": intercept and slope of a plan's objective."""
    used: Callable[[Plan], float] | None = None
    """How much of a limit a plan uses: at and above that value the plan is feasible."""
    constraint: str = ""
    """The name of the constraint that the number limits, as sensitivity reports name it."""
    dual: Callable[[Any], float | None] | None = None
    """What one unit of relaxing saves by the linear relaxation's multipliers, for a variant; None where that says nothing."""

    unlimited: float = 1e9
    """Effect "relaxes": at this value the limit is out of every optimum's way."""
    grain: float = 1.0
    """Where no values are given, multiples of this are swept."""
    step: float = 1.0
    """By how much a limit is changed to see what it is worth."""
    shown: tuple[float, str] = (1.0, "")
    """For people: the larger unit that the number is divided by and its name; empty: the unit itself."""

    front: Front | None = None
    """Effect "relaxes": a search that answers many values at once."""
    bound: Callable[[float], tuple[float, str] | None] = lambda value: None
    """What the family itself knows of the optimum at a value: a bound from below, and the argument."""

    @property
    def label(self) -> str:
        """`price of H100`."""
        return f"{self.name} of {self.index}" if self.index else self.name

    def checked(self, value: float) -> Instance:
        """The variant. Raises `InputError` for a value that makes no sense."""
        if not self.least <= value < float("inf"):  # refuses NaN as well
            raise InputError(f"must be finite and at least {self.least:g}, got {value:g}", self.label)
        if self.whole and value != int(value):
            raise InputError(f"must be a whole number, got {value:g}", self.label)
        variant: Instance = self.vary(value)
        return variant
