"""Subscriptions and their items: made, changed, rolled over at period ends, ended.

Rules it keeps: periods follow the original anchor; what was used until an end is on that period's invoice; where a
period is shown follows the API version (on items since 2025-03-31.basil). Prorations, trials and the usage of items
removed within a period are not simulated. It must not know how amounts are computed.
Source: https://docs.stripe.com/api/subscriptions
"""

from __future__ import annotations

from typing import Final

from gateway.simulator.catalog import shape_price
from gateway.simulator.desk import FULL, Desk
from gateway.simulator.invoices import draw_invoice, finalize
from gateway.simulator.spans import boundary, number_at
from gateway.simulator.wire import Fields, Json, Refusal, missing, page

ITEMS_MAX: Final = 20
PERIODS_MAX: Final = 1000
_IGNORED: Final = (
    "billing_mode",
    "currency",
    "days_until_due",
    "default_payment_method",
    "description",
)
_IGNORED_MORE: Final = ("off_session", "payment_behavior", "payment_settings", "proration_behavior")


def shape_item(desk: Desk, item: Json) -> Json:
    """An item as answers show it, its price in full."""
    price = shape_price(desk.ledger.objects[item["price"]])
    shaped: Json = {**item, "price": price, "discounts": [], "tax_rates": []}
    if price["recurring"]["usage_type"] == "metered":
        del shaped["quantity"]
    if not desk.is_before_basil:
        subscription = desk.ledger.objects[item["subscription"]]
        for name in ("current_period_start", "current_period_end"):
            shaped[name] = subscription[name]
    return shaped


def shape_subscription(desk: Desk, subscription: Json) -> Json:
    """A subscription as answers show it."""
    shaped = {name: value for name, value in subscription.items() if name != "periods"}
    items = [shape_item(desk, desk.ledger.objects[one]) for one in subscription["items"]]
    shaped["items"] = {
        "object": "list",
        "data": items,
        "has_more": False,
        "total_count": len(items),
        "url": f"/v1/subscription_items?subscription={subscription['id']}",
    }
    if not desk.is_before_basil:
        del shaped["current_period_start"], shaped["current_period_end"]
    return shaped


def _read_item(desk: Desk, row: Fields, *, is_new: bool) -> Json:
    """(price, quantity, metadata) of one row; what is wrong is kept in the row."""
    price_id, quantity = row.text("price", required=is_new), row.whole("quantity")
    read: Json = {"price": price_id, "quantity": quantity, "metadata": row.texts("metadata")}
    row.unused("tax_rates", "billing_thresholds", "discounts", "proration_behavior")
    if row.wrong is not None or not price_id:
        return read
    price = desk.find("price", price_id, row.named("price"))
    if isinstance(price, Refusal):
        row.wrong = price
    elif price["recurring"] is None:
        row.refuse("The price must be recurring.", "price")
    elif not price["active"]:
        row.refuse(f"The price {price_id} is not active.", "price")
    elif price["recurring"]["usage_type"] == "metered" and quantity is not None:
        row.refuse("Quantity should not be specified where usage_type is `metered`.", "quantity")
    return read


def _add_item(desk: Desk, subscription: Json, read: Json) -> Json:
    item: Json = {
        "id": desk.new_id("si_", 14),
        "object": "subscription_item",
        "created": desk.time_on(subscription["test_clock"] or ""),
        "metadata": read["metadata"],
        "price": read["price"],
        "quantity": 1 if read["quantity"] is None else read["quantity"],
        "subscription": subscription["id"],
    }
    desk.keep("subscription_item", item)
    subscription["items"].append(item["id"])
    return item


def _unlike(desk: Desk, price_ids: list[str]) -> Refusal | None:
    """Why these prices can't be on one subscription."""
    prices = [desk.ledger.objects[one] for one in price_ids]
    spans = {(one["recurring"]["interval"], one["recurring"]["interval_count"]) for one in prices}
    if len(spans) > 1:
        return Refusal(
            400, "All prices of a subscription must have the same interval.", param="items"
        )
    if len({one["currency"] for one in prices}) > 1:
        return Refusal(400, "All prices of a subscription must have one currency.", param="items")
    if len(set(price_ids)) < len(price_ids):
        return Refusal(400, "A price can be on a subscription only once.", param="items")
    return None


