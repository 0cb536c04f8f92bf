"""What is around every answer, whoever gives it: the request's id, the headers that all have, its metric, its log line.

Rules it keeps: the fast lane and the ASGI application call the same functions, so that a client can't tell them apart;
nothing of a body is logged; a line about a frequent request that worked is of fixed form, past the logger, which would
cost a seventh of the request (docs/decisions/0005). It must not know what any endpoint does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import structlog

from gateway.context import Gateway
from gateway.logging_setup import RequestLines

INGEST_PATH: Final = "/v1/events/ingest"
USAGE_PATH: Final = "/v1/usage/current"
_FREQUENT: Final = frozenset((INGEST_PATH, USAGE_PATH))
ID_START_BYTES: Final = 8
REFUSED: Final = "refused"
"""Route label of requests whose message was refused before anybody looked at its path."""

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_CORS_EXPOSED: Final = b"location, retry-after, x-request-id"
_INGEST_HEADERS: Final = [(b"x-content-type-options", b"nosniff")]
ALL_HEADERS: Final = [
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
Pairs = Sequence[tuple[bytes, bytes]]
"""Headers: names in lower case, in the order sent."""


class Around:
    """One per server and way in."""

    def __init__(self, gateway: Gateway, *, lines_kept_max: int = 1) -> None:
        """`lines_kept_max` of its lines may wait for `flush`."""
        # Ids must differ, not be unguessable: random for the server's life, then counted.
        self._id_start = f"req_{gateway.meter.ids.token(ID_START_BYTES).hex()}"
        self._ids_made = 0
        self._clock = gateway.clock
        self._metrics = gateway.metrics
        self._lines = RequestLines(
            gateway.settings.log_level, gateway.settings.log_format, kept_max=lines_kept_max
        )
        self.flush = self._lines.flush
        self.origins = frozenset(origin.encode() for origin in gateway.settings.cors_origins)
        """The web origins whose pages may call."""

    def request_id(self, headers: Pairs) -> str:
        """The client's own id if it is sane, else a new one."""
        return given_request_id(headers) or self.new_request_id()

    def new_request_id(self) -> str:
        """An id of our own."""
        self._ids_made += 1
        return f"{self._id_start}{self._ids_made & 0xFFFFFFFF:08x}"

    def extra_headers(
        self, headers: Pairs, request_id: str, *, is_ingest: bool
    ) -> list[tuple[bytes, bytes]]:
        """What the answer to a request with these headers carries beside its own."""
        extra = [(b"x-request-id", request_id.encode())]
        extra += _INGEST_HEADERS if is_ingest else ALL_HEADERS
        if self.origins:
            extra.append((b"vary", b"origin"))
            origin = header(headers, b"origin")
            if origin is not None and origin.lower() in self.origins:
                extra.append((b"access-control-allow-origin", origin))
                extra.append((b"access-control-expose-headers", _CORS_EXPOSED))
        return extra

    def done(self, method: str, route: str, status: int, began_us: int, request_id: str) -> None:
        """A request was answered: count it, and write its line."""
        took_us = self._clock.monotonic_us() - began_us
        self._metrics.http_request(method, route, status, took_us)
        if status == 200 and route in _FREQUENT and method in ("GET", "POST"):
            self._lines.write(
                method=method,
                route=route,
                status=200,
                milliseconds=took_us / 1000,
                request_id=request_id,
                now_us=self._clock.now_us(),
            )
            return
        _logger.info(
            "request",
            method=method[:16],
            route=route,
            status=status,
            ms=took_us / 1000,
            request_id=request_id,
        )


def complete(own: Pairs, extra: Pairs, *, is_ingest: bool) -> list[tuple[bytes, bytes]]:
    """The headers of an answer: its own, then what it does not say itself."""
    names = {name.lower() for name, _ in own}
    headers = list(own)
    if not is_ingest:
        headers += [pair for pair in _DEFAULT_HEADERS.items() if pair[0] not in names]
    headers += [pair for pair in extra if pair[0] not in names]
    return headers


def given_request_id(headers: Pairs) -> str | None:
    """The first sane id that a client sent."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode()
    return None


def header(headers: Pairs, wanted: bytes) -> bytes | None:
    """The first header of a name."""
    for name, value in headers:
        if name == wanted:
            return value
    return None
