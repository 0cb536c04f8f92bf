"""Runs the engine inside the measuring process, without HTTP: for what a client can't see (stalls, bytes, folding).

Rules it keeps: the meter is the composition root's own (`gateway.main.open_meter`), with the server's settings of
the interpreter; only what is asked of it differs. It must not know any benchmark.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog
import trio
from gateway.data_directory import DataDirectory
from gateway.main import open_meter

from engine.actors.supervisor import Meter
from engine.config import load

Body = Callable[[Meter, float], Awaitable[None]]
"""What to do with a meter that is ready; it is given the seconds until it was."""
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
    began = time.perf_counter()
    try:
        meter = open_meter(settings, data)
        trio.run(_run, meter, body, began)
    finally:
        data.release()


async def _run(meter: Meter, body: Body, began: float) -> None:
    ready = trio.Event()
    took_seconds = 0.0

    def on_ready() -> None:
        nonlocal took_seconds
        took_seconds = time.perf_counter() - began
        gc.collect()
        gc.freeze()
        ready.set()

    async def serve() -> None:
        await ready.wait()
        await body(meter, took_seconds)

    await meter.run(serve, on_ready)


class StallWatch:
    """Measures how long the event loop did not come round: `async with StallWatch() as watch`."""

    def __init__(self) -> None:
        self.longest_ms = 0.0
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
        last = time.perf_counter()
        while True:
            await trio.lowlevel.checkpoint()
            now = time.perf_counter()
            gap_ms = (now - last) * 1e3
            self.longest_ms = max(self.longest_ms, gap_ms)
            self.over_5_ms += gap_ms > 5
            last = now
