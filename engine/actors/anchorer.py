"""The anchorer: writes the log's head hash, signed, to where whoever can change the log can't, on an interval.

Rules it keeps: it waits for nobody and nobody waits for it; what fails is tried again with backoff and shown in
readiness and in a metric; an anchor is of a head that is durable. It must not know where anchors are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

import structlog
import trio

from engine.core.pace import backoff_us
from engine.core.times import format_instant
from engine.ports import AnchorFailed, AnchorStore, Clock
from engine.witness.canonical import Document, Signer, canonical
from engine.witness.purposes import ANCHOR
from wal.log import Head

_logger = structlog.get_logger("stripemeter.anchors")
PUT_SECONDS_MAX: Final = 60.0
LOOK_SECONDS_MAX: Final = 1.0
"""How often it looks whether the meter is ready, and whether the log has grown."""


def anchor_of(head: Head, log_id: bytes, at_us: int, signer: Signer) -> Document:
    """A signed anchor: the log ended at `position` (its last one) with a record of this hash."""
    return signer.signed(
        ANCHOR,
        {
            "format": ANCHOR,
            "logId": log_id.hex(),
            "epoch": head.epoch,
            "position": head.next_sequence - 1,
            "headHash": head.hash.hex(),
            "at": format_instant(at_us),
        },
    )


def name_of(anchor: Document) -> str:
    """A name that sorts as the log's positions do."""
    return f"{anchor['logId']}/{anchor['epoch']:010d}-{anchor['position']:020d}"


class Anchorer:
    """One task."""

    def __init__(
        self,
        store: AnchorStore,
        *,
        signer: Signer,
        head: Callable[[], Head | None],
        log_id: Callable[[], bytes],
        clock: Clock,
        rng: Random,
        interval_us: int,
    ) -> None:
        """`head`: None while it is not known."""
        self._store = store
        self._signer = signer
        self._head = head
        self._log_id = log_id
        self._clock = clock
        self._rng = rng
        self._interval_us = interval_us
        self.where = store.where
        self.last_error: str | None = None
        """Why anchors can't be kept now; None while they can. Shown in readiness."""
        self.written = self.failures = 0
        self.position = -1
        """Of the newest anchor of this process."""
        self._behind_since_us: int | None = None
        """On the monotonic clock: since when there is something that no anchor covers."""

    def behind_us(self) -> int:
        """For how long something was acknowledged that no anchor covers; 0: there is nothing."""
        since_us = self._behind_since_us
        return 0 if since_us is None else max(0, self._clock.monotonic_us() - since_us)

    async def run(self) -> None:
        """Write anchors until cancelled: one at once, then one an interval while the log grows."""
        next_at_us, tries = 0, 0
        look_us = min(self._interval_us, int(LOOK_SECONDS_MAX * 1e6))
        while True:
            left_us = next_at_us - self._clock.monotonic_us()
            await trio.sleep((min(left_us, look_us) if left_us > 0 else look_us) / 1e6)
            head = self._head()
            if head is None or head.next_sequence - 1 == self.position:
                self._behind_since_us = None
                continue
            if self._behind_since_us is None:
                # Also between two anchors: how much could be cut off unseen is what is asked for.
                self._behind_since_us = self._clock.monotonic_us()
            if self._clock.monotonic_us() < next_at_us:
                continue
            if await self._write(head):
                wait_us, tries = self._interval_us, 0
            else:
                tries += 1
                wait_us = backoff_us(tries, self._rng.randrange)
            next_at_us = self._clock.monotonic_us() + wait_us

    async def _write(self, head: Head) -> bool:
        at_us = self._clock.now_us()
        anchor = anchor_of(head, self._log_id(), at_us, self._signer)
        reason = f"{self.where} gave no answer within {PUT_SECONDS_MAX:g} s"
        try:
            with trio.move_on_after(PUT_SECONDS_MAX):
                await self._store.put(canonical(anchor), name_of(anchor))
                self.written += 1
                self.position, self.last_error = head.next_sequence - 1, None
                self._behind_since_us = None
                return True
        except AnchorFailed as error:
            reason = str(error)
        self.failures += 1
        if self.last_error is None:
            _logger.warning("anchor_failed", where=self.where, reason=reason)
        self.last_error = reason
        return False
