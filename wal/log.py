"""The log's port: what every log must do, as types and one Protocol. Its docstrings are the contract.

Rules it keeps: appending is all or nothing, and durable when it returns; what is read back is what was
appended, or an error names the record; a position never moves. It must not know what the parts mean: it
stores bytes. `tests/contract/test_log_contract.py` runs the same tests over every implementation.

Positions. A record has a *sequence* and an *item count*; the next record's sequence is at least
sequence + item count. Positions need not be dense: a replicated log may leave holes, so readers go on
from `StoredRecord.next_sequence` and never count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol


class PartState(IntEnum):
    """What is stored for a part. Only INTACT bytes match the digest in the envelope."""

    INTACT = 0
    TOMBSTONE = 1
    """Erased: no bytes. An erase record names the digest."""
    PSEUDONYM = 2
    """Replaced by a pseudonymised copy. An erase record names both digests."""
    TRIMMED = 3
    """Dropped by retention: no bytes. The digest in the envelope stays."""


class DraftPart(NamedTuple):
    """One part of a record to append: `kind` is the writer's own number (0..255), `data` its bytes."""

    kind: int
    data: bytes


class Draft(NamedTuple):
    """A record to append; the log gives it its sequence and chains it.

    `record_type` 0..255, `item_count` >= 1 (how many positions it takes), `received_at_us` in
    microseconds since 1970 UTC (may step back with the clock), `parts` at most 65,535.
    """

    record_type: int
    item_count: int
    received_at_us: int
    parts: tuple[DraftPart, ...]


class PartHeader(NamedTuple):
    """A part as the chain sees it: kind, blake2b-256 of its original bytes, their length."""

    kind: int
    digest: bytes
    length: int


class Envelope(NamedTuple):
    """The chained head of a record. Byte layout: docs/LOG_FORMAT.md."""

    version: int
    record_type: int
    stream: int
    epoch: int
    sequence: int
    item_count: int
    received_at_us: int
    previous_hash: bytes
    parts: tuple[PartHeader, ...]


class StoredPart(NamedTuple):
    """What is stored of a part now."""

    kind: int
    state: int
    data: bytes


class StoredRecord(NamedTuple):
    """A record read back and verified: its CRC, its key, and the digests of its intact parts."""

    envelope: Envelope
    parts: tuple[StoredPart, ...]
    hash: bytes
    """blake2b-256 of the envelope: the next record's `previous_hash`."""

    @property
    def sequence(self) -> int:
        """The position of the record's first item."""
        return self.envelope.sequence

    @property
    def next_sequence(self) -> int:
        """The first position after the record's items."""
        return self.envelope.sequence + self.envelope.item_count


class Replacement(NamedTuple):
    """Other stored parts for the record at `sequence`: one per entry of its part table, of the same kinds."""

    sequence: int
    parts: tuple[StoredPart, ...]


class Head(NamedTuple):
    """Where the log ends: the next position to be given, and the hash of the last record."""

    next_sequence: int
    hash: bytes
    stream: int
    epoch: int


class LogError(Exception):
    """Base of what a log can raise. `str(error)` says what to do next."""


class LogFull(LogError):
    """No space on the disk or in the map: nothing was appended, reading works, a later append may succeed."""


class LogWriteFailed(LogError):
    """The disk refused: nothing was appended; the log is usable and a later append may succeed."""


class LogStateUnknown(LogError):
    """Whether the append is on disk cannot be known: end the process, recover, let dedupe absorb the retry."""


class LogDamaged(LogError):
    """A record is not what was appended. `sequence` names it (None: the file itself cannot be read)."""

    def __init__(self, message: str, sequence: int | None = None) -> None:
        super().__init__(message)
        self.sequence = sequence


class LogLocked(LogError):
    """Another process has the directory."""


class Log(Protocol):
    """One stream of records. Not thread-safe for appends: one writer; reading goes on beside it."""

    def append(self, drafts: Sequence[Draft]) -> tuple[Envelope, ...]:
        """Append all drafts in one durable commit and return their envelopes, in order.

        Blocks for the disk: call it in a thread. When it returns, the records survive a power loss.
        Raises LogFull, LogWriteFailed (nothing was appended) or LogStateUnknown (end the process).
        """
        ...

    def read(self, from_sequence: int, *, bytes_max: int) -> list[StoredRecord]:
        """Records in order, from the one that holds `from_sequence` (else the next one after it).

        Returns at least one record if there is one, and stops after `bytes_max` stored bytes; an empty
        list means the end. Every record returned is verified by itself and chained to the one before it
        in the list. Raises LogDamaged, and LogStateUnknown once an append has raised it.
        """
        ...

    def head(self) -> Head:
        """The end of what is durable."""
        ...

    def trim(self, before_sequence: int, record_type: int, *, records_max: int) -> int:
        """Drop the bodies of records of one type that end at or before `before_sequence`.

        Their envelopes stay, so the chain still holds; their parts become TRIMMED. Durable on return.
        Returns how many records were trimmed now (0: none are left to trim), at most `records_max`.
        """
        ...

    def replace(self, replacements: Sequence[Replacement]) -> None:
        """Store other parts under the envelopes that are there: all of them in one durable commit, or none.

        A part is INTACT with its original bytes, a PSEUDONYM, or without bytes (TOMBSTONE, TRIMMED): anything else
        is a bug. Replacing twice is harmless. Positions, hashes and the chain stay. Blocks for the disk and is an
        append's neighbour: one writer at a time. Raises what `append` raises.
        """
        ...

    def raise_epoch(self, draft: Draft, epoch: int) -> Envelope:
        """Append one record that begins a later epoch; all that follow are of it. Raises what `append` raises."""
        ...

    def compact_at_next_open(self) -> None:
        """Ask that bytes which were replaced or dropped be gone from the disk's file after the next opening."""
        ...

    def size_bytes(self) -> int:
        """Bytes that the log takes on its disk."""
        ...

    def close(self) -> None:
        """Release the directory. Appending or reading afterwards is a bug."""
        ...


def scan(log: Log, from_sequence: int, *, bytes_max: int = 4 << 20) -> Iterator[StoredRecord]:
    """Every record from `from_sequence` to the end, in pages of `bytes_max` stored bytes.

    The chain is verified within pages by the log and across pages here. Raises LogDamaged.
    """
    previous: StoredRecord | None = None
    while page := log.read(from_sequence, bytes_max=bytes_max):
        for record in page:
            if previous is not None and record.envelope.previous_hash != previous.hash:
                message = (
                    f"record {record.sequence} does not follow record {previous.sequence}: "
                    "one was changed, lost or inserted. Restore from a backup."
                )
                raise LogDamaged(message, record.sequence)
            yield record
            previous = record
        from_sequence = page[-1].next_sequence
