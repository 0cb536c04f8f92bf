"""Invoices: drawn at a period's end from what was aggregated, finalized after the grace; and their endpoints.

Rules it keeps: a draft follows what is still aggregated for its period, a finalized invoice never changes; what
arrives later is accepted and not billed in it. One line per item, rounded by itself. It must not know when periods
end. Sources: https://docs.stripe.com/api/invoices, https://docs.stripe.com/billing/invoices/subscription
"""

from __future__ import annotations

from gateway.simulator.aggregation import total
from gateway.simulator.amounts import line_amount
from gateway.simulator.catalog import shape_price
from gateway.simulator.desk import Desk
from gateway.simulator.wire import Fields, Json, Refusal, page


def usage_of(desk: Desk, item: Json, customer: str, start_s: int, end_s: int) -> int:
    """What an item used in [start, end), by its meter or its usage records; 0 at least."""
    price = desk.ledger.objects[item["price"]]
    meter = price["recurring"]["meter"]
    if meter is not None:
        first_s = max(start_s, item["created"])
        used = total(desk.ledger, desk.ledger.objects[meter], customer, first_s, end_s)
        return max(0, used or 0)
    return recorded(desk, item["id"], price["recurring"]["aggregate_usage"], start_s, end_s)


def recorded(desk: Desk, item_id: str, how: str, start_s: int, end_s: int) -> int:
    """What legacy usage records say of [start, end)."""
    records = desk.ledger.records.get(item_id, {})
    first_s = -1 if how == "last_ever" else start_s
    inside = {at_s: units for at_s, units in records.items() if first_s <= at_s < end_s}
    if not inside:
        return 0
    if how == "sum":
        return sum(inside.values())
    return max(inside.values()) if how == "max" else inside[max(inside)]


def draw_invoice(
    desk: Desk,
    subscription: Json,
    used: tuple[int, int] | None,
    ahead: tuple[int, int] | None,
    reason: str,
) -> Json:
    """A draft: metered items for the period `used`, licensed ones for the period `ahead`."""
    now_s = desk.time_on(subscription["test_clock"] or "")
    period = used or (now_s, now_s)
    invoice: Json = {
        "id": desk.new_id("in_"),
        "object": "invoice",
        "amount_paid": 0,
        "auto_advance": True,
        "automatically_finalizes_at": now_s + desk.settings.grace_seconds,
        "billing_reason": reason,
        "collection_method": subscription["collection_method"],
        "created": now_s,
        "currency": subscription["currency"],
        "customer": subscription["customer"],
        "lines": [],
        "livemode": desk.settings.is_live,
        "metadata": {},
        "number": None,
        "period_end": period[1],
        "period_start": period[0],
        "status": "draft",
        "status_transitions": {"finalized_at": None, "paid_at": None, "voided_at": None},
        "subscription": subscription["id"],
        "test_clock": subscription["test_clock"],
    }
    for item_id in subscription["items"]:
        item = desk.ledger.objects[item_id]
        price = desk.ledger.objects[item["price"]]
        is_metered = price["recurring"]["usage_type"] == "metered"
        span = used if is_metered else ahead
        if span is not None:
            invoice["lines"].append(
                {
                    "id": desk.new_id("il_"),
                    "item": item_id,
                    "price": price["id"],
                    "period": {"start": span[0], "end": span[1]},
                    "quantity": 0 if is_metered else item["quantity"],
                    "amount": 0,
                }
            )
    desk.keep("invoice", invoice)
    _count(desk, invoice)
    desk.publish("invoice.created", shape_invoice(desk, invoice))
    return invoice


def _count(desk: Desk, invoice: Json) -> None:
    """Set the lines to what is aggregated by now."""
    for line in invoice["lines"]:
        price = desk.ledger.objects[line["price"]]
        if price["recurring"]["usage_type"] == "metered":
            # Of an item that was removed meanwhile: the draft keeps what it had.
            item = desk.ledger.objects.get(line["item"])
            if item is not None:
                span = line["period"]
                line["quantity"] = usage_of(
                    desk, item, invoice["customer"], span["start"], span["end"]
                )
        line["amount"] = line_amount(price, line["quantity"])


