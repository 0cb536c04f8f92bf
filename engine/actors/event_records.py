"""Event records as the index and its readers need them: columns to index, and single events to show.

Rules it keeps: what retention or erasure took away is passed over, not an error: an event without its erasable part
still counts, for no customer. It must not know what is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from engine.core.records import (
    KEY_BYTES,
    PartKind,
    RecordType,
    TenantEvents,
    decode_events,
    decode_keys,
)
from engine.core.segments import Batch
from wal.log import PartState, StoredPart, StoredRecord

_READABLE = (PartState.INTACT, PartState.PSEUDONYM)
ERASED_CUSTOMER = ""
"""Not a name that an event can have."""


class _TenantParts(NamedTuple):
    counting: bytes
    erasable: StoredPart
    first_sequence: int
    event_count: int


def _tenant_parts(record: StoredRecord) -> Iterator[_TenantParts]:
    """The parts of an event record by tenant; none if retention dropped them, or if it is another record."""
    if record.envelope.record_type != RecordType.EVENTS:
        return
    counting = [part for part in record.parts if part.kind == PartKind.COUNTING]
    erasable = [part for part in record.parts if part.kind == PartKind.ERASABLE]
    if any(part.state != PartState.INTACT for part in counting):
        return
    sequence = record.sequence
    for part, texts in zip(counting, erasable, strict=True):
        event_count = len(decode_keys(part.data)[0]) // KEY_BYTES
        yield _TenantParts(part.data, texts, sequence, event_count)
        sequence += event_count


def batches_of(record: StoredRecord) -> list[Batch]:
    """A record's events to index, per tenant. Raises RecordError."""
    batches = []
    for parts in _tenant_parts(record):
        texts = parts.erasable.data
        if parts.erasable.state not in _READABLE:
            nobody = [ERASED_CUSTOMER] * parts.event_count
            texts = msgspec.msgpack.encode((nobody, (), (), ()))
        events = decode_events(parts.counting, texts, fold_only=True)
        batches.append(batch_of(events, parts.first_sequence, record.envelope.received_at_us))
    return batches


def batch_of(events: TenantEvents, first_sequence: int, received_at_us: int) -> Batch:
    """What the index keeps of one tenant's events."""
    return Batch(
        events.tenant,
        events.metrics,
        events.customers,
        events.micros,
        events.times_us,
        events.sources,
        first_sequence,
        received_at_us,
    )


class EventsAt(NamedTuple):
    """Some events of one tenant's part: those at `indexes`, and the position of its first."""

    events: TenantEvents
    indexes: Sequence[int]
    first_sequence: int


def events_at(record: StoredRecord, sequences: Sequence[int]) -> Iterator[EventsAt]:
    """Those of `sequences` (ascending) that this record holds and that can still be read. Raises RecordError."""
    for parts in _tenant_parts(record):
        first, end = parts.first_sequence, parts.first_sequence + parts.event_count
        indexes = [sequence - first for sequence in sequences if first <= sequence < end]
        if indexes and parts.erasable.state in _READABLE:
            yield EventsAt(decode_events(parts.counting, parts.erasable.data), indexes, first)
