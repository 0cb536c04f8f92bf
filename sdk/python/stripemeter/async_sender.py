"""The background task of the async client: as `sender`, under asyncio and trio alike.

Rules it keeps: one batch at a time, so order is kept; nothing but the end stops it; cancellation passes at once, and
what was on its way then is unsettled. It must not know which loop runs, nor how an event is made.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Optional, Union

import anyio

from stripemeter.answers import Answer, NoAnswer
from stripemeter.buffer import CLOSED, FULL, Buffer
from stripemeter.counts import logger
from stripemeter.delivery import Delivery
from stripemeter.errors import Failure, QueueFull
from stripemeter.events import Draft, Event, Outgoing
from stripemeter.options import Options
from stripemeter.sender import CLOSING_WAIT_SECONDS_MAX, pace_of

AsyncPost = Callable[[bytes, float], Awaitable[Union[Answer, NoAnswer]]]


class Signal:
    """An event that can be waited for again and again."""

    def __init__(self) -> None:
        self._event: Optional[anyio.Event] = None
        self._is_set = False

    def set(self) -> None:
        """Wake whoever waits, or the next who does."""
        self._is_set = True
        if self._event is not None:
            self._event.set()

    def clear(self) -> None:
        """As if it had not been set."""
        self._is_set = False

    async def wait(self, seconds_max: float) -> bool:
        """Wait until it is set; whether it was."""
        if not self._is_set:
            event = self._event = anyio.Event()
            with anyio.move_on_after(seconds_max):
                await event.wait()
        return self._is_set


class AsyncSender:
    """Delivers what is in a buffer, in a task that the client runs."""

    def __init__(
        self,
        options: Options,
        buffer: Buffer,
        post: AsyncPost,
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

    def begin(self) -> None:
        """At the start, and in the child of a fork."""
        self._wake, self._hurry = Signal(), Signal()
        self._changed: list[Signal] = []
        self._until: Optional[float] = None
        self._unsettled: Sequence[Outgoing] = ()
        self.ended = Signal()
        self._buffer.wake = self._wake.set
        self._buffer.on_change = self._on_change

    def _on_change(self) -> None:
        for signal in self._changed:
            signal.set()

    async def put(self, event: Draft) -> bool:
        """Whether it was taken; if not it was counted and told. Raises QueueFull where that is the policy."""
        refusal = self._buffer.offer(event)
        if refusal is None:
            return True
        if refusal == FULL and self._options.backpressure == "raise":
            message = "the buffer is full: the meter has been slow or away for long"
            raise QueueFull(message)
        if refusal == FULL and await self._offer_patiently(event):
            return True
        told = Event(event[0], event[1], event[2], event[3], idempotency_key=event[6])
        if refusal == CLOSED:
            failure = Failure("closed", "the client is closed: make another one", (told,))
        else:
            failure = Failure("dropped", "the buffer stayed full", (told,))
        self._buffer.refuse(failure, invalid=False)
        return False

    async def _offer_patiently(self, event: Draft) -> bool:
        until = time.monotonic() + self._options.block_seconds_max
        signal = Signal()
        self._changed.append(signal)
        self._buffer.blocking(+1)
        try:
            while (refusal := self._buffer.offer(event)) == FULL:
                left = until - time.monotonic()
                if left <= 0 or not await signal.wait(left):
                    return False
                signal.clear()
            return refusal is None
        finally:
            self._buffer.blocking(-1)
            self._changed.remove(signal)

    async def flush(self, seconds_max: float) -> bool:
        """Wait until all that was put before is settled; False when that took too long."""
        until = time.monotonic() + seconds_max
        buffer = self._buffer
        wanted = buffer.flush_to = buffer.put_number
        if buffer.settled_number >= wanted:
            return True
        signal = Signal()
        self._changed.append(signal)
        self._hurry.set()
        self._wake.set()
        try:
            while buffer.settled_number < wanted:
                left = until - time.monotonic()
                if left <= 0 or not await signal.wait(left):
                    return buffer.settled_number >= wanted
                signal.clear()
        finally:
            self._changed.remove(signal)
        return True

    async def close(self, seconds_max: float) -> bool:
        """Flush within the bound and end the task; whether all was settled. Again: the same answer."""
        self._buffer.close()
        if self._until is None:
            self._until = time.monotonic() + seconds_max
        self._hurry.set()
        self._wake.set()
        await self.ended.wait(max(self._until - time.monotonic(), 0))
        return self.seal()

    def seal(self) -> bool:
        """The end, now: whether all was settled."""
        self._buffer.close()
        return self._buffer.seal(self._unsettled)

    # The task

    async def run(self) -> None:
        """Deliver until the client is closed."""
        interval = self._options.flush_interval_seconds
        next_flush = time.monotonic() + interval
        self._buffer.renew()
        while True:
            lease = self._options.spool_lease_seconds / 3
            await self._wake.wait(max(min(next_flush - time.monotonic(), lease), 0))
            self._wake.clear()
            ending = self._until is not None
            everything = ending or time.monotonic() >= next_flush
            try:
                self._buffer.renew()
                ending = not await self._deliver_all(everything=everything) or ending
            except Exception as error:  # noqa: BLE001 - a bug here must be told, and must not end metering in silence
                logger.exception("stripemeter: an unexpected error")
                self._tell(Failure("internal", f"{type(error).__name__}: {error}"))
                await anyio.sleep(CLOSING_WAIT_SECONDS_MAX)
            if ending:
                self.ended.set()
                return
            if everything:
                next_flush = time.monotonic() + interval

    async def _deliver_all(self, *, everything: bool) -> bool:
        """Deliver what there is; False when the end came first."""
        self._hurry.clear()
        batch: Sequence[Outgoing] = self._unsettled
        if batch:
            # An unexpected error came between; what was counted already will be a duplicate.
            self._buffer.leaves_again(batch)
        else:
            batch = self._buffer.take(everything=everything)
        while batch:
            if not await self._deliver(batch):
                return False
            batch = self._buffer.take(everything=everything)
        return True

    async def _deliver(self, batch: Sequence[Outgoing]) -> bool:
        self._unsettled = batch
        delivery = Delivery(batch, pace_of(self._options, attempts=False), self._draw)
        retries = 0
        while (body := delivery.body()) is not None:
            answer = await self._post(body, self._request_seconds())
            wait = delivery.take(answer, self._now_us())
            self._buffer.settle(delivery.settlements(), delivery.retries - retries)
            self._unsettled = delivery.unsettled()
            retries = delivery.retries
            if wait and not await self._pause(wait, demanded=delivery.demanded):
                return False
        self._unsettled = ()
        return True

    def _request_seconds(self) -> float:
        if self._until is None:
            return self._options.timeout_seconds
        return min(self._options.timeout_seconds, max(self._until - time.monotonic(), 0.05))

    async def _pause(self, seconds: float, *, demanded: bool) -> bool:
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
                return True
            if await self._hurry.wait(min(until - now, self._options.spool_lease_seconds / 3)):
                self._hurry.clear()
                if not demanded:
                    until = time.monotonic()
            self._buffer.renew()
