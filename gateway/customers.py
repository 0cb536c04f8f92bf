"""`/v1/customers`: what is known of a customer beyond its usage: its Stripe customer and its billing anchor.

Rules it keeps: PUT is the whole of what is known, so a field left out is gone afterwards; a dry run says what would be
sent and changes nothing. It must not know when an anchor or a destination takes effect.
"""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import msgspec

from engine.actors.administration import Wanted
from engine.core.configured import Customer
from engine.core.times import TimeError, parse_instant
from engine.errors import Unavailable
from gateway import parameters
from gateway.mapping_shapes import Cutover
from gateway.problems import Problem, wrong_fields
from gateway.push_previews import preview_of
from gateway.push_shapes import CutoverRow
from gateway.routes import Answer, Call
from gateway.shapes import (
    CustomerRef,
    Instant,
    TenantId,
    decode_cursor,
    encode_cursor,
    instant_or_none,
)

StripeCustomer = Annotated[
    str,
    msgspec.Meta(
        description="Its id at Stripe. Without it, a customerRef that is itself a `cus_...` is taken for it.",
        max_length=255,
        examples=["cus_123"],
    ),
]
TestClock = Annotated[
    str, msgspec.Meta(description="Stripe's test clock that it lives by.", max_length=255)
]
BillingAnchor = Annotated[
    str,
    msgspec.Meta(
        description="The instant that cuts this customer's months, for metrics with period `subscription`.",
        max_length=64,
        extra_json_schema={"format": "date-time", "examples": ["2026-01-31T09:30:00Z"]},
    ),
]


class CustomerBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """All that is known of a customer from now on.

    customerRef may be repeated; createdAt, updatedAt, effectiveFrom, pushEffectiveFrom and preview are passed over, so
    that what was answered can be sent back.
    """

    tenant_id: TenantId | None = None
    customer_ref: CustomerRef | None = None
    stripe_customer_id: StripeCustomer | None = None
    subscription_items: Annotated[
        dict[str, str],
        msgspec.Meta(
            description="Metric to the subscription item that bills it; wins over what the mapping names.",
            examples=[{"api_calls": "si_123"}],
        ),
    ] = {}
    billing_anchor: BillingAnchor | None = None
    test_clock: TestClock | None = None
    cutover: Cutover | None = None
    dry_run: bool = False
    created_at: str | None = None
    updated_at: str | None = None
    effective_from: str | None = None
    push_effective_from: str | None = None
    preview: Any = None


class CustomerView(msgspec.Struct, rename="camel", kw_only=True):
    """A customer."""

    tenant_id: TenantId
    customer_ref: CustomerRef
    stripe_customer_id: str | None
    subscription_items: dict[str, str]
    billing_anchor: Instant | None
    test_clock: str | None
    created_at: Instant
    updated_at: Instant
    effective_from: (
        Annotated[
            str,
            msgspec.Meta(
                description=(
                    "After a change only: from when its billingAnchor holds, since there is usage that was counted "
                    "by the old one. Null: at once."
                ),
                extra_json_schema={"format": "date-time"},
            ),
        ]
        | msgspec.UnsetType
        | None
    ) = msgspec.UNSET
    push_effective_from: (
        Annotated[
            str,
            msgspec.Meta(
                description=(
                    "After a change only: from when its Stripe customer and items hold, if they changed and something "
                    "had been pushed before. Null: at once."
                ),
                extra_json_schema={"format": "date-time"},
            ),
        ]
        | msgspec.UnsetType
        | None
    ) = msgspec.UNSET
    preview: list[CutoverRow] | msgspec.UnsetType = msgspec.UNSET
    """Of a dry run: what would be sent; nothing was changed."""


class CustomerList(msgspec.Struct, rename="camel", kw_only=True):
    """A page of customers, in the order in which they were first put."""

    customers: list[CustomerView]
    total: int
    next_cursor: str | None = None


def view(
    customer: Customer,
    effective_from: str | msgspec.UnsetType | None = msgspec.UNSET,
    push_effective_from: str | msgspec.UnsetType | None = msgspec.UNSET,
) -> CustomerView:
    """A customer as the API shows it."""
    return CustomerView(
        tenant_id=customer.tenant_id,
        customer_ref=customer.customer_ref,
        stripe_customer_id=customer.stripe_customer_id,
        subscription_items=customer.subscription_items,
        billing_anchor=instant_or_none(customer.billing_anchor_us),
        test_clock=customer.test_clock,
        created_at=instant_or_none(customer.created_at_us) or "",
        updated_at=instant_or_none(customer.updated_at_us) or "",
        effective_from=effective_from,
        push_effective_from=push_effective_from,
    )


async def put_customer(call: Call) -> Answer | Problem:
    """PUT /v1/customers/{customerRef}."""
    body: CustomerBody = call.body
    assert call.tenant is not None
    customer_ref = call.path["customerRef"]
    if body.customer_ref not in (None, customer_ref):
        return wrong_fields([("customerRef", "differs from the one in the path")])
    anchor_us: int | None = None
    if body.billing_anchor is not None:
        try:
            anchor_us = parse_instant(body.billing_anchor)
        except TimeError as error:
            return wrong_fields([("billingAnchor", str(error))])
    wanted = Wanted(
        body.cutover or call.query["cutover"],
        is_dry_run=body.dry_run or call.query["dryRun"] == "true",
    )
    changed = await call.gateway.administration.put_customer(
        Customer(
            tenant_id=call.tenant,
            customer_ref=customer_ref,
            stripe_customer_id=body.stripe_customer_id,
            subscription_items=body.subscription_items,
            billing_anchor_us=anchor_us,
            test_clock=body.test_clock,
        ),
        call.by,
        wanted,
    )
    shown = view(
        changed.value,
        instant_or_none(changed.effective_from_us),
        instant_or_none(changed.push_from_us),
    )
    if wanted.is_dry_run:
        shown.preview = await preview_of(call.gateway, changed.records)
    return Answer(shown, 201 if changed.was_new and not wanted.is_dry_run else 200)


async def get_customer(call: Call) -> Answer | Problem:
    """GET /v1/customers/{customerRef}."""
    assert call.tenant is not None
    return Answer(view(call.gateway.administration.customer(call.tenant, call.path["customerRef"])))


async def list_customers(call: Call) -> Answer | Problem:
    """GET /v1/customers."""
    assert call.tenant is not None
    if call.gateway.meter.phase == "recovering":
        raise Unavailable("the server is recovering; retry", retry_after_seconds=2)
    of_tenant = call.gateway.meter.registry.customers.get(call.tenant, {})
    start = call.query["offset"] or 0
    if (cursor := call.query["cursor"]) is not None:
        # Customers are never removed, so a place in their order is stable.
        place = decode_cursor(cursor)
        if call.query["offset"] is not None or place is None or not _is_place(place):
            return wrong_fields([("cursor", parameters.CURSOR_REFUSED)])
        start = place[0]
    page = list(islice(of_tenant.values(), start, start + call.query["limit"]))
    end = start + len(page)
    return Answer(
        CustomerList(
            customers=[view(customer) for customer in page],
            total=len(of_tenant),
            next_cursor=encode_cursor([end]) if page and end < len(of_tenant) else None,
        )
    )


def _is_place(value: list[object]) -> bool:
    return len(value) == 1 and type(value[0]) is int and 0 <= value[0] <= parameters.OFFSET_MAX
