"""Idempotency keys: one for each event, unlike every other ever made.

Rules it keeps: 96 random bits for each client and process, then a count; a fork begins a new source, since parent and
child would count alike. It must not know what a key is given to.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable

_RANDOM_BYTES = 12


def key_source() -> Callable[[], str]:
    """A function that makes a new key at each call, from any thread."""
    prefix = secrets.token_urlsafe(_RANDOM_BYTES) + "-"
    # next() of a count is one step of the interpreter: no two threads get the same number.
    numbers = itertools.count()

    def make() -> str:
        return f"{prefix}{next(numbers):x}"

    return make
