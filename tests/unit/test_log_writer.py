"""The log writer: what waits for what, what fails with what, and what is refused rather than queued."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from engine.actors import log_writer
from engine.actors.group import Group, Marks, part_name
from engine.actors.log_writer import ACCEPTED, CONFLICT, DUPLICATE, LogWriter
from engine.actors.shard import FoldWork, Shard
from engine.core.configured import Change, CustomerChange, Mapping, MappingChange
from engine.core.keeping import EraseChange
from engine.core.partitions import shard_of
from engine.core.records import (
    UNCOUNTED,
    AdjustmentChange,
    OperationChange,
    PeriodClosing,
    ReplayApply,
    SettingsChange,
)
from engine.core.shard_state import ShardState
from engine.errors import StorageFull, Unavailable
from engine.limits import GROUP_PARTS_MAX, PARTITIONS
from engine.ports import Fatal
from tests.helpers.pushing import Book, baseline, ended, mapped, view
from tests.property.test_fold import MONTH_END_US, row
from wal.envelope import PARTS_MAX
from wal.key_index import KeyIndex
from wal.memory_log import FakeDisk, MemoryLog
from wal.memory_runs import MemoryRuns


class Gate:
    """A thread that runs when it is let: `open` lets the next commit through."""

    def __init__(self) -> None:
        self.waiting = trio.Event()
        self._go = trio.Event()
        self.is_open = True

    def shut(self) -> None:
        self.is_open = False
        self.waiting, self._go = trio.Event(), trio.Event()

    def open(self) -> None:
        self.is_open = True
        self._go.set()

    async def __call__(self, function: Callable[[], Any]) -> Any:
        if not self.is_open:
            self.waiting.set()
            await self._go.wait()
        await trio.lowlevel.checkpoint()
        return function()


class Clock:
    def __init__(self) -> None:
        self.asked = 0
        """Once a commit, for the time of its receipt."""
        self.passed_us = 0

    def now_us(self) -> int:
        self.asked += 1
        return MONTH_END_US

    def monotonic_us(self) -> int:
        return self.passed_us


class Bench:
    """A writer with two shards on a fake disk."""

    def __init__(self) -> None:
        self.disk = FakeDisk()
        self.gate = Gate()
        self.log = MemoryLog(self.disk)
        keys = KeyIndex.open(MemoryRuns(), log_id=bytes(16), epoch=1, head_sequence=0)
        self.controls: list[Any] = []
        self.clock = Clock()
        self.writer = LogWriter(
            self.log,
            keys,
            self.clock,
            self.gate,
            on_published=lambda _group, _next: None,
            on_control=lambda record, _envelope: self.controls.append(record),
            verify=True,
        )
        self.owner = owner = [shard_of(p, 2) for p in range(PARTITIONS)]
        self.shards = [
            Shard(n, ShardState([p for p in range(PARTITIONS) if owner[p] == n])) for n in range(2)
        ]
        self.writer.serve_shards(self.shards, owner)

    @property
    def disk_appends(self) -> int:
        """Commits so far."""
        return self.clock.asked

    def total(self) -> int:
        tables = [t for s in self.shards for t in s.state.counters.values()]
        return sum(counter.sum for table in tables for counter in table.values()) // 10**6


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.writer.run)
        for shard in made.shards:
            nursery.start_soon(shard.run)
        yield made
        nursery.cancel_scope.cancel()


def one(key: str, quantity: str = "1", customer: str = "c") -> Any:
    return row("m", customer, quantity, None, key, MONTH_END_US)


async def is_blocked(wait: Callable[[], Any]) -> bool:
    with trio.move_on_after(0) as scope:
        await trio.testing.wait_all_tasks_blocked()
        await wait()
    return scope.cancelled_caught


async def test_an_answer_waits_for_the_commit_and_the_count() -> None:
    async with bench() as b:
        b.gate.shut()
        offer = b.writer.offer("t", [one("a")], 10)
        await b.gate.waiting.wait()
        assert await is_blocked(offer.settled)
        assert b.total() == 0
        b.gate.open()
        await offer.settled()
        assert b.total() == 1
        assert b.log.head().next_sequence == 1


async def test_a_duplicate_of_an_event_that_is_being_committed_waits_for_it() -> None:
    async with bench() as b:
        b.gate.shut()
        b.writer.offer("t", [one("a")], 10)
        await b.gate.waiting.wait()
        again = b.writer.offer("t", [one("a")], 10)
        assert list(again.verdicts) == [DUPLICATE]
        assert await is_blocked(again.settled)
        b.gate.open()
        await again.settled()
        assert b.total() == 1


async def test_a_duplicate_fails_with_its_original_and_a_retry_counts_once() -> None:
    async with bench() as b:
        b.gate.shut()
        first = b.writer.offer("t", [one("a")], 10)
        await b.gate.waiting.wait()
        again = b.writer.offer("t", [one("a"), one("b")], 10)
        assert list(again.verdicts) == [DUPLICATE, ACCEPTED]
        faults = iter(["error"])
        b.disk.fault = lambda _operation: next(faults, "ok")  # type: ignore[arg-type,return-value]
        b.gate.open()
        for offer in (first, again):
            with pytest.raises(Unavailable):
                await offer.settled()
        retry = b.writer.offer("t", [one("a"), one("b")], 10)
        await retry.settled()
        assert list(retry.verdicts) == [ACCEPTED, DUPLICATE]
        assert b.total() == 2


async def test_a_full_disk_is_told_apart_and_passes() -> None:
    async with bench() as b:
        b.disk.capacity_bytes = 0
        offer = b.writer.offer("t", [one("a")], 10)
        with pytest.raises(StorageFull):
            await offer.settled()
        assert b.writer.last_error is not None
        b.disk.capacity_bytes = None
        await b.writer.offer("t", [one("a")], 10).settled()
        assert b.writer.last_error is None
        assert b.total() == 1


async def test_a_control_record_is_waited_for_by_who_was_cancelled_too() -> None:
    async with bench() as b:
        b.gate.shut()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(b.writer.append_control, mapped())
                await b.gate.waiting.wait()
                scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.testing.wait_all_tasks_blocked()
                    assert nursery.child_tasks, "what it was checked against could be decided again"
                    b.gate.open()
        assert b.controls == [mapped()]


@pytest.mark.parametrize("in_company", [False, True])
async def test_who_waits_for_a_control_record_hears_that_the_writer_ended(in_company: bool) -> None:
    """Else nobody could end the process: who waits can't be cancelled."""
    b = Bench()
    b.disk.fault = lambda operation: "error" if operation == "head" else "ok"
    b.gate.shut()
    heard: list[str] = []

    async def ask() -> None:
        with pytest.raises(Unavailable):
            await b.writer.append_controls((mapped(),), in_company=in_company)
        heard.append("unavailable")

    with trio.fail_after(60), pytest.RaisesGroup(Fatal, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.writer.run)
            nursery.start_soon(ask)
            await b.gate.waiting.wait()
            nursery.start_soon(ask)  # for the next commit, which never comes
            await trio.testing.wait_all_tasks_blocked()
            b.gate.open()
    assert heard == ["unavailable"] * 2
    with pytest.raises(Unavailable):
        await b.writer.append_control(mapped())


