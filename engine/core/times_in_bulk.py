"""Many instants at once: what `engine.core.times.parse_instant` makes of each text, at a fraction of its cost.

Rules it keeps: the same instants as one by one, or the same error for a text that is none; what this module does not
know goes to `parse_instant`, which alone decides what a time is. It must not know where the texts come from.

Texts of one length are a table of characters. If the first is an instant, and all others have its characters wherever
it has no digit, they have its form; what is left are columns of digits, whose ranges are looked at, and sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engine.core.times import (
    DAY_US,
    HOUR_US,
    INSTANT_US_END,
    INSTANT_US_MIN,
    MINUTE_US,
    SECOND_US,
    days_from_civil,
    days_in_month,
    offset_us,
    parse_instant,
    parse_some,
)

ROWS_MIN: Final = 256
"""Of fewer numpy's own start costs more than it saves (a call of 100 rows: 44 us, and 21 us without it)."""
LENGTHS_MAX: Final = 4
"""Of texts in one call; of more different ones each group would be too small to pay."""
MONTHS_MAX: Final = 1_200
"""Between the first and the last; the calendar is looked up once for each."""
_SECONDS_END: Final = len("YYYY-MM-DDThh:mm:ss")
_OFFSET_CHARS: Final = len("+hh:mm")
_FRACTION_DIGITS_MAX: Final = 9
_DIGITS: Final = (0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18)
_MARKS: Final = (4, 7, 10, 13, 16)
_TENS_OF_MINUTE, _TENS_OF_SECOND = 10, 12
"""Places among the digits."""
_WEIGHTS_US: Final = np.array(
    (10 * HOUR_US, HOUR_US, 10 * MINUTE_US, MINUTE_US, 10 * SECOND_US, SECOND_US)
    + (100_000, 10_000, 1_000, 100, 10, 1)
    + (0,) * (_FRACTION_DIGITS_MAX - 6),
    np.int64,
)
"""Of the digits of a time of day; those finer than a microsecond are cut off."""
_MONTH_WEIGHTS: Final = np.array((12_000, 1_200, 120, 12, 10, 1), np.int64)
"""Of the digits of a year and its month: months since the year 0, January is 1."""
_Numbers = npt.NDArray[np.int64]


def parse_instants(texts: Sequence[str]) -> list[int]:
    """The instant of each text, in microseconds. Raises TimeError if any is none."""
    if len(texts) < ROWS_MIN:
        return parse_some(texts)
    lengths = list(map(len, texts))
    different = set(lengths)
    if len(different) == 1:
        return _of_one_length(texts, lengths[0])
    if len(different) > LENGTHS_MAX:
        return list(map(parse_instant, texts))
    instants: Any = np.empty(len(texts), np.int64)
    length_of = np.array(lengths)
    for length in different:
        places = np.flatnonzero(length_of == length)
        instants[places] = _of_one_length([texts[place] for place in places.tolist()], length)
    found: list[int] = instants.tolist()
    return found


def _of_one_length(texts: Sequence[str], length: int) -> list[int]:
    found = _of_one_form(texts, length)
    if found is None:
        return list(map(parse_instant, texts))
    instants: list[int] = found.tolist()
    return instants


def _of_one_form(texts: Sequence[str], length: int) -> _Numbers | None:
    """The instants of texts that are all `length` long; None: they are not all of the first's form, or in range."""
    first = texts[0]
    parse_instant(first)
    zone_start = length - (1 if first[-1] in "Zz" else _OFFSET_CHARS)
    fraction = range(_SECONDS_END + 1, zone_start)
    joined = "".join(texts)
    if len(fraction) > _FRACTION_DIGITS_MAX or not joined.isascii():
        return None
    table = np.frombuffer(joined.encode(), np.uint8).reshape(len(texts), length)
    dot = range(_SECONDS_END, zone_start)[:1]
    marks = table[:, [*_MARKS, *dot, *range(zone_start, length)]]
    digits = table[:, [*_DIGITS, *fraction]] - np.uint8(ord("0"))
    if not (marks == marks[0]).all() or digits.max() > 9:
        return None
    us = _from_digits(digits)
    if us is None:
        return None
    if zone_start < length - 1:
        us -= offset_us(first[zone_start:])
    return us if int(us.min()) >= INSTANT_US_MIN and int(us.max()) < INSTANT_US_END else None


def _from_digits(digits: npt.NDArray[np.uint8]) -> _Numbers | None:
    """Microseconds of rows of digits (year, month, day, hour, minute, second, fraction); None: one is out of range.

    Second 60 is out of range here: a leap second is `parse_instant`'s business.
    """
    hours = digits[:, 8] * np.uint8(10) + digits[:, 9]
    if hours.max() > 23 or digits[:, [_TENS_OF_MINUTE, _TENS_OF_SECOND]].max() > 5:
        return None
    numbers = digits.astype(np.int64)
    months = numbers[:, :6] @ _MONTH_WEIGHTS
    days = numbers[:, 6] * 10 + numbers[:, 7]
    first, last = int(months.min()), int(months.max())
    of_year = numbers[:, 4] * 10 + numbers[:, 5]
    if last - first > MONTHS_MAX or not (int(of_year.min()) >= 1 and int(of_year.max()) <= 12):
        return None
    calendar = [divmod(month - 1, 12) for month in range(first, last + 1)]
    months -= first
    last_days = np.array([days_in_month(year, month + 1) for year, month in calendar])[months]
    if int(days.min()) < 1 or bool((days > last_days).any()):
        return None
    days += np.array([days_from_civil(year, month + 1, 0) for year, month in calendar])[months]
    us: _Numbers = numbers[:, 8:] @ _WEIGHTS_US[: digits.shape[1] - 8]
    us += days * DAY_US
    return us
