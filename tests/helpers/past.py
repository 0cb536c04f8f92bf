"""Logs with a past: random records of every kind that changes totals, and the independent ways to look at them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from engine.core.adjustments import Adjustments
from engine.core.configured import Change, Mapping, MappingChange
from engine.core.counters import Counter
from engine.core.partitions import HASH_NAME, partition_of
from engine.core.records import (
    AdjustmentChange,
    AdjustmentMade,
    ControlRecord,
    Genesis,
    PartKind,
    PeriodClosing,
    RecordType,
    ReplayApply,
    SettingsChange,
    decode_control,
    decode_events,
    encode_control,
)
from engine.core.registry import Registry
from engine.core.replay import ReplayRequest, plan
from engine.core.shard_state import ShardState
from engine.core.times import DAY_US, HOUR_US
from engine.limits import PARTITIONS
from tests.helpers.event_log import EventLog, Sent
from wal.log import Draft, DraftPart, Log, scan
from wal.memory_log import MemoryLog

JANUARY_US = 1_767_225_600_000_000
"""2026-01-01T00:00:00Z."""
FEBRUARY_US = JANUARY_US + 31 * DAY_US
BY = Change(actor="tester", request_id="r")
TENANTS, METRICS, CUSTOMERS = ("acme", "beta"), ("calls", "seats", "level"), ("anna", "ben")
AGGREGATIONS = {"calls": "sum", "seats": "max", "level": "last"}


class Past:
    """A log that grows by random records, and the state that a live meter would have."""

    def __init__(self, seed: int, log: Log | None = None, *, lateness_us: int = 2 * DAY_US) -> None:
        self.random = random.Random(seed)
        self.log = MemoryLog() if log is None else log
        self.events = EventLog(self.log)
        self.registry = Registry()
        self.state = ShardState(range(PARTITIONS))
        self.now_us = JANUARY_US + 5 * DAY_US
        self.adjustments_made = 0
        self.control(
            Genesis(
                log_id=b"l" * 16,
                partition_count=PARTITIONS,
                partition_hash=HASH_NAME,
                software="t",
            )
        )
        self.control(SettingsChange(lateness_us=lateness_us, late_policy="review", actor="t"))
        for tenant in TENANTS:
            for metric, aggregation in AGGREGATIONS.items():
                mapping = Mapping(
                    id=f"{tenant}-{metric}",
                    tenant_id=tenant,
                    metric=metric,
                    aggregation=aggregation,
                )
                self.control(MappingChange(mapping=mapping, change=BY))

    def control(self, record: ControlRecord) -> None:
        """Append a control record and fold it."""
        record_type, data = encode_control(record)
        [envelope] = self.log.append(
            [Draft(record_type, 1, self.now_us, (DraftPart(PartKind.CONTROL, data),))]
        )
        self._fold_control(decode_control(record_type, data), envelope.sequence)

    def _fold_control(self, record: ControlRecord, sequence: int) -> None:
        fold_registry(self.registry, record, sequence, self.now_us)
        self.state.fold_control(record, sequence=sequence, received_at_us=self.now_us)

    def grow(self, steps: int) -> None:
        """Some more records."""
        for _ in range(steps):
            self.now_us += self.random.choice((0, 1, HOUR_US, 9 * HOUR_US, DAY_US, -HOUR_US))
            kind = self.random.random()
            if kind < 0.6:
                self.append_events()
            elif kind < 0.72:
                self._create()
            elif kind < 0.88:
                self._decide()
            elif kind < 0.95:
                self._replay()
            elif kind < 0.98:
                late_policy = self.random.choice(("auto", "review"))
                lateness_us = self.random.choice((0, HOUR_US, 2 * DAY_US))
                self.control(
                    SettingsChange(lateness_us=lateness_us, late_policy=late_policy, actor="t")
                )
            elif self.now_us > FEBRUARY_US + 2 * DAY_US:
                closing = PeriodClosing(
                    start_us=JANUARY_US, end_us=FEBRUARY_US, lateness_us=2 * DAY_US
                )
                self.control(closing)

    def append_events(self) -> None:
        """Append a random group."""
        rng = self.random
        sent = []
        for _ in range(rng.randint(1, 6)):
            back_us = rng.choice((0, 0, HOUR_US, DAY_US, 3 * DAY_US, 8 * DAY_US))
            ts_us = None if rng.random() < 0.2 else self.now_us - back_us + rng.randint(-5, 5)
            micros = rng.choice(
                (0, 1, 7_000_000, rng.randint(0, 10**9), 10**20 + rng.randint(0, 9))
            )
            sent.append(
                Sent(
                    rng.choice(TENANTS),
                    rng.choice(METRICS),
                    rng.choice(CUSTOMERS),
                    micros,
                    ts_us,
                    rng.randint(0, 4),
                    rng.choice((None, "=1+1", "disk 'a'")),
                    rng.choice((None, '{"region":"eu"}', '{"a":"x,\\"y\\n"}')),
                )
            )
        self.append(sent)

    def append(self, sent: list[Sent]) -> None:
        """Append a group of events and fold it."""
        group, _end = self.events.append(sent, self.now_us)
        sequence = group.first_sequence
        for part in group.parts:
            self.state.fold_events(
                part,
                range(part.event_count),
                first_sequence=sequence,
                received_at_us=self.now_us,
            )
            sequence += part.event_count

    def _create(self) -> None:
        rng = self.random
        tenant, metric, customer = rng.choice(TENANTS), rng.choice(METRICS), rng.choice(CUSTOMERS)
        is_sum = AGGREGATIONS[metric] == "sum"
        start_us = JANUARY_US if self.now_us < FEBRUARY_US or rng.random() < 0.5 else FEBRUARY_US
        micros = rng.randint(-(10**9), 10**9) if is_sum else rng.randint(0, 10**9)
        self.create((tenant, metric, customer), start_us, micros)

    def create(self, series: tuple[str, str, str], start_us: int, micros: int) -> None:
        """Create a delta of a sum, or a value of a max or last."""
        tenant, metric, customer = series
        is_sum = AGGREGATIONS[metric] == "sum"
        self.adjustments_made += 1
        made = AdjustmentMade(
            id=f"adj-{self.adjustments_made}",
            tenant_id=tenant,
            metric=metric,
            customer_ref=customer,
            period_start_us=start_us,
            period_end_us=FEBRUARY_US if start_us == JANUARY_US else FEBRUARY_US + 28 * DAY_US,
            kind="delta" if is_sum else "value",
            micros=micros,
            reason="correction",
        )
        partition = partition_of(tenant, customer)
        self.control(
            AdjustmentChange(
                action="create",
                partition=partition,
                change=BY,
                tenant_id=tenant,
                adjustment=made,
            )
        )

    def _decide(self) -> None:
        found = [(p, a) for p, of in self.state.adjustments.items() for a in of.by_id.values()]
        if found:
            partition, adjustment = self.random.choice(found)
            action: Any = self.random.choice(("approve", "approve", "revert"))
            self.control(
                AdjustmentChange(
                    action=action,
                    partition=partition,
                    change=BY,
                    tenant_id=adjustment.tenant,
                    ids=(adjustment.id,),
                )
            )

    def approve_all(self) -> None:
        """Approve every adjustment."""
        for partition, of in self.state.adjustments.items():
            for one in list(of.by_id.values()):
                change = AdjustmentChange(
                    action="approve",
                    partition=partition,
                    change=BY,
                    tenant_id=one.tenant,
                    ids=(one.id,),
                )
                self.control(change)

    def _replay(self) -> None:
        since_us = self.random.choice((None, self.now_us - 4 * DAY_US))
        self.replay(self.random.choice(TENANTS), since_us)

    def replay(self, tenant: str, since_us: int | None = None) -> None:
        """Apply a replay of a tenant's late events."""
        planned = plan([self.state], ReplayRequest(tenant, None, since_us, None, None, None))
        if planned.counters:
            self.control(
                ReplayApply(
                    tenant_id=tenant,
                    plan_hash=planned.plan_hash,
                    counters=planned.counters,
                    change=BY,
                )
            )


