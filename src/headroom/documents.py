"""Plan documents (`headroom/plan/1`): a result as JSON or .npz, and back, with every field checked on the way in.

A document made elsewhere may be as short as `{"schema": "headroom/plan/1", "family": …, "plan": {…}}`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headroom.formulations.types import Bound, Plan, SolveParams
from headroom.instances.base import Instance
from headroom.instances.errors import InputError, shown
from headroom.instances.files import read_json, read_npz, to_json, write_npz, write_text
from headroom.registry import FAMILIES, Family, load
from headroom.run import Result

PLAN_SCHEMA = "headroom/plan/1"
FIELDS = ("schema", "family", "instance", "plan", "evaluation", "result", "bounds", "provenance", "details")
PROOFS = ("certificate", "closed_form", "solver")
ARRAY = "$array"
"""In the header of an .npz container `{"$array": name}` stands for the array of that name."""


@dataclass(frozen=True)
class PlanDocument:
    """A plan document that was read: what it claims, in types; nothing in it has been believed yet."""

    family: str
    plan: Plan | None
    instance_name: str | None = None
    instance_sha256: str | None = None
    objective: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    bounds: tuple[Bound, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)
    source: str = "plan"


# --- writing ----------------------------------------------------------------------------------------------------------------


def result_document(result: Result, instance: Instance | None = None, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The document of a result. `instance` is the instance as it was given when `options` (see `Family.options`) changed it for this run."""
    given = instance or result.instance
    best = result.best_bound
    document: dict[str, Any] = {
        "schema": PLAN_SCHEMA,
        "family": given.family,
        "instance": {"name": given.name, "sha256": given.digest()},
        "plan": None if result.plan is None else _with_arrays(result.plan.document(), result.plan),
        "evaluation": None if result.evaluation is None else result.evaluation.document(),
        "result": {
            "status": result.status,
            "stop": result.stop,
            "objective": result.objective,
            "bound": result.bound,
            "gap": result.gap,
            "proof": None if best is None else best.proof,
            "bound_method": None if best is None else best.method,
            "certified_bound": result.certified_bound,
            "certified_gap": result.certified_gap,
            "runtime_s": result.runtime_s,
        },
        "bounds": [bound.document() for bound in result.bounds],
        "provenance": {
            "headroom": result.versions.get("headroom"),
            "method": result.method,
            "parameters": parameters_of(result.params) | dict(options or {}),
            "seed": result.params.seed,
            "solver": result.solver,
        },
    }
    details = dict(result.details) | ({"notes": list(result.notes)} if result.notes else {})
    return document | ({"details": details} if details else {})


def parameters_of(params: SolveParams) -> dict[str, Any]:
    """The parameters worth recording: limits that were set, threads, switches, and a digest of the start plan."""
    parameters = {
        "time_limit_s": params.time_limit_s,
        "memory_limit_bytes": params.memory_limit_bytes,
        "gap_limit": params.gap_limit,
        "threads": params.threads,
        "deterministic": params.deterministic,
        "sensitivity": params.sensitivity,
        "start_sha256": None if params.start is None else hashlib.sha256(to_json(params.start.document()).encode("utf-8")).hexdigest(),
    }
    return {name: value for name, value in parameters.items() if value is not None}


def _with_arrays(dumped: Any, raw: Any) -> Any:
    """The dumped plan with numpy arrays where the plan itself holds them, so that .npz stores them as such."""
    if isinstance(raw, np.ndarray) and raw.dtype != object:
        return raw
    if isinstance(dumped, dict):
        return {key: _with_arrays(value, raw.get(key) if isinstance(raw, Mapping) else getattr(raw, key, None)) for key, value in dumped.items()}
    return dumped


def save_document(document: Mapping[str, Any], path: str | Path) -> None:
    """Write .npz if the name says so, else .json; whole or not at all."""
    if Path(path).suffix != ".npz":
        write_text(path, to_json(document))
        return
    arrays: dict[str, npt.NDArray[Any]] = {}
    write_npz(path, _split(document, "", arrays), arrays)


