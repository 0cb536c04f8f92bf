"""Reads back what became of an intent: its minute at Stripe, and how far Stripe's summaries have got.

Rules it keeps: a summary that lacks something proves nothing by itself; only beside later pushes that it does hold does
an absence count, and then twice. It must not know how an intent is sent or recorded.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from engine.actors.push_connections import Connection, Pace
from engine.core.billing import Reading, Resolved, Unread, same_units
from engine.core.push_ledger import PushLedger
from engine.core.push_plan import (
    SENDING_US_MAX,
    UNSEEN_US_MAX,
    Attempts,
    Close,
    OpenStep,
    judge_reading,
)
from engine.core.push_records import Lane, PushIntent
from engine.ports import Clock

VISIBLE_KEPT_MAX: Final = 256


class PushReader:
    """Remembers what was acknowledged lately, and judges intents by readings."""

    def __init__(self, ledger: PushLedger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._latest: dict[str, deque[PushIntent]] = {}
        """Per account, newest last."""

    def remember(self, intent: PushIntent) -> None:
        """An intent was acknowledged."""
        if intent.request.driver == "usage_record":
            return
        account = intent.target.lane.account
        known = self._latest.get(account)
        if known is None:
            known = self._latest[account] = deque(maxlen=VISIBLE_KEPT_MAX)
        known.append(intent)

    def acknowledged(self, lane: Lane, start_us: int, minute: int) -> int | None:
        """Units of a lane acknowledged with a timestamp in a minute of a period; None: not remembered."""
        state = self._ledger.lane(lane)
        if state is None:
            return 0
        known = [target.acknowledged_in(minute) for target in state.minutes_used(start_us)]
        return None if None in known else sum(units or 0 for units in known)

    async def judge(
        self, intent: PushIntent, attempts: Attempts, connection: Connection, finalized_us: int
    ) -> OpenStep | Unread:
        """Read the intent's minute and say what follows from it."""
        lane, request = intent.target.lane, intent.request
        start_s = request.timestamp_s
        answer = await _minute_of(intent, connection)
        if isinstance(answer, Unread):
            return self._given_up(intent, answer) or answer
        pace = connection.pace(request.connect_account)
        return judge_reading(
            intent,
            attempts,
            reading=answer.units,
            acknowledged=self.acknowledged(lane, intent.target.start_us, start_s // 60),
            is_visible=await self._is_visible(connection, pace, lane.account, attempts.last_us),
            finalized_us=finalized_us,
            now_us=self._clock.now_us(),
        )

    def _given_up(self, intent: PushIntent, answer: Unread) -> Close | None:
        """Stripe refuses to be asked about it, and no more will be known: then a person decides. None: it may be, later.

        Its age is the intent's and not this process's, so that restarts don't put it off for ever.
        """
        if not (answer.is_refused or answer.is_missing):
            return None
        state = self._ledger.lane(intent.target.lane)
        is_stopped = state is not None and state.stopped is not None
        until_us = intent.first_sent_at_us + SENDING_US_MAX + UNSEEN_US_MAX
        if not is_stopped and self._clock.now_us() < until_us:
            return None
        reason = f"it may have arrived, and Stripe does not let it be read back: {answer.reason}"
        return Close("quarantined", "reading", reason)

    async def _is_visible(
        self, connection: Connection, pace: Pace, account: str, since_us: int
    ) -> bool:
        """Whether an acknowledged push of the account that left later is in its own summary.

        When it was answered says nothing: "it exists" may be said of what Stripe took days before. One that was rejected
        since proves nothing either: its minute lacks it for good, as a summary that has not got that far does.
        """
        for intent in reversed(tuple(self._latest.get(account, ()))):
            is_there = intent.request.identifier in self._ledger.delivered
            if intent.first_sent_at_us <= since_us or not is_there:
                continue
            target = intent.target
            units = self.acknowledged(
                target.lane, target.start_us, intent.request.timestamp_s // 60
            )
            if units is None or pace.reads.take(self._clock.now_us()):
                continue
            answer = await _minute_of(intent, connection)
            if isinstance(answer, Reading) and same_units(answer.units, units):
                return True
        return False


async def _minute_of(intent: PushIntent, connection: Connection) -> Reading | Unread:
    """What Stripe's summary has for the minute an intent was dated with; its intent says all that is needed to ask."""
    lane, request = intent.target.lane, intent.request
    resolved = Resolved(
        object_id=lane.object_id,
        customer=lane.customer,
        event_name=request.event_name,
        item=request.item,
    )
    start_s = request.timestamp_s
    return await connection.billing.read(
        resolved, lane.customer, start_s, start_s + 60, request.connect_account
    )
