"""Answers queries from extents of the index and from the log: the listing of events, the history of usage.

Rules it keeps: everything that reads a disk or much memory runs in a thread, in slices of a few milliseconds; each
request reads a bounded part of index and log, then stops early and says so, or is refused with how to narrow it.
It must not know how the index is kept.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from engine.actors.event_records import EventsAt, events_at
from engine.core.cursors import Place, place_of, token_of
from engine.core.extents import EventFilter, Extent, cells_of
from engine.core.listing import LISTING_ROWS_MAX, Found, Listing
from engine.core.queries import EventsPage, EventsQuery, HistoryQuery, HistoryResult, ListedEvent
from engine.core.records import SOURCE_CODES, SOURCE_NAMES
from engine.core.rollups import (
    HistoryFold,
    HistoryGroups,
    Range,
    group_of,
    ungrouped_result,
)
from engine.core.summaries import ALL_CUSTOMERS, customer_hash
from engine.errors import Refused
from engine.limits import LISTING_LIMIT_MAX, LISTING_SORT_MATCHES_MAX
from engine.ports import RunBlocking
from wal.log import Log

LISTING_BYTES_MAX: Final = 64 << 20
"""Of the log's records that one page reads."""
SCAN_EVENTS_MAX: Final = 1_000_000
"""Events that one grouped history reads from the log."""
_SLICE_BLOCKS: Final = 32
_SLICE_EXTENTS: Final = 16
_SLICE_BYTES: Final = 1 << 20
_DENSE_EVENTS: Final = 16
_DENSE_POSITIONS: Final = 4_096


class Sources(NamedTuple):
    """What a query reads: extents of the index in log order, and the log."""

    extents: Sequence[Extent]
    log: Log
    run_blocking: RunBlocking


# Listing.


async def list_events(query: EventsQuery, sources: Sources) -> EventsPage:
    """One page. Raises Refused."""
    wanted, place = _checked(query)
    if query.sort != "ts":
        return await _list_sorted(query, wanted, place, sources)
    listing = await _find(
        query, wanted, sources, after=place.key, count=place.skip + query.limit + 1
    )
    passed_over = min(place.skip, len(listing.found))
    page = listing.found[passed_over : passed_over + query.limit]
    fetcher = Fetcher(sources.log, [found.sequence for found in page], wanted)
    while await sources.run_blocking(fetcher.run_slice):
        pass
    at: Place | None = None
    if fetcher.taken < len(page) or len(listing.found) > place.skip + query.limit:
        last = page[fetcher.taken - 1]
        at = _moved(place, (last.ts_us, last.sequence), skip=0)
    elif not listing.is_complete:
        at = _moved(place, listing.stands_at, skip=place.skip - passed_over)
    return EventsPage(
        events=tuple(fetcher.events()),
        total=listing.total,
        total_is_lower_bound=listing.total_is_lower_bound,
        next_cursor=None if at is None else token_of(at),
    )


async def _list_sorted(
    query: EventsQuery, wanted: EventFilter, place: Place, sources: Sources
) -> EventsPage:
    """A page in another order: all matches are found, then sorted, so there may not be too many."""
    listing = await _find(query, wanted, sources, after=None, count=LISTING_SORT_MATCHES_MAX + 1)
    if len(listing.found) > LISTING_SORT_MATCHES_MAX or not listing.is_complete:
        message = (
            f"sort={query.sort} works within {LISTING_SORT_MATCHES_MAX} matching events and there are more: "
            "narrow startTime and endTime, name a metric or a customerRef, or sort by ts"
        )
        raise Refused(message, (("sort", message),))
    keyed = [
        (text, found.step, found)
        for text, found in await _texts(query, wanted, listing.found, sources)
    ]
    descending = query.direction == "desc"
    keyed.sort(key=lambda row: row[1])
    keyed.sort(key=lambda row: row[0], reverse=descending)
    if place.key is not None:
        sign = -1 if descending else 1
        step = (sign * place.key[0], sign * place.key[1])
        keyed = [row for row in keyed if _is_after(row[0], row[1], place.text, step, descending)]
    page = keyed[place.skip : place.skip + query.limit]
    fetcher = Fetcher(sources.log, [found.sequence for _, _, found in page], wanted)
    while await sources.run_blocking(fetcher.run_slice):
        pass
    at: Place | None = None
    if fetcher.taken < len(keyed) - place.skip:
        text, _, last = page[fetcher.taken - 1]
        at = _moved(place, (last.ts_us, last.sequence), skip=0, text=text)
    return EventsPage(
        events=tuple(fetcher.events()),
        total=listing.total,
        total_is_lower_bound=listing.total_is_lower_bound,
        next_cursor=None if at is None else token_of(at),
    )


def _is_after(
    text: str, step: tuple[int, int], at_text: str, at_step: tuple[int, int], descending: bool
) -> bool:
    if text == at_text:
        return step > at_step
    return (text < at_text) == descending


