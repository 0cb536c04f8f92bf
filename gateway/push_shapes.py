"""What is said of pushing over HTTP: targets, previews, connections.

Rules it keeps: units are exact whole numbers of any size, and strings with `numbers=string`; nothing of a key and
nobody else's customer is in an answer. It must not know how a target is pushed.
"""

from __future__ import annotations

from decimal import Decimal, DecimalException
from fractions import Fraction
from typing import Annotated, Final, Literal

import msgspec

from engine.actors.push_connections import ConnectionReport
from engine.actors.push_desk import TargetReport
from engine.actors.push_preview import PreviewRow
from engine.core.push_plan import Standing
from engine.core.push_records import target_id
from engine.core.quantities import to_json
from engine.core.times import format_instant
from gateway.shapes import CustomerRef, Instant, MetricName, Period, Quantity, TenantId

_REMAINDER_DIGITS: Final = 18
"""Six of a quantity and at most twelve of a scale."""

Units = Annotated[
    msgspec.Raw,
    msgspec.Meta(
        description="Whole units as Stripe gets them; with `numbers=string` a string.",
        extra_json_schema={"type": ["integer", "string"], "examples": [1500]},
    ),
]
TargetId = Annotated[
    str,
    msgspec.Meta(
        description="Names account, mode, meter or item, Stripe customer, scale and period.",
        examples=["0123456789abcdef"],
    ),
]


class OpenIntent(msgspec.Struct, rename="camel", kw_only=True):
    """A push that has left, or may have, and has no outcome yet."""

    identifier: str
    number: int
    from_units: Units
    to_units: Units
    value: Annotated[str, msgspec.Meta(description="What the request says.")]
    timestamp: Instant
    first_sent_at: Instant


class PushView(msgspec.Struct, rename="camel", kw_only=True):
    """One total at Stripe: an account's meter or item, a Stripe customer, a period; and what was pushed to it."""

    id: TargetId
    tenant_id: TenantId
    metric: MetricName
    customer_refs: list[CustomerRef]
    role: Annotated[
        Literal["main", "shadow"], msgspec.Meta(description="`shadow`: to the test account only.")
    ]
    account: str
    mode: Literal["live", "test", "sim"]
    stripe_object: Annotated[
        str,
        msgspec.Meta(
            description="The meter, or (legacy) the subscription item.", examples=["mtr_1"]
        ),
    ]
    stripe_customer_id: str
    stripe_scale: Annotated[
        msgspec.Raw, msgspec.Meta(extra_json_schema={"type": ["number", "string"]})
    ]
    period: Period
    local: Quantity
    billable: Units
    pushed: Units
    confirmed: Annotated[
        msgspec.Raw,
        msgspec.Meta(
            description="What Stripe's own summary held when it was read last; null: not read yet.",
            extra_json_schema={"type": ["number", "string", "null"]},
        ),
    ]
    confirmed_at: Instant | None
    due: Units
    remainder: Annotated[
        str, msgspec.Meta(description="The part of a unit that floor takes off.", examples=["0.25"])
    ]
    standing: Standing
    reason: Annotated[str, msgspec.Meta(description="Why it stands so, in words.")] | None
    next_at: Instant | None
    open_intent: OpenIntent | None
    last_error: str | None
    needs_baseline: bool
    needs_person: Annotated[
        bool, msgspec.Meta(description="It stays as it is until somebody decides.")
    ]
    carried: Annotated[
        dict[str, msgspec.Raw],
        msgspec.Meta(
            description="Units settled elsewhere, by where.",
            extra_json_schema={"additionalProperties": {"type": ["integer", "string"]}},
        ),
    ]
    carried_in: Units
    finalizes_at: Instant


class Unroutable(msgspec.Struct, rename="camel", kw_only=True):
    """Usage of a mapped metric that goes nowhere."""

    tenant_id: TenantId
    metric: MetricName
    customer_ref: CustomerRef
    reason: str


class ConnectionView(msgspec.Struct, rename="camel", kw_only=True):
    """A key, as what Stripe says that it is."""

    role: Literal["main", "shadow"]
    account: str | None
    mode: Literal["live", "test", "sim"] | None
    is_simulator: bool
    error: Annotated[str, msgspec.Meta(description="Why nothing goes through it now.")] | None