async def test_an_unknown_outcome_ends_the_writer() -> None:
    b = Bench()
    b.disk.fault = lambda operation: "error" if operation == "head" else "ok"
    with pytest.RaisesGroup(Fatal, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.writer.run)
            offer = b.writer.offer("t", [one("a")], 10)
            with pytest.raises(Unavailable):
                await offer.settled()


async def test_the_same_key_in_one_request_counts_once() -> None:
    async with bench() as b:
        offer = b.writer.offer("t", [one("a"), one("a"), one("a", "2")], 10)
        await offer.settled()
        assert list(offer.verdicts) == [ACCEPTED, DUPLICATE, CONFLICT]
        assert b.total() == 1


async def test_the_same_key_of_two_customers_or_tenants_is_two_keys() -> None:
    async with bench() as b:
        offers = [
            b.writer.offer("t", [one("a"), one("a", customer="d")], 10),
            b.writer.offer("u", [row_of_tenant("u")], 10),
        ]
        for offer in offers:
            await offer.settled()
            assert set(offer.verdicts) == {ACCEPTED}
        assert b.total() == 3


def row_of_tenant(tenant: str) -> Any:
    import msgspec

    from engine.core.events import EventLimits, SentEvent, accept

    sent = SentEvent(metric="m", customer_ref="c", quantity=msgspec.Raw(b"1"), idempotency_key="a")
    return accept(sent, tenant, None, MONTH_END_US, EventLimits(4096))


