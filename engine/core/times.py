"""Instants and durations: ISO 8601 text to int microseconds and back, and the civil calendar as arithmetic.

Rules kept here:

- An instant is an int of microseconds since 1970-01-01T00:00:00Z (`_us`), in the proleptic Gregorian calendar,
  years 1 to 9999 in UTC. INSTANT_US_END, the first instant of year 10000, is only ever an exclusive end.
- Every text has one meaning or is refused: no local time, no locale, no digits but ASCII ones.
- Digits beyond microseconds are cut off, never rounded: rounding would carry an event into the next period.

It must not know the present (`now_us` is a parameter), nor what a time is for. Messages of `TimeError` complete
the sentence "the time ..." and say what to send instead.

`datetime` is not used: it knows neither a leap second nor year 10000, and its `fromisoformat` accepts far more
than RFC 3339, and not the same in each Python; with the pattern that makes it strict it is no faster than this.
Days are remembered, bounded: there are few of them in any traffic.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

SECOND_US: Final = 1_000_000
MINUTE_US: Final = 60 * SECOND_US
HOUR_US: Final = 60 * MINUTE_US
DAY_US: Final = 24 * HOUR_US

INSTANT_US_MIN: Final = -62_135_596_800 * SECOND_US
"""0001-01-01T00:00:00Z."""
INSTANT_US_END: Final = 253_402_300_800 * SECOND_US
"""10000-01-01T00:00:00Z: greater than every instant."""

INSTANT_CHARS_MAX: Final = 64
"""Of a time or duration in text. Microseconds need 32; clocks that write more digits than 38 are unknown to us."""

_DAYS_CACHED_MAX: Final = 4_096
_SECONDS_CACHED_MAX: Final = 4_096
_OFFSETS: Final = 2 * 1_440
_FRACTION_DIGITS: Final = 6
_FRACTION_CHARS_MAX: Final = INSTANT_CHARS_MAX - len("YYYY-MM-DDThh:mm:ss+hh:mm")
_POWERS_OF_TEN: Final[tuple[int, ...]] = tuple(10**power for power in range(_FRACTION_DIGITS + 1))

_DATE: Final = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")
_OFFSET: Final = re.compile(r"([+-])([01][0-9]|2[0-3]):([0-5][0-9])")
_NO_OFFSET: Final = re.compile(r"[0-9-]{10}[Tt ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?")
_PLUS_LOST: Final = re.compile(r"[0-9-]{10}[Tt ][0-9:.]{5,} [0-9]{2}:[0-9]{2}")
_DURATION: Final = re.compile(
    r"([+-]?)P(?!$)(?:([0-9]+)W)?(?:([0-9]+)D)?"
    r"(?:T(?!$)(?:([0-9]+)H)?(?:([0-9]+)M)?(?:([0-9]+)(?:\.([0-9]+))?S)?)?"
)

# A look-up validates and converts a part of a text at once, several times faster than a pattern and int().
_MINUTE_TEXTS: Final = tuple(
    f"{hour:02d}:{minute:02d}" for hour in range(24) for minute in range(60)
)
_MINUTES_US: Final = {text: number * MINUTE_US for number, text in enumerate(_MINUTE_TEXTS)}
_SECONDS_US: Final = {f":{second:02d}": second * SECOND_US for second in range(60)}
_MILLISECONDS_US: Final = {f".{number:03d}": number * 1_000 for number in range(1_000)}
_MICROSECONDS_US: Final = {"": 0} | {f"{number:03d}": number for number in range(1_000)}
_UTC_MICROSECONDS_US: Final = {
    f"{text}{z}": us for text, us in _MICROSECONDS_US.items() for z in "Zz"
}
_SECOND_TEXTS: Final = tuple(_SECONDS_US)
_MILLISECOND_TEXTS: Final = tuple(_MILLISECONDS_US)

_EXAMPLE: Final = "such as 2026-01-31T09:30:00Z"
_NOT_AN_INSTANT: Final = (
    f"must be ISO 8601 with seconds and an offset, {_EXAMPLE} or 2026-01-31T10:30:00.250+01:00"
)
_OFFSET_MISSING: Final = (
    f"has no offset from UTC: append Z if it is UTC, {_EXAMPLE}, else an offset like +01:00"
)
_OFFSET_PLUS_LOST: Final = "has a space before its offset: write the + of an offset as %2B in a URL"
_OUT_OF_RANGE: Final = "must lie in the years 1 to 9999 (UTC)"
_NOT_A_LEAP_SECOND: Final = (
    "has second 60, which exists only as 23:59:60 UTC: use 59 or the next minute's 00"
)
_NOT_A_DATE: Final = "must be a day of the calendar as YYYY-MM-DD, such as 2026-01-31"
_NO_SUCH_DAY: Final = "is on a day that the calendar does not have: check month and day"
_NOT_A_DURATION: Final = (
    "must be an ISO 8601 duration in weeks, days, hours, minutes and seconds, such as -PT24H or P7D; "
    "years and months differ in length: use days"
)
_SIGN_MISSING: Final = (
    "is a duration without a sign: write -PT24H for 24 hours ago, +PT24H for 24 hours ahead"
)
_TOO_LONG: Final = (
    f"is longer than {INSTANT_CHARS_MAX} characters: microseconds are the finest digits kept"
)


class TimeError(ValueError):
    """The text is not a time or duration; the message says what to send instead."""


def days_from_civil(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 of a civil date. `month` 1..12; any `year` and `day`, also beyond datetime's.

    Years are counted from March, so that the leap day is a year's last; 153 days are each five months from March
    or August on. Source: Howard Hinnant, chrono-Compatible Low-Level Date Algorithms.
    """
    if month <= 2:
        year -= 1
        month += 12
    return (
        365 * year
        + year // 4
        - year // 100
        + year // 400
        + (153 * month - 457) // 5
        + day
        - 719_469
    )


