"""Whom the live suite runs against: the simulator always, Stripe itself with STRIPE_TEST_SECRET_KEY.

Each call is held to Stripe's own types. What was settled is listed at the end of the run.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from engine.drivers.calls import API_BASE, METER_EVENTS_BASE
from engine.drivers.opening import open_wire
from engine.drivers.wire import Wire
from gateway.simulator.ledger import Settings
from gateway.simulator.state import StripeState
from tests.drivers.contract import contract_check
from tests.helpers.simulator_wire import BASE, SimulatorWire
from tests.live.stage import Stage, Target

FACTS: dict[str, str] = {}


class StripeItself:
    """The account of STRIPE_TEST_SECRET_KEY."""

    name = "stripe"

    def __init__(self, key: str) -> None:
        self.key = key
        self.api_base = os.environ.get("STRIPE_API_BASE") or API_BASE
        self.meter_events_base = os.environ.get("STRIPE_METER_EVENTS_BASE") or METER_EVENTS_BASE
        self.wire: Wire = open_wire((self.api_base, self.meter_events_base))

    def now_s(self) -> int:
        return int(time.time())

    async def pass_time(self, seconds: int) -> None:
        await trio.sleep(seconds)


class Simulator:
    """The simulator in this process, with a lag, in time of its own."""

    name = "simulator"
    key = "sk_test_of_the_simulator"
    api_base = BASE
    meter_events_base = BASE

    def __init__(self) -> None:
        self._now_s = 1_790_000_040
        settings = Settings(seed="live", lag_seconds_min=5, lag_seconds_max=20)
        state = StripeState(settings, lambda: self._now_s * 1_000_000)
        self.wire: Wire = SimulatorWire(state)

    def now_s(self) -> int:
        return self._now_s

    async def pass_time(self, seconds: int) -> None:
        self._now_s += seconds


@pytest.fixture(params=["simulator", "stripe"])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    """A stage that is put away afterwards."""
    target: Target
    if request.param == "simulator":
        target = Simulator()
    else:
        key = os.environ.get("STRIPE_TEST_SECRET_KEY")
        if not key:
            pytest.skip("set STRIPE_TEST_SECRET_KEY to ask Stripe itself (make test-live)")
        if key[2:8] == "_live_":
            pytest.fail("STRIPE_TEST_SECRET_KEY is a live key: nothing was sent")
        target = StripeItself(key)
    one = Stage(target, FACTS)
    try:
        yield one
    finally:
        await one.put_all_away()
        await target.wire.aclose()


@pytest.fixture(autouse=True)
def checked_calls() -> Iterator[None]:
    """Each call is held to Stripe's own types."""
    with contract_check():
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what was settled about Stripe itself."""
    settled = {
        question: answer for question, answer in FACTS.items() if question.startswith("stripe:")
    }
    if settled:
        terminalreporter.section("settled")
        for question, answer in settled.items():
            terminalreporter.write_line(f"{question}: {answer}")
