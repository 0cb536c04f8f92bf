"""Extents: stretches of the log that can be asked, wherever their columns are; and the filter they are asked by.

A *chunk* is a closed segment as a list of values: its head (the summary), its series table, its blocks of events, its
blocks of cells. Only heads stay in memory; a query reads the blocks it needs.

Rules it keeps: an extent answers the same in memory and from a chunk; a stored column is little-endian and of fixed
width, or (quantities over int64) a msgpack list; a change of this format raises VERSION. It must not know the store:
it is given a function that reads values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from engine.core.quantities import pack_total, unpack_ext
from engine.core.segments import Cells, Events, Quantities, Scope, Segment, Series
from engine.core.summaries import (
    EVENT_BLOCK_ROWS,
    NameHash,
    Summary,
    customer_hash,
    encode_summary,
    metric_hash,
    tenant_hash,
)
from engine.core.times import MINUTE_US

VERSION: Final = 1
"""Of the chunks' format. An index of another version is rebuilt."""
CELL_BLOCK_ROWS: Final = 2_048
_SERIES_NUMBER: Final = 1
_FIRST_BLOCK_NUMBER: Final = 2
_EVENT_BYTES: Final = 8 + 8 + 4 + 1
_decode_wide = msgspec.msgpack.Decoder(list[Any], ext_hook=unpack_ext).decode


class Extent(Protocol):
    """Events of a stretch of the log."""

    @property
    def summary(self) -> Summary:
        """What is known without reading."""
        ...

    def series(self) -> tuple[tuple[Scope, ...], Series]:
        """The scopes and the table of series."""
        ...

    def events(self, block: int) -> Events:
        """A block of events, in order."""
        ...

    def cells(self, first: int, last: int) -> Cells:
        """The cells [first, last)."""
        ...


