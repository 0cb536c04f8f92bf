"""Billing periods, schedules of them, and the buckets of usage history.

Rules kept here:

- A period is half-open, [start_us, end_us). The periods of a kind tile all of time: no gap, no overlap, and each
  instant of years 1 to 9999 is in exactly one. The last one ends at INSTANT_US_END.
- `subscription` boundaries are computed from the original anchor, never from the boundary before: the 31st is
  clamped to the last day of a short month and is the 31st again in the next long one. The time of day is kept.
  That is Stripe's rule: https://docs.stripe.com/billing/subscriptions/billing-cycle.
- All of it is UTC, so daylight saving moves nothing.
- A schedule never changes the past: a change cuts the running period short at its own start.

It must not know of customers, mappings or the present. Everything is integer arithmetic on microseconds, since
`datetime` can't hold the end of year 9999; the results per month are remembered, bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Final, Literal, NamedTuple, assert_never

from engine.core.times import (
    DAY_US,
    HOUR_US,
    INSTANT_US_END,
    INSTANT_US_MIN,
    MINUTE_US,
    civil_from_days,
    days_from_civil,
    days_in_month,
)

PeriodKind = Literal["calendar", "day", "subscription"]
Interval = Literal["minute", "hour", "day", "month"]

_DAYS_CACHED_MAX: Final = 4_096
_BOUNDARIES_CACHED_MAX: Final = 65_536
"""(anchor, month) pairs: two of each customer that has an anchor of its own."""

_WIDTH_US: Final[dict[Interval, int]] = {"minute": MINUTE_US, "hour": HOUR_US, "day": DAY_US}


class Segment(NamedTuple):
    """From `from_us` on periods are of this kind. `anchor_us` is used by `subscription` only."""

    from_us: int
    kind: PeriodKind
    anchor_us: int | None


Schedule = tuple[Segment, ...]
"""Segments in order of time, the first from INSTANT_US_MIN. Make one with `schedule_of`."""


def schedule_of(*segments: Segment) -> Schedule:
    """The segments as a schedule, checked: the first starts with time, each other one after the one before."""
    assert segments, "a schedule has at least one segment"
    assert segments[0].from_us == INSTANT_US_MIN, "the first segment covers all that was before"
    for before, after in pairwise(segments):
        assert before.from_us < after.from_us, "segments are in order, none is empty"
    assert segments[-1].from_us < INSTANT_US_END
    return segments


CALENDAR: Final = schedule_of(Segment(INSTANT_US_MIN, "calendar", None))
"""The schedule of whoever has set nothing."""


def period_of(kind: PeriodKind, ts_us: int, anchor_us: int | None = None) -> tuple[int, int]:
    """(start_us, end_us) of the period that holds `ts_us`; start_us <= ts_us < end_us.

    `subscription` goes by `anchor_us`, also before it; without an anchor it is the calendar month.
    """
    assert INSTANT_US_MIN <= ts_us < INSTANT_US_END
    days = ts_us // DAY_US
    if kind == "calendar":
        return _calendar_month(days)
    if kind == "day":
        return days * DAY_US, (days + 1) * DAY_US
    if kind == "subscription":
        if anchor_us is None:
            return _calendar_month(days)
        month = _month_of(days)
        boundary_us = _boundary_us(anchor_us, month)
        if ts_us < boundary_us:
            return _boundary_us(anchor_us, month - 1), boundary_us
        return boundary_us, _boundary_us(anchor_us, month + 1)
    assert_never(kind)


def period_in(schedule: Schedule, ts_us: int) -> tuple[int, int]:
    """(start_us, end_us) of the period that holds `ts_us` by the segment in force then, clipped to that segment."""
    # Nearly every question is about the last segment; the others are few, so a search from the end will do.
    until_us = INSTANT_US_END
    for from_us, kind, anchor_us in reversed(schedule):
        if ts_us >= from_us:
            start_us, end_us = period_of(kind, ts_us, anchor_us)
            # max() and min() cost twice as much, for every event.
            return (
                start_us if start_us > from_us else from_us,  # noqa: FURB136
                end_us if end_us < until_us else until_us,  # noqa: FURB136
            )
        until_us = from_us
    message = "before the first segment, which covers all of time"
    raise AssertionError(message)


def next_boundary(schedule: Schedule, after_us: int) -> int:
    """The first end of a period that is greater than `after_us`; a period that ends at `after_us` is over."""
    return period_in(schedule, after_us)[1]


def bucket_start(interval: Interval, us: int) -> int:
    """The start of the minute, hour, day or month (UTC) that holds `us`."""
    if interval == "month":
        return _calendar_month(us // DAY_US)[0]
    return us - us % _WIDTH_US[interval]


def bucket_end(interval: Interval, start_us: int) -> int:
    """The exclusive end of the bucket that starts at `start_us`, which is the next one's start."""
    if interval == "month":
        return _calendar_month(start_us // DAY_US)[1]
    return start_us + _WIDTH_US[interval]


def first_whole_bucket(interval: Interval, us: int) -> int:
    """The start of the first bucket that does not begin before `us`."""
    start_us = bucket_start(interval, us)
    return us if start_us == us else bucket_end(interval, start_us)


def buckets(interval: Interval, since_us: int, until_us: int, *, buckets_max: int) -> Iterator[int]:
    """The starts of all buckets that overlap [since_us, until_us), in order, none when the range is empty.

    The first may start before `since_us`. Raises ValueError, before the first one, when there would be more than
    `buckets_max`; its message is for the client.
    """
    if since_us >= until_us:
        return iter(())
    assert since_us >= INSTANT_US_MIN
    assert until_us <= INSTANT_US_END
    if interval == "month":
        numbers = range(_month_of(since_us // DAY_US), _month_of((until_us - 1) // DAY_US) + 1)
    else:
        numbers = range(bucket_start(interval, since_us), until_us, _WIDTH_US[interval])
    if len(numbers) > buckets_max:
        message = (
            f"the range has {len(numbers)} buckets of one {interval}, at most {buckets_max} are allowed: "
            "ask for a shorter range or a longer interval"
        )
        raise ValueError(message)
    return map(_month_start_us, numbers) if interval == "month" else iter(numbers)


@lru_cache(maxsize=_DAYS_CACHED_MAX)
def _month_of(days: int) -> int:
    """Months since year 0 of a day since 1970: 12 * year + (month - 1)."""
    year, month, _ = civil_from_days(days)
    return 12 * year + month - 1


@lru_cache(maxsize=_DAYS_CACHED_MAX)
def _calendar_month(days: int) -> tuple[int, int]:
    """(start_us, end_us) of the calendar month that holds a day since 1970."""
    month = _month_of(days)
    return _month_start_us(month), _month_start_us(month + 1)


def _month_start_us(month: int) -> int:
    """The first instant of a month since year 0."""
    year, month_before = divmod(month, 12)
    return days_from_civil(year, month_before + 1, 1) * DAY_US


@lru_cache(maxsize=_BOUNDARIES_CACHED_MAX)
def _boundary_us(anchor_us: int, month: int) -> int:
    """Where a month since year 0 is cut by a billing anchor: its day, or the month's last, at its time of day.

    A month has exactly one boundary, within it. Those outside of time are moved to its ends.
    """
    anchor_days, time_of_day_us = divmod(anchor_us, DAY_US)
    _, _, anchor_day = civil_from_days(anchor_days)
    year, month_before = divmod(month, 12)
    day = min(anchor_day, days_in_month(year, month_before + 1))
    us = _month_start_us(month) + (day - 1) * DAY_US + time_of_day_us
    return min(max(us, INSTANT_US_MIN), INSTANT_US_END)
