"""The endpoints of meters, meter events, adjustments and summaries, v1.

Rules it keeps: answers have the fields of Stripe's API reference; summaries lie on whole minutes (hours, UTC days
when grouped) or are refused; `aggregated_value` is a float, as Stripe's is. It must not know how events are kept.
Source: https://docs.stripe.com/api/billing/meter
"""

from __future__ import annotations

from typing import Final

from gateway.simulator.aggregation import (
    IDENTIFIER_CHARS_MAX,
    accept,
    cancel,
    make_customer,
    make_meter,
    total,
)
from gateway.simulator.desk import FULL, Desk
from gateway.simulator.ledger import DAY_SECONDS, digest_id
from gateway.simulator.wire import Fields, Json, Refusal, page

EVENT_NAME_CHARS_MAX: Final = 100
WINDOWS_MAX: Final = 10_000
_GROUPS: Final = {"": 60, "hour": 3600, "day": DAY_SECONDS}


def create_meter(desk: Desk, fields: Fields) -> Json | Refusal:
    """`POST /v1/billing/meters`."""
    event_name = fields.text("event_name", required=True, chars_max=EVENT_NAME_CHARS_MAX)
    display_name = fields.text("display_name", required=True, chars_max=250)
    window = fields.choice("event_time_window", ("day", "hour"), "")
    formula = "sum"
    aggregation = fields.inner("default_aggregation")
    if aggregation is None:
        fields.refuse(
            "Missing required param: default_aggregation.",
            "default_aggregation",
            "parameter_missing",
        )
    else:
        formula = aggregation.choice("formula", ("count", "last", "sum"))
        fields.take(aggregation)
    keys = {"customer_mapping": "stripe_customer_id", "value_settings": "value"}
    for name in keys:
        inner = fields.inner(name)
        if inner is not None:
            keys[name] = inner.text("event_payload_key", required=True, chars_max=100)
            if name == "customer_mapping":
                inner.choice("type", ("by_id",))
            fields.take(inner)
    refused = fields.finish()
    if refused is not None:
        return refused
    if event_name in desk.ledger.meters:
        return Refusal(
            400,
            f"There is already an active meter with event name {event_name}.",
            "resource_already_exists",
            "event_name",
        )
    if desk.is_full():
        return FULL
    meter = make_meter(desk, event_name, formula)
    meter["display_name"] = display_name
    meter["event_time_window"] = window or None
    meter["customer_mapping"]["event_payload_key"] = keys["customer_mapping"]
    meter["value_settings"]["event_payload_key"] = keys["value_settings"]
    return meter


def update_meter(desk: Desk, fields: Fields, meter_id: str) -> Json | Refusal:
    """`POST /v1/billing/meters/{id}`: only its name."""
    display_name = fields.text("display_name", chars_max=250)
    refused = fields.finish()
    if refused is not None:
        return refused
    meter = desk.find("billing.meter", meter_id)
    if not isinstance(meter, Refusal) and display_name:
        meter["display_name"], meter["updated"] = display_name, desk.now_s
    return meter


def retrieve_meter(desk: Desk, fields: Fields, meter_id: str) -> Json | Refusal:
    """`GET /v1/billing/meters/{id}`."""
    return fields.finish() or desk.find("billing.meter", meter_id)


def list_meters(desk: Desk, fields: Fields) -> Json | Refusal:
    """`GET /v1/billing/meters`."""
    status = fields.choice("status", ("active", "inactive"), "")
    found = [one for one in desk.newest("billing.meter") if status in ("", one["status"])]
    return page("/v1/billing/meters", found, fields)


def deactivate_meter(desk: Desk, fields: Fields, meter_id: str) -> Json | Refusal:
    """`POST /v1/billing/meters/{id}/deactivate`: its events are rejected from now on."""
    meter = fields.finish() or desk.find("billing.meter", meter_id)
    if isinstance(meter, Refusal):
        return meter
    if meter["status"] == "inactive":
        return Refusal(400, "The meter is already inactive.", param="id")
    meter["status"] = "inactive"
    meter["status_transitions"]["deactivated_at"] = meter["updated"] = desk.now_s
    del desk.ledger.meters[meter["event_name"]]
    return meter


