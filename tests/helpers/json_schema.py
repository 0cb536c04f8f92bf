"""Holds a JSON value against the part of JSON Schema that our OpenAPI document uses."""

from __future__ import annotations

import re
from typing import Any

INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(\d{3})?Z")
_NAMES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def described_responses(document: dict[str, Any], path: str, method: str) -> dict[str, Any]:
    """What an operation can answer, by status; shared components are put in their places."""
    components = document["components"]["responses"]
    found = document["paths"][path][method.lower()]["responses"]
    return {
        status: components[one["$ref"].rpartition("/")[2]] if "$ref" in one else one
        for status, one in found.items()
    }


def mismatch(value: Any, schema: dict[str, Any], schemas: dict[str, Any], where: str) -> str | None:
    """Why a value does not fit a schema; None: it fits. A field that is not described does not fit."""
    if "$ref" in schema:
        return mismatch(value, schemas[schema["$ref"].rpartition("/")[2]], schemas, where)
    if "anyOf" in schema:
        found = [mismatch(value, one, schemas, where) for one in schema["anyOf"]]
        return None if None in found else str(found)
    if "enum" in schema and value not in schema["enum"]:
        return f"{where}: {value!r} is none of {schema['enum']}"
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    name = _NAMES.get(type(value), "object" if isinstance(value, dict) else "array")
    if types and name not in types and not (name == "integer" and "number" in types):
        return f"{where}: is {name}, not {types}"
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        return f"{where}: {value!r} does not match {schema['pattern']}"
    is_instant = schema.get("format") == "date-time" and isinstance(value, str)
    if is_instant and not INSTANT.fullmatch(value):
        return f"{where}: {value} is no instant"
    if isinstance(value, list):
        found = [mismatch(one, schema.get("items", {}), schemas, f"{where}[]") for one in value]
        return next((one for one in found if one), None)
    if not isinstance(value, dict) or "properties" not in schema:
        return None
    if unknown := set(value) - set(schema["properties"]):
        return f"{where}: {unknown} not described"
    if missing := set(schema.get("required", [])) - set(value):
        return f"{where}: {missing} missing"
    found = [
        mismatch(one, schema["properties"][field], schemas, f"{where}.{field}")
        for field, one in value.items()
    ]
    return next((one for one in found if one), None)
