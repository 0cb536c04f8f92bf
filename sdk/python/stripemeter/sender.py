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

from stripemeter.answers import Answer, NoAnswer
from stripemeter.buffer import CLOSED, FULL, Buffer
from stripemeter.counts import logger
from stripemeter.delivery import Delivery, Pace
from stripemeter.errors import Failure, QueueFull
from stripemeter.events import Draft, Event, Outgoing
from stripemeter.options import Options

CLOSING_WAIT_SECONDS_MAX = 1.0
"""While closing a retry does not wait for longer: there is little time left."""
_JOIN_EXTRA_SECONDS = 0.5

Post = Callable[[bytes, float], Union[Answer, NoAnswer]]


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
        post: Post,
        tell: Callable[[Failure], None],
        draw: Callable[[], float],
        now_us: Callable[[], int],
    ) -> None:
        self._options = options
        self._buffer = buffer
        self._post = post
        self._tell = tell
        self._draw = draw
        self._now_us = now_us
        self.begin()

    def begin(self, *, child: bool = False) -> None:
        """Without a thread: at the start (a spool may hold something, and starts it), and in the child of a fork."""
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._starting = threading.Lock()
        self._ending = threading.Lock()
        self._thread: Union[threading.Thread, None] = None
        self._until: Union[float, None] = None
        self._unsettled: Sequence[Outgoing] = ()
        self._buffer.wake = self._wake.set
        if self._options.spool is not None and not child:
            self.start()

    def start(self) -> None:
        """Start the thread, once."""
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="stripemeter", daemon=True)
                thread.start()
                self._thread = thread
                _LIVE.add(self)

    def put(self, event: Draft) -> bool:
        """Whether it was taken; if not it was counted and told. Raises QueueFull where that is the policy."""
        refusal = self._buffer.offer(event)
        if self._thread is None:
            self.start()
        if refusal is None:
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
            with changed:
                while (refusal := self._buffer.offer(event)) == FULL:
                    left = until - time.monotonic()
                    if left <= 0 or not changed.wait(left):
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
            if buffer.settled_number >= wanted:
                return True
            self._hurry.set()
            self._wake.set()
            while buffer.settled_number < wanted:
                left = until - time.monotonic()
                if left <= 0 or not buffer.changed.wait(left):
                    return buffer.settled_number >= wanted
        return True

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
                thread.join(max(self._until - time.monotonic(), 0) + _JOIN_EXTRA_SECONDS)
            _LIVE.discard(self)
            return self._buffer.seal(self._unsettled)

    def close_at_exit(self) -> None:
        """What is left to do when the process ends in order."""
        self.close(self._options.close_seconds_max)

    # The thread

    def _run(self) -> None:
        interval = self._options.flush_interval_seconds
        next_flush = time.monotonic() + interval
        while True:
            lease = self._options.spool_lease_seconds / 3
            self._wake.wait(max(min(next_flush - time.monotonic(), lease), 0))
            self._wake.clear()
            ending = self._until is not None
            everything = ending or time.monotonic() >= next_flush
            try:
                self._buffer.renew()
                if not self._deliver_all(everything=everything):
                    return
            except Exception as error:  # noqa: BLE001 - a bug here must be told, and must not end metering in silence
                self._failed(error)
            if ending:
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
            answer = self._post(body, self._request_seconds())
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
            self._buffer.renew()


_LIVE: weakref.WeakSet[Sender] = weakref.WeakSet()
"""Senders whose thread runs. The thread holds its sender, so a client that was forgotten is flushed too."""


def _close_all() -> None:
    for sender in list(_LIVE):
        sender.close_at_exit()


atexit.register(_close_all)
