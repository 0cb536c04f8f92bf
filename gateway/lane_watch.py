"""Who is connected: the bound on connections, their deadlines, and their end when the server stops.

Rules it keeps: one task looks at all deadlines, four times a second, so that no request pays for a timer; a connection
too many is turned away at once. It must not know HTTP.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

import trio

CONNECTIONS_MAX: Final = 2000
DESCRIPTORS_KEPT: Final = 100
"""Of the process's descriptors, for the log, indexes, exports and the listener."""
LOOK_SECONDS: Final = 0.25
"""A deadline is kept to within this."""


class Phase(Enum):
    """What a connection is doing."""

    IDLE, HEAD, BODY, ANSWER, SEND, LENT, LINGER = range(7)


class Watched(Protocol):
    """What is asked of a connection."""

    deadline: float

    def overdue(self) -> None:
        """Its deadline has passed."""
        ...

    def drain(self) -> None:
        """The server stops."""
        ...


class Watch:
    """One per server."""

    def __init__(self, connections_max: int, on_look: Callable[[], None] = lambda: None) -> None:
        """`on_look` is called at each look, and at the end."""
        self._on_look = on_look
        self._connections_max = connections_max
        self._connections: set[Watched] = set()
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._connections)

    def enter(self, connection: Watched) -> bool:
        """Whether there is room for it; then it is watched until it leaves."""
        if len(self._connections) >= self._connections_max:
            return False
        self._connections.add(connection)
        return True

    def leave(self, connection: Watched) -> None:
        """It has ended."""
        self._connections.discard(connection)

    async def run(self, stop: trio.Event) -> None:
        """Look at the deadlines until cancelled; when `stop` is set, let no connection begin another request."""
        try:
            while not stop.is_set():
                with trio.move_on_after(LOOK_SECONDS):
                    await stop.wait()
                self._look()
            self.is_draining = True
            for connection in tuple(self._connections):
                connection.drain()
            while True:
                await trio.sleep(LOOK_SECONDS)
                self._look()
        finally:
            self._on_look()

    def _look(self) -> None:
        self._on_look()
        now = trio.current_time()
        for connection in tuple(self._connections):
            if connection.deadline <= now:
                connection.overdue()


def connections_max() -> int:
    """As many as the bound and the process's descriptors allow; the soft limit on these is raised as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + DESCRIPTORS_KEPT
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return (
        CONNECTIONS_MAX
        if soft == resource.RLIM_INFINITY
        else max(1, min(CONNECTIONS_MAX, soft - DESCRIPTORS_KEPT))
    )
