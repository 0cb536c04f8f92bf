"""Fork safety: in the child of a fork every client begins anew: no events, keys of its own, no connections.

What belonged to the parent (sockets, spool files) is left as it is, neither used nor closed: closing would speak on the
parent's connections. It must not know what a client is made of.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any, Protocol


class Forkable(Protocol):
    """What can be registered."""

    def begin_after_fork(self) -> list[Any]:
        """Begin anew; what must not be closed in the child."""
        ...


_LIVE: weakref.WeakSet[Any] = weakref.WeakSet()


def register(client: Forkable) -> None:
    """From now on `client` begins anew in children."""
    _LIVE.add(client)


def _after_fork() -> None:
    for client in list(_LIVE):
        for left in client.begin_after_fork():
            # One reference too many: it is not closed when the child ends either.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(left))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
