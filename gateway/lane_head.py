"""The head of an HTTP/1.1 request in its strict reading, and who is to serve what it asks for.

Rules it keeps (RFC 9112): lines end in CRLF, nothing is folded, names are tokens, values hold no control character;
what can be read in two ways is refused, not repaired; the pattern is possessive, so a head costs time in proportion
to its length, whatever is in it. A head means the same each time, so short ones are remembered: a client repeats
its own. Who may do what is no part of a head and is never remembered.

Pure: bytes in, values out. It must not know sockets, keys or what an endpoint does.

    bytes before the empty line     ->  Head.route
    not in the form above               REFUSED     an answer, then the end of the connection
    the HTTP/2 preface                  REST        Hypercorn gets the connection for good
    chunked, Upgrade, CONNECT,
    a body over the limit               REST        the same
    POST ingest with Content-Length     INGEST      answered inline
    GET current usage, of now           USAGE       answered inline
    everything else                     LOAN        Hypercorn gets the head and exactly its body
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

from gateway.around import INGEST_PATH, USAGE_PATH, given_request_id
from gateway.framing import framing_refusal
from gateway.ingest_headers import IngestHeaders, read_headers
from gateway.problems import Problem

HEAD_BYTES_MAX: Final = 16 << 10
REMEMBERED_HEADS_MAX: Final = 4096
REMEMBERED_HEAD_BYTES_MAX: Final = 1024
"""A client that makes each head its own fills 4 MiB at most."""
HEAD_END: Final = b"\r\n\r\n"
HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\n"

_HEAD: Final = re.compile(
    rb"([A-Z]{1,16}) ([\x21-\x7e]++) HTTP/1\.([01])\r\n"
    rb"((?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+)\r\n"
)
_FIELD: Final = re.compile(rb"([^:\r]+):([^\r]*)\r\n")
_ENCODED_NAME: Final = re.compile(rb"(?:^|&)[^=&]*%")
"""A parameter whose name may be spelt otherwise."""
_NOT_THE_LANES: Final = frozenset((b"transfer-encoding", b"upgrade"))
_INGEST: Final = INGEST_PATH.encode()
_USAGE: Final = USAGE_PATH.encode()
_MALFORMED: Final = Problem(
    400, "the request's head is not well-formed HTTP/1.1 (RFC 9112)", close=True
)
_NO_HOST: Final = Problem(400, "send a Host header", close=True)
TOO_LARGE: Final = Problem(431, f"send a head of at most {HEAD_BYTES_MAX} bytes", close=True)


class Route(Enum):
    """Who serves a request."""

    REFUSED, REST, INGEST, USAGE, LOAN = range(5)


class Head(NamedTuple):
    """One request's head. Header names are in lower case; a value has no blanks around it."""

    route: Route
    method: bytes
    path: bytes
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    found: dict[bytes, bytes]
    """The headers by name. Nobody changes it: it may be remembered."""
    length: int
    """Bytes of the body; 0 where `route` is REST or REFUSED."""
    close: bool
    """The client wants the connection closed after the answer."""
    request_id: str | None
    """The client's own."""
    refusal: Problem | None
    """Why it is refused."""
    ingest: IngestHeaders | Problem | None
    """What an ingest request's head says of its body."""

    @property
    def is_ingest(self) -> bool:
        """Whether it asks for ingest, refused or not."""
        return self.method == b"POST" and self.path == _INGEST


def read_head(head: bytes, body_bytes_max: int) -> Head:
    """What a head says. `head` ends with the empty line; `body_bytes_max` is the server's limit."""
    if len(head) <= REMEMBERED_HEAD_BYTES_MAX:
        return _remembered(head, body_bytes_max)
    return _read_head(head, body_bytes_max)


def is_hopeless(start: bytes) -> bool:
    """Whether bytes without an empty line can't become a head: no need to wait for the rest of it."""
    return not start[:1].isupper() or start.count(b"\n") != start.count(b"\r\n")


def _read_head(head: bytes, body_bytes_max: int) -> Head:
    if head == HTTP2_PREFACE:
        return _to_rest(b"PRI", b"*", ())
    if len(head) > HEAD_BYTES_MAX:
        return _refused(TOO_LARGE, b"", b"", ())
    match = _HEAD.fullmatch(head)
    if match is None:
        return _refused(_MALFORMED, b"", b"", ())
    method, target, version, lines = match.groups()
    path, _, query = target.partition(b"?")
    headers = tuple((name.lower(), value.strip(b" \t")) for name, value in _FIELD.findall(lines))
    refusal = framing_refusal(headers)
    found = dict(headers)
    if refusal is None and version == b"1" and b"host" not in found:
        refusal = _NO_HOST
    if refusal is not None:
        return _refused(refusal, method, path, headers)
    length = int(found.get(b"content-length", b"0"))
    if method == b"CONNECT" or not _NOT_THE_LANES.isdisjoint(found):
        return _to_rest(method, path, headers)
    connection = found.get(b"connection", b"keep-alive").lower()
    route, ingest = Route.LOAN, None
    if (
        version == b"0"
        or b"expect" in found
        or connection not in (b"keep-alive", b"close")
        or len(found) != len(headers)
    ):
        pass  # which of two headers counts, who waits for what, and when it closes is the stock server's business
    elif method == b"POST" and path == _INGEST and b"content-length" in found:
        route, ingest = Route.INGEST, read_headers(found, query)
    elif method == b"GET" and path == _USAGE and b"content-length" not in found:
        # The past is read from the log, in slices and for long: it can be given up when its client has gone.
        is_past = b"asOf" in query or _ENCODED_NAME.search(query) is not None
        route = Route.LOAN if is_past else Route.USAGE
    if route is Route.LOAN and length > body_bytes_max:
        return _to_rest(method, path, headers)
    request_id = given_request_id(headers)
    close = connection == b"close"
    return Head(route, method, path, query, headers, found, length, close, request_id, None, ingest)


_remembered = lru_cache(REMEMBERED_HEADS_MAX)(_read_head)


def _refused(
    problem: Problem, method: bytes, path: bytes, headers: tuple[tuple[bytes, bytes], ...]
) -> Head:
    request_id = given_request_id(headers)
    return Head(Route.REFUSED, method, path, b"", headers, {}, 0, True, request_id, problem, None)


def _to_rest(method: bytes, path: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> Head:
    return Head(Route.REST, method, path, b"", headers, {}, 0, True, None, None, None)
