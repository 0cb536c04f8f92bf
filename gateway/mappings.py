"""`/v1/mappings`: how a metric is counted, and with which Stripe price it belongs together.

Rules it keeps: a mapping of another tenant does not exist for the asker; a field that is not known is an error; the
Stripe fields are stored as they are and used by pushing, which this release does not do yet: the documentation says
so. It must not know when a change takes effect (engine.actors.administration).
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from engine.core.configured import Mapping
from engine.core.quantities import QuantityError, parse_json, to_json
from engine.errors import Conflict
from gateway import parameters
from gateway.problems import Problem, wrong_fields
from gateway.routes import Answer, Call
from gateway.shapes import (
    Instant,
    MetricName,
    TenantId,
    decode_cursor,
    encode_cursor,
    instant_or_none,
)

LATENESS_HOURS_MAX: Final = 8760
_MICRO_HOUR_US: Final = 3600
"""A millionth of an hour is this many microseconds, so every lateness that can be written is exact."""

Aggregation = Annotated[
    Literal["sum", "max", "last"],
    msgspec.Meta(description="How events of a period make its total."),
]
PeriodKind = Annotated[
    Literal["calendar", "subscription", "day"],
    msgspec.Meta(
        description="Calendar month (UTC), the month from the customer's billingAnchor, or day."
    ),
]
Driver = Annotated[
    Literal["meter", "usage_record", "stream"],
    msgspec.Meta(description="Stored for pushing."),
]
LatenessHours = Annotated[
    Decimal,
    msgspec.Meta(
        description="Own lateness window in hours, 0 to 8760, up to 6 decimals; null: the server's.",
        extra_json_schema={"type": ["number", "string"], "format": "", "examples": [48]},
    ),
]
Unit = Annotated[
    str, msgspec.Meta(description="What is counted.", max_length=50, examples=["calls"])
]
StripeText = Annotated[
    str, msgspec.Meta(description="Stored for pushing; not used by this release.", max_length=255)
]


class MappingBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """A new mapping."""

    tenant_id: TenantId | None = None
    metric: MetricName
    aggregation: Aggregation = "sum"
    period: PeriodKind = "calendar"
    lateness_hours: LatenessHours | None = None
    unit: Unit | None = None
    active: bool = True
    shadow: bool = False
    driver: Driver = "meter"
    stripe_account: StripeText | None = None
    price_id: StripeText | None = None
    subscription_item_id: StripeText | None = None
    meter_event_name: StripeText | None = None
    currency: StripeText | None = None


class MappingUpdate(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """What a mapping is from now on: fields given replace, fields left out stay, null clears.

    id, tenantId and metric may be repeated but not changed; createdAt, updatedAt and effectiveFrom are passed over, so
    that what GET answered can be sent back.
    """

    id: str | UnsetType = UNSET
    tenant_id: TenantId | UnsetType = UNSET
    metric: MetricName | UnsetType = UNSET
    aggregation: Aggregation | UnsetType = UNSET
    period: PeriodKind | UnsetType = UNSET
    lateness_hours: LatenessHours | UnsetType | None = UNSET
    unit: Unit | UnsetType | None = UNSET
    active: bool | UnsetType = UNSET
    shadow: bool | UnsetType = UNSET
    driver: Driver | UnsetType = UNSET
    stripe_account: StripeText | UnsetType | None = UNSET
    price_id: StripeText | UnsetType | None = UNSET
    subscription_item_id: StripeText | UnsetType | None = UNSET
    meter_event_name: StripeText | UnsetType | None = UNSET
    currency: StripeText | UnsetType | None = UNSET
    created_at: Any = UNSET
    updated_at: Any = UNSET
    effective_from: Any = UNSET


class MappingView(msgspec.Struct, rename="camel", kw_only=True):
    """A mapping."""

    id: Annotated[str, msgspec.Meta(examples=["map_0123456789abcdef"])]
    tenant_id: TenantId
    metric: MetricName
    aggregation: Aggregation
    period: PeriodKind
    lateness_hours: Annotated[
        msgspec.Raw,
        msgspec.Meta(
            description="Own lateness window in hours; null: the server's.",
            extra_json_schema={"type": ["number", "null"]},
        ),
    ]
    unit: str | None
    active: bool
    shadow: bool
    driver: Driver
    stripe_account: str | None
    price_id: str | None
    subscription_item_id: str | None
    meter_event_name: str | None
    currency: str | None
    created_at: Instant
    updated_at: Instant
    effective_from: (
        Annotated[
            str,
            msgspec.Meta(
                description=(
                    "After a change only: from when its period and aggregation hold, since the metric has usage "
                    "that was counted by the old ones. Null: at once."
                ),
                extra_json_schema={"format": "date-time"},
            ),
        ]
        | UnsetType
        | None
    ) = UNSET


class MappingList(msgspec.Struct, rename="camel", kw_only=True):
    """A page of mappings, oldest first."""

    mappings: list[MappingView]
    total: int
    next_cursor: str | None = None


def view(mapping: Mapping, effective_from_us: int | UnsetType | None = UNSET) -> MappingView:
    """A mapping as the API shows it."""
    lateness = msgspec.Raw(b"null")
    if mapping.lateness_us is not None:
        lateness = to_json(mapping.lateness_us // _MICRO_HOUR_US, as_string=False)
    return MappingView(
        id=mapping.id,
        tenant_id=mapping.tenant_id,
        metric=mapping.metric,
        aggregation=mapping.aggregation,  # type: ignore[arg-type]
        period=mapping.period,  # type: ignore[arg-type]
        lateness_hours=lateness,
        unit=mapping.unit,
        active=mapping.active,
        shadow=mapping.shadow,
        driver=mapping.driver,  # type: ignore[arg-type]
        stripe_account=mapping.stripe_account,
        price_id=mapping.price_id,
        subscription_item_id=mapping.subscription_item_id,
        meter_event_name=mapping.meter_event_name,
        currency=mapping.currency,
        created_at=instant_or_none(mapping.created_at_us) or "",
        updated_at=instant_or_none(mapping.updated_at_us) or "",
        effective_from=effective_from_us
        if effective_from_us is UNSET
        else instant_or_none(effective_from_us),
    )


def lateness_us(hours: Decimal | None) -> int | Problem | None:
    """Microseconds of hours as a client wrote them; exact, or a 400."""
    if hours is None:
        return None
    try:
        micros = parse_json(str(hours).encode())
    except QuantityError as error:
        return wrong_fields([("latenessHours", str(error))])
    lateness = micros * _MICRO_HOUR_US
    if not 0 <= micros <= LATENESS_HOURS_MAX * 1_000_000:
        return wrong_fields([("latenessHours", f"must be 0 to {LATENESS_HOURS_MAX} hours")])
    return lateness


async def list_mappings(call: Call) -> Answer | Problem:
    """GET /v1/mappings."""
    found = call.gateway.meter.registry.mappings_of(call.tenant)
    metric, active = call.query["metric"], call.query["active"]
    if metric is not None:
        found = [mapping for mapping in found if mapping.metric == metric]
    if active is not None:
        found = [mapping for mapping in found if mapping.active == (active == "true")]
    found.sort(key=_order)
    start = call.query["offset"] or 0
    if (cursor := call.query["cursor"]) is not None:
        after = decode_cursor(cursor)
        if call.query["offset"] is not None or not _is_order(after):
            return wrong_fields([("cursor", parameters.CURSOR_REFUSED)])
        start = sum(1 for mapping in found if _order(mapping) <= tuple(after or ()))
    page = found[start : start + call.query["limit"]]
    more = start + len(page) < len(found) and page
    return Answer(
        MappingList(
            mappings=[view(mapping) for mapping in page],
            total=len(found),
            next_cursor=encode_cursor(list(_order(page[-1]))) if more else None,
        )
    )


def _order(mapping: Mapping) -> tuple[int, str]:
    return mapping.created_at_us, mapping.id


def _is_order(value: list[Any] | None) -> bool:
    return value is not None and [type(part) for part in value] == [int, str]


async def create_mapping(call: Call) -> Answer | Problem:
    """POST /v1/mappings."""
    body: MappingBody = call.body
    assert call.tenant is not None
    lateness = lateness_us(body.lateness_hours)
    if isinstance(lateness, Problem):
        return lateness
    fields = msgspec.structs.asdict(body)
    del fields["lateness_hours"]
    fields |= {"id": "", "tenant_id": call.tenant, "lateness_us": lateness}
    changed = await call.gateway.administration.create_mapping(Mapping(**fields), call.by)
    location = ("location", f"/v1/mappings/{changed.value.id}")
    return Answer(view(changed.value, changed.effective_from_us), 201, headers=(location,))


async def get_mapping(call: Call) -> Answer | Problem:
    """GET /v1/mappings/{id}."""
    return Answer(view(call.gateway.administration.mapping(call.path["id"], call.tenant)))


async def update_mapping(call: Call) -> Answer | Problem:
    """PUT /v1/mappings/{id}."""
    body: MappingUpdate = call.body
    old = call.gateway.administration.mapping(
        call.path["id"], call.identity.tenant or call.query["tenantId"]
    )
    given = {
        name: value for name, value in msgspec.structs.asdict(body).items() if value is not UNSET
    }
    for name in ("created_at", "updated_at", "effective_from"):
        given.pop(name, None)
    for name in ("id", "tenant_id", "metric"):
        if given.pop(name, getattr(old, name)) != getattr(old, name):
            shown = "tenantId" if name == "tenant_id" else name
            raise Conflict(f"a mapping's {shown} can't change: delete it and create another one")
    if "lateness_hours" in given:
        lateness = lateness_us(given.pop("lateness_hours"))
        if isinstance(lateness, Problem):
            return lateness
        given["lateness_us"] = lateness
    changed = await call.gateway.administration.update_mapping(
        msgspec.structs.replace(old, **given), call.by
    )
    return Answer(view(changed.value, changed.effective_from_us))


async def delete_mapping(call: Call) -> Answer | Problem:
    """DELETE /v1/mappings/{id}."""
    await call.gateway.administration.delete_mapping(call.path["id"], call.tenant, call.by)
    return Answer(b"", 204)
