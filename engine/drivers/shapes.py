"""What we read of Stripe's objects, as strict structs: each only the fields that are used here.

Rules it keeps: unknown fields are ignored, since Stripe adds some at any time; a missing or odd field makes the answer
unreadable, never a default that means something. A decimal stays the text that Stripe sent.
It must not know where an object came from, nor what is decided by it.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

ObjectT = TypeVar("ObjectT")


class RejectedRequest(msgspec.Struct, frozen=True):
    """Of a sample."""

    identifier: str


class SampleError(msgspec.Struct, frozen=True):
    """One rejected event of a report."""

    error_message: str
    request: RejectedRequest


class ErrorType(msgspec.Struct, frozen=True):
    """The events of a report that were rejected for one reason."""

    code: str
    error_count: int
    sample_errors: list[SampleError] = []


class RejectionReason(msgspec.Struct, frozen=True):
    """Of a report."""

    error_count: int
    error_types: list[ErrorType] = []


class RejectionData(msgspec.Struct, frozen=True):
    """Of a thin event about rejected meter events."""

    reason: RejectionReason


class RelatedObject(msgspec.Struct, frozen=True):
    """What a thin event is about."""

    id: str


class RejectionEvent(msgspec.Struct, frozen=True):
    """`GET /v2/core/events/{id}`, `v1.billing.meter.error_report_triggered` and `...no_meter_found`."""

    data: RejectionData
    related_object: RelatedObject | None = None


class Account(msgspec.Struct, frozen=True):
    """`GET /v1/account`."""

    id: str
    metadata: object = None
    """Only a simulator's is read, and says whether it keeps to rate limits: whatever else is there must not be in the way."""

    @property
    def is_unlimited(self) -> bool:
        """Whether a simulator says that it refuses no call for its rate."""
        return isinstance(self.metadata, dict) and self.metadata.get("rate_limits") == "off"


class Balance(msgspec.Struct, frozen=True):
    """`GET /v1/balance`: the shortest object that says live or test."""

    livemode: bool


class CustomerMapping(msgspec.Struct, frozen=True):
    """Of a meter."""

    event_payload_key: str


class Aggregation(msgspec.Struct, frozen=True):
    """Of a meter."""

    formula: str


class Meter(msgspec.Struct, frozen=True):
    """`billing.meter`."""

    id: str
    event_name: str
    status: str
    default_aggregation: Aggregation
    customer_mapping: CustomerMapping
    value_settings: CustomerMapping
    event_time_window: str | None = None


class Recurring(msgspec.Struct, frozen=True):
    """Of a price."""

    usage_type: str
    meter: str | None = None


class Price(msgspec.Struct, frozen=True):
    """`price`."""

    id: str
    currency: str
    recurring: Recurring | None = None


class Item(msgspec.Struct, frozen=True):
    """`subscription_item`; its period lies here since 2025-03-31.basil."""

    id: str
    subscription: str
    price: Price
    created: int
    current_period_start: int | None = None
    current_period_end: int | None = None


class Subscription(msgspec.Struct, frozen=True):
    """`subscription`; the period lies here before basil."""

    id: str
    customer: str
    status: str
    currency: str | None = None
    """What it bills in, which may be an option of its prices."""
    current_period_start: int | None = None
    current_period_end: int | None = None


class Customer(msgspec.Struct, frozen=True):
    """`customer`."""

    id: str
    deleted: bool = False


class MeterSummary(msgspec.Struct, frozen=True):
    """`billing.meter_event_summary`."""

    id: str
    aggregated_value: msgspec.Raw
    """The number's own text."""


class SummaryPeriod(msgspec.Struct, frozen=True):
    """Of a usage record summary; None: without an end on that side."""

    start: int | None = None
    end: int | None = None


class UsageSummary(msgspec.Struct, frozen=True):
    """`usage_record_summary` of one period."""

    id: str
    total_usage: int
    period: SummaryPeriod


class MeterEvent(msgspec.Struct, frozen=True):
    """`billing.meter_event`, the answer to a new one."""

    identifier: str


class UsageRecord(msgspec.Struct, frozen=True):
    """`usage_record`, the answer to `set`."""

    quantity: int
    subscription_item: str


class Adjustment(msgspec.Struct, frozen=True):
    """`billing.meter_event_adjustment`."""

    status: str


class PriceDetails(msgspec.Struct, frozen=True):
    """Of a line's pricing."""

    price: str | None = None


class LinePricing(msgspec.Struct, frozen=True):
    """Of a line, since 2025-03-31.basil."""

    price_details: PriceDetails | None = None


class ItemDetails(msgspec.Struct, frozen=True):
    """Of a line's parent."""

    subscription_item: str | None = None


class LineParent(msgspec.Struct, frozen=True):
    """Of a line, since basil."""

    subscription_item_details: ItemDetails | None = None


class LinePeriod(msgspec.Struct, frozen=True):
    """Of a line, unix seconds."""

    start: int
    end: int


class LinePrice(msgspec.Struct, frozen=True):
    """Of a line before basil."""

    id: str


class InvoiceLine(msgspec.Struct, frozen=True):
    """`line_item`, of both API versions."""

    id: str
    period: LinePeriod
    quantity: int | None = None
    pricing: LinePricing | None = None
    parent: LineParent | None = None
    price: LinePrice | None = None
    subscription_item: str | None = None

    @property
    def price_id(self) -> str | None:
        """The price it is of."""
        if self.pricing is not None and self.pricing.price_details is not None:
            return self.pricing.price_details.price
        return None if self.price is None else self.price.id

    @property
    def item(self) -> str | None:
        """The subscription item it is of."""
        if self.parent is not None and self.parent.subscription_item_details is not None:
            return self.parent.subscription_item_details.subscription_item
        return self.subscription_item


class InvoiceLines(msgspec.Struct, frozen=True):
    """The first lines of an invoice."""

    data: list[InvoiceLine]
    has_more: bool


class Transitions(msgspec.Struct, frozen=True):
    """Of an invoice."""

    finalized_at: int | None = None


class Invoice(msgspec.Struct, frozen=True):
    """`invoice`."""

    id: str
    status: str | None
    period_end: int
    lines: InvoiceLines
    status_transitions: Transitions


class StreamSession(msgspec.Struct, frozen=True):
    """`v2.billing.meter_event_session`. Both times are by Stripe's clock."""

    authentication_token: str
    created: str
    expires_at: str


class TestClock(msgspec.Struct, frozen=True):
    """`test_helpers.test_clock`; `status` is `ready`, `advancing` or `internal_failure`."""

    id: str
    frozen_time: int
    status: str


class Page(msgspec.Struct, Generic[ObjectT], frozen=True):
    """One page of a v1 list."""

    data: list[ObjectT]
    has_more: bool
