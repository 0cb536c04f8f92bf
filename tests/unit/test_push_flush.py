"""A flush: everything that was used before it is at Stripe when it answers, and it costs ingest next to nothing."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.helpers.push_place import PushPlace

HOUR_US = 3_600_000_000
FLUSH_US = 10_000_000


async def test_a_flush_while_stripe_is_down_looks_now_and_then_and_ends_in_time(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = PushPlace()
    async with place.running() as meter:
        await place.map(meter)
        await place.use(meter, 3)
        await trio.sleep(60)
        place.stripe.add_fault("outage")
        await place.use(meter, 4)
        desk = meter.started.pusher
        looks = 0
        targets = desk.targets

        async def counted(*of: Any) -> Any:
            nonlocal looks
            looks += 1
            assert looks < 500, "it goes round without a pause"
            return await targets(*of)

        monkeypatch.setattr(desk, "targets", counted)
        began = trio.current_time()
        (report,) = await desk.flush("acme", None, FLUSH_US)
        assert report.due == 4
        assert 10 <= trio.current_time() - began < 11
        assert looks < 60


async def test_a_flush_looks_for_at_most_a_fifth_of_its_time(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = PushPlace()
    async with place.running() as meter:
        await place.map(meter)
        await place.use(meter, 3)
        await trio.sleep(60)
        place.stripe.add_fault("outage")
        await place.use(meter, 4)
        desk = meter.started.pusher
        targets, looked = desk.targets, 0.0

        async def slow(*of: Any) -> Any:
            nonlocal looked
            await trio.sleep(0.5)  # as long as ten thousands of targets take
            looked += 0.5
            meter.started.push.conductor.moved.set()
            return await targets(*of)

        monkeypatch.setattr(desk, "targets", slow)
        await desk.flush("acme", None, FLUSH_US)
        assert looked <= 2.5


async def test_a_flush_takes_along_what_was_used_while_a_push_was_being_recorded(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = PushPlace(interval_us=HOUR_US)
    async with place.running() as meter:
        await place.map(meter)
        await place.use(meter, 3)
        await trio.sleep(60)
        await place.use(meter, 4)
        (report,) = await meter.started.pusher.targets("acme")
        assert report.next_at_us is not None
        async with trio.open_nursery() as nursery:
            async with meter.change_lock:  # records of pushes wait for it
                await trio.sleep((report.next_at_us - place.clock.now_us()) / 1e6 + 1)
                await place.use(meter, 5)
                nursery.start_soon(meter.started.pusher.flush, "acme", None, FLUSH_US)
                await trio.sleep(0.2)
                assert place.total() == 3
            began = trio.current_time()
        assert place.total() == 12
        assert trio.current_time() - began < 2


async def test_a_flush_pushes_every_target_of_a_lane_whatever_the_pace(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = PushPlace(interval_us=HOUR_US)
    async with place.running() as meter:
        await place.map(meter)
        await place.map(meter, "seats", meter_event_name="calls", stripe_scale="2")
        for metric in ("calls", "seats"):
            await place.use(meter, 3, metric=metric)
        await trio.sleep(60)
        for metric in ("calls", "seats"):
            await place.use(meter, 4, metric=metric)
        began = trio.current_time()
        reports = await meter.started.pusher.flush("acme", None, FLUSH_US)
        assert [report.due for report in reports] == [0, 0]
        assert place.total() == 7 + 14
        assert trio.current_time() - began < 2
