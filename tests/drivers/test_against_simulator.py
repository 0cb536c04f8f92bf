"""The drivers against the simulator's rules: what each side believes of Stripe has to agree."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.billing import (
    AlreadyDelivered,
    Delivered,
    Destination,
    Outcome,
    PushRequest,
    Reading,
    Refused,
    Resolved,
    RetryLater,
    Unknown,
    Unresolved,
)
from engine.drivers.billing import StripeBilling, api_version
from gateway.simulator.ledger import Settings
from gateway.simulator.state import StripeState
from gateway.simulator.wire import Request
from tests.drivers.fake_stripe import KEY
from tests.helpers.simulator_wire import BASE, SimulatorWire

NOW_S = 1_790_000_040


class Simulated:
    """A simulator, a driver, and a clock that a test sets."""

    def __init__(self, **settings: Any) -> None:
        self.now_s = NOW_S
        self.state = StripeState(
            Settings(seed="7", meters=("api_calls",), **settings), lambda: self.now_s * 1_000_000
        )
        self.wire = SimulatorWire(self.state)
        self.billing = StripeBilling(KEY, api_base=BASE, meter_events_base=BASE, wire=self.wire)

    def control(self, path: str, body: bytes) -> None:
        response = self.state.handle(Request("POST", path, body=body))
        assert response.status < 300, response.body

    async def send(self, identifier: str, value: str = "5", attempt: int = 0) -> Outcome:
        request = PushRequest(
            driver="meter",
            identifier=identifier,
            value=value,
            timestamp_s=NOW_S,
            api_version=api_version("meter"),
            event_name="api_calls",
            customer="cus_1",
        )
        [outcome] = await self.billing.send([request], [attempt])
        return outcome

    async def total(self) -> str:
        self.now_s += 3600
        found = await self.billing.resolve(Destination("meter", event_name="api_calls"))
        assert isinstance(found, Resolved)
        reading = await self.billing.read(found, "cus_1", NOW_S, NOW_S + 60, None)
        assert isinstance(reading, Reading)
        return reading.units


def simulated() -> Simulated:
    return Simulated(auto_create=True)


async def test_the_simulator_proves_to_be_one() -> None:
    proven = await simulated().billing.prove()
    assert proven == (simulated().state.account, "sim", True)


async def test_what_was_delivered_is_counted_once_and_read_back() -> None:
    world = simulated()
    assert isinstance(await world.send("a", "5"), Delivered)
    assert isinstance(await world.send("b", "-2"), Delivered)
    # The same key replays the answer, another one meets the identifier.
    assert isinstance(await world.send("a", "5"), Delivered)
    assert isinstance(await world.send("a", "5", attempt=1), AlreadyDelivered)
    assert float(await world.total()) == 3


@pytest.mark.parametrize(
    ("fault", "kind", "total"),
    [
        (b'{"kind": "rate_limited", "count": 1, "retry_after": 3}', RetryLater, 0),
        (b'{"kind": "busy", "count": 1}', RetryLater, 0),
        (b'{"kind": "error", "count": 1}', Unknown, 5),
        (b'{"kind": "error", "count": 1, "applied": false}', Unknown, 0),
        (b'{"kind": "unavailable", "count": 1}', Unknown, 0),
        (b'{"kind": "reset", "count": 1}', Unknown, 5),
        (b'{"kind": "reset", "count": 1, "applied": false}', Unknown, 0),
    ],
    ids=range(7),
)
async def test_each_fault_is_told_apart_by_what_is_known_of_delivery(
    fault: bytes, kind: type[Outcome], total: int
) -> None:
    world = simulated()
    world.control("/_sim/faults", fault)
    outcome = await world.send("a", "5")
    assert isinstance(outcome, kind)
    if isinstance(outcome, RetryLater):
        assert outcome.is_account_wide == (b"rate_limited" in fault)
    assert float(await world.total()) == total


async def test_a_stored_500_is_replayed_under_its_key_and_gone_under_the_next() -> None:
    world = simulated()
    world.control("/_sim/faults", b'{"kind": "error", "count": 1, "applied": false}')
    for _ in range(3):
        outcome = await world.send("a", "5")
        assert isinstance(outcome, Unknown)
        assert outcome.is_stored
    assert isinstance(await world.send("a", "5", attempt=1), Delivered)
    assert float(await world.total()) == 5


async def test_other_parameters_under_a_used_key_are_refused() -> None:
    world = simulated()
    await world.send("a", "5")
    outcome = await world.send("a", "6")
    assert isinstance(outcome, Refused)
    assert "idempotency key" in outcome.reason


async def test_an_event_that_is_cancelled_no_longer_counts() -> None:
    world = simulated()
    await world.send("a", "5")
    request = PushRequest(
        driver="meter", identifier="a", value="5", timestamp_s=NOW_S,
        api_version=api_version("meter"), event_name="api_calls", customer="cus_1",
    )  # fmt: skip
    assert isinstance(await world.billing.cancel(request), Delivered)
    assert float(await world.total()) == 0


async def test_a_meter_that_is_not_there_is_not_resolved() -> None:
    found = await Simulated().billing.resolve(Destination("meter", event_name="other"))
    assert isinstance(found, Unresolved)
    assert "create one" in found.reason
