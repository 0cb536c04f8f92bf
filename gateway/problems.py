"""Problems: every answer that is not what was asked for, as RFC 9457 `application/problem+json`.

Rules it keeps: the detail says what to do; no stack trace, no path of the machine and no other tenant's name is ever
in it; a status has one type and one title; whoever may retry is told when. An expected refusal is a value of
`Problem`, returned, not raised. It must not know Quart, nor which endpoint it answers for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from engine.errors import (
    Conflict,
    EngineError,
    Gone,
    NotFound,
    Refused,
    StorageFull,
    Unavailable,
)
from gateway.asgi_types import Send

CONTENT_TYPE: Final = "application/problem+json"
TYPE_START: Final = "urn:stripemeter:problem:"
ERRORS_MAX: Final = 100
"""Field errors listed in one problem; a client mends its first hundred first."""

TITLES: Final[dict[int, tuple[str, str]]] = {
    400: ("bad-request", "The request can't be used as it is"),
    401: ("unauthorized", "An API key is needed"),
    403: ("forbidden", "The API key does not allow this"),
    404: ("not-found", "There is no such thing"),
    405: ("method-not-allowed", "The path does not take this method"),
    408: ("request-timeout", "The request did not arrive in time"),
    409: ("conflict", "The change contradicts what is there"),
    410: ("gone", "It is no longer kept"),
    413: ("too-large", "The request is too large"),
    414: ("uri-too-long", "The address is too long"),
    415: ("unsupported-media-type", "The body is of a type that is not taken"),
    429: ("too-many-requests", "The rate limit is reached"),
    431: ("headers-too-large", "The headers are too large"),
    500: ("internal", "The server has a defect"),
    503: ("unavailable", "The server can't take work now"),
    507: ("storage-full", "The server's disk is full"),
}
"""Status to (type, title)."""

INTERNAL_DETAIL: Final = "An unexpected error happened; the log has it under this requestId. Nothing that was acknowledged is lost."


class FieldError(msgspec.Struct, frozen=True):
    """What is wrong with one field."""

    field: Annotated[
        str, msgspec.Meta(description="The field or parameter.", examples=["latenessHours"])
    ]
    message: Annotated[
        str,
        msgspec.Meta(description="What is wrong with it.", examples=["must be 0 to 8760 hours"]),
    ]


class ProblemBody(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What went wrong and what to do about it (RFC 9457)."""

    type: Annotated[
        str,
        msgspec.Meta(
            description="Stable name of the kind of problem.", examples=[f"{TYPE_START}conflict"]
        ),
    ]
    title: Annotated[str, msgspec.Meta(description="The kind of problem in words.")]
    status: Annotated[int, msgspec.Meta(description="The HTTP status.", examples=[409])]
    detail: Annotated[str, msgspec.Meta(description="What to do about it.")]
    request_id: Annotated[str, msgspec.Meta(description="Names this request in the server's log.")]
    errors: Annotated[
        tuple[FieldError, ...], msgspec.Meta(description="Each wrong field of the input.")
    ] = ()


class Problem(msgspec.Struct, frozen=True):
    """A refusal as a value. `close`: the connection can't be used further."""

    status: int
    detail: str
    errors: tuple[tuple[str, str], ...] = ()
    """(field, message)."""
    retry_after_seconds: int | None = None
    allow: tuple[str, ...] = ()
    """The methods that a 405 names."""
    close: bool = False

    def body(self, request_id: str) -> bytes:
        """The JSON text."""
        slug, title = TITLES[self.status]
        errors = tuple(FieldError(*error) for error in self.errors[:ERRORS_MAX])
        return _encode(
            ProblemBody(TYPE_START + slug, title, self.status, self.detail, request_id, errors)
        )

    def headers(self) -> list[tuple[str, str]]:
        """The headers that belong to it, its content type first; not its length or the request id."""
        headers = [("content-type", CONTENT_TYPE), ("cache-control", "no-store")]
        if self.status == 401:
            headers.append(("www-authenticate", 'Bearer realm="stripemeter"'))
        if self.retry_after_seconds is not None:
            headers.append(("retry-after", str(self.retry_after_seconds)))
        if self.allow:
            headers.append(("allow", ", ".join(self.allow)))
        if self.close:
            headers.append(("connection", "close"))
        return headers

    async def send(self, send: Send, request_id: str) -> int:
        """Send it as the whole answer of an ASGI request; returns its status."""
        body = self.body(request_id)
        headers = [(name.encode(), value.encode("latin-1")) for name, value in self.headers()]
        headers.append((b"content-length", b"%d" % len(body)))
        headers.append((b"x-request-id", request_id.encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return self.status


_encode = msgspec.json.Encoder().encode


def problem_for(error: EngineError) -> Problem:
    """What an engine error says to a client."""
    match error:
        case Unavailable():
            return Problem(503, str(error), retry_after_seconds=error.retry_after_seconds)
        case StorageFull():
            return Problem(507, str(error), retry_after_seconds=error.retry_after_seconds)
        case Conflict():
            return Problem(409, str(error))
        case NotFound():
            return Problem(404, str(error))
        case Gone():
            return Problem(410, str(error))
        case Refused():
            return Problem(400, str(error), errors=error.errors)
        case _:
            return Problem(500, INTERNAL_DETAIL)


def wrong_fields(errors: Sequence[tuple[str, str]]) -> Problem:
    """A 400 for these (field, message); the detail repeats the first, for clients that show only that."""
    assert errors, "a problem with the input names a field"
    field, message = errors[0]
    return Problem(400, f"{field} {message}", errors=tuple(errors))
