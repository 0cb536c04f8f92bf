"""Periods, schedules and buckets: golden tables of Stripe's rule, and the ends of time."""

from __future__ import annotations

import pytest

from engine.core.periods import (
    CALENDAR,
    Interval,
    PeriodKind,
    Segment,
    bucket_end,
    bucket_start,
    buckets,
    next_boundary,
    period_in,
    period_of,
    schedule_of,
)
from engine.core.times import (
    DAY_US,
    HOUR_US,
    INSTANT_US_END,
    INSTANT_US_MIN,
    MINUTE_US,
    parse_instant,
)


def at(text: str) -> int:
    """An instant from a date, with or without a time of day, in UTC."""
    return parse_instant(f"{text}T00:00:00Z" if len(text) == 10 else f"{text}Z")


def boundaries(anchor: str, first: str, count: int) -> list[int]:
    """The starts of `count` periods from the one that holds `first`, each asked at the end of the one before."""
    starts = []
    ts_us = at(first)
    for _ in range(count):
        start_us, ts_us = period_of("subscription", ts_us, at(anchor))
        starts.append(start_us)
    return starts


GOLDEN = [
    (
        "2026-01-31T10:00:00",
        "2026-01-31T10:00:00",
        [
            "2026-01-31",
            "2026-02-28",
            "2026-03-31",
            "2026-04-30",
            "2026-05-31",
            "2026-06-30",
            "2026-07-31",
        ],
    ),
    ("2024-01-31T10:00:00", "2024-02-01", ["2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30"]),
    ("2024-02-29T10:00:00", "2024-02-29T10:00:00", ["2024-02-29", "2024-03-29", "2024-04-29"]),
    ("2024-02-29T10:00:00", "2025-02-01", ["2025-01-29", "2025-02-28", "2025-03-29"]),
    ("2024-02-29T10:00:00", "2028-02-29T10:00:00", ["2028-02-29", "2028-03-29"]),
    ("2026-01-30T10:00:00", "2026-02-10", ["2026-01-30", "2026-02-28", "2026-03-30"]),
    ("2026-01-29T10:00:00", "1900-02-28", ["1900-01-29", "1900-02-28", "1900-03-29"]),
    ("2026-01-15T10:00:00", "2025-12-20", ["2025-12-15", "2026-01-15", "2026-02-15"]),
    ("2026-01-31T10:00:00", "2000-02-01", ["2000-01-31", "2000-02-29", "2000-03-31"]),
]


@pytest.mark.parametrize(("anchor", "first", "days"), GOLDEN)
def test_boundaries_come_from_the_original_anchor_clamped_to_short_months(
    anchor: str, first: str, days: list[str]
) -> None:
    assert boundaries(anchor, first, len(days)) == [at(f"{day}T10:00:00") for day in days]


def test_the_time_of_day_of_the_anchor_is_kept_to_the_microsecond_and_summer_time_moves_nothing() -> (
    None
):
    anchor_us = at("2026-01-31T23:59:59.999999")
    march = period_of("subscription", at("2026-03-29T02:30:00"), anchor_us)
    assert march == (at("2026-02-28T23:59:59.999999"), at("2026-03-31T23:59:59.999999"))
    assert period_of("subscription", march[1] - 1, anchor_us) == march
    assert period_of("subscription", march[1], anchor_us)[0] == march[1]


@pytest.mark.parametrize(
    ("kind", "ts", "start", "end"),
    [
        ("calendar", "2026-01-31T23:59:59.999999", "2026-01-01", "2026-02-01"),
        ("calendar", "2026-02-01", "2026-02-01", "2026-03-01"),
        ("calendar", "2025-12-31T23:59:59", "2025-12-01", "2026-01-01"),
        ("calendar", "1969-12-31T23:59:59", "1969-12-01", "1970-01-01"),
        ("day", "2026-02-28T12:00:00", "2026-02-28", "2026-03-01"),
        ("day", "1969-12-31T23:59:59.999999", "1969-12-31", "1970-01-01"),
        ("subscription", "2026-02-28T12:00:00", "2026-02-01", "2026-03-01"),
    ],
)
def test_calendar_and_day_periods_are_utc_and_a_subscription_without_anchor_is_calendar(
    kind: PeriodKind, ts: str, start: str, end: str
) -> None:
    assert period_of(kind, at(ts)) == (at(start), at(end))


@pytest.mark.parametrize("kind", ["calendar", "day", "subscription"])
@pytest.mark.parametrize(
    "anchor_us", [None, INSTANT_US_MIN, at("2026-01-31T10:00:00"), INSTANT_US_END - 1]
)
def test_the_first_and_the_last_period_end_with_time_itself(
    kind: PeriodKind, anchor_us: int | None
) -> None:
    start_us, end_us = period_of(kind, INSTANT_US_MIN, anchor_us)
    assert start_us == INSTANT_US_MIN < end_us <= INSTANT_US_MIN + 31 * DAY_US
    start_us, end_us = period_of(kind, INSTANT_US_END - 1, anchor_us)
    assert INSTANT_US_END - 31 * DAY_US <= start_us < INSTANT_US_END == end_us


def test_a_time_outside_of_time_and_an_unknown_kind_are_bugs() -> None:
    for us in (INSTANT_US_MIN - 1, INSTANT_US_END):
        with pytest.raises(AssertionError):
            period_of("calendar", us)
        with pytest.raises(AssertionError):
            period_in(CALENDAR, us)
    with pytest.raises(AssertionError):
        period_of("week", 0)  # type: ignore[arg-type]


