"""An older file of the log, put back by hand beside newer snapshots and indexes: once it has grown they must not fit it."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from engine.actors.supervisor import Meter
from engine.core.queries import EventsQuery, HistoryQuery
from engine.core.times import DAY_US
from engine.errors import StartRefused
from tests.helpers.keeping import Place, fill, send, state_of
from wal.snapshot import SnapshotFailed


class Unindexed(Place):
    """The same disks, as a command has them that leaves the index to the next start."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.__dict__.update(vars(place))

    def meter(self) -> Meter:
        meter = super().meter()
        meter.options = replace(meter.options, is_indexing=False)
        return meter


async def grown(place: Place, rng: Random) -> tuple[dict[int, bytes], object]:
    """A log as it was, while snapshots and indexes follow what came after."""
    await fill(place, rng, months=1, events=20)
    older = dict(place.disk.durable), place.disk.head
    async with place.running() as meter:
        for number in range(40):
            await send(meter, "acme", "dora", f"lost-{number}", "1", None)
        await meter.started.snapshotter.take()
        indexer = meter.started.indexer
        indexer._chunk_events = 8  # else nothing would be in the index's store
        indexer._wake.set()
        await indexer.settled()
    assert place.snapshots.files
    assert len(place.cells.data) > 1
    return older


@pytest.mark.parametrize("is_indexing", [True, False])
async def test_what_follows_a_log_that_was_put_back_never_takes_the_place_of_what_it_holds(
    rng: Random, is_indexing: bool
) -> None:
    place = Place()
    place.disk.durable, place.disk.head = await grown(place, rng)  # type: ignore[assignment]
    async with (place if is_indexing else Unindexed(place)).running() as meter:
        for number in range(60):
            await send(meter, "acme", "dora", f"new-{number}", "10", None)
        held = state_of(meter)
    async with place.running() as meter:
        assert state_of(meter) == held
        indexer, now_us = meter.started.indexer, meter.clock.now_us()
        page = await indexer.events(EventsQuery(tenant="acme", customer_ref="dora"))
        assert page.total == 60
        query = HistoryQuery(
            tenant="acme",
            metric="calls",
            customer_ref="dora",
            since_us=now_us - DAY_US,
            until_us=now_us + 1,
            interval="day",
        )
        assert (await indexer.history(query, lambda _: "sum")).total_micros == 600_000_000
        assert await send(meter, "acme", "dora", "lost-0", "1", None) == 0, "it is not in this log"


async def test_a_snapshot_that_is_ahead_and_can_not_be_removed_refuses_the_start(
    rng: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place()
    place.disk.durable, place.disk.head = await grown(place, rng)  # type: ignore[assignment]

    def refuse(_name: str) -> None:
        raise SnapshotFailed("the disk is read-only")

    monkeypatch.setattr(place.snapshots, "remove", refuse)
    with pytest.RaisesGroup(StartRefused, match=None, flatten_subgroups=True, allow_unwrapped=True):
        async with place.running():
            pass
