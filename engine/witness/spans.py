"""Billing periods by the calendar of Python's own datetime, and what control records say of them over time.

Rules it keeps: it is written from docs/ARCHITECTURE.md and the HTTP contract alone: months are UTC, days too, an
anchor's day is clamped to short months and counted from the original. It must not know the engine's periods.
"""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
ALWAYS_US: Final = -62_135_596_800_000_000
"""The first instant of year 1."""
END_US: Final = 253_402_300_800_000_000
"""The end of year 9999."""
_DAY: Final = timedelta(days=1)
History = tuple[tuple[int, Any], ...]
"""(since, value), in order of time."""


class Span(NamedTuple):
    """A period, half-open, in microseconds."""

    start_us: int
    end_us: int


def us_of(at: datetime) -> int:
    """Microseconds since 1970."""
    return (at - EPOCH) // timedelta(microseconds=1)


def at_of(us: int) -> datetime:
    """The instant of year 1 to 9999."""
    return EPOCH + timedelta(microseconds=us)


def month_of(ts_us: int) -> Span:
    """The UTC month that holds an instant."""
    at = at_of(ts_us)
    days = calendar.monthrange(at.year, at.month)[1]
    start_us = us_of(at.replace(day=1, hour=0, minute=0, second=0, microsecond=0))
    return Span(start_us, start_us + days * (_DAY // timedelta(microseconds=1)))


def _day_of(ts_us: int) -> Span:
    width_us = _DAY // timedelta(microseconds=1)
    start_us = ts_us - ts_us % width_us
    return Span(start_us, start_us + width_us)


def _boundary(anchor: datetime, months: int) -> int:
    """Where a month (12 * year + month - 1) is cut by an anchor."""
    year, month = divmod(months, 12)
    if year < 1:
        return ALWAYS_US
    if year > 9999:
        return END_US
    day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
    return us_of(anchor.replace(year=year, month=month + 1, day=day))


def _anchored(ts_us: int, anchor_us: int) -> Span:
    at, anchor = at_of(ts_us), at_of(anchor_us)
    months = 12 * at.year + at.month - 1
    cut = _boundary(anchor, months)
    if ts_us < cut:
        return Span(_boundary(anchor, months - 1), cut)
    return Span(cut, _boundary(anchor, months + 1))


def span_of(kind: str, ts_us: int, anchor_us: int | None) -> Span:
    """The period of a kind that holds an instant."""
    if kind == "day":
        return _day_of(ts_us)
    if kind == "subscription" and anchor_us is not None:
        return _anchored(ts_us, anchor_us)
    return month_of(ts_us)


def in_force(history: History, at_us: int) -> Any:
    """The value at an instant; the first one before all of them."""
    return next((value for since, value in reversed(history) if since <= at_us), history[0][1])


def with_change(history: History, value: Any, since_us: int | None) -> History:
    """A history with another value from an instant on; None: it always was so."""
    if since_us is None:
        return history if history[-1][1] == value else ((ALWAYS_US, value),)
    if history[-1][1] == value and history[-1][0] <= since_us:
        return history
    before = tuple(entry for entry in history if entry[0] < since_us)
    if before and before[-1][1] == value:
        return before
    return (*before, (since_us, value))


def period_at(kinds: History, anchors: History, ts_us: int) -> Span:
    """The period that holds an instant, cut where the kind of periods, or the anchor in use, changed."""
    cuts = {since for since, _ in kinds}
    cuts |= {since for since, _ in anchors if in_force(kinds, since) == "subscription"}
    kind = in_force(kinds, ts_us)
    anchor_us = in_force(anchors, ts_us) if kind == "subscription" else None
    span = span_of(kind, ts_us, anchor_us)
    lower = max((cut for cut in cuts if cut <= ts_us), default=ALWAYS_US)
    upper = min((cut for cut in cuts if cut > ts_us), default=END_US)
    return Span(max(span.start_us, lower), min(span.end_us, upper))
