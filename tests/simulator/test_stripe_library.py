"""The simulator held against stripe-python, which was written by somebody else: its calls, its types, its errors.

A wrong shape of a request is found by the library's generated parameters, a wrong shape of an answer by its objects.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import stripe
import trio

from gateway.simulator.serving import Simulator
from tests.helpers.stripe_sim import LEGACY, served_simulator

# httpx deprecates how stripe-python 16.1 hands it a body.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
DAY_S = 86_400


@pytest.fixture
async def simulator(tmp_path: Path) -> AsyncIterator[Simulator]:
    async with served_simulator(tmp_path, webhook_secret="whsec_of_test") as running:
        yield running


@pytest.fixture
async def wire() -> AsyncIterator[stripe.HTTPXClient]:
    """The connections of one test's clients."""
    stripe.enable_telemetry = False
    client = stripe.HTTPXClient(timeout=10)
    yield client
    await client.close_async()
    client.close()


@pytest.fixture
def client(simulator: Simulator, wire: stripe.HTTPXClient) -> stripe.StripeClient:
    return client_of(simulator, wire, "sk_test_library")


def client_of(simulator: Simulator, wire: stripe.HTTPXClient, key: str) -> stripe.StripeClient:
    base = simulator.base_url
    bases = {"api": base, "meter_events": base}
    return stripe.StripeClient(key, base_addresses=bases, http_client=wire)


async def made(client: stripe.StripeClient, event_name: str = "calls") -> tuple[str, str]:
    """A meter and a customer."""
    meter = await client.v1.billing.meters.create_async(
        {
            "event_name": event_name,
            "display_name": event_name,
            "default_aggregation": {"formula": "sum"},
        }
    )
    customer = await client.v1.customers.create_async({"name": "Ada"})
    return meter.id, customer.id


async def test_meter_events_are_taken_once_and_summed(
    simulator: Simulator, client: stripe.StripeClient
) -> None:
    account = await client.v1.accounts.retrieve_current_async()
    assert account.id == simulator.account
    assert (await client.v1.balance.retrieve_async()).livemode is False
    meter, customer = await made(client)
    now_s = int(time.time())
    params: stripe.params.billing.MeterEventCreateParams = {
        "event_name": "calls",
        "identifier": "one",
        "timestamp": now_s,
        "payload": {"value": "5", "stripe_customer_id": customer},
    }
    event = await client.v1.billing.meter_events.create_async(params)
    assert (event.identifier, event.payload["value"], event.livemode) == ("one", "5", False)
    with pytest.raises(
        stripe.InvalidRequestError, match=r"already exists with identifier one\."
    ) as caught:
        await client.v1.billing.meter_events.create_async(params)
    assert (caught.value.http_status, caught.value.code) == (400, None)
    assert caught.value.headers["stripe-should-retry"] == "false"
    assert caught.value.request_id.startswith("req_")
    minute_s = now_s // 60 * 60
    found = await client.v1.billing.meters.event_summaries.list_async(
        meter, {"customer": customer, "start_time": minute_s, "end_time": minute_s + 60}
    )
    assert found.data[0].aggregated_value == 5.0
    adjusted = await client.v1.billing.meter_event_adjustments.create_async(
        {"event_name": "calls", "type": "cancel", "cancel": {"identifier": "one"}}
    )
    assert adjusted.status == "complete"
    listed = await client.v1.billing.meters.list_async({"status": "active"})
    assert [one.id for one in listed.data] == [meter]


async def test_a_connected_account_has_a_ledger_of_its_own(client: stripe.StripeClient) -> None:
    await made(client)
    there = await client.v1.billing.meters.list_async({}, {"stripe_account": "acct_other"})
    assert there.data == []
    with pytest.raises(stripe.PermissionError, match="does not have access"):
        await client.v1.billing.meters.list_async({}, {"stripe_account": "nonsense"})


