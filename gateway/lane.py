"""The fast lane: ingest and current usage answered inside Hypercorn's own connections, everything else by Hypercorn.

How a connection lives: its bytes are read here. A strict head (gateway.lane_head) that asks for ingest or current usage
is answered inline. Any other strict head is *lent* to Hypercorn with exactly its body, and the connection comes back
with the end of its answer; a chunked body, an Upgrade or HTTP/1.0 give Hypercorn the rest of it.

Rules it keeps: answers leave whole and in the order asked; a client's bytes are never read by two parsers; after an
`await` the socket is asked for its descriptor anew, since a number that was closed may be another client's by then;
no request sets a timer: a connection has one deadline, and one task reads them all (gateway.lane_watch). On SIGTERM
idle connections close, what is in flight is answered with `Connection: close`.
It must not know what is answered.
"""

from __future__ import annotations

import os
from contextlib import suppress
from math import inf
from socket import SHUT_RD
from typing import Any, Final

import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol

from gateway.hypercorn_repairs import ContainedTCPServer
from gateway.lane_answers import LaneAnswers, Visit
from gateway.lane_head import (
    HEAD_BYTES_MAX,
    HEAD_END,
    TOO_LARGE,
    Head,
    Route,
    is_hopeless,
    read_head,
)
from gateway.lane_poll import IDLE_SECONDS_MAX, RECEIVE_BYTES, LanePoll, Last, Place, Unsent
from gateway.lane_watch import Phase, Watch
from gateway.problems import Problem

SEND_PIECE_BYTES: Final = 64 << 10
"""What must go out within SEND_SECONDS_MAX: a client that reads slowly is kept, one that stops is not."""
HEAD_SECONDS_MAX: Final = 10.0
BODY_SECONDS_MAX: Final = 10.0
SEND_SECONDS_MAX: Final = 10.0
LINGER_SECONDS_MAX: Final = 2.0
LINGER_BYTES_MAX: Final = 16 << 20
"""After a refusal: what is still read and thrown away, so that the client gets to see the answer."""

_HOPELESS: Final = Problem(
    400, "the request's head is not well-formed HTTP/1.1 (RFC 9112)", close=True
)
_FULL: Final = Problem(
    503, "the server has too many connections; retry", retry_after_seconds=1, close=True
)
_LATE_HEAD: Final = Problem(
    408, f"the head did not arrive within {HEAD_SECONDS_MAX:.0f} s", close=True
)
_LATE_BODY: Final = Problem(
    408, f"the body did not arrive within {BODY_SECONDS_MAX:.0f} s", close=True
)


class _Gone(Exception):
    """The client has closed, or its connection broke."""


