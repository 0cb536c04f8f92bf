"""The log writer's turns: when a commit starts, what shares it, who comes between two, and what is folded when."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from engine.actors import log_writer, shard
from engine.actors.group import Group
from engine.actors.shard import FoldWork, PartitionRequest, Shard
from engine.core.records import SettingsChange
from engine.core.shard_state import ShardState
from engine.errors import StorageFull, Unavailable
from engine.limits import PARTITIONS, WRITE_US_MAX
from tests.helpers.pushing import Book, baseline, view
from tests.unit.test_log_writer import Bench, bench, is_blocked, one


async def test_what_is_gathered_in_a_turn_is_one_commit_and_starts_in_that_turn() -> None:
    async with bench() as b:
        await trio.testing.wait_all_tasks_blocked()
        b.writer.gather()
        offers = [b.writer.offer_one("t", one(key), 10) for key in "abc"]
        b.writer.commit_now()
        assert b.writer.queued == (0, 0), "under way before anybody else has a turn"
        for offer in offers:
            await offer.settled()
        assert b.total() == 3
        [record] = b.log.read(0, bytes_max=1 << 20)
        assert record.envelope.item_count == 3
        later = b.writer.offer_one("t", one("d"), 10)
        await later.settled()
        assert b.total() == 4, "without anybody who gathers it starts by itself"


async def test_what_is_gathered_while_somebody_is_alone_with_the_log_waits_for_that() -> None:
    async with bench() as b:
        b.gate.shut()
        order: list[str] = []

        async def alone() -> None:
            await b.writer.alone_with_log(lambda: order.append(str(b.log.head().next_sequence)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(alone)
            await b.gate.waiting.wait()
            b.writer.gather()
            offer = b.writer.offer_one("t", one("a"), 10)
            b.writer.commit_now()
            assert b.writer.queued == (1, 10), "the log is somebody else's just now"
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(alone)
            assert await is_blocked(offer.settled)
            b.gate.open()
            await offer.settled()
        assert order == ["0", "1"], "in the order in which they asked"
        assert b.total() == 1


async def test_who_wants_to_be_alone_with_the_log_has_its_turn_between_commits() -> None:
    async with bench() as b:
        b.gate.shut()
        first = b.writer.offer_one("t", one("a"), 10)
        await b.gate.waiting.wait()
        heads: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                b.writer.alone_with_log, lambda: heads.append(b.log.head().next_sequence)
            )
            await trio.testing.wait_all_tasks_blocked()
            second = b.writer.offer_one("t", one("b"), 10)
            b.gate.open()
        await first.settled()
        await second.settled()
        assert heads == [1], "events that keep coming don't keep it waiting"


@pytest.mark.parametrize("at_once", [0, 1, 1000])
async def test_events_are_folded_in_the_order_of_the_log_at_once_or_in_turn(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(log_writer, "FOLDED_AT_ONCE_MAX", at_once)
    async with bench() as b:
        folded: list[int] = []
        for shard in b.shards:
            fold = shard.state.fold_events

            def noted(*args: Any, fold: Any = fold, first_sequence: int, **more: Any) -> Any:
                folded.append(first_sequence)
                return fold(*args, first_sequence=first_sequence, **more)

            monkeypatch.setattr(shard.state, "fold_events", noted)
        offers = []
        for number in range(60):
            size = 1 + number % 3
            offers.append(
                b.writer.offer("t", [one(f"{number}-{n}", customer="c") for n in range(size)], 10)
            )
            if number % 2:
                await trio.lowlevel.checkpoint()
        for offer in offers:
            await offer.settled()
        assert folded == sorted(folded)
        assert b.total() == 120


@pytest.mark.parametrize("alone", [False, True])
async def test_while_a_write_does_not_end_events_are_refused_at_once_and_none_is_lost(
    *, alone: bool
) -> None:
    async with bench() as b, trio.open_nursery() as nursery:
        b.gate.shut()
        if alone:
            nursery.start_soon(b.writer.alone_with_log, lambda: None)
            await b.gate.waiting.wait()
            taken = [b.writer.offer_one("t", one("a"), 10)]
        else:
            taken = [b.writer.offer_one("t", one("a"), 10)]
            await b.gate.waiting.wait()
        b.clock.passed_us = WRITE_US_MAX
        assert b.writer.stuck_us == 0
        taken.append(b.writer.offer_one("t", one("b"), 10))
        b.clock.passed_us += 1
        assert b.writer.stuck_us == WRITE_US_MAX + 1
        for offer in (b.writer.offer_one, lambda *of: b.writer.offer(of[0], [of[1]], of[2])):
            with pytest.raises(Unavailable, match="not taken a write"):
                offer("t", one("c"), 10)
        change = SettingsChange(lateness_us=1, late_policy="auto", actor="a")
        nursery.start_soon(b.writer.append_control, change)
        b.gate.open()
        for offered in taken:
            await offered.settled()
        assert b.writer.stuck_us == 0
        await b.writer.offer_one("t", one("c"), 10).settled()
        assert b.total() == 3
        assert b.controls == [change], "who records what has happened is not refused"
        b.disk.fault = lambda operation: "full" if operation == "write" else "ok"
        with pytest.raises(StorageFull):
            await b.writer.offer_one("t", one("d"), 10).settled()
        b.clock.passed_us += 2 * WRITE_US_MAX
        assert b.writer.stuck_us == 0, "a write that failed has ended"


@pytest.mark.parametrize(("records", "turns_of_their_own"), [(3, False), (4, True)])
async def test_many_control_records_are_folded_in_turns_of_their_own_as_many_events_are(
    monkeypatch: pytest.MonkeyPatch, records: int, *, turns_of_their_own: bool
) -> None:
    monkeypatch.setattr(log_writer, "FOLDED_AT_ONCE_MAX", 3)
    async with bench() as b:
        folded_in: list[trio.lowlevel.Task] = []
        for shard_ in b.shards:
            monkeypatch.setattr(
                shard_.state,
                "fold_control",
                lambda *_, **_more: folded_in.append(trio.lowlevel.current_task()),
            )
        await b.writer.append_controls(
            [SettingsChange(lateness_us=n, late_policy="auto", actor="a") for n in range(records)]
        )
        assert len(folded_in) == records * len(b.shards)
        assert len(b.shards) > 1
        assert (len(set(folded_in)) > 1) == turns_of_their_own


async def test_records_that_may_wait_share_the_commit_of_what_may_not() -> None:
    book = Book(baseline())
    async with bench() as b:
        intents = [book.intend(view(5))]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(b.writer.append_controls, intents, in_company=True))
            await trio.testing.wait_all_tasks_blocked()
            assert not b.controls, "nobody hurries it"
            offer = b.writer.offer_one("t", one("a"), 10)
            await offer.settled()
            assert b.controls == intents
        assert b.disk_appends == 1


async def test_records_that_wait_for_company_in_vain_are_committed_by_themselves(
    autojump_clock: trio.testing.MockClock,
) -> None:
    book = Book(baseline())
    async with bench() as b:
        began = autojump_clock.current_time()
        await b.writer.append_controls([book.intend(view(5))], in_company=True)
        waited = autojump_clock.current_time() - began
        assert waited == pytest.approx(log_writer.COMPANY_SECONDS_MAX, abs=1e-3)
        b.gate.shut()
        first = b.writer.offer_one("t", one("a"), 10)
        await b.gate.waiting.wait()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                another = [Book(baseline()).intend(view(9))]
                nursery.start_soon(partial(b.writer.append_controls, another, in_company=True))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                b.gate.open()
        # Whoever waited was cancelled: what it handed in is neither lost nor left lying.
        assert len(b.controls) == 2
        await first.settled()


async def test_a_stop_does_not_wait_for_the_company_of_records() -> None:
    book = Book(baseline())
    b = Bench()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.writer.run)
        intent = book.intend(view(5))
        nursery.start_soon(partial(b.writer.append_controls, [intent], in_company=True))
        await trio.testing.wait_all_tasks_blocked()
        b.writer.close()
        with trio.fail_after(60):
            await b.writer.drained.wait()
        assert b.controls == [intent]


async def test_what_is_ahead_in_a_shards_inbox_is_folded_first() -> None:
    shard = Shard(0, ShardState(range(PARTITIONS)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shard.run)
        await trio.testing.wait_all_tasks_blocked()
        folded: list[int] = []
        works = []
        for number in range(3):
            group = Group()
            group.shards_left = 1
            group.on_done = lambda _group, number=number: folded.append(number)  # type: ignore[misc]
            works.append(FoldWork(group, (), []))
        shard.give(works[0], at_once=True)
        assert folded == [0], "nothing is ahead of it"
        shard.give(works[1], at_once=False)
        shard.give(works[2], at_once=True)
        assert folded == [0]
        await trio.testing.wait_all_tasks_blocked()
        assert folded == [0, 1, 2]
        nursery.cancel_scope.cancel()


async def test_a_shard_whose_inbox_fills_while_another_has_no_room_is_waited_for_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A snapshot asks a shard for its state while the writer waits for another: what is durable must find room there."""
    monkeypatch.setattr(shard, "SHARD_INBOX_MAX", 1)
    go = [trio.Event(), trio.Event()]
    encode = Shard._encode

    async def slow(self: Shard, request: PartitionRequest) -> None:
        await go[self.number].wait()
        await encode(self, request)

    monkeypatch.setattr(Shard, "_encode", slow)
    async with bench() as b:

        async def ask(number: int) -> None:
            """Twice: the first is under way, the second fills the inbox."""
            for _ in range(2):
                request = PartitionRequest(b.owner.index(number), trio.Event())
                await b.shards[number].inbox.put(request)
                await trio.testing.wait_all_tasks_blocked()

        await ask(1)
        events = [one(key, customer=f"c{number}") for number, key in enumerate("abcdefgh")]
        assert any(b.owner[event[4]] == 0 for event in events)
        offer = b.writer.offer("t", events, 10)
        await trio.testing.wait_all_tasks_blocked()
        assert b.log.head().next_sequence == len(events), (
            "durable, and waiting for the second shard"
        )
        await ask(0)
        for each in reversed(go):
            assert not offer.groups[0].done.is_set()
            each.set()
            await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(60):
            await offer.settled()
        assert b.total() == len(events)
