"""Reconciliation at a period's end: nothing is tolerated, invoices are read, what came too late is told; and repairs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from engine.actors.supervisor import Meter
from engine.core.times import format_instant, parse_instant
from tests.helpers.recon_causes import EVENTS, found_of
from tests.helpers.recon_place import LAG_SECONDS, ReconPlace

pytestmark = pytest.mark.slow
HOUR = 3600
EVENING = parse_instant("2026-10-31T20:00:00Z")
"""Four hours before the month ends; its invoice is final at 01:00."""
MONTH_END_S = parse_instant("2026-11-01T00:00:00Z") // 1_000_000
PUSH_US = 20_000_000
Story = Callable[[ReconPlace, Meter], Awaitable[None]]


def told(story: Story, **mapping: object) -> None:
    """Run a story in virtual time that begins in the month's last evening."""

    async def run() -> None:
        place = ReconPlace(start_us=EVENING, interval_us=PUSH_US)
        async with place.running() as meter:
            await place.map(meter, **mapping)
            await story(place, meter)

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


async def to(place: ReconPlace, hours_after_end: float) -> None:
    """Wait until so long after the month's end."""
    now_s = place.clock.now_us() / 1e6
    await trio.sleep(MONTH_END_S - now_s + hours_after_end * HOUR)


def test_half_a_percent_is_tolerated_until_the_period_ends() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await place.use(meter, 1000)
        await place.until_looked(meter)
        await place.foreign(4)
        await place.until_looked(meter)
        assert found_of(meter) == set(), "0.4 % of a running period"
        await to(place, 0.5)
        assert found_of(meter) == {("stripe", "foreign", "-4")}

    told(story)


def test_what_agrees_with_its_final_invoice_is_read_once_more_and_then_left_alone() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        place.subscribe("cus_anna", billing_cycle_anchor=MONTH_END_S)
        await place.put(meter, "anna", stripe_customer_id="cus_anna")
        await place.use(meter, 30, "anna")
        await to(place, 4)
        assert found_of(meter) == set()
        (mark,) = [one for one in meter.push.findings.marks.values() if one.confirmed == "30"]
        assert mark.invoiced == "30"
        (state,) = [
            state for lane in meter.push.ledger.lanes.values() for state in lane.targets.values()
        ]
        assert state.finalized_at_us is not None, "the invoice itself says since when it is final"
        reads = meter.started.reconciler.reader.reads
        await trio.sleep(6 * HOUR)
        assert meter.started.reconciler.reader.reads == reads

    told(story)


def test_what_stripe_counts_after_the_invoice_was_final_is_told() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        place.subscribe("cus_anna", billing_cycle_anchor=MONTH_END_S)
        place.stripe.add_fault("lag", EVENTS, seconds=7.0 * HOUR)
        await place.put(meter, "anna", stripe_customer_id="cus_anna")
        await place.use(meter, 30, "anna")
        await to(place, 6)
        assert ("invoice", "finalized", "30") in found_of(meter)

    told(story)


def test_usage_that_was_not_pushed_in_time_is_carried_forward_when_a_person_says_so() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await place.use(meter, 30)
        await place.until_looked(meter)
        fault = place.stripe.add_fault("busy", EVENTS, contains="cus_anna")
        assert fault
        await place.use(meter, 12)
        await to(place, 2)
        place.stripe.clear_faults()
        await trio.sleep(HOUR)
        assert found_of(meter) == {("push", "finalized", "12")}
        (found,) = meter.push.findings.open.values()
        assert found.record.repair == "carry_forward"
        await place.apply(meter, found.id)
        await place.until_looked(meter)
        assert found_of(meter) == set()
        assert place.total() == 42, "it is pushed with the running period"

    told(story)


def test_late_events_that_wait_and_those_that_were_approved_too_late_are_told_apart() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await place.use(meter, 30)
        await to(place, 2)
        old = format_instant(parse_instant("2026-10-02T00:00:00Z"))
        await place.use(meter, 7, ts=old)
        await place.until_looked(meter)
        assert found_of(meter) == {("usage", "late", "7")}
        await place.approve_all(meter)
        await place.until_looked(meter)
        assert found_of(meter) == {("push", "late", "7")}

    told(story)


