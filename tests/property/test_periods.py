"""Periods tile time: consecutive, half-open, around every instant; and they agree with a reader of the calendar."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta

from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.core.periods import (
    Interval,
    PeriodKind,
    Schedule,
    Segment,
    bucket_end,
    bucket_start,
    buckets,
    next_boundary,
    period_in,
    period_of,
    schedule_of,
)
from engine.core.times import DAY_US, INSTANT_US_END, INSTANT_US_MIN, format_instant, parse_instant

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
KINDS: list[PeriodKind] = ["calendar", "day", "subscription"]
INTERVALS: list[Interval] = ["minute", "hour", "day", "month"]

anywhere = st.integers(INSTANT_US_MIN, INSTANT_US_END - 1)
# The days where months differ, in leap years and others, at the edges of the day.
turns = st.builds(
    lambda year, month, days, offset: (
        in_microseconds(datetime(year, month, 1, tzinfo=UTC)) + days * DAY_US + offset
    ),
    st.sampled_from([1900, 1969, 1970, 1999, 2000, 2023, 2024, 2026, 2100]),
    st.integers(1, 12),
    st.integers(-4, 31),
    st.integers(-2, 2) | st.integers(0, DAY_US),
)
instants = turns | anywhere
anchors = st.none() | instants
kinds = st.sampled_from(KINDS)


def in_microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


@settings(max_examples=200)
@given(kinds, instants, anchors)
@example("subscription", INSTANT_US_MIN, INSTANT_US_END - 1)
@example("subscription", INSTANT_US_END - 1, INSTANT_US_MIN)
def test_each_instant_is_in_exactly_one_period_and_its_neighbours_touch(
    kind: PeriodKind, ts_us: int, anchor_us: int | None
) -> None:
    start_us, end_us = period_of(kind, ts_us, anchor_us)
    assert INSTANT_US_MIN <= start_us <= ts_us < end_us <= INSTANT_US_END
    assert period_of(kind, start_us, anchor_us) == (start_us, end_us)
    assert period_of(kind, end_us - 1, anchor_us) == (start_us, end_us)
    if end_us < INSTANT_US_END:
        assert period_of(kind, end_us, anchor_us)[0] == end_us
    if start_us > INSTANT_US_MIN:
        assert period_of(kind, start_us - 1, anchor_us)[1] == start_us


def moved_by_months(anchor: datetime, months: int) -> datetime:
    """The anchor so many months later: same time of day, same day or the month's last."""
    year, month_before = divmod(12 * anchor.year + anchor.month - 1 + months, 12)
    day = min(anchor.day, calendar.monthrange(year, month_before + 1)[1])
    return anchor.replace(year=year, month=month_before + 1, day=day)


@settings(max_examples=200)
@given(turns, st.integers(-600, 600), st.integers(-2, 2))
def test_every_boundary_is_the_anchor_moved_by_whole_months(
    anchor_us: int, months: int, offset: int
) -> None:
    anchor = EPOCH + timedelta(microseconds=anchor_us)
    edges = [in_microseconds(moved_by_months(anchor, months + step)) for step in (-1, 0, 1)]
    ts_us = edges[1] + offset
    expected = (edges[0], edges[1]) if offset < 0 else (edges[1], edges[2])
    assert period_of("subscription", ts_us, anchor_us) == expected


@settings(max_examples=200)
@given(turns)
def test_the_anchor_itself_starts_a_period(anchor_us: int) -> None:
    assert period_of("subscription", anchor_us, anchor_us)[0] == anchor_us


@settings(max_examples=200)
@given(instants)
def test_a_calendar_month_and_a_day_are_what_their_text_says(ts_us: int) -> None:
    text = format_instant(ts_us)
    assert period_of("calendar", ts_us)[0] == parse_instant(f"{text[:7]}-01T00:00:00Z")
    assert period_of("day", ts_us)[0] == parse_instant(f"{text[:10]}T00:00:00Z")


segments = st.lists(
    st.tuples(instants, kinds, anchors), max_size=5, unique_by=lambda segment: segment[0]
)


def scheduled(
    first: tuple[PeriodKind, int | None], rest: list[tuple[int, PeriodKind, int | None]]
) -> Schedule:
    later = [Segment(*segment) for segment in sorted(rest, key=lambda segment: segment[0])]
    later = [segment for segment in later if segment.from_us > INSTANT_US_MIN]
    return schedule_of(Segment(INSTANT_US_MIN, *first), *later)


schedules = st.builds(scheduled, st.tuples(kinds, anchors), segments)


@settings(max_examples=100)
@given(schedules, instants, st.integers(-2, 2))
def test_a_schedule_clips_each_natural_period_to_its_segment_exactly(
    schedule: Schedule, anywhere_us: int, offset: int
) -> None:
    for base_us in [anywhere_us, *(segment.from_us for segment in schedule)]:
        ts_us = min(max(base_us + offset, INSTANT_US_MIN), INSTANT_US_END - 1)
        position = max(index for index, segment in enumerate(schedule) if segment.from_us <= ts_us)
        until_us = (
            schedule[position + 1].from_us if position + 1 < len(schedule) else INSTANT_US_END
        )
        natural = period_of(schedule[position].kind, ts_us, schedule[position].anchor_us)
        start_us, end_us = period_in(schedule, ts_us)
        assert start_us == max(natural[0], schedule[position].from_us)
        assert end_us == min(natural[1], until_us)
        assert next_boundary(schedule, ts_us) == end_us > ts_us
        assert (
            period_in(schedule, start_us) == period_in(schedule, end_us - 1) == (start_us, end_us)
        )
        if end_us < INSTANT_US_END:
            assert period_in(schedule, end_us)[0] == end_us


@settings(max_examples=100)
@given(st.sampled_from(INTERVALS), instants, st.integers(0, 400 * DAY_US))
def test_buckets_tile_the_range_and_nothing_else(
    interval: Interval, since_us: int, length_us: int
) -> None:
    if interval in {"minute", "hour"}:
        length_us %= 3 * DAY_US
    until_us = min(since_us + length_us, INSTANT_US_END)
    starts = list(buckets(interval, since_us, until_us, buckets_max=10_000))
    assert bool(starts) == (since_us < until_us)
    for start_us in starts:
        assert bucket_start(interval, start_us) == start_us
        assert bucket_start(interval, bucket_end(interval, start_us) - 1) == start_us
        assert start_us < until_us
        assert bucket_end(interval, start_us) > since_us
    if starts:
        assert starts[0] == bucket_start(interval, since_us)
        assert bucket_end(interval, starts[-1]) >= until_us
        assert [bucket_end(interval, start_us) for start_us in starts[:-1]] == starts[1:]
