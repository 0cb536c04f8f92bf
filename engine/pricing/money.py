"""Exact decimals and money: what a number may be, how many digits a currency has, and the one rounding rule.

Rules kept here:

- Arithmetic is exact: inside `exact_arithmetic` a result that would lose a digit raises, it is never rounded.
- Money is rounded half up, once, to the currency's minor unit (design, "Pricing"; Stripe rounds per line item:
  https://docs.stripe.com/billing/subscriptions/usage-based/pricing-models).
- A number is a Decimal, an int or a decimal text. A binary floating point number is refused: 0.1 is not 0.1 in it.
- Every number is bounded in digits, so that no input makes the arithmetic slow.

It must not know of prices, invoices or Stripe's objects.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from decimal import (
    ROUND_HALF_UP,
    Context,
    Decimal,
    DivisionByZero,
    Inexact,
    InvalidOperation,
    Overflow,
    localcontext,
)
from typing import Final

from engine.pricing.errors import PricingError

INTEGER_DIGITS_MAX: Final = 30
"""Before the decimal point. A total of 10^15 events of 10^15 units each is the largest number that is meant."""
FRACTION_DIGITS_MAX: Final = 15
"""After it: Stripe's 12 decimals of a minor unit, and the 3 digits of KWD."""
NUMBER_CHARS_MAX: Final = 64
RATE_FRACTION_DIGITS_MAX: Final = 6
AVERAGE_FRACTION_DIGITS: Final = 12
"""Of an average unit price, which is for the reader: no amount is computed from it."""

_PRECISION: Final = 150
_EXACT: Final = Context(
    prec=_PRECISION, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow]
)
_ROUNDED: Final = Context(
    prec=_PRECISION, rounding=ROUND_HALF_UP, traps=[InvalidOperation, DivisionByZero, Overflow]
)
# quantity * price * seconds of a period * lines; each factor at its bound.
assert 2 * (INTEGER_DIGITS_MAX + FRACTION_DIGITS_MAX) + 20 < _PRECISION

ZERO: Final = Decimal(0)
HUNDRED: Final = Decimal(100)

_NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,4})?", re.ASCII)
_CURRENCY: Final = re.compile(r"[A-Za-z]{3}", re.ASCII)

# https://docs.stripe.com/currencies#zero-decimal and #three-decimal; all others have two digits.
_ZERO_DIGITS: Final = frozenset(
    [
        "BIF",
        "CLP",
        "DJF",
        "GNF",
        "ISK",
        "JPY",
        "KMF",
        "KRW",
        "MGA",
        "PYG",
        "RWF",
        "UGX",
        "VND",
        "VUV",
        "XAF",
        "XOF",
        "XPF",
    ]
)
_THREE_DIGITS: Final = frozenset(["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"])
_AS_HUNDREDTHS_IN_STRIPE: Final = frozenset({"ISK", "UGX"})
"""They have no minor unit, but Stripe's API counts them in hundredths, for old times' sake."""

_AVERAGE_UNIT: Final = Decimal(1).scaleb(-AVERAGE_FRACTION_DIGITS)
_MINOR_UNITS: Final = (Decimal(1), Decimal("0.1"), Decimal("0.01"), Decimal("0.001"))


def exact_arithmetic() -> AbstractContextManager[Context]:
    """Within this block Decimal operators are exact or raise, whatever the caller's own decimal context says."""
    return localcontext(_EXACT)


