"""The background thread of the sync client: takes batches from the buffer and delivers them.

Rules it keeps: one batch at a time, so order is kept; it starts with the first event (or at once for a spool), so a client
made before a fork costs the parent nothing; nothing but the end stops it; at the process's exit it flushes, within
its bound. It must not know how an event is made.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Union

from stripemeter.buffer import CLOSED, FULL, Buffer
from stripemeter.counts import logger
from stripemeter.delivery import Delivery, Pace
from stripemeter.errors import Failure, QueueFull
from stripemeter.events import Draft, Event, Outgoing
from stripemeter.options import Options
from stripemeter.waking import Waking
from stripemeter.wire import Line

CLOSING_WAIT_SECONDS_MAX = 1.0
"""While closing a retry does not wait for longer: there is little time left."""
_JOIN_EXTRA_SECONDS = 0.5
_JOIN_LOOK_SECONDS = 0.005


def pace_of(options: Options, *, attempts: bool) -> Pace:
    """How a client's retries go; in buffered mode (`attempts` False) without end."""
    return Pace(
        options.retry_seconds_first,
        options.retry_seconds_max,
        options.attempts_max if attempts else None,
        options.batch_events_max,
        options.batch_bytes_max,
    )


class Sender:
    """Delivers what is in a buffer, from a thread of its own."""

    def __init__(
        self,
        options: Options,
        buffer: Buffer,
        line: Line,
        tell: Callable[[Failure], None],
        draw: Callable[[], float],
        now_us: Callable[[], int],
    ) -> None:
        self._options = options
        self._buffer = buffer
        self._line = line
        self._tell = tell
        self._draw = draw
        self._now_us = now_us
        self.begin()

    def begin(self, *, child: bool = False) -> None:
        """Without a thread: at the start (a spool may hold something, and starts it), and in the child of a fork."""
        # A signal's handler may track, flush and close in the middle of each: nothing here waits for its own thread.
        self._wake, self._hurry = Waking(), Waking()
        self._starting, self._ending = threading.RLock(), threading.RLock()
        self._thread: Union[threading.Thread, None] = None
        self._has_ended = False
        self._until: Union[float, None] = None
        self._forgotten = False
        self._unsettled: Sequence[Outgoing] = ()
        self._buffer.wake = self._wake.set
        if self._options.spool is not None and not child:
            self.start()

    def start(self) -> None:
        """Start the thread, once."""
        with self._starting:
            if self._thread is None:
                # Named before it runs, so that a signal's handler in between does not start a second one.
                self._thread = threading.Thread(target=self._run, name="stripemeter", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError as error:
                    # The interpreter is ending, or the system has no thread left: the next event tries again.
                    self._thread = None
                    self._tell(Failure("internal", f"no background thread: {error}"))
                    return
                _LIVE.add(self)

    def put(self, event: Draft) -> bool:
        """Whether it was taken; if not it was counted and told. Raises QueueFull where that is the policy."""
        refusal = self._buffer.offer(event)
        if refusal is None:
            if self._thread is None:
                self.start()
            return True
        if refusal == FULL and self._options.backpressure == "raise":
            message = "the buffer is full: the meter has been slow or away for long"
            raise QueueFull(message)
        if refusal == FULL and self._offer_patiently(event):
            return True
        told = Event(event[0], event[1], event[2], event[3], idempotency_key=event[6])
        if refusal == CLOSED:
            failure = Failure("closed", "the client is closed: make another one", (told,))
        else:
            failure = Failure("dropped", "the buffer stayed full", (told,))
        self._buffer.refuse(failure, invalid=False)
        return False

    def _offer_patiently(self, event: Draft) -> bool:
        until = time.monotonic() + self._options.block_seconds_max
        changed = self._buffer.changed
        self._buffer.blocking(+1)
        try:
            while (refusal := self._buffer.offer(event)) == FULL:
                with changed:
                    left = until - time.monotonic()
                    if left <= 0 or (self._buffer.is_full() and not changed.wait(left)):
                        return False
            return refusal is None
        finally:
            self._buffer.blocking(-1)

    def flush(self, seconds_max: float) -> bool:
        """Wait until all that was put before is settled; False when that took too long."""
        until = time.monotonic() + seconds_max
        buffer = self._buffer
        with buffer.changed:
            wanted = buffer.flush_to = buffer.put_number
            if buffer.settled_number >= wanted or threading.current_thread() is self._thread:
                # A hook that flushes would wait for its own thread.
                return buffer.settled_number >= wanted
            self._hurry.set()
            self._wake.set()
            while buffer.settled_number < wanted and not buffer.sealed:
                left = until - time.monotonic()
                if left <= 0 or not buffer.changed.wait(left):
                    break
            return buffer.settled_number >= wanted

    def close(self, seconds_max: float) -> bool:
        """Flush within the bound and end the thread; whether all was settled. Again: the same answer."""
        with self._ending:
            self._buffer.close()
            thread = self._thread
            if thread is not None and thread is not threading.current_thread():
                if self._until is None:
                    self._until = time.monotonic() + seconds_max
                self._hurry.set()
                self._wake.set()
                limit = max(self._until, time.monotonic()) + _JOIN_EXTRA_SECONDS
                # Not join(): a handler's close may be within another one, or hold up a `track` that has the lock, which
                # this lets go meanwhile. A thread without an ident has not begun.
                with self._buffer.changed:
                    while not self._has_ended and thread.ident and time.monotonic() < limit:
                        self._buffer.changed.wait(_JOIN_LOOK_SECONDS)
            _LIVE.discard(self)
            return self._buffer.seal(self._unsettled)

    def close_at_exit(self) -> None:
        """What is left to do when the process ends in order."""
        self.close(self._options.close_seconds_max)
        self._line.close()

    def end_soon(self) -> None:
        """Deliver what is left, within the bound of a close, and end; without waiting for it."""
        self._buffer.close()
        self._forgotten = True
        if self._until is None:
            self._until = time.monotonic() + self._options.close_seconds_max
        self._hurry.set()
        self._wake.set()

    # The thread

    def _run(self) -> None:
        try:
            self._run_to_the_end()
        finally:
            self._has_ended = True

    def _run_to_the_end(self) -> None:
        interval = self._options.flush_interval_seconds
        next_flush = time.monotonic() + interval
        while True:
            lease = self._options.spool_lease_seconds / 3
            self._wake.wait(max(min(next_flush - time.monotonic(), lease), 0))
            self._wake.clear()
            ending = self._until is not None
            everything = ending or time.monotonic() >= next_flush
            try:
                self._renew()
                ending = not self._deliver_all(everything=everything) or ending
            except Exception as error:  # noqa: BLE001 - a bug here must be told, and must not end metering in silence
                self._failed(error)
            if ending:
                self._buffer.seal(self._unsettled)
                if self._forgotten:
                    self._line.close()
                _LIVE.discard(self)
                return
            if everything:
                next_flush = time.monotonic() + interval

    def _failed(self, error: Exception) -> None:
        logger.exception("stripemeter: an unexpected error")
        self._tell(Failure("internal", f"{type(error).__name__}: {error}"))
        time.sleep(CLOSING_WAIT_SECONDS_MAX)

    def _deliver_all(self, *, everything: bool) -> bool:
        """Deliver what there is; False when the end came first."""
        self._hurry.clear()
        batch: Sequence[Outgoing] = self._unsettled
        if batch:
            # An unexpected error came between; what was counted already will be a duplicate.
            self._buffer.leaves_again(batch)
        else:
            batch = self._buffer.take(everything=everything)
        while batch:
            if not self._deliver(batch):
                return False
            batch = self._buffer.take(everything=everything)
        return True

    def _deliver(self, batch: Sequence[Outgoing]) -> bool:
        self._unsettled = batch
        delivery = Delivery(batch, pace_of(self._options, attempts=False), self._draw)
        retries = 0
        while (body := delivery.body()) is not None:
            answer = self._line.post(body, self._request_seconds())
            wait = delivery.take(answer, self._now_us())
            self._buffer.settle(delivery.settlements(), delivery.retries - retries)
            self._unsettled = delivery.unsettled()
            retries = delivery.retries
            if wait and not self._pause(wait, demanded=delivery.demanded):
                return False
        self._unsettled = ()
        return True

    def _request_seconds(self) -> float:
        if self._until is None:
            return self._options.timeout_seconds
        return min(self._options.timeout_seconds, max(self._until - time.monotonic(), 0.05))

    def _pause(self, seconds: float, *, demanded: bool) -> bool:
        """Wait, or less for a flush or the end; False when the end's bound is reached."""
        until = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            if self._until is not None:
                if now >= self._until:
                    return False
                # A close cuts every wait short, so that the last try is within its bound.
                until = min(until, now + CLOSING_WAIT_SECONDS_MAX, self._until)
            if now >= until:
                return self._until is None or now < self._until
            if self._hurry.wait(min(until - now, self._options.spool_lease_seconds / 3)):
                self._hurry.clear()
                if not demanded:
                    until = time.monotonic()
            self._renew()

    def _renew(self) -> None:
        if self._buffer.renew():
            self._buffer.checkpointed(self._buffer.checkpoint())


_LIVE: weakref.WeakSet[Sender] = weakref.WeakSet()
"""Senders whose thread runs. The thread holds its sender, so a client that was forgotten is flushed too."""


def _close_all() -> None:
    for sender in list(_LIVE):
        sender.close_at_exit()


atexit.register(_close_all)
