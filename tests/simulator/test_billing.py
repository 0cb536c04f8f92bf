"""Prices, subscriptions, invoices, usage records and test clocks at the simulator."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.simulator.amounts import line_amount
from gateway.simulator.spans import boundary, number_at
from tests.helpers.stripe_sim import LEGACY, START_S, Sim, code, message

DAY_S = 86_400
HOUR_S = 3600
JULY_S = START_S + 30 * DAY_S


def price_of(sim: Sim, meter: Any, **more: str) -> Any:
    fields = {
        "currency": "usd",
        "unit_amount": "10",
        "product_data[name]": "Calls",
        "recurring[interval]": "month",
        "recurring[usage_type]": "metered",
        **more,
    }
    if meter is not None:
        fields["recurring[meter]"] = meter["id"]
    return sim.made("/v1/prices", fields, version="" if meter is not None else LEGACY)


def subscribe(sim: Sim, customer: str, *prices: Any, **more: str) -> Any:
    items = {f"items[{number}][price]": price["id"] for number, price in enumerate(prices)}
    return sim.made("/v1/subscriptions", {"customer": customer, **items, **more})


def invoices(sim: Sim, customer: str) -> list[Any]:
    """(reason, status, quantities, amount) of each invoice, oldest first."""
    data = sim.get("/v1/invoices", {"customer": customer}).json()["data"]
    return [
        (
            one["billing_reason"],
            one["status"],
            [line["quantity"] for line in one["lines"]["data"]],
            one["total"],
        )
        for one in reversed(data)
    ]


TIERS = [(5, "7"), (10, "6.50"), (None, "6")]


@pytest.mark.parametrize(
    ("mode", "quantity", "cents"),
    [
        ("volume", 1, 700),
        ("volume", 5, 3500),
        ("volume", 6, 3900),
        ("volume", 20, 12000),
        ("volume", 25, 15000),
        ("graduated", 5, 3500),
        ("graduated", 6, 4150),
        ("graduated", 20, 12750),
        ("graduated", 25, 15750),
        ("volume", 0, 0),
        ("graduated", 0, 0),
        ("graduated", -5, 0),
    ],
)
def test_tiers_cost_what_stripes_tables_say(mode: str, quantity: int, cents: int) -> None:
    tiers = [
        {
            "up_to": end,
            "unit_amount_decimal": f"{float(dollars) * 100:g}",
            "flat_amount_decimal": None,
        }
        for end, dollars in TIERS
    ]
    price = {
        "billing_scheme": "tiered",
        "tiers_mode": mode,
        "tiers": tiers,
        "transform_quantity": None,
    }
    assert line_amount(price, quantity) == cents


@pytest.mark.parametrize(
    ("decimal", "transform", "quantity", "amount"),
    [
        ("0.05", None, 30, 2),
        ("0.05", None, 29, 1),
        ("0.05", None, 50, 3),
        ("10", {"divide_by": 5, "round": "up"}, 1, 10),
        ("10", {"divide_by": 5, "round": "up"}, 5, 10),
        ("10", {"divide_by": 5, "round": "up"}, 6, 20),
        ("10", {"divide_by": 60, "round": "up"}, 150, 30),
        ("10", {"divide_by": 60, "round": "down"}, 150, 20),
        ("10", None, -3, 0),
        ("0.000000000001", None, 10**15, 1000),
    ],
)
def test_a_line_is_rounded_half_up_once(
    decimal: str, transform: Any, quantity: int, amount: int
) -> None:
    price = {
        "billing_scheme": "per_unit",
        "unit_amount_decimal": decimal,
        "transform_quantity": transform,
    }
    assert line_amount(price, quantity) == amount


def test_periods_follow_the_original_anchor_through_short_months() -> None:
    anchor_s = int(datetime(2027, 12, 31, 10, 30, tzinfo=UTC).timestamp())
    starts = [datetime.fromtimestamp(boundary(anchor_s, "month", 1, n), UTC) for n in range(5)]
    assert [(one.month, one.day, one.hour) for one in starts] == [
        (12, 31, 10),
        (1, 31, 10),
        (2, 29, 10),
        (3, 31, 10),
        (4, 30, 10),
    ]
    for number in range(-30, 30):
        start_s = boundary(anchor_s, "month", 1, number)
        assert number_at(anchor_s, "month", 1, start_s) == number
        assert number_at(anchor_s, "month", 1, start_s - 1) == number - 1


def test_an_invoice_bills_what_was_aggregated_until_its_grace_was_over() -> None:
    sim = Sim(webhook_url="http://127.0.0.1/hook")
    meter, customer = sim.meter(), sim.customer()
    subscribe(sim, customer, price_of(sim, meter))
    sim.event(customer, 100, timestamp=START_S + 60)
    sim.wait(JULY_S - START_S)
    assert invoices(sim, customer)[1] == ("subscription_cycle", "draft", [100], 1000)
    sim.event(customer, 7, timestamp=JULY_S - 60)
    sim.event(customer, 1000, timestamp=JULY_S)
    sim.wait(HOUR_S - 1)
    assert invoices(sim, customer)[1][1] == "draft"
    sim.wait(1)
    assert invoices(sim, customer)[1] == ("subscription_cycle", "open", [107], 1070)
    assert sim.event(customer, 50, timestamp=JULY_S - 120).status == 200, "accepted, not billed"
    sim.wait(31 * DAY_S)
    assert invoices(sim, customer)[1:] == [
        ("subscription_cycle", "open", [107], 1070),
        ("subscription_cycle", "open", [1000], 10000),
    ]
    kinds = [
        webhook.body.split(b'"type":"')[-1].split(b'"')[0]
        for webhook in sim.state.due_webhooks(sim.time_us)
    ]
    assert kinds.count(b"invoice.created") == kinds.count(b"invoice.finalized") == 3
    assert kinds.count(b"customer.subscription.updated") == 2


def test_what_lags_beyond_finalization_is_not_billed() -> None:
    sim = Sim()
    meter, customer = sim.meter(), sim.customer()
    subscribe(sim, customer, price_of(sim, meter))
    sim.event(customer, 5)
    sim.wait(JULY_S - START_S - 60)
    sim.fault("lag", seconds=60 + HOUR_S + 1)
    sim.event(customer, 100)
    sim.wait(40 * DAY_S)
    assert invoices(sim, customer)[1] == ("subscription_cycle", "open", [5], 50)
    assert sim.total(meter, customer) == 105


def test_an_invoice_that_was_finalized_early_stays_as_it_was() -> None:
    sim = Sim()
    meter, customer = sim.meter(), sim.customer()
    subscribe(sim, customer, price_of(sim, meter))
    sim.event(customer, 5)
    sim.wait(JULY_S - START_S)
    draft = sim.get("/v1/invoices", {"status": "draft"}).json()["data"][0]["id"]
    assert sim.made(f"/v1/invoices/{draft}/finalize")["status"] == "open"
    assert sim.post(f"/v1/invoices/{draft}/finalize").status == 400
    sim.event(customer, 100, timestamp=JULY_S - 60)
    sim.wait(2 * HOUR_S)
    assert invoices(sim, customer)[1] == ("subscription_cycle", "open", [5], 50)


def test_a_negative_cycle_total_bills_as_nothing() -> None:
    sim = Sim()
    meter, customer = sim.meter(), sim.customer()
    subscribe(sim, customer, price_of(sim, meter))
    sim.event(customer, -40, timestamp=START_S + 60)
    sim.wait(JULY_S - START_S + HOUR_S)
    assert invoices(sim, customer)[1] == ("subscription_cycle", "paid", [0], 0)
    assert sim.total(meter, customer) == -40


def test_the_state_does_not_depend_on_how_often_somebody_looks() -> None:
    def run(looks: int) -> Any:
        sim = Sim(lag_seconds_min=5, lag_seconds_max=4000)
        meter, customer = sim.meter(), sim.customer()
        subscribe(sim, customer, price_of(sim, meter))
        sim.wait(JULY_S - START_S - 1800)
        for number in range(50):
            sim.event(customer, number, f"e{number}")
            sim.event("cus_nobody", 1)
            for _ in range(looks):
                sim.wait(120 / looks)
                sim.get("/v1/account")
        sim.wait(DAY_S)
        return sim.state.summary()["accounts"], invoices(sim, customer)

    assert run(1) == run(8)


def test_a_test_clock_draws_the_invoices_of_its_customers_and_of_no_others() -> None:
    sim = Sim()
    clock = sim.made("/v1/test_helpers/test_clocks", {"frozen_time": START_S - 100 * DAY_S})
    meter, outside, inside = sim.meter(), sim.customer(), sim.customer(test_clock=clock["id"])
    price = price_of(sim, meter)
    subscribe(sim, outside, price)
    made = subscribe(sim, inside, price)
    assert made["test_clock"] == clock["id"]
    assert made["created"] == START_S - 100 * DAY_S
    assert sim.event(inside, 30, timestamp=START_S - 100 * DAY_S + 60).status == 200
    assert (
        code(sim.event(outside, 30, timestamp=START_S - 100 * DAY_S)) == "timestamp_too_far_in_past"
    )
    path = f"/v1/test_helpers/test_clocks/{clock['id']}"
    assert sim.post(f"{path}/advance", {"frozen_time": START_S - 101 * DAY_S}).status == 400
    assert (
        sim.made(f"{path}/advance", {"frozen_time": START_S - 60 * DAY_S})["status"] == "advancing"
    )
    assert sim.get(path).json()["status"] == "ready"
    assert sim.get(path).json()["frozen_time"] == START_S - 60 * DAY_S
    assert invoices(sim, inside)[1] == ("subscription_cycle", "open", [30], 300)
    assert len(invoices(sim, outside)) == 1
    assert sim.delete(path).status == 200
    assert sim.get(f"/v1/customers/{inside}").json()["deleted"] is True


def test_a_subscription_that_ends_with_its_period_is_billed_and_then_gone() -> None:
    sim = Sim()
    meter, customer = sim.meter(), sim.customer()
    made = subscribe(sim, customer, price_of(sim, meter))
    sim.made(f"/v1/subscriptions/{made['id']}", {"cancel_at_period_end": "true"})
    sim.event(customer, 3, timestamp=START_S + 60)
    sim.wait(70 * DAY_S)
    assert invoices(sim, customer)[1:] == [("subscription_cycle", "open", [3], 30)]
    assert sim.get(f"/v1/subscriptions/{made['id']}").json()["status"] == "canceled"
    kinds = [one["type"] for one in sim.get("/v1/events", {"limit": 100}).json()["data"]]
    assert "customer.subscription.deleted" in kinds


@pytest.mark.parametrize("invoice_now", [True, False])
def test_canceling_at_once_bills_usage_only_when_asked(invoice_now: bool) -> None:
    sim = Sim()
    meter, customer = sim.meter(), sim.customer()
    made = subscribe(sim, customer, price_of(sim, meter))
    sim.wait(120)
    sim.event(customer, 3, timestamp=START_S + 60)
    fields = {"invoice_now": "true"} if invoice_now else {}
    assert sim.delete(f"/v1/subscriptions/{made['id']}", fields).json()["status"] == "canceled"
    sim.wait(70 * DAY_S)
    expected = [("subscription_update", "open", [3], 30)] if invoice_now else []
    assert invoices(sim, customer)[1:] == expected


def test_a_new_anchor_ends_the_period_where_it_is_set() -> None:
    sim = Sim()
    meter, customer = sim.meter(), sim.customer()
    made = subscribe(sim, customer, price_of(sim, meter))
    sim.wait(DAY_S)
    sim.event(customer, 3, timestamp=START_S + 60)
    changed = sim.made(f"/v1/subscriptions/{made['id']}", {"billing_cycle_anchor": "now"})
    item = changed["items"]["data"][0]
    assert (item["current_period_start"], item["current_period_end"]) == (
        START_S + DAY_S,
        JULY_S + DAY_S,
    )
    assert invoices(sim, customer)[1:] == [("subscription_update", "open", [3], 30)]
    sim.event(customer, 4)
    sim.wait(60 * DAY_S)
    assert invoices(sim, customer)[2] == ("subscription_cycle", "open", [4], 40)


def test_deleting_a_customer_ends_its_subscriptions_and_rejects_its_usage() -> None:
    sim = Sim(webhook_url="http://127.0.0.1/hook")
    meter, customer = sim.meter(), sim.customer()
    made = subscribe(sim, customer, price_of(sim, meter))
    assert sim.delete(f"/v1/customers/{customer}").json()["deleted"] is True
    assert sim.get(f"/v1/subscriptions/{made['id']}").json()["status"] == "canceled"
    assert sim.event(customer, 1).status == 200
    assert sim.total(meter, customer) == 0
    bodies = b"".join(webhook.body for webhook in sim.state.due_webhooks(sim.time_us))
    assert b'"type":"customer.deleted"' in bodies
    assert b'"type":"customer.subscription.deleted"' in bodies


def test_periods_lie_on_items_or_on_the_subscription_as_the_version_has_it() -> None:
    sim = Sim()
    made = subscribe(sim, sim.customer(), price_of(sim, sim.meter()))
    path = f"/v1/subscriptions/{made['id']}"
    assert made["items"]["data"][0]["current_period_end"] == JULY_S
    assert "current_period_end" not in made
    old = sim.get(path, version=LEGACY).json()
    assert old["current_period_end"] == JULY_S
    assert "current_period_end" not in old["items"]["data"][0]
    invoice = sim.get(f"/v1/invoices/{made['latest_invoice']}").json()
    assert invoice["parent"]["subscription_details"]["subscription"] == made["id"]
    old = sim.get(f"/v1/invoices/{made['latest_invoice']}", version=LEGACY).json()
    assert old["subscription"] == made["id"]


def test_ids_are_expanded_and_tiers_show_only_then() -> None:
    sim = Sim()
    tiers = {
        "billing_scheme": "tiered",
        "tiers_mode": "graduated",
        "tiers[0][up_to]": "10",
        "tiers[0][unit_amount_decimal]": "0.5",
        "tiers[1][up_to]": "inf",
        "tiers[1][unit_amount]": "0",
    }
    fields = {
        "currency": "usd",
        "product_data[name]": "Calls",
        "recurring[interval]": "month",
        "recurring[usage_type]": "metered",
        "recurring[meter]": sim.meter()["id"],
        **tiers,
    }
    price, customer = sim.made("/v1/prices", fields), sim.customer(name="Ada")
    assert "tiers" not in price
    made = subscribe(sim, customer, price)
    path = f"/v1/subscriptions/{made['id']}"
    found = sim.get(path, {"expand[0]": "customer", "expand[1]": "items.data.price.tiers"}).json()
    assert found["customer"]["name"] == "Ada"
    assert [one["up_to"] for one in found["items"]["data"][0]["price"]["tiers"]] == [10, None]
    assert sim.get(path).json()["customer"] == customer, "expanding changes nothing that is kept"
    clock = sim.made("/v1/test_helpers/test_clocks", {"frozen_time": START_S})["id"]
    clocked = sim.customer(test_clock=clock)
    for expanded in ({"expand[]": "test_clock"}, {}):
        found = sim.get(f"/v1/customers/{clocked}", expanded).json()["test_clock"]
        assert (found["id"] if expanded else found) == clock
    assert sim.get(path, {"expand[]": "surprise"}).status == 400


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"recurring[usage_type]": "licensed"}, "usage_type"),
        ({"transform_quantity[divide_by]": "5", "transform_quantity[round]": "up"}, "tiers"),
        ({"tiers[1][up_to]": "20"}, "inf"),
        ({"tiers[0][unit_amount_decimal]": "0.0000000000001"}, "12 decimal"),
        ({"recurring[meter]": "mtr_none"}, "No such meter"),
    ],
)
def test_a_price_that_stripe_would_not_make_is_refused(wrong: dict[str, str], word: str) -> None:
    sim = Sim()
    fields = {
        "currency": "usd",
        "product_data[name]": "Calls",
        "recurring[interval]": "month",
        "recurring[usage_type]": "metered",
        "recurring[meter]": sim.meter()["id"],
        "billing_scheme": "tiered",
        "tiers_mode": "volume",
        "tiers[0][up_to]": "10",
        "tiers[0][unit_amount_decimal]": "0.5",
        "tiers[1][up_to]": "inf",
        "tiers[1][flat_amount]": "3",
    }
    assert sim.post("/v1/prices", fields).status == 200
    response = sim.post("/v1/prices", {**fields, **wrong})
    assert response.status == 400
    assert word in message(response)


def test_a_metered_price_without_a_meter_is_only_of_old_versions() -> None:
    sim = Sim()
    fields = {
        "currency": "usd",
        "unit_amount": "1",
        "product_data[name]": "x",
        "recurring[interval]": "month",
        "recurring[usage_type]": "metered",
    }
    assert "backed by a meter" in message(sim.post("/v1/prices", fields))
    price = sim.made("/v1/prices", fields, version=LEGACY)
    assert price["recurring"]["aggregate_usage"] == "sum"


def record(sim: Sim, item: str, version: str = LEGACY, **fields: Any) -> Any:
    return sim.post(f"/v1/subscription_items/{item}/usage_records", fields, version=version)


def test_usage_records_are_set_or_added_and_summed_per_period() -> None:
    sim = Sim()
    customer = sim.customer()
    made = subscribe(sim, customer, price_of(sim, None))
    item = made["items"]["data"][0]["id"]
    assert record(sim, item, quantity=5, timestamp=START_S, action="set").status == 200
    assert record(sim, item, quantity=9, timestamp=START_S, action="set").status == 200
    assert record(sim, item, quantity=2, timestamp="now").status == 200
    path = f"/v1/subscription_items/{item}/usage_record_summaries"
    (row,) = sim.get(path, version=LEGACY).json()["data"]
    assert (row["total_usage"], row["period"]) == (11, {"start": START_S, "end": None})
    sim.wait(JULY_S - START_S)
    assert record(sim, item, quantity=20, timestamp=START_S, action="set").status == 200, "a draft"
    record(sim, item, quantity=3, timestamp=JULY_S, action="set")
    sim.wait(HOUR_S)
    late = record(sim, item, quantity=99, timestamp=START_S, action="set")
    assert "must be after the subscription's last invoice period" in message(late)
    rows = sim.get(path, version=LEGACY).json()["data"]
    assert [(one["total_usage"], one["period"]["end"]) for one in rows] == [(3, None), (20, JULY_S)]
    assert invoices(sim, customer)[1] == ("subscription_cycle", "open", [20], 200)


def test_usage_records_are_refused_for_new_versions_and_for_items_on_meters() -> None:
    sim = Sim()
    made = subscribe(sim, sim.customer(), price_of(sim, sim.meter()))
    item = made["items"]["data"][0]["id"]
    refused = record(sim, item, quantity=5, timestamp=START_S)
    assert message(refused) == (
        f"Cannot create a usage record for `{item}` because it is not on the legacy metered billing system."
        " Call /v1/billing/meter_events instead."
    )
    path = f"/v1/subscription_items/{item}/usage_record_summaries"
    assert "not on the legacy metered billing system" in message(sim.get(path, version=LEGACY))
    assert sim.get(path).status == 404
    legacy = subscribe(sim, sim.customer(), price_of(sim, None))["items"]["data"][0]["id"]
    assert record(sim, legacy, version="2025-03-31.basil", quantity=1).status == 404
    assert record(sim, legacy, quantity=-1).status == 400
    assert record(sim, legacy, quantity=1, timestamp=START_S + 301).status == 400


def test_an_item_with_usage_records_goes_only_with_them() -> None:
    sim = Sim()
    first, second = price_of(sim, None), price_of(sim, None)
    made = subscribe(sim, sim.customer(), first, second)
    item = made["items"]["data"][0]["id"]
    record(sim, item, quantity=1, timestamp=START_S)
    assert "clear_usage=true" in message(sim.delete(f"/v1/subscription_items/{item}"))
    assert sim.delete(f"/v1/subscription_items/{item}", {"clear_usage": "true"}).status == 200
    last = made["items"]["data"][1]["id"]
    assert sim.delete(f"/v1/subscription_items/{last}").status == 400


def test_licensed_items_are_billed_ahead_and_metered_ones_afterwards() -> None:
    sim = Sim()
    meter, customer = sim.meter(), sim.customer()
    seat = sim.made(
        "/v1/prices",
        {
            "currency": "usd",
            "unit_amount": "500",
            "product_data[name]": "Seat",
            "recurring[interval]": "month",
        },
    )
    subscribe(sim, customer, seat, price_of(sim, meter), **{"items[0][quantity]": "3"})
    sim.event(customer, 2, timestamp=START_S + 60)
    sim.wait(JULY_S - START_S + HOUR_S)
    assert invoices(sim, customer) == [
        ("subscription_create", "open", [3], 1500),
        ("subscription_cycle", "open", [3, 2], 1520),
    ]
