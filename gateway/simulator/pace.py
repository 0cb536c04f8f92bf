"""Stripe's rate limits: calls a second per account and endpoint, with one second's worth saved up.

It must not know requests. Source: https://docs.stripe.com/rate-limits
"""

from __future__ import annotations

from typing import Final

from gateway.simulator.ledger import MICROS, Limits

BUCKETS_MAX: Final = 100_000
_METER_EVENTS: Final = ("/v1/billing/meter_events", "/v2/billing/meter_event_stream")


class Pace:
    """Counts the calls of each account and endpoint."""

    def __init__(self, limits: Limits | None, own_account: str) -> None:
        self._limits = limits
        self._own = own_account
        self._buckets: dict[tuple[str, str, str], tuple[float, int]] = {}
        """(account, method, pattern) to (calls left, when that was)."""

    def allows(self, account: str, method: str, pattern: str, now_us: int) -> bool:
        """Whether a call may go through now; it is counted if so."""
        if self._limits is None:
            return True
        if account != self._own:
            rate = self._limits.connect
        elif pattern in _METER_EVENTS:
            rate = self._limits.meter_events
        else:
            rate = self._limits.other
        if not rate:
            return True
        if len(self._buckets) >= BUCKETS_MAX:
            self._buckets.clear()
        key = (account, method, pattern)
        left, at_us = self._buckets.get(key, (float(rate), now_us))
        left = min(float(rate), left + (now_us - at_us) * rate / MICROS)
        if left < 1:
            return False
        self._buckets[key] = (left - 1, now_us)
        return True
