"""Erasure and retention over HTTP: `DELETE /v1/customers/{customerRef}`, `/v1/admin/erasures`, `/v1/admin/retention`.

Rules it keeps: an answer says that an erasure is recorded, from which moment the name is gone from usage; the rest is
done in the background and survives a restart; a name is never in a path that is logged with its answer's body.
It must not know how parts are replaced.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from engine.actors.retention import RetentionPlan
from engine.actors.supervisor import Meter
from engine.core.times import INSTANT_US_MIN
from engine.errors import NotFound
from engine.settings_table import RETENTION_DAYS_MAX, RETENTION_DAYS_MIN
from gateway import parameters
from gateway.problems import Problem, wrong_fields
from gateway.routes import Answer, Call
from gateway.shapes import CustomerRef, Instant, TenantId, instant_or_none

Manner = Literal["tombstone", "pseudonym"]
_MANNERS: Final = ("tombstone", "pseudonym")
_EVERY_TENANTS: Final = Problem(
    403,
    "retention drops events of every tenant, and this API key is of one: use STRIPEMETER_ADMIN_KEY's, "
    "set STRIPEMETER_RETENTION_DAYS, or run `stripemeter retention` on the stopped server's directory",
)
AS = parameters.choice(
    "as",
    "`tombstone`: a random id takes the name's place, and nothing links the two; `pseudonym`: an id that whoever has "
    "the name and the pepper can find again.",
    _MANNERS,
    default="tombstone",
)


class ErasureBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Whom to erase: one customer, or (`all`) every customer of a departing tenant."""

    tenant_id: TenantId | None = None
    customer_ref: CustomerRef | None = None
    all: bool = False
    manner: Annotated[Manner, msgspec.Meta(description=AS.description)] = msgspec.field(
        default="tombstone", name="as"
    )


class ErasureView(msgspec.Struct, rename="camel", kw_only=True):
    """An erasure."""

    erasure_id: str
    status: Literal["processing", "completed"]
    customers: int | None = None
    """How many; only when it was asked for just now."""
    pseudonym: str | None = None
    """What one customer goes by from now on; only when it was asked for just now."""
    error: str | None = None
    """Why it can't go on now; it is tried again by itself."""


class RetentionBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """What to drop."""

    days: (
        Annotated[
            int,
            msgspec.Meta(
                description="Events older than this. Default: STRIPEMETER_RETENTION_DAYS.",
                ge=RETENTION_DAYS_MIN,
                le=RETENTION_DAYS_MAX,
            ),
        ]
        | None
    ) = None
    dry_run: Annotated[bool, msgspec.Meta(description="Only say what would be dropped.")] = True


class RetentionView(msgspec.Struct, rename="camel", kw_only=True):
    """What was dropped, or would be."""

    dry_run: bool
    horizon: Instant | None
    """Events before it are old enough, and in closed periods. Null: none are."""
    events: int
    groups: int
    size_bytes: int
    archives: list[str]
    """All archives there are now, oldest first."""


async def delete_customer(call: Call) -> Answer | Problem:
    """DELETE /v1/customers/{customerRef}."""
    return await _begin(call, [call.path["customerRef"]], call.query["as"])


async def create_erasure(call: Call) -> Answer | Problem:
    """POST /v1/admin/erasures."""
    body: ErasureBody = call.body
    assert call.tenant is not None
    if body.all == (body.customer_ref is not None):
        return wrong_fields([("customerRef", "must be given, or else all: true")])
    names = [] if body.customer_ref is None else [body.customer_ref]
    if body.all:
        names = call.gateway.meter.started.eraser.customers_of(call.tenant)
    return await _begin(call, names, body.manner)


async def _begin(call: Call, names: list[str], manner: str) -> Answer:
    assert call.tenant is not None
    gateway = call.gateway
    secret = gateway.access.pepper if manner == "pseudonym" else None
    async with gateway.meter.change_lock:
        begun = await gateway.meter.started.eraser.begin(
            call.tenant,
            names,
            secret=secret,
            actor=call.by.actor,
            request_id=call.by.request_id,
        )
        gateway.administration.forget_owners()
    only = next(iter(begun.names.values())) if len(begun.names) == 1 else None
    view = ErasureView(
        erasure_id=begun.erasure_id,
        status="processing",
        customers=len(begun.names),
        pseudonym=only,
    )
    return Answer(view, 202)


async def get_erasure(call: Call) -> Answer | Problem:
    """GET /v1/admin/erasures/{id}."""
    started, registry, erasure_id = (
        call.gateway.meter.started,
        call.gateway.meter.registry,
        call.path["id"],
    )
    running = registry.erasures.get(erasure_id)
    if running is not None and call.tenant in (None, running.tenant_id):
        error = started.eraser.last_error
        return Answer(ErasureView(erasure_id=erasure_id, status="processing", error=error))
    tenant = registry.erased.get(erasure_id)
    if tenant is not None and call.tenant in (None, tenant):
        return Answer(ErasureView(erasure_id=erasure_id, status="completed"))
    raise NotFound(f"there is no erasure {erasure_id}")


async def run_retention(call: Call) -> Answer | Problem:
    """POST /v1/admin/retention: of the whole log, so never at the word of one tenant's key."""
    if call.identity.tenant is not None:
        return _EVERY_TENANTS
    body: RetentionBody = call.body
    meter = call.gateway.meter
    retention = meter.started.retention
    days = body.days or retention.days
    if not days:
        return wrong_fields([("days", "must be given: STRIPEMETER_RETENTION_DAYS is not set")])
    if body.dry_run:
        plans = [await retention.plan(days)]
    else:
        plans = await retention.apply(days, call.by.actor)
    return Answer(
        retention_view(plans, meter.registry.horizon_us, archives_of(meter), dry_run=body.dry_run)
    )


def archives_of(meter: Meter) -> list[str]:
    """The archives of a meter's checkpoints."""
    checkpoint = meter.registry.checkpoint
    return [] if checkpoint is None else list(checkpoint.archives)


def retention_view(
    plans: list[RetentionPlan], horizon_us: int, archives: list[str], *, dry_run: bool
) -> RetentionView:
    """What retention did or would do, as it is shown."""
    horizon_us = max([horizon_us, *(plan.horizon_us for plan in plans)])
    return RetentionView(
        dry_run=dry_run,
        horizon=None if horizon_us <= INSTANT_US_MIN else instant_or_none(horizon_us),
        events=sum(plan.events for plan in plans),
        groups=sum(plan.groups for plan in plans),
        size_bytes=sum(plan.size_bytes for plan in plans),
        archives=archives,
    )
