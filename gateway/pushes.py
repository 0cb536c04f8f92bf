"""`/v1/pushes`: what was pushed to Stripe, target by target, and the decisions that only a person can make.

Rules it keeps: a tenant sees its own targets and its own customers in them; a decision names who made it; a flush says
what is missing when its time is over. It must not know how a target is pushed (engine.actors.pusher).
"""

from __future__ import annotations

from typing import Annotated, Any, Final, get_args

import msgspec

from engine.actors.push_desk import Asker, TargetReport
from engine.core.push_plan import Standing
from engine.core.push_records import BaselineChoice, CarryInto
from engine.errors import Conflict
from gateway import parameters
from gateway.problems import Problem, wrong_fields
from gateway.push_nowhere import usage_that_goes_nowhere
from gateway.push_shapes import (
    ConnectionView,
    PushView,
    Unroutable,
    connection_view,
    push_view,
)
from gateway.routes import Answer, Call
from gateway.shapes import CustomerRef, TenantId, decode_cursor, encode_cursor

FLUSH_SECONDS_DEFAULT: Final = 10
FLUSH_SECONDS_MAX: Final = 30
"""A client's own time-out is seldom longer than a minute."""
UNROUTABLE_SHOWN_MAX: Final = 100
STANDINGS: Final[tuple[str, ...]] = get_args(Standing)


class PushList(msgspec.Struct, rename="camel", kw_only=True):
    """A page of targets, the newest period first; and what goes nowhere."""

    pushes: list[PushView]
    total: int
    next_cursor: str | None = None
    unroutable: Annotated[
        list[Unroutable],
        msgspec.Meta(
            description=f"Mapped usage that goes nowhere, {UNROUTABLE_SHOWN_MAX} at most."
        ),
    ]
    unroutable_total: int
    connections: list[ConnectionView]


class FlushBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Whose usage to push now."""

    tenant_id: TenantId | None = None
    customer_ref: CustomerRef | None = None
    timeout_seconds: Annotated[
        int,
        msgspec.Meta(
            description="When to answer with what is still missing.", ge=0, le=FLUSH_SECONDS_MAX
        ),
    ] = FLUSH_SECONDS_DEFAULT


class Flushed(msgspec.Struct, rename="camel", kw_only=True):
    """What a flush came to."""

    complete: Annotated[bool, msgspec.Meta(description="Stripe has everything that was used.")]
    total: Annotated[int, msgspec.Meta(description="Targets that were asked for.")]
    missing: Annotated[
        list[PushView],
        msgspec.Meta(description="Targets that Stripe does not have all of, at most 100, and why."),
    ]
    missing_total: int
    unroutable: list[Unroutable]


class BaselineBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """What of a target that waits counts as pushed."""

    tenant_id: TenantId | None = None
    baseline: Annotated[
        BaselineChoice,
        msgspec.Meta(
            description=(
                "`now`: only usage from here on is pushed; `period`: all of the period's, on top of what Stripe holds; "
                "`stripe`: what Stripe held when it was read counts as pushed."
            )
        ),
    ]


class CarryBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Where what is left of a final target goes."""

    tenant_id: TenantId | None = None
    into: Annotated[
        CarryInto,
        msgspec.Meta(
            description=(
                "`current`: pushed with the running period; `credit`, `invoice_item`: you make it at Stripe, and it is "
                "noted here; `write_off`: nobody pays it."
            )
        ),
    ]


class SettleBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """What became of a push that is in quarantine."""

    tenant_id: TenantId | None = None
    delivered: Annotated[
        bool,
        msgspec.Meta(
            description="true: Stripe has it (look at the meter's events there); false: it never arrived."
        ),
    ]


PUSH_PARAMETERS: Final = (
    parameters.TENANT,
    parameters.text("customerRef", "Only targets that this customer's usage goes to."),
    parameters.text("metric", "Only of this metric.", 100),
    parameters.choice("standing", "Only those that stand so.", STANDINGS),
    parameters.NUMBERS,
    parameters.LIMIT,
    parameters.OFFSET,
    parameters.CURSOR,
)


