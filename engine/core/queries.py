"""What a reader asks of the index, and what it answers: the listing of events and the history of usage.

Rules it keeps: instants are int microseconds, quantities int micros; a query is a value, so that a cursor can be
held against it; an answer is complete, or says in which way it isn't. It must not know HTTP or JSON, nor how the
answer is found: `engine.actors.indexer.Indexer` answers

    async def events(query: EventsQuery) -> EventsPage
    async def history(query: HistoryQuery, aggregation_at: Callable[[int], str]) -> HistoryResult

`aggregation_at(instant_us)` is the metric's aggregation in force: `partial(meter.rules.aggregation, tenant, metric)`.
Both answer up to what was acknowledged before the call. Both raise Refused (400: the query, its message says how to
narrow or mend it) and Unavailable (503: the index is being rebuilt or can't be written).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from engine.core.periods import Interval

SortKey = Literal["ts", "metric", "customerRef", "source"]
SortDirection = Literal["asc", "desc"]


class EventsQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which events of one tenant, in which order, which page. `startTime <= ts < endTime`."""

    tenant: str
    metric: str | None = None
    customer_ref: str | None = None
    source: str | None = None
    """`http`, `sdk`, `etl`, `import` or `system`."""
    start_us: int | None = None
    end_us: int | None = None
    start_text: str | None = None
    end_text: str | None = None
    """The bounds as the client wrote them, when they are relative (`-PT24H`): a later page's now differs, and the
    walk goes on in the range of its first page. None for absolute ones."""
    sort: SortKey = "ts"
    direction: SortDirection = "desc"
    limit: int = 25
    offset: int = 0
    cursor: str | None = None
    """`EventsPage.next_cursor` of the page before, with all else unchanged. Not together with an offset."""
    as_of: int | None = None
    """Only events at log positions before this one; None: all there are."""
    kept_from: int = 0
    """Events at positions before it were dropped by retention: they are neither listed nor counted."""


class ListedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One accepted event as the log has it."""

    id: str
    """The idempotency key's text."""
    tenant: str
    metric: str
    customer_ref: str
    resource_id: str | None
    quantity_micros: int
    ts_us: int
    source: str
    meta: str | None
    """Canonical JSON text of an object."""
    received_at_us: int
    sequence: int


class EventsPage(msgspec.Struct, frozen=True, kw_only=True):
    """One page, in order. `total` counts all that match the filters, not only those after the cursor."""

    events: tuple[ListedEvent, ...]
    total: int
    total_is_lower_bound: bool
    next_cursor: str | None
    """None: there is no more. Else there may be, also when this page is short or empty (it stopped early)."""


class HistoryQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Usage of one metric over time, of one customer or (customer_ref None) of all."""

    tenant: str
    metric: str
    customer_ref: str | None = None
    since_us: int
    until_us: int
    interval: Interval
    group_by: str | None = None
    """`customerRef`, `resourceId` or `meta.KEY`."""
    as_of: int | None = None
    """Only events at log positions before this one; None: all there are."""


class HistorySeries(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a chart."""

    group: str | None
    """The value grouped by; None without grouping, and for events that have no such value."""
    values_micros: tuple[int, ...]
    """One for each of `HistoryResult.bucket_starts_us`; 0 where nothing was used."""
    total_micros: int


class HistoryResult(msgspec.Struct, frozen=True, kw_only=True):
    """History in buckets [start, next start). Without `group_by` it has exactly one series.

    The range is the query's, widened to whole buckets. Late events are in it where they happened, also while their
    adjustment waits for a decision: history shows usage, not what is billed.
    """

    since_us: int
    until_us: int
    bucket_starts_us: tuple[int, ...]
    series: tuple[HistorySeries, ...]
    """Ordered by group, the one without a value last."""
    total_micros: int
    """Over everything: by the aggregation in force in the last bucket."""
