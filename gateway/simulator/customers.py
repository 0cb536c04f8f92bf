"""The endpoints of customers and test clocks.

Rules it keeps: a deleted customer stays known as deleted, and its subscriptions end; a test clock only goes on, and
all that is due on it happens before the answer. It must not know how invoices are drawn.
Sources: https://docs.stripe.com/api/customers, https://docs.stripe.com/api/test_clocks
"""

from __future__ import annotations

from typing import Final

from gateway.simulator.agenda import catch_up_clock
from gateway.simulator.aggregation import make_customer
from gateway.simulator.desk import FULL, Desk
from gateway.simulator.subscriptions import end_subscription
from gateway.simulator.wire import Fields, Json, Refusal, page

_TEXTS: Final = ("description", "email", "name", "phone")
_IGNORED: Final = (
    "address",
    "balance",
    "invoice_settings",
    "payment_method",
    "shipping",
    "source",
    "tax",
)


def _read(fields: Fields) -> Json:
    read: Json = {name: fields.text(name) or None for name in _TEXTS if name in fields}
    if "metadata" in fields:
        read["metadata"] = fields.texts("metadata")
    fields.unused(*_IGNORED)
    return read


def create_customer(desk: Desk, fields: Fields) -> Json | Refusal:
    """`POST /v1/customers`."""
    read, clock = _read(fields), fields.text("test_clock")
    refused = fields.finish()
    if refused is not None:
        return refused
    if clock and isinstance(
        found := desk.find("test_helpers.test_clock", clock, "test_clock"), Refusal
    ):
        return found
    if desk.is_full():
        return FULL
    customer = make_customer(desk, desk.new_id("cus_", 14))
    customer.update(read)
    customer["test_clock"] = clock or None
    desk.publish("customer.created", customer)
    return customer


def retrieve_customer(desk: Desk, fields: Fields, customer_id: str) -> Json | Refusal:
    """`GET /v1/customers/{id}`; a deleted one answers `deleted: true`."""
    refused = fields.finish()
    if refused is not None:
        return refused
    if (
        desk.settings.auto_create
        and customer_id.startswith("cus_")
        and customer_id not in desk.ledger.objects
    ):
        make_customer(desk, customer_id)
    return desk.find("customer", customer_id)


def list_customers(desk: Desk, fields: Fields) -> Json | Refusal:
    """`GET /v1/customers`."""
    email, clock = fields.text("email"), fields.text("test_clock")
    found = [
        one
        for one in desk.newest("customer")
        if not one.get("deleted")
        and (not email or one["email"] == email)
        and (not clock or one["test_clock"] == clock)
    ]
    return page("/v1/customers", found, fields)


def update_customer(desk: Desk, fields: Fields, customer_id: str) -> Json | Refusal:
    """`POST /v1/customers/{id}`; metadata is merged, an empty value takes a key away."""
    read = _read(fields)
    customer = fields.finish() or desk.find("customer", customer_id)
    if isinstance(customer, Refusal):
        return customer
    if customer.get("deleted"):
        return Refusal(404, f"No such customer: '{customer_id}'", "resource_missing", "id")
    merged = {**customer["metadata"], **read.pop("metadata", {})}
    customer["metadata"] = {name: value for name, value in merged.items() if value}
    customer.update(read)
    desk.publish("customer.updated", customer)
    return customer


def delete_customer(desk: Desk, fields: Fields, customer_id: str) -> Json | Refusal:
    """`DELETE /v1/customers/{id}`: its subscriptions end at once, nothing more is billed."""
    customer = fields.finish() or desk.find("customer", customer_id)
    if isinstance(customer, Refusal):
        return customer
    if customer.get("deleted"):
        return Refusal(404, f"No such customer: '{customer_id}'", "resource_missing", "id")
    for subscription in desk.newest("subscription"):
        if subscription["customer"] == customer_id and subscription["status"] != "canceled":
            end_subscription(desk, subscription, desk.time_on(desk.clock_of(customer_id)))
    desk.publish("customer.deleted", customer)
    gone: Json = {"id": customer_id, "object": "customer", "deleted": True}
    desk.ledger.objects[customer_id] = {**gone, "test_clock": customer["test_clock"]}
    return gone


def create_clock(desk: Desk, fields: Fields) -> Json | Refusal:
    """`POST /v1/test_helpers/test_clocks`."""
    frozen_s = fields.whole("frozen_time", required=True)
    name = fields.text("name", chars_max=300)
    refused = fields.finish()
    if refused is not None:
        return refused
    clock: Json = {
        "id": desk.new_id("clock_"),
        "object": "test_helpers.test_clock",
        "created": desk.now_s,
        "deletes_after": desk.now_s + 30 * 86_400,
        "frozen_time": frozen_s,
        "livemode": desk.settings.is_live,
        "name": name or None,
        "status": "ready",
        "status_details": {},
    }
    desk.keep("test_helpers.test_clock", clock)
    return clock


def retrieve_clock(desk: Desk, fields: Fields, clock_id: str) -> Json | Refusal:
    """`GET /v1/test_helpers/test_clocks/{id}`."""
    return fields.finish() or desk.find("test_helpers.test_clock", clock_id)


def list_clocks(desk: Desk, fields: Fields) -> Json | Refusal:
    """`GET /v1/test_helpers/test_clocks`."""
    return page("/v1/test_helpers/test_clocks", desk.newest("test_helpers.test_clock"), fields)


def advance_clock(desk: Desk, fields: Fields, clock_id: str) -> Json | Refusal:
    """`POST /v1/test_helpers/test_clocks/{id}/advance`: says `advancing`; the next look says `ready`."""
    frozen_s = fields.whole("frozen_time", required=True) or 0
    clock = fields.finish() or desk.find("test_helpers.test_clock", clock_id)
    if isinstance(clock, Refusal):
        return clock
    if frozen_s <= clock["frozen_time"]:
        return Refusal(400, "frozen_time must be later than the clock's time.", param="frozen_time")
    answer = {**clock, "status": "advancing"}
    catch_up_clock(desk, clock_id, frozen_s)
    desk.publish("test_helpers.test_clock.ready", clock)
    return {**answer, "frozen_time": frozen_s}


def delete_clock(desk: Desk, fields: Fields, clock_id: str) -> Json | Refusal:
    """`DELETE /v1/test_helpers/test_clocks/{id}`: its customers go with it."""
    clock = fields.finish() or desk.find("test_helpers.test_clock", clock_id)
    if isinstance(clock, Refusal):
        return clock
    for customer in desk.newest("customer"):
        if customer["test_clock"] == clock_id and not customer.get("deleted"):
            delete_customer(desk, Fields({}), customer["id"])
            desk.ledger.objects[customer["id"]]["test_clock"] = None
    desk.ledger.agendas.pop(clock_id, None)
    del desk.ledger.objects[clock_id]
    return {"id": clock_id, "object": "test_helpers.test_clock", "deleted": True}
