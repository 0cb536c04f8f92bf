"""Exact decimals in JSON: with their digits, never with an exponent, never as binary numbers.

It must not know what a document says.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import msgspec

decode_exactly: Final = msgspec.json.Decoder(float_hook=Decimal).decode
"""JSON to values, numbers as int or Decimal. Raises msgspec.MsgspecError."""


def number(value: Decimal | int | None, *, as_string: bool = False) -> msgspec.Raw:
    """One number as JSON; None is null."""
    if value is None:
        return msgspec.Raw(b"null")
    text = str(value) if isinstance(value, int) else f"{value:f}"
    return msgspec.Raw(f'"{text}"'.encode() if as_string else text.encode())


def exact_json(value: object, *, as_string: bool = False) -> bytes:
    """A document of mappings, lists, texts, numbers and nulls as JSON; `as_string`: every number as a text."""
    return msgspec.json.encode(_plain(value, as_string=as_string))


def _plain(value: object, *, as_string: bool) -> Any:
    match value:
        case dict():
            return {name: _plain(one, as_string=as_string) for name, one in value.items()}
        case list() | tuple():
            return [_plain(one, as_string=as_string) for one in value]
        case bool():
            return value
        case Decimal() | int():
            return number(value, as_string=as_string)
        case _:
            return value
