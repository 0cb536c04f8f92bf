"""How much a period will come to, from what was used so far: the run rate, with the shape of the week where it is known.

Rules kept here:

- Only a running period of a sum is extrapolated. One that is over is what it is; a max or last is what it is now.
- With at least two full weeks of whole days before today, what is left of the period is made of days like those: each
  weekday has its share of the last WEEKS_MAX full weeks, at the level of the last two. The range is what the slowest
  and the fastest of those weeks would give.
- Otherwise the rate since the use began (at most since the period's start, at least over a day) goes on. The range is
  what the slowest and the fastest whole day so far would give; without two such days its upper end is not known.
- Everything is integers of micros: rounded down once, at the end. An estimate is never below what was used.

It must not know prices, tasks or where history is kept. Days are UTC days.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

from engine.core.times import DAY_US

WEEK_DAYS: Final = 7
WEEKS_MIN: Final = 2
WEEKS_MAX: Final = 8
HISTORY_DAYS_MAX: Final = WEEKS_MAX * WEEK_DAYS

Method = Literal["weekdays", "runRate", "asItIs"]


class Extrapolated(NamedTuple):
    """A total at the period's end, in micros. `high_micros` None: nothing says how much more it may be."""

    method: Method
    micros: int
    low_micros: int
    high_micros: int | None
    weeks: int = 0
    """Of `weekdays`: how many full weeks it is made of."""


class Running(NamedTuple):
    """A period that is under way, and what was used in it so far."""

    start_us: int
    end_us: int
    now_us: int
    used_micros: int
    """What counts, with approved corrections."""


def extrapolate(
    period: Running, aggregation: str, by_day: Mapping[int, int]
) -> Extrapolated | None:
    """What the period will come to; None when it is over or has not begun.

    `by_day`: micros used on UTC days (their starts in microseconds); days without use may be absent. Days from the
    first one in it on count as days of use; those before now and within the last HISTORY_DAYS_MAX are looked at.
    """
    if not period.start_us <= period.now_us < period.end_us:
        return None
    used = period.used_micros
    if aggregation != "sum":
        return Extrapolated("asItIs", used, used, None)
    today_us = period.now_us - period.now_us % DAY_US
    first_us = min((day for day, micros in by_day.items() if micros), default=None)
    if first_us is not None:
        weeks = min((today_us - first_us) // (DAY_US * WEEK_DAYS), WEEKS_MAX)
        if weeks >= WEEKS_MIN:
            days = _days_before(today_us, weeks * WEEK_DAYS, by_day)
            if (found := _by_weekdays(period, today_us, days)) is not None:
                return found
    return _at_run_rate(period, today_us, first_us, by_day)


def _days_before(today_us: int, count: int, by_day: Mapping[int, int]) -> list[int]:
    """Micros of the whole days before today, oldest first."""
    return [by_day.get(today_us - back * DAY_US, 0) for back in range(count, 0, -1)]


def _by_weekdays(period: Running, today_us: int, days: Sequence[int]) -> Extrapolated | None:
    """`days` are whole weeks; the first is of today's weekday. None when the last two weeks were empty."""
    weeks = len(days) // WEEK_DAYS
    shares = [sum(days[weekday::WEEK_DAYS]) for weekday in range(WEEK_DAYS)]
    whole = sum(shares)
    by_week = [sum(days[week * WEEK_DAYS :][:WEEK_DAYS]) for week in range(weeks)]
    level = sum(by_week[-WEEKS_MIN:])
    if whole <= 0 or level <= 0:
        return None
    # Micros of the days that are left if each week were `whole`, times the length of a day.
    left = _weighted_left(period, today_us, shares)

    def rest(of_weeks: int, count: int) -> int:
        return left * of_weeks // (whole * count * DAY_US)

    return Extrapolated(
        "weekdays",
        period.used_micros + rest(level, WEEKS_MIN),
        period.used_micros + rest(min(by_week), 1),
        period.used_micros + rest(max(by_week), 1),
        weeks,
    )


def _weighted_left(period: Running, today_us: int, shares: Sequence[int]) -> int:
    """The sum over what is left of the period of each day's share times the microseconds of that day that are left."""
    left = 0
    day_us = today_us
    while day_us < period.end_us:
        from_us, until_us = max(day_us, period.now_us), min(day_us + DAY_US, period.end_us)
        weekday = (day_us - today_us) // DAY_US % WEEK_DAYS
        left += shares[weekday] * (until_us - from_us)
        day_us += DAY_US
    return left


def _at_run_rate(
    period: Running, today_us: int, first_us: int | None, by_day: Mapping[int, int]
) -> Extrapolated:
    used, now_us = period.used_micros, period.now_us
    since_us = max(period.start_us, min(now_us, period.start_us if first_us is None else first_us))
    # An hour's burst says nothing of a month; of a day it is all there is.
    shortest_us = DAY_US if period.end_us - period.start_us > DAY_US else 1
    passed_us = max(now_us - since_us, shortest_us)
    left_us = period.end_us - now_us
    more = max(0, used) * left_us // passed_us
    whole_days = [by_day.get(day_us, 0) for day_us in range(_next_day(since_us), today_us, DAY_US)]
    if len(whole_days) < 2:
        return Extrapolated("runRate", used + more, used, None)
    slowest, fastest = (one * left_us // DAY_US for one in (min(whole_days), max(whole_days)))
    return Extrapolated(
        "runRate", used + more, used + max(0, min(slowest, more)), used + max(fastest, more)
    )


def _next_day(us: int) -> int:
    """The start of the first UTC day that lies wholly at or after an instant."""
    return -(-us // DAY_US) * DAY_US
