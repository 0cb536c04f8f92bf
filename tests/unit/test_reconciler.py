"""The reconciler end to end in memory, against the Stripe simulator: each cause is found, and none invented."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import combinations
from typing import Any

import pytest
import trio
import trio.testing

from engine.actors.supervisor import Meter
from engine.core.billing import Proven
from engine.core.pace import FAILURES_MAX
from gateway.simulator.ledger import Settings
from tests.helpers.recon_causes import CAUSES, expected_of, found_of
from tests.helpers.recon_place import ReconPlace, causes

Story = Callable[[ReconPlace, Meter], Awaitable[None]]


def told(story: Story, **place: Any) -> None:
    """Run a story in virtual time, with `calls` mapped to the meter of that name."""

    async def run() -> None:
        made = ReconPlace(**place)
        async with made.running() as meter:
            await made.map(meter)
            await story(made, meter)

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


def test_what_agrees_is_confirmed_and_nothing_is_said() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await place.use(meter, 30)
        await place.until_looked(meter)
        assert causes(meter) == set()
        (mark,) = meter.push.findings.marks.values()
        assert (mark.confirmed, mark.plus, mark.minus) == ("30", 0, 0)

    told(story)


def test_foreign_usage_is_told_at_the_second_look_and_taken_back() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await place.use(meter, 30)
        await place.until_looked(meter)
        await place.foreign(5)
        await meter.started.reconciler.start(None).ended.wait()
        await place.until_looked(meter)
        assert causes(meter) == {("foreign", "-5")}
        (found,) = meter.push.findings.open.values()
        await place.apply(meter, found.id)
        await place.until_looked(meter)
        assert causes(meter) == set()
        assert place.total() == 30

    told(story)


def test_a_rejection_is_told_and_ends_once_stripe_holds_what_was_pushed_in_its_place() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await place.use(meter, 30)
        await place.until_looked(meter)
        place.stripe.add_fault("reject", "POST /v1/billing/meter_events", count=1)
        await place.use(meter, 10)
        await trio.sleep(30)
        intent = place.newest_of(meter, "cus_anna")
        await meter.started.pusher.report_rejected(intent, "meter_event_invalid_value", "test")
        await place.until_looked(meter)
        assert place.total() == 40
        await place.until_looked(meter)
        assert causes(meter) == set()
        assert [one.record.cause for one in meter.push.findings.ended.values()] == ["rejected"]
        (mark,) = meter.push.findings.marks.values()
        assert (mark.confirmed, mark.rejected) == ("40", None)

    told(story)


def test_reading_goes_on_when_a_probe_is_answered_and_not_a_minute_later() -> None:
    async def story(place: ReconPlace, meter: Meter) -> None:
        await place.use(meter, 30)
        await place.until_looked(meter)
        breaker = meter.started.push.connections["main"].pace(None).breaker
        for _ in range(FAILURES_MAX):
            breaker.failed(place.clock.now_us(), "Stripe is away")
        await trio.sleep(1)
        assert breaker.admit(place.clock.now_us()) == 0, (
            "somebody probes, and holds all others back"
        )
        job = meter.started.reconciler.start(None)
        await trio.sleep(3)
        assert job.status == "running"
        breaker.succeeded()
        with trio.fail_after(1):
            await job.ended.wait()
        assert (job.done, job.unread) == (1, 0)

    told(story)


def test_a_run_that_stripe_keeps_waiting_since_the_start_fails_with_the_reason() -> None:
    async def story() -> None:
        place = ReconPlace()
        place.stripe.add_fault("outage", "GET /v1/*", for_seconds=3600)
        async with place.running() as meter:
            job = meter.started.reconciler.start("acme")
            with trio.fail_after(60):
                await job.ended.wait()
            assert job.status == "failed"
            assert job.error is not None
            assert "whose key it is" in job.error
            assert job.ended_at_us is not None

    trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0))


def found_after(*names: str) -> set[tuple[str, str, str]]:
    """What is found when each of these happens to a customer of its own."""
    found: set[tuple[str, str, str]] = set()

    async def story(place: ReconPlace, meter: Meter) -> None:
        customers = [f"cus_{number}{name.replace('_', '')}" for number, name in enumerate(names)]
        for customer in customers:
            await place.use(meter, 30, customer)
        await place.until_looked(meter)
        assert found_of(meter) == set()
        for name, customer in zip(names, customers, strict=True):
            await CAUSES[name].inject(place, meter, customer)
        await place.until_looked(meter)
        await place.until_looked(meter)
        found.update(found_of(meter))

    told(story)
    return found


@pytest.mark.parametrize("name", CAUSES)
def test_each_cause_alone_is_found_and_nothing_else(name: str) -> None:
    assert found_after(name) == expected_of(name)


@pytest.mark.slow
@pytest.mark.parametrize("names", list(combinations(CAUSES, 2)), ids="-".join)
def test_each_pair_of_causes_is_found_and_nothing_else(names: tuple[str, str]) -> None:
    assert found_after(*names) == expected_of(*names)


@pytest.mark.slow
def test_a_run_takes_nine_tenths_of_the_reads_and_holds_up_no_push() -> None:
    """At 20 reads a second ten thousand totals take less than ten minutes: 450 take 25 s."""
    settings = Settings(auto_create=True, meters=("*",), account="acct_of_a_test_account")

    async def story(place: ReconPlace, meter: Meter) -> None:
        customers = [f"cus_{number}" for number in range(450)]
        for customer in customers:
            await place.use(meter, 3, customer)
        await trio.sleep(120)
        proven = meter.started.push.connections["main"].proven
        assert proven == Proven("acct_of_a_test_account", "test")
        while meter.started.reconciler._passing.locked():
            await trio.sleep(1)
        began = trio.current_time()
        job = meter.started.reconciler.start(None)
        await trio.sleep(10)
        assert 150 <= job.done <= 220
        await place.use(meter, 4, "cus_7")
        await place.use(meter, 4, "cus_new")
        await trio.sleep(2)
        assert (place.total("cus_7"), place.total("cus_new")) == (7, 4), (
            "a baseline's read goes first"
        )
        await job.ended.wait()
        assert 450 / 20 <= trio.current_time() - began <= 450 / 18 + 3
        assert (job.total, job.done, job.unread) == (450, 450, 0)

    told(story, stripe=settings)
