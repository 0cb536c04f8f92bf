"""Reads the events of stretches of the log in log order, page by page: what exports are made of.

Rules it keeps: at most one page of the log is in memory; every event of the stretches that matches is given once, as
the log has it; what can't be given any more (erased, dropped by retention) is counted, not hidden. It blocks for the
disk: each page belongs into a worker thread. It must not know how events are written down.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from engine.actors.tenant_parts import TenantPart, is_trimmed, tenant_parts
from engine.core.extents import EventFilter, Extent
from engine.core.queries import ListedEvent
from engine.core.records import SOURCE_NAMES, RecordError
from engine.core.times import INSTANT_US_END, INSTANT_US_MIN
from wal.log import Log, LogDamaged, StoredRecord

PAGE_BYTES: Final = 256 << 10
"""Of the log, read at once: some 2,000 events, so that a thread holds the others up for milliseconds."""


class ScanFilter(NamedTuple):
    """Which events are wanted; None: all. `start_us <= ts < end_us`."""

    tenant: str | None = None
    metric: str | None = None
    customer_ref: str | None = None
    source: int | None = None
    start_us: int = INSTANT_US_MIN
    end_us: int = INSTANT_US_END


class Stretch(NamedTuple):
    """Log positions [first, end)."""

    first: int
    end: int


def stretches_of(extents: Sequence[Extent], wanted: EventFilter, end: int) -> list[Stretch]:
    """The stretches before `end` that may hold a wanted event, by what the index knows of each."""
    found: list[Stretch] = []
    for extent in extents:
        summary = extent.summary
        if not wanted.may_match(summary) or summary.from_position >= end:
            continue
        first, last = summary.from_position, min(end, summary.to_position)
        if found and found[-1].end == first:
            first = found.pop().first
        found.append(Stretch(first, last))
    return found


class EventScan:
    """One pass. Call `next_page` until it returns None."""

    def __init__(self, log: Log, stretches: Sequence[Stretch], wanted: ScanFilter) -> None:
        self._log = log
        self._stretches = stretches
        self._wanted = wanted
        self._next_stretch = 0
        self.position = stretches[0].first if stretches else 0
        """Everything wanted before it was given."""
        self.erased_events = 0
        """Events that counted and whose texts were erased: they are left out."""
        self.trimmed_positions = 0
        """Positions whose events retention dropped."""

    def next_page(self) -> list[ListedEvent] | None:
        """The next matches in log order, perhaps none; None at the end. Raises LogDamaged and what reading raises."""
        while self._next_stretch < len(self._stretches):
            stretch = self._stretches[self._next_stretch]
            self.position = max(self.position, stretch.first)
            if self.position < stretch.end:
                records = self._log.read(self.position, bytes_max=PAGE_BYTES)
                if records:
                    return self._page(records, stretch)
            self._next_stretch += 1
        return None

    def _page(self, records: Sequence[StoredRecord], stretch: Stretch) -> list[ListedEvent]:
        found: list[ListedEvent] = []
        for record in records:
            if record.sequence >= stretch.end:
                self.position = stretch.end
                break
            if is_trimmed(record):
                self.trimmed_positions += record.envelope.item_count
            try:
                for part in tenant_parts(record):
                    self._take(part, record.envelope.received_at_us, stretch, found)
            except RecordError as error:
                message = f"record {record.sequence} can't be used: {error}"
                raise LogDamaged(message, record.sequence) from error
            # A stretch may end within a record; the next one then begins there.
            self.position = min(record.next_sequence, stretch.end)
        return found

    def _take(
        self, part: TenantPart, received_at_us: int, stretch: Stretch, found: list[ListedEvent]
    ) -> None:
        wanted = self._wanted
        if wanted.tenant not in (None, part.tenant):
            return
        if wanted.metric is not None and wanted.metric not in part.metrics:
            return
        if part.is_erased:
            self.erased_events += len(part.partitions)
            return
        events = part.decode(fold_only=False)
        first = part.first_sequence
        for index, customer in enumerate(events.customers):
            sent_ts_us = events.times_us[index]
            ts_us = received_at_us if sent_ts_us is None else sent_ts_us
            source = events.sources[index]
            if (
                wanted.customer_ref not in (None, customer)
                or wanted.metric not in (None, events.metrics[index])
                or wanted.source not in (None, source)
                or not wanted.start_us <= ts_us < wanted.end_us
                or not stretch.first <= first + index < stretch.end
            ):
                continue
            found.append(
                ListedEvent(
                    id=events.key_texts[index],
                    tenant=events.tenant,
                    metric=events.metrics[index],
                    customer_ref=customer,
                    resource_id=events.resources[index],
                    quantity_micros=events.micros[index],
                    ts_us=ts_us,
                    source=SOURCE_NAMES[source],
                    meta=events.metas[index],
                    received_at_us=received_at_us,
                    sequence=first + index,
                )
            )
