"""Documents of the pricing library as JSON: exact decimals in plain notation, and back again.

Rules it keeps: a Decimal leaves with its digits, never with an exponent and never as a binary float; with
`as_string` every number is a text. It must not know what a document says.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Final

import msgspec

from engine.pricing.money import plain_text

Money = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="Exact, with the currency's digits; with `numbers=string` a string.",
        extra_json_schema={"type": ["number", "string"], "examples": [220.00]},
    ),
]
MoneyOrNull = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="Exact, with the currency's digits; null: not known, and the reason is given.",
        extra_json_schema={"type": ["number", "string", "null"], "examples": [220.00]},
    ),
]
PriceText = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="A price configuration.",
        extra_json_schema={
            "type": ["object", "null"],
            "examples": [{"model": "flat", "currency": "USD", "unitPrice": 0.01}],
        },
    ),
]
NULL: Final = msgspec.Raw(b"null")
decode_exactly: Final = msgspec.json.Decoder(float_hook=Decimal).decode
"""JSON to values, numbers as int or Decimal. Raises msgspec.MsgspecError."""


def number(value: Decimal | int | None, *, as_string: bool = False) -> msgspec.Raw:
    """One number as JSON."""
    if value is None:
        return NULL
    text = str(value) if isinstance(value, int) else plain_text(value)
    return msgspec.Raw(f'"{text}"'.encode() if as_string else text.encode())


def exact_json(value: object, *, as_string: bool = False) -> msgspec.Raw:
    """A document of mappings, lists, texts, numbers and nulls as JSON."""
    return msgspec.Raw(msgspec.json.encode(_plain(value, as_string=as_string)))


def _plain(value: object, *, as_string: bool) -> Any:
    match value:
        case dict():
            return {name: _plain(one, as_string=as_string) for name, one in value.items()}
        case list() | tuple():
            return [_plain(one, as_string=as_string) for one in value]
        case bool() | None:
            return value
        case Decimal() | int():
            return number(value, as_string=as_string)
        case _:
            return value
