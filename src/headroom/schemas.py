"""JSON Schemas (draft 2020-12) of the documents that headroom reads."""

from __future__ import annotations

from typing import Any

from headroom.documents import PLAN_SCHEMA, PROOFS
from headroom.instances.base import INSTANCE_SCHEMA
from headroom.registry import Family, load

DIALECT = "https://json-schema.org/draft/2020-12/schema"
NUMBER = {"type": ["number", "null"]}
TEXT = {"type": ["string", "null"]}


def instance_schema(family: Family) -> dict[str, Any]:
    """The schema of the family's instance document."""
    data, definitions = _model_schema(family.instance, leave_out=("name", "provenance"))
    properties = {
        "schema": {"const": INSTANCE_SCHEMA},
        "family": {"const": family.name},
        "name": {"type": "string", "maxLength": 500},
        "provenance": {"type": "object"},
        "data": data,
    }
    return _document(f"{family.name} instance", properties, ["schema", "family", "data"], definitions)


def plan_schema(family: Family) -> dict[str, Any]:
    """The schema of the family's plan document; only schema, family and plan are required."""
    plans: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    for target in family.plans:
        plan, its = _model_schema(target)
        plans.append(plan)
        definitions |= its
    violation = {"constraint": {"type": "string"}, "index": {"type": "string"}, "amount": NUMBER, "limit": NUMBER}
    bound = {
        "method": {"type": "string"},
        "value": NUMBER,
        "proof": {"enum": list(PROOFS)},
        "certificate": {"type": ["object", "null"]},
        "infeasible": {"type": "boolean"},
    }
    result = dict.fromkeys(("objective", "bound", "gap", "certified_bound", "certified_gap", "runtime_s"), NUMBER)
    properties = {
        "schema": {"const": PLAN_SCHEMA},
        "family": {"const": family.name},
        "instance": _object({"name": TEXT, "sha256": TEXT}),
        "plan": {"anyOf": [*plans, {"type": "null"}]},
        "evaluation": _object(
            {
                "objective": NUMBER,
                "parts": {"type": "object", "additionalProperties": NUMBER},
                "violations": {"type": "array", "items": {"type": "object", "properties": violation}},
            }
        ),
        "result": _object(result | dict.fromkeys(("status", "stop", "proof", "bound_method"), TEXT)),
        "bounds": {"type": ["array", "null"], "items": {"type": "object", "properties": bound, "required": ["proof"]}},
        "provenance": _object({"parameters": {"type": ["object", "null"]}}),
        "details": {"type": ["object", "null"]},
    }
    return _document(f"{family.name} plan", properties, ["schema", "family", "plan"], definitions)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": ["object", "null"], "properties": properties}


def _model_schema(target: str, leave_out: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of a pydantic model and its definitions, which belong at the document's root."""
    schema: dict[str, Any] = load(target).model_json_schema()
    definitions = schema.pop("$defs", {})
    for name in leave_out:
        schema.get("properties", {}).pop(name, None)
    return schema, definitions


def _document(title: str, properties: dict[str, Any], required: list[str], definitions: dict[str, Any]) -> dict[str, Any]:
    return {
        "$schema": DIALECT,
        "title": title,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
        "$defs": definitions,
    }
