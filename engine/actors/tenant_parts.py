"""Event records tenant by tenant, looked at before they are decoded: who is in a part, and can it be read.

Rules it keeps: what is not asked for is not decoded; what retention dropped is told apart from what was erased, since
the one makes an answer about the past impossible and the other does not. It must not know what is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from engine.core.records import (
    PartKind,
    RecordError,
    RecordType,
    TenantEvents,
    decode_events,
)
from wal.log import PartState, StoredPart, StoredRecord

_READABLE: Final = (PartState.INTACT, PartState.PSEUDONYM)
NOBODY: Final = ""
"""The customer of an event whose texts were erased: not a name that an event can have."""


class _Start(msgspec.Struct, array_like=True, frozen=True):
    """The beginning of a counting part: enough to know whether the rest is wanted."""

    tenant: str
    metrics: list[str]
    metric_indexes: msgspec.Raw
    customer_indexes: msgspec.Raw
    micros: msgspec.Raw
    times_us: msgspec.Raw
    partitions: bytes


_decode_start = msgspec.msgpack.Decoder(_Start).decode


class TenantPart(NamedTuple):
    """One tenant's events of a record, not decoded yet. `metrics` are the names that occur in it."""

    tenant: str
    metrics: list[str]
    partitions: bytes
    """Of each event; so its length is the number of events."""
    first_sequence: int
    counting: bytes
    erasable: StoredPart

    @property
    def is_erased(self) -> bool:
        """Whether its texts (customers, keys, resources, meta) are gone."""
        return self.erasable.state not in _READABLE

    def decode(self, *, fold_only: bool) -> TenantEvents:
        """The events; of an erased part only what counts, for nobody. Raises RecordError."""
        texts = self.erasable.data
        if self.is_erased:
            fold_only = True
            texts = msgspec.msgpack.encode(([NOBODY] * len(self.partitions), (), (), ()))
        return decode_events(self.counting, texts, fold_only=fold_only)


def is_trimmed(record: StoredRecord) -> bool:
    """Whether retention dropped the record's events."""
    return record.envelope.record_type == RecordType.EVENTS and any(
        part.kind == PartKind.COUNTING and part.state != PartState.INTACT for part in record.parts
    )


def tenant_parts(record: StoredRecord) -> Iterator[TenantPart]:
    """The parts of an event record in log order; none of another record, or of a trimmed one. Raises RecordError."""
    if record.envelope.record_type != RecordType.EVENTS or is_trimmed(record):
        return
    counting = [part for part in record.parts if part.kind == PartKind.COUNTING]
    erasable = [part for part in record.parts if part.kind == PartKind.ERASABLE]
    sequence = record.sequence
    try:
        for part, texts in zip(counting, erasable, strict=True):
            start = _decode_start(part.data)
            yield TenantPart(
                start.tenant, start.metrics, start.partitions, sequence, part.data, texts
            )
            sequence += len(start.partitions)
    except (msgspec.MsgspecError, ValueError) as error:
        raise RecordError(f"an event group can't be read: {error}") from error
