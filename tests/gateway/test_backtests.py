"""Backtests over HTTP: agreement with projections, who wins and loses, what is left out, bounds, and a slow Stripe."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from tests.helpers.priced import (
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
CHEAPER = FLAT | {"unitPrice": "0.09", "minimumCharge": 5}


@pytest.fixture
async def server() -> AsyncIterator[Served]:
    async with served(stripe={}) as running:
        await proven(running)
        yield running


async def compared(server: Served, status: int = 200, **body: Any) -> Any:
    params = {"numbers": "string"} if body.pop("as_text", False) else {}
    content = TENANT | {"since": "2025-01-01"} | body
    return await ask(
        server, "POST", "/v1/simulations/backtest", status, json=content, params=params
    )


async def test_who_would_pay_less_and_who_more(server: Served) -> None:
    await mapped(server, priceConfig=FLAT)
    await use(server, "1", 1000, "anna")
    await use(server, "2", 10, "bert")
    await use(server, "3", 500, "same")
    found = await compared(server, priceConfig={"calls": CHEAPER})
    assert found["winners"] == [
        {"customerRef": "anna", "today": 100.0, "candidate": 90.0, "difference": -10.0},
        {"customerRef": "same", "today": 50.0, "candidate": 45.0, "difference": -5.0},
    ]
    assert found["losers"] == [
        {"customerRef": "bert", "today": 1.0, "candidate": 5.0, "difference": 4.0}
    ]
    assert found["total"] == {"today": 151.0, "candidate": 140.0, "difference": -11.0}
    assert found["months"] == [
        {"month": "2026-01", "today": 151.0, "candidate": 140.0, "difference": -11.0}
    ]
    assert (found["same"], found["counters"], found["complete"]) == (0, 3, True)
    bands = {
        (band["abovePercent"], band["upToPercent"]): band["customers"]
        for band in found["distribution"]
    }
    assert (bands[-20, -10], bands[50, None], sum(bands.values())) == (2, 1, 3)
    (priced,) = found["prices"]
    assert priced["today"][0]["source"] == "mapping"
    assert priced["candidate"]["minimumCharge"] == 5
    some = await compared(server, priceConfig={"calls": CHEAPER}, limit=1)
    assert (len(some["winners"]), some["winnersTotal"], some["losersTotal"]) == (1, 2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
async def test_todays_prices_reproduce_past_projections_with_zero_difference(
    server: Served, seed: int
) -> None:
    """Many customers and months, fractions that round, own prices at Stripe, a daily metric and a max."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    fine = {"model": "graduated", "currency": "USD"}
    fine |= {"tiers": [{"upTo": 7, "unitPrice": "0.0333"}, {"upTo": None, "unitPrice": "0.0077"}]}
    own = stripe_price(server, unit_amount_decimal="1.37")
    stripe_customer, item = subscribed(server, own)
    set_time(server, "2025-10-01T00:00:00Z")
    await mapped(server, priceId=stripe_price(server, unit_amount_decimal="0.777"))
    await mapped(server, "tokens", priceConfig=fine)
    await mapped(server, "daily", priceConfig=fine, period="day")
    await mapped(server, "seats", priceConfig=FLAT, aggregation="max")
    await put(server, "anna", stripeCustomerId=stripe_customer, subscriptionItems={"calls": item})
    refs = ["anna", "bert", "carl"]
    days: set[tuple[int, int]] = set()
    for number, month in enumerate((10, 11, 12)):
        for event in range(8):
            day = rng.randint(1, 28)
            days.add((month, day))
            set_time(server, f"2025-{month}-{day:02d}T{rng.randint(0, 23):02d}:00:00Z")
            metric = rng.choice(["calls", "tokens", "daily", "seats"])
            quantity = f"{rng.randint(0, 3000)}.{rng.randint(0, 999_999):06d}"
            key = f"{number}-{event}"
            await use(server, key, quantity, rng.choice(refs), metric=metric)
    await ask(server, "POST", "/v1/adjustments/approve", json=TENANT)
    set_time(server, "2026-01-10T00:00:00Z")
    wanted = Decimal(0)
    seen: set[tuple[str, str, str]] = set()
    starts = [f"2025-{month}-01" for month in (10, 11, 12)]
    starts += [f"2025-{month}-{day:02d}" for month, day in sorted(days)]
    for start in starts:
        for ref in refs:
            params = {"numbers": "string"}
            found = await projected(server, ref, periodStart=start, params=params)
            for line in found["lineItems"]:
                place = (ref, line["metric"], line["period"]["start"])
                if place not in seen and line["used"] != "0":
                    seen.add(place)
                    assert line["total"] is not None, line
                    wanted += Decimal(line["total"])
    found = await compared(server, priceConfig={"tokens": fine}, as_text=True)
    assert found["total"]["difference"] == "0.00"
    assert (found["winners"], found["losers"], found["complete"]) == ([], [], True)
    assert Decimal(found["total"]["today"]) == Decimal(found["total"]["candidate"]) == wanted > 0
    assert sum(Decimal(one["today"]) for one in found["months"]) == wanted
    assert found["counters"] >= len(seen)
    in_one = Decimal(0)
    for ref in refs:
        whole = {"periodStart": "2025-10-01", "periodEnd": "2026-01-01"}
        answer = await projected(server, ref, params={"numbers": "string"}, **whole)
        assert len(answer["lineItems"]) == 92 + 3 * 3
        in_one += Decimal(answer["total"])
    assert in_one == wanted, "the same periods, asked for at once"


