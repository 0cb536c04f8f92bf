"""A recount of one tenant's use from the raw log: what the design says, read literally, in another hand.

Rules it keeps: nothing of the engine's fold is used, no counter, no rule, no period of it; it reads records in log
order and nothing else; quantities are whole millionths. It is slow and obvious on purpose: what it and the engine agree
on, two programs agree on. It must not know certificates, pushes or where a log is stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from engine.witness import raw_records as raw
from engine.witness.spans import ALWAYS_US, History, Span, in_force, period_at, with_change
from wal.log import StoredRecord

_LATENESS_US: Final = 48 * 3600 * 1_000_000
Series = tuple[str, str]
"""(metric, customer): the tenant is one."""


@dataclass
class Tally:
    """Aggregates of some events."""

    sum: int = 0
    count: int = 0
    max: int = 0
    last: int = 0
    last_ts_us: int = ALWAYS_US

    def add(self, micros: int, ts_us: int) -> None:
        """One event: `last` goes by time, then by log order."""
        self.max = micros if not self.count else max(self.max, micros)
        if not self.count or ts_us >= self.last_ts_us:
            self.last, self.last_ts_us = micros, ts_us
        self.sum += micros
        self.count += 1

    def join(self, other: Tally) -> None:
        """All of another one's, which came behind these: at the same time they do not win."""
        if not self.count:
            self.max, self.last, self.last_ts_us = other.max, other.last, other.last_ts_us
        elif other.last_ts_us > self.last_ts_us:
            self.last, self.last_ts_us = other.last, other.last_ts_us
        self.max = max(self.max, other.max)
        self.sum += other.sum
        self.count += other.count


@dataclass
class Held:
    """An adjustment: late events that wait or were approved, a delta, or a value."""

    kind: str
    position: int
    status: str = "pending"
    micros: int = 0
    events: list[raw.RawEvent] = field(default_factory=list)
    after: Tally = field(default_factory=Tally)
    """Of a value: what was counted after it."""


@dataclass
class Seen:
    """All events of a period, counted or held, and where they are."""

    count: int = 0
    sum: int = 0
    late: int = 0
    first: int = -1
    last: int = -1


@dataclass
class Cell:
    """One counter."""

    span: Span
    watermark_us: int
    tally: Tally = field(default_factory=Tally)
    historic: int = 0
    """Micros that historic imports put into it when it was closed."""


@dataclass
class _Judged:
    """What mappings say of a metric."""

    speaker: str | None = None
    lateness_us: int | None = None
    closed_us: int = ALWAYS_US
    kinds: History = ((ALWAYS_US, "calendar"),)
    aggregations: History = ((ALWAYS_US, "sum"),)
    price: str | None = None


class Line(NamedTuple):
    """One customer's use of a metric in one period, recounted."""

    series: Series
    span: Span
    aggregation: str
    seen: Seen
    counted: Tally
    held: tuple[Held, ...]
    total: int
    historic: int


