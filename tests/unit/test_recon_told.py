"""What was found stays told until it is gone: over a restart, beside an outage, after somebody accepted something."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
import trio.testing

from engine.actors.push_desk import Asker
from engine.actors.recon_books import Book
from engine.actors.supervisor import Meter
from engine.core.billing import Reading, Unread
from engine.core.push_plan import TargetView
from engine.errors import Conflict
from gateway.simulator.ledger import Settings
from gateway.simulator.state import StripeState
from tests.helpers.push_place import METERS
from tests.helpers.recon_causes import EVENTS
from tests.helpers.recon_place import INTERVAL_SECONDS, ReconPlace, RefusingWire, causes

Story = Callable[[ReconPlace, Meter], Awaitable[None]]
CUSTOMERS = [f"cus_{number}" for number in range(5)]
OUTAGE_SECONDS, LONG_SECONDS = 700.0, 2100.0


def told(story: Story) -> None:
    """Run a story in virtual time; five customers have used 30 each, and Stripe has confirmed it."""

    async def run() -> None:
        place = ReconPlace()
        async with place.running() as meter:
            await place.map(meter)
            for customer in CUSTOMERS:
                await place.use(meter, 30, customer)
            await place.until_looked(meter)
            await story(place, meter)

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


async def lag(
    place: ReconPlace, meter: Meter, *customers: str, seconds: float = OUTAGE_SECONDS
) -> None:
    """Stripe acknowledges, and shows it long after."""
    for customer in customers:
        place.stripe.add_fault("lag", EVENTS, contains=customer, seconds=seconds)
        await place.use(meter, 10, customer)
    await trio.sleep(10)
    place.stripe.clear_faults()


def test_use_that_goes_nowhere_is_the_same_finding_after_a_restart() -> None:
    async def run() -> None:
        place = ReconPlace()
        async with place.running() as meter:
            await place.map(meter)
            await place.map(meter, "seats")
            for number in range(5):
                await place.use(meter, 10, f"nobody-{number}")
            await place.use(meter, 10, "nobody-1", metric="seats")
            await place.use(meter, 10, metric="never_mapped")
            await place.until_looked(meter)
            before = dict(meter.push.findings.open)
            assert sorted(one.record.count for one in before.values()) == [1, 1, 5]
        async with place.running() as meter:
            await place.until_looked(meter)
            after = meter.push.findings
            assert [one.id for one in after.open.values()] == [one.id for one in before.values()]
            assert not after.ended
            await place.use(meter, 10, "nobody-new")
            await meter.started.reconciler.start(None).ended.wait()
        async with place.running() as meter:
            await place.put(meter, "nobody-new", stripe_customer_id="cus_new")
            for number in range(5):
                await place.put(meter, f"nobody-{number}", stripe_customer_id=f"cus_number{number}")
            await place.until_looked(meter)
            assert causes(meter) == {("mapping_missing", "0")}, "what is mended ends"

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def test_that_stripe_is_behind_can_not_be_accepted_once_for_all() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await lag(place, meter, *CUSTOMERS)
        await place.until_looked(meter)
        (found,) = meter.push.findings.open.values()
        assert (found.record.cause, found.record.count) == ("behind", 5)
        repairs, by = meter.started.reconciler.repairs, Asker("person", None)
        with pytest.raises(Conflict, match="it ends when they are right"):
            await repairs.apply(None, found.id, by, None, "accept")
        # As an earlier version recorded it.
        meter.push.findings.accepted |= dict.fromkeys(meter.push.findings.open, "0")
        await trio.sleep(OUTAGE_SECONDS)
        await place.until_looked(meter)
        assert causes(meter) == set()
        await lag(place, meter, *CUSTOMERS)
        await place.until_looked(meter)
        assert causes(meter) == {("behind", "0")}, "the next outage is told as the first was"

    told(story)


def test_what_is_pushed_between_a_look_and_its_record_is_not_taken_for_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        first, *_, last = CUSTOMERS
        await place.use(meter, 5, first)
        await trio.sleep(130)
        reader = meter.started.reconciler.reader
        read = reader.read

        async def slowly(book: Book, view: TargetView) -> Reading | Unread:
            if book.lane.customer == last:
                await trio.sleep(20)
            return await read(book, view)

        monkeypatch.setattr(reader, "read", slowly)
        job = meter.started.reconciler.start(None)
        await trio.sleep(2)
        await lag(place, meter, first)
        await job.ended.wait()
        await place.until_looked(meter)
        assert causes(meter) == {("behind", "10")}, "and nobody took anything away"
        marks = meter.push.findings.marks.values()
        assert [(one.confirmed, one.plus) for one in marks if one.plus] == [("30", 15)]

    told(story)


def test_while_stripe_refuses_the_key_nothing_is_forgotten_and_the_key_is_named() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await place.foreign(5, CUSTOMERS[0])
        await place.until_looked(meter)
        before = dict(meter.push.findings.open)
        assert causes(meter) == {("foreign", "-5")}
        place.wire.is_key_refused = True
        for target in meter.started.push.totals.targets:
            view = meter.started.push.totals.view(target)
            assert view is not None
            meter.started.push.connections["main"].forget_object(view.resolved)
        await trio.sleep(30)
        await place.use(meter, 7, CUSTOMERS[1])
        job = meter.started.reconciler.start(None)
        await job.ended.wait()
        assert (job.total, job.unread) == (5, 5)
        assert "Invalid API Key" in (meter.started.pusher.connections()["main"].error or "")
        place.wire.is_key_refused = False
        await trio.sleep(630)
        await meter.started.reconciler.start(None).ended.wait()
        assert meter.started.pusher.connections()["main"].error is None
        assert meter.push.findings.open == before
        ended = {one.record.cause for one in meter.push.findings.ended.values()}
        assert ended <= {"not_pushed"}, "what waited for the key goes, and nothing else ended"
        assert place.total(CUSTOMERS[1]) == 37

    told(story)


def test_use_that_goes_nowhere_is_accepted_as_far_as_there_is_any_and_told_again_when_it_grows() -> (
    None
):
    async def run() -> None:
        place = ReconPlace()
        async with place.running() as meter:
            await place.map(meter)
            for number in range(5):
                await place.use(meter, 10, f"nobody-{number}")
            await place.use(meter, 10, metric="never_mapped")
            await place.until_looked(meter)
            await place.use(meter, 3, "nobody-0")
            for found in [*meter.push.findings.open.values()]:
                await place.apply(meter, found.id, "accept")
            await place.until_looked(meter)
            assert causes(meter) == set(), "all that there was is accepted, not what was found once"
            await place.use(meter, 1, metric="never_mapped")
            await place.use(meter, 2, "nobody-new")
            await place.until_looked(meter)
            assert causes(meter) == {("mapping_missing", "55")}

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def test_what_was_found_of_an_account_stays_while_another_accounts_key_is_in_its_place() -> None:
    async def run() -> None:
        place = ReconPlace()
        async with place.running() as meter:
            await place.map(meter)
            await place.use(meter, 30)
            await place.until_looked(meter)
            await place.foreign(5)
            await place.until_looked(meter)
            (before,) = meter.push.findings.open.values()
        wire = place.wire
        settings = Settings(auto_create=True, meters=("*",), account="acct_sim_of_somebody_else")
        other = StripeState(settings, place.clock.now_us)
        other.ensure(meters=METERS)
        place.wire = RefusingWire(other)
        async with place.running() as meter:
            await place.until_looked(meter)
            assert causes(meter) == {("foreign", "-5")}
        place.wire = wire
        async with place.running() as meter:
            await place.until_looked(meter)
            assert [one.id for one in meter.push.findings.open.values()] == [before.id]

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("customers", [CUSTOMERS[:1], CUSTOMERS], ids=["one", "many"])
def test_that_a_summary_lacks_something_is_the_same_finding_after_a_restart(
    customers: Sequence[str],
) -> None:
    """Right after the start nobody can tell what is only fresh: it is no reason to tell that all is well."""

    async def run() -> None:
        place = ReconPlace(interval_us=20_000_000)
        async with place.running() as meter:
            await place.map(meter)
            for customer in CUSTOMERS:
                await place.use(meter, 30, customer)
            await place.until_looked(meter)
            await lag(place, meter, *customers, seconds=LONG_SECONDS)
            await place.until_looked(meter)
            (before,) = meter.push.findings.open.values()
            assert (before.record.cause, before.record.count) == ("behind", len(customers))
        async with place.running() as meter:
            await place.until_looked(meter)
            await trio.sleep(1.5 * INTERVAL_SECONDS)
            (after,) = meter.push.findings.open.values()
            assert (after.id, meter.push.findings.ended) == (before.id, {})
            await trio.sleep(LONG_SECONDS)
            await place.until_looked(meter)
            assert causes(meter) == set(), "and it ends when Stripe shows it"

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def test_that_stripe_counted_a_push_twice_is_the_same_finding_after_a_restart() -> None:
    """Where an excess lies is searched for when it is worth a word, which what is told already is."""

    async def run() -> None:
        place = ReconPlace()
        async with place.running() as meter:
            await place.map(meter)
            await place.use(meter, 30)
            await place.until_looked(meter)
            ((minute, units),) = place.minutes().items()
            await place.foreign(units, timestamp_s=minute * 60)
            await place.until_looked(meter)
            (before,) = meter.push.findings.open.values()
            assert before.record.cause == "duplicate"
        async with place.running() as meter:
            await place.until_looked(meter)
            (after,) = meter.push.findings.open.values()
            assert (after.id, meter.push.findings.ended) == (before.id, {})

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def test_what_stripe_said_that_it_rejected_without_a_name_is_told_over_a_restart() -> None:
    async def run() -> None:
        place = ReconPlace()
        async with place.running() as meter:
            await place.map(meter)
            await place.use(meter, 1_000)
            await place.until_looked(meter)
            place.stripe.add_fault("drop", EVENTS, count=1)
            await place.use(meter, 2)
            await trio.sleep(30)
            (lane,) = meter.push.ledger.lanes
            await meter.started.reconciler.rejected_unnamed(lane.object_id, 1)
            await place.until_looked(meter)
            (before,) = meter.push.findings.open.values()
            assert "1 rejected events" in (before.record.reason or "")
        async with place.running() as meter:
            await place.until_looked(meter)
            (after,) = meter.push.findings.open.values()
            assert after.id == before.id, "it is missing still"
            assert (after.record.units, after.record.reason) == ("2", before.record.reason)

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
