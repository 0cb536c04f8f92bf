"""One HTTP exchange with Stripe: the port, and the two ways in which it can fail.

Rules it keeps: a failure says whether the request may have left. "It surely did not" is only said when no byte of it
was given to the network; every doubt is `AnswerLost`. A message names what happened and where, never a header.
A request that must not leave late is not begun late, however long its process was stopped meanwhile.
It must not know what is asked, nor what an answer means.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final, NamedTuple, Protocol

begin_by_us: Final[ContextVar[int | None]] = ContextVar("begin_by_us", default=None)
"""By `machine_us`: after it no request of this task may begin to leave; None: whenever."""


def machine_us() -> int:
    """Microseconds since the machine started, the same in all its processes; time that it slept counts, where known."""
    if sys.platform == "linux":
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000
    return time.monotonic_ns() // 1_000


def ensure_in_time() -> None:
    """Asked by a wire when it has a connection, right before the first byte. Raises NeverLeft."""
    by_us = begin_by_us.get()
    if by_us is not None and machine_us() > by_us:
        raise NeverLeft("it could not be begun in time")


class Answer(NamedTuple):
    """What came back, whole."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


class WireFailure(Exception):
    """No whole answer came. `str(failure)` is for an operator and holds no secret."""


class NeverLeft(WireFailure):
    """No byte of the request was given to the network: there was no connection to give it to."""


class AnswerLost(WireFailure):
    """The request may have been read by the other side; its answer did not come whole."""


class Wire(Protocol):
    """A pool of connections. Safe for many tasks at once; an exchange may be cancelled at any point."""

    name: str

    async def exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """The whole answer, of whatever status. Raises NeverLeft or AnswerLost. Never sends twice."""
        ...

    async def aclose(self) -> None:
        """Close all connections that are not in use."""
        ...
