"""What the fast lane answers: the endpoints' own functions, written out as HTTP/1.1, byte for byte like the stock way.

Rules it keeps: every decision about a request (who asks, limits, counting, texts) is made by the same functions as
behind Quart; what is written here is only what Hypercorn and h11 write there. A defect is a 500 and a line in the log.
It must not know sockets or when an answer is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from gateway.answering import Asked, answer_route, rendered
from gateway.around import ALL_HEADERS, INGEST_PATH, REFUSED, USAGE_PATH, Around, complete
from gateway.auth import Identity
from gateway.context import Gateway
from gateway.ingest import Counting, Ingest
from gateway.ingest_headers import IngestHeaders
from gateway.ingest_lone import LoneCounting
from gateway.lane_head import Head
from gateway.problems import INTERNAL_DETAIL, Problem
from gateway.routes import Answer
from gateway.table import ROUTES

LINES_KEPT_MAX: Final = 64
_US_PER_SECOND: Final = 1_000_000
_logger = structlog.get_logger("stripemeter.access")
_USAGE: Final = next(route for route in ROUTES if route.path == USAGE_PATH)
_DEFECT: Final = Problem(500, INTERNAL_DETAIL, close=True)
ResultT = TypeVar("ResultT")
ResponseHeaders = Callable[[], list[tuple[bytes, bytes]]]


class Visit(NamedTuple):
    """One ingest request on its way: begun at its head."""

    head: Head
    request_id: str
    began_us: int
    admitted: tuple[Identity, IngestHeaders] | Problem


class LaneAnswers:
    """One per server."""

    def __init__(self, gateway: Gateway, server_headers: ResponseHeaders) -> None:
        """`server_headers` is Hypercorn's own: what it adds to every answer, the date above all."""
        self._gateway = gateway
        self._ingest = Ingest(gateway)
        self._around = Around(gateway, lines_kept_max=LINES_KEPT_MAX)
        self.flush = self._around.flush
        self.gather = gateway.meter.gather
        """Several requests are begun in this turn of the loop."""
        self._clock = gateway.clock
        self._server_headers = server_headers
        self._written_at_second = -1
        self._server_lines = b""
        self._is_plain = not self._around.origins

    def begin_ingest(self, head: Head) -> Visit:
        """Look at who asks before the body is read: `admitted` is a problem where it need not be."""
        assert head.ingest is not None, "only of an ingest request"
        began_us = self._clock.monotonic_us()
        request_id = head.request_id or self._around.new_request_id()
        admitted: tuple[Identity, IngestHeaders] | Problem
        try:
            admitted = self._ingest.admit(head.found, head.ingest, request_id)
        except Exception:  # a defect becomes a 500
            _logger.exception("request_failed", path=INGEST_PATH, request_id=request_id)
            admitted = _DEFECT
        return Visit(head, request_id, began_us, admitted)

    async def ingest(self, visit: Visit, body: bytes) -> bytes | Problem:
        """Count the body's events: the 200's body, or the problem. Never raises but Cancelled."""
        admitted = visit.admitted
        if isinstance(admitted, Problem):
            return admitted
        try:
            return await self._ingest.answer(body, admitted[0], admitted[1])
        except Exception:  # a defect becomes a 500; Cancelled is no Exception and passes
            _logger.exception("request_failed", path=INGEST_PATH, request_id=visit.request_id)
            return _DEFECT

    def is_plain_ingest(self, head: Head) -> bool:
        """Whether `count` may be asked: an import's rows are counted with its operation in hand."""
        return not isinstance(head.ingest, IngestHeaders) or head.ingest.operation is None

    def count(self, visit: Visit, body: bytes) -> bytes | Problem | Counting | LoneCounting:
        """`ingest`, as far as it goes without waiting."""
        admitted = visit.admitted
        if isinstance(admitted, Problem):
            return admitted
        try:
            return self._ingest.begin(body, admitted[0], admitted[1])
        except Exception:
            _logger.exception("request_failed", path=INGEST_PATH, request_id=visit.request_id)
            return _DEFECT

    def counted(self, visit: Visit, counting: Counting | LoneCounting) -> bytes | Problem:
        """The rest of it, when all of `counting.groups` are done."""
        try:
            return self._ingest.finish(counting)
        except Exception:
            _logger.exception("request_failed", path=INGEST_PATH, request_id=visit.request_id)
            return _DEFECT

    def end_ingest(self, visit: Visit, answer: bytes | Problem, *, close: bool) -> bytes:
        """The answer as it is sent; counted and logged. `close`: the connection ends after it."""
        head, request_id = visit.head, visit.request_id
        if isinstance(answer, bytes):
            status = 200
            if self._is_plain:
                data = b"HTTP/1.1 200 \r\n%b%d\r\nx-request-id: %b\r\n%b%b%b\r\n%b" % (
                    _PLAIN_START,
                    len(answer),
                    request_id.encode(),
                    _PLAIN_END,
                    self._lines_of_server(),
                    _CLOSE if close else b"",
                    answer,
                )
            else:
                own = [(b"content-type", b"application/json")]
                data = self._written(200, own, answer, head, request_id, close=close)
        else:
            status = answer.status
            data = self._problem(answer, head, request_id, close=close)
        self._around.done("POST", INGEST_PATH, status, visit.began_us, request_id)
        return data

    def usage(self, head: Head, *, close: bool) -> bytes:
        """The whole answer to a request for current usage, which is in memory: nothing is waited for."""
        began_us = self._clock.monotonic_us()
        request_id = head.request_id or self._around.new_request_id()
        found = head.found
        asked = Asked(found.get(b"authorization"), found.get(b"x-api-key"), head.query, request_id)
        answer: Answer | Problem
        try:
            answer = _at_once(answer_route(self._gateway, _USAGE, asked, {}))
        except Exception:  # as above
            _logger.exception("request_failed", path=USAGE_PATH, request_id=request_id)
            answer = Problem(500, INTERNAL_DETAIL)
        status, text_headers, body = rendered(answer, request_id)
        assert isinstance(body, bytes), "current usage is answered at once"
        if status == 200 and text_headers == _ONLY_JSON and self._is_plain and not close:
            self._around.done("GET", USAGE_PATH, status, began_us, request_id)
            lines = _PLAIN_USAGE % (len(body), request_id.encode())
            return b"HTTP/1.1 200 \r\n%b%b\r\n%b" % (lines, self._lines_of_server(), body)
        own = [(name.encode(), value.encode("latin-1")) for name, value in text_headers]
        own.append((b"content-length", b"%d" % len(body)))
        extra = self._around.extra_headers(head.headers, request_id, is_ingest=False)
        pairs = complete(own, extra, is_ingest=False)
        self._around.done("GET", USAGE_PATH, status, began_us, request_id)
        return self._joined(status, pairs, body, close=close)

    def refuse(self, problem: Problem, head: Head | None) -> bytes:
        """The answer to a message that is not taken; the connection ends after it."""
        began_us = self._clock.monotonic_us()
        request_id = (head and head.request_id) or self._around.new_request_id()
        data = self._problem(problem, head, request_id, close=False)
        method = head.method.decode() if head is not None else ""
        self._around.done(method or "unread", REFUSED, problem.status, began_us, request_id)
        return data

    def _problem(
        self, problem: Problem, head: Head | None, request_id: str, *, close: bool
    ) -> bytes:
        body = problem.body(request_id)
        own = [(name.encode(), value.encode("latin-1")) for name, value in problem.headers()]
        return self._written(problem.status, own, body, head, request_id, close=close)

    def _written(
        self,
        status: int,
        own: list[tuple[bytes, bytes]],
        body: bytes,
        head: Head | None,
        request_id: str,
        *,
        close: bool,
    ) -> bytes:
        own += [(b"content-length", b"%d" % len(body)), (b"x-request-id", request_id.encode())]
        is_ingest = head is not None and head.is_ingest
        headers = () if head is None else head.headers
        extra = self._around.extra_headers(headers, request_id, is_ingest=is_ingest)
        return self._joined(status, complete(own, extra, is_ingest=is_ingest), body, close=close)

    def _joined(
        self, status: int, headers: list[tuple[bytes, bytes]], body: bytes, *, close: bool
    ) -> bytes:
        """As h11 writes it: no reason; its own `Connection` last, in place of the answer's."""
        if close:
            headers = [pair for pair in headers if pair[0] != b"connection"]
        lines = [b"%b: %b\r\n" % pair for pair in headers]
        end = _CLOSE if close else b""
        return b"HTTP/1.1 %d \r\n%b%b%b\r\n%b" % (
            status,
            b"".join(lines),
            self._lines_of_server(),
            end,
            body,
        )

    def _lines_of_server(self) -> bytes:
        """What Hypercorn adds: the same for a second."""
        second = self._clock.now_us() // _US_PER_SECOND
        if second != self._written_at_second:
            self._written_at_second = second
            self._server_lines = b"".join(b"%b: %b\r\n" % pair for pair in self._server_headers())
        return self._server_lines


def _at_once(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The result of what waits for nothing."""
    try:
        work.send(None)
    except StopIteration as stop:
        result: ResultT = stop.value
        return result
    work.close()
    raise AssertionError("what the lane answers waits for nothing")


_CLOSE: Final = b"Connection: close\r\n"
_PLAIN_START: Final = b"content-type: application/json\r\ncontent-length: "
_PLAIN_END: Final = b"x-content-type-options: nosniff\r\n"
_ONLY_JSON: Final = [("content-type", "application/json")]


def _plain_usage() -> bytes:
    """The header lines of current usage, but for the body's bytes and the request's id."""
    own = [(b"content-type", b"application/json"), (b"content-length", b"%d")]
    extra = [(b"x-request-id", b"%b"), *ALL_HEADERS]
    return b"".join(b"%b: %b\r\n" % pair for pair in complete(own, extra, is_ingest=False))


_PLAIN_USAGE: Final = _plain_usage()
