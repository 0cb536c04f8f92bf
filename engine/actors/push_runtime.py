"""What this process knows of a lane beside its ledger: how its open intent fared so far, and its place in a bucket.

Rules it keeps: a place that was given is kept until it may be used, so that who waits longest goes first; all of it may be
lost, and then what may have left is taken for left. It must not know what a lane does.
"""

from __future__ import annotations

from typing import Final

import trio

from engine.actors.push_connections import Pace
from engine.core.billing import Unread
from engine.core.pace import RandomBelow, TokenBucket, backoff_us
from engine.core.push_plan import Attempts, Planned, refused_wait_us
from engine.core.push_records import Target

READ_REFUSED_US_MAX: Final = 1800 * 1_000_000
"""Half of the shortest time between a period's end and its invoice: whoever mends it by then is billed."""


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
        self.read_again_us = 0
        """The reading before its first push came to nothing: when it is tried again."""
        self.read_refused: str | None = None
        """Why Stripe refuses that reading, in words; None: it does not."""

    def planned(self, found: Planned, now_us: int) -> Planned:
        """A plan for one of its targets, but not before what it waits for is read again."""
        if found.standing != "due" or found.at_us is None:
            return found
        at_us = max(found.at_us, self.read_again_us)
        if self.read_refused is not None and now_us < self.read_again_us:
            return found._replace(standing="refused", reason=self.read_refused, at_us=at_us)
        return found._replace(at_us=at_us)

    def waits_to_read(self, answer: Unread, again_us: int) -> int:
        """The reading before its first push came to nothing, and is not tried before `again_us`, which is returned."""
        self.read_again_us = again_us
        self.read_refused = answer.reason if answer.is_refused else None
        if answer.is_refused:
            self.forced.clear()
        return again_us

    def has_read(self) -> None:
        """The reading before its first push was answered."""
        self.failures, self.last_error = 0, None
        self.read_again_us, self.read_refused = 0, None

    def unread(self, answer: Unread, now_us: int, random_below: RandomBelow) -> int:
        """A reading came to nothing; when to come again."""
        self.failures += 1
        self.last_error = answer.reason
        if answer.is_refused:
            # Sooner than what is refused for sending: nothing was recorded that would have to be undone.
            return now_us + min(refused_wait_us(self.failures), READ_REFUSED_US_MAX)
        return now_us + (answer.after_us or backoff_us(self.failures, random_below))

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
