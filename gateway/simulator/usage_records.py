"""The endpoints of legacy usage records.

Rules it keeps: they exist for API versions before 2025-03-31.basil and for metered prices without a meter; `set` at a
timestamp replaces what was there, `increment` adds to it; a record lies in a period whose invoice is not finalized.
It must not know what usage costs. Source: the API reference of version 2025-02-24.acacia.
"""

from __future__ import annotations

from typing import Final

from gateway.simulator.desk import FULL, Desk
from gateway.simulator.invoices import recorded
from gateway.simulator.ledger import digest_id
from gateway.simulator.wire import Fields, Json, Refusal, page

RECORDS_MAX: Final = 100_000
FUTURE_SECONDS_MAX: Final = 300


def _gone(desk: Desk, method: str, path: str) -> Refusal | None:
    if desk.is_before_basil:
        return None
    return Refusal(404, f"Unrecognized request URL ({method}: {path}).", is_kept=False)


def create_record(desk: Desk, fields: Fields, item_id: str) -> Json | Refusal:
    """`POST /v1/subscription_items/{id}/usage_records`."""
    refused = _gone(desk, "POST", f"/v1/subscription_items/{item_id}/usage_records")
    if refused is not None:
        return refused
    quantity = fields.whole("quantity", required=True) or 0
    action = fields.choice("action", ("increment", "set"), "increment")
    timestamp_s = None if fields.says("timestamp", "now") else fields.whole("timestamp")
    if quantity < 0:
        fields.refuse("Invalid quantity: must be 0 or more.", "quantity")
    item = fields.finish() or desk.find("subscription_item", item_id)
    if isinstance(item, Refusal):
        return item
    refused = _unsuited(desk, item, "create a usage record", "/v1/billing/meter_events")
    if refused is not None:
        return refused
    subscription = desk.ledger.objects[item["subscription"]]
    now_s = desk.time_on(subscription["test_clock"] or "")
    at_s = now_s if timestamp_s is None else timestamp_s
    if at_s < _open_since(desk, subscription):
        return Refusal(
            400,
            "Cannot create the usage record with this timestamp because timestamps must be after the subscription's last invoice period (or current period start time).",
            param="timestamp",
        )
    if at_s > now_s + FUTURE_SECONDS_MAX:
        return Refusal(
            400,
            "Cannot create the usage record with this timestamp because it is in the future.",
            param="timestamp",
        )
    records = desk.ledger.records.setdefault(item_id, {})
    if len(records) >= RECORDS_MAX:
        return FULL
    records[at_s] = quantity if action == "set" else records.get(at_s, 0) + quantity
    return {
        "id": desk.new_id("mbur_"),
        "object": "usage_record",
        "livemode": desk.settings.is_live,
        "quantity": quantity,
        "subscription_item": item_id,
        "timestamp": at_s,
    }


def _unsuited(desk: Desk, item: Json, what: str, instead: str) -> Refusal | None:
    recurring = desk.ledger.objects[item["price"]]["recurring"]
    if recurring["meter"] is not None:
        return Refusal(
            400,
            f"Cannot {what} for `{item['id']}` because it is not on the legacy metered billing system. Call {instead} instead.",
        )
    if recurring["usage_type"] != "metered":
        return Refusal(400, f"Cannot {what} for `{item['id']}` because its price is not metered.")
    if desk.ledger.objects[item["subscription"]]["status"] == "canceled":
        return Refusal(
            400,
            f"Cannot {what} for `{item['id']}` because its subscription is canceled.",
            "resource_missing",
        )
    return None


def _open_since(desk: Desk, subscription: Json) -> int:
    """From when on usage can still be recorded: the current period, or one whose invoice is a draft."""
    since_s: int = subscription["current_period_start"]
    for start_s, _, invoice_id in subscription["periods"]:
        if desk.ledger.objects[invoice_id]["status"] == "draft":
            since_s = min(since_s, start_s)
    return since_s


def list_record_summaries(desk: Desk, fields: Fields, item_id: str) -> Json | Refusal:
    """`GET /v1/subscription_items/{id}/usage_record_summaries`: one per period, the current one first."""
    path = f"/v1/subscription_items/{item_id}/usage_record_summaries"
    item = _gone(desk, "GET", path) or desk.find("subscription_item", item_id)
    if isinstance(item, Refusal):
        return item
    instead = "/v1/billing/meters/:id/event_summaries"
    refused = _unsuited(desk, item, "list usage record summaries", instead)
    if refused is not None and refused.code is None:
        return refused
    subscription = desk.ledger.objects[item["subscription"]]
    how = desk.ledger.objects[item["price"]]["recurring"]["aggregate_usage"]
    spans = list(subscription["periods"])
    start_s, end_s = subscription["current_period_start"], subscription["current_period_end"]
    if not spans or spans[-1][0] != start_s:
        spans.append([start_s, end_s, None])
    rows = []
    for start_s, end_s, invoice_id in reversed(spans):
        period: Json = {"start": start_s, "end": None if invoice_id is None else end_s}
        rows.append(
            {
                "id": digest_id("sis_", item_id, start_s),
                "object": "usage_record_summary",
                "invoice": invoice_id,
                "livemode": desk.settings.is_live,
                "period": period,
                "subscription_item": item_id,
                "total_usage": recorded(desk, item_id, how, start_s, end_s),
            }
        )
    return page(path, rows, fields)