class OpenExtent:
    """A segment in memory."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.summary = segment.summary

    def series(self) -> tuple[tuple[Scope, ...], Series]:
        """See `Extent`."""
        return self.segment.scopes, self.segment.series

    def events(self, block: int) -> Events:
        """See `Extent`."""
        return self.segment.events.rows(
            slice(block * EVENT_BLOCK_ROWS, (block + 1) * EVENT_BLOCK_ROWS)
        )

    def cells(self, first: int, last: int) -> Cells:
        """See `Extent`."""
        return self.segment.cells.rows(slice(first, last))


class ChunkExtent:
    """A chunk: `read(first, count)` gives its stored values, or raises what its store raises."""

    def __init__(self, summary: Summary, read: Callable[[int, int], list[bytes]]) -> None:
        self.summary = summary
        self._read = read

    def series(self) -> tuple[tuple[Scope, ...], Series]:
        """See `Extent`."""
        [data] = self._read(_SERIES_NUMBER, 1)
        stored = _series_decoder.decode(data)
        return tuple(stored.scopes), Series(
            np.frombuffer(stored.high, "<u8"),
            np.frombuffer(stored.low, "<u8"),
            np.frombuffer(stored.scope, "<u4").astype(np.int64),
            np.frombuffer(stored.cells_from, "<u4").astype(np.int64),
        )

    def events(self, block: int) -> Events:
        """See `Extent`."""
        [data] = self._read(_FIRST_BLOCK_NUMBER + block, 1)
        rows = len(data) // _EVENT_BYTES
        return Events(
            np.frombuffer(data, "<i8", rows, 0),
            np.frombuffer(data, "<i8", rows, 8 * rows),
            np.frombuffer(data, "<u4", rows, 16 * rows).astype(np.int64),
            np.frombuffer(data, np.uint8, rows, 20 * rows),
        )

    def cells(self, first: int, last: int) -> Cells:
        """See `Extent`."""
        first_block, last_block = first // CELL_BLOCK_ROWS, (last - 1) // CELL_BLOCK_ROWS
        number = _FIRST_BLOCK_NUMBER + self.summary.blocks + first_block
        blocks = [_decode_cells(d) for d in self._read(number, last_block - first_block + 1)]
        cells = Cells._make(np.concatenate(columns) for columns in zip(*blocks, strict=True))
        skipped = first_block * CELL_BLOCK_ROWS
        return cells.rows(slice(first - skipped, last - skipped))


def encode_chunk(segment: Segment) -> list[bytes]:
    """The values of a segment whose summary has a name filter."""
    series, events, cells = segment.series, segment.events, segment.cells
    table = _StoredSeries(
        list(segment.scopes),
        series.high.astype("<u8").tobytes(),
        series.low.astype("<u8").tobytes(),
        series.scope.astype("<u4").tobytes(),
        series.cells_from.astype("<u4").tobytes(),
    )
    values = [encode_summary(segment.summary), msgspec.msgpack.encode(table)]
    for start in range(0, len(events.ts_us), EVENT_BLOCK_ROWS):
        block = events.rows(slice(start, start + EVENT_BLOCK_ROWS))
        columns = (
            block.ts_us.astype("<i8"),
            block.sequence.astype("<i8"),
            block.series.astype("<u4"),
            block.source,
        )
        values.append(b"".join(column.tobytes() for column in columns))
    values.extend(
        _encode_cells(cells.rows(slice(start, start + CELL_BLOCK_ROWS)))
        for start in range(0, len(cells.minute), CELL_BLOCK_ROWS)
    )
    return values


class _StoredSeries(msgspec.Struct, array_like=True, frozen=True):
    scopes: list[tuple[str, str]]
    high: bytes
    low: bytes
    scope: bytes
    cells_from: bytes


class _StoredCells(msgspec.Struct, array_like=True, frozen=True):
    minute: bytes
    events: bytes
    last_offset_us: bytes
    """Of the last event in its minute."""
    sum: bytes
    max: bytes
    last: bytes
    wide: tuple[bool, bool, bool]
    """Which of the three before are msgpack lists."""


_series_decoder = msgspec.msgpack.Decoder(_StoredSeries)
_cells_decoder = msgspec.msgpack.Decoder(_StoredCells)


def _encode_cells(cells: Cells) -> bytes:
    (total, wide_sum), (largest, wide_max), (last, wide_last) = map(
        _encode_quantities, (cells.sum, cells.max, cells.last)
    )
    stored = _StoredCells(
        cells.minute.astype("<i8").tobytes(),
        cells.events.astype("<u4").tobytes(),
        (cells.last_ts_us - cells.minute * MINUTE_US).astype("<u4").tobytes(),
        total,
        largest,
        last,
        (wide_sum, wide_max, wide_last),
    )
    return msgspec.msgpack.encode(stored)


def _encode_quantities(column: Quantities) -> tuple[bytes, bool]:
    try:
        return column.astype("<i8").tobytes(), False
    except OverflowError:
        return msgspec.msgpack.encode([pack_total(value) for value in column]), True


def _decode_quantities(data: bytes, wide: bool) -> Quantities:
    return np.array(_decode_wide(data), dtype=object) if wide else np.frombuffer(data, "<i8")


def _decode_cells(data: bytes) -> Cells:
    stored = _cells_decoder.decode(data)
    minute = np.frombuffer(stored.minute, "<i8")
    return Cells(
        minute,
        np.frombuffer(stored.events, "<u4").astype(np.int64),
        _decode_quantities(stored.sum, stored.wide[0]),
        _decode_quantities(stored.max, stored.wide[1]),
        _decode_quantities(stored.last, stored.wide[2]),
        minute * MINUTE_US + np.frombuffer(stored.last_offset_us, "<u4"),
    )


class EventFilter(NamedTuple):
    """Which events are wanted: of one tenant, start_us <= ts < end_us, and what else is not None."""

    tenant: str
    metric: str | None
    customer_ref: str | None
    source: int | None
    start_us: int
    end_us: int

    def may_match(self, summary: Summary) -> bool:
        """False: surely no event of the extent matches."""
        if not summary.overlaps(self.start_us, self.end_us):
            return False
        if self.source is not None and not summary.sources >> self.source & 1:
            return False
        return summary.may_hold(*self._names())

    def _names(self) -> Sequence[NameHash]:
        names = [
            tenant_hash(self.tenant)
            if self.metric is None
            else metric_hash(self.tenant, self.metric)
        ]
        if self.customer_ref is not None:
            names.append(customer_hash(self.tenant, self.customer_ref))
        return names

    def series(self, scopes: Sequence[Scope], series: Series) -> npt.NDArray[np.bool_] | None:
        """Which series of a table match; None for none."""
        wanted = np.array(
            [tenant == self.tenant and self.metric in (None, metric) for tenant, metric in scopes],
            np.bool_,
        )
        if not wanted.any():
            return None
        first, last = 0, len(series.high)
        if self.customer_ref is not None:
            first, last = rows_of(series, customer_hash(self.tenant, self.customer_ref))
            if first == last:
                return None
        matches = np.zeros(len(series.high), np.bool_)
        matches[first:last] = wanted[series.scope[first:last]]
        return matches

    def rows(self, events: Events, series: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
        """Which of these events match, in order, when `series` do."""
        matches = series[events.series]
        if self.source is not None:
            matches &= events.source == self.source
        matches &= events.ts_us >= self.start_us
        matches &= events.ts_us < self.end_us
        return np.flatnonzero(matches)


def rows_of(series: Series, customer: NameHash) -> tuple[int, int]:
    """The rows [first, last) of one customer in a table of series; empty if there are none."""
    high, low = np.uint64(customer.high), np.uint64(customer.low)
    first = int(np.searchsorted(series.high, high, "left"))
    last = int(np.searchsorted(series.high, high, "right"))
    lows = series.low[first:last]
    return (
        first + int(np.searchsorted(lows, low, "left")),
        first + int(np.searchsorted(lows, low, "right")),
    )


def cells_of(extent: Extent, scope: Scope, customer: NameHash) -> Cells | None:
    """The cells of one series (`customer` ALL_CUSTOMERS: over all), by minute; None if there are none."""
    scopes, series = extent.series()
    if scope not in scopes:
        return None
    wanted = scopes.index(scope)
    first, last = rows_of(series, customer)
    at = first + int(np.searchsorted(series.scope[first:last], wanted))
    if at == last or series.scope[at] != wanted:
        return None
    return extent.cells(int(series.cells_from[at]), int(series.cells_from[at + 1]))
