"""The Quart application: the table's rows as rules, and the one way from a request to a handler.

Rules it keeps: identity, then scope, then input, then tenant, then the handler; JSON is never Quart's own; whatever
goes wrong is a problem, and a defect says nothing of its inside. It must not know any endpoint.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import structlog
from quart import Request, Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import BaseConverter

from gateway.answering import Asked, answer_route, rendered
from gateway.context import Gateway
from gateway.decoding import check_json_headers, decode_body
from gateway.ingest_decoding import too_large
from gateway.problems import INTERNAL_DETAIL, TITLES, Problem
from gateway.routes import Answer, Route
from gateway.table import ROUTES

BODY_SECONDS_MAX: Final = 10
REQUEST_ID_KEY: Final = "stripemeter.request_id"
ROUTE_KEY: Final = "stripemeter.route"
"""Where the ASGI scope holds the request's id and, once it is known, its route's template."""
_logger = structlog.get_logger("stripemeter.http")


class NameConverter(BaseConverter):
    """A name at a path's end: free text. Werkzeug's own `path` takes no line feed, and no slash in front."""

    regex = r"[\s\S]+"
    part_isolating = False
    weight = 200


def create_app(gateway: Gateway) -> QuartTrio:
    """The application over one gateway."""
    app = QuartTrio(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = gateway.settings.max_body_bytes
    app.config["BODY_TIMEOUT"] = BODY_SECONDS_MAX
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    # A redirect to another spelling would hide a client's mistake, and lose a POST's body.
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    app.url_map.converters["name"] = NameConverter
    for route in ROUTES:
        app.add_url_rule(
            route.quart_path,
            endpoint=f"{route.method} {route.path}",
            view_func=_view(gateway, route),
            methods=[route.method],
            provide_automatic_options=False,
        )
    for path, methods in shadowed(ROUTES).items():
        app.add_url_rule(
            path,
            endpoint=f"no {path}",
            view_func=_not_allowed,
            methods=sorted(methods),
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
        asked = Asked(
            _latin_1(found.headers.get("authorization")),
            _latin_1(found.headers.get("x-api-key")),
            found.query_string,
            request_id_of(found),
            {
                name.lower(): text
                for name, _, _ in route.headers
                if (text := found.headers.get(name)) is not None
            },
        )
        answer = await answer_route(
            gateway, route, asked, path, partial(_body, gateway, route, decoder, found)
        )
        if found.method == "HEAD" and isinstance(answer, Answer):
            answer = await _without_stream(answer)
        return _respond(answer, asked.request_id)

    return view


def shadowed(routes: Sequence[Route]) -> dict[str, set[str]]:
    """Of each path without parameters the methods that only a pattern beside it takes.

    Without this, GET of `/v1/adjustments/approve` would look for an adjustment with that id; OpenAPI says that such a
    path is itself, and so does the client who sees its Allow.
    """
    own = _methods_of(routes)
    found: dict[str, set[str]] = {}
    for path in own:
        if "{" in path:
            continue
        for pattern, methods in own.items():
            text = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(pattern))
            if "{" in pattern and re.fullmatch(text, path) and methods - own[path]:
                found[path] = found.get(path, set()) | (methods - own[path])
    return found


def _methods_of(routes: Sequence[Route]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for route in routes:
        found.setdefault(route.path, set()).add(route.method)
    return found


_METHODS: Final = _methods_of(ROUTES)


async def _not_allowed() -> Response:
    return _respond(_method_problem(set()), request_id_of(request))


def _method_problem(matched: set[str]) -> Problem:
    """The 405 of this request's path: what it takes is what its own row says, else what matched."""
    own = _METHODS.get(request.path)
    methods = matched if own is None else own | ({"HEAD"} if "GET" in own else set())
    allow = tuple(sorted(methods))
    return Problem(405, f"this path takes {', '.join(allow)}", allow=allow)


def _latin_1(text: str | None) -> bytes | None:
    """A header's value as it was sent."""
    return None if text is None else text.encode("latin-1")


def request_id_of(found: Request) -> str:
    """The request's id, as the outer application gave it."""
    return str(found.scope.get(REQUEST_ID_KEY, "none"))


async def _body(
    gateway: Gateway,
    route: Route,
    decoder: msgspec.json.Decoder[Any] | None,
    found: Request,
) -> Any | Problem:
    if route.takes_raw_body:
        return bytes(await found.get_data(cache=False, as_text=False, parse_form_data=False))
    if decoder is None:
        return None
    headers = found.headers
    refused = check_json_headers(headers.get("content-type"), headers.get("content-encoding"))
    if refused is not None:
        return refused
    data = await found.get_data(cache=False, as_text=False, parse_form_data=False)
    return decode_body(bytes(data), decoder, gateway.settings.max_json_depth)


def _respond(answer: Answer | Problem, request_id: str) -> Response:
    status, headers, body = rendered(answer, request_id)
    if isinstance(body, bytes):
        return _response(body, status, headers)
    return _streamed(body, status, headers)


def _response(body: bytes, status: int, headers: list[tuple[str, str]]) -> Response:
    response = Response(body, status=status)
    response.headers.clear()
    for name, value in headers:
        response.headers[name] = value
    if status not in (204, 304):  # a 304's length would be that of what it stands for
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
                problem = _method_problem(set(error.valid_methods or ()))
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
