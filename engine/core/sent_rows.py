"""Rows of a backfill or an import: from JSON lines, a JSON list or CSV to events, each with its line.

Rules it keeps: a bad row is a refusal in its own place; a field that is not known is an error, since a key or a time
that is passed over in silence would count an event twice or at another time; camelCase and snake_case mean the same,
and what an export wrote is read back (`id` is the key, `timestamp` the time). A row without a source has the
fingerprint of an event without one, so that what was counted live and is imported again counts once.
It must not know files, operations or the log.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, NamedTuple, overload

import msgspec

from engine.core.csv_cells import read_cell
from engine.core.events import (
    NUL_REFUSED,
    EventLimits,
    Refusal,
    SentEvent,
    accept,
    holds_nul,
)
from engine.core.records import SOURCE_CODES, Row
from engine.limits import METRIC_CHARS_MAX, NAME_CHARS_MAX

LINE_BYTES_MAX: Final = 1 << 20
"""Of one row; a longer one is refused, not cut."""
CELL_CHARS_MAX: Final = 131_072
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX)]
_Metric = Annotated[str, msgspec.Meta(min_length=1, max_length=METRIC_CHARS_MAX)]
_NO_QUANTITY: Final = msgspec.Raw()
_NO_META: Final = msgspec.Raw()


class ExactRow(SentEvent, forbid_unknown_fields=True, gc=False, kw_only=True, rename="camel"):
    """A row that has the names of the API and no others: nearly every one."""


class _LooseRow(SentEvent, forbid_unknown_fields=True, gc=False, kw_only=True, rename="camel"):
    """A row with any of the names that are understood, or without a metric or customer of its own."""

    metric: _Metric = ""
    customer_ref: _Name = ""
    quantity: msgspec.Raw = _NO_QUANTITY
    customer_snake: _Name | None = msgspec.field(default=None, name="customer_ref")
    tenant_snake: _Name | None = msgspec.field(default=None, name="tenant_id")
    resource_snake: _Name | None = msgspec.field(default=None, name="resource_id")
    key_snake: _Name | None = msgspec.field(default=None, name="idempotency_key")
    id: _Name | None = None
    timestamp: str | None = None
    received_at: msgspec.Raw = msgspec.Raw()
    received_snake: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="received_at")
    sequence: msgspec.Raw = msgspec.Raw()


class SentRow(NamedTuple):
    """A row and its line, from 1; of a row over several lines, the first."""

    line: int
    event: SentEvent | Refusal


class EventRows(Sequence[SentRow]):
    """Rows that could all be read, on lines that follow one another."""

    __slots__ = ("events", "first_line")

    def __init__(self, events: Sequence[SentEvent], first_line: int) -> None:
        self.events = events
        self.first_line = first_line

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[SentRow]:
        return map(SentRow, range(self.first_line, self.first_line + len(self.events)), self.events)

    @overload
    def __getitem__(self, at: int) -> SentRow: ...
    @overload
    def __getitem__(self, at: slice) -> EventRows: ...
    def __getitem__(self, at: int | slice) -> SentRow | EventRows:
        if isinstance(at, slice):
            first = self.first_line + range(len(self.events))[at].start
            return EventRows(self.events[at], first)
        line = self.first_line + range(len(self.events))[at]
        return SentRow(line, self.events[at])


class Meant(NamedTuple):
    """What rows mean that don't say it, and where they must lie."""

    tenant: str | None
    """None: each row says its own."""
    source: int
    metric: str | None = None
    customer_ref: str | None = None
    start_us: int | None = None
    end_us: int | None = None
    """Rows outside [start, end) are refused, and rows without a time; None: no such bound."""
    only_tenant: bool = True
    """Whether a row that names another tenant is refused."""


class HeaderRefused(ValueError):
    """A CSV's header can't be used; the message names the column."""


_decode_exact_lines = msgspec.json.Decoder(ExactRow).decode_lines
_decode_loose_lines = msgspec.json.Decoder(_LooseRow).decode_lines
_decode_loose = msgspec.json.Decoder(_LooseRow).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_check_value = msgspec.json.Decoder(float_hook=len).decode
"""For what it raises: a cell is put into the row as it is, and one that ended its value would set other fields."""
_UNREADABLE: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


# JSON.


