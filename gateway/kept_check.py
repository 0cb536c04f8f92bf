"""What was taken from a log must be vouched for: erased parts by erase records, dropped bodies by a checkpoint.

Rules it keeps: a part that is not as it was appended is "erased" only if an erase record names its digest and its
copy's, "dropped" only if a committed checkpoint that is whole stands in for it; anything else is damage. As those
records come after what they speak of, the answer is known at the end. It must not know how a log is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

from engine.core.keeping import CheckpointChange, EraseChange
from engine.core.records import RecordError, RecordType, decode_control
from wal.envelope import digest_of
from wal.log import PartState, StoredRecord

_ERASED = (PartState.TOMBSTONE, PartState.PSEUDONYM)
_CHECKED = (RecordType.ERASE, RecordType.CHECKPOINT)


class Unvouched(NamedTuple):
    """A record of which something was taken, and nothing says so."""

    sequence: int
    message: str


@dataclass
class _Sections:
    count: int = 0
    digest: Any = field(default_factory=lambda: blake2b(digest_size=32))


class Vouchers:
    """What a walk over the log has seen so far. Give it every whole record, in order; then ask `unvouched`."""

    def __init__(self) -> None:
        self._erased: dict[tuple[int, int], tuple[bytes, bytes]] = {}
        """(sequence, part) to the digests of original and copy."""
        self._named: set[tuple[int, int, bytes, bytes]] = set()
        self._dropped_to: dict[int, int] = {}
        """Sequence of each dropped event group to its end; pruned by commits."""
        self._sections: dict[str, _Sections] = {}
        self._found: list[Unvouched] = []

    def take(self, record: StoredRecord) -> None:
        """Look at one record."""
        sequence, record_type = record.envelope.sequence, record.envelope.record_type
        states = [part.state for part in record.parts]
        for index, part in enumerate(record.parts):
            if part.state in _ERASED:
                original = record.envelope.parts[index].digest
                self._erased[sequence, index] = (original, digest_of(part.data))
        if PartState.TRIMMED in states:
            if record_type == RecordType.EVENTS:
                self._dropped_to[sequence] = record.next_sequence
            elif (
                record_type != RecordType.CHECKPOINT
            ):  # sections of no committed checkpoint stand in for nothing
                message = f"record {sequence} was dropped, and retention never drops such a record"
                self._found.append(Unvouched(sequence, message))
        elif record_type in _CHECKED and PartState.TOMBSTONE not in states:
            self._take_keeping(record)

    def _take_keeping(self, record: StoredRecord) -> None:
        try:
            control = decode_control(record.envelope.record_type, record.parts[0].data)
        except (RecordError, IndexError):
            return  # who reads its meaning says so
        if isinstance(control, EraseChange):
            for part in control.parts:
                self._named.add((part.sequence, part.part, part.original, part.copy))
        elif isinstance(control, CheckpointChange):
            sections = self._sections.setdefault(control.checkpoint_id, _Sections())
            if control.action == "section":
                sections.count += 1
                sections.digest.update(control.data)
            elif (sections.count, sections.digest.digest()) == (control.sections, control.digest):
                for sequence, end in list(self._dropped_to.items()):
                    if end <= control.position:
                        del self._dropped_to[sequence]

    def unvouched(self) -> list[Unvouched]:
        """At the end: every record of which something was taken without a word, in order."""
        found = list(self._found)
        for (sequence, index), (original, copy) in self._erased.items():
            if (sequence, index, original, copy) not in self._named:
                message = (
                    f"part {index} of record {sequence} was replaced, and no erase record names it: it was changed. "
                    "Keep a copy, restore from a backup."
                )
                found.append(Unvouched(sequence, message))
        for sequence in self._dropped_to:
            message = (
                f"the events of record {sequence} were dropped, and no whole checkpoint stands in for them: "
                "they are lost. Keep a copy, restore from a backup or from the archive."
            )
            found.append(Unvouched(sequence, message))
        return sorted(found)