async def _texts(
    query: EventsQuery, wanted: EventFilter, found: Sequence[Found], sources: Sources
) -> list[tuple[str, Found]]:
    """Each match with the text it is sorted by. Only a customer's name has to be read from the log."""
    if query.sort == "metric":
        return [(one.metric, one) for one in found]
    if query.sort == "source":
        return [(SOURCE_NAMES[one.source], one) for one in found]
    if query.customer_ref is not None:
        return [(query.customer_ref, one) for one in found]
    in_log_order = sorted(found, key=lambda one: one.sequence)
    fetcher = Fetcher(sources.log, [one.sequence for one in in_log_order], wanted)
    while await sources.run_blocking(fetcher.run_slice):
        pass
    if fetcher.taken < len(found):
        message = (
            f"sort=customerRef has to read more than {LISTING_BYTES_MAX >> 20} MiB of the log here: "
            "narrow startTime and endTime, or sort by ts"
        )
        raise Refused(message, (("sort", message),))
    names = {event.sequence: event.customer_ref for event in fetcher.events()}
    return [(names[one.sequence], one) for one in found if one.sequence in names]


def _moved(place: Place, key: tuple[int, int], *, skip: int, text: str = "") -> Place:
    return Place(place.version, place.filters, place.start_us, place.end_us, key, text, skip)


async def _find(
    query: EventsQuery,
    wanted: EventFilter,
    sources: Sources,
    *,
    after: tuple[int, int] | None,
    count: int,
) -> Listing:
    listing = await sources.run_blocking(
        partial(
            Listing,
            wanted,
            sources.extents,
            descending=query.direction == "desc",
            after=after,
            count=count,
            rows_max=LISTING_ROWS_MAX,
            kept_from=query.kept_from,
        )
    )
    while await sources.run_blocking(partial(listing.run_slice, _SLICE_BLOCKS)):
        pass
    return listing


def _checked(query: EventsQuery) -> tuple[EventFilter, Place]:
    if not 1 <= query.limit <= LISTING_LIMIT_MAX:
        message = f"limit must be 1 to {LISTING_LIMIT_MAX}"
        raise Refused(message, (("limit", message),))
    if not 0 <= query.offset <= LISTING_SORT_MATCHES_MAX:
        message = f"offset must be 0 to {LISTING_SORT_MATCHES_MAX}: use the cursor to go further"
        raise Refused(message, (("offset", message),))
    if query.source is not None and query.source not in SOURCE_CODES:
        message = f"source must be one of {', '.join(sorted(SOURCE_CODES))}"
        raise Refused(message, (("source", message),))
    place = place_of(query)
    source = None if query.source is None else SOURCE_CODES[query.source]
    wanted = EventFilter(
        query.tenant, query.metric, query.customer_ref, source, place.start_us, place.end_us
    )
    return wanted, place


class Fetcher:
    """Reads single events from the log, in the order given, until all are read or it read its share."""

    def __init__(self, log: Log, sequences: Sequence[int], wanted: EventFilter) -> None:
        self._log = log
        self._sequences = sequences
        self._ascending = sorted(sequences)
        self._wanted = wanted
        self._bytes_left = LISTING_BYTES_MAX
        self._events: dict[int, ListedEvent | None] = {}
        """None: it can't be read any more."""
        self.taken = 0
        """How many of `sequences` were looked at; at least one if there is one."""

    def events(self) -> list[ListedEvent]:
        """Those read, in order; what was erased since is left out."""
        found = (self._events[sequence] for sequence in self._sequences[: self.taken])
        return [event for event in found if event is not None]

    def run_slice(self) -> bool:
        """Read some records; True: call again."""
        slice_bytes = 0
        while self.taken < len(self._sequences):
            sequence = self._sequences[self.taken]
            if sequence not in self._events:
                if self.taken and self._bytes_left <= 0:
                    return False
                if slice_bytes >= _SLICE_BYTES:
                    return True
                size = self._read(sequence)
                slice_bytes += size
                self._bytes_left -= size
            self.taken += 1
        return False

    def _read(self, sequence: int) -> int:
        """Read the record that holds a position, and every wanted event of it; its size in bytes."""
        self._events[sequence] = None
        records = self._log.read(sequence, bytes_max=1)
        if not records:
            return 0
        record = records[0]
        first = bisect_left(self._ascending, record.sequence)
        last = bisect_left(self._ascending, record.next_sequence)
        held = self._ascending[first:last]
        self._events.update(dict.fromkeys(held))
        for part in events_at(record, held):
            self._keep(part, record.envelope.received_at_us)
        return sum(len(part.data) for part in record.parts)

    def _keep(self, part: EventsAt, received_at_us: int) -> None:
        events, wanted = part.events, self._wanted
        if events.tenant != wanted.tenant:
            return
        for index in part.indexes:
            customer = events.customers[index]
            if wanted.customer_ref not in (None, customer):
                continue  # pseudonymised since it was indexed
            sequence = part.first_sequence + index
            sent_ts_us = events.times_us[index]
            self._events[sequence] = ListedEvent(
                id=events.key_texts[index],
                tenant=events.tenant,
                metric=events.metrics[index],
                customer_ref=customer,
                resource_id=events.resources[index],
                quantity_micros=events.micros[index],
                ts_us=received_at_us if sent_ts_us is None else sent_ts_us,
                source=SOURCE_NAMES[events.sources[index]],
                meta=events.metas[index],
                received_at_us=received_at_us,
                sequence=sequence,
            )


