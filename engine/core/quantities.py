"""Exact quantities: from JSON text to whole millionths, and from millionths to text and log bytes.

A quantity is an int of *micros* (millionths of a unit). Rules kept here:

- Digits are counted in the text, before any arithmetic. Nothing is rounded: what does not fit is refused.
- No float and no Decimal. `decimal` with `Inexact` trapped gives the same values at four times the cost.
- Whatever the client sends, the work is bounded: the text's length first, the exponent next, then arithmetic.
- One value has one form: one decimal text, one msgpack encoding.

It must not know what a quantity is for: whether it may be negative, and which field held it, is the caller's
business. Messages of `QuantityError` complete the sentence "quantity ..." and say what to send instead.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import msgspec

from engine.limits import FRACTION_DIGITS_MAX, MICROS_PER_UNIT, QUANTITY_INTEGER_DIGITS_MAX

QUANTITY_TEXT_BYTES_MAX: Final = 64
"""Of a written quantity, without quotes. 23 suffice (sign, 15 digits, dot, 6 digits); the rest is for exponents."""

EXT_QUANTITY: Final = 1
"""msgpack extension: a quantity beyond int64, as 16 bytes of big-endian two's complement."""
EXT_TOTAL: Final = 2
"""msgpack extension: a total beyond int64, as the fewest bytes of big-endian two's complement."""

WIDE_QUANTITY_BYTES: Final = 16
TOTAL_BYTES_MAX: Final = 64
"""Totals have no bound in the contract. 2^63 events of 10^15 units each need 17 bytes, so 64 is never reached."""
TOTAL_MICROS_LIMIT: Final = 1 << (8 * TOTAL_BYTES_MAX - 1)

INT64_MIN: Final = -(1 << 63)
INT64_MAX: Final = (1 << 63) - 1

_MICROS_DIGITS_MAX: Final = QUANTITY_INTEGER_DIGITS_MAX + FRACTION_DIGITS_MAX
_POWERS_OF_TEN: Final[tuple[int, ...]] = tuple(
    10**exponent for exponent in range(_MICROS_DIGITS_MAX + 1)
)
_TEXTS_CACHED_MAX: Final = 4_096
_QUOTE: Final = ord('"')
_ZERO: Final = ord("0")
_NUMBER_STARTS: Final = b"-0123456789"

# RFC 8259, section 6, and nothing else: no plus sign, no leading zero, no bare dot, ASCII digits only.
_NUMBER: Final = re.compile(rb"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")

_NOT_A_NUMBER: Final = (
    'must be a JSON number or a string with a plain decimal, such as 12.5 or "12.5"'
)
_TOO_LONG: Final = (
    f"is longer than {QUANTITY_TEXT_BYTES_MAX} characters: send at most {QUANTITY_INTEGER_DIGITS_MAX} digits "
    f"before and {FRACTION_DIGITS_MAX} after the decimal point"
)
_TOO_FINE: Final = (
    f"has more than {FRACTION_DIGITS_MAX} digits after the decimal point: round it yourself, "
    "or count in a smaller unit"
)
_TOO_LARGE: Final = f"must be below 10^{QUANTITY_INTEGER_DIGITS_MAX} in size: count in a larger unit, or send several events"

assert TOTAL_BYTES_MAX > WIDE_QUANTITY_BYTES
assert TOTAL_MICROS_LIMIT.bit_length() < 4300, "Python refuses to print more than 4,300 digits"
assert 10**_MICROS_DIGITS_MAX < 1 << (8 * WIDE_QUANTITY_BYTES - 1), "every quantity has a log form"


class QuantityError(ValueError):
    """The text is not an exact quantity; the message says what to send instead."""


@lru_cache(maxsize=_TEXTS_CACHED_MAX)
def parse_json(raw: bytes) -> int:
    """Micros of one JSON token: a number, or a string that holds a decimal. |result| < 10^21.

    `raw` is the token alone, without white space around it. Exponents are accepted when the result fits;
    fractional digits count as written (`1.0000000` has seven) and after the exponent moved the point
    (`10e-7` has seven). Negative values and zero are accepted, `-0` is 0.

    Raises QuantityError for everything else. Remembered, since most quantities are few small numbers; what is refused
    is not, so a text that is kept is short.
    """
    if raw[:1] == b'"':
        raw = _unquoted(raw)
    # Most tokens are short counts. bytes.isdigit knows ASCII digits only, and is False for "".
    if (
        raw.isdigit()
        and len(raw) <= QUANTITY_INTEGER_DIGITS_MAX
        and (raw[0] != _ZERO or len(raw) == 1)
    ):
        return int(raw) * MICROS_PER_UNIT
    whole, _, fraction = raw.partition(b".")
    if (
        whole.isdigit()
        and fraction.isdigit()
        and len(whole) <= QUANTITY_INTEGER_DIGITS_MAX
        and len(fraction) <= FRACTION_DIGITS_MAX
        and (raw[0] != _ZERO or len(whole) == 1)
    ):
        return int(whole + fraction) * _POWERS_OF_TEN[FRACTION_DIGITS_MAX - len(fraction)]
    return _parse_any(raw)