def create_subscription(desk: Desk, fields: Fields) -> Json | Refusal:
    """`POST /v1/subscriptions`; its first invoice is finalized at once."""
    customer_id = fields.text("customer", required=True)
    anchor_s, start_s = fields.whole("billing_cycle_anchor"), fields.whole("backdate_start_date")
    at_end = fields.flag("cancel_at_period_end")
    method = fields.choice(
        "collection_method", ("charge_automatically", "send_invoice"), "charge_automatically"
    )
    metadata = fields.texts("metadata")
    rows = fields.rows("items")
    if not 1 <= len(rows) <= ITEMS_MAX:
        fields.refuse(f"items: 1 to {ITEMS_MAX} are needed.", "items", "parameter_missing")
    reads = [_read_item(desk, row, is_new=True) for row in rows]
    for row in rows:
        fields.take(row)
    fields.unused(*_IGNORED, *_IGNORED_MORE)
    refused = fields.finish() or _unlike(desk, [read["price"] for read in reads])
    if refused is not None:
        return refused
    customer = desk.find("customer", customer_id, "customer")
    if isinstance(customer, Refusal) or customer.get("deleted"):
        return missing("customer", customer_id, "customer")
    now_s = desk.time_on(desk.clock_of(customer_id))
    if anchor_s is not None and anchor_s <= now_s and start_s is None:
        return Refusal(
            400, "billing_cycle_anchor must be in the future.", param="billing_cycle_anchor"
        )
    if start_s is not None and start_s > now_s:
        return Refusal(400, "backdate_start_date must be past.", param="backdate_start_date")
    if desk.is_full():
        return FULL
    price = desk.ledger.objects[reads[0]["price"]]
    subscription: Json = {
        "id": desk.new_id("sub_"),
        "object": "subscription",
        "billing_cycle_anchor": anchor_s or start_s or now_s,
        "cancel_at": None,
        "cancel_at_period_end": at_end,
        "canceled_at": now_s if at_end else None,
        "collection_method": method,
        "created": now_s,
        "currency": price["currency"],
        "current_period_end": 0,
        "current_period_start": 0,
        "customer": customer_id,
        "ended_at": None,
        "items": [],
        "latest_invoice": None,
        "livemode": desk.settings.is_live,
        "metadata": metadata,
        "periods": [],
        "start_date": start_s or now_s,
        "status": "active",
        "test_clock": customer["test_clock"],
    }
    desk.keep("subscription", subscription)
    for read in reads:
        # Of a backdated subscription the items are as old as it is.
        _add_item(desk, subscription, read)["created"] = subscription["start_date"]
    _open_period(desk, subscription, now_s, subscription["start_date"])
    desk.publish("customer.subscription.created", shape_subscription(desk, subscription))
    _bill(desk, subscription, None, "subscription_create")
    return shape_subscription(desk, subscription)


def _open_period(desk: Desk, subscription: Json, at_s: int, least_s: int) -> None:
    """Make the period that holds `at_s` the current one; it begins at `least_s` at the earliest."""
    recurring = desk.ledger.objects[desk.ledger.objects[subscription["items"][0]]["price"]][
        "recurring"
    ]
    interval, count = recurring["interval"], recurring["interval_count"]
    anchor_s = subscription["billing_cycle_anchor"]
    number = number_at(anchor_s, interval, count, at_s)
    start_s = max(least_s, boundary(anchor_s, interval, count, number))
    end_s = boundary(anchor_s, interval, count, number + 1)
    subscription["current_period_start"], subscription["current_period_end"] = start_s, end_s
    subject = f"{subscription['id']} {end_s}"
    desk.schedule(subscription["test_clock"] or "", end_s, "period_end", subject)


def _bill(desk: Desk, subscription: Json, used: tuple[int, int] | None, reason: str) -> Json:
    """Draw an invoice; the one of a cycle waits for its grace, others are finalized at once."""
    ahead = None
    if subscription["status"] == "active":
        ahead = (subscription["current_period_start"], subscription["current_period_end"])
    invoice = draw_invoice(desk, subscription, used, ahead, reason)
    subscription["latest_invoice"] = invoice["id"]
    if used is not None:
        subscription["periods"].append([*used, invoice["id"]])
        del subscription["periods"][:-PERIODS_MAX]
    if reason == "subscription_cycle":
        due_s = invoice["automatically_finalizes_at"]
        desk.schedule(subscription["test_clock"] or "", due_s, "finalize", invoice["id"])
    else:
        finalize(desk, invoice["id"])
    return invoice


