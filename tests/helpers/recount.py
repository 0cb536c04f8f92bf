"""An independent recount: the totals that the raw log implies, by the slow and obvious way.

It shares no counting code with the engine: calendar months come from datetime, lateness from the design's rule read
literally. What it and the engine agree on, two implementations agree on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction

from engine.core.records import (
    MappingChange,
    PartKind,
    PeriodClosing,
    RecordType,
    SettingsChange,
    decode_control,
    decode_events,
)
from wal.log import Log, scan

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
class Recount:
    """What the log says."""

    counted: dict[Key, Total] = field(default_factory=dict)
    late: dict[Key, Total] = field(default_factory=dict)
    keys: dict[tuple[str, str, str], list[tuple[str, int, int | None]]] = field(
        default_factory=dict
    )
    """(tenant, customer, key text) to every event stored under it: (metric, micros, ts)."""
    events: int = 0


def month_of(ts_us: int) -> tuple[int, int]:
    """Start and end of the UTC month, in microseconds."""
    at = EPOCH + timedelta(microseconds=ts_us)
    start = at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    end = (start + timedelta(days=32)).replace(day=1)
    return _us(start), _us(end)


def _us(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


def recount(log: Log) -> Recount:
    """Read the whole log and add everything up. Knows calendar periods only."""
    result = Recount()
    lateness_us = 0
    own_lateness: dict[tuple[str, str], int] = {}
    closed_us = -(10**18)
    own_closed: dict[tuple[str, str], int] = {}
    for record in scan(log, 0):
        kind = record.envelope.record_type
        if kind != RecordType.EVENTS:
            control = decode_control(kind, record.parts[0].data)
            if isinstance(control, SettingsChange):
                lateness_us = control.lateness_us
            elif isinstance(control, PeriodClosing):
                if control.tenant_id is None:
                    closed_us = max(closed_us, control.end_us)
                else:
                    scope = (control.tenant_id, control.metric or "")
                    own_closed[scope] = max(own_closed.get(scope, closed_us), control.end_us)
            elif isinstance(control, MappingChange):
                mapping = control.mapping
                scope = (mapping.tenant_id, mapping.metric)
                if scope not in own_lateness:
                    own_closed[scope] = max(own_closed.get(scope, -(10**18)), closed_us)
                if control.deleted or not mapping.active or mapping.lateness_us is None:
                    own_lateness.pop(scope, None)
                else:
                    own_lateness[scope] = mapping.lateness_us
            continue
        received_us = record.envelope.received_at_us
        parts = [p.data for p in record.parts]
        kinds = [p.kind for p in record.parts]
        assert kinds == [PartKind.COUNTING, PartKind.ERASABLE] * (len(kinds) // 2)
        in_record = 0
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
                scope = (part.tenant, metric)
                window = own_lateness.get(scope, lateness_us)
                frontier = (
                    own_closed[scope]
                    if scope in own_lateness
                    else max(closed_us, own_closed.get(scope, closed_us))
                )
                total = result.counted.get(key)
                watermark = total.watermark_us if total is not None else None
                too_old = watermark is not None and ts_us < watermark - window
                quantity = Fraction(micros, 10**6)
                if end_us <= frontier or too_old:
                    result.late.setdefault(key, Total()).add(quantity, ts_us)
                    continue
                if total is None:
                    total = result.counted[key] = Total()
                total.add(quantity, ts_us)
                seen = min(ts_us, received_us)
                total.watermark_us = seen if watermark is None else max(watermark, seen)
        assert in_record == record.envelope.item_count
    return result
