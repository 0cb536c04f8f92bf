"""Retention and erasure in a whole meter: nothing that counts changes, killed at any moment, and nothing is left."""

from __future__ import annotations

from itertools import islice
from random import Random
from typing import Any

import pytest
import trio

from engine.actors.eraser import NAMES_PER_TURN
from engine.actors.prefix_fold import PrefixFold
from engine.actors.supervisor import Meter
from engine.actors.tenant_parts import tenant_parts
from engine.core.erasing import stable_pseudonyms
from engine.core.queries import EventsQuery
from engine.core.records import RecordType
from engine.core.times import DAY_US
from engine.errors import NotFound, StartRefused, Unavailable
from tests.helpers.keeping import (
    NAME,
    STRIPE_NAME,
    Place,
    fill,
    kill_after,
    problems,
    send,
    state_of,
)
from wal.log import PartState, Replacement, StoredPart
from wal.memory_log import MemoryLog
from wal.memory_runs import MemoryRuns


async def state_without_snapshots(place: Place) -> dict:
    place.snapshots.files.clear()
    place.runs = MemoryRuns()
    async with place.running() as meter:
        return state_of(meter)


async def erase(meter: Meter, name: str = NAME, secret: bytes | None = None) -> dict[str, str]:
    eraser = meter.started.eraser
    begun = await eraser.begin("acme", [name], secret=secret, actor="test", request_id=None)
    await eraser.ended(begun.erasure_id)
    return begun.names


async def test_retention_changes_no_total_and_the_state_comes_back_without_snapshots(
    rng: Random,
) -> None:
    place = Place()
    await fill(place, rng)
    async with place.running() as meter:
        before, size = state_of(meter), place.disk.used_bytes()
        plan = await meter.started.retention.plan(30)
        assert plan.events
        done = await meter.started.retention.apply(30, "test")
        assert (done[0].events, done[0].position) == (plan.events, plan.position)
        assert state_of(meter) == before
        assert place.archives.names()
        assert await meter.started.retention.apply(30, "test") == []
    assert place.disk.used_bytes() != size
    assert await state_without_snapshots(place) == before
    assert problems(place) == []
    held = [r for name in place.archives.names() for r in place.archives.read(name)]
    assert sum(r.envelope.item_count for r in held) == plan.events
    assert {r.envelope.record_type for r in held} == {RecordType.EVENTS}


async def test_events_older_than_the_horizon_are_refused_and_younger_ones_are_not(
    rng: Random,
) -> None:
    place = Place()
    await fill(place, rng)
    async with place.running() as meter:
        await meter.started.retention.apply(30, "test")
        horizon_us = meter.registry.horizon_us
        assert meter.clock.now_us() - horizon_us >= 30 * DAY_US
        assert horizon_us <= meter.rules.closed_until_us
        with pytest.raises(AssertionError, match="retention has dropped"):
            await send(meter, "acme", "cleo", "old", "1", horizon_us - 1)
        assert await send(meter, "acme", "cleo", "young", "1", horizon_us) == 0
    async with place.running() as meter:
        assert meter.registry.horizon_us == horizon_us