# History.


async def usage_history(
    query: HistoryQuery, aggregation_at: Callable[[int], str], sources: Sources
) -> HistoryResult:
    """Usage in buckets. Raises Refused."""
    span = Range(query.interval, query.since_us, query.until_us)
    wanted = EventFilter(
        query.tenant, query.metric, query.customer_ref, None, span.since_us, span.until_us
    )
    if query.group_by is not None:
        scan = GroupScan(query, wanted, span, sources)
        while await sources.run_blocking(scan.run_slice):
            pass
        return scan.groups.result(aggregation_at)
    fold = HistoryFold(span)
    for start in range(0, len(sources.extents), _SLICE_EXTENTS):
        extents = sources.extents[start : start + _SLICE_EXTENTS]
        await sources.run_blocking(partial(_fold_extents, fold, wanted, extents))
    return ungrouped_result(span, fold, aggregation_at)


def _fold_extents(fold: HistoryFold, wanted: EventFilter, extents: Sequence[Extent]) -> None:
    assert wanted.metric is not None
    customer = ALL_CUSTOMERS
    if wanted.customer_ref is not None:
        customer = customer_hash(wanted.tenant, wanted.customer_ref)
    for extent in extents:
        if wanted.may_match(extent.summary):
            cells = cells_of(extent, (wanted.tenant, wanted.metric), customer)
            if cells is not None:
                fold.add_cells(cells)


class GroupScan:
    """Reads the matching events of a grouped history from the log: what it groups by is not in the index."""

    def __init__(
        self, query: HistoryQuery, wanted: EventFilter, span: Range, sources: Sources
    ) -> None:
        """Raises Refused for what can't be grouped by."""
        self._group_of = group_of(query)
        self._wanted = wanted
        self._log = sources.log
        self._extents = [e for e in sources.extents if wanted.may_match(e.summary)]
        self._next_extent = 0
        self._next = 0
        self._matching = 0
        self._scanned = 0
        self._sequences: list[int] = []
        self.groups = HistoryGroups(span)

    def run_slice(self) -> bool:
        """Find the matches of some extents, or read some records; True: call again. Raises Refused."""
        if self._next < len(self._sequences):
            self._read_page()
            return True
        if self._next_extent == len(self._extents):
            return False
        self._sequences, self._next = self._matches_of(self._extents[self._next_extent]), 0
        self._next_extent += 1
        return True

    def _matches_of(self, extent: Extent) -> list[int]:
        """Positions of an extent's matching events, ascending."""
        scopes, series = extent.series()
        matching = self._wanted.series(scopes, series)
        if matching is None:
            return []
        found = []
        for block in range(extent.summary.blocks):
            events = extent.events(block)
            found.append(events.sequence[self._wanted.rows(events, matching)])
        sequences: list[int] = np.sort(np.concatenate(found)).tolist()
        self._matching += len(sequences)
        if self._matching > SCAN_EVENTS_MAX:
            raise self._too_much()
        return sequences

    def _read_page(self) -> None:
        sequences = self._sequences
        ahead = min(self._next + _DENSE_EVENTS, len(sequences) - 1)
        is_dense = sequences[ahead] - sequences[self._next] <= _DENSE_POSITIONS
        # Where matches are far apart, what lies between them is not read.
        records = self._log.read(sequences[self._next], bytes_max=_SLICE_BYTES if is_dense else 1)
        if not records:
            self._next = len(sequences)
        for record in records:
            last = bisect_right(sequences, record.next_sequence - 1, self._next)
            held = sequences[self._next : last]
            self._next = last
            if not held:
                continue
            self._scanned += record.envelope.item_count
            if self._scanned > SCAN_EVENTS_MAX:
                raise self._too_much()
            for part in events_at(record, held):
                self._add(part, record.envelope.received_at_us)

    def _add(self, part: EventsAt, received_at_us: int) -> None:
        events, wanted = part.events, self._wanted
        for index in part.indexes:
            customer = events.customers[index]
            if wanted.customer_ref not in (None, customer):
                continue  # pseudonymised since it was indexed
            ts_us = events.times_us[index]
            group = self._group_of(customer, events.resources[index], events.metas[index])
            self.groups.add_event(
                group, events.micros[index], received_at_us if ts_us is None else ts_us
            )

    def _too_much(self) -> Refused:
        message = (
            f"groupBy reads events one by one and would have to read more than {SCAN_EVENTS_MAX:,} here: "
            "name a customerRef, or ask for a shorter range"
        )
        return Refused(message, (("groupBy", message),))
