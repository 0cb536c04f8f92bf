"""Instants and durations: the grammar's edges, leap seconds, the ends of time, and what a refusal says."""

from __future__ import annotations

import pytest

from engine.core.times import (
    DAY_US,
    HOUR_US,
    INSTANT_US_END,
    INSTANT_US_MIN,
    MINUTE_US,
    SECOND_US,
    TimeError,
    civil_from_days,
    days_from_civil,
    format_date,
    format_instant,
    parse_date,
    parse_duration,
    parse_instant,
    parse_instant_or_relative,
)

NOW_US = 1_767_225_600_000_000
"""2026-01-01T00:00:00Z."""


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("2026-01-01T00:00:00Z", NOW_US),
        ("2026-01-01t00:00:00z", NOW_US),
        ("2026-01-01 00:00:00Z", NOW_US),
        ("2026-01-01T00:00:00+00:00", NOW_US),
        ("2026-01-01T00:00:00-00:00", NOW_US),
        ("2026-01-01T02:00:00+02:00", NOW_US),
        ("2025-12-31T18:30:00-05:30", NOW_US),
        ("2026-01-01T23:59:00+23:59", NOW_US),
        ("2026-01-01T00:00:00.5Z", NOW_US + 500_000),
        ("2026-01-01T00:00:00.25+00:00", NOW_US + 250_000),
        ("2026-01-01T00:00:00.123Z", NOW_US + 123_000),
        ("2026-01-01T00:00:00.1234Z", NOW_US + 123_400),
        ("2026-01-01T00:00:00.123456z", NOW_US + 123_456),
        ("2026-01-01T00:00:00.000000Z", NOW_US),
        ("2024-02-29T00:00:00Z", 1_709_164_800 * SECOND_US),
        ("2000-02-29T00:00:00Z", 951_782_400 * SECOND_US),
        ("0001-01-01T00:00:00Z", INSTANT_US_MIN),
        ("0000-12-31T23:00:00-01:00", INSTANT_US_MIN),
        ("9999-12-31T23:59:59.999999Z", INSTANT_US_END - 1),
        ("9999-12-31T00:59:59.999999-23:00", INSTANT_US_END - 1),
    ],
)
def test_an_instant_is_read_to_the_microsecond(text: str, us: int) -> None:
    assert parse_instant(text) == us


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("2026-01-01T00:00:00.9999999Z", NOW_US + 999_999),
        ("2026-01-01T00:00:00.0000009Z", NOW_US),
        ("2026-01-01T00:00:00.123456789Z", NOW_US + 123_456),
        ("2026-01-01T00:00:00.12345678901234567890123456789012345678+00:00", NOW_US + 123_456),
        ("1969-12-31T23:59:59.9999999Z", -1),
        ("9999-12-31T23:59:59.9999999Z", INSTANT_US_END - 1),
    ],
)
def test_digits_beyond_microseconds_are_cut_off_never_rounded(text: str, us: int) -> None:
    assert parse_instant(text) == us


