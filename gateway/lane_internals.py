"""Whether this Hypercorn is the one the fast lane was written for, and putting the lane into it.

The lane replaces a connection's reader, which Hypercorn offers no hook for. So its version is pinned exactly, and what
is touched is looked at before the first connection: where anything differs the server says so in one line and runs on
stock Hypercorn, slower and otherwise the same. It must not know what is served.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import hypercorn.trio.run
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer

PINNED: Final = {"hypercorn": "0.18.0", "quart-trio": "0.12.0"}
"""The versions it was tested with; pyproject.toml pins the same."""
_TOUCHED: Final[dict[type, dict[str, tuple[str, ...]]]] = {
    TCPServer: {
        "__init__": ("self", "app", "config", "context", "state", "stream"),
        "run": ("self",),
        "protocol_send": ("self", "event"),
        "_read_data": ("self",),
        "_idle_timeout": ("self",),
        "_close": ("self",),
    },
    ProtocolWrapper: {"handle": ("self", "event"), "initiate": ("self",)},
    H11Protocol: {"handle": ("self", "event"), "_maybe_recycle": ("self",)},
}
_NAMES_USED: Final[dict[Callable[..., Any], tuple[str, ...]]] = {
    TCPServer.__init__: ("idle_task", "send_lock"),
    TCPServer.run: ("_task_group", "protocol", "_idle_timeout", "_read_data", "_close"),
    ProtocolWrapper.__init__: ("protocol",),
    H11Protocol.__init__: ("keep_alive_requests",),
    H11Protocol.stream_send: ("keep_alive_requests", "keep_alive_max_requests"),
    H11Protocol._maybe_recycle: ("Updated", "Closed", "start_next_cycle"),  # noqa: SLF001
}


def difference(
    versions: Callable[[str], str] = version,
    touched: dict[type, dict[str, tuple[str, ...]]] = _TOUCHED,
) -> str | None:
    """What is not as the lane needs it, in a few words; None when all is."""
    for name, wanted in PINNED.items():
        try:
            found = versions(name)
        except PackageNotFoundError:
            found = "missing"
        if found != wanted:
            return f"{name} is {found}, not {wanted}"
    for owner, methods in touched.items():
        for method, parameters in methods.items():
            function = getattr(owner, method, None)
            if function is None or tuple(inspect.signature(function).parameters) != parameters:
                return f"{owner.__name__}.{method} is another"
    for function, names in _NAMES_USED.items():
        missing = set(names) - {*function.__code__.co_names}
        if missing:
            return f"{function.__qualname__} does not use {min(missing)}"
    if getattr(hypercorn.trio.run, "TCPServer", None) is None:
        return "hypercorn.trio.run makes connections in another way"
    return None


def put_in(server: Callable[..., Any], *first: Any) -> None:
    """Make Hypercorn serve each connection by `server(*first, ...)`, from its next start on."""
    hypercorn.trio.run.TCPServer = partial(server, *first)  # type: ignore[attr-defined, assignment]
