"""The table of routes: every endpoint of this server, one row each. From it come Quart's rules, scopes and OpenAPI.

Rules it keeps: what is not here does not exist; a row says all a client can rely on. The handlers are in one module
per resource; here are only those that speak of the table itself. It must not know how a row is served.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from engine.limits import NAME_CHARS_MAX
from gateway import (
    api_keys,
    customers,
    events,
    explain,
    export_state,
    health,
    mappings,
    parameters,
    usage,
)
from gateway.around import INGEST_PATH, USAGE_PATH
from gateway.documentation import IF_NONE_MATCH, docs, docs_asset, fixed
from gateway.ingest import IngestResponse
from gateway.ingest_decoding import CLOUD_EVENT, CLOUD_EVENT_BATCH
from gateway.ingest_document import IngestBody
from gateway.mapping_shapes import (
    CUTOVER,
    DRY_RUN,
    MappingBody,
    MappingList,
    MappingUpdate,
    MappingView,
)
from gateway.openapi import document
from gateway.problems import Problem
from gateway.routes import Answer, Call, Header, Route
from gateway.table_corrections import ADJUSTMENTS, AUDIT, REPLAY
from gateway.table_imports import BACKFILLS, IMPORTS
from gateway.table_keeping import KEEPING
from gateway.table_parity import PARITY
from gateway.table_pricing import PRICING
from gateway.table_pushing import PUSHING
from gateway.table_reconciliation import RECONCILIATION

_CHANGES: Final = (
    "Period, aggregation, latenessHours and unit count from now on. Once the metric has usage, another period or "
    "aggregation holds from the end of the running period, which `effectiveFrom` names. Once something was pushed, a "
    "change of where or how much is pushed (driver, account, meter, price, item, stripeScale) holds from the next period, "
    "which `pushEffectiveFrom` names, or with `cutover` now. `dryRun` answers what would be sent (`preview`) and changes "
    "nothing. A shadow mapping is pushed to the test account alone, by its shadow fields."
)


@lru_cache(maxsize=2)
def openapi_document(*, auth_required: bool = False) -> bytes:
    """The OpenAPI document of this table, as JSON; as a server describes itself that requires API keys, or none."""
    return document(ROUTES, auth_required=auth_required)


async def openapi_json(call: Call) -> Answer | Problem:
    """GET /openapi.json."""
    data = openapi_document(auth_required=call.gateway.settings.auth_required)
    return fixed(call, data, "application/json")


async def root(_call: Call) -> Answer | Problem:
    """GET /."""
    return Answer(b"", 307, headers=(("location", "/docs"),))


_EVENTS = (
    Route(
        method="POST",
        path=INGEST_PATH,
        handler=None,
        tag="events",
        summary="Count usage events, each exactly once",
        description=(
            "A 200 means: on disk, deduplicated, counted. `results[i]` is about `events[i]`; one bad event never "
            "fails its neighbours. Send the same request again after a time-out or a 5xx: nothing counts twice. "
            "The key of an event is its `idempotencyKey`, else the Idempotency-Key header, else a hash over all its "
            "fields. CloudEvents 1.0 bodies and `Content-Encoding: gzip` are taken too."
        ),
        scope="events:write",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        request=IngestBody,
        request_content_types=("application/json", CLOUD_EVENT, CLOUD_EVENT_BATCH),
        response=IngestResponse,
        errors=(404, 409, 429, 503, 507),
        headers=(
            Header(
                "Idempotency-Key",
                "The key of the event; of more than one, `KEY:INDEX` of each.",
                {"type": "string", "minLength": 1, "maxLength": NAME_CHARS_MAX},
            ),
            Header(
                "StripeMeter-Import",
                "The import whose rows these are (`POST /v1/events/imports`).",
                {"type": "string"},
            ),
        ),
    ),
    Route(
        method="GET",
        path="/v1/events",
        handler=events.list_events,
        tag="events",
        summary="List accepted events",
        description=(
            "`ts` order is always available, other orders for few matches. A request looks at a bounded part of the "
            "log: where it stops early it says `totalIsLowerBound` and gives `nextCursor`, and the order holds. With "
            "`format=csv` or `jsonl` all events that match come as one stream, in log order, named as ingest wants "
            "them; an answer that is cut off has no proper end."
        ),
        scope="events:read",
        tenancy="required",
        parameters=events.EVENTS_PARAMETERS,
        response=events.EventList,
        sends=("Content-Disposition", "X-StripeMeter-Position", "X-StripeMeter-Dropped-Before"),
        other_content_types=events.EVENTS_CONTENT_TYPES,
        errors=(410,),
    ),
)

_USAGE = (
    Route(
        method="GET",
        path=USAGE_PATH,
        handler=usage.current,
        tag="usage",
        summary="What a customer has used in the running period",
        description="Every event acknowledged before the request is in the answer.",
        scope="usage:read",
        tenancy="required",
        parameters=usage.CURRENT_PARAMETERS,
        response=usage.UsageNow,
        errors=(410,),
    ),
    Route(
        method="GET",
        path="/v1/usage/history",
        handler=usage.history,
        tag="usage",
        summary="A metric's use over time, in buckets",
        description=(
            "Late events are in it where they happened, also while their adjustment waits for a decision: history "
            "shows usage, not what is billed."
        ),
        scope="usage:read",
        tenancy="required",
        parameters=usage.HISTORY_PARAMETERS,
        response=usage.UsageHistory,
        errors=(410,),
    ),
    Route(
        method="GET",
        path="/v1/usage/explain",
        handler=explain.explain,
        tag="usage",
        summary="How a total came about",
        description=(
            "Events by day, replays, late events and adjustments, each with its positions in the log. Of a sum the "
            "parts add up to the total to the last digit; of a max or last, `decidedBy` names what won."
        ),
        scope="usage:read",
        tenancy="required",
        parameters=explain.EXPLAIN_PARAMETERS,
        response=explain.UsageExplained,
        errors=(410,),
    ),
    Route(
        method="GET",
        path="/v1/usage/counters",
        handler=export_state.list_counters,
        tag="usage",
        summary="All counters of a tenant, as a stream",
        description="One line for each customer, metric and period; an answer that is cut off has no proper end.",
        scope="usage:read",
        tenancy="required",
        parameters=export_state.COUNTERS_PARAMETERS,
        response=export_state.CounterLine,
        sends=("Content-Disposition", "X-StripeMeter-Position"),
        content_type=export_state.COUNTERS_CONTENT_TYPE,
        other_content_types=export_state.COUNTERS_OTHER_TYPES,
    ),
)

_MAPPINGS = (
    Route(
        method="GET",
        path="/v1/mappings",
        handler=mappings.list_mappings,
        tag="mappings",
        summary="List mappings",
        scope="mappings:read",
        tenancy="optional",
        parameters=(
            parameters.TENANT,
            usage.METRIC._replace(description="Only of this metric."),
            parameters.choice("active", "Only active or inactive ones.", ("true", "false")),
            parameters.LIMIT,
            parameters.OFFSET,
            parameters.CURSOR,
        ),
        response=MappingList,
    ),
    Route(
        method="POST",
        path="/v1/mappings",
        handler=mappings.create_mapping,
        tag="mappings",
        summary="Say how a metric is counted",
        description=f"One active mapping per tenant and metric. {_CHANGES}",
        scope="mappings:write",
        tenancy="required",
        parameters=(parameters.TENANT,),
        request=MappingBody,
        response=MappingView,
        status=201,
        sends=("Location",),
        other_statuses=(200,),
        errors=(409,),
    ),
    Route(
        method="GET",
        path="/v1/mappings/{id}",
        handler=mappings.get_mapping,
        tag="mappings",
        summary="One mapping",
        scope="mappings:read",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        response=MappingView,
        errors=(404,),
    ),
    Route(
        method="PUT",
        path="/v1/mappings/{id}",
        handler=mappings.update_mapping,
        tag="mappings",
        summary="Change a mapping",
        description=f"Fields given replace, fields left out stay. {_CHANGES}",
        scope="mappings:write",
        tenancy="optional",
        parameters=(parameters.TENANT, CUTOVER, DRY_RUN),
        request=MappingUpdate,
        response=MappingView,
        errors=(404, 409),
    ),
    Route(
        method="DELETE",
        path="/v1/mappings/{id}",
        handler=mappings.delete_mapping,
        tag="mappings",
        summary="Delete a mapping",
        description=(
            "The metric is counted by the defaults again (sum, calendar month), from the end of the running period "
            "if it has usage. What was counted stays."
        ),
        scope="mappings:write",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        status=204,
        errors=(404, 409),
    ),
)

_CUSTOMERS = (
    Route(
        method="GET",
        path="/v1/customers",
        handler=customers.list_customers,
        tag="customers",
        summary="List customers that something was put for",
        description="Customers need not be put before they are metered: usage alone makes none.",
        scope="mappings:read",
        tenancy="required",
        parameters=(
            parameters.TENANT,
            parameters.LIMIT,
            parameters.OFFSET,
            parameters.CURSOR,
        ),
        response=customers.CustomerList,
    ),
    Route(
        method="GET",
        path="/v1/customers/{customerRef}",
        handler=customers.get_customer,
        tag="customers",
        summary="One customer",
        scope="mappings:read",
        tenancy="required",
        parameters=(parameters.TENANT,),
        response=customers.CustomerView,
        errors=(404,),
    ),
    Route(
        method="PUT",
        path="/v1/customers/{customerRef}",
        handler=customers.put_customer,
        tag="customers",
        summary="Put all that is known of a customer",
        description=(
            "The whole representation: a field left out is gone afterwards. Another billingAnchor holds at once, or, "
            "once there is usage counted by the old one, from the end of the running period. A Stripe customer or "
            "item belongs to one tenant. Once something was pushed for it, another Stripe customer or item holds from its "
            "next period, which `pushEffectiveFrom` names, or with `cutover` now; `dryRun` answers what would be sent."
        ),
        scope="mappings:write",
        tenancy="required",
        parameters=(parameters.TENANT, CUTOVER, DRY_RUN),
        request=customers.CustomerBody,
        response=customers.CustomerView,
        other_statuses=(201,),
        errors=(409,),
    ),
)

_KEYS = (
    Route(
        method="GET",
        path="/v1/admin/api-keys",
        handler=api_keys.list_keys,
        tag="admin",
        summary="List API keys, without their secrets",
        scope="admin",
        tenancy="optional",
        parameters=(parameters.TENANT, parameters.LIMIT, parameters.OFFSET),
        response=api_keys.ApiKeyList,
    ),
    Route(
        method="POST",
        path="/v1/admin/api-keys",
        handler=api_keys.create_key,
        tag="admin",
        summary="Create an API key",
        description="Its text is shown this once. It works for one tenant.",
        scope="admin",
        tenancy="required",
        parameters=(parameters.TENANT,),
        request=api_keys.ApiKeyBody,
        response=api_keys.NewApiKey,
        status=201,
        errors=(409,),
    ),
    Route(
        method="POST",
        path="/v1/admin/api-keys/{id}/rotate",
        handler=api_keys.rotate_key,
        tag="admin",
        summary="Give an API key another text",
        description="The old text stops working at once. The new one is shown this once.",
        scope="admin",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        response=api_keys.NewApiKey,
        errors=(404, 409),
    ),
    Route(
        method="POST",
        path="/v1/admin/api-keys/{id}/revoke",
        handler=api_keys.revoke_key,
        tag="admin",
        summary="End an API key for good",
        description="Revoking twice changes nothing the second time.",
        scope="admin",
        tenancy="optional",
        parameters=(parameters.TENANT,),
        response=api_keys.ApiKeyView,
        errors=(404,),
    ),
)

_SYSTEM = (
    Route(
        method="GET",
        path="/health",
        handler=health.health,
        tag="system",
        summary="Does the process answer",
        response=health.Health,
    ),
    Route(
        method="GET",
        path="/health/live",
        handler=health.live,
        tag="system",
        summary="Is the process alive",
        response=health.Alive,
    ),
    Route(
        method="GET",
        path="/health/ready",
        handler=health.ready,
        tag="system",
        summary="Can events be acknowledged now",
        description="503 while recovering or stopping, and when the log can't be written.",
        response=health.Readiness,
        other_statuses=(503,),
    ),
    Route(
        method="GET",
        path="/metrics",
        handler=health.metrics,
        tag="system",
        summary="Metrics in Prometheus' text format",
        content_type="text/plain",
    ),
    Route(
        method="GET",
        path="/openapi.json",
        handler=openapi_json,
        tag="system",
        summary="This document",
        other_statuses=(304,),
        headers=(IF_NONE_MATCH,),
        sends=("ETag",),
    ),
    Route(
        method="GET",
        path="/docs",
        handler=docs,
        tag="system",
        summary="This document as a page",
        content_type="text/html",
        other_statuses=(304,),
        headers=(IF_NONE_MATCH,),
        sends=("ETag",),
    ),
    Route(
        method="GET",
        path="/docs/{asset}",
        handler=docs_asset,
        tag="system",
        summary="What the page needs: its script and its style",
        content_type="text/javascript",
        other_content_types=("text/css",),
        other_statuses=(304,),
        errors=(404,),
        headers=(IF_NONE_MATCH,),
        sends=("ETag",),
    ),
    Route(
        method="GET",
        path="/",
        handler=root,
        tag="system",
        summary="Leads to the documentation",
        status=307,
        sends=("Location",),
    ),
)

ROUTES: Final[tuple[Route, ...]] = (
    _EVENTS
    + BACKFILLS
    + IMPORTS
    + _USAGE
    + _MAPPINGS
    + _CUSTOMERS
    + PUSHING
    + RECONCILIATION
    + PARITY
    + PRICING
    + ADJUSTMENTS
    + REPLAY
    + _KEYS
    + AUDIT
    + KEEPING
    + _SYSTEM
)
"""Every endpoint."""

assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)