def _unquoted(raw: bytes) -> bytes:
    """The text of a JSON string token; what cannot be a number becomes QuantityError."""
    if b"\\" not in raw:
        if raw[-1] != _QUOTE:
            raise QuantityError(_NOT_A_NUMBER)
        return raw[1:-1]
    # "\u0031" is the string "1" to every JSON reader, so it is to us. Six bytes a character at most.
    if len(raw) > 6 * QUANTITY_TEXT_BYTES_MAX + 2:
        raise QuantityError(_TOO_LONG)
    try:
        return msgspec.json.decode(raw, type=str).encode("ascii")
    except (msgspec.DecodeError, UnicodeError):
        raise QuantityError(_NOT_A_NUMBER) from None


def _parse_any(text: bytes) -> int:
    """The whole grammar: signs, exponents, and every refusal. `text` is without quotes."""
    if len(text) > QUANTITY_TEXT_BYTES_MAX:
        raise QuantityError(_TOO_LONG if text[0] in _NUMBER_STARTS else _NOT_A_NUMBER)
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise QuantityError(_NOT_A_NUMBER)
    sign, whole, fraction, exponent = match.groups(b"")
    # The exponent itself is a number of at most 62 digits: cheap to read, never used as a power unchecked.
    fraction_digits = len(fraction) - int(exponent or b"0")
    if fraction_digits > FRACTION_DIGITS_MAX:
        raise QuantityError(_TOO_FINE)
    digits = (whole + fraction).lstrip(b"0")
    if not digits:
        return 0
    zeros = FRACTION_DIGITS_MAX - fraction_digits
    if len(digits) + zeros > _MICROS_DIGITS_MAX:
        raise QuantityError(_TOO_LARGE)
    micros = int(digits) * _POWERS_OF_TEN[zeros]
    return -micros if sign else micros


def format_micros(micros: int) -> str:
    """Plain decimal text, exact, without exponent and without trailing zeros: `100`, `0.3`, `-0.000001`."""
    assert -TOTAL_MICROS_LIMIT <= micros < TOTAL_MICROS_LIMIT, "no total can be this large"
    whole, part = divmod(abs(micros), MICROS_PER_UNIT)
    sign = "-" if micros < 0 else ""
    if part == 0:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{part:06d}".rstrip("0")


def to_json(micros: int, *, as_string: bool) -> msgspec.Raw:
    """The JSON token of `format_micros`: a number, or a string for clients whose JSON reads doubles."""
    text = format_micros(micros)
    return msgspec.Raw(f'"{text}"' if as_string else text)


def pack(micros: int) -> int | msgspec.msgpack.Ext:
    """A quantity's form in the log: an int64 as is, else extension 1 with 16 bytes.

    The range is the format's, not the request's: lowering a limit must not make an old log unreadable.
    """
    if INT64_MIN <= micros <= INT64_MAX:
        return micros
    assert _bytes_needed(micros) <= WIDE_QUANTITY_BYTES, "a quantity fits 16 bytes; sums are totals"
    return msgspec.msgpack.Ext(
        EXT_QUANTITY, micros.to_bytes(WIDE_QUANTITY_BYTES, "big", signed=True)
    )


def pack_total(micros: int) -> int | msgspec.msgpack.Ext:
    """A total's form in snapshots: an int64 as is, else extension 2 with as few bytes as hold it."""
    if INT64_MIN <= micros <= INT64_MAX:
        return micros
    assert -TOTAL_MICROS_LIMIT <= micros < TOTAL_MICROS_LIMIT, "no total can be this large"
    return msgspec.msgpack.Ext(
        EXT_TOTAL, micros.to_bytes(_bytes_needed(micros), "big", signed=True)
    )


def unpack_ext(code: int, data: bytes | memoryview) -> int:
    """Micros of either extension: the `ext_hook` of every msgpack decoder that reads quantities or totals.

    Raises ValueError for what `pack` and `pack_total` never write: another code, another length, or a value
    with a shorter form. Such bytes are not ours: the record is damaged, or a newer version wrote it.
    (A plain msgpack int above int64 passes the hook by; only the record's digest can find that one.)
    """
    length = len(data)
    if code == EXT_QUANTITY:
        if length != WIDE_QUANTITY_BYTES:
            message = f"a wide quantity has {WIDE_QUANTITY_BYTES} bytes, not {length}: run `stripemeter check`"
            raise ValueError(message)
    elif code != EXT_TOTAL:
        message = (
            f"unknown msgpack extension {code}: a newer version wrote this; start that version"
        )
        raise ValueError(message)
    elif length > TOTAL_BYTES_MAX:
        message = (
            f"a total has at most {TOTAL_BYTES_MAX} bytes, not {length}: run `stripemeter check`"
        )
        raise ValueError(message)
    micros = int.from_bytes(data, "big", signed=True)
    if INT64_MIN <= micros <= INT64_MAX or (code == EXT_TOTAL and length != _bytes_needed(micros)):
        message = (
            f"extension {code} holds a number that has a shorter form: run `stripemeter check`"
        )
        raise ValueError(message)
    return micros


def _bytes_needed(micros: int) -> int:
    """The fewest bytes of two's complement that hold `micros`: its magnitude's bits, and a sign bit."""
    return (micros if micros >= 0 else ~micros).bit_length() // 8 + 1
