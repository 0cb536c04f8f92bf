"""`GET /v1/events`: the accepted events as the log has them, page by page or all in one stream.

Rules it keeps: quantities and meta leave exactly as they are kept; a page that stopped early says so; a stream ends
at the log's end as it was when it was asked for. It must not know how events are found (engine.actors.indexer).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from engine.core.extents import EventFilter
from engine.core.quantities import to_json
from engine.core.queries import EventsQuery, ListedEvent
from engine.core.records import SOURCE_CODES
from engine.core.times import (
    INSTANT_US_END,
    INSTANT_US_MIN,
    TimeError,
    parse_instant_or_relative,
)
from engine.limits import METRIC_CHARS_MAX
from gateway import parameters
from gateway.as_of import AS_OF, AsOfField, AsOfView, view_of
from gateway.event_tail import AFTER, events_after
from gateway.export_streams import CONTENT_TYPES, FORMATS, stream_events
from gateway.parameters import Parameter
from gateway.problems import Problem, wrong_fields
from gateway.routes import Answer, Call
from gateway.shapes import (
    CustomerRef,
    Instant,
    MetricName,
    Quantity,
    TenantId,
    instant_or_none,
)

SORTS: Final = ("ts", "metric", "customerRef", "source")


class EventView(msgspec.Struct, rename="camel", kw_only=True):
    """One accepted event."""

    id: Annotated[str, msgspec.Meta(description="Its idempotency key.")]
    tenant_id: TenantId
    metric: MetricName
    customer_ref: CustomerRef
    resource_id: str | None
    quantity: Quantity
    timestamp: Annotated[Instant, msgspec.Meta(description="When it happened.")]
    source: str
    meta: Annotated[
        str | None, msgspec.Meta(description="A JSON object as text.", examples=['{"region":"eu"}'])
    ]
    received_at: Instant
    sequence: Annotated[int, msgspec.Meta(description="Its position in the log.")]


class EventList(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True):
    """A page of events."""

    total: Annotated[int, msgspec.Meta(description="All that match the filters.")]
    events: list[EventView]
    total_is_lower_bound: Annotated[
        bool, msgspec.Meta(description="There may be more than `total`; absent: exact.")
    ] = False
    next_cursor: (
        Annotated[str, msgspec.Meta(description="Ask with it for more; absent: no more.")]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    dropped_before: (
        Annotated[
            Instant,
            msgspec.Meta(
                description="Retention has dropped events before it, and the range begins earlier: what is left of "
                "that time is here and counted, the rest is in the archives. Absent: nothing of the range was dropped."
            ),
        ]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    as_of: AsOfField = msgspec.UNSET


class Bound(NamedTuple):
    """A bound of event time; `text` only when it is relative to now."""

    us: int
    text: str | None


async def list_events(call: Call) -> Answer | Problem:
    """GET /v1/events."""
    assert call.tenant is not None
    query = call.query
    start: Bound | None = query["startTime"]
    end_time: Bound | None = query["endTime"]
    if start is not None and end_time is not None and start.us >= end_time.us:
        return wrong_fields([("startTime", "must be before endTime")])
    if query["cursor"] is not None and query["offset"] is not None:
        return wrong_fields([("cursor", parameters.CURSOR_REFUSED)])
    end: int | None = None
    seen: AsOfView | msgspec.UnsetType = msgspec.UNSET
    if query["asOf"] is not None:
        prefix = await call.gateway.meter.started.as_of.prefix(query["asOf"])
        end, seen = prefix.end, view_of(prefix)
    if query["after"] is not None:
        wrong = _wrong_beside_after(query)
        return wrong_fields(wrong) if wrong else await _stream(call, start, end_time, end)
    if query["format"] != "json":
        wrong = [
            (name, "does not go with `format`: all that match come, in log order")
            for name in _PAGING
            if query[name] is not None
        ]
        return wrong_fields(wrong) if wrong else await _stream(call, start, end_time, end)
    registry = call.gateway.meter.registry
    page = await call.gateway.meter.started.indexer.events(
        EventsQuery(
            tenant=call.tenant,
            metric=query["metric"],
            customer_ref=query["customerRef"],
            source=query["source"],
            start_us=start.us if start else None,
            end_us=end_time.us if end_time else None,
            start_text=start.text if start else None,
            end_text=end_time.text if end_time else None,
            sort=query["sort"] or "ts",
            direction=query["sortDir"] or "desc",
            limit=query["limit"] or parameters.LISTING_LIMIT_DEFAULT,
            offset=query["offset"] or 0,
            cursor=query["cursor"],
            as_of=end,
            kept_from=registry.kept_from,
        )
    )
    dropped = registry.dropped_before(start.us if start else None)
    write = partial(_view, as_string=call.numbers_as_strings)
    return Answer(
        EventList(
            total=page.total,
            events=[write(event) for event in page.events],
            total_is_lower_bound=page.total_is_lower_bound,
            next_cursor=msgspec.UNSET if page.next_cursor is None else page.next_cursor,
            dropped_before=msgspec.UNSET if dropped is None else instant_or_none(dropped) or "",
            as_of=seen,
        )
    )


async def _stream(
    call: Call, start: Bound | None, end_time: Bound | None, end: int | None
) -> Answer:
    """All events that match, as a file."""
    assert call.tenant is not None
    query = call.query
    source = query["source"]
    wanted = EventFilter(
        call.tenant,
        query["metric"],
        query["customerRef"],
        None if source is None else SOURCE_CODES[source],
        INSTANT_US_MIN if start is None else start.us,
        INSTANT_US_END if end_time is None else end_time.us,
    )
    if query["after"] is not None:
        return await events_after(call, wanted, query["after"])
    return await stream_events(call, wanted, end)


def _wrong_beside_after(query: Mapping[str, Any]) -> list[tuple[str, str]]:
    if query["format"] != "jsonl":
        return [("after", "needs format=jsonl")]
    message = "does not go with `after`: what follows comes in log order"
    return [(name, message) for name in (*_PAGING, "asOf") if query[name] is not None]


def _view(event: ListedEvent, *, as_string: bool) -> EventView:
    return EventView(
        id=event.id,
        tenant_id=event.tenant,
        metric=event.metric,
        customer_ref=event.customer_ref,
        resource_id=event.resource_id,
        quantity=to_json(event.quantity_micros, as_string=as_string),
        timestamp=instant_or_none(event.ts_us) or "",
        source=event.source,
        meta=event.meta,
        received_at=instant_or_none(event.received_at_us) or "",
        sequence=event.sequence,
    )


def _bound(text: str, now_us: int) -> Bound:
    try:
        us = parse_instant_or_relative(text, now_us)
    except TimeError as error:
        raise ValueError(str(error)) from None
    return Bound(us, text if text[:1] in ("+", "-") else None)


def _bound_parameter(name: str, description: str) -> Parameter:
    return Parameter(name, _bound, parameters.WHEN_SCHEMA, description)


def _unless_given(parameter: Parameter) -> Parameter:
    """Its default is put in by the handler, which must know whether it was given."""
    return parameter._replace(default=None)


_PAGING: Final = ("sort", "sortDir", "limit", "offset", "cursor")
EVENTS_CONTENT_TYPES: Final = tuple(kind.partition(";")[0] for kind in CONTENT_TYPES.values())
EVENTS_PARAMETERS: Final = (
    parameters.TENANT,
    parameters.text("metric", "Only this metric.", METRIC_CHARS_MAX),
    parameters.text("customerRef", "Only this customer."),
    parameters.choice("source", "Only from this source.", sorted(SOURCE_CODES)),
    _bound_parameter("startTime", "Event time from here on; ISO 8601 or relative to now."),
    _bound_parameter("endTime", "Event time up to here, exclusive."),
    _unless_given(
        parameters.choice("sort", "In which order; others than `ts` need few matches.", SORTS, "ts")
    ),
    _unless_given(parameters.choice("sortDir", "In which direction.", ("asc", "desc"), "desc")),
    _unless_given(parameters.LIMIT),
    parameters.OFFSET,
    parameters.CURSOR,
    AS_OF,
    parameters.choice(
        "format",
        "`csv` or `jsonl`: all events that match, in log order, as a stream that can be imported again.",
        FORMATS,
        "json",
    ),
    AFTER,
    parameters.NUMBERS,
)
