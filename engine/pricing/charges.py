"""What a quantity costs at a price, part by part, exactly: the five models and nothing else.

Rules kept here:

- Nothing is rounded: a charge is the exact sum of its parts, and a part is `quantity * unit_price + flat_price`.
- A tier holds the units above the one before it, up to and including its own end; fractions of units too.
- The first tier is reached by any quantity, 0 too: its flat fee is always charged, as usage-based billing has it. A fee
  that shall depend on usage belongs on a tier above the first.
- A negative quantity is priced as 0: Stripe bills a negative total of a period as 0.

It must not know of invoices, proration or rounding (engine.pricing.invoice).
"""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple, assert_never

from engine.pricing.money import ZERO, exact_arithmetic
from engine.pricing.prices import PriceConfig, Tier


class TierPart(NamedTuple):
    """Units that were priced alike: `amount` = `quantity` * `unit_price` + `flat_price`, exact.

    `above` and `up_to` are the tier's ends (half-open at the lower one); None where there is no tier or no end. In
    `package`, `quantity` counts packages and `unit_price` is that of one.
    """

    above: Decimal
    up_to: Decimal | None
    quantity: Decimal
    unit_price: Decimal
    flat_price: Decimal
    amount: Decimal


class Charge(NamedTuple):
    """The exact price of a quantity before minimum, maximum, proration and rounding: the sum of `parts`."""

    amount: Decimal
    parts: tuple[TierPart, ...]


def charge(price: PriceConfig, quantity: Decimal) -> Charge:
    """What `quantity` units cost. Exact; at least one part; negative quantities are priced as 0."""
    with exact_arithmetic():
        return charge_exactly(price, quantity)


def charge_exactly(price: PriceConfig, quantity: Decimal) -> Charge:
    """`charge` for callers who are within `exact_arithmetic`: entering it costs as much as a flat price."""
    if quantity < 0:
        quantity = ZERO
    match price.model:
        case "flat":
            assert price.unit_price is not None, "a PriceConfig is complete"
            return _single(quantity, price.unit_price)
        case "package":
            assert price.unit_price is not None, "a PriceConfig is complete"
            return _single(packages(price, quantity), price.unit_price)
        case "tiered" | "graduated":
            return _each_tier(price.tiers, quantity)
        case "volume":
            return _reached_tier(price.tiers, quantity)
        case _:
            assert_never(price.model)


def limited(price: PriceConfig, amount: Decimal) -> Decimal:
    """`amount` raised to the price's minimum charge and cut to its maximum; a maximum of 0 is one."""
    if price.minimum_charge is not None and amount < price.minimum_charge:
        return price.minimum_charge
    if price.maximum_charge is not None and amount > price.maximum_charge:
        return price.maximum_charge
    return amount


def packages(price: PriceConfig, quantity: Decimal) -> Decimal:
    """How many packages `quantity` units fill: a started one counts unless the price rounds down."""
    assert price.package_size, "a PriceConfig is complete"
    whole, rest = divmod(quantity, price.package_size)
    is_started = bool(rest) and price.package_rounding != "down"
    return whole + 1 if is_started else whole


def _single(quantity: Decimal, unit_price: Decimal) -> Charge:
    amount = quantity * unit_price
    return Charge(amount, (TierPart(ZERO, None, quantity, unit_price, ZERO, amount),))


def _each_tier(tiers: tuple[Tier, ...], quantity: Decimal) -> Charge:
    """Each unit at the price of its own tier, and the flat fee of each tier that is reached."""
    total = above = ZERO
    parts = []
    for tier in tiers:
        end = tier.up_to
        is_reached_last = end is None or quantity <= end
        inside = (quantity if is_reached_last or end is None else end) - above
        amount = inside * tier.unit_price + tier.flat_price
        total += amount
        parts.append(TierPart(above, end, inside, tier.unit_price, tier.flat_price, amount))
        if is_reached_last or end is None:
            break
        above = end
    return Charge(total, tuple(parts))


def _reached_tier(tiers: tuple[Tier, ...], quantity: Decimal) -> Charge:
    """All units at the price of the tier in which the quantity lies, and that tier's flat fee."""
    above = ZERO
    for tier in tiers:
        if tier.up_to is None or quantity <= tier.up_to:
            amount = quantity * tier.unit_price + tier.flat_price
            part = TierPart(above, tier.up_to, quantity, tier.unit_price, tier.flat_price, amount)
            return Charge(amount, (part,))
        above = tier.up_to
    raise AssertionError("the last tier of a PriceConfig has no end")
