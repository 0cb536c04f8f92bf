"""What this process knows of a lane beside its ledger: how its open intent fared so far, and its place in a bucket.

Rules it keeps: a place that was given is kept until it may be used, so that who waits longest goes first; all of it may be
lost, and then what may have left is taken for left. It must not know what a lane does.
"""

from __future__ import annotations

import trio

from engine.actors.push_connections import Pace
from engine.core.pace import TokenBucket
from engine.core.push_plan import Attempts
from engine.core.push_records import Target


class LaneRuntime:
    """What this process knows of a lane beside its ledger."""

    def __init__(self) -> None:
        self.lock = trio.Semaphore(1, max_value=1)
        """Held while the lane is served or decided about; not a Lock: a course belongs to no task."""
        self.attempts: Attempts | None = None
        """Of the open intent; None: the next one is new, or nothing is known of it."""
        self.forced: set[Target] = set()
        """Targets whose next plan passes over the pace and an earlier refusal."""
        self.last_error: str | None = None
        self.slot: tuple[TokenBucket, int] | None = None
        """The place it was given in a bucket, and from when it may be used."""
        self.failures = 0
        """Things that went wrong in a row outside of an intent: readings, records."""

    def slot_wait_us(self, now_us: int) -> int:
        """How long until its place in a bucket may be used; 0: it may, or it has none."""
        return 0 if self.slot is None else max(0, self.slot[1] - now_us)

    def admitted(self, pace: Pace, bucket: TokenBucket, now_us: int) -> int:
        """0: ask now. Else microseconds to wait; the place in the bucket is kept meanwhile."""
        slot, self.slot = self.slot, None
        if slot is None or slot[0] is not bucket:
            slot = (bucket, now_us + bucket.reserve(now_us))
        wait_us = slot[1] - now_us if slot[1] > now_us else pace.breaker.admit(now_us)
        if wait_us > 0:
            self.slot = slot
        return wait_us