@pytest.mark.parametrize(
    ("text", "stands_for"),
    [
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999999Z"),
        ("2016-12-31T23:59:60.5Z", "2016-12-31T23:59:59.999999Z"),
        ("2017-01-01T00:59:60+01:00", "2016-12-31T23:59:59.999999Z"),
        ("2016-12-31 18:29:60.123456789-05:30", "2016-12-31T23:59:59.999999Z"),
        ("9999-12-31T23:59:60Z", "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_a_leap_second_stays_within_its_day_and_month(text: str, stands_for: str) -> None:
    assert parse_instant(text) == parse_instant(stands_for)


@pytest.mark.parametrize(
    "text",
    [
        "2016-12-31T23:58:60Z",
        "2016-12-31T12:00:60Z",
        "2016-12-31T23:59:60+01:00",
        "2016-12-31T00:00:60.9Z",
    ],
)
def test_second_60_at_another_time_of_day_is_refused(text: str) -> None:
    with pytest.raises(TimeError, match="only as 23:59:60 UTC"):
        parse_instant(text)


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31T09:30:00", "2026-01-31T09:30:00.5", "2026-01-31T09:30", "2026-01-31 09:30:00",
        "2026-01-31t09:30:00.123456",
    ],
)  # fmt: skip
def test_a_missing_offset_is_named_as_what_is_missing(text: str) -> None:
    with pytest.raises(TimeError, match="has no offset from UTC: append Z"):
        parse_instant(text)


@pytest.mark.parametrize("text", ["2026-01-31T09:30:00 01:00", "2026-01-31T09:30:00.25 00:00"])
def test_a_plus_that_a_url_turned_into_a_space_is_explained(text: str) -> None:
    with pytest.raises(TimeError, match="%2B"):
        parse_instant(text)


@pytest.mark.parametrize(
    "text",
    [
        "2026-02-29T00:00:00Z", "1900-02-29T00:00:00Z", "2026-04-31T00:00:00Z", "2026-13-01T00:00:00Z",
        "2026-00-10T00:00:00Z", "2026-01-00T00:00:00Z", "2026-01-32T00:00:00Z",
    ],
)  # fmt: skip
def test_a_day_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(TimeError, match="calendar does not have"):
        parse_instant(text)


@pytest.mark.parametrize(
    "text",
    ["0000-12-31T23:59:59Z", "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01",
        "9999-12-31T23:00:00-01:00", "0000-06-01T00:00:00Z",
     "9999-12-31T23:59:60-00:01"],
)  # fmt: skip
def test_an_instant_outside_of_the_years_1_to_9999_in_utc_is_refused(text: str) -> None:
    with pytest.raises(TimeError, match=r"years 1 to 9999|only as 23:59:60"):
        parse_instant(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "Z", "now", "2026", "2026-01-31", "2026-01-31Z", "1767225600", "2026-01-31T09:30Z", "2026-01-31T09Z",
        "2026-01-31T24:00:00Z", "2026-01-31T09:60:00Z", "2026-01-31T09:30:61Z", "2026-01-31T9:30:00Z",
        "2026-1-31T09:30:00Z", "26-01-31T09:30:00Z", "+2026-01-31T09:30:00Z", "20260131T093000Z",
        "2026-W05-6T09:30:00Z", "2026-031T09:30:00Z", "2026-01-31_09:30:00Z", "2026-01-31  09:30:00Z",
        "2026-01-31T09:30:00.Z", "2026-01-31T09:30:00,5Z", "2026-01-31T09:30:00.5.5Z", "2026-01-31T09:30:00 Z",
        "2026-01-31T09:30:00.1_0Z", "2026-01-31T09:30:00. 1Z", "2026-01-31T09:30:00.-1Z", "2026-01-31T09:30:00x12Z",
        "2026-01-31T09:30:00+01", "2026-01-31T09:30:00+0100", "2026-01-31T09:30:00+24:00",
        "2026-01-31T09:30:00+01:60", "2026-01-31T09:30:00\u221201:00", "2026-01-31T09:30:00+1:00",
        "2026-01-31T09:30:00+01:00:00", "2026-01-31T09:30:00ZZ", "2026-01-31T09:30:00Z\n", " 2026-01-31T09:30:00Z",
        "2026-01-31T09:30:00UTC", "2026-01-31T09:30:00[UTC]", "\u0662\u0660\u0662\u0666-01-31T09:30:00Z",
        "2026-01-31T\u0660\u0669:30:00Z", "2026-01-31T09:30:00.\u0661Z", "2026-01-31T09:30:00.\u00b2Z",
        "2026-01-31T09:30:00.123\u0661Z", "Sat, 31 Jan 2026 09:30:00 GMT", "2026-01-31T09:30:60.Z",
        "2026-01-31T23:59:60,5Z", "2026-01-31T23:59:60", "-PT24H",
    ],
)  # fmt: skip
def test_any_other_text_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(TimeError, match="such as 2026-01-31"):
        parse_instant(text)


def test_a_long_text_is_refused_by_its_length() -> None:
    for text in (
        "2026-01-31T09:30:00." + "1" * 5_000 + "Z",
        "2" * 5_000,
        "2026-01-31T09:30:00." + "1" * 39 + "+00:00",
    ):
        with pytest.raises(TimeError, match="longer than 64"):
            parse_instant(text)


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (NOW_US + 1_000, "2026-01-01T00:00:00.001Z"),
        (NOW_US + 1, "2026-01-01T00:00:00.000001Z"),
        (NOW_US + 999_999, "2026-01-01T00:00:00.999999Z"),
        (NOW_US + 120_000, "2026-01-01T00:00:00.120Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (INSTANT_US_MIN, "0001-01-01T00:00:00.000Z"),
        (INSTANT_US_END - 1, "9999-12-31T23:59:59.999999Z"),
        (INSTANT_US_END, "10000-01-01T00:00:00.000Z"),
    ],
)
def test_an_instant_has_three_digits_of_fraction_or_six(us: int, text: str) -> None:
    assert format_instant(us) == text


