"""Exports over HTTP: events and counters as CSV or JSON lines, made while they are sent.

Rules it keeps: what is sent was acknowledged before the request; a page of the log is read and written in a worker
thread, then sent; nothing else of the answer is in memory. It must not know which parameters a client may give.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from typing import Final

from engine.actors.event_scan import EventScan, ScanFilter, stretches_of
from engine.core.extents import EventFilter
from engine.core.times import format_instant
from engine.errors import Unavailable
from gateway.export_rows import (
    EVENT_COLUMNS,
    Column,
    Row,
    csv_lines,
    event_row,
    header_line,
    json_lines,
)
from gateway.routes import Answer, Call

CONTENT_TYPES: Final = {
    "csv": "text/csv; charset=utf-8; header=present",
    "jsonl": "application/x-ndjson",
}
FORMATS: Final = ("json", *CONTENT_TYPES)
POSITION_HEADER: Final = "x-stripemeter-position"
"""The last log position that an export looked at."""
DROPPED_HEADER: Final = "x-stripemeter-dropped-before"
"""Retention has dropped events before this instant, which the stream may lack. Absent: it lacks none."""
Write = Callable[[Iterable[Row]], bytes]


def writer_of(
    format_name: str, columns: Sequence[Column], *, as_string: bool
) -> tuple[bytes, Write]:
    """(what a file begins with, how rows are written)."""
    if format_name == "csv":
        return header_line(columns), partial(csv_lines, columns)
    return b"", partial(json_lines, columns, as_string=as_string)


def file_answer(call: Call, name: str, pieces: AsyncIterator[bytes], position: int) -> Answer:
    """A stream as a file's download. Raises Unavailable when too many run."""
    format_name = call.query["format"]
    return Answer(
        call.gateway.streams.start(pieces),
        content_type=CONTENT_TYPES[format_name],
        headers=(
            ("content-disposition", f'attachment; filename="{name}.{format_name}"'),
            (POSITION_HEADER, str(position)),
        ),
    )


async def stream_events(call: Call, wanted: EventFilter, end: int | None) -> Answer:
    """The events before the position `end` (None: all that is acknowledged) that match, in log order.

    Raises Unavailable when the index is not up to date, or too many exports run.
    """
    meter = call.gateway.meter
    if end is None:
        end = meter.started.writer.published_sequence
    extents = await meter.started.indexer.extents()
    stretches = stretches_of(extents, wanted, end)
    scan = EventScan(meter.log, stretches, ScanFilter(*wanted))
    begin, write = writer_of(call.query["format"], EVENT_COLUMNS, as_string=call.numbers_as_strings)
    kept_from = meter.registry.kept_from

    async def pieces() -> AsyncIterator[bytes]:
        yield begin
        while (piece := await meter.run_blocking(partial(page_of, scan, write))) is not None:
            if scan.trimmed_positions and meter.registry.kept_from != kept_from:
                # The head said what is missing, and more is now.
                raise Unavailable("retention dropped events meanwhile: ask again")
            yield piece

    answer = file_answer(call, "events", pieces(), end - 1)
    dropped = dropped_headers(meter.registry.dropped_before(wanted.start_us))
    return answer._replace(headers=(*answer.headers, *dropped))


def dropped_headers(dropped_before_us: int | None) -> tuple[tuple[str, str], ...]:
    """The header that says what an answer lacks; none if it lacks nothing."""
    if dropped_before_us is None:
        return ()
    return ((DROPPED_HEADER, format_instant(dropped_before_us)),)


def page_of(scan: EventScan, write: Write) -> bytes | None:
    """In a thread: the next page's lines, perhaps none; None at the end."""
    events = scan.next_page()
    return None if events is None else write(map(event_row, events))