class Recount:
    """Feed it every record of a log, in order; then ask `lines`."""

    def __init__(self, tenant: str, names: raw.Names, archived: raw.Archived) -> None:
        self._tenant = tenant
        self._names = names
        self._archived = archived
        self._lateness_us, self._is_auto, self._closed_us = _LATENESS_US, False, ALWAYS_US
        self._metrics: dict[str, _Judged] = {}
        self._anchors: dict[str, History] = {}
        self._cells: dict[Series, list[Cell]] = {}
        self._held: dict[str, tuple[Series, int, Held]] = {}
        """By id: whose it is, its period's start, and what it is."""
        self._of_period: dict[tuple[Series, int], list[Held]] = {}
        self._ends: dict[tuple[Series, int], int] = {}
        self._collecting: dict[tuple[Series, int, str | None, bool], Held] = {}
        self._seen: dict[tuple[Series, int], Seen] = {}
        self._running: dict[str, dict[tuple[Series, int], int]] = {}
        """Operations under way, each with the watermarks at its start."""

    def feed(self, record: StoredRecord) -> None:
        """Take one record in. Raises raw_records.Unusable."""
        kind = record.envelope.record_type
        if kind == raw.EVENTS:
            for group in raw.groups_of(record, self._tenant, self._names, self._archived):
                self._count(group)
            return
        hear = self._HEARD.get(kind)
        if hear is not None and (said := raw.control_of(record)) is not None:
            hear(self, said, record)

    # How events are judged.

    def _hear_settings(self, said: dict[str, Any], _record: StoredRecord) -> None:
        self._lateness_us, self._is_auto = said["latenessUs"], said["latePolicy"] == "auto"

    def _hear_mapping(self, said: dict[str, Any], _record: StoredRecord) -> None:
        mapping = said["mapping"]
        if mapping["tenantId"] != self._tenant:
            return
        known = self._metrics.get(mapping["metric"])
        if known is None:
            known = self._metrics[mapping["metric"]] = _Judged(closed_us=self._closed_us)
        is_gone = said.get("deleted", False) or not mapping.get("active", True)
        if is_gone and known.speaker not in (None, mapping["id"]):
            return
        known.speaker = None if is_gone else mapping["id"]
        known.price = None if is_gone else mapping.get("priceConfig")
        if known.lateness_us is None:
            known.closed_us = max(known.closed_us, self._closed_us)
        known.lateness_us = None if is_gone else mapping.get("latenessUs")
        since_us = said["change"].get("effectiveFromUs")
        kind = "calendar" if is_gone else mapping.get("period", "calendar")
        aggregation = "sum" if is_gone else mapping.get("aggregation", "sum")
        known.kinds = with_change(known.kinds, kind, since_us)
        known.aggregations = with_change(known.aggregations, aggregation, since_us)

    def _hear_customer(self, said: dict[str, Any], record: StoredRecord) -> None:
        customer = said["customer"]
        if customer["tenantId"] != self._tenant:
            return
        name = self._names.known_as(self._tenant, customer["customerRef"], record.sequence)
        anchor_us = customer.get("billingAnchorUs")
        if anchor_us is not None or name in self._anchors:
            before = self._anchors.get(name, ((ALWAYS_US, None),))
            since_us = said["change"].get("effectiveFromUs")
            self._anchors[name] = with_change(before, anchor_us, since_us)

    def _hear_closing(self, said: dict[str, Any], _record: StoredRecord) -> None:
        tenant, metric, end_us = said.get("tenantId"), said.get("metric"), said["endUs"]
        if tenant is None or metric is None:
            self._closed_us = max(self._closed_us, end_us)
        elif tenant == self._tenant and metric in self._metrics:
            known = self._metrics[metric]
            known.closed_us = max(known.closed_us, end_us)

    def _scope(self, metric: str) -> tuple[int, int]:
        """(lateness, everything that ends at or before it is closed)."""
        known = self._metrics.get(metric)
        if known is None:
            return self._lateness_us, self._closed_us
        if known.lateness_us is None:
            return self._lateness_us, max(known.closed_us, self._closed_us)
        return known.lateness_us, known.closed_us

    def _period(self, series: Series, ts_us: int) -> Span:
        known = self._metrics.get(series[0])
        kinds = known.kinds if known is not None else ((ALWAYS_US, "calendar"),)
        anchors = self._anchors.get(series[1], ((ALWAYS_US, None),))
        return period_at(kinds, anchors, ts_us)

    # Events.

    def _count(self, group: raw.RawGroup) -> None:
        operation, is_historic = group.marks.get("operation"), bool(group.marks.get("historic"))
        for event in group.events:
            series = (event.metric, event.customer)
            lateness_us, closed_us = self._scope(event.metric)
            cell = self._cell_at(series, event.ts_us)
            span = cell.span if cell is not None else self._period(series, event.ts_us)
            is_closed = span.end_us <= closed_us
            oldest_us = self._held_against(series, cell, span, operation) - lateness_us
            is_late = not is_historic and (is_closed or event.ts_us < oldest_us)
            if is_late:
                # An event that is held belongs to the period of its own time, whatever counters there are.
                span = self._period(series, event.ts_us)
                self._hold(series, span, event, operation)
            else:
                if cell is None:
                    cell = Cell(span, span.start_us)
                    self._cells.setdefault(series, []).append(cell)
                self._add(series, cell, event)
                cell.historic += event.micros if is_historic and is_closed else 0
                seen_us = min(event.ts_us, group.received_at_us)
                cell.watermark_us = max(cell.watermark_us, seen_us)
            self._note(series, span, event, is_late=is_late)

    def _cell_at(self, series: Series, ts_us: int) -> Cell | None:
        begun = [c for c in self._cells.get(series, ()) if c.span.start_us <= ts_us]
        newest = max(begun, key=lambda c: c.span.start_us, default=None)
        return newest if newest is not None and ts_us < newest.span.end_us else None

    def _held_against(
        self, series: Series, cell: Cell | None, span: Span, operation: str | None
    ) -> int:
        """The watermark that judges: the present one, or that at the start of the operation it came with."""
        present_us = cell.watermark_us if cell is not None else span.start_us
        at_begin = self._running.get(operation) if operation is not None else None
        if at_begin is None:
            return present_us
        return at_begin.get((series, span.start_us), span.start_us)

    def _add(self, series: Series, cell: Cell, event: raw.RawEvent) -> None:
        cell.tally.add(event.micros, event.ts_us)
        for held in self._of_period.get((series, cell.span.start_us), ()):
            if held.kind == "value":
                held.after.add(event.micros, event.ts_us)

    def _note(self, series: Series, span: Span, event: raw.RawEvent, *, is_late: bool) -> None:
        key = (series, span.start_us)
        self._ends[key] = span.end_us
        seen = self._seen.setdefault(key, Seen(first=event.position))
        seen.count += 1
        seen.sum += event.micros
        seen.late += is_late
        seen.last = event.position

    def _hold(self, series: Series, span: Span, event: raw.RawEvent, operation: str | None) -> None:
        """Late events of one counter share one adjustment until it is decided."""
        key = (series, span.start_us, operation, self._is_auto)
        held = self._collecting.get(key)
        if (
            held is None
            or (not self._is_auto and held.status != "pending")
            or held.status == "reverted"
        ):
            status = "approved" if self._is_auto else "pending"
            held = self._collecting[key] = Held("event", event.position, status)
            self._file(f"adj_{event.position:012x}", series, span.start_us, held)
        held.events.append(event)

    def _file(self, name: str, series: Series, start_us: int, held: Held) -> None:
        self._held[name] = (series, start_us, held)
        self._of_period.setdefault((series, start_us), []).append(held)

    # What people do.

    def _hear_adjustment(self, said: dict[str, Any], record: StoredRecord) -> None:
        if said["tenantId"] != self._tenant:
            return
        made = said.get("adjustment")
        if said["action"] == "create" and made is not None:
            customer = self._names.known_as(self._tenant, made["customerRef"], record.sequence)
            series = (made["metric"], customer)
            held = Held(made["kind"], record.sequence, micros=made["micros"])
            self._ends.setdefault((series, made["periodStartUs"]), made["periodEndUs"])
            self._file(made["id"], series, made["periodStartUs"], held)
            return
        status = "approved" if said["action"] == "approve" else "reverted"
        for name in said.get("ids", ()):
            _series, _start_us, held = self._held[name]
            if held.status not in (status, "reverted", "superseded"):
                held.status = status

    def _hear_replay(self, said: dict[str, Any], record: StoredRecord) -> None:
        for of in said["counters"]:
            if of["tenantId"] != self._tenant:
                continue
            name = self._names.known_as(self._tenant, of["customerRef"], record.sequence)
            series, start_us = (of["metric"], name), of["periodStartUs"]
            self._replay(series, start_us, frozenset(of["sequences"]))

    def _replay(self, series: Series, start_us: int, wanted: frozenset[int]) -> None:
        """Late events that wait are counted after all: looked up here, never taken from what the record says."""
        of_period = self._of_period.get((series, start_us), ())
        moved: list[raw.RawEvent] = []
        for held in of_period:
            if held.kind == "event" and held.status == "pending":
                taken = [event for event in held.events if event.position in wanted]
                held.events = [event for event in held.events if event.position not in wanted]
                if taken and not held.events:
                    held.status = "superseded"
                moved += taken
        cells = self._cells.setdefault(series, [])
        cell = next((c for c in cells if c.span.start_us == start_us), None)
        if cell is None:
            cell = Cell(Span(start_us, self._ends[series, start_us]), start_us)
            cells.append(cell)
        batch = Tally()
        for event in sorted(moved):
            batch.add(event.micros, event.ts_us)
            for held in of_period:
                if held.kind == "value" and event.position > held.position:
                    held.after.add(event.micros, event.ts_us)
        if batch.count:
            cell.tally.join(batch)

    def _hear_operation(self, said: dict[str, Any], _record: StoredRecord) -> None:
        if said["action"] == "begin":
            self._running[said["operationId"]] = {
                (series, cell.span.start_us): cell.watermark_us
                for series, cells in self._cells.items()
                for cell in cells
            }
        elif said["action"] == "end":
            self._running.pop(said["operationId"], None)

    # The result.

    def price_of(self, metric: str) -> str | None:
        """The price that the metric's mapping has, as JSON text."""
        known = self._metrics.get(metric)
        return None if known is None else known.price

    def lines(self, since_us: int, until_us: int) -> list[Line]:
        """Every series and period that begins in [since, until), sorted by metric, customer and start."""
        keys = {key for key in (*self._seen, *self._of_period) if since_us <= key[1] < until_us}
        return [self._line(series, start_us) for series, start_us in sorted(keys)]

    def _line(self, series: Series, start_us: int) -> Line:
        cell = next((c for c in self._cells.get(series, ()) if c.span.start_us == start_us), None)
        known = self._metrics.get(series[0], _Judged())
        aggregation = in_force(known.aggregations, start_us)
        held = tuple(self._of_period.get((series, start_us), ()))
        tally = cell.tally if cell is not None else Tally()
        end_us = cell.span.end_us if cell is not None else self._ends[series, start_us]
        return Line(
            series,
            Span(start_us, end_us),
            aggregation,
            self._seen.get((series, start_us), Seen()),
            tally,
            held,
            _total(aggregation, tally, held),
            cell.historic if cell is not None else 0,
        )

    _HEARD: Final = {
        raw.SETTINGS: _hear_settings,
        raw.MAPPING: _hear_mapping,
        raw.CUSTOMER: _hear_customer,
        raw.CLOSING: _hear_closing,
        raw.ADJUSTMENT: _hear_adjustment,
        raw.REPLAY: _hear_replay,
        raw.OPERATION: _hear_operation,
    }


def _total(aggregation: str, counted: Tally, held: tuple[Held, ...]) -> int:
    """What counts: of what is counted and approved, by the metric's own rule."""
    approved = [one for one in held if one.status == "approved"]
    if aggregation == "sum":
        deltas = sum(one.micros for one in approved if one.kind == "delta")
        return counted.sum + deltas + sum(e.micros for one in approved for e in one.events)
    values = [one for one in approved if one.kind == "value"]
    newest = max(values, key=lambda one: one.position, default=None)
    base = Tally()
    if newest is None:
        base.join(counted)
    else:
        base.join(newest.after)
        if not base.count:
            base.add(newest.micros, ALWAYS_US)
        base.max = max(base.max, newest.micros)
    after = -1 if newest is None else newest.position
    for event in sorted(e for one in approved for e in one.events if e.position > after):
        base.add(event.micros, event.ts_us)
    return base.max if aggregation == "max" else base.last
