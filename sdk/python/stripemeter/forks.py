"""Fork safety: in the child of a fork every client begins anew: no events, keys of its own, no connections.

What belonged to the parent (sockets, spool files) is left as it is, neither used nor closed: closing would speak on the
parent's connections. And a fork waits, within a bound, for whoever holds a `fork_lock`: SQLite has locks of its own for the
whole process, which no fork resets, so that a child that was made while another thread held one would wait for ever in its first
event. It must not know what a client is made of.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from typing import Any, Protocol


class Forkable(Protocol):
    """What can be registered."""

    def begin_after_fork(self) -> list[Any]:
        """Begin anew; what must not be closed in the child."""
        ...


WAIT_SECONDS_MAX = 1.0
"""A fork waits no longer for spools: a disk that hangs must not hold up the app."""

_LIVE: weakref.WeakSet[Any] = weakref.WeakSet()


class _Locks:
    """The locks that a fork takes first; made anew in a child, where nobody is left to release the parent's."""

    def __init__(self) -> None:
        self.registering = threading.Lock()
        self.registered: weakref.WeakSet[Any] = weakref.WeakSet()
        self.held = threading.local()
        """`locks`: what this thread, which forks, has taken."""


_locks = _Locks()


def register(client: Forkable) -> None:
    """From now on `client` begins anew in children."""
    _LIVE.add(client)


def fork_lock() -> Any:
    """A new reentrant lock: while it is held no thread forks, but for one that has waited for WAIT_SECONDS_MAX."""
    lock = threading.RLock()
    with _locks.registering:
        _locks.registered.add(lock)
    return lock


def _before_fork() -> None:
    until = time.monotonic() + WAIT_SECONDS_MAX
    taken: list[Any] = []
    _locks.held.locks = taken
    if _locks.registering.acquire(timeout=WAIT_SECONDS_MAX):
        taken.append(_locks.registering)
        taken.extend(
            lock
            for lock in list(_locks.registered)
            if lock.acquire(timeout=max(until - time.monotonic(), 0))
        )


def _after_fork_in_parent() -> None:
    taken = _locks.held.locks
    while taken:
        taken.pop().release()


def _after_fork() -> None:
    global _locks  # noqa: PLW0603 - a child has its own
    _locks = _Locks()
    for client in list(_LIVE):
        for left in client.begin_after_fork():
            # One reference too many: it is not closed when the child ends either.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(left))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork
    )
