"""Exports as text: the columns of each kind, and rows of them as CSV or JSON lines.

Rules it keeps: an exported event names its fields as ingest does, so that the file can be sent back; quantities are
exact; a text that a spreadsheet would run is escaped (engine.core.csv_cells), a number never is; a line is whole or
not there. It must not know where rows come from nor where the text goes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from engine.core.csv_cells import text_cell
from engine.core.quantities import format_micros
from engine.core.queries import ListedEvent
from engine.core.times import format_instant

Kind = Literal["text", "quantity", "instant", "integer", "json"]
Row = Sequence[Any]
"""Values in the order of the columns: text, micros, microseconds since 1970, int, JSON text; None: empty."""


class Column(NamedTuple):
    """A column's name and what its values are."""

    name: str
    kind: Kind


def _columns(text: str) -> tuple[Column, ...]:
    columns = []
    for word in text.split():
        name, _, kind = word.partition(":")
        columns.append(Column(name, kind or "text"))  # type: ignore[arg-type]
    return tuple(columns)


EVENT_COLUMNS: Final = _columns(
    "tenantId metric customerRef resourceId quantity:quantity ts:instant source idempotencyKey meta:json "
    "receivedAt:instant sequence:integer"
)
COUNTER_COLUMNS: Final = _columns(
    "tenantId metric customerRef periodStart:instant periodEnd:instant aggregation current:quantity sum:quantity "
    "max:quantity last:quantity count:integer pendingLate:integer watermark:instant updatedAt:instant"
)
ADJUSTMENT_COLUMNS: Final = _columns(
    "id tenantId metric customerRef periodStart:instant periodEnd:instant kind status delta:quantity value:quantity "
    "eventCount:integer eventsTotal:quantity reason actor note requestId parentAdjustmentId operationId "
    "createdAt:instant decidedAt:instant decidedBy sequence:integer"
)
AUDIT_COLUMNS: Final = _columns(
    "sequence:integer at:instant tenantId actor action targets:json requestId after:json"
)


def event_row(event: ListedEvent) -> Row:
    """An event in EVENT_COLUMNS. Its time is as sent, or when it was received if none was sent."""
    return (
        event.tenant,
        event.metric,
        event.customer_ref,
        event.resource_id,
        event.quantity_micros,
        event.ts_us,
        event.source,
        event.id,
        event.meta,
        event.received_at_us,
        event.sequence,
    )


def header_line(columns: Sequence[Column]) -> bytes:
    """The first line of a CSV file."""
    return csv_lines(None, [[column.name for column in columns]])


def csv_lines(columns: Sequence[Column] | None, rows: Iterable[Row]) -> bytes:
    """Rows as CSV (RFC 4180, UTF-8, lines end in CR LF). `columns` None: the values are cells already."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    if columns is None:
        writer.writerows(rows)
    else:
        write = [_CELLS[column.kind] for column in columns]
        writer.writerows(
            ["" if value is None else cell(value) for cell, value in zip(write, row, strict=True)]
            for row in rows
        )
    return text.getvalue().encode()


def json_lines(columns: Sequence[Column], rows: Iterable[Row], *, as_string: bool = False) -> bytes:
    """Rows as JSON objects, one a line; empty values are left out. `as_string`: quantities as strings."""
    names = [column.name for column in columns]
    write = [
        _quantity_text if as_string and column.kind == "quantity" else _JSON[column.kind]
        for column in columns
    ]
    lines = [
        _encode(
            {
                name: value_of(value)
                for name, value_of, value in zip(names, write, row, strict=True)
                if value is not None
            }
        )
        for row in rows
    ]
    return b"".join(line + b"\n" for line in lines)


def _quantity_text(micros: int) -> str:
    return format_micros(micros)


def _quantity_number(micros: int) -> msgspec.Raw:
    return msgspec.Raw(format_micros(micros))


def _raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text)


def _same(value: Any) -> Any:
    return value


_encode = msgspec.json.Encoder().encode
_CELLS: Final[dict[Kind, Any]] = {
    "text": text_cell,
    "quantity": format_micros,
    "instant": format_instant,
    "integer": str,
    "json": text_cell,
}
_JSON: Final[dict[Kind, Any]] = {
    "text": _same,
    "quantity": _quantity_number,
    "instant": format_instant,
    "integer": _same,
    "json": _raw,
}
