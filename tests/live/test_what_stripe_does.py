"""What this project believes of Stripe, asked of Stripe itself (`make test-live`), and of the simulator in every run.

A test fails where the design rests on the answer; where either answer is borne, it settles the question and says so in
the run's summary.
"""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.billing import (
    AlreadyDelivered,
    Delivered,
    Destination,
    Proven,
    PushRequest,
    Refused,
    Resolved,
    Unresolved,
)
from engine.drivers.billing import api_version
from engine.drivers.calls import LEGACY_API_VERSION, NotTaken
from engine.drivers.outcomes import read_problem
from tests.live.stage import DAY_S, Json, Stage


def monthly(meter: Json | None, **more: Any) -> Json:
    """A price's recurring part: monthly, metered."""
    recurring = {"interval": "month", "usage_type": "metered"}
    if meter is not None:
        recurring["meter"] = meter["id"]
    return {"recurring": recurring, **more}


async def test_a_test_key_proves_to_be_one(stage: Stage) -> None:
    proven = await stage.billing.prove()
    assert isinstance(proven, Proven), proven
    # STRIPE_API_BASE may name a simulator, and that is then what the key is.
    assert proven.mode == ("sim" if proven.account.startswith("acct_sim") else "test"), proven
    now_s = stage.billing.stripe_now_s()
    assert now_s is not None
    assert abs(now_s - stage.target.now_s()) < 60, "Stripe's Date is its time"


async def test_an_event_counts_once_and_a_duplicate_is_refused_by_its_message(stage: Stage) -> None:
    meter = await stage.meter()
    customer = await stage.customer(await stage.clock())
    request = stage.request(meter, customer, "7")
    assert isinstance(await stage.send(request), Delivered)
    assert isinstance(await stage.send(request), Delivered), "the same key replays the receipt"
    again = await stage.send(request, attempt=1)
    assert isinstance(again, AlreadyDelivered), again
    stage.settle("the words for a duplicate", again.reason)
    waited_s = await stage.total_becomes(meter, customer, 7)
    assert waited_s is not None
    stage.settle("seconds until a summary shows an event", str(waited_s))


async def test_a_difference_may_be_negative_and_an_event_cancelled(stage: Stage) -> None:
    meter = await stage.meter()
    customer = await stage.customer(await stage.clock())
    first = stage.request(meter, customer, "10")
    assert isinstance(await stage.send(first), Delivered)
    assert isinstance(await stage.send(stage.request(meter, customer, "-3")), Delivered)
    assert await stage.total_becomes(meter, customer, 7) is not None
    assert isinstance(await stage.billing.cancel(first), Delivered)
    assert await stage.total_becomes(meter, customer, -3) is not None
    again = await stage.send(first, attempt=1)
    stage.settle("an identifier after its event was cancelled", type(again).__name__)


async def test_fifteen_digits_are_kept_and_more_are_refused(stage: Stage) -> None:
    meter = await stage.meter()
    customer = await stage.customer(await stage.clock())
    units = 123_456_789_012_345
    assert isinstance(await stage.send(stage.request(meter, customer, str(units))), Delivered)
    assert await stage.total_becomes(meter, customer, units) is not None
    params = {
        "event_name": meter["event_name"],
        "payload": {"stripe_customer_id": customer, "value": "1.5"},
    }
    try:
        await stage.post("/v1/billing/meter_events", params)
        stage.settle("a fraction as a value", "taken")
    except NotTaken as error:
        stage.settle("a fraction as a value", read_problem(error.answer).words())


@pytest.mark.parametrize(
    ("offset_s", "is_taken"), [(-34 * DAY_S, True), (-36 * DAY_S, False), (240, True), (420, False)]
)
async def test_a_timestamp_may_be_35_days_back_and_5_minutes_ahead(
    stage: Stage, offset_s: int, is_taken: bool
) -> None:
    meter = await stage.meter()
    customer = await stage.customer(await stage.clock())
    request = stage.request(meter, customer, "1", timestamp_s=stage.target.now_s() + offset_s)
    outcome = await stage.send(request)
    assert isinstance(outcome, Delivered if is_taken else Refused), outcome
    if isinstance(outcome, Refused):
        assert outcome.scope == "request"
        stage.settle(f"a timestamp {offset_s} s off", outcome.reason)


async def test_the_stream_takes_a_batch(stage: Stage) -> None:
    meter = await stage.meter()
    customer = await stage.customer(await stage.clock())
    requests = [stage.request(meter, customer, str(value), driver="stream") for value in (1, 2, 4)]
    outcomes = await stage.billing.send(requests, [0, 0, 0])
    assert [type(outcome) for outcome in outcomes] == [Delivered] * 3, outcomes
    outcomes = await stage.billing.send(requests, [1, 1, 1])
    stage.settle("a batch of duplicates on the stream", type(outcomes[0]).__name__)
    assert await stage.total_becomes(meter, customer, 7) is not None


