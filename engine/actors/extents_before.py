"""The usage index as it was when the log ended at a position: what the listing and the history of the past read.

Rules it keeps: an extent that ends before the position is used as it is; the one that straddles it is built anew from
the log, of the events before the position; later ones are left out. So a question about the past costs one extent's
reading more than one about now. It must not know what is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from engine.actors.event_records import batches_of
from engine.actors.tenant_parts import is_trimmed
from engine.core.extents import Extent, OpenExtent
from engine.core.segments import Batch, build
from engine.errors import Gone
from engine.ports import RunBlocking
from wal.log import Log

_PAGE_BYTES: Final = 1 << 20


async def extents_before(
    extents: Sequence[Extent], end: int, log: Log, run_blocking: RunBlocking
) -> list[Extent]:
    """The extents of the log's prefix up to `end`. Raises Gone, RecordError and what reading raises."""
    found: list[Extent] = []
    for extent in extents:
        summary = extent.summary
        if summary.to_position <= end:
            found.append(extent)
        elif summary.from_position < end:
            cut = _Cut(log, summary.from_position, end)
            while await run_blocking(cut.run_slice):
                await trio.lowlevel.checkpoint()
            if cut.batches:
                segment = await run_blocking(
                    partial(build, cut.batches, summary.from_position, end)
                )
                found.append(OpenExtent(segment))
    return found


class _Cut:
    """Reads the events of a stretch of the log."""

    def __init__(self, log: Log, position: int, end: int) -> None:
        self._log = log
        self._first = self._position = position
        self._end = end
        self.batches: list[Batch] = []

    def run_slice(self) -> bool:
        """Read a page; True: call again."""
        page = self._log.read(self._position, bytes_max=_PAGE_BYTES)
        for record in page:
            if record.sequence >= self._end:
                return False
            if is_trimmed(record):
                raise Gone(
                    f"retention has dropped the events at position {record.sequence}: ask for a later time"
                )
            for batch in batches_of(record):
                # A stretch may begin and end within a record.
                first = max(0, self._first - batch.first_sequence)
                last = min(len(batch.metrics), self._end - batch.first_sequence)
                if first < last:
                    self.batches.append(_cut(batch, first, last))
            self._position = record.next_sequence
        return bool(page) and self._position < self._end


def _cut(batch: Batch, first: int, last: int) -> Batch:
    if (first, last) == (0, len(batch.metrics)):
        return batch
    rows = slice(first, last)
    return batch._replace(
        metrics=batch.metrics[rows],
        customers=batch.customers[rows],
        micros=batch.micros[rows],
        times_us=batch.times_us[rows],
        sources=batch.sources[rows],
        first_sequence=batch.first_sequence + first,
    )
