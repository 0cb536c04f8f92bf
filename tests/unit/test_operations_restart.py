"""An operation over restarts: from a snapshot in its middle the watermarks at its start are still what rows face."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from engine.actors.group import Marks
from engine.actors.supervisor import Meter, MeterOptions
from engine.core.configured import Change
from engine.core.operations import Asked
from tests.helpers.served import START_US, CountedIds, SetClock, run_inline
from tests.property.test_fold import HOUR_US, row
from wal.archive import MemoryArchives
from wal.memory_cells import MemoryCells
from wal.memory_log import FakeDisk, MemoryLog
from wal.memory_runs import MemoryRuns
from wal.snapshot import MemorySnapshots

BY = Change(actor="test")


class Place:
    """What outlives a meter."""

    def __init__(self) -> None:
        self.clock, self.ids = SetClock(), CountedIds()
        self.disk, self.snapshots = FakeDisk(), MemorySnapshots()
        self.runs, self.cells = MemoryRuns(), MemoryCells()

    @asynccontextmanager
    async def meter(self) -> AsyncIterator[Meter]:
        options = MeterOptions(
            software="test",
            shards=3,
            lateness_us=HOUR_US,
            late_policy="review",
            snapshot_every_events=1_000_000,
            verify=True,
        )
        meter = Meter(
            options,
            log=MemoryLog(self.disk),
            runs=self.runs,
            cells=self.cells,
            snapshots=self.snapshots,
            archives=MemoryArchives(),
            clock=self.clock,
            ids=self.ids,
            run_blocking=run_inline,
        )
        ready, done = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(meter.run, done.wait, ready.set)
            await ready.wait()
            yield meter
            done.set()

    async def send(self, meter: Meter, age_hours: int, key: str, marks: Marks | None) -> int:
        """How many late rows came of one."""
        now_us = self.clock.now_us()
        made: Any = row("calls", "c", "1", now_us - age_hours * HOUR_US, key, now_us)
        offer = meter.taking.offer("acme", [made], 100, marks)
        await offer.settled()
        assert offer.own_group is not None
        return len(offer.own_group.late)


@pytest.mark.parametrize("with_snapshot", [True, False])
async def test_rows_after_a_restart_face_the_watermarks_of_before(*, with_snapshot: bool) -> None:
    place = Place()
    async with place.meter() as meter:
        runner = meter.started.operations
        one = await runner.start_import("acme", Asked(at_us=START_US, identity="f"), BY)
        marks = Marks(one.id)
        if with_snapshot:  # before the counter's first row: that it runs is all there is to know
            await meter.started.snapshotter.take()
    async with place.meter() as meter:
        assert await place.send(meter, 0, "newest", marks) == 0
        if with_snapshot:
            await meter.started.snapshotter.take()
    async with place.meter() as meter:
        again = await meter.started.operations.start_import(
            "acme", Asked(at_us=START_US, identity="f"), BY
        )
        assert again.id == one.id
        assert await place.send(meter, 5, "old", marks) == 0
        assert await place.send(meter, 5, "live", None) == 1
        assert meter.started.operations.counted(again) == (2, 0)