def fold_registry(
    registry: Registry, record: ControlRecord, sequence: int, received_at_us: int
) -> None:
    """Fold a record into a registry, whatever it takes beside the record."""
    del sequence, received_at_us
    registry.fold(record)


def fresh_fold(log: Log, end: int) -> ShardState:
    """The state after the items before `end`: one record after the other, everything, from the beginning."""
    state = ShardState(range(PARTITIONS))
    for record in scan(log, 0):
        if record.sequence >= end:
            break
        at_us = record.envelope.received_at_us
        if record.envelope.record_type != RecordType.EVENTS:
            control = decode_control(record.envelope.record_type, record.parts[0].data)
            state.fold_control(control, sequence=record.sequence, received_at_us=at_us)
            continue
        sequence = record.sequence
        for counting, erasable in zip(record.parts[::2], record.parts[1::2], strict=True):
            events = decode_events(counting.data, erasable.data)
            rows = [i for i in range(events.event_count) if sequence + i < end]
            state.fold_events(events, rows, first_sequence=sequence, received_at_us=at_us)
            sequence += events.event_count
    return state


def everything(state: ShardState, of: tuple[str, str] | None = None) -> dict[Any, Any]:
    """All counters and adjustments by their keys; `of` a (tenant, customer) alone."""
    found: dict[Any, Any] = {}
    for counters in state.counters.values():
        for series, newest in counters.items():
            if of is None or of == (series[0], series[2]):
                counter = newest
                while counter is not None:
                    found[*series, counter.start_us] = counter.state()
                    counter = counter.older  # type: ignore[assignment]
    for adjustments in state.adjustments.values():
        found |= _adjustments(adjustments, of)
    return found


def _adjustments(adjustments: Adjustments, of: tuple[str, str] | None) -> dict[Any, Any]:
    return {
        one.id: one.state()
        for one in adjustments.by_id.values()
        if of is None or of == (one.tenant, one.customer_ref)
    }


def state_hash(state: ShardState) -> str:
    """A hash of every counter's tenant, metric, customer, period, sum, max, last and count: not of when it was told."""
    rows = []
    for counters in state.counters.values():
        for series, newest in counters.items():
            counter: Counter | None = newest
            while counter is not None:
                if counter.count:
                    tally = counter.tally()
                    rows.append(
                        (*series, counter.start_us, tally.sum, tally.max, tally.last, tally.count)
                    )
                counter = counter.older
    return blake2b(repr(sorted(rows)).encode(), digest_size=16).hexdigest()


def customers() -> Iterator[tuple[str, str]]:
    """Every (tenant, customer) of these logs."""
    for tenant in TENANTS:
        for customer in CUSTOMERS:
            yield tenant, customer
