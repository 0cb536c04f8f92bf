"""Erasures and operations that overlap: one customer is never counted as two, and no row is taken from who still runs."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
import trio

from engine.actors import eraser as eraser_module
from engine.actors.kept import checkpoint_sections
from engine.actors.recovery import CONTROL_SECTION
from engine.actors.supervisor import Meter
from engine.core.configured import Change
from engine.core.erasing import Aliases, stable_pseudonyms
from engine.core.operations import BACKFILL, Asked, payload_of
from engine.core.records import OperationChange
from engine.core.times import DAY_US, format_instant
from engine.errors import Conflict, StorageFull
from tests.helpers.keeping import BY, NAME, Place, fill, kill_after, problems, send, state_of
from wal.memory_log import Operation, Verdict
from wal.memory_runs import MemoryRuns


def test_a_pseudonym_that_is_erased_in_its_turn_stands_for_the_name_too() -> None:
    aliases = Aliases()
    aliases.add("acme", {"anna": "p1"}, 10)
    aliases.add("acme", {"p1": "p2", "anna": "q"}, 20)
    assert aliases.at("acme", 9) == {"anna": "p2", "p1": "p2"}
    assert aliases.at("acme", 15) == {"anna": "q", "p1": "p2"}
    assert aliases.at("acme", 25) == {}


async def test_a_tenant_that_departs_while_a_customer_is_erased_keeps_its_totals_when_killed_anywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eraser_module, "PARTS_PER_RECORD_MAX", 3)

    async def erase_both(meter: Meter) -> None:
        eraser = meter.started.eraser
        first = await eraser.begin("acme", [NAME], secret=None, actor="test", request_id=None)
        everyone = eraser.customers_of("acme")
        assert first.names[NAME] in everyone
        last = await eraser.begin("acme", everyone, secret=None, actor="test", request_id=None)
        await eraser.ended(last.erasure_id)

    killed = True
    for operations in range(4, 2000, 29):
        place = Place()
        await fill(place, Random(operations), months=2, events=25)
        async with place.running() as meter:
            before = sums_of(meter)
        killed = await kill_after(place, operations, erase_both)
        place.snapshots.files.clear()
        place.runs = MemoryRuns()
        async with place.running() as meter:
            assert sums_of(meter) == before
            for erasure_id in list(meter.registry.erasures):
                await meter.started.eraser.ended(erasure_id)
            assert sums_of(meter) == before
        if not killed:
            break
    assert not killed, "the last round must reach the end"


def sums_of(meter: Meter) -> list[tuple[object, ...]]:
    """The counters whoever they belong to: an erasure changes names alone."""
    counters = state_of(meter)["counters"]
    return sorted(
        (partition, metric, start_us, repr(row))
        for (partition, _, metric, _, start_us), row in counters.items()
    )


async def test_a_snapshot_older_than_an_erasure_never_brings_the_name_back_when_killed_anywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eraser_module, "PARTS_PER_RECORD_MAX", 3)

    async def erase(meter: Meter) -> None:
        begun = await meter.started.eraser.begin(
            "acme", [NAME], secret=b"secret", actor="test", request_id=None
        )
        await meter.started.eraser.ended(begun.erasure_id)

    pseudonym = next(stable_pseudonyms("acme", NAME, b"secret"))
    killed = True
    for operations in range(4, 1000, 11):
        place = Place()
        await fill(place, Random(operations), months=2, events=25)
        async with place.running() as meter:
            await meter.started.snapshotter.take()
            named, renamed = state_of(meter), state_of(meter, {NAME: pseudonym})
        killed = await kill_after(place, operations, erase)
        async with place.running() as meter:
            is_begun = bool(meter.registry.erasures or meter.registry.erased)
            assert state_of(meter) == (renamed if is_begun else named)
        if not killed:
            break
    assert not killed, "the last round must reach the end"


async def test_an_erasure_waits_for_a_backfill_that_is_being_asked_for() -> None:
    place = Place()
    await fill(place, Random(1), months=1, events=10)
    outcomes: list[str] = []
    async with place.running() as meter:

        async def ask() -> None:
            rows = [{"metric": "calls", "customerRef": NAME, "quantity": 1, "idempotencyKey": "b"}]
            asked = Asked(at_us=place.clock.now_us(), rows_total=1)
            runner = meter.started.operations
            operation = await runner.ask_backfill(
                "acme", asked, msgspec.json.encode(rows), Change(actor="test")
            )
            while operation.is_open:
                await trio.sleep(0.01)
            outcomes.append(operation.status)

        async def erase() -> None:
            try:
                await meter.started.eraser.begin(
                    "acme", [NAME], secret=None, actor="test", request_id=None
                )
            except Conflict:
                outcomes.append("conflict")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.lowlevel.checkpoint()
            nursery.start_soon(erase)
    assert outcomes == ["conflict", "completed"]


@pytest.mark.parametrize(
    ("name", "of_all", "rows"),
    [
        ('anna "Ü"', None, b'[{"customerRef":"anna \\"\\u00dc\\"","meta":{"who":"hers"}}]'),
        ('anna "Ü"', None, 'customerRef,meta\n"anna ""Ü""","{""who"":""hers""}"\n'.encode()),
        ("anna", "anna", b'[{"quantity":1,"meta":{"who":"hers"}}]'),
    ],
    ids=["escaped", "quoted", "of the whole backfill"],
)
async def test_what_a_backfill_was_sent_of_an_erased_customer_is_gone_however_it_was_written(
    name: str, of_all: str | None, rows: bytes
) -> None:
    place = Place()
    async with place.running() as meter:
        await send(meter, "acme", name, "live", "1", None)
        asked = Asked(at_us=place.clock.now_us(), customer_ref=of_all)
        runner = meter.started.operations
        operation = await runner.ask_backfill("acme", asked, rows, Change(actor="test"))
        while operation.is_open:
            await trio.sleep(0.01)
        assert b"hers" in place.everything()
        eraser = meter.started.eraser
        begun = await eraser.begin("acme", [name], secret=None, actor="test", request_id=None)
        await eraser.ended(begun.erasure_id)
    assert b"hers" not in place.everything()
    assert problems(place) == []


