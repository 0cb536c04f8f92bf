"""What the meter takes from the outside, as Protocols whose docstrings are the contract.

Time, threads and ids are parameters, so that a simulation can own them; the real ones are in the composition root.
The log's port is `wal.log.Log`, the key index is `wal.key_index`, snapshots are `wal.snapshot`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from engine.errors import EngineError

ResultT = TypeVar("ResultT")


class Clock(Protocol):
    """Two clocks: one that people set, one that only moves on."""

    def now_us(self) -> int:
        """Wall time in microseconds since 1970 UTC; may step either way."""
        ...

    def monotonic_us(self) -> int:
        """Microseconds since an arbitrary start; never steps back."""
        ...


class RunBlocking(Protocol):
    """Runs a function that waits for a disk where it does not hold up the others (a thread)."""

    async def __call__(self, function: Callable[[], ResultT]) -> ResultT:
        """The function's result, or its exception. Not cancelled half-way: the disk has been asked."""
        ...


class Ids(Protocol):
    """Where ids and secrets come from."""

    def token(self, size_bytes: int) -> bytes:
        """That many unpredictable bytes."""
        ...


class Fatal(EngineError):
    """The process must end now and recover at its next start; `str(error)` says why."""
