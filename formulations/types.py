"""What solvers of every family share: evaluations, bounds, outcomes, parameters, and the two kinds of heuristic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import ValidationError

from headroom.instances.base import Instance, Record, first_message
from headroom.instances.errors import InputError

Proof = Literal["certificate", "closed_form", "solver"]
Stop = Literal["completed", "time_limit", "gap_limit", "memory_limit", "interrupted", "error"]
Status = Literal["optimal", "feasible", "infeasible", "unknown"]


class Plan(Record):
    """Base of the families' plan types: the decision alone, frozen and JSON-able. Raises `InputError`."""

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise InputError(f"plan: {first_message(error)}") from None

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, Plan) and self.document() == other.document()

    def __hash__(self) -> int:
        return hash(type(self))

    def document(self) -> dict[str, Any]:
        """The plan in JSON types; fields at their defaults are left out."""
        return self.dump()


@dataclass(frozen=True)
class Violation:
    """One violated constraint: by how much (`amount`, in the constraint's own unit) it exceeds its `limit`, or falls short of it.

    A constraint whose name begins with `min_` is a lower limit.
    """

    constraint: str
    index: str
    amount: float
    limit: float

    def document(self) -> dict[str, Any]:
        return {"constraint": self.constraint, "index": self.index, "amount": self.amount, "limit": self.limit}

    def __str__(self) -> str:
        how = "falls short" if self.constraint.startswith("min_") else "exceeded"
        return f"{self.constraint}[{self.index}] {how} by {self.amount:.6g} (limit {self.limit:.6g})"


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` says of a plan: the objective, its named parts and every violated constraint.

    The parts add up to the objective, each times its weight where there are `weights`.
    """

    objective: float
    parts: Mapping[str, float]
    violations: tuple[Violation, ...] = ()
    weights: Mapping[str, float] | None = None

    @property
    def feasible(self) -> bool:
        return not self.violations

    def document(self) -> dict[str, Any]:
        return {"objective": self.objective, "parts": dict(self.parts), "violations": [item.document() for item in self.violations]}


@dataclass(frozen=True)
class Bound:
    """A proven lower bound on the objective of every feasible plan; +inf says that there is none.

    `proof`: "closed_form" (recomputed from the instance), "certificate" (data that a numpy-only recheck turns into the value), or
    "solver" (a solver said so; shown as such and never counted as proved).
    """

    value: float
    method: str
    proof: Proof
    certificate: Mapping[str, Any] | None = None

    def document(self, with_certificate: bool = True) -> dict[str, Any]:
        return {
            "method": self.method,
            "value": self.value,
            "proof": self.proof,
            "certificate": dict(self.certificate) if with_certificate and self.certificate is not None else None,
            "infeasible": self.value == math.inf,
        }


@dataclass(frozen=True)
class SolveParams:
    """What a caller may ask of any method. Limits are None when there is none."""

    seed: int = 0
    time_limit_s: float | None = None
    memory_limit_bytes: int | None = None
    gap_limit: float | None = None
    threads: int = 1
    deterministic: bool = False
    start: Plan | None = None
    sensitivity: bool = False

    def rng(self) -> np.random.Generator:
        """The one source of randomness, made at the edge from the seed."""
        return np.random.default_rng(self.seed)


@dataclass(frozen=True)
class Outcome:
    """What a method returns: no objective (only `evaluate` has one), and no word on optimality (only `run` has one)."""

    plan: Plan | None = None
    bounds: tuple[Bound, ...] = ()
    stop: Stop = "completed"
    solver_objective: float | None = None
    solver: str | None = None
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able extras that a caller asked for: sensitivity, infeasibility diagnosis, statistics."""


class Heuristic(Protocol):
    """An offline baseline: sees the whole instance, returns a plan or None (an Outcome when there is more to say), proves nothing."""

    def __call__(self, instance: Any, rng: np.random.Generator) -> Plan | Outcome | None: ...


class Policy(Protocol):
    """An online method. Built from what is known beforehand (the family says what), it is fed arrivals in order.

    It never sees the instance's future: contract tests truncate the stream and demand the same decisions on the prefix.
    """

    def decide(self, arrival: Any) -> Any: ...


def best_bound(bounds: tuple[Bound, ...], rechecked_only: bool) -> Bound | None:
    """The best (highest) bound, or the best that `verify` can recheck."""
    candidates = [bound for bound in bounds if not (rechecked_only and bound.proof == "solver") and not math.isnan(bound.value)]
    return max(candidates, key=lambda bound: bound.value, default=None)


__all__ = [
    "Bound",
    "Evaluation",
    "Heuristic",
    "Instance",
    "Outcome",
    "Plan",
    "Policy",
    "Proof",
    "SolveParams",
    "Status",
    "Stop",
    "Violation",
    "best_bound",
]
