"""Exports of what the log comes to: counters and adjustments, as rows, partition by partition.

Rules it keeps: a partition's series are listed at once and read in slices, so a running meter goes on meanwhile; each
row is a counter as it is when it is read. It must not know where the rows go.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Annotated, Final, NamedTuple

import msgspec
import trio

from engine.core.adjustments import Adjustment, effective_value, pending_count
from engine.core.shard_state import Series, ShardState
from engine.limits import METRIC_CHARS_MAX
from gateway import parameters
from gateway.export_rows import COUNTER_COLUMNS, Row
from gateway.export_streams import CONTENT_TYPES, file_answer, writer_of
from gateway.problems import Problem
from gateway.routes import Answer, Call
from gateway.shapes import CustomerRef, Instant, MetricName, Quantity, TenantId

SLICE_SERIES: Final = 500
"""Series whose rows are made in one turn: some milliseconds."""


class StateFilter(NamedTuple):
    """Which counters or adjustments are wanted; None: all. `start_us_min <= period start < start_us_max`."""

    tenant: str | None = None
    metric: str | None = None
    start_us_min: int | None = None
    start_us_max: int | None = None
    customer_ref: str | None = None

    def has(self, series: Series) -> bool:
        """Whether a series' tenant, metric and customer are wanted."""
        return (
            self.tenant in (None, series[0])
            and self.metric in (None, series[1])
            and self.customer_ref in (None, series[2])
        )

    def has_period(self, start_us: int) -> bool:
        """Whether a period's start is in the range."""
        return (self.start_us_min is None or start_us >= self.start_us_min) and (
            self.start_us_max is None or start_us < self.start_us_max
        )


def counter_slices(
    state: ShardState, partition: int, wanted: StateFilter, at_us: int
) -> Iterator[list[Row]]:
    """A partition's counters in COUNTER_COLUMNS, oldest period first; others may run between two slices.

    A counter that has nothing but adjustments is there too. `at_us`: of a running period, now.
    """
    keys: dict[Series, None] = dict.fromkeys(
        series for series in list(state.counters[partition]) if wanted.has(series)
    )
    adjusted: dict[Series, set[int]] = {}
    for tenant, metric, customer, start_us in list(state.adjustments[partition].counters()):
        series = (tenant, metric, customer)
        if wanted.has(series):
            keys[series] = None
            adjusted.setdefault(series, set()).add(start_us)
    rows: list[Row] = []
    for number, series in enumerate(keys):
        rows += _rows_of(state, partition, series, adjusted.get(series, set()), wanted, at_us)
        if number % SLICE_SERIES == SLICE_SERIES - 1:
            yield rows
            rows = []
    yield rows


def _rows_of(  # noqa: PLR0917 - a leaf of the function above
    state: ShardState,
    partition: int,
    series: Series,
    adjusted: set[int],
    wanted: StateFilter,
    at_us: int,
) -> Iterator[Row]:
    tenant, metric, customer = series
    counters = {}
    counter = state.counters[partition].get(series)
    while counter is not None:
        counters[counter.start_us] = counter
        counter = counter.older
    for start_us in sorted(adjusted | counters.keys()):
        if not wanted.has_period(start_us):
            continue
        adjustments = state.adjustments[partition].of_counter((*series, start_us))
        counter = counters.get(start_us)
        end_us = counter.end_us if counter is not None else adjustments[0].end_us
        instant_us = max(start_us, min(at_us, end_us - 1))
        aggregation = state.rules.aggregation(tenant, metric, instant_us)
        yield (
            tenant,
            metric,
            customer,
            start_us,
            end_us,
            aggregation,
            effective_value(counter, adjustments, aggregation),
            counter.sum if counter else 0,
            counter.max if counter else 0,
            counter.last if counter else 0,
            counter.count if counter else 0,
            pending_count(adjustments),
            counter.watermark_us if counter else None,
            counter.updated_at_us if counter else None,
        )


def adjustment_row(one: Adjustment) -> Row:
    """An adjustment in ADJUSTMENT_COLUMNS: its delta, or its value, or how many late events it holds and their sum."""
    late = one.kind == "event"
    return (
        one.id,
        one.tenant,
        one.metric,
        one.customer_ref,
        one.start_us,
        one.end_us,
        one.kind,
        one.status,
        one.micros if one.kind == "delta" else None,
        one.micros if one.kind == "value" else None,
        len(one.sequences) if late else None,
        sum(one.quantities) if late else None,
        one.reason,
        one.actor,
        one.note,
        one.request_id,
        one.parent_id,
        one.operation_id,
        one.created_at_us,
        one.decided_at_us,
        one.decided_by,
        one.sequence,
    )


class CounterLine(msgspec.Struct, rename="camel", kw_only=True):
    """One line of `format=jsonl`: a counter."""

    tenant_id: TenantId
    metric: MetricName
    customer_ref: CustomerRef
    period_start: Instant
    period_end: Instant
    aggregation: str
    current: Annotated[
        Quantity, msgspec.Meta(description="By the aggregation, approved adjustments too.")
    ]
    sum: Quantity
    max: Quantity
    last: Quantity
    count: int
    pending_late: int
    watermark: Instant | msgspec.UnsetType = msgspec.UNSET
    updated_at: Instant | msgspec.UnsetType = msgspec.UNSET


async def list_counters(call: Call) -> Answer | Problem:
    """GET /v1/usage/counters."""
    assert call.tenant is not None
    query = call.query
    wanted = StateFilter(
        call.tenant, query["metric"], query["since"], query["until"], query["customerRef"]
    )
    meter = call.gateway.meter
    end = meter.started.writer.published_sequence
    begin, write = writer_of(query["format"], COUNTER_COLUMNS, as_string=call.numbers_as_strings)

    async def pieces() -> AsyncIterator[bytes]:
        yield begin
        for shard in meter.shards:
            for partition in shard.state.counters:
                for rows in counter_slices(shard.state, partition, wanted, call.now_us):
                    yield await meter.run_blocking(partial(write, rows)) if rows else b""
                    await trio.lowlevel.checkpoint()

    return file_answer(call, "counters", pieces(), end - 1)


COUNTERS_CONTENT_TYPE: Final = CONTENT_TYPES["jsonl"].partition(";")[0]
COUNTERS_OTHER_TYPES: Final = (CONTENT_TYPES["csv"].partition(";")[0],)
COUNTERS_PARAMETERS: Final = (
    parameters.TENANT,
    parameters.text("metric", "Only this metric.", METRIC_CHARS_MAX),
    parameters.text("customerRef", "Only this customer."),
    parameters.instant("since", "Periods that begin at this time or later."),
    parameters.instant("until", "Periods that begin before this time."),
    parameters.choice("format", "As JSON lines or CSV.", tuple(CONTENT_TYPES), "jsonl"),
    parameters.NUMBERS,
)