async def list_pushes(call: Call) -> Answer | Problem:
    """GET /v1/pushes."""
    query = call.query
    desk = call.gateway.meter.started.pusher
    reports = await desk.targets(call.tenant, query["customerRef"])
    found = [
        report
        for report in reports
        if query["metric"] in (None, report.metric) and query["standing"] in (None, report.standing)
    ]
    start = query["offset"] or 0
    if (cursor := query["cursor"]) is not None:
        after = decode_cursor(cursor)
        if query["offset"] is not None or not _is_order(after):
            return wrong_fields([("cursor", parameters.CURSOR_REFUSED)])
        start = sum(1 for report in found if _order(report) <= (after or []))
    page = found[start : start + query["limit"]]
    more = page and start + len(page) < len(found)
    unroutable = _unroutable(call, query["customerRef"], query["metric"])
    return Answer(
        PushList(
            pushes=[push_view(report, as_string=call.numbers_as_strings) for report in page],
            total=len(found),
            next_cursor=encode_cursor(_order(page[-1])) if more else None,
            unroutable=unroutable[:UNROUTABLE_SHOWN_MAX],
            unroutable_total=len(unroutable),
            connections=connections(call),
        )
    )


def connections(call: Call) -> list[ConnectionView]:
    """The keys there are."""
    pusher = call.gateway.meter.started.push
    return [connection_view(role, one.report()) for role, one in pusher.connections.items()]


def _unroutable(call: Call, customer_ref: str | None, metric: str | None) -> list[Unroutable]:
    return [
        one
        for one in usage_that_goes_nowhere(call.gateway.meter, call.tenant)
        if customer_ref in (None, one.customer_ref) and metric in (None, one.metric)
    ]


def _order(report: TargetReport) -> list[Any]:
    """The order of `PushDesk.targets`, in values that grow and that JSON can carry."""
    target = report.target
    lane = target.lane
    return [-target.start_us, report.tenant, report.metric, lane.customer, report.role, report.id]


def _is_order(value: list[Any] | None) -> bool:
    return value is not None and [type(part) for part in value] == [int, str, str, str, str, str]


async def flush_pushes(call: Call) -> Answer | Problem:
    """POST /v1/pushes/flush."""
    body: FlushBody = call.body
    started = call.gateway.meter.started
    if not started.push.connections:
        raise Conflict("nothing is pushed: no Stripe key is set, and the simulator is off")
    reports = await started.pusher.flush(
        call.tenant, body.customer_ref, body.timeout_seconds * 1_000_000
    )
    missing = [report for report in reports if report.due != 0 or report.open is not None]
    unroutable = _unroutable(call, body.customer_ref, None)
    return Answer(
        Flushed(
            complete=not missing and not unroutable,
            total=len(reports),
            missing=[push_view(report, as_string=False) for report in missing[:100]],
            missing_total=len(missing),
            unroutable=unroutable[:UNROUTABLE_SHOWN_MAX],
        )
    )


def _asker(call: Call) -> Asker:
    return Asker(call.by.actor, call.by.request_id)


async def decide_baseline(call: Call) -> Answer | Problem:
    """POST /v1/pushes/{id}/baseline."""
    body: BaselineBody = call.body
    desk = call.gateway.meter.started.pusher
    report = await desk.decide_baseline(call.tenant, call.path["id"], body.baseline, _asker(call))
    return Answer(push_view(report, as_string=False))


async def carry_forward(call: Call) -> Answer | Problem:
    """POST /v1/pushes/{id}/carry-forward."""
    body: CarryBody = call.body
    desk = call.gateway.meter.started.pusher
    report = await desk.carry_forward(call.tenant, call.path["id"], body.into, _asker(call))
    return Answer(push_view(report, as_string=False))


async def settle(call: Call) -> Answer | Problem:
    """POST /v1/pushes/{id}/settle."""
    body: SettleBody = call.body
    desk = call.gateway.meter.started.pusher
    report = await desk.settle(
        call.tenant, call.path["id"], delivered=body.delivered, by=_asker(call)
    )
    return Answer(push_view(report, as_string=False))


async def resume(call: Call) -> Answer | Problem:
    """POST /v1/pushes/{id}/resume."""
    desk = call.gateway.meter.started.pusher
    report = await desk.resume(call.tenant, call.path["id"], _asker(call))
    return Answer(push_view(report, as_string=False))
