"""The real clock, threads and randomness, behind the engine's ports.

The only place, beside the data directory's secrets, that asks the operating system for time or random bytes.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import trio

from engine.ports import ResultT


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
