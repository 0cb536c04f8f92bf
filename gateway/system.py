"""The real clock, threads and randomness, behind the engine's ports.

The only place, beside the data directory's secrets, that asks the operating system for time or random bytes.
It must not know what they are for.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import outcome
import trio

from engine.ports import ResultT
from wal.log import Envelope


class SystemClock:
    """`engine.ports.Clock` from the operating system."""

    def now_us(self) -> int:
        """See the port."""
        return time.time_ns() // 1000  # noqa: TID251 - this is the port's real side

    def monotonic_us(self) -> int:
        """See the port."""
        return time.monotonic_ns() // 1000


class SystemIds:
    """`engine.ports.Ids` from the operating system."""

    def token(self, size_bytes: int) -> bytes:
        """See the port."""
        return secrets.token_bytes(size_bytes)


async def run_in_thread(function: Callable[[], ResultT]) -> ResultT:
    """`engine.ports.RunBlocking` in a worker thread. A cancelled caller still waits for the disk's answer."""
    return await trio.to_thread.run_sync(function)


class AppendThread:
    """`engine.ports.Appender` as a thread of its own, which tells of its ends by a descriptor.

    A commit for each lone event makes this the busiest crossing of the process: `trio.to_thread` takes three turns of
    the loop and a lock more for each.
    """

    def __init__(self) -> None:
        self._appends: SimpleQueue[Callable[[], tuple[Envelope, ...]] | None] = SimpleQueue()
        self._outcome: outcome.Value[tuple[Envelope, ...]] | outcome.Error | None = None
        self._is_under_way = False
        self._told = self._tell = -1
        self._thread: threading.Thread | None = None

    def start(self, append: Callable[[], tuple[Envelope, ...]]) -> None:
        """See the port."""
        assert not self._is_under_way, "one at a time"
        self._open()
        self._is_under_way = True
        self._appends.put(append)

    async def finished(self) -> tuple[Envelope, ...]:
        """See the port."""
        self._open()
        try:
            await trio.lowlevel.wait_readable(self._told)
        except trio.Cancelled:
            if not self._is_under_way:
                raise
            with trio.CancelScope(shield=True):
                await trio.lowlevel.wait_readable(self._told)
        os.read(self._told, 1)
        self._is_under_way = False
        ended, self._outcome = self._outcome, None
        assert ended is not None, "it is told of what has ended"
        return ended.unwrap()

    def close(self) -> None:
        """See the port."""
        if self._thread is not None:
            self._appends.put(None)
            self._thread.join()
            self._thread = None
            os.close(self._told)
            os.close(self._tell)

    def _open(self) -> None:
        """At the first use: a meter that never starts keeps no thread."""
        if self._thread is None:
            self._told, self._tell = os.pipe()
            os.set_blocking(self._told, False)
            self._thread = threading.Thread(target=self._run, name="append", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (append := self._appends.get()) is not None:
            self._outcome = outcome.capture(append)
            del append  # and with it the group
            os.write(self._tell, b".")