async def test_the_stream_and_v2_events_are_taken(
    simulator: Simulator, client: stripe.StripeClient, wire: stripe.HTTPXClient
) -> None:
    meter, customer = await made(client)
    session = await client.v2.billing.meter_event_session.create_async()
    streaming = client_of(simulator, wire, session.authentication_token)
    payload = {"value": "5", "stripe_customer_id": customer}
    await streaming.v2.billing.meter_event_stream.create_async(
        {
            "events": [
                {"event_name": "calls", "identifier": f"s{n}", "payload": payload}
                for n in range(100)
            ]
        }
    )
    event = await client.v2.billing.meter_events.create_async(
        {"event_name": "calls", "identifier": "v2", "payload": payload}
    )
    assert event.identifier == "v2"
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await client.v2.billing.meter_events.create_async(
            {"event_name": "calls", "identifier": "v2", "payload": payload}
        )
    assert caught.value.code == "duplicate_meter_event"
    with pytest.raises(stripe.AuthenticationError):
        await client.v2.billing.meter_event_stream.create_async(
            {"events": [{"event_name": "calls", "payload": payload}]}
        )
    minute_s = int(time.time()) // 60 * 60
    found = await client.v1.billing.meters.event_summaries.list_async(
        meter, {"customer": customer, "start_time": minute_s - 60, "end_time": minute_s + 60}
    )
    assert found.data[0].aggregated_value == 505


async def test_an_expired_session_is_its_own_error(
    simulator: Simulator, client: stripe.StripeClient, wire: stripe.HTTPXClient
) -> None:
    session = await client.v2.billing.meter_event_session.create_async()
    simulator.app.state.world.offset_us += 901 * 1_000_000
    streaming = client_of(simulator, wire, session.authentication_token)
    payload = {"value": "1", "stripe_customer_id": "cus_a"}
    with pytest.raises(stripe.TemporarySessionExpiredError):
        await streaming.v2.billing.meter_event_stream.create_async(
            {"events": [{"event_name": "calls", "payload": payload}]}
        )


async def test_a_subscription_leads_to_its_meter_and_a_test_clock_to_its_invoice(
    client: stripe.StripeClient,
) -> None:
    meter, _ = await made(client)
    start_s = int(time.time()) // 60 * 60 - 40 * DAY_S
    clock = await client.v1.test_helpers.test_clocks.create_async({"frozen_time": start_s})
    customer = await client.v1.customers.create_async({"test_clock": clock.id})
    product = await client.v1.products.create_async({"name": "Calls"})
    price = await client.v1.prices.create_async(
        {
            "currency": "usd",
            "product": product.id,
            "billing_scheme": "tiered",
            "tiers_mode": "graduated",
            "tiers": [
                {"up_to": 10, "unit_amount_decimal": "1.5"},
                {"up_to": "inf", "unit_amount": 1, "flat_amount": 100},
            ],
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter},
        }
    )
    subscription = await client.v1.subscriptions.create_async(
        {"customer": customer.id, "items": [{"price": price.id}]}
    )
    item = await client.v1.subscription_items.retrieve_async(
        subscription["items"].data[0].id, {"expand": ["price.tiers", "subscription"]}
    )
    assert item.price.recurring is not None
    assert item.price.recurring.meter == meter
    assert item.price.tiers is not None
    assert [tier.up_to for tier in item.price.tiers] == [10, None]
    assert item.current_period_start == start_s
    await client.v1.billing.meter_events.create_async(
        {
            "event_name": "calls",
            "timestamp": start_s + 60,
            "payload": {"value": "13", "stripe_customer_id": customer.id},
        }
    )
    await client.v1.test_helpers.test_clocks.advance_async(
        clock.id, {"frozen_time": start_s + 35 * DAY_S}
    )
    assert (await client.v1.test_helpers.test_clocks.retrieve_async(clock.id)).status == "ready"
    invoices = await client.v1.invoices.list_async({"subscription": subscription.id})
    newest = invoices.data[0]
    assert newest.status_transitions.finalized_at is not None
    assert (newest.total, newest.lines.data[0].quantity) == (15 + 3 + 100, 13)
    assert newest.lines.data[0].parent is not None


