"""What to push next, how, and when not: the plan. Pure, so that a simulation can ask it everything.

Rules it keeps (the design's section 4): an intent is planned only where every condition holds that makes it right,
and the reason is a sentence where one does not; a delta never spans a boundary and is never pushed after finalization;
what may have left is resent as the same bytes for 23 hours and read back afterwards; what nobody can know waits for a
person; a target is never pushed below zero. It must not know tasks, the log, or Stripe's library.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import msgspec

from engine.core.billing import UNITS_DIGITS_MAX, PushRequest, Resolved, same_units
from engine.core.push_ledger import LaneState, PushLedger, TargetState
from engine.core.push_records import (
    BaselineChoice,
    OutcomeProof,
    OutcomeResult,
    PushIntent,
    PushOutcome,
    Role,
    Target,
    identifier_of,
)
from engine.core.times import HOUR_US, MINUTE_US
from engine.limits import MICROS_PER_UNIT

SENDING_US_MAX: Final = 23 * HOUR_US
"""Identifiers are unique for at least 24 hours: later a resend could count twice."""
UNSEEN_US_MAX: Final = 24 * HOUR_US
"""An account on which nothing else is pushed never shows how far its summaries are: then a person decides."""
READ_AFTER_US: Final = HOUR_US
"""From the last attempt to the first reading, and between two readings that find nothing."""
PAST_US_MAX: Final = 34 * 24 * HOUR_US
"""Stripe takes timestamps of 35 days; a day's room."""
LAST_CALL_US: Final = 300_000_000
"""So long before an invoice is final goes what came in after its period's end, however long the interval."""
REFUSED_RETRY_US: Final = 300_000_000
REFUSED_RETRY_US_MAX: Final = 6 * HOUR_US
VALUE_MAX: Final = 10**UNITS_DIGITS_MAX - 1
UNITS_MAX: Final = (1 << 63) - 1

Standing = Literal[
    "current",
    "due",
    "in_flight",
    "held",
    "awaiting_baseline",
    "refused",
    "quarantined",
    "stopped",
    "finalized",
]


class TargetView(NamedTuple):
    """What is known of a target beside its ledger: how much was used, and how to push it."""

    target: Target
    local_micros: int
    """Sum of its counters' own aggregates, with what erased customers had."""
    newest_event_us: int
    resolved: Resolved
    driver: Literal["meter", "usage_record", "stream"]
    connect_account: str | None
    role: Role
    tenant: str
    metric: str
    grace_us: int
    baseline: BaselineChoice | None = None
    """What the mapping says to a Stripe that already holds something."""
    hold: str | None = None
    """Why it must not be pushed now, in words."""
    mapped_at_us: int = 0
    """When its mapping was made."""
    may_decrease: bool = True
    """False: not all that belongs to it could be resolved, so less than before proves nothing."""
    not_left: Target | None = None
    """Use was moved here from there, where Stripe still holds, or may hold, what was pushed: it would be billed twice."""
    is_past: bool = False
    """How its period's use was cut over is not known any more: nothing of it is due."""


_FINAL: Final = "its invoice is final: decide how to carry the difference forward"
_UNSEEN: Final = "its minute lacks it at Stripe, and no later push of the account shows how far Stripe's summary has got"
_BEFORE: Final = (
    "its period was over before its mapping was made: what it holds was billed elsewhere, or never"
)
_FINAL_UNPUSHED: Final = "its invoice was final before anything of it was pushed: carry it forward unless it was billed otherwise"


class Planned(NamedTuple):
    """A target's numbers and what stands against pushing it. `due` is 0 where nothing is to be pushed."""

    billable: int
    pushed: int
    due: int
    standing: Standing
    reason: str | None
    at_us: int | None
    """When it may go; None: not by itself."""


