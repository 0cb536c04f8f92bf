"""Stripe Price objects to price configurations, and what to create in Stripe for a configuration.

Rules kept here (docs.stripe.com/api/prices/object; facts in docs/decisions/0010-pricing.md):

- Stripe's amounts are integers of the currency's minor unit, or decimals of it with up to 12 digits
  (`unit_amount_decimal`); ours are in the major unit. The shift is exact both ways.
- A tier's `up_to` is null in what Stripe answers and "inf" in what it is sent.
- `transform_quantity` is our package; it excludes tiers. Graduated tiers are our `graduated`, with or without fees.
- There and back prices equally. What Stripe has no word for (a minimum, a maximum, a tier that ends at 2.5) is an error
  that names the field, not left out.

It must not know how a Price is fetched or created: it takes and gives mappings, as JSON has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final

from engine.pricing.errors import PricingError, join
from engine.pricing.money import ZERO, currency_code, exact, plain, plain_text, stripe_digits
from engine.pricing.prices import Model, PackageRounding, PriceConfig, Tier

AMOUNT_FRACTION_DIGITS_MAX: Final = 12
"""Of a `..._decimal` amount in minor units."""
_TIERS_MODES: Final[dict[object, Model]] = {"graduated": "graduated", "volume": "volume"}
_ROUNDINGS: Final[dict[object, PackageRounding]] = {"up": "up", "down": "down"}

StripeParams = dict[str, object]


def from_stripe(price: Mapping[str, object], currency: str | None = None) -> PriceConfig:
    """The configuration that bills as this Price does, in the Price's own currency or in one of its options.

    `price` is the object as JSON has it, retrieved with `expand` of `tiers` (and `currency_options`, with their tiers, for
    another currency); numbers are int, Decimal or text. Raises PricingError, which names Stripe's field, when the Price is
    not complete or bills in a way that has no exact counterpart.
    """
    own = currency_code(price.get("currency"), "currency")
    wanted = own if currency is None else currency_code(currency, "currency")
    source: Mapping[str, object] = price
    path = ""
    if wanted != own:
        source, path = _currency_option(price, wanted)
    if source.get("custom_unit_amount") is not None:
        message = "the customer chooses the amount: there is nothing to compute"
        raise PricingError([(join(path, "custom_unit_amount"), message)])
    scheme = price.get("billing_scheme", "per_unit")
    if scheme == "tiered":
        return _tiered(price, source, path, wanted)
    if scheme != "per_unit":
        raise PricingError([("billing_scheme", "must be per_unit or tiered")])
    amount = _amount(source, "unit_amount", path, wanted)
    if amount is None:
        field = join(path, "unit_amount_decimal")
        raise PricingError([(field, "is missing: a price per unit needs it or unit_amount")])
    transform = price.get("transform_quantity")
    if transform is None:
        return PriceConfig(model="flat", currency=wanted, unit_price=amount)
    size, rounding = _transform(transform)
    return PriceConfig(
        model="package",
        currency=wanted,
        unit_price=amount,
        package_size=size,
        package_rounding=rounding,
    )


def _currency_option(price: Mapping[str, object], wanted: str) -> tuple[Mapping[str, object], str]:
    options = price.get("currency_options")
    option = options.get(wanted.lower()) if isinstance(options, Mapping) else None
    if not isinstance(option, Mapping):
        message = f"has no {wanted}: retrieve the price with currency_options expanded, or add it"
        raise PricingError([("currency_options", message)])
    return option, f"currency_options.{wanted.lower()}"


def _transform(transform: object) -> tuple[Decimal, PackageRounding]:
    if not isinstance(transform, Mapping):
        raise PricingError([("transform_quantity", "must be an object")])
    size = exact(transform.get("divide_by"), "transform_quantity.divide_by")
    rounding = _ROUNDINGS.get(transform.get("round"))
    if size <= 0:
        raise PricingError([("transform_quantity.divide_by", "must be above 0")])
    if rounding is None:
        raise PricingError([("transform_quantity.round", "must be up or down")])
    return size, rounding


def _tiered(
    price: Mapping[str, object], source: Mapping[str, object], path: str, currency: str
) -> PriceConfig:
    if price.get("transform_quantity") is not None:
        raise PricingError([("transform_quantity", "excludes tiers: Stripe has no such price")])
    model = _TIERS_MODES.get(price.get("tiers_mode"))
    if model is None:
        raise PricingError([("tiers_mode", "must be graduated or volume")])
    tiers = source.get("tiers")
    where = join(path, "tiers")
    if not isinstance(tiers, Sequence) or isinstance(tiers, str) or not tiers:
        message = "is missing: Stripe sends tiers only when `expand` names them"
        raise PricingError([(where, message)])
    read = tuple(_tier(tier, f"{where}[{index}]", currency) for index, tier in enumerate(tiers))
    try:
        return PriceConfig(model=model, currency=currency, tiers=read)
    except PricingError as error:
        raise error.under(path) from None


def _tier(tier: object, path: str, currency: str) -> Tier:
    if not isinstance(tier, Mapping):
        raise PricingError([(path, "must be an object")])
    unit_price = _amount(tier, "unit_amount", path, currency)
    flat_price = _amount(tier, "flat_amount", path, currency)
    if unit_price is None and flat_price is None:
        message = "is missing: a tier needs unit_amount or flat_amount"
        raise PricingError([(join(path, "unit_amount_decimal"), message)])
    end = tier.get("up_to")
    up_to = None if end in (None, "inf") else exact(end, join(path, "up_to"))
    return Tier(up_to, ZERO if unit_price is None else unit_price, flat_price or ZERO)


def _amount(source: Mapping[str, object], name: str, path: str, currency: str) -> Decimal | None:
    """The amount in the major unit, of the decimal field or else of the integer one; None without both."""
    for field in (f"{name}_decimal", name):
        value = source.get(field)
        if value is None:
            continue
        minor = exact(value, join(path, field))
        if minor < 0:
            raise PricingError([(join(path, field), "must not be negative")])
        return _shifted(minor, -stripe_digits(currency))
    return None


def _shifted(value: Decimal, digits: int) -> Decimal:
    """`value * 10^digits`. Moves the point, so that no context can round it."""
    sign, ciphers, exponent = value.as_tuple()
    assert isinstance(exponent, int), "the number is finite"
    return plain(Decimal((sign, ciphers, exponent + digits)))


def to_stripe(
    price: PriceConfig,
    *,
    product: str | None = None,
    meter: str | None = None,
    interval: str = "month",
    nickname: str | None = None,
) -> StripeParams:
    """The parameters of `POST /v1/prices` that create a Price which bills as `price` does.

    Amounts are decimal texts in minor units. With `meter` (its id) the price is metered by it. Raises PricingError for
    what a Price cannot say: a minimum or maximum charge, tier ends or package sizes that are no whole numbers, amounts
    finer than 12 decimals of the minor unit.
    """
    for field, limit in (
        ("minimumCharge", price.minimum_charge),
        ("maximumCharge", price.maximum_charge),
    ):
        if limit is not None:
            message = "has no counterpart in a Stripe Price: bill it as an item of its own"
            raise PricingError([(field, message)])
    params: StripeParams = {"currency": price.currency.lower()}
    if product is not None:
        params["product"] = product
    if nickname is not None:
        params["nickname"] = nickname
    recurring: StripeParams = {"interval": interval}
    if meter is not None:
        recurring |= {"usage_type": "metered", "meter": meter}
    params["recurring"] = recurring
    if price.tiers:
        params["billing_scheme"] = "tiered"
        params["tiers_mode"] = "volume" if price.model == "volume" else "graduated"
        params["tiers"] = [
            _tier_params(tier, f"tiers[{index}]", price.currency)
            for index, tier in enumerate(price.tiers)
        ]
        return params
    assert price.unit_price is not None, "a PriceConfig is complete"
    params["billing_scheme"] = "per_unit"
    params["unit_amount_decimal"] = _minor_text(price.unit_price, "unitPrice", price.currency)
    if price.model == "package":
        assert price.package_size is not None, "a PriceConfig is complete"
        params["transform_quantity"] = {
            "divide_by": _whole(price.package_size, "packageSize"),
            "round": price.package_rounding or "up",
        }
    return params


def _tier_params(tier: Tier, path: str, currency: str) -> StripeParams:
    params: StripeParams = {
        "up_to": "inf" if tier.up_to is None else _whole(tier.up_to, f"{path}.upTo"),
        # Also when it is 0: Stripe refuses a tier without any amount.
        "unit_amount_decimal": _minor_text(tier.unit_price, f"{path}.unitPrice", currency),
    }
    if tier.flat_price:
        params["flat_amount_decimal"] = _minor_text(tier.flat_price, f"{path}.flatPrice", currency)
    return params


def _minor_text(amount: Decimal, field: str, currency: str) -> str:
    minor = _shifted(amount, stripe_digits(currency))
    exponent = minor.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -AMOUNT_FRACTION_DIGITS_MAX:
        message = f"is finer than Stripe's {AMOUNT_FRACTION_DIGITS_MAX} decimals of the minor unit"
        raise PricingError([(field, message)])
    return plain_text(minor)


def _whole(value: Decimal, field: str) -> int:
    if value != value.to_integral_value():
        raise PricingError([(field, "must be a whole number in Stripe")])
    return int(value)
