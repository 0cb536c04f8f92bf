"""Exports and explanations from a running server, over HTTP: the same rows as from a directory.

Rules it keeps: an answer that is cut off is an error, never a shorter file; at most a page is in memory. It must not
know how rows are written.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Any, Final, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from engine.actors.as_of import Asked
from engine.core.times import format_date, format_instant, parse_instant
from engine.errors import EngineError
from gateway.adjustments import AdjustmentList, AdjustmentView
from gateway.audit import AuditEntry, AuditList
from gateway.explain import UsageExplained
from gateway.export_rows import COUNTER_COLUMNS, EVENT_COLUMNS, Column, Kind, Row
from gateway.export_sources import ExportFilter, Progress, What
from gateway.export_streams import DROPPED_HEADER
from gateway.problems import ProblemBody
from gateway.streams import SECONDS_MAX

PAGE: Final = 100
ROWS_AT_ONCE: Final = 2_000
LINE_BYTES_MAX: Final = 1 << 20
ANSWER_BYTES_MAX: Final = 64 << 20
IDLE_SECONDS_MAX: Final = 60
AnswerT = TypeVar("AnswerT")
_decode_line = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode


class ServerSource:
    """A running server. See gateway.export_sources.Source."""

    def __init__(self, url: str, api_key: str | None) -> None:
        """Raises EngineError when the address is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise EngineError(f"{url!r} is no server: give one like http://127.0.0.1:3000")
        self._url = url.rstrip("/")
        self._parts = parts
        self._notes: list[str] = []
        self._headers = {"accept": "*/*"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"

    def rows(self, what: What, wanted: ExportFilter, progress: Progress) -> Iterator[list[Row]]:
        """See Source."""
        match what:
            case "events":
                query = _query(wanted, "startTime", "endTime")
                return self._lines("/v1/events", EVENT_COLUMNS, query, progress)
            case "counters":
                query = _query(wanted, "since", "until")
                return self._lines("/v1/usage/counters", COUNTER_COLUMNS, query, progress)
            case "adjustments":
                return self._adjustments(wanted, progress)
            case "audit":
                return self._audit(wanted, progress)

    def notes(self) -> list[str]:
        """See Source."""
        return self._notes

    def explain(
        self, series: tuple[str, str, str], day_us: int, asked: Asked | None
    ) -> UsageExplained:
        """See Source."""
        tenant, metric, customer_ref = series
        query = {
            "tenantId": tenant,
            "metric": metric,
            "customerRef": customer_ref,
            "periodStart": format_date(day_us),
        }
        if asked is not None:
            query["asOf"] = (
                format_instant(asked.at_us) if asked.at_us is not None else str(asked.position)
            )
        return self._ask("/v1/usage/explain", query, UsageExplained)

    def _lines(
        self, path: str, columns: tuple[Column, ...], query: dict[str, Any], progress: Progress
    ) -> Iterator[list[Row]]:
        read = 0
        rows: list[Row] = []
        for line in self._stream(path, query | {"format": "jsonl"}):
            rows.append(_row(columns, line))
            if len(rows) == ROWS_AT_ONCE:
                read += len(rows)
                progress(read, None)
                yield rows
                rows = []
        yield rows

    def _adjustments(self, wanted: ExportFilter, progress: Progress) -> Iterator[list[Row]]:
        query: dict[str, Any] = {"limit": PAGE, **_query(wanted, None, None)}
        read = 0
        while True:
            page = self._ask("/v1/adjustments", query, AdjustmentList)
            read += len(page.adjustments)
            progress(read, page.total)
            rows = [_adjustment(one) for one in page.adjustments]
            yield [row for row in rows if wanted.has_time(row[_CREATED_AT])]
            if page.next_cursor is None:
                return
            query["cursor"] = page.next_cursor

    def _audit(self, wanted: ExportFilter, progress: Progress) -> Iterator[list[Row]]:
        query: dict[str, Any] = {"limit": PAGE, **_query(wanted, "startTime", "endTime")}
        read = 0
        while True:
            page = self._ask("/v1/audit", query, AuditList)
            read += len(page.entries)
            progress(read, page.total)
            yield [_audited(one) for one in page.entries]
            if page.next_cursor is None:
                return
            query["cursor"] = page.next_cursor

    def _ask(self, path: str, query: dict[str, Any], answer: type[AnswerT]) -> AnswerT:
        response, connection = self._open(path, query)
        try:
            return msgspec.json.decode(response.read(ANSWER_BYTES_MAX), type=answer)
        except msgspec.MsgspecError as error:
            message = f"{self._url} does not answer as this server would: {error}"
            raise EngineError(message) from error
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"{self._url} does not answer: {error}") from error
        finally:
            connection.close()

    def _stream(self, path: str, query: dict[str, Any]) -> Iterator[bytes]:
        response, connection = self._open(path, query)
        try:
            while line := response.readline(LINE_BYTES_MAX):
                if not line.endswith(b"\n"):
                    raise EngineError(_cut_off(self._url))
                yield line
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(_cut_off(self._url)) from error
        finally:
            connection.close()

    def _open(
        self, path: str, query: dict[str, Any]
    ) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
        """A good answer whose body is still to be read. Raises EngineError with what the server says."""
        kind = (
            http.client.HTTPSConnection
            if self._parts.scheme == "https"
            else http.client.HTTPConnection
        )
        assert self._parts.hostname is not None
        connection = kind(self._parts.hostname, self._parts.port, timeout=IDLE_SECONDS_MAX)
        target = f"{self._parts.path.rstrip('/')}{path}?{urlencode(query)}"
        try:
            connection.request("GET", target, headers=self._headers)
            response = connection.getresponse()
            if response.status == 200:
                if (dropped := response.headers.get(DROPPED_HEADER)) is not None:
                    self._notes.append(
                        f"events before {dropped} that retention dropped are left out: they are in its archives"
                    )
                return response, connection
            content = response.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise EngineError(f"{self._url} does not answer: {error}") from error
        connection.close()
        raise EngineError(_told(self._url, response.status, content))