def close_period(desk: Desk, subject: str) -> None:
    """A period's end: draw its invoice, and go on with the next one or end."""
    subscription_id, _, end = subject.partition(" ")
    subscription = desk.ledger.objects[subscription_id]
    end_s = int(end)
    if subscription["status"] == "canceled" or subscription["current_period_end"] != end_s:
        return
    used = (subscription["current_period_start"], end_s)
    if subscription["cancel_at_period_end"]:
        end_subscription(desk, subscription, end_s)
    else:
        _open_period(desk, subscription, end_s, end_s)
    _bill(desk, subscription, used, "subscription_cycle")
    if subscription["status"] == "active":
        desk.publish("customer.subscription.updated", shape_subscription(desk, subscription))


def end_subscription(desk: Desk, subscription: Json, at_s: int) -> None:
    """End it; nothing is billed by that."""
    subscription["status"] = "canceled"
    subscription["ended_at"] = at_s
    subscription["canceled_at"] = subscription["canceled_at"] or at_s
    desk.publish("customer.subscription.deleted", shape_subscription(desk, subscription))


def retrieve_subscription(desk: Desk, fields: Fields, subscription_id: str) -> Json | Refusal:
    """`GET /v1/subscriptions/{id}`."""
    found = fields.finish() or desk.find("subscription", subscription_id)
    return found if isinstance(found, Refusal) else shape_subscription(desk, found)


def list_subscriptions(desk: Desk, fields: Fields) -> Json | Refusal:
    """`GET /v1/subscriptions`; canceled ones only with `status=all` or `canceled`."""
    customer, price = fields.text("customer"), fields.text("price")
    status = fields.text("status")
    fields.unused("test_clock", "collection_method")
    found = [
        one
        for one in desk.newest("subscription")
        if (not customer or one["customer"] == customer)
        and (not price or any(desk.ledger.objects[item]["price"] == price for item in one["items"]))
        and (status == "all" or one["status"] == (status or "active"))
    ]
    return page("/v1/subscriptions", found, fields, lambda one: shape_subscription(desk, one))


def update_subscription(desk: Desk, fields: Fields, subscription_id: str) -> Json | Refusal:
    """`POST /v1/subscriptions/{id}`; `billing_cycle_anchor=now` ends the period here."""
    subscription = desk.find("subscription", subscription_id)
    if isinstance(subscription, Refusal):
        return subscription
    if subscription["status"] == "canceled":
        return missing("subscription", subscription_id)
    metadata, rows = fields.texts("metadata"), fields.rows("items")
    anchor = fields.choice("billing_cycle_anchor", ("now", "unchanged"), "unchanged")
    at_end = fields.flag("cancel_at_period_end", default=subscription["cancel_at_period_end"])
    fields.unused(*_IGNORED, *_IGNORED_MORE)
    changes = []
    for row in rows:
        item_id, is_gone = row.text("id"), row.flag("deleted")
        clear = row.flag("clear_usage")
        changes.append((item_id, is_gone, clear, _read_item(desk, row, is_new=not item_id)))
        if item_id and item_id not in subscription["items"]:
            row.wrong = row.wrong or missing("subscription_item", item_id, row.named("id"))
        fields.take(row)
    refused = fields.finish()
    if refused is not None:
        return refused
    for item_id, is_gone, clear, read in changes:
        refused = None
        if is_gone:
            refused = _remove_item(desk, subscription, item_id, clear=clear)
        elif item_id:
            _change_item(desk.ledger.objects[item_id], read)
        else:
            _add_item(desk, subscription, read)
        if refused is not None:
            return refused
    subscription["metadata"] = {**subscription["metadata"], **metadata}
    now_s = desk.time_on(subscription["test_clock"] or "")
    if at_end != subscription["cancel_at_period_end"]:
        subscription["cancel_at_period_end"] = at_end
        subscription["canceled_at"] = now_s if at_end else None
    if anchor == "now":
        used = (subscription["current_period_start"], now_s)
        subscription["billing_cycle_anchor"] = now_s
        _open_period(desk, subscription, now_s, now_s)
        _bill(desk, subscription, used, "subscription_update")
    desk.publish("customer.subscription.updated", shape_subscription(desk, subscription))
    return shape_subscription(desk, subscription)


