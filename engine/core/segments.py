"""Segments: a stretch of the log's events as columns, sorted for listing, and rolled up by minute for history.

Rules it keeps: a segment is never changed; merging two gives what building one of all their events gives; sums are
exact, in int64 where they surely fit and in Python's integers where not; `last` goes by event time, then log order.
Pure: events in, arrays out. It must not know where segments are kept.

A *scope* is a (tenant, metric). A *series* is a scope's use by one customer, or (ALL_CUSTOMERS) by all. A *cell* is
a series' use in one minute, in UTC: minutes, since every bucket of history starts at one.

Everything is done to whole columns: an event costs a third of a microsecond here, a loop over events would cost
five times that, and this is paid for every event that is ever taken in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, count
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.core.summaries import (
    Int64s,
    NameFilter,
    Summary,
    Uint64s,
    customer_digest,
    fences,
    metric_hash,
    tenant_hash,
)
from engine.core.times import MINUTE_US

Quantities = npt.NDArray[Any]
"""Micros: int64, or Python integers (dtype object) where int64 may not hold them."""
Scope = tuple[str, str]
_INT64_LIMIT: Final = 1 << 63
_KEY_LIMIT: Final = 1 << 62
_RADIX_BITS_MAX: Final = 48
_RADIX_ROWS_MIN: Final = 4_096


class Batch(NamedTuple):
    """One tenant's events of one record, as columns of equal length; times None: when it was received."""

    tenant: str
    metrics: Sequence[str]
    customers: Sequence[str]
    micros: Sequence[int]
    times_us: Sequence[int | None]
    sources: Sequence[int]
    first_sequence: int
    received_at_us: int


class Series(NamedTuple):
    """A table of series, in order of (high, low, scope). Those over all customers come first."""

    high: Uint64s
    low: Uint64s
    scope: Int64s
    """Index in `Segment.scopes`."""
    cells_from: Int64s
    """One entry more than there are series: series i has the cells [cells_from[i], cells_from[i + 1])."""


class Events(NamedTuple):
    """Events in order of (ts, sequence)."""

    ts_us: Int64s
    sequence: Int64s
    series: Int64s
    source: npt.NDArray[np.uint8]

    def rows(self, which: slice | npt.NDArray[Any]) -> Events:
        """Some of the rows."""
        return Events._make(column[which] for column in self)


class Cells(NamedTuple):
    """Cells, by series and then by minute."""

    minute: Int64s
    """Minutes since 1970."""
    events: Int64s
    sum: Quantities
    max: Quantities
    last: Quantities
    last_ts_us: Int64s

    def rows(self, which: slice | npt.NDArray[Any]) -> Cells:
        """Some of the rows."""
        return Cells._make(column[which] for column in self)


class Segment(NamedTuple):
    """Events of the log's positions [summary.from_position, summary.to_position)."""

    summary: Summary
    scopes: tuple[Scope, ...]
    """Sorted."""
    series: Series
    events: Events
    cells: Cells