async def test_a_wall_clock_that_jumps_ahead_makes_nothing_old_enough_to_be_dropped(
    rng: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place()
    await fill(place, rng)
    async with place.running() as meter:
        retention = meter.started.retention
        assert (await retention.plan(400)).events == 0
        right = place.clock.now_us
        monkeypatch.setattr(place.clock, "now_us", lambda: right() + 1_000 * DAY_US)
        for what in (retention.plan(400), retention.apply(400, "test")):
            with pytest.raises(Unavailable, match="wall clock moved"):
                await what
        monkeypatch.setattr(place.clock, "now_us", right)
        assert await retention.apply(400, "test") == []
        assert len(await retention.apply(30, "test")) == 1


async def test_retention_killed_anywhere_goes_on_and_changes_nothing(rng: Random) -> None:
    origin = Place()
    await fill(origin, rng, events=30)
    files = dict(origin.disk.durable)
    head, now_us = origin.disk.head, origin.clock.us
    async with origin.running() as meter:
        before = state_of(meter)
    kills = 0
    for operations in range(0, 400, 3):
        place = Place()
        place.disk.durable, place.disk.head = dict(files), head
        place.clock.us = now_us
        died = await kill_after(place, operations, lambda m: m.started.retention.apply(30, "test"))
        assert await state_without_snapshots(place) == before, operations
        assert problems(place) == [], operations
        async with place.running() as meter:
            await meter.started.retention.finish()
            await meter.started.retention.apply(30, "test")
            assert state_of(meter) == before
            commit = meter.registry.checkpoint
            assert commit is not None
        assert await state_without_snapshots(place) == before, operations
        assert problems(place) == [], operations
        kills += died
        if not died:
            break
    assert kills > 20, "too few kills say little"


async def test_an_erased_customer_is_nowhere_and_every_total_stays(rng: Random) -> None:
    place = Place()
    await fill(place, rng)
    async with place.running() as meter:
        await meter.started.retention.apply(30, "test")
        await meter.started.snapshotter.take()
        before = state_of(meter)
        indexer = meter.started.indexer
        indexer._chunk_events = 8  # else nothing would be in the index's store
        indexer._wake.set()
        await indexer.settled()
        indexed = dict(place.cells.data)
        assert len(indexed) > 1
        held = place.everything()
        assert NAME.encode() in held
        assert STRIPE_NAME.encode() in held
        names = await erase(meter)
        after = state_of(meter)
        assert after == state_of_renamed(before, names)
        with pytest.raises(NotFound):
            await erase(meter)
        await indexer.settled()
        assert indexer.rebuilt_because == "a customer was erased"
        assert len(place.cells.data) > 1
        query = EventsQuery(tenant="acme", customer_ref=NAME)
        assert (await indexer.events(query)).total == 0
    left = place.everything()
    assert names[NAME].encode() in left
    assert NAME.encode() not in left
    assert STRIPE_NAME.encode() not in left
    assert problems(place) == []
    assert await state_without_snapshots(place) == after
    assert problems(place) == []


async def test_an_archive_without_the_customer_is_read_and_not_packed_again() -> None:
    place = Place()
    async with place.running() as meter:
        for name in ("cleo", NAME):
            await send(meter, "acme", name, f"old-{name}", "5", None)
            place.clock.us += 100 * DAY_US
            await meter.started.closer.close_due()
            assert len(await meter.started.retention.apply(30, "test")) == 1
        written: list[str] = []
        write = place.archives.write

        def noted(name: str, records: Any) -> None:
            written.append(name)
            write(name, records)

        place.archives.write = noted  # type: ignore[method-assign]
        await erase(meter)
    _, of_her = place.archives.names()
    assert written == [of_her]
    assert NAME.encode() not in place.everything()


async def test_a_retry_of_an_erased_event_is_a_duplicate_and_the_name_may_come_back() -> None:
    place = Place()
    async with place.running() as meter:
        sent = meter, "acme", NAME, "the-key", "5", None
        assert await send(*sent) == 0
        names = await erase(meter)
        assert await send(*sent) == 1, "its key is the hash of the name: it stays"
        assert await send(meter, "acme", NAME, "another", "7", None) == 0
        usage = {c: meter.usage_current("acme", c, place.clock.us) for c in (NAME, names[NAME])}
        assert [u.current for u in usage[NAME]] == [7_000_000]
        assert [u.current for u in usage[names[NAME]]] == [5_000_000]
        before = state_of(meter)
        again = await erase(meter)
        assert again[NAME] != names[NAME]
    assert await state_without_snapshots(place) == state_of_renamed(before, again)
    assert NAME.encode() not in place.everything()
    assert problems(place) == []


async def test_a_stable_pseudonym_is_found_again_by_who_has_name_and_secret() -> None:
    place = Place()
    async with place.running() as meter:
        found = []
        for key in ("one", "two"):
            await send(meter, "acme", NAME, key, "5", None)
            found.append(await erase(meter, secret=b"s" * 32))
        expected = list(islice(stable_pseudonyms("acme", NAME, b"s" * 32), 2))
        assert [names[NAME] for names in found] == expected
        assert next(stable_pseudonyms("acme", NAME, b"t" * 32)) not in expected
        for pseudonym in expected:
            [usage] = meter.usage_current("acme", pseudonym, place.clock.us)
            assert usage.current == 5_000_000
        before = state_of(meter)
    assert await state_without_snapshots(place) == before


async def test_a_departing_tenant_with_many_customers_leaves_turns_to_others() -> None:
    place = Place()
    async with place.running() as meter:
        customers = [f"customer-{number}" for number in range(200)]
        async with trio.open_nursery() as nursery:
            for number, name in enumerate(customers):
                nursery.start_soon(send, meter, "acme", name, f"key-{number}", "1", None)
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        made: list[int] = []
        token = place.ids.token

        def told(size_bytes: int) -> bytes:
            made.append(turns)
            return token(size_bytes)

        place.ids.token = told  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            begun = await meter.started.eraser.begin(
                "acme", customers, secret=None, actor="test", request_id=None
            )
            nursery.cancel_scope.cancel()
        assert len(set(begun.names.values())) == len(customers)
        in_one_turn = max(made.count(turn) for turn in set(made))
        assert in_one_turn <= 3 * NAMES_PER_TURN, "some 1,000 customers would stop ingest for 0.3 s"
        await meter.started.eraser.ended(begun.erasure_id)


async def test_a_departing_tenant_leaves_totals_and_no_name(rng: Random) -> None:
    place = Place()
    await fill(place, rng)
    async with place.running() as meter:
        eraser, before = meter.started.eraser, state_of(meter)
        customers = eraser.customers_of("acme")
        assert len(customers) == 3
        begun = await eraser.begin("acme", customers, secret=None, actor="test", request_id=None)
        await eraser.ended(begun.erasure_id)
        after = state_of(meter)
        assert after == state_of_renamed(before, begun.names)
        assert not {c for _, t, _, c, _ in after["counters"] if t == "acme"} & set(customers)
    assert await state_without_snapshots(place) == after
    for record in MemoryLog(place.disk).read(0, bytes_max=1 << 30):
        if record.envelope.record_type == RecordType.EVENTS:
            for part in tenant_parts(record):
                names = part.decode(fold_only=True).customers
                assert part.tenant != "acme" or not set(names) & set(customers)


async def test_erasing_killed_anywhere_goes_on_and_changes_nothing(rng: Random) -> None:
    origin = Place()
    await fill(origin, rng, events=30)
    async with origin.running() as meter:
        await meter.started.retention.apply(30, "test")
        await meter.started.snapshotter.take()
        before = state_of(meter)
    kills = begun = 0
    for operations in range(0, 600, 5):
        place = copy_of(origin)
        died = await kill_after(place, operations, erase)
        if operations % 2:  # recovery with the snapshots of that moment, or without any
            place.snapshots.files.clear()
        async with place.running() as meter:
            pending = list(meter.registry.erasures.values())
            begun += bool(pending)
            for erasure in pending:
                await meter.started.eraser.ended(erasure.id)
            known = NAME in meter.started.eraser.customers_of("acme")
            after = state_of(meter)
        if known:
            assert after == before, operations
        else:
            [pseudonym] = {
                c for _, t, _, c, _ in after["counters"] if t == "acme" and "erased_" in c
            }
            assert after == state_of_renamed(before, {NAME: pseudonym}), operations
            assert await state_without_snapshots(place) == after, operations
            assert NAME.encode() not in place.everything(), operations
        assert problems(place) == [], operations
        kills += died
        if not died:
            break
    assert kills > 20, "too few kills say little"
    assert begun > 10, "too few fell into the erasure"


async def test_planted_bodies_dropped_before_the_checkpoint_is_durable_are_damage(
    rng: Random,
) -> None:
    place = Place()
    await fill(place, rng, events=20)
    MemoryLog(place.disk).trim(20, RecordType.EVENTS, records_max=100)
    assert any("no whole checkpoint stands in" in problem for problem in problems(place))
    place.snapshots.files.clear()
    with pytest.raises(ExceptionGroup) as caught:
        async with place.running():
            pass
    assert caught.group_contains(StartRefused, match="no checkpoint")


async def test_planted_a_part_replaced_without_an_erase_record_is_damage(rng: Random) -> None:
    place = Place()
    await fill(place, rng, events=20)
    async with place.running() as meter:
        await erase(meter)
    assert problems(place) == []
    log = MemoryLog(place.disk)
    record = next(
        r
        for r in log.read(0, bytes_max=1 << 30)
        if r.envelope.record_type == RecordType.EVENTS and r.parts[1].state == PartState.INTACT
    )
    forged = StoredPart(record.parts[1].kind, PartState.PSEUDONYM, record.parts[1].data)
    log.replace([Replacement(record.sequence, (record.parts[0], forged, *record.parts[2:]))])
    [problem] = problems(place)
    assert f"part 1 of record {record.sequence} was replaced" in problem


async def test_planted_an_edited_copy_of_an_erased_part_is_damage(rng: Random) -> None:
    place = Place()
    await fill(place, rng, events=20)
    async with place.running() as meter:
        names = await erase(meter)
    log = MemoryLog(place.disk)
    record = next(
        r
        for r in log.read(0, bytes_max=1 << 30)
        if r.envelope.record_type == RecordType.EVENTS and r.parts[1].state == PartState.PSEUDONYM
    )
    edited = record.parts[1].data.replace(names[NAME].encode(), b"x" * len(names[NAME]))
    part = record.parts[1]._replace(data=edited)
    log.replace([Replacement(record.sequence, (record.parts[0], part, *record.parts[2:]))])
    assert len(problems(place)) == 1


async def test_a_prefix_over_erased_and_dropped_records_is_the_same_state(rng: Random) -> None:
    place = Place()
    await fill(place, rng)
    async with place.running() as meter:
        await meter.started.retention.apply(30, "test")
        await erase(meter)
        fold = PrefixFold(meter.log, meter.log.head().next_sequence)
        while fold.run_slice():
            pass
        live: dict[Any, Any] = {}
        for shard in meter.shards:
            for partition, table in shard.state.counters.items():
                live |= {(partition, *series): one.state() for series, one in table.items()}
        folded = {
            (partition, *series): one.state()
            for partition, table in fold.state.counters.items()
            for series, one in table.items()
        }
        assert folded == live


def copy_of(place: Place) -> Place:
    """Another place with the same on its disks."""
    other = Place()
    other.disk.durable, other.disk.head = dict(place.disk.durable), place.disk.head
    other.snapshots.files = dict(place.snapshots.files)
    other.archives.files = dict(place.archives.files)
    other.clock.us = place.clock.us
    other.ids.made = place.ids.made  # ids are made once, also the id of a checkpoint
    return other


def state_of_renamed(state: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A state with other names for customers of acme."""

    def renamed(tenant: str, customer: str) -> str:
        return names.get(customer, customer) if tenant == "acme" else customer

    adjustments = {}
    for one, row in state["adjustments"].items():
        tenant, metric, customer, start = row[1]
        changed = (tenant, metric, renamed(tenant, customer), start)
        adjustments[one] = [row[0], changed, *row[2:]]
    return {
        "counters": {
            (p, t, m, renamed(t, c), s): v for (p, t, m, c, s), v in state["counters"].items()
        },
        "adjustments": adjustments,
        "closed": state["closed"],
        "anchors": {(t, renamed(t, c)): h for (t, c), h in state["anchors"].items()},
    }
