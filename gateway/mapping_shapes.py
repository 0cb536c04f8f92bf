"""What a mapping looks like over HTTP: its fields in, its fields out, and the numbers that have a form of their own.

Rules it keeps: a number is exact: hours to a millionth, a scale of at most 12 digits in plain notation; a price
configuration is one that the pricing library takes, kept in its canonical form. It must not know when a change takes
effect, nor what is configured already.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from engine.core.configured import FINALIZATION_GRACE_US, Mapping
from engine.core.configured_checks import (
    GRACE_HOURS_MAX,
    PRICE_CONFIG_CHARS_MAX,
    SCALE_DIGITS_MAX,
)
from engine.core.quantities import QuantityError, parse_json, to_json
from engine.pricing.documents import price_document, read_price
from engine.pricing.errors import PricingError
from gateway import parameters
from gateway.price_schemas import document
from gateway.problems import Problem, wrong_fields
from gateway.push_shapes import CutoverRow
from gateway.shapes import Instant, MetricName, TenantId, instant_or_none

LATENESS_HOURS_MAX: Final = 8760
_MICRO_HOUR_US: Final = 3600
"""A millionth of an hour is this many microseconds, so every number of hours that can be written is exact."""
PASSED_OVER: Final = (
    "created_at",
    "updated_at",
    "effective_from",
    "push_effective_from",
    "preview",
)
"""What an answer has beyond a mapping's fields: it may be sent back."""

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
    msgspec.Meta(
        description=(
            "`meter`: billing meter events (the usual way); `usage_record`: prices of the legacy metered kind, by "
            "subscription item; `stream`: meter event streams, for above 800 pushes a second."
        )
    ),
]
Baseline = Annotated[
    Literal["now", "period", "stripe"],
    msgspec.Meta(
        description=(
            "When Stripe already holds usage for something that is pushed for the first time: `now`: only usage from "
            "then on is pushed; `period`: all of the period's; `stripe`: what Stripe holds counts as pushed. Null: it "
            "waits for a decision."
        )
    ),
]
Cutover = Annotated[
    Literal["move", "carry"],
    msgspec.Meta(
        description=(
            "Let a change of where or how much is pushed hold now instead of from the next period. `move`: the running "
            "period's usage is taken back from the old destination and goes to the new one in full; `carry`: what was "
            "used so far stays where it is, and only what follows goes to the new one."
        )
    ),
]


def _hours(description: str, example: int) -> msgspec.Meta:
    return msgspec.Meta(
        description=description,
        extra_json_schema={"x-instead": {"type": ["number", "string"], "examples": [example]}},
    )


LatenessHours = Annotated[
    Decimal,
    _hours("Own lateness window in hours, 0 to 8760, up to 6 decimals; null: the server's.", 48),
]
GraceHours = Annotated[
    Decimal,
    _hours(
        f"Hours after a period's end in which its invoice still takes usage, 0 to {GRACE_HOURS_MAX}: the invoice grace "
        "period of the Stripe account.",
        1,
    ),
]
Scale = Annotated[
    Decimal,
    _hours(
        f"Billable units of one unit of use, at most {SCALE_DIGITS_MAX} digits; Stripe gets "
        "floor(total x stripeScale).",
        1,
    ),
]
Unit = Annotated[
    str, msgspec.Meta(description="What is counted.", max_length=50, examples=["calls"])
]
StripeText = Annotated[str, msgspec.Meta(max_length=255)]
EventName = Annotated[
    str,
    msgspec.Meta(description="The event name of a billing meter of formula `sum`.", max_length=255),
]
PriceDocument = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="Prices usage of customers without a subscription of their own.",
        extra_json_schema=document("PriceConfig"),
    ),
]


CUTOVER: Final = parameters.choice(
    "cutover", "As in the body: `move` or `carry`, to let a change hold now.", ("move", "carry")
)
DRY_RUN: Final = parameters.choice(
    "dryRun", "`true`: say what would be sent, change nothing.", ("true", "false"), "false"
)


class MappingBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """A new mapping."""

    tenant_id: TenantId | None = None
    metric: MetricName
    aggregation: Aggregation = "sum"
    period: PeriodKind = "calendar"
    lateness_hours: LatenessHours | None = None
    unit: Unit | None = None
    active: bool = True
    driver: Driver = "meter"
    stripe_account: StripeText | None = None
    price_id: StripeText | None = None
    subscription_item_id: StripeText | None = None
    meter_event_name: EventName | None = None
    stripe_scale: Scale | None = None
    baseline: Baseline | None = None
    finalization_grace_hours: GraceHours | None = None
    auto_repair: bool = False
    currency: StripeText | None = None
    price_config: PriceDocument = msgspec.field(default_factory=msgspec.Raw)
    shadow: bool = False
    shadow_stripe_account: StripeText | None = None
    shadow_price_id: StripeText | None = None
    shadow_subscription_item_id: StripeText | None = None
    shadow_meter_event_name: EventName | None = None
    cutover: Cutover | None = None
    dry_run: bool = False