def _split(value: Any, name: str, arrays: dict[str, npt.NDArray[Any]]) -> Any:
    if isinstance(value, np.ndarray):
        arrays[f"array{len(arrays)}:{name}"] = value
        return {ARRAY: f"array{len(arrays) - 1}:{name}"}
    if isinstance(value, Mapping):
        return {str(key): _split(item, str(key), arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(item, name, arrays) for item in value]
    return value


# --- reading ----------------------------------------------------------------------------------------------------------------


def load_document(path: str | Path) -> PlanDocument:
    """Read a plan document from .json or .npz. Raises `InputError` that names the file and the field."""
    if Path(path).suffix == ".npz":
        header, arrays = read_npz(path)
        return read_document(_join(header, arrays, str(path)), str(path))
    return read_document(read_json(path), str(path))


def _join(value: Any, arrays: Mapping[str, npt.NDArray[Any]], source: str) -> Any:
    if isinstance(value, dict):
        if set(value) == {ARRAY}:
            name = value[ARRAY]
            if not isinstance(name, str) or name not in arrays:
                raise InputError(f"array {shown(name)} is missing; expected a member of the .npz container", source)
            return arrays[name]
        return {key: _join(item, arrays, source) for key, item in value.items()}
    if isinstance(value, list):
        return [_join(item, arrays, source) for item in value]
    return value


def read_document(content: Any, source: str = "plan") -> PlanDocument:
    """Check a plan document that was parsed already. Raises `InputError`."""
    try:
        return _read(content, source)
    except InputError as error:
        raise error.within(source) from None


def _read(content: Any, source: str) -> PlanDocument:
    if not isinstance(content, dict):
        raise InputError(f"expected a JSON object with schema {PLAN_SCHEMA!r}, got {shown(content)}")
    if content.get("schema") != PLAN_SCHEMA:
        raise InputError(f"schema must be {PLAN_SCHEMA!r}, got {shown(content.get('schema'))}")
    unknown = sorted(set(content) - set(FIELDS))
    if unknown:
        raise InputError(f"{shown(unknown[0])} is an unknown field; expected {', '.join(FIELDS)}")
    family = content.get("family")
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"family must be one of {', '.join(FAMILIES)}, got {shown(family)}")
    instance = _object(content, "instance")
    evaluation = _object(content, "evaluation")
    parts = _object(evaluation, "parts", "evaluation.parts")
    return PlanDocument(
        family=family,
        plan=plan_from_document(FAMILIES[family], content),
        instance_name=_text(instance, "name", "instance.name"),
        instance_sha256=_text(instance, "sha256", "instance.sha256"),
        objective=_number(evaluation, "objective", "evaluation.objective"),
        parts={name: value for name in parts if (value := _number(parts, name, f"evaluation.parts.{name}")) is not None},
        result=_read_result(_object(content, "result")),
        bounds=_read_bounds(content.get("bounds")),
        parameters=_object(_object(content, "provenance"), "parameters", "provenance.parameters"),
        content=content,
        source=source,
    )


def plan_from_document(family: Family, content: Mapping[str, Any]) -> Plan | None:
    """The plan in a document; None where it says null. Raises `InputError`."""
    if "plan" not in content:
        raise InputError("plan is missing; expected an object, or null in the document of a run that found none")
    data = content["plan"]
    if data is None:
        return None
    if not isinstance(data, dict):
        raise InputError(f"plan must be an object or null, got {shown(data)}")
    plan: Plan = load(family.plan)(**data)
    return plan


def _read_result(result: Mapping[str, Any]) -> dict[str, Any]:
    numbers = ("objective", "bound", "gap", "certified_bound", "certified_gap", "runtime_s")
    checked: dict[str, Any] = {name: _number(result, name, f"result.{name}") for name in numbers if name in result}
    return checked | {name: _text(result, name, f"result.{name}") for name in ("status", "stop", "proof", "bound_method") if name in result}


def _read_bounds(bounds: Any) -> tuple[Bound, ...]:
    if bounds is None:
        return ()
    if not isinstance(bounds, list):
        raise InputError(f"bounds must be a list, got {shown(bounds)}")
    found = []
    for i, item in enumerate(bounds):
        where = f"bounds[{i}]"
        if not isinstance(item, dict):
            raise InputError(f"{where} must be an object, got {shown(item)}")
        if item.get("proof") not in PROOFS:
            raise InputError(f"{where}.proof must be one of {', '.join(PROOFS)}, got {shown(item.get('proof'))}")
        value = _number(item, "value", f"{where}.value")
        if value is None:
            value = math.inf if item.get("infeasible") is True else -math.inf
        certificate = _object(item, "certificate", f"{where}.certificate") if item.get("certificate") is not None else None
        found.append(Bound(value, _text(item, "method", f"{where}.method") or "unnamed", item["proof"], certificate))
    return tuple(found)


def _object(content: Mapping[str, Any], name: str, shown_name: str | None = None) -> dict[str, Any]:
    value = content.get(name)
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{shown_name or name} must be an object, got {shown(value)}")
    return value or {}


def _text(content: Mapping[str, Any], name: str, shown_name: str) -> str | None:
    value = content.get(name)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{shown_name} must be a string, got {shown(value)}")
    return value


def _number(content: Mapping[str, Any], name: str, shown_name: str) -> float | None:
    value = content.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{shown_name} must be a number or null, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{shown_name} must be a number or null, got {shown(value)}") from None


# --- options of one run -----------------------------------------------------------------------------------------------------


def apply_options(instance: Instance, parameters: Mapping[str, Any]) -> Instance:
    """The instance with the overrides that `parameters` records (see `Family.options`); other parameters are ignored."""
    changes = {name: parameters[name] for name in FAMILIES[instance.family].options if parameters.get(name) is not None}
    return instance.replace(**changes) if changes else instance
