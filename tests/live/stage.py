"""What the live suite plays on: a test account, what was made in it, and time that passes, at Stripe or in the simulator.

All that is made has a random mark in its name and is put away at the end: meters deactivated, prices and products
archived, clocks deleted (customers and subscriptions go with them).
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
import trio

from engine.core.billing import Destination, Outcome, PushRequest, Reading, Resolved
from engine.drivers.billing import StripeBilling, api_version
from engine.drivers.calls import LIBRARY_API_VERSION, StripeCalls
from engine.drivers.standalone import StripeBillingDriver
from engine.drivers.wire import Wire

Json = dict[str, Any]
DAY_S = 86_400


class Target(Protocol):
    """Stripe itself or the simulator."""

    name: str
    key: str
    api_base: str
    meter_events_base: str
    wire: Wire

    def now_s(self) -> int:
        """The target's time."""
        ...

    async def pass_time(self, seconds: int) -> None:
        """Wait, or let simulated time pass."""
        ...


class Stage:
    """Drivers of one target, and what was made there."""

    def __init__(self, target: Target, facts: dict[str, str]) -> None:
        self.target = target
        self.facts = facts
        self.mark = f"sm_live_{secrets.token_hex(4)}"
        bases = {"api_base": target.api_base, "meter_events_base": target.meter_events_base}
        self.billing = StripeBilling(target.key, wire=target.wire, **bases)
        self.driver = StripeBillingDriver(test_key=target.key, wire=target.wire, **bases)
        self._calls = StripeCalls(target.key, target.wire, **bases)
        self._put_away: list[Callable[[], Awaitable[Any]]] = []
        self._made = 0

    def settle(self, question: str, answer: str) -> None:
        """Keep a fact; the run's summary lists them."""
        self.facts[f"{self.target.name}: {question}"] = answer

    async def post(self, path: str, params: Any, version: str = LIBRARY_API_VERSION) -> Json:
        """Make or change something. Raises what the calls raise."""
        answer = await self._calls.call("post", path, params, api_version=version)
        return self._read(answer.body)

    async def get(self, path: str, params: Any | None = None) -> Json:
        """Read something."""
        return self._read((await self._calls.call("get", path, params or {})).body)

    @staticmethod
    def _read(body: str) -> Json:
        return msgspec.json.decode(body, type=dict[str, Any])

    async def meter(self) -> Json:
        """A new meter that sums."""
        self._made += 1
        event_name = f"{self.mark}_{self._made}"
        meter = await self.post(
            "/v1/billing/meters",
            {
                "display_name": event_name,
                "event_name": event_name,
                "default_aggregation": {"formula": "sum"},
            },
        )
        self._put_away.append(lambda: self.post(f"/v1/billing/meters/{meter['id']}/deactivate", {}))
        return meter

    async def price(self, version: str = LIBRARY_API_VERSION, **shape: Any) -> Json:
        """A new monthly metered price with a product of its own."""
        product = await self.post("/v1/products", {"name": f"{self.mark} product"})
        price = await self.post(
            "/v1/prices", {"currency": "usd", "product": product["id"], **shape}, version
        )
        off = {"active": False}
        self._put_away.append(lambda: self.post(f"/v1/products/{product['id']}", off))
        self._put_away.append(lambda: self.post(f"/v1/prices/{price['id']}", off))
        return price

    async def clock(self) -> str:
        """A test clock that stands at the target's present."""
        clock = await self.driver.create_test_clock(self.target.now_s(), self.mark)
        path = f"/v1/test_helpers/test_clocks/{clock.id}"
        self._put_away.append(lambda: self._calls.call("delete", path, {}))
        return clock.id

    async def customer(self, clock: str) -> str:
        """A customer that lives by the clock."""
        made = await self.post(
            "/v1/customers",
            {"name": self.mark, "email": f"{self.mark}@example.com", "test_clock": clock},
        )
        return str(made["id"])

    async def subscribe(
        self, customer: str, price: str, version: str = LIBRARY_API_VERSION
    ) -> Json:
        """The customer's subscription to the price; its invoices are not charged but sent."""
        return await self.post(
            "/v1/subscriptions",
            {
                "customer": customer,
                "items": [{"price": price}],
                "collection_method": "send_invoice",
                "days_until_due": 30,
            },
            version,
        )

    def request(self, meter: Json, customer: str, value: str, **changed: Any) -> PushRequest:
        """A push of that many units, booked at the target's present minute."""
        fields: Json = {
            "driver": "meter",
            "identifier": f"{self.mark}:{secrets.token_hex(6)}",
            "value": value,
            "timestamp_s": self.target.now_s() // 60 * 60,
            "api_version": api_version("meter"),
            "event_name": meter["event_name"],
            "customer": customer,
        }
        return PushRequest(**{**fields, **changed})

    async def send(self, request: PushRequest, attempt: int = 0) -> Outcome:
        """One request sent once."""
        [outcome] = await self.billing.send([request], [attempt])
        return outcome

    async def total(self, meter: Json, customer: str) -> str:
        """What the meter's summary holds of the last day."""
        resolved = await self.billing.resolve(Destination("meter", event_name=meter["event_name"]))
        assert isinstance(resolved, Resolved), resolved
        end_s = self.target.now_s() // 60 * 60 + 60
        reading = await self.billing.read(resolved, customer, end_s - DAY_S, end_s, None)
        assert isinstance(reading, Reading), reading
        return reading.units

    async def total_becomes(self, meter: Json, customer: str, units: int) -> int | None:
        """Seconds until the summary holds that many; None: not within a quarter of an hour."""
        for waited_s in range(0, 900, 5):
            if float(await self.total(meter, customer)) == units:
                return waited_s
            await self.target.pass_time(5)
        return None

    async def put_all_away(self) -> None:
        """Also what follows one that fails; the first failure is raised at the end."""
        failures = []
        with trio.CancelScope(shield=True), trio.move_on_after(60):
            for put_away in reversed(self._put_away):
                try:
                    await put_away()
                except Exception as failure:
                    failures.append(failure)
        if failures:
            raise failures[0]
