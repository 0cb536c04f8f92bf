"""Appends to the log by way of any `RunBlocking`, where no thread is kept for them, and what a failed one is told as.

Rules it keeps: the promises of `engine.ports.Appender`. It must not know what is appended.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from engine.errors import EngineError, StorageFull, Unavailable
from engine.ports import RunBlocking
from wal.log import Envelope, LogError, LogFull, LogStateUnknown, LogWriteFailed


class BlockingAppender:
    """`engine.ports.Appender`."""

    def __init__(self, run_blocking: RunBlocking) -> None:
        self._run_blocking = run_blocking
        self._append: Callable[[], tuple[Envelope, ...]] | None = None
        self._begun = trio.Event()

    def start(self, append: Callable[[], tuple[Envelope, ...]]) -> None:
        """See the port."""
        assert self._append is None, "one at a time"
        self._append = append
        self._begun.set()

    async def finished(self) -> tuple[Envelope, ...]:
        """See the port."""
        await self._begun.wait()
        append, self._append = self._append, None
        self._begun = trio.Event()
        assert append is not None, "begun"
        return await self._run_blocking(append)

    def close(self) -> None:
        """See the port."""


def as_engine_error(error: LogError) -> EngineError:
    """A failure of the log as who asked for the work is told it."""
    match error:
        case LogFull():
            return StorageFull(str(error))
        case LogWriteFailed() | LogStateUnknown():
            return Unavailable(str(error))
        case _:
            return Unavailable(f"the log can't be written: {error}")
