"""A small HTTP client on a raw socket: cheap, and exact about how an answer ends.

Rules it keeps: one connection, one request at a time; an answer that ends before its length is `CutOff`, never a short
body; nothing is retried behind the test's back. It must not know what is asked.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SECONDS_MAX = 20.0
_CHUNK_BYTES = 1 << 16


class CutOff(Exception):
    """The connection ended before a whole answer came; `received` is what did come of it."""

    def __init__(self, received: bytes) -> None:
        super().__init__(f"the connection ended after {len(received)} bytes: {received[:80]!r}")
        self.received = received


class Answer(NamedTuple):
    """A whole answer. Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection, made on the first request and again after it ended."""

    def __init__(self, port: int, seconds_max: float = SECONDS_MAX) -> None:
        self.port = port
        self._seconds_max = seconds_max
        self._socket: socket.socket | None = None
        self._buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._buffer = b""

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def ingest(self, events: Sequence[Mapping[str, Any]]) -> Answer:
        """POST a batch."""
        return self.request(
            "POST", "/v1/events/ingest", json.dumps({"events": list(events)}).encode()
        )

    def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """The whole answer. Raises CutOff or OSError; then whether the request was done is unknown."""
        self.send(method, path, body, headers)
        return self.answer()

    def send(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a request and read nothing."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        if method != "GET":
            found = {"content-type": "application/json", "content-length": str(len(body))}
            found.update({name.lower(): value for name, value in (headers or {}).items()})
            lines += [f"{name}: {value}" for name, value in found.items()]
        elif headers:
            lines += [f"{name}: {value}" for name, value in headers.items()]
        self.send_raw("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def send_raw(self, data: bytes) -> None:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self.port), self._seconds_max)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._buffer = b""
        try:
            self._socket.sendall(data)
        except OSError:
            self.close()
            raise

    def answer(self) -> Answer:
        """The next answer of the connection."""
        received = b""
        try:
            while b"\r\n\r\n" not in self._buffer:
                self._more()
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            received = head
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {
                name.strip().lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines)
            }
            self._buffer = rest
            body = self._body(headers)
        except (CutOff, OSError) as error:
            received += self._buffer
            self.close()
            if isinstance(error, ConnectionError | CutOff):
                raise CutOff(received) from error
            raise
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Answer(int(first.split(" ")[1]), headers, body)

    def _more(self) -> None:
        assert self._socket is not None, "an answer follows a request"
        chunk = self._socket.recv(_CHUNK_BYTES)
        if not chunk:
            raise CutOff(self._buffer)
        self._buffer += chunk

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return b"".join(iter(self._chunk, b""))
        return self._take(int(headers.get("content-length", "0")))

    def _chunk(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._more()
        size, _, self._buffer = self._buffer.partition(b"\r\n")
        return self._take(int(size, 16) + 2)[:-2]

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return body