async def test_usage_records_go_by_raw_requests_of_an_old_version(
    client: stripe.StripeClient,
) -> None:
    _, customer = await made(client)

    async def raw(method: str, path: str, **params: object) -> object:
        response = await client.raw_request_async(method, path, stripe_version=LEGACY, **params)
        return client.deserialize(response, api_mode="V1")

    price = await raw(
        "post",
        "/v1/prices",
        currency="usd",
        unit_amount=1,
        product_data={"name": "Calls"},
        recurring={"interval": "month", "usage_type": "metered"},
    )
    made_ = await raw(
        "post", "/v1/subscriptions", customer=customer, items=[{"price": price["id"]}]
    )
    path = f"/v1/subscription_items/{made_['items']['data'][0]['id']}"
    since_s = made_["current_period_start"]
    for quantity in (3, 7):
        sent = await raw(
            "post", f"{path}/usage_records", quantity=quantity, timestamp=since_s, action="set"
        )
        assert sent["quantity"] == quantity
    found = await raw("get", f"{path}/usage_record_summaries", limit=1)
    assert found["data"][0]["total_usage"] == 7
    with pytest.raises(stripe.InvalidRequestError, match="Unrecognized request URL"):
        await client.raw_request_async("post", f"{path}/usage_records", quantity=1, action="set")


async def test_faults_arrive_as_the_errors_that_stripe_gives(
    simulator: Simulator, client: stripe.StripeClient
) -> None:
    state = simulator.app.state
    for kind, expected, status in (
        ("rate_limited", stripe.RateLimitError, 429),
        ("error", stripe.APIError, 500),
        ("unavailable", stripe.APIError, 503),
        ("busy", stripe.APIError, 409),
        ("reset", stripe.APIConnectionError, None),
    ):
        state.add_fault(kind, "GET /v1/balance", count=1)
        with pytest.raises(expected) as caught:
            await client.v1.balance.retrieve_async()
        assert caught.value.http_status == status, kind
    assert (await client.v1.balance.retrieve_async()).object == "balance"
    state.add_fault("swallow", "GET /v1/balance", count=1)
    with trio.move_on_after(0.3) as scope:
        await client.v1.balance.retrieve_async()
    assert scope.cancelled_caught, "a swallowed answer never comes"


async def test_the_librarys_own_check_takes_the_signature_and_fetches_the_report(
    simulator: Simulator, client: stripe.StripeClient
) -> None:
    meter, _ = await made(client)
    endpoint = await client.v2.core.event_destinations.create_async(
        {
            "name": "reports",
            "type": "webhook_endpoint",
            "event_payload": "thin",
            "enabled_events": ["v1.billing.meter.error_report_triggered"],
            "webhook_endpoint": {"url": f"{simulator.base_url}/nowhere"},
            "include": ["webhook_endpoint.signing_secret"],
        }
    )
    assert endpoint.webhook_endpoint is not None
    secret = endpoint.webhook_endpoint.signing_secret
    assert secret is not None
    payload = {"value": "1", "stripe_customer_id": "cus_nobody"}
    await client.v1.billing.meter_events.create_async(
        {"event_name": "calls", "identifier": "lost", "payload": payload}
    )
    state = simulator.app.state
    state.world.offset_us += 11 * 1_000_000
    (webhook,) = state.due_webhooks(state.now_us())
    header = webhook.headers["stripe-signature"]
    notice = client.parse_event_notification(webhook.body, header, secret)
    assert notice.type == "v1.billing.meter.error_report_triggered"
    with pytest.raises(stripe.SignatureVerificationError):
        client.parse_event_notification(webhook.body + b" ", header, secret)
    event = await client.v2.core.events.retrieve_async(notice.id)
    report = event.data.reason.error_types[0]
    assert report.code == "meter_event_customer_not_found"
    assert report.sample_errors[0].request.identifier == "lost"
    assert event.related_object.id == meter
