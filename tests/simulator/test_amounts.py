"""The simulator's amounts against the meter's own pricing: two implementations that must not differ by a cent."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

from engine.pricing.invoice import InvoiceInput, UsageItem, make_invoice
from engine.pricing.money import stripe_digits
from engine.pricing.stripe_prices import from_stripe
from gateway.simulator.amounts import line_amount


def any_price(rng: random.Random) -> tuple[dict[str, Any], list[int]]:
    """A price as Stripe has it, and the quantities at which it changes."""
    price: dict[str, Any] = {"currency": rng.choice(["usd", "jpy", "kwd"])}

    def amount() -> str:
        return rng.choice(["0", "1", "0.5", "7.25", "0.000000000001", "1499"])

    if rng.random() < 0.3:
        size = rng.randint(1, 7)
        transform = rng.choice([None, {"divide_by": size, "round": rng.choice(["up", "down"])}])
        more = {"unit_amount_decimal": amount(), "transform_quantity": transform}
        return price | {"billing_scheme": "per_unit"} | more, [0, size]
    ends: list[int | None] = sorted(rng.sample(range(1, 30), rng.randint(0, 3)))  # type: ignore[assignment]
    tiers = [
        {"up_to": end, "unit_amount_decimal": amount(), "flat_amount_decimal": amount()}
        for end in (*ends, None)
    ]
    mode = rng.choice(["volume", "graduated"])
    more = {"tiers": tiers, "tiers_mode": mode, "transform_quantity": None}
    return price | {"billing_scheme": "tiered"} | more, [0, *(end for end in ends if end)]


def test_an_invoice_here_and_the_meters_own_pricing_agree_to_the_last_digit(
    rng: random.Random,
) -> None:
    """Two implementations, written apart. A flat fee on the first tier is billed without any use (decision 0010)."""
    for _ in range(500):
        price, edges = any_price(rng)
        quantity = rng.choice(edges) + rng.randint(-2, 2)
        config = from_stripe(price)
        (line,) = make_invoice(
            InvoiceInput(
                customer_id="",
                period_start_us=0,
                period_end_us=1_000_000,
                usage_items=(UsageItem("calls", Decimal(quantity), config),),
            )
        ).line_items
        billed = Decimal(line_amount(price, quantity)).scaleb(-stripe_digits(config.currency))
        assert billed == line.subtotal, (price, quantity)