def billable_units(local_micros: int, scale: str) -> int:
    """floor(local x scale) in whole units, never below 0."""
    numerator, denominator = _ratio(scale)
    return max(0, local_micros * numerator // denominator)


@lru_cache(maxsize=1_024)
def _ratio(scale: str) -> tuple[int, int]:
    """Numerator and denominator of units per micro: a plan is made far more often than a scale is new."""
    ratio = Fraction(scale) * Fraction(1, MICROS_PER_UNIT)
    return ratio.numerator, ratio.denominator


def remainder_text(local_micros: int, scale: str) -> Fraction:
    """What floor takes off, in units: shown, and billed once it makes a whole one."""
    scaled = Fraction(local_micros, MICROS_PER_UNIT) * Fraction(scale)
    return scaled - scaled.numerator // scaled.denominator if scaled > 0 else Fraction(0)


def finalization_us(target: Target, state: TargetState | None, grace_us: int) -> int:
    """When the target's invoice takes nothing more in."""
    if state is not None and state.finalized_at_us is not None:
        return state.finalized_at_us
    return target.end_us + grace_us


def due_units(view: TargetView, state: TargetState | None) -> int:
    """Billable minus pushed, with what was carried in and out; negative at most by what was pushed."""
    own = billable_units(view.local_micros, view.target.scale)
    if state is None:
        return own
    return max(own + state.carried_in - state.carried_out, 0) - state.pushed


def plan(
    view: TargetView,
    lane: LaneState | None,
    state: TargetState | None,
    *,
    now_us: int,
    interval_us: int,
) -> Planned:
    """A target's numbers, and whether and when its difference goes. The lane's open intent goes first."""
    target = view.target
    own = billable_units(view.local_micros, target.scale)
    billable = max(0, own + (state.carried_in if state is not None else 0))
    pushed = state.pushed if state is not None else 0
    due = due_units(view, state)

    def planned(standing: Standing, reason: str | None, at_us: int | None = None) -> Planned:
        return Planned(billable, pushed, due, standing, reason, at_us)

    if lane is not None and lane.open is not None and lane.open.target == target:
        if lane.quarantine is not None:
            return planned("quarantined", lane.quarantine)
        return planned("in_flight", lane.stopped)
    if due == 0:
        return planned("current", None)
    is_past = view.is_past or (state is not None and state.is_past)
    if is_past or (lane is not None and target.start_us < lane.forgotten_until_us):
        # What was pushed of it is not known any more: to carry all of it forward would bill it twice.
        return Planned(billable, pushed, 0, "held", "its period is too long past", None)
    if lane is not None and lane.stopped is not None:
        return planned("stopped", lane.stopped)
    final_us = finalization_us(target, state, view.grace_us)
    if now_us >= final_us:
        if not _was_pushed(state) and view.mapped_at_us >= final_us and not billable - own:
            return Planned(billable, pushed, 0, "held", _BEFORE, None)
        return planned("finalized", _FINAL if _was_pushed(state) else _FINAL_UNPUSHED)
    if (reason := _against(view, lane, billable, due, now_us)) is not None:
        return planned("held", reason)
    if lane is not None and lane.awaits is not None and lane.awaits.target == target:
        return planned("awaiting_baseline", lane.awaits.because)
    if lane is not None and lane.quarantine is not None:
        return planned("held", "another intent of its lane is in quarantine")
    at_us = _ready_at_us(view, state, now_us, interval_us)
    if state is not None and state.refusal is not None:
        refusal = state.refusal
        retry_us = refusal.at_us + refused_wait_us(refusal.count)
        # Whatever was refused before it: afterwards it is final.
        retry_us = min(retry_us, _flush_us(view, state, refusal.at_us) or retry_us)
        if now_us < retry_us:
            return planned("refused", refusal.reason, retry_us)
    return planned("due", None, at_us)


def refused_wait_us(count: int) -> int:
    """How long what was refused so many times in a row is left alone; 0 times: it goes at once."""
    return 0 if count == 0 else min(REFUSED_RETRY_US << min(count - 1, 16), REFUSED_RETRY_US_MAX)


def _was_pushed(state: TargetState | None) -> bool:
    return state is not None and bool(state.pushed or state.last_intent_at_us)


def _against(
    view: TargetView, lane: LaneState | None, billable: int, due: int, now_us: int
) -> str | None:
    """A sentence that says why a target is not pushed now, or None."""
    target = view.target
    if view.hold is not None:
        return view.hold
    if now_us < target.start_us:
        return "its period has not begun"
    if first_minute(view) > target.end_us // MINUTE_US - 1:
        return "it holds no whole minute of the time in which its item can take usage"
    begun_us = None if lane is None else lane.baseline_start_us
    if begun_us is not None and target.start_us < begun_us:
        return "its period is before the baseline: pushing began with a later one"
    if billable > UNITS_MAX:
        return "its total is larger than Stripe can hold"
    if due < 0 and not view.may_decrease:
        return (
            "it would decrease, and usage of its customer goes nowhere that may belong to it: mend or remove what "
            "`unroutable` names"
        )
    if due > 0 and view.not_left is not None:
        old = view.not_left.lane
        return (
            f"its use was moved here from {old.object_id} of {old.customer}, and what was pushed there is not taken back "
            "yet: it would be billed twice"
        )
    if target.end_us <= now_us - PAST_US_MAX:
        return "its period is further back than Stripe takes usage"
    return None


def _ready_at_us(view: TargetView, state: TargetState | None, now_us: int, interval_us: int) -> int:
    """When its next intent may be made: paced, except those that flush its period."""
    last_us = 0 if state is None else state.last_intent_at_us
    paced_us = last_us + interval_us
    at_us = min(paced_us, _flush_us(view, state, last_us) or paced_us)
    first_minute_us = first_minute(view) * MINUTE_US
    return max(at_us, first_minute_us) if now_us < first_minute_us else at_us


def _flush_us(view: TargetView, state: TargetState | None, last_us: int) -> int | None:
    """The next instant after the last attempt that waits for no pace: the period's end, the last call; None: both are over."""
    end_us = view.target.end_us
    last_call_us = finalization_us(view.target, state, view.grace_us) - LAST_CALL_US
    if last_us < end_us:
        return end_us
    return last_call_us if last_us < last_call_us else None


def first_minute(view: TargetView) -> int:
    """The first whole minute of the period, or of the item's life in it."""
    start_us = view.target.start_us
    if view.resolved.item_created_s is not None:
        start_us = max(start_us, view.resolved.item_created_s * 1_000_000)
    return -(-start_us // MINUTE_US)


def choose_minute(view: TargetView, of_period: list[TargetState], now_us: int) -> int | None:
    """The newest free minute of the lane not after the newest event's; that one itself when none is free.

    None: no whole minute of the period has begun. `of_period`: the lane's targets of this period.
    """
    lowest = first_minute(view)
    highest = min(view.target.end_us // MINUTE_US - 1, now_us // MINUTE_US)
    lowest = max(lowest, -(-(now_us - PAST_US_MAX) // MINUTE_US))
    if highest < lowest:
        return None
    wanted = min(max(view.newest_event_us // MINUTE_US, lowest), highest)
    # What is forgotten counts as used, so the search is bounded by what is remembered.
    lowest = max([lowest, *(state.floor_minute + 1 for state in of_period)])
    minute = wanted
    while minute >= lowest and any(minute in state.minutes for state in of_period):
        minute -= 1
    return minute if minute >= lowest else wanted


def make_intent(
    view: TargetView, ledger: PushLedger, *, log_id: bytes, epoch: int, now_us: int
) -> PushIntent | None:
    """The next intent of a target whose plan says that it is due; None: no whole minute to put it in yet."""
    target = view.target
    lane = ledger.lane(target.lane)
    state = ledger.target(target)
    assert lane is None or lane.open is None, "a lane has one unresolved intent"
    of_period = [] if lane is None else lane.minutes_used(target.start_us)
    minute = choose_minute(view, of_period, now_us)
    if minute is None:
        return None
    number = 1 if lane is None else lane.numbers.get(target.start_us, 0) + 1
    pushed = 0 if state is None else state.pushed
    delta = due_units(view, state)
    delta = max(-VALUE_MAX, min(VALUE_MAX, delta))
    delta = max(delta, -pushed)
    is_total = view.driver == "usage_record"
    others = sum(each.pushed for each in of_period if each.target != target)
    resolved = view.resolved
    return PushIntent(
        target=target,
        number=number,
        from_units=str(pushed),
        to_units=str(pushed + delta),
        request=PushRequest(
            driver=view.driver,
            identifier=identifier_of(log_id, epoch, target.lane, target.start_us, number),
            # A total is the item's, and set at one fixed instant, so that it replaces the one before.
            value=str(others + pushed + delta if is_total else delta),
            timestamp_s=(first_minute(view) if is_total else minute) * 60,
            api_version=resolved.api_version,
            event_name=resolved.event_name,
            customer=target.lane.customer,
            customer_key=resolved.customer_key,
            value_key=resolved.value_key,
            item=resolved.item if is_total else None,
            connect_account=view.connect_account,
        ),
        first_sent_at_us=now_us,
        role=view.role,
        tenant_id=view.tenant,
        metric=view.metric,
    )


# An open intent.


class Attempts(msgspec.Struct):
    """What this process knows of an open intent's sending. After a start nothing is known: `Attempts.unknown`."""

    left_at_us: int | None = None
    """Since when it may have left; None: it certainly never did."""
    left_monotonic_us: int | None = None
    """The same, or later, by a clock that nobody sets back; None: not noted."""
    has_left: bool = False
    """It may have left at some time, even if it was proven since that it did not arrive."""
    last_us: int = 0
    """When it may have left last."""
    stored: int = 0
    """Answers of its that the idempotency key would replay."""
    tries: int = 0
    """Attempts since something else than "later" was answered: the backoff's exponent."""
    next_try_us: int = 0
    absent_at_us: int | None = None
    """When its minute was first read without it."""
    is_resent: bool = False
    """It was sent after its absence was proven by readings: Stripe may take two events of its identifier by now."""
    is_refused: bool = False
    """A later attempt was refused, which says nothing about an earlier one: only reading back does."""

    @staticmethod
    def unknown(
        intent: PushIntent, found_at_us: int = 0, monotonic_us: int | None = None
    ) -> Attempts:
        """Of an intent found in the log: it may have left at any time from when it was recorded until now."""
        at_us = intent.first_sent_at_us
        last_us = max(at_us, found_at_us)
        return Attempts(at_us, left_monotonic_us=monotonic_us, has_left=True, last_us=last_us)

    def leave(self, now_us: int, monotonic_us: int) -> None:
        """An attempt is about to be made."""
        self.is_resent |= self.has_left and self.left_at_us is None
        if self.left_at_us is None:
            self.left_at_us, self.left_monotonic_us = now_us, monotonic_us
        self.has_left, self.last_us = True, now_us

    def is_over(self, now_us: int, monotonic_us: int) -> bool:
        """Whether Stripe may soon forget its identifier, by either clock: the wall's may have been set back."""
        assert self.left_at_us is not None, "what never left is not remembered"
        noted_us = self.left_monotonic_us
        is_long = noted_us is not None and monotonic_us >= noted_us + SENDING_US_MAX
        return is_long or now_us >= self.left_at_us + SENDING_US_MAX


class Send(NamedTuple):
    """Send the request now, as it is."""


class Wait(NamedTuple):
    """Nothing to do before this instant."""

    until_us: int


class ReadBack(NamedTuple):
    """Read the intent's minute at Stripe, then ask `judge_reading`."""


class Close(NamedTuple):
    """It is known, or settled, what became of the intent: record it."""

    result: OutcomeResult
    proof: OutcomeProof
    reason: str | None = None
    is_resent: bool = False


OpenStep = Send | Wait | ReadBack | Close


def next_for_open(
    intent: PushIntent, attempts: Attempts, *, finalized_us: int, now_us: int, monotonic_us: int
) -> OpenStep:
    """What to do with an intent that has no outcome yet."""
    is_final = now_us >= finalized_us
    if attempts.left_at_us is None:
        if is_final:
            proof: OutcomeProof = "reading" if attempts.has_left else "never left"
            return Close("withdrawn", proof, "the invoice was final before it could be sent")
        return Wait(attempts.next_try_us) if now_us < attempts.next_try_us else Send()
    is_total = intent.request.driver == "usage_record"
    too_late = attempts.is_over(now_us, monotonic_us) and not is_total
    too_late = too_late or attempts.is_refused
    if not is_final and not too_late:
        return Wait(attempts.next_try_us) if now_us < attempts.next_try_us else Send()
    read_at_us = attempts.last_us + READ_AFTER_US
    if attempts.absent_at_us is not None:
        read_at_us = attempts.absent_at_us + READ_AFTER_US
    read_at_us = max(read_at_us, attempts.next_try_us)
    return Wait(read_at_us) if now_us < read_at_us else ReadBack()


def judge_reading(
    intent: PushIntent,
    attempts: Attempts,
    *,
    reading: str,
    acknowledged: int | None,
    is_visible: bool,
    finalized_us: int,
    now_us: int,
) -> OpenStep:
    """What a reading of the intent's minute (or of the item's total) says; `attempts` is brought up to it.

    `acknowledged`: units known to be in that minute without it. `is_visible`: a push acknowledged later on the same
    account was found in its own summary, so the summaries have got that far.
    """
    units = int(intent.to_units) - int(intent.from_units)
    if intent.request.driver == "usage_record":
        if same_units(reading, intent.request.value):
            return Close("delivered", "reading")
        return Close("quarantined", "reading", f"Stripe holds {reading} for the item's period")
    if acknowledged is None:
        return Close("quarantined", "reading", "its minute is too long past to be compared")
    if same_units(acknowledged, acknowledged + units):
        return Close("quarantined", "reading", "its minute holds too much to tell the difference")
    if same_units(reading, acknowledged + units):
        return Close("delivered", "reading")
    if not same_units(reading, acknowledged):
        return Close(
            "quarantined",
            "reading",
            f"its minute holds {reading} at Stripe, with {acknowledged} acknowledged and {units} in doubt",
        )
    if attempts.absent_at_us is None:
        attempts.absent_at_us = now_us
    if now_us < attempts.absent_at_us + READ_AFTER_US:
        return Wait(attempts.absent_at_us + READ_AFTER_US)
    if not is_visible:
        if now_us >= attempts.absent_at_us + UNSEEN_US_MAX:
            return Close("quarantined", "reading", _UNSEEN)
        attempts.next_try_us = now_us + READ_AFTER_US
        return Wait(attempts.next_try_us)
    if now_us >= finalized_us:
        return Close("withdrawn", "reading", "it never arrived, and the invoice is final")
    # Twice absent while later ones are there: the same identifier may go again, for another 23 hours.
    attempts.left_at_us, attempts.absent_at_us = None, None
    attempts.next_try_us, attempts.is_refused = now_us, False
    return Send()


def may_be_twofold(intent: PushIntent, attempts: Attempts | None, now_us: int) -> bool:
    """Whether Stripe may have taken two events of an open intent's identifier; of one found in the log only its age tells."""
    if attempts is not None and attempts.is_resent:
        return True
    return now_us >= intent.first_sent_at_us + SENDING_US_MAX


def outcome(intent: PushIntent, close: Close) -> PushOutcome:
    """The record of a close."""
    return PushOutcome(
        target=intent.target,
        number=intent.number,
        result=close.result,
        proof=close.proof,
        reason=close.reason,
        is_resent=close.is_resent,
    )