async def test_items_prices_and_events_resolve_to_one_meter(stage: Stage) -> None:
    meter = await stage.meter()
    customer = await stage.customer(await stage.clock())
    price = await stage.price(
        **monthly(meter, unit_amount_decimal="0.5", billing_scheme="per_unit")
    )
    subscription = await stage.subscribe(customer, price["id"])
    item = subscription["items"]["data"][0]["id"]
    by_item = await stage.billing.resolve(Destination("meter", item=item))
    assert isinstance(by_item, Resolved), by_item
    assert (by_item.object_id, by_item.customer) == (meter["id"], customer)
    assert by_item.period_start_s is not None
    assert by_item.period_end_s is not None
    assert 27 * DAY_S < by_item.period_end_s - by_item.period_start_s < 32 * DAY_S
    for destination in (
        Destination("meter", price=price["id"], customer=customer),
        Destination("meter", event_name=meter["event_name"], customer=customer),
    ):
        found = await stage.billing.resolve(destination)
        assert isinstance(found, Resolved), found
        assert found.object_id == meter["id"]
    legacy = await stage.billing.resolve(Destination("usage_record", item=item))
    assert isinstance(legacy, Unresolved)
    assert "is on the meter" in legacy.reason
    record = PushRequest(
        driver="usage_record", identifier=f"{stage.mark}:record", value="1",
        timestamp_s=by_item.period_start_s, api_version=api_version("usage_record"), item=item,
    )  # fmt: skip
    outcome = await stage.send(record)
    assert isinstance(outcome, Refused), outcome
    assert outcome.scope == "target"
    stage.settle("a usage record for an item on a meter", outcome.reason)


async def test_an_archived_meter_and_an_unknown_one_are_not_resolved(stage: Stage) -> None:
    meter = await stage.meter()
    await stage.post(f"/v1/billing/meters/{meter['id']}/deactivate", {})
    found = await stage.billing.resolve(Destination("meter", event_name=meter["event_name"]))
    assert isinstance(found, Unresolved)
    assert found.is_stopped
    customer = await stage.customer(await stage.clock())
    outcome = await stage.send(stage.request(meter, customer, "1"))
    stage.settle("an event for an archived meter", f"{type(outcome).__name__} {outcome[0]}")
    await stage.post(f"/v1/billing/meters/{meter['id']}/reactivate", {})
    nowhere = await stage.billing.resolve(Destination("meter", event_name=f"{stage.mark}_none"))
    assert isinstance(nowhere, Unresolved)
    assert not nowhere.is_stopped


async def test_whether_usage_records_are_still_taken(stage: Stage) -> None:
    question = "usage records of legacy prices"
    try:
        price = await stage.price(
            LEGACY_API_VERSION, **monthly(None, unit_amount=5, billing_scheme="per_unit")
        )
    except NotTaken as error:
        stage.settle(question, f"no new legacy price: {read_problem(error.answer).words()}")
        assert stage.target.name == "stripe", "the simulator has them"
        return
    customer = await stage.customer(await stage.clock())
    subscription = await stage.subscribe(customer, price["id"], LEGACY_API_VERSION)
    item = subscription["items"]["data"][0]["id"]
    resolved = await stage.billing.resolve(Destination("usage_record", item=item))
    assert isinstance(resolved, Resolved), resolved
    assert resolved.period_start_s is not None
    record = PushRequest(
        driver="usage_record", identifier=f"{stage.mark}:total", value="70",
        timestamp_s=resolved.period_start_s, api_version=LEGACY_API_VERSION, item=item,
    )  # fmt: skip
    outcome = await stage.send(record)
    stage.settle(question, type(outcome).__name__)
    if isinstance(outcome, Delivered):
        # `set` at one time is the total, however often it comes.
        await stage.send(record, attempt=1)
        summary = await stage.driver.get_usage_summary(item, resolved.period_start_s)
        assert summary.units == 70
    else:
        assert isinstance(outcome, Refused), outcome
        assert outcome.scope == "target"


async def test_whether_each_tier_is_a_rounded_line_of_its_own(stage: Stage) -> None:
    meter = await stage.meter()
    clock = await stage.clock()
    customer = await stage.customer(clock)
    # Twenty units at 0.05 cents: 1 cent as a whole; 0.5 and 0.5, each rounded up, are 2.
    price = await stage.price(
        **monthly(
            meter,
            billing_scheme="tiered",
            tiers_mode="graduated",
            tiers=[
                {"up_to": 10, "unit_amount_decimal": "0.05"},
                {"up_to": "inf", "unit_amount_decimal": "0.05"},
            ],
        )
    )
    subscription = await stage.subscribe(customer, price["id"])
    item = subscription["items"]["data"][0]["id"]
    resolved = await stage.billing.resolve(Destination("meter", item=item))
    assert isinstance(resolved, Resolved), resolved
    assert resolved.period_end_s is not None
    assert isinstance(await stage.send(stage.request(meter, customer, "20")), Delivered)
    assert await stage.total_becomes(meter, customer, 20) is not None
    await stage.driver.advance_test_clock(clock, resolved.period_end_s + 2 * 3600)
    invoices = await stage.get("/v1/invoices", {"subscription": subscription["id"], "limit": 10})
    totals = sorted(int(invoice["total"]) for invoice in invoices["data"])
    lines = [
        [(line["quantity"], line["amount"]) for line in invoice["lines"]["data"]]
        for invoice in invoices["data"]
    ]
    stage.settle("20 units, graduated, 0.05 cents in both tiers", f"totals {totals}, lines {lines}")
    assert totals[-1] in {1, 2}, totals
