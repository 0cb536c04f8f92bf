"""Instants against the standard library's datetime, wherever both have an opinion."""

from __future__ import annotations

import calendar
from datetime import UTC, date, datetime, timedelta, timezone

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.times import (
    DAY_US,
    INSTANT_US_END,
    INSTANT_US_MIN,
    TimeError,
    civil_from_days,
    days_from_civil,
    days_in_month,
    format_date,
    format_instant,
    parse_date,
    parse_duration,
    parse_instant,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

edges = st.sampled_from(
    [INSTANT_US_MIN, INSTANT_US_END - 1, 0, 951_782_400 * 10**6, 4_107_542_400 * 10**6]
)
instants = (
    st.builds(lambda edge, offset: edge + offset, edges, st.integers(-10, 10))
    | st.integers(INSTANT_US_MIN, INSTANT_US_END - 1)
    | st.integers(INSTANT_US_MIN // 1000, INSTANT_US_END // 1000 - 1).map(
        lambda milliseconds: milliseconds * 1000
    )
).filter(lambda us: INSTANT_US_MIN <= us < INSTANT_US_END)
zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(timezones=zones | st.just(UTC))


def in_microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // MICROSECOND


@settings(max_examples=200)
@given(instants)
def test_text_and_instant_round_trip(us: int) -> None:
    text = format_instant(us)
    assert parse_instant(text) == us
    assert text == (EPOCH + timedelta(microseconds=us)).isoformat(
        timespec="microseconds" if us % 1000 else "milliseconds"
    ).replace("+00:00", "Z")


@settings(max_examples=200)
@given(
    moments,
    st.sampled_from("Tt "),
    st.sampled_from(["auto", "seconds", "milliseconds", "microseconds"]),
)
def test_what_datetime_writes_is_read_as_datetime_means_it(
    moment: datetime, separator: str, precision: str
) -> None:
    text = moment.isoformat(timespec=precision).replace("T", separator)
    meant = in_microseconds(datetime.fromisoformat(moment.isoformat(timespec=precision)))
    if INSTANT_US_MIN <= meant < INSTANT_US_END:
        assert parse_instant(text) == meant
    else:
        try:
            parse_instant(text)
        except TimeError as error:
            assert "years 1 to 9999" in str(error)
        else:
            raise AssertionError(text)


@settings(max_examples=200)
@given(st.datetimes(), st.text("0123456789", min_size=1, max_size=38))
def test_a_fraction_of_any_length_is_cut_off_at_microseconds(moment: datetime, digits: str) -> None:
    moment = moment.replace(microsecond=0, tzinfo=UTC)
    text = moment.isoformat().replace("+00:00", f".{digits}Z")
    assert parse_instant(text) == in_microseconds(moment) + int(digits.ljust(6, "0")[:6])


@settings(max_examples=200)
@given(st.dates(), zones)
def test_a_leap_second_is_the_last_microsecond_of_its_day(day: date, zone: timezone) -> None:
    last = datetime(day.year, day.month, day.day, 23, 59, 59, tzinfo=UTC)
    try:
        local = last.astimezone(zone).isoformat()
    except OverflowError:
        return
    text = f"{local[:16]}:60{local[19:]}"
    assert parse_instant(text) == in_microseconds(last) + 999_999
    assert format_date(parse_instant(text)) == day.isoformat()


def replaced(moment: datetime, position: int, character: str) -> str:
    text = moment.isoformat()
    position %= len(text)
    return text[:position] + character + text[position + 1 :]


@settings(max_examples=200)
@given(
    st.builds(replaced, moments, st.integers(0, 40), st.characters())
    | st.text("0123456789-:.TtZz+ ", max_size=35)
    | st.text(max_size=70)
)
def test_any_text_is_an_instant_within_bounds_or_refused(text: str) -> None:
    try:
        us = parse_instant(text)
    except TimeError as error:
        assert len(str(error)) > 20
        return
    assert INSTANT_US_MIN <= us < INSTANT_US_END
    assert text.isascii()
    # Whatever is accepted, datetime reads the same, but for leap seconds and year 0.
    if text[16:19] != ":60" and text[:4] != "0000":
        assert in_microseconds(datetime.fromisoformat(text.upper())) == us


@settings(max_examples=200)
@given(st.integers(date.min.toordinal(), date.max.toordinal()))
def test_civil_arithmetic_agrees_with_datetime(ordinal: int) -> None:
    day = date.fromordinal(ordinal)
    days = ordinal - date(1970, 1, 1).toordinal()
    assert days_from_civil(day.year, day.month, day.day) == days
    assert civil_from_days(days) == (day.year, day.month, day.day)
    assert days_in_month(day.year, day.month) == calendar.monthrange(day.year, day.month)[1]
    assert parse_date(day.isoformat()) == days * DAY_US
    assert format_date(days * DAY_US + DAY_US - 1) == day.isoformat()


@settings(max_examples=200)
@given(
    st.sampled_from(["", "+", "-"]),
    st.tuples(*[st.integers(0, 9_999)] * 5),
    st.text("0123456789", max_size=9),
)
def test_a_duration_is_the_sum_of_its_parts(sign: str, parts: tuple[int, ...], digits: str) -> None:
    weeks, days, hours, minutes, seconds = parts
    fraction = f".{digits}" if digits else ""
    meant = (
        timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
        // MICROSECOND
    )
    meant += int(digits.ljust(6, "0")[:6])
    text = f"{sign}P{weeks}W{days}DT{hours}H{minutes}M{seconds}{fraction}S"
    assert parse_duration(text) == (-meant if sign == "-" else meant)
