"""Field types that several resources share: how quantities and instants are written and documented.

It must not know any resource.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

import msgspec

from engine.core.times import format_instant
from gateway.parameters import TEXT_PATTERN

Quantity = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="Exact decimal; with `numbers=string` a string.",
        extra_json_schema={"type": ["number", "string"], "examples": [1234.5]},
    ),
]
Instant = Annotated[
    str,
    msgspec.Meta(
        description="ISO 8601 in UTC.",
        extra_json_schema={"format": "date-time", "examples": ["2026-01-31T09:30:00.000Z"]},
    ),
]
TenantId = Annotated[
    str,
    msgspec.Meta(
        description="The tenant.",
        min_length=1,
        max_length=255,
        examples=["acme"],
        pattern=TEXT_PATTERN,
    ),
]
CustomerRef = Annotated[
    str,
    msgspec.Meta(
        description="The customer, as events name it.",
        min_length=1,
        max_length=255,
        examples=["customer-42"],
        pattern=TEXT_PATTERN,
    ),
]
MetricName = Annotated[
    str,
    msgspec.Meta(
        description="The metric, as events name it.",
        min_length=1,
        max_length=100,
        examples=["api_calls"],
        pattern=TEXT_PATTERN,
    ),
]


class Period(msgspec.Struct, frozen=True):
    """A half-open period, [start, end)."""

    start: Instant
    end: Instant


def instant_or_none(us: int | None) -> str | None:
    """An instant as text, if there is one."""
    return None if us is None else format_instant(us)


def encode_cursor(value: list[Any]) -> str:
    """An opaque cursor that holds `value`."""
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).decode().rstrip("=")


def decode_cursor(text: str) -> list[Any] | None:
    """What `encode_cursor` was given; None when this text never came from it."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        value = msgspec.json.decode(data)
    except (binascii.Error, msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        return None
    return value if isinstance(value, list) else None