def finalize(desk: Desk, invoice_id: str) -> None:
    """Fix an invoice for good; does nothing when that was done before."""
    invoice = desk.ledger.objects[invoice_id]
    if invoice["status"] != "draft":
        return
    _count(desk, invoice)
    now_s = desk.time_on(invoice["test_clock"] or "")
    amount = sum(line["amount"] for line in invoice["lines"])
    invoice["number"] = f"SIM-{desk.number():06d}"
    invoice["status"] = "open" if amount else "paid"
    invoice["automatically_finalizes_at"] = None
    invoice["status_transitions"]["finalized_at"] = now_s
    if not amount:
        invoice["status_transitions"]["paid_at"] = now_s
    desk.publish("invoice.finalized", shape_invoice(desk, invoice))


def _shape_line(desk: Desk, invoice: Json, line: Json, *, is_old: bool) -> Json:
    price = desk.ledger.objects[line["price"]]
    metered = price["recurring"]["usage_type"] == "metered"
    shaped: Json = {
        "id": line["id"],
        "object": "line_item",
        "amount": line["amount"],
        "currency": invoice["currency"],
        "description": f"{line['quantity']} x {price['nickname'] or price['id']}",
        "discountable": True,
        "invoice": invoice["id"],
        "livemode": invoice["livemode"],
        "metadata": {},
        "period": line["period"],
        "quantity": line["quantity"],
    }
    if is_old:
        shaped["price"] = shape_price(price)
        shaped["subscription"] = invoice["subscription"]
        shaped["subscription_item"] = line["item"]
        shaped["type"] = "subscription"
        return shaped
    shaped["parent"] = {
        "subscription_item_details": {
            "invoice_item": None,
            "proration": False,
            "subscription": invoice["subscription"],
            "subscription_item": line["item"],
        },
        "type": "subscription_item_details",
    }
    shaped["pricing"] = {
        "price_details": {"price": price["id"], "product": price["product"]},
        "type": "price_details",
        "unit_amount_decimal": price["unit_amount_decimal"],
        "usage_type": "metered" if metered else "licensed",
    }
    return shaped


def shape_invoice(desk: Desk, invoice: Json) -> Json:
    """An invoice as answers show it, by the request's API version."""
    is_old = desk.is_before_basil
    amount = sum(line["amount"] for line in invoice["lines"])
    shaped: Json = {
        **invoice,
        "amount_due": amount,
        "amount_remaining": amount - invoice["amount_paid"],
        "lines": {
            "object": "list",
            "data": [_shape_line(desk, invoice, one, is_old=is_old) for one in invoice["lines"]],
            "has_more": False,
            "url": f"/v1/invoices/{invoice['id']}/lines",
        },
        "subtotal": amount,
        "total": amount,
    }
    if not is_old:
        details = {"metadata": {}, "subscription": shaped.pop("subscription")}
        shaped["parent"] = {"subscription_details": details, "type": "subscription_details"}
    return shaped


def retrieve_invoice(desk: Desk, fields: Fields, invoice_id: str) -> Json | Refusal:
    """`GET /v1/invoices/{id}`."""
    invoice = fields.finish() or desk.find("invoice", invoice_id)
    return invoice if isinstance(invoice, Refusal) else shape_invoice(desk, invoice)


def list_invoices(desk: Desk, fields: Fields) -> Json | Refusal:
    """`GET /v1/invoices`."""
    wanted = {name: fields.text(name) for name in ("customer", "subscription", "status")}
    fields.unused("collection_method")
    found = [
        one
        for one in desk.newest("invoice")
        if all(not value or one[name] == value for name, value in wanted.items())
    ]
    return page("/v1/invoices", found, fields, lambda one: shape_invoice(desk, one))


def finalize_invoice(desk: Desk, fields: Fields, invoice_id: str) -> Json | Refusal:
    """`POST /v1/invoices/{id}/finalize`: ahead of the grace."""
    fields.unused("auto_advance")
    invoice = fields.finish() or desk.find("invoice", invoice_id)
    if isinstance(invoice, Refusal):
        return invoice
    if invoice["status"] != "draft":
        return Refusal(
            400,
            "This invoice is already finalized, you can't re-finalize a non-draft invoice.",
            "invoice_not_editable",
        )
    finalize(desk, invoice_id)
    return shape_invoice(desk, invoice)