async def test_over_the_bound_an_offer_is_refused_and_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_writer, "QUEUE_EVENTS_MAX", 3)
    async with bench() as b:
        b.gate.shut()
        b.writer.offer("t", [one("first")], 10)
        await b.gate.waiting.wait()
        b.writer.offer("t", [one("a"), one("b")], 10)
        with pytest.raises(Unavailable, match="too many"):
            b.writer.offer("t", [one("c"), one("d")], 10)
        assert b.writer.queued == (2, 10)
        last = b.writer.offer("t", [one("c")], 10)
        b.gate.open()
        await last.settled()
        assert b.total() == 4


async def test_more_tenants_than_a_record_has_parts_for_wait_for_the_next_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 2 * GROUP_PARTS_MAX <= PARTS_MAX, "a counting and an erasable part for each"
    monkeypatch.setattr(log_writer, "GROUP_PARTS_MAX", 2)
    refused = pytest.raises(Unavailable, match="too many tenants")
    async with bench() as b:
        b.gate.shut()
        b.writer.offer("t", [one("first")], 10)
        await b.gate.waiting.wait()
        offers = [
            b.writer.offer_one("t", one("a"), 10),
            b.writer.offer("t", [one("b")], 10, Marks("import")),
            b.writer.offer("t", [one("c")], 10),
            b.writer.offer("t", [one("d")], 10, Marks("import")),
        ]
        with refused:
            b.writer.offer_one("u", one("e"), 10)
        with refused:
            b.writer.offer("t", [one("e")], 10, Marks("another"))
        with refused:
            b.writer.offer_columns("u", list(zip(one("e"), strict=True)), 10)
        b.gate.open()
        for offer in offers:
            await offer.settled()
        await b.writer.offer_one("u", one("e"), 10).settled()
        assert b.total() == 6


async def test_closing_drains_what_was_taken_and_takes_no_more() -> None:
    b = Bench()
    async with trio.open_nursery() as nursery:
        for shard in b.shards:
            nursery.start_soon(shard.run)
        nursery.start_soon(b.writer.run)
        offer = b.writer.offer("t", [one("a")], 10)
        b.writer.close()
        with pytest.raises(Unavailable, match="stopping"):
            b.writer.offer("t", [one("b")], 10)
        await b.writer.drained.wait()
        for shard in b.shards:
            shard.inbox.close()
    await offer.settled()
    assert b.total() == 1


async def test_a_control_record_is_folded_before_the_events_of_its_group() -> None:
    async with bench() as b:
        b.gate.shut()
        b.writer.offer("t", [one("first")], 10)
        await b.gate.waiting.wait()
        offer = b.writer.offer("t", [one("a")], 10)
        change = MappingChange(
            mapping=Mapping(id="map_1", tenant_id="t", metric="m", lateness_us=5),
            change=Change(actor="test"),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.writer.append_control, change)
            await trio.testing.wait_all_tasks_blocked()
            b.gate.open()
        await offer.settled()
        assert b.controls == [change]
        types = [r.envelope.record_type for r in b.log.read(0, bytes_max=1 << 20)]
        assert types == [2, 4, 2]
        assert all(s.state.rules.scope("t", "m").lateness_us == 5 for s in b.shards)


def on_its_way(b: Bench, tenant: str, metric: str) -> bool:
    return any(group.holds(tenant, metric) for group in b.writer.ahead)