def reactivate_meter(desk: Desk, fields: Fields, meter_id: str) -> Json | Refusal:
    """`POST /v1/billing/meters/{id}/reactivate`."""
    meter = fields.finish() or desk.find("billing.meter", meter_id)
    if isinstance(meter, Refusal):
        return meter
    if meter["event_name"] in desk.ledger.meters:
        return Refusal(400, "A meter of this event name is active.", param="id")
    meter["status"], meter["updated"] = "active", desk.now_s
    meter["status_transitions"]["deactivated_at"] = None
    desk.ledger.meters[meter["event_name"]] = meter_id
    return meter


def create_meter_event(desk: Desk, fields: Fields) -> Json | Refusal:
    """`POST /v1/billing/meter_events`."""
    event_name = fields.text("event_name", required=True, chars_max=EVENT_NAME_CHARS_MAX)
    identifier = fields.text("identifier", chars_max=IDENTIFIER_CHARS_MAX)
    timestamp_s = fields.whole("timestamp")
    payload = fields.texts("payload")
    if not payload:
        fields.refuse("Missing required param: payload.", "payload", "parameter_missing")
    refused = fields.finish()
    if refused is not None:
        return refused
    accepted = accept(desk, event_name, identifier, payload, timestamp_s, at_once=True)
    if isinstance(accepted, Refusal):
        return accepted
    return {
        "object": "billing.meter_event",
        "created": desk.now_s,
        "event_name": event_name,
        "identifier": accepted,
        "livemode": desk.settings.is_live,
        "payload": payload,
        "timestamp": desk.ledger.sent[accepted].timestamp_s,
    }


def create_adjustment(desk: Desk, fields: Fields) -> Json | Refusal:
    """`POST /v1/billing/meter_event_adjustments`: cancel one event by its identifier."""
    event_name = fields.text("event_name", required=True, chars_max=EVENT_NAME_CHARS_MAX)
    fields.choice("type", ("cancel",))
    inner = fields.inner("cancel")
    identifier = ""
    if inner is None:
        fields.refuse("Missing required param: cancel.", "cancel", "parameter_missing")
    else:
        identifier = inner.text("identifier", required=True, chars_max=IDENTIFIER_CHARS_MAX)
        fields.take(inner)
    refused = fields.finish() or cancel(desk, identifier)
    if refused is not None:
        return refused
    return {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "event_name": event_name,
        "livemode": desk.settings.is_live,
        "status": "complete",
        "type": "cancel",
    }


def list_summaries(desk: Desk, fields: Fields, meter_id: str) -> Json | Refusal:
    """`GET /v1/billing/meters/{id}/event_summaries`: what was aggregated for a customer, newest window first."""
    meter = desk.find("billing.meter", meter_id)
    if isinstance(meter, Refusal):
        return meter
    customer = fields.text("customer", required=True)
    start_s = fields.whole("start_time", required=True) or 0
    end_s = fields.whole("end_time", required=True) or 0
    group = fields.choice("value_grouping_window", ("day", "hour"), "")
    step = _GROUPS.get(group, 60)
    unit = {60: "minute", 3600: "hour"}.get(step, "day")
    for name, value in (("start_time", start_s), ("end_time", end_s)):
        if value % step:
            fields.refuse(f"{name} must be aligned with {unit} boundaries.", name)
    if end_s <= start_s:
        fields.refuse("end_time must be after start_time.", "end_time")
    if group and (end_s - start_s) // step > WINDOWS_MAX:
        fields.refuse(f"The range has more than {WINDOWS_MAX} windows.", "end_time")
    if fields.wrong is not None:
        return fields.wrong
    found = desk.find("customer", customer, "customer")
    if isinstance(found, Refusal):
        if not desk.settings.auto_create or not customer.startswith("cus_"):
            return found
        make_customer(desk, customer)
    bounds = [(start_s, end_s)]
    if group:
        bounds = [(one, one + step) for one in range(start_s, end_s, step)]
    rows = []
    for first_s, after_s in reversed(bounds):
        units = total(desk.ledger, meter, customer, first_s, after_s)
        if units is None and group:
            continue
        rows.append(
            {
                "id": digest_id("mtrusg_", meter_id, customer, first_s, after_s),
                "object": "billing.meter_event_summary",
                "aggregated_value": float(units or 0),
                "end_time": after_s,
                "livemode": desk.settings.is_live,
                "meter": meter_id,
                "start_time": first_s,
            }
        )
    return page(f"/v1/billing/meters/{meter_id}/event_summaries", rows, fields)
