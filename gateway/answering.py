"""From a request to what a route of the table answers, whichever server took it.

Rules it keeps: identity, then scope, then input, then tenant, then the handler; an engine's refusal is a problem. It
must not know Quart, any endpoint, or how the answer is sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec

from engine.errors import EngineError
from gateway.auth import Identity
from gateway.context import Gateway
from gateway.parameters import parse_query
from gateway.problems import Problem, problem_for
from gateway.routes import Answer, Call, Route

_RECOVERING: Final = Problem(503, "the server is recovering; retry", retry_after_seconds=2)
_encode = msgspec.json.Encoder().encode


class Asked(NamedTuple):
    """What is asked of a route beside its path and body."""

    authorization: bytes | None
    x_api_key: bytes | None
    query_string: bytes
    request_id: str
    headers: Mapping[str, str] = MappingProxyType({})
    """Those that the route names (`Route.headers`), in lower case."""


async def answer_route(
    gateway: Gateway,
    route: Route,
    asked: Asked,
    path: dict[str, str],
    read_body: Callable[[], Awaitable[Any | Problem]] | None = None,
) -> Answer | Problem:
    """From a request to what is answered. `read_body` is awaited after identity, scope and query were found good."""
    assert route.handler is not None, "ingest has a way of its own"
    now_us = gateway.clock.now_us()
    identity = _identify(gateway, route, asked, now_us)
    if isinstance(identity, Problem):
        return identity
    # What is open to everybody is open to probes and browsers, which add parameters of their own.
    query_string = b"" if route.scope is None else asked.query_string
    query = parse_query(query_string, route.parameters, now_us)
    if isinstance(query, Problem):
        return query
    body = None if read_body is None else await read_body()
    if isinstance(body, Problem):
        return body
    tenant = _tenant(gateway, route, identity, query, body)
    if isinstance(tenant, Problem):
        return tenant
    call = Call(
        gateway=gateway,
        identity=identity,
        tenant=tenant,
        path=path,
        query=query,
        body=body,
        now_us=now_us,
        request_id=asked.request_id,
        headers=asked.headers,
    )
    try:
        answer: Answer | Problem = await route.handler(call)
    except EngineError as error:
        return problem_for(error)
    return answer


def _identify(gateway: Gateway, route: Route, asked: Asked, now_us: int) -> Identity | Problem:
    """Who asks, if the route is open to them."""
    if route.scope is None:
        return Identity(None, frozenset(), "anonymous", None)
    identity = gateway.access.identify(asked.authorization, asked.x_api_key, now_us)
    if isinstance(identity, Problem):
        return identity
    if not gateway.access.allows(identity, route.scope):
        return Problem(403, f"the API key lacks the scope {route.scope}")
    return _RECOVERING if gateway.meter.phase == "recovering" else identity


def _tenant(
    gateway: Gateway, route: Route, identity: Identity, query: dict[str, Any], body: Any
) -> str | Problem | None:
    """The tenant that a request is about; None: the identity's, of all tenants."""
    if route.tenancy == "none":
        return identity.tenant
    in_query, in_body = query.get("tenantId"), getattr(body, "tenant_id", None)
    if in_body is msgspec.UNSET:
        in_body = None
    if in_query is not None and in_body is not None and in_query != in_body:
        message = "differs between the query and the body"
        return Problem(400, f"tenantId {message}", errors=(("tenantId", message),))
    requested = in_query or in_body
    if route.tenancy == "optional" and requested is None:
        return identity.tenant
    return gateway.access.tenant_for(identity, requested)


def rendered(
    answer: Answer | Problem, request_id: str
) -> tuple[int, list[tuple[str, str]], bytes | AsyncIterator[bytes]]:
    """(status, headers, body) of what is sent; the headers without the body's length."""
    if isinstance(answer, Problem):
        return answer.status, answer.headers(), answer.body(request_id)
    headers = [*answer.headers]
    if isinstance(answer.body, AsyncIterator):
        headers.append(("content-type", answer.content_type))
        return answer.status, headers, answer.body
    body = answer.body if isinstance(answer.body, bytes) else _encode(answer.body)
    if body:
        headers.append(("content-type", answer.content_type))
    return answer.status, headers, body
