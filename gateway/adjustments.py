"""`/v1/adjustments`: corrections, and the decisions on them.

Rules it keeps: quantities are read and written exactly; a list shows some of an adjustment's events and how many there
are; an adjustment of another tenant does not exist for the asker. It must not know what a decision changes
(engine.actors.corrections).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from engine.actors.corrections import Decision, Draft, Filter
from engine.core.adjustments import Adjustment
from engine.core.quantities import QuantityError, parse_json, to_json
from engine.core.times import DAY_US, TimeError, format_date, parse_date, parse_instant
from engine.limits import METRIC_CHARS_MAX
from gateway import parameters
from gateway.problems import Problem, wrong_fields
from gateway.routes import Answer, Call
from gateway.shapes import (
    CustomerRef,
    Instant,
    MetricName,
    Period,
    Quantity,
    TenantId,
    decode_cursor,
    encode_cursor,
    instant_or_none,
)

LISTED_EVENTS_MAX: Final = 10
SHOWN_EVENTS_MAX: Final = 1_000
IDS_SHOWN_MAX: Final = 100
STATUSES: Final = ("pending", "approved", "reverted", "superseded")
KINDS: Final = ("delta", "value", "event")
REASONS: Final = ("backfill", "correction", "promo", "credit", "manual")

Kind = Literal["delta", "value", "event"]
Status = Literal["pending", "approved", "reverted", "superseded"]
Reason = Literal["backfill", "correction", "promo", "credit", "manual"]
PeriodStart = Annotated[
    str,
    msgspec.Meta(
        description="The day on which the period starts, or its exact start.",
        extra_json_schema={"x-instead": parameters.DAY_SCHEMA},
    ),
]
SentQuantity = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="Exact decimal, as a number or a string.",
        extra_json_schema={"type": ["number", "string"], "examples": [-12.5]},
    ),
]


class AdjustmentBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """A new adjustment: a delta of a sum, or the value of a max or last metric."""

    tenant_id: TenantId | None = None
    metric: MetricName
    customer_ref: CustomerRef
    period_start: PeriodStart
    kind: Literal["delta", "value"] | UnsetType = UNSET
    delta: SentQuantity | UnsetType = UNSET
    value: SentQuantity | UnsetType = UNSET
    reason: Reason
    note: Annotated[str, msgspec.Meta(max_length=1000)] | None = None
    request_id: (
        Annotated[
            str,
            msgspec.Meta(
                description="Your own id of this adjustment: sent twice it makes one.",
                max_length=255,
            ),
        ]
        | None
    ) = None
    parent_adjustment_id: str | None = None


class HeldEvent(msgspec.Struct, rename="camel", kw_only=True):
    """A late event that an adjustment holds."""

    sequence: Annotated[int, msgspec.Meta(description="Its position in the log.")]
    quantity: Quantity
    timestamp: Instant


class AdjustmentView(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True):
    """An adjustment. Only an approved one counts."""

    id: Annotated[str, msgspec.Meta(examples=["adj_0123456789abcdef"])]
    tenant_id: TenantId
    metric: MetricName
    customer_ref: CustomerRef
    period_start: Annotated[str, msgspec.Meta(examples=["2026-01-01"])]
    period: Period
    kind: Kind
    delta: Quantity | UnsetType = UNSET
    value: Quantity | UnsetType = UNSET
    events: (
        Annotated[
            list[HeldEvent],
            msgspec.Meta(description="Some of the late events it holds, in log order."),
        ]
        | UnsetType
    ) = UNSET
    event_count: int | UnsetType = UNSET
    events_total: (
        Annotated[Quantity, msgspec.Meta(description="The sum of all events it holds.")] | UnsetType
    ) = UNSET
    reason: Reason
    actor: Annotated[str, msgspec.Meta(description="Who made it.")]
    status: Status
    note: str | None
    request_id: str | None
    parent_adjustment_id: str | None
    operation_id: Annotated[
        str | None, msgspec.Meta(description="The backfill or import whose late rows it holds.")
    ]
    created_at: Instant
    decided_at: Instant | None
    decided_by: str | None
    sequence: Annotated[int, msgspec.Meta(description="Log position of what made it.")]


class AdjustmentList(msgspec.Struct, rename="camel", kw_only=True):
    """A page of adjustments, newest first."""

    adjustments: list[AdjustmentView]
    total: int
    next_cursor: str | None = None


class DecisionBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Which adjustments of the tenant are decided; what is left out does not narrow."""

    tenant_id: TenantId | None = None
    metric: MetricName | None = None
    customer_ref: CustomerRef | None = None
    period_start: PeriodStart | None = None
    operation_id: str | None = None
    kind: Kind | None = None
    reason: Reason | None = None
    status: Annotated[
        Literal["pending", "approved"] | None,
        msgspec.Meta(description="Revert takes both back; this narrows it to one."),
    ] = None
    dry_run: Annotated[bool, msgspec.Meta(description="Say what would change.")] = False


