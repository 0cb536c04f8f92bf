"""What a period will come to: worked numbers, edges of weeks and days, and properties."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.core.extrapolation import HISTORY_DAYS_MAX, Running, extrapolate
from engine.core.times import DAY_US, parse_instant

UNIT = 1_000_000
START_US, END_US = parse_instant("2026-06-01T00:00:00Z"), parse_instant("2026-07-01T00:00:00Z")
"""A Monday, and thirty days."""


def at(text: str) -> int:
    return parse_instant(text)


def days(first: str, *units: int) -> dict[int, int]:
    """So many units on each day from the first on."""
    return {at(f"{first}T00:00:00Z") + n * DAY_US: one * UNIT for n, one in enumerate(units)}


def running(now: str, units: int) -> Running:
    return Running(START_US, END_US, at(now), units * UNIT)


def test_a_period_that_is_over_or_has_not_begun_is_not_extrapolated() -> None:
    history = days("2026-06-01", *[10] * 30)
    assert extrapolate(Running(START_US, END_US, END_US, 300), "sum", history) is None
    assert extrapolate(Running(START_US, END_US, END_US + DAY_US, 300), "sum", history) is None
    assert extrapolate(Running(START_US, END_US, START_US - 1, 0), "sum", history) is None
    assert extrapolate(Running(START_US, END_US, END_US - 1, 300), "sum", history) is not None


def test_without_two_full_weeks_the_rate_so_far_goes_on() -> None:
    found = extrapolate(running("2026-06-11T00:00:00Z", 100), "sum", days("2026-06-01", *[10] * 10))
    assert found is not None
    assert (found.method, found.micros) == ("runRate", 300 * UNIT)
    assert (found.low_micros, found.high_micros) == (300 * UNIT, 300 * UNIT)


def test_the_rate_counts_from_the_first_day_of_use_and_has_the_days_range() -> None:
    history = days("2026-06-05", 6, 12, 9)
    found = extrapolate(running("2026-06-08T00:00:00Z", 27), "sum", history)
    assert found is not None
    assert found.micros == (27 + 9 * 23) * UNIT
    assert found.low_micros == (27 + 6 * 23) * UNIT
    assert found.high_micros == (27 + 12 * 23) * UNIT


def test_an_hours_burst_is_not_made_a_month_of_bursts() -> None:
    found = extrapolate(running("2026-06-01T01:00:00Z", 24), "sum", days("2026-06-01", 24))
    assert found is not None
    assert found.micros == 24 * UNIT + 24 * UNIT * (30 * 24 - 1) // 24
    assert (found.low_micros, found.high_micros) == (24 * UNIT, None)
    day = Running(START_US, START_US + DAY_US, at("2026-06-01T06:00:00Z"), 6 * UNIT)
    of_day = extrapolate(day, "sum", days("2026-06-01", 6))
    assert of_day is not None
    assert of_day.micros == 24 * UNIT


def test_with_two_full_weeks_each_weekday_gets_its_own_share() -> None:
    """Monday 2026-06-15; workdays of 10, weekends of 1. Left: 12 workdays and 4 days of weekends."""
    week = [10, 10, 10, 10, 10, 1, 1]
    found = extrapolate(running("2026-06-15T00:00:00Z", 104), "sum", days("2026-06-01", *week * 2))
    assert found is not None
    assert (found.method, found.weeks) == ("weekdays", 2)
    assert found.micros == (104 + 12 * 10 + 4 * 1) * UNIT
    assert found.low_micros == found.high_micros == found.micros


def test_one_day_less_than_two_weeks_is_not_two_weeks() -> None:
    history = days("2026-06-01", *[10, 10, 10, 10, 10, 1, 1] * 2)
    before = extrapolate(running("2026-06-14T23:59:59Z", 104), "sum", history)
    assert before is not None
    assert before.method == "runRate"


def test_the_rest_of_today_is_a_part_of_todays_weekday() -> None:
    """Saturday 2026-06-20, noon: half a Saturday of 1, a Sunday of 1, then seven workdays and a weekend."""
    history = days("2026-06-01", *[10, 10, 10, 10, 10, 1, 1] * 2, 10, 10, 10, 10, 10)
    used = 2 * 52 + 50 + 1
    found = extrapolate(running("2026-06-20T12:00:00Z", used), "sum", history)
    assert found is not None
    rest_halves = 1 + 2 + 2 * (7 * 10 + 2)  # in halves of a unit
    assert found.micros == used * UNIT + rest_halves * UNIT // 2


def test_the_level_is_that_of_the_last_two_weeks_and_the_range_that_of_all() -> None:
    history = days("2026-05-18", *[7] * 7, *[14] * 7, *[21] * 7, *[21] * 7)
    found = extrapolate(running("2026-06-15T00:00:00Z", 0), "sum", history)
    assert found is not None
    assert found.weeks == 4
    left = 16
    assert found.micros == 21 * left * UNIT
    assert (found.low_micros, found.high_micros) == (7 * left * UNIT, 21 * left * UNIT)


def test_a_customer_who_stopped_is_not_extrapolated_by_what_was_long_ago() -> None:
    history = days("2026-04-20", *[10] * 14)
    found = extrapolate(running("2026-06-15T00:00:00Z", 0), "sum", history)
    assert found is not None
    assert (found.method, found.micros) == ("runRate", 0)


def test_a_max_or_last_is_what_it_is() -> None:
    for aggregation in ("max", "last"):
        found = extrapolate(running("2026-06-15T00:00:00Z", 7), aggregation, {})
        assert found == ("asItIs", 7 * UNIT, 7 * UNIT, None, 0)


@given(
    used=st.integers(0, 10**20),
    now=st.integers(0, 30 * DAY_US - 1),
    amounts=st.lists(st.integers(0, 10**15), max_size=HISTORY_DAYS_MAX + 40),
)
def test_an_estimate_lies_within_its_range_and_above_what_was_used(
    used: int, now: int, amounts: list[int]
) -> None:
    period = Running(START_US, END_US, START_US + now, used)
    today_us = period.now_us - period.now_us % DAY_US
    history = {today_us - back * DAY_US: micros for back, micros in enumerate(amounts)}
    found = extrapolate(period, "sum", history)
    assert found is not None
    assert used <= found.low_micros <= found.micros
    assert found.high_micros is None or found.high_micros >= found.micros


@given(micros=st.integers(1, 10**15), now=st.integers(0, 30 * DAY_US - 1), weeks=st.integers(2, 8))
def test_even_use_goes_on_evenly(micros: int, now: int, weeks: int) -> None:
    period = Running(START_US, END_US, START_US + now, 0)
    today_us = period.now_us - period.now_us % DAY_US
    history = {today_us - back * DAY_US: micros for back in range(1, 7 * weeks + 1)}
    found = extrapolate(period, "sum", history)
    assert found is not None
    assert (found.method, found.weeks) == ("weekdays", weeks)
    assert found.micros == found.low_micros == found.high_micros
    assert found.micros == micros * (END_US - period.now_us) // DAY_US
