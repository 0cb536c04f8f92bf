"""The pusher end to end in memory: what is used reaches the simulator once, whatever happens in between."""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing

from engine.actors.administration import Administration, By, Wanted
from engine.actors.push_desk import Unproven
from engine.actors.push_keeping import keeping
from engine.actors.supervisor import Meter
from engine.core.configured import Customer, Mapping
from engine.errors import Conflict
from gateway.simulator.wire import Request
from tests.helpers.push_place import START_US, PushPlace


async def test_what_is_used_reaches_stripe_by_differences(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
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


@pytest.mark.parametrize("to", ["another meter", "another customer"])
async def test_what_was_moved_goes_as_soon_as_it_is_taken_back_where_it_was(
    to: str,
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = PushPlace()
    async with place.running() as meter:
        mapping = await place.map(meter)
        await place.use(meter, 3)
        await trio.sleep(120)
        place.stripe.add_fault("outage", "POST /v1/billing/meter_events", for_seconds=600)
        administration, now = Administration(meter, b""), Wanted(cutover="move")
        by = By("person", None)
        if to == "another meter":
            changed = msgspec.structs.replace(mapping, meter_event_name="seats")
            await administration.update_mapping(changed, by, now)
        else:
            ben = Customer(tenant_id="acme", customer_ref="cus_anna", stripe_customer_id="cus_ben")
            await administration.put_customer(ben, by, now)
        await trio.sleep(60)
        new, old = sorted(await meter.started.pusher.targets("acme"), key=lambda one: -one.due)
        assert (new.standing, new.due, old.standing) == ("held", 3, "in_flight")
        assert "of cus_anna" in str(new.reason)
        assert "billed twice" in str(new.reason)
        erased = ("acme", {"cus_anna": "erased"}, "test")
        with pytest.raises(Conflict, match="not taken back yet"):
            await keeping(meter.started.push, *erased, is_command=False)
        await trio.sleep(1_200)  # nobody does anything
        assert place.total() == 0
        places = [place.total("cus_ben"), place.total(meter="seats")]
        assert sorted(places) == [0, 3]
        reports = await meter.started.pusher.targets("acme")
        assert [one.standing for one in reports] == ["current"] * 2
        assert await keeping(meter.started.push, *erased, is_command=False)


async def test_a_stop_waits_for_what_stripe_says_and_the_next_start_sends_nothing_again(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
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


async def test_the_stream_takes_what_is_due_together(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = PushPlace()

    async def use_all(meter: Meter) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(place.use, meter, number + 1, f"cus_{number}")
        await trio.sleep(120)

    async with place.running() as meter:
        await place.map(meter, driver="stream")
        await use_all(meter)  # the first ones come one by one: each waits for its baseline
        before = len(place.wire.requests)
        await use_all(meter)
        totals = [place.total(f"cus_{number}") for number in range(40)]
        assert totals == [2 * (number + 1) for number in range(40)]
    batches = [
        one for one in place.wire.requests[before:] if one.path == "/v2/billing/meter_event_stream"
    ]
    assert len(batches) < 10


async def test_erasing_a_customer_takes_nothing_back_and_pushes_what_was_left(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
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


async def test_an_intent_planned_before_its_mapping_changed_is_not_recorded_after_it(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = PushPlace()
    async with place.running() as meter:
        await place.map(meter)
        async with meter.change_lock:  # somebody checks a change: what was planned waits
            await place.use(meter, 3)
            await trio.sleep(60)
            await place.map(meter, meter_event_name="seats")
        await trio.sleep(300)
        assert (place.total(meter="calls"), place.total(meter="seats")) == (0, 3)


async def test_a_stripe_customer_takes_the_usage_of_one_tenant_only(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = PushPlace()
    async with place.running() as meter:
        await place.map(meter)
        await place.map(meter, id="map_umbra", tenant_id="umbra")
        await place.use(meter, 3)
        await trio.sleep(60)
        await place.use(meter, 40, tenant="umbra")
        await trio.sleep(60)
        assert place.total() == 3
        assert meter.started.pusher.unroutable("umbra") == [
            ("umbra", "calls", "cus_anna", "cus_anna belongs to another tenant")
        ]
        assert [one.tenant for one in await meter.started.pusher.targets(None)] == ["acme"]
    async with place.running() as meter:
        await trio.sleep(60)
        assert place.total() == 3
        administration = Administration(meter, bytes(32))
        anna = Customer(tenant_id="umbra", customer_ref="anna", stripe_customer_id="cus_anna")
        with pytest.raises(Conflict, match="another tenant"):
            await administration.put_customer(anna, By("test", None))


@pytest.mark.parametrize("formula", ["last", "count"])
async def test_a_meter_that_differences_do_not_add_up_in_is_refused_at_its_mapping(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
    formula: str,
) -> None:
    place = PushPlace()
    made = Request(
        "POST",
        "/v1/billing/meters",
        body=f"display_name=x&event_name=odd&default_aggregation[formula]={formula}".encode(),
    )
    assert place.stripe.handle(made).status == 200
    async with place.running() as meter:
        await trio.sleep(10)
        administration = Administration(meter, bytes(32))
        mapping = Mapping(id="", tenant_id="acme", metric="calls", meter_event_name="odd")
        with pytest.raises(Conflict, match="sum"):
            await administration.create_mapping(mapping, By("test", None))
        assert meter.registry.mappings == {}
        later = msgspec.structs.replace(mapping, meter_event_name="not-there-yet")
        await administration.create_mapping(later, By("test", None))


@pytest.mark.slow
async def test_a_report_a_day_late_about_what_was_sent_again_takes_nothing_back(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    """Stripe took the first event and rejected it, its answer was lost; a day later the same identifier counts."""
    events = "POST /v1/billing/meter_events"
    place = PushPlace(start_us=START_US - 20 * 86_400_000_000, interval_us=60_000_000)
    async with place.running() as meter:
        await place.map(meter)
        await place.use(meter, 1)
        await place.use(meter, 1, "cus_bert")
        await trio.sleep(60)
        place.stripe.add_fault("reject", events, count=1)
        place.stripe.add_fault("swallow", events, count=1)
        await place.use(meter, 3)
        await trio.sleep(10)
        (report,) = [
            one for one in await meter.started.pusher.targets("acme") if one.open is not None
        ]
        assert report.open is not None
        identifier = report.open.request.identifier
        place.stripe.add_fault("unavailable", events)
        await trio.sleep(23 * 3600 + 600)
        place.stripe.clear_faults()
        for _ in range(8):  # whose summaries show how far Stripe has got
            await place.use(meter, 1, "cus_bert")
            await trio.sleep(1800)
        assert place.total() == 4, "it was sent again, and counts"
        with pytest.raises(Unproven):
            await meter.started.pusher.report_rejected(identifier, "no", "stripe")
        await trio.sleep(600)
        assert place.total() == 4