def test_formatting_what_is_no_instant_is_a_bug() -> None:
    for us in (INSTANT_US_MIN - 1, INSTANT_US_END + 1):
        with pytest.raises(AssertionError):
            format_instant(us)
        with pytest.raises(AssertionError):
            format_date(us)


def test_a_date_is_the_start_of_its_utc_day() -> None:
    assert parse_date("1970-01-02") == DAY_US
    assert parse_date("2026-01-01") == NOW_US
    assert parse_date("0001-01-01") == INSTANT_US_MIN
    assert format_date(NOW_US - 1) == "2025-12-31"
    assert format_date(NOW_US) == format_date(NOW_US + DAY_US - 1) == "2026-01-01"


@pytest.mark.parametrize(
    "text",
    ["", "2026-02-29", "2026-1-1", "20260101", "2026-01-01 ", "2026-01-01T00:00:00Z", "2026-01", "0000-01-01",
     "\u0662026-01-01", "2026-01-01\n"],
)  # fmt: skip
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(TimeError):
        parse_date(text)


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("PT24H", 24 * HOUR_US),
        ("-PT24H", -24 * HOUR_US),
        ("+P7D", 7 * DAY_US),
        ("PT1H30M", 90 * MINUTE_US),
        ("P1W", 7 * DAY_US),
        ("P1DT1S", DAY_US + SECOND_US),
        ("P1W2DT3H4M5S", 9 * DAY_US + 3 * HOUR_US + 4 * MINUTE_US + 5 * SECOND_US),
        ("PT0.5S", 500_000),
        ("-PT0.0000019S", -1),
        ("PT0S", 0),
        ("-P0D", 0),
        ("PT90M", 90 * MINUTE_US),
        ("P3652058D", 3_652_058 * DAY_US),
    ],
)
def test_a_duration_is_read_exactly(text: str, us: int) -> None:
    assert parse_duration(text) == us


@pytest.mark.parametrize(
    "text",
    ["", "P", "PT", "-P", "P1DT", "1D", "P1", "PT1", "P1H", "PT1D", "PT1M1H", "P1D1W", "P1Y", "P1M", "P-1D", "PT1.5H",
     "pt1h", "P 1D", "P1D ", "--P1D", "PT.5S", "PT1.S", "PT1,5S", "P\u0661D", "P1D\n", "24h"],
)  # fmt: skip
def test_what_is_no_duration_is_refused_and_months_are_explained(text: str) -> None:
    with pytest.raises(TimeError, match="years and months differ in length: use days"):
        parse_duration(text)


def test_a_duration_longer_than_all_of_time_is_refused() -> None:
    for text in ("P3652060D", "PT" + "9" * 60 + "S"):
        with pytest.raises(TimeError, match="years 1 to 9999"):
            parse_duration(text)
    with pytest.raises(TimeError, match="longer than 64"):
        parse_duration("P" + "9" * 5_000 + "D")


def test_a_relative_time_counts_from_now_and_needs_its_sign() -> None:
    assert parse_instant_or_relative("-PT24H", NOW_US) == NOW_US - DAY_US
    assert parse_instant_or_relative("+PT1H", NOW_US) == NOW_US + HOUR_US
    assert parse_instant_or_relative("1970-01-01T00:00:00Z", NOW_US) == 0
    with pytest.raises(TimeError, match="without a sign"):
        parse_instant_or_relative("PT24H", NOW_US)
    for text in ("-P3652058D", "+P3652058D"):
        with pytest.raises(TimeError, match="years 1 to 9999"):
            parse_instant_or_relative(text, NOW_US)


def test_civil_days_know_the_gregorian_rule() -> None:
    assert days_from_civil(1970, 1, 1) == 0
    assert days_from_civil(2000, 3, 1) - days_from_civil(2000, 2, 28) == 2
    assert days_from_civil(1900, 3, 1) - days_from_civil(1900, 2, 28) == 1
    assert days_from_civil(10_000, 1, 1) * DAY_US == INSTANT_US_END
    assert civil_from_days(INSTANT_US_END // DAY_US) == (10_000, 1, 1)
    assert civil_from_days(days_from_civil(0, 2, 29)) == (0, 2, 29)
