"""Who waits to ask Stripe about a destination: no longer than there is a reason to; and what is told of a key."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from engine.actors.push_connections import Again, Connection
from engine.core.billing import Destination, Proven, Resolved, Unresolved
from engine.core.pace import FAILURES_MAX
from engine.drivers.wire import Answer
from gateway.simulator.ledger import Limits, Settings
from tests.helpers.push_place import PushPlace, VirtualClock
from tests.helpers.simulator_wire import SimulatorWire


class Billing:
    """Answers as a test says."""

    def __init__(self, answer: Resolved | Unresolved) -> None:
        self.answer = answer

    async def resolve(self, _destination: Destination) -> Resolved | Unresolved:
        return self.answer


def connection(answer: Resolved | Unresolved) -> Connection:
    billing: Any = Billing(answer)
    made = Connection("main", billing, VirtualClock(), Random(1))
    made.proven = Proven("acct_1", "test")
    return made


async def seconds_of(made: Connection, again: Again | None) -> float:
    assert again is not None
    began = trio.current_time()
    await made.until(again)
    return trio.current_time() - began


async def test_a_wait_for_a_stripe_that_is_down_ends_soon_after_it_answers_somebody(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    made = connection(Unresolved("down", is_temporary=True))
    breaker = made.pace(None).breaker
    for _ in range(FAILURES_MAX + 6):
        breaker.failed(made._clock.now_us(), "down")
    again = await made.resolve(Destination("meter", event_name="x"))
    assert again is not None
    assert again.wait_us > 20_000_000
    async with trio.open_nursery() as nursery:

        async def answered() -> None:
            await trio.sleep(5)
            breaker.succeeded()

        nursery.start_soon(answered)
        assert 5 <= await seconds_of(made, again) < 6


async def test_a_wait_that_stripe_asked_for_is_kept_whole(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    made = connection(Unresolved("limit", is_temporary=True, after_us=30_000_000))
    for _ in range(FAILURES_MAX):
        made.pace(None).breaker.failed(0, "down")
    again = await made.resolve(Destination("meter", event_name="x"))
    made.pace(None).breaker.succeeded()
    assert 30 <= await seconds_of(made, again) < 30.01


@pytest.mark.parametrize("limits", [Limits(), None])
async def test_no_simulator_refuses_a_call_for_its_rate(
    limits: Limits | None, autojump_clock: trio.testing.MockClock
) -> None:
    """One with Stripe's limits is read as slowly as Stripe; one that says it has none is read faster."""
    place = PushPlace(stripe=Settings(auto_create=True, meters=("*",), limits=limits))
    statuses: Counter[int] = Counter()
    exchange = place.wire.exchange

    async def counted(*request: Any) -> Answer:
        answer = await exchange(*request)
        statuses[answer.status] += 1
        return answer

    place.wire.exchange = counted  # type: ignore[method-assign]
    async with place.running() as meter:
        for number in range(80):
            await place.use(meter, 1, f"cus_{number}")
        await place.map(meter)
        began = autojump_clock.current_time()
        while sum(place.total(f"cus_{number}") for number in range(80)) < 80:
            await trio.sleep(0.1)
        seconds = autojump_clock.current_time() - began
    assert statuses.keys() == {200}
    assert (seconds > 2) == (limits is not None)


class LockedWire(SimulatorWire):
    """Stripe that lets the key read and not send to some path, while it is told to."""

    refused: str | None = None

    async def exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """As a socket would."""
        if self.refused is not None and self.refused in url and method == "POST":
            await trio.lowlevel.checkpoint()
            error = {"error": {"type": "invalid_request_error", "message": "No."}}
            return Answer(403, {}, json.dumps(error).encode())
        return await super().exchange(method, url, headers, body)


async def test_that_a_key_is_refused_is_told_until_a_push_goes_through_it_and_no_longer(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - so that waiting takes no time
) -> None:
    place = PushPlace()
    place.wire = wire = LockedWire(place.stripe)
    async with place.running() as meter:
        await place.map(meter)
        await place.use(meter, 30)
        await trio.sleep(30)
        assert meter.started.pusher.connections()["main"].error is None
        wire.refused = "/billing/meter_events"
        await place.use(meter, 5)
        await trio.sleep(30)
        told = meter.started.pusher.connections()["main"].error
        assert told is not None
        assert "key" in told
        wire.refused = None
        await trio.sleep(630)
        assert place.total() == 35
        assert meter.started.pusher.connections()["main"].error is None
        wire.refused = "/billing/meter_events"
        await place.use(meter, 1)
        await trio.sleep(30)
        assert meter.started.pusher.connections()["main"].error is not None, "refused anew"
