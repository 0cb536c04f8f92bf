"""Which endpoint a method and path belong to.

Rules it keeps: one row per endpoint. It must not know what an endpoint does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from gateway.simulator import (
    accounts,
    catalog,
    customers,
    invoices,
    meters,
    notices,
    streams,
    subscriptions,
    usage_records,
)
from gateway.simulator.desk import Desk
from gateway.simulator.wire import Fields, Json, Refusal

Endpoint = Callable[..., Json | Refusal]
"""(desk, fields, ids from the path) to the answer."""


class Found(NamedTuple):
    """An endpoint, its pattern, and the ids in the path."""

    endpoint: Endpoint
    pattern: str
    ids: tuple[str, ...]

    def serve(self, desk: Desk, fields: Fields) -> Json | Refusal:
        """Let the endpoint answer."""
        return self.endpoint(desk, fields, *self.ids)


ROUTES: Final[dict[tuple[str, str], Endpoint]] = {
    ("GET", "/v1/account"): accounts.retrieve_account,
    ("GET", "/v1/balance"): accounts.retrieve_balance,
    ("POST", "/v1/billing/meters"): meters.create_meter,
    ("GET", "/v1/billing/meters"): meters.list_meters,
    ("GET", "/v1/billing/meters/{}"): meters.retrieve_meter,
    ("POST", "/v1/billing/meters/{}"): meters.update_meter,
    ("POST", "/v1/billing/meters/{}/deactivate"): meters.deactivate_meter,
    ("POST", "/v1/billing/meters/{}/reactivate"): meters.reactivate_meter,
    ("GET", "/v1/billing/meters/{}/event_summaries"): meters.list_summaries,
    ("POST", "/v1/billing/meter_events"): meters.create_meter_event,
    ("POST", "/v1/billing/meter_event_adjustments"): meters.create_adjustment,
    ("POST", "/v1/customers"): customers.create_customer,
    ("GET", "/v1/customers"): customers.list_customers,
    ("GET", "/v1/customers/{}"): customers.retrieve_customer,
    ("POST", "/v1/customers/{}"): customers.update_customer,
    ("DELETE", "/v1/customers/{}"): customers.delete_customer,
    ("POST", "/v1/products"): catalog.create_product,
    ("GET", "/v1/products"): catalog.list_products,
    ("GET", "/v1/products/{}"): catalog.retrieve_product,
    ("POST", "/v1/products/{}"): catalog.update_product,
    ("POST", "/v1/prices"): catalog.create_price,
    ("GET", "/v1/prices"): catalog.list_prices,
    ("GET", "/v1/prices/{}"): catalog.retrieve_price,
    ("POST", "/v1/prices/{}"): catalog.update_price,
    ("POST", "/v1/subscriptions"): subscriptions.create_subscription,
    ("GET", "/v1/subscriptions"): subscriptions.list_subscriptions,
    ("GET", "/v1/subscriptions/{}"): subscriptions.retrieve_subscription,
    ("POST", "/v1/subscriptions/{}"): subscriptions.update_subscription,
    ("DELETE", "/v1/subscriptions/{}"): subscriptions.cancel_subscription,
    ("POST", "/v1/subscription_items"): subscriptions.create_item,
    ("GET", "/v1/subscription_items"): subscriptions.list_items,
    ("GET", "/v1/subscription_items/{}"): subscriptions.retrieve_item,
    ("POST", "/v1/subscription_items/{}"): subscriptions.update_item,
    ("DELETE", "/v1/subscription_items/{}"): subscriptions.delete_item,
    ("POST", "/v1/subscription_items/{}/usage_records"): usage_records.create_record,
    (
        "GET",
        "/v1/subscription_items/{}/usage_record_summaries",
    ): usage_records.list_record_summaries,
    ("GET", "/v1/invoices"): invoices.list_invoices,
    ("GET", "/v1/invoices/{}"): invoices.retrieve_invoice,
    ("POST", "/v1/invoices/{}/finalize"): invoices.finalize_invoice,
    ("POST", "/v1/test_helpers/test_clocks"): customers.create_clock,
    ("GET", "/v1/test_helpers/test_clocks"): customers.list_clocks,
    ("GET", "/v1/test_helpers/test_clocks/{}"): customers.retrieve_clock,
    ("DELETE", "/v1/test_helpers/test_clocks/{}"): customers.delete_clock,
    ("POST", "/v1/test_helpers/test_clocks/{}/advance"): customers.advance_clock,
    ("GET", "/v1/events"): notices.list_events,
    ("GET", "/v1/events/{}"): notices.retrieve_event,
    ("POST", "/v1/webhook_endpoints"): notices.create_endpoint,
    ("GET", "/v1/webhook_endpoints"): notices.list_endpoints,
    ("GET", "/v1/webhook_endpoints/{}"): notices.retrieve_endpoint,
    ("DELETE", "/v1/webhook_endpoints/{}"): notices.delete_endpoint,
    ("GET", "/v2/core/events"): notices.list_thin_events,
    ("GET", "/v2/core/events/{}"): notices.retrieve_thin_event,
    ("POST", "/v2/core/event_destinations"): notices.create_destination,
    ("POST", "/v2/billing/meter_event_session"): streams.create_session,
    ("POST", "/v2/billing/meter_event_stream"): streams.stream,
    ("POST", "/v2/billing/meter_events"): streams.create_event,
    ("POST", "/v2/billing/meter_event_adjustments"): streams.create_adjustment,
}


def _tree() -> dict[tuple[str, int], list[tuple[list[str], str, Endpoint]]]:
    tree: dict[tuple[str, int], list[tuple[list[str], str, Endpoint]]] = {}
    for (method, pattern), endpoint in ROUTES.items():
        if "{}" in pattern:
            parts = pattern.split("/")
            tree.setdefault((method, len(parts)), []).append((parts, pattern, endpoint))
    return tree


_PATTERNS: Final = _tree()


def find(method: str, path: str) -> Found | None:
    """The endpoint of a method and path; a path without ids goes before one with them."""
    endpoint = ROUTES.get((method, path))
    if endpoint is not None:
        return Found(endpoint, path, ())
    parts = path.split("/")
    for pattern, name, endpoint in _PATTERNS.get((method, len(parts)), ()):
        if all(
            have == want or (want == "{}" and have)
            for have, want in zip(parts, pattern, strict=True)
        ):
            ids = tuple(have for have, want in zip(parts, pattern, strict=True) if want == "{}")
            return Found(endpoint, name, ids)
    return None
