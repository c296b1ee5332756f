"""Plan documents (`headroom/plan/1`): a result as JSON or .npz, and back, with every field checked on the way in.

A document made elsewhere may be as short as `{"schema": "headroom/plan/1", "family": …, "plan": {…}}`. Infinities are null in documents,
whether they stand in a file or in a dict.
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

from headroom.describe import facts
from headroom.formulations.types import Bound, Plan, SolveParams, Violation
from headroom.instances.base import Instance
from headroom.instances.errors import InputError, shown
from headroom.instances.files import read_json, read_npz, to_json, write_npz, write_text
from headroom.registry import FAMILIES, Family, load
from headroom.run import Result
from headroom.which_family import check_family

PLAN_SCHEMA = "headroom/plan/1"
FIELDS = ("schema", "family", "instance", "plan", "evaluation", "result", "bounds", "provenance", "details")
PROOFS = ("certificate", "closed_form", "solver")
ARRAY = "$array"
"""In the header of an .npz container `{"$array": name}` stands for the array of that name."""


@dataclass(frozen=True)
class PlanDocument:
    """A plan document that was read: what it claims, in types; nothing in it has been believed yet.

    `evaluation` and `result` hold the fields that are present, so that one that is missing differs from one that is null.
    """

    family: str
    plan: Plan | None
    instance_name: str | None = None
    instance_sha256: str | None = None
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """objective: float or None, parts: {name: float or None}, violations: tuple of `Violation`."""
    result: Mapping[str, Any] = field(default_factory=dict)
    bounds: tuple[Bound, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)
    source: str = "plan"

    @property
    def objective(self) -> float | None:
        """The objective that the evaluation records."""
        value: float | None = self.evaluation.get("objective")
        return value


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
    known = {} if result.plan is None else facts(result.instance, result.plan)
    details = dict(result.details) | known | ({"notes": list(result.notes)} if result.notes else {})
    written: dict[str, Any] = _infinities_as_null(document | ({"details": details} if details else {}))
    return written


def _infinities_as_null(value: Any) -> Any:
    """A copy with every infinite number replaced by None; arrays stay arrays."""
    if isinstance(value, Mapping):
        return {str(key): _infinities_as_null(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_infinities_as_null(item) for item in value]
    return None if isinstance(value, (float, np.floating)) and np.isinf(value) else value


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
    """Check a plan document that was parsed already, or built in Python. Raises `InputError`."""
    try:
        return _read(_plain(content, ""), source)
    except InputError as error:
        raise error.within(source) from None
    except RecursionError:
        raise InputError("nested too deeply; expected a headroom document", source) from None


def _plain(value: Any, where: str) -> Any:
    """A copy in JSON's types (arrays stay arrays). Raises `InputError` for NaN, infinities, integers beyond a double and what JSON cannot hold."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    name = where or "the document"
    if isinstance(value, int) and not _finite(value):
        raise InputError(f"{name} must be a finite number or null, got an integer of {value.bit_length()} bits")
    if isinstance(value, float) and not _finite(value):
        raise InputError(f"{name} must be a finite number or null, got {value}")
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{name} must have strings as keys, got one of type {type(key).__name__}")
        return {key: _plain(item, f"{where}.{key}" if where else key) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if {type(item) for item in value} <= {int, float} and all(map(_finite, value)):  # the bulk of a document: no names are made for it
            return list(value)
        items = [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        kinds = {type(item) for item in items}
        if bool in kinds and kinds & {int, float}:
            raise InputError(f"{name} must hold numbers or booleans, got a mixture")
        return items
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufU":
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InputError(f"{name} must be an array of finite numbers, got {value[~np.isfinite(value)][0]}")
        return value
    raise InputError(f"{name} must be of a JSON type, got {type(value).__name__}")


def _finite(value: float) -> bool:
    """Whether a number is finite as a double."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


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
    return PlanDocument(
        family=family,
        plan=plan_from_document(FAMILIES[family], content),
        instance_name=_text(instance, "name", "instance.name"),
        instance_sha256=_text(instance, "sha256", "instance.sha256"),
        evaluation=_read_evaluation(_object(content, "evaluation")),
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
    if "self" in data:  # the one name that cannot be passed on as a keyword
        raise InputError("plan: self is an unknown field")
    try:
        plan: Plan = load(family.plan_type)(data)(**data)
    except InputError:
        check_family(family.name, data, "plan")
        raise
    return plan


def _read_evaluation(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "objective" in evaluation:
        found["objective"] = _number(evaluation, "objective", "evaluation.objective")
    if evaluation.get("parts") is not None:
        parts = _object(evaluation, "parts", "evaluation.parts")
        found["parts"] = {name: _number(parts, name, f"evaluation.parts.{name}") for name in parts}
    if (violations := evaluation.get("violations")) is not None:
        if not isinstance(violations, list):
            raise InputError(f"evaluation.violations must be a list, got {shown(violations)}")
        found["violations"] = tuple(_read_violation(item, f"evaluation.violations[{i}]") for i, item in enumerate(violations))
    return found


def _read_violation(item: Any, where: str) -> Violation:
    if not isinstance(item, dict):
        raise InputError(f"{where} must be an object, got {shown(item)}")
    amount, limit = (_number(item, name, f"{where}.{name}") for name in ("amount", "limit"))
    constraint, index = (_text(item, name, f"{where}.{name}") or "" for name in ("constraint", "index"))
    return Violation(constraint, index, math.inf if amount is None else amount, math.inf if limit is None else limit)


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
        infeasible = item.get("infeasible")
        if infeasible is not None and not isinstance(infeasible, bool):
            raise InputError(f"{where}.infeasible must be true or false, got {shown(infeasible)}")
        if infeasible and value is not None:
            raise InputError(f"{where}.value must be null where infeasible is true, got {value!r}")
        if value is None:
            value = math.inf if infeasible else -math.inf
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
    return float(value)


# --- options of one run -----------------------------------------------------------------------------------------------------


def apply_options(instance: Instance, parameters: Mapping[str, Any]) -> Instance:
    """The instance with the overrides that `parameters` records (see `Family.options`); other parameters are ignored."""
    changes = {name: parameters[name] for name in FAMILIES[instance.family].options if parameters.get(name) is not None}
    return instance.replace(**changes) if changes else instance


def strengthen(instance: Instance, parameters: Mapping[str, Any]) -> tuple[Instance, dict[str, Any], list[str]]:
    """The instance with those recorded overrides that ask for more than it does, these overrides, and a problem for each that asks for less.

    Raises `InputError` for an override that is no number or that the instance cannot take.
    """
    changes: dict[str, Any] = {}
    problems: list[str] = []
    for name in FAMILIES[instance.family].options:
        value, own = parameters.get(name), getattr(instance, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"provenance.parameters.{name} must be a number or null, got {shown(value)}")
        sign = -1 if name in FAMILIES[instance.family].caps else 1
        if own is None and sign < 0:
            changes[name] = value
        elif not isinstance(own, (int, float)) or sign * value < sign * own:
            problems.append(f"provenance.parameters.{name} is recorded as {value!r}, which asks for less than the instance's own {own!r}")
        elif value != own:
            changes[name] = value
    try:
        return (instance.replace(**changes) if changes else instance), changes, problems
    except InputError as error:
        raise InputError(f"provenance.parameters: {error.message}") from None
