"""A whole server in memory behind a real socket, with the fast lane or without it, and a client for raw bytes.

Rules it keeps: what is started is the composition root's own way in (`gateway.main.install_server`); 127.0.0.1 only; a
client says exactly what came back and how the connection ended. It must not know what is tested.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any, NamedTuple

import hypercorn.trio
import structlog
import trio

from gateway.asgi import create_asgi
from gateway.logging_setup import configure
from gateway.main import http_config, install_server
from tests.helpers.served import Served, served

SILENCE_SECONDS = 0.6
"""A connection on which nothing came for so long, while the server answers others, is `open`."""
LOOKS = 3
"""In which it is looked at: after each but the last the server has to have answered somebody else."""
PROBE = b"GET /health/live HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) \r\n")


class Outcome(NamedTuple):
    """What a client got."""

    statuses: tuple[int, ...]
    end: str
    """`closed`, `open`, or `reset`."""
    data: bytes


@dataclass
class Listening:
    """A server that listens."""

    served: Served
    port: int
    stop: trio.Event
    config: hypercorn.Config

    async def connect(self) -> trio.SocketStream:
        """A new connection."""
        return await trio.open_tcp_stream("127.0.0.1", self.port)


@asynccontextmanager
async def quiet() -> AsyncIterator[None]:
    """Without log lines: what hostile bytes do to Hypercorn is long to read."""
    root = logging.getLogger()
    before, level = root.handlers, root.level
    configure("error", "json", StringIO())
    try:
        yield
    finally:
        root.handlers = before
        root.setLevel(level)
        structlog.reset_defaults()


@asynccontextmanager
async def listening(
    lane: str = "on", config: Any = None, **environ: str
) -> AsyncIterator[Listening]:
    """A server with `STRIPEMETER_FAST_LANE=<lane>`; `config(hypercorn_config)` may change it before the start."""
    environ = {"fast_lane": lane, "port": "0", "log_level": "error", **environ}
    async with quiet(), served(**environ) as running, trio.open_nursery() as nursery:
        stop = trio.Event()
        settings = http_config(running.gateway.settings)
        settings.graceful_timeout = 3.0
        if config is not None:
            config(settings)

        async def serve(task_status: trio.TaskStatus[list[str]]) -> None:
            # In a nursery of its own: a server that stops must not cancel the test that stopped it.
            async with trio.open_nursery() as inner:
                install_server(running.gateway, settings, stop, inner)
                await hypercorn.trio.serve(
                    create_asgi(running.gateway),
                    settings,
                    shutdown_trigger=stop.wait,
                    mode="asgi",
                    task_status=task_status,
                )
                inner.cancel_scope.cancel()

        urls = await nursery.start(serve)
        yield Listening(running, int(urls[0].rpartition(":")[2]), stop, settings)
        nursery.cancel_scope.cancel()


async def exchange(
    server: Listening,
    pieces: Iterable[bytes],
    *,
    silence: float = SILENCE_SECONDS,
    pause: float = 0.0,
) -> Outcome:
    """Send the pieces and read until the connection ends or is silent: nothing comes, though others are answered."""
    received = bytearray()
    end = "open"
    try:
        stream = await server.connect()
    except OSError:
        return Outcome((), "reset", b"")
    stream.setsockopt(6, 1, 1)  # TCP_NODELAY: each piece a packet

    sent = 0

    async def send() -> None:
        nonlocal sent
        try:
            for piece in pieces:
                await stream.send_all(piece)
                sent += 1
                await trio.sleep(pause)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        looks = 0
        while looks < LOOKS:
            before = sent
            with trio.move_on_after(silence / LOOKS) as scope:
                try:
                    data = await stream.receive_some(65536)
                except trio.BrokenResourceError:
                    end = "reset"
                    break
                if not data:
                    end = "closed"
                    break
                received += data
            looks = looks + 1 if scope.cancelled_caught and sent == before else 0
            if 0 < looks < LOOKS:
                await probe(server)
        nursery.cancel_scope.cancel()
    return Outcome(statuses(bytes(received)), end, bytes(received))


async def probe(server: Listening) -> None:
    """Wait until the server has answered, or turned away, somebody who came just now."""
    with contextlib.suppress(OSError, trio.BrokenResourceError):
        async with await server.connect() as stream:
            await stream.send_all(PROBE)
            while await stream.receive_some(65536):
                pass


def statuses(data: bytes) -> tuple[int, ...]:
    """The statuses of all answers in some bytes."""
    return tuple(int(found) for found in _STATUS.findall(data))


def normalised(data: bytes) -> bytes:
    """Answers without what differs between two servers by nature: dates, made-up ids of requests, ages."""
    data = re.sub(rb"\r\ndate: [^\r]*", b"", data)
    data = re.sub(rb"req_[0-9a-f]{24}", b"req_", data)
    data = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", b"AT", data)

    return re.sub(rb'"staleness":[0-9.e-]+', b'"staleness":0', data)