class DecisionView(msgspec.Struct, rename="camel", kw_only=True):
    """What a decision on many changed."""

    changed: int
    unchanged: Annotated[
        int, msgspec.Meta(description="Decided like this before, or final: reverted, superseded.")
    ]
    late_events: Annotated[int, msgspec.Meta(description="Late events in those that changed.")]
    adjustment_ids: Annotated[
        list[str],
        msgspec.Meta(description=f"Those that changed, oldest first, at most {IDS_SHOWN_MAX}."),
    ]
    dry_run: bool


def view(
    adjustment: Adjustment, *, as_string: bool, first: int = 0, events_max: int = LISTED_EVENTS_MAX
) -> AdjustmentView:
    """An adjustment as the API shows it, with its events from number `first` on."""

    def write(micros: int) -> msgspec.Raw:
        return to_json(micros, as_string=as_string)

    shown = AdjustmentView(
        id=adjustment.id,
        tenant_id=adjustment.tenant,
        metric=adjustment.metric,
        customer_ref=adjustment.customer_ref,
        period_start=format_date(adjustment.start_us - adjustment.start_us % DAY_US),
        period=Period(
            instant_or_none(adjustment.start_us) or "", instant_or_none(adjustment.end_us) or ""
        ),
        kind=adjustment.kind,
        reason=adjustment.reason,  # type: ignore[arg-type]
        actor=adjustment.actor,
        status=adjustment.status,
        note=adjustment.note,
        request_id=adjustment.request_id,
        parent_adjustment_id=adjustment.parent_id,
        operation_id=adjustment.operation_id,
        created_at=instant_or_none(adjustment.created_at_us) or "",
        decided_at=instant_or_none(adjustment.decided_at_us),
        decided_by=adjustment.decided_by,
        sequence=adjustment.sequence,
    )
    if adjustment.kind == "delta":
        shown.delta = write(adjustment.micros)
    elif adjustment.kind == "value":
        shown.value = write(adjustment.micros)
    else:
        part = slice(first, first + events_max)
        columns = (adjustment.sequences, adjustment.quantities, adjustment.times_us)
        shown.events = [
            HeldEvent(sequence=at, quantity=write(micros), timestamp=instant_or_none(ts_us) or "")
            for at, micros, ts_us in zip(*(column[part] for column in columns), strict=True)
        ]
        shown.event_count = len(adjustment.sequences)
        shown.events_total = write(sum(adjustment.quantities))
    return shown


async def list_adjustments(call: Call) -> Answer | Problem:
    """GET /v1/adjustments."""
    query = call.query
    wanted = Filter(
        call.tenant,
        metric=query["metric"],
        customer_ref=query["customerRef"],
        period_at_us=query["periodStart"],
        status=query["status"],
        reason=query["reason"],
        kind=query["kind"],
        operation_id=query["operationId"],
    )
    before = None
    if query["cursor"] is not None:
        before = decode_cursor(query["cursor"])
        if query["offset"] is not None or not before or [type(part) for part in before] != [int]:
            return wrong_fields([("cursor", parameters.CURSOR_REFUSED)])
    found = await call.gateway.corrections.matching(wanted)
    start = query["offset"] or 0
    if before is not None:
        start = sum(1 for adjustment in found if adjustment.sequence >= before[0])
    page = found[start : start + query["limit"]]
    more = page and start + len(page) < len(found)
    as_string = call.numbers_as_strings
    return Answer(
        AdjustmentList(
            adjustments=[view(adjustment, as_string=as_string) for adjustment in page],
            total=len(found),
            next_cursor=encode_cursor([page[-1].sequence]) if more else None,
        )
    )


async def get_adjustment(call: Call) -> Answer | Problem:
    """GET /v1/adjustments/{id}."""
    found = call.gateway.corrections.adjustment(call.path["id"], call.tenant)
    first = call.query["eventsOffset"]
    as_string = call.numbers_as_strings
    return Answer(view(found, as_string=as_string, first=first, events_max=SHOWN_EVENTS_MAX))


async def create_adjustment(call: Call) -> Answer | Problem:
    """POST /v1/adjustments."""
    body: AdjustmentBody = call.body
    assert call.tenant is not None
    sent = _sent_quantity(body)
    if isinstance(sent, Problem):
        return sent
    kind, micros = sent
    try:
        period_at_us, is_date = _period_at(body.period_start)
    except ValueError as error:
        return wrong_fields([("periodStart", str(error))])
    created = await call.gateway.corrections.create(
        Draft(
            call.tenant,
            body.metric,
            body.customer_ref,
            period_at_us,
            is_date,
            kind,
            micros,
            body.reason,
            body.note,
            body.request_id,
            body.parent_adjustment_id,
        ),
        call.by,
    )
    shown = view(created.adjustment, as_string=call.numbers_as_strings)
    location = ("location", f"/v1/adjustments/{shown.id}")
    return Answer(shown, 201 if created.is_new else 200, headers=(location,))


