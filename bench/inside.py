"""Runs the engine inside the measuring process, without HTTP: for what a client can't see (stalls, bytes, folding).

Rules it keeps: the meter is the composition root's own (`gateway.opening.open_meter`), with the server's settings of
the interpreter; only what is asked of it differs. It must not know any benchmark.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

import structlog
import trio

from engine.actors.supervisor import Meter
from engine.config import load
from gateway import collector
from gateway.data_directory import DataDirectory
from gateway.opening import open_meter


class Started(NamedTuple):
    """How long a start took until it was ready: on the clock, and of all threads' processor time."""

    seconds: float
    cpu_seconds: float


Body = Callable[[Meter, Started], Awaitable[None]]
"""What to do with a meter that is ready."""
NEVER_SNAPSHOT: Final = 1_000_000_000
_SWITCH_INTERVAL_SECONDS: Final = 0.0005


def with_meter(directory: Path, body: Body, *, snapshot_every_events: int = NEVER_SNAPSHOT) -> None:
    """Open a data directory, recover, call `body`, stop."""
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    environment = {
        "STRIPEMETER_DATA_DIR": str(directory),
        "STRIPEMETER_SNAPSHOT_EVERY_EVENTS": str(snapshot_every_events),
    }
    settings = load(environment, None, {})
    data = DataDirectory(settings.data_path)
    data.lock()
    collector.pause()
    began = Started(time.perf_counter(), time.process_time())
    try:
        meter = open_meter(settings, data)
        trio.run(_run, meter, body, began)
    finally:
        data.release()


async def _run(meter: Meter, body: Body, began: Started) -> None:
    ready = trio.Event()
    took = Started(0, 0)

    def on_ready() -> None:
        nonlocal took
        took = Started(time.perf_counter() - began.seconds, time.process_time() - began.cpu_seconds)
        collector.resume()
        ready.set()

    async def serve() -> None:
        await ready.wait()
        await body(meter, took)

    await meter.run(serve, on_ready)


class StallWatch:
    """Measures how long the event loop did not come round: `async with StallWatch() as watch`."""

    def __init__(self) -> None:
        self.longest_ms = 0.0
        self.longest_cpu_ms = 0.0
        """The longest turn in processor time of this thread: without what other programs took meanwhile."""
        self.over_5_ms = 0
        self._nursery_manager = trio.open_nursery()

    async def __aenter__(self) -> StallWatch:
        self._nursery = await self._nursery_manager.__aenter__()
        self._nursery.start_soon(self._watch)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._nursery.cancel_scope.cancel()
        await self._nursery_manager.__aexit__(*exc)  # type: ignore[arg-type]

    async def _watch(self) -> None:
        last, last_cpu = time.perf_counter(), time.thread_time()
        while True:
            await trio.lowlevel.checkpoint()
            now, now_cpu = time.perf_counter(), time.thread_time()
            gap_ms = (now - last) * 1e3
            self.longest_ms = max(self.longest_ms, gap_ms)
            self.over_5_ms += gap_ms > 5
            self.longest_cpu_ms = max(self.longest_cpu_ms, (now_cpu - last_cpu) * 1e3)
            last, last_cpu = now, now_cpu
