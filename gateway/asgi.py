"""The outermost application: what is true of every request, whoever serves it.

Rules it keeps: every request has an id, which is returned and logged; a message whose end can be read in two ways is
refused, and its connection closed; ingest goes ahead of Quart; nothing of a body is logged. Ingest that worked is
a line of fixed form, past the logger, which would cost a seventh of the request.
It must not know what any endpoint does.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final, cast
from urllib.parse import unquote_to_bytes

import structlog
from hypercorn.typing import ASGIFramework
from structlog.contextvars import bind_contextvars, reset_contextvars

from gateway.app import REQUEST_ID_KEY, ROUTE_KEY, create_app
from gateway.asgi_types import Message, Receive, Scope, Send
from gateway.context import Gateway
from gateway.ingest import Ingest
from gateway.logging_setup import RequestLines
from gateway.problems import INTERNAL_DETAIL, Problem
from gateway.table import INGEST_PATH, ROUTES

HEADERS_MAX: Final = 100
REQUEST_ID_BYTES: Final = 12
UNMATCHED, PREFLIGHT, REFUSED = "unmatched", "preflight", "refused"
"""Route labels of requests that no row of the table served."""

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_DIGITS: Final = re.compile(rb"[0-9]{1,19}")
_PREFLIGHT_SECONDS: Final = b"600"
_CORS_METHODS: Final = ", ".join(sorted({route.method for route in ROUTES})).encode()
_CORS_HEADERS: Final = b"authorization, content-type, idempotency-key, x-api-key, x-request-id"
_CORS_EXPOSED: Final = b"location, retry-after, x-request-id"
_INGEST_HEADERS: Final = [(b"x-content-type-options", b"nosniff")]
_ALL_HEADERS: Final = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
_DEFAULT_HEADERS: Final = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cache-control": b"no-store",
}
"""Only where the answer says nothing else."""

_logger = structlog.get_logger("stripemeter.access")
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[object]]


def create_asgi(gateway: Gateway) -> ASGIFramework:
    """The whole application over one gateway."""
    quart_app = cast("AsgiApp", create_app(gateway))
    return cast("ASGIFramework", Outer(gateway, Ingest(gateway), quart_app))


class _Exchange:
    """One answer on its way out: adds what every answer has, and keeps its status."""

    __slots__ = ("_extra", "_is_head", "_is_ingest", "_send", "status")

    def __init__(
        self, send: Send, extra: list[tuple[bytes, bytes]], *, is_head: bool, is_ingest: bool
    ) -> None:
        self._send = send
        self._extra = extra
        self._is_head = is_head
        self._is_ingest = is_ingest
        self.status = 0
        """0: no answer has begun."""

    async def send(self, message: Message) -> None:
        """What the inner application calls `send`."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message["headers"])
            names = {name.lower() for name, _ in headers}
            if not self._is_ingest:
                headers += [pair for pair in _DEFAULT_HEADERS.items() if pair[0] not in names]
            headers += [pair for pair in self._extra if pair[0] not in names]
            message["headers"] = headers
        elif self._is_head and message["type"] == "http.response.body":
            message["body"] = b""
        await self._send(message)


