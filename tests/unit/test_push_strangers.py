"""Customers that Stripe does not know: each is told what is wrong, and nobody else waits for them."""

from __future__ import annotations

import trio
import trio.testing

from engine.actors.push_desk import TargetReport
from engine.actors.supervisor import Meter
from engine.core.pace import FAILURES_MAX
from gateway.simulator.ledger import Settings
from tests.helpers.push_place import PushPlace, VirtualClock

STRANGERS = 4 * FAILURES_MAX


def _place() -> PushPlace:
    """A Stripe that makes no customer up: only those that were made are there."""
    place = PushPlace(stripe=Settings(auto_create=False))
    place.stripe.ensure(customers=("cus_anna",), meters=("calls",))
    return place


def _readings(place: PushPlace) -> int:
    return sum("event_summaries" in one.path for one in place.wire.requests)


async def _stranger(meter: Meter) -> TargetReport:
    reports = await meter.started.pusher.targets("acme", "cus_0")
    return reports[0]


async def test_customers_that_stripe_does_not_know_hold_nobody_else_up(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = _place()
    async with place.running() as meter:
        await place.map(meter)
        for number in range(STRANGERS):
            await place.use(meter, 1, f"cus_{number}")
        await trio.sleep(5)
        await place.use(meter, 7)
        await trio.sleep(3)
        assert place.total() == 7
        assert meter.started.pusher.connections()["main"].error is None


async def test_who_is_unknown_at_stripe_is_refused_in_words_and_asked_about_ever_less_often(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = _place()
    async with place.running() as meter:
        await place.map(meter)
        await place.use(meter, 1, "cus_0")
        await trio.sleep(5)
        before = _readings(place)
        for _ in range(20):  # more usage is no reason to ask again
            await place.use(meter, 1, "cus_0")
            await trio.sleep(2)
        assert _readings(place) == before
        report = await _stranger(meter)
        assert (report.standing, report.needs_person, report.due) == ("refused", True, 21)
        assert report.reason is not None
        assert "No such customer: 'cus_0'" in report.reason
        assert report.next_at_us is not None
        assert report.next_at_us > place.clock.now_us()
        # A flush asks once: somebody may have mended it just now.
        await meter.started.pusher.flush("acme", "cus_0", 5_000_000)
        assert _readings(place) == before + 1
        place.stripe.ensure(customers=("cus_0",))
        await meter.started.pusher.flush("acme", "cus_0", 5_000_000)
        assert (await _stranger(meter)).standing == "current"
        assert place.total("cus_0") == 21


async def test_what_was_never_pushed_is_due_now_and_not_in_1970(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = _place()
    async with place.running() as meter:
        await place.map(meter)
        await place.use(meter, 1)
        place.stripe.add_fault("outage", "GET /v1/billing/meters/*")
        await trio.sleep(5)
        (report,) = await meter.started.pusher.targets("acme")
        assert (report.standing, report.pushed) == ("due", 0)
        assert report.next_at_us is not None
        assert report.next_at_us >= place.clock.now_us()


class _TickingClock(VirtualClock):
    """As a real one: no two looks at it see the same instant."""

    looks = 0

    def now_us(self) -> int:
        self.looks += 1
        return super().now_us() + self.looks


async def test_what_is_due_now_goes_on_a_clock_that_never_stands_still(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = _place()
    place.clock = _TickingClock()
    async with place.running() as meter:
        await place.map(meter)
        await place.use(meter, 7)
        await trio.sleep(5)
        assert place.total() == 7
