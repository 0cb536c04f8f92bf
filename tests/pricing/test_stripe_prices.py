"""Stripe Price objects: read as Stripe bills them, written as Stripe takes them, and there and back the same price."""

from __future__ import annotations

from decimal import Decimal
from random import Random
from typing import Any

import pytest
from stripe.params import PriceCreateParams, PriceCreateParamsTier

from engine.pricing import PriceConfig, PricingError, Tier, charge, read_price
from engine.pricing.money import round_money
from engine.pricing.stripe_prices import from_stripe, to_stripe
from tests.pricing import random_cases

PER_UNIT: dict[str, Any] = {
    "id": "price_1",
    "object": "price",
    "active": True,
    "billing_scheme": "per_unit",
    "currency": "usd",
    "custom_unit_amount": None,
    "recurring": {
        "interval": "month",
        "interval_count": 1,
        "usage_type": "metered",
        "meter": "mtr_1",
    },
    "tiers_mode": None,
    "transform_quantity": None,
    "unit_amount": None,
    "unit_amount_decimal": "0.05",
}
TIERED: dict[str, Any] = {
    **PER_UNIT,
    "billing_scheme": "tiered",
    "tiers_mode": "graduated",
    "unit_amount_decimal": None,
    "tiers": [
        {
            "up_to": 5,
            "unit_amount": 700,
            "unit_amount_decimal": "700",
            "flat_amount": None,
            "flat_amount_decimal": None,
        },
        {
            "up_to": 10,
            "unit_amount": 650,
            "unit_amount_decimal": "650",
            "flat_amount": 100,
            "flat_amount_decimal": "100",
        },
        {
            "up_to": None,
            "unit_amount": None,
            "unit_amount_decimal": None,
            "flat_amount": 1,
            "flat_amount_decimal": "0.5",
        },
    ],
}


def billed(price: PriceConfig, quantity: int) -> str:
    return str(round_money(charge(price, Decimal(quantity)).amount, price.currency))


def test_amounts_are_decimals_of_the_minor_unit() -> None:
    price = from_stripe(PER_UNIT)
    assert price == PriceConfig(model="flat", currency="USD", unit_price=Decimal("0.0005"))
    assert billed(price, 30) == "0.02"


@pytest.mark.parametrize(
    ("currency", "amount", "expected"),
    [
        ("usd", 1234, "12.34"),
        ("jpy", 1234, "1234"),
        ("kwd", 1234, "1.234"),
        ("isk", 1200, "12"),
        ("usd", "1e2", "1"),
    ],
)
def test_the_minor_unit_is_the_currencys(currency: str, amount: Any, expected: str) -> None:
    price = from_stripe(
        {**PER_UNIT, "currency": currency, "unit_amount_decimal": None, "unit_amount": amount}
    )
    assert price.unit_price == Decimal(expected)


def test_tiers_keep_their_ends_their_fees_and_their_mode() -> None:
    price = from_stripe(TIERED)
    assert price.model == "graduated"
    assert price.tiers == (
        Tier(Decimal(5), Decimal(7)),
        Tier(Decimal(10), Decimal("6.5"), Decimal(1)),
        Tier(None, Decimal(0), Decimal("0.005")),
    )
    assert from_stripe({**TIERED, "tiers_mode": "volume"}).model == "volume"


def test_a_transformed_quantity_is_a_package() -> None:
    price = from_stripe(
        {
            **PER_UNIT,
            "unit_amount_decimal": "1000",
            "transform_quantity": {"divide_by": 60, "round": "up"},
        }
    )
    assert billed(price, 150) == "30.00"
    down = from_stripe(
        {
            **PER_UNIT,
            "unit_amount_decimal": "1000",
            "transform_quantity": {"divide_by": 60, "round": "down"},
        }
    )
    assert billed(down, 150) == "20.00"


def test_another_currency_is_taken_from_the_options_with_its_own_amounts() -> None:
    options = {"eur": {"unit_amount_decimal": "0.07"}, "jpy": {"unit_amount": 3}}
    price = {**PER_UNIT, "currency_options": options}
    assert from_stripe(price, "EUR").unit_price == Decimal("0.0007")
    assert from_stripe(price, "jpy") == PriceConfig(
        model="flat", currency="JPY", unit_price=Decimal(3)
    )
    assert from_stripe(price, "usd") == from_stripe(price)
    tiered = {**TIERED, "currency_options": {"eur": {"tiers": [{"up_to": None, "unit_amount": 9}]}}}
    assert from_stripe(tiered, "EUR").tiers == (Tier(None, Decimal("0.09")),)


