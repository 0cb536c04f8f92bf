"""`GET /v1/events?format=jsonl&after=N`: what came after a position of the log, a bounded piece at a time.

Whoever asks again with the position that the answer names gets every event that matches once and in log order, also
over a restart of the server: a position never moves. It is read from the log itself and not from the index, so an asker
that has everything costs nothing but the request.

Rules it keeps: an answer is whole (it has a length); it looks at a bounded part of the log; only what was acknowledged
is in it; it names the log it is from, since positions of another log say nothing. It must not know how events are found
or shown otherwise (gateway.events, gateway.export_streams).
"""

from __future__ import annotations

from functools import partial
from typing import Final

from engine.actors.as_of import Asked
from engine.actors.event_scan import EventScan, ScanFilter, Stretch
from engine.core.extents import EventFilter
from engine.errors import Refused
from gateway.as_of import parse_as_of
from gateway.export_rows import EVENT_COLUMNS
from gateway.export_streams import (
    CONTENT_TYPES,
    POSITION_HEADER,
    dropped_headers,
    page_of,
    writer_of,
)
from gateway.parameters import Parameter
from gateway.routes import Answer, Call

ANSWER_BYTES_MAX: Final = 512 << 10
"""An answer that has so much ends; a page of the log may come on top."""
PAGES_MAX: Final = 32
"""Of 256 KiB of the log, looked at for one answer."""
END_HEADER: Final = "x-stripemeter-end"
"""The last log position there is; all before it was acknowledged."""
LOG_HEADER: Final = "x-stripemeter-log"
"""Which log, and which of its epochs: a restore from a backup begins another."""
AFTER: Final = Parameter(
    "after",
    parse_as_of,
    {"type": "string", "examples": ["4711", "-PT1H", "2026-01-31T00:00:00Z"]},
    "With `format=jsonl`: a bounded piece of what follows this log position, or of what was received after this time, "
    f"for asking again with the position that the header {POSITION_HEADER} names, until that is {END_HEADER}. Every "
    "event comes once, in log order. A position beyond the end is taken for the end.",
)


async def events_after(call: Call, wanted: EventFilter, after: Asked) -> Answer:
    """The next events after a position or time; none when there are no more. Raises Refused for a time to come."""
    meter = call.gateway.meter
    first = await _first(call, after)
    end = meter.started.writer.published_sequence
    scan = EventScan(meter.log, [Stretch(min(first, end), end)], ScanFilter(*wanted))
    _begin, write = writer_of("jsonl", EVENT_COLUMNS, as_string=call.numbers_as_strings)
    body = bytearray()
    position = scan.position
    for _ in range(PAGES_MAX):
        page = await meter.run_blocking(partial(page_of, scan, write))
        if page is None:
            position = end
            break
        body += page
        position = scan.position
        if len(body) >= ANSWER_BYTES_MAX:
            break
    registry = meter.registry
    dropped = registry.dropped_before(wanted.start_us) if first < registry.kept_from else None
    log = f"{meter.log_id.hex()[:16]}.{meter.log.head().epoch}"
    return Answer(
        bytes(body),
        content_type=CONTENT_TYPES["jsonl"],
        headers=(
            (POSITION_HEADER, str(position - 1)),
            (END_HEADER, str(end - 1)),
            (LOG_HEADER, log),
            ("cache-control", "no-store"),
            *dropped_headers(dropped),
        ),
    )


async def _first(call: Call, after: Asked) -> int:
    """The first position that is wanted."""
    if after.position is not None:
        return after.position + 1
    assert after.at_us is not None, "a position or an instant"
    if after.at_us > call.now_us:
        message = "must not be in the future"
        raise Refused(f"after {message}", (("after", message),))
    try:
        return (await call.gateway.meter.started.as_of.prefix(after)).end
    except Refused:
        return 0  # before the first record: everything came after it
