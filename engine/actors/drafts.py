"""A group as what the log appends: control records first, then its events, a counting and an erasable part per tenant.

Rules it keeps: what is encoded is what was accepted (checked under STRIPEMETER_VERIFY); it runs in a thread, on what is
nobody else's by then. It must not know when a group is committed, nor who waits for it.
"""

from __future__ import annotations

import msgspec

from engine.actors.group import Group
from engine.core.records import (
    ControlRecord,
    OperationChange,
    PartKind,
    RecordType,
    TenantEvents,
    decode_events,
    encode_control,
    encode_counting,
    encode_erasable,
)
from wal.log import Draft, DraftPart


def drafts_of(group: Group, now_us: int, *, verify: bool) -> list[Draft]:
    """All of a group, which is sealed by it. `now_us`: when it is received, for the log."""
    drafts = [control_draft(record, now_us) for record in group.controls]
    parts = group.seal(now_us)
    if parts:
        encoded: list[DraftPart] = []
        for part in parts:
            counting, erasable = encode_counting(part), encode_erasable(part)
            if verify:
                assert_reads_back(part, counting, erasable)
            encoded.append(DraftPart(PartKind.COUNTING, counting))
            encoded.append(DraftPart(PartKind.ERASABLE, erasable))
        drafts.append(Draft(RecordType.EVENTS, group.events, now_us, tuple(encoded)))
    return drafts


def control_draft(record: ControlRecord, now_us: int) -> Draft:
    """A control record to append: one part, and a second one for the rows of an operation."""
    rows = record.rows if isinstance(record, OperationChange) else b""
    if rows:
        record = msgspec.structs.replace(record, rows=b"")
    record_type, data = encode_control(record)
    parts = [DraftPart(PartKind.CONTROL, data)]
    if rows:
        parts.append(DraftPart(PartKind.ERASABLE, rows))
    return Draft(record_type, 1, now_us, tuple(parts))


def assert_reads_back(part: TenantEvents, counting: bytes, erasable: bytes) -> None:
    """What is about to be appended says what was accepted, column by column."""
    read = decode_events(counting, erasable)
    for name, sent, got in zip(part._fields, part, read, strict=True):
        same = list(sent) == list(got) if not isinstance(sent, str | dict) else sent == got
        assert same, f"column {name} of a group does not survive its encoding"
