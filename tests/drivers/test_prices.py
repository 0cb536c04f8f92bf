"""Prices and priced items, read by the driver: from the simulator, and from answers that a test makes up."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
import pytest

from engine.core.billing import PricedItem, Unread
from engine.drivers.billing import StripeBilling
from engine.drivers.wire import Answer, NeverLeft
from engine.pricing import read_price
from engine.pricing.stripe_prices import from_stripe
from tests.drivers.fake_stripe import KEY
from tests.helpers.simulator_wire import BASE, SimulatorWire
from tests.helpers.stripe_sim import Sim

TIERS = {
    "billing_scheme": "tiered",
    "tiers_mode": "graduated",
    "tiers[0][up_to]": 10_000,
    "tiers[0][unit_amount_decimal]": "1",
    "tiers[1][up_to]": "inf",
    "tiers[1][unit_amount_decimal]": "0.8",
    "tiers[1][flat_amount]": 500,
}


class Place:
    """A simulator with a meter and a subscription, and a driver."""

    def __init__(self) -> None:
        self.sim = Sim()
        self.wire = SimulatorWire(self.sim.state)
        self.billing = StripeBilling(KEY, api_base=BASE, meter_events_base=BASE, wire=self.wire)
        self.meter = self.sim.meter()
        self.customer = self.sim.customer()

    def price(self, **fields: Any) -> str:
        fields = {
            "currency": "usd",
            "product_data[name]": "calls",
            "recurring[interval]": "month",
            "recurring[usage_type]": "metered",
            "recurring[meter]": self.meter["id"],
        } | fields
        return str(self.sim.made("/v1/prices", fields)["id"])

    def item(self, price: str) -> tuple[str, str]:
        made = self.sim.made(
            "/v1/subscriptions", {"customer": self.customer, "items[0][price]": price}
        )
        return made["items"]["data"][0]["id"], made["id"]


async def test_a_price_is_read_with_its_tiers() -> None:
    place = Place()
    price = place.price(**TIERS)
    found = await place.billing.price(price, None, None)
    assert isinstance(found, dict)
    tiers = [{"upTo": 10_000, "unitPrice": "0.01"}]
    tiers.append({"upTo": None, "unitPrice": "0.008", "flatPrice": 5})
    wanted = read_price({"model": "graduated", "currency": "USD", "tiers": tiers})
    assert from_stripe(found) == wanted
    again = await place.billing.price(price, "usd", None)
    assert isinstance(again, dict)
    assert from_stripe(again, "USD") == wanted


async def test_an_item_says_its_price_and_its_subscriptions_currency() -> None:
    place = Place()
    price = place.price(unit_amount=5)
    item, subscription = place.item(price)
    assert await place.billing.priced_item(item, None) == PricedItem(price, "usd", place.customer)
    place.sim.delete(f"/v1/subscriptions/{subscription}")
    ended = await place.billing.priced_item(item, None)
    assert isinstance(ended, PricedItem), "what was used before the end is still billed"


@pytest.mark.parametrize("name", ["_none", "/../account", " a", "?a=b"])
async def test_what_is_not_there_is_told_apart_from_what_could_not_be_asked(name: str) -> None:
    place = Place()
    for found in (
        await place.billing.price(f"price{name}", None, None),
        await place.billing.priced_item(f"si{name}", None),
    ):
        assert isinstance(found, Unread)
        assert found.is_missing
    place.sim.fault("error")
    for asked in (
        place.billing.price("price_1", None, None),
        place.billing.priced_item("si_1", None),
    ):
        found = await asked
        assert isinstance(found, Unread)
        assert not found.is_missing


class Told:
    """A wire whose answers a test gives, by path."""

    name = "told"

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.expanded: list[list[str]] = []

    async def exchange(
        self, method: str, url: str, _headers: Mapping[str, str], body: bytes
    ) -> Answer:
        parts = urlsplit(url)
        assert (method.lower(), body) == ("get", b"")
        self.expanded.append([text for name, text in parse_qsl(parts.query) if "expand" in name])
        if parts.path not in self.answers:
            raise NeverLeft("no way there")
        answer = self.answers[parts.path]
        text = answer if isinstance(answer, bytes) else msgspec.json.encode(answer)
        return Answer(200, {}, text)

    async def aclose(self) -> None:
        """Nothing is open."""


def told(**answers: Any) -> tuple[StripeBilling, Told]:
    wire = Told({f"/v1/{name.replace('__', '/')}": answer for name, answer in answers.items()})
    return StripeBilling(KEY, api_base=BASE, meter_events_base=BASE, wire=wire), wire


async def test_another_currencys_tiers_are_asked_for_by_name() -> None:
    option = {"unit_amount": None, "tiers": [{"up_to": None, "unit_amount_decimal": "0.7"}]}
    price = {"id": "price_1", "currency": "usd", "billing_scheme": "tiered"}
    price |= {"tiers_mode": "volume", "tiers": [], "currency_options": {"eur": option}}
    billing, wire = told(prices__price_1=price)
    found = await billing.price("price_1", "EUR", None)
    assert isinstance(found, dict)
    tiers = [{"upTo": None, "unitPrice": "0.007"}]
    assert from_stripe(found, "EUR") == read_price(
        {"model": "volume", "currency": "EUR", "tiers": tiers}
    )
    first = ["tiers", "currency_options"]
    assert wire.expanded == [first, [*first, "currency_options.eur.tiers"]]
    await billing.price("price_1", "usd", None)
    await billing.price("price_1", "gbp", None)
    assert wire.expanded[2:] == [first, first], "of what is not there nothing more is asked"


async def test_a_decimal_of_stripes_never_becomes_a_binary_float() -> None:
    billing, _ = told(prices__price_1=b'{"id": "price_1", "amount": 0.1, "whole": 3}')
    assert await billing.price("price_1", None, None) == {
        "id": "price_1",
        "amount": Decimal("0.1"),
        "whole": 3,
    }


async def test_the_subscriptions_currency_wins_over_its_prices_own() -> None:
    item = {"id": "si_1", "subscription": "sub_1", "created": 1}
    item |= {"price": {"id": "price_1", "currency": "usd"}}
    subscription = {"id": "sub_1", "customer": "cus_1", "status": "active", "currency": "eur"}
    billing, _ = told(subscription_items__si_1=item, subscriptions__sub_1=subscription)
    assert await billing.priced_item("si_1", None) == PricedItem("price_1", "eur", "cus_1")


@pytest.mark.parametrize("body", [b"[]", b"1", b"{", b'{"a": NaN}'])
async def test_an_answer_that_is_no_price_is_a_reason(body: bytes) -> None:
    billing, _ = told(prices__price_1=body)
    found = await billing.price("price_1", None, None)
    assert isinstance(found, Unread)
    assert not found.is_missing
    assert isinstance(await billing.price("price_2", None, None), Unread)
