"""Asks Stripe for reconciliation: summaries, the minute that holds too much, final invoices.

Rules it keeps: it takes what the pusher leaves of an account's reads, and never more than SHARE of them; it waits
where nobody else does; what can't be read is a value. It must not know how a reading is judged.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final, NamedTuple

import trio

from engine.actors.push_connections import Connection, Pace
from engine.actors.pusher import Pusher
from engine.actors.recon_books import Book
from engine.core.billing import Invoiced, Reading, Unread, same_units
from engine.core.pace import WAIT_SLICE_US, TokenBucket
from engine.core.push_plan import TargetView
from engine.core.times import MINUTE_US
from engine.ports import Clock

SHARE_TENTHS: Final = 9
"""Tenths of an account's reads: the rest is free for the pusher at any time."""
READS_PER_SECOND_MAX: Final = 20
"""Whatever an account takes, Stripe's own pace: each costs two milliseconds of the core that counts."""
WAIT_SECONDS_MAX: Final = 30.0
"""After that long without a place a book counts as unread: Stripe is down, or the pusher needs all."""
_PROBES_MAX: Final = 40
"""Readings for one search of a minute: a year has 2^19 of them."""


class Excess(NamedTuple):
    """Where Stripe holds more than was pushed."""

    minute: int
    """Minute of unix time; -1: it is spread, or the minute is too long past to be compared."""
    duplicates: int
    """Units of it that are a multiple of what was pushed in that minute."""


class ReconReader:
    """All questions of the reconciler."""

    def __init__(self, pusher: Pusher, clock: Clock) -> None:
        self._pusher = pusher
        self._clock = clock
        self._shares: dict[str, TokenBucket] = {}
        self._invoices: dict[str, TokenBucket] = {}
        self.reads = 0
        """Questions asked so far."""

    def _connection(self, view: TargetView) -> Connection | None:
        connection = self._pusher.connections.get(view.role)
        if connection is None or connection.proven is None:
            return None
        account = view.connect_account or connection.proven.account
        return connection if account == view.target.lane.account else None

    async def _admitted(self, pace: Pace, account: str, buckets: dict[str, TokenBucket]) -> bool:
        """Wait for a place; False: there was none for long."""
        share = buckets.get(account)
        if share is None:
            per_second = max(1, pace.reads.per_second * SHARE_TENTHS // 10)
            per_second = min(per_second, READS_PER_SECOND_MAX)
            share = buckets[account] = TokenBucket(per_second)
        has_share = False
        with trio.move_on_after(WAIT_SECONDS_MAX):
            while True:
                now_us = self._clock.now_us()
                wait_us = pace.breaker.wait_us(now_us)
                if not wait_us and not has_share:
                    wait_us = share.take(now_us)
                    has_share = not wait_us
                # Invoices are an endpoint of their own, with limits of its own.
                if not wait_us and buckets is self._shares:
                    wait_us = pace.reads.take(now_us)
                if not wait_us:
                    return True
                # In slices: a probe that is answered ends a wait that would have been a minute.
                await trio.sleep(min(max(wait_us, 1_000), WAIT_SLICE_US) / 1e6)
        return False

    async def read(self, book: Book, view: TargetView) -> Reading | Unread:
        """What the summary holds of a book's periods so far."""
        start_s, end_s = book.range_s
        now_us = self._clock.now_us()
        end_s = max(min(end_s, (now_us // MINUTE_US + 1) * 60), start_s + 60)
        return await self._read(view, start_s, end_s)

    async def read_minute(self, view: TargetView, minute: int) -> Reading | Unread:
        """What the summary holds of one minute of unix time."""
        return await self._read(view, minute * 60, minute * 60 + 60)

    async def _read(self, view: TargetView, start_s: int, end_s: int) -> Reading | Unread:
        connection = self._connection(view)
        if connection is None:
            return Unread("the account it was pushed to is not connected")
        pace = connection.pace(view.connect_account)
        lane = view.target.lane
        if not await self._admitted(pace, lane.account, self._shares):
            return Unread(pace.breaker.reason or "all reads of the account are in use")
        self.reads += 1
        answer = await connection.billing.read(
            view.resolved, lane.customer, start_s, end_s, view.connect_account
        )
        self._told(pace, answer)
        return answer

    def _told(self, pace: Pace, answer: object) -> None:
        if isinstance(answer, Unread):
            pace.unread(answer, self._clock.now_us())
        else:
            pace.breaker.succeeded()

    async def invoiced(self, book: Book, view: TargetView) -> Invoiced | Unread | None:
        """What the final invoice has for a book's period; None: there is none."""
        connection = self._connection(view)
        if connection is None:
            return Unread("the account it was pushed to is not connected")
        pace = connection.pace(view.connect_account)
        lane = view.target.lane
        if not await self._admitted(pace, lane.account, self._invoices):
            return Unread(pace.breaker.reason or "all reads of the account are in use")
        self.reads += 1
        answer = await connection.billing.invoiced(
            view.resolved, lane.customer, book.end_us // 1_000_000, view.connect_account
        )
        self._told(pace, answer)
        return answer

    async def locate(self, book: Book, view: TargetView, excess: int) -> Excess:
        """The minute that holds too much, by halves, and whether it holds its own pushes more than once."""
        nowhere = Excess(-1, 0)
        start_s, end_s = book.range_s
        low, high = start_s // 60, min(end_s // 60, self._clock.now_us() // MINUTE_US + 1)
        if view.driver == "usage_record" or self._acknowledged(book, low, high) is None:
            return nowhere
        held = 0
        for _ in range(_PROBES_MAX):
            middle = (low + high) // 2 if high - low > 1 else high
            answer = await self._read(view, low * 60, middle * 60)
            known = self._acknowledged(book, low, middle)
            if isinstance(answer, Unread) or known is None:
                return nowhere
            is_here = not same_units(answer.units, known)
            if high - low <= 1:
                held = int(Decimal(answer.units))
                break
            low, high = (low, middle) if is_here else (middle, high)
        known = self._acknowledged(book, low, low + 1) or 0
        is_multiple = known > 0 and held % known == 0 and held - known == excess
        return Excess(low, excess if is_multiple else 0)

    def _acknowledged(self, book: Book, low: int, high: int) -> int | None:
        """Units acknowledged in the minutes [low, high); None: not all of them are remembered."""
        lane = self._pusher.state.ledger.lane(book.lane)
        if lane is None:
            return None
        total = 0
        for state in lane.targets.values():
            if state.target.start_us >= book.end_us or book.start_us >= state.target.end_us:
                continue
            if state.floor_minute >= low:
                return None
            total += sum(units for minute, units in state.minutes.items() if low <= minute < high)
        return total
