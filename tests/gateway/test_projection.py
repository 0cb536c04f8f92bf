"""The projection over HTTP: whose price it is, what is said when there is none, estimates, the past, exact amounts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.actors.price_book import FRESH_US, KnownPrice
from engine.actors.projections import line_of
from engine.core.push_plan import billable_units
from engine.pricing import read_price
from engine.pricing.invoice import LineItem
from tests.helpers.priced import (
    STRIPE_TIERED,
    TENANT,
    TIERED,
    ask,
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


def fault(server: Served, **fields: Any) -> None:
    assert server.stripe is not None
    server.stripe.add_fault(**fields)


def mended(server: Served) -> None:
    assert server.stripe is not None
    server.stripe.clear_faults()


async def test_the_worked_case_costs_what_it_costs(server: Served) -> None:
    await mapped(server, priceConfig=TIERED)
    await use(server, "1", 25_000)
    found = await projected(server)
    (line,) = found["lineItems"]
    assert (line["quantity"], line["total"], found["total"]) == (25_000, 220.00, 220.00)
    amounts = [(one["from"], one["upTo"], one["quantity"], one["amount"]) for one in line["tiers"]]
    assert amounts == [(0, 10_000, 10_000, 100), (10_000, 50_000, 15_000, 120)]
    assert line["unitPrice"] == 0.0088
    assert (found["subtotal"], found["credits"], found["tax"]) == (220, 0, 0)
    assert (found["currency"], found["complete"], found["unpriced"]) == ("USD", True, [])
    assert found["periodStart"] == "2026-01-01T00:00:00.000Z"
    assert found["freshness"]["lastUpdate"] is not None


async def test_amounts_are_exact_in_the_currencys_digits_and_texts_on_demand(
    server: Served,
) -> None:
    await mapped(server, priceConfig={"model": "flat", "currency": "KWD", "unitPrice": "0.0005"})
    await use(server, "1", "999999999999999.999999")
    response = await server.client.post(
        "/v1/usage/projection", json={"tenantId": "acme", "customerRef": "anna"}
    )
    assert '"total":500000000000.000,' in response.text
    found = await projected(server, params={"numbers": "string"})
    (line,) = found["lineItems"]
    assert (line["total"], line["used"]) == ("500000000000.000", "999999999999999.999999")
    assert line["price"]["config"]["unitPrice"] == "0.0005"


async def test_a_metric_without_a_price_is_listed_with_a_reason_and_never_a_zero(
    server: Served,
) -> None:
    await mapped(server, priceConfig=FLAT)
    await mapped(server, "seats")
    await use(server, "1", 10)
    await use(server, "2", 3, metric="seats")
    await use(server, "3", 5, metric="unmapped")
    found = await projected(server)
    by_metric = {line["metric"]: line for line in found["lineItems"]}
    assert by_metric["calls"]["total"] == 1.00
    for metric, words in (("seats", "names no price"), ("unmapped", "no active mapping")):
        line = by_metric[metric]
        assert (line["total"], line["unitPrice"], line["price"]) == (None, None, None)
        assert words in line["reason"]
        assert "projected" not in line
    assert (found["complete"], found["unpriced"]) == (False, ["seats", "unmapped"])
    assert found["total"] == 1.00


async def test_without_any_price_there_is_no_total(server: Served) -> None:
    await use(server, "1", 10)
    found = await projected(server)
    assert (found["total"], found["subtotal"], found["currency"]) == (None, None, None)
    assert found["reason"]
    assert not found["complete"]
    assert "projected" not in found
    nobody = await projected(server, "nobody")
    assert (nobody["lineItems"], nobody["total"]) == ([], None) or all(
        line["total"] is None for line in nobody["lineItems"]
    )


async def test_the_mappings_price_at_stripe_is_used_and_named(server: Served) -> None:
    price = stripe_price(server, **STRIPE_TIERED)
    await mapped(server, priceId=price, priceConfig=FLAT)
    await use(server, "1", 25_000)
    (line,) = (await projected(server))["lineItems"]
    assert line["total"] == 220.00
    told = line["price"]
    assert (told["source"], told["priceId"], told["unit"]) == ("stripePrice", price, "billable")
    assert (told["staleBecause"], told["subscriptionItemId"]) == (None, None)
    assert told["readAt"] is not None
    assert told["config"]["model"] == "graduated"


async def test_the_customers_own_subscription_item_wins_over_the_mapping(server: Served) -> None:
    of_mapping = stripe_price(server, unit_amount=1)
    own = stripe_price(server, unit_amount=7)
    customer, item = subscribed(server, own)
    await mapped(server, priceId=of_mapping, priceConfig=FLAT)
    await put(server, "anna", stripeCustomerId=customer, subscriptionItems={"calls": item})
    await use(server, "1", 10)
    await use(server, "2", 10, "bert")
    (line,) = (await projected(server))["lineItems"]
    assert (line["total"], line["price"]["source"]) == (0.70, "subscriptionItem")
    assert (line["price"]["priceId"], line["price"]["subscriptionItemId"]) == (own, item)
    (other,) = (await projected(server, "bert"))["lineItems"]
    assert (other["total"], other["price"]["source"]) == (0.10, "stripePrice")


async def test_the_mappings_own_configuration_is_only_for_those_without_a_subscription(
    server: Served,
) -> None:
    customer, item = subscribed(server, stripe_price(server, unit_amount=7))
    await mapped(server, priceConfig=FLAT, meterEventName="calls")
    await put(server, "anna", stripeCustomerId=customer, subscriptionItems={"calls": item})
    await put(server, "carl", stripeCustomerId=customer, subscriptionItems={"calls": "si_gone"})
    for key, ref in enumerate(("anna", "bert", "carl")):
        await use(server, str(key), 10, ref)
    found = {
        ref: (await projected(server, ref))["lineItems"][0] for ref in ("anna", "bert", "carl")
    }
    assert (found["anna"]["total"], found["anna"]["price"]["source"]) == (0.70, "subscriptionItem")
    assert (found["bert"]["total"], found["bert"]["price"]["source"]) == (1.00, "mapping")
    assert (found["carl"]["total"], found["carl"]["price"]) == (None, None)
    assert "si_gone is not at Stripe" in found["carl"]["reason"]


async def test_a_price_at_stripe_is_for_whole_billable_units(server: Served) -> None:
    price = stripe_price(server, unit_amount=100)
    await mapped(server, priceId=price, stripeScale="0.001")
    await use(server, "1", "2999.5")
    (line,) = (await projected(server))["lineItems"]
    assert (line["used"], line["quantity"], line["total"]) == (2999.5, 2, 2.00)
    assert (line["price"]["unit"], line["price"]["stripeScale"]) == ("billable", "0.001")


async def test_while_stripe_is_down_the_last_known_price_is_given_with_its_age(
    server: Served,
) -> None:
    price = stripe_price(server, unit_amount=7)
    await mapped(server, priceId=price)
    await use(server, "1", 10)
    assert (await projected(server))["total"] == 0.70
    fault(server, kind="unavailable")
    server.clock.us += FRESH_US + 60_000_000
    found = await projected(server)
    (line,) = found["lineItems"]
    assert line["total"] == 0.70
    assert line["price"]["ageSeconds"] >= 3660
    assert line["price"]["staleBecause"]
    mended(server)
    server.clock.us += 60_000_000
    (line,) = (await projected(server))["lineItems"]
    assert (line["price"]["staleBecause"], line["price"]["ageSeconds"]) == (None, 0)


async def test_a_price_that_was_never_read_is_a_reason_and_asked_for_again(server: Served) -> None:
    price = stripe_price(server, unit_amount=7)
    fault(server, kind="unavailable")
    await mapped(server, priceId=price)
    await use(server, "1", 10)
    found = await projected(server)
    assert found["total"] is None
    assert "the price is not known" in found["lineItems"][0]["reason"]
    mended(server)
    server.clock.us += 60_000_000
    assert (await projected(server))["total"] == 0.70


async def test_a_price_that_is_gone_is_a_reason_and_not_the_last_known(server: Served) -> None:
    await mapped(server, priceId="price_none", priceConfig=FLAT)
    await use(server, "1", 10)
    (line,) = (await projected(server))["lineItems"]
    assert line["total"] is None
    assert "price price_none is not at Stripe" in line["reason"]


async def test_without_a_key_a_price_at_stripe_is_a_reason() -> None:
    async with served() as server:
        await mapped(server, priceId="price_1")
        await use(server, "1", 10)
        (line,) = (await projected(server))["lineItems"]
        assert line["total"] is None
        assert "no key is set" in line["reason"]


async def test_lines_in_two_currencies_have_no_sum(server: Served) -> None:
    await mapped(server, priceConfig=FLAT)
    await mapped(server, "seats", priceConfig=FLAT | {"currency": "EUR"})
    await use(server, "1", 10)
    found = await projected(server)
    assert (found["total"], found["complete"]) == (None, False)
    assert "EUR and USD" in found["reason"]
    assert {line["total"] for line in found["lineItems"]} == {1.00, 0.00}


async def test_a_running_period_is_extrapolated_and_one_that_is_over_is_not(
    server: Served,
) -> None:
    await mapped(server, priceConfig=FLAT)
    set_time(server, "2026-02-01T12:00:00Z")
    for day in range(1, 11):
        set_time(server, f"2026-02-{day:02d}T12:00:00Z")
        await use(server, str(day), 100)
    set_time(server, "2026-02-11T00:00:00Z")
    found = await projected(server)
    (line,) = found["lineItems"]
    assert (line["total"], line["projected"]["method"]) == (100.00, "runRate")
    assert line["projected"]["quantity"] == pytest.approx(2_800, abs=0.001)
    assert line["projected"]["total"] == 280.00
    assert line["projected"]["low"]["total"] == line["projected"]["high"]["total"] == 280.00
    whole = found["projected"]
    assert (whole["total"], whole["low"], whole["high"]) == (280.00, 280.00, 280.00)
    assert whole["quantity"] == line["projected"]["quantity"]
    set_time(server, "2026-03-02T00:00:00Z")
    over = await projected(server, periodStart="2026-02-01", periodEnd="2026-03-01")
    assert over["total"] == 100.00
    assert "projected" not in over
    assert "projected" not in over["lineItems"][0]


async def test_with_two_full_weeks_the_estimate_has_the_shape_of_the_week(server: Served) -> None:
    """2026-02-02 is a Monday; two weeks of ten on workdays and one at the weekend, then Monday the 16th."""
    await mapped(server, priceConfig={"model": "flat", "currency": "USD", "unitPrice": 1})
    for number, units in enumerate([10, 10, 10, 10, 10, 1, 1] * 2):
        set_time(server, f"2026-02-{number + 2:02d}T09:00:00Z")
        await use(server, str(number), units)
    set_time(server, "2026-02-16T00:00:00Z")
    (line,) = (await projected(server))["lineItems"]
    estimate = line["projected"]
    assert (estimate["method"], estimate["weeks"]) == ("weekdays", 2)
    assert (line["total"], estimate["total"]) == (104.00, 104.00 + 10 * 10 + 3 * 1)


async def test_a_question_about_the_past_is_answered_from_what_was_known_then(
    server: Served,
) -> None:
    await mapped(server, priceConfig=FLAT)
    await use(server, "1", 10)
    position = server.gateway.meter.started.writer.published_sequence - 1
    await use(server, "2", 10)
    assert (await projected(server))["total"] == 2.00
    then = await projected(server, params={"asOf": str(position)})
    assert (then["total"], then["asOf"]["position"]) == (1.00, position)


async def test_approved_corrections_are_priced_and_waiting_ones_are_counted(
    server: Served,
) -> None:
    await mapped(server, priceConfig=FLAT)
    await use(server, "1", 10)
    await use(server, "late", 5, ts="2026-01-02T00:00:00Z")
    (line,) = (await projected(server))["lineItems"]
    assert (line["total"], line["pendingLate"]) == (1.00, 1)
    await ask(server, "POST", "/v1/adjustments/approve", json={"tenantId": "acme"})
    (line,) = (await projected(server))["lineItems"]
    assert (line["total"], line["pendingLate"]) == (1.50, 0)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"periodStart": "2026-02-30"}, "periodStart"),
        ({"periodStart": "2026-1-1"}, "periodStart"),
        ({"periodStart": "2027-01-01"}, "periodStart"),
        ({"periodEnd": "2026-02-02"}, "periodEnd"),
        ({"periodStart": "2025-12-01", "periodEnd": "2025-12-01"}, "periodEnd"),
        ({"periodStart": "2024-12-01", "periodEnd": "2026-02-01"}, "periodEnd"),
        ({"customer": "x"}, "customer"),
        ({"customerRef": ""}, "customerRef"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(
    server: Served, body: dict[str, Any], field: str
) -> None:
    await mapped(server, priceConfig=FLAT)
    await use(server, "1", 10)
    problem = await projected(server, status=400, **body)
    assert problem["errors"][0]["field"] == field


async def test_a_range_has_every_period_that_begins_in_it(server: Served) -> None:
    await mapped(server, priceConfig=FLAT)
    await mapped(server, "daily", period="day", priceConfig=FLAT | {"minimumCharge": 1})
    for month, day in ((1, 30), (2, 1), (2, 3)):
        set_time(server, f"2026-{month:02d}-{day:02d}T10:00:00Z")
        await use(server, f"c{day}", 10)
        await use(server, f"d{day}", 100, metric="daily")
    set_time(server, "2026-02-04T10:00:00Z")
    found = await projected(server, periodStart="2026-01-30", periodEnd="2026-02-04")
    lines = [
        (one["metric"], one["period"]["start"][5:10], one["total"]) for one in found["lineItems"]
    ]
    assert lines == [
        ("calls", "02-01", 2.0),
        ("daily", "01-30", 10.0),
        ("daily", "01-31", 1.0),
        ("daily", "02-01", 10.0),
        ("daily", "02-02", 1.0),
        ("daily", "02-03", 10.0),
    ]
    assert (found["total"], found["periodStart"][:10], found["periodEnd"][:10]) == (
        34.0,
        "2026-01-30",
        "2026-02-04",
    )
    assert ["projected" in one for one in found["lineItems"]] == [True] + [False] * 5
    position = server.gateway.meter.started.writer.published_sequence - 1
    again = await projected(
        server, periodStart="2026-01-30", periodEnd="2026-02-04", params={"asOf": str(position)}
    )
    assert again["total"] == 34.0


async def test_a_subscriptions_period_is_the_invoices_period(server: Served) -> None:
    await mapped(server, period="subscription", priceConfig=FLAT)
    await put(server, "anna", billingAnchor="2026-01-15T09:30:00Z")
    await use(server, "1", 10)
    found = await projected(server)
    assert found["periodStart"] == "2026-01-15T09:30:00.000Z"
    assert found["periodEnd"] == "2026-02-15T09:30:00.000Z"
    again = await projected(server, periodStart="2026-01-15", periodEnd="2026-02-15")
    assert again["lineItems"][0]["period"] == found["lineItems"][0]["period"]


@settings(max_examples=100, deadline=None)
@given(
    micros=st.integers(-(10**12), 10**24),
    scale=st.sampled_from(["1", "0.001", "1000", "0.333333333333"]),
    tenths=st.integers(0, 10**6),
)
def test_the_line_is_the_price_of_what_stripe_is_sent(micros: int, scale: str, tenths: int) -> None:
    config = read_price({"model": "flat", "currency": "USD", "unitPrice": f"0.{tenths:06d}"})
    line = line_of(KnownPrice(config, "stripePrice", scale), micros, 0, 10**9, "calls")
    assert isinstance(line, LineItem)
    assert line.quantity == billable_units(micros, scale)
    as_used = line_of(KnownPrice(config, "mapping", None), micros, 0, 10**9, "calls")
    assert isinstance(as_used, LineItem)
    assert as_used.quantity == Decimal(micros).scaleb(-6)
    exact = json.loads(f"{line.subtotal}", parse_float=Decimal)
    assert exact == line.subtotal


async def test_late_events_that_do_not_count_are_in_no_estimate(server: Served) -> None:
    """Whether they wait or were reverted; what is approved counts, and is use like any other."""
    await mapped(server, priceConfig={"model": "flat", "currency": "USD", "unitPrice": 1})
    for day in range(1, 21):
        set_time(server, f"2026-02-{day:02d}T09:00:00Z")
        await use(server, str(day), 10)
    set_time(server, "2026-02-21T00:00:00Z")
    before = (await projected(server))["projected"]
    assert (before["total"], before["high"]) == (280.00, 280.00)
    ids = []
    for number in (1, 2):
        sent = TENANT | {"metric": "calls", "customerRef": "anna", "quantity": 1_000_000}
        answer = await server.ingest(
            sent | {"idempotencyKey": f"late-{number}", "ts": f"2026-02-{number + 9}T00:00:00Z"}
        )
        ids.append(answer["results"][0]["adjustmentId"])
        position = server.gateway.meter.started.writer.published_sequence - 1
        now = await projected(server)
        assert (now["total"], now["projected"]) == (200.00, before)
        then = await projected(server, params={"asOf": str(position)})
        assert then["projected"] == before
        if number == 1:
            await ask(server, "POST", f"/v1/adjustments/{ids[0]}/revert", json={})
            assert (await projected(server))["projected"] == before
    await ask(server, "POST", f"/v1/adjustments/{ids[1]}/approve", json={})
    found = await projected(server)
    assert found["total"] == 1_000_200.00
    assert found["projected"]["total"] > 1_400_000
