"""The Quart application: the table's rows as rules, and the one way from a request to a handler.

Rules it keeps: identity, then scope, then input, then tenant, then the handler; JSON is never Quart's own; whatever
goes wrong is a problem, and a defect says nothing of its inside. It must not know any endpoint.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec
import structlog
from quart import Request, Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from engine.errors import EngineError
from gateway.auth import Identity
from gateway.context import Gateway
from gateway.decoding import check_json_headers, decode_body
from gateway.ingest_decoding import too_large
from gateway.parameters import parse_query
from gateway.problems import INTERNAL_DETAIL, TITLES, Problem, problem_for
from gateway.routes import Answer, Call, Route
from gateway.table import ROUTES

BODY_SECONDS_MAX: Final = 10
REQUEST_ID_KEY: Final = "stripemeter.request_id"
ROUTE_KEY: Final = "stripemeter.route"
"""Where the ASGI scope holds the request's id and, once it is known, its route's template."""
_logger = structlog.get_logger("stripemeter.http")
_encode = msgspec.json.Encoder().encode
_RECOVERING: Final = Problem(503, "the server is recovering; retry", retry_after_seconds=2)


def create_app(gateway: Gateway) -> QuartTrio:
    """The application over one gateway."""
    app = QuartTrio(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = gateway.settings.max_body_bytes
    app.config["BODY_TIMEOUT"] = BODY_SECONDS_MAX
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    # A redirect to another spelling would hide a client's mistake, and lose a POST's body.
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    for route in ROUTES:
        app.add_url_rule(
            route.quart_path,
            endpoint=f"{route.method} {route.path}",
            view_func=_view(gateway, route),
            methods=[route.method],
            provide_automatic_options=False,
        )
    app.register_error_handler(HTTPException, _http_error(gateway))
    app.register_error_handler(Exception, _defect)
    return app


def _view(gateway: Gateway, route: Route) -> Callable[..., Awaitable[Response]]:
    decoder = None if route.request is None else msgspec.json.Decoder(route.request)

    async def view(**path: str) -> Response:
        found: Request = request._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001 - the proxy costs a look-up at every touch
        found.scope[ROUTE_KEY] = route.path  # type: ignore[typeddict-unknown-key]
        answer = await _answer(gateway, route, decoder, found, path)
        if found.method == "HEAD" and isinstance(answer, Answer):
            answer = await _without_stream(answer)
        return _respond(answer, request_id_of(found))

    return view


def request_id_of(found: Request) -> str:
    """The request's id, as the outer application gave it."""
    return str(found.scope.get(REQUEST_ID_KEY, "none"))


async def _answer(
    gateway: Gateway,
    route: Route,
    decoder: msgspec.json.Decoder[Any] | None,
    found: Request,
    path: dict[str, str],
) -> Answer | Problem:
    """From a request to what is answered."""
    assert route.handler is not None, "ingest is served ahead of Quart"
    now_us = gateway.clock.now_us()
    identity = _identify(gateway, route, found, now_us)
    if isinstance(identity, Problem):
        return identity
    # What is open to everybody is open to probes and browsers, which add parameters of their own.
    query_string = b"" if route.scope is None else found.query_string
    query = parse_query(query_string, route.parameters, now_us)
    if isinstance(query, Problem):
        return query
    body = await _body(gateway, decoder, found)
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
        request_id=request_id_of(found),
    )
    try:
        answer: Answer | Problem = await route.handler(call)
    except EngineError as error:
        return problem_for(error)
    return answer


def _identify(gateway: Gateway, route: Route, found: Request, now_us: int) -> Identity | Problem:
    """Who asks, if the route is open to them."""
    if route.scope is None:
        return Identity(None, frozenset(), "anonymous", None)
    authorization, x_api_key = found.headers.get("authorization"), found.headers.get("x-api-key")
    identity = gateway.access.identify(
        None if authorization is None else authorization.encode("latin-1"),
        None if x_api_key is None else x_api_key.encode("latin-1"),
        now_us,
    )
    if isinstance(identity, Problem):
        return identity
    if not gateway.access.allows(identity, route.scope):
        return Problem(403, f"the API key lacks the scope {route.scope}")
    return _RECOVERING if gateway.meter.phase == "recovering" else identity


async def _body(
    gateway: Gateway, decoder: msgspec.json.Decoder[Any] | None, found: Request
) -> Any | Problem:
    if decoder is None:
        return None
    headers = found.headers
    refused = check_json_headers(headers.get("content-type"), headers.get("content-encoding"))
    if refused is not None:
        return refused
    data = await found.get_data(cache=False, as_text=False, parse_form_data=False)
    return decode_body(bytes(data), decoder, gateway.settings.max_json_depth)


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


def _respond(answer: Answer | Problem, request_id: str) -> Response:
    if isinstance(answer, Problem):
        headers = answer.headers()
        return _response(answer.body(request_id), answer.status, headers)
    headers = [*answer.headers]
    if isinstance(answer.body, AsyncIterator):
        headers.append(("content-type", answer.content_type))
        return _streamed(answer.body, answer.status, headers)
    body = answer.body if isinstance(answer.body, bytes) else _encode(answer.body)
    if body:
        headers.append(("content-type", answer.content_type))
    return _response(body, answer.status, headers)


def _response(body: bytes, status: int, headers: list[tuple[str, str]]) -> Response:
    response = Response(body, status=status)
    response.headers.clear()
    for name, value in headers:
        response.headers[name] = value
    if status != 204:
        response.headers["content-length"] = str(len(body))
    return response


async def _without_stream(answer: Answer) -> Answer:
    """The answer to HEAD: of a stream only what comes before it, without making it."""
    close = getattr(answer.body, "aclose", None)
    if close is None:
        return answer
    await close()
    return answer._replace(body=_nothing())


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


def _streamed(body: AsyncIterator[bytes], status: int, headers: list[tuple[str, str]]) -> Response:
    """Sent as it is made; it ends itself (gateway.streams), so Quart's own time limit is off."""
    response = Response(body, status=status)
    response.timeout = None
    response.headers.clear()
    for name, value in headers:
        response.headers[name] = value
    return response


def _http_error(gateway: Gateway) -> Callable[[HTTPException], Awaitable[Response]]:
    """What Quart itself refuses, as a problem."""

    async def handle(error: HTTPException) -> Response:
        status = error.code or 500
        match status:
            case 404:
                problem = Problem(404, "there is no such path; GET /openapi.json lists all of them")
            case 405:
                assert isinstance(error, MethodNotAllowed)
                allow = tuple(sorted(error.valid_methods or ()))
                problem = Problem(405, f"this path takes {', '.join(allow)}", allow=allow)
            case 408:
                detail = f"the body did not arrive within {BODY_SECONDS_MAX} s"
                problem = Problem(408, detail, close=True)
            case 413:
                problem = Problem(413, too_large(gateway.settings.max_body_bytes), close=True)
            case _ if status in TITLES and status < 500:
                problem = Problem(status, error.description or TITLES[status][1])
            case _:
                problem = Problem(500, INTERNAL_DETAIL)
        return _respond(problem, request_id_of(request))

    return handle


async def _defect(error: Exception) -> Response:
    """A bug in a handler: it is logged whole, and the client is told nothing of it."""
    _logger.error("request_failed", path=request.path, exc_info=error)
    return _respond(Problem(500, INTERNAL_DETAIL), request_id_of(request))
