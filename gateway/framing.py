"""Where one HTTP message ends and the next begins: what is refused because two readers could see two different things.

Rules it keeps: RFC 9112, sections 3.2, 6.1 and 6.3, in their strict reading; it looks at headers only, so that every
way in (the fast lane, the ASGI application) refuses the same. Pure: it must not know connections or endpoints.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from gateway.asgi_types import Scope
from gateway.problems import Problem

HEADERS_MAX: Final = 100
_DIGITS: Final = re.compile(rb"[0-9]{1,19}")


def refusal(scope: Scope) -> Problem | None:
    """The problem of a message that two readers could take for two different ones, else None.

    A request with more than one Host, with Content-Length and Transfer-Encoding, or with a length that is no number
    is what request smuggling is made of.
    """
    return framing_refusal(scope["headers"]) or path_refusal(scope.get("raw_path"))


def framing_refusal(headers: Sequence[tuple[bytes, bytes]]) -> Problem | None:
    """Of headers with lower-case names: why the message's end can't be told for sure."""
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
    return None


def path_refusal(raw_path: bytes | None) -> Problem | None:
    """The problem of a path that is no text."""
    if raw_path and b"%" in raw_path:
        try:
            unquote_to_bytes(raw_path.partition(b"?")[0]).decode()
        except UnicodeDecodeError:
            return Problem(400, "the path must be percent-encoded UTF-8")
    return None
