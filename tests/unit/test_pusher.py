"""The pusher end to end in memory: what is used reaches the simulator once, whatever happens in between."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.helpers.push_place import PushPlace


@pytest.fixture
def clock(autojump_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    return autojump_clock


async def test_what_is_used_reaches_stripe_by_differences(clock: trio.testing.MockClock) -> None:
    place = PushPlace()
    async with place.running() as meter:
        await place.map(meter)
        await place.use(meter, 3)
        await trio.sleep(120)
        assert place.total() == 3
        await place.use(meter, "4.5")
        await trio.sleep(120)
        assert place.total() == 7
        await place.use(meter, "0.5")
        await trio.sleep(120)
        assert place.total() == 8
        (report,) = await meter.started.pusher.targets("acme")
        assert (report.billable, report.pushed, report.due, report.standing) == (8, 8, 0, "current")


async def test_a_stop_waits_for_what_stripe_says_and_the_next_start_sends_nothing_again(
    clock: trio.testing.MockClock,
) -> None:
    place = PushPlace()
    async with place.running() as meter:
        await place.map(meter)
        place.stripe.add_fault("slow", "POST /v1/billing/meter_events", seconds=1.0)
        await place.use(meter, 3)
        while not any("meter_events" in one.path for one in place.wire.requests):
            await trio.sleep(0.1)
    place.stripe.clear_faults()
    sent = len(place.wire.requests)
    async with place.running() as meter:
        await trio.sleep(120)
        (report,) = await meter.started.pusher.targets("acme")
        assert (report.pushed, report.standing) == (3, "current")
    events = [one for one in place.wire.requests[sent:] if one.path == "/v1/billing/meter_events"]
    assert (events, place.total()) == ([], 3)


async def test_the_stream_takes_what_is_due_together(clock: trio.testing.MockClock) -> None:
    place = PushPlace()
    async with place.running() as meter:
        await place.map(meter, driver="stream")
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(place.use, meter, number + 1, f"cus_{number}")
        await trio.sleep(120)
        assert [place.total(f"cus_{n}") for n in range(40)] == [n + 1 for n in range(40)]
    batches = [one for one in place.wire.requests if one.path == "/v2/billing/meter_event_stream"]
    assert len(batches) < 10


async def test_erasing_a_customer_takes_nothing_back_and_pushes_what_was_left(
    clock: trio.testing.MockClock,
) -> None:
    place = PushPlace(interval_us=3_600_000_000)
    async with place.running() as meter:
        await place.map(meter)
        await place.put(meter, "anna", stripe_customer_id="cus_anna")
        await place.use(meter, 3, "anna")
        await trio.sleep(60)
        assert place.total() == 3
        await place.use(meter, 4, "anna")
        await meter.started.eraser.begin(
            "acme", ["anna"], secret=None, actor="test", request_id=None
        )
        await trio.sleep(2 * 3600)
        assert place.total() == 7
    async with place.running() as meter:
        await trio.sleep(2 * 3600)
        assert place.total() == 7
        (report,) = await meter.started.pusher.targets("acme")
        assert (report.billable, report.pushed, report.standing) == (7, 7, "current")