class CutoverRow(msgspec.Struct, rename="camel", kw_only=True):
    """A target that a change would move, and what would be sent to it."""

    id: TargetId
    account: str
    mode: Literal["live", "test", "sim"]
    stripe_object: str
    stripe_customer_id: str
    period: Period
    customer_refs: list[CustomerRef]
    units_before: Units
    units_after: Units
    pushed: Units
    would_send: Units


def units(value: int, *, as_string: bool = False) -> msgspec.Raw:
    """A whole number of any size as JSON."""
    return msgspec.Raw((f'"{value}"' if as_string else f"{value}").encode())


def push_view(report: TargetReport, *, as_string: bool) -> PushView:
    """A target as the API shows it."""
    lane = report.target.lane
    return PushView(
        id=report.id,
        tenant_id=report.tenant,
        metric=report.metric,
        customer_refs=list(report.customer_refs),
        role=report.role,
        account=lane.account,
        mode=lane.mode,
        stripe_object=lane.object_id,
        stripe_customer_id=lane.customer,
        stripe_scale=_raw(report.target.scale, as_string=as_string),
        period=Period(format_instant(report.target.start_us), format_instant(report.target.end_us)),
        local=to_json(report.local_micros, as_string=as_string),
        billable=units(report.billable, as_string=as_string),
        pushed=units(report.pushed, as_string=as_string),
        confirmed=_confirmed(report.confirmed, as_string=as_string),
        confirmed_at=_instant(report.confirmed_at_us),
        due=units(report.due, as_string=as_string),
        remainder=_decimal(report.remainder),
        standing=report.standing,  # type: ignore[arg-type]
        reason=report.reason,
        next_at=_instant(report.next_at_us),
        open_intent=_open_intent(report, as_string=as_string),
        last_error=report.last_error,
        needs_baseline=report.needs_baseline,
        needs_person=report.needs_person,
        carried={into: units(n, as_string=as_string) for into, n in report.carried.items()},
        carried_in=units(report.carried_in, as_string=as_string),
        finalizes_at=format_instant(report.finalization_us),
    )


def _open_intent(report: TargetReport, *, as_string: bool) -> OpenIntent | None:
    intent = report.open
    if intent is None:
        return None
    return OpenIntent(
        identifier=intent.request.identifier,
        number=intent.number,
        from_units=units(int(intent.from_units), as_string=as_string),
        to_units=units(int(intent.to_units), as_string=as_string),
        value=intent.request.value,
        timestamp=format_instant(intent.request.timestamp_s * 1_000_000),
        first_sent_at=format_instant(intent.first_sent_at_us),
    )


def connection_view(role: Literal["main", "shadow"], report: ConnectionReport) -> ConnectionView:
    """A key as the API shows it."""
    return ConnectionView(
        role=role,
        account=report.account,
        mode=report.mode,
        is_simulator=report.mode == "sim",
        error=report.error,
    )


def cutover_row(row: PreviewRow) -> CutoverRow:
    """A line of a preview as the API shows it."""
    target, lane = row.target, row.target.lane
    return CutoverRow(
        id=target_id(target),
        account=lane.account,
        mode=lane.mode,
        stripe_object=lane.object_id,
        stripe_customer_id=lane.customer,
        period=Period(format_instant(target.start_us), format_instant(target.end_us)),
        customer_refs=list(row.customer_refs),
        units_before=units(row.units_before),
        units_after=units(row.units_after),
        pushed=units(row.pushed),
        would_send=units(row.would_send),
    )


def _raw(text: str, *, as_string: bool) -> msgspec.Raw:
    return msgspec.Raw((f'"{text}"' if as_string else text).encode())


def _confirmed(text: str | None, *, as_string: bool) -> msgspec.Raw:
    """Stripe's number in plain notation; a text that is no number as a string, so that it is seen."""
    if text is None:
        return msgspec.Raw(b"null")
    try:
        number = Decimal(text)
    except DecimalException:
        return msgspec.Raw(msgspec.json.encode(text))
    whole = number == number.to_integral_value()
    return _raw(f"{number.to_integral_value() if whole else number:f}", as_string=as_string)


def _decimal(fraction: Fraction) -> str:
    """A fraction below 1 as its exact decimal: its denominator divides a power of ten."""
    scaled = fraction * 10**_REMAINDER_DIGITS
    assert scaled.denominator == 1, "quantities and scales are decimals"
    digits = f"{scaled.numerator:0{_REMAINDER_DIGITS}d}".rstrip("0")
    return f"0.{digits}" if digits else "0"


def _instant(us: int | None) -> str | None:
    return None if us is None else format_instant(us)
