"""How an ingest body is documented: the decoder's own struct, with a description and an example of each field.

It must not know how a body is read; `tests/gateway/test_openapi.py` holds it against the struct that is decoded.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from gateway.shapes import CustomerRef, Instant, MetricName, Quantity, TenantId


class IngestEvent(msgspec.Struct, rename="camel", kw_only=True):
    """One usage event."""

    tenant_id: Annotated[
        TenantId | None, msgspec.Meta(description="Without it, the API key's tenant.")
    ] = None
    metric: MetricName
    customer_ref: CustomerRef
    quantity: Annotated[
        Quantity,
        msgspec.Meta(
            description="0 or more, below 10^15, at most 6 decimals; a number or a decimal string.",
        ),
    ]
    ts: Annotated[
        Instant | None,
        msgspec.Meta(description="When it happened. Absent: now, and then it needs a key."),
    ] = None
    resource_id: Annotated[str, msgspec.Meta(max_length=255, min_length=1)] | None = None
    meta: Annotated[
        dict[str, Any] | None,
        msgspec.Meta(description="Kept with the event.", examples=[{"region": "eu"}]),
    ] = None
    idempotency_key: (
        Annotated[str, msgspec.Meta(max_length=255, min_length=1, examples=["req-8841"])] | None
    ) = None
    source: Literal["http", "sdk", "etl", "import", "system"] | None = None


class IngestBody(msgspec.Struct, kw_only=True):
    """A batch of events."""

    events: Annotated[
        list[IngestEvent],
        msgspec.Meta(min_length=1, description="At most STRIPEMETER_MAX_BATCH of them."),
    ]