class Outer:
    """ASGI application in front of ingest and Quart."""

    def __init__(
        self,
        gateway: Gateway,
        ingest: Callable[[Scope, Receive, Send, str], Awaitable[object]],
        quart_app: AsgiApp,
    ) -> None:
        self._gateway = gateway
        self._ingest = ingest
        self._quart = quart_app
        settings = gateway.settings
        self._ingest_lines = RequestLines(settings.log_level, settings.log_format)
        self._origins = frozenset(o.encode() for o in gateway.settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request, or the server's life span."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self._quart(scope, receive, send)
            return
        clock = self._gateway.clock
        began_us = clock.monotonic_us()
        request_id = self._request_id(scope)
        scope[REQUEST_ID_KEY] = request_id
        method = scope["method"]
        is_ingest = method == "POST" and scope["path"] == INGEST_PATH
        exchange = _Exchange(
            send,
            self._extra_headers(scope, request_id, is_ingest=is_ingest),
            is_head=method == "HEAD",
            is_ingest=is_ingest,
        )
        # Not logging_setup.request_scope: its context manager costs as much as all the rest of this method.
        bound = bind_contextvars(request_id=request_id)
        try:
            route = await self._serve(scope, receive, exchange, is_ingest=is_ingest)
            took_us = clock.monotonic_us() - began_us
            self._gateway.metrics.http_request(method, route, exchange.status, took_us)
            if is_ingest and exchange.status == 200:
                # A logger's line would cost more than all the rest of this class.
                self._ingest_lines.write(
                    method="POST",
                    route=route,
                    status=200,
                    milliseconds=took_us / 1000,
                    request_id=request_id,
                    now_us=clock.now_us(),
                )
                return
            _logger.info(
                "request",
                method=method[:16],
                route=route,
                status=exchange.status,
                ms=took_us / 1000,
            )
        finally:
            reset_contextvars(**bound)

    async def _serve(
        self, scope: Scope, receive: Receive, exchange: _Exchange, *, is_ingest: bool
    ) -> str:
        """Answer the request; returns its route label."""
        request_id = scope[REQUEST_ID_KEY]
        refused = refusal(scope)
        if refused is not None:
            await refused.send(exchange.send, request_id)
            return REFUSED
        if (
            scope["method"] == "OPTIONS"
            and self._origins
            and await self._preflight(scope, exchange)
        ):
            return PREFLIGHT
        try:
            if is_ingest:
                await self._ingest(scope, receive, exchange.send, request_id)
                return INGEST_PATH
            await self._quart(scope, receive, exchange.send)
        except Exception:  # A defect becomes a 500; Cancelled is no Exception and passes.
            _logger.exception("request_failed", path=scope["path"][:200])
            if exchange.status == 0:
                problem = Problem(500, INTERNAL_DETAIL, close=True)
                await problem.send(exchange.send, request_id)
        return str(scope.get(ROUTE_KEY, INGEST_PATH if is_ingest else UNMATCHED))

    def _request_id(self, scope: Scope) -> str:
        for name, value in scope["headers"]:
            if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
                return str(value.decode())
        return f"req_{self._gateway.meter.ids.token(REQUEST_ID_BYTES).hex()}"

    def _extra_headers(
        self, scope: Scope, request_id: str, *, is_ingest: bool
    ) -> list[tuple[bytes, bytes]]:
        extra = [(b"x-request-id", request_id.encode())]
        extra += _INGEST_HEADERS if is_ingest else _ALL_HEADERS
        if self._origins:
            extra.append((b"vary", b"origin"))
            origin = _header(scope, b"origin")
            if origin is not None and origin.lower() in self._origins:
                extra.append((b"access-control-allow-origin", origin))
                extra.append((b"access-control-expose-headers", _CORS_EXPOSED))
        return extra

    async def _preflight(self, scope: Scope, exchange: _Exchange) -> bool:
        """Answer a browser's question whether a page may call; False when it is none."""
        origin = _header(scope, b"origin")
        if origin is None or _header(scope, b"access-control-request-method") is None:
            return False
        if origin.lower() not in self._origins:
            problem = Problem(403, "this origin is not in STRIPEMETER_CORS_ORIGINS")
            await problem.send(exchange.send, scope[REQUEST_ID_KEY])
            return True
        headers = [
            (b"access-control-allow-methods", _CORS_METHODS),
            (b"access-control-allow-headers", _CORS_HEADERS),
            (b"access-control-max-age", _PREFLIGHT_SECONDS),
        ]
        await exchange.send({"type": "http.response.start", "status": 204, "headers": headers})
        await exchange.send({"type": "http.response.body", "body": b""})
        return True


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    for name, value in scope["headers"]:
        if name == wanted:
            return bytes(value)
    return None


def refusal(scope: Scope) -> Problem | None:
    """The problem of a message that two readers could take for two different ones, else None.

    RFC 9112, sections 3.2, 6.1 and 6.3: a request with more than one Host, with Content-Length and
    Transfer-Encoding, or with a length that is no number is what request smuggling is made of.
    """
    headers = scope["headers"]
    if len(headers) > HEADERS_MAX:
        return Problem(431, f"send at most {HEADERS_MAX} headers", close=True)
    lengths: list[bytes] = []
    encodings: list[bytes] = []
    hosts = 0
    for name, value in headers:
        if name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            encodings.append(value)
        elif name == b"host":
            hosts += 1
    if hosts > 1:
        return Problem(400, "send one Host header", close=True)
    if encodings:
        if lengths:
            return Problem(400, "send Content-Length or Transfer-Encoding, not both", close=True)
        if len(encodings) > 1 or encodings[0].strip().lower() != b"chunked":
            return Problem(400, "Transfer-Encoding must be chunked", close=True)
    elif lengths and (len(lengths) > 1 or not _DIGITS.fullmatch(lengths[0])):
        return Problem(400, "send one Content-Length, a whole number", close=True)
    raw_path = scope.get("raw_path")
    if raw_path and b"%" in raw_path:
        try:
            unquote_to_bytes(raw_path.partition(b"?")[0]).decode()
        except UnicodeDecodeError:
            return Problem(400, "the path must be percent-encoded UTF-8")
    return None
