"""What the seeds of pushing have found, made small."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from engine.actors.administration import Administration, By
from engine.actors.corrections import Corrections, Filter
from engine.actors.push_desk import Asker, PushDesk
from engine.core.push_records import PushIntent
from engine.core.times import parse_instant
from engine.errors import Conflict
from gateway.simulator.wire import Request
from tests.helpers.push_place import PushPlace
from tests.helpers.recount import month_of
from tests.sim.push_books import Delta
from tests.sim.push_small import foreign
from tests.sim.push_story import ask_for

EVENTS = "POST /v1/billing/meter_events"


@pytest.fixture
def clock(autojump_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    return autojump_clock


async def test_an_intent_whose_record_takes_past_finalization_does_not_leave(
    clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = PushPlace()
    async with place.running() as meter:
        await place.map(meter)
        recorder = meter.started.push.recorder
        hand_in = recorder.hand_in

        def slowly(records: Any, holds: Any, done: Callable[[object], None]) -> None:
            def late(error: object) -> None:
                if "PushIntent" in repr(records):
                    clock.jump(9 * 86_400)
                done(error)

            hand_in(records, holds, late)

        monkeypatch.setattr(recorder, "hand_in", slowly)
        await place.use(meter, 3)
        await trio.sleep(30)  # over at once: the clock jumps
        await trio.sleep(30)
        assert place.total() == 0
        (report,) = await meter.started.pusher.targets("acme")
        assert (report.standing, report.due) == ("finalized", 3)


async def test_a_rejection_reported_before_its_answer_came_is_pushed_anew(
    clock: trio.testing.MockClock,
) -> None:
    assert clock.current_time() < 1, "the time is virtual"
    place = PushPlace()
    async with place.running() as meter:
        await place.map(meter)
        place.stripe.add_fault("reject", EVENTS, count=1)
        place.stripe.add_fault("swallow", EVENTS, count=1)
        await place.use(meter, 3)
        await trio.sleep(10)
        (report,) = await meter.started.pusher.targets("acme")
        assert report.open is not None
        identifier = report.open.request.identifier
        with trio.move_on_after(1):
            await meter.started.pusher.report_rejected(identifier, "no", "stripe")
            pytest.fail("a lane whose answer is awaited is not decided about")
        assert place.total() == 0
        told = False
        while not told:
            told = await meter.started.pusher.report_rejected(identifier, "no", "stripe")
        await trio.sleep(3_600)
        assert place.total() == 3
        (report,) = await meter.started.pusher.targets("acme")
        assert (report.pushed, report.due, report.standing) == (3, 0, "current")


async def test_a_reverted_correction_is_taken_back_where_there_was_nothing_else(
    clock: trio.testing.MockClock,
) -> None:
    place = PushPlace()
    by = By("person", None)
    async with place.running() as meter:
        await place.map(meter)
        start_us = month_of(place.clock.now_us())[0]
        await ask_for(meter, Delta("calls", "cus_anna", start_us, 9_000_000, "r", keep=False))
        (made,) = await Corrections(meter).matching(Filter("acme"))
        await Corrections(meter).decide(made.id, "acme", "approve", by)
        await trio.sleep(60)
        assert place.total() == 9
        await Corrections(meter).decide(made.id, "acme", "revert", by)
        await trio.sleep(60)
        assert place.total() == 0
        assert clock.current_time() > 100, "the time is virtual"


async def test_a_disk_that_takes_no_findings_does_not_end_the_meter(
    clock: trio.testing.MockClock,
) -> None:
    place = PushPlace(interval_us=60_000_000)
    async with place.running() as meter:
        await place.map(meter)
        await place.use(meter, 3)
        await trio.sleep(120)
        place.disk.fault = lambda operation: "ok" if operation == "head" else "full"
        foreign(place.stripe, 5, 1)
        await trio.sleep(3 * 3_600)
        assert meter.phase == "ready"
        place.disk.fault = lambda _operation: "ok"
        await trio.sleep(2 * 3_600)
        assert len(meter.push.findings.open_of) == 1
        assert clock.current_time() > 100, "the time is virtual"


async def test_what_was_carried_is_pushed_whatever_its_mapping_says_next(
    clock: trio.testing.MockClock,
) -> None:
    place = PushPlace()
    by = By("person", None)
    async with place.running() as meter:
        mapping = await place.map(meter)
        await place.use(meter, 5, ts="2026-09-20T10:00:00Z")
        await place.use(meter, 0)
        await Corrections(meter).decide_many(Filter("acme"), "approve", by, dry_run=False)
        await trio.sleep(60)
        desk = meter.started.pusher
        (report,) = [one for one in await desk.targets("acme") if one.due]
        assert report.standing == "finalized"
        place.stripe.add_fault("outage", "*", for_seconds=600)
        await desk.carry_forward("acme", report.id, "current", Asker("person", None))
        scaled = msgspec.structs.replace(mapping, stripe_scale="2")
        await Administration(meter, b"").update_mapping(scaled, by)
        await trio.sleep(3_600)
        assert place.total() == 5
        assert clock.current_time() > 100, "the time is virtual"


async def test_a_period_waits_for_its_own_decision_after_one_that_nobody_made(
    clock: trio.testing.MockClock,
) -> None:
    place = PushPlace(start_us=parse_instant("2026-10-31T23:00:00Z"), interval_us=60_000_000)
    async with place.running() as meter:
        for _ in range(2):  # once in each of two periods it is away for a while
            await place.map(meter)
            await trio.sleep(60)
            await place.map(meter, active=False)
            await place.use(meter, 5)
            await trio.sleep(600)
            await place.map(meter)
            await trio.sleep(3_600)
        await trio.sleep(3_600)
        reports = await meter.started.pusher.targets("acme")
        assert [one.standing for one in reports] == ["awaiting_baseline", "finalized"]
        assert clock.current_time() > 100, "the time is virtual"


# Who asks may go away while the record of a decision is on its way: the disk takes its time.


@contextmanager
def slow_disk(patch: pytest.MonkeyPatch, seconds: float) -> Iterator[None]:
    """Until the block ends commits take so long."""

    async def slowly(function: Callable[[], Any]) -> Any:
        await trio.sleep(seconds)
        return function()

    with patch.context() as of_block:
        of_block.setattr("tests.helpers.push_place.run_inline", slowly)
        yield


async def test_a_carry_that_is_asked_for_again_after_a_disconnect_is_carried_once(
    clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow_disk(monkeypatch, 0.5):
        place = PushPlace()
        async with place.running() as meter:
            await place.map(meter)
            await place.use(meter, 5, ts="2026-09-20T10:00:00Z")
            await place.use(meter, 0)
            by = By("person", None)
            await Corrections(meter).decide_many(Filter("acme"), "approve", by, dry_run=False)
            await trio.sleep(60)
            desk = meter.started.pusher
            (report,) = [one for one in await desk.targets("acme") if one.due]
            assert report.standing == "finalized"
            person = Asker("person", None)
            with trio.move_on_after(0.1):
                await desk.carry_forward("acme", report.id, "current", person)
            with pytest.raises(Conflict):
                await desk.carry_forward("acme", report.id, "current", person)
            await trio.sleep(600)
            assert place.total() == 5
            assert clock.current_time() > 100, "the time is virtual"


async def test_a_report_that_comes_again_after_a_disconnect_does_not_end_the_meter_for_ever(
    clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow_disk(monkeypatch, 0.5):
        place = PushPlace()
        async with place.running() as meter:
            await place.map(meter)
            place.stripe.add_fault("reject", EVENTS, count=1)
            place.stripe.add_fault("swallow", EVENTS, count=1)
            await place.use(meter, 3)
            await trio.sleep(10)
            desk = meter.started.pusher
            (report,) = await desk.targets("acme")
            assert report.open is not None
            identifier = report.open.request.identifier
            lock = meter.started.push.server.runtime(report.target.lane).lock
            while lock.value == 0:
                await trio.sleep(0.01)
            with trio.move_on_after(0.1):
                await desk.report_rejected(identifier, "no", "stripe")
            assert not await desk.report_rejected(identifier, "no", "stripe")
            await trio.sleep(3_600)
            assert place.total() == 3
            assert clock.current_time() > 100, "the time is virtual"


async def test_a_correction_that_is_asked_for_again_after_a_disconnect_is_made_once(
    clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slow_disk(monkeypatch, 0.5):
        place = PushPlace()
        async with place.running() as meter:
            await place.map(meter)
            start_us = month_of(place.clock.now_us())[0]
            asked = Delta("calls", "cus_anna", start_us, 9_000_000, "r", keep=True)
            with trio.move_on_after(0.1):
                await ask_for(meter, asked)
            await ask_for(meter, asked)
            assert len(await Corrections(meter).matching(Filter("acme"))) == 1
            assert clock.current_time() > 0.4, "the time is virtual"


async def test_an_identifier_that_stripe_had_before_is_a_finding_also_while_the_log_takes_nothing(
    clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = PushPlace()
    async with place.running() as meter:
        await place.map(meter)
        recorder = meter.started.push.recorder
        hand_in = recorder.hand_in

        def taken_by_another(records: Any, holds: Any, done: Callable[[object], None]) -> None:
            def durable(error: object) -> None:
                now_s = place.clock.now_us() // 1_000_000
                body = (
                    f"event_name=calls&identifier={records[0].request.identifier}&timestamp={now_s}"
                    "&payload[stripe_customer_id]=cus_ben&payload[value]=1"
                )
                place.stripe.handle(Request("POST", "/v1/billing/meter_events", body=body.encode()))
                place.disk.fault = lambda _operation: "full"
                done(error)

            hand_in(records, holds, durable if isinstance(records[0], PushIntent) else done)

        monkeypatch.setattr(recorder, "hand_in", taken_by_another)
        await place.use(meter, 3)
        await trio.sleep(30)
        place.disk.fault = lambda _operation: "ok"
        await trio.sleep(600)
        (report,) = await meter.started.pusher.targets("acme")
        assert (place.total(), report.pushed, report.standing) == (0, 0, "quarantined")
        assert clock.current_time() > 100, "the time is virtual"


async def test_a_flush_brings_all_targets_of_a_lane(clock: trio.testing.MockClock) -> None:
    place = PushPlace(interval_us=600_000_000)
    async with place.running() as meter:
        await place.map(meter)
        await place.map(meter, "bulk", meter_event_name="calls", stripe_scale="1000")
        desk = meter.started.pusher
        for calls, bulk in ((1, 2), (5, 6)):
            await place.use(meter, calls)
            await place.use(meter, bulk, metric="bulk")
            reports = await desk.flush("acme", "cus_anna", 30_000_000)
            assert [(one.standing, one.due) for one in reports] == [("current", 0)] * 2
        assert place.total() == 8_006
        assert clock.current_time() < 60, "nothing waited for its interval"


async def test_a_flush_while_stripe_is_away_leaves_the_processor_to_others(
    clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = PushPlace()
    async with place.running() as meter:
        await place.map(meter)
        await place.use(meter, 3)
        await trio.sleep(30)
        place.stripe.add_fault("outage", "*", for_seconds=600)
        await place.use(meter, 2)
        looks: list[float] = []
        targets = PushDesk.targets

        async def counted(self: PushDesk, *of: Any) -> Any:
            looks.append(clock.current_time())
            assert len(looks) < 200, "it looks again and again at what it moved itself"
            return await targets(self, *of)

        monkeypatch.setattr(PushDesk, "targets", counted)
        (report,) = await meter.started.pusher.flush("acme", None, 20_000_000)
        assert (report.standing, report.due) == ("in_flight", 2)
        assert looks[-1] - looks[0] > 19