def build(batches: Sequence[Batch], from_position: int, to_position: int) -> Segment:
    """The segment of these events, which are in log order and not none."""
    assert batches, "a segment has events"
    tenants = dict.fromkeys(batch.tenant for batch in batches)
    metrics = {tenant: _codes() for tenant in tenants}
    customers = {tenant: _codes() for tenant in tenants}
    number = {tenant: index for index, tenant in enumerate(tenants)}
    counts = np.fromiter((len(batch.metrics) for batch in batches), np.int64, len(batches))
    total = int(counts.sum())
    tenant = np.repeat(
        np.fromiter((number[batch.tenant] for batch in batches), np.int64, len(batches)), counts
    )
    metric_codes = _column(
        (map(metrics[batch.tenant].__getitem__, batch.metrics) for batch in batches), total
    )
    customer_codes = _column(
        (map(customers[batch.tenant].__getitem__, batch.customers) for batch in batches), total
    )

    all_scopes = [(name, metric) for name, codes in metrics.items() for metric in codes]
    scopes = tuple(sorted(all_scopes))
    place = {scope: index for index, scope in enumerate(scopes)}
    scope_place = np.array([place[scope] for scope in all_scopes], np.int64)
    scope_base = _starts(len(codes) for codes in metrics.values())
    scope = scope_place[scope_base[tenant] + metric_codes]

    digests = b"".join(
        customer_digest(name, customer) for name, codes in customers.items() for customer in codes
    )
    high, low, customer_place = _ranked(digests)
    customer_base = _starts(len(codes) for codes in customers.values())
    customer = customer_place[customer_base[tenant] + customer_codes]

    ts_us = _column(map(_times, batches), total)
    firsts = np.fromiter((batch.first_sequence for batch in batches), np.int64, len(batches))
    sequence = np.arange(total) + np.repeat(firsts - (np.cumsum(counts) - counts), counts)
    micros = _quantities(batches, total)
    source = np.frombuffer(b"".join(bytes(batch.sources) for batch in batches), np.uint8)

    order = _stable_order(ts_us)
    ts_us, scope, customer, micros = ts_us[order], scope[order], customer[order], micros[order]
    series_key = customer * len(scopes) + scope
    keys, cells, series = _reduce(series_key, _single_cells(ts_us, micros))
    all_keys, all_cells, _ = _reduce(scope, _single_cells(ts_us, micros))
    distinct, series_of_cell = _ranks(keys)
    all_distinct, all_series_of_cell = _ranks(all_keys)
    overall = len(all_distinct)
    none = np.zeros(overall, np.uint64)
    table = Series(
        np.concatenate((none, high[distinct // len(scopes)])),
        np.concatenate((none, low[distinct // len(scopes)])),
        np.concatenate((all_distinct, distinct % len(scopes))),
        _cells_from(np.concatenate((all_series_of_cell, series_of_cell + overall))),
    )
    series = series_of_cell[series] + overall
    events = Events(ts_us, sequence[order], series, source[order])
    return _segment(
        (from_position, to_position), scopes, table, events, _concatenated([all_cells, cells])
    )


def merge(segments: Sequence[Segment]) -> Segment:
    """One segment of several that follow each other in the log."""
    assert segments
    scopes = tuple(sorted({scope for segment in segments for scope in segment.scopes}))
    place = {scope: index for index, scope in enumerate(scopes)}
    high = np.concatenate([segment.series.high for segment in segments])
    low = np.concatenate([segment.series.low for segment in segments])
    scope = np.concatenate(
        [
            np.array([place[name] for name in segment.scopes], np.int64)[segment.series.scope]
            for segment in segments
        ]
    )
    order = np.lexsort((scope, low, high))
    high, low, scope = high[order], low[order], scope[order]
    first = np.ones(len(order), np.bool_)
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1]) | (scope[1:] != scope[:-1])
    new_series = np.empty(len(order), np.int64)
    new_series[order] = np.cumsum(first) - 1

    events, cells, series_of_cell = [], [], []
    base = 0
    for segment in segments:
        old = segment.series
        mine = new_series[base : base + len(old.scope)]
        base += len(old.scope)
        events.append(segment.events._replace(series=mine[segment.events.series]))
        cells.append(segment.cells)
        series_of_cell.append(np.repeat(mine, np.diff(old.cells_from)))
    together = Events._make(np.concatenate(columns) for columns in zip(*events, strict=True))
    by_time = _stable_order(together.ts_us)
    together = together.rows(by_time)
    all_cells, cell_series = _concatenated(cells), np.concatenate(series_of_cell)
    by_last = _stable_order(all_cells.last_ts_us)
    merged_series, merged, _ = _reduce(cell_series[by_last], all_cells.rows(by_last))
    return _segment(
        (segments[0].summary.from_position, segments[-1].summary.to_position),
        scopes,
        Series(high[first], low[first], scope[first], _cells_from(merged_series)),
        together,
        merged,
    )


def with_names(segment: Segment) -> Segment:
    """The segment with a filter of its names in its summary."""
    table = segment.series
    tenants = {tenant for tenant, _ in segment.scopes}
    scope_lows = [metric_hash(*scope).low for scope in segment.scopes]
    tenant_lows = [tenant_hash(tenant).low for tenant in tenants]
    named = (table.high != 0) | (table.low != 0)
    lows = np.concatenate(
        (
            np.unique(table.low[named]),
            np.array(scope_lows, np.uint64),
            np.array(tenant_lows, np.uint64),
        )
    )
    return segment._replace(summary=segment.summary._replace(names=NameFilter.of(lows)))


def _segment(
    positions: tuple[int, int],
    scopes: tuple[Scope, ...],
    series: Series,
    events: Events,
    cells: Cells,
) -> Segment:
    sources = sum(1 << int(code) for code in np.unique(events.source))
    summary = Summary(
        *positions,
        len(events.ts_us),
        *fences(events.ts_us, events.sequence),
        sources,
        None,
    )
    assert len(series.cells_from) == len(series.scope) + 1
    assert series.cells_from[-1] == len(cells.minute)
    return Segment(summary, scopes, series, events, cells)


def _starts(sizes: Iterable[int]) -> Int64s:
    """Where each of some stretches of these sizes starts, when they follow each other."""
    counts = np.array(list(sizes), np.int64)
    return np.asarray(np.cumsum(counts) - counts)


def _ranked(digests: bytes) -> tuple[Uint64s, Uint64s, Int64s]:
    """(high, low) of hashes in ascending order, and the place there of each one given."""
    pairs = np.frombuffer(digests, "<u8").astype(np.uint64).reshape(-1, 2)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return pairs[order, 0], pairs[order, 1], place


def _codes() -> defaultdict[str, int]:
    """Numbers the names it is asked for, in the order of first asking, without a call of Python code."""
    return defaultdict(count().__next__)


def _column(stretches: Iterable[Iterable[int]], rows: int) -> Int64s:
    """One column of stretches. Raises OverflowError for numbers over int64."""
    return np.fromiter(chain.from_iterable(stretches), np.int64, rows)


def _times(batch: Batch) -> Iterable[int]:
    if None in batch.times_us:
        received_us = batch.received_at_us
        return (received_us if ts is None else ts for ts in batch.times_us)
    return batch.times_us  # type: ignore[return-value]


def _quantities(batches: Sequence[Batch], rows: int) -> Quantities:
    try:
        return _column((batch.micros for batch in batches), rows)
    except OverflowError:
        micros = [value for batch in batches for value in batch.micros]
        return np.array(micros, dtype=object)


def _stable_order(keys: Int64s) -> npt.NDArray[np.intp]:
    """The stable sorting order: by 16 bits at a time, where that is linear and up to three times as fast."""
    low = int(keys.min())
    span = int(keys.max()) - low
    if span >> _RADIX_BITS_MAX or (len(keys) < _RADIX_ROWS_MIN and span >> 16):
        return np.argsort(keys, kind="stable")
    relative = keys - low
    order = np.argsort(relative.astype(np.uint16), kind="stable")
    while span := span >> 16:
        relative >>= 16
        order = order[np.argsort(relative.astype(np.uint16)[order], kind="stable")]
    return order


def _single_cells(ts_us: Int64s, micros: Quantities) -> Cells:
    """Each event as a cell of its own."""
    return Cells(ts_us // MINUTE_US, np.ones_like(ts_us), micros, micros, micros, ts_us)


def _reduce(series: Int64s, cells: Cells) -> tuple[Int64s, Cells, Int64s]:
    """Unite the cells of one series and minute: (series of each, cells, which of them each row went into).

    They are in order of series, then minute. The rows come in order of `last_ts_us`, and where that is equal in log order.
    """
    low_minute = int(cells.minute.min())
    minutes = int(cells.minute.max()) - low_minute + 1
    given = series
    if (int(series.max()) + 1) * minutes >= _KEY_LIMIT:
        _, series = np.unique(series, return_inverse=True)
    key = series * minutes + (cells.minute - low_minute)
    order = _stable_order(key)
    key = key[order]
    first = np.ones(len(key), np.bool_)
    np.not_equal(key[1:], key[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    last_rows = order[np.append(starts[1:], len(order)) - 1]
    rows = cells.rows(order)
    united = Cells(
        rows.minute[starts],
        np.add.reduceat(rows.events, starts),
        _sums(rows.sum, starts),
        np.maximum.reduceat(rows.max, starts),
        cells.last[last_rows],
        cells.last_ts_us[last_rows],
    )
    went_into = np.empty(len(order), np.int64)
    went_into[order] = np.cumsum(first) - 1
    return given[last_rows], united, went_into


def _ranks(ascending: Int64s) -> tuple[Int64s, Int64s]:
    """(the distinct values, which of them each one is)."""
    first = np.ones(len(ascending), np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=first[1:])
    return ascending[first], np.cumsum(first) - 1


def _sums(values: Quantities, starts: npt.NDArray[np.intp]) -> Quantities:
    """The sums of the stretches that begin at `starts`, exact."""
    if values.dtype != object:
        longest = int(np.diff(np.append(starts, len(values))).max())
        if max(int(values.max()), -int(values.min())) * longest >= _INT64_LIMIT:
            values = values.astype(object)
    return np.asarray(np.add.reduceat(values, starts))


def _cells_from(series_of_cell: Int64s) -> Int64s:
    """Where each series' cells begin; they are in order and every series has one."""
    count = int(series_of_cell[-1]) + 1
    return np.searchsorted(series_of_cell, np.arange(count + 1))


def _concatenated(several: Sequence[Cells]) -> Cells:
    return Cells._make(np.concatenate(columns) for columns in zip(*several, strict=True))