async def test_usage_that_is_being_committed_is_on_its_way() -> None:
    async with bench() as b:
        assert not on_its_way(b, "t", "m")
        b.gate.shut()
        offer = b.writer.offer("t", [one("a")], 10)
        await b.gate.waiting.wait()
        assert on_its_way(b, "t", "m")
        assert not on_its_way(b, "t", "other")
        assert not on_its_way(b, "u", "m")
        b.gate.open()
        await offer.settled()


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("marks", [None, Marks("op")])
def test_a_group_knows_of_which_metrics_a_customer_has_events_before_and_after_it_is_sealed(
    marks: Marks | None, *, by_column: bool
) -> None:
    group = Group()
    rows = [("m", "c"), ("n", "c"), ("m", "d"), ("o", "d")]
    whole = [(*names, *one("k")[2:]) for names in rows]
    for tenant in ("t", "u"):
        name = part_name(tenant, None if marks is None else marks.operation)
        if by_column:
            group.add_columns(name, list(zip(*whole, strict=True)))
        else:
            group.add_rows(name, whole)
        whole = whole[:1]
    for is_sealed in (False, True):
        if is_sealed:
            group.seal(0)
        assert group.metrics_of("t", "c") == {"m", "n"}
        assert group.metrics_of("t", "d") == {"m", "o"}
        assert group.metrics_of("u", "c") == {"m"}
        assert not group.metrics_of("u", "d")


@pytest.mark.parametrize("order", ["columns, rows", "rows, columns", "columns, columns"])
@pytest.mark.parametrize("repeats", ["none", "of its own", "of others"])
async def test_rows_by_column_are_the_same_rows_wherever_they_meet_others(
    order: str, repeats: str
) -> None:
    first = [one(f"k{n}", str(n), f"c{n}") for n in range(5)]
    second = [one(f"k{n}", str(n), f"c{n}") for n in range(5, 9)]
    if repeats != "none":
        second += [one("k6", "6", "c6"), one("k7", "9", "c7"), one("k9")]
    if repeats == "of others":
        second += [one("k1", "1", "c1"), one("k2", "7", "c2")]
    marks = Marks("op")
    found = []
    for ways in (["rows", "rows"], order.split(", ")):
        async with bench() as b:
            offers = []
            for rows, way in zip((first, second), ways, strict=True):
                if way == "rows":
                    offers.append(b.writer.offer("t", rows, 10, marks))
                else:
                    by_column = list(map(list, zip(*rows, strict=True)))
                    offers.append(b.writer.offer_columns("t", by_column, 10, marks))
            assert not on_its_way(b, "t", "m")
            for offer in offers:
                await offer.settled()
            (record,) = b.log.read(0, bytes_max=1 << 20)
            told = [(o.part, list(o.verdicts), list(o.positions)) for o in offers]
            found.append((told, [part.data for part in record.parts], b.total()))
    assert found[0] == found[1]
    assert found[0][2] == sum(range(9)) + (repeats != "none")


async def test_records_of_pushing_are_done_without_a_shard_and_others_only_with_all() -> None:
    """No shard runs here: what has to reach one waits in its inbox."""
    bench = Bench()
    book = Book(baseline())
    intent = book.intend(view(5))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.writer.run)
        with trio.fail_after(60):
            await bench.writer.append_controls((intent, ended(intent)))
        assert bench.controls == [intent, ended(intent)]
        asked = trio.Event()

        async def ask() -> None:
            with pytest.raises(Unavailable):
                await bench.writer.append_controls((mapped(),))
            asked.set()

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert not asked.is_set(), "shards judge later events by it"
        for shard in bench.shards:
            [work] = await shard.inbox.take_all()
            assert isinstance(work, FoldWork)
            assert [record for record, _sequence in work.controls] == [mapped()]
        nursery.cancel_scope.cancel()


def test_what_shards_are_not_told_of_changes_nothing_about_how_events_count() -> None:
    book = Book(baseline())
    intent = book.intend(view(5))
    for record in (baseline(), intent, ended(intent)):
        assert type(record) in UNCOUNTED
        state = ShardState(range(PARTITIONS))
        before = state.rules.state()
        state.fold_control(record, sequence=1, received_at_us=0)
        assert state.rules.state() == before
    counted = {SettingsChange, MappingChange, CustomerChange, PeriodClosing, AdjustmentChange}
    counted |= {ReplayApply, OperationChange, EraseChange}
    assert not counted & UNCOUNTED
