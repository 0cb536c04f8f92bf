"""`/v1/events/imports`: what `stripemeter import` asks a running server: begin, how far, end, and what would be.

The rows themselves go to ingest, with the header StripeMeter-Import naming the operation: that is the fast way in, with
its limits and its answers, and it marks them so that all are judged by the watermarks at the import's start.
Rules it keeps: folding into closed periods (`historic`) needs the scope of corrections too; an import of another
tenant does not exist for the asker. It must not know files.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

import msgspec

from engine.actors.dry_run import DryRun
from engine.core.events import EventLimits
from engine.core.operations import IMPORT, ROW_ERRORS_MAX, Asked, Operation, Progress, RowError
from engine.core.sent_rows import SOURCE_OF_IMPORT, Meant, rows_of_list
from gateway.backfills import RowErrorView, Status, change_of
from gateway.problems import Problem, wrong_fields
from gateway.routes import Answer, Call
from gateway.shapes import Instant, TenantId, instant_or_none

_HISTORIC_SCOPE = "adjustments:write"
_EVERYBODY = ""
"""The tenant of an import whose rows may be any tenant's."""
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Cursor = Annotated[
    str, msgspec.Meta(description="Where to go on, as its maker wrote it.", max_length=1024)
]


class ImportBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """An import that begins, or that is gone on with."""

    tenant_id: TenantId | None = None
    historic: Annotated[
        bool,
        msgspec.Meta(description="Fold into closed periods too; these are then never pushed."),
    ] = False
    identity: Annotated[
        str,
        msgspec.Meta(
            description="What the files are: an open import of the same is gone on with.",
            max_length=128,
        ),
    ] = ""


