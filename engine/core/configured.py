"""Records of what people configure: mappings of metrics to Stripe, customers, and who changed them.

Rules it keeps: a record holds references to Stripe's objects and never a secret; what decides where or how much is
pushed holds from the instant that its change names, so that a period keeps the destination it began with.
It must not know what the fields mean to counting (`engine.core.rules`) or pushing (`engine.core.push_routes`).
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Cutover = Literal["move", "carry"]
FINALIZATION_GRACE_US: Final = 3600 * 1_000_000
"""Stripe's own default: an invoice takes usage in for one hour after its period's end."""


class Mapping(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """How a metric of a tenant is counted and billed."""

    id: str
    tenant_id: str
    metric: str
    aggregation: str = "sum"
    period: str = "calendar"
    lateness_us: int | None = None
    unit: str | None = None
    active: bool = True
    stripe_account: str | None = None
    price_id: str | None = None
    subscription_item_id: str | None = None
    meter_event_name: str | None = None
    driver: str = "meter"
    currency: str | None = None
    stripe_scale: str = "1"
    """Billable units of one unit of use: a positive decimal in plain notation."""
    baseline: Literal["now", "period", "stripe"] | None = None
    """What to do when Stripe already holds usage for a target that is new here; None: a person decides."""
    finalization_grace_us: int = FINALIZATION_GRACE_US
    auto_repair: bool = False
    price_config: str | None = None
    """JSON text of a price configuration, for customers without a subscription."""
    shadow: bool = False
    shadow_stripe_account: str | None = None
    shadow_price_id: str | None = None
    shadow_subscription_item_id: str | None = None
    shadow_meter_event_name: str | None = None
    created_at_us: int = 0
    updated_at_us: int = 0


class Change(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Who changed something, and when it takes effect."""

    actor: str
    request_id: str | None = None
    effective_from_us: int | None = None
    """From which instant period and aggregation hold; None: always, nothing was counted before."""


class PushEffect(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """From when a change of where or how much is pushed holds; without it: always, nothing was pushed elsewhere."""

    from_us: int
    cutover: Cutover | None = None
    """How the period that holds `from_us` is dealt with; None: it keeps its destination to its end."""


class MappingChange(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A mapping was created, changed or deleted (`deleted` true; `mapping` is what it was)."""

    mapping: Mapping
    change: Change
    deleted: bool = False
    push: PushEffect | msgspec.UnsetType = msgspec.UNSET


class Customer(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """What is known of a customer beyond its usage."""

    tenant_id: str
    customer_ref: str
    stripe_customer_id: str | None = None
    subscription_items: dict[str, str] = {}
    billing_anchor_us: int | None = None
    test_clock: str | None = None
    created_at_us: int = 0
    updated_at_us: int = 0


class CustomerChange(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A customer was created or changed."""

    customer: Customer
    change: Change
    push: PushEffect | msgspec.UnsetType = msgspec.UNSET
