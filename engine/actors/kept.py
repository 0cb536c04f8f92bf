"""What a fold must know of the log's later records before it meets parts that were replaced or dropped.

Rules it keeps: while an erasure is under way, its customers go by their pseudonyms in all of the log before its
`begin`, whether a part was replaced already or not; where retention dropped bodies, the newest committed checkpoint
stands in for them, whole or not at all. It blocks for the disk. It must not know what the state is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

from engine.core.erasing import Aliases, erased_control
from engine.core.keeping import CheckpointChange, EraseChange
from engine.core.records import RecordError, RecordType, TenantEvents, decode_control
from wal.log import Log, LogDamaged, PartState, StoredRecord

_PAGE_BYTES = 4 << 20
_KEEPING = (RecordType.ERASE, RecordType.CHECKPOINT)


class Survey(NamedTuple):
    """What the log says from a position on."""

    aliases: Aliases
    checkpoint: CheckpointChange | None
    """The newest committed one."""
    erasures: frozenset[str] = frozenset()
    """Whose names are in `aliases`."""


NOTHING_KNOWN = Survey(Aliases(), None)


def is_touched(record: StoredRecord) -> bool:
    """Whether a part of the record was erased, pseudonymised or dropped."""
    return any(part.state != PartState.INTACT for part in record.parts)


def is_dropped(record: StoredRecord) -> bool:
    """Whether retention has dropped the record's bodies."""
    return any(part.state == PartState.TRIMMED for part in record.parts)


def survey(log: Log, from_position: int) -> Survey:
    """Read the log from a position to its end for erasures under way and checkpoints. Raises LogDamaged."""
    aliases, checkpoint = Aliases(), None
    erasures: set[str] = set()
    for record in _records(log, from_position):
        if record.envelope.record_type not in _KEEPING or is_dropped(record):
            continue
        control = _control(record)
        if isinstance(control, EraseChange) and control.action == "begin":
            if control.names:
                aliases.add(control.tenant_id, control.names, record.sequence)
                erasures.add(control.erasure_id)
        elif isinstance(control, CheckpointChange) and control.action == "commit":
            checkpoint = control
    return Survey(aliases, checkpoint, frozenset(erasures))


def erasures_since(log: Log, position: int) -> tuple[frozenset[str], int]:
    """The erasures that recorded a step of theirs from a position on, and the log's end. Raises LogDamaged."""
    found: set[str] = set()
    for record in _records(log, position):
        position = record.next_sequence
        if record.envelope.record_type == RecordType.ERASE and not is_dropped(record):
            control = _control(record)
            assert isinstance(control, EraseChange), "as its type says"
            found.add(control.erasure_id)
    return frozenset(found), position


def checkpoint_sections(log: Log, commit: CheckpointChange) -> Iterator[tuple[int, bytes]]:
    """(section id, bytes) of a committed checkpoint, in order. Raises LogDamaged if a piece is not there."""
    section_id, pieces = -1, list[bytes]()
    found, digest = 0, blake2b(digest_size=32)
    for record in _records(log, commit.first_sequence):
        if found == commit.sections:
            break
        if record.envelope.record_type != RecordType.CHECKPOINT or is_dropped(record):
            continue
        piece = _control(record)
        assert isinstance(piece, CheckpointChange)
        if piece.action != "section" or piece.checkpoint_id != commit.checkpoint_id:
            continue
        found += 1
        digest.update(piece.data)
        if piece.section_id != section_id:
            if pieces:
                yield section_id, b"".join(pieces)
            section_id, pieces = piece.section_id, []
        pieces.append(piece.data)
    if found != commit.sections or digest.digest() != commit.digest:
        raise LogDamaged(
            f"the checkpoint at position {commit.position} is not whole, and retention has dropped the events before "
            "it. Restore from a backup.",
            commit.first_sequence,
        )
    if pieces:
        yield section_id, b"".join(pieces)


def with_aliases(events: TenantEvents, aliases: Aliases, sequence: int) -> TenantEvents:
    """The events of a record at a position with pseudonyms in the place of names."""
    names = aliases.at(events.tenant, sequence) if aliases else {}
    if not names:
        return events
    return events._replace(customers=[names.get(name, name) for name in events.customers])


def control_bytes(record: StoredRecord, aliases: Aliases) -> bytes:
    """A control record's part with pseudonyms in the place of names. Raises RecordError."""
    data = record.parts[0].data
    for tenant in aliases.tenants():
        names = aliases.at(tenant, record.sequence)
        if names:
            data = erased_control(record.envelope.record_type, data, tenant, names) or data
    return data


def _records(log: Log, position: int) -> Iterator[StoredRecord]:
    """Every record from a position on, as far as the log reached when it was asked last."""
    while page := log.read(position, bytes_max=_PAGE_BYTES):
        yield from page
        position = page[-1].next_sequence


def _control(record: StoredRecord) -> object:
    try:
        return decode_control(record.envelope.record_type, record.parts[0].data)
    except (RecordError, IndexError) as error:
        raise LogDamaged(
            f"record {record.sequence} can't be used: {error}", record.sequence
        ) from error
