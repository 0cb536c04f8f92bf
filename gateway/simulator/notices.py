"""The endpoints of events and of where webhooks go.

Rules it keeps: v1 endpoints get snapshot events, v2 destinations thin ones; a secret shows only when it is made. It
must not know what events are about.
Sources: https://docs.stripe.com/api/events, https://docs.stripe.com/api/v2/core/events
"""

from __future__ import annotations

from typing import Final

from gateway.simulator.desk import DESTINATION, Desk
from gateway.simulator.wire import Fields, Json, Refusal, missing, page

DESTINATIONS_MAX: Final = 16


def list_events(desk: Desk, fields: Fields) -> Json | Refusal:
    """`GET /v1/events`: snapshot events, newest first."""
    kind, kinds = fields.text("type"), fields.words("types")
    fields.unused("created", "delivery_success")
    found = [
        one
        for one in reversed(desk.ledger.events.values())
        if one["object"] == "event"
        and (not kind or one["type"] == kind)
        and (not kinds or one["type"] in kinds)
    ]
    return page("/v1/events", found, fields)


def retrieve_event(desk: Desk, fields: Fields, event_id: str) -> Json | Refusal:
    """`GET /v1/events/{id}`."""
    found = desk.ledger.events.get(event_id)
    if found is None or found["object"] != "event":
        return missing("event", event_id)
    return fields.finish() or found


def retrieve_thin_event(desk: Desk, fields: Fields, event_id: str) -> Json | Refusal:
    """`GET /v2/core/events/{id}`: the report that a thin event stands for."""
    found = desk.ledger.events.get(event_id)
    if found is None or found["object"] != "v2.core.event":
        return missing("event", event_id)
    return fields.finish() or found


def list_thin_events(desk: Desk, fields: Fields) -> Json | Refusal:
    """`GET /v2/core/events`: newest first, one page of at most 100."""
    limit, related = fields.whole("limit") or 20, fields.text("object_id")
    fields.unused("created", "types")
    refused = fields.finish()
    if refused is not None:
        return refused
    found = [
        one
        for one in reversed(desk.ledger.events.values())
        if one["object"] == "v2.core.event"
        and (not related or (one["related_object"] or {}).get("id") == related)
    ]
    return {"data": found[: min(limit, 100)], "next_page_url": None, "previous_page_url": None}


def create_endpoint(desk: Desk, fields: Fields) -> Json | Refusal:
    """`POST /v1/webhook_endpoints`; the only answer with its `secret`."""
    url, wanted = fields.text("url", required=True), fields.words("enabled_events")
    fields.unused("api_version", "connect", "description", "metadata")
    if not wanted:
        fields.refuse(
            "Missing required param: enabled_events.", "enabled_events", "parameter_missing"
        )
    refused = fields.finish() or _too_many(desk)
    if refused is not None:
        return refused
    endpoint: Json = {
        "id": desk.new_id("we_"),
        "object": "webhook_endpoint",
        "created": desk.now_s,
        "enabled_events": wanted,
        "livemode": desk.settings.is_live,
        "secret": desk.new_id("whsec_", 32),
        "status": "enabled",
        "url": url,
    }
    desk.keep("webhook_endpoint", endpoint)
    return endpoint


def list_endpoints(desk: Desk, fields: Fields) -> Json | Refusal:
    """`GET /v1/webhook_endpoints`."""
    return page("/v1/webhook_endpoints", desk.newest("webhook_endpoint"), fields, _without_secret)


def retrieve_endpoint(desk: Desk, fields: Fields, endpoint_id: str) -> Json | Refusal:
    """`GET /v1/webhook_endpoints/{id}`."""
    found = fields.finish() or desk.find("webhook_endpoint", endpoint_id)
    return found if isinstance(found, Refusal) else _without_secret(found)


def delete_endpoint(desk: Desk, fields: Fields, endpoint_id: str) -> Json | Refusal:
    """`DELETE /v1/webhook_endpoints/{id}`."""
    found = fields.finish() or desk.find("webhook_endpoint", endpoint_id)
    if isinstance(found, Refusal):
        return found
    del desk.ledger.objects[endpoint_id]
    return {"id": endpoint_id, "object": "webhook_endpoint", "deleted": True}


def create_destination(desk: Desk, fields: Fields) -> Json | Refusal:
    """`POST /v2/core/event_destinations`: a webhook for thin events."""
    name = fields.text("name", required=True)
    fields.choice("type", ("webhook_endpoint",))
    wanted = fields.words("enabled_events")
    inner = fields.inner("webhook_endpoint") or Fields({}, "webhook_endpoint")
    url = inner.text("url", required=True)
    fields.take(inner)
    included = fields.words("include")
    fields.unused("event_payload", "description", "events_from", "metadata", "snapshot_api_version")
    refused = fields.finish() or _too_many(desk)
    if refused is not None:
        return refused
    destination: Json = {
        "id": desk.new_id("ed_"),
        "object": DESTINATION,
        "created": desk.now_s,
        "enabled_events": wanted or ["*"],
        "event_payload": "thin",
        "livemode": desk.settings.is_live,
        "name": name,
        "secret": desk.new_id("whsec_", 32),
        "status": "enabled",
        "type": "webhook_endpoint",
        "url": url,
    }
    desk.keep(DESTINATION, destination)
    shown = _without_secret(destination)
    shown["webhook_endpoint"] = {"url": shown.pop("url")}
    if "webhook_endpoint.signing_secret" in included:
        shown["webhook_endpoint"]["signing_secret"] = destination["secret"]
    return shown


def _without_secret(endpoint: Json) -> Json:
    return {name: value for name, value in endpoint.items() if name != "secret"}


def _too_many(desk: Desk) -> Refusal | None:
    count = len(desk.newest("webhook_endpoint")) + len(desk.newest(DESTINATION))
    if count < DESTINATIONS_MAX:
        return None
    return Refusal(400, f"You have reached the maximum of {DESTINATIONS_MAX} webhook endpoints.")
