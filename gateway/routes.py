"""What a route is: one row of the table from which Quart's rules, the scope checks and OpenAPI are made.

Rules it keeps: an endpoint is a row or it does not exist, so nothing is undocumented or unguarded; a handler gets
input that was read and checked, and returns a value or a problem. The rows are in `gateway.table`.
It must not know any resource.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import msgspec

from engine.actors.administration import By
from engine.limits import NAME_CHARS_MAX
from gateway.auth import Identity
from gateway.context import Gateway
from gateway.parameters import MONTH_SCHEMA, TEXT_PATTERN, Parameter

Tenancy = Literal["none", "optional", "required"]
"""Whether a request is about one tenant: `optional` means that an identity of all tenants may leave it out."""


@dataclass(slots=True, kw_only=True)
class Call:
    """One request to a handler: read, checked, allowed."""

    gateway: Gateway
    identity: Identity
    tenant: str | None
    """None: all tenants (only where the route's tenancy is not `required`)."""
    path: Mapping[str, str]
    query: Mapping[str, Any]
    body: Any
    now_us: int
    request_id: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """Those that the route names, in lower case, as far as they were sent."""

    @property
    def by(self) -> By:
        """Who asks, for the record of a change."""
        return By(self.identity.actor, self.request_id)

    @property
    def numbers_as_strings(self) -> bool:
        """Whether quantities are wanted as JSON strings."""
        return bool(self.query.get("numbers") == "string")


class Answer(NamedTuple):
    """What a handler answers: a struct that becomes JSON, or bytes of `content_type`, at once or as they are made."""

    body: msgspec.Struct | bytes | AsyncIterator[bytes]
    status: int = 200
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Call], Awaitable["Answer | Any"]]
"""Returns Answer or gateway.problems.Problem; may raise engine.errors.EngineError."""


class Header(NamedTuple):
    """A request header, with its JSON Schema."""

    name: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One endpoint. `path` has `{name}` for a parameter; `scope` None: open to everybody."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    handler: Handler | None
    """None: served ahead of Quart (ingest)."""
    summary: str
    tag: str
    scope: str | None = None
    tenancy: Tenancy = "none"
    parameters: tuple[Parameter, ...] = ()
    request: Any = None
    """The struct of the JSON body, if there is one."""
    response: Any = None
    """The struct of the answer's body; None with `content_type` other than JSON."""
    status: int = 200
    other_statuses: tuple[int, ...] = ()
    """Other statuses with the same body."""
    errors: tuple[int, ...] = ()
    """Problems beside those that every route of its kind has."""
    description: str = ""
    content_type: str = "application/json"
    other_content_types: tuple[str, ...] = ()
    """What a parameter may ask for instead."""
    takes_raw_body: bool = False
    """The handler gets the body's bytes as they came: they are signed."""
    request_content_types: tuple[str, ...] = ("application/json",)
    headers: tuple[Header, ...] = ()
    """Request headers it reads."""
    sends: tuple[str, ...] = ()
    """Headers that its answer of `status` carries beside those of every answer (gateway.openapi_problems.HEADERS)."""

    @property
    def quart_path(self) -> str:
        """The path as Quart's rules have it (`name`: gateway.app). The last part may hold slashes: names are free text."""
        parts = self.path.split("/")
        converted = [
            f"<name:{part[1:-1]}>"
            if part == "{customerRef}" and index == len(parts) - 1
            else part.replace("{", "<").replace("}", ">")
            for index, part in enumerate(parts)
        ]
        return "/".join(converted)

    @property
    def path_parameters(self) -> tuple[str, ...]:
        """The names in braces."""
        return tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{"))

    @property
    def statuses(self) -> tuple[int, ...]:
        """Every status it may answer, without what only a broken HTTP message gets."""
        found = {self.status, *self.other_statuses, *self.errors}
        if self.parameters or self.request is not None or self.tenancy != "none":
            found.add(400)
        if self.scope is not None:
            found |= {401, 403, 503}
        if self.request is not None:
            found |= {408, 413, 415}
        if self.takes_raw_body:
            found |= {400, 408, 413}
        if self.handler is not None and self.method != "GET" and self.scope is not None:
            found.add(507)
        return tuple(sorted(found | {500}))


PATH_PARAMETERS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "id": (
        "Its id, as the answer that made it and the list have it.",
        {"type": "string", "minLength": 1, "pattern": r"^[^/\u0000]+$"},
    ),
    "month": ("The UTC month in which the periods begin.", MONTH_SCHEMA),
    "customerRef": (
        "The customer, as events name it (percent-encoded).",
        {"type": "string", "minLength": 1, "maxLength": NAME_CHARS_MAX, "pattern": TEXT_PATTERN},
    ),
    "period": ("The UTC month in which the periods begin.", MONTH_SCHEMA),
    "asset": (
        "Its name.",
        {
            "type": "string",
            "enum": ["docs.css", "docs.js", "elements.js", "schema.js", "theme.js", "try.js"],
        },
    ),
}
"""What a name in braces stands for: its description and its JSON Schema."""
