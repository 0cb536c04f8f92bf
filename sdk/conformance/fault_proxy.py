"""The fault proxy: an HTTP/1.1 proxy that fails ingest requests as it is told, and remembers what arrived.

Rules it keeps: a request is read, a fault drawn for it, and the fault done exactly; only `POST /v1/events/ingest` meets
faults; everything seen is kept in the order of arrival. Standard library only, so that any client's tests can run it.
It must not know any client, nor what the server makes of an event.
"""

from __future__ import annotations

import gzip
import http.client
import json
import random
import socket
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NamedTuple

INGEST: Final = "/v1/events/ingest"
KINDS: Final = frozenset(
    ("pass", "lose_answer", "reset_before", "reset_midway", "status", "slow", "cut_body")
)
FAULTS_MAX: Final = 1_000_000
BODY_BYTES_MAX: Final = 64 << 20
UPSTREAM_SECONDS_MAX: Final = 60
STORM_STATUSES: Final = (408, 425, 429, 500, 502, 503, 504, 507)
STORM_SLOW_SECONDS: Final = 0.05
_HOP_BY_HOP: Final = frozenset(("connection", "keep-alive", "transfer-encoding", "content-length"))
_PASS: Final[Mapping[str, Any]] = {"kind": "pass"}


class Storm:
    """Random faults of a seed: each request meets one with the probability `share`."""

    def __init__(self, seed: int, share: float, kinds: Sequence[str]) -> None:
        self._random = random.Random(seed)
        self._share = share
        self._kinds = tuple(kinds)

    def draw(self) -> Mapping[str, Any]:
        """The next request's fault."""
        if self._random.random() >= self._share:
            return _PASS
        kind = self._random.choice(self._kinds)
        if kind == "status":
            return {"kind": kind, "status": self._random.choice(STORM_STATUSES)}
        if kind == "slow":
            return {"kind": kind, "seconds": STORM_SLOW_SECONDS}
        return {"kind": kind}


class Seen(NamedTuple):
    """One ingest request that arrived, as `GET /seen` tells it."""

    number: int
    path: str
    fault: str
    keys: Sequence[str | None]
    at_ms: int


class Book:
    """The faults to come and the requests that came; shared by all connections."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: deque[Mapping[str, Any]] = deque()
        self._storm: Storm | None = None
        self._seen: list[dict[str, Any]] = []
        self._began = time.monotonic()

    def script(self, faults: Sequence[Mapping[str, Any]]) -> None:
        """These faults, one a request, after those that are left. Raises ValueError for an unknown one."""
        repeated: list[Mapping[str, Any]] = []
        for fault in faults:
            kind, times = fault.get("kind"), int(fault.get("times", 1))
            if kind not in KINDS or not 0 <= times <= FAULTS_MAX:
                message = f"no such fault: {fault}; kinds are {', '.join(sorted(KINDS))}"
                raise ValueError(message)
            repeated += [fault] * times
        with self._lock:
            self._faults.extend(repeated)

    def storm(self, storm: Storm) -> None:
        """Random faults from now on, wherever no scripted one is left."""
        with self._lock:
            self._storm = storm

    def calm(self) -> None:
        """No more faults."""
        with self._lock:
            self._faults.clear()
            self._storm = None

    def arrived(self, path: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
        """The entry of a new request and the fault it meets."""
        with self._lock:
            if self._faults:
                fault = self._faults.popleft()
            else:
                fault = self._storm.draw() if self._storm is not None else _PASS
            entry: dict[str, Any] = {
                "path": path,
                "fault": fault["kind"],
                "keys": [],
                "status": None,
                "atMs": int((time.monotonic() - self._began) * 1000),
            }
            self._seen.append(entry)
            return entry, fault

    def seen(self) -> list[dict[str, Any]]:
        """What arrived, in order."""
        with self._lock:
            return list(self._seen)

    def forget(self) -> None:
        """Empty the list of what arrived."""
        with self._lock:
            self._seen = []


def keys_of(body: bytes, encoding: str | None) -> list[str | None]:
    """The idempotency keys of an ingest body, in order; [] for one that can't be read."""
    try:
        events = json.loads(gzip.decompress(body) if encoding == "gzip" else body)["events"]
        return [event.get("idempotencyKey") for event in events]
    except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zlib.error):
        return []


class _Answer(NamedTuple):
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


