"""A served meter with prices at the Stripe simulator: what tests of projection, explain and backtest start from.

It must not know which of them is tested.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import trio

from engine.core.times import parse_instant
from gateway.simulator.wire import Request
from tests.helpers.served import Served

TENANT = {"tenantId": "acme"}
TIERED = {
    "model": "tiered",
    "currency": "USD",
    "tiers": [
        {"upTo": 10_000, "unitPrice": "0.01"},
        {"upTo": 50_000, "unitPrice": "0.008"},
        {"upTo": None, "unitPrice": "0.005"},
    ],
}
"""25,000 units cost 220.00."""
STRIPE_TIERED = {
    "billing_scheme": "tiered",
    "tiers_mode": "graduated",
    "tiers[0][up_to]": 10_000,
    "tiers[0][unit_amount_decimal]": "1",
    "tiers[1][up_to]": 50_000,
    "tiers[1][unit_amount_decimal]": "0.8",
    "tiers[2][up_to]": "inf",
    "tiers[2][unit_amount_decimal]": "0.5",
}
"""The same at Stripe, in cents."""


async def ask(server: Served, method: str, path: str, status: int = 200, **more: Any) -> Any:
    """The body of an answer that must have this status."""
    response = await server.client.request(method, path, **more)
    assert response.status_code == status, response.text
    return response.json() if response.content else None


async def mapped(server: Served, metric: str = "calls", **fields: Any) -> dict[str, Any]:
    """A mapping of `acme`."""
    body = TENANT | {"metric": metric} | fields
    return dict(await ask(server, "POST", "/v1/mappings", 201, json=body))


async def put(server: Served, ref: str, **fields: Any) -> None:
    """What is known of a customer."""
    response = await server.client.put(f"/v1/customers/{ref}", json=TENANT | fields)
    assert response.status_code in (200, 201), response.text


async def use(server: Served, key: str, quantity: Any, ref: str = "anna", **more: Any) -> None:
    """One event of `calls`, acknowledged."""
    event = TENANT | {"metric": "calls", "customerRef": ref, "quantity": quantity}
    answer = await server.ingest(event | {"idempotencyKey": key} | more)
    assert answer["accepted"] == 1, answer


async def projected(server: Served, ref: str = "anna", status: int = 200, **body: Any) -> Any:
    """A customer's projection."""
    params = body.pop("params", {})
    content = TENANT | {"customerRef": ref} | body
    return await ask(server, "POST", "/v1/usage/projection", status, json=content, params=params)


def set_time(server: Served, text: str) -> None:
    """Let the server's clock and Stripe's stand at an instant."""
    server.clock.us = parse_instant(text)


def at_stripe(server: Served, path: str, method: str = "POST", **fields: Any) -> Any:
    """What the simulator answers to a request that must succeed."""
    assert server.stripe is not None
    headers = {"authorization": "Bearer sk_test_of_the_helper"}
    body = urlencode(fields).encode()
    response = server.stripe.handle(Request(method, path, "", headers, body))
    assert response.status == 200, response.body
    return response.json()


def meter_id(server: Served, event_name: str = "calls") -> str:
    """The id of a meter that the simulator has from its start."""
    assert server.stripe is not None
    server.stripe.ensure(meters=(event_name,))
    return str(server.stripe.world.ledgers[server.stripe.account].meters[event_name])


def stripe_price(server: Served, **fields: Any) -> str:
    """A metered price of the meter `calls`; its id."""
    made = {
        "currency": "usd",
        "product_data[name]": "calls",
        "recurring[interval]": "month",
        "recurring[usage_type]": "metered",
        "recurring[meter]": meter_id(server),
    } | fields
    return str(at_stripe(server, "/v1/prices", **made)["id"])


def subscribed(server: Served, price: str) -> tuple[str, str]:
    """A new Stripe customer's subscription item with that price: (customer, item)."""
    customer = str(at_stripe(server, "/v1/customers")["id"])
    made = at_stripe(server, "/v1/subscriptions", customer=customer, **{"items[0][price]": price})
    return customer, str(made["items"]["data"][0]["id"])


async def proven(server: Served) -> None:
    """Wait until Stripe has said whose the key is."""
    connection = server.gateway.meter.started.push.connections["main"]
    with trio.fail_after(60):
        while connection.proven is None:
            await trio.sleep(0.001)
