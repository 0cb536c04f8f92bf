"""The simulation's own books of pushing: what was used, what the durable log says, read the slow and obvious way.

Rules it keeps: it shares no folding with the engine. Periods come from datetime; use comes from what clients sent;
a target's ledger is added up record by record from what a crash could not take away. It must not know Stripe.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import msgspec

from engine.core.configured import MappingChange
from engine.core.events import SentEvent
from engine.core.push_records import (
    Lane,
    PushDecision,
    PushIntent,
    PushOutcome,
    Target,
)
from engine.core.records import RecordType, decode_control
from tests.helpers.recount import EPOCH, month_of
from tests.sim.violation import Violation
from wal.envelope import decode
from wal.memory_log import FakeDisk

TENANT = "acme"


@dataclass(frozen=True)
class Metric:
    """A metric of a world and what its mapping says at first."""

    name: str
    meter: str
    aggregation: str
    scale: str


@dataclass
class Use:
    """An event as its client keeps it until it is acknowledged."""

    event: SentEvent
    micros: int
    ts_us: int
    is_heard: bool = False


@dataclass
class Delta:
    """A correction that a person asks for."""

    metric: str
    customer_ref: str
    period_at_us: int
    micros: int
    request_id: str
    keep: bool
    """False: it is reverted in the end."""


@dataclass
class Used:
    """Everything that was ever used, by the word of those who used it."""

    anchor: datetime | None = None
    """Of every customer's subscription; None: calendar months."""
    events: list[Use] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)

    def period_of(self, ts_us: int) -> tuple[int, int]:
        """(start, end) of the billing period that holds an instant."""
        if self.anchor is None:
            return month_of(ts_us)
        at = EPOCH + timedelta(microseconds=ts_us)
        boundary = self.anchor.replace(year=at.year, month=at.month)
        if at >= boundary:
            return _us(boundary), _us(_next_month(boundary))
        before = boundary.replace(day=1) - timedelta(days=1)
        return _us(self.anchor.replace(year=before.year, month=before.month)), _us(boundary)

    def micros(
        self, metric: Metric, customer_ref: str, start_us: int, *, at_most: bool = False
    ) -> int:
        """What counts in a period once everything pending is approved; `at_most`: all that may count by now."""
        found = [
            use
            for use in self.events
            if use.event.metric == metric.name
            and use.event.customer_ref == customer_ref
            and self.period_of(use.ts_us)[0] == start_us
        ]
        if metric.aggregation == "max":
            return max((use.micros for use in found), default=0)
        if metric.aggregation == "last":
            return max(found, key=lambda use: use.ts_us).micros if found else 0
        return sum(use.micros for use in found) + sum(
            delta.micros
            for delta in self.deltas
            if (delta.metric, delta.customer_ref) == (metric.name, customer_ref)
            and self.period_of(delta.period_at_us)[0] == start_us
            and (delta.keep or (at_most and delta.micros > 0))
        )

    def period_starts(self) -> set[int]:
        """Of all periods in which anything was used."""
        times = [use.ts_us for use in self.events] + [each.period_at_us for each in self.deltas]
        return {self.period_of(ts_us)[0] for ts_us in times}


