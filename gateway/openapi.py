"""The OpenAPI 3.1 document, made from the table of routes: what is served is what is described.

Rules it keeps: every answer a route can give is in it, its problems too; schemas come from the structs that are
encoded and decoded. It must not know any endpoint by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gateway import __version__
from gateway.problems import CONTENT_TYPE, TITLES, ProblemBody
from gateway.routes import PATH_DESCRIPTIONS, Route

REF: Final = "#/components/schemas/{name}"
_DESCRIPTION: Final = (
    "Counts usage events exactly once. Quantities are exact decimals with up to 6 fractional digits; times are UTC; "
    "errors are RFC 9457 problems whose detail says what to do; every answer has an X-Request-Id."
)
TAGS: Final[dict[str, str]] = {
    "events": "Send usage events, and list what was accepted.",
    "backfills": "Count events of the past, in the background.",
    "imports": "What `stripemeter import` asks a running server.",
    "usage": "What was used: now, and over time.",
    "mappings": "How a metric is counted.",
    "customers": "What is known of a customer beyond its usage.",
    "pushes": "What Stripe was told of it, and what waits for a decision.",
    "reconciliation": "Whether Stripe, what was pushed and what was used agree; if not, why, and the repair.",
    "parity": "Proof that what Stripe will bill is what was used.",
    "simulations": "What usage would cost: scenarios, their runs, and recorded usage at another price.",
    "webhooks": "What Stripe tells us.",
    "adjustments": "Corrections of what was counted, and decisions on late events.",
    "erasures": "Take a customer's name out of everything; totals stay.",
    "admin": "API keys, retention, and the trail of all changes.",
    "system": "Health, metrics, documentation.",
}


def document(routes: Sequence[Route]) -> bytes:
    """The document as JSON."""
    types = [ProblemBody]
    for route in routes:
        types += [one for one in (route.request, route.response) if one is not None]
    schemas, components = msgspec.json.schema_components(
        list(dict.fromkeys(types)), ref_template=REF
    )
    refs = dict(zip(dict.fromkeys(types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, refs)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "StripeMeter", "version": __version__, "description": _DESCRIPTION},
            "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
            "paths": paths,
            "components": {
                "schemas": {name: _without_empty(schema) for name, schema in components.items()},
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
                    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                },
            },
        }
    )


def _operation(route: Route, refs: dict[Any, Any]) -> dict[str, Any]:
    description = route.description
    if route.scope is not None:
        description = (
            f"{description}\n\nNeeds scope `{route.scope}`, where API keys are on.".strip()
        )
    operation: dict[str, Any] = {
        "operationId": operation_id(route),
        "tags": [route.tag],
        "summary": route.summary,
        "description": description,
        "parameters": [*_parameters(route)],
        "responses": {str(status): _response(route, status, refs) for status in route.statuses},
    }
    if route.scope is not None:
        operation["security"] = [{"bearer": []}, {"apiKey": []}, {}]
        operation["x-scope"] = route.scope
    if route.request is not None:
        content: dict[str, Any] = {
            kind: {"schema": refs[route.request] if kind == "application/json" else {}}
            for kind in route.request_content_types
        }
        operation["requestBody"] = {"required": True, "content": content}
    elif route.takes_raw_body:
        operation["requestBody"] = {"required": True, "content": {"application/json": {}}}
    return operation


def operation_id(route: Route) -> str:
    """A name for the endpoint: the handler's, in camelCase."""
    if route.handler is None:
        return "ingestEvents"
    module = route.handler.__module__.rpartition(".")[2]
    name = route.handler.__name__
    head, *rest = (name if "_" in name or module == "table" else f"{module}_{name}").split("_")
    return head + "".join(word.title() for word in rest)


def _parameters(route: Route) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PATH_DESCRIPTIONS[name],
            "schema": {"type": "string", "minLength": 1},
        }
        for name in route.path_parameters
    ]
    found += [
        {
            "name": parameter.name,
            "in": "query",
            "required": parameter.required,
            "description": parameter.description,
            "schema": parameter.schema,
        }
        for parameter in route.parameters
    ]
    found += [
        {
            "name": name,
            "in": "header",
            "required": False,
            "description": text,
            "schema": {"type": "string"},
        }
        for name, text in route.headers
    ]
    return found


def _response(route: Route, status: int, refs: dict[Any, Any]) -> dict[str, Any]:
    headers: dict[str, Any] = {
        "X-Request-Id": {
            "description": "Names the request in the server's log.",
            "schema": {"type": "string"},
        }
    }
    own = status == route.status or status in route.other_statuses
    if status in (429, 503, 507):
        headers["Retry-After"] = {
            "description": "Seconds to wait.",
            "schema": {"type": "integer", "minimum": 1},
        }
    if not own:
        problem = {CONTENT_TYPE: {"schema": refs[ProblemBody]}}
        return {"description": TITLES[status][1], "headers": headers, "content": problem}
    response: dict[str, Any] = {"description": _own_description(status), "headers": headers}
    if route.response is not None:
        response["content"] = {route.content_type: {"schema": refs[route.response]}}
        response["content"] |= {kind: {"schema": {}} for kind in route.other_content_types}
    elif status == 200:
        response["content"] = {route.content_type: {"schema": {}}}
    return response


def _own_description(status: int) -> str:
    names = {
        200: "Done",
        201: "Created",
        202: "Taken, under way",
        204: "Gone",
        307: "See there",
        503: "Not now",
    }
    return names[status]


def _without_empty(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without empty formats, which only take msgspec's own away."""
    if isinstance(schema, dict):
        return {
            key: _without_empty(value)
            for key, value in schema.items()
            if not (key == "format" and value == "")
        }
    if isinstance(schema, list):
        return [_without_empty(one) for one in schema]
    return schema
