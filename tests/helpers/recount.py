"""An independent recount: the totals that the raw log implies, by the slow and obvious way.

It shares no counting code with the engine: calendar months come from datetime, lateness from the design's rule read
literally. What it and the engine agree on, two implementations agree on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

from engine.core.configured import MappingChange
from engine.core.records import (
    AdjustmentChange,
    PartKind,
    PeriodClosing,
    RecordType,
    ReplayApply,
    SettingsChange,
    decode_control,
    decode_events,
)
from wal.log import Log, StoredRecord, scan

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Key = tuple[str, str, str, int]


@dataclass
class Total:
    """One counter, or the late events of one."""

    sum: Fraction = Fraction(0)
    count: int = 0
    max: Fraction | None = None
    last: Fraction | None = None
    last_ts_us: int | None = None
    watermark_us: int | None = None

    def add(self, quantity: Fraction, ts_us: int) -> None:
        self.sum += quantity
        self.count += 1
        self.max = quantity if self.max is None else max(self.max, quantity)
        if self.last_ts_us is None or ts_us >= self.last_ts_us:
            self.last, self.last_ts_us = quantity, ts_us


@dataclass
class Event:
    """One stored event, by its position."""

    sequence: int
    quantity: Fraction
    ts_us: int


@dataclass
class Correction:
    """An adjustment as the records tell it."""

    id: str
    key: Key
    kind: str
    sequence: int
    status: str = "pending"
    auto: bool = False
    amount: Fraction = Fraction(0)
    request_id: str | None = None
    events: list[Event] = field(default_factory=list)


@dataclass
class Recount:
    """What the log says."""

    counted: dict[Key, Total] = field(default_factory=dict)
    late: dict[Key, Total] = field(default_factory=dict)
    """Late events that no replay has folded."""
    keys: dict[tuple[str, str, str], list[tuple[str, int, int | None]]] = field(
        default_factory=dict
    )
    """(tenant, customer, key text) to every event stored under it: (metric, micros, ts)."""
    events: int = 0
    corrections: dict[str, Correction] = field(default_factory=dict)
    newest_held: dict[tuple[Key, bool], Correction] = field(default_factory=dict)
    """By counter and policy, the newest adjustment of late events."""
    folded: dict[Key, list[Event]] = field(default_factory=dict)
    plans: list[tuple[str, str]] = field(default_factory=list)
    """(tenant, hash) of every replay that was applied."""

    def value(self, key: Key, aggregation: str) -> Fraction:
        """What counts: the folded events with the approved corrections, read literally from the design."""
        approved = [c for c in self.corrections.values() if c.key == key if c.status == "approved"]
        events = [*self.folded.get(key, ())]
        for correction in approved:
            events += correction.events
        if aggregation == "sum":
            deltas = (c.amount for c in approved if c.kind == "delta")
            return sum((e.quantity for e in events), Fraction(0)) + sum(deltas, Fraction(0))
        values = sorted((c.sequence, c.amount) for c in approved if c.kind == "value")
        if values:
            replaced_up_to, _ = values[-1]
            events = [e for e in events if e.sequence > replaced_up_to]
        if aggregation == "max":
            found = [e.quantity for e in events] + [amount for _, amount in values[-1:]]
            return max(found, default=Fraction(0))
        if events:
            last = max(events, key=lambda e: (e.ts_us, e.sequence))
            quantity: Fraction = last.quantity
            return quantity
        return values[-1][1] if values else Fraction(0)

    def hold(self, key: Key, event: Event, policy: str) -> None:
        """A late event joins the adjustment of its counter that is open for it, or makes one."""
        auto = policy == "auto"
        wanted = "approved" if auto else "pending"
        newest = self.newest_held.get((key, auto))
        if newest is None or newest.status != wanted:
            made_id = f"adj_{event.sequence:012x}"
            newest = Correction(made_id, key, "event", event.sequence, wanted, auto)
            self.corrections[made_id] = self.newest_held[key, auto] = newest
        newest.events.append(event)

    def change(self, record: AdjustmentChange, sequence: int) -> None:
        """A person's step."""
        made = record.adjustment
        if made is not None:
            key = (made.tenant_id, made.metric, made.customer_ref, made.period_start_us)
            amount = Fraction(_micros(made.micros), 10**6)
            assert made.id not in self.corrections, "an adjustment is made once"
            self.corrections[made.id] = Correction(
                made.id, key, made.kind, sequence, amount=amount, request_id=made.request_id
            )
        for adjustment_id in record.ids:
            correction = self.corrections[adjustment_id]
            assert correction.key[0] == record.tenant_id, "a decision is on one tenant's"
            assert correction.status == record.was, "a decision says what was"
            correction.status = "approved" if record.action == "approve" else "reverted"

    def replay(self, record: ReplayApply) -> None:
        """Late events are folded: looked up by position, never taken from what the record says they come to."""
        self.plans.append((record.tenant_id, record.plan_hash))
        for counter in record.counters:
            key = (
                counter.tenant_id,
                counter.metric,
                counter.customer_ref,
                counter.period_start_us,
            )
            taken = []
            for correction in self.corrections.values():
                if correction.key == key and correction.kind == "event":
                    moved = [e for e in correction.events if e.sequence in counter.sequences]
                    if moved:
                        assert correction.status == "pending", "only what waits is replayed"
                        correction.events = [e for e in correction.events if e not in moved]
                        if not correction.events:
                            correction.status = "superseded"
                        taken += moved
            assert sorted(e.sequence for e in taken) == sorted(counter.sequences)
            said = [_micros(value) for value in counter.tally]
            last = max(taken, key=lambda e: (e.ts_us, e.sequence))
            assert said == [
                sum(e.quantity for e in taken) * 10**6,
                len(taken),
                max(e.quantity for e in taken) * 10**6,
                last.quantity * 10**6,
                last.ts_us,
            ], "a replay's record says what its events come to"
            self.folded.setdefault(key, []).extend(taken)

    def sum_up(self, watermarks: dict[Key, int]) -> None:
        """The totals of what is folded, and of what is held."""
        for key, events in self.folded.items():
            total = self.counted[key] = Total(watermark_us=watermarks.get(key))
            for event in sorted(events, key=lambda e: e.sequence):
                total.add(event.quantity, event.ts_us)
        for correction in self.corrections.values():
            for event in correction.events:
                late = self.late.setdefault(correction.key, Total())
                late.add(event.quantity, event.ts_us)


