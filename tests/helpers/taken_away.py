"""What the raw log says was taken from it: customers erased, bodies dropped. For the recount, by the slow and obvious way.

Rules it keeps: it reads `docs/LOG_FORMAT.md` literally and shares no code with the engine's folds; the bodies of dropped
groups come from the archives, never from the checkpoint that the engine counts from. It must not know how totals are made.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.core.keeping import CheckpointChange, EraseChange
from engine.core.records import RecordType, decode_control
from wal.archive import ArchiveStore
from wal.log import Log, PartState, StoredRecord, scan


@dataclass
class ErasureSeen:
    """An erasure, from its `begin` on."""

    sequence: int
    tenant: str
    names: dict[str, str] = field(default_factory=dict)
    """Name to pseudonym; empty once they were forgotten."""
    has_ended: bool = False


class TakenAway:
    """A first walk over the whole log, and all archives."""

    def __init__(self, log: Log, archives: ArchiveStore | None) -> None:
        self.erasures: dict[str, ErasureSeen] = {}
        self.commits: list[CheckpointChange] = []
        self._bodies: dict[int, StoredRecord] = {}
        for name in archives.names() if archives is not None else ():
            for record in archives.read(name) if archives is not None else ():
                self._bodies[record.sequence] = record
        for record in scan(log, 0):
            kind = record.envelope.record_type
            if kind in (RecordType.ERASE, RecordType.CHECKPOINT) and not is_dropped(record):
                self._hear(decode_control(kind, record.parts[0].data), record.sequence)

    def _hear(self, control: object, sequence: int) -> None:
        if isinstance(control, EraseChange):
            if control.action == "begin":
                seen = ErasureSeen(sequence, control.tenant_id)
                self.erasures.setdefault(control.erasure_id, seen).names.update(control.names)
            elif control.action == "end":
                self.erasures[control.erasure_id].has_ended = True
        elif isinstance(control, CheckpointChange) and control.action == "commit":
            self.commits.append(control)

    def known_as(self, tenant: str, customer: str, sequence: int) -> str:
        """Who a customer named in a record at a position is in the end: each `begin` after it renames."""
        for erasure in self.erasures.values():
            if erasure.tenant == tenant and sequence < erasure.sequence:
                customer = erasure.names.get(customer, customer)
        return customer

    def whole(self, record: StoredRecord) -> StoredRecord:
        """An event group with its bodies: its own, or those of the archive if retention dropped them."""
        if not is_dropped(record):
            return record
        position = record.next_sequence
        assert any(position <= commit.position for commit in self.commits), (
            f"record {record.sequence} was dropped and no checkpoint stands in for it"
        )
        archived = self._bodies.get(record.sequence)
        assert archived is not None, f"record {record.sequence} was dropped and is in no archive"
        assert archived.envelope == record.envelope, "an archive holds what the log held"
        return archived

    def horizon_us(self) -> int | None:
        """Before it everything may be dropped; None: no checkpoint was committed."""
        return self.commits[-1].horizon_us if self.commits else None


def is_dropped(record: StoredRecord) -> bool:
    """Whether retention took the record's bodies."""
    return any(part.state == PartState.TRIMMED for part in record.parts)
