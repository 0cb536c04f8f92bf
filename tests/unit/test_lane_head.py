"""The strict reading of heads: who serves what, what is refused, what is remembered, and how long it takes."""

from __future__ import annotations

import time

import pytest

from gateway import lane_head
from gateway.lane_head import HTTP2_PREFACE, Route, is_hopeless, read_head

LIMIT = 1 << 20


def head(line: bytes, *headers: bytes, host: bytes = b"Host: x") -> bytes:
    lines = [line, *([host] if host else []), *headers]
    return b"".join(one + b"\r\n" for one in lines) + b"\r\n"


INGEST = b"POST /v1/events/ingest HTTP/1.1"
USAGE = b"GET /v1/usage/current?tenantId=a HTTP/1.1"


@pytest.mark.parametrize(
    ("data", "route"),
    [
        (head(INGEST, b"Content-Length: 4"), Route.INGEST),
        (head(INGEST, b"Content-Length: 99999999"), Route.INGEST),
        (head(INGEST), Route.LOAN),
        (head(INGEST, b"Content-Length: 4", b"Expect: 100-continue"), Route.LOAN),
        (head(INGEST, b"Content-Length: 4", b"X-A: 1", b"X-A: 2"), Route.LOAN),
        (head(INGEST, b"Content-Length: 4", b"Connection: x, close"), Route.LOAN),
        (head(INGEST.replace(b"1.1", b"1.0"), b"Content-Length: 4"), Route.LOAN),
        (head(INGEST, b"Transfer-Encoding: chunked"), Route.REST),
        (head(INGEST, b"Content-Length: 4", b"Upgrade: h2c"), Route.REST),
        (head(USAGE), Route.USAGE),
        (head(USAGE, b"Content-Length: 0"), Route.LOAN),
        (head(USAGE.replace(b" HTTP", b"&asOf=5 HTTP")), Route.LOAN),
        (head(b"HEAD /v1/usage/current HTTP/1.1"), Route.LOAN),
        (head(b"PUT /v1/x HTTP/1.1", b"Content-Length: 1048576"), Route.LOAN),
        (head(b"PUT /v1/x HTTP/1.1", b"Content-Length: 1048577"), Route.REST),
        (head(b"CONNECT x:1 HTTP/1.1"), Route.REST),
        (HTTP2_PREFACE, Route.REST),
        (head(b"GET / HTTP/1.1", host=b""), Route.REFUSED),
        (head(b"GET / HTTP/1.0", host=b""), Route.LOAN),
        (head(b"get / HTTP/1.1"), Route.REFUSED),
        (head(b"GET / HTTP/1.2"), Route.REFUSED),
        (head(INGEST, b"Content-Length: 4", b"Content-Length: 4"), Route.REFUSED),
        (head(INGEST, b"Content-Length: 4", b"Transfer-Encoding: chunked"), Route.REFUSED),
        (head(INGEST, b" folded"), Route.REFUSED),
        (head(INGEST, b"a\tb: c"), Route.REFUSED),
        (head(INGEST, b"a: b\x00"), Route.REFUSED),
        (head(INGEST, "a: é".encode(), b"Content-Length: 1"), Route.INGEST),
        (head(INGEST, *[b"a%d: b" % n for n in range(100)]), Route.REFUSED),
        (head(INGEST, b"a: " + b"b" * lane_head.HEAD_BYTES_MAX), Route.REFUSED),
        (b"\r\n\r\n", Route.REFUSED),
    ],
)
def test_each_head_has_one_that_serves_it(data: bytes, route: Route) -> None:
    found = read_head(data, LIMIT)
    assert found.route is route
    assert (found.refusal is not None) == (route is Route.REFUSED)
    assert (found.ingest is not None) == (route is Route.INGEST)


def test_what_a_head_says_is_read_without_the_blanks_around_it() -> None:
    found = read_head(
        head(INGEST, b"content-LENGTH: \t 12\t", b"Connection: Close", b"X-Request-Id: r-1"), LIMIT
    )
    assert (found.length, found.close, found.request_id) == (12, True, "r-1")
    assert found.headers[1] == (b"content-length", b"12")


def test_only_short_heads_are_remembered_and_not_without_a_bound() -> None:
    lane_head._remembered.cache_clear()
    for number in range(lane_head.REMEMBERED_HEADS_MAX + 100):
        read_head(head(INGEST, b"Content-Length: 1", b"X-N: %d" % number), LIMIT)
    read_head(head(INGEST, b"X: " + b"a" * 1100), LIMIT)
    kept = lane_head._remembered.cache_info()
    assert kept.currsize == kept.maxsize == lane_head.REMEMBERED_HEADS_MAX


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 16_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a" * 16_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 4_000 + b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"a:" + b"\t " * 8_000 + b"\r\r\n\r\n",
        b"A" * 16_000 + b"\r\n\r\n",
    ],
)
def test_no_head_takes_long(data: bytes) -> None:
    began = time.thread_time()
    lane_head._read_head(data, LIMIT)
    assert time.thread_time() - began < 0.02


@pytest.mark.parametrize(
    ("start", "hopeless"),
    [
        (b"G", False),
        (b"GET / HTTP/1.1\r\nHost: x\r", False),
        (b"get", True),
        (b"\x16\x03", True),
        (b"\r\n", True),
        (b"GET / HTTP/1.1\nHost", True),
    ],
)
def test_what_can_not_become_a_head_is_seen_before_its_end(start: bytes, hopeless: bool) -> None:
    assert is_hopeless(start) == hopeless