class ImportProgress(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """How far an import has come, in all; every row up to the cursor was acknowledged."""

    tenant_id: TenantId | None = None
    processed_events: Count
    failed_events: Count = 0
    cursor: Cursor = ""
    errors: Annotated[
        list[RowErrorView],
        msgspec.Meta(
            description="Rows that failed since the last time.", max_length=ROW_ERRORS_MAX
        ),
    ] = []


class ImportEnd(ImportProgress, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """The end of an import."""

    status: Literal["completed", "failed", "cancelled"] = "completed"


class ImportView(msgspec.Struct, rename="camel", kw_only=True):
    """An import, and how far it is."""

    operation_id: str
    tenant_id: str | None
    status: Status
    historic: bool
    processed_events: int
    accepted_events: int
    late_events: int
    failed_events: int
    cursor: Cursor
    errors: list[RowErrorView]
    message: str
    actor: str
    created_at: Instant
    updated_at: Instant


class ImportList(msgspec.Struct, rename="camel", kw_only=True):
    """A page of imports, newest first, without their errors."""

    imports: list[ImportView]
    total: int


class CheckBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Rows that might be imported."""

    tenant_id: TenantId | None = None
    historic: bool = False
    events: Annotated[
        msgspec.Raw,
        msgspec.Meta(
            description="Events as ingest takes them.",
            extra_json_schema={"type": "array", "minItems": 1, "items": {"type": "object"}},
        ),
    ]


class CheckView(msgspec.Struct, rename="camel", kw_only=True):
    """What would become of rows; nothing was changed."""

    fates: Annotated[
        list[Literal["new", "late", "duplicate", "conflict", "invalid"]],
        msgspec.Meta(description="`fates[i]` is about `events[i]`."),
    ]
    errors: list[RowErrorView]


def view(call: Call, operation: Operation, *, with_errors: bool = True) -> ImportView:
    """An import as the API shows it."""
    accepted, late = call.gateway.meter.started.operations.counted(operation)
    return ImportView(
        operation_id=operation.id,
        tenant_id=operation.tenant_id or None,
        status=operation.status,  # type: ignore[arg-type]
        historic=operation.asked.historic,
        processed_events=operation.processed,
        accepted_events=accepted,
        late_events=late,
        failed_events=operation.failed,
        cursor=base64.b64encode(operation.cursor).decode(),
        errors=[RowErrorView(one.line, one.error) for one in operation.errors]
        if with_errors
        else [],
        message=operation.message,
        actor=operation.actor,
        created_at=instant_or_none(operation.asked.at_us) or "",
        updated_at=instant_or_none(operation.updated_at_us) or "",
    )


async def start_import(call: Call) -> Answer | Problem:
    """POST /v1/events/imports."""
    body: ImportBody = call.body
    if body.historic and not call.gateway.access.allows(call.identity, _HISTORIC_SCOPE):
        return Problem(403, f"historic needs the scope {_HISTORIC_SCOPE} too")
    asked = Asked(at_us=call.now_us, historic=body.historic, identity=body.identity)
    runner = call.gateway.meter.started.operations
    operation = await runner.start_import(call.tenant or _EVERYBODY, asked, change_of(call))
    location = ("location", f"/v1/events/imports/{operation.id}")
    return Answer(view(call, operation), 201, headers=(location,))


async def list_imports(call: Call) -> Answer | Problem:
    """GET /v1/events/imports."""
    found = list(call.gateway.meter.registry.operations.of(call.tenant, IMPORT))
    start = call.query["offset"] or 0
    page = found[start : start + call.query["limit"]]
    shown = [view(call, one, with_errors=False) for one in page]
    return Answer(ImportList(imports=shown, total=len(found)))


async def get_import(call: Call) -> Answer | Problem:
    """GET /v1/events/imports/{id}."""
    runner = call.gateway.meter.started.operations
    return Answer(view(call, runner.find(call.path["id"], call.tenant, IMPORT)))


async def note_progress(call: Call) -> Answer | Problem:
    """POST /v1/events/imports/{id}/progress."""
    runner = call.gateway.meter.started.operations
    operation = runner.find(call.path["id"], call.tenant, IMPORT)
    progress = _progress(call)
    if isinstance(progress, Problem):
        return progress
    await runner.note_progress(operation, progress, change_of(call))
    return Answer(view(call, operation))


async def finish_import(call: Call) -> Answer | Problem:
    """POST /v1/events/imports/{id}/finish."""
    runner = call.gateway.meter.started.operations
    operation = runner.find(call.path["id"], call.tenant, IMPORT)
    progress = _progress(call)
    if isinstance(progress, Problem):
        return progress
    await runner.finish_import(operation, call.body.status, progress, change_of(call))
    return Answer(view(call, operation))


def _progress(call: Call) -> Progress | Problem:
    body: ImportProgress = call.body
    try:
        cursor = base64.b64decode(body.cursor, validate=True)
    except (binascii.Error, ValueError):
        return wrong_fields([("cursor", "must be base64")])
    return Progress(
        at_us=call.now_us,
        processed=body.processed_events,
        failed=body.failed_events,
        cursor=cursor,
        errors=tuple(RowError(error.line, error.error) for error in body.errors),
    )


async def check_import(call: Call) -> Answer | Problem:
    """POST /v1/events/imports/check."""
    body: CheckBody = call.body
    limits = EventLimits(
        call.gateway.settings.max_meta_bytes, call.gateway.meter.registry.horizon_us
    )
    meant = Meant(call.tenant, SOURCE_OF_IMPORT)
    dry_run = DryRun(call.gateway.meter, meant, limits, historic=body.historic)
    try:
        rows = list(rows_of_list(bytes(body.events)))
    except msgspec.MsgspecError:
        return wrong_fields([("events", "must be a list of events")])
    if not 1 <= len(rows) <= call.gateway.settings.max_batch:
        return wrong_fields(
            [("events", f"must hold 1 to {call.gateway.settings.max_batch} events")]
        )
    judged = [dry_run.judge(row) for row in rows]
    fates: list[Any] = [one.fate for one in judged]
    errors = [RowErrorView(one.line, one.error) for one in judged if one.error is not None]
    return Answer(CheckView(fates=fates, errors=errors))
