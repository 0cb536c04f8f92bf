"""The one place that reads the wall clock, and draws what needs no secrecy.

Everything else takes these as parameters, so that tests can give their own. It must not know what they are for.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable

now_ns: Callable[[], int] = time.time_ns


def now_us() -> int:
    """Microseconds since 1970."""
    return now_ns() // 1000


def jitter() -> Callable[[], float]:
    """A source of numbers from 0 to below 1, unlike that of any other client."""
    return random.Random(secrets.randbits(64)).random