def _sent_quantity(body: AdjustmentBody) -> tuple[Literal["delta", "value"], int] | Problem:
    """The kind and its micros; without a kind the field that is there says it."""
    given: dict[Literal["delta", "value"], msgspec.Raw] = {}
    if body.delta is not UNSET:
        given["delta"] = body.delta
    if body.value is not UNSET:
        given["value"] = body.value
    if len(given) != 1:
        return wrong_fields([("delta", "or value must be given, and one of them only")])
    ((kind, raw),) = given.items()
    if body.kind not in (UNSET, kind):
        return wrong_fields([("kind", f"is {body.kind}, but {kind} is given")])
    try:
        return kind, parse_json(bytes(raw))
    except QuantityError as error:
        return wrong_fields([(kind, str(error))])


async def approve_adjustment(call: Call) -> Answer | Problem:
    """POST /v1/adjustments/{id}/approve."""
    return await _decide(call, "approve")


async def revert_adjustment(call: Call) -> Answer | Problem:
    """POST /v1/adjustments/{id}/revert."""
    return await _decide(call, "revert")


async def _decide(call: Call, decision: Decision) -> Answer | Problem:
    corrections = call.gateway.corrections
    was = corrections.adjustment(call.path["id"], call.tenant).status
    decided = await corrections.decide(call.path["id"], call.tenant, decision, call.by)
    if decided.status != was:
        call.gateway.metrics.reaggregated(decision, 1)
    return Answer(view(decided, as_string=call.numbers_as_strings))


async def approve_many(call: Call) -> Answer | Problem:
    """POST /v1/adjustments/approve."""
    return await _decide_many(call, "approve")


async def revert_many(call: Call) -> Answer | Problem:
    """POST /v1/adjustments/revert."""
    return await _decide_many(call, "revert")


async def _decide_many(call: Call, decision: Decision) -> Answer | Problem:
    body: DecisionBody = call.body
    period_at_us = None
    if body.period_start is not None:
        try:
            period_at_us, _is_date = _period_at(body.period_start)
        except ValueError as error:
            return wrong_fields([("periodStart", str(error))])
    wanted = Filter(
        call.tenant,
        metric=body.metric,
        customer_ref=body.customer_ref,
        period_at_us=period_at_us,
        status=body.status,
        reason=body.reason,
        kind=body.kind,
        operation_id=body.operation_id,
    )
    decided = await call.gateway.corrections.decide_many(
        wanted, decision, call.by, dry_run=body.dry_run
    )
    if not body.dry_run:
        call.gateway.metrics.reaggregated(decision, len(decided.ids))
    return Answer(
        DecisionView(
            changed=len(decided.ids),
            unchanged=decided.unchanged,
            late_events=decided.late_events,
            adjustment_ids=list(decided.ids[:IDS_SHOWN_MAX]),
            dry_run=body.dry_run,
        )
    )


def _period_at(text: str) -> tuple[int, bool]:
    """(instant, whether it is a day). Raises ValueError."""
    try:
        if len(text) == len("2026-01-01"):
            return parse_date(text), True
        return parse_instant(text), False
    except TimeError as error:
        raise ValueError(str(error)) from None


def _period_parameter(text: str, _now_us: int) -> int:
    return _period_at(text)[0]


ADJUSTMENTS_PARAMETERS: Final = (
    parameters.TENANT,
    parameters.text("metric", "Only of this metric.", METRIC_CHARS_MAX),
    parameters.text("customerRef", "Only of this customer."),
    parameters.Parameter(
        "periodStart",
        _period_parameter,
        parameters.DAY_SCHEMA,
        "Only of the period that starts on this day.",
    ),
    parameters.choice("status", "Only with this status.", STATUSES),
    parameters.choice("reason", "Only for this reason.", REASONS),
    parameters.choice("kind", "Only of this kind.", KINDS),
    parameters.text("operationId", "Only of this backfill or import."),
    parameters.LIMIT,
    parameters.OFFSET,
    parameters.CURSOR,
    parameters.NUMBERS,
)
ADJUSTMENT_PARAMETERS: Final = (
    parameters.TENANT,
    parameters.whole_number(
        "eventsOffset",
        f"Show the events from this number on, at most {SHOWN_EVENTS_MAX}.",
        0,
        1_000_000_000,
        0,
    ),
    parameters.NUMBERS,
)
