"""The OpenAPI 3.1 document, made from the table of routes: what is served is what is described.

Rules it keeps: every answer a route can give is in it, its problems too; schemas come from the structs that are
encoded and decoded, examples from requests that were really answered. It must not know any endpoint by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from gateway import __version__
from gateway.openapi_examples import Example, examples_of
from gateway.openapi_problems import HEADERS, problem_name, problem_responses
from gateway.openapi_schemas import component_schemas
from gateway.problems import CONTENT_TYPE, TITLES, ProblemBody
from gateway.routes import PATH_PARAMETERS, Route

_DESCRIPTION: Final = (
    "Counts usage events exactly once.\n\n"
    "Quantities are exact decimals with up to 6 fractional digits, sent as JSON numbers or as strings, and answered as "
    "numbers in plain notation; `numbers=string` answers strings, for clients whose JSON reads doubles. Times are ISO "
    "8601 with an offset, answered in UTC; periods are half-open.\n\n"
    "Errors are RFC 9457 problems (`application/problem+json`) whose `detail` says what to do. Every answer has an "
    "X-Request-Id. An answer may carry more fields than are described here; a request may not.\n\n"
    "Every GET path takes HEAD too. Beside what an operation lists, any path answers 405 for another method (`Allow` "
    "names those it takes), and 400, 414 or 431 for a message that is no proper HTTP."
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
_OWN: Final = {
    200: "Done",
    201: "Created",
    202: "Taken, under way",
    204: "Gone",
    304: "Not changed since the version that If-None-Match names",
    307: "See there",
    503: "Not now",
}
_SECURITY: Final[dict[str, Any]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key: `Authorization: Bearer sm_...`.",
    },
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "An API key, for clients that can't set Authorization.",
    },
}
_NO_BODY: Final = frozenset((204, 304, 307))
_OWN_NAMES: Final = frozenset(("table", "documentation"))
"""Modules whose handlers' names say all by themselves."""


def document(routes: Sequence[Route], *, auth_required: bool = False) -> bytes:
    """The document as JSON. `auth_required`: without an API key nothing works, so leaving it out is no choice."""
    types = [ProblemBody]
    for route in routes:
        types += [one for one in (route.request, route.response) if one is not None]
    refs, schemas = component_schemas(types)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation = _operation(route, refs, auth_required=auth_required)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    statuses = {
        status for route in routes for status in route.statuses if not _is_own(route, status)
    }
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "StripeMeter", "version": __version__, "description": _DESCRIPTION},
            "servers": [{"url": "/", "description": "This server."}],
            "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
            "paths": paths,
            "components": {
                "schemas": schemas,
                "responses": problem_responses(refs[ProblemBody], frozenset(statuses | {405})),
                "headers": HEADERS,
                "securitySchemes": _SECURITY,
            },
        }
    )


def _operation(route: Route, refs: dict[Any, Any], *, auth_required: bool) -> dict[str, Any]:
    examples = examples_of(operation_id(route))
    description = route.description
    if route.scope is not None:
        description = (
            f"{description}\n\nNeeds scope `{route.scope}`, where API keys are on.".strip()
        )
    operation: dict[str, Any] = {
        "operationId": operation_id(route),
        "tags": [route.tag],
        "summary": route.summary,
        "description": description or f"{route.summary}.",
        "parameters": _parameters(route, examples),
        "responses": {
            str(status): _response(route, status, refs, examples) for status in route.statuses
        },
    }
    if route.scope is not None:
        optional: list[dict[str, Any]] = [] if auth_required else [{}]
        operation["security"] = [{"bearer": []}, {"apiKey": []}, *optional]
        operation["x-scope"] = route.scope
    if route.request is not None or route.takes_raw_body:
        operation["requestBody"] = _request_body(route, refs, examples)
    return operation


def operation_id(route: Route) -> str:
    """A name for the endpoint: the handler's, in camelCase."""
    if route.handler is None:
        return "ingestEvents"
    module = route.handler.__module__.rpartition(".")[2]
    name = route.handler.__name__
    head, *rest = (name if "_" in name or module in _OWN_NAMES else f"{module}_{name}").split("_")
    return head + "".join(word.title() for word in rest)


def _request_body(
    route: Route, refs: dict[Any, Any], examples: Sequence[Example]
) -> dict[str, Any]:
    kinds = route.request_content_types if route.request is not None else ("application/json",)
    content: dict[str, Any] = {}
    for kind in kinds:
        is_struct = route.request is not None and kind == "application/json"
        content[kind] = {"schema": refs[route.request] if is_struct else {}}
        # A refusal's request is no example of what to send.
        shown = {
            one.name: {"summary": one.summary, "value": one.body}
            for one in examples
            if one.body is not None and one.body_type == kind and one.status < 400
        }
        if shown:
            content[kind]["examples"] = shown
    return {"required": True, "content": content}


def _parameters(route: Route, examples: Sequence[Example]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        _parameter(name, "path", True, *PATH_PARAMETERS[name]) for name in route.path_parameters
    ]
    found += [
        _parameter(one.name, "query", one.required, one.description, one.schema)
        for one in route.parameters
    ]
    found += [
        _parameter(one.name, "header", False, one.description, dict(one.schema))
        for one in route.headers
    ]
    for parameter in found:
        where = "path" if parameter["in"] == "path" else "query"
        for example in examples:
            if example.status < 400 and parameter["name"] in getattr(example, where):
                parameter["example"] = getattr(example, where)[parameter["name"]]
                break
    return found


def _parameter(
    name: str, where: str, required: bool, description: str, schema: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "required": required,
        "description": description,
        "schema": schema,
    }


def _is_own(route: Route, status: int) -> bool:
    """Whether the route itself answers with this status; else it is a problem."""
    return status == route.status or status in route.other_statuses


def _response(
    route: Route, status: int, refs: dict[Any, Any], examples: Sequence[Example]
) -> dict[str, Any]:
    shown = [one for one in examples if one.status == status and one.answer is not None]
    if not _is_own(route, status):
        component = f"#/components/responses/{problem_name(status)}"
        if not shown:
            return {"$ref": component}
        common = problem_responses(refs[ProblemBody], frozenset((status,)))[problem_name(status)]
        common["content"][CONTENT_TYPE]["examples"] = _shown(shown)
        return {**common, "description": TITLES[status][1]}
    headers: dict[str, Any] = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}
    if status == 503:
        headers["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    if status in (route.status, 304):
        headers |= {name: {"$ref": f"#/components/headers/{name}"} for name in route.sends}
    response: dict[str, Any] = {"description": _OWN[status], "headers": headers}
    if status in _NO_BODY:
        return response
    kinds = (route.content_type, *route.other_content_types)
    content: dict[str, Any] = {kind: {"schema": {}} for kind in kinds}
    if route.response is not None:
        content[route.content_type]["schema"] = refs[route.response]
    for kind, media in content.items():
        if not kind.endswith("json"):
            media["schema"] = {"type": "string"}
        if of_kind := [one for one in shown if one.answer_type == kind]:
            media["examples"] = _shown(of_kind)
    return {**response, "content": content}


def _shown(examples: Sequence[Example]) -> dict[str, Any]:
    return {one.name: {"summary": one.summary, "value": one.answer} for one in examples}