@pytest.mark.parametrize(
    ("price", "currency", "field"),
    [
        ({**PER_UNIT, "currency": None}, None, "currency"),
        (PER_UNIT, "EUR", "currency_options"),
        (
            {**PER_UNIT, "currency_options": {"eur": {}}},
            "EUR",
            "currency_options.eur.unit_amount_decimal",
        ),
        ({**PER_UNIT, "unit_amount_decimal": None}, None, "unit_amount_decimal"),
        ({**PER_UNIT, "unit_amount_decimal": 0.05}, None, "unit_amount_decimal"),
        ({**PER_UNIT, "unit_amount_decimal": "-1"}, None, "unit_amount_decimal"),
        ({**PER_UNIT, "custom_unit_amount": {"minimum": 1}}, None, "custom_unit_amount"),
        ({**PER_UNIT, "billing_scheme": "stairs"}, None, "billing_scheme"),
        (
            {**PER_UNIT, "transform_quantity": {"divide_by": 0, "round": "up"}},
            None,
            "transform_quantity.divide_by",
        ),
        ({**PER_UNIT, "transform_quantity": {"divide_by": 5}}, None, "transform_quantity.round"),
        ({**PER_UNIT, "transform_quantity": 5}, None, "transform_quantity"),
        (
            {**TIERED, "transform_quantity": {"divide_by": 5, "round": "up"}},
            None,
            "transform_quantity",
        ),
        ({**TIERED, "tiers_mode": None}, None, "tiers_mode"),
        ({**TIERED, "tiers": None}, None, "tiers"),
        ({**TIERED, "tiers": [3]}, None, "tiers[0]"),
        ({**TIERED, "tiers": [{"up_to": None}]}, None, "tiers[0].unit_amount_decimal"),
        ({**TIERED, "tiers": [{"up_to": 5, "unit_amount": 1}]}, None, "tiers[0].upTo"),
    ],
)
def test_a_price_that_cannot_be_computed_is_an_error_that_names_stripes_field(
    price: dict[str, Any], currency: str | None, field: str
) -> None:
    with pytest.raises(PricingError) as caught:
        from_stripe(price, currency)
    assert caught.value.field == field, caught.value.errors


@pytest.mark.parametrize(
    ("price", "field"),
    [
        ({"model": "flat", "unitPrice": 1, "minimumCharge": 5}, "minimumCharge"),
        ({"model": "flat", "unitPrice": 1, "maximumCharge": 0}, "maximumCharge"),
        ({"model": "flat", "unitPrice": "0.000000000000001"}, "unitPrice"),
        ({"model": "package", "unitPrice": 1, "packageSize": "2.5"}, "packageSize"),
        (
            {
                "model": "tiered",
                "tiers": [{"upTo": "2.5", "unitPrice": 1}, {"upTo": None, "unitPrice": 1}],
            },
            "tiers[0].upTo",
        ),
    ],
)
def test_what_a_price_in_stripe_cannot_say_is_an_error_and_not_left_out(
    price: dict[str, Any], field: str
) -> None:
    with pytest.raises(PricingError) as caught:
        to_stripe(read_price({"currency": "USD", **price}))
    assert caught.value.field == field


def test_what_to_create_in_stripe_is_in_stripes_own_words() -> None:
    tiers = (Tier(Decimal(10_000), Decimal("0.01")), Tier(None, Decimal("0.0000005"), Decimal(5)))
    price = PriceConfig(model="graduated", currency="USD", tiers=tiers)
    params = to_stripe(price, product="prod_1", meter="mtr_1", nickname="API calls")
    assert params == {
        "currency": "usd",
        "product": "prod_1",
        "nickname": "API calls",
        "recurring": {"interval": "month", "usage_type": "metered", "meter": "mtr_1"},
        "billing_scheme": "tiered",
        "tiers_mode": "graduated",
        "tiers": [
            {"up_to": 10_000, "unit_amount_decimal": "1"},
            {"up_to": "inf", "unit_amount_decimal": "0.00005", "flat_amount_decimal": "500"},
        ],
    }
    assert set(params) <= set(PriceCreateParams.__annotations__)
    assert {"up_to", "unit_amount_decimal", "flat_amount_decimal"} <= set(
        PriceCreateParamsTier.__annotations__
    )


def as_stripe_answers(params: dict[str, Any]) -> dict[str, Any]:
    """What Stripe makes of the parameters: `inf` becomes null, absent fields are null."""
    tiers = [
        {
            "flat_amount_decimal": None,
            **tier,
            "up_to": None if tier["up_to"] == "inf" else tier["up_to"],
        }
        for tier in params.get("tiers", [])
    ]
    return {
        "unit_amount_decimal": None,
        "transform_quantity": None,
        **params,
        "tiers": tiers or None,
    }


def test_there_and_back_a_price_bills_the_same(rng: Random) -> None:
    compared = 0
    for _ in range(500):
        price = read_price(_without_limits(rng))
        try:
            params = to_stripe(price)
        except PricingError:
            continue
        compared += 1
        back = from_stripe(as_stripe_answers(params))
        ends = random_cases.edges({"tiers": [{"upTo": tier.up_to} for tier in price.tiers]})
        for _ in range(10):
            quantity = random_cases.quantity(rng, ends)
            assert charge(back, quantity).amount == charge(price, quantity).amount, (
                price,
                quantity,
            )
    assert compared > 250


def _without_limits(rng: Random) -> dict[str, Any]:
    """A random price without what Stripe has no word for."""
    found = random_cases.price(rng, rng.choice(random_cases.CURRENCIES))
    return {
        name: value
        for name, value in found.items()
        if name not in ("minimumCharge", "maximumCharge")
    }
