"""A keep-alive pool of HTTP/1.1 connections over trio, with h11: what most calls to Stripe go through.

It stands in for httpx, which took three quarters of the processor time of a push (docs/decisions/0009-billing-drivers.md).

Rules it keeps:
- A connection is checked for an end or for stray bytes before it is used again; if it passes and fails all the same,
  the answer is lost, not "never sent": a server may read before it closes. A request is never sent a second time here.
- Everything has a bound: sockets, waits, the size of an answer. A connection that was cut short by an error or a
  cancellation is closed, never put back.
- TLS is shaken hands with while connecting, so that a wrong certificate is known before a byte of the request leaves.

It must not know Stripe, keys, or what a status means.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import h11
import stripe
import trio

from engine import limits
from engine.drivers.wire import Answer, AnswerLost, NeverLeft, ensure_in_time

_RECEIVE_BYTES: Final = 65_536


class _Origin(NamedTuple):
    is_tls: bool
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class _Request(NamedTuple):
    origin: _Origin
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


class _Connection:
    """One socket with its protocol state."""

    def __init__(
        self, stream: trio.abc.Stream, socket: trio.socket.SocketType, opened_at: float
    ) -> None:
        self.stream = stream
        self.socket = socket
        self.protocol = h11.Connection(h11.CLIENT)
        self.idle_since = opened_at

    def is_fresh(self, now: float) -> bool:
        """Whether it may carry another request. An idle connection has nothing to read unless it has ended."""
        return now - self.idle_since < limits.STRIPE_IDLE_SECONDS and not self.socket.is_readable()


def _split(url: str) -> tuple[_Origin, str]:
    """(where to, request target) of an absolute http or https URL."""
    parts = urlsplit(url)
    assert parts.scheme in {"http", "https"}, "bases are checked where they are read"
    assert parts.hostname
    is_tls = parts.scheme == "https"
    target = parts.path or "/"
    if parts.query:
        target += f"?{parts.query}"
    return _Origin(is_tls, parts.hostname, parts.port or (443 if is_tls else 80)), target


def _tls_context() -> ssl.SSLContext:
    """The system's certificates (SSL_CERT_FILE is heeded), and the library's own, for images that have none."""
    context = ssl.create_default_context()
    context.load_verify_locations(cafile=stripe.ca_bundle_path)
    context.set_alpn_protocols(["http/1.1"])
    return context


class H11Wire:
    """Fills `engine.drivers.wire.Wire`."""

    name = "h11"

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        connections_max: int = limits.STRIPE_CONNECTIONS_MAX,
        connect_seconds: float = limits.STRIPE_CONNECT_SECONDS,
        answer_seconds: float = limits.STRIPE_ANSWER_SECONDS,
        slot_seconds: float = limits.STRIPE_SLOT_SECONDS,
    ) -> None:
        self._tls = tls
        self._slots = trio.Semaphore(connections_max, max_value=connections_max)
        self._connect_seconds = connect_seconds
        self._answer_seconds = answer_seconds
        self._slot_seconds = slot_seconds
        self._idle: dict[_Origin, list[_Connection]] = {}
        self.opened = 0
        """Connections opened so far."""

    async def exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """See the port."""
        origin, target = _split(url)
        with trio.move_on_after(self._slot_seconds) as waiting:
            await self._slots.acquire()
        if waiting.cancelled_caught:
            raise NeverLeft(f"all connections to {origin} were busy for {self._slot_seconds:g} s")
        try:
            connection = await self._idle_connection(origin) or await self._connect(origin)
            request = _Request(origin, method, target, headers, body)
            return await self._exchange_on(connection, request)
        finally:
            self._slots.release()

    async def aclose(self) -> None:
        """See the port."""
        idle = [connection for kept in self._idle.values() for connection in kept]
        self._idle.clear()
        for connection in idle:
            await trio.aclose_forcefully(connection.stream)

    async def _idle_connection(self, origin: _Origin) -> _Connection | None:
        """A kept connection that may be used again, the one used last; the others age and are closed here."""
        kept = self._idle.get(origin, [])
        while kept:
            connection = kept.pop()
            if connection.is_fresh(trio.current_time()):
                return connection
            await trio.aclose_forcefully(connection.stream)
        return None

    async def _connect(self, origin: _Origin) -> _Connection:
        """A new connection, TLS established. Raises NeverLeft."""
        socket_stream: trio.SocketStream | None = None
        try:
            with trio.move_on_after(self._connect_seconds) as connecting:
                socket_stream = await trio.open_tcp_stream(origin.host, origin.port)
                stream: trio.abc.Stream = socket_stream
                if origin.is_tls:
                    self._tls = self._tls or _tls_context()
                    secure = trio.SSLStream(
                        socket_stream,
                        self._tls,
                        server_hostname=origin.host,
                        https_compatible=True,
                    )
                    await secure.do_handshake()
                    stream = secure
                self.opened += 1
                return _Connection(stream, socket_stream.socket, trio.current_time())
            assert connecting.cancelled_caught
            message = f"no connection to {origin} within {self._connect_seconds:g} s"
        except OSError as error:
            message = f"could not connect to {origin}: {error.strerror or error}"
        except trio.BrokenResourceError as error:
            reason = error.__cause__ or "it was closed while shaking hands"
            message = f"no secure connection to {origin}: {reason}"
        except BaseException:
            if socket_stream is not None:
                await trio.aclose_forcefully(socket_stream)
            raise
        if socket_stream is not None:
            await trio.aclose_forcefully(socket_stream)
        raise NeverLeft(message)

    async def _exchange_on(self, connection: _Connection, request: _Request) -> Answer:
        """Send and read; the connection is put back if it can carry another request, else closed."""
        is_reusable = False
        origin = request.origin
        try:
            outgoing = _request_bytes(connection.protocol, request)
            ensure_in_time()
            with trio.move_on_after(self._answer_seconds) as waiting:
                await connection.stream.send_all(outgoing)
                answer = await _read_answer(connection)
                is_reusable = (
                    connection.protocol.our_state is h11.DONE is connection.protocol.their_state
                )
            if waiting.cancelled_caught:
                raise AnswerLost(f"{origin} gave no answer within {self._answer_seconds:g} s")
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            raise AnswerLost(f"the connection to {origin} broke before the answer") from None
        except h11.RemoteProtocolError:
            # h11's words quote what came, and what came may quote anything.
            raise AnswerLost(f"the answer of {origin} was cut short, or was no HTTP") from None
        finally:
            if is_reusable:
                connection.protocol.start_next_cycle()
                connection.idle_since = trio.current_time()
                self._idle.setdefault(origin, []).append(connection)
            else:
                await trio.aclose_forcefully(connection.stream)
        return answer


def _request_bytes(protocol: h11.Connection, request: _Request) -> bytes:
    """The whole request. Header values are checked by who makes them; h11 would quote a wrong one in its error."""
    origin = request.origin
    default_port = 443 if origin.is_tls else 80
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    if origin.port != default_port:
        host += f":{origin.port}"
    fields = [("Host", host), *request.headers.items(), ("Accept", "application/json")]
    if request.body or request.method == "POST":
        fields.append(("Content-Length", str(len(request.body))))
    head = h11.Request(method=request.method, target=request.target, headers=fields)
    parts = [protocol.send(head)]
    if request.body:
        parts.append(protocol.send(h11.Data(data=request.body)))
    parts.append(protocol.send(h11.EndOfMessage()))
    return b"".join(part for part in parts if part)


async def _read_answer(connection: _Connection) -> Answer:
    """The final answer, whole. Raises AnswerLost when it is too large, h11.RemoteProtocolError when it is no HTTP."""
    head: h11.Response | None = None
    chunks: list[bytes] = []
    size_bytes = 0
    while True:
        event = connection.protocol.next_event()
        if event is h11.NEED_DATA:
            received = await connection.stream.receive_some(_RECEIVE_BYTES)
            connection.protocol.receive_data(bytes(received))
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            size_bytes += len(event.data)
            if size_bytes > limits.STRIPE_ANSWER_BYTES_MAX:
                raise AnswerLost(
                    f"the answer is larger than {limits.STRIPE_ANSWER_BYTES_MAX} bytes"
                )
            chunks.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            named = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
            return Answer(head.status_code, named, b"".join(chunks))
        elif not isinstance(event, h11.InformationalResponse):
            raise h11.RemoteProtocolError("the connection ended before an answer")