class MappingUpdate(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """What a mapping is from now on: fields given replace, fields left out stay, null clears.

    id, tenantId and metric may be repeated but not changed; createdAt, updatedAt, effectiveFrom, pushEffectiveFrom and
    preview are passed over, so that what was answered can be sent back.
    """

    id: str | UnsetType = UNSET
    tenant_id: TenantId | UnsetType = UNSET
    metric: MetricName | UnsetType = UNSET
    aggregation: Aggregation | UnsetType = UNSET
    period: PeriodKind | UnsetType = UNSET
    lateness_hours: LatenessHours | UnsetType | None = UNSET
    unit: Unit | UnsetType | None = UNSET
    active: bool | UnsetType = UNSET
    driver: Driver | UnsetType = UNSET
    stripe_account: StripeText | UnsetType | None = UNSET
    price_id: StripeText | UnsetType | None = UNSET
    subscription_item_id: StripeText | UnsetType | None = UNSET
    meter_event_name: EventName | UnsetType | None = UNSET
    stripe_scale: Scale | UnsetType | None = UNSET
    baseline: Baseline | UnsetType | None = UNSET
    finalization_grace_hours: GraceHours | UnsetType | None = UNSET
    auto_repair: bool | UnsetType = UNSET
    currency: StripeText | UnsetType | None = UNSET
    price_config: PriceDocument = msgspec.field(default_factory=msgspec.Raw)
    shadow: bool | UnsetType = UNSET
    shadow_stripe_account: StripeText | UnsetType | None = UNSET
    shadow_price_id: StripeText | UnsetType | None = UNSET
    shadow_subscription_item_id: StripeText | UnsetType | None = UNSET
    shadow_meter_event_name: EventName | UnsetType | None = UNSET
    cutover: Cutover | None = None
    dry_run: bool = False
    created_at: Any = UNSET
    updated_at: Any = UNSET
    effective_from: Any = UNSET
    push_effective_from: Any = UNSET
    preview: Any = UNSET


def _shown(description: str, kinds: list[str]) -> msgspec.Meta:
    return msgspec.Meta(description=description, extra_json_schema={"type": kinds})


class MappingView(msgspec.Struct, rename="camel", kw_only=True):
    """A mapping."""

    id: Annotated[str, msgspec.Meta(examples=["map_0123456789abcdef"])]
    tenant_id: TenantId
    metric: MetricName
    aggregation: Aggregation
    period: PeriodKind
    lateness_hours: Annotated[
        msgspec.Raw, _shown("Own lateness window in hours; null: the server's.", ["number", "null"])
    ]
    unit: str | None
    active: bool
    driver: Driver
    stripe_account: str | None
    price_id: str | None
    subscription_item_id: str | None
    meter_event_name: str | None
    stripe_scale: Annotated[
        msgspec.Raw, _shown("Billable units of one unit of use.", ["number", "string"])
    ]
    baseline: Baseline | None
    finalization_grace_hours: Annotated[
        msgspec.Raw, _shown("Hours in which an invoice still takes usage.", ["number", "string"])
    ]
    auto_repair: bool
    currency: str | None
    price_config: PriceDocument
    shadow: bool
    shadow_stripe_account: str | None
    shadow_price_id: str | None
    shadow_subscription_item_id: str | None
    shadow_meter_event_name: str | None
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
    push_effective_from: (
        Annotated[
            str,
            msgspec.Meta(
                description=(
                    "After a change only: from when where and how much is pushed hold, if that changed and something "
                    "had been pushed before. Null: at once."
                ),
                extra_json_schema={"format": "date-time"},
            ),
        ]
        | UnsetType
        | None
    ) = UNSET
    preview: list[CutoverRow] | UnsetType = UNSET
    """Of a dry run: what would be sent; nothing was changed."""


class MappingList(msgspec.Struct, rename="camel", kw_only=True):
    """A page of mappings, oldest first."""

    mappings: list[MappingView]
    total: int
    next_cursor: str | None = None


def view(
    mapping: Mapping,
    effective_from_us: int | UnsetType | None = UNSET,
    push_from_us: int | UnsetType | None = UNSET,
    preview: list[CutoverRow] | UnsetType = UNSET,
) -> MappingView:
    """A mapping as the API shows it."""
    lateness = msgspec.Raw(b"null")
    if mapping.lateness_us is not None:
        lateness = _hours_shown(mapping.lateness_us)
    price = b"null" if mapping.price_config is None else mapping.price_config.encode()
    return MappingView(
        id=mapping.id,
        tenant_id=mapping.tenant_id,
        metric=mapping.metric,
        aggregation=mapping.aggregation,  # type: ignore[arg-type]
        period=mapping.period,  # type: ignore[arg-type]
        lateness_hours=lateness,
        unit=mapping.unit,
        active=mapping.active,
        driver=mapping.driver,  # type: ignore[arg-type]
        stripe_account=mapping.stripe_account,
        price_id=mapping.price_id,
        subscription_item_id=mapping.subscription_item_id,
        meter_event_name=mapping.meter_event_name,
        stripe_scale=msgspec.Raw(mapping.stripe_scale.encode()),
        baseline=mapping.baseline,
        finalization_grace_hours=_hours_shown(mapping.finalization_grace_us),
        auto_repair=mapping.auto_repair,
        currency=mapping.currency,
        price_config=msgspec.Raw(price),
        shadow=mapping.shadow,
        shadow_stripe_account=mapping.shadow_stripe_account,
        shadow_price_id=mapping.shadow_price_id,
        shadow_subscription_item_id=mapping.shadow_subscription_item_id,
        shadow_meter_event_name=mapping.shadow_meter_event_name,
        created_at=instant_or_none(mapping.created_at_us) or "",
        updated_at=instant_or_none(mapping.updated_at_us) or "",
        effective_from=_instant(effective_from_us),
        push_effective_from=_instant(push_from_us),
        preview=preview,
    )


def _instant(us: int | UnsetType | None) -> str | UnsetType | None:
    return us if isinstance(us, UnsetType) else instant_or_none(us)


def _hours_shown(us: int) -> msgspec.Raw:
    return to_json(us // _MICRO_HOUR_US, as_string=False)


def read_numbers(given: dict[str, Any], currency: str | None) -> dict[str, Any] | Problem:
    """Fields of a mapping from those of a body: hours to microseconds, scale and price to their canonical text.

    `given`: the body's fields that are there; a null is the default. `currency`: the price's, where it names none.
    """
    fields = dict(given)
    errors: list[tuple[str, str]] = []
    if "lateness_hours" in fields:
        hours = fields.pop("lateness_hours")
        fields["lateness_us"] = None
        if hours is not None:
            fields["lateness_us"] = _microseconds(
                hours, "latenessHours", LATENESS_HOURS_MAX, errors
            )
    if "finalization_grace_hours" in fields:
        hours = fields.pop("finalization_grace_hours")
        fields["finalization_grace_us"] = FINALIZATION_GRACE_US
        if hours is not None:
            fields["finalization_grace_us"] = _microseconds(
                hours, "finalizationGraceHours", GRACE_HOURS_MAX, errors
            )
    if "stripe_scale" in fields:
        scale = fields["stripe_scale"]
        fields["stripe_scale"] = "1" if scale is None else _plain(scale)
    if "price_config" in fields:
        price = bytes(fields.pop("price_config"))
        if price:  # Empty: it was not sent; a field of raw JSON can't be null or unset otherwise.
            fields["price_config"] = _price(price, currency, errors)
    return wrong_fields(errors) if errors else fields


def _microseconds(
    hours: Decimal, name: str, hours_max: int, errors: list[tuple[str, str]]
) -> int | None:
    """Hours as a client wrote them, exact."""
    try:
        micros = parse_json(str(hours).encode())
    except QuantityError as error:
        errors.append((name, str(error)))
        return None
    if not 0 <= micros <= hours_max * 1_000_000:
        errors.append((name, f"must be 0 to {hours_max} hours"))
    return micros * _MICRO_HOUR_US


def lateness_us(hours: Decimal | None) -> int | Problem | None:
    """Microseconds of a lateness window as a client wrote it; exact, or a 400."""
    fields = read_numbers({"lateness_hours": hours}, None)
    if isinstance(fields, Problem):
        return fields
    found: int | None = fields["lateness_us"]
    return found


def _plain(scale: Decimal) -> str:
    """A scale's digits without exponent and trailing zeros; what is no scale as it is, to be refused."""
    if not scale.is_finite() or abs(scale.adjusted()) > 2 * SCALE_DIGITS_MAX:
        return str(scale)
    text = f"{scale:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _price(data: bytes, currency: str | None, errors: list[tuple[str, str]]) -> str | None:
    """The canonical text of a price configuration."""
    if data == b"null":
        return None
    if len(data) > PRICE_CONFIG_CHARS_MAX:
        errors.append(("priceConfig", f"must have at most {PRICE_CONFIG_CHARS_MAX} characters"))
        return None
    document = _decode_price(data)
    if isinstance(document, dict) and currency is not None:
        document.setdefault("currency", currency)
    try:
        found = price_document(read_price(document))
    except PricingError as error:
        errors += [(f"priceConfig.{field}".rstrip("."), message) for field, message in error.errors]
        return None
    return msgspec.json.encode(_plain_numbers(found)).decode()


_decode_price = msgspec.json.Decoder(float_hook=Decimal).decode


def _plain_numbers(value: object) -> object:
    """A document with its numbers as plain JSON numbers, exact."""
    match value:
        case dict():
            return {name: _plain_numbers(one) for name, one in value.items()}
        case list():
            return [_plain_numbers(one) for one in value]
        case Decimal():
            return msgspec.Raw(f"{value:f}".encode())
        case _:
            return value