def _cut_off(url: str) -> str:
    return (
        f"{url} cut the answer off (it stopped, had trouble, or took more than {SECONDS_MAX} s): try again, with a "
        "shorter range"
    )


def _told(url: str, status: int, content: bytes) -> str:
    try:
        problem = msgspec.json.decode(content, type=ProblemBody)
    except msgspec.MsgspecError:
        return f"{url} answers {status}, but not as this server would"
    hint = " (--api-key, or STRIPEMETER_API_KEY)" if status in (401, 403) else ""
    if any(error.field == "tenantId" for error in problem.errors):
        hint = " (--tenant)"
    errors = "; ".join(f"{error.field} {error.message}" for error in problem.errors)
    return f"{problem.detail}{hint}{': ' + errors if errors else ''}"


def _query(wanted: ExportFilter, since: str | None, until: str | None) -> dict[str, Any]:
    query: dict[str, Any] = {}
    if wanted.tenant is not None:
        query["tenantId"] = wanted.tenant
    if since is not None and wanted.since_us is not None:
        query[since] = format_instant(wanted.since_us)
    if until is not None and wanted.until_us is not None:
        query[until] = format_instant(wanted.until_us)
    return query


def _row(columns: tuple[Column, ...], line: bytes) -> Row:
    """A row from a line as gateway.export_rows wrote it."""
    try:
        fields = _decode_line(line)
        return [
            _VALUES[kind](bytes(fields[name])) if name in fields else None for name, kind in columns
        ]
    except (msgspec.MsgspecError, ValueError) as error:
        raise EngineError(f"the server sent a line that can't be read: {error}") from error


def micros_of(text: str) -> int:
    """Micros of a plain decimal of any size, as `format_micros` writes it. Raises ValueError."""
    whole, _, fraction = text.partition(".")
    micros = int(whole.lstrip("-") + fraction.ljust(6, "0"))
    return -micros if text.startswith("-") else micros


def _micros(raw: bytes) -> int:
    return micros_of(raw.decode())


def _quantity(raw: msgspec.Raw | msgspec.UnsetType) -> int | None:
    return None if isinstance(raw, msgspec.UnsetType) else _micros(bytes(raw))


def _instant(raw: bytes) -> int:
    return parse_instant(_decode_text(raw))


def _instant_or_none(text: str | None) -> int | None:
    return None if text is None else parse_instant(text)


_VALUES: Final[dict[Kind, Any]] = {
    "text": _decode_text,
    "quantity": _micros,
    "instant": _instant,
    "integer": int,
    "json": bytes.decode,
}


_CREATED_AT: Final = 18


def _adjustment(one: AdjustmentView) -> Row:
    events = None if isinstance(one.event_count, msgspec.UnsetType) else one.event_count
    return (
        one.id,
        one.tenant_id,
        one.metric,
        one.customer_ref,
        parse_instant(one.period.start),
        parse_instant(one.period.end),
        one.kind,
        one.status,
        _quantity(one.delta),
        _quantity(one.value),
        events,
        _quantity(one.events_total),
        one.reason,
        one.actor,
        one.note,
        one.request_id,
        one.parent_adjustment_id,
        one.operation_id,
        parse_instant(one.created_at),
        _instant_or_none(one.decided_at),
        one.decided_by,
        one.sequence,
    )


def _audited(one: AuditEntry) -> Row:
    encode = msgspec.json.Encoder(order="sorted").encode
    return (
        int(one.id),
        parse_instant(one.at),
        one.tenant_id,
        one.actor,
        one.action,
        encode(one.targets).decode(),
        one.request_id,
        None if one.after is None else encode(one.after).decode(),
    )
