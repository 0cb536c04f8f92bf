"""What a quantity costs at a price: Stripe's per-unit, graduated and volume pricing, on an invoice line of its own.

Rules it keeps: exact decimals of the currency's smallest unit, rounded half up once per line; a negative quantity
bills as 0; the first tier is reached by any quantity, so its flat fee is billed without use, too
(docs/decisions/0010-pricing.md). It is written apart from the meter's own pricing, so that the two can be held against each
other. It must not know subscriptions. Source: https://docs.stripe.com/products-prices/pricing-models
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Final

from gateway.simulator.wire import Json

_EXACT: Final = Context(prec=60, rounding=ROUND_HALF_UP)


def line_amount(price: Json, quantity: int) -> int:
    """The amount of one line in the currency's smallest unit, rounded half up."""
    quantity = max(0, quantity)
    transform = price["transform_quantity"]
    if transform is not None:
        whole, rest = divmod(quantity, transform["divide_by"])
        quantity = whole + (1 if rest and transform["round"] == "up" else 0)
    if price["billing_scheme"] == "per_unit":
        exact = _times(price["unit_amount_decimal"], quantity)
    elif price["tiers_mode"] == "volume":
        exact = _volume(price["tiers"], quantity)
    else:
        exact = _graduated(price["tiers"], quantity)
    return int(exact.quantize(Decimal(1), context=_EXACT))


def _times(amount: str | None, quantity: int) -> Decimal:
    return _EXACT.multiply(Decimal(amount or 0), Decimal(quantity))


def _volume(tiers: list[Json], quantity: int) -> Decimal:
    for tier in tiers:
        if tier["up_to"] is None or quantity <= tier["up_to"]:
            flat = Decimal(tier["flat_amount_decimal"] or 0)
            return _EXACT.add(_times(tier["unit_amount_decimal"], quantity), flat)
    raise AssertionError("the last tier has no end")


def _graduated(tiers: list[Json], quantity: int) -> Decimal:
    exact, below = Decimal(0), 0
    for tier in tiers:
        end = quantity if tier["up_to"] is None else min(quantity, tier["up_to"])
        exact = _EXACT.add(exact, _times(tier["unit_amount_decimal"], end - below))
        exact = _EXACT.add(exact, Decimal(tier["flat_amount_decimal"] or 0))
        below = end
        if quantity <= below:
            break
    return exact
