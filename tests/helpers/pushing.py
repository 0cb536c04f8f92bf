"""A target of one lane and its ledger, for tests of pushing: what is not said is ordinary.

It knows only the pure core: no log, no clock, no Stripe; what Stripe would hold is the sum of what was delivered.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.core.billing import Resolved
from engine.core.configured import (
    FINALIZATION_GRACE_US,
    Change,
    Customer,
    CustomerChange,
    Mapping,
    MappingChange,
    PushEffect,
)
from engine.core.keeping import RestoreChange
from engine.core.push_ledger import PushLedger, TargetState
from engine.core.push_plan import Planned, TargetView, make_intent, plan
from engine.core.push_records import Lane, PushDecision, PushIntent, PushOutcome, Target
from engine.core.times import HOUR_US, MINUTE_US, parse_instant

LOG_ID = bytes(range(16))
JUNE = parse_instant("2026-06-01T00:00:00Z")
JULY = parse_instant("2026-07-01T00:00:00Z")
AUGUST = parse_instant("2026-08-01T00:00:00Z")
SEPTEMBER = parse_instant("2026-09-01T00:00:00Z")
DAY_US = 24 * HOUR_US
NOON = JULY + 9 * DAY_US + 12 * HOUR_US
"""The tenth of July, when most of it happens."""
UNIT = 1_000_000
INTERVAL_US = 10 * 1_000_000
LANE = Lane("acct_1", "test", "mtr_1", "cus_1")
TARGET = Target(LANE, "1", JULY, AUGUST)
RESOLVED = Resolved("mtr_1", None, event_name="calls", api_version="2026-10-28")


def target(start_us: int = JULY, end_us: int = AUGUST, scale: str = "1") -> Target:
    """A target of the lane."""
    return Target(LANE, scale, start_us, end_us)


def view(units: int | str = 0, **fields: Any) -> TargetView:
    """A target as the plan sees it; `units` whole, or `micros` for what is not."""
    micros = fields.pop("micros", int(units) * UNIT)
    values: dict[str, Any] = {
        "target": TARGET,
        "local_micros": micros,
        "newest_event_us": NOON,
        "resolved": RESOLVED,
        "driver": "meter",
        "connect_account": None,
        "role": "main",
        "tenant": "acme",
        "metric": "calls",
        "grace_us": FINALIZATION_GRACE_US,
    }
    return TargetView(**(values | fields))


def mapping(**fields: Any) -> Mapping:
    """A mapping of the metric to a meter."""
    values: dict[str, Any] = {
        "id": "map_1",
        "tenant_id": "acme",
        "metric": "calls",
        "meter_event_name": "calls",
        "shadow_meter_event_name": "calls",
    }
    return Mapping(**(values | fields))


def mapped(from_us: int | None = None, cutover: Any = None, **fields: Any) -> MappingChange:
    """The record of a mapping; `from_us`: from when its destination holds."""
    deleted = fields.pop("deleted", False)
    effect = msgspec.UNSET if from_us is None else PushEffect(from_us=from_us, cutover=cutover)
    by = Change(actor="test")
    return MappingChange(mapping=mapping(**fields), change=by, deleted=deleted, push=effect)


def customer(
    ref: str = "anna", from_us: int | None = None, cutover: Any = None, **fields: Any
) -> CustomerChange:
    """The record of a customer; without fields it has no Stripe customer."""
    effect = msgspec.UNSET if from_us is None else PushEffect(from_us=from_us, cutover=cutover)
    made = Customer(tenant_id="acme", customer_ref=ref, **fields)
    return CustomerChange(customer=made, change=Change(actor="test"), push=effect)


def restored() -> RestoreChange:
    """The record of a restore from a backup."""
    return RestoreChange(
        previous_epoch=1, backup_position=9, backup_taken_at_us=JULY, software="test", actor="test"
    )


def baseline(units: int = 0, of: Target = TARGET, **fields: Any) -> PushDecision:
    """A baseline that counts `units` as pushed."""
    values: dict[str, Any] = {"kind": "baseline", "choice": "period", "actor": "test"}
    values |= {"tenant_id": "acme", "metric": "calls"}
    return PushDecision(target=of, units=str(units), **(values | fields))


def ended(intent: PushIntent, result: Any = "delivered", **fields: Any) -> PushOutcome:
    """An intent's outcome."""
    return PushOutcome(target=intent.target, number=intent.number, result=result, **fields)


class Book:
    """A ledger, and the hand that writes it."""

    def __init__(self, *records: Any, epoch: int = 1, at_us: int = JULY) -> None:
        self.ledger = PushLedger()
        self.epoch = epoch
        self.sent: list[PushIntent] = []
        self.fold(*records, at_us=at_us)

    def fold(self, *records: Any, at_us: int = NOON) -> Book:
        """Take records in, all received at one instant."""
        for record in records:
            self.ledger.fold(record, at_us)
        return self

    def state(self, of: Target = TARGET) -> TargetState:
        """A target's ledger, which there must be."""
        found = self.ledger.target(of)
        assert found is not None
        return found

    def planned(self, seen: TargetView, now_us: int = NOON) -> Planned:
        """What the plan says."""
        lane, state = self.ledger.lane(seen.target.lane), self.ledger.target(seen.target)
        return plan(seen, lane, state, now_us=now_us, interval_us=INTERVAL_US)

    def intend(self, seen: TargetView, now_us: int = NOON) -> PushIntent:
        """Make the next intent and record it."""
        intent = make_intent(seen, self.ledger, log_id=LOG_ID, epoch=self.epoch, now_us=now_us)
        assert intent is not None, "there is a minute to put it in"
        self.ledger.fold(intent, now_us)
        self.sent.append(intent)
        return intent

    def push(self, seen: TargetView, now_us: int = NOON, result: Any = "delivered") -> PushIntent:
        """Make the next intent, record it and its outcome."""
        intent = self.intend(seen, now_us)
        self.ledger.fold(
            ended(intent, result, reason="no" if result == "refused" else None), now_us
        )
        return intent


def minute_of(instant_us: int) -> int:
    """The minute of unix time that holds an instant."""
    return instant_us // MINUTE_US
