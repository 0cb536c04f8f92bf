"""An independent recount: the totals that the raw log implies, by the slow and obvious way.

It shares no counting code with the engine: calendar months come from datetime, lateness from the design's rule read
literally, the watermarks at an operation's start from a copy taken there, dropped bodies from the archives, an erased
customer's name from the erasures. What it and the engine agree on, two implementations agree on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from hashlib import blake2b
from typing import Any

import msgspec

from engine.core.configured import MappingChange
from engine.core.records import (
    AdjustmentChange,
    OperationChange,
    PartKind,
    PeriodClosing,
    RecordType,
    ReplayApply,
    SettingsChange,
    decode_control,
    decode_events,
)
from tests.helpers.taken_away import ErasureSeen, TakenAway, is_dropped
from wal.archive import ArchiveStore
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
class Operated:
    """A backfill or import as the records tell it."""

    status: str = "pending"
    at_begin: dict[Key, int] | None = None
    """Every watermark at its start; None while it does not run."""
    taken: int = 0
    late: int = 0
    processed: int = 0
    failed_lines: list[int] = field(default_factory=list)


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
    hashes: dict[bytes, int] = field(default_factory=dict)
    """How often an event is stored under each dedupe key: what stays of a key when its text was erased."""
    events: int = 0
    dropped: int = 0
    """Events whose bodies are in the archives alone."""
    sections_dropped: int = 0
    """Records of checkpoints that another one, or none, stands in for."""
    horizon_us: int | None = None
    """What is older may be dropped and is refused; None: no checkpoint was committed."""
    corrections: dict[str, Correction] = field(default_factory=dict)
    newest_held: dict[tuple[Key, bool, str | None], Correction] = field(default_factory=dict)
    """By counter, policy and operation, the newest adjustment of late events."""
    folded: dict[Key, list[Event]] = field(default_factory=dict)
    plans: list[tuple[str, str]] = field(default_factory=list)
    """(tenant, hash) of every replay that was applied."""
    operations: dict[str, Operated] = field(default_factory=dict)
    erasures: dict[str, ErasureSeen] = field(default_factory=dict)
    first_stored: dict[tuple[str, str], int] = field(default_factory=dict)
    """(tenant, customer's name as it is stored) to the position of the first event that bears it."""

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

    def hold(self, key: Key, event: Event, policy: str, operation: str | None) -> None:
        """A late event joins the adjustment of its counter and operation that is open for it, or makes one."""
        auto = policy == "auto"
        wanted = "approved" if auto else "pending"
        newest = self.newest_held.get((key, auto, operation))
        if newest is None or newest.status != wanted:
            made_id = f"adj_{event.sequence:012x}"
            newest = Correction(made_id, key, "event", event.sequence, wanted, auto)
            self.corrections[made_id] = self.newest_held[key, auto, operation] = newest
        newest.events.append(event)

    def change(self, record: AdjustmentChange, sequence: int, gone: TakenAway) -> None:
        """A person's step."""
        made = record.adjustment
        if made is not None:
            customer = gone.known_as(made.tenant_id, made.customer_ref, sequence)
            key = (made.tenant_id, made.metric, customer, made.period_start_us)
            amount = Fraction(_micros(made.micros), 10**6)
            assert made.id not in self.corrections, "an adjustment is made once"
            self.corrections[made.id] = Correction(
                made.id, key, made.kind, sequence, amount=amount, request_id=made.request_id
            )
        for adjustment_id in record.ids:
            assert adjustment_id in self.corrections, f"{adjustment_id} was decided on, never made"
            correction = self.corrections[adjustment_id]
            assert correction.key[0] == record.tenant_id, "a decision is on one tenant's"
            assert correction.status == record.was, "a decision says what was"
            correction.status = "approved" if record.action == "approve" else "reverted"

    def operate(self, record: OperationChange, watermarks: dict[Key, int]) -> None:
        """A step of a backfill or import. What its end says of its rows must be what they came to."""
        found = self.operations.setdefault(record.operation_id, Operated())
        said = msgspec.msgpack.decode(record.payload)
        if record.action == "begin":
            found.status, found.at_begin = "processing", dict(watermarks)
        elif record.action == "progress" and found.status == "processing":
            # Of an import two senders may speak at once, the slower one last.
            if record.kind == "backfill":
                assert said.get("processed", 0) >= found.processed, "a backfill never goes back"
            found.processed = said.get("processed", 0)
            found.failed_lines += [line for line, _ in said.get("errors", ())]
        elif record.action == "end":
            assert found.status in ("pending", "processing"), "an operation ends once"
            found.status, found.at_begin = record.status, None
            said_counts = (said.get("accepted"), said.get("late"))
            assert said_counts == (found.taken, found.late), (
                f"{record.operation_id} is said to have taken (rows, late) {said_counts}, "
                f"its rows are {(found.taken, found.late)}"
            )

    def replay(self, record: ReplayApply, sequence: int, gone: TakenAway) -> None:
        """Late events are folded: looked up by position, never taken from what the record says they come to."""
        self.plans.append((record.tenant_id, record.plan_hash))
        for counter in record.counters:
            key = (
                counter.tenant_id,
                counter.metric,
                gone.known_as(counter.tenant_id, counter.customer_ref, sequence),
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


def recount(log: Log, archives: ArchiveStore | None = None) -> Recount:
    """Read the whole log, dropped bodies from the archives, and add everything up. Knows calendar periods only."""
    gone = TakenAway(log, archives)
    result, judge = Recount(erasures=gone.erasures), Judge()
    watermarks: dict[Key, int] = {}
    for record in scan(log, 0):
        kind = record.envelope.record_type
        if kind == RecordType.EVENTS:
            _count(record, result, judge, watermarks, gone)
            continue
        if is_dropped(record):
            assert kind == RecordType.CHECKPOINT, (
                "of control records only a checkpoint's are dropped"
            )
            result.sections_dropped += 1
            continue
        control = decode_control(kind, record.parts[0].data)
        judge.hear(control)
        if isinstance(control, AdjustmentChange):
            result.change(control, record.sequence, gone)
        elif isinstance(control, ReplayApply):
            result.replay(control, record.sequence, gone)
        elif isinstance(control, OperationChange):
            result.operate(control, watermarks)
    result.horizon_us = gone.horizon_us()
    result.sum_up(watermarks)
    return result


def _count(
    record: StoredRecord,
    result: Recount,
    judge: Judge,
    watermarks: dict[Key, int],
    gone: TakenAway,
) -> None:
    """Add one event group."""
    received_us = record.envelope.received_at_us
    whole = gone.whole(record)
    kinds = [p.kind for p in whole.parts]
    assert kinds == [PartKind.COUNTING, PartKind.ERASABLE] * (len(kinds) // 2)
    parts = [p.data for p in whole.parts]
    in_record, first = 0, record.sequence
    for counting, erasable in zip(parts[::2], parts[1::2], strict=True):
        part = decode_events(counting, erasable)
        in_record += part.event_count
        operation = part.extra.get("operation")
        running = result.operations.get(operation, Operated()) if operation else Operated()
        for i in range(part.event_count):
            metric, stored, micros = part.metrics[i], part.customers[i], part.micros[i]
            sent_ts = part.times_us[i]
            ts_us = received_us if sent_ts is None else sent_ts
            _enter(result, part.tenant, stored, part.key_texts[i], part.keys[i], record.sequence)
            identity = (part.tenant, stored, part.key_texts[i])
            result.keys.setdefault(identity, []).append((metric, micros, sent_ts))
            result.events += 1
            start_us, end_us = month_of(ts_us)
            customer = gone.known_as(part.tenant, stored, record.sequence)
            key = (part.tenant, metric, customer, start_us)
            event = Event(first + i, Fraction(micros, 10**6), ts_us)
            # What runs is judged by the watermarks at its start, what has ended by the present ones.
            held_against = watermarks if running.at_begin is None else running.at_begin
            late = not part.extra.get("historic") and judge.is_late(
                (part.tenant, metric), ts_us, end_us, held_against.get(key)
            )
            if running.at_begin is not None:
                running.taken += 1
                running.late += late
            if late:
                result.hold(key, event, judge.policy, operation)
                continue
            result.folded.setdefault(key, []).append(event)
            seen = min(ts_us, received_us)
            watermarks[key] = max(watermarks.get(key, seen), seen)
        if whole is not record:
            result.dropped += part.event_count
            newest_us = max(received_us if t is None else t for t in part.times_us)
            horizon_us = gone.horizon_us()
            assert horizon_us is not None
            assert newest_us < horizon_us, "only what is older than the horizon is dropped"
        first += part.event_count
    assert in_record == record.envelope.item_count


def _enter(
    result: Recount, tenant: str, stored: str, key_text: str, key: bytes, sequence: int
) -> None:
    """Note an event's names; its key is that of its texts, or they were erased and only the key is left."""
    text = f"{tenant}\0{stored}\0{key_text}".encode()
    is_own = blake2b(text, digest_size=16).digest() == key
    assert is_own or key_text == f"erased:{key.hex()}", "the stored texts are not those of the key"
    result.hashes[key] = result.hashes.get(key, 0) + 1
    result.first_stored.setdefault((tenant, stored), sequence)