def _us(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


def _next_month(at: datetime) -> datetime:
    after = at.replace(day=1) + timedelta(days=32)
    return at.replace(year=after.year, month=after.month)


def whole_units(micros: int, scale: str) -> int:
    """floor(use x scale), never below 0."""
    return max(0, (Fraction(micros, 10**6) * Fraction(scale)) // 1)


ANCHOR = datetime(2026, 1, 27, 10, 17, 42, 500_000, tzinfo=UTC)
"""Boundaries in the middle of a minute."""


class DurableLog:
    """What a power cut at this moment would leave of pushing: records of types 14 to 16 on the disk, added up."""

    def __init__(self, disk: FakeDisk) -> None:
        self._disk = disk
        self._from_key = 0
        self.intents: dict[str, PushIntent] = {}
        self.results: dict[str, list[str]] = defaultdict(list)
        """Identifier to the results recorded of it, in order."""
        self.outcomes: list[PushOutcome] = []
        self.decisions: list[PushDecision] = []
        self.pushed: dict[Target, int] = defaultdict(int)
        self.carried_in: dict[Target, int] = defaultdict(int)
        self.carried_out: dict[Target, int] = defaultdict(int)
        self.open: dict[Lane, PushIntent] = {}
        self.scales: dict[tuple[str, str], list[tuple[int, str]]] = {}
        """(metric, role) to (from when, scale), in order."""
        self._by_number: dict[tuple[Target, int], PushIntent] = {}

    def refresh(self) -> DurableLog:
        """Read what became durable since."""
        head, durable = self._disk.head, self._disk.durable
        for key in sorted(key for key in durable if self._from_key <= key < head):
            record = decode(durable[key], key)
            self._from_key = record.next_sequence
            if record.envelope.record_type != RecordType.EVENTS:
                self._take(decode_control(record.envelope.record_type, record.parts[0].data))
        return self

    def _take(self, record: Any) -> None:
        match record:
            case PushIntent():
                self._take_intent(record)
            case PushOutcome():
                self._take_outcome(record)
            case PushDecision():
                self._take_decision(record)
            case MappingChange() if record.mapping.active and not record.deleted:
                self._take_mapping(record)
            case _:
                pass

    def _take_intent(self, record: PushIntent) -> None:
        lane = record.target.lane
        if lane in self.open:
            raise Violation(f"{lane} has two unresolved intents in the log")
        if record.request.identifier in self.intents:
            raise Violation(f"two intents bear the identifier {record.request.identifier}")
        self.intents[record.request.identifier] = record
        self._by_number[record.target, record.number] = record
        self.open[lane] = record

    def _take_outcome(self, record: PushOutcome) -> None:
        intent = self._by_number[record.target, record.number]
        self.outcomes.append(record)
        self.results[intent.request.identifier].append(record.result)
        units = int(intent.request.value)
        if record.result == "delivered":
            self.pushed[record.target] += units
        elif record.result in ("rejected", "cancelled"):
            self.pushed[record.target] -= units
            return
        if record.result != "quarantined":
            del self.open[record.target.lane]

    def _take_decision(self, record: PushDecision) -> None:
        self.decisions.append(record)
        target = record.target
        if record.kind == "baseline":
            assert target is not None
            self.pushed[target] = int(record.units)
        elif record.kind == "carry":
            assert target is not None
            self.carried_out[target] += int(record.units)
            if record.into == "current":
                into = msgspec.structs.replace(
                    target, start_us=record.at_us, end_us=record.until_us
                )
                self.carried_in[into] += int(record.units)

    def _take_mapping(self, record: MappingChange) -> None:
        mapping = record.mapping
        key = (mapping.metric, "shadow" if mapping.shadow else "main")
        if isinstance(record.push, msgspec.UnsetType) or key not in self.scales:
            self.scales[key] = [(-(1 << 62), mapping.stripe_scale)]
            return
        from_us = record.push.from_us
        kept = [entry for entry in self.scales[key] if entry[0] < from_us]
        self.scales[key] = [*kept, (from_us, mapping.stripe_scale)]

    def scale_of(self, metric: Metric, start_us: int, role: str = "main") -> str:
        """The scale that a period began with."""
        entries = self.scales.get((metric.name, role), [(-(1 << 62), metric.scale)])
        return [scale for from_us, scale in entries if from_us <= start_us or from_us < 0][-1]


def assert_same_ledger(meter: Any, books: DurableLog) -> None:
    """The ledger that a start brought back is what the raw records add up to. Raises Violation."""
    ledger = meter.push.ledger
    seen: dict[Target, tuple[int, int, int]] = {}
    for state in ledger.lanes.values():
        if state.open != books.open.get(state.lane):
            raise Violation(
                f"{state.lane}: open is {state.open}, the log says {books.open.get(state.lane)}"
            )
        for target in state.targets.values():
            seen[target.target] = (target.pushed, target.carried_in, target.carried_out)
    known = books.pushed.keys() | books.carried_in.keys() | books.carried_out.keys()
    for one in known | seen.keys():
        said = (books.pushed[one], books.carried_in[one], books.carried_out[one])
        if seen.get(one, (0, 0, 0)) != said:
            raise Violation(
                f"{one}: the ledger has (pushed, in, out) {seen.get(one)}, the log says {said}"
            )
