"""Reads back what became of an intent: its minute at Stripe, and how far Stripe's summaries have got.

Rules it keeps: a summary that lacks something proves nothing by itself; only beside later pushes that it does hold does
an absence count, and then twice. It must not know how an intent is sent or recorded.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from engine.actors.push_connections import Connection, Pace
from engine.core.billing import Reading, Resolved, Unread, same_units
from engine.core.push_ledger import PushLedger
from engine.core.push_plan import Attempts, OpenStep, TargetView, judge_reading
from engine.core.push_records import Lane, PushIntent, Target
from engine.ports import Clock

VISIBLE_KEPT_MAX: Final = 256


class _Acknowledged(NamedTuple):
    """An acknowledged push whose minute can be read to see how far the summaries have got."""

    resolved: Resolved
    customer: str
    connect_account: str | None
    minute: int
    target: Target
    acknowledged_at_us: int


class PushReader:
    """Remembers what was acknowledged lately, and judges intents by readings."""

    def __init__(self, ledger: PushLedger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._latest: dict[str, list[_Acknowledged]] = {}
        """Per account, newest last."""

    def remember(self, intent: PushIntent, view: TargetView) -> None:
        """An intent was acknowledged now."""
        if view.driver == "usage_record":
            return
        lane = intent.target.lane
        known = self._latest.setdefault(lane.account, [])
        known.append(
            _Acknowledged(
                view.resolved,
                lane.customer,
                view.connect_account,
                intent.request.timestamp_s // 60,
                intent.target,
                self._clock.now_us(),
            )
        )
        del known[:-VISIBLE_KEPT_MAX]

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
        resolved = Resolved(
            object_id=lane.object_id,
            customer=lane.customer,
            event_name=request.event_name,
            item=request.item,
        )
        start_s = request.timestamp_s
        answer = await connection.billing.read(
            resolved, lane.customer, start_s, start_s + 60, request.connect_account
        )
        if isinstance(answer, Unread):
            return answer
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

    async def _is_visible(
        self, connection: Connection, pace: Pace, account: str, since_us: int
    ) -> bool:
        """Whether a push of the account that was acknowledged later is in its own summary."""
        for pushed in reversed(self._latest.get(account, [])):
            if pushed.acknowledged_at_us <= since_us:
                return False
            lane = pushed.target.lane
            units = self.acknowledged(lane, pushed.target.start_us, pushed.minute)
            if units is None or pace.reads.take(self._clock.now_us()):
                continue
            start_s = pushed.minute * 60
            answer = await connection.billing.read(
                pushed.resolved, pushed.customer, start_s, start_s + 60, pushed.connect_account
            )
            if isinstance(answer, Reading) and same_units(answer.units, units):
                return True
        return False