def civil_from_days(days: int) -> tuple[int, int, int]:
    """(year, month, day) of a day since 1970-01-01; the inverse of `days_from_civil`."""
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (
        day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096
    ) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month_from_march = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * month_from_march + 2) // 5 + 1
    month = month_from_march + 3 if month_from_march < 10 else month_from_march - 9
    return era * 400 + year_of_era + (month <= 2), month, day


def days_in_month(year: int, month: int) -> int:
    """28 to 31, the Gregorian rule. `month` 1..12."""
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in {4, 6, 9, 11} else 31


def parse_instant(text: str) -> int:
    """The instant of an RFC 3339 text: date, `T`, `t` or one space, time with seconds, `Z`, `z` or an offset.

    Leap seconds (23:59:60 in UTC) become the last microsecond of their minute, so that they stay within their
    day, month and period. Raises TimeError, also when the year in UTC is not 1..9999.
    """
    try:
        us = _second_us(text[:19])
        if text[-1] in "Zz":
            fraction = text[19:-1]
        else:
            us -= offset_us(text[-6:])
            fraction = text[19:-6]
    except (TimeError, KeyError):
        return _leap_second_us(text)
    if fraction:
        try:
            us += _MILLISECONDS_US[fraction[:4]] + _MICROSECONDS_US[fraction[4:]]
        except KeyError:
            us += _fraction_us(fraction)
    if not INSTANT_US_MIN <= us < INSTANT_US_END:
        raise TimeError(_OUT_OF_RANGE)
    return us


def parse_some(texts: Sequence[str]) -> list[int]:
    """`parse_instant` of each text, at half the cost if all are in UTC and have three or six digits after the dot.

    `texts` must not be empty.
    """
    try:
        found = [
            _second_us(text[:19]) + _MILLISECONDS_US[text[19:23]] + _UTC_MICROSECONDS_US[text[23:]]
            for text in texts
        ]
    except (TimeError, KeyError):
        return list(map(parse_instant, texts))
    # Year 0 passes up to here; year 10000 can't be written.
    return found if min(found) >= INSTANT_US_MIN else list(map(parse_instant, texts))


@lru_cache(maxsize=_SECONDS_CACHED_MAX)
def _second_us(text: str) -> int:
    """Microseconds of `YYYY-MM-DDThh:mm:ss`. Raises TimeError or KeyError for another text.

    Events that arrive together happened within a few seconds of each other.
    """
    us = day_us(text[:10]) + _MINUTES_US[text[11:16]] + _SECONDS_US[text[16:]]
    if text[10] not in "Tt ":
        raise TimeError(_NOT_AN_INSTANT)
    return us


@lru_cache(maxsize=_DAYS_CACHED_MAX)
def day_us(text: str) -> int:
    """The start of the UTC day `YYYY-MM-DD`. Year 0 passes: an offset may move its last hours into year 1."""
    match = _DATE.fullmatch(text)
    if match is None:
        raise TimeError(_NOT_A_DATE)
    year, month, day = map(int, match.groups())
    if not (1 <= month <= 12 and 1 <= day <= days_in_month(year, month)):
        raise TimeError(_NO_SUCH_DAY)
    return days_from_civil(year, month, day) * DAY_US


def _fraction_us(text: str) -> int:
    """Microseconds of a dot and one or more digits, cut off after the sixth."""
    if len(text) > _FRACTION_CHARS_MAX:
        raise TimeError(_TOO_LONG)
    digits = text[1:]
    # str.isdigit alone would let other scripts' digits pass.
    if text[0] != "." or not (digits.isdigit() and digits.isascii()):
        raise TimeError(_NOT_AN_INSTANT)
    digits = digits[:_FRACTION_DIGITS]
    return int(digits) * _POWERS_OF_TEN[_FRACTION_DIGITS - len(digits)]