def exact(value: object, field: str) -> Decimal:
    """The number that `value` is: a Decimal, an int, or a text such as "0.008". The result is finite and bounded.

    Raises PricingError that names `field` for everything else, binary floating point numbers too.
    """
    if isinstance(value, Decimal):
        number = value
    elif isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > 4 * INTEGER_DIGITS_MAX:
            raise PricingError([(field, _too_large())])
        number = Decimal(value)
    elif isinstance(value, str):
        if len(value) > NUMBER_CHARS_MAX or _NUMBER.fullmatch(value) is None:
            raise PricingError([(field, "must be a decimal number such as 12.5")])
        number = Decimal(value)
    else:
        message = (
            "must be a decimal number such as 12.5, or a text that holds one; "
            "a binary floating point number is not exact"
        )
        raise PricingError([(field, message)])
    if not number.is_finite():
        raise PricingError([(field, "must be a finite number")])
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int), "finite numbers have one"
    if exponent < -FRACTION_DIGITS_MAX:
        message = f"must have at most {FRACTION_DIGITS_MAX} digits after the decimal point"
        raise PricingError([(field, message)])
    if number and number.adjusted() >= INTEGER_DIGITS_MAX:
        raise PricingError([(field, _too_large())])
    if exponent > 0:
        return Decimal(int(number)) if number else ZERO
    return number


def _too_large() -> str:
    return f"must be below 10^{INTEGER_DIGITS_MAX} in size"


def not_negative(value: object, field: str) -> Decimal:
    """`exact`, and not below zero; "-0" is 0."""
    number = exact(value, field)
    if number < 0:
        raise PricingError([(field, "must not be negative")])
    return number.copy_abs()


def currency_code(value: object, field: str) -> str:
    """The ISO 4217 code in capitals. Whether Stripe takes it is Stripe's business."""
    if not isinstance(value, str) or _CURRENCY.fullmatch(value) is None:
        raise PricingError([(field, "must be a currency of three letters, such as USD")])
    return value.upper()


def minor_digits(currency: str) -> int:
    """How many digits an amount of that currency has after the decimal point: 0, 2 or 3."""
    if currency in _ZERO_DIGITS:
        return 0
    return 3 if currency in _THREE_DIGITS else 2


def stripe_digits(currency: str) -> int:
    """By how many digits Stripe's integer amounts of that currency are shifted."""
    return 2 if currency in _AS_HUNDREDTHS_IN_STRIPE else minor_digits(currency)


def round_money(amount: Decimal, currency: str) -> Decimal:
    """`amount` to the currency's minor unit, half up: 0.015 USD is 0.02. Not negative in, not negative out."""
    assert amount >= 0, "half up and half away from zero differ below zero"
    return amount.quantize(_MINOR_UNITS[minor_digits(currency)], context=_ROUNDED)


def share_of_money(amount: Decimal, part: int, whole: int, currency: str) -> Decimal:
    """`amount * part / whole`, rounded half up once: the division's own digits never take part in it.

    0 <= part <= whole, whole > 0. Without a quotient of endless digits there is no second rounding.
    """
    assert amount >= 0
    assert 0 <= part <= whole
    assert whole > 0
    digits = minor_digits(currency)
    scaled = (amount * part).scaleb(digits, context=_EXACT)
    count, rest = divmod(scaled, whole)
    if 2 * rest >= whole:
        count += 1
    return count.scaleb(-digits, context=_EXACT).quantize(_MINOR_UNITS[digits], context=_ROUNDED)


def average(amount: Decimal, quantity: Decimal) -> Decimal:
    """`amount / quantity` for the reader, to 12 digits after the point, without trailing zeros."""
    assert quantity > 0
    return plain(_ROUNDED.divide(amount, quantity).quantize(_AVERAGE_UNIT, context=_ROUNDED))


def plain(value: Decimal) -> Decimal:
    """The same number without trailing zeros after the point and without an exponent above zero."""
    if value == value.to_integral_value():
        return Decimal(int(value))
    return _EXACT.create_decimal(value).normalize(_EXACT)


def fraction_digits(value: Decimal) -> int:
    """How many digits `value` needs after the point: 0 for 5, 5.00 and 500."""
    exponent = plain(value).as_tuple().exponent
    assert isinstance(exponent, int), "the number is finite"
    return max(0, -exponent)


def plain_text(value: Decimal) -> str:
    """The digits as they are, never with an exponent: `220.00`, `0.000000000001`."""
    return f"{value:f}"
