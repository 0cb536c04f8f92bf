"""`/v1/events/backfill`: events of the past, taken in the background and judged by the watermarks at their start.

Rules it keeps: what can be refused at once is (a period that is none, a CSV without a usable header); every row that
does not count is listed with its line; a backfill of another tenant does not exist for the asker. It must not know
how an operation runs (engine.actors.operations).
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import msgspec

from engine.core.configured import Change
from engine.core.operations import BACKFILL, Asked, Operation
from engine.core.sent_rows import HeaderRefused, count_csv
from engine.core.times import TimeError, parse_date, parse_instant
from gateway import parameters
from gateway.problems import Problem, wrong_fields
from gateway.routes import Answer, Call
from gateway.shapes import CustomerRef, Instant, MetricName, TenantId, instant_or_none

Status = Literal["pending", "processing", "completed", "failed", "cancelled"]
Reason = Annotated[
    str,
    msgspec.Meta(
        description="Why, for the audit log.",
        min_length=1,
        max_length=500,
        examples=["collector was down on the 3rd"],
    ),
]
Day = Annotated[
    str,
    msgspec.Meta(
        description="A UTC day, or an instant.",
        max_length=64,
        extra_json_schema={"x-instead": parameters.DAY_SCHEMA},
    ),
]
_EVENTS_SCHEMA = {"type": "array", "minItems": 1, "items": {"type": "object"}}


class BackfillBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Events of the past: a list, or CSV with a header line."""

    tenant_id: TenantId | None = None
    metric: Annotated[MetricName, msgspec.Meta(description="Of rows that name none.")] | None = None
    customer_ref: (
        Annotated[CustomerRef, msgspec.Meta(description="Of rows that name none.")] | None
    ) = None
    period_start: Annotated[Day, msgspec.Meta(description="Rows before it are refused.")]
    period_end: (
        Annotated[Day, msgspec.Meta(description="Rows at or after it are refused.")] | None
    ) = None
    reason: Reason
    events: (
        Annotated[
            msgspec.Raw,
            msgspec.Meta(
                description="Events as ingest takes them; each needs a `ts`.",
                extra_json_schema=_EVENTS_SCHEMA,
            ),
        ]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    csv_data: (
        Annotated[
            str,
            msgspec.Meta(
                description="CSV with columns in camelCase or snake_case; the header is line 1.",
                min_length=1,
            ),
        ]
        | None
    ) = None


class RowErrorView(msgspec.Struct, frozen=True):
    """Why a row did not count."""

    line: Annotated[
        int, msgspec.Meta(description="CSV: its line, the header's is 1. JSON: its place from 1.")
    ]
    error: str


class BackfillAsked(msgspec.Struct, rename="camel", kw_only=True):
    """A backfill that was asked for or changed."""

    operation_id: Annotated[str, msgspec.Meta(examples=["op_0123456789abcdef"])]
    status: Status


class BackfillView(msgspec.Struct, rename="camel", kw_only=True):
    """A backfill, and how far it is."""

    operation_id: str
    tenant_id: str
    status: Status
    reason: str
    period_start: Instant | None
    period_end: Instant | None
    metric: str | None
    customer_ref: str | None
    total_events: int
    processed_events: int
    accepted_events: int
    duplicate_events: int
    late_events: Annotated[
        int, msgspec.Meta(description="Of the accepted: held in a pending adjustment.")
    ]
    failed_events: int
    errors: Annotated[
        list[RowErrorView], msgspec.Meta(description="The rows that failed; the first 1,000.")
    ]
    message: Annotated[str, msgspec.Meta(description="Why it ended early; else empty.")]
    actor: str
    created_at: Instant
    updated_at: Instant


class BackfillList(msgspec.Struct, rename="camel", kw_only=True):
    """A page of backfills, newest first, without their errors."""

    backfills: list[BackfillView]
    total: int


def view(call: Call, operation: Operation, *, with_errors: bool = True) -> BackfillView:
    """A backfill as the API shows it."""
    accepted, late = call.gateway.meter.started.operations.counted(operation)
    asked = operation.asked
    return BackfillView(
        operation_id=operation.id,
        tenant_id=operation.tenant_id,
        status=operation.status,  # type: ignore[arg-type]
        reason=asked.reason,
        period_start=instant_or_none(asked.period_start_us),
        period_end=instant_or_none(asked.period_end_us),
        metric=asked.metric,
        customer_ref=asked.customer_ref,
        total_events=asked.rows_total,
        processed_events=operation.processed,
        accepted_events=accepted,
        # Rows of the chunk that is on its way may be counted and not yet looked at by all.
        duplicate_events=max(0, operation.processed - operation.failed - accepted),
        late_events=late,
        failed_events=operation.failed,
        errors=[RowErrorView(one.line, one.error) for one in operation.errors]
        if with_errors
        else [],
        message=operation.message,
        actor=operation.actor,
        created_at=instant_or_none(asked.at_us) or "",
        updated_at=instant_or_none(operation.updated_at_us) or "",
    )


def change_of(call: Call) -> Change:
    """Who asks, as a record has it."""
    return Change(actor=call.by.actor, request_id=call.by.request_id)


def _instant(text: str) -> int:
    try:
        return parse_date(text)
    except TimeError:
        return parse_instant(text)


class _Rows(NamedTuple):
    """What was sent: its format, its bytes, and how many rows it has."""

    format: str
    data: bytes
    total: int


class RowsRefused(NamedTuple):
    """Why what was sent can't be taken at all."""

    field: str
    message: str


_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def _rows(body: BackfillBody) -> _Rows | RowsRefused:
    is_list = body.events is not msgspec.UNSET
    if is_list == (body.csv_data is not None):
        return RowsRefused("events", "or csvData: send one of them")
    if body.csv_data is not None:
        try:
            total = count_csv(body.csv_data)
        except HeaderRefused as error:
            return RowsRefused("csvData", str(error))
        if total == 0:
            return RowsRefused("csvData", "has no row after its header")
        return _Rows("csv", body.csv_data.encode(), total)
    data = bytes(body.events)  # type: ignore[arg-type]
    try:
        total = len(_decode_list(data))
    except msgspec.MsgspecError:
        return RowsRefused("events", "must be a list of events")
    if total == 0:
        return RowsRefused("events", "is empty; send at least one event")
    return _Rows("json", data, total)


async def create_backfill(call: Call) -> Answer | Problem:
    """POST /v1/events/backfill."""
    body: BackfillBody = call.body
    assert call.tenant is not None
    times: dict[str, int | None] = {"periodEnd": None}
    errors: list[tuple[str, str]] = []
    for name, text in (("periodStart", body.period_start), ("periodEnd", body.period_end)):
        try:
            times[name] = None if text is None else _instant(text)
        except TimeError as error:
            errors.append((name, str(error)))
    start_us, end_us = times.get("periodStart"), times["periodEnd"]
    if start_us is not None and end_us is not None and end_us <= start_us:
        errors.append(("periodEnd", "must be after periodStart"))
    rows = _rows(body)
    if isinstance(rows, RowsRefused):
        errors.append((rows.field, rows.message))
    if errors or isinstance(rows, RowsRefused):
        return wrong_fields(errors)
    asked = Asked(
        at_us=call.now_us,
        reason=body.reason,
        format=rows.format,
        metric=body.metric,
        customer_ref=body.customer_ref,
        period_start_us=start_us,
        period_end_us=end_us,
        rows_total=rows.total,
    )
    runner = call.gateway.meter.started.operations
    operation = await runner.ask_backfill(call.tenant, asked, rows.data, change_of(call))
    answer = BackfillAsked(operation_id=operation.id, status=operation.status)  # type: ignore[arg-type]
    return Answer(answer, 202, headers=(("location", f"/v1/events/backfill/{operation.id}"),))


async def list_backfills(call: Call) -> Answer | Problem:
    """GET /v1/events/backfill."""
    found = list(call.gateway.meter.registry.operations.of(call.tenant, BACKFILL))
    if (status := call.query["status"]) is not None:
        found = [one for one in found if one.status == status]
    start = call.query["offset"] or 0
    page = found[start : start + call.query["limit"]]
    shown = [view(call, one, with_errors=False) for one in page]
    return Answer(BackfillList(backfills=shown, total=len(found)))


async def get_backfill(call: Call) -> Answer | Problem:
    """GET /v1/events/backfill/{id}."""
    runner = call.gateway.meter.started.operations
    return Answer(view(call, runner.find(call.path["id"], call.tenant, BACKFILL)))


async def cancel_backfill(call: Call) -> Answer | Problem:
    """POST /v1/events/backfill/{id}/cancel."""
    runner = call.gateway.meter.started.operations
    operation = runner.find(call.path["id"], call.tenant, BACKFILL)
    await runner.cancel(operation, change_of(call))
    return Answer(view(call, operation))
