"""What the demo sells: a meter, a tiered price and three subscriptions at Stripe, and the same told to the meter.

Rules it keeps: the billing period began fifteen days ago at midnight, so that the story is the same on every day of a
month. It must not know what happens afterwards.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, NamedTuple

from gateway.demo.reckoning import price_document, price_fields
from gateway.demo.wires import MeterWire, StripeWire

METRIC: Final = "api_calls"
TENANT: Final = "acme"
CUSTOMERS: Final = ("anna", "bert", "cora")
DAY_SECONDS: Final = 86_400
_DAYS_AGO: Final = 15


class Subscribed(NamedTuple):
    """A customer at Stripe."""

    customer: str
    subscription: str
    item: str
    period_end_s: int


class Shop:
    """All that was set up."""

    def __init__(self, subscribed: dict[str, Subscribed], now_s: int, start_s: int) -> None:
        self.subscribed = subscribed
        self.opened_at_s = now_s
        self.start_s = start_s

    @property
    def month(self) -> str:
        """`YYYY-MM` in which the billing period begins."""
        return instant(self.start_s)[:7]

    @property
    def period_end_s(self) -> int:
        """When all periods end."""
        (found,) = {one.period_end_s for one in self.subscribed.values()}
        return found

    def ref(self, customer: str) -> str:
        """The customer's id at Stripe."""
        return self.subscribed[customer].customer


def instant(seconds: int) -> str:
    """Unix seconds as the API writes an instant."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def stripe_now_s(stripe: StripeWire) -> int:
    """The simulator's time."""
    text = str(stripe.get("/_sim/state")["now"])
    return int(datetime.fromisoformat(text).timestamp())


def open_shop(stripe: StripeWire, meter: MeterWire) -> Shop:
    """Set everything up, at Stripe first, as docs/stripe-setup.md says."""
    now_s = stripe_now_s(stripe)
    start_s = now_s // DAY_SECONDS * DAY_SECONDS - _DAYS_AGO * DAY_SECONDS
    made = stripe.post(
        "/v1/billing/meters",
        {
            "event_name": METRIC,
            "display_name": "API calls",
            "default_aggregation[formula]": "sum",
        },
    )
    price = stripe.post(
        "/v1/prices",
        {
            "currency": "usd",
            "product_data[name]": "API calls",
            "recurring[interval]": "month",
            "recurring[usage_type]": "metered",
            "recurring[meter]": made["id"],
            **price_fields(),
        },
    )
    subscribed = {name: _subscribe(stripe, name, price["id"], start_s) for name in CUSTOMERS}
    mapping = {"metric": METRIC, "meterEventName": METRIC, "period": "subscription"}
    meter.send("/v1/mappings", {**mapping, "priceConfig": price_document(), "unit": "calls"})
    for name, one in subscribed.items():
        known = {"stripeCustomerId": one.customer, "subscriptionItems": {METRIC: one.item}}
        path = f"/v1/customers/{name}"
        meter.send(path, {**known, "billingAnchor": instant(start_s)}, method="PUT")
    return Shop(subscribed, now_s, start_s)


def _subscribe(stripe: StripeWire, name: str, price: str, start_s: int) -> Subscribed:
    customer = stripe.post("/v1/customers", {"name": name.title()})["id"]
    made = stripe.post(
        "/v1/subscriptions",
        {"customer": customer, "items[0][price]": price, "backdate_start_date": start_s},
    )
    (item,) = made["items"]["data"]
    return Subscribed(customer, made["id"], item["id"], item["current_period_end"])
