"""Repairs of Hypercorn 0.18 that can't be made by its settings. Hypercorn is pinned exactly because of this file.

Rules it keeps: each repair says what is wrong in Hypercorn and what happens without it; a test of a real server fails
when it is taken out. It must not know what is served.
"""

from __future__ import annotations

from math import inf
from typing import Any, Final

import h11
import hypercorn.protocol
import hypercorn.trio.run
import structlog
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer

CLOSE_SECONDS_MAX: Final = 5.0
_logger = structlog.get_logger("stripemeter.server")


class RepairedH11(H11Protocol):
    """HTTP/1.1 whose connections end when they are closed."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._ended = False

    async def handle(self, event: Event) -> None:
        """Take in what the client sent; nothing is read after the connection's last answer."""
        if not (self._ended and isinstance(event, RawData)):
            await super().handle(event)

    async def _maybe_recycle(self) -> None:
        """After an answer: go on to the next request, or close.

        When it closes (the server stops, or the answer said so) while the next request is already here, Hypercorn's
        reader waits for a turn that never comes: its task stays until the process ends, and holds up a stop for the
        whole grace period. A new h11 connection has nothing to read, which ends that wait.
        """
        await self._close_stream()
        goes_on = (
            not self.context.terminated.is_set()
            and self.connection.our_state is h11.DONE
            and self.connection.their_state is h11.DONE
        )
        if not goes_on:
            self._ended = True
            self.connection = h11.Connection(h11.SERVER)
        await super()._maybe_recycle()


class ContainedTCPServer(TCPServer):
    """A connection whose failure is its own, that closes when it says so, and whose answer may take its time.

    In Hypercorn an exception in one connection ends the whole server; and `read_timeout` counts from the last byte
    that the client sent, so that it cuts off every download that takes longer. Here it counts from the last byte in
    either direction: a client that takes nothing for that long is still cut off, which frees the task that sends.
    And an idle connection that its client closes is kept until the idle time-out.
    """

    _sent_at = 0.0
    """When bytes last left, on trio's clock."""

    async def protocol_send(self, event: Event) -> None:
        """Send what the protocol says. A connection that is to be closed is closed, one that is idle is known to be.

        Quart ends the task that says so, at the disconnect it has just been told of. Without the shield `Connection: close`
        is promised and not kept, and the connection stays until the client goes; and nobody waits for the end of an idle
        one, which then holds up a stop for the whole grace period.
        """
        if isinstance(event, Closed):
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_SECONDS_MAX):
                await super().protocol_send(event)
        elif isinstance(event, Updated):
            with trio.CancelScope(shield=True):
                await super().protocol_send(event)
        else:
            await super().protocol_send(event)
        self._sent_at = trio.current_time()

    async def _read_data(self) -> None:
        patience = self.config.read_timeout or inf
        until = trio.current_time() + patience
        while True:
            data: bytes | bytearray | None = None
            with trio.move_on_at(until):
                try:
                    data = await self.stream.receive_some(MAX_RECV)
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    break
            if data is None:
                until = self._sent_at + patience
                if until > trio.current_time():
                    continue
                # Only closing the socket ends a send that waits for this client: it is shielded.
                await trio.aclose_forcefully(self.stream)
                break
            await self.protocol.handle(RawData(bytes(data)))
            if not data:
                break
            until = trio.current_time() + patience
        await self.protocol.handle(Closed())
        # Without it, clients with a connection for each request took every descriptor of a usual process (1024) at 34
        # requests a second, and nobody was answered.
        await self.idle_task.stop()

    async def run(self) -> None:
        """Serve one connection until it ends. Cancelled passes."""
        try:
            await super().run()
        except Exception:  # any client could end the meter with what is not foreseen here
            _logger.exception("connection_failed")


def repair() -> None:
    """Put all repairs in force; may be called again."""
    hypercorn.protocol.H11Protocol = RepairedH11  # type: ignore[attr-defined]
    hypercorn.trio.run.TCPServer = ContainedTCPServer  # type: ignore[attr-defined]
