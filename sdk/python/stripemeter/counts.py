"""A client's counts, and whom its failures are told to.

Rules it keeps: `on_error` never breaks the app: what it raises is logged and goes no further; without one failures are
logged, at most one line a kind and interval, so that an outage is no flood. It must not know why something failed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

from stripemeter.errors import Failure

logger = logging.getLogger("stripemeter")
LOG_INTERVAL_SECONDS = 10.0


@dataclass(frozen=True)
class Statistics:
    """Events of one client since it was made; requests for `retries`.

    tracked = accepted + duplicates + queued + dropped + those of `rejected` that the server refused, once a direct
    call or a flush is over (and but for what a spool brought from before).
    """

    tracked: int
    accepted: int
    duplicates: int
    rejected: int
    dropped: int
    queued: int
    retries: int


class Teller:
    """Tells failures to the app's hook, or logs them."""

    def __init__(self, on_error: Optional[Callable[[Failure], object]]) -> None:
        self._on_error = on_error
        self._logged_at: dict[str, float] = {}
        self._held_back: dict[str, int] = {}

    def __call__(self, failure: Failure) -> None:
        """Tell it. Never raises."""
        if self._on_error is None:
            self._log(failure)
            return
        try:
            self._on_error(failure)
        except Exception:
            logger.exception("the on_error hook raised")

    def _log(self, failure: Failure) -> None:
        now = time.monotonic()
        kind = failure.kind
        before = self._held_back.get(kind, 0)
        if now - self._logged_at.get(kind, -LOG_INTERVAL_SECONDS) < LOG_INTERVAL_SECONDS:
            self._held_back[kind] = before + len(failure.events)
            return
        self._logged_at[kind] = now
        self._held_back[kind] = 0
        logger.warning(
            "%d events not counted (%s): %s%s",
            len(failure.events),
            kind,
            failure.detail,
            f"; and {before} events before" if before else "",
        )