def cancel_subscription(desk: Desk, fields: Fields, subscription_id: str) -> Json | Refusal:
    """`DELETE /v1/subscriptions/{id}`: at once; what was used is billed only with `invoice_now`."""
    invoice_now = fields.flag("invoice_now")
    fields.unused("prorate", "cancellation_details")
    found = fields.finish() or desk.find("subscription", subscription_id)
    if isinstance(found, Refusal):
        return found
    if found["status"] == "canceled":
        return missing("subscription", subscription_id)
    now_s = desk.time_on(found["test_clock"] or "")
    end_subscription(desk, found, now_s)
    if invoice_now:
        _bill(desk, found, (found["current_period_start"], now_s), "subscription_update")
    return shape_subscription(desk, found)


# Items.


def _change_item(item: Json, read: Json) -> None:
    item["price"] = read["price"] or item["price"]
    item["metadata"] = {**item["metadata"], **read["metadata"]}
    if read["quantity"] is not None:
        item["quantity"] = read["quantity"]


def _remove_item(desk: Desk, subscription: Json, item_id: str, *, clear: bool) -> Refusal | None:
    if desk.ledger.records.get(item_id) and not clear:
        return Refusal(
            400,
            f"Subscription item {item_id} cannot be deleted because it has usage. Pass clear_usage=true to clear all usage for this subscription item.",
            param="clear_usage",
        )
    if len(subscription["items"]) == 1:
        return Refusal(400, "A subscription must have at least one active price.", param="id")
    subscription["items"].remove(item_id)
    desk.ledger.records.pop(item_id, None)
    del desk.ledger.objects[item_id]
    return None


def create_item(desk: Desk, fields: Fields) -> Json | Refusal:
    """`POST /v1/subscription_items`."""
    subscription_id = fields.text("subscription", required=True)
    fields.unused(*_IGNORED_MORE)
    read = _read_item(desk, fields, is_new=True)
    refused = fields.finish()
    if refused is not None:
        return refused
    subscription = desk.find("subscription", subscription_id, "subscription")
    if isinstance(subscription, Refusal):
        return subscription
    if len(subscription["items"]) >= ITEMS_MAX or subscription["status"] == "canceled":
        return Refusal(400, "Nothing can be added to this subscription.", param="subscription")
    prices = [desk.ledger.objects[one]["price"] for one in subscription["items"]]
    refused = _unlike(desk, [*prices, read["price"]])
    return refused or shape_item(desk, _add_item(desk, subscription, read))


def retrieve_item(desk: Desk, fields: Fields, item_id: str) -> Json | Refusal:
    """`GET /v1/subscription_items/{id}`."""
    item = fields.finish() or desk.find("subscription_item", item_id)
    return item if isinstance(item, Refusal) else shape_item(desk, item)


def list_items(desk: Desk, fields: Fields) -> Json | Refusal:
    """`GET /v1/subscription_items?subscription=...`."""
    subscription_id = fields.text("subscription", required=True)
    if fields.wrong is not None:
        return fields.wrong
    subscription = desk.find("subscription", subscription_id, "subscription")
    if isinstance(subscription, Refusal):
        return subscription
    items = [desk.ledger.objects[one] for one in subscription["items"]]
    return page("/v1/subscription_items", items, fields, lambda one: shape_item(desk, one))


def update_item(desk: Desk, fields: Fields, item_id: str) -> Json | Refusal:
    """`POST /v1/subscription_items/{id}`."""
    fields.unused(*_IGNORED_MORE)
    read = _read_item(desk, fields, is_new=False)
    item = fields.finish() or desk.find("subscription_item", item_id)
    if isinstance(item, Refusal):
        return item
    _change_item(item, read)
    return shape_item(desk, item)


def delete_item(desk: Desk, fields: Fields, item_id: str) -> Json | Refusal:
    """`DELETE /v1/subscription_items/{id}`."""
    clear = fields.flag("clear_usage")
    fields.unused(*_IGNORED_MORE)
    item = fields.finish() or desk.find("subscription_item", item_id)
    if isinstance(item, Refusal):
        return item
    subscription = desk.ledger.objects[item["subscription"]]
    refused = _remove_item(desk, subscription, item_id, clear=clear)
    return refused or {"id": item_id, "object": "subscription_item", "deleted": True}
