"""Which price a running period has when a mapping or a customer's item changes in it: what it is pushed to, and billed by."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.helpers.priced import (
    TENANT,
    ask,
    at_stripe,
    mapped,
    projected,
    proven,
    put,
    set_time,
    stripe_price,
    subscribed,
    use,
)
from tests.helpers.served import Served, served

FLAT = {"model": "flat", "currency": "USD", "unitPrice": "0.10"}


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with served(stripe={}) as running:
        await proven(running)
        yield running


async def pushed(server: Served) -> None:
    """Stripe has all that was used: from now on a change of where or how much holds from the next period."""
    answer = await ask(server, "POST", "/v1/pushes/flush", json={"tenantId": "acme"})
    assert answer["complete"], [one["reason"] for one in answer["missing"]]


async def test_a_change_that_holds_from_the_next_period_prices_nothing_before(
    server: Served,
) -> None:
    """The running period is still pushed, and billed, as it began."""
    old, new = stripe_price(server, unit_amount=7), stripe_price(server, unit_amount=100)
    customer, _ = subscribed(server, old)
    made = await mapped(server, priceId=old)
    await put(server, "anna", stripeCustomerId=customer)
    await use(server, "1", 2_000)
    await pushed(server)
    path, change = f"/v1/mappings/{made['id']}", {"priceId": new, "stripeScale": "0.001"}
    await ask(server, "PUT", path, json=change)
    (line,) = (await projected(server))["lineItems"]
    assert (line["quantity"], line["total"], line["price"]["priceId"]) == (2_000, 140.00, old)
    params = {"tenantId": "acme", "customerRef": "anna", "metric": "calls"}
    explained = await ask(
        server, "GET", "/v1/usage/explain", params=params | {"periodStart": "2026-01-01"}
    )
    assert (explained["line"]["total"], explained["line"]["price"]["priceId"]) == (140.00, old)
    set_time(server, "2026-02-03T00:00:00Z")
    await use(server, "2", 2_000)
    (line,) = (await projected(server))["lineItems"]
    assert (line["quantity"], line["total"], line["price"]["priceId"]) == (2, 2.00, new)


async def test_a_cutover_prices_the_running_period_at_once(server: Served) -> None:
    old, new = stripe_price(server, unit_amount=7), stripe_price(server, unit_amount=100)
    customer, _ = subscribed(server, old)
    made = await mapped(server, priceId=old)
    await put(server, "anna", stripeCustomerId=customer)
    await use(server, "1", 2_000)
    await pushed(server)
    path, change = f"/v1/mappings/{made['id']}", {"priceId": new, "cutover": "move"}
    await ask(server, "PUT", path, json=change)
    (line,) = (await projected(server))["lineItems"]
    assert (line["total"], line["price"]["priceId"]) == (2_000.00, new)


async def test_a_customers_new_item_prices_nothing_before_its_period(server: Served) -> None:
    old, new = stripe_price(server, unit_amount=7), stripe_price(server, unit_amount=100)
    customer, first = subscribed(server, old)
    fields = {"customer": customer, "items[0][price]": new}
    second = str(at_stripe(server, "/v1/subscriptions", **fields)["items"]["data"][0]["id"])
    await mapped(server, period="subscription", priceConfig=FLAT)
    anchor = "2026-01-31T10:00:00Z"
    known = {"stripeCustomerId": customer, "billingAnchor": anchor}
    await put(server, "anna", **known, subscriptionItems={"calls": first})
    await use(server, "1", 10)
    await pushed(server)
    await put(server, "anna", **known, subscriptionItems={"calls": second})
    (line,) = (await projected(server))["lineItems"]
    assert (line["total"], line["price"]["subscriptionItemId"]) == (0.70, first)
    set_time(server, "2026-03-03T00:00:00Z")
    await use(server, "2", 10)
    (line,) = (await projected(server))["lineItems"]
    assert (line["total"], line["price"]["subscriptionItemId"]) == (10.00, second)


async def test_a_period_that_was_carried_over_to_another_price_has_no_one_price(
    server: Served,
) -> None:
    """What was used before stays at the old price and the rest goes to the new one: neither times all of it is the bill."""
    old, new = stripe_price(server, unit_amount=7), stripe_price(server, unit_amount=100)
    customer, _ = subscribed(server, old)
    made = await mapped(server, priceId=old)
    await put(server, "anna", stripeCustomerId=customer)
    await use(server, "1", 2_000)
    await pushed(server)
    path = f"/v1/mappings/{made['id']}"
    await ask(server, "PUT", path, json={"priceId": new, "cutover": "carry"})
    await use(server, "2", 3)
    found = await projected(server)
    (line,) = found["lineItems"]
    assert (line["total"], line["price"], found["complete"]) == (None, None, False)
    assert "carried over" in line["reason"]
    params = {"tenantId": "acme", "customerRef": "anna", "metric": "calls"}
    explained = await ask(
        server, "GET", "/v1/usage/explain", params=params | {"periodStart": "2026-01-01"}
    )
    assert (explained["line"], explained["lineReason"]) == (None, line["reason"])
    body = TENANT | {"since": "2026-01-01", "priceConfig": {"calls": FLAT}}
    tested = await ask(server, "POST", "/v1/simulations/backtest", json=body)
    assert [one["reason"] for one in tested["skipped"]] == [line["reason"]]
    set_time(server, "2026-02-03T00:00:00Z")
    await use(server, "3", 2)
    (line,) = (await projected(server))["lineItems"]
    assert (line["total"], line["price"]["priceId"]) == (2.00, new)


async def test_a_carry_that_changes_no_price_is_priced_as_ever(server: Served) -> None:
    customer, _ = subscribed(server, stripe_price(server, unit_amount=7))
    made = await mapped(server, meterEventName="calls", priceConfig=FLAT)
    await put(server, "anna", stripeCustomerId=customer)
    await use(server, "1", 20)
    await pushed(server)
    change = {"meterEventName": "other", "cutover": "carry"}
    await ask(server, "PUT", f"/v1/mappings/{made['id']}", json=change)
    assert (await projected(server))["total"] == 2.00