async def test_what_a_backfill_was_sent_is_gone_from_a_checkpoint_that_was_cut_within_it_too() -> (
    None
):
    place = Place()
    ts = format_instant(place.clock.now_us())
    row = {"metric": "calls", "customerRef": NAME, "quantity": 1, "idempotencyKey": "b", "ts": ts}
    rows = msgspec.json.encode([row | {"meta": {"who": "hers"}}])
    async with place.running() as meter:
        asked = Asked(at_us=place.clock.now_us(), rows_total=1)
        operation = await meter.started.operations.ask_backfill("acme", asked, rows, BY)
        while operation.is_open:
            await trio.sleep(0.01)
        place.clock.us += 100 * DAY_US
        await meter.started.closer.close_due()
        [done] = await meter.started.retention.apply(30, "test")
        commit = meter.registry.checkpoint
        assert commit is not None
        assert done.events == 1
        sections = dict(checkpoint_sections(meter.log, commit))
        assert b"hers" in sections[CONTROL_SECTION], "the backfill had not ended there"
        eraser = meter.started.eraser
        begun = await eraser.begin("acme", [NAME], secret=None, actor="test", request_id=None)
        await eraser.ended(begun.erasure_id)
        held = state_of(meter)
    assert b"hers" not in place.everything()
    place.snapshots.files.clear()
    async with place.running() as meter:
        assert state_of(meter) == held
        assert meter.registry.operations.by_id[operation.id].status == "completed"
    assert problems(place) == []


async def test_an_erasure_takes_no_row_from_the_backfill_of_another_tenant() -> None:
    place = Place()
    await fill(place, Random(1), months=1, events=10)
    us = place.clock.now_us()
    row = {"metric": "calls", "customerRef": NAME, "quantity": 1, "idempotencyKey": "b"}
    rows = [row | {"ts": format_instant(us)}]
    async with place.running() as meter:
        # Not asked of the runner: so it waits for the next start.
        await meter.append_control(
            OperationChange(
                action="create",
                operation_id="op_theirs",
                tenant_id="umbra",
                kind=BACKFILL,
                change=Change(actor="test"),
                payload=payload_of(Asked(at_us=us, rows_total=1)),
                rows=msgspec.json.encode(rows),
            )
        )
        eraser = meter.started.eraser
        begun = await eraser.begin("acme", [NAME], secret=None, actor="test", request_id=None)
        await eraser.ended(begun.erasure_id)
    place.snapshots.files.clear()
    async with place.running() as meter:
        operation = meter.registry.operations.by_id["op_theirs"]
        while operation.is_open:
            await trio.sleep(0.01)
        assert (operation.status, operation.accepted, operation.message) == ("completed", 1, "")


async def test_a_disk_that_is_full_while_bodies_are_dropped_is_said_as_such(rng: Random) -> None:
    place = Place()
    await fill(place, rng)
    async with place.running() as meter:
        retention = meter.started.retention
        drop, full = retention.drop, False

        def fault(_operation: Operation) -> Verdict:
            return "full" if full else "ok"

        async def drop_on_a_full_disk() -> None:
            nonlocal full
            full = True
            try:
                await drop()
            finally:
                full = False

        place.disk.fault = fault
        retention.drop = drop_on_a_full_disk  # type: ignore[method-assign]
        with pytest.raises(StorageFull):
            await retention.apply(30, "test")
        retention.drop = drop  # type: ignore[method-assign]
        await retention.finish()
