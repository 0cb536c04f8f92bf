"""The Stripe simulator as a wire of the drivers: real drivers against real rules, in process and in virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

import trio

from engine.drivers.wire import Answer, AnswerLost
from gateway.simulator.state import StripeState
from gateway.simulator.wire import Request

BASE = "http://simulator.invalid"


class SimulatorWire:
    """Fills `engine.drivers.wire.Wire`."""

    name = "simulator"

    def __init__(self, state: StripeState) -> None:
        self.state = state
        self.requests: list[Request] = []

    async def exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """As a socket would: what is lost is lost, what is slow takes its time, two at once are two at once."""
        parts = urlsplit(url)
        named = {name.lower(): text for name, text in headers.items()}
        request = Request(method, unquote(parts.path), parts.query, named, body)
        self.requests.append(request)
        call = self.state.begin(request)
        try:
            await trio.sleep(call.response.delay_seconds)
        finally:
            self.state.finish(call)
        if call.response.lost == "swallowed":
            await trio.sleep(30)
        if call.response.lost:
            raise AnswerLost(f"the simulator lost the answer: {call.response.lost}")
        return Answer(call.response.status, dict(call.response.headers), call.response.body)

    async def aclose(self) -> None:
        """Nothing is open."""
