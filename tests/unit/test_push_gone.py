"""A push under way whose customer goes at Stripe: it ends where a person sees it, and goes nowhere else by itself."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest
import trio
import trio.testing

from engine.actors.push_desk import Asker
from engine.drivers.wire import Answer, AnswerLost
from gateway.simulator.ledger import Settings
from gateway.simulator.state import StripeState
from gateway.simulator.wire import Request
from tests.helpers.push_place import METERS, PushPlace
from tests.helpers.simulator_wire import SimulatorWire

GONE = b'{"error": {"type": "invalid_request_error", "code": "resource_missing", "message": "No such customer: cus_anna"}}'


class GoneWire(SimulatorWire):
    """The answer to the second push is lost; from then on Stripe knows no such customer."""

    is_gone = False

    async def exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """As a socket would."""
        if self.is_gone and ("meter_events" in url or "event_summaries" in url):
            self.requests.append(Request(method, url, body=body))
            if method == "POST" and sum(one.method == "POST" for one in self.requests) == 2:
                raise AnswerLost("it is lost")
            return Answer(404, {}, GONE)
        return await super().exchange(method, url, headers, body)


@pytest.mark.parametrize("is_told", [True, False])
async def test_a_push_under_way_to_a_customer_who_is_gone_ends_in_quarantine(
    is_told: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """Told by the webhook: soon; else when nothing more can be known."""
    place = PushPlace(interval_us=60_000_000)
    wire = GoneWire(place.stripe)
    place.wire = wire
    async with place.running() as meter:
        await place.map(meter)
        await place.use(meter, 3)
        await trio.sleep(120)
        wire.is_gone = True
        await place.use(meter, 4)
        await trio.sleep(70)
        desk = meter.started.pusher
        if is_told:
            await desk.stop(place.stripe.account, "cus_anna", "it was deleted", "stripe")
        (report,) = await desk.targets("acme")
        assert (report.standing, report.reason) == (
            "in_flight",
            "it was deleted" if is_told else None,
        )
        await _hours(autojump_clock, 2)
        assert ((await desk.targets("acme"))[0].standing == "quarantined") == is_told
    async with place.running() as meter:  # a restart does not begin it anew
        desk = meter.started.pusher
        await _hours(autojump_clock, 47)
        (report,) = await desk.targets("acme")
        assert (report.standing, report.needs_person) == ("quarantined", True)
        assert "No such customer" in str(report.reason)
        sent = {one.body for one in wire.requests if one.method == "POST"}
        assert len(sent) == 2, "the same bytes, and nothing in their place"
        found = {one.record.cause for one in meter.push.findings.open.values()}
        assert "quarantined" in found
        await desk.settle("acme", report.id, delivered=False, by=Asker("person", None))
        await _hours(autojump_clock, 1)
        (report,) = await desk.targets("acme")
        assert report.standing == ("stopped" if is_told else "refused")


async def _hours(clock: trio.testing.MockClock, hours: int) -> None:
    """Of each half an hour only the end is lived through."""
    for _ in range(2 * hours):
        clock.jump(1_780)
        await trio.sleep(20)


async def test_a_push_under_way_of_test_mode_is_never_sent_with_the_live_key(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    """The account is the same: a ledger is of an account and a mode."""
    testing = Settings(auto_create=True, meters=("*",), account="acct_1")
    place = PushPlace(stripe=testing)
    async with place.running() as meter:
        await place.map(meter)
        await place.use(meter, 3)
        await trio.sleep(10)
        place.stripe.add_fault("outage", "*", for_seconds=100)
        await place.use(meter, 4)
        await trio.sleep(10)
        (report,) = await meter.started.pusher.targets("acme")
        assert (report.target.lane.mode, report.standing) == ("test", "in_flight")
    live = msgspec.structs.replace(testing, is_live=True)
    place.stripe = StripeState(live, place.clock.now_us)
    place.stripe.ensure(meters=METERS)
    place.wire = SimulatorWire(place.stripe)
    async with place.running() as meter:
        await trio.sleep(600)
        (report,) = await meter.started.pusher.targets("acme")
        assert (report.target.lane.mode, report.pushed) == ("live", 7)
        assert place.total() == 7