async def test_each_period_is_rounded_as_its_own_line(server: Served) -> None:
    """Three days of 0.5 cents each: rounded one by one 0.03, rounded together 0.02."""
    await mapped(server, period="day", priceConfig=FLAT | {"unitPrice": "0.005"})
    for day in (1, 2, 3):
        set_time(server, f"2026-01-{day:02d}T12:00:00Z")
        await use(server, str(day), 1)
    set_time(server, "2026-01-31T10:00:00Z")
    found = await compared(server, priceConfig=FLAT | {"unitPrice": "0.004"})
    assert found["total"] == {"today": 0.03, "candidate": 0.0, "difference": -0.03}


async def test_a_customers_own_price_is_todays_price(server: Served) -> None:
    customer, item = subscribed(server, stripe_price(server, unit_amount=7))
    await mapped(server, priceConfig=FLAT)
    await put(server, "anna", stripeCustomerId=customer, subscriptionItems={"calls": item})
    await use(server, "1", 10, "anna")
    await use(server, "2", 10, "bert")
    found = await compared(server, priceConfig=FLAT | {"unitPrice": "0.08"})
    assert [one["customerRef"] for one in found["winners"]] == ["bert"]
    assert [(one["customerRef"], one["today"]) for one in found["losers"]] == [("anna", 0.7)]
    assert {one["source"] for one in found["prices"][0]["today"]} == {"subscriptionItem", "mapping"}


async def test_what_has_no_price_is_left_out_and_said(server: Served) -> None:
    await mapped(server, priceConfig=FLAT)
    await mapped(server, "euros", priceConfig=FLAT | {"currency": "EUR"})
    await use(server, "1", 10)
    await use(server, "2", 10, metric="unmapped")
    await use(server, "3", 10, metric="euros")
    found = await compared(server, priceConfig={"calls": CHEAPER, "nobodys": CHEAPER})
    assert found["total"]["today"] == 1.0
    assert (found["complete"], found["counters"]) == (False, 1)
    by_metric = {one["metrics"][0]: one for one in found["skipped"]}
    assert by_metric.keys() == {"unmapped", "euros"}
    assert "no active mapping" in by_metric["unmapped"]["reason"]
    assert "EUR" in by_metric["euros"]["reason"]
    assert (by_metric["euros"]["counters"], by_metric["euros"]["customers"]) == (1, 1)
    assert found["unusedMetrics"] == ["nobodys"]
    only = await compared(server, priceConfig={"unmapped": CHEAPER}, customerRef="nobody")
    assert (only["complete"], only["total"]["today"]) == (True, 0)


async def test_when_nothing_can_be_compared_there_is_no_total(server: Served) -> None:
    await use(server, "1", 10)
    found = await compared(server, priceConfig={"calls": FLAT})
    assert found["total"] == {"today": None, "candidate": None, "difference": None}
    assert not found["complete"]