def rows_of_lines(data: bytes, first_line: int) -> Sequence[SentRow]:
    """The rows of JSON lines; blank lines are none. `first_line` is the number of the first."""
    count = data.count(b"\n") + (not data.endswith(b"\n"))
    if _one_each(data, count):
        try:
            events = _decode_exact_lines(data)
            if b'"meta"' in data or b"\\u" in data:  # which may spell meta
                for event in events:
                    event.meta = _as_object(event.meta)
            if len(events) == count:
                return EventRows(events, first_line)
        except _UNREADABLE:
            pass  # another style of names, or a row that is wrong
        with suppress(*_UNREADABLE):
            loose = _decode_loose_lines(data)
            if len(loose) == count:
                return [SentRow(first_line + at, _settled(row)) for at, row in enumerate(loose)]
    return [
        SentRow(number, _row_of(line))
        for number, line in enumerate(data.split(b"\n"), first_line)
        if line.strip()
    ]


def _one_each(data: bytes, count: int) -> bool:
    """Whether the lines part the objects: the decoder also takes two on a line, and one over two lines.

    Inside of an object no line that ends with a brace is followed by one that begins with one.
    """
    between = data.count(b"}\n{") or data.count(b"}\r\n{")
    return between == count - 1 and data[:1] == b"{" and data[-3:].rstrip()[-1:] == b"}"


def rows_of_list(events: bytes) -> Iterator[SentRow]:
    """The rows of a JSON list; the line of item i is i + 1. Raises msgspec.MsgspecError if it is none."""
    for number, raw in enumerate(_decode_list(events), 1):
        yield SentRow(number, _row_of(bytes(raw)))


def _row_of(data: bytes) -> SentEvent | Refusal:
    if len(data) > LINE_BYTES_MAX:
        return Refusal(None, f"the row is longer than {LINE_BYTES_MAX} bytes")
    try:
        return _settled(_decode_loose(data))
    except _UNREADABLE as error:
        return Refusal(None, _words(error))


def _words(error: Exception) -> str:
    """Msgspec's message, with the field first."""
    if isinstance(error, RecursionError):
        return "the row nests too deep"
    message, found, path = str(error).partition(" - at `$.")
    if found:
        return f"{path.rstrip('`')}: {message[:1].lower()}{message[1:]}"
    return message


def _settled(row: _LooseRow) -> SentEvent | Refusal:
    """The row under the API's names; a refusal where two names say two things."""
    key = row.idempotency_key or row.key_snake or row.id
    for name, value, other in (
        ("idempotencyKey", key, row.key_snake),
        ("idempotencyKey", key, row.id),
        ("ts", row.ts or row.timestamp, row.timestamp),
        ("customerRef", row.customer_ref or row.customer_snake, row.customer_snake),
        ("tenantId", row.tenant_id or row.tenant_snake, row.tenant_snake),
        ("resourceId", row.resource_id or row.resource_snake, row.resource_snake),
    ):
        if other is not None and other != value:
            return Refusal(key, f"{name}: is given twice, and differs")
    if row.quantity == _NO_QUANTITY:
        return Refusal(key, "quantity: is missing")
    row.idempotency_key = key
    row.ts = row.ts if row.ts is not None else row.timestamp
    row.customer_ref = row.customer_ref or row.customer_snake or ""
    row.tenant_id = row.tenant_id or row.tenant_snake
    row.resource_id = row.resource_id or row.resource_snake
    row.meta = _as_object(row.meta)
    return row


def _as_object(meta: msgspec.Raw) -> msgspec.Raw:
    """Meta without the JSON string that an export puts around it."""
    raw = bytes(meta)
    return msgspec.Raw(msgspec.json.decode(raw, type=str).encode()) if raw[:1] == b'"' else meta


# CSV.

_COLUMNS: Final = {
    "tenantid": "tenantId",
    "metric": "metric",
    "customerref": "customerRef",
    "resourceid": "resourceId",
    "quantity": "quantity",
    "ts": "ts",
    "timestamp": "ts",
    "meta": "meta",
    "idempotencykey": "idempotencyKey",
    "id": "idempotencyKey",
    "source": "source",
    "receivedat": "",
    "sequence": "",
}
"""Column names without case and underscores; empty: an export's, passed over."""


def columns_of(header: Sequence[str]) -> list[str]:
    """The API's name of each column of a CSV's header. Raises HeaderRefused."""
    columns: list[str] = []
    for cell in header:
        name = _COLUMNS.get(cell.strip().lstrip("\ufeff").replace("_", "").lower())
        if name is None:
            known = "tenantId, metric, customerRef, resourceId, quantity, ts, meta, idempotencyKey, source"
            message = (
                f"line 1: there is no column {cell[:100]!r}; there are: {known} (or snake_case)"
            )
            raise HeaderRefused(message)
        if name and name in columns:
            raise HeaderRefused(f"line 1: column {cell[:100]!r} is there twice")
        columns.append(name)
    if "quantity" not in columns:
        raise HeaderRefused("line 1: a header with at least a column quantity is needed")
    return columns