SWITCH_US = at("2026-03-10T12:00:00")
LATER_US = at("2026-05-20")
SCHEDULE = schedule_of(
    Segment(INSTANT_US_MIN, "calendar", None),
    Segment(SWITCH_US, "subscription", at("2026-01-31T10:00:00")),
    Segment(LATER_US, "day", None),
)


@pytest.mark.parametrize(
    ("ts", "start", "end"),
    [
        ("2026-02-10", "2026-02-01", "2026-03-01"),
        ("2026-03-10T11:59:59.999999", "2026-03-01", "2026-03-10T12:00:00"),
        ("2026-03-10T12:00:00", "2026-03-10T12:00:00", "2026-03-31T10:00:00"),
        ("2026-04-01", "2026-03-31T10:00:00", "2026-04-30T10:00:00"),
        ("2026-05-19", "2026-04-30T10:00:00", "2026-05-20"),
        ("2026-05-20", "2026-05-20", "2026-05-21"),
        ("2027-05-20T10:00:00", "2027-05-20", "2027-05-21"),
    ],
)
def test_a_change_of_schedule_cuts_the_running_period_at_its_own_start(
    ts: str, start: str, end: str
) -> None:
    assert period_in(SCHEDULE, at(ts)) == (at(start), at(end))
    assert next_boundary(SCHEDULE, at(ts)) == at(end)


def test_a_boundary_is_not_its_own_next_one() -> None:
    assert next_boundary(CALENDAR, at("2026-03-01")) == at("2026-04-01")
    assert next_boundary(CALENDAR, at("2026-03-01") - 1) == at("2026-03-01")
    assert next_boundary(SCHEDULE, SWITCH_US - 1) == SWITCH_US


def test_a_change_at_a_boundary_makes_no_empty_period() -> None:
    start_us = at("2026-03-01")
    schedule = schedule_of(
        Segment(INSTANT_US_MIN, "calendar", None), Segment(start_us, "day", None)
    )
    assert period_in(schedule, start_us - 1) == (at("2026-02-01"), start_us)
    assert period_in(schedule, start_us) == (start_us, at("2026-03-02"))


@pytest.mark.parametrize(
    "segments",
    [
        [],
        [Segment(0, "calendar", None)],
        [Segment(INSTANT_US_MIN, "calendar", None), Segment(INSTANT_US_MIN, "day", None)],
        [
            Segment(INSTANT_US_MIN, "calendar", None),
            Segment(9, "day", None),
            Segment(8, "day", None),
        ],
        [Segment(INSTANT_US_MIN, "calendar", None), Segment(INSTANT_US_END, "day", None)],
    ],
)
def test_a_schedule_with_a_hole_or_out_of_order_is_a_bug(segments: list[Segment]) -> None:
    with pytest.raises(AssertionError):
        schedule_of(*segments)


@pytest.mark.parametrize(
    ("interval", "start", "end"),
    [
        ("minute", "2026-02-28T23:59:00", "2026-03-01"),
        ("hour", "2026-02-28T23:00:00", "2026-03-01"),
        ("day", "2026-02-28", "2026-03-01"),
        ("month", "2026-02-01", "2026-03-01"),
    ],
)
def test_a_bucket_is_the_minute_hour_day_or_month_in_utc(
    interval: Interval, start: str, end: str
) -> None:
    assert bucket_start(interval, at("2026-02-28T23:59:59.999999")) == at(start)
    assert bucket_start(interval, at(start)) == at(start)
    assert bucket_end(interval, at(start)) == at(end)


def test_buckets_before_1970_start_on_their_own_grid_too() -> None:
    assert bucket_start("hour", -1) == -HOUR_US
    assert bucket_start("minute", -MINUTE_US) == -MINUTE_US
    assert bucket_start("month", -1) == at("1969-12-01")


def test_buckets_overlap_the_range_the_end_being_exclusive() -> None:
    since_us, until_us = at("2026-01-15"), at("2026-04-01")
    assert list(buckets("month", since_us, until_us, buckets_max=3)) == [
        at("2026-01-01"),
        at("2026-02-01"),
        at("2026-03-01"),
    ]
    assert len(list(buckets("month", since_us, until_us + 1, buckets_max=4))) == 4
    assert list(buckets("day", since_us + 1, since_us + DAY_US, buckets_max=1)) == [since_us]
    assert list(buckets("minute", since_us, since_us, buckets_max=1)) == []
    assert list(buckets("hour", until_us, since_us, buckets_max=1)) == []


@pytest.mark.parametrize(
    ("interval", "count"), [("minute", 129_600), ("hour", 2_160), ("day", 90), ("month", 3)]
)
def test_too_many_buckets_are_refused_before_the_first_one(interval: Interval, count: int) -> None:
    since_us, until_us = at("2026-01-01"), at("2026-04-01")
    assert sum(1 for _ in buckets(interval, since_us, until_us, buckets_max=count)) == count
    with pytest.raises(
        ValueError, match=f"{count} buckets of one {interval}, at most {count - 1}.*shorter range"
    ):
        buckets(interval, since_us, until_us, buckets_max=count - 1)
    with pytest.raises(ValueError, match="shorter range"):
        buckets(interval, INSTANT_US_MIN, INSTANT_US_END, buckets_max=1_000)
