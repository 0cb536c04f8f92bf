"""Instants of periods, commitments and credits: text, date or datetime to whole microseconds and back.

Rules kept here: an instant is an int of microseconds since 1970-01-01T00:00:00Z (`_us`); a plain date is its midnight
in UTC; a time without an offset is refused; digits beyond microseconds are cut off. It must not know the present.

The engine's own calendar (engine.core.times) is not used: this library stands alone. `datetime` is enough for years 1
to 9999, and a bill is not a hot path.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Final

from engine.pricing.errors import PricingError

SECOND_US: Final = 1_000_000

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_FIRST_US: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST_US: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
"""An offset can put a time that can be written outside of the years that can be."""
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_INSTANT: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,12})?"
    r"(?:[Zz]|[+-][0-9]{2}:[0-9]{2})",
    re.ASCII,
)
_WANTED: Final = (
    "must be a date such as 2026-01-31, which means midnight UTC, "
    "or a time with an offset such as 2026-01-31T09:30:00Z"
)


def instant_us(value: object, field: str) -> int:
    """Microseconds of a text, a date or a datetime with an offset; PricingError names `field` for all else."""
    if isinstance(value, datetime):
        found = value
        if found.tzinfo is None:
            raise PricingError([(field, "has no offset from UTC: give it a time zone")])
    elif isinstance(value, date):
        found = datetime(value.year, value.month, value.day, tzinfo=UTC)
    elif isinstance(value, str) and (_DATE.fullmatch(value) or _INSTANT.fullmatch(value)):
        try:
            found = datetime.fromisoformat(value.upper())
        except ValueError:
            message = "is on a day or at a time that does not exist"
            raise PricingError([(field, message)]) from None
        if found.tzinfo is None:
            found = found.replace(tzinfo=UTC)
    else:
        raise PricingError([(field, _WANTED)])
    at_us = (found - _EPOCH) // _MICROSECOND
    if not _FIRST_US <= at_us <= _LAST_US:
        raise PricingError([(field, "must lie in the years 1 to 9999 (UTC)")])
    return at_us


def instant_text(at_us: int) -> str:
    """The instant as the HTTP contract writes it: `2026-01-31T09:30:00Z`, a fraction only when there is one."""
    text = (_EPOCH + timedelta(microseconds=at_us)).isoformat()
    return text.replace("+00:00", "Z")