async def test_only_periods_that_begin_in_the_range_and_only_the_customer_count(
    server: Served,
) -> None:
    await mapped(server, priceConfig=FLAT)
    set_time(server, "2025-11-15T00:00:00Z")
    await use(server, "1", 10)
    set_time(server, "2025-12-15T00:00:00Z")
    await use(server, "2", 20)
    await use(server, "3", 40, "bert")
    set_time(server, "2026-01-15T00:00:00Z")
    # The server was started later, and had closed these months.
    await ask(server, "POST", "/v1/adjustments/approve", json=TENANT)
    for since, until, ref, today in (
        ("2025-11-01", "2025-12-01", None, 1.0),
        ("2025-11-02", "2025-12-01", None, 0),
        ("2025-11-01", "2025-12-02", None, 7.0),
        ("2025-12-01T00:00:00Z", None, "bert", 4.0),
        ("-P90D", None, "anna", 3.0),
    ):
        more = {} if until is None else {"until": until}
        more |= {} if ref is None else {"customerRef": ref}
        found = await compared(server, since=since, priceConfig=FLAT, **more)
        assert found["total"]["today"] == today, (since, until, ref)
        assert found["total"]["difference"] == 0


async def test_another_tenants_usage_is_in_no_backtest(server: Served) -> None:
    await mapped(server, priceConfig=FLAT)
    await use(server, "1", 10)
    await use(server, "2", 999, tenantId="umbra")
    found = await compared(server, priceConfig=FLAT)
    assert (found["total"]["today"], found["counters"]) == (1.0, 1)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"priceConfig": {}}, "priceConfig"),
        ({"priceConfig": [FLAT]}, "priceConfig"),
        ({"priceConfig": FLAT | {"unitPrice": -1}}, "priceConfig.unitPrice"),
        ({"priceConfig": {"calls": FLAT | {"unitPrice": None}}}, "priceConfig.calls.unitPrice"),
        ({"priceConfig": {"a": FLAT, "b": FLAT | {"currency": "EUR"}}}, "priceConfig"),
        ({"priceConfig": {"a": FLAT}, "metric": "a"}, "metric"),
        ({"priceConfig": FLAT, "since": "2027-01-01"}, "since"),
        ({"priceConfig": FLAT, "since": "yesterday"}, "since"),
        ({"priceConfig": FLAT, "until": "2026-02-30"}, "until"),
        ({"priceConfig": FLAT, "limit": -1}, "limit"),
        ({}, "priceConfig"),
    ],
)
async def test_what_makes_no_sense_is_named(
    server: Served, body: dict[str, Any], field: str
) -> None:
    await mapped(server, priceConfig=FLAT)
    problem = await compared(server, 400, **body)
    assert problem["errors"][0]["field"] == field


async def test_a_single_price_needs_to_say_whose_it_is_when_there_are_several(
    server: Served,
) -> None:
    await mapped(server, priceConfig=FLAT)
    await mapped(server, "tokens", priceConfig=TIERED)
    await use(server, "1", 10)
    problem = await compared(server, 400, priceConfig=FLAT)
    assert problem["errors"][0]["field"] == "metric"
    found = await compared(server, priceConfig=CHEAPER, metric="calls")
    assert found["total"]["candidate"] == 5.0


async def test_a_stripe_that_does_not_answer_is_a_reason_and_no_zero(server: Served) -> None:
    await mapped(server, priceId=stripe_price(server, unit_amount=7))
    await use(server, "1", 10)
    assert server.stripe is not None
    server.stripe.add_fault("unavailable")
    found = await compared(server, priceConfig={"calls": FLAT})
    assert found["total"]["today"] is None
    assert "the price is not known" in found["skipped"][0]["reason"]


async def test_a_range_with_too_many_totals_is_refused(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.actors.backtests.COUNTERS_MAX", 1)
    await mapped(server, priceConfig=FLAT)
    await use(server, "1", 10, "anna")
    await compared(server, priceConfig=FLAT)
    await use(server, "2", 10, "bert")
    problem = await compared(server, 400, priceConfig=FLAT)
    assert problem["errors"][0]["field"] == "since"
