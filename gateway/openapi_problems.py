"""The refusals of the OpenAPI document: for each status what it means, its headers, and one that is really sent.

Rules it keeps: `type` and title are those of `gateway.problems`, so that they can't differ from what is sent; a test
provokes what is shown here. It must not know any endpoint.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.problems import CONTENT_TYPE, INTERNAL_DETAIL, TITLES, TYPE_START

REQUEST_ID_HEADER: Final = {"$ref": "#/components/headers/X-Request-Id"}
RETRY_STATUSES: Final = frozenset((429, 503, 507))
EXAMPLE_ID: Final = "req_5f1d0c9a7b3e24680000002a"

MEANING: Final[dict[int, str]] = {
    400: "Something in the request can't be used; `errors` names each field. Sending it again unchanged can't help.",
    401: "There is no API key, or it is unknown, expired, revoked or mistyped.",
    403: "The API key lacks the scope, or the request names another tenant than the key's.",
    404: "There is no such thing for this tenant; that it exists for another is not told.",
    405: "The path is there, the method is not; `Allow` lists those that are.",
    408: "The body did not arrive within 10 s. Send it again; the same keys count once.",
    409: "The change contradicts what is there; the detail names it.",
    410: "Retention dropped the events that the answer needs.",
    413: "The body is over the limit that the detail names.",
    415: "The body's Content-Type, or its Content-Encoding, is not one that is taken.",
    429: "The tenant sends more events than its rate limit. Nothing of the request was counted.",
    500: "A defect of the server. It is in the log under the requestId; what was acknowledged is not lost.",
    503: "Overloaded, recovering or stopping. Of a write nothing may be assumed; sending it again with the same keys is safe.",
    507: "The disk is full. Of a write nothing may be assumed; sending it again with the same keys is safe.",
}

EXAMPLES: Final[dict[int, dict[str, Any]]] = {
    400: {
        "detail": "limit must be a whole number from 1 to 100",
        "errors": [{"field": "limit", "message": "must be a whole number from 1 to 100"}],
    },
    401: {"detail": "The API key is not valid: it is unknown, expired, revoked or mistyped"},
    403: {"detail": "tenantId names another tenant than the API key's"},
    404: {"detail": "there is no mapping map_0123456789abcdef"},
    405: {"detail": "this path takes GET, HEAD, POST"},
    408: {"detail": "the body did not arrive within 10 s"},
    409: {
        "detail": (
            "metric 'api_calls' has an active mapping, map_0123456789abcdef: change that one, or make it inactive"
        )
    },
    410: {"detail": "retention has dropped events before 2025-11-01: ask for the time since then"},
    413: {"detail": "the body is larger than 1048576 bytes; send smaller batches"},
    415: {"detail": "send the body as application/json, with that Content-Type"},
    429: {"detail": "the tenant's rate limit is reached; retry after the time in Retry-After"},
    500: {"detail": INTERNAL_DETAIL},
    503: {"detail": "the server is recovering; retry"},
    507: {"detail": "the disk of the data directory is full; retry when there is space"},
}


def problem_example(status: int) -> dict[str, Any]:
    """A whole problem, as it is sent with this status."""
    slug, title = TITLES[status]
    return {
        "type": TYPE_START + slug,
        "title": title,
        "status": status,
        **EXAMPLES[status],
        "requestId": EXAMPLE_ID,
    }


def problem_name(status: int) -> str:
    """The component's name: `BadRequest`."""
    return "".join(word.title() for word in TITLES[status][0].split("-"))


def problem_responses(problem_schema: Any, statuses: frozenset[int]) -> dict[str, Any]:
    """The components of these statuses, by name."""
    return {
        problem_name(status): {
            "description": f"{TITLES[status][1]}. {MEANING[status]}",
            "headers": _headers(status),
            "content": {
                CONTENT_TYPE: {
                    "schema": problem_schema,
                    "examples": {TITLES[status][0]: {"value": problem_example(status)}},
                }
            },
        }
        for status in sorted(statuses)
    }


def _headers(status: int) -> dict[str, Any]:
    headers: dict[str, Any] = {"X-Request-Id": REQUEST_ID_HEADER}
    if status in RETRY_STATUSES:
        headers["Retry-After"] = {"$ref": "#/components/headers/Retry-After"}
    if status == 401:
        headers["WWW-Authenticate"] = {"$ref": "#/components/headers/WWW-Authenticate"}
    if status == 405:
        headers["Allow"] = {"$ref": "#/components/headers/Allow"}
    return headers


HEADERS: Final[dict[str, Any]] = {
    "X-Request-Id": {
        "description": "Names the request in the server's log: yours if it was sane, else a new one.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
        "example": EXAMPLE_ID,
    },
    "Retry-After": {
        "description": "Whole seconds to wait before the request is sent again.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
        "example": 2,
    },
    "WWW-Authenticate": {
        "description": "How to authenticate.",
        "required": True,
        "schema": {"type": "string"},
        "example": 'Bearer realm="stripemeter"',
    },
    "Allow": {
        "description": "The methods that the path takes.",
        "required": True,
        "schema": {"type": "string"},
        "example": "GET, HEAD, POST",
    },
    "Location": {
        "description": "The path of what was made, or of where to go on.",
        "required": True,
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "Content-Disposition": {
        "description": "With `format=csv` or `jsonl`: the file's name.",
        "schema": {"type": "string"},
        "example": 'attachment; filename="events.csv"',
    },
    "X-StripeMeter-Position": {
        "description": "With `format=csv` or `jsonl`: the last log position that was looked at.",
        "schema": {"type": "integer"},
        "example": 4711,
    },
    "X-StripeMeter-Dropped-Before": {
        "description": "With `format=csv` or `jsonl`: retention has dropped events before this instant, which the answer "
        "may lack. Absent: it lacks none.",
        "schema": {"type": "string", "format": "date-time"},
        "example": "2026-01-01T00:00:00.000Z",
    },
    "ETag": {
        "description": "Names this version of it: send it as If-None-Match, and the answer is 304 until it changes.",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[^"]+"$'},
    },
}
"""Components of response headers."""
