"""How fast an account may be asked: a token bucket, and a breaker that stops asking while nothing answers.

Rules it keeps: both only say how long to wait, so that nobody who waits holds a place others could use; a breaker
lets one probe through at a time; waits grow with failures and are jittered, so that many accounts don't return
at once. They must not know what is asked, nor the time: it is a parameter, in microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

RandomBelow = Callable[[int], int]
"""A random whole number from 0 to one less than its argument."""
SECOND_US: Final = 1_000_000
FAILURES_MAX: Final = 5
"""Failures in a row after which the breaker opens."""
OPEN_US_MIN: Final = SECOND_US
OPEN_US_MAX: Final = 60 * SECOND_US
AHEAD_US_MAX: Final = 3600 * SECOND_US
"""Places given away in advance: more than an hour of them is a clock that moved."""
WAIT_SLICE_US: Final = SECOND_US // 4
"""Who waits for a place looks again so often: a probe that is answered ends a wait that would have been a minute."""
BACKOFF_US_MIN: Final = SECOND_US // 2
BACKOFF_US_MAX: Final = 300 * SECOND_US


def backoff_us(tries: int, random_below: RandomBelow) -> int:
    """How long to wait after so many attempts (from 1) that led nowhere: doubled each time, half of it random."""
    longest = min(BACKOFF_US_MIN << min(tries, 20), BACKOFF_US_MAX)
    return longest // 2 + random_below(longest // 2 + 1)


class TokenBucket:
    """So many a second, with a burst of a second's worth (at least one)."""

    def __init__(self, per_second: int) -> None:
        assert per_second > 0, "a bucket that never fills lets nobody through"
        self.per_second = per_second
        self._each_us = SECOND_US // per_second
        self._burst_us = SECOND_US
        self._free_at_us = 0

    def take(self, now_us: int) -> int:
        """0: taken. Else microseconds to wait before asking again; nothing is taken."""
        self._mind_the_clock(now_us)
        if self._free_at_us > now_us:
            return self._free_at_us - now_us
        self._free_at_us = max(self._free_at_us, now_us - self._burst_us) + self._each_us
        return 0

    def reserve(self, now_us: int) -> int:
        """Taken in any case; microseconds to wait until it may be used. Nobody asks twice for one place."""
        self._mind_the_clock(now_us)
        at_us = max(self._free_at_us, now_us - self._burst_us)
        self._free_at_us = at_us + self._each_us
        return max(0, at_us - now_us)

    def _mind_the_clock(self, now_us: int) -> None:
        """A clock that stepped back must not stop pushing for as long as it stepped."""
        if self._free_at_us > now_us + AHEAD_US_MAX:
            self._free_at_us = now_us


class Breaker:
    """Closed while answers come; after FAILURES_MAX failures in a row only a probe now and then gets through."""

    def __init__(self, random_below: RandomBelow) -> None:
        self._random_below = random_below
        self._failures = 0
        self._openings = 0
        self._closed_from_us = 0
        self._probing_until_us = 0
        self.reason: str | None = None
        """Why it is open; None while it is not."""

    @property
    def is_open(self) -> bool:
        """Whether requests are held back."""
        return self.reason is not None

    def admit(self, now_us: int) -> int:
        """0: go on, and tell the result. Else microseconds to wait."""
        if self.reason is None and now_us >= self._closed_from_us:
            return 0
        wait_us = max(self._closed_from_us, self._probing_until_us) - now_us
        if wait_us > OPEN_US_MAX * 60:
            # The clock stepped back: what was meant as a minute is not made a day.
            self._closed_from_us = self._probing_until_us = now_us
            return 0
        if wait_us > 0:
            return wait_us
        self._probing_until_us = now_us + OPEN_US_MAX
        return 0

    def wait_us(self, now_us: int) -> int:
        """How long nobody gets through; 0: somebody may. Takes nothing."""
        return min(max(0, max(self._closed_from_us, self._probing_until_us) - now_us), OPEN_US_MAX)

    def pause(self, now_us: int, wait_us: int) -> None:
        """Stripe asked for a pause; it answers, so this is no failure."""
        self._closed_from_us = max(self._closed_from_us, now_us + wait_us)

    def succeeded(self) -> None:
        """Something was answered."""
        self._failures = self._openings = 0
        self._probing_until_us = 0
        self.reason = None

    def failed(self, now_us: int, reason: str) -> None:
        """Nothing was answered, or an error of Stripe's own."""
        self._failures += 1
        self._probing_until_us = 0
        if self._failures < FAILURES_MAX and self.reason is None:
            return
        longest = min(OPEN_US_MIN << min(self._openings, 20), OPEN_US_MAX)
        self._openings += 1
        self.reason = reason
        self._closed_from_us = now_us + longest // 2 + self._random_below(longest // 2 + 1)
