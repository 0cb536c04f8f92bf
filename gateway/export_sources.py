"""Where exports and explanations come from: the directory of a stopped server, or a running server's HTTP.

Rules it keeps: both ways give the same rows; a directory is locked while it is read, and nothing is written to it; at
most a page is in memory (of counters and adjustments: the state). It must not know how rows are shown or written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Literal, NamedTuple, Protocol

import msgspec

from engine.actors.as_of import Asked, Prefix, TimeIndex
from engine.actors.event_scan import EventScan, ScanFilter, Stretch
from engine.actors.prefix_fold import PrefixFold, Wanted
from engine.actors.recovery import read_genesis
from engine.config import Settings
from engine.core.audit import subject_of
from engine.core.audit_content import after_of
from engine.core.explain import Explainer
from engine.core.partitions import partition_of
from engine.core.records import RecordError, RecordType, decode_control
from engine.core.times import INSTANT_US_END, INSTANT_US_MIN
from engine.errors import EngineError, StartRefused
from engine.limits import PARTITIONS
from gateway.data_directory import DataDirectory
from gateway.explain import UsageExplained, explained
from gateway.export_rows import (
    ADJUSTMENT_COLUMNS,
    AUDIT_COLUMNS,
    COUNTER_COLUMNS,
    EVENT_COLUMNS,
    Column,
    Row,
    event_row,
)
from gateway.export_state import StateFilter, adjustment_row, counter_slices
from gateway.system import SystemClock
from wal.lmdb_log import LmdbLog
from wal.log import Log, LogDamaged, PartState, StoredRecord
from wal.snapshot import FileSnapshots, SnapshotError

What = Literal["events", "counters", "adjustments", "audit"]
COLUMNS: Final[dict[What, tuple[Column, ...]]] = {
    "events": EVENT_COLUMNS,
    "counters": COUNTER_COLUMNS,
    "adjustments": ADJUSTMENT_COLUMNS,
    "audit": AUDIT_COLUMNS,
}
_PAGE_BYTES: Final = 1 << 20


class ExportFilter(NamedTuple):
    """What is wanted; None: all. `since_us <= time < until_us`.

    The time is an event's own, a counter's period start, an adjustment's or an audit entry's record.
    """

    tenant: str | None = None
    since_us: int | None = None
    until_us: int | None = None

    def has_time(self, us: int) -> bool:
        """Whether an instant is in the range."""
        return (self.since_us is None or us >= self.since_us) and (
            self.until_us is None or us < self.until_us
        )


Progress = Callable[[int, int | None], None]
"""Told how much is done and how much there is (None: not known): log positions, or rows."""


class Source(Protocol):
    """What `export` and `explain` ask. Every method may raise EngineError or LogError, one line each."""

    def rows(self, what: What, wanted: ExportFilter, progress: Progress) -> Iterator[list[Row]]:
        """The rows of a kind, in its COLUMNS, some at a time."""
        ...

    def explain(
        self, series: tuple[str, str, str], day_us: int, asked: Asked | None
    ) -> UsageExplained:
        """How a total of (tenant, metric, customer) came about in the period that begins on a UTC day."""
        ...

    def notes(self) -> list[str]:
        """What could not be given, in words; known when all rows were read."""
        ...


@contextmanager
def open_directory(settings: Settings) -> Iterator[Source]:
    """The log of a stopped server. Raises StartRefused when there is none, or a server has it."""
    directory = DataDirectory(settings.data_path)
    if not (directory.log_path / "data.mdb").exists():
        raise StartRefused(
            f"there is no log in {directory.path}: name the data directory with --data-dir, or a server with --url"
        )
    directory.lock()
    try:
        log = LmdbLog(directory.log_path, read_only=True)
        try:
            yield DirectorySource(log, directory)
        finally:
            log.close()
    finally:
        directory.release()


class DirectorySource:
    """A log that nobody else has open."""

    def __init__(self, log: Log, directory: DataDirectory) -> None:
        self._log = log
        self._directory = directory
        self._log_id = read_genesis(log).log_id
        self._end = log.head().next_sequence
        self._clock = SystemClock()
        self._notes: list[str] = []

    def rows(self, what: What, wanted: ExportFilter, progress: Progress) -> Iterator[list[Row]]:
        """See Source."""
        match what:
            case "events":
                return self._events(wanted, progress)
            case "counters":
                return self._counters(wanted, progress)
            case "adjustments":
                return self._adjustments(wanted, progress)
            case "audit":
                return self._audit(wanted, progress)

    def notes(self) -> list[str]:
        """See Source."""
        return self._notes

    def _events(self, wanted: ExportFilter, progress: Progress) -> Iterator[list[Row]]:
        scan_filter = ScanFilter(
            wanted.tenant,
            start_us=INSTANT_US_MIN if wanted.since_us is None else wanted.since_us,
            end_us=INSTANT_US_END if wanted.until_us is None else wanted.until_us,
        )
        scan = EventScan(self._log, [Stretch(0, self._end)], scan_filter)
        while (page := scan.next_page()) is not None:
            progress(scan.position, self._end)
            yield [event_row(event) for event in page]
        if scan.erased_events:
            self._notes.append(f"{scan.erased_events:,} erased events are left out")
        if scan.trimmed_positions:
            self._notes.append(
                f"{scan.trimmed_positions:,} events that retention dropped are left out: they are in its archives"
            )

    def _folded(self, progress: Progress) -> PrefixFold:
        fold = PrefixFold(self._log, self._end)
        try:
            snapshots = FileSnapshots(self._directory.snapshots_path)
            fold.start_from(snapshots, self._log_id, self._log.head().epoch)
        except SnapshotError as error:
            raise EngineError(str(error)) from error
        while fold.run_slice():
            progress(fold.position, self._end)
        return fold

    def _counters(self, wanted: ExportFilter, progress: Progress) -> Iterator[list[Row]]:
        state = self._folded(progress).state
        asked = StateFilter(wanted.tenant, None, wanted.since_us, wanted.until_us)
        for partition in range(PARTITIONS):
            yield from counter_slices(state, partition, asked, self._clock.now_us())

    def _adjustments(self, wanted: ExportFilter, progress: Progress) -> Iterator[list[Row]]:
        state = self._folded(progress).state
        found = [
            one
            for of in state.adjustments.values()
            for one in of.by_id.values()
            if wanted.tenant in (None, one.tenant) and wanted.has_time(one.created_at_us)
        ]
        found.sort(key=lambda one: one.sequence)
        yield [adjustment_row(one) for one in found]

    def _audit(self, wanted: ExportFilter, progress: Progress) -> Iterator[list[Row]]:
        position = 0
        while page := self._log.read(position, bytes_max=_PAGE_BYTES):
            rows = [_audit_row(record) for record in page]
            yield [
                row
                for row in rows
                if row is not None and wanted.tenant in (None, row[2]) and wanted.has_time(row[1])
            ]
            position = page[-1].next_sequence
            progress(position, self._end)

    def explain(
        self, series: tuple[str, str, str], day_us: int, asked: Asked | None
    ) -> UsageExplained:
        """See Source."""
        prefix = self._prefix(asked)
        tenant, metric, customer_ref = series
        explainer = Explainer(series, day_us)
        fold = PrefixFold(
            self._log,
            prefix.end,
            partitions=[partition_of(tenant, customer_ref)],
            wanted=Wanted(tenant, customer_ref, metric, day_us),
            observer=explainer,
        )
        while fold.run_slice():
            pass
        return explained(explainer.explanation(prefix.at_us), prefix, as_string=False)

    def _prefix(self, asked: Asked | None) -> Prefix:
        now_us = self._clock.now_us()
        if asked is None:
            return Prefix(self._end, now_us)
        if asked.position is not None:
            if asked.position >= self._end:
                raise EngineError(f"the log ends at position {self._end - 1}")
            [record, *_] = self._log.read(asked.position, bytes_max=1)
            return Prefix(asked.position + 1, record.envelope.received_at_us)
        assert asked.at_us is not None, "a position or an instant"
        search = TimeIndex(self._log).search(asked.at_us, self._end)
        while search.run_slice():
            pass
        if search.found == 0:
            raise EngineError("nothing was known then: the log begins later")
        return Prefix(search.found, asked.at_us)


def _audit_row(record: StoredRecord) -> Row | None:
    envelope = record.envelope
    if envelope.record_type == RecordType.EVENTS or record.parts[0].state != PartState.INTACT:
        return None
    try:
        control = decode_control(envelope.record_type, record.parts[0].data)
    except RecordError as error:
        message = f"record {record.sequence} can't be used: {error}"
        raise LogDamaged(message, record.sequence) from error
    subject = subject_of(control)
    if subject is None:
        return None
    after = after_of(control)
    encode = partial(msgspec.json.encode, order="sorted")
    content: Any = None if after is None else encode(after).decode()
    return (
        envelope.sequence,
        envelope.received_at_us,
        subject.tenant,
        subject.actor,
        subject.action,
        encode(subject.targets).decode(),
        subject.request_id,
        content,
    )
