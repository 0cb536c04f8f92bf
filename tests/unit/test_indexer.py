"""The indexer when something goes wrong: damage, foreign stores, full disks, late starts; and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from random import Random

import msgspec
import pytest
import trio
import trio.testing

from engine.actors import index_reader, indexer
from engine.actors.indexer import Indexer
from engine.core import rollups
from engine.core.queries import EventsPage, EventsQuery, HistoryQuery, HistoryResult
from engine.core.records import RecordType
from engine.core.times import DAY_US
from engine.errors import Refused, Unavailable
from tests.helpers.event_log import EventLog, Sent, run_inline
from wal.cells import CellStoreFailed, CellStoreFull
from wal.memory_cells import MemoryCells
from wal.memory_log import MemoryLog

LOG_ID = bytes(16)
T0_US = 1_700_000_040_000_000


class Place:
    """A log, a cell store, and indexers on them."""

    def __init__(self) -> None:
        self.event_log = EventLog(MemoryLog())
        self.cells = MemoryCells()
        self.appended = 0

    def make(self, *, log_id: bytes = LOG_ID, chunk_events: int = 20) -> Indexer:
        return Indexer(
            self.event_log.log, self.cells, log_id, run_inline, chunk_events=chunk_events
        )

    def append(self, count: int = 7, *, to: Indexer | None = None) -> None:
        self.appended += 1
        rng = Random(self.appended)
        sent = [
            Sent(
                "acme",
                "calls",
                f"cus-{rng.randrange(5)}",
                rng.randrange(100),
                T0_US + rng.randrange(10**9),
            )
            for _ in range(count)
        ]
        group, end = self.event_log.append(sent, T0_US)
        if to is not None:
            to.feed(group, end)

    @property
    def total(self) -> int:
        return sum(e.sent.micros for e in self.event_log.logged)


@asynccontextmanager
async def running(one: Indexer) -> AsyncIterator[Indexer]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        yield one
        nursery.cancel_scope.cancel()


async def page_of(one: Indexer, **fields: object) -> EventsPage:
    return await one.events(EventsQuery(tenant="acme", **fields))  # type: ignore[arg-type]


async def month_of(one: Indexer, **fields: object) -> HistoryResult:
    given = {
        "since_us": T0_US,
        "until_us": T0_US + 2 * 10**9,
        "interval": "month",
        "tenant": "acme",
        "metric": "calls",
        **fields,
    }
    return await one.history(HistoryQuery(**given), lambda _: "sum")  # type: ignore[arg-type]


async def check(one: Indexer, place: Place) -> None:
    page = await page_of(one, limit=100)
    assert page.total == len(place.event_log.logged)
    assert (await month_of(one)).total_micros == place.total


@pytest.fixture
def place() -> Place:
    return Place()


async def filled(place: Place) -> None:
    """Three chunks, and some events that are not in one."""
    one = place.make()
    async with running(one):
        for _ in range(10):
            place.append(to=one)
            await trio.testing.wait_all_tasks_blocked()
    assert len(place.cells.heads(0, chunks_max=10)) == 3


async def test_a_restart_takes_up_what_was_stored(place: Place) -> None:
    await filled(place)
    one = place.make()
    reads: list[int] = []
    read = place.event_log.log.read

    def counted(sequence: int, *, bytes_max: int) -> object:
        reads.append(sequence)
        return read(sequence, bytes_max=bytes_max)

    place.event_log.log.read = counted  # type: ignore[method-assign, assignment]
    async with running(one):
        await check(one, place)
        assert one.rebuilt_because is None
    assert min(reads[:1]) >= 60, "only what is not in a chunk is read"


@pytest.mark.parametrize(
    "change", ["deleted", "other log", "other epoch", "other version", "ahead", "short", "nonsense"]
)
async def test_a_store_that_does_not_fit_the_log_is_rebuilt(place: Place, change: str) -> None:
    await filled(place)
    manifest = msgspec.msgpack.decode(place.cells.manifest() or b"", type=indexer._Manifest)
    new: Callable[..., indexer._Manifest] = partial(msgspec.structs.replace, manifest)
    fields = {
        "other log": {"log_id": b"x" * 16},
        "other epoch": {"epoch": 99},
        "other version": {"version": 99},
        "ahead": {"watermark": 10_000},
        "short": {"chunks": 4},
    }.get(change)
    if change == "deleted":
        place.cells.wipe()
    else:
        data = b"nonsense" if fields is None else msgspec.msgpack.encode(new(**fields))
        place.cells.write(9, [], data)
    one = place.make()
    async with running(one):
        await check(one, place)
        assert (one.rebuilt_because is None) == (change == "deleted")
        assert one.last_error is None
    again = place.make()
    async with running(again):
        await check(again, place)
        assert again.rebuilt_because is None


async def test_damage_anywhere_is_found_by_who_reads_it_and_repaired(
    place: Place, seed: int
) -> None:
    await filled(place)
    rng = Random(seed)
    whole = dict(place.cells.data)
    for spot in sorted(whole):
        place.cells.data = dict(whole)
        one = place.make()
        async with running(one):
            await check(one, place)
            damaged = bytearray(place.cells.data[spot])
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            place.cells.data[spot] = bytes(damaged)
            for _ in range(3):
                try:
                    await check(one, place)  # never a wrong answer
                    await page_of(one, customer_ref="cus-1", metric="calls")
                    await month_of(one, customer_ref="cus-1")
                except Unavailable as error:
                    assert "damaged" in str(error)
                    await trio.testing.wait_all_tasks_blocked()
            await check(one, place)
        again = place.make()
        async with running(again):
            await check(again, place)


async def test_a_full_disk_is_shown_and_touches_nothing_else(
    place: Place, autojump_clock: trio.testing.MockClock
) -> None:
    assert autojump_clock.autojump_threshold == 0
    one = place.make()
    async with running(one):
        full = CellStoreFull("no space for the usage index")
        unknown = CellStoreFailed("the disk refused")
        place.cells.fail_next_writes((full, False), (unknown, True), (unknown, False))
        for _ in range(5):
            place.append(to=one)
            await trio.testing.wait_all_tasks_blocked()
            await check(one, place)
        assert one.last_error == "no space for the usage index"
        await trio.sleep(60)
        assert one.last_error is None
        await check(one, place)
    async with running(again := place.make()):
        await check(again, place)
        assert again.rebuilt_because is None


async def test_what_waits_for_a_broken_disk_is_bounded_and_then_read_from_the_log(
    place: Place, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    assert autojump_clock.autojump_threshold == 0
    monkeypatch.setattr(indexer, "OPEN_EVENTS_MAX", 40)
    one = place.make()
    async with running(one):
        await trio.testing.wait_all_tasks_blocked()
        place.cells.fail_next_writes(*[(CellStoreFull("no space"), False)] * 6)
        for _ in range(20):
            place.append(to=one)
            await trio.testing.wait_all_tasks_blocked()
            assert one._open_events() <= 40
        assert one.lag >= 100
        with pytest.raises(Unavailable, match="no space"):
            await page_of(one)
        await trio.sleep(300)
        assert one.lag == 0
        await check(one, place)


async def test_what_was_fed_before_it_ran_or_while_it_caught_up_is_there_once(place: Place) -> None:
    for _ in range(5):
        place.append()
    one = place.make()
    place.append(to=one)
    async with running(one):
        for _ in range(30):
            place.append(to=one)
            await trio.lowlevel.checkpoint()
        await check(one, place)


async def test_what_it_read_before_it_was_published_is_not_taken_twice(place: Place) -> None:
    place.append()
    one = place.make()
    group, end = place.event_log.append(
        [Sent("acme", "calls", "cus-1", 5, T0_US)], T0_US, controls=2
    )
    async with running(one):
        await trio.testing.wait_all_tasks_blocked()  # it has read to the log's end
        one.feed(group, end)
        place.append(to=one)
        await check(one, place)


async def test_who_asks_while_it_is_behind_waits_and_then_hears_why(
    place: Place, autojump_clock: trio.testing.MockClock
) -> None:
    assert autojump_clock.autojump_threshold == 0
    place.append()
    one = place.make()
    started = trio.current_time()
    with pytest.raises(Unavailable, match="7 positions of the log are still to be indexed"):
        await page_of(one)
    assert trio.current_time() - started == pytest.approx(5)
    async with running(one):
        await check(one, place)


async def test_readers_see_what_was_published_before_they_asked_while_chunks_close(
    place: Place,
) -> None:
    one = place.make(chunk_events=9)
    async with running(one):
        for _ in range(60):
            place.append(5, to=one)
            await check(one, place)


async def test_control_records_alone_move_the_watermark(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer, "CHUNK_POSITIONS_MAX", 10)
    one = place.make()
    async with running(one):
        for _ in range(3):
            group, end = place.event_log.append([], T0_US, controls=6)
            one.feed(group, end)
            await trio.testing.wait_all_tasks_blocked()
    manifest = msgspec.msgpack.decode(place.cells.manifest() or b"", type=indexer._Manifest)
    assert (manifest.watermark, manifest.chunks) == (12, 0)
    place.append()
    async with running(again := place.make()):
        await check(again, place)


async def test_events_whose_bodies_retention_dropped_are_passed_over(place: Place) -> None:
    await filled(place)
    place.event_log.log.trim(35, RecordType.EVENTS, records_max=100)
    async with running(one := place.make()):
        seen: list[int] = []
        cursor = None
        while True:
            page = await page_of(one, limit=10, direction="asc", cursor=cursor)
            seen += [event.sequence for event in page.events]
            if (cursor := page.next_cursor) is None:
                break
        assert seen == [
            e.sequence
            for e in sorted(place.event_log.logged, key=lambda e: (e.ts_us, e.sequence))
            if e.sequence >= 35
        ]
        assert (await month_of(one)).total_micros == place.total
        with_groups = await month_of(one, group_by="customerRef")
        kept = sum(e.sent.micros for e in place.event_log.logged if e.sequence >= 35)
        assert with_groups.total_micros == kept


# What is refused.


async def test_a_cursor_goes_only_with_the_filters_it_was_made_for(place: Place) -> None:
    await filled(place)
    async with running(one := place.make()):
        cursor = (await page_of(one, limit=3)).next_cursor
        assert cursor is not None
        assert (await page_of(one, limit=7, cursor=cursor)).events
        for other in (
            {"metric": "calls"},
            {"customer_ref": "cus-1"},
            {"source": "http"},
            {"start_us": T0_US},
            {"end_us": T0_US},
            {"sort": "metric"},
            {"direction": "asc"},
        ):
            with pytest.raises(Refused, match="other filters"):
                await page_of(one, cursor=cursor, **other)
        with pytest.raises(Refused, match="other filters"):
            await one.events(EventsQuery(tenant="umbrella", cursor=cursor))
        for nonsense in ("", "x", "é", "A" * 5000, cursor[:-3], cursor + "AAAA"):
            with pytest.raises(Refused, match="not a cursor"):
                await page_of(one, cursor=nonsense)
        with pytest.raises(Refused, match="without offset"):
            await page_of(one, cursor=cursor, offset=1)


async def test_a_walk_with_a_relative_range_goes_on_in_the_range_of_its_first_page(
    place: Place,
) -> None:
    await filled(place)
    async with running(one := place.make()):
        first = await page_of(one, start_us=T0_US, start_text="-PT24H", limit=1)
        later = await page_of(
            one,
            start_us=T0_US + 10**10,
            start_text="-PT24H",
            limit=100,
            cursor=first.next_cursor,
        )
        assert len(later.events) == first.total - 1
        with pytest.raises(Refused, match="other filters"):
            await page_of(one, start_us=T0_US, start_text="-PT25H", cursor=first.next_cursor)


async def test_values_outside_their_range_are_refused_with_the_range(place: Place) -> None:
    async with running(one := place.make()):
        for limit in (0, 101, -1):
            with pytest.raises(Refused, match="1 to 100"):
                await page_of(one, limit=limit)
        with pytest.raises(Refused, match="use the cursor"):
            await page_of(one, offset=10_001)
        with pytest.raises(Refused, match="one of etl, http"):
            await page_of(one, source="carrier pigeon")
        with pytest.raises(Refused, match="before until"):
            await month_of(one, until_us=T0_US)
        with pytest.raises(Refused, match="longer interval"):
            await month_of(one, interval="minute", until_us=T0_US + 8 * DAY_US)
        for group_by in ("customer", "meta.", "meta", ""):
            with pytest.raises(Refused, match=r"meta\.KEY"):
                await month_of(one, group_by=group_by)


async def test_too_many_matches_or_groups_are_refused_with_how_to_narrow(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(place)
    async with running(one := place.make()):
        assert len((await page_of(one, sort="customerRef", limit=100)).events) == 70
        monkeypatch.setattr(index_reader, "LISTING_SORT_MATCHES_MAX", 69)
        for sort in ("metric", "customerRef", "source"):
            with pytest.raises(Refused, match="narrow startTime"):
                await page_of(one, sort=sort)
        monkeypatch.setattr(index_reader, "LISTING_SORT_MATCHES_MAX", 70)
        monkeypatch.setattr(index_reader, "LISTING_BYTES_MAX", 100)
        with pytest.raises(Refused, match="MiB of the log"):
            await page_of(one, sort="customerRef")
        assert len((await month_of(one, group_by="customerRef")).series) == 5
        monkeypatch.setattr(rollups, "HISTORY_GROUPS_MAX", 4)
        with pytest.raises(Refused, match="more than 4 groups"):
            await month_of(one, group_by="customerRef")
        monkeypatch.setattr(index_reader, "SCAN_EVENTS_MAX", 69)
        with pytest.raises(Refused, match="more than 69"):
            await month_of(one, group_by="resourceId")


async def test_a_search_that_stops_early_says_so_and_keeps_the_order(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(place)
    monkeypatch.setattr(index_reader, "LISTING_ROWS_MAX", 1)
    async with running(one := place.make()):
        page = await page_of(one, limit=100)
        assert page.total_is_lower_bound
        assert page.next_cursor is not None
        assert len(page.events) < 70


@pytest.mark.parametrize("direction", ["asc", "desc"])
async def test_a_walk_over_interleaved_chunks_gets_further_with_every_page(
    place: Place, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = place.make()
    async with running(one):
        for chunk in range(5):
            times = [T0_US + 50 * index + 10 * (chunk % 3) for index in range(20)]
            sent = [Sent("acme", "calls", "cus-1", 1, ts_us) for ts_us in times]
            one.feed(*place.event_log.append(sent, T0_US))
            await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr(index_reader, "LISTING_ROWS_MAX", 1)
        seen: list[int] = []
        cursor = None
        for _ in range(200):
            page = await page_of(one, limit=100, direction=direction, cursor=cursor)
            seen += [event.sequence for event in page.events]
            cursor = page.next_cursor
            if cursor is None:
                break
    in_order = sorted(place.event_log.logged, key=lambda e: (e.ts_us, e.sequence))
    expected = [event.sequence for event in in_order]
    assert cursor is None
    assert seen == (expected if direction == "asc" else expected[::-1])


@pytest.mark.parametrize("direction", ["asc", "desc"])
async def test_start_is_in_the_range_and_end_is_not(place: Place, direction: str) -> None:
    async with running(one := place.make()):
        sent = [Sent("acme", "calls", "cus-1", 1, T0_US + index) for index in range(4)]
        one.feed(*place.event_log.append(sent, T0_US))
        page = await page_of(one, start_us=T0_US + 1, end_us=T0_US + 3, direction=direction)
        assert sorted(event.ts_us - T0_US for event in page.events) == [1, 2]
        assert page.total == 2
