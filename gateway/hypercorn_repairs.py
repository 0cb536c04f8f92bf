"""Repairs of Hypercorn 0.18 that can't be made by its settings. Hypercorn is pinned exactly because of this file.

Rules it keeps: each repair says what is wrong in Hypercorn and what happens without it; a test of a real server fails
when it is taken out. It must not know what is served.
"""

from __future__ import annotations

from typing import Any, Final

import h11
import hypercorn.protocol
import hypercorn.trio.run
import structlog
import trio
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer

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
    """A connection whose failure is its own, where Hypercorn ends the whole server; and that closes when it says so."""

    async def run(self) -> None:
        """Serve one connection until it ends. Cancelled passes."""
        try:
            await super().run()
        except Exception:  # any client could end the meter with what is not foreseen here
            _logger.exception("connection_failed")

    async def protocol_send(self, event: Event) -> None:
        """What Hypercorn's protocol sends. A connection that is to be closed is closed.

        Quart ends the task that closes it, at the disconnect it has just been told of: without the shield
        `Connection: close` is promised and not kept, and the connection stays until the client goes.
        """
        if isinstance(event, Closed):
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_SECONDS_MAX):
                await super().protocol_send(event)
        else:
            await super().protocol_send(event)


def repair() -> None:
    """Put all repairs in force; may be called again."""
    hypercorn.protocol.H11Protocol = RepairedH11  # type: ignore[attr-defined]
    hypercorn.trio.run.TCPServer = ContainedTCPServer  # type: ignore[attr-defined]
