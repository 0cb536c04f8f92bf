"""The v2 endpoints of meter events: one by one, and as a stream under a session's token.

Rules it keeps: a token ends after 15 minutes; the stream answers 200 for what it will reject later, and leaves out what
it has had before without a word. It must not know how events are kept.
Source: https://docs.stripe.com/api/v2/billing/meter-event-stream
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from gateway.simulator.aggregation import IDENTIFIER_CHARS_MAX, accept, cancel
from gateway.simulator.desk import Desk, instant
from gateway.simulator.ledger import MICROS
from gateway.simulator.meters import EVENT_NAME_CHARS_MAX
from gateway.simulator.wire import Fields, Json, Refusal

STREAM_EVENTS_MAX: Final = 100
SESSION_SECONDS: Final = 900
SESSIONS_MAX: Final = 10_000
TOKEN_PREFIX: Final = "simulated_session_"
_NO_SESSION: Final = Refusal(
    401,
    "The token is not one of a meter event session.",
    "billing_meter_event_session_invalid",
    type="authentication_error",
    is_kept=False,
)
_EXPIRED: Final = Refusal(
    400,
    "The temporary session token has expired.",
    "billing_meter_event_session_expired",
    type="temporary_session_expired",
    is_kept=False,
)


def create_session(desk: Desk, fields: Fields) -> Json | Refusal:
    """`POST /v2/billing/meter_event_session`."""
    refused = fields.finish()
    if refused is not None:
        return refused
    sessions = desk.ledger.sessions
    for token in [
        one
        for one, ends_us in sessions.items()
        if ends_us <= desk.now_us - MICROS * SESSION_SECONDS
    ]:
        del sessions[token]
    while len(sessions) >= SESSIONS_MAX:
        del sessions[next(iter(sessions))]
    token = desk.new_id(TOKEN_PREFIX)
    ends_us = sessions[token] = desk.now_us + SESSION_SECONDS * MICROS
    return {
        "id": desk.new_id("mes_"),
        "object": "v2.billing.meter_event_session",
        "authentication_token": token,
        "created": instant(desk.now_us),
        "expires_at": instant(ends_us),
        "livemode": desk.settings.is_live,
    }


class _Event:
    """One event as v2 writes it; what is wrong is in `fields.wrong`."""

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self.event_name = fields.text("event_name", required=True, chars_max=EVENT_NAME_CHARS_MAX)
        self.identifier = fields.text("identifier", chars_max=IDENTIFIER_CHARS_MAX)
        self.payload = fields.texts("payload")
        text = fields.text("timestamp")
        self.timestamp_s: int | None = None
        if text:
            try:
                moment = datetime.fromisoformat(text)
            except ValueError:
                fields.refuse("timestamp must be RFC 3339.", "timestamp", "invalid_fields")
            else:
                moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
                self.timestamp_s = int(moment.timestamp())
        if not self.payload:
            fields.refuse("payload is required.", "payload", "missing_required_parameter")

    def accept(self, desk: Desk, *, at_once: bool) -> Refusal | str:
        """Hand it in."""
        return accept(
            desk,
            self.event_name,
            self.identifier,
            self.payload,
            self.timestamp_s,
            at_once=at_once,
        )


def stream(desk: Desk, fields: Fields) -> Json | Refusal:
    """`POST /v2/billing/meter_event_stream`: at most 100 events, judged later."""
    ends_us = desk.ledger.sessions.get(desk.token)
    if ends_us is None:
        return _NO_SESSION
    if ends_us <= desk.now_us:
        return _EXPIRED
    rows = fields.rows("events")
    if not 1 <= len(rows) <= STREAM_EVENTS_MAX:
        fields.refuse(f"events: 1 to {STREAM_EVENTS_MAX} are needed.", "events", "invalid_fields")
        return fields.finish() or {}
    events = [_Event(row) for row in rows]
    for event in events:
        fields.take(event.fields)
    refused = fields.finish()
    if refused is not None:
        return refused
    for event in events:
        accepted = event.accept(desk, at_once=False)
        if isinstance(accepted, Refusal) and accepted.status >= 500:
            return accepted
    return {}


def create_event(desk: Desk, fields: Fields) -> Json | Refusal:
    """`POST /v2/billing/meter_events`."""
    event = _Event(fields)
    refused = fields.finish()
    if refused is not None:
        return refused
    accepted = event.accept(desk, at_once=True)
    if isinstance(accepted, Refusal):
        is_duplicate = accepted.code is None and accepted.status == 400
        return accepted._replace(code="duplicate_meter_event") if is_duplicate else accepted
    return {
        "object": "v2.billing.meter_event",
        "created": instant(desk.now_us),
        "event_name": event.event_name,
        "identifier": accepted,
        "livemode": desk.settings.is_live,
        "payload": event.payload,
        "timestamp": instant(desk.ledger.sent[accepted].timestamp_s * MICROS),
    }


def create_adjustment(desk: Desk, fields: Fields) -> Json | Refusal:
    """`POST /v2/billing/meter_event_adjustments`."""
    event_name = fields.text("event_name", required=True, chars_max=EVENT_NAME_CHARS_MAX)
    fields.choice("type", ("cancel",))
    inner = fields.inner("cancel") or Fields({}, "cancel")
    identifier = inner.text("identifier", required=True, chars_max=IDENTIFIER_CHARS_MAX)
    fields.take(inner)
    refused = fields.finish() or cancel(desk, identifier)
    return refused or {
        "id": desk.new_id("mea_"),
        "object": "v2.billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "created": instant(desk.now_us),
        "event_name": event_name,
        "livemode": desk.settings.is_live,
        "status": "complete",
        "type": "cancel",
    }