class LaneServer(ContainedTCPServer):
    """One connection."""

    stream: Any
    """A trio.SocketStream here; an SSL stream is Hypercorn's alone."""

    def __init__(
        self,
        answers: LaneAnswers,
        watch: Watch,
        poll: LanePoll | None,
        body_bytes_max: int,
        *arguments: Any,
    ) -> None:
        """`arguments` are Hypercorn's own. Without a poll the connection reads for itself between requests too."""
        super().__init__(*arguments)
        self._answers = answers
        self._watch = watch
        self._poll = poll
        self.place = Place()
        self._body_bytes_max = body_bytes_max
        self.phase = Phase.IDLE
        self.deadline = inf
        """When the watch ends what is awaited now, in trio's time."""
        self._scope = trio.CancelScope()
        self._loan_wait = trio.CancelScope()
        self._is_lent = False
        self._is_ours = False
        """Whether this file reads the connection, or Hypercorn for the rest of its life."""
        self._visit: Visit | None = None
        """Whose body is awaited."""

    # What the watch calls.

    def overdue(self) -> None:
        """The deadline has passed."""
        self.deadline = inf
        if self.phase is Phase.IDLE:
            self._stop_reading()
        else:
            self._scope.cancel()

    def _stop_reading(self) -> None:
        """Let the reader see the end of file; cancelled, it would drop a request that has just arrived."""
        with suppress(OSError):  # it has closed by itself
            self.stream.socket.shutdown(SHUT_RD)

    def drain(self) -> None:
        """The server stops: end what is idle, let the rest be the connection's last answer."""
        if not self._is_ours:
            # There is none before the end of a TLS handshake.
            wrapper = getattr(self, "protocol", None)
            if wrapper is not None and isinstance(wrapper.protocol, H11Protocol):
                self._make_last()
        elif self.phase is Phase.IDLE:
            self._stop_reading()
        elif self.phase is Phase.LENT:
            self._make_last()

    # What Hypercorn calls.

    async def run(self) -> None:
        """Serve one connection until it ends. Cancelled passes."""
        if not self._watch.enter(self):
            await self._turn_away()
            return
        try:
            await super().run()
        finally:
            self._watch.leave(self)

    async def _turn_away(self) -> None:
        with trio.move_on_after(LINGER_SECONDS_MAX):
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                if type(self.stream) is trio.SocketStream:
                    await self.stream.send_all(self._answers.refuse(_FULL, None))
        await trio.aclose_forcefully(self.stream)

    async def protocol_send(self, event: Event) -> None:
        """What Hypercorn's protocol sends: in pieces with a time limit; while lent, idle means given back."""
        if isinstance(event, RawData):
            await self._send_pieces(event.data)
        elif isinstance(event, Updated) and self._is_ours:
            if event.idle:
                self._is_lent = False
                self._loan_wait.cancel()
        else:
            await super().protocol_send(event)

    async def _send_pieces(self, data: bytes) -> None:
        """Shielded: Quart ends the task that this runs in at the disconnect that Hypercorn has just told it of."""
        pieces = memoryview(data)
        with trio.CancelScope(shield=True):
            await self.send_lock.acquire()
        try:
            try:
                for start in range(0, len(pieces), SEND_PIECE_BYTES):
                    until = trio.current_time() + SEND_SECONDS_MAX
                    with trio.CancelScope(shield=True, deadline=until) as scope:
                        await self.stream.send_all(pieces[start : start + SEND_PIECE_BYTES])
                    if scope.cancelled_caught:
                        await trio.aclose_forcefully(self.stream)
                        break
                    self._sent_at = trio.current_time()
                else:
                    return
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                pass  # gone, or Hypercorn is closing it just now
        finally:
            self.send_lock.release()
        await self.protocol.handle(Closed())

    async def _read_data(self) -> None:
        """Hypercorn's reader, replaced: returns when the connection has ended."""
        if type(self.stream) is not trio.SocketStream or not isinstance(
            self.protocol.protocol, H11Protocol
        ):
            await super()._read_data()  # TLS, HTTP/2
            return
        await self.idle_task.stop()
        self._is_ours = True
        try:
            with self._scope:
                await self._serve()
            if self._scope.cancelled_caught:
                await self._end_late()
        except (_Gone, trio.ClosedResourceError, trio.BrokenResourceError):
            pass
        finally:
            if self._poll is not None:
                self._poll.leave(self)
        await self.protocol.handle(Closed())

    @property
    def descriptor(self) -> int:
        """The socket's, now."""
        number: int = self.stream.socket.fileno()
        return number

    async def _end_late(self) -> None:
        """The deadline has passed."""
        data = b""
        if self.phase is Phase.HEAD:
            data = self._answers.refuse(_LATE_HEAD, None)
        elif self.phase is Phase.BODY and self._visit is not None:
            data = self._answers.end_ingest(self._visit, _LATE_BODY, close=False)
        if data:
            with trio.move_on_after(LINGER_SECONDS_MAX):
                await self._last_words(data)
        await trio.aclose_forcefully(self.stream)

    async def _serve(self) -> None:
        """Request after request, until the connection ends. Raises _Gone."""
        buffer = b""
        while True:
            end = buffer.find(HEAD_END)
            if end < 0:
                buffer = await self._more_of_head(buffer)
                continue
            end += len(HEAD_END)
            head = read_head(buffer[:end], self._body_bytes_max)
            match head.route:
                case Route.INGEST:
                    buffer = await self._ingest(head, buffer, end)
                case Route.USAGE:
                    buffer = await self._usage(head, buffer, end)
                case Route.LOAN:
                    buffer = await self._lend(head, buffer, end)
                case Route.REST:
                    await self._give_away(buffer)
                    return
                case Route.REFUSED:
                    assert head.refusal is not None
                    await self._refuse(head.refusal, head)
            if buffer:
                # One client's many requests are not everybody's wait.
                await trio.lowlevel.checkpoint()

    async def _more_of_head(self, buffer: bytes) -> bytes:
        """The buffer with more bytes. Raises _Gone at its end."""
        if not buffer:
            if self._watch.is_draining:
                raise _Gone
            if self._poll is not None:
                return await self._parked(self._poll)
            self.phase, self.deadline = Phase.IDLE, trio.current_time() + IDLE_SECONDS_MAX
        elif len(buffer) > HEAD_BYTES_MAX:
            await self._refuse(TOO_LARGE, None)
        elif is_hopeless(buffer):
            await self._refuse(_HOPELESS, None)
        elif self.phase is not Phase.HEAD:
            self.phase, self.deadline = Phase.HEAD, trio.current_time() + HEAD_SECONDS_MAX
        data = await self._receive(RECEIVE_BYTES)
        return buffer + data if buffer else data

    async def _parked(self, poll: LanePoll) -> bytes:
        """Be served by the poll, until there are bytes that it leaves to this task. Raises _Gone."""
        while True:
            match await poll.park(self):
                case Unsent(data):
                    await self._send(data)
                case Last(visit, answer):
                    close = self._watch.is_draining
                    await self._send(self._answers.end_ingest(visit, answer, close=close))
                    await self._linger()
                case data:
                    if not data:
                        raise _Gone
                    return data
            if self._watch.is_draining:
                raise _Gone

    async def _ingest(self, head: Head, buffer: bytes, start: int) -> bytes:
        """Answer an ingest request whose body begins at `start`; what follows it. Raises _Gone after the last."""
        visit = self._answers.begin_ingest(head)
        end = start + head.length
        if len(buffer) < end:
            if isinstance(visit.admitted, Problem):
                # Whoever may not send, or too much, is told at once, and the body is not kept.
                data = self._answers.end_ingest(
                    visit, visit.admitted, close=not visit.admitted.close
                )
                await self._last_words(data)
            self._visit = visit
            buffer = await self._whole_body(buffer, end)
        self.phase, self.deadline = Phase.ANSWER, inf
        answer = await self._answers.ingest(visit, buffer[start:end])
        close = head.close or self._watch.is_draining
        await self._send(self._answers.end_ingest(visit, answer, close=close))
        if close or (isinstance(answer, Problem) and answer.close):
            await self._linger()
        return buffer[end:]

    async def _whole_body(self, buffer: bytes, end: int) -> bytes:
        """The buffer with all of the body."""
        self.phase, self.deadline = Phase.BODY, trio.current_time() + BODY_SECONDS_MAX
        parts, size = [buffer], len(buffer)
        while size < end:
            data = await self._receive(RECEIVE_BYTES)
            parts.append(data)
            size += len(data)
        return b"".join(parts)

    async def _usage(self, head: Head, buffer: bytes, start: int) -> bytes:
        """Answer a request for current usage; what follows it. Raises _Gone after the last."""
        self.phase, self.deadline = Phase.ANSWER, inf
        close = head.close or self._watch.is_draining
        await self._send(self._answers.usage(head, close=close))
        if close:
            await self._linger()
        return buffer[start:]

    async def _lend(self, head: Head, buffer: bytes, start: int) -> bytes:
        """Let Hypercorn answer one request, of which it gets every byte and no other; what follows it."""
        end = start + head.length
        own, rest = buffer[:end], buffer[end:]
        self.phase, self.deadline, self._is_lent = Phase.LENT, inf, True
        if self._watch.is_draining:
            self._make_last()
        await self.protocol.handle(RawData(own))
        left = end - len(own)
        while left:
            self.deadline = trio.current_time() + IDLE_SECONDS_MAX
            data = await self._receive(min(left, RECEIVE_BYTES))
            left -= len(data)
            self.deadline = inf
            await self.protocol.handle(RawData(data))
        # Read on meanwhile: more requests wait, and the end of file is a disconnect.
        while self._is_lent:
            with trio.CancelScope() as self._loan_wait:
                if len(rest) >= RECEIVE_BYTES:
                    await trio.sleep_forever()
                rest += await self._receive(RECEIVE_BYTES)
        return rest

    def _make_last(self) -> None:
        """Hypercorn's next answer says `Connection: close`."""
        self.protocol.protocol.keep_alive_requests = self.config.keep_alive_max_requests

    async def _give_away(self, buffer: bytes) -> None:
        """Hypercorn gets the connection for good."""
        self._is_ours, self.deadline = False, inf
        await self.idle_task.restart(self._task_group, self._idle_timeout)
        await self.protocol.handle(RawData(buffer))
        await super()._read_data()

    async def _refuse(self, problem: Problem, head: Head | None) -> None:
        """Say why, and end the connection. Always raises _Gone."""
        await self._last_words(self._answers.refuse(problem, head))

    async def _last_words(self, data: bytes) -> None:
        await self._send(data)
        await self._linger()

    async def _linger(self) -> None:
        """Close after the client has seen the answer: bytes that nobody read would make the kernel drop it.

        Always raises _Gone.
        """
        self.phase, self.deadline = Phase.LINGER, inf
        with trio.move_on_after(LINGER_SECONDS_MAX):
            await self.stream.send_eof()
            left = LINGER_BYTES_MAX
            while left > 0:
                left -= len(await self._receive(RECEIVE_BYTES))
        raise _Gone

    async def _receive(self, bytes_max: int) -> bytes:
        """Some bytes. Raises _Gone at the end of file. It does not give up what it has read when it is cancelled."""
        socket = self.stream.socket
        while True:
            await trio.lowlevel.wait_readable(socket)
            try:
                data = os.read(socket.fileno(), bytes_max)
            except BlockingIOError:
                continue
            except OSError:
                raise _Gone from None
            if not data:
                raise _Gone
            return data

    async def _send(self, data: bytes) -> None:
        """All of the data. Raises _Gone when nobody is there any more."""
        socket = self.stream.socket
        try:
            sent = os.write(socket.fileno(), data)
        except BlockingIOError:
            sent = 0
        except OSError:
            raise _Gone from None
        while sent < len(data):
            self.phase, self.deadline = Phase.SEND, trio.current_time() + SEND_SECONDS_MAX
            await trio.lowlevel.wait_writable(socket)
            try:
                sent += os.write(socket.fileno(), memoryview(data)[sent:])
            except BlockingIOError:
                continue
            except OSError:
                raise _Gone from None
