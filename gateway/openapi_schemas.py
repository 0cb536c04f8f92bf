"""Component schemas of the OpenAPI document: those of structs, with what msgspec can't say, and those of documents.

Rules it keeps: every field has a description; a number that may be a text is a decimal; `x-instead` in a field's
`extra_json_schema` replaces its schema, since msgspec's own wins over what is added. It must not know any endpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gateway.openapi_fields import description_of
from gateway.price_schemas import DOCUMENTS

REF: Final = "#/components/schemas/{name}"
INSTEAD: Final = "x-instead"
_KEPT: Final = ("description", "examples", "default")
_DECIMAL: Final = r"^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$"


def component_schemas(types: Sequence[Any]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """(the schema of each type, the components they refer to). A type may be in it more than once."""
    once = list(dict.fromkeys(types))
    schemas, components = msgspec.json.schema_components(once, ref_template=REF)
    found = {
        name: _finished(schema, name if "properties" in schema else None)
        for name, schema in (components | DOCUMENTS).items()
    }
    return dict(zip(once, schemas, strict=True)), found


def _finished(schema: Any, struct: str | None = None) -> Any:
    """The schema as it is served. `struct`: the component whose fields are described."""
    if isinstance(schema, list):
        return [_finished(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if INSTEAD in schema:
        kept = {name: schema[name] for name in _KEPT if name in schema}
        return _finished(schema[INSTEAD] | kept)
    found = {name: _finished(value) for name, value in schema.items() if name != "properties"}
    if "properties" in schema:
        found["properties"] = {
            name: _described(struct, name, _finished(value))
            for name, value in schema["properties"].items()
        }
    kinds = found.get("type")
    if isinstance(kinds, list) and "string" in kinds and {"number", "integer"} & set(kinds):
        found.setdefault("pattern", _DECIMAL)
    if "enum" in found and "type" not in found and all(isinstance(v, str) for v in found["enum"]):
        found["type"] = "string"
    return found


def _described(struct: str | None, field: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A field's schema with a description: its own, a part's, or what its name means."""
    if "description" in schema:
        return schema
    if any("description" in one for one in schema.get("anyOf", ())):
        return schema
    text = None if struct is None else description_of(struct, field)
    return schema if text is None else {"description": text, **schema}