class _Connection(BaseHTTPRequestHandler):
    """One client's connection. The server's port and the book hang on the listening server."""

    protocol_version = "HTTP/1.1"
    server: FaultProxy
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing: what arrived is asked for with GET /seen."""

    def answer(self) -> None:
        """Read, draw, forward or fail."""
        path = self.path.partition("?")[0]
        if not (self.command == "POST" and path == INGEST):
            self._send(self._forward(self._body()))
            return
        entry, fault = self.server.book.arrived(self.path)
        kind = fault["kind"]
        if kind == "cut_body":
            self.rfile.read(int(self.headers.get("content-length") or 0) // 2)
            self._reset()
            return
        body = self._body()
        entry["keys"] = keys_of(body, self.headers.get("content-encoding"))
        if kind == "reset_before":
            self._reset()
            return
        if kind == "status":
            entry["status"] = fault["status"]
            self._send(_scripted(fault))
            return
        if kind == "slow":
            time.sleep(fault["seconds"])
        answer = self._forward(body)
        entry["status"] = answer.status
        if kind == "lose_answer":
            self.close_connection = True
        elif kind == "reset_midway":
            self._send(answer, body_bytes=len(answer.body) // 2)
            self._reset()
        else:
            self._send(answer)

    def __getattr__(self, name: str) -> Any:
        """`do_GET`, `do_POST` and so on: every method is answered alike."""
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def _body(self) -> bytes:
        if "chunked" not in (self.headers.get("transfer-encoding") or "").lower():
            length = int(self.headers.get("content-length") or 0)
            return self.rfile.read(min(length, BODY_BYTES_MAX))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(parts)

    def _forward(self, body: bytes) -> _Answer:
        """The server's answer. A connection of its own each time: none is ever stale."""
        upstream = http.client.HTTPConnection(
            "127.0.0.1", self.server.upstream_port, timeout=UPSTREAM_SECONDS_MAX
        )
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in _HOP_BY_HOP and name.lower() != "host"
        }
        try:
            upstream.request(self.command, self.path, body or None, headers)
            response = upstream.getresponse()
            return _Answer(response.status, response.reason, response.getheaders(), response.read())
        except (OSError, http.client.HTTPException) as error:
            detail = json.dumps({"detail": f"the server does not answer: {error}"}).encode()
            return _Answer(502, "Bad Gateway", [("content-type", "application/json")], detail)
        finally:
            upstream.close()

    def _send(self, answer: _Answer, body_bytes: int | None = None) -> None:
        lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
        lines += [f"{k}: {v}" for k, v in answer.headers if k.lower() not in _HOP_BY_HOP]
        lines += [f"content-length: {len(answer.body)}", "", ""]
        body = answer.body if self.command != "HEAD" else b""
        try:
            self.wfile.write("\r\n".join(lines).encode("latin-1") + body[:body_bytes])
        except OSError:  # the client did not wait: that is its right
            self.close_connection = True

    def _reset(self) -> None:
        """End the connection with RST: a close that lingers for no time."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The library keeps files of this socket, and it closes with the last of them: so by its number.
        socket.close(self.connection.detach())


def _scripted(fault: Mapping[str, Any]) -> _Answer:
    body = fault.get("body", {"status": fault["status"], "detail": "a fault of the proxy"})
    kind = "text/plain" if isinstance(body, str) else "application/problem+json"
    headers = [("content-type", kind)]
    if "retryAfter" in fault:
        headers.append(("retry-after", str(fault["retryAfter"])))
    if "retryAfterDateSeconds" in fault:
        # An HTTP date is of the wall clock, and the test of a client has no other.
        at = time.time() + float(fault["retryAfterDateSeconds"])  # noqa: TID251
        headers.append(("retry-after", formatdate(at, usegmt=True)))
    text = body if isinstance(body, str) else json.dumps(body)
    return _Answer(int(fault["status"]), "Fault", headers, text.encode())


class FaultProxy(ThreadingHTTPServer):
    """Listens on a free loopback port in front of the server's."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream_port: int, book: Book) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.upstream_port = upstream_port
        self.book = book

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class _Desk(BaseHTTPRequestHandler):
    """The control's endpoints: POST and DELETE /faults, POST /faults/random, GET and DELETE /seen."""

    protocol_version = "HTTP/1.1"
    server: Control
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing."""

    def do_GET(self) -> None:
        self._say(200, self.server.book.seen()) if self.path == "/seen" else self._say(404, {})

    def do_DELETE(self) -> None:
        if self.path == "/seen":
            self.server.book.forget()
        elif self.path == "/faults":
            self.server.book.calm()
        else:
            self._say(404, {})
            return
        self._say(200, {})

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            asked = json.loads(text)
            if self.path == "/faults":
                self.server.book.script(asked)
            elif self.path == "/faults/random":
                kinds = asked.get("kinds") or sorted(KINDS - {"pass"})
                self.server.book.storm(Storm(asked["seed"], asked["share"], kinds))
            else:
                self._say(404, {})
                return
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._say(400, {"detail": str(error)})
            return
        self._say(200, {})

    def _say(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Control(ThreadingHTTPServer):
    """Listens on a free loopback port for whoever directs the proxy."""

    daemon_threads = True

    def __init__(self, book: Book) -> None:
        super().__init__(("127.0.0.1", 0), _Desk)
        self.book = book
