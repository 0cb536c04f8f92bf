"""The buffer between an app's calls and the sender: bounded, for any number of threads, on disk too if there is a spool.

Rules it keeps: it never grows over its bounds: what has no room is dropped or refused as the policy says, counted and
told; events leave in the order they came; nothing is forgotten before it is settled; no error of the spool reaches the
app: an event that can't be spooled waits in memory; the app's hook is called without the lock, for it may wait for what
another thread holds that is tracking. It must not know how events are sent, nor who waits for what.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Optional

from stripemeter.counts import Statistics
from stripemeter.delivery import GIVEN_UP, Settlement
from stripemeter.errors import Failure
from stripemeter.events import Draft, Outgoing, wire_text
from stripemeter.options import Options
from stripemeter.spool import DELETE_ROWS_MAX, SpoiledRows, Spool, beside, is_damage, set_aside

EVENT_BYTES = 600
"""About what an event without meta takes in memory."""
SPOOL_REST_SECONDS = 5.0
FULL = "full"
CLOSED = "closed"


class Buffer:
    """Events that wait, those that are on their way, and the counts of both.

    `wake` is called when a batch is ready, `on_change` when something was settled; both are the owner's to set.
    """

    def __init__(
        self, options: Options, tell: Callable[[Failure], None], now_us: Callable[[], int]
    ) -> None:
        self._options = options
        self._tell = tell
        self._now_us = now_us
        self._tenant_json = json.dumps(options.tenant_id)
        self._batch_events = min(options.batch_events_max, options.queue_events_max)
        self.wake: Callable[[], object] = lambda: None
        self.on_change: Callable[[], object] = lambda: None
        self.begin()

    def begin(self, *, child: bool = False) -> None:
        """Empty, with locks and files of its own: at the start, and in the child of a fork.

        A child opens its spool with its first event: most children never meter anything.
        """
        # Reentrant: a signal's handler may track while its thread is in here.
        self.changed = threading.Condition(threading.RLock())
        self._waiting: deque[Draft] = deque()
        self._waiting_bytes = 0
        self._on_way = 0
        self._rows_on_way: frozenset[Optional[int]] = frozenset()
        self._unforgotten = array("q")
        """Rows of the spool that are settled and could not be deleted yet: neither they nor what is older is read meanwhile."""
        self._read_after: Optional[int] = None
        self._closed = self.sealed = False
        self._left = 0
        self._blocked = 0
        self.put_number = 0
        self.settled_number = 0
        self.flush_to = 0
        self._tracked = self._accepted = self._duplicates = 0
        self._rejected = self._dropped = self._retries = 0
        self._untold: deque[Failure] = deque()
        """Found with the lock held, to be told when it is not."""
        self._spool: Optional[Spool] = None
        self._spool_rests_until = 0.0
        self._spool_path = self._options.spool_path
        self._spool_waits = child and self._spool_path is not None
        if child and self._spool_path is not None:
            self._spool_path = beside(self._spool_path)
        if self._options.spool_path is not None and not child:
            self._open_spool()
            self._tell_untold()

    def _tell_untold(self) -> None:
        """Without the lock: tell what was found with it."""
        while self._untold:
            with suppress(IndexError):  # another thread was faster
                self._tell(self._untold.popleft())

    # Into it

    def offer(self, event: Draft) -> Optional[str]:
        """Take an event; None, or why it was not taken: FULL (the policy is not to drop) or CLOSED."""
        dropped: Optional[Outgoing] = None
        with self.changed:
            if self._closed:
                return CLOSED
            if self.is_full():
                self.wake()
                if self._options.backpressure != "drop_oldest":
                    return FULL
                dropped = self._drop_oldest()
            self._put(event)
            self._tracked += 1
            self.put_number += 1
            if self._count() >= self._batch_events:
                self.wake()
            if self.sealed and self._waiting:
                # A signal's handler closed the client in the middle of this.
                self._untold.append(self._too_late())
        if self._untold:
            self._tell_untold()
        if dropped is not None:
            self._tell(Failure("dropped", "the buffer was full", (dropped.event(),)))
        return None

    def _too_late(self) -> Failure:
        lost = [self._pop() for _ in range(len(self._waiting))]
        self._dropped += len(lost)
        self._left += len(lost)
        self._settled(len(lost))
        detail = "the client was closed while it was tracked"
        return Failure("closed", detail, tuple(outgoing.event() for outgoing in lost))

    def _count(self) -> int:
        """Events that wait; those in the spool that are on their way are not among them."""
        if self._spool is None:
            return len(self._waiting)
        return len(self._waiting) + self._unsettled_rows(self._spool) - self._on_way

    def _unsettled_rows(self, spool: Spool) -> int:
        return max(spool.rows - len(self._unforgotten), 0)

    def is_full(self) -> bool:
        """Whether there is no room: what comes now is refused, or drops what is oldest."""
        options = self._options
        if (
            len(self._waiting) >= options.queue_events_max
            or self._waiting_bytes >= options.queue_bytes_max
        ):
            return True
        return (
            self._spool is not None
            and self._unsettled_rows(self._spool) >= options.spool_events_max
        )

    def _put(self, event: Draft) -> None:
        if self._spool_waits:
            self._spool_waits = False
            self._open_spool()
        if self._spool is not None and time.monotonic() >= self._spool_rests_until:
            try:
                self._spool.insert(wire_text(event, self._tenant_json))
            except sqlite3.Error as error:
                self._spool_failed(error)
            else:
                return
        self._waiting.append(event)
        meta = event[5]
        self._waiting_bytes += EVENT_BYTES if meta is None else EVENT_BYTES + len(meta)

    def _pop(self) -> Outgoing:
        event = self._waiting.popleft()
        meta = event[5]
        self._waiting_bytes -= EVENT_BYTES if meta is None else EVENT_BYTES + len(meta)
        return Outgoing(wire_text(event, self._tenant_json))

    def _drop_oldest(self) -> Optional[Outgoing]:
        """Make room for one; None when all that is there is on its way."""
        dropped: Optional[Outgoing] = None
        if self._waiting:
            dropped = self._pop()
        elif self._spool is not None:
            found = self._spooled(len(self._rows_on_way) + 1)
            free = [outgoing for outgoing in found if outgoing.row not in self._rows_on_way]
            if free:
                dropped = free[0]
                self._forget([dropped])
        if dropped is not None:
            self._dropped += 1
            self._settled(1)
        return dropped

    def refuse(self, failure: Failure, *, invalid: bool) -> None:
        """Count and tell an event that never got in: an invalid one, or one without room or too late."""
        with self.changed:
            if invalid:
                self._rejected += 1
            else:
                self._tracked += 1
                self._dropped += 1
        self._tell(failure)

    def blocking(self, change: int) -> None:
        """So many more callers wait for room, or fewer: what there is leaves at once then."""
        with self.changed:
            self._blocked += change
        self.wake()

    # Out of it

    def take(self, *, everything: bool) -> list[Outgoing]:
        """The next batch, on its way from now on; [] for none. Less than a full one only if `everything`, or in need."""
        with self.changed:
            batch = self._take(everything=everything)
        self._tell_untold()
        return batch

    def _take(self, *, everything: bool) -> list[Outgoing]:
        assert self._on_way == 0, "a batch is settled before the next leaves"
        in_need = self._closed or self._blocked or self.settled_number < self.flush_to
        in_need = in_need or self.is_full()
        if not (everything or in_need) and self._count() < self._batch_events:
            return []
        count = self._options.batch_events_max
        if self._waiting:
            batch = [self._pop() for _ in range(min(count, len(self._waiting)))]
        else:
            batch = self._spooled(count)
            self._rows_on_way = frozenset(outgoing.row for outgoing in batch)
        self._on_way = len(batch)
        return batch

    def leaves_again(self, batch: Sequence[Outgoing]) -> None:
        """A batch that was taken before and not settled is on its way again."""
        with self.changed:
            self._on_way = len(batch)

    def _spooled(self, count: int) -> list[Outgoing]:
        while (found := self._read_spool(count)) is None:
            pass  # spoiled rows are out of the way now, and there is an end of them
        return found

    def _read_spool(self, count: int) -> Optional[list[Outgoing]]:
        if self._spool is None:
            return []
        try:
            return self._spool.oldest(count, after=self._read_after)
        except SpoiledRows as error:
            self._dropped += error.rows
            self._settled(error.rows)
            self._untold.append(Failure("spool", str(error)))
            return None
        except sqlite3.Error as error:
            self._spool_failed(error)
            return []

    def settle(self, settlements: Sequence[Settlement], retries: int) -> None:
        """Count, forget and tell what is over. `retries`: requests that were sent again for them."""
        failed: list[Settlement] = []
        with self.changed:
            if self.sealed:
                return
            self._retries += retries
            for settlement in settlements:
                status = settlement.verdict.status
                if status == "accepted":
                    self._accepted += 1
                elif status == "duplicate":
                    self._duplicates += 1
                else:
                    failed.append(settlement)
            self._rejected += len(failed)
            self._on_way -= len(settlements)
            self._forget([settlement.outgoing for settlement in settlements])
            self._settled(len(settlements))
        self._tell_untold()
        for failure in failures_of(failed):
            self._tell(failure)

    def _forget(self, settled: Sequence[Outgoing]) -> None:
        rows = [outgoing.row for outgoing in settled if outgoing.row is not None]
        if rows:
            self._unforgotten.extend(rows)
            self._read_after = max(*rows, self._read_after or 0)
            self._delete_settled()

    def _delete_settled(self) -> None:
        """Delete what is settled; where the disk was full or the file locked just now, with what is settled later."""
        spool = self._spool
        if spool is None or time.monotonic() < self._spool_rests_until:
            return
        try:
            while self._unforgotten:
                spool.delete(self._unforgotten[-DELETE_ROWS_MAX:])
                del self._unforgotten[-DELETE_ROWS_MAX:]
        except sqlite3.Error as error:
            self._spool_failed(error)
        else:
            self._read_after = None

    def _settled(self, count: int) -> None:
        self.settled_number += count
        self.changed.notify_all()
        self.on_change()

    # The spool

    def _open_spool(self) -> None:
        """Open it; one that is damaged is set aside, and a new one made. Without one memory has to do."""
        path, options = self._spool_path, self._options
        self._rows_on_way = frozenset()
        self._unforgotten, self._read_after = array("q"), None
        assert path is not None, "only with a spool"
        for attempt in range(2):
            try:
                self._spool = Spool(
                    path,
                    options.destination,
                    options.spool_lease_seconds,
                    self._now_us() // 1000,
                    sync=options.spool_sync,
                )
                # What is there already was tracked by others.
                self.put_number += self._spool.rows
            except sqlite3.Error as error:
                self._spool = None
                if attempt == 0 and is_damage(error):
                    self._set_aside(path, error)
                    continue
                detail = f"the spool {path} can't be used ({error}): events wait in memory alone"
                self._untold.append(Failure("spool", detail))
            return

    def _set_aside(self, path: str, error: sqlite3.Error) -> None:
        try:
            aside = set_aside(path, self._now_us() // 1000)
        except OSError as trouble:
            detail = f"the damaged spool {path} can't be moved: {trouble}"
        else:
            detail = f"the spool was damaged ({error}) and is now {aside}"
        self._untold.append(Failure("spool", detail))

    def _spool_failed(self, error: sqlite3.Error) -> None:
        """Go on in memory; with a new file if the old one is damaged."""
        spool = self._spool
        if spool is None:
            return
        if not is_damage(error):
            # Locked or full, it may hold up every call: for a while it is not asked.
            self._spool_rests_until = time.monotonic() + SPOOL_REST_SECONDS
            detail = f"the spool {spool.path}: {error}; events wait in memory"
            self._untold.append(Failure("spool", detail))
            return
        lost = self._unsettled_rows(spool) - self._on_way
        self._spool = None
        with suppress(sqlite3.Error):  # it is damaged: that is why it is closed
            spool.close()
        self._set_aside(spool.path, error)
        self._open_spool()
        # Its rows are in the file that was set aside; nobody waits for them here.
        self._settled(max(lost, 0))

    def renew(self) -> bool:
        """Renew the spool's lease if it is time, and take over what crashed processes left; whether it was time."""
        with self.changed:
            self._delete_settled()
            done = self._renew()
        self._tell_untold()
        return done

    def _renew(self) -> bool:
        now_ms = self._now_us() // 1000
        spool = self._spool
        if spool is None or not spool.renew_due(now_ms):
            return False
        before = spool.rows
        try:
            spool.renew(now_ms)
            spool.gather(now_ms)
        except sqlite3.Error as error:
            self._spool_failed(error)
            return False
        change = spool.rows - before
        if change > 0:
            self.put_number += change
        else:
            self._settled(-change)
        return True

    def checkpoint(self) -> Optional[sqlite3.Error]:
        """Wait for the disk, without the lock: of the sender alone, in any thread. The error, for `checkpointed`."""
        spool = self._spool
        try:
            if spool is not None:
                spool.checkpoint()
        except sqlite3.Error as error:
            return error
        return None

    def checkpointed(self, error: Optional[sqlite3.Error]) -> None:
        """What came of a checkpoint."""
        if error is not None:
            with self.changed:
                self._spool_failed(error)
            self._tell_untold()

    # Its end

    def close(self) -> None:
        """Take nothing any more; what is in it may still leave."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()
        self.wake()
        self.on_change()

    def seal(self, unsettled: Sequence[Outgoing]) -> bool:
        """The end: whether all was settled. What was not stays in the spool, or is dropped and told."""
        with self.changed:
            if self.sealed:
                return self._left == 0
            self.sealed = True
            lost = [outgoing for outgoing in unsettled if outgoing.row is None]
            lost += [self._pop() for _ in range(len(self._waiting))]
            self._spool_rests_until = 0.0
            self._delete_settled()
            kept = 0 if self._spool is None else self._unsettled_rows(self._spool)
            self._dropped += len(lost)
            self._on_way = 0
            self._left = len(lost) + kept
            self._close_spool()
            # What stays in the spool is not settled: it is for the next start.
            self._settled(len(lost))
        self._tell_untold()
        if lost:
            events = tuple(outgoing.event() for outgoing in lost)
            detail = "the client was closed before the server had answered"
            self._tell(Failure("closed", detail, events))
        return self._left == 0

    def _close_spool(self) -> None:
        if self._spool is not None:
            try:
                self._spool.close()
            except sqlite3.Error as error:
                self._untold.append(Failure("spool", f"the spool {self._spool.path}: {error}"))
            self._spool = None

    def leave_spool(self) -> Optional[Spool]:
        """In the child of a fork: the parent's spool, which is not to be used here, nor closed."""
        spool, self._spool = self._spool, None
        return spool

    def statistics(self) -> Statistics:
        """The counts of this moment."""
        with self.changed:
            queued = len(self._waiting) + (
                self._on_way
                if self._spool is None
                else max(self._unsettled_rows(self._spool), self._on_way)
            )
            return Statistics(
                self._tracked,
                self._accepted,
                self._duplicates,
                self._rejected,
                self._dropped,
                queued,
                self._retries,
            )


def failures_of(failed: Sequence[Settlement]) -> list[Failure]:
    """Settlements that went wrong as failures: neighbours of one reason are one."""
    failures: list[Failure] = []
    for (kind, detail, status), alike in groupby(failed, _reason):
        events = tuple(settlement.outgoing.event() for settlement in alike)
        failures.append(Failure(kind, detail, events, status))
    return failures


def _reason(settlement: Settlement) -> tuple[str, str, int]:
    kind = "unavailable" if settlement.verdict.status == GIVEN_UP else "rejected"
    return kind, settlement.verdict.error or "the server gave no reason", settlement.status
