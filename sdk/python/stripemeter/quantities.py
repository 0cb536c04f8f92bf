"""Exact quantities: from what an app has (int, Decimal, str, float) to the one decimal text that is sent.

Rules it keeps: digits are counted in the text; nothing is rounded, what does not fit is refused; a float is taken by
its shortest text, the one that `repr` shows. It must not know what a quantity is for.
"""

from __future__ import annotations

import operator
import re
from decimal import Decimal
from typing import Union

Quantity = Union[int, Decimal, str, float]

INTEGER_DIGITS_MAX = 15
FRACTION_DIGITS_MAX = 6
TEXT_CHARS_MAX = 64
_LIMIT = 10**INTEGER_DIGITS_MAX
_NUMBER = re.compile(r"(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]{1,3}))?")

NOT_A_NUMBER = 'must be a number, such as 12, Decimal("12.5") or "12.5"'
NEGATIVE = "must not be negative; corrections are adjustments"
TOO_LARGE = f"must be below 10^{INTEGER_DIGITS_MAX}: count in a larger unit"
TOO_FINE = f"has more than {FRACTION_DIGITS_MAX} digits after the decimal point: round it yourself, or count in a smaller unit"


def decimal_text(quantity: object) -> str:
    """The plain decimal text of a quantity, 0 to below 10^15, at most 6 fractional digits.

    Raises ValueError, whose text completes "quantity ...", for everything else: a bool, NaN, a negative one, digits
    that would have to be rounded.
    """
    kind = type(quantity)
    if kind is int:
        if 0 <= quantity < _LIMIT:  # type: ignore[operator]
            return str(quantity)
        raise ValueError(NEGATIVE if quantity < 0 else TOO_LARGE)  # type: ignore[operator]
    if kind is str:
        return _from_text(quantity)  # type: ignore[arg-type]
    if isinstance(quantity, float):
        # Not repr(): a subclass (numpy's) may show its name there.
        return _from_float(float.__repr__(quantity))
    if isinstance(quantity, Decimal):
        return _from_decimal(str(quantity))
    if isinstance(quantity, str):
        return _from_text(str(quantity))
    return _from_integral(quantity)


def _from_float(text: str) -> str:
    """Nearly all floats have few digits and no exponent; the others take the longer way."""
    whole, _, fraction = text.partition(".")
    if (
        whole.isdigit()
        and fraction.isdigit()
        and len(whole) <= INTEGER_DIGITS_MAX
        and len(fraction) <= FRACTION_DIGITS_MAX
    ):
        return whole if fraction == "0" else text
    return _from_decimal(text)


def _from_integral(quantity: object) -> str:
    """Integers of other libraries say so by `__index__`. A bool has one too, and is no quantity."""
    if not isinstance(quantity, bool):
        try:
            return decimal_text(int(operator.index(quantity)))  # type: ignore[arg-type]
        except TypeError:
            pass
    raise ValueError(NOT_A_NUMBER)


def _from_text(text: str) -> str:
    """By the server's grammar: no sign, no blanks, no leading zero; digits count as they are written."""
    if len(text) > TEXT_CHARS_MAX:
        raise ValueError(NOT_A_NUMBER)
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(
            NEGATIVE if _NUMBER.fullmatch(text[1:]) and text[0] == "-" else NOT_A_NUMBER
        )
    whole, fraction, exponent = match.groups()
    if exponent is not None:
        return _from_decimal(text)
    if len(whole) > INTEGER_DIGITS_MAX:
        raise ValueError(TOO_LARGE)
    if fraction is not None and len(fraction) > FRACTION_DIGITS_MAX:
        raise ValueError(TOO_FINE)
    return text


def _from_decimal(text: str) -> str:
    """By value: zeros at the end of a fraction are no digits of it."""
    number = Decimal(text)
    if not number.is_finite():
        raise ValueError(NOT_A_NUMBER)
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int), "a finite number has an exponent"
    written = "".join(map(str, digits)).lstrip("0")
    if not written:
        return "0"
    if sign:
        raise ValueError(NEGATIVE)
    shorter = written.rstrip("0")
    exponent += len(written) - len(shorter)
    if len(shorter) + exponent > INTEGER_DIGITS_MAX:
        raise ValueError(TOO_LARGE)
    if -exponent > FRACTION_DIGITS_MAX:
        raise ValueError(TOO_FINE)
    if exponent >= 0:
        return shorter + "0" * exponent
    padded = shorter.rjust(1 - exponent, "0")
    return f"{padded[:exponent]}.{padded[exponent:]}"