def rows_of_csv(lines: Iterable[str]) -> Iterator[SentRow]:
    """The rows after the header, which is line 1. Raises HeaderRefused when there is no usable header."""
    lines = iter(lines)
    columns, line = header_of(lines)
    yield from rows_after_header(lines, columns, line)


def header_of(lines: Iterator[str]) -> tuple[list[str], int]:
    """(columns, lines taken) of the header, the first row; nothing after it is taken. Raises HeaderRefused."""
    reader = csv.reader(lines, strict=True)
    try:
        return columns_of(next(reader, [])), reader.line_num
    except csv.Error as error:
        raise HeaderRefused(f"line 1: {error}") from error


def rows_after_header(
    lines: Iterator[str], columns: Sequence[str], lines_before: int
) -> Iterator[SentRow]:
    """The rows of the lines that follow `lines_before` others; after each, exactly its lines are taken."""
    reader = csv.reader(lines, strict=True)
    line = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            refusal = Refusal(None, f"the row is no CSV: {error}")
            yield SentRow(lines_before + line + 1, refusal)
            line = reader.line_num
            continue
        if cells:
            yield SentRow(lines_before + line + 1, row_of_cells(columns, cells))
        line = reader.line_num


def lines_of(text: str) -> Iterable[str]:
    """The text line by line, as a CSV's reader wants it: only line feeds and carriage returns end one."""
    return io.StringIO(text, newline="")


def count_csv(text: str) -> int:
    """How many rows follow the header. Raises HeaderRefused."""
    reader = csv.reader(lines_of(text), strict=True)
    count = -1
    while True:
        try:
            for cells in reader:
                if count < 0:
                    columns_of(cells)
                count += bool(cells) or count < 0
            break
        except csv.Error as error:
            if count < 0:
                raise HeaderRefused(f"line 1: {error}") from error
            count += 1
    if count < 0:
        columns_of([])
    return count


def row_of_cells(columns: Sequence[str], cells: Sequence[str]) -> SentEvent | Refusal:
    """The row whose cells stand under `columns` (from `columns_of`)."""
    if len(cells) != len(columns):
        return Refusal(None, f"has {len(cells)} cells, the header {len(columns)}")
    fields: dict[str, Any] = {
        name: read_cell(cell)
        for name, cell in zip(columns, cells, strict=True)
        if name and cell != ""
    }
    if "meta" in fields:
        meta = fields["meta"].encode()
        try:
            _check_value(meta)
        except _UNREADABLE as error:
            return Refusal(fields.get("idempotencyKey"), f"meta: is no JSON value: {_words(error)}")
        fields["meta"] = msgspec.Raw(meta)
    for name in ("quantity", "ts"):
        if name in fields:
            fields[name] = fields[name].strip()
    return _row_of(_encode(fields))


# From rows to what the log takes.


def taken(
    sent: SentEvent | Refusal, meant: Meant, now_us: int, limits: EventLimits, *, nul: bool = True
) -> tuple[str, Row] | Refusal:
    """(tenant, row) of a good row, else why it does not count. `nul`: a name may hold U+0000."""
    if isinstance(sent, Refusal):
        return sent
    key = sent.idempotency_key
    tenant = sent.tenant_id or meant.tenant
    if tenant is None:
        return Refusal(key, "tenantId: is missing; name the tenant the row counts for")
    if tenant != meant.tenant and meant.only_tenant and meant.tenant is not None:
        return Refusal(key, "tenantId: is another tenant than the operation's")
    if not sent.metric:
        if meant.metric is None:
            return Refusal(key, "metric: is missing")
        sent.metric = meant.metric
    if not sent.customer_ref:
        if meant.customer_ref is None:
            return Refusal(key, "customerRef: is missing")
        sent.customer_ref = meant.customer_ref
    if nul and holds_nul(sent, tenant):
        return Refusal(key, NUL_REFUSED)
    row = accept(sent, tenant, None, now_us, limits, meant.source)
    if isinstance(row, Refusal) or (meant.start_us is None and meant.end_us is None):
        return row if isinstance(row, Refusal) else (tenant, row)
    ts_us = row[3]
    if ts_us is None:
        return Refusal(key, "ts: is missing; a row of a backfill says when it happened")
    too_late = meant.end_us is not None and ts_us >= meant.end_us
    if too_late or (meant.start_us is not None and ts_us < meant.start_us):
        return Refusal(key, "ts: lies outside of periodStart and periodEnd")
    return tenant, row


SOURCE_OF_BACKFILL: Final = SOURCE_CODES["etl"]
SOURCE_OF_IMPORT: Final = SOURCE_CODES["import"]