def _micros(value: Any) -> int:
    """Of a number, or of the extension that holds a wide one."""
    return value if isinstance(value, int) else int.from_bytes(value.data, "big", signed=True)


def month_of(ts_us: int) -> tuple[int, int]:
    """Start and end of the UTC month, in microseconds."""
    at = EPOCH + timedelta(microseconds=ts_us)
    start = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    end = (start + timedelta(days=32)).replace(day=1)
    return _us(start), _us(end)


def _us(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


class Judge:
    """What the control records say of lateness and closings, read literally."""

    def __init__(self) -> None:
        self.lateness_us, self.policy = 0, "review"
        self.closed_us = -(10**18)
        self.own_lateness: dict[tuple[str, str], int] = {}
        self.own_closed: dict[tuple[str, str], int] = {}

    def hear(self, control: object) -> None:
        """Take one control record in."""
        if isinstance(control, SettingsChange):
            self.lateness_us, self.policy = control.lateness_us, control.late_policy
        elif isinstance(control, PeriodClosing):
            if control.tenant_id is None:
                self.closed_us = max(self.closed_us, control.end_us)
                return
            scope = (control.tenant_id, control.metric or "")
            before = self.own_closed.get(scope, self.closed_us)
            self.own_closed[scope] = max(before, control.end_us)
        elif isinstance(control, MappingChange):
            mapping = control.mapping
            scope = (mapping.tenant_id, mapping.metric)
            if scope not in self.own_lateness:
                before = self.own_closed.get(scope, -(10**18))
                self.own_closed[scope] = max(before, self.closed_us)
            if control.deleted or not mapping.active or mapping.lateness_us is None:
                self.own_lateness.pop(scope, None)
            else:
                self.own_lateness[scope] = mapping.lateness_us

    def is_late(
        self, scope: tuple[str, str], ts_us: int, end_us: int, watermark: int | None
    ) -> bool:
        """Whether an event is older than the window, or its period is closed."""
        window = self.own_lateness.get(scope, self.lateness_us)
        frontier = self.own_closed.get(scope, self.closed_us)
        if scope not in self.own_lateness:
            frontier = max(self.closed_us, frontier)
        return end_us <= frontier or (watermark is not None and ts_us < watermark - window)


def recount(log: Log) -> Recount:
    """Read the whole log and add everything up. Knows calendar periods only."""
    result, judge = Recount(), Judge()
    watermarks: dict[Key, int] = {}
    for record in scan(log, 0):
        kind = record.envelope.record_type
        if kind == RecordType.EVENTS:
            _count(record, result, judge, watermarks)
            continue
        control = decode_control(kind, record.parts[0].data)
        judge.hear(control)
        if isinstance(control, AdjustmentChange):
            result.change(control, record.sequence)
        elif isinstance(control, ReplayApply):
            result.replay(control)
    result.sum_up(watermarks)
    return result


def _count(record: StoredRecord, result: Recount, judge: Judge, watermarks: dict[Key, int]) -> None:
    """Add one event group."""
    received_us = record.envelope.received_at_us
    parts = [p.data for p in record.parts]
    kinds = [p.kind for p in record.parts]
    assert kinds == [PartKind.COUNTING, PartKind.ERASABLE] * (len(kinds) // 2)
    in_record, first = 0, record.sequence
    for counting, erasable in zip(parts[::2], parts[1::2], strict=True):
        part = decode_events(counting, erasable)
        in_record += part.event_count
        for i in range(part.event_count):
            metric, customer, micros = part.metrics[i], part.customers[i], part.micros[i]
            sent_ts = part.times_us[i]
            ts_us = received_us if sent_ts is None else sent_ts
            identity = (part.tenant, customer, part.key_texts[i])
            result.keys.setdefault(identity, []).append((metric, micros, sent_ts))
            result.events += 1
            start_us, end_us = month_of(ts_us)
            key = (part.tenant, metric, customer, start_us)
            watermark = watermarks.get(key)
            event = Event(first + i, Fraction(micros, 10**6), ts_us)
            if judge.is_late((part.tenant, metric), ts_us, end_us, watermark):
                result.hold(key, event, judge.policy)
                continue
            result.folded.setdefault(key, []).append(event)
            seen = min(ts_us, received_us)
            watermarks[key] = seen if watermark is None else max(watermark, seen)
        first += part.event_count
    assert in_record == record.envelope.item_count
