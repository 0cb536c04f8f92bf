"""The outermost application: what is true of every request, whoever serves it.

Rules it keeps: every request has an id, which is returned and logged; a message whose end can be read in two ways is
refused, and its connection closed; ingest goes ahead of Quart; nothing of a body is logged.
It must not know what any endpoint does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, cast

import structlog
from hypercorn.typing import ASGIFramework
from structlog.contextvars import bind_contextvars, reset_contextvars

from gateway.app import REQUEST_ID_KEY, ROUTE_KEY, create_app
from gateway.around import INGEST_PATH, REFUSED, Around, complete, header
from gateway.asgi_types import Message, Receive, Scope, Send
from gateway.context import Gateway
from gateway.framing import refusal
from gateway.ingest import Ingest
from gateway.problems import INTERNAL_DETAIL, Problem
from gateway.table import ROUTES

UNMATCHED, PREFLIGHT = "unmatched", "preflight"
"""Route labels of requests that no row of the table served."""

_PREFLIGHT_SECONDS: Final = b"600"
_CORS_METHODS: Final = ", ".join(sorted({route.method for route in ROUTES})).encode()
_CORS_HEADERS: Final = b"authorization, content-type, idempotency-key, x-api-key, x-request-id"

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
            message["headers"] = complete(
                list(message["headers"]), self._extra, is_ingest=self._is_ingest
            )
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
        self._around = Around(gateway)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request, or the server's life span."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self._quart(scope, receive, send)
            return
        began_us = self._gateway.clock.monotonic_us()
        request_id = self._around.request_id(scope["headers"])
        scope[REQUEST_ID_KEY] = request_id
        method = scope["method"]
        is_ingest = method == "POST" and origin_form(scope["path"]) == INGEST_PATH
        exchange = _Exchange(
            send,
            self._around.extra_headers(scope["headers"], request_id, is_ingest=is_ingest),
            is_head=method == "HEAD",
            is_ingest=is_ingest,
        )
        # Not logging_setup.request_scope: its context manager costs as much as all the rest of this method.
        bound = bind_contextvars(request_id=request_id)
        try:
            route = await self._serve(scope, receive, exchange, is_ingest=is_ingest)
            self._around.done(method, route, exchange.status, began_us, request_id)
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
            and self._around.origins
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

    async def _preflight(self, scope: Scope, exchange: _Exchange) -> bool:
        """Answer a browser's question whether a page may call; False when it is none."""
        origin = header(scope["headers"], b"origin")
        if origin is None or header(scope["headers"], b"access-control-request-method") is None:
            return False
        if origin.lower() not in self._around.origins:
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


def origin_form(path: str) -> str:
    """The path of an absolute-form target (RFC 9112, 3.2.2), which every server must take; others as they are."""
    scheme, found, rest = path.partition("://")
    if found and scheme.lower() in ("http", "https"):
        return "/" + rest.partition("/")[2]
    return path