@lru_cache(maxsize=_OFFSETS)
def offset_us(text: str) -> int:
    """How far an offset, `+hh:mm` or `-hh:mm`, is ahead of UTC. The cache holds every offset there is."""
    match = _OFFSET.fullmatch(text)
    if match is None:
        raise TimeError(_NOT_AN_INSTANT)
    sign, hours, minutes = match.groups()
    us = int(hours) * HOUR_US + int(minutes) * MINUTE_US
    return -us if sign == "-" else us


def _leap_second_us(text: str) -> int:
    """The instant of a text with second 60; for any other text TimeError with the most helpful message."""
    if len(text) > INSTANT_CHARS_MAX:
        raise TimeError(_TOO_LONG)
    if text[16:19] == ":60":
        us = parse_instant(f"{text[:16]}:59{text[19:]}")
        if us % DAY_US < DAY_US - MINUTE_US:
            raise TimeError(_NOT_A_LEAP_SECOND)
        return us - us % MINUTE_US + MINUTE_US - 1
    if _NO_OFFSET.fullmatch(text):
        raise TimeError(_OFFSET_MISSING)
    if _PLUS_LOST.fullmatch(text):
        raise TimeError(_OFFSET_PLUS_LOST)
    if _DATE.fullmatch(text[:10]):
        day_us(text[:10])  # Raises when it is the day that is wrong, and says so.
    raise TimeError(_NOT_AN_INSTANT)


def format_instant(us: int) -> str:
    """`YYYY-MM-DDThh:mm:ss.sssZ`, in UTC; six digits when the instant is not a whole millisecond.

    INSTANT_US_END, which ends the last period, is written with its five digits of year: no text with four exists.
    """
    assert INSTANT_US_MIN <= us <= INSTANT_US_END
    days, day_us = divmod(us, DAY_US)
    minute, minute_us = divmod(day_us, MINUTE_US)
    second, fraction_us = divmod(minute_us, SECOND_US)
    millisecond, finer_us = divmod(fraction_us, 1_000)
    finer = f"{finer_us:03d}" if finer_us else ""
    return (
        f"{_day_text(days)}T{_MINUTE_TEXTS[minute]}{_SECOND_TEXTS[second]}"
        f"{_MILLISECOND_TEXTS[millisecond]}{finer}Z"
    )


@lru_cache(maxsize=_DAYS_CACHED_MAX)
def _day_text(days: int) -> str:
    """`YYYY-MM-DD` of a day since 1970."""
    year, month, day = civil_from_days(days)
    return f"{year:04d}-{month:02d}-{day:02d}"


def parse_date(text: str) -> int:
    """The first instant of the UTC day `YYYY-MM-DD`. Raises TimeError."""
    us = day_us(text)
    if us < INSTANT_US_MIN:
        raise TimeError(_OUT_OF_RANGE)
    return us


def format_date(us: int) -> str:
    """`YYYY-MM-DD` of the UTC day that holds the instant."""
    assert INSTANT_US_MIN <= us <= INSTANT_US_END
    return _day_text(us // DAY_US)


def parse_duration(text: str) -> int:
    """Microseconds of an ISO 8601 duration with an optional sign, such as `-PT24H`, `P7D`, `PT1H30M`, `PT0.5S`.

    At most as long as all of time here, 9,999 years. Raises TimeError.
    """
    if len(text) > INSTANT_CHARS_MAX:
        raise TimeError(_TOO_LONG)
    match = _DURATION.fullmatch(text)
    if match is None:
        raise TimeError(_NOT_A_DURATION)
    sign, weeks, days, hours, minutes, seconds, fraction = match.groups("0")
    us = (
        (int(weeks) * 7 + int(days)) * DAY_US
        + int(hours) * HOUR_US
        + int(minutes) * MINUTE_US
        + int(seconds) * SECOND_US
        + int(fraction[:_FRACTION_DIGITS].ljust(_FRACTION_DIGITS, "0"))
    )
    if us > INSTANT_US_END - INSTANT_US_MIN:
        raise TimeError(_OUT_OF_RANGE)
    return -us if sign == "-" else us


def parse_instant_or_relative(text: str, now_us: int) -> int:
    """An instant, or a duration with a sign counted from `now_us`: `-PT24H` is a day ago. Raises TimeError."""
    if text[:1] == "P":
        raise TimeError(_SIGN_MISSING)
    if text[:1] not in {"+", "-"}:
        return parse_instant(text)
    us = now_us + parse_duration(text)
    if not INSTANT_US_MIN <= us < INSTANT_US_END:
        raise TimeError(_OUT_OF_RANGE)
    return us
