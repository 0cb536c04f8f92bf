"""How many events a tenant may send: one token bucket each, in events per second.

Rules it keeps: memory is bounded, whatever tenants there are; a whole batch always fits into a full bucket, else it
could never be sent; time is a parameter and may step back. It must not know HTTP.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

BUCKETS_MAX: Final = 10_000
"""Tenants remembered at once. The one not seen for the longest goes first, and starts with a full bucket again."""
_US_PER_SECOND: Final = 1_000_000


class RateLimiter:
    """Token buckets by tenant; a full one holds a second's worth, at least one full batch."""

    def __init__(
        self, events_per_second: int, batch_events_max: int, *, buckets_max: int = BUCKETS_MAX
    ) -> None:
        assert events_per_second > 0, "without a limit there is no limiter"
        self._rate = events_per_second
        self._burst_us = max(events_per_second, batch_events_max) * _US_PER_SECOND
        self._buckets_max = buckets_max
        self._buckets: OrderedDict[str, list[int]] = OrderedDict()
        """Tenant to [tokens in millionths of an event, when they were counted]."""

    def take(self, wanted: Mapping[str, int], now_us: int) -> int | None:
        """Take so many tokens of each tenant: None, or, with nothing taken of anybody, the whole seconds to wait."""
        wait_seconds = 0
        for tenant, events in wanted.items():
            missing = events * _US_PER_SECOND - self._refilled(tenant, now_us)[0]
            if missing > 0:
                needed_seconds = -(-missing // (self._rate * _US_PER_SECOND))
                wait_seconds = max(wait_seconds, needed_seconds)
        if wait_seconds:
            return wait_seconds
        for tenant, events in wanted.items():
            # One that was forgotten since, for too many others in the same request, starts full.
            self._refilled(tenant, now_us)[0] -= events * _US_PER_SECOND
        return None

    def _refilled(self, tenant: str, now_us: int) -> list[int]:
        bucket = self._buckets.get(tenant)
        if bucket is None:
            bucket = self._buckets[tenant] = [self._burst_us, now_us]
            if len(self._buckets) > self._buckets_max:
                self._buckets.popitem(last=False)
            return bucket
        self._buckets.move_to_end(tenant)
        elapsed_us = max(0, now_us - bucket[1])
        bucket[0] = min(self._burst_us, bucket[0] + elapsed_us * self._rate)
        bucket[1] = now_us
        return bucket
