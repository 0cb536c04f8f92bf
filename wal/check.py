"""The log's fsck, as a library call: reads every record and says which is wrong and how.

Rules it keeps: it trusts nothing but the bytes; it goes on after a damaged record, so that one report names them
all; it never writes. It must not know what the parts mean: who does hands in `inspect`.

What the bytes alone can't show: a cut tail (the last records are simply not there) and an edit of the very last
envelope with its checksum made to match (no later record holds its hash). An `anchor`, a position and its hash kept
outside the log, shows both up to where it was taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from wal.envelope import GENESIS_HASH, decode
from wal.log import Head, LogDamaged, PartState, StoredRecord

PROBLEMS_MAX = 1000
_PAGE_BYTES = 4 << 20
_ERASED = (PartState.TOMBSTONE, PartState.PSEUDONYM)


class RawLog(Protocol):
    """What `check_log` reads from: stored blobs, unverified."""

    def raw(self, from_key: int, *, bytes_max: int) -> list[tuple[int, bytes]]:
        """Blobs stored under `from_key` or later, in order, as (key, blob); at least one if there is one."""
        ...

    def record_count(self) -> int:
        """How many records the store says it holds."""
        ...


class Problem(NamedTuple):
    """One thing that is wrong: the record's sequence (None: the file itself) and what it is."""

    sequence: int | None
    message: str


class CheckReport(NamedTuple):
    """What `check_log` found. `problems` is cut at PROBLEMS_MAX."""

    records: int
    items: int
    stored_bytes: int
    parts_erased: int
    parts_trimmed: int
    next_sequence: int
    head_hash: bytes
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether every record is what was appended, in its place."""
        return not self.problems


def check_log(
    log: RawLog,
    progress: Callable[[int, int], None] | None = None,
    *,
    anchor: Head | None = None,
    inspect: Callable[[StoredRecord], str | None] | None = None,
) -> CheckReport:
    """Verify every record: CRC, layout, digests, place, and the chain from the first to the last.

    `progress(records, bytes)` is called after each page. `anchor` is a head that this log once had. `inspect` sees
    each record that is whole, in order, and may say what is wrong with it. Never raises for damage: it is in the
    report.
    """
    walk = _Walk(anchor, inspect)
    while len(walk.problems) < PROBLEMS_MAX:
        try:
            page = log.raw(walk.key + 1, bytes_max=_PAGE_BYTES)
        except LogDamaged as error:
            walk.problems.append(Problem(error.sequence, str(error)))
            break
        if not page:
            walk.end(log.record_count())
            break
        for key, blob in page:
            walk.take(key, blob)
        if progress is not None:
            progress(walk.records, walk.stored_bytes)
    return walk.report()


class _Walk:
    """What is known after the records taken so far."""

    def __init__(
        self, anchor: Head | None, inspect: Callable[[StoredRecord], str | None] | None
    ) -> None:
        self.problems: list[Problem] = []
        self.key = -1
        self.records = self.stored_bytes = 0
        self._items = self._erased = self._trimmed = 0
        self._anchor = anchor
        self._anchor_met = anchor is None or anchor.next_sequence == 0
        self._inspect = inspect
        self._previous: StoredRecord | None = None
        self._previous_damaged = False
        """Then the next record can't be held against its hash, nor the log's end against the anchor."""

    def take(self, key: int, blob: bytes) -> None:
        assert key > self.key, "a page's keys rise"
        previous_key, self.key = self.key, key
        self.records += 1
        self.stored_bytes += len(blob)
        try:
            record = decode(blob, key)
        except LogDamaged as error:
            self.problems.append(Problem(key, str(error)))
            self._previous_damaged = True
            return
        problem = self._misplaced(record, previous_key)
        if problem is None and self._inspect is not None:
            problem = self._inspect(record)
        if problem is not None:
            self.problems.append(Problem(key, problem))
        self._erased += sum(part.state in _ERASED for part in record.parts)
        self._trimmed += sum(part.state == PartState.TRIMMED for part in record.parts)
        self._items += record.envelope.item_count
        if self._anchor is not None:
            self._anchor_met |= self._anchor.hash in (record.hash, record.envelope.previous_hash)
        self._previous, self._previous_damaged = record, False

    def _misplaced(self, record: StoredRecord, previous_key: int) -> str | None:
        """What is wrong with a record's place, if anything is."""
        previous = self._previous
        if not self._previous_damaged:
            expected = previous.hash if previous else GENESIS_HASH
            if record.envelope.previous_hash != expected:
                before = f"record {previous_key}" if previous else "nothing"
                return (
                    f"record {record.sequence} does not follow {before}: a record between them was lost, "
                    "or one of them was changed or inserted"
                )
        if previous is None:
            return None
        if record.sequence < previous.next_sequence:
            return f"record {record.sequence} overlaps record {previous.sequence}"
        if record.envelope.stream != previous.envelope.stream:
            return f"record {record.sequence} is of stream {record.envelope.stream}, the one before is not"
        if record.envelope.epoch < previous.envelope.epoch:
            return f"record {record.sequence} is of epoch {record.envelope.epoch}, the one before of a later one"
        return None

    def end(self, record_count: int) -> None:
        """Hold what was seen against what the store and the anchor say of the whole."""
        if self.records != record_count:
            message = (
                f"{self.records} records were found, the log's file says it holds {record_count}"
            )
            self.problems.append(Problem(None, message))
        if self._anchor is not None and not self._anchor_met and not self._previous_damaged:
            message = (
                f"the log does not hold what it held when it ended at {self._anchor.next_sequence}: its last records "
                "were lost or changed"
            )
            self.problems.append(Problem(None, message))

    def report(self) -> CheckReport:
        last = self._previous
        return CheckReport(
            self.records,
            self._items,
            self.stored_bytes,
            self._erased,
            self._trimmed,
            last.next_sequence if last else 0,
            last.hash if last else GENESIS_HASH,
            tuple(self.problems[:PROBLEMS_MAX]),
        )
