"""Answers that are sent while they are made: what may be larger than memory.

Rules it keeps: a piece is made when the one before is sent, so a client that reads slowly, or never, holds one piece;
only a few at a time; each ends after a while, and when the server stops. An answer that can't be finished is cut off,
so that its reader sees an error and not a shorter file. It must not know what is sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

import structlog
import trio

from engine.errors import Unavailable
from engine.ports import Clock

AT_ONCE_MAX: Final = 4
SECONDS_MAX: Final = 3600
SENT_BYTES: Final = 64 << 10
"""Of a piece, sent at once: whoever takes less than this while a connection may be silent is cut off."""
_logger = structlog.get_logger("stripemeter.stream")


class Streams:
    """The streamed answers of one server."""

    def __init__(self, clock: Clock, is_running: Callable[[], bool]) -> None:
        self._clock = clock
        self._is_running = is_running
        self.open = 0
        """Answers that are being sent now."""
        self.cut_off = 0
        """Answers that could not be finished."""

    def start(self, pieces: AsyncIterator[bytes]) -> Stream:
        """The pieces as a stream. Raises Unavailable when too many are open."""
        if self.open >= AT_ONCE_MAX:
            raise Unavailable(
                f"{AT_ONCE_MAX} exports run already; retry when one has ended",
                retry_after_seconds=10,
            )
        return Stream(self, pieces, self._clock, self._is_running)


class StreamCut(Exception):
    """A stream ends before its end: the connection is closed, so that the reader knows."""


class Stream:
    """One answer: an async iterator of pieces. It counts as open until it is closed."""

    def __init__(
        self,
        streams: Streams,
        pieces: AsyncIterator[bytes],
        clock: Clock,
        is_running: Callable[[], bool],
    ) -> None:
        self._streams = streams
        self._pieces = pieces
        self._clock = clock
        self._is_running = is_running
        self._deadline_us = clock.monotonic_us() + SECONDS_MAX * 1_000_000
        self._is_open = True
        self._rest = memoryview(b"")
        """Made, and not sent yet."""
        streams.open += 1

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        """The next piece. Raises StreamCut."""
        try:
            await trio.lowlevel.checkpoint()
            self._check()
            while not self._rest:  # nothing of a page may match
                self._rest = memoryview(await anext(self._pieces))
                self._check()
        except StreamCut:
            raise
        except StopAsyncIteration:
            self._close()
            raise
        except Exception as error:
            raise self._cut(str(error)) from error
        piece, self._rest = self._rest[:SENT_BYTES], self._rest[SENT_BYTES:]
        return bytes(piece)

    def _check(self) -> None:
        if not self._is_running():
            raise self._cut("the server is stopping")
        if self._clock.monotonic_us() > self._deadline_us:
            raise self._cut(f"it took more than {SECONDS_MAX} s; ask for a shorter range")

    def _cut(self, why: str) -> StreamCut:
        self._streams.cut_off += 1
        self._close()
        _logger.warning("stream_cut_off", reason=why)
        return StreamCut(why)

    async def aclose(self) -> None:
        """Let go of what it holds; called however the answer ends."""
        self._close()
        close = getattr(self._pieces, "aclose", None)
        if close is not None:
            await close()

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._streams.open -= 1

    def __del__(self) -> None:
        # An answer whose head could not be sent is never begun, nor closed.
        self._close()
