"""A meter in memory that is reconciled: what Stripe's side can do wrong, and what was found of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any
from urllib.parse import urlencode

import trio

from engine.actors.push_desk import Asker
from engine.actors.reconciler import ReconOptions
from engine.actors.supervisor import Meter, MeterOptions
from engine.core.records import AdjustmentChange
from engine.drivers.wire import Answer
from gateway.simulator.state import StripeState
from gateway.simulator.wire import Request
from tests.helpers.push_place import BY, KEY, PushPlace
from tests.helpers.simulator_wire import SimulatorWire

LAG_SECONDS = 60
INTERVAL_SECONDS = 600


class RefusingWire(SimulatorWire):
    """Stripe that refuses the meter events of some customers: a refusal of its own, and no fault of the network."""

    def __init__(self, state: StripeState) -> None:
        super().__init__(state)
        self.refused: dict[str, str] = {}
        """Customer to what Stripe says."""
        self.is_key_refused = False

    async def exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """As a socket would."""
        if self.is_key_refused:
            await trio.lowlevel.checkpoint()
            error = {"error": {"type": "invalid_request_error", "message": "Invalid API Key"}}
            return Answer(401, {"content-type": "application/json"}, json.dumps(error).encode())
        for customer, message in self.refused.items():
            if url.endswith("/billing/meter_events") and customer.encode() in body:
                await trio.lowlevel.checkpoint()
                error = {"error": {"type": "invalid_request_error", "message": message}}
                return Answer(400, {"content-type": "application/json"}, json.dumps(error).encode())
        return await super().exchange(method, url, headers, body)


class ReconPlace(PushPlace):
    """Looks every ten minutes, with a lag of one."""

    wire: RefusingWire

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.wire = RefusingWire(self.stripe)

    def options(self) -> MeterOptions:
        """The next meter's."""
        reconcile = ReconOptions(
            interval_us=INTERVAL_SECONDS * 1_000_000,
            lag_us=LAG_SECONDS * 1_000_000,
            epsilon=Fraction(1, 200),
        )
        return replace(super().options(), reconcile=reconcile)

    async def until_looked(self, meter: Meter, tenant: str | None = None) -> None:
        """Long enough for pushes to lag and for two looks."""
        await trio.sleep(2 * LAG_SECONDS + 5)
        job = meter.started.reconciler.start(tenant)
        await job.ended.wait()
        await trio.sleep(2 * LAG_SECONDS + 5)
        job = meter.started.reconciler.start(tenant)
        await job.ended.wait()
        assert job.status == "completed", job.error

    async def apply(self, meter: Meter, wanted: str, choice: Any = None) -> None:
        """Apply a suggestion as a person would."""
        by = Asker("person", None)
        await meter.started.reconciler.repairs.apply("acme", wanted, by, "a test", choice)

    async def approve_all(self, meter: Meter) -> None:
        """Approve every late adjustment of `acme`."""
        for shard in meter.shards:
            for partition, adjustments in shard.state.adjustments.items():
                ids = tuple(one.id for one in adjustments.by_id.values() if one.status == "pending")
                if ids:
                    await meter.append_control(
                        AdjustmentChange(
                            action="approve",
                            partition=partition,
                            change=BY,
                            tenant_id="acme",
                            ids=ids,
                        )
                    )

    def newest_of(self, meter: Meter, customer: str) -> str:
        """The identifier of the newest push that was acknowledged of a customer."""
        delivered = meter.push.ledger.delivered.items()
        return [key for key, one in delivered if one.target.lane.customer == customer][-1]

    def subscribe(self, customer: str, meter: str = "calls", **more: Any) -> str:
        """A subscription of a customer with a price on the meter; its item."""
        self.stripe.ensure(customers=(customer,))
        meter_id = self.stripe.world.ledgers[self.stripe.account].meters[meter]
        price = self.post(
            "/v1/prices",
            currency="usd",
            unit_amount=10,
            product_data={"name": meter},
            recurring={"interval": "month", "usage_type": "metered", "meter": meter_id},
        )
        made = self.post(
            "/v1/subscriptions", customer=customer, items={"0": {"price": price["id"]}}, **more
        )
        return str(made["items"]["data"][0]["id"])

    def post(self, path: str, **fields: Any) -> dict[str, Any]:
        """What somebody else sends to Stripe; the answer, which must be a success."""
        flat = _flat(fields)
        headers = {
            "authorization": f"Bearer {KEY}",
            "content-type": "application/x-www-form-urlencoded",
        }
        call = self.stripe.begin(Request("POST", path, "", headers, urlencode(flat).encode()))
        self.stripe.finish(call)
        assert call.response.status == 200, call.response.body
        return dict(json.loads(call.response.body))

    async def foreign(
        self,
        value: int,
        customer: str = "cus_anna",
        meter: str = "calls",
        timestamp_s: int | None = None,
    ) -> None:
        """Usage that another system sends to the same meter."""
        self.sent += 1
        self.post(
            "/v1/billing/meter_events",
            event_name=meter,
            identifier=f"foreign-{self.sent}",
            payload={"stripe_customer_id": customer, "value": str(value)},
            timestamp=timestamp_s or self.clock.now_us() // 1_000_000,
        )


def _flat(fields: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in fields.items():
        key = f"{prefix}[{name}]" if prefix else name
        if isinstance(value, dict):
            found += _flat(value, key)
        else:
            found.append((key, str(value)))
    return found


def causes(meter: Meter) -> set[tuple[str, str]]:
    """(cause, units) of every open finding."""
    return {(one.record.cause, one.record.units) for one in meter.push.findings.open.values()}