def test_a_mapping_that_allows_it_has_a_lost_push_cancelled_and_sent_anew() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await place.use(meter, 30)
        await place.until_looked(meter)
        place.stripe.add_fault("drop", EVENTS, count=1)
        await place.use(meter, 12)
        await place.until_looked(meter)
        assert found_of(meter) == {("stripe", "behind", "12")}
        assert place.total() == 30
        await trio.sleep(2 * HOUR)
        assert found_of(meter) == set()
        assert place.total() == 42
        cancels = [one for one in place.wire.requests if "adjustments" in one.path]
        assert len(cancels) == 1

    told(story, auto_repair=True)


def test_without_that_nothing_is_cancelled_nor_sent_again() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await place.use(meter, 30)
        await place.until_looked(meter)
        place.stripe.add_fault("drop", EVENTS, count=1)
        await place.use(meter, 12)
        await trio.sleep(3 * HOUR)
        assert found_of(meter) == {("stripe", "behind", "12")}
        assert not [one for one in place.wire.requests if "adjustments" in one.path]
        assert place.total() == 30

    told(story)


def test_when_many_totals_lag_that_is_one_finding_and_nothing_is_repaired() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        customers = [f"cus_{number}" for number in range(9)]
        for customer in customers:
            await place.use(meter, 30, customer)
        await place.until_looked(meter)
        place.stripe.add_fault("lag", EVENTS, seconds=float(2.5 * HOUR))
        for customer in customers:
            await place.use(meter, 12, customer)
        await trio.sleep(60)
        place.stripe.clear_faults()
        await place.until_looked(meter)
        (found,) = meter.push.findings.open.values()
        assert (found.record.cause, found.record.count) == ("behind", 9)
        assert found.record.account.startswith("acct_sim")
        await trio.sleep(1.6 * HOUR)
        assert not [one for one in place.wire.requests if "adjustments" in one.path]
        await trio.sleep(1.5 * HOUR)
        assert found_of(meter) == set()
        assert all(place.total(customer) == 42 for customer in customers)

    told(story, auto_repair=True)


def test_a_restart_keeps_what_was_found_and_invents_nothing() -> None:
    async def run() -> None:
        place = ReconPlace()
        async with place.running() as meter:
            await place.map(meter)
            await place.use(meter, 30)
            await place.until_looked(meter)
            await place.foreign(5)
            await place.until_looked(meter)
            before = dict(meter.push.findings.open)
            assert [one.record.cause for one in before.values()] == ["foreign"]
        async with place.running() as meter:
            assert meter.push.findings.open.keys() == before.keys()
            await place.until_looked(meter)
            after = meter.push.findings.open
            assert [one.id for one in after.values()] == [one.id for one in before.values()]
            assert (
                meter.push.findings.state()
                == type(meter.push.findings).restore(meter.push.findings.state()).state()
            )

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def test_one_look_says_nothing_and_a_summary_that_catches_up_neither() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await place.use(meter, 30)
        await place.until_looked(meter)
        place.stripe.add_fault("lag", EVENTS, seconds=1.5 * LAG_SECONDS)
        for _ in range(12):
            await place.use(meter, 10)
            await trio.sleep(LAG_SECONDS / 2)
            await meter.started.reconciler.start(None).ended.wait()
            assert found_of(meter) == set()
        assert not meter.push.findings.ended

    told(story)


def test_one_finding_about_many_ends_though_the_server_was_down_when_stripe_caught_up() -> None:
    async def run() -> None:
        place = ReconPlace(interval_us=PUSH_US)
        customers = [f"cus_{number}" for number in range(6)]
        async with place.running() as meter:
            await place.map(meter)
            for customer in customers:
                await place.use(meter, 30, customer)
            await place.until_looked(meter)
            place.stripe.add_fault("lag", EVENTS, seconds=float(HOUR))
            for customer in customers:
                await place.use(meter, 12, customer)
            await trio.sleep(60)
            place.stripe.clear_faults()
            await place.until_looked(meter)
            (found,) = meter.push.findings.open.values()
            assert (found.record.cause, found.record.count) == ("behind", 6)
        await trio.sleep(2 * HOUR)
        async with place.running() as meter:
            await place.until_looked(meter)
            assert found_of(meter) == set()

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
