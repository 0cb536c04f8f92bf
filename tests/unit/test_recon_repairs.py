"""Repairs one by one: what is sent again was cancelled first, what is taken back was seen, and each is made once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import pytest
import trio
import trio.testing

from engine.actors.push_desk import Asker
from engine.actors.reconciler import Job
from engine.actors.supervisor import Meter
from engine.errors import Conflict, NotFound
from tests.helpers.recon_causes import EVENTS, found_of, quarantined, refused, stopped
from tests.helpers.recon_place import ReconPlace

CANCELS = "POST /v1/billing/meter_event_adjustments"
Story = Callable[[ReconPlace, Meter], Awaitable[None]]


def told(story: Story, **mapping: object) -> None:
    """Run a story in virtual time; `cus_anna` has used 30, and Stripe has confirmed it."""

    async def run() -> None:
        place = ReconPlace()
        async with place.running() as meter:
            await place.map(meter, **mapping)
            await place.use(meter, 30)
            await place.until_looked(meter)
            await story(place, meter)

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def only(meter: Meter) -> str:
    """The id of the only open finding."""
    (found,) = meter.push.findings.open.values()
    return found.id


def test_what_can_not_be_cancelled_is_not_sent_again() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        place.stripe.add_fault("lag", EVENTS, seconds=5_000.0, count=1)
        await place.use(meter, 12)
        await place.until_looked(meter)
        place.stripe.add_fault("unavailable", CANCELS, count=1)
        with pytest.raises(Conflict, match="could be cancelled"):
            await place.apply(meter, only(meter))
        await trio.sleep(7_000)
        assert place.total() == 42, "it came by itself, and once"
        assert found_of(meter) == set()

    told(story)


def test_only_what_the_summary_lacks_is_cancelled() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        for units in (5, 6, 7):
            if units == 6:
                place.stripe.add_fault("drop", EVENTS, count=1)
            await place.use(meter, units)
            await trio.sleep(90)
        await place.until_looked(meter)
        assert found_of(meter) == {("stripe", "behind", "6")}
        await place.apply(meter, only(meter))
        await place.until_looked(meter)
        assert place.total() == 48
        assert found_of(meter) == set()
        cancels = [one for one in place.wire.requests if one.path.endswith("event_adjustments")]
        assert len(cancels) == 1

    told(story)


def test_pushes_that_are_recorded_while_summaries_are_read_are_no_difference() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        place.stripe.add_fault("slow", "GET /v1/billing/meters/*", seconds=7.0)
        job: Job | None = None
        for _ in range(40):
            await place.use(meter, 10)
            await trio.sleep(5)
            if job is None or job.ended.is_set():
                job = meter.started.reconciler.start(None)
        place.stripe.clear_faults()
        await place.until_looked(meter)
        assert not meter.push.findings.open
        assert not meter.push.findings.ended

    told(story)


def test_an_intent_in_quarantine_that_stripe_holds_is_settled_by_a_person() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await quarantined(place, meter, "cus_anna")
        place.stripe.clear_faults()
        await place.foreign(10)
        await place.until_looked(meter)
        (found,) = meter.push.findings.open.values()
        assert (found.record.cause, found.record.repair) == ("quarantined", "settle_delivered")
        await place.apply(meter, found.id)
        await place.until_looked(meter)
        assert found_of(meter) == set()
        assert place.total() == 40

    told(story)


def test_what_was_refused_goes_again_and_what_was_stopped_goes_on() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await refused(place, meter, "cus_anna")
        await place.until_looked(meter)
        assert found_of(meter) == {("push", "refused", "10")}
        place.wire.refused.clear()
        await place.apply(meter, only(meter))
        await place.until_looked(meter)
        assert found_of(meter) == set()
        await stopped(place, meter, "cus_anna")
        await place.until_looked(meter)
        await place.apply(meter, only(meter))
        await place.until_looked(meter)
        assert found_of(meter) == set()
        assert place.total() == 50

    told(story)


def test_a_suggestion_is_its_tenants_is_applied_once_and_not_as_something_else() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        repairs = meter.started.reconciler.repairs
        await place.foreign(5)
        await place.until_looked(meter)
        wanted, by = only(meter), Asker("person", "request-1")
        with pytest.raises(NotFound):
            await repairs.apply("other", wanted, by, None, None)
        with pytest.raises(Conflict, match="take_back, or accept"):
            await repairs.apply("acme", wanted, by, None, "resend")
        await repairs.apply("acme", wanted, by, None, None)
        with pytest.raises(Conflict, match="made before"):
            await repairs.apply("acme", wanted, by, None, None)
        await place.until_looked(meter)
        assert place.total() == 30
        with pytest.raises(NotFound):
            await repairs.apply("acme", wanted, by, None, None)

    told(story)


def test_a_suggestion_that_is_applied_twice_at_once_is_made_once() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await place.foreign(5)
        await place.until_looked(meter)
        wanted, fates = only(meter), []

        async def apply() -> None:
            try:
                await meter.started.reconciler.repairs.apply(
                    "acme", wanted, Asker("person", None), None, None
                )
                fates.append("made")
            except Conflict:
                fates.append("made before")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(apply)
            nursery.start_soon(apply)
        await place.until_looked(meter)
        assert (sorted(fates), place.total()) == (["made", "made before"], 30)

    told(story)


def test_only_what_stripe_is_seen_to_hold_too_much_just_before_is_taken_back() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await place.foreign(5)
        await place.until_looked(meter)
        (found,) = meter.push.findings.open.values()
        record = found.record
        found.record = msgspec.structs.replace(record, units="-0.5")
        with pytest.raises(Conflict, match="less than one unit"):
            await place.apply(meter, found.id)
        found.record = record
        place.stripe.add_fault("unavailable", "GET /v1/billing/meters/*", count=1)
        with pytest.raises(Conflict, match="could not be read"):
            await place.apply(meter, found.id)
        await place.foreign(-3)
        await trio.sleep(30)
        with pytest.raises(Conflict, match="something else by now"):
            await place.apply(meter, found.id)
        await trio.sleep(30)
        assert found_of(meter) == {("stripe", "foreign", "-2")}, "it was looked at again"
        await place.apply(meter, only(meter))
        await place.until_looked(meter)
        assert (place.total(), found_of(meter)) == (30, set())

    told(story)


def test_an_intent_in_doubt_is_not_settled_by_what_stripe_held_once() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await quarantined(place, meter, "cus_anna")
        place.stripe.clear_faults()
        await place.foreign(10)
        await place.until_looked(meter)
        await place.foreign(-10)
        await trio.sleep(30)
        with pytest.raises(Conflict, match="something else by now"):
            await place.apply(meter, only(meter))
        await place.until_looked(meter)
        assert found_of(meter) == {("push", "quarantined", "10")}

    told(story)


def test_what_a_total_at_stripe_holds_before_we_came_is_none_of_ours_to_find() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await place.foreign(50, "cus_bert")
        await place.use(meter, 10, "cus_bert")
        await trio.sleep(30)
        await place.use(meter, 5, "cus_bert")
        await place.until_looked(meter)
        assert found_of(meter) == set()
        assert place.total("cus_bert") == 55
        await place.foreign(3, "cus_bert")
        await place.until_looked(meter)
        assert found_of(meter) == {("stripe", "foreign", "-3")}

    told(story, baseline="now")


def test_rejections_that_stripe_does_not_name_are_a_hint_beside_what_is_missing_and_no_proof() -> (
    None
):
    async def story(place: ReconPlace, meter: Meter) -> None:
        place.stripe.add_fault("drop", EVENTS, count=1)
        await place.use(meter, 12)
        (lane,) = meter.push.ledger.lanes
        await trio.sleep(5)
        reconciler = meter.started.reconciler
        runs = len(reconciler._jobs)
        due = dict(reconciler._due)
        await reconciler.rejected_unnamed("mtr_another", 1)
        assert reconciler._due == due
        await reconciler.rejected_unnamed(lane.object_id, 3)
        with trio.fail_after(300):
            while not meter.push.findings.open:
                await trio.sleep(5)
        assert len(reconciler._jobs) == runs, "it is read back without a run of the clock's"
        (found,) = meter.push.findings.open.values()
        assert found.record.cause == "behind"
        assert "3 rejected events" in (found.record.reason or "")
        assert place.total() == 30, "nothing is sent again for a hint"

    told(story)


def test_nothing_is_tolerated_where_stripe_itself_said_that_it_rejected_something() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await place.use(meter, 1_000)
        await trio.sleep(30)
        place.stripe.add_fault("drop", EVENTS, count=1)
        await place.use(meter, 2)
        await place.until_looked(meter)
        assert found_of(meter) == set(), (
            "two of a thousand are within the tolerance of a period that runs"
        )
        (lane,) = meter.push.ledger.lanes
        await meter.started.reconciler.rejected_unnamed(lane.object_id, 1)
        with trio.fail_after(300):
            while not meter.push.findings.open:
                await trio.sleep(5)
        assert found_of(meter) == {("stripe", "behind", "2")}

    told(story)


def test_what_was_accepted_as_missing_and_shows_after_all_is_nobody_elses() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        place.stripe.add_fault("lag", EVENTS, seconds=900.0, count=1)
        await place.use(meter, 12)
        await place.until_looked(meter)
        assert found_of(meter) == {("stripe", "behind", "12")}
        await place.apply(meter, only(meter), "accept")
        await place.until_looked(meter)
        assert found_of(meter) == set()
        await trio.sleep(600)
        await place.until_looked(meter)
        assert found_of(meter) == {("stripe", "behind", "-12")}, "and nothing is to be taken back"
        (found,) = meter.push.findings.open.values()
        assert found.record.repair == "accept"
        await place.apply(meter, found.id)
        await place.foreign(5)
        await place.until_looked(meter)
        assert found_of(meter) == {("stripe", "foreign", "-5")}
        assert place.total() == 47

    told(story)
